"""The house stands: imports run downward only, and nothing unsafe or far away is used."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "moe_lite"

FLOORS = {
    0: {"contracts", "linear", "files"},
    1: {"mixtures", "hierarchy", "routers", "experts", "losses", "dispatch"},
    2: {"layer"},
    2.5: {"model"},  # a mezzanine: a model is made of layers
    2.75: {"runs", "texts"},  # another: what the loop and parallel keep, what data is made of
    3: {
        "hf",
        "data",
        "vowels",
        "arm",
        "train",
        "parallel",
        "trace",
        "analysis",
        "causal",
        "cost",
        "checks",
    },
    3.5: {"film"},  # its text is data's, its rolls are cut by recipes
    4: {"viz", "build", "recipes", "ledger", "sweep"},
    # one more: a widget's still is one of viz's, a bench runs a recipe, languages are swept
    4.5: {"widgets", "bench", "languages"},
    5: {"__main__"},  # the door: it opens every room
}
FLOOR = {name: number for number, floor in FLOORS.items() for name in floor}
UNPICKLES = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal",
    "torch.load", "torch.save", "numpy.load", "np.load",
}  # fmt: skip
HEAVY = ("IPython", "ipywidgets", "anywidget", "matplotlib", "plotly", "jupyterlab", "transformers")


def for_types_only(tree: ast.AST) -> set[ast.AST]:
    """Collect what stands under `if TYPE_CHECKING:`, which never runs."""
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }


def imports(tree: ast.AST, package: tuple[str, ...]) -> list[tuple[int, str]]:
    """List (line, full dotted name) of everything imported, relative names resolved."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join((*base, *([node.module] if node.module else [])))
            found += [(node.lineno, f"{stem}.{alias.name}") for alias in node.names]
    return found


def violations(source: str, path: str) -> list[str]:
    """Name every line of a module of the package that breaks a rule; path is relative to it."""
    room = Path(path).parts[0].removesuffix(".py")
    tree = ast.parse(source)
    if room == "__init__":
        # In a function it may: a name of the package's own that is fetched when asked for.
        at_once = ast.Module([n for n in tree.body if not isinstance(n, ast.FunctionDef)], [])
        imported = [
            name for _, name in imports(at_once, ("moe_lite",)) if name.startswith("moe_lite")
        ]
        return [f"{path}: the package must import nothing of its own"] if imported else []
    if room not in FLOOR:
        return [f"{path}: {room} has no floor; give it one here and in the house's plan"]
    package = ("moe_lite", *Path(path).parts[:-1])
    skipped = for_types_only(tree)
    running = ast.Module(
        [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)
         and node not in skipped], type_ignores=[],
    )  # fmt: skip
    found = []
    for line, name in imports(running, package):
        parts = name.split(".")
        if parts[0] == "moe_lite" and len(parts) > 1 and parts[1] not in (room, "__version__"):
            here, there = FLOOR[room], FLOOR.get(parts[1])
            if there is None or there >= here:
                found.append(
                    f"{path}:{line}: {room} (floor {here}) imports {parts[1]} (floor {there})"
                )
        if parts[0] in UNPICKLES or ".".join(parts[:2]) in UNPICKLES:
            found.append(f"{path}:{line}: imports {name}, which unpickles")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in UNPICKLES:
            found.append(f"{path}:{node.lineno}: uses {ast.unparse(node)}, which unpickles")
    return found


MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES)
def test_module_keeps_to_its_floor(path):
    assert violations((PACKAGE / path).read_text(encoding="utf-8"), path) == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("losses.py", "from .layer import MoELayer", "losses.py:1: losses (floor 1) imports layer"),
        ("losses.py", "from moe_lite.layer import MoELayer", "imports layer (floor 2)"),
        ("losses.py", "from . import layer", "imports layer (floor 2)"),
        ("losses.py", "import moe_lite.layer", "imports layer (floor 2)"),
        ("losses.py", "def f():\n    from .model import M", "losses.py:2: losses"),
        ("losses.py", "from .routers import TopKRouter", "imports routers (floor 1)"),
        ("trace.py", "from .data import pieces", "imports data (floor 3)"),
        ("dispatch/grouped.py", "from ..layer import MoELayer", "dispatch (floor 1) imports layer"),
        ("dispatch/__init__.py", "from ..routers import R", "imports routers (floor 1)"),
        ("layer.py", "from .attic import chest", "imports attic (floor None)"),
        ("attic.py", "", "attic has no floor"),
        ("hf.py", "import torch\ntorch.load('x')", "hf.py:2: uses torch.load"),
        ("hf.py", "from torch import save", "hf.py:1: imports torch.save"),
        ("hf.py", "import pickle as p", "imports pickle"),
        ("data.py", "from pickle import loads", "imports pickle.loads"),
        ("__init__.py", "from .model import Mixtral", "must import nothing"),
    ],
)
def test_a_breach_is_named(path, source, complaint):
    (found,) = violations(source, path)
    assert complaint in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("layer.py", "from .dispatch import plan\nfrom .contracts import Routing"),
        ("dispatch/__init__.py", "from .grouped import grouped\nfrom ..contracts import Routing"),
        ("contracts.py", "if TYPE_CHECKING:\n    from .experts import Experts"),
        ("__main__.py", "from . import __version__, hf\nfrom .widgets import RoutingExplorer"),
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
        p for p in (PACKAGE / "widgets").rglob("*") if p.suffix in (".js", ".css", ".py", ".html")
    ]
    assert files
    for file in files:
        assert addresses(file.read_text(encoding="utf-8")) == [], file.name


def test_addresses_are_seen():
    text = 'import "https://esm.sh/d3"; url(//cdn.example.com/a.css); "http://www.w3.org/2000/svg"'
    assert addresses(text) == ["https://esm.sh/d3", "//cdn.example.com/a.css"]


def test_library_imports_without_jupyter():
    library = sorted({path.split("/")[0].removesuffix(".py") for path in MODULES} & set(FLOOR))
    below = [name for name in library if FLOOR[name] < FLOOR["viz"]]
    code = f"""
import importlib, sys
for name in {below}:
    importlib.import_module("moe_lite." + name)
    print(*(f"{{name}} loads {{heavy}}" for heavy in {HEAVY} if heavy in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(below) >= 8
    assert not done.stdout.strip()


def listed(tree: str) -> set[str]:
    """Give the paths that an indented file tree names."""
    paths, above = set(), []
    for indent, name in re.findall(r"^( *)(\S+)(?:  .*)?$", tree, flags=re.M):
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
    tree = "course.py   start\nmoe_lite/\n  layer.py  2  a layer\n  assets/\ntests/    all"
    assert listed(tree) == {
        "course.py", "moe_lite/", "moe_lite/layer.py", "moe_lite/assets/", "tests/",
    }  # fmt: skip
