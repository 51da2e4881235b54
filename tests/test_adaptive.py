"""clip_adaptive: units against their own parameters, in exact arithmetic and beside the methods it is known by."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import REAL, element_error, gradient, power_sum, snapshot

import gradclip

# What a float64 bound (a root, a product) and a factor (a root, a quotient) may round to, squared.
NEAR = Fraction(1, 2**49)


def units(array, axis):
    """The elements of each unit."""
    if array.ndim < 2:
        return [array.ravel()]
    return [unit.ravel() for unit in np.moveaxis(array, axis, 0)]


def check(before, after, params, factor, eps, axis, scales):
    """Every unit of one leaf by the formula, its squares as fractions."""
    assert len(units(before, axis)) == len(scales)
    for g, written, w, scale in zip(units(before, axis), units(after, axis), units(params, axis), scales, strict=True):
        bound = Fraction(factor) ** 2 * max(power_sum([w]), Fraction(eps) ** 2)
        total = power_sum([g])
        if total <= bound * (1 - NEAR):
            assert scale == 1.0
        elif total > bound * (1 + NEAR):
            assert abs(Fraction(scale) ** 2 * total - bound) <= NEAR * bound
        assert element_error(written, g, scale) <= (0.501 if scale != 1 else 0.0)


@settings(max_examples=80, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=0, max_size=4),
    dtypes=st.tuples(st.sampled_from(REAL), st.sampled_from(REAL)),
    axis=st.integers(-4, 3),
    factor=st.floats(1e-3, 10),
    eps=st.sampled_from([0.0, 1e-3, 5.0]),
    order=st.sampled_from("CF"),
    flip=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_formula_in_exact_arithmetic(shape, dtypes, axis, factor, eps, order, flip, seed):
    axis = axis % len(shape) if shape else 0
    grads = gradient(dtypes[0], math.prod(shape), seed=seed).reshape(shape, order=order)
    params = gradient(dtypes[1], math.prod(shape), seed=seed + 100).reshape(shape)
    if flip:
        grads, params = grads[..., ::-1] if shape else grads, params[::-1] if shape else params
    clipped, report = gradclip.clip_adaptive(grads, params, factor, eps=eps, unit_axis=axis)
    check(grads, clipped, params, factor, eps, axis, report.scales)
    there = grads.copy()
    gradclip.clip_adaptive_([there], [params], factor, eps=eps, unit_axis=axis - grads.ndim)
    assert there.tobytes() == clipped.tobytes()


@pytest.mark.slow
def test_large_units_and_their_report():
    grads = {"rows": gradient(np.float32, 12 * 70_000).reshape(12, -1), "columns": gradient(np.float32, 9000).reshape(30, 300)}
    params = {k: gradient(np.float64, v.size, seed=3).reshape(v.shape) for k, v in grads.items()}
    for axis in (0, 1):
        clipped, report = gradclip.clip_adaptive(grads, params, 0.9, unit_axis=axis)
        counts = [v.shape[axis] for v in grads.values()]
        assert (report.size, len(report.norms), report.max_norm) == (sum(counts), sum(counts), 0.9)
        if axis == 0:
            check(grads["rows"][3:4], clipped["rows"][3:4], params["rows"][3:4], 0.9, 1e-3, 0, report.scales[3:4])
        check(grads["columns"], clipped["columns"], params["columns"], 0.9, 1e-3, axis, report.scales[counts[0] :])
        assert report.clipped_count == (report.scales < 1).sum() > 0
        assert report.scale == report.scales.min()
        assert report.norm == gradclip.global_norm(grads)
        exact = math.sqrt(math.fsum(np.square(grads["columns"].astype(float)).take(5, axis)))
        assert report.norms[counts[0] + 5] == pytest.approx(exact, rel=1e-15)


def test_convolutions_of_both_layouts_give_the_same_bits():
    oihw, params = (
        gradient(np.float32, 5 * 3 * 7 * 7).reshape(5, 3, 7, 7),
        gradient(np.float32, 735, seed=1).reshape(5, 3, 7, 7),
    )
    hwio = np.ascontiguousarray(oihw.transpose(2, 3, 1, 0))
    report = gradclip.clip_adaptive_(oihw, params, 0.5)
    other = gradclip.clip_adaptive_(hwio, np.ascontiguousarray(params.transpose(2, 3, 1, 0)), 0.5, unit_axis=-1)
    assert report.scales.tolist() == other.scales.tolist()
    assert (len(report.scales), report.clipped) == (5, True)
    assert np.ascontiguousarray(hwio.transpose(3, 2, 0, 1)).tobytes() == oihw.tobytes()


def test_small_and_empty_leaves():
    grads = [np.array(3.0), np.full(4, 2.0), np.zeros((0, 3)), np.zeros((3, 0)), None, np.ones((1, 4))]
    params = [np.array(100.0), np.full(4, 50.0), np.zeros((0, 3)), np.zeros((3, 0)), np.ones(9), np.zeros((1, 4))]
    report = gradclip.clip_adaptive_(grads, params)
    assert [g.tolist() for g in grads[:2]] == [1.0, [0.5] * 4]
    assert report.norms.tolist() == [3.0, 4.0, 0.0, 0.0, 0.0, 2.0]
    assert report.scales.tolist() == [1 / 3, 0.25, 1.0, 1.0, 1.0, 5e-6]
    assert gradclip.clip_adaptive_([], []).size == 0
    assert gradclip.clip_adaptive(np.ones((4, 2)), np.ones((4, 2)), unit_axis=1)[1].size == 2


def test_params_are_only_read():
    grads, params = gradient(np.float32, 60).reshape(6, 10), gradient(np.float16, 60, seed=1).reshape(6, 10)
    params.flags.writeable = False
    assert gradclip.clip_adaptive_(grads, params).clipped
    same = gradient(np.float32, 60).reshape(6, 10)
    before = same.copy()
    report = gradclip.clip_adaptive_(same, same, 0.25)
    assert np.allclose(report.scales, 0.25, rtol=1e-15)
    assert (same == before / 4).all()
    out = params.astype(np.float32)  # results may go where the parameters are
    expected, _ = gradclip.clip_adaptive(before, out, 0.1)
    gradclip.clip_adaptive(before, out, 0.1, out=out)
    assert out.tobytes() == expected.tobytes()


def test_nothing_is_written_where_nothing_clips():
    a = gradient(np.float64, 4000, "lognormal").reshape(40, 100)
    a[::3] *= 1e-300
    params = np.ones((40, 100))
    before = a.copy()
    report = gradclip.clip_adaptive_(a, params, 1.0)
    kept = report.scales == 1.0
    assert 0 < kept.sum() < 40
    assert a[kept].tobytes() == before[kept].tobytes()
    before = a.tobytes()
    assert not gradclip.clip_adaptive_(a, params, 2.0).clipped
    assert a.tobytes() == before


def test_no_norm_of_parameters_at_all():
    grads = np.ones((2, 2))
    report = gradclip.clip_adaptive_(grads, np.array([[0.0, 0.0], [300.0, 400.0]]), eps=0)
    assert grads.tolist() == [[0, 0], [1, 1]]
    assert report.scales.tolist() == [0.0, 1.0]
    tiny = np.full((1, 2), 5e-324)
    assert not gradclip.clip_adaptive_(tiny, tiny, 1.0, eps=0).clipped
    huge = np.full((1, 2), 1.7e308)  # a norm beyond float64, of parameters and of gradients
    clipped, report = gradclip.clip_adaptive(huge, huge)
    assert report.norm == math.inf
    assert np.allclose(clipped, 1.7e306, rtol=1e-15)


# ---- factors by leaf, units along several axes --------------------------------------------------------


@pytest.mark.parametrize("axes", [(0, 1), (1, 0), (-1, 0), [2, 1], (-2,), (0, 1, 2), ()])
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_units_along_several_axes(dtype, axes):
    """Each index along all of them is a unit, in index order, as if these axes came first and were one."""
    grads = gradient(dtype, 60).reshape(3, 5, 4)[:, ::-1]
    params = gradient(np.float32, 60, seed=1).reshape(5, 3, 4).transpose(1, 0, 2)
    clipped, report = gradclip.clip_adaptive([grads, grads[0, 0]], [params, params[0, 0]], 0.5, unit_axis=axes)
    first = sorted(axis % 3 for axis in axes)
    count = math.prod(grads.shape[d] for d in first)

    def rows(array):
        return array.transpose(*first, *(d for d in range(3) if d not in first)).reshape(count, -1)

    assert (report.size, report.clipped) == (count + 1, True)
    check(rows(grads), rows(clipped[0]), rows(params), 0.5, 1e-3, 0, report.scales[:count])
    check(grads[0, 0], clipped[1], params[0, 0], 0.5, 1e-3, 0, report.scales[count:])


FACTORS = {"a*": 0.5, "*/b": 0.25}


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_factors_by_leaf(dtype):
    def leaves(seed):
        values = [gradient(dtype, 30, seed=seed + k).reshape(5, 6) for k in range(3)]
        return {"a": values[0], "x": [{"b": values[1]}, None, values[2]]}

    grads, params, before = leaves(0), leaves(5), leaves(0)
    report = gradclip.clip_adaptive_(grads, params, FACTORS)
    assert (report.max_norm, report.size) == (FACTORS, 15)
    check(before["a"], grads["a"], params["a"], 0.5, 1e-3, 0, report.scales[:5])
    check(before["x"][0]["b"], grads["x"][0]["b"], params["x"][0]["b"], 0.25, 1e-3, 0, report.scales[5:10])
    assert grads["x"][2].tobytes() == before["x"][2].tobytes()  # no pattern matches it
    assert report.scales[10:].tolist() == [1.0] * 5
    assert report.norms.tolist() == gradclip.clip_by_norm(before, math.inf, axis=1)[1].norms.tolist()
    nested, same = gradclip.clip_adaptive(before, params, {"x": ({"b": 0.25}, None, 1e30), "a": 0.5})
    assert same.scales.tolist() == report.scales.tolist()
    assert [nested["a"].tobytes(), nested["x"][2].tobytes()] == [grads["a"].tobytes(), grads["x"][2].tobytes()]


def test_a_leaf_without_a_factor_is_left_alone_whatever_its_parameters_are():
    grads, params = [np.full((2, 2), 1e300), np.ones(2)], [np.zeros((2, 2)), np.ones(2)]
    report = gradclip.clip_adaptive_(grads, params, {"1": 0.5}, eps=0.0)
    assert (report.scales.tolist(), report.clipped_count) == ([1.0, 1.0, 0.5], 1)
    assert (grads[0] == 1e300).all()
    report = gradclip.clip_adaptive_(grads, params, {"1": 0.5}, eps=0.0, grad_scale=2.0)  # it is unscaled with the others
    assert (grads[0] == 5e299).all()
    grads[0][1, 0] = np.nan
    with pytest.raises(gradclip.NonFiniteGradientError, match="^0"):
        gradclip.clip_adaptive_(grads, params, {"1": 0.5})


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"clip_factor": {"c*": 0.1}}, ValueError, r"clip_factor has the pattern 'c\*', which matches no path"),
        ({"clip_factor": {"a": 0.1, 3: 1.0}}, ValueError, "clip_factor has the key 3"),
        ({"clip_factor": {"a": 0.0}}, ValueError, r"clip_factor\['a'\] must be positive and finite, not 0.0"),
        ({"clip_factor": {"*": math.inf}}, ValueError, r"clip_factor\['\*'\] must be positive"),
        ({"clip_factor": {"a": 0.1, "b": -1}}, ValueError, "clip_factor of b must be positive"),
        ({"clip_factor": {"a": "x", "b": 1}}, TypeError, "clip_factor of a must be a real number"),
        ({"clip_factor": [0.1, 0.1]}, ValueError, "grads is a dict, clip_factor a list"),
        ({"clip_factor": gradclip.thresholds.Quantile()}, TypeError, "clip_factor must be a real number"),
        ({"unit_axis": (0, 2)}, ValueError, "^a: unit_axis 2 is out of bounds for an array of 2 dimensions"),
        ({"unit_axis": (0, -2)}, ValueError, r"^a: unit_axis \(0, -2\) names an axis twice"),
        ({"unit_axis": (0, 1.0)}, TypeError, "unit_axis must be an integer"),
    ],
)
def test_bad_factors_and_axes(keywords, error, message):
    grads = {"a": np.full((2, 2), 9.0), "b": np.full(2, 9.0)}
    with pytest.raises(error, match=message):
        gradclip.clip_adaptive_(grads, grads, **keywords)
    assert (grads["a"] == 9).all()


# ---- NaN and Inf ------------------------------------------------------------------------------------


@pytest.mark.parametrize("nonfinite", ["raise", "skip", "zero", "propagate"])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_units_of_parameters_that_are_not_finite_are_left_alone(nonfinite, strict, bad):
    grads = np.full((3, 2), 4.0)
    report = gradclip.clip_adaptive_(grads, np.array([[1, bad], [3, 4], [bad, -bad]]), strict=strict, nonfinite=nonfinite)
    assert grads[[0, 2]].tolist() == [[4, 4], [4, 4]]
    assert report.scales[[0, 2]].tolist() == [1, 1]
    assert power_sum([grads[1]]) <= Fraction(0.05) ** 2 * (1 + NEAR)
    assert (report.nonfinite, report.first_nonfinite, report.clipped_count) == (0, None, 1)


def poisoned():
    grads = {"a": np.full((2, 2), 4.0, np.float32), "b": np.full((3, 4), 8.0, np.float32)}
    grads["b"][1, 2], grads["b"][2, 0] = np.inf, np.nan
    return grads, {"a": np.full((2, 2), np.nan), "b": np.ones((3, 4))}


def test_gradients_that_are_not_finite():
    grads, params = poisoned()
    before = snapshot(grads.values())
    with pytest.raises(gradclip.NonFiniteGradientError, match=r"b: inf at flat index 6 \(NaN or Inf in all leaves: 2\)"):
        gradclip.clip_adaptive_(grads, params)
    report = gradclip.clip_adaptive_(grads, params, nonfinite="skip")
    assert (report.skipped, report.first_nonfinite, report.nonfinite, report.clipped) == (True, ("b", 6), 2, False)
    out = {k: np.full_like(v, 7) for k, v in grads.items()}
    gradclip.clip_adaptive(grads, params, nonfinite="skip", out=out)
    assert all((v == 7).all() for v in out.values())
    copies, _ = gradclip.clip_adaptive(grads, params, nonfinite="skip")
    assert snapshot(copies.values()) == snapshot(grads.values()) == before
    zeroed, report = gradclip.clip_adaptive(grads, params, nonfinite="zero")
    assert report.norms.tolist() == pytest.approx([32**0.5, 32**0.5, 16, 192**0.5, 192**0.5], rel=1e-15)
    assert zeroed["b"][1, 2] == zeroed["b"][2, 0] == 0
    assert np.allclose(np.linalg.norm(zeroed["b"], axis=1), 0.02)
    assert (zeroed["a"] == 4).all()
    through, report = gradclip.clip_adaptive(grads, params, nonfinite="propagate")
    assert np.isnan(through["b"][2]).all()
    assert np.isnan(through["b"][1]).tolist() == [False, False, True, False]
    assert (through["b"][1, [0, 1, 3]] == 0).all()
    assert np.allclose(through["b"][0], 0.01)


# ---- keywords ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ord", [1, 2, 3, math.inf])
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_order_scale_and_strict(dtype, ord):
    grads, params = gradient(dtype, 400).reshape(8, 50), gradient(np.float32, 400, seed=5).reshape(8, 50)
    with np.errstate(over="ignore"):
        scaled = (grads.astype(np.float64) * 48.0).astype(dtype)
    clipped, report = gradclip.clip_adaptive(scaled, params, 0.1, ord=ord, strict=True, grad_scale=48.0)
    norms = np.linalg.norm(scaled.astype(float) / 48, ord, axis=1)
    bounds = 0.1 * np.linalg.norm(params.astype(float), ord, axis=1)
    assert np.allclose(report.norms, norms, rtol=1e-14)
    assert np.allclose(np.linalg.norm(clipped.astype(float), ord, axis=1), bounds, rtol=0.02)
    assert np.allclose(report.scales, bounds / norms / 48, rtol=0.02)
    power = 1 if ord == math.inf else ord
    for row, w in zip(clipped, params, strict=True):
        exact = (Fraction(0.1) ** power) * power_sum([w], ord)  # the float64 bound is within 5 ulp of it
        assert power_sum([row], ord) <= exact * (1 + Fraction(1, 2**48))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"clip_factor": 0}, ValueError, "clip_factor must be positive"),
        ({"clip_factor": -1.0}, ValueError, "clip_factor"),
        ({"clip_factor": math.inf}, ValueError, "clip_factor"),
        ({"clip_factor": math.nan}, ValueError, "clip_factor"),
        ({"clip_factor": True}, TypeError, "clip_factor"),
        ({"clip_factor": gradclip.thresholds.Quantile()}, TypeError, "clip_factor"),
        ({"eps": -1.0}, ValueError, "eps"),
        ({"eps": math.inf}, ValueError, "eps must be finite"),
        ({"unit_axis": 2}, ValueError, "^a/0: unit_axis 2 is out of bounds for an array of 2 dimensions"),
        ({"unit_axis": -3}, ValueError, "^a/0: unit_axis -3"),
        ({"unit_axis": 1.0}, TypeError, "unit_axis"),
        ({"unit_axis": True}, TypeError, "unit_axis"),
        ({"max_norm": 1.0}, TypeError, "unexpected keyword argument 'max_norm'"),
        ({"params": {"a": [np.ones((3, 2))]}}, ValueError, r"^a/0: grads has shape \(2, 2\)"),
        ({"params": {"a": [np.ones((2, 2), complex)]}}, ValueError, "^a/0: .*complex128"),
        ({"params": {"b": [np.ones((2, 2))]}}, ValueError, "^a: params has no such entry"),
        ({"params": {"a": []}}, ValueError, "^a: grads has 1 entries, params has 0"),
        ({"params": {"a": [None]}}, ValueError, "^a/0: grads and params are nested"),
        ({"params": {"a": [np.ones((2, 2), int)]}}, TypeError, "^a/0: dtype int64"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_written(arguments, error, message):
    grads = {"a": [np.ones((2, 2))]}
    with pytest.raises(error, match=message):
        gradclip.clip_adaptive_(grads, **{"params": {"a": [np.ones((2, 2))]}, **arguments})
    assert (grads["a"][0] == 1).all()


# ---- the same bits, other libraries -----------------------------------------------------------------


BITS = {}  # what the first instruction set and thread count wrote


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_the_same_bits_everywhere(isa, threads, dtype):
    grads, params = (gradient(dtype, 300 * 1100, "wide", seed=s).reshape(300, 1100) for s in (1, 2))
    spaced = np.zeros((300, 2200), grads.dtype)
    spaced[:, ::2] = grads
    for axis in (0, 1):
        for g in (grads, np.asfortranarray(grads), spaced[:, ::2]):
            clipped, report = gradclip.clip_adaptive(g, params, unit_axis=axis)
            found = clipped.tobytes(), report.scales.tobytes(), report.norms.tobytes()
            assert BITS.setdefault((str(dtype), axis), found) == found


def timm(grads, params, factor, eps):
    """The formula of timm.utils.agc, for PyTorch's layout."""
    axes = tuple(range(1, grads.ndim)) if grads.ndim > 1 else None
    norm_w = np.maximum(np.sqrt(np.square(params).sum(axes, keepdims=True)), eps)
    norm_g = np.sqrt(np.square(grads).sum(axes, keepdims=True))
    return np.where(norm_g < norm_w * factor, grads, grads * (norm_w * factor / np.maximum(norm_g, 1e-6)))


