"""Thresholds that follow the training, against their definitions in NumPy, fractions and decimals."""

import copy
import ctypes
import ctypes.util
import json
import math
import pickle
import platform
import subprocess
import sys
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest

import gradclip
from gradclip.thresholds import EMA, Quantile, Schedule, Threshold, ZScore

NAN, INF = math.nan, math.inf
ROUNDING = {"nearest": 0, "down": 0x400, "up": 0x800, "to zero": 0xC00}
x86_linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the modes are numbers of glibc on x86-64"
)
NUMBERS = {
    "lognormal": lambda rng, n: rng.lognormal(size=n),
    "ties": lambda rng, n: rng.integers(0, 4, n).astype(float),
    "huge": lambda rng, n: rng.choice([0.0, 1.0, 1e308, np.finfo(float).max], n),
    "subnormal": lambda rng, n: rng.integers(0, 9, n) * 5e-324,
    "any size": lambda rng, n: 10.0 ** rng.uniform(-323, 308, n),
    "rising": lambda rng, n: np.arange(1.0, n + 1),
    "falling": lambda rng, n: np.arange(n, 0.0, -1),
}


def thresholds(rule, norms):
    return [rule.next_threshold(norm) for norm in norms]


# --- Quantile ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize(("q", "window"), [(0.9, 100), (0.5, 7), (0, 10), (1, 10), (1 / 3, None), (0.95, 1), (0.01, 2)])
def test_quantile_is_numpys_bit_for_bit(kind, q, window):
    norms = NUMBERS[kind](np.random.default_rng(0), 500).tolist()
    past, now = Quantile(q, window), Quantile(q, window, include_current=True)
    for step, norm in enumerate(norms):
        start = 0 if window is None else max(0, step - window)
        before = float(np.quantile(norms[start:step], q)) if step else INF
        start = 0 if window is None else max(0, step + 1 - window)
        after = float(np.quantile(norms[start : step + 1], q))
        assert past.next_threshold(norm) == before
        assert now.next_threshold(norm) == after


def test_long_history_stays_small():
    rule = Quantile(q=0.9, window=50)
    norms = np.random.default_rng(1).lognormal(size=5000) * np.linspace(1, 1000, 5000)  # the old ones stay at the bottom
    for norm in norms:
        rule.next_threshold(norm)
    assert len(pickle.dumps(rule)) < 10_000
    assert rule.next_threshold(0.0) == np.quantile(norms[-50:], 0.9)


@pytest.mark.parametrize(("warmup", "free"), [(0, 1), (1, 1), (3, 3), (10, 10)])
def test_quantile_is_inf_until_enough_norms_were_seen(warmup, free):
    norms = [float(n) for n in range(1, 16)]
    given = thresholds(Quantile(0.5, window=4, warmup=warmup), norms)
    assert given[:free] == [INF] * free
    assert given[free:] == [np.median(norms[max(0, n - 4) : n]) for n in range(free, 15)]
    given = thresholds(Quantile(0.5, window=4, warmup=warmup, include_current=True), norms)
    assert given[: free - 1] == [INF] * (free - 1)
    assert given[free - 1 :] == [np.median(norms[max(0, n - 3) : n + 1]) for n in range(free - 1, 15)]


# --- ZScore --------------------------------------------------------------------------------------------------


def zscore_in_decimals(norms, z, alpha, warmup, mode):
    """The rule as api and paper state it, by variances, with 60 digits and any exponent."""
    with localcontext() as context:
        context.prec, context.Emax, context.Emin = 60, 10**6, -(10**6)
        z, alpha = Decimal(z), Decimal(alpha)
        norms = [Decimal(norm) for norm in norms]
        start = norms[: max(1, warmup)]
        mean = sum(start) / len(start)
        variance = sum((x - mean) ** 2 for x in start) / len(start)
        out = [INF] * len(start)
        for norm in norms[len(start) :]:
            deviation = variance.sqrt()
            threshold = mean + z * deviation
            if norm > threshold:
                threshold = mean
                if mode == "reciprocal" and deviation:
                    threshold += z * z / ((norm - mean) / deviation) * deviation
            out.append(float(threshold))
            x = min(norm, threshold)
            mean, variance = alpha * mean + (1 - alpha) * x, alpha * variance + (1 - alpha) * (x - mean) ** 2
    return out


