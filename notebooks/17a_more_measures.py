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
# # Appendix to 17: more measures of what experts learn
#
# Chapter [17](17_what_experts_learn.ipynb) asks whether experts know words or kinds of text, and
# whether a model needs them. Here are the other questions that papers ask, each with its null:
# which words, which companions, when in training, which neighbours; then use against need over all
# 96 experts, what routes give away of a text, who can be steered, and how to do all this to a model
# of your own choice.
#
# **The papers:** Muennighoff et al. 2024, *OLMoE*
# ([arXiv:2409.02060](https://arxiv.org/abs/2409.02060)), section 5; Jiang et al. 2024, *Mixtral of
# Experts* ([arXiv:2401.04088](https://arxiv.org/abs/2401.04088)), section 5. **You need:** chapter
# 17. **Time:** an hour; the cells run in about a minute on two CPU cores.

# %%
from functools import partial
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import torch

from moe_lite import Mixtral, hf, record
from moe_lite.course import analysis, causal, charts, cost, data, effects, ledger, presets, viz
from moe_lite.course.film import Film
from moe_lite.course.widgets import RoutingExplorer

torch.manual_seed(0)
torch.set_num_threads(1)

# %%
corpus, model = data.load_corpus(max_bytes=600_000), hf.load_pretrained("mixtral-mini")
LENGTH, layers, E = 128, list(range(6)), model.config.num_local_experts
windows = [corpus.windows(domain, LENGTH, 12) for domain in corpus.domains]
ids_BS = torch.cat([part.ids_BS for part in windows])
domain_T = torch.cat([part.domain_BS for part in windows]).flatten()
word_T = ids_BS.flatten()


def routing_of(model, ids_BS):
    with torch.no_grad(), record(model, partial(data.pieces, corpus.tokenizer)) as recorded:
        model.eval()(ids_BS)
    return recorded.trace


B = routing_of(model, ids_BS)

# %% [markdown]
# ## 1. Which words, and who works with whom?
#
# To ask without any domain: **vocabulary specialisation** (OLMoE's eq. 8) is the share of a word's
# tokens that go to its favourite expert, $N_{x,E} / N_x$, averaged over the words that occur at
# least ten times. And its null, the same with the routing dealt out to other tokens:

# %%
vocabulary_L = analysis.vocabulary_specialization(B, word_T).nanmean(-1)
chance_L = analysis.vocabulary_specialization(analysis.shuffled(B, 0), word_T).nanmean(-1)
for layer in layers:
    print(f"layer {layer}: {vocabulary_L[layer]:.0%} of a word's tokens at its favourite expert; "
          f"dealt at random {chance_L[layer]:.0%}")  # fmt: skip

# %% [markdown]
# The favourite of a random routing gets more than 6.25%, and more than you might guess: the
# largest of 16 shares is always above their mean. A popular account that compares with 6.25%
# overstates its finding by that much before anything is found.
#
# Which words? For the two most specialised experts of the first and the last layer, the most
# frequent of the words that send them four tokens of five or more:

# %%
common = word_T.bincount(minlength=4096)
for layer in (0, 5):
    share_VE = analysis.specialization(B, word_T, 4096, choice="first")[layer].nan_to_num()
    weight_VE = torch.where((common >= 10)[:, None] & (share_VE > 0.8), common[:, None], 0)
    for expert in weight_VE.sum(0).topk(2).indices.tolist():
        best = weight_VE[:, expert].topk(9).indices.tolist()
        print(f"layer {layer}, expert {expert}: {data.pieces(corpus.tokenizer, best)}")

# %% [markdown]
# **Who works with whom?** Two experts are *coactive* on a token that has both. OLMoE's eq. 6,
# $N_{ij}/N_i$: of the tokens of expert $i$, the share that also goes to $j$. If experts are equally
# used, chance is $(K-1)/(E-1)$, one in five here. If they are not, a busy $j$ is everybody's
# companion by chance, in proportion to its load.

