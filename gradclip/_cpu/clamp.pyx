# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Clipping by value: the one pass that decides nothing between reading and writing, so that it does both to a block while
this is in cache. It is a write pass in all that region.pyx says of these."""
cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.string cimport memset

from gradclip._leaves.layout cimport gc_leaf
from gradclip._leaves.leaves cimport Leaves
from gradclip._cpu.exact cimport settle, take_for_middles
from gradclip._cpu.machine cimport Scratch
from gradclip._cpu.nonfinite cimport first_of
from gradclip._cpu.plan cimport Plan
from gradclip._cpu.region cimport (
    ALL_GROUPS, NOT_FINITE, SINCE_OUTSIDE, UNTIL_OUTSIDE, Task, Work, begin, end, fold_groups, look_for_middles, run)
from gradclip._cpu.scalar cimport gc_measured
from gradclip._cpu.sums cimport Sums
from gradclip._cpu.watch cimport gc_raise


cdef class Clamped(Sums):
    """The Sums of leaves as they were before a clamp, which fills these while it writes. The first element that is not finite
    gets its name afterwards, when nothing may fail any more: so, if memory is refused, not before somebody asks for it."""

    @property
    def first_nonfinite(self):
        """Path and flat index of the first NaN or Inf, None if there is none."""
        self.name_first()
        return self.named

    cdef int name_first(self) except -1:
        with cython.critical_section(self):
            if self.unnamed is not None:
                self.named = self.unnamed.path(self.first_leaf), max(self.first_index, 0)
                self.unnamed = None
        return 0


cdef int clamp(Leaves to, Plan plan) except -1:
    """Bring every element within the bounds of a plan in one pass, which measures the sources into `plan.found` as it goes.

    Where somebody has to be told of what is written, before that, leaves are only read until an element of theirs lies outside:
    the pass goes on from there."""
    cdef const gc_leaf *source = to.leaf if to.source == NULL else to.source
    cdef Leaves read = to if to._pair is None else to._pair
    cdef Clamped found = plan.found
    cdef Work work
    cdef Scratch scratch
    cdef Task task
    begin(&task, &work, &scratch, source, read, found, False)
    task.bounds, task.apart = plan.write, plan.count > 1
    look_for_middles(&task, found)
    try:
        if to._foreign is not None:
            announce_clamp(to, &task, &work)
        PyErr_CheckSignals()        # Ctrl-C acts here, before anything is written
    except:
        end(&task, &work, &scratch)
        raise
    task.to = to.leaf
    with nogil:
        run(&task, &work, False)
        fold_groups(&task, work.count, &found.total)
    if found.total.nans + found.total.infs:
        found.first_index, found.unnamed = first_of(found, read, scratch.room, False), read
        task.leaf, task.source, task.write, task.stage = to.leaf, source, plan.write, NOT_FINITE
        task.per_unit = plan.count > 1      # no leaf is cut: units are leaves
        with nogil:
            run(&task, &work, True)
    end(&task, &work, &scratch)
    if found.total.outside or to.source != NULL:
        to.written()
    try:
        found.name_first()
        if task.uncertain and are_kept(to, found):
            settle(found, read)
            task.uncertain = False
    except Exception:           # all is written: nothing may fail any more. A name that fails is asked for again
        pass
    if task.uncertain:
        take_for_middles(found)
    return 0


cdef bint are_kept(Leaves to, Sums found) noexcept:
    """Whether the sources of a clamp are still as they were measured: nothing was written, or only other leaves were."""
    cdef Py_ssize_t i
    if found.total.outside == 0:
        return True
    for i in range(to.count):
        if to.source == NULL or to.leaf[i].data == to.source[i].data:
            return False
    return True


cdef int announce_clamp(Leaves to, Task *task, const Work *work) except -1:
    """Tell PyTorch of those of its tensors that a clamp is going to change: where that is not known, read until it is."""
    cdef Py_ssize_t i
    if not to.has_tensors():
        return 0
    apart = [to.source != NULL and to.leaf[i].data != to.source[i].data for i in range(to.count)]
    if not all(apart):
        memset(task.unit, 0, to.count * sizeof(gc_measured))
        task.stage = UNTIL_OUTSIDE
        with nogil:
            run(task, work, False)
        if task.watch.stopped:
            gc_raise()
        task.stage = SINCE_OUTSIDE if to.source == NULL else ALL_GROUPS
    to.announce([apart[i] or task.unit[i].outside for i in range(to.count)])
    return 0
