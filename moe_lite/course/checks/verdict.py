"""The mechanism of the checks: call the answer, compare it, say what it shows."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Mistakes = Sequence[tuple[str, Any]]
"""Sentences that each name a mistake, with the value which that mistake gives."""


class CheckFailed(AssertionError):
    """Carry the verdict on a wrong answer: the misconception, then the numbers."""

    def _render_traceback_(self) -> list[str]:
        """Show only the verdict in a notebook, not the frames of the check."""
        return [f"✗ {self}"]


def passed(exercise: str, verdict: str) -> None:
    """Print the verdict on a right answer."""
    print(f"✓ {exercise}: {verdict}")


def call(exercise: str, answer: Callable[..., Any], *args: Any, on: str) -> Any:
    """Call the learner's code, saying in words what it is called on; a list comes as a tuple.

    Raises: CheckFailed with the exercise's name if the code raises, or changes a tensor it is
            given; NotImplementedError as it comes.
    """
    before = [arg.detach().clone() if isinstance(arg, Tensor) else arg for arg in args]
    try:
        result = answer(*args)
    except (NotImplementedError, CheckFailed):
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if f.filename != __file__ and "site-packages" not in f.filename]
        line = f"\n  at       {own[-1].line}" if own and own[-1].line else ""
        raise CheckFailed(
            f"{exercise} raised {type(error).__name__}: {error}{line}\n  given    {on}"
        ) from error
    for arg, kept in zip(args, before, strict=True):
        # What is not a number equals nothing, itself included.
        if isinstance(arg, Tensor) and not (
            torch.equal(arg.isnan(), kept.isnan())
            and torch.equal(arg.nan_to_num(), kept.nan_to_num())
        ):
            raise CheckFailed(
                f"{exercise} changes its input in place; whoever called it still needs it"
            )
    return tuple(result) if isinstance(result, list) else result


def expect(
    exercise: str, given: str, yours: Any, right: Any, mistakes: Mistakes, otherwise: str
) -> None:
    """Accept the right value; else name the mistake that gives yours, or say otherwise.

    >>> expect("double", "3", 6, 6, [], "wrong")
    >>> expect("double", "3", 9, 6, [("that is the square", 9)], "wrong")
    Traceback (most recent call last):
    moe_lite.course.checks.verdict.CheckFailed: double: that is the square
      given    3
      yours    9
      expected 6
    """
    if same(yours, right):
        return
    verdict = next((name for name, value in mistakes if same(yours, value)), otherwise)
    raise CheckFailed(
        f"{exercise}: {verdict}\n  given    {given}\n"
        f"  yours    {show(yours)}\n  expected {show(right)}"
    )


def same(a: Any, b: Any) -> bool:
    """Compare numbers, tensors and tuples of them; floats up to rounding, shapes exactly.

    A sum that cancels keeps the rounding of its terms, so the slack has the tensor's size, not
    each number's own: machines and libraries differ in the order in which they add.
    """
    if isinstance(b, tuple):
        return isinstance(a, tuple) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(b, Tensor):
        if not isinstance(a, Tensor) or a.shape != b.shape:
            return False
        a, b = a.double(), b.double()
        # The median of what is there: masked logits of -1e9 must not buy the others slack.
        sizes = b[b.isfinite() & (b != 0)].abs()
        size = sizes.median().item() if sizes.numel() else 0.0
        return torch.allclose(a, b, rtol=1e-4, atol=max(1e-6, 1e-5 * size))
    return a == b


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
        return str(_rounded(value.tolist()))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else repr(value)


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def randn(seed: int, *shape: int) -> Tensor:
    """Draw normal numbers that are the same each time, leaving torch's own generator alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
