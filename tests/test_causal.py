"""Interventions change what they name, as the router would, and nothing else."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lite.config import MixtralConfig
from moe_lite.course.causal import ablate, ban, force, intervene, replay, steer, swap, top_k
from moe_lite.course.effects import Run, effect, replaced, rises, without_each
from moe_lite.course.tree import HierarchicalRouter
from moe_lite.layer import MoELayer
from moe_lite.model import Mixtral
from moe_lite.routers import (
    ExpertChoiceRouter,
    GShardRouter,
    HashRouter,
    NoisyTopKRouter,
    SigmoidBiasRouter,
    SwitchRouter,
    TopKRouter,
)

D, E, L, V = 16, 6, 3, 50
SIZES = dict(
    vocab_size=V, hidden_size=D, intermediate_size=24, num_hidden_layers=L, num_attention_heads=2,
    num_key_value_heads=1, num_local_experts=E, max_position_embeddings=64, initializer_range=0.5,
)  # fmt: skip
GATES = {
    "mixtral": lambda: TopKRouter(D, E, 2),
    "olmoe": lambda: TopKRouter(D, E, 3, renormalize=False),
    "noisy": lambda: NoisyTopKRouter(D, E, 2),
    "switch": lambda: SwitchRouter(D, E),
    "gshard": lambda: GShardRouter(D, E),
    "sigmoid": lambda: SigmoidBiasRouter(D, E, 2),
    "sigmoid sum": lambda: SigmoidBiasRouter(D, E, 2, renormalize=False),
    "capacity": lambda: TopKRouter(D, E, 2, capacity_factor=1.0, priority="gate"),
}


def tree(*sizes):
    return HierarchicalRouter(TopKRouter(D, 2, 1), [TopKRouter(D, 3, 1) for _ in range(2)])


def small(gate="mixtral", dtype=torch.float64, **sizes):
    torch.manual_seed(1)
    model = Mixtral(MixtralConfig(**{**SIZES, **sizes}))
    for layer in model.moe_layers:
        layer.gate = GATES[gate]() if isinstance(gate, str) else gate(D, E, V)
        for parameter in layer.gate.parameters():
            torch.nn.init.normal_(parameter)
        if hasattr(layer.gate, "bias_E"):
            layer.gate.bias_E.normal_(std=0.3)
    return model.to(dtype).eval()


def text(S=12, B=1, seed=0):
    return torch.randint(V, (B, S), generator=torch.Generator().manual_seed(seed))


def pairs(routing, t):
    """Give a token's kept experts with their gates."""
    keep_N = torch.ones_like(routing.token_N) if routing.keep_N is None else routing.keep_N
    own = (routing.token_N == t) & keep_N.bool()
    return dict(zip(routing.expert_N[own].tolist(), routing.gate_N[own].tolist(), strict=True))


def same(one, two):
    """Tell whether two routings are the same, to the bit."""
    return all(
        (a is None and b is None) or torch.equal(a, b)
        for a, b in (
            (getattr(one, name), getattr(two, name))
            for name in ("logits_TE", "token_N", "expert_N", "gate_N", "keep_N")
        )
    )


@pytest.mark.parametrize("nothing", [(), (force(0, 1, []), ban(1, 2, ()), ablate(2, 0, []))])
def test_nothing_changed_gives_the_same_bits(any_router, nothing):
    found = effect(small(any_router, torch.float32), text(B=2), *nothing)
    assert torch.equal(found.base.logits_BSV, found.changed.logits_BSV)
    assert all(map(same, found.base.routings, found.changed.routings))


@pytest.mark.parametrize("layer", range(L))
def test_ablation_reaches_who_used_the_expert_and_who_attends_to_them(any_router, layer):
    """Layer by layer and position by position; several texts, so that others stay whole."""
    model, ids_BS, seen = small(any_router), text(S=6, B=3), {}

    def run(*interventions):
        out, hooks = [], []
        for block in model.layers:
            hooks.append(
                block.register_forward_hook(lambda m, a, o: out.append(o[0].flatten(0, 1)))
            )
        with torch.no_grad(), intervene(model, *interventions):
            routings = model(ids_BS).routings
        for hook in hooks:
            hook.remove()
        return out, routings

    before, routings = run()
    routing = routings[layer]
    for e in range(E):
        used_T = torch.tensor([e in pairs(routing, t) for t in range(18)])
        after, changed = run(ablate(layer, e))
        for n in range(layer):
            assert torch.equal(before[n], after[n]) and same(routings[n], changed[n])
        differs_T = (before[layer] != after[layer]).any(1)
        assert torch.equal(differs_T, used_T)  # the layer itself: to the bit
        reached_T = (used_T.view(3, 6).cumsum(1) > 0).flatten()
        if model.moe_layers[0].gate.capacity_factor is None:  # else tokens meet in a queue
            for n in range(layer + 1, L):
                torch.testing.assert_close(
                    after[n][~reached_T], before[n][~reached_T], rtol=1e-9, atol=1e-9
                )
                assert (after[n] != before[n]).any(1)[used_T].all()
        seen[e] = int(used_T.sum())
    assert sum(seen.values())
    assert min(seen.values()) < 18 or routing.per_token == E