@pytest.mark.parametrize("shape", [(7,), (7, 11), (4, 5, 6), (8, 3, 5, 5)])
def test_timms_formula(shape):
    grads, params = (
        gradient(np.float64, math.prod(shape)).reshape(shape),
        gradient(np.float64, math.prod(shape), seed=1).reshape(shape),
    )
    clipped, report = gradclip.clip_adaptive(grads, params, 0.5, eps=1e-3)
    assert np.allclose(clipped, timm(grads, params, 0.5, 1e-3), rtol=1e-14)
    assert report.clipped


@pytest.mark.parametrize("shape", [(7,), (7, 11), (5, 5, 3, 8)])
def test_optax(shape):
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    grads, params = (jax.numpy.asarray(gradient(np.float32, math.prod(shape), seed=s).reshape(shape)) for s in (0, 1))
    clip = optax.adaptive_grad_clip(0.5, 1e-3)
    expected, _ = clip.update([grads], clip.init([params]), [params])
    clipped, report = gradclip.clip_adaptive([grads], [params], 0.5, unit_axis=-1)
    assert isinstance(clipped[0], jax.Array)
    assert np.allclose(clipped[0], expected[0], rtol=1e-5)
    assert report.clipped


def test_torch_parameters():
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(6, 3, dtype=torch.bfloat16)
    layer(torch.ones(2, 6, dtype=torch.bfloat16)).sum().backward()
    before = [p.grad.clone() for p in layer.parameters()]
    report = gradclip.clip_adaptive_([p.grad for p in layer.parameters()], layer.parameters(), eps=0.5)
    assert report.scales.shape == (4,)
    assert all((p.grad.norm() < b.norm() / 10) for p, b in zip(layer.parameters(), before, strict=True))


def test_sparse_leaves_have_no_units():
    sparse = pytest.importorskip("scipy.sparse").csr_array(np.eye(3))
    with pytest.raises(TypeError, match=r"^e: a sparse array .*toarray"):
        gradclip.clip_adaptive_({"e": sparse}, {"e": sparse.copy()})


def test_monitor_takes_its_reports():
    monitor = gradclip.ClipMonitor()
    for scale in (1.0, 1e-9):
        monitor.record(gradclip.clip_adaptive(scale * np.ones((3, 2)), np.ones((3, 2)))[1])
    assert (monitor.steps, monitor.clip_rate) == (2, 0.5)
