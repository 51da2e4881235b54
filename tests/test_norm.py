"""clip_by_global_norm, clip_by_norm, normalize, global_norm: meanings, policies and reports."""

import copy
import inspect
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from reference import BFLOAT16, FORMAT, REAL, element_error, gradient, power_sum, snapshot

import gradclip
from gradclip._core import strict
from gradclip._core.call import Request
from gradclip._core.decide import decide
from gradclip._core.engine import HOST
from gradclip._core.options import Options
from gradclip._leaves.leaves import Leaves

IN_PLACE = [gradclip.clip_by_global_norm_, gradclip.clip_by_norm_, gradclip.normalize_]
FUNCTIONAL = [gradclip.clip_by_global_norm, gradclip.clip_by_norm, gradclip.normalize]


def tree():
    return {"a": [np.array([3.0, 0.0]), None], "b": (np.array([[4.0]], np.float32),)}


def test_global_norm_scales_everything_by_one_factor():
    grads = tree()
    report = gradclip.clip_by_global_norm_(grads, 2.5)
    assert (report.norm, report.max_norm, report.scale, report.clipped) == (5.0, 2.5, 0.5, True)
    assert grads["a"][0].tolist() == [1.5, 0.0]
    assert grads["b"][0].tolist() == [[2.0]]
    assert report.norms.tolist() == [3.0, 4.0]
    assert report.scales.tolist() == [0.5, 0.5]
    assert (report.clipped_count, report.size, report.max_abs, report.nonfinite) == (2, 2, 4.0, 0)
    assert (report.skipped, report.first_nonfinite, float(report)) == (False, None, 5.0)


def test_clip_by_norm_gives_each_leaf_its_own_factor():
    grads = [np.array([3.0, 4.0]), np.array([0.5]), np.zeros(3)]
    report = gradclip.clip_by_norm_(grads, 1.0)
    assert [g.tolist() for g in grads] == [[3 * 0.2, 4 * 0.2], [0.5], [0, 0, 0]]
    assert report.norms.tolist() == [5.0, 0.5, 0.0]
    assert report.scales.tolist() == [0.2, 1.0, 1.0]
    assert report.scale == 0.2
    assert report.norm == pytest.approx(math.sqrt(25.25), rel=1e-16)
    assert (report.clipped_count, report.size) == (1, 3)


def test_normalize_reaches_its_target_up_and_down():
    for value in (0.01, 100.0):
        a = np.full(4, value)
        report = gradclip.normalize_(a, 3.0, eps=0.0)
        assert a.tolist() == [1.5] * 4
        assert report.clipped
        assert report.max_norm == 3.0
    zero = np.zeros(5)
    assert not gradclip.normalize_(zero).clipped
    assert gradclip.normalize_(np.full(4, 1.0), 1.0).scale == 1.0 / (2.0 + 1e-12)
    leaves = [np.array([3.0, 4.0]), np.array([0.5]), np.zeros(2)]
    report = gradclip.normalize_(leaves, per_leaf=True, eps=0)
    assert [g.tolist() for g in leaves] == [[3 * 0.2, 4 * 0.2], [1.0], [0.0, 0.0]]
    assert report.scale == 0.2


@pytest.mark.parametrize("clip", FUNCTIONAL)
def test_functional_leaves_its_input_alone(clip):
    grads = tree()
    before = snapshot([grads["a"][0], grads["b"][0]])
    clipped, report = clip(grads, 1.0)
    assert snapshot([grads["a"][0], grads["b"][0]]) == before
    assert list(clipped) == ["a", "b"]
    assert clipped["a"][1] is None
    assert isinstance(clipped["b"], tuple)
    assert clipped["b"][0].dtype == np.float32
    assert clipped["b"][0].shape == (1, 1)
    assert not np.shares_memory(clipped["a"][0], grads["a"][0])
    assert report.clipped


@pytest.mark.parametrize("pair", list(zip(IN_PLACE, FUNCTIONAL, strict=True)), ids=lambda p: p[1].__name__)
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_in_place_functional_and_out_agree(pair, dtype):
    a = [gradient(dtype, 5000), gradient(dtype, 33).reshape(3, 11).T]
    functional, report = pair[1](a, 0.7)
    out = [np.zeros_like(x) for x in a]
    returned, _ = pair[1](a, 0.7, out=out)
    assert returned is out
    itself = [x.copy() for x in a]
    pair[1](itself, 0.7, out=itself)
    there = pair[0](a, 0.7)
    for x, y, z, w in zip(a, functional, out, itself, strict=True):
        assert x.tolist() == y.tolist() == z.tolist() == w.tolist()
    assert there.norm == report.norm


