"""The CUDA source, compiled for the device at hand, and how its kernels are launched. The only file that calls CuPy."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from pathlib import Path

import numpy as np

FILES = ("sums.cu", "leaves.cu", "measure.cu", "decide.cu", "write.cu")  # in this order: one source
THREADS = 256
# Products and sums are fused only where the source says so: every device must round as the processor does.
OPTIONS = ("--std=c++17", "--fmad=false")


def source():
    """The whole source."""
    return "\n".join((Path(__file__).parent / name).read_text(encoding="utf-8") for name in FILES)


@cache
def _module():
    import cupy

    return cupy.RawModule(code=source(), options=OPTIONS)


@cache
def _kernel(device, name):
    return _module().get_function(name)


def on(device):
    """A context in which a device is the current one."""
    import cupy

    return cupy.cuda.Device(device)


def stream_of(device):
    """The stream that a device works on now."""
    import cupy

    with on(device):
        return cupy.cuda.get_current_stream()


def launch(device, name, blocks, args):
    """Put a kernel onto the current stream of a device; nothing where there is nothing to do. Arrays go as pointers, 0 is
    none of them."""
    if blocks:
        with on(device):
            _kernel(device, name)((int(blocks),), (THREADS,), args)


_captured: list[object] = []  # what graphs write to: it must not be given to anybody else, ever


def empty(device, shape):
    """Words on a device, which hold anything."""
    import cupy

    with on(device):
        made = cupy.empty(shape, np.int64)
        if cupy.cuda.get_current_stream().is_capturing():
            _captured.append(made)
    return made


def upload(device, array):
    """A copy of an array on a device, ordered before what is launched next."""
    import cupy

    with on(device):
        if cupy.cuda.get_current_stream().is_capturing():
            raise RuntimeError("a graph cannot capture a copy to the device: make the same call once before, on this stream")
        return cupy.asarray(array)


class Remembered:
    """What the last calls needed on a device, by key; the oldest is forgotten."""

    def __init__(self, most):
        self.most, self.found = most, OrderedDict()

    def get(self, key):
        found = self.found.pop(key, None)
        if found is not None:
            self.found[key] = found
        return found

    def put(self, key, value):
        while len(self.found) >= self.most:
            self.found.popitem(last=False)
        self.found[key] = value
        return value


_constants = Remembered(64)


def constant(device, array):
    """A copy of a small array on a device: the one from an earlier call in this stream, if it is the same."""
    key = device, stream_of(device).ptr, array.tobytes()
    found = _constants.get(key)
    return _constants.put(key, upload(device, array)) if found is None else found
