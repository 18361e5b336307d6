"""Many runs in one stack are the runs that the trainer makes, each for itself."""

import json
import math
import shutil
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from experiments import alone, recipe
from experiments.alone import Alone
from experiments.stacked import Run, Stack
from moe_lite.config import MixtralConfig, TrainConfig
from moe_lite.course.data import load_corpus
from moe_lite.course.recent import QuantileRouter
from moe_lite.course.rounded import bfloat16_products
from moe_lite.evaluation import cross_entropy
from moe_lite.losses import load_balancing_loss, router_z_loss
from moe_lite.model import Mixtral
from moe_lite.routers import ExpertChoiceRouter, TopKRouter
from moe_lite.train import train

MODEL = MixtralConfig(
    vocab_size=4096, hidden_size=32, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, max_position_embeddings=64,
    tie_word_embeddings=True,
)  # fmt: skip
TRAINING = TrainConfig(
    steps=5, batch_size=3, seq_len=24, eval_every=5, eval_windows=2, warmup=2, autocast="off"
)
GATE = "layers.0.block_sparse_moe.gate.weight"
RUNS = [Run("as it is"), Run("others", seed=1, lr=1e-3, aux_coef=0.1, z_coef=0.1, gate_scale=2.0)]


@pytest.fixture(scope="module")
def corpus():
    return load_corpus(max_bytes=100_000)


@pytest.mark.parametrize("dense", [False, True])
def test_each_run_is_the_trainers(corpus, dense):
    config = MODEL.dense() if dense else MODEL
    stack = Stack(config, TRAINING, RUNS, [corpus])
    stack.train(say=lambda said: None)
    for n, run in enumerate(RUNS):
        torch.manual_seed(run.seed)
        model = Mixtral(config)
        for layer in model.moe_layers if not dense else ():
            layer.gate.gate_scale = run.gate_scale
        rates = {name: getattr(run, name) for name in ("seed", "lr", "aux_coef", "z_coef")}
        history = train(model, corpus, replace(TRAINING, **rates), progress=False)
        for mine, row in zip(stack.rows, history.rows, strict=True):
            for name in ("loss", "norm", "balance", "z", "load"):
                assert mine[name][n] == pytest.approx(row[name], rel=2e-3), (name, row["step"])
        bits = stack.rows[-1]["bits"][n]
        assert bits == pytest.approx(history.rows[-1]["bits"], rel=1e-4)
        alone, ids_BS = stack.one(n), torch.arange(20).view(1, 20)
        if not dense:
            assert isinstance(alone.moe_layers[0].gate, TopKRouter)
        with torch.no_grad():  # the scale of its gates went into its weights
            torch.testing.assert_close(
                alone(ids_BS).logits_BSV, model.eval()(ids_BS).logits_BSV, rtol=0, atol=2e-3
            )


def test_runs_do_not_see_each_other(corpus):
    alone = Stack(MODEL, TRAINING, RUNS[:1], [corpus])
    beside = Stack(MODEL, TRAINING, [RUNS[0], replace(RUNS[1], lr=1.0)], [corpus])
    for stack in (alone, beside):
        stack.train(say=lambda said: None)
    ours, theirs = ([row["loss"][0] for row in stack.rows] for stack in (alone, beside))
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize(
    "how", [{"shared": 1}, {"dense": (0,)}, {"dense": (1,)}, {"table": (0,)}, {"second": (0,)}]
)
def test_other_shapes_learn_and_are_no_mixtral(corpus, how):
    stack = Stack(MODEL, TRAINING, RUNS, [corpus], **how)
    stack.train(say=lambda said: None)
    assert stack.rows[-1]["loss"][0] < stack.rows[0]["loss"][0]
    with pytest.raises(ValueError, match="Mixtral's layout"):
        stack.one(0)


