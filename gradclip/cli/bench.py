"""``gradclip bench``: how fast this machine clips, beside its memory limit and the installed peers of gradclip.

The peers are NumPy, SciPy and PyTorch. The memory limit is the time of a plain read of the gradient; for clipping, that of a
read and of a rewrite of every word in place. Nothing that looks at each element can be faster. All speeds are in GB of
gradient per second, those of the limit too, so that they can be compared directly.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import numpy as np

import gradclip

from .._core.arguments import number
from .._cpu import machine
from .._cpu.limits import Stream
from .._leaves import Leaves
from .._saving import Name, check_picture, need_matplotlib, save_picture
from . import peers as known_peers
from . import roofline
from .npy import Array
from .terminal import progress, say

SIZES = tuple(4**k for k in range(6, 15))  # bytes of one leaf: 4 KiB to 256 MiB
MANY = ("1000 leaves x 1000", 1000), ("6 leaves x 1000", 6)  # leaves of 1000 elements
DTYPES = ("float16", "bfloat16", "float32", "float64")

TURN = 5e-3  # seconds of one turn: by its end, the threads of the one before no longer spin
BATCH = 1e-4  # seconds that are timed at once, far above the clock's resolution
BUSY = 0.1  # the part of a case in which other programs held up this one, from which on its numbers are not to be believed
LARGE = 2**20  # bytes from which on gradclip uses several threads


@dataclass
class Result:
    """The result of one case: the seconds of the fastest call by contender; one contender is "limit"."""

    dtype: str
    clips: bool
    name: str
    leaves: int
    bytes: int
    seconds: dict[str, float]
    busy: float = 0.0  # the part of the time in which other programs held up this one

    def speed(self, contender: str) -> float:
        """Return GB of gradient per second; NaN if the contender does not know the dtype."""
        return self.bytes / self.seconds.get(contender, math.nan) / 1e9

    @property
    def kind(self) -> str:
        """The dtype, and whether the case clips, as text."""
        return f"{self.dtype}, {'clipping' if self.clips else 'norm only'}"

    @property
    def ratio(self) -> float:
        """The time of gradclip divided by that of the limit."""
        return self.seconds["gradclip"] / self.seconds["limit"]


class Gradient:
    """Leaves that are clipped again and again, so that every call has something to write.

    Each threshold is 2 % below the one before, which is more than the error of any contender's norm.
    """

    def __init__(self, leaves: Sequence[Any]) -> None:
        self.leaves, self.fresh = leaves, [leaf.copy() for leaf in leaves]
        self.norm = self.threshold = gradclip.measure(leaves).norm

    def refill(self) -> None:
        """Give the leaves their first values, and start with the first threshold again."""
        self.threshold = self.norm
        for leaf, fresh in zip(self.leaves, self.fresh, strict=True):
            leaf[...] = fresh

    def next_threshold(self) -> float:
        """Return a threshold 2 % below the last one."""
        self.threshold *= 0.98
        return self.threshold


def installed_peers() -> dict[str, Any]:
    """Return those peers by name whose packages are installed; PyTorch is set to as many threads as gradclip."""
    found: dict[str, Any] = {}
    for name in known_peers.NAMES:
        with suppress(NotImplementedError):
            found[name] = known_peers.load(name)
    if "torch" in found:
        found["torch"].set_threads(machine.team())
    return found


def fastest(peers: Mapping[str, Any], leaves: Sequence[Any], clips: bool, **budget: Any) -> dict[str, float]:
    """Return the seconds of the fastest call by contender, of a call that clips `leaves` or finds nothing to clip.

    The limit is measured on one thread and on all, and the faster one is taken: with small leaves, it costs more to wake the
    other threads than they save. `budget` is that of `best_in_turns`.
    """
    stream = Stream(Leaves(leaves))
    refill: Callable[[], None] | None = None
    max_norm: Callable[[], float] = lambda: math.inf  # noqa: E731
    if clips:
        gradient = Gradient(leaves)
        refill, max_norm = gradient.refill, gradient.next_threshold

    def limit(team: int) -> None:
        """Read the leaves on so many threads, and rewrite them if the call clips."""
        stream.read(team)
        if clips:
            stream.rewrite(team)

    teams = {1, machine.team()}
    calls: dict[Any, Callable[[], Any]] = {team: partial(limit, team) for team in teams}
    for name, peer in peers.items():
        with suppress(NotImplementedError):  # the peer does not know this dtype
            calls[name] = partial(lambda clip, grads: clip(grads, max_norm()), peer.clip_by_global_norm_, peer.prepare(leaves))
    best = best_in_turns(calls, refill, **budget)
    return {"limit": min(best.pop(team) for team in teams), **best}


class Busy:
    """How much other programs hold up the calling thread from now on."""

    def __init__(self) -> None:
        self.started, self.ran, self.passes = perf_counter(), thread_time(), machine.sharing()

    def part(self, large: bool) -> float:
        """Return the part of the time since then in which this thread did not run.

        If leaves were large and this is larger: the part of gradclip's passes for which its other threads came too late."""
        away = 1 - (thread_time() - self.ran) / (perf_counter() - self.started)
        teams, apart = (now - before for now, before in zip(machine.sharing()[:3:2], self.passes[:3:2], strict=True))
        return max(away, apart / max(teams + apart, 1) if large else 0.0)


