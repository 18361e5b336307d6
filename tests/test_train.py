"""The loop trains, its history says what happened, and nothing that ends a run loses it."""

import json
import math
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import HuggingFaceStorageWriter

from moe_lite import checkpoint
from moe_lite.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from moe_lite.config import MixtralConfig, TrainConfig
from moe_lite.course import viz
from moe_lite.course.data import load_corpus
from moe_lite.fast import onednn
from moe_lite.history import History
from moe_lite.losses import load_balancing_loss, router_z_loss
from moe_lite.model import Mixtral
from moe_lite.routers import Scores, TopKRouter
from moe_lite.train import (
    autocast_dtype,
    cross_entropy,
    evaluate,
    head_loss,
    make_optimizer,
    train,
)

SMALL = MixtralConfig(
    vocab_size=4096, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2,
    max_position_embeddings=64, tie_word_embeddings=True,
)  # fmt: skip
CONFIG = TrainConfig(
    steps=12, batch_size=4, seq_len=16, warmup=3, checkpoint_every=3, eval_every=4, eval_windows=2
)
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def corpus():
    return load_corpus(["drama", "prose"], max_bytes=40_000)


def fresh(config: MixtralConfig = SMALL, seed: int = 7) -> Mixtral:
    torch.manual_seed(seed)
    return Mixtral(config)


def run(model: Mixtral, corpus, config: TrainConfig = CONFIG, *args, **kwargs) -> History:
    return train(model, corpus, config, *args, progress=False, **kwargs)


def timeless(history: History) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]


class Stop(Exception):
    pass


def stop_after(step: int) -> Callable[[dict], None]:
    def callback(row: dict) -> None:
        if row["step"] == step:
            raise Stop

    return callback


# One step


def test_loss_falls(corpus):
    config = replace(CONFIG, steps=60, batch_size=8, lr=1e-2, eval_every=0)
    losses = run(fresh(), corpus, config).column("loss")
    assert losses[0] == pytest.approx(math.log(4096), abs=0.2)
    assert sum(losses[-5:]) / 5 < losses[0] - 1


@pytest.mark.parametrize(("aux", "z"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.1), (0.5, 0.1)])
def test_gradient_is_that_of_the_whole_loss(corpus, aux, z):
    config = replace(CONFIG, steps=1, aux_coef=aux, z_coef=z, grad_clip=1e9, autocast="off")
    model, by_hand = fresh(), fresh()
    row = run(model, corpus, config).rows[0]
    batch = corpus.batch("train", 4, 16, seed=0, step=0)
    out = by_hand(batch.ids_BS)
    balance = torch.stack([load_balancing_loss(r) for r in out.routings]).mean()
    z_mean = torch.stack([router_z_loss(r) for r in out.routings]).mean()
    (cross_entropy(out.logits_BSV, batch.targets_BS) + aux * balance + z * z_mean).backward()
    for (name, got), want in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, msg=name)
    assert row["balance"] == pytest.approx(balance.item())
    assert row["z"] == pytest.approx(z_mean.item())


def test_auxiliary_loss_moves_the_gate(corpus):
    gates = []
    for aux in (0.0, 0.5):
        model = fresh()
        run(model, corpus, replace(CONFIG, steps=1, aux_coef=aux, z_coef=0.0, grad_clip=1e9))
        gates.append(model.moe_layers[0].gate.weight.grad.clone())
    assert (gates[1] - gates[0]).norm() > 0.1 * gates[0].norm()


def test_balance_loss_balances(corpus):
    loads = []
    for aux in (0.0, 0.1):
        model = fresh()
        with torch.no_grad():
            for layer in model.moe_layers:
                layer.gate.weight[0] += 0.2  # every token leans the same way
                layer.gate.weight[1] -= 0.2
        config = replace(CONFIG, steps=60, lr=1e-2, eval_every=0, aux_coef=aux)
        loads.append(sum(run(model, corpus, config).column("load")[-10:]) / 10)
    assert 1 <= loads[1] < loads[0]


def test_gradient_is_clipped_and_its_norm_recorded(corpus):
    model = fresh()
    row = run(model, corpus, replace(CONFIG, steps=1, grad_clip=0.01)).rows[0]
    after = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert row["norm"] > 0.1 and after.item() == pytest.approx(0.01, rel=1e-3)


