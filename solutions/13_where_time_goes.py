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
# # Exercises 13: Where does the time go?
#
# Five exercises for the chapter [Where does the time
# go?](../notebooks/13_where_time_goes.ipynb), about an hour together, no GPU: what a machine allows
# at best, how many rows an expert needs, what tiles waste, a slow layer to be diagnosed, and a
# backward pass to be fixed.
#
# Each ends with a check. It runs your function, first on numbers you can do by hand, and if the
# result is off, it says which idea would lead there. Any correct solution passes, however it is
# written.
#
# | | exercise | difficulty | importance | minutes |
# |---|---|---|---|---|
# | 1 | At best | ●○○○○ | ●●●●● | 5 |
# | 2 | Rows enough | ●●○○○ | ●●●●○ | 10 |
# | 3 | What tiles waste | ●●○○○ | ●●●○○ | 10 |
# | 4 | Why is this layer slow? | ●●●○○ | ●●●●● | 15 |
# | 5 | A backward pass that does too much | ●●●●○ | ●●●●○ | 20 |

# %%
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_lite.course import checks

# %% [markdown]
# ## 1. At best
#
# *Difficulty ●○○○○ · importance ●●●●● · 5 minutes*
#
# A job needs so many operations and moves so many bytes. The machine does so many operations and so
# many bytes a second. How long does the job take at least? Arithmetic and memory work at the same
# time.
#
# By hand: 8 operations and 2 bytes on a machine of 4 operations and 1 byte a second take 2 seconds,
# by either.
#
# <details>
# <summary>Hint 1</summary>
#
# Each of the two takes its number divided by its speed.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# The one that ends last is the one that is waited for.
#
# </details>


# %%
def least_time(operations: float, size: float, peak: float, bandwidth: float) -> float:
    """Return the seconds that a job takes at least, by the roofline.

    Args:    size: bytes moved. peak: operations a second. bandwidth: bytes a second.
    """
    ### BEGIN SOLUTION
    return max(operations / peak, size / bandwidth)
    ### END SOLUTION


# %%
checks.check_least_time(least_time)

# %% [markdown]
# ## 2. Rows enough
#
# *Difficulty ●●○○○ · importance ●●●●○ · 10 minutes*
#
# An expert's weights are fetched once and used for $m$ rows: $2m$ operations with each weight. From
# which $m$ on does the arithmetic take as long as the fetch? (It is the roofline's answer, and the
# chapter says what it does not know.)
#
# By hand: 8 operations for each byte, 4 bytes a weight: 32 operations while a weight arrives, so 16
# rows.
#
# <details>
# <summary>Hint 1</summary>
#
# How many operations does the machine do while *one weight* arrives?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# One row does two of them with that weight: a multiplication and an addition.
#
# </details>


# %%
def rows_enough(peak: float, bandwidth: float, bytes_each: float) -> float:
    """Return the rows for one expert from which on it no longer waits for its weights.

    Args:    bytes_each: of one weight: 4 in float32, 2 in bfloat16, 0.5 in four bits.
    """
    ### BEGIN SOLUTION
    return peak / bandwidth * bytes_each / 2
    ### END SOLUTION


# %%
checks.check_rows_enough(rows_enough)

# %%
for name, peak, bandwidth in (("H100", 989e12, 3.35e12), ("H200", 989e12, 4.8e12)):
    print(f"{name}, bfloat16: {rows_enough(peak, bandwidth, 2):.0f} rows for an expert")

# %% [markdown]
# ## 3. What tiles waste
#
# *Difficulty ●●○○○ · importance ●●●○○ · 10 minutes*
#
# A tile is `height` rows of one expert; an expert with fewer rows pays for the whole tile. Of all
# the rows that are computed, what share holds a token?
#
# By hand: loads 3, 5 and 4 in tiles of 2 are 2, 3 and 2 tiles: 14 rows for 12 tokens, 12/14.
#
# <details>
# <summary>Hint 1</summary>
#
# How many tiles does an expert of $n$ rows need? `ceil(n / height)`; and none for $n = 0$.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# Add up the tiles over the experts *before* you divide.
#
# </details>


