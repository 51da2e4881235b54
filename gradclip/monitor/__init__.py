"""`ClipMonitor` records what clipping does over a training, in bounded memory, and draws it."""

from ..errors import FrequentClippingWarning, VanishingScaleWarning
from .losses import LossSpike
from .recording import ClipMonitor

__all__ = ["ClipMonitor", "FrequentClippingWarning", "LossSpike", "VanishingScaleWarning"]
