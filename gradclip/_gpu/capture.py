"""What CUDA graphs that capture a call need of memory."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED
Thing = TypeVar("Thing")
# A graph reads and writes the same memory at each replay, and nobody tells when it is gone: what it was given is kept for good.
_kept: dict[int, object] = {}


def keep(thing: Thing) -> Thing:
    """Keep something as long as the process lives; returns it."""
    _kept[id(thing)] = thing
    return thing


class Allocating:
    """A ``with`` block in which this thread may allocate memory while a graph captures something, in whatever mode.

    Without it an allocation in CUDA's global mode is an error, and ends the capture. PyTorch's allocator does the same."""

    def __enter__(self) -> None:
        self._mode = ctypes.c_int(RELAXED)
        self._swap()

    def __exit__(self, *exception: object) -> None:
        self._swap()

    def _swap(self) -> None:
        exchange = _exchange()
        if exchange is not None:
            exchange(ctypes.byref(self._mode))  # gives back the mode that was


@cache
def _exchange() -> Callable[[Any], int] | None:
    """Return the driver's function that exchanges the capture mode of a thread; None if there is none.

    Then calls can allocate only in a relaxed capture, which is CuPy's."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1").cuThreadExchangeStreamCaptureMode
    except (OSError, AttributeError):
        return None
