"""What experts are for: four small tasks, and the models that chapter 11 sets on them.

======================= ======================================== =====================
task                    what it asks for                         new examples?
======================= ======================================== =====================
:class:`PhoneBook`      memory: a number for each invented name  no, the book is all
:class:`Facts`          memory: a value for each pair of symbols no, the facts are all
:class:`Paths`          width: is there a path of two edges?     each step
:class:`Pairs`          attention: a value named in the context  each step
:class:`Clusters`       generalisation: a sign, told by cluster  a training set, a test
======================= ======================================== =====================
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import (
    Experts,
    Mixtral,
    MixtralConfig,
    MoELayer,
    Routing,
    SwitchRouter,
    load_balancing_loss,
)

Model = TypeVar("Model", bound=nn.Module)
BALANCE = 0.05  # the weight of the load-balancing loss, everywhere in this chapter


def learn(model: nn.Module, loss: Callable[[], Tensor], steps: int, lr: float) -> None:
    """Take steps of AdamW down a loss; the rate rises for 20 steps, then falls by a half cosine.

    Args: loss: () -> scalar with a gradient, of the next batch.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0, fused=True
    )
    for step in range(steps):
        for group in optimizer.param_groups:
            rise, fall = min(1, (step + 1) / 20), (1 + math.cos(math.pi * step / steps)) / 2
            group["lr"] = lr * rise * fall
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


_drawing = threading.Lock()


def _first_weights(make: Callable[[], Model], seed: int) -> Model:
    """Return a model made from this seed, also where two threads make one at the same time."""
    with _drawing, torch.random.fork_rng([]):  # all threads draw from one global source
        torch.manual_seed(seed)
        return make()


def bits_stored(nats: float, values: int, choices: int) -> float:
    """Return how many bits a model saves on these values, against one that knows nothing.

    >>> bits_stored(nats=0.0, values=10, choices=8)
    30.0
    >>> abs(bits_stored(nats=math.log(8), values=10, choices=8)) < 1e-9
    True

    Args: nats: mean cross-entropy of a value; values: how many; choices: of each, equally likely.
    """
    return values * (math.log(choices) - nats) / math.log(2)


def _source(seed: int) -> torch.Generator:
    """Return the numbers that a task is drawn from: no model of the same seed starts from them."""
    return torch.Generator().manual_seed(10**6 + seed)


# --- a phone book in a small Mixtral -------------------------------------------------------------

_STARTS = ("Ba", "Do", "Fe", "Ka", "Lu", "Pa", "Su", "Zo")
_ENDS = ("bin", "dara", "kel", "lo", "mira", "nis", "ruk", "van")
NAMES = [start + end for start in _STARTS for end in _ENDS]  # 64 first names, as many surnames
DIGITS = 100  # a number is three groups of two digits

BOOK_MODEL = MixtralConfig(
    vocab_size=2 * len(NAMES) + DIGITS, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2, num_local_experts=16, num_experts_per_tok=2,
    max_position_embeddings=8, initializer_range=0.1,
)  # fmt: skip
"""The sparse model of the phone book; ``BOOK_MODEL.dense("active")`` is its twin."""


