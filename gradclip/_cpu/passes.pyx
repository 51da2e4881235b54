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
from libc.float cimport DBL_MAX
from libc.math cimport INFINITY, isfinite, ldexp
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t
from libc.string cimport memmove, memset

from gradclip._layout cimport gc_leaf, gc_move, gc_unit, gc_unit_data, lay_out
from gradclip._leaves cimport Leaves
from gradclip._cpu.columns cimport Columns, columns_of, settle_columns, write_panel
from gradclip._cpu.fold cimport Factor, Sum, Unit, GC_SHIFT, clear, fold, merge, settle
from gradclip._cpu.machine cimport gc_bound, gc_sum, kernels, GC_F32, GC_F64, GC_TINY, GC_HUGE
from gradclip._cpu.plan cimport Kind, Plan, Write, gc_fpenv, gc_fp_enter, gc_fp_leave
from gradclip._cpu.sums cimport Sums
from gradclip._cpu.work cimport BLOCK, LANES, Group, Part, Work, cut

cdef extern from "pairs.h" nogil:
    long double gc_pair_amax(const void *x, ptrdiff_t n, int dtype, long double largest)
    void gc_pair_abs(double *y, const void *x, ptrdiff_t n, int dtype)
    void gc_pair_abs_of(double *y, const void *x, ptrdiff_t n, int dtype, bint small, int *exponent)
    void gc_pair_zero(void *x, ptrdiff_t n, int dtype, ptrdiff_t *nans, ptrdiff_t *infs)

cdef extern from "powers.h" nogil:
    gc_sum gc_sum_powers(const double *x, ptrdiff_t n, int exponent, double p, int64_t *bin)

cdef enum:
    PROBE = 64              # elements that guess for a segment
    STEP = 512              # elements that a step widens at a time


# ---- blocks: what one thread does ---------------------------------------------------------------

cdef const char *fetch(const gc_leaf *leaf, ptrdiff_t first, ptrdiff_t n, char *buffer) noexcept nogil:
    """Elements first .. first + n, contiguous: in place, or gathered into the buffer."""
    if leaf.ndim == 0:
        return leaf.data + first * leaf.itemsize
    gc_move(leaf, first, n, buffer, 0)
    return buffer


cdef void alter(const Write *w, int dtype, char *y, const gc_leaf *leaf, const char *x, ptrdiff_t n, char *spare) noexcept nogil:
    """y = what the plan makes of n elements x of a leaf (contiguous; y may be x, and spare, one block, may be y
    unless there is a step). Only a step changes a y of another dtype."""
    cdef int t = leaf.dtype
    cdef ptrdiff_t ignored = 0
    cdef char *to = spare if w.kind == Kind.STEP else y
    if w.zero:
        if leaf.is_complex:
            memmove(to, x, n * leaf.itemsize)
            gc_pair_zero(to, n, t, &ignored, &ignored)
        else:
            kernels.zero_nonfinite[t](to, x, n)
        x = to
    if w.kind == Kind.SCALE:
        if w.factor.shift:
            shift(t, y, x, n, w.factor.shift)
            x = y
        kernels.scale[t](y, x, n, w.factor.last)
    elif w.kind == Kind.CLAMP:
        kernels.clamp[t](y, x, n, w.low[t], w.high[t])
    elif w.kind == Kind.STEP:
        step(dtype, y, t, x, n, w.factor)
    elif x != y:
        memmove(y, x, n * leaf.itemsize)


cdef void shift(int t, char *y, const char *x, ptrdiff_t n, int binades) noexcept nogil:
    """y = x * 2**binades in two exact steps: one could leave the range that both stay in."""
    cdef int half = binades // 2
    kernels.scale[t](y, x, n, ldexp(1, half))
    kernels.scale[t](y, y, n, ldexp(1, binades - half))


cdef void step(int dtype, char *y, int t, const char *x, ptrdiff_t n, Factor factor) noexcept nogil:
    """y -= x * factor; elements of two dtypes, or a factor beyond float64, meet in float64."""
    cdef double a[STEP]
    cdef double b[STEP]
    cdef ptrdiff_t i = 0, m
    if t == dtype and factor.shift == 0:
        kernels.step[t](y, x, n, factor.last)
        return
    while i < n:
        m = min(<ptrdiff_t>STEP, n - i)
        kernels.widen[dtype](a, y + i * itemsize_of(dtype), m)
        kernels.widen[t](b, x + i * itemsize_of(t), m)
        if factor.shift:
            shift(GC_F64, <char *>b, <char *>b, m, factor.shift)
        kernels.step[GC_F64](a, b, m, factor.last)
        kernels.narrow[dtype](y + i * itemsize_of(dtype), a, m)
        i += m


