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
# # Why did it blow up?
#
# **The papers:** Fedus, Zoph and Shazeer 2021, *Switch Transformers*
# ([arXiv:2101.03961](https://arxiv.org/abs/2101.03961)), section 2.4; Zoph et al. 2022, *ST-MoE:
# Designing Stable and Transferable Sparse Expert Models*
# ([arXiv:2202.08906](https://arxiv.org/abs/2202.08906)), section 3.
#
# A large sparse model trains for days, and then its loss leaps up and does not come back. Both
# papers suspect the router. In this chapter you
#
# - count by hand the numbers that bfloat16 has, and those that it has not;
# - find the one direction in which a router's logits can drift and *no usual loss* holds them;
# - count how often rounding sends a token to another expert, in a trained model;
# - build the three remedies: a router in float32, smaller first weights, the z-loss with its
#   square;
# - try to make a small model blow up, and read what happened instead.
#
# **You need:** PyTorch, what a softmax is, and what a router does (chapter 05's Switch router is
# explained in a line). **Time:** an hour to read and try; the cells run in under a minute on two
# CPU cores. No GPU, no network.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from IPython.display import Image

from moe_lite import Scores, SwitchRouter, TopKRouter, load_pretrained, losses
from moe_lite.course import data, ledger, sweep, viz
from moe_lite.course.widgets import LogitHistogram

torch.manual_seed(0)
torch.set_num_threads(1)
torch.set_printoptions(precision=4, sci_mode=False)

# %% [markdown]
# ## 1. What bfloat16 cannot say
#
# A bfloat16 is the upper half of a float32: one bit for the sign, eight for the exponent, and only
# **seven** behind the leading one, where float32 has 23. The eight let it reach as far as float32,
# $3 \cdot 10^{38}$. The seven mean that between a power of two and the next there are 128 numbers,
# wherever that is. So between $2^n$ and $2^{n+1}$ they lie $2^n/128$ apart:
#
# $$\text{between 1 and 2: } \tfrac{1}{128} \qquad \text{between 128 and 256: } 1 \qquad
# \text{between 1024 and 2048: } 8$$
#
# In bfloat16 there *is* no 128.5. It has to become 128 or 129, and a tie goes to the one whose last
# bit is 0, which is 128.

# %%
for x in (1.005, 3.14159, 40.3, 128.5, 129.5, 1500.0):
    rounded = torch.tensor(x).bfloat16()
    above = torch.nextafter(rounded, torch.tensor(torch.inf).bfloat16())
    print(
        f"{x:9.5g} becomes {rounded.item():9.5g}, the next number is {above - rounded:.4g} higher"
    )

# %%
# Your turn: which of 255.4, 256.4 and 257.4 survives best? Predict, then run.
print(torch.tensor([255.4, 256.4, 257.4]).bfloat16())

# %% [markdown]
# Adding and multiplying survive this well: an error of half a percent in one of a thousand
# activations drowns in the others. But a router ends in an **exponential**, and there a
# *difference* counts, not a ratio. ST-MoE has an example that you can check (footnote 7): ten
# logits are 128, one is 128.5.

# %%
logits = torch.full((11,), 128.0)
logits[10] = 128.5
print("float32   ", logits.softmax(-1)[10].item())
print("bfloat16  ", logits.bfloat16().float().softmax(-1)[10].item())

# %% [markdown]
# The best expert's probability fell by 36%, to one in eleven, and it is no longer the best: all are
# equal, and the one that stands first in the list gets the token.
#
# ## 2. The direction that nobody watches
#
# Why should a logit ever be 128? Look at what the training loss sees of the logits $x$. The gate is
# a softmax, and the balancing loss is made of softmax and counts. A softmax does not change if
# **the same number $c$ is added to all logits of a token**:
#
# $$\frac{e^{x_i + c}}{\sum_j e^{x_j + c}} = \frac{e^c\, e^{x_i}}{e^c \sum_j e^{x_j}}
# = \frac{e^{x_i}}{\sum_j e^{x_j}}$$
#
# So the loss is flat in that direction. Let us ask its gradient: whatever it says to the experts
# one by one, added up over the experts it must be zero.

