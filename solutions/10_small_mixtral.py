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
# # Exercises 10: How do you build a small Mixtral?
#
# Seven exercises for the chapter [How do you build a small
# Mixtral?](../notebooks/10_small_mixtral.ipynb), about two hours together, no GPU. Some
# ask you to build a part, some to find out what is wrong with one that is already there.
#
# Each ends with a check. A check does not compare your text with a model answer: it runs your
# function, first on numbers you can do by hand, and if the result is off, it says which idea
# would lead there. Any correct solution passes, however it is written.
#
# | | exercise | difficulty | importance | minutes |
# |---|---|---|---|---|
# | 1 | Top-k routing | ●○○○○ | ●●●●● | 10 |
# | 2 | The softmax before or after | ●●○○○ | ●●●●○ | 15 |
# | 3 | The layer | ●●○○○ | ●●●●● | 20 |
# | 4 | A real bug | ●●○○○ | ●●●○○ | 10 |
# | 5 | Forty-seven billion | ●●●○○ | ●●●○○ | 20 |
# | 6 | A loss that teaches nothing | ●●●●○ | ●●●●○ | 20 |
# | 7 | Four experts are three | ●●○○○ | ●●●○○ | 15 |

# %%
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_lite import MixtralConfig, Routing, hf, load_balancing_loss
from moe_lite.course import checks, film

torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. Top-k routing
#
# *Difficulty ●○○○○ · importance ●●●●● · 10 minutes*
#
# The router has given every token a score for every expert. What is left is to choose: a softmax
# over a token's experts, the $K$ largest probabilities, and those divided by their sum, so that a
# token's gates add up to 1:
#
# $$g_i = \frac{p_i}{\sum_{j \in \mathrm{top}K} p_j} \quad \text{with } p = \mathrm{softmax}(\ell)$$
#
# By hand first: a token has the probabilities 0.1, 0.2, 0.3 and 0.4. With $K = 2$ it goes to
# experts 3 and 2, with the gates 4/7 and 3/7. Your function does it for $T$ tokens at once.
#
# <details>
# <summary>Hint 1</summary>
#
# `Tensor.topk(k, dim=...)` gives the values and where they stood, the largest first. Which of the
# two dimensions of `(T, E)` holds one token's experts?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# To divide `(T, K)` by its row sums, keep the summed dimension: `sum(dim=-1, keepdim=True)` has
# the shape `(T, 1)` and stretches over the $K$ columns.
#
# </details>


