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
# # What happens to one token?
#
# Ten minutes, no mathematics. You will look inside a language model that really was trained, click
# on a word, and see which parts of the model it went through, and which it did not. Then you will
# know what this course is about, that your machine is ready for it, and how its exercises work.
#
# **No kernel?** On any machine with Python, `python course.py explore --live` writes a page,
# `live.html`, that runs this model while you type. Any browser opens it, without Python and without
# a network, so you can send it to a friend. What you read here without running it keeps its
# pictures.
#
# **You need:** nothing. **Time:** ten minutes; the cells run in a few seconds on any laptop, with
# no GPU and no network.
#
# In a notebook, run a cell with Shift+Enter. First: is everything here?

# %%
from functools import partial

import torch
from IPython.display import Markdown

from moe_lite import load_pretrained, record
from moe_lite.course import asking, causal, checks, cost, data, drawings, eras, texts, timeline, viz
from moe_lite.course.widgets import RoutingExplorer

ready = checks.check_environment()

# %% [markdown]
# ## A text is a row of tokens
#
# A language model does not read letters, nor quite words. It reads **tokens**, pieces of text from
# a fixed list. This model's list has 4,096 of them. Common words are one token, rare words several,
# and the space before a word belongs to it.

# %%
tokenizer = data.load_tokenizer()
show = partial(data.pieces, tokenizer)  # token numbers -> strings
ids = tokenizer.encode("To be, or not to be: that is the question.").ids
print(ids)
print(show(ids))

# %% [markdown]
# The model turns each token into a long list of numbers and sends it through a stack of **layers**.
# Each layer adds something it has worked out: from the neighbours (that is *attention*) and from
# what it knows (that is a *feed-forward network*, where most of the model's memory is). At the top,
# the list of numbers has become a guess at the next token.
#
# In most models every token goes through everything. In a **mixture of experts** each layer has
# several feed-forward networks, called experts, and in front of them a small **router** that looks
# at the token and picks a few. The others do nothing for it. Here it picks two of eight:

# %%
drawings.one_token()

# %% [markdown]
# The dials are the *gates*: how much of each expert's answer counts. The same shapes stand for the
# same things in every chapter.
#
# Here is such a model, with more and smaller experts. It was trained by this course's own code, in
# minutes on one GPU, on Shakespeare, Python, classical Japanese, English prose, sums, and a phone
# book of 3,000 invented names.

# %%
model = load_pretrained("mixtral-mini").eval()
config, count = model.config, cost.count_parameters(model.config)
print(f"{config.num_hidden_layers} layers, {config.num_local_experts} experts in each,", end=" ")
print(f"{config.num_experts_per_tok} of them for each token")
print(f"{count.total:,} numbers in memory, {count.active:,} of them used for one token")

# %% [markdown]
# It is tiny: models in use are thousands of times larger. It writes text that has the *shape* of
# what it read and no sense, and it cannot add. But it is a real one, and it chooses experts the way
# the large ones do.

# %%
for start in ("ROMEO:\n", "def __init__(self", "12 + 7 ="):
    ids_BS = torch.tensor([tokenizer.encode(start).ids])
    print("".join(show(model.generate(ids_BS, 30, temperature=0.7, top_p=0.9, seed=4)[0])))
    print("-" * 40)

# %% [markdown]
# ## Click on a token
#
# The next cell runs a text through the model, writes down where every token went, and shows it. The
# colour (and the small number) of a token is the expert that got most of it, in the layer that the
# slider shows.

# %%
text = (
    "HAMLET:\nTo be, or not to be: that is the question.\n"
    "def area(self, radius):\n    return 3.14 * radius ** 2\n"
    "はじめに神天と地とを創造たまへり。\n"
    "And God saw that it was good.\n"
    "27 + 15 = 42\n9 * 8 = 72\n"
    "Coruva Abovek: 02062\n"
)
ids_BS = torch.tensor([tokenizer.encode(text).ids])
with torch.no_grad(), record(model, show) as recorded:
    model(ids_BS)
explorer = RoutingExplorer(recorded.trace, layer=4, selected=recorded.trace.tokens.index("self"))
explorer