def test_old_gradients_do_not_leak_into_the_first_step(corpus):
    model, other = fresh(), fresh()
    for parameter in other.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    assert timeless(run(model, corpus)) == timeless(run(other, corpus))


def test_decay_is_for_matrices_only():
    model = fresh()
    decayed, kept = make_optimizer(model, CONFIG).param_groups
    assert decayed["weight_decay"] == CONFIG.weight_decay and kept["weight_decay"] == 0
    assert all(p.dim() > 1 for p in decayed["params"])
    assert [tuple(p.shape) for p in kept["params"]] == [(16,)] * 5  # the norms' scales
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 400), st.floats(0, 1))
def test_learning_rate_rises_then_falls_to_its_floor(steps, warmup, ratio):
    config = TrainConfig(steps=steps, warmup=warmup, lr=2.0, min_lr_ratio=ratio)
    rates = [config.lr_at(step) for step in range(steps)]
    peak = min(max(warmup - 1, 0), steps - 1)
    assert all(0 < rate <= 2.0 + 1e-12 for rate in rates[:-1])
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    if warmup <= steps:
        assert rates[peak] == pytest.approx(2.0)
    if warmup < steps > 1:
        assert rates[-1] == pytest.approx(2.0 * ratio)


def test_dense_twins_train_without_an_auxiliary_loss(corpus):
    for match in ("active", "total"):
        config = replace(CONFIG, steps=30, lr=1e-2, aux_coef=1e6)
        history = run(fresh(SMALL.dense(match)), corpus, config)
        assert set(history.column("balance")) == {0.0} and set(history.column("load")) == {1.0}
        assert history.column("loss")[-1] < history.column("loss")[0]


def test_torch_keeps_its_own_random_state(corpus):
    model = fresh()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    run(model, corpus, replace(CONFIG, steps=2))
    assert torch.equal(torch.rand(3), expected)


def test_training_leaves_the_mode_on_and_evaluation_leaves_it_as_it_was(corpus):
    model = fresh().eval()
    evaluate(model, corpus, config=CONFIG)
    assert not model.training
    run(model, corpus, replace(CONFIG, steps=1))
    assert model.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number of at least 1, not 2.5"),
        ({"warmup": -1}, "warmup must be a whole number of at least 0, not -1"),
        ({"keep": True}, "keep must be a whole number of at least 1, not True"),
        ({"lr": math.nan}, "lr must be a number of at least 0, not nan"),
        ({"aux_coef": "0.1"}, "aux_coef must be a number of at least 0, not '0.1'"),
        ({"betas": (0.9, 1.0)}, r"betas must be two numbers from 0 to below 1, not \(0.9, 1.0\)"),
        ({"betas": None}, "betas must be a list of 2, not None"),
        ({"autocast": "fp8"}, "autocast must be one of .* not 'fp8'"),
    ],
)
def test_config_refuses_what_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**change)


# Precision


def test_autocast_is_chosen_by_capability_and_width(monkeypatch):
    narrow, wide = fresh(), fresh(replace(SMALL, hidden_size=256, head_dim=None))
    asks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    monkeypatch.setattr(onednn, "multiplies_bfloat16", onednn.multiplies_bfloat16.__wrapped__)
    for able in (None, *asks):
        for ask in asks:
            monkeypatch.setattr(torch.cpu, ask, lambda ask=ask, able=able: ask == able)
        assert autocast_dtype(wide) == (torch.bfloat16 if able else None)
        assert autocast_dtype(narrow) is None
    assert autocast_dtype(narrow, "on") == torch.bfloat16
    assert autocast_dtype(wide, "off") is None
    assert autocast_dtype(wide.double(), "on") is None


def test_bfloat16_learns_as_float32_does(corpus):
    config = replace(CONFIG, steps=30, lr=1e-2, eval_every=0)
    full, half = (
        run(fresh(), corpus, replace(config, autocast=autocast)).column("loss")
        for autocast in ("off", "on")
    )
    assert full != half
    assert half[-1] == pytest.approx(full[-1], abs=0.1)


# Evaluation and history


