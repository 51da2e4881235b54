"""`ClipMonitor`, which takes in one report per step, keeps the last ones, and answers questions about them."""

from __future__ import annotations

import io
import math
import operator
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core.arguments import Floats, Number, check_keys, number, percent, real
from ..errors import FrequentClippingWarning, VanishingScaleWarning
from ..report import ClipReport
from ..thresholds.constant import ONE_NORM
from ..thresholds.standard_state import in_standard_state
from .losses import LossSpike, spikes
from .state import COLUMNS, LAYOUT, Step, Steps, Totals, check_counts, rows_of, steps_of

if TYPE_CHECKING:
    from .._saving import Axes, Figure
else:
    Axes = Figure = Any  # matplotlib is imported when something is drawn

ENOUGH = 100  # steps: the clip rate of fewer says little
VANISHING = 1e-6  # a gradient a million times too long has no useful direction, and what is left of it is no useful step
PERCENTILES = 50, 90, 95, 99


class ClipMonitor:
    """A record of the reports of a training in bounded memory, which warns if clipping goes wrong.

    It keeps the last steps, and counts over all steps.

    Parameters
    ----------
    window : int, default 1000
        How many of the last steps are kept. Each takes 43 bytes; the length of the training makes no difference.
    warn_rate : float, default 0.5
        The clip rate, between 0 and 1, above which `FrequentClippingWarning` is given. 1 never warns.

    Attributes
    ----------
    steps : int
    clip_rate : float
    norms : numpy.ndarray
    thresholds : numpy.ndarray
    scales : numpy.ndarray
    losses : numpy.ndarray

    Raises
    ------
    TypeError, ValueError
        An argument cannot be used.

    Warns
    -----
    FrequentClippingWarning
        Given once, by `record`: more than `warn_rate` of the last `window` steps were clipped. It comes when the window is
        full, or after 100 steps if that is earlier.
    VanishingScaleWarning
        Given once, by `record`: clipping multiplied a gradient by less than 1e-6.

    See Also
    --------
    gradclip.suggest_threshold : A threshold from norms that were logged elsewhere.

    Notes
    -----
    Percentiles are exact over the window, with the linear interpolation of `numpy.percentile`. The norms are those of the
    reports: one norm of all leaves together, also where each leaf is clipped by its own norm.

    `VanishingScaleWarning` looks at the factor of clipping alone. ``report.scale`` is not enough for this, because it
    includes unscaling: with ``grad_scale=65536`` it is 1.5e-5 even if nothing is clipped. So the warning is given if
    ``report.scale`` is below 1e-6 and one of two numbers without unscaling is too: ``max_norm / norm``, or the smallest of
    ``report.scales`` divided by the largest. A threshold of 0 makes everything 0 on purpose and does not warn.

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
        self._ring: Steps = np.zeros(operator.index(window), LAYOUT)
        self._kept = 0  # how many entries of the ring are used
        self._clipped = 0  # how many of these are clipped steps
        self._next = 0  # the entry that the next step overwrites
        self._totals = Totals()

    def __repr__(self) -> str:
        """Return the parameters, the number of steps and the clip rate as text."""
        given = f"window={len(self._ring)}, warn_rate={self._warn_rate:g}"
        return f"<ClipMonitor({given}): {self.steps} steps, clip_rate={self.clip_rate:.3g}>"

    @property
    def steps(self) -> int:
        """How many steps were recorded; the first one has the number 0."""
        return self._totals.steps

    @property
    def clip_rate(self) -> float:
        """The fraction of the last `window` steps that were clipped; 0.0 before the first step."""
        return self._clipped / self._kept if self._kept else 0.0

    @property
    def norms(self) -> Floats:
        """The norms of the window before clipping, oldest first, float64; a copy."""
        return self._column("norm")

    @property
    def thresholds(self) -> Floats:
        """The thresholds of the window, oldest first, float64; NaN where each leaf had its own. A copy."""
        return self._column("max_norm")

    @property
    def scales(self) -> Floats:
        """The factors of the window, oldest first, float64; the smallest where there were several. A copy."""
        return self._column("scale")

    @property
    def losses(self) -> Floats:
        """The losses of the window, oldest first, float64; NaN where none was recorded. A copy."""
        return self._column("loss")

    def record(self, report: ClipReport, loss: Number | None = None) -> None:
        """Record the report of one step, which takes a few microseconds.

        Parameters
        ----------
        report : ClipReport
            What a clip function returned. Each attribute is read once. A ``max_norm`` that is not one number, because each
            leaf has its own threshold, is kept as NaN.
        loss : float, optional
            The loss of this step, for `loss_spikes` and the picture. It may be NaN or Inf.

        Raises
        ------
        TypeError, ValueError
            `report` is not a report, or `loss` not a number; nothing was recorded.
        FrequentClippingWarning, VanishingScaleWarning
            A filter turns warnings into errors. The step was recorded, and the warning will not come again.
        """
        step = _step_of(report, loss)
        norm, max_norm, scale, clipped, _, nonfinite, _, _ = step
        self._clipped -= int(self._ring["clipped"][self._next])  # 0 if the entry is unused
        self._clipped += clipped
        self._ring[self._next] = step
        self._next = (self._next + 1) % len(self._ring)
        self._kept = min(self._kept + 1, len(self._ring))
        totals = self._totals
        totals.add(step)
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

    def _advice(self, max_norm: float) -> str:
        """Return the message of `FrequentClippingWarning`: the clip rate, the threshold and a better one."""
        message = f"{self.clip_rate:.1%} of the last {self._kept} steps were clipped"
        message += ": lower the learning rate or raise the threshold"
        known = [f"it is {max_norm:.6g}"] if max_norm == max_norm else []
        if self._finite_norms().size:
            known.append(f"95% of these norms are at most {self.percentiles([95])[95]:.6g}")
        return f"{message} ({', '.join(known)})" if known else message

    @in_standard_state
    def percentiles(self, percents: Iterable[float] = PERCENTILES) -> dict[float, float]:
        """Return percentiles of the finite norms in the window.

        Parameters
        ----------
        percents : iterable of float, default (50, 90, 95, 99)
            Which percentiles, each between 0 and 100.

        Returns
        -------
        dict
            The percentile by percent, with the keys as given. If no norm is finite, all percentiles are NaN.

        Raises
        ------
        TypeError, ValueError
            `percents` is not an iterable of numbers between 0 and 100.

        Warns
        -----
        UserWarning
            A percent lies between 0 and 1, and so looks like a fraction.
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
        """Return the norm that `percentile` percent of the finite norms in the window do not exceed.

        Parameters
        ----------
        percentile : float, default 95
            In percent, between 0 and 100. About 100 - `percentile` percent of such steps will be clipped.

        Returns
        -------
        float
            The threshold, >= 0 and finite.

        Raises
        ------
        TypeError, ValueError
            The percentile cannot be used, or no norm in the window is finite.

        Warns
        -----
        UserWarning
            The percentile lies between 0 and 1 and so looks like a fraction; or only one norm is finite.
        """
        percentile, norms = percent("percentile", percentile, 4), self._finite_norms()
        if not norms.size:
            raise ValueError(f"no finite norm in the last {self._kept} steps to suggest a threshold from")
        if norms.size == 1:
            warnings.warn(ONE_NORM, UserWarning, stacklevel=3)
        return float(np.percentile(norms, percentile))

    def summary(self) -> dict[str, float | None]:
        """Return everything in one flat dict of Python numbers, for a log or JSON.

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

            None stands for a value that does not exist yet, for thresholds by leaf, and for an infinite threshold.
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
        """Write the steps of the window to a CSV file, oldest first.

        The columns are step, norm, max_norm, scale, clipped and skipped (both 0 or 1), and nonfinite (a number of elements).
        A column loss follows if a loss was recorded in the window. All fields are numbers, which may be ``nan`` or ``inf``, and
        are read back exactly.

        Parameters
        ----------
        path : path
            The file. One of that name is replaced at once by the complete new file, or not at all.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        import csv

        from .._saving import replacing

        window = self._window()
        columns = [*COLUMNS, "loss"] if window["has_loss"].any() else list(COLUMNS)
        with replacing(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            writer = csv.writer(text)
            writer.writerow(["step", *columns])
            writer.writerows([step, *row] for step, row in zip(self._numbers(), window[columns].tolist(), strict=True))
            text.detach()  # flushes the text; the file stays open

    def loss_spikes(self, deviations: float = 6.0) -> list[LossSpike]:
        """Return the steps of the window whose loss is not finite or stands out, and how large the norms before them were.

        A loss stands out if it is above the median of the finite losses of the window by more than `deviations` times their
        median deviation, scaled to the standard deviation of a normal distribution (1.4826).

        Parameters
        ----------
        deviations : float, default 6
            How many deviations; positive.

        Returns
        -------
        list of LossSpike
            Named tuples, oldest first: ``step``, ``loss`` and ``norm_ratio``, the largest norm of the ten steps before it as a
            multiple of the median norm of the window. ``norm_ratio`` is NaN where there is no step before it in the window or
            the median is 0, and ``inf`` after a norm that is not finite.

        Raises
        ------
        TypeError, ValueError
            `deviations` is not a positive number.

        Examples
        --------
        >>> import numpy as np, gradclip
        >>> monitor = gradclip.ClipMonitor()
        >>> for step in range(100):
        ...     grad = np.array([50.0 if step == 70 else 1.0])
        ...     loss = 9.0 if step == 72 else 2.0 + step % 5 / 10
        ...     monitor.record(gradclip.clip_by_global_norm_(grad, 10.0), loss)
        >>> monitor.loss_spikes()
        [LossSpike(step=72, loss=9.0, norm_ratio=50.0)]
        """
        limit = number("deviations", deviations, 0.0)
        if limit == 0.0:
            raise ValueError("deviations must be above 0")
        return spikes(self._numbers(), self._window(), limit)

    def plot(self, path: str | os.PathLike[str] | None = None, ax: Axes | None = None) -> Figure:
        """Draw the window: norms over steps with the threshold, a histogram of the norms, and the loss where there is one.

        Parameters
        ----------
        path : path, optional
            A file to save the picture in. Its suffix chooses the format, PNG if there is none. A file of that name is replaced
            at once by the complete new file, or not at all.
        ax : matplotlib.axes.Axes, optional
            Axes of a figure of your own. Norms and thresholds are drawn into them, and nothing else.

        Returns
        -------
        matplotlib.figure.Figure
            The figure; that of `ax` if it is given.

        Raises
        ------
        ImportError
            Matplotlib is missing; the extra ``gradclip[plot]`` brings it.
        OSError, ValueError
            The picture cannot be saved there, or not in that format.
        """
        from .._saving import need_matplotlib, save_picture

        need_matplotlib("plot")
        from .picture import draw

        figure = draw(self._numbers(), self._window(), self.steps, ax)
        if path is not None:
            save_picture(figure, path, dpi=120)
        return figure

    def state_dict(self) -> dict[str, Any]:
        """Return all that was recorded, for a checkpoint.

        Returns
        -------
        dict
            Dicts, lists and numbers, as `json` can write them and `load_state_dict` takes them.
        """
        return {"totals": asdict(self._totals), "window": rows_of(self._window())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace all that was recorded by the steps of a `state_dict`.

        If the window of this monitor is smaller than the one of the state, only the last steps are kept.

        Parameters
        ----------
        state : dict
            What `state_dict` returned.

        Raises
        ------
        TypeError, ValueError
            `state` is not a dict, or is not what `state_dict` returns; the message names the key. Nothing was changed.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a dict, not {type(state).__name__}")
        try:
            check_keys("state", state, ["totals", "window"])
            totals, kept = Totals.of(state["totals"]), steps_of(state["window"])
            check_counts(totals, kept)
        except (TypeError, ValueError) as error:
            raise ValueError(f"state is not what state_dict() returns: {error}") from None
        kept = kept[-len(self._ring) :]
        self._totals = totals
        self._ring[:] = 0
        self._ring[: len(kept)] = kept
        self._kept, self._next = len(kept), len(kept) % len(self._ring)
        self._clipped = int(kept["clipped"].sum())

    def _window(self) -> Steps:
        """Return the kept steps, oldest first."""
        if self._kept < len(self._ring):
            return self._ring[: self._kept]
        return np.roll(self._ring, -self._next)

    def _column(self, name: str) -> Floats:
        """Return one number of each kept step, oldest first; a copy."""
        found: Floats = self._window()[name].copy()
        return found

    def _numbers(self) -> range:
        """Return the numbers of the kept steps, oldest first."""
        return range(self.steps - self._kept, self.steps)

    def _finite_norms(self) -> Floats:
        """Return the finite norms of the kept steps, in no particular order."""
        norms: Floats = self._ring["norm"][: self._kept]
        return norms[np.isfinite(norms)]


def _step_of(report: Any, loss: Number | None) -> Step:
    """Return what is kept of a report and a loss; raise an error if it is no report. Each attribute is read once."""
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
            max_norm = math.nan  # each leaf has its own threshold
    try:
        found = float(norm), max_norm, float(scale), int(bool(clipped)), int(bool(skipped)), int(nonfinite)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"report must be a ClipReport, and what this {type(report).__name__} holds is not: {error}") from None
    if found[0] < 0.0 or found[2] < 0.0 or not 0 <= found[5] < 2**63:
        raise ValueError(f"no report has norm={norm!r}, scale={scale!r} and nonfinite={nonfinite!r}")
    return (*found, math.nan, 0) if loss is None else (*found, real("loss", loss), 1)


def _vanishing(report: Any, norm: float, max_norm: float, scale: float, nonfinite: int) -> float | None:
    """Return the factor of clipping alone, without unscaling, if it is below 1e-6; else None.

    If each leaf or sample is clipped by its own norm, max_norm / norm is below their smallest factor, because `norm` is that
    of all together. `scale` is not below it, unless `grad_scale` is below 1. So the larger of the two is the best estimate.
    It is exact for the global norm, and for every technique without `grad_scale`.
    """
    if not scale < VANISHING:
        return None
    if 0.0 < max_norm < VANISHING * norm and not (nonfinite and math.isinf(norm)):  # not if an element is Inf
        return max(scale, max_norm / norm)
    largest = float(np.max(getattr(report, "scales", ()), initial=0.0))
    return scale / largest if 0.0 < scale < VANISHING * largest else None