def test_unclipped_functional_copies_and_out_is_filled():
    a = np.array([0.1, -0.0, 0.2])
    copy, report = gradclip.clip_by_global_norm(a, 1.0)
    assert copy.tobytes() == a.tobytes()
    assert copy is not a
    assert not report.clipped
    out = np.ones(3)
    gradclip.clip_by_global_norm(a, 1.0, out=out)
    assert out.tobytes() == a.tobytes()
    strided = np.ones(6)[::2]
    gradclip.clip_by_global_norm(a, 0.1, out=strided)
    assert strided.tolist() == gradclip.clip_by_global_norm(a, 0.1)[0].tolist()


def test_zero_and_infinite_thresholds():
    a = np.array([3.0, -4.0])
    assert not gradclip.clip_by_global_norm_(a, math.inf).clipped
    assert a.tolist() == [3.0, -4.0]
    report = gradclip.clip_by_global_norm_(a, 0)
    assert report.clipped
    assert a.tolist() == [0.0, 0.0]
    assert not gradclip.clip_by_global_norm_(a, 0).clipped


def test_eps_gives_pytorchs_factor():
    a = np.array([3.0, 4.0])
    report = gradclip.clip_by_global_norm_(a, 1.0, eps=1e-6)
    assert report.scale == 1.0 / (5.0 + 1e-6)


def test_factors_below_float32_keep_bfloat16(isa):
    a = np.array([3e38, -2e38] * 20, BFLOAT16)
    clipped, report = gradclip.clip_by_global_norm(a, 1e-12)  # by 1e-51
    assert element_error(clipped, a, report.scale) <= 0.501
    assert gradclip.global_norm(clipped) == pytest.approx(1e-12, rel=0.01)


@pytest.mark.parametrize("ord", [1, 2, math.inf, np.inf, 1.0, np.int64(2)])
def test_ord(ord):
    a = [np.array([1.0, -2.0]), np.array([2.0], np.float32)]
    expected = np.linalg.norm([1.0, -2.0, 2.0], ord)
    assert gradclip.global_norm(a, ord) == expected
    report = gradclip.clip_by_global_norm_(a, 1.0, ord=ord)
    assert report.norm == expected
    assert gradclip.global_norm(a, ord) == pytest.approx(1.0, rel=1e-7)


def test_empty_inputs():
    for empty in ([], {}, (), [None], {"a": []}, np.zeros(0), [np.zeros((0, 3))]):
        report = gradclip.clip_by_global_norm_(empty, 1.0)
        assert report.norm == 0.0
        assert not report.clipped
        assert report.max_abs == 0.0
        assert gradclip.clip_by_norm_(empty, 1.0).scale == 1.0
    assert gradclip.clip_by_global_norm([], 1.0)[0] == []


# ---- NaN and Inf ------------------------------------------------------------------------------------


def poisoned():
    return {
        "w": np.array([3.0, np.nan, -np.inf]),
        "b": np.array([[1.0, 2.0], [np.inf, 4.0]], np.float32).T,
        "c": np.array([4.0]),
    }


