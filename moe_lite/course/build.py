"""Build the notebooks: ``python -m moe_lite build [NN ...] [--check] [--force]``.

notebooks/NN_topic.py -> notebooks/NN_topic.ipynb, executed; solutions/NN_topic.py ->
solutions/NN_solutions.ipynb, executed, and exercises/NN_exercises.ipynb, cut at nbgrader's marks
and not executed: three names, for three tabs beside each other. Each gets links to its neighbours.
The sources are jupytext's py:percent. A built notebook records the digest of its cells, so that
one look tells whether it is up to date, out of date, or holds somebody's edits, which a build
never overwrites unasked.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import write

ROOT = Path(__file__).resolve().parents[2]
BUDGET_S = 120.0  # what a whole notebook is to take on two quiet cores; it decides nothing
HANG_S = 1800.0  # after this a notebook hangs, however busy the machine is
MAX_BYTES = 1_000_000  # GitHub stops showing notebooks that are much larger
MARK = re.compile(r"([ \t]*)#{2,}[ \t]*(BEGIN|END)\b[ \t]*(.*)")
KINDS = ("SOLUTION", "HIDDEN TESTS")
CUT = "# YOUR CODE HERE", "raise NotImplementedError"
SPACED = "</details><p></p>"  # JupyterLab sets no space below what is folded
WIDGET = "application/vnd.jupyter.widget-view+json"
LINKS = "links"  # the tag of the cells that lead to other notebooks
EDITED, BROKEN = "edited since it was built", "not a readable notebook"


@dataclass(frozen=True)
class Target:
    """Name one notebook to be built, and the source it is built from."""

    source: Path
    built: Path

    @property
    def name(self) -> str:
        """The notebook as it is spoken of: ``exercises/10_exercises.ipynb``."""
        return f"{self.built.parent.name}/{self.built.name}"

    @property
    def is_exercise(self) -> bool:
        return self.built.parent != self.source.parent


def targets(root: Path = ROOT, chapters: Sequence[str] = ()) -> list[Target]:
    """List what can be built under root, for the chapters named ("10" or "10_small_mixtral").

    Raises: ValueError if there is no source at all, or none of a chapter named.
    """
    found = [Target(source, source.with_suffix(".ipynb"))
             for source in sorted((root / "notebooks").glob("*.py"))]  # fmt: skip
    for source in sorted((root / "solutions").glob("*.py")):
        found += [Target(source, root / out / f"{number(source.stem)}_{out}.ipynb")
                  for out in ("solutions", "exercises")]  # fmt: skip
    if not found:
        raise ValueError(
            f"no notebooks/*.py or solutions/*.py in {root}: build from a clone of the repository"
        )
    stems = sorted({target.source.stem for target in found})
    for chapter in chapters:
        if not any(chapter in (stem, number(stem)) for stem in stems):
            raise ValueError(f"there is no chapter {chapter!r}; there are: {', '.join(stems)}")
    return [
        target
        for target in found
        if not chapters or {target.source.stem, number(target.source.stem)} & set(chapters)
    ]


def number(stem: str) -> str:
    """Return a chapter's number: "10" of "10_small_mixtral", "10a" of its appendix."""
    return stem.split("_")[0]


# --- from source to cells ------------------------------------------------------------------------


def count_regions(text: str, name: str) -> int:
    """Count the solution regions of a py:percent source.

    Raises: ValueError with the line of the first mark that is misspelt, nested or unbalanced.
    """
    opened, regions = None, 0
    for number, line in enumerate([*text.splitlines(), "# %%"], 1):
        if opened and re.match(r"# %%", line):
            kind, begin = opened
            raise ValueError(f"{name}, line {begin}: ### BEGIN {kind} has no END in its cell")
        if not (mark := MARK.match(line)):
            continue
        at, (_, edge, kind) = f"{name}, line {number}", mark.groups()
        if kind not in KINDS or line.strip() != f"### {edge} {kind}":
            raise ValueError(
                f"{at}: {line.strip()!r} is not a mark; the marks are ### BEGIN and ### END, "
                f"then {' or '.join(KINDS)}"
            )
        if edge == "BEGIN":
            if opened:
                raise ValueError(
                    f"{at}: ### BEGIN {kind} inside the {opened[0]} begun on line {opened[1]}; "
                    f"regions cannot be nested"
                )
            opened, regions = (kind, number), regions + (kind == "SOLUTION")
        elif opened is None or opened[0] != kind:
            raise ValueError(f"{at}: ### END {kind} without its ### BEGIN {kind}")
        else:
            opened = None
    return regions


