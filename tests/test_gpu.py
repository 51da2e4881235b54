"""CuPy leaves: the same written bits and the same report as NumPy leaves, function by function.

Without a GPU the kernels run on the processor (gpu_runtime/, fake_cupy.py): what is tested then is the arithmetic, the tables
and all that Python does, not the device. Streams, devices and memory: test_gpu_device.py."""

import copy
import math
import sys
from fractions import Fraction

import numpy as np
import pytest
from gpu_leaves import Layer, across, assert_same_bits, assert_same_report, batch, flat, host, model, on_gpu, there, waits
from marks import slow
from reference import COMPLEX, REAL, gradient, layouts, norm_error, power_sum, rounded_norm

import gradclip

MOST = Fraction(np.finfo(np.float64).max)

# In place on a nesting: name, call
CALLS = {
    "global norm": lambda g, **k: gradclip.clip_by_global_norm_(g, 1.5, **k),
    "global norm, not reached": lambda g, **k: gradclip.clip_by_global_norm_(g, 1e9, **k),
    "threshold 0": lambda g, **k: gradclip.clip_by_global_norm_(g, 0, **k),
    "infinite threshold": lambda g, **k: gradclip.clip_by_global_norm_(g, math.inf, **k),
    "rule": lambda g, **k: gradclip.clip_by_global_norm_(g, gradclip.thresholds.Schedule(lambda step: 2.0), **k),
    "by leaf": lambda g, **k: gradclip.clip_by_norm_(g, 5.0, **k),
    "by pattern": lambda g, **k: gradclip.clip_by_norm_(g, {"*weight": 3.0, "big": 1.0}, **k),
    "normalize": lambda g, **k: gradclip.normalize_(g, 2.0, **k),
    "normalize by leaf": lambda g, **k: gradclip.normalize_(g, 2.0, per_leaf=True, **k),
}
OPTIONS = [
    {},
    {"ord": 1},
    {"ord": math.inf},
    {"grad_scale": 1024.0},
    {"nonfinite": "skip"},
    {"nonfinite": "zero"},
    {"nonfinite": "propagate"},
    {"eps": 1e-6},
    {"strict": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_in_place_as_on_the_processor(cupy, call, options):
    if "normalize" in call and "eps" in options:
        pytest.skip("normalize has an eps of its own")
    here, gpu = model(), there(cupy, model())
    want = CALLS[call](here, **options)
    got = CALLS[call](gpu, **options)
    assert_same_bits(here, gpu)
    assert_same_report(want, got)


@pytest.mark.parametrize("dtype", REAL + COMPLEX, ids=str)
@pytest.mark.parametrize("kind", ["normal", "lognormal", "tiny", "huge", "wide", "zeros"])
@pytest.mark.parametrize("size", [*slow([1, 300]), 7, 40_000])
def test_norms_are_exact_and_those_of_the_processor(cupy, dtype, kind, size):
    if dtype.kind == "c":
        real = np.dtype(f"f{dtype.itemsize // 2}")
        a = (gradient(real, size, kind) + 1j * gradient(real, size, kind, seed=1)).astype(dtype)
    else:
        a = gradient(dtype, size, kind)
    gpu = on_gpu(cupy, a)
    exact = power_sum([a])
    assert math.isinf(gradclip.global_norm(gpu)) if exact > MOST**2 else norm_error(gradclip.global_norm(gpu), exact) <= 0.501
    assert gradclip.global_norm(gpu) == gradclip.global_norm(a)
    for ord, ulps in (
        (1, 0 if dtype.kind == "f" else 2),
        (math.inf, 0 if dtype.kind == "f" else 1),
        (3, 4),
        (0.5, 8),
        (2.5, 4),
    ):
        want, got = gradclip.global_norm(a, ord), gradclip.global_norm(gpu, ord)
        assert want == got or abs(want - got) <= ulps * math.ulp(want), (ord, want, got)
    here, gpu = [a.copy()], [gpu]
    assert_same_report(gradclip.clip_by_global_norm_(here, 1e-3), gradclip.clip_by_global_norm_(gpu, 1e-3, nonfinite="skip"))
    assert_same_bits(here, gpu)


@pytest.mark.parametrize("dtype", [*REAL, np.dtype(np.complex64)], ids=str)
def test_layouts(cupy, dtype):
    a = gradient(np.float32, 1200).astype(dtype)
    for name, view in layouts(a):
        if name == "misaligned":
            continue
        gpu = on_gpu(cupy, view)
        assert gradclip.global_norm(gpu) == gradclip.global_norm(a), name
        out, report = gradclip.clip_by_global_norm(gpu, 0.5)
        assert report.norm == gradclip.global_norm(a)
        want = gradclip.clip_by_global_norm(view, 0.5)[0]
        assert_same_bits([out], [want])
        gradclip.clip_by_global_norm_(gpu, 0.5)
        assert_same_bits([gpu], [want])
        bad = view.copy(order="K")
        bad[(bad.ndim > 1,) * bad.ndim if bad.ndim > 1 else 5] = np.nan
        bad[(-1,) * bad.ndim] = np.inf
        for first in ("zero", "propagate", "skip"):
            moved = on_gpu(cupy, bad)
            want = gradclip.clip_by_global_norm(bad, 0.5, nonfinite=first)
            got = gradclip.clip_by_global_norm(moved, 0.5, nonfinite=first)
            assert_same_report(want[1], got[1])
            assert_same_bits([want[0]], [got[0]])


def test_first_nonfinite_in_index_order_of_a_transposed_leaf(cupy):
    a = np.zeros((4, 6), np.float32)
    a[1, 3] = a[3, 0] = np.nan
    gpu = on_gpu(cupy, a.T)
    with pytest.raises(gradclip.NonFiniteGradientError, match="grads: nan at flat index 3") as caught:
        gradclip.clip_by_global_norm_(gpu, 1.0)
    assert (caught.value.path, caught.value.index, caught.value.count) == ("grads", 3, 2)
    assert gradclip.clip_by_global_norm(a.T, 1.0, nonfinite="skip")[1].first_nonfinite == ("grads", 3)


@pytest.mark.parametrize("policy", ["skip", "zero", "propagate"])
@pytest.mark.parametrize("call", CALLS)
def test_policies(cupy, call, policy):
    here = model()
    here["layers"][2].weight[3, 3] = np.inf
    here["layers"][0].bias[7] = np.nan
    gpu = there(cupy, here)
    want = CALLS[call](here, nonfinite=policy)
    got = CALLS[call](gpu, nonfinite=policy)
    assert_same_bits(here, gpu)
    assert_same_report(want, got)
    assert got.first_nonfinite == ("layers/0/bias", 7)


def test_raise_writes_nothing(cupy):
    here = model()
    here["big"][30_000] = -np.inf
    gpu = there(cupy, here)
    for call in CALLS.values():
        with pytest.raises(gradclip.NonFiniteGradientError, match="big: -inf at flat index 30000"):
            call(gpu)
    assert_same_bits(here, gpu)


FUNCTIONAL = {
    "global norm": lambda g, **k: gradclip.clip_by_global_norm(g, 1.5, **k),
    "by leaf": lambda g, **k: gradclip.clip_by_norm(g, 5.0, **k),
    "normalize": lambda g, **k: gradclip.normalize(g, 2.0, **k),
    "value": lambda g, **k: gradclip.clip_by_value(g, -0.5, 0.7, **k),
}


@pytest.mark.parametrize("call", FUNCTIONAL)
def test_functional_forms(cupy, call):
    here, gpu = model(), there(cupy, model())
    want, report = FUNCTIONAL[call](here)
    got, told = FUNCTIONAL[call](gpu)
    assert_same_bits(want, got)
    assert_same_report(report, told)
    assert_same_bits(here, gpu)
    assert type(got["big"]) is cupy.ndarray
    assert isinstance(got["layers"][0], Layer)
    out = there(cupy, copy.deepcopy(here))
    assert FUNCTIONAL[call](gpu, out=out)[0] is out
    assert_same_bits(want, out)
    FUNCTIONAL[call](gpu, out=gpu)
    assert_same_bits(want, gpu)


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_clip_by_value(cupy, dtype):
    here = [gradient(dtype, 3000), gradient(dtype, 40).reshape(5, 8)[:, ::2], np.zeros(4, dtype)]
    here[0][5], here[0][9] = np.nan, np.inf
    gpu = there(cupy, here)
    for bounds in ((1.0,), (-0.1, 0.05), (2e9,)):
        want, got = gradclip.clip_by_value_(here, *bounds), gradclip.clip_by_value_(gpu, *bounds)
        assert_same_bits(here, gpu)
        assert_same_report(want, got)


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_clip_by_value_by_leaf(cupy, dtype):
    here = [gradient(dtype, 3000), gradient(dtype, 40).reshape(5, 8)[:, ::2], gradient(dtype, 90, seed=3), gradient(dtype, 9)]
    here[0][5], here[2][9] = np.nan, np.inf
    for bounds in (({"0": 0.5, "[12]": 0.25},), ([-0.1, -0.2, -0.3, -0.4], {"1": 0.0, "3": 0.1})):
        gpu = there(cupy, here)
        want = gradclip.clip_by_value(here, *bounds)
        for got in (gradclip.clip_by_value(gpu, *bounds), (gpu, gradclip.clip_by_value_(gpu, *bounds))):
            assert_same_bits(want[0], got[0])
            assert_same_report(want[1], got[1])
            assert repr(want[1]) == repr(got[1])
        mixed = [here[0].copy(), *there(cupy, here[1:])]  # one lies on the host
        assert repr(want[1]) == repr(gradclip.clip_by_value_(mixed, *bounds))
        assert_same_bits(want[0][1:], mixed[1:])
        assert mixed[0].tobytes() == want[0][0].tobytes()


SHAPES = [(40, 300), (300, 40), (3000, 5), (64, 4), (7, 3, 5, 5), (90,), (), (0, 4), (2, 3000)]


@pytest.mark.parametrize("unit_axis", [0, -1])
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_adaptive(cupy, dtype, unit_axis):
    here = [gradient(dtype, math.prod(s)).reshape(s) for s in SHAPES]
    params = [gradient(np.float32, math.prod(s), seed=1).reshape(s) for s in SHAPES]
    params[1][0] = np.inf
    gpu, weights = there(cupy, here), there(cupy, params)
    for policy in ("raise", "zero"):
        want = gradclip.clip_adaptive(here, params, 0.1, unit_axis=unit_axis, nonfinite=policy)
        got = gradclip.clip_adaptive(gpu, weights, 0.1, unit_axis=unit_axis, nonfinite=policy)
        assert_same_bits(want[0], got[0])
        assert_same_report(want[1], got[1])
    want = gradclip.clip_adaptive_(here, params, 0.1, unit_axis=unit_axis)
    got = gradclip.clip_adaptive_(gpu, weights, 0.1, unit_axis=unit_axis)
    assert_same_bits(here, gpu)
    assert_same_report(want, got)


@pytest.mark.parametrize(
    ("factor", "unit_axis"), [({"3": 0.1, "[04]": 0.02}, 0), ([0.1, 0.2, 0.3, 0.4, 0.5, 0.01, 0.02, 0.03, 0.04], (-1, 0))]
)
def test_adaptive_by_leaf(cupy, factor, unit_axis):
    here = [gradient(np.float32, math.prod(s)).reshape(s) for s in SHAPES]
    params = [gradient(np.float32, math.prod(s), seed=1).reshape(s) for s in SHAPES]
    gpu, weights = there(cupy, here), there(cupy, params)
    want = gradclip.clip_adaptive_(here, params, factor, unit_axis=unit_axis)
    got = gradclip.clip_adaptive_(gpu, weights, factor, unit_axis=unit_axis)
    assert_same_bits(here, gpu)
    assert_same_report(want, got)
    assert want.clipped


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 1), (0, 2), (1, 2)])
def test_slices(cupy, axis):
    here = [
        gradient(np.float32, 3 * 50 * 40).reshape(3, 50, 40),
        gradient(np.float64, 600).reshape(2, 3, 100).transpose(2, 0, 1),
    ]
    gpu = there(cupy, here)
    assert_same_report(gradclip.clip_by_norm_(here, 3.0, axis=axis), gradclip.clip_by_norm_(gpu, 3.0, axis=axis))
    assert_same_bits(here, gpu)


