"""`skip_above`: a step whose norm is a spike writes nothing."""

import copy
import inspect
import math

import numpy as np
import pytest
from gpu_leaves import there

import gradclip
from gradclip.thresholds import EMA, PerLeaf, Quantile, Schedule, Threshold, ZScore

NAN, INF = math.nan, math.inf
MEASURE = gradclip.measure
CALLS = {  # how each form is called where one norm rules; grads has norm 5
    "clip": lambda g, **k: gradclip.clip_by_global_norm_(g, 1.0, **k),
    "normalize": lambda g, **k: gradclip.normalize_(g, 2.0, **k),
    "apply": lambda g, **k: gradclip.apply_clip_(g, MEASURE(g), 1.0, **k),
    "step": lambda g, **k: gradclip.sgd_step_([np.ones_like(x) if x is not None else None for x in g], g, 0.5, 1.0, **k),
}
FUNCTIONAL = {
    "clip": lambda g, **k: gradclip.clip_by_global_norm(g, 1.0, **k),
    "normalize": lambda g, **k: gradclip.normalize(g, 2.0, **k),
    "apply": lambda g, **k: gradclip.apply_clip(g, MEASURE(g), 1.0, **k),
}


def grads():
    return [np.array([3.0, 0.0], np.float32), None, np.array([[-4.0]])]


def bits(tree):
    return [None if leaf is None else leaf.tobytes() for leaf in tree]


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_written_above_it(name):
    g = grads()
    before = bits(g)
    report = CALLS[name](g, skip_above=4.999)
    assert (report.skipped, report.clipped, report.scale, report.norm, report.clipped_count) == (True, False, 1.0, 5.0, 0)
    assert bits(g) == before
    assert "skipped=True" in repr(report)
    assert report.norms.tolist() == [3.0, 4.0]
    for limit in (5.0, 5.001, INF, np.float32(5.0), 5, None):  # at the limit is not above it
        g = grads()
        report = CALLS[name](g, skip_above=limit)
        assert not report.skipped
        assert report.scale == CALLS[name](grads()).scale != 1.0


def test_a_step_that_is_left_out_moves_no_parameter():
    params = [np.ones(2), np.ones(1)]
    assert gradclip.sgd_step_(params, [np.array([3.0, 4.0]), np.ones(1)], 0.1, skip_above=5.0).skipped
    assert [p.tolist() for p in params] == [[1.0, 1.0], [1.0]]
    assert not gradclip.sgd_step_(params, [np.array([3.0, 4.0]), np.zeros(1)], 0.1, skip_above=5.0).skipped
    assert params[0].tolist() == [0.7, 0.6]


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_functional_forms_give_copies_and_leave_out_untouched(name):
    g, out = grads(), [np.full(2, 7.0, np.float32), None, np.full((1, 1), 7.0)]
    clipped, report = FUNCTIONAL[name](g, skip_above=1.0)
    assert report.skipped
    assert bits(clipped) == bits(g)
    assert not any(np.shares_memory(a, b) for a, b in zip(clipped, g, strict=True) if a is not None)
    found, report = FUNCTIONAL[name](g, skip_above=1.0, out=out)
    assert report.skipped
    assert found is out
    assert [a.tolist() for a in out if a is not None] == [[7.0, 7.0], [[7.0]]]


@pytest.mark.parametrize("policy", ["raise", "skip", "zero", "propagate"])
def test_nan_and_inf_are_the_business_of_nonfinite(policy):
    rule = Quantile(0.5)
    rule.next_threshold(1.0)
    before = rule.state_dict()
    for bad in (NAN, INF):
        for limit in (1.0, rule):
            g = [np.array([30.0, bad])]
            if policy == "raise":
                with pytest.raises(gradclip.NonFiniteGradientError):
                    gradclip.clip_by_global_norm_(g, 1.0, skip_above=limit)
                continue
            report = gradclip.clip_by_global_norm_(g, 1.0, skip_above=limit, nonfinite=policy)
            # under "zero" the norm is that of the finite elements, and finite
            assert report.skipped == (policy in ("skip", "zero"))
            assert (g[0][0] == 30.0) == report.skipped
    assert (rule.state_dict() == before) == (policy != "zero")


def test_a_norm_beyond_float64_is_a_spike():
    g = [np.full(4, 1.5e308)]
    report = gradclip.clip_by_global_norm_(g, 1.0, skip_above=1e300)
    assert (report.norm, report.skipped) == (INF, True)
    assert not gradclip.clip_by_global_norm_(g, 1.0, skip_above=INF).skipped


def test_the_true_gradient_is_compared():
    g = [np.array([300.0, 400.0])]
    assert not gradclip.clip_by_global_norm_(g, 10.0, grad_scale=100.0, skip_above=5.0).skipped
    assert g[0].tolist() == [3.0, 4.0]
    assert gradclip.clip_by_global_norm_(g, 10.0, grad_scale=0.5, skip_above=9.9).skipped
    assert g[0].tolist() == [3.0, 4.0]
    assert gradclip.clip_by_global_norm_(g, 10.0, ord=1, skip_above=6.9).skipped
    assert gradclip.clip_by_global_norm_(g, 1.0, strict=True, skip_above=4.0).skipped


class Watched(Threshold):
    """A rule that remembers in which order it was asked."""

    def __init__(self, name, asked, threshold):
        self.name, self.asked, self.threshold = name, asked, threshold

    def next_threshold(self, norm):
        self.asked.append((self.name, norm))
        return self.threshold


