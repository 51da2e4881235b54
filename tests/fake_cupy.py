"""A stand-in for the part of CuPy that gradclip uses, on a processor.

Arrays lie in NumPy's memory, and kernels are compiled from the same CUDA source by a C++ compiler (gpu_runtime/kernels.py).
With it the usual test command tests the GPU engine wherever there is g++, without CuPy's 300 MB. It does what its authors think
that CuPy does: the tests on gpu_runtime/, which have CuPy itself, tell where CuPy does otherwise.

It counts what would make a process wait for a GPU. What is put into a stream is done when something waits for that stream, and
no sooner: what another stream did not wait for, by an event, has then not happened. Memory of `empty` that is dropped is
spoilt, by the stream that it was made in.

What it cannot show besides: that the source is right on a device, where threads really run side by side, and how fast it is."""

from __future__ import annotations

import ctypes
import itertools
import os
import tempfile
import threading
import types
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
from gpu_runtime.kernels import build

from gradclip._gpu.program import source

PER_THREAD = 2  # the number of every thread's default stream
waits = 0  # copies to the host so far
used = 0  # bytes of arrays that are alive
launches = []  # (kernel, number of the stream)
fetched_in = []  # streams of copies to the host
float64_ratio = int(os.environ.get("GPU_FLOAT64_RATIO", "2"))  # how much faster a device computes float32
queues = defaultdict(list)  # by `key_of` a stream: what is yet to be done,
done = defaultdict(int)  # and how much has been
graphs = {}  # number of a stream -> what is captured in it
lock = threading.RLock()
dropped = []  # memory that something yet to be done may look at


class Thread(threading.local):
    """What is current in a thread."""

    def __init__(self):
        self.devices = [0]  # the current one last
        self.depths = defaultdict(list)  # of that list, by the object that was entered
        self.current = defaultdict(lambda: Stream.null)  # by device
        self.stacks = defaultdict(lambda: [Stream.null])
        self.entered = []  # devices of the `with` blocks of streams
        self.token = object()


here = Thread()


def device():
    return here.devices[-1]


def get_current_stream():
    return here.current[device()]


def key_of(number):
    """Which stream a number means, on the current device."""
    return device(), number, here.token if number == PER_THREAD else None


def enqueue(function, *args, stream=None):
    number = (stream or get_current_stream()).ptr
    with lock:
        (graphs[number] if number in graphs else queues[key_of(number)]).append((function, args))


def run(key, count=None):
    """What was put into a stream, all of it or what an event was put behind."""
    with lock:
        queue = queues[key]
        while queue and count != 0:
            function, args = queue.pop(0)
            done[key] += 1
            function(*args)
            count = None if count is None else count - 1


def finish():
    """Everything, the streams in an order of their own."""
    for key in sorted(queues, key=lambda key: key[:2], reverse=True):
        run(key)
    dropped.clear()


class Memory:
    """What arrays share. Given back, that of `empty` belongs to what its stream does next."""

    def __init__(self, host, spoilt=False):
        global used
        self.host, self.spoilt_in = host, key_of(get_current_stream().ptr) if spoilt else None
        used += host.nbytes

    def __del__(self):
        global used
        if used is None:  # the interpreter ends
            return
        used -= self.host.nbytes
        dropped.append(self.host)
        if self.spoilt_in is not None:
            queues[self.spoilt_in].append((spoil, (self.host,)))


def spoil(host):
    host.reshape(-1).view(np.uint8).fill(0xA5)


class UnownedMemory:
    """Memory of another library's, which `owner` keeps."""

    def __init__(self, ptr, size, owner, device_id):
        self.ptr, self.size, self.owner, self.device_id = ptr, size, owner, device_id


class MemoryPointer:
    """A place in memory."""

    def __init__(self, mem, offset):
        self.mem, self.offset, self.ptr, self.device_id = mem, offset, mem.ptr + offset, mem.device_id

    def __add__(self, offset):
        return MemoryPointer(self.mem, self.offset + offset)