@pytest.mark.parametrize("options", [o for o in OPTIONS if "strict" not in o], ids=str)
@pytest.mark.parametrize("bad", [False, True])
def test_per_sample(cupy, options, bad):
    here = batch()
    if bad:
        here["b"][0][3, 1, 2], here["c"][7] = np.nan, np.inf
        if "nonfinite" not in options:
            return
    gpu = there(cupy, here)
    for fused in (gradclip.clip_per_sample, gradclip.per_sample_clip_sum):
        want, report = fused(here, 15.0, **options)
        got, told = fused(gpu, 15.0, **options)
        assert_same_bits(want, got)
        assert_same_report(report, told)
        assert bad or 0 < told.clipped_count < told.size or "grad_scale" in options or "ord" in options
    want, got = gradclip.clip_per_sample_(here, 15.0, **options), gradclip.clip_per_sample_(gpu, 15.0, **options)
    assert_same_bits(here, gpu)
    assert_same_report(want, got)


@pytest.mark.parametrize("dtype", [*REAL, np.dtype(np.complex64)], ids=str)
def test_per_sample_sums_of_dtypes(cupy, dtype):
    here = [gradient(np.float32, 12 * 700).reshape(12, 700).astype(dtype)]
    gpu = there(cupy, here)
    wide = np.complex128 if dtype.kind == "c" else np.float64
    for out in (None, [np.ones(700, wide)]):
        there_out = None if out is None else there(cupy, out)
        want, report = gradclip.per_sample_clip_sum(here, 20.0, out=out)
        for policy in ("raise", "skip"):
            got, told = gradclip.per_sample_clip_sum(gpu, 20.0, out=there_out, nonfinite=policy)
            assert_same_bits(want, got)
            assert_same_report(report, told)
    assert [a.shape for a in flat(gradclip.per_sample_clip_sum(there(cupy, [np.ones((0, 3))]), 1.0)[0])] == [(3,)]
    assert flat(gradclip.per_sample_clip_sum(there(cupy, [np.ones((0, 3))]), 1.0)[0])[0].tolist() == [0, 0, 0]
    for ord in (0.3, 2):
        sums, _ = gradclip.per_sample_clip_sum(on_gpu(cupy, np.ones((2, 1))), sys.float_info.max, ord=ord, nonfinite="skip")
        assert flat(sums)[0].tolist() == [2.0]


