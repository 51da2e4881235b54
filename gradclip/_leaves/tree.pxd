cdef class Node:
    cdef object container       # as it was given
    cdef object kind            # how such a container is opened and made: of `containers`; None: a plain list, tuple or dict
    cdef list items             # what it held: leaves, None, and a Node for each container
    cdef list keys              # of its items; None: by number


cdef class Sought:
    cdef str name               # of the other nesting
    cdef bint spare             # it may have something where the tree has None
    cdef bint write             # its leaves are going to be written
    cdef list found             # what stands in the places of the leaves, in order


cdef class Tree:
    cdef readonly object nesting    # as it was given
    cdef readonly str name          # "grads", "params", ...: stands in paths and messages
    cdef readonly list leaves       # as they were given, in order, None left out
    cdef Py_ssize_t count           # of leaves, once these have been let go of
    cdef object error               # what ended the walk early, or None
    cdef object root                # a Node, a lone leaf, or None
    cdef bint write                 # whether leaves are going to be written
    cdef bint anew                  # whether `rebuild` is going to make another such nesting
    cdef dict opened_once           # id(container) -> (it, its items, their keys), of those that may give others the next time

    cdef int walk(self, object nesting, str name, bint write, bint anew) except -1
    cdef int enter(self, Node node, int depth) except -1
    cdef int open(self, Node node, tuple parts) except -1
    cdef int check_unchanged(self, Node node) except -1
    cdef int match_item(self, object mine, object other, tuple parts, Sought sought) except -1
    cdef int open_other(self, Node node, tuple parts, Sought sought) except -1
    cdef int match_by_number(self, Node mine, Node theirs, tuple parts, Sought sought) except -1
    cdef int match_by_key(self, Node mine, Node theirs, tuple parts, Sought sought) except -1
    cdef str joined(self, tuple parts)
    cdef void release(self) noexcept
    cdef Py_ssize_t size(self) noexcept
    cdef object made_anew(self, object item, list leaves, Py_ssize_t *position)


cdef bint is_cupy(object node)
cdef list flat_leaves(object nesting)
cdef Tree flat_tree(object nesting, list leaves, list keys, str name)


cdef int frames_of_gradclip() except -1
