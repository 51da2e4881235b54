from libc.stddef cimport ptrdiff_t

from gradclip._leaves cimport Leaves, gc_leaf
from gradclip._cpu.fold cimport Sum, Factor


cdef enum Kind:
    KEEP, SCALE, CLAMP


cdef struct Write:
    Kind kind
    bint zero           # first bring elements that are not finite to 0
    Factor factor       # of SCALE
    double low[4]       # of CLAMP: the bounds, rounded to each dtype
    double high[4]


cdef class Plan:
    cdef readonly Py_ssize_t count
    cdef Write *write


cdef class Sums:
    cdef readonly Py_ssize_t count
    cdef readonly int ord               # 1 or 2; 0 stands for inf
    cdef readonly double grad_scale
    cdef readonly Py_ssize_t size       # elements
    cdef readonly object first_nonfinite    # (path, flat index)
    cdef readonly object first_value        # the element there, where it was seen here
    cdef object true_max                    # max_abs, where it was measured elsewhere
    cdef public bint finite_only        # whether norms leave NaN and Inf out
    cdef Sum *leaf
    cdef Sum total
    cdef const Sum *at(self, Py_ssize_t leaf) noexcept
    cdef double norm_of(self, Py_ssize_t leaf) noexcept
    cpdef bint above(self, Py_ssize_t leaf, double threshold)