@pytest.mark.parametrize("options", [{}, {"ord": 1}, {"ord": 3}, {"grad_scale": 2.0**-20}], ids=str)
@pytest.mark.parametrize(("dtype", "out"), [(np.float32, np.float16), (np.float64, np.float32), (np.complex128, np.complex64)])
def test_samples_that_the_sum_cannot_hold(cupy, dtype, out, options):
    top = float(np.finfo(dtype).max) / 8
    here = [np.array([[top, 2.0, 3.0], [4.0, 5.0, -6.0], [7e4, top / 1e3, 1.0]]).astype(dtype), np.ones(3, dtype)]
    here[1][1] = 1e5
    to = [np.zeros(3, out), np.zeros((), out)]
    want, report = gradclip.per_sample_clip_sum(here, 1e300, out=to, **options)
    assert np.isfinite(want[0]).all()
    assert report.clipped
    for policy in ("raise", "skip"):
        gpu, there_to = there(cupy, here), there(cupy, [np.ones(3, out), np.ones((), out)])
        before = waits(cupy)
        got, told = gradclip.per_sample_clip_sum(gpu, 1e300, out=there_to, nonfinite=policy, **options)
        assert policy == "raise" or waits(cupy) == before
        assert_same_bits(want, got)
        assert_same_report(report, told)