def by_hand(gate, logits_E, K, bias_E, *, force=None, ban=()):
    """Choose and weigh one token's experts, written out the long way."""
    sigmoid = gate.startswith("sigmoid")
    weight = [torch.sigmoid(x) if sigmoid else x.exp() for x in logits_E.double()]
    wish = [w + b for w, b in zip(weight, bias_E, strict=True)]
    order = sorted((e for e in range(E) if e not in ban), key=lambda e: -wish[e])
    chosen = order[:K]
    if force is not None and force not in chosen:
        chosen = [force, *order[: K - 1]]
    total = sum(weight[e] for e in chosen)
    if gate in ("olmoe", "switch"):
        total = sum(weight)
    elif gate == "sigmoid sum":
        total = 1
    return {e: pytest.approx(float(weight[e] / total), abs=1e-6) for e in chosen}


@pytest.mark.parametrize("gate", [g for g in GATES if g not in ("switch", "gshard", "capacity")])
def test_gates_are_what_the_router_would_give(gate):
    model, ids_BS = small(gate, torch.float32), text()
    plain = effect(model, ids_BS).base.routings[1]
    K = plain.per_token
    bias_E = getattr(model.moe_layers[1].gate, "bias_E", torch.zeros(E))
    for t in range(12):
        own = list(pairs(plain, t))
        assert pairs(plain, t) == by_hand(gate, plain.logits_TE[t], K, bias_E)
        for e in range(E):
            forced = effect(model, ids_BS, force(1, e, t)).changed.routings[1]
            assert pairs(forced, t) == by_hand(gate, plain.logits_TE[t], K, bias_E, force=e)
            wish_E = plain.logits_TE.sigmoid() + bias_E if "sig" in gate else plain.logits_TE
            wishes = [float(wish_E[t, i]) for i in pairs(forced, t)]
            assert wishes == sorted(wishes, reverse=True)  # best first, the forced one too
            banned = effect(model, ids_BS, ban(1, e, t)).changed.routings[1]
            assert pairs(banned, t) == by_hand(gate, plain.logits_TE[t], K, bias_E, ban=[e])
            for other in range(12):
                if other != t:
                    assert pairs(banned, other) == pairs(forced, other) == pairs(plain, other)
        for k in (1, E):
            fewer = effect(model, ids_BS, top_k(k, 1, t)).changed.routings
            assert pairs(fewer[1], t) == by_hand(gate, plain.logits_TE[t], k, bias_E)
            assert pairs(fewer[1], t - 1 if t else 5) == pairs(plain, t - 1 if t else 5)
            assert same(fewer[0], effect(model, ids_BS).base.routings[0])
        first, second = own[0], next(e for e in range(E) if e not in own)
        swapped = pairs(effect(model, ids_BS, swap(1, first, second, t)).changed.routings[1], t)
        assert swapped == {second: pairs(plain, t)[first]} | {
            e: g for e, g in pairs(plain, t).items() if e != first
        }
        gone = pairs(effect(model, ids_BS, ablate(1, first, t)).changed.routings[1], t)
        assert gone == pairs(plain, t) | {first: 0.0}


def test_forced_with_k_of_one_has_all_the_weight():
    found = effect(small(), text(), force(0, 4, tokens=[3]), top_k(1, 0, tokens=[3]))
    assert pairs(found.changed.routings[0], 3) == {4: 1.0}
    assert found.changed.routings[0].per_token is None


def test_top_k_in_every_layer_is_the_model_with_that_k():
    one, three = small(), small()
    for layer in three.moe_layers:
        layer.gate.top_k = 3
    ids_BS = text(B=2)
    found = effect(one, ids_BS, top_k(3))
    with torch.no_grad():
        assert torch.equal(found.changed.logits_BSV, three(ids_BS).logits_BSV)
    assert [r.per_token for r in found.changed.routings] == [3] * L


