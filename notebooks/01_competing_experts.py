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
# # Why would experts divide the work?
#
# **In three lines.** A gate learns whom to believe by seeing, once the answer is known, who was
# right. One number, the variance, turns the experts' competition from mild to merciless. But on the
# vowels of 1991 what divides the work is something else: one expert alone cannot do all of it.
#
# **The paper:** Jacobs, Jordan, Nowlan, Hinton 1991, *Adaptive Mixtures of Local Experts*, Neural
# Computation 3:79-87. Nine pages, and the start of everything in this course.
#
# In this chapter you write three errors, find the two gradients of a mixture of experts, write its
# training loop of 1991, race it against backpropagation, and find out by 25 runs of each what makes
# experts share.
#
# **You need:** PyTorch, gradients, what a softmax is. **Time:** an hour and a half; the cells run
# in about a minute and a half on two CPU cores. No GPU, no network.

# %%
import matplotlib.pyplot as plt
import torch
from ipywidgets import FloatSlider, Play

from moe_lite import Experts, MoELayer, TopKRouter
from moe_lite.course import charts, drawings, ledger, mixtures, viz
from moe_lite.course.vowels import IPA, load_vowels
from moe_lite.course.widgets import CompetitionExplorer

torch.manual_seed(0)
torch.set_printoptions(precision=3, sci_mode=False)

# %%
drawings.competition()

# %% [markdown]
# A vowel goes to every expert and to the gate. The gate says in advance whom it believes (the dials
# of $p$). When the right answer is known, belief is shared out anew ($h$), and each learns from
# that. The rest of this chapter is this picture, in numbers.
#
# ## 1. One problem that is really two
#
# In 1952 Gordon Peterson and Harold Barney had 76 people, men, women and children, read out short
# words. Two of the frequencies at which the vocal tract resonates, the first and second *formant*,
# place a vowel on a plane. Here are four of the ten vowels, each said twice by everyone.

# %%
vowels = load_vowels(("iy", "ih", "aa", "ah"))
x_T2, names = vowels.x_T2, [IPA[name] for name in vowels.names]
fig, ax = plt.subplots(figsize=(6, 4.2), layout="constrained")
for marker, name in zip("o^sD", dict.fromkeys(names), strict=True):
    mine = torch.tensor([other == name for other in names])
    ax.scatter(*x_T2[mine].T, s=14, marker=marker, label=f"[{name}]")
ax.set(xlabel="F1, kHz", ylabel="F2, kHz", title="608 vowels")
_ = ax.legend()

# %% [markdown]
# Two pairs, far apart: [i] and [ɪ] (as in *beat*, *bit*) upper left, [ʌ] and [ɑ] (*but*, *pot*)
# lower right. Within a pair the vowels lie close and overlap. The task we set a network is: say
# **1** for one vowel of each pair and **0** for the other.
#
# No single straight line does that. But it is two problems of which each *is* a line. A network
# that learns both with the same weights has to keep one from spoiling the other: while it
# moves a line towards the upper pair, the error of the lower pair pulls at the same weights. The
# idea of 1991 is to give each problem a network of its own, an **expert**. But nobody says which
# case belongs to which problem. So a further network, the **gate**, has to find that out while the
# experts learn.
#
# ## 2. Three errors, one line apart
#
# On a case, expert $i$ answers $o_i$, the gate gives it the proportion
# $p_i = \mathrm{softmax}(x)_i$, and the right answer is $d$. How wrong was the whole? Three ways
# to say so (the paper's equations 1.1 to 1.3):
#
# $$E_1 = \Big\|d - \sum_i p_i o_i\Big\|^2 \qquad
# E_2 = \sum_i p_i \|d - o_i\|^2$$
#
# $$E_3 = -\log \sum_i p_i\, e^{-\frac12\|d-o_i\|^2}$$
#
# $E_1$ blends the answers, then asks how wrong the blend is. $E_2$ asks each expert how wrong *it*
# is, then blends. $E_3$ takes the gate at its word: with probability $p_i$ expert $i$ is *the one
# in charge*, and its answer is right up to normal noise; then this is the negative
# log-likelihood (up to a constant).
#
# Small numbers first. The right answer is 1. Expert 0 says 0.9, expert 1 says 0, and the gate
# has no opinion.

