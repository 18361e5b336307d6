"""A full disk, an error or a kill at any moment of any write: the old files or the new, whole.

Each case runs one act in a forked process and stops it at its n-th touch of the disk: `once`, an
error that goes away; `full`, from then on nothing more can be written, as on a full disk; `kill`,
the process is gone. `limit` lets no file grow beyond some bytes, which stops writes half-way.
"""

import io
import json
import os
import resource
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moe_lite import files, hf
from moe_lite.checkpoint import save_checkpoint
from moe_lite.config import MixtralConfig, TrainConfig
from moe_lite.course import build, ledger
from moe_lite.course.data import load_tokenizer
from moe_lite.course.recipes import export
from moe_lite.course.widgets import RowsOrColumns
from moe_lite.history import History
from moe_lite.model import Mixtral
from moe_lite.train import make_optimizer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="stops forked processes")

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
TOUCHES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.chmod", "fsync"}
DONE, TOLD, UNTOLD = 0, 1, 2  # how an act ends in its process
CONFIG = MixtralConfig(
    vocab_size=4096, hidden_size=4, intermediate_size=4, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, num_local_experts=2, num_experts_per_tok=1,
    max_position_embeddings=8,
)  # fmt: skip


class Faults:
    """Stop this process at its n-th touch of the disk below a folder."""

    def __init__(self, folder: Path, kind: str, at: int):
        self.folder, self.kind, self.at, self.seen = str(folder), kind, at, 0
        # Only touched: no power fails here, and a real one would wait for everybody's disk.
        os.fsync = lambda handle: self.touch("fsync", (self.folder,))
        sys.addaudithook(self.touch)

    def touch(self, event: str, args) -> None:
        opened = event == "open" and isinstance(args[2], int) and args[2] & WRITES
        if not (opened or event in TOUCHES) or not str(args[0]).startswith(self.folder):
            return
        self.seen += 1
        if self.kind == "kill" and self.seen == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        grows = opened or event in ("os.mkdir", "os.link", "fsync")
        if (self.kind == "once" and self.seen == self.at) or (
            self.kind == "full" and self.seen >= self.at and grows
        ):
            raise OSError(28, "No space left on device")


def stopped(act, folder: Path, kind: str = "none", at: int = 0) -> tuple[int, int]:
    """Run an act in its own process; give how it ended (negative: by a signal) and its touches."""
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        code = UNTOLD
        try:
            os.close(told)
            sys.stdout = io.StringIO()
            if kind == "limit":
                resource.setrlimit(resource.RLIMIT_FSIZE, (at, resource.RLIM_INFINITY))
            faults = Faults(folder, kind, at)
            try:
                act()
                code = DONE
            except OSError as error:
                one = str(error).startswith("cannot ") and "\n" not in str(error)
                code = TOLD if one else UNTOLD
                if not one:
                    os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os.write(tell, faults.seen.to_bytes(4, "big"))
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    os.close(tell)
    seen = os.read(told, 4)
    os.close(told)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), int.from_bytes(seen, "big")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def shown(files: dict[str, bytes]) -> dict[str, bytes]:
    """Leave out what is on its way: hidden files, and all that lies in hidden folders."""
    return {n: c for n, c in files.items() if not any(p.startswith(".") for p in n.split("/"))}


def put_back(files: dict[str, bytes]) -> dict[str, bytes]:
    """Undo the first of a commit's two renames, if there was no second, as the next one does."""
    there, back = shown(files), {}
    for name, content in files.items():
        top, _, rest = name.partition("/")
        goal = top.removeprefix(".").removesuffix(".replaced")
        if top == f".{goal}.replaced" and not any(n.startswith(f"{goal}/") for n in there):
            back[f"{goal}/{rest}"] = content
    return there | back


# --- the acts: each changes a folder that holds something already --------------------------------


def model(seed: int) -> Mixtral:
    torch.manual_seed(seed)
    return Mixtral(CONFIG)


def an_export(folder: Path):
    tokenizer, new = load_tokenizer(), model(1)
    export(model(0), tokenizer, folder / "model")
    (folder / "model" / "note.txt").write_text("mine", encoding="utf-8")
    (folder / "model" / "model-00001-of-00002.safetensors").write_bytes(b"an older shard")
    return lambda: export(new, tokenizer, folder / "model", torch.bfloat16)


def a_first_export(folder: Path):
    tokenizer, new = load_tokenizer(), model(1)
    return lambda: export(new, tokenizer, folder / "model")


def a_save_in_shards(folder: Path):
    new = model(1)
    hf.save(model(0), folder / "model")
    (folder / "model" / "runs").mkdir()
    (folder / "model" / "runs" / "config.json").write_text("theirs", encoding="utf-8")
    return lambda: hf.save(new, folder / "model", max_shard_bytes=300, overwrite=True)