@pytest.mark.parametrize("mode", ["reciprocal", "mean"])
@pytest.mark.parametrize("size", [1.0, 1e200, 1e-200, 1e307, 1e-300])
@pytest.mark.parametrize(("z", "alpha", "warmup"), [(2.5, 0.97, 25), (1.0, 0.5, 2), (0.1, 0.0, 3), (3, 0.999, 10)])
def test_zscore_is_its_definition(mode, size, z, alpha, warmup):
    rng = np.random.default_rng(2)
    norms = rng.lognormal(sigma=0.3, size=400)
    norms[40::17] *= 5
    norms *= size
    given = thresholds(ZScore(z, alpha, warmup, mode), norms)
    expected = zscore_in_decimals(norms, z, alpha, warmup, mode)
    np.testing.assert_allclose(given, expected, rtol=1e-12)
    assert (norms > given).tolist() == (norms > expected).tolist()
    assert (norms > given).any()


def test_spikes_far_beyond_the_others_neither_overflow_nor_stick():
    rule = ZScore(z=2.0, alpha=0.5, warmup=2)
    assert thresholds(rule, [1e-200, 3e-200]) == [INF, INF]
    assert rule.next_threshold(1e308) == pytest.approx(2e-200)  # a z-score of 1e508
    assert rule.next_threshold(2e-200) == pytest.approx((2 + 2 * math.sqrt(0.5)) * 1e-200)
    big = np.finfo(float).max
    assert thresholds(ZScore(warmup=3), [big, big, big, big, 1.0]) == [INF, INF, INF, big, big]


@pytest.mark.parametrize("mode", ["reciprocal", "mean"])
@pytest.mark.parametrize("warmup", [0, 1, 49])  # (0.0295... + 48 more of it) / 49 rounds to another number
@pytest.mark.parametrize("norm", [0.029574963966907064, 1 / 3, 5e-324, 1e308, 0.0])
def test_without_spread_every_larger_norm_is_brought_to_the_mean(mode, warmup, norm):
    rule = ZScore(warmup=warmup, mode=mode)
    assert thresholds(rule, [norm] * 100) == [INF] * max(1, warmup) + [norm] * (100 - max(1, warmup))
    assert rule.next_threshold(math.nextafter(norm, INF)) == norm
    assert rule.next_threshold(1.5e308) == norm
    assert rule.next_threshold(norm) == norm


def test_zscore_of_a_small_example_by_hand():
    rule = ZScore(z=1.0, alpha=0.75, warmup=2)  # mean 2, deviation 1
    assert thresholds(rule, [1.0, 3.0, 2.0]) == [INF, INF, 3.0]  # not above: mean + z * std, which clips nothing
    deviation = math.sqrt(0.75)
    assert rule.next_threshold(4.0) == pytest.approx(2 + deviation / (2 / deviation))
    rule = ZScore(z=1.0, alpha=0.75, warmup=2, mode="mean")
    assert thresholds(rule, [1.0, 3.0, 4.0]) == [INF, INF, 2.0]
    assert rule.next_threshold(0.0) == pytest.approx(2 + deviation)


# --- Schedule ------------------------------------------------------------------------------------------------


def test_schedule_starts_at_step_0_and_counts_finite_norms():
    rule = Schedule(lambda step: 10.0 + step)
    assert thresholds(rule, [1.0, NAN, 5.0, INF, 0.0]) == [10.0, 11.0, 11.0, 12.0, 12.0]


@pytest.mark.parametrize(
    ("value", "error"), [(-1.0, ValueError), (NAN, ValueError), (None, TypeError), ("1", TypeError), (True, TypeError)]
)
def test_schedule_names_the_step_of_a_bad_threshold(value, error):
    values = [1.0, value]
    rule = Schedule(lambda step: values[step])
    rule.next_threshold(1.0)
    with pytest.raises(error, match="threshold of step 1 must be"):
        rule.next_threshold(1.0)
    values[1] = INF
    assert rule.next_threshold(1.0) == INF  # the failed step was not counted


# --- EMA -----------------------------------------------------------------------------------------------------


def ema_in_fractions(norms, factor, beta, warmup, floor=0.0, ceiling=INF):
    """The rule as the contract states it, with the bounds of every threshold."""
    mean, least, out = None, INF, []
    for step, norm in enumerate(norms, 1):
        threshold = INF if mean is None else Fraction(factor) * mean
        threshold = min(max(threshold, Fraction(floor)), Fraction(ceiling) if ceiling < INF else INF)
        out.append(float(threshold))
        clipped = min(Fraction(norm), threshold)
        if mean is None:
            least = min(least, clipped) if clipped else least
            mean = least if step >= warmup and least < INF else None
        else:
            mean = Fraction(beta) * mean + (1 - Fraction(beta)) * clipped
    return out


