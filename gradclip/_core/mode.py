"""What a Request makes of the leaves."""

from __future__ import annotations

from enum import Enum


class Mode(Enum):
    """What a Request makes of the leaves."""

    CLIP = "scale what exceeds its threshold"
    NORMALIZE = "scale everything to its threshold"
    STEP = "subtract what is clipped, times a learning rate, from other leaves"


CLIP, NORMALIZE, STEP = Mode
