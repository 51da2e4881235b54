"""Spikes of the loss, and how large the norms before them were."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from .state import Steps

BEFORE = 10  # steps in which the cause of a spike is looked for
NORMAL = 1.4826  # the standard deviation of a normal distribution, in median deviations


class LossSpike(NamedTuple):
    """A step whose loss is not finite or stands out: what `ClipMonitor.loss_spikes` finds.

    Parameters
    ----------
    step : int
        The number of the step, from 0 on.
    loss : float
        Its loss.
    norm_ratio : float
        The largest norm of the ten steps before it, as a multiple of the median norm of the window.
    """

    step: int
    loss: float
    norm_ratio: float


def spikes(numbers: Iterable[int], steps: Steps, deviations: float) -> list[LossSpike]:
    """Return those of the kept `steps`, which have `numbers`, whose loss is so many deviations above the median."""
    loss, norms = steps["loss"], steps["norm"]
    finite = loss[np.isfinite(loss)]
    limit = math.inf
    if finite.size:
        median = np.median(finite)
        limit = median + deviations * NORMAL * np.median(np.abs(finite - median))
    known = norms[np.isfinite(norms)]
    usual = float(np.median(known)) if known.size else 0.0
    found = []
    for i, step in enumerate(numbers):
        if steps["has_loss"][i] and not (math.isfinite(loss[i]) and loss[i] <= limit):
            before = norms[max(0, i - BEFORE) : i]
            largest = np.where(np.isfinite(before), before, math.inf).max(initial=0.0)
            ratio = float(largest) / usual if before.size and usual else math.nan
            found.append(LossSpike(step, float(loss[i]), ratio))
    return found