@pytest.mark.parametrize("bounds", [{}, {"floor": 0.7}, {"ceiling": 1.3}, {"floor": 0.9, "ceiling": 1.1}], ids=str)
@pytest.mark.parametrize("size", [1.0, 1e200, 1e-200])
@pytest.mark.parametrize(("factor", "beta", "warmup"), [(1.05, 0.98, 100), (2.0, 0.5, 0), (1.0, 0.0, 1), (0.5, 0.9, 7)])
def test_ema_is_its_definition(factor, beta, warmup, size, bounds):
    norms = (np.random.default_rng(7).lognormal(sigma=0.5, size=150) * size).tolist()
    bounds = {name: value * size for name, value in bounds.items()}
    given = thresholds(EMA(factor, beta, warmup, **bounds), norms)
    np.testing.assert_allclose(given, ema_in_fractions(norms, factor, beta, warmup, **bounds), rtol=1e-13)
    assert (norms > np.array(given)).any()


def test_ema_does_not_remember_a_norm_of_0():
    rule = EMA(2.0, 0.5, 2)
    assert thresholds(rule, [0.0, 0.0, 0.0, 4.0, 9.0, 0.0, 0.0]) == [INF, INF, INF, INF, 8.0, 12.0, 12.0]
    assert thresholds(EMA(2.0, 0.0, 1), [1.0, 0.0, 1.0]) == [INF, 2.0, 2.0]


# --- floor and ceiling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("floor", "ceiling"), [(0.0, INF), (0.8, INF), (0.0, 1.1), (0.9, 1.2), (1.0, 1.0), (0.0, 0.0)])
def test_thresholds_lie_between_floor_and_ceiling(floor, ceiling):
    norms = np.random.default_rng(8).lognormal(sigma=0.4, size=300).tolist()
    bounds = {"floor": floor, "ceiling": ceiling}
    within = lambda found: [min(max(c, floor), ceiling) for c in found]  # noqa: E731
    assert thresholds(Quantile(0.8, 20, 5, **bounds), norms) == within(thresholds(Quantile(0.8, 20, 5), norms))
    falling = lambda step: 3 - step / 100  # noqa: E731
    assert thresholds(Schedule(falling, **bounds), norms) == within(thresholds(Schedule(falling), norms))
    rule, free = ZScore(1.5, 0.9, 5, **bounds), ZScore(1.5, 0.9, 5)
    for norm in norms:  # what is remembered is the norm after clipping: a rule without bounds that is shown just that
        free.load_state_dict({**rule.state_dict(), "floor": 0.0, "ceiling": None})
        threshold = rule.next_threshold(norm)
        assert threshold == within([free.next_threshold(norm)])[0]


@pytest.mark.parametrize("rule", [ZScore(2.0, 0.5, 2, ceiling=1.0), EMA(1.5, 0.5, 2, ceiling=1.0)], ids=repr)
def test_what_is_remembered_is_the_norm_after_clipping_by_the_ceiling(rule):
    assert thresholds(rule, [100.0, 50.0, 70.0]) == [1.0, 1.0, 1.0]
    assert rule.state_dict()["mean"] == 1.0


@pytest.mark.parametrize("make", [Quantile, ZScore, EMA, lambda **bounds: Schedule(abs, **bounds)])
def test_bounds_that_cannot_be(make):
    for bounds, error, words in [
        ({"floor": -1.0}, ValueError, "floor must be at least 0"),
        ({"floor": INF}, ValueError, "floor must be finite"),
        ({"floor": 2.0, "ceiling": 1.0}, ValueError, "floor 2.0 is above ceiling 1.0"),
        ({"ceiling": NAN}, ValueError, "ceiling must be at least 0"),
        ({"ceiling": "1"}, TypeError, "ceiling must be a real number"),
    ]:
        with pytest.raises(error, match=words):
            make(**bounds)


# --- all -----------------------------------------------------------------------------------------------------

