from libc.stddef cimport ptrdiff_t

from gradclip._leaves.leaves cimport Leaves
from gradclip._cpu.plan cimport Plan
from gradclip._cpu.sums cimport Sums


cdef class Clamped(Sums):
    cdef Leaves unnamed         # the leaves that have a first element that is not finite, until it is named
    cdef ptrdiff_t first_index

    cdef int name_first(self) except -1


cdef int clamp(Leaves to, Plan plan) except -1
