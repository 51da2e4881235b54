"""Samples with a norm in each leaf or group, samples that are normalised, and padded ones; and the sensitivity of all these."""

import math
from fractions import Fraction

import numpy as np
import pytest
from gpu_leaves import across, assert_same_bits, assert_same_report, there
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import BFLOAT16, COMPLEX, REAL, power_sum, rounded_norm, snapshot
from test_middles import ties
from test_per_sample import contributions, samples, within

import gradclip
from gradclip.thresholds import PrivateQuantile

CLIPS = (gradclip.clip_per_sample_, gradclip.clip_per_sample, gradclip.per_sample_clip_sum)


def model(dtype=np.float32, batch=5):
    """Three leaves, the second of which is in no group of GROUPS."""
    shapes = {"w": (batch, 30), "x": (batch, 4, 2), "b": (batch,)}
    return {name: samples(dtype, shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


GROUPS = {"[wb]": "own"}
NORMS = st.fixed_dictionaries(
    {
        "ord": st.sampled_from([1, 2, math.inf, 3]),
        "grad_scale": st.sampled_from([1.0, 3.0, 0.25]),
        "normalize": st.booleans(),
        "eps": st.sampled_from([0.0, 0.01]),
        "nonfinite": st.sampled_from(["zero", "propagate"]),
    }
)


# ---- a norm in each leaf or group ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([*REAL, *COMPLEX]), NORMS, st.booleans(), st.booleans())
def test_each_part_is_clipped_as_if_it_were_alone(dtype, norm, bad, grouped):
    grads = model(dtype)
    if bad:
        grads["b"][3] = np.nan
    limits = {"own": 0.75, "rest": 3.0} if grouped else {"w": 0.75, "x": 3.0, "b": 0.125}
    names = {"w": "own", "x": "rest", "b": "own"} if grouped else {name: name for name in grads}
    more = {"groups": names} if grouped else {}
    before = snapshot(grads.values())
    sums, report = gradclip.per_sample_clip_sum(grads, limits, **norm, **more)
    clipped, functional = gradclip.clip_per_sample(grads, limits, **norm, **more)
    assert snapshot(grads.values()) == before
    mine = {name: a.copy() for name, a in grads.items()}
    gradclip.clip_per_sample_(mine, limits, **norm, **more)
    assert snapshot(mine.values()) == snapshot(clipped.values())
    norms, scales, summed = [], [], []
    for name, limit in limits.items():
        own = {k: a for k, a in grads.items() if names[k] == name}
        alone, told = gradclip.per_sample_clip_sum(own, limit, **norm)
        assert snapshot(alone.values()) == snapshot(sums[k] for k in own)
        summed.append(told.scales)
        alone, told = gradclip.clip_per_sample(own, limit, **norm)
        assert snapshot(alone.values()) == snapshot(clipped[k] for k in own)
        norms.append(told.norms)
        scales.append(told.scales)
    assert report.norms.tobytes() == functional.norms.tobytes() == np.concatenate(norms).tobytes()
    assert functional.scales.tobytes() == np.concatenate(scales).tobytes()
    assert report.scales.tobytes() == np.concatenate(summed).tobytes()
    assert report.size == functional.size == 5 * len(limits)
    assert report.groups == (tuple(limits) if grouped else None)
    assert report.sensitivity == functional.sensitivity == pytest.approx(math.sqrt(sum(c * c for c in limits.values())))


@pytest.mark.parametrize("dtype", [*REAL, *COMPLEX], ids=str)
@pytest.mark.parametrize("normalize", [False, True])
def test_what_a_sample_adds_keeps_each_threshold_exactly(dtype, normalize):
    grads = list(model(dtype).values())
    for out in (None, [np.empty(a.shape[1:], np.float16) for a in grads] if dtype.kind != "c" else None):
        for term in contributions(grads, [0.7, 0.3, 0.1], normalize=normalize, out=out):
            assert all(within([a], c) for a, c in zip(term, [0.7, 0.3, 0.1], strict=True))
        for term in contributions(grads, {"x": 0.7, "y": 0.1}, groups=["x", "y", "x"], normalize=normalize, out=out):
            assert within([term[0], term[2]], 0.7)
            assert within([term[1]], 0.1)


def test_norms_in_groups_are_correctly_rounded_in_the_middle():
    for k in (3, 6):
        for x in (0.1, 1 / 3, *ties(k, 3)):
            a, b = np.split(np.full((2, k * k), x), [k], axis=1)
            other = np.full((2, 7), 0.3)
            report = gradclip.clip_per_sample([a, other, b], 1.0, groups=["u", "v", "u"], mask=[False, True])[1]
            assert report.norms.tolist() == [0.0, rounded_norm([a[1], b[1]]), 0.0, rounded_norm([other[1]])]
            assert report.norm == rounded_norm([a[1], b[1], other[1]])


def test_a_leaf_without_threshold_is_added_whole():
    grads = model(np.float64)
    for more, max_norm in (({"groups": GROUPS}, 1.0), ({}, {"w": 1.0, "b": 0.5})):
        for normalize in (False, True):
            sums, report = gradclip.per_sample_clip_sum(grads, max_norm, normalize=normalize, **more)
            assert np.allclose(sums["x"], grads["x"].sum(0), rtol=1e-14)
            assert report.sensitivity == math.inf
            clipped, _ = gradclip.clip_per_sample(grads, max_norm, normalize=normalize, **more)
            assert np.array_equal(clipped["x"], grads["x"])
        assert len(report.norms) == len(report.scales) == report.size == (5 if more else 15)


def test_strict_holds_for_each_group_of_each_sample():
    grads = model(np.float16)
    clipped, _ = gradclip.clip_per_sample(grads, 0.3, groups=GROUPS, strict=True)
    for i in range(5):
        assert power_sum([clipped["w"][i : i + 1], clipped["b"][i : i + 1]]) <= Fraction(0.3) ** 2


def test_sensitivity():
    grads = model()
    for clip in CLIPS:
        for max_norm, more, expected in (
            (3.0, {}, 3.0),
            (math.inf, {}, math.inf),
            ({"w": 3.0, "x": 4.0, "b": 12.0}, {}, 13.0),
            ({"*": 2.0}, {}, math.sqrt(12)),
            (3.0, {"groups": {"w": "a", "*": "b"}}, math.sqrt(18)),
            ({"a": 3.0, "b": 4.0}, {"groups": {"w": "a", "*": "b"}, "normalize": True}, 5.0),
            (PrivateQuantile(1.0, start=0.5, rng=0), {}, 0.5),
        ):
            found = clip({k: a.copy() for k, a in grads.items()}, max_norm, **more)
            report = found[1] if isinstance(found, tuple) else found
            assert report.sensitivity == pytest.approx(expected, rel=1e-15)
        found = clip([], 2.0)
        assert (found[1] if isinstance(found, tuple) else found).sensitivity == 2.0


# ---- normalised samples ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.0, 0.01])
@pytest.mark.parametrize("grad_scale", [1.0, 4.0])
def test_every_sample_is_brought_to_the_threshold(eps, grad_scale):
    a = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [1e-300, 0.0]]) * grad_scale
    clipped, report = gradclip.clip_per_sample(a, 2.0, normalize=True, eps=eps, grad_scale=grad_scale)
    norms = np.array([5.0, 0.5, 0.0, 1e-300])
    assert report.norms.tolist() == norms.tolist()
    factors = 2.0 / (norms[[0, 1, 3]] + eps) / grad_scale
    assert report.scales[[0, 1, 3]] == pytest.approx(factors, rel=1e-15)
    assert clipped[[0, 1, 3]] == pytest.approx(a[[0, 1, 3]] * factors[:, None], rel=1e-15)
    assert clipped[2].tolist() == [0.0, 0.0]
    assert (report.clipped_count, report.size) == (sum(f != 1 for f in factors), 4)
    sums, report = gradclip.per_sample_clip_sum(a, 2.0, normalize=True, eps=eps, grad_scale=grad_scale)
    assert sums == pytest.approx(clipped.sum(0), rel=1e-14)
    assert report.scales[[0, 1, 3]] == pytest.approx(factors, rel=1e-14)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32], ids=str)
