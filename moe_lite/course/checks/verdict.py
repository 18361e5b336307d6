"""The mechanism of the checks: call the answer on every case, compare, say what it shows.

A :class:`Check` puts an answer to cases and judges them together. A mistake is named only if it
gives the answer's numbers on *every* case: two mistakes that agree on one are never confused.
What no named mistake explains may still be explained by its form: a factor, a rounding, another
shape. Numbers are compared, never containers: a list, an array, a Python number are read as the
tensor that they hold.
"""

from __future__ import annotations

import ast
import contextvars
import dis
import functools
import itertools
import linecache
import math
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Mistakes = Sequence[tuple[str, Any]]
"""Sentences that each name a mistake, with the value it gives; None where it gives none.

Of several things returned, ``...`` stands for those that the mistake does not touch.
"""

NO_GRADIENT = "no gradient"
_NAN = (
    "there is a NaN or an infinity where the answer is finite: 0 / 0, inf / inf, inf - inf and "
    "0 * inf are NaN (to mask, use where or masked_fill, and do not multiply)"
)
_FOREIGN = (str(Path(__file__).parents[2]), *sysconfig.get_paths().values())


class CheckFailed(AssertionError):
    """Carry the verdict on a wrong answer: the misconception, then the numbers."""

    def _render_traceback_(self) -> list[str]:
        """Show only the verdict in a notebook, not the frames of the check."""
        return [f"✗ {self}"]


class NotWritten(NotImplementedError):
    """Say of an exercise that nobody has begun it: no news to whoever only reads."""

    def _render_traceback_(self) -> list[str]:
        """Show one line in a notebook, and no frame."""
        return [f"· {self}"]


class Unwritten:
    """Let IPython say in one line that a cell needs an exercise that is not written yet.

    Such a cell calls the exercise, or uses a name that one of these would have set.
    """

    def __init__(self, shell: Any):
        self.missing: dict[str, str] = {}
        shell.set_custom_exc((NotImplementedError, NameError), self.show)

    def show(self, shell: Any, kind: Any, error: Any, tb: Any, tb_offset: Any = None) -> None:
        """Show an exception as a notebook does, this kind without its frames."""
        if said := self.said(kind, error, tb):
            error._render_traceback_ = lambda: [said]
        shell.showtraceback((kind, error, tb), tb_offset=tb_offset)

    def said(self, kind: Any, error: Any, tb: Any) -> str:
        """Return the line; nothing for an error of another kind."""
        frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(tb)
                  if not frame.f_code.co_filename.startswith(_FOREIGN)]  # fmt: skip
        if not frames:
            return ""
        (cell, _), (code, number) = frames[0], frames[-1]
        outside = code.co_name.startswith("<")  # "<module>", or "<cell line: 3>"
        if kind is NameError:
            return self.missing.get(error.name, "") if outside else ""
        line = linecache.getline(code.co_filename, number).strip()
        if kind is not NotImplementedError or not line.startswith("raise NotImplementedError"):
            return ""
        needs = f"needs {error}: " if str(error) and not outside else ""
        name = "this cell" if outside else f"`{code.co_qualname}`"
        said = f"· {needs}{name} is not written yet"
        for node in ast.walk(ast.parse("".join(linecache.getlines(cell.co_filename)))):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self.missing[node.id] = said
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.missing[node.name] = said
        return said


if "IPython" in sys.modules and (_shell := sys.modules["IPython"].get_ipython()):
    Unwritten(_shell)


class CheckBroken(RuntimeError):
    """Say that the check went wrong, not the answer: a bug of the course."""


_VARIANT = contextvars.ContextVar("variant", default=0)  # the seed of the check that runs


def judged(check: Callable[..., Any]) -> Callable[..., Any]:
    """Return the check with a ``seed=``: 0 draws the exercises' numbers, each other seed others.

    An answer not begun is NotWritten, an error of the check's own CheckBroken.
    """

    @functools.wraps(check)
    def guarded(*answer: Any, seed: int = 0) -> Any:
        token = _VARIANT.set(seed)
        try:
            return check(*answer)
        except CheckFailed:
            raise
        except NotWritten:  # of the learner's own call; torch too raises NotImplementedError
            exercise = check.__name__.removeprefix("check_")
            raise NotWritten(f"{exercise}: not written yet") from None
        except Exception as error:
            raise CheckBroken(
                f"{check.__name__} itself went wrong, which says nothing about your answer; "
                f"please report it: {type(error).__name__}: {error}"
            ) from error
        finally:
            _VARIANT.reset(token)

    return guarded


