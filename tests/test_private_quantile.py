"""`thresholds.PrivateQuantile`: the geometric update of Andrew et al., its noise, and what the per-sample forms tell it."""

import json
import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from gpu_leaves import there

import gradclip
from gradclip.thresholds import EMA, PrivateQuantile

NAN, INF = math.nan, math.inf
CALLS = {
    "in place": gradclip.clip_per_sample_,
    "functional": lambda g, c, **k: gradclip.clip_per_sample(g, c, **k)[1],
    "sum": lambda g, c, **k: gradclip.per_sample_clip_sum(g, c, **k)[1],
}


def update_in_decimals(threshold, fraction, q, rate):
    with localcontext() as context:
        context.prec = 50
        return float(Decimal(threshold) * (-Decimal(rate) * (Decimal(fraction) - Decimal(q))).exp())


@pytest.mark.parametrize("noise", [0.0, 1.0, 30.0])
@pytest.mark.parametrize(("q", "rate", "start"), [(0.5, 0.2, 1.0), (0.9, 1.5, 1e-3), (0.0, 0.1, 1e200), (1.0, 0.01, 7.0)])
def test_the_update_is_that_of_the_paper(noise, q, rate, start):
    rule, draws, counts = (
        PrivateQuantile(noise, q=q, rate=rate, start=start, rng=5),
        np.random.default_rng(5),
        np.random.default_rng(1),
    )
    assert rule.threshold == start
    for _ in range(50):
        size = int(counts.integers(1, 100))
        clipped = int(counts.integers(0, size + 1))
        before = rule.threshold
        rule.update(clipped, size)
        fraction = (size - clipped + draws.normal(0.0, noise)) / size
        assert rule.threshold == pytest.approx(update_in_decimals(before, fraction, q, rate), rel=1e-13)


def test_noise_has_the_mean_and_deviation_that_were_asked_for():
    moves = []
    rule = PrivateQuantile(3.0, q=0.0, rate=1.0, rng=0)
    for _ in range(20_000):
        before = rule.threshold
        rule.update(6, 10)
        moves.append(-math.log(rule.threshold / before) * 10)  # the noisy count of the four that were not clipped
        rule.load_state_dict({**rule.state_dict(), "threshold": 1.0})
    assert np.mean(moves) == pytest.approx(4.0, abs=4 * 3.0 / math.sqrt(len(moves)))
    assert np.std(moves) == pytest.approx(3.0, rel=0.03)


@pytest.mark.parametrize("name", CALLS)
def test_samples_are_clipped_by_it_and_it_is_told(name):
    rng = np.random.default_rng(2)
    rule, alone = (PrivateQuantile(1.0, start=4.0, rng=9, ceiling=8.0) for _ in range(2))
    for _ in range(20):
        grads = [rng.standard_normal((16, 5)) * rng.lognormal(size=(16, 1)), rng.standard_normal((16, 2, 2))]
        norms = gradclip.clip_per_sample([a.copy() for a in grads], INF)[1].norms
        report = CALLS[name](grads, rule)
        assert report.max_norm == alone.threshold
        assert report.clipped_count == (norms > alone.threshold).sum()
        alone.update(report.clipped_count, 16)
        assert rule.threshold == alone.threshold
    assert rule.state_dict() == alone.state_dict()


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_the_quantile(seed):
    rng = np.random.default_rng(seed)
    rule = PrivateQuantile(5.0, q=0.7, start=1e-3, rng=seed)
    found = []
    for step in range(400):
        gradclip.per_sample_clip_sum(rng.lognormal(size=(200, 1)), rule)
        found += [rule.threshold] if step >= 200 else []
    assert np.median(found) == pytest.approx(math.exp(0.5244), rel=0.1)  # of the log-normal distribution


@pytest.mark.parametrize("name", CALLS)
def test_a_step_that_is_left_out_tells_it_nothing(name):
    rule = PrivateQuantile(1.0, rng=0)
    before = rule.state_dict()
    grads = np.array([[3.0], [NAN], [0.1]])
    with pytest.raises(gradclip.NonFiniteGradientError):
        CALLS[name](grads, rule)
    assert CALLS[name](grads, rule, nonfinite="skip").skipped
    CALLS[name](np.empty((0, 3)), rule)
    assert rule.state_dict() == before
    CALLS[name](grads, rule, nonfinite="zero")
    assert rule.state_dict() != before


def test_on_a_gpu(cupy):
    here, device = PrivateQuantile(1.0, rng=0), PrivateQuantile(1.0, rng=0)
    for seed in range(5):
        grads = np.random.default_rng(seed).standard_normal((8, 3))
        for call in CALLS.values():
            call(there(cupy, grads), device, nonfinite="zero")
            call(grads, here, nonfinite="zero")
    assert here.state_dict() == device.state_dict()


