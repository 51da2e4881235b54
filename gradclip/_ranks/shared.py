"""`SharedOptions`: a call whose norm runs over more than its own leaves (`comm`), or over fewer (`owned`)."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .._core.arguments import flag
from .._core.by_leaf import by_leaf
from .._core.dyadic import KEPT, clearly_rounded, dyadic, root
from .._core.engine import HOST, on_devices
from .._core.mode import STEP
from .._core.options import SHARED, Options
from .._core.rounding import exact_order, safety, unit_of
from .._core.strict import MARGIN, by_unit, ratio_of, shrink_step
from .._cpu.exact import exact_sum, sums_of
from .._cpu.plan import StandardState, largest_written
from .._leaves import Leaves, is_nesting
from ..thresholds import Threshold
from .exchange import Part, Session, bits_of, number_of

if TYPE_CHECKING:
    from .._core.arguments import Array, Floats
    from .._core.call import Request
    from .._core.engine import AnySums, Engine
    from .._cpu.plan import Plan
    from .._cpu.sums import Sums
    from ..measure import Measure
    from ..report import ClipReport


OF_RULES = "the rules of different ranks, as max_norm or skip_above, give different thresholds"


class SharedOptions(Options):
    """The Options of a call with `comm` or `owned`, which measures, holds `strict` and ends in its own way."""

    __slots__ = (
        "alike",
        "also",
        "casts",
        "counted",
        "elements",
        "found",
        "half",
        "owned",
        "rounded",
        "ruled",
        "session",
        "share",
    )
    shared = True

    session: Session
    counted: list[int] | None  # which leaves the norm runs over; None: all
    rounded: bool  # whether some rank cannot form the sum exactly
    alike: int
    casts: bool  # whether some rank writes to leaves of another dtype
    found: Any  # the Sums that were measured of the leaves here
    also: Any  # what else has to be the same on all ranks
    ruled: bool  # whether rules are still to give their thresholds
    elements: int
    half: float
    share: Fraction  # of the sum behind the norm, or of the norm where that is not RATIONAL, that belongs to what is written

    def __init__(self, norm: Mapping[str, Any]) -> None:
        comm, owned = norm.get("comm"), norm.get("owned")
        self.session = comm if isinstance(comm, Session) else Session(comm)
        checked = Options.of({name: value for name, value in norm.items() if name not in SHARED})
        for name in Options.__slots__:
            setattr(self, name, getattr(checked, name))
        self.share = Fraction(1)
        self.owned, self.also, self.ruled = owned, None, False

    def measure(self, request: Request, engine: Engine, read: Leaves) -> Sums:
        """Return the Sums of all ranks, after the first exchange."""
        self.counted = counted_leaves(read, self.owned)
        found = engine.measure(read, self.ord, self.grad_scale, self.finite_only, norms=False)
        part = part_of(found, read, self.counted)
        with StandardState():
            merged = self._merge(request, part)
            if self._has_to_be_exact(merged):
                total, exponent = dyadic(exact_total(read, self.ord, self.counted), 0)
                exact = self.session.merge(Part(total, exponent), self.ord, self.alike)
                merged = merged._replace(total=exact.total, exponent=exact.exponent, error=0.0)
            sums = self._sums(merged)
        if self.strict and merged.error == 0.0 and not merged.rounded:
            sums.exact_total = merged.total, merged.exponent
        self.elements, self.found = merged.size, found
        engine.settle(found, read, 0, False)
        request.norms, read.measured = found.norms(), found
        request.found = cast("Sums", found)  # on the host, which decides
        if self.session.alone:
            sums.first_value = found.first_value
        self._close(request)
        return sums

    def apply(self, request: Request, engine: Engine, read: Leaves, whole: Measure) -> Sums:
        """Return the Sums of the Measures of all ranks, after the exchange. They cannot be read again, nor be made exact."""
        self.counted, total = counted_leaves(read, self.owned), whole.power_sum()
        error = 0.0 if isinstance(whole._error, float) or not total else min(float(whole._error / total) * 1.001, 1.0)
        with StandardState():
            found = whole._nans, whole._infs, whole.max_abs, whole.first_nonfinite, whole.size
            merged = self._merge(request, Part(whole._sum, whole._exponent, error, True, *found))
            sums = self._sums(merged)
            if self.strict and not sums.shows_nonfinite():
                self._take_share(engine, read, merged, sums)
        self._close(request)
        return sums

    def _take_share(self, engine: Engine, read: Leaves, whole: Part, sums: Sums) -> None:
        """Find out how much of a Measure, that of all ranks, belongs to the leaves of these: `strict` bounds that."""
        here = engine.measure(read, self.ord, self.grad_scale, self.finite_only, norms=False)
        own = self.session.merge(part_of(here, read, self.counted), self.ord, self.alike)
        self.elements, self.rounded, self.found = own.size, own.rounded, here
        if self.ord in (1.0, 2.0) and whole.total:
            self.share = own.value() / whole.value()
        elif self.ord != math.inf and whole.total:
            norms = self._sums(own).norm(), sums.norm()
            beyond = math.inf in norms  # true norms beyond float64
            self.share = Fraction(float(own.value() / whole.value()) ** (1 / self.ord) if beyond else norms[0] / norms[1])

    def _close(self, request: Request) -> None:
        """Close the Session unless something may still fail on one rank alone: a rule, or what `strict` reads."""
        self.ruled = isinstance(request.threshold, Threshold) or isinstance(self.skip_above, Threshold)
        if not self.strict and not self.ruled:
            self.session.open = False

    def agree_on_rules(self, request: Request) -> None:
        """Raise an error if a rule failed on some rank, or gave another threshold there; called when the rules were asked."""
        if self.ruled and self.session.open:
            given = self.alike, request.threshold, request.skips
            self.session.merge(Part(), self.ord, zlib.crc32(repr(given).encode()), unlike=OF_RULES)
            self.session.open = self.strict

    def _merge(self, request: Request, part: Part, extra: Sequence[int] = ()) -> Part:
        """Exchange what was measured, together with a number that stands for the arguments."""
        asked = (self.threshold_shown(request.threshold), self.threshold_shown(self.skip_above), request.mode.name)
        told = type(request).__name__, self.ord, self.eps, self.nonfinite, self.grad_scale, self.strict, *asked, self.also
        self.alike = zlib.crc32(repr(told).encode())
        half = coarsest(request.to.arrays)
        merged = self.session.merge(part._replace(casts=bool(request.to.casts), half=half), self.ord, self.alike, extra)
        self.rounded, self.casts, self.half = merged.rounded, merged.casts, merged.half
        return merged

    @staticmethod
    def threshold_shown(threshold: Any) -> Any:
        """What has to be the same on all ranks of a threshold: its value, or which rule it is."""
        return threshold if threshold is None or isinstance(threshold, float) else type(threshold).__name__

    def _has_to_be_exact(self, merged: Part) -> bool:
        """Whether the merged sum does not tell the norm, or `strict` asks for more than the norm; alike on all ranks."""
        if self.strict and self.ord in (1.0, 2.0) and not merged.rounded:
            return not merged.nans + merged.infs or self.finite_only
        return unsettled(merged, self)

    def _sums(self, merged: Part) -> Sums:
        """Return a Part as the Sums that decisions are made of."""
        total, found = dyadic(Fraction(merged.total), merged.exponent), (merged.nans, merged.infs, merged.first)
        return sums_of(*total, self.ord, self.grad_scale, self.finite_only, merged.max_abs, found)

    def hold(self, engine: Engine, request: Request, plan: Plan, sums: Sums) -> None:
        """Shrink the factor until what all ranks would write keeps the threshold in exact arithmetic.

        Each round exchanges the sum of what would be written, so that every rank shrinks alike. `slack` doubles from round to
        round, in the end to a factor of 0."""
        if request.mode is STEP:
            shrink_step(request, plan, sums)
            return
        if request.threshold == math.inf or sums.shows_nonfinite() or (plan.keeps(0) and not self.casts):
            return
        if self.casts:  # what is rounded to another dtype may exceed a threshold that it kept
            plan.multiply_kept()
            plan.hold_range(0, self._largest(request.to, True))
        slack = self.half / math.sqrt(max(self.elements, 1))
        while True:
            ratio = self._ratio(engine, request, plan, sums)
            if ratio is None:
                continue
            if ratio > 1.0:
                return
            plan.shrink(0, max(0.0, ratio * (1.0 - max(slack, 2.0**-53))))
            slack *= 2.0

    def _largest(self, to: Leaves, casts: bool) -> Floats:
        """Return the largest magnitude on any rank that is rounded to each dtype; casts: from another."""
        words = [bits_of(x) for x in largest_written(to, self.found, casts=casts)[0].tolist()]
        self.session.merge(Part(), self.ord, self.alike, words)
        return np.array([number_of(word) for word in self.session.extra[: len(words)]])

    def _ratio(self, engine: Engine, request: Request, plan: Plan, sums: Sums) -> float | None:
        """Return the factor that brings what would be written to its threshold, and a number above 1 if it keeps it already.

        None: something overflowed, and the factor was shrunk so that it does not."""
        to, exact = request.to, self.ord in (1.0, 2.0) and not self.rounded
        planned = by_unit(request, plan, sums)
        written = engine.measure_written(to, planned, self.ord)
        part = part_of(written, to, self.counted)._replace(first=None)  # where an element overflows, nobody asks
        if exact:
            total, exponent = dyadic(exact_total(to, self.ord, self.counted, planned), 0)
            part = part._replace(total=total, exponent=exponent)
        merged = self.session.merge(part, self.ord, self.alike)
        if merged.nans + merged.infs:  # overflow is above any threshold
            return None if plan.hold_range(0, self._largest(to, False)) else 0.5
        margin = MARGIN if exact and request.partial else 1
        return ratio_held(merged, request.threshold, self.ord, self.share, exact, margin)

    def conclude(self, request: Request, report: ClipReport) -> ClipReport:
        """Agree with the other ranks that nothing failed, if something could after the exchange; then all write.

        Returns the report."""
        if self.session.open:
            self.session.merge(Part(), self.ord, self.alike)
            self.session.open = False
        return report


def counted_leaves(leaves: Leaves, owned: Any) -> list[int] | None:
    """Return the indices of the leaves that the norm runs over; None if these are all."""
    if owned is None:
        return None
    if not isinstance(owned, Mapping) and not is_nesting(owned):
        return None if flag("owned", owned) else []
    values = by_leaf(leaves, "owned", owned, flag)
    leaves.check_count(len(values))
    return [i for i, value in enumerate(values) if value is not False]  # None: no pattern matches


def part_of(sums: AnySums, leaves: Leaves, counted: list[int] | None) -> Part:
    """Return what a rank found as a Part: the sum of the leaves it counts, and of all leaves what is not a sum."""
    ord, (nans, infs) = sums.ord, sums.parts()
    total, exponent = dyadic(*sums.scaled()) if counted is None else joined((dyadic(*sums.scaled(i)) for i in counted), ord)
    error = sums.error if ord in (1.0, 2.0) else 0.0
    rounded, size = not exact_order(ord, leaves.sources), sum(a.size for a in counted_arrays(leaves, counted))
    return Part(total, exponent, error, rounded, nans, infs, sums.max_abs(), sums.first_nonfinite, size)


def counted_arrays(leaves: Leaves, counted: list[int] | None) -> list[Array]:
    """Return the arrays of the leaves that the norm runs over. counted: their indices; None: all."""
    return leaves.arrays if counted is None else [leaves.arrays[i] for i in counted]


def ratio_held(part: Part, threshold: float, ord: float, share: Fraction, exact: bool, margin: Fraction | int = 1) -> float:
    """Return the factor that brings what all ranks would write to its threshold, and a number above 1 if it keeps it already.

    share, margin : as `ratio_of` takes them; exact : whether the sum is, of order 1 or 2"""
    if exact or ord == math.inf:
        return ratio_of(part.value(), threshold, ord, share, margin)
    norm = sums_of(part.total, part.exponent, ord, 1.0, True, 0.0, (0, 0, None)).norm()
    most = threshold * float(share) * safety(ord)
    return most / norm if norm > most else 2.0


def coarsest(arrays: list[Array]) -> float:
    """Return half an ulp of 1 in the coarsest dtype of some arrays, 0 if they have no elements."""
    return max((unit_of(a.dtype).half for a in arrays if a.size), default=0.0)


def joined(sums: Iterable[tuple[int, int]], ord: float) -> tuple[int, int]:
    """Return the sum, or of order inf the largest, of numbers n * 2**e that are given as pairs."""
    filled = [pair for pair in sums if pair[0]]
    if not filled:
        return 0, 0
    least = max(min(e for _, e in filled), max(n.bit_length() + e for n, e in filled) - KEPT)
    units = [n << e - least if e >= least else n >> least - e for n, e in filled]
    return (max(units) if ord == math.inf else sum(units)), least


def measured_owned(grads: Any, options: Options, owned: Any) -> tuple[Sums, tuple[Fraction, int], bool]:
    """Return the Sums of all leaves, the sum of those that are owned as `Sums.scaled` has it, and whether terms are rounded.

    The Sums have the error of that sum."""
    leaves = Leaves(grads)
    counted = counted_leaves(leaves, owned)
    engine: Any = on_devices(False) if leaves.devices() else HOST
    found: Sums = engine.measure(leaves, options.ord, options.grad_scale, options.finite_only, norms=False)
    part = part_of(found, leaves, counted)
    total = Fraction(part.total), part.exponent
    with StandardState():
        if unsettled(part, options):
            total = exact_total(leaves, options.ord, counted), 0
            found.exact_total = (0, 0)  # so that their error is 0
    engine.settle(found, leaves, 0, False)
    return found, total, part.rounded


def unsettled(part: Part, options: Options, grad_scale: float | None = None) -> bool:
    """Return whether a sum does not tell the norm, and an exact one can."""
    if options.ord not in (1.0, 2.0) or part.rounded or (part.nans + part.infs and not options.finite_only):
        return False
    factor, power = options.grad_scale if grad_scale is None else grad_scale, int(options.ord)
    if factor == 1.0 and clearly_rounded(part.total, part.exponent, power, part.error):
        return False
    total, scale = part.value(), Fraction(factor) ** power
    error = Fraction(part.error)
    low, high = (root(total * (1 + by * error) / scale, power) for by in (-1, 1))
    return low != high or not (low == 0.0 or 1e-280 < low < 1e280)  # beyond, factors are made of more bits than a norm has


def exact_total(leaves: Leaves, ord: float, counted: list[int] | None, plan: Plan | None = None) -> Fraction:
    """Return the exact sum of the elements that are counted, or of what a Plan would make of them."""
    if counted is None:
        return exact_sum(leaves, ord, plan)
    owner = np.full(leaves.units, -1)
    owner[counted] = 0
    return exact_sum(leaves, ord, plan, 0, True, owner)
