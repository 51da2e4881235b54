"""How fast this machine clips: gradclip beside the memory limit and the installed ones of NumPy, SciPy and PyTorch.

The limit is the time of a plain read of the gradient and, where it is clipped, of a read and a rewrite of every
word in place: nothing that has to see each element can be faster. Speeds are GB of gradient per second, for
the limit as for the others, so that one look at the picture (a roofline: speed over size) tells how much is left.
"""

import math
import os
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np

import gradclip

from .._arguments import number
from .._cpu import machine
from .._cpu.limits import Stream
from .._leaves import Leaves
from .._saving import check_picture, need_matplotlib, save_picture
from . import peers as known_peers
from . import roofline
from .terminal import progress, say

SIZES = tuple(4**k for k in range(6, 15))  # bytes of one leaf: 4 KiB to 256 MiB
MANY = ("1000 leaves x 1000", 1000), ("6 leaves x 1000", 6)  # leaves of 1000 elements
DTYPES = ("float16", "bfloat16", "float32", "float64")

TURN = 5e-3  # seconds of one contender's turn: threads that wait for more work by spinning have stopped by its end
BATCH = 1e-4  # seconds of what is timed at once, far above the clock's resolution


@dataclass
class Result:
    """What one case took: seconds of the fastest call by contender, "limit" among them."""

    dtype: str
    clips: bool
    name: str
    leaves: int
    bytes: int
    seconds: dict

    def speed(self, contender):
        """GB of gradient per second, NaN where the contender does not know the dtype."""
        return self.bytes / self.seconds.get(contender, math.nan) / 1e9

    @property
    def kind(self):
        return f"{self.dtype}, {'clipping' if self.clips else 'norm only'}"

    @property
    def ratio(self):
        return self.seconds["gradclip"] / self.seconds["limit"]


class Gradient:
    """Leaves to be clipped again and again: thresholds fall by 2 %, more than any contender's norm can be wrong,
    so that every call has something to write. `refill` brings back the leaves and the first threshold."""

    def __init__(self, leaves):
        self.leaves, self.fresh = leaves, [leaf.copy() for leaf in leaves]
        self.norm = self.threshold = gradclip.measure(leaves).norm  # of the finite elements

    def refill(self):
        self.threshold = self.norm
        for leaf, fresh in zip(self.leaves, self.fresh, strict=True):
            leaf[...] = fresh

    def next_threshold(self):
        self.threshold *= 0.98
        return self.threshold


def installed_peers():
    """name -> peer, those whose packages are installed; PyTorch on as many threads as gradclip."""
    found = {}
    for name in known_peers.NAMES:
        with suppress(NotImplementedError):
            found[name] = known_peers.load(name)
    if "torch" in found:
        found["torch"].set_threads(machine.team())
    return found


def fastest(peers, leaves, clips, **budget):
    """Seconds of the fastest call that clips `leaves` (without `clips`: finds nothing to clip), by contender.

    The limit is taken on one thread and on all: for small leaves, waking the others costs more than it saves.
    """
    stream = Stream(Leaves(leaves))
    refill, max_norm = None, lambda: math.inf
    if clips:
        gradient = Gradient(leaves)
        refill, max_norm = gradient.refill, gradient.next_threshold

    def limit(team):
        stream.read(team)
        if clips:
            stream.rewrite(team)

    teams = {1, machine.team()}
    calls = {team: partial(limit, team) for team in teams}
    for name, peer in peers.items():
        with suppress(NotImplementedError):  # of this dtype
            calls[name] = partial(lambda clip, grads: clip(grads, max_norm()), peer.clip_by_global_norm_, peer.prepare(leaves))
    best = best_in_turns(calls, refill, **budget)
    return {"limit": min(best.pop(team) for team in teams), **best}


def best_in_turns(calls, refill=None, rounds=2, seconds=0.0):
    """Seconds of the fastest call of each. They take turns, so that a busy moment meets them all: `rounds` rounds, and
    as many more as begin within `seconds`. `refill` is called, untimed, before each batch of at most 100 calls."""
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


def run(seconds=50.0, *, threads=None, dtypes=("float32",), plot=None):
    """Measure every case, print a table and save a picture.

    Parameters
    ----------
    seconds : float, default 50
        About what it all may take; every case gets two rounds at least.
    threads : int, optional
        Of gradclip, the limit and PyTorch (default: what gradclip is set to); NumPy and SciPy have no call for it.
    dtypes : sequence of str
        Of the leaves: "float16", "bfloat16", "float32", "float64".
    plot : path, optional
        Where the picture is saved; the suffix chooses its format (none: PNG).

    Returns
    -------
    list of Result

    Raises
    ------
    ImportError, OSError, ValueError
        Matplotlib or ml_dtypes is missing, or an argument cannot be used: before anything is measured.
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
            if "torch" in peers:  # its setting is OpenMP's, and so bounds gradclip's too
                peers["torch"].restore_threads()
        for dtype in kinds:
            print(f"memory limit      {roofline.limits([r for r in results if r.dtype == dtype])}")
        print("GB of gradient per second (clipping reads it twice and writes it once):\n")
        roofline.show(results)
        if any(r.ratio < 0.95 for r in results):
            print("Below 1 x limit: cores, cache and memory were not this run's alone. Measure again.")
        if plot is not None:
            save_picture(roofline.draw(results), plot)
            say(f"Picture saved as {plot}")
    return results


def _dtype(name):
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {name!r}")
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError(f'bfloat16 needs ml_dtypes: pip install "gradclip[bfloat16]" ({error})') from error
    return np.dtype(ml_dtypes.bfloat16)


def _measure(peers, kinds, end):
    """The results of all cases, which share the time that is left until `end`."""
    room, cases = free_memory() / 4, []
    for dtype, kind in kinds.items():
        one = [(_size(n), 1, n // kind.itemsize) for n in SIZES if n <= room or n == SIZES[0]]
        some = [(name, count, 1000) for name, count in MANY]
        cases += [(dtype, clips, *case) for clips in (False, True) for case in one + some]
    # A call on a large leaf takes long, and cache and memory are shared with others: it gets more of the time.
    weights = [1 + count * elements * kinds[dtype].itemsize / 2**25 for dtype, _, _, count, elements in cases]
    results = []
    with progress("measuring", len(cases)) as advance:
        for i, (dtype, clips, name, count, elements) in enumerate(cases):
            tile = np.random.default_rng(i).standard_normal(2**18, np.float32).astype(kinds[dtype])
            leaves = [np.resize(tile[:elements], elements) for _ in range(count)]
            share = (end - perf_counter()) * weights[i] / sum(weights[i:])
            seconds = fastest(peers, leaves, clips, seconds=share)
            results.append(Result(dtype, clips, name, count, sum(leaf.nbytes for leaf in leaves), seconds))
            advance()
    return results


def free_memory(meminfo=Path("/proc/meminfo"), group=Path("/sys/fs/cgroup")):
    """Bytes that the system and the container's limit leave; infinity where neither can be asked."""
    free = math.inf
    try:
        line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
        free = int(line.split()[1]) * 1024
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, StopIteration, ValueError):  # no Linux, no container, "max"
        pass
    return free


def _size(nbytes):
    k = int(math.log2(nbytes)) // 10
    return f"{nbytes >> 10 * k} {('bytes', 'KiB', 'MiB')[k]}"
