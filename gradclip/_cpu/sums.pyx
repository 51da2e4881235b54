# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Sums: what one read pass found, and the questions that deciding and reporting ask of it."""
from cpython.mem cimport PyMem_Malloc, PyMem_Free
from libc.math cimport INFINITY, NAN

from fractions import Fraction

import numpy as np

from gradclip._cpu.fold cimport Sum, GC_SHIFT, frexpl, clear, norm_of, narrow
from gradclip._cpu.plan cimport gc_fpenv, gc_fp_enter, gc_fp_leave

cdef extern from "kernels.h":
    double GC_TINY


cdef class Sums:
    """What one read pass found: a Sum per leaf and one of all. Index -1 means all leaves."""

    def __cinit__(self, Py_ssize_t count, Py_ssize_t size, int ord, double grad_scale):
        self.count = count
        self.size = size
        self.ord = ord
        self.grad_scale = grad_scale
        self.leaf = <Sum *>PyMem_Malloc(max(self.count, 1) * sizeof(Sum))
        if self.leaf == NULL:
            raise MemoryError
        clear(&self.total)

    def __dealloc__(self):
        PyMem_Free(self.leaf)

    @staticmethod
    def from_exact(total, int ord, double grad_scale, max_abs, Py_ssize_t nans, Py_ssize_t infs, first_nonfinite):
        """Sums of no leaves of their own, whose total was measured elsewhere: the rational `exact()`."""
        cdef Sums sums = Sums(0, 0, ord, grad_scale)
        sums.total.nans, sums.total.infs = nans, infs
        sums.true_max, sums.first_nonfinite = max_abs, first_nonfinite
        sums.total.amax = 1 if total else 0
        if ord == 0:
            sums.total.amax = <long double><double>float(total / 4) * 4     # beyond float64, perhaps
        elif total:
            if not Fraction(GC_TINY) ** ord <= total <= Fraction(2) ** 1000:
                sums.total.bin = 1 if total > 1 else -1
                total /= Fraction(2) ** (GC_SHIFT * ord * sums.total.bin)
            sums.total.high = <double>float(total)
            sums.total.low = <double>float(total - Fraction(<double>sums.total.high))
        return sums

    cdef const Sum *at(self, Py_ssize_t leaf) noexcept:
        return &self.total if leaf < 0 else &self.leaf[leaf]

    cdef double norm_of(self, Py_ssize_t leaf) noexcept:
        """To be called in the standard floating-point state."""
        cdef const Sum *s = self.at(leaf)
        if s.nans + s.infs and not self.finite_only:
            return NAN if s.nans else INFINITY
        return narrow(norm_of(s, self.ord, self.grad_scale))

    def norm(self, Py_ssize_t leaf=-1):
        """Norm of the true gradient, correctly rounded but for some 2**-40 of cases."""
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
        cdef double result = narrow(norm_of(&self.total, 0, self.grad_scale))
        gc_fp_leave(saved)
        return result if self.true_max is None else self.true_max

    cpdef Py_ssize_t nonfinite(self, Py_ssize_t leaf=-1) noexcept:
        """How many elements are NaN or Inf."""
        return self.at(leaf).nans + self.at(leaf).infs

    def outside(self, Py_ssize_t leaf=-1):
        """How many elements lie beyond the bounds that were given."""
        return self.at(leaf).outside

    def exact(self, Py_ssize_t leaf=-1):
        """The sum of squares (magnitudes; the maximum) of the finite stored elements, as the pass
        holds it, in rational arithmetic."""
        cdef const Sum *s = self.at(leaf)
        cdef double a, b, c, d
        cdef int exponent = 0
        if self.ord == 0:
            a = <double>frexpl(s.amax, &exponent)
            return Fraction(a) * Fraction(2) ** exponent
        a, c = <double>s.high, <double>s.low
        b, d = <double>(s.high - a), <double>(s.low - c)
        return (Fraction(a) + Fraction(b) + Fraction(c) + Fraction(d)) * Fraction(2) ** (GC_SHIFT * self.ord * s.bin)
