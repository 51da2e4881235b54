"""CuPy leaves beside NumPy leaves: copies of the same layout, and what must be alike."""

import itertools
import math
import pickle
import sys
from collections import namedtuple

import numpy as np
import pytest
from reference import BFLOAT16, gradient

Layer = namedtuple("Layer", "weight bias")


def on_gpu(cupy, array):
    """A copy with the same strides and the same place in its memory."""
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    if array.size == 0 or base.nbytes == 0:
        return cupy.asarray(array)
    low = np.lib.array_utils.byte_bounds(base)[0]
    memory = cupy.asarray(np.frombuffer(base.tobytes("A"), np.uint8))
    offset = array.__array_interface__["data"][0] - low if array.dtype != BFLOAT16 else array.ctypes.data - low
    if hasattr(memory, "_host"):
        return type(memory)(np.ndarray(array.shape, array.dtype, memory._host, offset, array.strides), memory._device)
    return cupy.ndarray(array.shape, array.dtype, memory.data + offset, array.strides)


def there(cupy, tree):
    """The same nesting on the GPU."""
    if isinstance(tree, np.ndarray):
        return on_gpu(cupy, tree)
    if isinstance(tree, dict):
        return {k: there(cupy, v) for k, v in tree.items()}
    if isinstance(tree, tuple):
        return Layer(*(there(cupy, v) for v in tree))
    return [there(cupy, v) for v in tree] if isinstance(tree, list) else tree


def across(cupy, count, tree):
    """The same nesting with its leaves dealt out to so many GPUs, the last first."""
    if not hasattr(cupy, "waits") and cupy.cuda.runtime.getDeviceCount() < count:
        pytest.skip("fewer GPUs")
    turns = itertools.cycle(reversed(range(count)))

    def dealt(node):
        if isinstance(node, np.ndarray):
            with cupy.cuda.Device(next(turns)):
                return on_gpu(cupy, node)
        if isinstance(node, dict):
            return {k: dealt(v) for k, v in node.items()}
        if isinstance(node, tuple):
            return type(node)(*map(dealt, node))
        return list(map(dealt, node)) if isinstance(node, list) else node

    return dealt(tree)


def flat(tree):
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        return [leaf for v in tree for leaf in flat(v)]
    return [] if tree is None else [host(tree)]


def host(leaf):
    """A copy of a leaf, without counting as a wait."""
    if hasattr(leaf, "_host"):
        sys.modules["cupy"].finish()
        return leaf._host.copy()
    return leaf.get() if hasattr(leaf, "get") else np.asarray(leaf)


def assert_same_bits(a, b):
    assert [x.dtype for x in flat(a)] == [y.dtype for y in flat(b)]
    for x, y in zip(map(np.ascontiguousarray, flat(a)), map(np.ascontiguousarray, flat(b)), strict=True):
        nan = np.isnan(x)  # whose payloads are nobody's business
        assert (nan == np.isnan(y)).all()
        assert np.where(nan, 0, x).astype(x.dtype).tobytes() == np.where(nan, 0, y).astype(y.dtype).tobytes()


def assert_same_report(a, b):
    for name in ("norm", "max_norm", "scale", "max_abs"):
        np.testing.assert_equal(getattr(a, name), getattr(b, name), name)
    for name in ("clipped", "skipped", "nonfinite", "first_nonfinite", "clipped_count", "size"):
        assert getattr(a, name) == getattr(b, name), name
    np.testing.assert_array_equal(a.norms, b.norms)
    np.testing.assert_array_equal(a.scales, b.scales)
    assert float(pickle.loads(pickle.dumps(b))) == float(b) or math.isnan(float(b))


def model(dtype=np.float32, seed=0):
    """A nesting of contiguous and strided leaves, one of more than one segment, an empty one and a 0-d one."""
    g = [gradient(dtype, n, seed=seed) for n in (5000, 33, 600, 40_000, 0, 1)]
    return {
        "layers": [
            Layer(g[0].reshape(50, 100), g[1]),
            None,
            Layer(g[2].reshape(20, 30).T, gradient(dtype, 4000, seed=seed + 7)[::7]),
        ],
        "big": g[3],
        "rest": [g[4], g[5].reshape(())],
    }


def batch(dtype=np.float32):
    g = [gradient(dtype, 12 * n).reshape(12, n) for n in (3, 500, 40)]
    g = [(a * (1 + np.arange(12))[:, None] / 12).astype(dtype) for a in g]
    return {"a": g[0], "b": [g[1].reshape(12, 20, 25), g[2][:, ::2]], "c": g[0][:, 0] * 2}