@pytest.mark.parametrize("clip", IN_PLACE)
def test_raise_names_the_first_and_writes_nothing(clip):
    grads = poisoned()
    before = snapshot(grads.values())
    with pytest.raises(
        gradclip.NonFiniteGradientError, match=r"w: nan at flat index 1 \(NaN or Inf in all leaves: 3\)"
    ) as caught:
        clip(grads, 1.0)
    assert (caught.value.path, caught.value.index, caught.value.count) == ("w", 1, 3)
    assert isinstance(caught.value, FloatingPointError)
    assert math.isnan(caught.value.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert snapshot(grads.values()) == before


def test_first_nonfinite_counts_in_index_order():
    a = np.zeros((100, 300), np.float32)
    a[7, 5] = np.nan
    a[3, 299] = np.inf
    for view, index in ((a, 3 * 300 + 299), (a.T, 5 * 100 + 7), (a[::-1, ::-1], (99 - 7) * 300 + (299 - 5))):
        report = gradclip.clip_by_global_norm([np.ones(5), view], 1.0, nonfinite="skip")[1]
        assert report.first_nonfinite == ("1", index)
        assert report.nonfinite == 2


@pytest.mark.parametrize("clip", IN_PLACE)
def test_skip_writes_nothing(clip):
    grads = poisoned()
    before = snapshot(grads.values())
    report = clip(grads, 1.0, nonfinite="skip")
    assert report.skipped
    assert not report.clipped
    assert report.scale == 1.0
    assert snapshot(grads.values()) == before
    fine = {"a": np.ones(3)}
    assert not clip(fine, 1.0, nonfinite="skip").skipped


def test_skip_in_functional_forms():
    grads = poisoned()
    copy, report = gradclip.clip_by_global_norm(grads, 1.0, nonfinite="skip")
    assert report.skipped
    assert snapshot(copy.values()) == snapshot(grads.values())
    out = {k: np.full_like(v, 7) for k, v in grads.items()}
    gradclip.clip_by_global_norm(grads, 1.0, nonfinite="skip", out=out)
    assert all((v == 7).all() for v in out.values())


def test_zero_replaces_and_clips_the_rest():
    grads = poisoned()
    report = gradclip.clip_by_global_norm_(grads, 1.0, nonfinite="zero")
    norm = math.sqrt(9 + 1 + 4 + 16 + 16)
    assert report.norm == norm
    assert report.nonfinite == 3
    assert report.max_abs == 4.0
    assert grads["w"].tolist() == [3.0 * (1 / norm), 0.0, 0.0]
    assert grads["b"][0, 1] == 0.0
    alone = poisoned()
    report = gradclip.clip_by_global_norm_(alone, 100.0, nonfinite="zero")
    assert not report.clipped
    assert alone["w"].tolist() == [3.0, 0.0, 0.0]
    assert alone["c"].tolist() == [4.0]
    per_leaf = poisoned()
    report = gradclip.clip_by_norm_(per_leaf, 1.0, nonfinite="zero")
    assert per_leaf["w"].tolist() == [1.0, 0.0, 0.0]
    assert report.norms[0] == 3.0


def test_propagate_follows_ieee_as_pytorch_does():
    a = [np.array([1.0, np.inf]), np.array([2.0])]
    report = gradclip.clip_by_global_norm_(a, 1.0, nonfinite="propagate")
    assert report.norm == math.inf
    assert report.scale == 0.0
    assert np.isnan(a[0][1])
    assert a[0][0] == a[1][0] == 0.0
    b = [np.array([1.0, np.nan]), np.array([2.0, np.inf])]
    report = gradclip.clip_by_global_norm_(b, 1.0, nonfinite="propagate")
    assert math.isnan(report.norm)
    assert math.isnan(report.scale)
    assert np.isnan(b[0]).all()
    assert np.isnan(b[1]).all()
    c = [np.array([np.nan, 1.0]), np.array([3.0, 4.0])]
    gradclip.clip_by_norm_(c, 1.0, nonfinite="propagate")
    assert np.isnan(c[0]).all()
    assert c[1].tolist() == [3 * 0.2, 4 * 0.2]


@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32, np.float64, np.complex64])
def test_policies_in_every_dtype(isa, dtype, nonfinite):
    a = np.zeros(9000, dtype)
    a[8999] = 3
    a[5000] = np.nan
    a[17] = np.inf
    report = gradclip.clip_by_global_norm_(a, 1.5, nonfinite=nonfinite)
    assert report.nonfinite == 2
    assert report.first_nonfinite == ("grads", 17)
    if nonfinite == "zero":
        assert a[17] == a[5000] == 0
        assert a[8999] == 1.5
    else:
        assert np.isnan(a.astype(np.complex128)).all()


def test_global_norm_shows_nan_and_inf():
    assert math.isnan(gradclip.global_norm([np.array([np.nan, np.inf])]))
    assert gradclip.global_norm([np.array([1.0, -np.inf])]) == math.inf


# ---- grad_scale ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1024.0, 3.0, 0.1])
def test_grad_scale_speaks_of_the_true_gradient(scale):
    true = gradient(np.float64, 1000)
    scaled = true * scale
    norm = np.linalg.norm(true)
    report = gradclip.clip_by_global_norm_(scaled.copy(), norm / 2, grad_scale=scale)
    assert report.norm == pytest.approx(norm, rel=1e-15)
    assert report.max_abs == pytest.approx(np.abs(true).max(), rel=1e-15)
    assert report.scale == pytest.approx(0.5 / scale, rel=1e-15)
    unscaled = scaled.copy()
    report = gradclip.clip_by_global_norm_(unscaled, math.inf, grad_scale=scale)
    assert not report.clipped
    assert report.scale == 1.0 / scale
    assert unscaled.tolist() == (scaled * (1.0 / scale)).tolist()


