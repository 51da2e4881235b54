# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Which arrays share memory. Exact, and fast for leaves that lie apart and for leaves that interleave, like the columns of
some matrices: what neither addresses nor their remainders tell apart is compared pair by pair."""
from cpython.list cimport PyList_GET_ITEM
from cpython.mem cimport PyMem_Malloc, PyMem_Free
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy

from math import gcd

import numpy as np
cimport numpy as cnp

from .foreign import addressed

from gradclip._leaves.layout cimport gc_leaf

cnp.import_array()

cdef enum:
    NEAR = 64       # bytes that allocators leave between arrays made one after the other, at most

cdef struct Extent:
    uintptr_t low, high
    ptrdiff_t index
    ptrdiff_t count     # of leaves that lie side by side in memory, `index` being the first of them,
    ptrdiff_t step      # upwards (1) or downwards (-1)


def overlaps_itself(cnp.ndarray a):
    """Whether two indices of one array share memory. Nested strides cannot; what is not nested is
    enumerated, which only as_strided makes necessary."""
    cdef ptrdiff_t reach = cnp.PyArray_ITEMSIZE(a)
    cdef bint nested = True
    for stride, n in sorted([(abs(s), n) for s, n in zip((<object>a).strides, (<object>a).shape) if n > 1]):
        if stride == 0:
            return True
        nested = nested and stride >= reach
        reach += stride * (n - 1)
    if nested:
        return False
    if (<object>a).nbytes > reach:
        return True
    starts = np.zeros(1, np.intp)
    for stride, n in zip((<object>a).strides, (<object>a).shape):
        starts = (starts[:, None] + np.arange(n) * stride).ravel()
    starts.sort()
    return bool((np.diff(starts) < (<object>a).itemsize).any())


cdef ptrdiff_t common_stride(cnp.ndarray a, ptrdiff_t g) noexcept:
    """The greatest common divisor of g and the strides of an array."""
    cdef ptrdiff_t x
    cdef int d
    for d in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIM(a, d) > 1:
            x = abs(cnp.PyArray_STRIDE(a, d))
            while x:
                x, g = g % x, x
    return g


cdef Py_ssize_t pairs = 0


def pairs_compared():
    """How many pairs of arrays were compared one by one so far: few, whatever the leaves are."""
    return pairs


cdef bint share_memory(cnp.ndarray a, cnp.ndarray b):
    """Exact; by the greatest common stride first, which settles interleaved views at once."""
    cdef ptrdiff_t g = common_stride(b, common_stride(a, 0)), size = cnp.PyArray_ITEMSIZE(a)
    cdef ptrdiff_t offset = <char *>cnp.PyArray_DATA(b) - <char *>cnp.PyArray_DATA(a)
    global pairs
    pairs += 1
    if g:
        offset = (offset % g + g) % g
        if offset >= size and offset <= g - cnp.PyArray_ITEMSIZE(b):
            return False
    return np.shares_memory(a, b)


cdef Extent extent_of(cnp.ndarray a, ptrdiff_t index) noexcept:
    """The bytes between the first and the last element, both included; none of an empty array."""
    cdef Extent e
    cdef ptrdiff_t reach
    cdef int d
    e.index, e.count, e.step = index, 1, 1
    e.low = e.high = <uintptr_t>cnp.PyArray_DATA(a)
    for d in range(cnp.PyArray_NDIM(a)):
        reach = cnp.PyArray_STRIDE(a, d) * (cnp.PyArray_DIM(a, d) - 1)
        if cnp.PyArray_DIM(a, d) == 0:
            e.high = e.low
            return e
        if reach < 0:
            e.low += <uintptr_t>reach
        else:
            e.high += <uintptr_t>reach
    e.high += <uintptr_t>cnp.PyArray_ITEMSIZE(a)
    return e


cdef Py_ssize_t end_of_run(const Extent *x, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    i += 1
    while i < n and x[i].low >= x[i - 1].low:
        i += 1
    return min(i, n)


cdef Py_ssize_t merge_runs(const Extent *x, Extent *y, Py_ssize_t n) noexcept nogil:
    """Each two neighbouring runs of x to one in y; returns how many are left."""
    cdef Py_ssize_t i = 0, j, k, middle, end, runs = 0
    while i < n:
        middle = end_of_run(x, i, n)
        end = end_of_run(x, middle, n) if middle < n else n
        j, k = i, middle
        while i < end:
            if k == end or (j < middle and x[j].low <= x[k].low):
                y[i] = x[j]
                j += 1
            else:
                y[i] = x[k]
                k += 1
            i += 1
        runs += 1
    return runs


cdef int sort(Extent *extent, Py_ssize_t n) except -1:
    """By low. A natural merge sort: allocators hand out addresses mostly upwards, so runs are long."""
    cdef Extent *x = extent
    cdef Extent *y
    cdef Extent *buffer
    cdef Py_ssize_t i
    if n > 1 and x[n - 1].low < x[0].low:       # as a backward pass makes them, the last layer first
        for i in range(n // 2):
            x[i], x[n - 1 - i] = x[n - 1 - i], x[i]
    if end_of_run(extent, 0, n) == n:
        return 0
    y = buffer = <Extent *>PyMem_Malloc(n * sizeof(Extent))
    if buffer == NULL:
        raise MemoryError
    while merge_runs(x, y, n) > 1:
        x, y = y, x
    if y != extent:
        memcpy(extent, y, n * sizeof(Extent))
    PyMem_Free(buffer)
    return 0


cdef Py_ssize_t join_neighbours(const gc_leaf *leaf, Py_ssize_t n, Extent *extent) noexcept nogil:
    """Extents of leaves, those that follow one another in memory as one; how many, or 0 where a leaf is not contiguous."""
    cdef bint follows
    cdef Py_ssize_t i, runs = 0
    cdef uintptr_t low, high
    cdef Extent *last = NULL
    for i in range(n):
        if leaf[i].ndim or leaf[i].units != 1:
            return 0
        low = <uintptr_t>leaf[i].data
        high = low + <uintptr_t>(leaf[i].size * leaf[i].itemsize)
        if high == low:
            continue
        follows = runs != 0 and last.index + last.count == i
        if follows and low >= last.high and low - last.high <= NEAR and (last.count == 1 or last.step == 1):
            last.high, last.step = high, 1
            last.count += 1
        elif follows and high <= last.low and last.low - high <= NEAR and (last.count == 1 or last.step == -1):
            last.low, last.step = low, -1
            last.count += 1
        else:
            last = &extent[runs]
            last[0] = Extent(low, high, i, 1, 1)
            runs += 1
    return runs


cdef bint in_a_gap(const gc_leaf *leaf, const Extent *outer, const Extent *inner) noexcept nogil:
    """Whether an extent lies between two leaves of another that begins below it."""
    cdef Py_ssize_t i = 0, end = outer.count, middle, step = outer.step
    if step < 0:
        leaf += outer.count - 1
    leaf += outer.index     # the lowest
    while end - i > 1:
        middle = (i + end) // 2
        if <uintptr_t>leaf[middle * step].data <= inner.low:
            i = middle
        else:
            end = middle
    leaf += i * step
    if inner.low < <uintptr_t>leaf.data + <uintptr_t>(leaf.size * leaf.itemsize):
        return False
    return i + 1 < outer.count and inner.high <= <uintptr_t>leaf[step].data


cdef int side_by_side(const gc_leaf *leaf, Py_ssize_t n, Extent *extent) except -1:
    """Whether leaves lie apart in the way that allocators arrange them: one after the other, some in holes between
    earlier ones. Few extents are left to sort then. False: not known."""
    cdef Py_ssize_t i, outer = 0, runs = join_neighbours(leaf, n, extent)
    sort(extent, runs)
    for i in range(1, runs):
        if extent[i].low >= extent[outer].high:
            outer = i
        elif (i - 1 > outer and extent[i].low < extent[i - 1].high) or not in_a_gap(leaf, &extent[outer], &extent[i]):
            return False
    return runs > 0


cdef Extent remainder_of(cnp.ndarray a, ptrdiff_t index, uintptr_t modulus) noexcept:
    """The bytes from the first to the last element, both included, as remainders of their addresses; strides that are
    multiples of the modulus do not move them. `high` may lie beyond the modulus."""
    cdef Extent e = extent_of(a, index)
    cdef uintptr_t stride
    cdef int d
    e.low %= modulus
    e.high = e.low + <uintptr_t>cnp.PyArray_ITEMSIZE(a)
    for d in range(cnp.PyArray_NDIM(a)):
        stride = <uintptr_t>abs(cnp.PyArray_STRIDE(a, d))
        if stride % modulus:
            e.high += stride * <uintptr_t>(cnp.PyArray_DIM(a, d) - 1)
    return e


cdef bint unroll(Extent *extent, Py_ssize_t n, uintptr_t modulus) except -1:
    """Remainders lie on a circle: let sorted ones begin behind a gap, so that none goes around. False: there is no gap."""
    cdef Extent *buffer
    cdef uintptr_t reach = 0
    cdef Py_ssize_t i, first = 0
    for i in range(n):
        reach = max(reach, extent[i].high)
    reach = reach - modulus if reach > modulus else 0   # what lies below this is met from the other end
    while first < n and extent[first].low < reach:
        reach = max(reach, extent[first].high)
        first += 1
    if first == 0 or first == n:
        return first == 0
    buffer = <Extent *>PyMem_Malloc(first * sizeof(Extent))
    if buffer == NULL:
        raise MemoryError
    memcpy(buffer, extent, first * sizeof(Extent))
    for i in range(first, n):
        extent[i - first] = extent[i]
    for i in range(first):
        extent[n - first + i] = buffer[i]
        extent[n - first + i].low += modulus
        extent[n - first + i].high += modulus
    PyMem_Free(buffer)
    return True


cdef list moduli_of(list arrays, const Extent *extent, Py_ssize_t n):
    """What the longest strides have as common divisors: of more and more of them, so that each divides the one before."""
    cdef Py_ssize_t i
    cdef int d
    cdef cnp.ndarray a
    cdef set strides = set()
    cdef list moduli = []
    for i in range(n):
        a = <cnp.ndarray>PyList_GET_ITEM(arrays, extent[i].index)
        for d in range(cnp.PyArray_NDIM(a)):
            if cnp.PyArray_DIM(a, d) > 1 and cnp.PyArray_STRIDE(a, d):
                strides.add(abs(cnp.PyArray_STRIDE(a, d)))
    divisor = last = 0
    for stride in sorted(strides, reverse=True):
        divisor = gcd(divisor, stride)
        if divisor != last:
            moduli.append(divisor)
        last = divisor
    return moduli


cdef bint same_view(cnp.ndarray a, cnp.ndarray b):
    cdef int d
    for d in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIM(a, d) > 1 and cnp.PyArray_STRIDE(a, d) != cnp.PyArray_STRIDE(b, d):
            return False
    return cnp.PyArray_DATA(a) == cnp.PyArray_DATA(b)


cdef object first_pair(list arrays, Py_ssize_t count, bint same, Extent *extent, Py_ssize_t n):
    """Two of some arrays that share an element, the first of them written, or None: pair by pair."""
    cdef Py_ssize_t i, j, a, b
    for i in range(n):
        extent[i] = extent_of(<cnp.ndarray>PyList_GET_ITEM(arrays, extent[i].index), extent[i].index)
    sort(extent, n)
    for i in range(n):
        j = i + 1
        while j < n and extent[j].low < extent[i].high:
            a, b = min(extent[i].index, extent[j].index), max(extent[i].index, extent[j].index)
            j += 1
            if a >= count or not share_memory(arrays[a], arrays[b]):
                continue
            if not (same and b == count + a and same_view(arrays[a], arrays[b])):
                return a, b
    return None


cdef object search(list arrays, Py_ssize_t count, bint same, Extent *extent, Py_ssize_t n, list moduli, Py_ssize_t level):
    """The same, after they were told apart by addresses (level 0) and then by their remainders: arrays of which one
    ends before the next begins share nothing, and a group that nothing ties to another is searched alone."""
    cdef Py_ssize_t i, start = 0
    cdef uintptr_t end, modulus = 0
    cdef bint written = False
    for i in range(n):
        written = written or extent[i].index < count
    if n < 2 or not written:
        return None
    if level == 1:
        moduli = moduli_of(arrays, extent, n)
    if level > len(moduli):
        return first_pair(arrays, count, same, extent, n)
    if level:
        modulus = moduli[level - 1]
        for i in range(n):
            extent[i] = remainder_of(<cnp.ndarray>PyList_GET_ITEM(arrays, extent[i].index), extent[i].index, modulus)
    sort(extent, n)
    if level and not unroll(extent, n, modulus):
        return search(arrays, count, same, extent, n, moduli, level + 1)
    end = extent[0].high
    for i in range(1, n + 1):
        if i < n and extent[i].low < end:
            end = max(end, extent[i].high)
            continue
        found = search(arrays, count, same, extent + start, i - start, moduli, level + 1)
        if found is not None:
            return found
        if i < n:
            start, end = i, extent[i].high
    return None


cdef bint put_extents(const gc_leaf *leaf, Py_ssize_t n, Py_ssize_t first, Extent *extent) noexcept nogil:
    """Extents of contiguous leaves, numbered from `first` on, empty ones at no address; False where one is not contiguous."""
    cdef Py_ssize_t i
    for i in range(n):
        if leaf[i].ndim or leaf[i].units != 1:
            return False
        extent[i].low = extent[i].high = 0
        if leaf[i].size:
            extent[i].low = <uintptr_t>leaf[i].data
            extent[i].high = extent[i].low + <uintptr_t>(leaf[i].size * leaf[i].itemsize)
        extent[i].index = first + i
    return True


cdef bint apart(const gc_leaf *leaf, Py_ssize_t n, const gc_leaf *other, Py_ssize_t m, Extent *extent) except -1:
    """Whether the leaves of two nestings certainly lie apart. False: not known."""
    cdef Py_ssize_t i
    cdef uintptr_t end = 0
    if not put_extents(leaf, n, 0, extent) or not put_extents(other, m, n, extent + n):
        return False
    sort(extent, n + m)
    for i in range(n + m):
        if extent[i].low < end:
            return False
        end = max(end, extent[i].high)
    return True


cdef bint put_hull(const gc_leaf *leaf, Py_ssize_t n, Extent *hull) noexcept nogil:
    """The bytes from the first to the last of contiguous leaves; False where one is not contiguous."""
    cdef Py_ssize_t i
    cdef uintptr_t low, high
    hull.low, hull.high = <uintptr_t>-1, 0
    for i in range(n):
        if leaf[i].ndim or leaf[i].units != 1:
            return False
        if leaf[i].size:
            low = <uintptr_t>leaf[i].data
            high = low + <uintptr_t>(leaf[i].size * leaf[i].itemsize)
            hull.low, hull.high = min(hull.low, low), max(hull.high, high)
    return True


cdef bint lie_beside(const gc_leaf *leaf, Py_ssize_t n, const gc_leaf *other, Py_ssize_t m) noexcept nogil:
    """Whether all leaves of one nesting end before those of the other begin, as where each was allocated in one go. False: not
    known."""
    cdef Extent mine, theirs
    if not put_hull(leaf, n, &mine) or not put_hull(other, m, &theirs):
        return False
    return mine.high <= theirs.low or theirs.high <= mine.low


cdef object find_overlap(const gc_leaf *leaf, list written, const gc_leaf *other, list read, bint same):
    """The indices of two arrays, the first of them written (and described by `leaf`), that share an element; or None.

    Arrays that are read (described by `other`) count on from the written ones. The i-th of each may be the `same` view."""
    cdef list arrays = written + read if read else written
    cdef Py_ssize_t i, n = 0, count = len(written)
    cdef Extent *extent
    if len(arrays) < 2:
        return None
    extent = <Extent *>PyMem_Malloc(len(arrays) * sizeof(Extent))
    if extent == NULL:
        raise MemoryError
    try:
        if side_by_side(leaf, count, extent) if not read else apart(leaf, count, other, len(read), extent):
            return None
        arrays = list(map(addressed, arrays))
        for i in range(len(arrays)):
            extent[n] = extent_of(<cnp.ndarray>PyList_GET_ITEM(arrays, i), i)
            n += extent[n].high > extent[n].low
        return search(arrays, count, same, extent, n, [], 0)
    finally:
        PyMem_Free(extent)
