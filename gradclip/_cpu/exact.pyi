from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from gradclip._core.arguments import Indices
from gradclip._cpu.plan import Plan
from gradclip._cpu.sums import Sums
from gradclip._leaves import Leaves

def settle(sums: Sums, leaves: Leaves, first: int = 0, total: bool = True) -> None: ...
def tells(sums: Sums) -> bool: ...
def exact_sum(
    leaves: Leaves,
    ord: float,
    plan: Plan | None = None,
    unit: int | None = None,
    by_owner: bool = False,
    owner: Indices | None = None,
) -> Fraction: ...
def exact_sums(
    leaves: Leaves, ord: float, units: Indices, owner: Indices | None, plan: Plan | None = None
) -> list[Fraction]: ...
def merged_sums(units: Sums, owner: Indices, own: Sums, which: Sequence[int], parts: Sequence[Any], whole: Sums) -> Sums: ...
def exceed(leaves: Leaves, sums: Sums, units: np.ndarray | None, thresholds: np.ndarray) -> np.ndarray: ...
def sums_of(
    total: int,
    exponent: int,
    ord: float,
    grad_scale: float,
    finite_only: bool,
    max_abs: float,
    found: tuple[int, int, tuple[str, int] | None],
) -> Sums: ...