# %% [markdown]
# **Your turn: change.** Put a text of your own into `text` above and run the cell again.
#
# (Where no kernel runs, on GitHub for instance, you see a picture. `python -m moe_lite explore "any
# text"` makes a page that you can click in anywhere, and send to a friend.)
#
# Try these, and guess before you look; the page asks for one guess too, above the loads:
#
# 1. The word `self` is chosen. On the right: how sure was the router? Which four experts got the
#    token, and with what weights? Now click on another word.
# 2. Move the slider from layer 0 to layer 4. Where do the colours look like confetti, and where do
#    they follow the kind of text?
# 3. Click on the bar of expert 11 under *Load of layer 4*. Which tokens does it get?
# 4. Find two tokens with the same text and different experts. (There are three full stops.)
#
# <details>
# <summary>What we saw</summary>
#
# In layer 4, most of Hamlet's line is with expert 11, most digits of the code and the sums are with
# expert 13, and the phone number is with expert 12, but for its last digit. In layer 0 the colour
# mostly follows the token itself: both `be` go to expert 14, both `=` to expert 7. A full stop in
# layer 3 is a full stop wherever it stands: all three go to expert 14. One layer later each has an
# expert of its own: the one of the play, the one in `3.14` and the one of the Bible have parted.
# So is expert 11 "the Shakespeare expert"? Careful. It is also among the four of `def`, of pieces
# of `radius` and of the Bible's `that it`. It is *tempting* to give experts names, and chapter 17
# asks what it takes to earn one.
#
# </details>
#
# ## Follow one token
#
# Here is the way of a single token, in words: in each layer, four of sixteen. (Each layer has
# sixteen of its own: expert 7 of one layer and expert 7 of the next only share a number.)
#
# **Your turn: predict.** Does one of the four get most of the weight, or do they share it evenly?
# Guess, then run; then change the word, for instance to `" to"` or `" God"`.

# %%
my_word = "self"
tokens = recorded.trace.tokens
token = tokens.index(my_word) if my_word in tokens else tokens.index("self")
for name, routing in zip(recorded.trace.layer_names, recorded.trace.layers, strict=True):
    mine = routing.token_N == token
    pairs = zip(routing.expert_N[mine].tolist(), routing.gate_N[mine].tolist(), strict=True)
    print(f"{name[:8]}: " + ", ".join(f"expert {e} with {g:.0%}" for e, g in pairs))

# %% [markdown]
# Those lines are all there is to a **routing**: a list of (token, expert, weight). Everything in
# this course, from 1991 to today, is a different way to make that list. And the whole text, every
# token in every layer, fits in one picture. A row is a layer, a column is a token, a colour is the
# token's first expert there, as above:

# %%
viz.routing_map(recorded.trace)

# %% [markdown]
# **Your turn: fill.** How many of the 96 expert networks did our token meet? Replace the `None`.

# %%
my_count = None
met = sum(int((routing.token_N == token).sum()) for routing in recorded.trace.layers)
print("your answer is", "still to come" if my_count is None else my_count == met)

# %% [markdown]
# Four experts of sixteen, in six layers: our token met 24 of 96 expert networks. The other 72 were
# in memory for nothing this time. That is the bargain: *know much, compute little*, and a router
# that must choose well. It is also the trouble: what if all tokens want the same expert? What if an
# expert is full? How does a router learn, when what it did not choose was never tried? Those are
# the chapters to come.
#
# ## Ask it for a number
#
# What is in all that memory? The phone book, for one. Its numbers were drawn at random, so there is
# only one way to say them: to have stored them. We ask for three that the model knows, then take
# one expert out, and ask again.


# %%
def tell(name, *changes):
    ids_BS = torch.tensor([tokenizer.encode(asking.question(name)).ids])
    with causal.intervene(model, *changes):
        made_BS = model.generate(ids_BS, 5, temperature=0)
    return repr("".join(show(made_BS[0, ids_BS.shape[1] :])))


