"""Nothing leaks between rows: poison all that must not matter, and hold every path to the law.

A case is a routing, weights and inputs, all drawn from its number. It runs clean and poisoned:

- tokens without a kept pair hold inf, NaN, 1e30 or 300, in x and in the output's gradient;
- the gates of dropped pairs are NaN;
- experts that nobody uses have weights of inf, NaN or 1e30.

Both runs must agree to the last bit, in the output and every gradient, and the clean one with the
float64 definition up to rounding: each number may be off by LIMIT times what rounding each step
once can do to it, in that very case (:func:`rounding`). So where large terms cancel, as in an
expert one unit wide, more is allowed, and where they do not, less. Half of all cases have *big*
experts besides: their tokens are up to 1e25 (300 in float16), which their own small weights make
harmless, and nobody else's would.

``python -m tests.fuzz_dispatch 10000`` runs as many cases and prints the figures.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moe_lite import dispatch
from moe_lite.experts import Experts
from moe_lite.fast import BACKENDS, cpu
from moe_lite.routing import Routing

NAMES = ("out", "x", "w1", "w3", "w2", "gate")
LIMIT = 4.0  # times the roundings of one step each: sums of many terms round more than once
BIG = {torch.float64: 1e200, torch.float32: 1e25, torch.float16: 300.0, torch.bfloat16: 1e25}
Path = Callable[[Tensor, Experts, Routing], Tensor]


@dataclass(frozen=True)
class Case:
    """Hold what one run is given, and which of it must not matter."""

    routing: Routing
    x_TD: Tensor
    grad_TD: Tensor
    weights: tuple[Tensor, Tensor, Tensor]  # w1, w3, w2
    big_T: Tensor
    big_E: Tensor
    about: str

    @property
    def keep_N(self) -> Tensor:
        kept = self.routing.keep_N
        return torch.ones_like(self.routing.token_N, dtype=torch.bool) if kept is None else kept

    def to(self, device: str) -> Case:
        """Move all of it to a device."""

        def moved(value):
            return value.to(device) if isinstance(value, Tensor) else value

        routing = Routing(**{name: moved(value) for name, value in vars(self.routing).items()})
        weights = tuple(map(moved, self.weights))
        rest = {name: moved(value) for name, value in vars(self).items()}
        return Case(**rest | {"routing": routing, "weights": weights})

    def _without(self, size: int, index_N: Tensor) -> Tensor:
        """Tell which of ``size`` tokens or experts have no kept pair."""
        kept_N = self.keep_N.float()
        return kept_N.new_zeros(size).index_add(0, index_N, kept_N) == 0

    def poisoned(self, seed: int) -> Case:
        """Replace all that must not matter."""
        draw = random.Random(seed)
        idle_T = self._without(len(self.x_TD), self.routing.token_N)
        idle_E = self._without(len(self.big_E), self.routing.expert_N)

        def poison(clean: Tensor, where: Tensor, *values: float) -> Tensor:
            bad = torch.tensor([draw.choice(values) for _ in clean], dtype=torch.float64)
            bad = bad.to(clean).view(-1, *[1] * (clean.dim() - 1))
            return torch.where(where.view_as(bad), bad, clean)

        rows, inf, nan = (torch.inf, -torch.inf, torch.nan, 1e30, 300.0), torch.inf, torch.nan
        return replace(
            self,
            x_TD=poison(self.x_TD, idle_T, *rows),
            grad_TD=poison(self.grad_TD, idle_T, *rows),
            weights=tuple(poison(w, idle_E, inf, nan, 1e30) for w in self.weights),
            routing=replace(
                self.routing, gate_N=poison(self.routing.gate_N, ~self.keep_N, nan, inf)
            ),
        )


def draw_case(seed: int, dtype: torch.dtype, largest: int = 256) -> Case:
    """Draw a case: E to ``largest``, K to 8, T = 0 and 1 among others, odd sizes."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    E = draw.choice([e for e in (1, 2, 3, 4, 5, 8, 16, 33, 64, 256) if e <= largest])
    T = draw.choice([0, 1, 1, 2, 3, 9, 16, 17, 33, 40, 70])
    D, F = draw.choice([1, 4, 8, 13, 16, 24]), draw.choice([1, 5, 8, 16, 24])

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    # Big tokens and big experts keep to themselves.
    big_E, big_T = torch.zeros(E, dtype=torch.bool), torch.zeros(T, dtype=torch.bool)
    if draw.random() < 0.5:
        big_E, big_T = torch.rand(E, generator=generator) < 0.5, randn(T) > 0
    allowed_TE = big_T[:, None] == big_E
    if draw.random() < 0.3:  # few are chosen
        allowed_TE &= torch.rand(E, generator=generator) < draw.choice([0.1, 0.5])
    score_TE = randn(T, E).masked_fill(~allowed_TE, -torch.inf)
    kind = draw.choice(["tokens choose", "tokens choose", "experts choose", "one has all"])
    if kind == "experts choose":
        score_EC, token_EC = score_TE.T.topk(draw.randint(0, T), dim=-1)
        expert_N = torch.arange(E).repeat_interleave(score_EC.shape[1])
        token_N, score_N, per_token = token_EC.reshape(-1), score_EC.reshape(-1), None
    else:
        K = 1 if kind == "one has all" else draw.randint(1, min(8, E))
        if kind == "one has all":
            only = draw.randrange(E)
            score_TE, big_T = score_TE.clone().fill_(-1.0), big_E[only].expand(T).clone()
            score_TE[:, only] = 0.0
        score_TK, expert_TK = score_TE.topk(K, dim=-1)
        token_N, per_token = torch.arange(T).repeat_interleave(K), K
        expert_N, score_N = expert_TK.reshape(-1), score_TK.reshape(-1)
    gate_N = torch.rand(len(token_N), generator=generator) + 0.1
    keep_N = score_N.isfinite()
    drops = draw.choice(["none", "some", "some", "tokens", "most", "all"])
    if drops == "tokens":
        keep_N &= (torch.rand(T, generator=generator) < 0.6)[token_N]
    elif drops != "none":
        share = {"some": 0.7, "most": 0.1, "all": 0.0}[drops]
        keep_N &= torch.rand(len(token_N), generator=generator) < share
    unknown_TE = torch.zeros(T, E)
    routing = Routing(
        unknown_TE, unknown_TE, token_N, expert_N, gate_N,
        None if keep_N.all() and draw.random() < 0.8 else keep_N, per_token,
    )  # fmt: skip
    by_T1, by_E1 = (1 + (BIG[dtype] - 1) * big.double()[:, None] for big in (big_T, big_E))
    weights = randn(E, F, D) / D**0.5, randn(E, F, D) / D**0.5, randn(E, D, F) / F**0.5
    return Case(
        routing, (randn(T, D) * by_T1).to(dtype), (randn(T, D) * by_T1).to(dtype),
        tuple((w / by_E1[..., None]).to(dtype) for w in weights), big_T, big_E,
        f"case {seed}: {dtype}, T {T}, E {E}, K {per_token}, D {D}, F {F}, {kind}, drops {drops}",
    )  # fmt: skip


