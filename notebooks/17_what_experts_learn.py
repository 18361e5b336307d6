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
# - see two pictures of specialisation, and learn what neither of them proves;
# - build the *nulls* by which every claim of the chapter is held;
# - train experts on languages whose best router is **known**, and see how far a measure finds it;
# - read the course's trained Mixtral: domains, words, neighbours, training, and what comes first;
# - take an expert away and see who suffers;
# - do all that to a model of your own choice, and put a published claim to the test.
#
# **You need:** PyTorch and chapter 00 or 10. No GPU, no network.
# **Time:** an hour and a half to read and try; the cells run in about a minute on two CPU cores.

# %%
from functools import partial
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import torch

from moe_lite import Mixtral, hf, record
from moe_lite.course import analysis, causal, cost, data, effects, languages, ledger, presets, viz
from moe_lite.course.film import Film
from moe_lite.course.widgets import RoutingExplorer

torch.manual_seed(0)
torch.set_num_threads(1)
torch.set_printoptions(precision=2, sci_mode=False)

# %% [markdown]
# ## 1. A picture that means nothing
#
# Here is held-out text from the course's five domains: twelve pieces of each, 128 tokens long. Two
# models of one shape read it, with six layers of eight experts, two for each token. We note who
# went where. The first choice, the expert with the larger gate, is enough for most of this chapter.

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


model = hf.load_pretrained("mixtral-mini")
traces = {"A": routing_of(Mixtral(model.config), ids_BS), "B": routing_of(model, ids_BS)}

# %% [markdown]
# For each domain, the share of its tokens that each expert gets. OLMoE calls it **domain
# specialisation** (its eq. 7, for first choices):
#
# $$\text{specialisation}(E, D) = N_{E,D} \,/\, N_D$$
#
# If experts were dealt evenly, each would get one token in eight, 12.5%. Both models, at the first
# layer:

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
# with $p(c, e)$ the share of the tokens that have domain $c$ and expert $e$. It is 0 if domains and
# experts have nothing to do with each other, and at most the smaller entropy of the two: with five
# domains equally frequent, $\log_2 5 \approx 2.3$ bits. By hand, for two domains and two experts:


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
# information: with $C$ labels and $E$ experts about $(C-1)(E-1) / (2\,T \ln 2)$ bits for $T$
# independent tokens. For 5 domains and our 7,680 tokens that is 0.003 bits: little. It is much if
# the label is a word out of thousands. We come back to it.
#
# **The second null: shuffled texts.** Tokens of one text are not independent. If a single play
# speaks of horses all the time, and horses go to expert 3, then "drama goes to expert 3" rests on
# *one* observation, not on 128. So let whole texts change places, and leave their insides alone.
# (Ours are pieces of texts; two pieces of one play are not quite independent either.)
#
# **The third null: shuffled among equal words.** Each "7" gets the domain of another "7", each
# "the" that of another "the". Every word is now as frequent in every domain as before, and goes to
# the experts it went to before. What survives is what the *words* explain, and only what lies above
# says that the same word is treated differently in another domain. The null is strict: a word that
# occurs in one domain only keeps its domain whatever is dealt, so all that its expert tells is
# booked to the word.

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
domains_of_word = torch.bincount(word_T * 5 + domain_T, minlength=4096 * 5).view(-1, 5) > 0
shared_T = (domains_of_word.sum(1) > 1)[word_T]
print(f"{shared_T.double().mean():.0%} of the tokens have a word that is in two domains or more")

