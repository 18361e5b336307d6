"""Record where tokens went: in our models and in Hugging Face's alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layer import MoELayer
from .routing import Routing


@dataclass(frozen=True, eq=False)
class RoutingTrace:
    """Keep a run's routing: what the widgets, the figures and the analyses read; nothing else.

    Args:
        tokens:      T strings, as they should be shown.
        layers:      one detached :class:`Routing` on the CPU for each MoE layer.
        layer_names: as many names.
        source:      what was run, in words.
    Raises:
        ValueError if the lengths do not agree.
    """

    tokens: list[str]
    layers: tuple[Routing, ...]
    layer_names: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.layer_names):
            raise ValueError(f"{len(self.layers)} layers but {len(self.layer_names)} layer names")
        for name, layer in zip(self.layer_names, self.layers, strict=True):
            if layer.num_tokens != len(self.tokens):
                raise ValueError(
                    f"layer {name} routed {layer.num_tokens} tokens, "
                    f"but the trace has {len(self.tokens)}"
                )


class Recorder:
    """Hold what :func:`record` has seen: one entry for each call of the model."""

    def __init__(self, model: nn.Module, names: list[str], show: Callable[[list[int]], list[str]]):
        package = type(model).__module__.partition(".")[0]
        self._source = f"{package}.{type(model).__name__}"
        self._names, self._show = names, show
        self._calls: list[tuple[Tensor, dict[str, Routing]]] = []  # ids (B, S), layer -> routing

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = next(iter(args), kwargs.get("input_ids", kwargs.get("ids_BS")))
        if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.dim() > 2:
            raise ValueError("a trace needs the token ids: call the model with them, (B, S)")
        self._calls.append((ids.detach().cpu().view(-1, ids.shape[-1]), {}))

    def _add(self, name: str, routing: Routing) -> None:
        if not self._calls:
            raise ValueError(f"{name} ran outside the recorded model; record the module you call")
        routing = routing.detach()
        routing.check_finite(name)
        # Gradient checkpointing runs a layer again in the backward pass: the first run counts.
        self._calls[-1][1].setdefault(name, routing)

    @property
    def trace(self) -> RoutingTrace:
        """Join the calls so far into one trace.

        A call's tokens follow those of the calls before it, so a generation with a KV cache
        reads like the one text it made. A batch is flattened, text after text; its texts stay
        whole over several calls, which must then have the same number of texts.

        Raises: ValueError if the model has not run, or its calls do not fit together.
        """
        if not self._calls:
            raise ValueError("nothing was recorded: call the model inside `with record(...)`")
        for _, layers in self._calls:
            if missing := [name for name in self._names if name not in layers]:
                raise ValueError(f"a call of the model did not reach {missing[0]}: no whole trace")
        sizes = {len(ids) for ids, _ in self._calls}
        if len(sizes) > 1:
            raise ValueError(
                f"the model was called with batches of {sorted(sizes)} texts; one trace can only "
                "join batches of one size"
            )
        ids_BS = torch.cat([ids for ids, _ in self._calls], dim=1)
        lengths = [ids.shape[1] for ids, _ in self._calls]
        return RoutingTrace(
            tokens=self._show(ids_BS.flatten().tolist()),
            layers=tuple(
                _join([layers[name] for _, layers in self._calls], lengths) for name in self._names
            ),
            layer_names=tuple(self._names),
            source=self._source,
        )


@contextmanager
def record(model: nn.Module, tokenizer: Any = None) -> Iterator[Recorder]:
    """Record the routing of every MoE layer while the model runs.

    ::

        with record(model) as rec:
            model(ids)
        rec.trace  # a RoutingTrace

    Reads :class:`~moe_lite.layer.MoELayer` and, as in transformers' Mixtral, OLMoE and
    Qwen3-MoE, any module with ``experts`` and a ``gate`` (or ``router``) that returns logits,
    scores and indices. The scores are kept as they are: whether they sum to 1 is the model's
    choice. Padding is routed too, and so is in the trace. Nothing of the model is changed, and
    nothing stays attached to it afterwards.

    Args:    tokenizer: how tokens are shown: a function from a list of ids to as many strings
             (``functools.partial(moe_lite.course.data.pieces, tokenizer)``), or a tokenizer with
             ``decode``; None shows the ids.
    Raises:  ValueError if the model has no MoE layer or no weights yet, is not called with
             token ids, or has a gate that answers otherwise, or logits that are not finite
             (naming the layer).
    """
    blocks = {name: module for name, module in model.named_modules() if _gate(module) is not None}
    if not blocks:
        raise ValueError(
            f"{type(model).__name__} has no MoE layer: no module with experts and a gate"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(f"{type(model).__name__} is on the meta device: it has shapes, no weights")
    recorder = Recorder(model, list(blocks), _shower(tokenizer))
    with ExitStack() as hooks:
        hooks.callback(model.register_forward_pre_hook(recorder._begin, with_kwargs=True).remove)
        for name, block in blocks.items():

            def hook(
                module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name
            ) -> None:
                if isinstance(module, MoELayer):
                    recorder._add(name, output[1])
                else:
                    x = next(iter((*args, *kwargs.values())))
                    recorder._add(name, _from_triple(name, module, x, output))

            source = block if isinstance(block, MoELayer) else _gate(block)
            assert source is not None
            hooks.callback(source.register_forward_hook(hook, with_kwargs=True).remove)
        yield recorder


def _gate(module: nn.Module) -> nn.Module | None:
    """Find the gate of an MoE block; None if it is not one."""
    if isinstance(getattr(module, "experts", None), nn.Module):
        for name in ("gate", "router"):
            gate = getattr(module, name, None)
            if isinstance(gate, nn.Module):
                return gate
    return None


def _shower(tokenizer: Any) -> Callable[[list[int]], list[str]]:
    if tokenizer is None:
        return lambda ids: [str(i) for i in ids]
    if hasattr(tokenizer, "decode"):  # first: transformers' tokenizers can be called as well
        return lambda ids: [tokenizer.decode([i]) for i in ids]
    if callable(tokenizer):
        return tokenizer  # type: ignore[no-any-return]
    raise ValueError(f"tokenizer must have decode or be a function, not {tokenizer!r}")


def _from_triple(name: str, gate: nn.Module, x: Tensor, output: Any) -> Routing:
    """Turn a gate's (logits, scores, indices) into a Routing."""
    if not (
        isinstance(output, tuple)
        and len(output) >= 3
        and all(isinstance(part, Tensor) and part.dim() == 2 for part in output[:3])
        and output[1].shape == output[2].shape
        and not output[2].is_floating_point()
    ):
        raise ValueError(f"the gate of {name} does not return (logits, scores, indices)")
    logits_TE, gate_TK, expert_TK = (part.detach() for part in output[:3])
    rows = logits_TE.float()
    if (rows >= 0).all() and (rows.sum(dim=-1) - 1).abs().max() < 1e-2:
        # Some versions give the softmax in the place of the logits.
        weight = cast(Tensor, gate.weight)
        with torch.no_grad():
            x_TD = x.reshape(-1, weight.shape[1])
            logits_TE = F.linear(x_TD, weight, cast(Tensor | None, getattr(gate, "bias", None)))
    tolerance = 1e-4 if gate_TK.dtype == torch.float32 else 2**-6
    logits_TE, gate_TK = logits_TE.float(), gate_TK.float()
    gate_TK, order = gate_TK.sort(dim=-1, descending=True, stable=True)
    expert_TK = expert_TK.gather(1, order)
    routing = Routing.from_choices(logits_TE, logits_TE.softmax(dim=-1), expert_TK, gate_TK)
    routing.check_finite(name)
    # The scores are the chosen probabilities, as they are or times one factor for each token.
    # If they were something else, these logits would not be what the model routed by.
    misfit, _, probs_TE = min(
        (_misfit(gate_TK, probs_TE.gather(1, expert_TK)), i, probs_TE)
        for i, probs_TE in enumerate((routing.probs_TE, logits_TE.sigmoid()))
    )
    if misfit > tolerance:
        raise ValueError(f"the scores of {name} follow from neither a softmax nor a sigmoid")
    return replace(routing, probs_TE=probs_TE)


