"""What chapter 06 says of the balancing loss, and the two experiments that it draws."""

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lite import losses
from moe_lite.course import ledger
from moe_lite.course.sweep import Outcome, Setting
from moe_lite.history import History
from moe_lite.routing import Routing


def route(logits_TE, K=1):
    top_TK, expert_TK = logits_TE.topk(K, dim=-1)
    return Routing.from_choices(logits_TE, logits_TE.softmax(-1), expert_TK, top_TK.softmax(-1))


def least(E):
    """Give the least loss of E experts with one choice: where h of them share the tokens."""
    return 7 / 8 if E == 2 else min(E / (h * (E - h + 1)) for h in range(1, E + 1))


@pytest.mark.parametrize("E", [3, 4, 8, 16])
def test_the_loss_can_be_as_low_as_said(E):
    busy = min(range(1, E + 1), key=lambda h: E / (h * (E - h + 1)))
    logits_TE = torch.zeros(busy, E)
    logits_TE[:, :busy] = -30.0
    logits_TE += 30.0001 * torch.eye(busy, E)
    assert losses.load_balancing_loss(route(logits_TE)).item() == pytest.approx(least(E), abs=1e-4)


@settings(deadline=None)
@given(E=st.integers(2, 8), T=st.integers(1, 12), data=st.data())
def test_and_no_lower(E, T, data):
    """Whatever the choices, and whoever else is believed in as much as the chosen one."""
    chosen = data.draw(st.lists(st.integers(0, E - 1), min_size=T, max_size=T))
    also = data.draw(
        st.lists(st.sets(st.integers(0, E - 1)), min_size=T, max_size=T)
    )  # a token spreads its belief evenly over its own expert and these
    logits_TE = torch.full((T, E), -30.0)
    for t, (own, others) in enumerate(zip(chosen, also, strict=True)):
        logits_TE[t, list(others)] = 0.0
        logits_TE[t, own] = 1e-4
    assert losses.load_balancing_loss(route(logits_TE)).item() >= least(E) - 1e-3


@pytest.fixture(scope="module")
def qiu():
    ledger.load("qiu2025")
    return sys.modules["experiments.qiu2025"]


@settings(deadline=None)
@given(seed=st.integers(0, 99))
def test_over_the_batch_is_the_loss_of_the_library(qiu, seed):
    generator = torch.Generator().manual_seed(seed)
    routings = [route(torch.randn(192, 8, generator=generator), 2) for _ in range(2)]
    torch.testing.assert_close(qiu.scoped(routings, "batch"), losses.load_balancing_loss(routings))


def test_within_each_text_is_the_mean_over_the_texts(qiu):
    logits_TE = torch.randn(192, 8, generator=torch.Generator().manual_seed(0))
    each = [losses.load_balancing_loss(route(part_TE, 2)) for part_TE in logits_TE.split(64)]
    routing = route(logits_TE, 2)
    torch.testing.assert_close(qiu.scoped([routing], "text"), torch.stack(each).mean())


def test_mixed_tokens_hide_that_texts_differ(qiu):
    lean_GE = 20.0 * torch.eye(3, 8)  # each text sure of an expert of its own
    routing = route(lean_GE.repeat_interleave(64, dim=0))
    torch.manual_seed(0)
    text, mixed, batch = (qiu.scoped([routing], scope).item() for scope in qiu.SCOPES)
    assert text == pytest.approx(8, abs=1e-3)
    assert batch == pytest.approx(8 / 3, abs=1e-3) == pytest.approx(mixed, abs=0.6)


class Domains:
    """Five domains, each with one token of its own."""

    domains = tuple("abcde")

    def windows(self, domain, seq_len, count):
        index = self.domains.index(domain)
        return type("Batch", (), {"ids_BS": torch.full((count, seq_len), index)})


class Told(torch.nn.Module):
    """Route each domain to the experts of a table."""

    def __init__(self, table):
        super().__init__()
        self.table = torch.tensor(table)

    def forward(self, ids_BS):
        scores_TE = torch.nn.functional.one_hot(self.table[ids_BS.flatten()], 8).float()
        return type("Output", (), {"routings": (route(scores_TE),)})


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ([0, 1, 2, 3, 4], 1.0),
        ([3, 3, 3, 3, 3], 0.0),
        ([0, 0, 1, 1, 1], (math.log(5) - 0.4 * math.log(2) - 0.6 * math.log(3)) / math.log(5)),
    ],
)
def test_what_an_expert_tells_of_the_domain(qiu, table, told):
    found = qiu.specialisation(Outcome(Told(table), History()), Domains())
    assert found["domain told by expert"] == pytest.approx(told, abs=1e-6)
    assert found["largest share of a domain"] == 1


def test_settings_differ_in_what_their_names_say(qiu):
    for name, setting in qiu.SETTINGS.items():
        scope, alpha = name.split(", ")
        assert setting.balance == scope and setting.training["aux_coef"] == float(alpha)
    ledger.load("lossfree2024_alpha")
    alphas = sys.modules["experiments.lossfree2024_alpha"]
    assert {n: s.training["aux_coef"] for n, s in alphas.SETTINGS.items()} == {
        "0": 0, "0.0001": 1e-4, "0.001": 1e-3, "0.01": 1e-2, "0.1": 0.1, "1": 1,
    }  # fmt: skip
    assert all(s.training["steps"] == 250 and s.router == Setting().router
               for s in alphas.SETTINGS.values())  # fmt: skip
