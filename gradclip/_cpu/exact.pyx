# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Exact sums: what is read once more where the bits of a read pass do not tell a norm, or on which side of its threshold it
lies.

A read pass knows how exact its sums are (kernels/middle.h). `settle` looks for those that may lie in the middle between two
norms, sums their elements in integers (kernels/exact.h), and moves them to the side where they belong. So norms, factors and
decisions, which are made of these sums, are functions of the exact sums alone. That is done before anything is written.

Targets (units, samples, or all leaves together) are cut into pieces of a segment or less. A thread adds a run of pieces, and
integers may be added in any order: neither threads nor pieces can reach a result."""
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_RawFree, PyMem_RawMalloc, PyMem_Realloc
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t
from numpy cimport import_array

from fractions import Fraction

import numpy as np

from gradclip._cpu.fold cimport Sum, clear as clear_sum, complete, ldexpl
from gradclip._cpu.fpenv cimport gc_fpenv, gc_fp_enter, gc_fp_leave
from gradclip._cpu.machine cimport ROOM, SERIAL_BYTES, gc_kernels, kernels, share_out, team_size
from gradclip._cpu.memory cimport doubles, flags, indices
from gradclip._cpu.middle cimport Precision, precision_of, take_for_middle, tells_norm
from gradclip._cpu.plan cimport Plan, Write
from gradclip._cpu.scalar cimport gc_bin_width, gc_measured
from gradclip._cpu.sums cimport ALL, Sums
from gradclip._cpu.watch cimport Watch, gc_raise, interrupted
from gradclip._leaves.layout cimport gc_leaf, gc_unit
from gradclip._leaves.leaves cimport Leaves

import_array()

cdef extern from "exact.h" nogil:
    enum:
        LIMBS "GC_LIMBS"
        LOWEST "GC_LOWEST"
    ctypedef struct ExactSum "gc_exact":
        uint64_t limb[1]
        int bottom, top
    ctypedef struct Bins "gc_bins":
        pass
    ctypedef struct Number "gc_number":
        pass
    void clear "gc_exact_clear"(ExactSum *s)
    void share "gc_exact_share"(ExactSum *into, const ExactSum *part)
    void reset "gc_exact_reset"(ExactSum *s)
    void trim "gc_exact_carry"(ExactSum *s)
    void clear_bins "gc_bins_clear"(Bins *b)
    void empty_bins "gc_bins_empty"(Bins *b, ExactSum *into, bint squares)
    void read_exactly "gc_exact_read"(const gc_kernels *k, const gc_leaf *leaf, ptrdiff_t first, ptrdiff_t end, bint squares,
                                      const Write *made, char *room, Bins *bins, ExactSum *into)
    Number number_from "gc_number_from"(double x)
    int side_of "gc_exact_side"(const ExactSum *s, const Number *a, const Number *b, bint squares)
    void round_to_side "gc_exact_settle"(gc_measured *u, const ExactSum *s, double ord, double grad_scale)

cdef enum:
    PIECE = 1 << 16     # elements
    BATCH = 1 << 11     # sums that are held at a time
    SLOWER = 8          # than the pass: so much sooner threads are worth it


cdef struct Piece:
    Py_ssize_t target               # whose sum; of short units the first of `count` targets, each a unit
    bint short                      # whether these are units that need no other piece
    ptrdiff_t leaf, unit, count     # units of a leaf,
    ptrdiff_t first, end            # and which elements of each


cdef struct Task:               # what the chunks of one region share
    const gc_leaf *leaf
    const Piece *piece
    ExactSum *sum               # of targets that are no short units
    const Write *write          # what is summed as if it was already done, or NULL;
    bint per_unit               # whether that differs by unit
    double order, grad_scale
    gc_measured *unit           # what is settled, by the number of the target;
    const Py_ssize_t *which     # NULL: the only one
    const double *threshold     # or, where this is not NULL, what is compared with it: `above` for each target
    unsigned char *above
    char *memory
    size_t each                 # bytes of it for each thread
    Watch watch


cdef void conclude(const Task *t, Py_ssize_t target, const ExactSum *sum) noexcept nogil:
    """Do with the sum of a target what it is for. To be called in the standard floating-point state."""
    cdef Number number, scale
    if t.threshold != NULL:
        number, scale = number_from(t.threshold[target]), number_from(t.grad_scale)
        t.above[target] = side_of(sum, &number, &scale, t.order == 2) > 0
    elif t.unit != NULL:
        round_to_side(&t.unit[0 if t.which == NULL else t.which[target]], sum, t.order, t.grad_scale)


cdef void finish(const Task *t, Bins *bins, ExactSum *own, Py_ssize_t target) noexcept nogil:
    """Give a target, unless it is -1, what a thread added up for it."""
    if target >= 0:
        empty_bins(bins, own, t.order == 2)
        share(&t.sum[target], own)
        reset(own)


cdef void add_chunk(Task *t, ptrdiff_t begin, ptrdiff_t end, int thread) noexcept nogil:
    """Add some pieces, each to the sum of its target; short units are concluded at once."""
    cdef char *room = t.memory + thread * t.each
    cdef Bins *bins = <Bins *>(room + ROOM)
    cdef ExactSum *own = <ExactSum *>(bins + 1)
    cdef bint squares = t.order == 2
    cdef Py_ssize_t target = -1
    cdef ptrdiff_t i, j
    cdef const Piece *p
    cdef const Write *made
    cdef gc_leaf one
    cdef gc_fpenv saved = gc_fp_enter()
    clear_bins(bins)
    clear(own)
    for i in range(begin, end):
        if i and interrupted(&t.watch, thread, &saved):
            break
        p = &t.piece[i]
        if p.short or p.target != target:
            finish(t, bins, own, target)
            target = -1 if p.short else p.target
        for j in range(p.count):
            one = gc_unit(&t.leaf[p.leaf], p.unit + j)
            made = t.write + one.first_unit if t.per_unit else t.write
            read_exactly(kernels, &one, p.first, p.end, squares, made, room, bins, own)
            if p.short:
                empty_bins(bins, own, squares)
                conclude(t, p.target + j, own)
                reset(own)
    finish(t, bins, own, target)
    gc_fp_leave(saved)


cdef struct Share:              # a region that is shared out
    Task *task
    Py_ssize_t count, chunk


cdef void add_share(void *of, ptrdiff_t i, int thread) noexcept nogil:
    cdef const Share *s = <const Share *>of
    add_chunk(s.task, i * s.chunk, min((i + 1) * s.chunk, s.count), thread)


cdef void add_all(Task *t, Py_ssize_t count, int team) noexcept nogil:
    """Add all pieces, on one thread or on a team."""
    cdef Share share = Share(t, count, max(1, count // (16 * team)))
    if team == 1:
        add_chunk(t, 0, count, 0)
    else:
        share_out(add_share, &share, (count + share.chunk - 1) // share.chunk, team)


cdef class Exact:
    """The exact sums of some targets: of units or their owners `which`, in rising order; or (NULL) one, of the units before
    `limit`."""
    cdef Task task
    cdef Py_ssize_t count, limit
    cdef bint by_owner, short           # whether targets are owners; whether all of them are short units
    cdef object numbers                 # of the owner of each unit, -1: none. None: units of each leaf have owners 0, 1, ...
    cdef const Py_ssize_t *owner        # the same, or NULL
    cdef Piece *piece
    cdef Py_ssize_t pieces, room
    cdef ptrdiff_t elements

    def __cinit__(self, Py_ssize_t count, double order, double grad_scale=1, bint by_owner=False, bint short=False):
        cdef Py_ssize_t i
        self.count, self.by_owner, self.short = count, by_owner, short
        self.task.order, self.task.grad_scale = order, grad_scale
        if not short:
            self.task.sum = <ExactSum *>PyMem_Malloc(max(count, 1) * sizeof(ExactSum))
            if self.task.sum == NULL:
                raise MemoryError
            for i in range(count):
                clear(&self.task.sum[i])

    def __dealloc__(self):
        PyMem_Free(self.task.sum)
        PyMem_Free(self.piece)

    cdef int set_owners(self, object numbers) except -1:
        """Say which units belong to which owner."""
        if numbers is not None and len(numbers):
            self.numbers, self.owner = numbers, indices(numbers)
        return 0

    cdef int add(self, Leaves leaves) except -1:
        """Add all elements of the targets: of leaves on the host in one region, then of those on GPUs, brought one by one."""
        cdef const gc_leaf *leaf = leaves.leaf if leaves.source == NULL else leaves.source
        cdef Py_ssize_t i
        cdef Leaves here
        cdef gc_leaf brought
        cdef gc_fpenv saved
        for i in range(leaves.count):
            if not leaf[i].device:
                self.cut_leaf(&leaf[i], i)
        self.run(leaf)
        for i in range(leaves.count if leaves.on_device else 0):
            if leaf[i].device and self.concerns(&leaf[i]):
                here = Leaves([leaves.brought(leaves.sources[i])])
                if leaves.unit_axes is not None:
                    here.cut([leaves.unit_axes[i]])
                brought = here.leaf[0]
                brought.first_unit, brought.becomes = leaf[i].first_unit, leaf[i].becomes
                self.cut_leaf(&brought, 0)
                self.run(&brought)
        if not self.short:
            saved = gc_fp_enter()
            for i in range(self.count):
                conclude(&self.task, i, &self.task.sum[i])
            gc_fp_leave(saved)
        return 0

    cdef bint concerns(self, const gc_leaf *leaf) noexcept:
        """Whether some target has elements in a leaf."""
        cdef Py_ssize_t i = self.target_at(leaf)
        if self.task.which == NULL:
            return leaf.first_unit < self.limit
        return self.by_owner or (i < self.count and self.task.which[i] < leaf.first_unit + leaf.units)

    cdef Py_ssize_t target_at(self, const gc_leaf *leaf) noexcept:
        """The first target at or behind the first unit of a leaf."""
        return 0 if self.by_owner else self.target_from(leaf.first_unit)

    cdef Py_ssize_t target_from(self, Py_ssize_t number) noexcept:
        """The first target whose number is not below one."""
        cdef Py_ssize_t low = 0, high = 0 if self.task.which == NULL else self.count, middle
        while low < high:
            middle = (low + high) // 2
            if self.task.which[middle] < number:
                low = middle + 1
            else:
                high = middle
        return low

    cdef int cut_leaf(self, const gc_leaf *leaf, Py_ssize_t index) except -1:
        """Put the pieces of a leaf that belong to targets on the list."""
        cdef const Py_ssize_t *which = self.task.which
        cdef Py_ssize_t i = self.target_at(leaf), first = 0 if self.by_owner else leaf.first_unit, same
        if leaf.size == 0 or leaf.units == 0:
            return 0
        if self.owner != NULL:
            return self.cut_owned(leaf, index)
        if which == NULL:
            if leaf.first_unit < self.limit:
                self.cut_units(leaf, index, 0, 0, leaf.units)
            return 0
        while i < self.count and which[i] - first < leaf.units:
            same = 1
            while self.short and i + same < self.count and which[i + same] - first < leaf.units and \
                    which[i + same] == which[i] + same:
                same += 1
            self.cut_units(leaf, index, i, which[i] - first, same)
            i += same
        return 0

    cdef int cut_owned(self, const gc_leaf *leaf, Py_ssize_t index) except -1:
        """Put the pieces of those units of a leaf on the list whose owner is a target."""
        cdef Py_ssize_t number, target
        cdef ptrdiff_t unit
        for unit in range(leaf.units):
            number = self.owner[leaf.first_unit + unit]
            target = self.target_from(number)
            if number >= 0 and (self.task.which == NULL or (target < self.count and self.task.which[target] == number)):
                self.cut_units(leaf, index, target, unit, 1)
        return 0

    cdef int cut_units(self, const gc_leaf *leaf, Py_ssize_t index, Py_ssize_t target, ptrdiff_t unit,
                       ptrdiff_t count) except -1:
        """Put the pieces of some units of a leaf on the list."""
        cdef ptrdiff_t first, i = 0, each = max(<ptrdiff_t>1, PIECE // leaf.size)
        self.elements += count * leaf.size
        while i < count:
            if leaf.size <= PIECE:
                self.put(Piece(
                    target + (i if self.short else 0), self.short, index, unit + i, min(each, count - i), 0, leaf.size))
                i += each
                continue
            first = 0
            while first < leaf.size:
                self.put(Piece(target, False, index, unit + i, 1, first, min(first + <ptrdiff_t>PIECE, leaf.size)))
                first += PIECE
            i += 1
        return 0

    cdef int put(self, Piece piece) except -1:
        cdef Piece *more
        if self.pieces == self.room:
            more = <Piece *>PyMem_Realloc(self.piece, (2 * self.room + 64) * sizeof(Piece))
            if more == NULL:
                raise MemoryError
            self.piece, self.room = more, 2 * self.room + 64
        self.piece[self.pieces] = piece
        self.pieces += 1
        return 0

    cdef int run(self, const gc_leaf *leaf) except -1:
        """Add the pieces on the list, which is empty afterwards."""
        cdef Py_ssize_t count = self.pieces
        cdef int team = 1
        if count == 0:
            return 0
        if self.elements * SLOWER * <ptrdiff_t>sizeof(double) >= SERIAL_BYTES:
            team = team_size(count)
        self.pieces = self.elements = 0
        self.task.leaf, self.task.piece = leaf, self.piece
        self.task.watch.due, self.task.watch.stopped = 0, False
        self.task.each = ROOM + sizeof(Bins) + sizeof(ExactSum)
        self.task.memory = <char *>PyMem_RawMalloc(team * self.task.each)
        if self.task.memory == NULL:
            raise MemoryError
        with nogil:
            add_all(&self.task, count, team)
        PyMem_RawFree(self.task.memory)
        if self.task.watch.stopped:
            gc_raise()
        PyErr_CheckSignals()
        return 0

    cdef object integer(self, Py_ssize_t k=0):
        """Sum k in units of 2**LOWEST."""
        cdef Py_ssize_t i
        words = np.empty(LIMBS, "<u4")
        for i in range(LIMBS):
            words[i] = self.task.sum[k].limb[i]
        return int.from_bytes(words.tobytes(), "little")


cdef bint is_rational(const gc_leaf *leaf, double order) noexcept:
    """Whether the terms of a sum over a leaf are rational numbers: magnitudes of complex numbers are not."""
    return order == 2 or not leaf.is_complex


cdef bint all_rational(Leaves leaves, double order, Py_ssize_t limit) noexcept:
    """Whether those of a sum over all units before `limit` are."""
    cdef const gc_leaf *leaf = leaves.leaf if leaves.source == NULL else leaves.source
    cdef Py_ssize_t i
    for i in range(leaves.count):
        if leaf[i].first_unit < limit and not is_rational(&leaf[i], order):
            return False
    return True


cdef Exact total_of(Leaves leaves, Sums sums, Py_ssize_t limit, gc_measured *all):
    """The exact sum of all units before `limit`, to which `all` is settled."""
    cdef Exact exact = Exact(1, sums.order, sums.grad_scale)
    exact.limit, exact.task.unit = limit, all
    exact.set_owners(sums.owner)
    exact.add(leaves)
    return exact


cdef int sum_units(Leaves leaves, Sums sums, object units, const double *thresholds, unsigned char *above) except -1:
    """Sum some units or owners exactly, in rising order: they are settled or, where there are thresholds, compared with
    these."""
    cdef const Py_ssize_t *which = indices(units)
    cdef const gc_leaf *leaf = leaves.leaf if leaves.source == NULL else leaves.source
    cdef bint by_owner = sums.by_unit is not None, short
    cdef Py_ssize_t start = 0, end, k = 0, n = len(units)
    cdef Exact exact
    while start < n:        # as many as are alike: short units, or others that are not too many to be held
        end, short = start, False
        while end < n and (short or end - start < BATCH):
            while not by_owner and which[end] >= leaf[k].first_unit + leaf[k].units:
                k += 1
            if end == start:
                short = not by_owner and leaf[k].size <= PIECE
            if short != (not by_owner and leaf[k].size <= PIECE):
                break
            end += 1
        exact = Exact(end - start, sums.order, sums.grad_scale, by_owner, short)
        exact.set_owners(sums.owner)
        exact.task.which = &which[start]
        if thresholds == NULL:
            exact.task.unit = sums.unit
        else:
            exact.task.threshold, exact.task.above = &thresholds[start], &above[start]
        exact.add(leaves)
        start = end
    return 0


cdef object uncertain(Sums sums, Leaves leaves, Py_ssize_t first, const Precision *p):
    """The units from `first` on of which only an exact sum tells the norm, and can tell it."""
    cdef const gc_leaf *leaf = leaves.leaf if leaves.source == NULL else leaves.source
    cdef bint by_owner = sums.by_unit is not None
    cdef Py_ssize_t i, k = 0
    cdef const gc_measured *u
    cdef const Py_ssize_t *owner
    cdef unsigned char *flag
    while first < sums.count and tells_norm(&sums.unit[first], p):
        first += 1
    if first == sums.count or (by_owner and sums.owner is None and not all_rational(leaves, sums.order, leaves.units)):
        return ()
    found = np.zeros(sums.count, np.uint8)
    flag = flags(found)
    for i in range(first, sums.count):
        u = &sums.unit[i]
        if tells_norm(u, p) or (not sums.finite_only and u.nans + u.infs):
            continue
        while not by_owner and i >= leaf[k].first_unit + leaf[k].units:
            k += 1
        flag[i] = by_owner or is_rational(&leaf[k], sums.order)
    if sums.owner is not None:
        owner = indices(sums.owner)
        for k in range(leaves.count):
            for i in range(0 if is_rational(&leaf[k], sums.order) else leaf[k].units):
                if owner[leaf[k].first_unit + i] >= 0:
                    flag[owner[leaf[k].first_unit + i]] = 0
    return np.flatnonzero(found)


def tells(Sums sums):
    """Whether the sum of all tells its norm."""
    cdef gc_fpenv saved = gc_fp_enter()
    cdef Precision p = precision_of(sums.order, sums.grad_scale, sums.relative_error())
    cdef gc_measured all = sums.at(ALL)
    cdef bint result = (sums.order != 1 and sums.order != 2) or tells_norm(&all, &p)
    gc_fp_leave(saved)
    return result


cpdef settle(Sums sums, Leaves leaves, Py_ssize_t first=0, bint total=True):
    """Let the norms of the units from `first` on, and of all together, be the correctly rounded ones: of real numbers, and for
    order 2 of complex ones too. Where the sums do not tell these, the elements are read again, so nothing may be written yet.

    leaves: those of the read pass. They may have units behind those of `sums`, which are left out."""
    cdef double order = sums.order
    cdef Py_ssize_t limit = leaves.units if sums.by_unit is not None else sums.count
    cdef Precision p
    cdef gc_measured all
    cdef Exact exact
    cdef gc_fpenv saved
    if order != 1 and order != 2:
        return
    saved = gc_fp_enter()
    try:
        p = precision_of(order, sums.grad_scale, sums.relative_error())
        which = uncertain(sums, leaves, first, &p)
        all = sums.at(ALL)
        total = total and not tells_norm(&all, &p)
    finally:
        gc_fp_leave(saved)
    if len(which):
        sum_units(leaves, sums, which, NULL, NULL)
    if total and (sums.finite_only or not sums.nonfinite_of(ALL)) and all_rational(leaves, order, limit):
        exact = total_of(leaves, sums, limit, &all)
        sums.total.high, sums.total.low, sums.total.bin = all.high, all.low, all.bin
        sums.exact_total = exact.integer(), LOWEST


cdef void take_for_middles(Sums sums) noexcept:
    """Let norms that their sums do not tell be rounded as if these were in the middle: where the elements cannot be read again.

    They mostly are, as of equal elements. By chance a sum comes so close to a middle once in some 100,000 times."""
    cdef gc_fpenv saved = gc_fp_enter()
    cdef Precision p = precision_of(sums.order, sums.grad_scale, sums.relative_error())
    cdef gc_measured all = sums.at(ALL)
    cdef Py_ssize_t i
    for i in range(sums.count):
        if not tells_norm(&sums.unit[i], &p):
            take_for_middle(&sums.unit[i], &p)
    if not tells_norm(&all, &p):
        take_for_middle(&all, &p)
        sums.total.high, sums.total.low, sums.total.bin = all.high, all.low, all.bin
    gc_fp_leave(saved)


def exact_sum(Leaves leaves, double ord, Plan plan=None, unit=None, bint by_owner=False, owner=None):
    """The sum of the squares (ord 2) or magnitudes (ord 1) of all finite elements, as a Fraction.

    plan: what is summed is what it would write.
    unit: of this unit alone or, with `by_owner`, of all units of this owner
    owner: which units these are, as `Sums.by_owner` takes it"""
    cdef Exact exact = Exact(1, ord, 1, by_owner)
    cdef Py_ssize_t which = -1 if unit is None else unit
    exact.limit = leaves.units
    exact.set_owners(owner)
    if which >= 0:
        exact.task.which = &which
    if plan is not None:
        exact.task.write, exact.task.per_unit = plan.write, plan.count > 1
    exact.add(leaves)
    return Fraction(exact.integer()) * Fraction(2) ** LOWEST


def exact_sums(Leaves leaves, double ord, units, owner, Plan plan=None):
    """The sums of some owners of units as a list, each as `exact_sum` gives it.

    units: numbers of owners, in rising order; owner: of each unit, -1: it has none
    plan: what is summed is what it would write"""
    cdef const Py_ssize_t *which = indices(units)
    cdef Py_ssize_t start, i, count = len(units)
    cdef Exact exact
    found = []
    for start in range(0, count, BATCH):
        exact = Exact(min(<Py_ssize_t>BATCH, count - start), ord, 1, True)
        exact.set_owners(owner)
        exact.task.which = &which[start]
        if plan is not None:
            exact.task.write, exact.task.per_unit = plan.write, plan.count > 1
        exact.add(leaves)
        found += [Fraction(exact.integer(i)) * Fraction(2) ** LOWEST for i in range(exact.count)]
    return found


def exceed(Leaves leaves, Sums sums, units, thresholds):
    """Return whether the exact norm of each of some units exceeds its threshold, as uint8.

    leaves: those that were measured
    units: in rising order; None: all together, one threshold
    thresholds: of these units, finite"""
    cdef const double *threshold = doubles(thresholds)
    cdef Exact exact
    found = np.empty(len(thresholds), np.uint8)
    cdef unsigned char *above = flags(found)
    if units is not None:
        sum_units(leaves, sums, units, threshold, above)
    else:
        exact = Exact(1, sums.order, sums.grad_scale)
        exact.limit, exact.task.threshold, exact.task.above = leaves.units, threshold, above
        exact.add(leaves)
    return found


def sums_of(total, exponent, double ord, double grad_scale, bint finite_only, max_abs, found):
    """Return the Sums of leaves that were measured elsewhere: no units, and the integer total * 2**exponent for all.

    Their norm is the correctly rounded one of this total, for order 2 and for order 1.

    found: how many elements are NaN, how many Inf, and the place of the first of them."""
    cdef Sums sums = Sums(0, 0, ord, grad_scale, finite_only)
    cdef double order = sums.order
    sums.total.nans, sums.total.infs, sums.first_nonfinite = found
    sums.true_max = max_abs
    if total:
        set_total(&sums.total, total, exponent, order, grad_scale)
    return sums


def merged_sums(Sums units, owner, Sums own, which, parts, Sums whole):
    """Return the Sums of units or their owners whose norms run over leaves of other ranks too.

    units, owner: what was measured here, and the owner of each unit
    own: the norms that are not shared
    which, parts: the norms that are, and of each the sum (total * 2**exponent) and the counts of NaN and Inf of all ranks
    whole: the sum of all"""
    cdef Sums sums = units.by_owner(own.count, owner)
    cdef Py_ssize_t i
    cdef Sum sum
    for i in range(own.count):
        sums.unit[i] = own.unit[i]
    for i, part in zip(which, parts):
        clear_sum(&sum)
        sum.nans, sum.infs = part.nans, part.infs
        if part.total:
            set_total(&sum, part.total, part.exponent, sums.order, sums.grad_scale)
        complete(&sums.unit[i], &sum)
    sums.total, sums.true_max, sums.exact_total = whole.total, whole.true_max, whole.exact_total
    sums.first_nonfinite = whole.first_nonfinite
    return sums


cdef int set_total(Sum *sum, total, exponent, double order, double grad_scale) except -1:
    """Let a sum be the integer total * 2**exponent, above 0, whose norm is the correctly rounded one for orders 1 and 2."""
    cdef ExactSum exact
    cdef gc_measured all
    cdef gc_fpenv saved
    cdef bytes data
    cdef const unsigned char *byte
    cdef Py_ssize_t j
    sum.amax = 1
    size = total.bit_length() + exponent
    if order == 0:
        sum.amax = ldexpl(<double>float(Fraction(total) / Fraction(2) ** total.bit_length()), <int>size)
    elif order == 1 or order == 2:
        shift = exponent - LOWEST
        units = total << shift if shift >= 0 else total >> -shift | (total & (1 << -shift) - 1 != 0)
        data = units.to_bytes(4 * LIMBS, "little")
        byte = data
        for j in range(LIMBS):
            exact.limb[j] = byte[4 * j] | byte[4 * j + 1] << 8 | byte[4 * j + 2] << 16 | <uint64_t>byte[4 * j + 3] << 24
        exact.bottom, exact.top = 0, LIMBS - 1
        trim(&exact)
        saved = gc_fp_enter()
        complete(&all, sum)
        round_to_side(&all, &exact, order, grad_scale)
        gc_fp_leave(saved)
        sum.high, sum.low, sum.bin = all.high, all.low, all.bin
    else:
        if not -800 <= size <= 1000:
            sum.bin = (size + gc_bin_width(order) // 2) // gc_bin_width(order)
        part = Fraction(total) * Fraction(2) ** (exponent - gc_bin_width(order) * <object>sum.bin)
        sum.high = <double>float(part)
        sum.low = <double>float(part - Fraction(<double>sum.high))
    return 0
