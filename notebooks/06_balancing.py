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
# # What does a balancing loss really push on?
#
# **The papers:** Fedus, Zoph and Shazeer 2021, *Switch Transformers*
# ([arXiv:2101.03961](https://arxiv.org/abs/2101.03961)), equations 4 to 6; Wang et al. 2024
# ([arXiv:2408.15664](https://arxiv.org/abs/2408.15664)), Figure 2; Qiu et al. 2025
# ([arXiv:2501.11873](https://arxiv.org/abs/2501.11873)), Tables 1 and 2.
#
# In this chapter you
#
# - take the most used balancing loss apart into what is counted and what is believed;
# - work out by hand in which direction it pushes a single logit, and see why that balances;
# - find out that its value may be 1 where all is wrong, and 0.4 with half of the experts dead;
# - measure how far popular implementations of one formula lie apart;
# - diagnose four sick training runs from two curves each;
# - see what it costs to balance too much, or within too little.
#
# **You need:** PyTorch, and what a softmax and a top-k are. Chapters 04 and 05 help and are not
# assumed. **Time:** an hour to read and try; the cells run in under a minute on two CPU cores. No
# GPU, no network.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from moe_lite import Routing, losses
from moe_lite.course import charts, data, ledger, sweep, viz
from moe_lite.course.widgets import BalanceSimplex

torch.manual_seed(0)
torch.set_num_threads(1)
torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. Two rows of numbers
#
# A router that is left alone sends most tokens to a few experts (chapter 04). What would you write
# down to say so? Here are four tokens and three experts. The router turns its scores into
# probabilities, and each token goes to its most probable expert ($K = 1$):
#
# | token | believes in 0, 1, 2 | goes to |
# |---|---|---|
# | a | 0.6, 0.3, 0.1 | 0 |
# | b | 0.5, 0.3, 0.2 | 0 |
# | c | 0.5, 0.1, 0.4 | 0 |
# | d | 0.2, 0.7, 0.1 | 1 |
#
# There are two ways to sum up a column. **Count**: three of four tokens go to expert 0, one to
# expert 1, none to expert 2. Or take the **mean** of what they believe. Switch's equations 5 and 6
# do both:
#
# $$f_e = \frac{1}{T} \sum_t \mathbb{1}\{\text{token } t \text{ goes to } e\}, \qquad
# P_e = \frac{1}{T} \sum_t p_{t,e}$$
#
# and equation 4 multiplies them, expert by expert, with $N$ experts and a weight $\alpha$ that we
# leave out until section 8:
#
# $$L = N \sum_{e=1}^{N} f_e\, P_e$$

# %%
p_TE = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.3, 0.2], [0.5, 0.1, 0.4], [0.2, 0.7, 0.1]])
expert_T = p_TE.argmax(dim=-1)
f_E = F.one_hot(expert_T, 3).float().mean(dim=0)
P_E = p_TE.mean(dim=0)
print("f", f_E, "  P", P_E, f"  loss {3 * (f_E * P_E).sum():.4f}")

# %% [markdown]
# By hand: $3 \cdot (0.75 \cdot 0.45 + 0.25 \cdot 0.35 + 0 \cdot 0.2) = 3 \cdot 0.425 = 1.275$. If
# all counts and beliefs were equal, it would be $3 \cdot 3 \cdot \frac13 \cdot \frac13 = 1$; if
# everything went to one expert with certainty, $N = 3$. The library's loss is a pure function of a
# `Routing`, and agrees:


# %%
def route(logits_TE, K=1):
    probs_TE = logits_TE.softmax(dim=-1)
    expert_TK = logits_TE.topk(K, dim=-1).indices
    return Routing.from_choices(logits_TE, probs_TE, expert_TK, probs_TE.gather(1, expert_TK))


print(f"{losses.load_balancing_loss(route(p_TE.log())):.4f}")