# %% [markdown]
# Read the first block. Model A has learned nothing, and its experts tell something about the
# domain: some forty times what shuffled labels give, and clearly more than shuffled texts. *Both
# tests are passed by a model that never read a word.* The third null takes most of it away: it was
# the words. And the rest? Attention is random too, but it does mix: a token's vector holds a
# little of its neighbours, so even at random the same word goes elsewhere in other company. Deeper,
# in the third block, that rest has grown. So there is a fourth null, and it is the simplest of all:
# **the same model, untrained.** Whoever shows you what training did should show you what was there
# before.
#
# Now the trained model. At its first layer, the second block, experts tell far more about the
# domain than A's do, and the third null gives nearly the same number: words explain all but two
# thousandths of a bit. Whatever this layer has learned, it is not topics. At layer 4, the last
# block, words explain a part, and what remains is about three times what the untrained model has
# there. *That* was learned. (One untrained model is one draw. Section 4 draws eight, as a band.)
#
# Shuffling a label twenty times and taking the largest is a test: if nothing is there, the
# observed number beats all twenty once in 21 times. It answers "is there anything?", and by it even
# the second block has something: 0.642 is above all twenty. The distance to the null answers "how
# much?", and with thousands of tokens that is the question worth asking.
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
world = languages.Languages("language")
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
# router, chapter 05):

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
    fits = languages.agreement(analysis.choices_LTK(routed)[0, :, 0], label[name])
    chance = np.mean(fits.null_accuracy)
    print(f"{name:9} {bits:.2f} bits; shuffled among equal {other}s {within.mean():.2f}; "
          f"best match {fits.accuracy:.0%}, by chance {chance:.0%}")  # fmt: skip

# %% [markdown]
# The **best match** gives each expert one label, so that as many tokens as possible agree; an
# expert has no name, so all namings must be tried (SciPy's `linear_sum_assignment` does it without
# trying all 40,320). Two things to see. Most of the *cause's* bits stay when tokens with equal
# verbs are compared; most of the *decoy's* bits are there as well when its labels are shuffled
# among tokens of one language, so the language explains them. And: **the learned router is far from
# the best one.** The best match is above chance and nowhere near 100%, although a router with 100%
# exists, and has the lower loss.
#
# One seed is an anecdote. From the ledger, both worlds (`python -m moe_lite reproduce
# synthetic_languages`). Each number is a mean over seeds with its 95% interval, of a size and not
# of a sign: "above" says on which side of 0 it is claimed to lie.


# %%
def table(claims, stored):
    """Print each claim's verdict, the number that is claimed, ours, and the claim in words."""
    for claim in claims:
        ours = stored[claim.measure]
        row = f"{claim.judge(ours):24}{claim.paper:>6}{ours!s:>17}  "
        print(fill(claim.text, 98, initial_indent=row, subsequent_indent=" " * len(row)))


claims = ledger.load("synthetic_languages").claims
for cause in ("language", "verb"):
    print(f"the {cause} decides: claimed, and ours (stored result, {len(known.seeds)} seeds)")
    table([claim for claim in claims if f"{cause} decides" in claim.note], known)

# %%
for cause, decoy in (("language", "verb"), ("verb", "language")):
    nats = [f"{who} {known[f'loss, {who}; the {cause} decides'].mean:.2f}"
            for who in (f"by {cause}", "switch", f"by {decoy}")]  # fmt: skip
    print(f"the {cause} decides, nats above the floor: {', '.join(nats)}")
print("where the language decides, seed by seed:")
for what in ("loss, switch", "explained of the decoy"):
    values = known.measures[f"{what}; the language decides"]
    print(f"  {what:24}", " ".join(f"{value:5.2f}" for value in values))

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
# the null, on a case where we know what it should say. It was weak once, in the world where the
# language decides, in seed 0, which was trained above: there the language explains three quarters
# of the decoy's bits, and the experts go by the verb a little more than that. It is also the seed
# that learned worst (the last two lines). A router sees the token in hand directly and the context
# only as far as attention brings it, so words are *easier* to route by, also where they are not
# what matters. Keep that in mind for the next section.
#
# **A job is not what it looks like either.** Take experts away one by one: the label that is missed
# most is the one that the expert serves most in some six of ten cases (chance: one in eight). More
# of that in section 7.
#
# ## 4. The course's model: words first
#
# Now the trained Mixtral. For each layer two questions, each about what the other leaves open: how
# much does the expert tell about the **word** in hand (the token's id) beyond the domain, and how
# much about the **domain** beyond the word? Both times it is the third null that is taken off: for
# the one, words are dealt out within each domain, for the other, domains among equal words. (What
# chance gives goes with it. For thousands of ids that is nearly a bit.) And the untrained model
# stands beside.

# %%
layers = list(range(6))


def told(one, label_T, within_T=None, **how):
    """Bits that the first choice tells about a label, and those left when it is shuffled."""
    null = analysis.permuted_information(
        one, label_T, range(5), choice="first", within_T=within_T, **how
    )
    return analysis.mutual_information(one, label_T, choice="first"), null.mean(0)


