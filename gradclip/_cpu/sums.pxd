from gradclip._cpu.fold cimport Sum
from gradclip._cpu.scalar cimport gc_measured


cdef class Sums:
    cdef readonly Py_ssize_t count
    cdef readonly double ord            # 0 stands for inf
    cdef readonly double grad_scale
    cdef public Py_ssize_t size         # elements
    cdef readonly Sums units            # by unit, where these are by owner
    cdef public object first_nonfinite      # (path, flat index)
    cdef public Py_ssize_t first_leaf
    cdef public object first_value        # the element there, where it was seen here
    cdef object true_max                    # max_abs, where it was measured elsewhere
    cdef public bint finite_only        # whether norms leave NaN and Inf out
    cdef gc_measured *unit
    cdef Sum total
    cdef gc_measured at(self, Py_ssize_t leaf) noexcept
    cdef double norm_of(self, Py_ssize_t leaf) noexcept
    cdef double largest(self, Py_ssize_t leaf)
    cpdef bint shows_nonfinite(self, Py_ssize_t leaf=*) noexcept
    cpdef Py_ssize_t nonfinite(self, Py_ssize_t leaf=*) noexcept