def test_sums_overflow_only_where_their_value_does(cupy):
    top = sys.float_info.max
    here = np.array([[1.3e308, top, top, -top, 1.0], [1.27e308, top, 1.0, -top, 2.0], [-0.97e308, -top, top, top, 3.0]])
    for samples in (here, np.asfortranarray(here)):
        want, _ = gradclip.per_sample_clip_sum(samples, math.inf)
        assert want.tolist() == [1.3e308 + (1.27e308 - 0.97e308), top, math.inf, -top, 6.0]
        for policy in ("raise", "skip"):
            got, _ = gradclip.per_sample_clip_sum(there(cupy, [samples]), math.inf, nonfinite=policy)
            assert_same_bits([want], got)


def test_the_sum_of_samples_that_are_numbers_is_a_number(cupy):
    here = [np.array([3.0, -0.5, 2.0])]
    want, report = gradclip.per_sample_clip_sum(here, 1.0)
    sums, told = gradclip.per_sample_clip_sum(there(cupy, here), 1.0)
    assert [sums[0].shape, want[0].shape] == [(), ()]
    assert_same_bits(want, sums)
    assert_same_report(report, told)


def test_a_sample_at_the_threshold(cupy):
    """What is raised for is decided here, exactly; what stays on the GPU is clipped when it is too close to tell."""
    gpu = there(cupy, [np.array([[3.0, 4.0], [6.0, 8.0]])])
    sums, report = gradclip.per_sample_clip_sum(gpu, 5.0)
    assert report.clipped_count == 1
    assert flat(sums)[0].tolist() == pytest.approx([6.0, 8.0], rel=1e-12)
    _, report = gradclip.per_sample_clip_sum(gpu, 5.0, nonfinite="skip")
    assert report.clipped_count == 2
    assert report.scale < 0.5


