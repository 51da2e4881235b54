"""Sums that stay on a GPU, and what is decided of them there."""

from __future__ import annotations

import numpy as np

from .._cpu.sums import Sums
from ..report import ClipReport, Factors
from .program import THREADS, constant, empty, launch
from .table import sample_tables, table_of

WORDS_OF_SUM, WORDS_OF_WRITE = 9, 6
NANS, INFS, FIRST = 5, 6, 8  # words of a Sum
NORMALIZE, FINITE_ONLY, SKIP, KEEP_OUT, STEPS, CLAMPS, BOUNDS, KEPT = (1 << k for k in range(8))  # as in decide.cu


class DeviceSums:
    """What one read pass found on a GPU: Sums of units and of all. Whatever else is asked of it is asked of `host()`, the
    same in this process, for which the pass must have ended."""

    def __init__(self, leaves, table, unit, partial, ord, grad_scale, bring=None):
        self.leaves, self.table, self.unit = leaves, table, unit
        self.ord, self.grad_scale, self.count = ord, grad_scale, len(unit)
        self.units = None  # by unit, where these are by owner
        self._bring, self._host, self._finite_only = bring or self._brought, None, False
        self.total = empty(table.device, (1, WORDS_OF_SUM))
        self._launch("fold_total", 1, partial, len(partial), ord, self.total)

    def __getattr__(self, name):
        return getattr(self.host(), name)

    @property
    def finite_only(self):
        return self._finite_only

    @finite_only.setter
    def finite_only(self, value):
        self._finite_only = value
        if self._host is not None:
            self._host.finite_only = value

    def host(self):
        """As Sums of this process."""
        if self._host is None:
            self._host = self._bring()
            self._host.finite_only = self._finite_only
        return self._host

    def _brought(self):
        words, leaves = self.unit.get(), self.leaves
        sums = Sums(self.count, leaves.size, self.ord, self.grad_scale)
        sums.absorb(0, words)
        first = first_of(self.table, words)
        if first is not None:
            i, index = first
            sums.first_nonfinite, sums.first_leaf = (leaves.path(i), index), i
            sums.first_value = leaves.sources[i].ravel()[index].get()
        return sums

    def _launch(self, name, blocks, *args):
        launch(self.table.device, name, blocks, args)

    def _folded(self, unit, owners, grad_scale, bring):
        """Sums of every owners-th unit together."""
        blocks = -(-owners // THREADS)
        owner, partial = (empty(self.table.device, (n, WORDS_OF_SUM)) for n in (owners, blocks))
        self._launch("fold_owners", blocks, unit, len(unit), owners, self.ord, owner, partial)
        return DeviceSums(self.leaves, self.table, owner, partial, self.ord, grad_scale, bring)

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
        goals = empty(self.table.device, (len(weight),))
        self._launch("weigh", -(-len(weight) // THREADS), weight, len(weight), clip_factor, eps, self.ord, goals)
        return goals

    def seen_nonfinite(self):
        """Whether an element is NaN or Inf: waits for the pass, and brings no more than the total."""
        if self._host is None:
            total = self.total.get()[0]
            return bool(total[NANS] + total[INFS])
        return self._host.nonfinite() > 0

    # ---- deciding ---------------------------------------------------------------------------------

    def decide(self, to, rule, target, shown, *, normalize=False, keep_out=False, norms=None, owners=None, lr=None):
        """As `_decide.decide`, without waiting; None where that needs to know numbers."""
        if rule.strict or (rule.nonfinite == "raise" and self.seen_nonfinite()):
            return None
        together = isinstance(target, float)
        flags = (
            self._flags(rule) | (NORMALIZE if normalize else 0) | (KEEP_OUT if keep_out else 0) | (0 if lr is None else STEPS)
        )
        goals, goal = self._goals(target)
        writes = self._settled(1 if together else self.count, together, goals, goal, rule, flags, lr=lr)
        modulo = 0 if together else max(self.count, 1)
        self._write(to, writes, modulo, 0, self if self.units is None else self.units)
        size = to.units if owners is None else self.count
        return self._report(writes, shown, size, rule, together, norms)

    def clamp(self, to, plan, shown):
        """Clip by value: leaves of which an element is outside the bounds of a plan."""
        bounds = constant(self.table.device, plan.records()[1])
        writes = self._settled(self.count, False, 0, 0.0, None, CLAMPS)
        self._write(to, writes, max(self.count, 1), bounds, self)

        def fill():
            sums = self.host()
            return {"_sums": sums, "_plan": None, "_clipped_count": sums.outside(), "_skipped": False, "_size": sums.size}

        return ClipReport.pending(fill, shown)

    def add_up(self, leaves, to, rule, goal, max_norm, kept):
        """The write pass of `per_sample_clip_sum`: samples within `max_norm` are added as they are (if `kept`), others
        brought to `goal`."""
        if rule.nonfinite == "raise" or not self.count:  # which waits: then it can be decided exactly, too
            return None
        flags = self._flags(rule) | BOUNDS | (KEPT if kept else 0)
        writes = self._settled(self.count, False, 0, goal, rule, flags, limit=max_norm)
        for _, table in sample_tables(leaves, self.table.device, to):
            launch(table.device, "sum_samples", table.blocks, (*table.args, writes, self.count, self.total, flags))
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
            return constant(self.table.device, target), 0.0
        return target, 0.0

    def _settled(self, n, together, goals, goal, rule, flags, lr=None, limit=0.0):
        writes = empty(self.table.device, (n, WORDS_OF_WRITE))
        sums, eps = self.total if together else self.unit, 0.0 if rule is None else rule.eps
        numbers = goal, eps, self.ord, self.grad_scale, 1.0 if lr is None else lr, limit
        self._launch("settle", -(-n // THREADS), sums, self.total, n, goals, *numbers, flags, writes)
        return writes

    def _write(self, to, writes, modulo, bounds, found):
        table = table_of(to, self.table.device)
        launch(table.device, "write_leaves", table.blocks, (*table.args, writes, modulo, bounds, found.unit))
        to.written()

    def _report(self, writes, shown, size, rule, together, norms):
        def fill():
            sums, words = self.host(), writes.get()
            sums.finite_only = rule.nonfinite == "zero"
            skipped = rule.nonfinite == "skip" and sums.nonfinite() > 0
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
    for i, (start, n) in zip(table.which, table.local_places(), strict=True):
        if start <= bad[0] < start + n:
            return i, int(words[start : start + n, FIRST].min())
    return None
