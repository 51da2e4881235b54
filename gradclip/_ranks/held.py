"""`strict` where units have norms of their own: what all ranks would write keeps every threshold in exact arithmetic.

A norm that several ranks share is held by exchanging what they would write: each sum with all its bits, so that all shrink its
factor alike. A norm of this rank alone needs no other rank; but all ranks make as many rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core.dyadic import dyadic
from .._core.strict import by_unit
from .._cpu.exact import exact_sums
from .._cpu.plan import largest_written
from .comms import MAX
from .exchange import Part, bits_of, number_of
from .shared import ratio_held
from .table import exchanged, numbers_of

# How often ranks exchange what they would write before factors get values that are safe without. These know only the coarsest
# dtypes of all ranks, and so may be much smaller near subnormal numbers. So rounds behind the first SLOW ones shrink by more.
ROUNDS, SLOW = 8, 4

if TYPE_CHECKING:
    from .._core.arguments import Floats, Indices
    from .._core.call import Request
    from .._core.engine import Engine
    from .._cpu.plan import Plan
    from .._cpu.sums import Sums
    from .units import SharedUnits


class Held:
    """The norms of a call that `strict` holds to their thresholds, and the Plan whose factors are shrunk until it does."""

    def __init__(self, options: SharedUnits, engine: Engine, request: Request, plan: Plan, sums: Sums) -> None:
        self.options, self.engine, self.request, self.plan, self.sums = options, engine, request, plan, sums
        self.owner: Indices = np.arange(request.to.units) if request.owner is None else request.owner
        self.bounds: list[float] = request.threshold.tolist()
        self.exact = options.ord in (1.0, 2.0) and not options.rounded
        place = zip(numbers_of(options.blocks), options.table.places(options.blocks), strict=True)
        self.place = dict(place)  # where norms that are shared stand in what is exchanged
        if options.casts:  # what is rounded to another dtype may exceed a threshold that it kept
            plan.hold_casts(request.to, sums.units, request.threshold, request.owner)
        self.units = [
            k for k, bound in enumerate(self.bounds) if bound < math.inf and not plan.keeps(k) and not sums.shows_nonfinite(k)
        ]
        if options.casts:
            self._keep_in_range(self.units, True, True)

    def shrink(self) -> None:
        """Shrink factors until all thresholds are kept.

        In the last round a factor gets a value that keeps its threshold however elements are rounded."""
        options, session, over = self.options, self.options.session, bool(self.units)
        slack = [options.half / math.sqrt(max(options.sizes[k], 1)) / 4 for k in self.units]  # at last that of `typical`
        written: dict[int, Part] = {}
        for more in reversed(range(ROUNDS)):
            if over:
                written = self._written()
            session.merge(Part(), options.ord, options.alike, [int(over)])
            if not session.extra[0]:
                return
            over = self._shrink_once(written, slack, more)
            slack = [2.0 * s for s in slack]

    def _shrink_once(self, written: dict[int, Part], slack: Sequence[float], more: int) -> bool:
        """Shrink the factors of norms that are above their thresholds; returns whether there were any here.

        written : the sum behind each norm as this rank would write it; more : how many rounds follow"""
        options, plan, over = self.options, self.plan, False
        shared = {k: p for k, p in written.items() if k in self.place}
        options.session.begin()
        place, count = [self.place[k] for k in shared], options.table.count
        found = exchanged(options.session, list(shared.values()), place, count, options.ord, self.exact)
        options.session.end()
        merged = written | {k: found[i] for k, i in zip(shared, place, strict=True)}
        overflowed = [k for k in self.units if merged[k].nans + merged[k].infs]
        anywhere = any(p.nans + p.infs for p in found)
        limited = self._keep_in_range(overflowed, False, anywhere) if more and (anywhere or overflowed) else set()
        for k, least in zip(self.units, slack, strict=True):
            if k in limited:
                over = True
                continue
            # overflow is above any threshold
            ratio = 0.5 if k in overflowed else ratio_held(merged[k], self.bounds[k], options.ord, options.share, self.exact)
            if ratio > 1.0:
                continue
            over = True
            if more:
                for _ in range(ROUNDS - more - SLOW):
                    ratio *= ratio
                plan.shrink(k, max(0.0, ratio * (1.0 - max(least, 2.0**-53))))
            else:
                safe = options.safe(k, self.bounds[k], k in overflowed)
                plan.set_threshold(k, self.sums, k, safe, options.eps, math.inf, True)
        return over

    def _written(self) -> dict[int, Part]:
        """Return the sums behind the norms that are held, of what this rank would write.

        Of a norm that is shared, leaves count that no other rank counts."""
        options, request, plan = self.options, self.request, self.plan
        planned = by_unit(request, plan, self.sums)
        units: Any = self.engine.measure_written(request.to, planned, options.ord)
        mine = options.mine[: request.to.units]
        everything = units.by_owner(plan.count, self.owner)
        own = units.by_owner(plan.count, mine)
        totals: dict[int, tuple[int, int]] = {}
        for owner, sums, shared in ((mine, own, True), (self.owner, everything, False)):
            which = [k for k in self.units if (k in self.place) is shared]
            if self.exact and which:
                found = exact_sums(request.to, options.ord, np.array(which, np.intp), owner, planned)
                totals |= zip(which, (dyadic(total, 0) for total in found), strict=True)
            else:
                totals |= zip(which, sums.dyadics(which), strict=True)
        counts = {k: everything.parts(k) for k in self.units}
        return {k: Part(*totals[k], nans=nans, infs=infs) for k, (nans, infs) in counts.items()}

    def _keep_in_range(self, units: Sequence[int], casts: bool, together: bool) -> set[int]:
        """Shrink factors until no element leaves the range of what it is rounded to; returns of which norms.

        casts : whether only leaves of another dtype are meant
        together : whether all ranks do this, for norms that are shared"""
        plan = self.plan
        largest = largest_written(self.request.to, self.sums.units, plan.count, self.owner, casts)
        if together:
            self._merge_largest(largest)
        return {k for k in units if plan.hold_range(k, largest[k])}

    def _merge_largest(self, largest: Floats) -> None:
        """Let the rows of norms that are shared be the maxima of all ranks."""
        options, here = self.options, {k: i for k, i in self.place.items() if largest[k].any()}
        words = np.zeros((options.table.count, 4), np.int64)
        for k, i in here.items():
            words[i] = [bits_of(x) for x in largest[k].tolist()]
        options.session.merge(Part(), options.ord, options.alike)  # so that all know if one failed up to here
        options.session.begin()
        words = options.session.reduce(words.ravel(), MAX).reshape(-1, 4)
        options.session.end()
        for k, i in self.place.items():
            largest[k] = [number_of(bits) for bits in words[i].tolist()]
