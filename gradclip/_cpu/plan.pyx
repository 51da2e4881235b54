# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Plan: what a write pass is to do to each leaf; and the floating-point state in which it is decided."""
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.math cimport INFINITY, NAN, frexp, isfinite, isnan, ldexp, rint
from libc.stdint cimport int64_t
from libc.string cimport memcmp, memcpy
from numpy cimport import_array

import sys
from fractions import Fraction

import numpy as np

from gradclip._cpu.fpenv cimport gc_fpenv, gc_fp_enter, gc_fp_leave
from gradclip._cpu.machine cimport GC_F16, GC_F32, GC_F64, kernels
from gradclip._cpu.memory cimport doubles, flags, indices, words
from gradclip._cpu.scalar cimport (
    GC_CLAMP, GC_KEEP, GC_SCALE, GC_STEP, gc_exceeds, gc_keep_finite, gc_limited_factor, gc_measured, gc_multiply,
    gc_plain_factor, gc_question, gc_rounding_bound, gc_safe_threshold, gc_decide, gc_factor, gc_shrink)
from gradclip._cpu.sums cimport ALL, index_of
from gradclip._leaves.units cimport Units


cdef double[4] MOST     # the largest number of each kernel dtype
MOST[0], MOST[1], MOST[2], MOST[3] = 65504.0, (2 - 2.0**-7) * 2.0**127, (2 - 2.0**-23) * 2.0**127, sys.float_info.max

import_array()


cdef class StandardState:
    """The floating-point state of the passes for a stretch of Python arithmetic: a ``with`` block."""
    cdef gc_fpenv saved

    def __enter__(self):
        self.saved = gc_fp_enter()

    def __exit__(self, kind, error, traceback):     # not *exception, a tuple for which memory may be refused
        gc_fp_leave(self.saved)


cdef void decide_one(Write *w, const gc_measured *unit, double threshold, const gc_question *ask, int decided) noexcept:
    """Decide one unit. decided: whether it is brought to its threshold; -1 if that is to be decided here."""
    w.clips = decided if decided >= 0 else gc_exceeds(unit, threshold, ask)
    w.kind = gc_decide(unit, threshold, ask, &w.clips, &w.factor)


cdef void drop(Write *w) noexcept:
    """Make every element 0, whatever it is."""
    w.kind, w.zero, w.factor = GC_SCALE, True, gc_plain_factor(0)


cdef double rounded(double x, int dtype) noexcept:
    """A number as NumPy and ml_dtypes round it to a kernel dtype: to float16 at once, to bfloat16 by way of float32, as the
    kernels do to both."""
    cdef int exponent = 0
    cdef double word, unit
    if dtype == GC_F64 or dtype == GC_F32:      # as PUT does it, without a call
        return x if dtype == GC_F64 else <double><float>x
    if dtype == GC_F16 and isfinite(x):
        frexp(x, &exponent)
        unit = ldexp(1, max(exponent - 11, -24))
        x = rint(x / unit) * unit
    kernels.narrow[dtype](&word, &x, 1)
    kernels.widen[dtype](&x, &word, 1)
    return x


cdef bint is_cast(Units to, Py_ssize_t i) noexcept:
    """Whether a leaf receives what is made of one of another dtype."""
    return to.source != NULL and to.source[i].dtype != to.leaf[i].dtype


cdef gc_question question(Sums sums, double eps, bint normalize, bint held) noexcept:
    """Return what `gc_decide` has to know of a call, whichever unit it decides."""
    return gc_question(sums.order, eps, sums.grad_scale, sums.finite_only, normalize, held)


def safe_threshold(double threshold, rounding):
    """Return a norm to which elements may be brought, so that it keeps a threshold even when each of them is rounded up.

    rounding : a `_core.rounding.RoundingBound`
    """
    cdef gc_rounding_bound r = gc_rounding_bound(rounding.lost, rounding.slope, rounding.power, rounding.floor, rounding.most)
    cdef gc_fpenv saved = gc_fp_enter()
    cdef double result = gc_safe_threshold(threshold, &r)
    gc_fp_leave(saved)
    return result