def beyond(one, label_T, other_T):
    all_L, explained_L = told(one, label_T, other_T)
    return all_L - explained_L


# %%
B = traces["B"]
random_models = [B]
for seed in range(8):
    torch.manual_seed(seed)
    random_models.append(routing_of(Mixtral(model.config), ids_BS))
random_models = random_models[1:]
word_LU = torch.stack([beyond(one, word_T, domain_T) for one in random_models], 1)
company_LU = torch.stack([beyond(one, domain_T, word_T) for one in random_models], 1)
word_L, company_L = beyond(B, word_T, domain_T), beyond(B, domain_T, word_T)
all_L, by_words_L = told(B, domain_T, word_T)
_, texts_L = told(B, domain_T, block=LENGTH)
only_T = domain_T.where(shared_T, -1)  # -1: not counted
dealt = [analysis.permuted(domain_T, seed, block=LENGTH) for seed in range(3)]
dealt_L = torch.stack([beyond(B, label_T, word_T) for label_T in dealt]).mean(0)

# %%
fig, panels = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
for panel, title, curves in (
    (panels[0], "beyond the other, about ...", {"the word": word_L, "the domain": company_L}),
    (panels[1], "the domain: what explains it?",
     {"observed": all_L, "explained by words": by_words_L, "texts shuffled": texts_L}),
    (panels[2], "the domain beyond the word: controls",
     {"as on the left": company_L, "shared words only": beyond(B, only_T, word_T),
      "dealt to other texts": dealt_L}),
):  # fmt: skip
    curves = {name: (layers, bits_L) for name, bits_L in curves.items()}
    viz.curves(curves, "layer", "bits", title=title, ax=panel)
    panel.set(ylim=(0, None), xticks=layers)
for name, bits_LU, color in (
    ("the word", word_LU, "#0072B2"),
    ("the domain", company_LU, "#D55E00"),
):
    panels[0].fill_between(layers, bits_LU.amin(1), bits_LU.amax(1), color=color, alpha=0.2,
                           label=f"{name}, 8 untrained models")  # fmt: skip
panels[0].legend(fontsize=8)
plt.close(fig)
fig

# %%
for layer in layers:
    low, high = company_LU[layer].min(), company_LU[layer].max()
    place = "above" if company_L[layer] > high else "below" if company_L[layer] < low else "inside"
    print(f"layer {layer}: the domain beyond the word {company_L[layer]:.2f} bits, eight untrained "
          f"models {low:.2f} to {high:.2f}: {place} their band")  # fmt: skip
chance_word_L = told(B, word_T)
print("the word, but only above chance:", chance_word_L[0] - chance_word_L[1])

# %% [markdown]
# **Words first.** At layer 0 the expert tells a bit and a half about the word, and about the domain
# nothing that the word has not told: in the middle panel the two upper lines start at one point,
# and on the left the trained model starts *below* the untrained ones. Its first layer has learned
# to look at the token and to ignore the company. With depth the one falls and the other rises.
# **Mind the band:** at layers 1 and 2 the trained model treats a word in other company no more
# differently, or even less, than models do that never learned anything. At the later layers it is
# above all eight, by a factor of two to four, and at the last two the expert tells about half a bit
# of each. Topics never lead by much; they draw level. (By "shared words only" perhaps a little
# more: two fifths of the tokens have a word that occurs in one domain only, and there the null
# cannot show anything.)
#
# Is it the domain, and not just *this very text*? "Dealt to other texts" gives the domains to other
# texts, whole, and takes the words off as before: the second null and the third at once. About a
# tenth of what the trained model tells survives that. So nine tenths were the domain.
#
# Mind how the question was put. Had we taken only *chance* off the word (the last printed line),
# and words off the domain, the word would have twice the bits or more at every depth: a stronger
# headline, and no finding. Half of what an expert of the last layers tells about the word, and
# more, its domain tells as well. A comparison is fair if both sides lose what they share.
#
# So that is what came out of "token identity before topic", which most popular accounts leave out:
# in the first layers nothing but words, in the last ones both. On one small model, by nulls that
# could have gone the other way. And "the company" is more than the domain: the same null, passed,
# may mean syntax, the position in a line, or the letters before.
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
# used, chance is $(K-1)/(E-1)$, one in seven here. If they are not, a busy $j$ is everybody's
# companion by chance, in proportion to its load.