def results(path: Path, case: Case, dtype: torch.dtype, gradients: bool = True) -> list[Tensor]:
    """Give the output and, unless they are not wanted, the gradients of x, w1, w3, w2, gate."""
    E, F, D = case.weights[0].shape
    with torch.device("meta"):
        experts = Experts(E, D, F)
    x_TD, *weights = (
        t.detach().to(dtype).requires_grad_(gradients) for t in (case.x_TD, *case.weights)
    )
    for name, weight in zip(("w1", "w3", "w2"), weights, strict=True):
        delattr(experts, name)
        setattr(experts, name, weight)
    exact = dtype == torch.float64
    gate_N = case.routing.gate_N.to(torch.float64 if exact else torch.float32)
    routing = replace(case.routing, gate_N=gate_N.requires_grad_(gradients))
    with torch.set_grad_enabled(gradients):
        out_TD = path(x_TD, experts, routing)
    if not gradients:
        return [out_TD]
    wanted = [x_TD, *weights, routing.gate_N]
    grads = torch.autograd.grad(out_TD, wanted, case.grad_TD.to(dtype), allow_unused=True)
    return [
        out_TD.detach(),
        *(torch.zeros_like(w) if g is None else g for w, g in zip(wanted, grads, strict=True)),
    ]


def definition(x_TD: Tensor, experts: Experts, routing: Routing) -> Tensor:
    """Compute out_t = sum of gate * W2 (silu(W1 x_t) * W3 x_t) over the kept pairs, all at once."""
    keep_N = routing.keep_N
    token_N, expert_N, gate_N = (
        t if keep_N is None else t[keep_N]
        for t in (routing.token_N, routing.expert_N, routing.gate_N)
    )
    w1_NFD, w3_NFD, w2_NDF = (w[expert_N] for w in (experts.w1, experts.w3, experts.w2))
    x_ND1 = x_TD[token_N][..., None]
    hidden_NF1 = torch.nn.functional.silu(w1_NFD @ x_ND1) * (w3_NFD @ x_ND1)
    y_ND = (w2_NDF @ hidden_NF1)[..., 0] * gate_N[:, None]
    return torch.zeros_like(x_TD).index_add(0, token_N, y_ND.to(x_TD.dtype))


