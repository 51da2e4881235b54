"""The picture of a monitor: norms over steps with their threshold, a histogram of the norms, and the loss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .._core.arguments import Floats
from .._saving import Axes, Figure, new_figure
from .state import Steps

BLUE, ORANGE, RED = "#0072B2", "#E69F00", "#C1272D"


def draw(numbers: Iterable[int], steps: Steps, total: int, ax: Axes | None = None) -> Figure:
    """Return a matplotlib figure of the kept `steps` and their `numbers`, out of `total` recorded steps.

    ax : axes into which the norms are drawn alone; else a new figure has the histogram too, and the loss where there is one
    """
    x = np.array(numbers)
    norms, thresholds = _drawable(steps["norm"]), _drawable(steps["max_norm"])
    if ax is not None:
        _draw_norms(ax, x, steps, norms, thresholds, total)
        ax.legend(frameon=False, fontsize=9)
        ax.set_xlabel("step")
        return _figure_of(ax)
    with_loss = bool(steps["has_loss"].any())
    figure = new_figure(9, 6.5 if with_loss else 4.5)
    rows = figure.subplots(
        1 + with_loss, 2, squeeze=False, sharey="row", width_ratios=[3.4, 1], height_ratios=[2, 1][: 1 + with_loss]
    )
    over, beside = rows[0]  # norms over steps; the histogram beside them
    log = _draw_norms(over, x, steps, norms, thresholds, total)
    _draw_histogram(beside, steps, norms, thresholds, log)
    beside.set(xlabel="steps", title="histogram")
    _tidy(beside, 4)
    if with_loss:
        rows[1][1].remove()
        _draw_losses(rows[1][0], x, steps, over)
    rows[-1][0].set_xlabel("step")
    figure.legend(handles=over.get_legend_handles_labels()[0], loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return figure


def _figure_of(axes: Axes) -> Figure:
    """Return the figure of axes, which may be in a part of it."""
    figure: Any = axes.figure
    while type(figure).__name__ == "SubFigure":
        figure = figure.figure
    whole: Figure = figure
    return whole


def _tidy(axes: Axes, ticks: int) -> None:
    """Give axes a few whole numbers below, a light grid and no frame."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", lw=0.6)
    axes.set_axisbelow(True)


def _draw_norms(axes: Axes, x: Any, steps: Steps, norms: Floats, thresholds: Floats, total: int) -> bool:
    """Draw the norms over the numbers `x` of the steps, with a title; return whether the axis of norms is logarithmic."""
    log = _choose_axis(axes, norms[np.isfinite(norms)], thresholds[np.isfinite(thresholds)])
    _draw_steps(axes, x, steps, norms, thresholds, log)
    which = f"last {len(steps):,} of {total:,}" if len(steps) < total else f"all {total:,}"
    rate = f": {steps['clipped'].mean():.1%} clipped" if total else ""
    axes.set_title(f"Gradient norm, {which} steps{rate}", loc="left")
    axes.set_ylabel("norm before clipping")
    _tidy(axes, 8)
    return log


def _draw_losses(axes: Axes, x: Any, steps: Steps, over: Axes) -> None:
    """Draw the loss over the steps, and a mark for each that is not finite, below the norms in the axes `over`."""
    known = steps["has_loss"] > 0
    loss = np.where(np.isfinite(steps["loss"]), steps["loss"], np.nan)
    axes.plot(x[known], loss[known], color=BLUE, lw=1)
    bad = known & ~np.isfinite(loss)
    if bad.any():
        axes.plot(x[bad], np.full(bad.sum(), 0.94), "v", color=RED, ms=7, transform=axes.get_xaxis_transform())
    axes.set_xlim(over.get_xlim())
    axes.set_ylabel("loss")
    _tidy(axes, 8)


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