def test_a_threshold_beyond_the_dtype_gives_no_inf(dtype):
    most = float(np.finfo(dtype).max) if dtype is not BFLOAT16 else 3.38e38
    sums, _ = gradclip.per_sample_clip_sum(np.array([[1.0, 0.0]], dtype), most * 1.5, normalize=True)
    assert np.isfinite(sums.astype(np.float64)).all()
    assert sums[0] > most / 2


def test_what_does_not_go_with_normalize_or_groups():
    for clip in CLIPS:
        with pytest.raises(ValueError, match="max_norm must be finite"):
            clip(np.ones((2, 2)), math.inf, normalize=True)
        with pytest.raises(TypeError, match="normalize must be True or False"):
            clip(np.ones((2, 2)), 1.0, normalize=1)
        for more in ({"normalize": True}, {"groups": "a"}):
            with pytest.raises(TypeError, match="PrivateQuantile counts samples"):
                clip(np.ones((2, 2)), PrivateQuantile(1.0), **more)
        with pytest.raises(ValueError, match="max_norm has the name 'x', which no leaf has"):
            clip(np.ones((2, 2)), {"x": 1.0}, groups="a")
        with pytest.raises(ValueError, match="matches no path"):
            clip({"w": np.ones((2, 2))}, {"v*": 1.0})


