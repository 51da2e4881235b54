"""Compare whole calls with integers: random nestings, dtypes, strides, offsets, sizes, threads and instruction sets.

    python tests/oracle/whole_calls.py --seed 1 --seconds 60 --engine gpu

The engine of GPUs runs on the stand-in of CuPy (fake_cupy.py), which needs g++. Norms are compared with the exact one, rounded
once; elements with the exact product; and the bytes between the elements of strided leaves with what they were."""

from __future__ import annotations

import argparse
import ctypes
import itertools
import math
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

if __name__ == "__main__":  # as pytest does by its setting `pythonpath`
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "benchmarks")]
from gpu_leaves import host, on_gpu
from oracle.kernel_cases import DTYPES, Oracle
from reference import COMPLEX, REAL

import gradclip
from gradclip._cpu import machine

WORDS, LAST = 72, -2304  # of integers.h
CALLS = ("global norm", "in place", "by leaf", "other dtype", "by value")


class Exact(Oracle):
    """What integers say about arrays."""

    def __init__(self, folder):
        """Compile the driver into a folder."""
        super().__init__(folder)
        self._powers, self._wrong = self._library.oracle_add_powers, self._library.oracle_first_wrong
        self._powers.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_void_p]
        self._powers.restype = None
        self._wrong.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_int,
        ]  # fmt: skip
        self._wrong.restype = ctypes.c_int64

    def power_sum(self, arrays, ord):
        """Return the sum of magnitudes (ord 1) or squares (ord 2) of contiguous real arrays, a Fraction."""
        words = (ctypes.c_uint64 * WORDS)()
        for a in arrays:
            self._powers(DTYPES.index(str(a.dtype)), a.ctypes.data, a.size, ord, words)
        return Fraction(int.from_bytes(bytes(words), "little")) * Fraction(2) ** LAST

    def first_wrong(self, x, y, factor, once):
        """Return the index of the first element of y that is not x * factor, or -1."""
        dtypes = DTYPES.index(str(x.dtype)), DTYPES.index(str(y.dtype))
        return self._wrong(dtypes[0], x.ctypes.data, dtypes[1], y.ctypes.data, x.size, factor, once)