# %%
together_LEE = analysis.coactivation(B)
fig, panels = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained")
for panel, layer in zip(panels, (0, 5), strict=True):
    off = together_LEE[layer].masked_fill(torch.eye(E).bool(), torch.nan)
    image = panel.imshow(100 * off, cmap="cividis", vmin=0, vmax=80)
    panel.set(title=f"layer {layer}", xlabel="also to expert j", ylabel="of expert i's tokens")
_ = fig.colorbar(image, ax=panels, label="% (even chance: 20%)")

# %%
for layer in (0, 5):
    load_E = torch.bincount(analysis.choices_LTK(B)[layer].flatten(), minlength=E).double()
    off = together_LEE[layer].masked_fill(torch.eye(E).bool(), 0)
    for i, j in (divmod(n, E) for n in off.flatten().topk(3).indices.tolist()):
        chance = 3 * load_E[j] / (load_E.sum() - load_E[i])  # K - 1 = 3 companions
        print(f"layer {layer}: of expert {i}'s tokens {off[i, j]:.0%} go to {j} too, by its load "
              f"{chance:.0%}; the other way round {off[j, i]:.0%}")  # fmt: skip

# %% [markdown]
# The closest pairs meet 1.8 to 3.5 times as often as loads would have it. (A token has three
# companions of its expert, so chance is three times $j$'s share of the others' load.) And the table
# is not symmetric: a small expert can have a large one as its constant companion, and be one of
# many to it.
#
# ## 2. Over training: when does a router know?
#
# While the model was trained, its routing of twelve fixed texts, 2,400 tokens, was filmed. OLMoE's
# **saturation** (eq. 5) asks how much of the final routing was there already at step $t$:
#
# $$\text{saturation}(t) = \frac{1}{N} \sum_{n=1}^{N} \frac{|\mathcal{E}_n^{(t)} \cap
# \mathcal{E}_n^{(T)}|}{k}$$
#
# Chance is $k/E = 25\%$ if experts are equally used (the thin line).

# %%
film = Film.load(hf.PRETRAINED / "mixtral-mini" / "film.safetensors")
final = film.trace(film.steps[-1])
steps = film.steps
kept = torch.stack([analysis.saturation(film.trace(step), final) for step in steps])
lines = {f"layer {n}": (steps[1:], 100 * kept[1:, n]) for n in (0, 1, 3, 5)}
fig = viz.curves(lines, "training step", "saturation (%)", title="how much of the final routing")
fig.axes[0].axhline(25, color="#57606A", lw=0.8)
fig.axes[0].set(xscale="log", ylim=(0, 102))
for step in steps[1:-1]:
    now_L = kept[steps.index(step)]
    print(f"step {step:4} ({step / steps[-1]:4.1%}): {now_L.min():.0%} to {now_L.max():.0%}")
charts.alive(fig)

# %% [markdown]
# Read it from the right, where it is 100% by definition. About half of the final routing was there
# after 9% of the training. In OLMoE layer 0 was the last to settle; here it is the first. The
# ledger has the numbers, and whether they agree (`python -m moe_lite reproduce
# olmoe2024_saturation`). "Net of chance" stretches the scale so that chance is 0; "above" is a side
# of 0 that OLMoE's text names without a number:


# %%
def table(claims, stored):
    """Print each claim's verdict, the number that is claimed, ours, and the claim in words."""
    for claim in claims:
        ours = stored[claim.measure]
        row = f"{claim.judge(ours):24}{claim.paper:>6}{ours!s:>17}  "
        print(fill(claim.text, 98, initial_indent=row, subsequent_indent=" " * len(row)))


grown = ledger.stored("olmoe2024_saturation")
print(f"{'':15}{'paper':>6}{'ours':>15}")
table(ledger.load("olmoe2024_saturation").claims, grown)

# %% [markdown]
# Two rows are **contradicted**. Why?
#
# - *Layer 0 is behind the others*: it is ahead of their mean. Our vocabulary is small and layer 0
#   reads little but the token (chapter 17), whose vector is learned early. A guess.
# - *First choices settle later, with each one's chance taken out*: as the paper counts they do
#   (the row above it, reproduced). But of 4 in 16 a quarter is found by chance, of 1 in 16 a
#   sixteenth; take that out, and they settle a little *sooner*. That one is arithmetic, no guess:
#   "more slowly" was a matter of two nulls. (The row was added after the result.)
#
# And what comes first, in training? The two questions of chapter 17, along the film: what does the
# expert tell about the word beyond the domain, and about the domain beyond the word? (All layers'
# mean; the film has only twelve texts, a phone book's among them, so this is coarser.)