def test_a_swap_for_all_is_a_model_with_the_weights_exchanged():
    model, other, ids_BS = small(), small(), text(B=2)
    with torch.no_grad():
        for weight in other.moe_layers[1].experts.parameters():
            weight[[2, 5]] = weight[[5, 2]]
        found = effect(model, ids_BS, swap(1, 2, 5))
        torch.testing.assert_close(found.changed.logits_BSV, other(ids_BS).logits_BSV)
    assert not torch.equal(found.changed.logits_BSV, found.base.logits_BSV)


def test_a_ban_for_all_is_a_model_without_that_expert():
    model, other, ids_BS = small(), small(), text(B=2)
    with torch.no_grad():
        banned = effect(model, ids_BS, ban(2, 1)).changed.logits_BSV
        keep = [e for e in range(E) if e != 1]
        gate, old = TopKRouter(D, E - 1, 2).double(), other.moe_layers[2]
        gate.weight.copy_(old.gate.weight[keep])
        layer = MoELayer(gate, type(old.experts)(E - 1, D, 24).double())
        for name, weight in layer.experts.named_parameters():
            weight.copy_(getattr(old.experts, name)[keep])
        other.layers[2].block_sparse_moe = layer
        torch.testing.assert_close(banned, other(ids_BS).logits_BSV)


@pytest.mark.parametrize("gate", ["switch", "gshard", "capacity"])
def test_queues_are_made_anew(gate):
    """All tokens want expert 0, which takes its first ones; send one elsewhere, another enters."""
    model, ids_BS = small(gate), text()
    plain = effect(model, ids_BS).base.routings[0]
    load_E = plain.load_E()
    full = int(load_E.argmax())
    inside = [t for t in range(12) if full in pairs(plain, t)]
    changed = effect(model, ids_BS, ban(0, full, inside[0])).changed.routings[0]
    assert full not in pairs(changed, inside[0])
    assert changed.load_E().max() <= load_E.max()
    everyone = effect(model, ids_BS, force(0, full)).changed.routings[0]
    assert everyone.load_E()[full] == load_E.max()  # forced, but only as many as there are places
    assert (~everyone.keep_N).sum() > 0


@settings(deadline=None, max_examples=15)
@given(st.sampled_from(["mixtral", "olmoe", "sigmoid"]), st.data())
def test_who_is_not_named_keeps_experts_and_gates(gate, data):
    model, ids_BS = small(gate, torch.float32), text(B=2, S=5)
    named = data.draw(st.sets(st.integers(0, 9), max_size=4))
    e, f = data.draw(st.permutations(range(E)))[:2]
    made = [force(1, e, named), ban(1, f, named), top_k(data.draw(st.integers(1, 4)), 1, named),
            swap(1, e, f, named), ablate(1, e, named)]  # fmt: skip
    found = effect(model, ids_BS, *made)
    before, after = found.base.routings[1], found.changed.routings[1]
    for t in set(range(10)) - named:
        assert pairs(before, t) == pairs(after, t)
    for t in named:
        assert f in pairs(after, t) and pairs(after, t).get(e, 0.0) == 0.0  # forced, then swapped


def test_generation_can_be_changed_from_any_token_on():
    """Each new token of generate is routed as if the whole text had been run at once."""
    model, ids_BS = small(), text(S=6)
    for change in (force(1, 4, range(8, 14)), top_k(1, tokens=[2, 9]), swap(0, 1, 2)):
        with torch.no_grad(), intervene(model, change):
            made_BS = model.generate(ids_BS, 8, temperature=0)
            logits_BSV = model(made_BS).logits_BSV if change.tokens is None else None
        slow_BS = ids_BS
        for _ in range(8):
            inside = [t for t in change.tokens or () if t < slow_BS.shape[1]]
            tokens = None if change.tokens is None else tuple(inside)
            again = type(change)(**{**vars(change), "tokens": tokens})
            with torch.no_grad(), intervene(model, again):
                slow_BS = torch.cat([slow_BS, model(slow_BS).logits_BSV[:, -1:].argmax(-1)], 1)
        assert torch.equal(made_BS, slow_BS)
        if logits_BSV is not None:
            assert torch.equal(logits_BSV[:, 5:-1].argmax(-1), made_BS[:, 6:])
    assert not torch.equal(made_BS, model.generate(ids_BS, 8, temperature=0))


