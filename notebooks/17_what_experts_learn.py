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
# # What do experts learn?
#
# **Three lines of answer.** In the first layers mostly words, in the last one words and kinds of
# text about equally. An untrained model shows such a picture too, so a picture proves nothing: a
# number needs its nulls. And an expert that is used need not be needed: take it away and look.
#
# **The papers:** Muennighoff et al. 2024, *OLMoE*
# ([arXiv:2409.02060](https://arxiv.org/abs/2409.02060)), section 5, for the measures; Jiang et al.
# 2024, *Mixtral of Experts* ([arXiv:2401.04088](https://arxiv.org/abs/2401.04088)), section 5, for
# the claims.
#
# In this chapter you
#
# - see two pictures of specialisation, and learn what neither of them proves;
# - build the *nulls* by which every claim of the chapter is held;
# - try the measure where the best router is **known**;
# - read the course's trained Mixtral, layer by layer;
# - take an expert away in three ways, and see who suffers.
#
# **You need:** PyTorch and chapter 00 or 10. No GPU, no network.
# **Time:** an hour to read and try; the cells run in under two minutes on two CPU cores. The
# [appendix](17a_more_measures.ipynb) has training, neighbours, companions and other people's
# models.

# %%
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import torch

from moe_lite import Mixtral, hf, record
from moe_lite.course import analysis, asking, causal, data, drawings, effects, ledger, viz
from moe_lite.course.languages import Languages, agreement
from moe_lite.course.widgets import RoutingExplorer

torch.manual_seed(0)
torch.set_num_threads(1)
torch.set_printoptions(precision=2, sci_mode=False)

# %%
drawings.what_experts_learn()

# %% [markdown]
# ## 1. A picture that means nothing
#
# Here is held-out text from the course's five domains (without the phone book): twelve pieces of
# each, 128 tokens long. Two models of one shape read it: six layers of 16 experts, four for each
# token. We note who went where. The first choice, the expert with the largest gate, is enough for
# most of this chapter.

# %%
corpus = data.load_corpus(max_bytes=600_000)
LENGTH = 128
windows = [corpus.windows(domain, LENGTH, 12) for domain in corpus.domains]
ids_BS = torch.cat([part.ids_BS for part in windows])
domain_T = torch.cat([part.domain_BS for part in windows]).flatten()
word_T = ids_BS.flatten()


def routing_of(model, ids_BS):
    with torch.no_grad(), record(model, partial(data.pieces, corpus.tokenizer)) as recorded:
        model.eval()(ids_BS)
    return recorded.trace


# %% [markdown]
# For each domain, the share of its tokens that each expert gets. OLMoE calls it **domain
# specialisation** (its eq. 7, for first choices): $N_{E,D} / N_D$. Given out evenly, it would be
# one token in sixteen, 6.25%. Both models, at the first layer:

# %%
model = hf.load_pretrained("mixtral-mini")
E = model.config.num_local_experts
traces = {"A": routing_of(Mixtral(model.config), ids_BS), "B": routing_of(model, ids_BS)}
fig, panels = plt.subplots(1, 2, figsize=(10, 2.9), layout="constrained")
for panel, (name, one) in zip(panels, traces.items(), strict=True):
    share_CE = analysis.specialization(one, domain_T, choice="first")[0]
    image = panel.imshow(100 * share_CE, cmap="cividis", vmin=0, vmax=60)
    panel.set(title=f"model {name}, layer 0", xlabel="expert", yticks=range(5))
    panel.set_yticklabels(corpus.domains)
_ = fig.colorbar(image, ax=panels, label="% of the domain's tokens")