def rounded(total, ord):
    """The norm behind an exact sum, rounded once to float64."""
    if ord == 2 and total:
        up = 2 * max(0, 200 - (total.numerator.bit_length() - total.denominator.bit_length()) // 2)
        scaled = total * 2**up
        root = math.isqrt(scaled.numerator // scaled.denominator)
        total = (Fraction(root) + Fraction(root * root != scaled, 2)) / 2 ** (up // 2)
    try:
        return float(total)
    except OverflowError:
        return math.inf


def numbers(a):
    """The real numbers of an array, in order, contiguous."""
    a = np.ascontiguousarray(a)
    return (a.view(a.real.dtype) if a.dtype.kind == "c" else a).reshape(-1)


# ---- random leaves ---------------------------------------------------------------------------------------


def random_values(rng, dtype, size):
    """Finite numbers: of any bits, of few exponents, ordinary ones, or mostly zeros."""
    real = np.dtype(dtype)
    kind = rng.integers(4)
    if kind == 0:
        with np.errstate(invalid="ignore"):
            x = rng.integers(0, 256, size * real.itemsize, np.uint8).view(real)
            return np.where(np.isfinite(x), x, 1).astype(real)
    x = rng.standard_normal(size)
    if kind == 1:
        x *= 2.0 ** rng.integers(-12, 13)
    elif kind == 2:
        x[rng.random(size) < 0.9] = 0
    return x.astype(real)


def random_layout(rng, values, dtype, aligned):
    """Values in memory of random strides, order and offset: a view, and all of that memory."""
    shape = [len(values)]
    for _ in range(rng.integers(3)):
        divisors = [d for d in range(1, min(shape[-1], 40) + 1) if shape[-1] % d == 0]
        if divisors:
            d = int(rng.choice(divisors))
            shape[-1:] = [d, shape[-1] // d]
    steps = [int(rng.choice([1, 1, 1, 2, 3, -1, -2])) for _ in shape]
    offset = int(rng.choice([0, dtype.itemsize, 3 * dtype.itemsize, *([] if aligned else [1, 3, 8])]))
    whole = [n * abs(s) + int(rng.integers(2)) for n, s in zip(shape, steps, strict=True)]
    memory = np.full(math.prod(whole) * dtype.itemsize + offset, 0xA5, np.uint8)
    a = np.ndarray(whole, dtype, memory, offset)
    for axis, (n, s) in enumerate(zip(shape, steps, strict=True)):
        index = [slice(None)] * len(shape)
        index[axis] = slice((n - 1) * -s, None, s) if s < 0 else slice(0, n * s, s)
        a = a[tuple(index)]
    a[...] = values.reshape(a.shape)
    return a.transpose(rng.permutation(a.ndim)), memory


def random_leaves(rng, aligned):
    """Some leaves of random dtypes and layouts, each with the memory that it is a view of."""
    sizes = [int(rng.integers(1, 60)), int(rng.integers(1, 5000)), int(rng.integers(1, 60)), 4096, int(rng.integers(1, 40000))]
    leaves = []
    for _ in range(rng.integers(1, 5)):
        dtype = (REAL + COMPLEX)[rng.integers(6)]
        part = np.zeros(0, dtype).real.dtype if dtype.kind == "c" else dtype
        size = int(rng.choice(sizes))
        values = random_values(rng, part, size * (dtype.itemsize // part.itemsize)).view(dtype)
        leaves.append(random_layout(rng, values, dtype, aligned))
    return leaves


# ---- one call of each kind ---------------------------------------------------------------------------------


def check_elements(exact, before, after, factor, what):
    """Every element is x * factor, rounded once where the dtype is float64 or another one."""
    x, y = numbers(before), numbers(after)
    once = y.dtype == np.float64 or x.dtype != y.dtype or factor == 1.0
    if factor == 1.0 and x.dtype == y.dtype:
        assert x.tobytes() == y.tobytes(), what
        return
    i = exact.first_wrong(x, y, factor, once)
    assert i < 0, (what, i, x[i], y[i], factor)


def check_factor(scale, threshold, total):
    """A factor is the threshold by the norm, of which each is rounded once."""
    if 2.0**-1000 < scale < 1.0:
        most = Fraction(math.ulp(scale)) * 3 / 2
        assert (Fraction(scale) - most) ** 2 * total <= Fraction(threshold) ** 2 <= (Fraction(scale) + most) ** 2 * total


class Trial:
    """One random input, on one engine."""

    def __init__(self, exact, rng, cupy):
        """Make the leaves, and what they hold."""
        self.exact, self.rng, self.cupy = exact, rng, cupy
        made = random_leaves(rng, aligned=cupy is not None)  # which GPUs ask for
        self.views = [a for a, _ in made]
        self.memories = [m for _, m in made]
        self.before = [np.ascontiguousarray(a).copy() for a in self.views]
        self.reals = [numbers(a) for a in self.before]
        self.leaves = self.views if cupy is None else [on_gpu(cupy, a) for a in self.views]
        self.size = sum(a.size for a in self.reals)

    def held(self, leaf):
        """What a leaf holds now, on the host."""
        return np.ascontiguousarray(leaf if self.cupy is None else host(leaf))

    def threshold(self, norm):
        """A number that clips mostly, at times one that does not."""
        share = float(self.rng.choice([self.rng.random(), 0.5, 1.0, 1.5]))
        return norm * share if 1e-150 < norm < 1e300 else 1.0

    def check_between(self):
        """Nothing between the elements of strided leaves was written."""
        if self.cupy is None:
            for view, memory, before in zip(self.views, self.memories, self.before, strict=True):
                view[...] = np.zeros((), view.dtype)
                found = memory.copy()
                memory[...] = 0xA5
                view[...] = np.zeros((), view.dtype)
                assert found.tobytes() == memory.tobytes()
                view[...] = before

    def check(self, what):
        """Make a call of one kind and compare what comes of it."""
        getattr(self, what.replace(" ", "_"))()
        if what in ("global norm", "other dtype"):
            assert all(self.held(a).tobytes() == b.tobytes() for a, b in zip(self.leaves, self.before, strict=True))
        self.check_between()

    def global_norm(self):
        for ord in (2, 1):
            reals = self.reals
            if ord == 1 and any(a.dtype.kind == "c" for a in self.before):
                continue  # magnitudes of complex numbers are no sum of these
            assert gradclip.global_norm(self.leaves, ord) == rounded(self.exact.power_sum(reals, ord), ord)

    def in_place(self):
        total = self.exact.power_sum(self.reals, 2)
        norm = rounded(total, 2)
        threshold = self.threshold(norm)
        report = gradclip.clip_by_global_norm_(self.leaves, threshold)
        assert report.norm == norm
        self.compare_clipped(report.scale, threshold, total, self.before, self.leaves)

    def compare_clipped(self, scale, threshold, total, before, leaves):
        """Leaves were scaled by a factor that is the right one."""
        assert (scale < 1.0) == (rounded(total, 2) > threshold), scale
        check_factor(scale, threshold, total)
        if scale > 2.0**-1000:
            for a, b in zip(before, leaves, strict=True):
                check_elements(self.exact, a, self.held(b), scale, "in place")

    def by_leaf(self):
        totals = [self.exact.power_sum([a], 2) for a in self.reals]
        norms = [rounded(t, 2) for t in totals]
        threshold = self.threshold(max(norms))
        report = gradclip.clip_by_norm_(self.leaves, threshold)
        assert list(report.norms) == norms
        for i, scale in enumerate(report.scales):
            self.compare_clipped(float(scale), threshold, totals[i], self.before[i : i + 1], self.leaves[i : i + 1])

    def other_dtype(self):
        dtypes = [a.dtype if a.dtype.kind == "c" else REAL[self.rng.integers(4)] for a in self.before]
        out = [np.zeros(a.shape, d) for a, d in zip(self.before, dtypes, strict=True)]
        if self.cupy is not None:
            out = [on_gpu(self.cupy, a) for a in out]
        norm = rounded(self.exact.power_sum(self.reals, 2), 2)
        _, report = gradclip.clip_by_global_norm(self.leaves, self.threshold(norm), out=out)
        assert report.norm == norm
        if report.scale > 2.0**-1000:
            for a, b in zip(self.before, out, strict=True):
                check_elements(self.exact, a, self.held(b), report.scale, "other dtype")

    def by_value(self):
        keep = [i for i, a in enumerate(self.before) if a.dtype.kind != "c"]
        bound = float(abs(self.rng.choice([1.0, 0.0, 1e-6, 300.0, self.rng.standard_normal()])))
        report = gradclip.clip_by_value_([self.leaves[i] for i in keep], bound)
        outside = 0
        for i in keep:
            x = self.before[i]
            c = np.array(bound).astype(x.dtype)
            expected = np.where(x > c, c, np.where(x < -c, -c, x)).astype(x.dtype)
            outside += int(np.count_nonzero((x > c) | (x < -c)))
            assert self.held(self.leaves[i]).tobytes() == expected.tobytes(), (bound, x.dtype)
        assert report.clipped_count == outside


def trial(exact, seed, number, cupy=None):
    """Try one call; return its kind and the number of real elements."""
    rng = np.random.default_rng([seed, number])
    what = CALLS[number % len(CALLS)]
    sets = machine.available_isas()
    machine.set_isa(sets[rng.integers(len(sets))])
    machine.set_threads(int(rng.integers(1, 4)))
    try:
        one = Trial(exact, rng, cupy)
        one.check(what)
    finally:
        machine.set_threads(0)
        machine.set_isa(sets[-1])
    return what, one.size


def stand_in():
    """CuPy's stand-in, put into the place of CuPy."""
    import fake_cupy

    sys.modules["cupy"] = fake_cupy
    return fake_cupy


def main():
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--engine", choices=("host", "gpu"), default="host")
    parser.add_argument("--first", type=int, default=0, help="the number of the first call")
    options = parser.parse_args()
    cupy = stand_in() if options.engine == "gpu" else None
    end, elements = time.monotonic() + options.seconds, 0
    with tempfile.TemporaryDirectory() as folder:
        exact = Exact(folder)
        for number in itertools.count(options.first):
            try:
                elements += trial(exact, options.seed, number, cupy)[1]
            except BaseException:
                print(f"to see it again: --seed {options.seed} --engine {options.engine} --first {number}")
                raise
            if time.monotonic() > end:
                break
    print(f"{options.engine}: {number + 1 - options.first:,} calls, {elements:.2e} elements, none wrong (seed {options.seed})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