# %%
router, x_TD = TopKRouter(16, num_experts=8, top_k=1, renormalize=False), torch.randn(50, 16)
routing = router(x_TD)
for name, loss in {
    "a loss of the gates": (routing.gate_N * torch.randn(50)).sum(),
    "the balancing loss": losses.load_balancing_loss(routing),
}.items():
    (slope_TE,) = torch.autograd.grad(loss, routing.logits_TE, retain_graph=True)
    print(f"{name:20} largest slope {slope_TE.abs().max():.4f}, "
          f"largest sum over the experts {slope_TE.sum(-1).abs().max():.1e}")  # fmt: skip

# %% [markdown]
# Neither pushes the common level of a token's logits, and neither holds it. In every batch the
# gradients of the router's rows add up to zero, so plain SGD leaves their mean where it is. Adam
# scales each weight's step by itself, so its steps do not add up to zero; weight decay pulls; the
# inputs change. So the level drifts. And in exact arithmetic it may: only a rounded number has to
# care how far it is from zero.
#
# So there are two ways for logits to *grow*:
#
# - **spread**: all are multiplied by a factor. The softmax becomes sharper;
# - **level**: to all the same is added. The softmax stays as it is.
#
# ## 3. Which of the two hurts?
#
# Here are the logits of a real router: the fourth layer of `mixtral-mini`, the small model that
# comes with the course, on 96 tokens of a play. We look at each token's first choice.

# %%
model = load_pretrained("mixtral-mini").eval()
corpus, tokenizer = data.load_corpus(max_bytes=1_000_000), data.load_tokenizer()
batch = corpus.batch("validation", batch_size=16, seq_len=96)
with torch.no_grad():
    routings = model(batch.ids_BS).routings
pieces = data.pieces(tokenizer, batch.ids_BS[2].tolist())
histogram = LogitHistogram(routings[3].logits_TE.view(16, 96, -1)[2], tokens=pieces)
histogram

# %% [markdown]
# **Before you touch it, decide**, and make the guess in its box: you double all logits, again and
# again, until the largest are beyond a thousand. Will bfloat16 change *more* tokens' experts? And
# then: back to ×1, and instead you *add* 128 to all? (It opens at +16, where this token's choice
# has just turned: begin with *Add to all* at 0.)
#
# Now try both. Watch the comb: where bfloat16's numbers lie further apart than the bars of the
# histogram, only its teeth are left. With a kernel, move *Token* and see on the right how two
# rings that are apart become two squares above each other. (Without a kernel, on GitHub for
# instance, you see a picture.)

# %%
for doublings, shift in ((0, 0), (4, 0), (8, 0), (0, 16), (0, 64), (0, 128), (0, 256)):
    histogram.doublings, histogram.shift = doublings, shift
    print(f"×{2**doublings:<3} +{shift:<3}  tokens with another expert: {len(histogram.changed):2}"
          f"   a first choice's share is off by up to {histogram.gate_error:.3f}")  # fmt: skip

# %%
histogram.doublings, histogram.shift = 0, 128
histogram.token = histogram.changed[0]
Image(histogram.png(), alt=histogram.title)

# %% [markdown]
# Doubling changes **no choice at all**: rounding is relative, and a power of two passes through
# it untouched, so what does not tie at ×1 does not tie at ×256 either. What grows is the error of
# the *weight*: a softmax answers to differences, and those are now 256 times as large, with their
# errors.
#
# The level is another matter, and the picture shows it. At +128 the numbers are a half or one
# apart, much of what made one expert better than another is rounded off, and one token in nine
# changes its expert; at +256 it is one in four. The growth that the loss does not see is the one
# that turns choices round.
#
# Can rounding *reverse* an order? Rounding a list of logits cannot: of two numbers the larger
# stays at least as large. It can only make a tie, and then the order of the experts in memory
# decides. But if the *product* that gives the logits is computed from rounded inputs and weights,
# errors come in before the comparison, and the order can turn.
#
# ## 4. How often, in a trained model?
#
# Count it. In all six layers of the same model, on held-out text: how many tokens get another
# *set* of four experts if (a) only the finished logits are rounded, (b) the router's input and
# weights are, so that the whole router runs in bfloat16?


