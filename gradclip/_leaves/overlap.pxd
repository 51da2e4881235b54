from gradclip._leaves.layout cimport gc_leaf


cdef object find_overlap(const gc_leaf *leaf, list written, const gc_leaf *other, list read, bint same)
cdef bint lie_beside(const gc_leaf *leaf, Py_ssize_t n, const gc_leaf *other, Py_ssize_t m) noexcept nogil