def test_of_several_texts_only_the_prompts_have_positions():
    model, ids_BS = small(), text(S=4, B=2)
    routed = []
    hook = model.moe_layers[0].register_forward_hook(lambda m, a, out: routed.append(out[1]))
    with intervene(model, ablate(0, 0, range(8)), ablate(0, 1, range(8))):
        model.generate(ids_BS, 3, temperature=0)
        prompt, *rest = routed
        assert not any(pairs(prompt, t).get(e) for t in range(8) for e in (0, 1))
        assert all(gate > 0 for r in rest for t in range(2) for gate in pairs(r, t).values())
    hook.remove()


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_nothing_stays_attached():
    model, ids_BS = small(), text()
    before = model(ids_BS).logits_BSV
    with pytest.raises(RuntimeError), intervene(model, ablate(0, 1), top_k(1)):
        assert hooks(model) == 2 * L
        raise RuntimeError
    assert hooks(model) == 0
    with pytest.raises(ValueError, match="token 12 is not among the 12 of the batch"):
        effect(model, ids_BS, force(1, 2, tokens=[3, 12]))
    model.train()
    effect(model, ids_BS, ban(0, 1))
    assert hooks(model) == 0 and model.training
    assert torch.equal(model(ids_BS).logits_BSV, before)


def test_gradients_flow_through_a_changed_routing():
    model = small()
    with intervene(model, force(1, 3), top_k(3, 0, [1]), ablate(2, 0)):
        model(text()).logits_BSV.square().mean().backward()
    assert model.moe_layers[1].gate.weight.grad[3].abs().sum() > 0
    assert model.moe_layers[2].experts.w1.grad[0].abs().sum() == 0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda: ablate(3, 0), "layer must be from 0 to 2, not 3"),
        (lambda: ablate(-1, 0), "layer must be from 0 to 2, not -1"),
        (lambda: ban(None, 2), "ban needs a layer"),
        (lambda: force(0, 6), "expert must be from 0 to 5, not 6"),
        (lambda: force(0, True), "expert must be from 0 to 5, not True"),
        (lambda: swap(0, 1, 9), "expert must be from 0 to 5, not 9"),
        (lambda: swap(0, 2, 2), "swap needs two experts, not 2 twice"),
        (lambda: top_k(0), "k must be from 1 to 6, not 0"),
        (lambda: top_k(7, 1), "k must be from 1 to 6, not 7"),
        (lambda: top_k(1.5), "k must be from 1 to 6, not 1.5"),
        (lambda: force(0, 1, tokens=-1), "token -1 cannot be"),
        (lambda: force(0, 1, tokens="all"), "tokens must be positions"),
        (lambda: force(0, 1, tokens=torch.ones(12) > 0), "tokens must be positions"),
        (lambda: force(0, 1, tokens=[0.5]), "tokens must be positions"),
        (lambda: force(0, 1, tokens=12), "token 12 is not among the 12"),
    ],
)
def test_what_cannot_be_done_is_said(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        effect(small(), text(), change())


@pytest.mark.parametrize(
    ("gate", "changes", "complaint"),
    [
        ("mixtral", [force(0, 1, 2), ban(0, 1)], "token 2: one expert is both forced and banned"),
        ("mixtral", [force(0, e, 2) for e in range(3)], "token 2: more experts are forced"),
        ("mixtral", [ban(0, e, 2) for e in range(5)], "token 2: fewer experts are left"),
        (
            lambda *sizes: ExpertChoiceRouter(D, E),
            [force(0, 1)],
            "ExpertChoiceRouter does not choose by one top-k",
        ),
        (tree, [top_k(2)], "HierarchicalRouter does not choose by one top-k"),
        (lambda *sizes: HashRouter(V, E), [ban(0, 1)], "fewer experts are left to choose from"),
    ],
)
def test_what_a_router_cannot_do_is_said(gate, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        effect(small(gate), text(), *changes)


def test_a_hash_router_can_be_forced():
    found = effect(small(lambda *sizes: HashRouter(V, E)), text(), force(1, 3))
    assert found.changed.routings[1].expert_N.tolist() == [3] * 12
    assert found.changed.routings[1].gate_N.unique().tolist() == [1.0]


def test_only_our_model_is_taken():
    with pytest.raises(ValueError, match=r"need moe_lite's Mixtral, not a Linear"):
        effect(torch.nn.Linear(2, 2), text(), ablate(0, 0))


def test_loss_is_that_of_each_token_given_those_before():
    model, ids_BS = small(), text(S=5, B=2)
    found = effect(model, ids_BS, ablate(0, 0))
    loss_BS = found.base.loss_T.view(2, 5)
    assert loss_BS[:, 0].isnan().all()
    expected = torch.nn.functional.cross_entropy(
        model(ids_BS).logits_BSV[:, :-1].flatten(0, 1).float(), ids_BS[:, 1:].flatten()
    )
    torch.testing.assert_close(loss_BS[:, 1:].mean(), expected)
    assert torch.equal(
        found.rise_T.nan_to_num(), (found.changed.loss_T - found.base.loss_T).nan_to_num()
    )


def test_an_intervention_reads_as_a_sentence():
    assert str(ablate(2, 5)) == "ablate expert 5 in layer 2, for all tokens"
    assert str(force(0, 1, tokens=7)) == "force expert 1 in layer 0, for token 7"
    assert (
        str(swap(1, 2, 3, range(9)))
        == "swap experts 2 and 3 in layer 1, for tokens 0, 1, 2, 3, 4, …"
    )
    assert str(top_k(1)) == "1 expert per token in every layer, for all tokens"


def test_another_answer_in_the_place_of_an_experts():
    """Zero is an ablation; mean and another's answer change nothing where there is one answer."""
    model, ids_BS = small(), text(B=2)
    zero = replaced(model, ids_BS, 1, 2, "zero")
    torch.testing.assert_close(zero.rise_T, effect(model, ids_BS, ablate(1, 2)).rise_T,
                               equal_nan=True)  # fmt: skip
    rises = [
        replaced(model, ids_BS, 1, 2, how).rise_T.nan_to_num() for how in ("mean", "resampled")
    ]
    assert all(rise_T.abs().max() > 1e-4 for rise_T in rises)
    assert not torch.allclose(*rises)
    with torch.no_grad():
        model.moe_layers[1].experts.w2[2] = 0  # it says zero to every token
    for how in ("zero", "mean", "resampled"):
        assert replaced(model, ids_BS, 1, 2, how).rise_T.nan_to_num().abs().max() < 1e-9


@pytest.mark.parametrize(
    ("where", "said"),
    [((3, 0, "mean"), "no expert 0 in layer 3"), ((0, -1, "mean"), "no expert -1"),
     ((0, 0, "median"), "not 'median'")],
)  # fmt: skip
def test_a_replacement_that_there_is_not(where, said):
    with pytest.raises(ValueError, match=said):
        replaced(small(), text(), *where)


def test_each_group_of_tokens_is_told_its_own_rise():
    """Two texts in one batch lose what each loses alone, and an expert nobody needs costs none."""
    model, ids_BS = small(), text(B=2)
    with torch.no_grad():
        model.moe_layers[2].experts.w2[4] = 0
    group_T = torch.arange(2).repeat_interleave(12)
    rise_LEG = without_each(model, Run.of(model, ids_BS), group_T)
    assert rise_LEG.shape == (L, E, 2)
    for group, ids_S in enumerate(ids_BS):
        alone_T = effect(model, ids_S[None], ablate(1, 2)).rise_T
        torch.testing.assert_close(rise_LEG[1, 2, group], alone_T.nanmean())
    assert rise_LEG[2, 4].abs().max() < 1e-9 < rise_LEG[0].abs().max()
    with pytest.raises(ValueError, match="3 groups do not fit 24 tokens"):
        rises(model, Run.of(model, ids_BS), group_T[:3])


# --- replay --------------------------------------------------------------------------------------


@torch.no_grad()
def test_its_own_choices_replayed_give_the_same_bits(any_router):
    model, ids_BS = small(any_router, torch.float32), text(B=2)
    plain = model(ids_BS)
    if any(routing.per_token is None for routing in plain.routings):  # expert choice and its like
        with pytest.raises(ValueError, match="one number of experts per token"):
            replay(model, plain.routings).__enter__()
        return
    with replay(model, plain.routings):
        again = model(ids_BS)
    assert torch.equal(plain.logits_BSV, again.logits_BSV)
    assert all(map(same, plain.routings, again.routings))
    assert torch.equal(model(ids_BS).logits_BSV, plain.logits_BSV)


@pytest.mark.parametrize("name", GATES)
def test_another_models_choices_are_taken_and_weighed_by_its_own_scores(name):
    """A model whose routers were drawn anew would choose otherwise: nearly every expert changes."""
    recorded, other, ids_BS = small(name), small(name), text(B=2)
    for layer in other.moe_layers:
        for parameter in layer.gate.parameters():
            torch.nn.init.normal_(parameter)
    routings = recorded(ids_BS).routings
    with replay(other, routings):
        out = other(ids_BS)
    for gate, then, now in zip(
        (x.gate for x in other.moe_layers), routings, out.routings, strict=True
    ):
        assert torch.equal(then.expert_N, now.expert_N)
        assert not torch.equal(then.logits_TE, now.logits_TE)
        if name in ("mixtral", "capacity"):
            own_TK = now.logits_TE.gather(1, now.expert_N.view(-1, gate.top_k))
            torch.testing.assert_close(now.gate_N, own_TK.softmax(1).flatten())
    chosen = [torch.equal(a.expert_N, b.expert_N) for a, b in
              zip(other(ids_BS).routings, routings, strict=True)]  # fmt: skip
    assert not any(chosen)
    out.logits_BSV.square().sum().backward()
    reached = [layer.gate.weight.grad for layer in other.moe_layers]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in reached)


def test_replay_leaves_nothing_behind_and_says_what_cannot_be():
    model, ids_BS = small(), text()
    routings = model(ids_BS).routings
    with replay(model, routings), pytest.raises(ValueError, match="12 tokens .* 5 are read"):
        model(ids_BS[:, :5])
    with pytest.raises(ValueError, match="2 routings cannot be replayed in 3 layers"):
        replay(model, routings[:2]).__enter__()
    with intervene(model, top_k(1, layer=1, tokens=[3])):
        uneven = model(ids_BS).routings
    with pytest.raises(ValueError, match="one number of experts per token"):
        replay(model, uneven).__enter__()
    with replay(model, routings), replay(model, routings):
        pass
    assert all("choose" not in vars(layer.gate) for layer in model.moe_layers)
    wrong = [replace(routing, expert_N=routing.expert_N * 0) for routing in routings]
    with replay(model, wrong), pytest.raises(ValueError, match="cannot be replayed"):
        model(ids_BS)


# --- steering ------------------------------------------------------------------------------------


@torch.no_grad()
def test_steering_puts_experts_first_and_last_and_weighs_them_so():
    model, ids_BS = small(), text(B=2)
    plain = model(ids_BS)
    with steer(model, up=[(1, 3)], down=[(1, 0), (2, 5)], margin=0.5):
        out = model(ids_BS)
    assert same(plain.routings[0], out.routings[0])  # a layer that nobody named
    first, second = out.routings[1].expert_N.view(-1, 2).T
    assert (first == 3).all() and (second != 0).all() and (out.routings[2].expert_N != 5).all()
    assert (plain.routings[1].expert_N == 0).any() and (plain.routings[2].expert_N == 5).any()
    # The best of the others lies the margin below, whatever it was: weights 1 : exp(-0.5) or less.
    gate_TK = out.routings[1].gate_N.view(-1, 2)
    raw_TE = plain.routings[1].logits_TE.masked_fill(torch.eye(E)[3].bool(), -torch.inf)
    best = (raw_TE.argmax(1) == plain.routings[1].logits_TE.argmax(1)) & (raw_TE.argmax(1) != 0)
    assert best.any()
    near = torch.tensor([1.0, -0.5 + 1]).softmax(0).double()
    torch.testing.assert_close(gate_TK[best], near.expand(int(best.sum()), 2), rtol=1e-6, atol=1e-6)
    assert (gate_TK[:, 0] >= near[0] - 1e-6).all()
    assert torch.equal(model(ids_BS).logits_BSV, plain.logits_BSV)


@pytest.mark.parametrize(
    ("gate", "how", "message"),
    [
        ("mixtral", dict(up=[(L, 0)]), "no expert 0 in layer 3"),
        ("mixtral", dict(down=[(0, -1)]), "no expert -1 in layer 0"),
        ("mixtral", dict(up=[(1, 2)], down=[(1, 2)]), "expert 2 of layer 1 is to go up and down"),
        ("sigmoid", dict(up=[(1, 2)]), "SigmoidBiasRouter has other scores"),
    ],
)
def test_what_cannot_be_steered_is_said(gate, how, message):
    model = small(gate)
    with pytest.raises(ValueError, match=message), steer(model, **how):
        model(text())