# %%
together_LEE = analysis.coactivation(B)
fig, panels = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained")
for panel, layer in zip(panels, (0, 5), strict=True):
    off = together_LEE[layer].masked_fill(torch.eye(8).bool(), torch.nan)
    image = panel.imshow(100 * off, cmap="cividis", vmin=0, vmax=80)
    panel.set(title=f"layer {layer}", xlabel="also to expert j", ylabel="of expert i's tokens")
_ = fig.colorbar(image, ax=panels, label="% (even chance: 14%)")

# %%
for layer in (0, 5):
    load_E = torch.bincount(analysis.choices_LTK(B)[layer].flatten(), minlength=8).double()
    off = together_LEE[layer].masked_fill(torch.eye(8).bool(), 0)
    for i, j in (divmod(n, 8) for n in off.flatten().topk(3).indices.tolist()):
        chance = load_E[j] / (load_E.sum() - load_E[i])
        print(f"layer {layer}: of expert {i}'s tokens {off[i, j]:.0%} go to {j} too, by its load "
              f"{chance:.0%}; the other way round {off[j, i]:.0%}")  # fmt: skip

# %% [markdown]
# The closest pairs meet two or three times as often as loads alone would have it. And the table is
# not symmetric: a small expert can have a large one as its constant companion, and be one of many
# to it.
#
# ## 5. Over training: when does a router know?
#
# While the model was trained, its routing of one fixed text of 2,000 tokens was filmed. OLMoE's
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
for step in steps[10::4]:
    now_L = kept[steps.index(step)]
    print(f"step {step:4} ({step / steps[-1]:4.1%}): {now_L.min():.0%} to {now_L.max():.0%}")
fig

# %% [markdown]
# Read it from the right, where it is 100% by definition. About half of the final routing was there
# after 4% of the training. In OLMoE layer 0 was the last to settle; here it is not. The ledger has
# the numbers, and whether they agree (`python -m moe_lite reproduce olmoe2024_saturation`). "Net of
# chance" stretches the scale so that chance is 0; "above" is a side of 0 that OLMoE's text names
# without a number:

# %%
grown = ledger.stored("olmoe2024_saturation")
print(f"{'':15}{'paper':>6}{'ours':>15}")
table(ledger.load("olmoe2024_saturation").claims, grown)

# %% [markdown]
# Four rows were **not reproduced**. Why each?
#
# - *The first choice saturates more slowly*: contradicted; here it is the faster one. With 2
#   of 8 a first choice is one of two; OLMoE's is one of eight of 64, and changes places more
#   easily.
# - *The later half is ahead*: undecided, the interval holds both signs. Six layers make two halves
#   of so few that one layer tips it.
# - *Layer 0 is behind the others*: contradicted; it is ahead of their mean. Our vocabulary is small
#   and layer 0 reads little but the token (section 4), whose vector is learned early.
# - *Layers that specialise in words saturate earlier*: null; over ten texts the rank correlation
#   of six layers is 0.01 ± 0.30.
#
# The reasons are guesses; that one of the four is *undecided* and not contradicted is not.
#
# And what comes first, in training? The same two questions as in section 4, along the film (all
# layers' mean; the film has only ten texts, so this is coarser):

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
for name, n in (("before the first step", 0), ("at the end", -1)):
    print(f"{name}: {told_word[n]:.2f} and {told_domain[n]:.2f} bits")
fig

# %% [markdown]
# Before the first step the two are alike: a random model mixes each token with its company. In the
# first fifty steps the domain is even ahead. Then the word's line rises, all of it by step 150, and
# the domain's falls and on the mean does not come back; what training does with it is to sort it by
# depth, as you saw in section 4: none at first, more later. With two texts of each domain, "the
# domain" here is also "this very text"; so trust the direction more than the height.
#
# Look for yourself. The slider goes through the film; click on a token to see its gates at every
# layer. Start at step 0, choose a frequent word, and look when its expert stops changing.

