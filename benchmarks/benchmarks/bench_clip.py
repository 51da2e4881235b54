"""Clipping: the read pass and, where the norm is above the threshold, the write pass."""

import numpy as np

import gradclip
from gradclip import _peers as peers

from .common import COUNTS, DTYPES, MODELS, SIZES, THREADS, Bench, dtype, flat

CLIPS = (False, True)


class Size(Bench):
    """One float32 leaf, from cache to memory."""

    params = (SIZES, CLIPS, peers.NAMES)
    param_names = ("elements", "clips", "peer")

    def setup(self, elements, clips, peer):
        self.start(peer, flat(elements), clips=clips)

    def time_clip_by_global_norm_(self, elements, clips, peer):
        self.peer.clip_by_global_norm_(self.grads, self.max_norm)


class Leaves(Bench):
    """What a leaf costs: many of 1000 float32."""

    params = (COUNTS, CLIPS, peers.NAMES)
    param_names = ("leaves", "clips", "peer")

    def setup(self, leaves, clips, peer):
        self.start(peer, flat(1000, leaves), clips=clips)

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
    """With `out=`, for ResNet-50 in float32. The gradient stays, so nothing needs to be given back."""

    params = (CLIPS, ["gradclip", "numpy"])
    param_names = ("clips", "peer")

    def setup(self, clips, peer):
        self.start(peer, MODELS["ResNet-50"](), clips=clips)
        self.out = [leaf.copy() for leaf in self.grads]  # not zeros: their pages would first be mapped by the call

    def time_clip_by_global_norm(self, clips, peer):
        self.peer.clip_by_global_norm(self.grads, self.max_norm, out=self.out)


class Others(Bench):
    """The other ways to clip in place, acting on about a third of the elements or on every leaf."""

    params = (["1 leaf of 10 million", "1000 leaves of 1000"], ["gradclip", "numpy", "torch"])
    param_names = ("float32", "peer")

    def setup(self, leaves, peer):
        self.start(peer, flat(10**7) if leaves.startswith("1 ") else flat(1000, 1000), clips=True)

    def time_clip_by_value_(self, leaves, peer):
        self.peer.clip_by_value_(self.grads, 1.0)

    def time_clip_by_norm_(self, leaves, peer):
        self.peer.clip_by_norm_(self.grads, 1.0)

    def time_normalize_(self, leaves, peer):
        self.peer.normalize_(self.grads)


class Memory:
    """The peak of the whole process with a leaf of 256 MiB: in place as much as for the leaf alone, whatever
    the dtype, and one leaf more for a new result."""

    params = (DTYPES,)
    param_names = ("dtype",)

    def setup(self, name):
        self.leaf = np.zeros(2**28, np.uint8).view(dtype(name))
        self.leaf[...] = 1

    def peakmem_leaf_alone(self, name):
        pass

    def peakmem_clip_by_global_norm_(self, name):
        gradclip.clip_by_global_norm_(self.leaf, 1.0)

    def peakmem_clip_by_global_norm(self, name):
        gradclip.clip_by_global_norm(self.leaf, 1.0)
