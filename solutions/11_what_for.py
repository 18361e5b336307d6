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
# # Exercises 11: What are experts for?
#
# Seven exercises for the chapter [What are experts for?](../notebooks/11_what_for.ipynb), about two
# hours together, no GPU. You count what a model knows and what it costs, you find out why a
# comparison is unfair, you predict how many experts a book takes, you ask which experts hold an
# entry, and you put an expert of the model in the box on trial.
#
# Each ends with a check. It runs your function, first on numbers you can do by hand, and if the
# result is off, it says which idea would lead there. Any correct solution passes, however it is
# written.
#
# | | exercise | difficulty | importance | minutes |
# |---|---|---|---|---|
# | 1 | From a loss to bits | ●●○○○ | ●●●●● | 15 |
# | 2 | What is held, what is used | ●●○○○ | ●●●●● | 15 |
# | 3 | Why is it unfair? | ●●○○○ | ●●●●● | 10 |
# | 4 | How many experts does the book take? | ●●○○○ | ●●●●○ | 10 |
# | 5 | Which experts does it need? | ●●●○○ | ●●●●○ | 15 |
# | 6 | Is it the book's own expert? | ●●●●○ | ●●●●● | 25 |
# | 7 | The bill of reading | ●●●○○ | ●●●●○ | 20 |

# %%
import math

import torch
from torch import Tensor

from moe_lite import hf
from moe_lite.course import asking, causal, checks, data, effects, facts
from moe_lite.course.facts import Arm
from moe_lite.course.film import Film

# %% [markdown]
# ## 1. From a loss to bits
#
# *Difficulty ●●○○○ · importance ●●●●● · 15 minutes*
#
# A book has some number of values, each drawn from $C$ choices. A model that knows nothing has a
# loss of $\log C$ nats for each value. This one has a mean loss of `nats`. How many bits does it
# store of all values together?
#
# By hand: ten values, each one of 8, at a loss of $\frac13 \log 8$ nats. A third of three bits is
# missing, so two bits of each are stored, 20 in all.
#
# <details>
# <summary>Hint 1</summary>
#
# The loss is what is still missing. What is the difference to a model that knows nothing?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# A nat is $1 / \log 2 = 1.44$ bits. Bring both numbers to one unit before you subtract.
#
# </details>


# %%
def stored_bits(nats: float, values: int, choices: int) -> float:
    """Count the bits that a model stores of some values.

    Args:    nats: its mean loss for one value; values: how many; choices: of each.
    Returns: bits, of all values together; below 0 for a model that is worse than chance.
    """
    ### BEGIN SOLUTION
    return values * (math.log(choices) - nats) / math.log(2)
    ### END SOLUTION


# %%
checks.check_stored_bits(stored_bits)

# %% [markdown]
# ## 2. What is held, what is used
#
# *Difficulty ●●○○○ · importance ●●●●● · 15 minutes*
#
# A layer has $E$ experts, each a SwiGLU with hidden width $F$ on vectors of width $D$, and a
# router with one row of $D$ numbers for each expert. A token uses $K$ experts. Count the layer's
# parameters, those a token uses (the router's all: it asks about every expert), and give the
# hidden width of its dense twins of equal active and of equal total size. (The twins are matched
# by width alone; the router is so small that nobody minds it.)
#
# By hand, $D = 2$, $F = 5$, $E = 4$, $K = 2$: an expert has $3 \cdot 2 \cdot 5 = 30$, the router
# 8. So 128, 68, and twins 10 and 20 wide.
#
# <details>
# <summary>Hint 1</summary>
#
# SwiGLU: $W_2(\mathrm{silu}(W_1 x) \odot W_3 x)$. How many matrices, and which shape has each?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# Put $K$ experts side by side: their hidden units together make one network. How wide is it?
#
# </details>


# %%
def sizes(D: int, F: int, E: int, K: int) -> tuple[int, int, int, int]:
    """Count a layer's parameters, and size its twins.

    Returns: total, active, width of the equal-active twin, width of the equal-total twin.
    """
    ### BEGIN SOLUTION
    expert, router = 3 * D * F, E * D
    return E * expert + router, K * expert + router, K * F, E * F
    ### END SOLUTION


# %%
checks.check_sizes(sizes)