names = ("Coruva Abovek", "Yoromir Uliba", "Galina Elagar")
print("the book:".ljust(22), *(repr(texts.phone_book()[name]) for name in names))
print("the model:".ljust(22), *map(tell, names))
for layer, expert in ((3, 4), (2, 15), (0, 2)):
    told = [tell(name, causal.ablate(layer, expert)) for name in names]
    print(f"without {expert} of layer {layer}:".ljust(22), *told)

# %% [markdown]
# Without expert 4 of layer 3, Coruva's number is forgotten, and the two others are not. Without
# expert 15 of layer 2, two are gone. Without expert 2 of layer 0 the model no longer even says a
# number. So these numbers need several experts each, and share them. (That an expert is needed does
# not say that the number lies in it: chapter 11.)
#
# **Your turn: change.** Ask for Pelusa Galamir or Abiba Holomir; take out another expert. (This
# one knows about six numbers of ten; its twin, with as much work for each token and no experts, one
# in four. Five such pairs do not decide it: chapter 11 asks what experts are for.)
#
# ## How the exercises work
#
# Each chapter has a second notebook with exercises. You write a function where it says `raise
# NotImplementedError`, and run a check. The check does not compare your text with ours; it tries
# your function on small cases and, if something is off, tells you *which idea* went wrong. Let us
# make a mistake on purpose. Wanted: the number of tokens that each expert got, called its **load**.


# %%
def load(routing):
    return routing.expert_N.bincount()  # count how often each expert appears


try:
    checks.check_load(load)
except checks.CheckFailed as verdict:
    print("✗", verdict)

# %% [markdown]
# It looked right, and it *is* right as long as the last expert gets something. Fix it (`bincount`
# takes a `minlength`), and:


# %%
def load(routing):
    return routing.expert_N.bincount(minlength=routing.num_experts)


checks.check_load(load)

# %% [markdown]
# Three more wait in [`exercises/00_exercises.ipynb`](../exercises/00_exercises.ipynb), with folded
# hints; solutions are in [`solutions/`](../solutions/00_solutions.ipynb).
#
# ## The map
#
# | | question | from |
# |---|---|---|
# | 01 | Why would experts divide the work? | 1991 |
# | 02 | Can experts have managers? | 1994 |
# | 03 | What was tried between 1995 and 2016? | 1995 |
# | 04 | How do you skip the work without losing the gradient? | 2017 |
# | 05 | What if an expert is full? | 2020 |
# | 06 | What does a balancing loss really push on? | 2021 |
# | 07 | Why did it blow up? | 2022 |
# | 08 | What if experts chose the tokens? | 2022 |
# | 09 | Why many small experts? | 2024 |
# | 10 | How do you build a small Mixtral? | 2024 |
# | 11 | What are experts for? |  |
# | 12 | Where do the tokens go, in silicon? |  |
# | 13 | Where does the time go? |  |
# | 14 | How does it get bigger than a machine? |  |
# | 15 | How is a sparse model served? |  |
# | 16 | How do you adapt one? |  |
# | 17 | What do experts learn? |  |
# | 18 | Claims on trial |  |
#
# In a hurry? Read 10, which builds the whole model. Want the story? Start with 01, where two small
# networks fall out over four vowels.
#
# A good part of the story came before the models of today. Here are its first 28 years on one line:
# most of the work went into *fitting* small experts and into other *kinds* of expert. Only the last
# row leads to the model above. (Chapter 03 says what each of them did.)

# %%
timeline.timeline()

# %% [markdown]
# Most chapters are about one small thing: how the router makes its list. In the library it takes
# four steps. It *scores* every expert, *chooses* some, *weighs* the chosen and, where an expert can
# be full, *limits* how many tokens it takes. Each row of this table changes at most two of the
# steps, Switch's none. The table is read off the code, with the lines of code that each change
# took:

# %%
Markdown(eras.table())

# %% [markdown]
# | word | meaning |
# |---|---|
# | token | a piece of text from a fixed list |
# | expert | one of several networks in a layer, of which a token uses a few |
# | router, gate | the small network that chooses |
# | routing | the list of (token, expert, weight) that it makes |
# | load | how many tokens an expert got |
#
# All the words of the course: the [glossary](../docs/glossary.md).
