"""`python -m moe_lite` does what it says, and a plain mistake costs one line and an exit code."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from moe_lite import __main__ as cli
from moe_lite import __version__, hf
from moe_lite.config import MixtralConfig
from moe_lite.course import cli as course_cli
from moe_lite.course.data import load_tokenizer
from moe_lite.course.film import Film
from moe_lite.model import Mixtral

ROOT = Path(__file__).resolve().parent.parent
HANG_S = 900  # a limit for what hangs, not for what is slow
TEXT = "To be, or not to be; def f(x): return x + 1"
SMALL = dict(
    vocab_size=4096, hidden_size=16, intermediate_size=8, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, num_local_experts=4, max_position_embeddings=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    hf.save(Mixtral(MixtralConfig(**SMALL)), folder)
    return folder


@pytest.fixture
def fails(capsys):
    """Run a command that must fail, and give its one line."""

    def run(*argv):
        assert cli.main([*map(str, argv)]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith(f"moe_lite {argv[0]}: ")
        return err

    return run


def test_every_command_is_listed(capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["--help"])
    listed = capsys.readouterr().out
    course = (ROOT / "course.py").read_text(encoding="utf-8")
    assert done.value.code == 0 and set(cli.COMMANDS) >= {
        "lab",
        "test",
        "build",
        "train",
        "bench",
    }
    for name in cli.COMMANDS:
        assert f"  {name} " in listed and f"python course.py {name} " in course


@pytest.mark.parametrize("command", ["build", "train", "explore", "bench"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main([command, "--help"])
    assert done.value.code == 0
    assert f"usage: python -m moe_lite {command}" in capsys.readouterr().out


def test_as_a_module():
    command = [sys.executable, "-m", "moe_lite"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == __version__
    done = subprocess.run([*command, "dance"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "invalid choice: 'dance'" in done.stderr


def test_explore_writes_one_page(checkpoint, tmp_path, capsys):
    out = tmp_path / "routing.html"
    assert cli.main(["explore", TEXT, "--model", str(checkpoint), "--out", str(out)]) == 0
    ids = load_tokenizer().encode(TEXT).ids
    said = capsys.readouterr().out
    assert f"{out}: {len(ids)} tokens through 2 layers of 4 experts" in said
    page = out.read_text(encoding="utf-8")
    assert out.stat().st_size < 1_000_000 and "<html" in page
    assert "13 answers to" in said  # 2 layers of 4, the last token's 2 in each, and k of 1
    assert page.count('"key": "[[') == 13 + 1, "and the one that it opens with"
    assert '"selected": 0' in page and '"question": [["ablate", 0, ' in page
    assert [path.name for path in tmp_path.iterdir()] == ["routing.html"]


def test_explore_takes_the_models_own_tokenizer(checkpoint, tmp_path, capsys):
    folder = tmp_path / "own"
    hf.save(hf.load(checkpoint), folder)
    words = Tokenizer(models.WordLevel({"?": 0, "to": 1, "be": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    (folder / "tokenizer.json").write_text(words.to_str(), encoding="utf-8")
    out = tmp_path / "a.html"
    assert cli.main(["explore", "to be or", "--model", str(folder), "--out", str(out)]) == 0
    assert ": 3 tokens through" in capsys.readouterr().out


def test_explore_sets_two_beside_each_other(checkpoint, tmp_path, capsys):
    other = tmp_path / "wider"
    hf.save(Mixtral(MixtralConfig(**{**SMALL, "num_hidden_layers": 3})), other)
    out = ["--model", str(checkpoint), "--out", str(tmp_path / "a.html")]
    assert cli.main(["explore", TEXT, "--compare", "x = 3", *out]) == 0
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert f"<title>Routing of {checkpoint.name} beside {checkpoint.name}: " in page
    assert cli.main(["explore", TEXT, "--compare-model", str(other), *out]) == 0
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert f"<title>Routing of {checkpoint.name} beside wider: " in page
    assert page.count("layers.2.block_sparse_moe") == 1 and page.count('"tokens": [') == 2


def test_explore_shows_the_film(checkpoint, tmp_path, capsys, fails):
    folder, out = tmp_path / "filmed", tmp_path / "film.html"
    hf.save(hf.load(checkpoint), folder)
    film = ["explore", "--film", "--model", str(folder), "--out", str(out)]
    assert "there is no film.safetensors in" in fails(*film) and not out.exists()
    ids_BS = torch.arange(6).view(1, 6)
    taken = Film(ids_BS, torch.zeros_like(ids_BS), ("a",), [*"abcdef"], [0, 7])
    for step in taken.wanted:
        assert taken.take(hf.load(folder), step)
    taken.save(folder / "film.safetensors")
    assert cli.main(film) == 0
    said = capsys.readouterr().out
    assert "6 tokens through 2 layers of 4 experts, 2 steps of a training" in said
    assert "a model in training, steps 0 to 7" in out.read_text(encoding="utf-8")
    assert "a film has its own text" in fails("explore", TEXT, "--film")
    assert "a film has its own text" in fails("explore", "--film", "--compare", "x")


@pytest.mark.parametrize("text", ["", "  \n"])
def test_explore_refuses_empty_text(checkpoint, fails, text):
    assert "no text" in fails("explore", text, "--model", checkpoint)


def test_explore_refuses_text_that_is_no_text(checkpoint, fails):
    assert "is not UTF-8" in fails("explore", "to be\udcff", "--model", checkpoint)


def test_explore_refuses_more_than_the_context(checkpoint, tmp_path, fails):
    out = tmp_path / "routing.html"
    said = fails("explore", "word " * 100, "--model", checkpoint, "--out", out)
    assert "more than the model's context of 64" in said and not out.exists()


def test_explore_without_a_model_names_the_option(tmp_path, fails):
    said = fails("explore", TEXT, "--model", tmp_path / "nowhere")
    assert "nowhere" in said and "--model FOLDER" in said


def test_explore_refuses_another_model_without_weights(tmp_path, fails):
    (tmp_path / "config.json").write_text('{"model_type": "olmoe"}', encoding="utf-8")
    assert "no weights in safetensors" in fails("explore", TEXT, "--model", tmp_path)


def test_explore_refuses_a_folder_without_weights(tmp_path, fails):
    assert str(tmp_path) in fails("explore", TEXT, "--model", tmp_path)


@pytest.mark.parametrize("vocab_size", [300, 5000])
def test_explore_refuses_a_tokenizer_that_is_not_the_models(tmp_path, fails, vocab_size):
    hf.save(Mixtral(MixtralConfig(**{**SMALL, "vocab_size": vocab_size})), tmp_path)
    said = fails("explore", TEXT, "--model", tmp_path)
    assert f"{vocab_size} tokens" in said and "4096" in said


def test_explore_names_an_output_it_cannot_write(checkpoint, tmp_path, fails):
    out = tmp_path / "no" / "such" / "routing.html"
    assert "routing.html" in fails("explore", TEXT, "--model", checkpoint, "--out", out)
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) in fails("explore", TEXT, "--model", checkpoint, "--out", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_older_page(checkpoint, tmp_path, fails):
    out = tmp_path / "routing.html"
    out.write_text("mine", encoding="utf-8")
    fails("explore", "word " * 100, "--model", checkpoint, "--out", out)
    assert out.read_text(encoding="utf-8") == "mine"


def test_missing_package_names_the_way_to_it(monkeypatch, fails):
    monkeypatch.setitem(sys.modules, "pytest", None)
    said = fails("test")
    assert "pytest" in said and "`python course.py test` installs what is missing" in said


@pytest.mark.parametrize(("command", "extra"), [("build", "test"), ("explore", "course")])
def test_without_a_clone_a_missing_package_names_the_extra(
    monkeypatch, tmp_path, fails, command, extra
):
    def needy(argv):
        import no_such_package  # noqa: F401

    monkeypatch.setattr(course_cli, "ROOT", tmp_path)
    monkeypatch.setitem(cli.COMMANDS, command, needy)
    said = fails(command)
    assert "no_such_package" in said and f'`pip install "moe-lite[{extra}]"` installs' in said


@pytest.mark.parametrize("command", ["lab", "test", "build", "bench", "reproduce"])
def test_what_needs_a_clone_says_so(monkeypatch, tmp_path, fails, command):
    monkeypatch.setattr(course_cli, "ROOT", tmp_path)
    said = fails(command)
    assert str(tmp_path) in said and "clone of the repository" in said


def test_bench_runs_from_any_folder(monkeypatch, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "from moe_lite.__main__ import main; main(['bench', '--help'])"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "usage: python -m moe_lite bench" in done.stdout, done.stderr


def test_a_module_of_our_own_missing_is_a_bug_and_looks_like_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "moe_lite.course.build", None)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["build"])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (OSError(28, "No space left on device", "a.html"), "a.html: No space left on device"),
        (FileNotFoundError("there is no tokenizer"), "there is no tokenizer"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, fails, error, line):
    def fail(argv):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "train", fail)
    assert fails("train") == f"moe_lite train: {line}\n"


def test_ctrl_c_is_130_and_quiet(monkeypatch, capsys):
    def stopped(argv):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "train", stopped)
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("size", [(2**45,), (2**62, 8)])
def test_what_memory_lacks_is_one_line(monkeypatch, fails, size):
    monkeypatch.setitem(cli.COMMANDS, "train", lambda argv: torch.empty(size))
    assert fails("train").startswith("moe_lite train: there is not enough memory")


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken(argv):
        raise AssertionError("shapes")

    monkeypatch.setitem(cli.COMMANDS, "train", broken)
    with pytest.raises(AssertionError):
        cli.main(["train"])


def test_what_a_terminal_cannot_show_does_not_stop_a_command():
    code = (
        "import sys; from moe_lite import __main__ as m; m.COMMANDS['lab'] = lambda a: print('×')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + "; m.main(['lab'])"],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "\\xd7\n"), done.stderr


def test_test_runs_pytest_from_the_root(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(pytest, "main", lambda args: seen.append((Path.cwd(), args)) or 3)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["test", "-k", "router"]) == 3
    assert seen == [(ROOT, ["-k", "router"])]


def test_lab_opens_the_map(monkeypatch, tmp_path):
    from jupyterlab.labapp import LabApp

    seen = []
    monkeypatch.setattr(LabApp, "launch_instance", seen.extend)
    monkeypatch.setattr(course_cli, "ROOT", tmp_path)
    assert cli.main(["lab"]) == 1 and not seen
    (tmp_path / "notebooks").mkdir()
    for name in ("10_small_mixtral.ipynb", "05_capacity.ipynb", "Untitled.ipynb"):
        (tmp_path / "notebooks" / name).touch()
    assert cli.main(["lab", "--no-browser"]) == 0
    assert "--no-browser" in seen and f"--ServerApp.root_dir={tmp_path}" in seen
    assert seen[-1] == str(tmp_path / "map.md")
    chapters = re.findall(r"\(notebooks/(.+?)\)", (tmp_path / "map.md").read_text("utf-8"))
    assert chapters == ["05_capacity.ipynb", "10_small_mixtral.ipynb"]


@pytest.mark.slow("JupyterLab")
def test_lab_starts_and_answers(tmp_path):
    """Start the real JupyterLab, ask it for its page and its notebooks, and shut it down."""
    runtime = tmp_path / "runtime"
    places = ("CONFIG", "DATA", "RUNTIME")
    process = subprocess.Popen(
        [sys.executable, "-m", "moe_lite", "lab", "--no-browser", "--allow-root", "--port=0"],
        cwd=tmp_path,
        env={**os.environ, "JUPYTER_RUNTIME_DIR": str(runtime)}
        | {f"JUPYTER_{place}_DIR": str(tmp_path / place.lower()) for place in places},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )

    def ask(method, path):
        request = urllib.request.Request(server["url"] + path, method=method)
        request.add_header("Authorization", f"token {server['token']}")
        with urllib.request.urlopen(request, timeout=HANG_S) as answer:
            return answer.read().decode()

    try:
        deadline = time.monotonic() + HANG_S
        while not (found := list(runtime.glob("jpserver-*.json"))):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline, "JupyterLab did not start"
            time.sleep(0.1)
        server = json.loads(found[0].read_text(encoding="utf-8"))
        while True:
            try:
                page = "".join(ask("GET", "lab").split())
                break
            except (urllib.error.URLError, ConnectionError):
                assert time.monotonic() < deadline, "JupyterLab does not answer"
                time.sleep(0.1)
        assert '"news":{"disabled":true}' in page  # it asks neither the network nor the learner
        names = [entry["name"] for entry in json.loads(ask("GET", "api/contents"))["content"]]
        assert {"notebooks", "moe_lite"} <= set(names)
        ask("POST", "api/shutdown")
        assert process.wait(timeout=HANG_S) == 0
    finally:
        process.kill()
        process.communicate()