def test_grad_scale_saves_float16_from_two_roundings():
    scaled = np.full(4, 2.0**-10, np.float16)
    report = gradclip.clip_by_global_norm_(scaled, 2.0**-15, grad_scale=32.0)
    assert report.norm == 2.0**-14
    assert scaled.tolist() == [2.0**-16] * 4


# ---- strict -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ord", [1, 2, math.inf])
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_strict_keeps_the_bound_in_exact_arithmetic(isa, dtype, ord):
    rng = np.random.default_rng(11)
    for seed in range(12):
        a = [gradient(dtype, n, seed=seed + 20) for n in (3, 100, 1000)]
        norm = gradclip.global_norm(a, ord)
        threshold = norm * rng.uniform(0.001, 1.0)
        report = gradclip.clip_by_global_norm_(a, threshold, strict=True, ord=ord)
        bound = Fraction(threshold) ** (2 if ord == 2 else 1)
        written = power_sum(a, ord)
        assert report.clipped
        assert written <= bound
        assert written >= bound * Fraction(97, 100)
        before = snapshot(a)
        assert not gradclip.clip_by_global_norm_(a, threshold, strict=True, ord=ord).clipped
        assert snapshot(a) == before


def test_strict_by_leaf_normalized_unscaled_and_tiny():
    leaves = [gradient(np.float16, 50, seed=s) for s in range(8)]
    gradclip.clip_by_norm_(leaves, 0.3, strict=True)
    assert all(power_sum([x]) <= Fraction(0.3) ** 2 for x in leaves)
    leaves = [gradient(BFLOAT16, 50, seed=s) for s in range(8)]
    gradclip.normalize_(leaves, 7.0, strict=True)
    assert Fraction(6.8) ** 2 < power_sum(leaves) <= Fraction(7.0) ** 2
    scaled = gradient(np.float16, 300)
    gradclip.clip_by_global_norm_(scaled, 0.1, strict=True, grad_scale=3.0)
    assert power_sum([scaled]) <= Fraction(0.1) ** 2
    tiny = np.ones(4, np.float16)  # the threshold is below the smallest subnormal's reach
    gradclip.clip_by_global_norm_(tiny, 1e-8, strict=True)
    assert tiny.tolist() == [0.0] * 4


def test_strict_counts_overflow_as_above_any_bound():
    for a, options in ((np.full(4, 1e-3, np.float16), {}), (np.full(4, 6e4, np.float16), {"grad_scale": 0.01})):
        clip = gradclip.clip_by_global_norm if options else gradclip.normalize
        clipped, _ = clip(a, 1e6, strict=True, **options)
        assert np.isfinite(clipped).all()
        assert power_sum([clipped]) <= Fraction(1e6) ** 2


@pytest.mark.parametrize(("size", "value", "target"), [(285, 8078.1, 136406.09143992668), (979, 7134.46, 223278.10822688323)])
def test_strict_reaches_norms_beyond_the_largest_element(size, value, target):
    a = np.full(size, value, np.float16)
    clipped, _ = gradclip.normalize(a, target, strict=True)  # takes all rounds
    assert 0.996 * target < gradclip.global_norm(clipped) <= target


@pytest.mark.parametrize(("dtype", "most"), [(np.dtype(np.float16), 65504.0), (BFLOAT16, 2.0**128 - 2.0**120)], ids=str)
def test_strict_normalizes_up_to_the_largest_number(dtype, most):
    """Beyond it no element can go, whatever the norm."""
    for a in (np.ones(10_000, dtype), np.linspace(0.1, 3, 500).astype(dtype), np.full(3, 1e-3, dtype)):
        target = 1e9 if dtype == np.float16 else 1e300
        for clipped in (
            gradclip.normalize(a, target, strict=True)[0],
            gradclip.normalize([np.zeros(3, np.float32), a], target, strict=True, grad_scale=7.0)[0][1],
            gradclip.apply_clip(a, gradclip.measure(a, grad_scale=1e-300), 1e304, strict=True)[0],
        ):
            assert clipped.max() == most