# %%
RoutingExplorer(film=film, layer=0)

# %% [markdown]
# ## 6. Neighbours
#
# Mixtral's authors found something else. They looked for topics and saw "no obvious pattern". Then
# they counted how often *consecutive tokens* get the same expert (their Table 5), at the first, a
# middle and the last layer, for the first choice and for either of the two. If experts were chosen
# at random it would be 12.5%, and for either choice $1 - \frac{6}{8}\cdot\frac{5}{7} = 46.4\%$.

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
# neighbours or not. What being neighbours adds is the difference. For the first choice of drama and
# prose at the last layer it is ten points and more; elsewhere it is a few points, or none. The
# chance that the paper prints is right for experts that are evenly used; look at your loads before
# you use it.
#
# Now arithmetic at the first layer: its neighbours agree *less* than its tokens in random order do.
# In sums a digit is followed by a sign and a sign by a space; neighbours are different things.
# Mixtral's DM Mathematics is below chance too, for either choice, at the first layer and at the
# last, layer 31 (44.9 and 44.5 against 46.4), and perhaps for a reason of that sort. A number below
# chance is as much a pattern as one above it.
#
# The ledger counts more text, with intervals (`python -m moe_lite reproduce
# mixtral2024_repetition`).
#
# ## 7. Take it away
#
# All that was correlation. An expert that arithmetic *goes to* need not be one that arithmetic
# *needs*. So take it away: an **ablated** expert contributes nothing to its tokens, while their
# other gate stays as it was. We do it to each of the 48 experts, one after the other, on texts that
# none of the numbers above has seen. For each domain we note by how much the loss of the tokens
# rises.

# %%
parts = [corpus.windows(name, LENGTH, 29).ids_BS[1::10] for name in corpus.domains]
fresh, of_domain_T = torch.cat(parts), torch.arange(5).repeat_interleave(parts[0].numel())
base = effects.Run.of(model, fresh)


def rises(*interventions):
    """By how much does each domain's loss rise, in nats per token?"""
    rise_T = effects.Run.of(model, fresh, *interventions).loss_T - base.loss_T
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
# Three texts of a domain are few, and the best of 48 were picked by them: whoever wins such a
# contest had some luck. So a second look at four of them, on other texts (those of section 1,
# twelve of each domain), with the standard error over texts:


# %%
def by_text(at, expert, part):
    """By how much does each text's loss rise, in nats per token?"""
    changed = effects.Run.of(model, part.ids_BS, causal.ablate(at, expert))
    rise_T = changed.loss_T - effects.Run.of(model, part.ids_BS).loss_T
    return rise_T.view(len(part.ids_BS), -1).nanmean(1)


print("   " + "".join(f"{name:>17}" for name in corpus.domains))
for at, expert in ((1, 4), (4, 6), (5, 4), (0, 1)):
    means = [(rise_B.mean(), rise_B.std() / len(rise_B) ** 0.5)
             for rise_B in (by_text(at, expert, part) for part in windows)]  # fmt: skip
    print(f"{at}.{expert}" + "".join(f"{mean:+9.3f} ± {error:.3f}" for mean, error in means))

# %% [markdown]
# **1.4** gets two fifths of arithmetic's pairs. Take it away, and the loss of arithmetic rises by a
# few hundredths of a nat: "layer 1 has an arithmetic expert" is true as a picture and explains next
# to nothing. **0.1** is missed by arithmetic most, and by drama and code as much: that is no
# arithmetic expert, it is a load-bearing wall. And **5.4** gets no more of arithmetic's pairs than
# 1.4, but its absence costs ten times as much, nearly half a nat, and no other domain loses more
# than a hundredth. So there is one. The claim that we set out to doubt has passed the test that
# most pictures never took. (4.6 stands between: a tenth of a nat, and arithmetic's alone.)
#
# **Is zero a fair replacement?** Nothing in training ever put a zero in an expert's place, so a
# part of the rise may be the shock of something never seen. Two gentler ones: the expert's **mean**
# output over all its tokens, which keeps what it says to everybody and takes away what it says to
# *this* token; and **resampling**, what it answers to another of its tokens, which keeps even the
# spread.


