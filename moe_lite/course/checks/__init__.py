"""Check exercises: take the learner's function, name the misconception, accept what is right.

A check compares behaviour, never text. It runs the answer on cases, some to do by hand and others
drawn, and compares it on all of them with the right answer and with what each likely mistake would
give. An unfilled exercise raises NotImplementedError, and every check lets that through; a wrong
answer raises CheckFailed with the misconception. A right one is told so, in one line.

One module for each chapter, of which every function named check_ is here; ``verdict`` is what they
share.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..machine import check_environment
from .verdict import CheckFailed, judged

CHAPTERS = (
    "one_token", "competing_experts", "hierarchies", "in_between", "sparsely_gated", "capacity",
    "balancing", "stability", "expert_choice", "fine_grained", "small_mixtral", "what_for",
    "dispatch_paths", "triton_kernels", "where_time_goes", "many_machines", "serving", "adapting",
    "what_experts_learn",
)  # fmt: skip
__all__ = ["CheckFailed", "check_environment"]
for _chapter in CHAPTERS:
    for _name, _check in vars(import_module(f"{__name__}.{_chapter}")).items():
        if _name.startswith("check_"):
            globals()[_name] = judged(_check)
            __all__ += [_name]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...