# %%
def top_k(logits_TE: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Choose each token's k best experts by softmax, top-k, renormalise.

    Args:    logits_TE: the router's scores, (tokens, experts).
    Returns: gate_TK (each row adds up to 1) and expert_TK (int64), both best first.
    """
    ### BEGIN SOLUTION
    probs_TE = logits_TE.softmax(dim=-1)
    gate_TK, expert_TK = probs_TE.topk(k, dim=-1)
    return gate_TK / gate_TK.sum(dim=-1, keepdim=True), expert_TK
    ### END SOLUTION


# %%
checks.check_top_k(top_k)

# %% [markdown]
# The gradient came through too: the check asked for it. It is the only way the router ever
# learns anything. The choice itself, *which* experts, is a step with no slope; what has a slope is
# how much each chosen expert counts.
#
# ## 2. The softmax before or after
#
# *Difficulty ●●○○○ · importance ●●●●○ · 15 minutes*
#
# The Mixtral paper writes the gate the other way round: keep the $K$ largest *logits*, then take
# the softmax of those alone. Write that one.
#
# <details>
# <summary>Hint 1</summary>
#
# A softmax does not care about order or about who else there was. After `topk` you hold the
# `(T, K)` logits that matter; nothing needs to be masked.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# If you prefer a mask: what you put in place of the other logits has to vanish under `exp`.
# $e^0$ does not.
#
# </details>


# %%
def topk_softmax(logits_TE: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Choose each token's k best experts by top-k, then softmax over those k.

    Args:    logits_TE: the router's scores, (tokens, experts).
    Returns: gate_TK (each row adds up to 1) and expert_TK (int64), both best first.
    """
    ### BEGIN SOLUTION
    top_TK, expert_TK = logits_TE.topk(k, dim=-1)
    return top_TK.softmax(dim=-1), expert_TK
    ### END SOLUTION


# %%
checks.check_softmax_order(topk_softmax)

# %% [markdown]
# The same numbers as in exercise 1, up to rounding. But some models (OLMoE is one) take the
# softmax first and do *not* divide by the sum afterwards. So when exactly are the two orders the
# same function? Make a claim that holds for every possible row of logits; the check will try to
# refute it with numbers.
#
# <details>
# <summary>Hint 1</summary>
#
# Write $g_i$ of exercise 1 with $p_i = e^{\ell_i} / Z$, where $Z$ sums over all $E$ experts. What
# happens to $Z$? And if nobody divides?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# There is one value of $k$ for which the undivided gates add up to 1 all by themselves. It is not
# $k = 1$.
#
# </details>


# %%
def orders_agree(renormalize: bool, k: int, num_experts: int) -> bool:
    """Say whether softmax → top-k (→ divide by the sum, if renormalize) equals top-k → softmax.

    Returns: True if the gates are equal for all logits, False if some logits tell them apart.
    """
    ### BEGIN SOLUTION
    return renormalize or k == num_experts
    ### END SOLUTION


# %%
checks.check_orders_agree(orders_agree)

# %% [markdown]
# Look at $K = 1$ once more, because a whole model family depends on it. Either order, with
# dividing, gives the one chosen expert a gate of exactly 1, whatever the logits were. A constant
# has no gradient: such a router never learns. That is why Switch, which uses one expert for each
# token, must leave the probability *undivided*.

# %%
logits_TE = torch.tensor([[1.0, 3.0, 2.0]], requires_grad=True)
for name, gate_T in {
    "divided": logits_TE.topk(1).values.softmax(dim=-1),
    "undivided": logits_TE.softmax(dim=-1).topk(1).values,
}.items():
    (slope_TE,) = torch.autograd.grad(gate_T.sum(), logits_TE)
    print(f"{name:10} gate {gate_T.item():.3f}, its gradient", slope_TE)

# %% [markdown]
# ## 3. The layer
#
# *Difficulty ●●○○○ · importance ●●●●● · 20 minutes*
#
# Now the tokens travel. Token $t$ goes to the $K$ experts in row $t$ of `expert_TK`, and gets
# back the sum of their outputs, each times its gate:
#
# $$y_t = \sum_{k=1}^{K} g_{tk} \, E_{e_{tk}}(x_t), \qquad
# E_e(x) = W_2^{(e)} \big( \mathrm{silu}(W_1^{(e)} x) \odot W_3^{(e)} x \big)$$
#
# Loop over the experts, not over the tokens: each expert gathers its tokens, works on all of them
# in one go, and adds its share to their outputs. An expert may have no tokens at all today.
#
# Before you write: if token 0 is sent to experts 0 and 1 with the gates 0.75 and 0.25, and these
# would give 1 and 10, what comes out? (The check begins with this one. It is 3.25.)
#
# <details>
# <summary>Hint 1</summary>
#
# `torch.where(expert_TK == e)` gives two index vectors: which tokens chose expert `e`, and with
# which of their K choices. The second tells you which gate to use.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# A token appears under several experts. `out_TD[token] = ...` would keep only the last of them;
# `out_TD.index_add_(0, token, ...)` adds. Gathering no rows gives a tensor of shape `(0, D)`, and
# a matrix product takes that without complaint.
#
# </details>


# %%
def moe_layer(
    x_TD: Tensor, gate_TK: Tensor, expert_TK: Tensor, w1: Tensor, w3: Tensor, w2: Tensor
) -> Tensor:
    """Send each token through its K experts and add up what they say, weighed by the gates.

    Args:    w1, w3: (E, F, D); w2: (E, D, F). Expert e is row e of each.
    Returns: out_TD.
    """
    ### BEGIN SOLUTION
    out_TD = torch.zeros_like(x_TD)
    for e in range(len(w1)):
        token, choice = torch.where(expert_TK == e)
        x_RD = x_TD[token]
        up_RF = F.silu(x_RD @ w1[e].T) * (x_RD @ w3[e].T)
        out_TD.index_add_(0, token, gate_TK[token, choice, None] * (up_RF @ w2[e].T))
    return out_TD
    ### END SOLUTION


# %%
checks.check_moe_layer(moe_layer)

# %% [markdown]
# What you have written is the library's `loop` backend in all but name, and the measure by
# which its faster ones are measured: same values, same gradients, fewer and larger products.
#
# ## 4. A real bug
#
# *Difficulty ●●○○○ · importance ●●●○○ · 10 minutes*
#
# Here is a router that somebody tried out on a batch of hidden states. It ran without an error
# and gave plausible gates, so it went into the model.

# %%
torch.manual_seed(0)
hidden_TD = torch.randn(3, 4)


class HastyRouter(nn.Module):
    def __init__(self, hidden_size: int, num_experts: int, top_k: int):
        super().__init__()
        self.gate = nn.Linear(hidden_size, num_experts, bias=False)
        self.top_k = top_k

    def forward(self, hiden_TD: Tensor) -> tuple[Tensor, Tensor]:
        logits_TE = self.gate(hidden_TD)
        top_TK, expert_TK = logits_TE.topk(self.top_k, dim=-1)
        return top_TK.softmax(dim=-1), expert_TK


hasty = HastyRouter(hidden_size=4, num_experts=3, top_k=2)
gate_TK, expert_TK = hasty(hidden_TD)
print(gate_TK)

# %% [markdown]
# Then somebody else noticed this: two different batches, and the same answer.

# %%
for batch_TD in (torch.ones(3, 4), torch.randn(100, 4)):
    gate_TK, expert_TK = hasty(batch_TD)
    print(tuple(batch_TD.shape), "->", tuple(gate_TK.shape), expert_TK.tolist())

# %% [markdown]
# This is a true story. The router of a much-read tutorial, *makeMoE*, has it in the same place: a
# slip in the parameter's name, and a variable of the right name left in the notebook. What is
# going on? Find it, then write a `forward` that routes what it is given.
#
# <details>
# <summary>Hint 1</summary>
#
# Compare, letter by letter, the name in the parentheses with the name in the line below.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# Where does Python look for a name that is not a local variable? Try `del hidden_TD` and run the
# loop above again. (Then run the cell that makes it once more.)
#
# </details>


# %%
class Router(HastyRouter):
    """Route with the same gate, but route what comes in."""

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Choose each token's experts: x_TD -> (gate_TK, expert_TK), gates adding up to 1."""
        ### BEGIN SOLUTION
        top_TK, expert_TK = self.gate(x_TD).topk(self.top_k, dim=-1)
        return top_TK.softmax(dim=-1), expert_TK
        ### END SOLUTION


# %%
checks.check_global_bug(Router)

# %% [markdown]
# The bug is not the slip of the finger; it is that nothing failed. In a script the name would not
# have existed, and Python would have said so. A notebook keeps everything you ever made. So: try
# a new class on *two* batches of *different* sizes, and restart the kernel before you believe it.
#
# ## 5. Forty-seven billion
#
# *Difficulty ●●●○○ · importance ●●●○○ · 20 minutes*
#
# "8×7B" invites the multiplication, and 56 billion is wrong. The chapter counted one model; write
# the function that counts any Mixtral from its config, *all* parameters and those that one token
# is *active* with: everything but the experts it is not sent to. (The input embedding counts
# whole, as in the published 13B, though a token reads one row of it.)
#
# What there is to count:
#
# - an embedding, $V \times D$, and an output head of the same size, unless
#   `tie_word_embeddings` makes them one matrix;
# - in each layer four attention projections. Queries and output: `num_attention_heads` heads of
#   `head_dim`. Keys and values: `num_key_value_heads` of them. No biases;
# - in each layer a router, $E \times D$, and $E$ experts, each with `w1`, `w3` and `w2`;
# - in each layer two norms of $D$ weights, and one more norm before the head.
#
# <details>
# <summary>Hint 1</summary>
#
# Add up one layer without its experts, then one expert. The total takes $E$ experts in each layer,
# the active count $K$; all else is in both.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# A projection from $D$ to $H$ heads of size $A$ has $D \cdot H \cdot A$ weights, and $H \cdot A$
# need not be $D$. If the check says by how many you are off, factor that number: 266,240 is
# 65 × 4,096, and there are two norms in each of 32 layers and one at the end.
#
# </details>


# %%
def parameter_count(config: MixtralConfig) -> tuple[int, int]:
    """Count a Mixtral's parameters from its config: (total, active for one token)."""
    ### BEGIN SOLUTION
    D, V, L = config.hidden_size, config.vocab_size, config.num_hidden_layers
    E, K = config.num_local_experts, config.num_experts_per_tok
    heads = config.num_attention_heads + config.num_key_value_heads
    layer = 2 * D * config.head_dim * heads + E * D + 2 * D
    expert = 3 * D * config.intermediate_size
    shared = V * D * (1 if config.tie_word_embeddings else 2) + L * layer + D
    return shared + L * E * expert, shared + L * K * expert
    ### END SOLUTION


# %%
checks.check_parameter_count(parameter_count)

# %% [markdown]
# What is "8×7B" then? Eight experts in a model of Mistral 7B's shape, which shares its attention
# among them. Ask your function what a ninth expert would cost, and what a third choice:

# %%
total, active = parameter_count(MixtralConfig())
ninth, _ = parameter_count(MixtralConfig(num_local_experts=9))
_, third = parameter_count(MixtralConfig(num_experts_per_tok=3))
print(f"a ninth expert: {ninth - total:,} more to hold")
print(f"a third choice: {third - active:,} more to use")

# %% [markdown]
# ## 6. A loss that teaches nothing
#
# *Difficulty ●●●●○ · importance ●●●●○ · 20 minutes*
#
# A router left to itself sends more and more to the experts that happened to be good early. So a
# *balance loss* is added, $E \sum_e f_e P_e$: the share of tokens each expert got, times the
# probability the router gave it. Here are two ways to add it. The second one writes both terms
# into a log as well.


# %%
def balance(logits_TE: Tensor) -> Tensor:
    probs_TE = logits_TE.softmax(dim=-1)
    gate_TK, expert_TK = probs_TE.topk(1)
    return load_balancing_loss(Routing.from_choices(logits_TE, probs_TE, expert_TK, gate_TK))


def quiet_loss(lm_loss: Tensor, logits_TE: Tensor, coef: float) -> Tensor:
    return lm_loss + coef * balance(logits_TE)


def logging_loss(lm_loss: Tensor, logits_TE: Tensor, coef: float) -> Tensor:
    log = {"lm": lm_loss, "balance": coef * balance(logits_TE).item()}
    return sum(log.values(), start=torch.zeros(()))


logits_TE = torch.randn(64, 4)
for loss in (quiet_loss, logging_loss):
    print(f"{loss.__name__:13} {loss(torch.tensor(2.5), logits_TE, 0.01).item():.6f}")

# %% [markdown]
# The same value to the last digit. Yet with one of them the router trains as if there were no
# balance loss at all. It has happened in public, to *minimind*, a much-used teaching code base:
# the term was computed, and no gradient of it ever arrived.
#
# A curve cannot tell you. A test can. Write one that takes *any* such loss function and says
# whether its balance term teaches the router. You choose the `lm_loss`, the logits and the
# coefficient that you call it with.
#
# <details>
# <summary>Hint 1</summary>
#
# Make logits that require a gradient and an `lm_loss` that does not depend on them. Whatever
# gradient then reaches the logits came from the balance term. The broken ones may give you a value
# without any graph (`requires_grad` is False, and `backward` would raise), or a gradient of zeros.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# A sound loss can have no slope either: where every expert gets the same share, $\sum_e f_e P_e$
# is $\frac1E \sum_e P_e = \frac1E$, a constant. So ask at logits that favour one expert.
#
# </details>


# %%
def balance_is_used(loss: Callable[[Tensor, Tensor, float], Tensor]) -> bool:
    """Test whether the balance term of loss(lm_loss, logits_TE, coef) teaches the router."""
    ### BEGIN SOLUTION
    logits_TE = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.0, 0.0]], requires_grad=True)
    value = loss(torch.tensor(2.5), logits_TE, 1.0)
    if not value.requires_grad:
        return False
    (slope_TE,) = torch.autograd.grad(value, logits_TE, allow_unused=True)
    return slope_TE is not None and bool(slope_TE.abs().max() > 0)
    ### END SOLUTION