# %% [markdown]
# (With $K > 1$ choices per token, our $f$ is the share of all *choices*, so it still adds up to 1.
# Remember this sentence; section 6 is about code that does otherwise.)
#
# ## 2. Only one of the two can be pushed
#
# A count has no slope: change a score a little and the count stays as it is, until it jumps. So no
# gradient comes through $f$, whether you write `.detach()` or not. Everything the router learns, it
# learns through $P$:

# %%
logits_TE = p_TE.log().requires_grad_()
f_E = F.one_hot(logits_TE.argmax(-1), 3).float().mean(0)
loss = 3 * (f_E * logits_TE.softmax(-1).mean(0)).sum()
print("f has a gradient:", f_E.requires_grad)
(slope_TE,) = torch.autograd.grad(loss, logits_TE)
print("slope of the loss, by autograd\n", slope_TE)

# %% [markdown]
# So read the loss again, with $f$ as a list of plain numbers. It is $\frac{N}{T} \sum_t \sum_e
# f_e\, p_{t,e}$: each token is charged, for every expert it believes in, a **price** $f_e$, which
# is how crowded the expert is. That is all. The softmax turns it into a push on each logit:
#
# $$\frac{\partial L}{\partial z_{t,e}}
# = \frac{N}{T}\; p_{t,e} \Big( f_e - \sum_i p_{t,i}\, f_i \Big)$$
#
# In words: *an expert's score goes down if the expert is more expensive than what this token pays
# on average, and up if it is cheaper; and whatever the token hardly believes in hardly moves.*

# %%
pays_T1 = (p_TE * f_E).sum(dim=-1, keepdim=True)
by_hand_TE = 3 / 4 * p_TE * (f_E - pays_T1)
torch.testing.assert_close(by_hand_TE, slope_TE)
print("what each token pays on average:", pays_T1.flatten())

# %% [markdown]
# Look at token d in the table above. It pays 0.325 on average and goes to expert 1, whose price is
# 0.25: for this token, expert 1 is a bargain. So the loss pushes d *towards* expert 1, although
# its slope is small. Tokens a, b and c are pushed away from 0, and up at both others: the more,
# the cheaper the other is and the more they already like it. (b is pushed most towards 2, which is
# free.)
#
# Three things follow, and each one explains something that looks odd in practice.
#
# - **At equal counts there is no push at all.** If every $f_e$ is $1/N$, all prices are equal, and
#   whatever $P$ is, the bracket is zero. The loss is then exactly 1, since $P$ adds up to 1.
# - **Who is sure does not hear.** If $p_{t,e}$ is close to 1, then what the token pays on average
#   *is* $f_e$, and the bracket is close to zero. A router that has collapsed with confidence can
#   hardly be pushed back. So balance from the first step on.
# - **It is a market, not a hill.** After each step the counts are made anew and the prices with
#   them. The loss is not a function that descends to its minimum; it is a rule that makes crowded
#   things expensive.

# %%
for lead in (0.0, 2.0, 4.0, 8.0):
    z_TE = torch.zeros(64, 8)
    z_TE[:, 0] = lead + 1e-3  # everyone at expert 0, and surer and surer
    z_TE.requires_grad_()
    (slope,) = torch.autograd.grad(losses.load_balancing_loss(route(z_TE)), z_TE)
    p = z_TE.softmax(-1)[0, 0]
    print(f"all 64 tokens at expert 0 with p = {p:.3f}: push on its score {64 * slope[0, 0]:.3f}")

# %%
# Your turn: who pays most on average, and what if expert 2 were the crowded one? Change f.
print((p_TE * torch.tensor([0.25, 0.0, 0.75])).sum(-1))

# %% [markdown]
# Who believes about one half in the crowded expert hears it best. At $p = 0.998$ the crowd is as
# large as before, and the push a hundredth of that.
#
# ## 3. Try it
#
# In this triangle a token is a circle. It lies where its probabilities put it: at a corner if it
# is sure, in the middle if it is torn. Its colour and number say where it goes. Then **P is the
# centre of the circles, and f is the centre of the corners they go to.** The arrows are the push
# of section 2. Before you touch anything, make the guess in its box, and another: which tokens
# will have the long arrows?

