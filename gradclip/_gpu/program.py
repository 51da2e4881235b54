"""The CUDA source, compiled for the device at hand, and what is done on a device: launches and small copies."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from functools import cache
from pathlib import Path
from threading import local
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from .capture import Allocating, keep

if TYPE_CHECKING:
    from .._core.arguments import Array
    from .capture import Thing

DeviceArray = Any  # a cupy.ndarray
Event = Any  # a cupy.cuda.Event
Value = TypeVar("Value")

# In this order one source: the arithmetic that both engines share, and the kernels.
SHARED = ("portable.h", "range.h", "wide.h", "factor.h", "powers.h", "unit.h")
FILES = (
    "sums.cu",
    "leaves.cu",
    "digits.cu",
    "measure.cu",
    "pairs.cu",
    "fold.cu",
    "strict.cu",
    "decide.cu",
    "cast.cu",
    "products.cu",
    "write.cu",
)
# All kernels that the source defines, in groups that are compiled together: a call waits for those that it needs alone. What
# else is launched is an error, and a test compares.
GROUPS = (
    *(("measure_largest",), ("measure_magnitudes",), ("measure_squares",), ("measure_pairs",), ("measure_powers",)),
    *(("measure_and_count",), ("measure_squares_by_digits",), ("measure_and_count_by_digits",)),
    ("fold_segments", "fold_and_decide", "fold_owners", "fold_total", "decide_units", "enforce", "keep_finite", "weigh"),
    *(("write_leaves",), ("write_leaves_in_float32",), ("cast_leaves",), ("sum_samples",)),
)
KERNELS = tuple(name for group in GROUPS for name in group)
THREADS = 256
NEW_ARRAYS = "a call that makes new arrays: pass out=, and make the same call once before"
MOST_CONSTANT = 32768  # bytes of what is kept on a device for later calls
RATIO_OF_FLOAT64 = 87  # cudaDevAttrSingleToDoublePrecisionPerfRatio
PER_THREAD = 2  # CUDA's number of the default stream of each thread
# Products and sums are fused only where the source says so: every device must round as the processor does.
OPTIONS = ("--std=c++17", "--fmad=false")


def source(kernels: Sequence[str] = KERNELS) -> str:
    """The whole source, of which some kernels are compiled."""
    here = Path(__file__).parent
    files = [here.parent / "_scalar" / name for name in SHARED] + [here / name for name in FILES]
    begin = {True: 'extern "C" __global__ bounds', False: "[[maybe_unused]] static __device__"}
    chosen = [f"#define KERNEL_{name}(bounds) {begin[name in kernels]}" for name in KERNELS]
    return "\n".join(["#define GC_CUDA", *chosen, *(file.read_text(encoding="utf-8") for file in files)])


@cache
def _module(group: tuple[str, ...]) -> Any:
    import cupy

    return cupy.RawModule(code=source(group), options=OPTIONS)


@cache
def _kernel(device: int, name: str) -> Any:
    (group,) = (group for group in GROUPS if name in group)
    return _module(group).get_function(name)


@cache
def has_little_float64(device: int) -> bool:
    """Return whether a device computes float64 at less than a quarter of its rate of float32: it is 1/2, or 1/32 and less."""
    import cupy

    return bool(cupy.cuda.runtime.deviceGetAttribute(RATIO_OF_FLOAT64, device) > 4)


class _Thread(local):
    """Streams that were current before, the last last; and a token of the thread itself."""

    def __init__(self) -> None:
        self.before: list[Any] = []
        self.token = object()


_thread = _Thread()


class _Borrowed:
    """A stream of another library, by CUDA's protocol of streams, which older versions of PyTorch do not speak."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.stream.cuda_stream