cdef inline int itemsize_of(int dtype) noexcept nogil:
    return 8 if dtype == GC_F64 else 4 if dtype == GC_F32 else 2


cdef inline gc_sum sum_of(double ord, int t, const char *x, ptrdiff_t n, double bound) noexcept nogil:
    return kernels.sum_squares[t](x, n, bound) if ord == 2 else kernels.sum_abs[t](x, n, bound)


cdef inline bint sum_at_once(double ord, int t, const char *x, ptrdiff_t n, double *bound, gc_sum *s) noexcept nogil:
    """Sum a block of real numbers in one reading, or say that it takes more.

    Its elements are taken to lie below `bound`, a guess that the first elements of the segment make and that the
    kernel checks as it sums; so few that each has a lane need none."""
    cdef double amax
    if ord != 2 and ord != 1:
        return False
    if ord == 2 and n <= LANES:
        s[0] = kernels.sum_squares[t](x, n, 0)
        return GC_TINY <= s.amax <= GC_HUGE or s.amax == 0
    if bound[0] == 0:
        amax = kernels.amax[t](x, min(n, PROBE))
        if not GC_TINY <= amax <= GC_HUGE:
            return False
        bound[0] = gc_bound(amax, 3)
    s[0] = sum_of(ord, t, x, n, bound[0])
    return s.amax <= bound[0]


cdef inline gc_sum nothing() noexcept nogil:
    cdef gc_sum s
    s.high = s.low = s.amax = 0
    return s


cdef inline void add(gc_sum *into, const gc_sum *s) noexcept nogil:
    """By TwoSum."""
    cdef double total = into.high + s.high, part = total - into.high
    into.low += ((into.high - (total - part)) + (s.high - part)) + s.low
    into.high = total
    if s.amax > into.amax:
        into.amax = s.amax


cdef inline void fold_usual(Sum *into, const gc_sum *usual, double ord) noexcept nogil:
    fold(into, usual.high, usual.low, 0, ord)
    if usual.amax > into.amax:
        into.amax = usual.amax


cdef void measure_block(const gc_leaf *leaf, ptrdiff_t first, ptrdiff_t n, double ord, const Write *bounds,
                        const Write *made, char *buffer, double *bound, gc_sum *usual, Sum *into) noexcept nogil:
    """Add one block to a Sum: of the leaf as it is, or as `made` would make it.

    The usual block is read once, and added to `usual`, in pairs of float64. Where its bound is not kept, and for whatever is not finite, out of range,
    complex or counted, the largest magnitude is found first."""
    cdef int t = leaf.dtype, bin = 0
    cdef gc_sum s
    cdef const char *x = fetch(leaf, first, n, buffer)
    cdef double amax
    if made != NULL:
        alter(made, t, buffer, leaf, x, n, buffer)
        x = buffer
    if bounds == NULL and not leaf.is_complex and sum_at_once(ord, t, x, n, bound, &s):
        add(usual, &s)
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
    if ord != 1 and ord != 2:
        measure_powers(leaf, x, n, ord, into)
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


