"""sgd_step: every parameter beside exact arithmetic, and what is refused before one changes."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import slow
from reference import COMPLEX, FORMAT, REAL, gradient, misaligned, numbers, power_sum, snapshot

import gradclip

HALVES = {"float16", "bfloat16"}
BITS = {}  # what the first thread count wrote


def worst(after, before, grads, lr, scale):
    """Largest distance from p - lr * factor * g, in units of what is allowed: 1 ulp, and two roundings of the product."""
    bits, least = FORMAT[np.empty(0, after.dtype).real.dtype.name]
    same_halves = after.dtype == grads.dtype and after.dtype.name in HALVES
    rounding = Fraction(1, 2 ** (24 if same_halves else 53))
    found = Fraction(0)
    for new, p, g in zip(numbers([after]), numbers([before]), numbers([grads]), strict=True):
        product = Fraction(lr) * Fraction(scale) * Fraction(g)
        exact = Fraction(p) - product
        size = abs(exact)
        exponent = size.numerator.bit_length() - size.denominator.bit_length() if size else least
        exponent -= size < Fraction(2) ** exponent
        ulp = Fraction(2) ** max(exponent - bits + 1, least)
        if size + ulp < Fraction(2) ** (16 if after.dtype.name == "float16" else 127):
            found = max(found, abs(Fraction(new) - exact) / (ulp + 2 * rounding * abs(product)))
    return found


@pytest.mark.parametrize("params_dtype", slow(REAL, fast=(np.float32,)), ids=str)
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_every_pair_of_dtypes(isa, params_dtype, dtype):
    grads = [gradient(dtype, 1500, "lognormal", seed=1), gradient(dtype, 90, seed=2).reshape(9, 10)]
    params = [gradient(params_dtype, 1500, seed=3), gradient(params_dtype, 90, seed=4).reshape(9, 10)]
    for max_norm, lr in ((math.inf, 0.1), (0.7, 3.0), (1e-3, -0.3)):
        there, kept = [p.copy() for p in params], snapshot(grads)
        for g in grads:
            g.flags.writeable = False
        report = gradclip.sgd_step_(there, grads, lr, max_norm)
        assert snapshot(grads) == kept
        assert report.scale == min(1.0, max_norm / gradclip.global_norm(grads))
        assert report.clipped == (max_norm < math.inf)
        assert report.norms.tolist() == [gradclip.global_norm(g) for g in grads]
        for after, before, g in zip(there, params, grads, strict=True):
            assert worst(after, before, g, lr, report.scale) <= 1


@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
def test_complex(dtype):
    real = np.empty(0, dtype).real.dtype
    grads, params = ((gradient(real, 50, seed=s) + 1j * gradient(real, 50, seed=s + 1)).astype(dtype) for s in (0, 2))
    before = params.copy()
    report = gradclip.sgd_step_(params, grads, 0.1, 0.5)
    assert worst(params, before, grads, 0.1, report.scale) <= 1
    with pytest.raises(ValueError, match=r"grads has shape \(50,\) and dtype complex"):
        gradclip.sgd_step_(gradient(real, 50), grads, 0.1)


@settings(max_examples=120, deadline=None)
@given(
    dtypes=st.tuples(st.sampled_from(REAL), st.sampled_from(REAL)),
    kinds=st.tuples(*2 * [st.sampled_from(["normal", "lognormal", "tiny", "huge", "wide"])]),
    lr=st.sampled_from([0.0, 1.0, -0.1, 1e-300, 1e300, 5e-324, 1e-40, 1e-10]),
    max_norm=st.sampled_from([math.inf, 1.0, 1e-5, 1e-300, 1e300]),
    grad_scale=st.sampled_from([1.0, 1.0, 3.0, 2.0**16, 1e-300, 1e300]),
    seed=st.integers(0, 999),
)
def test_extreme_ranges(dtypes, kinds, lr, max_norm, grad_scale, seed):
    params, grads = gradient(dtypes[0], 20, kinds[0], seed), gradient(dtypes[1], 20, kinds[1], seed + 1)
    before = params.copy()
    report = gradclip.sgd_step_(params, grads, lr, max_norm, grad_scale=grad_scale)
    assert not np.isnan(params).any()
    if report.scale > 1e-290:  # below, float64 does not hold all of the factor
        assert worst(params, before, grads, lr, report.scale) <= 1


def test_factors_beyond_float64():
    p = np.zeros(1)
    gradclip.sgd_step_(p, np.array([1e300]), 1e-10, 1e-5)
    assert p[0] == pytest.approx(-1e-15, rel=1e-15)
    p = np.zeros(2)  # a rate of 1e-300 of a clipped unit: subnormal, but not by its factor
    gradclip.sgd_step_(p, np.array([1e300, 0.0]), 1e-300, 1e-10)
    assert p.tolist() == [-1e-310, 0.0]
    p = np.zeros(2)
    report = gradclip.sgd_step_(p, np.array([1e-300, 0.0]), 1e10, grad_scale=1e-300)
    assert (p.tolist(), report.norm) == ([-1e10, 0.0], 1.0)
    for dtype in (np.float16, np.float32):
        p, g = np.array([1.0, 1.0], np.float32), np.array([1e-3, 0.0], dtype)
        gradclip.sgd_step_(p, g, 1e300, grad_scale=1e-200)
        assert p.tolist() == [-math.inf, 1.0]
        p = np.zeros(2)
        gradclip.sgd_step_(p, np.array([3.0, 0.0], dtype), 1e-300, 1e-20)
        assert p.tolist() == [-1e-320, 0.0]


def test_layouts_and_threads_change_no_bit(threads):
    params, grads = gradient(np.float32, 400 * 500).reshape(400, 500), gradient(np.float16, 400 * 500, seed=1).reshape(400, 500)
    expected = params.copy()
    gradclip.sgd_step_(expected, grads, 0.01, 1.0)
    assert expected.tobytes() == BITS.setdefault("one thread", expected.tobytes())
    spaced = np.zeros((400, 1000), np.float32)
    spaced[:, ::2] = params
    gaps = np.zeros((800, 500), np.float16)
    gaps[::2] = grads
    for p in (np.asfortranarray(params), spaced[:, ::2], params[::-1].copy()[::-1], misaligned(params)):
        for g in (grads, np.asfortranarray(grads), gaps[::2], misaligned(grads)):
            p[...] = params
            gradclip.sgd_step_(p, g, 0.01, 1.0)
            assert np.ascontiguousarray(p).tobytes() == expected.tobytes()
    assert (spaced[:, 1::2] == 0).all()


def test_the_same_step_as_clipping_first():
    grads, params = {"w": gradient(np.float64, 500), "b": np.ones(3)}, {"b": np.ones(3), "w": gradient(np.float64, 500, seed=1)}
    before = {k: v.copy() for k, v in params.items()}
    clipped, _ = gradclip.clip_by_global_norm(grads, 0.5)
    gradclip.sgd_step_(params, grads, 0.25, 0.5)  # a power of two: the product is rounded once in both
    assert all((params[k] == before[k] - 0.25 * clipped[k]).all() for k in params)


def test_ends_of_thresholds_and_rates():
    p, g = np.array([1.0, -2.0]), np.array([3.0, 4.0])
    assert gradclip.sgd_step_(p, g, 0.5, 0).clipped
    assert not gradclip.sgd_step_(p, g, 0).clipped
    assert not gradclip.sgd_step_(p, g, 0.0, 5.0).clipped
    assert p.tolist() == [1.0, -2.0]
    gradclip.sgd_step_(p, g, -1.0)
    assert p.tolist() == [4.0, 2.0]
    rule = gradclip.thresholds.Quantile(0.5, window=None)
    assert not gradclip.sgd_step_(p, g, 1.0, rule).clipped
    report = gradclip.sgd_step_(p, 2 * g, 1.0, rule)
    assert (report.max_norm, report.scale) == (5.0, 0.5)
    assert p.tolist() == [-2.0, -6.0]
    assert gradclip.sgd_step_([], [], 1.0).norm == 0.0
    assert gradclip.sgd_step_(np.zeros((0, 2)), np.zeros((0, 2)), 1.0).size == 1


def test_no_gradient_no_step():
    p = [np.ones(2), np.ones(3)]
    assert gradclip.sgd_step_(p, [None, np.ones(3)], 1.0).size == 1
    assert [x.tolist() for x in p] == [[1, 1], [0, 0, 0]]


@pytest.mark.parametrize("ord", [1, 2, 3, math.inf])
@pytest.mark.parametrize("grad_scale", [1.0, 3.0, 1024.0])
def test_strict_bounds_the_exact_norm_of_the_step(ord, grad_scale):
    power = 1 if ord == math.inf else ord
    for seed in range(40):
        g = [gradient(np.float32, 7, "lognormal", seed), gradient(np.float64, 5, seed=seed)]
        norm = gradclip.measure(g, ord=ord, grad_scale=grad_scale).norm
        for max_norm in (norm * 0.37, norm, math.nextafter(norm, 0)):
            report = gradclip.sgd_step_(
                [np.zeros(7), np.zeros(5)], g, 1.0, max_norm, ord=ord, grad_scale=grad_scale, strict=True
            )
            if ord != 3 or max_norm < norm:
                assert Fraction(report.scale) ** power * power_sum(g, ord) <= Fraction(max_norm) ** power
            assert report.scale == pytest.approx(min(1.0, max_norm / norm) / grad_scale, rel=1e-13)
    p = np.zeros(2)
    report = gradclip.sgd_step_(p, np.array([3.0, 4.0]), 1.0, 5.0, strict=True)
    assert (report.clipped, p.tolist()) == (False, [-3.0, -4.0])


def test_strict_beyond_float64_and_with_nan():
    for ord in (1, 2, 3):
        p, g = np.zeros(2), np.full(2, 1.7e308)
        report = gradclip.sgd_step_(p, g, 1.0, 1.0, strict=True, ord=ord)
        assert (report.norm, report.clipped) == (math.inf, True)
        assert np.allclose(p, -(2.0 ** (-1 / ord)), rtol=1e-14)
    p = np.ones(2)
    gradclip.sgd_step_(p, np.array([math.nan, 1.0]), 1.0, 1.0, strict=True, nonfinite="propagate")
    assert np.isnan(p).all()


# ---- NaN and Inf ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_policies(isa, dtype):
    grads = {"a": np.full(3, 4.0, dtype), "b": np.full(5000, 1.0, dtype)}
    grads["b"][4321], grads["b"][7] = np.nan, np.inf
    params = {k: np.ones(v.shape, np.float32) for k, v in grads.items()}
    with pytest.raises(gradclip.NonFiniteGradientError, match="b: inf at flat index 7 .*: 2"):
        gradclip.sgd_step_(params, grads, 1.0, 1.0)
    report = gradclip.sgd_step_(params, grads, 1.0, 1.0, nonfinite="skip")
    assert (report.skipped, report.first_nonfinite, report.clipped) == (True, ("b", 7), False)
    assert all((p == 1).all() for p in params.values())
    report = gradclip.sgd_step_(params, grads, 1.0, 1e3, nonfinite="zero")
    assert (report.clipped, report.nonfinite, report.norm) == (False, 2, math.sqrt(48 + 4998))
    assert params["a"].tolist() == [-3.0] * 3
    assert (params["b"][[7, 4321]] == 1).all()
    assert params["b"].sum() == 2
    gradclip.sgd_step_(params, grads, 1.0, 1.0, nonfinite="propagate")
    assert all(np.isnan(p).all() for p in params.values())


# ---- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lr": math.inf}, ValueError, "lr must be finite"),
        ({"lr": -math.inf}, ValueError, "lr must be finite"),
        ({"lr": math.nan}, ValueError, "lr"),
        ({"lr": True}, TypeError, "lr"),
        ({"lr": "0.1"}, TypeError, "lr"),
        ({"lr": [0.1]}, TypeError, "lr"),
        ({"max_norm": -1.0}, ValueError, "max_norm"),
        ({"nonfinite": "ignore"}, ValueError, "nonfinite"),
        ({"grad_scale": 0.0}, ValueError, "grad_scale"),
        ({"momentum": 0.9}, TypeError, "momentum"),
        ({"params": {"w": [np.ones(3)]}}, ValueError, r"^w/0: grads has shape \(2,\)"),
        ({"params": {"w": np.ones(2)}}, ValueError, "^w: grads and params are nested in different ways"),
        ({"params": {"w": [np.ones(2)] * 2}}, ValueError, "^w: grads has 1 entries, params has 2"),
        ({"params": {"w": [np.ones(2)], "v": np.ones(2)}}, ValueError, "^v: params has an entry that grads has not"),
        ({"params": {"w": [None]}}, ValueError, "^w/0: grads and params are nested"),
        ({"params": {"w": [np.ones(2, int)]}}, TypeError, "^w/0: dtype int64"),
        ({"params": {"w": [np.broadcast_to(1.0, 2)]}}, ValueError, "^w/0: read-only"),
    ],
)
def test_bad_arguments_are_named_before_anything_changes(arguments, error, message):
    params = {"w": [np.ones(2)]}
    with pytest.raises(error, match=message):
        gradclip.sgd_step_(**{"params": params, "grads": {"w": [np.ones(2)]}, "lr": 0.1, **arguments})
    assert params["w"][0].tolist() == [1, 1]


def test_overlap_names_both():
    memory = np.ones(10)
    for params, grads in ((memory[:5], memory[4:9]), (memory, memory), (memory, memory[::-1]), (memory[::2], memory[4:9])):
        with pytest.raises(ValueError, match="^layer/w: params shares memory with layer/w of grads"):
            gradclip.sgd_step_({"layer": {"w": params}}, {"layer": {"w": grads}}, 0.1)
    with pytest.raises(ValueError, match=r"^1: params shares memory with 0 of grads"):
        gradclip.sgd_step_([np.ones(10), memory], [memory, np.ones(10)], 0.1)
    with pytest.raises(ValueError, match="^0 and 1 share memory"):
        gradclip.sgd_step_([memory, memory], [np.ones(10), np.ones(10)], 0.1)
    assert (memory == 1).all()
    gradclip.sgd_step_(memory[::2], memory[1::2], 1.0)  # interleaved, no element in both
    assert memory.tolist() == [0, 1] * 5
    shared = np.ones(5)
    gradclip.sgd_step_([np.ones(5), memory[:5]], [shared, shared], 1.0)  # gradients are only read


def test_torch_parameters():
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(3, 2)
    layer(torch.ones(4, 3)).sum().backward()
    before, grads = [p.detach().clone() for p in layer.parameters()], [p.grad for p in layer.parameters()]
    with pytest.raises(TypeError, match=r"^0: .*requires grad.*p\.data"):
        gradclip.sgd_step_(layer.parameters(), grads, 0.1)
    report = gradclip.sgd_step_([p.data for p in layer.parameters()], grads, 0.1, 1.0)
    for p, b, g in zip(layer.parameters(), before, grads, strict=True):
        assert torch.allclose(p, b - 0.1 * report.scale * g)
    assert [g.tolist() for g in grads] == [[[4.0] * 3] * 2, [4.0] * 2]
    half = [g.bfloat16() for g in grads]
    gradclip.sgd_step_([p.data for p in layer.parameters()], half, 0.1)
    layer.bias.grad = None
    gradclip.sgd_step_([p.data for p in layer.parameters()], [p.grad for p in layer.parameters()], 0.1)


def test_sparse_gradients():
    sparse = pytest.importorskip("scipy.sparse")

    def twice():
        return sparse.csr_array(([1.5, 1.5, 4.0], [0, 0, 1], [0, 2, 3]), shape=(2, 2))

    params = twice()  # stored values stand twice: they are summed, in the parameters too
    report = gradclip.sgd_step_(params, twice(), 1.0, 2.5)
    assert (report.norm, report.scale) == (5.0, 0.5)
    assert params.toarray().tolist() == [[1.5, 0], [0, 2]]
    with pytest.raises(ValueError, match="^e: "):
        gradclip.sgd_step_({"e": np.ones((2, 2))}, {"e": twice()}, 1.0)
    with pytest.raises(ValueError, match="^e: the stored values of params stand at other places"):
        gradclip.sgd_step_({"e": sparse.csr_array(np.fliplr(np.eye(2)))}, {"e": twice()}, 1.0)


def test_monitor_takes_its_reports():
    monitor = gradclip.ClipMonitor()
    p = np.ones(2)
    for grads in (np.ones(2), 0.1 * np.ones(2), np.array([1.0, math.nan])):
        monitor.record(gradclip.sgd_step_(p, grads, 0.1, 1.0, nonfinite="skip"))
    assert (monitor.steps, monitor.summary()["clipped"], monitor.summary()["skipped"]) == (3, 1, 1)