# %%
def chosen(logits_TE, k=model.config.num_experts_per_tok):
    """Give each token's k best experts as a mask; of equal logits the first ones."""
    expert_TK = logits_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return F.one_hot(expert_TK, logits_TE.shape[1]).sum(1)


def flips(exact_TE, other_TE):
    return (chosen(exact_TE) != chosen(other_TE)).any(-1).float().mean().item()


# %% [markdown]
# A hook on each gate catches what the router is given.

# %%
inputs = []
for layer in model.moe_layers:
    layer.gate.register_forward_pre_hook(lambda gate, args: inputs.append(args[0]))
with torch.no_grad():
    model(batch.ids_BS)
print("layer   spread   level   (a) logits rounded   (b) all in bfloat16   (c) as (a), at +128")
for n, (layer, x_TD) in enumerate(zip(model.moe_layers, inputs, strict=True)):
    w_ED = layer.gate.weight.detach()
    exact_TE, rough_TE = x_TD @ w_ED.T, (x_TD.bfloat16() @ w_ED.bfloat16().T).float()
    a, b = flips(exact_TE, exact_TE.bfloat16()), flips(exact_TE, rough_TE)
    c = flips(exact_TE, (exact_TE + 128).bfloat16())
    spread, level = exact_TE.std(-1).mean(), exact_TE.mean()
    print(f"{n:5} {spread:8.2f} {level:7.2f} {a:16.2%} {b:21.2%} {c:21.1%}")

# %% [markdown]
# In this model, where the logits are a few units large, it is six to nineteen tokens in a thousand,
# and no tragedy. (This one was trained with the z-loss that we are coming to.) The last column is
# the same router after a drift that its own loss would not have noticed: a third to two thirds of
# all tokens go elsewhere. That is more than in section 3, where only the first choice counted: here
# the fourth must stay ahead of the fifth, and of sixteen logits those two often lie close.
#
# That is the mechanism. Now the three remedies.
#
# ## 5. First remedy: count in float32, but only here
#
# Switch's answer is **selective precision**. Everything runs in bfloat16, for it is fast, and a
# router is so small that it may run in float32 at no cost worth mentioning. Its input is cast up,
# and only its result goes back down (section 2.4). In PyTorch there is one trap: within
# `torch.autocast` a product of two float32 matrices is computed in bfloat16 all the same. The
# router has to switch that off around itself:


# %%
def selective_logits(x_TD, w_ED):
    with torch.autocast(x_TD.device.type, enabled=False):
        return x_TD.float() @ w_ED.float().T


gate = TopKRouter(64, num_experts=8)
x_TD = torch.randn(100, 64)
with torch.autocast("cpu", torch.bfloat16):
    mine_TE, library_TE = selective_logits(x_TD, gate.weight), gate(x_TD).logits_TE
    trapped_TE = (x_TD.float() @ gate.weight.float().T).float()
torch.testing.assert_close(mine_TE, library_TE)
print(f"largest error within autocast, without switching it off: "
      f"{(trapped_TE - mine_TE).abs().max():.4f}")  # fmt: skip

# %% [markdown]
# Every router of this library has done that since chapter 00, so you have had the first remedy all
# along. To *remove* it takes a subclass. Here is the bfloat16 router of the experiment below. It is
# a Switch router, which sends each token to one expert and weighs it by its probability:


# %%
class BFloat16Router(SwitchRouter):
    def score(self, x_TD, ids_T=None):
        with torch.autocast(x_TD.device.type, enabled=False):
            logits_TE = F.linear(x_TD.bfloat16(), self.weight.bfloat16())
            return Scores.softmax(logits_TE)  # which is rounded too


rough, fine, x_TD = BFloat16Router(64, 8), SwitchRouter(64, 8), torch.randn(2000, 64)
rough.load_state_dict(fine.state_dict())
with torch.no_grad():
    print("a token's probabilities add up to", rough(x_TD).probs_TE.float().sum(-1)[:4])
    moved = (rough(x_TD).expert_N != fine(x_TD).expert_N).sum()
print(f"{moved} of 2000 tokens go elsewhere")