# %% [markdown]
# **Your turn.** One of the two has been trained. Which? Decide before you read on.
#
# <details>
# <summary>The answer</summary>
#
# Model B. **Model A has random weights**: it was made in the cell above and has never read a word.
#
# </details>
#
# Rows differ in both, arithmetic has its favourite experts in both, and drama and prose resemble
# each other. A random router draws lines through the space of token vectors. All tokens "7" have
# nearly one vector, so they go to one expert; and because arithmetic is full of sevens, arithmetic
# has a favourite. Nobody learned anything. So ask three questions of every claim about experts:
#
# 1. **How large is it where there is nothing to find?** A number needs its null.
# 2. **What else would give the same picture?** Here: the words.
# 3. **Does anything happen when the expert is gone?** A correlation is not yet a job.
#
# ## 2. A number and its nulls
#
# How much does the expert *tell* about the domain? The measure that needs no assumption is
# **mutual information**, in bits:
#
# $$I = \sum_{c,e} p(c,e)\, \log_2 \frac{p(c,e)}{p(c)\,p(e)}$$
#
# with $p(c, e)$ the share of the tokens that have domain $c$ and expert $e$. It is 0 if domains and
# experts have nothing to do with each other, and with five equally frequent domains at most
# $\log_2 5 \approx 2.3$ bits. By hand, for two domains and two experts, and then for our model:


# %%
def information(count_CE):
    p_CE = count_CE.double() / count_CE.sum()
    chance_CE = p_CE.sum(1, keepdim=True) * p_CE.sum(0)
    return torch.where(p_CE > 0, p_CE * (p_CE / chance_CE).log2(), 0).sum()


print(f"tells all:     {information(torch.tensor([[4, 0], [0, 4]])):.3f} bits")
print(f"tells nothing: {information(torch.tensor([[2, 6], [1, 3]])):.3f} bits")
first_T = analysis.choices_LTK(traces["B"])[3, :, 0]
count_CE = torch.bincount(domain_T * E + first_T, minlength=5 * E).view(5, E)
bits_L = analysis.mutual_information(traces["B"], domain_T, choice="first")
torch.testing.assert_close(information(count_CE), bits_L[3])
print(f"model B, layer 3: {bits_L[3]:.3f} bits about the domain; the library says the same")

# %% [markdown]
# **First null: shuffled labels.** Deal the domains out to the tokens at random and measure again.
# It is not 0: counts scatter, and scatter looks like information, about
# $(C-1)(E-1) / (2\,T \ln 2)$ bits for $C$ labels and $T$ independent tokens.
#
# **Second null: shuffled texts.** Tokens of one text are not independent. If a single play speaks
# of horses all the time, and horses go to expert 3, then "drama goes to expert 3" rests on *one*
# observation, not on 128. So let whole texts change places.
#
# **Third null: shuffled among equal words.** Each "7" gets the domain of another "7". Every word is
# as frequent in every domain as before, and goes where it went. What survives is what the *words*
# explain; only what lies above says that the same word is treated differently in another domain.
# (The null is strict: a word that occurs in one domain only is counted as the word's.)

# %%
nulls = {"labels": {}, "texts": {"block": LENGTH}, "equal words": {"within_T": word_T}}
print("bits about the domain, and at most in 20 shuffles of")
for name, layer in (("A", 0), ("B", 0), ("A", 5), ("B", 5)):
    one = traces[name]
    told = partial(analysis.permuted_information, one, domain_T, range(20), choice="first")
    most = {null: told(**how)[:, layer].max() for null, how in nulls.items()}
    observed = analysis.mutual_information(one, domain_T, choice="first")[layer]
    print(f"model {name}, layer {layer}: {observed:.3f};  "
          + ", ".join(f"{null} {value:.3f}" for null, value in most.items()))  # fmt: skip

# %% [markdown]
# Read the first row. Model A has learned nothing, and passes two tests: its experts tell forty
# times what shuffled labels give, and three times what shuffled texts do. The third null takes
# two thirds of it away: it was the words. And the rest? Random attention also mixes: a token's
# vector holds a little of its neighbours. At the last layer (third row) that has gone so far that
# whole texts stick to an expert: there its number is no more than chance between *texts*, and the
# first null, on its own, would have called it a discovery. So there is a fourth null, and it is the
# simplest: **the same model, untrained.** If somebody shows you what training did, ask what was
# there before.
#
# Now the trained model. At its first layer the expert tells three times what A's does, and the
# third null gives nearly the same number. What this layer tells needs hardly any topics. At the
# last layer words explain more than half, and what remains is more than twice what they leave of
# A's. *That* was learned.
#
# (To beat all of twenty shuffles happens once in 21 times by chance. That answers "is there
# anything?"; the *distance* to the null answers "how much?", and with thousands of tokens that is
# the question.)
#
# ## 3. Where the truth is known
#
# So we make a world where the answer is known. A sentence has four words: a tag that names one of
# eight *languages*, a noun, a verb, and a second noun that follows from the first by one of eight
# permutations. All languages share all words. In one kind of world **the language decides** which
# permutation: the best router looks at the tag, two tokens back. In the other **the verb decides**:
# the best router looks at the word in hand. And a decoy: each language takes "its own" verb in
# seven of ten sentences, so language and verb go together in both worlds, and only one of them is
# the cause.
#
# One layer, eight tiny experts, one for each token, and a Switch router (chapter 05) that has to
# find out by itself. Its experts, held against the cause and against the decoy:

