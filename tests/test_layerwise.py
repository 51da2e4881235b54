"""max_norm that is more than a number: a nesting, patterns over paths, a rule that gives each step its own."""

import fnmatch
import math
import re
from collections import OrderedDict, namedtuple
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import snapshot

import gradclip
from gradclip.thresholds import Quantile, Schedule, Threshold, ZScore

Pair = namedtuple("Pair", "weight bias")


def model():
    """Leaves of norms 5, 10, 1, 13 and 2."""
    return {
        "embed": np.array([3.0, 4.0]),
        "layers": (np.array([[6.0], [8.0]]), None, [np.array([1.0], np.float32)]),
        "head": Pair(np.array([5.0, 12.0]), np.array([2.0])),
    }


PATHS = ["embed", "layers/0", "layers/2/0", "head/weight", "head/bias"]
NONES = ["layers/1"]
NORMS = [5.0, 10.0, 1.0, 13.0, 2.0]


def factors(thresholds):
    """What clipping leaf by leaf must apply."""
    return [c / n if n > c else 1.0 for n, c in zip(NORMS, thresholds, strict=True)]


# ---- a nesting of thresholds ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "thresholds",
    [
        {"embed": 1.0, "layers": (2.0, None, [3.0]), "head": Pair(0.0, 0.5)},
        {"head": (0, np.float32(0.5)), "layers": [2, None, (3.0,)], "embed": np.array(1.0)},
        OrderedDict(head=Pair(0.0, 0.5), embed=1.0, layers=[2.0, None, [3.0]]),
        MappingProxyType({"layers": (2.0, None, [3.0]), "embed": 1.0, "head": [0.0, 0.5]}),
    ],
    ids=["alike", "other order and containers", "OrderedDict", "mapping"],
)
def test_each_leaf_has_its_own_threshold(thresholds):
    grads, expected = model(), factors([1.0, 2.0, 3.0, 0.0, 0.5])
    clipped, functional = gradclip.clip_by_norm(grads, thresholds)
    report = gradclip.clip_by_norm_(grads, thresholds)
    assert report.norms.tolist() == NORMS
    assert report.scales.tolist() == functional.scales.tolist() == expected
    assert (report.scale, report.clipped_count, report.size, report.norm) == (0.0, 4, 5, math.sqrt(25 + 100 + 1 + 169 + 4))
    assert report.max_norm is thresholds
    assert isinstance(clipped["head"], Pair)
    for tree in (grads, clipped):
        assert tree["embed"].tolist() == [3.0 * 0.2, 4.0 * 0.2]
        assert tree["layers"][0].tolist() == [[6 * 0.2], [8 * 0.2]]
        assert tree["layers"][2][0].tolist() == [1.0]
        assert tree["head"].weight.tolist() == [0.0, 0.0]
        assert tree["head"].bias.tolist() == [0.5]


def test_the_nesting_of_a_list_a_tuple_and_an_iterator():
    for thresholds in ([1.0, math.inf], (1, math.inf)):
        for wrap in (list, tuple, iter):
            grads = [np.array([3.0, 4.0]), np.array([7.0])]
            assert gradclip.clip_by_norm_(wrap(grads), thresholds).scales.tolist() == [0.2, 1.0]
            assert grads[1].tolist() == [7.0]


def test_thresholds_by_leaf_hold_for_slices():
    grads = {"a": np.array([[3.0, 4.0], [0.3, 0.4]]), "b": np.array([[6.0, 8.0]])}
    for max_norm in ({"b": 1.0, "a": 2.5}, {"a": 2.5, "*": 1.0}):
        report = gradclip.clip_by_norm(grads, max_norm, axis=1)[1]
        assert report.scales.tolist() == [0.5, 1.0, 0.1]
    assert gradclip.clip_by_norm(grads, {"a": 2.5}, axis=1)[1].scales.tolist() == [0.5, 1.0, 1.0]


def test_a_threshold_may_stand_where_a_gradient_is_none():
    grads = {"weight": np.array([3.0, 4.0]), "frozen": None}
    assert gradclip.clip_by_norm(grads, {"weight": 2.5, "frozen": 1.0})[1].scales.tolist() == [0.5]