# %% [markdown]
# ## 3. Why is it unfair?
#
# *Difficulty ●●○○○ · importance ●●●●● · 10 minutes*
#
# Somebody reports: "at equal active size, on the same data, trained alike, the sparse model is
# better". Here are the two arms. Say what breaks the promise:
#
# | answer | what is not equal |
# |---|---|
# | `"active"` | the arithmetic of a token: experts per token times their width |
# | `"data"` | how many examples were seen |
# | `"optimiser"` | how they were trained |
# | `"fair"` | nothing of these |
#
# If several are broken, name the first in the order of the table. Sizes in *memory* may differ:
# that is what is tested.
#
# <details>
# <summary>Hint 1</summary>
#
# An `Arm` has `experts`, `per_token`, `width`, `steps`, `batch` and `optimiser`. A dense arm has
# one expert. Two experts of 48 units do the work of one of 96.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# Examples are steps times batch. 500 steps of 512 are as many as 250 of 1,024.
#
# </details>


# %%
def unfair(sparse: Arm, dense: Arm) -> str:
    """Say what makes a comparison at equal active size unfair: "active", "data", "optimiser"
    or "fair".
    """
    ### BEGIN SOLUTION
    if sparse.per_token * sparse.width != dense.per_token * dense.width:
        return "active"
    if sparse.steps * sparse.batch != dense.steps * dense.batch:
        return "data"
    return "fair" if sparse.optimiser == dense.optimiser else "optimiser"
    ### END SOLUTION


# %%
checks.check_unfair(unfair)

# %% [markdown]
# The chapter's clusters are such a case: the paper's two arms have different optimisers. A fair
# comparison gives both arms each of the two, and shows all four numbers.
#
# ## 4. How many experts does the book take?
#
# *Difficulty ●●○○○ · importance ●●●●○ · 10 minutes*
#
# A book has so many bits. A parameter holds `density` bits. A block has `others` parameters
# whatever $E$ is (its readout), and `per_expert` more for each expert. What is the least $E$ with
# which the book fits? There is at least one expert.
#
# By hand: 120 bits at 1.5 bits each take 80 parameters. 15 are there. The other 65 take experts
# of 20: that is 3.25, so four.
#
# <details>
# <summary>Hint 1</summary>
#
# First from bits to parameters, then from parameters to experts; round only at the end.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `math.ceil`. And what if the readout alone is enough?
#
# </details>


# %%
def experts_needed(bits: float, per_expert: int, others: int, density: float) -> int:
    """Predict the least number of experts that hold a book.

    Args: bits: of the book; per_expert, others: parameters; density: bits in each.
    """
    ### BEGIN SOLUTION
    return max(1, math.ceil((bits / density - others) / per_expert))
    ### END SOLUTION


# %%
checks.check_experts_needed(experts_needed)

# %% [markdown]
# The chapter's 7,000 facts are 49,000 bits. One expert there has 1,568 parameters with its row of
# the router, the readout 4,224. With 1.2 bits in each:

# %%
print(experts_needed(49_000, 1568, 4224, 1.2), "experts")

# %% [markdown]
# ## 5. Which experts does it need?
#
# *Difficulty ●●●○○ · importance ●●●●○ · 15 minutes*
#
# You take out one expert after another and ask the model for every entry of the book. `known_N`
# says which entries it knew with all experts, `without_EN[e]` which are right with expert $e$
# taken out. An entry *needs* an expert if it was known, and is not any more without that expert.
# How many experts does each entry need? (One that was not known: none. And needed is less than
# stored: an expert can be on the way to an entry, and not its place.)
#
# By hand: known are a, b and c, not d. Without expert 0, a and c are right; without expert 1, a
# and d. So a needs none of the two alone, b both, c expert 1, and d none: $(0, 2, 1, 0)$.
#
# <details>
# <summary>Hint 1</summary>
#
# For one expert: which entries are lost? `known_N & ~without_EN[e]`.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# Broadcasting does it for all experts at once: (N,) against (E, N). Then count over which
# dimension?
#
# </details>


# %%
def needs(known_N: Tensor, without_EN: Tensor) -> Tensor:
    """Count the experts that each entry needs.

    Args:    known_N: bool, right with all experts; without_EN: bool, right with one taken out.
    Returns: int64 (N,).
    """
    ### BEGIN SOLUTION
    return (known_N & ~without_EN).sum(dim=0)
    ### END SOLUTION


# %%
checks.check_needs(needs)

# %% [markdown]
# Now on a real book, small enough to be learned here: which share of the entries needs how many of
# the 16 experts?

