# cython: language_level=3
"""`ClipReport`, which tells what one call measured and did.

It is compiled, because every call makes one: as a class of Python's it took a quarter of the time of a small call. The sums and
the plan that it keeps are asked when an attribute is read. What they have to answer, report.pyi says."""
cimport cython

import numpy as np

from gradclip._core.arguments import whole


@cython.freelist(8)
cdef class ClipReport:
    """A report of what one call measured and did.

    It cannot be changed. ``float(report)`` is the norm, and ``format`` of a report with a format code is that of the norm.
    If leaves lie on a GPU, reading an attribute waits for the GPU.

    Attributes
    ----------
    norm : float
    max_norm : float
    scale : float
    clipped : bool
    skipped : bool
    nonfinite : int
    first_nonfinite : tuple of (str, int) or None
    max_abs : float
    norms : numpy.ndarray
    scales : numpy.ndarray
    clipped_count : int
    size : int
    groups : tuple of str or None
    sensitivity : float or None

    See Also
    --------
    ClipMonitor : A record of the reports of a training.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> report = gradclip.clip_by_global_norm_([np.array([3.0, 4.0])], 1.0)
    >>> report
    ClipReport(norm=5.0, max_norm=1.0, scale=0.2, clipped=True)
    >>> float(report)
    5.0
    >>> f"{report:.2f}"
    '5.00'
    """

    def __init__(self, sums, max_norm, size, plan=None, clipped_count=0, bint skipped=False, norms=None):
        self._sums, self._max_norm, self._size, self._plan = sums, max_norm, size, plan
        self._clipped_count, self._skipped, self._norms = clipped_count, skipped, norms

    cdef ClipReport filled(self):
        """This report, after the numbers of a pending one have been read from the device."""
        if self._fill is not None:
            self.fill()
        return self

    cdef int fill(self) except -1:
        """Read the numbers of a pending report: once, whichever thread asks first."""
        with cython.critical_section(self):
            if self._fill is not None:
                self._sums, self._size, self._plan, self._clipped_count, self._skipped = self._fill()
                self._fill = None       # which frees what it holds on the device
        return 0

    @property
    def norm(self):
        """The norm of all leaves together before clipping, of the gradient divided by `grad_scale`.

        Under ``nonfinite="zero"`` it is the norm of the finite elements. Otherwise it is NaN or Inf if an element is.
        """
        return self.filled()._sums.norm()

    @property
    def max_norm(self):
        """The threshold that was used: the upper bound of `clip_by_value`, the new norm of `normalize`."""
        return self._max_norm

    @property
    def scale(self):
        """The factor that elements were multiplied by, unscaling included.

        It is the smallest one if there were several, and 1.0 if nothing was written.
        """
        plan = self.filled()._plan
        return 1.0 if plan is None else plan.smallest()

    @property
    def clipped(self):
        """Whether clipping changed something.

        With ``strict`` the exact norm decides, which may be above the threshold where `norm` equals `max_norm`. If results are
        rounded to another dtype too, these may keep the threshold as they are. Then this is True all the same, and `scale` 1.0.
        """
        return self.clipped_count > 0 or self._elsewhere

    @property
    def skipped(self):
        """Whether the step is to be left out: by ``nonfinite="skip"`` or because the norm is above ``skip_above``."""
        return self.filled()._skipped

    @property
    def nonfinite(self):
        """How many elements are NaN or Inf."""
        return self.filled()._sums.nonfinite()

    @property
    def first_nonfinite(self):
        """The path of the first leaf with NaN or Inf, and the flat index (C order) of the first such element in it."""
        return self.filled()._sums.first_nonfinite

    @property
    def max_abs(self):
        """The largest finite magnitude of an element, of the gradient divided by `grad_scale`."""
        return self.filled()._sums.max_abs()

    @property
    def norms(self):
        """The norms before clipping, float64, one per leaf in order.

        If slices, units or samples have factors of their own, there is one norm for each of these.
        """
        return read_only(self.filled()._sums.norms() if self._norms is None else self._norms)

    @property
    def clipped_count(self):
        """How many of the leaves, slices, units or samples in `norms` were clipped; elements in `clip_by_value`."""
        self.filled()
        return self._sums.outside() if self._clipped_count is None else self._clipped_count

    @property
    def size(self):
        """How many leaves, slices, units or samples there are; elements in `clip_by_value`."""
        return self.filled()._size

    @property
    def scales(self):
        """The factors, float64, in the order of `norms`."""
        count = len(self.norms)
        if self._plan is not None and self._plan.count >= count:    # the last may be that of leaves in no group
            return read_only(self._plan.factors()[:count])
        return read_only(np.full(count, self.scale))

    @property
    def groups(self):
        """The names of the groups whose leaves share a norm, in the order of `norms`; None if there are no groups."""
        return self._groups

    @property
    def sensitivity(self):
        """How much one sample can change a sum of clipped samples, as a 2-norm; None if samples were not clipped.

        It is the square root of the sum of the squared thresholds of one sample, so the threshold itself if there is one.
        For orders above 2 of the norm, the 2-norm of a sample can be larger.
        """
        return self._sensitivity

    def table(self, top=None):
        """Return a table of what was measured and done by leaf: leaves with NaN or Inf first, then the largest norms.

        It is made when it is asked for. No gradient is read or kept for it. The keys of dicts are kept, and are named as they
        are then.

        Parameters
        ----------
        top : int, optional
            How many leaves it has at most. Without it, all.

        Returns
        -------
        LeafTable
            A sequence of named tuples: ``path``, ``shape``, ``dtype``, ``norm``, ``factor`` (the smallest, if a leaf has
            several), ``clipped`` (elements that were outside, of `clip_by_value` alone, which has no factor), ``max_abs``,
            ``nan`` and ``inf`` (how many elements are). None is what the call did not find out: after `apply_clip_` the
            largest magnitudes, and whatever the measure did not keep of these very leaves. ``str()`` of it is plain text, and
            rich draws it.

        Examples
        --------
        >>> import numpy as np, gradclip
        >>> grads = {"w": np.full((2, 3), 0.5), "b": np.array([3.0, 4.0], np.float32), "gain": np.array(0.1)}
        >>> report = gradclip.clip_by_global_norm_(grads, 1.0)
        >>> print(report.table(top=2))
        leaf  shape   dtype       norm    factor  largest  NaN  Inf
        b     (2,)    float32        5  0.194221        4    0    0
        w     (2, 3)  float64  1.22474  0.194221      0.5    0    0
        and 1 more leaf
        >>> report.table()[0].path
        'b'
        """
        from gradclip._core.leaf_table import LeafTable

        most = None if top is None else whole("top", top, 0)
        return LeafTable(self.rows(), most)

    cdef object rows(self):
        """The rows of the table, in the order of leaves."""
        from gradclip._core.leaf_table import rows_of

        if self.filled()._leaves is None:
            raise ValueError("no call made this report, so it has no leaves to tell of")
        if type(self._leaves) is tuple:     # of a pickled report
            return self._leaves
        return rows_of(self._leaves, self._sums, self._plan, self._norms, self._clipped_count is None)

    def __float__(self):
        """Return the norm."""
        return self.norm

    def __format__(self, str spec):
        """Return the norm in the format `spec`, or the whole report if that is empty."""
        return format(self.norm, spec) if spec else repr(self)

    def __reduce__(self):
        """Return what `pickle` and `copy` need: plain numbers, without the sums and the plan."""
        outside = self.clipped_count if self.filled()._clipped_count is None else 0
        found = Found(self.norm, self.norms, self.nonfinite, self.first_nonfinite, self.max_abs, outside)
        plan = None if self._plan is None else Factors(self.scale, self.scales)
        made_of = found, self._max_norm, self._size, plan, self._clipped_count, self._skipped
        rows = None if self._leaves is None else tuple(self.rows())
        return restored, (made_of, self._groups, self._sensitivity, rows, self._elsewhere)

    def __repr__(self):
        """Return the norm, the threshold and the factor, or the elements clipped by value, and NaN or Inf if there were any."""
        text = f"norm={self.norm!r}, max_norm={self.max_norm!r}, "
        if self._clipped_count is None:     # by value: no factor belongs to it
            text += f"clipped_count={self.clipped_count} of {self.size} elements"
        else:
            text += f"scale={self.scale!r}, clipped={self.clipped}"
        if self.nonfinite:
            text += f", nonfinite={self.nonfinite}, first_nonfinite={self.first_nonfinite}"
        if self.skipped:
            text += ", skipped=True"
        return f"ClipReport({text})"