def test_strict_limits_leaves_that_share_a_factor():
    """Each leaf limits the factor by its own largest element and number; leaves without elements have no say."""
    a = np.array([1e4, 1.0], np.float16)
    assert gradclip.apply_clip(a, gradclip.measure(a, grad_scale=1e-305), 1e308, strict=True)[0][0] == 65504
    mixed = [np.ones(4, np.float16), np.full(9, 1e30, np.float32)]
    assert gradclip.normalize(mixed, 1e45, strict=True)[1].scale == 65504
    grown = gradclip.normalize([np.zeros(0, np.float16), np.ones(9, np.float32)], 1e45, strict=True)[0][1]
    assert grown.max() == np.finfo(np.float32).max


def test_strict_normalizes_to_what_the_dtype_holds():
    for target in (1e6, 1e30):
        a = gradient(np.float16, 300)
        gradclip.normalize_(a, target, strict=True)
        assert np.isfinite(a).all()
        assert (a != 0).any()
        assert power_sum([a]) <= Fraction(target) ** 2


@pytest.mark.parametrize("rounds", [1, 4])
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_strict_reads_a_few_times_and_no_more(dtype, rounds, monkeypatch):
    """What is over its bound in the last of them is safe without."""
    monkeypatch.setattr(strict, "ROUNDS", rounds)
    for seed in range(20):
        for a in (gradient(dtype, 300, seed=seed), np.full(300, 1 + seed / 7, dtype), gradient(dtype, 300, "tiny", seed)):
            for threshold in (0.7 * gradclip.global_norm(a), 1e-7 * seed):
                written, engine = a.copy(), Counting()
                request = Request(Options(strict=True), threshold)
                request.to = Leaves(written, True)
                _, plan = decide(engine, request, HOST.measure(request.to, 2.0))
                if plan is not None:
                    HOST.write(request.to, plan)
                assert power_sum([written]) <= Fraction(threshold) ** 2
                assert engine.reads <= rounds


class Counting:
    """The engine of the host, as far as `strict` asks it, that counts its reads."""

    reads = 0

    def measure_written(self, *args):
        self.reads += 1
        return HOST.measure_written(*args)


@pytest.mark.parametrize("ord", [1, 2])
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_strict_leaves_something_where_rounding_could_add_more_than_the_bound(dtype, ord, monkeypatch):
    monkeypatch.setattr(strict, "ROUNDS", 1)
    least = 2.0 ** FORMAT[str(dtype)][1]
    for units in range(5, 40):
        a = np.array([1.0] + [0.002] * 999).astype(dtype)
        gradclip.clip_by_global_norm_(a, units * least, strict=True, ord=ord)
        assert 0.1 * units * least < np.abs(a.astype(np.float64)).max()
        assert power_sum([a], ord) <= Fraction(units * least) ** ord


def test_normalize_changes_nothing_at_its_target():
    a = np.array([3.0, 4.0])
    report = gradclip.normalize_(a, 5.0, eps=0)
    assert (report.clipped, report.scale) == (False, 1.0)
    with pytest.raises(TypeError, match="per_leaf"):
        gradclip.normalize_(a, per_leaf="no")


def test_strict_decides_by_the_exact_norm():
    a = np.array([1.0, 2.0**-30])  # norm rounds to 1.0, and is above it
    assert gradclip.global_norm(a) == 1.0
    assert not gradclip.clip_by_global_norm_(a.copy(), 1.0).clipped
    report = gradclip.clip_by_global_norm_(a, 1.0, strict=True)
    assert report.clipped
    assert power_sum([a]) <= 1
    for tiny in (1e-10, 1e-25, 1e-100, 5e-324):  # far below what the sum of a pass carries
        a = np.array([math.pi, tiny])
        assert gradclip.clip_by_global_norm_(a, math.pi, strict=True).clipped
        assert power_sum([a]) <= Fraction(math.pi) ** 2
    exact = np.array([3.0, 4.0])
    assert not gradclip.clip_by_global_norm_(exact, 5.0, strict=True).clipped
    assert not gradclip.clip_by_norm_([exact, np.array([1e-30])], 5.0, strict=True).clipped