# %%
world = Languages("language")
learner = world.learn(world.setting("switch")).model.eval()
ids = world.batch("validation", 4096).ids_BS
routed, label = world.trace(learner, ids), world.labels(ids)
for name, other in (("language", "verb"), ("verb", "language")):
    bits = analysis.mutual_information(routed, label[name]).item()
    within = analysis.permuted_information(routed, label[name], range(20), within_T=label[other])
    fits = agreement(analysis.choices_LTK(routed)[0, :, 0], label[name])
    print(f"{name:9} {bits:.2f} bits; shuffled among equal {other}s {within.mean():.2f}; "
          f"best match {fits.accuracy:.0%}, chance {np.mean(fits.null_accuracy):.0%}")  # fmt: skip

# %%
known = ledger.stored("synthetic_languages")
for cause in ("language", "verb"):
    decoy = known[f"explained of the decoy; the {cause} decides"]
    print(
        f"the {cause} decides: the cause explains {decoy} of the decoy ({len(known.seeds)} seeds)"
    )

# %% [markdown]
# (The *best match* names each expert so that as many tokens as possible agree.) One seed is an
# anecdote, so the last lines have five, from the ledger. Where the verb decides, the third null
# finds the decoy out: shuffled among tokens with one cause, it keeps *all* its bits. Where the
# language decides it keeps 0.95 ± 0.15, which is inconclusive; the seed above was a weak one. And
# **the learned router is far from the best one**, though a router with 100% exists and has the
# lower loss. It is no closer where the word in hand decides (0.19 ± 0.04) than where the context
# does (0.27 ± 0.11).
#
# ## 4. The course's model: words first
#
# For each layer of the trained Mixtral two questions, each about what the other leaves open: how
# much does the expert tell about the **word** in hand beyond the domain, and how much about the
# **domain** beyond the word? Both times the third null is taken off. And eight untrained models
# stand beside, as a band.


# %%
def told(one, label_T, within_T=None, **how):
    """Bits that the first choice tells about a label, and those left when it is shuffled."""
    null = partial(analysis.permuted_information, one, label_T, range(5), choice="first")
    observed_L = analysis.mutual_information(one, label_T, choice="first")
    return observed_L, null(within_T=within_T, **how).mean(0)


def beyond(one, label_T, other_T):
    all_L, explained_L = told(one, label_T, other_T)
    return all_L - explained_L


# %%
B, untrained = traces["B"], []
for seed in range(8):
    torch.manual_seed(seed)
    untrained.append(routing_of(Mixtral(model.config), ids_BS))
word_LU = torch.stack([beyond(one, word_T, domain_T) for one in untrained], 1)
company_LU = torch.stack([beyond(one, domain_T, word_T) for one in untrained], 1)
word_L, company_L = beyond(B, word_T, domain_T), beyond(B, domain_T, word_T)
all_L, by_words_L = told(B, domain_T, word_T)
dealt = [analysis.permuted(domain_T, seed, block=LENGTH) for seed in range(3)]
dealt_L = torch.stack([beyond(B, label_T, word_T) for label_T in dealt]).mean(0)
for layer in range(6):
    low, high = company_LU[layer].min(), company_LU[layer].max()
    place = "above" if company_L[layer] > high else "below" if company_L[layer] < low else "in"
    print(f"layer {layer}: the domain beyond the word {company_L[layer]:.2f} bits, {place} the "
          f"untrained band, {low:.2f} to {high:.2f}")  # fmt: skip

# %%
left = {"the word": word_L, "the domain": company_L}
right = {"observed": all_L, "explained by words": by_words_L,
         "beyond, dealt to other texts": dealt_L}  # fmt: skip
