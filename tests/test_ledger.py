"""A verdict follows from numbers and a rule; a result is kept whole; the pages say what it says."""

import json
import math
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_lite import __main__ as cli
from moe_lite.course import ledger
from moe_lite.course.ledger import Claim, Estimate

ROOT = Path(__file__).resolve().parent.parent
FAKE = """
import random
from moe_lite.course.ledger import Claim, Experiment

def run(seeds):
    speed = [2 + 0.01 * random.Random(seed).random() for seed in seeds]
    return {"speed": speed, "lost": [None if seed % 2 else 1.0 for seed in seeds]}

EXPERIMENT = Experiment(
    "A fake", "Nobody 1991", "01", 25, {"lr": 1},
    (Claim("twice as fast", "Table 1", "speed", 2, 0.1, void=1, note="SD 3"),
     Claim("four times", "Table 2", "speed", 4, 0.1, void=1),
     Claim("slower", "Table 3", "speed", 0.5, 0.1, void=1)),
    run, lambda: run(range(3)),
)
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "experiments" / "results").mkdir(parents=True)
    (tmp_path / "experiments" / "__init__.py").touch()
    (tmp_path / "experiments" / "fake.py").write_text(FAKE, encoding="utf-8")
    readme = "| | q | ledger |\n|---|---|---|\n| 01 | Why? | old |\n| 02 | How? | |\n| x | | |\n"
    (tmp_path / "README.md").write_text(readme, encoding="utf-8")
    return tmp_path


# Published two-sided critical values: Abramowitz and Stegun 1964, Table 26.10.
@pytest.mark.parametrize(
    ("df", "confidence", "t"),
    [
        (1, 0.95, 12.706), (2, 0.95, 4.303), (3, 0.95, 3.182), (9, 0.95, 2.262),
        (24, 0.95, 2.064), (48, 0.95, 2.011), (24, 0.99, 2.797), (5, 0.99, 4.032),
    ],
)  # fmt: skip
def test_student_t(df, confidence, t):
    assert ledger.student_t(df, confidence) == pytest.approx(t, abs=6e-4)


def test_an_interval_needs_two():
    with pytest.raises(ValueError, match="at least two values, not 1"):
        ledger.student_t(0)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30), st.floats(-10, 10))
def test_an_estimate_moves_with_its_values(values, shift):
    a, b = Estimate.of(values), Estimate.of([value + shift for value in values])
    assert b.mean == pytest.approx(a.mean + shift, abs=1e-6)
    assert b.half == pytest.approx(a.half, abs=1e-6) and a.half >= 0


def test_the_interval_holds_the_truth_19_times_in_20():
    draws = torch.randn(2000, 5, generator=torch.Generator().manual_seed(0)).tolist()
    inside = sum(abs(e.mean) <= e.half for e in map(Estimate.of, draws))
    assert 0.93 < inside / 2000 < 0.97


CLAIM = Claim("twice as fast", "Table 1", "speed", paper=2.0, within=0.1, void=1.0)
PLAIN = Claim("88 %", "Table 1", "train", paper=88.0, within=0.02)


@pytest.mark.parametrize(
    ("claim", "mean", "half", "missed", "verdict"),
    [
        (CLAIM, 2.0, 0.1, 0, "reproduced"),
        (CLAIM, 1.81, 0.1, 0, "reproduced"),
        (CLAIM, 1.79, 0.1, 0, "direction only"),
        (CLAIM, 5.0, 0.1, 0, "direction only"),
        (CLAIM, 1.2, 0.1, 0, "direction only"),
        (CLAIM, 1.2, 0.2, 0, "not reproduced"),
        (CLAIM, 2.0, 1.1, 0, "not reproduced"),  # near the paper's, but it could be anything
        (CLAIM, 0.5, 0.1, 0, "not reproduced"),  # the other way round
        (CLAIM, 2.0, 0.1, 10, "reproduced"),
        (CLAIM, 2.0, 0.1, 11, "not reproduced"),
        (CLAIM, 2.0, math.inf, 0, "not reproduced"),
        (CLAIM, math.nan, math.inf, 10, "not reproduced"),
        (PLAIN, 87.0, 0.1, 0, "reproduced"),
        (PLAIN, 80.0, 0.1, 0, "not reproduced"),
    ],
)
def test_a_verdict_follows_from_its_rule(claim, mean, half, missed, verdict):
    assert claim.verdict(Estimate(mean, half, 1.0, 10, missed)) == verdict


@given(st.floats(-5, 5), st.floats(0.001, 5))
def test_a_claim_turned_round_gets_the_same_verdict(mean, half):
    turned = Claim("", "", "speed", paper=-2.0, within=0.1, void=-1.0)
    assert CLAIM.verdict(Estimate(mean, half, 1, 5, 0)) == turned.verdict(
        Estimate(-mean, half, 1, 5, 0)
    )


def test_a_run_is_kept_and_read_back(root, capsys):
    assert ledger.main(["fake", "--seeds", "4"], root) == 0
    result = ledger.stored("fake", root)
    assert result.seeds == [0, 1, 2, 3] and result.config == {"lr": 1}
    assert result["lost"] == Estimate(1.0, 0.0, 0.0, 2, 2)
    assert {"python", "torch", "numpy", "moe_lite"} == set(result.versions)
    assert set(result.hardware) == {"system", "cpu", "cores", "threads", "gpu"}
    said = capsys.readouterr().out
    assert "≈ direction only" in said and "✗ not reproduced" in said
    assert [path.name for path in (root / "experiments/results").iterdir()] == ["fake.json"]


def test_an_interrupted_run_goes_on(tmp_path, capsys):
    part, done = tmp_path / ".part.json", []

    def job(name, fails=False):
        if fails:
            raise KeyboardInterrupt
        done.append(name)
        return {"value": len(name)}

    jobs = {name: lambda name=name: job(name) for name in ("a", "bb")}
    with pytest.raises(KeyboardInterrupt):
        ledger.resume(part, {"n": 1}, jobs | {"ccc": lambda: job("ccc", fails=True)})
    assert done == ["a", "bb"] and part.is_file()
    found = ledger.resume(part, {"n": 1}, jobs | {"ccc": lambda: job("ccc")})
    assert done == ["a", "bb", "ccc"] and not part.exists()
    assert found == {"a": {"value": 1}, "bb": {"value": 2}, "ccc": {"value": 3}}
    assert capsys.readouterr().out.splitlines() == [f"{n} {{'value': {len(n)}}}" for n in found]


def test_a_part_of_another_run_is_not_gone_on_with(tmp_path):
    part = tmp_path / ".part.json"
    part.write_text('{"mark": {"n": 1}, "done": {"a": {"value": 7}}}', encoding="utf-8")
    assert ledger.resume(part, {"n": 2}, {"a": lambda: {"value": 1}}) == {"a": {"value": 1}}


def test_fewer_seeds_never_replace_more(root):
    ledger.main(["fake", "--seeds", "4"], root)
    kept = ledger.result_path("fake", root).read_bytes()
    with pytest.raises(ValueError, match="holds 4 seeds, which 3 would replace"):
        ledger.main(["fake", "--seeds", "3"], root)
    assert ledger.result_path("fake", root).read_bytes() == kept
    ledger.main(["fake", "--seeds", "3", "--out", str(root / "b.json")], root)
    assert len(ledger.read(root / "b.json").seeds) == 3
    assert ledger.result_path("fake", root).read_bytes() == kept


def test_the_pages_say_what_the_results_say(root):
    assert "Not run yet: `python -m moe_lite reproduce fake --seeds 25`" in ledger.page(root)
    ledger.main(["fake", "--seeds", "4", "--table"], root)
    page = (root / "LEDGER.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and "fake" in line]
    assert len(rows) == 3 and "| 2 (Table 1, SD 3) | 2.0" in rows[0]
    assert "✓ reproduced | 0.0 | `reproduce fake --seeds 4` |" in rows[0]
    assert "within 10%; below 1" in rows[2]
    table = (root / "README.md").read_text(encoding="utf-8").splitlines()
    assert table[2] == "| 01 | Why? | [1 ✓, 1 ≈, 1 ✗](LEDGER.md#fake) |"
    assert table[3:] == ["| 02 | How? | |", "| x | | |"]
    assert all(path.read_text("utf-8") == text for path, text in ledger.pages(root).items())


def test_a_number_that_has_drifted_is_named(root):
    ledger.main(["fake", "--seeds", "25"], root)
    result = ledger.stored("fake", root)
    assert ledger.disagreements(result, ledger.load("fake", root).spot()) == []
    (found,) = ledger.disagreements(result, {"speed": [2.1, 2.1]})
    assert found.startswith("fake: speed is 2.1 ± 0 now, 2.005 ± ")
    assert ledger.disagreements(result, {"lost": [None, None]})


def test_one_seed_that_ends_elsewhere_is_no_drift_and_two_are(root):
    """As on a machine that rounds otherwise: of backpropagation's three seeds one ended so."""
    ledger.main(["fake", "--seeds", "25"], root)
    result, speed = ledger.stored("fake", root), ledger.load("fake", root).spot()["speed"]
    for place in range(3):
        moved = [9.0 if seed == place else value for seed, value in enumerate(speed)]
        assert ledger.disagreements(result, {"speed": moved}) == []
        kept = [value if seed == place else 9.0 for seed, value in enumerate(speed)]
        assert ledger.disagreements(result, {"speed": kept})


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10])
def test_fresh_seeds_of_the_same_law_agree_99_times_in_100(count):
    far = 0
    for row in torch.randn(1000, 25 + count).tolist():
        result = ledger.Result("x", list(range(25)), {}, {"a": row[:25]}, {}, {}, 0.0)
        far += bool(ledger.disagreements(result, {"a": row[25:]}))
    assert 1 <= far <= 20


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("return {", "seeds = seeds[1:]; return {", "gives 3 values of 'lost' for 4 seeds"),
        ('"speed": speed, ', "", "claims 'speed' but does not measure it"),
    ],
)
def test_a_run_that_lacks_something_is_not_kept(root, old, new, complaint):
    (root / "experiments" / "fake.py").write_text(FAKE.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=complaint):
        ledger.main(["fake", "--seeds", "4"], root)
    assert not ledger.result_path("fake", root).exists()


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["nobody2030"], "there is no experiment 'nobody2030'; there are: fake"),
        (["fake", "--seeds", "1"], "at least 2 seeds, not 1"),
        (["fake", "--out", "no/such/place.json"], "there is no folder"),
        (["fake", "--out", "."], "it is a folder"),
    ],
)
def test_mistakes_are_told_before_the_run(root, argv, complaint, capsys):
    with pytest.raises((ValueError, OSError), match=complaint):
        ledger.main(argv, root)
    assert capsys.readouterr().out == ""