# %%
def replaced(at, expert, how, part):
    """By how much does the loss rise if an expert's answers are replaced, in nats per token?"""

    def instead(layer, args, out):
        y_TD, routing = out
        who_N = (routing.expert_N == expert).nonzero()[:, 0]
        token_N = routing.token_N[who_N]
        own_ND = layer.experts.each()[expert](args[0].flatten(0, -2)[token_N])
        order = torch.randperm(len(own_ND), generator=torch.Generator().manual_seed(0))
        new = {"zero": 0, "mean": own_ND.mean(0), "resampled": own_ND[order]}[how]
        change_ND = routing.gate_N[who_N, None] * (new - own_ND)
        return y_TD.flatten(0, -2).index_add(0, token_N, change_ND).view_as(y_TD), routing

    hook = model.moe_layers[at].register_forward_hook(instead)
    try:
        changed = effects.Run.of(model, part.ids_BS)
    finally:
        hook.remove()
    return (changed.loss_T - effects.Run.of(model, part.ids_BS).loss_T).nanmean().item()


for at, expert in ((1, 4), (4, 6), (5, 4), (0, 1)):
    rises_of = {how: replaced(at, expert, how, windows[arithmetic])
                for how in ("zero", "mean", "resampled")}  # fmt: skip
    print(f"{at}.{expert}, arithmetic: " + ", ".join(f"{h} {r:+.3f}" for h, r in rises_of.items()))

# %% [markdown]
# They do not agree, and not in one direction. For 1.4 the mean costs as little as nothing at all
# does. For 0.1 it costs less than half: a good part of what that wall bears, it tells everyone
# alike. For 5.4 the mean is three times *worse* than silence, and another token's answer is worse
# than silence for each of the four: a wrong answer costs more than none. So zero does not flatter
# 5.4, and that 5.4 is needed where 1.4 hardly is holds by zero and by mean alike. Say which
# replacement you took.
#
# **Balance is not use.** There is one more way to be fooled, and it is in the training loss itself.
# The balancing loss of this model counts *pairs*: a first choice with a gate of 0.95 is one, a
# second choice with 0.05 is one as well. So a router can satisfy it by parking an expert on second
# place. The **gate mass** is the share of all gates that an expert carries:

# %%
mass_LE, load_LE = (
    analysis.gate_mass(B),
    torch.stack(
        [pairs_T.flatten().bincount(minlength=8).double() for pairs_T in analysis.choices_LTK(B)]
    ),
)
load_LE /= load_LE.sum(1, keepdim=True)
first_LE = torch.stack([first_T.bincount(minlength=8).double() for first_T in
                        analysis.choices_LTK(B)[..., 0]]) / len(word_T)  # fmt: skip
cost_LE = rise_LEC.mean(-1)
for place in (mass_LE / load_LE).flatten().topk(5, largest=False).indices.tolist():
    at, expert = divmod(place, 8)
    print(f"{at}.{expert}: {load_LE[at, expert]:5.1%} of the pairs, first choice of "
          f"{first_LE[at, expert]:5.1%} of the tokens, {mass_LE[at, expert]:5.1%} of the gates; "
          f"without it {cost_LE[at, expert]:+.3f} nats")  # fmt: skip

# %% [markdown]
# The first of them is nobody's first choice, has nearly an eighth of the pairs, as the loss wants
# it, and about a fiftieth of the gates; and the model hardly notices when it is gone. Every "load"
# in this course that counts pairs calls it well used, and so does every curve of balance you will
# read. An eighth of this layer's experts was paid for and does nothing: balance is what the loss
# asked for, and use is not.
#
# But an expert for arithmetic, or for digits? You have seen 5.4's favourite words in section 4.
# Digits occur in code, too:

# %%
digit_T = torch.tensor([piece.strip().isdigit() for piece in B.tokens])
at, expert = divmod(int(alone_LE.argmax()), 8)  # 5.4
for name in ("code", "arithmetic"):
    mine_T = digit_T & (domain_T == corpus.domains.index(name))
    share = (analysis.choices_LTK(B)[at, mine_T] == expert).any(-1).double().mean()
    print(f"{name:10} {int(mine_T.sum()):5} digits, {share:4.0%} of them use expert {at}.{expert}")

