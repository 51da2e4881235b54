"""Thresholds that follow the training, and how to choose a constant one.

A clip function asks a `Threshold` once per step: it shows the norm that it measured, and gets the threshold of this step.
"""

from .constant import clip_rate, gaussian_exceedance, suggest_threshold
from .rules import Quantile, Schedule, Threshold, ZScore

__all__ = ["Quantile", "Schedule", "Threshold", "ZScore", "clip_rate", "gaussian_exceedance", "suggest_threshold"]
