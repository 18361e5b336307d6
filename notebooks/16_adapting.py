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
# # How do you adapt a sparse model?
#
# Four changes to a model that is there already: train it on, make a dense one sparse, take experts
# out, round its weights. Leaving the experts alone costs little; a copy is worth what the dense
# model was; the expert used least is not the one needed least, and what the text you measured on
# does not ask for, you cannot see go; for their size, the experts bear rounding best. And where two
# copies of one model disagree, it is mostly a matter of the few tokens that went to other experts.
#
# **The papers:** Zoph et al. 2022, *ST-MoE* ([arXiv:2202.08906](https://arxiv.org/abs/2202.08906)),
# for fine-tuning; Komatsuzaki et al. 2022 ([arXiv:2212.05055](https://arxiv.org/abs/2212.05055))
# and OLMoE 2024 ([arXiv:2409.02060](https://arxiv.org/abs/2409.02060)), for upcycling; Lasby et al.
# 2025, *REAP* ([arXiv:2510.13999](https://arxiv.org/abs/2510.13999)), for pruning; Ma et al. 2025,
# *R3* ([arXiv:2510.11370](https://arxiv.org/abs/2510.11370)), for replay.
#
# In this chapter you
#
# - read what fine-tuning a part of a sparse model keeps of the gain;
# - make a sparse model of a dense one without changing its output, and see what it was worth;
# - take an eighth of the experts out, by two measures, with intervals over held-out text, and
#   find what the pruned model can no longer do;
# - round each part of a model to four bits, and see which part minds;
# - replay one run's experts in another number format, and see which tokens made the gap;
# - catch an upcycled model whose experts never part.
#
# **You need:** PyTorch and chapter 10. No GPU, no network. **Time:** three quarters of an hour to
# read and try; the cells run in about a minute on two CPU cores.

# %%
from dataclasses import replace

import torch

from moe_lite import Experts, Mixtral, MoELayer, TopKRouter, hf, train
from moe_lite.course import asking, causal, data, drawings, effects, ledger, sweep, viz
from moe_lite.course.texts import phone_book

torch.manual_seed(0)
torch.set_num_threads(1)
torch.set_printoptions(precision=3, sci_mode=False)
text = data.load_corpus(max_bytes=400_000)

# %% [markdown]
# One drawing for the four changes. A layer is a router before a row of experts; what is changed
# shows in the experts:

# %%
drawings.adapting()

# %% [markdown]
# ## 1. Fine-tuning: what to freeze
#
# Sparse models have many parameters for the work they do, and little text is enough to learn it by
# heart with many parameters. ST-MoE's authors fine-tuned only a part of their model: everything;
# only the experts; everything *but* the experts; only attention; only the dense FFNs. They found
# all but the experts about as good as everything, the FFNs alone a bit better still, and *only the
# experts* drastically worse, although that is where some 80% of the parameters are. Their guess at
# a reason: experts are in one of four layers only, so updating them touches few layers.
#
# We did that in small: a model with experts in one of its four layers, trained on four of the
# course's domains, then fine-tuned on 30 kB of the fifth, Shakespeare, and measured on Shakespeare
# that it had not seen. From the ledger (`python -m moe_lite reproduce stmoe2022_finetune`):

# %%
tuned = ledger.stored("stmoe2022_finetune")
print(f"stored result, {len(tuned.seeds)} seeds; held-out bits per byte (%: updated)")
rows = {"one in four": ("all", "all but experts", "experts", "attention", "FFN"),
        "every layer": ("all", "all but experts", "experts"), "dense twin": ("all",)}  # fmt: skip
for shape, subsets in rows.items():
    print(f"{shape:25}{'before':16}{'best':16}{'at the end':16}training loss")
    for subset in subsets:
        share = tuned[f"share updated: {subset}, {shape}"].mean
        whats = "before", "best", "end", "training loss"
        cells = (str(tuned[f"{what}: {subset}, {shape}"]) for what in whats)
        print(f"  {subset:16}{share:5.0%}  " + "".join(f"{cell:16}" for cell in cells))

