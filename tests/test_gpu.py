"""CuPy leaves: the same written bits and the same report as NumPy leaves, function by function; and nothing waited for.

Without a GPU the kernels run on the processor (fake_cupy.py): what is tested then is the arithmetic, the tables and all
that Python does, not the device."""

import copy
import gc
import math
import pickle
import signal
import sys
import weakref
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from reference import BFLOAT16, COMPLEX, REAL, gradient, layouts, norm_error, power_sum

import gradclip

MOST = Fraction(np.finfo(np.float64).max)
Layer = namedtuple("Layer", "weight bias")


def on_gpu(cupy, array):
    """A copy with the same strides and the same place in its memory."""
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    if array.size == 0 or base.nbytes == 0:
        return cupy.asarray(array)
    low = np.lib.array_utils.byte_bounds(base)[0]
    memory = cupy.asarray(np.frombuffer(base.tobytes("A"), np.uint8))
    offset = array.__array_interface__["data"][0] - low if array.dtype != BFLOAT16 else array.ctypes.data - low
    if hasattr(memory, "_host"):
        return type(memory)(np.ndarray(array.shape, array.dtype, memory._host, offset, array.strides), memory._device)
    return cupy.ndarray(array.shape, array.dtype, memory.data + offset, array.strides)


def there(cupy, tree):
    """The same nesting on the GPU."""
    if isinstance(tree, np.ndarray):
        return on_gpu(cupy, tree)
    if isinstance(tree, dict):
        return {k: there(cupy, v) for k, v in tree.items()}
    if isinstance(tree, tuple):
        return Layer(*(there(cupy, v) for v in tree))
    return [there(cupy, v) for v in tree] if isinstance(tree, list) else tree


def flat(tree):
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        return [leaf for v in tree for leaf in flat(v)]
    return [] if tree is None else [host(tree)]


def host(leaf):
    """A copy of a leaf, without counting as a wait."""
    if hasattr(leaf, "_host"):
        return leaf._host.copy()
    return leaf.get() if hasattr(leaf, "get") else np.asarray(leaf)


def same_bits(a, b):
    assert [x.dtype for x in flat(a)] == [y.dtype for y in flat(b)]
    for x, y in zip(map(np.ascontiguousarray, flat(a)), map(np.ascontiguousarray, flat(b)), strict=True):
        nan = np.isnan(x)  # whose payloads are nobody's business
        assert (nan == np.isnan(y)).all()
        assert np.where(nan, 0, x).astype(x.dtype).tobytes() == np.where(nan, 0, y).astype(y.dtype).tobytes()


def same_report(a, b):
    for name in ("norm", "max_norm", "scale", "max_abs"):
        np.testing.assert_equal(getattr(a, name), getattr(b, name), name)
    for name in ("clipped", "skipped", "nonfinite", "first_nonfinite", "clipped_count", "size"):
        assert getattr(a, name) == getattr(b, name), name
    np.testing.assert_array_equal(a.norms, b.norms)
    np.testing.assert_array_equal(a.scales, b.scales)
    assert float(pickle.loads(pickle.dumps(b))) == float(b) or math.isnan(float(b))


def model(dtype=np.float32, seed=0):
    """A nesting of contiguous and strided leaves, one of more than one segment, an empty one and a 0-d one."""
    g = [gradient(dtype, n, seed=seed) for n in (5000, 33, 600, 40_000, 0, 1)]
    return {
        "layers": [
            Layer(g[0].reshape(50, 100), g[1]),
            None,
            Layer(g[2].reshape(20, 30).T, gradient(dtype, 4000, seed=seed + 7)[::7]),
        ],
        "big": g[3],
        "rest": [g[4], g[5].reshape(())],
    }


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
    same_bits(here, gpu)
    same_report(want, got)


