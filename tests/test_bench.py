"""The benchmark compares like with like, and says what it measured."""

import json

import pytest
import torch

from moe_lite import bench


def test_it_measures_both_sides_and_writes_what_it_prints(tmp_path, capsys) -> None:
    out = tmp_path / "new" / "bench.json"
    args = ["--config", "tiny", "--rounds", "2", "--steps", "1", "--new-tokens", "3"]
    assert bench.main([*args, "--autocast", "off", "--device", "cpu", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    for what in ("training", "generation"):
        ours, theirs, ratio = (result[what][k] for k in ("moe_lite", "transformers", "ratio"))
        assert len(ours) == len(theirs) == 2 and min(ours + theirs) > 0
        assert ratio == pytest.approx([a / b for a, b in zip(ours, theirs, strict=True)])
    assert result["compute"] == "float32" and result["machine"]["torch"] == torch.__version__
    assert capsys.readouterr().out.count(" ratio ") == 2


def test_two_models_that_disagree_are_not_timed(monkeypatch) -> None:
    def other(ours):
        theirs = real(ours)
        with torch.no_grad():
            theirs.lm_head.weight.mul_(3)
        return theirs

    real = bench.pair_of_models
    monkeypatch.setattr(bench, "pair_of_models", other)
    with pytest.raises(ValueError, match="disagree before any training"):
        bench.main(["--config", "tiny", "--rounds", "1", "--device", "cpu"])


@pytest.mark.parametrize(
    ("argv", "says"),
    [(["--rounds", "0"], "rounds must be at least 1"), (["--config", "huge"], "no recipe 'huge'")],
)
def test_what_cannot_be_is_said(argv, says) -> None:
    with pytest.raises(ValueError, match=says):
        bench.main(argv)