# %% [markdown]
# ## 6. Second remedy: begin small
#
# Switch draws its first weights from a truncated normal with $\sigma = \sqrt{s/n}$, where $n$ is
# the number of inputs of a row, and values beyond $2\sigma$ are drawn again. The usual $s$ was 1.
# They take $s = 0.1$ (Table 3). What does it do to a router? Its input comes from a
# normalisation, so its $n$ numbers are about 1 in size, and a logit is a sum of $n$ terms of
# variance $s/n$:
#
# $$\mathrm{Var}(x_i) = n \cdot \frac{s}{n} = s$$
#
# So at $s = 1$ the first logits are about $\pm 1$, and at $s = 0.1$ about $\pm 0.32$. Mind the
# root: $s$ is on the *variance*. Ten times smaller $s$ makes weights 3.2 times smaller, not ten.


# %%
def first_weights(rows, n, s):
    sigma = (s / n) ** 0.5
    weight = torch.empty(rows, n)
    return torch.nn.init.trunc_normal_(weight, std=sigma, a=-2 * sigma, b=2 * sigma)


x_TD = F.rms_norm(torch.randn(2000, 256), (256,))
for s in (1.0, 0.1):
    logits_TE = x_TD @ first_weights(8, 256, s).T
    best = logits_TE.softmax(-1).amax(-1).mean()
    print(f"s = {s:3}: logits ±{logits_TE.std():.2f}, a token's best expert has {best:.2f}")

# %%
# Your turn: which s makes the first logits half as large as at s = 1? Change the 0.5.
print((x_TD @ first_weights(8, 256, 0.5).T).std())

# %% [markdown]
# (A little less than $\sqrt{s}$, because cutting the tails at $2\sigma$ leaves 0.88 of the
# deviation.) With $s = 0.1$ the router begins almost undecided: the best of eight has 0.18,
# where an equal share is 0.125. It applies to *all* weights, so that every layer adds only
# a little to the residual stream at first.
#
# ## 7. Third remedy: the z-loss
#
# Float32 has rounding errors too, only later; at the largest scales, ST-MoE reports, a float32
# router was no longer enough. So it takes hold of the direction that nothing held. Take $\log Z =
# \log \sum_j e^{x_j}$. Add $c$ to all logits of a token, and it rises by exactly $c$: it knows
# the level. And it is at least the largest logit, and at most $\ln N$ more: it knows what runs
# away upwards too. Their **router z-loss** (equation 5) asks for it to be near zero:
#
# $$L_z = \frac{1}{B} \sum_{i=1}^{B} \Big( \log \sum_{j=1}^{N} e^{x_j^{(i)}} \Big)^{2}$$
#
# with $B$ tokens and $N$ experts, and a weight $c_z = 0.001$ in the total loss (equation 6). By
# hand: four logits of zero have $\log Z = \ln 4 = 1.386$, and its square is 1.922.


# %%
def z_loss(logits_TE):
    return logits_TE.logsumexp(dim=-1).square().mean()


print(f"{z_loss(torch.zeros(3, 4)):.4f}")
routing = SwitchRouter(64, num_experts=8)(torch.randn(50, 64))
torch.testing.assert_close(z_loss(routing.logits_TE), losses.router_z_loss(routing))
logits_TE = routing.logits_TE

# %% [markdown]
# ### Its gradient by hand
#
# The square brings a factor $2 \log Z$ down, and the derivative of $\log \sum_j e^{x_j}$ with
# respect to $x_i$ is $e^{x_i} / \sum_j e^{x_j}$, which is the softmax $p_i$:
#
# $$\frac{\partial L_z}{\partial x_i} = \frac{2}{B}\, \log Z\; p_i$$


# %%
def z_gradient(logits_TE):
    log_z_T1 = logits_TE.logsumexp(dim=-1, keepdim=True)
    return 2 * log_z_T1 * logits_TE.softmax(dim=-1) / len(logits_TE)


(slope_TE,) = torch.autograd.grad(z_loss(logits_TE), logits_TE)
torch.testing.assert_close(slope_TE, z_gradient(logits_TE))
print("added up over the experts:", slope_TE.sum(-1)[:3].detach())
print("2 log Z / B              :", (2 * logits_TE.logsumexp(-1) / 50)[:3].detach())

