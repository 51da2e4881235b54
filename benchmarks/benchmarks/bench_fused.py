"""What is saved by passes that do two things: time of the fused call over that of the two it stands for.

Below 1 the fusion pays. Both take turns on the same 128 MB of gradient, and the best of each counts."""

import math

import numpy as np

import gradclip
from gradclip.cli.bench import best_in_turns

from .common import DTYPES, dtype, gradients, peers

SIZE = 128 * 10**6  # bytes of gradient
LR, SCALE = 1e-3, 2.0**10


def ratio(fused, separate, refill):
    best = best_in_turns({"fused": fused, "separate": separate}, refill, rounds=8)
    return round(best["fused"] / best["separate"], 3)


class _Fused:
    param_names = ("dtype",)
    unit = "times as long"

    def setup(self, name):
        kind = np.dtype(dtype(name))
        shape = 64, SIZE // kind.itemsize // 64
        self.leaf, self.other = gradients([shape, shape], name)
        self.fresh = self.leaf.copy()
        self.max_norm = 0.4 * gradclip.global_norm(self.leaf)

    def refill(self):
        self.leaf[...] = self.fresh


class Passes(_Fused):
    """The separate calls are both gradclip's."""

    params = DTYPES

    def track_functional_over_copy_then_clip(self, name):
        def fused():
            gradclip.clip_by_global_norm(self.leaf, self.max_norm, out=self.other)

        def separate():
            self.other[...] = self.leaf
            gradclip.clip_by_global_norm_(self.other, self.max_norm)

        return ratio(fused, separate, None)

    def track_cast_over_clip_then_cast(self, name):
        cast = np.empty(self.leaf.shape, np.float32 if name == "float16" else np.float16)

        def fused():
            gradclip.clip_by_global_norm(self.leaf, self.max_norm, out=cast)

        def separate():
            gradclip.clip_by_global_norm(self.leaf, self.max_norm, out=self.other)
            cast[...] = self.other

        return ratio(fused, separate, None)

    def track_unscale_fused_over_separate(self, name):
        max_norm = self.max_norm / SCALE

        def fused():
            gradclip.clip_by_global_norm_(self.leaf, max_norm, grad_scale=SCALE)

        def separate():
            gradclip.clip_by_global_norm_(self.leaf, math.inf, grad_scale=SCALE)
            gradclip.clip_by_global_norm_(self.leaf, max_norm)

        return ratio(fused, separate, self.refill)


class WithBlas(_Fused):
    """The second of the separate calls is one pass of BLAS: `axpy` for the step, `gemv` for the sum."""

    params = ("float32", "float64")

    def setup(self, name):
        self.blas = peers.load("scipy")
        super().setup(name)

    def track_sgd_step_over_clip_then_step(self, name):
        grads, params = self.blas.prepare([self.leaf, self.other])

        def fused():
            gradclip.sgd_step_(params, grads, LR, self.max_norm)

        def separate():
            gradclip.clip_by_global_norm_(grads, self.max_norm)
            self.blas.subtract(params, grads, LR)

        return ratio(fused, separate, self.refill)

    def track_per_sample_sum_over_clip_then_sum(self, name):
        max_norm, ones = self.max_norm / 8, np.ones(64, self.leaf.dtype)

        def fused():
            gradclip.per_sample_clip_sum(self.leaf, max_norm)

        def separate():
            gradclip.clip_per_sample_(self.leaf, max_norm)
            ones @ self.leaf

        return ratio(fused, separate, self.refill)