# %%
def beyond(one, label_T, other_T):
    """Bits that the first choice tells about a label, less those left when it is shuffled."""
    null = partial(analysis.permuted_information, one, label_T, range(5), choice="first")
    observed_L = analysis.mutual_information(one, label_T, choice="first")
    return observed_L - null(within_T=other_T).mean(0)


# %%
told_word, told_domain = [], []
ids_T, topic_T = film.ids_BS.flatten(), film.domain_BS.flatten()
for step in steps:
    told_word.append(beyond(film.trace(step), ids_T, topic_T).mean())
    told_domain.append(beyond(film.trace(step), topic_T, ids_T).mean())
lines = {"about the word, beyond the domain": (steps[1:], told_word[1:]),
         "about the domain, beyond the word": (steps[1:], told_domain[1:])}  # fmt: skip
fig = viz.curves(lines, "training step", "bits, mean of the layers", title="what the film tells")
fig.axes[0].set(xscale="log")
charts.alive(fig)

# %%
for step, *told in zip(steps, told_word, told_domain, strict=True):
    print("step {:4}: {:.2f} bits about the word, {:.2f} about the domain".format(step, *told))

# %% [markdown]
# Before the first step the two are alike: a random model mixes each token with its company. At step
# 35 the domain is ahead. By step 114 the word's line is nearly as high as it gets, and the domain's
# falls to half of what it was and on the mean does not come back; what training does with it is to
# sort it by depth, as chapter 17 shows: little at first, more at the last layer. With two texts of
# each domain, "the domain" here is also "this very text"; so trust the direction more than the
# height.
#
# Look for yourself. The slider goes through the film; click on a token to see its gates at every
# layer. Start at step 0, choose a frequent word, and look when its expert stops changing.

# %%
RoutingExplorer(film=film, layer=0, selected=20)

# %% [markdown]
# ## 3. Neighbours
#
# Mixtral's authors found something else. They looked for topics and did "not observe obvious
# patterns". Then they counted how often *consecutive tokens* get the same expert (their Table 5),
# at the first, a middle and the last layer, for the first choice and for any of a token's. If
# experts were chosen at random it would be 12.5% with Mixtral's eight, and for either of two
# $1 - \frac{6}{8}\cdot\frac{5}{7} = 46.4\%$. With ours, four of 16, it is 6.25% and 72.8%.

# %%
for experts, chosen in ((8, 2), (E, 4)):
    one, some = (analysis.repetition_chance(experts, k) for k in (1, chosen))
    print(f"by chance, {chosen} of {experts}: {one:.1%} first, {some:.1%} any")
rows = {"Mixtral: Github": (14.9, 28.1, 19.7, 49.9, 66.9, 49.2),
        "Mixtral: Gutenberg": (13.9, 26.1, 26.3, 49.5, 63.1, 52.2),
        "Mixtral: DM Mathematics": (14.1, 28.4, 19.7, 44.9, 67.0, 44.5)}  # fmt: skip


def repeats(one):
    return [100 * analysis.repetition(one, LENGTH, choice)[layer].item()
            for choice in ("first", "any") for layer in (0, 3, 5)]  # fmt: skip


of = {name: routing_of(model, part.ids_BS)
      for name, part in zip(corpus.domains, windows, strict=True)}  # fmt: skip

# %%
rows |= {f"ours: {name}": repeats(one) for name, one in of.items()}
rows |= {f"  {name}, shuffled": repeats(analysis.shuffled(one, 0, LENGTH))
         for name, one in of.items()}  # fmt: skip
print(f"{'':26}{'first choice':^24}{'any choice':^24}\n{'layer':26}"
      + f"{'first':>8}{'middle':>8}{'last':>8}" * 2)  # fmt: skip
