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
# # How is a sparse model served?
#
# Reading a prompt is arithmetic, writing an answer is bytes, so they get machines of their own. A
# sparse model reads few weights for one text and all of them for many: it wants very many texts at
# once, and that is why it is spread over a hundred GPUs. Yesterday's loads say which experts lie
# together, and which are held twice.
#
# **The papers:** DeepSeek-AI 2024, *DeepSeek-V3*
# ([arXiv:2412.19437](https://arxiv.org/abs/2412.19437)), section 3.4, and the overview of its
# service of February 2025 (*open-infra-index*, day 6); Leviathan et al. 2022
# ([arXiv:2211.17192](https://arxiv.org/abs/2211.17192)), for guessing ahead; Eliseev and Mazur 2023
# ([arXiv:2312.17238](https://arxiv.org/abs/2312.17238)), for experts that do not fit.
#
# In this chapter you
#
# - find out what 144 GPUs are for;
# - lay experts out anew, and ask what a second copy adds;
# - count what guessing ahead costs a sparse model;
# - catch a server whose padding works harder than its users' texts.
#
# **You need:** PyTorch and chapter 14.
# **Time:** an hour; the cells run in under a minute on two CPU cores.

# %%
import json
import time

import numpy as np
import torch
from safetensors import safe_open

from moe_lite import Experts, MoELayer, TopKRouter, hf
from moe_lite.course import charts, cost, data, drawings, placement, presets, viz
from moe_lite.course.widgets import CostCalculator, TrafficMatrix

torch.manual_seed(0)
torch.set_num_threads(1)
torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. Two jobs
#
# A server does two things. It reads what you wrote, all tokens at once: **prefill**. And it writes,
# one token for each text and step: **decode**. Same weights, same arithmetic for a token, different
# machines.

# %%
drawings.serving()

# %% [markdown]
# That is **disaggregation**. On one machine a long prompt would hold up everybody's next word, and
# the two want different layouts: DeepSeek reads on 4 nodes, with 9 experts of each layer on a GPU,
# and writes on 18, with 2. What moves from one to the other is the text's cache, and for this model
# that is small (section 9 counts it).
#
# ## 2. Writing is about bytes
#
# To multiply a matrix with one vector, every weight is fetched for a single multiply-add. An H200
# fetches $4.8 \cdot 10^{12}$ bytes a second and computes $989 \cdot 10^{12}$ operations; it could
# do some 400 operations with each weight that it fetches, and is asked for two.
#
# How many bytes does a step of a batch read? All common weights, and those experts that *somebody*
# needs. An expert is spared by one token with probability $1 - K/E$, by $T$ independent ones with
# $(1-K/E)^T$. So
#
# $$\mathbb{E}[\text{distinct experts}] = E\left(1 - (1 - K/E)^T\right).$$
#
# By hand: $E = 16$, $K = 4$, two tokens: $16\,(1 - 9/16) = 7$. Two tokens together need 7
# experts, not 8 and not 4. Is it true of a real router? Take $T$ tokens from different texts, many
# times:


# %%
mini = hf.load_pretrained("mixtral-mini").eval()
text = data.load_corpus(max_bytes=400_000)
domains = ("drama", "code", "prose", "arithmetic")
with torch.no_grad():
    routed = [mini(text.windows(d, 64, 16).ids_BS).routings for d in domains]


# %%
def distinct(routings, T, draws=300):
    """Count the experts that T random tokens use, as a mean over layers and draws."""
    chosen = torch.stack([r.gates_TE() > 0 for r in routings])  # (layers, tokens, experts)
    picks = torch.randint(chosen.shape[1], (draws, T))
    return chosen[:, picks].any(2).sum(-1).float().mean().item()


# %%
Ts = [1, 2, 4, 8, 16, 32]
with torch.no_grad():
    mixed = mini(torch.cat([text.windows(d, 64, 8).ids_BS for d in domains])).routings
