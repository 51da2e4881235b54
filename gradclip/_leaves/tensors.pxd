cdef bint is_plain_tensor(object node)
cdef object array_of(object tensor, bint write)
