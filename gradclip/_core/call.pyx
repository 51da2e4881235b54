# cython: language_level=3
"""The way of one call, which every in-place and functional pair shares: check everything, read, decide, write.

What a call asks for is a Request. Most techniques make one as it is; where leaves are cut into units, or thresholds follow from
what is read, a subclass in the technique's file overrides one of the steps. This is compiled because a small call passes
through it in less time than a dozen calls of Python functions take, and so that warnings name the caller's line."""
cimport cython

import math

from numpy cimport import_array, PyArray_Check

from gradclip._core.arguments import number
from gradclip._core.engine import HOST, on_devices
from gradclip._core.mode import CLIP
from gradclip._core.options import DEFAULT, Options
from gradclip._core.rounding import exact_order
from gradclip._cpu.passes cimport measure as measure_on_host
from gradclip._cpu.plan cimport Plan, plan_of_all
from gradclip._cpu.scalar cimport GC_KEEP
from gradclip._cpu.sums cimport Sums
from gradclip._leaves.leaves cimport Leaves
from gradclip.report cimport ClipReport, clipped, unclipped
from gradclip.thresholds import Threshold
from gradclip.thresholds.base import number_or_rule

import_array()

cdef object ONE = 1


@cython.freelist(8)
cdef class Request:
    """What is to be decided of some leaves.

    Attributes
    ----------
    options : Options
    threshold : float, Threshold or float64 array
        One for all units together, or the rule that gives it; or one of each unit.
    shown : float or what the caller gave
        The ``max_norm`` of the report.
    mode : Mode
    lr : float
        What a step multiplies by.
    to : Leaves, set by the call
        What is written; `Leaves.sources` are what this is made of.
    fresh : bool, set by the call
        Whether `to` is memory that nobody has seen yet, and is filled even where nothing is clipped or a step is skipped.
    by_owner : bool
        Whether a norm is that of an owner of several units: of a sample, which has one in each leaf, or of a group of leaves.
    owner : intp array or None
        The number of the owner of each unit, -1: none, and then the unit is neither measured nor written. None: they belong to
        owners in turn. Where this is given, `elsewhere` is True.
    counted : int or None
        The ``size`` of the report, if it is not the number of all units or owners.
    share : Fraction or float
        How much of the sum behind the norm belongs to `to`, for orders that are not RATIONAL of the norm: `strict` bounds that.
    partial : bool
        Whether the norm runs, or may run, over more than `to`, so that only its sum tells on which side of a threshold it lies.
    found : Sums or None
        What was measured of `to`, leaf by leaf, where the norm was measured before the call.
    norms : float64 array or None
        The ``norms`` of the report, if they are not those that were measured.
    elsewhere : bool
        Whether it is decided on the host, wherever the leaves lie: the norm was measured before the call, or units have owners
        of any kind.
    skips : bool
        Whether the step is left out because its norm is above ``skip_above``: nothing is written, whatever the threshold.
    shared : bool
        Whether the options are SharedOptions: there is a `comm` or `owned`.
    """

    def __init__(self, options, threshold, shown=None, mode=CLIP):
        self.ask(options, threshold, shown, mode)

    cdef int ask(self, options, threshold, shown, mode) except -1:
        """Say what is to be decided, when this is made."""
        self.options = options
        self.shared = options is not DEFAULT and options.shared
        self.threshold = threshold
        self.shown = threshold if shown is None else shown
        self.mode = mode
        self.lr = self.share = ONE
        return 0

    # ---- the steps, in order ----------------------------------------------------------------------

    cpdef Leaves prepare(self, Leaves leaves):
        """Return the leaves that the read pass is to read, after every check of them that needs no reading."""
        return leaves

    cpdef Leaves target(self, Leaves leaves, out):
        """Return the leaves that receive results: new ones, or those of `out`."""
        return leaves.target(out)

    cpdef decide(self, engine, Leaves read):
        """Return the report, and the plan that is to be written: None if nothing is."""
        sums = self.measure(engine, read)
        if self.options.skip_above is not None and self.is_left_out(sums):
            if self.shared:
                self.options.agree_on_rules(self)
            return engine.decide(self, sums)
        if not (type(self.threshold) is float or PyArray_Check(self.threshold)) and isinstance(self.threshold, Threshold):
            self.threshold = self.shown = asked("max_norm", self.threshold, sums, self.options)
        if self.shared:
            self.options.agree_on_rules(self)
        if engine is HOST and type(self.threshold) is float and self.mode is CLIP and not self.shared:
            if self.to.source == NULL and self.options.plain and (<Sums?>sums).keeps(self.threshold):
                return unclipped(sums, self.shown, self.to.units, self.norms), None     # the usual step, kept short
            if not (self.options.strict or self.by_owner) and self.counted is None and (<Sums?>sums).is_finite():
                return self.decide_for_all(sums)
        return engine.decide(self, sums)

    cdef decide_for_all(self, Sums sums):
        """Return what the engine of the host decides where one threshold is that of all leaves and all elements are finite:
        a third of a small call that clips, where that took half."""
        cdef Plan plan = plan_of_all(sums, self.threshold, self.options.eps)
        report = clipped(sums, self.shown, self.to.units, self.norms, plan, plan.write.clips)
        return report, plan if self.to.is_target or plan.write.kind != GC_KEEP else None

    cdef bint is_left_out(self, sums) except -1:
        """Whether the norm is above ``skip_above``; then the report shows this threshold, if `max_norm` is a rule.

        NaN and Inf among the elements are the business of ``nonfinite``: they make no norm that is above anything."""
        limit = self.options.skip_above
        if type(limit) is not float:
            limit = asked("skip_above", limit, sums, self.options)
        norm = sums.norm()
        self.skips = norm > limit and (math.isfinite(norm) or not sums.nonfinite())
        if self.skips and isinstance(self.threshold, Threshold):
            self.threshold = self.shown = limit
        return self.skips

    cpdef measure(self, engine, Leaves read):
        """Return the sums that a read pass over the leaves finds; with `comm` or `owned`, those that the norm runs over."""
        options = self.options
        if self.shared:
            return options.measure(self, engine, read)
        if engine is HOST:
            return measure_on_host(read, options.ord, options.grad_scale, options.finite_only)      # sooner than by HOST
        return engine.measure(read, options.ord, options.grad_scale, options.finite_only)

    cpdef write(self, engine, plan):
        """Write what was decided: the write pass."""
        engine.write(self.to, plan)