def cut(code: str, solved: bool) -> str:
    """Take the marks out of a cell; unless solved, each region's contents too.

    >>> print(cut('''def half(x):
    ...     ### BEGIN SOLUTION
    ...     return x / 2
    ...     ### END SOLUTION''', solved=False))
    def half(x):
        # YOUR CODE HERE
        raise NotImplementedError
    """
    lines, inside = [], False
    for line in code.splitlines():
        if mark := MARK.match(line):
            indent, edge, kind = mark.groups()
            inside = edge == "BEGIN"
            if inside and not solved and kind == "SOLUTION":
                lines += [indent + text for text in CUT]
        elif solved or not inside:
            lines.append(line)
    return "\n".join(lines).strip("\n")


def draft(target: Target) -> Any:
    """Make the notebook of a target, not yet executed.

    Raises: ValueError if a mark is malformed, or an exercise leaves nothing to do.
    """
    import jupytext
    import nbformat

    text = target.source.read_text(encoding="utf-8")
    source = f"{target.source.parent.name}/{target.source.name}"
    regions = count_regions(text, source)
    if target.is_exercise and not regions:
        raise ValueError(f"{source} has no ### BEGIN SOLUTION: its exercise would ask nothing")
    cells, exercise = jupytext.reads(text, fmt="py:percent").cells, ""
    for cell in cells:
        if cell.cell_type == "code":
            cell.source = cut(cell.source, solved=not target.is_exercise)
            if target.is_exercise:  # so that Run All goes past what is not written yet, to the end
                cell.metadata.tags = [*cell.metadata.get("tags", ()), "raises-exception"]
                cell.source = cell.source.replace(CUT[1], CUT[1] + exercise)
            continue
        cell.source = cell.source.replace("</details>", SPACED)
        if target.built.parent.name == "solutions":  # its tab stands beside the exercises' own
            cell.source = re.sub(r"\A# Exercises\b", "# Solutions", cell.source)
        if found := re.findall(r"^## (\d+)\. ", cell.source, flags=re.M):
            exercise = f'("exercise {found[-1]}")'  # what a later cell that calls it then says
    cells = [cell for cell in cells if cell.source]
    new = nbformat.v4.new_markdown_cell
    if cells and (title := re.match(r"# .+", cells[0].source)):
        # Behind the title, so that the title stays the first thing on the page.
        rest = cells[0].source[title.end() :].strip()
        note = (
            f"*Work in this notebook: a rebuild never overwrites your answers. It was generated "
            f"from `{source}`.*"
        )
        links = new(navigation(target), metadata={"tags": [LINKS]})
        head = [new(title[0]), links, *map(new, filter(None, [rest]))]
        cells = [*head, *([new(note)] if target.is_exercise else []), *cells[1:]]
        cells.append(new(links.source, metadata={"tags": [LINKS]}))
    seen: Counter[str] = Counter()
    for cell in cells:
        id_ = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[id_] += 1
        cell.id = id_ if seen[id_] == 1 else f"{id_}-{seen[id_]}"
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata(source, digest(cells)))