# ---- padded samples --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"groups": GROUPS}, {"normalize": True}, {"grad_scale": 3.0}, {"ord": 3}], ids=str)
@pytest.mark.parametrize("max_norm", [0.5, {"*": 0.5}], ids=str)
@pytest.mark.parametrize("nonfinite", ["raise", "skip", "zero", "propagate"])
def test_padded_samples_are_as_if_they_were_not_there(more, max_norm, nonfinite):
    grads, mask = model(np.float64, 6), np.array([True, False, True, True, False, True])
    for a in grads.values():
        a[~mask] = np.nan if a.ndim == 1 else np.inf
    real = {k: a[mask] for k, a in grads.items()}
    norm = {**more, "nonfinite": nonfinite}
    sums, report = gradclip.per_sample_clip_sum(grads, max_norm, mask=mask.tolist(), **norm)
    expected, own = gradclip.per_sample_clip_sum(real, max_norm, **norm)
    assert snapshot(sums.values()) == snapshot(expected.values())
    clipped, functional = gradclip.clip_per_sample(grads, max_norm, mask=mask, **norm)
    expected, alone = gradclip.clip_per_sample(real, max_norm, **norm)
    for k, a in clipped.items():
        assert a[mask].tobytes() == expected[k].tobytes()
        assert a[~mask].tobytes() == grads[k][~mask].tobytes()
    mine = {k: a.copy() for k, a in grads.items()}
    gradclip.clip_per_sample_(mine, max_norm, mask=mask, **norm)
    assert snapshot(mine.values()) == snapshot(clipped.values())
    for found, want in ((report, own), (functional, alone)):
        every = np.tile(mask, len(found.norms) // 6)
        assert found.norms[every].tolist() == want.norms.tolist()
        assert found.scales[every].tolist() == want.scales.tolist()
        assert not found.norms[~every].any()
        assert (found.scales[~every] == 1).all()
        facts = [(r.size, r.clipped_count, r.scale, r.nonfinite, r.first_nonfinite, r.skipped) for r in (found, want)]
        assert facts[0] == facts[1]
        assert found.norm == pytest.approx(want.norm, rel=1e-15)


def test_the_first_nan_of_a_sample_that_counts_is_named():
    a = np.ones((4, 3))
    a[0, 0] = a[2, 1] = a[3, 0] = np.nan
    grads = {"v": np.array([np.inf, 1, 1, 1]), "w": a}
    mask = np.array([False, True, True, True])
    for clip in CLIPS:
        with pytest.raises(gradclip.NonFiniteGradientError, match="^w: nan at flat index 7 .*: 2"):
            clip(grads, 1.0, mask=mask)
    sums, report = gradclip.per_sample_clip_sum(grads, 9.0, mask=mask, nonfinite="zero")
    assert (sums["w"].tolist(), sums["v"].tolist(), report.nonfinite, report.first_nonfinite) == ([1, 1, 1], 1.0, 2, ("w", 7))


def test_a_private_threshold_counts_no_padded_samples():
    with_padding, without = PrivateQuantile(1.0, start=1.0, rng=3), PrivateQuantile(1.0, start=1.0, rng=3)
    a = np.array([[0.5], [9.0], [7.0], [0.1]])
    gradclip.per_sample_clip_sum(a, with_padding, mask=np.array([True, False, False, True]))
    gradclip.per_sample_clip_sum(a[[0, 3]], without)
    assert with_padding.threshold == without.threshold


def test_masks_of_all_and_none():
    a = model()
    for clip in CLIPS[1:]:
        assert snapshot(clip(a, 0.5, mask=np.ones(5, bool))[0].values()) == snapshot(clip(a, 0.5)[0].values())
    sums, report = gradclip.per_sample_clip_sum(a, 0.5, mask=np.zeros(5, bool))
    assert (not sums["w"].any(), report.size, report.norm, report.scale, report.clipped) == (True, 0, 0.0, 1.0, False)
    assert gradclip.per_sample_clip_sum([], 0.5, mask=np.zeros(3, bool))[1].size == 0


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ([1, 0, 1, 1, 1], TypeError, "mask must hold a bool for each sample, not int64"),
        ([True] * 4, ValueError, r"mask has shape \(4,\), but there are 5 samples"),
        ([[True] * 5], ValueError, r"mask has shape \(1, 5\)"),
        (True, ValueError, r"mask has shape \(\)"),
        ("yes", TypeError, "mask must hold a bool"),
    ],
)
def test_bad_masks(mask, error, message):
    grads = model()
    before = snapshot(grads.values())
    for clip in CLIPS:
        with pytest.raises(error, match=message):
            clip(grads, 0.1, mask=mask)
    assert snapshot(grads.values()) == before


