"""What several devices measured, brought to each of them: small copies between devices, for which the host never waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from .reading import WORDS_OF_SUM

if TYPE_CHECKING:
    from .._core.arguments import Indices
    from .program import DeviceArray, DeviceStream


def carry(copies: Sequence[tuple[DeviceStream, DeviceArray, DeviceStream, DeviceArray]]) -> None:
    """Copy between devices: for each (stream, array, stream, array of as many bytes there) the first array into the second.

    Streams wait for each other by events: a copy for what fills its source; and what comes next on the source's device for the
    copy, since the memory of an array that is dropped goes to whatever that stream does next."""
    streams = {stream.device: stream for source, _, to, _ in copies for stream in (source, to)}
    pairs = sorted({(source.device, to.device) for source, _, to, _ in copies})
    filled = {device: stream.mark() for device, stream in streams.items()}
    for giver, taker in pairs:
        streams[taker].follow(filled[giver])
    for _, array, to, there in copies:
        if array.nbytes:
            to.copy(there, array)
    copied = {device: stream.mark() for device, stream in streams.items()}
    for giver, taker in pairs:
        streams[giver].follow(copied[taker])


def gathered(streams: Sequence[DeviceStream], rows: int, fold: Callable[[int, DeviceArray], object]) -> list[DeviceArray]:
    """Return on each device the Sums of all devices, in the order of devices.

    rows : how many each device has
    fold : fold(k, to) begins to write those of device k to `to`
    """
    held = [stream.empty(len(streams) * rows, WORDS_OF_SUM) for stream in streams]

    def of(k: int, j: int) -> DeviceArray:
        return held[j][k * rows : (k + 1) * rows]

    for k in range(len(streams)):
        fold(k, of(k, k))
    carry([(stream, of(k, k), to, of(k, j)) for k, stream in enumerate(streams) for j, to in enumerate(streams) if j != k])
    return held


def delivered(
    streams: Sequence[DeviceStream], arrays: list[DeviceArray], have: Sequence[Indices], want: Sequence[Indices]
) -> list[DeviceArray]:
    """Return numbers, one for each unit, on the devices where they are needed.

    arrays : the numbers, device by device
    have, want : whose numbers each device has, and whose it needs
    """
    if all(map(np.array_equal, have, want)):
        return arrays
    at = np.empty((2, sum(map(len, have))), np.intp)  # of each unit: the device, and the stream there
    for k, units in enumerate(have):
        at[0, units], at[1, units] = k, np.arange(len(units))
    received = [stream.empty(len(units)) for stream, units in zip(streams, want, strict=True)]
    copies = []
    for stream, units, to in zip(streams, want, received, strict=True):
        device, index = at[:, units]
        edges = np.flatnonzero(np.diff(device, prepend=-1) | (np.diff(index, prepend=-1) - 1)).tolist()
        for start, stop in pairwise([*edges, len(units)]):  # what lies side by side goes together
            k, first = device[start], index[start]
            copies.append((streams[k], arrays[k][first : first + stop - start], stream, to[start:stop]))
    carry(copies)
    return received
