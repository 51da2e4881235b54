"""ClipMonitor against NumPy on kept lists; its warnings, files and pictures."""

import copy
import csv
import errno
import itertools
import json
import linecache
import math
import os
import pickle
import re
import subprocess
import sys
import tracemalloc
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import gradclip
from gradclip import ClipMonitor, FrequentClippingWarning, VanishingScaleWarning
from gradclip.monitor.state import COLUMNS


def report(norm, max_norm=1.0, scale=1.0, clipped=False, skipped=False, nonfinite=0, **more):
    return SimpleNamespace(
        norm=norm, max_norm=max_norm, scale=scale, clipped=clipped, skipped=skipped, nonfinite=nonfinite, **more
    )


def training(steps, seed=0, max_norm=2.0):
    """Reports of heavy-tailed norms; now and then a NaN, an Inf, a skipped step."""
    rng = np.random.default_rng(seed)
    for i, norm in enumerate(rng.lognormal(0, 1, steps).tolist()):
        if i % 17 == 5:
            yield report(math.nan, max_norm, skipped=True, nonfinite=3)
        elif i % 29 == 7:
            yield report(math.inf, max_norm, nonfinite=1)
        else:
            yield report(norm, max_norm, min(1.0, max_norm / norm), norm > max_norm)


def monitored(reports, **options):
    monitor = ClipMonitor(**{"warn_rate": 1, **options})
    for each in reports:
        monitor.record(each)
    return monitor


