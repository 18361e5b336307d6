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
# **The papers:** Muennighoff et al. 2024, *OLMoE*
# ([arXiv:2409.02060](https://arxiv.org/abs/2409.02060)), section 5, for the measures; Jiang et al.
# 2024, *Mixtral of Experts* ([arXiv:2401.04088](https://arxiv.org/abs/2401.04088)), section 5, for
# the claims.
#
# "One expert does the code, another the poetry." You have read that sentence, perhaps with a
# coloured picture. This chapter is about what it takes to be allowed to write it. In it you
#
# - see a picture of specialisation, and learn that its model had not read a word;
# - build the *nulls* by which every claim of the chapter is held;
# - train experts on languages whose best router is **known**, and see how far a measure finds it;
# - read the course's trained Mixtral: domains, words, neighbours, training, and what comes first;
# - take an expert away and see who suffers;
# - do all that to a model of your own choice, and put a published claim to the test.
#
# **You need:** PyTorch and chapter 00 or 09. No GPU, no network.
# **Time:** an hour and a half to read and try; the cells run in about a minute on two CPU cores.

# %%
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import torch

from moe_lite import analysis, causal, cost, data, hf, ledger, trace, viz
from moe_lite.film import Film
from moe_lite.languages import Languages
from moe_lite.model import Mixtral
from moe_lite.recipes import FILM
from moe_lite.widgets import RoutingExplorer

torch.manual_seed(0)
torch.set_num_threads(1)
torch.set_printoptions(precision=2, sci_mode=False)

# %% [markdown]
# ## 1. A picture that means nothing
#
# Here is held-out text from the course's five domains: twelve pieces of each, 128 tokens long. Two
# models of one shape read it, with six layers of eight experts, two for each token. We note who
# went where. The first choice is enough for most of this chapter.

# %%
corpus = data.load_corpus(max_bytes=600_000)
LENGTH = 128
windows = [corpus.windows(domain, LENGTH, 12) for domain in corpus.domains]
ids_BS = torch.cat([part.ids_BS for part in windows])
domain_T = torch.cat([part.domain_BS for part in windows]).flatten()
word_T = ids_BS.flatten()


def routing_of(model, ids_BS):
    with torch.no_grad(), trace.record(model, partial(data.pieces, corpus.tokenizer)) as recorded:
        model.eval()(ids_BS)
    return recorded.trace


model = hf.load_pretrained("mixtral-mini")
traces = {"A": routing_of(Mixtral(model.config), ids_BS), "B": routing_of(model, ids_BS)}

# %% [markdown]
# For each domain, the share of its tokens that each expert gets. OLMoE calls it **domain
# specialisation** (its eq. 7):
#
# $$\text{specialisation}(E, D) = N_{E,D} \,/\, N_D$$
#
# Chance is one in eight, which is 12.5%. Both models, at the first layer:

# %%
fig, panels = plt.subplots(1, 2, figsize=(10, 2.9), layout="constrained")
for panel, (name, one) in zip(panels, traces.items(), strict=True):
    share_CE = analysis.specialization(one, domain_T, choice="first")[0]
    image = panel.imshow(100 * share_CE, cmap="cividis", vmin=0, vmax=60)
    panel.set(title=f"model {name}, layer 0", xlabel="expert", yticks=range(5))
    panel.set_yticklabels(corpus.domains)
_ = fig.colorbar(image, ax=panels, label="% of the domain's tokens")

# %% [markdown]
# Both have rows that differ. Arithmetic has its favourite experts in both, and drama and prose
# resemble each other, as they should. The right one has more contrast; the left one would do for a
# slide. Which of the two models has specialised?
#
# One of them has been trained. **Model A has random weights**: it was made in the cell above and
# has never read a word. Its router draws lines through the space of token vectors at random. All
# tokens "7" have nearly one vector, so they go to one expert, and because arithmetic is full of
# sevens, arithmetic has a favourite. Nobody learned anything.
#
# So the picture is no evidence. What would be? Three questions, to be asked of every claim about
# experts:
#
# 1. **How large is it where there is nothing to find?** A number without its null is a mood.
# 2. **What else would give the same picture?** Here: the words.
# 3. **Does anything happen when the expert is gone?** A correlation is not yet a job.
#
# ## 2. A number and its nulls
#
# First one number in place of a picture. How much does the expert *tell* about the domain? The
# measure that needs no assumption is **mutual information**, in bits:
#
# $$I = \sum_{c,e} p(c,e)\, \log_2 \frac{p(c,e)}{p(c)\,p(e)}$$
#
# It is 0 if experts and domains have nothing to do with each other, and at most the smaller
# entropy of the two: with five domains equally frequent, $\log_2 5 \approx 2.3$ bits. By hand, for
# two domains and two experts:


# %%
def information(count_CE):
    p_CE = count_CE.double() / count_CE.sum()
    chance_CE = p_CE.sum(1, keepdim=True) * p_CE.sum(0)
    return torch.where(p_CE > 0, p_CE * (p_CE / chance_CE).log2(), 0).sum()


