"""The routing explorer: click on a token and see where it went, then ask what if it had not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import astuple, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import traitlets as t
from tokenizers import Tokenizer
from torch import Tensor

from ...model import Mixtral
from ...trace import RoutingTrace, record
from ..causal import Intervention, ablate, intervene, top_k
from ..data import encode, load_tokenizer, pieces
from ..effects import Effect, Run
from ..film import Film
from ..viz import expert_colors, first_experts, ordered_pairs, overview
from .portable import HERE, PortableWidget, Question

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOP = 5  # next tokens that travel for each position
LAYER_RUNS = 4096  # layers run for a page, all its questions together: seconds
NEW = 12  # tokens of a continuation
NO_LOSS = 0xFFFF  # nothing predicted the first token
UNKNOWN = 0xFFFF  # a probability that no gate says


class RoutingExplorer(PortableWidget):
    """Explore a trace: the text coloured by expert, each token's gate, the map, the load.

    ::

        widget = RoutingExplorer(trace)
        widget                      # click on a token
        widget.selected             # its index, here in Python
        widget.layer = 3            # and the page follows

        widget = RoutingExplorer("To be, or not", model=model)
        widget.ask(ablate(3, 5), ban(0, 1, tokens=4))  # or in the page, by mouse or keyboard
        widget.to_html("ask.html")  # brings the answers to a set of questions along

    ``widget.trace = other`` shows another trace in the same place. The arrays travel once, as
    one binary block; a gesture afterwards sends one number, a question a few.

    Args:    trace: what to show; or, with a model, a text to run. model: whom to ask, live;
             tokenizer: its own (default: the course's); text: the trace's, where its tokens do
             not spell it. film: a slider through its frames, on
             its own text, instead of a trace. beside: a second trace, to compare. selected: a
             token, or -1 for none; layer: the layer shown; expert: show only the tokens that
             this expert got, or -1 for all.
    Raises:  ValueError if the trace is empty or cannot be drawn, or is not what the tokenizer
             makes of its text; traitlets.TraitError for a token, a layer, an expert or a frame
             that does not exist.
    """

    _esm = HERE / "routing_explorer.js"
    _css = HERE / "routing_explorer.css"

    tokens = t.List(t.Unicode()).tag(sync=True)
    layer_names = t.List(t.Unicode()).tag(sync=True)
    num_experts = t.List(t.Int()).tag(sync=True)
    colors = t.List(t.Unicode()).tag(sync=True)
    arrays = t.Dict().tag(sync=True)
    data = t.Bytes().tag(sync=True)
    source = t.Unicode().tag(sync=True)
    rules = t.List(t.Unicode()).tag(sync=True)  # for each layer what its choice follows from
    queues: t.List = t.List().tag(
        sync=True
    )  # for each layer who stands in front, and the group's size
    beside = t.Dict().tag(sync=True)
    film = t.Dict().tag(sync=True)

    selected = t.Int(-1).tag(sync=True)
    layer = t.Int(0).tag(sync=True)
    expert = t.Int(-1).tag(sync=True)
    frame = t.Int(0).tag(sync=True)

    live = t.Bool(False).tag(sync=True)
    text = t.Unicode().tag(sync=True)  # what was typed in the page
    problem = t.Unicode().tag(sync=True)  # and what was wrong with it
    question: t.List = t.List().tag(sync=True)
    answer = t.Dict().tag(sync=True)
    answers = t.Dict().tag(sync=True)

    def __init__(
        self,
        trace: RoutingTrace | str | None = None,
        *,
        model: Mixtral | None = None,
        tokenizer: Tokenizer | None = None,
        text: str | None = None,
        film: Film | None = None,
        beside: RoutingTrace | None = None,
        selected: int = -1,
        layer: int = 0,
        expert: int = -1,
    ):
        if (trace is None) == (film is None) or (film is not None and model is not None):
            raise ValueError("give a trace, or a text and its model, or a film")
        if isinstance(trace, str) and model is None:
            raise ValueError("a text needs a model to run it: RoutingExplorer(text, model=model)")
        if model is not None and tokenizer is None:
            tokenizer = load_tokenizer()
            if tokenizer.get_vocab_size() != model.config.vocab_size:
                raise ValueError(
                    f"the course's tokenizer has {tokenizer.get_vocab_size()} tokens, the model "
                    f"{model.config.vocab_size}: give the tokenizer that it was trained with"
                )
        self._model, self._tokenizer, self._film = model, tokenizer, film
        self._base: Run | None = None
        self.effect: Effect | None = None
        traits: dict[str, Any] = {"live": model is not None}
        if film is not None:
            trace = film.trace(film.steps[-1])
            traits["film"] = {"steps": film.steps, "parts": _parts(film), **_frames(film)}
            traits["frame"] = len(film.steps) - 1
        if beside is not None:
            traits["beside"] = pack(beside)
        traits |= self._read(trace, text)  # before the traits, whose validators ask for the trace
        super().__init__(**traits, selected=selected, layer=layer, expert=expert)
        self.observe(self._on_text, "text")
        self.observe(self._on_question, ["question", "selected"])
        self.observe(self._on_frame, "frame")

    def _read(self, what: RoutingTrace | str | None, text: str | None = None) -> dict[str, Any]:
        """Take in a trace or a text; give the traits that show it, and the untouched answer."""
        model, tokenizer = self._model, self._tokenizer
        if model is None or tokenizer is None:
            assert isinstance(what, RoutingTrace)
            packed, self._trace = pack(what), what
            return packed
        if text is None:
            text = what if isinstance(what, str) else "".join(what.tokens if what else ())
        ids = encode(tokenizer, text)
        shown = pieces(tokenizer, ids)
        if not ids:
            raise ValueError("there is no text to run: give at least one word")
        if isinstance(what, RoutingTrace) and what.tokens != shown:
            raise ValueError(
                "the tokens of this trace are not what the tokenizer makes of its text, so they "
                "cannot be run again: give the text too"
            )
        ids_BS = torch.tensor([ids], device=model.embed_tokens.weight.device)
        with record(model, partial(pieces, tokenizer)) as recorded:
            base = Run.of(model, ids_BS)
        trace = what if isinstance(what, RoutingTrace) else recorded.trace
        packed = pack(trace, model)
        self._trace, self._text, self._base, self.effect = trace, text, base, None
        self._top_TK = base.log_probs_BSV[0].topk(min(TOP, base.logits_BSV.shape[-1])).indices
        self._next: dict[int, str] = {}
        return {**packed, "text": text, "question": [], "answer": {},
                "answers": {"[]": self._untouched()}}  # fmt: skip

    @property
    def trace(self) -> RoutingTrace:
        """Return the trace shown; setting it (with a model, also to a text) shows another."""
        return self._trace

    @trace.setter
    def trace(self, trace: RoutingTrace | str) -> None:
        traits = self._read(trace)
        self._film = None
        layer = min(self.layer, len(self._trace.layers) - 1)
        cleared = {"selected": -1, "expert": -1, "layer": layer, "frame": 0, "film": {}}
        with self.hold_sync():
            for name, value in (
                cleared | {"beside": {}, "problem": "", "guess": {}} | traits
            ).items():
                self.set_trait(name, value)

    # --- asking -------------------------------------------------------------------------------

    def asks(self) -> Question | None:
        """Ask for a word: the next one without the busiest expert; of a trace alone, for a load."""
        layers, at = self._trace.layers, self._cut()
        loads = [(-int(x), n, e) for n, r in enumerate(layers) for e, x in enumerate(r.load_E())]
        if self._model is None:
            T, other = len(self._trace.tokens), (self.layer + len(layers) // 2) % len(layers)
            sent = [-load for load, n, _ in loads if n == other]
            most, least = max(sent), -(-sum(sent) // len(sent))
            ask = f"In layer {other}: how many of the {T} tokens does the busiest expert get?"
            moves: dict[str, Any] = {
                "layer": other,
                **({"frame": self.frame} if self._film else {}),
            }
            question = Question(ask, moves, lambda: most, T, least=least)
            return question if other != self.layer else None
        _, n, e = min(loads)
        ask = (
            f"Expert {e} of layer {n}, the busiest, is taken out. Which token is then likeliest "
            f"after token {at}, “{self._trace.tokens[at]}”?"
        )

        def likeliest() -> str:
            assert self.effect is not None
            [word] = self._spell([int(self.effect.changed.logits_BSV[0, at].argmax())])
            self.answer, self.effect = {}, None  # as if nobody had asked yet
            return word

        moves = {"layer": n, "selected": self.selected, "question": [_wire(ablate(n, e))]}
        return Question(ask, moves, likeliest)

    def ask(self, *interventions: Intervention) -> Effect:
        """Ask what changes with these interventions: shown in the page, and given here.

        Raises: ValueError without a model, or for an intervention that cannot be done.
        """
        question = [_wire(i) for i in interventions]
        answer = self._reply(question)
        with self.hold_sync():
            self.answer, self.question = answer, question
        assert self.effect is not None
        return self.effect

    def precompute(self, limit: int = 64) -> RoutingExplorer:
        """Answer a set of questions in advance, for a page without a kernel; gives the widget.

        Each expert of each layer ablated for all tokens (those with most load first, at most
        ``limit``), each expert that the selected (else the last) token used ablated for that
        token, and one expert per token everywhere; a very deep model gets fewer.

        Raises: ValueError without a model.
        """
        loads = [
            (-float(load), n, e)
            for n, layer in enumerate(self._trace.layers)
            for e, load in enumerate(layer.load_E())
        ]
        token = self._cut()
        questions = [[ablate(n, e)] for _, n, e in sorted(loads)[:limit]]
        for n, layer in enumerate(self._trace.layers):
            used = layer.expert_N[layer.token_N == token].tolist()
            questions += [[ablate(n, e, token)] for e in used]
        # Each is a run through all layers: of a thousand there are fewer.
        del questions[max(4, LAYER_RUNS // len(self._trace.layers)) :]
        questions.append([top_k(1)])
        effect, answers = self.effect, {"[]": self.answers.get("[]", {})}
        threads = torch.get_num_threads()
        if self._model is not None and self._model.config.hidden_size < 1024:
            torch.set_num_threads(1)  # products this small wait for a second thread, no more
        try:
            for question in questions:
                answer = self._reply([_wire(i) for i in question])
                answers[answer["key"]] = answer
        finally:
            torch.set_num_threads(threads)
        self.answers, self.effect = answers, effect
        return self

    def _cut(self) -> int:
        return self.selected if self.selected >= 0 else len(self._trace.tokens) - 1

    def _on_text(self, change: Any) -> None:
        try:
            if self._model is not None and change.new != self._text:
                self.trace = change.new
            self.problem = ""
        except (ValueError, UnicodeError) as error:
            self.problem = str(error)

    def _on_frame(self, change: Any) -> None:
        if self._film is not None:
            self._trace = self._film.trace(self._film.steps[change.new])

    def _on_question(self, change: Any) -> None:
        answer, key = self.answer, _key(self.question)
        if not self.question or self._base is None:
            return
        if answer.get("key") == key and answer.get("next", [self._cut()])[0] == self._cut():
            return
        try:
            self.answer = self._reply(self.question)
        except (ValueError, TypeError) as error:
            self.answer = {"key": key, "error": str(error)}

    def _reply(self, question: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """Run the text with the interventions and pack what changed, for every position."""
        model, base = self._model, self._base
        if model is None or base is None:
            raise ValueError("there is no model to ask: RoutingExplorer(text, model=model)")
        made = [Intervention(*wire) for wire in question]
        run = Run.of(model, base.ids_BS, *made)
        self.effect = Effect(base, run, tuple(made))
        # What comes before the first change need not travel.
        moved_T = (run.log_probs_BSV - base.log_probs_BSV)[0].abs().amax(dim=-1) > 1e-5
        first = int(moved_T.nonzero()[0]) if moved_T.any() else len(moved_T) - 1
        probs_TV, before_TV = (r.log_probs_BSV[0, first:].exp() for r in (run, base))
        best_T1 = probs_TV.argmax(1, keepdim=True)
        words, best_T = self._words(best_T1)
        parts = [
            _shares(probs_TV.gather(1, self._top_TK[first:])), best_T,
            _shares(before_TV.gather(1, best_T1)), _shares(probs_TV.gather(1, best_T1)),
            _thousandths(run.loss_T[first:]),
        ]  # fmt: skip
        cut = self._cut()
        return {
            "key": _key(question), "first": first, "words": words, "data": _block(parts),
            "next": [cut, self._continued(cut), self._continued(cut, *made)],
            "moved": _moved(base, run),
        }  # fmt: skip

    def _untouched(self) -> dict[str, Any]:
        """Pack what the model says as it is: the likeliest next tokens and each token's loss."""
        assert self._base is not None
        words, index = self._words(self._top_TK)
        share = _shares(self._base.log_probs_BSV[0].exp().gather(1, self._top_TK))
        data = _block([index, share, _thousandths(self._base.loss_T)])
        return {"key": "[]", "words": words, "data": data, "top": self._top_TK.shape[1]}

    def _words(self, ids: Tensor) -> tuple[list[str], np.ndarray]:
        """List the different tokens among ids, and where in the list each of them is."""
        unique, index = np.unique(ids.cpu().numpy(), return_inverse=True)
        return self._spell(unique), index

    def _spell(self, ids: Iterable[int]) -> list[str]:
        """Spell ids; a model may have more of them than its tokenizer knows."""
        assert self._tokenizer is not None
        size = self._tokenizer.get_vocab_size()
        return [pieces(self._tokenizer, [i])[0] if i < size else f"#{i}" for i in map(int, ids)]

    def _continued(self, cut: int, *interventions: Intervention) -> str:
        """Let the model go on after a token, always with its likeliest."""
        model, base = self._model, self._base
        assert model is not None and base is not None
        if not interventions and cut in self._next:
            return self._next[cut]
        room = model.config.max_position_embeddings - cut - 1
        # What was asked of later tokens of the old text is not meant for the new ones.
        inside = [
            i if i.tokens is None else replace(i, tokens=tuple(n for n in i.tokens if n <= cut))
            for i in interventions
        ]
        training = model.training
        try:
            with intervene(model.eval(), *inside):
                new_BS = model.generate(base.ids_BS[:, : cut + 1], min(NEW, room), temperature=0)
        finally:
            model.train(training)
        text = "".join(self._spell(new_BS[0, cut + 1 :]))
        if not interventions:
            self._next[cut] = text
        return text

    def state(self) -> dict[str, Any]:
        """Return what the page needs; with a model, answers for a page that has none."""
        if self._model is not None and len(self.answers) < 2:
            self.precompute()
        return {**super().state(), "live": False}

    @t.validate("selected", "layer", "expert", "frame")
    def _exists(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        trace = self._trace
        what, least, size = {
            "selected": ("a token", -1, len(trace.tokens)),
            "layer": ("a layer", 0, len(trace.layers)),
            "expert": ("an expert", -1, max(r.num_experts for r in trace.layers)),
            "frame": ("a frame", 0, len(self._film.steps) if self._film else 1),
        }[name]
        if not least <= value < size:
            none = ", or -1 for none" if least else ""
            raise t.TraitError(f"{name} must be {what} from 0 to {size - 1}{none}, not {value}")
        return value

    @property
    def title(self) -> str:
        trace = self._trace
        what = f"{trace.source} beside {self.beside['source']}" if self.beside else trace.source
        if self._film is not None:
            steps = self._film.steps
            what = f"a model in training, steps {steps[0]} to {steps[-1]}"
        sizes = "/".join(str(n) for n in sorted({r.num_experts for r in trace.layers}))
        counts = [(len(trace.tokens), "token"), (len(trace.layers), "MoE layer")]
        words = ", ".join(f"{n} {noun}{'' if n == 1 else 's'}" for n, noun in counts)
        one = "" if sizes == "1" else "s"
        return f"Routing of {what}: {words}, {sizes} expert{one} in each"

    def figure(self) -> Figure:
        """Draw text, map and load at the layer now shown."""
        return overview(self._trace, self.layer)


def _frames(film: Film) -> dict[str, Any]:
    """Return a film's frames: logits, which the page routes itself, or each frame as a trace."""
    if film.routings:
        frames = [pack(film.trace(step)) for step in film.steps]
        return {"frames": [{name: frame[name] for name in ("arrays", "data")} for frame in frames]}
    logits = torch.stack([film.logits[step] for step in film.steps]).numpy().astype("<f2")
    return {"top_k": film.top_k, "logits": logits.tobytes(), "shape": list(logits.shape)}


def _parts(film: Film) -> list[list[Any]]:
    """Return what each stretch of the film's text is, and its first and last token."""
    S, domains = film.ids_BS.shape[1], film.domain_BS[:, 0].tolist()
    starts = [n for n, d in enumerate(domains) if not n or d != domains[n - 1]]
    ends = [*starts[1:], len(domains)]
    return [[film.domains[domains[n]], n * S, e * S - 1] for n, e in zip(starts, ends, strict=True)]


def _wire(i: Intervention) -> list[Any]:
    """Write an intervention as a page does."""
    *rest, tokens = astuple(i)
    return [*rest, None if tokens is None else list(tokens)]


def _key(question: Sequence[Any]) -> str:
    return json.dumps(question, separators=(",", ":"))  # as JSON.stringify writes it


def _shares(share: Tensor) -> np.ndarray:
    return (share.cpu().numpy() * 65535).round()


def _thousandths(loss_T: Tensor) -> np.ndarray:
    return (loss_T * 1000).clamp(0, NO_LOSS - 1).nan_to_num(NO_LOSS).cpu().numpy().round()


def _block(parts: Sequence[np.ndarray]) -> bytes:
    return b"".join(np.asarray(part).astype("<u2").tobytes() for part in parts)


def _moved(base: Run, run: Run) -> int:
    """Count the (layer, token) whose first expert is another."""
    both = zip(base.routings, run.routings, strict=True)
    return int(sum((first_experts(a) != first_experts(b)).sum() for a, b in both))


def _queue(gate: Any) -> list[Any]:
    """Return who stands in front in a gate's queues, and how many tokens share one (0: all)."""
    return [getattr(gate, "priority", "position"), getattr(gate, "group_size", None) or 0]


def pack(trace: RoutingTrace, model: Mixtral | None = None) -> dict[str, Any]:
    """Turn a trace into the widget's traits: the lists, and all numbers in one block of bytes.

    ``arrays`` says for each array its type, its offset in the block and its length. A row is a
    (layer, token), counted layer by layer; row r owns the pairs start[r] .. start[r+1]-1, best
    first. Probabilities travel as thousandths and scores as hundredths, rounded here once,
    because that is what the page prints; what is NaN is unknown, and travels as a number of its
    own. Weights are few enough to travel whole. Of the model only the queues are read: who stands
    in front. A trace alone does not say; then those do whose token comes first or, where experts
    choose, whose weight is larger.

    Raises: ValueError for an empty trace, an index that does not exist, a probability outside
            0..1, or a weight that is not finite.
    """
    if not trace.tokens or not trace.layers:
        raise ValueError(
            f"there is nothing to explore: the trace has {len(trace.tokens)} tokens "
            f"and {len(trace.layers)} layers"
        )
    T = len(trace.tokens)
    counts, experts, gates, keeps, probs = [], [], [], [], []
    for name, routing in zip(trace.layer_names, trace.layers, strict=True):
        token, expert, gate, keep = ordered_pairs(routing)
        prob = routing.probs_TE.detach().cpu().double().numpy()
        for what, index, size in (("token", token, T), ("expert", expert, routing.num_experts)):
            if ((index < 0) | (index >= size)).any():
                bad = index[(index < 0) | (index >= size)][0]
                raise ValueError(f"layer {name} names {what} {bad}, but there are only {size}")
        if not np.isfinite(gate).all():
            raise ValueError(f"layer {name} has a gate weight that is not finite")
        unknown = np.isnan(prob).all(axis=1, keepdims=True)
        if not (unknown | (prob >= 0) & (prob <= 1 + 1e-6)).all():
            raise ValueError(f"layer {name} has a probability outside 0..1")
        counts.append(np.bincount(token, minlength=T))
        experts.append(expert)
        gates.append(gate)
        keeps.append(keep)
        probs.append(np.where(unknown, UNKNOWN, np.floor(prob * 1000 + 0.5)).ravel())
    # Widest first, so that each array begins at a multiple of its item size.
    parts = {
        "start": np.concatenate([[0], *counts]).cumsum().astype("<u4"),
        "gate": np.concatenate(gates).astype("<f4"),
        "probs": np.concatenate(probs).astype("<u2"),
        "expert": np.concatenate(experts).astype("<u2"),
        "logit": _hundredths([r.logits_TE for r in trace.layers]),
        "keep": np.concatenate(keeps).astype("<u1"),
    }
    if any(r.noise_TE is not None or r.bias_E is not None for r in trace.layers):
        # What is added to a score, by chance or by a controller; of the last, many thousandths.
        none = [torch.zeros_like(r.logits_TE) for r in trace.layers]
        both = list(zip(trace.layers, none, strict=True))
        noise = [zero if r.noise_TE is None else r.noise_TE for r, zero in both]
        bias = [zero[0] if r.bias_E is None else r.bias_E for r, zero in both]
        bias_N = torch.cat(bias).cpu().numpy().astype("<f4")
        parts = {"bias": bias_N, **parts, "noise": _hundredths(noise)}
        parts["keep"] = parts.pop("keep")  # last again: it is the narrowest
    arrays, offset = {}, 0
    for key, part in parts.items():
        arrays[key] = [part.dtype.str[1:], offset, part.size]
        offset += part.nbytes
    sizes = [routing.num_experts for routing in trace.layers]
    if model is not None:
        queues = [_queue(layer.gate) for layer in model.moe_layers]
    else:
        queues = [["position" if r.per_token else "gate", 0] for r in trace.layers]
    return {
        # A lone surrogate has no UTF-8, so no message to a page could carry it.
        "tokens": [token.encode("utf-8", "replace").decode() for token in trace.tokens],
        "layer_names": list(trace.layer_names),
        "num_experts": sizes,
        "colors": expert_colors(max(sizes)),
        "arrays": arrays,
        "data": b"".join(part.tobytes() for part in parts.values()),
        "source": trace.source,
        "rules": list(trace.rules),
        "queues": queues,
    }


def _hundredths(scores: Sequence[Tensor]) -> np.ndarray:
    flat = np.concatenate([score.detach().cpu().double().numpy().ravel() for score in scores])
    rounded = np.clip(np.nan_to_num(flat) * 100, -32767, 32767).round()
    return np.where(np.isnan(flat), -32768, rounded).astype("<i2")
