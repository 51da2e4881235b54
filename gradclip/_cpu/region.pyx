# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The work of a pass, and how it is done: a list of groups, which threads take in chunks.

Why it looks like this:

* Work is cut by position alone: 4096 elements a block, 16 blocks a segment. A group is a segment of a long leaf or
  as many short leaves as fill one. Groups run in any order on any thread, each into its own Sum, and Sums
  are folded in order afterwards. So neither the number of threads nor their timing can reach a result.
* All groups form one list, which is shared out to threads once (kernels/share.c); a short one is walked by the caller alone.
* A kernel sees only contiguous, aligned memory. Whatever is strided, not finite, out of range or
  measured as if already written goes through a buffer of one block, in L1.
* The write pass takes the groups backwards: the end of what was read is what the cache still holds.
  Within a group it runs forwards, as prefetchers want it.
* Every chunk of work enters the standard floating-point state and leaves the caller's (kernels/fpenv.h).
* Between groups a read pass asks for signals (watch.pxd); a write pass is not interrupted: all or nothing.
* What threads work on lies in their room (machine.pyx), not on the stack: a thread of 64 KiB is enough.
"""
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stddef cimport ptrdiff_t

from gradclip._leaves.layout cimport gc_leaf, gc_unit, gc_unit_data
from gradclip._leaves.leaves cimport Leaves
from gradclip._cpu.blocks cimport (
    BLOCK, Reading, Segment, add, fold_usual, hold, measure_segment, nothing, start_segment, sum_at_once, write_segment)
from gradclip._cpu.columns cimport complete_columns, measure_panel, write_panel
from gradclip._cpu.fpenv cimport gc_fpenv, gc_fp_enter, gc_fp_leave
from gradclip._cpu.fold cimport Sum, clear, complete, merge
from gradclip._cpu.machine cimport (
    ROOM, SERIAL_BYTES, Scratch, gc_kernels, gc_sum, give_scratch, kernels, share_out, take_scratch, team_size)
from gradclip._cpu.middle cimport precision_of, tells_norm
from gradclip._cpu.plan cimport Write
from gradclip._cpu.scalar cimport gc_measured
from gradclip._cpu.sums cimport Sums
from gradclip._cpu.watch cimport interrupted
from gradclip._cpu.work cimport BITS_OF_BYTES, COLUMNS, WHOLE, Group, gc_cut, gc_survey, gc_work

cdef enum:
    ABREAST = 64            # sums that are looked at together
    AHEAD_BYTES = 1 << 22   # of a pass that is likely to wait for memory: then long units are looked at a page ahead,
    LONG = 4 * BLOCK        # those of so many elements


cdef int cut(Work *work, const gc_leaf *leaf, const gc_leaf *source, Py_ssize_t count, bint columns) except -1:
    """Make the list of work: groups of about a segment (kernels/work.h), shared out in chunks. `discard` frees it.

    A thread gets a few chunks, so that one that the system holds up does not hold up the others. Units that are columns come in
    panels, or with `columns` False one by one."""
    cdef gc_work found
    if not gc_survey(&found, leaf, count, columns):
        raise ValueError(f"the leaves hold more than 2**{BITS_OF_BYTES} bytes: broadcast views, then, which take years to read")
    work.group = &work.few[0] if found.room <= FEW_GROUPS else <Group *>PyMem_Malloc(found.room * sizeof(Group))
    if work.group == NULL:
        raise MemoryError
    gc_cut(&found, work.group, leaf, source, count, columns)
    work.count, work.slots, work.elements, work.elsewhere = found.groups, found.slots, found.elements, found.elsewhere
    work.ahead = found.bytes >= AHEAD_BYTES
    work.team = 1
    if found.bytes >= SERIAL_BYTES:
        try:
            work.team = team_size(work.count)
        except:     # a warning that is an error
            discard(work)
            raise
    work.chunk = work.count if work.team == 1 else max(1, work.count // (16 * work.team))
    work.chunks = (work.count + work.chunk - 1) // work.chunk if work.count else 0
    return 0


cdef void discard(Work *work) noexcept:
    """Free a list of work."""
    if work.group != &work.few[0]:
        PyMem_Free(work.group)


# ---- the region that does it ---------------------------------------------------------------------

cdef inline const gc_kernels *kernels_for(const Task *t, ptrdiff_t size) noexcept nogil:
    """Return the kernels for units of so many elements: those that look ahead for long ones in a pass over much."""
    return kernels.ahead if t.ahead and size >= LONG else kernels


cdef struct Some:           # sums of usual units, put aside to be looked at together
    double high[ABREAST]
    double low[ABREAST]
    ptrdiff_t count


cdef void look_at(Task *t, Some *some) noexcept nogil:
    """Note whether some of these sums do not tell their norms."""
    cdef gc_measured u
    cdef ptrdiff_t i
    if some.count and t.norms.plain:
        t.uncertain |= kernels.any_near_middle(some.high, some.low, some.count, t.ord == 2, t.norms.error)
    else:
        for i in range(some.count):
            u = gc_measured(some.high[i], some.low[i], 0, 0, 0, 0, 0, 0)
            t.uncertain |= not tells_norm(&u, t.norms)
    some.count = 0


cdef void measure_units(Task *t, const Group *g, char *room, Sum *total) noexcept nogil:
    """Measure whole units, each into its gc_measured, and add them to `total`.

    The sums of usual units of one block are added in pairs of doubles: to fold each into long doubles takes longer than to
    sum ten elements."""
    cdef ptrdiff_t j, unit = g.unit, left = g.count
    cdef const gc_leaf *leaf = &t.leaf[g.leaf]
    cdef Reading how = Reading(t.ord, t.bounds, NULL, NULL)
    cdef Segment segment = start_segment(&how, room)
    cdef const char *x
    cdef ptrdiff_t outside = 0
    cdef gc_leaf one
    cdef gc_sum s, usual = nothing()
    cdef Sum sum
    cdef Some some
    cdef double bound
    some.count = 0
    while left:
        if unit == leaf.units:
            leaf += 1
            unit = 0
            continue
        j = leaf.first_unit + unit
        bound = 0
        x = leaf.data if leaf.units == 1 else gc_unit_data(leaf, unit)
        if t.bounds != NULL:
            how.bounds = t.bounds + t.apart * (leaf - t.leaf)
            if t.to != NULL:
                how.to = &t.to[leaf - t.leaf]
        if t.write == NULL and leaf.size <= BLOCK and leaf.ndim == 0 and not leaf.is_complex and sum_at_once(
                kernels, t.ord, leaf.dtype, x, leaf.size, &bound, &s):
            if t.bounds != NULL:
                outside = hold(kernels, leaf, 0, x, leaf.size, s.amax, &segment)
                total.outside += outside
            t.unit[j] = gc_measured(s.high, s.low, 0, s.amax, 0, 0, 0, outside)
            add(&usual, &s)
            if t.norms != NULL:
                some.high[some.count], some.low[some.count] = s.high, s.low
                some.count += 1
                if some.count == ABREAST:
                    look_at(t, &some)
        else:
            one = gc_unit(leaf, unit)
            how.made = t.write + j if t.per_unit else t.write
            measure_segment(kernels_for(t, leaf.size), &one, 0, leaf.size, &how, room, &sum)
            complete(&t.unit[j], &sum)
            merge(total, &sum, t.ord)
            if t.norms != NULL and not tells_norm(&t.unit[j], t.norms):
                t.uncertain = True
        unit += 1
        left -= 1
    fold_usual(total, &usual, t.ord)
    look_at(t, &some)


cdef bint left_out(Task *t, ptrdiff_t i) noexcept nogil:
    """Whether a group is not the business of this stage of a pass."""
    cdef const Group *g = &t.group[i]
    if t.stage == UNTIL_OUTSIDE and g.part != WHOLE and t.unit[t.leaf[g.leaf].first_unit].outside:
        t.part[i].outside = LATER
        return True
    return t.stage == SINCE_OUTSIDE and t.part[i].outside == 0 or \
        t.stage == NOT_FINITE and (t.part[i].nans + t.part[i].infs == 0 or t.part[i].outside == 0)


cdef void measure_chunk(Task *t, ptrdiff_t begin, ptrdiff_t end, int thread) noexcept nogil:
    """Measure some groups: each into its Sum, and every unit that lies whole in one into its gc_measured. With `to` every block
    is brought within the bounds once it is measured."""
    cdef ptrdiff_t i
    cdef char *room = t.room + thread * <size_t>ROOM
    cdef const Group *g
    cdef gc_leaf one
    cdef Reading how = Reading(t.ord, t.bounds, NULL, NULL)
    cdef gc_fpenv saved = gc_fp_enter()
    for i in range(begin, end):
        if i and t.to == NULL and interrupted(&t.watch, thread, &saved):
            break
        if t.stage != ALL_GROUPS and left_out(t, i):
            continue
        g = &t.group[i]
        clear(&t.part[i])
        if g.part == WHOLE:
            measure_units(t, g, room, &t.part[i])
        elif g.part == COLUMNS:
            measure_panel(kernels, &t.leaf[g.leaf], g, t.ord, t.slot, room)
        else:
            one = gc_unit(&t.leaf[g.leaf], g.unit)
            how.made = t.write + one.first_unit if t.per_unit else t.write
            if t.bounds != NULL:
                how.bounds = t.bounds + t.apart * g.leaf
                if t.to != NULL:
                    how.to = &t.to[g.leaf]
            measure_segment(kernels_for(t, one.size), &one, g.first, g.first + g.rows, &how, room, &t.part[i])
            t.slot[g.slot] = t.part[i]
            if t.stage == UNTIL_OUTSIDE and t.part[i].outside:
                t.unit[one.first_unit].outside = 1
    gc_fp_leave(saved)


cdef void write_chunk(Task *t, ptrdiff_t begin, ptrdiff_t end, int thread) noexcept nogil:
    cdef char *room = t.room + thread * <size_t>ROOM
    cdef ptrdiff_t i, k, unit, left
    cdef const Group *g
    cdef const Write *w
    cdef const gc_leaf *to
    cdef const gc_leaf *source
    cdef gc_leaf one[2]
    cdef gc_fpenv saved = gc_fp_enter()
    for i in range(end - 1, begin - 1, -1):
        if t.stage != ALL_GROUPS and left_out(t, i):
            continue
        g = &t.group[i]
        w = t.write + (t.leaf[g.leaf].first_unit + g.unit if t.per_unit else 0)
        if g.part == COLUMNS and write_panel(kernels, &t.leaf[g.leaf], &t.source[g.leaf], g, w, t.per_unit, <double *>room):
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
            write_segment(kernels_for(t, to.size), to, source, g.first, to.size if g.part == WHOLE else g.first + g.rows, w,
                          room)
            unit += 1
            left -= 1
    gc_fp_leave(saved)


cdef struct Share:          # a pass that is shared out
    Task *task
    const Work *work


cdef void measure_share(void *of, ptrdiff_t i, int thread) noexcept nogil:
    cdef const Share *s = <const Share *>of
    measure_chunk(s.task, i * s.work.chunk, min((i + 1) * s.work.chunk, s.work.count), thread)


cdef void write_share(void *of, ptrdiff_t i, int thread) noexcept nogil:
    cdef const Share *s = <const Share *>of
    cdef ptrdiff_t begin = (s.work.chunks - 1 - i) * s.work.chunk
    write_chunk(s.task, begin, min(begin + s.work.chunk, s.work.count), thread)


cdef void run(Task *t, const Work *work, bint writing) noexcept nogil:
    """Work through all groups, on one thread or on a team."""
    cdef Share share = Share(t, work)
    if work.team > 1:
        share_out(write_share if writing else measure_share, &share, work.chunks, work.team)
    elif writing:
        write_chunk(t, 0, work.count, 0)
    else:
        measure_chunk(t, 0, work.count, 0)


cdef void fold_groups(Task *t, Py_ssize_t n, Sum *total) noexcept nogil:
    """Fold groups into the total, and the segments of a unit into the unit, in order."""
    cdef Py_ssize_t i, j, start = 0, above = 0
    cdef const Group *g
    cdef gc_measured *unit
    cdef gc_measured all
    cdef gc_fpenv saved = gc_fp_enter()
    for i in range(n):
        g = &t.group[i]
        merge(total, &t.part[i], t.ord)
        if g.part == WHOLE:
            continue
        if g.first == 0:
            start = g.slot      # the slot of the first part takes those of the others
            above = i
        unit = t.unit + t.leaf[g.leaf].first_unit + g.unit
        if g.part == COLUMNS:
            if g.first + g.rows == t.leaf[g.leaf].size:
                complete_columns(t.slot, &t.group[above], i + 1 - above, t.ord, unit, total)
                for j in range(g.count):
                    t.uncertain |= t.norms != NULL and not tells_norm(&unit[j], t.norms)
            continue
        if g.first:
            merge(&t.slot[start], &t.slot[g.slot], t.ord)
        if g.first + g.rows == t.leaf[g.leaf].size:
            complete(unit, &t.slot[start])
            t.uncertain |= t.norms != NULL and not tells_norm(unit, t.norms)
    if t.norm != NULL:
        complete(&all, total)
        t.uncertain |= not tells_norm(&all, t.norm)
    gc_fp_leave(saved)


cdef int begin(Task *task, Work *work, Scratch *scratch, const gc_leaf *leaf, Leaves leaves, Sums sums, bint columns) except -1:
    """Get everything that a pass needs to measure leaves into Sums. `end` gives back what has to be given back."""
    cut(work, leaf, leaf, leaves.count, columns)
    sums.size = work.elements
    task.leaf, task.source, task.to, task.group, task.stage, task.ord = leaf, NULL, NULL, work.group, ALL_GROUPS, sums.order
    task.bounds, task.apart, task.write, task.per_unit, task.unit = NULL, 0, NULL, False, sums.unit
    task.ahead = work.ahead
    task.norm, task.norms, task.uncertain = NULL, NULL, False
    task.watch.due, task.watch.stopped = 0, False
    cdef Py_ssize_t totals = work.count + work.slots + 1
    task.part = &task.few[0] if totals <= FEW_TOTALS else <Sum *>PyMem_Malloc(totals * sizeof(Sum))
    task.slot = task.part + work.count
    try:
        if task.part == NULL:
            raise MemoryError
        take_scratch(scratch, work.team)
    except:
        discard_totals(task)
        discard(work)
        raise
    task.room = scratch.room
    return 0


cdef void end(Task *task, Work *work, Scratch *scratch) noexcept:
    give_scratch(scratch)
    discard_totals(task)
    discard(work)


cdef void discard_totals(Task *task) noexcept:
    if task.part != &task.few[0]:
        PyMem_Free(task.part)


cdef void look_for_middles(Task *task, Sums sums) noexcept:
    """Let a pass note whether some sum does not tell its norm."""
    if task.ord == 1 or task.ord == 2:
        task.precision = precision_of(task.ord, sums.grad_scale, sums.relative_error())
        task.norm = &task.precision
        if sums.count != 1:     # the norm of a unit alone is that of all
            task.norms = &task.precision