print(f"tells all:     {information(torch.tensor([[4, 0], [0, 4]])):.3f} bits")
print(f"tells nothing: {information(torch.tensor([[2, 6], [1, 3]])):.3f} bits")
print(f"tells a bit:   {information(torch.tensor([[6, 2], [1, 3]])):.3f} bits")

# %% [markdown]
# The library's version does that for each layer of a trace, and it is the same:

# %%
expert_LTK = analysis.choices_LTK(traces["B"])
count_CE = torch.bincount(domain_T * 8 + expert_LTK[3, :, 0], minlength=40).view(5, 8)
bits_L = analysis.mutual_information(traces["B"], domain_T, choice="first")
torch.testing.assert_close(information(count_CE), bits_L[3])
print(f"layer 3: {bits_L[3]:.3f} bits about the domain")

# %% [markdown]
# **The first null: shuffled labels.** Deal the domains out to the tokens at random, so that they
# mean nothing, and measure again. What comes out is not 0. Counts scatter, and scatter looks like
# information: about $(C-1)(E-1) / (2\,T \ln 2)$ bits for $T$ independent tokens. That is little
# here, and much if the label is a word out of thousands. We come back to it.
#
# **The second null: shuffled texts.** Tokens of one text are not independent. If a single play
# speaks of horses all the time, and horses go to expert 3, then "drama goes to expert 3" rests on
# *one* observation, not on 128. So let whole texts change places, and leave their insides alone.
#
# **The third null: shuffled among equal words.** Each "7" gets the domain of another "7", each
# "the" that of another "the". Every word is now as frequent in every domain as before, and goes to
# the experts it went to before. What survives is what the *words* explain, and only what lies above
# says that the same word is treated differently in another domain.

# %%
nulls = {
    "labels shuffled": {},
    "texts shuffled": {"block": LENGTH},
    "shuffled among equal words": {"within_T": word_T},
}


def against_nulls(one, layer):
    told = partial(analysis.permuted_information, one, domain_T, range(20), choice="first")
    values = {name: told(**how)[:, layer] for name, how in nulls.items()}
    return analysis.mutual_information(one, domain_T, choice="first")[layer], values


for name, layer in (("A", 0), ("B", 0), ("A", 4), ("B", 4)):
    observed, values = against_nulls(traces[name], layer)
    print(f"model {name}, layer {layer}: {observed:.3f} bits about the domain")
    for null, value in values.items():
        print(f"    {null:27} {value.mean():.3f}, at most {value.max():.3f}")

# %% [markdown]
# Read the first block. Model A has learned nothing, and its experts tell something about the
# domain: some forty times what shuffled labels give, and clearly more than shuffled texts. *Both
# tests are passed by a model that never read a word.* The third null takes most of it away: it was
# the words. And the small rest? Attention is random too, but it does mix: a token's vector holds a
# little of its neighbours, so even at random the same word goes elsewhere in other company. Deeper,
# in the third block, that rest has grown. So there is a fourth null, and it is the simplest of all:
# **the same model, untrained.** Whoever shows you what training did should show you what was there
# before.
#
# Now the trained model. At its first layer, the second block, experts tell far more about the
# domain than A's do, and the third null gives the *same number*: words explain all of it. Whatever
# this layer has learned, it is not topics. At layer 4, the last block, words explain a part, and
# what remains is about three times what the untrained model has there. *That* was learned.
#
# Shuffling a label twenty times and taking the largest is a test: if nothing is there, the
# observed number beats all twenty once in 21 times. It answers "is there anything?". The distance
# to the null answers "how much?", and with enough tokens only that is worth asking.
#
# ## 3. Where the truth is known
#
# A measure should be tried first where the answer is known. So we make a world. A sentence has four
# words: a tag that names one of eight *languages*, a noun, a verb, and a second noun that follows
# from the first by one of eight permutations. All languages share all words. Two kinds of world
# differ in one thing, in who chooses the permutation:
#
# - where **the language decides**, the same verb means something else in each language. The best
#   router looks at the tag, two tokens back: it routes by *topic*;
# - where **the verb decides**, languages mean nothing. The best router looks at the verb in hand:
#   it routes by *word*.
#
# And a decoy: each language takes "its own" verb in seven of ten sentences. So language and verb go
# together in both worlds, as topics and words do in real text, and only one of them is the cause.

# %%
world = Languages("language")
batch = world.batch("validation", 4096)
for sentence in torch.cat([batch.ids_BS, batch.targets_BS[:, -1:]], 1)[:3].tolist():
    tag, noun, verb, last = sentence
    language = tag - world.nouns - world.count
    print(f"language {language}: noun {noun:2}, verb {verb - world.nouns} -> noun {last:2}",
          f"   (the permutation says {world.next_CN[language, noun]})")  # fmt: skip

