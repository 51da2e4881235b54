"""clip_by_norm with groups: leaves of one name share one norm and one factor, as if clipped alone by their global norm."""

import copy
import math
import pickle
import re
from collections import namedtuple
from fractions import Fraction

import numpy as np
import pytest
from gpu_leaves import across, assert_same_bits, assert_same_report, there
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import COMPLEX, REAL, gradient, power_sum, rounded_norm, snapshot
from test_middles import ties

import gradclip
from gradclip.thresholds import EMA, PerLeaf, Quantile

Pair = namedtuple("Pair", "weight bias")
PATTERNS = {"experts/*": "experts", "*bias": "small", "head/*": "head"}


def model():
    """Leaves of norms 3, 4, 8, 6 and 2; the groups of PATTERNS have the norms 5, 2 and 6, and `embed` is in none."""
    return {
        "experts": [np.array([3.0]), None, np.array([[0.0, 4.0]], np.float32)],
        "embed": np.array([8.0]),
        "head": Pair(np.array([6.0, 0.0]), np.array([2.0])),
    }


def leaves(grads):
    return [grads["experts"][0], grads["experts"][2], grads["embed"], *grads["head"]]


NAMES = [
    PATTERNS,
    {"experts*": "experts", "*bias": "small", "*weight": "head"},
]


@pytest.mark.parametrize("groups", NAMES, ids=str)
@pytest.mark.parametrize(
    ("max_norm", "thresholds"),
    [
        (1.0, [1, 1, 1]),
        (np.float32(2.5), [2.5] * 3),
        (0, [0, 0, 0]),
        (math.inf, [math.inf] * 3),
        ({"experts": 1.0, "head": 3.0, "small": 1}, [1, 3, 1]),
        ({"experts": 1.0}, [1, math.inf, math.inf]),
        ({"*": 1.0, "head": 3.0}, [1, 3, 1]),
        ({"[es]*": 1.0}, [1, math.inf, 1]),
        ({}, [math.inf] * 3),
    ],
    ids=str,
)
def test_groups_by_pattern(groups, max_norm, thresholds):
    grads, norms = model(), [5.0, 6.0, 2.0]
    factors = [c / n if n > c else 1.0 for n, c in zip(norms, thresholds, strict=True)]
    clipped, functional = gradclip.clip_by_norm(grads, max_norm, groups=groups)
    report = gradclip.clip_by_norm_(grads, max_norm, groups=groups)
    for found in (report, functional, pickle.loads(pickle.dumps(report)), copy.copy(report)):
        assert found.groups == ("experts", "head", "small")
        assert found.norms.tolist() == norms
        assert found.scales.tolist() == factors
        assert found.norm == math.sqrt(9 + 16 + 64 + 36 + 4)
        assert (found.size, found.clipped_count) == (3, sum(f < 1 for f in factors))
        assert found.scale == min(factors)
        assert found.max_norm == max_norm
        assert found.sensitivity is None
    e, h, s = factors
    for tree in (grads, clipped):
        assert [a.tolist() for a in leaves(tree)] == [[3 * e], [[0, float(np.float32(4 * e))]], [8.0], [6 * h, 0], [2 * s]]
    assert isinstance(clipped["head"], Pair)
    assert clipped["embed"] is not grads["embed"]


def test_groups_in_a_nesting_like_grads():
    names = {"experts": ("b", None, "a"), "head": ["a", "c"], "embed": "c"}
    report = gradclip.clip_by_norm(model(), {"a": 1.0, "b": 1.5}, groups=names)[1]
    assert report.groups == ("b", "a", "c")
    assert report.norms.tolist() == [3.0, math.sqrt(16 + 36), math.sqrt(64 + 4)]
    assert report.scales.tolist() == [0.5, 1 / math.sqrt(52), 1.0]
    assert gradclip.clip_by_norm(np.array([3.0, 4.0]), 1.0, groups="all")[1].groups == ("all",)
    assert gradclip.clip_by_norm(iter([np.array([3.0]), np.array([4.0])]), 1.0, groups=["x", "x"])[1].scales.tolist() == [0.2]