def passed(exercise: str, verdict: str) -> None:
    """Print the verdict on a right answer."""
    print(f"✓ {exercise}: {verdict}")


def refuse(
    exercise: str, verdict: str, given: str = "", yours: str = "", expected: str = ""
) -> Any:
    """Raise CheckFailed with the verdict and, line by line, the numbers it rests on."""
    lines = {"given": given, "yours": yours, "expected": expected}
    shown = "".join(f"\n  {name:<8} {text}" for name, text in lines.items() if text)
    raise CheckFailed(f"{exercise}: {verdict}{shown}")


def nameless(function: Callable[..., Any]) -> Callable[..., Any]:
    """Hand out a function to be judged by what it does: its name would be the answer."""

    def given(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return given


FINITE_FILL = "right near 0 only: a finite number is a score like others, so mask with -inf"
UNDERFLOW = (
    "exp(-200) is 0 in float32, and 0 / 0 is NaN (softmax takes the largest logit out first); or a "
    "mask was multiplied by inf, and 0 * inf is NaN too (use where)"
)


def generator(seed: int) -> torch.Generator:
    """Make the source of a check's random numbers: the same each time, others for another variant.

    torch's own generator is left alone.
    """
    return torch.Generator().manual_seed(seed + 1_000_003 * _VARIANT.get())


def randn(seed: int, *shape: int) -> Tensor:
    """Draw normal numbers from a check's own generator."""
    return torch.randn(shape, generator=generator(seed))


def far_below(seed: int, *shape: int) -> Tensor:
    """Draw scores around -200, where a mask's finite number wins; sums of them stay exact."""
    return randn(seed, *shape).mul(4096).round() / 4096 - 200


# --- calling -------------------------------------------------------------------------------------


def call(exercise: str, answer: Callable[..., Any], *args: Any, on: str) -> Any:
    """Call the learner's code, saying in words what it is called on; a generator comes as a list.

    Raises: CheckFailed with the learner's own line if the code raises, or changes what it is
            given; NotWritten if it is not yet written.
    """
    before = _copy(args)
    try:
        result = answer(*args)
        if isinstance(result, Iterator):
            result = list(result)
    except CheckFailed:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.line for f in frames if not f.filename.startswith(_FOREIGN)]
        line = lines[-1] if lines else ""
        if isinstance(error, NotImplementedError) and _raised_by_hand(error):
            raise NotWritten(exercise) from None
        at = f"\n  at       {line}" if line else ""
        raise CheckFailed(
            f"{exercise} raised {type(error).__name__}: {error}{at}\n  given    {on}"
        ) from error
    if not _unchanged(args, before):
        refuse(exercise, "changes its input in place; whoever called it still needs it", on)
    return _plain(result) if isinstance(result, Tensor) else result


def _raised_by_hand(error: Exception) -> bool:
    """Ask whether a `raise` of the learner's made it, and not PyTorch, of what it cannot do."""
    last = error.__traceback__
    while last and last.tb_next:
        last = last.tb_next
    if not last or (code := last.tb_frame.f_code).co_filename.startswith(_FOREIGN):
        return False
    return dis.opname[code.co_code[last.tb_lasti]] == "RAISE_VARARGS"


def _inside(value: Any) -> list[Any] | None:
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, dict) or (is_dataclass(value) and not isinstance(value, type)):
        return list((value if isinstance(value, dict) else vars(value)).values())
    return None


def _copy(value: Any) -> Any:
    inside = _inside(value)
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    return value if inside is None else [_copy(item) for item in inside]


def _unchanged(value: Any, kept: Any) -> bool:
    inside = _inside(value)
    if isinstance(value, Tensor):
        here, there = value.detach(), kept.detach()
        if kept.requires_grad and not value.requires_grad:
            return False  # detach_() would also cut off the gradient it is compared with
        return here.shape == there.shape and bool(((here == there) | (here != here)).all())
    if inside is None:
        return value is kept or (isinstance(value, int | float | str) and value == kept)
    return len(inside) == len(kept) and all(map(_unchanged, inside, kept))


