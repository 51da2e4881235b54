"""CuPy arrays on a GPU, beside PyTorch's foreach kernels on the same memory. Skipped where CuPy, a device, or
gradclip's way to take such arrays is missing."""

import gradclip

from .common import MODELS, Bench, flat, peers

CASES = {"GPT-2 small": MODELS["GPT-2 small"](), "1000 leaves of 1000": flat(1000, 1000)}


class Device(Bench):
    """A call and the end of its work on the device, in float32."""

    params = (list(CASES), ("gradclip", "torch"))
    param_names = ("float32", "peer")

    def setup(self, case, peer):
        cupy = peers.module("cupy")
        if not cupy.cuda.is_available():
            raise NotImplementedError("no GPU")
        try:
            gradclip.global_norm(cupy.ones(1))
        except TypeError:
            raise NotImplementedError("gradclip does not take CuPy arrays") from None
        self.start(peer, CASES[case], place=cupy.asarray)
        self.wait = cupy.cuda.Device().synchronize
        self.wait()  # for the refill

    def time_global_norm(self, case, peer):
        self.peer.global_norm(self.grads)  # a float, so the work is done

    def time_clip_by_global_norm_(self, case, peer):
        self.peer.clip_by_global_norm_(self.grads, self.max_norm)
        self.wait()