@pytest.mark.parametrize("dtype", REAL + COMPLEX, ids=str)
@pytest.mark.parametrize("kind", ["normal", "lognormal", "tiny", "huge", "wide", "zeros"])
@pytest.mark.parametrize("size", [1, 7, 300, 40_000])
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
    same_report(gradclip.clip_by_global_norm_(here, 1e-3), gradclip.clip_by_global_norm_(gpu, 1e-3, nonfinite="skip"))
    same_bits(here, gpu)


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
        same_bits([out], [want])
        gradclip.clip_by_global_norm_(gpu, 0.5)
        same_bits([gpu], [want])
        bad = view.copy(order="K")
        bad[(bad.ndim > 1,) * bad.ndim if bad.ndim > 1 else 5] = np.nan
        bad[(-1,) * bad.ndim] = np.inf
        for first in ("zero", "propagate", "skip"):
            moved = on_gpu(cupy, bad)
            want = gradclip.clip_by_global_norm(bad, 0.5, nonfinite=first)
            got = gradclip.clip_by_global_norm(moved, 0.5, nonfinite=first)
            same_report(want[1], got[1])
            same_bits([want[0]], [got[0]])


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
    same_bits(here, gpu)
    same_report(want, got)
    assert got.first_nonfinite == ("layers/0/bias", 7)


def test_raise_writes_nothing(cupy):
    here = model()
    here["big"][30_000] = -np.inf
    gpu = there(cupy, here)
    for call in CALLS.values():
        with pytest.raises(gradclip.NonFiniteGradientError, match="big: -inf at flat index 30000"):
            call(gpu)
    same_bits(here, gpu)


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
    same_bits(want, got)
    same_report(report, told)
    same_bits(here, gpu)
    assert type(got["big"]) is cupy.ndarray
    assert isinstance(got["layers"][0], Layer)
    out = there(cupy, copy.deepcopy(here))
    assert FUNCTIONAL[call](gpu, out=out)[0] is out
    same_bits(want, out)
    FUNCTIONAL[call](gpu, out=gpu)
    same_bits(want, gpu)


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_clip_by_value(cupy, dtype):
    here = [gradient(dtype, 3000), gradient(dtype, 40).reshape(5, 8)[:, ::2], np.zeros(4, dtype)]
    here[0][5], here[0][9] = np.nan, np.inf
    gpu = there(cupy, here)
    for bounds in ((1.0,), (-0.1, 0.05), (2e9,)):
        want, got = gradclip.clip_by_value_(here, *bounds), gradclip.clip_by_value_(gpu, *bounds)
        same_bits(here, gpu)
        same_report(want, got)


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
        same_bits(want[0], got[0])
        same_report(want[1], got[1])
    want = gradclip.clip_adaptive_(here, params, 0.1, unit_axis=unit_axis)
    got = gradclip.clip_adaptive_(gpu, weights, 0.1, unit_axis=unit_axis)
    same_bits(here, gpu)
    same_report(want, got)


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 1), (0, 2), (1, 2)])
def test_slices(cupy, axis):
    here = [
        gradient(np.float32, 3 * 50 * 40).reshape(3, 50, 40),
        gradient(np.float64, 600).reshape(2, 3, 100).transpose(2, 0, 1),
    ]
    gpu = there(cupy, here)
    same_report(gradclip.clip_by_norm_(here, 3.0, axis=axis), gradclip.clip_by_norm_(gpu, 3.0, axis=axis))
    same_bits(here, gpu)


def batch(dtype=np.float32):
    g = [gradient(dtype, 12 * n).reshape(12, n) for n in (3, 500, 40)]
    g = [(a * (1 + np.arange(12))[:, None] / 12).astype(dtype) for a in g]
    return {"a": g[0], "b": [g[1].reshape(12, 20, 25), g[2][:, ::2]], "c": g[0][:, 0] * 2}


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
        same_bits(want, got)
        same_report(report, told)
        assert bad or 0 < told.clipped_count < told.size or "grad_scale" in options or "ord" in options
    want, got = gradclip.clip_per_sample_(here, 15.0, **options), gradclip.clip_per_sample_(gpu, 15.0, **options)
    same_bits(here, gpu)
    same_report(want, got)


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
            same_bits(want, got)
            same_report(report, told)
    assert [a.shape for a in flat(gradclip.per_sample_clip_sum(there(cupy, [np.ones((0, 3))]), 1.0)[0])] == [(3,)]
    assert flat(gradclip.per_sample_clip_sum(there(cupy, [np.ones((0, 3))]), 1.0)[0])[0].tolist() == [0, 0, 0]


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
        same_bits(here, gpu)
        same_report(want, got)
        same_bits(grads, moved)