def _misfit(gate_TK: Tensor, prob_TK: Tensor) -> float:
    """Measure how far the gates are from proportional to the probabilities, token by token."""
    gate_TK, prob_TK = (x_TK / x_TK.sum(dim=-1, keepdim=True) for x_TK in (gate_TK, prob_TK))
    return float((gate_TK - prob_TK).abs().max())


def _join(calls: Sequence[Routing], lengths: Sequence[int]) -> Routing:
    """Join one layer's calls along the text: token b*S_call + s becomes b*S + start + s."""
    if len(calls) == 1:
        return calls[0]
    total, start, tokens = sum(lengths), 0, []
    for routing, length in zip(calls, lengths, strict=True):
        text_N = routing.token_N // length
        tokens.append(text_N * total + start + routing.token_N % length)
        start += length
    token_N, order = torch.cat(tokens).sort(stable=True)
    keeps = [r.keep_N if r.keep_N is not None else torch.ones_like(r.token_N).bool() for r in calls]
    dropless = all(r.keep_N is None for r in calls)
    per_token = {r.per_token for r in calls}

    def joined(name: str) -> Tensor | None:
        """Join what all calls have, or none."""
        parts = [getattr(routing, name) for routing in calls]
        if any(part is None for part in parts):
            return None
        texts = [p.unflatten(0, (-1, length)) for p, length in zip(parts, lengths, strict=True)]
        return torch.cat(texts, dim=1).flatten(0, 1)

    return Routing(
        cast(Tensor, joined("logits_TE")),
        cast(Tensor, joined("probs_TE")),
        token_N,
        torch.cat([r.expert_N for r in calls])[order],
        torch.cat([r.gate_N for r in calls])[order],
        None if dropless else torch.cat(keeps)[order],
        per_token.pop() if len(per_token) == 1 else None,
        joined("smooth_load_TE"),
        noise_TE=joined("noise_TE"),
        bias_E=calls[-1].bias_E,
    )