def test_a_table_chooses_by_the_id_alone_and_the_gate_weighs(corpus):
    stack = Stack(MODEL, TRAINING, RUNS, [corpus], table=(0,))
    ids_NBS, _ = stack.batch(0)
    _, routings = stack.hidden(ids_NBS)
    keep_VE = torch.full((len(RUNS), MODEL.vocab_size, 4), -1.0)
    for n, ids_T in enumerate(ids_NBS.flatten(1)):
        keep_VE[n, ids_T] = routings[0]["keep"][n]
        assert torch.equal(keep_VE[n, ids_T], routings[0]["keep"][n])  # one choice for an id
    both = (keep_VE[0] >= 0) & (keep_VE[1] >= 0)
    assert both.any() and torch.equal(keep_VE[0][both], keep_VE[1][both])  # in every run
    assert (routings[0]["keep"].sum(-1) == 2).all()
    total, _, _ = stack.losses(*stack.batch(0))
    gate = torch.autograd.grad(total, stack.leaves[stack.names.index(GATE)])[0]
    assert gate.abs().max() > 0
    with pytest.raises(ValueError, match="table"):
        Stack(MODEL, TRAINING, RUNS, [corpus], table=(0,), shared=1)


def test_a_second_vector_is_the_ids_own_and_begins_as_the_twin(corpus):
    twin, stack = (Stack(MODEL.dense(), TRAINING, RUNS, [corpus], second=s) for s in ((), (0,)))
    (ids_NBS, _), at = stack.batch(0), stack.names.index("layers.0.of_id.weight")
    assert torch.equal(stack.hidden(ids_NBS)[0], twin.hidden(ids_NBS)[0])
    stack.take()
    for n, vector_VD in enumerate(stack.leaves[at].detach()):
        seen = torch.zeros(MODEL.vocab_size, dtype=torch.bool)
        seen[ids_NBS[n].flatten()] = True
        assert torch.equal(vector_VD.abs().sum(-1) > 0, seen)


def test_routers_are_told_as_their_traces_tell_them(corpus):
    """By hand, from the library's own routings of the same windows."""
    stack = Stack(MODEL, TRAINING, RUNS, [corpus])
    told = stack.routers(2)
    ids = torch.cat([corpus.windows(d, TRAINING.seq_len, 2).ids_BS for d in corpus.domains])
    for n, run in enumerate(RUNS):
        model = stack.one(n)
        with torch.no_grad():
            routings = model(ids).routings
        for layer, r in enumerate(routings):
            gate_TE = torch.zeros_like(r.probs_TE)
            gate_TE.view(-1)[r.token_N * 4 + r.expert_N] = r.gate_N
            gate_TE = gate_TE / gate_TE.sum(1, keepdim=True)
            share_E = gate_TE.mean(0)
            by_hand = {
                "worth": (1 / gate_TE.square().sum(1)).mean(), "mass": 4 * share_E.max(),
                "load": 4 * r.load_E().max() / r.load_E().sum(), "parked": 4 * share_E.min(),
            }  # fmt: skip
            for name, value in by_hand.items():
                assert told[n][name][layer] == pytest.approx(float(value), rel=1e-4), (run, name)
    assert told[0]["worth"][0] > 1 > told[0]["parked"][0]


def test_a_bias_evens_out_the_load(corpus):
    runs = [Run("none", aux_coef=0.0), Run("bias", aux_coef=0.0, bias_step=0.005, sigmoid=True)]
    stack = Stack(MODEL, replace(TRAINING, steps=60, lr=1e-4), runs, [corpus])
    stack.train(say=lambda said: None)
    none, bias = (sum(row["load"][n] for row in stack.rows[-20:]) / 20 for n in (0, 1))
    assert bias < none - 0.1


def over_batch(routings):
    return torch.stack([load_balancing_loss(r) for r in routings]).mean()


