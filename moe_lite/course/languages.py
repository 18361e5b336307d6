"""Languages whose best router is known: the ground truth for stories about experts.

A sentence has four words: a tag that names its language, a noun, a verb, and another noun, which
follows from the first by one of a few permutations of the nouns. *Which* one is the only thing in
which the two kinds of world differ:

====================== ============================================= ==========================
the world's ``cause``  the permutation is chosen by                  so the best router looks at
====================== ============================================= ==========================
``"language"``         the sentence's language, whatever the verb    the topic, not the token
``"verb"``             the verb, whatever the language               the token, not the topic
====================== ============================================= ==========================

All languages share their nouns and verbs, and each prefers one verb, as texts on a topic prefer
some words. So in both worlds token and topic go together, and only one of them is the cause.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from scipy import stats
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..config import MixtralConfig
from ..losses import load_balancing_loss
from ..model import Mixtral
from ..routers import ROUTERS, Router, Scores
from ..routing import Routing
from ..trace import RoutingTrace
from .analysis import Labels, at_tokens, permuted
from .data import SPLITS, Batch, Corpus
from .sweep import Outcome, Setting, run

Cause = Literal["language", "verb"]


@dataclass(frozen=True)
class Languages:
    """Draw sentences in which the language, or the verb, decides what follows.

    Nouns have the ids 0 .. nouns-1, verbs the next ``count``, tags the last ``count``.

    Args:    cause:  what chooses the permutation. count: how many languages, verbs and
                     permutations there are. nouns: how many of them; tilt: how often a language
                     takes its own verb (the others share the rest). noise: how often the last
                     noun is any noun at all. seed: of the permutations.
    Raises:  ValueError naming the field and the value that cannot be.
    """

    cause: Cause = "language"
    count: int = 8
    nouns: int = 32
    tilt: float = 0.7
    noise: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.cause not in get_args(Cause):
            raise ValueError(f"cause must be one of {get_args(Cause)}, not {self.cause!r}")
        for name in ("count", "nouns"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, not {getattr(self, name)}")
        for name in ("tilt", "noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {getattr(self, name)}")

    @property
    def decoy(self) -> Cause:
        """Name the label that only goes together with the cause."""
        return "verb" if self.cause == "language" else "language"

    @property
    def vocab_size(self) -> int:
        return self.nouns + 2 * self.count

    @property
    def next_CN(self) -> Tensor:
        """Return the permutations: row c holds what follows each noun."""
        rng = torch.Generator().manual_seed(self.seed)
        return torch.stack([torch.randperm(self.nouns, generator=rng) for _ in range(self.count)])

    @property
    def floor(self) -> float:
        """Return the loss of the last noun that nobody can go below, in nats."""
        wrong = self.noise / self.nouns
        right = 1 - self.noise + wrong
        return -right * math.log(right) - (self.nouns - 1) * wrong * math.log(wrong or 1)

    def batch(
        self, split: str, batch_size: int, seq_len: int = 3, *, seed: int = 0, step: int = 0
    ) -> Batch:
        """Draw sentences, all languages equally often: a pure function of (split, seed, step).

        Shapes: as of :class:`moe_lite.course.data.Batch`, S = 3; domain_BS is the language.
        Raises: ValueError if there is no such split, or seq_len is not 3.
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
        if seq_len != 3:
            raise ValueError(f"a sentence has 3 words before its last, not {seq_len}")
        rng = torch.Generator().manual_seed(((seed << 32) + 2 * step + (split == "train")) % 2**63)
        B, C, N = batch_size, self.count, self.nouns
        language_B = (torch.arange(B) + torch.randint(C, (1,), generator=rng)) % C
        other_B = torch.randint(1, C, (B,), generator=rng)
        own_B = torch.rand(B, generator=rng) < self.tilt
        verb_B = (language_B + other_B.where(~own_B, 0)) % C
        noun_B, any_B = torch.randint(N, (2, B), generator=rng)
        noisy_B = torch.rand(B, generator=rng) < self.noise
        cause_B = verb_B if self.cause == "verb" else language_B
        last_B = any_B.where(noisy_B, self.next_CN[cause_B, noun_B])
        text_BS = torch.stack([N + C + language_B, noun_B, N + verb_B, last_B], 1)
        domain_BS = language_B[:, None].expand(-1, 3)
        return Batch(text_BS[:, :-1].contiguous(), text_BS[:, 1:].contiguous(), domain_BS)

    def labels(self, ids_BS: Tensor) -> dict[Cause, Tensor]:
        """Return each sentence's language and verb, numbered from 0: (B,) each."""
        tag_B, verb_B = ids_BS[:, 0], ids_BS[:, 2]
        return {"language": tag_B - self.nouns - self.count, "verb": verb_B - self.nouns}

    def trace(self, model: Mixtral, ids_BS: Tensor) -> RoutingTrace:
        """Record how the verbs are routed: after them, and nowhere else, one noun is right."""
        with torch.no_grad():
            routings = model(ids_BS).routings
        verbs = (at_tokens(r.detach(), torch.arange(2, r.num_tokens, 3)) for r in routings)
        # A choice counts, also where the expert was full.
        layers = tuple(replace(routing, keep_N=None) for routing in verbs)
        names = tuple(f"layers.{i}" for i in range(len(layers)))
        return RoutingTrace(
            [f"verb {v}" for v in self.labels(ids_BS)["verb"].tolist()], layers, names, "languages"
        )

    def setting(self, router: str = "switch", **training: Any) -> Setting:
        """Describe a small model for this world: one layer, an expert for each permutation."""
        model = {
            "vocab_size": self.vocab_size, "hidden_size": 32, "intermediate_size": 4,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
            "num_local_experts": self.count, "num_experts_per_tok": 1,
            "initializer_range": 0.1, "tie_word_embeddings": False,
        }  # fmt: skip
        recipe = {"steps": 600, "batch_size": 256, "seq_len": 3, "lr": 0.01, "aux_coef": 0.1}
        return Setting(router, model=model, training=recipe | training, balance="verbs")

    def learn(self, setting: Setting, seed: int = 0) -> Outcome:
        """Train a model on sentences of this world.

        Besides the routers of :data:`~moe_lite.routers.ROUTERS` there are "by language" and
        "by verb", which know their label and learn nothing. Balance is asked of the verbs alone:
        what the experts do with tags and nouns is nobody's concern here.
        """
        known = {f"by {by}": partial(_known, self, by) for by in get_args(Cause)}
        corpus = cast(Corpus, self)  # batches are all that training takes from it
        return run(setting, corpus, seed, routers={**ROUTERS, **known}, balances={"verbs": _verbs})


