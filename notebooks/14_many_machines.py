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
# Put some experts on each machine, everything else on all of them, and let the tokens travel: out
# and back, in each layer. The result is the same up to rounding. What it costs is decided by
# the busiest machine and by the slower of two networks, the one between nodes.
#
# **The papers:** Lepikhin et al. 2020, *GShard*
# ([arXiv:2006.16668](https://arxiv.org/abs/2006.16668)), which put 2,048 experts on 2,048 devices;
# DeepSeek-AI 2024, *DeepSeek-V3* ([arXiv:2412.19437](https://arxiv.org/abs/2412.19437)), for
# limited nodes and for what is published of its deployment.
#
# In this chapter you
#
# - count what 28 published models need, from their configs;
# - send tokens to another machine's experts by hand, then with two real processes, and see that two
#   ranks equal one;
# - read a traffic matrix, and find out whom everybody waits for;
# - write down what an exchange over two levels of network takes, and hold it against what was
#   published.
#
# **You need:** PyTorch and chapter 00 or 10. The "machines" are processes here.
# **Time:** an hour; the cells run in half a minute on two CPU cores.

# %%
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from moe_lite import Experts, Mixtral, MixtralConfig, MoELayer, TopKRouter, hf, train
from moe_lite.course import charts, cost, data, drawings, ledger, presets, viz
from moe_lite.course.widgets import TrafficMatrix

# %%
torch.manual_seed(0)
torch.set_num_threads(1)
torch.set_printoptions(precision=3, sci_mode=False)
drawings.many_machines()

# %% [markdown]
# ## 1. What does not fit
#
# A mixture of experts is cheap in *work* and expensive in *memory*: a token visits $K$ experts of
# each layer, and all $E$ have to be somewhere. How much is that? A config is enough to say. An
# expert of three matrices has $3\,D\,F$ parameters, a layer $E$ of them, and the rest is attention,
# embeddings and small change. `cost.count_parameters` adds it up, exactly:

# %%
print(f"{'':18}{'total':>18}{'published':>16}{'active':>8}{'bf16, GB':>10}  80-GB devices to train")
for name, shape in presets.PRESETS.items():
    count, total = cost.count_parameters(shape), presets.PUBLISHED[name].total
    held, devices = 2 * count.total / 1e9, -(-16 * count.total // int(80e9))
    row = f"{name:18}{count.total:18,}{total:>16}{count.active / 1e9:7.1f}B"
    print(f"{row}{held:10,.0f}{devices:16}")

# %% [markdown]
# Every total agrees with the published one to the digits that were published, once the same things
# are counted: Scout's 109 has an encoder for pictures, GLM-4.5's 355 and DeepSeek-V3.2's 685 a
# layer that predicts one token more, and GLM-4.5 and its Air leave out the embeddings. The same
# counts, to the last parameter, come out of transformers' models of those that it knows; a test
# holds that. (*Active* counts the whole input embedding, as Mistral does; many leave it out, and
# DeepSeek's 37 billion is one of them.)
#
# Two columns to remember. In bf16 a weight takes two bytes, so Mixtral's 46.7 billion take 93 GB:
# more than the 80 GB of what most people mean by "a GPU". And *training* takes sixteen bytes for
# each parameter (weight and gradient in bf16; in float32 another copy of the weight and Adam's two
# moments), before a single activation is stored. In that form DeepSeek-V3 needs 135 such devices
# before the first token, whatever their speed.
#
# So the model has to be cut, in four ways that large runs mix:
#
# | cut | what each device holds | what travels, for each layer |
# |---|---|---|
# | **pipeline** (PP) | some of the layers | activations, once, to the next device |
# | **sharded data** (FSDP, ZeRO) | a slice of every weight | the *weights*, gathered before use |
# | **tensor** (TP) | a slice of every matrix | all tokens' partial results, summed by all |
# | **expert** (EP) | some of the experts, all else | the tokens, to where their experts are |
#
# The first three work for a dense layer too. Only the last uses that a layer of experts comes cut
# already: a token needs $K$ pieces and no others. DeepSeek-V3 was trained with 16-way PP, 64-way EP
# over 8 nodes, ZeRO-1 and no TP (its section 3.2). This chapter is about **expert parallelism**.
#
# ## 2. All-to-all by hand
#
# Two machines, which the field calls **ranks** 0 and 1. Four experts: 0 and 1 live on rank 0, 2 and
# 3 on rank 1. Each rank has its own three tokens and a copy of the router, and $K = 2$. We play
# both ranks in one process first.

# %%
layer = MoELayer(TopKRouter(8, num_experts=4, top_k=2), Experts(4, 8, 16))
x_RTD = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(7))
routings = [layer.gate(x_TD) for x_TD in x_RTD]
for rank, routing in enumerate(routings):
    print(f"rank {rank}: token", routing.token_N.tolist(), "-> expert", routing.expert_N.tolist())