# %%
target = torch.tensor([[1.0]])  # one case, one output
out = torch.tensor([[[0.9], [0.0]]])  # two experts
logits = torch.zeros(1, 2)
p = logits.softmax(-1)
off = (target[:, None] - out).square().sum(-1)  # each expert's squared error

print("E1, error of the blend ", (target - (p[..., None] * out).sum(1)).square().sum(-1))
print("E2, blend of the errors", (p * off).sum(-1))
print("E3, the mixture        ", -(p * (-off / 2).exp()).sum(-1).log())

# %% [markdown]
# By hand: the blend is 0.45, so $E_1 = 0.55^2 = 0.3025$. The experts' own errors are 0.01 and 1,
# so $E_2 = 0.505$. And $E_3 = -\log(0.5\cdot 0.995 + 0.5 \cdot 0.607) = 0.222$.
#
# The library has the same three. It takes the third in logarithms; exercise 2 shows what happens
# to those who do not.

# %%
errors = {
    "E1": mixtures.blend_error,
    "E2": mixtures.expected_error,
    "E3": mixtures.mixture_error,
}
for name, error in errors.items():
    print(name, error(logits, out, target))
by_hand = -(p * (-off / 2).exp()).sum(-1).log()
torch.testing.assert_close(mixtures.mixture_error(logits, out, target), by_hand)

# %% [markdown]
# ### What each expert is told
#
# The errors look alike. What an expert *learns* from them is not. Differentiate by one expert's
# answer:
#
# $$\frac{\partial E_1}{\partial o_i} = -2 p_i \Big(d - \sum_j p_j o_j\Big) \qquad
# \frac{\partial E_2}{\partial o_i} = -2 p_i (d - o_i)$$
#
# $$\frac{\partial E_3}{\partial o_i} = -h_i (d - o_i) \quad\text{with}\quad
# h_i = \frac{p_i\, e^{-\frac12\|d-o_i\|^2}}{\sum_j p_j\, e^{-\frac12\|d-o_j\|^2}}$$
#
# Under $E_1$ every expert is told the error *of the blend*. Expert 0 was nearly right, and yet it
# is pushed past the right answer, to make up for expert 1. That is cooperation: each expert's task
# is to fix what the others leave over, and when one changes, the task of all others changes.
# Under $E_2$ and $E_3$ an expert is told *its own* error, weighted. Then nobody needs to fix
# anything; an expert that is bad at a case had better leave it to somebody else.

# %%
out.requires_grad_()
for name, error in errors.items():
    (gradient,) = torch.autograd.grad(error(logits, out, target).sum(), out)
    print(f"{name}: each expert is moved by", -gradient.flatten())

# %% [markdown]
# The first row: $2\cdot\frac12\cdot 0.55 = 0.55$ for both, whatever they said. The second: $0.1$
# and $1$. The third: $h = (0.621, 0.379)$, so $0.062$ and $0.379$.
#
# **Your turn: predict.** Expert 0 says 0.9 and is pushed up by 0.55 under $E_1$. With a small step,
# under which errors does it go on *past* 1, if expert 1 stays at 0? Write your answer first.

# %%
my_answer = ""  # for instance "E2 E3"
moved = torch.tensor([[[0.9], [0.0]]], requires_grad=True)
for name, error in errors.items():
    at = moved.detach().clone().requires_grad_()
    for _ in range(200):
        (gradient,) = torch.autograd.grad(error(logits, at, target).sum(), at)
        at = (at - 0.1 * gradient * torch.tensor([[[1.0], [0.0]]])).detach().requires_grad_()
    print(
        f"{name}: expert 0 ends at {at[0, 0, 0].item():.2f}",
        f"(you: {my_answer})" * bool(my_answer),
    )