# %%
checks.check_balance_is_used(balance_is_used)

# %%
for loss in (quiet_loss, logging_loss):
    print(f"{loss.__name__:13} teaches the router: {balance_is_used(loss)}")

# %% [markdown]
# Keep this test; it fits any auxiliary loss you will ever add. (`.item()` was the cause: it
# turns a tensor that remembers where it came from into a number that does not.)
#
# ## 7. Four experts are three
#
# *Difficulty ●●○○○ · importance ●●●○○ · 15 minutes*
#
# A token's output is the sum of its experts' answers, weighed by its gates. If the answers are
# unlike each other and about equally long, how many experts is that sum worth? With equal gates
# all $K$ of them; with one gate near 1 only that one. In between one can say
#
# $$n = \frac{\big(\sum_k g_k\big)^2}{\sum_k g_k^2}.$$
#
# (It is the number of equal gates that would have the same ratio of length to sum.) The gates may
# add up to 1, as Mixtral's do, or to less, as OLMoE's: what counts are their shares.
#
# By hand: gates ½ and ½ are worth 2, gates ¾ and ¼ are worth $1 / (9/16 + 1/16) = 1.6$, and 0.2
# and 0.2 are worth 2 again.
#
# <details>
# <summary>Hint 1</summary>
#
# One number for each token: sum over the last dimension.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# $(0.2 + 0.2)^2 = 0.16$ and $0.2^2 + 0.2^2 = 0.08$.
#
# </details>