# %%
def useful_rows(load_E: list[int], height: int) -> float:
    """Return the share of the tiles' rows that hold a token.

    Args:    load_E: rows of each expert, not all of them zero. height: rows in a tile.
    """
    ### BEGIN SOLUTION
    return sum(load_E) / (height * sum(ceil(load / height) for load in load_E))
    ### END SOLUTION


# %%
checks.check_useful_rows(useful_rows)

# %% [markdown]
# ## 4. Why is this layer slow?
#
# *Difficulty ●●●○○ · importance ●●●●● · 15 minutes*
#
# Somebody's layer takes 10 ms where a dense network of equal arithmetic takes 2. You have two more
# numbers: the *roofline* of the layer (each expert's weights fetched once) says 5 ms, and the *sum
# of its products*, each timed alone at its own number of rows, is 9 ms. How much of the 8 ms is
# fetching more weights, how much is products too small to be fast, how much is carrying rows?
#
# Here: 3, 4 and 1. So a fused kernel would save 1 ms, and a larger batch the rest.
#
# <details>
# <summary>Hint 1</summary>
#
# The roofline knows operations and bytes, and not that small products are slow. The products know
# that too.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# What each number adds to the one before is what only *it* knows. The three add up to what is lost.
#
# </details>


# %%
def three_reasons(
    dense: float, roofline: float, products: float, measured: float
) -> tuple[float, float, float]:
    """Split what a layer takes beyond the dense network into three reasons.

    Args:    dense: of the dense network. roofline: of the layer, by operations and bytes.
             products: its products, each timed alone. measured: the layer. All in milliseconds.
    Returns: (bytes, small products, carrying), in milliseconds.
    """
    ### BEGIN SOLUTION
    return roofline - dense, products - roofline, measured - products
    ### END SOLUTION


# %%
checks.check_three_reasons(three_reasons)

# %% [markdown]
# ## 5. A backward pass that does too much
#
# *Difficulty ●●●●○ · importance ●●●●○ · 20 minutes*
#
# This is right, forward and backward, and is what people write first. With 128 experts its backward
# pass takes more than ten times as long as that of a loop that unbinds once (the figure in the
# chapter's section 3).


# %%
def slow_expert_blocks(x_RD, w1, w3, w2, offsets_E1):
    out = []
    for e, x in enumerate(x_RD.split(offsets_E1.diff().tolist())):
        hidden = F.silu(F.linear(x, w1[e])) * F.linear(x, w3[e])
        out.append(F.linear(hidden, w2[e]))
    return torch.cat(out)


# %% [markdown]
# With 48 experts it writes 96 times the bytes that the weights have. Write it so that each weight's
# gradient is written *once*. The check counts bytes; give it the slow one too, if you like.
#
# <details>
# <summary>Hint 1</summary>
#
# Autograd's answer to `w1[e]` is a tensor as large as `w1`, zero but for one slice; $E$ of them
# are made and added.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `w1.unbind()` takes the whole stack apart in *one* operation. Its backward pass is one stack.
#
# </details>


# %%
def expert_blocks(x_RD: Tensor, w1: Tensor, w3: Tensor, w2: Tensor, offsets_E1: Tensor) -> Tensor:
    """Run each expert on its block of rows, y = W2 (silu(W1 x) * W3 x).

    Args:    w1, w3: (E, F, D); w2: (E, D, F).
    Returns: y_RD.
    """
    ### BEGIN SOLUTION
    blocks = x_RD.split(offsets_E1.diff().tolist())
    weights = zip(blocks, w1.unbind(), w3.unbind(), w2.unbind(), strict=True)
    return torch.cat(
        [F.linear(F.silu(F.linear(x, a)) * F.linear(x, b), c) for x, a, b, c in weights]
    )
    ### END SOLUTION


# %%
checks.check_expert_blocks(expert_blocks)

# %% [markdown]
# Nothing in the forward pass gave it away, and a profile says only "zeros" and "add". What did was
# a count, made before: *how many bytes must this write at least, and how many does it?*
