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
# # Exercises 16: How do you adapt a sparse model?
#
# One exercise for the chapter [How do you adapt a sparse model?](../notebooks/16_adapting.ipynb):
# what the smallest change of all does, fewer bits for each weight.
#
# Each ends with a check. It runs your function, first on numbers you can do by hand, and if the
# result is off, it says which idea would lead there. Any correct solution passes, however it is
# written.
#
# | | exercise | difficulty | importance | minutes |
# |---|---|---|---|---|
# | 1 | Experts in a byte per weight | ●●●○○ | ●●●○○ | 20 |

# %%
import torch
from torch import Tensor

from moe_lite import evaluate, hf, train
from moe_lite.course import checks, data

torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. Experts in a byte per weight
#
# *Difficulty ●●●○○ · importance ●●●○○ · 20 minutes*
#
# If reading weights is what takes the time, make them smaller. In **int8** a weight is a whole
# number from -127 to 127, and each row of a matrix has one scale: $w \approx q \cdot s$. Take for
# $s$ the row's largest absolute value divided by 127, so that nothing overflows and the whole
# range is used. A row of zeros should stay one.
#
# By hand: the row (1, -2, 0.5) has the scale 2/127, and becomes (64, -127, 32).
#
# <details>
# <summary>Hint 1</summary>
#
# `w.abs().amax(dim=1, keepdim=True)` is each row's largest absolute value. `clamp(min=...)` keeps
# you from dividing by zero.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# Converting to int8 cuts off towards zero. Round first. And $127.4$ would round to 127, but $128$
# wraps around to -128: why can it not occur with your scale?
#
# </details>


# %%
def quantize(w_FD: Tensor) -> tuple[Tensor, Tensor]:
    """Write a matrix in int8 with a scale per row.

    Returns: q_FD, int8; scale_F1, float, so that q_FD * scale_F1 is within half a step of w_FD.
    """
    ### BEGIN SOLUTION
    scale_F1 = (w_FD.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-12)
    return (w_FD / scale_F1).round().to(torch.int8), scale_F1
    ### END SOLUTION


# %%
checks.check_quantize(quantize)

# %% [markdown]
# What does it do to a model? Every expert of the course's small Mixtral through your function and
# back, then held-out bits per byte. (Here nothing gets faster: we multiply with what comes *back*.
# A real kernel reads int8 and unpacks it on the way.)

# %%
model, text = hf.load_pretrained(), data.load_corpus(max_bytes=200_000)
config = train.TrainConfig(seq_len=64, eval_windows=8, autocast="off")
before = evaluate(model, text, config=config)
with torch.no_grad():
    for layer in model.moe_layers:
        for weight_EFD in layer.experts.parameters():
            for w_FD in weight_EFD:
                q_FD, scale_F1 = quantize(w_FD)
                w_FD.copy_(q_FD * scale_F1)
after = evaluate(model, text, config=config)
for domain in before:
    print(f"{domain:10} {before[domain]:.4f} -> {after[domain]:.4f} bits per byte")

# %% [markdown]
# A byte in the place of two, and you have to look at the third or fourth digit. Routers, attention
# and norms stay as they were: they are a few percent of the bytes, and a router that errs sends a
# token somewhere else altogether.