# ---- GPUs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_norm", "more"),
    [
        (0.5, {"normalize": True}),
        (0.5, {"mask": np.array([True, False, True, True, False])}),
        ({"w": 0.5, "x": 0.25, "b": 0.1}, {}),
        ({"w": 0.5, "x": 0.25}, {"mask": np.array([True, False, True, True, True]), "normalize": True}),
        (0.5, {"groups": GROUPS}),
    ],
    ids=str,
)
@pytest.mark.parametrize("nonfinite", ["raise", "zero"])
def test_on_gpus_as_on_the_host(cupy, max_norm, more, nonfinite):
    grads = model()
    if nonfinite == "zero":
        grads["x"][3, 1, 1] = np.nan
    gpu_more = {k: cupy.asarray(v) if k == "mask" else v for k, v in more.items()}
    sums, report = gradclip.per_sample_clip_sum(grads, max_norm, nonfinite=nonfinite, **more)
    clipped, functional = gradclip.clip_per_sample(grads, max_norm, nonfinite=nonfinite, **more)
    for gpu in (there(cupy, grads), across(cupy, 2, grads), {**there(cupy, grads), "x": grads["x"]}):
        there_sums, told = gradclip.per_sample_clip_sum(gpu, max_norm, nonfinite=nonfinite, **gpu_more)
        assert_same_bits(sums, there_sums)
        assert_same_report(report, told)
        assert told.sensitivity == report.sensitivity
        there_clipped, told = gradclip.clip_per_sample(gpu, max_norm, nonfinite=nonfinite, **gpu_more)
        assert_same_bits(clipped, there_clipped)
        assert_same_report(functional, told)
        gradclip.clip_per_sample_(gpu, max_norm, nonfinite=nonfinite, **gpu_more)
        if gpu["x"] is not grads["x"]:
            assert_same_bits(clipped, gpu)
        else:
            grads["x"] = model()["x"]
            if nonfinite == "zero":
                grads["x"][3, 1, 1] = np.nan
