"""The CUDA source, compiled for the device at hand, and what is done on a device: launches and small copies."""

from __future__ import annotations

import signal
import sys
from collections import OrderedDict
from functools import cache
from pathlib import Path
from threading import current_thread, get_ident, main_thread

import numpy as np

FILES = ("sums.cu", "leaves.cu", "measure.cu", "strict.cu", "decide.cu", "write.cu")  # in this order: one source
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


class Place:
    """A device, and the stream on it in which a call works from its first launch to the reading of its report."""

    def __init__(self, device, pytorchs):
        import cupy

        self.device, self._device = device, cupy.cuda.Device(device)
        with self._device:
            self._stream = cupy.cuda.get_current_stream()
            if pytorchs:  # whose streams are not CuPy's
                number = sys.modules["torch"].cuda.current_stream(device).cuda_stream
                if number != self._stream.ptr:
                    self._stream = cupy.cuda.ExternalStream(number, device)
        # The default stream of a thread has the same number in all of them.
        self.key = device, self._stream.ptr, get_ident() if self._stream.ptr == 2 else 0

    def __enter__(self):
        self._device.__enter__()
        self._stream.__enter__()

    def __exit__(self, *exception):
        self._stream.__exit__(*exception)
        self._device.__exit__(*exception)

    def launch(self, name, blocks, *args):
        """Begin a kernel; nothing where there is nothing to do. Arrays go as pointers, 0 is none of them."""
        if blocks:
            with self:
                _kernel(self.device, name)((int(blocks),), (THREADS,), args)

    def empty(self, *shape):
        """Words that hold anything."""
        import cupy

        with self:
            made = cupy.empty(shape, np.int64)
            if self._stream.is_capturing():
                _captured.append(made)
        return made

    def upload(self, array):
        """A copy of an array of the host, ordered before what is launched next."""
        import cupy

        with self:
            if self._stream.is_capturing():
                raise RuntimeError(
                    "a graph cannot capture a copy to the device: make the same call once before, on this stream"
                )
            return cupy.asarray(array)

    def empty_like(self, array, shape=None):
        import cupy

        with self:
            if shape is None:
                return cupy.empty_like(array)
            return cupy.empty(shape, array.dtype)  # CuPy's empty_like would take () for no shape

    def constant(self, array):
        """The same; of a small array the copy of an earlier call in this stream, if it is the same."""
        if array.nbytes > 4096:
            return self.upload(array)
        key = *self.key, array.tobytes()
        found = _constants.get(key)
        return _constants.put(key, self.upload(array)) if found is None else found

    def fetch(self, array):
        """A copy on the host: waits for what was launched."""
        with self:
            return array.get()

    def zero(self, array):
        with self:
            array.fill(0)

    def mark(self):
        """An event that other streams can wait for: the end of what was launched here so far."""
        import cupy

        with self:
            if self._stream.is_capturing():
                raise RuntimeError("a graph cannot capture a call whose leaves lie on several devices")
            return self._stream.record(cupy.cuda.Event(disable_timing=True))

    def follow(self, event):
        """Let what is launched next wait for an event. The host does not."""
        with self:
            self._stream.wait_event(event)

    def copy(self, to, array):
        """Begin a copy of an array, of any device, to one of as many bytes here."""
        import cupy

        source = array.data
        with self:
            cupy.cuda.runtime.memcpyPeerAsync(
                to.data.ptr, self.device, source.ptr, source.device_id, array.nbytes, self._stream.ptr
            )


class Uninterrupted:
    """A ``with`` block that Ctrl-C waits for: of several writes all are made, or none."""

    def __enter__(self):
        self._handler, self._caught = None, None
        if current_thread() is main_thread():
            self._handler = signal.signal(signal.SIGINT, self._catch)

    def _catch(self, *args):
        self._caught = args

    def __exit__(self, *exception):
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            if self._caught is not None and callable(self._handler):
                self._handler(*self._caught)


_captured: list[object] = []  # what graphs write to: it must not be given to anybody else, ever


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