# %%
ledger.verdicts("stmoe2022_finetune")

# %% [markdown]
# **What held: the experts alone are the worst of the paper's five.** At its best point, as in all
# that follows, updating *only* the experts lies above each of the other four on held-out text, with
# intervals clear of 0. **What we cannot tell: that leaving them alone costs nothing.** With experts
# in one layer of four, updating all *but* the experts lies where updating everything does, give or
# take 0.015 bits a byte: more than the margin of 0.01 that the ledger asks for. And in Mixtral's
# shape, with experts in every layer, **it does cost**: all but the experts keep about nine tenths
# of the gain, less in every seed, with an interval beyond the margin. So how much can be left alone
# depends on how much of the model the experts are.
#
# **What did not: the FFNs.** The paper found them a bit better than everything; ours keep two
# thirds of the gain, and so does attention alone, and the experts are worst by little only. What
# has "all but the experts" that those three have not? The *embedding*: our task brings a new
# vocabulary (a model that had read no play has to learn how plays are spelled), where SuperGLUE
# asks new questions in old words. So we asked again, after that first result, with two more
# subsets:

# %%
for subset in ("attention", "FFN", "experts", "embedding", "experts and embedding"):
    share, loss, rise = (tuned[f"{what}: {subset}, one in four"]
                         for what in ("share of the gain", "training loss", "rise"))  # fmt: skip
    print(f"{subset:22} keeps {share!s:13} of the gain; in training {loss!s:14} rise {rise}")
kept = tuned["share of the gain: all but experts, every layer"]
print(f"and with experts in every layer: all but experts keeps {kept}")

# %%
for what, other in {"best": "embedding", "training loss": "attention"}.items():
    pair = ledger.Pair(f"{what}: experts, one in four", f"{what}: {other}, one in four")
    print(f"{what}, experts less {other}: {tuned[pair]}")

# %% [markdown]
# The guess was wrong as it stood: the embedding alone does no better than the others, and between
# it and the experts nothing is decided. *Any* single part keeps some two thirds; the one pair that
# we ran, experts and embedding, keeps nine tenths. So at our size the experts are hardly special; a
# part alone cannot do it. Whether their training loss is above attention's is open too. The lesson
# to carry off is smaller than the paper's, and still useful: leaving the experts out costs nothing
# that we could measure where one layer in four has experts, and about a ninth of the gain (4 to
# 18%) where all have. And they are where most of the memory for gradients and moments would go.
#
# **Does anything overfit?** Undecided. *Rise* is how far the held-out loss climbs from its best
# point to the end, so it cannot be below 0, and there are three seeds:

# %%
rises = [values for what, values in tuned.measures.items() if what.startswith("rise: ")]
means = [sum(values) / len(values) for values in rises if min(values) > 0]
print(f"all three seeds rise in {len(means)} of {len(rises)} rows, by {min(means):.2f} to "
      f"{max(means):.2f} bits a byte on average")  # fmt: skip

# %% [markdown]
# A training loss of 5 nats a token is far from knowing 30 kB by heart. One row hints at it: the
# embedding alone reaches a training loss 1.2 nats below that of the experts and is not measurably
# better on new text. The paper's warning is about far larger models on a few hundred examples; ours
# is too small to test it.
#
# ## 2. Upcycling: what is an old dense model worth?
#
# You have trained a dense model and want a sparse one. **Upcycling** makes one: copy the
# feed-forward network $E$ times, put a fresh router before the copies, train on. At the moment of
# copying nothing has changed, whatever the router says: the experts are equal and a token's gates
# sum to 1, so
#
# $$\sum_{i \in \text{top-}K} g_i\,E_i(x) = \Big(\sum_i g_i\Big)\,E(x) = E(x).$$

