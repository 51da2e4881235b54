# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Sums: what one read pass found, and the questions that deciding and reporting ask of it."""
cimport cython
from cpython.mem cimport PyMem_Malloc, PyMem_Free
from libc.math cimport INFINITY, ldexp
from libc.stdint cimport int64_t
from numpy cimport import_array

from fractions import Fraction

import numpy as np

from gradclip._cpu.fold cimport Sum, frexpl, ldexpl, clear, complete, merge, reopen
from gradclip._cpu.fpenv cimport gc_fpenv, gc_fp_enter, gc_fp_leave
from gradclip._cpu.memory cimport doubles, indices, words
from gradclip._cpu.middle cimport sum_error
from gradclip._cpu.scalar cimport gc_adaptive_threshold, gc_bin_width, gc_narrow, gc_norm_of, gc_shown_norm, gc_measured

import_array()


cdef double order_of(double ord) noexcept:
    """The order of a norm as C has it: 0 stands for inf."""
    return 0 if ord == INFINITY else ord


cdef Py_ssize_t index_of(object unit) except -2:
    """The index of a unit as C has it: ALL stands for None, which is all units together."""
    return ALL if unit is None else <Py_ssize_t>unit


@cython.freelist(8)      # a small call makes one, and is over sooner without an allocation
cdef class Sums:
    """What one read pass found: a sum of each unit and one of all. Where a unit may be given, None is all of them together.

    finite_only: whether norms are those of the finite elements; else they are NaN or Inf where an element is."""

    def __init__(self, Py_ssize_t count, Py_ssize_t size, double ord, double grad_scale, bint finite_only=False):
        if self.unit != NULL:
            raise RuntimeError("these Sums were made already")
        self.start(count, size, ord, grad_scale, finite_only)

    cdef int start(self, Py_ssize_t count, Py_ssize_t size, double ord, double grad_scale, bint finite_only) except -1:
        """Make room for units, of which nothing is known yet."""
        self.count = count
        self.size = size
        self.order = order_of(ord)
        self.grad_scale = grad_scale
        self.finite_only = finite_only
        self.unit = &self.one if count <= 1 else <gc_measured *>PyMem_Malloc(count * sizeof(gc_measured))
        if self.unit == NULL:
            raise MemoryError
        clear(&self.total)
        return 0

    def __dealloc__(self):
        if self.unit != &self.one:
            PyMem_Free(self.unit)

    @property
    def ord(self):
        """The order of the norms."""
        return self.order or INFINITY

    @property
    def units(self):
        """The Sums by unit: these themselves or, if these are of owners, those that they were added up from."""
        return self if self.by_unit is None else self.by_unit

    @property
    def first_nonfinite(self):
        """Path and flat index of the first NaN or Inf, None if there is none."""
        return self.named

    @first_nonfinite.setter
    def first_nonfinite(self, place):
        self.named = place

    def by_owner(self, Py_ssize_t owners, owner=None):
        """The Sums of the owners of units: of samples, which have a unit in each leaf, or of groups of leaves.

        owner: for each unit the number of its owner; -1: it has none, and does not count in the sum of all either. None: units
        belong to the owners in turn, as those of samples do"""
        cdef Sums sums = Sums(owners, self.size, self.ord, self.grad_scale, self.finite_only)
        cdef const Py_ssize_t *number = indices(owner)
        cdef Py_ssize_t i, k, out = 0
        cdef Sum part
        cdef Sum *owned = <Sum *>PyMem_Malloc(max(owners, 1) * sizeof(Sum))
        if owned == NULL:
            raise MemoryError
        cdef gc_fpenv saved = gc_fp_enter()
        for i in range(owners):
            clear(&owned[i])
        for i in range(self.count):
            k = i % owners if owner is None else number[i]
            if k < 0:
                out += 1
                continue
            part = reopen(&self.unit[i])
            merge(&owned[k], &part, self.order)
        for i in range(owners):
            complete(&sums.unit[i], &owned[i])
            if out:
                merge(&sums.total, &owned[i], self.order)
        PyMem_Free(owned)
        gc_fp_leave(saved)
        sums.by_unit, sums.owner = self, owner
        if not out:
            sums.total = self.total
        sums.first_leaf, sums.named, sums.first_value = self.first_leaf, self.named, self.first_value
        return sums

    def of_units(self, Py_ssize_t start, Py_ssize_t stop, double grad_scale):
        """The Sums of some of the units alone, which hold the true gradient times grad_scale."""
        cdef Sums sums = Sums(stop - start, self.size, self.ord, grad_scale, self.finite_only)
        cdef Py_ssize_t i
        cdef Sum part
        cdef gc_fpenv saved = gc_fp_enter()
        for i in range(stop - start):
            sums.unit[i] = self.unit[start + i]
            part = reopen(&sums.unit[i])
            merge(&sums.total, &part, self.order)
        gc_fp_leave(saved)
        if start == 0 and sums.total.nans + sums.total.infs:    # the first units hold the first of all
            sums.first_leaf, sums.named, sums.first_value = self.first_leaf, self.named, self.first_value
        return sums

    def weigh(self, Py_ssize_t first, clip_factor, double eps):
        """Return the thresholds of adaptive clipping for the units before `first`.

        They are clip_factor * max(norm of the parameters, eps). The parameters of unit i are unit first + i. A threshold is inf
        where one of them is not finite.

        clip_factor: a float, or float64 of one per unit; inf leaves a unit alone."""
        cdef bint alike = isinstance(clip_factor, float)
        cdef const double *each = NULL if alike else doubles(clip_factor)
        cdef double factor = clip_factor if alike else 0
        thresholds = np.empty(first)
        cdef double *threshold = doubles(thresholds)
        cdef Py_ssize_t i
        cdef gc_fpenv saved = gc_fp_enter()
        for i in range(first):
            threshold[i] = gc_adaptive_threshold(&self.unit[first + i], factor if alike else each[i], eps, self.order)
        gc_fp_leave(saved)
        return thresholds

    def absorb(self, numbers, records):
        """Take in units that another engine measured.

        numbers: which units these are
        records: a row of words for each: high, low, bin, amax, its exponent, nans, infs, outside; more are not read"""
        cdef const Py_ssize_t *unit = indices(numbers)
        cdef const int64_t *word = words(records)
        cdef const double *number = <const double *>word
        cdef Py_ssize_t i, count = len(numbers), width = records.shape[1]
        cdef Sum s
        cdef gc_fpenv saved = gc_fp_enter()
        for i in range(count):
            clear(&s)
            s.high, s.low, s.bin = number[0], number[1], word[2]
            s.amax = ldexpl(number[3], <int>word[4])
            s.nans, s.infs, s.outside = word[5], word[6], word[7]
            word, number = word + width, number + width
            complete(&self.unit[unit[i]], &s)
            merge(&self.total, &s, self.order)
        gc_fp_leave(saved)

    cdef double relative_error(self) noexcept:
        """A bound on the relative error of each sum, as the pass makes it."""
        return sum_error(2 * self.size, self.count if self.by_unit is None else self.by_unit.count)

    @property
    def error(self):
        """A bound on the relative error of the sum of all; 0 where the elements were summed exactly."""
        return 0.0 if self.exact_total is not None else self.relative_error()

    cdef gc_measured at(self, Py_ssize_t unit) noexcept:
        cdef gc_measured all
        if unit >= 0:
            return self.unit[unit]
        complete(&all, &self.total)
        return all

    cdef double norm_of(self, Py_ssize_t unit) noexcept:
        """The norm as it is shown. To be called in the standard floating-point state."""
        cdef gc_measured u = self.at(unit)
        return gc_shown_norm(&u, self.order, self.grad_scale, self.finite_only)

    cdef double largest(self, Py_ssize_t unit):
        """The largest finite magnitude as it is stored."""
        cdef gc_measured u = self.at(unit)
        if self.true_max is not None:
            return self.true_max * self.grad_scale
        return ldexp(u.amax, <int>u.exponent)

    cdef Py_ssize_t nonfinite_of(self, Py_ssize_t unit) noexcept:
        return self.total.nans + self.total.infs if unit < 0 else self.unit[unit].nans + self.unit[unit].infs

    def norm(self, unit=None):
        """The norm of the true gradient."""
        cdef Py_ssize_t index = index_of(unit)
        cdef gc_fpenv saved = gc_fp_enter()
        cdef double result = self.norm_of(index)
        gc_fp_leave(saved)
        return result

    cdef bint is_finite(self) noexcept:
        """Whether every element is."""
        return self.total.nans + self.total.infs == 0

    cdef bint keeps(self, double threshold) noexcept:
        """Whether every element is finite and the norm of all does not exceed a threshold."""
        cdef gc_fpenv saved = gc_fp_enter()     # flush-to-zero changes comparisons too
        cdef bint result = self.is_finite() and self.norm_of(ALL) <= threshold
        gc_fp_leave(saved)
        return result

    def within(self, double threshold):
        """Whether every element is finite and the norm of all does not exceed a threshold."""
        return self.keeps(threshold)

    def shows_nonfinite(self, unit=None):
        """Whether the norm is NaN or Inf because an element is."""
        return not self.finite_only and self.nonfinite_of(index_of(unit)) > 0

    def norms(self):
        """The norms of the units, float64."""
        result = np.empty(self.count)
        cdef double *norm = doubles(result)
        cdef Py_ssize_t i
        cdef gc_fpenv saved = gc_fp_enter()
        for i in range(self.count):
            norm[i] = self.norm_of(i)
        gc_fp_leave(saved)
        return result

    def parts(self, unit=None):
        """How many elements are NaN, and how many Inf."""
        cdef Py_ssize_t index = index_of(unit)
        if index < 0:
            return self.total.nans, self.total.infs
        return self.unit[index].nans, self.unit[index].infs

    def max_abs(self, unit=None):
        """The largest finite magnitude of the true gradient."""
        cdef Py_ssize_t index = index_of(unit)
        cdef gc_fpenv saved = gc_fp_enter()
        cdef gc_measured all = self.at(index)
        cdef double result = gc_narrow(gc_norm_of(&all, 0, self.grad_scale))
        gc_fp_leave(saved)
        return result if self.true_max is None else self.true_max

    def nonfinite(self, unit=None):
        """How many elements are NaN or Inf."""
        return self.nonfinite_of(index_of(unit))

    def outside(self, unit=None):
        """How many elements lie beyond the bounds that were given."""
        cdef Py_ssize_t index = index_of(unit)
        return self.total.outside if index < 0 else self.unit[index].outside

    def exact(self, unit=None):
        """The sum of powers (order inf: the maximum) of the finite stored elements, as the pass holds it, in rational
        arithmetic: for orders 1, 2 and inf."""
        part, exponent = self.scaled(unit)
        return part * Fraction(2) ** exponent

    def scaled(self, unit=None):
        """The sum behind a norm of any order, as a Fraction and the exponent of the power of two that it is multiplied by."""
        cdef Py_ssize_t index = index_of(unit)
        cdef Sum s = self.total if index < 0 else reopen(&self.unit[index])
        cdef double a, b, c, d
        cdef int exponent = 0
        if index < 0 and self.exact_total is not None:
            return Fraction(self.exact_total[0]), self.exact_total[1]
        if self.order == 0:
            a = <double>frexpl(s.amax, &exponent)
            return Fraction(a), exponent
        a, c = <double>s.high, <double>s.low
        b, d = <double>(s.high - a), <double>(s.low - c)
        return Fraction(a) + Fraction(b) + Fraction(c) + Fraction(d), gc_bin_width(self.order) * <object>s.bin

    def dyadics(self, units):
        """The sums behind the norms of some units, as `_core.dyadic.dyadic` makes them of what `scaled` returns, but sooner."""
        cdef double part[4]
        cdef int exponent = 0
        cdef Py_ssize_t index, i
        cdef Sum s
        found = []
        for index in units:
            s = reopen(&self.unit[index])
            total, least, beyond = 0, 0, 0
            if self.order == 0:
                part[0], part[1], part[2], part[3] = <double>frexpl(s.amax, &exponent), 0, 0, 0
                beyond = exponent
            else:
                part[0], part[1] = <double>s.high, <double>s.low
                part[2], part[3] = <double>(s.high - part[0]), <double>(s.low - part[1])
                beyond = gc_bin_width(self.order) * <object>s.bin
            for i in range(4):
                if part[i]:
                    number = <int64_t>ldexpl(frexpl(part[i], &exponent), 53)
                    shift = (exponent - 53) - least if total else 0
                    least = min(least, exponent - 53) if total else exponent - 53
                    total = (total << -shift) + number if shift < 0 else total + (number << shift)
            zeros = (total & -total).bit_length() - 1
            found.append((total >> zeros, beyond + least + zeros) if total else (0, 0))
        return found


cdef Sums new_sums(Py_ssize_t count, double ord, double grad_scale=1, bint finite_only=False):
    """Return Sums of as many units, of which nothing is known yet, sooner than by a call of the class."""
    cdef Sums sums = Sums.__new__(Sums)
    sums.start(count, 0, ord, grad_scale, finite_only)
    return sums