# --- numbers in any container --------------------------------------------------------------------


class Numberless:
    """Stand for a tensor that holds nothing to compare, and say what it is."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __repr__(self) -> str:
        return self.what


def _plain(value: Tensor) -> Tensor | Numberless:
    """Bring a tensor to a layout and a type in which comparisons work, where there is one."""
    if value.is_meta:
        return Numberless("a meta tensor, which holds no numbers")
    if value.is_nested or value.is_complex():
        return Numberless("complex numbers" if value.is_complex() else "a nested tensor")
    value = value.dequantize() if value.is_quantized else value.cpu()
    value = value if value.layout == torch.strided else value.to_dense()
    if value.dtype in (torch.uint16, torch.uint32, torch.uint64):
        return value.long()
    return value.float() if value.is_floating_point() and value.itemsize == 1 else value


def number(value: Any) -> Tensor | None:
    """Return the numbers that a container holds as one tensor; None if there is no such thing.

    >>> number([torch.tensor([1, 2]), (3, 4)]), number("four"), number([[1], [2, 3]])
    (tensor([[1, 2],
            [3, 4]]), None, None)
    """
    if isinstance(value, Tensor):
        plain = _plain(value)
        return plain if isinstance(plain, Tensor) else None
    if value is None or isinstance(value, str | bytes):
        return None
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, Iterable) and not hasattr(value, "__array__"):
        parts = [number(item) for item in value]
        tensors = [part for part in parts if part is not None]
        if len(tensors) < len(parts) or len({part.shape for part in tensors}) > 1:
            return None
        return torch.stack(tensors) if tensors else torch.empty(0)
    try:
        if hasattr(value, "__array__") or isinstance(value, int):
            return number(torch.as_tensor(value))
        return torch.tensor(float(value), dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        return None


def _wanted(right: Any) -> Any:
    """Bring a right value to one form: tuples of tensors and words."""
    if isinstance(right, tuple):
        return tuple(map(_wanted, right))
    return right if isinstance(right, str) or right is ... else number(right)


def fit(value: Any, right: Any) -> Any:
    """Read a value in the form of the right one, as far as it has that form."""
    if isinstance(right, tuple):
        if isinstance(value, Mapping):
            value = tuple(value.values())
        parts = value if isinstance(value, list | tuple) else number(value)
        value = parts if isinstance(parts, Tensor) else value
        if parts is None or (isinstance(parts, Tensor) and not parts.dim()):
            return value
        if len(parts) != len(right):
            return value
        if isinstance(parts, Tensor) and {parts[0].shape} != {
            getattr(part, "shape", parts[0].shape) for part in right
        }:
            return value  # one of the things asked, rather than all of them stacked
        return tuple(map(fit, parts, right))
    if not isinstance(right, Tensor):
        return value
    found = number(value)
    if found is not None and not right.dim() and found.numel() == 1:
        return found.reshape(())
    if found is None:
        return _plain(value) if isinstance(value, Tensor) else value
    return found


def same(a: Any, b: Any, slack: float = 1e-6) -> bool:
    """Compare numbers, tensors and tuples of them; floats up to rounding, shapes exactly."""
    if b is ...:
        return True
    a, b = fit(a, _wanted(b)), _wanted(b)
    if isinstance(b, tuple):
        return (
            isinstance(a, tuple)
            and len(a) == len(b)
            and all(same(x, y, slack) for x, y in zip(a, b, strict=True))
        )
    if isinstance(b, Tensor):
        if not isinstance(a, Tensor) or a.shape != b.shape:
            return False
        x, y = a.detach().double(), b.detach().double()
        if not b.is_floating_point():
            return torch.allclose(x, y, rtol=0, atol=1e-4)
        size = y.where(y.isfinite(), 0.0).abs().max().item() if y.numel() else 0.0
        slack = min(slack, 1e-3 * size) if size else slack
        # A sum that cancels keeps the rounding of its terms, and machines add in their own order.
        # The median, because masked logits of -1e9 must not buy the others slack.
        usual = y[y.isfinite() & (y != 0)].abs()
        slack = max(slack, 1e-5 * usual.median().item() if usual.numel() else 0.0)
        return torch.allclose(x, y, rtol=1e-4, atol=slack, equal_nan=True)
    return bool(str(a).strip().casefold() == str(b).casefold()) if isinstance(b, str) else a is b


def _comparable(value: Any) -> bool:
    """Ask whether all of it is numbers: only what can be equal can differ the second time."""
    if isinstance(value, tuple):
        return all(map(_comparable, value))
    return isinstance(value, Tensor)


def finite(value: Any) -> bool:
    """Ask whether no number in it is a NaN or an infinity."""
    if isinstance(value, tuple):
        return all(map(finite, value))
    return not isinstance(value, Tensor) or bool(value.isfinite().all())


def show(value: Any) -> str:
    """Write a value so that it can be compared by eye.

    >>> show((torch.tensor([[0.25, 1 / 3]]), 46702792704))
    '[[0.25, 0.3333]], 46,702,792,704'
    """
    if isinstance(value, tuple):
        return ", ".join(map(show, value))
    if isinstance(value, Tensor):
        if value.numel() > 24:
            return f"a tensor of shape {tuple(value.shape)} and norm {value.double().norm():.4g}"
        return show(value.item()) if not value.dim() else str(_rounded(value.tolist()))
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


# --- judging -------------------------------------------------------------------------------------


@dataclass
class Case:
    """Hold what an answer gave on one case, what is right there, and what each mistake gives.

    Where gradients are looked at, all values are (value, gradient by each leaf).
    """

    given: str
    yours: Any
    right: Any
    mistakes: Mistakes
    otherwise: str
    leaves: tuple[str, ...] = ()
    again: Callable[[], Any] | None = None
    slack: float = 1e-6

    def wrong(self) -> bool:
        return not same(self.yours, self.right, self.slack)

    def gives(self, value: Any) -> bool:
        """Ask whether a mistake's value is yours; its gradient counts if its value is right."""
        if self.leaves and not same(value[0], self.right[0], self.slack):
            return same(self.yours[0], value[0], self.slack)
        return same(self.yours, value, self.slack)

    def is_from(self, value: Any) -> bool:
        """Ask whether a mistake may have made yours: where it overflowed, that cannot be seen."""
        return value is None or self.gives(value) or not finite(self.yours)

    def shows(self, value: Any) -> bool:
        """Ask whether a mistake's value gives yours here, and not what is right."""
        return value is not None and self.gives(value) and not same(self.right, value, self.slack)


