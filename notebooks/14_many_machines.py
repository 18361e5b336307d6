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
# # How does it get bigger than a machine?
#
# **The papers:** Lepikhin et al. 2020, *GShard*
# ([arXiv:2006.16668](https://arxiv.org/abs/2006.16668)), which put 2,048 experts on 2,048 devices;
# DeepSeek-AI 2024, *DeepSeek-V3* ([arXiv:2412.19437](https://arxiv.org/abs/2412.19437)), for
# limited nodes; Zoph et al. 2022, *ST-MoE* ([arXiv:2202.08906](https://arxiv.org/abs/2202.08906)),
# for fine-tuning; Komatsuzaki et al. 2022 ([arXiv:2212.05055](https://arxiv.org/abs/2212.05055))
# and OLMoE 2024 ([arXiv:2409.02060](https://arxiv.org/abs/2409.02060)), for upcycling.
#
# In this chapter you
#
# - count what ten published models need, from their configs alone;
# - send tokens to another machine's experts by hand, then with two real processes, and see that two
#   ranks equal one;
# - read a traffic matrix, and find out whom everybody waits for;
# - see why writing a text is about bytes and reading it about arithmetic;
# - keep experts on the disk, and guess which ones come next;
# - find out what an old dense model is worth when you want a sparse one.
#
# **You need:** PyTorch and chapter 00 or 10. No GPU, no network: the "machines" are processes here.
# **Time:** an hour and a half to read and try; the cells run in about a minute on two CPU cores.

# %%
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open

from moe_lite import Experts, Mixtral, MixtralConfig, MoELayer, TopKRouter, hf, train
from moe_lite.course import cost, data, ledger, sweep, viz
from moe_lite.course.widgets import CostCalculator, TrafficMatrix

torch.manual_seed(0)
torch.set_num_threads(1)
torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. What does not fit
#
# A mixture of experts is cheap in *work* and expensive in *memory*: a token visits $K$ experts of
# each layer, and all $E$ have to be somewhere. How much is that? A config is enough to say. An
# expert of three matrices has $3\,D\,F$ parameters, a layer $E$ of them, and the rest is attention,
# embeddings and small change. `cost.count_parameters` adds it up, exactly:

# %%
print(f"{'':17}{'total':>18}{'published':>16}{'active':>8}{'bf16, GB':>10}  80-GB devices to train")
for name, shape in cost.PRESETS.items():
    count, (total, _) = cost.count_parameters(shape), cost.PUBLISHED[name]
    held, devices = 2 * count.total / 1e9, -(-16 * count.total // int(80e9))
    row = f"{name:17}{count.total:18,}{total:>16}{count.active / 1e9:7.1f}B"
    print(f"{row}{held:10,.0f}{devices:16}")

# %% [markdown]
# Every total agrees with the published one to the digits that were published. (GShard's "600B" has
# one digit; its own formula gives 619.) The same counts, to the last parameter, come out of
# transformers' own models of those configs that it knows; a test holds that. (*Active* counts the
# whole input embedding, as Mistral does; DeepSeek's 37 and Qwen's 3.3 billion count it otherwise.)
#
# Two columns to remember. In bf16 a weight takes two bytes, so Mixtral's 46.7 billion take 93 GB:
# more than the 80 GB of the device that most people mean when they say "a GPU". And *training*
# takes sixteen bytes for each parameter (weight and gradient in bf16; in float32 another copy of
# the weight and Adam's two moments), before a single activation is stored. In that form
# DeepSeek-V3 needs 135 such devices before the first token, whatever their speed. (It was trained
# in 8 bits where possible, which is one way out.)
#
# So the model has to be cut. Which way? A dense layer can only be cut *through* its matrices, and
# then all pieces have to talk about every token. A layer of experts comes cut already. Put some
# experts on each machine, everything else on all of them, and let the *tokens* travel. That is
# **expert parallelism**.
#
# ## 2. All-to-all by hand
#
# Two machines, which the field calls **ranks** 0 and 1. Four experts: 0 and 1 live on rank 0, 2
# and 3 on rank 1. Each rank has its own three tokens and a copy of the router, and $K = 2$. We
# play both ranks in one process first, so that you can look into everybody's hands.

# %%
layer = MoELayer(TopKRouter(8, num_experts=4, top_k=2), Experts(4, 8, 16))
x_RTD = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(7))
routings = [layer.gate(x_TD) for x_TD in x_RTD]
for rank, routing in enumerate(routings):
    print(f"rank {rank}: token", routing.token_N.tolist(), "-> expert", routing.expert_N.tolist())

# %% [markdown]
# **Pack.** Each rank sorts its six pairs by expert. Because experts lie in order, that also sorts
# them by *rank*: first all rows for rank 0, then all for rank 1. Two slices of one tensor, ready
# to go.

