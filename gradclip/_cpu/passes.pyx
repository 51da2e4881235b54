# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The two passes: `measure` reads every leaf once, `write` changes them once, if at all. How, region.pyx says."""
from cpython.exc cimport PyErr_CheckSignals
from libc.string cimport memset

from gradclip._leaves.layout cimport gc_leaf
from gradclip._leaves.leaves cimport Leaves
from gradclip._cpu.clamp cimport clamp
from gradclip._cpu.exact cimport settle
from gradclip._cpu.fold cimport Sum
from gradclip._cpu.machine cimport Scratch, give_scratch, take_scratch
from gradclip._cpu.nonfinite cimport find_nonfinite
from gradclip._cpu.plan cimport Plan, Write
from gradclip._cpu.region cimport ALL_GROUPS, Task, Work, begin, cut, discard, end, fold_groups, look_for_middles, run
from gradclip._cpu.scalar cimport GC_KEEP, gc_measured
from gradclip._cpu.sums cimport Sums, new_sums
from gradclip._cpu.watch cimport gc_raise


cdef void read_all(Task *task, const Work *work, Sum *total) noexcept nogil:
    """Read all groups of a pass and fold their sums into the total, unless a signal stops it."""
    run(task, work, False)
    if not task.watch.stopped:
        fold_groups(task, work.count, total)


cdef bint run_measure(Sums sums, const gc_leaf *leaf, Leaves leaves, Plan bounds, Plan made, bint norms) except -1:
    """Fill Sums by one read pass over the leaves that lie on the host: as they are, or as `made` would make them. Units that
    lie elsewhere stay empty.

    Returns whether some sum does not tell its norm; with `norms` False this is not looked for."""
    cdef double ord = sums.order
    cdef Work work
    cdef Scratch scratch
    cdef Task task
    begin(&task, &work, &scratch, leaf, leaves, sums, made is None and bounds is None and (ord == 0 or ord == 1 or ord == 2))
    if bounds is not None:
        task.bounds, task.apart = bounds.write, bounds.count > 1
    task.write = NULL if made is None else made.write
    task.per_unit = made is not None and made.count > 1
    if norms:
        look_for_middles(&task, sums)
    if work.elsewhere:
        memset(sums.unit, 0, sums.count * sizeof(gc_measured))
    if work.elements <= 1024 and leaves.count == 1 and leaf.ndim == 0:      # over so soon that no other thread is held up
        read_all(&task, &work, &sums.total)
    else:
        with nogil:
            read_all(&task, &work, &sums.total)
    end(&task, &work, &scratch)
    if task.watch.stopped:
        gc_raise()
    PyErr_CheckSignals()        # Ctrl-C acts here, before anything is written
    return task.uncertain


cpdef Sums measure(Leaves leaves, double ord, double grad_scale=1.0, bint finite_only=False, bint norms=True):
    """The Sums of all leaves, by one read pass.

    grad_scale: the leaves hold the true gradient times this.
    finite_only: whether norms leave NaN and Inf out.
    norms: whether the norms that are told are those of these Sums; else `settle` is to be called for those that are."""
    cdef Sums sums = new_sums(leaves.units, ord, grad_scale, finite_only)   # the largest: it fails first
    cdef bint uncertain = run_measure(sums, leaves.leaf, leaves, None, None, norms)
    if sums.total.nans + sums.total.infs:
        find_nonfinite(sums, leaves)
    if uncertain:
        settle(sums, leaves)
    return sums


def measure_outside(Leaves leaves, Plan bounds):
    """The Sums of all leaves of order 2, in which elements outside the bounds of a clamping Plan are counted; `settle` is to be
    called for their norms."""
    cdef Sums sums = new_sums(leaves.units, 2)
    run_measure(sums, leaves.leaf, leaves, bounds, None, False)
    if sums.total.nans + sums.total.infs:
        find_nonfinite(sums, leaves)
    return sums


def measure_written(Leaves to, Plan plan, double ord):
    """The Sums of the elements that `write` would write; nothing is written."""
    cdef Sums sums = new_sums(to.units, ord)
    run_measure(sums, to.leaf if to.source == NULL else to.source, to, None, plan, False)
    return sums


cdef list changed(Leaves leaves, Plan plan):
    """Return, for each leaf, whether `write` changes anything in it."""
    cdef const gc_leaf *source = leaves.leaf if leaves.source == NULL else leaves.source
    cdef const gc_leaf *leaf
    cdef const Write *w
    cdef Py_ssize_t i, j
    found = []
    for i in range(leaves.count):
        leaf = &leaves.leaf[i]
        written = leaf.data != source[i].data
        for j in range(leaf.units):
            w = plan.write + (leaf.first_unit + j if plan.count > 1 else 0)
            written = written or w.kind != GC_KEEP or w.zero
        found.append(written)
    return found


def write(Leaves to, Plan plan):
    """One write pass, backwards: every leaf becomes what the plan makes of its source; with an error, none does. No bytecode
    runs between the first element and the last, nor does anything need memory."""
    if plan.found is not None:
        clamp(to, plan)
        return
    cdef const gc_leaf *source = to.leaf if to.source == NULL else to.source
    cdef Work work
    cut(&work, to.leaf, source, to.count, True)
    cdef Scratch scratch
    cdef Task task
    scratch.memory = NULL
    try:
        take_scratch(&scratch, work.team)
        if to._foreign is not None:
            to.announce(changed(to, plan))
    except:
        if scratch.memory != NULL:
            give_scratch(&scratch)
        discard(&work)
        raise
    task.room = scratch.room
    task.leaf, task.source, task.group, task.write, task.per_unit = to.leaf, source, work.group, plan.write, plan.count > 1
    task.stage, task.ahead = ALL_GROUPS, work.ahead
    with nogil:
        run(&task, &work, True)
    give_scratch(&scratch)
    discard(&work)
    to.written()
