"""The read pass: one norm over all leaves."""

import numpy as np

import gradclip
from gradclip import _leaves
from gradclip import _peers as peers
from gradclip._cpu import machine
from gradclip._cpu.limits import Stream
from gradclip.bench import best_in_turns

from .common import COUNTS, DTYPES, MODELS, SIZES, THREADS, Bench, dtype, flat


class Size(Bench):
    """One float32 leaf, from cache to memory."""

    params = (SIZES, peers.NAMES)
    param_names = ("elements", "peer")

    def setup(self, elements, peer):
        self.start(peer, flat(elements))

    def time_global_norm(self, elements, peer):
        self.peer.global_norm(self.grads)


class Leaves(Bench):
    """What a leaf costs: many of 1000 float32."""

    params = (COUNTS, peers.NAMES)
    param_names = ("leaves", "peer")

    def setup(self, leaves, peer):
        self.start(peer, flat(1000, leaves))

    def time_global_norm(self, leaves, peer):
        self.peer.global_norm(self.grads)


class DType(Bench):
    """One leaf of 10 million elements."""

    params = (DTYPES, peers.NAMES)
    param_names = ("dtype", "peer")

    def setup(self, name, peer):
        self.start(peer, flat(10**7), name)

    def time_global_norm(self, name, peer):
        self.peer.global_norm(self.grads)


class Model(Bench):
    """The real leaves of a model, float32."""

    params = (list(MODELS), peers.NAMES)
    param_names = ("model", "peer")

    def setup(self, model, peer):
        self.start(peer, MODELS[model]())

    def time_global_norm(self, model, peer):
        self.peer.global_norm(self.grads)


class Threads(Bench):
    """ResNet-50 on one thread and on all. NumPy and SciPy have no call for it."""

    params = (THREADS, ["gradclip", "torch"])
    param_names = ("threads", "peer")

    def setup(self, threads, peer):
        self.start(peer, MODELS["ResNet-50"]())
        if threads != "all":
            self.peer.set_threads(threads)

    def time_global_norm(self, threads, peer):
        self.peer.global_norm(self.grads)


class ReadLimit:
    """How near the norm of a large leaf comes to the speed of memory.

    The limit is a plain read of the same bytes by as many threads. Both are measured in turns, and the best of
    each counts."""

    params = (DTYPES, THREADS)
    param_names = ("dtype", "threads")
    size = 2**28  # bytes: far beyond any cache

    def setup(self, name, threads):
        if threads != "all":
            gradclip.set_num_threads(threads)
        self.leaf = np.zeros(self.size, np.uint8).view(dtype(name))
        self.leaf[...] = 1
        self.stream = Stream(_leaves.Leaves(self.leaf))

    def seconds(self):
        team = machine.get_threads()
        calls = {"norm": lambda: gradclip.global_norm(self.leaf), "read": lambda: self.stream.read(team)}
        return best_in_turns(calls, rounds=20)

    def track_norm(self, name, threads):
        return round(self.size / self.seconds()["norm"] / 1e9, 2)

    def track_plain_read(self, name, threads):
        return round(self.size / self.seconds()["read"] / 1e9, 2)

    def track_norm_over_plain_read(self, name, threads):
        seconds = self.seconds()
        return round(seconds["norm"] / seconds["read"], 3)

    track_norm.unit = track_plain_read.unit = "GB/s"
    track_norm_over_plain_read.unit = "times as long"
