"""`DeviceSums`: what a read pass found, on the GPUs that found it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._cpu.exact import tells
from .._cpu.sums import Sums
from .._leaves.foreign import numbers
from .gather import delivered, gathered
from .program import THREADS
from .reading import WORDS_OF_SUM, Part, Reading, order_of

if TYPE_CHECKING:
    from .._core.arguments import Array, Floats, Words
    from .program import DeviceArray, DeviceStream
    from .table import Table

NANS, INFS, FIRST = 5, 6, 8  # words of a Sum
ASKED = {"norm", "norms", "nonfinite", "first_nonfinite", "max_abs", "parts", "outside", "exact", "scaled", "size"}


class About(NamedTuple):
    """What the units of some Sums have in common.

    grad_scale: leaves hold the true gradient times this; finite_only: norms leave NaN and Inf out; size: elements; naming: the
    function from the index of a leaf to its path."""

    ord: float
    grad_scale: float
    finite_only: bool
    size: int
    naming: Callable[[int], str]


class DeviceSums:
    """What one read pass found on GPUs: Sums of units, each on the device of its leaf, and the Sum of all on every device.

    Every device folds by the same arithmetic, and so alike. Whatever else `Sums` can be asked is asked of `host()`, which
    gives the same Sums in the memory of the host, and waits for the pass. Leaves are not held: a report that is not read keeps
    no gradient alive.

    Of leaves on one device what was read is folded when it is asked for: by then it may be known what is to be decided of it,
    and one kernel does both."""

    def __init__(
        self,
        parts: list[Part] | Reading,
        count: int,
        about: About,
        bring: Callable[[], Sums] | None = None,
        by_unit: DeviceSums | None = None,
    ) -> None:
        self._parts, self.count = parts, count
        self.streams = [part.table.stream for part in ([parts] if isinstance(parts, Reading) else parts)]
        self.order, self.grad_scale = order_of(about.ord), about.grad_scale
        # What Sums are made from, if not from `parts`; and the Sums by unit, where these are by sample. Never a reference to
        # these Sums themselves: they would live on until the garbage collector runs.
        self._about, self._bring, self._by_unit = about, bring, by_unit
        self._host: Sums | None = None

    def __getattr__(self, name: str) -> Any:
        if name not in ASKED:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.host(), name)

    @property
    def units(self) -> DeviceSums:
        """The Sums by unit: these themselves or, if these are of samples, those that they were folded from."""
        return self if self._by_unit is None else self._by_unit

    @property
    def by_device(self) -> list[Part]:
        """What each device holds."""
        if isinstance(self._parts, Reading):
            self._parts = [self._parts.fold()]
        return self._parts

    def decide_together(self, *args: Any) -> bool:
        """Let one kernel fold what was read, and decide about all of it.

        It returns False if that is folded already, or if there is nothing. args : what `Reading.decide` takes"""
        if not isinstance(self._parts, Reading) or not self._parts.table.partials:
            return False
        self._parts = [self._parts.decide(*args)]
        return True

    def host(self, arrays: Sequence[Array | DeviceArray] | None = None) -> Sums:
        """What was found as Sums of the host. arrays: the leaves, if the first element that is not finite is to be shown."""
        if self._host is None:
            self._host = self._brought() if self._bring is None else self._bring()
        first = self._host.first_nonfinite
        if arrays is not None and first is not None:
            self._host.first_value = value_at(self.streams, arrays[self._host.first_leaf], first[1])
        return self._host

    def _brought(self) -> Sums:
        ord, grad_scale, finite_only, size, naming = self._about
        sums = Sums(self.count, size, ord, grad_scale, finite_only)
        absorb(sums, self.by_device, naming)
        return sums

    @cached_property
    def totals(self) -> list[DeviceArray]:
        """The Sum of all, on each device: folded from the same Sums in the same order everywhere."""
        sums = [part.partial for part in self.by_device]
        if len(sums) == 1 and self.by_device[0].total is not None:
            return [self.by_device[0].total]
        if len(sums) > 1 and self.by_device[0].numbers is not None:
            sums = gathered(self.streams, 1, lambda k, to: self._fold_total(k, sums[k], to))
        return [self._fold_total(k, found, self.streams[k].empty(1, WORDS_OF_SUM)) for k, found in enumerate(sums)]

    def _fold_total(self, k: int, sums: DeviceArray, to: DeviceArray) -> DeviceArray:
        self.streams[k].launch("fold_total", 1, sums, len(sums), self.order, to)
        return to

    def _fold_owners(self, k: int, sums: DeviceArray, owners: int, to: DeviceArray) -> tuple[DeviceArray, DeviceArray]:
        """Fold every owners-th of some Sums together, into `to`; returns that and partial Sums of all of them."""
        blocks = -(-owners // THREADS)
        partial = self.streams[k].empty(blocks, WORDS_OF_SUM)
        self.streams[k].launch("fold_owners", blocks, sums, len(sums), owners, self.order, to, partial)
        return to, partial

    def by_owner(self, owners: int, owner: None = None) -> DeviceSums:
        """The Sums of samples, each of which owns every so many-th unit of each device. Sums of other owners are the host's."""
        sums = [part.unit for part in self.by_device]
        if len(sums) > 1:  # what is folded first is less to carry
            sums = gathered(self.streams, owners, lambda k, to: self._fold_owners(k, sums[k], owners, to))
        parts = []
        for k, part in enumerate(self.by_device):
            owner, partial = self._fold_owners(k, sums[k], owners, self.streams[k].empty(owners, WORDS_OF_SUM))
            parts.append(Part(part.table, owner, partial, None))
        return DeviceSums(parts, owners, self._about, lambda: self.host().by_owner(owners), self)

    def of_units(self, start: int, stop: int, grad_scale: float) -> DeviceSums:
        """The Sums of some of the units alone."""
        parts = []
        for k, part in enumerate(self.by_device):
            some = slice(*np.searchsorted(part.own, (start, stop)).tolist())
            unit = part.unit[some]
            unit, partial = self._fold_owners(k, unit, len(unit), self.streams[k].empty(len(unit), WORDS_OF_SUM))
            parts.append(Part(part.table, unit, partial, part.own[some]))
        about = self._about._replace(grad_scale=grad_scale)
        return DeviceSums(parts, stop - start, about, lambda: self.host().of_units(start, stop, grad_scale))

    def of_writes(self, parts: list[Part]) -> DeviceSums:
        """The Sums of what would be written, of the same units and samples."""
        written = DeviceSums(parts, self.units.count, self._about._replace(grad_scale=1.0))
        return written if self._by_unit is None else written.by_owner(self.count)

    def weigh(self, first: int, clip_factor: float | Floats, eps: float) -> list[DeviceArray]:
        """The thresholds of adaptive clipping, on each device for its units before `first`; the others are parameters.

        clip_factor: a float, or one per unit"""
        thresholds, have, want = [], [], []
        for stream, part in zip(self.streams, self.by_device, strict=True):
            start = int(np.searchsorted(part.own, first))
            weight = part.unit[start:]
            thresholds.append(stream.empty(len(weight)))
            if isinstance(clip_factor, float):
                factors = 0, clip_factor
            else:
                factors = stream.constant(clip_factor[part.own[start:] - first]), 0.0
            numbers = len(weight), *factors, eps, self.order
            stream.launch("weigh", -(-len(weight) // THREADS), weight, *numbers, thresholds[-1])
            want.append(part.own[:start])
            have.append(part.own[start:] - first)
        return delivered(self.streams, thresholds, have, want)

    def call_for_the_host(self, strict: bool) -> bool:
        """Return whether the host has to decide.

        An element is NaN or Inf, or only an exact sum tells the norm of all or, under `strict`, on which side of a threshold a
        norm lies.

        This waits for the GPUs, and fetches no more than totals."""
        if self._host is not None and not strict:
            return self._host.nonfinite() > 0 or not tells(self._host)
        totals = self.totals if strict else self.totals[:1]  # NaN, Inf and the sum are alike on all devices
        found = [self.streams[k].fetch(total) for k, total in enumerate(totals)]
        return any(total[0, NANS:FIRST].any() for total in found) or not self._tells(found[0])

    def _tells(self, words: Words) -> bool:
        """Whether a sum of all tells its norm."""
        about = self._about
        sums = Sums(1, about.size, about.ord, about.grad_scale, about.finite_only)
        sums.absorb(np.zeros(1, np.intp), words)
        return tells(sums)

    def on_host(self, threshold: float | Floats | list[DeviceArray]) -> float | Floats:
        """Thresholds as the host takes them: those that `weigh` gave are on the devices."""
        return self.told(threshold, False).view(np.float64) if isinstance(threshold, list) else threshold

    def shared(self, k: int, together: bool) -> DeviceArray:
        """Return the Sums on one device that have a factor each: of its units or, with `together`, of all together."""
        return self.totals[k] if together else self.by_device[k].unit

    def words(self, together: bool, width: int) -> list[DeviceArray]:
        """Return on each device an array of `width` words for each factor, yet to be filled."""
        return [stream.empty(1 if together else len(self.shared(k, False)), width) for k, stream in enumerate(self.streams)]

    def told(self, arrays: list[DeviceArray], together: bool) -> Words:
        """Fetch a row for each factor from the devices, as one array: of all units or, with `together`, one row for all."""
        if together or self.by_device[0].numbers is None or len(self.by_device) == 1:
            return self.streams[0].fetch(arrays[0])
        words = np.empty((self.count, *arrays[0].shape[1:]), np.int64)
        for stream, part, array in zip(self.streams, self.by_device, arrays, strict=True):
            words[part.own] = stream.fetch(array)
        return words


def absorb(sums: Sums, parts: Sequence[Part], naming: Callable[[int], str]) -> None:
    """Take what GPUs found into Sums of this process.

    naming: the function from the index of a leaf to its path"""
    found = [(sums.first_leaf, sums.first_nonfinite[1])] if sums.first_nonfinite else []
    for part in parts:
        words = part.table.stream.fetch(part.unit)
        sums.absorb(part.own, words)
        found += first_of(part.table, words)
    if found:
        sums.first_leaf, index = min(found)
        sums.first_nonfinite = naming(sums.first_leaf), index


def first_of(table: Table, words: Words) -> list[tuple[int, int]]:
    """[(index of the leaf, flat index)] of the first element that is not finite, from the Sums of a table's units; or []."""
    bad = np.flatnonzero(words[:, NANS] + words[:, INFS])
    if not len(bad):
        return []
    at = int(np.searchsorted(table.edges, bad[0], side="right")) - 1
    return [(table.which[at], int(words[table.edges[at] : table.edges[at + 1], FIRST].min()))]


def value_at(streams: Sequence[DeviceStream], array: Array | DeviceArray, index: int) -> Any:
    """Return one element of an array that lies on the host or on one of some devices."""
    if isinstance(array, np.ndarray):
        return numbers(array.flat[index : index + 1])[0]
    stream = next(stream for stream in streams if stream.device == array.data.device_id)
    return stream.fetch(array[tuple(map(int, np.unravel_index(index, array.shape)))])
