"""Teach with the course: ``python -m moe_lite teach {lab,grade,pack,key,plan,quiz,slides}``.

``lab`` makes a folder out of exercises of any chapters, and proves that it grades as it must before
it writes it; ``grade`` grades the notebooks handed in. Needs no server and no account: a lab is a
folder, a submission a notebook. ``pack`` is the course as students get it, ``key`` the answers with
the errors that are made. ``plan``, ``quiz`` and ``slides`` make a lecture of the chapters.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ...files import target, write
from ..environment import cores


def positive(text: str) -> float:
    """Read a number above zero, for argparse."""
    if not 0 < (value := float(text)) < float("inf"):
        raise ValueError(text)
    return value


def parser() -> argparse.ArgumentParser:
    """Return the reader of the command line."""
    top = argparse.ArgumentParser(
        prog="python -m moe_lite teach",
        description="Make labs out of exercises and grade them; plan a lecture.",
    )
    commands = top.add_subparsers(
        dest="command", required=True, metavar="{lab,grade,pack,key,plan,quiz,slides}"
    )
    lab = commands.add_parser("lab", help="make a verified lab out of exercises")
    lab.add_argument("folder", type=Path, help="the lab's folder; its name is the lab's")
    lab.add_argument(
        "exercises", nargs="+", metavar="EXERCISE",
        help="05 (a chapter), 05.2 (its second exercise), 05.2=6 (the same, for six points)",
    )  # fmt: skip
    lab.add_argument(
        "--limit", type=positive, default=60.0, metavar="S",
        help="seconds of computing for a cell (60)",
    )  # fmt: skip
    lab.add_argument(
        "--memory", type=positive, default=4.0, metavar="GB", help="memory for a student (4)"
    )
    lab.add_argument(
        "--nbgrader", type=Path, metavar="COURSE", help="write it into an nbgrader course too"
    )
    lab.add_argument(
        "--otter", type=Path, metavar="DIR", help="write it for `otter assign` too, into DIR"
    )
    lab.add_argument(
        "--seed", type=int, default=1, metavar="N",
        help="other numbers in the grading than in the notebook (1); 0: the same",
    )  # fmt: skip
    lab.add_argument(
        "--diagnose", type=Path, metavar="NAMES",
        help="a file of names: each gets another wrong answer to diagnose and repair",
    )  # fmt: skip
    lab.add_argument("--force", action="store_true", help="replace the lab that is there")
    grade = commands.add_parser("grade", help="grade the notebooks in a lab's submitted/")
    grade.add_argument("folder", type=Path, help="the lab's folder")
    grade.add_argument(
        "--submitted", type=Path, metavar="DIR", help="where they are (FOLDER/submitted)"
    )
    grade.add_argument("--jobs", type=int, default=cores(), metavar="N", help="students at a time")
    pack = commands.add_parser("pack", help="make the students' copy, without solutions")
    pack.add_argument("out", type=Path, metavar="FOLDER", help="or FILE.zip")
    plan = commands.add_parser("plan", help="plan a lecture: minutes, votes, what to cut")
    plan.add_argument("chapters", nargs="+", metavar="NN", help="the chapters, in order")
    plan.add_argument(
        "--out", type=Path, metavar="FILE", help="write it there (else it is printed)"
    )
    plan.add_argument("--minutes", type=int, default=90, metavar="N", help="together (90)")
    for name, made in (
        ("quiz", "questions: HTML to print or click, GIFT"),
        ("slides", "a deck"),
        ("key", "the answers and the usual errors"),
    ):
        one = commands.add_parser(name, help=f"make {made} of a chapter")
        one.add_argument("chapter", metavar="NN")
        one.add_argument(
            "--out", type=Path, metavar="FILE",
            help=f"default: {name}-NN.html" + ("; .gift for Moodle" if name == "quiz" else ""),
        )  # fmt: skip
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Make a lab or grade one; gives the exit code."""
    args = parser().parse_args(argv)
    if args.command == "lab":
        from .lab import assemble, make

        name = args.folder.resolve().name
        limits = {"limit_s": args.limit, "memory_gb": args.memory, "seed": args.seed}
        lab = assemble(name, args.exercises, **limits)
        print(f"{name}: it grades its own solution and every wrong answer ...", flush=True)
        if args.diagnose:
            from . import diagnose

            names = diagnose.students(args.diagnose)
            said = diagnose.make(lab, names, args.folder, replaces=args.force)
        else:
            said = make(lab, args.folder, replace=args.force)
        print(f"{args.folder}: {said}")
        if args.nbgrader:
            from .nbgrader import export

            export(lab, args.nbgrader)
            print(f"{args.nbgrader}: next, there, `nbgrader generate_assignment {name}`")
        if args.otter:
            from . import otter

            print(f"{otter.export(lab, args.otter)}: next, `otter assign` it")
        print(f"Give out {args.folder / 'release'}; put what comes back into submitted/.")
        return 0
    if args.command == "plan":
        from . import plan

        page = plan.page(args.chapters, args.minutes)
        if args.out:
            write(target(args.out), page)
        print(f"{args.out}: Markdown" if args.out else page.rstrip())
        return 0
    if args.command == "pack":
        from . import pack

        print(f"{args.out}: {pack.make(args.out)}")
        return 0
    if args.command in ("quiz", "slides", "key"):
        out = args.out or Path(f"{args.command}-{args.chapter}.html")
        print(f"chapter {args.chapter}: its wrong answers are put to its checks ...", flush=True)
        write(target(out), lecture(args.command, args.chapter, out.suffix == ".gift"))
        print(f"{out}: open it in any browser" if out.suffix != ".gift" else f"{out}: import it")
        return 0
    return grade_all(args.folder, args.submitted or args.folder / "submitted", max(1, args.jobs))


