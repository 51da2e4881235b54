"""Groups: leaves that share one norm and one factor, because they have the same name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._leaves import is_nesting
from ..thresholds import Threshold
from .arguments import number
from .by_leaf import by_pattern

if TYPE_CHECKING:
    from .._leaves import Leaves
    from .arguments import Floats, Indices


class Groups(NamedTuple):
    """The groups of some leaves.

    names : of the groups, in the order in which leaves first have them
    known : these, and names that stand only where a leaf is None
    of_leaf : for each leaf the number of its group; that behind the last one if it is in none
    """

    names: tuple[str, ...]
    known: frozenset[str]
    of_leaf: Indices

    @classmethod
    def of(cls, leaves: Leaves, groups: Any) -> Groups:
        """Return the Groups that a nesting of names, or a dict of patterns, makes of leaves; an error names the path."""
        tree = leaves.tree
        if isinstance(groups, Mapping) and not (isinstance(tree, Mapping) and groups.keys() == tree.keys()):
            found = by_pattern(leaves, "groups", groups, _name)
        elif isinstance(groups, str) or is_nesting(groups) or isinstance(groups, Mapping):
            pairs = zip(leaves.paths(), leaves.aligned(groups, "groups"), strict=True)
            found = [_name(f"groups of {path}", name) for path, name in pairs]
        else:
            raise TypeError(f"groups must be a nesting of names, or a dict of patterns to names, not {type(groups).__name__}")
        names = tuple(dict.fromkeys(name for name in found if name is not None))
        frozen = len(leaves.paths(True)) > leaves.count
        number_of: dict[str | None, int] = {name: i for i, name in enumerate(names)}
        of_leaf = np.array([number_of.get(name, len(names)) for name in found], np.intp)
        return cls(names, frozenset((*names, *_strings(groups)) if frozen else names), of_leaf)

    @property
    def norms(self) -> int:
        """How many norms there are: those of groups and, behind these, that of all leaves in none, if there are such."""
        return int(self.of_leaf.max(initial=len(self.names) - 1)) + 1

    def thresholds(self, max_norm: Any) -> list[float]:
        """Return the threshold of each group: the same number for all, or those that a dict has by their names."""
        if isinstance(max_norm, Threshold) or hasattr(max_norm, "next_threshold"):
            raise TypeError("max_norm: a threshold object sees the global norm; groups take a number or a dict by name")
        if isinstance(max_norm, Mapping):
            return self._by_name(max_norm)
        if is_nesting(max_norm):
            raise TypeError("max_norm: leaves of a group share one threshold; groups take a number or a dict by name")
        return [number("max_norm", max_norm, 0.0)] * len(self.names)

    def completed(self, values: list[float]) -> Floats:
        """Return thresholds of groups as an array, which ends with the inf of leaves that are in none."""
        return np.array(values + [math.inf] * (self.norms - len(self.names)), np.float64)

    def _by_name(self, max_norm: Mapping[Any, Any]) -> list[float]:
        for key in max_norm:
            if not isinstance(key, str):
                raise ValueError(f"max_norm has the key {key!r}, which is no name of a group")
            if self.known and key not in self.known and not any(fnmatchcase(name, key) for name in self.known):
                some = ", ".join(sorted(self.known)[:5]) + (", ..." if len(self.known) > 5 else "")
                raise ValueError(f"max_norm has the name {key!r}, which no leaf has: the groups are {some}")
        values = {key: number(f"max_norm[{key!r}]", value, 0.0) for key, value in max_norm.items()}
        first = ((name, next((key for key in values if fnmatchcase(name, key)), None)) for name in self.names)
        return [values.get(name, math.inf if key is None else values[key]) for name, key in first]


def _name(what: str, name: Any) -> str:
    """Return the name of a group, or raise a TypeError that says where it stands."""
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a name, which is a str, not {type(name).__name__} {name!r:.80}")
    return name


def _strings(node: Any) -> Iterator[str]:
    """Yield all strings in a nesting of lists, tuples and dicts."""
    if isinstance(node, str):
        yield node
    for child in node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else ():
        yield from _strings(child)
