"""What ranks exchange: sums as integers in limbs, counts, whether one failed, and where the first NaN or Inf stands.

An exchange is two reductions of int64 words, which no rank can leave out: MAX over a few, SUM over some 1.1 KB. Integers may be
added in any order, so every library and any number of ranks give the same bits. A rank that fails before an exchange takes part
in it with nothing but its failure. Only then, or where there is a NaN or Inf, a text follows: one rank fills it, and the others
add 0."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from .._core.arguments import Words
from .._core.uninterrupted import Uninterrupted
from .comms import MAX, SUM, Peers, peers_of

LIMBS = 142  # of 32 bits, as in _cpu/kernels/exact.h: up to 2**62 squares of the largest float64
LOWEST = -2372  # the exponent of the lowest bit there
WINDOW = 32 * (LIMBS - 3)  # bits below the largest sum that travel where powers may have any exponent
TEXT = 1024  # bytes
NONE = -(2**62)  # what has no part in a maximum
OF_ARGUMENTS = (
    "the arguments differ between ranks (threshold, ord, eps, nonfinite, grad_scale, strict, skip_above), or the functions do"
)

FAILED, FIRST, ALIKE, UNLIKE, LARGEST, ERROR, NORM, TOP, COARSEST = range(9)  # words of MAX,
WORDS, EXTRA = 9, 9  # and how many, and how many more for norms of units
HEAD = 6
FAILURES, NANS, INFS, ROUNDED, SIZE, CASTS = range(HEAD)  # words of SUM, before the limbs


class Part(NamedTuple):
    """What one rank found in its leaves, or what all found."""

    total: int = 0  # the sum behind the norm is total * 2**exponent; of order inf the largest magnitude
    exponent: int = 0
    error: float = 0.0  # a bound on its relative error
    rounded: bool = False  # whether the sum cannot be formed exactly
    nans: int = 0
    infs: int = 0
    max_abs: float = 0.0
    first: tuple[str, int] | None = None  # where the first NaN or Inf stands
    size: int = 0  # elements
    half: float = 0.0  # half an ulp of 1 in the coarsest dtype, for `strict`
    casts: bool = False  # whether some leaf is written to one of another dtype

    def value(self) -> Fraction:
        """Return the sum as a Fraction."""
        return Fraction(self.total) * Fraction(2) ** self.exponent


class Session:
    """The exchanges of one call. Open: another is still to come on every rank, so that one that fails has to take part.

    From the first exchange to the end of a ``with`` block Ctrl-C waits: a rank that left the others in between would leave them
    waiting, or writing alone."""

    def __init__(self, comm: Any) -> None:
        self._peers: Peers = peers_of(comm)
        self.alone = comm is None
        self.open = self._peers.size > 1
        self._within = False
        self._held: Uninterrupted | None = None
        self.extra: list[int] = []

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            held.__exit__()

    def begin(self) -> None:
        """Begin what all ranks do alike: one that fails before `end` has nothing to say that the others would understand."""
        if self._held is None and not self.alone:
            held = Uninterrupted()
            held.__enter__()
            self._held = held
        self._within = True

    def end(self) -> None:
        """End what `begin` began: what the others do next is to merge."""
        self._within = False

    def reduce(self, words: Words, op: str) -> Words:
        """Return words of all ranks, reduced: MAX or SUM. Between `begin` and `end`."""
        return self._peers.start(words, op)()

    def merge(self, part: Part, ord: float, alike: int, extra: Sequence[int] = (), unlike: str = OF_ARGUMENTS) -> Part:
        """Return what all ranks found together, the same on every rank; raise an error if one failed or has other arguments.

        alike : a number that stands for the arguments, which have to be the same; unlike : what is said if they are not
        extra : up to EXTRA words, of which `self.extra` holds the maxima then"""
        if self.alone:
            self.extra = list(extra)
            return part
        self.begin()
        most = np.full(WORDS + EXTRA, NONE, np.int64)
        most[WORDS : WORDS + len(extra)] = extra
        most[[ALIKE, UNLIKE]] = alike, -alike
        most[[LARGEST, ERROR, COARSEST]] = [bits_of(x) for x in (part.max_abs, part.error, part.half)]
        if part.first is not None:
            most[FIRST] = -self._peers.rank
        if part.total:
            most[TOP] = part.total.bit_length() + part.exponent
        if ord == np.inf:
            most[NORM] = magnitude_bits(part.value())
        fixed = ord in (1.0, 2.0)
        waiting = self._peers.start(most, MAX)
        base = LOWEST
        if not fixed:
            most, waiting = waiting(), None  # type: ignore[assignment]
            base = int(most[TOP]) - WINDOW
        words = np.zeros(HEAD + LIMBS, np.int64)
        words[[NANS, INFS, ROUNDED, SIZE, CASTS]] = part.nans, part.infs, part.rounded, part.size, part.casts
        if ord != np.inf:
            words[HEAD:] = limbs_of(part, base)
        adding = self._peers.start(words, SUM)
        if waiting is not None:
            most = waiting()
        words = adding()
        self._refuse(most, words, unlike)
        self.extra = most[WORDS:].tolist()
        merged = self._merged(most, words, base, ord, part)
        self.end()
        return merged

    def _refuse(self, most: Words, words: Words, unlike: str) -> None:
        """Raise an error if a rank failed, or if the arguments differ."""
        if words[FAILURES]:
            rank = -int(most[FAILED])
            self.open = False
            raise RuntimeError(f"rank {rank} failed: {self._told(rank, '')}; no rank wrote anything")
        if most[ALIKE] != -most[UNLIKE]:
            self.open = False
            raise ValueError(unlike)

    def _merged(self, most: Words, words: Words, base: int, ord: float, part: Part) -> Part:
        nans, infs = int(words[NANS]), int(words[INFS])
        first = None
        if nans + infs and most[FIRST] != NONE:
            rank = -int(most[FIRST])
            own = "" if part.first is None or rank != self._peers.rank else f"{part.first[1]} {part.first[0]}"
            index, _, path = self._told(rank, own).partition(" ")
            first = f"rank {rank}: {path}", int(index)
        total, exponent = (integers_of(words[None, HEAD:])[0], base) if ord != np.inf else magnitude_of(int(most[NORM]))
        return Part(
            total,
            exponent,
            number_of(int(most[ERROR])),
            bool(words[ROUNDED]),
            nans,
            infs,
            number_of(int(most[LARGEST])),
            first,
            int(words[SIZE]),
            number_of(int(most[COARSEST])),
            bool(words[CASTS]),
        )

    def fail(self, error: BaseException) -> None:
        """Take part in the next exchange of the others with nothing but an error, which each of them raises as its own."""
        if not self.open or self._within:
            return
        self.open = False
        with Uninterrupted():
            self._fail(text_of(error))

    def _fail(self, text: str) -> None:
        """Do what `fail` does, with the text of the error."""
        most = np.full(WORDS + EXTRA, NONE, np.int64)
        most[FAILED] = -self._peers.rank
        words = np.zeros(HEAD + LIMBS, np.int64)
        words[FAILURES] = 1
        waiting = self._peers.start(most, MAX)
        adding = self._peers.start(words, SUM)
        rank = -int(waiting()[FAILED])
        adding()
        self._told(rank, text if rank == self._peers.rank else "")

    def _told(self, rank: int, text: str) -> str:
        """Return the text of one rank, which the others learn; a long one is cut."""
        data = text.encode(errors="backslashreplace")[:TEXT] if rank == self._peers.rank else b""
        words = np.frombuffer(data.ljust(TEXT, b"\0"), np.int64)
        return self._peers.start(words, SUM)().tobytes().rstrip(b"\0").decode(errors="replace")


def text_of(error: BaseException) -> str:
    """Return what other ranks are told of an error, also of one that cannot be shown."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def tell(norm: Mapping[str, Any], error: BaseException) -> None:
    """Let the other ranks of a call know that it failed here, unless they learned it or failed alike.

    norm : the keywords of the call, with the Session as ``comm`` if it came that far"""
    comm = norm.get("comm")
    if comm is None:
        return
    if not isinstance(comm, Session):
        try:
            comm = Session(comm)
        except (TypeError, ValueError):  # nobody to speak with
            return
    comm.fail(error)


