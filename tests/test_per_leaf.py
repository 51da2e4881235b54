"""`thresholds.PerLeaf`: a rule for each leaf, known by its path."""

import copy
import json
import math

import numpy as np
import pytest
from gpu_leaves import there

import gradclip
from gradclip.thresholds import EMA, PerLeaf, Quantile, Threshold, ZScore

NAN, INF = math.nan, math.inf
RULES = [EMA(1.1, 0.9, 3, ceiling=2.0), Quantile(0.5, 5, 2), ZScore(1.0, 0.9, 4)]


def steps(count, seed=0):
    """Gradients of some steps: three leaves of different sizes."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        a, b, c = (rng.standard_normal(n) * rng.lognormal(sigma=1) for n in (3, 40, 700))
        yield {"embed": a, "layers": [b, None, {"w": c}]}


def leaves(grads):
    return {"embed": grads["embed"], "layers/0": grads["layers"][0], "layers/2/w": grads["layers"][2]["w"]}


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_each_leaf_has_a_rule_of_its_own(rule):
    per_leaf, alone = PerLeaf(rule), {}
    clipped = 0
    for grads in steps(30):
        before = {path: leaf.copy() for path, leaf in leaves(grads).items()}
        report = gradclip.clip_by_norm_(grads, per_leaf)
        assert report.max_norm is per_leaf
        for i, (path, leaf) in enumerate(leaves(grads).items()):
            norm = gradclip.global_norm(before[path])
            threshold = alone.setdefault(path, copy.deepcopy(rule)).next_threshold(norm)
            gradclip.clip_by_global_norm_(before[path], threshold)
            assert np.array_equal(leaf, before[path])
            assert report.norms[i] == norm
            clipped += norm > threshold
    assert clipped > 10
    assert list(per_leaf.rules) == list(alone)
    assert {path: r.state_dict() for path, r in per_leaf.rules.items()} == {p: r.state_dict() for p, r in alone.items()}


def test_paths_and_not_places_know_the_leaves():
    rule = PerLeaf(Quantile(0.5))
    first = gradclip.clip_by_norm({"a": np.array([1.0]), "b": np.array([10.0])}, rule)[1]
    second = gradclip.clip_by_norm({"c": np.array([7.0]), "b": np.array([20.0]), "a": np.array([4.0])}, rule)[1]
    assert first.scales.tolist() == [1.0, 1.0]
    assert second.scales.tolist() == [1.0, 0.5, 0.25]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_state_goes_through_json(rule):
    here = PerLeaf(rule)
    for grads in steps(20):
        gradclip.clip_by_norm_(grads, here)
    there = PerLeaf(type(rule)())
    gradclip.clip_by_norm_({"forgotten": np.ones(2)}, there)
    there.load_state_dict(json.loads(json.dumps(here.state_dict(), allow_nan=False)))
    assert repr(there) == repr(here) == f"PerLeaf({rule!r})"
    assert there.state_dict() == here.state_dict()
    for one, other in zip(steps(9, 1), steps(9, 1), strict=True):
        one["new"], other["new"] = np.ones(3), np.ones(3)
        assert np.array_equal(gradclip.clip_by_norm_(one, here).scales, gradclip.clip_by_norm_(other, there).scales)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rule": "EMA"}, "rule must be 'PerLeaf', not 'EMA'"),
        ({"of": None}, "of must be a dict, not NoneType"),
        ({"paths": []}, "paths must be a dict, not list"),
        ({"extra": 1}, "extra is unknown"),
        ({"of": Quantile().state_dict()}, "of: state: rule must be 'EMA'"),
        ({"paths": {"a/b": {**EMA().state_dict(), "beta": 2}}}, "paths: a/b: state: beta must be below 1"),
        ({"paths": {"a/b": 3}}, "paths: a/b: state must be a dict"),
    ],
)
def test_a_broken_state_is_refused_and_changes_nothing(change, words):
    rule = PerLeaf(EMA(warmup=2))
    for grads in steps(3):
        gradclip.clip_by_norm_(grads, rule)
    before = rule.state_dict()
    with pytest.raises(ValueError, match=f"state: {words}"):
        rule.load_state_dict({**before, **change})
    with pytest.raises(TypeError, match="state must be a dict, not int"):
        rule.load_state_dict(3)
    assert rule.state_dict() == before


def test_what_a_step_without_write_leaves_behind():
    rule = PerLeaf(Quantile(0.5))
    gradclip.clip_by_norm_([np.array([2.0]), np.array([2.0])], rule)
    before = rule.state_dict()
    with pytest.raises(gradclip.NonFiniteGradientError, match="1"):
        gradclip.clip_by_norm_([np.array([9.0]), np.array([NAN])], rule)
    assert gradclip.clip_by_norm_([np.array([9.0]), np.array([NAN])], rule, nonfinite="skip").skipped
    assert rule.state_dict() == before
    grads = [np.array([9.0]), np.array([NAN])]
    gradclip.clip_by_norm_(grads, rule, nonfinite="propagate")
    assert grads[0].tolist() == [2.0]
    assert rule.rules["0"].state_dict()["norms"] == [2.0, 9.0]
    assert rule.rules["1"].state_dict()["norms"] == [2.0]
    grads = [np.array([1.0]), np.array([NAN, 4.0])]
    gradclip.clip_by_norm_(grads, rule, nonfinite="zero")
    assert grads[1].tolist() == [0.0, 2.0]
    assert rule.rules["1"].state_dict()["norms"] == [2.0, 4.0]


def test_options_go_with_it():
    rule = PerLeaf(Quantile(0.5))
    for size in (1.0, 1.0, 3.0):
        report = gradclip.clip_by_norm_([np.full(4, size * 8)], rule, grad_scale=8.0, ord=1, strict=True)
    assert report.norms.tolist() == [12.0]
    assert report.scales[0] <= 1 / 3 / 8


class Wrong(Threshold):
    def next_threshold(self, norm):
        return -norm


def test_what_cannot_be():
    with pytest.raises(TypeError, match="rule must be a rule of gradclip.thresholds or a Threshold of your own, not float"):
        PerLeaf(1.0)
    with pytest.raises(TypeError, match="not PerLeaf"):
        PerLeaf(PerLeaf(EMA()))
    with pytest.raises(TypeError, match="axis cuts leaves"):
        gradclip.clip_by_norm_(np.ones((2, 2)), PerLeaf(EMA()), axis=0)
    with pytest.raises(TypeError, match="max_norm must be a real number, not PerLeaf"):
        gradclip.clip_by_global_norm_(np.ones(2), PerLeaf(EMA()))
    with pytest.raises(ValueError, match="2 have the path a/b"):
        gradclip.clip_by_norm_({"a/b": np.ones(1), "a": {"b": np.ones(1)}}, PerLeaf(EMA()))
    leaf = np.ones(4)
    with pytest.raises(ValueError, match=r"max_norm of layers/w: Wrong\.next_threshold must be at least 0, not -2\.0"):
        gradclip.clip_by_norm_({"layers": {"w": leaf}}, PerLeaf(Wrong()))
    assert leaf.tolist() == [1.0] * 4


def test_on_a_gpu(cupy):
    here, device = PerLeaf(EMA(1.1, 0.9, 3)), PerLeaf(EMA(1.1, 0.9, 3))
    for grads in steps(8):
        brought = there(cupy, grads)
        on_host, on_device = gradclip.clip_by_norm_(grads, here), gradclip.clip_by_norm_(brought, device)
        assert np.array_equal(on_host.scales, on_device.scales)
        assert np.array_equal(grads["layers"][0], brought["layers"][0].get())
    assert here.state_dict() == device.state_dict()
    assert INF not in [rule.next_threshold(1.0) for rule in device.rules.values()]
