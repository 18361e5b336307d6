"""Plain English: many readers are not native speakers, so a rare word gives way to a common one.

The list grows by what a reader stumbles on. It is held against the words of chapters, exercises and
pages; code, formulas, quotations in quotation marks and the names of things are not words here.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLAIN = {  # what is said too seldom: what to say instead
    r"mend(?:s|ed|ing)?": "repair, correct, fix",
    r"dear": "expensive",
    r"whoever": "anyone who, the one who",
    r"whosoever": "anyone who",
    r"whence": "from where",
    r"hence|thus": "so",
    r"whilst": "while",
    r"amongst": "among",
    r"upon": "on",
    r"albeit": "although",
    r"notwithstanding": "in spite of",
    r"nought|naught": "zero, nothing",
    r"the fold": "(say what is joined)",
    r"in the place of": "instead of",
    r"evens|evened": "balances",
    r"dealt": "assigned, shuffled, given out",
    r"booked": "counted as",
    r"owe[sd]?|owing": "comes from",
    r"heed": "attend to",
    r"hitherto": "so far",
    r"forgo(?:es|ne)?": "do without",
    r"begets?": "causes",
    r"betrays?": "shows",
    r"befalls?": "happens to",
    r"bestows?": "gives",
    r"whereupon": "and then",
    r"heretofore": "before",
    r"forthwith": "at once",
    r"perchance": "perhaps",
    r"seldom": "rarely",
    r"oft": "often",
    r"beware": "be careful",
    r"hark": "listen",
    r"lest": "so that ... not",
    r"save for": "except for",
    r"not to be told from": "cannot be distinguished from",
    r"told apart from": "distinguished from",
    r"small beside": "small compared with",
    r"large beside": "large compared with",
    r"by lot": "at random",
    r"drawn lots": "chosen at random",
    r"reckon(?:s|ed|ing)?": "count, calculate, think",
    r"wherein|whereof|whereby|therein|thereof": "in which, of which, by which",
}
PAGES = [
    *sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.py")),
    *sorted((ROOT / "solutions").glob("[0-9][0-9]_*.py")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "teaching").rglob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def prose(path):
    """Give (line number, text) of what a page says in words of its own."""
    text = path.read_text(encoding="utf-8")
    inside = path.suffix == ".md"
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if path.suffix == ".py":
            if line.startswith("# %%"):
                inside = "[markdown]" in line
                continue
            line = line.removeprefix("#").strip() if inside and line.startswith("#") else ""
        if line.strip().startswith("```") and path.suffix == ".md":
            inside = not inside
            continue
        lines.append((number, line if inside else ""))
    joined = "\n".join(line for _, line in lines)
    # Code, formulas, links' targets and quotations are somebody else's words.
    for mark in (
        r"\$\$.*?\$\$", r"`[^`]*`", r"\$[^$\n]*\$", r"\]\([^)]*\)", r'"[^"]*"', r"“[^”]*”",
    ):  # fmt: skip
        joined = re.sub(mark, lambda found: re.sub(r"[^\n]", " ", found[0]), joined, flags=re.S)
    return list(zip((n for n, _ in lines), joined.splitlines(), strict=False))


def rare(path):
    """List the rare words of a page: where, which, and what to say instead."""
    found = []
    for number, line in prose(path):
        for word, instead in PLAIN.items():
            found += [
                f"{path.name}:{number}: {match[0]!r}: say {instead}"
                for match in re.finditer(rf"(?<![\w-])(?:{word})(?![\w-])", line, re.I)
            ]
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_page_uses_common_words(path):
    found = rare(path)
    assert found == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# %% [markdown]\n# Whoever mends it, thus.\n# %%\n# whoever\nx = 'mend'", 3),
        ('# %% [markdown]\n# He said "mend\n# it", and `dear` and $thus$ and evens-out.', 0),
        ("# %%\nhence = 1\n# %% [markdown]\n# [the fold](../dear.ipynb)", 1),
    ],
)
def test_words_are_looked_for_in_prose_alone(text, words, tmp_path):
    (tmp_path / "page.py").write_text(text, encoding="utf-8")
    assert len(rare(tmp_path / "page.py")) == words


# --- the glossary --------------------------------------------------------------------------------

ROW = re.compile(r"\| ([^|(]+?)(?: \([^|]*\))? \| ([^|]+) \| \[(\d\d)\]\(([^)]+)\) \|")


def test_the_glossary_is_in_order_and_each_chapter_has_the_word():
    page = ROOT / "docs" / "glossary.md"
    rows = ROW.findall(page.read_text(encoding="utf-8"))
    words = [word for word, *_ in rows]
    assert len(rows) >= 30 and words == sorted(words, key=str.lower)
    for word, meaning, number, link in rows:
        built = (page.parent / link).resolve()
        assert built.is_file() and built.name.startswith(number)
        said = re.sub(r"\n# ?", " ", built.with_suffix(".py").read_text(encoding="utf-8"))
        assert re.search(re.escape(word).replace(r"\ ", "[ -]"), said, re.I), (word, number)
        assert len(meaning.split()) <= 20, f"{word}: say it in fewer words"


@pytest.mark.parametrize(
    "word",
    ["ablate", "active parameters", "capacity factor", "collapse", "dropless", "granularity",
     "load-balancing", "nats", "renormalised", "straight-through", "total parameters"],
)  # fmt: skip
def test_what_a_lecturer_looks_for_heads_a_row(word):
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| [^|]*\b{word}\b[^|]* \|", page, re.M)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.py")), ids=str)
def test_a_chapter_links_the_glossary(path):
    assert "(../docs/glossary.md)" in path.read_text(encoding="utf-8")
