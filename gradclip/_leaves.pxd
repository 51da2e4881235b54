cimport numpy as cnp

from gradclip._layout cimport gc_leaf


cdef class Leaves:
    cdef readonly Py_ssize_t count
    cdef readonly Py_ssize_t units  # what has a norm of its own: the leaves, until they are cut
    cdef gc_leaf *leaf              # what a write pass writes, and a read pass reads
    cdef gc_leaf *source            # what a write pass reads, in the walking order of `leaf`
    cdef readonly list arrays       # the NumPy views (CuPy arrays) behind `leaf`, None leaves left out
    cdef readonly Py_ssize_t on_device  # how many leaves lie in the memory of a GPU
    cdef public object tables       # what the GPU engine made of them
    cdef dict _places               # device -> where this call works there
    cdef readonly bint in_torch_stream  # whether one, or what they are made from, is a CUDA tensor of PyTorch's
    cdef readonly object tree       # the nesting as it was given
    cdef readonly str name          # "grads", "out", ...: stands in paths and messages
    cdef dict _materialised         # id(container) -> (it, list of what it yielded), of those that are not lists, tuples and dicts
    cdef dict _foreign              # index -> (leaf as given, the object whose memory is in `arrays`)
    cdef list _replaced             # of sparse leaves that are written as copies: see `_foreign.replaced`
    cdef Py_ssize_t _capacity
    cdef list _unit_axes            # of each leaf, once they are cut
    cdef Leaves _named              # whose paths the first leaves have
    cdef Leaves _pair               # keeps the arrays behind `source` alive
    cdef bint write                 # whether the leaves are going to be written
    cdef bint anew                  # whether another such nesting is going to be made

    cdef int reserve(self, Py_ssize_t more) except -1
    cdef bint take(self, object node, bint write) noexcept
    cdef int keep(self, gc_leaf *leaf, object array) except -1
    cdef int add(self, object node, bint write) except -1
    cdef cnp.ndarray admit(self, object node, bint write, Py_ssize_t index)
    cdef int sum_duplicates(self, bint write) except -1
    cpdef written(self)
    cdef int add_device(self, object array, bint write) except -1
    cdef int walk(self, object node, bint write, int depth) except -1
    cdef object children(self, object node, str name=*)
    cdef object rebuilt(self, object node, list arrays, Py_ssize_t *position)
    cpdef check_count(self, Py_ssize_t found)
    cdef int pair(self, Leaves to) except -1