def test_bits_per_byte_of_a_model_that_knows_nothing(corpus):
    model = fresh()
    with torch.no_grad():
        model.norm.weight.zero_()  # so all logits are 0: each token costs log2(V) bits
    found = evaluate(model, corpus, config=CONFIG)
    for domain in corpus.domains:
        targets = corpus.windows(domain, 16, 2).targets_BS
        expected = targets.numel() * math.log2(4096) / int(corpus.bytes_V[targets].sum())
        assert found[domain] == pytest.approx(expected, rel=1e-5)
    assert list(found) == list(corpus.domains)


def test_evaluation_does_not_depend_on_the_batch_size(corpus):
    model = fresh()
    one, many = (
        evaluate(model, corpus, config=replace(CONFIG, batch_size=size, eval_windows=7))
        for size in (1, 5)
    )
    assert one == pytest.approx(many, rel=1e-5)


def test_history_is_saved_and_loaded_exactly(corpus, tmp_path):
    seen: list[dict] = []
    history = run(fresh(), corpus, callback=seen.append)
    history.save(tmp_path / "h.jsonl")
    assert History.load(tmp_path / "h.jsonl").rows == history.rows == seen
    assert len((tmp_path / "h.jsonl").read_text(encoding="utf-8").splitlines()) == len(history)
    assert [row["step"] for row in history.rows if "bits" in row] == [4, 8, 12]
    assert history.column("tokens") == [64 * (i + 1) for i in range(12)]
    assert history.column("seconds") == sorted(history.column("seconds"))
    (tmp_path / "h.jsonl").write_text("[2]\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1 must be an object, not \\[2\\]"):
        History.load(tmp_path / "h.jsonl")


def test_smoothing_is_centred_and_keeps_a_straight_line_straight():
    history = History([{"step": i, "loss": float(i)} for i in range(20)])
    assert viz.smooth(history.column("loss"), 5)[2:-2] == history.column("loss")[2:-2]
    assert viz.smooth(history.column("loss"), 5)[0] == 1.0  # of 0, 1, 2: cut at the ends


def test_a_run_is_drawn(corpus):
    history = run(fresh(), corpus)
    for x in ("step", "tokens", "seconds"):
        panels = viz.training(history, x).axes
        assert [panel.get_xlabel() for panel in panels] == [x] * 3
        assert list(panels[0].lines[0].get_ydata()) == history.column("loss")
        labels = [text.get_text() for text in panels[2].get_legend().get_texts()]
        assert labels == list(corpus.domains)
    assert len(viz.training(run(fresh(), corpus, replace(CONFIG, eval_every=0))).axes) == 2
    assert viz.training(history)._repr_png_().startswith(b"\x89PNG")  # a cell shows it
    assert "no steps" in repr(History()) and "loss" in repr(history)
    with pytest.raises(ValueError, match="x must be step, tokens or seconds, not 'epoch'"):
        viz.training(history, "epoch")


# Checkpoints and resuming


class NoisyRouter(TopKRouter):
    """A gate that draws: what it draws must not change by resuming."""

    def score(self, x_TD, ids_T=None):
        logits_TE = super().score(x_TD).logits_TE
        noise_TE = 0.1 * torch.randn_like(logits_TE) if self.training else 0
        return Scores.softmax(logits_TE + noise_TE)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("stop", [3, 7])
def test_resuming_is_the_same_as_never_having_stopped(corpus, tmp_path, stop, noisy):
    def build(seed: int) -> Mixtral:
        model = fresh(seed=seed)
        for layer in model.moe_layers if noisy else ():
            layer.gate = NoisyRouter(16, 4, 2)
        return model

    straight = build(7)
    whole = run(straight, corpus)
    with pytest.raises(Stop):
        run(build(7), corpus, CONFIG, tmp_path, callback=stop_after(stop))
    resumed = build(8)  # other weights: all must come from the checkpoint
    torch.rand(5)
    history = run(resumed, corpus, CONFIG, tmp_path, resume=True)
    assert timeless(history) == timeless(whole)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert run(build(9), corpus, CONFIG, tmp_path, resume=True).rows == history.rows  # all done


def test_checkpoint_is_a_readable_folder_and_the_last_ones_stay(corpus, tmp_path):
    run(fresh(), corpus, replace(CONFIG, keep=3), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step-00000006", "step-00000009", "step-00000012"
    ]  # fmt: skip
    last = checkpoints(tmp_path)[-1]
    assert {path.name for path in last.iterdir()} == set(FILES)
    state = json.loads((last / "state.json").read_text(encoding="utf-8"))
    assert state["step"] == 12 and state["model"] == asdict(SMALL)


