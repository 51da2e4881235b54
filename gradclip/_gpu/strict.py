"""`strict` without a wait: the rounds of `_core.strict.enforce`, a fixed number of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .._core.rounding import ROUNDS, RoundingBound, safety, typical
from .program import THREADS
from .reading import order_of, read
from .table import table_of

if TYPE_CHECKING:
    from .._core.call import Request
    from .decisions import Decided
    from .program import DeviceArray
    from .sums import DeviceSums


def enforce(request: Request, sums: DeviceSums, decided: Decided, opened: list[DeviceArray]) -> None:
    """Shrink factors until what they would write keeps the thresholds.

    Each round measures what would be written by the Writes that are open, closes those that keep their threshold and shrinks
    the others, by a slack that doubles. In the last they get a factor that holds however elements are rounded."""
    options, together = request.options, decided.together
    shared = together or request.by_owner
    slack, rounding = typical(request.to, shared), RoundingBound.of_leaves(request.to, options, shared)
    tables = [table_of(request.to, stream.device) for stream in sums.streams]
    alike = sum(elements > 0 for elements, _, _ in request.to.kinds()) == 1
    most = rounding.most if alike else math.inf  # of one dtype, which the largest of all elements may reach
    common = options.eps, order_of(options.ord), options.grad_scale, safety(options.ord)
    for more in reversed(range(ROUNDS)):
        triples = zip(tables, decided.writes, opened, strict=True)
        written = sums.of_writes([read(table, options.ord, made, words) for table, made, words in triples])
        for k, stream in enumerate(sums.streams):
            n = len(decided.writes[k])
            last = 0 if more else stream.constant(np.array(rounding))
            args = *decided.thresholds[k], *common, max(slack, 2.0**-53), most, last, opened[k], decided.writes[k]
            stream.launch("enforce", -(-n // THREADS), written.shared(k, together), sums.shared(k, together), n, *args)
        slack *= 2.0