@pytest.mark.parametrize(
    ("thresholds", "error", "message"),
    [
        ([1.0, 2.0, 3.0], ValueError, "grads is a dict, max_norm a list"),
        ({"embed": 1, "layers": (1, None, [1]), "head": 1.0}, ValueError, "^head: grads and max_norm are nested"),
        ({"embed": [1], "layers": (1, None, [1]), "head": (1, 1)}, ValueError, "^embed: grads and max_norm are nested"),
        ({"embed": 1, "layers": (1, None), "head": (1, 1)}, ValueError, "^layers: grads has 3 entries, max_norm has 2"),
        ({"embed": 1, "layers": (None, 1, [1]), "head": (1, 1)}, ValueError, "^layers/0: grads and max_norm are nested"),
        ({"embed": None, "layers": (1, None, [1]), "head": (1, 1)}, ValueError, "^embed: grads and max_norm are nested"),
        ({"embed": 1, "layers": {"0": 1}, "head": (1, 1)}, ValueError, "^layers: grads is a tuple, max_norm a dict"),
        ({"embed": 1, "layers": (1, None, [-2]), "head": (1, 1)}, ValueError, "max_norm of layers/2/0 must be at least 0"),
        ({"embed": 1, "layers": (1, None, [math.nan]), "head": (1, 1)}, ValueError, "layers/2/0 must be at least 0, not nan"),
        ({"embed": 1, "layers": (1, None, [1]), "head": (1, True)}, TypeError, "max_norm of head/bias must be a real number"),
        ({"embed": "1", "layers": (1, None, [1]), "head": (1, 1)}, TypeError, "max_norm of embed must be a real number"),
        ({"embed": Quantile(), "layers": (1, None, [1]), "head": (1, 1)}, TypeError, "max_norm of embed"),
        ({"embed*": 1, "*": -1.0}, ValueError, r"max_norm\['\*'\] must be at least 0"),
        ({"nothing": math.nan}, ValueError, r"max_norm\['nothing'\]"),
        ({"embed": True}, TypeError, r"max_norm\['embed'\] must be a real number"),
        ({"*": ZScore()}, TypeError, r"max_norm\['\*'\] must be a real number"),
        ({"embed": 1.0, 3: 1.0}, ValueError, "the key 3, which is neither in grads nor a pattern"),
        (Quantile(), TypeError, "a threshold object sees the global norm"),
        (Schedule(lambda step: 1.0), TypeError, "a threshold object sees the global norm"),
        (np.ones(5), TypeError, "real number"),
        ("*", TypeError, "real number"),
    ],
)
def test_what_does_not_fit_is_named(thresholds, error, message):
    grads = model()
    leaves = [grads["embed"], grads["layers"][0], grads["layers"][2][0], *grads["head"]]
    leaves[0][0] = np.nan  # is not even read
    before = snapshot(leaves)
    for call in (gradclip.clip_by_norm_, gradclip.clip_by_norm):
        with pytest.raises(error, match=message):
            call(grads, thresholds)
    assert snapshot(leaves) == before


# ---- patterns --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "thresholds"),
    [
        ({"*": 1.0}, [1, 1, 1, 1, 1]),
        ({"layers/*": 0.5, "*": 4.0}, [4, 0.5, 0.5, 4, 4]),
        ({"*": 4.0, "layers/*": 0.5}, [4, 4, 4, 4, 4]),
        ({"*0": 0.5}, [math.inf, 0.5, 0.5, math.inf, math.inf]),
        ({"l*0": 0.5, "head/?eight": 1}, [math.inf, 0.5, 0.5, 1, math.inf]),
        ({"head/[wx]*": 1.0, "*[!s]": math.inf, "head/bias": 1.0}, [math.inf, math.inf, math.inf, 1, 1]),
        ({"layers/0": 0, "embed": math.inf}, [math.inf, 0, math.inf, math.inf, math.inf]),
        ({}, [math.inf] * 5),
    ],
    ids=str,
)
def test_the_first_pattern_that_matches_counts(patterns, thresholds):
    grads = model()
    report = gradclip.clip_by_norm_(grads, patterns)
    assert report.scales.tolist() == factors(thresholds)
    assert grads["head"].weight.tolist() == [5.0 * report.scales[3], 12.0 * report.scales[3]]
    assert report.clipped == (report.clipped_count > 0)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text("*?el/ay0w[]!h", max_size=5), st.floats(0, 20), max_size=4))
def test_patterns_are_those_of_a_shell(patterns):
    grads = model()
    unmatched = [p for p in patterns if not any(fnmatch.fnmatchcase(path, p) for path in [*PATHS, *NONES])]
    if unmatched:
        with pytest.raises(ValueError, match=re.escape(f"the pattern {unmatched[0]!r}, which matches no path in grads: ")):
            gradclip.clip_by_norm_(grads, patterns)
        assert grads["embed"].tolist() == model()["embed"].tolist()
        return
    first = [next((c for p, c in patterns.items() if fnmatch.fnmatchcase(path, p)), math.inf) for path in PATHS]
    assert gradclip.clip_by_norm_(grads, patterns).scales.tolist() == factors(first)