# %%
simplex = BalanceSimplex("leaning")
simplex

# %% [markdown]
# **Try it.** Press *Play*, or *One step down the loss* a few times: the crowd at 0 thins out. Then
# pick *sure* under *Start*: the arrows are too short to see, and *Ten steps* hardly move anything.
# Then *all tie*: the herd runs from expert to expert for ever. And *below 1*: look at the value,
# and at expert 2. Drag a token, and try to get the value as low as you can.

# %%
for start in BalanceSimplex.STARTS:
    w = BalanceSimplex(start)
    before = f"value {w.value:.3f}, MaxVio {losses.max_violation(w.routing):.2f}"
    w.step(20)
    print(f"{start:8} {before}; after 20 steps", end=" ")
    print(f"value {w.value:.3f}, MaxVio {losses.max_violation(w.routing):.2f}")

# %% [markdown]
# MaxVio is the busiest expert's load over the mean load, minus 1 (Wang et al. 2024, equation 4).
# It looks at the counts alone, and 0 is perfect. Keep an eye on both columns: a value of 1.000
# stands beside a MaxVio of 2, which is all there can be. (*below 1* does not come to rest either.
# Its two bunches of near copies flip together. Section 5 follows tokens that differ as tokens do.)
#
# ## 4. One is not the least
#
# It is often said, and sometimes proved, that the loss is least at uniform routing, where it is 1.
# That would be so if $f$ and $P$ were the same thing: $N \sum P^2 \ge 1$, with equality where all
# are equal. But they are two things. In section 3, *leaning* came to 0.996. How low can
# it go?
#
# First by hand, with two experts and four tokens. Three tokens go to expert 0 *by a hair*: they
# believe $\frac12, \frac12$. One goes to expert 1 and is sure. Then $f = (\frac34, \frac14)$ but
# $P = (\frac38, \frac58)$: **most tokens go where the smaller part of the belief is.**
#
# $$2 \cdot \big( \tfrac34 \cdot \tfrac38 + \tfrac14 \cdot \tfrac58 \big) = \tfrac{28}{32} = 0.875$$

# %%
torn, sure = [1e-4, 0.0], [0.0, 20.0]
routing = route(torch.tensor([torn, torn, torn, sure]))
print(f"loss {losses.load_balancing_loss(routing):.4f}, MaxVio {losses.max_violation(routing):.2f}")

# %% [markdown]
# That is less than "perfect", at a load of three to one. And with more experts? Let us have the
# machine look. Hold every token's choice, and walk down the loss with the others' logits free, but
# keep the chosen expert best by a hair:


# %%
def lowest(expert_T, E, steps=1500):
    rows, T = torch.arange(len(expert_T)), len(expert_T)
    f_E, z_TE = F.one_hot(expert_T, E).float().mean(0), torch.zeros(T, E)
    for _ in range(steps):
        p_TE = z_TE.softmax(-1)
        z_TE -= 2 * p_TE * (f_E - (p_TE * f_E).sum(-1, keepdim=True))
        others_TE = z_TE.index_put((rows, expert_T), torch.tensor(-torch.inf))
        z_TE[rows, expert_T] = z_TE[rows, expert_T].maximum(others_TE.amax(-1) + 1e-4)
    return losses.load_balancing_loss(route(z_TE)).item()


# %%
print(f" 2 experts: {lowest(torch.tensor([0, 0, 0, 1]), 2):.3f}")
for E in (3, 4, 8, 16):
    tried = [(round(lowest(torch.arange(busy), E), 3), busy) for busy in range(1, E + 1)]
    print(f"{E:2} experts: {min(tried)[0]:.3f}, with tokens at {min(tried)[1]} of them")

