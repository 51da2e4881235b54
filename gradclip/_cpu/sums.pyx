# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Sums: what one read pass found, and the questions that deciding and reporting ask of it."""
from cpython.mem cimport PyMem_Malloc, PyMem_Free
from libc.math cimport ldexp
from libc.stdint cimport int64_t

from fractions import Fraction

import numpy as np

from gradclip._cpu.fold cimport Sum, frexpl, ldexpl, clear, merge, reopen, settle
from gradclip._cpu.plan cimport gc_fpenv, gc_fp_enter, gc_fp_leave
from gradclip._cpu.scalar cimport gc_adaptive_threshold, gc_bin_width, gc_narrow, gc_norm_of, gc_shown_norm, gc_measured

cdef class Sums:
    """What one read pass found: a sum per leaf and one of all. Index -1 means all leaves."""

    def __cinit__(self, Py_ssize_t count, Py_ssize_t size, double ord, double grad_scale):
        self.count = count
        self.size = size
        self.ord = ord
        self.grad_scale = grad_scale
        self.unit = <gc_measured *>PyMem_Malloc(max(self.count, 1) * sizeof(gc_measured))
        if self.unit == NULL:
            raise MemoryError
        clear(&self.total)

    def __dealloc__(self):
        PyMem_Free(self.unit)

    @staticmethod
    def from_exact(total, exponent, double ord, double grad_scale, max_abs, Py_ssize_t nans, Py_ssize_t infs,
                   first_nonfinite):
        """Sums of no leaves of their own, whose total was measured elsewhere: the integer total * 2**exponent."""
        cdef Sums sums = Sums(0, 0, ord, grad_scale)
        size = total.bit_length() + exponent
        sums.total.nans, sums.total.infs = nans, infs
        sums.true_max, sums.first_nonfinite = max_abs, first_nonfinite
        sums.total.amax = 1 if total else 0
        if total and ord == 0:
            sums.total.amax = ldexpl(<double>float(Fraction(total) / Fraction(2) ** total.bit_length()), <int>size)
        elif total:
            if not -800 <= size <= 1000:
                sums.total.bin = (size + gc_bin_width(ord) // 2) // gc_bin_width(ord)
            part = Fraction(total) * Fraction(2) ** (exponent - gc_bin_width(ord) * <object>sums.total.bin)
            sums.total.high = <double>float(part)
            sums.total.low = <double>float(part - Fraction(<double>sums.total.high))
        return sums

    def by_owner(self, owners, Py_ssize_t count):
        """Sums of `count` owners of several units each: `owners` has one index per unit."""
        cdef Sums sums = Sums(count, self.size, self.ord, self.grad_scale)
        cdef const Py_ssize_t[::1] owner = owners
        cdef Py_ssize_t i
        cdef Sum part
        cdef Sum *owned = <Sum *>PyMem_Malloc(max(count, 1) * sizeof(Sum))
        if owned == NULL:
            raise MemoryError
        cdef gc_fpenv saved = gc_fp_enter()
        for i in range(count):
            clear(&owned[i])
        for i in range(self.count):
            part = reopen(&self.unit[i])
            merge(&owned[owner[i]], &part, self.ord)
        for i in range(count):
            settle(&sums.unit[i], &owned[i])
        PyMem_Free(owned)
        gc_fp_leave(saved)
        sums.units = self
        sums.total = self.total
        sums.first_leaf, sums.first_nonfinite, sums.first_value = self.first_leaf, self.first_nonfinite, self.first_value
        return sums

    def of_units(self, Py_ssize_t start, Py_ssize_t stop, double grad_scale):
        """The Sums of some of the units alone."""
        cdef Sums sums = Sums(stop - start, self.size, self.ord, grad_scale)
        cdef Py_ssize_t i
        cdef Sum part
        cdef gc_fpenv saved = gc_fp_enter()
        for i in range(stop - start):
            sums.unit[i] = self.unit[start + i]
            part = reopen(&sums.unit[i])
            merge(&sums.total, &part, self.ord)
        gc_fp_leave(saved)
        if start == 0 and sums.total.nans + sums.total.infs:    # the first units hold the first of all
            sums.first_leaf, sums.first_nonfinite, sums.first_value = self.first_leaf, self.first_nonfinite, self.first_value
        return sums

    def weigh(self, Py_ssize_t first, double clip_factor, double eps):
        """Thresholds of adaptive clipping for the units before `first`: clip_factor * max(norm of the parameters, eps), the
        parameters of unit i being unit first + i; inf where one of them is not finite."""
        goals = np.empty(first)
        cdef double[::1] goal = goals
        cdef Py_ssize_t i
        cdef gc_fpenv saved = gc_fp_enter()
        for i in range(first):
            goal[i] = gc_adaptive_threshold(&self.unit[first + i], clip_factor, eps, self.ord)
        gc_fp_leave(saved)
        return goals

    def absorb(self, numbers, records):
        """Take units of some numbers from what a GPU found: words as in Sum of _gpu/sums.cu."""
        cdef const Py_ssize_t[::1] unit = numbers
        cdef const int64_t[:, ::1] word = records
        cdef const double[:, ::1] number = records.view(np.float64)
        cdef Py_ssize_t i
        cdef Sum s
        cdef gc_fpenv saved = gc_fp_enter()
        for i in range(number.shape[0]):
            clear(&s)
            s.high, s.low, s.bin = number[i, 0], number[i, 1], word[i, 2]
            s.amax = ldexpl(number[i, 3], <int>word[i, 4])
            s.nans, s.infs, s.outside = word[i, 5], word[i, 6], word[i, 7]
            settle(&self.unit[unit[i]], &s)
            merge(&self.total, &s, self.ord)
        gc_fp_leave(saved)

    cdef gc_measured at(self, Py_ssize_t leaf) noexcept:
        cdef gc_measured all
        if leaf >= 0:
            return self.unit[leaf]
        settle(&all, &self.total)
        return all

    cdef double norm_of(self, Py_ssize_t leaf) noexcept:
        """To be called in the standard floating-point state."""
        cdef gc_measured u = self.at(leaf)
        return gc_shown_norm(&u, self.ord, self.grad_scale, self.finite_only)

    cdef double largest(self, Py_ssize_t leaf):
        """Largest finite magnitude as it is stored."""
        cdef gc_measured u = self.at(leaf)
        if self.true_max is not None:
            return self.true_max * self.grad_scale
        return ldexp(u.amax, <int>u.exponent)

    def norm(self, Py_ssize_t leaf=-1):
        """Norm of the true gradient, correctly rounded but for some 2**-35 of cases."""
        cdef gc_fpenv saved = gc_fp_enter()
        cdef double result = self.norm_of(leaf)
        gc_fp_leave(saved)
        return result

    def within(self, double threshold):
        """Whether every element is finite and the norm of all does not exceed a threshold."""
        cdef gc_fpenv saved = gc_fp_enter()     # flush-to-zero changes comparisons too
        cdef bint result = self.total.nans + self.total.infs == 0 and self.norm_of(-1) <= threshold
        gc_fp_leave(saved)
        return result

    cpdef bint shows_nonfinite(self, Py_ssize_t leaf=-1) noexcept:
        """Whether the norm is NaN or Inf because an element is."""
        return self.nonfinite(leaf) > 0 and not self.finite_only

    def norms(self):
        """Norms of the leaves, float64."""
        result = np.empty(self.count)
        cdef double[::1] view = result
        cdef Py_ssize_t i
        cdef gc_fpenv saved = gc_fp_enter()
        for i in range(self.count):
            view[i] = self.norm_of(i)
        gc_fp_leave(saved)
        return result

    def parts(self):
        """(nans, infs) of all leaves."""
        return self.total.nans, self.total.infs

    def max_abs(self):
        """Largest finite magnitude of the true gradient."""
        cdef gc_fpenv saved = gc_fp_enter()
        cdef gc_measured all = self.at(-1)
        cdef double result = gc_narrow(gc_norm_of(&all, 0, self.grad_scale))
        gc_fp_leave(saved)
        return result if self.true_max is None else self.true_max

    cpdef Py_ssize_t nonfinite(self, Py_ssize_t leaf=-1) noexcept:
        """How many elements are NaN or Inf."""
        return self.total.nans + self.total.infs if leaf < 0 else self.unit[leaf].nans + self.unit[leaf].infs

    def outside(self, Py_ssize_t leaf=-1):
        """How many elements lie beyond the bounds that were given."""
        return self.total.outside if leaf < 0 else self.unit[leaf].outside

    def exact(self, Py_ssize_t leaf=-1):
        """The sum of squares (magnitudes; the maximum) of the finite stored elements, as the pass
        holds it, in rational arithmetic."""
        part, exponent = self.scaled(leaf)
        return part * Fraction(2) ** exponent

    def scaled(self, Py_ssize_t leaf=-1):
        """The same, and for sums of other powers, as a Fraction and a power of two."""
        cdef Sum s = self.total if leaf < 0 else reopen(&self.unit[leaf])
        cdef double a, b, c, d
        cdef int exponent = 0
        if self.ord == 0:
            a = <double>frexpl(s.amax, &exponent)
            return Fraction(a), exponent
        a, c = <double>s.high, <double>s.low
        b, d = <double>(s.high - a), <double>(s.low - c)
        return Fraction(a) + Fraction(b) + Fraction(c) + Fraction(d), gc_bin_width(self.ord) * <object>s.bin
