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
# # Exercises 17: What do experts learn?
#
# Eight exercises and a capstone for the chapter [What do experts
# learn?](../notebooks/17_what_experts_learn.ipynb), nearly three hours together, no GPU.
# The first five are the tools of the trade, the sixth is a diagnosis, with the seventh you put a
# published claim on trial, and the fourth, the fifth and the last two belong to the
# [appendix](../notebooks/17a_more_measures.ipynb).
#
# Each ends with a check. It runs your function, first on numbers you can do by hand, and if the
# result is off, it says which idea would lead there. Any correct solution passes, however it is
# written.
#
# | | exercise | difficulty | importance | minutes |
# |---|---|---|---|---|
# | 1 | How much does an expert tell? | ●●○○○ | ●●●●● | 15 |
# | 2 | Shuffle texts, not tokens | ●●○○○ | ●●●●● | 10 |
# | 3 | Shuffle among equal words | ●●●○○ | ●●●●● | 15 |
# | 4 | Saturation | ●●○○○ | ●●●○○ | 10 |
# | 5 | Neighbours | ●●○○○ | ●●●●○ | 10 |
# | 6 | Nothing, words or topic? | ●●●●○ | ●●●●● | 25 |
# | 7 | Capstone: a claim on trial | ●●●●○ | ●●●●● | 45 |
# | 8 | Read a text from its routes | ●●●○○ | ●●●○○ | 20 |
# | 9 | Whom would you steer? | ●●○○○ | ●●●○○ | 10 |

# %%
from collections.abc import Mapping
from typing import Any

import torch
from IPython.display import Markdown
from torch import Tensor

from moe_lite import hf
from moe_lite.course import checks
from moe_lite.course.film import Film
from moe_lite.course.recipes import FILM

torch.set_num_threads(1)
torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. How much does an expert tell?
#
# *Difficulty ●●○○○ · importance ●●●●● · 15 minutes*
#
# `count_CE[c, e]` tokens with label $c$ went to expert $e$. How many bits does a token's expert
# tell about its label?
#
# $$I = \sum_{c,e} p(c,e)\, \log_2 \frac{p(c,e)}{p(c)\,p(e)}$$
#
# By hand: if two labels with 4 and 12 tokens have an expert each, the expert tells all there is to
# know, the label's entropy: 0.811 bits.
#
# <details>
# <summary>Hint 1</summary>
#
# `p_CE = count_CE / count_CE.sum()`. Its row sums are $p(c)$, its column sums $p(e)$, and their
# product as a table is `p_CE.sum(1, keepdim=True) * p_CE.sum(0)`.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# Where no token is, $p \log p$ is 0, but the computer says NaN. `torch.special.xlogy(p, q)` is
# $p \ln q$ and knows it.
#
# </details>


# %%
def information(count_CE: Tensor) -> float:
    """Give the mutual information of label and expert, in bits.

    Args:    count_CE: tokens of each label at each expert, int64.
    """
    ### BEGIN SOLUTION
    p_CE = count_CE.double() / count_CE.sum()
    chance_CE = p_CE.sum(1, keepdim=True) * p_CE.sum(0)
    nats_CE = torch.special.xlogy(p_CE, p_CE) - torch.special.xlogy(p_CE, chance_CE)
    return (nats_CE.sum() / torch.tensor(2.0).log()).item()
    ### END SOLUTION


# %%
checks.check_information(information)

# %% [markdown]
# Here is the film of the course's model: twelve texts of 200 tokens, two of each of six domains
# (the sixth is a phone book of invented names), at the last step. What do its experts tell about
# the domain, at each layer?

# %%
film = Film.load(hf.PRETRAINED / "mixtral-mini" / FILM)
LENGTH = film.ids_BS.shape[1]
topic_T, ids_T = film.domain_BS.flatten(), film.ids_BS.flatten()
final = film.trace(film.steps[-1])
E, K = final.layers[0].num_experts, film.top_k
expert_LTK = torch.stack([routing.expert_N.view(-1, K) for routing in final.layers])


def bits(expert_T: Tensor, label_T: Tensor) -> float:
    """Count, then measure."""
    return information(torch.bincount(label_T * E + expert_T, minlength=6 * E).view(-1, E))


print("bits about the domain:", [round(bits(e_TK[:, 0], topic_T), 2) for e_TK in expert_LTK])

