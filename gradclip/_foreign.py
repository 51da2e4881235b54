"""Leaves and containers that are not NumPy arrays and plain lists: how to view their memory, and how to give a
result back in the caller's own type. No library is imported here; one is used only when the caller has."""

from __future__ import annotations

import copy
import sys
from collections import deque
from collections.abc import Iterable, Mapping

import numpy as np


def _library(node):
    return type(node).__module__.partition(".")[0]


def is_cuda_tensor(node):
    """A tensor of PyTorch's on a GPU."""
    return _library(node) == "torch" and node.is_cuda


def is_sparse(node):
    """A scipy.sparse array or matrix; false wherever scipy.sparse was never imported."""
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and sparse.issparse(node)


def _is_on_gpu(node):
    """Something that offers memory of a CUDA device."""
    if _library(node) == "torch":
        return is_cuda_tensor(node)
    if hasattr(node, "__cuda_array_interface__"):
        return True
    device = getattr(node, "__dlpack_device__", None)
    return device is not None and device()[0] in (2, 13)  # CUDA, and what it manages


def _is_buffer(node):
    try:
        memoryview(node)
    except (TypeError, BufferError, ValueError):
        return False
    return True


def is_array(node):
    """Something that offers its memory: a leaf, though it may be iterable."""
    return (
        isinstance(node, np.ndarray | np.generic)
        or hasattr(node, "__array_interface__")
        or hasattr(node, "__dlpack__")
        or hasattr(node, "__cuda_array_interface__")
        or is_sparse(node)
        or _is_buffer(node)
    )


def is_collection(node):
    """Ordered things that are walked like a list: iterators, dict views, deques."""
    return isinstance(node, Iterable) and not isinstance(node, set | frozenset)


def view(node, write):
    """The memory of a leaf as an ndarray, without a copy; and the object that owns this memory, which is another
    than `node` where stored values had to be brought together. TypeError where there is none."""
    kind = f"{type(node).__module__}.{type(node).__qualname__}"
    if is_sparse(node):
        if node.format not in ("csr", "csc", "coo", "bsr"):
            raise TypeError(f"scipy.sparse format {node.format!r} keeps no plain array of values; use .tocsr()")
        tail = node.format != "coo" and len(node.data) != node.indptr[-1]
        if tail or not node.has_canonical_format:
            node = node.copy()  # duplicates are summed in a copy: the caller's may yet stay as it is
            if tail:
                node.prune()
            node.sum_duplicates()
        return node.data, node
    if isinstance(node, np.generic):
        raise TypeError(f"{kind} {node!r} is a scalar without memory of its own; use a 0-d array")
    if not is_array(node):
        raise TypeError(f"{kind} {node!r:.80} is not an array")
    if _is_on_gpu(node):
        try:
            return _view_gpu(node, write), node
        except (AttributeError, KeyError, BufferError, RuntimeError) as error:
            raise TypeError(f"{kind} gives CuPy no view of its memory: {error}") from None
    try:
        if _library(node) == "torch":
            return _view_torch(node, write), node
        if hasattr(node, "__array_interface__") or _is_buffer(node):
            return np.asarray(node if hasattr(node, "__array_interface__") else memoryview(node), copy=False), node
        if hasattr(node, "__array__"):  # JAX: read-only, bfloat16 included
            return np.asarray(node, copy=False), node
        return np.from_dlpack(node), node
    except (AttributeError, TypeError, ValueError, BufferError, RuntimeError) as error:
        raise TypeError(f"{kind} gives NumPy no view of its memory on the CPU: {error}") from None


def _view_gpu(node, write):
    """As a CuPy array of the same memory."""
    try:
        import cupy
    except ImportError:
        raise ImportError('arrays on a GPU need CuPy: pip install "gradclip[cuda12]" or "gradclip[cuda13]"') from None
    if isinstance(node, cupy.ndarray):
        return node
    if _library(node) == "torch":
        torch, node = sys.modules["torch"], _plain_torch(node, write)
        with cupy.cuda.Device(node.device.index):  # CuPy would copy from another device to the current one
            if node.dtype == torch.bfloat16:
                return cupy.asarray(node.view(torch.int16)).view(_brain())
            return cupy.asarray(node)
    shown = getattr(node, "__cuda_array_interface__", None)
    if write and (_library(node) in ("jax", "jaxlib") or (shown is not None and shown["data"][1])):
        raise ValueError("read-only array, which cannot be written")
    if hasattr(node, "__dlpack__"):
        return cupy.from_dlpack(node)
    if not shown["data"][0]:  # empty
        return cupy.empty(shown["shape"], shown["typestr"])
    with cupy.cuda.Device(cupy.cuda.runtime.pointerGetAttributes(shown["data"][0]).device):
        return cupy.asarray(node)