# %%
# Your turn: how low can it go with 32 experts? Predict 4/N or so, then run it with your own count.
print(min(32 / (h * (32 - h + 1)) for h in range(1, 33)))

# %% [markdown]
# With eight experts the loss can be **0.4**, and it is that where half of them get no token at all.
# (With $h$ busy experts the loss is $N / (h\,(N - h + 1))$, least where about half are empty:
# roughly
# $4/N$.)
#
# ## 5. Then why does it balance?
#
# Because nobody walks down this landscape. It was drawn with the counts held fixed, and the push
# does not hold them. Take a case that the loss finds very good, eight experts of which four
# are as good as dead, and follow its gradient. The tokens differ a little, as tokens do.

# %%
torch.manual_seed(0)
z_TE = torch.full((256, 8), 0.0)
z_TE[:, :4] = -6.0
z_TE[torch.arange(256), torch.arange(256) % 4] = 0.4
z_TE += 0.12 * torch.randn(256, 8)
z_TE.requires_grad_()
seen = []
for _ in range(120):
    loss = losses.load_balancing_loss(route(z_TE))
    seen.append((loss.item(), losses.max_violation(route(z_TE)).item()))
    (slope_TE,) = torch.autograd.grad(loss, z_TE)
    z_TE.data -= 0.02 * 256 * slope_TE

# %%
steps = range(len(seen))
values, violations = zip(*seen, strict=True)
both = {"value of the loss": (steps, values), "MaxVio": (steps, violations)}
fig = viz.curves(both, "steps down the gradient of the loss", "value, MaxVio")
fig.axes[0].axhline(1, color="black", lw=0.8, ls=":")
fig

# %% [markdown]
# **We went down the gradient of the loss, and the loss went up.** It begins far below 1 and ends at
# 1, while MaxVio falls from nearly 1 to almost nothing. While the counts stand still, each step
# does lower the value a little: belief flows to the empty experts because they cost nothing. But
# then a token tips over, an empty expert is not empty any more, prices change, and the value
# jumps. Where it nearly comes to rest is not a minimum. It is the only place where nobody has a
# cheaper neighbour: equal counts.
#
# So take from it what you look at. *The value of the loss is not a measure of balance.* Put MaxVio
# beside it, for each layer, and counted on real tokens.
#
# ## 6. One formula, many codes
#
# The formula fits in one line, and there are at least six common ways to write it. Let us put them
# side by side on one routing: two layers, eight experts, two choices per token, leaning in
# opposite directions.

# %%
torch.manual_seed(0)
E, K, T = 8, 2, 512
lean_E = torch.linspace(1.5, -1.5, E)
layers = [(torch.randn(T, E) + lean).requires_grad_() for lean in (lean_E, lean_E.flip(0))]


# %%
def share_and(P_E, r):
    f_E = torch.bincount(r.expert_N, minlength=E) / len(r.expert_N)
    return E * (f_E * P_E).sum()


def masked(r):  # the chosen ones' probabilities, the others 0
    return r.gates_TE().mean(0)


def renormalised(r):
    return (r.gates_TE() / r.gates_TE().sum(-1, keepdim=True)).mean(0)


# %%
def mean(per_layer):
    return lambda rs: torch.stack([per_layer(r) for r in rs]).mean()


CODES = {
    "ours; DeepSeekMoE": losses.load_balancing_loss,
    "GShard": lambda rs: losses.load_balancing_loss(rs, choices=1) / E**2,
    "transformers' Mixtral": losses.mixtral_aux_loss,
    "a sum over the layers": lambda rs: len(rs) * losses.load_balancing_loss(rs),
    "P from the chosen alone": mean(lambda r: share_and(masked(r), r)),
    "nanoMoE": mean(lambda r: K * share_and(renormalised(r), r)),
    "P detached": lambda rs: losses.load_balancing_loss(rs).detach(),
}