class PhoneBook:
    """Hold numbers for invented names: first name, surname, three groups of two digits.

    Every number is drawn at random, so nothing in the book follows from anything else: to know an
    entry is to have stored it.

    Attrs:  ids_NS: int64 (entries, 5); first names are 0 .. 63, surnames 64 .. 127, digits 128 up.
    Raises: ValueError if there are more entries than names.
    """

    def __init__(self, entries: int, seed: int = 0):
        names = len(NAMES)
        if not 1 <= entries <= names**2:
            raise ValueError(f"there are {names**2:,} names for a book, not {entries:,}")
        draw = _source(seed)
        name_N = torch.randperm(names**2, generator=draw)[:entries]
        digits_N3 = torch.randint(DIGITS, (entries, 3), generator=draw)
        pair_N2 = torch.stack([name_N // names, names + name_N % names], dim=1)
        self.ids_NS = torch.cat([pair_N2, 2 * names + digits_N3], dim=1)

    def __len__(self) -> int:
        return len(self.ids_NS)

    @property
    def bits(self) -> float:
        """Count the bits of all numbers: log2 of how many books there could be."""
        return bits_stored(0.0, 3 * len(self), DIGITS)

    def entry(self, n: int) -> str:
        """Return an entry as it would be printed."""
        first, last, *digits = self.ids_NS[n].tolist()
        number = "-".join(f"{d - 2 * len(NAMES):02}" for d in digits)
        return f"{NAMES[first]} {NAMES[last - len(NAMES)]}: {number}"

    def loss(self, model: Mixtral, draw: torch.Generator, batch: int = 512) -> Tensor:
        """Return the loss of some entries' digits, and the balancing loss if there are experts."""
        ids_BS = self.ids_NS[torch.randint(len(self), (batch,), generator=draw)]
        out = model(ids_BS[:, :-1])
        nats = F.cross_entropy(out.logits_BSV[:, 1:].flatten(0, 1), ids_BS[:, 2:].flatten())
        return nats + _balance(out.routings)

    @torch.no_grad()
    def recall(self, model: Mixtral) -> tuple[Tensor, float]:
        """Return which entries are right in all digits, bool (N,), and how many bits are stored."""
        logits_NSV = model(self.ids_NS[:, :-1]).logits_BSV[:, 1:]
        target_N3 = self.ids_NS[:, 2:]
        nats = F.cross_entropy(logits_NSV.flatten(0, 1), target_N3.flatten()).item()
        right_N = (logits_NSV.argmax(-1) == target_N3).all(dim=1)
        return right_N, max(0.0, bits_stored(nats, 3 * len(self), DIGITS))


def _balance(routings: Routing | tuple[Routing, ...]) -> Tensor | float:
    first = routings if isinstance(routings, Routing) else routings[0]
    return BALANCE * load_balancing_loss(routings) if first.num_experts > 1 else 0.0


def memorise(config: MixtralConfig, book: PhoneBook, steps: int = 500, seed: int = 0) -> Mixtral:
    """Return a model of this config that has learned the book for so many steps of 512 entries."""
    model = _first_weights(lambda: Mixtral(config), seed)
    draw = torch.Generator().manual_seed(seed)
    learn(model, lambda: book.loss(model, draw), steps, lr=0.01)
    return model


# --- one block -----------------------------------------------------------------------------------


class Block(nn.Module):
    """Read classes off x + experts(x), of which each token uses one; with one expert it is dense.

    The arithmetic of a token is the same for any number of experts, but for the router's.

    Args:   hidden: units of one expert; capacity: a capacity factor; None: no token is dropped.
    Shapes: (T, D) to (T, classes), and the routing.
    """

    def __init__(
        self, width: int, hidden: int, experts: int, classes: int, capacity: float | None = None
    ):
        super().__init__()
        router = SwitchRouter(width, experts, capacity_factor=capacity or float(experts))
        self.moe = MoELayer(router, Experts(experts, width, hidden))
        self.out = nn.Linear(width, classes)

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Routing]:
        out_TD, routing = self.moe(x_TD)
        return self.out(F.layer_norm(x_TD + out_TD, x_TD.shape[-1:])), routing


class Facts:
    """Hold facts: each of so many pairs of symbols has one of so many values, drawn at random.

    A pair's vector is the sum of its symbols' vectors, normalised. Those are drawn once and never
    learned, so a fact can be kept nowhere but in the block.

    Args:  symbols, values: how many there are; width: of the vectors.
    Attrs: x_ND: the pairs' vectors; value_N: their values.
    """

    def __init__(
        self, count: int, seed: int = 0, symbols: int = 256, values: int = 128, width: int = 32
    ):
        draw = _source(seed)
        pair_N = torch.randperm(symbols**2, generator=draw)[:count]
        first_VD, second_VD = torch.randn(2, symbols, width, generator=draw)
        both_ND = first_VD[pair_N // symbols] + second_VD[pair_N % symbols]
        self.x_ND, self.classes = F.layer_norm(both_ND, (width,)), values
        self.value_N = torch.randint(values, (count,), generator=draw)

    @property
    def bits(self) -> float:
        """Count the bits of all values."""
        return bits_stored(0.0, len(self.value_N), self.classes)

    def batch(self, draw: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        """Return the vectors and values of some facts."""
        some = torch.randint(len(self.value_N), (size,), generator=draw)
        return self.x_ND[some], self.value_N[some]

    @torch.no_grad()
    def measure(self, block: Block) -> tuple[float, float]:
        """Return which share of all facts is right, and how many bits are stored."""
        logits_NC, _ = block(self.x_ND)
        nats = F.cross_entropy(logits_NC, self.value_N).item()
        share = (logits_NC.argmax(-1) == self.value_N).float().mean().item()
        return share, max(0.0, bits_stored(nats, len(self.value_N), self.classes))

    @torch.no_grad()
    def remembered(self, block: Block) -> tuple[Tensor, Tensor, Tensor]:
        """Return which expert answers each fact, if it is right, and if without that expert.

        Shapes: int64 (N,), bool (N,), bool (N,).
        """
        logits_NC, routing = block(self.x_ND)
        alone_NC = block.out(F.layer_norm(self.x_ND, self.x_ND.shape[-1:]))  # x + nothing
        right_N, left_N = (x.argmax(-1) == self.value_N for x in (logits_NC, alone_NC))
        expert_N = torch.empty_like(self.value_N)
        expert_N[routing.token_N] = routing.expert_N
        return expert_N, right_N, left_N


class Paths:
    """Ask of random graphs whether a path of two edges leads from s to t; each graph is new.

    The input says for every other vertex whether s has an edge to it, and whether it has one to t.
    There is a path if one vertex has both. Edges are as frequent as makes half of the answers yes.
    """

    classes = 2

    def __init__(self, vertices: int = 16):
        self.vertices, self.width = vertices, 2 * vertices
        self.edge = (1 - 0.5 ** (1 / vertices)) ** 0.5

    def batch(self, draw: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        """Draw graphs: (size, 2 * vertices), of mean 0 and deviation 1, and the answers 0 or 1."""
        edge_T2V = torch.rand(size, 2, self.vertices, generator=draw) < self.edge
        deviation = (self.edge * (1 - self.edge)) ** 0.5
        x_TD = (edge_T2V.float().flatten(1) - self.edge) / deviation
        return x_TD, edge_T2V.all(dim=1).any(dim=1).long()

    @torch.no_grad()
    def measure(self, block: Block, graphs: int = 20_000, seed: int = 10**6) -> float:
        """Return the share of right answers on graphs that no training has seen."""
        x_TD, answer_T = self.batch(torch.Generator().manual_seed(seed), graphs)
        return (block(x_TD)[0].argmax(-1) == answer_T).float().mean().item()


def train_block(
    task: Facts | Paths, hidden: int, experts: int, steps: int = 700, seed: int = 0,
    batch: int = 1024,
) -> Block:  # fmt: skip
    """Return a block that has learned a task, its experts each ``hidden`` units wide."""
    width = task.x_ND.shape[1] if isinstance(task, Facts) else task.width
    block = _first_weights(lambda: Block(width, hidden, experts, task.classes), seed)
    draw = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        x_TD, class_T = task.batch(draw, batch)
        logits_TC, routing = block(x_TD)
        return F.cross_entropy(logits_TC, class_T) + _balance(routing)

    learn(block, loss, steps, lr=0.02)
    return block


# --- recall in context ---------------------------------------------------------------------------

RECALL_MODEL = MixtralConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, num_local_experts=16, num_experts_per_tok=2,
    max_position_embeddings=32, initializer_range=0.1,
)  # fmt: skip


class Pairs:
    """Ask for values that the text itself has named: k1 v1 k2 v2 ... then the keys in new order.

    Nothing can be stored for later, since the next text pairs other keys with other values.

    Args: pairs: in a text; keys, values: how many there are of each (ids 0 .. keys-1, and up).
    """

    def __init__(self, pairs: int = 4, keys: int = 32, values: int = 32):
        self.pairs, self.keys, self.values = pairs, keys, values

    def batch(self, draw: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        """Draw texts: ids (size, 3 * pairs), and the values that the last ``pairs`` ask for."""
        key_BP = torch.rand(size, self.keys, generator=draw).argsort(1)[:, : self.pairs]
        value_BP = self.keys + torch.randint(self.values, (size, self.pairs), generator=draw)
        order_BP = torch.rand(size, self.pairs, generator=draw).argsort(1)
        text_BS = torch.stack([key_BP, value_BP], dim=2).flatten(1)
        asked_BP = key_BP.gather(1, order_BP)
        return torch.cat([text_BS, asked_BP], dim=1), value_BP.gather(1, order_BP)

    @torch.no_grad()
    def measure(self, model: Mixtral, texts: int = 4000, seed: int = 10**6) -> float:
        """Return the share of right answers on new texts."""
        ids_BS, value_BP = self.batch(torch.Generator().manual_seed(seed), texts)
        answer_BP = model(ids_BS).logits_BSV[:, -self.pairs :].argmax(-1)
        return (answer_BP == value_BP).float().mean().item()


def train_recall(
    config: MixtralConfig, task: Pairs, steps: int = 1500, seed: int = 0, batch: int = 128
) -> Mixtral:
    """Return a model of this config that has learned to look back."""
    model = _first_weights(lambda: Mixtral(config), seed)
    draw = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        ids_BS, value_BP = task.batch(draw, batch)
        out = model(ids_BS)
        answer_BPV = out.logits_BSV[:, -task.pairs :]
        nats = F.cross_entropy(answer_BPV.flatten(0, 1), value_BP.flatten())
        return nats + _balance(out.routings)

    learn(model, loss, steps, lr=0.01)
    return model


# --- clusters ------------------------------------------------------------------------------------


class Clusters:
    """Draw points of four clusters whose sign only a look at the right feature tells.

    A point has four patches in random order: its cluster's feature times its sign, its cluster's
    centre, noise, and *another* cluster's feature times a random sign. So the sign can be read off
    by whoever knows the cluster; in the mean over the clusters every feature misleads as often.

    Source: Chen et al. 2022 (arXiv:2208.02813), Definition 3.1; sizes as in setting 1 of the
            authors' code.
    """

    count, size = 4, 50

    def __init__(self, seed: int = 0):
        self.draw = _source(seed)
        frame = torch.linalg.qr(torch.randn(self.size, self.size, generator=self.draw))[0]
        self.feature_KD, self.centre_KD = frame[: self.count], frame[self.count : 2 * self.count]

    def points(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw new points: x (number, 4, 50), the class 0 or 1 of each, its cluster."""

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(number, 1, generator=self.draw)

        def whole(low: int, high: int) -> Tensor:
            return torch.randint(low, high, (number,), generator=self.draw)

        class_T, cluster_T = whole(0, 2), whole(0, self.count)
        other_T, other_sign_T = (cluster_T + whole(1, self.count)) % self.count, whole(0, 2)
        sign_T1, other_sign_T1 = (2 * s[:, None] - 1 for s in (class_T, other_sign_T))
        noise_TD = torch.randn(number, self.size, generator=self.draw) / self.size**0.5
        patches = (
            self.feature_KD[cluster_T] * sign_T1 * uniform(0.5, 2),
            self.centre_KD[cluster_T] * uniform(1, 2),
            noise_TD,
            self.feature_KD[other_T] * other_sign_T1 * uniform(0.5, 3),
        )
        order_TP = torch.rand(number, len(patches), generator=self.draw).argsort(1)
        x_TPD = torch.stack(patches, dim=1)
        return 10 * x_TPD.gather(1, order_TP[..., None].expand_as(x_TPD)), class_T, cluster_T


class Filters(nn.Module):
    """Classify by cubed filters: E experts of 2m filters each, of which a point uses one.

    A class's score is the sum of its m filters' cubed answers over the patches, times the router's
    score for the expert if there is a choice. ``small`` first weights are a thousandth.

    Shapes: x (T, 4, 50) to scores (T, 2), and each point's expert (T,).
    Source: Chen et al. 2022 (arXiv:2208.02813), section 3; the scales as in the authors' code.
    """

    def __init__(self, experts: int, filters: int, small: bool, seed: int = 0):
        super().__init__()
        draw, scale = torch.Generator().manual_seed(seed), (1e-3 if small else 1.0) / 50**0.5
        uniform_EFD = 2 * torch.rand(experts, filters, 51, generator=draw) - 1
        self.weight = nn.Parameter(scale * uniform_EFD[..., :-1])
        self.bias = nn.Parameter(scale * uniform_EFD[..., -1])
        self.router = nn.Parameter(torch.zeros(experts, 50))

    def forward(self, x_TPD: Tensor, noise_TE: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        score_TE = x_TPD.sum(dim=1) @ self.router.T + noise_TE
        best_T = score_TE.argmax(dim=1)
        out_T2 = x_TPD.new_zeros(len(x_TPD), 2)
        for e, (weight_FD, bias_F) in enumerate(zip(self.weight, self.bias, strict=True)):
            mine = (best_T == e).nonzero()[:, 0]
            cubed_TF = (x_TPD[mine] @ weight_FD.T + bias_F).pow(3).sum(dim=1)
            own_T2 = cubed_TF.unflatten(1, (2, -1)).sum(dim=2)
            if len(self.weight) > 1:
                own_T2 = own_T2 * score_TE[mine, e : e + 1]
            out_T2 = out_T2.index_add(0, mine, own_T2)
        return out_T2, best_T


def train_filters(
    net: Filters, x_TPD: Tensor, class_T: Tensor, recipe: str, epochs: int, seed: int = 0
) -> Filters:
    """Train in full batches by one of two recipes, which the paper's code gives to its two arms.

    Args: recipe: "normalised": each expert steps by 0.001 along its gradient's direction, the
          router by 0.1 of its own; the scores go through a softmax before the cross-entropy, which
          has one of its own; it ends when the loss is at most 0.314, or 0.02 above its least.
          "adam": Adam, rate 0.01, weight decay 0.0005, to the last epoch.
    Raises: ValueError if there is no such recipe.
    """
    if recipe not in ("normalised", "adam"):
        raise ValueError(f'recipe must be "normalised" or "adam", not {recipe!r}')
    draw, least, best = torch.Generator().manual_seed(seed), math.inf, net.state_dict()
    adam = torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=5e-4)
    for _ in range(epochs):
        # New noise in [0, 1) on the router's scores: at first, who is chosen is a lottery.
        scores_T2, _ = net(x_TPD, torch.rand(len(x_TPD), len(net.weight), generator=draw))
        if recipe == "normalised":
            scores_T2 = scores_T2.softmax(dim=1)
        loss = F.cross_entropy(scores_T2, class_T)
        if loss < least:
            least, best = loss.item(), copy.deepcopy(net.state_dict())
        if recipe == "normalised" and (loss <= 0.314 or loss > least + 0.02):
            break
        net.zero_grad()
        loss.backward()
        adam.step() if recipe == "adam" else _step_normalised(net)
    net.load_state_dict(best)
    return net


@torch.no_grad()
def _step_normalised(net: Filters) -> None:
    assert net.weight.grad is not None and net.bias.grad is not None
    both_EFD = torch.cat([net.weight.grad, net.bias.grad[..., None]], dim=2)
    step_EFD = 1e-3 * both_EFD / both_EFD.flatten(1).norm(dim=1).clamp(min=1e-30)[:, None, None]
    net.weight.sub_(step_EFD[..., :-1])
    net.bias.sub_(step_EFD[..., -1])
    if net.router.grad is not None:
        net.router.sub_(0.1 * net.router.grad)


@torch.no_grad()
def accuracy(net: Filters, x_TPD: Tensor, class_T: Tensor) -> float:
    """Return the share of points whose class has the higher score."""
    return (net(x_TPD)[0].argmax(1) == class_T).float().mean().item()


# --- what a comparison promises ------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """Describe one arm of a comparison: experts, their width and choice, and how it was trained.

    A dense arm has one expert, of which every token uses one.
    """

    experts: int
    per_token: int
    width: int
    steps: int
    batch: int
    optimiser: str
