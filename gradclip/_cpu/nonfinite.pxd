from libc.stddef cimport ptrdiff_t

from gradclip._leaves.leaves cimport Leaves
from gradclip._cpu.sums cimport Sums


cdef object find_nonfinite(Sums sums, Leaves leaves)
cdef ptrdiff_t first_of(Sums sums, Leaves leaves, char *room, bint asks) except -2