fig, panels = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
for panel, title, curves in ((panels[0], "beyond the other, about ...", left),
                             (panels[1], "the domain: what explains it?", right)):  # fmt: skip
    curves = {name: (range(6), bits_L) for name, bits_L in curves.items()}
    viz.curves(curves, "layer", "bits", title=title, ax=panel)
    panel.set(ylim=(0, None), xticks=range(6))
for name, bits_LU, color in zip(left, (word_LU, company_LU), ("#0072B2", "#D55E00"), strict=True):
    panels[0].fill_between(range(6), bits_LU.amin(1), bits_LU.amax(1), color=color, alpha=0.2,
                           label=f"{name}, 8 untrained models")  # fmt: skip
_ = panels[0].legend(fontsize=8)

# %% [markdown]
# **Words first.** At layer 0 the expert tells 1.6 bits about the word, and about the domain a tenth
# of a bit that the word has not told: no more than an untrained model. With depth the one falls and
# the other rises. **Mind the band:** at layers 1 and 2 the trained model is *below* all eight that
# never learned anything: it treats a word in other company more alike than they do. It has learned
# to look at the token and to ignore the company. At layers 3 and 4 it is where they are. **Only at
# the last layer it is above all eight**, and there the expert tells about as much of the domain as
# of the word, six tenths of a bit. A look at the last two layers without the band would have found
# "topics" twice.
#
# Is it the domain, and not just *this very text*? "Dealt to other texts" gives the domains to other
# texts, whole, and takes the words off as before: the second null and the third at once. At the
# last layer that gives 0.08 bits: so much of the 0.57 is chance between texts. And "the company" is
# more than the domain: it may be syntax, the place in a line, or the letters before.
#
# **Your turn.** Which experts would you call "the arithmetic experts"? Write down your criterion
# before you run the next section.
#
# ## 5. Take it away
#
# All that was correlation. So take an expert away: an **ablated** one contributes nothing to its
# tokens, and their other gates stay as they were. We do it to each of the 96, one after the other,
# on texts that none of the numbers above has seen. A sixth kind joins them: the invented *phone
# book* that this model has read, because it is made of digits too. By how much does the loss of
# each kind rise?

# %%
book = data.load_corpus((data.BOOK,))
kinds, sixth = (*corpus.domains, data.BOOK), book.windows(data.BOOK, LENGTH, 29).ids_BS
parts = [corpus.windows(name, LENGTH, 29).ids_BS[1::10] for name in corpus.domains]
fresh, of_kind_T = torch.cat([*parts, sixth[1::10]]), torch.arange(6).repeat_interleave(3 * LENGTH)
base = effects.Run.of(model, fresh)
rise_LEC = effects.without_each(model, base, of_kind_T)
used_LEC = analysis.specialization(routing_of(model, fresh), of_kind_T).mT

# %% [markdown]
# The expert that arithmetic *uses most*; the one it *misses most*; the one that it *misses alone*
# (drama, code, Japanese and prose lose less than a tenth as much; the book is not asked); and the
# one that the phone book misses most. The first three of each kind:

# %%
sums, ours_LE, others_LE = 4, rise_LEC[..., 4], rise_LEC[..., :4].mean(-1)  # 4 is arithmetic
alone_LE = ours_LE.where(others_LE < 0.1 * ours_LE, 0)
ways = {"used most": used_LEC[..., sums], "missed most": ours_LE,
        "missed alone": alone_LE, "book misses": rise_LEC[..., 5]}  # fmt: skip
print(f"{'':25}of its\n{'':25}pairs " + "".join(f"{name:>11}" for name in kinds))
for way, score_LE in ways.items():
    for at, expert in (divmod(n, E) for n in score_LE.flatten().topk(3).indices.tolist()):
        print(f"{way:14}{at}.{expert:<8}{used_LEC[at, expert, sums]:6.0%} "
              + "".join(f"{rise:+11.3f}" for rise in rise_LEC[at, expert]))  # fmt: skip

# %% [markdown]
# (The pairs are arithmetic's; it has four for each token, so no expert can have more than 25%.) The
# best of 96 were picked by three texts of a kind: the winner of such a contest had some luck. So a
# second look at four of them, on twelve other texts of arithmetic. **And is zero a fair
# replacement?** Nothing in training ever put a zero in an expert's place. Two gentler ones: the
# expert's **mean** answer, which keeps what it says to every token alike; and **resampling**, what
# it answered to another of its tokens.