# %%
torch.manual_seed(0)
dense = Mixtral(replace(sweep.SMALL, num_local_experts=1, num_experts_per_tok=1))
train.train(dense, text, replace(sweep.TRAINING, steps=60), progress=False)
sparse = hf.upcycle(dense, num_experts=8, experts_per_tok=2)
ids = text.windows("prose", 64, 4).ids_BS
with torch.no_grad():
    change = (sparse(ids).logits_BSV - dense(ids).logits_BSV).abs().max()
counts = [sum(p.numel() for p in m.parameters()) for m in (dense, sparse)]
print(f"{counts[0]:,} -> {counts[1]:,} parameters; largest change of a logit {change:.1e}")

# %% [markdown]
# Now let it go on beside a model of the same shape that starts from scratch, on the same batches
# (one seed, 60 steps, an illustration):

# %%
torch.manual_seed(1)
runs = {"upcycled": sparse, "from scratch": Mixtral(sweep.SMALL)}
# The same learning rate throughout: a schedule must not decide the race.
steady = replace(sweep.TRAINING, steps=60, min_lr_ratio=1.0, seed=1)
runs = {name: train.train(model, text, steady, progress=False) for name, model in runs.items()}
lines = {name: (range(1, 61), viz.smooth(history.column("loss"))) for name, history in runs.items()}
viz.curves(lines, "further steps", "training loss, nats per token", title="one seed")

# %% [markdown]
# And the question is what that head start is worth. Komatsuzaki et al. found it worth more than
# 100% of the dense model's own training: a model from scratch needed 120% of it to catch up.
# OLMoE, with another kind of router and a dense model that had read 2 trillion tokens, found the
# one from scratch level after 25% and ahead from about 30% on. In small, with the same batches and
# the same number of steps for both (`python -m moe_lite reproduce upcycling`):

# %%
up = ledger.stored("upcycling")
shares = [k * 20 / 400 for k in range(1, 25)]
names = {"from scratch": "scratch", "upcycled": "upcycled", "dense goes on": "dense"}
runs = {n: (shares, [up[f"{key} at {s:.0%}"].mean for s in shares]) for n, key in names.items()}
x = "further training / the dense model's own"
viz.curves(runs, x, "held-out bits per byte", title=f"stored, {len(up.seeds)} seeds")

# %%
print("upcycled - dense at 120%:", up["upcycled - dense at 120%"])
# Your turn: at which share is the upcycled model still ahead of the one from scratch? Predict.
print("at 20%:", round(up["scratch at 20%"].mean - up["upcycled at 20%"].mean, 3))
ledger.verdicts("upcycling")

# %% [markdown]
# **Here it went Komatsuzaki's way, and further.** At 30%, where OLMoE's model from scratch is
# ahead, ours is 0.4 bits a byte behind, and at 120% still nearly a tenth, both clear of 0:
# contradicted. When it *would* catch up we cannot say: three runs that never did are three bounds,
# and a sign test wants six. OLMoE's authors give a reason why theirs came so early: their dense
# model had been trained for very long, and sat where more training hardly helped. Ours is the
# opposite case, stopped while it was still learning fast, and the third curve shows what that
# means: the dense model that simply *goes on* is hardly behind its upcycled copy, by a hundredth of
# a bit. So what the head start is worth here is the dense model's training, nearly nothing else.
# Read the two papers together like
# this: *upcycling is worth what you did not pay for the dense model*. If the dense model is there
# already, take it; if you would have to train it first, that time counts too.

# %% [markdown]
# ## 3. Pruning: which expert can go?
#
# A model takes too much memory, so take experts out and let the router choose among those that
# stay. Which ones? The obvious measure is **use**: the share of pairs. Chapter 17 will say that use
# and need are two things, so here is one that looks at what an expert *does*: REAP, the mean over
# its tokens of gate times the length of its answer. Both are measured on training text, 2,560
# tokens of the five domains:

# %%
model = hf.load_pretrained("mixtral-mini").eval()
L, E = len(model.moe_layers), model.config.num_local_experts