for name, values in rows.items():
    print(f"{name:26}" + "".join(f"{value:8.1f}" for value in values))

# %% [markdown]
# Everything of ours is far above 6.25% and 72.8%. A finding? Look at the last five rows: the same
# routing with the tokens *of each text* in random order. At the first and the last layer most of
# the excess is there as well; in the middle, for the first choice, less than half of it in three
# texts of five. What is there says only that experts are used unequally within a text, and then any
# two tokens meet often, neighbours or not. What being neighbours adds is the difference. For the
# first choice it is largest at the middle layer, eight to sixteen points; elsewhere mostly less, or
# none. The chance that the paper prints is right for experts that are evenly used; look at your
# loads before you use it.
#
# Now Japanese at the first layer: its neighbours agree *less* on the first choice than its tokens
# in random order do. Neighbours are different things there, a word and its particle. Mixtral's DM
# Mathematics is below chance too, for either choice, at the first layer and at the last, layer 31
# (44.9 and 44.5 against 46.4), and perhaps for a reason of that sort. A number below chance is as
# much a pattern as one above it.
#
# The ledger counts more text, with intervals (`python -m moe_lite reproduce
# mixtral2024_repetition`). **Above shuffled text** ours is as in Mixtral's table, all six means:
# 2.0 ± 0.4 points at the first layer, 11.0 ± 0.6 in the middle, 7.1 ± 0.5 at the last, for first
# choices. What was **contradicted** there, and in OLMoE's section 5.3 and 5.4, and a guess at why:
#
# - *The middle layer is above the first*, net of the printed chance: by -5.3 ± 1.2 points. Above
#   shuffled text it is ahead. Our first layer uses its experts so unequally that any two tokens of
#   a text meet there: the printed chance is no null for it.
# - *Arithmetic, last layer, below chance for either choice*: twice, net of chance and above
#   shuffled text. Our sums come from a program and are all alike; what DM Mathematics has besides,
#   words, is not in them.
# - *Arithmetic is a domain apart in the last layer too*: by -0.12 ± 0.02. Another domain is further
#   from the rest there, and Mixtral's text had no such neighbour.
# - *Words are told better in the last layer than in the first*: by -0.46 ± 0.02. Our first layer
#   reads little but the token.
#
# ## 4. Use and need, over all experts
#
# Chapter 17 takes each of the 96 experts away on texts that nothing else has seen, and notes each
# domain's rise of the loss.

# %%
parts = [corpus.windows(name, LENGTH, 29).ids_BS[1::10] for name in corpus.domains]
fresh, of_domain_T = torch.cat(parts), torch.arange(5).repeat_interleave(parts[0].numel())
base = effects.Run.of(model, fresh)
rise_LEC = effects.without_each(model, base, of_domain_T)
used_LEC = analysis.specialization(routing_of(model, fresh), of_domain_T).mT

# %% [markdown]
# If going there were the same as needing it, the points below would lie on a
# rising curve, in every layer alike.

# %%
fig, panels = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for layer, mark in enumerate("os^Dv*"):
    rise = rise_LEC[layer].clamp(min=1e-5).flatten()
    panels[0].scatter(100 * used_LEC[layer].flatten(), rise, marker=mark, s=22, alpha=0.7,
                      color=plt.cm.cividis(layer / 5), label=f"layer {layer}")  # fmt: skip
panels[0].set(xlabel="% of a domain's pairs", ylabel="its loss rises by, nats", yscale="log",
              ylim=(5e-6, 50), title="96 experts, five domains")  # fmt: skip
panels[0].legend(fontsize=8, ncols=2, loc="upper right")
image = panels[1].imshow(rise_LEC.mean(-1).clamp(min=1e-4), cmap="cividis", norm="log")
panels[1].set(xlabel="expert", ylabel="layer", title="taken away: mean of the domains")
_ = fig.colorbar(image, ax=panels[1], label="nats")


# %%
def rank_correlation(a, b):
    a, b = (x.flatten().argsort().argsort().double() for x in (a, b))
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