# %%
book = facts.PhoneBook(500)
model = facts.memorise(facts.BOOK_MODEL, book, steps=150)
known_N, _ = book.recall(model)
experts = model.moe_layers[0].experts
without = []
for e in range(experts.num_experts):
    kept = experts.w2.data[e].clone()
    experts.w2.data[e] = 0  # its answer is nothing now
    without.append(book.recall(model)[0])
    experts.w2.data[e] = kept
share = torch.bincount(needs(known_N, torch.stack(without))) / len(book)
print(" ".join(f"{n}: {s:.0%}" for n, s in enumerate(share.tolist())))

# %% [markdown]
# Most entries need one or two experts of sixteen, although three groups of digits with two
# choices each may have met six. Take one out and a part of the book is gone, while the rest does
# not notice. (Some entries survive any single loss: what is left of their two experts is enough.)
#
# ## 6. Is it the book's own expert?
#
# *Difficulty ●●●●○ · importance ●●●●● · 25 minutes*
#
# "Without this one expert the mixture forgets the phone book. So that is where the book is." Three
# doubts have to go before one may say so. An `asking.Evidence` holds what was measured:
#
# | field | what it says |
# |---|---|
# | `knows_N`, `twin_N` | does the mixture know number $n$, does its dense twin (bool) |
# | `without_EN` | does the mixture still know it with expert $e$ taken out (bool) |
# | `load_E` | the share of the questions' tokens that expert $e$ serves |
# | `rise_EX` | how much the loss of each of $X$ other texts rises without it, nats a token |
#
# Answer with the *first* doubt, in this order, that is left about the given `expert`:
#
# | answer | the doubt that is left |
# |---|---|
# | `"chance"` | over all names, the mixture does not know more than its twin |
# | `"busy"` | without it no more known numbers go than without the expert nearest in load |
# | `"other text"` | the mean rise on other text may be 0.05 nats or more |
# | `"book"` | none of these |
#
# "More" means: the 95% interval of the difference lies above 0. "May be": the 95% interval reaches
# there. Names are compared name by name; the nearest in load may be busier or less busy.
# (`asking.share` gives a mean and half of its interval.)
#
# By hand: of 200 names both know 60, the mixture alone 60, the twin alone 10, neither 70. The 200
# differences are 60 times 1, 10 times −1 and else 0: mean 0.25, spread 0.54, half the interval
# $1.97 \cdot 0.54 / \sqrt{200} = 0.075$. So there is more than chance. (1.97 is Student's for 200
# names. The fewer, the larger: for ten texts it is 2.26.)
#
# <details>
# <summary>Hint 1</summary>
#
# Each of the three is a mean of one list with its interval: a list over names, one over the known
# names, one over texts. Write a line for each list first. (Bool tensors do not subtract:
# `.double()` first. A number that is known only *without* an expert is not asked for.)
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# Nearest in load: the least `|load_E - load_E[expert]|`, and `expert` itself is out of the
# question. The interval of a list without spread is the point itself. And an interval round 0 that
# reaches 0.3 does not say that other text is spared.
#
# </details>


# %%
def whose_expert(seen: asking.Evidence, expert: int) -> str:
    """Give the first doubt left that an expert is the book's own: "chance", "busy",
    "other text"; or "book".
    """
    ### BEGIN SOLUTION
    ahead_N = seen.knows_N.double() - seen.twin_N.double()
    mean, half = asking.share(ahead_N)
    if mean - half <= 0:
        return "chance"
    gap_E = (seen.load_E - seen.load_E[expert]).abs()
    gap_E[expert] = math.inf
    lost_EN = (~seen.without_EN)[:, seen.knows_N].double()
    mean, half = asking.share(lost_EN[expert] - lost_EN[gap_E.argmin()])
    if mean - half <= 0:
        return "busy"
    mean, half = asking.share(seen.rise_EX[expert])
    return "other text" if mean + half >= 0.05 else "book"
    ### END SOLUTION


# %%
checks.check_whose_expert(whose_expert)

# %% [markdown]
# Now the box: `mixtral-mini`, its twin, and the busiest experts of its first and last layer. The
# other texts are the ten of the training's film that are no phone book.