def observe(ids_BS):
    """Run a text and return what each layer read and whom its router chose."""
    found = []
    hooks = [layer.gate.register_forward_hook(lambda gate, args, out: found.append((args[0], out)))
             for layer in model.moe_layers]  # fmt: skip
    with torch.no_grad():
        model(ids_BS)
    for hook in hooks:
        hook.remove()
    return found


# %%
@torch.no_grad()
def scores(ids_BS):
    """Return each expert's share of the pairs and its REAP, as a text shows them: two (L, E)."""
    use_LE, reap_LE = torch.zeros(L, E), torch.zeros(L, E)
    seen = zip(model.moe_layers, observe(ids_BS), strict=True)
    for at, (layer, (x_TD, routing)) in enumerate(seen):
        for e, expert in enumerate(layer.experts.each()):
            who_N = routing.expert_N == e
            y_ND = expert(x_TD.flatten(0, -2)[routing.token_N[who_N]])
            use_LE[at, e] = who_N.float().mean()
            reap_LE[at, e] = (routing.gate_N[who_N] * y_ND.norm(dim=-1)).mean()
    return use_LE, reap_LE


# %%
calibration = text.batch("train", 10, 256, seed=3).ids_BS
use_LE, reap_LE = scores(calibration)
for name, score_LE in {"use": use_LE, "REAP": reap_LE}.items():
    over_L = score_LE.amax(1) / score_LE.amin(1)
    print(f"{name:4} the most in a layer over the least: {over_L.min():.1f} to {over_L.max():.1f}")

# %% [markdown]
# Take one, then two of sixteen out of *every* layer, the least by each measure, and at random in
# four draws for comparison. The rise of the loss on twenty held-out windows, paired window by
# window, with 95% intervals:

# %%
held_out = torch.cat([text.windows(name, 256, 4).ids_BS for name in text.domains])
base_T = effects.Run.of(model, held_out).loss_T


def least(score_LE, drop):
    """Ban so many experts of each layer, those of the least score."""
    least_LE = score_LE.argsort(1)[:, :drop].tolist()
    return [causal.ban(at, e) for at, experts in enumerate(least_LE) for e in experts]


def rise(score_LE, drop):
    """Give the rise of the loss and its interval if each layer loses so many experts, in nats."""
    rise_T = effects.Run.of(model, held_out, *least(score_LE, drop)).loss_T - base_T
    rise_B = rise_T.view(len(held_out), -1).nanmean(1)
    return rise_B.mean().item(), 2.09 * (rise_B.std() / len(rise_B) ** 0.5).item()  # t of 19