# %% [markdown]
# ## 2. Shuffle texts, not tokens
#
# *Difficulty ●●○○○ · importance ●●●●● · 10 minutes*
#
# A null keeps everything but the connection in question. If labels belong to *texts* of `length`
# tokens, then texts have to change places, whole. Shuffle the labels so, in an order that depends
# on the seed alone.
#
# By hand: six labels `a a b b c c` in texts of two may become `c c a a b b`, and never
# `a b a c b c`.
#
# <details>
# <summary>Hint 1</summary>
#
# `label_T.view(-1, length)` has a text in each row.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `torch.randperm(n, generator=torch.Generator().manual_seed(seed))` gives an order of rows.
#
# </details>


# %%
def shuffle_texts(label_T: Tensor, length: int, seed: int) -> Tensor:
    """Let whole texts change places, in an order that the seed decides."""
    ### BEGIN SOLUTION
    texts = label_T.view(-1, length)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))
    return texts[order].flatten()
    ### END SOLUTION


# %%
checks.check_shuffle_texts(shuffle_texts)

# %% [markdown]
# On a film of twelve texts that matters a lot. Compare what tokens and what texts give by chance:

# %%
for layer in (0, 5):
    first_T = expert_LTK[layer, :, 0]
    tokens = max(bits(first_T, shuffle_texts(topic_T, 1, seed)) for seed in range(20))
    texts = max(bits(first_T, shuffle_texts(topic_T, LENGTH, seed)) for seed in range(20))
    print(f"layer {layer}: observed {bits(first_T, topic_T):.2f} bits, "
          f"tokens shuffled at most {tokens:.2f}, texts at most {texts:.2f}")  # fmt: skip

# %% [markdown]
# ## 3. Shuffle among equal words
#
# *Difficulty ●●●○○ · importance ●●●●● · 15 minutes*
#
# The strictest null of the chapter. Labels change places only among tokens with the *same id*. Then
# each word is as frequent under each label as before, and what still tells about the label are the
# words.
#
# By hand: the words `7 2 7` with the labels `a b c` may become `a b c` or `c b a`.
#
# <details>
# <summary>Hint 1</summary>
#
# A loop over `ids_T.unique()` will do: `mine = (ids_T == word).nonzero()[:, 0]` are its places.
# Make one generator before the loop.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `out_T[mine] = label_T[mine[randperm(len(mine))]]`, on a copy: the caller still needs the old
# labels.
#
# </details>


# %%
def shuffle_within_words(label_T: Tensor, ids_T: Tensor, seed: int) -> Tensor:
    """Let labels change places among the tokens of each word."""
    ### BEGIN SOLUTION
    random, out_T = torch.Generator().manual_seed(seed), label_T.clone()
    for word in ids_T.unique():
        mine = (ids_T == word).nonzero()[:, 0]
        out_T[mine] = label_T[mine[torch.randperm(len(mine), generator=random)]]
    return out_T
    ### END SOLUTION


# %%
checks.check_shuffle_within_words(shuffle_within_words)

# %%
for layer, e_TK in enumerate(expert_LTK):
    null = [bits(e_TK[:, 0], shuffle_within_words(topic_T, ids_T, seed)) for seed in range(5)]
    print(f"layer {layer}: {bits(e_TK[:, 0], topic_T):.2f} bits, words explain {max(null):.2f}")

# %% [markdown]
# ## 4. Saturation
#
# *Difficulty ●●○○○ · importance ●●●○○ · 10 minutes*
#
# OLMoE's eq. 5: of the $k$ experts that a token has at the end of training, which share did it have
# at an earlier step? The mean over tokens. The order of a token's choices does not matter.
#
# By hand: early (0, 1), final (1, 0) counts 1; early (2, 3), final (2, 5) counts one half.
#
# <details>
# <summary>Hint 1</summary>
#
# Compare each early choice with each final one: `early_TK[:, :, None] == final_TK[:, None, :]` is
# `(T, K, K)`.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `.any(1)` of that says for each *final* choice whether it was there. The mean is the answer.
#
# </details>


# %%
def saturation(early_TK: Tensor, final_TK: Tensor) -> float:
    """Give the mean share of a token's final experts that it had before."""
    ### BEGIN SOLUTION
    return (early_TK[:, :, None] == final_TK[:, None, :]).any(1).double().mean().item()
    ### END SOLUTION


# %%
checks.check_saturation(saturation)

# %%
for step in film.steps[::2] + film.steps[-1:]:
    early = [routing.expert_N.view(-1, K) for routing in film.trace(step).layers]
    kept = [saturation(*pair) for pair in zip(early, expert_LTK, strict=True)]
    print(f"step {step:5}: " + "  ".join(f"layer {n} {share:4.0%}" for n, share in enumerate(kept)))

