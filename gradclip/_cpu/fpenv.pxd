"""The floating-point state of the passes (kernels/fpenv.h), as Cython sees it."""

cdef extern from "fpenv.h" nogil:
    ctypedef struct gc_fpenv:
        pass
    gc_fpenv gc_fp_enter()
    void gc_fp_leave(gc_fpenv saved)