# %% [markdown]
# Now a small model: one layer, eight tiny experts, one for each token. Too tiny, each of them, to
# learn eight permutations; one is just right. That "by language" is the best router here is no
# assumption: a router can be made that reads the tag and has nothing to learn, and so can one "by
# verb". Both were trained many times. Here, live, is one that has to find out by itself (a Switch
# router, chapter 04):

# %%
learner = world.learn(world.setting("switch")).model.eval()
with torch.no_grad():
    logits_BV = learner(batch.ids_BS).logits_BSV[:, -1]
loss = torch.nn.functional.cross_entropy(logits_BV, batch.targets_BS[:, -1]).item()
known = ledger.stored("synthetic_languages")
rows = {"knows the language (stored)": known["loss, by language; the language decides"].mean,
        "knows the verb (stored)": known["loss, by verb; the language decides"].mean,
        "learns (stored)": known["loss, switch; the language decides"].mean,
        "learns (this one)": loss - world.floor}  # fmt: skip
for name, above in rows.items():
    print(f"{name:28} {above:.2f} nats above the {world.floor:.2f} that nobody can go below")

# %% [markdown]
# Its experts for the verbs, held against the cause and against the decoy:

# %%
routed, label = world.trace(learner, batch.ids_BS), world.labels(batch.ids_BS)
for name, other in (("language", "verb"), ("verb", "language")):
    bits = analysis.mutual_information(routed, label[name]).item()
    within = analysis.permuted_information(routed, label[name], range(20), within_T=label[other])
    fits = analysis.agreement(analysis.choices_LTK(routed)[0, :, 0], label[name])
    chance = np.mean(fits.null_accuracy)
    print(f"{name:9} {bits:.2f} bits; shuffled among equal {other}s {within.mean():.2f}; "
          f"best match {fits.accuracy:.0%}, by chance {chance:.0%}")  # fmt: skip

# %% [markdown]
# The **best match** gives each expert one label, so that as many tokens as possible agree; an
# expert has no name, so all namings must be tried (`analysis.best_match` does it without trying all
# 40,320). Two things to see. Most of the *cause's* bits stay when tokens with equal verbs are
# compared; most of the *decoy's* bits are there as well when its labels are shuffled among tokens
# of one language, so the language explains them. And: **the learned router is far from the best
# one.** The best match is above chance and nowhere near 100%, although a router with 100% exists,
# and has the lower loss.
#
# One seed is an anecdote. From the ledger, both worlds (`python -m moe_lite reproduce
# synthetic_languages`):

# %%
print(f"stored result, {len(known.seeds)} seeds")
for claim in ledger.load("synthetic_languages").claims:
    ours = known[claim.measure]
    print(f"{claim.verdict(ours):15} {ours!s:14} {claim.note[6:]:22} {claim.text}")

# %% [markdown]
# Four things to take along.
#
# **The known router is the best one**, in both worlds and every seed; otherwise there would be no
# truth to compare with. **The learned router is not it.** Take chance off, and its agreement with
# the truth goes a fifth or a quarter of the way to 100%. Where the verb decides, its loss is close
# to the best all the same: a good loss is no proof of a good routing, because experts make do.
#
# **The decoy always passes** the test against shuffled labels, with bits enough for a headline. And
# the third null finds out: shuffled among tokens with one cause, the decoy keeps nearly *all* its
# bits, and the cause, shuffled among tokens with one decoy, loses most. That is the whole point of
# the null, on a case where we know what it should say. It failed once, in the world where the
# language decides, in seed 0, which was trained above: there the experts go by the verb a
# little more than the language explains. It is also the seed that learned worst. A router sees the
# token in hand directly and the context only as far as attention brings it, so words are *easier*
# to route by, also where they are not what matters. Keep that in mind for the next section.
#
# **A job is not what it looks like either.** Take experts away one by one: the label that is missed
# most is the one that the expert serves most in some six of ten cases (chance: one in eight). More
# of that in section 7.
#
# ## 4. The course's model: words first
#
# Now the trained Mixtral. For each layer two questions: how much does the expert tell about the
# **word** in hand (the token's id), and how much about the **domain** beyond what words explain?
# For the first the null of shuffled labels matters: with thousands of ids, chance alone gives
# about a bit. For the second we subtract the third null. And the untrained model stands beside.

# %%
layers = list(range(6))


def words_and_topics(one):
    """Bits about the word, above chance; about the domain; of those, explained by the words."""
    told = partial(analysis.mutual_information, one, choice="first")
    null = partial(analysis.permuted_information, one, seeds=range(5), choice="first")
    word_L = told(word_T) - null(word_T).mean(0)
    return word_L, told(domain_T), null(domain_T, within_T=word_T).mean(0)