cdef class ByValue(Request):
    """A request to bring every element into [low, threshold]: two floats, or float64 of the bounds of each leaf.

    It is compiled, because for a small leaf Python takes longer than the pass."""
    cdef public object low

    cpdef Leaves prepare(self, Leaves leaves):
        cdef Py_ssize_t i
        for i in range(leaves.count):
            if leaves.leaf[i].is_complex:
                raise TypeError(f"{leaves.path(i)}: complex numbers have no order; clip by norm instead")
        return leaves

    cpdef decide(self, engine, Leaves read):
        return engine.clamp(self, read, self.low, self.threshold)


cdef object asked(str name, rule, sums, options):
    """The threshold that a rule, the argument `name`, gives this step."""
    if options.nonfinite == "raise" and sums.nonfinite():
        return math.inf
    return number(f"{name}: {type(rule).__name__}.next_threshold", rule.next_threshold(sums.norm()), 0.0)


cpdef options_of(dict norm):
    """The Options of a call in which one norm rules. With `comm` or `owned` they are SharedOptions, whose module is imported
    then.

    norm : the keywords of this call, a dict that nobody else has. `tell_ranks` finds in it how far the ranks came"""
    if not norm:
        return DEFAULT
    if (norm.get("comm") is None and norm.get("owned") is None):
        return Options.of(norm)
    from gradclip._ranks.shared import SharedOptions

    options = SharedOptions(norm)
    if norm.get("comm") is not None:
        norm["comm"] = options.session
    return options


def unit_options_of(dict norm):
    """The Options of a call in which units have norms of their own: as `options_of`, but SharedUnits."""
    if norm.get("comm") is None and norm.get("owned") is None:
        return Options.of_units(norm)
    from gradclip._ranks.units import SharedUnits

    options = SharedUnits(norm)
    if norm.get("comm") is not None:
        norm["comm"] = options.session
    return options


cpdef tell_ranks(dict norm, error):
    """Let the other ranks of a call know of an error before it is raised here, so that none of them waits for this one."""
    if norm and norm.get("comm") is not None:
        from gradclip._ranks.exchange import tell

        tell(norm, error)


