from gradclip._cpu.sums cimport Sums
from gradclip._leaves.leaves cimport Leaves


cdef class Request:
    cdef public object options, threshold, shown, mode, lr, share, norms, owner, counted, found
    cdef public Leaves to
    cdef public bint fresh, by_owner, elsewhere, skips, partial
    cdef readonly bint shared
    cdef int ask(self, options, threshold, shown, mode) except -1
    cpdef Leaves prepare(self, Leaves leaves)
    cpdef Leaves target(self, Leaves leaves, out)
    cdef decide_for_all(self, Sums sums)
    cdef bint is_left_out(self, sums) except -1
    cpdef decide(self, engine, Leaves read)
    cpdef measure(self, engine, Leaves read)
    cpdef write(self, engine, plan)