RULES = {
    "Quantile": lambda: Quantile(0.7, window=8),
    "Quantile in warm-up": lambda: Quantile(0.7, window=8, warmup=60),
    "Quantile of all": lambda: Quantile(0.7, window=None, include_current=True),
    "ZScore": lambda: ZScore(1.5, 0.9, 5),
    "ZScore in warm-up": lambda: ZScore(1.5, 0.9, 60, "mean"),
    "Schedule": lambda: Schedule(lambda step: 1 + step / 7 if step % 5 else INF),
    "Schedule with bounds": lambda: Schedule(lambda step: 1 + step / 7, floor=1.5, ceiling=9.0),
    "EMA": lambda: EMA(1.2, 0.9, 5),
    "EMA in warm-up": lambda: EMA(1.2, 0.9, 60, floor=0.1, ceiling=1.5),
}


@pytest.fixture(params=RULES)
def make(request):
    return RULES[request.param]


def test_nonfinite_norms_get_the_current_threshold_and_change_nothing(make):
    norms = np.random.default_rng(3).lognormal(size=100)
    clean, disturbed = make(), make()
    for norm in norms:
        before = disturbed.state_dict()
        current = [disturbed.next_threshold(bad) for bad in (NAN, INF, -INF, np.float32("nan"))]
        assert disturbed.state_dict() == before
        assert len(set(current)) == 1
        threshold = clean.next_threshold(norm)
        assert disturbed.next_threshold(norm) == threshold
        if getattr(clean, "include_current", False):  # the quantile without this norm
            assert current[0] == (np.quantile(before["norms"], clean.q) if before["norms"] else INF)
        elif norm <= threshold or not isinstance(clean, ZScore):
            assert current[0] == threshold
        else:  # mean + z * std, whatever the spike
            assert threshold < current[0] < norm


@pytest.mark.parametrize("steps", [0, 1, 3, 30, 70])
def test_state_goes_through_json_at_any_step(make, steps):
    norms = np.random.default_rng(4).lognormal(size=170)
    rule = make()
    thresholds(rule, norms[:steps])
    text = json.dumps(rule.state_dict(), allow_nan=False)
    loaded = make()
    thresholds(loaded, norms[::-1])  # whatever it was before
    loaded.load_state_dict(json.loads(text))
    copies = [loaded, copy.deepcopy(rule)]
    expected = thresholds(rule, norms[steps:])
    for other in copies:
        assert thresholds(other, norms[steps:]) == expected
        assert other.state_dict() == rule.state_dict()


def test_a_state_without_bounds_keeps_those_that_are_set(make):
    state = make().state_dict()
    del state["floor"], state["ceiling"]
    rule = make()
    rule.load_state_dict(state)
    assert (rule.floor, rule.ceiling) == (make().floor, make().ceiling)


def test_state_is_a_copy(make):
    rule = make()
    thresholds(rule, [1.0, 2.0, 3.0])
    state = rule.state_dict()
    kept = copy.deepcopy(state)
    rule.next_threshold(4.0)
    assert state == kept
    rule.load_state_dict(state)
    rule.next_threshold(5.0)
    assert state == kept


def test_loading_takes_the_parameters_too():
    rule = ZScore()
    rule.load_state_dict(ZScore(3.0, 0.5, 7, "mean").state_dict())
    assert repr(rule) == "ZScore(z=3.0, alpha=0.5, warmup=7, mode='mean')"
    rule = Quantile()
    rule.load_state_dict(Quantile(0.5, None, 2, True).state_dict())
    assert repr(rule) == "Quantile(q=0.5, window=None, warmup=2, include_current=True)"
    assert repr(Schedule(abs)) == "Schedule(<built-in function abs>)"
    assert repr(Schedule(abs, floor=0.5)) == "Schedule(<built-in function abs>, floor=0.5)"
    rule = EMA()
    rule.load_state_dict(EMA(1.5, 0.5, 7, ceiling=2.0).state_dict())
    assert repr(rule) == "EMA(factor=1.5, beta=0.5, warmup=7, ceiling=2.0)"


@x86_linux
@pytest.mark.parametrize("mode", ROUNDING)
def test_a_rounding_mode_set_outside_changes_no_threshold_and_stays(make, mode):
    norms = np.random.default_rng(6).lognormal(size=100).tolist()
    expected, rule, monitor = thresholds(make(), norms), make(), gradclip.ClipMonitor()
    constants = gradclip.suggest_threshold(norms, 33), gradclip.clip_rate(norms[:77], 1.0)
    for norm in norms:
        monitor.record(gradclip.clip_by_global_norm_(np.array([norm]), INF))
    percentiles = monitor.percentiles([33, 77])
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    try:
        assert libm.fesetround(ROUNDING[mode]) == 0
        found = thresholds(rule, norms)
        state = rule.state_dict()
        others = (gradclip.suggest_threshold(norms, 33), gradclip.clip_rate(norms[:77], 1.0)), monitor.percentiles([33, 77])
        mode_after = libm.fegetround()
    finally:
        libm.fesetround(0)
    assert mode_after == ROUNDING[mode]
    assert found == expected
    again = make()
    thresholds(again, norms)
    assert state == again.state_dict()
    assert others == (constants, percentiles)