def host_at(shape, dtype, pointer, strides, order):
    """An array of the host of the elements at a place in memory."""
    dtype = np.dtype(dtype)
    strides = strides or np.empty(shape, dtype, order).strides
    reach = dtype.itemsize + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    shown = {"data": (pointer.ptr, False), "shape": (reach,), "typestr": "|u1", "version": 3}
    return np.ndarray(shape, dtype, np.asarray(types.SimpleNamespace(__array_interface__=shown)), 0, strides)


class ndarray:
    """An array whose elements only `get` shows, as on a GPU.

    Made of a shape, a dtype and a place in memory, as CuPy has it; or of an array of the host and a device."""

    def __init__(self, shape, dtype, memptr=None, strides=None, order="C"):
        if isinstance(shape, tuple):
            self._host, self._device = host_at(shape, dtype, memptr, strides, order), memptr.device_id
            self._memory = memptr.mem
        else:
            self._host, self._device, self._memory = shape, dtype, memptr or Memory(shape)

    dtype = property(lambda self: self._host.dtype)
    shape = property(lambda self: self._host.shape)
    strides = property(lambda self: self._host.strides)
    size = property(lambda self: self._host.size)
    ndim = property(lambda self: self._host.ndim)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    _c_contiguous = property(lambda self: self._host.flags.c_contiguous)
    _f_contiguous = property(lambda self: self._host.flags.f_contiguous)

    @property
    def data(self):
        address = self._host.__array_interface__["data"][0] if self._host.dtype.kind != "V" else self._host.ctypes.data
        if self.size == 0:  # as of CuPy's pool
            address = 0
        return MemoryPointer(UnownedMemory(address, self._host.nbytes, self._memory, self._device), 0)

    @property
    def __cuda_array_interface__(self):
        return {**self._host.__array_interface__, "version": 3, "stream": None}

    def __len__(self):
        return len(self._host)

    def __bool__(self):
        return bool(self.get())  # waits; an error, unless there is one element

    def __getitem__(self, key):
        key = key if isinstance(key, tuple) else (key,)
        return ndarray(self._host[(*key, ...)], self._device, self._memory)  # a view, always

    def get(self):
        global waits
        assert self._device == device(), "copied in a stream of another device"
        stream = get_current_stream()
        if not (self._c_contiguous or self.size == 0):
            with stream:  # as CuPy does
                pass
        if stream.is_capturing():
            raise RuntimeError("a copy to the host was captured")
        waits += 1
        fetched_in.append(stream)
        run(key_of(stream.ptr))
        return self._host.copy()

    def fill(self, value):
        assert self._device == device()
        enqueue(np.copyto, self._host, value)

    def view(self, dtype=None):
        host = self._host if dtype in (None, ndarray) else self._host.view(dtype)
        return ndarray(host, self._device, self._memory)

    def transpose(self, axes):
        return ndarray(self._host.transpose(axes), self._device, self._memory)

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")


def get_default_memory_pool():
    return types.SimpleNamespace(used_bytes=lambda: used)


def empty(shape, dtype=np.float64):
    made = np.empty(shape, dtype)
    spoil(made)  # nothing may rest on what was there
    return ndarray(made, device(), Memory(made, True))


def empty_like(array, shape=None):
    return ndarray(np.empty_like(array._host, shape=shape or None), device())  # CuPy takes () for None


def asarray(array):
    """What lies on another device is copied to the current one, as CuPy does."""
    if hasattr(array, "__cuda_array_interface__") and not isinstance(array, ndarray):
        shown = types.SimpleNamespace(__array_interface__={**array.__cuda_array_interface__, "version": 3})
        array = ndarray(np.asarray(shown), owner_of(array.__cuda_array_interface__["data"][0]))
    if isinstance(array, ndarray):
        finish()
        return array if array._device == device() else ndarray(array._host.copy(), device())
    if get_current_stream().is_capturing():
        raise RuntimeError("a copy from the host was captured")
    made = ndarray(np.array(array), device())
    owners[made.data.ptr] = device()
    return made


owners = {}  # address -> device, of what `asarray` made


def owner_of(address):
    return owners.get(address, 0)


class _Device:
    def __init__(self, number):
        self.number = number

    def __enter__(self):
        here.depths[id(self)].append(len(here.devices))
        here.devices.append(self.number)

    def __exit__(self, *exception):
        del here.devices[here.depths[id(self)].pop() :]  # as in CuPy: also those that Ctrl-C kept from being left


