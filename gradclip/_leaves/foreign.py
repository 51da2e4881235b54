"""Leaves that are not NumPy arrays: how to view their memory, and how to give a result back in the caller's own type.

No library is imported here. One is used only if the caller has imported it."""

from __future__ import annotations

import math
import sys
from functools import cache
from typing import Any

import numpy as np

from .pytorch import holds_weights, is_module, is_parameter, is_tensor, plain, reach_of

Array = np.ndarray[Any, np.dtype[Any]]

TREES = (
    "pass the arrays in it (of a tree of JAX's: leaves, tree = jax.tree.flatten(grads), then jax.tree.unflatten(tree, clipped)"
    "); a container of your own: gradclip.register_container"
)
LINE = 64  # bytes

# bfloat16 of PyTorch's on the host. NumPy has no such numbers: this names the bits, and the gate knows this very object.
BRAIN = np.dtype([("bfloat16", np.uint16)])

WEIGHTS = "a torch.nn.Parameter, or a module of them, holds weights and no gradient; pass p.grad"


TRACED = (
    "has no values while JAX traces a function; use gradclip.jax.clip_by_global_norm inside of jax.jit, or call this function "
    "between compiled ones"
)


def _library(node: Any) -> str:
    return type(node).__module__.partition(".")[0]


def type_name(node: Any) -> str:
    """The name of something's type."""
    return f"{type(node).__module__}.{type(node).__qualname__}"


def knows_sparse() -> bool:
    """Whether anything can be a sparse array: somebody has imported scipy.sparse."""
    return "scipy.sparse" in sys.modules


def is_sparse(node: Any) -> bool:
    """A scipy.sparse array or matrix; false wherever scipy.sparse was never imported."""
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and bool(sparse.issparse(node))


def _is_on_gpu(node: Any) -> bool:
    """Something that offers memory of a CUDA device."""
    if is_tensor(node):
        return bool(node.is_cuda)
    if _has(node, "__cuda_array_interface__", False):
        return True
    try:
        device = getattr(node, "__dlpack_device__", None)
        return device is not None and device()[0] in (2, 13)  # CUDA, and what it manages
    except MemoryError:
        raise
    except Exception:  # nor can the host see its memory then, and says so
        return False


def _has(node: Any, name: str, failing: bool) -> bool:
    """Whether an object has an attribute; `failing` if it raises an error of its own when it is asked."""
    try:
        return hasattr(node, name)
    except MemoryError:
        raise
    except Exception:
        return failing


def _is_buffer(node: Any) -> bool:
    try:
        memoryview(node)
    except (TypeError, BufferError, ValueError):
        return False
    return True


def is_array(node: Any) -> bool:
    """Something that offers its memory: a leaf, though it may be iterable.

    One that fails when it is asked is a leaf too. `view` says what went wrong, and who calls that knows its place."""
    return (
        isinstance(node, np.ndarray | np.generic)
        or _has(node, "__array_interface__", True)
        or _has(node, "__dlpack__", True)
        or _has(node, "__cuda_array_interface__", True)
        or is_sparse(node)
        or _is_buffer(node)
    )


def view(node: Any, write: bool, weights: bool = False) -> tuple[Any, Any]:
    """Return the memory of a leaf as an ndarray or a CuPy array, without a copy; and the object that owns this memory.

    A TypeError says that there is none, or that it is that of parameters and not of gradients, unless `weights` are meant."""
    if is_tensor(node):
        return _view_tensor(node, write, weights), node
    kind = type_name(node)
    if is_sparse(node):
        return _values(node, kind), node
    _check_leaf(node, kind, weights)
    if _is_on_gpu(node):
        try:
            return _view_gpu(node, write), node
        except (AttributeError, KeyError, BufferError, RuntimeError) as error:
            raise TypeError(f"{kind} gives CuPy no view of its memory: {error}") from None
    try:
        if hasattr(node, "__array_interface__") or _is_buffer(node):
            return np.asarray(node if hasattr(node, "__array_interface__") else memoryview(node), copy=False), node
        if hasattr(node, "__array__"):  # JAX: read-only, bfloat16 included
            return np.asarray(node, copy=False), node
        return np.from_dlpack(node), node
    except MemoryError:
        raise
    except Exception as error:  # of any kind: it runs code of the object's own
        if _is_traced(node):
            raise TypeError(f"{kind} {TRACED}") from None
        raise TypeError(f"{kind} gives NumPy no view of its memory on the CPU: {error}") from None


def _check_leaf(node: Any, kind: str, weights: bool) -> None:
    """Raise a TypeError that says why an object is no leaf, if it is none."""
    if not weights and holds_weights(node):
        raise TypeError(f"{kind}: {WEIGHTS}")
    if isinstance(node, np.generic):
        raise TypeError(f"{kind} {node!r} is a scalar without memory of its own; use a 0-d array")
    if is_module(node):
        raise TypeError(f"{kind} is a module; pass its parameters in the nesting of the gradients, as list(model.parameters())")
    if not is_array(node):
        builtin = type(node).__module__ == "builtins"
        raise TypeError(f"{kind} {node!r:.80} is not an array" if builtin else f"{kind} is not an array; {TREES}")