@torch.no_grad()
def rounding(case: Case) -> list[Tensor]:
    """Bound the error of each number of the output and the gradients, where each step rounds once.

    To first order and in the worst case: a rounding of ``u`` times a value travels on through the
    derivatives' absolute values (Higham 2002, Accuracy and Stability of Numerical Algorithms,
    section 3.4). A sum rounds as if all its terms had one sign.
    """
    dtype, r = case.x_TD.dtype, case.routing
    u = torch.finfo(dtype).eps / 2
    smallest = torch.finfo(dtype).tiny * torch.finfo(dtype).eps  # below it all is rounded to zero

    def once(value: Tensor) -> Tensor:
        return value.abs() * u + smallest

    token_N, expert_N, gate_N = (t[case.keep_N] for t in (r.token_N, r.expert_N, r.gate_N.double()))
    w1, w3, w2 = (w.double()[expert_N] for w in case.weights)
    x, g = case.x_TD.double()[token_N], case.grad_TD.double()[token_N]

    def times(w: Tensor, v: Tensor) -> Tensor:
        return (w @ v[..., None])[..., 0]

    def size(w: Tensor, v: Tensor) -> Tensor:
        return times(w.abs(), v.abs())

    # 1. forward; e_ is the error of what it stands before
    h1, h3 = times(w1, x), times(w3, x)
    s = h1.sigmoid()
    silu, slope, bend = h1 * s, s + h1 * s * (1 - s), s * (1 - s) * (2 + h1 * (1 - 2 * s))
    e_h1, e_h3 = once(size(w1, x)), once(size(w3, x))
    e_silu = slope.abs() * e_h1 + once(silu)
    hidden = silu * h3
    e_hidden = e_silu * h3.abs() + silu.abs() * e_h3 + once(hidden)
    y = times(w2, hidden)
    e_y = size(w2, e_hidden) + once(size(w2, hidden))
    # 2. backward
    dy = g * gate_N[:, None]
    e_dy = once(dy)
    dhidden = times(w2.mT, dy)
    e_dhidden = size(w2.mT, e_dy) + once(size(w2.mT, dy))
    dh1, dh3 = dhidden * h3 * slope, dhidden * silu
    e_slope = bend.abs() * e_h1 + once(slope)
    e_dh1 = e_dhidden * (h3 * slope).abs() + once(dh1)
    e_dh1 += dhidden.abs() * (e_h3 * slope.abs() + h3.abs() * e_slope)
    e_dh3 = e_dhidden * silu.abs() + dhidden.abs() * e_silu + once(dh3)
    e_dx = size(w1.mT, e_dh1) + size(w3.mT, e_dh3) + once(size(w1.mT, dh1) + size(w3.mT, dh3))
    e_w1, e_w3, e_w2 = (
        e_a[:, :, None] * b[:, None].abs() + a[:, :, None].abs() * e_b
        + once(a[:, :, None] * b[:, None])
        for a, e_a, b, e_b in (
            (dh1, e_dh1, x, 0.0), (dh3, e_dh3, x, 0.0), (dy, e_dy, hidden, e_hidden[:, None]),
        )
    )  # fmt: skip
    e_gate = ((g.abs() * e_y) + once(g * y.abs())).sum(-1)

    # 3. sums over a token's pairs, and over an expert's
    def summed(like: Tensor, index_N: Tensor, e_N: Tensor) -> Tensor:
        return torch.zeros_like(like, dtype=torch.float64).index_add(0, index_N, e_N)

    e_out = e_y * gate_N[:, None] + 2 * once(size(w2, hidden) * gate_N[:, None])
    gates = torch.zeros_like(r.gate_N, dtype=torch.float64)
    gates[case.keep_N] = e_gate
    return [
        summed(case.x_TD, token_N, e_out), summed(case.x_TD, token_N, e_dx),
        *(summed(w, expert_N, e) for w, e in zip(case.weights, (e_w1, e_w3, e_w2), strict=True)),
        gates,
    ]  # fmt: skip