def best_in_turns(
    calls: Mapping[Any, Callable[[], Any]], refill: Callable[[], None] | None = None, rounds: int = 2, seconds: float = 0.0
) -> dict[Any, float]:
    """Return the seconds of the fastest call of each contender, who take turns so that a busy moment meets them all.

    There are `rounds` rounds, and as many more as begin within `seconds`. Before each batch of at most 100 calls `refill` is
    called, and not timed.
    """
    best = dict.fromkeys(calls, math.inf)
    end, done = perf_counter() + seconds, 0
    while done < rounds or perf_counter() < end:
        for name, call in calls.items():
            turn = perf_counter() + TURN
            while True:
                repeat = max(1, min(100, int(BATCH / best[name])))
                if refill:
                    refill()
                started = perf_counter()
                for _ in range(repeat):
                    call()
                now = perf_counter()
                best[name] = min(best[name], (now - started) / repeat)
                if now > turn:
                    break
        done += 1
    return best


def run(
    seconds: float = 50.0, *, threads: int | None = None, dtypes: Sequence[str] = ("float32",), plot: Name | None = None
) -> list[Result]:
    """Measure every case, print a table and save a picture.

    Parameters
    ----------
    seconds : float, default 50
        How long it may take, about. Every case gets two rounds at least.
    threads : int, optional
        The number of threads of gradclip, of the limit and of PyTorch; by default the one that gradclip is set to. NumPy and
        SciPy have no function for it.
    dtypes : sequence of str
        The dtypes of the leaves, among "float16", "bfloat16", "float32" and "float64".
    plot : path, optional
        Where the picture is saved. The suffix chooses its format, PNG if there is none.

    Returns
    -------
    list of Result
        One result per case, in the order of the table.

    Raises
    ------
    ImportError, OSError, ValueError
        Matplotlib or ml_dtypes is missing, or an argument cannot be used. Nothing was measured.
    """
    if not 0 < number("seconds", seconds) < math.inf:
        raise ValueError(f"seconds must be positive and finite, not {seconds}")
    end = perf_counter() + seconds
    kinds = {name: _dtype(name) for name in dtypes}
    if plot is not None:
        need_matplotlib("the picture")
        check_picture(plot)

    with nullcontext() if threads is None else gradclip.num_threads(threads):
        print(gradclip.show_config())
        if hasattr(os, "getloadavg"):  # not on Windows
            print(f"load before       {os.getloadavg()[0]:.1f} (what other programs take is missing below)", flush=True)
        peers = installed_peers()
        try:
            results = _measure(peers, kinds, end)
        finally:
            if "torch" in peers:  # it sets the number of OpenMP, which bounds gradclip too
                peers["torch"].restore_threads()
        for dtype in kinds:
            print(f"memory limit      {roofline.limits([r for r in results if r.dtype == dtype])}")
        print("GB of gradient per second (clipping reads it twice and writes it once):\n")
        roofline.show(results)
        if any(r.ratio < 0.95 for r in results):
            print("Below 1 x limit: cores, cache and memory were not this run's alone. Measure again.")
        held_up = [f"{r.name} ({r.kind}, {r.busy:.0%})" for r in results if r.busy > BUSY]
        if held_up:
            rows = "all rows" if len(held_up) == len(results) else ", ".join(held_up)
            print(f"Not to be believed, because other programs held up this one for much of the time: {rows}.")
        if plot is not None:
            save_picture(roofline.draw(results), plot)
            say(f"Picture saved as {plot}")
    return results


def _dtype(name: str) -> np.dtype[Any]:
    """Return the dtype of this name; raise an error if it is not known, or if its package is missing."""
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {name!r}")
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError(f'bfloat16 needs ml_dtypes: pip install "gradclip[bfloat16]" ({error})') from error
    kind: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return kind


def _measure(peers: Mapping[str, Any], kinds: Mapping[str, np.dtype[Any]], end: float) -> list[Result]:
    """Return the results of all cases, which share the time that is left until `end`."""
    room = free_memory() / 4
    cases: list[tuple[str, bool, str, int, int]] = []
    for dtype, kind in kinds.items():
        one = [(_size(n), 1, n // kind.itemsize) for n in SIZES if n <= room or n == SIZES[0]]
        some = [(name, count, 1000) for name, count in MANY]
        cases += [(dtype, clips, *case) for clips in (False, True) for case in one + some]
    # A call on a large leaf takes long, and meets other users of cache and memory: it gets more of the time.
    weights = [1 + count * elements * kinds[dtype].itemsize / 2**25 for dtype, _, _, count, elements in cases]
    results = []
    with progress("measuring", len(cases)) as advance:
        for i, (dtype, clips, name, count, elements) in enumerate(cases):
            tile = np.random.default_rng(i).standard_normal(2**18, np.float32).astype(kinds[dtype])
            leaves: list[Array] = [np.resize(tile[:elements], elements) for _ in range(count)]
            share = (end - perf_counter()) * weights[i] / sum(weights[i:])
            busy = Busy()
            seconds = fastest(peers, leaves, clips, seconds=share)
            size = sum(leaf.nbytes for leaf in leaves)
            results.append(Result(dtype, clips, name, count, size, seconds, busy.part(size >= LARGE)))
            advance()
    return results


def free_memory(meminfo: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the bytes that the system and the container's limit leave free; infinity if neither tells."""
    free = math.inf
    try:
        line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
        free = int(line.split()[1]) * 1024
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, StopIteration, ValueError):  # not Linux, no container, or no limit ("max")
        pass
    return free


def _size(nbytes: int) -> str:
    """Return a number of bytes as text, in bytes, KiB or MiB."""
    k = int(math.log2(nbytes)) // 10
    return f"{nbytes >> 10 * k} {('bytes', 'KiB', 'MiB')[k]}"
