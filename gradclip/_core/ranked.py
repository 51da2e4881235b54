"""A quantile of numbers that come and go, in O(log n) a step."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable


class Ranked:
    """Values by size, around one rank that hardly moves: add, discard and quantile in O(log n).

    Two heaps: up to the rank with the largest on top (negated), and above it with the smallest on top."""

    def __init__(self, values: Iterable[float] = ()) -> None:
        self._low, self._high = Heap(), Heap(values)

    def add(self, value: float) -> None:
        if self._low.size and value <= -self._low.top():
            self._low.push(-value)
        else:
            self._high.push(value)

    def discard(self, value: float) -> None:
        if self._low.size and value <= -self._low.top():
            self._low.discard(-value)
        else:
            self._high.discard(value)

    def quantile(self, q: float) -> float:
        """The q-quantile of the values, by the very operations of `numpy.quantile`."""
        virtual = (self._low.size + self._high.size - 1) * q
        index = math.floor(virtual)
        while self._low.size > index + 1:
            self._high.push(-self._low.pop())
        while self._low.size < index + 1:
            self._low.push(-self._high.pop())
        below = -self._low.top()
        above = self._high.top() if self._high.size else below
        weight, step = virtual - index, above - below
        return below + step * weight if weight < 0.5 else above - step * (1 - weight)


class Heap:
    """The smallest of values, any of which may be discarded: it stays inside, counted as gone, until it is on top."""

    def __init__(self, values: Iterable[float] = ()) -> None:
        self._items = sorted(values)
        self._gone: Counter[float] = Counter()
        self.size = len(self._items)  # without those that are gone

    def push(self, value: float) -> None:
        heapq.heappush(self._items, value)
        self.size += 1

    def discard(self, value: float) -> None:
        self._gone[value] += 1
        self.size -= 1
        if len(self._items) > 2 * self.size + 8:  # half of them are gone: so many discards pay for this
            self._items = sorted((Counter(self._items) - self._gone).elements())
            self._gone.clear()

    def top(self) -> float:
        while self._items[0] in self._gone:
            value = heapq.heappop(self._items)
            self._gone[value] -= 1
            if not self._gone[value]:
                del self._gone[value]
        return self._items[0]

    def pop(self) -> float:
        self.top()
        self.size -= 1
        return heapq.heappop(self._items)
