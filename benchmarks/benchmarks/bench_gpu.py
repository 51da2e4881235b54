"""CuPy arrays on a GPU, beside CuPy's own operations and PyTorch's foreach kernels on the same memory.

Skipped where CuPy or a device is missing."""

import gradclip

from .common import MODELS, Bench, flat, peers

CASES = {"GPT-2 small": MODELS["GPT-2 small"](), "1000 leaves of 1000": flat(1000, 1000)}


def device():
    """CuPy, or the sign to skip."""
    cupy = peers.module("cupy")
    if not cupy.cuda.is_available():
        raise NotImplementedError("no GPU")
    return cupy


class Device(Bench):
    """A call and the end of its work on the device, in float32."""

    params = (list(CASES), ("gradclip", "torch"))
    param_names = ("float32", "peer")

    def setup(self, case, peer):
        cupy = device()
        self.start(peer, CASES[case], place=cupy.asarray)
        self.wait = cupy.cuda.Device().synchronize
        self.wait()  # for the refill

    def time_global_norm(self, case, peer):
        self.peer.global_norm(self.grads)  # a float, so the work is done

    def time_clip_by_global_norm_(self, case, peer):
        self.peer.clip_by_global_norm_(self.grads, self.max_norm)
        self.wait()


class Policy(Bench):
    """What deciding on the device saves beside the default, which waits for the number of NaN and Inf."""

    params = (list(CASES), ("raise", "skip", "zero", "propagate"))
    param_names = ("float32", "nonfinite")

    def setup(self, case, policy):
        cupy = device()
        self.start("gradclip", CASES[case], place=cupy.asarray)
        self.wait = cupy.cuda.Device().synchronize
        self.wait()

    def time_clip_by_global_norm_(self, case, policy):
        gradclip.clip_by_global_norm_(self.grads, self.max_norm, nonfinite=policy)
        self.wait()

    def time_until_the_call_returns(self, case, policy):
        gradclip.clip_by_global_norm_(self.grads, self.max_norm, nonfinite=policy)


class Bandwidth:
    """The norm pass over one large leaf: GB/s, and its share of what a copy on the device moves."""

    params = (("float16", "float32", "float64"), (10**7, 10**9))
    param_names = ("dtype", "size")
    timeout = 300

    def setup(self, dtype, size):
        self.cupy = device()
        self.leaf = self.cupy.random.standard_normal(size, dtype="float32").astype(dtype)

    def speed(self, call, moved):
        """GB/s of the fastest of ten calls, by events on the device."""
        start, end = (self.cupy.cuda.Event() for _ in range(2))
        seconds = []
        for _ in range(11):
            start.record()
            call()
            end.record()
            end.synchronize()
            seconds.append(self.cupy.cuda.get_elapsed_time(start, end) / 1e3)
        return moved / min(seconds[1:]) / 1e9

    def measure(self):
        gradclip.clip_by_global_norm_(self.leaf, float("inf"), nonfinite="propagate")  # reads, and does not wait

    def track_norm(self, dtype, size):
        return round(self.speed(self.measure, self.leaf.nbytes), 1)

    def track_norm_over_copy(self, dtype, size):
        to = self.cupy.empty_like(self.leaf)
        copied = self.speed(lambda: self.cupy.copyto(to, self.leaf), 2 * self.leaf.nbytes)
        return round(self.speed(self.measure, self.leaf.nbytes) / copied, 3)

    track_norm.unit = "GB/s"
    track_norm_over_copy.unit = "of the bytes per second of a copy"
