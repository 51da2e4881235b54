from libc.stddef cimport ptrdiff_t

from gradclip._cpu.plan cimport Write
from gradclip._layout cimport gc_leaf

cdef const char *fetch(const gc_leaf *leaf, ptrdiff_t first, ptrdiff_t n, char *buffer) noexcept nogil
cdef void alter(const Write *w, int dtype, char *y, const gc_leaf *leaf, const char *x, ptrdiff_t n, char *spare) noexcept nogil
