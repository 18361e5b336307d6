"""Who can be traced: every sparse family of transformers, its experts hooked from another side.

What arrives at the experts is taken here by wrapping their forward, and the choice is made again
from the recorded scores by this file's own top-k.
"""

import inspect
import re
import warnings

import pytest
import torch

from moe_lite.trace import record
from tests import families

transformers = pytest.importorskip("transformers")
IDS = torch.arange(3, 21).view(2, 9)
SCORES = {
    "softmax": lambda x: x.softmax(-1),
    "sigmoid": torch.sigmoid,
    "sqrt softplus": lambda x: torch.nn.functional.softplus(x).sqrt(),
}


def spy(model):
    """Wrap each experts' forward and keep (index, weight)."""
    seen = {}
    for name, module in model.named_modules():
        words = list(inspect.signature(module.forward).parameters)
        if "xpert" not in type(module).__name__ or len(words) < 3 or words[0] != "hidden_states":
            continue

        def forward(*args, name=name, own=module.forward, **kwargs):
            bound = list(inspect.signature(own).bind(*args, **kwargs).arguments.values())
            seen.setdefault(name.rpartition(".")[0] or name, []).append(
                (bound[1].clone(), bound[2].clone())
            )
            return own(*args, **kwargs)

        vars(module)["forward"] = forward
    return seen


def received(index, weight, E):
    """Spread what experts were handed over a (T, E) matrix of weights, and one of choices."""
    index, weight = index.reshape(-1, index.shape[-1]), weight.reshape(-1, weight.shape[-1]).float()
    if index.shape != weight.shape:
        return weight * index, index.bool()
    zero = torch.zeros(len(index), E)
    return zero.scatter_add(1, index.long(), weight), zero.scatter(1, index.long(), 1.0).bool()


def follows(routing, rule, slack):
    """Choose again from the recorded scores, bias and groups as the rule says."""
    chosen = torch.zeros_like(routing.logits_TE).bool()
    chosen[routing.token_N, routing.expert_N] = True
    some = routing.gates_TE().ne(0).sum(-1) == chosen.sum(-1)  # no skipped one among them
    name = re.split(r" \+|,|;", rule)[0]
    scores = routing.logits_TE if "of the logits" in rule else SCORES[name](routing.logits_TE)
    if "+ bias" in rule:
        scores = scores + routing.bias_E
    if limit := re.search(r"(\d+) of (\d+) groups by top (\d)", rule):
        kept, groups, best = map(int, limit.groups())
        of = scores.view(len(scores), groups, -1)
        rank = of.sort(-1, descending=True).values[..., :best].sum(-1)
        lowest = rank.sort(-1, descending=True).values[:, kept - 1 : kept]
        scores = of.masked_fill((rank < lowest)[..., None], -torch.inf).flatten(1)
    for row, mine in zip(scores[some], chosen[some], strict=True):
        if mine.any() and not mine.all() and row[mine].min() < row[~mine].max() - slack:
            return False
    return True


def probe(name, dtype=torch.float32):
    """Return what became of a family: (verdict, rules); a verdict is traced, refused or unbuilt."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = families.build(name).to(dtype)
            kwargs = {}
            if model.config.is_encoder_decoder:
                model = model.get_encoder()
            with torch.no_grad():
                model(IDS, **kwargs)
        except Exception as error:  # theirs, on sizes or a type that it is not made for
            return "unbuilt", [f"{type(error).__name__}: {str(error)[:60]}"]
    seen = spy(model)
    try:
        with record(model) as rec, torch.no_grad():
            model(IDS, **kwargs)
    except ValueError as error:
        return "refused", [str(error)]
    trace = rec.trace
    for layer, routing, rule in zip(trace.layer_names, trace.layers, trace.rules, strict=True):
        layer, _, number = layer.partition(", pass ")
        if layer in seen:  # not Llama 4's, whose experts are handed tokens alone
            weight_TE, chosen_TE = received(*seen[layer][int(number or 1) - 1], routing.num_experts)
            if chosen_TE.shape[1] < routing.num_experts:
                weight_TE, chosen_TE = (
                    torch.nn.functional.pad(x, (0, routing.num_experts - x.shape[1]))
                    for x in (weight_TE, chosen_TE)
                )
            mine_TE = torch.zeros_like(chosen_TE)
            mine_TE[routing.token_N, routing.expert_N] = True
            assert torch.equal(mine_TE, chosen_TE), f"{name} {layer}: wrong experts"
            assert torch.equal(routing.gates_TE(), weight_TE), f"{name} {layer}: wrong gates"
        if rule.startswith("scores unknown"):
            assert routing.probs_TE.isnan().all(), f"{name} {layer}"
            continue
        sums_T = routing.probs_TE.sum(-1)
        assert torch.allclose(sums_T, torch.ones_like(sums_T), atol=1e-4), f"{name} {layer}"
        if "unknown" not in rule:
            slack = 4 * torch.finfo(dtype).eps + 1e-5
            assert follows(routing, rule, slack), f"{name} {layer}: unexplained choice, {rule}"
    return "traced", sorted(set(trace.rules))


# Those looked at so far; the rest of families.names(), bfloat16 and float16 are still to come.
SEEN = re.compile(
    "mixtral|olmoe|deepseek_v|glm4|gpt_oss|gemma4|qwen3_moe|zaya|phimoe|hy_v3|jetmoe|inkling|"
    "kolibri|llama4|switch|nllb"
)


@pytest.mark.parametrize("dtype", [torch.float32], ids=str)
@pytest.mark.parametrize("name", [name for name in families.names() if SEEN.search(name)])
def test_a_family_is_traced_as_its_experts_received(name, dtype):
    verdict, said = probe(name, dtype)
    if verdict == "unbuilt":
        pytest.skip(said[0])
    if verdict == "refused":
        assert re.search("nothing to record at|reads another text", said[0]), said
    elif dtype == torch.float32:
        # The table's families are explained; a new reason to say "unknown" is to be looked at.
        assert name in UNKNOWN or not any("unknown" in rule for rule in said), said


UNKNOWN = {"phimoe": "its second weight is of another softmax", "nllb_moe": "a mask as indices",
           "deepseek_v4": "the first layers look the experts up by token"}  # fmt: skip
