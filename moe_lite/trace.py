"""Record where tokens went: in our models and in Hugging Face's alike.

What the experts were handed (tokens, expert indices, weights) is the truth. The gate's scores
explain it where they do (:mod:`~moe_lite.explain`); where they do not, they are unknown: NaN.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from .explain import Facts, explain
from .layer import MoELayer
from .routing import Routing

INDEX = ("top_k_index", "router_indices", "selected_experts", "router_mask")
WEIGHT = ("top_k_weights", "routing_weights", "router_probs")


@dataclass(frozen=True, eq=False)
class RoutingTrace:
    """Keep a run's routing: what the widgets, the figures and the analyses read; nothing else.

    Args:
        tokens:      T strings, as they should be shown; text after text.
        layers:      one detached :class:`Routing` on the CPU for each MoE layer and pass.
        layer_names: as many names.
        source:      what was run, in words.
        rules:       for each layer in words how its choice follows from its scores; with
                     "unknown" in it where it does not. Empty: not asked.
        text_T, position_T: int64, the text of each token and its place there; None: one text.
    Raises:
        ValueError if the lengths do not agree.
    """

    tokens: list[str]
    layers: tuple[Routing, ...]
    layer_names: tuple[str, ...]
    source: str
    rules: tuple[str, ...] = ()
    text_T: Tensor | None = None
    position_T: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.layer_names):
            raise ValueError(f"{len(self.layers)} layers but {len(self.layer_names)} layer names")
        for name, layer in zip(self.layer_names, self.layers, strict=True):
            if layer.num_tokens != len(self.tokens):
                raise ValueError(
                    f"layer {name} routed {layer.num_tokens} tokens, "
                    f"but the trace has {len(self.tokens)}"
                )


@dataclass(eq=False)
class _Call:
    """Hold one call of the model: positions start .. end-1 of a batch of texts."""

    start: int
    end: int
    layers: dict[str, list[Routing]] = field(default_factory=dict)  # one for each pass
    whole: bool = False


@dataclass(eq=False)
class _Batch:
    """Hold the calls that one batch of texts was read in, each from where the last one ended."""

    ids_BS: Tensor
    cache: Any
    mask_BS: Tensor | None = None
    calls: list[_Call] = field(default_factory=list)

    def cut(self, length: int) -> None:
        """Forget what lies behind a position: rejected guesses, and what is read again."""
        self.ids_BS = self.ids_BS[:, :length]
        self.calls = [call for call in self.calls if call.start < length]


class Recorder:
    """Hold what :func:`record` has seen."""

    def __init__(self, model: nn.Module, names: list[str], show: Callable[[list[int]], list[str]]):
        package = type(model).__module__.partition(".")[0]
        self._source = f"{package}.{type(model).__name__}"
        self._names, self._show = names, show
        self._batches: list[_Batch] = []
        self._open: _Call | None = None
        self._facts: dict[str, Facts] = {}
        self._first: int | None = None  # of the batches that a running generate has begun
        self._refusal = ""

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = next(iter(args), kwargs.get("input_ids", kwargs.get("ids_BS")))
        if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.dim() > 2:
            raise ValueError("a trace needs the token ids: call the model with them, (B, S)")
        ids_BS = ids.detach().cpu().reshape(-1, ids.shape[-1])
        cache = kwargs.get("past_key_values", kwargs.get("cache"))
        mine = [b for b in self._batches if cache is not None and b.cache is cache]
        start = _length(cache, mine[-1].ids_BS.shape[1] if mine else 0)
        if mine and start:
            batch = mine[-1]
        elif start:
            raise ValueError(f"the {start} tokens in this call's cache were read before recording")
        else:
            if self._first is not None:  # without a cache, generate reads all from the start again
                del self._batches[self._first :]
            batch = _Batch(ids_BS[:, :0], cache)
            self._batches.append(batch)
        if len(batch.ids_BS) != len(ids_BS) or batch.ids_BS.shape[1] < start:
            raise ValueError(
                f"{len(ids_BS)} texts from position {start} do not go on from {len(batch.ids_BS)} "
                f"of {batch.ids_BS.shape[1]} tokens: one trace cannot join them"
            )
        batch.cut(start)
        batch.ids_BS = torch.cat([batch.ids_BS, ids_BS], dim=1)
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2:  # of all the text so far
            batch.mask_BS = mask.detach().cpu().bool()
        self._open = _Call(start, batch.ids_BS.shape[1])
        batch.calls.append(self._open)

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._open is not None:
            self._open.whole, self._open = True, None
        if self._batches and self._batches[-1].cache is None:
            self._batches[-1].cache = getattr(output, "past_key_values", None)

    def _add(self, name: str, routing: Routing, facts: Facts | None = None) -> None:
        if self._open is None:
            if torch._C._current_graph_task_id() != -1:
                return  # gradient checkpointing runs a layer again: the first run counts
            raise ValueError(f"{name} ran outside the recorded model; record the module you call")
        if facts is None or facts.scored:
            routing.check(name)
        if facts is not None:
            self._facts[name] = facts
        self._open.layers.setdefault(name, []).append(routing.detach())

    def _generated(self, generate: Callable[..., Any], model: Any) -> Callable[..., Any]:
        """Hold what was read against what is returned, so that no trace is of another text."""

        def run(*args: Any, **kwargs: Any) -> Any:
            config = kwargs.get("generation_config") or getattr(model, "generation_config", None)
            beams = kwargs.get("num_beams") or getattr(config, "num_beams", 1) or 1
            self._first = len(self._batches)
            try:
                output = generate(*args, **kwargs)
            finally:
                first, self._first = self._first, None
            texts: Tensor = getattr(output, "sequences", output)
            for batch in self._batches[first:]:
                batch.cut(texts.shape[1])
                read = batch.ids_BS
                told = texts.detach().cpu()[:, : read.shape[1]]
                if beams > 1 or len(self._batches) > first + 1 or not torch.equal(read, told):
                    self._refusal = (
                        "generate read other texts than it returned, as beam search does: "
                        "record one forward pass over what it returned instead"
                    )
            return output

        return run

    @property
    def trace(self) -> RoutingTrace:
        """Join the calls so far into one trace, text after text.

        A call that goes on from a KV cache continues its text; one that does not begins new
        texts. So a generation reads like the text it returned, up to the last token, which no
        layer has read. What was read twice counts once, as it was read last.

        Raises: ValueError if the model has not run, or a generation read other texts than it
                returned (beam search), or a call was interrupted.
        """
        if self._refusal:
            raise ValueError(self._refusal)
        if not self._batches:
            raise ValueError("nothing was recorded: call the model inside `with record(...)`")
        for batch in self._batches:
            batch.cut(_length(batch.cache, batch.ids_BS.shape[1]) or batch.ids_BS.shape[1])
        # 1. where each token of each call stands in the trace: text after text
        ids, texts, positions, masks = [], [], [], []
        placed: list[tuple[_Call, Tensor]] = []
        total, count = 0, 0
        for batch in self._batches:
            B, S = batch.ids_BS.shape
            place_BS = total + torch.arange(B * S).view(B, S)
            later = [*(call.start for call in batch.calls[1:]), S]
            for call, again in zip(batch.calls, later, strict=True):  # from there, read again
                part = place_BS[:, call.start : min(call.end, again)]
                gone = part.new_full((B, call.end - call.start - part.shape[1]), -1)
                placed.append((call, torch.cat([part, gone], dim=1).flatten()))
            ids.append(batch.ids_BS.flatten())
            texts.append(torch.arange(count, count + B).repeat_interleave(S))
            positions.append(torch.arange(S).repeat(B))
            mask_BS = torch.ones(B, S, dtype=torch.bool)
            if batch.mask_BS is not None:
                mask_BS[:, : batch.mask_BS.shape[1]] = batch.mask_BS[:, :S]
            masks.append(mask_BS.flatten())
            total, count = total + B * S, count + B
        mask_T = torch.cat(masks)
        # 2. each layer's calls, joined there: a later reading replaces an earlier one
        names, layers, rules = [], [], []
        for name in self._names:
            passes = {len(call.layers.get(name, [])) for call, _ in placed}
            if passes == {0} and all(call.whole for call, _ in placed):
                continue  # experts of another kind of input, as of pictures
            if len(passes) > 1 or passes == {0}:
                raise ValueError(f"a call of the model did not reach {name}: no whole trace")
            for n in range(passes.pop()):
                parts = [(call.layers[name][n], place_T) for call, place_T in placed]
                if any(routing.num_tokens != len(place_T) for routing, place_T in parts):
                    raise ValueError(
                        f"{name} did not route the tokens that the model was given: it reads "
                        "another text, as an encoder does; record that part of the model by itself"
                    )
                routing, rule = _join(parts, total), ""
                if name in self._facts:
                    routing, rule = explain(routing, self._facts[name])
                if not mask_T.all() and routing.mask_T is None:
                    routing = routing.masked(mask_T)
                names.append(f"{name}, pass {n + 1}" if n else name)
                layers.append(routing)
                rules.append(rule)
        return RoutingTrace(
            self._show(torch.cat(ids).tolist()), tuple(layers), tuple(names), self._source,
            tuple(rules), torch.cat(texts), torch.cat(positions),
        )  # fmt: skip


@contextmanager
def record(model: nn.Module, tokenizer: Any = None) -> Iterator[Recorder]:
    """Record the routing of every MoE layer while the model runs.

    ::

        with record(model) as rec:
            model(ids)
        rec.trace  # a RoutingTrace

    Reads :class:`~moe_lite.layer.MoELayer` and, in other models, every module that is handed
    (hidden states, expert indices, weights), as transformers' experts are: those are what was
    routed. The scores of the gate beside it are kept if weights and choice follow from them.
    Padding is in the trace, masked. Nothing of the model is changed, and nothing stays attached
    to it afterwards.

    Args:    tokenizer: how tokens are shown: a function from a list of ids to as many strings
             (``functools.partial(moe_lite.course.data.pieces, tokenizer)``), or a tokenizer with
             ``convert_ids_to_tokens`` or ``decode``; None shows the ids.
    Raises:  ValueError if the model has nothing to record at or no weights yet, is not called
             with token ids, or has logits that are not finite (naming the layer).
    """
    blocks = {n: m for n, m in model.named_modules() if isinstance(m, MoELayer)}
    experts = {n: m for n, m in model.named_modules() if takes_choices(m)}
    if not blocks and not experts:
        raise ValueError(
            f"{type(model).__name__} has nothing to record at: no module that is handed tokens, "
            "expert indices and weights"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(f"{type(model).__name__} is on the meta device: it has shapes, no weights")
    names = {n: n.rpartition(".")[0] if n.rpartition(".")[0] else n for n in experts}
    recorder = Recorder(model, [*blocks, *names.values()], _shower(tokenizer))
    with ExitStack() as hooks:
        hooks.callback(model.register_forward_pre_hook(recorder._begin, with_kwargs=True).remove)
        hooks.callback(model.register_forward_hook(recorder._end).remove)
        for name, block in blocks.items():
            ours = lambda _, args, out, name=name: recorder._add(name, out[1])  # noqa: E731
            hooks.callback(block.register_forward_hook(ours).remove)
        for n, module in experts.items():
            around = model.get_submodule(n.rpartition(".")[0])
            _watch(hooks, recorder, names[n], around, module)
        if generate := getattr(model, "generate", None):
            vars(model)["generate"] = recorder._generated(generate, model)
            hooks.callback(vars(model).pop, "generate", None)
        yield recorder


def takes_choices(module: nn.Module) -> bool:
    """Return whether a module is handed expert indices and weights; or, with Llama 4, neither."""
    names = inspect.signature(module.forward).parameters
    handed = any(n in names for n in INDEX) and any(n in names for n in WEIGHT)
    return handed or type(module).__name__ == "Llama4TextExperts"


def _watch(
    hooks: ExitStack, recorder: Recorder, name: str, block: nn.Module, experts: nn.Module
) -> None:
    """Note what the gates of a block say, and what its experts are then handed."""
    said: list[Tensor] = []

    def gate(module: nn.Module, args: Any, output: Any) -> None:
        parts = output if isinstance(output, tuple) else (output,)
        said[:] = [p.detach() for p in parts if isinstance(p, Tensor) and p.is_floating_point()]

    def handed(module: nn.Module, args: Any, kwargs: Any) -> None:
        call = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        index = next((call[n].detach() for n in INDEX if n in call), None)
        weight = next((call[n].detach() for n in WEIGHT if n in call), None)
        if index is None or weight is None:  # Llama 4 weighs what goes in, of all experts
            weight = index = said[0].reshape(-1, said[0].shape[-1])
        recorder._add(name, *_received(module, block, index, weight, said))

    for n, child in block.named_children():
        if child is not experts and any(w in n for w in ("gate", "router")) and "shared" not in n:
            hooks.callback(child.register_forward_hook(gate).remove)
    hooks.callback(experts.register_forward_pre_hook(handed, with_kwargs=True).remove)


def _received(
    experts: nn.Module, block: nn.Module, index: Tensor, weight: Tensor, said: list[Tensor]
) -> tuple[Routing, Facts]:
    """Turn what experts were handed, and what the gate said, into a routing not yet explained."""
    index, weight = (part.reshape(-1, part.shape[-1]) for part in (index, weight))
    T, dense = len(index), index.is_floating_point() or index.shape != weight.shape
    E = index.shape[1] if dense else int(getattr(experts, "num_experts", 0))
    E = max(E, 0 if dense or not index.numel() else int(index.max()) + 1)
    rows = [s.reshape(T, -1) for s in said if T and s.numel() % T == 0 and s.numel() >= T * E]
    rows = [s for s in rows if s.shape[1] <= 2 * E]
    if not dense:  # the weights themselves are among what is said
        rows = [s for s in rows if s.shape != weight.shape or not torch.equal(s, weight)]
    # Of scores and logits of one width the logits are those that can be negative.
    logits_TE = next((s for s in rows if not (s >= 0).all()), rows[0] if rows else None)
    scores_TE = weight.new_full((T, E), torch.nan) if logits_TE is None else logits_TE
    scores_TE, weight, E = scores_TE.float(), weight.float(), scores_TE.shape[1]
    if dense:
        token_N, expert_N = (index != 0).nonzero(as_tuple=True)
        gate_N = weight.expand(T, E)[token_N, expert_N]
        routing = Routing(scores_TE, scores_TE, token_N, expert_N, gate_N)
    else:
        weight, order = weight.sort(dim=-1, descending=True, stable=True)
        routing = Routing.from_choices(scores_TE, scores_TE, index.long().gather(1, order), weight)
    return routing, Facts.of(block, E, logits_TE is not None)


def _length(cache: Any, otherwise: int) -> int:
    """Return how many tokens a KV cache holds; one that does not say, as many as were recorded."""
    if cache is None:
        return 0
    try:
        return int(cache.length if hasattr(cache, "length") else cache.get_seq_length())
    except (AttributeError, TypeError, ValueError):
        return otherwise


def _shower(tokenizer: Any) -> Callable[[list[int]], list[str]]:
    if tokenizer is None:
        return lambda ids: [str(i) for i in ids]
    if hasattr(tokenizer, "decode"):  # first: transformers' tokenizers can be called as well
        return lambda ids: [_spelt(tokenizer, i) for i in ids]
    if callable(tokenizer):
        return tokenizer  # type: ignore[no-any-return]
    raise ValueError(f"tokenizer must have decode or be a function, not {tokenizer!r}")


def _spelt(tokenizer: Any, i: int) -> str:
    """Spell one token; sentencepiece's, decoded alone, would lose the space before it."""
    own = getattr(tokenizer, "convert_ids_to_tokens", getattr(tokenizer, "id_to_token", None))
    raw = (own(i) if own else "") or ""
    shown = re.sub("^<0x(..)>$", r"⟨\1⟩", raw.replace("\u2581", " "))  # a byte of a character
    return shown if shown != raw else str(tokenizer.decode([i]))