def test_a_dict_with_the_keys_of_grads_is_a_nesting():
    grads = {"*": np.array([8.0]), "a": np.array([4.0])}
    assert gradclip.clip_by_norm(grads, {"*": 1.0, "a": 2.0})[1].scales.tolist() == [0.125, 0.5]
    assert gradclip.clip_by_norm(grads, {"*": 1.0})[1].scales.tolist() == [0.125, 0.25]
    assert gradclip.clip_by_norm({"a": {"b": np.array([4.0])}}, {"a/b": 1.0})[1].scale == 0.25
    with pytest.raises(ValueError, match="nested in different ways"):
        gradclip.clip_by_norm({"a": {"b": np.array([4.0])}}, {"a": 1.0})


def test_paths_of_other_roots():
    assert gradclip.clip_by_norm(np.array([4.0]), {"grads": 1.0})[1].scale == 0.25
    with pytest.raises(ValueError, match="the pattern '0', which matches no path in grads: grads$"):
        gradclip.clip_by_norm(np.array([4.0]), {"0": 1.0})
    assert gradclip.clip_by_norm([np.array([4.0]), None, np.array([8.0])], {"2": 1.0})[1].scales.tolist() == [1.0, 0.125]
    assert gradclip.clip_by_norm({1: np.array([4.0])}, {"1": 1.0})[1].scale == 0.25


@pytest.mark.parametrize("pattern", ["layers", "head", "mbed", "embe", "Embed", "layers/3*", "", "*/"])
def test_a_pattern_that_matches_nothing_is_named(pattern):
    grads = model()
    grads["embed"][0] = np.nan  # is not even read
    for call in (gradclip.clip_by_norm_, gradclip.clip_by_norm):
        for patterns in ({pattern: 0.1, "*": 1.0}, {"*": 1.0, pattern: 0.1}, {pattern: math.inf}):
            with pytest.raises(ValueError, match=f"^max_norm has the pattern '{re.escape(pattern)}', which matches no path"):
                call(grads, patterns)
    assert np.isnan(grads["embed"][0])


def test_patterns_that_others_forestall_or_that_match_where_none_is_are_fine():
    grads = {"embed": None, "head": np.array([4.0])}
    assert gradclip.clip_by_norm(grads, {"*": 1.0, "head": 2.0})[1].scale == 0.25
    assert gradclip.clip_by_norm(grads, {"embed*": 1.0, "head": 2.0})[1].scale == 0.5
    assert gradclip.clip_by_norm({"embed": None, "head": None}, {"embed*": 1.0})[1].norm == 0.0
    with pytest.raises(ValueError, match="the pattern 'embd', which matches no path in grads: embed, head$"):
        gradclip.clip_by_norm({"embed": None, "head": None}, {"embd": 1.0})


@pytest.mark.parametrize("empty", [[], {}, (), [[], {"a": ()}]])
def test_patterns_have_nothing_to_match_where_nothing_is(empty):
    report = gradclip.clip_by_norm_(empty, {"embed*": 1.0})
    assert (report.norm, report.scale, report.size) == (0.0, 1.0, 0)


def test_a_leaf_left_alone_is_not_written():
    grads = {"a": np.array([np.inf, 1e300]), "b": np.array([3.0, 4.0])}
    before = snapshot(grads.values())
    report = gradclip.clip_by_norm_(grads, {"b": 1.0}, nonfinite="propagate")
    assert snapshot([grads["a"]]) == before[:1]
    assert report.scales.tolist() == [1.0, 0.2]
    with pytest.raises(gradclip.NonFiniteGradientError, match="a: inf at flat index 0"):
        gradclip.clip_by_norm_(grads, {"b": 1.0})


# ---- rules ------------------------------------------------------------------------------------------------


class Fixed(Threshold):
    """Gives what it was told and remembers what it saw."""

    def __init__(self, threshold):
        self.threshold = threshold
        self.seen = []

    def next_threshold(self, norm):
        self.seen.append(norm)
        return self.threshold


def found(grads, norm):
    return gradclip.measure(grads, ord=norm.get("ord", 2))


def step(grads, rule, **norm):
    return gradclip.sgd_step_([np.zeros_like(g) for g in grads], grads, 0.1, rule, **norm)