class Check:
    """Put an answer to cases, then judge them together.

    Args: exercise:  the name of the learner's function.
          answer:    the function itself.
          right:     the same function, right; gradients are taken through it too.
          mistakes:  from the same arguments to each mistake's sentence and value.
          otherwise: what to say of numbers that nothing explains; or one for each part.
          parts:     the names of what the function returns, if it returns several things.
          nan:       what to say of a NaN or an infinity where the answer is finite.
          words:     the words that may be answered, where the answer is a word.
          slack:     how far a float may be off where its tensor holds numbers of about 1.
          see:       (value, *args) -> what is compared of the learner's value.
          asked:     the kind of what shall be returned, where see makes something else of it.
    """

    def __init__(
        self,
        exercise: str,
        answer: Callable[..., Any],
        right: Callable[..., Any] | None = None,
        mistakes: Callable[..., Mistakes] | None = None,
        otherwise: str | tuple[str, ...] = "this is not what is asked",
        *,
        parts: Sequence[str] = (),
        nan: str = "",
        words: Sequence[str] = (),
        slack: float = 1e-6,
        see: Callable[..., Any] | None = None,
        asked: Any = None,
    ) -> None:
        self.exercise, self.answer, self.right = exercise, answer, right
        self.mistakes, self.parts = mistakes, parts
        self.others = (otherwise,) if isinstance(otherwise, str) else otherwise
        self.nan, self.words, self.slack, self.see, self.asked = nan, words, slack, see, asked
        self.cases: list[Case] = []
        self.note, self.listed = "", False

    def on(self, given: str, *args: Any, otherwise: str = "", right: Any = None) -> None:
        """Add a case: call the answer on it, and keep what it gives."""
        value = self._call(given, args)
        raw = self.right(*args) if right is None and self.right else right
        right = _wanted(raw)
        self.listed = all(isinstance(part, list) for part in (raw if type(raw) is tuple else [raw]))
        mistakes = self.mistakes(*args) if self.mistakes else ()
        mistakes = [(text, None if v is None else fit(v, right)) for text, v in mistakes]
        self.cases.append(
            Case(given, fit(value, right), right, mistakes, otherwise,
                 again=lambda: fit(self._ask(given, args), right), slack=self.slack)
        )  # fmt: skip
        if self.see is None:
            self._notice(value, raw)

    def slopes(self, given: str, *args: Any, of: Mapping[str, int | Tensor]) -> None:
        """Add a case whose gradients are compared too.

        Args: of: from their names to the arguments, or to the parameters of one, as "self.x".
        """
        leaves = {n: i if isinstance(i, Tensor) else args[i].detach().clone().requires_grad_()
                  for n, i in of.items()}  # fmt: skip
        names = {i: n for n, i in of.items() if isinstance(i, int)}
        args = tuple(leaves[names[i]] if i in names else arg for i, arg in enumerate(args))
        try:
            value = self._call(given, args)
        except CheckFailed as error:
            raise CheckFailed(f"{error}\n  which needs a gradient; right without one") from error
        assert self.right is not None
        right = _wanted(self.right(*args))
        slopes = functools.partial(_slopes, leaves=list(leaves.values()))
        wanted = (right, *slopes(right))
        yours = fit(value, right)
        mistakes = [
            (text, None if value is None else (_wanted(value), *slopes(_wanted(value))))
            for text, value in (self.mistakes(*args) if self.mistakes else ())
        ]
        found = (yours, *slopes(yours, wanted[1:]))
        self.cases.append(Case(given, found, wanted, mistakes, "", tuple(leaves), slack=self.slack))

    def passed(self, verdict: str) -> None:
        """Judge all cases; print the verdict if they are all right."""
        self.judge()
        passed(self.exercise, verdict + self.note)

    def _ask(self, given: str, args: tuple[Any, ...]) -> Any:
        value = call(self.exercise, self.answer, *args, on=given)
        if self.see is None:
            return value
        seen = self.see(value, *args)
        self._notice(value, self.asked)
        return seen

    def _call(self, given: str, args: tuple[Any, ...]) -> Any:
        try:
            return self._ask(given, args)
        except CheckFailed:
            self.judge()  # an earlier case that is wrong says more than this crash
            raise

    def _notice(self, value: Any, right: Any) -> None:
        parts = value if isinstance(right, tuple) and isinstance(value, list | tuple) else [value]
        wanted = right if isinstance(right, tuple) else [right]
        for part, want in zip(parts, wanted, strict=False):
            number = isinstance(part, int | float) and isinstance(want, Tensor) and want.dim() == 0
            if isinstance(want, Tensor) and not isinstance(part, Tensor) and not number:
                self.note = f"\n  (Right numbers; asked is a tensor, and yours is {_kind(part)}.)"
            elif (isinstance(part, Tensor) and isinstance(want, Tensor)
                    and want.dtype == torch.int64 != part.dtype):  # fmt: skip
                mine = str(part.dtype).removeprefix("torch.")
                self.note = f"\n  (Right numbers; asked are whole ones, int64; yours are {mine}.)"

    def best_first(self, by: int, otherwise: str) -> None:
        """Say otherwise of each wrong case that is right once its rows are sorted by a part."""
        for case in self.cases:
            yours, right = (part[0] if case.leaves else part for part in (case.yours, case.right))
            if case.wrong() and isinstance(yours, tuple) and same(sort_rows(yours, by), right):
                case.otherwise = otherwise

    def judge(self) -> None:
        """Raise CheckFailed with what explains the cases, if any of them is wrong."""
        wrong = [case for case in self.cases if case.wrong()]
        if not wrong:
            return
        first = min(wrong, key=lambda case: bool(case.otherwise or case.leaves))
        verdict, case = self._named() or (self._formal(first), first)
        yours, right = case.yours, case.right
        given = case.given
        if case.leaves:
            which = next(i for i, (a, b) in enumerate(zip(yours, right, strict=True))
                         if not same(a, b))  # fmt: skip
            yours, right = yours[which], right[which]
            given = f"the gradient of {case.leaves[which - 1]}; {given}" if which else given
        refuse(self.exercise, verdict, given, show(yours), show(right))

    def _named(self) -> tuple[str, Case] | None:
        """Find the mistake that gives yours on every case, and the case that shows it best.

        A special case, one with a sentence of its own, counts only if all others are right.
        """
        plain = [case for case in self.cases if not case.otherwise]
        cases = plain if any(case.wrong() for case in plain) else self.cases
        if not any(finite(case.yours) for case in cases if finite(case.right)):
            return None  # a NaN everywhere comes from anywhere
        for index, (text, value) in enumerate(cases[0].mistakes):
            part = isinstance(value, tuple) and any(v is ... for v in value)
            if part and self._order():
                continue  # all of it in another order explains more than a part
            if all(case.is_from(case.mistakes[index][1]) for case in cases):
                shown = [case for case in cases if case.shows(case.mistakes[index][1])]
                alone = [case for case in shown if not any(
                    other != text and case.shows(value) for other, value in case.mistakes
                )]  # fmt: skip
                if shown:
                    return text, (alone or shown)[0]
        return None

    def _formal(self, case: Case) -> str:
        """Return what can be seen from the form of the numbers alone, else otherwise."""
        if case.leaves and same(case.yours[0], case.right[0]):
            which = next(i for i, (a, b) in enumerate(zip(case.yours, case.right, strict=True))
                         if not same(a, b))  # fmt: skip
            name = case.leaves[which - 1]
            if case.yours[which] is NO_GRADIENT:
                what = "it" if name.startswith("self.") else "what is behind"
                return (
                    f"right numbers, but no gradient reaches {name}, so {what} can never learn; "
                    "look for detach(), .data, no_grad(), .item(), or a tensor made anew"
                )
            return f"right numbers, but not the right gradient for {name}"
        pairs = self._pairs()
        yours, right = (case.yours[0], case.right[0]) if case.leaves else (case.yours, case.right)
        found = case.again() if case.again and _comparable(yours) else yours
        said = isinstance(right, Tensor) and right.dtype == torch.bool and not right.dim()
        if said and (not isinstance(yours, Tensor) or yours.dim() or yours.item() not in (0, 1)):
            return f"return True or False, not {_describe(yours)}"
        if found is not yours and not same(found, yours):
            if isinstance(right, str) or getattr(right, "dtype", 0) == torch.bool:
                return "asked twice about the same, it says two things: try until no chance decides"
            return "the same input gives another answer the second time: nothing may be drawn here"
        if isinstance(right, tuple):
            whole = isinstance(yours, tuple) and len(yours) == len(right)
            sound = not whole or finite(yours) or not finite(right)
            return (
                case.otherwise or ("" if sound else self.nan or _NAN)
                or self._formal_parts(pairs, yours, right) or self.others[0]
            )  # fmt: skip
        if isinstance(right, str):
            if not any(same(yours, word) for word in self.words):
                return f"answer one of {', '.join(self.words)}; not {show(yours)}"
            if len(pairs) > 2 and len({y for y, _ in pairs}) == 1:
                return f"it says {yours!r} of all {len(pairs)}; {case.otherwise}"
            return f"{right!r} is taken for {yours!r}: {case.otherwise}"
        if said and len(pairs) > 3 and len({bool(y) for y, _ in pairs}) == 1:
            return f"it says {bool(yours)} of all {len(pairs)}; {case.otherwise}"
        if not isinstance(yours, Tensor):
            return f"return {_describe(right, self.listed)}, not {_describe(yours)}"
        sound = finite(yours) or not finite(right)
        return (
            (self.nan if not sound else "")
            or case.otherwise
            or form(pairs, self.listed)
            or ("" if sound else _NAN)
            or self.others[0]
        )

    def _pairs(self) -> list[tuple[Any, Any]]:
        return [(c.yours[0], c.right[0]) if c.leaves else (c.yours, c.right) for c in self.cases]

    def _order(self) -> str:
        """Return what to say if yours are the right parts in another order, in every case."""
        pairs = self._pairs()
        n = len(pairs[0][1]) if isinstance(pairs[0][1], tuple) else 0
        for order in list(itertools.permutations(range(n)))[1:]:
            if all(isinstance(y, tuple) and len(y) == n and same(tuple(y[i] for i in order), r)
                   for y, r in pairs):  # fmt: skip
                what = "the two are swapped" if len(order) == 2 else "right, but in another order"
                return f"{what}: return {', '.join(self.parts)}"
        return ""

    def _formal_parts(self, pairs: list[Any], yours: Any, right: tuple[Any, ...]) -> str:
        names = self.parts or [f"part {i + 1}" for i in range(len(right))]
        if not isinstance(yours, tuple) or len(yours) != len(right):
            many = {2: "two", 3: "three", 4: "four"}.get(len(right), "several")
            kind = "tensors" if any(isinstance(r, Tensor) and r.dim() for r in right) else "numbers"
            kind = "lists" if self.listed else kind
            return f"return {many} {kind}: {', '.join(names)}; not {_describe(yours)}"
        if order := self._order():
            return order
        bad = [i for i, (a, b) in enumerate(zip(yours, right, strict=True)) if not same(a, b)]
        found = form([(y[bad[0]], r[bad[0]]) for y, r in pairs if isinstance(y, tuple)])
        text = found or self.others[min(bad[0], len(self.others) - 1)]
        mine, want = yours[bad[0]], right[bad[0]]
        if isinstance(want, Tensor) and not isinstance(mine, Tensor):
            text = f"return {_describe(want)}, not {_describe(mine)}"
        elif isinstance(mine, Tensor) and not mine.dim() + want.dim() + found.count("off by"):
            text += f" (off by {(mine - want).item():+,.6g})"
        return text if len(bad) == len(right) else f"{names[bad[0]]}: {text}"


