# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Sums: what one read pass found, and the questions that deciding and reporting ask of it."""
from cpython.mem cimport PyMem_Malloc, PyMem_Free
from libc.math cimport INFINITY, NAN
from libc.stdint cimport int64_t

from fractions import Fraction

import numpy as np

from gradclip._cpu.fold cimport Sum, Unit, frexpl, ldexpl, clear, merge, norm_of, narrow, reopen, settle, shift_of
from gradclip._cpu.plan cimport gc_fpenv, gc_fp_enter, gc_fp_leave

cdef class Sums:
    """What one read pass found: a sum per leaf and one of all. Index -1 means all leaves."""

    def __cinit__(self, Py_ssize_t count, Py_ssize_t size, double ord, double grad_scale):
        self.count = count
        self.size = size
        self.ord = ord
        self.grad_scale = grad_scale
        self.unit = <Unit *>PyMem_Malloc(max(self.count, 1) * sizeof(Unit))
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
                sums.total.bin = (size + shift_of(ord) // 2) // shift_of(ord)
            part = Fraction(total) * Fraction(2) ** (exponent - shift_of(ord) * <object>sums.total.bin)
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
            part = reopen(&self.unit[i], self.ord)
            merge(&owned[owner[i]], &part, self.ord)
        for i in range(count):
            settle(&sums.unit[i], &owned[i], self.ord)
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
            part = reopen(&sums.unit[i], self.ord)
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
        cdef Unit u
        cdef double weight
        cdef gc_fpenv saved = gc_fp_enter()
        for i in range(first):
            u = self.unit[first + i]
            weight = INFINITY if u.nans + u.infs else narrow(norm_of(&u, self.ord, 1))
            goal[i] = clip_factor * max(weight, eps)
            if weight == INFINITY and not u.nans + u.infs:      # a norm beyond float64 still has a threshold
                goal[i] = clip_factor * narrow(norm_of(&u, self.ord, 2.0**64)) * 2.0**64
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
            settle(&self.unit[unit[i]], &s, self.ord)
            merge(&self.total, &s, self.ord)
        gc_fp_leave(saved)

    cdef Unit at(self, Py_ssize_t leaf) noexcept:
        cdef Unit all
        if leaf >= 0:
            return self.unit[leaf]
        settle(&all, &self.total, self.ord)
        return all

    cdef double norm_of(self, Py_ssize_t leaf) noexcept:
        """To be called in the standard floating-point state."""
        cdef Unit u = self.at(leaf)
        if u.nans + u.infs and not self.finite_only:
            return NAN if u.nans else INFINITY
        return narrow(norm_of(&u, self.ord, self.grad_scale))

    cdef double largest(self, Py_ssize_t leaf):
        """Largest finite magnitude as it is stored."""
        cdef Unit u = self.at(leaf)
        if self.true_max is not None:
            return self.true_max * self.grad_scale
        return u.amax * 2 if self.ord == 0 and u.bin else u.amax

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
        cdef Unit all
        cdef gc_fpenv saved = gc_fp_enter()
        settle(&all, &self.total, 0)
        cdef double result = narrow(norm_of(&all, 0, self.grad_scale))
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
        cdef Sum s = self.total if leaf < 0 else reopen(&self.unit[leaf], self.ord)
        cdef double a, b, c, d
        cdef int exponent = 0
        if self.ord == 0:
            a = <double>frexpl(s.amax, &exponent)
            return Fraction(a), exponent
        a, c = <double>s.high, <double>s.low
        b, d = <double>(s.high - a), <double>(s.low - c)
        return Fraction(a) + Fraction(b) + Fraction(c) + Fraction(d), shift_of(self.ord) * <object>s.bin
