from gradclip._cpu.sums cimport Sums
from gradclip._leaves.leaves cimport Leaves


cpdef settle(Sums sums, Leaves leaves, Py_ssize_t first=*, bint total=*)
cdef void take_for_middles(Sums sums) noexcept
