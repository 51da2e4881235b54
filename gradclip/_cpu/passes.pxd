from gradclip._leaves.leaves cimport Leaves
from gradclip._cpu.sums cimport Sums


cpdef Sums measure(Leaves leaves, double ord, double grad_scale=*, bint finite_only=*, bint norms=*)
