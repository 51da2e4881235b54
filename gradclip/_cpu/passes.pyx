# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The two passes: `measure` reads every leaf once, `write` changes them once, if at all.

Why they look like this:

* Work is cut by position alone: 4096 elements a block, 16 blocks a segment. A group is a segment of a long leaf or
  as many short leaves as fill one. Groups run in any order on any thread, each into its own Sum, and Sums
  are folded in order afterwards. So neither the number of threads nor their timing can reach a result.
* All groups form one list for one parallel region; a short list is walked without entering OpenMP at all.
* A kernel sees only contiguous, aligned memory. Whatever is strided, not finite, out of range or
  measured as if already written goes through a buffer of one block, in L1.
* The write pass takes the groups backwards: the end of what was read is what the cache still holds.
  Within a group it runs forwards, as prefetchers want it.
* Every chunk of work enters the standard floating-point state and leaves the caller's (fpenv.h).
"""
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Malloc, PyMem_Free
from cython.parallel cimport prange
from libc.math cimport isfinite, ldexp
from libc.stddef cimport ptrdiff_t
from libc.string cimport memmove

from gradclip._leaves cimport Leaves, gc_leaf, gc_move, lay_out
from gradclip._cpu.fold cimport Sum, GC_SHIFT, clear, fold, merge
from gradclip._cpu.machine cimport gc_bound, gc_sum, kernels, team_size, GC_F64, GC_TINY, GC_HUGE
from gradclip._cpu.plan cimport Kind, Plan, Write, gc_fpenv, gc_fp_enter, gc_fp_leave
from gradclip._cpu.sums cimport Sums

cdef extern from "pairs.h" nogil:
    long double gc_pair_amax(const void *x, ptrdiff_t n, int dtype, long double largest)
    void gc_pair_abs(double *y, const void *x, ptrdiff_t n, int dtype)
    void gc_pair_zero(void *x, ptrdiff_t n, int dtype, ptrdiff_t *nans, ptrdiff_t *infs)

cdef enum:
    BLOCK = 4096            # GC_BLOCK
    GROUP = 16 * BLOCK
    PROBE = 64              # elements that guess for a segment
    SETUP = 256             # elements that take as long as starting with a leaf


# ---- blocks: what one thread does ---------------------------------------------------------------

cdef inline const char *fetch(const gc_leaf *leaf, ptrdiff_t first, ptrdiff_t n, char *buffer) noexcept nogil:
    """Elements first .. first + n, contiguous: in place, or gathered into the buffer."""
    if leaf.ndim == 0:
        return leaf.data + first * leaf.itemsize
    gc_move(leaf, first, n, buffer, 0)
    return buffer


cdef void alter(const Write *w, const gc_leaf *leaf, char *y, const char *x, ptrdiff_t n) noexcept nogil:
    """y = what the plan makes of x (contiguous; y may be x)."""
    cdef int t = leaf.dtype
    cdef int half
    cdef ptrdiff_t ignored = 0
    if w.zero:
        if leaf.is_complex:
            memmove(y, x, n * leaf.itemsize)
            gc_pair_zero(y, n, t, &ignored, &ignored)
        else:
            kernels.zero_nonfinite[t](y, x, n)
        x = y
    if w.kind == Kind.SCALE:
        if w.factor.shift:      # two exact steps: one could leave the range that both stay in
            half = w.factor.shift // 2
            kernels.scale[t](y, x, n, ldexp(1, half))
            kernels.scale[t](y, y, n, ldexp(1, w.factor.shift - half))
            x = y
        kernels.scale[t](y, x, n, w.factor.last)
    elif w.kind == Kind.CLAMP:
        kernels.clamp[t](y, x, n, w.low[t], w.high[t])
    elif x != y:
        memmove(y, x, n * leaf.itemsize)


cdef inline gc_sum sum_of(int ord, int t, const char *x, ptrdiff_t n, double bound) noexcept nogil:
    return kernels.sum_squares[t](x, n, bound) if ord == 2 else kernels.sum_abs[t](x, n, bound)


cdef void measure_block(const gc_leaf *leaf, ptrdiff_t first, ptrdiff_t n, int ord, const Write *bounds,
                        const Write *made, char *buffer, double *bound, Sum *into) noexcept nogil:
    """Add one block to a Sum: of the leaf as it is, or as `made` would make it.

    The usual block is read once: its elements are taken to lie below `bound`, a guess that the first
    elements of the segment make and that the kernel checks as it sums. Where the guess fails, and for
    whatever is not finite, out of range, complex or counted, the largest magnitude is found first."""
    cdef int t = leaf.dtype, bin = 0
    cdef gc_sum s
    cdef const char *x = fetch(leaf, first, n, buffer)
    cdef double amax
    if made != NULL:
        alter(made, leaf, buffer, x, n)
        x = buffer
    if ord != 0 and bounds == NULL and not leaf.is_complex:
        if bound[0] == 0:
            amax = kernels.amax[t](x, min(n, PROBE))
            if GC_TINY <= amax <= GC_HUGE:
                bound[0] = gc_bound(amax, 3)
        if bound[0] != 0:
            s = sum_of(ord, t, x, n, bound[0])
            if s.amax <= bound[0]:
                if s.amax > into.amax:
                    into.amax = s.amax
                fold(into, s.high, s.low, 0, ord)
                return
    amax = kernels.amax[t](x, n)
    if bounds != NULL and not (amax <= bounds.high[t] and -amax >= bounds.low[t]):
        into.outside += kernels.count_outside[t](x, n, bounds.low[t], bounds.high[t])
    if not isfinite(amax):
        if leaf.is_complex:
            memmove(buffer, x, n * leaf.itemsize)
            gc_pair_zero(buffer, n, t, &into.nans, &into.infs)
        else:
            into.nans += kernels.count_nan[t](x, n)
            into.infs += kernels.count_inf[t](x, n)
            kernels.zero_nonfinite[t](buffer, x, n)
        x = buffer
        amax = kernels.amax[t](x, n)
    if leaf.is_complex:
        into.amax = gc_pair_amax(x, n, t, into.amax)
    elif amax > into.amax:
        into.amax = amax
    if amax == 0 or ord == 0:
        return
    if t == GC_F64 and not GC_TINY <= amax <= GC_HUGE:
        bin = 1 if amax > GC_HUGE else -1
        kernels.scale[t](buffer, x, n, ldexp(1, -GC_SHIFT * bin))
        x = buffer
        amax = ldexp(amax, -GC_SHIFT * bin)
    elif amax > bound[0]:
        bound[0] = gc_bound(amax, 2)
    if ord == 1 and leaf.is_complex:
        gc_pair_abs(<double *>buffer, x, n, t)
        x, n, t = buffer, n // 2, GC_F64
        amax = kernels.amax[t](x, n)
    s = sum_of(ord, t, x, n, gc_bound(amax, 0))
    fold(into, s.high, s.low, bin, ord)


cdef void measure_segment(const gc_leaf *leaf, ptrdiff_t first, int ord, const Write *bounds,
                          const Write *made, Sum *into) noexcept nogil:
    """Up to GROUP elements of one leaf into a fresh Sum."""
    cdef double space[BLOCK]    # a block of the widest dtype
    cdef ptrdiff_t end = min(first + GROUP, leaf.size)
    cdef double bound = 0       # of the segment alone, so that it is a function of position
    clear(into)
    while first < end:
        measure_block(leaf, first, min(BLOCK, end - first), ord, bounds, made, <char *>space, &bound, into)
        first += BLOCK


cdef void write_segment(const gc_leaf *to, const gc_leaf *source, ptrdiff_t first, const Write *w) noexcept nogil:
    cdef double space[BLOCK]    # a block of the widest dtype
    cdef char *buffer = <char *>space
    cdef ptrdiff_t n, end = min(first + GROUP, to.size)
    cdef const char *x
    if w.kind == Kind.KEEP and not w.zero and to.data == source.data:
        return
    if to.ndim == 0 and source.ndim == 0:   # in one go: prefetchers follow a long run, not blocks backwards
        alter(w, to, to.data + first * to.itemsize, source.data + first * to.itemsize, end - first)
        return
    while end > first:
        n = (end - first - 1) % BLOCK + 1
        end -= n
        x = fetch(source, end, n, buffer)
        if to.ndim == 0:
            alter(w, to, to.data + end * to.itemsize, x, n)
        else:
            alter(w, to, buffer, x, n)
            gc_move(to, end, n, buffer, 1)


# ---- groups: the list of work, and the region that does it --------------------------------------

cdef struct Group:
    ptrdiff_t leaf          # the first,
    ptrdiff_t count         # of so many whole leaves; or 0:
    ptrdiff_t first         # a segment of one leaf, from this element on


cdef struct Work:
    Group *group
    Py_ssize_t count, chunk, chunks
    ptrdiff_t elements      # a complex number is one
    int team


cdef Work cut(const gc_leaf *leaf, Py_ssize_t count) except *:
    """Groups of GROUP elements: short leaves together, long ones in segments; shared out in chunks, a few
    per thread, so that a thread that the system holds up does not hold up the others."""
    cdef Work work
    cdef Py_ssize_t i, n = 0
    cdef ptrdiff_t first, held = 0, bytes = 0
    work.count = 1
    work.elements = 0
    for i in range(count):
        work.count += leaf[i].size // GROUP + 1
        work.elements += leaf[i].size >> leaf[i].is_complex
        bytes += leaf[i].size * leaf[i].itemsize
    work.group = <Group *>PyMem_Malloc(work.count * sizeof(Group))
    if work.group == NULL:
        raise MemoryError
    for i in range(count):
        if leaf[i].size > GROUP:
            first = 0
            while first < leaf[i].size:
                work.group[n] = Group(i, 0, first)
                n += 1
                first += GROUP
            held = 0
        elif held and held + leaf[i].size + SETUP <= GROUP:
            work.group[n - 1].count += 1
            held += leaf[i].size + SETUP
        else:
            work.group[n] = Group(i, 1, 0)
            n += 1
            held = leaf[i].size + SETUP
    work.count = n
    work.team = team_size(bytes + count * SETUP * 4, n)
    work.chunk = n if work.team == 1 else max(1, n // (16 * work.team))
    work.chunks = (n + work.chunk - 1) // work.chunk if n else 0
    return work


cdef void measure_chunk(const gc_leaf *leaf, const Group *group, ptrdiff_t n, int ord, const Write *bounds,
                        const Write *made, bint per_leaf, Sum *part, Sum *by_leaf) noexcept nogil:
    """A Sum of each group, and of each leaf that lies whole in one."""
    cdef ptrdiff_t i, j
    cdef gc_fpenv saved = gc_fp_enter()
    for i in range(n):
        j = group[i].leaf
        if group[i].count == 0:
            measure_segment(&leaf[j], group[i].first, ord, bounds, made + j if per_leaf else made, &part[i])
            continue
        clear(&part[i])
        for j in range(j, j + group[i].count):
            measure_segment(&leaf[j], 0, ord, bounds, made + j if per_leaf else made, &by_leaf[j])
            merge(&part[i], &by_leaf[j], ord)
    gc_fp_leave(saved)


cdef void write_chunk(const gc_leaf *to, const gc_leaf *source, const Group *group, ptrdiff_t n, const Write *w,
                      bint per_leaf) noexcept nogil:
    cdef ptrdiff_t i, j
    cdef gc_fpenv saved = gc_fp_enter()
    for i in range(n - 1, -1, -1):
        for j in range(group[i].leaf + max(group[i].count, 1) - 1, group[i].leaf - 1, -1):
            write_segment(&to[j], &source[j], group[i].first, w + j if per_leaf else w)
    gc_fp_leave(saved)


cdef Sums run_measure(const gc_leaf *leaf, Leaves leaves, int ord, double grad_scale, const Write *bounds, Plan made):
    cdef Work work = cut(leaf, leaves.count)
    cdef Sums sums = Sums(leaves.count, work.elements, ord, grad_scale)
    cdef Group *group = work.group
    cdef Py_ssize_t i, chunk = work.chunk, chunks = work.chunks, n = work.count
    cdef int team = work.team
    cdef const Write *w = NULL if made is None else made.write
    cdef bint per_leaf = made is not None and made.count > 1
    cdef gc_fpenv saved
    cdef Sum *by_leaf = sums.leaf
    cdef Sum *part = <Sum *>PyMem_Malloc(max(n, 1) * sizeof(Sum))
    if part == NULL:
        PyMem_Free(group)
        raise MemoryError
    with nogil:
        if team == 1:
            measure_chunk(leaf, group, n, ord, bounds, w, per_leaf, part, by_leaf)
        else:
            for i in prange(chunks, schedule="dynamic", num_threads=team):
                measure_chunk(leaf, group + i * chunk, min(chunk, n - i * chunk), ord, bounds, w, per_leaf, part + i * chunk,
                              by_leaf)
        saved = gc_fp_enter()
        for i in range(n):
            merge(&sums.total, &part[i], ord)
            if group[i].count == 0:
                if group[i].first == 0:
                    clear(&by_leaf[group[i].leaf])
                merge(&by_leaf[group[i].leaf], &part[i], ord)
        gc_fp_leave(saved)
    PyMem_Free(part)
    PyMem_Free(group)
    PyErr_CheckSignals()        # Ctrl-C acts here, before anything is written
    return sums


def measure(Leaves leaves, int ord, double grad_scale=1.0, Plan bounds=None):
    """One read pass over all leaves. `bounds`: a clamping Plan whose bounds are counted against."""
    cdef Sums sums = run_measure(leaves.leaf, leaves, ord, grad_scale, NULL if bounds is None else bounds.write, None)
    if sums.total.nans + sums.total.infs:
        find_nonfinite(sums, leaves)
    return sums


def measure_written(Leaves leaves, Plan plan, int ord):
    """What `measure` would say of the elements that `write` would write; nothing is written."""
    return run_measure(leaves.leaf if leaves.source == NULL else leaves.source, leaves, ord, 1.0, NULL, plan)


def write(Leaves leaves, Plan plan):
    """One write pass, backwards: every leaf becomes what the plan makes of its source."""
    cdef const gc_leaf *to = leaves.leaf
    cdef const gc_leaf *source = to if leaves.source == NULL else leaves.source
    cdef Work work = cut(to, leaves.count)
    cdef Group *group = work.group
    cdef Py_ssize_t i, chunk = work.chunk, chunks = work.chunks, n = work.count
    cdef int team = work.team
    cdef const Write *w = plan.write
    cdef bint per_leaf = plan.count > 1
    with nogil:
        if team == 1:
            write_chunk(to, source, group, n, w, per_leaf)
        else:
            for i in prange(chunks - 1, -1, -1, schedule="dynamic", num_threads=team):
                write_chunk(to, source, group + i * chunk, min(chunk, n - i * chunk), w, per_leaf)
    PyMem_Free(group)
    leaves.written()


cdef object find_nonfinite(Sums sums, Leaves leaves):
    """Note (path, flat index) and value of the first element, in index order, that is not finite."""
    cdef double space[BLOCK]    # a block of the widest dtype
    cdef char *buffer = <char *>space
    cdef gc_leaf leaf
    cdef ptrdiff_t i = 0, first = 0, n, j
    cdef const char *x
    while sums.leaf[i].nans + sums.leaf[i].infs == 0:
        i += 1
    lay_out(leaves.arrays[i], None, &leaf, NULL, True)
    while first < leaf.size:
        n = min(<ptrdiff_t>BLOCK, leaf.size - first)
        x = fetch(&leaf, first, n, buffer)
        if not isfinite(kernels.amax[leaf.dtype](x, n)):
            for j in range(n):
                if not isfinite(kernels.amax[leaf.dtype](x + j * leaf.itemsize, 1)):
                    PyMem_Free(leaf.axes)
                    j = (first + j) >> leaf.is_complex
                    sums.first_nonfinite = leaves.path(i), j
                    sums.first_value = leaves.arrays[i].flat[j]
                    return None
        first += BLOCK
    PyMem_Free(leaf.axes)
    sums.first_nonfinite = leaves.path(i), 0    # another thread has changed the leaf since
