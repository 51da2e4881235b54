from gradclip._cpu.scalar cimport gc_factor

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