# %% [markdown]
# Read it. The $p_i$ of a token add up to 1, so over its experts this gradient adds up to
# $\frac{2}{B} \log Z$: **not zero**, in the very direction in which all other losses are flat. It
# pushes down when the level is above zero, *up* when it is below, and not at all when it is right.
# And most of the push goes to the largest logit, since its $p_i$ is the largest: above zero it also
# shortens the lead of a router that is too sure (below, it lengthens it).
#
# The square is what makes it turn round. Several tutorials write the z-loss without it. Then the
# factor $2 \log Z$ is gone, the gradient is $p_i / B$, and it points the same way for ever:

# %%
c = torch.linspace(-8, 8, 200)
log_z = (torch.randn(8) - 2.5 + c[:, None]).logsumexp(-1)
viz.curves(
    {"log Z squared": (c, log_z**2), "log Z, the square forgotten": (c, log_z)},
    "c, added to all logits of a token", "loss of that token",
)  # fmt: skip

# %%
# Your turn: at which common level is the z-loss of 8 equal logits zero? Try yours.
print(z_loss(torch.full((1, 8), -1.0)))

# %% [markdown]
# One has a bottom and the other has not. In section 9 you can watch what that does.
#
# ## 8. Try to make it blow up
#
# The course's small language model, Switch routers, products in bfloat16, no gradient clipping, at
# a learning rate eighty times the one that suits it. One seed, 50 steps, without the z-loss and
# with it. A *probe* writes down at each step how large the two ways to grow have become: the spread
# of a token's logits over its experts, and their common level (their mean; its RMS over tokens).


# %%
def probe(routings):
    logits_LTE = torch.stack([routing.logits_TE for routing in routings])
    level = logits_LTE.mean(-1).square().mean().sqrt()
    return {"spread": logits_LTE.std(-1).mean().item(), "level": level.item()}


common, runs = {"steps": 50, "lr": 0.4, "min_lr_ratio": 1.0, "grad_clip": 1e9}, {}
for name, z_coef in (("without the z-loss", 0.0), ("with it", 0.001)):
    changes = common | {"z_coef": z_coef, "autocast": "on"}
    setting = sweep.Setting("switch", training=changes)
    runs[name] = sweep.run(setting, corpus, seed=0, probe=probe).history

# %%
fig, panels = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True, layout="constrained")
for panel, (name, history) in zip(panels, runs.items(), strict=True):
    curves = {what: (history.column("step"), history.column(what)) for what in ("spread", "level")}
    viz.curves(curves, "step", "size of the logits", title=name, ax=panel)
for name, history in runs.items():
    print(f"{name:20} loss of the last ten steps {sum(history.column('loss')[-10:]) / 10:.2f}")

# %% [markdown]
# On the left the logits run away. It is mostly the *spread* that grows, and the level goes along:
# the direction without a guard is not the one that leads here. With logits so far apart a
# softmax is a switch: the gate of the best is 1, and the gradient through it is 0. On the right
# the spread is about half as large, for the push of the z-loss, $2 \log Z\, p_i / B$, goes almost
# entirely to the one expert that is far ahead. The level is *larger*, and that is no failure: what
# the z-loss holds is $\log Z$, which sits near the *largest* logit, and the others hang below it.
#
# And the loss? 6.73 without, 6.39 with it, where knowing only how *often* each token occurs gives
# 6.59: both poor. Nothing has exploded. One seed and 50 steps are an illustration.
#
# Now the ledger's runs: three seeds of each setting, 100 steps, on a ladder of rates. Before they
# were started, it was written down when a run is **stable**. All numbers stay finite. The last ten
# losses are on average at most 0.5 above the lowest ten that it ever had. And on held-out text it
# ends below those frequencies alone.
# `python -m moe_lite reproduce stmoe2022 --seeds 3` made them.

# %%
stored = ledger.stored("stmoe2022")
print(f"stored result, {len(stored.seeds)} seeds; frequencies alone give "
      f"{stored['loss of frequencies'].mean:.2f}")  # fmt: skip
print(f"{'setting, rate':16}{'stable':8}{'held-out loss':18}{'RMS of log Z':16}dropped")
for setting in stored.config["settings"]:
    stable = int(sum(stored.measures[f"stable at {setting}"]))
    what = "loss", "log-sum-exp, RMS", "dropped"
    loss, log_z, dropped = (stored[f"{name} at {setting}"] for name in what)
    print(f"{setting:16}{stable} of {len(stored.seeds):<3}{loss!s:18}{log_z!s:16}{dropped}")