B = traces["B"]
found = {"trained": words_and_topics(B), "untrained": words_and_topics(traces["A"])}
lines = {f"the word; {name}": (layers, word_L) for name, (word_L, _, _) in found.items()}
lines |= {f"the domain beyond words; {name}": (layers, all_L - by_words_L)
          for name, (_, all_L, by_words_L) in found.items()}  # fmt: skip
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
viz.curves(lines, "layer", "bits", title="what an expert tells about ...", ax=left)
_, all_L, by_words_L = found["trained"]
texts_L = analysis.permuted_information(B, domain_T, range(5), choice="first", block=LENGTH).mean(0)
lines = {"observed": all_L, "explained by words": by_words_L, "texts shuffled": texts_L}
lines = {name: (layers, bits_L) for name, bits_L in lines.items()}
viz.curves(lines, "layer", "bits about the domain", title="trained: the domain", ax=right)
left.set(ylim=(0, 2.6), xticks=layers)
right.set(ylim=(0, None), xticks=layers)
plt.close(fig)
fig

# %% [markdown]
# **Words first.** At layer 0 the expert tells most about the word, and about the domain nothing
# that the word has not told: on the right the two upper lines start at one point, and on the left
# the trained model starts *below* the untrained one. Its first layers have learned to look at the
# token and to ignore the company. With depth that changes: later layers treat the same word
# differently in different company, about twice as much as the untrained ones do. But also at the
# end an expert says several times as much about the token in hand as about the topic beyond it.
#
# That is the finding that most popular accounts leave out, and it came out here on one small model,
# tested by nulls that could have gone the other way.
#
# "The company" is more than the domain. The same null, passed, may mean syntax, the position in a
# line, or the letters before. Whoever says "topic" here has to exclude those as well.
#
# There is another way to ask, without any domain: **vocabulary specialisation** (OLMoE's eq. 8),
# the share of a word's tokens that go to its favourite expert, $N_{x,E} / N_x$, averaged over the
# words that occur at least ten times. And its null, the same with the routing dealt out to other
# tokens:

# %%
vocabulary_L = analysis.vocabulary_specialization(B, word_T).nanmean(-1)
chance_L = analysis.vocabulary_specialization(analysis.shuffled(B, 0), word_T).nanmean(-1)
for layer in layers:
    print(f"layer {layer}: {vocabulary_L[layer]:.0%} of a word's tokens at its favourite expert; "
          f"dealt at random {chance_L[layer]:.0%}")  # fmt: skip

# %% [markdown]
# The favourite of a random routing gets more than 12.5%, and more than you might guess: the
# largest of eight shares is always above their mean. A popular account that compares with 12.5%
# overstates its finding by that much before anything is found.
#
# Which words? For the two most specialised experts of the first and the last layer, the words that
# go nowhere else:

# %%
common = word_T.bincount(minlength=4096)
for layer in (0, 5):
    share_VE = analysis.specialization(B, word_T, 4096, choice="first")[layer].nan_to_num()
    weight_VE = torch.where((common >= 10)[:, None] & (share_VE > 0.8), common[:, None], 0)
    for expert in weight_VE.sum(0).topk(2).indices.tolist():
        best = weight_VE[:, expert].topk(12).indices.tolist()
        print(f"layer {layer}, expert {expert}: {data.pieces(corpus.tokenizer, best)}")

# %% [markdown]
# **Who works with whom?** Two experts are *coactive* on a token that has both. OLMoE's eq. 6,
# $N_{ij}/N_i$: of the tokens of expert $i$, the share that also goes to $j$. Chance is
# $(K-1)/(E-1)$, one in seven here.

# %%
together_LEE = analysis.coactivation(B)
fig, panels = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained")
for panel, layer in zip(panels, (0, 5), strict=True):
    off = together_LEE[layer].masked_fill(torch.eye(8).bool(), torch.nan)
    image = panel.imshow(100 * off, cmap="cividis", vmin=0, vmax=80)
    panel.set(title=f"layer {layer}", xlabel="also to expert j", ylabel="of expert i's tokens")
_ = fig.colorbar(image, ax=panels, label="% (chance: 14%)")

# %% [markdown]
# A few pairs of the last layer are seen together on half of their tokens and more, and the table is
# not symmetric: a small expert can have a large one as its constant companion without being missed
# by it.
#
# ## 5. Over training: when does a router know?
#
# While the model was trained, its routing of one fixed text of 2,000 tokens was filmed. OLMoE's
# **saturation** (eq. 5) asks how much of the final routing was there already at step $t$:
#
# $$\text{saturation}(t) = \frac{1}{N} \sum_{n=1}^{N} \frac{|\mathcal{E}_n^{(t)} \cap
# \mathcal{E}_n^{(T)}|}{k}$$
#
# Chance is $k/E = 25\%$, if all experts were equally used.

# %%
film = Film.load(hf.PRETRAINED / "mixtral-mini" / FILM)
final = film.trace(film.steps[-1])
steps = film.steps
kept = torch.stack([analysis.saturation(film.trace(step), final) for step in steps])
lines = {f"layer {n}": (steps[1:], 100 * kept[1:, n]) for n in (0, 1, 3, 5)}
fig = viz.curves(lines, "training step", "saturation (%)", title="how much of the final routing")
fig.axes[0].axhline(25, color="#57606A", lw=0.8)
fig.axes[0].set(xscale="log", ylim=(0, 102))
fig

