"""The live page: the routing explorer with the model itself in the file, and no Python behind."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from itertools import compress
from typing import Any, ClassVar

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from ...config import MixtralConfig
from ...model import Mixtral
from ..asking import Questions
from ..data import token_bytes
from ..effects import Run
from ..film import Film
from ..texts import BOOK
from .portable import PortableWidget, deflated
from .routing_explorer import RoutingExplorer

TEXT = "Every token of this text goes to a few experts. Type, and see which."
LARGEST = 12_000_000  # bytes of the page
OFFERED, TRIED = 12, 36  # names of the book in the menu, of so many at its beginning
LEVELS = (127, 63, 31)  # the largest whole number that a weight becomes, the finest first
CLASSES = r"\\p\{\^?\w+\}|\\[sSwWdD]"  # in a pattern: what differs from one Unicode to the next


class LivePage(RoutingExplorer):
    """Put a small model, its tokenizer and the film of its training into one HTML file.

    ::

        LivePage(model, tokenizer, "To be, or not").to_html("live.html")

    In the page a worker runs the forward pass (``live_model.js``) and the tokenizer
    (``live_tokenizer.js``) and answers as a kernel would: any text, any question, and text that
    it writes itself. The weights are whole numbers times a scale for each row, as fine as the
    page's size allows; the router and the norms stay as they are.

    Args:    model: with float32 weights; is not changed. text: to begin with. film: of its
             training; where the page has no room for all of it, fewer texts and steps.
             title: what the page calls the model. openings: texts that are offered to begin
             with, as (name, text). book: the phone book's names and numbers, which may be asked
             for: in a menu a few that the page's model knows, in a field all.
    Attrs:   model: as the page has it, its weights rounded. about: what the rounding cost.
    Raises:  ValueError if the page would be larger than 12 MB, or for a tokenizer of another kind
             than the course's.
    """

    page: ClassVar[tuple[str, ...]] = ("page.js", "live_page.js")
    worker: ClassVar[tuple[str, ...]] = ("live_model.js", "live_tokenizer.js", "live_worker.js")

    def __init__(
        self,
        model: Mixtral,
        tokenizer: Tokenizer,
        text: str = "",
        *,
        film: Film | None = None,
        title: str = "A Mixtral",
        openings: list[tuple[str, str]] | None = None,
        book: list[tuple[str, str]] | None = None,
    ):
        check_size(model.config)
        text = text if text.strip() else TEXT
        vocabulary = tokenizer_parts(tokenizer)
        self._called = title
        fixed = {
            "vocabulary": vocabulary, "config": asdict(model.config), "typing": True, "live": True,
            "openings": [list(opening) for opening in openings or ()],
            "book": [list(entry) for entry in book or ()],
        }  # fmt: skip
        reels = [] if film is None or film.routings else [_reel(cut) for cut in _shorter(film)]
        none: list[dict[str, Any]] = [{}]
        packs = [_Pack(model, levels) for levels in LEVELS]
        room = LARGEST - 200_000 - len(json.dumps(fixed)) - 60 * len(text.encode())
        # A film with coarser weights rather than none with finer ones; then as much as there is
        # room for.
        tried = [(pack, reel) for some in (reels, none) for pack in packs for reel in some]
        pack, reel = next(
            (t for t in tried if t[0].size + len(json.dumps(t[1])) <= room), (None, {})
        )
        if pack is None:
            raise ValueError(_too_large(model.config))
        self.model = pack.model
        self.about = told(
            model, self.model, tokenizer, text if film is None else film.ids_BS, pack.levels
        )
        super().__init__(text, model=self.model, tokenizer=tokenizer)
        self.selected = len(self.tokens) - 1
        self._extra = {
            **fixed, "layout": pack.layout, "weights": pack.weights,
            "reel": reel, "about": self.about,
            "offered": known(self.model, tokenizer, [name for name, _ in book or ()][:TRIED]),
        }  # fmt: skip

    @property
    def title(self) -> str:
        """Return in one line what is shown."""
        return f"{self._called}, live: type, and see where every token goes"

    def state(self) -> dict[str, Any]:
        """Return what the page needs: what is shown first, and the model."""
        return {**PortableWidget.state(self), **self._extra, "source": "untouched"}


def check_size(config: MixtralConfig) -> None:
    """Refuse a model that no page has room for, before it is loaded.

    Raises: ValueError with its number of parameters.
    """
    if config.num_parameters > LARGEST * 4 / 3:  # two thirds of a byte each, in base64
        raise ValueError(_too_large(config))


def _too_large(config: MixtralConfig) -> str:
    return (
        f"the model's {config.num_parameters:,} parameters do not fit a live page of "
        f"{LARGEST // 10**6} MB: take one of about ten million, or leave out --live"
    )


# --- the weights ------------------------------------------------------------------------------


class _Pack:
    """Hold a model's weights as a page of one fineness would."""

    def __init__(self, model: Mixtral, levels: int):
        self.levels = levels
        self.model, self.layout, weights = quantise(model, levels)
        self.weights = deflated(weights)
        self.size = len(json.dumps([self.layout, self.weights]))