def test_without_an_interval_the_end_is_kept(corpus, tmp_path):
    run(fresh(), corpus, replace(CONFIG, checkpoint_every=0), tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000012"]


def test_resume_without_a_checkpoint_starts(corpus, tmp_path):
    history = run(fresh(), corpus, CONFIG, tmp_path / "a" / "new", resume=True)
    assert timeless(history) == timeless(run(fresh(), corpus))


def test_another_run_is_not_overwritten(corpus, tmp_path):
    run(fresh(), corpus, CONFIG, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(ValueError, match=r"already holds a run \(step-00000012\): resume it, or"):
        run(fresh(), corpus, CONFIG, tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        (replace(SMALL, num_local_experts=8), CONFIG, "model has num_local_experts 4, not 8"),
        (replace(SMALL, rope_theta=1e4), CONFIG, "model has rope_theta 1000000.0, not 10000.0"),
        (SMALL, replace(CONFIG, steps=99), "training has steps 12, not 99"),
        (SMALL, replace(CONFIG, seed=1), "training has seed 0, not 1"),
    ],
)
def test_resuming_another_run_is_refused(corpus, tmp_path, model, config, message):
    run(fresh(), corpus, CONFIG, tmp_path)
    other = fresh(model)
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(ValueError, match=f"cannot resume from .*step-00000012: its {message}"):
        run(other, corpus, config, tmp_path, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_resuming_on_other_text_is_refused_and_on_other_intervals_is_not(corpus, tmp_path):
    run(fresh(), corpus, CONFIG, tmp_path)
    other = load_corpus(["drama", "prose"], max_bytes=50_000)
    with pytest.raises(ValueError, match="it was trained on other text"):
        run(fresh(), other, CONFIG, tmp_path, resume=True)
    calmer = replace(CONFIG, eval_every=0, checkpoint_every=5, keep=1, eval_windows=1)
    assert len(run(fresh(), corpus, calmer, tmp_path, resume=True)) == 12


def test_a_swapped_gate_of_another_shape_is_refused(corpus, tmp_path):
    run(fresh(), corpus, CONFIG, tmp_path)
    model = fresh()
    model.moe_layers[0].gate.bias = torch.nn.Parameter(torch.zeros(4))
    with pytest.raises(ValueError, match=r"has no layers\.0\.block_sparse_moe\.gate\.bias of"):
        run(model, corpus, CONFIG, tmp_path, resume=True)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


TENSORS = "shard-00001-model-00001-of-00001.safetensors"
FILES = (TENSORS, "history.jsonl", "state.json")


@pytest.mark.parametrize(
    ("name", "damage"),
    # A flipped bit in the description itself may be harmless; in the rest it never is.
    [(n, d) for n in FILES for d in (truncate, flip, Path.unlink) if (n, d) != (FILES[2], flip)],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_still_works(
    corpus, tmp_path, name, damage
):
    whole = run(fresh(), corpus, CONFIG, tmp_path)
    newest = checkpoints(tmp_path)[-1]
    damage(newest / name)
    model = fresh(seed=8)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(
        ValueError, match="12 is damaged .*; delete it to go on from step-00000009"
    ) as error:
        run(model, corpus, CONFIG, tmp_path, resume=True)
    assert "\n" not in str(error.value)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    shutil.rmtree(newest)
    assert timeless(run(model, corpus, CONFIG, tmp_path, resume=True)) == timeless(whole)


def test_words_that_do_not_list_the_files_are_damage_too(corpus, tmp_path):
    run(fresh(), corpus, CONFIG, tmp_path)
    state = checkpoints(tmp_path)[-1] / "state.json"
    genuine = json.loads(state.read_text("utf-8"))
    for digests in ({}, {"/dev/zero": "0"}, ["history.jsonl"], {**genuine["sha256"], "../x": "0"}):
        state.write_text(json.dumps(genuine | {"sha256": digests}), encoding="utf-8")
        with pytest.raises(ValueError, match="12 is damaged .*; delete it to go on from step-0"):
            run(fresh(), corpus, CONFIG, tmp_path, resume=True)


def test_a_checkpoint_of_an_earlier_version_is_named_as_such(corpus, tmp_path):
    run(fresh(), corpus, CONFIG, tmp_path)
    state = checkpoints(tmp_path)[-1] / "state.json"
    words = json.loads(state.read_text("utf-8"))
    assert words.pop("format") == 2
    state.write_text(json.dumps(words), encoding="utf-8")
    with pytest.raises(ValueError, match="step-00000012 has format 1, of another version of moe"):
        run(fresh(), corpus, CONFIG, tmp_path, resume=True)


def test_a_refused_run_leaves_the_one_that_is_writing_alone(corpus, tmp_path):
    run(fresh(), corpus, CONFIG, tmp_path)
    (tmp_path / ".step-00000015.unfinished").mkdir()
    with pytest.raises(ValueError, match="already holds a run"):
        run(fresh(), corpus, CONFIG, tmp_path)
    assert (tmp_path / ".step-00000015.unfinished").exists()


def test_the_only_checkpoint_damaged_says_to_start_again(corpus, tmp_path):
    run(fresh(), corpus, replace(CONFIG, keep=1), tmp_path)
    truncate(checkpoints(tmp_path)[0] / TENSORS)
    with pytest.raises(ValueError, match="damaged .*; start again elsewhere"):
        run(fresh(), corpus, replace(CONFIG, keep=1), tmp_path, resume=True)


@pytest.mark.parametrize(
    ("where", "point", "call"),
    [(HuggingFaceStorageWriter, "write_data", 0), (checkpoint, "_sha256", 0),
     (checkpoint, "_sha256", 1), (checkpoint, "flush", 0), (checkpoint, "flush", 1)],
)  # fmt: skip
def test_a_write_that_fails_costs_only_itself(corpus, tmp_path, monkeypatch, where, point, call):
    run(fresh(), corpus, replace(CONFIG, steps=6, keep=1), tmp_path)
    config, genuine, calls = replace(CONFIG, keep=1), getattr(where, point), []

    def failing(*args):
        calls.append(args)
        if len(calls) > call:
            raise OSError(28, "No space left on device")
        return genuine(*args)

    shutil.copytree(tmp_path, tmp_path / "kept")
    monkeypatch.setattr(where, point, failing)
    model, optimizer = fresh(), make_optimizer(fresh(), config)
    history = History([{"step": 9}])
    with pytest.raises(OSError, match=r"cannot write the checkpoint .*step-00000009: No space"):
        save_checkpoint(tmp_path, model, optimizer, config, corpus.digest, history)
    shutil.rmtree(tmp_path / "kept")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]


def test_leftovers_are_swept_and_never_resumed(corpus, tmp_path):
    whole = run(fresh(), corpus, CONFIG, tmp_path)
    leftover = tmp_path / ".step-00000015.unfinished"
    shutil.copytree(checkpoints(tmp_path)[-1], leftover)
    (tmp_path / "step-by-step").mkdir()  # the learner's own
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000009", "step-00000012"]
    assert run(fresh(), corpus, CONFIG, tmp_path, resume=True).rows == whole.rows
    assert not leftover.exists() and (tmp_path / "notes.txt").exists()
    assert (tmp_path / "step-by-step").exists()


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_an_unwritable_folder_is_refused_before_training(corpus, tmp_path, where):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    model, steps = fresh(), []
    with pytest.raises(OSError, match="cannot write to .*file"):
        run(model, corpus, CONFIG, tmp_path / where, callback=steps.append)
    assert steps == [] and all(p.grad is None for p in model.parameters())


# What goes wrong in the middle


def test_a_router_gone_wrong_is_named_with_step_and_layer(corpus):
    model = fresh()
    with torch.no_grad():
        model.moe_layers[1].gate.weight[2, 3] = math.nan
    with pytest.raises(
        ValueError, match=r"^step 1: layers\.1\.block_sparse_moe: the router's logits are not"
    ):
        run(model, corpus)


def test_a_router_gone_wrong_where_nothing_looked_is_named_too(corpus, monkeypatch):
    """As on a GPU, where the layer does not wait to look at its logits."""
    model = fresh()
    genuine = Mixtral.hidden

    def poisoned(module, *args):
        hidden_BSD, routings = genuine(module, *args)
        routings[1].logits_TE.data[5] = math.inf
        hidden_BSD.data[:] = math.nan
        return hidden_BSD, routings

    monkeypatch.setattr(Mixtral, "hidden", poisoned)
    with pytest.raises(ValueError, match=r"^step 1: layers\.1\..* not finite .* at token 5 of 64"):
        run(model, corpus)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_stops_before_the_step(corpus, tmp_path, what):
    model = fresh(replace(SMALL, tie_word_embeddings=False))

    def callback(row: dict) -> None:
        if row["step"] == 4 and what == "loss":
            model.lm_head.weight.data[0, 0] = math.nan
        elif row["step"] == 4:
            model.lm_head.weight.register_hook(lambda grad: grad * math.inf)
        if row["step"] == 4:
            before.extend(p.detach().clone() for p in model.parameters())

    before: list[torch.Tensor] = []
    sentence = {"loss": "the loss is nan;", "gradient": "the gradient is not finite;"}[what]
    with pytest.raises(ValueError, match=f"^step 5: {sentence} a lower lr"):
        run(model, corpus, CONFIG, tmp_path, callback=callback)
    for a, b in zip(before, model.parameters(), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003"]


def test_ctrl_c_finishes_the_step_and_leaves_a_checkpoint(corpus, tmp_path):
    whole = run(fresh(), corpus)
    handler, model = signal.getsignal(signal.SIGINT), fresh()
    genuine, calls = corpus.batch, []

    class Pressing:
        """The same text, but somebody presses Ctrl-C while step 5 draws its batch."""

        def __getattr__(self, name):
            return getattr(corpus, name)

        def batch(self, *args, **kwargs):
            calls.append(args)
            if len(calls) == 5:
                signal.raise_signal(signal.SIGINT)
            return genuine(*args, **kwargs)

    with pytest.raises(KeyboardInterrupt, match="stopped after step 5 of 12"):
        run(model, Pressing(), CONFIG, tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    assert checkpoints(tmp_path)[-1].name == "step-00000005"
    assert timeless(run(fresh(), corpus, CONFIG, tmp_path, resume=True)) == timeless(whole)


def test_ctrl_c_at_the_very_end_is_not_swallowed(corpus):
    def late(row: dict) -> None:
        if row["step"] == CONFIG.steps:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(fresh(), corpus, callback=late)


def test_a_second_ctrl_c_stops_at_once(corpus):
    def impatient(row: dict) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("still running")

    with pytest.raises(KeyboardInterrupt):
        run(fresh(), corpus, callback=impatient)


CHILD = """
import sys
import torch
torch.set_num_threads(1)
from moe_lite.config import MixtralConfig, TrainConfig
from moe_lite.course.data import load_corpus
from moe_lite.history import History
from moe_lite.model import Mixtral
from moe_lite.train import train
model_config, config, out, last = eval(sys.argv[1])

def tell(row):
    print(row["step"], flush=True)
    if row["step"] == last:
        sys.stdin.read()  # never to the end before the kill, however late that comes

torch.manual_seed(7)
train(Mixtral(model_config), load_corpus(["prose"], max_bytes=40_000), config, out, resume=True,
      progress=False, callback=tell)
"""


@pytest.mark.slow("Ctrl-C and kill")
def test_kill_at_any_moment_loses_no_finished_checkpoint(tmp_path):
    config = replace(CONFIG, steps=40, checkpoint_every=1, eval_every=0)
    text = load_corpus(["prose"], max_bytes=40_000)
    whole = run(fresh(), text, config)
    rng, reached = random.Random(0), 0
    for goal in (3, 17, 40):
        argument = repr((SMALL, config, str(tmp_path), goal + 4))
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, argument],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert child.stdout is not None
        for line in child.stdout:
            reached = int(line)
            if reached >= goal and goal < 40:
                # By now a later step is being computed, written or told of.
                time.sleep(rng.random() * 0.02)
                child.kill()
                break
        child.communicate()
        assert (child.returncode != 0) == (goal < 40)
        found = checkpoints(tmp_path)
        assert int(found[-1].name.removeprefix("step-")) >= reached
        for path in found:  # each is whole
            model = fresh(seed=1)
            optimizer = make_optimizer(model, config)
            history = load_checkpoint(path, model, optimizer, config, text.digest)
            assert timeless(history) == timeless(whole)[: len(history)]
    assert reached == 40
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    model = fresh(seed=1)
    last = load_checkpoint(found[-1], model, make_optimizer(model, config), config, text.digest)
    assert timeless(last) == timeless(whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_from_the_hidden_states_is_the_loss_from_the_logits(dtype):
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 300, bias=False)
    hidden_BSD = torch.randn(4, 9, 16, dtype=dtype, requires_grad=True)
    targets_BS = torch.randint(0, 300, (4, 9))
    results = []
    for loss in (
        lambda: head_loss(head, hidden_BSD, targets_BS),
        lambda: cross_entropy(head(hidden_BSD.float()), targets_BS),
    ):
        value = loss()
        results.append((value, *torch.autograd.grad(value, [hidden_BSD, head.weight])))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)


# What stays of a run that another would break


def test_a_second_run_is_refused_and_the_first_goes_on(corpus, tmp_path):
    """Resuming sweeps what was left half-written, but not what is being written."""
    begun = []

    def second(row):
        if row["step"] != 3:
            return
        (tmp_path / ".step-00000006.unfinished").mkdir()
        for resume in (False, True):
            refusal = "already holds a run" if not resume else "another process trains there"
            with pytest.raises((ValueError, OSError), match=refusal):
                run(fresh(), corpus, CONFIG, tmp_path, resume=resume)
        assert (tmp_path / ".step-00000006.unfinished").is_dir()
        begun.append(row)

    whole = run(fresh(), corpus, CONFIG, tmp_path, callback=second)
    assert len(begun) == 1 and len(whole) == CONFIG.steps
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert run(fresh(), corpus, CONFIG, tmp_path, resume=True).rows == whole.rows


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sha256": {}}, "a file is missing or was added"),
        ({"sha256": {"/dev/zero": "0" * 64}}, "a file is missing or was added"),
        ({"sha256": {"../x": "0" * 64}}, "a file is missing or was added"),
        ({"sha256": None}, "state.json: sha256 must be an object, not None"),
        (
            {"sha256": {"history.jsonl": 1}},
            "state.json: sha256: 'history.jsonl' must be text, not 1",
        ),
        ({"model": []}, r"state.json: model must be an object, not \[\]"),
        ({"step": 8}, "state.json and history.jsonl disagree"),
        ({"format": "2"}, "state.json: format must be a whole number, not '2'"),
    ],
)
def test_a_hostile_description_of_a_checkpoint_is_refused(corpus, tmp_path, change, told):
    config = replace(CONFIG, steps=3)
    run(fresh(), corpus, config, tmp_path)
    (last,) = checkpoints(tmp_path)
    state = json.loads((last / "state.json").read_text(encoding="utf-8"))
    (last / "state.json").write_text(json.dumps(state | change), encoding="utf-8")
    with pytest.raises(ValueError, match=f"damaged .*{told}"):
        run(fresh(), corpus, config, tmp_path, resume=True)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["[2]"], r"line 1 must be an object, not \[2\]"),
        (['{"step": 1}'], "line 1: tokens, seconds, loss, load missing"),
        ([None, None], "line 2: step 1 follows step 1"),
        ([{"loss": "low"}], "line 1: 'loss' must be a finite number, not 'low'"),
        ([{"step": True}], "line 1: 'step' must be a whole number, not True"),
        ([{"bits": {"a": 1}}, {"step": 2, "bits": {"b": 1}}], "line 2: bits are of other domains"),
        ([{"mine": []}], r"line 1: 'mine' must be a finite number, not \[\]"),
        (["{"], "line 1: not valid JSON"),
    ],
)
def test_a_hostile_history_is_refused(tmp_path, lines, told):
    row = {"step": 1, "tokens": 1, "seconds": 1.0, "loss": 2.0, "load": 1.0}
    text = [ln if isinstance(ln, str) else json.dumps(row | (ln or {})) for ln in lines]
    (tmp_path / "h.jsonl").write_text("\n".join(text), encoding="utf-8")
    with pytest.raises(ValueError, match=f"h.jsonl: {told}"):
        History.load(tmp_path / "h.jsonl")


def test_a_history_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    row = {"step": 1, "tokens": 1, "seconds": 1.0, "loss": 2.0, "load": 1.0}
    History([row]).save(tmp_path / "h.jsonl")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="cannot write .*h.jsonl: No space left on device"):
        History([row, row | {"step": 2}]).save(tmp_path / "h.jsonl")
    assert len(History.load(tmp_path / "h.jsonl")) == 1