def _values(node: Any, kind: str) -> np.ndarray[Any, Any]:
    """The stored values of a sparse array of SciPy's."""
    if node.format not in ("csr", "csc", "coo", "bsr"):
        raise TypeError(f"scipy.sparse format {node.format!r} keeps no plain array of values; use .tocsr()")
    if not isinstance(node.data, np.ndarray):
        raise TypeError(f"{kind} keeps its values in no array, but in a {type(node.data).__name__}")
    return node.data


def _view_tensor(node: Any, write: bool, weights: bool) -> Any:
    """The memory of a tensor of PyTorch's, as an array of NumPy or CuPy."""
    if not weights and is_parameter(node):
        raise TypeError(f"{type_name(node)}: {WEIGHTS}")
    try:
        tensor = plain(node, write)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{type_name(node)} gives no view of its memory: {error}") from None
    try:
        return view_on_gpu(tensor) if tensor.is_cuda else _view_torch(tensor)
    except (AttributeError, KeyError, TypeError, ValueError, BufferError, RuntimeError) as error:
        where = "CuPy no view of its memory" if tensor.is_cuda else "NumPy no view of its memory on the CPU"
        raise TypeError(f"{type_name(node)} gives {where}: {error}") from None


@cache
def torch_dtype(dtype: Any) -> np.dtype[Any] | None:
    """The dtype that an array on the host has for one of PyTorch's; None for a dtype that gradients may not have."""
    torch = sys.modules["torch"]
    for name in ("float32", "float16", "float64", "complex64", "complex128"):
        if dtype is getattr(torch, name, None):
            return np.dtype(name)
    return BRAIN if dtype == torch.bfloat16 else None


def numbers(array: Array) -> Array:
    """An array, not of no dimension, as one that NumPy computes with: of bfloat16 of PyTorch's a copy in float32."""
    return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32) if array.dtype is BRAIN else array


def dtype_name(dtype: np.dtype[Any]) -> str:
    """What a dtype is called in messages."""
    return "bfloat16" if dtype is BRAIN else str(dtype)


def view_on_gpu(tensor: Any) -> Any:
    """A tensor as a CuPy array of the same memory. CuPy itself would ask for `__cuda_array_interface__`, which is slow."""
    cupy = _cupy()
    dtype = torch_dtype(tensor.dtype)
    dtype = brain() if dtype is BRAIN else dtype
    if dtype is None or not tensor.numel():
        with cupy.cuda.Device(tensor.device.index):  # CuPy would copy from another device to the current one
            return cupy.asarray(tensor) if dtype is None else cupy.empty(tuple(tensor.shape), dtype)
    size = dtype.itemsize
    strides = None if tensor.is_contiguous() else tuple(stride * size for stride in tensor.stride())
    memory = cupy.cuda.UnownedMemory(tensor.data_ptr(), reach_of(tensor) * size, tensor, tensor.device.index)
    return cupy.ndarray(tuple(tensor.shape), dtype, cupy.cuda.MemoryPointer(memory, 0), strides)


def _cupy() -> Any:
    """CuPy, without which nothing on a GPU can be a leaf."""
    try:
        import cupy
    except ImportError:
        raise ImportError('arrays on a GPU need CuPy: pip install "gradclip[cuda12]" or "gradclip[cuda13]"') from None
    return cupy


def _view_gpu(node: Any, write: bool) -> Any:
    """As a CuPy array of the same memory."""
    cupy = _cupy()
    if isinstance(node, cupy.ndarray):
        return node
    shown: Any = getattr(node, "__cuda_array_interface__", None)
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
    __array_interface__: dict[str, Any]


_NOTHING = np.zeros(16, np.uint8)


def addressed(array: Any) -> Array:
    """Return a NumPy array as it is; for a CuPy array, a NumPy array with its addresses, shape and strides.

    Nothing else of the latter may be looked at: the memory is not this processor's."""
    if isinstance(array, np.ndarray):
        return array
    if array.size == 0:
        nothing: Array = np.ndarray(array.shape, array.dtype, _NOTHING)  # at one place: a GPU's table of leaves is kept
        return nothing
    memory = _Memory()
    plain = array.dtype.str if array.dtype.kind != "V" else f"<u{array.itemsize}"  # bfloat16 has no name for it
    shown = {"data": (array.data.ptr, False), "shape": array.shape, "strides": array.strides, "typestr": plain, "version": 3}
    memory.__array_interface__ = shown
    found: Array = np.asarray(memory).view(array.dtype)
    return found


@cache
def brain() -> np.dtype[Any]:
    """bfloat16, which CuPy knows by ml_dtypes alone."""
    try:
        import ml_dtypes
    except ImportError:
        raise ImportError('bfloat16 tensors on a GPU need ml_dtypes: pip install "gradclip[bfloat16]"') from None
    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found