def navigation(target: Target) -> str:
    """Write the line of links under a notebook's title and at its end.

    Neighbours are of the same kind: an exercise leads to the exercises of the next chapter. An
    appendix (10a) stands between its chapter and the next, and only its chapter leads to it.
    """
    root, here = target.source.parents[1], number(target.source.stem)
    chapters = {number(path.stem): path.stem for path in (root / "notebooks").glob("*.py")}
    solved = {number(path.stem) for path in (root / "solutions").glob("*.py")}
    kind = target.built.parent.name
    names = {of: f"{number(stem)}_{kind}" if kind != "notebooks" else stem
             for of, stem in chapters.items() if kind == "notebooks" or of in solved}  # fmt: skip
    whole = [of for of in sorted(names) if of.isdigit()]
    before, after = [of for of in whole if of < here][-1:], [of for of in whole if of > here][:1]
    links = [f"[← {of}]({names[of]}.ipynb)" for of in before]
    links += [f"[{of} →]({names[of]}.ipynb)" for of in after]
    if kind != "notebooks" and here in chapters:
        links.append(f"[chapter](../notebooks/{chapters[here]}.ipynb)")
    more = [of for of in sorted(chapters) if kind == "notebooks" and of[:-1] == here]
    links += [f"[appendix{' ' + of if len(more) > 1 else ''}]({chapters[of]}.ipynb)" for of in more]
    links += [f"[{other}](../{other}/{here}_{other}.ipynb)" for other in ("exercises", "solutions")
              if here in solved and other != kind]  # fmt: skip
    links += ["[library](../moe_lite/__init__.py)", "[all chapters](../README.md)"]
    return " · ".join(links)


def metadata(source: str, sha256: str) -> dict[str, Any]:
    """Return the notebook metadata: nothing in it depends on the machine."""
    return {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {
            "file_extension": ".py",
            "mimetype": "text/x-python",
            "name": "python",
            "pygments_lexer": "ipython3",
        },
        "moe_lite": {"sha256": sha256, "source": source},
    }


def digest(cells: Sequence[Any]) -> str:
    """Hash what an author wrote in the cells (kind, source, tags), not what running them gave."""
    written = [[c.cell_type, c.source, c.metadata.get("tags", [])] for c in cells]
    return hashlib.sha256(json.dumps(written).encode()).hexdigest()


# --- execution -----------------------------------------------------------------------------------


def execute(
    notebook: Any, folder: Path, name: str, *, limit_s: float = HANG_S,
    allow_errors: bool = False, pages: bool = False,
) -> float:  # fmt: skip
    """Run the cells in a fresh kernel of this very interpreter, and tidy what they print.

    Args:    folder: the working directory; limit_s: seconds of wall time for all cells together;
             allow_errors: go on after a cell that raises, its exception in its outputs;
             pages: let the widgets leave in their outputs what the book makes pages of.
    Returns: the seconds it took, the kernel's start included.
    Raises:  ValueError with the notebook, the cell and the exception, or the cell in which the
             time ran out, or the cell that prints a path of this machine.
    """
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    class ThisInterpreter(KernelSpecManager):
        """A kernel installed as "python3" may be any Python; the course's is the one running."""

        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            return KernelSpec(**get_kernel_dict())

    started, position = time.monotonic(), 0

    def at(cell: Any, cell_index: int) -> None:
        nonlocal position
        position = cell_index

    client = NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ThisInterpreter()),
        resources={"metadata": {"path": str(folder)}},
        timeout_func=lambda cell: max(0.1, started + limit_s - time.monotonic()),
        startup_timeout=int(HANG_S),
        iopub_timeout=int(HANG_S),  # else what a busy machine prints late is lost without a word
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        allow_errors=allow_errors,
        coalesce_streams=True,
        record_timing=False,
        store_widget_state=False,
        shutdown_kernel="immediate",
        on_cell_start=at,
    )
    with tempfile.TemporaryDirectory(prefix="ipython-", ignore_cleanup_errors=True) as ipython:
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "PYTHONHASHSEED": "0",  # sets print in the same order each time
            "MOE_LITE_PAGES": "1" if pages else "",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # quiet at the kernel's start
            "IPYTHONDIR": ipython,  # nobody's own profile
            "PLOTLY_RENDERER": "plotly_mimetype",  # the default stores 5 MB of plotly.js
        }
        try:
            client.execute(env=env, cleanup_kc=True)
        except (CellExecutionError, CellTimeoutError, RuntimeError, AssertionError) as error:
            if hasattr(client, "_async_cleanup_kernel_future"):  # it ended the kernel on Ctrl-C
                raise KeyboardInterrupt from None
            if isinstance(error, AssertionError):
                raise
            if isinstance(error, CellExecutionError):
                what = f"{error.ename}: {' '.join(error.evalue.split())[:400]}"
            elif isinstance(error, CellTimeoutError):
                what = f"still running after {limit_s:g} s: the notebook seems to hang"
            else:
                what = f"the kernel failed: {error}"
            raise ValueError(f"{where(notebook, position, name)}: {what}") from None
    tidy(notebook, name)
    return time.monotonic() - started