def test_measure_and_apply(cupy):
    here, gpu = model(), there(cupy, model())
    for ord in (2, 1, math.inf):
        want, got = gradclip.measure(here, ord=ord), gradclip.measure(gpu, ord=ord)
        assert (want.norm, want.size, want.max_abs) == (got.norm, got.size, got.max_abs)
        assert want.norms.tolist() == got.norms.tolist()
        both = got + gradclip.measure(here, ord=ord)
        assert both.norm == (want + want).norm
    same_report(
        gradclip.apply_clip_(here, both, 2.0, strict=True),
        gradclip.apply_clip_(gpu, both, 2.0, strict=True),
    )
    same_bits(here, gpu)


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
        same_bits(a, b)
        same_report(want, got)
    b["layers"][0].weight.fill(math.nan)
    b["layers"][2].bias[0] = math.inf
    told = gradclip.clip_by_global_norm_(b, 1.0, nonfinite="skip")
    assert (told.first_nonfinite, told.nonfinite) == (("layers/0/weight", 0), 5001)
    want, _ = gradclip.per_sample_clip_sum(batch(), 15.0)
    samples = batch()
    samples["b"][0] = on_gpu(cupy, samples["b"][0])
    got, _ = gradclip.per_sample_clip_sum(samples, 15.0)
    same_bits(want, got)


def test_several_devices(cupy):
    if not hasattr(cupy, "waits") and cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one GPU")
    here = [gradient(np.float32, n) for n in (500, 70, 900)]
    gpu = []
    for device, a in zip((1, 0, 1), here, strict=True):
        with cupy.cuda.Device(device):
            gpu.append(cupy.asarray(a))
    for options in ({}, {"nonfinite": "skip"}):
        want, got = gradclip.clip_by_global_norm(here, 1.0, **options), gradclip.clip_by_global_norm(gpu, 1.0, **options)
        same_bits(want[0], got[0])
        same_report(want[1], got[1])
        assert [a.data.device_id for a in got[0]] == [1, 0, 1]
    with pytest.raises(ValueError, match="0: grads and out lie on different devices"):
        gradclip.clip_by_global_norm(gpu, 1.0, out=[cupy.asarray(a) for a in here])


@pytest.mark.parametrize("policy", ["skip", "zero", "propagate"])
def test_nothing_is_waited_for_until_the_report_is_read(cupy, policy):
    if not hasattr(cupy, "waits"):
        pytest.skip("waits are counted by the stand-in of CuPy")
    g, params, samples = there(cupy, model()), there(cupy, model(seed=1)), there(cupy, batch())
    before = cupy.waits
    reports = [
        gradclip.clip_by_global_norm_(g, 1.0, nonfinite=policy),
        gradclip.clip_by_global_norm(g, 0.5, nonfinite=policy)[1],
        gradclip.clip_by_norm_(g, 0.1, nonfinite=policy),
        gradclip.normalize_(g, nonfinite=policy),
        gradclip.clip_adaptive_(g, params, 1e-6, nonfinite=policy),
        gradclip.clip_per_sample_(samples, 1.0, nonfinite=policy),
        gradclip.per_sample_clip_sum(samples, 1.0, nonfinite=policy)[1],
        gradclip.sgd_step_(params, g, 0.1, 1e-9, nonfinite=policy),
        gradclip.clip_by_value_(g, 1e-12),
    ]
    assert cupy.waits == before
    assert [report.clipped for report in reports] == [True] * len(reports)
    assert cupy.waits > before


def test_raise_waits_for_the_total_alone(cupy):
    if not hasattr(cupy, "waits"):
        pytest.skip("waits are counted by the stand-in of CuPy")
    g = there(cupy, model())
    before = cupy.waits
    gradclip.clip_by_global_norm_(g, 1.0)
    assert cupy.waits == before + 1


def test_tables_are_kept_from_step_to_step(cupy):
    from gradclip._gpu import table

    g = there(cupy, model())
    gradclip.clip_by_global_norm_(g, 1.0)
    before = len(table._tables.found)
    gradclip.clip_by_global_norm_(g, 1.0)
    assert len(table._tables.found) == before
    for n in range(2 * table._tables.most):
        gradclip.global_norm(there(cupy, [np.ones(n + 1)]))
    assert len(table._tables.found) == table._tables.most