BROKEN = [
    ("Quantile", {"rule": "ZScore"}, "rule must be 'Quantile', not 'ZScore'"),
    ("Quantile", {"q": 1.5}, "q must be at most 1"),
    ("Quantile", {"q": None}, "q must be a real number"),
    ("Quantile", {"window": 0}, "window must be at least 1"),
    ("Quantile", {"window": 2}, "norms must be 2 numbers, not 4"),
    ("Quantile", {"seen": 9}, "norms must be 8 numbers, not 4"),
    ("Quantile", {"seen": 4.0}, "seen must be an integer"),
    ("Quantile", {"norms": 3}, "norms must be a list"),
    ("Quantile", {"norms": [1.0, 2.0, 3.0, NAN]}, r"norms\[3\] must be at least 0, not nan"),
    ("Quantile", {"norms": [1.0, INF, 3.0, 4.0]}, r"norms\[1\] must be finite"),
    ("Quantile", {"norms": [1.0, "2", 3.0, 4.0]}, r"norms\[1\] must be a real number"),
    ("Quantile", {"extra": 1}, "extra is unknown"),
    ("ZScore", {"alpha": 1.0}, "alpha must be below 1"),
    ("ZScore", {"mode": "median"}, "mode must be"),
    ("ZScore", {"mean": -1.0}, "mean must be at least 0"),
    ("ZScore", {"std": None}, "std must be a real number"),
    ("ZScore", {"mean": 1.0}, "norms must be at most 0 numbers, not 4"),
    ("ZScore in warm-up", {"warmup": 3}, "norms must be at most 2 numbers, not 4"),
    ("Quantile", {"seen": NAN}, "seen must be an integer"),
    ("Quantile", {"norms": [1.0, 2.0, 3.0, True]}, r"norms\[3\] must be a real number"),
    ("Quantile", {"include_current": "no"}, "include_current must be True or False"),
    ("Quantile", {"warmup": None}, "warmup must be an integer"),
    ("ZScore", {"z": "2.5"}, "z must be a real number"),
    ("ZScore", {"mean": NAN}, "mean must be at least 0, not nan"),
    ("ZScore", {"mean": INF}, "mean must be finite"),
    ("ZScore", {"std": NAN}, "std must be at least 0, not nan"),
    ("ZScore", {"norms": "1234"}, "norms must be a list"),
    ("EMA", {"mean": 1.0}, "mean must be None after 4 norms"),
    ("EMA", {"seen": 5}, "mean must be a number after 5 norms"),
    ("EMA", {"least": -1.0}, "least must be at least 0"),
    ("EMA", {"beta": 1.0}, "beta must be below 1"),
    ("EMA", {"floor": None}, "floor must be a real number"),
    ("EMA in warm-up", {"mean": 1.0}, "mean must be None after 4 norms"),
    ("Quantile", {"floor": 2.0, "ceiling": 1.0}, "floor 2.0 is above ceiling 1.0"),
    ("Schedule", {"step": "3"}, "step must be an integer"),
    ("Schedule", {"step": NAN}, "step must be an integer"),
    ("Schedule", {"step": -1}, "step must be at least 0"),
    ("Schedule", {"step": True}, "step must be an integer"),
]


@pytest.mark.parametrize(("name", "change", "words"), BROKEN)
def test_broken_state_is_refused_and_changes_nothing(name, change, words):
    rule = RULES[name]()
    thresholds(rule, [1.0, 2.0, 3.0, 4.0])
    before = rule.state_dict()
    with pytest.raises(ValueError, match=f"state: {words}"):
        rule.load_state_dict({**before, **change})
    assert rule.state_dict() == before


def test_state_with_a_key_missing_or_no_dict(make):
    rule = make()
    state = rule.state_dict()
    for key in state.keys() - {"floor", "ceiling"}:
        with pytest.raises(ValueError, match=f"state: {key} "):
            rule.load_state_dict({name: value for name, value in state.items() if name != key})
    with pytest.raises(TypeError, match="state must be a dict, not list"):
        rule.load_state_dict([state])
    assert rule.state_dict() == state


