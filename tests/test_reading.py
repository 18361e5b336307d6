"""The library stays what can be read in an afternoon: its budgets, and what measures them."""

import ast
import importlib.util
import re
import sys

import pytest

from moe_lite import __main__ as cli
from moe_lite.course import reading

PACKAGE = reading.PACKAGE
PATHS = [path.relative_to(PACKAGE).as_posix() for path in reading.afternoon()]


def lines(paths):
    return sum(reading.count_lines(path.read_text(encoding="utf-8")).total for path in paths)


def test_the_afternoon_is_within_its_budget():
    assert lines(reading.afternoon()) <= reading.MAX_AFTERNOON


def test_the_library_is_within_its_budget():
    assert lines(reading.library()) <= reading.MAX_LIBRARY


@pytest.mark.parametrize("backend", reading.MAX_TRIP)
def test_the_layers_trip_is_short(backend):
    stops = reading.layer_trip(backend)
    assert stops[0].function == "MoELayer.forward" and stops[0].depth == 0
    assert {"routers", "dispatch"} <= {stop.file.split("/")[0].split(".")[0] for stop in stops}
    assert sum(len(stop.lines) for stop in stops) <= reading.MAX_TRIP[backend]
    assert len({stop.file for stop in stops}) <= reading.MAX_TRIP_FILES


def too_long(source):
    """List the functions of a module that are longer than one may be."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    sizes = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(ast.parse(source))
        if isinstance(node, functions)
    }
    return [name for name, size in sizes.items() if size > reading.MAX_FUNCTION]


@pytest.mark.parametrize("path", PATHS)
def test_no_function_is_longer_than_a_screen(path):
    assert too_long((PACKAGE / path).read_text(encoding="utf-8")) == []


def test_a_long_function_is_seen():
    body = "    pass\n" * reading.MAX_FUNCTION
    assert too_long(f"def f():\n{body}") == ["f"]
    assert too_long(f"class A:\n  def f():\n{body[9:]}") == []


def test_every_line_is_of_one_kind():
    source = "\n".join(
        [
            '"""What it is.', "", 'and more."""', "", "# why", "x = [", "    # one", "    1,", "",
            "]  # here", "def f():", "    r'raw docs'", "    return '''a", "b'''",
        ]
    )  # fmt: skip
    found = reading.count_lines(source)
    assert (found.docstring, found.comment, found.blank) == (4, 2, 2)
    assert found.total == len(source.splitlines()) == 14


def test_all_files_are_counted_once():
    assert {path.split("/")[0].removesuffix(".py") for path in PATHS} == {*reading.AFTERNOON}
    files, whole = reading.afternoon(), reading.library()
    assert {*files} < {*whole} and len({*files}) == len(files)
    assert [path.stem for path in files][:2] == ["routing", "config"]
    assert not any("course" in path.parts for path in whole)
    assert {path.stem for path in whole} >= {"hf", "parallel", "__init__", "__main__"}


def test_a_trip_has_each_line_once_and_leaves_no_trace(tmp_path):
    source = """def inner(n):
    return n + 1


def outer(n):
    if n > 9:
        return None
    return sum([inner(k) for k in range(n)])
"""
    (tmp_path / "walk.py").write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("walk", tmp_path / "walk.py")
    walk = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(walk)
    stops = reading.trip(lambda: walk.outer(3), tmp_path)
    assert stops == [
        reading.Stop("walk.py", "outer", 0, (6, 8)), reading.Stop("walk.py", "inner", 1, (2,)),
    ]  # fmt: skip
    before = sys.gettrace()
    with pytest.raises(TypeError):
        reading.trip(lambda: walk.outer("x"), tmp_path)
    assert sys.gettrace() is before


def test_read_prints_the_path(capsys):
    assert cli.main(["read"]) == 0
    said = capsys.readouterr().out
    order = [
        said.index(f"\n{path.relative_to(PACKAGE).as_posix()} ") for path in reading.afternoon()
    ]
    assert order == sorted(order)
    for words in (
        r"together, of 2,000 allowed +[\d,]+",
        r"library, of 5,500 allowed +[\d,]+",
        r"through the layer, by 'loop': \d+ lines \(of 60 allowed\)",
        r"through the layer, by 'grouped': \d+ lines \(of 75 allowed\)",
        r"layer\.py: MoELayer\.forward",
        r"\n +\d+ +.*= self\.gate\(",
    ):
        assert re.search(words, said), words