def test_without_a_clone_there_are_no_experiments(tmp_path):
    with pytest.raises(FileNotFoundError, match="come with a clone of the repository"):
        ledger.main([], tmp_path)


def test_a_missing_or_damaged_result_is_told(root):
    with pytest.raises(FileNotFoundError, match="`python -m moe_lite reproduce fake` makes it"):
        ledger.stored("fake", root)
    ledger.reproduce("fake", 2, None, root)
    kept = json.loads(ledger.result_path("fake", root).read_text(encoding="utf-8"))
    for damage, told in (
        ("{", "not valid JSON"), ("[]", r"holds \[\], not a JSON object"),
        ('{"name": "fake"}', "seeds is missing"),
        (json.dumps(kept | {"seconds": "1"}), "seconds must be a finite number, not '1'"),
        (json.dumps(kept | {"seeds": [0]}), "measures: 'speed' has 2 values for 1 seeds"),
        (json.dumps(kept | {"measures": {"speed": [1, True]}}), r"measures: 'speed'\[1\] must be"),
        (json.dumps(kept | {"hardware": {}}), "hardware: system, cpu, cores, threads, gpu missing"),
    ):  # fmt: skip
        ledger.result_path("fake", root).write_text(damage, encoding="utf-8")
        with pytest.raises(ValueError, match=f"fake.json: {told}"):
            ledger.stored("fake", root)