# %% [markdown]
# ## 3. One knob: how merciless is the competition?
#
# Look at the third row again: expert 1 is worse and *still moves more*. In fact sigmoids with
# targets 0 and 1 are never off by more than 1. So $e^{-\frac12\|d-o_i\|^2}$ lies between 0.61 and
# 1, $h_i$ between 0.61 and 1.65 times $p_i$, and $E_3$ does nearly what half of $E_2$ does. The
# paper's density has variance 1, wide for such answers. Give it a width $\sigma$:
#
# $$F_\sigma = -\sigma^2 \log \sum_i p_i\, e^{-\|d-o_i\|^2 / 2\sigma^2} \qquad
# \frac{\partial F_\sigma}{\partial o_i} = -h_i (d - o_i)$$
#
# One knob. A very large $\sigma$ makes $h = p$: half of $E_2$. $\sigma = 1$ is $E_3$. A very small
# one leaves only the best expert: $\frac12\min_i \|d-o_i\|^2$, **winner-take-all**.


# %%
def width(sigma):
    def error(logits_TE, out_TEO, target_TO):
        off_TE = mixtures.squared_errors(out_TEO, target_TO)
        inside = logits_TE.log_softmax(-1) - off_TE / (2 * sigma**2)
        return -(sigma**2) * inside.logsumexp(-1)

    return error


case = logits, out.detach(), target
half_e2, winner = mixtures.expected_error(*case) / 2, off.amin(-1) / 2
torch.testing.assert_close(width(1.0)(*case), mixtures.mixture_error(*case))
torch.testing.assert_close(width(100.0)(*case), half_e2, atol=1e-3, rtol=1e-3)
torch.testing.assert_close(width(0.05)(*case), winner, atol=5e-3, rtol=0.5)


# %%
def pull(sigma):
    """How strongly expert 0 is moved when expert 1 is off by 0.6."""
    off_by = torch.linspace(0, 1, 200)
    pair = torch.stack([off_by, torch.full_like(off_by, 0.6)], -1)
    h_T = (-(pair**2) / (2 * sigma**2)).softmax(-1)[:, 0]
    return off_by, h_T * off_by


def draw_pull(sigma):
    pulls = {f"width {s:.2f}": pull(s) for s in dict.fromkeys((1.0, 0.35, 0.1, sigma))}
    return viz.curves(pulls, "expert 0 is off by (expert 1: 0.6)", "how strongly it moves")


draw_pull(0.35)

# %%
viz.live(draw_pull, FloatSlider(0.35, min=0.05, max=1.0, step=0.05, description="width"))

# %% [markdown]
# At width 1 the line rises: *the worse, the more it moves*. At 0.1 it is a tooth: the one that is
# better moves, the one that is worse is left alone. On real vowels, at the start of training, in
# how many cases does the best of four experts move more than the worst?

# %%
train = vowels.train_T  # the first 50 speakers
x_train, d_T1 = x_T2[train], vowels.is_one_of(("iy", "aa"))  # 1 for [i] and [ɑ]
fresh = mixtures.Mixture(2, 4, seeds=range(25))
with torch.no_grad():
    off_QTE = mixtures.squared_errors(fresh(x_train)[1], d_T1[train])
best, worst = off_QTE.argmin(-1, keepdim=True), off_QTE.argmax(-1, keepdim=True)
for sigma in (1.0, 0.5, 0.35, 0.25, 0.15):
    push_QTE = (-off_QTE / (2 * sigma**2)).softmax(-1) * off_QTE.sqrt()
    more_Q = (push_QTE.gather(-1, best) > push_QTE.gather(-1, worst)).double().mean((1, 2))
    print(f"width {sigma:4.2f}: in {ledger.Estimate.of(more_Q.tolist())} of the cases")