# %% [markdown]
# Read it from the right, where it is 100% by definition. Half of the final routing was there after
# a few percent of the training, long before the loss was anything to be proud of. And here layer 0
# is *not* the last to settle, as it was in OLMoE. The ledger has the numbers, and whether they
# agree (`python -m moe_lite reproduce olmoe2024_saturation`):

# %%
grown = ledger.stored("olmoe2024_saturation")
for claim in ledger.load("olmoe2024_saturation").claims:
    ours = grown[claim.measure]
    print(f"{claim.verdict(ours):15} paper {claim.paper:<6} ours {ours!s:15} {claim.text}")

# %% [markdown]
#
# And what comes first, in training? The same two curves as in section 4, along the film (all
# layers' mean; the film has only ten texts, so this is coarser):

# %%
told_word, told_domain = [], []
ids_T, topic_T = film.ids_BS.flatten(), film.domain_BS.flatten()
for step in steps:
    one = film.trace(step)
    measure = partial(analysis.mutual_information, one, choice="first")
    null = partial(analysis.permuted_information, one, seeds=range(3), choice="first")
    told_word.append((measure(ids_T) - null(ids_T).mean(0)).mean())
    told_domain.append((measure(topic_T) - null(topic_T, within_T=ids_T).mean(0)).mean())
lines = {"about the word, above chance": (steps[1:], told_word[1:]),
         "about the domain, beyond words": (steps[1:], told_domain[1:])}  # fmt: skip
fig = viz.curves(lines, "training step", "bits, mean of the layers", title="what the film tells")
fig.axes[0].set(xscale="log")
print(f"before the first step: {told_word[0]:.2f} and {told_domain[0]:.2f} bits")
fig

# %% [markdown]
# What rises in training is the upper line, in the first 150 steps: experts learn *words*. The lower
# line was there before the first step: a random model mixes each token with its company. Training
# takes some of that away, and on the mean does not put it back; what it does is to sort it by
# depth, as you saw in section 4: none at first, more later. With two texts of each domain, "beyond
# words" here is also "this very text"; so take the height with a grain of salt.
#
# Look for yourself. The slider goes through the film; click on a token to see its gates at every
# layer. Start at step 0, choose a frequent word, and look when its expert stops changing.

# %%
RoutingExplorer(film=film, layer=0)

# %% [markdown]
# ## 6. Neighbours
#
# Mixtral's authors found something else. They looked for topics, saw "no obvious pattern", and then
# counted how often *consecutive tokens* get the same expert (their Table 5), at the first, a middle
# and the last layer, for the first choice and for either of the two. If experts were chosen at
# random it would be 12.5%, and for either choice $1 - \frac{6}{8}\cdot\frac{5}{7} = 46.4\%$.

# %%
print("chance:", f"{analysis.repetition_chance(8):.1%}, {analysis.repetition_chance(8, 2):.1%}")
rows = {"Mixtral: Github": (14.9, 28.1, 19.7, 49.9, 66.9, 49.2),
        "Mixtral: Gutenberg": (13.9, 26.1, 26.3, 49.5, 63.1, 52.2),
        "Mixtral: DM Mathematics": (14.1, 28.4, 19.7, 44.9, 67.0, 44.5)}  # fmt: skip


def repeats(one):
    return [100 * analysis.repetition(one, LENGTH, choice)[layer].item()
            for choice in ("first", "any") for layer in (0, 3, 5)]  # fmt: skip


of = {name: routing_of(model, part.ids_BS)
      for name, part in zip(corpus.domains, windows, strict=True)}  # fmt: skip
rows |= {f"ours: {name}": repeats(one) for name, one in of.items()}
rows |= {f"  {name}, shuffled": repeats(analysis.shuffled(one, 0, LENGTH))
         for name, one in of.items()}  # fmt: skip
print(f"{'':26}{'first choice':^24}{'either choice':^24}\n{'layer':26}"
      + f"{'first':>8}{'middle':>8}{'last':>8}" * 2)  # fmt: skip
for name, values in rows.items():
    print(f"{name:26}" + "".join(f"{value:8.1f}" for value in values))