def test_graph_capture(cupy):
    """A call that was made before copies nothing, and what it writes to besides the leaves is never given away."""
    if not hasattr(cupy, "waits"):
        pytest.skip("done with the stand-in of CuPy, which has a stream to be set")
    from gradclip._gpu import program

    g, h = there(cupy, model()), there(cupy, model(seed=3))
    calls = [
        lambda g: gradclip.clip_by_global_norm_(g, 1.0, nonfinite="zero"),
        lambda g: gradclip.clip_by_norm_(g, {"big": 1.0, "*": 2.0}, nonfinite="skip"),
        lambda g: gradclip.clip_by_value_(g, 0.1),
    ]
    for call in calls:
        call(g)
    before = len(program._captured), cupy.waits
    cupy.stream.capturing = True
    try:
        for call in calls:
            call(g)
        assert len(program._captured) == before[0] + 15
        assert cupy.waits == before[1]
        with pytest.raises(RuntimeError, match="make the same call once before"):
            gradclip.clip_by_global_norm_(h, 1.0, nonfinite="skip")
    finally:
        cupy.stream.capturing = False


def test_bad_leaves(cupy):
    a = on_gpu(cupy, np.ones(10, np.float32))
    for bad in (np.ones(3, np.int32), np.ones(3, bool), np.ones(3, np.uint8)):
        with pytest.raises(TypeError, match=r"1: dtype .* cannot be clipped"):
            gradclip.clip_by_global_norm_([a, cupy.asarray(bad)], 1.0)
    with pytest.raises(ValueError, match="0 and 1 share memory"):
        gradclip.clip_by_global_norm_([a, a[2:4]], 1.0)
    with pytest.raises(ValueError, match="0 and 1 share memory"):
        gradclip.clip_by_global_norm_([a[::2], a[4:]], 1.0)
    gradclip.clip_by_global_norm_([a[::2], a[1::2]], 1e9)
    with pytest.raises(ValueError, match="grads: grads has shape"):
        gradclip.clip_by_global_norm(a, 1.0, out=a[:3])
    with pytest.raises(ValueError, match="different devices"):
        gradclip.clip_by_global_norm(a, 1.0, out=np.ones(10, np.float32))
    with pytest.raises(ValueError, match="different devices"):
        gradclip.sgd_step_(np.ones(10, np.float32), a, 0.1)
    with pytest.raises(TypeError, match="complex numbers have no order"):
        gradclip.clip_by_value_(on_gpu(cupy, np.ones(3, np.complex64)), 1.0)
    assert host(a).tolist() == [1] * 10


def test_other_objects_with_memory_on_a_gpu(cupy):
    class Foreign:
        def __init__(self, array, read_only=False):
            self.array, self.read_only = array, read_only

        @property
        def __cuda_array_interface__(self):
            shown = dict(self.array.__cuda_array_interface__)
            return {**shown, "data": (shown["data"][0], self.read_only)}

    a = on_gpu(cupy, np.array([3.0, 4.0]))
    assert gradclip.clip_by_global_norm_({"w": Foreign(a)}, 1.0).norm == 5.0
    assert host(a).tolist() == [0.6000000000000001, 0.8]
    with pytest.raises(ValueError, match="w: read-only"):
        gradclip.clip_by_global_norm_({"w": Foreign(a, True)}, 1.0)
    assert gradclip.global_norm([Foreign(a, True)]) == 1.0


def test_memory_of_a_device_that_is_not_the_current_one(cupy):
    """CuPy's asarray would copy it."""
    if not hasattr(cupy, "waits") and cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one GPU")

    class Foreign:
        def __init__(self, array):
            self.__cuda_array_interface__ = array.__cuda_array_interface__

    with cupy.cuda.Device(1):
        a = cupy.asarray(np.array([3.0, 4.0]))
    gradclip.clip_by_global_norm_([Foreign(a)], 1.0, nonfinite="skip")
    assert host(a).tolist() == [0.6000000000000001, 0.8]