def test_reports_without_groups_have_none():
    assert gradclip.clip_by_norm(model(), 1.0)[1].groups is None
    assert gradclip.clip_by_global_norm(model(), 1.0)[1].groups is None
    assert gradclip.clip_by_value(model(), 1.0)[1].sensitivity is None


@pytest.mark.parametrize("empty", [[], {}, [None, {"a": ()}]])
def test_nothing_has_no_groups(empty):
    report = gradclip.clip_by_norm_(empty, 1.0, groups={} if empty else {"x*": "x"})
    assert (report.groups, report.size, report.norm, report.scale, len(report.norms)) == ((), 0, 0.0, 1.0, 0)
    assert gradclip.clip_by_norm(empty, {"x": 1.0}, groups={})[0] == empty


def test_a_group_of_frozen_leaves_is_known():
    grads = {"a": None, "b": np.array([3.0])}
    for groups in ({"a": "x", "b": "y"}, {"a*": "x", "*": "y"}):
        report = gradclip.clip_by_norm(grads, {"x": 1.0, "y": 1.5}, groups=groups)[1]
        assert (report.groups, report.scales.tolist()) == (("y",), [0.5])


def test_a_step_in_no_group_is_not_written():
    grads = model()
    before = snapshot(leaves(grads))
    report = gradclip.clip_by_norm_(grads, 5.0, groups={"experts*": "experts"})
    assert (report.clipped, snapshot(leaves(grads))) == (False, before)
    report = gradclip.clip_by_norm_(grads, 1.0, groups={})
    assert (report.groups, report.scale, report.norm, snapshot(leaves(grads))) == ((), 1.0, math.sqrt(129), before)


# ---- as if each group were clipped alone -------------------------------------------------------------------------


@st.composite
def grouped(draw):
    """Leaves of any dtype, and the number of the group of each; -1: none."""
    n = draw(st.integers(1, 6))
    made = []
    for i in range(n):
        dtype = draw(st.sampled_from([*REAL, *COMPLEX]))
        kind = draw(st.sampled_from(["normal", "lognormal", "tiny", "huge", "zeros"]))
        part = np.empty(0, dtype).real.dtype
        size = draw(st.sampled_from([0, 1, 3, 40, 300]))
        a = gradient(part, size, kind, i)
        if dtype.kind == "c":
            a = (a * part.type(0.5) * (1 - 1j)).astype(dtype)
        wide = np.zeros(2 * size, dtype)
        wide[::2] = a
        made.append(wide[::2] if draw(st.booleans()) else a)
    return made, draw(st.lists(st.integers(-1, 2), min_size=n, max_size=n))