def apart(found: Tensor, right: Tensor, bound: Tensor) -> float:
    """Give the largest error of a number, in its bounds; what has none must be right."""
    error = (found.detach().double() - right.detach()).abs()
    return float(torch.where(error == 0, 0.0, error / bound).max()) if error.numel() else 0.0


@dataclass(frozen=True)
class Trial:
    """Hold a case, clean and poisoned, what float64 gives for it, and what rounding may do."""

    clean: Case
    poisoned: Case
    right: list[Tensor]
    bounds: list[Tensor]


def prepare(seed: int, dtype: torch.dtype, largest: int = 256, device: str = "cpu") -> Trial:
    """Draw a case and compute what is right."""
    case = draw_case(seed, dtype, largest).to(device)
    right = results(definition, case, torch.float64)
    return Trial(case, case.poisoned(seed), right, rounding(case))


def judge(
    path: Path, trial: Trial, gradients: bool = True, limit: float = LIMIT
) -> Iterator[tuple[str, float]]:
    """Hold one path to the law: yield each tensor's name and largest error, in its bounds.

    Raises: AssertionError naming the case and the tensor if anything leaks or is off.
    """
    case, dtype = trial.clean, trial.clean.x_TD.dtype
    clean, poisoned = (results(path, c, dtype, gradients) for c in (case, trial.poisoned))
    law = zip(NAMES, clean, poisoned, trial.right, trial.bounds, strict=False)
    for name, a, b, right, bound in law:
        assert a.isfinite().all(), f"{case.about}: {name} is not finite"
        assert torch.equal(a, b), f"{case.about}: poison changed {name}"
        error = apart(a, right, bound)
        assert error <= limit, f"{case.about}: {name} is off by {error:.1f} times what rounding can"
        yield name, error


PATHS: dict[str, tuple[Path, bool]] = {  # and whether it is asked for gradients
    "loop": (dispatch.loop, True),
    "padded": (dispatch.padded, True),
    "grouped": (dispatch.grouped, True),
    "auto": (BACKENDS["auto"], True),
    "auto, no gradients": (BACKENDS["auto"], False),
    "blocks": (cpu.blocks, True),  # also where others are taken
    "few calls": (cpu.few_calls, False),
    "compiled": (cpu.compiled, True),  # as it is called by what was compiled
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def run(seeds: range, paths: dict[str, tuple[Path, bool]] = PATHS) -> dict[tuple, float]:
    """Run cases on every path; give the largest error of each (path, type, tensor), in its bounds.

    Raises: AssertionError at the first that breaks the law, naming path and case.
    """
    worst: dict[tuple, float] = {}
    for seed in seeds:
        dtype = DTYPES[seed % len(DTYPES)]
        trial = prepare(seed, dtype)
        for name, (path, gradients) in paths.items():
            try:
                for tensor, error in judge(path, trial, gradients):
                    key = name, str(dtype)[6:], tensor
                    worst[key] = max(worst.get(key, 0.0), error)
            except AssertionError as broken:
                raise AssertionError(f"{name}, {broken}") from None
    return worst


def main(cases: int) -> None:
    worst: dict[tuple, float] = {}
    broken: Counter = Counter()
    for seed in range(cases):
        trial = prepare(seed, dtype := DTYPES[seed % len(DTYPES)])
        for name, (path, gradients) in PATHS.items():
            try:
                for tensor, error in judge(path, trial, gradients):
                    key = name, str(dtype)[6:], tensor
                    worst[key] = max(worst.get(key, 0.0), error)
            except AssertionError as error:
                broken[name] += 1
                if broken[name] <= 3:
                    print(f"{name}, {error}", flush=True)
    print(f"{cases} cases on each of {len(PATHS)} paths; broken: {dict(broken) or 'none'}")
    print(f"the largest error, where {LIMIT:g} is the limit:")
    for name in PATHS:
        for dtype in DTYPES:
            errors = [f"{t} {worst.get((name, str(dtype)[6:], t), 0.0):.2f}" for t in NAMES]
            print(f"{name:20}{str(dtype)[6:]:10}{'  '.join(errors)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