def loss_by_library(config, run, corpus, gate, balance=over_batch):
    """Return what the trainer would minimise on the first batch, and its gradient's norm."""
    torch.manual_seed(run.seed)
    model = Mixtral(config)
    for layer in model.moe_layers:
        weight = layer.gate.weight
        layer.gate = gate()
        layer.gate.weight = weight
    batch = corpus.batch("train", TRAINING.batch_size, TRAINING.seq_len, seed=run.seed, step=0)
    out = model(batch.ids_BS)
    loss = cross_entropy(out.logits_BSV, batch.targets_BS)
    loss = loss + run.aux_coef * balance(out.routings)
    loss = loss + run.z_coef * torch.stack([router_z_loss(r) for r in out.routings]).mean()
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return loss.item(), torch.stack([g.norm() for g in grads]).norm().item()


@pytest.mark.parametrize("chunk", [0, 12, 24, 72])
def test_raw_gates_and_experts_that_choose_are_the_librarys(corpus, chunk):
    def gate():
        if chunk:
            return ExpertChoiceRouter(32, 4, capacity_factor=2, group_size=chunk)
        return TopKRouter(32, 4, 2, renormalize=False)

    run = Run("raw", raw=True, aux_coef=0.0 if chunk else 0.1, z_coef=0.1)
    stack = Stack(MODEL, TRAINING, [run], [corpus], chunk=chunk)
    total, _row, _ = stack.losses(*stack.batch(0))
    norm = torch.stack([g.norm() for g in torch.autograd.grad(total, stack.leaves)]).norm()
    assert (total.item(), norm.item()) == pytest.approx(
        loss_by_library(MODEL, run, corpus, gate), rel=1e-4
    )


def test_a_text_is_balanced_by_itself(corpus):
    def by_text(routings):
        texts = []
        for r in routings:
            keep_TE = torch.zeros_like(r.probs_TE).scatter(1, r.expert_N.view(-1, 2), 1.0)
            for k_SE, p_SE in zip(keep_TE.split(24), r.probs_TE.split(24), strict=True):
                texts.append(4 * (k_SE.mean(0) / 2 * p_SE.mean(0)).sum())
        return torch.stack(texts).mean()

    runs = [Run("text", by_text=True, aux_coef=1.0), Run("batch", aux_coef=1.0)]
    stack = Stack(MODEL, TRAINING, runs, [corpus])
    found = [
        loss_by_library(MODEL, runs[0], corpus, lambda: TopKRouter(32, 4, 2), balance)[0]
        for balance in (by_text, over_batch)
    ]
    total, row, _ = stack.losses(*stack.batch(0))
    assert row["balance"][0] > row["balance"][1]
    assert total.item() == pytest.approx(sum(found), rel=1e-5)


def test_a_balancing_loss_can_count_gates_and_no_choices(corpus):
    """An expert that is always the last choice then weighs as little as its gate does."""

    def by_gates(routings):
        terms = []
        for r in routings:
            chosen_TK = r.expert_N.view(-1, 2)
            gate_TK = r.probs_TE.gather(1, chosen_TK)
            gate_TE = torch.zeros_like(r.probs_TE).scatter(1, chosen_TK, gate_TK)
            mass_E = (gate_TE / gate_TE.sum(1, keepdim=True)).mean(0).detach()
            terms.append(4 * (mass_E * r.probs_TE.mean(0)).sum())
        return torch.stack(terms).mean()

    runs = [Run("gates", mass=True, aux_coef=1.0), Run("pairs", aux_coef=1.0)]
    stack = Stack(MODEL, TRAINING, runs, [corpus])
    found = [
        loss_by_library(MODEL, runs[0], corpus, lambda: TopKRouter(32, 4, 2), balance)
        for balance in (by_gates, over_batch)
    ]
    total, row, _ = stack.losses(*stack.batch(0))
    assert row["balance"][0] != row["balance"][1]
    assert stack.take()["norm"].tolist() == pytest.approx([norm for _, norm in found], rel=1e-4)
    assert total.item() == pytest.approx(sum(loss for loss, _ in found), rel=1e-5)


