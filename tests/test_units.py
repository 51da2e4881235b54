"""clip_by_norm along axes: every slice on its own, against exact arithmetic; the same bits however memory lies."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from marks import slow
from reference import BFLOAT16, COMPLEX, REAL, element_error, gradient, misaligned, norm_error, power_sum

import gradclip
from gradclip._cpu import machine


def slices(a, axis):
    """Views of the slices along some axes, in index order of the others."""
    inner = {d % a.ndim for d in ((axis,) if isinstance(axis, int) else axis)}
    outer = [d for d in range(a.ndim) if d not in inner]
    a = np.moveaxis(a, outer, range(len(outer)))
    return [a[i] for i in np.ndindex(*a.shape[: len(outer)])]


def finite(a):
    """As it is, with 0 in place of NaN and Inf."""
    a = a.copy()
    a[~np.isfinite(a.astype(np.complex128))] = 0
    return a


def arrangements(a):
    """The same numbers in every kind of memory: (name, array) pairs."""
    yield "C", a.copy()
    yield "Fortran", a.copy(order="F")
    back = (slice(None, None, -1),) * a.ndim
    yield "reversed", a[back].copy()[back]
    turned = (*range(1, a.ndim), 0)
    yield "turned", a.transpose(turned).copy().transpose(np.argsort(turned))
    padded = np.ones([n + 3 for n in a.shape], a.dtype)[tuple(slice(1, n + 1) for n in a.shape)]
    padded[...] = a
    yield "padded", padded
    spaced = np.ones([2 * n for n in a.shape], a.dtype)[tuple(slice(0, 2 * n, 2) for n in a.shape)]
    spaced[...] = a
    yield "spaced", spaced
    yield "misaligned", misaligned(a)


def content(a):
    """All bits of an array in index order; NaN is NaN."""
    bad = np.isnan(a.astype(np.complex128))
    return np.where(bad, np.zeros((), a.dtype), a).astype(a.dtype).tobytes(), bad.tobytes()


def facts(report):
    numbers = (report.norm, report.scale, report.max_abs, report.clipped_count, report.size, report.nonfinite)
    return report.norms.tobytes(), report.scales.tobytes(), repr(numbers), report.first_nonfinite


@st.composite
def arrays(draw):
    dtype = draw(st.sampled_from([*REAL, *COMPLEX]))
    shape = draw(
        st.lists(st.sampled_from([0, 1, 2, 3, 5, 8, 17]), min_size=1, max_size=4).filter(lambda s: math.prod(s) < 2000)
    )
    kinds = ["normal", "tiny", "huge", "zeros", "lognormal", *(["wide"] if dtype == np.float64 else [])]
    kind, seed = draw(st.sampled_from(kinds)), draw(st.integers(0, 999))
    if dtype.kind == "c":
        part = np.dtype(f"f{dtype.itemsize // 2}")
        a = gradient(part, math.prod(shape), kind, seed) * part.type(0.5) * (1 - 1j)
    else:
        a = gradient(dtype, math.prod(shape), kind, seed)
    axes = draw(st.permutations(range(len(shape))))[: draw(st.integers(1, len(shape)))]
    axes = tuple(d - len(shape) if draw(st.booleans()) else d for d in axes)
    return a.astype(dtype).reshape(shape), axes[0] if len(axes) == 1 and draw(st.booleans()) else axes


options = st.fixed_dictionaries(
    {
        "ord": st.sampled_from([1, 2, math.inf, 3, 0.5]),
        "strict": st.booleans(),
        "grad_scale": st.sampled_from([1.0, 3.0, 1024.0]),
        "nonfinite": st.sampled_from(["raise", "skip", "zero", "propagate"]),
    }
)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(arrays(), options, st.floats(0.01, 1.5), st.lists(st.integers(0, 10**6), max_size=2))
def test_any_slices_of_any_array(given_array, options, part, bad):
    a, axis = given_array
    for i in bad if a.size and options["nonfinite"] != "raise" else []:
        a.reshape(-1)[i % a.size] = (np.nan, np.inf, -np.inf)[i % 3]
    parts, scale = slices(a, axis), options["grad_scale"]
    largest = sorted(float(np.abs(finite(x).astype(np.complex128)).max(initial=0)) for x in parts)
    threshold = min(largest[len(largest) // 2], 1e308) / scale * part if parts else 1.0

    first = None
    for name, view in arrangements(a):
        new, functional = gradclip.clip_by_norm(view, threshold, axis=axis, **options)
        out = np.ones(a.shape[::-1], a.dtype).T
        gradclip.clip_by_norm(view, threshold, axis=axis, out=out, **options)
        report = gradclip.clip_by_norm_(view, threshold, axis=axis, **options)
        found = content(view), facts(report)
        first = first or found
        assert found == first, name
        assert (content(new), facts(functional)) == first, name
        assert content(out) == content(np.ones_like(a) if report.skipped else view), name

    everything = np.isfinite(a.astype(np.complex128))
    assert report.nonfinite == everything.size - everything.sum()
    if report.nonfinite:
        assert report.first_nonfinite == ("grads", int(np.flatnonzero(~everything)[0]))
    assert report.size == len(parts) == len(report.norms) == len(report.scales)
    assert report.skipped == (report.nonfinite > 0 and options["nonfinite"] == "skip")
    if report.skipped:
        assert content(view) == content(a)
        return
    for x, y, norm, factor in zip(parts, slices(view, axis), report.norms, report.scales, strict=True):
        if options["nonfinite"] == "propagate" and not np.isfinite(x.astype(np.complex128)).all():
            assert not math.isfinite(norm)
            continue
        check_slice(finite(x), y, norm, factor, threshold, **options)


def check_slice(x, y, norm, factor, threshold, ord, strict, grad_scale, nonfinite):
    rational = ord in (1, 2, math.inf) and not (x.dtype.kind == "c" and ord != 2)
    if rational and norm < math.inf:
        exact = power_sum([x], ord) / Fraction(grad_scale) ** (2 if ord == 2 else 1)
        assert norm_error(norm, exact, 2 if ord == 2 else 1) <= 0.501
    if not strict:
        assert (factor < 1 / grad_scale) == (norm > threshold) or norm == pytest.approx(threshold, rel=1e-15)
    if rational and strict:
        assert power_sum([y], ord) <= Fraction(threshold) ** (2 if ord == 2 else 1)
    elif strict:
        assert gradclip.global_norm(y, ord) <= threshold
    if 1e-290 < factor < 1e290 and np.isfinite(y.astype(np.complex128)).all():
        real = x.real.dtype if x.dtype.kind == "c" else x.dtype
        x, y = (np.ascontiguousarray(z).view(real) for z in (x, y))
        assert element_error(y, x, factor) <= 0.501


# ---- columns, read row by row ---------------------------------------------------------------------------

PANELS = [(1100, 256), (1030, 513), (2100, 255), (5, 2049), (3, 5000), (140_000, 2), (90_000, 3), (40_000, 9), (1025, 1)]


def columns(dtype, shape, seed=0):
    """Columns that differ by powers of two from one to the next; one in seven is zero."""
    a = gradient(np.float64, math.prod(shape), seed=seed).reshape(shape)
    a = np.clip(a * 2.0 ** (np.arange(shape[1]) % 11 - 5), -6e4, 6e4)
    a[:, ::7] = 0
    return a.astype(dtype)


@pytest.mark.parametrize("shape", PANELS, ids=str)
@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32)], ids=str)
def test_columns(dtype, shape):
    a = columns(dtype, shape)
    squares = a.astype(np.float64) ** 2  # exact
    expected = [math.sqrt(math.fsum(column)) for column in squares.T.tolist()]
    threshold = sorted(expected)[len(expected) // 2]
    clipped, report = gradclip.clip_by_norm(a, threshold, axis=0)
    assert report.norms.tolist() == pytest.approx(expected, rel=2.3e-16)
    assert report.clipped_count == sum(norm > threshold for norm in report.norms)
    turned, other = gradclip.clip_by_norm(a.copy(order="F"), threshold, axis=0)
    assert facts(other) == facts(report)
    assert turned.tobytes() == clipped.tobytes()
    for x, y, factor in list(zip(a.T, clipped.T, report.scales, strict=True))[:9]:
        alone, one = gradclip.clip_by_global_norm(x, threshold)
        assert alone.tobytes() == y.tobytes()
        assert one.scale == factor
        assert element_error(y[:300], x[:300], factor) <= 0.501


@pytest.mark.slow
@pytest.mark.parametrize("ord", [1, 2, 3])
@pytest.mark.parametrize("dtype", [*REAL, COMPLEX[1]], ids=str)
def test_threads_and_sets_change_no_bit(dtype, threads, ord):
    leaves = [columns(dtype, shape, seed=4) for shape in [(3000, 70), (9, 700), (200, 300)]]
    leaves[1] = leaves[1].reshape(9, 7, 100)
    leaves.append(columns(dtype, (100_003, 2), seed=5)[:, 0].reshape(1, 1, -1))
    before = machine.isa()
    found = set()
    try:
        for name in machine.available_isas():
            machine.set_isa(name)
            for team in (threads, 1):
                machine.set_threads(team)
                for axis in (0, -1, (0, -1)):
                    clipped, report = gradclip.clip_by_norm(leaves, 2.0, axis=axis, ord=ord)
                    found.add((axis, *facts(report), *(a.tobytes() for a in clipped)))
    finally:
        machine.set_isa(before)
    assert len(found) == 3


@pytest.mark.parametrize("ord", [1, 2])
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_columns_that_grow_and_shrink(isa, dtype, ord):
    """Where elements outgrow the sum of their column, its additions take the longer way; each column has its own pace."""
    rows = np.arange(203)[:, None]
    rng = np.random.default_rng(6)
    growing = np.minimum(rng.uniform(1, 2, (203, 21)) * 2.0 ** (rows * np.linspace(-0.14, 0.14, 21) - 8), 6e4)
    a = np.concatenate([growing, gradient(dtype, 203 * 20, "lognormal").reshape(203, 20)], axis=1).astype(dtype)
    norms = gradclip.clip_by_norm(a, math.inf, axis=0, ord=ord)[1].norms
    for x, norm in zip(a.T, norms, strict=True):
        assert norm_error(norm, power_sum([x], ord), ord) <= 0.501


@pytest.mark.slow
def test_leaves_wider_and_longer_than_a_panel(isa):
    """Panels are at most 2048 columns and 4M elements large."""
    for shape in [(2100, 2100), (1_050_000, 5), (600, 15_000)]:
        a = gradient(np.float32, math.prod(shape)).reshape(shape)
        norms = gradclip.clip_by_norm(a, math.inf, axis=0)[1].norms
        expected = np.sqrt(np.add.reduce(np.square(a, dtype=np.float64).astype(np.longdouble), axis=0))
        assert norms.tolist() == pytest.approx(expected.astype(np.float64).tolist(), rel=2.3e-16)


@pytest.mark.parametrize("width", [5, 256, 300])
@pytest.mark.parametrize("ord", [1, 2, math.inf])
def test_columns_of_every_range_side_by_side(isa, width, ord):
    """A column beyond the range of squares, or below it, is measured by itself; its neighbours are not disturbed."""
    a = np.clip(gradient(np.float64, 1500 * width).reshape(1500, width), -1, 1)
    for j, value in enumerate((1e300, 1e-300, 5e-324, 1.7e308, 0.0)):
        a[::2, j] *= value
        a[1::2, j] *= value if j % 2 else 0
    a[700, 3] = 1e-320
    a[3, -1] = 1e160 if width > 5 else a[3, -1]
    report = gradclip.clip_by_norm(a, 1.0, axis=0, ord=ord)[1]
    for x, norm in list(zip(a.T, report.norms, strict=True))[:: 1 + width // 9]:
        if norm < math.inf:
            assert norm_error(norm, power_sum([x], ord), 2 if ord == 2 else 1) <= 0.501
    for j in (0, 1, 2, 3, 4, width - 1):
        alone = a[:, j].copy()
        assert report.norms[j] == gradclip.global_norm(alone, ord)
        gradclip.clip_by_global_norm_(alone, 1.0, ord=ord)
        assert gradclip.clip_by_norm(a, 1.0, axis=0, ord=ord)[0][:, j].tobytes() == alone.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("ord", [1, 2, math.inf])
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_columns_with_odd_parts(isa, dtype, ord):
    """Three panels below each other: a column may be not finite, or out of range, in any of them."""
    a = columns(dtype, (1530, 513))
    clean = gradclip.clip_by_norm(a, math.inf, axis=0, ord=ord)[1].norms
    odd = {1: (5,), 65: (900,), 66: (1500,), 512: (3, 800), 130: (2, 700, 1529)}
    large = 1e200 if dtype == np.float64 else math.inf
    for j, rows in odd.items():
        a[list(rows), j] = large if j != 65 else math.nan
    a[:600, 200] = 1e-320  # of float64 out of range, of others 0
    report = gradclip.clip_by_norm(a, math.inf, axis=0, ord=ord, nonfinite="zero")[1]
    assert report.nonfinite == (1 if dtype == np.float64 else 8)
    for j in (*odd, 200):
        assert norm_error(report.norms[j], power_sum([finite(a[:, j])], ord), 2 if ord == 2 else 1) <= 0.501
    assert norm_error(report.norm, power_sum([finite(a)], ord), 2 if ord == 2 else 1) <= 0.501
    alike = [j for j in range(513) if j not in (*odd, 200)]
    assert report.norms[alike].tolist() == clean[alike].tolist()


@pytest.mark.parametrize("rows", [20, 3000])
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_nonfinite_in_one_column(isa, dtype, rows):
    clean = columns(dtype, (rows, 300))
    a = clean.copy()
    a[rows - 2, 41] = np.nan
    a[rows - 1, 290] = -np.inf
    assert gradclip.clip_by_norm(a, 1.0, axis=0, nonfinite="skip")[1].first_nonfinite == ("grads", (rows - 2) * 300 + 41)
    assert gradclip.clip_by_norm([clean, a.T], 1.0, axis=0, nonfinite="skip")[1].first_nonfinite == ("1", 41 * rows + rows - 2)
    before = a.tobytes()
    with pytest.raises(gradclip.NonFiniteGradientError, match=f"flat index {(rows - 2) * 300 + 41} "):
        gradclip.clip_by_norm_(a, 1.0, axis=0)
    assert a.tobytes() == before
    good = [j for j in range(300) if j not in (41, 290)]
    expected = gradclip.clip_by_norm(clean, 1.0, axis=0)[0]
    for nonfinite in ("propagate", "zero"):
        clipped, report = gradclip.clip_by_norm(a, 1.0, axis=0, nonfinite=nonfinite)
        assert clipped[:, good].tobytes() == expected[:, good].tobytes()
        assert report.nonfinite == 2
        assert report.norms[good].tolist() == gradclip.clip_by_norm(clean, 1.0, axis=0)[1].norms[good].tolist()
    assert clipped[:, [41, 290]].tobytes() == gradclip.clip_by_norm(finite(a), 1.0, axis=0)[0][:, [41, 290]].tobytes()
    propagated, report = gradclip.clip_by_norm(a, 1.0, axis=0, nonfinite="propagate")
    assert math.isnan(report.norms[41])
    assert report.norms[290] == math.inf
    assert np.isnan(propagated[:, 41].astype(np.float64)).all()
    assert np.isnan(propagated[-1, 290].astype(np.float64))
    assert (propagated[:-1, 290] == 0).all()


# ---- units of every size --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(3, 70_000), (200, 1000), (50_000, 2), *slow([(2, 65_536), (3, 65_281), (100_000, 1)])], ids=str
)
def test_rows_of_every_length(shape, threads):
    a = gradient(np.float32, math.prod(shape), seed=7).reshape(shape)
    expected = [math.sqrt(math.fsum(row)) for row in (a.astype(np.float64) ** 2).tolist()]
    threshold = max(expected) / 2
    report = gradclip.clip_by_norm([np.ones(3, np.float32), a, np.ones((0, 4)), np.full((4, 1), 5.0)], threshold, axis=-1)[1]
    assert report.norms[1:-4].tolist() == pytest.approx(expected, rel=2.3e-16)
    assert report.norms[0] == math.sqrt(3)
    assert report.norms[-4:].tolist() == [5.0] * 4
    assert report.size == shape[0] + 5


def test_units_in_the_middle_axis():
    a = gradient(np.float64, 6 * 5 * 4).reshape(6, 5, 4)
    report = gradclip.clip_by_norm(a, 1.0, axis=(0, -1))[1]
    for j in range(5):
        assert norm_error(report.norms[j], power_sum([a[:, j]])) <= 0.501


@pytest.mark.parametrize(("shape", "axis", "count"), [((0, 3), 0, 3), ((0, 3), 1, 0), ((4, 0, 2), 1, 8), ((1, 1), 0, 1)])
def test_empty_and_single_slices(shape, axis, count):
    leaf = np.ones(shape)
    assert gradclip.clip_by_norm_(leaf, 2.0, axis=axis).norms.tolist() == [leaf.sum()] * count


@pytest.mark.parametrize("order", ["C", "F"])
def test_strict_with_a_unit_exactly_on_its_threshold(order):
    """Such a unit is left as it is: no smaller factor could be asked of it."""
    a = np.array([[3.0, 4.0], [6.0, 8.0], [0.0, 5.0], [1.0, 2.0**-40]], order=order)
    report = gradclip.clip_by_norm_(a, 5.0, axis=1, strict=True)
    assert a[[0, 2, 3]].tolist() == [[3.0, 4.0], [0.0, 5.0], [1.0, 2.0**-40]]
    assert power_sum([a[1]]) <= 25
    assert report.clipped_count == 1
    cube = np.array([[1.0, 0.0], [9.0, 9.0]])
    assert gradclip.clip_by_norm_(cube, 1.0, axis=1, ord=3, strict=True).clipped_count == 1
    assert cube[0].tolist() == [1.0, 0.0]


def test_idle_slices_keep_their_bytes():
    a = np.array([[-0.0, 5e-324, 3.0], [0.5, -0.0, 4.0]])
    in_place = a.copy()
    gradclip.clip_by_norm_(in_place, 1.0, axis=0)
    for clipped in (in_place, gradclip.clip_by_norm(a, 1.0, axis=0)[0]):
        assert clipped[:, :2].tobytes() == a[:, :2].tobytes()
        assert clipped[:, 2].tolist() == [3.0 * 0.2, 4.0 * 0.2]


@pytest.mark.parametrize(
    ("axis", "error", "message"),
    [
        (2, ValueError, "b: axis 2 is out of bounds for an array of 2 dim"),
        (-3, ValueError, "axis -3"),
        ((0, 0), ValueError, "twice"),
        ((1, -1), ValueError, "twice"),
        ((), ValueError, "at least one"),
        (True, TypeError, "axis"),
        (1.0, TypeError, "axis"),
        ("0", TypeError, "axis"),
        ((0, None), TypeError, "axis"),
    ],
)
def test_bad_axes_are_named(axis, error, message):
    grads = {"a": np.ones((2, 2, 2)) * np.nan, "b": np.ones((2, 2))}
    if axis == -3:
        grads["a"] = np.ones((2, 3))
    with pytest.raises(error, match=message):
        gradclip.clip_by_norm_(grads, 0.1, axis=axis)
    assert grads["b"].tolist() == [[1, 1], [1, 1]]
    with pytest.raises(ValueError, match="grads: axis 0 is out of bounds for an array of 0 dim"):
        gradclip.clip_by_norm_(np.array(3.0), 1.0, axis=0)


# ---- sizes that nothing can hold -----------------------------------------------------------------------

UNHOLDABLE = [
    ((2**57, 0), lambda g: gradclip.clip_adaptive_(g, g, 0.1)),
    ((0, 2**57), lambda g: gradclip.clip_adaptive_(g, g, 0.1, unit_axis=-1)),
    ((2**60, 0, 2), lambda g: gradclip.clip_adaptive(g, g, 0.1)),
    ((2**57, 0), lambda g: gradclip.clip_by_norm_(g, 1.0, axis=-1)),
    ((0, 2**57), lambda g: gradclip.clip_by_norm(g, 1.0, axis=0)),
    ((2**30, 2**30, 0), lambda g: gradclip.clip_by_norm(g, 1.0, axis=2)),
    ((2**57, 0), lambda g: gradclip.clip_per_sample_(g, 1.0)),
    ((2**57, 0), lambda g: gradclip.per_sample_clip_sum(g, 1.0)),
]


@pytest.mark.parametrize(("shape", "clip"), UNHOLDABLE)
def test_more_units_than_memory_can_hold_are_refused(shape, clip):
    """Empty leaves may have any number of units; the room for these was once worked out with an overflow."""
    with pytest.raises(ValueError, match=r"^w/b: an array of shape .* more than memory can hold a norm of each"):
        clip({"w": {"b": np.zeros(shape, np.float16)}})
    if len(shape) == 2:
        with pytest.raises(MemoryError):
            clip(np.zeros([2**46 if n else 0 for n in shape], np.float16))


def test_empty_leaves_of_any_shape_are_read_and_written():
    for shape in ((2**57, 0), (0, 2**57), (2**60, 0, 2)):
        grads = [np.zeros(shape, np.float16), np.array([3.0, 4.0])]
        report = gradclip.clip_by_global_norm_(grads, 1.0)
        assert (report.norm, report.norms.tolist(), grads[1].tolist()) == (5.0, [0.0, 5.0], [3 * 0.2, 4 * 0.2])
        assert gradclip.clip_by_norm(grads, 1.0)[0][0].shape == shape
        assert gradclip.global_norm(grads, 3) == pytest.approx(91 ** (1 / 3) / 5)


def test_broadcast_views_beyond_any_memory_are_refused():
    one = np.float16(1)
    with pytest.raises(MemoryError):
        gradclip.global_norm(np.broadcast_to(one, (2**30, 2**30)))
    with pytest.raises(ValueError, match=r"2\*\*62 bytes"):
        gradclip.global_norm([np.broadcast_to(one, (2**30, 2**30))] * 3)
    with pytest.raises(ValueError, match="^grads: .* more than memory"):
        gradclip.clip_by_norm(np.broadcast_to(one, (2**50, 2**10)), 1.0, axis=1)
