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
# Five exercises for the chapter [How do you adapt a sparse
# model?](../notebooks/16_adapting.ipynb), an hour and a quarter together: rounding, pruning in two
# steps, a test for upcycled experts that never part, and replay.
#
# Each ends with a check. It runs your function, first on numbers you can do by hand, and if the
# result is off, it says which idea would lead there. Any correct solution passes, however it is
# written.
#
# | | exercise | difficulty | importance | minutes |
# |---|---|---|---|---|
# | 1 | Experts in a byte per weight | ●●●○○ | ●●●○○ | 20 |
# | 2 | What an expert does | ●●○○○ | ●●●●○ | 15 |
# | 3 | Take rows out of the router | ●●○○○ | ●●●●○ | 15 |
# | 4 | How many experts are there? | ●●○○○ | ●●●○○ | 10 |
# | 5 | Replay the experts, not the weights | ●●○○○ | ●●●○○ | 15 |

# %%
import torch
from torch import Tensor

from moe_lite import Experts, MoELayer, TopKRouter, evaluate, hf, train
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
# One byte instead of two, and you have to look at the third or fourth digit. All else stays
# as it was: it is a sixth of the weights, and a router that errs sends a token somewhere else
# altogether.
#
# ## 2. What an expert does
#
# *Difficulty ●●○○○ · importance ●●●●○ · 15 minutes*
#
# Which expert can go? REAP's score is the mean, over the tokens that come to an expert, of the gate
# times the length (Euclidean norm) of its answer:
#
# $$s_e = \frac{1}{|T_e|} \sum_{t \in T_e} g_e(t)\, \lVert E_e(x_t) \rVert_2$$
#
# You are given the pairs as a flat list: pair $n$ went to `expert_N[n]` with `gate_N[n]`, and the
# expert answered `answer_ND[n]`. An expert that nobody came to has the score 0.
#
# By hand: expert 0 answered (3, 4) with gate 0.5 and (0, 2) with gate 0.25. That is 2.5 and 0.5, so
# its score is 1.5.
#
# <details>
# <summary>Hint 1</summary>
#
# `answer_ND.norm(dim=-1)` is the length of each answer.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `index_add` on zeros adds up each expert's pairs; `bincount` counts them. Nobody came: divide by
# `clamp(min=1)`.
#
# </details>


# %%
def reap(expert_N: Tensor, gate_N: Tensor, answer_ND: Tensor, num_experts: int) -> Tensor:
    """Score each expert by what it does when it is asked.

    Returns: score_E.
    """
    ### BEGIN SOLUTION
    worth_N = gate_N * answer_ND.norm(dim=-1)
    sum_E = torch.zeros(num_experts).index_add(0, expert_N, worth_N)
    return sum_E / expert_N.bincount(minlength=num_experts).clamp(min=1)
    ### END SOLUTION


# %%
checks.check_reap(reap)

# %% [markdown]
# The last layer of the course's model, on 2,560 tokens of training text. The chapter's section 3
# takes such experts out.

# %%
model = hf.load_pretrained().eval()
E, K = model.config.num_local_experts, model.config.num_experts_per_tok
last, seen = model.moe_layers[5], []
hook = last.gate.register_forward_hook(lambda gate, args, out: seen.append((args[0], out)))
with torch.no_grad():
    model(text.batch("train", 10, 256, seed=3).ids_BS)
    hook.remove()
    x_TD, routing = seen[0][0].flatten(0, -2), seen[0][1]
    answer_ND = torch.zeros(len(routing.token_N), x_TD.shape[1])
    for e, expert in enumerate(last.experts.each()):
        mine_N = routing.expert_N == e
        answer_ND[mine_N] = expert(x_TD[routing.token_N[mine_N]])
score_E = reap(routing.expert_N, routing.gate_N, answer_ND, E)
print("REAP:         ", score_E)
print("share of pairs:", routing.load_E() / routing.load_E().sum())

# %% [markdown]
# ## 3. Take rows out of the router
#
# *Difficulty ●●○○○ · importance ●●●●○ · 15 minutes*
#
# Row $e$ of a router's matrix scores expert $e$. To take the `drop` experts with the *lowest*
# scores out for good, take their rows out, and their weights out of the stack of experts. The
# others stay in their old order and are numbered anew, 0, 1, 2 and so on. Give the rows that stay,
# and for each *old* expert its new number, -1 if it is gone: with that list you can read old
# statistics.
#
# By hand: four experts with the scores 0.3, 0.1, 0.4, 0.2, drop 1. Expert 1 goes; rows 0, 2, 3
# stay; the new numbers are 0, -1, 1, 2.
#
# <details>
# <summary>Hint 1</summary>
#
# `score_E.argsort()[drop:]` are those that stay, in the order of their scores. `.sort()` brings
# them back into theirs.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# Begin with a list of -1 and write `arange` where experts stay.
#
# </details>


# %%
def prune_router(router_ED: Tensor, score_E: Tensor, drop: int) -> tuple[Tensor, Tensor]:
    """Take the lowest scores' rows out.

    Returns: the rows that stay; number_E, each old expert's new number or -1.
    """
    ### BEGIN SOLUTION
    keep = score_E.argsort()[drop:].sort().values
    number_E = torch.full((len(score_E),), -1)
    number_E[keep] = torch.arange(len(keep))
    return router_ED[keep], number_E
    ### END SOLUTION


# %%
checks.check_prune_router(prune_router)

# %% [markdown]
# Why not just write zeros into the row? Because a row of zeros still scores: zero. Count the tokens
# that would go to a "pruned" expert then:

# %%
score_E = reap(routing.expert_N, routing.gate_N, answer_ND, E)
least = int(score_E.argmin())
zeroed_ED = last.gate.weight.detach().clone()
zeroed_ED[least] = 0
chosen_TK = (x_TD @ zeroed_ED.T).topk(K).indices
share = (chosen_TK == least).any(1).float().mean()
rows, number_E = prune_router(last.gate.weight.detach(), score_E, 1)
print(f"a row of zeros is still chosen by {share:.0%} of the tokens")
print(f"{len(last.gate.weight)} rows -> {len(rows)}; new numbers {number_E.tolist()}")

# %% [markdown]
# ## 4. How many experts are there?
#
# *Difficulty ●●○○○ · importance ●●●○○ · 10 minutes*
#
# An upcycled model begins with $E$ copies of one network. Do they part? Count the different experts
# in a stack of weights `w_EFD`. Two are the same if no weight differs by more than 1e-6 (rounding
# may move the last digits).
#
# By hand: of the experts a, b, a, b there are two.
#
# <details>
# <summary>Hint 1</summary>
#
# Compare each with each: `(w_EFD[:, None] - w_EFD).flatten(2).abs().amax(-1)` is $(E, E)$.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# An expert counts if it is unlike all that stand *before* it.
#
# </details>


# %%
def distinct_copies(w_EFD: Tensor) -> int:
    """Count the experts that differ by more than 1e-6 in some weight."""
    ### BEGIN SOLUTION
    apart_EE = (w_EFD[:, None] - w_EFD).flatten(2).abs().amax(-1)
    return int(((apart_EE <= 1e-6).tril(-1).sum(1) == 0).sum())
    ### END SOLUTION


# %%
checks.check_distinct_copies(distinct_copies)

# %% [markdown]
# Eight copies and a router drawn at random, two experts for a token, plain gradient descent. And
# once more with *all* eight for each token and a router of zeros, the chapter's bug:

# %%
for name, top_k, spread in (
    ("top 2, a random router", 2, 0.02),
    ("all 8, a router of zeros", 8, 0),
):
    torch.manual_seed(0)
    layer = MoELayer(TopKRouter(16, num_experts=8, top_k=top_k), Experts(8, 16, 32))
    with torch.no_grad():
        layer.gate.weight.normal_(std=spread)
        for w_EFD in layer.experts.parameters():
            w_EFD.copy_(w_EFD[:1].expand_as(w_EFD))
    optimizer, counts = torch.optim.SGD(layer.parameters(), lr=0.1), []
    batch_TD, target_TD = torch.randn(64, 16), torch.randn(64, 16)
    for _ in range(3):
        counts.append(distinct_copies(layer.experts.w1.detach()))
        (layer(batch_TD)[0] - target_TD).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"{name}: distinct experts at steps 0, 1, 2: {counts}")

# %% [markdown]
# ## 5. Replay the experts, not the weights
#
# *Difficulty ●●○○○ · importance ●●●○○ · 15 minutes*
#
# One copy of a model has written a text, and its experts were recorded: `expert_TK`, K for each
# token. Another copy now reads the text, and its router has logits of its own, `logits_TE`. Return
# what the recorded experts weigh *now*: a softmax over the logits of a token's K recorded experts,
# and nobody else, so that the weights sum to 1. Weight k belongs to expert k of the token. The
# router is to go on learning: its logits get a gradient.
#
# $$g_{tk} = \frac{e^{z_{t,i_k}}}{\sum_{j=1}^{K} e^{z_{t,i_j}}}$$
#
# By hand: logits (0, ln 3, 5), recorded experts 0 and 1. Expert 2 would be chosen now, but was not
# then. The weights are 1/4 and 3/4.
#
# <details>
# <summary>Hint 1</summary>
#
# `logits_TE.gather(1, expert_TK)` are the logits of the recorded experts, in their order.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# A softmax over those alone. Or one over all experts, divided by what the recorded ones sum to:
# the same.
#
# </details>


# %%
def replay_weights(logits_TE: Tensor, expert_TK: Tensor) -> Tensor:
    """Weigh the recorded experts by the logits of now.

    Returns: gate_TK, each row summing to 1, in the order of expert_TK.
    """
    ### BEGIN SOLUTION
    return logits_TE.gather(1, expert_TK).softmax(dim=1)
    ### END SOLUTION


# %%
checks.check_replay_weights(replay_weights)

# %% [markdown]
# The box's first and last layer, written in bfloat16 and read in float32. How far do the weights of
# then lie from those of now, and how far would a new choice be?

# %%
model, ids = hf.load_pretrained().eval(), text.windows("prose", 128, 8).ids_BS
K = model.config.num_experts_per_tok
with torch.no_grad():
    now = model(ids).routings
    then = model.to(torch.bfloat16)(ids).routings
for at in (0, 5):
    expert_TK = then[at].expert_N.view(-1, K)
    gate_TK = replay_weights(now[at].logits_TE, expert_TK)
    chosen_TK = now[at].expert_N.view(-1, K)
    other = (expert_TK.sort(1).values != chosen_TK.sort(1).values).any(1)
    drift = (gate_TK - then[at].gate_N.view(-1, K)).abs()
    print(f"layer {at}: weights move by {drift.mean():.4f}, at most {drift.max():.3f}; "
          f"{int(other.sum())} of {len(other)} tokens would get another expert")  # fmt: skip

# %% [markdown]
# The weights move by the rounding of the logits, smoothly. A choice does not move, it jumps. That
# is why it is enough to replay the choice, and why the weights may be left to the router: they are
# where its gradient comes from.