# %% [markdown]
# Every digit of a sum goes there, and of the digits in code, few as they are, not one: the same
# token, another company, another expert. (The other domains have too few to say.) Is it the topic,
# then, or the look of a sum, a digit beside a sign? Keep the sums and change what stands *before*
# them: 64 tokens of another domain, and then 64 tokens of arithmetic, the same ones each time. The
# share of their digits that use the expert, by the distance from the seam:

# %%
sums_BS = windows[arithmetic].ids_BS[:, :64]
for name, part in zip(corpus.domains, windows, strict=True):
    behind = routing_of(model, torch.cat([part.ids_BS[:, :64], sums_BS], 1))
    there_T = (analysis.choices_LTK(behind)[at] == expert).any(-1)
    digit_T = torch.tensor([piece.strip().isdigit() for piece in behind.tokens])
    pairs = zip(there_T.view(12, 128).split(16, 1), digit_T.view(12, 128).split(16, 1), strict=True)
    shares = [there_BS[digit_BS].double().mean() for there_BS, digit_BS in list(pairs)[4:]]
    print(f"sums behind {name:11}" + "".join(f"{share:6.0%}" for share in shares))

# %% [markdown]
# So it is neither the digit nor the sum, but what has been read: right behind a play or a program
# most of the same digits go elsewhere, and with each line of sums more of them come. Deep in the
# model the company does decide, over dozens of tokens, here and for this domain, the one that was
# made by a program and is unlike all others. It is much what Mixtral's authors saw: of all their
# domains only DM Mathematics differed, and that marginally.
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
# (Points at the bottom are experts whose absence cost nothing, or less than nothing; on three texts
# a thousandth of a nat is noise.) Most of what can be lost is lost at layer 0, and in the middle an
# expert more or less makes little difference. Within each layer use and need do go together, above
# chance; but at one and the same use the need differs by a factor of hundreds. So "who uses it" is
# evidence, among colleagues of one layer, and it is weak.
#
# Two more questions separate *having a job* from *being the only one who can do it*. **Ban** an
# expert: now the router may take its next best instead. If the loss rises less than before,
# somebody else can do a part of the work. **Swap** it with another: every pair is computed by the
# wrong expert, with the right weight. For the expert that arithmetic alone misses, and the one
# of its layer that arithmetic uses next; and, for comparison, one of layer 0:

# %%
next_best = int(used_LEC[at, :, arithmetic].index_fill(0, torch.tensor(expert), 0).argmax())
swap = causal.swap(at, expert, next_best)
for what in (causal.ablate(at, expert), causal.ban(at, expert), swap, causal.ablate(0, 5),
             causal.ban(0, 5)):  # fmt: skip
    rise = dict(zip(corpus.domains, rises(what).tolist(), strict=True))
    words = str(what).partition(",")[0]
    print(f"{words:31}" + " ".join(f"{name} {value:+.3f}" for name, value in rise.items()))

# %% [markdown]
# And on other texts, the same ones for both, text by text:


# %%
def rise_B(what):
    """By how much does each text of arithmetic lose, in nats per token?"""
    ids = windows[arithmetic].ids_BS
    rise_T = effects.Run.of(model, ids, what).loss_T - effects.Run.of(model, ids).loss_T
    return rise_T.view(len(ids), -1).nanmean(1)


worse_B = rise_B(causal.ban(at, expert)) - rise_B(causal.ablate(at, expert))
error = worse_B.std() / len(worse_B) ** 0.5
print(f"ban - ablate: {worse_B.mean():+.3f} ± {error:.3f} nats, paired over {len(worse_B)} texts")

