from gradclip._leaves.layout cimport gc_leaf

cdef enum:
    FEW = 3             # leaves for which there is room in the object itself
    FEW_WORDS = 12      # and words about their shapes


cdef class Units:
    cdef readonly Py_ssize_t count      # of leaves
    cdef readonly Py_ssize_t units      # what has a norm of its own: the leaves, until they are cut
    cdef gc_leaf *leaf                  # what a write pass writes, and a read pass reads
    cdef gc_leaf *source                # what a write pass reads, in the walking order of `leaf`; NULL: `leaf`
    cdef readonly list arrays           # the NumPy views (CuPy arrays) behind `leaf`
    cdef readonly Py_ssize_t on_device  # how many leaves lie in the memory of a GPU
    cdef Py_ssize_t _capacity
    cdef gc_leaf few[FEW]
    cdef Py_ssize_t *_shapes            # of each leaf: 256 * dimensions + its dtype, and the length of each; NULL: not noted
    cdef Py_ssize_t _few_words[FEW_WORDS]
    cdef list _unit_axes                # of each leaf, once they are cut
    cdef dict _there                    # index -> shape of each leaf on a GPU, and
    cdef dict _turned                   # index -> strides of each that is not in C order; None: there are none on a GPU
    cdef Units _pair                    # keeps the arrays behind `source` alive

    cpdef str path(self, Py_ssize_t index)
    cdef void free_tables(self) noexcept
    cdef int reserve(self, Py_ssize_t more) except -1
    cdef int append(self, object array) except -1
    cdef int make_room_for_sources(self) except -1
    cdef int pair(self, Units to) except -1
    cdef int note_there(self, tuple shape, tuple strides) except -1
    cdef tuple shape_of(self, Py_ssize_t i)
    cdef bint is_in_c_order(self, Py_ssize_t i)
    cdef bint lies_like(self, Py_ssize_t i, Units other)
    cdef int check_dtype(self, Py_ssize_t i, bint same) except -1
