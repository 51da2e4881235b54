"""The engines of leaves on GPUs: EVERYWHERE, which decides on the host, and DEVICES, which decides on the devices.

EVERYWHERE serves leaves of which some lie on GPUs, or whose norm was measured before: the sums of all GPUs and of the host are
brought together there, and factors are sent back. DEVICES serves leaves that all lie on GPUs: what is measured, decided and
written stays there, and numbers are fetched when they are asked for. Where something is to be raised, or only the leaves tell
on which side of its threshold a norm lies, it goes on as EVERYWHERE does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._core.decide import decide, decide_clamp, reported_size
from .._core.samples import batch_of, decide_samples
from .._core.uninterrupted import Uninterrupted
from .._cpu import accumulate, exact, passes
from .._cpu.plan import clamping
from . import decisions
from .reading import begin, read
from .strict import enforce
from .sums import About, DeviceSums, absorb, value_at
from .table import sample_table, table_of

if TYPE_CHECKING:
    from .._core.arguments import Floats, Words
    from .._core.call import ByValue, Request
    from .._core.engine import Engine
    from .._core.samples import SampleRequest
    from .._cpu.plan import Plan
    from .._cpu.sums import Sums
    from .._leaves import Leaves
    from ..report import ClipReport
    from .program import DeviceArray
    from .reading import Part
    from .table import Table


class Everywhere:
    """The engine of leaves on GPUs and perhaps on the host, that decides on the host."""

    decide = decide
    decide_samples = staticmethod(decide_samples)

    def measure(
        self, leaves: Leaves, ord: float, grad_scale: float = 1.0, finite_only: bool = False, norms: bool = True
    ) -> Sums:
        parts = [read(table, ord) for table in _read_tables(leaves)]
        sums = _gathered(passes.measure(leaves, ord, grad_scale, finite_only, norms=False), leaves, parts)
        if norms:
            self.settle(sums, leaves)
        return sums

    settle = staticmethod(exact.settle)

    def measure_written(self, to: Leaves, plan: Plan, ord: float) -> Sums:
        words = plan.records()
        parts = [read(table, ord, _writes(table, words)) for table in _tables(to)]
        sums = passes.measure_written(to, plan, ord)
        absorb(sums, parts, to.path)
        return sums

    def clamp(
        self, request: ByValue, read: Leaves, low: float | Floats, high: float | Floats
    ) -> tuple[ClipReport, Plan | None]:
        bounds = clamping(low, high)
        parts = _counted(read, bounds)
        sums = _gathered(passes.measure_outside(read, bounds), read, parts)
        self.settle(sums, read)
        return decide_clamp(request, bounds, sums)

    def write(self, to: Leaves, plan: Plan) -> None:
        words, limits = plan.records(), plan.bounds()
        ready = [(table, _writes(table, words), table.bounds(limits)) for table in _tables(to)]
        with Uninterrupted():  # of what follows only the host's pass may fail, before it writes
            passes.write(to, plan)
            for table, writes, bounds in ready:
                table.write(writes, bounds, 0)

    def sum_samples(self, request: SampleRequest, plan: Plan) -> None:
        batch, words = batch_of(request, plan), plan.records()
        tables = [sample_table(request.samples, device, request.to) for device in request.samples.devices()]
        by_leaf = len(request.parts) > 1  # else a sample has the same factor in each leaf
        ready = [(table, table.stream.upload(words if by_leaf else words[:batch])) for table in tables]
        with Uninterrupted():
            accumulate.sum_samples(request.samples, request.to, plan, batch, False)
            for table, writes in ready:
                if batch:
                    table.launch("sum_samples", writes, batch, 0, decisions.BY_LEAF if by_leaf else 0)
                else:
                    for i in table.which:
                        table.stream.zero(request.to.arrays[i])


class Devices:
    """The engine of leaves that all lie on GPUs. The plans that it makes have methods that write."""

    def measure(
        self, leaves: Leaves, ord: float, grad_scale: float = 1.0, finite_only: bool = False, norms: bool = True
    ) -> DeviceSums:
        tables = _read_tables(leaves)
        parts = begin(tables[0], ord) if len(tables) == 1 else [read(table, ord) for table in tables]
        about = About(ord, grad_scale, finite_only, leaves.size, leaves.naming())
        return DeviceSums(parts, leaves.units, about)

    def settle(self, sums: DeviceSums, leaves: Leaves, first: int = 0, total: bool = True) -> None:
        """Leave norms as the devices round them: the host would have to wait. `decide` settles them where it waits anyway."""

    def measure_written(self, to: Leaves, plan: Plan, ord: float) -> Sums:
        return EVERYWHERE.measure_written(to, plan, ord)

    def decide(self, request: Request, sums: DeviceSums) -> tuple[ClipReport, decisions.Decided | Sent | None]:
        options = request.options
        if options.strict and request.to.casts:  # a unit that keeps its threshold is rounded, too, and may have to be scaled
            request.threshold = sums.on_host(request.threshold)
            return _sent(*EVERYWHERE.decide(request, _settled(sums, request.to)))
        if request.skips:
            return _sent(*EVERYWHERE.decide(request, _settled(sums, request.to)))
        decided = decisions.decide(request, sums)
        if options.nonfinite == "raise" and sums.call_for_the_host(options.strict):
            request.threshold = sums.on_host(request.threshold)
            return _sent(*EVERYWHERE.decide(request, _settled(sums, request.to)))
        if decided.opened is not None:
            enforce(request, sums, decided, decided.opened)
        return decided.report(options, request.shown, reported_size(request, sums), request.norms), decided

    def clamp(
        self, request: ByValue, read: Leaves, low: float | Floats, high: float | Floats
    ) -> tuple[ClipReport, decisions.Decided]:
        bounds = clamping(low, high)
        about = About(2.0, 1.0, False, read.size, read.naming())
        limits = bounds.bounds()
        assert limits is not None  # it clamps
        decided = decisions.decide_clamp(DeviceSums(_counted(read, bounds), read.units, about), limits)
        return decided.report_of_elements(request.shown), decided

    def decide_samples(self, request: SampleRequest, sums: DeviceSums) -> tuple[ClipReport, decisions.Decided | Sent | None]:
        if decisions.takes_numbers(request, sums):
            return _sent(*EVERYWHERE.decide_samples(request, _settled(sums, request.samples)))
        decided = decisions.decide_samples(request, sums)
        return decided.report(request.options, request.shown, sums.count, None), decided

    def write(self, to: Leaves, plan: decisions.Decided | Sent) -> None:
        plan.write(to)

    def sum_samples(self, request: SampleRequest, plan: decisions.Decided | Sent) -> None:
        plan.sum_samples(request)


class Sent:
    """A plan that the host made, for leaves on GPUs."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def write(self, to: Leaves) -> None:
        EVERYWHERE.write(to, self._plan)

    def sum_samples(self, request: SampleRequest) -> None:
        EVERYWHERE.sum_samples(request, self._plan)


