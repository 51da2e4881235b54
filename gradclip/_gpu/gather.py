"""What several devices measured, brought to each of them: small copies between devices, for which the host never waits."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .reading import WORDS_OF_SUM


def carry(copies):
    """Copy between devices: for each (place, array, place, array of as many bytes there) the first array into the second.

    Streams wait for each other by events: a copy for what fills its source; and what comes next on the source's device for the
    copy, since the memory of an array that is dropped goes to whatever that stream does next."""
    places = {place.device: place for source, _, to, _ in copies for place in (source, to)}
    pairs = sorted({(source.device, to.device) for source, _, to, _ in copies})
    filled = {device: place.mark() for device, place in places.items()}
    for source, to in pairs:
        places[to].follow(filled[source])
    for _, array, to, there in copies:
        if array.nbytes:
            to.copy(there, array)
    copied = {device: place.mark() for device, place in places.items()}
    for source, to in pairs:
        places[source].follow(copied[to])


def gathered(places, rows, fold):
    """Return on each device the Sums of all devices, in the order of devices.

    rows : how many each device has
    fold : fold(k, to) begins to write those of device k to `to`
    """
    held = [place.empty(len(places) * rows, WORDS_OF_SUM) for place in places]

    def of(k, j):
        return held[j][k * rows : (k + 1) * rows]

    for k in range(len(places)):
        fold(k, of(k, k))
    carry([(place, of(k, k), to, of(k, j)) for k, place in enumerate(places) for j, to in enumerate(places) if j != k])
    return held


def delivered(places, arrays, have, want):
    """Return numbers, one for each unit, on the devices where they are needed.

    arrays : the numbers, device by device
    have, want : whose numbers each device has, and whose it needs
    """
    if all(map(np.array_equal, have, want)):
        return arrays
    at = np.empty((2, sum(map(len, have))), np.intp)  # of each unit: the device, and the place there
    for k, units in enumerate(have):
        at[0, units], at[1, units] = k, np.arange(len(units))
    received = [place.empty(len(units)) for place, units in zip(places, want, strict=True)]
    copies = []
    for place, units, to in zip(places, want, received, strict=True):
        device, index = at[:, units]
        edges = np.flatnonzero(np.diff(device, prepend=-1) | (np.diff(index, prepend=-1) - 1)).tolist()
        for start, stop in pairwise([*edges, len(units)]):  # what lies side by side goes together
            k, first = device[start], index[start]
            copies.append((places[k], arrays[k][first : first + stop - start], place, to[start:stop]))
    carry(copies)
    return received