for layer in range(6):
    observed = rank_correlation(used_LEC[layer], rise_LEC[layer])
    null = [rank_correlation(used_LEC[layer], rise_LEC[layer, torch.randperm(E)])
            for _ in range(500)]  # fmt: skip
    print(f"layer {layer}: use and need go together {observed:+.2f}; with experts renumbered "
          f"{np.mean(null):+.2f}, 95% below {np.quantile(null, 0.95):+.2f}")  # fmt: skip

# %% [markdown]
# (Points at the bottom are experts whose absence cost nothing, or less than nothing; on three texts
# a thousandth of a nat is noise.) Most of what can be lost is lost at layer 0, and in the middle an
# expert more or less makes little difference. Use and need go together above chance in five layers
# of six, and in layer 1 no more than experts renumbered do; and at one and the same use the need
# differs by a factor of hundreds. So "who uses it" is evidence, among colleagues of one layer, and
# it is weak.
#
# Two more questions separate *having a job* from *being the only one who can do it*. **Ban** an
# expert: now the router may take its next best instead. If the loss rises less than before,
# somebody else can do a part of the work. **Swap** it with another: every pair is computed by the
# wrong expert, with the right weight. For 5.14, an expert of the last layer that arithmetic alone
# misses, and the one of its layer that arithmetic uses next; and, for comparison, 0.5, that all
# miss:

# %%
at, expert, arithmetic = 5, 14, 4
next_best = int(used_LEC[at, :, arithmetic].index_fill(0, torch.tensor(expert), 0).argmax())
those = [causal.ablate(at, expert), causal.ban(at, expert), causal.swap(at, expert, next_best)]
for what in (*those, causal.ablate(0, 5), causal.ban(0, 5)):
    rise_C, words = effects.rises(model, base, of_domain_T, what), str(what).partition(",")[0]
    named = zip(corpus.domains, rise_C.tolist(), strict=True)
    print(f"{words:33}" + " ".join(f"{name} {value:+.3f}" for name, value in named))

# %% [markdown]
# And on other texts, the same ones for both, text by text:


# %%
def rise_B(what):
    """By how much does each text of arithmetic lose, in nats per token?"""
    ids = windows[arithmetic].ids_BS
    rise_T = effects.Run.of(model, ids, what).loss_T - effects.Run.of(model, ids).loss_T
    return rise_T.view(len(ids), -1).nanmean(1)


worse_B = rise_B(causal.ban(at, expert)) - rise_B(causal.ablate(at, expert))
error = 2.2 * worse_B.std() / len(worse_B) ** 0.5  # 95% of twelve texts
print(f"ban - ablate: {worse_B.mean():+.3f} ± {error:.3f} nats, paired over {len(worse_B)} texts")

# %% [markdown]
# Ablating leaves a hole; banning fills it with the next best, and for arithmetic that is *worse*
# than the hole, by 0.065 ± 0.031 nats. So among the sixteen nobody else can do this expert's work.
# For 0.5 banning is the milder of the two in drama, code and prose: there a colleague can do a part
# of it, and in arithmetic none can (three texts, no interval). Swapping hurts two kinds of text at
# once, because then both are answered by a stranger.
#
# ## 5. The text, read back from its routes
#
# If the first layers sort words, do the experts give the text away? Whoever runs the experts, on
# other machines, sees which of them a token goes to. Nuriyev and Kulp 2026
# ([arXiv:2602.04105](https://arxiv.org/abs/2602.04105); read: the abstract) trained networks on it:
# one that sees a token's experts in all layers names 63% of the tokens, one that reads 32 tokens'
# at once 91%. Here we only *count*. Of 200 texts of the training part the words are known. For a
# token seen later, word $w$ with the routes $r_1 \dots r_L$ has, by Bayes' rule and as if layers
# did not know of each other,
#
# $$\log p(w, r_1 \dots r_L) = \log p(w) + \sum_{l=1}^{L} \log p(r_l \mid w)$$
#
# and `analysis.read_back` names the best. A *route* is one expert at one rank: a layer's four
# choices, in order, are four routes, as if they did not know of each other either (four together
# would be one of 43,680 routes, most of them never seen). First each layer alone, then all six; an
# interval is over the 40 texts, 128 tokens each.

