"""Library and course stay apart: no import circle, and nothing unsafe or far away is used."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from moe_lite.course.reading import AFTERNOON, afternoon

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "moe_lite"
DOORS = {"__init__", "__main__"}  # they open every room, and no room imports them
UNPICKLES = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal",
    "torch.load", "torch.save", "numpy.load", "np.load",
}  # fmt: skip
HEAVY = (
    "IPython", "ipywidgets", "anywidget", "matplotlib", "plotly", "jupyterlab", "transformers",
    "tokenizers", "scipy",
)  # fmt: skip


def imports(tree: ast.AST, package: tuple[str, ...]) -> list[tuple[int, str]]:
    """List (line, full dotted name) of everything imported anywhere, relative names resolved."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join((*base, *([node.module] if node.module else [])))
            found += [(node.lineno, f"{stem}.{alias.name}") for alias in node.names]
    return found


def room_of(parts: tuple[str, ...] | list[str]) -> str:
    """Name the room of a dotted name or path: "layer", or in the other wing "course.checks"."""
    wing = 2 if parts[0] == "course" and len(parts) > 1 else 1
    return ".".join(parts[:wing])


def uses(source: str, path: str) -> list[tuple[int, str]]:
    """List (line, room) of the rooms that a module imports; what is for types only counts too."""
    package = ("moe_lite", *Path(path).parts[:-1])
    found = []
    for line, name in imports(ast.parse(source), package):
        parts = name.split(".")
        if parts[0] == "moe_lite" and len(parts) > 1 and parts[1] != "__version__":
            found.append((line, room_of(parts[1:])))
    return found


def violations(source: str, path: str) -> list[str]:
    """Name every line of a module of the package that breaks a rule; path is relative to it."""
    room = room_of(Path(path).with_suffix("").parts)
    tree, found = ast.parse(source), []
    if room == "__init__":
        # In a function it may: a name of the package's own that is fetched when asked for.
        kept = (ast.FunctionDef, ast.If)
        at_once = ast.Module([n for n in tree.body if not isinstance(n, kept)], [])
        own = [name for _, name in imports(at_once, ("moe_lite",)) if name.startswith("moe_lite")]
        return [f"{path}: the package must import nothing of its own at once"] if own else []
    for line, there in uses(source, path):
        if there in DOORS:
            found.append(f"{path}:{line}: {room} imports {there}")
        elif there.startswith("course") and not room.startswith(("course", "__main__")):
            found.append(f"{path}:{line}: {room}, of the library, imports {there}, of the course")
    for line, name in imports(tree, ("moe_lite", *Path(path).parts[:-1])):
        parts = name.split(".")
        if parts[0] in UNPICKLES or ".".join(parts[:2]) in UNPICKLES:
            found.append(f"{path}:{line}: imports {name}, which unpickles")
        if parts[0] in ("experiments", "tests") and room not in ("course.cli", "course.ledger"):
            found.append(f"{path}:{line}: the package imports {parts[0]}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in UNPICKLES:
            found.append(f"{path}:{node.lineno}: uses {ast.unparse(node)}, which unpickles")
    return found


MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES)
def test_module_keeps_the_rules(path):
    assert violations((PACKAGE / path).read_text(encoding="utf-8"), path) == []


def circle(sources: dict[str, str]) -> list[str]:
    """Name the rooms of an import circle, if there is one."""
    graph: dict[str, set[str]] = {}
    for path, source in sources.items():
        room = room_of(Path(path).with_suffix("").parts)
        if room not in DOORS:
            graph.setdefault(room, set()).update(
                there for _, there in uses(source, path) if there not in (room, *DOORS)
            )
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_import_circle():
    assert circle({path: (PACKAGE / path).read_text(encoding="utf-8") for path in MODULES}) == []


def test_a_circle_is_seen():
    types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .layer import MoELayer"
    rooms = {"parallel.py": types, "layer.py": "def f():\n    from .parallel import Across"}
    assert set(circle(rooms)) == {"layer", "parallel"}
    assert circle({"parallel.py": types, "layer.py": "from .experts import Experts"}) == []


UNREAD = {  # what is not of the afternoon, and may be used there without having been read
    "config": {"checked"}, "dispatch": {"fast"}, "layer": {"fast"}, "model": {"fast", "generate"},
    "train": {"checkpoint", "evaluation", "fast", "files", "history"},
}  # fmt: skip


def early(source, path):
    """List the rooms that a file of the afternoon imports before they were read."""
    room = Path(path).with_suffix("").parts[0]
    known = {*AFTERNOON[: AFTERNOON.index(room) + 1], *UNREAD.get(room, ())}
    return [there for _, there in uses(source, path) if there not in known]


@pytest.mark.parametrize("path", [p.relative_to(PACKAGE).as_posix() for p in afternoon()])
def test_what_is_read_needs_only_what_was_read(path):
    assert early((PACKAGE / path).read_text(encoding="utf-8"), path) == []


