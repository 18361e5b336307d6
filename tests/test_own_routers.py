"""Two routers as a reader would write them, and every other: nothing asks for a router's type.

The list is in conftest.py. A test with ``any_router`` runs with each, one with ``own_router`` with
a subclass that scales its gates by 2.5 and a router from scratch.
"""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

from moe_lite import hf, routers
from moe_lite.config import MixtralConfig
from moe_lite.course import eras
from moe_lite.course.causal import ablate, ban, force, intervene, swap, top_k
from moe_lite.course.data import load_tokenizer, pieces
from moe_lite.course.effects import effect
from moe_lite.course.film import Film
from moe_lite.course.sweep import Setting, sweep
from moe_lite.course.tree import HierarchicalRouter
from moe_lite.course.widgets import RoutingExplorer
from moe_lite.fast import BACKENDS
from moe_lite.model import Mixtral
from moe_lite.routing import Routing
from moe_lite.trace import record

PACKAGE = Path(__file__).resolve().parent.parent / "moe_lite"
D, E = 16, 6
CONFIG = MixtralConfig(
    vocab_size=4096, hidden_size=D, intermediate_size=16, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, num_local_experts=E, num_experts_per_tok=2,
    max_position_embeddings=64, initializer_range=0.5,
)  # fmt: skip
TEXT = "To be, or not to be: that is the question."


def model_with(make) -> Mixtral:
    torch.manual_seed(1)
    model = Mixtral(CONFIG)
    for layer in model.moe_layers:
        layer.gate = make(D, E, CONFIG.vocab_size)
        for weight in layer.gate.parameters():
            nn.init.normal_(weight)
        if hasattr(layer.gate, "bias_E"):
            layer.gate.bias_E.normal_(std=0.3)
    return model.eval()


def text(S=12, B=1):
    return torch.randint(99, (B, S), generator=torch.Generator().manual_seed(0))


def same(one: Routing, other: Routing) -> bool:
    """Tell whether two routings are the same, to the bit."""
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(a.equal(b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_every_router_is_in_the_list_of_the_tests(router_list):
    classes = {make.__self__ for make in routers.ROUTERS.values()} | {HierarchicalRouter}
    assert len(classes) == 8
    assert classes <= {type(make(D, E, 9)) for make in router_list.values()}


def test_readmes_table_is_what_the_code_gives():
    readme = eras.README.read_text(encoding="utf-8")
    assert eras.fill(readme) == readme, "write it with python -m moe_lite.course.eras"
    rows = [line.split(" | ") for line in eras.table().splitlines()[2:]]
    assert {row[1].strip("`") for row in rows} == {
        *(make.__self__.__name__ for make in routers.ROUTERS.values()), "HierarchicalRouter"
    }  # fmt: skip
    assert eras.changes(routers.SwitchRouter) == []
    assert eras.changes(routers.HashRouter) == ["score"]
    assert sum(int(row[4].strip(" |")) for row in rows) < 250


def test_nobody_asks_a_router_for_its_type():
    """Outside routers.py and tree.py no isinstance, issubclass or type() meets a router's name."""
    names = {n for n in dir(routers) if n.endswith("Router")} | {"HierarchicalRouter"}
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.name in ("routers.py", "tree.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            asked: list[ast.AST] = []
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "isinstance",
                "issubclass",
            ):
                asked = [node.args[1]]
            elif isinstance(node, ast.Compare):
                asked = [node.left, *node.comparators]
            elif isinstance(node, ast.MatchClass):
                asked = [node.cls]
            words = {word for part in asked for word in ast.unparse(part).replace(".", " ").split()}
            found += [f"{path.name}:{node.lineno}"] if words & names else []
    assert found == []


def test_the_trace_is_what_the_layers_answered(any_router):
    model, ids_BS = model_with(any_router), text(B=2)
    with torch.no_grad(), record(model) as recorded:
        routings = model(ids_BS).routings
    assert all(map(same, recorded.trace.layers, routings))


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "triton"])
def test_every_backend_takes_a_readers_router(own_router, backend):
    one, other = model_with(own_router), model_with(own_router)
    for layer in other.moe_layers:
        layer.backend = backend
    for layer in one.moe_layers:
        layer.backend = "loop"
    torch.testing.assert_close(one(text()).logits_BSV, other(text()).logits_BSV)


SCALE = {"Scaled": 2.5, "Cosine": 1.0}


@pytest.mark.parametrize(
    "change", [ban(1, 2, [3, 4]), force(1, 2, [3, 4]), top_k(1, 1, [3, 4]), top_k(4, 1, [3, 4]),
               swap(1, 2, 0, [3, 4]), ablate(1, 2, [3, 4])], ids=str,
)  # fmt: skip
def test_a_readers_router_keeps_its_own_weights_under_interventions(own_router, change):
    model, ids_BS = model_with(own_router), text()
    found = effect(model, ids_BS, change)
    before, after = found.base.routings[1], found.changed.routings[1]
    scale, T = SCALE[type(model.moe_layers[1].gate).__name__], before.num_tokens
    for t in range(T):
        a, b = ((r.expert_N[r.token_N == t], r.gate_N[r.token_N == t]) for r in (before, after))
        if t not in (3, 4):
            assert a[0].equal(b[0]) and a[1].equal(b[1])  # to the bit
        elif change.kind != "ablate":
            assert float(b[1].sum()) == pytest.approx(scale)
        if t in (3, 4) and change.kind == "ban":
            assert 2 not in b[0]
        if t in (3, 4) and change.kind == "force":
            assert 2 in b[0]
        if t in (3, 4) and change.kind == "top_k":
            assert len(b[0]) == change.k
            best = before.probs_TE[t].topk(change.k)
            assert b[0].equal(best.indices)
            torch.testing.assert_close(b[1], scale * best.values / best.values.sum())