# %% [markdown]
# So at the paper's width never, at a quarter nearly always. Whether sharper competition is also
# *better* is another question. Keep it: section 7 measures it.
#
# ## 4. The responsibilities
#
# $h_i$ deserves its name, **responsibility**. Before the answer is known, the gate believes
# $p_i$. Once the answer is known, Bayes' rule says how likely it is that expert $i$ was the one in
# charge. Prior times likelihood, divided by the sum; and since $p$ is a softmax, its logarithm
# adds to that of the likelihood. One line:


# %%
def responsibilities(logits_TE, out_TEO, target_TO):
    off_TE = (target_TO[:, None] - out_TEO).square().sum(-1)
    return (logits_TE - off_TE / 2).softmax(-1)


print("before", p, " after", responsibilities(logits, out, target).detach())
torch.testing.assert_close(
    responsibilities(logits, out, target), mixtures.responsibilities(logits, out, target)
)

# %% [markdown]
# And the gate? Differentiate $E_3$ by its logits, and what comes out is as short as can be:
#
# $$\frac{\partial E_3}{\partial x_i} = p_i - h_i$$
#
# The gate is moved from what it believed towards what turned out. If you have met the gradient of
# a softmax classifier, $p - y$, this is the same, with the responsibilities in place of the label:
# *the experts' competition writes the gate's labels*.

# %%
logits = torch.tensor([[0.3, -0.2, 1.0]], requires_grad=True)
out = torch.tensor([[[0.2], [0.9], [-1.0]]])
(gradient,) = torch.autograd.grad(mixtures.mixture_error(logits, out, target).sum(), logits)
p, h = logits.softmax(-1), mixtures.responsibilities(logits, out, target)
print("p - h   ", (p - h).detach())
print("autograd", gradient)
torch.testing.assert_close(gradient, p - h)

# %% [markdown]
# Most routers of this course keep the softmax $p$; what tells them who was right changes
# (section 9).
#
# **Your turn: fill.** Write $h$ for a width `sigma` of your own.


# %%
def my_responsibilities(logits_TE, out_TEO, target_TO, sigma):
    return None  # one line


mine = my_responsibilities(logits, out, target, 1.0)
if mine is None:
    print("not filled in yet")
else:
    torch.testing.assert_close(mine, h)
    print("right; at width 0.2:", my_responsibilities(logits, out, target, 0.2))

# %% [markdown]
# ## 5. The training loop of 1991
#
# All 400 cases at once, a fixed step, no momentum; stop when the average squared error falls below
# 0.08; count the epochs. Each expert is one sigmoid of the two formants, so a single line. Nothing
# is hidden in this loop:

# %%
model = mixtures.Mixture(2, 4, seeds=[3])
parts = list(model.parameters())  # the experts' lines and the gate's
for epoch in range(5000):
    logits_QTE, out_QTEO = model(x_train)  # every expert answers every case
    answer_QTO = mixtures.blend(logits_QTE, out_QTEO)
    if (d_T1[train] - answer_QTO).square().mean() < 0.08:
        print(epoch, "epochs")
        break
    error = mixtures.mixture_error(logits_QTE, out_QTEO, d_T1[train].expand_as(answer_QTO)).mean()
    gradients = torch.autograd.grad(error, parts)
    with torch.no_grad():
        for part, gradient in zip(parts, gradients, strict=True):
            part -= 20.0 * gradient

# %% [markdown]
# `mixtures.descend` is the same with many runs side by side: the first dimension of each weight, Q,
# is the seed. Twenty-five at once cost far less than one run twenty-five times.


# %%
def race(model, coding_T1=d_T1, **options):
    return mixtures.descend(model, x_train, coding_T1[train], **options)