E, K = mini.config.num_local_experts, mini.config.num_experts_per_tok
lines = {"derived": (Ts, [cost.distinct_experts(E, K, T) for T in Ts]),
         "mixed texts": (Ts, [distinct(mixed, T) for T in Ts]),
         "arithmetic only": (Ts, [distinct(routed[3], T) for T in Ts])}  # fmt: skip
fig = viz.curves(lines, "tokens in the batch", f"distinct experts of {E}, mean over layers")
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
h200, mixtral = cost.DEVICES["H200 SXM"], presets.PRESETS["Mixtral 8x7B"]
batches = [2**n for n in range(12)]


# %%
def price(shape, device, context):
    steps = [cost.step(shape, device, "decode", b, context) for b in batches]
    parts = {"decode": [s.seconds for s in steps],
             "of it weights": [s.weight_bytes / device.bandwidth for s in steps],
             "of it cache": [s.cache_bytes / device.bandwidth for s in steps],
             "arithmetic alone": [s.parts["compute"] for s in steps]}  # fmt: skip
    lines = {name: (batches, 1e3 * np.array(t) / batches) for name, t in parts.items()}
    fig = viz.curves(lines, "texts in the batch", "ms per token, at least")
    fits = max((b for b, s in zip(batches, steps, strict=True) if s.fits), default=0)
    fig.axes[0].set(xscale="log", yscale="log", title=f"texts that fit: up to {fits}")
    fig.axes[0].axvline(max(fits, 0.8), color="#1b1f24", ls=":")
    return fig


# %%
charts.alive({
    f"{name} on one {machine}, {context:,} tokens": price(
        presets.PRESETS[name], cost.DEVICES[machine], context)
    for name, machine in (("Mixtral 8x7B", "H200 SXM"), ("Mixtral 8x7B", "B200 SXM"),
                          ("OLMoE", "H200 SXM"), ("OLMoE", "RTX 4090"))
    for context in (2048, 65536)
})  # fmt: skip

# %%
for b in (1, 2, 8, 64):
    s = cost.step(mixtral, h200, "decode", b, 2048)
    weights, cache = s.weight_bytes / 1e9, s.cache_bytes / 1e9
    print(f"texts {b:2}: {weights:5.1f} GB of weights, {cache:4.1f} GB of cache, "
          f"{s.seconds / b * 1e3:5.2f} ms per token, {s.bound}-bound")  # fmt: skip
p = cost.step(mixtral, h200, "prefill", 1, 2048)
print(f"prefill of 2,048 tokens: {p.seconds / 2048 * 1e3:5.3f} ms per token, {p.bound}-bound")
# Your turn: from which batch on would decoding be bound by arithmetic? Predict, then change the 64.
print("texts 64:", cost.step(mixtral, h200, "decode", 64, 2048).bound)

# %% [markdown]
# Look at the step from one text to eight. A dense model would read *the same* weights for both, and
# batching would be nearly free. Mixtral reads three times as much for eight texts as for one,
# because eight texts need nearly all experts. **A sparse model is at its best for a single text and
# for very many; in between, each further text brings experts of its own.** From some sixteen texts
# on (with 256 experts, later: question 3), all experts are read anyway, and each further text is
# cheap until the caches or the arithmetic take over.
#
# Our little model, timed: 128 tokens read at once, and 128 written one by one.

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
# A token of our model reads 13 MB of weights, and many a CPU's cache holds that: much of the ratio
# is the overhead of 128 small steps. On a large model on a GPU both push in the same direction.

# %% [markdown]
# ## 3. What 144 GPUs are for
#
# So a sparse model wants very many texts at once. Their *caches* stop it: each GPU has room for so
# many. More GPUs is the way out. Spread the experts over all of them, keep attention with the
# texts (each GPU has its own texts and a copy of the attention's weights:
# **data parallel attention**), and an expert sees the tokens of *all* of them. That is **wide
# expert parallelism**. DeepSeek-V3 in fp8 on H800s, 64 texts of 4,096 tokens on each:

# %%
v3, h800 = presets.PRESETS["DeepSeek-V3"], cost.DEVICES["H800 SXM"]
for ranks in (8, 16, 32, 64, 144, 256):
    c = cost.step(v3, h800, "decode", 64 * ranks, 4096, ranks=ranks, weights="fp8")
    rows = 64 * ranks * v3.top_k / v3.experts
    room = "" if c.fits else " (does not fit)"
    print(f"{ranks:3} GPUs: {rows:3.0f} rows an expert, {c.weight_bytes / 1e9:3.0f} GB of weights, "
          f"work {c.work * 1e3:.1f} ms, exchange {c.exchange * 1e3:4.1f} ms{room}")  # fmt: skip

# %% [markdown]
# On eight GPUs the weights do not leave room for the texts, and a step reads 32 experts of each
# layer for 16 rows each. On 144 it reads two, for hundreds. What grows is the exchange, until it
# levels off (chapter 14): it pays as long as it stays below what it saves, or hides behind work,
# with half of the texts computing while the other half's vectors travel. In turn a step takes 32.0,
# 31.1 and 30.8 ms on 64, 144 and 256, so this table has no best size: more GPUs leave more room
# for texts.
#
# ## 4. Lay out anew, and hold popular ones twice
#
# With so many GPUs everybody waits for the busiest, and a trained model is never quite even. In
# training a loss can push; a server has to take what comes. But it can *move* experts, and *copy*
# them. DeepSeek holds 32 of its 256 experts twice in each layer, and lays the 288 out by
# yesterday's loads (its EPLB). Here our sixteen experts on four devices: in their order, then laid
# out by the first half of a text, without copies and with one more on each device. Measured on the
# second half:


# %%
def busiest(load_E, held, R=4):
    """Give the busiest device's pairs over the mean, if the copies of an expert take turns."""
    work_R = np.zeros(R)
    for load, ranks in zip(load_E, held, strict=True):
        for rank in ranks:
            work_R[rank] += load / len(ranks)
    return work_R.max() / work_R.mean()


