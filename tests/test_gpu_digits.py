"""Sums in integers, for devices with little float64, beside those in float64: held to exact sums, and to each other.

Every test runs the kernels themselves, whatever the device: which of them a device takes is asked in one place."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
from gpu_leaves import assert_same_bits, assert_same_report, is_stand_in, on_gpu
from marks import slow
from reference import REAL, gradient, layouts

import gradclip
from gradclip._gpu import program, reading, table
from gradclip._leaves import Leaves

SHORT = [dtype for dtype in REAL if dtype.itemsize <= 4]
BITS = {"float16": (5, 10), "bfloat16": (8, 7), "float32": (8, 23)}  # of exponent and mantissa
SEGMENT = 131072  # bytes
SCALE = 1  # GC_SCALE
BIN = 2  # the word of a Sum that holds its bin, behind high and low


@pytest.fixture(params=[False, True], ids=["float64", "digits"])
def little(request, monkeypatch):
    answer(monkeypatch, request.param)
    return request.param


def answer(monkeypatch, little):
    """Let all devices have little float64, or none."""
    for module in (reading, table):
        monkeypatch.setattr(module, "has_little_float64", lambda device: little)


def by_both(monkeypatch, function):
    """What a function returns where devices have much float64, and where they have little."""
    results = []
    for little in (False, True):
        answer(monkeypatch, little)
        results.append(function())
    return results


def random_bits(dtype, n, lowest, highest, seed=0):
    """Random elements of random signs and mantissas, with exponents (as stored) from `lowest` to `highest`."""
    rng, (_, mantissa) = np.random.default_rng(seed), BITS[dtype.name]
    word = np.dtype(f"u{dtype.itemsize}")
    exponent = rng.integers(lowest, highest + 1, n).astype(word)
    bits = (
        exponent << mantissa
        | rng.integers(0, 1 << mantissa, n).astype(word)
        | rng.integers(0, 2, n).astype(word) << (8 * word.itemsize - 1)
    )
    return bits.view(dtype)


def exact_sum(a):
    """The sum of squares as a Fraction; NaN and Inf are left out."""
    x = a.astype(np.float64).ravel()
    x = np.abs(x[np.isfinite(x)])
    whole, exponent = np.frexp(x)
    total = Fraction(0)
    for e in np.unique(exponent):
        some = np.ldexp(whole[exponent == e], 24).astype(np.int64)  # an integer: float32 has 24 bits
        total += Fraction(int((some * some).astype(object).sum())) * Fraction(2) ** (2 * int(e) - 48)
    return total


def sums_of(cupy, a):
    """(high, low, bin) of the sum of squares of one leaf, as a device leaves it."""
    leaves = Leaves([on_gpu(cupy, a)])
    part = reading.read(table.table_of(leaves, 0), 2.0)
    words = part.table.stream.fetch(part.unit)
    assert len(words) == 1
    return (*words[0, :2].view(np.float64).tolist(), int(words[0, BIN]))


def assert_close(cupy, a):
    high, low, bin = sums_of(cupy, a)
    exact = exact_sum(a)
    assert bin == 0
    assert abs(Fraction(high) + Fraction(low) - exact) <= exact / 2**71, float(
        abs(Fraction(high) + Fraction(low) - exact) / exact
    )


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("range_of", ["one", "few", "all", "rising", "falling"])
def test_sums_of_all_exponents(cupy, little, dtype, range_of):
    bits, _ = BITS[dtype.name]
    last = 2**bits - 2
    n = 3 * SEGMENT // 2 // dtype.itemsize if range_of in ("rising", "falling") else 2500
    if range_of == "one":
        for e in {0, 1, 2, last - 4, last - 3, last - 2, last - 1, last, *range(0, last, max(1, last // 12))}:
            assert_close(cupy, random_bits(dtype, n, e, e, e))
    elif range_of == "few":
        for e in {0, last - 12, *range(0, last - 12, max(1, last // 9))}:
            assert_close(cupy, random_bits(dtype, n, e, e + 12, e))
    elif range_of == "all":
        assert_close(cupy, random_bits(dtype, n, 0, last))
    else:  # each tile has a larger exponent than the one before it, or a smaller one
        tiles = -(-n * dtype.itemsize // 8192)
        exponents = np.linspace(0, last, tiles).astype(int)
        parts = [random_bits(dtype, 8192 // dtype.itemsize, e, e, int(e)) for e in exponents]
        assert_close(cupy, np.concatenate(parts if range_of == "rising" else parts[::-1])[:n])


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("down", [0, 1, 7, 16, 21, 22, 23, 24, 25, 38, 39, 40, 46, 60])
def test_one_large_element_and_many_with_all_bits_set(cupy, little, dtype, down):
    """What the digits lose is all of one sign, and the sum is hardly more than one square."""
    bits, mantissa = BITS[dtype.name]
    word = np.dtype(f"u{dtype.itemsize}")
    top = 2**bits - 2 - 12
    n = 256 * 256 // 2 if dtype.itemsize == 2 else 128 * 256
    for spare in (0, 3):  # as the window is opened, and as high as it can hold
        a = np.full(n, max(top - down, 0) << mantissa | (1 << mantissa) - 1, word)
        a[::2] -= word.type(1)
        a[: n // 4 : 1024] = top << mantissa
        a[n // 2 :: 1024] = (top + spare) << mantissa
        assert_close(cupy, a.view(dtype))


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("kind", ["normal", "lognormal", "tiny", "huge", "wide", "zeros"])
@pytest.mark.parametrize("size", [*slow([1, 300, 8191]), 7, 40_000])
def test_norms_of_both(cupy, monkeypatch, dtype, kind, size):
    a = gradient(dtype, size, kind)
    gpu = on_gpu(cupy, a)
    norms = by_both(monkeypatch, lambda: gradclip.clip_by_global_norm(gpu, 1.0, nonfinite="skip")[1].norm)
    assert norms == [gradclip.global_norm(a)] * 2


@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_layouts_and_edges(cupy, monkeypatch, dtype):
    a = gradient(np.float32, 1200).astype(dtype)
    for name, view in layouts(a):
        if name != "misaligned":
            norms = by_both(monkeypatch, lambda view=view: gradclip.global_norm(on_gpu(cupy, view)))
            assert norms == [gradclip.global_norm(view)] * 2, name
    long = gradient(np.float32, SEGMENT // dtype.itemsize + 40, seed=3).astype(dtype)
    for begin in (0, 1, 3):  # whole packs at an end, and all but one element; aligned and not
        for end in (SEGMENT // dtype.itemsize + k for k in (-1, 0, 1, 9)):
            gpu = on_gpu(cupy, long)[begin:end]
            norms = by_both(monkeypatch, lambda gpu=gpu: gradclip.global_norm(gpu))
            assert norms == [gradclip.global_norm(long[begin:end])] * 2, (begin, end)


@pytest.mark.parametrize("shape", [(40, 100), (3, 1000), (300, 40), (2, 70_000)], ids=str)
@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_norms_of_slices(cupy, monkeypatch, dtype, shape):
    """A thread for each slice, a block of threads for each, and columns."""
    a = random_bits(dtype, math.prod(shape), 2, 2 ** BITS[dtype.name][0] - 8).reshape(shape)
    a[1] = 0
    for axis in (0, 1):
        want = gradclip.clip_by_norm([a], 1.0, axis=axis)[1].norms
        both = by_both(monkeypatch, lambda axis=axis: gradclip.clip_by_norm([on_gpu(cupy, a)], 1.0, axis=axis)[1].norms)
        for got in both:
            assert np.array_equal(got, want), axis


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("at", [(0,), (9000, 70_000), (35_000, 35_001, 99_999)], ids=str)
def test_what_is_not_finite(cupy, monkeypatch, dtype, at):
    a = gradient(np.float32, 100_000, seed=5).astype(dtype)
    for k, i in enumerate(at):
        a[i] = (np.nan, np.inf, -np.inf)[k]
    for policy in ("zero", "skip", "propagate"):
        here = [a.copy()]
        want = gradclip.clip_by_global_norm_(here, 0.5, nonfinite=policy)

        def call(policy=policy):
            gpu = [on_gpu(cupy, a)]
            return gradclip.clip_by_global_norm_(gpu, 0.5, nonfinite=policy), gpu

        for report, gpu in by_both(monkeypatch, call):
            assert_same_report(want, report)
            assert_same_bits(here, gpu)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_elements_outside_of_bounds_are_counted(cupy, monkeypatch, dtype):
    a = random_bits(dtype, 50_000, 0, 2 ** BITS[dtype.name][0] - 2)
    a[::3] = random_bits(dtype, len(a[::3]), 0, 0)  # subnormal numbers
    a[:2] = -0.0, 0.0
    for low, high in ((-1.0, 1.0), (0.0, math.inf), (-math.inf, 0.0), (float(np.abs(a[3])), 1.0)):
        here = [a.copy()]
        want = gradclip.clip_by_value_(here, low, high)

        def call(low=low, high=high):
            gpu = [on_gpu(cupy, a)]
            return gradclip.clip_by_value_(gpu, low, high), gpu

        for report, gpu in by_both(monkeypatch, call):
            assert_same_report(want, report)
            assert_same_bits(here, gpu)


def scaled(cupy, x, factor):
    """Elements times a factor, as a device writes them."""
    gpu = on_gpu(cupy, x)
    rows = table.table_of(Leaves([gpu]), 0)
    factor = int(np.float64(factor).view(np.int64))
    rows.write(rows.stream.upload(np.array([[SCALE, 1, 0, factor, factor, 0]])), (0, 0), 0)
    return gpu.get()


def twice_rounded(x, factor):
    """Products of float32, rounded in float64 and then in float32."""
    with np.errstate(over="ignore", under="ignore"):
        return (x.astype(np.float64) * factor).astype(np.float32)


def test_the_number_of_a_kind():
    code = program.source()
    assert (
        re.search(r"enum {[^}]*GC_KEEP,[^}]*}", code)[0].replace("\n", " ").split("{")[1].split(",")[SCALE].strip()
        == "GC_SCALE"
    )


@pytest.mark.parametrize("size", [8, 5001, 70_000])
@pytest.mark.parametrize("factor", [0.1, 1 / 3, 0.5, 1 - 2**-53, -0.7, 3e-17, 1e-19, 2.5e-30, 1e25, 0.0, 5e-320], ids=str)
def test_products(cupy, little, factor, size):
    for lowest, highest in ((0, 254), (100, 140), (0, 3), (250, 254)):
        x = random_bits(np.dtype(np.float32), size, lowest, highest, seed=size)
        x[::7] = 0
        x[1::14] = -0.0
        assert_same_bits([scaled(cupy, x, factor)], [twice_rounded(x, factor)])


def test_products_next_to_a_middle(cupy, little):
    """Where the product is a middle of two float32 to the last bits of float64, or at all, and where it is a power of two."""
    rng = np.random.default_rng(8)
    for _ in range(30):
        x = rng.integers(1 << 23, 1 << 24, 4096).astype(np.float32)
        x[1::2] = x[0] * np.float32(2) ** rng.integers(-30, 30, len(x[1::2]))
        middle = float(rng.integers(1 << 24, 1 << 25)) + 0.5 if rng.integers(2) else 2.0 ** int(rng.integers(20, 28))
        for ulps in (-(2**30), -(2**9), -1, 0, 1, 3, 2**8, 2**29):
            factor = middle / float(x[0]) * (1 + ulps * 2.0**-52)
            assert_same_bits([scaled(cupy, x, factor)], [twice_rounded(x, factor)])


@pytest.mark.parametrize(
    ("ratio", "kernel"), [(2, "measure_squares"), (32, "measure_squares_by_digits"), (64, "measure_squares_by_digits")]
)
def test_a_device_takes_the_kernel_that_suits_it(cupy, monkeypatch, ratio, kernel):
    if not is_stand_in(cupy):
        pytest.skip("a device has the ratio that it has")
    monkeypatch.setattr(cupy, "float64_ratio", ratio)
    program.has_little_float64.cache_clear()
    try:
        del cupy.launches[:]
        gradclip.global_norm(on_gpu(cupy, np.ones(9, np.float32)))
        assert [name for name, _ in cupy.launches if name.startswith("measure")] == [kernel]
    finally:
        program.has_little_float64.cache_clear()
