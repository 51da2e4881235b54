"""The protocol of engines, the engine of the host, and `on_devices`, which gives those of GPUs. call.pyx picks one per call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from .._cpu import accumulate, exact, passes
from .._cpu.clamp import Clamped
from .._cpu.plan import Plan, clamping
from ..report import ClipReport
from .decide import decide
from .samples import batch_of, decide_samples

if TYPE_CHECKING:
    from .._cpu.sums import Sums
    from .._gpu.sums import DeviceSums
    from .._leaves import Leaves
    from .arguments import Floats
    from .call import ByValue, Request
    from .samples import SampleRequest

    AnySums = Sums | DeviceSums  # what an engine measures; only that one can decide about them
else:
    AnySums = Any  # `_gpu` is not imported for a name


class Engine(Protocol):
    """The steps of a call over leaves of some devices.

    Sums are those of `_cpu.sums` or what can be asked the same; a plan is for the engine alone that decided it."""

    def measure(
        self, leaves: Leaves, ord: float, grad_scale: float = 1.0, finite_only: bool = False, norms: bool = True
    ) -> AnySums:
        """The Sums of all leaves, by one read pass.

        finite_only: norms leave NaN and Inf out. norms: their norms are told; else `settle` is called for those that are."""

    def settle(self, sums: Any, leaves: Leaves, first: int = 0, total: bool = True) -> None:
        """Let the norms of the units from `first` on, and of all, be the correctly rounded ones: leaves may be read again."""

    def decide(self, request: Request, sums: Any) -> tuple[ClipReport, Any]:
        """The report of a Request and the plan to be written, None where nothing is."""

    def measure_written(self, to: Leaves, plan: Plan, ord: float) -> Sums:
        """The Sums of what a Plan of the host would write; nothing is written."""

    def write(self, to: Leaves, plan: Any) -> None:
        """Write what was decided: all of it or, with an error, nothing."""

    def clamp(self, request: ByValue, read: Leaves, low: float | Floats, high: float | Floats) -> tuple[ClipReport, Any]:
        """Return the report and the plan that brings elements into [low, high], the bounds of a request.

        The read pass that this takes comes before, or it is one with the write pass; then the report holds once that is done.
        """

    def decide_samples(self, request: SampleRequest, sums: Any) -> tuple[ClipReport, Any]:
        """Return the report and the plan of a sum of clipped samples."""

    def sum_samples(self, request: SampleRequest, plan: Any) -> None:
        """Write the sums over the batch, each sample multiplied by the factor that the plan gives it."""


class Host:
    """The engine of leaves that all lie on the host."""

    measure = staticmethod(passes.measure)
    settle = staticmethod(exact.settle)
    measure_written = staticmethod(passes.measure_written)
    write = staticmethod(passes.write)
    decide = decide
    decide_samples = staticmethod(decide_samples)

    def clamp(
        self, request: ByValue, read: Leaves, low: float | Floats, high: float | Floats
    ) -> tuple[ClipReport, Plan | None]:
        size = read.size
        found = Clamped(read.count, size, 2.0, 1.0)
        return ClipReport(found, request.shown, size, None, None), clamping(low, high, found)

    def sum_samples(self, request: SampleRequest, plan: Plan) -> None:
        accumulate.sum_samples(request.samples, request.to, plan, batch_of(request, plan), request.fresh)


HOST: Engine = Host()


def on_devices(alone: bool) -> Engine:
    """Return the engine of a call some of whose leaves lie on GPUs.

    alone : whether all of them do, and their norm is measured in this call
    """
    # Imported when a first leaf lies on a GPU. `_gpu` imports this room, not the other way round but for this line.
    from .._gpu.engine import DEVICES, EVERYWHERE

    return DEVICES if alone else EVERYWHERE
