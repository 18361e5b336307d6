# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercises 00: What happens to one token?
#
# Four small exercises for the chapter [What happens to one
# token?](../notebooks/00_one_token.ipynb), to get used to the way they work and to read a routing
# with your own code.
#
# | | exercise | difficulty | importance | minutes |
# |---|---|---|---|---|
# | 1 | The first expert | ●○○○○ | ●●●●● | 5 |
# | 2 | The way through the layers | ●○○○○ | ●●●○○ | 5 |
# | 3 | The load | ●○○○○ | ●●●●● | 5 |
# | 4 | How much of the model was awake? | ●●○○○ | ●●●●○ | 10 |

# %%
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from moe_lite import Routing, RoutingTrace, hf, trace
from moe_lite.course import checks, data

# %% [markdown]
# A trace to try things on: six layers, each with its `Routing`.

# %%
tokenizer = data.load_tokenizer()
model = hf.load_pretrained("mixtral-mini").eval()
ids_BS = torch.tensor([tokenizer.encode("To be, or not to be: def f(x, y): return 3 + 4").ids])
with torch.no_grad(), trace.record(model, partial(data.pieces, tokenizer)) as recorded:
    model(ids_BS)
example = recorded.trace
print(*example.tokens, sep="|")
print("pairs of layer 0, (token, expert, gate):")
for pair in list(
    zip(
        *(getattr(example.layers[0], n).tolist() for n in ("token_N", "expert_N", "gate_N")),
        strict=True,
    )
)[:6]:
    print(" ", pair)

# %% [markdown]
# ## 1. The first expert
#
# *Difficulty ●○○○○ · importance ●●●●● · 5 minutes*
#
# A routing is a flat list of pairs: pair $n$ says that token `token_N[n]` goes to expert
# `expert_N[n]` with the weight `gate_N[n]`. With four experts for each token there are four times
# as many pairs as tokens, a token's own in any order. Which expert gets most of a given token?
#
# <details>
# <summary>Hint 1</summary>
#
# `routing.token_N == token` is true for exactly the pairs you want.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# A tensor can be indexed by such a mask: `routing.expert_N[mask]` are the token's experts,
# `routing.gate_N[mask]` their weights, in the same order. `argmax` finds the place of the largest.
#
# </details>


# %%
def first_expert(routing: Routing, token: int) -> int:
    """Name the expert that got most of the token's weight."""
    ### BEGIN SOLUTION
    mine = routing.token_N == token
    return int(routing.expert_N[mine][routing.gate_N[mine].argmax()])
    ### END SOLUTION


# %%
checks.check_first_expert(first_expert)

# %% [markdown]
# ## 2. The way through the layers
#
# *Difficulty ●○○○○ · importance ●●●○○ · 5 minutes*
#
# A token is routed anew in every layer. `trace.layers` holds one routing for each, the first one
# first. List the token's first expert in each: the one that gets most of it.
#
# <details>
# <summary>Hint 1</summary>
#
# You have just written the function that does it for one layer.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `[... for routing in trace.layers]`
#
# </details>


# %%
def path(trace: RoutingTrace, token: int) -> list[int]:
    """List the token's first expert in every layer, in order."""
    ### BEGIN SOLUTION
    return [first_expert(routing, token) for routing in trace.layers]
    ### END SOLUTION


# %%
checks.check_path(path)
for token in (2, 12):  # the comma of the verse, and the comma of the code
    print(repr(example.tokens[token]), path(example, token))

# %% [markdown]
# The same comma twice, and two ways through the model. They set out alike and part where attention
# has told them apart: what a router sees is not the token alone but what its surroundings have made
# of it. (Now try `1` and `6`, the two times ` be` occurs. Like surroundings, nearly the same way.)
#
# ## 3. The load
#
# *Difficulty ●○○○○ · importance ●●●●● · 5 minutes*
#
# How many pairs did each expert get? Answer with $E$ numbers, for the idle experts too. (In the
# chapter you saw how this goes wrong.)
#
# <details>
# <summary>Hint 1</summary>
#
# Counting how often each number occurs is `bincount`.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `bincount` stops at the largest number that occurs, unless told how long to go on: `minlength`.
# The number of experts is `routing.num_experts`.
#
# </details>


# %%
def load(routing: Routing) -> Tensor:
    """Count the pairs of each expert, (E,)."""
    ### BEGIN SOLUTION
    return routing.expert_N.bincount(minlength=routing.num_experts)
    ### END SOLUTION


# %%
checks.check_load(load)
print("layer 0:", load(example.layers[0]).tolist())

# %% [markdown]
# An even load would be the same number everywhere. Real loads are not even, and keeping them from
# becoming absurd takes up a good part of this course.
#
# ## 4. How much of the model was awake?
#
# *Difficulty ●●○○○ · importance ●●●●○ · 10 minutes*
#
# One token meets 4 of 16 experts in each of 6 layers: 24 networks of 96. Several tokens together
# meet more, but not twice as many for twice the tokens, since they share. Count the *different*
# networks that a set of tokens met. Expert 3 of layer 0 and expert 3 of layer 1 are two networks.
#
# <details>
# <summary>Hint 1</summary>
#
# Make a Python `set` of pairs `(layer, expert)`; its length is the answer.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `enumerate(trace.layers)` gives each routing with its number. All choices of a token count.
#
# </details>


# %%
def networks_used(trace: RoutingTrace, tokens: Sequence[int]) -> int:
    """Count the different expert networks that these tokens met, over all layers."""
    ### BEGIN SOLUTION
    met = {
        (layer, expert)
        for layer, routing in enumerate(trace.layers)
        for token in tokens
        for expert in routing.expert_N[routing.token_N == token].tolist()
    }
    return len(met)
    ### END SOLUTION


# %%
checks.check_networks_used(networks_used)
for first in (1, 2, 4, 8, 16):
    print(f"the first {first:2} tokens met {networks_used(example, range(first)):2} of 96 networks")

# %% [markdown]
# That last table is why a mixture of experts is cheap for *one* reader and less so for a crowd:
# each token wakes a few networks, but a batch of them soon wakes all. Chapter 15 puts numbers to
# it.
#
# ## What you can now say
#
# - A routing is a list of pairs, and a pair is not a token.
# - A token is routed in every layer anew, and the same word may take another way.
# - The load of an expert counts pairs; the idle ones count, with zero.