# %%
sums_BS, four = windows[sums].ids_BS, ((1, 6), (0, 5), (5, 14), (0, 13))
for at, expert in four:
    print(f"expert {at}.{expert:<2}, arithmetic:", end="")
    for how in ("zero", "mean", "resampled"):
        rise_B = effects.replaced(model, sums_BS, at, expert, how).rise_T.view(12, -1).nanmean(1)
        print(f"  {how} {rise_B.mean():+.3f} ± {2.2 * rise_B.std() / 12**0.5:.3f}", end="")
    print()
routing = effects.Run.of(model, sums_BS).routings[0]
mine_N, newline = routing.expert_N == 5, corpus.tokenizer.encode("\n").ids[0]
gate_N, line_N = routing.gate_N[mine_N], sums_BS.flatten()[routing.token_N[mine_N]] == newline
print(f"0.5's tokens: {line_N.float().mean():.0%} are line breaks, mean gate "
      f"{gate_N[line_N].mean():.2f}; the others {gate_N[~line_N].mean():.2f}")  # fmt: skip

# %% [markdown]
# (± is the 95% interval over the texts.) **1.6** gets 18% of arithmetic's pairs, second of all 96,
# and nobody notices when it is gone: "layer 1 has an arithmetic expert" is true as a picture and
# explains nothing. **0.5** has 3% of them, and everybody misses it; but put its mean in its place
# and nothing is lost, 0.000 ± 0.006. It does not tell all tokens the same: another one's answer
# costs 0.7. Six in ten are line breaks, with large gates; probably the mean keeps what matters to
# them. **5.14** is missed by arithmetic alone, and the mean is twice as *bad* as silence. **0.13**
# is missed under every replacement, and by none of the other four domains: against those the claim
# has passed. But the phone book misses it too (+0.235). For these last two another token's answer
# is the worst: a wrong answer costs more than none. Say which replacement you took.
#
# But is 0.13 for arithmetic, or for digits? Keep the sums and change what stands *before* them: 64
# tokens of another kind, then 64 tokens of arithmetic, the same ones each time. The share of their
# digits that use 0.13, and 0.11, by the distance from the seam:

# %%
before = {name: part.ids_BS for name, part in zip(corpus.domains, windows, strict=True)}
entries_BS = before[data.BOOK] = sixth[::2][:12]
for name, ids in before.items():
    behind = routing_of(model, torch.cat([ids[:, 64:], sums_BS[:, :64]], 1))
    digit_T = torch.tensor([piece.strip().isdigit() for piece in behind.tokens])
    digit_S = digit_T.view(12, 8, 16)[:, 4:]
    print(f"sums behind {name:11}", end="")
    for expert in (13, 11):
        there = (analysis.choices_LTK(behind)[0] == expert).any(-1).view(12, 8, 16)[:, 4:]
        shares = (there & digit_S).sum((0, 2)) / digit_S.sum((0, 2))
        print(f"   0.{expert}:" + "".join(f"{share:5.0%}" for share in shares), end="")
    print()

# %% [markdown]
# **0.11 is for digits**: nearly all of them go there, whatever stood before. **0.13 is not**: it
# has 40 to 50% of the digits where other sums are all that has been read, and next to none of *the
# same digits* behind a play, a program or a phone book, 64 tokens on. In the first layer! Its
# router comes after its attention, and that has read the page. So "for digits" is one thing and
# "for pages of sums" another, and the picture of section 1 does not tell them apart.
#
# ### One layer, three experts, two kinds of text
#
# The phone book was in the table because it can be *asked*: what number has this name? Here are
# three experts of the first layer, taken away one at a time, before twelve texts of each kind, none
# of those that chose them, and 100 questions. **Your turn.** 0.2, which the book misses most, is
# used by two thirds of the sums' tokens. What will they lose?

# %%
asked = asking.Questions(corpus.tokenizer, 100)
told_of = "  known {:.0%} ± {:.0%}".format
print("as it is:", told_of(*asking.share(asked.known(model))))
shown = {"sums": (sums_BS, effects.Run.of(model, sums_BS)),
         "book": (entries_BS, effects.Run.of(model, entries_BS))}  # fmt: skip
