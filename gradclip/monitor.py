"""ClipMonitor: what clipping does over a training, in bounded memory; and its picture."""

from __future__ import annotations

import csv
import io
import math
import operator
import os
import reprlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ._arguments import flag, number, percent, real, whole
from ._saving import need_matplotlib, new_figure, replacing, save_picture
from .errors import FrequentClippingWarning, VanishingScaleWarning
from .report import ClipReport
from .thresholds import ONE_NORM, in_standard_state

__all__ = ["ClipMonitor", "FrequentClippingWarning", "VanishingScaleWarning"]

# What is kept of one step; bools as integers, so that all of a CSV file is numbers.
COLUMNS = {"norm": "f8", "max_norm": "f8", "scale": "f8", "clipped": "u1", "skipped": "u1", "nonfinite": "i8"}
STEP = np.dtype(list(COLUMNS.items()))

ENOUGH = 100  # steps: with fewer, a clip rate says little
VANISHING = 1e-6  # a gradient a million times too long points anywhere: what is left of it is not worth a step
PERCENTILES = 50, 90, 95, 99
BLUE, ORANGE, RED = "#0072B2", "#E69F00", "#C1272D"


class ClipMonitor:
    """Keeps what clipping did to the last steps, counts over all of them, and warns when something is off.

    Parameters
    ----------
    window : int, default 1000
        How many of the last steps are kept, in 34 bytes each, whatever the length of the training.
    warn_rate : float, default 0.5
        Between 0 and 1: the clip rate above which `FrequentClippingWarning` is given. 1 never warns.

    Attributes
    ----------
    steps : int
        How many steps were recorded. Steps are counted from 0, as by `enumerate`.
    clip_rate : float
        The fraction of the last `window` steps that were clipped; 0.0 before the first.

    Warns
    -----
    FrequentClippingWarning
        Once: more than `warn_rate` of the last `window` steps were clipped. Comes with a full window
        or 100 steps at the earliest, whichever is less.
    VanishingScaleWarning
        Once: clipping multiplied a gradient by less than 1e-6.

    Notes
    -----
    Percentiles are exact over the window (linear interpolation, as `numpy.percentile`): nothing is sketched.
    The norms are those of the reports, of all leaves together also where leaves are clipped one by one.

    The factor of `VanishingScaleWarning` is that of clipping alone. ``report.scale`` holds unscaling as well:
    with ``grad_scale=65536`` it is 1.5e-5 where nothing is clipped. So ``report.scale`` must be below 1e-6, and
    besides ``max_norm / norm``, or the smallest of ``report.scales`` divided by the largest: neither holds
    unscaling. A threshold of 0 makes everything 0 on purpose and does not warn.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> monitor = gradclip.ClipMonitor()
    >>> for size in range(1, 101):
    ...     monitor.record(gradclip.clip_by_global_norm_(np.ones(size**2), 90.0))
    >>> monitor.steps, monitor.clip_rate
    (100, 0.1)
    >>> monitor.percentiles([50, 75])
    {50: 50.5, 75: 75.25}
    >>> monitor.suggest_threshold(percentile=75)
    75.25
    """

    def __init__(self, window: int = 1000, warn_rate: float = 0.5):
        if isinstance(window, bool | np.bool_) or not hasattr(window, "__index__"):
            raise TypeError(f"window must be an integer, not {window!r}")
        if operator.index(window) < 1:
            raise ValueError(f"window must be at least 1, not {window!r}")
        self._warn_rate = number("warn_rate", warn_rate, 0.0)
        if self._warn_rate > 1.0:
            raise ValueError(f"warn_rate must be at most 1, not {warn_rate!r}")
        self._ring = np.zeros(operator.index(window), STEP)
        self._kept = 0  # how many entries of the ring are in use
        self._clipped = 0  # and how many of those are clipped steps
        self._next = 0  # the entry that the next step overwrites
        self._totals = Totals()

    def __repr__(self) -> str:
        given = f"window={len(self._ring)}, warn_rate={self._warn_rate:g}"
        return f"<ClipMonitor({given}): {self.steps} steps, clip_rate={self.clip_rate:.3g}>"

    @property
    def steps(self) -> int:
        return self._totals.steps

    @property
    def clip_rate(self) -> float:
        return self._clipped / self._kept if self._kept else 0.0

    def record(self, report: ClipReport) -> None:
        """Take in one step, in a few microseconds.

        Parameters
        ----------
        report : ClipReport
            Each attribute is read once. A ``max_norm`` that is not one number (thresholds by leaf) is kept as NaN.

        Raises
        ------
        TypeError, ValueError
            Not a report; nothing was recorded.
        FrequentClippingWarning, VanishingScaleWarning
            Where a filter makes errors of warnings. The step was recorded, and the warning does not come again.
        """
        step = _read(report)
        norm, max_norm, scale, clipped, _, nonfinite = step
        self._clipped -= int(self._ring["clipped"][self._next])  # of an unused entry: 0
        self._clipped += clipped
        self._ring[self._next] = step
        self._next = (self._next + 1) % len(self._ring)
        self._kept = min(self._kept + 1, len(self._ring))
        totals = self._totals
        totals.add(*step)
        factor = None
        if clipped and not totals.warned_vanishing:
            factor = _vanishing(report, norm, max_norm, scale, nonfinite)
        try:
            if factor is not None:
                totals.warned_vanishing = True
                message = f"clipping multiplied the gradient of step {self.steps - 1} by {factor:.3g} (norm {norm:.6g}"
                message += f", threshold {max_norm:.6g})" if max_norm == max_norm else ")"
                warnings.warn(f"{message}: look at the data of that step", VanishingScaleWarning, stacklevel=2)
        finally:  # also where that warning was made an error
            if not totals.warned_frequent and self._kept >= min(len(self._ring), ENOUGH) and self.clip_rate > self._warn_rate:
                totals.warned_frequent = True
                warnings.warn(self._advice(max_norm), FrequentClippingWarning, stacklevel=2)

    def _advice(self, max_norm):
        message = f"{self.clip_rate:.1%} of the last {self._kept} steps were clipped"
        message += ": lower the learning rate or raise the threshold"
        known = [f"it is {max_norm:.6g}"] if max_norm == max_norm else []
        if self._finite_norms().size:
            known.append(f"95% of these norms are at most {self.percentiles([95])[95]:.6g}")
        return f"{message} ({', '.join(known)})" if known else message

    @in_standard_state
    def percentiles(self, percents: Iterable[float] = PERCENTILES) -> dict[float, float]:
        """Percentiles of the finite norms in the window, by percent, with the keys as given.

        Parameters
        ----------
        percents : iterable of float, default (50, 90, 95, 99)
            Each between 0 and 100. One in (0, 1) is a `UserWarning`, since it looks like a fraction.

        Returns
        -------
        dict
            All values are NaN where there is no finite norm.
        """
        if not isinstance(percents, Iterable) or isinstance(percents, str):
            raise TypeError(f"percents must be an iterable of numbers, not {percents!r}")
        percents = list(percents)
        checked = []
        for value in percents:  # a comprehension would be a frame of its own before Python 3.12, and none since
            checked.append(percent("percents", value, 4))
        norms = self._finite_norms()
        found = np.percentile(norms, checked).tolist() if norms.size else [math.nan] * len(percents)
        return dict(zip(percents, found, strict=True))

    @in_standard_state
    def suggest_threshold(self, percentile: float = 95) -> float:
        """The norm that `percentile` percent of the window's finite norms do not exceed.

        Raises
        ------
        ValueError
            There is no finite norm in the window.

        Warns
        -----
        UserWarning
            As `gradclip.suggest_threshold`: a percentile in (0, 1), or a single finite norm.
        """
        percentile, norms = percent("percentile", percentile, 4), self._finite_norms()
        if not norms.size:
            raise ValueError(f"no finite norm in the last {self._kept} steps to suggest a threshold from")
        if norms.size == 1:
            warnings.warn(ONE_NORM, UserWarning, stacklevel=3)
        return float(np.percentile(norms, percentile))

    def summary(self) -> dict[str, float | None]:
        """Everything in one flat dict of Python numbers, for a log or JSON.

        Returns
        -------
        dict
            ============================================ ==================================================
            ``steps``                                    steps recorded
            ``clipped``, ``skipped``                     how many of them were clipped, skipped
            ``nonfinite``                                how many of them had NaN or Inf elements
            ``clip_rate``                                clipped fraction of the window
            ``total_clip_rate``                          clipped fraction of all steps
            ``norm_min``, ``norm_max``, ``norm_mean``    of the finite norms of all steps
            ``norm_p50``, ``_p90``, ``_p95``, ``_p99``   percentiles of the finite norms of the window
            ``max_norm``                                 threshold of the last step
            ``smallest_scale``                           smallest ``report.scale`` of all steps, unscaling included
            ============================================ ==================================================

            None stands for what there is not (yet), for thresholds by leaf and for an infinite threshold.
        """
        t = self._totals
        found = {
            "steps": t.steps,
            "clipped": t.clipped,
            "skipped": t.skipped,
            "nonfinite": t.nonfinite,
            "clip_rate": self.clip_rate,
            "total_clip_rate": t.clipped / t.steps if t.steps else 0.0,
            "norm_min": t.norm_min,
            "norm_max": t.norm_max,
            "norm_mean": t.norm_mean if t.finite else math.nan,
            **{f"norm_p{percent}": value for percent, value in self.percentiles().items()},
            "max_norm": float(self._ring["max_norm"][self._next - 1]) if self._kept else math.nan,
            "smallest_scale": t.smallest_scale,
        }
        return {key: value if math.isfinite(value) else None for key, value in found.items()}

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the steps of the window as CSV, oldest first; a file of that name is replaced at once, or not at all.

        Columns: step, norm, max_norm, scale, clipped, skipped (0 or 1) and nonfinite (elements). All are numbers,
        ``nan`` and ``inf`` among them, and read back as they were.
        """
        with replacing(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            writer = csv.writer(text)
            writer.writerow(["step", *COLUMNS])
            writer.writerows([step, *values] for step, values in zip(self._numbers(), self._window().tolist(), strict=True))
            text.detach()  # flushes it; the file stays open

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Save a picture of the window: norms over steps with the threshold, and beside them their histogram.

        Parameters
        ----------
        path : path
            Its suffix chooses the format (none: PNG). A file of that name is replaced at once, or not at all.

        Raises
        ------
        ImportError
            Matplotlib is missing; the extra ``gradclip[plot]`` brings it.
        OSError, ValueError
            The picture cannot be saved there, or not in that format.
        """
        need_matplotlib("plot")
        save_picture(_draw(self._numbers(), self._window(), self.steps), path, dpi=120)

    def state_dict(self) -> dict[str, Any]:
        """All that was recorded, for `json` and `load_state_dict`."""
        return {"totals": asdict(self._totals), "window": [list(step) for step in self._window().tolist()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`, as if its steps had been recorded here.

        If the windows differ in size, what both can hold is kept.

        Raises
        ------
        TypeError, ValueError
            `state` is not a dict, or not such a one; the message names the key. Nothing was changed.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a dict, not {type(state).__name__}")
        try:
            _check_keys("state", state, ["totals", "window"])
            totals, kept = Totals.of(state["totals"]), _steps(state["window"])
            _check_counts(totals, kept)
        except (TypeError, ValueError) as error:
            raise ValueError(f"state is not what state_dict() returns: {error}") from None
        kept = kept[-len(self._ring) :]
        self._totals = totals
        self._ring[:] = 0
        self._ring[: len(kept)] = kept
        self._kept, self._next = len(kept), len(kept) % len(self._ring)
        self._clipped = int(kept["clipped"].sum())

    def _window(self):
        """The kept steps, oldest first."""
        if self._kept < len(self._ring):
            return self._ring[: self._kept]
        return np.roll(self._ring, -self._next)

    def _numbers(self):
        return range(self.steps - self._kept, self.steps)

    def _finite_norms(self):
        norms = self._ring["norm"][: self._kept]
        return norms[np.isfinite(norms)]


@dataclass
class Totals:
    """What is known of all steps. Minima and maxima are infinite where there was nothing finite."""

    steps: int = 0
    clipped: int = 0
    skipped: int = 0
    nonfinite: int = 0
    finite: int = 0
    norm_min: float = math.inf
    norm_max: float = -math.inf
    norm_mean: float = 0.0
    smallest_scale: float = math.inf
    warned_frequent: bool = False
    warned_vanishing: bool = False

    @classmethod
    def of(cls, state: Any) -> Totals:
        """The totals of a `state_dict`, checked."""
        _check_keys("totals", state, cls.__dataclass_fields__)
        totals = cls(
            **{name: _CHECKS[field.type](f"totals: {name}", state[name]) for name, field in cls.__dataclass_fields__.items()}
        )
        for name in ("clipped", "skipped", "nonfinite", "finite"):
            if getattr(totals, name) > totals.steps:
                raise ValueError(f"totals: {name} must be at most the {totals.steps} steps, not {getattr(totals, name)}")
        if totals.smallest_scale < 0.0:
            raise ValueError(f"totals: smallest_scale must be at least 0, not {totals.smallest_scale!r}")
        if not totals.finite and (totals.norm_min, totals.norm_max, totals.norm_mean) != (math.inf, -math.inf, 0.0):
            raise ValueError("totals: norm_min, norm_max and norm_mean must be inf, -inf and 0, as no norm is finite")
        if totals.finite and not 0.0 <= totals.norm_min <= totals.norm_mean <= totals.norm_max < math.inf:
            raise ValueError("totals: norm_min, norm_mean and norm_max must be finite, at least 0 and in this order")
        return totals

    def add(self, norm, max_norm, scale, clipped, skipped, nonfinite):
        self.steps += 1
        self.clipped += clipped
        self.skipped += skipped
        self.nonfinite += nonfinite > 0
        if scale < self.smallest_scale:
            self.smallest_scale = scale
        if math.isfinite(norm):
            self.finite += 1
            self.norm_min = min(norm, self.norm_min)
            self.norm_max = max(norm, self.norm_max)
            self.norm_mean += (norm - self.norm_mean) / self.finite  # a sum of norms could overflow


_CHECKS: dict[Any, Callable[[str, Any], Any]] = {  # of totals, by the type that they have
    "int": lambda name, value: whole(name, value, 0),
    "float": number,
    "bool": flag,
}


def _check_keys(name, state, known):
    if not isinstance(state, Mapping):
        raise TypeError(f"{name} must be a dict, not {type(state).__name__}")
    for key in [*known, *state]:
        if key not in state or key not in known:
            raise ValueError(f"{name}: {key} is {'missing' if key in known else 'unknown'}")


def _steps(rows):
    """The window of a `state_dict`, checked: norms and factors are NaN or at least 0, and what is counted is whole."""
    if not isinstance(rows, list | tuple):
        raise TypeError(f"window must be a list, not {type(rows).__name__}")
    for i, row in enumerate(rows):
        if not isinstance(row, list | tuple) or len(row) != len(COLUMNS):
            raise ValueError(f"window[{i}] must be a list of {len(COLUMNS)} numbers, not {reprlib.repr(row)}")
        norm, max_norm, scale, clipped, skipped, nonfinite = row
        place = f"window[{i}]"
        for name, value in ("norm", norm), ("max_norm", max_norm), ("scale", scale):
            if type(value) is not float:
                real(f"{place}: {name}", value)
        for name, value in ("norm", norm), ("scale", scale):  # a max_norm may be negative: that of clip_by_value
            if value < 0.0:
                raise ValueError(f"{place}: {name} must be at least 0, not {value!r}")
        for name, value, most in ("clipped", clipped, 1), ("skipped", skipped, 1), ("nonfinite", nonfinite, 2**63 - 1):
            if whole(f"{place}: {name}", value, 0) > most:
                raise ValueError(f"{place}: {name} must be at most {most}, not {value!r}")
    return np.array([tuple(row) for row in rows], STEP)


def _check_counts(totals, kept):
    """The totals count each step of the window, and besides at most the steps before it."""
    counts = {name: int(kept[name].sum()) for name in ("clipped", "skipped")}
    counts["nonfinite"] = int((kept["nonfinite"] > 0).sum())
    counts["finite"] = int(np.isfinite(kept["norm"]).sum())
    for name, count in {"steps": len(kept), **counts}.items():
        if count > getattr(totals, name):
            raise ValueError(f"totals: {name} must be at least the window's {count}, not {getattr(totals, name)}")
    before = totals.steps - len(kept)
    for name, count in counts.items():
        if getattr(totals, name) > count + before:
            of = f"the window's {count} and the {before} steps before it"
            raise ValueError(f"totals: {name} must be at most {of}, not {getattr(totals, name)}")


def _read(report):
    """A report as one entry of the ring: every attribute is read once, and checked."""
    try:
        found = report.norm, report.max_norm, report.scale, report.clipped, report.skipped, report.nonfinite
    except AttributeError as error:
        hint = " (the functional forms return it as the second of two values)" if isinstance(report, tuple) else ""
        raise TypeError(f"report must be a ClipReport, not {type(report).__name__}{hint}: {error}") from None
    norm, max_norm, scale, clipped, skipped, nonfinite = found
    if type(max_norm) is not float:
        try:
            max_norm = number("max_norm", max_norm)
        except (TypeError, ValueError):
            max_norm = math.nan  # thresholds by leaf
    try:
        step = float(norm), max_norm, float(scale), int(bool(clipped)), int(bool(skipped)), int(nonfinite)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"report must be a ClipReport, and what this {type(report).__name__} holds is not: {error}") from None
    if step[0] < 0.0 or step[2] < 0.0 or not 0 <= step[5] < 2**63:
        raise ValueError(f"no report has norm={norm!r}, scale={scale!r} and nonfinite={nonfinite!r}")
    return step


def _vanishing(report, norm, max_norm, scale, nonfinite):
    """The factor of clipping alone, where that is below 1e-6; else None.

    Where leaves (or samples) are clipped one by one, max_norm / norm is below their smallest factor, but `scale`
    is not, unless `grad_scale` is below 1: the larger of both is the best guess. It is exact for the global norm,
    and for all forms without `grad_scale`."""
    if not scale < VANISHING:
        return None
    if 0.0 < max_norm < VANISHING * norm and not (nonfinite and math.isinf(norm)):  # Inf itself is another matter
        return max(scale, max_norm / norm)
    largest = float(np.max(getattr(report, "scales", ()), initial=0.0))
    return scale / largest if 0.0 < scale < VANISHING * largest else None


def _draw(numbers, steps, total):
    """The kept `steps`, which have these `numbers`: a matplotlib figure, outside of pyplot's global state."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(9, 4.5)
    over, beside = figure.subplots(1, 2, sharey=True, width_ratios=[3.4, 1])
    norms, thresholds = _drawable(steps["norm"]), _drawable(steps["max_norm"])
    log = _choose_axis(over, norms[np.isfinite(norms)], thresholds[np.isfinite(thresholds)])
    _draw_steps(over, np.array(numbers), steps, norms, thresholds, log)
    _draw_histogram(beside, steps, norms, thresholds, log)

    which = f"last {len(steps):,} of {total:,}" if len(steps) < total else f"all {total:,}"
    rate = f": {steps['clipped'].mean():.1%} clipped" if total else ""
    over.set_title(f"Gradient norm, {which} steps{rate}", loc="left")
    over.set(xlabel="step", ylabel="norm before clipping")
    beside.set(xlabel="steps", title="histogram")
    for axes, ticks in (over, 8), (beside, 4):
        axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True, min_n_ticks=1))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9", lw=0.6)
        axes.set_axisbelow(True)
    figure.legend(handles=over.get_legend_handles_labels()[0], loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return figure


def _drawable(values):
    """Inf is not drawn, and what is not 0 is kept where axes, margins and ticks neither overflow nor vanish."""
    return np.where(values > 0, np.where(np.isinf(values), np.nan, np.clip(values, 1e-100, 1e100)), values)


def _choose_axis(axes, norms, thresholds):
    """Logarithmic where the numbers ask for it: whether it is. Thresholds far above all norms are left outside."""
    shown = np.concatenate([norms, thresholds[thresholds < 1000 * norms.max(initial=1e-100)]])
    shown = shown[shown > 0]
    log = shown.size > 0 and shown.max() > 30 * shown.min()
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylim(shown.min() / 1.6, shown.max() * 2.2)
    else:
        top = shown.max() if shown.size else 1.0
        axes.set_ylim(-0.03 * top, 1.12 * top)
    return log


def _draw_steps(axes, x, steps, norms, thresholds, log):
    clipped, skipped = steps["clipped"] > 0, steps["skipped"] > 0
    for where, color, size, label in (~clipped, BLUE, 3.5, "not clipped"), (clipped, ORANGE, 7, f"clipped ({clipped.sum():,})"):
        if where.any():
            axes.plot(x[where], norms[where], ".", color=color, ms=size, label=label)
    known = np.isfinite(thresholds)
    if known.any():
        label = f"threshold (last: {steps['max_norm'][known][-1]:.4g})"
        axes.step(
            np.append(x, x[-1] + 1) - 0.5, np.append(thresholds, thresholds[-1]), "k--", where="post", lw=1.3, label=label
        )
    bad = (steps["nonfinite"] > 0) | ~np.isfinite(steps["norm"])
    edge = axes.get_xaxis_transform()  # what has no place on the axis stands at its upper or lower end
    for where, y, marker, name in (
        (bad & ~skipped, 0.97, "v", "NaN or Inf"),
        (skipped, 0.97, "x", "skipped"),
        (log & (norms == 0), 0.03, "v", "norm 0"),
    ):
        if where.any():
            count = where.sum()
            axes.plot(x[where], np.full(count, y), marker, color=RED, ms=7, transform=edge, label=f"{name} ({count:,})")
    if len(x):
        axes.set_xlim(x[0] - 0.5 - 0.01 * len(x), x[-1] + 0.5 + 0.01 * len(x))
    else:
        axes.text(0.5, 0.5, "no steps recorded", transform=axes.transAxes, ha="center", color="0.4")


def _draw_histogram(axes, steps, norms, thresholds, log):
    low, high = axes.get_ylim()
    edges = (np.geomspace if log else np.linspace)(low, high, 46)
    parts = [norms[np.isfinite(norms) & (steps["clipped"] == clipped)] for clipped in (0, 1)]
    axes.hist(parts, edges, stacked=True, orientation="horizontal", color=[BLUE, ORANGE], alpha=0.8)
    if np.isfinite(thresholds[-1:]).any():
        axes.axhline(thresholds[-1], color="black", ls="--", lw=1.3)
    finite = steps["norm"][np.isfinite(steps["norm"])]
    for rank, side in ((50, "top"), (95, "bottom")) if finite.size else ():
        value = np.percentile(finite, rank)
        y = low if log and value == 0 else _drawable(value)
        axes.axhline(y, color="0.35", ls=":", lw=1)
        axes.text(1.02, y, f"{rank}%: {value:.3g}", transform=axes.get_yaxis_transform(), fontsize=8, va=side)
