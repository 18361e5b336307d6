"""A product is the same product, whichever library makes it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moe_lite.fast import Linear, linear, onednn
from moe_lite.fast.onednn import prefers_onednn

HERE = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.skipif(
    not HERE, reason="this PyTorch carries no oneDNN"))], ids=["F.linear", "oneDNN"])  # fmt: skip
def library(request, monkeypatch):
    monkeypatch.setattr(onednn, "prefers_onednn", lambda: request.param)
    return request.param


@pytest.mark.parametrize("rows", [0, 1, 33, 700])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_is_the_product(library, rows, transposed):
    torch.manual_seed(0)
    x_RI = torch.randn(96, rows).t() if transposed else torch.randn(rows, 96)
    weight_OI = torch.randn(96, 40).t() if transposed else torch.randn(40, 96)
    expected = x_RI.double() @ weight_OI.double().t()
    with torch.no_grad():
        for out_RO in (None, torch.empty(rows, 40), torch.empty(rows, 40, dtype=torch.float64)):
            got_RO = linear(x_RI, weight_OI, out_RO)
            torch.testing.assert_close(got_RO.double(), expected, rtol=1e-4, atol=1e-4)
            assert out_RO is None or got_RO is out_RO


@pytest.mark.parametrize("shape", [(96,), (5, 96), (3, 200, 96), (0, 96)])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_a_linear_layer(library, shape, bias):
    torch.manual_seed(0)
    ours, theirs = Linear(96, 40, bias), nn.Linear(96, 40, bias)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(shape)
    both = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        out = layer(leaf)
        out.backward(torch.ones_like(out).cumsum(-1))
        both.append((out.detach(), leaf.grad, layer.weight.grad))
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_what_is_frozen_gets_no_gradient(library):
    x, weight = torch.randn(300, 96), torch.randn(40, 96)
    x.requires_grad_()
    linear(x, weight).sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(x.grad, weight.sum(0).expand_as(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_and_autocast_go_the_common_way(library, dtype):
    x, weight = torch.randn(300, 96, dtype=dtype), torch.randn(40, 96, dtype=dtype)
    assert linear(x, weight).equal(F.linear(x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x.float(), weight.float()).dtype == torch.bfloat16


def test_the_choice_is_made_once_and_by_the_machine():
    assert prefers_onednn() is prefers_onednn()
    assert HERE or not prefers_onednn()