# ---- arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [*IN_PLACE, *FUNCTIONAL])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_norm": -1.0}, ValueError, "at least 0"),
        ({"max_norm": math.nan}, ValueError, "at least 0"),
        ({"max_norm": "1"}, TypeError, "real number"),
        ({"max_norm": None}, TypeError, "real number"),
        ({"max_norm": True}, TypeError, "real number"),
        ({"max_norm": 1j}, TypeError, "real number"),
        ({"max_norm": np.ones(2)}, TypeError, "real number"),
        ({"max_norm": np.array("1")}, TypeError, "real number"),
        ({"max_norm": np.datetime64(1, "s")}, TypeError, "real number"),
        ({"grad_scal": 2.0}, TypeError, "unexpected keyword argument 'grad_scal'; the keywords of norms are ord, eps"),
        ({"max_norm": 10**400}, ValueError, "range"),
        ({"eps": -1e-9}, ValueError, "eps"),
        ({"eps": math.inf}, ValueError, "eps"),
        ({"eps": math.nan}, ValueError, "eps"),
        ({"eps": "tiny"}, TypeError, "eps"),
        ({"nonfinite": "ignore"}, ValueError, "'raise', 'skip', 'zero', 'propagate'"),
        ({"nonfinite": None}, TypeError, "nonfinite"),
        ({"grad_scale": 0.0}, ValueError, "grad_scale"),
        ({"grad_scale": -2.0}, ValueError, "grad_scale"),
        ({"grad_scale": math.inf}, ValueError, "grad_scale"),
        ({"grad_scale": []}, TypeError, "grad_scale"),
        ({"ord": 0}, ValueError, "ord"),
        ({"ord": -1}, ValueError, "ord"),
        ({"ord": math.nan}, ValueError, "ord"),
        ({"ord": "fro"}, TypeError, "ord"),
        ({"strict": "yes"}, TypeError, "strict"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_read(clip, arguments, error, message):
    a = np.array([3.0, np.nan])
    before = a.tobytes()
    arguments = dict(arguments)
    threshold = arguments.pop("max_norm", 1.0)
    with pytest.raises(error, match=message):
        clip(a, threshold, **arguments)
    assert a.tobytes() == before


def test_numbers_of_other_kinds_are_thresholds():
    for one in (1, np.float32(1), np.int8(1), Fraction(1), np.array(1.0)):
        assert gradclip.clip_by_global_norm([np.array([2.0])], one)[1].scale == 0.5
    with pytest.raises(ValueError, match="finite"):
        gradclip.normalize_(np.ones(2), math.inf)


def test_report_is_immutable_and_fits_a_line():
    report = gradclip.clip_by_global_norm_([np.array([3.0, 4.0])], 1.0)
    with pytest.raises(AttributeError):
        report.norm = 2.0
    with pytest.raises(AttributeError):
        report.anything = 2.0
    assert repr(report) == "ClipReport(norm=5.0, max_norm=1.0, scale=0.2, clipped=True)"
    bad = gradclip.clip_by_global_norm_([np.array([np.nan])], 1.0, nonfinite="skip")
    assert "nonfinite=1, first_nonfinite=('0', 0), skipped=True" in repr(bad)
    assert "\n" not in repr(bad)
    with pytest.raises(ValueError, match="read-only"):
        report.scales[0] = 1.0
    assert f"{report:.2f}" == "5.00"
    assert f"{report}" == repr(report)


@pytest.mark.parametrize("clip", FUNCTIONAL)
def test_report_can_be_pickled_and_copied(clip):
    _, report = clip([np.array([3.0, np.nan]), np.array([4.0])], 1.0, nonfinite="zero")
    for again in (pickle.loads(pickle.dumps(report)), copy.deepcopy(report), pickle.loads(pickle.dumps(copy.copy(report)))):
        assert repr(again) == repr(report)
        assert again.norms.tolist() == report.norms.tolist()
        assert again.scales.tolist() == report.scales.tolist()
        assert (again.size, again.clipped_count, again.max_abs) == (report.size, report.clipped_count, report.max_abs)


def test_help_spells_the_keywords_out():
    for clip in (*IN_PLACE, *FUNCTIONAL, gradclip.apply_clip, gradclip.apply_clip_):
        names = list(inspect.signature(clip).parameters)
        names = [name for name in names if name not in ("skip_above", "comm", "owned")]  # which have tests of their own
        assert names[-3:] == ["nonfinite", "grad_scale", "strict"]
        assert len(set(names)) == len(names)


def test_report_outlives_a_change_of_its_gradients():
    a = np.array([3.0, 4.0])
    report = gradclip.clip_by_global_norm_(a, 1.0)
    a[:] = 100
    assert report.norm == 5.0
    assert report.norms.tolist() == [5.0]
