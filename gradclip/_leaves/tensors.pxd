from libc.stdint cimport uintptr_t


cdef class DeviceTensor:
    cdef readonly object tensor, dtype
    cdef readonly tuple shape, strides      # strides in bytes
    cdef readonly Py_ssize_t size, itemsize
    cdef readonly uintptr_t ptr
    cdef readonly int device_id
    cdef readonly bint _c_contiguous, _f_contiguous


cdef bint is_plain_tensor(object node)
cdef object array_of(object tensor, bint write)