# %%
def experts_worth(gate_TK: Tensor) -> Tensor:
    """Say how many experts each token's weighed sum is worth.

    Returns: worth_T, from 1 to K.
    """
    ### BEGIN SOLUTION
    return gate_TK.sum(1).square() / gate_TK.square().sum(1)
    ### END SOLUTION


# %%
checks.check_experts_worth(experts_worth)

# %% [markdown]
# The film of the course's model, while it was trained. Mean over the tokens, layer by layer:

# %%
reel = film.Film.load(hf.PRETRAINED / "mixtral-mini" / "film.safetensors")
for step in reel.steps:
    worth = [experts_worth(r.gate_N.view(-1, r.per_token)).mean() for r in reel.trace(step).layers]
    print(f"step {step:5,}: " + "  ".join(f"{w:.2f}" for w in worth))

# %% [markdown]
# Four experts begin as nearly four, and gates harden while the model learns, most of it before step
# 374; in layer 0 half of that is taken back. And the sum is *weighed*: with four times ¼ four
# quarters of a network give a quarter of what they gave as one. That is what a factor on the gates
# (`gate_scale`, 4 when this model was trained) makes good.
#
# ## What you can now say
#
# 1. The gates are a softmax over the chosen experts: before the choice and divided, or after it.
# 2. Undivided gates are another function, and for $K = 1$ the only one from which a router learns.
# 3. An expert gathers its tokens, works, weighs and *adds*; it may have nothing to do.
# 4. Only the experts are multiplied: 46,702,792,704 parameters held, 12,879,925,248 used.
# 5. What ran without an error has not been tested: try two batches, and ask for the gradient.