once = [[e * 4 // E] for e in range(E)]
load_DLE = np.array(
    [[r.gates_TE().gt(0).view(2, -1, E).sum(1).tolist() for r in layers] for layers in routed]
).astype(float)  # (domain, layer, half, expert)

# %%
print("busiest / mean, mean of six layers; laid out by ...: without copies, with")
for d, name in enumerate(domains):
    then, now = load_DLE[d, :, 0], load_DLE[d, :, 1]
    other = load_DLE[(d + 1) % 4, :, 0]
    said = f"{name:11}in order {np.mean([busiest(now_E, once) for now_E in now]):.2f}"
    for source, loads in {"its own past": then, "another domain": other}.items():
        said += f"; {source}"
        for spare in (0, 4):
            held = [placement.place(load_E, placement.replicas(load_E, spare), 4)
                    for load_E in loads.tolist()]  # fmt: skip
            said += f" {np.mean([busiest(n, h) for n, h in zip(now, held, strict=True)]):.2f}"
    print(said)

# %% [markdown]
# Laid out by what the same kind of text did before, the busiest comes close to the mean, with
# copies or without: here it is the layout that helps. A copy is *needed* where one expert has more
# than a device's share (exercise 3). Here none can: it gets at most one of a token's four pairs,
# and there are four devices. Laid out by *another* kind it helps little, or harms. So servers
# measure all the time and lay out anew every few minutes. Guess, then move **Spare experts per
# rank** and watch the bars:

# %%
TrafficMatrix(ranks=8, experts=64, k=8, tokens=32, skew=1.0)

# %%
for spare in range(5):
    t = TrafficMatrix(ranks=8, experts=64, k=8, skew=1.0, spare=spare).traffic
    print(f"{spare} spare on each rank: busiest / mean {t.busiest:.2f}, dropped {t.dropped}")
# Your turn: with an even load (skew 0), what is a spare worth? Predict, then change the 1.0.
t = TrafficMatrix(ranks=8, experts=64, k=8, skew=1.0, spare=1).traffic
print(f"one spare: {t.busiest:.2f}")

# %% [markdown]
# One spare place beside eight, and nobody waits any more; capacity had to drop a third of all pairs
# for a smaller gain (chapter 14). (Much of it is the layout again: without spares, popular experts
# are neighbours. This batch's own loads made it: the best case.)
#
# ## 5. Guess ahead and check
#
# Decode is about bytes, so make each read serve more tokens. **Speculative decoding**: a small
# model guesses $g$ tokens, the large one checks them in one step of $g + 1$. For a dense model the
# check reads what a single token would. A sparse one needs the experts of all $g + 1$, section 2's
# formula once more: $E\,(1 - (1 - K/E)^{g+1})$. Or fewer, if neighbours are alike? Measured, and
# for the same tokens shuffled:

# %%
with torch.no_grad():
    run = mini(text.windows("prose", 512, 2).ids_BS).routings
used_LTE = torch.stack([r.gates_TE() > 0 for r in run])


def together(used_LTE, T):
    """Count the experts that T tokens in a row use, as a mean over layers and rows."""
    return used_LTE.unfold(1, T, T).any(-1).sum(-1).double().mean().item()


# %%
for T in (2, 4, 8):
    dealt = [together(used_LTE[:, torch.randperm(1024)], T) for _ in range(20)]
    print(f"check {T} tokens: {together(used_LTE, T):.2f} of {E} experts; shuffled "
          f"{np.mean(dealt):.2f}; independent {cost.distinct_experts(E, K, T):.2f}")  # fmt: skip
# Your turn: 8 of 64 experts, 8 tokens. More of the experts in use than of 4 of 16, or fewer?
print(f"{cost.distinct_experts(E, K, 8) / E:.0%} of {E} experts; yours: ...")

# %% [markdown]
# An eighth to a fifth fewer than the formula has. Most of that is one kind of text using some
# experts more; that neighbours agree adds 3 to 4% here. What is it worth for one text, if a guess
# is right four times in five? Tokens for each check over bytes for each check:

# %%
gs, right = list(range(8)), 0.8
lines = {"dense": (gs, [sum(right**i for i in range(g + 1)) for g in gs])}
for name in ("Mixtral 8x7B", "DeepSeek-V3", "gpt-oss-120b"):
    shape = presets.PRESETS[name]
    read = [cost.step(shape, h800, "decode", g + 1, 1).weight_bytes for g in gs]
    lines[name] = (gs, [sum(right**i for i in range(g + 1)) * read[0] / read[g] for g in gs])
viz.curves(lines, "guesses in a check", "speed-up by bytes, guesses free")

# %% [markdown]
# With three guesses a dense model gains threefold, a sparse one alone a sixth at most (one kind of
# text adds a little). Sparse models are served with it all the same: with hundreds of texts all
# experts are read anyway, the caches of attention are what is read most, and *those* a check reads
# once.
#
# ## 6. Experts that do not fit
#
# What if it does not fit and there is no second machine? Then most experts can wait on the disk: a
# token needs $K$ of them per layer. A safetensors file is made for that: it says where each tensor
# lies, and the operating system fetches only the pages that are touched. Beside several files lies
# an index that says which tensor is in which.

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


# %%
w1, w3, w2 = (w.float() for w in fetch(layer=2, expert=5))
x = torch.randn(192)
ours = w2 @ (torch.nn.functional.silu(w1 @ x) * (w3 @ x))
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
use = least(lambda: w2 @ (torch.nn.functional.silu(w1 @ x) * (w3 @ x)))
print(f"fetching an expert takes {get / use:.0f} times as long as using it on one token")

# %% [markdown]
# For a large model the gap is wider: 350 MB of a Mixtral expert come from a good SSD at some 7
# GB a second, 50 milliseconds, for work that a GPU does in a tenth of one. So two things decide:
# how often the expert is *still there*, and whether one can *guess* the next. First the cache.
# Keep the last few experts of each layer (the least recently used one leaves), and count along
# real text:


# %%
def hit_rate(expert_TK, room):
    """Share of the needed experts that were still in a cache of so many."""
    kept, hits = [], 0
    for needed in expert_TK.tolist():
        hits += sum(e in kept for e in needed)
        kept = [e for e in kept if e not in needed] + needed
        kept = kept[-room:]
    return hits / expert_TK.numel()


# %%
line = [r.expert_N.view(-1, K) for r in mini(text.windows("prose", 512, 1).ids_BS).routings]
for room in (4, 8, 12):
    rate = np.mean([hit_rate(expert_TK, room) for expert_TK in line])
    dealt = np.mean([hit_rate(expert_TK[torch.randperm(512)], room) for expert_TK in line])
    print(f"room for {room} of {E}: {rate:.0%} hits; the same tokens shuffled: {dealt:.0%}; "
          f"experts drawn evenly: {room / E:.0%}")  # fmt: skip

# %% [markdown]
# The cache hits far more often than with experts drawn evenly. Is that because neighbouring tokens
# like the same experts? Hardly: in shuffled order the same tokens hit nearly as often. A text of
# *one kind* uses some experts much more than others, and those stay in the cache.
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

# %%
for ahead in (1, 2):
    found = []
    for now in range(6 - ahead):
        guess = mini.moe_layers[now + ahead].gate(inputs[now]).gates_TE() > 0
        right = guess & (routings[now + ahead].gates_TE() > 0)
        found.append(f"{right.sum(1).float().mean() / K:.0%}")
    print(f"guessed {ahead} ahead, for layer {ahead} to 5:", ", ".join(found))
busy = [(r.gates_TE() > 0).float().mean(0).topk(K).values.mean() for r in routings]
print("always the four busiest, layer 1 to 5:", ", ".join(f"{share:.0%}" for share in busy[1:]))

# %% [markdown]
# Drawn at random, a guess would be right in 25%; always naming the four experts that this text
# uses most in a layer, in 38 to 69%. Asked one layer early, the routers of layers 3 to 5 are right
# four times in five, layer 2's two times in three, with no training at all. Two layers early,
# those of 3 to 5 are right in three fifths to seven tenths; for layer 5 naming the busiest does as
# well. What enters layer 0 is worth nothing as a guess: there the stream is hardly more than the
# token's embedding. A wrong guess costs bandwidth; the right expert is fetched late.
# The other lever is to make experts smaller: in int8 they take half the bytes, in int4 a quarter,
# and fetching *is* bytes. Chapter 16 measures what that costs.
#
# **Or let the token travel.** Fetching an expert of 2,880 × 2,880 numbers to use it on one vector
# of 2,880 is the wrong way round. Leave the experts in the computer's ordinary memory and compute
# them *there*, by the processor; only the vector goes. Since 2024 that is how large models run at
# home (llama.cpp's `--n-cpu-moe`, ktransformers), with attention and shared experts on the GPU. A
# token's active experts at 4.25 bits a weight, fetched over PCIe 4 or from an SSD, or computed by a
# processor whose memory gives 80 GB a second:

# %%
for name in ("gpt-oss-120b", "Qwen3-30B-A3B", "DeepSeek-V3"):
    a = presets.PRESETS[name]
    size = a.moe_layers * a.top_k * a.expert * cost.BYTES["fp4"]
    ways = {"PCIe": 32e9, "SSD": 7e9, "there": 80e9}
    said = ", ".join(f"{way} {size / speed * 1e3:.0f} ms" for way, speed in ways.items())
    print(f"{name:14} {size / 1e9:4.1f} GB a token: {said}")

# %% [markdown]
# ## 7. Fewer bytes, fewer launches
#
# **Smaller weights.** gpt-oss is published with its experts in MXFP4, 4.25 bits a weight,
# DeepSeek-V3 in fp8. Experts are nearly all of the bytes and bear rounding well. gpt-oss keeps
# routers and attention in bf16; DeepSeek-V3 keeps routers, norms, embedding and head. Vectors go
# out to the experts in fp8 and come back in bf16, because what comes back is added up.
#
# **CUDA graphs, and what padding is for.** A step of decode is a thousand small kernels, and
# starting one from Python takes longer than running it. A *graph* records them once and starts all
# at once. But it records *shapes*, and in a mixture each expert's number of rows is another in each
# step. So the buffers are padded to the most that can come, with a mask or a count of what is real:
# the capacity of chapter 05 comes back, as a size and not as a limit.
#
# **The calculator.** Change anything, and answer with it: which presets write one text of 2,048
# tokens on an RTX 4090 in fp4? How many H100s does Mixtral need for 8 texts, and is it then
# compute- or memory-bound in decode? What binds DeepSeek-V3's prefill in fp8 on 32 of them, 128
# texts of 4,096 tokens, and what if all 32 were one node (GB200 NVL72)?
#
# <details><summary>Answers</summary>
#
# The eight below 36 billion parameters. Two; memory. The network, 1.12 s; in one node compute, 307
# ms.
#
# </details>

# %%
CostCalculator("Mixtral 8x7B", device="H100 SXM", batch=8, ranks=2)

# %% [markdown]
# ## 8. What goes wrong: the padding works hardest
#
# A server pads its batch to 64 rows, so that one graph fits all. Forty users are there, the other
# 24 rows are zeros, and nobody reads what comes out of them. Its monitor says that the model is
# badly balanced. It was less so on the bench:

# %%
torch.manual_seed(1)
layer = MoELayer(TopKRouter(64, num_experts=16, top_k=2), Experts(16, 64, 32))
users = torch.randn(40, 64)
padded = torch.cat([users, torch.zeros(24, 64)])
for name, x_TD in (("the users alone", users), ("padded", padded)):
    load_E = layer.gate(x_TD).load_E()
    print(f"{name:16} the busiest expert has {int(load_E.max()):2} pairs, "
          f"{load_E.max() / load_E.mean():.1f} times the mean")  # fmt: skip

# %% [markdown]
# <details>
# <summary>What is it?</summary>
#
# The padding is routed. A zero vector gives every expert the same score, ties are broken the same
# way each time, and all 24 go to the *same* two experts. The devices that have them work more than
# any other, with a capacity they push real tokens out, and a balance statistic that counts them
# lies. The fix is to tell the router which rows are real and give the others to nobody (`-1` in
# most kernels). It has bitten training too: padding tokens have been counted in balancing losses.
#
# </details>
#
# ## 9. Seven questions with numbers
#
# Paper and pencil first, then the answer. (A test works each number out with `cost`.)
#
# **1.** gpt-oss-120b has 116.8 billion parameters, 114.7 of them in experts, which come in MXFP4
# (17 bytes for 32 weights), the rest in bf16. Does it fit one H100 of 80 GB?
#
# <details><summary>Answer</summary>
#
# $114.7 \cdot 17/32 + 2.17 \cdot 2 =$ 65.2 GB. It does, with some 15 GB for caches. In bf16 it
# would take 234.
#
# </details>
#
# **2.** How many bytes does one text of 131,072 tokens keep in DeepSeek-V3 (61 layers, a latent of
# 576 numbers), in Mixtral 8x7B (32 layers, 8 heads of 128, keys and values) and in gpt-oss-120b (36
# layers, 8 heads of 64, every second one with a window of 128)? All in bf16.
#
# <details><summary>Answer</summary>
#
# 9.2 GB, 17.2 GB and 4.8 GB. For a token that is 70,272, 131,072 and, without the window, 73,728
# bytes; the window spares gpt-oss half of it.
#
# </details>
#
# **3.** Sixteen texts are written at once. How many of DeepSeek-V3's 256 experts of a layer does a
# step read, and how many of Mixtral's 8?
#
# <details><summary>Answer</summary>
#
# $256\,(1 - (1 - 8/256)^{16}) =$ 102 and $8\,(1 - (3/4)^{16}) =$ 7.9. Mixtral's step is that of a
# dense model by then; DeepSeek-V3's is not half of one.
#
# </details>
#
# **4.** On how many rows must an H100 use an expert's weights before it is worth reading them, in
# bf16 (989 TFLOP/s, 3.35 TB/s), and in fp8 at twice the speed?
#
# <details><summary>Answer</summary>
#
# $2m$ operations for each weight of 2 bytes: $m = 989/3.35 =$ 295. In fp8 half the bytes and twice
# the operations: 295 again. DeepSeek's decode at 144 GPUs with 88 texts each gives an expert $88
# \cdot 144 \cdot 8/256 =$ 396 rows. That is what 144 GPUs are *for*: on 8 of them, with the same
# texts each, it would be 22.
#
# </details>
#
# **5.** Those 396 rows go through tiles of 128. What share of the arithmetic is useful? And for 16
# rows?
#
# <details><summary>Answer</summary>
#
# Four tiles hold 512 rows: 77%. Sixteen rows fill an eighth of one tile: 12.5%.
#
# </details>
#
# **6.** A small model guesses three tokens ahead and the large one checks all four at once. It
# guesses right four times in five. How many tokens does a check give on average, and how many more
# bytes of weights does it read than a step for one token: in Mixtral 8x7B, in DeepSeek-V3? (One
# text alone.)
#
# <details><summary>Answer</summary>
#
# $1 + 0.8 + 0.8^2 + 0.8^3 =$ 2.95 tokens. Four tokens need $8\,(1 - (3/4)^4) =$ 5.5 experts of
# Mixtral, 2.7 times as many as one; of DeepSeek-V3 30.5, 3.8 times. With what all tokens share,
# bytes grow 2.53 and 2.57 times. A dense model would read the same bytes for four as for one. So
# speculation gains about a sixth here, and more only in a batch that reads all experts anyway.
#
# </details>
#
# **7.** At home: the active experts of gpt-oss-120b are 1.90 GB for a token in MXFP4. How long does
# a token take if they are fetched over PCIe (32 GB/s), from an SSD (7 GB/s), or computed where they
# lie, by a processor whose memory gives 80 GB/s?
#
# <details><summary>Answer</summary>
#
# 59 ms, 272 ms, and 24 ms: let the token travel.
#
# </details>
#
# ## Exercises
#
# [`exercises/15_exercises.ipynb`](../exercises/15_exercises.ipynb): distinct experts, the bytes of
# a step, popular experts twice, and what a guess costs. Each check tells you *what* you
# misunderstood. Solutions are in [`solutions/`](../solutions/15_solutions.ipynb).
#
# [Glossary](../docs/glossary.md).
#
# ## In six lines
#
# 1. Decode is about bytes: common weights, plus $E(1-(1-K/E)^T)$ experts for $T$ tokens.
# 2. A sparse model is at its best for one text and for very many. Wide expert parallelism makes
#    many.
# 3. Reading and writing want different layouts, so they get different machines; the cache moves.
# 4. Lay experts out by yesterday's loads, and copy one that more than fills a device. It helps as
#    far as today is like yesterday.
# 5. A check of $g$ guesses reads the experts of $g + 1$ tokens. Alone, sparse models gain little.
# 6. If experts do not fit, send the token to them; padding must be sent nowhere.
#
# | in the field | in the code | |
# |---|---|---|
# | distinct experts | `cost.distinct_experts(E, K, T)` | expected, at random |
# | roofline | `cost.step(model, device, phase, batch, context)` | `.parts`, `.bound` |
# | redundant experts, EPLB | `placement.replicas`, `placement.place` | heaviest copy first |
# | traffic with copies | `TrafficMatrix(..., spare=1)` | pairs take turns |
# | MXFP4 | `weights="fp4"` | 4.25 bits with its scale |
#
# **Read on:** SGLang's report on serving it with 96 GPUs
# (lmsys.org/blog/2025-05-05-large-scale-ep); Pope et al. 2022
# ([arXiv:2211.05102](https://arxiv.org/abs/2211.05102)) for the arithmetic of inference.
