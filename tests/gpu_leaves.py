"""CuPy leaves beside NumPy leaves: copies of the same layout, and what must be alike."""

import ctypes
import itertools
import math
import pickle
import sys
from collections import namedtuple
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from reference import BFLOAT16, gradient

import gradclip

Layer = namedtuple("Layer", "weight bias")


@cache
def runtime():
    """The CUDA runtime without a device (gpu_runtime/), where it is what CuPy is linked to; else None."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
        library.gpu_runtime_waits.restype, library.gpu_runtime_journal.restype = ctypes.c_long, ctypes.c_char_p
    except (OSError, AttributeError):
        return None
    return library


def is_stand_in(cupy):
    return hasattr(cupy, "waits")


def is_watched(cupy):
    """Whether `waits` and `journal` tell something: not on a GPU."""
    return is_stand_in(cupy) or runtime() is not None


def waits(cupy):
    """How often the host waited for a GPU so far; always 0 where nobody counts."""
    if is_stand_in(cupy):
        return cupy.waits
    return 0 if runtime() is None else runtime().gpu_runtime_waits()


def journal(cupy):
    """What was begun since the last call: [(kernel, stream)], and ("fetch", stream) of each copy to the host.

    Nothing where it is not watched."""
    if is_stand_in(cupy):
        told = [*cupy.launches, *(("fetch", stream.ptr) for stream in cupy.fetched_in)]
        del cupy.launches[:], cupy.fetched_in[:]
        return told
    lines = runtime().gpu_runtime_journal().decode().splitlines() if runtime() is not None else []
    return [(what, int(stream)) for what, stream in map(str.split, lines)]


def device_count(cupy):
    return 3 if is_stand_in(cupy) else cupy.cuda.runtime.getDeviceCount()


def need_devices(cupy, count):
    """Skip the test where there are fewer GPUs than `count`."""
    found = device_count(cupy)
    if found < count:
        pytest.skip(f"needs {count} GPUs, and there {'is 1' if found == 1 else f'are {found}'}")


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
    need_devices(cupy, count)
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
    """A copy of a leaf."""
    if hasattr(leaf, "_host"):
        sys.modules["cupy"].finish()
        return leaf._host.copy()
    if not hasattr(leaf, "get"):
        return np.asarray(leaf)
    with sys.modules["cupy"].cuda.Device(leaf.data.device_id):  # in the stream that is current there
        return leaf.get()


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


def everything(put):
    """What the functions below take, each nesting as `put` makes it."""
    a, b, c, d = (np.ones(shape, np.float32) for shape in ((3,), (20, 25), (20,), ()))
    return SimpleNamespace(
        grads=put(model()),
        params=put(model(seed=1)),
        out=put(model(seed=2)),
        samples=put(batch()),
        clipped=put(batch()),
        sums=put({"a": a, "b": [b, c], "c": d}),
    )


WRITING = {  # to leaves that are given; all return the report
    "global norm": lambda x, **k: gradclip.clip_by_global_norm_(x.grads, 0.5, **k),
    "strict": lambda x, **k: gradclip.clip_by_global_norm_(x.grads, 0.4, strict=True, **k),
    "by leaf": lambda x, **k: gradclip.clip_by_norm_(x.grads, {"big": 0.3, "*": 0.2}, **k),
    "by slice": lambda x, **k: gradclip.clip_by_norm_(x.samples, 0.5, axis=0, **k),
    "value": lambda x, **k: gradclip.clip_by_value_(x.grads, 0.01),
    "normalize": lambda x, **k: gradclip.normalize_(x.grads, 2.0, **k),
    "adaptive": lambda x, **k: gradclip.clip_adaptive_(x.grads, x.params, 1e-5, **k),
    "per sample": lambda x, **k: gradclip.clip_per_sample_(x.samples, 0.1, **k),
    "step": lambda x, **k: gradclip.sgd_step_(x.params, x.grads, 0.1, 1e-3, **k),
    "global norm, out": lambda x, **k: gradclip.clip_by_global_norm(x.grads, 0.5, out=x.out, **k)[1],
    "value, out": lambda x, **k: gradclip.clip_by_value(x.grads, 1e-3, out=x.out)[1],
    "adaptive, out": lambda x, **k: gradclip.clip_adaptive(x.grads, x.params, 1e-6, out=x.out, **k)[1],
    "per sample, out": lambda x, **k: gradclip.clip_per_sample(x.samples, 0.1, out=x.clipped, **k)[1],
    "sum of samples, out": lambda x, **k: gradclip.per_sample_clip_sum(x.samples, 0.1, out=x.sums, **k)[1],
}
MAKING = {  # new leaves; all return them and the report
    "global norm, new": lambda x, **k: gradclip.clip_by_global_norm(x.grads, 0.5, **k),
    "by leaf, new": lambda x, **k: gradclip.clip_by_norm(x.grads, 0.2, **k),
    "value, new": lambda x, **k: gradclip.clip_by_value(x.grads, 0.01),
    "normalize, new": lambda x, **k: gradclip.normalize(x.grads, 2.0, **k),
    "adaptive, new": lambda x, **k: gradclip.clip_adaptive(x.grads, x.params, 1e-5, **k),
    "per sample, new": lambda x, **k: gradclip.clip_per_sample(x.samples, 0.1, **k),
    "sum of samples, new": lambda x, **k: gradclip.per_sample_clip_sum(x.samples, 0.1, **k),
}
EVERY = {**WRITING, **{name: lambda x, call=call, **k: call(x, **k)[1] for name, call in MAKING.items()}}