# %% [markdown]
# Four columns for each. What would it say **at balance** (tokens without any leaning)? What does it
# say **here**? How **hard** does it push, as the size of its gradient over ours? And does it push
# in the same **direction**, as the cosine between the two gradients?


# %%
def gradient(code, logits):
    value = code([route(z, K) for z in logits])
    if not value.requires_grad:
        return value, torch.zeros(2 * T * E)
    return value, torch.cat([g.flatten() for g in torch.autograd.grad(value, logits)])


ours = gradient(losses.load_balancing_loss, layers)[1]
flat = [torch.randn(20_000, E) for _ in range(2)]
print(f"{'':28} at balance    here   force  direction")
for name, code in CODES.items():
    even, (here, g) = code([route(z, K) for z in flat]), gradient(code, layers)
    turn = F.cosine_similarity(g, ours, dim=0)
    print(f"{name:28} {even:10.3f} {here:7.3f} {g.norm() / ours.norm():7.3f} {turn:10.2f}")

# %% [markdown]
# Read it line by line.
#
# - **GShard** takes the *mean* over experts where Switch takes $N$ times the sum: a factor of
#   $N^2$. Its $f$ counts first choices only, so the direction is 0.99.
# - **transformers' Mixtral** does not divide by $K$, and it pools the layers before it multiplies:
#   two layers that lean opposite ways look even together ([pointed
#   out](https://github.com/huggingface/transformers/issues/28255) by readers).
# - **A sum over the layers** pushes $L$ times as hard.
# - **P from the chosen experts alone** turns the direction: a cheap expert that was not chosen is
#   not looked at. **nanoMoE** renormalises over the chosen, which turns it further, and does not
#   divide by $K$.
# - **P detached** has the right value, and every dashboard is green.
#
# So *an $\alpha$ without its code is not a number.*
#
# **Padding** must not count: all of it goes to the same experts, and would push *real* tokens away.
# The library's losses take a mask (`mask_T`), or find it in the routing.
#
# ### Four patients
#
# Here are four training runs of a little router, and a healthy one. The model: two layers, eight
# experts, two choices, a third of the tokens padding. Something in the task wants an uneven
# router, in the one layer the reverse of the other; a balancing loss pulls against it. On the left
# is the loss that the run *reports*, on the right the MaxVio of its *real* tokens, mean over the
# layers. The four faults are from real code: **f not divided by K; layers pooled before the
# product; padding counted; the loss computed and never added.** Which is which?

# %%
torch.manual_seed(0)
x_LTD, real_T = torch.randn(2, 600, 17), torch.arange(600) < 400
x_LTD[:, ~real_T] = torch.randn(2, 1, 17)  # padding: all alike
x_LTD[..., -1] = 1.0  # so that a router can lean, whatever the token
lean_LE = torch.stack([torch.linspace(2, -2, E), torch.linspace(-2, 2, E)])
want_LTE = (x_LTD @ (torch.randn(2, E, 17) / 2).mT + lean_LE[:, None]).softmax(-1)
start_LED = 0.02 * torch.randn(2, E, 17)


# %%
def live(reported, weight=4.0, steps=80):
    w_LED, seen = start_LED.clone().requires_grad_(), []
    optimizer = torch.optim.Adam([w_LED], lr=0.05)
    for _ in range(steps):
        logits_LTE = x_LTD @ w_LED.mT
        routings = [route(z, K) for z in logits_LTE]
        task = -(want_LTE * logits_LTE.log_softmax(-1))[:, real_T].sum(-1).mean()
        balance = reported(routings)
        optimizer.zero_grad()
        (task + weight * balance).backward()
        optimizer.step()
        violation = sum(losses.max_violation(r.masked(real_T)) for r in routings) / 2
        seen.append((balance.item(), violation.item()))
    return seen


# %%
def sound(routings):
    return losses.load_balancing_loss(routings, real_T)