class _Memory:
    """What NumPy asks of something that offers memory."""

    __slots__ = ("__array_interface__",)


_NOTHING = np.zeros(16, np.uint8)


def addressed(array):
    """An array of NumPy; of a CuPy array, one with its addresses, shape and strides. Only they may be looked at: the
    memory is not this processor's."""
    if isinstance(array, np.ndarray):
        return array
    if array.size == 0:
        return np.ndarray(array.shape, array.dtype, _NOTHING)  # always at the same place: a GPU's table of leaves is kept
    memory = _Memory()
    plain = array.dtype.str if array.dtype.kind != "V" else f"<u{array.itemsize}"  # bfloat16 has no name for it
    shown = {"data": (array.data.ptr, False), "shape": array.shape, "strides": array.strides, "typestr": plain, "version": 3}
    memory.__array_interface__ = shown
    return np.asarray(memory).view(array.dtype)


def _brain():
    """bfloat16, which NumPy knows by ml_dtypes alone."""
    try:
        import ml_dtypes
    except ImportError:
        raise ImportError('bfloat16 tensors need ml_dtypes: pip install "gradclip[bfloat16]"') from None
    return ml_dtypes.bfloat16


def _plain_torch(tensor, write):
    torch = sys.modules["torch"]
    if write and tensor.requires_grad:
        raise TypeError("it requires grad: a parameter or part of a graph; pass p.grad, or p.data if it is to be changed")
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        raise TypeError(f"layout {tensor.layout}; only strided tensors have plain memory")
    if tensor.is_conj() or tensor.is_neg():
        raise TypeError("a lazily conjugated or negated view; pass .resolve_conj().resolve_neg()")
    return tensor


def _view_torch(tensor, write):
    tensor = _plain_torch(tensor, write)
    torch = sys.modules["torch"]
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(_brain())
    return tensor.numpy()


def wrap(original, array):
    """A result array as the kind of leaf it came from."""
    if is_sparse(original):
        result = original.copy()
        result.data = array
        return result
    if _library(original) == "torch":
        torch = sys.modules["torch"]
        take = torch.from_numpy if isinstance(array, np.ndarray) else torch.from_dlpack
        if original.dtype == torch.bfloat16:
            return take(array.view(np.int16)).view(torch.bfloat16)
        return take(array)
    if _library(original) in ("jax", "jaxlib"):
        jax = sys.modules["jax"]
        return jax.numpy.asarray(array) if isinstance(array, np.ndarray) else jax.dlpack.from_dlpack(array)
    return array


def _pattern(node):
    """Where the values of a canonical sparse array stand."""
    return list(node.coords) if node.format == "coo" else [node.indices, node.indptr]


def same_pattern(a, b):
    """Whether two leaves hold their values at the same places; always, unless one is sparse."""
    if not (is_sparse(a) or is_sparse(b)):
        return True
    if not (is_sparse(a) and is_sparse(b)) or a.format != b.format or a.shape != b.shape:
        return False
    return all(np.array_equal(x, y) for x, y in zip(_pattern(a), _pattern(b), strict=True))


def rearrange(node, original):
    """Give a sparse leaf the values and places of its copy without duplicates."""
    node.data = original.data
    if node.format == "coo":
        node.coords = original.coords
    else:
        node.indices, node.indptr = original.indices, original.indptr
    node.has_canonical_format = True


def like_container(node, items):
    """A container of the same type with other items."""
    if isinstance(node, Mapping):
        return _like_mapping(node, items)
    if isinstance(node, tuple):
        return type(node)._make(items) if hasattr(node, "_fields") else type(node)(items)
    if isinstance(node, list):
        return items if type(node) is list else type(node)(items)
    return deque(items, node.maxlen) if type(node) is deque else items


def _like_mapping(node, items):
    pairs = dict(zip(node, items, strict=True))
    if type(node) is dict:
        return pairs
    if isinstance(node, dict):
        result = copy.copy(node)  # keeps a defaultdict's factory
        result.update(pairs)
        return result
    try:
        return type(node)(pairs)
    except (TypeError, ValueError):  # an opened .npz file, say
        return pairs