# %% [markdown]
# Ablating leaves a hole; banning fills it with the next best, and for arithmetic that is *worse*
# than the hole. So among the eight nobody else can do this expert's work. Where banning is the
# milder of the two, as it is for 0.5, a colleague can do a part of it. Swapping hurts two kinds of
# text at once, because then both are answered by a stranger.
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
# All but section 7 read nothing but a `RoutingTrace`, and `record` makes one of any Mixtral,
# OLMoE or Qwen3-MoE from Hugging Face's transformers, with its own tokenizer:
#
# ```python
# from transformers import AutoModelForCausalLM, AutoTokenizer
#
# name = "allenai/OLMoE-1B-7B-0924"        # or a folder on your disk
# model = AutoModelForCausalLM.from_pretrained(name, dtype="bfloat16", device_map="auto")
# tokenizer = AutoTokenizer.from_pretrained(name)
# ids = tokenizer(text, return_tensors="pt").input_ids
# with torch.no_grad(), record(model, tokenizer) as recorded:
#     model(ids.to(model.device))
# recorded.trace                            # and on with analysis, viz, RoutingExplorer
# ```
#
# What it needs is memory for *all* experts, but no gradients. The trace itself holds two numbers
# for each token, layer and expert. From the configs:

# %%
for name in ("OLMoE", "Qwen3-30B-A3B", "Mixtral 8x7B"):
    shape = presets.PRESETS[name]
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
# Three random models, and in each the expert tells something about the domain: mostly words.
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
# Experts that take most of the verses and few of the articles! But look at the first line of the
# cell: verses and articles are *the same texts*, cut at different lengths. What is it?
#
# <details>
# <summary>Look here when you have a guess</summary>
#
# The filling. Padding is routed like anything else, and all padding looks alike, so it goes to one
# expert: the favourite of whatever is short. transformers' own balancing loss counted padding for a
# while ([issue 28505](https://github.com/huggingface/transformers/issues/28505)). Give padding the
# label -1, which every measure of `moe_lite.course.analysis` leaves out:
#
# </details>

# %%
real_T = (padded != filling).flatten()
for at in (1, 4):
    share_CE = analysis.specialization(one, kind_T.where(real_T, -1), choice="first")[at]
    print(f"layer {at}: verses   {[f'{s:4.0%}' for s in share_CE[0]]}")
    print(f"         articles {[f'{s:4.0%}' for s in share_CE[1]]}")

# %% [markdown]
# The two kinds are alike again, up to a few percent: the long texts go on where the short ones end.
#
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
# [`exercises/17_what_experts_learn.ipynb`](../exercises/17_what_experts_learn.ipynb): information,
# two shuffles, saturation, neighbours, a diagnosis ("nothing, words or topic?"), and the capstone.
# Each check tells you *what* you misunderstood. Solutions are in
# [`solutions/`](../solutions/17_what_experts_learn.ipynb).
#
# ## In six lines
#
# 1. A random router shows domain specialisation. The picture is no evidence.
# 2. Four nulls: shuffled labels, shuffled texts, shuffled among equal words, and the untrained
#    model. The first is the weakest.
# 3. Where the best router is known, a learned one goes some of the way, and the nulls tell cause
#    from decoy.
# 4. Words before topics: in the first layers words explain all that an expert tells about the
#    domain; in the last ones word and domain draw level.
# 5. Neighbours share experts; most of that is experts unequally used within a text.
# 6. Going to an expert and needing it are two things. Take it away and look: of the three that
#    arithmetic uses most, it needs one much, one a little, and one hardly.
#
# | in the papers | in the code | |
# |---|---|---|
# | $N_{E,D}/N_D$, OLMoE eq. 7 | `analysis.specialization(trace, domain_T)` | chance $1/E$ |
# | $N_{x,E}/N_x$, eq. 8 | `analysis.vocabulary_specialization(trace, ids_T)` | chance: `shuffled` |
# | $N_{ij}/N_i$, eq. 6 | `analysis.coactivation(trace)` | chance $(K-1)/(E-1)$ |
# | saturation, eq. 5 | `analysis.saturation(early, final)` | chance $k/E$ |
# | Mixtral Table 5 | `analysis.repetition(trace, length, choice)` | `repetition_chance(E, K)` |
# | $I(X; Y)$ | `analysis.mutual_information(trace, label_T)` | `permuted_information` |
# | ablation | `effects.effect(model, ids_BS, causal.ablate(layer, expert))` | `.rise_T` |
#
# **Read on:** OLMoE's section 5, whose figures can be remade from published statistics; Chen et al.
# 2022 ([arXiv:2208.02813](https://arxiv.org/abs/2208.02813)), who prove for a mixture of
# classification tasks that a router finds the clusters; and the ledger's rows for Mixtral's Table 5
# and OLMoE's section 5.