def test_thresholds_lie_between_floor_and_ceiling_and_come_back_at_once():
    rule = PrivateQuantile(0.0, q=0.5, rate=1.0, floor=0.5, ceiling=2.0, rng=0)
    for _ in range(20):
        rule.update(10, 10)
    assert rule.threshold == 2.0
    rule.update(0, 10)
    assert rule.threshold == pytest.approx(2.0 * math.exp(-0.5))
    for _ in range(20):
        rule.update(0, 10)
    assert rule.threshold == 0.5
    free = PrivateQuantile(0.0, rate=100.0, rng=0)
    for _ in range(30):
        free.update(10, 10)
    assert free.threshold == pytest.approx(math.exp(700))
    for _ in range(60):
        free.update(0, 10)
    assert free.threshold == pytest.approx(math.exp(-700))
    closed = PrivateQuantile(0.0, ceiling=0.0)
    closed.update(3, 10)
    assert closed.threshold == 0.0


@pytest.mark.parametrize("bits", ["PCG64", "MT19937", "Philox", "SFC64"])
def test_a_state_goes_through_json(bits):
    rule = PrivateQuantile(2.0, q=0.3, rate=0.1, start=3.0, ceiling=9.0, rng=np.random.Generator(getattr(np.random, bits)(7)))
    for _ in range(7):
        rule.update(3, 10)
    text = json.dumps(rule.state_dict(), allow_nan=False)
    loaded = PrivateQuantile(1.0)
    loaded.load_state_dict(json.loads(text))
    assert repr(loaded) == repr(rule) == "PrivateQuantile(noise=2.0, q=0.3, rate=0.1, start=3.0, ceiling=9.0)"
    for _ in range(7):
        rule.update(3, 10)
        loaded.update(3, 10)
        assert loaded.threshold == rule.threshold
    assert json.dumps(loaded.state_dict()) == json.dumps(rule.state_dict())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rule": "EMA"}, "rule must be 'PrivateQuantile', not 'EMA'"),
        ({"q": 2}, "q must be at most 1"),
        ({"threshold": INF}, "threshold must be finite"),
        ({"floor": None}, "floor must be a real number"),
        ({"random": 3}, "random must be a dict"),
        ({"random": {"kind": "os", "state": {}}}, "random: 'os' is no generator"),
        ({"random": {"kind": "PCG64", "state": {}}}, "random: "),
        ({"random": {"kind": "BitGenerator", "state": {}}}, "random: 'BitGenerator' is no generator"),
        ({"random": {"kind": "MT19937", "state": {"bit_generator": "MT19937", "state": {"key": [1], "pos": 0}}}}, "random: "),
        ({"threshold": 0}, "threshold must be above 0"),
        ({"extra": 1}, "extra is unknown"),
    ],
)
def test_a_broken_state_is_refused_and_changes_nothing(change, words):
    rule = PrivateQuantile(1.0, rng=0)
    before = rule.state_dict()
    with pytest.raises(ValueError, match=f"state: {words}"):
        rule.load_state_dict({**before, **change})
    with pytest.raises(ValueError, match="state: noise is missing"):
        rule.load_state_dict({key: value for key, value in before.items() if key != "noise"})
    with pytest.raises(TypeError, match="state must be a dict, not list"):
        rule.load_state_dict([before])
    assert rule.state_dict() == before


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"noise": -1.0}, ValueError, "noise must be at least 0"),
        ({"noise": INF}, ValueError, "noise must be finite"),
        ({"noise": "1"}, TypeError, "noise must be a real number"),
        ({"noise": 1, "q": 50}, ValueError, "q must be at most 1, not 50"),
        ({"noise": 1, "rate": 0}, ValueError, "rate must be above 0"),
        ({"noise": 1, "start": 0}, ValueError, "start must be above 0"),
        ({"noise": 1, "start": INF}, ValueError, "start must be finite"),
        ({"noise": 1, "rng": 1.5}, TypeError, "rng must be an integer"),
        ({"noise": 1, "floor": 2, "ceiling": 1}, ValueError, "floor 2 is above ceiling 1"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        PrivateQuantile(**arguments)


def test_bad_counts_change_nothing():
    rule = PrivateQuantile(1.0, rng=0)
    before = rule.state_dict()
    for counts, error in [((3, 2), ValueError), ((-1, 2), ValueError), ((1.0, 2), TypeError), ((1, "2"), TypeError)]:
        with pytest.raises(error):
            rule.update(*counts)
    assert rule.state_dict() == before


def test_where_it_is_no_threshold():
    with pytest.raises(TypeError, match="max_norm must be a real number, not PrivateQuantile"):
        gradclip.clip_by_global_norm_(np.ones(2), PrivateQuantile(1.0))
    with pytest.raises(TypeError, match="not PrivateQuantile"):
        gradclip.clip_by_norm_(np.ones(2), PrivateQuantile(1.0))
    with pytest.raises(TypeError, match="a threshold object sees the global norm"):
        gradclip.clip_per_sample_(np.ones((2, 1)), EMA())


def test_without_a_seed_noise_differs():
    rules = [PrivateQuantile(1.0) for _ in range(2)]
    for rule in rules:
        rule.update(1, 2)
    assert rules[0].threshold != rules[1].threshold
