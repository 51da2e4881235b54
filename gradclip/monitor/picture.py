"""The picture of a monitor: norms over steps with their threshold, and a histogram of the norms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .._core.arguments import Floats
from .._saving import Axes, Figure, new_figure
from .state import Steps

BLUE, ORANGE, RED = "#0072B2", "#E69F00", "#C1272D"


def draw(numbers: Iterable[int], steps: Steps, total: int) -> Figure:
    """Return a matplotlib figure of the kept `steps` and their `numbers`, out of `total` recorded steps."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(9, 4.5)
    over, beside = figure.subplots(1, 2, sharey=True, width_ratios=[3.4, 1])  # norms over steps; the histogram beside them
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


def _drawable(values: Any) -> Any:
    """Return values that an axis can show: NaN instead of Inf, and the positive ones within 1e-100 and 1e100."""
    return np.where(values > 0, np.where(np.isinf(values), np.nan, np.clip(values, 1e-100, 1e100)), values)


def _choose_axis(axes: Axes, norms: Floats, thresholds: Floats) -> bool:
    """Set the scale and the range of the axis of norms, and return whether the scale is logarithmic.

    It is if the largest number is more than 30 times the smallest. Thresholds far above all norms are outside the range.
    """
    shown = np.concatenate([norms, thresholds[thresholds < 1000 * norms.max(initial=1e-100)]])
    shown = shown[shown > 0]
    log = bool(shown.size > 0 and shown.max() > 30 * shown.min())
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylim(shown.min() / 1.6, shown.max() * 2.2)
    else:
        top = shown.max() if shown.size else 1.0
        axes.set_ylim(-0.03 * top, 1.12 * top)
    return log


def _draw_steps(axes: Axes, x: Any, steps: Steps, norms: Floats, thresholds: Floats, log: bool) -> None:
    """Draw the norm of each step at its number `x`, the threshold, and marks for what has no place on the axis."""
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
    edge = axes.get_xaxis_transform()  # y from 0 at the lower end of the axis to 1 at the upper
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


def _draw_histogram(axes: Axes, steps: Steps, norms: Floats, thresholds: Floats, log: bool) -> None:
    """Draw the histogram of the norms, the last threshold, and the 50th and 95th percentile."""
    low, high = axes.get_ylim()
    edges = np.geomspace(low, high, 46) if log else np.linspace(low, high, 46)
    parts = [norms[np.isfinite(norms) & (steps["clipped"] == clipped)] for clipped in (0, 1)]
    axes.hist(parts, edges.tolist(), stacked=True, orientation="horizontal", color=[BLUE, ORANGE], alpha=0.8)
    if np.isfinite(thresholds[-1:]).any():
        axes.axhline(thresholds[-1], color="black", ls="--", lw=1.3)
    finite = steps["norm"][np.isfinite(steps["norm"])]
    for rank, side in ((50, "top"), (95, "bottom")) if finite.size else ():
        value = np.percentile(finite, rank)
        y = low if log and value == 0 else _drawable(value)
        axes.axhline(y, color="0.35", ls=":", lw=1)
        axes.text(1.02, y, f"{rank}%: {value:.3g}", transform=axes.get_yaxis_transform(), fontsize=8, va=side)