for expert in (2, 11, 13):
    print(f"without 0.{expert}:", end="")
    for name, (ids, one) in shown.items():
        used = one.routings[0].load_E()[expert] / ids.numel()
        rise_T = effects.Run.of(model, ids, causal.ablate(0, expert)).loss_T - one.loss_T
        rise_B = rise_T.view(12, -1).nanmean(1)
        print(f"  {name} ({used:.0%} use it) {rise_B.mean():+.3f} ± "
              f"{2.2 * rise_B.std() / 12**0.5:.3f};", end="")  # fmt: skip
    print(told_of(*asking.share(asked.known(model, causal.ablate(0, expert)))))

# %% [markdown]
# **Without 0.2 no number is left, and the sums, two thirds of which go there, lose 0.007 ± 0.008
# nats: at most 0.015.** Without 0.13 the sums lose 1.3 nats, and the book a fifth of that, but more
# than half of its known numbers go: 61% fall to 26 ± 9%. Without 0.11, the digits' expert, both
# suffer. Two damages that hit different things are called a *double dissociation*; this one is
# clean in one direction only. It is the best evidence in this chapter, because each expert is the
# other's control: same layer, same digits, and used by both. What it does not say: that the numbers
# *lie in* 0.2. Four nats over all tokens, of which a third are digits: names are predicted worse as
# well, and who cannot read a name cannot find its number.
#
# **Balance is not use.** The balancing loss of this model counts *pairs*: a first choice with a
# gate of 0.7 is one, a fourth with 0.03 is one as well. So a router can satisfy it by parking an
# expert on the last place. The **gate mass** is the share of all gates that it carries:

# %%
everywhere_T = torch.zeros_like(word_T)  # one label for all tokens: shares of everything
pairs_LE = analysis.specialization(B, everywhere_T)[:, 0]
first_LE = analysis.specialization(B, everywhere_T, choice="first")[:, 0]
mass_LE = analysis.gate_mass(B)
for place in (mass_LE / pairs_LE).flatten().topk(4, largest=False).indices.tolist():
    at, expert = divmod(place, E)
    print(f"{at}.{expert}: {pairs_LE[at, expert]:5.1%} of the pairs, first choice of "
          f"{first_LE[at, expert]:4.1%} of the tokens, {mass_LE[at, expert]:4.1%} of the gates; "
          f"without it {rise_LEC[at, expert].mean():+.3f} nats")  # fmt: skip

# %% [markdown]
# The first of them is hardly ever a first choice. It has nine tenths of an equal share of the
# pairs, as the loss wants it, and a third of one of the gates; and the model does not notice when
# it is gone. Every "load" that counts pairs calls it well used.
#
# You can ask such things of any sentence. In the page below click on a token, then ablate, force or
# swap: it shows the next-token distribution and the loss of what follows. Its load has both
# numbers, pairs and gates. **Your turn.** Predict: without 0.11, which tokens' loss will rise?
# (*What if* asks for another guess.) Then ablate it. (What you see without a kernel is its
# picture.)

# %%
text = "17 + 25 = 42\n30 + 14 = 44\ndef add(a, b):\n    return a + b"
RoutingExplorer(text, model=model, layer=0, selected=0)

# %% [markdown]
# ### Specialists made on purpose
#
# So far nobody asked the experts to be specialists. *EMO* (Wang, Bhagia and Min 2026,
# [arXiv:2605.06663](https://arxiv.org/abs/2605.06663)) does: while training, all tokens of a
# document share a pool of experts, those that they believe in most on average. Take the small model
# of chapter 09, five seeds, and keep a quarter of its experts for one kind of text:

# %%
recent = ledger.stored("recent2026")
cost, names = "cost of keeping a quarter at {}", ("pools", "top-2")
for name in names:
    print(f"{name:6} nats lost with a quarter of the experts: {recent[cost.format(name)]}")
print("pools − top-2:", recent[ledger.Pair(*map(cost.format, names))], end="; with all experts: ")
print(recent[ledger.Pair(*(f"loss at {name}" for name in names))])

