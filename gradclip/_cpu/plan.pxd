from gradclip._cpu.fold cimport Factor

cdef extern from "fpenv.h" nogil:
    ctypedef struct gc_fpenv:
        pass
    gc_fpenv gc_fp_enter()
    void gc_fp_leave(gc_fpenv saved)


cdef enum Kind:
    KEEP, SCALE, CLAMP, STEP


cdef struct Write:
    Kind kind
    bint acts           # whether the unit is brought to its goal
    bint zero           # first bring elements that are not finite to 0
    Factor factor       # of SCALE
    double low[4]       # of CLAMP: the bounds, rounded to each dtype
    double high[4]


cdef class Plan:
    cdef readonly Py_ssize_t count
    cdef Write *write