def test_the_command_lists_what_there_is(capsys):
    assert cli.main(["reproduce"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ledger.names()


# --- the course's own results --------------------------------------------------------------------


@pytest.mark.parametrize("name", ledger.names())
def test_a_result_is_of_this_experiment(name):
    """A module whose config or claims have changed wants running again."""
    experiment, result = ledger.load(name), ledger.stored(name)
    assert json.loads(json.dumps(experiment.config)) == result.config
    assert len(result.seeds) >= experiment.seeds
    assert {claim.measure for claim in experiment.claims} <= set(result.measures)


@pytest.mark.slow("experiments run again")
@pytest.mark.parametrize("name", ledger.names())
def test_a_part_run_again_agrees(name):
    fresh = ledger.load(name).spot()
    assert fresh and ledger.disagreements(ledger.stored(name), fresh) == []


def test_the_ledger_is_not_stale():
    stale = [p.name for p, text in ledger.pages().items() if p.read_text("utf-8") != text]
    assert stale == [], "`python -m moe_lite reproduce --table` writes them"


def test_results_are_found_where_no_clone_is(tmp_path):
    """As a wheel lays them: the package in one folder, the data under another."""
    shutil.copytree(ROOT / "moe_lite", tmp_path / "site" / "moe_lite")
    with (ROOT / "pyproject.toml").open("rb") as file:
        data = tomllib.load(file)["tool"]["setuptools"]["data-files"]
    for folder, patterns in data.items():
        (tmp_path / folder).mkdir(parents=True)
        for path in (p for pattern in patterns for p in ROOT.glob(pattern)):
            shutil.copy(path, tmp_path / folder)
    stored = [path.stem for path in (ROOT / "experiments" / "results").glob("*.json")]
    assert len(stored) > 10
    code = (
        f"import sysconfig; sysconfig.get_path = lambda *_: {str(tmp_path)!r}\n"
        "from moe_lite.course import ledger\n"
        f"for name in {stored}: ledger.stored(name), ledger.load(name)\n"
        "print(ledger.__file__, len(list((ledger.ROOT / 'experiments/results/bench').iterdir())))"
    )
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "site")) and not done.stdout.endswith(" 0\n")
