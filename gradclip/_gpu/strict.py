"""`strict` without a wait: the rounds of `_decide._enforce`, a fixed number of them."""

from __future__ import annotations

import numpy as np

from .._core.rounding import ROUNDS, Room, safety, typical
from .program import THREADS
from .reading import read
from .table import table_of


def enforce(sums, to, rule, together, goals, opened, writes):
    """Shrink factors until what they would write keeps the bound.

    Each round measures what would be written by the Writes that are open, closes those that keep their bound and shrinks the
    others, by a slack that doubles. In the last they get a factor that holds however elements are rounded."""
    slack, room = typical(to.arrays), Room.of_leaves(to, rule, together or sums.units is not sums)
    tables = [table_of(to, place.device) for place in sums.places]
    for more in reversed(range(ROUNDS)):
        parts = [read(table, rule.ord, made, words) for table, made, words in zip(tables, writes, opened, strict=True)]
        written = sums.of_writes(parts)
        for k, place in enumerate(sums.places):
            n = len(writes[k])
            numbers = *goals[k], rule.eps, rule.ord, rule.grad_scale, safety(rule.ord), max(slack, 2.0**-53)
            last = 0 if more else place.constant(np.array(room))
            args = *numbers, last, opened[k], writes[k]
            place.launch("enforce", -(-n // THREADS), written.shared(k, together), sums.shared(k, together), n, *args)
        slack *= 2.0