# %% [markdown]
# **With pools a quarter is nearly enough**: it costs 0.014 ± 0.009 nats, and 0.08 ± 0.06 more
# without them. With all experts the pooled model is behind by 0.030 ± 0.022; whether by more than
# 0.02 is undecided. After 150 steps, that is; and the difference in what a quarter costs carries a
# † in the ledger. How it is done: [appendix 09a](09a_since_2024.ipynb), section 7.
#
# ## 6. What goes wrong: the expert for short texts
#
# Somebody measures domains properly: many texts, held out, shuffled in blocks, words held fixed.
# Texts have different lengths, so the batch is padded. Verses are short and articles are long:

# %%
verses, articles = (corpus.windows("prose", LENGTH, 12).ids_BS for _ in range(2))
padded, filling = torch.cat([verses, articles]), corpus.tokenizer.token_to_id("<|endoftext|>")
padded[:12, 40:], padded[12:, 110:] = filling, filling
kind_T = torch.arange(2).repeat_interleave(12 * LENGTH)
one = routing_of(model, padded)


def show(label_T):
    share_LCE = analysis.specialization(one, label_T, choice="first")
    for at, (name, c) in ((at, kind) for at in (1, 4) for kind in (("verses", 0), ("articles", 1))):
        print(f"layer {at}: {name:9}", " ".join(f"{s:4.0%}" for s in share_LCE[at, c]))


show(kind_T)

# %% [markdown]
# At each layer one expert takes most of the verses and few of the articles! But look at the first
# line of the cell: verses and articles are *the same texts*, cut at different lengths. What is it?
#
# <details>
# <summary>Look here when you have a guess</summary>
#
# The filling. Padding is routed like anything else, and all padding looks alike, so it goes to one
# expert: the favourite of whatever is short. transformers' own balancing loss counted padding for a
# while ([issue 28505](https://github.com/huggingface/transformers/issues/28505)). Give padding the
# label -1, which every measure of `moe_lite.course.analysis` leaves out.
#
# </details>

# %%
show(kind_T.where((padded != filling).flatten(), -1))

# %% [markdown]
# The two kinds are alike again, up to a few percent: the long texts go on where the short ones end.
#
# ## Exercises
#
# [`exercises/17_exercises.ipynb`](../exercises/17_exercises.ipynb): information, two shuffles, a
# diagnosis, four of the appendix (saturation, neighbours, routes read back, whom to steer), and the
# capstone, a published claim on trial: you write down what would sink it, one number and its null
# *before* you measure. Solutions are in [`solutions/`](../solutions/17_solutions.ipynb).
#
# [Glossary](../docs/glossary.md).
#
# ## In six lines
#
# 1. A random router shows domain specialisation. The picture is no evidence.
# 2. Four nulls: shuffled labels, shuffled texts, shuffled among equal words, and the untrained
#    model. The first is the weakest.
# 3. Where the best router is known, a learned one goes some of the way, and the third null tells
#    cause from decoy in one of two worlds, and does not decide in the other.
# 4. Words before topics: in layer 0 words explain nearly all that an expert tells about the domain;
#    only in the last layer does it tell more beyond the word than an untrained model's.
# 5. Going to an expert and needing it are two things: two thirds of the sums' tokens go to 0.2, and
#    only the phone book needs it.
# 6. Balance is not use: an expert can have its share of the pairs and a third of it of the gates.
#
# | in the papers | in the code | |
# |---|---|---|
# | $N_{E,D}/N_D$, OLMoE eq. 7 | `analysis.specialization(trace, domain_T)` | chance $1/E$ |
# | $I(X; Y)$ | `analysis.mutual_information(trace, label_T)` | `permuted_information` |
# | gate mass | `analysis.gate_mass(trace)` | beside it: share of pairs |
# | ablation | `effects.effect(model, ids_BS, causal.ablate(layer, expert))` | `.rise_T` |
# | mean, resampling | `effects.replaced(model, ids_BS, layer, expert, "mean")` | `.rise_T` |
#
# **Read on:** the [appendix](17a_more_measures.ipynb); OLMoE's section 5; Chen et al. 2022
# ([arXiv:2208.02813](https://arxiv.org/abs/2208.02813)), who prove for a mixture of classification
# tasks that a router finds the clusters.