def sort_rows(parts: tuple[Any, ...], by: int) -> tuple[Any, ...]:
    """Sort the rows of all parts by one of them, the largest first, where they have such rows."""
    if any(not isinstance(part, Tensor) or not part.dim() for part in parts):
        return parts
    if len({part.shape for part in parts}) != 1:
        return parts
    order = parts[by].sort(dim=-1, descending=True, stable=True).indices
    return tuple(part.gather(-1, order) for part in parts)


def _slopes(value: Any, right: tuple[Any, ...] | None = None, *, leaves: list[Tensor]) -> list[Any]:
    """Take the gradients of a weighted sum of all that a value holds."""
    parts = value if isinstance(value, tuple) else (value,)
    if any(part is ... for part in parts):
        return [...] * len(leaves)
    sums = [(p * randn(7, *p.shape).to(p.dtype)).sum() for p in parts
            if isinstance(p, Tensor) and p.is_floating_point() and p.requires_grad]  # fmt: skip
    if not sums:
        found: list[Any] = [None] * len(leaves)
    else:
        total = torch.stack([s.double() for s in sums]).sum()
        found = list(torch.autograd.grad(total, leaves, allow_unused=True, retain_graph=True))
    for i, slope in enumerate(found):
        if slope is None:
            zero = right is not None and isinstance(right[i], Tensor) and not right[i].any()
            found[i] = torch.zeros_like(leaves[i]) if zero else NO_GRADIENT
    return found