def _join(parts: list[tuple[Routing, Tensor]], total: int) -> Routing:
    """Join one layer's calls: token t of a call becomes token place_T[t]; -1 is left out."""
    calls, places = zip(*parts, strict=True)
    if len(calls) == 1 and len(places[0]) == total:
        return calls[0]
    token_N = torch.cat([place_T[r.token_N] for r, place_T in parts])
    order = token_N.argsort(stable=True)
    order = order[token_N[order] >= 0]
    place_T = torch.cat(places)

    def pairs(name: str) -> Tensor:
        each = [getattr(r, name) for r in calls]
        kept = [torch.ones_like(r.gate_N).bool() for r in calls]
        return torch.cat([k if x is None else x for x, k in zip(each, kept, strict=True)])[order]

    def tokens(name: str) -> Tensor | None:
        """Join what all calls have, or none."""
        each = [getattr(r, name) for r in calls]
        if any(x is None for x in each):
            return None
        joined = torch.cat(each)
        result = joined.new_zeros(total, *joined.shape[1:])
        result[place_T[place_T >= 0]] = joined[place_T >= 0]
        return result

    per_token = {r.per_token for r in calls}
    return Routing(
        cast(Tensor, tokens("logits_TE")), cast(Tensor, tokens("probs_TE")),
        token_N[order], pairs("expert_N"), pairs("gate_N"),
        None if all(r.keep_N is None for r in calls) else pairs("keep_N"),
        per_token.pop() if len(per_token) == 1 else None, tokens("smooth_load_TE"),
        tokens("mask_T"), tokens("noise_TE"), calls[-1].bias_E,
    )  # fmt: skip
