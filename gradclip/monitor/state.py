"""The memory of a monitor: the steps of its window as one array, and totals over all steps. Both go into a checkpoint."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._core.arguments import check_keys, flag, number, real, whole

# What is kept of one step. Bools are kept as integers, so that a CSV file holds numbers only.
COLUMNS = {"norm": "f8", "max_norm": "f8", "scale": "f8", "clipped": "u1", "skipped": "u1", "nonfinite": "i8"}
LAYOUT = np.dtype([*COLUMNS.items(), ("loss", "f8"), ("has_loss", "u1")])  # the loss is NaN where none was recorded

Step = tuple[float, float, float, int, int, int, float, int]  # one step, in the order of LAYOUT
Steps = np.ndarray[Any, np.dtype[np.void]]  # steps, oldest first, as an array of the dtype LAYOUT


@dataclass
class Totals:
    """Counts and extremes over all recorded steps; minima and maxima are infinite before the first finite number."""

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
        """Return the totals of a `state_dict`; raise an error that names the first wrong one."""
        check_keys("totals", state, cls.__dataclass_fields__)
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

    def add(self, step: Step) -> None:
        """Count one more step."""
        norm, _, scale, clipped, skipped, nonfinite, _, _ = step
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


_CHECKS: dict[Any, Callable[[str, Any], Any]] = {  # of the totals by the types of their fields
    "int": lambda name, value: whole(name, value, 0),
    "float": number,
    "bool": flag,
}


def steps_of(rows: Any) -> Steps:
    """Return the window of a `state_dict` as an array; raise an error that names the first wrong number.

    Norms and factors are NaN or at least 0, and counts are whole numbers. A seventh number is the loss.
    """
    if not isinstance(rows, list | tuple):
        raise TypeError(f"window must be a list, not {type(rows).__name__}")
    for i, row in enumerate(rows):
        if not isinstance(row, list | tuple) or len(row) not in (len(COLUMNS), len(COLUMNS) + 1):
            raise ValueError(f"window[{i}] must be a list of {len(COLUMNS)} numbers, not {reprlib.repr(row)}")
        norm, max_norm, scale, clipped, skipped, nonfinite, *loss = row
        place = f"window[{i}]"
        for name, value in ("norm", norm), ("max_norm", max_norm), ("scale", scale), *(("loss", value) for value in loss):
            if type(value) is not float:
                real(f"{place}: {name}", value)
        for name, value in ("norm", norm), ("scale", scale):  # a max_norm may be negative: that of clip_by_value
            if value < 0.0:
                raise ValueError(f"{place}: {name} must be at least 0, not {value!r}")
        for name, value, most in ("clipped", clipped, 1), ("skipped", skipped, 1), ("nonfinite", nonfinite, 2**63 - 1):
            if whole(f"{place}: {name}", value, 0) > most:
                raise ValueError(f"{place}: {name} must be at most {most}, not {value!r}")
    return np.array([(*row, 1) if len(row) > len(COLUMNS) else (*row, math.nan, 0) for row in rows], LAYOUT)


def rows_of(steps: Steps) -> list[list[float]]:
    """Return the window of a `state_dict`: six numbers of each step, and as a seventh its loss if there is one."""
    return [list(step[: len(COLUMNS) + step[-1]]) for step in steps.tolist()]


def check_counts(totals: Totals, kept: Steps) -> None:
    """Raise an error if the totals cannot belong to a window with these steps.

    Each total counts all steps of the window that it asks for, and beyond them at most the steps before the window.
    """
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
