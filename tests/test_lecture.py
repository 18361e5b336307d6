"""A lecture out of the chapters: questions that are verified, minutes that add up, slides that fit.

What a chapter lacks is named here, and nothing is passed over silently.
"""

import ast
import functools
import re
from pathlib import Path

import pytest
import torch.nn.functional as F
from playwright.sync_api import sync_playwright

from moe_lite import __main__ as cli
from moe_lite.course import checks
from moe_lite.course.teach import plan, quiz, slides

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = plan.chapters()
NO_QUIZ: dict[str, str] = {}  # chapter: why it has no five questions yet


@pytest.mark.slow("every question of a quiz, verified")
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_has_its_questions_and_each_is_verified(chapter):
    if chapter in NO_QUIZ:
        with pytest.raises(AssertionError):
            assert len(quiz.questions(chapter)) >= quiz.QUESTIONS
        return
    asked = quiz.questions(chapter)
    assert len(asked) >= quiz.QUESTIONS
    assert len({(one.stem, one.code, one.options) for one in asked}) == len(asked)
    for one in asked:
        texts = [text for text, _ in one.options]
        assert len(set(texts)) == 4 and one.options[one.right][1] == "Yes."
        path = ROOT / "tests" / "mutants" / f"check_{one.check}.py"
        space = {}
        exec(compile(path.read_text("utf-8"), str(path), "exec"), space)
        said = {name: quiz.verdict(one.check, space[name]) for name in one.mutants}
        assert None not in said.values() and len(set(said.values())) == len(said)
        if one.code:  # the right option is what the check says of this code, no other
            assert set(said.values()) == set(texts)
            assert said[one.mutants[0]] == texts[one.right]
        else:
            for at, text in enumerate(texts):
                ran = {"F": F} | space  # every notebook of exercises imports it
                exec(text, ran)
                name = ast.parse(text).body[0].name
                assert (quiz.verdict(one.check, ran[name]) is None) == (at == one.right)


