"""What the GPUs decide: from Sums to Writes on every device, by the arithmetic of `_scalar`, without a wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._core import mode
from .._core.options import DEFAULT, Options
from .._core.rounding import exact_order, safety
from .._core.samples import kept, largest_term, safe_norms
from .._core.uninterrupted import Uninterrupted
from ..report import ClipReport, Factors, pending
from .program import THREADS
from .table import sample_table, table_of

if TYPE_CHECKING:
    from .._core.arguments import Floats
    from .._core.call import Request
    from .._core.samples import SampleRequest
    from .._leaves import Leaves
    from .program import DeviceArray, DeviceStream, Event
    from .reading import Part
    from .sums import DeviceSums

WORDS_OF_WRITE = 6
Filling = tuple[Any, int, Factors | None, int | None, bool]  # what a pending report is made of
# Flags of decide.cu
NORMALIZE, FINITE_ONLY, SKIP, KEEP_OUT, STEPS, CLAMPS, BOUNDS, KEPT, STRICT, EXACT, BY_LEAF = (1 << k for k in range(11))


class Question(NamedTuple):
    """What a launch of `decide_units` (decide.cu) is asked of all units.

    These are options, flags, the learning rate of a step and, for samples that are summed, the limit within which one is added
    as it is."""

    options: Options
    flags: int
    lr: float = 1.0
    limit: float = 0.0


class Decided:
    """What was decided on the devices: on each the Writes of its units, or one for all together.

    thresholds: on each device those of its units, or a null pointer, and that of all
    opened: on each device a word for each Write, whether `strict` has to hold it; None where nothing is to be held"""

    ends: Sequence[tuple[DeviceStream, Event | None]]

    def __init__(
        self,
        sums: DeviceSums,
        together: bool,
        thresholds: Sequence[tuple[DeviceArray, float]],
        question: Question,
        opened: list[DeviceArray] | None = None,
    ) -> None:
        self.sums, self.together, self.thresholds, self.opened = sums, together, thresholds, opened
        self.flags = question.flags
        self.bounds: list[tuple[DeviceArray, int]] = [(0, 0)] * len(sums.streams)
        self.writes = sums.words(together, WORDS_OF_WRITE)
        options, flags = question.options, question.flags
        numbers = options.eps, sums.order, sums.grad_scale, question.lr, question.limit, safety(options.ord)
        counts = flags & STRICT and options.nonfinite == "raise"  # what only exact sums decide
        if together:
            others, held = numbers[:1] + numbers[2:], 0 if opened is None else opened[0]  # the pass knows its order
            if sums.decide_together(thresholds[0][1], *others, flags, held, self.writes[0]):
                return
        for k, (stream, writes) in enumerate(zip(sums.streams, self.writes, strict=True)):
            n, total = len(writes), sums.totals[k] if counts or flags & SKIP else 0
            args = *thresholds[k], *numbers, flags, 0 if opened is None else opened[k], writes
            stream.launch("decide_units", -(-n // THREADS), sums.shared(k, together), total, n, *args)

    # ---- carrying it out ----------------------------------------------------------------------------

    def write(self, to: Leaves) -> None:
        """Launch the write pass on every device."""
        tables = [table_of(to, stream.device) for stream in self.sums.streams]
        to.announce()  # whether anything is to be written is known on the devices alone
        parts = self.sums.units.by_device
        with Uninterrupted():
            for table, writes, limits, part in zip(tables, self.writes, self.bounds, parts, strict=True):
                table.write(writes, limits, part.unit, bool(self.flags & STEPS))
            self._mark()
        to.written()

    def sum_samples(self, request: SampleRequest) -> None:
        """Launch the write pass of sums of samples on every device."""
        tables = [sample_table(request.samples, stream.device, request.to) for stream in self.sums.streams]
        request.to.announce()
        with Uninterrupted():
            for table, writes, total in zip(tables, self.writes, self.sums.totals, strict=True):
                table.launch("sum_samples", writes, len(writes), total, self.flags)
            self._mark()

    def _mark(self) -> None:
        """Let the events that reports wait for stand for the end of what was launched so far."""
        for stream, event in self.ends:
            if event is not None:
                stream.mark(event)

    # ---- reporting it -------------------------------------------------------------------------------

    def report(self, options: Options, shown: Any, size: int, norms: Floats | None) -> ClipReport:
        """The report, whose numbers are fetched when the first is read. size: how many units it speaks of."""
        sums, writes, together, skips = self.sums, self.writes, self.together, options.nonfinite == "skip"

        def fill() -> Filling:
            found, words = sums.host(), sums.told(writes, together)
            skipped = skips and found.nonfinite() > 0
            factors = words.view(np.float64)[:, 3].copy()
            acting = int(words[:, 1].sum())
            plan = None if skipped else Factors(float(np.min(factors)) if len(factors) else 1.0, factors)
            count = (size if acting else 0) if together else acting
            return found, size, plan, count, skipped

        return self._pending(fill, shown, norms)

    def report_of_elements(self, shown: Any) -> ClipReport:
        """The report of a clamp, which speaks of elements."""
        sums = self.sums

        def fill() -> Filling:
            found = sums.host()
            return found, found.size, None, None, False

        return self._pending(fill, shown, None)

    def _pending(self, fill: Callable[[], Filling], shown: Any, norms: Floats | None) -> ClipReport:
        """The report that `fill` fills, whoever reads it; its events are marked after all launches."""
        ends = self.ends = [(stream, stream.end()) for stream in self.sums.streams]

        def read() -> Filling:
            for stream, event in ends:
                if event is not None:
                    stream.follow(event)
            return fill()

        return pending(read, shown, norms)


def decide(request: Request, sums: DeviceSums) -> Decided:
    """Launch the decision of a Request on every device; returns the Decided that holds it."""
    options, together, steps = request.options, isinstance(request.threshold, float), request.mode is mode.STEP
    wanted = {
        NORMALIZE: request.mode is mode.NORMALIZE,
        KEEP_OUT: not request.fresh,
        STEPS: steps,
        STRICT: options.strict,
        EXACT: options.strict and exact_order(options.ord, request.to.sources),
    }
    flags = _policy(options) | sum(flag for flag, is_wanted in wanted.items() if is_wanted)
    opened = sums.words(together, 1) if options.strict and not steps else None
    question = Question(options, flags, request.lr if steps else 1.0)
    return Decided(sums, together, _thresholds(sums, request.threshold), question, opened)


def decide_clamp(sums: DeviceSums, bounds: Floats) -> Decided:
    """Launch the decision of a clamp on every device: leaves of which an element was counted as outside are clamped."""
    decided = Decided(sums, False, _thresholds(sums, 0.0), Question(DEFAULT, CLAMPS))
    decided.bounds = [part.table.bounds(bounds) for part in sums.by_device]
    return decided


def takes_numbers(request: SampleRequest, sums: DeviceSums) -> bool:
    """Return whether the host has to decide about samples that are summed.

    It does to raise an error, for an empty batch, and if the factor of a sample depends on elements on several devices."""
    across = len(sums.streams) > 1 and largest_term(request) is not None
    return request.options.nonfinite == "raise" or not sums.count or across


def decide_samples(request: SampleRequest, sums: DeviceSums) -> Decided:
    """Launch the decision about samples that are summed on every device; returns the Decided that holds it."""
    options, most = request.options, largest_term(request)
    flags = _policy(options) | BOUNDS | (KEPT if kept(request) else 0)
    thresholds = _thresholds(sums, float(safe_norms(request)[0]))
    decided = Decided(sums, False, thresholds, Question(options, flags, limit=request.limits[0]))
    if most is not None:
        stream, part = sums.streams[0], sums.units.by_device[0]
        bounds = stream.constant(most[part.table.which])
        stream.launch("keep_finite", -(-sums.count // THREADS), part.unit, len(bounds), bounds, sums.count, decided.writes[0])
    return decided


def _policy(options: Options) -> int:
    """Return the flag that tells the kernels what is done about NaN and Inf."""
    return {"skip": SKIP, "zero": FINITE_ONLY}.get(options.nonfinite, 0)


def _thresholds(sums: DeviceSums, threshold: float | Floats | list[DeviceArray]) -> list[tuple[DeviceArray, float]]:
    """Return a pair for each device: the thresholds of its units, or a null pointer if all have the same one; and that one."""
    if isinstance(threshold, np.ndarray) and (threshold == threshold[:1]).all():
        threshold = float(threshold[0]) if len(threshold) else 0.0
    if isinstance(threshold, float):
        return [(0, threshold)] * len(sums.streams)
    if isinstance(threshold, np.ndarray):
        pairs = zip(sums.streams, sums.by_device, strict=True)
        threshold = [stream.constant(_own(part, threshold)) for stream, part in pairs]
    return [(own, 0.0) for own in threshold]


def _own(part: Part, values: Floats) -> Floats:
    """The values of the units of a device."""
    return values if part.numbers is None else values[part.numbers]