# %%
known = torch.cat([corpus.batch("train", 40, LENGTH, seed=1, step=n).ids_BS for n in range(5)])
secret = torch.cat([corpus.windows(name, LENGTH, 8).ids_BS for name in corpus.domains])
torch.manual_seed(0)
models = {"trained": model, "untrained": Mixtral(model.config)}
spied = {name: [analysis.choices_LTK(routing_of(one, x)).transpose(0, 1) for x in (known, secret)]
         for name, one in models.items()}  # fmt: skip


def right_B(then_TLK, now_TLK):
    """Give the share of each text's tokens that are read back right."""
    then_TN, now_TN = then_TLK.flatten(1), now_TLK.flatten(1)
    score_TV = analysis.read_back(then_TN, known.flatten(), now_TN, 4096, E)
    return (score_TV.argmax(1).view(secret.shape) == secret).float().mean(1)


# %%
then, now = spied["trained"]
read = {f"layer {n}": right_B(then[:, n], now[:, n]) for n in layers}
read["all six layers"] = right_B(then, now)
read["  first choices only"] = right_B(then[..., 0], now[..., 0])
read["  without their order"] = right_B(then.sort(-1).values, now.sort(-1).values)
read["  of an untrained model"] = right_B(*spied["untrained"])
read["  dealt to other tokens"] = right_B(then[torch.randperm(len(then))], now)
read["the most frequent word"] = (secret == known.flatten().mode().values).float().mean(1)


# %%
def over_texts(x_B):
    return f"{x_B.mean():6.1%} ± {2.02 * x_B.std() / len(x_B) ** 0.5:.1%}"  # t of 39


for name, right in read.items():
    print(f"{name:25}{over_texts(right)}")
for name in ("first choices only", "without their order", "of an untrained model"):
    print(f"all six - {name}: {over_texts(read['all six layers'] - read['  ' + name])}")

# %%
seen = now[: 6 * LENGTH].flatten(1)
score_TV = analysis.read_back(then.flatten(1), known.flatten(), seen, 4096, E)
guess_BS = score_TV.argmax(1).view(-1, LENGTH)
for text in (0, 5):
    for what, ids in (("the text:", secret[text]), ("its routes:", guess_BS[text])):
        print(f"{what:12}{corpus.tokenizer.decode(ids[20:44].tolist())!r}")

# %% [markdown]
# **Nearly two thirds of the words, by counting alone: 64.1 ± 4.1%.** Of the first layer alone 53.0
# ± 4.9%, of each of the last four 13 to 17%; what the first leaves open the others add. Dealt to
# other tokens, the routes are worth less than always naming the most frequent word. Part of the
# leak was never learned: an untrained model's routes give 30.1 ± 8.1% (one model). Training adds
# 34.0 ± 5.2 points. That all four experts of a layer are seen, and not the first alone, adds 23.1 ±
# 2.1, and their order 3.3 ± 1.2.
#
# Our words are 4,096 and our texts of five kinds, the paper's model and text are others: compare
# the shape and not the number. Exercise 8 is the decoder.
#
# ## 6. Steering by paired texts
#
# Fayyaz et al. 2025, *SteerMoE* ([arXiv:2509.09660](https://arxiv.org/abs/2509.09660); read: the
# abstract, and the rule in reviews of the paper) turn the question round: write the same text in
# two ways, see which experts one way uses more, and switch those on or off in a text that is
# neither. Theirs were safe and unsafe answers. Ours is a pair that a small model knows: a text, and
# the same text in CAPITALS. $\Delta$ is the share of the tokens that have an expert among their
# choices, in capitals less as written:

# %%
batch = corpus.batch("train", 60, LENGTH, seed=2)
plain = batch.ids_BS[torch.isin(batch.domain_BS[:, 0], torch.tensor([0, 3]))]  # drama and prose
shouted = [corpus.tokenizer.encode(corpus.tokenizer.decode(ids.tolist()).upper()).ids
           for ids in plain]  # fmt: skip
