"""Sweeps: settings build what they say, runs are kept, and a divergence is a result."""

import json

import pytest
import torch

from moe_lite import losses
from moe_lite.course.data import load_corpus
from moe_lite.course.sweep import MAX_BYTES, SMALL, Setting, measure, run, sweep
from moe_lite.routers import ROUTERS, SigmoidBiasRouter, SwitchRouter

SHORT = {"steps": 2, "batch_size": 2, "seq_len": 16, "warmup": 1}


@pytest.fixture(scope="module")
def corpus():
    return load_corpus(max_bytes=MAX_BYTES)


def test_a_setting_builds_what_it_says():
    setting = Setting(
        "switch", options={"capacity_factor": 1.5}, shared=2,
        model={"hidden_size": 32, "intermediate_size": 24, "num_local_experts": 4},
    )  # fmt: skip
    model = setting.build()
    assert model.config.head_dim == 16
    for layer in model.moe_layers:
        assert isinstance(layer.gate, SwitchRouter) and layer.gate.capacity_factor == 1.5
        assert layer.shared.w1.shape == (1, 48, 32) and layer.experts.w1.shape == (4, 24, 32)
        assert 0.01 < layer.shared.w1.std() < 0.03


def test_what_two_settings_share_starts_the_same():
    one, other = Setting().build(seed=5), Setting("sigmoid + bias").build(seed=5)
    theirs = dict(other.named_parameters())
    for name, weight in one.named_parameters():
        assert torch.equal(weight, theirs[name]) or ".gate." in name
    assert not torch.equal(one.embed_tokens.weight, Setting().build(seed=6).embed_tokens.weight)


@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_trains_the_same_model(router, corpus):
    outcome = run(Setting(router, training=SHORT), corpus)
    assert outcome.diverged is None and len(outcome.history) == 2
    found = measure(outcome.model, corpus, batches=1, seq_len=16)
    assert 7 < found["loss"] < 9 and found["bits per byte"] > 0
    assert found["MaxVio"] >= 0 and 0 <= found["dropped"] < 1
    assert (found["dropped"] > 0) == (router in ("switch", "gshard"))


def test_the_controller_is_told_after_each_step(corpus):
    setting = Setting("sigmoid + bias", {"update_rate": 0.5}, training=SHORT | {"steps": 1})
    for layer in run(setting, corpus).model.moe_layers:
        assert isinstance(layer.gate, SigmoidBiasRouter)
        assert set(layer.gate.bias_E.tolist()) >= {-0.5, 0.5}


def test_a_balance_and_a_probe_are_ours_to_choose(corpus):
    balances = {"ours": lambda routings: 0 * losses.router_z_loss(routings) + 7}
    outcome = run(
        Setting(balance="ours", training=SHORT), corpus, balances=balances,
        probe=lambda routings: {"layers": len(routings), "grad": routings[0].gate_N.requires_grad},
    )  # fmt: skip
    assert outcome.history.column("balance") == [7, 7]
    assert outcome.history.column("layers") == [2, 2] and not any(outcome.history.column("grad"))


def test_a_sweep_keeps_what_is_done_and_a_divergence_is_a_result(tmp_path, capsys):
    part = tmp_path / "part.json"
    wild = SHORT | {"lr": 1e9, "grad_clip": 1e30, "steps": 6}
    settings = {"calm": Setting(training=SHORT), "wild": Setting(training=wild)}
    calls = []

    def more(outcome, corpus):
        calls.append(outcome)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"steps": len(outcome.history)}

    with pytest.raises(KeyboardInterrupt):
        sweep(settings, [0, 1], part=part, measure=more, max_bytes=200_000)
    assert len(json.loads(part.read_text("utf-8"))["done"]) == 2
    found = sweep(settings, [0, 1], part=part, measure=more, max_bytes=200_000)
    assert len(calls) == 5 and not part.exists()  # two were kept, the third was run again
    assert found["diverged at calm"] == [None, None]
    assert all(1 < step <= 6 for step in found["diverged at wild"])
    assert "loss at calm" in found and "loss at wild" not in found
    assert found["steps at calm"] == [2, 2]
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_another_sweeps_part_is_not_taken(tmp_path):
    part = tmp_path / "part.json"
    part.write_text(json.dumps({"mark": {}, "done": {"a; seed 0": {"loss": -1.0}}}), "utf-8")
    found = sweep({"a": Setting(training=SHORT)}, [0], part=part, max_bytes=200_000)
    assert found["loss at a"][0] > 0


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        (Setting("oracle"), "there is no router 'oracle'; there are: top-k"),
        (Setting(balance="karma"), "there is no balance 'karma'"),
        (Setting(model={"num_local_experts": 1}), "K cannot exceed E"),
        (Setting(training={"steps": 0}), "steps must be"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(setting, sentence, corpus):
    with pytest.raises(ValueError, match=sentence):
        run(setting, corpus)


def test_the_small_model_is_the_size_that_is_said():
    total = sum(p.numel() for p in Setting().build().parameters())
    assert round(total / 1e6, 2) == 0.69 and SMALL.num_local_experts == 8