# %% [markdown]
# **Pack.** Each rank sorts its six pairs by expert. Because experts lie in order, that also sorts
# them by *rank*: first all rows for rank 0, then all for rank 1.

# %%
orders = [routing.expert_N.argsort(stable=True) for routing in routings]
experts = [routing.expert_N[order] for routing, order in zip(routings, orders, strict=True)]
parcels = [x[r.token_N[o]] for x, r, o in zip(x_RTD, routings, orders, strict=True)]
sent = [[int((e // 2 == to).sum()) for to in (0, 1)] for e in experts]  # experts / 2 = rank
print("pairs from rank to rank:", sent)
# Your turn: if experts 0 and 2 lived on rank 0, which pairs would travel? Predict, then change.
home_E = torch.tensor([0, 0, 1, 1])
print("then:", [[int((home_E[e] == to).sum()) for to in (0, 1)] for e in experts])

# %% [markdown]
# That little matrix is the **traffic matrix**: row = sender, column = receiver. Each rank knows its
# own row. It has to learn its *column* before anything can arrive, to make room. So there are two
# exchanges: first the counts, a few integers, then the vectors.
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
# What travelled? Counts, each row's vector and its expert's number, and the answers; never a weight
# of an expert. Gates and logits stayed at home. Training sends the rows' gradients the same two
# ways back, which doubles this, and two messages that do not grow with the tokens: a balancing loss
# over the *whole* batch adds up $2E$ numbers of each layer over the ranks (the library's default;
# chapter 06 says why), and what is on every rank, the router too, has its gradient averaged.
#
# ## 3. For real
#
# Now with two processes that share no memory. PyTorch has the exchange as `all_to_all_single`; on
# GPUs NCCL carries it, here **gloo** does, over local sockets. The helper starts one Python per
# rank, lets them find each other through a file, and collects what rank 0 prints.

# %%
PRELUDE = """
import json, sys, time, torch, torch.distributed as dist
torch.set_num_threads(1)
rank, ranks, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", store=dist.FileStore(file, ranks), rank=rank, world_size=ranks)
"""
pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
             env={**os.environ, "PYTHONPATH": str(ledger.ROOT)})  # fmt: skip


# %%
def launch(program, ranks):
    """Run a program on so many ranks; give what rank 0 wrote as JSON."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        script, meet = Path(folder, "program.py"), str(Path(folder, "meet"))
        script.write_text(PRELUDE + program + "\ndist.destroy_process_group()", encoding="utf-8")
        command = [[sys.executable, str(script), str(r), str(ranks), meet] for r in range(ranks)]
        jobs = [subprocess.Popen(words, **pipes) for words in command]
        try:
            outputs = [job.communicate() for job in jobs]
        finally:
            for job in jobs:
                job.kill()  # none goes on when you press stop
    assert not any(job.returncode for job in jobs), outputs
    return json.loads(outputs[0][0])


# %% [markdown]
# The program is section 2 with the two lists replaced by two processes; you know every line.

# %%
OUT = """
from moe_lite import Experts, MoELayer, TopKRouter
torch.manual_seed(3)
layer, x_TD = MoELayer(TopKRouter(8, 4, 2), Experts(4, 8, 16)), torch.randn(6, 8)
mine, run = x_TD.chunk(ranks)[rank], layer.experts.each()    # it uses only two of these four
routing = layer.gate(mine)
order = routing.expert_N.argsort(stable=True)
e_R, x_RD = routing.expert_N[order], mine[routing.token_N[order]]
send, receive = torch.bincount(e_R // (4 // ranks), minlength=ranks), torch.empty(ranks).long()
dist.all_to_all_single(receive, send)                        # first the counts
out, into = send.tolist(), receive.tolist()
e_M, x_MD = e_R.new_empty(sum(into)), x_RD.new_empty(sum(into), 8)
dist.all_to_all_single(e_M, e_R, into, out)                  # then the rows
dist.all_to_all_single(x_MD, x_RD, into, out)
"""

# %%
BACK = """
y_MD = torch.stack([run[e](x) for e, x in zip(e_M.tolist(), x_MD)])
y_RD = torch.empty_like(x_RD)
dist.all_to_all_single(y_RD, y_MD, out, into)                # and back, roles exchanged
y_RD = y_RD * routing.gate_N[order, None]
y_TD = torch.zeros_like(mine).index_add(0, routing.token_N[order], y_RD)
error = (y_TD - layer(mine)[0]).abs().max().item()
if rank == 0: print(json.dumps({"sends": out, "receives": into, "largest error": error}))
"""
print(launch(OUT + BACK, ranks=2))

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

# %%
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
# with its sixteen experts spread over four imaginary ranks. Each rank has a different domain, as
# happens with badly shuffled data:

# %%
mini = hf.load_pretrained("mixtral-mini").eval()
text = data.load_corpus(max_bytes=400_000)
domains = ("drama", "code", "prose", "arithmetic")
with torch.no_grad():
    routed = [mini(text.windows(d, 64, 16).ids_BS).routings for d in domains]
pairs = np.array([[r.load_E().view(4, -1).sum(1).tolist() for r in layers] for layers in routed])

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
# everybody waits for. Layer 3's busiest rank has 1.18 times the mean: a seventh of the hardware's
# time is gone there, and in layer 0, with 1.28, more than a fifth.
#
# Three remedies, and what each one costs:
#
# - **Balance** (chapter 06): a loss or a bias that balances the load. Note over *which* batch: what
#   is even over all ranks' tokens need not be even over one's.
# - **Capacity** (chapter 05): an expert takes at most so many; the rest is dropped. That puts a
#   lid on the maximum, by throwing work away.
# - **Limited nodes**: let a token choose only among the experts of a few ranks (or nodes: machines
#   with several devices each). That does not even the work, it cuts the *bytes* between them,
#   because a token's vector need only travel once to each one that it visits. DeepSeek-V3 sends a
#   token to at most 4 nodes; section 5 counts what that is worth.
#
# Try all three. **Before you touch it:** if skew goes up, what gets worse first, the busiest bar
# or the links, and which of the remedies acts on it?

# %%
traffic = TrafficMatrix(ranks=8, experts=64, k=8, tokens=32, skew=0.5)
traffic

# %% [markdown]
# **Try it.** At skew 0 the columns are even up to chance: take 2 tokens per rank and then 64, and
# watch chance matter less. At skew 1, put the capacity factor at 1.25: the busiest rank falls to a
# third of what it was, and a third of all pairs is dropped for it. (Busiest / mean only halves: the
# mean falls too. Section 5 divides by what was offered.) Then take capacity off and let a token
# visit 2 ranks: the *copies* halve, and the work is more uneven than before, because a popular rank
# now gets whole tokens. The same numbers in Python:

# %%
for change in ({}, {"skew": 1.0}, {"skew": 1.0, "capacity": 1.25}, {"skew": 1.0, "visit": 2}):
    t = TrafficMatrix(ranks=8, experts=64, k=8, **change).traffic
    print(f"{change!s:33} busiest / mean {t.busiest:.2f}, pairs abroad {t.away(t.pairs_RR):4}, "
          f"copies abroad {t.away(t.copies_RR):4}, dropped {t.dropped}")  # fmt: skip

# %% [markdown]
# ## 5. Hundreds of ranks, on paper
#
# We have no 512 machines. But we can write down what an exchange costs, **hold it against
# what was published**, and only then let it speak about what we have not got. A message costs a
# start-up $\alpha$, and its bytes over a speed $\beta$. Here, with gloo between two processes:

# %%
TIMING = """
def least(f, repeats=40):                                   # the least that others disturbed
    times = []
    for _ in range(repeats):
        dist.barrier(); begin = time.perf_counter(); f(); times.append(time.perf_counter() - begin)
    return min(times)
rows, found = torch.randn(2048, 256), {}
for n in (16, 2048):                                        # rows that a rank sends in all
    x, y = rows[:n], torch.empty(n, 256)
    found[n] = least(lambda: dist.all_to_all_single(y, x.contiguous()))
if rank == 0: print(json.dumps(found))
"""

# %%
few, many = launch(TIMING, 2).values()
row = 256 * 4 / 2  # bytes that leave: half of the rows go abroad
beta = 2032 * row / max(many - few, 1e-9)
print(f"gloo: start-up {(few - 16 * row / beta) * 1e6:.0f} µs, {beta / 1e9:.2f} GB/s")

# %% [markdown]
# That is the mechanism, on *this* machine. It says nothing about a cluster, and not only for its
# speed: a cluster has **two levels**. Eight GPUs in a node are joined by NVLink, 160 to 450 GB/s
# each; between nodes each has a network card of 50. So what counts is how often a token's vector
# crosses each. Two ways to send it:
#
# - *straight*: one copy for each of its $K$ experts, to whichever rank has it. With many nodes
#   nearly all $K$ copies cross the slow level.
# - *by node*: one copy to each **node** that it visits; there a neighbour hands it on to each rank
#   that needs it, on the fast level. If, besides, a token may visit at most $M = 4$ nodes, no more
#   than four copies cross, whatever $K$ is.
#
# **Guess first:** DeepSeek-V3 has $K = 8$. On 8 nodes, how many copies of a token leave its node,
# in each of the two ways?

# %%
v3, h800 = presets.PRESETS["DeepSeek-V3"], cost.DEVICES["H800 SXM"]
for ranks in (8, 32, 64, 256):
    ways = {"straight": False, "by node, at most 4": True}
    for way, by_node in ways.items():
        c = cost.copies(v3, ranks, h800.node, by_node)
        print(f"{ranks:3} ranks, {way:19} {c.inside:4.1f} inside a node, {c.between:4.1f} between")

# %% [markdown]
# Is a start-up and two speeds enough of a model? DeepEP, the library that DeepSeek uses, publishes
# what its exchanges take on H800s: straight (its low-latency kernels, 128 tokens, for decode) and
# by node (its normal kernels, 4,096 tokens, for prefill and training). Vectors go out in fp8 and
# come back in bf16.


# %%
def exchange(ranks, tokens, number, by_node):
    """Give the seconds of one exchange in one layer, `number` bytes for each number sent."""
    away = cost.copies(v3, ranks, h800.node, by_node)
    size = tokens * v3.width * number / cost.REACHED["network"]  # nobody reaches the data sheet
    return h800.startup + max(away.inside * size / h800.link, away.between * size / h800.between)


published = {8: (77, 114), 16: (118, 195), 32: (155, 273), 64: (173, 314), 128: (192, 369),
             256: (194, 360)}  # µs; github.com/deepseek-ai/DeepEP, docs/legacy.md; # fmt: skip
for ranks, (out, back) in published.items():
    ours = [exchange(ranks, 128, n, by_node=False) * 1e6 for n in (1 + 4 / 128, 2)]
    print(f"{ranks:3} ranks: out {ours[0]:3.0f} µs (DeepEP {out}), back {ours[1]:3.0f} ({back})")

# %% [markdown]
# Within a tenth, from 8 to 256 ranks (a test holds the twelve numbers, and the eight of the normal
# kernels within 15%). The start-up, 25 µs, is fitted to these rows; the speeds are not: they are
# the data sheet's, times the 88% that DeepEP reports for its normal kernels. Look at the shape:
# from 64 ranks on the time is nearly **flat**. More ranks cut the same bytes into more parcels, and
# good kernels start them all at once; what grows at first is the share that has to leave the node.
#
# Now both ways with as many tokens as a training step has:

# %%
sizes = [8, 16, 32, 64, 128, 256, 512]
runs = {
    way: (sizes, [exchange(R, 4096, 2, by_node) * 1e3 for R in sizes])
    for way, by_node in ways.items()
}
fig = viz.curves(runs, "ranks, 8 in a node", "ms to bring 4,096 tokens back, one layer")
fig.axes[0].set(xscale="log", ylim=(0, None))
fig.axes[0].minorticks_off()
fig.axes[0].set_xticks(sizes, sizes)
charts.alive(fig)

# %% [markdown]
# At 512 ranks the limit more than halves the time. It is a limit on *bytes*: "to effectively
# leverage the different bandwidths of IB and NVLink, we limit each token to be dispatched to at
# most 4 nodes, thereby reducing IB traffic" (DeepSeek-V3, section 3.2.2). In decode, where a batch
# is small, the extra hop is not worth it, and vectors go straight. (In code: [appendix
# 09a](09a_since_2024.ipynb), section 6. DeepSeek-V4 has no limit.)
#
# **What binds a real deployment?** Prefill of DeepSeek-V3 on 4 nodes, decode on 18. *In turn* is a
# step in which work and exchanges do not overlap, at the speeds that good kernels were published to
# reach:

# %%
sglang = "\n  SGLang 2.61 s; with perfect balance simulated 2.21 s"
for what, batch, context, ranks, took in (
    ("prefill", 4 * 32, 4096, 32, f"2.09 s (DeepSeek's profile){sglang}"),
    ("decode", 88 * 144, 4989, 144, "45 to 50 ms (DeepSeek's service)"),
):
    c = cost.step(v3, h800, what, batch, context, ranks=ranks, weights="fp8")
    parts = ", ".join(f"{part} {t * 1e3:.3g}" for part, t in c.parts.items())
    print(
        f"{what}: {parts} ms\n  in turn {c.work * 1e3:.3g} + {c.exchange * 1e3:.3g} ms; took {took}"
    )

# %% [markdown]
# (Sources: DeepSeek's *open-infra-index*, day 6, and its published profile as converted in
# [SGLang's report](https://lmsys.org/blog/2025-05-05-large-scale-ep).) In both the network takes as
# long as everything else: the ratio "of approximately 1:1" that made DeepSeek write a pipeline to
# hide one behind the other (section 3.2.1). Two things follow.
#
# - **Two micro-batches.** While one computes its attention, the other's vectors travel. Perfect
#   hiding would halve the step. Prefill gets a part of it where experts are even: the profile and
#   the simulation take less than *in turn*, more than the longer of the two; SGLang's own placement
#   takes no less.
# - **A faster second level changes the answer.** On GB200 NVL72 all 72 GPUs share the fast level,
#   and the same decode waits for memory. A model with one level, 450 GB/s to any rank, names the
#   wrong bottleneck: it is off by nine.
#
# What the network model leaves out is section 4: everybody waits for the busiest. And the more
# experts there are, the further the busiest is from the mean:


# %%
def busiest(R, skew=0.0, capacity=None, tokens=256, K=8, seed=0):
    """Give the work of the busiest of R ranks over the mean; two experts on each rank."""
    rng, E = np.random.default_rng(seed), 2 * R
    chance = 1 / rng.permutation(np.arange(1, E + 1)) ** skew
    load = rng.multinomial(tokens * K, chance / chance.sum(), size=R).sum(0)
    if capacity:
        load = np.minimum(load, capacity * load.mean())
    work = load.reshape(R, 2).sum(1)
    return work.max() / (tokens * K)


for R in (8, 64, 512):
    print(f"{R:3} ranks: even {busiest(R):.2f}, skew 0.4 {busiest(R, 0.4):.2f}, "
          f"with capacity 1.25 {busiest(R, 0.4, 1.25):.2f}")  # fmt: skip

# %%
# Your turn: four times as many tokens. Does the even load come nearer to 1? And the skewed one?
tokens = 256
print(f"even {busiest(512, tokens=tokens):.2f}, skew 0.4 {busiest(512, 0.4, tokens=tokens):.2f}")

# %% [markdown]
# The same unevenness hurts more the bigger the machine is. Capacity puts a lid on it, by dropping;
# chapter 15's way is to hold a popular expert twice.
#
# ## 6. What goes wrong: two bugs that run
#
# Neither raises an error, and in both the loss falls. Look for the cause before the answer.
#
# **A loss that depends on how the text was shared out.** Two ranks, 30 tokens on one and 10 on the
# other, because texts have different lengths. Each takes the mean of its losses, and the gradients
# are averaged.

# %%
losses = torch.cat([torch.full((30,), 1.0), torch.full((10,), 3.0)])
by_ranks = torch.stack([part.mean() for part in losses.split([30, 10])]).mean()
print(f"one process: {losses.mean():.2f}   two ranks: {by_ranks:.2f}")
# Your turn: 30 and 10 are uneven. At which shares of the 40 do the two agree? Predict, then change.

# %% [markdown]
# <details>
# <summary>What is it?</summary>
#
# A mean of means. The ten tokens of the second rank count as much as the thirty of the first. The
# same mistake, with accumulation steps instead of ranks, stood in transformers' trainer until
# October 2024 (pull request 34191), and one with ranks was reported there a few months later
# (issue 37474). The cure is to multiply a rank's mean by $R$ times its share of the tokens
# (exercise 3), which is what `parallel.train` does.
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
# ## 7. Three questions with numbers
#
# Paper and pencil first. (A test works each out with `cost`.)
#
# **1.** A token chooses 8 of 256 experts on 32 nodes of eight GPUs, one expert on each GPU. How
# many copies of it leave its node: sent straight; once to each node; once to each node, at most
# four nodes?
#
# <details><summary>Answer</summary>
#
# Straight $8 \cdot 31/32 =$ 7.75. The eight experts differ, so a node of eight is missed with
# $\frac{248 \cdots 241}{256 \cdots 249} = 0.773$: by node $32\,(1 - 0.773) \cdot 31/32 =$ 7.04;
# with the limit, if the four are any four, $4\,(1 - \frac{24 \cdots 17}{32 \cdots 25}) \cdot 31/32
# =$ 3.60 (by DeepSeek's own choice of the four, exercise 4, 3.87). With so many nodes the hop alone
# saves a tenth; the limit saves half.
#
# </details>
#
# **2.** What does DeepSeek-V3 send for a token in a forward pass at 64 GPUs, out in fp8 with scales
# and back in bf16, by node with its limit, over the slow level? And in all if each expert got a
# copy of its own, both ways in bf16?
#
# <details><summary>Answer</summary>
#
# $58$ layers $\cdot\, 3.18$ copies $\cdot\, 7168 \cdot (1.03 + 2)$ bytes $=$ 4.00 MB, against 13.1
# MB.
#
# </details>
#
# **3.** The same decode, 88 texts a GPU, on 144 H800s and on the 72 GPUs of a GB200 NVL72. What
# binds each?
#
# <details><summary>Answer</summary>
#
# On H800s compute 10.8, memory 15.4, network 19.7 ms: the network. On the NVL72, where all 72 are
# one node, 4.3, 7.0 and 3.9 ms: memory. Everything got faster, the memory's part by two and the
# network's by five: that moved the bottleneck.
#
# </details>
#
# ## Exercises
#
# [`exercises/14_exercises.ipynb`](../exercises/14_exercises.ipynb): the traffic matrix, the
# way back, one loss for uneven shares, and copies under a limit on nodes. Each check tells you
# *what* you misunderstood. Solutions are in [`solutions/`](../solutions/14_solutions.ipynb).
#
# [Glossary](../docs/glossary.md).
#
# ## In five lines
#
# 1. Experts stay, tokens travel: counts, rows out, work, rows back; gates never leave home.
# 2. Two ranks are not an approximation of one: the losses are the same.
# 3. A layer takes as long as its busiest rank, and an exchange as long as its slower level.
# 4. Bytes inside a node, bytes between nodes: a limit on nodes cuts the second, and a small batch
#    sends straight.
# 5. Experts' gradients are not averaged over ranks, everything else's are, weighted by tokens.
#
# | in the field | in the code | |
# |---|---|---|
# | expert parallelism | `parallel.shard_experts(model, mesh)` | a mesh dimension "ep" |
# | all-to-all | `dist.all_to_all_single(...)` | sizes are exchanged on the way back |
# | traffic matrix | `TrafficMatrix(...).traffic.pairs_RR` | [from, to] |
# | two levels | `cost.copies(model, ranks, node, by_node)` | inside a node, between |
# | a real step | `cost.step(...).in_turn` | `.work` and `.exchange` |
#
# **Read on:** GShard's sections 3 and 5; DeepSeek-V3's section 3 on how to hide the traffic behind
# work; DeepEP's page.