moments = sorted({0} | {round(1.16**n) for n in range(55)})
descent = race(mixtures.Mixture(2, 4, seeds=[3]), step=20.0, keep=moments)
last = int(descent.epochs_Q[0])
assert last == epoch
fig, panels = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
for ax, part in zip(panels, (0.12, 0.4, 1), strict=True):
    moment = max(m for m in descent.kept if m <= last * part)
    weights = descent.kept[moment]
    lines, gate = weights["experts"][0, :, 0], weights["gate"][0]
    viz.plane(x_T2, names, lines, gate, target=d_T1, title=f"epoch {moment}", ax=ax)
    ax.get_legend().set_visible(ax is panels[-1])

# %% [markdown]
# A region's colour says whom the gate trusts there; a line is where that expert's answer turns from
# 0 to 1, its arrow points to the side of 1, and filled marks are the vowels that should get 1. At
# the start the gate is split by a hair. At the end two experts are in charge, one for
# each pair. Nobody told the system that there were two problems.
#
# **Your turn: change.** Another seed, another step (10? 40?), eight experts: what stays?

# %%
my_seed, my_step, my_experts = 3, 20.0, 4
mine = mixtures.Mixture(2, my_experts, seeds=[my_seed])
print("epochs:", race(mine, step=my_step, max_epochs=3000).epochs_Q.tolist())
viz.plane(x_T2, names, mine.experts.detach()[0, :, 0], mine.gate.detach()[0], target=d_T1)

# %% [markdown]
# ## 6. Table 1, a detective story
#
# The paper races mixtures of 4 and 8 experts against backpropagation networks with 6 and 12 hidden
# units. Two things it leaves open. The step: each system got its own, by "limited exploration"; a
# comparison at one step is a comparison of step sizes, so the ledger tuned each on five seeds that
# it did not use again. And the **target**. Table 1's caption says each expert gives a probability
# for each class; Figure 2 and section 3 draw each expert as *one line*. With one line, an expert
# can say 1 for only one vowel of each pair. Which one? [i] and [ɑ], or [i] and [ʌ]?
#
# We judge both by the same 25 seeds:

# %%
kept = ledger.stored("jacobs1991")
paper = {"4 experts": 1124, "8 experts": 1083, "backprop, 6 hidden": 2209}
paper["backprop, 12 hidden"] = 2435
fig, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
for shift, marker, coding in ((-0.15, "o", "i ɑ = 1"), (0.15, "s", "i ʌ = 1")):
    for row, system in enumerate(paper):
        epochs = kept.measures[f"{system}, {coding}: epochs"]
        y = row + shift + 0.1 * torch.linspace(-1, 1, 25)
        color = viz.HUES[shift > 0]
        ax.scatter(epochs, y, s=12, marker=marker, c=color, label=coding * (row == 0))
ax.scatter(paper.values(), range(4), marker="x", s=60, color="black", label="the paper's mean")
ax.set(yticks=range(4), yticklabels=paper, xlabel="epochs to an average squared error of 0.08")
ax.invert_yaxis()
ax.legend()
charts.alive(fig)


# %%
def in_table_1(claim):
    return (
        claim.where.startswith("Table 1") and "epochs" in claim.text and "4-way" not in claim.text
    )


ledger.verdicts("jacobs1991", in_table_1)

# %% [markdown]
# **Mixtures arrive in fewer epochs than backpropagation under either coding**; the factor is
# smaller than the paper's. Twelve hidden units are slower than six in the paper; ours show no such
# difference. And the epochs themselves point to the second coding: its mixtures come near the
# paper's 1124 (1,222 ± 58) and meet its 1083. One clue. But epochs count steps of a size we do not
# know, so this could be luck.
#
# A second clue. The paper's Figure 3 follows the lines of single experts. All first head for one
# point, X: the line that *one* expert learns from all four vowels. Only then do they part, for the
# line of the one pair or of the other. So train a single expert: its line is X. Then train eight
# together, and ask how near to X each line comes on its way. As in the figure, a line becomes a
# point: the foot of its normal from 0, in kHz.

# %%
codings = {"i ɑ = 1": d_T1, "i ʌ = 1": vowels.is_one_of(("iy", "ah"))}


