"""Train many small Mixtrals at once: one model whose every weight has an axis of runs in front.

A model of some million parameters leaves a GPU idle between its thousand small kernels. Twenty of
them, differing in seed and rates, take hardly more kernels than one: products become batched
products, and the optimizer works on one buffer (N, P). So a sweep with five seeds for each value
is one training, and its runs are paired: the same seed has the same first weights and batches.

Every run is what :class:`moe_lite.train.Trainer` makes of its settings, up to rounding
(tests/test_stacked.py holds the two together). All experts compute all tokens and the gates of the
unchosen are 0: more arithmetic, the same function.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_lite.config import MixtralConfig, TrainConfig
from moe_lite.course.leads import loss_by_copying
from moe_lite.evaluation import Corpus
from moe_lite.model import Mixtral, rotary


@dataclass(frozen=True)
class Run:
    """Say in what one run differs from the others of its stack.

    Args: aux_coef, z_coef, lr: instead of the stack's. gate_scale: a factor on the gates.
          first: a factor on all first weights. bias_step: of a bias on the choice, moved against
          the load after each step (Wang et al. 2024), 0 for none. quantile: that bias is set to
          what would have balanced the batch (moe_lite.course.recent). sigmoid: scores by a sigmoid.
          raw: gates are not divided by their sum. by_text: the balancing loss counts within each
          text, not over the batch. mass: it counts what the gates weigh, and not the choices.
          corpus: which of the stack's texts.
    """

    name: str
    seed: int = 0
    lr: float = 3e-3
    aux_coef: float = 0.01
    z_coef: float = 0.001
    weight_decay: float = 0.1
    gate_scale: float = 1.0
    first: float = 1.0
    bias_step: float = 0.0
    quantile: bool = False
    sigmoid: bool = False
    raw: bool = False
    by_text: bool = False
    mass: bool = False
    corpus: int = 0


def _swiglu(up1_NTH: Tensor, up3_NTH: Tensor, gate_NTE: Tensor | None) -> Tensor:
    """SwiGLU of all experts side by side, each one's part times its gate."""
    a = F.silu(up1_NTH) * up3_NTH
    if gate_NTE is None:
        return a
    return (a.unflatten(-1, (gate_NTE.shape[-1], -1)) * gate_NTE.to(a.dtype)[..., None]).flatten(-2)


def _cross_entropy(logits_NTV: Tensor, targets_NBS: Tensor) -> Tensor:
    flat = logits_NTV.flatten(0, 1).float()
    nats = F.cross_entropy(flat, targets_NBS.flatten(), reduction="none")
    return nats.view(len(logits_NTV), -1)


def _adamw(
    theta_NP: Tensor, first_NP: Tensor, second_NP: Tensor, grad_NP: Tensor, clip_N: Tensor,
    decay_P: Tensor, wd_N: Tensor, rate_N: Tensor, now: Tensor, beta1: float, beta2: float,
) -> None:  # fmt: skip
    """Change weights and moments by one step of AdamW; now: its two corrections."""
    grad_NP = grad_NP * clip_N[:, None]
    first_NP.lerp_(grad_NP, 1 - beta1)
    second_NP.mul_(beta2).addcmul_(grad_NP, grad_NP, value=1 - beta2)
    size_NP = (second_NP / now[1]).sqrt() + 1e-8
    kept_NP = theta_NP * (1 - (rate_N * wd_N)[:, None] * decay_P)
    theta_NP.copy_(kept_NP - (rate_N / now[0])[:, None] * first_NP / size_NP)


