from gradclip._cpu.fold cimport Sum
from gradclip._cpu.scalar cimport gc_measured


cdef class Sums:
    cdef readonly Py_ssize_t count
    cdef double order                   # of the norm; 0 stands for inf
    cdef readonly double grad_scale
    cdef readonly bint finite_only      # whether norms leave NaN and Inf out
    cdef public Py_ssize_t size         # elements
    cdef Sums by_unit                   # what those of owners were added up from,
    cdef readonly object owner          # and the number of the owner of each unit; None: they take turns
    cdef object named                   # (path, flat index) of the first element that is not finite
    cdef public Py_ssize_t first_leaf
    cdef public object first_value      # the element there, where it was seen here
    cdef object true_max                # max_abs, where it was measured elsewhere
    cdef public object exact_total      # (integer, exponent): the sum of all, where the elements were summed exactly; else None
    cdef gc_measured *unit
    cdef gc_measured one                # the room of `unit` where there is one at most
    cdef Sum total

    cdef int start(self, Py_ssize_t count, Py_ssize_t size, double ord, double grad_scale, bint finite_only) except -1
    cdef bint is_finite(self) noexcept
    cdef bint keeps(self, double threshold) noexcept

    cdef double relative_error(self) noexcept
    # of one unit, or of all where the index is ALL
    cdef gc_measured at(self, Py_ssize_t unit) noexcept
    cdef double norm_of(self, Py_ssize_t unit) noexcept
    cdef double largest(self, Py_ssize_t unit)
    cdef Py_ssize_t nonfinite_of(self, Py_ssize_t unit) noexcept


cdef enum:
    ALL = -1

cdef Sums new_sums(Py_ssize_t count, double ord, double grad_scale=*, bint finite_only=*)
cdef double order_of(double ord) noexcept
cdef Py_ssize_t index_of(object unit) except -2