# %% [markdown]
# Everything of ours is far above 12.5% and 46.4%. A finding? Look at the last five rows: the same
# routing with the tokens *of each text* in random order. Most of the excess is there as well. It
# says only that experts are used unequally within a text, and then any two tokens meet often,
# neighbours or not. What being neighbours adds is the difference. For drama and prose at the last
# layer it is large, in other rows there is next to none. The chance that the paper prints is right
# for experts that are evenly used; look at your loads before you use it.
#
# Now arithmetic at the first layer: its neighbours agree *less* than its tokens in random order do.
# In sums a digit is followed by a sign and a sign by a space; neighbours are different things.
# Mixtral's DM Mathematics at layer 31 is below chance too (44.5 against 46.4), and perhaps for a
# reason of that sort. A number below chance is as much a pattern as one above it.
#
# The ledger counts more text, with intervals (`python -m moe_lite reproduce
# mixtral2024_repetition`).
#
# ## 7. Take it away
#
# All that was correlation. An expert that arithmetic *goes to* need not be one that arithmetic
# *needs*. So take it away: an **ablated** expert contributes nothing to its tokens, while their
# other gate stays as it was. We do it to each of the 48 experts, one after the other, on texts that
# none of the numbers above has seen, and note for each domain by how much the loss of the tokens
# rises.

# %%
parts = [corpus.windows(name, LENGTH, 29).ids_BS[1::10] for name in corpus.domains]
fresh, of_domain_T = torch.cat(parts), torch.arange(5).repeat_interleave(parts[0].numel())
base = causal.Run.of(model, fresh)


def rises(*interventions):
    """By how much does each domain's loss rise, in nats per token?"""
    rise_T = causal.Run.of(model, fresh, *interventions).loss_T - base.loss_T
    return torch.stack([rise_T[of_domain_T == d].nanmean() for d in range(5)])


rise_LEC = torch.stack([torch.stack([rises(causal.ablate(layer, expert)) for expert in range(8)])
                        for layer in range(6)])  # fmt: skip
used_LEC = analysis.specialization(routing_of(model, fresh), of_domain_T).mT

# %% [markdown]
# Which is "the arithmetic expert"? By the usual picture, the one that arithmetic *uses most*. By
# the question we care about, the one it *misses most*; or, if it is to have that job and no other,
# the one that arithmetic *misses alone* (the other domains lose less than a tenth as much). The
# first three of each kind:

# %%
arithmetic = corpus.domains.index("arithmetic")
others = [d for d in range(5) if d != arithmetic]
rise_LE, elsewhere_LE = rise_LEC[..., arithmetic], rise_LEC[..., others].mean(-1)
alone_LE = rise_LE.where(elsewhere_LE < 0.1 * rise_LE, 0)
ways = {"used most": used_LEC[..., arithmetic], "missed most": rise_LE,
        "missed by it alone": alone_LE}  # fmt: skip
print(f"{'':35}{'used by':>8}  without it the loss of ... rises by")
print(f"{'':35}{'arithm.':>8}  " + "".join(f"{name:>12}" for name in corpus.domains))
for way, score_LE in ways.items():
    for best in score_LE.flatten().topk(3).indices.tolist():
        at, expert = divmod(best, 8)
        print(f"{way:26}{at}.{expert:<7}{used_LEC[at, expert, arithmetic]:8.0%}  "
              + "".join(f"{rise:+12.3f}" for rise in rise_LEC[at, expert]))  # fmt: skip

# %% [markdown]
# Three experts tell the story. **1.4** gets two fifths of arithmetic's pairs. Take it away, and
# next to nothing happens: "layer 1 has an arithmetic expert" is true as a picture and wrong as an
# explanation. **0.1** is missed by arithmetic most, and by drama and code as much: that is no
# arithmetic expert, it is a load-bearing wall. And **5.4**: two fifths of arithmetic's pairs as
# well, its loss rises by almost half a nat without it, and *no other domain notices*. So there is
# one. The claim that we set out to doubt has passed the test that most pictures never took.
#
# But an expert for arithmetic, or for digits? You have seen its favourite words in section 4.
# Digits occur in code, too:

# %%
digit_T = torch.tensor([piece.strip().isdigit() for piece in B.tokens])
at, expert = divmod(int(alone_LE.argmax()), 8)
for name in ("code", "arithmetic"):
    mine_T = digit_T & (domain_T == corpus.domains.index(name))
    share = (analysis.choices_LTK(B)[at, mine_T] == expert).any(-1).double().mean()
    print(f"{name:10} {int(mine_T.sum()):5} digits, {share:4.0%} of them use expert {at}.{expert}")

# %% [markdown]
# It is not the digits. Every digit of a sum goes there, and of the digits in code, few as they are,
# not one: the same token, another topic, another expert. (The other domains have too few to say.)
# So deep in the model topic does decide, here and for this domain, the one made by a program and
# unlike all others. It is much what Mixtral's authors saw: of all their domains only DM Mathematics
# differed, and that marginally.
#
# Over all experts: if going there were the same as needing it, the points below would lie on a
# rising curve, in every layer alike.

# %%
fig, panels = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for layer, mark in enumerate("os^Dv*"):
    rise = rise_LEC[layer].clamp(min=1e-5).flatten()
    panels[0].scatter(100 * used_LEC[layer].flatten(), rise, marker=mark, s=22, alpha=0.7,
                      color=plt.cm.cividis(layer / 5), label=f"layer {layer}")  # fmt: skip