class DeviceStream:
    """A device, and the stream on it in which a call works from its first launch to the reading of its report.

    ``with stream``: device and stream are current, and afterwards what was current before. CuPy's ``with stream`` would then
    make another current than the one that the user had made so by `stream.use()`."""

    def __init__(self, device: int, pytorchs: bool) -> None:
        import cupy

        self.device, self._device = device, cupy.cuda.Device(device)
        with self._device:
            self._stream = cupy.cuda.get_current_stream()
        if pytorchs:  # whose streams are not CuPy's
            stream = sys.modules["torch"].cuda.current_stream(device)
            if stream.cuda_stream != self._stream.ptr:
                self._stream = _borrowed(stream, device)
        # The default stream of a thread has the same number in all of them. What is kept by this key keeps stream and
        # thread's token: no other can come to have their numbers.
        self.key = device, self._stream, _thread.token if self._stream.ptr == PER_THREAD else None

    def __enter__(self) -> None:
        import cupy

        self._device.__enter__()
        before = cupy.cuda.get_current_stream()
        _thread.before.append(before)
        if before.ptr != self._stream.ptr:
            self._stream.use()

    def __exit__(self, *exception: object) -> None:
        _thread.before.pop().use()
        self._device.__exit__(*exception)

    def launch(self, name: str, blocks: int, *args: Any) -> None:
        """Begin a kernel; nothing where there is nothing to do. Arrays go as pointers, 0 is none of them."""
        if blocks:
            with self._device:
                _kernel(self.device, name)((int(blocks),), (THREADS,), args, stream=self._stream)

    def is_captured(self) -> bool:
        """Whether a graph captures what is launched here."""
        if self._stream.ptr <= 1:  # the legacy default stream cannot be
            return False
        with self._device:
            return bool(self._stream.is_capturing())

    def refuse_capture(self, what: str) -> None:
        """A RuntimeError where a graph captures what is launched here, which cannot be."""
        if self.is_captured():
            raise RuntimeError(f"a CUDA graph cannot capture {what}")

    def kept(self, thing: Thing) -> Thing:
        """What a launch reads: kept for good where a graph captures it."""
        return keep(thing) if self.is_captured() else thing

    def empty(self, *shape: int) -> DeviceArray:
        """Words that hold anything."""
        import cupy

        if self.is_captured():
            with Allocating(), self:
                return keep(cupy.empty(shape, np.int64))
        with self:
            return cupy.empty(shape, np.int64)

    def upload(self, array: Array) -> DeviceArray:
        """A copy of an array of the host, ordered before what is launched next."""
        import cupy

        self.refuse_capture("a copy to the device: make the same call once before, on this stream")
        with self:
            return cupy.asarray(array)

    def new(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        """A new array as a result."""
        import cupy

        self.refuse_capture(NEW_ARRAYS)
        with self:
            return cupy.empty(shape, dtype)

    def new_like(self, array: DeviceArray) -> DeviceArray:
        """A new array like another one, as a result."""
        import cupy

        self.refuse_capture(NEW_ARRAYS)
        with self:
            return cupy.empty_like(array)

    def slab(
        self, size: int, places: Sequence[tuple[tuple[int, ...], np.dtype[Any], int, str]]
    ) -> tuple[list[DeviceArray], int]:
        """New contiguous arrays in one allocation, as results, and the address at which this begins.

        places : shape, dtype, offset in bytes and order of each
        """
        import cupy

        self.refuse_capture(NEW_ARRAYS)
        array = cupy.ndarray
        with self:
            memory = cupy.empty(size, np.uint8).data
        return [array(shape, dtype, memory + offset, None, order) for shape, dtype, offset, order in places], memory.ptr

    def constant(self, array: Array) -> DeviceArray:
        """A copy of an array that stays as it is; of one that is not large, that of an earlier call in this stream."""
        if array.nbytes > MOST_CONSTANT:
            self.refuse_capture(f"{array.size} thresholds that differ: {MOST_CONSTANT // 8} at most")
            return self.upload(array)
        key = *self.key, array.tobytes()
        found = _constants.get(key)
        return self.kept(_constants.put(key, self.upload(array)) if found is None else found)

    def fetch(self, array: DeviceArray) -> Array:
        """A copy on the host: waits for what was launched."""
        self.refuse_capture("a call that waits for numbers: of nonfinite='raise', a rule as max_norm, leaves on the host")
        with self:
            found: Array = array.get()
        return found

    def zero(self, array: DeviceArray) -> None:
        with self:
            array.fill(0)

    def mark(self, event: Event | None = None) -> Event:
        """An event that other streams can wait for, a new one or this: the end of what was launched here so far."""
        self.refuse_capture("a call whose leaves lie on several devices")
        with self._device:
            return self._stream.record(_event() if event is None else event)

    def end(self) -> Event | None:
        """Return an event that is to be marked behind what a call launches, and that the reader of its report waits for.

        It is needed for the default stream of each thread, which is another one if the report is read in another thread. It
        is None if readers work in the same stream, or if a graph captures what is launched."""
        if self._stream.ptr != PER_THREAD or self.is_captured():
            return None
        with self._device:
            return _event()

    def follow(self, event: Event) -> None:
        """Let what is launched next wait for an event. The host does not."""
        with self._device:
            self._stream.wait_event(event)

    def copy(self, to: DeviceArray, array: DeviceArray) -> None:
        """Begin a copy of an array, of any device, to one of as many bytes here."""
        import cupy

        source = array.data
        with self._device:
            cupy.cuda.runtime.memcpyPeerAsync(
                to.data.ptr, self.device, source.ptr, source.device_id, array.nbytes, self._stream.ptr
            )


def _event() -> Event:
    import cupy

    return cupy.cuda.Event(disable_timing=True)


def _borrowed(stream: Any, device: int) -> Any:
    import cupy

    if hasattr(cupy.cuda.Stream, "from_external"):
        return cupy.cuda.Stream.from_external(_Borrowed(stream))
    return cupy.cuda.ExternalStream(stream.cuda_stream, device)  # CuPy before 14


class Remembered(Generic[Value]):
    """What the last calls needed on a device, by key; the oldest is forgotten."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.found: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, key: Hashable) -> Value | None:
        found = self.found.pop(key, None)
        if found is not None:
            self.found[key] = found
        return found

    def put(self, key: Hashable, value: Value) -> Value:
        while len(self.found) >= self.most:
            self.found.popitem(last=False)
        self.found[key] = value
        return value


_constants: Remembered[DeviceArray] = Remembered(64)