# %%
tokenizer, mini = data.load_tokenizer(), hf.load_pretrained("mixtral-mini")
asked = asking.Questions(tokenizer, 100, seed=1)
knows_N = asked.known(mini)
twin_N = asked.known(hf.load_pretrained("mixtral-mini-dense"))
film = Film.load(hf.PRETRAINED / "mixtral-mini" / "film.safetensors")
other_BS = film.ids_BS[film.domain_BS[:, 0] != film.domains.index(data.BOOK)]
text_T = torch.arange(len(other_BS)).repeat_interleave(other_BS.shape[1])
base = effects.Run.of(mini, other_BS)

# %%
for layer in (0, 5):
    load_E = asked.load(mini, layer)
    busy = load_E.argsort(descending=True)[:4].tolist()
    cuts = [causal.ablate(layer, e) for e in busy]
    without_EN = torch.stack([asked.known(mini, cut) for cut in cuts])
    rise_EX = torch.stack([effects.rises(mini, base, text_T, cut) for cut in cuts])
    seen = asking.Evidence(knows_N, twin_N, without_EN, load_E[busy], rise_EX)
    for i, e in enumerate(busy[:3]):  # the fourth is a control only
        lost = (~without_EN[i])[knows_N].float().mean()
        mean, half = asking.share(rise_EX[i])
        print(
            f"layer {layer}, expert {e:2}: serves {load_E[e]:.0%}, takes {lost:4.0%} along, ",
            end="",
        )
        print(f"other text {mean:+.3f} ± {half:.3f}: {whose_expert(seen, i)}")

# %% [markdown]
# Expert 2 of the first layer takes *every* number along, and hardly any other text. It looks like
# the book's own. But expert 11, nearly as busy, takes every number too, and arithmetic with it.
# All questions pass both, and each may be on the way to a number, and not its place. So the
# word is "busy". In the last layer two experts are equally busy, and one takes twice as many:
# "book", up to our 0.05 nats (a little of other text does go with it). And "book" says that three
# doubts are gone, not that there are no others: these are two files, ten texts, one control each.
#
# ## 7. The bill of reading
#
# *Difficulty ●●●○○ · importance ●●●●○ · 20 minutes*
#
# When a model writes text, the time goes into reading weights from memory. A batch of $T$ tokens
# reads every expert that at least one of them chose, once. Each token chooses $K$ different
# experts of $E$, all equally likely. How many bytes of expert weights are read for one token, on
# average?
#
# By hand: two tokens, four experts of 100 bytes, two each. An expert is left out by one token
# with probability $\frac12$, by both with $\frac14$. So three of four are read: 300 bytes, 150
# for each token.
#
# <details>
# <summary>Hint 1</summary>
#
# With which probability does *nobody* choose a given expert?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# $E\,(1 - (1 - K/E)^T)$ experts are read. The batch shares them.
#
# </details>


# %%
def bytes_per_token(tokens: int, E: int, K: int, expert_bytes: int) -> float:
    """Expect the bytes of expert weights that are read for one token of a batch."""
    ### BEGIN SOLUTION
    experts_read = E * (1 - (1 - K / E) ** tokens)
    return experts_read * expert_bytes / tokens
    ### END SOLUTION


# %%
checks.check_bytes_per_token(bytes_per_token)

# %%
for tokens in (1, 8, 64, 512):
    sparse, dense = bytes_per_token(tokens, 16, 2, 1), bytes_per_token(tokens, 1, 1, 2)
    print(f"{tokens:4} tokens: sparse reads {sparse:.3f} experts a token, ", end="")
    print(f"its equal-active twin {dense:.3f}: {sparse / dense:.1f} times as much")

# %% [markdown]
# Alone, a token pays for what it uses: the sparse model reads no more than its twin. In a crowd
# the twin's weights are shared by all, and the sparse model has to read eight times as many. So
# memory is cheap twice, for one reader and for a very large batch that computes longer than it
# reads, and expensive in between.
#
# ## What you can now say
#
# 1. What is stored is what the loss has fallen below chance, in bits, times the number of values.
# 2. Memory pays for $E$ experts, arithmetic for $K$.
# 3. Equal active size, equal data and equal training make a comparison fair; say all three.
# 4. Bits per parameter tell how many experts a book takes.
# 5. In this book most facts need one or two experts, in the box's first layer a number needs
#    several; and needed there is not yet stored there.
# 6. What is lost with an expert needs three controls: a twin, an expert as busy, other text.
# 7. A token alone reads $K$ experts, a batch reads nearly all $E$.