def also(path):
    """Read what a file of mutants declares: (name, the names whose verdicts are true of it too)."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    rows = [(of, re.split(r",\s+", names)) for of, names in quiz.ALSO.findall(doc)]
    assert len(rows) == len(re.findall("^Also", doc, re.M)), f"{path.name}: a line is not read"
    return rows


@functools.cache
def told(check):
    return {one.name: one.verdict for one in quiz.wrong_answers(check, "answer")}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests" / "mutants").glob("check_*.py")), ids=lambda path: path.stem
)
def test_what_is_said_to_be_also_true_names_mutants_that_are_there(path):
    rows = also(path)
    there = set(re.findall(r"^def (?!right|_)(\w+)", path.read_text(encoding="utf-8"), re.M))
    assert "all" not in there and len({of for of, _ in rows}) == len(rows)
    for of, names in rows:
        assert {of, *names} <= there | {"all"} and len({of, *names}) == 1 + len(names)


@pytest.mark.slow("every question that can be made")
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_no_question_offers_as_wrong_what_is_true_of_its_code(chapter, monkeypatch):
    monkeypatch.setattr(quiz, "QUESTIONS", 9999)
    for one in quiz.questions(chapter):
        if one.code:
            declared = dict(also(ROOT / "tests" / "mutants" / f"check_{one.check}.py"))
            names = [*declared.get("all", ()), *declared.get(one.mutants[0], ())]
            true = {told(one.check)[name] for name in names} - {one.options[one.right][0]}
            assert not true & {text for text, _ in one.options}, (one.mutants, one.code)


@pytest.mark.parametrize(
    ("check", "shown", "others"),
    [
        ("repetition", "across_by_tokens", ["across_texts"]),
        ("rows_enough", "the_balance", ["one_operation", "no_bytes"]),
        ("top_k", "raw_logits", ["not_renormalised"]),
        ("top_k", "masked_with_zero", ["not_renormalised"]),
        ("rank_weights", "a_number", ["as_for_sums"]),
        ("noisy_scores", "no_noise", ["own_draw"]),
        ("sparse_gates", "lowest", ["at_least_the_kth"]),
        ("distinct_copies", "by_first_row", ["by_rounding"]),
    ],
)
def test_what_took_points_from_those_who_were_right_is_declared(check, shown, others):
    wrong = {one.name: one for one in quiz.wrong_answers(check, "answer")}
    assert {wrong[name].verdict for name in others} <= wrong[shown].also


def test_a_question_needs_three_that_are_wrong():
    made = [quiz.Wrong(name, f"code of {name}", name, frozenset(name)) for name in "abcd"]
    assert len(quiz.bank("05.1", "rank", "", made)) == 4
    made[0] = quiz.Wrong("a", "code of a", "a", frozenset("b"))
    assert {one.mutants[0] for one in quiz.bank("05.1", "rank", "", made)} == set("bcd")


def test_a_name_that_is_not_there_is_told(tmp_path):
    path = tmp_path / "tests" / "mutants" / "check_rank.py"
    path.parent.mkdir(parents=True)
    source = (ROOT / "tests" / "mutants" / path.name).read_text(encoding="utf-8")
    path.write_text(source.replace("of last_column: matrix", "of last_column: matrx"))
    with pytest.raises(ValueError, match="check_rank has no mutant 'matrx' to show"):
        quiz.wrong_answers("rank", "rank", tmp_path)


def test_a_mutant_that_raises_is_not_said_to_run():
    assert "crashes" not in [one.name for one in quiz.wrong_answers("top_k", "top_k")]


def test_a_mutant_that_its_check_passes_makes_no_question(monkeypatch):
    monkeypatch.setattr(checks, "check_rank", lambda answer: None)
    with pytest.raises(ValueError, match="passes the mutant"):
        quiz.questions("05")


@pytest.mark.parametrize("chapter", CHAPTERS)
@pytest.mark.parametrize("minutes", [10, 45, 90])
def test_a_plans_minutes_add_up(chapter, minutes):
    made = plan.read(chapter)
    rows, cuts = plan.schedule(made, minutes)
    assert sum(row.minutes for row in rows) == minutes and all(row.minutes > 0 for row in rows)
    titles = [one.title for one in made.taught]
    assert len(set(titles)) == len(titles)
    kept = [row.what for row in rows if row.what in titles]
    assert kept == [title for title in titles if title not in cuts]  # all is taught or named as cut


def test_a_lecture_of_two_chapters_has_one_clock():
    page = plan.page(["04", "06"], 90)
    clock = [int(h) * 60 + int(m) for h, m in re.findall(r"^\| (\d+):(\d\d) ", page, re.M)]
    each = [int(m) for m in re.findall(r"^\| \d+:\d\d \| (\d+) ", page, re.M)]
    assert clock == [sum(each[:at]) for at in range(len(each))] and sum(each) == 90


@pytest.mark.parametrize("command", ["plan", "quiz", "slides"])
def test_a_chapter_that_is_not_there_is_told_in_one_line(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["teach", command, "97"]) == 1
    err = capsys.readouterr().err
    assert "there is no chapter 97" in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_gift_escapes_what_it_reads_as_its_own():
    options = (("a = {b}", "Yes."), ("c", "~"), ("d", "#"), ("e", ":"))
    made = quiz.gift([quiz.Question("05.1", "What?", "x = {}", options, 0, (), "rank")])
    assert r"a \= \{b\}" in made and made.count("\n  =") == 1 and made.count("\n  ~") == 3


def test_a_deck_file_that_names_what_is_not_there_is_told(tmp_path):
    chapter = plan.read("06")
    for wrong in (
        "[figure: No such, 1]",
        "[vote: 99]",
        '[widget: open("x")]',
        "[figure: How much?, 9]",
    ):
        with pytest.raises(ValueError, match=r"has|no widget"):
            slides.slide(f"# Claim\n{wrong}", chapter, quiz.questions("06"))


def look_at(page, path):
    """Walk through a deck: what it asked for, what each slide is like, what went wrong."""
    asked, broken = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.goto(path.as_uri())
    clipped = page.evaluate("""() => slides.map((s, i) => { go(i); return {
        at: i + 1, over: over(s), size: parseFloat(getComputedStyle(s).fontSize),
        cut: [...s.querySelectorAll('pre, li, p, h2, td')].filter(e => e.closest('.notes') === null
            && (e.scrollWidth > e.clientWidth + 1 && e.clientWidth
                || e.getBoundingClientRect().bottom > 720)).length,
        bare: [...s.querySelectorAll('img')].filter(e => !e.alt.trim()).length,
        empty: !s.querySelector('img, iframe, pre, table') && s.querySelectorAll('li').length < 2,
        notes: s.querySelector('.notes').textContent.length } })""")
    return asked, clipped, broken


@pytest.mark.parametrize("chapter", CHAPTERS)
@pytest.mark.browser
def test_a_deck_asks_for_nothing_and_nothing_is_clipped(chromium, chapter, tmp_path):
    path = tmp_path / "deck.html"
    path.write_text(slides.deck(chapter), encoding="utf-8")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        asked, clipped, broken = look_at(page, path)
        browser.close()
    own = [url for url in asked if not url.startswith(("data:", "about:", "blob:"))]
    assert own == [path.as_uri()] and broken == []
    assert len(clipped) > 4
    assert [one["at"] for one in clipped if one["empty"]] == []
    bad = [one for one in clipped if one["over"] or one["cut"] or one["bare"]]
    assert bad == []