shouted = torch.tensor([ids[:LENGTH] for ids in shouted])


# %%
def share_N(ids_BS):
    """Give the share of the tokens that have each of the 96 experts."""
    loads = [routing.load_E() for routing in effects.Run.of(model, ids_BS).routings]
    return torch.cat(loads) / ids_BS.numel()


load_N = share_N(plain)
delta_N = share_N(shouted) - load_N
order = delta_N.argsort(descending=True).tolist()
for n in (*order[:3], *order[-3:]):
    print(f"layer {n // E}, expert {n % E}: {load_N[n]:.0%} as written, {delta_N[n]:+.0%}")

# %% [markdown]
# `causal.steer` puts an expert's score above all others, or below. Up go the $n$ experts with the
# largest $\Delta$ and down those with the smallest, or, away from capitals, the reverse. On
# held-out texts: how much of the next token's probability is on tokens in capitals?
# **The null:** as many other experts of the same layers, each drawn from the three with the most
# similar load, five times. (Sizes 1, 2 and 4 were tried before, on other texts.)

# %%
pieces = [corpus.tokenizer.decode([n]) for n in range(4096)]
capital_V = torch.tensor([piece.isupper() for piece in pieces])
heard = torch.cat([corpus.windows(name, LENGTH, 17).ids_BS[1::2] for name in ("drama", "prose")])


def loud_B(up=(), down=()):
    """Give each text's probability of capitals, and its loss, if experts are steered."""
    pairs = [[divmod(n, E) for n in experts] for experts in (up, down)]
    with causal.steer(model, *pairs):
        run = effects.Run.of(model, heard)
    return (run.log_probs_BSV.exp()[..., capital_V].sum(-1).mean(1),
            run.loss_T.view(len(heard), -1).nanmean(1))  # fmt: skip