cdef void measure_powers(const gc_leaf *leaf, const char *x, ptrdiff_t n, double p, Sum *into) noexcept nogil:
    """Add the p-th powers of a block of finite elements."""
    cdef double wide[BLOCK]
    cdef int64_t bin = 0
    cdef int exponent = 0, small
    cdef gc_sum s
    if not leaf.is_complex:
        kernels.widen[leaf.dtype](wide, x, n)
        s = gc_sum_powers(wide, n, 0, p, &bin)
        fold(into, s.high, s.low, bin, p)
        return
    for small in range(2):
        gc_pair_abs_of(wide, x, n, leaf.dtype, small, &exponent)
        s = gc_sum_powers(wide, n // 2, exponent, p, &bin)
        fold(into, s.high, s.low, bin, p)


cdef void measure_segment(const gc_leaf *leaf, ptrdiff_t first, ptrdiff_t end, double ord, const Write *bounds,
                          const Write *made, Sum *into) noexcept nogil:
    """Some elements of one unit into a fresh Sum."""
    cdef double space[BLOCK]    # a block of the widest dtype
    cdef double bound = 0       # of the segment alone, so that it is a function of position
    cdef gc_sum usual = nothing()
    clear(into)
    while first < end:
        measure_block(leaf, first, min(BLOCK, end - first), ord, bounds, made, <char *>space, &bound, &usual, into)
        first += BLOCK
    fold_usual(into, &usual, ord)


cdef void write_segment(const gc_leaf *to, const gc_leaf *source, ptrdiff_t first, ptrdiff_t end, const Write *w) noexcept nogil:
    cdef double space[2][BLOCK]     # a block of the widest dtype, and one to spare
    cdef char *buffer = <char *>space[0]
    cdef char *spare = <char *>space[1]
    cdef ptrdiff_t n
    cdef const char *x
    cdef char *y
    if w.kind == Kind.KEEP and not w.zero and to.data == source.data:
        return
    if to.ndim == 0 and source.ndim == 0 and (w.kind != Kind.STEP or not w.zero):
        # in one go: prefetchers follow a long run, not blocks backwards
        alter(w, to.dtype, to.data + first * to.itemsize, source, source.data + first * source.itemsize, end - first, NULL)
        return
    while end > first:
        n = (end - first - 1) % BLOCK + 1
        end -= n
        x = fetch(source, end, n, spare)
        if w.kind == Kind.STEP:
            y = <char *>fetch(to, end, n, buffer)
        else:
            y = to.data + end * to.itemsize if to.ndim == 0 else buffer
        alter(w, to.dtype, y, source, x, n, spare)
        if to.ndim:
            gc_move(to, end, n, buffer, 1)


# ---- groups: what is shared out to threads ----------------------------------------------------

cdef struct Task:           # what the chunks of one pass share
    const gc_leaf *leaf     # what is read or written
    const gc_leaf *source   # of a write pass
    const Group *group
    double ord
    const Write *bounds
    const Write *write      # of the write pass, or what a read pass makes of the elements first
    bint per_unit           # whether that differs by unit
    Sum *part               # one per group
    Sum *slot               # of each unit in a group that has only some of its elements
    Unit *unit              # of each unit, once it is complete


cdef void measure_panel(const Task *t, const Group *g) noexcept nogil:
    """Some rows of some columns: a pair for each column, or a Sum (columns.pxd)."""
    cdef const gc_leaf *leaf = &t.leaf[g.leaf]
    cdef bint ranged = leaf.dtype == GC_F64 and t.ord != 0
    cdef double least = GC_TINY if ranged else 0, most = GC_HUGE if ranged else DBL_MAX
    cdef ptrdiff_t stride = leaf.axes[1], j
    cdef Columns c = columns_of(t.slot, g)
    cdef gc_leaf column
    kernels.sum_columns[leaf.dtype](leaf.data + g.first * stride + g.unit * leaf.itemsize, stride, g.rows, g.count,
                                    2 if t.ord == 2 else 1, c.high, c.low, c.amax)
    for j in range(g.count):
        if t.ord == 0:
            c.high[j] = c.low[j] = 0
        if least <= c.amax[j] <= most or c.amax[j] == 0:
            continue
        c.high[j] = c.low[j] = 0
        c.amax[j] = INFINITY
        column = gc_unit(leaf, g.unit + j)
        measure_segment(&column, g.first, g.first + g.rows, t.ord, NULL, NULL, &c.odd[j])


# ---- the list of work, and the region that does it ----------------------------------------------

cdef void measure_units(const Task *t, const Group *g, Sum *total) noexcept nogil:
    """Whole units, a Unit of each. Usual ones of one block are added up in pairs of doubles: to fold each into long
    doubles takes longer than to sum ten elements."""
    cdef ptrdiff_t j, unit = g.unit, left = g.count
    cdef const gc_leaf *leaf = &t.leaf[g.leaf]
    cdef bint plain = t.bounds == NULL and t.write == NULL
    cdef gc_leaf one
    cdef gc_sum s, usual = nothing()
    cdef Sum sum
    cdef double bound
    while left:
        if unit == leaf.units:
            leaf += 1
            unit = 0
            continue
        j = leaf.first_unit + unit
        bound = 0
        if plain and leaf.size <= BLOCK and leaf.ndim == 0 and not leaf.is_complex and sum_at_once(
                t.ord, leaf.dtype, leaf.data if leaf.units == 1 else gc_unit_data(leaf, unit), leaf.size, &bound, &s):
            t.unit[j] = Unit(s.high, s.low, s.amax, 0, 0, 0, 0)
            add(&usual, &s)
        else:
            one = gc_unit(leaf, unit)
            measure_segment(&one, 0, leaf.size, t.ord, t.bounds, t.write + j if t.per_unit else t.write, &sum)
            settle(&t.unit[j], &sum, t.ord)
            merge(total, &sum, t.ord)
        unit += 1
        left -= 1
    fold_usual(total, &usual, t.ord)


cdef void measure_chunk(const Task *t, ptrdiff_t begin, ptrdiff_t end) noexcept nogil:
    """A Sum of each group, and a Unit of each unit that lies whole in one."""
    cdef ptrdiff_t i
    cdef const Group *g
    cdef const Write *w
    cdef gc_leaf one
    cdef gc_fpenv saved = gc_fp_enter()
    for i in range(begin, end):
        g = &t.group[i]
        clear(&t.part[i])
        if g.part == Part.WHOLE:
            measure_units(t, g, &t.part[i])
        elif g.part == Part.COLUMNS:
            measure_panel(t, g)
        else:
            one = gc_unit(&t.leaf[g.leaf], g.unit)
            w = t.write + one.first_unit if t.per_unit else t.write
            measure_segment(&one, g.first, g.first + g.rows, t.ord, t.bounds, w, &t.part[i])
            t.slot[g.slot] = t.part[i]
    gc_fp_leave(saved)


cdef void write_chunk(const Task *t, ptrdiff_t begin, ptrdiff_t end) noexcept nogil:
    cdef ptrdiff_t i, k, unit, left
    cdef const Group *g
    cdef const Write *w
    cdef const gc_leaf *to
    cdef const gc_leaf *source
    cdef gc_leaf one[2]
    cdef gc_fpenv saved = gc_fp_enter()
    for i in range(end - 1, begin - 1, -1):
        g = &t.group[i]
        w = t.write + (t.leaf[g.leaf].first_unit + g.unit if t.per_unit else 0)
        if g.part == Part.COLUMNS and write_panel(&t.leaf[g.leaf], &t.source[g.leaf], g, w, t.per_unit):
            continue
        k, unit, left = g.leaf, g.unit, g.count
        while left:
            if unit == t.leaf[k].units:
                k += 1
                unit = 0
                continue
            to, source = &t.leaf[k], &t.source[k]
            w = t.write + to.first_unit + unit if t.per_unit else t.write
            if to.units > 1:
                one[0], one[1] = gc_unit(to, unit), gc_unit(source, unit)
                to, source = &one[0], &one[1]
            write_segment(to, source, g.first, to.size if g.part == Part.WHOLE else g.first + g.rows, w)
            unit += 1
            left -= 1
    gc_fp_leave(saved)


cdef void run(Task *t, const Work *work, bint writing) noexcept nogil:
    """All groups: one thread, or a parallel region."""
    cdef Py_ssize_t i, chunk = work.chunk, n = work.count
    if work.team == 1 and writing:
        write_chunk(t, 0, n)
    elif work.team == 1:
        measure_chunk(t, 0, n)
    elif writing:
        for i in prange(work.chunks - 1, -1, -1, schedule="dynamic", num_threads=work.team):
            write_chunk(t, i * chunk, min((i + 1) * chunk, n))
    else:
        for i in prange(work.chunks, schedule="dynamic", num_threads=work.team):
            measure_chunk(t, i * chunk, min((i + 1) * chunk, n))


cdef void fold_groups(const Task *t, Py_ssize_t n, Sum *total) noexcept nogil:
    """Groups into the total, and the parts of units into these, in order."""
    cdef Py_ssize_t i, start = 0, above = 0
    cdef const Group *g
    cdef Unit *unit
    cdef gc_fpenv saved = gc_fp_enter()
    for i in range(n):
        g = &t.group[i]
        merge(total, &t.part[i], t.ord)
        if g.part == Part.WHOLE:
            continue
        if g.first == 0:
            start = g.slot      # the slot of the first part takes those of the others
            above = i
        unit = t.unit + t.leaf[g.leaf].first_unit + g.unit
        if g.part == Part.COLUMNS:
            if g.first + g.rows == t.leaf[g.leaf].size:
                settle_columns(t.slot, &t.group[above], i + 1 - above, t.ord, unit, total)
            continue
        if g.first:
            merge(&t.slot[start], &t.slot[g.slot], t.ord)
        if g.first + g.rows == t.leaf[g.leaf].size:
            settle(unit, &t.slot[start], t.ord)
    gc_fp_leave(saved)


cdef Sums run_measure(const gc_leaf *leaf, Leaves leaves, double ord, double grad_scale, const Write *bounds, Plan made):
    cdef bint simple = made is None and bounds == NULL and (ord == 0 or ord == 1 or ord == 2)
    cdef Work work = cut(leaf, leaf, leaves.count, simple)
    cdef Sums sums = Sums(leaves.units, work.elements, ord, grad_scale)
    cdef Task task
    task.leaf, task.source, task.group, task.ord, task.bounds = leaf, NULL, work.group, ord, bounds
    task.write = NULL if made is None else made.write
    task.per_unit = made is not None and made.count > 1
    task.unit = sums.unit
    task.part = <Sum *>PyMem_Malloc((work.count + work.slots + 1) * sizeof(Sum))
    task.slot = task.part + work.count
    if task.part == NULL:
        PyMem_Free(work.group)
        raise MemoryError
    if leaves.on_device:        # whose Sums are taken in afterwards
        memset(sums.unit, 0, sums.count * sizeof(Unit))
    with nogil:
        run(&task, &work, False)
        fold_groups(&task, work.count, &sums.total)
    PyMem_Free(task.part)
    PyMem_Free(work.group)
    PyErr_CheckSignals()        # Ctrl-C acts here, before anything is written
    return sums


def measure(Leaves leaves, double ord, double grad_scale=1.0, Plan bounds=None):
    """One read pass over all leaves. `bounds`: a clamping Plan whose bounds are counted against."""
    if leaves.on_device:
        return gpu().measure(leaves, ord, grad_scale, bounds)
    return measure_here(leaves, ord, grad_scale, bounds)


cpdef Sums measure_here(Leaves leaves, double ord, double grad_scale=1.0, Plan bounds=None):
    """The same of the leaves that the processor can read."""
    cdef Sums sums = run_measure(leaves.leaf, leaves, ord, grad_scale, NULL if bounds is None else bounds.write, None)
    if sums.total.nans + sums.total.infs:
        find_nonfinite(sums, leaves)
    return sums


def measure_written(Leaves leaves, Plan plan, double ord):
    """What `measure` would say of the elements that `write` would write; nothing is written."""
    return gpu().measure_written(leaves, plan, ord) if leaves.on_device else measure_written_here(leaves, plan, ord)


def measure_written_here(Leaves leaves, Plan plan, double ord):
    """The same of the leaves that the processor can read."""
    return run_measure(leaves.leaf if leaves.source == NULL else leaves.source, leaves, ord, 1.0, NULL, plan)


def write(Leaves leaves, Plan plan):
    """One write pass, backwards: every leaf becomes what the plan makes of its source."""
    if not leaves.on_device:
        write_here(leaves, plan)
    else:
        begin = gpu().prepared(leaves, plan)
        with gpu().Uninterrupted():
            write_here(leaves, plan)
            begin()
    leaves.written()


cdef int write_here(Leaves leaves, Plan plan) except -1:
    """The same of the leaves that the processor can write."""
    cdef const gc_leaf *source = leaves.leaf if leaves.source == NULL else leaves.source
    cdef Work work = cut(leaves.leaf, source, leaves.count, True)
    cdef Task task
    task.leaf, task.source, task.group, task.write, task.per_unit = leaves.leaf, source, work.group, plan.write, plan.count > 1
    with nogil:
        run(&task, &work, True)
    PyMem_Free(work.group)
    return 0


cdef object gpu():
    """The other engine, imported when a first leaf needs it."""
    from gradclip import _gpu

    return _gpu


cdef object find_nonfinite(Sums sums, Leaves leaves):
    """Note (path, flat index) and value of the first element, in index order, that is not finite."""
    cdef double space[BLOCK]    # a block of the widest dtype
    cdef char *buffer = <char *>space
    cdef gc_leaf leaf
    cdef ptrdiff_t i = 0, unit = 0, first = 0, n, j
    cdef const char *x
    while sums.unit[unit].nans + sums.unit[unit].infs == 0:
        unit += 1
    while unit >= leaves.leaf[i].first_unit + leaves.leaf[i].units:
        i += 1
    sums.first_leaf = i
    leaf.first_unit = 0
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