@pytest.mark.parametrize(
    ("rule", "arguments", "error", "words"),
    [
        (Quantile, {"q": -0.1}, ValueError, "q must be at least 0, not -0.1"),
        (Quantile, {"q": 90}, ValueError, "q must be at most 1, not 90"),
        (Quantile, {"q": NAN}, ValueError, "q must be at least 0, not nan"),
        (Quantile, {"q": True}, TypeError, "q must be a real number, not bool True"),
        (Quantile, {"q": "0.9"}, TypeError, "q must be a real number, not str '0.9'"),
        (Quantile, {"window": 0}, ValueError, "window must be at least 1, not 0"),
        (Quantile, {"window": 10.0}, TypeError, "window must be an integer, not float 10.0"),
        (Quantile, {"window": True}, TypeError, "window must be an integer, not bool True"),
        (Quantile, {"warmup": -1}, ValueError, "warmup must be at least 0, not -1"),
        (Quantile, {"include_current": 1}, TypeError, "include_current must be True or False, not 1"),
        (ZScore, {"z": 0}, ValueError, "z must be positive and finite, not 0"),
        (ZScore, {"z": INF}, ValueError, "z must be positive and finite, not inf"),
        (ZScore, {"z": -2.5}, ValueError, "z must be at least 0, not -2.5"),
        (ZScore, {"alpha": 1}, ValueError, "alpha must be below 1, not 1"),
        (ZScore, {"alpha": -0.1}, ValueError, "alpha must be at least 0, not -0.1"),
        (ZScore, {"warmup": 2.5}, TypeError, "warmup must be an integer, not float 2.5"),
        (ZScore, {"mode": "max"}, ValueError, "mode must be 'reciprocal' or 'mean', not 'max'"),
        (Schedule, {"function": 1.0}, TypeError, "function must be callable, not float 1.0"),
    ],
)
def test_bad_arguments(rule, arguments, error, words):
    with pytest.raises(error) as caught:
        rule(**arguments)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("norm", "error"), [(-1.0, ValueError), ("1", TypeError), (None, TypeError), (True, TypeError), (1j, TypeError)]
)
def test_bad_norm_is_not_counted(make, norm, error):
    rule = make()
    with pytest.raises(error, match="norm must be"):
        rule.next_threshold(norm)
    assert rule.state_dict() == make().state_dict()


def test_numbers_of_any_kind_are_norms(make):
    expected = thresholds(make(), [2.0] * 10)
    for norm in (2, np.float32(2), np.array(2), Fraction(2)):
        given = thresholds(make(), [norm] * 10)
        assert given == expected
        assert {type(threshold) for threshold in given} == {float}


def test_rule_of_ones_own():
    class Twice(Threshold):
        def next_threshold(self, norm):
            return 2 * norm

    rule = Twice()
    assert rule.state_dict() == {"rule": "Twice"}
    rule.load_state_dict({"rule": "Twice"})
    assert repr(rule) == "Twice()"
    with pytest.raises(TypeError, match="abstract"):
        Threshold()


# --- constant thresholds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("percentile", [0, 50, 95, 99.9, 100])
def test_suggested_threshold_is_numpys_percentile(percentile):
    norms = np.random.default_rng(5).lognormal(size=1000)
    expected = np.percentile(norms, percentile)
    logged = np.insert(norms, [0, 100, 500], [NAN, INF, -INF])
    for given in (logged, logged.tolist(), iter(logged), map(np.float64, logged), logged.reshape(17, 59)):
        assert gradclip.suggest_threshold(given, percentile) == expected
    assert gradclip.suggest_threshold(norms) == np.percentile(norms, 95)


@pytest.mark.parametrize("percentile", [0.95, 0.5, np.float32(0.25)])
def test_a_percentile_that_looks_like_a_fraction_warns(percentile):
    with pytest.warns(UserWarning, match=f"percentile is {percentile:g}, which is below one percent") as caught:
        found = gradclip.suggest_threshold([1.0, 2.0, 3.0], percentile=percentile)
    assert found == np.percentile([1.0, 2.0, 3.0], float(percentile))
    assert caught[0].filename == __file__
    assert [gradclip.suggest_threshold([1.0, 2.0, 3.0], percent) for percent in (0, 1, 100)] == [1.0, pytest.approx(1.02), 3.0]


