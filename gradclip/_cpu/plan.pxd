from gradclip._cpu.scalar cimport gc_factor
from gradclip._cpu.sums cimport Sums

cdef extern from "write.h" nogil:
    ctypedef struct Write "gc_write":
        int kind
        bint clips
        bint zero
        gc_factor factor
        double low[4]
        double high[4]


cdef class Plan:
    cdef readonly Py_ssize_t count
    cdef Write *write
    cdef public Sums found      # of a plan that clamps: what the write pass is to measure as it goes; None: nothing
    cdef object alone           # a bool for each unit, whether it is a padded sample, which has no factor; None: there are none

    cpdef clamp(self, Py_ssize_t i, double low, double high)


cdef Plan plan_of_all(Sums sums, double threshold, double eps)