@settings(max_examples=150, deadline=None)
@given(
    grouped(),
    st.sampled_from([1, 2, math.inf, 3, 0.5]),
    st.sampled_from([1.0, 3.0, 1024.0]),
    st.sampled_from(["skip", "zero", "propagate"]),
    st.booleans(),
    st.floats(0.1, 2),
    st.sampled_from([0.0, 1e-6]),
)
def test_each_group_is_clipped_as_if_it_were_alone(given_leaves, ord, grad_scale, nonfinite, bad, part, eps):
    grads, numbers = given_leaves
    for a in grads if bad else []:
        a[:1] = np.nan if numbers[0] % 2 else np.inf
    options = {"ord": ord, "grad_scale": grad_scale, "nonfinite": nonfinite, "eps": eps}
    names = [f"group {n}" for n in numbers]
    present = list(dict.fromkeys(n for n in numbers if n >= 0))
    threshold = {}
    for n in present:
        norm = gradclip.measure([a for a, k in zip(grads, numbers, strict=True) if k == n], ord=ord, grad_scale=grad_scale).norm
        threshold[f"group {n}"] = min(norm, 1e300) * part
    groups = {f"*{i}": name for i, (name, n) in enumerate(zip(names, numbers, strict=True)) if n >= 0}
    clipped, functional = gradclip.clip_by_norm(grads, threshold, groups=groups, **options)
    before = snapshot(grads)
    mine = [a.copy() for a in grads]
    report = gradclip.clip_by_norm_(mine, threshold, groups=groups, **options)
    assert snapshot(mine) == snapshot(clipped)
    assert snapshot(grads) == before
    assert report.groups == functional.groups == tuple(f"group {n}" for n in present)
    assert report.norms.tobytes() == functional.norms.tobytes()
    assert report.skipped == (nonfinite == "skip" and any(not np.isfinite(a.astype(np.complex128)).all() for a in grads))
    if report.skipped:
        assert snapshot(mine) == before
        return
    for i, n in enumerate(present):
        at = [k for k, number in enumerate(numbers) if number == n]
        alone, own = gradclip.clip_by_global_norm([grads[k] for k in at], threshold[f"group {n}"], **options)
        assert snapshot(alone) == snapshot([mine[k] for k in at])
        assert [report.norms[i], report.scales[i]] == pytest.approx([own.norm, own.scale], rel=0, abs=0, nan_ok=True)
    at = [k for k, number in enumerate(numbers) if number < 0]
    rest, _ = gradclip.clip_by_global_norm([grads[k] for k in at], math.inf, **options)
    assert snapshot(rest) == snapshot([mine[k] for k in at])


def test_norms_of_groups_are_correctly_rounded_in_the_middle(isa):
    for k in (3, 6, 10):
        for x in (0.1, 1 / 3, *ties(k, 3)):
            a, b = np.split(np.full(k * k, x), [k])
            other = np.full(7, 0.3)
            report = gradclip.clip_by_norm([a, other, b], 1.0, groups=["u", "v", "u"])[1]
            assert report.norms.tolist() == [rounded_norm([a, b]), rounded_norm([other])]
            assert report.norm == rounded_norm([a, b, other])
            report = gradclip.clip_by_norm([a, other * 1j, b], 1.0, groups=["u", "v", "u"], ord=1)[1]
            assert report.norms[0] == rounded_norm([a, b], 1)


def test_a_norm_beyond_float64_is_clipped_in_its_group():
    grads = [np.full(3, 1.7e308), np.full(4, 2.0), np.full(1, 1.7e308)]
    clipped, report = gradclip.clip_by_norm(grads, 8.0, groups=["a", "b", "a"])
    assert report.norms.tolist() == [math.inf, 4.0]
    assert np.allclose(clipped[0], 4.0)
    assert clipped[1].tolist() == [2.0] * 4


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("ord", [1, 2, math.inf])
@pytest.mark.parametrize("grad_scale", [1.0, 3.0])
def test_strict_holds_for_each_group(dtype, ord, grad_scale):
    a, b, c, d = (gradient(dtype, n, "normal", n) for n in (300, 7, 50, 1))
    groups = {"0": "x", "2": "x", "1": "y"}
    threshold = {"x": 0.7, "y": 0.3}
    clipped, report = gradclip.clip_by_norm(
        [a, b, c, d], threshold, groups=groups, ord=ord, strict=True, grad_scale=grad_scale, nonfinite="zero"
    )
    for parts, bound in (([clipped[0], clipped[2]], 0.7), ([clipped[1]], 0.3)):
        assert power_sum(parts, ord) <= Fraction(bound) ** (2 if ord == 2 else 1)
        assert gradclip.global_norm(parts, ord) > bound * 0.98
    assert report.clipped_count == 2
    again = gradclip.clip_by_norm(clipped, threshold, groups=groups, ord=ord, strict=True)[1]
    assert not again.clipped