cdef ClipReport unclipped(sums, max_norm, Py_ssize_t size, norms):
    """Return the report of a step that writes nothing, the usual one, sooner than by a call of the class."""
    cdef ClipReport report = ClipReport.__new__(ClipReport)
    report._sums, report._max_norm, report._size, report._norms = sums, max_norm, size, norms
    report._clipped_count = 0
    return report


cdef ClipReport clipped(sums, max_norm, Py_ssize_t size, norms, plan, bint acts):
    """Return the report of a step that a plan for all leaves is written in. acts: whether it brings them to the threshold."""
    cdef ClipReport report = unclipped(sums, max_norm, size, norms)
    report._plan = plan
    if acts:
        report._clipped_count = size
    return report


def pending(fill, max_norm, norms=None):
    """Return a report whose numbers are still on a device.

    fill: returns, when the first attribute is read, what the report is made of: the sums, how many units there are, the plan,
    how many were clipped, and whether the step is left out"""
    cdef ClipReport report = ClipReport.__new__(ClipReport)
    report._fill, report._max_norm, report._norms = fill, max_norm, norms
    return report


def complete(ClipReport report, groups, sensitivity=None):
    """Return the same report, which also tells names of groups and the sensitivity."""
    report._groups, report._sensitivity = groups, sensitivity
    return report


