"""The CUDA source, compiled for the device at hand, and how its kernels are launched. The only file that calls CuPy."""

from __future__ import annotations

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


def current_stream(device):
    """What stream a device works on now, as a number."""
    import cupy

    with on(device):
        return cupy.cuda.get_current_stream().ptr


def launch(device, name, blocks, args):
    """Put a kernel onto the current stream of a device; nothing where there is nothing to do. Arrays go as pointers, 0 is
    none of them."""
    if blocks:
        with on(device):
            _kernel(device, name)((int(blocks),), (THREADS,), args)


def empty(device, shape):
    """Words on a device, which hold anything."""
    import cupy

    with on(device):
        return cupy.empty(shape, np.int64)


def upload(device, array):
    """A copy of a small array on a device, ordered before what is launched next."""
    import cupy

    with on(device):
        return cupy.asarray(array)
