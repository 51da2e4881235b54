"""Thresholds that follow the training, and how to choose a constant one.

A clip function asks a `Threshold` once per step: it shows the norm that it measured, and gets the threshold of this step.
"""

from .average import EMA
from .base import Threshold
from .constant import clip_rate, gaussian_exceedance, suggest_threshold
from .per_leaf import PerLeaf
from .private import PrivateQuantile
from .quantile import Quantile
from .schedule import Schedule
from .z_score import ZScore

__all__ = [
    "EMA",
    "PerLeaf",
    "PrivateQuantile",
    "Quantile",
    "Schedule",
    "Threshold",
    "ZScore",
    "clip_rate",
    "gaussian_exceedance",
    "suggest_threshold",
]