def test_strict_decides_by_the_exact_norm():
    just_above = [np.array([1.0]), np.array([2.0**-30]), np.array([1.0])]
    groups = ["a", "a", "b"]
    assert gradclip.clip_by_norm(just_above, 1.0, groups=groups)[1].clipped_count == 0
    clipped, report = gradclip.clip_by_norm(just_above, 1.0, groups=groups, strict=True)
    assert report.norms.tolist() == [1.0, 1.0]
    assert report.clipped_count == 1
    assert power_sum(clipped[:2]) <= 1
    assert clipped[2].tolist() == [1.0]


def test_nan_and_inf_of_any_leaf():
    grads = model()
    grads["embed"][0] = np.nan  # in no group
    before = snapshot(leaves(grads))
    for call in (gradclip.clip_by_norm_, gradclip.clip_by_norm):
        with pytest.raises(gradclip.NonFiniteGradientError, match="^embed: nan at flat index 0"):
            call(grads, 1.0, groups=PATTERNS)
    report = gradclip.clip_by_norm_(grads, 1.0, groups=PATTERNS, nonfinite="skip")
    assert (report.skipped, report.groups, snapshot(leaves(grads))) == (True, ("experts", "head", "small"), before)
    assert (report.first_nonfinite, report.scales.tolist()) == (("embed", 0), [1.0] * 3)
    report = gradclip.clip_by_norm_(grads, 1.0, groups=PATTERNS, nonfinite="propagate")
    assert np.isnan(grads["embed"][0])
    assert (report.scales[0], grads["experts"][0].tolist()) == (0.2, [3 * 0.2])
    gradclip.clip_by_norm_(grads, 1.0, groups=PATTERNS, nonfinite="zero")
    assert grads["embed"].tolist() == [0.0]


def test_out_and_sparse_leaves():
    grads = model()
    out = model()
    result, _ = gradclip.clip_by_norm(grads, 1.0, groups=PATTERNS, out=out)
    assert result is out
    expected, _ = gradclip.clip_by_norm(grads, 1.0, groups=PATTERNS)
    assert snapshot(leaves(out)) == snapshot(leaves(expected))
    sparse = pytest.importorskip("scipy.sparse")
    tree = {"a": sparse.csr_array(np.diag([3.0, 0.0])), "b": np.array([4.0])}
    clipped, report = gradclip.clip_by_norm(tree, 1.0, groups={"*": "all"})
    assert (report.norms.tolist(), clipped["a"].toarray().tolist(), clipped["b"].tolist()) == (
        [5.0],
        [[3 * 0.2, 0], [0, 0]],
        [0.8],
    )


# ---- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [EMA(1.1, 0.9, 3), Quantile(0.5, 5, 2)], ids=repr)
def test_each_group_has_a_rule_of_its_own(rule):
    rules, alone, clipped = PerLeaf(rule), {}, 0
    rng = np.random.default_rng(3)
    for _ in range(25):
        grads = [rng.standard_normal(n) * rng.lognormal() for n in (3, 40, 7, 2)]
        report = gradclip.clip_by_norm(grads, rules, groups={"0": "x", "1": "y", "2": "x"})[1]
        for i, (name, at) in enumerate({"x": (0, 2), "y": (1,)}.items()):
            norm = gradclip.global_norm([grads[k] for k in at])
            threshold = alone.setdefault(name, copy.deepcopy(rule)).next_threshold(norm)
            assert report.norms[i] == norm
            assert report.scales[i] == (threshold / norm if norm > threshold else 1.0)
            clipped += norm > threshold
    assert clipped > 5
    assert {name: r.state_dict() for name, r in rules.rules.items()} == {name: r.state_dict() for name, r in alone.items()}
    state = rules.state_dict()
    with pytest.raises(gradclip.NonFiniteGradientError):
        gradclip.clip_by_norm([np.array([np.nan])], rules, groups=["x"])
    assert rules.state_dict() == state