def feet(lines):
    normal = lines[..., :2]
    return -lines[..., 2:] * normal / normal.square().sum(-1, keepdim=True)


# %%
paths, goals, epochs = {}, {}, range(0, 1400, 10)
for coding, answer in codings.items():
    alone = mixtures.Mixture(2, 1)
    race(alone, answer, step=5.0, until=0, max_epochs=3000)  # at 20 it never comes to rest
    goals[coding] = feet(alone.experts.detach()[0, 0, 0])
    many = mixtures.Mixture(2, 8, seeds=range(25))
    film = race(many, answer, step=20.0, keep=epochs, max_epochs=1400).kept
    paths[coding] = torch.stack([feet(moment["experts"][:, :, 0]) for moment in film.values()])
    near_QE = (paths[coding] - goals[coding]).norm(dim=-1).amin(0)
    middle_Q = near_QE.median(-1).values.tolist()
    print(f"{coding}: the median line comes as near to X as {ledger.Estimate.of(middle_Q)} kHz")


# %%
def figure_3(epoch=1390):
    fig, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for ax, coding in zip(panels, codings, strict=True):
        path_NE2 = paths[coding][: 1 + epoch // 10, 0]
        for e, color in enumerate(viz.expert_colors(8)):
            ax.plot(*path_NE2[:, e].T, color=color, lw=1, marker=".", ms=3)
            ax.annotate(str(e), path_NE2[-1, e])
        ax.annotate("X", goals[coding], weight="bold", size=14, ha="center", va="center")
        ax.set(xlim=(-0.7, 1.5), ylim=(-0.6, 1.2), xlabel="foot of the line, kHz", aspect="equal")
        ax.set_title(f"{coding}, epoch {epoch}", loc="left")
    plt.close(fig)
    return fig


figure_3()

# %%
viz.live(figure_3, Play(1390, min=0, max=1390, step=30, interval=400))

# %% [markdown]
# **Lines come much nearer to X under the second coding than under the first.** In the film
# (live only) lines 2, 3 and 7 run up to X and stay there. Of the two that end up with the work, 4
# passes through X and 5 beside it; then both leave for the lines of the two pairs, which pass close
# to 0. Line 6 never comes near X. Two clues, found in different ways, point to [i] and [ʌ] as the
# 1s. It is evidence, not proof: Table 1's caption still says something else, backpropagation's
# epochs are reproduced under neither, and nobody printed the answer. We go on with [i] and [ɑ],
# which is learnt faster.
#
# ## 7. Who does what, and why?
#
# Now the question of the title, by counting. An expert *works* if the gate trusts it most in at
# least 2 % of the cases. First the knob and the three errors, 25 seeds each ($E_1$ and $E_2$ slope
# twice as steeply, so their step is half as large), then three widths at two steps:


# %%
def working(model):
    with torch.no_grad():
        winner_QT = model(x_train)[0].argmax(-1)
    share_QE = torch.nn.functional.one_hot(winner_QT, model.gate.shape[1]).double().mean(1)
    return (share_QE >= 0.02).sum(1)


def count(name, error, answer_TO=d_T1, step=20.0, until=0.08):
    model = mixtures.Mixture(2, 4, answer_TO.shape[1], seeds=range(25), error=error)
    n = race(model, answer_TO, step=step, until=until, max_epochs=2000).epochs_Q.tolist()
    there = [x for x in n if x == x]
    took = f"in {ledger.Estimate.of(there)} epochs" if there else ""
    tally = torch.bincount(working(model), minlength=5)[1:].tolist()
    print(f"{name:16} {len(there):2} of 25 arrive {took:20} runs with 1, 2, 3, 4 working: {tally}")
    return model


# %%
for name, error in errors.items():
    model = count(name, error, step=20.0 if name == "E3" else 10.0)
    with torch.no_grad():  # e to the entropy of its gate: so many experts answer a case
        blended_Q = torch.special.entr(model(x_train)[0].softmax(-1)).sum(-1).exp().mean(1)
    print(f"   experts that answer a case: {ledger.Estimate.of(blended_Q.tolist())}")
for step in (20.0, 40.0):
    for sigma in (0.5, 0.35, 0.25):
        count(f"width {sigma} at {step:.0f}", width(sigma), step=step)

# %% [markdown]
# In epochs and in winners the three errors are as good as the same: **exactly two experts win cases
# in each of 25 runs, whether they blend or compete.** (25 of 25 means at least 86 in 100, by the
# usual 95 % interval.) Winners do not show a blend, which is what the paper holds against $E_1$. It
# is there, and small: 1.28 ± 0.04 experts answer a case under $E_1$, 1.06 under the two others. And
# turning up the competition? At step 20, $E_3$'s best in the ledger, width 0.35 looks slow: 1,131
# epochs instead of 674, and a third expert stays. But that compares step sizes again. At step 40 it
# takes 748 ± 71, and two work in 22 of 25 runs (on another processor, which rounds otherwise, 694 ±
# 40 and 24); 0.5 even takes 621 ± 30. Only 0.25 fails at both steps: 11 of 25 runs have not arrived
# after 2,000 epochs. So sharper is not better by itself, and much too sharp fails. A good argument
# is not yet a measurement.
#
# So what divides the work? Two is what the *problem* needs: an expert is one line, and one line
# does not do it. Test that. A target that one line does (both vowels of the upper pair against the
# lower), and experts that are more able: a softmax over all four vowels, which one alone can
# manage.

# %%
one_line_T1 = vowels.is_one_of(("iy", "ih"))
for name, error in errors.items():
    half = 1.0 if name == "E3" else 0.5
    count(f"one line, {name}", error, one_line_T1, 20 * half, until=0.01)
    count(f"able, {name}", error, vowels.one_hot(), 5 * half)
active = torch.tensor(kept.measures["4 experts, 4-way: active experts"]).long()
tally = active.bincount(minlength=5)[1:].tolist()
print(f"able, E3, step 10, from the ledger: runs with 1, 2, 3, 4 working: {tally}")

# %% [markdown]
# **If one expert can do everything, then under competition and with a small step one does**: 25 of
# 25 under $E_2$, and all but one at most under $E_3$. Here, at these steps, the winners differ at
# last. Under $E_1$, experts that help each other out, more than one goes on working in about half
# the runs or more. Competition does not *make* experts share. Where one is enough, and the step
# small, it lets go of the others; whether one is enough, the capacity of an expert decides.
#
# In 1991 experts were small. In the language models of later chapters they are large, each could
# take any token, and the tendency you just saw, *the rich get richer*, is held back by force: with
# noise (chapter 04), with capacity (05), with a balancing loss (06) or a bias (09). (With the step
# that arrives soonest, 10, cases are thrown from one able expert to another, and in 23 of 25 runs
# more than one stays: the last line. The ledger has both, "4-way" and "4-way, smooth step".)
#
# ## 8. Take hold of it
#
# Scrub through the run of section 5. Take an expert's line by its number and drag it (or reach it
# with Tab and use the arrow keys; with Shift they turn it). A vowel takes the colour of the expert
# with the largest $h$; the bars set the belief $p$ beside $h$. Make the guess in its box first.

# %%
explorer = CompetitionExplorer(x_T2, names, d_T1, descent.kept)
explorer.moment = explorer.epochs.index(min(m for m in descent.kept if m >= 40))
explorer

# %% [markdown]
# **Try this.** Around epoch 40 the gate has not made up its mind. Put the line of expert 2, which
# will go under, between [ʌ] and [ɑ], its 1 on the side of [ɑ], and make it steeper: it takes over
# hundreds of vowels. Now do it at the last epoch. Nothing happens: its $p$ is so near zero that no
# answer, however good, earns it a case. An expert that has once lost does not come back; today one
# calls it *dead*.
#
# ## 9. It is the same layer
#
# A mixture of 1991 asks every expert. In today's words: top-k with $K = E$. The layer that you meet
# from chapter 04 on, with that setting, *is* the dense mixture, $y = \sum_i p_i E_i(x)$:

# %%
D, E = 6, 4
layer = MoELayer(TopKRouter(D, E, top_k=E), Experts(E, D, 8))
x_TD = torch.randn(5, D)
out_TD, routing = layer(x_TD)
experts_TED = torch.stack([expert(x_TD) for expert in layer.experts.each()], dim=1)
by_blend = mixtures.blend(routing.logits_TE, experts_TED)
torch.testing.assert_close(out_TD, by_blend)
print("K = E:", routing.expert_N.numel(), "pairs for 5 tokens; equal to the blend")

# %% [markdown]
# Mind which error it is trained with. A language model's loss looks at the layer's *output*, the
# blend. That is $E_1$: in a modern mixture the active experts **cooperate**. Competition survives
# in the gate, for a place among the top k. Much of what puzzles people about modern experts
# begins with expecting $E_3$ from a system trained on $E_1$.
#
# ## 10. A mixture adds, a product multiplies
#
# In a **product of experts** (Hinton 2002) each can veto: probabilities are multiplied, then
# normalised. Let two experts each know one thing, "the point lies near *this* line":

# %%
axis = torch.linspace(-3, 3, 61)
x, y = torch.cartesian_prod(axis, axis).T
log_XE = torch.stack([-((x - 0.8) ** 2) / 0.3, -((y + 0.5) ** 2) / 0.3], -1).log_softmax(0)
combined = {
    "mixture: near one or the other": log_XE.logsumexp(-1).softmax(0),
    "product: near both": log_XE.sum(-1).softmax(0),
}
fig, panels = plt.subplots(1, 2, figsize=(7, 3.5), layout="constrained")
for ax, (name, density_X) in zip(panels, combined.items(), strict=True):
    ax.imshow(density_X.view(61, 61).T, origin="lower", cmap="cividis")
    ax.set_title(name, loc="left")
    ax.set_axis_off()

# %% [markdown]
# A mixture is never sharper than its sharpest expert: two ridges added are a cross, never a spot. A
# product cannot say "or". In a mixture an expert answers for a *region* and can be silent
# elsewhere, so elsewhere it need not be computed: **that** makes sparse models possible. In a
# product all must be asked. This course follows the mixture.
#
# ## Exercises
#
# [`exercises/01_exercises.ipynb`](../exercises/01_exercises.ipynb):
# responsibilities, an error that does not overflow, both gradients by hand, an instrument that
# counts working experts, and the product. Solutions are in
# [`solutions/`](../solutions/01_solutions.ipynb).
#
# [Glossary](../docs/glossary.md).
#
# ## In five lines
#
# 1. $E_1$ tells every expert the blend's error; $E_2$ and $E_3$ tell each its own.
# 2. The responsibility $h$ is the gate's belief after the answer is known; each expert learns in
#    proportion to it, and the gate moves by $h - p$.
# 3. The variance is the knob from $E_2$ over $E_3$ to winner-take-all. Sharper is not better by
#    itself; much too sharp fails.
# 4. On the vowels mixtures arrive in fewer epochs than backpropagation, under either coding.
# 5. If one expert can do everything, under competition and with a small step one will.
#
# | in the paper | in the code | |
# |---|---|---|
# | $d$ | `target_TO` | the right answer |
# | $o_i$ | `out_TEO` | expert $i$'s answer |
# | $p_i$ | `logits_TE.softmax(-1)` | the gate's proportion, the prior |
# | $h_i$ (in words) | `mixtures.responsibilities` | the posterior |
# | 1.1, 1.2, 1.3 | `blend_error`, `expected_error`, `mixture_error` | three errors |
#
# **Read on:** the paper itself; Hinton 2002, *Training Products of Experts by Minimizing
# Contrastive Divergence*, for the other road; and chapter 02, where the experts get managers.
