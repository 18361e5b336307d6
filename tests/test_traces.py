"""Traces in files: what is saved comes back, and a table from elsewhere becomes a trace."""

from dataclasses import replace

import pytest
import torch

from moe_lite import ExpertChoiceRouter, Mixtral, MixtralConfig, NoisyTopKRouter, SigmoidBiasRouter
from moe_lite.course import traces
from moe_lite.trace import RoutingTrace, record

SIZES = MixtralConfig(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, num_local_experts=6,
)  # fmt: skip
ROUTERS = {
    "top-k": None,
    "noisy": lambda c: NoisyTopKRouter(16, 6, 2),
    "biased": lambda c: SigmoidBiasRouter(16, 6, 2),
    "experts choose": lambda c: ExpertChoiceRouter(16, 6),
}


def equal(a, b):
    return a.equal(b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS)
def test_a_trace_comes_back_as_it_was(router, tmp_path):
    torch.manual_seed(0)
    model, mask = Mixtral(SIZES, router=router), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    with record(model) as rec, torch.no_grad():
        model(torch.arange(8).view(2, 4), mask)
    trace = replace(rec.trace, tokens=[*"\udc80 «»\n\tzy"], rules=("softmax", "a rule"))
    traces.save(trace, tmp_path / "a.safetensors")
    again = traces.load(tmp_path / "a.safetensors")
    assert again.tokens == ["?", *trace.tokens[1:]]  # half a character has no UTF-8
    for name in ("layer_names", "source", "rules", "text_T", "position_T"):
        assert equal(getattr(trace, name), getattr(again, name)), name
    for mine, other in zip(trace.layers, again.layers, strict=True):
        for name, part in vars(mine).items():
            assert equal(part, getattr(other, name)), name


def test_unknown_scores_stay_unknown(tmp_path):
    torch.manual_seed(0)
    model = Mixtral(SIZES)
    with record(model) as rec:
        model(torch.arange(4)[None])
    nan_TE = torch.full((4, 6), torch.nan)
    hidden = replace(rec.trace.layers[0], logits_TE=nan_TE, probs_TE=nan_TE)
    traces.save(RoutingTrace([*"abcd"], (hidden,), ("0",), "it"), tmp_path / "a.safetensors")
    assert traces.load(tmp_path / "a.safetensors").layers[0].probs_TE.isnan().all()


TABLE = """token,layer,expert,weight,text,more
0,0,3,0.75,To,x
0,0,1,0.25,To,x
1,0,1,0.5, be,x
1,0,4,0.5, be,x
1,10,0,1.0, be,x
0,10,2,-0.5,To,x
0,9,2,1,To,x
"""


def test_a_table_becomes_a_trace(tmp_path):
    (tmp_path / "it.csv").write_text(TABLE)
    trace = traces.from_csv(tmp_path / "it.csv")
    assert trace.tokens == ["To", " be"] and trace.layer_names == ("0", "9", "10")
    first, _, last = trace.layers
    assert first.gates_TE().tolist() == [[0, 0.25, 0, 0.75, 0], [0, 0.5, 0, 0, 0.5]]
    assert first.expert_N.tolist() == [3, 1, 1, 4] and first.per_token == 2  # best first
    assert last.per_token == 1 and trace.layers[1].per_token is None
    assert first.probs_TE.isnan().all() and all("unknown" in rule for rule in trace.rules)
    spaced = TABLE.replace(",", ", ", 4).replace("1,10,", "1, 10 ,").replace("0,To", "0,", 1)
    (tmp_path / "spaced.csv").write_text(spaced, encoding="utf-8-sig")
    same = traces.from_csv(tmp_path / "spaced.csv")
    assert (same.tokens, same.layer_names) == (trace.tokens, trace.layer_names)
    wide = traces.from_csv(tmp_path / "it.csv", ["a", "b"], num_experts=8)
    assert wide.tokens == ["a", "b"] and wide.layers[0].num_experts == 8
    traces.save(trace, tmp_path / "again.safetensors")
    assert traces.load(tmp_path / "again.safetensors").layers[0].gates_TE().equal(first.gates_TE())


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("weight,", "gate,", "the first line must name weight"),
        ("0,0,3,", "0,0,-3,", "line 2: expert must be a whole number from 0, not '-3'"),
        ("0.75", "nan", "line 2: weight must be a finite number, not 'nan'"),
        ("0.75", "", "line 2: weight must be a finite number, not ''"),
        ("0,0,1,", "0,0,3,", "line 3: layer 0 has this choice already"),
        ("0,0,3,", "7,0,3,", "token 7 is none of 3: they are counted from 0"),
        ("0,0,3,", "0,0,70000,", "expert 70000 is none of 65535"),
        (TABLE[TABLE.index("\n") :], "\n", "there is no row"),
        ("text,more", "text,expert", "the first line names expert twice"),
        ("To,x", "To, be,x", "line 2: more than the 6 columns of the first line"),
        ("To,x", "Ta,x", "line 3: token 0 was 'Ta' before"),
        (" be,x", '" be,x', "not a CSV table"),
        ("1,10,0", "1, ,0", "line 6: layer must be a number or a name, not ' '"),
    ],
)
def test_a_table_that_cannot_be_is_a_sentence(old, new, complaint, tmp_path):
    (tmp_path / "it.csv").write_text(TABLE.replace(old, new, 1))
    with pytest.raises(ValueError, match=complaint):
        traces.from_csv(tmp_path / "it.csv")


def test_what_is_no_trace_is_said(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="is not a trace: its metadata has no 'moe_lite.trace'"):
        traces.load(tmp_path / "a.safetensors")