def test_rules_are_asked_in_order_and_a_spike_is_not_shown_to_max_norm():
    asked = []
    spike, usual = Watched("skip_above", asked, 4.0), Watched("max_norm", asked, 2.0)
    report = gradclip.clip_by_global_norm_(np.array([3.0, 0.0]), usual, skip_above=spike)
    assert (report.max_norm, report.clipped, report.skipped) == (2.0, True, False)
    report = gradclip.clip_by_global_norm_(np.array([3.0, 4.0]), usual, skip_above=spike)
    assert (report.max_norm, report.clipped, report.skipped) == (4.0, False, True)
    assert asked == [("skip_above", 3.0), ("max_norm", 3.0), ("skip_above", 5.0)]
    assert gradclip.clip_by_global_norm_(np.array([3.0, 4.0]), 1.0, skip_above=spike).max_norm == 1.0


@pytest.mark.parametrize(
    "rule",
    [ZScore(3.0, 0.9, 10), Quantile(0.9, 20, 5), EMA(2.0, 0.9, 5), Schedule(lambda step: 3.0)],
    ids=lambda rule: type(rule).__name__,
)
def test_rules_of_the_library_decide_over_a_training(rule):
    alone, rng = copy.deepcopy(rule), np.random.default_rng(0)
    skipped = 0
    for step in range(100):
        grad = rng.standard_normal(50) * (20 if step % 17 == 16 else 0.4)
        norm, before = gradclip.global_norm(grad), grad.copy()
        report = gradclip.clip_by_global_norm_(grad, INF, skip_above=rule)
        assert report.skipped == (norm > alone.next_threshold(norm))
        assert np.array_equal(grad, before)
        skipped += report.skipped
    assert 4 <= skipped <= 40


def test_the_monitor_counts_them():
    monitor = gradclip.ClipMonitor()
    for size in (1.0, 1.0, 9.0):
        monitor.record(gradclip.clip_by_global_norm_(np.full(1, size), 2.0, skip_above=5.0))
    assert (monitor.summary()["skipped"], monitor.clip_rate) == (1, 0.0)


UNITS = {
    "leaf": lambda g, **k: gradclip.clip_by_norm_(g, 1.0, **k),
    "leaf, functional": lambda g, **k: gradclip.clip_by_norm(g, 1.0, **k),
    "normalize by leaf": lambda g, **k: gradclip.normalize_(g, 1.0, per_leaf=True, **k),
    "adaptive": lambda g, **k: gradclip.clip_adaptive_(g, g.copy(), **k),
    "samples": lambda g, **k: gradclip.clip_per_sample_(g, 1.0, **k),
    "sum of samples": lambda g, **k: gradclip.per_sample_clip_sum(g, 1.0, **k),
}


@pytest.mark.parametrize("name", UNITS)
def test_only_where_one_norm_rules(name):
    g = np.full((2, 2), 9.0)
    with pytest.raises(TypeError, match="skip_above leaves out a step by the norm of all leaves"):
        UNITS[name](g, skip_above=1.0)
    assert (g == 9.0).all()
    UNITS[name](g, skip_above=None)
    for function in (gradclip.clip_by_norm_, gradclip.clip_per_sample, gradclip.clip_adaptive_):
        assert "skip_above" not in inspect.signature(function).parameters
    for function in (gradclip.clip_by_global_norm_, gradclip.normalize, gradclip.sgd_step_, gradclip.apply_clip):
        assert inspect.signature(function).parameters["skip_above"].kind == inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize(
    ("limit", "error", "words"),
    [
        (-1.0, ValueError, "skip_above must be at least 0, not -1.0"),
        (NAN, ValueError, "skip_above must be at least 0, not nan"),
        ("5", TypeError, "skip_above must be a real number"),
        (True, TypeError, "skip_above must be a real number"),
        (PerLeaf(EMA()), TypeError, "skip_above must be a real number, not PerLeaf"),
        (Watched("", [], -1.0), ValueError, r"skip_above: Watched\.next_threshold must be at least 0"),
    ],
)
def test_bad_limits(limit, error, words):
    g = np.array([3.0, 4.0])
    with pytest.raises(error, match=words):
        gradclip.clip_by_global_norm_(g, 1.0, skip_above=limit)
    assert g.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("policy", ["raise", "skip", "zero", "propagate"])
@pytest.mark.parametrize("limit", [4.0, 5.0, INF])
def test_on_a_gpu(cupy, limit, policy):
    for name in ("clip", "normalize", "apply"):
        here = grads()
        device = there(cupy, here)
        expected, found = (CALLS[name](g, skip_above=limit, nonfinite=policy) for g in (here, device))
        assert (found.skipped, found.norm, found.scale) == (expected.skipped, expected.norm, expected.scale)
        assert found.skipped == (limit < 5.0)
        assert bits([None if g is None else g.get() for g in device]) == bits(here)
        device = there(cupy, grads())
        clipped, report = FUNCTIONAL[name](device, skip_above=limit, nonfinite=policy)
        assert report.skipped == (limit < 5.0)
        assert bits([None if g is None else g.get() for g in clipped]) == bits(FUNCTIONAL[name](grads(), skip_above=limit)[0])
    params = there(cupy, [np.ones(2), np.ones(1)])
    report = gradclip.sgd_step_(
        params, there(cupy, [np.array([3.0, 4.0]), np.zeros(1)]), 0.1, skip_above=limit, nonfinite=policy
    )
    assert report.skipped == (limit < 5.0)
    assert (params[0].get() == 1.0).all() == report.skipped