def form(pairs: Sequence[tuple[Any, Any]], listed: bool = False) -> str:
    """Return how yours comes from the right numbers, if it does so in the same way in every pair.

    Args: listed: the right numbers were asked as a list, not as a tensor.


    >>> form([(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 2.0])), (6, torch.tensor(3.0))])
    'right up to a factor: yours is 2 times what is asked'
    """
    pairs = [(fit(yours, right), right) for yours, right in pairs]
    if not all(isinstance(y, Tensor) and isinstance(r, Tensor) for y, r in pairs):
        return ""
    yours, right = next(((y, r) for y, r in pairs if not same(y, r)), pairs[0])
    if all(y.numel() == r.numel() and same(y.reshape(r.shape), r) for y, r in pairs):
        return f"right numbers in the shape {tuple(yours.shape)}; asked is {tuple(right.shape)}"
    if all(r.dim() == 2 and same(y, r.mT) for y, r in pairs):
        return "transposed: rows and columns are exchanged"
    if yours.shape == right.shape and any(y.shape != r.shape for y, r in pairs):
        return ""
    if yours.shape != right.shape:
        mine = _describe(yours, listed) if listed else f"one of shape {tuple(yours.shape)}"
        return f"return {_describe(right, listed)}, not {mine}"
    kinds = {y.dtype for y, _ in pairs}
    pairs = [(y.detach().double(), r.detach().double()) for y, r in pairs]
    if kinds < {torch.float16, torch.bfloat16} and all(
        torch.allclose(y, r, rtol=0, atol=8 * torch.finfo(kind).eps * r.abs().max().item())
        for kind in kinds
        for y, r in pairs
        if r.numel()
    ):
        kind = str(yours.dtype).removeprefix("torch.")
        return f"nearly right, but {kind} rounds too much to tell: compute, and return, float32"
    for text, change in _FORMS:
        if all(same(y, change(r)) for y, r in pairs):
            return text
    if not all(y.isfinite().all() for y, _ in pairs):
        return ""
    several = len(pairs) > 1 or right.numel() > 1
    scales = [(y.norm() / r.norm()).item() if r.any() else math.nan for y, r in pairs]
    if all(
        bool(y.any() and same(y, r * c)) if r.any() else not y.any()
        for (y, r), c in zip(pairs, scales, strict=True)
    ):
        times = sorted({f"{c:.4g}" for c in scales if not math.isnan(c)})
        same_times = several and len(times) == 1  # of one number alone every other is a multiple
        if times != ["1"] and (same_times or all(r.numel() > 1 for _, r in pairs)):
            return f"right up to a factor: yours is {' or '.join(times)} times what is asked"
    shifts = {f"{(y - r).mean().item():+,.6g}" for y, r in pairs}
    if several and len(shifts) == 1 and all(same(y, r + (y - r).mean()) for y, r in pairs):
        return f"every number is off by {shifts.pop()}"
    if any(len(r.unique()) > 2 for _, r in pairs) and all(
        same(y.flatten().sort().values, r.flatten().sort().values) for y, r in pairs
    ):
        return "the right numbers, but in another order"
    sums = [[t.sum(-1) for t in (y, r)] for y, r in pairs if r.dim() and r.shape[-1] > 1]
    ones = [[same(t, torch.ones_like(t)) for t in both] for both in sums]
    if ones and all(right for _, right in ones) and not all(mine for mine, _ in ones):
        return "they do not add up to 1 over the last dimension, and the right ones do"
    return ""