cpdef total_threshold(max_norm):
    """Return a threshold of the norm of all leaves, checked: a float, or the rule itself."""
    if type(max_norm) is float and <double>max_norm > 0:
        return max_norm
    return number_or_rule("max_norm", max_norm)


def total(dict norm, max_norm):
    """The Request that brings the norm of all leaves to a threshold, after a check of both: sooner made than by a call of the
    class."""
    cdef Request request = Request.__new__(Request)
    options = options_of(norm)
    request.ask(options, total_threshold(max_norm), None, CLIP)
    return request


# ---- the bodies of public functions --------------------------------------------------------------
#
# norm is the ``**norm`` of the call, and make(norm, *args) returns the Request that the call stands for, after a check of both.

def in_place(grads, dict norm, make, *args):
    """Serve a call on `grads` themselves; returns the report."""
    try:
        return serve_in_place(grads, made(norm, make, args))
    except BaseException as error:
        tell_ranks(norm, error)
        raise


def functional(grads, out, dict norm, make, *args):
    """Serve a call that leaves `grads` untouched; returns (results, report), the results in new leaves or those of `out`."""
    try:
        return serve_functional(grads, made(norm, make, args), out)
    except BaseException as error:
        tell_ranks(norm, error)
        raise


def onto(params, grads, dict norm, make, *args):
    """Serve a call that changes `params` by `grads`; returns the report."""
    cdef Leaves leaves
    cdef Request request
    try:
        request = made(norm, make, args)
        leaves = Leaves(grads)
        request.to = leaves.onto(params)
        report = served(request, request.prepare(leaves), leaves, None)
        leaves.release()
        return report
    except BaseException as error:
        tell_ranks(norm, error)
        raise


cdef Request made(dict norm, make, tuple args):
    """The Request of a call."""
    return make(norm, args[0]) if len(args) == 1 else make(norm, *args)


cpdef serve_in_place(grads, Request request):
    """Serve a request on `grads` themselves; returns the report."""
    cdef Leaves leaves = Leaves.__new__(Leaves, grads, True)    # sooner than by a call of the class
    request.to = leaves
    report = served(request, request.prepare(leaves), leaves, None)
    leaves.release()
    return report


cpdef serve_functional(grads, Request request, out):
    """Serve a request that leaves `grads` untouched; returns (results, report), the results in new leaves or those of `out`."""
    cdef Leaves leaves = Leaves(grads, anew=out is None)
    cdef Leaves read = request.prepare(leaves)
    request.to = request.target(leaves, out)
    request.fresh = out is None
    found = served(request, read, leaves, out)
    if out is None:
        found = leaves.rebuild(request.to.arrays), found
    leaves.release()
    return found


def measured(grads, options):
    """Return the sums that one read pass over `grads` finds, and whether their terms are rounded.

    Their norms leave NaN and Inf out if the options say so."""
    cdef Leaves leaves = Leaves(grads)
    sums = engine_of(leaves, True).measure(leaves, options.ord, options.grad_scale, options.finite_only)
    return sums, not exact_order(options.ord, leaves.arrays)


cdef object engine_of(Leaves read, bint elsewhere):
    """Return the engine that serves a call, picked once, here. elsewhere: whether the host decides in any case."""
    return on_devices(read.on_device == read.count and not elsewhere) if read.on_device else HOST


cdef object served(Request request, Leaves read, Leaves leaves, out):
    """Measure, decide and write, after everything was checked; returns the report, or (out, report).

    leaves : those of the gradients, of which the report tells once they are released"""
    if not request.shared:
        return answered(request, read, leaves, out)
    with request.options.session:   # Ctrl-C waits, once ranks have met, until all have written
        return answered(request, read, leaves, out)


cdef object answered(Request request, Leaves read, Leaves leaves, out):
    """Do what `served` does. Nothing that may fail comes after the write pass."""
    engine = engine_of(read, request.elsewhere or request.shared)
    report, plan = request.decide(engine, read)
    (<ClipReport?>report)._leaves = leaves
    if request.shared:
        report = request.options.conclude(request, report)
    found = report if out is None else (out, report)
    if plan is not None:
        request.write(engine, plan)
    return found
