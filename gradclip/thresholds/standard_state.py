"""A decorator that makes results independent of the floating-point state that the caller has set."""

from __future__ import annotations

import functools
from typing import Any, cast

from .._core.arguments import Function
from .._cpu.plan import StandardState


def in_standard_state(function: Function) -> Function:
    """Return `function`, run with rounding to nearest and with subnormal numbers, as the passes over gradients are.

    Another rounding mode or flush-to-zero, set by some other library, then changes no bit of what `function` returns.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with StandardState():
            return function(*args, **kwargs)

    return cast(Function, run)