def _round(decimals: int) -> Callable[[Tensor], Tensor]:
    return lambda right: right.round(decimals=decimals)


_FORMS: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("the sign is turned round", lambda r: -r),
    ("this is 1 minus what is asked", lambda r: 1 - r),
    ("one softmax too many: this is the softmax of what is asked",
     lambda r: r.softmax(-1) if r.dim() else r * math.nan),
    ("this is the logarithm of what is asked", torch.log),
    ("this is the exponential of what is asked", torch.exp),
    ("this is the square of what is asked", torch.square),
    ("this is the square root of what is asked", torch.sqrt),
    ("this is one over what is asked", torch.reciprocal),
    *((f"rounded to {n} decimals: return every digit, and round for the eye alone", _round(n))
      for n in (4, 3, 2, 1))]  # fmt: skip


def _describe(value: Any, listed: bool = False) -> str:
    if isinstance(value, Tensor):
        if listed and value.dim() == 1:
            return f"a list of {len(value)}"
        return f"a tensor of shape {tuple(value.shape)}" if value.dim() else "one number"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "one number"
    if callable(value):
        name = getattr(value, "__name__", type(value).__name__)
        return f"the function `{name}` itself: call it, with ()"
    several = isinstance(value, list) and any(isinstance(part, Tensor) for part in value)
    return f"{len(value)} things" if several or isinstance(value, tuple) else show(value)


def _kind(value: Any) -> str:
    if type(value) in (list, tuple, dict):
        return f"a {type(value).__name__}"
    where = type(value).__module__.split(".")[0]
    return f"a {'Python' if where == 'builtins' else where} {type(value).__name__}"