def restored(made_of, groups, sensitivity, rows, elsewhere):
    """Return the report that `ClipReport.__reduce__` took apart. rows: those of its table, if it has one."""
    cdef ClipReport report = complete(ClipReport(*made_of), groups, sensitivity)
    report._leaves, report._elsewhere = rows, elsewhere
    return report


def everywhere(ClipReport report, double scale, bint clipped):
    """Return the same report, whose smallest factor is that of all processes. clipped: whether any of them clips."""
    if report._plan is not None:
        report._plan, report._elsewhere = Factors(scale, report._plan.factors()), clipped
    return report


class Found:
    """The numbers that a pickled report keeps in place of its sums; it answers the same questions."""

    def __init__(self, norm, norms, nonfinite, first_nonfinite, max_abs, outside=0):
        self._norm, self._norms, self._nonfinite, self._max_abs = norm, norms, nonfinite, max_abs
        self._outside, self.first_nonfinite = outside, first_nonfinite

    def norm(self):
        """Return the norm of all leaves together."""
        return self._norm

    def norms(self):
        """Return the norm of each unit."""
        return self._norms

    def nonfinite(self):
        """Return how many elements are NaN or Inf."""
        return self._nonfinite

    def max_abs(self):
        """Return the largest finite magnitude."""
        return self._max_abs

    def outside(self):
        """Return how many elements lie beyond bounds that were given."""
        return self._outside


class Factors:
    """The factors that a report keeps in place of its plan, where it is pickled or speaks of several processes."""

    def __init__(self, smallest, factors):
        self._smallest, self._factors = smallest, factors
        self.count = len(factors)

    def smallest(self):
        """Return the smallest factor."""
        return self._smallest

    def factors(self):
        """Return the factor of each unit, as a new array."""
        return np.array(self._factors)


cdef object read_only(array):
    """Return the same array, which can no longer be written."""
    array.flags.writeable = False
    return array