def test_elements_that_are_not_aligned_are_refused(cupy):
    memory = cupy.asarray(np.zeros(17, np.uint8))
    odd = memory[1:].view(np.float32)
    with pytest.raises(ValueError, match="grads: elements are not aligned"):
        gradclip.global_norm(odd)

    if hasattr(memory, "_host"):
        spaced = np.ndarray((2,), np.float32, memory._host, 0, (6,))
        if spaced.ctypes.data % 4 == 0:
            with pytest.raises(ValueError, match="grads: elements are not aligned"):
                gradclip.global_norm(type(memory)(spaced, 0))


def test_a_foreign_byte_order_is_refused(cupy):
    if not hasattr(cupy, "waits"):
        pytest.skip("CuPy makes no such array")
    with pytest.raises(TypeError, match="1: byte order"):
        gradclip.global_norm([on_gpu(cupy, np.ones(2)), on_gpu(cupy, np.ones(2, ">f4"))])


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


@pytest.fixture
def torch_tensor(cupy, monkeypatch):
    """A maker of what looks like a CUDA tensor, of a PyTorch that works in stream 77."""
    if not hasattr(cupy, "waits"):
        pytest.skip("done with the stand-in of CuPy")

    class Tensor:
        is_cuda, requires_grad, layout = True, False, "strided"
        detach = lambda self: self  # noqa: E731
        is_conj = is_neg = lambda self: False

        def __init__(self, *values):
            self.array = on_gpu(cupy, np.array(values))
            self.dtype, self.device = self.array.dtype, SimpleNamespace(index=0)
            self.__cuda_array_interface__ = self.array.__cuda_array_interface__

    Tensor.__module__ = "torch"
    module = ModuleType("torch")
    module.strided, module.bfloat16, module.from_dlpack = "strided", "bfloat16", lambda array: array
    module.cuda = SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=77))
    monkeypatch.setitem(sys.modules, "torch", module)
    return Tensor


def test_all_of_a_call_with_tensors_runs_in_pytorchs_stream(cupy, torch_tensor):
    t, skip = torch_tensor, {"nonfinite": "skip"}
    g = [t(3.0, 4.0)]
    calls = [
        lambda: gradclip.clip_by_global_norm_(g, 1.0, **skip),
        lambda: gradclip.clip_by_global_norm(g, 0.5, **skip)[1],
        lambda: gradclip.clip_by_global_norm(g, 0.5, strict=True)[1],
        lambda: gradclip.clip_by_value(g, 0.1)[1],
        lambda: gradclip.clip_adaptive_(g, [t(1.0, 1.0)], **skip),
        lambda: gradclip.clip_adaptive(there(cupy, [np.ones(2)]), [t(1.0, 1.0)], **skip)[1],
        lambda: gradclip.sgd_step_([t(1.0, 1.0)], g, 0.1, 1e-3, **skip),
        lambda: gradclip.per_sample_clip_sum(g, 1e-3, **skip)[1],
        lambda: gradclip.per_sample_clip_sum(g, 1e-3)[1],
    ]
    for call in calls:
        del cupy.launches[:], cupy.fetched_in[:]
        assert call().clipped
        assert {stream for _, stream in cupy.launches} == {77}
        assert {stream.ptr for stream in cupy.fetched_in} == {77}


def test_ctrl_c_leaves_nothing_half_done(cupy, monkeypatch):
    if not hasattr(cupy, "waits"):
        pytest.skip("done with the stand-in of CuPy")
    from gradclip._gpu.table import Table

    launch = Table.launch

    def interrupted(table, name, *args):
        launch(table, name, *args)
        if name == "write_leaves":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Table, "launch", interrupted)
    mixed = [np.array([3.0]), on_gpu(cupy, np.array([4.0]))]
    with cupy.cuda.Device(1):
        mixed.append(cupy.asarray(np.zeros(1)))
    with pytest.raises(KeyboardInterrupt):
        gradclip.clip_by_global_norm_(mixed, 1.0)
    assert [host(a).tolist() for a in mixed] == [[0.6000000000000001], [0.8], [0.0]]