def limbs_of(part: Part, base: int, limbs: int = LIMBS) -> Words:
    """Return a sum in units of 2**base, in limbs of 32 bits; what lies below is left out."""
    shift = part.exponent - base
    units = part.total << shift if shift >= 0 else part.total >> min(-shift, part.total.bit_length())
    return np.frombuffer(units.to_bytes(4 * limbs, "little"), "<u4").astype(np.int64)


def integers_of(rows: Words) -> list[int]:
    """Return the integers that rows of limbs hold, which have been added and so may exceed 32 bits."""
    size = 4 * rows.shape[1]
    low, high = (part.astype("<u4").tobytes() for part in (rows & 0xFFFFFFFF, rows >> 32))
    starts = range(0, len(low), size) if size else ()
    return [int.from_bytes(low[i : i + size], "little") + (int.from_bytes(high[i : i + size], "little") << 32) for i in starts]


def bits_of(x: float) -> int:
    """Return the bits of a float >= 0 as an integer, which are in the same order."""
    bits: int = struct.unpack("<q", struct.pack("<d", x))[0]
    return bits


def number_of(bits: int) -> float:
    """Return the float of `_bits`; 0 if there was none."""
    return 0.0 if bits < 0 else float(struct.unpack("<d", struct.pack("<q", bits))[0])


def magnitude_bits(value: Fraction) -> int:
    """Return the bits of a magnitude, which may be the modulus of a complex number and so lie beyond float64 by one binade."""
    return bits_of(float(value)) if value < 2**1024 else bits_of(float(value / 2)) + (1 << 52)


def magnitude_of(bits: int) -> tuple[int, int]:
    """Return the magnitude of `_magnitude_bits` as an integer and the exponent of the power of two that it is multiplied by."""
    beyond = bits >= 2047 << 52
    numerator, denominator = number_of(bits - (1 << 52) if beyond else bits).as_integer_ratio()
    return numerator, 1 - denominator.bit_length() + beyond