def test_a_step_ahead_is_seen():
    assert early("from .layer import MoELayer", "experts.py") == ["layer"]
    assert early("from . import hf\nfrom .routing import Routing", "experts.py") == ["hf"]
    assert early("def f():\n    import moe_lite.model", "layer.py") == ["model"]
    assert early("from .fast import auto\nfrom ..layer import X", "dispatch/grouped.py") == [
        "layer"
    ]
    types = "if TYPE_CHECKING:\n    from .experts import Experts"
    assert early(types, "routing.py") == ["experts"] and early(types, "losses.py") == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("losses.py", "from .course import viz", "losses, of the library, imports course.viz"),
        ("losses.py", "from moe_lite.course.data import X", "imports course.data, of the course"),
        ("losses.py", "import moe_lite.course.data", "imports course.data, of the course"),
        ("dispatch/grouped.py", "from ..course.viz import X", "imports course.viz, of the course"),
        ("losses.py", "def f():\n    from .course.data import M", "losses.py:2: losses"),
        ("losses.py", "if TYPE_CHECKING:\n    from .course.data import M", "losses.py:2: losses"),
        ("course/viz.py", "from ..__main__ import main", "course.viz imports __main__"),
        ("course/viz.py", "from experiments import bench", "the package imports experiments"),
        ("hf.py", "import torch\ntorch.load('x')", "hf.py:2: uses torch.load"),
        ("hf.py", "from torch import save", "hf.py:1: imports torch.save"),
        ("hf.py", "import pickle as p", "imports pickle"),
        ("course/data.py", "from pickle import loads", "imports pickle.loads"),
        ("__init__.py", "from .model import Mixtral", "must import nothing"),
    ],
)
def test_a_breach_is_named(path, source, complaint):
    (found,) = violations(source, path)
    assert complaint in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("layer.py", "from .dispatch import plan\nfrom .routing import Routing"),
        ("dispatch/__init__.py", "from .grouped import grouped\nfrom ..routing import Routing"),
        ("course/viz.py", "from ..routing import Routing\nfrom .data import pieces"),
        ("__main__.py", "from . import __version__, hf\nfrom .course.widgets import X"),
        ("hf.py", "from safetensors.torch import load_file, save_file\nimport torch"),
    ],
)
def test_what_is_allowed_passes(path, source):
    assert violations(source, path) == []


def addresses(text: str) -> list[str]:
    """List the network addresses in a text that are neither an XML namespace nor a citation."""
    found = re.findall(
        r"(?:https?|wss?):\\?/\\?/[^\s\"'`<>)]*|//[\w-]+(?:\.[\w-]+)+/[^\s\"'`<>)]*", text
    )
    return [a for a in found if not re.match(r"https?://(www\.w3\.org|arxiv\.org)/", a)]


def test_widgets_name_no_network_address():
    files = [
        p
        for p in (PACKAGE / "course" / "widgets").rglob("*")
        if p.suffix in (".js", ".css", ".py", ".html")
    ]
    assert files
    for file in files:
        assert addresses(file.read_text(encoding="utf-8")) == [], file.name


def test_addresses_are_seen():
    text = 'import "https://esm.sh/d3"; url(//cdn.example.com/a.css); "http://www.w3.org/2000/svg"'
    assert addresses(text) == ["https://esm.sh/d3", "//cdn.example.com/a.css"]


def test_the_library_imports_without_the_course():
    rooms = {room_of(Path(path).with_suffix("").parts) for path in MODULES}
    library = sorted(room for room in rooms - DOORS if not room.startswith("course"))
    code = f"""
import importlib, sys
for name in {library}:
    importlib.import_module("moe_lite." + name)
    print(*(f"{{name}} loads {{heavy}}" for heavy in {HEAVY} if heavy in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(library) >= 8
    assert not done.stdout.strip()


def listed(tree: str) -> set[str]:
    """Give the paths that an indented file tree names, one or several a line."""
    paths, above = set(), []
    for indent, names in re.findall(r"^( *)(\S+(?: \S+)*)(?:  .*)?$", tree, flags=re.M):
        for name in names.split():
            above[len(indent) // 2 :] = [name]
            paths.add("".join(above))
    return paths


def test_readme_shows_the_tree_as_it_is():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"```\n(course\.py .*?)```", readme, flags=re.S)
    paths = listed(tree)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    rooms = {f"moe_lite/{path}" for path in MODULES if "/" not in path and path != "__init__.py"}
    rooms |= {f"moe_lite/{path.split('/')[0]}/" for path in MODULES if "/" in path}
    assert rooms - paths == set()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / link.split("#")[0]).exists()] == []
    for file, anchor in (link.split("#") for link in links if "#" in link):
        assert f"## {anchor}\n" in (ROOT / file).read_text(encoding="utf-8")


def test_a_tree_is_read_level_by_level():
    tree = "course.py   start\nmoe_lite/\n  a.py b.py  two files\n  assets/\ntests/    all"
    assert listed(tree) == {
        "course.py", "moe_lite/", "moe_lite/a.py", "moe_lite/b.py", "moe_lite/assets/", "tests/",
    }  # fmt: skip