@dataclass(frozen=True)
class Agreement:
    """Hold how well experts fit labels, and the same for permuted labels, one number a seed.

    accuracy: the share of tokens at the expert that stands for their label, under the best
    one-to-one match; information: the normalised mutual information, 2 I / (H + H), 0 to 1.
    """

    accuracy: float
    information: float
    null_accuracy: tuple[float, ...]
    null_information: tuple[float, ...]

    def adjusted(self, which: Literal["accuracy", "information"] = "accuracy") -> float:
        """Stretch a score so that the null's mean becomes 0 and the best stays 1."""
        value, null = getattr(self, which), getattr(self, f"null_{which}")
        chance = math.fsum(null) / len(null)
        return (value - chance) / (1 - chance)


def agreement(expert_T: Labels, label_T: Labels, seeds: Iterable[int] = range(20)) -> Agreement:
    """Return how well a learned routing fits the true one, whatever the experts are numbered.

    Args:   expert_T: one expert a token, as ``choices_LTK(trace)[layer, :, 0]``; label_T: the
            true one; seeds: one permutation of the labels each.
    Raises: ValueError if they differ in length or are negative.
    Source: the best match is Munkres 1957's assignment problem, solved by SciPy.
    """
    expert_T, label_T = (torch.as_tensor(x).flatten().long() for x in (expert_T, label_T))
    if expert_T.shape != label_T.shape or not len(label_T):
        raise ValueError(f"{len(expert_T)} experts do not fit {len(label_T)} labels")
    if min(expert_T.min(), label_T.min()) < 0:
        raise ValueError("experts and labels are numbers from 0")
    C, E = int(label_T.max()) + 1, int(expert_T.max()) + 1

    def score(label_T: Tensor) -> tuple[float, float]:
        count_CE = torch.bincount(label_T * E + expert_T, minlength=C * E).view(C, E).numpy()
        best = linear_sum_assignment(count_CE, maximize=True)
        both = stats.entropy(count_CE.sum(0)) + stats.entropy(count_CE.sum(1))
        shared = both - stats.entropy(count_CE.flatten())
        return count_CE[best].sum() / len(label_T), 2 * shared / both if both > 0 else 0.0

    accuracy, information = score(label_T)
    nulls = [score(permuted(label_T, seed)) for seed in seeds]
    return Agreement(accuracy, information, tuple(n[0] for n in nulls), tuple(n[1] for n in nulls))


class Known(Router):
    """Route by a label that is read off the ids: the router that needs no training."""

    def __init__(self, world: Languages, by: Cause):
        super().__init__()
        self.world, self.by = world, by

    def score(self, x_TD: Tensor, ids_T: Tensor | None = None) -> Scores:
        assert ids_T is not None
        label_B = self.world.labels(ids_T.view(-1, 3))[self.by]
        return Scores.fixed(label_B.repeat_interleave(3), self.world.count, x_TD.dtype)


def _known(world: Languages, by: Cause, config: MixtralConfig) -> Known:
    return Known(world, by)


def _verbs(routings: Sequence[Routing]) -> Tensor:
    return load_balancing_loss(routings, torch.arange(routings[0].num_tokens) % 3 == 2)
