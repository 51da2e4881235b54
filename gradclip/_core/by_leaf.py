"""Arguments that may differ by leaf: a number for all, a nesting, or a dict of patterns over paths; and axes of each leaf."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .._leaves import is_nesting
from ..thresholds import Threshold
from .arguments import number

if TYPE_CHECKING:
    from .._leaves import Leaves
    from .arguments import Floats

T = TypeVar("T")
NUMBERS = {float, int, type(None)}  # the usual arguments: to look for a nesting takes as long as a small call


def is_by_leaf(value: Any) -> bool:
    """Return whether an argument is a nesting or a dict of patterns, and not a number for all leaves."""
    return type(value) not in NUMBERS and (isinstance(value, Mapping) or is_nesting(value))


def by_leaf(leaves: Leaves, name: str, value: Any, check: Callable[[str, Any], T]) -> list[T | None]:
    """Return what an argument gives each leaf; None for a leaf that no pattern matches.

    A dict is a nesting if its keys are those of the nesting of leaves, else it holds patterns, of which the first that matches
    counts.

    name : the argument's name in messages
    check : takes what a message calls a value, and the value; returns it, or raises an error
    """
    if isinstance(value, Mapping):
        tree = leaves.tree
        if not (isinstance(tree, Mapping) and value.keys() == tree.keys()):
            return by_pattern(leaves, name, value, check)
    elif not is_nesting(value):
        return [check(name, value)] * leaves.count
    return [check(f"{name} of {p}", v) for p, v in zip(leaves.paths(), leaves.aligned(value, name), strict=True)]


def by_pattern(leaves: Leaves, name: str, patterns: Mapping[Any, Any], check: Callable[[str, Any], T]) -> list[T | None]:
    """Return what the first pattern that matches its path gives each leaf; None if none does. Arguments as for `by_leaf`."""
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ValueError(f"{name} has the key {pattern!r}, which is neither in {leaves.name} nor a pattern")
    values = [check(f"{name}[{p!r}]", v) for p, v in patterns.items()]
    return [None if i is None else values[i] for i in leaves.match_patterns(patterns, name)]


def thresholds_by_leaf(leaves: Leaves, max_norm: Any) -> Floats:
    """Return the threshold of each leaf, float64; inf for a leaf that no pattern matches."""
    if isinstance(max_norm, Threshold) or hasattr(max_norm, "next_threshold"):
        raise TypeError("max_norm: a threshold object sees the global norm; give each leaf one with thresholds.PerLeaf(rule)")
    values = by_leaf(leaves, "max_norm", max_norm, _threshold)
    leaves.check_count(len(values))
    return np.array([math.inf if value is None else value for value in values], np.float64)


def axes_of(leaves: Leaves, i: int, name: str, axes: Sequence[int]) -> set[int]:
    """Return the axes of a leaf that an argument, `name`, means: each from 0 on, and none of them twice."""
    ndim = leaves.arrays[i].ndim
    for axis in axes:
        if not -ndim <= axis < ndim:
            raise ValueError(f"{leaves.path(i)}: {name} {axis} is out of bounds for an array of {ndim} dimensions")
    found = {axis % ndim for axis in axes}
    if len(found) < len(axes):
        raise ValueError(f"{leaves.path(i)}: {name} {tuple(axes)} names an axis twice")
    return found


def _threshold(name: str, value: Any) -> float:
    return number(name, value, 0.0)
