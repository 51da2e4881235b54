from gradclip._leaves.layout cimport gc_leaf
from gradclip._leaves.tree cimport Tree
from gradclip._leaves.units cimport Units

cdef class Leaves(Units):
    cdef object _nesting                # as it was given
    cdef list _keys                     # of a flat dict
    cdef public object measured         # the Sums by leaf, if the report's are others; False: there are none
    cdef Tree _walked                   # where these leaves stand; None: to be made of a flat nesting
    cdef readonly str name              # "grads", "out", ...: stands in messages
    cdef public object tables           # what the GPU engine made of them
    cdef dict _streams                   # device -> where this call works there
    cdef readonly bint in_torch_stream  # whether one, or what they are made from, is a CUDA tensor of PyTorch's
    cdef list _given                    # the leaves as they were given: arrays, or what has the memory of `arrays`
    cdef dict _foreign                  # index -> of those that are no arrays, what a result is made like; None: all are
    cdef list _replaced                 # of sparse leaves that are written as copies: see `foreign.replaced`
    cdef bint write                     # whether the leaves are going to be written

    cdef int note_shapes(self) except -1
    cdef int make_room_for_shapes(self, Py_ssize_t used, Py_ssize_t room) except -1
    cdef void release(self) noexcept
    cdef int take(self, list given, bint anew) except -1
    cdef int take_unusual(self, object given, bint anew) except -1
    cdef int take_from_device(self, object array) except -1
    cdef object take_foreign(self, object given, bint anew)
    cdef int remember(self, object original) except -1
    cdef int sum_duplicates(self) except -1
    cdef int check_apart(self, Leaves others, bint same_view) except -1
    cdef Tree walked(self)
    cdef object new(self, Py_ssize_t i, shape=*)
    cdef int make_there(self, list made, gc_leaf *to, int device) except -1
    cdef object plain(self, Py_ssize_t i)
    cdef bint has_tensors(self)
    cpdef written(self)
    cpdef check_count(self, Py_ssize_t found)