def test_a_bias_of_quantiles_is_the_librarys(corpus):
    run = Run("quantile", aux_coef=0.0, quantile=True, sigmoid=True)
    stack = Stack(MODEL, TRAINING, [run], [corpus])
    router = QuantileRouter(32, 4, 2)
    with torch.no_grad():
        router.weight.copy_(stack.leaves[stack.names.index(GATE)][0])
        embedded = stack.leaves[stack.names.index("embed_tokens.weight")][0]
        x_TD = embedded[torch.arange(100)]
        ids_NBS = torch.arange(100)[None, None]
        _, said = stack._route(x_TD[None], 0, router.weight[None], ids_NBS)
        router.train()
        router.update(router(x_TD).load_E())
        torch.testing.assert_close(said["next"][0], router.bias_E)
    stack.take()
    assert stack.bias[0].abs().max() > 0 and torch.isfinite(stack.bias[1]).all()


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(
    "how",
    [{}, {"shared": 1}, {"dense": (0,)}, {"dense": (1,)}, {"table": (0,)}, {"second": (1,)},
     {"sigmoid": True, "bias_step": 0.1}, {"quantile": True}, {"mass": True}],
)  # fmt: skip
def test_one_run_alone_is_the_stacks(corpus, monkeypatch, dense, how):
    """Chosen experts only, blocks of equal size, attention by products: the same function."""
    monkeypatch.setattr(alone, "ROWS", 16)  # so that experts have several blocks, and one rest
    layers = ("shared", "dense", "table", "second")
    first = {name: value for name, value in how.items() if name in layers}
    rest = {name: value for name, value in how.items() if name not in layers}
    run = Run("one", seed=1, z_coef=0.1, aux_coef=0.1, gate_scale=2.0, **rest)
    config = MODEL.dense() if dense else MODEL
    stacks = [kind(config, TRAINING, [run], [corpus], **first) for kind in (Stack, Alone)]
    for stack in stacks:
        stack.train(say=lambda said: None)
    ours, theirs = (stack.rows for stack in stacks)
    for mine, row in zip(ours, theirs, strict=True):
        for name in ("loss", "norm", "balance", "z", "load"):
            assert mine[name] == pytest.approx(row[name], rel=1e-4), (name, mine["step"])
    assert ours[-1]["bits"][0] == pytest.approx(theirs[-1]["bits"][0], rel=1e-4)


@pytest.mark.slow("compiles a step of the box's shape")
def test_one_run_alone_is_the_stacks_compiled(corpus):
    """As the stored runs were made: the box's shape, products in bfloat16 (if not slow here)."""
    training, one = replace(recipe.BRIEF, batch_size=8), [Run("one", gate_scale=4.0)]
    found = []
    for kind, fuse in ((Stack, False), (Alone, True)):
        stack = kind(recipe.MINI, training, one, [corpus], fuse=fuse)
        with nullcontext() if fuse else bfloat16_products("on", "cpu"):
            total, row, _ = stack.losses(*stack.batch(0))
            grads = torch.autograd.grad(total, stack.leaves, allow_unused=True)
        found.append((row["loss"].item(), dict(zip(stack.names, grads, strict=True))))
    torch._dynamo.reset()
    (loss, ours), (compiled, theirs) = found
    assert compiled == pytest.approx(loss, abs=1e-3)
    for name, grad in ours.items():
        if grad is not None:  # rounding in bfloat16: 2 to 3 % in the middle, compiled or not
            assert (theirs[name] - grad).norm() < 0.15 * grad.norm(), name


def test_alone_is_one_run_whose_tokens_choose(corpus):
    for runs, how in ((RUNS, {}), (RUNS[:1], {"chunk": 12})):
        with pytest.raises(ValueError, match="one run"):
            Alone(MODEL, TRAINING, runs, [corpus], **how)
    quantile = [Run("quantile", quantile=True)]
    for config, how in ((replace(MODEL, num_experts_per_tok=4), {}), (MODEL, {"chunk": 12})):
        with pytest.raises(ValueError, match="quantiles"):
            Stack(config, TRAINING, quantile, [corpus], **how)


