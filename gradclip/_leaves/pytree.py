"""Containers that JAX's registry of pytrees knows: how it opens and makes them. JAX is never imported here."""

from __future__ import annotations

import sys
from collections.abc import Hashable
from typing import Any

_STANDARD = {"builtins", "collections", "array", "ctypes", "numpy", "scipy", "torch", "cupy"}


def is_node(node: Any) -> bool:
    """Whether something is a container for JAX and not for this library: a struct of Flax, a module of Equinox."""
    trees = getattr(sys.modules.get("jax"), "tree_util", None)
    if trees is None or type(node).__module__.partition(".")[0] in _STANDARD:
        return False
    if isinstance(node, getattr(sys.modules["jax"], "Array", ())) or (isinstance(node, tuple) and hasattr(node, "_fields")):
        return False
    pairs, _ = _opened(node)
    return [path for path, _ in pairs] != [()]  # which is that of a leaf


def flatten(node: Any) -> tuple[list[Any], list[Hashable] | None]:
    """The children of such a container, and what JAX calls them; None where it numbers them."""
    pairs, _ = _opened(node)
    keys = [name_of(path[0]) for path, _ in pairs]
    return [child for _, child in pairs], None if keys == list(range(len(keys))) else keys


def rebuild(node: Any, children: list[Any]) -> Any:
    """Another such container with other children."""
    return _opened(node)[1].unflatten(children)


def _opened(node: Any) -> tuple[list[tuple[Any, Any]], Any]:
    """Pairs of paths and children, and the structure without them. Only the container itself is opened."""
    asked = iter([False])  # the first that is asked about is the container
    pairs, tree = sys.modules["jax"].tree_util.tree_flatten_with_path(node, is_leaf=lambda _: next(asked, True))
    return pairs, tree


def name_of(key: Any) -> Any:
    """What stands in a path for a key of JAX's."""
    for name in ("key", "name", "idx"):
        if hasattr(key, name):
            return getattr(key, name)
    return str(key)