# %% [markdown]
# ## 5. Neighbours
#
# *Difficulty ●●○○○ · importance ●●●●○ · 10 minutes*
#
# How often do two consecutive tokens have the same first choice (Mixtral's Table 5)? Only within
# texts: the end of one and the beginning of the next are no neighbours.
#
# By hand: experts 3 3 1 1 | 1 0 0 0 in two texts. Of six pairs four are equal.
#
# <details>
# <summary>Hint 1</summary>
#
# `text_BS = expert_T.view(-1, length)`; a row is a text.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `text_BS[:, 1:]` beside `text_BS[:, :-1]`: a text of $S$ tokens has $S - 1$ pairs.
#
# </details>


# %%
def repetition(expert_T: Tensor, length: int) -> float:
    """Give the share of neighbours within a text that have the same expert."""
    ### BEGIN SOLUTION
    text_BS = expert_T.view(-1, length)
    return (text_BS[:, 1:] == text_BS[:, :-1]).double().mean().item()
    ### END SOLUTION


# %%
checks.check_repetition(repetition)

# %% [markdown]
# Chance is one in 16, 6.25%, only if all experts are equally used, in every text. Within each text,
# in random order:

# %%
place_T = torch.arange(len(ids_T))
text_T = place_T // LENGTH
for layer in (0, 3, 5):
    first_T = expert_LTK[layer, :, 0]
    null = [repetition(first_T[shuffle_within_words(place_T, text_T, s)], LENGTH) for s in range(5)]
    print(f"layer {layer}: {repetition(first_T, LENGTH):.0%}, in random order {max(null):.0%}")

# %% [markdown]
# (Look twice: "shuffle among equal words" with the number of the text instead of the word
# shuffles within texts. The same tool, another question.)
#
# ## 6. Nothing, words or topic?
#
# *Difficulty ●●●●○ · importance ●●●●● · 25 minutes*
#
# You are given a routing: the first expert of each token, its topic, its word, and the length of
# the texts. Say what explains that experts and topics go together:
#
# - `"nothing"`: it is no more than chance, where texts and not tokens are what is independent;
# - `"words"`: there is something, and topics' different words explain it;
# - `"topic"`: the same word goes elsewhere on another topic.
#
# The check makes routings for which it knows the reason, 40 texts on four topics. One of them gives
# each text a favourite expert of its own, for no reason at all. Shuffled *tokens* will call that
# highly significant.
#
# <details>
# <summary>Hint 1</summary>
#
# Two tests, one after the other: against `shuffle_texts`, and, if that is passed, against
# `shuffle_within_words`. Twenty seeds each will do.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# "Above" is above the *largest* of the null's values, strictly: where the word alone decides, all
# shuffles give exactly the observed number.
#
# </details>


# %%
def what_explains(expert_T: Tensor, topic_T: Tensor, ids_T: Tensor, length: int) -> str:
    """Say "nothing", "words" or "topic"."""
    ### BEGIN SOLUTION
    observed = bits(expert_T, topic_T)
    seeds = range(20)
    if observed <= max(bits(expert_T, shuffle_texts(topic_T, length, s)) for s in seeds):
        return "nothing"
    words = max(bits(expert_T, shuffle_within_words(topic_T, ids_T, s)) for s in seeds)
    return "topic" if observed > words else "words"
    ### END SOLUTION


# %%
checks.check_what_explains(what_explains)

# %% [markdown]
# And the course's model, at each layer, before the first step and at the end? (The film has only
# two texts of each domain: `"nothing"` may mean "not enough texts".)

# %%
for step in (film.steps[0], film.steps[-1]):
    said = [what_explains(routing.expert_N.view(-1, K)[:, 0], topic_T, ids_T, LENGTH)
            for routing in film.trace(step).layers]  # fmt: skip
    print(f"step {step}: {said}")

# %% [markdown]
# At step 0 some layers say `"topic"` of a model that has learned nothing. Its attention mixes each
# token with its company, and with two texts of a domain `"topic"` is also "this very text". So
# two nulls are not enough; the chapter's fourth, the untrained model, is missing in the function,
# and the first line is what it would have been asked.
#
# ## 7. Capstone: a claim on trial
#
# *Difficulty ●●●●○ · importance ●●●●● · 45 minutes*
#
# Choose a published sentence about experts, and test it. Some to choose from:
#
# - "we do not observe obvious patterns in the assignment of experts based on the topic"
#   (Mixtral, section 5);
# - consecutive tokens are often assigned the same experts (Mixtral, section 5, Table 5);
# - early layers know the word, later ones the topic (said in many an article, of language models
#   at large);
# - a sentence about experts that you have read and always doubted.
#
# Fill in the template **from top to bottom**: what would sink the claim stands before the number.
# Your function is given a routing (all choices of each token, their words, their domains, and the
# length of the texts), so that the check can also give it other routings, of other sizes. On those
# that were shuffled at random your claim must not hold, and on one in which such a thing was
# planted it must: experts that follow the domain, the word, both, the neighbour, the place or the
# text. For a claim that there is *no* pattern, put the opposite on trial, and let it fail.
#
# <details>
# <summary>Hint 1</summary>
#
# A claim needs one number (a share, bits, a difference) and a shuffling that leaves everything but
# the claim's connection alone. You have written two shufflings and three numbers above.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `null` is a list: the same number, measured on 19 or more shuffled versions of the very routing
# that came in.
#
# </details>