# %%
orders = [routing.expert_N.argsort(stable=True) for routing in routings]
experts = [routing.expert_N[order] for routing, order in zip(routings, orders, strict=True)]
parcels = [x[r.token_N[o]] for x, r, o in zip(x_RTD, routings, orders, strict=True)]
sent = [[int((e // 2 == to).sum()) for to in (0, 1)] for e in experts]  # experts / 2 = rank
print("pairs from rank to rank:", sent)

# %% [markdown]
# That little matrix is the **traffic matrix**: row = sender, column = receiver. Each rank knows
# its own row. It has to learn its *column* before anything can arrive, or it would not know how
# much room to make. So there are two exchanges: first the counts, a few integers, then the
# vectors.
#
# **All-to-all** is the exchange in which everybody sends a different parcel to everybody. On paper
# it is a transpose: what lay in [from][to] lies in [to][from].


# %%
def all_to_all(parcels, sizes):
    """Give each rank what all the others had for it, in the order of the senders."""
    split = [list(parcel.split(size)) for parcel, size in zip(parcels, sizes, strict=True)]
    return [torch.cat(arrived) for arrived in zip(*split, strict=True)]


arrived, of_expert = all_to_all(parcels, sent), all_to_all(experts, sent)
for rank, e in enumerate(of_expert):
    print(f"rank {rank} got {len(e)} rows, for experts {e.tolist()}")

# %% [markdown]
# **Work.** Each rank runs the rows that came through its own experts. Note the order: sorted by
# sender, and by expert within a sender. It has to sort once more (the library does), or pick them
# one by one:

# %%
run = layer.experts.each()
done = [torch.stack([run[e](row) for e, row in zip(es.tolist(), rows, strict=True)])
        for es, rows in zip(of_expert, arrived, strict=True)]  # fmt: skip
got = [list(column) for column in zip(*sent, strict=True)]  # the transposed matrix
home = all_to_all(done, got)
print("back home:", [tuple(rows.shape) for rows in home])

# %% [markdown]
# **Return.** The same exchange with the roles exchanged: what came is sent, what was sent comes.
# So the sizes are the *transposed* matrix. Rows come back in the order in which they left, so each
# rank undoes its own sort, weighs each row with the gate it had kept at home, and adds.
#
# Is it right? One process with all six tokens and all four experts should get the same:

# %%
for rank, (routing, order) in enumerate(zip(routings, orders, strict=True)):
    weighed = home[rank] * routing.gate_N[order, None]
    out = torch.zeros(3, 8).index_add(0, routing.token_N[order], weighed)
    torch.testing.assert_close(out, layer(x_RTD[rank])[0])
print("two ranks equal one")

# %% [markdown]
# What travelled? Vectors, twice, and never a weight. Gates and logits stayed at home, so balancing
# losses and the router's gradient need no message at all. That is why a layer of experts is easier
# to spread than a dense one.
#
# ## 3. For real
#
# Now with two processes that share no memory. PyTorch has the exchange as `all_to_all_single`; on
# GPUs NCCL carries it, here **gloo** does, over local sockets. The helper starts one Python per
# rank, lets them find each other through a file, and collects what rank 0 prints. (On the command
# line `train --processes 2` is this helper.)

# %%
PRELUDE = """
import json, sys, time, torch, torch.distributed as dist
torch.set_num_threads(1)
rank, ranks, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", store=dist.FileStore(file, ranks), rank=rank, world_size=ranks)
"""


def launch(program, ranks):
    """Run a program on so many ranks; give what rank 0 wrote as JSON."""
    env = {**os.environ, "PYTHONPATH": str(ledger.ROOT)}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        script = Path(folder, "program.py")
        script.write_text(PRELUDE + program + "\ndist.destroy_process_group()", encoding="utf-8")
        start = [sys.executable, str(script)]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        meet = str(Path(folder, "meet"))
        jobs = [subprocess.Popen([*start, str(r), str(ranks), meet], **pipes) for r in range(ranks)]
        try:
            outputs = [job.communicate() for job in jobs]
        finally:
            for job in jobs:
                job.kill()  # none goes on when you press stop
    for job, (_, complaint) in zip(jobs, outputs, strict=True):
        assert job.returncode == 0, complaint
    return json.loads(outputs[0][0])


# %% [markdown]
# The program is section 2 with the two lists replaced by two processes. Read it line by line; you
# know every line.

# %%
BY_HAND = """
from moe_lite import Experts, MoELayer, TopKRouter
torch.manual_seed(3)
layer, x_TD = MoELayer(TopKRouter(8, 4, 2), Experts(4, 8, 16)), torch.randn(6, 8)
mine, run = x_TD.chunk(ranks)[rank], layer.experts.each()    # it uses only two of these four
routing = layer.gate(mine)
order = routing.expert_N.argsort(stable=True)
e_R, x_RD = routing.expert_N[order], mine[routing.token_N[order]]
send = torch.bincount(e_R // (4 // ranks), minlength=ranks)
receive = torch.empty_like(send)
dist.all_to_all_single(receive, send)                        # first the counts
out, into = send.tolist(), receive.tolist()
e_M, x_MD = e_R.new_empty(sum(into)), x_RD.new_empty(sum(into), 8)
dist.all_to_all_single(e_M, e_R, into, out)                  # then the rows
dist.all_to_all_single(x_MD, x_RD, into, out)
y_MD = torch.stack([run[e](x) for e, x in zip(e_M.tolist(), x_MD)])
y_RD = torch.empty_like(x_RD)
dist.all_to_all_single(y_RD, y_MD, out, into)                # and back, roles exchanged
y_RD = y_RD * routing.gate_N[order, None]
y_TD = torch.zeros_like(mine).index_add(0, routing.token_N[order], y_RD)
error = (y_TD - layer(mine)[0]).abs().max().item()
if rank == 0: print(json.dumps({"sends": out, "receives": into, "largest error": error}))
"""
print(launch(BY_HAND, ranks=2))

# %% [markdown]
# The library's `parallel.shard_experts(model, mesh)` does that to every layer of a model, for any
# router and any backend, with gradients; `parallel.train` is `train` for a model whose experts live
# on several ranks. One thing there deserves a thought. Of the gradient,
#
# - *everything but the experts* is on every rank, so its gradients are averaged over the ranks
#   (that is PyTorch's `DistributedDataParallel`);
# - *an expert* is on one rank only, and has already received the tokens of all. Its gradient must
#   **not** be averaged with that of another rank, which is another expert's.
#
# Ten training steps, on two ranks and on one:

# %%
small = MixtralConfig(
    vocab_size=4096, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    max_position_embeddings=256, tie_word_embeddings=True,
)  # fmt: skip
settings = dict(steps=10, batch_size=6, seq_len=32, warmup=2, autocast="off")
TRAINING = f"""
from moe_lite import Mixtral, MixtralConfig, TrainConfig, parallel
from moe_lite.course import data; from torch.distributed.device_mesh import init_device_mesh
mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("ep",))
torch.manual_seed(0)
model = Mixtral({small!r})
parallel.shard_experts(model, mesh)                          # one line
held = sum(p.numel() for p in model.parameters())
history = parallel.train(mesh, model, data.load_corpus(("prose",), max_bytes=100_000),
    TrainConfig(**{settings!r}), progress=False)
if rank == 0: print(json.dumps({{"held": held, "losses": history.column("loss")}}))
"""

# %%
torch.manual_seed(0)
alone = Mixtral(small)
corpus = data.load_corpus(("prose",), max_bytes=100_000)
one = train.train(alone, corpus, train.TrainConfig(**settings), progress=False).column("loss")
two = launch(TRAINING, ranks=2)
held = sum(p.numel() for p in alone.parameters())
print(f"parameters: {held:,} on one, {two['held']:,} on each of two")
for step in (0, 4, 9):
    print(f"step {step + 1:2}: loss {one[step]:.6f} on one rank, {two['losses'][step]:.6f} on two")
assert np.allclose(one, two["losses"], rtol=1e-5)

# %% [markdown]
# The same losses, up to the order in which floating point numbers were added. Two ranks are not an
# approximation of one. `python -m moe_lite train --processes 2` trains a whole recipe like that;
# on several machines, `torchrun ... -m moe_lite train --expert-parallel 2`.
#
# ## 4. Whom does everybody wait for?
#
# An all-to-all ends when the last parcel has arrived, and the layer ends when the **busiest** rank
# has done its work. The others wait; nobody calls it idle, it looks like slow communication.
# Averages do not help, maxima count. Here is the course's small trained model on held-out text,
# with its eight experts spread over four imaginary ranks. Each rank has a different domain, as it
# happens with data that is not shuffled well:

# %%
mini = hf.load_pretrained("mixtral-mini").eval()
text = data.load_corpus(max_bytes=400_000)
domains = ("drama", "code", "prose", "arithmetic")
with torch.no_grad():
    routed = [mini(text.windows(d, 64, 16).ids_BS).routings for d in domains]
pairs = np.array([[r.load_E().view(4, 2).sum(1).tolist() for r in layers] for layers in routed])

fig, panels = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
for panel, depth in zip(panels, (0, 3, 5), strict=True):
    image = panel.imshow(pairs[:, depth], cmap="cividis", vmin=0, vmax=pairs.max())
    panel.set(title=f"layer {depth}", xlabel="to rank", xticks=range(4), yticks=range(4))
    panel.set_yticklabels(domains if depth == 0 else [])
panels[0].set_ylabel("from the rank with")
_ = fig.colorbar(image, ax=panels, label="pairs")

# %%
for depth in range(6):
    work = pairs[:, depth].sum(0)
    waits = work.max() / work.mean()
    print(f"layer {depth}: work of the ranks {work.astype(int)}, busiest / mean {waits:.2f}")

# %% [markdown]
# Rows differ: each domain prefers other ranks. Columns, which are the *work*, differ less, because
# the model was trained to balance over mixed batches, but they differ. It is a column's sum that
# everybody waits for. Where the busiest rank has 1.2 times the mean, a sixth of the hardware's time
# is gone in that layer; in layer 4, with 1.4 times, three tenths.
#
# Three remedies, and what each one costs:
#
# - **Balance** (chapter 06): a loss or a bias that evens the load. Note over *which* batch: what
#   is even over all ranks' tokens need not be even over one's.
# - **Capacity** (chapter 05): an expert takes at most so many; the rest is dropped. That puts a
#   lid on the maximum, by throwing work away.
# - **Limited nodes**: let a token choose only among the experts of a few ranks (or nodes: machines
#   with several devices each). That does not even the work, it shortens the *traffic*, because a
#   token's vector need only travel once to each rank that it visits. DeepSeek-V3 sends a token to
#   at most 4 nodes.
#
# Try all three. **Before you touch it:** if skew goes up, which number in the table gets worse
# first, and which of the remedies acts on it?

# %%
traffic = TrafficMatrix(ranks=8, experts=64, k=8, tokens=32, skew=0.5)
traffic

# %% [markdown]
# **Try it.** At skew 0 the columns are even up to chance: take 2 tokens per rank and then 64, and
# watch chance matter less. At skew 1, put the capacity factor at 1.25: the busiest rank falls to
# half of what it was, and a third of all pairs is dropped for it. Then take capacity off and let a
# token visit 2 ranks: the *copies* halve, and the work is more uneven than before, because a
# popular rank now gets whole tokens. The same numbers in Python:

# %%
for change in ({}, {"skew": 1.0}, {"skew": 1.0, "capacity": 1.25}, {"skew": 1.0, "visit": 2}):
    t = TrafficMatrix(ranks=8, experts=64, k=8, **change).traffic
    print(f"{change!s:34} busiest / mean {t.busiest:.2f}, pairs abroad {t.away(t.pairs_RR):4}, "
          f"copies abroad {t.away(t.copies_RR):4}, dropped {t.dropped}")  # fmt: skip

# %% [markdown]
# ## 5. Hundreds of ranks, on paper
#
# We have no 512 machines. But we can *measure* what a message costs, and write down a model of
# a step. We **check the model where we can**, and only then let it speak about what we have not
# got. The usual model of a message has two numbers, a start-up cost $\alpha$ and a cost per byte
# $\beta$; work adds a third, $\gamma$ seconds per row:
#
# $$t = \underbrace{2\,(\alpha\,(R-1) + \beta\,\max_r \text{bytes}_r)}_{\text{out and back}}
# + \underbrace{\gamma\,\max_r \text{rows}_r}_{\text{work}}$$
#
# Its assumptions: parcels of one rank go one after another; nothing overlaps; the network between
# any two ranks is the same and never crowded; everybody starts together. The maxima are section 4.

# %%
TIMING = """
def least(f, repeats=40):                                   # the least that others disturbed
    times = []
    for _ in range(repeats):
        dist.barrier(); begin = time.perf_counter(); f(); times.append(time.perf_counter() - begin)
    return min(times)
rows = torch.randn(4096, 256)
w1, w2 = torch.randn(512, 256), torch.randn(256, 512)
found = {"exchange": {}, "layer": {}}
for n in (16, 256, 1024, 2048):                             # rows that a rank sends in all
    x, y = rows[:n], torch.empty(n, 256)
    found["exchange"][n] = least(lambda: dist.all_to_all_single(y, x.contiguous()))
    def whole():
        dist.all_to_all_single(y, x); z = torch.relu(y @ w1.T) @ w2.T; dist.all_to_all_single(y, z)
    found["layer"][n] = least(whole)
found["work"] = {n: least(lambda: torch.relu(rows[:n] @ w1.T) @ w2.T) for n in (1024, 2048)}
if rank == 0: print(json.dumps(found))
"""
measured = {ranks: launch(TIMING, ranks) for ranks in (2, 4)}

# %% [markdown]
# Measurements of two ranks give all three numbers: $\alpha$ and $\beta$ are one line through the
# small and the large message, $\gamma$ is the work with both of them at it. Then the model
# predicts whole layers, which were measured as well: on two ranks, where it should be about right,
# and on four, of which it has seen nothing.

# %%
times, MB = {int(n): s for n, s in measured[2]["exchange"].items()}, 256 * 4 / 1e6  # of one row
beta = max(times[2048] - times[16], 1e-6) / (2032 / 2 * MB)  # half of the rows go abroad
alpha = max(times[16] - beta * 8 * MB, 1e-6)
gamma = measured[2]["work"]["2048"] / 2048
for ranks in (2, 4):
    for n in (256, 1024, 2048):
        abroad = n * (ranks - 1) / ranks
        t = 2 * (alpha * (ranks - 1) + beta * abroad * MB) + gamma * n
        ratio = t / measured[ranks]["layer"][str(n)]
        print(f"{ranks} ranks, {n:4} rows each: predicted / measured = {ratio:.2f}")

# %% [markdown]
# How good is that? These numbers change with the machine and with who else is using it (yours will
# differ), which is also why we took the least of 40 repeats and not their mean. Two ranks come out
# best. Four share two cores here, so each has half a core, and the model, which knows nothing of
# cores, promises too much; when other programs wanted the same two cores we have seen a quarter
# and less. That is an assumption made visible: everybody has a core of their own. A model that is
# right within a factor of two may still say *which term grows*, and that is all we ask of it now.
#
# So: $R$ ranks with two experts and 256 tokens each, $K = 8$. The tokens per rank stay the same as
# $R$ grows, as when you add machines to train on more text at once.


# %%
def simulate(R, skew=0.0, capacity=None, node=None, tokens=256, K=8, seed=0):
    """Give start-up, bytes and work of one layer's time, in units of balanced work."""
    rng, E = np.random.default_rng(seed), 2 * R
    chance = 1 / rng.permutation(np.arange(1, E + 1)) ** skew
    load = rng.multinomial(tokens * K, chance / chance.sum(), size=R)  # [rank, expert]
    if capacity:
        load = load * np.minimum(1, capacity * load.sum() / E / np.maximum(load.sum(0), 1))
    rows = load.reshape(R, R, 2).sum(2)
    parcels = R - 1 if node is None else min(R - 1, R // node + node)  # by way of one rank per node
    bytes_ = max(rows.sum(0).max(), rows.sum(1).max()) * MB
    return np.array([2 * alpha * parcels, 2 * beta * bytes_, gamma * rows.sum(0).max()]) / (
        gamma * tokens * K
    )


# %%
sizes = [2, 4, 8, 16, 32, 64, 128, 256, 512]
cases = {
    "even": {},
    "skew 0.4": {"skew": 0.4},
    "skew 0.4, capacity 1.25": {"skew": 0.4, "capacity": 1.25},
    "even, parcels by node of 8": {"node": 8},
}
runs = {name: (sizes, [simulate(R, **how).sum() for R in sizes]) for name, how in cases.items()}
fig = viz.curves(runs, "ranks (simulated above 4)", "layer time / balanced work alone")
fig.axes[0].set(xscale="log", yscale="log")
fig.axes[0].minorticks_off()
fig.axes[0].set_xticks(sizes, sizes)
fig.axes[0].set_yticks([1, 2, 4, 8], [1, 2, 4, 8])
fig

# %%
for R in (8, 64, 512):
    parts = simulate(R)
    print(f"{R:3} ranks, even: start-up {parts[0]:.2f}, bytes {parts[1]:.2f}, work {parts[2]:.2f} "
          f"(skew 0.4: work {simulate(R, skew=0.4)[2]:.2f})")  # fmt: skip

# %% [markdown]
# Three different things happen as ranks are added. *Bytes* stay put: each rank sends what its own
# tokens need. *Start-up* grows with every rank, because the same bytes are cut into ever smaller
# parcels; that is the bend of the even curve, and why real systems collect parcels for a whole
# node and hand them on inside it, where links are fast. And under *skew* the busiest expert's load
# grows with the number of experts, so the same unevenness hurts more the bigger the machine is.
# Capacity cuts that one.
#
# ## 6. Writing is about bytes
#
# So far a batch was large. When a model *writes*, it adds one token per text and step: **decode**.
# When it reads the prompt, it has all tokens at once: **prefill**. Same weights, same arithmetic
# per token, and entirely different bottlenecks. To multiply a matrix with one vector, every weight
# is fetched from memory for a single multiply-add. An H200 fetches $4.8 \cdot 10^{12}$ bytes a
# second and computes $989 \cdot 10^{12}$ operations; it could do some 400 operations with each
# weight that it fetches, and is asked for two.
#
# How many bytes does a step of a batch read? All common weights, and those experts that *somebody*
# needs. An expert is spared by one token with probability $1 - K/E$, by $T$ independent ones with
# $(1-K/E)^T$. So
#
# $$\mathbb{E}[\text{distinct experts}] = E\left(1 - (1 - K/E)^T\right).$$
#
# By hand: $E = 8$, $K = 2$, two tokens: $8\,(1 - 9/16) = 3.5$. Two tokens together need 3.5
# experts, not 4 and not 2. Is it true of a real router? Take $T$ tokens from different texts, many
# times:


# %%
def distinct(routings, T, draws=300):
    """Count the experts that T random tokens use, as a mean over layers and draws."""
    chosen = torch.stack([r.gates_TE() > 0 for r in routings])  # (layers, tokens, experts)
    picks = torch.randint(chosen.shape[1], (draws, T))
    return chosen[:, picks].any(2).sum(-1).float().mean().item()


Ts = [1, 2, 4, 8, 16, 32]
mixed = mini(torch.cat([text.windows(d, 64, 8).ids_BS for d in domains])).routings
lines = {"derived": (Ts, [cost.distinct_experts(8, 2, T) for T in Ts]),
         "mixed texts": (Ts, [distinct(mixed, T) for T in Ts]),
         "arithmetic only": (Ts, [distinct(routed[3], T) for T in Ts])}  # fmt: skip
fig = viz.curves(lines, "tokens in the batch", "distinct experts of 8, mean over layers")
fig.axes[0].set_xscale("log", base=2)
fig.axes[0].set_xticks(Ts, Ts)
fig

# %% [markdown]
# The formula is for tokens that choose independently and evenly. Mixed texts come close. Tokens of
# one kind agree with each other, so they need fewer experts: what chapter 17 will call
# specialisation is, for a machine that serves one kind of text, a saving.
#
# Now the price of a token. Mixtral 8x7B on one H200, 2,048 tokens of context, as a roofline (the
# longest of compute and memory at full speed, so a bound from below):

# %%
h200, mixtral = cost.DEVICES["H200 SXM"], cost.PRESETS["Mixtral 8x7B"]
batches = [2**n for n in range(12)]
steps = [cost.step(mixtral, h200, "decode", b, 2048) for b in batches]
parts = {
    "decode": [s.seconds for s in steps],
    "of it weights": [s.weight_bytes / h200.bandwidth for s in steps],
    "arithmetic alone": [s.parts["compute"] for s in steps],
}
per_token = {name: (batches, 1e3 * np.array(t) / batches) for name, t in parts.items()}
fig = viz.curves(per_token, "texts in the batch", "ms per token, at least")
fig.axes[0].set(xscale="log", yscale="log")
fits = max(b for b, s in zip(batches, steps, strict=True) if s.fits)
fig.axes[0].axvline(fits, color="#1b1f24", ls=":")
fig.axes[0].text(1.1 * fits, 1, "full")
fig

# %%
for b in (1, 2, 8, 64):
    s = cost.step(mixtral, h200, "decode", b, 2048)
    weights, cache = s.weight_bytes / 1e9, s.cache_bytes / 1e9
    print(f"{b:3} texts: {weights:5.1f} GB of weights, {cache:4.1f} GB of cache, "
          f"{s.seconds / b * 1e3:5.2f} ms per token, {s.bound}-bound")  # fmt: skip
p = cost.step(mixtral, h200, "prefill", 1, 2048)
print(f"prefill of 2,048 tokens: {p.seconds / 2048 * 1e3:5.3f} ms per token, {p.bound}-bound")

# %% [markdown]
# Look at the step from one text to eight. A dense model would read *the same* weights for both,
# and batching would be nearly free. Mixtral reads three times as much for eight texts as for one,
# because eight texts need nearly all experts. **A sparse model is at its best for a single text
# and for very many; in between, its sparsity is of no use to the memory.** From some sixteen texts
# on, all experts are read anyway, and each further text is cheap until the caches (the gap between
# the two upper lines) or the arithmetic take over. The dotted line is where the device is full.
#
# The same on our own little model, timed: a prompt of 128 tokens read at once, and 128 tokens
# written one by one. (A ratio, because seconds depend on your machine.)

# %%
prompt = text.windows("prose", 128, 1).ids_BS
with torch.no_grad():
    mini(prompt)
    begin = time.perf_counter()
    mini(prompt)
    read = time.perf_counter() - begin
    begin = time.perf_counter()
    mini.generate(prompt[:, :1], 128, temperature=0)
    written = time.perf_counter() - begin
print(f"writing 128 tokens took {written / read:.0f} times as long as reading 128")

# %% [markdown]
# A token of our model reads 13 MB of weights (3.2 million, in float32). Many a CPU's cache holds
# that, so much of the ratio is the overhead of 128 small steps rather than bytes. On a large model
# on a GPU both push in the same direction.
#
# ### The calculator
#
# Change anything: the model's width, experts, layers; the device; the batch; how many devices
# share it. **Questions to answer with it.** Which of the presets write for one text on one RTX
# 4090 in int4? How many H100s does Mixtral need before it fits, and is it then compute- or
# memory-bound in decode? What binds DeepSeek-V3's prefill on 32 of them, and how close does the
# network come?

# %%
CostCalculator("Mixtral 8x7B", device="H100 SXM", batch=8, ranks=2)

# %% [markdown]
# ## 7. Experts on the disk
#
# What if it does not fit and there is no second machine? Then most experts can wait on the disk: a
# token needs $K$ of them per layer. A safetensors file is made for that. It says where each tensor
# lies, and the operating system maps the file into memory and fetches only the pages that are
# touched. A model that is cut into several files has an index beside them, a JSON file that says
# which tensor is in which.

# %%
folder = hf.PRETRAINED / "mixtral-mini"
index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
file_of = index["weight_map"]
mapped = {file: safe_open(folder / file, framework="pt") for file in set(file_of.values())}


def fetch(layer, expert):
    """Read the three matrices of one expert from the mapped files."""
    name = f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{{}}.weight"
    names = [name.format(w) for w in ("w1", "w3", "w2")]
    return [mapped[file_of[name]].get_tensor(name) for name in names]


w1, w3, w2 = (w.float() for w in fetch(layer=2, expert=5))
x = torch.randn(192)
ours = w2 @ (F.silu(w1 @ x) * (w3 @ x))
torch.testing.assert_close(ours, mini.moe_layers[2].experts.each()[5](x), rtol=1e-4, atol=1e-5)
size = sum(w.numel() for w in (w1, w3, w2)) * 2
whole = sum((folder / file).stat().st_size for file in mapped)
print(f"one expert: {size / 1e3:.0f} kB of {whole / 1e6:.1f} MB in {len(mapped)} files")

# %% [markdown]
# How long does a fetch take beside one token's work with the expert? The least of fifty, and the
# file has long been in the system's own cache: from a real disk, multiply.


# %%
def least(f, repeats=50):
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        f()
        times.append(time.perf_counter() - begin)
    return min(times)


get = least(lambda: [w.float().sum() for w in fetch(2, 5)])  # to touch each page
use = least(lambda: w2 @ (F.silu(w1 @ x) * (w3 @ x)))
print(f"fetching an expert takes {get / use:.0f} times as long as using it on one token")

# %% [markdown]
# And for a large model the gap is wider: 350 MB of a Mixtral expert come from a good SSD at some 7
# GB a second, 50 milliseconds, for work that a GPU does in a tenth of one. So two things decide:
# how often the expert is *still there*, and whether one can *guess* the next. First the cache.
# Keep the last few experts of each layer (the least recently used one leaves), walk through real
# text token by token, and count:


# %%
def hit_rate(expert_TK, room):
    """Share of the needed experts that were still in a cache of so many."""
    kept, hits = [], 0
    for needed in expert_TK.tolist():
        hits += sum(e in kept for e in needed)
        kept = [e for e in kept if e not in needed] + needed
        kept = kept[-room:]
    return hits / expert_TK.numel()


line = [r.expert_N.view(-1, 2) for r in mini(text.windows("prose", 512, 1).ids_BS).routings]
for room in (2, 4, 6):
    rate = np.mean([hit_rate(expert_TK, room) for expert_TK in line])
    dealt = np.mean([hit_rate(expert_TK[torch.randperm(512)], room) for expert_TK in line])
    print(f"room for {room} of 8: {rate:.0%} hits; the same tokens shuffled: {dealt:.0%}; "
          f"experts drawn evenly: {room / 8:.0%}")  # fmt: skip

# %% [markdown]
# The cache hits far more often than with experts drawn evenly. Is that because neighbouring tokens
# like the same experts? Hardly: in shuffled order the same tokens hit nearly as often. A text of
# *one kind* uses some experts much more than others, and those stay in the cache. It is section 6's
# saving once more: texts of one kind need fewer experts.
#
# Now the guess. A transformer's stream changes slowly: each layer *adds* to it. So the vector that
# enters layer $\ell$'s router is already similar to the one that will enter the next. Ask the
# next layer's router *now* and fetch what it names while this layer is still at work (Eliseev and
# Mazur 2023, [arXiv:2312.17238](https://arxiv.org/abs/2312.17238)):

# %%
inputs = []
hooks = [layer.gate.register_forward_hook(lambda gate, args, out: inputs.append(args[0]))
         for layer in mini.moe_layers]  # fmt: skip
with torch.no_grad():
    routings = mini(text.windows("prose", 256, 2).ids_BS).routings
for hook in hooks:
    hook.remove()
for ahead in (1, 2):
    found = []
    for now in range(6 - ahead):
        guess = mini.moe_layers[now + ahead].gate(inputs[now]).gates_TE() > 0
        right = guess & (routings[now + ahead].gates_TE() > 0)
        found.append(f"{right.sum(1).float().mean() / 2:.0%}")
    print(f"guessed {ahead} ahead, for layer {ahead} to 5:", ", ".join(found))
busy = [(r.gates_TE() > 0).float().mean(0).topk(2).values.mean() for r in routings]
print("always the two busiest, layer 1 to 5:", ", ".join(f"{share:.0%}" for share in busy[1:]))

# %% [markdown]
# Drawn by lot, a guess would be right in 25%; for somebody who always names the two experts that
# this text uses most in a layer, in 40 to 64%. Against that: asked one layer early, the routers of
# layers 2 to 5 are right four times in five or more, with no training at all. Asked two layers
# early, those of layers 3 to 5 are right in two thirds to four fifths, and for layer 5 naming the
# busiest does nearly as well. What enters layer 0 is worth nothing as a guess: there the stream is
# hardly more than the token's embedding, and the layer changes it altogether. A wrong guess costs
# only the bandwidth; the right expert is then fetched late. The other lever is to make experts
# smaller: in int8 they take half the bytes, in int4 a quarter, and fetching *is* bytes. Exercise 6
# has you quantise experts and measure what it does to the model's loss.
#
# ## 8. Fine-tuning: what overfits, what to freeze
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
print(ledger.verdicts("stmoe2022_finetune"))

# %% [markdown]
# **What held: the experts alone are the worst choice.** Updating *only* the experts ends above each
# of the other four, with intervals clear of 0, in held-out text and in training loss. **What we
# cannot tell: that leaving them alone costs nothing.** With experts in one layer of four, updating
# all *but* the experts ends where updating everything does, give or take 0.015 bits a byte: more
# than the margin of 0.01 that the ledger asks for. And in Mixtral's shape, with experts in every
# layer, **it does cost**: all but the experts keep about nine tenths of the gain, less in every
# seed, with an interval beyond the margin. So how much can be left alone depends on how much of the
# model the experts are.
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
    print(f"{subset:22} keeps {share!s:13} of the gain; training loss {loss!s:14} rise {rise}")

# %% [markdown]
# The guess was wrong as it stood: the embedding alone does no better than the others. *Any* single
# part keeps about two thirds, and two parts together nine tenths, also if one of them is the
# experts. So at our size the experts are not special; a part alone cannot do it. The lesson to
# carry off is smaller than the paper's, and still useful: **leaving the experts out costs a tenth
# of the gain or less**, and they are where most of the memory for gradients and moments would go.
#
# **Does anything overfit?** Hardly. A training loss of five nats a token is far from knowing 30 kB
# by heart, and the *rise* from the best to the end is small beside the gain. The embedding alone
# fits its text much better than the experts do, and is no better on new text; that is all one can
# see. (The paper's warning is about far larger models on a few hundred examples. Ours is too small
# to agree or disagree.)
#
# ## 9. Upcycling: what is an old dense model worth?
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
print(ledger.verdicts("upcycling"))
print("upcycled - dense at 120%:", up["upcycled - dense at 120%"])

# %% [markdown]
# **Here it went Komatsuzaki's way, and further.** At 30%, where OLMoE's model from scratch is
# ahead, ours is 0.4 bits a byte behind, and at 120% still nearly a tenth, both clear of 0:
# contradicted. When it *would* catch up we cannot say: three runs that never did are three bounds,
# and a sign test wants six. OLMoE's authors give a reason why theirs came so early: their dense
# model had been trained for very long, and sat where more training hardly helped. Ours is the
# opposite case, stopped while it was still learning fast, and the third curve shows what that
# means: the dense model that simply *goes on* is hardly behind its upcycled copy, by a hundredth of
# a bit. So what the head start is worth here is the dense model's training, nearly nothing else;
# eight experts had not yet had the text to become different. Read the two papers together like
# this: *upcycling is worth what you did not pay for the dense model*. If the dense model is there
# already, take it; if you would have to train it first, that time counts too.
#
# ## 10. What goes wrong: two bugs that run
#
# Neither raises an error, and in both the loss falls. Look for the cause before you open the fold.
#
# **A loss that depends on how the text was dealt.** Two ranks, 30 tokens on one and 10 on the
# other, because texts have different lengths. Each takes the mean of its losses, and the gradients
# are averaged.

# %%
losses = torch.cat([torch.full((30,), 1.0), torch.full((10,), 3.0)])
by_ranks = torch.stack([part.mean() for part in losses.split([30, 10])]).mean()
print(f"one process: {losses.mean():.2f}   two ranks: {by_ranks:.2f}")

# %% [markdown]
# <details>
# <summary>What is it?</summary>
#
# A mean of means. The ten tokens of the second rank count as much as the thirty of the first. The
# same mistake, with accumulation steps in the place of ranks, stood in transformers' trainer until
# October 2024 (pull request 34191), and one with ranks was reported there a few months later
# (issue 37474). The cure is to weigh a rank's mean by its share of the tokens (exercise 3), which
# is what `parallel.train` does.
#
# </details>
#
# **Experts that will not specialise.** Somebody wraps the whole model, experts included, into
# `DistributedDataParallel`. Expert 0 lives on rank 0 and expert 1 on rank 1; both parameters are
# called `experts.w1`, and both have the same shape.

# %%
w_RFD = torch.stack([torch.randn(4, 3), torch.randn(4, 3)])  # rank 0's expert, rank 1's expert
grad_RFD = torch.stack([torch.ones(4, 3), -torch.ones(4, 3)])  # they want opposite things
wrapped = grad_RFD.mean(0, keepdim=True).expand_as(grad_RFD)
print(
    "each expert's own gradient:",
    grad_RFD[:, 0, 0].tolist(),
    " after the wrapper:",
    wrapped[:, 0, 0].tolist(),
)

# %% [markdown]
# <details>
# <summary>What is it?</summary>
#
# The wrapper averages gradients that belong to *different* experts, because they have the same
# name on both ranks. Worse: at the start it also copies rank 0's parameters to all, so that all
# ranks have the same experts. Everything runs; you are training $E/R$ experts in $R$ copies. The
# experts have to be left out of the wrapper. One question finds it: *do two ranks hold different
# experts after a step?*
#
# </details>
#
# ## Exercises
#
# [`exercises/14_many_machines.ipynb`](../exercises/14_many_machines.ipynb): the traffic
# matrix, the way back, one loss for uneven shares, distinct experts, the bytes of a step, and
# experts in int8. Each check tells you *what* you misunderstood. Solutions are in
# [`solutions/`](../solutions/14_many_machines.ipynb).
#
# ## In six lines
#
# 1. Experts stay, tokens travel: counts, rows out, work, rows back; gates never leave home.
# 2. A layer takes as long as its busiest rank. Balance, capacity and limited nodes each fix
#    another part.
# 3. Experts' gradients are not averaged over ranks, everything else's are, weighted by tokens.
# 4. Decode is about bytes: common weights, plus $E(1-(1-K/E)^T)$ experts for $T$ tokens.
# 5. A cache and a guess make experts on a disk usable, because routing is predictable.
# 6. An upcycled model starts where the dense one stopped, exactly.
#
# | in the field | in the code | |
# |---|---|---|
# | expert parallelism | `parallel.shard_experts(model, mesh)` | a mesh dimension "ep" |
# | all-to-all | `dist.all_to_all_single(...)` | sizes are exchanged on the way back |
# | traffic matrix | `TrafficMatrix(...).traffic.pairs_RR` | [from, to] |
# | roofline | `cost.step(model, device, phase, batch, context)` | `.parts`, `.bound` |
# | distinct experts | `cost.distinct_experts(E, K, T)` | expected, at random |
# | upcycling | `hf.upcycle(dense, E, K)` | the same logits |
#
# **Read on:** GShard's section 3 and 5; DeepSeek-V3's section 3 on how to hide the traffic behind
# work; Pope et al. 2022 ([arXiv:2211.05102](https://arxiv.org/abs/2211.05102)) for the arithmetic
# of inference.