def where(notebook: Any, index: int, name: str) -> str:
    """Return which cell is meant: ``notebooks/09.ipynb, cell 3 of 41 ("x = 1")``."""
    first = next(iter(notebook.cells[index].source.splitlines()), "")
    return f'{name}, cell {index + 1} of {len(notebook.cells)} ("{first}")'


def tidy(notebook: Any, name: str) -> None:
    """Keep of the outputs what a reader without a kernel can see, and nothing of this machine.

    Raises: ValueError if an output shows the path of the clone, the home or the temporary folder.
    """
    private = {str(ROOT), str(Path.home()), tempfile.gettempdir()} - {"/", ""}
    for index, cell in enumerate(notebook.cells):
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.outputs = [kept for output in cell.outputs if (kept := tidy_output(output))]
        shown = repr([texts(output) for output in cell.outputs])
        if found := next((path for path in private if repr(path)[1:-1] in shown), None):
            raise ValueError(
                f"{where(notebook, index, name)}: its output shows this machine's path {found!r}"
            )


def texts(output: Any) -> list[Any]:
    """List what an output says in words: a picture's base64 can spell a path by chance."""
    data = output.get("data", {})
    said = [value for kind, value in data.items() if not kind.startswith("image/")]
    return [output.get("text"), output.get("evalue"), *said]


def tidy_output(output: Any) -> Any:
    """Return an output without what does not last; None if nothing is left."""
    if output.output_type == "stream":
        return output if output.name == "stdout" else None
    if output.output_type == "error":
        # The last entry is the exception itself; those before it are frames, with their paths.
        output.traceback = output.traceback[-1:]
        return output
    data = output.data
    if data.pop(WIDGET, None) is not None and "image/png" not in data:
        return None  # without a kernel a widget's text is its repr
    if "<script" in data.get("text/html", "") or "image/png" in data:
        data.pop("text/html", None)  # shown blank wherever scripts are not run, before the picture
    if png := data.get("image/png"):
        data["image/png"] = with_palette(png)
    output["data"] = whole(data)
    return output if data else None