# %%
def investigate(
    expert_TK: Tensor, ids_T: Tensor, domain_T: Tensor, length: int
) -> Mapping[str, Any]:
    """Fill in the template for one claim about this routing."""
    found: dict[str, Any] = {
        "claim": ...,  # a sentence that can be wrong
        "source": ...,  # who said it, and where
        "falsified_if": ...,  # what you would have to see to drop it: before you measure
        "measure": ...,  # the number, in words
        "null_is": ...,  # what is shuffled, and what is left alone
        "observed": ...,  # the number
        "null": ...,  # at least 19 of them, by chance
        "holds": ...,  # True or False, and it follows from the two above
        "verdict": ...,  # a sentence: does it hold, and how large is it?
    }
    ### BEGIN SOLUTION
    first_T = expert_TK[:, 0]
    found["claim"] = "The same word is sent to other experts in a text of another domain."
    found["source"] = "'we do not observe obvious patterns' by topic: Jiang et al. 2024, section 5"
    found["falsified_if"] = (
        "experts tell no more about the domain than with domains shuffled among equal words, or "
        "no more than with whole texts shuffled"
    )
    found["measure"] = "mutual information of first choice and domain, in bits"
    found["null_is"] = "domains shuffled among tokens of one id (20), and among texts (20)"
    observed = bits(first_T, domain_T)
    words = [bits(first_T, shuffle_within_words(domain_T, ids_T, seed)) for seed in range(20)]
    texts = [bits(first_T, shuffle_texts(domain_T, length, seed)) for seed in range(20)]
    found["observed"], found["null"] = observed, words + texts
    found["holds"] = observed > max(words + texts)
    beyond = observed - sum(words) / 20
    found["verdict"] = (
        f"{'holds' if found['holds'] else 'does not hold'}: {observed:.2f} bits, of which words "
        f"explain {sum(words) / 20:.2f} and {beyond:.2f} remain; shuffled texts give at most "
        f"{max(texts):.2f}"
    )
    ### END SOLUTION
    return found


# %%
checks.check_investigation(investigate)

# %% [markdown]
# Your verdict on the course's model, as a page to keep. (`LAYER` is yours to choose; say which you
# chose, and that you chose.)

# %%
LAYER = 4
found = investigate(expert_LTK[LAYER], ids_T, topic_T, LENGTH)
null = [float(x) for x in found["null"]]
Markdown(f"""
### {found["claim"]}

*Source:* {found["source"]}. *Model:* mixtral-mini, layer {LAYER}, on {len(ids_T):,} tokens.

- **It would be false if** {found["falsified_if"]}.
- **Measured:** {found["measure"]}: {float(found["observed"]):.3g}
- **By chance** ({found["null_is"]}): {min(null):.3g} to {max(null):.3g}, {len(null)} times
- **Verdict:** {found["verdict"]}
""")

# %% [markdown]
# A claim that fell is a result. So is one that held *and was small*. Write both.
#
# ## 8. Read a text from its routes
#
# *Difficulty ●●●○○ · importance ●●●○○ · 20 minutes*
#
# Of some text you know the words and the experts. Word $v$ came `count_V[v]` times, and at layer
# $l$ it took route $r$ `count_LVR[l, v, r]` times (each layer's routes of a word add up to its
# count). Of other tokens you see the routes alone: `seen_NL`. Score every word for each of them:
#
# $$\log p(v, r_1 \dots r_L) = \log p(v) + \sum_{l=1}^{L} \log p_l(r_l \mid v)$$
#
# What did not happen yet is not impossible: every word begins with one sight, and the routes of a
# word, at each layer, with one more, spread evenly over the R routes:
#
# $$p(v) = \frac{n_v + 1}{\sum_u (n_u + 1)}, \qquad
# p_l(r \mid v) = \frac{n_{l,v,r} + 1/R}{n_v + 1}$$
#
# By hand: one layer, two routes. Word 0 came twice, by route 1; word 1 once, by route 0; word 2
# never. Route 1 is seen. The three have 3/6 x 2.5/3, 2/6 x 0.5/2 and 1/6 x 0.5/1: that is 5/12,
# 1/12 and 1/12, and you return their logarithms.
#
# <details>
# <summary>Hint 1</summary>
#
# `log_LVR = ((count_LVR + 1 / R) / (count_V[:, None] + 1)).log()` are all layers' tables.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `log_LVR[l][:, seen_NL[:, l]]` is (V, N): what layer l says of each word. Add up over the layers,
# turn it round, add the words' own.
#
# </details>


