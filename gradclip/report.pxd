cdef class ClipReport:
    cdef object _sums, _max_norm, _size, _norms     # _norms: None where they are those of the sums
    cdef object _plan               # None: every factor is 1
    cdef object _clipped_count      # None: elements were clipped, as many as the sums have outside
    cdef object _groups, _sensitivity
    cdef object _leaves             # what leaves were like; of a pickled report, the rows of its table
    cdef object _fill
    cdef bint _skipped
    cdef bint _elsewhere            # whether another process clips
    cdef ClipReport filled(self)
    cdef int fill(self) except -1
    cdef object rows(self)


cdef ClipReport unclipped(sums, max_norm, Py_ssize_t size, norms)
cdef ClipReport clipped(sums, max_norm, Py_ssize_t size, norms, plan, bint acts)