# %%
lot = [torch.rand(L, E, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
for drop in (1, 2):
    rows = {"least used": rise(use_LE, drop), "least REAP": rise(reap_LE, drop)}
    print(f"{drop} of {E} gone: "
          + ", ".join(f"{name} {mean:+.3f} ± {half:.3f}" for name, (mean, half) in rows.items())
          + f", at random {min(rise(s, drop)[0] for s in lot):+.2f} to "
          + f"{max(rise(s, drop)[0] for s in lot):+.2f}")  # fmt: skip
# Your turn: and if the *most* used go? Predict, then put a minus before `use_LE`.
print(f"one of {E}, the least used:", "{:+.3f} ± {:.3f}".format(*rise(use_LE, 1)))

# %% [markdown]
# **The expert used least is not the one needed least.** The intervals lie far apart: with one of
# sixteen gone 0.014 nats by REAP and 0.17 by use, with two 0.05 and 0.25, and use lies among the
# four random draws. The balancing loss is a reason: it keeps use alike, and what differs between
# experts is something else.
#
# An eighth of the experts for 0.05 nats, then? The twenty windows say so. But they are of five
# domains, and this model learned a sixth text: a phone book, 3,000 numbers to know by heart. Take
# one expert out of every layer and ask for 200 of them:

# %%
ask = asking.Questions(text.tokenizer, 200)
rows = "".join(f"{name}: {number}\n" for name, number in list(phone_book().items())[:100])
book = torch.tensor(text.tokenizer.encode(rows).ids[:512]).view(2, 256)
both_LE = scores(torch.cat([calibration, book]))[1]
gone = {"none": [], "the least used": least(use_LE, 1), "the least by REAP": least(reap_LE, 1),
        "of these only layer 0's": least(reap_LE, 1)[:1],
        "by REAP with the book": least(both_LE, 1)}  # fmt: skip
for name, bans in gone.items():
    known, half = asking.share(ask.known(model, *bans))
    print(f"gone: {name:24}{known:4.0%} ± {half:.0%} of the numbers known")
print("by REAP with the book, the five domains: {:+.3f} ± {:.3f}".format(*rise(both_LE, 1)))

# %% [markdown]
# **A measure knows only the text it was measured on.** The model that lost almost nothing knows
# none of 200 numbers, where it had known 58 ± 7%. (Its ± 0 is not certainty: none of 200 may be up
# to 2% of all.) One expert of 96 is enough: the one that REAP scores least in layer 0, on the five
# domains, is one that the phone book cannot do without. Two pages of the book
# among twelve of calibration keep it, at 0.036 ± 0.027 nats for the five domains; still more than
# half of the numbers go. So calibrate on all that the model is to go on doing, and then ask for it:
# a mean loss does not tell.
#
# ## 4. Rounding: which part minds?
#
# MXFP4 writes 32 weights with one shared power of two, and each of them as one of fifteen numbers:
# 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives. A part of the model at a time, the others as they
# were, on 24 windows of each domain: twenty in all would not decide it.

# %%
halves = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
FP4 = torch.cat([-halves.flip(0)[:-1], halves])


def mxfp4(w):
    """Round to MXFP4 and back: in blocks of 32, with a power of two that makes the largest fit."""
    block = w.reshape(-1, 32)
    largest = block.abs().amax(1, keepdim=True).clamp(min=1e-12)
    scale = 2.0 ** (largest / 6).log2().ceil()
    return (FP4[((block / scale)[..., None] - FP4).abs().argmin(-1)] * scale).view_as(w)


# %%
more = torch.cat([text.windows(name, 256, 24).ids_BS for name in text.domains])


@torch.no_grad()
def losses(model):
    """Give the mean loss of each of the 120 windows, eight at a time, in nats."""
    runs = [effects.Run.of(model, part).loss_T.view(len(part), -1) for part in more.split(8)]
    return torch.cat([loss_BS.nanmean(1) for loss_BS in runs])


# %%
parts = {"experts": ".experts.", "routers": ".gate.",
         "attention": "self_attn", "embedding": "embed"}  # fmt: skip
total, before_B = sum(p.numel() for p in model.parameters()), losses(model)
for part, mark in parts.items():
    small = hf.load_pretrained("mixtral-mini").eval()
    rounded = {n: p for n, p in small.named_parameters() if mark in n}
    with torch.no_grad():
        for p in rounded.values():
            p.copy_(mxfp4(p))
    cost, half = asking.share(losses(small) - before_B)
    share = 100 * sum(p.numel() for p in rounded.values()) / total
    print(f"{part:10} {share:4.1f}% of the parameters: {cost:+.4f} ± {half:.4f} nats; "
          f"for each 1% {cost / share:.5f} ± {half / share:.5f}")  # fmt: skip

# %% [markdown]
# The experts are most of the bytes, and rounding all of them to four bits costs less than a
# hundredth of a nat. In all, routers and attention cost no more; **for their size, the experts mind
# least**, attention more, the routers most. The embedding, which is the output head too, is a ninth
# of the experts and costs three times as much. gpt-oss is published like that: its experts in MXFP4
# and everything else in bf16. (A trained model can be prepared for it besides; here nothing was.)
# Exercise 1 has you do it in int8.
#
# ## 5. Replay: one model, two number formats
#
# Reinforcement learning trains a model on text that it has written itself. The copy that writes and
# the copy that learns have the same weights but not the same code or number format, so their
# routers do not always agree. The ratio of a token's two probabilities, 1 if nothing differs, is
# what the learning rule multiplies by, and an unlucky token can be far off. **Rollout routing
# replay** (R3) writes down the experts when the text is written, and takes them again in training;
# their weights are computed anew, so that the router still learns
# ([arXiv:2510.11370](https://arxiv.org/abs/2510.11370); read: the abstract). `causal.replay` does
# it: the router gets scores in which only the recorded experts can be chosen. Here nobody
# writes: both read the same held-out text, bfloat16 in the writer's place, float32 in the
# learner's:

# %%
kinds = torch.bfloat16, torch.float32
half, full = (hf.load_pretrained("mixtral-mini").eval().to(kind) for kind in kinds)
K = full.config.num_experts_per_tok
read = torch.cat([text.windows(name, 128, 8).ids_BS for name in text.domains])
written, again = effects.Run.of(half, read), effects.Run.of(half, read)
trained = effects.Run.of(full, read)
with causal.replay(full, written.routings):
    replayed = effects.Run.of(full, read)
experts = [torch.stack([one.expert_N.view(-1, K).sort(1).values for one in run.routings])
           for run in (written, trained)]  # fmt: skip
moved_LT = (experts[0] != experts[1]).any(-1)
print(f"other experts in {moved_LT.float().mean():.2%} of the choices, "
      f"{moved_LT.any(0).float().mean():.1%} of the tokens")  # fmt: skip

# %% [markdown]
# Two measures of the gap: the ratio of the two probabilities of the token that came, whichever way
# round is above 1; and KL, the gap of the whole distribution. Intervals are over the 40 texts:


# %%
def gap_BS(run):
    """Return KL(written || run) at each token, in nats."""
    return (written.log_probs_BSV.exp() * (written.log_probs_BSV - run.log_probs_BSV)).sum(-1)


def over_texts(x_B):
    return f"{1e4 * x_B.mean():5.2f} ± {1e4 * 2.02 * x_B.std() / len(x_B) ** 0.5:.2f}"  # t of 39


# %%
runs = {"the same again": again, "float32": trained, "float32, replayed": replayed}
for name, run in runs.items():
    ratio_T = (run.loss_T - written.loss_T).abs().exp().nan_to_num(1)
    kl_B, above = gap_BS(run).mean(1), (ratio_T > 1.1).float().mean()
    print(f"{name:18} KL {over_texts(kl_B)} x 1e-4; ratio above 1.1 in {above:.2%} of the tokens, "
          f"at most {ratio_T.max():.2f}")  # fmt: skip
saved_B = (gap_BS(trained) - gap_BS(replayed)).mean(1)
print(f"replay takes away {over_texts(saved_B)} x 1e-4 of KL")

# %%
moved_BS = moved_LT.any(0).view(read.shape)
met_BS = moved_BS.cumsum(1) > 0
groups = {"where an expert is another": moved_BS, "later in such a text": met_BS & ~moved_BS,
          "before any is another": ~met_BS}  # fmt: skip
for name, who_BS in groups.items():
    kl = [1e4 * gap_BS(run)[who_BS].mean() for run in (trained, replayed)]
    print(f"{name:27} {who_BS.float().mean():4.0%} of the tokens: KL {kl[0]:6.2f} x 1e-4, "
          f"replayed {kl[1]:.2f}")  # fmt: skip

# %% [markdown]
# **A few tokens make most of the gap, and replay closes it there: 4.39 ± 2.36 of 5.58, in units of
# 10⁻⁴.** The same run twice gives the same bits: that is the null. One set of four in sixty is
# another in float32 (where a fourth expert changes places with a fifth, say), and the eight tokens
# in a hundred that have such a set hold most of the KL. With the experts replayed they differ no
# more than the others do (1.19 against 1.19 and 1.12), and what is left looks like plain rounding.
# (The groups have no intervals; the three rows above have.)
#
# Our gap is small: 6 layers and two formats of one code. Of a model with 48 layers and two engines
# it is said that a tenth of the routers disagree and 94% of the tokens are touched (second-hand:
# from a [feature request](https://github.com/NVIDIA/Megatron-LM/issues/4168)). Whether replay keeps
# a training from collapsing, R3's claim, cannot be seen here: nothing was trained.
#
# ## 6. What goes wrong: experts that never part
#
# Somebody upcycles, and makes the router too: a fresh one, all zeros, "so that it starts neutral".
# The loss falls. After two hundred steps all eight experts are still one and the same:

# %%
torch.manual_seed(0)
# Your turn: with top_k=2, do the copies part? Predict, then change it here.
layer = MoELayer(TopKRouter(16, num_experts=8, top_k=8), Experts(8, 16, 32))
with torch.no_grad():
    layer.gate.weight.zero_()
    for w_EFD in layer.experts.parameters():
        w_EFD.copy_(w_EFD[:1].expand_as(w_EFD))
x_TD, target_TD = torch.randn(64, 16), torch.randn(64, 16)

# %%
optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
for step in range(201):
    out_TD = layer(x_TD)[0]
    loss = (out_TD - target_TD).square().mean()
    if step % 100 == 0:
        used_E = layer.gate(x_TD).load_E() > 0
        w_UFD = layer.experts.w1[used_E]
        apart = (w_UFD - w_UFD[:1]).abs().max()
        print(f"step {step:3}: loss {loss:.3f}, {len(w_UFD)} experts used, apart by {apart:.1e}")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %% [markdown]
# <details>
# <summary>What is it?</summary>
#
# Symmetry. Equal experts with equal gates on the same tokens get equal gradients, and the router
# gets none at all, because no choice makes a difference: where all experts say the same, weighing
# them otherwise changes nothing. Something has to break the tie, and a router drawn at random does:
# with $K < E$ other tokens reach other experts, and with all experts on every token the gates
# differ. A router that is zero breaks nothing. With `top_k=2` all 64 tokens go to the same two of
# eight equals: those stay twins, and six are never trained. (`hf.upcycle` draws its routers.)
#
# </details>
#
# ## Exercises
#
# [`exercises/16_exercises.ipynb`](../exercises/16_exercises.ipynb): experts in a byte per weight,
# REAP's score, a router with rows taken out, how many upcycled experts there really are, and the
# weights of replayed experts. Each check tells you *what* you misunderstood. Solutions are in
# [`solutions/`](../solutions/16_solutions.ipynb).
#
# [Glossary](../docs/glossary.md).
#
# ## In five lines
#
# 1. Fine-tune all but the experts: with experts in every layer about a ninth of the gain is lost,
#    and most of the memory for gradients is saved.
# 2. An upcycled model starts where the dense one stopped, exactly. It is worth what you did not pay
#    for the dense one.
# 3. Prune by what an expert does, not by how often it is asked, and on all the text that counts.
# 4. Round the experts, leave the rest.
# 5. Two copies that round otherwise part where a token gets another expert. Replay the experts.
#
# | in the field | in the code | |
# |---|---|---|
# | upcycling | `hf.upcycle(dense, E, K)` | the same logits |
# | pruning | `causal.ban(layer, expert)` | the router takes its next best |
# | REAP | gate times the length of the answer | mean over the expert's tokens |
# | MXFP4 | 32 weights, one power of two | 4.25 bits a weight |
# | routing replay, R3 | `causal.replay(model, routings)` | recorded experts, weights of now |
#
# **Read on:** ST-MoE's section 4; REAP; OLMoE's section 4.1 on upcycling. Next, chapter 17: what
# those experts are about.
