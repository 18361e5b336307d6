"""Traces in files: our own, in safetensors, and others', as tables in CSV.

A trace file is one safetensors file. Its metadata has the entry ``moe_lite.trace``, a JSON object:
``tokens`` (T strings), ``layer_names``, ``rules`` (as many, or none), ``source``, and ``per_token``
(for each layer K, or null where tokens differ in it). Its tensors are ``n.name`` for layer n from 0
and each field of :class:`~moe_lite.routing.Routing`, floats as float32, and ``text_T`` and
``position_T`` if the trace has them. NaN in ``logits_TE`` and ``probs_TE``: no gate says them.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..checked import check_room, conform, open_tensors, parse, read_text, short
from ..files import target, write
from ..routing import Routing
from ..trace import RoutingTrace

ABOUT = "moe_lite.trace"
WORDS: dict[str, Any] = {
    "tokens": list[str], "layer_names": tuple[str, ...], "rules": tuple[str, ...], "source": str,
    "per_token": list[int | None],
}  # fmt: skip
WHERE = ("text_T", "position_T")
COLUMNS = ("token", "layer", "expert", "weight")
MOST = 2**16 - 1  # experts of a layer: what a page can show


def save(trace: RoutingTrace, path: str | os.PathLike[str]) -> None:
    """Write a trace as one file, whole or not at all.

    Raises: OSError if it cannot be written.
    """
    words = {name: getattr(trace, name) for name in WORDS if name != "per_token"}
    words["per_token"] = [layer.per_token for layer in trace.layers]
    words["tokens"] = [token.encode("utf-8", "replace").decode() for token in trace.tokens]
    parts = {f"{n}.{k}": v for n, layer in enumerate(trace.layers) for k, v in vars(layer).items()}
    parts |= {name: getattr(trace, name) for name in WHERE}
    tensors = {
        name: (part.float() if part.is_floating_point() else part).clone(
            memory_format=torch.contiguous_format
        )
        for name, part in parts.items()
        if isinstance(part, Tensor)
    }
    target(path)
    write(path, to_bytes(tensors, {ABOUT: json.dumps(words)}))


def load(path: str | os.PathLike[str]) -> RoutingTrace:
    """Read a trace that :func:`save` wrote.

    Raises: FileNotFoundError if there is none; ValueError, naming the file, for whatever is no
            trace, or whose parts do not fit together.
    """
    with open_tensors(path) as file:
        said = (file.metadata() or {}).get(ABOUT)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if said is None:
        raise ValueError(f"{path} is not a trace: its metadata has no {ABOUT!r}")
    found = parse(said, f"{path}: {ABOUT}")
    if not isinstance(found, dict) or found.keys() != WORDS.keys():
        raise ValueError(f"{path}: {ABOUT} must be an object of {', '.join(WORDS)}")
    words: dict[str, Any] = {
        name: conform(found[name], kind, f"{path}: {name}") for name, kind in WORDS.items()
    }
    sizes, names = words.pop("per_token"), words["layer_names"]
    layers: list[dict[str, Any]] = [{"per_token": size} for size in sizes]
    known = {field.name: field for field in fields(Routing)}
    for name, tensor in tensors.items():
        place = re.fullmatch(r"(0|[1-9][0-9]{0,5})\.(\w{1,40})", name)
        if place and int(place[1]) < len(layers) and place[2] in known and place[2] != "per_token":
            layers[int(place[1])][place[2]] = tensor
        elif name not in WHERE:
            raise ValueError(f"{path} is not a trace: it has {short(name)}")
    try:
        for n, parts in enumerate(layers):
            if lacks := [k for k, f in known.items() if f.default is MISSING and k not in parts]:
                raise ValueError(f"layer {n} lacks {', '.join(lacks)}")
            check_routing(Routing(**parts), f"layer {n}", unknown=True)
        if len(words["rules"]) not in (0, len(names)):
            raise ValueError(f"{len(words['rules'])} rules do not fit {len(names)} layers")
        where: dict[str, Any] = {name: tensors.get(name) for name in WHERE}
        for name, x_T in where.items():
            if x_T is not None and (x_T.dtype, x_T.shape) != (torch.int64, (len(words["tokens"]),)):
                raise ValueError(f"{name} is {x_T.dtype} {tuple(x_T.shape)}, not a number a token")
        return RoutingTrace(layers=tuple(Routing(**parts) for parts in layers), **words, **where)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def from_csv(
    path: str | os.PathLike[str],
    tokens: Sequence[str] | None = None,
    num_experts: int | None = None,
) -> RoutingTrace:
    """Read a trace that was recorded elsewhere: a CSV table with one row for each choice.

    Its first line names the columns: ``token`` (counted from 0), ``layer`` (a number or a name),
    ``expert`` (counted from 0), ``weight``, and, if the file is to say how tokens are shown,
    ``text``; others are read past. The scores are unknown.

    Args:   tokens: how they are shown, instead of ``text``. num_experts: of a layer; None: one
            more than the largest expert in the file.
    Raises: FileNotFoundError if there is none; ValueError, naming file and line, for a row that
            cannot be, a choice that stands there twice, a token of two texts, or one without any
            choice.
    """
    path, text = Path(path), read_text(path)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        reader.fieldnames = names = [name.strip() for name in reader.fieldnames or ()]
        if missing := [name for name in COLUMNS if name not in names]:
            raise ValueError(f"{path}: the first line must name {', '.join(missing)}")
        if twice := [name for name in (*COLUMNS, "text") if names.count(name) > 1]:
            raise ValueError(f"{path}: the first line names {', '.join(twice)} twice")
        shown: dict[int, str] = {}
        choices: dict[str, dict[tuple[int, int], float]] = {}
        for row in reader:
            here = f"{path}, line {reader.line_num}"
            if None in row:  # a comma in a text that has no quotes
                raise ValueError(f"{here}: more than the {len(names)} columns of the first line")
            token, expert = (_count(row[name], f"{here}: {name}") for name in COLUMNS[::2])
            layer = choices.setdefault(_named(row["layer"], f"{here}: layer"), {})
            if (token, expert) in layer:
                raise ValueError(f"{here}: layer {row['layer']} has this choice already")
            if expert >= min(num_experts or MOST, MOST):
                raise ValueError(f"{here}: expert {expert} is none of {num_experts or MOST}")
            layer[token, expert] = _weight(row["weight"], f"{here}: weight")
            text = row.get("text") or shown.get(token, "")
            if shown.setdefault(token, text) not in ("", text):
                raise ValueError(f"{here}: token {token} was {short(shown[token])} before")
            shown[token] = text
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not a CSV table ({error})") from None
    if not shown:
        raise ValueError(f"{path}: there is no row")
    T = len(tokens) if tokens is not None else len(shown)
    if max(shown) >= T:
        raise ValueError(f"{path}: token {max(shown)} is none of {T}: they are counted from 0")
    E = num_experts or 1 + max(expert for layer in choices.values() for _, expert in layer)
    check_room(8 * T * E * len(choices), f"{path}: {T:,} tokens by {E:,} experts by layer")
    order = re.compile(r"[0-9]{1,9}").fullmatch
    names = sorted(choices, key=lambda name: (0, int(name)) if order(name) else (1, 0))
    return RoutingTrace(
        [shown[t] or str(t) for t in range(T)] if tokens is None else list(tokens),
        tuple(_routing(choices[name], T, E) for name in names), tuple(names), path.name,
        ("scores unknown: the table has none",) * len(names),
    )  # fmt: skip


def _count(text: Any, what: str) -> int:
    if not isinstance(text, str) or not re.fullmatch(r"\s*[0-9]{1,9}\s*", text):
        raise ValueError(f"{what} must be a whole number from 0, not {short(text)}")
    return int(text)


def _named(text: Any, what: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{what} must be a number or a name, not {short(text)}")
    return text.strip()


def _weight(text: Any, what: str) -> float:
    try:
        if math.isfinite(value := float(text)) and abs(value) < 1e30:
            return value
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{what} must be a finite number, not {short(text)}")


def _routing(choices: dict[tuple[int, int], float], T: int, E: int) -> Routing:
    """Make a layer's routing of its choices, each token's largest weight first."""
    order = sorted(choices, key=lambda pair: (pair[0], -choices[pair]))
    token_N, expert_N = torch.tensor(order).unbind(1)
    nan_TE = torch.full((1, 1), math.nan).expand(T, E)
    counts = token_N.bincount(minlength=T).unique().tolist()
    return Routing(
        nan_TE, nan_TE, token_N.clone(), expert_N.clone(),
        torch.tensor([choices[pair] for pair in order]),
        per_token=counts[0] if len(counts) == 1 else None,
    )  # fmt: skip


def check_routing(routing: Routing, what: str, *, unknown: bool = False) -> None:
    """Refuse a routing whose parts do not fit: the end of a part's name says its shape.

    Args:   unknown: scores may be NaN. what: begins the sentence.
    Raises: ValueError naming the part.
    """
    if routing.logits_TE.dim() != 2 or not routing.logits_TE.numel():
        raise ValueError(f"{what}.logits_TE has shape {tuple(routing.logits_TE.shape)}")
    T, E, N = routing.num_tokens, routing.num_experts, routing.token_N.numel()
    for name, part in vars(routing).items():
        if not isinstance(part, Tensor):
            continue
        shape = tuple({"T": T, "E": E, "N": N}[letter] for letter in name.rpartition("_")[2])
        dtype = {"token_N": torch.int64, "expert_N": torch.int64, "keep_N": torch.bool,
                 "mask_T": torch.bool}.get(name, torch.float32)  # fmt: skip
        fits = part.shape == shape and part.dtype == dtype
        may = unknown and name in ("logits_TE", "probs_TE")
        if not fits or not (part.isfinite() | (part.isnan() if may else False)).all():
            raise ValueError(f"{what}.{name} is {part.dtype} {tuple(part.shape)}, not a finite "
                             f"{dtype} {shape}")  # fmt: skip
    for name, index_N, size in (("token_N", routing.token_N, T), ("expert_N", routing.expert_N, E)):
        if N and not 0 <= int(index_N.min()) <= int(index_N.max()) < size:
            raise ValueError(f"{what}.{name} leads outside the {size} there are")
    K = routing.per_token
    if K is not None and (K < 1 or N != T * K or (routing.token_N != torch.arange(N) // K).any()):
        raise ValueError(f"{what}.per_token is {K}, but token_N says otherwise")