@torch.no_grad()
def quantise(model: Mixtral, levels: int) -> tuple[Mixtral, dict[str, dict[str, int]], bytes]:
    """Round each row of each matrix to whole numbers from -levels to levels times a scale.

    The router's matrices and the norms stay float32: they are small, and decide who goes where.

    Returns: the model with the rounded weights; from each parameter's name to its rows, its
             columns, and where its numbers and scales begin; and the bytes of all.
    """
    small, layout, blocks, at = copy.deepcopy(model).float(), {}, [], 0

    def put(part: Tensor) -> int:
        nonlocal at
        blocks.append(part.contiguous().numpy().tobytes())
        blocks[-1] += bytes(-len(blocks[-1]) % 4)
        at += len(blocks[-1])
        return at - len(blocks[-1])

    for name, parameter in small.named_parameters():
        x_RC = parameter.reshape(-1, parameter.shape[-1]) if parameter.dim() > 1 else parameter
        place = dict(zip(("rows", "cols"), x_RC.shape, strict=False))
        if parameter.dim() > 1 and not name.endswith(".gate.weight"):
            scale_R1 = (x_RC.abs().amax(dim=1, keepdim=True) / levels).clamp_min(1e-30)
            whole_RC = (x_RC / scale_R1).round().to(torch.int8)
            parameter.copy_((whole_RC * scale_R1).reshape(parameter.shape))
            place |= {"scale": put(scale_R1), "at": put(whole_RC)}
        else:
            place["at"] = put(x_RC)
        layout[name] = place
    return small, layout, b"".join(blocks)


def told(
    model: Mixtral, small: Mixtral, tokenizer: Tokenizer, text: str | Tensor, levels: int
) -> str:
    """Measure what rounding the weights costs on a text, and say it in two sentences."""
    ids_BS = torch.tensor([tokenizer.encode(text).ids]) if isinstance(text, str) else text
    size = sum(len(token_bytes(tokenizer, i)) for i in ids_BS[:, 1:].flatten().tolist())
    bits, experts = [], []
    for each in (model, small):
        run = Run.of(each.float() if each is small else copy.deepcopy(each).float(), ids_BS)
        loss = run.loss_T.reshape(ids_BS.shape)[:, 1:].double().sum().item()
        bits.append(loss / math.log(2) / max(size, 1))
        experts.append([r.expert_N.reshape(r.num_tokens, -1).sort(dim=1)[0] for r in run.routings])
    same = torch.stack([(a == b).all(1) for a, b in zip(*experts, strict=True)]).double().mean()
    what = "the text above" if isinstance(text, str) else "the film's held-out text"
    return (
        f"The {model.config.num_parameters:,} weights are stored as whole numbers from {-levels} "
        f"to {levels} times a scale for each row. On {what} ({ids_BS.numel():,} tokens) that "
        f"costs {bits[1] - bits[0]:+.4f} bits per byte ({bits[0]:.4f} before), and "
        f"{same:.1%} of the choices are the same experts."
    )


def known(model: Mixtral, tokenizer: Tokenizer, names: list[str]) -> list[str]:
    """Return the first of these names of the phone book whose numbers a model knows."""
    hits = Questions(tokenizer, names=names).known(model).tolist() if names else []
    return list(compress(names, hits))[:OFFERED]


# --- the tokenizer ----------------------------------------------------------------------------