@cache
def _library():
    """All kernels as a shared library: to compile them one by one would take as long for each."""
    with tempfile.TemporaryDirectory() as folder:  # what is loaded needs its file no longer
        library = Path(folder) / "kernels.so"
        build(source(), library)
        return ctypes.CDLL(str(library))


class RawModule:
    """A part of the source."""

    def __init__(self, *, code, options=(), backend="nvrtc"):
        self.code = code

    def get_function(self, name):
        assert f'#define KERNEL_{name}(bounds) extern "C"' in self.code, "a kernel of another part of the source"
        function = getattr(_library(), f"launch_{name}")

        def call(grid, block, args, stream=None):
            assert block == (256,)
            launches.append((name, (stream or get_current_stream()).ptr))
            values = [_argument(a) for a in args]
            pointers = np.array([v.ctypes.data for v in values], np.uintp)
            begin = lambda *_: function(ctypes.c_uint(grid[0]), ctypes.c_void_p(pointers.ctypes.data))  # noqa: E731
            enqueue(begin, values, stream=stream)

        return call


def _argument(value):
    if isinstance(value, ndarray):
        assert value._device == device(), "an array of another device"
        return np.array([value.data.ptr], np.uint64)
    assert type(value) in (int, float), f"{type(value).__name__} argument"
    return np.array([value], np.int64 if isinstance(value, int) else np.float64)


class Event:
    """A place in a stream."""

    def __init__(self, disable_timing=False):
        self.device = device()


class Stream:
    """A number.

    `with` a stream leaves what entered it last, and makes current what is then on top, as in CuPy: not what `use` had made
    current."""

    null = ptds = None
    numbers = itertools.count(100)

    def __init__(self, null=False, non_blocking=False, ptds=False):
        self.ptr = 0 if null else PER_THREAD if ptds else next(Stream.numbers)

    @classmethod
    def from_external(cls, other):
        made = cls.__new__(cls)
        made.ptr = other.__cuda_stream__()[1]
        return made

    def __eq__(self, other):
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self):
        return self.ptr

    def use(self):
        here.current[device()] = self
        return self

    def __enter__(self):
        here.entered.append(device())
        here.stacks[device()].append(self)
        return self.use()

    def __exit__(self, *exception):
        number = here.entered.pop()
        here.stacks[number].pop()
        here.current[number] = here.stacks[number][-1]

    def synchronize(self):
        run(key_of(self.ptr))

    def record(self, event):
        assert event.device == device(), "an event of another device"
        event.key = key_of(self.ptr)
        event.place = done[event.key] + len(queues[event.key])
        return event

    def wait_event(self, event):
        enqueue(lambda: run(event.key, max(event.place - done[event.key], 0)), stream=self)

    def is_capturing(self):
        return self.ptr in graphs

    def begin_capture(self, mode=None):
        graphs[self.ptr] = []

    def end_capture(self):
        return Graph(graphs.pop(self.ptr))


Stream.null, Stream.ptds = Stream(null=True), Stream(ptds=True)


class Graph:
    """What was captured."""

    def __init__(self, steps):
        self.steps = steps

    def launch(self, stream=None):
        for function, args in self.steps:
            enqueue(function, *args, stream=stream)


def memcpy_peer(to, to_device, source, source_device, size, stream):
    assert to_device == device(), "a copy in a stream of another device"
    assert size > 0
    with lock:
        queues[key_of(stream)].append((ctypes.memmove, (to, source, size)))


cuda = types.SimpleNamespace(
    UnownedMemory=UnownedMemory,
    MemoryPointer=MemoryPointer,
    Device=_Device,
    Event=Event,
    Stream=Stream,
    get_current_stream=get_current_stream,
    runtime=types.SimpleNamespace(
        deviceGetAttribute=lambda attribute, device: {87: float64_ratio}[attribute],
        pointerGetAttributes=lambda p: types.SimpleNamespace(device=owner_of(p)),
        memcpyPeerAsync=memcpy_peer,
        streamCaptureModeGlobal=0,
        streamCaptureModeRelaxed=2,
    ),
)