patients = {
    "healthy": live(sound),
    "A": live(lambda rs: losses.mixtral_aux_loss(rs, real_T) / K),
    "B": live(sound, weight=0.0),
    "C": live(losses.load_balancing_loss),
    "D": live(lambda rs: K * sound(rs)),
}
# %%
fig, panels = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for column, label in enumerate(("reported loss", "MaxVio of the real tokens")):
    runs = {name: (range(80), [s[column] for s in seen]) for name, seen in patients.items()}
    viz.curves(runs, "steps", label, ax=panels[column])
    panels[column].get_legend().remove()
legend = fig.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)

# %% [markdown]
# <details>
# <summary>Which is which?</summary>
#
# - **A: the layers are pooled.** The reported loss is the *best* of all, 1.01, and each layer is
#   badly out of balance. The two imbalances cancel in the report and in the gradient.
# - **B: computed and never added.** The report is honest, and nobody listens: both curves rise. (It
#   has happened to a much-used teaching code base; chapter 10 has you write the test for it. A
#   detached loss draws the same picture.)
# - **C: padding counted.** The report stays near 1, while the real tokens' MaxVio rises from 0.6
#   to 0.8; the healthy run's falls to 0.3. The loss balances real tokens *against* padding: they
#   have to make room for it.
# - **D: f is not divided by K.** The report stays at $2 = K$, and MaxVio is the *lowest* of all:
#   the loss is sound, only twice as strong as its $\alpha$ says. A sum over two layers looks the
#   same. To tell the two apart you would have to change $K$ or the number of layers.
#
# </details>
#
# ## 7. Balanced within what?
#
# One more choice hides in "the mean over the tokens": which tokens? A batch of 16 texts may be
# counted as one. But in training on many machines each holds a few texts and counts its own, and
# then the losses are averaged. It looks like the same thing. By hand: two texts, two experts, the
# first text all at expert 0 and sure, the second all at expert 1.
#
# - Over the batch: $f = P = (\frac12, \frac12)$, the loss is 1, no push. *Each text may have its
#   own expert.*
# - Within each text: $f = P = (1, 0)$, the loss is 2, and the same for the other. *Each text is to
#   use all experts equally.*
#
# If texts come from different domains, then the second forbids what one might hope of experts:
# that one does arithmetic and another Japanese. In code it is one `view` and one mean more or
# less:


# %%
def scoped(routings, scope, group=64):
    layers = []
    for r in routings:
        E, share_TE = r.num_experts, F.one_hot(r.expert_N.view(-1, K), r.num_experts).sum(1) / K
        f_GE = share_TE.view(-1, group, E).mean(1)
        if scope == "batch":
            f_GE = f_GE.mean(0, keepdim=True)  # what machines would have to tell each other
        layers.append(E * (f_GE * r.probs_TE.view(-1, group, E).mean(1)).sum(-1).mean())
    return torch.stack(layers).mean()


routings = [route(torch.randn(1024, E), K) for _ in range(2)]
torch.testing.assert_close(scoped(routings, "batch"), losses.load_balancing_loss(routings))

# %%
# Your turn: within groups of 16 tokens, is the loss of random tokens larger or smaller?
print(scoped(routings, "text"), scoped(routings, "text", group=16))

# %% [markdown]
# Note what travels: only $f$, eight numbers per layer, without a gradient. Each text keeps its own
# $P$, and the mean of the products is then the product of the means.
#
# Now train the small language model that chapters 05 to 09 share (two layers, eight experts, two
# per token) on the course's five domains: without a balancing loss, balanced within each text (a
# window of 64 tokens, from one domain), and over the batch. One seed, 60 steps each; `train` takes
# any function of the routings as the loss that `aux_coef` weighs.