def lecture(kind: str, chapter: str, gift: bool) -> str:
    """Return a chapter's quiz, its deck or its key."""
    from . import plan

    plan.read(chapter)  # a chapter that is not there is told in plan's words, before torch comes
    from . import key, quiz, slides

    if kind == "slides":
        return slides.deck(chapter)
    if kind == "key":
        return key.page(chapter)
    asked = quiz.questions(chapter)
    return quiz.gift(asked) if gift else quiz.page(chapter, asked)


def grade_all(folder: Path, submitted: Path, jobs: int) -> int:
    """Grade every notebook and write FOLDER/graded; what one student does costs no other."""
    from . import grade, report
    from .lab import Lab

    lab = Lab.load(folder)
    work = grade.submissions(submitted)

    def one(job: tuple[str, Path, list[str]]) -> grade.Graded:
        student, path, notes = job
        try:
            theirs = Lab.load(folder, student)
        except ValueError as error:
            lost = [grade.Result("missing", str(error)) for _ in lab.checks]
            return grade.Graded(student, lost, [*notes, str(error)])
        try:
            return grade.grade(theirs, student, path, notes)
        except Exception as error:  # a slip of the grader's own is for a person, not for the class
            said = f"the grader failed: {type(error).__name__}: {error}"
            lost = [grade.Result("broken", grade.SAID["broken"]) for _ in lab.checks]
            return grade.Graded(student, lost, [*notes, said])

    graded = []
    grade.halted.clear()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for got in pool.map(one, work):
                look = f", look: {len(got.looks)}" if got.looks else ""
                print(f"{got.student}: {got.points(lab):g} of {lab.points:g}{look}", flush=True)
                graded.append(got)
        except BaseException:  # Ctrl-C: those that run are ended, not waited for
            grade.halted.set()
            raise
    report.publish(lab, graded, folder / "graded")
    print(f"{folder / 'graded'}: grades.csv, look.md and a page for each student in feedback/")
    return 0