CALLS = {
    "clip_by_global_norm_": gradclip.clip_by_global_norm_,
    "clip_by_global_norm": lambda *args, **norm: gradclip.clip_by_global_norm(*args, **norm)[1],
    "apply_clip_": lambda grads, *args, **norm: gradclip.apply_clip_(grads, found(grads, norm), *args, **norm),
    "apply_clip": lambda grads, *args, **norm: gradclip.apply_clip(grads, found(grads, norm), *args, **norm)[1],
    "sgd_step_": step,
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@every_call
def test_a_rule_sees_the_norm_and_gives_this_steps_threshold(call):
    rule = Fixed(2.5)
    report = call([np.array([3.0]), np.array([4.0])], rule)
    assert (rule.seen, report.norm, report.max_norm, report.scale, report.clipped) == ([5.0], 5.0, 2.5, 0.5, True)
    rule.threshold = np.float32(7)
    report = call([np.array([3.0]), np.array([4.0])], rule, strict=True)
    assert (report.max_norm, report.scale, report.clipped) == (7.0, 1.0, False)
    assert type(report.max_norm) is float
    rule.threshold = 10
    assert call([np.array([6.0, 8.0])], rule, ord=1).scale == 10 / 14
    assert rule.seen == [5.0, 5.0, 14.0]
    assert call([], rule).norm == 0.0


@every_call
def test_what_a_rule_sees_of_nan_and_inf(call):
    for bad in (np.nan, -np.inf):
        grads = [np.array([3.0, bad, 4.0])]
        rule = Fixed(2.5)
        with pytest.raises(gradclip.NonFiniteGradientError):
            call(grads, rule)
        assert rule.seen == []
        report = call(grads, rule, nonfinite="skip")
        assert (report.skipped, report.max_norm) == (True, 2.5)
        assert not math.isfinite(rule.seen.pop())
        report = call([g.copy() for g in grads], rule, nonfinite="propagate")
        assert (report.max_norm, report.clipped) == (2.5, True)
        assert not math.isfinite(rule.seen.pop())
        report = call(grads, rule, nonfinite="zero")
        assert (rule.seen, report.norm, report.max_norm, report.scale) == ([5.0], 5.0, 2.5, 0.5)


@every_call
@pytest.mark.parametrize("given_back", [math.nan, -1.0, "1", None, True, 10**400, np.ones(2)], ids=lambda x: str(x)[:9])
def test_a_rule_that_gives_no_threshold_changes_nothing(call, given_back):
    grads = [np.array([3.0, 4.0])]
    before = snapshot(grads)
    with pytest.raises((TypeError, ValueError), match=r"max_norm: Fixed.next_threshold"):
        call(grads, Fixed(given_back))
    assert snapshot(grads) == before


def test_a_rule_that_fails_changes_nothing():
    def fail(at):
        raise ZeroDivisionError(at)

    params, grads = [np.zeros(2)], [np.array([3.0, 4.0])]
    for call in CALLS.values():
        with pytest.raises(ZeroDivisionError):
            call(grads, Schedule(fail))
    with pytest.raises(ZeroDivisionError):
        gradclip.sgd_step_(params, grads, 0.1, Schedule(fail))
    assert params[0].tolist() == [0.0, 0.0]
    assert grads[0].tolist() == [3.0, 4.0]


@every_call
@pytest.mark.parametrize(
    "rule",
    [
        lambda: Quantile(q=0.5, window=3),
        lambda: Quantile(q=0.7, include_current=True),
        lambda: ZScore(z=1.5, warmup=3),
        lambda: Schedule(lambda step: 1.0 + step),
    ],
    ids=["quantile", "quantile with current", "z-score", "schedule"],
)
def test_rules_over_a_training_with_bad_steps(call, rule):
    """The thresholds of the steps are those of a rule that is shown the norms; bad steps do not count."""
    used, alone = rule(), rule()
    rng = np.random.default_rng(8)
    for at in range(40):
        grads = [rng.standard_normal(3), rng.standard_normal(2) * (20 if at % 9 == 8 else 1)]
        norm = gradclip.global_norm(grads)
        if at % 7 == 3:
            bad = [np.array([1.0, np.nan])]
            with pytest.raises(gradclip.NonFiniteGradientError):
                call(bad, used)
            assert used.state_dict() == alone.state_dict()
            for nonfinite in ("skip", "propagate"):
                report = call([b.copy() for b in bad], used, nonfinite=nonfinite)
                assert report.max_norm == alone.next_threshold(math.nan)
            assert used.state_dict() == alone.state_dict()
        report = call(grads, used)
        assert (report.norm, report.max_norm) == (norm, alone.next_threshold(norm))
        assert report.clipped == (norm > report.max_norm)
        assert used.state_dict() == alone.state_dict()


def test_strict_and_scaled_rules():
    grads = [np.random.default_rng(1).standard_normal(50).astype(np.float16) * 8]
    rule = Quantile(q=0.5)
    rule.next_threshold(1.0)
    report = gradclip.clip_by_global_norm_(grads, rule, strict=True, grad_scale=8.0)
    assert report.max_norm == 1.0
    assert rule.state_dict()["norms"] == [1.0, report.norm]
    assert 0.99 < gradclip.global_norm(grads) <= 1.0