# %%
corpus = data.load_corpus(max_bytes=sweep.MAX_BYTES)
balances = {s: (lambda rs, s=s: scoped(rs, s)) for s in ("text", "batch")}
plans = {
    "no balancing loss": ("batch", 0.0),
    "within each text": ("text", 0.08),
    "over the batch": ("batch", 0.08),
}
runs = {}
for name, (scope, alpha) in plans.items():
    setting = sweep.Setting(balance=scope, training={"aux_coef": alpha, "steps": 60})
    runs[name] = sweep.run(setting, corpus, seed=0, balances=balances)


# %%
@torch.no_grad()
def domain_shares(model):
    """Say which share of each domain's choices each expert gets: (layers, domains, experts)."""
    windows = [corpus.windows(d, 64, 16).ids_BS for d in corpus.domains]
    loads = [[r.load_E() for r in model.eval()(ids_BS).routings] for ids_BS in windows]
    share_DLE = torch.stack([torch.stack(layers) for layers in loads])
    return (share_DLE / share_DLE.sum(-1, keepdim=True)).transpose(0, 1)


def told(share_LDE):
    """Measure I(domain; expert) / H(domain), the domains equally frequent: mean of the layers."""
    mean_L1E = share_LDE.mean(1, keepdim=True)
    nats = torch.xlogy(share_LDE, share_LDE / mean_L1E.clamp(min=1e-9)).sum(-1).mean(1)
    return (nats / torch.tensor(float(share_LDE.shape[1])).log()).mean().item()


# %%
fig, panels = plt.subplots(1, 3, figsize=(11, 2.9), layout="constrained", sharey=True)
for ax, (name, run) in zip(panels, runs.items(), strict=True):
    share_LDE = domain_shares(run.model)
    image = ax.imshow(share_LDE[1], vmin=0, vmax=0.5, cmap="cividis", aspect="auto")
    ax.set(xticks=range(E), yticks=range(5), yticklabels=corpus.domains, xlabel="expert")
    ax.set_title(name)
    print(f"{name:18} an expert tells {told(share_LDE):.0%} of the domain; ", end="")
    print(f"MaxVio {(E * share_LDE.mean(1).amax(-1) - 1).mean():.2f}")
bar = fig.colorbar(image, ax=panels, label="share of the domain's choices")

# %% [markdown]
# Each row is a domain, each column an expert of the second layer. Balanced over the batch, rows
# differ; within each text they are more alike, as they have to be.
#
# One seed, 60 steps: an illustration. In the ledger (`qiu2025`, seven seeds), an expert over the
# batch tells a quarter of the domain and far less within each text, clear of 0; and "mixed", which
# counts over as few tokens as "text" but from all texts, is better than "text" at ten times the
# paper's weight: most of the harm is their sameness. Whether their number harms too is open.
#
# ### When does it begin to cost?
#
# Over 3,000 steps, with twelve seeds, on the bench of chapter 05 (`qiu2025_long`):

# %%
stored = ledger.stored("qiu2025_long")
pairs = {f"α = {a}": ledger.Pair(f"text, {a}", f"batch, {a}") for a in (0.01, 0.1)}
viz.effects(stored, pairs, 0.0159, "held-out loss, text − batch, nats")

# %%
ledger.verdicts("qiu2025_long")

# %% [markdown]
# **Balance within each text costs something**, at both weights and clear of 0: most around step
# 300 (0.06 nats), and at the end 0.03 nats at the larger one, twice the paper's 0.016. At about
# the paper's weight it is 0.012, give or take 0.007. That is the paper's side, and whether it is
# the paper's size seven more seeds would decide.
#
# (DeepSeek-V3 keeps such a loss, with a tiny weight, beside a bias: [appendix
# 09a](09a_since_2024.ipynb), section 6. Balance by *quantiles*, an idea of 2026, has no weight to
# choose: chapter [18](18_claims.ipynb), section 9.)
#
# ## 8. How much?
#
# The weight $\alpha$ sets how loud the market speaks against the language model. Wang et al. 2024
# draw the dilemma in their Figure 2: a small $\alpha$ leaves the load uneven, a large one costs
# perplexity. Here are six weights, five seeds, 250 steps (`lossfree2024_alpha`).
#
# Seeds differ in text and start, so each model's loss is set against that of the model with
# $\alpha$ = 0.001 and *the same seed*.

