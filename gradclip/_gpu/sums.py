"""Sums that stay on the GPUs, and what is decided of them there."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from .._core.options import DEFAULT
from .._core.rounding import exact_order, safety
from .._cpu.sums import Sums
from ..report import ClipReport, Factors, answer
from .gather import delivered, gathered
from .program import THREADS, Uninterrupted
from .reading import WORDS_OF_SUM, Part
from .strict import enforce
from .table import sample_table, table_of

WORDS_OF_WRITE = 6
NANS, INFS, FIRST = 5, 6, 8  # words of a Sum
NORMALIZE, FINITE_ONLY, SKIP, KEEP_OUT, STEPS, CLAMPS, BOUNDS, KEPT, STRICT, EXACT = (1 << k for k in range(10))  # of decide.cu
ASKED = {"norm", "norms", "nonfinite", "first_nonfinite", "max_abs", "parts", "outside", "exact", "scaled", "size"}


class DeviceSums:
    """What one read pass found on GPUs: Sums of units, each on the device of its leaf, and the Sum of all on every device.
    Every device decides for its own units, by the same arithmetic, and so alike. What `Sums` can be asked besides is asked of
    `host()`, the same in this process, for which the pass must have ended. Leaves are not held: a report that nobody reads
    keeps no gradient alive."""

    def __init__(self, parts, ord, grad_scale, count, size, naming, bring=None, by_unit=None):
        self.by_device, self.places = parts, [part.table.place for part in parts]
        self.ord, self.grad_scale, self.count = ord, grad_scale, count
        self._size, self._naming = size, naming
        # What Sums are made from, if not from `parts`; and the Sums by unit, where these are by owner. Never a reference to
        # these Sums themselves: they would live on until the garbage collector runs.
        self._bring, self._by_unit = bring, by_unit
        self._host, self._finite_only = None, False

    def __getattr__(self, name):
        if name not in ASKED:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.host(), name)

    @property
    def units(self):
        """These Sums by unit."""
        return self if self._by_unit is None else self._by_unit

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
            sums = self._brought() if self._bring is None else self._bring()
            sums.finite_only = self._finite_only
            self._host = sums
        if arrays is not None and self._host.nonfinite():
            self._host.first_value = value_at(self.places, arrays[self._host.first_leaf], self._host.first_nonfinite[1])
        return self._host

    def _brought(self):
        sums = Sums(self.count, self._size, self.ord, self.grad_scale)
        absorb(sums, self.by_device, self._naming)
        return sums

    @cached_property
    def totals(self):
        """The Sum of all, on each device: folded from the same Sums in the same order everywhere."""
        sums = [part.partial for part in self.by_device]
        if len(sums) == 1 and self.by_device[0].total is not None:
            return [self.by_device[0].total]
        if len(sums) > 1 and self.by_device[0].numbers is not None:
            sums = gathered(self.places, 1, lambda k, to: self._fold_total(k, sums[k], to))
        return [self._fold_total(k, found, self.places[k].empty(1, WORDS_OF_SUM)) for k, found in enumerate(sums)]

    def _fold_total(self, k, sums, to):
        self.places[k].launch("fold_total", 1, sums, len(sums), self.ord, to)
        return to

    def _fold_owners(self, k, sums, owners, to):
        """Every owners-th of some Sums together; and partial Sums of all of them."""
        blocks = -(-owners // THREADS)
        partial = self.places[k].empty(blocks, WORDS_OF_SUM)
        self.places[k].launch("fold_owners", blocks, sums, len(sums), owners, self.ord, to, partial)
        return to, partial

    def by_owner(self, owners, count):
        """Sums of samples, each of which owns every count-th unit of each device."""
        sums = [part.unit for part in self.by_device]
        if len(sums) > 1:  # what is folded first is less to carry
            sums = gathered(self.places, count, lambda k, to: self._fold_owners(k, sums[k], count, to))
        parts = []
        for k, part in enumerate(self.by_device):
            owner, partial = self._fold_owners(k, sums[k], count, self.places[k].empty(count, WORDS_OF_SUM))
            parts.append(Part(part.table, owner, partial, None))
        return self._with(parts, count, self.grad_scale, lambda: self.host().by_owner(owners, count), self)

    def of_units(self, start, stop, grad_scale):
        """The Sums of some of the units alone."""
        parts = []
        for k, part in enumerate(self.by_device):
            some = slice(*np.searchsorted(part.numbers, (start, stop)).tolist())
            unit = part.unit[some]
            unit, partial = self._fold_owners(k, unit, len(unit), self.places[k].empty(len(unit), WORDS_OF_SUM))
            parts.append(Part(part.table, unit, partial, part.numbers[some]))
        return self._with(parts, stop - start, grad_scale, lambda: self.host().of_units(start, stop, grad_scale))

    def of_writes(self, parts):
        """The same Sums of what would be written."""
        written = self._with(parts, self.units.count, 1.0)
        return written if self._by_unit is None else written.by_owner(None, self.count)

    def _with(self, parts, count, grad_scale, bring=None, by_unit=None):
        return DeviceSums(parts, self.ord, grad_scale, count, self._size, self._naming, bring, by_unit)

    def weigh(self, first, clip_factor, eps):
        """Thresholds for adaptive clipping, on each device for its units before `first`; the others are parameters."""
        goals, have, want = [], [], []
        for place, part in zip(self.places, self.by_device, strict=True):
            start = int(np.searchsorted(part.numbers, first))
            weight = part.unit[start:]
            goals.append(place.empty(len(weight)))
            place.launch("weigh", -(-len(weight) // THREADS), weight, len(weight), clip_factor, eps, self.ord, goals[-1])
            want.append(part.numbers[:start])
            have.append(part.numbers[start:] - first)
        return delivered(self.places, goals, have, want)

    def is_for_the_host(self, strict):
        """Whether an element is NaN or Inf or, `strict`, only exact sums decide: waits, and brings no more than totals."""
        if self._host is not None and not strict:
            return self._host.nonfinite() > 0
        totals = self.totals if strict else self.totals[:1]  # NaN and Inf are alike on all devices
        return any(self.places[k].fetch(total)[0, NANS:FIRST].any() for k, total in enumerate(totals))

    def goals_here(self, target):
        """Thresholds as the host takes them."""
        return self._told(target, False).view(np.float64) if isinstance(target, list) else target

    # ---- deciding ---------------------------------------------------------------------------------

    def decide(self, to, rule, target, shown, *, normalize=False, out=None, norms=None, owners=None, lr=None):
        """As `_decide.decide`, without waiting; None where that needs to know numbers."""
        together, steps = isinstance(target, float), lr is not None
        flags = self._flags(rule)
        for flag, wanted in ((NORMALIZE, normalize), (KEEP_OUT, out is not None), (STEPS, steps), (STRICT, rule.strict)):
            flags |= flag if wanted else 0
        if rule.strict and exact_order(rule.ord, to.sources):
            flags |= EXACT
        goals = self._goals(target)
        opened = self._words(together, 1) if rule.strict and not steps else None
        writes = self._settled(together, goals, rule, flags, opened, lr)
        if rule.nonfinite == "raise" and self.is_for_the_host(rule.strict):
            return None
        if opened is not None:
            enforce(self, to, rule, together, goals, opened, writes)
        size = to.units if owners is None else self.count
        report, ends = self._report(writes, shown, size, rule, together, norms)
        found = answer(report, out)
        self._write(to, writes, [0] * len(writes), ends)
        return found

    def clamp(self, to, plan, shown, out):
        """Clip by value: leaves of which an element is outside the bounds of a plan."""
        bounds = [place.constant(plan.bounds()) for place in self.places]

        def fill():
            sums = self.host()
            return {"_sums": sums, "_plan": None, "_clipped_count": sums.outside(), "_skipped": False, "_size": sums.size}

        report, ends = self._pending(fill, shown, None)
        found = answer(report, out)
        self._write(to, self._settled(False, self._goals(0.0), DEFAULT, CLAMPS), bounds, ends)
        return found

    def add_up(self, leaves, to, rule, goal, max_norm, kept, most, out):
        """The write pass of `per_sample_clip_sum`: samples within `max_norm` are added as they are (if `kept`), others
        brought to `goal`, and no element of one above `most` of its leaf, if there is such a bound. None where that is
        decided by numbers: exactly, or because these elements lie on several devices."""
        if rule.nonfinite == "raise" or not self.count or (most is not None and len(self.places) > 1):
            return None
        flags = self._flags(rule) | BOUNDS | (KEPT if kept else 0)
        writes = self._settled(False, self._goals(goal), rule, flags, limit=max_norm)
        if most is not None:
            place, part = self.places[0], self.units.by_device[0]
            bounds = place.constant(most[part.table.which])
            place.launch("keep_finite", -(-self.count // THREADS), part.unit, len(bounds), bounds, self.count, writes[0])
        tables = [sample_table(leaves, place.device, to) for place in self.places]
        report, ends = self._report(writes, max_norm, self.count, rule, False, None)
        found = answer(report, out)
        to.announce()
        with Uninterrupted():
            for table, made, total in zip(tables, writes, self.totals, strict=True):
                table.launch("sum_samples", made, self.count, total, flags)
            mark(ends)
        return found

    def _flags(self, rule):
        return {"skip": SKIP, "zero": FINITE_ONLY}.get(rule.nonfinite, 0)

    def _goals(self, target):
        """Thresholds on each device, if they differ, and that of all."""
        if isinstance(target, np.ndarray) and (target == target[:1]).all():
            target = float(target[0]) if len(target) else 0.0
        if isinstance(target, float):
            return [(0, target)] * len(self.by_device)
        if isinstance(target, np.ndarray):
            target = [place.constant(mine(part, target)) for place, part in zip(self.places, self.by_device, strict=True)]
        return [(goals, 0.0) for goals in target]

    def shared(self, k, together):
        """On one device the Sums of what shares a norm: of its units, or of all."""
        return self.totals[k] if together else self.by_device[k].unit

    def _words(self, together, width):
        """On each device room for so many words for each of these."""
        return [place.empty(len(self.shared(k, together)), width) for k, place in enumerate(self.places)]

    def _settled(self, together, goals, rule, flags, opened=None, lr=None, limit=0.0):
        """On each device the Writes of its units, or one for all. opened: words to be set where `strict` has to hold it."""
        made = self._words(together, WORDS_OF_WRITE)
        counts = flags & STRICT and rule.nonfinite == "raise"  # what only exact sums decide
        for k, (place, writes) in enumerate(zip(self.places, made, strict=True)):
            n, total = len(writes), self.totals[k] if counts or flags & SKIP else 0
            numbers = rule.eps, self.ord, self.grad_scale, 1.0 if lr is None else lr, limit, safety(self.ord)
            args = *goals[k], *numbers, flags, 0 if opened is None else opened[k], writes
            place.launch("settle", -(-n // THREADS), self.shared(k, together), total, n, *args)
        return made

    def _write(self, to, writes, bounds, ends):
        tables = [table_of(to, place.device) for place in self.places]
        to.announce()  # whether anything is to be written is known on the devices alone
        with Uninterrupted():
            for table, made, limits, part in zip(tables, writes, bounds, self.units.by_device, strict=True):
                table.launch("write_leaves", made, len(made), table.in_place, limits, part.unit)
            mark(ends)
        to.written()

    def _report(self, writes, shown, size, rule, together, norms):
        finite_only, skips = rule.nonfinite == "zero", rule.nonfinite == "skip"

        def fill():
            sums, words = self.host(), self._told(writes, together)
            sums.finite_only = finite_only
            skipped = skips and sums.nonfinite() > 0
            factors = words.view(np.float64)[:, 3].copy()
            acting = int(words[:, 1].sum())
            plan = None if skipped else Factors(float(np.min(factors)) if len(factors) else 1.0, factors)
            count = (size if acting else 0) if together else acting
            return {"_sums": sums, "_plan": plan, "_clipped_count": count, "_skipped": skipped, "_size": size}

        return self._pending(fill, shown, norms)

    def _pending(self, fill, shown, norms):
        """The report that `fill` fills, whoever reads it; and the events that it waits for, to be marked after all launches."""
        ends = [(place, place.end()) for place in self.places]

        def read():
            for place, event in ends:
                if event is not None:
                    place.follow(event)
            return fill()

        return ClipReport.pending(read, shown, norms), ends

    def _told(self, arrays, together):
        """What devices hold of all units, or alike for all together, as one array here."""
        if together or self.by_device[0].numbers is None or len(self.by_device) == 1:
            return self.places[0].fetch(arrays[0])
        words = np.empty((self.count, *arrays[0].shape[1:]), np.int64)
        for place, part, array in zip(self.places, self.by_device, arrays, strict=True):
            words[part.numbers] = place.fetch(array)
        return words


def mark(ends):
    """Let events stand for the end of what was launched so far."""
    for place, event in ends:
        if event is not None:
            place.mark(event)


def mine(part, values):
    """Of values by unit, those of the units of a device."""
    return values if part.numbers is None else values[part.numbers]


def absorb(sums, parts, naming):
    """Take what GPUs found into Sums of this process."""
    found = [(sums.first_leaf, sums.first_nonfinite[1])] if sums.first_nonfinite else []
    for part in parts:
        words = part.table.place.fetch(part.unit)
        sums.absorb(part.numbers, words)
        found += first_of(part.table, words)
    if found:
        sums.first_leaf, index = min(found)
        sums.first_nonfinite = naming(sums.first_leaf), index


def first_of(table, words):
    """[(index of the leaf, flat index)] of the first element that is not finite, from the Sums of a table's units; or []."""
    bad = np.flatnonzero(words[:, NANS] + words[:, INFS])
    if not len(bad):
        return []
    at = int(np.searchsorted(table.edges, bad[0], side="right")) - 1
    return [(table.which[at], int(words[table.edges[at] : table.edges[at + 1], FIRST].min()))]


def value_at(places, array, index):
    """One element of an array, which lies here or on one of some devices."""
    if isinstance(array, np.ndarray):
        return array.flat[index]
    place = next(place for place in places if place.device == array.data.device_id)
    return place.fetch(array[tuple(map(int, np.unravel_index(index, array.shape)))])