def test_runs_that_are_kept_are_not_trained_again(corpus, tmp_path, monkeypatch, capsys):
    axis = recipe.Axis(MODEL, TRAINING, {"one": {}, "other": {"z_coef": 0.1}}, seeds=2)
    monkeypatch.setitem(recipe.AXES, "balance", axis)
    path = tmp_path / "balance.json"
    monkeypatch.setattr(recipe, "Alone", lambda *args, fuse, **kw: Alone(*args, **kw))
    whole = recipe.measure_alone("balance", path, corpus)
    assert [(row["name"], row["seed"]) for row in whole["runs"]] == [
        ("one", 0), ("one", 1), ("other", 0), ("other", 1)
    ]  # fmt: skip
    kept = json.loads(path.read_text())
    recipe.write(kept | {"runs": kept["runs"][1:]}, path)
    capsys.readouterr()
    recipe.measure_alone("balance", path, corpus)
    assert capsys.readouterr().out.splitlines()[0] == "one, seed 0"
    again = json.loads(path.read_text())
    assert [row["name"] for row in again["runs"]] == ["one", "one", "other", "other"]
    assert again["runs"][1:] == kept["runs"][1:]
    monkeypatch.setitem(recipe.AXES, "balance", replace(axis, training=replace(TRAINING, steps=6)))
    with pytest.raises(ValueError, match="another recipe"):
        recipe.measure_alone("balance", path, corpus)
    monkeypatch.setitem(recipe.AXES, "balance", axis)
    for other in ({"steps": 3}, {"machine": "NVIDIA H100"}):
        recipe.write(kept | other, path)
        with pytest.raises(ValueError, match="stopped or made on a GPU"):
            recipe.measure_alone("balance", path, corpus)
    recipe.write(kept | {"machine": "cpu, a core for each run, float32, torch"}, path)
    with pytest.raises(ValueError, match="another arithmetic"):
        recipe.measure_alone("balance", path, corpus)
    runs = {"one": {"quantile": True}}
    whole = replace(axis, runs=runs, model=replace(MODEL, num_experts_per_tok=4))
    monkeypatch.setitem(recipe.AXES, "balance", whole)
    with pytest.raises(ValueError, match="quantiles"):
        recipe.measure_alone("balance", tmp_path / "whole.json", corpus)
    monkeypatch.setitem(recipe.AXES, "balance", replace(axis, runs={"wild": {"lr": math.inf}}))
    with pytest.raises(ValueError, match="the loss of wild, seed 0, is not finite"):
        recipe.measure_alone("balance", tmp_path / "wild.json", corpus)
    assert not (tmp_path / "wild.json").exists()


@pytest.mark.parametrize("how", [{}, {"by_text": True}, {"sigmoid": True, "bias_step": 0.1}])
def test_a_step_can_be_recorded(corpus, how):
    """A recorded graph cannot ask the device a question, and a tensor without values neither."""
    stack = Stack(MODEL, TRAINING, [Run("one"), Run("other", **how)], [corpus])
    batch, now = stack.batch(0), torch.ones(3)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        row = stack._work(*map(mode.from_tensor, batch), mode.from_tensor(now))
    assert row["loss"].shape == (2,)


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile wants a C++ compiler")
def test_fused_parts_compute_the_same(corpus):
    plain, fused = (Stack(MODEL, TRAINING, RUNS, [corpus], fuse=fuse) for fuse in (False, True))
    for stack in (plain, fused):
        stack.train(say=lambda said: None)
    for mine, theirs in zip(plain.rows, fused.rows, strict=True):
        for name in ("loss", "norm", "balance"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4), name
    torch.testing.assert_close(plain.theta_NP, fused.theta_NP, rtol=1e-3, atol=1e-4)