for rate in ("0.1", "0.4", "1"):
    at = ledger.Pair(*(f"log-sum-exp, RMS at {arm}, {rate}" for arm in ("baseline", "z-loss")))
    print(f"RMS of log Z at {rate:4} without the z-loss, less with it: {stored[at]}")

# %%
ledger.verdicts("stmoe2022")

# %% [markdown]
# **Where it begins.** At twenty times the rate that suits this model all baseline runs are stable;
# at two hundred times none, and the dense twin, which has no router, fails as well. Nothing blew
# up: in 33 runs there was not one infinite number. Here an instability looks like *unlearning*.
# Perhaps the *balance* fails first: nearly half of all tokens are dropped at 0.1, but the interval
# is wide.
#
# **The z-loss does what it promises.** At 0.4 it brings $\log Z$ from 66 down to 9, at 1.0 from 171
# to 20; at 0.1 it is undecided. **What it costs, and whether it saves runs, is open**: the
# interval of 0.44 nats has room for a large price and a large gain. **Update clipping** does not
# cost half of the paper's 2.45 nats; but the paper clips a model whose rate is right, and we one
# whose rate is not.
#
# ### Precision and first weights
#
# Switch's Tables 2 and 3, at the rate that suits the model (`python -m moe_lite reproduce
# switch2021_stability --seeds 3`):

# %%
stored = ledger.stored("switch2021_stability")
print(f"stored result, {len(stored.seeds)} seeds")
print(f"{'setting':20}{'loss - float32':18}{'largest logit':16}tokens that rounding moves")
for setting in stored.config:
    less = stored[ledger.Pair(f"loss at {setting}", "loss at float32")]
    largest = stored[f"largest logit at {setting}"]
    moved = stored[f"flips, all in bfloat16 at {setting}"].mean
    print(f"{setting:20}{less!s:18}{largest!s:16}{moved:6.1%}")

# %%
ledger.verdicts("switch2021_stability")

# %% [markdown]
# **Excluded: disasters.** The paper's bfloat16 router diverged, 2 nats above, and larger first
# weights cost 0.9; here half of either lies outside the interval. The logits are two to five, and
# rounding moves three to seven tokens in a thousand. The `offset` rows add a constant before
# rounding: only at 1024, where nearly all logits tie, may there be a price, 0.16 ± 0.13 (against
# the same router without the constant 0.16 ± 0.21, undecided).
#
# **Undecided: hundredths.** The selective router is 0.036 nats above float32, the bfloat16 router
# 0.036 below *the selective one*, each give or take 0.048. We had read these equal numbers in
# opposite ways. They say the same: three seeds see nothing below a twentieth of a nat, and for
# first weights, with AdamW or Adafactor, nothing below a fifth.
#
# **What you may believe now:** the mechanism, all of it; and that at this size its *harm* is not
# the papers', who say that it came "at the largest scales". **Open:** what any remedy costs.
#
# ## 9. What goes wrong: three bugs that run
#
# All three are from code that people use, and none raises an error. Each cell shows a symptom. Find
# the cause, and only then open the answer.
#
# **A z-loss that is never wrong.** The log shows a z-loss of about 5 from the first step to the
# last. Is that good?


# %%
def router_forward(x_TD, w_ED):
    router_logits = x_TD @ w_ED.T
    router_logits = router_logits.softmax(dim=-1)
    gates_TK, expert_TK = router_logits.topk(2)
    return router_logits, gates_TK, expert_TK


x_TD, w_ED = torch.randn(500, 16), torch.randn(8, 16)
for size in (0.01, 1, 100):
    print(f"weights × {size:<5}: z-loss {z_loss(router_forward(x_TD, size * w_ED)[0]):.2f}")

# %% [markdown]
# <details>
# <summary>What is it?</summary>
#
# A name was used twice: what is returned as "logits" are probabilities. The exponentials of eight
# probabilities add up to something between 9.06 (all equal) and 9.72 (one has everything),
# whatever the logits were, so this loss is nearly constant and holds nothing.
# Some of transformers' routers did that ([issue
# 45120](https://github.com/huggingface/transformers/issues/45120)); their *balancing* loss then
# took a softmax of a softmax. A loss that hardly moves when the weights grow ten thousandfold is
# worth a look.
#
# </details>
#
# **A z-loss that keeps getting better.** A router alone, trained by Adam on its z-loss and nothing
# else.