# %%
def read_back(count_V: Tensor, count_LVR: Tensor, seen_NL: Tensor) -> Tensor:
    """Score every word for tokens of which only the routes are seen.

    Returns: score_NV, the logarithm of the probability of the word and all its routes.
    """
    ### BEGIN SOLUTION
    word_V = ((count_V + 1) / (count_V + 1).sum()).log()
    told_LVR = ((count_LVR + 1 / count_LVR.shape[-1]) / (count_V[:, None] + 1)).log()
    told = [told_VR[:, seen_N] for told_VR, seen_N in zip(told_LVR, seen_NL.T, strict=True)]
    return word_V + torch.stack(told).sum(0).T
    ### END SOLUTION


# %%
checks.check_read_back(read_back)

# %% [markdown]
# On the film's text, the routes of the whole training's end: every other token's word is known, and
# the rest is read back. (That is a thousand words known, where the appendix has 25,600. A route is
# a layer's *first two* experts here, of four: 240 can occur, where four would be one of 43,680.)

# %%
route_TL = expert_LTK[..., 0].T * E + expert_LTK[..., 1].T
known_T = torch.arange(len(ids_T)) % 2 == 0
word_T, count_V = ids_T[known_T], ids_T[known_T].bincount(minlength=4096)
both_TL = word_T[:, None] * E**2 + route_TL[known_T]
count_LVR = torch.stack([one.bincount(minlength=4096 * E**2).view(4096, -1) for one in both_TL.T])
score_NV = read_back(count_V, count_LVR, route_TL[~known_T])
right = (score_NV.argmax(1) == ids_T[~known_T]).double().mean()
print(f"{right:.0%} of the words are read back, of {len(ids_T) // 2} seen")
print(f"always the most frequent word: {(ids_T[~known_T] == count_V.argmax()).double().mean():.0%}")

# %% [markdown]
# ## 9. Whom would you steer?
#
# *Difficulty ●●○○○ · importance ●●●○○ · 10 minutes*
#
# The same text, written in two ways, has gone through a layer. Each token has K different experts:
# `one_TK` for the first way, `two_SK` for the second, which need not have as many tokens. For each
# expert, give the share of the first text's tokens that have it among their K, less the share of
# the second's:
#
# $$\Delta_e = \frac{|\{t : e \in \text{one}_t\}|}{T} - \frac{|\{s : e \in
# \text{two}_s\}|}{S}$$
#
# By hand: three experts, K = 2; the first text has the tokens (0, 1), (0, 2), the second (1, 2),
# (2, 1), (1, 0), (2, 1). Expert 0 has 2 of 2 tokens and 1 of 4: 0.75. Expert 1 has 1 of 2 and 4 of
# 4: -0.5. Expert 2: 1 of 2 and 3 of 4, -0.25.
#
# <details>
# <summary>Hint 1</summary>
#
# A token's experts are different, so an expert's tokens are its pairs:
# `one_TK.flatten().bincount(minlength=num_experts)`.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# Divide by the number of tokens, not of pairs: an expert that all tokens have has a share of 1.
#
# </details>


# %%
def use_difference(one_TK: Tensor, two_SK: Tensor, num_experts: int) -> Tensor:
    """Tell by how much more of one text's tokens than of another's have each expert.

    Returns: delta_E, from -1 to 1.
    """
    ### BEGIN SOLUTION
    one_E, two_E = (x.flatten().bincount(minlength=num_experts) for x in (one_TK, two_SK))
    return one_E / len(one_TK) - two_E / len(two_SK)
    ### END SOLUTION


# %%
checks.check_use_difference(use_difference)

# %% [markdown]
# Drama against arithmetic, in the film's last frame: no pair of one content, so this is what the
# appendix's pair avoids. Can you say whether it is the words, the domain, or the line breaks?

# %%
drama_T, sums_T = topic_T == 0, topic_T == 4
for layer in (0, 5):
    delta_E = use_difference(expert_LTK[layer, drama_T], expert_LTK[layer, sums_T], E)
    print(f"layer {layer}: up {int(delta_E.argmax())}, down {int(delta_E.argmin())};", delta_E)