def _view_torch(tensor: Any) -> Any:
    torch = sys.modules["torch"]
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(BRAIN)
    return tensor.numpy()


def wrap(original: Any, array: Any) -> Any:
    """A result array as the kind of leaf it came from, which `is_rebuildable`."""
    if is_sparse(original):
        result = original.copy()
        result.data = array
        return result
    if is_tensor(original):
        torch = sys.modules["torch"]
        take = torch.from_numpy if isinstance(array, np.ndarray) else torch.from_dlpack
        made = take(array.view(np.int16)).view(torch.bfloat16) if original.dtype == torch.bfloat16 else take(array)
        return made if type(original).__module__ == "torch" else made.as_subclass(type(original))
    if is_jax_array(original):
        return array if is_jax_array(array) else sys.modules["jax"].dlpack.from_dlpack(array)
    if isinstance(original, memoryview):
        return memoryview(array)
    if _is_stdlib_array(original):
        return type(original)(original.typecode, array.tobytes())
    return type(original).from_buffer_copy(array.tobytes())


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A new array that begins where a line of the cache does: JAX takes such memory without a copy."""
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + LINE - 1, np.uint8)
    start = -room.ctypes.data % LINE
    return room[start : start + size].view(dtype).reshape(shape)


def as_jax_arrays(originals: dict[int, Any], arrays: list[Any]) -> list[Any]:
    """A copy of a list of results in which JAX arrays own those that stand in the places of JAX arrays on the host.

    JAX is called once for all of them: a call for each costs more than twice as much."""
    places = [i for i, original in originals.items() if is_jax_array(original) and isinstance(arrays[i], np.ndarray)]
    if not places:
        return arrays
    jax, arrays = sys.modules["jax"], list(arrays)
    usual = jax.default_backend() == "cpu"
    bound = {i for i in places if not usual or getattr(originals[i], "committed", False)}  # to a device that was chosen
    for group in (bound, set(places) - bound):
        if group:
            where = [originals[i].sharding for i in group] if group is bound else None
            for i, made in zip(group, jax.device_put([arrays[i] for i in group], where), strict=True):
                arrays[i] = made
    return arrays


def is_rebuildable(node: Any) -> bool:
    """Whether `wrap` can make a leaf of this type."""
    return (
        is_sparse(node)
        or is_tensor(node)
        or is_jax_array(node)
        or isinstance(node, memoryview)
        or _is_stdlib_array(node)
        or hasattr(type(node), "from_buffer_copy")  # of ctypes
    )


def _is_stdlib_array(node: Any) -> bool:
    return isinstance(node, getattr(sys.modules.get("array"), "array", ()))


def is_jax_array(node: Any) -> bool:
    """A JAX array; false wherever JAX was never imported."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(node, jax.Array)


def _is_traced(node: Any) -> bool:
    """What stands for an array while JAX traces a function: in jit, grad or vmap."""
    core = getattr(sys.modules.get("jax"), "core", None)
    return core is not None and isinstance(node, core.Tracer)


def _pattern(node: Any) -> list[Any]:
    """Where the values of a canonical sparse array stand."""
    return list(node.coords) if node.format == "coo" else [node.indices, node.indptr]


def same_pattern(a: Any, b: Any) -> bool:
    """Whether two leaves hold their values at the same places; always, unless one is sparse."""
    if not (is_sparse(a) or is_sparse(b)):
        return True
    if not (is_sparse(a) and is_sparse(b)) or a.format != b.format or a.shape != b.shape:
        return False
    return all(np.array_equal(x, y) for x, y in zip(_pattern(a), _pattern(b), strict=True))


def canonical(node: Any) -> Any:
    """Return a sparse leaf that stores every element once and nothing else: `node` itself if it does, else a copy.

    `node` is not changed, since a later check may still refuse the call."""
    tail = node.format != "coo" and len(node.data) != node.indptr[-1]
    if not tail and node.has_canonical_format:
        return node
    node = node.copy()
    if tail:
        node.prune()
    node.sum_duplicates()
    return node


# What scipy.sparse knows of the values, of their places and, under names of its own, of their order.
_STATE = (
    "data",
    "indices",
    "indptr",
    "coords",
    "row",
    "col",
    "has_canonical_format",
    "_has_canonical_format",
    "_has_sorted_indices",
)


def replaced(node: Any, canonical: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return how a sparse leaf gets the values and places of its copy: its attributes, their new values and their old ones.

    Only attributes that it has are named: to replace them needs no memory."""
    attributes = vars(node)
    new = {name: value for name, value in vars(canonical).items() if name in _STATE and name in attributes}
    if "data" not in new:
        raise TypeError(f"{type(node).__qualname__} keeps its values in no plain attribute; use .sum_duplicates() before")
    return attributes, new, {name: attributes[name] for name in new}