def tokenizer_parts(tokenizer: Tokenizer) -> dict[str, Any]:
    """Take apart a byte-level BPE tokenizer, for ``live_tokenizer.js``.

    Raises: ValueError if it is of another kind, or does what that file does not.
    """
    said = json.loads(tokenizer.to_str())
    model, steps = said["model"], (said["pre_tokenizer"] or {}).get("pretokenizers", [])
    pattern = steps[0].get("pattern", {}).get("Regex", "") if steps else ""
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    plain = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "byte_fallback": False,
             "ignore_merges": False}  # fmt: skip
    added = said["added_tokens"]
    bad = (
        "its model is no BPE" if not isinstance(tokenizer.model, models.BPE)
        else "it is not byte-level" if not isinstance(tokenizer.decoder, decoders.ByteLevel)
        else "it changes the text" if said["normalizer"]
        else "it adds tokens" if said["post_processor"] and tokenizer.encode("").ids
        else "it splits words in another way" if len(steps) != 2 or steps[0] != split
        or steps[1]["type"] != "ByteLevel" or steps[1]["use_regex"] or steps[1]["add_prefix_space"]
        or re.search(r"[^\w ?+*|()'\\!:^\[\]&-]", re.sub(CLASSES, "", pattern))
        else "its BPE has settings" if any(model.get(n, v) != v for n, v in plain.items())
        else "its added tokens have settings"
        if any(a["single_word"] or a["lstrip"] or a["rstrip"] for a in added)
        else ""
    )  # fmt: skip
    vocabulary = tokenizer.get_vocab()
    if not bad and sorted(vocabulary.values()) != list(range(len(vocabulary))):
        bad = "its ids have gaps"
    tokens = (
        [] if bad else [token_bytes(tokenizer, i).decode("latin-1") for i in range(len(vocabulary))]
    )
    if not bad and not {chr(byte) for byte in range(256)} <= set(tokens):
        bad = "it lacks single bytes"
    if bad:
        raise ValueError(f"the live page cannot run this tokenizer: {bad}")
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    return {
        "pattern": re.sub(CLASSES, lambda found: f"[{_ranges(found[0])}]", pattern),
        "tokens": tokens,
        "merges": [[model["vocab"][part] for part in pair] for pair in merges],
        "special": [[a["content"], a["id"]] for a in added],
    }


@cache
def _ranges(kind: str) -> str:
    r"""Spell out a class of characters, as ``\u{61}-\u{7a}``, as the tokenizers library has it."""
    every = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    split = pre_tokenizers.Split(Regex(f"{kind}+"), "removed", invert=True)
    points = [ord(char) for part, _ in split.pre_tokenize_str(every) for char in part]
    ranges: list[list[int]] = []
    for point in points:
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return "".join(rf"\u{{{a:x}}}" + (rf"-\u{{{b:x}}}" if b > a else "") for a, b in ranges)


# --- the film ---------------------------------------------------------------------------------


def _shorter(film: Film) -> Iterator[Film]:
    """Give the film whole, then one text of each domain, then every second step of that."""
    rows = [n for n, d in enumerate(film.domain_BS[:, 0]) if d not in film.domain_BS[:n, 0]]
    S, steps = film.ids_BS.shape[1], film.steps
    for texts, kept in ((range(len(film.ids_BS)), steps), (rows, steps), (rows, steps[1::2])):
        places = [t for n in texts for t in range(n * S, (n + 1) * S)]
        cut = Film(film.ids_BS[list(texts)], film.domain_BS[list(texts)], film.domains,
                   [film.tokens[t] for t in places], kept, film.top_k)  # fmt: skip
        cut.logits = {step: film.logits[step][:, places] for step in kept}
        yield cut


def _reel(film: Film | None) -> dict[str, Any]:
    """Give what the explorer shows a film with."""
    if film is None:
        return {}
    shown = RoutingExplorer(film=film)
    logits = shown.film["logits"]
    return {
        "tokens": shown.tokens, "layer_names": shown.layer_names,
        "num_experts": shown.num_experts, "colors": shown.colors, "queues": shown.queues,
        "source": shown.source, "film": {**shown.film, "logits": deflated(logits)},
    }  # fmt: skip


def openings(film: Film | None, tokenizer: Tokenizer, tokens: int = 12) -> list[tuple[str, str]]:
    """Return a beginning from each domain of the film's text, to go on from.

    From a phone book it is an entry and the next one's name, whose number is to be recalled.
    """
    if film is None:
        return []
    found: dict[str, str] = {}
    for d, ids in zip(film.domain_BS[:, 0], film.ids_BS, strict=True):
        name, text = film.domains[int(d)], tokenizer.decode(ids[:tokens].tolist()).rstrip("\ufffd")
        asked = re.match(r".+\n.+?: ", tokenizer.decode(ids.tolist())) if name == BOOK else None
        found.setdefault(name, asked[0] if asked else text)
    return list(found.items())
