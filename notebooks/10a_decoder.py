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
# # Appendix to 10: the decoder around it
#
# Chapter [10](10_small_mixtral.ipynb) turns one network of a transformer block into eight. The rest
# of the block is an ordinary modern decoder, which knows nothing of experts. You may have met its
# parts under their names without having built them. Each is built here in a few lines, and each is
# asserted equal to the library's: norm, rotary positions, grouped-query attention with a window,
# and the cache.
#
# **You need:** PyTorch, and what attention is. **Time:** 25 minutes; the cells run in seconds.

# %%
import torch
from torch import nn

from moe_lite import KVCache, MixtralConfig
from moe_lite.model import Attention, Mixtral, rotary, rotate

torch.manual_seed(0)
torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. RMSNorm
#
# It divides a vector by its root mean square, and scales each coordinate by a learned
# weight. No mean is subtracted.

# %%
x = torch.randn(3, 16)
norm = nn.RMSNorm(16, eps=1e-5)
by_hand = x * (x.square().mean(dim=-1, keepdim=True) + 1e-5).rsqrt() * norm.weight
torch.testing.assert_close(by_hand, norm(x))

# %% [markdown]
# ## 2. Rotary positions
#
# Split a query's coordinates into pairs and read each pair as a complex
# number. At position $s$, turn pair $a$ by the angle $s\,\theta^{-2a/A}$: the first pair spins
# fast, the last hardly at all. Do the same to the keys. An inner product of two turned numbers
# depends only on the difference of their angles, so attention sees how far apart two tokens are
# and not where they stand.

# %%
A, theta = 8, 10000.0
q_SA = torch.randn(6, A)
pairs = torch.complex(q_SA[:, : A // 2], q_SA[:, A // 2 :])
angle = torch.arange(6)[:, None] * theta ** (-2 * torch.arange(A // 2) / A)
turned = pairs * torch.polar(torch.ones_like(angle), angle)
by_hand = torch.cat([turned.real, turned.imag], dim=-1)
torch.testing.assert_close(by_hand, rotate(q_SA, *rotary(torch.arange(6), A, theta)))

q, k = torch.randn(2, A)
for i, j in ((5, 2), (105, 102)):
    a, b = (rotate(v, *rotary(torch.tensor([s]), A, theta)) for v, s in ((q, i), (k, j)))
    print(f"query at {i}, key at {j}: {(a @ b.T).item():.4f}")

# %% [markdown]
# ## 3. Grouped queries, and a window
#
# **Grouped-query attention.** Mixtral has 32 query heads but only 8 heads of keys and values, and
# four query heads share each. When the model generates, it must keep every past token's keys and
# values in memory (the **KV cache**), and a quarter of the heads is a quarter of that memory.
#
# **Sliding window.** A query may be allowed to see only the last $w$ tokens. Stacked layers
# still carry news further, $w - 1$ tokens a layer. (Mistral 7B has a window of 4,096; Mixtral was
# released without one. Our class can do both.)
#
# Both together, by hand and in the library:

# %%
config = MixtralConfig(
    vocab_size=100, hidden_size=32, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=48, num_hidden_layers=1, sliding_window=3,
)  # fmt: skip
attention, S, A = Attention(config), 7, config.head_dim
x_BSD = torch.randn(1, S, 32)
rope = rotary(torch.arange(S), A, config.rope_theta)
query, key = torch.arange(S)[:, None], torch.arange(S)
see_SS = (key <= query) & (key > query - config.sliding_window)

# %%
q, k, v = (
    p(x_BSD).view(S, -1, A).transpose(0, 1)
    for p in (attention.q_proj, attention.k_proj, attention.v_proj)
)
q, k = rotate(q, *rope), rotate(k, *rope)
k, v = k.repeat_interleave(2, dim=0), v.repeat_interleave(2, dim=0)  # two query heads share one
scores = (q @ k.transpose(1, 2) / A**0.5).masked_fill(~see_SS, -torch.inf)
by_hand = attention.o_proj((scores.softmax(dim=-1) @ v).transpose(0, 1).reshape(1, S, -1))
torch.testing.assert_close(by_hand, attention(x_BSD, rope, see_SS[None, None], None, 0))
print(see_SS.int())

# %% [markdown]
# Read the last rows of the mask: each token sees itself and the two before it, and never what
# comes after.
#
# ## 4. The cache changes nothing but the time
#
# Running seven tokens at once, or five and then one
# by one with a cache, gives the same scores:

# %%
model, ids_BS = Mixtral(config), torch.randint(0, 100, (1, 7))
cache = KVCache(config, batch_size=1, max_len=7)
steps = [
    model(ids_BS[:, :5], cache=cache),
    *(model(ids_BS[:, s : s + 1], cache=cache) for s in (5, 6)),
]
piecewise = torch.cat([step.logits_BSV for step in steps], dim=1)
torch.testing.assert_close(piecewise, model(ids_BS).logits_BSV)

# %% [markdown]
# That is all: `moe_lite/model.py` computes the same, in faster calls. **Back to** [chapter 10,
# section 5](10_small_mixtral.ipynb): what the experts weigh.