panels[0].set(xlabel="% of a domain's pairs", ylabel="its loss rises by, nats", yscale="log",
              title="48 experts, five domains")  # fmt: skip
panels[0].legend(fontsize=8, ncols=2)
image = panels[1].imshow(rise_LEC.mean(-1).clamp(min=1e-4), cmap="cividis", norm="log")
panels[1].set(xlabel="expert", ylabel="layer", title="taken away: mean of the domains")
_ = fig.colorbar(image, ax=panels[1], label="nats")


# %%
def rank_correlation(a, b):
    a, b = (x.flatten().argsort().argsort().double() for x in (a, b))
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


for layer in range(6):
    observed = rank_correlation(used_LEC[layer], rise_LEC[layer])
    null = [rank_correlation(used_LEC[layer], rise_LEC[layer, torch.randperm(8)])
            for _ in range(500)]  # fmt: skip
    print(f"layer {layer}: use and need go together {observed:+.2f}; with experts renumbered "
          f"{np.mean(null):+.2f}, 95% below {np.quantile(null, 0.95):+.2f}")  # fmt: skip

# %% [markdown]
# (Points at the bottom are experts whose absence cost nothing, or less than nothing.) Most of what
# can be lost is lost at layer 0, and in the middle an expert more or less makes little difference:
# the stream goes on past it, and later layers make good for it. Within each layer use and need do
# go together, well above chance; but at one and the same use the need differs by a factor of a
# thousand. So "who uses it" is evidence, among colleagues of one layer, and it is weak.
#
# Two more questions separate *having a job* from *being the only one who can do it*. **Ban** an
# expert: now the router may take its next best instead. If the loss rises less than before,
# somebody else can do a part of the work. **Swap** it with another: every pair is computed by the
# wrong expert, with the right weight. For the expert that arithmetic alone misses, and the one
# of its layer that arithmetic uses next:

# %%
next_best = int(used_LEC[at, :, arithmetic].index_fill(0, torch.tensor(expert), 0).argmax())
for what in (causal.ablate(at, expert), causal.ban(at, expert),
             causal.swap(at, expert, next_best)):  # fmt: skip
    rise = dict(zip(corpus.domains, rises(what).tolist(), strict=True))
    words = str(what).partition(",")[0]
    print(f"{words:32}" + "  ".join(f"{name} {value:+.3f}" for name, value in rise.items()))

# %% [markdown]
# Ablating leaves a hole; banning fills it with the next best, and for arithmetic that is *worse*
# than the hole. So this expert is not only used, it is the only one who knows. (Where banning is
# the milder of the two, as it is at layer 0, the work is shared. Try it: `causal.ban(0, 5)`.)
# Swapping hurts two kinds of text at once, because then both are answered by a stranger.
#
# You can ask such things of any sentence. In the page below, click on a token, then ablate, force
# or swap; it shows the next-token distribution and the loss of what follows, before and after.
# (What you see without a kernel is its picture.)

# %%
text = "17 + 25 = 42\n30 + 14 = 44\ndef add(a, b):\n    return a + b"
RoutingExplorer(text, model=model, layer=at)

# %% [markdown]
# ## 8. Other people's models
#
# All but section 7 read nothing but a `RoutingTrace`, and `trace.record` makes one of any Mixtral,
# OLMoE or Qwen3-MoE from Hugging Face's transformers, with its own tokenizer:
#
# ```python
# from transformers import AutoModelForCausalLM, AutoTokenizer
#
# name = "allenai/OLMoE-1B-7B-0924"        # or a folder on your disk
# model = AutoModelForCausalLM.from_pretrained(name, dtype="bfloat16", device_map="auto")
# tokenizer = AutoTokenizer.from_pretrained(name)
# ids = tokenizer(text, return_tensors="pt").input_ids
# with torch.no_grad(), trace.record(model, tokenizer) as recorded:
#     model(ids.to(model.device))
# recorded.trace                            # and on with analysis, viz, RoutingExplorer
# ```
#
# What it needs is memory for *all* experts, but no gradients. The trace itself holds two numbers
# for each token, layer and expert. From the configs:

