"""No cliffs: the time of an element over sizes, dtypes, threads, layouts and data, norm and clipping apart.

A curve that should be flat and is not shows a case that was forgotten."""

import numpy as np

import gradclip
from gradclip.cli.bench import Gradient, best_in_turns, free_memory

from .common import DTYPES, SEED, THREADS, dtype, ten_to

BYTES = tuple(range(3, 10))  # powers of ten
LARGE = 4 * 10**6  # bytes of the leaves of `Data`


def ns_per_element(call, size, refill=None):
    best = best_in_turns({"it": call}, refill, rounds=3, seconds=0.05)["it"]
    return round(best / size * 1e9, 4)


class _Cliff:
    """A leaf, found by `setup`. Thresholds fall from call to call, so that every clip writes."""

    unit = "ns/element"

    def track_global_norm(self, *_):
        return ns_per_element(lambda: gradclip.global_norm(self.leaf), self.leaf.size)

    def track_clip_by_global_norm_(self, *_):
        gradient = Gradient([self.leaf])

        def clip():
            gradclip.clip_by_global_norm_(self.leaf, gradient.next_threshold(), nonfinite="skip")

        return ns_per_element(clip, self.leaf.size, gradient.refill)


class Size(_Cliff):
    """From a kilobyte to a gigabyte (skipped where four would not fit into memory) of normal numbers."""

    params = (BYTES, DTYPES, THREADS)
    param_names = ("log10_bytes", "dtype", "threads")

    def setup(self, size, name, threads):
        nbytes = ten_to(size)
        if 4 * nbytes > free_memory():
            raise NotImplementedError("too little memory")
        kind = np.dtype(dtype(name))
        tile = np.random.default_rng(SEED).standard_normal(2**18, np.float32).astype(kind)
        self.leaf = np.resize(tile, nbytes // kind.itemsize)
        if threads != "all":
            gradclip.set_num_threads(threads)


def normal(rng, shape, kind):
    return rng.standard_normal(shape, np.float32).astype(kind)


def unaligned(rng, n, kind):
    leaf = np.ndarray(n, kind, np.empty(n * kind.itemsize + 1, np.uint8), 1)
    leaf[:] = normal(rng, n, kind)
    return leaf


def subnormal(rng, n, kind):
    smallest = np.array(1, f"u{kind.itemsize}").view(kind).astype(np.float64)
    return (smallest * rng.integers(1, 100, n)).astype(kind)


def lognormal(rng, n, kind):
    top = 6e4 if kind == np.float16 else 3e38
    return np.minimum(np.exp(10 * rng.standard_normal(n)), top).astype(kind)


def one(value):
    def leaf(rng, n, kind):
        leaf = normal(rng, n, kind)
        leaf[n // 2] = value
        return leaf

    return leaf


def zeros(rng, n, kind):
    leaf = np.zeros(n, kind)
    leaf[n // 2] = 1  # so that there is something to clip
    return leaf


CASES = {
    "contiguous": normal,
    "every other element": lambda rng, n, kind: normal(rng, 2 * n, kind)[::2],
    "reversed": lambda rng, n, kind: normal(rng, n, kind)[::-1],
    "rows of 500 of 512": lambda rng, n, kind: normal(rng, (n // 500, 512), kind)[:, :500],
    "transposed": lambda rng, n, kind: normal(rng, (500, n // 500), kind).T,
    "unaligned": unaligned,
    "subnormal": subnormal,
    "zeros but one": zeros,
    "lognormal, sigma 10": lognormal,
    "one NaN, skipped": one(np.nan),
}


class Data(_Cliff):
    """4 MB in every layout and of numbers that processors have been slow with, on one thread.

    A NaN stops the clip before its write."""

    params = (list(CASES), DTYPES)
    param_names = ("case", "dtype")

    def setup(self, case, name):
        kind = np.dtype(dtype(name))
        gradclip.set_num_threads(1)
        self.leaf = CASES[case](np.random.default_rng(SEED), LARGE // kind.itemsize, kind)
