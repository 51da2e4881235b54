"""Clipping by sample, and the clipped sum of differentially private training."""

import math

from .common import Bench

# Leaves with the batch first: one for all parameters, and many as a network has them.
CASES = {"64 samples of 500,000": ((64, 500_000),), "64 samples of 100 x 1000": ((64, 1000),) * 100}


class PerSample(Bench):
    """All samples are above the threshold."""

    params = (list(CASES), ("gradclip", "numpy", "torch"))
    param_names = ("float32", "peer")

    def setup(self, case, peer):
        self.start(peer, CASES[case])
        self.max_norm /= math.sqrt(64)

    def time_clip_per_sample_(self, case, peer):
        self.peer.clip_per_sample_(self.grads, self.max_norm)


class Sum(Bench):
    """Seconds of the sum of clipped samples."""

    params = (list(CASES), ("gradclip", "numpy", "torch", "optax"))
    param_names = ("float32", "peer")

    def setup(self, case, peer):
        self.start(peer, CASES[case], refill=False)
        self.max_norm /= math.sqrt(64)

    def time_per_sample_clip_sum(self, case, peer):
        self.peer.per_sample_clip_sum(self.grads, self.max_norm)


class Parts(Bench):
    """Seconds of a sum with a threshold for each leaf, and with a mask."""

    params = (list(CASES),)
    param_names = ("float32",)

    def setup(self, case):
        self.start("gradclip", CASES[case], refill=False)
        self.mask = [True] * 60 + [False] * 4

    def time_thresholds_by_leaf(self, case):
        self.peer.per_sample_clip_sum(self.grads, {"*": 0.1})

    def time_mask(self, case):
        self.peer.per_sample_clip_sum(self.grads, 0.1, mask=self.mask)