# ---- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_norm", "groups", "error", "message"),
    [
        (1.0, {"experts": ("a", None, 3), "embed": "a", "head": ("a", "a")}, TypeError, "groups of experts/2 must be a name"),
        (1.0, {"experts": ("a", None, "a"), "embed": "a", "head": "a"}, ValueError, "^head: grads and groups are nested"),
        (1.0, ["a", "a", "a"], ValueError, "grads is a dict, groups a list"),
        (1.0, "a", ValueError, "grads and groups are nested in different ways"),
        (1.0, 3, TypeError, "groups must be a nesting of names"),
        (1.0, {"expert/*": "a"}, ValueError, r"groups has the pattern 'expert/\*', which matches no path in grads"),
        (1.0, {"*": 1}, TypeError, r"groups\['\*'\] must be a name"),
        (1.0, {1: "a"}, ValueError, "groups has the key 1"),
        ({"exprts": 1.0}, PATTERNS, ValueError, "max_norm has the name 'exprts', which no leaf has: the groups are experts"),
        ({"x*": 1.0, "*": 2.0}, PATTERNS, ValueError, r"max_norm has the name 'x\*'"),
        ({3: 1.0}, PATTERNS, ValueError, "max_norm has the key 3"),
        ({"head": -1.0}, PATTERNS, ValueError, r"max_norm\['head'\] must be at least 0"),
        ({"head": math.nan}, PATTERNS, ValueError, r"max_norm\['head'\]"),
        ({"head": Quantile()}, PATTERNS, TypeError, r"max_norm\['head'\] must be a real number"),
        ([1.0, 2.0], PATTERNS, TypeError, "max_norm: leaves of a group share one threshold"),
        (Quantile(), PATTERNS, TypeError, "max_norm: a threshold object sees the global norm"),
        (-1.0, PATTERNS, ValueError, "max_norm must be at least 0"),
        ("1", PATTERNS, TypeError, "max_norm must be a real number"),
    ],
)
def test_what_does_not_fit_is_named(max_norm, groups, error, message):
    grads = model()
    grads["embed"][0] = np.nan  # is not even read
    before = snapshot(leaves(grads))
    for call in (gradclip.clip_by_norm_, gradclip.clip_by_norm):
        with pytest.raises(error, match=message):
            call(grads, max_norm, groups=groups)
    assert snapshot(leaves(grads)) == before


def test_axis_and_groups_exclude_each_other():
    for call in (gradclip.clip_by_norm_, gradclip.clip_by_norm):
        with pytest.raises(TypeError, match=re.escape("groups bring leaves together, but axis cuts them")):
            call(np.ones((2, 2)), 1.0, axis=0, groups="a")


# ---- GPUs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"ord": 1}, {"grad_scale": 3.0}, {"strict": True}, {"nonfinite": "skip"}, {"nonfinite": "zero"}], ids=str
)
def test_on_gpus_as_on_the_host(cupy, options):
    def grads():
        made = {f"layer {i}": gradient(np.float32, 50 * (i + 1), "normal", i) for i in range(4)}
        if "nonfinite" in options:
            made["layer 2"][3] = np.inf
        return made

    groups = {"*[02]": "even", "*3": "odd"}
    here = grads()
    want = gradclip.clip_by_norm_(here, {"even": 1.0, "odd": 0.1}, groups=groups, **options)
    for gpu in (there(cupy, grads()), across(cupy, 2, grads()), {**there(cupy, grads()), "layer 0": grads()["layer 0"]}):
        got = gradclip.clip_by_norm_(gpu, {"even": 1.0, "odd": 0.1}, groups=groups, **options)
        assert_same_bits(here, gpu)
        assert_same_report(want, got)
        assert got.groups == ("even", "odd")
    clipped, _ = gradclip.clip_by_norm(there(cupy, grads()), {"even": 1.0, "odd": 0.1}, groups=groups, **options)
    assert_same_bits(here, clipped)
