from gradclip._leaves.layout cimport gc_leaf


cdef object find_overlap(const gc_leaf *leaf, list written, const gc_leaf *other, list read, bint same)