# %%
for name in ("OLMoE", "Qwen3-30B-A3B", "Mixtral 8x7B"):
    shape = cost.PRESETS[name]
    count = cost.count_parameters(shape)
    bf16, four = 2 * count.total / 1e9, count.total / 2e9
    print(f"{name:14} {shape.moe_layers} layers, {shape.top_k} of {shape.experts} experts: "
          f"{bf16:5.1f} GB in bf16, {four:5.1f} GB in 4 bits; trace of 1,000 tokens "
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
    print("pip install transformers, to see this cell at work")
    transformers = None
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
# Three random models, and each of them with "specialised experts". You know now why.
#
# ## 9. What goes wrong: the expert for short texts
#
# Somebody measures domains properly: many texts, held out, shuffled in blocks, words held fixed.
# Texts have different lengths, so the batch is padded, as every tokenizer does it. Verses are short
# and articles are long:

# %%
verses, articles = (corpus.windows("prose", LENGTH, 12).ids_BS for _ in range(2))
length = {"verses": 40, "articles": 110}
padded = torch.cat([verses, articles])
filling = corpus.tokenizer.token_to_id("<|endoftext|>")
padded[:12, length["verses"] :] = filling
padded[12:, length["articles"] :] = filling
kind_T = torch.arange(2).repeat_interleave(12 * LENGTH)
one = routing_of(model, padded)
for at in (1, 4):
    share_CE = analysis.specialization(one, kind_T, choice="first")[at]
    print(f"layer {at}: verses   {[f'{s:4.0%}' for s in share_CE[0]]}")
    print(f"         articles {[f'{s:4.0%}' for s in share_CE[1]]}")

# %% [markdown]
# An expert that takes most of the verses and few of the articles! But look at the first line of the
# cell: verses and articles are *the same texts*, cut at different lengths. What is it?
#
# <details>
# <summary>Look here when you have a guess</summary>
#
# The filling. Padding is routed like anything else, and all padding looks alike, so it goes to one
# expert: the favourite of whatever is short. transformers' own balancing loss counted padding for a
# while ([issue 28505](https://github.com/huggingface/transformers/issues/28505)). Give padding the
# label -1, which every measure of `moe_lite.analysis` leaves out:
#
# </details>

# %%
real_T = (padded != filling).flatten()
for at in (1, 4):
    share_CE = analysis.specialization(one, kind_T.where(real_T, -1), choice="first")[at]
    print(f"layer {at}: verses   {[f'{s:4.0%}' for s in share_CE[0]]}")
    print(f"         articles {[f'{s:4.0%}' for s in share_CE[1]]}")

# %% [markdown]
# ## 10. Capstone: a claim on trial
#
# Choose a published sentence about experts. It may be one of Mixtral's section 5 ("no obvious
# patterns in the assignment of experts based on the topic"), one of OLMoE's (routers saturate
# early; the first layer last), one from an article that you have read. Then fill in, *in this
# order*:
#
# | field | |
# |---|---|
# | `claim` | the sentence, in words that can be wrong |
# | `source` | who said it, where |
# | `falsified_if` | what you would have to see to drop it. Write this **before** you measure |
# | `measure` | one number |
# | `null_is` | what chance means here: what is shuffled, and what is left alone |
# | `observed`, `null` | the number, and at least 19 of chance |
# | `holds`, `verdict` | what follows, and how large it is |
#
# The last exercise has the template; its check looks whether the fields are filled and a null was
# computed from the very routing it was given, and whether your claim would also have "held" on a
# routing dealt at random. A claim that fails is a result like any other.
#
# ## Exercises
#
# [`exercises/12_what_experts_learn.ipynb`](../exercises/12_what_experts_learn.ipynb): information,
# two shuffles, saturation, neighbours, a diagnosis ("nothing, words or topic?"), and the capstone.
# Each check tells you *what* you misunderstood. Solutions are in
# [`solutions/`](../solutions/12_what_experts_learn.ipynb).
#
# ## In six lines
#
# 1. A random router shows domain specialisation. The picture is no evidence.
# 2. Four nulls: shuffled labels, shuffled texts, shuffled among equal words, and the untrained
#    model. The first is the weakest.
# 3. Where the best router is known, a learned one goes some of the way, and the nulls tell cause
#    from decoy.
# 4. Words before topics: in the first layers nearly all that an expert tells about the domain is
#    explained by the words.
# 5. Neighbours share experts; most of that is experts unequally used within a text.
# 6. Going to an expert and needing it are two things. Take it away and look: one arithmetic expert
#    of three was real.
#
# | in the papers | in the code | |
# |---|---|---|
# | $N_{E,D}/N_D$, OLMoE eq. 7 | `analysis.specialization(trace, domain_T)` | chance $1/E$ |
# | $N_{x,E}/N_x$, eq. 8 | `analysis.vocabulary_specialization(trace, ids_T)` | chance: `shuffled` |
# | $N_{ij}/N_i$, eq. 6 | `analysis.coactivation(trace)` | chance $(K-1)/(E-1)$ |
# | saturation, eq. 5 | `analysis.saturation(early, final)` | chance $k/E$ |
# | Mixtral Table 5 | `analysis.repetition(trace, length, choice)` | `repetition_chance(E, K)` |
# | $I(X; Y)$ | `analysis.mutual_information(trace, label_T)` | `permuted_information` |
# | ablation | `causal.effect(model, ids_BS, causal.ablate(layer, expert))` | `.rise_T` |
#
# **Read on:** OLMoE's section 5, with its figures remade from published statistics; Chen et al.
# 2022 ([arXiv:2208.02813](https://arxiv.org/abs/2208.02813)), who prove for a mixture of
# classification tasks that a router finds the clusters; and the ledger's rows for Mixtral's Table 5
# and OLMoE's section 5.