def test_large_thresholds_are_not_kept(cupy):
    from gradclip._gpu import program

    rows = on_gpu(cupy, np.ones((2000, 2), np.float32))
    before = len(program._constants.found)
    params = on_gpu(cupy, np.ones((2000, 2), np.float32))
    gradclip.clip_adaptive_(rows, params, 0.1, nonfinite="skip")
    gradclip.clip_by_norm_([on_gpu(cupy, np.ones(1)) for _ in range(600)], [float(i) for i in range(600)], nonfinite="skip")
    assert len(program._constants.found) == before


def test_rows_that_are_not_aligned_to_a_pack(cupy):
    for dtype in REAL:
        here = [gradient(dtype, 30 * 1001).reshape(30, 1001), gradient(dtype, 5001)[1:]]
        gpu = there(cupy, here)
        same_report(gradclip.clip_by_norm_(here, 20.0, axis=-1), gradclip.clip_by_norm_(gpu, 20.0, axis=-1))
        same_bits(here, gpu)
        same_report(gradclip.clip_by_value_(here, 0.5), gradclip.clip_by_value_(gpu, 0.5))
        same_bits(here, gpu)


def test_a_threshold_of_0_lets_no_tiny_sample_through(cupy):
    samples = np.array([[1e-300, 0.0], [3.0, 4.0]])
    for policy in ("raise", "skip", "zero"):
        sums, _ = gradclip.per_sample_clip_sum(on_gpu(cupy, samples), 0.0, nonfinite=policy)
        assert host(sums).tolist() == [0.0, 0.0]


def test_a_report_is_fetched_in_the_stream_of_its_call(cupy):
    if not hasattr(cupy, "waits"):
        pytest.skip("streams are seen by the stand-in of CuPy")
    own = cupy.cuda.Stream(7)
    with own:
        report = gradclip.clip_by_global_norm_(there(cupy, model()), 1.0, nonfinite="skip")
    with cupy.cuda.Device(1):
        assert report.clipped
    assert cupy.fetched_in[-1] is own


def test_an_unread_report_keeps_no_leaf_alive_and_outlives_the_nesting(cupy):
    g = there(cupy, {"a": np.array([3.0, np.nan]), "b": [np.array([4.0]), None]})
    alive = weakref.ref(g["a"])
    report = gradclip.clip_by_global_norm_(g, 1.0, nonfinite="zero")
    adapted = gradclip.clip_adaptive_(g, there(cupy, {"a": np.ones(2), "b": [np.ones(1), None]}), 0.1, nonfinite="zero")
    g.clear()
    gc.collect()
    assert alive() is None
    assert (report.first_nonfinite, report.nonfinite, report.norms.tolist()) == (("a", 1), 1, [3.0, 4.0])
    assert adapted.norms.tolist() == [0.6000000000000001, 0.8]


def test_a_report_read_by_several_threads(cupy):
    for _ in range(5):
        report = gradclip.clip_by_global_norm_(on_gpu(cupy, np.full(9, 5.0)), 1.0, nonfinite="skip")
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _, r=report: (r.norm, r.clipped), range(8))) == {(15.0, True)}


def test_nothing_is_written_when_a_device_has_no_room(cupy, monkeypatch):
    if not hasattr(cupy, "waits"):
        pytest.skip("done with the stand-in of CuPy, which has two devices")
    from gradclip._gpu import program

    gpu = []
    for device in (0, 1):
        with cupy.cuda.Device(device):
            gpu.append(cupy.asarray(np.full(4, 5.0)))
    upload = program.Place.upload

    def full(place, array):
        if place.device == 1 and array.shape == (1, 6):  # a Write
            raise MemoryError
        return upload(place, array)

    monkeypatch.setattr(program.Place, "upload", full)
    with pytest.raises(MemoryError):
        gradclip.clip_by_global_norm_(gpu, 1.0)
    assert [host(a).tolist() for a in gpu] == [[5.0] * 4] * 2


def test_empty_gradients(cupy):
    for tree in ([on_gpu(cupy, np.ones(0))], {"a": on_gpu(cupy, np.ones((3, 0))), "b": None}):
        report = gradclip.clip_by_global_norm_(tree, 1.0)
        assert (report.norm, report.clipped, report.nonfinite) == (0.0, False, 0)
        assert gradclip.clip_by_norm(tree, 1.0)[1].norms.tolist() == [0.0]