def warned(monitor, *reports):
    """The warnings of recording these."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for each in reports:
            monitor.record(each)
    return caught


@pytest.mark.parametrize(
    ("steps", "window"), [(1, 1), (5, 1), (1, 7), (6, 7), (7, 7), (8, 7), (50, 7), (700, 100), (700, 1000)]
)
def test_as_numpy_on_kept_lists(steps, window):
    reports = list(training(steps))
    monitor = monitored(reports, window=window)
    kept = reports[-window:]
    norms = np.array([r.norm for r in kept])
    norms, every = norms[np.isfinite(norms)], np.array([r.norm for r in reports])
    every = every[np.isfinite(every)]
    assert monitor.steps == steps
    assert monitor.clip_rate == np.mean([r.clipped for r in kept])
    percents = [0, 12.5, 50, np.float64(95), 100]
    found = monitor.percentiles(percents)
    assert list(found) == percents
    assert list(found.values()) == [
        np.percentile(norms, p) if len(norms) else pytest.approx(math.nan, nan_ok=True) for p in percents
    ]
    if len(norms) > 1:
        assert monitor.suggest_threshold() == np.percentile(norms, 95)
        assert monitor.suggest_threshold(percentile=50) == np.median(norms)
    summary = monitor.summary()
    assert [summary[key] for key in ("steps", "clipped", "skipped", "nonfinite")] == [
        steps,
        sum(r.clipped for r in reports),
        sum(r.skipped for r in reports),
        sum(r.nonfinite > 0 for r in reports),
    ]
    assert summary["clip_rate"] == monitor.clip_rate
    assert summary["total_clip_rate"] == np.mean([r.clipped for r in reports])
    assert (summary["norm_min"], summary["norm_max"]) == (every.min(), every.max())
    assert summary["norm_mean"] == pytest.approx(math.fsum(every) / len(every), rel=1e-13)
    assert summary["norm_p90"] == (np.percentile(norms, 90) if len(norms) else None)
    assert summary["max_norm"] == 2.0
    assert summary["smallest_scale"] == min(r.scale for r in reports)


def test_records_what_clipping_reports():
    monitor = ClipMonitor()
    for norm in (1.0, 5.0, 3.0):
        monitor.record(gradclip.clip_by_global_norm_(np.array([norm]), 3.0))
    monitor.record(gradclip.clip_by_global_norm_(np.array([1.0, np.nan]), np.float32(2.5), nonfinite="skip"))
    monitor.record(gradclip.clip_by_global_norm_(np.array([8.0, np.nan]), 4, nonfinite="zero"))
    assert (monitor.steps, monitor.clip_rate) == (5, 0.4)
    assert monitor.percentiles(iter([0, 100])) == {0: 1.0, 100: 8.0}
    summary = monitor.summary()
    assert (summary["skipped"], summary["nonfinite"], summary["max_norm"], summary["smallest_scale"]) == (1, 2, 4.0, 0.5)


def test_every_attribute_is_read_once():
    reads = []

    class Lazy:  # numbers on a device are fetched at each reading
        def __getattr__(self, name):
            reads.append(name)
            return np.float32({"norm": 2.0, "scale": 0.5, "max_norm": 1.0, "clipped": 1.0}.get(name, 0.0))

    monitored([Lazy()])
    assert sorted(reads) == sorted(COLUMNS)


def test_mean_of_huge_norms_does_not_overflow():
    summary = monitored([report(1.5e308)] * 5).summary()
    assert summary["norm_mean"] == 1.5e308
    assert summary["norm_p50"] == 1.5e308


@pytest.mark.slow
def test_memory_is_bounded():
    monitor, each = ClipMonitor(window=500, warn_rate=1), report(2.0, 1.0, 0.5, True)
    for _ in range(1000):
        monitor.record(each)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(100_000):
            monitor.record(each)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert monitor.steps == 101_000
    assert grown < 2000  # a byte for fifty steps: some Python numbers
    assert len(pickle.dumps(monitor)) < 500 * 43 + 2000


def test_empty():
    monitor = ClipMonitor()
    assert (monitor.steps, monitor.clip_rate) == (0, 0.0)
    assert all(math.isnan(value) for value in monitor.percentiles().values())
    assert list(monitor.percentiles()) == [50, 90, 95, 99]
    with pytest.raises(ValueError, match="no finite norm in the last 0 steps"):
        monitor.suggest_threshold()
    with pytest.raises(ValueError, match="no finite norm in the last 3 steps"):
        monitored([report(math.nan)] * 3).suggest_threshold()
    summary = monitor.summary()
    assert {value for key, value in summary.items() if not key.startswith(("norm", "max", "small"))} == {0}
    assert {value for key, value in summary.items() if key.startswith(("norm", "max", "small"))} == {None}


@pytest.mark.parametrize("reports", [[], [report(2.0)], [report(math.nan, math.inf, math.nan, True)], list(training(99))])
def test_summary_is_plain_json(reports):
    summary = monitored(reports).summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert {type(value) for value in summary.values()} <= {int, float, type(None)}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ClipMonitor(window=0), ValueError, "window must be at least 1, not 0"),
        (lambda: ClipMonitor(window=2.5), TypeError, "window must be an integer, not 2.5"),
        (lambda: ClipMonitor(window=True), TypeError, "window must be an integer, not True"),
        (lambda: ClipMonitor(warn_rate=1.5), ValueError, "warn_rate must be at most 1, not 1.5"),
        (lambda: ClipMonitor(warn_rate=math.nan), ValueError, "warn_rate must be at least 0, not nan"),
        (lambda: ClipMonitor(warn_rate="often"), TypeError, "warn_rate must be a real number, not str 'often'"),
        (lambda: ClipMonitor().percentiles([50, 101]), ValueError, "percents must be at most 100, not 101"),
        (lambda: ClipMonitor().percentiles(50), TypeError, "percents must be an iterable of numbers, not 50"),
        (lambda: ClipMonitor().suggest_threshold(-1), ValueError, "percentile must be at least 0, not -1"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (([], report(1.0)), TypeError, "not tuple .the functional forms return it as the second of two values"),
        (2.0, TypeError, "report must be a ClipReport, not float: .*'norm'"),
        (report("large"), TypeError, "what this SimpleNamespace holds is not: .*'large'"),
        (report(-1.0), ValueError, "no report has norm=-1.0"),
        (report(1.0, nonfinite=math.inf), TypeError, "holds is not: .*infinity"),
        (report(1.0, scale=-0.5), ValueError, "scale=-0.5"),
        (report(1.0, nonfinite=2**63), ValueError, "nonfinite=9223372036854775808"),
    ],
)
def test_what_is_no_report_is_not_recorded(bad, error, message):
    monitor = monitored(training(3))
    before = monitor.state_dict()
    with pytest.raises(error, match=message):
        monitor.record(bad)
    assert json.dumps(monitor.state_dict()) == json.dumps(before)


@pytest.mark.parametrize(("window", "first"), [(1, 1), (10, 10), (100, 100), (1000, 100)])
def test_frequent_clipping_warns_once_and_not_too_early(window, first):
    monitor = ClipMonitor(window=window)
    clip = report(4.0, 1.0, 0.25, True)
    assert not warned(monitor, *[clip] * (first - 1))
    (caught,) = warned(monitor, clip)
    assert caught.category is FrequentClippingWarning
    assert caught.filename == __file__  # the line that recorded
    assert str(caught.message) == (
        f"100.0% of the last {first} steps were clipped: lower the learning rate or raise the threshold "
        "(it is 1, 95% of these norms are at most 4)"
    )
    assert not warned(monitor, *[clip] * 300)


@pytest.mark.parametrize(("rate", "clipped"), [(0.5, 50), (0.29, 29), (0.0, 0), (1, 100)])
def test_frequent_clipping_means_more_than_the_rate(rate, clipped):
    clip, keep = report(4.0, 1.0, 0.25, True), report(0.5)
    few = [clip] * clipped + [keep] * (100 - clipped)
    assert not warned(ClipMonitor(warn_rate=rate), *few)
    if rate < 1:
        more = [clip] * (clipped + 1) + [keep] * (99 - clipped)  # the last, which decides, may be one that is kept
        assert len(warned(ClipMonitor(warn_rate=rate), *more)) == 1


def test_frequent_clipping_looks_at_the_window_alone():
    clip, keep = report(4.0, 1.0, 0.25, True), report(0.5)
    monitor = ClipMonitor(window=10)
    assert not warned(monitor, *[keep] * 1000, *[clip] * 5)
    assert len(warned(monitor, clip)) == 1
    assert monitor.clip_rate == 0.6
    assert not warned(ClipMonitor(window=10), *itertools.chain.from_iterable([keep, clip] for _ in range(100)))
    without = warned(ClipMonitor(window=1), report(math.inf, {"*": 1.0}, 0.5, True))
    assert str(without[0].message).endswith("raise the threshold")  # nothing finite to name


def test_vanishing_scale_warns_once():
    monitor = ClipMonitor(warn_rate=1)
    assert not warned(monitor, report(1.0), gradclip.clip_by_global_norm_(np.array([9e5]), 1.0))
    tiny = gradclip.clip_by_global_norm_(np.array([4e6]), 1.0)
    (caught,) = warned(monitor, tiny, tiny)
    assert caught.category is VanishingScaleWarning
    assert caught.filename == __file__
    assert str(caught.message) == (
        "clipping multiplied the gradient of step 2 by 2.5e-07 (norm 4e+06, threshold 1): look at the data of that step"
    )


def test_vanishing_scale_is_that_of_clipping_alone():
    """Which real clips are warned of, and the factor that is named."""
    big, ones = np.array([1e7]), np.ones(4)

    def factor(clip, grads, *args, **options):
        caught = warned(ClipMonitor(warn_rate=1), clip([g.copy() for g in grads], *args, **options))
        return float(str(caught[0].message).split(" by ")[1].split()[0]) if caught else None

    assert factor(gradclip.clip_by_global_norm_, [big, ones], 1.0) == 1e-7
    assert factor(gradclip.clip_by_norm_, [big, ones], 1.0) == 1e-7
    assert factor(gradclip.clip_by_global_norm_, [big * 2.0**16], 1.0, grad_scale=2.0**16) == 1e-7
    assert factor(gradclip.clip_by_global_norm_, [big], math.inf) is None
    for scaled in (2.0**16, 2.0**24):  # written with factors of 1.5e-5 / 2 and 6e-8 / 2
        assert factor(gradclip.clip_by_global_norm_, [ones * scaled], 1.0, grad_scale=scaled) is None
        assert factor(gradclip.clip_by_norm_, [ones * scaled, ones[:1]], 1.0, grad_scale=scaled) is None
    for clip in (gradclip.clip_by_global_norm_, gradclip.clip_by_norm_, gradclip.clip_by_value_):
        assert factor(clip, [big, ones], 0.0) is None  # all zero, on purpose
    assert factor(gradclip.clip_by_value_, [big], 1.0) is None  # its threshold is none of norms
    assert factor(gradclip.clip_by_global_norm_, [np.array([1.0, np.inf])], 1.0, nonfinite="propagate") is None
    assert factor(gradclip.clip_by_global_norm_, [np.array([1e7, np.inf])], 1.0, nonfinite="zero") == 1e-7
    assert factor(gradclip.clip_by_global_norm_, [np.full(4, 1.7e308)], 1.7) == pytest.approx(5e-309)  # the norm is inf


def test_vanishing_scale_where_leaves_have_thresholds():
    by_leaf = {"a": 1e-3, "b": 1.0}

    def message(**scales):
        caught = warned(ClipMonitor(warn_rate=1), report(1e5, by_leaf, clipped=True, **scales))
        return str(caught[0].message) if caught else None

    assert message(scale=1e-8, scales=np.array([1e-8, 1.0])).startswith(
        "clipping multiplied the gradient of step 0 by 1e-08 (norm"
    )
    assert message(scale=1e-8, scales=np.array([1e-8, 1e-7])) is None  # 1e7 may be the scale of the loss
    assert message(scale=0.0, scales=np.array([0.0, 1.0])) is None  # a threshold of 0
    assert message(scale=1e-8) is None


def test_warnings_as_errors_leave_a_complete_record():
    monitor = ClipMonitor(window=2)
    clip, tiny = report(4.0, 1.0, 0.25, True), report(1e9, 1.0, 1e-9, True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.record(clip)
        with pytest.raises(FrequentClippingWarning) as both:
            monitor.record(tiny)
        assert isinstance(both.value.__context__, VanishingScaleWarning)
        for each in (tiny, clip):
            monitor.record(each)
    assert monitor.state_dict()["window"] == [[1e9, 1.0, 1e-9, 1, 0, 0], [4.0, 1.0, 0.25, 1, 0, 0]]
    assert monitor.summary() | {"steps": 4, "clipped": 4} == monitor.summary()


def test_csv_round_trip(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("what was there before")
    reports = [*training(50), report(3.0, math.inf), report(0.1, {"*": 1.0}), report(1 / 3, np.array(0.1), 0.3, True)]
    monitored(reports, window=20).to_csv(path)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "norm", "max_norm", "scale", "clipped", "skipped", "nonfinite"]
    assert [int(row["step"]) for row in rows] == list(range(33, 53))
    for row, r in zip(rows, reports[-20:], strict=True):
        max_norm = math.nan if isinstance(r.max_norm, dict) else r.max_norm
        for name, value in (("norm", r.norm), ("max_norm", max_norm), ("scale", r.scale)):
            assert float(row[name]) == pytest.approx(float(value), rel=0, abs=0, nan_ok=True)
        assert [row["clipped"], row["skipped"], row["nonfinite"]] == [str(int(v)) for v in (r.clipped, r.skipped, r.nonfinite)]
    assert np.loadtxt(path, delimiter=",", skiprows=1).shape == (20, 7)
    assert list(tmp_path.iterdir()) == [path]
    ClipMonitor().to_csv(str(path))
    assert path.read_text().split() == ["step,norm,max_norm,scale,clipped,skipped,nonfinite"]


@pytest.mark.slow
def test_files_are_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monitor, path = monitored(training(5)), tmp_path / "log.csv"
    path.write_text("before")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            monitor.to_csv(path)
    for write in (monitor.to_csv, monitor.plot):
        with pytest.raises(FileNotFoundError, match="no such folder to write to: .*nowhere"):
            write(tmp_path / "nowhere" / "file.png")
    with pytest.raises(ValueError, match="'spreadsheet' is not supported"):
        monitor.plot(tmp_path / "log.spreadsheet")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


ODD = {
    "empty": [],
    "one step": [report(2.0)],
    "one clipped step": [report(2.0, 1.0, 0.5, True)],
    "no threshold": [report(x, math.inf) for x in (1.0, 2.0)],
    "all NaN": [report(math.nan, nonfinite=3, skipped=skipped) for skipped in (True, False)],
    "all zero": [report(0.0)] * 3,
    "zeros on a logarithmic axis": [report(0.0), report(1e5), report(1.0, 0.0, 0.0, True)],
    "half of the norms zero": [report(0.0), report(0.0), report(0.0), report(1.0, 1e-9), report(1e5)],
    "largest numbers": [report(1.7e308, 1.7e308)] * 3,
    "smallest numbers": [report(5e-324, 5e-324)] * 3,
    "all numbers": [report(5e-324), report(1.7e308), report(math.inf, 2.0, 0.1, True)],
    "one value": [report(3.0, 2.0, 2 / 3, True)] * 20,
    "nestings of thresholds": [report(x, {"a": 1.0, "b": [2.0]}, 0.5, True) for x in (1.0, 2.0)],
    "arrays of thresholds": [report(x, np.array([1.0, 2.0]), 0.5, True) for x in (1.0, 2.0)],
    "moving threshold": [report(x, 1 + x / 3, clipped=x > 2) for x in range(5)],
    "thresholds for some": [report(2.0, 1.0, 0.5, True), report(2.0, {})],
    "threshold far above": [report(1e-3, 1e300)] * 4,
    "heavy tails": list(training(500)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
def test_plot(name, tmp_path):
    pytest.importorskip("matplotlib")
    monitor = monitored(ODD[name], window=300)
    monitor.plot(tmp_path / "picture")  # all warnings are errors here, matplotlib's own too
    assert (tmp_path / "picture").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    monitor.to_csv(tmp_path / "log.csv")
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 1 + min(300, len(ODD[name]))


def test_plot_shows_what_was_recorded(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    reports = [report(x, 2.0, min(1, 2 / x), x > 2) for x in (1.0, 4.0, 3.0, 1.5)] + [report(math.nan, 2.0, skipped=True)]
    monitor = monitored(reports, window=4)
    monitor.plot(tmp_path / "picture.svg")
    over, beside = drawn[0].axes
    assert over.get_title("left") == "Gradient norm, last 4 of 5 steps: 50.0% clipped"
    lines = {line.get_label(): line for line in over.lines}
    assert list(lines) == ["not clipped", "clipped (2)", "threshold (last: 2)", "skipped (1)"]
    assert lines["clipped (2)"].get_xydata().tolist() == [[1.0, 4.0], [2.0, 3.0]]
    assert lines["not clipped"].get_xydata()[0].tolist() == [3.0, 1.5]
    assert set(lines["threshold (last: 2)"].get_ydata()) == {2.0}
    assert lines["skipped (1)"].get_xdata().tolist() == [4]
    assert over.get_yscale() == "linear"
    assert max(bar.get_width() for bar in beside.patches) == 1
    monitored([report(1.0), report(100.0)]).plot(tmp_path / "picture.svg")
    assert drawn[1].axes[0].get_yscale() == "log"


def test_plot_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "gradclip\[plot\]"'):
        ClipMonitor().plot(tmp_path / "picture.png")
    assert not list(tmp_path.iterdir())


def test_importing_and_recording_need_no_matplotlib():
    code = "import sys, gradclip; gradclip.ClipMonitor().summary(); sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("window", [3, 40, 200])
def test_state_round_trip(window):
    reports = list(training(120))
    first = monitored(reports[:90], window=40)
    state = json.loads(json.dumps(first.state_dict()))
    resumed = ClipMonitor(window=window, warn_rate=1)
    resumed.load_state_dict(state)
    for each in reports[90:]:
        first.record(each)
        resumed.record(each)
    kept = resumed.state_dict()["window"]
    assert len(kept) == {3: 3, 40: 40, 200: 70}[window]
    assert repr(kept[-40:]) == repr(first.state_dict()["window"][-len(kept) :])
    assert resumed.clip_rate == np.mean([r.clipped for r in reports[-len(kept) :]])
    totals = [key for key in first.summary() if key not in ("clip_rate",) and not key.startswith("norm_p")]
    assert [resumed.summary()[key] for key in totals] == [first.summary()[key] for key in totals]
    for twin in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        twin.record(reports[0])
        assert (twin.steps, first.steps) == (121, 120)


def test_state_remembers_warnings():
    monitor = ClipMonitor(window=1)
    tiny = report(1e9, 1.0, 1e-9, True)
    assert [w.category for w in warned(monitor, tiny)] == [VanishingScaleWarning, FrequentClippingWarning]
    resumed = ClipMonitor(window=1)
    resumed.load_state_dict(monitor.state_dict())
    assert not warned(resumed, tiny)


def changed(state, place, value):
    """A copy of a state with another value at a place: keys and indices, joined by dots."""
    state = copy.deepcopy(state)
    *keys, last = [int(key) if key.isdigit() else key for key in place.split(".")]
    inner = state
    for key in keys:
        inner = inner[key]
    inner[last] = value
    return state


BROKEN = [
    ("totals", None, "totals must be a dict, not NoneType"),
    ("totals", {"steps": 3}, "totals: clipped is missing"),
    ("totals.step", 3, "totals: step is unknown"),
    ("more", 3, "state: more is unknown"),
    ("totals.steps", "3", "totals: steps must be an integer, not str '3'"),
    ("totals.steps", 3.0, "totals: steps must be an integer, not float 3.0"),
    ("totals.steps", True, "totals: steps must be an integer, not bool True"),
    ("totals.steps", -1, "totals: steps must be at least 0, not -1"),
    ("totals.steps", 2, "totals: finite must be at most the 2 steps, not 3"),
    ("totals.clipped", 4, "totals: clipped must be at most the 3 steps, not 4"),
    ("totals.clipped", 0, "totals: clipped must be at least the window's 2, not 0"),
    ("totals.finite", None, "totals: finite must be an integer, not NoneType None"),
    ("totals.norm_mean", "1.0", "totals: norm_mean must be a real number, not str '1.0'"),
    ("totals.norm_mean", math.nan, "totals: norm_mean must be a number, not nan"),
    ("totals.norm_mean", 99.0, "totals: norm_min, norm_mean and norm_max must be finite, at least 0 and in this order"),
    ("totals.norm_max", math.inf, "totals: norm_min, norm_mean and norm_max must be finite, at least 0 and in this order"),
    ("totals.norm_min", -1.0, "totals: norm_min, norm_mean and norm_max must be finite, at least 0 and in this order"),
    ("totals.smallest_scale", math.nan, "totals: smallest_scale must be a number, not nan"),
    ("totals.warned_frequent", 1, "totals: warned_frequent must be True or False, not 1"),
    ("totals.smallest_scale", -0.5, "totals: smallest_scale must be at least 0, not -0.5"),
    ("totals.finite", 2, "totals: finite must be at least the window's 3, not 2"),
    ("totals.skipped", 1, "totals: skipped must be at most the window's 0 and the 0 steps before it, not 1"),
    ("totals.nonfinite", 3, "totals: nonfinite must be at most the window's 0 and the 0 steps before it, not 3"),
    ("totals.clipped", 3, "totals: clipped must be at most the window's 2 and the 0 steps before it, not 3"),
    ("window.0.4", 1, "totals: skipped must be at least the window's 1, not 0"),
    ("window.0.5", 7, "totals: nonfinite must be at least the window's 1, not 0"),
    ("window.0.0", math.inf, "totals: finite must be at most the window's 2 and the 0 steps before it, not 3"),
    ("window.1.2", -0.5, "window[1]: scale must be at least 0, not -0.5"),
    ("window", "steps", "window must be a list, not str"),
    ("window", [[1.0, 2.0]], "window[0] must be a list of 6 numbers, not [1.0, 2.0]"),
    ("window.1", 5.0, "window[1] must be a list of 6 numbers, not 5.0"),
    ("window.1.0", "1.0", "window[1]: norm must be a real number, not str '1.0'"),
    ("window.1.0", -1.0, "window[1]: norm must be at least 0, not -1.0"),
    ("window.1.1", None, "window[1]: max_norm must be a real number, not NoneType None"),
    ("window.1.2", True, "window[1]: scale must be a real number, not bool True"),
    ("window.1.3", 2, "window[1]: clipped must be at most 1, not 2"),
    ("window.1.4", "0", "window[1]: skipped must be an integer, not str '0'"),
    ("window.1.5", math.nan, "window[1]: nonfinite must be an integer, not float nan"),
    ("window.1.5", 2**63, "window[1]: nonfinite must be at most 9223372036854775807, not 9223372036854775808"),
    ("window", [[1.0, 2.0, 1.0, 0, 0, 0]] * 4, "totals: steps must be at least the window's 4, not 3"),
]


@pytest.mark.parametrize(("place", "value", "words"), BROKEN)
def test_bad_state_changes_nothing(place, value, words):
    monitor = monitored([report(1.0), report(4.0, clipped=True), report(3.0, clipped=True)])
    before = monitor.state_dict()
    with pytest.raises(ValueError, match=re.escape(f"state is not what state_dict() returns: {words}")):
        monitor.load_state_dict(changed(before, place, value))
    assert monitor.state_dict() == before


def test_totals_without_a_finite_norm_hold_none():
    state = monitored([report(math.nan)] * 2).state_dict()
    ClipMonitor().load_state_dict(state)
    for name, value in (("norm_min", 0.0), ("norm_max", math.inf), ("norm_mean", 1.0)):
        with pytest.raises(ValueError, match="must be inf, -inf and 0, as no norm is finite"):
            ClipMonitor().load_state_dict(changed(state, f"totals.{name}", value))


@pytest.mark.parametrize("window", [1, 2, 7, 300])
def test_what_monitors_write_is_taken(window):
    written = [ClipMonitor(window, 1)]
    for reports in ODD.values():
        written.append(monitored(reports, window=window))
    real = ClipMonitor(window, 1)
    for nonfinite in ("skip", "zero", "propagate"):
        for value in (math.nan, math.inf, 3.0):
            real.record(gradclip.clip_by_global_norm_(np.array([1.0, value]), 2.0, nonfinite=nonfinite))
    real.record(gradclip.clip_by_value_(np.array([1.0, 2.0]), -3.0, -1.0))  # its max_norm is -1
    for monitor in (*written, real):
        state = json.loads(json.dumps(monitor.state_dict()))
        for size in (1, 5, window):
            resumed = ClipMonitor(size)
            resumed.load_state_dict(state)
            again = ClipMonitor(size)
            again.load_state_dict(resumed.state_dict())
            assert repr(again.state_dict()) == repr(resumed.state_dict())


def test_state_with_a_key_missing_or_no_dict():
    monitor = monitored(training(3))
    before = monitor.state_dict()
    for key in before:
        with pytest.raises(ValueError, match=f"state: {key} is missing"):
            monitor.load_state_dict({name: value for name, value in before.items() if name != key})
    for key in before["totals"]:
        totals = {name: value for name, value in before["totals"].items() if name != key}
        with pytest.raises(ValueError, match=f"totals: {key} is missing"):
            monitor.load_state_dict({**before, "totals": totals})
    for state in (None, [before], "state"):
        with pytest.raises(TypeError, match="state must be a dict, not"):
            monitor.load_state_dict(state)
    assert repr(monitor.state_dict()) == repr(before)


def test_suggestions_of_the_monitor_warn_of_fractions_and_of_a_single_norm():
    monitor = monitored([report(1.0), report(2.0)])
    with pytest.warns(UserWarning, match="percents is 0.5, .* did you mean 50") as caught:
        monitor.percentiles([0, 0.5, 50])
    assert [(w.filename, "percentiles" in linecache.getline(w.filename, w.lineno)) for w in caught] == [(__file__, True)]
    with pytest.warns(UserWarning, match="percentile is 0.95, .* did you mean 95") as caught:
        assert monitor.suggest_threshold(0.95) == np.percentile([1.0, 2.0], 0.95)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="from one norm says little") as caught:
        assert monitored([report(3.0), report(math.nan)]).suggest_threshold() == 3.0
    assert caught[0].filename == __file__


# ---- losses ---------------------------------------------------------------------------------------------------


def with_losses(losses, norms=None, window=1000):
    monitor = ClipMonitor(window=window, warn_rate=1)
    for i, loss in enumerate(losses):
        monitor.record(report(1.0 if norms is None else norms[i], 2.0, 0.5), loss)
    return monitor


@pytest.mark.parametrize("window", [3, 7, 50])
def test_arrays_of_the_window(window):
    reports = list(training(30))
    losses = [None if i % 4 == 1 else math.nan if i == 28 else i / 7 for i in range(30)]
    monitor = ClipMonitor(window=window, warn_rate=1)
    for each, loss in zip(reports, losses, strict=True):
        monitor.record(each, loss)
    for name, expected in {
        "norms": [r.norm for r in reports],
        "thresholds": [r.max_norm for r in reports],
        "scales": [r.scale for r in reports],
        "losses": [math.nan if loss is None else loss for loss in losses],
    }.items():
        found = getattr(monitor, name)
        assert found.dtype == np.float64
        assert np.array_equal(found, expected[-window:], equal_nan=True)
        found[:] = 7.0
        assert np.array_equal(getattr(monitor, name), expected[-window:], equal_nan=True)


def spikes_by_definition(losses, norms, deviations):
    finite = [x for x in losses if x is not None and math.isfinite(x)]
    median = np.median(finite)
    limit = median + deviations * 1.4826 * np.median(np.abs(np.array(finite) - median))
    usual = np.median([n for n in norms if math.isfinite(n)])
    return [
        (i, loss, max(n if math.isfinite(n) else math.inf for n in norms[max(0, i - 10) : i]) / usual)
        for i, loss in enumerate(losses)
        if loss is not None and (not math.isfinite(loss) or loss > limit)
    ]


@pytest.mark.parametrize("deviations", [1.0, 3, 6.0])
def test_loss_spikes_are_their_definition(deviations):
    rng = np.random.default_rng(5)
    losses, norms = rng.lognormal(sigma=0.3, size=200).tolist(), rng.lognormal(size=200).tolist()
    for i in range(10, 200, 23):
        losses[i], losses[i + 1], norms[i - 3] = 30.0 + i, None, 50.0
    losses[77], losses[78], losses[90], norms[75] = math.nan, math.inf, -math.inf, math.nan
    found = with_losses(losses, norms).loss_spikes(deviations)
    assert len(found) >= 11
    expected = spikes_by_definition(losses, norms, deviations)
    assert [spike.step for spike in found] == [step for step, _, _ in expected]
    assert np.array_equal([spike.loss for spike in found], [loss for _, loss, _ in expected], equal_nan=True)
    assert [spike.norm_ratio for spike in found] == pytest.approx([ratio for _, _, ratio in expected], rel=1e-15)


def test_loss_spikes_at_the_edges():
    assert ClipMonitor().loss_spikes() == []
    assert with_losses([None] * 5).loss_spikes() == []
    assert with_losses([1.0] * 5).loss_spikes() == []
    assert with_losses([1.0, 1.0, 1.0, 1.1]).loss_spikes() == [(3, 1.1, 1.0)]  # without spread every larger loss stands out
    (first,) = with_losses([math.nan, 1.0, 1.0]).loss_spikes()
    assert (first.step, first.norm_ratio) == (0, pytest.approx(math.nan, nan_ok=True))
    (only,) = with_losses([1.0, math.inf], [0.0, 0.0]).loss_spikes()
    assert math.isnan(only.norm_ratio)
    assert [spike.step for spike in with_losses([1.0] * 30 + [9.0], window=4).loss_spikes()] == [30]
    for deviations in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match="deviations must be"):
            ClipMonitor().loss_spikes(deviations)


@pytest.mark.parametrize("loss", ["1", True, [1.0], np.ones(2), 10**400])
def test_a_loss_that_is_no_number_is_refused(loss):
    monitor = ClipMonitor()
    with pytest.raises((TypeError, ValueError), match="loss"):
        monitor.record(report(1.0), loss)
    assert monitor.steps == 0


def test_losses_of_any_kind_are_recorded():
    kinds = [2, np.float32(2.0), np.array(2.0), math.inf]
    assert with_losses(kinds).losses.tolist() == [2.0, 2.0, 2.0, math.inf]


def test_losses_in_files_and_checkpoints(tmp_path):
    monitor = with_losses([1.5, None, math.nan, 1 / 3], window=3)
    monitor.to_csv(tmp_path / "log.csv")
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0] == "step,norm,max_norm,scale,clipped,skipped,nonfinite,loss"
    assert [line.split(",")[-1] for line in lines[1:]] == ["nan", "nan", str(1 / 3)]
    state = json.loads(json.dumps(monitor.state_dict()))
    assert [len(row) for row in state["window"]] == [6, 7, 7]
    again = ClipMonitor(window=3)
    again.load_state_dict(state)
    assert repr(again.state_dict()) == repr(monitor.state_dict())
    assert repr(again.loss_spikes()) == repr(monitor.loss_spikes()) == "[LossSpike(step=2, loss=nan, norm_ratio=1.0)]"
    state["window"][2][6] = "1"
    with pytest.raises(ValueError, match=r"window\[2\]: loss must be a real number"):
        again.load_state_dict(state)


def test_the_picture_has_a_panel_of_the_loss():
    pytest.importorskip("matplotlib")
    figure = with_losses([2.0, None, math.nan, 1.0], [1.0, 2.0, 3.0, 1.0]).plot()
    over, _, below = figure.axes
    assert below.get_ylabel() == "loss"
    assert below.get_xlim() == over.get_xlim()
    assert np.array_equal(below.lines[0].get_xydata(), [[0, 2.0], [2, math.nan], [3, 1.0]], equal_nan=True)
    assert below.lines[1].get_xdata().tolist() == [2]
    assert len(monitored(training(5)).plot().axes) == 2


def test_norms_are_drawn_into_axes_of_ones_own(tmp_path):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.subfigures(1, 2)[1].subplots()
    monitor = with_losses([1.0, 2.0], [1.0, 3.0])
    assert monitor.plot(ax=axes) is figure
    assert figure.axes == [axes]
    assert "Gradient norm, all 2 steps" in axes.get_title("left")
    assert axes.get_legend() is not None
    assert monitor.plot(tmp_path / "picture.png", ax=axes) is figure
    assert (tmp_path / "picture.png").stat().st_size > 1000
