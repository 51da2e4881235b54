"""Sums that stay on a GPU, and what is decided of them there."""

from __future__ import annotations

import numpy as np

from .._cpu.sums import Sums
from ..report import ClipReport, Factors
from .program import THREADS
from .table import sample_table, table_of

WORDS_OF_SUM, WORDS_OF_WRITE = 9, 6
NANS, INFS, FIRST = 5, 6, 8  # words of a Sum
NORMALIZE, FINITE_ONLY, SKIP, KEEP_OUT, STEPS, CLAMPS, BOUNDS, KEPT = (1 << k for k in range(8))  # as in decide.cu
ASKED = {"norm", "norms", "nonfinite", "first_nonfinite", "max_abs", "parts", "outside", "exact", "scaled", "size"}


class DeviceSums:
    """What one read pass found on a GPU: Sums of units and of all. What `Sums` can be asked besides is asked of `host()`,
    the same in this process, for which the pass must have ended. Leaves are not held: a report that nobody reads keeps
    no gradient alive."""

    def __init__(self, table, unit, partial, ord, grad_scale, size, naming, bring=None):
        self.table, self.place, self.unit = table, table.place, unit
        self.ord, self.grad_scale, self.count = ord, grad_scale, len(unit)
        self.units = None  # by unit, where these are by owner
        self._size, self._naming = size, naming
        self._bring, self._host, self._finite_only = bring or self._brought, None, False
        self.total = self.place.empty(1, WORDS_OF_SUM)
        self.place.launch("fold_total", 1, partial, len(partial), ord, self.total)

    def __getattr__(self, name):
        if name not in ASKED:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.host(), name)

    @property
    def finite_only(self):
        return self._finite_only

    @finite_only.setter
    def finite_only(self, value):
        self._finite_only = value
        if self._host is not None:
            self._host.finite_only = value

    def host(self, arrays=None):
        """As Sums of this process. arrays: the leaves, if the first element that is not finite is to be shown."""
        if self._host is None:
            sums = self._bring()
            sums.finite_only = self._finite_only
            self._host = sums
        if arrays is not None and self._host.nonfinite():
            self._host.first_value = value_at(self.place, arrays[self._host.first_leaf], self._host.first_nonfinite[1])
        return self._host

    def _brought(self):
        words = self.place.fetch(self.unit)
        sums = Sums(self.count, self._size, self.ord, self.grad_scale)
        sums.absorb(0, words)
        first = first_of(self.table, words)
        if first is not None:
            sums.first_leaf, index = first
            sums.first_nonfinite = self._naming(sums.first_leaf), index
        return sums

    def _folded(self, unit, owners, grad_scale, bring):
        """Sums of every owners-th unit together."""
        blocks = -(-owners // THREADS)
        owner, partial = (self.place.empty(n, WORDS_OF_SUM) for n in (owners, blocks))
        self.place.launch("fold_owners", blocks, unit, len(unit), owners, self.ord, owner, partial)
        return DeviceSums(self.table, owner, partial, self.ord, grad_scale, self._size, self._naming, bring)

    def by_owner(self, owners, count):
        """Sums of samples, each of which owns every count-th unit."""
        sums = self._folded(self.unit, count, self.grad_scale, lambda: self.host().by_owner(owners, count))
        sums.units = self
        return sums

    def of_units(self, start, stop, grad_scale):
        """The Sums of some of the units alone."""
        unit = self.unit[start:stop]
        return self._folded(unit, len(unit), grad_scale, lambda: self.host().of_units(start, stop, grad_scale))

    def weigh(self, first, clip_factor, eps):
        """Thresholds for adaptive clipping, from the units from `first` on, which are parameters."""
        weight = self.unit[first:]
        goals = self.place.empty(len(weight))
        blocks = -(-len(weight) // THREADS)
        self.place.launch("weigh", blocks, weight, len(weight), clip_factor, eps, self.ord, goals)
        return goals

    def seen_nonfinite(self):
        """Whether an element is NaN or Inf: waits for the pass, and brings no more than the total."""
        if self._host is not None:
            return self._host.nonfinite() > 0
        total = self.place.fetch(self.total)[0]
        return bool(total[NANS] + total[INFS])

    # ---- deciding ---------------------------------------------------------------------------------

    def decide(self, to, rule, target, shown, *, normalize=False, keep_out=False, norms=None, owners=None, lr=None):
        """As `_decide.decide`, without waiting; None where that needs to know numbers."""
        if rule.strict or (rule.nonfinite == "raise" and self.seen_nonfinite()):
            return None
        together = isinstance(target, float)
        flags = self._flags(rule)
        for flag, wanted in ((NORMALIZE, normalize), (KEEP_OUT, keep_out), (STEPS, lr is not None)):
            flags |= flag if wanted else 0
        goals, goal = self._goals(target)
        writes = self._settled(1 if together else self.count, together, goals, goal, rule, flags, lr=lr)
        self._write(to, writes, 0, self if self.units is None else self.units)
        size = to.units if owners is None else self.count
        return self._report(writes, shown, size, rule, together, norms)

    def clamp(self, to, plan, shown):
        """Clip by value: leaves of which an element is outside the bounds of a plan."""
        bounds = self.place.constant(plan.bounds())
        writes = self._settled(self.count, False, 0, 0.0, None, CLAMPS)
        self._write(to, writes, bounds, self)

        def fill():
            sums = self.host()
            return {"_sums": sums, "_plan": None, "_clipped_count": sums.outside(), "_skipped": False, "_size": sums.size}

        return ClipReport.pending(fill, shown)

    def add_up(self, leaves, to, rule, goal, max_norm, kept):
        """The write pass of `per_sample_clip_sum`: samples within `max_norm` are added as they are (if `kept`), others
        brought to `goal`. None where that is decided exactly, by numbers."""
        if rule.nonfinite == "raise" or not self.count:
            return None
        flags = self._flags(rule) | BOUNDS | (KEPT if kept else 0)
        writes = self._settled(self.count, False, 0, goal, rule, flags, limit=max_norm)
        sample_table(leaves, self.place.device, to).launch("sum_samples", writes, self.count, self.total, flags)
        return self._report(writes, max_norm, self.count, rule, False, None)

    def _flags(self, rule):
        return {"skip": SKIP, "zero": FINITE_ONLY}.get(rule.nonfinite, 0)

    def _goals(self, target):
        """Thresholds on the device, if they differ, and that of all."""
        if isinstance(target, float):
            return 0, target
        if isinstance(target, np.ndarray):
            if len(target) == 0 or (target == target[0]).all():
                return 0, float(target[0]) if len(target) else 0.0
            return self.place.constant(target), 0.0
        return target, 0.0

    def _settled(self, n, together, goals, goal, rule, flags, lr=None, limit=0.0):
        writes = self.place.empty(n, WORDS_OF_WRITE)
        sums, eps = self.total if together else self.unit, 0.0 if rule is None else rule.eps
        numbers = goal, eps, self.ord, self.grad_scale, 1.0 if lr is None else lr, limit
        self.place.launch("settle", -(-n // THREADS), sums, self.total, n, goals, *numbers, flags, writes)
        return writes

    def _write(self, to, writes, bounds, found):
        table_of(to, self.place.device).launch("write_leaves", writes, len(writes), bounds, found.unit)
        to.written()

    def _report(self, writes, shown, size, rule, together, norms):
        finite_only, skips = rule.nonfinite == "zero", rule.nonfinite == "skip"

        def fill():
            sums, words = self.host(), self.place.fetch(writes)
            sums.finite_only = finite_only
            skipped = skips and sums.nonfinite() > 0
            factors = words.view(np.float64)[:, 3].copy()
            acting = int(words[:, 1].sum())
            plan = None if skipped else Factors(float(np.min(factors)) if len(factors) else 1.0, factors)
            count = (size if acting else 0) if together else acting
            return {"_sums": sums, "_plan": plan, "_clipped_count": count, "_skipped": skipped, "_size": size}

        return ClipReport.pending(fill, shown, norms)


def first_of(table, words):
    """(index of the leaf, flat index) of the first element that is not finite, from the Sums of a table's units."""
    bad = np.flatnonzero(words[:, NANS] + words[:, INFS])
    if not len(bad):
        return None
    starts = table.starts()
    at = int(np.searchsorted(starts, bad[0], side="right")) - 1
    start, n = starts[at], table.places[at][1]
    return table.which[at], int(words[start : start + n, FIRST].min())


def value_at(place, array, index):
    """One element of an array."""
    if isinstance(array, np.ndarray):
        return array.flat[index]
    return place.fetch(array[tuple(map(int, np.unravel_index(index, array.shape)))])