@pytest.mark.parametrize(
    "pair", [("float32", "float32"), ("float16", "float16"), ("float32", "float16"), ("float64", "float32")]
)
def test_sgd_step(cupy, pair):
    of = [gradient(np.dtype(pair[0]), n, seed=1) for n in (3000, 40)]
    g = [gradient(np.dtype(pair[1]), n) for n in (3000, 40)]
    for options in ({}, {"grad_scale": 8.0}, {"nonfinite": "zero"}, {"nonfinite": "skip"}, {"strict": True}):
        here, gpu, grads = copy.deepcopy(of), there(cupy, of), copy.deepcopy(g)
        if "nonfinite" in options:
            grads[1][3] = np.nan
        moved = there(cupy, grads)
        want = gradclip.sgd_step_(here, grads, 0.1, 2.0, **options)
        got = gradclip.sgd_step_(gpu, moved, 0.1, 2.0, **options)
        assert_same_bits(here, gpu)
        assert_same_report(want, got)
        assert_same_bits(grads, moved)


def test_measure_and_apply(cupy):
    here, gpu = model(), there(cupy, model())
    for ord in (2, 1, math.inf):
        want, got = gradclip.measure(here, ord=ord), gradclip.measure(gpu, ord=ord)
        assert (want.norm, want.size, want.max_abs) == (got.norm, got.size, got.max_abs)
        assert want.norms.tolist() == got.norms.tolist()
        both = got + gradclip.measure(here, ord=ord)
        assert both.norm == (want + want).norm
    assert_same_report(
        gradclip.apply_clip_(here, both, 2.0, strict=True),
        gradclip.apply_clip_(gpu, both, 2.0, strict=True),
    )
    assert_same_bits(here, gpu)


def test_numpy_and_cupy_leaves_in_one_call(cupy):
    here, mixed = model(), model()
    mixed["big"] = on_gpu(cupy, mixed["big"])
    mixed["layers"][0] = there(cupy, mixed["layers"][0])
    for call in CALLS.values():
        a, b = copy.deepcopy(here), {**mixed, "layers": list(mixed["layers"])}
        b["big"] = on_gpu(cupy, here["big"])
        b["layers"][0], b["layers"][2] = there(cupy, here["layers"][0]), copy.deepcopy(here["layers"][2])
        b["rest"] = copy.deepcopy(here["rest"])
        want, got = call(a), call(b)
        assert_same_bits(a, b)
        assert_same_report(want, got)
    b["layers"][0].weight.fill(math.nan)
    b["layers"][2].bias[0] = math.inf
    told = gradclip.clip_by_global_norm_(b, 1.0, nonfinite="skip")
    assert (told.first_nonfinite, told.nonfinite) == (("layers/0/weight", 0), 5001)
    want, _ = gradclip.per_sample_clip_sum(batch(), 15.0)
    samples = batch()
    samples["b"][0] = on_gpu(cupy, samples["b"][0])
    got, _ = gradclip.per_sample_clip_sum(samples, 15.0)
    assert_same_bits(want, got)


def test_the_largest_magnitude_is_not_the_largest_part(cupy):
    """Below the end of float64's range a modulus needs no exponent, or it would outrank what is larger."""
    a = np.array([1.7e308 + 0j, 5e307 + 1j])
    assert gradclip.global_norm(on_gpu(cupy, a), math.inf) == 1.7e308
    mixed = [np.array([1.79e308]), np.array([4.6e307 + 1j])]
    gpu = there(cupy, mixed)
    gradclip.clip_by_global_norm_(gpu, 1.0, ord=math.inf, nonfinite="skip")
    assert host(gpu[0]).tolist() == pytest.approx([1.0])
    beyond = on_gpu(cupy, np.array([1.7e308 + 1.7e308j, 3.0]))
    report = gradclip.clip_by_global_norm_(beyond, 1.0, ord=math.inf, nonfinite="skip")
    assert (report.norm, report.clipped) == (math.inf, True)
    assert abs(host(beyond)[0]) == pytest.approx(1.0)


