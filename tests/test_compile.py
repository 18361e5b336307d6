"""torch.compile takes the model whole: no graph breaks, and the same numbers and gradients."""

import pytest
import torch

from moe_lite.config import MixtralConfig
from moe_lite.model import Mixtral

CONFIG = MixtralConfig(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, num_local_experts=4, max_position_embeddings=16,
)  # fmt: skip


@pytest.mark.parametrize("training", [False, True])
def test_a_compiled_model_is_the_same_in_one_graph(training):
    """Traced and differentiated as for the default backend, whose C++ would take a minute more."""
    model, ids_BS = Mixtral(CONFIG), torch.randint(0, 40, (2, 12))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = []
    for way in (model, compiled):
        with torch.set_grad_enabled(training):
            logits_BSV = way(ids_BS).logits_BSV
        numbers = [logits_BSV.detach()]
        if training:
            model.zero_grad()
            logits_BSV.logsumexp(-1).sum().backward()
            numbers += [parameter.grad.clone() for parameter in model.parameters()]
        found.append(numbers)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs, ours)