def a_page(folder: Path):
    widget = RowsOrColumns(torch.rand(6, 3))
    (folder / "page.html").write_text("the old page", encoding="utf-8")
    return lambda: widget.to_html(folder / "page.html")


def a_linked_page(folder: Path):
    widget = RowsOrColumns(torch.rand(6, 3))
    (folder / "real.html").write_text("the old page", encoding="utf-8")
    (folder / "page.html").symlink_to("real.html")
    return lambda: widget.to_html(folder / "page.html")


def a_picture(folder: Path):
    png = RowsOrColumns(torch.rand(6, 3)).png()
    return lambda: files.write(folder / "new.png", png)


def a_notebook(folder: Path):
    source = folder / "solutions" / "01_why.py"
    source.parent.mkdir()
    source.write_text("# %% [markdown]\n# # Why?\n# %%\ndef f():\n    ### BEGIN SOLUTION\n    "
                      "return 1\n    ### END SOLUTION\n", encoding="utf-8")  # fmt: skip
    (target,) = (t for t in build.targets(folder) if t.is_exercise)
    build.build(target)
    source.write_text(source.read_text("utf-8").replace("Why?", "Why not?"), encoding="utf-8")
    return lambda: build.build(target)


FAKE = """
from moe_lite.course.ledger import Claim, Experiment
def run(seeds):
    return {"speed": [2.0 + seed for seed in seeds]}
EXPERIMENT = Experiment("A fake", "Nobody", "01", 3, {}, (Claim("fast", "T", "speed", 2, 0.1),),
                        run, lambda: run(range(2)))
"""


def a_result(folder: Path):
    (folder / "experiments" / "results").mkdir(parents=True)
    (folder / "experiments" / "__init__.py").touch()
    (folder / "experiments" / "fake.py").write_text(FAKE, encoding="utf-8")
    ledger.reproduce("fake", 2, None, folder)
    result = ledger.result_path("fake", folder)
    kept = json.loads(result.read_text("utf-8")) | {"seconds": 0.0}
    result.write_text(json.dumps(kept), encoding="utf-8")

    def act():
        ledger.time.monotonic = lambda: 1.0  # equal runs write equal files
        ledger.reproduce("fake", 3, None, folder)

    return act


ROWS = [{"step": i, "tokens": i, "seconds": 1.0, "loss": 2.0, "load": 1.0} for i in range(1, 9)]


def a_history(folder: Path):
    History(ROWS[:4]).save(folder / "history.jsonl")
    return lambda: History(ROWS).save(folder / "history.jsonl")


def a_checkpoint(folder: Path):
    config = TrainConfig(keep=2)
    small = Mixtral(replace(CONFIG, vocab_size=8))
    optimizer = make_optimizer(small, config)
    small(torch.tensor([[1, 2, 3]])).logits_BSV.sum().backward()
    optimizer.step()

    def act(step: int = 2) -> None:
        if not (folder / f"step-{step:08}").is_dir():  # a run goes on from the last, as here
            save_checkpoint(folder, small, optimizer, config, "the text", History(ROWS[:step]))

    act(1)
    return act


ACTS = [
    an_export, a_first_export, a_save_in_shards, a_page, a_linked_page, a_picture, a_notebook,
    a_result, a_history, a_checkpoint,
]  # fmt: skip


@pytest.mark.slow("a fault at every write")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("prepare", ACTS, ids=lambda act: act.__name__)
def test_no_moment_loses_anything(prepare, tmp_path, monkeypatch, record_property):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    folder = tmp_path / "place"
    folder.mkdir()
    act, kept = prepare(folder), tmp_path / "kept"
    old = snapshot(folder)
    shutil.copytree(folder, kept, symlinks=True)

    def again() -> None:
        shutil.rmtree(folder)
        shutil.copytree(kept, folder, symlinks=True)

    code, touches = stopped(act, folder)
    assert code == DONE and touches > 3
    new, tried = snapshot(folder), 0
    assert new != old and shown(new) == new, "a clean run changes something, and leaves no traces"
    sizes = sorted(
        {0, 1, 100, *(len(c) // 2 for c in new.values()), max(map(len, new.values())) - 1}
    )
    cases = [(kind, at) for kind in ("once", "full", "kill") for at in range(1, touches + 1)]
    for kind, at in [*cases, *(("limit", size) for size in sizes)]:
        again()
        code, _ = stopped(act, folder, kind, at)
        here, where = snapshot(folder), f"{kind} at {at} of {touches}"
        tried += 1
        if kind == "kill":
            assert code == -signal.SIGKILL, where
            assert put_back(here) in (old, new), where
            assert stopped(act, folder)[0] == DONE, where
            assert snapshot(folder) == new, f"{where}: what the kill left is healed or swept"
        else:
            assert code in (DONE, TOLD), f"{where}: {code}"
            assert shown(here) == new if code == DONE else shown(here) in (old, new), where
    assert tried > 25
    record_property("faults", tried)