cdef class Plan:
    """What a write pass does to each leaf (`count` 1: the same to every leaf); at first, nothing."""

    def __cinit__(self, Py_ssize_t count):
        cdef Py_ssize_t i
        self.count = count
        self.write = <Write *>PyMem_Calloc(max(count, 1), sizeof(Write))
        if self.write == NULL:
            raise MemoryError
        for i in range(count):
            self.write[i].factor = gc_plain_factor(1)

    def __dealloc__(self):
        PyMem_Free(self.write)

    def decide(self, Sums sums, thresholds, double eps=0, bint normalize=False, bint held=False, clips=None):
        """Decide each unit: to its threshold where its norm exceeds it, or with `normalize` wherever there is a norm;
        else to be unscaled or left as it is.

        thresholds: a float, for all leaves together; or float64 of one per unit of `sums`.
        held: a factor that rounds to 1 is still to be enforced.
        clips: whether each unit is to be brought to its threshold, where that was decided before."""
        cdef bint together = isinstance(thresholds, float)
        cdef const double *threshold = NULL if together else doubles(thresholds)
        cdef const unsigned char *decided = flags(clips)
        cdef gc_question ask = question(sums, eps, normalize, held)
        cdef Py_ssize_t i
        cdef gc_measured unit
        cdef gc_fpenv saved = gc_fp_enter()
        for i in range(self.count):
            unit = sums.at(ALL if together else i)
            decide_one(&self.write[i], &unit, <double>thresholds if together else threshold[i], &ask,
                       -1 if clips is None else decided[i])
        gc_fp_leave(saved)

    def scale(self, double factor):
        """Multiply every element of every unit by a factor."""
        cdef Py_ssize_t i
        for i in range(self.count):
            self.write[i].kind, self.write[i].clips, self.write[i].factor = GC_SCALE, True, gc_plain_factor(factor)

    def multiply_kept(self):
        """Let units that are left as they are be multiplied by 1, a factor that can be shrunk."""
        cdef Py_ssize_t i
        for i in range(self.count):
            if self.write[i].kind == GC_KEEP:
                self.write[i].kind = GC_SCALE

    def shrink(self, Py_ssize_t i, double ratio):
        """Multiply the factor by something below 1."""
        cdef gc_fpenv saved = gc_fp_enter()
        self.write[i].clips = True
        gc_shrink(&self.write[i].factor, ratio)
        gc_fp_leave(saved)

    def set_threshold(self, Py_ssize_t i, Sums sums, unit, double threshold, double eps, double most, bint lower=False):
        """Give entry i the factor that brings the norm of `unit` (None: of all together) to a threshold; or, with `lower`, only
        if that is smaller than the one it has.

        No element gets above `most` by it that is not above it already."""
        cdef Py_ssize_t index = index_of(unit)
        cdef double largest = sums.largest(index)
        cdef gc_fpenv saved = gc_fp_enter()
        cdef gc_measured sum = sums.at(index)
        cdef gc_question ask = question(sums, eps, False, True)
        cdef gc_factor factor = gc_limited_factor(&sum, threshold, &ask, most, largest)
        self.write[i].clips = True
        if self.write[i].kind == GC_KEEP:
            self.write[i].kind = GC_SCALE
        if not (lower and factor.value > self.write[i].factor.value):
            self.write[i].factor = factor
        gc_fp_leave(saved)

    def hold_casts(self, Units to, Sums units, thresholds, owner=None):
        """Let every unit with a threshold have a factor, at first 1, and shrink factors until no element leaves the range of
        another dtype to which it is rounded.

        units: what was measured of the units of `to`; thresholds: of the entries; owner: as `spread` takes it."""
        cdef const double *threshold = doubles(thresholds)
        cdef const Py_ssize_t *number = indices(owner)
        cdef Py_ssize_t i, j, k
        cdef Write *w
        cdef gc_fpenv saved = gc_fp_enter()
        for i in range(to.count):
            for j in range(to.leaf[i].first_unit, to.leaf[i].first_unit + to.leaf[i].units):
                k = j % self.count if owner is None else number[j]
                if k < 0 or threshold[k] == INFINITY:
                    continue
                w = &self.write[k]
                if w.kind == GC_KEEP:
                    w.kind = GC_SCALE
                if is_cast(to, i) and (units.finite_only or units.nonfinite_of(j) == 0):
                    w.clips |= gc_keep_finite(&w.factor, units.largest(j), MOST[to.leaf[i].dtype])
        gc_fp_leave(saved)

    def keep_in_range(self, Units to, Sums units, overflowed, owner=None):
        """Shrink factors until no element leaves the range of what it is rounded to: the largest becomes the largest number.

        units: what was measured of the units of `to`; overflowed: the entries that are meant; owner: as `spread` takes it.
        Returns the set of those that were shrunk. Others overflow by a rounding alone."""
        cdef const Py_ssize_t *number = indices(owner)
        cdef Py_ssize_t i, j, k
        meant, shrunk = set(overflowed), set()
        cdef gc_fpenv saved = gc_fp_enter()
        for i in range(to.count):
            for j in range(to.leaf[i].first_unit, to.leaf[i].first_unit + to.leaf[i].units):
                k = j % self.count if owner is None else number[j]
                if k in meant and gc_keep_finite(&self.write[k].factor, units.largest(j), MOST[to.leaf[i].dtype]):
                    self.write[k].clips = True
                    shrunk.add(k)
        gc_fp_leave(saved)
        return shrunk

    def keep_finite(self, Sums units, most, owner=None):
        """Shrink factors of samples until no element leaves the range of what it is rounded to: `most`, of each leaf.

        units: what was measured of the samples, leaf by leaf; owner: as `spread` takes it."""
        cdef const double *largest = doubles(most)
        cdef const Py_ssize_t *number = indices(owner)
        cdef Py_ssize_t i, k, batch = units.count // max(len(most), 1)
        cdef Write *w
        cdef gc_fpenv saved = gc_fp_enter()
        for i in range(units.count):
            k = i % self.count if owner is None else number[i]
            if k < 0:
                continue
            w = &self.write[k]
            if gc_keep_finite(&w.factor, units.largest(i), largest[i // batch]):
                w.kind, w.clips = GC_SCALE, True
        gc_fp_leave(saved)

    def hold_range(self, Py_ssize_t i, largest):
        """Shrink the factor of entry i until no element leaves the range of what it is rounded to; returns whether it was.

        largest: the largest magnitude that is rounded to each kernel dtype, a row of what `largest_written` returns"""
        cdef const double *magnitude = doubles(largest)
        cdef bint shrunk = False
        cdef int dtype
        cdef gc_fpenv saved = gc_fp_enter()
        for dtype in range(4):
            if gc_keep_finite(&self.write[i].factor, magnitude[dtype], MOST[dtype]):
                self.write[i].kind, self.write[i].clips, shrunk = GC_SCALE, True, True
        gc_fp_leave(saved)
        return shrunk

    def zero_nonfinite(self, Sums sums, owner=None):
        """Bring elements that are not finite to 0, in units that have any or were measured elsewhere; not in those without an
        owner."""
        cdef const Py_ssize_t *number = indices(owner)
        cdef Py_ssize_t i
        for i in range(self.count):
            if owner is None or number[i] >= 0:
                self.write[i].zero = sums.count != self.count or sums.nonfinite_of(i) > 0

    def leave_out(self, Sums sums):
        """Make every element of a unit 0 if one of them is not finite."""
        cdef Py_ssize_t i
        for i in range(self.count):
            if sums.nonfinite_of(i):
                drop(&self.write[i])

    def leave_alone(self, units):
        """Write nothing to some units, which have no factor: `units` has a bool for each."""
        self.alone = units.view(np.uint8)
        cdef const unsigned char *alone = flags(self.alone)
        cdef Py_ssize_t i
        for i in range(self.count):
            if alone[i]:
                self.write[i].kind, self.write[i].clips, self.write[i].zero = GC_KEEP, False, False
                self.write[i].factor = gc_plain_factor(1)

    cpdef clamp(self, Py_ssize_t i, double low, double high):
        """Bring elements into [low, high], both rounded to each kernel dtype."""
        cdef gc_fpenv saved = gc_fp_enter()
        cdef Write *w = &self.write[i]
        cdef int t
        w.kind = GC_CLAMP
        for t in range(4):
            w.high[t] = rounded(high, t)
            w.low[t] = -w.high[t] if low == -high < 0 else rounded(low, t)
        gc_fp_leave(saved)

    def spread(self, Py_ssize_t count, owner=None, bint drops=False):
        """Return a Plan for `count` units, which has for each what this one has for its owner.

        owner: for each unit the number of its owner; -1: it has none, and is left alone. None: units belong to owners in turn
        drops: a unit without owner becomes 0 instead"""
        cdef Plan plan = Plan(count)
        cdef const Py_ssize_t *number = indices(owner)
        cdef Py_ssize_t i, k
        for i in range(count):
            k = i % self.count if owner is None else number[i]
            if k >= 0:
                plan.write[i] = self.write[k]
            elif drops:
                drop(&plan.write[i])
        return plan

    def step(self, double lr):
        """Subtract from what is written lr times what would have been written."""
        cdef gc_fpenv saved = gc_fp_enter()
        cdef Py_ssize_t i
        for i in range(self.count):
            self.write[i].kind = GC_STEP
            gc_multiply(&self.write[i].factor, lr)
        gc_fp_leave(saved)

    def factor(self, Py_ssize_t i=0):
        """The factor as float64."""
        return self.write[i].factor.value

    def records(self):
        """Return the plan as words for GPUs: for each unit kind, clips, zero and, of its factor, value, last and shift."""
        cdef Py_ssize_t i
        cdef const Write *w
        rows = np.empty((self.count, 6), np.int64)
        cdef int64_t *word = words(rows)
        cdef double *number = <double *>word
        for i in range(self.count):
            w = &self.write[i]
            word[0], word[1], word[2], word[5] = w.kind, w.clips, w.zero, w.factor.shift
            number[3], number[4] = w.factor.value, w.factor.last
            word, number = word + 6, number + 6
        return rows

    def bounds(self):
        """Return the bounds of a plan that clamps, (low, high) by dtype: a row for each unit, or one if all have the same; None
        if it clamps nothing."""
        cdef Py_ssize_t i
        cdef Write *first = NULL
        cdef bint alike = True
        for i in range(self.count):
            if self.write[i].kind == GC_CLAMP:
                if first == NULL:
                    first = &self.write[i]
                alike = alike and memcmp(first.low, self.write[i].low, sizeof(first.low)) == 0 and \
                    memcmp(first.high, self.write[i].high, sizeof(first.high)) == 0
        if first == NULL:
            return None
        found = np.empty((1 if alike else self.count, 2, 4))
        cdef double *bound = doubles(found)
        for i in range(len(found)):
            first = first if alike else &self.write[i]
            memcpy(bound, first.low, sizeof(first.low))
            memcpy(bound + 4, first.high, sizeof(first.high))
            bound += 8
        return found

    def where_outside(self, Sums sums):
        """Return the Plan that clamps, of the leaves that this one clamps, those in which elements were counted as outside."""
        cdef Plan plan = Plan(sums.count)
        cdef Py_ssize_t i
        for i in range(sums.count):
            if sums.unit[i].outside:
                plan.write[i] = self.write[i % self.count]
        return plan

    def exact_factor(self):
        """The first factor in rational arithmetic; its float64 may be rounded to a subnormal number, or to 0."""
        return Fraction(self.write[0].factor.last) * Fraction(2) ** self.write[0].factor.shift

    def factors(self):
        """All factors."""
        return np.array([self.write[i].factor.value for i in range(self.count)], np.float64)

    def smallest(self):
        """The smallest factor of a unit that has one; NaN if one is. 1 if none has."""
        cdef double least = 1
        cdef const unsigned char *alone = flags(self.alone)
        cdef bint found = False
        cdef Py_ssize_t i
        for i in range(self.count):
            if alone != NULL and alone[i]:
                continue
            if isnan(self.write[i].factor.value):
                return NAN
            least = min(least, self.write[i].factor.value) if found else self.write[i].factor.value
            found = True
        return least

    def keeps(self, Py_ssize_t i):
        """Return whether unit i is left as it is, apart from elements that are not finite."""
        return self.write[i].kind == GC_KEEP

    def acting(self):
        """How many units are brought to their threshold."""
        cdef Py_ssize_t i, count = 0
        for i in range(self.count):
            count += self.write[i].clips
        return count

    def idle(self):
        """Whether the plan changes nothing at all."""
        cdef Py_ssize_t i
        for i in range(self.count):
            if self.write[i].kind != GC_KEEP or self.write[i].zero:
                return False
        return True


cdef Plan plan_of_all(Sums sums, double threshold, double eps):
    """Return the Plan that brings all leaves together to a threshold, or leaves them as they are: sooner than by `decide`."""
    cdef Plan plan = Plan.__new__(Plan, 1)
    cdef gc_question ask = question(sums, eps, False, False)
    cdef gc_fpenv saved = gc_fp_enter()
    cdef gc_measured unit = sums.at(ALL)
    decide_one(plan.write, &unit, threshold, &ask, -1)
    gc_fp_leave(saved)
    return plan


def largest_written(Units to, Sums units, Py_ssize_t count=1, owner=None, bint casts=False):
    """Return the largest magnitude that each of `count` factors multiplies and that is rounded to each kernel dtype, as rows of
    float64; 0 if there is none.

    units: what was measured of the units of `to`; owner: as `Plan.spread` takes it
    casts: whether only leaves that are rounded from another dtype are meant"""
    result = np.zeros((count, 4))
    cdef double *largest = doubles(result)
    cdef double *word
    cdef const Py_ssize_t *number = indices(owner)
    cdef Py_ssize_t i, j, k
    for i in range(to.count):
        if casts and not is_cast(to, i):
            continue
        for j in range(to.leaf[i].first_unit, to.leaf[i].first_unit + to.leaf[i].units):
            k = j % count if owner is None else number[j]
            if k >= 0:
                word = &largest[4 * k + to.leaf[i].dtype]
                word[0] = max(word[0], units.largest(j))
    return result


def clamping(low, high, Sums found=None):
    """Return a Plan that brings every element into [low, high]: two floats, or float64 of the bounds of each leaf.

    found : what the write pass is to measure as it goes, if anything"""
    cdef Py_ssize_t i, count = 1 if type(low) is float else len(low)
    cdef Plan plan = Plan.__new__(Plan, count)
    if type(low) is float:
        plan.clamp(0, low, high)
    else:
        for i in range(count):
            plan.clamp(i, low[i], high[i])
    plan.found = found
    return plan
