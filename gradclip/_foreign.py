"""Leaves that are not NumPy arrays: how to view their memory as one, and how to give a result back in
the caller's own type. No library is imported here; one is used only when the caller has loaded it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping

import numpy as np


def _library(node):
    return type(node).__module__.partition(".")[0]


def is_sparse(node):
    """A scipy.sparse array or matrix; false wherever scipy.sparse was never imported."""
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and sparse.issparse(node)


def is_array(node):
    """Something that offers its memory: a leaf, though it may be iterable."""
    return (
        isinstance(node, (np.ndarray, np.generic, memoryview))
        or hasattr(node, "__array_interface__")
        or hasattr(node, "__dlpack__")
        or hasattr(node, "__cuda_array_interface__")
        or is_sparse(node)
        or _library(node) == "array"
    )


def is_collection(node):
    """Ordered things that are walked like a list: dict views, deques, map objects."""
    return isinstance(node, Iterable) and not isinstance(node, (set, frozenset, bytearray))


def view(node):
    """The memory of a leaf as an ndarray, without a copy. TypeError where that cannot be had."""
    kind = f"{type(node).__module__}.{type(node).__qualname__}"
    if is_sparse(node):
        if node.format not in ("csr", "csc", "coo", "bsr"):
            raise TypeError(f"scipy.sparse format {node.format!r} keeps no plain array of values; use .tocsr()")
        node.sum_duplicates()
        return node.data
    if isinstance(node, np.generic):
        raise TypeError(f"{kind} is a scalar without memory of its own; use a 0-d array")
    if not is_array(node):
        raise TypeError(f"{kind} is not an array")
    try:
        if _library(node) == "torch":
            return _view_torch(node)
        if isinstance(node, memoryview) or hasattr(node, "__array_interface__") or _library(node) == "array":
            return np.asarray(node, copy=False)
        if hasattr(node, "__array__"):  # JAX: read-only, bfloat16 included
            return np.asarray(node, copy=False)
        return np.from_dlpack(node)
    except (TypeError, ValueError, BufferError, RuntimeError) as error:
        raise TypeError(f"{kind} gives NumPy no view of its memory on the CPU: {error}") from None


def _view_torch(tensor):
    torch = sys.modules["torch"]
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        raise TypeError(f"layout {tensor.layout}; only strided tensors have plain memory")
    if tensor.dtype == torch.bfloat16:  # NumPy knows it by ml_dtypes alone
        import ml_dtypes

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def wrap(original, array):
    """A result array as the kind of leaf it came from."""
    if is_sparse(original):
        result = original.copy()
        result.data = array
        return result
    if _library(original) == "torch":
        torch = sys.modules["torch"]
        if original.dtype == torch.bfloat16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)
    if _library(original) in ("jax", "jaxlib"):
        return sys.modules["jax"].numpy.asarray(array)
    return array


def like_mapping(node, items):
    """A mapping of the same type, keys and order with other values."""
    pairs = dict(zip(node, items, strict=True))
    if type(node) is dict:
        return pairs
    if isinstance(node, dict):
        result = node.copy()  # keeps a defaultdict's factory
        result.update(pairs)
        return result
    if isinstance(node, Mapping):
        return type(node)(pairs)
    return pairs