@dataclass
class Stack:
    """Hold the weights and moments of N runs of one shape, and take their steps together.

    Args: model: the shape of all. shared: experts of the E that every token uses with weight 1,
          beside its K. dense: the layers that have one expert, as wide as a token's all.
          table: those where a token's experts are drawn for its id, and the gate but weighs them.
          second: those whose output has a learned vector of the token's id added, first 0.
          chunk: experts choose tokens, K / E of each so many (Zhou et al. 2022); 0: tokens choose.
          training: steps, batch, warm-up; what a Run names comes from the Run.
          fuse: compile what only moves memory (SwiGLU with its gates, cross entropy, AdamW).
    """

    model: MixtralConfig
    training: TrainConfig
    runs: Sequence[Run]
    corpora: Sequence[Corpus]
    device: str = "cpu"
    shared: int = 0
    dense: tuple[int, ...] = ()
    table: tuple[int, ...] = ()
    second: tuple[int, ...] = ()
    chunk: int = 0
    fuse: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    graphed: bool = False

    def __post_init__(self) -> None:
        c, states = self.model, []
        self.swiglu, self.cross_entropy, self.adamw = _swiglu, _cross_entropy, _adamw
        if self.fuse:
            self.swiglu = torch.compile(_swiglu, dynamic=True)
            self.cross_entropy = torch.compile(_cross_entropy, dynamic=True)
            self.adamw = torch.compile(_adamw, dynamic=True)
        self.experts = [c.num_local_experts] * c.num_hidden_layers
        self.width = [c.intermediate_size] * c.num_hidden_layers
        for layer in self.dense:
            self.experts[layer] = 1
            self.width[layer] = c.intermediate_size * (c.num_experts_per_tok + self.shared)
        for run in self.runs:
            torch.manual_seed(run.seed)
            state: dict[str, Tensor] = dict(Mixtral(c).named_parameters())
            for layer in self.dense:
                at, width = f"layers.{layer}.block_sparse_moe.", self.width[layer]
                for name in ("w1", "w3", "w2"):
                    shape = (c.hidden_size, width) if name == "w2" else (width, c.hidden_size)
                    weight = torch.randn(1, *shape) * c.initializer_range
                    state[f"{at}experts.{name}"] = weight
                state[f"{at}gate.weight"] = torch.zeros(1, c.hidden_size)
            for layer in self.second:
                state[f"layers.{layer}.of_id.weight"] = torch.zeros(c.vocab_size, c.hidden_size)
            states.append({k: w.detach() * (run.first if w.dim() > 1 else 1)
                           for k, w in state.items()})  # fmt: skip
        self.names = list(states[0])
        self.shapes = [states[0][name].shape for name in self.names]
        sizes = [shape.numel() for shape in self.shapes]
        flat = [torch.cat([state[name].flatten() for name in self.names]) for state in states]
        self.theta_NP = torch.stack(flat).to(self.device)
        decay = [
            torch.full((n,), float(len(s) > 1)) for n, s in zip(sizes, self.shapes, strict=True)
        ]
        self.decay_P = torch.cat(decay).to(self.device)
        self.first_NP, self.second_NP = (torch.zeros_like(self.theta_NP) for _ in range(2))
        self.leaves = [
            part.view(len(self.runs), *shape).requires_grad_()
            for part, shape in zip(self.theta_NP.split(sizes, 1), self.shapes, strict=True)
        ]
        self.bias = [torch.zeros(len(self.runs), 1, E, device=self.device) for E in self.experts]
        assert c.head_dim is not None
        position = torch.arange(c.max_position_embeddings, device=self.device)
        self.rope = rotary(position, c.head_dim, c.rope_theta)
        self.step = 0
        of = lambda name: torch.tensor(  # noqa: E731
            [float(getattr(run, name)) for run in self.runs], device=self.device
        )
        self.lr_N, self.aux_N, self.z_N = of("lr"), of("aux_coef"), of("z_coef")
        self.wd_N, self.scale_N, self.gamma_N = (
            of("weight_decay"),
            of("gate_scale"),
            of("bias_step"),
        )
        self.sigmoid_N, self.raw_N, self.by_text_N, self.quantile_N, self.mass_N = (
            of(name).bool() for name in ("sigmoid", "raw", "by_text", "quantile", "mass")
        )
        self.any_by_text = any(run.by_text for run in self.runs)
        self.any_mass = any(run.mass for run in self.runs)
        self.any_quantile = any(run.quantile for run in self.runs)
        whole = 1 < c.num_local_experts <= c.num_experts_per_tok
        if self.any_quantile and (self.chunk or whole):
            raise ValueError("quantiles balance tokens that choose, and leave an expert out")
        if self.table and (self.chunk or self.shared):
            raise ValueError("a table is for tokens that choose, without a shared expert")
        # a token id's experts, the same in every run and layer
        deal = torch.Generator().manual_seed(0)
        order_VE = torch.rand(c.vocab_size, c.num_local_experts, generator=deal)
        dealt_VK = order_VE.topk(c.num_experts_per_tok).indices
        closed_VE = torch.full_like(order_VE, -torch.inf).scatter_(1, dealt_VK, 0.0)
        self.closed_VE = closed_VE.to(self.device)
        self.dtype = torch.bfloat16 if self.training.autocast == "on" else None

    # --- one model, N times ----------------------------------------------------------------------

    def hidden(self, ids_NBS: Tensor) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """Return the last hidden states (N, T, D) and what each layer's losses need."""
        c, (N, B, S) = self.model, ids_NBS.shape
        w = dict(zip(self.names, self.leaves, strict=True))
        H, G, A = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        assert A is not None
        x, routings = self._of_id(w["embed_tokens.weight"], ids_NBS), []
        for layer in range(c.num_hidden_layers):
            at = f"layers.{layer}."
            normed = self._norm(x, w[at + "input_layernorm.weight"])
            q, k, v = (
                torch.bmm(normed, w[f"{at}self_attn.{name}_proj.weight"].mT)
                .view(N * B, S, heads, A).transpose(1, 2)
                for name, heads in (("q", H), ("k", G), ("v", G))
            )  # fmt: skip
            cos, sin = (table[:S].to(q.dtype) for table in self.rope)
            q, k = (torch.addcmul(t * cos, t.roll(A // 2, dims=-1), sin) for t in (q, k))
            seen = self.attend(q, k, v).transpose(1, 2).reshape(N, B * S, H * A)
            x = x + torch.bmm(seen, w[at + "self_attn.o_proj.weight"].mT)
            normed = self._norm(x, w[at + "post_attention_layernorm.weight"])
            out, routing = self._experts(normed, layer, w, ids_NBS)
            x = x + out
            if layer in self.second:
                x = x + self._of_id(w[at + "of_id.weight"], ids_NBS)
            routings.append(routing)
        return self._norm(x, w["norm.weight"]), routings

    def _of_id(self, weight_NVD: Tensor, ids_NBS: Tensor) -> Tensor:
        shift_N11 = torch.arange(len(ids_NBS), device=ids_NBS.device)[:, None, None]
        at_NT = (ids_NBS + shift_N11 * self.model.vocab_size).flatten(1)
        every = weight_NVD.flatten(0, 1)
        return every.index_select(0, at_NT.flatten()).view(*at_NT.shape, -1)

    def _norm(self, x_NTD: Tensor, weight_ND: Tensor) -> Tensor:
        return F.rms_norm(x_NTD, x_NTD.shape[-1:], eps=self.model.rms_norm_eps) * weight_ND[:, None]

    def _experts(
        self, x_NTD: Tensor, layer: int, w: dict[str, Tensor], ids_NBS: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        at = f"layers.{layer}.block_sparse_moe."
        w1, w3, w2 = (w[f"{at}experts.{name}"] for name in ("w1", "w3", "w2"))
        gate_NTE: Tensor | None = None
        routing: dict[str, Tensor] = {}
        if self.experts[layer] > 1:
            gate_NTE, routing = self._route(x_NTD, layer, w[at + "gate.weight"], ids_NBS)
        return self.mix(x_NTD, w1, w3, w2, gate_NTE), routing

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend causally: (N * B, heads, S, A) each, fewer heads of keys and values."""
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    def mix(
        self, x_NTD: Tensor, w1: Tensor, w3: Tensor, w2: Tensor, gate_NTE: Tensor | None
    ) -> Tensor:
        """Sum the experts' answers by their gates, 0 for the unchosen; weights (N, E, out, in)."""
        up1, up3 = (torch.bmm(x_NTD, x.flatten(1, 2).mT) for x in (w1, w3))
        a = self.swiglu(up1, up3, gate_NTE)
        return torch.bmm(a, w2.transpose(2, 3).flatten(1, 2))

    def _route(
        self, x_NTD: Tensor, layer: int, weight_NED: Tensor, ids_NBS: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        routed = weight_NED.shape[1] - self.shared  # the last are shared, and no one's choice
        with torch.autocast(x_NTD.device.type, enabled=False):
            logits = torch.bmm(x_NTD.float(), weight_NED[:, :routed].mT)
        probs = logits.softmax(-1)
        score = torch.where(self.sigmoid_N[:, None, None], logits.sigmoid(), probs)
        with torch.no_grad():
            wanted, K = score + self.bias[layer][..., :routed], self.model.num_experts_per_tok
            if layer in self.table:
                wanted = score + self.closed_VE[ids_NBS.flatten(1)]
            if self.chunk:  # (N, chunks, tokens of a chunk, E)
                wanted, K = wanted.unflatten(1, (-1, self.chunk)), self.chunk * K // routed
            axis = -2 if self.chunk else -1
            chosen = wanted.topk(K, dim=axis).indices
            keep = torch.zeros_like(wanted).scatter_(axis, chosen, 1.0).view_as(score)
            next_NE: Tensor | None = None
            if self.any_quantile:
                # an expert's margin, over the tokens' bars, that its share leaves out
                margin_NTE = score - wanted.topk(K + 1, -1).values[..., -1:]
                own = score.shape[1] * K // routed
                next_NE = -margin_NTE.topk(own + 1, 1).values[:, -1]
        gate = score * keep
        total = gate.sum(-1, keepdim=True).masked_fill(self.raw_N[:, None, None], 1.0)
        gate = gate / total * self.scale_N[:, None, None]
        if self.shared:
            gate = torch.cat([gate, gate.new_ones(*gate.shape[:2], self.shared)], -1)
        share = score / score.sum(-1, keepdim=True)
        count = keep
        if self.any_mass:  # K in all as well, and as little a way for the gradient
            weighed = (share * keep).detach()
            weighed = weighed / weighed.sum(-1, keepdim=True) * keep.sum(-1, keepdim=True)
            count = torch.where(self.mass_N[:, None, None], weighed, keep)
        routing = {"keep": keep, "count": count, "probs": share, "logits": logits}
        return gate, routing if next_NE is None else routing | {"next": next_NE}

    def losses(
        self, ids_NBS: Tensor, targets_NBS: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], dict[int, dict[str, Tensor]]]:
        """Return the sum over runs of what they minimise, each run's parts (N,), layers' loads.

        A layer's "load" (N, E) sums to K; "next": the bias that would have balanced it.
        """
        with self._autocast():
            hidden, routings = self.hidden(ids_NBS)
            loss_N = self._nats(hidden, targets_NBS).mean(1)
        zero_N = torch.zeros_like(loss_N)
        parts = {"loss": loss_N.detach(), "balance": zero_N, "z": zero_N, "load": zero_N + 1}
        routed = {layer: r for layer, r in enumerate(routings) if r}
        if not routed:
            return loss_N.sum(), parts, {}
        E = next(iter(routed.values()))["probs"].shape[-1]
        f = {layer: r["keep"].mean(1) for layer, r in routed.items()}
        over = self.model.num_experts_per_tok
        balances = []
        for r in routed.values():
            of_batch_N = (r["count"].mean(1) * r["probs"].mean(1)).sum(-1)
            if self.any_by_text:  # a bool: a graph's recording cannot ask the device
                f_NBE, P_NBE = (r[part].unflatten(1, (-1, ids_NBS.shape[2])).mean(2)
                                for part in ("count", "probs"))  # fmt: skip
                of_text_N = (f_NBE * P_NBE).sum(-1).mean(1)
                of_batch_N = torch.where(self.by_text_N, of_text_N, of_batch_N)
            balances.append(E / over * of_batch_N)
        balance_N = torch.stack(balances).mean(0)
        z_N = torch.stack([r["logits"].logsumexp(-1).square().mean(1) for r in routed.values()])
        parts["balance"], parts["z"] = balance_N.detach(), z_N.mean(0).detach()
        parts["load"] = torch.stack([E / over * f_NE.amax(-1) for f_NE in f.values()]).mean(0)
        loss_N = loss_N + self.aux_N * balance_N + self.z_N * z_N.mean(0)
        loads = {
            layer: {"load": f[layer]} | {name: part for name, part in r.items() if name == "next"}
            for layer, r in routed.items()
        }
        return loss_N.sum(), parts, loads

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            torch.device(self.device).type, self.dtype, enabled=self.dtype is not None,
            cache_enabled=False,
        )  # fmt: skip

    def _nats(self, hidden_NTD: Tensor, targets_NBS: Tensor) -> Tensor:
        head_NVD = self.leaves[self.names.index("embed_tokens.weight")]
        return self.cross_entropy(torch.bmm(hidden_NTD, head_NVD.mT), targets_NBS)

    # --- training --------------------------------------------------------------------------------

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Draw each run's batch, once for all runs that share it."""
        t, drawn = self.training, {}
        for run in self.runs:
            key = (run.corpus, run.seed)
            if key not in drawn:
                drawn[key] = self.corpora[run.corpus].batch(
                    "train", t.batch_size, t.seq_len, seed=run.seed, step=step
                )
        those = [drawn[run.corpus, run.seed] for run in self.runs]
        pair = (torch.stack([b.ids_BS for b in those]), torch.stack([b.targets_BS for b in those]))
        if self.theta_NP.is_cuda:  # from pinned memory a copy waits for nothing
            pair = (pair[0].pin_memory(), pair[1].pin_memory())
        ids_NBS, targets_NBS = (part.to(self.device, non_blocking=True) for part in pair)
        return ids_NBS, targets_NBS

    def take(self) -> dict[str, Tensor]:
        """Take one step of every run; return its row, (N,) each, on the device."""
        ids_NBS, targets_NBS = self.batch(self.step)
        t = self.training
        beta1, beta2 = t.betas
        now = [
            t.lr_at(self.step) / t.lr,
            1 - beta1 ** (self.step + 1),
            1 - beta2 ** (self.step + 1),
        ]
        self.step += 1
        if not self.graphed:
            return self._work(ids_NBS, targets_NBS, torch.tensor(now, device=self.device))
        # A thousand small kernels a step: on a GPU they are recorded once, and played again.
        self._ids.copy_(ids_NBS)
        self._targets.copy_(targets_NBS)
        self._now.copy_(torch.tensor(now))
        self._graph.replay()
        return {name: part.clone() for name, part in self._row.items()}

    def record(self) -> None:
        """Record a step as a CUDA graph; the steps that follow play it."""
        ids_NBS, targets_NBS = self.batch(0)
        self._ids, self._targets = ids_NBS.clone(), targets_NBS.clone()
        self._now = torch.ones(3, device=self.device)
        kept = [self.theta_NP, self.first_NP, self.second_NP, *self.bias]
        before = [t.clone() for t in kept]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._work(self._ids, self._targets, self._now)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._row = self._work(self._ids, self._targets, self._now)
        with torch.no_grad():
            for t, old in zip(kept, before, strict=True):
                t.copy_(old)
        self.graphed = True

    def _work(self, ids_NBS: Tensor, targets_NBS: Tensor, now: Tensor) -> dict[str, Tensor]:
        """Do a step's work; now: the rate as a share of the peak's, and Adam's two corrections."""
        t = self.training
        total, row, loads = self.losses(ids_NBS, targets_NBS)
        grads = torch.autograd.grad(total, self.leaves, allow_unused=True)
        grad_NP = torch.cat(
            [(torch.zeros_like(w) if g is None else g).flatten(1)
             for g, w in zip(grads, self.leaves, strict=True)], 1,
        )  # fmt: skip
        with torch.no_grad():
            row["norm"] = norm_N = grad_NP.norm(dim=1)
            clip_N = (t.grad_clip / (norm_N + 1e-6)).clamp(max=1.0)
            self.adamw(
                self.theta_NP, self.first_NP, self.second_NP, grad_NP, clip_N,
                self.decay_P, self.wd_N, self.lr_N * now[0], now[1:], *t.betas,
            )  # fmt: skip
            for layer, said in loads.items():  # Wang et al. 2024: against the load, by its sign
                f_NE = said["load"]
                push_NE = self.gamma_N[:, None] * (f_NE.mean(-1, keepdim=True) - f_NE).sign()
                bias_NE = self.bias[layer][:, 0, : f_NE.shape[1]]
                moved_NE = bias_NE + push_NE
                if "next" in said:
                    moved_NE = torch.where(self.quantile_N[:, None], said["next"], moved_NE)
                bias_NE.copy_(moved_NE)
        return row

    def train(
        self,
        say: Callable[[str], None] = print,
        each: Callable[[Stack], None] | None = None,
        until: float = float("inf"),
    ) -> None:
        """Take the steps that are left; ``rows`` then holds a list of N for each column.

        Args: each: called after every step. until: stop when time.monotonic() is past it.
        """
        t, begin = self.training, time.monotonic()
        if self.theta_NP.is_cuda and not self.graphed:
            self.record()
        for _ in range(self.step, t.steps):
            row: dict[str, Any] = {"step": self.step + 1, **self.take()}
            if t.eval_every and (self.step % t.eval_every == 0 or self.step == t.steps):
                row["bits"] = self.evaluate(t.eval_windows)
                mean = sum(sum(b.values()) / len(b) for b in row["bits"]) / len(self.runs)
                took = time.monotonic() - begin
                say(f"step {self.step}, {took:.0f} s, mean bits per byte {mean:.3f}")
            self.rows.append(row)
            if each is not None:
                each(self)
            if time.monotonic() > until:
                say(f"out of time at step {self.step} of {t.steps}")
                break
        for row in self.rows:
            row |= {k: v.tolist() for k, v in row.items() if isinstance(v, Tensor)}

    @torch.no_grad()
    def evaluate(self, windows: int) -> list[dict[str, float]]:
        """Return each run's held-out bits per byte by domain, as moe_lite.evaluation does."""
        found: list[dict[str, float]] = [{} for _ in self.runs]
        for number, corpus in enumerate(self.corpora):
            those = [n for n, run in enumerate(self.runs) if run.corpus == number]
            for domain in corpus.domains if those else ():
                batch = corpus.windows(domain, self.training.seq_len, windows)
                size = int(corpus.bytes_V[batch.targets_BS].sum())
                nats_N = torch.zeros(len(self.runs), device=self.device)
                for ids, targets in zip(
                    batch.ids_BS.split(16), batch.targets_BS.split(16), strict=True
                ):
                    ids, targets = (t.to(self.device).expand(len(self.runs), -1, -1)
                                    for t in (ids, targets))  # fmt: skip
                    with self._autocast():
                        hidden, _ = self.hidden(ids)
                        nats_N += self._nats(hidden, targets).sum(1)
                bits_N = (nats_N / (0.6931471805599453 * max(size, 1))).tolist()
                for n in those:
                    found[n][domain] = bits_N[n]
        return found

    def by_copying(self, windows: int) -> list[dict[str, dict[str, float]]]:
        """Return what :func:`moe_lite.course.leads.loss_by_copying` gives, by run and domain."""
        found: list[dict[str, dict[str, float]]] = [{} for _ in self.runs]

        def losses(ids_BS: Tensor, targets_BS: Tensor) -> Tensor:
            ids_NBS, targets_NBS = (part.to(self.device).expand(len(self.runs), -1, -1)
                                    for part in (ids_BS, targets_BS))  # fmt: skip
            with self._autocast():
                return self._nats(self.hidden(ids_NBS)[0], targets_NBS)

        for number, corpus in enumerate(self.corpora):
            those = [n for n, run in enumerate(self.runs) if run.corpus == number]
            for domain in corpus.domains if those else ():
                rows = loss_by_copying(losses, corpus, domain, windows, self.training.seq_len)
                for n in those:
                    found[n][domain] = rows[n]
        return found

    @torch.no_grad()
    def routers(self, windows: int = 8) -> list[dict[str, list[float]]]:
        """Say how each run's routers choose on held-out text, the mean over tokens, by layer.

        Returns: "worth": how many experts of equal gates a token's are worth, 1 / sum of g squared.
                 "load", "mass": the share of all choices, and of all gates, of the expert that has
                 most, in fair shares; "parked": what the expert with least has of the gates.
        """
        E, runs = self.model.num_local_experts - self.shared, range(len(self.runs))
        found: list[dict[str, list[float]]] = [
            {name: [] for name in ("worth", "load", "mass", "parked")} for _ in runs
        ]
        corpus = self.corpora[0]
        texts = [corpus.windows(d, self.training.seq_len, windows).ids_BS for d in corpus.domains]
        with self._autocast():
            _, routings = self.hidden(torch.cat(texts).to(self.device).expand(len(runs), -1, -1))
        for r in filter(None, routings):
            gate_NTE = r["probs"] * r["keep"]
            gate_NTE = gate_NTE / gate_NTE.sum(-1, keepdim=True)
            f_NE = r["keep"].mean(1) / r["keep"].sum(-1).mean(1, keepdim=True)
            mass_NE = gate_NTE.mean(1)
            each = {
                "worth": (1 / gate_NTE.square().sum(-1)).mean(1),
                "load": E * f_NE.amax(1), "mass": E * mass_NE.amax(1),
                "parked": E * mass_NE.amin(1),
            }  # fmt: skip
            for n in runs:
                for name, value_N in each.items():
                    found[n][name].append(float(value_N[n]))
        return found

    @torch.no_grad()
    def best(self, ids_BS: Tensor) -> Tensor:
        """Return the likeliest next token by each run, (N, B, S)."""
        ids_NBS = ids_BS.to(self.device).expand(len(self.runs), -1, -1)
        with self._autocast():
            hidden, _ = self.hidden(ids_NBS)
            head_NVD = self.leaves[self.names.index("embed_tokens.weight")]
            return torch.bmm(hidden, head_NVD.mT).argmax(-1).view(ids_NBS.shape)

    def one(self, n: int) -> Mixtral:
        """Return run n as a Mixtral of its own; its gates' scale is folded into w2."""
        if self.shared or self.dense or self.table or self.second:
            raise ValueError(
                "Mixtral's layout holds no shared expert, dense layer, table or second vector"
            )
        model = Mixtral(self.model)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(self.leaves[self.names.index(name)][n])
                if name.endswith("experts.w2") and self.model.num_local_experts > 1:
                    weight.mul_(self.runs[n].gate_scale)
        return model.eval()
