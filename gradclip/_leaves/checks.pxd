cimport numpy as cnp

from gradclip._leaves.layout cimport gc_leaf


cdef Py_ssize_t describe_usual(gc_leaf *leaf, list given, Py_ssize_t first, bint write) noexcept
cdef cnp.ndarray describe(gc_leaf *leaf, object given, bint write)
cdef int describe_on_device(gc_leaf *leaf, object array, bint write, tuple shape, tuple strides) except -1
