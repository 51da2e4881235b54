"""Peak memory of the process with a leaf of 256 MiB, for every operation.

In place it is that of the leaf alone, for a new result one leaf more, whatever the dtype."""

import numpy as np

from .common import READERS, dtype, peers

DTYPES = ("float16", "float32")
ARGUMENTS = {  # beyond the leaves
    "nothing": None,
    "global_norm": (),
    "clip_by_global_norm_": (1.0,),
    "clip_by_global_norm": (1.0,),
    "clip_by_norm_": (1.0,),
    "clip_by_value_": (0.5,),
    "normalize_": (),
    "clip_per_sample_": (1.0,),
    "per_sample_clip_sum": (1.0,),
}


def leaf(name):
    made = np.zeros((64, 2**22), np.uint8).view(dtype(name))
    made[...] = 1
    return made


def method(peer, operation):
    if operation == "nothing":
        return lambda *_, **__: None
    if not hasattr(peer, operation):
        raise NotImplementedError(f"{type(peer).__name__} has no {operation}")
    return getattr(peer, operation)


class Leaf:
    """Peak memory of one operation on one leaf."""

    params = (list(ARGUMENTS), DTYPES, READERS)
    param_names = ("operation", "dtype", "peer")

    def setup(self, operation, name, peer):
        peer = peers.load(peer)
        self.operation, self.arguments = method(peer, operation), ARGUMENTS[operation] or ()
        self.grads = peer.prepare([leaf(name)])

    def peakmem_operation(self, operation, name, peer):
        self.operation(self.grads, *self.arguments)


class LeafAndParams:
    """Adaptive clipping and the fused step, whose parameters are as large as the leaf."""

    params = (["nothing", "clip_adaptive_", "sgd_step_"], DTYPES, peers.NAMES)
    param_names = ("operation", "dtype", "peer")

    def setup(self, operation, name, peer):
        peer = peers.load(peer)
        leaves, params = [leaf(name)], [leaf(name)]
        if operation == "sgd_step_":
            step = peer.stepper(params, leaves, 1e-3)
            self.operation = lambda: step(1.0)
        else:
            call, grads, weights = method(peer, operation), peer.prepare(leaves), peer.prepare(params)
            self.operation = lambda: call(grads, weights, 0.01, unit_axis=0)

    def peakmem_operation(self, operation, name, peer):
        self.operation()