def test_a_film_replays_any_router(any_router, tmp_path):
    model, ids_BS = model_with(any_router), text(B=2)
    shown = pieces(load_tokenizer(), ids_BS.flatten().tolist())
    film = Film(ids_BS, torch.zeros_like(ids_BS), ("a",), shown, [0, 5])
    assert film.take(model, 0) and film.take(model, 5)
    film.save(tmp_path / "film.safetensors")
    back = Film.load(tmp_path / "film.safetensors")
    assert back.steps == [0, 5] and Film.load(tmp_path / "film.safetensors", until=3).steps == [0]
    with torch.no_grad():
        routings = model(ids_BS).routings
    for replayed, routing in zip(back.trace(5).layers, routings, strict=True):
        assert replayed.per_token == routing.per_token
        assert (replayed.expert_N == routing.expert_N).float().mean() > 0.95  # ties at half
        torch.testing.assert_close(replayed.gates_TE(), routing.gates_TE(), atol=3e-3, rtol=3e-3)
    widget = RoutingExplorer(film=back)
    widget.set_state({"frame": 0})
    assert same(widget.trace.layers[0], back.trace(0).layers[0])


def test_the_explorer_answers_for_a_readers_router(own_router):
    model = model_with(own_router)
    widget = RoutingExplorer(TEXT, model=model).precompute(limit=2)
    assert len(widget.answers) > 3 and not any("error" in a for a in widget.answers.values())
    found = widget.ask(ban(0, 1), force(1, 3, tokens=4), top_k(1, 1, tokens=5))
    again = effect(model, torch.tensor([load_tokenizer().encode(TEXT).ids]), *found.interventions)
    assert torch.equal(found.changed.logits_BSV, again.changed.logits_BSV)


def test_save_refuses_what_the_layout_cannot_hold(own_router, tmp_path):
    model = model_with(own_router)
    name = type(model.moe_layers[0].gate).__name__
    with pytest.raises(ValueError, match=rf"router of layers\.0\.block_sparse_moe: {name}\(") as e:
        hf.save(model, tmp_path / "new")
    assert "\n" not in str(e.value) and not list(tmp_path.iterdir())


def test_only_what_is_exactly_mixtrals_says_so(any_router, request):
    router = any_router(D, E, 9)
    exact = request.node.callspec.id in ("top-k", "top-k, scaled")
    assert router.fits_mixtral == exact


def test_a_readers_router_trains_in_a_sweep(own_router):
    short = {"steps": 2, "batch_size": 2, "seq_len": 16, "warmup": 1}
    named = {"mine": lambda c, **o: own_router(c.hidden_size, c.num_local_experts, c.vocab_size)}
    found = sweep({"ours": Setting("mine", training=short)}, [0], routers=named, max_bytes=200_000)
    assert 6 < found["loss at ours"][0] < 10 and found["diverged at ours"] == [None]


def test_a_name_puts_a_router_into_the_registry():
    class Mine(routers.TopKRouter, name="mine"):
        pass

    try:
        model = Setting("mine", {"renormalize": False}).build()
        gate = model.moe_layers[0].gate
        assert type(gate) is Mine and not gate.renormalize and gate.top_k == 2
    finally:
        del routers.ROUTERS["mine"]


class Plain(nn.Module):
    """A reader's that is no Router: only a forward."""

    def __init__(self, *sizes):
        super().__init__()
        self.inner = routers.TopKRouter(D, E, 2)

    def forward(self, x_TD, *, mask_T=None, ids_T=None):
        return self.inner(x_TD)


def test_a_plain_module_runs_and_is_traced_filmed_swapped_and_ablated():
    model, ids_BS = model_with(Plain), text()
    with torch.no_grad(), record(model) as recorded:
        model(ids_BS, torch.ones(1, 12).bool())
    assert len(recorded.trace.layers) == 2
    found = effect(model, ids_BS, swap(0, 1, 2), ablate(1, 0))
    assert not found.changed.routings[1].gates_TE()[:, 0].any()
    for change in (ban(0, 1), force(0, 1), top_k(1)):
        with pytest.raises(ValueError, match="Plain does not choose by one top-k of scores"):
            effect(model, ids_BS, change)
    effect(model, ids_BS, ban(0, 1, tokens=[]))  # which asks nothing of it
    with pytest.raises(ValueError, match=r"cannot hold"):
        hf.save(model, Path("never"))


def test_a_router_that_looks_past_its_scores_is_found_out():
    class Stubborn(routers.TopKRouter):
        def choose(self, scores, k=None):
            best_T1 = scores.logits_TE.topk(1).indices  # not choose_TE
            return scores.routing(best_T1, torch.ones_like(best_T1, dtype=torch.float32))

    model = model_with(lambda D, E, V: Stubborn(D, E))
    with pytest.raises(ValueError, match="Stubborn does not choose by one top-k of scores"):
        effect(model, text(), force(0, 1))


def test_interventions_in_two_blocks_add_up_and_leave_nothing():
    model, ids_BS = model_with(lambda D, E, V: routers.TopKRouter(D, E, 2)), text()
    with torch.no_grad():
        plain, (routing, _) = (out := model(ids_BS)).logits_BSV, out.routings
        one, two = routing.expert_N[:2].tolist()
        both = effect(model, ids_BS, ban(0, one), ban(0, two)).changed.logits_BSV
        with intervene(model, ban(0, one)):
            with intervene(model, ban(0, two)):
                assert torch.equal(model(ids_BS).logits_BSV, both)
            assert not torch.equal(model(ids_BS).logits_BSV, both)
        assert torch.equal(model(ids_BS).logits_BSV, plain)
    assert not any("choose" in vars(layer.gate) for layer in model.moe_layers)