def test_rows_that_are_not_aligned_to_a_pack(cupy):
    for dtype in REAL:
        here = [gradient(dtype, 30 * 1001).reshape(30, 1001), gradient(dtype, 5001)[1:]]
        gpu = there(cupy, here)
        assert_same_report(gradclip.clip_by_norm_(here, 20.0, axis=-1), gradclip.clip_by_norm_(gpu, 20.0, axis=-1))
        assert_same_bits(here, gpu)
        assert_same_report(gradclip.clip_by_value_(here, 0.5), gradclip.clip_by_value_(gpu, 0.5))
        assert_same_bits(here, gpu)


def test_a_threshold_of_0_lets_no_tiny_sample_through(cupy):
    samples = np.array([[1e-300, 0.0], [3.0, 4.0]])
    for policy in ("raise", "skip", "zero"):
        sums, _ = gradclip.per_sample_clip_sum(on_gpu(cupy, samples), 0.0, nonfinite=policy)
        assert host(sums).tolist() == [0.0, 0.0]


def test_an_empty_leaf_beside_one_that_is_clipped(cupy):
    for call in (
        lambda g: gradclip.clip_per_sample_(g, 1.0),
        lambda g: gradclip.clip_by_norm_(g, 1.0, axis=1),
        lambda g: gradclip.clip_by_norm_(g, 1.0, axis=0),
        lambda g: gradclip.clip_by_value_(g, 0.5),
        lambda g: gradclip.clip_by_global_norm_(g, 1.0),
    ):
        leaves = [np.ones((5, 3), np.float32), np.ones((5, 0), np.float32)]
        gpu = there(cupy, leaves)
        assert_same_report(call(leaves), call(gpu))
        assert_same_bits(leaves, gpu)


def test_empty_gradients(cupy):
    for tree in ([on_gpu(cupy, np.ones(0))], {"a": on_gpu(cupy, np.ones((3, 0))), "b": None}):
        report = gradclip.clip_by_global_norm_(tree, 1.0)
        assert (report.norm, report.clipped, report.nonfinite) == (0.0, False, 0)
        assert gradclip.clip_by_norm(tree, 1.0)[1].norms.tolist() == [0.0]


@pytest.mark.parametrize("devices", [1, 2])
def test_norms_in_the_middle_between_two_float64(cupy, devices):
    """Where the host waits anyway, the norm is the correctly rounded one, and decides."""
    rng = np.random.default_rng(3)
    for x in rng.standard_normal(20):
        here = [np.full(20, x), np.full(16, x)]
        norm = rounded_norm(here)
        assert gradclip.global_norm(across(cupy, devices, here)) == norm
        assert gradclip.measure(across(cupy, devices, here)).norm == norm
        for threshold in (math.nextafter(norm, 0.0), norm, math.nextafter(norm, 1e9)):
            gpu = across(cupy, devices, here)
            report = gradclip.clip_by_global_norm_(gpu, threshold)
            assert report.clipped is (norm > threshold)
            assert report.norm == norm
            assert_same_bits(gradclip.clip_by_global_norm(here, threshold)[0], gpu)
        samples = [np.full((2, 20), x), np.full((2, 16), x)]
        summed = gradclip.per_sample_clip_sum(across(cupy, devices, samples), norm)[1]
        assert summed.norms.tolist() == [norm, norm]


@pytest.mark.parametrize("put", ["nothing", "nan", "inf", "tiny", "huge"])
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_leaves_of_whole_tiles(cupy, dtype, put):
    """Real and imaginary parts are summed as real elements are, and one modulus is computed for each thread."""
    rng = np.random.default_rng(5)
    z = (rng.standard_normal(20_001) + 1j * rng.standard_normal(20_001)).astype(dtype)
    z[12_345] = 6 - 7j
    far = 1e-30 if dtype == "complex64" else 1e-200
    z[[3, 9_999]] = {"nothing": 0, "nan": complex(1, np.nan), "inf": complex(-np.inf, 2), "tiny": far, "huge": 1 / far}[put]
    for policy in ("zero", "propagate"):
        want, report = gradclip.clip_by_global_norm(z, 1.0, nonfinite=policy)
        g = there(cupy, z)
        found = gradclip.clip_by_global_norm_(g, 1.0, nonfinite=policy)
        assert host(g).tobytes() == want.tobytes()
        assert np.float64(found.norm).tobytes() == np.float64(report.norm).tobytes()
        assert found.nonfinite == report.nonfinite
        assert found.first_nonfinite == report.first_nonfinite
        assert found.max_abs == pytest.approx(report.max_abs, rel=2.0**-52, abs=0, nan_ok=True)