def whole(value: Any) -> Any:
    """Return JSON with its whole numbers as a browser writes them, 2 and not 2.0.

    JupyterLab saves a notebook that was only read, and git would call each such number a change.

    >>> whole({"x": [2.0, 2.5, -0.0, "2.0", True]})
    {'x': [2, 2.5, 0, '2.0', True]}
    """
    if isinstance(value, dict):
        return {key: whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def with_palette(png: str) -> str:
    """Return a picture (base64) in 256 colours, a quarter of the size, or as it is if it is none.

    Git keeps every version of a figure, and a figure of ours has a dozen colours and their edges.
    """
    from PIL import Image

    data, out = base64.b64decode(png), io.BytesIO()
    try:
        with Image.open(io.BytesIO(data)) as picture:
            method, none = Image.Quantize.FASTOCTREE, Image.Dither.NONE
            few = picture.convert("RGBA").quantize(256, method, dither=none)
    except (OSError, ValueError):
        return png
    few.save(out, "PNG", optimize=True)
    return png if len(data) <= len(out.getvalue()) else base64.b64encode(out.getvalue()).decode()


# --- building and checking -----------------------------------------------------------------------


def problem(target: Target) -> str | None:
    """Return why a built notebook is not what its source gives, or None."""
    import nbformat

    wanted = draft(target).metadata.moe_lite.sha256
    if not target.built.exists():
        return "missing"
    try:
        built = nbformat.reads(target.built.read_text(encoding="utf-8"), as_version=4)
        recorded, now = built.metadata.get("moe_lite", {}).get("sha256"), digest(built.cells)
    except Exception:  # whatever a broken file can raise
        return BROKEN
    if now != recorded:
        return EDITED
    if now != wanted:
        return "stale"
    code = [cell for cell in built.cells if cell.cell_type == "code"]
    if not target.is_exercise and not all(cell.execution_count for cell in code):
        return "not executed"
    return None


def orphans(root: Path = ROOT) -> list[Path]:
    """List the chapter-named notebooks (NN_topic.ipynb) that no source makes."""
    made = {target.built for target in targets(root)}
    return [
        path
        for folder in ("notebooks", "solutions", "exercises")
        for path in sorted((root / folder).glob("*.ipynb"))
        if path not in made and re.fullmatch(r"\d\d[a-z]?_\w+", path.stem)
    ]


def carry(notebook: Any, target: Target) -> bool:
    """Take over the outputs of a built notebook, if its code is this one's; says whether it is."""
    import nbformat

    if problem(target) != "stale":
        return False
    built = nbformat.reads(target.built.read_text(encoding="utf-8"), as_version=4)
    old, new = ([c for c in n.cells if c.cell_type == "code"] for n in (built, notebook))
    if [c.source for c in old] != [c.source for c in new] or not all(
        c.execution_count for c in old
    ):
        return False
    for cell, before in zip(new, old, strict=True):
        cell.outputs, cell.execution_count = before.outputs, before.execution_count
    return True


def build(target: Target, force: bool = False) -> float:
    """Make one notebook and put it in place whole; gives the seconds its cells took.

    Where only the text has changed nothing is run, unless forced: the code's outputs stay.

    Raises: ValueError as :func:`draft` and :func:`execute` do, or if it is over a megabyte.
    """
    import nbformat

    notebook, seconds = draft(target), 0.0
    if not target.is_exercise:
        head = dict(notebook.metadata)
        if force or not carry(notebook, target):
            seconds = execute(notebook, target.source.parent, target.name, pages=True)
        notebook.metadata = nbformat.from_dict(head)  # the kernel wrote its own versions there
    nbformat.validate(notebook)
    data = (nbformat.writes(notebook) + "\n").encode()
    if len(data) > MAX_BYTES:
        raise ValueError(
            f"{target.name} would be {len(data) / 1e6:.1f} MB; the limit is {MAX_BYTES / 1e6:.0f} "
            f"MB: draw fewer or smaller figures"
        )
    target.built.parent.mkdir(parents=True, exist_ok=True)
    write(target.built, data)
    return seconds


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Build what is out of date, or with --check only name it; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m moe_lite build",
        description="Execute the notebooks and cut the exercises from the solutions.",
    )
    add = parser.add_argument
    add("chapters", nargs="*", metavar="NN", help="chapters; without any, all")
    add("--check", action="store_true", help="build nothing; name what is out of date")
    add("--force", action="store_true",
        help="build what is up to date too, and replace what was edited")  # fmt: skip
    args = parser.parse_args(argv)
    todo = targets(root, args.chapters)
    found = {target.name: reason for target in todo if (reason := problem(target))}
    lost = [] if args.chapters else [f"{path.parent.name}/{path.name}" for path in orphans(root)]

    if args.check:
        found |= dict.fromkeys(lost, "orphan: no source makes it")
        for name, reason in found.items():
            print(f"{name}: {reason}")
        if not found:
            print("Nothing to build: every notebook is up to date.")
        return 1 if found else 0

    for target in todo:
        reason = found.get(target.name)
        if reason is None and not args.force:
            print(f"{target.name}: up to date")
        elif reason in (EDITED, BROKEN) and not args.force:
            raise ValueError(
                f"{target.name} is {reason}; to keep what it holds, save it under another name; "
                f"to replace it, build with --force"
            )
        else:
            seconds = build(target, args.force)
            done = (
                f"built in {seconds:.0f} s" if seconds else "its text set anew, its code as it was"
            )
            print(f"{target.name}: {'cut' if target.is_exercise else done}")
    for name in lost:
        print(f"{name}: orphan, no source makes it")
    return 0