EVERYWHERE: Engine = Everywhere()
DEVICES: Engine = Devices()


def _sent(report: ClipReport, plan: Plan | None) -> tuple[ClipReport, Sent | None]:
    """Return what the host decided, with its plan as one that DEVICES can write."""
    return report, None if plan is None else Sent(plan)


def _settled(sums: DeviceSums, leaves: Leaves) -> Sums:
    """The Sums of the host that have the numbers of a read pass over leaves, with norms that are correctly rounded."""
    found = sums.host(leaves.sources)
    exact.settle(found, leaves)
    return found


def _tables(leaves: Leaves) -> list[Table]:
    """The tables of the leaves on each GPU."""
    return [table_of(leaves, device) for device in leaves.devices()]


def _read_tables(leaves: Leaves) -> list[Table]:
    """Return the tables of the leaves on each GPU, for the first pass of a call; refuse what a CUDA graph cannot capture."""
    tables = _tables(leaves)
    for table in tables if len(tables) > 1 else ():  # of which a graph would capture one device's part
        table.stream.refuse_capture("a call whose leaves lie on several devices")
    return tables


def _counted(leaves: Leaves, bounds: Plan) -> list[Part]:
    """Return what each GPU finds by a read pass that counts elements outside the bounds of a Plan."""
    return [read(table, 2.0, limits=table.bounds(bounds.bounds())) for table in _read_tables(leaves)]


def _writes(table: Table, words: Words) -> DeviceArray:
    """Return on the device of a table the Writes of its units, or the one Write for all."""
    return table.stream.upload(words[table.numbers] if len(words) > 1 else words)


def _gathered(sums: Sums, leaves: Leaves, parts: list[Part]) -> Sums:
    """The Sums of the host's leaves, completed by those of GPUs."""
    absorb(sums, parts, leaves.path)
    sums.size = leaves.size
    if sums.first_nonfinite is not None:
        streams = [part.table.stream for part in parts]
        sums.first_value = value_at(streams, leaves.sources[sums.first_leaf], sums.first_nonfinite[1])
    return sums