# %%
def others(experts, taken, rng):
    """Draw for each expert another one of its layer with a similar load."""
    drawn = []
    for n in experts:
        free = [e for e in range(n // E * E, n // E * E + E) if e not in taken and e not in drawn]
        near = sorted(free, key=lambda e: abs(load_N[e] - load_N[n]))[:3]
        drawn.append(near[int(torch.randint(3, (), generator=rng))])
    return drawn


as_it_is, loss_B = loud_B()
print(f"as it is: {as_it_is.mean():.1%} on capitals")

# %%
rng, half = torch.Generator().manual_seed(0), 2.13 / len(heard) ** 0.5  # t of 15
for n in (1, 2, 4):
    for name, up, down in (("towards", order[:n], order[-n:]), ("away", order[-n:], order[:n])):
        steered_B, after_B = loud_B(up, down)
        nulls = []
        for _ in range(5):
            drawn = others(up + down, up + down, rng)
            nulls.append(loud_B(drawn[:n], drawn[n:])[0])
        more_B = steered_B - torch.stack(nulls).mean(0)
        print(f"{n} up and {n} down, {name:7}: {steered_B.mean():5.1%} on capitals, null "
              f"{torch.stack(nulls).mean():5.1%}, more {more_B.mean():+.1%} ± "
              f"{half * more_B.std():.1%}; loss {(after_B - loss_B).mean():+.2f}")  # fmt: skip

# %% [markdown]
# **It is small: with one up and one down +0.7 ± 0.6 points towards capitals and -0.3 ± 0.2 away;
# with four and four +2.0 ± 1.2 and -2.2 ± 1.0** (more than others with a similar load of the same
# layers, five draws; ± is over the 16 texts, not over the draws; two and two towards is undecided).
# And look at the other numbers. As it is 6.8% are on capitals, and four up leave 7.4%: much of the
# difference is the *null* falling, since any four strangers sent to every token take capitals away.
# Towards capitals the loss rises by 0.9 to 1.4 nats. That is what $\Delta$ does not promise: the
# expert that goes up first has 90% of the tokens in capitals and 9% of the rest, and still the
# model does not go over to capitals when every token is sent there. This is one model and one pair;
# the paper's pairs are behaviours, and of those it says nothing.
#
# ## 7. Other people's models
#
# All but sections 4 and 6 read nothing but a `RoutingTrace`, and `record` makes one of nearly
# every sparse model in Hugging Face's transformers (73 families of 75; README has the table), with
# its own tokenizer. On a larger machine, three lines after the model is loaded:
#
# ```python
# from transformers import AutoModelForCausalLM, AutoTokenizer
#
# name = "allenai/OLMoE-1B-7B-0924"  # or Qwen/Qwen3-30B-A3B, openai/gpt-oss-20b, a folder
# model = AutoModelForCausalLM.from_pretrained(name, dtype="bfloat16", device_map="auto")
# tokenizer = AutoTokenizer.from_pretrained(name)
# with torch.no_grad(), record(model, tokenizer) as recorded:
#     model(**tokenizer(text, return_tensors="pt").to(model.device))
# traces.save(recorded.trace, "trace.safetensors")  # of moe_lite.course
# ```
#
# At home `traces.load` reads it, for analysis and pictures, and `python -m moe_lite explore --trace
# trace.safetensors` opens it ([how](../docs/tracing.md)).
#
# What it needs is memory for *all* experts, but no gradients. The trace itself holds two numbers
# for each token, layer and expert. From the configs:

# %%
for name in ("OLMoE", "Qwen3-30B-A3B", "Mixtral 8x7B"):
    shape = presets.PRESETS[name]
    count = cost.count_parameters(shape)
    bf16, four = 2 * count.total / 1e9, count.total / 2e9
    print(f"{name:14} {shape.moe_layers} layers, {shape.top_k} of {shape.experts} experts: "
          f"{bf16:5.1f} GB in bf16, {four:5.1f} GB in 4; trace of 1,000 tokens "
          f"{8e3 * shape.moe_layers * shape.experts / 1e6:.0f} MB")  # fmt: skip

# %% [markdown]
# In bf16 OLMoE fits a GPU of 24 GB, or a computer with 32 GB of memory and some patience. The other
# two want an 80-GB GPU, or two, or weights in 4 bits (which changes choices near a tie; say so if
# you publish). Here tiny ones of the same three architectures, with random weights, so that you see
# it run:

# %%
try:
    import transformers
except ImportError:
    transformers = print("pip install transformers, to see this cell at work")
small = dict(vocab_size=4096, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, num_experts_per_tok=2, eos_token_id=0)  # fmt: skip
tiny = {
    "Mixtral": dict(intermediate_size=64, num_local_experts=8),
    "Olmoe": dict(intermediate_size=32, num_experts=16),
    "Qwen3Moe": dict(moe_intermediate_size=32, num_experts=16, head_dim=16),
}

# %%
some, about_T = ids_BS[::4], domain_T.view(-1, LENGTH)[::4].flatten()
for name in tiny if transformers else ():
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**small, **tiny[name])
    one = routing_of(getattr(transformers, f"{name}ForCausalLM")(config), some)
    bits = analysis.mutual_information(one, about_T, choice="first")[0]
    null = analysis.permuted_information(
        one, about_T, range(5), choice="first", within_T=some.flatten()
    )
    print(f"{name:9} {one.layers[0].num_experts} experts, first layer: {bits:.2f} bits about the "
          f"domain, of which words explain {null[:, 0].mean():.2f}")  # fmt: skip

# %% [markdown]
# Three random models, and in each the expert tells something about the domain: mostly words.
#
# | in the papers | in the code | |
# |---|---|---|
# | $N_{x,E}/N_x$, OLMoE eq. 8 | `analysis.vocabulary_specialization(trace, ids_T)` | `shuffled` |
# | $N_{ij}/N_i$, eq. 6 | `analysis.coactivation(trace)` | chance $(K-1)/(E-1)$ |
# | saturation, eq. 5 | `analysis.saturation(early, final)` | chance $k/E$ |
# | Mixtral Table 5 | `analysis.repetition(trace, length, choice)` | `repetition_chance(E, K)` |
# | the text, from its routes | `analysis.read_back(...)` | the most frequent word |
# | $\Delta$, SteerMoE | `causal.steer(model, up, down)` | others with a similar load |
