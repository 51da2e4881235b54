"""Clipping: the read pass and, where the norm is above the threshold, the write pass."""

from .common import COUNTS, DTYPES, MODELS, SIZES, THREADS, Bench, flat, peers, ten_to

CLIPS = (False, True)


class Size(Bench):
    """One float32 leaf, from cache to memory."""

    params = (SIZES, CLIPS, peers.NAMES)
    param_names = ("log10_elements", "clips", "peer")

    def setup(self, elements, clips, peer):
        self.start(peer, flat(ten_to(elements)), clips=clips)

    def time_clip_by_global_norm_(self, elements, clips, peer):
        self.peer.clip_by_global_norm_(self.grads, self.max_norm)


class Leaves(Bench):
    """What a leaf costs: many of 1000 float32."""

    params = (COUNTS, CLIPS, peers.NAMES)
    param_names = ("log10_leaves", "clips", "peer")

    def setup(self, leaves, clips, peer):
        self.start(peer, flat(1000, ten_to(leaves)), clips=clips)

    def time_clip_by_global_norm_(self, leaves, clips, peer):
        self.peer.clip_by_global_norm_(self.grads, self.max_norm)


class DType(Bench):
    """One leaf of 10 million elements."""

    params = (DTYPES, CLIPS, peers.NAMES)
    param_names = ("dtype", "clips", "peer")

    def setup(self, name, clips, peer):
        self.start(peer, flat(10**7), name, clips=clips)

    def time_clip_by_global_norm_(self, name, clips, peer):
        self.peer.clip_by_global_norm_(self.grads, self.max_norm)


class Model(Bench):
    """The real leaves of a model, float32."""

    params = (list(MODELS), CLIPS, peers.NAMES)
    param_names = ("model", "clips", "peer")

    def setup(self, model, clips, peer):
        self.start(peer, MODELS[model](), clips=clips)

    def time_clip_by_global_norm_(self, model, clips, peer):
        self.peer.clip_by_global_norm_(self.grads, self.max_norm)


class Threads(Bench):
    """ResNet-50 on one thread and on all. NumPy and SciPy have no call for it."""

    params = (THREADS, CLIPS, ["gradclip", "torch"])
    param_names = ("threads", "clips", "peer")

    def setup(self, threads, clips, peer):
        self.start(peer, MODELS["ResNet-50"](), clips=clips)
        if threads != "all":
            self.peer.set_threads(threads)

    def time_clip_by_global_norm_(self, threads, clips, peer):
        self.peer.clip_by_global_norm_(self.grads, self.max_norm)


class Functional(Bench):
    """The gradient of ResNet-50 stays, in float32, and the result is new, or goes into `out`."""

    params = (CLIPS, ["gradclip", "numpy", "gradclip on JAX", "optax"])
    param_names = ("clips", "peer")

    def setup(self, clips, peer):
        self.start(peer, MODELS["ResNet-50"](), clips=clips, refill=False)

    def time_clip_by_global_norm(self, clips, peer):
        self.peer.clip_by_global_norm(self.grads, self.max_norm)


class Out(Bench):
    """Seconds of a clip into arrays that are there already."""

    params = (CLIPS, ["gradclip", "numpy"])
    param_names = ("clips", "peer")

    def setup(self, clips, peer):
        self.start(peer, MODELS["ResNet-50"](), clips=clips, refill=False)
        self.out = self.work.fresh  # not zeros: their pages would first be mapped by the call

    def time_clip_by_global_norm(self, clips, peer):
        self.peer.clip_by_global_norm(self.grads, self.max_norm, out=self.out)


class Unscale(Bench):
    """Seconds in which a mixed-precision gradient, held times 2**16, is unscaled and clipped: GPT-2 small in float32.

    PyTorch unscales first, as its GradScaler does."""

    params = ("gradclip", "numpy", "torch")
    param_names = ("peer",)

    def setup(self, peer):
        self.start(peer, MODELS["GPT-2 small"]())

    def time_unscale_and_clip_(self, peer):
        self.peer.unscale_and_clip_(self.grads, self.max_norm / 2**16, 2.0**16)