# %%
stored = ledger.stored("lossfree2024_alpha")
fig, ax = plt.subplots(figsize=(6.6, 4), layout="constrained")
alphas = ("0", "0.0001", "0.001", "0.01", "0.1", "1")
for alpha, mark, color in zip(alphas, "osD^vP", viz.HUES, strict=False):
    x, pair = stored[f"MaxVio at {alpha}"], ledger.Pair(f"loss at {alpha}", "loss at 0.001")
    y = stored[pair]
    ax.errorbar(x.mean, y.mean, xerr=x.half, yerr=y.half, fmt=mark, c=color, label=f"α = {alpha}")
    ax.scatter(stored.values(f"MaxVio at {alpha}"), stored.values(pair), s=6, c=color)
    print(f"alpha {alpha:6}  MaxVio {x!s:15} {pair}: {y}")
ax.axhline(0, color="black", lw=0.8)
ax.set(xlabel="MaxVio on held-out text (0: perfect balance)",
       ylabel="loss - that at 0.001, nats",
       title=f"stored result: {len(stored.seeds)} seeds, 95% intervals")  # fmt: skip
ax.legend(frameon=False)
charts.alive(fig)

# %%
ledger.verdicts("lossfree2024_alpha")

# %% [markdown]
# **What you may believe now:** a small weight leaves the load uneven, and a weight of 1, a hundred
# times the paper's largest, costs 0.11 ± 0.09 nats. **What is open: whether 0.01 costs
# anything.** These intervals reach several hundredths to either side. On the longer bench, with a
# sigmoid gate (chapter 09), ten times the weight is -0.008 ± 0.009 nats: no price to be seen.
#
# ## Exercises
#
# [`exercises/06_exercises.ipynb`](../exercises/06_exercises.ipynb): the loss, its push by hand, a
# value below 1, padding, micro-batches and layers, and seven boxes of which one is sound. Each
# check tells you *what* you misunderstood. Solutions are in
# [`solutions/`](../solutions/06_solutions.ipynb).
# [Glossary](../docs/glossary.md).
#
# ## In five lines
#
# 1. $f$ counts and has no slope; $P$ believes and has. The loss charges each token the price $f_e$
#    for what it believes in.
# 2. The push on a score is $\frac{N}{T} p\,(f_e - \text{what the token pays on average})$: none at
#    equal counts, hardly any on the sure.
# 3. Its value is no measure of balance: 1 at collapse with ties, 0.4 with four of eight experts
#    dead. Watch MaxVio.
# 4. Codes differ in $K$, $N$, layers, padding, and whose probabilities $P$ is; an $\alpha$ belongs
#    to its code.
# 5. Averaged before the product, things may make up for each other: texts of a batch should,
#    layers must not.
#
# | in the paper | in the code | |
# |---|---|---|
# | $f_e$ | pairs of `routing.expert_N`, over all pairs | adds up to 1 for any $K$ |
# | $P_e$ | `routing.probs_TE.mean(0)` | all experts, chosen or not |
# | $N \sum f P$ | `losses.load_balancing_loss(routings, mask_T)` | mean over layers, no $\alpha$ |
# | the published Mixtral's | `losses.mixtral_aux_loss` | pooled layers, $K$ at balance |
# | GShard's $c_e/S$ | `load_balancing_loss(..., choices=1)` | first choices; times $N^2$ |
# | MaxVio | `losses.max_violation(routing)` | the counts alone |
# | $\alpha$ | `TrainConfig.aux_coef`, `train(..., balance=...)` | |
#
# **Read on:** Switch's section 2.2 and Qiu et al. 2025, sections 2 and 3. Chapter 09 balances
# without a loss: a bias that chooses and never weighs.
