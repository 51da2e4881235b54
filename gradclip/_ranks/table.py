"""The names by which ranks share norms: a table of them that all ranks agree on, and sums that are exchanged by name.

Ranks may hold different names. Where all have the same names in the same order, which one word tells, the table is already
there. Else each rank puts 62-bit hashes of its names into slots, the larger one wins a slot, and the losers try again in more
slots. What is exchanged grows with the number of names, and not with the number of ranks.

Then the sums of all names travel in one reduction. A sum takes 10 limbs below its largest, which a maximum told before, or all
limbs where it has to be exact."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .comms import MAX, SUM
from .exchange import LIMBS, LOWEST, NONE, Part, integers_of, limbs_of, magnitude_bits, magnitude_of

BELOW = 8  # limbs below the largest sum of a name, which errors of 2**-250 of it hide behind
LEADS = 3  # words of a sum before its limbs: NaN, Inf, elements
OR_ROWS = "or they hold parts of it that are not rows (divided along axis 0)"


class Block(NamedTuple):
    """Norms that are shared with other ranks by name."""

    name: str
    first: int  # the number of the first of them here
    size: int
    alike: Any = None  # what has to be the same on all ranks: its threshold, and how it is cut into units


class Table:
    """The names that ranks share norms by: where the norms of each stand in what is exchanged."""

    def __init__(self, first: Mapping[int, int], count: int) -> None:
        self._first, self.count = first, count

    @classmethod
    def of(cls, session: Any, blocks: Sequence[Block], alike: bool, most: int) -> Table:
        """Return the table of all ranks.

        alike : whether they have the same blocks; most : how many a rank has at most"""
        if alike:
            counts = {hashed(b.name): b.size for b in blocks if b.size}
        else:
            own = [hashed(b.name) for b in blocks]
            names = union(session, own, most)
            row = {h: i for i, h in enumerate(names)}
            words = np.full((len(names), 3), NONE, np.int64)
            for h, b in zip(own, blocks, strict=True):
                check = hashed(tuple(b._replace(first=0)))
                words[row[h]] = b.size, check, -check
            words = session.reduce(words.ravel(), MAX).reshape(-1, 3)
            wrong = np.flatnonzero(words[:, 1] != -words[:, 2]).tolist()
            if wrong:
                known = {row[h]: b.name for h, b in zip(own, blocks, strict=True)}
                name = next((known[i] for i in wrong if i in known), "a leaf that this rank does not hold")
                session.open = False
                raise ValueError(f"{name}: threshold or number of units differ between ranks, {OR_ROWS}")
            counts = dict(zip(names, words[:, 0].tolist(), strict=True))
        starts = np.concatenate([[0], np.cumsum(list(counts.values()), dtype=np.int64)]).tolist()
        return cls(dict(zip(counts, starts, strict=False)), starts[-1])

    def places(self, blocks: Sequence[Block]) -> list[int]:
        """Return where each norm of some blocks stands."""
        starts = [(self._first[hashed(b.name)], b.size) for b in blocks if b.size]
        return [k for start, size in starts for k in range(start, start + size)]


def hashed(value: Any) -> int:
    """Return 62 bits that stand for a value in every process."""
    return int.from_bytes(hashlib.blake2b(repr(value).encode(errors="surrogatepass"), digest_size=8).digest(), "little") >> 2


def union(session: Any, own: Sequence[int], most: int) -> list[int]:
    """Return the numbers of all ranks, in an order that is the same on all.

    most : how many a rank has at most"""
    found: list[int] = []
    left, room = {*own}, 4
    while most:
        size = room * most
        words = np.full(size + 1, NONE, np.int64)
        np.maximum.at(words, [h % size for h in left], list(left)) if left else None
        words[size] = len(left)
        words = session.reduce(words, MAX)
        most, room = int(words[size]), 2 * room
        new = sorted({*words[:size].tolist()} - {NONE, *found})
        found += new
        left -= {*new}
    return found


def exchanged(session: Any, parts: Sequence[Part], place: Sequence[int], count: int, ord: float, exact: bool) -> list[Part]:
    """Return the sums of all ranks, `count` of them.

    parts, place : those of this rank, and where each of them stands
    exact : whether every bit travels; else the limbs below the largest sum do"""
    tops = np.full(count, NONE, np.int64)
    if not exact:
        for k, p in zip(place, parts, strict=True):
            if p.total:
                tops[k] = magnitude_bits(p.value()) if ord == np.inf else p.total.bit_length() + p.exponent
        tops = session.reduce(tops, MAX)
    bases = [LOWEST if exact else t - 32 * BELOW for t in tops.tolist()]
    limbs = LIMBS if exact else 0 if ord == np.inf else BELOW + 2
    words = np.zeros((count, LEADS + limbs), np.int64)
    for k, p in zip(place, parts, strict=True):
        words[k, :LEADS] = p.nans, p.infs, p.size
        if limbs and p.total:
            words[k, LEADS:] = limbs_of(p, bases[k], limbs)
    words = session.reduce(words.ravel(), SUM).reshape(count, LEADS + limbs)
    counts, sums = words[:, :LEADS].tolist(), integers_of(words[:, LEADS:]) if limbs else [0] * count
    found = []
    for (nans, infs, size), total, base, top in zip(counts, sums, bases, tops.tolist(), strict=True):
        value = (total, base) if exact or (limbs and top != NONE) else (0, 0) if top == NONE else magnitude_of(top)
        found.append(Part(*value, nans=nans, infs=infs, size=size))
    return found


def numbers_of(blocks: Sequence[Block]) -> list[int]:
    """Return the numbers of the norms of some blocks, which are in rising order."""
    return [k for b in blocks for k in range(b.first, b.first + b.size)]