def test_one_norm_is_too_few_to_suggest_from():
    with pytest.warns(UserWarning, match="from one norm says little") as caught:
        assert gradclip.suggest_threshold([NAN, 3.0]) == 3.0
    assert caught[0].filename == __file__


def test_clip_rate_is_strict_and_of_finite_norms():
    assert gradclip.clip_rate([1.0, 2.0, 2.0, 3.0], 2.0) == 0.25
    assert gradclip.clip_rate([1, 2, NAN, INF], 1.5) == 0.5
    assert gradclip.clip_rate([0.0, 1.0], 0) == 0.5
    assert gradclip.clip_rate(np.arange(10, dtype=np.float16), INF) == 0.0


@pytest.mark.parametrize(
    ("norms", "error", "words"),
    [
        ([], ValueError, "norms has no finite value"),
        ([NAN, INF], ValueError, "norms has no finite value"),
        ([1.0, -2.0], ValueError, "norms must be at least 0, not -2.0"),
        (3.0, TypeError, "norms must be an iterable of numbers, not float 3.0"),
        (["1.0"], TypeError, "each of norms must be a real number, not str '1.0'"),
        ([1.0, None], TypeError, "each of norms must be a real number, not NoneType None"),
        (np.array([True]), TypeError, "each of norms must be a real number, not bool"),
        ([[1.0, 2.0]], TypeError, "each of norms must be a real number, not list"),
    ],
)
def test_norms_that_cannot_be_used(norms, error, words):
    for call in (gradclip.suggest_threshold, lambda norms: gradclip.clip_rate(norms, 1.0)):
        with pytest.raises(error) as caught:
            call(norms)
        assert words in str(caught.value)


def test_bad_percentile_and_threshold():
    for percentile in (-1, 100.5, NAN):
        with pytest.raises(ValueError, match="percentile must be"):
            gradclip.suggest_threshold([1.0], percentile)
    for max_norm in (-1, NAN):
        with pytest.raises(ValueError, match="max_norm must be at least 0"):
            gradclip.clip_rate([1.0], max_norm)


# --- the chance of exceeding a threshold ---------------------------------------------------------------------

# size, max_norm, sigma, log P(norm > max_norm). By mpmath 1.3 with 40 digits: with a = size / 2 and
# x = (max_norm / sigma)**2 / 2 (exactly of these floats), a * log(x) - x - loggamma(a) plus the logarithm of
# quad(exp(+-a * v - x * expm1(+-v)), v = 0 .. inf): the tail beyond x, + above the mean and - below it, where the
# result is log1p(-exp(.)).
CHANCES = [
    (100, 15.97, 0.37, -740.9956065025742),  # itself a subnormal number of few digits
    (1000, 2.0, 0.03162277660168379, -811.9787284882531),
    (1, 0.0037, 0.37, -0.008010712884424787),
    (1, 0.108370491, 0.37, -0.26187947813484114),
    (1, 0.370784889, 0.37, -1.1511115691049303),
    (1, 0.631629509, 0.37, -2.432668642380452),
    (1, 1.67814755, 0.37, -12.067042402995375),
    (1, 3.50955411, 0.37, -47.471635648488004),
    (1, 10.8351804, 0.37, -432.38827890790816),
    (1, 10000.0, 0.37, -365230105.3902087),
    (1000, 10.1306503, 0.37, -4.3325837235632524e-10),
    (1000, 11.4387978, 0.37, -0.1759923990349816),
    (1000, 11.7012122, 0.37, -0.707537595980324),
    (1000, 11.9620569, 0.37, -1.8581235208633604),
    (1000, 13.0085749, 0.37, -14.693489484624845),
    (1000, 14.8399815, 0.37, -70.16697560019237),
    (1000, 22.1656077, 0.37, -660.4893651735418),
    (1000, 320000.0, 0.37, -373995606546.8689),
    (20000, 50.7561248, 0.37, -8.337962302710538e-10),
    (20000, 52.0642723, 0.37, -0.17347393815967363),
    (20000, 52.3266867, 0.37, -0.6982132314129034),
    (20000, 52.5875313, 0.37, -1.84483688757659),
    (20000, 53.6340494, 0.37, -14.97607483394938),
    (20000, 55.4654559, 0.37, -74.0624789929353),
    (20000, 62.7910822, 0.37, -758.272747509466),
    (20000, 1420000.0, 0.37, -7364499420622.328),
    (1000000000, 11698.8576, 0.37, -9.866626263141904e-10),
    (1000000000, 11700.1657, 0.37, -0.1727425789493078),
    (1000000000, 11700.4281, 0.37, -0.6954715231084785),
    (1000000000, 11700.689, 0.37, -1.841201153521033),
    (1000000000, 11701.7355, 0.37, -15.064787418124757),
    (1000000000, 11703.5669, 0.37, -75.4045213255948),
    (1000000000, 11710.8925, 0.37, -804.3670209698556),
    (1000000000, 316230000.0, 0.37, -3.6523524459123674e17),
    (3, 1e150, 1.0, -4.9999999999999995e299),
]


