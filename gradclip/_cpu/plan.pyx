# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Plan: what a write pass is to do to each leaf; and the floating-point state in which it is decided."""
from cpython.mem cimport PyMem_Calloc, PyMem_Free

from gradclip._cpu.fold cimport Factor, Wide, norm_of, factor_of
from gradclip._cpu.sums cimport Sums


cdef class StandardState:
    """The floating-point state of the passes for a stretch of Python arithmetic: a ``with`` block."""
    cdef gc_fpenv saved

    def __enter__(self):
        self.saved = gc_fp_enter()

    def __exit__(self, *exception):
        gc_fp_leave(self.saved)


cdef class Plan:
    """What a write pass does to each leaf (`count` 1: the same to every leaf); at first, nothing."""

    def __cinit__(self, Py_ssize_t count):
        cdef Py_ssize_t i
        self.count = count
        self.write = <Write *>PyMem_Calloc(max(count, 1), sizeof(Write))
        if self.write == NULL:
            raise MemoryError
        for i in range(count):
            self.write[i].factor.value = self.write[i].factor.last = 1

    def __dealloc__(self):
        PyMem_Free(self.write)

    def multiply(self, Py_ssize_t i, double value):
        """Multiply by a plain number."""
        self.write[i].kind = Kind.SCALE
        self.write[i].factor = Factor(value, value, 0)

    def divide(self, Py_ssize_t i, double divisor):
        """Multiply by 1 / divisor, whose value may lie outside float64."""
        cdef gc_fpenv saved = gc_fp_enter()
        self.write[i].kind = Kind.SCALE
        self.write[i].factor = factor_of(1, Wide(1, 0, 0), 0, divisor)
        gc_fp_leave(saved)

    def keep(self, Py_ssize_t i):
        """Leave as it is."""
        self.write[i].kind = Kind.KEEP

    def bring_to(self, Py_ssize_t i, Sums sums, Py_ssize_t leaf, double target, double eps):
        """Multiply by target / (norm + eps) / grad_scale, the norm being that of `leaf` (-1: all)."""
        cdef gc_fpenv saved = gc_fp_enter()
        self.write[i].kind = Kind.SCALE
        self.write[i].factor = factor_of(target, norm_of(sums.at(leaf), sums.ord, sums.grad_scale), eps, sums.grad_scale)
        gc_fp_leave(saved)

    def shrink(self, Py_ssize_t i, double ratio):
        """Multiply the factor by something below 1."""
        cdef gc_fpenv saved = gc_fp_enter()
        self.write[i].factor.value *= ratio
        self.write[i].factor.last *= ratio
        gc_fp_leave(saved)

    def zero_nonfinite(self, Py_ssize_t i):
        """Bring elements that are not finite to 0."""
        self.write[i].zero = True

    def clamp(self, Py_ssize_t i, low, high):
        """Bring elements into [low, high]: four bounds each, one per kernel dtype."""
        cdef int t
        self.write[i].kind = Kind.CLAMP
        for t in range(4):
            self.write[i].low[t], self.write[i].high[t] = low[t], high[t]

    def spread(self, Py_ssize_t count):
        """The same for each of `count` leaves, to be changed one by one."""
        cdef Plan plan = Plan(count)
        cdef Py_ssize_t i
        for i in range(count):
            plan.write[i] = self.write[0]
        return plan

    def factor(self, Py_ssize_t i=0):
        """The factor as float64."""
        return self.write[i].factor.value

    def idle(self):
        """Whether the plan changes nothing at all."""
        cdef Py_ssize_t i
        for i in range(self.count):
            if self.write[i].kind != Kind.KEEP or self.write[i].zero:
                return False
        return True