# %%
w_ED = (0.1 * torch.randn(8, 16)).requires_grad_()
x_TD, optimizer = torch.randn(500, 16) + 0.5, torch.optim.Adam([w_ED], lr=0.05)
for step in range(401):
    logits_TE = x_TD @ w_ED.T
    loss = logits_TE.logsumexp(dim=-1).mean()
    if step % 100 == 0:
        spacing = logits_TE.abs().max().bfloat16().frexp().exponent.item() - 8
        print(f"step {step}: z-loss {loss:8.2f}, bfloat16's step at the largest {2.0**spacing}")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %% [markdown]
# <details>
# <summary>What is it?</summary>
#
# The square is missing. No floor, as in section 7. The mean of the log-sum-exps falls without end,
# the logits go to minus infinity, and there bfloat16 is as coarse as at plus infinity.
#
# </details>
#
# **The same token, and another expert.** A token's experts should depend on the token. Here they
# depend on how many others are in the batch. (The router's softmax is in float32.)


# %%
def product(x_TD, w_ED):
    if len(x_TD) <= 8:  # a few rows: an exact small kernel
        return x_TD @ w_ED.T
    return (x_TD.bfloat16() @ w_ED.bfloat16().T).float()  # many rows: the fast one


x_TD, w_ED = torch.randn(2000, 64), torch.randn(8, 64) / 8
alone = torch.cat([product(x_1D, w_ED) for x_1D in x_TD.split(1)]).softmax(-1).argmax(-1)
together = product(x_TD, w_ED).softmax(-1).argmax(-1)
print(f"{(alone != together).sum()} of 2000 tokens have another expert when they come together")

# %% [markdown]
# <details>
# <summary>What is it?</summary>
#
# Too late: the *product* was rounded to bfloat16, and a float32 softmax of rounded logits is no
# better than they are. A serving engine did this on one generation of GPUs, exact for up to eight
# rows and rounded for more ([described
# here](https://github.com/wtdcode/vllm-backport/issues/65)), so a text could come out differently
# alone and in company. A router is a decision, and a decision turns a rounding error into another
# network.
#
# </details>
#
# ## Exercises
#
# [`exercises/07_exercises.ipynb`](../exercises/07_exercises.ipynb): the spacing, the z-loss and its
# gradient, a router that is really in float32, first weights. Each check tells you *what* you
# misunderstood. Solutions are in [`solutions/`](../solutions/07_solutions.ipynb).
# [Glossary](../docs/glossary.md).
#
# ## In five lines
#
# 1. bfloat16 has 128 numbers between two powers of two, so what is large is coarse.
# 2. Softmax and balancing loss do not see a common level of the logits; rounding does.
# 3. Selective precision casts what goes *into* the router's product, outside autocast.
# 4. The z-loss squares $\log Z$: the square gives it a floor, and its gradient $2 \log Z\, p_i / B$
#    is the only push of a loss along the unwatched direction.
# 5. At our size nothing exploded: a rate that is too high unlearns.
#
# | in the papers | in the code | |
# |---|---|---|
# | $x_j^{(i)}$ | `routing.logits_TE` | float32, whatever the model runs in |
# | $\log \sum_j e^{x_j}$ | `routing.logits_TE.logsumexp(-1)` | the level of a token |
# | $L_z$ (eq. 5) | `losses.router_z_loss(routing)` | without the weight |
# | $c_z = 0.001$ (eq. 6) | `TrainConfig.z_coef` | in the training loop from the start |
# | selective precision | `routers.linear_scores` | `autocast` to bfloat16 around it |
# | $\sigma = \sqrt{s/n}$ | `first_weights(rows, n, s)` | a router: $s = 1$; `Mixtral`: 0.02 |
#
# **Read on:** ST-MoE's section 3 is a catalogue of what else was tried (noise, dropping
# multiplicative interactions, clipping) and what it cost in quality; its section 3.4 and footnote 7
# are the source of section 1 here. Chapter 08 asks what happens if the experts choose.