@pytest.mark.parametrize(("size", "max_norm", "sigma", "expected"), CHANCES)
def test_gaussian_exceedance(size, max_norm, sigma, expected):
    pytest.importorskip("scipy")
    given = gradclip.gaussian_exceedance(max_norm, size, sigma, log=True)
    assert given == pytest.approx(expected, rel=1e-10, abs=0)
    assert gradclip.gaussian_exceedance(max_norm, size, sigma) == pytest.approx(math.exp(expected), rel=1e-10, abs=0)


def test_methods_meet_where_they_change():
    special = pytest.importorskip("scipy.special")
    from gradclip._core import chi

    for deviations in (-4, -2.1, -1.9, -1, -0.01, 0, 0.01, 1, 1.9, 2.1, 4, 9):  # by Temme's expansion and by SciPy
        x = chi.UNIFORM * (1 + deviations / math.sqrt(chi.UNIFORM))
        below = math.nextafter(chi.UNIFORM, 0)
        assert chi.log_upper(special, chi.UNIFORM, x) == pytest.approx(chi.log_upper(special, below, x), rel=3e-12)
    for a in (0.5, 3.0, 500.0, 9999.0):  # by the continued fraction and by SciPy
        x = a + 20 * math.sqrt(a) + 150
        assert chi._fraction(a, x) == pytest.approx(math.log(special.gammaincc(a, x)), rel=1e-10)


def test_gaussian_exceedance_at_the_edges():
    pytest.importorskip("scipy")
    for size in (1, 1000, 10**6):
        assert gradclip.gaussian_exceedance(0, size, 1.0) == 1.0
        assert math.copysign(1, gradclip.gaussian_exceedance(0, size, 1.0, log=True)) == 1  # 0.0
        assert gradclip.gaussian_exceedance(0, size, 1.0, log=True) == 0.0
        for max_norm, sigma in ((INF, 1.0), (1.0, 0.0), (0.0, 0), (1e200, 1e-200), (1e200, 1.0)):
            assert gradclip.gaussian_exceedance(max_norm, size, sigma) == 0.0
            assert gradclip.gaussian_exceedance(max_norm, size, sigma, log=True) == -INF
        assert gradclip.gaussian_exceedance(1e-100, size, 1.0) == 1.0
        far = gradclip.gaussian_exceedance(1e150, size, 1.0, log=True)
        assert far == pytest.approx(-5e299, rel=1e-10)
    assert gradclip.gaussian_exceedance(0.0, 0, 1.0) == 0.0
    assert gradclip.gaussian_exceedance(1.0, 0, 1.0, log=True) == -INF


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((-1.0, 10, 1.0), ValueError, "max_norm must be at least 0"),
        ((NAN, 10, 1.0), ValueError, "max_norm must be at least 0"),
        ((1.0, -1, 1.0), ValueError, "size must be at least 0"),
        ((1.0, 10.0, 1.0), TypeError, "size must be an integer"),
        ((1.0, 10, -1.0), ValueError, "sigma must be at least 0"),
        ((1.0, 10, INF), ValueError, "sigma must be finite"),
    ],
)
def test_gaussian_exceedance_of_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        gradclip.gaussian_exceedance(*arguments)
    with pytest.raises(TypeError, match="log must be True or False"):
        gradclip.gaussian_exceedance(1.0, 10, 1.0, log=1)


def test_missing_scipy_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r'pip install "gradclip\[stats\]"'):
        gradclip.gaussian_exceedance(1.0, 10, 1.0)


def test_import_stays_light():
    code = "import sys, gradclip; gradclip.thresholds.Quantile; print({'scipy', 'matplotlib', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=60)
    assert done.stdout == "set()\n"
