"""Make calls fail in every way, at random places, and look whether a byte of anybody's memory has changed.

    python tests/faults/failures.py --seed 1 --failures 100000

Calls are those of tests/calls.py: every public function, in place, with `out` and without. This is made to go wrong: NaN and
Inf among the gradients; a leaf that is read-only, of another dtype, of another shape, or that overlaps another one; refused
memory; Ctrl-C at a line of Python; and Ctrl-C by a signal at any moment. A call that fails must leave every byte as it was.
One that Ctrl-C interrupts may be complete nevertheless, and nothing between."""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import itertools
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np

if __name__ == "__main__":  # as pytest does by its setting `pythonpath`
    sys.path[:0] = [str(Path(__file__).parents[1])]
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # no loops that wait beside other programs
from calls import CALLS, contents, flat, inputs
from interrupts import interrupted

try:
    import _testcapi
except ImportError:  # some distributions leave it out
    _testcapi = None

ERRORS = (TypeError, ValueError, FloatingPointError, MemoryError, SystemError, KeyboardInterrupt)
LARGE = {
    name: CALLS[name]
    for name in ("clip_by_global_norm_", "clip_by_value_", "clip_by_norm_, axis", "clip_by_global_norm, out", "sgd_step_")
}
TREES = ("grads", "params", "out", "sums")


def leaves_of(rng, x):
    """The dicts and keys, or lists and indices, at which a random tree has a leaf, and one of them."""
    tree = getattr(x, TREES[rng.choice(4, p=[0.4, 0.2, 0.3, 0.1])])
    places = [(tree, "w"), (tree["b"], 0)]
    return places[rng.integers(2)]


def not_finite(rng, x):
    """NaN or Inf at a random place of the gradients."""
    leaves = flat(x.grads)
    leaf = leaves[rng.integers(len(leaves))]
    leaf[tuple(int(rng.integers(n)) for n in leaf.shape)] = [np.nan, np.inf, -np.inf][rng.integers(3)]


def read_only(rng, x):
    """A leaf that may not be written."""
    leaves = flat(x)
    leaves[rng.integers(len(leaves))].flags.writeable = False


def other_dtype(rng, x):
    """A leaf of a dtype that is no gradient's, or an object that is no array."""
    where, key = leaves_of(rng, x)
    shape = where[key].shape
    where[key] = [np.ones(shape, int), np.ones(shape, bool), np.full(shape, "a"), np.ones(shape, object), "text", object(), 3][
        rng.integers(7)
    ]


def other_shape(rng, x):
    """A leaf with an element or an axis more than the others of its place."""
    where, key = leaves_of(rng, x)
    leaf = where[key]
    where[key] = [np.ones((*leaf.shape, 2), leaf.dtype), np.ones(leaf.size + 1, leaf.dtype), None][rng.integers(3)]


def overlap(rng, x):
    """A leaf that shares memory with another one."""
    leaves = flat(x)
    other = leaves[rng.integers(len(leaves))]
    where, key = leaves_of(rng, x)
    leaf, most = where[key], other.reshape(-1)[: where[key].size]
    if np.shares_memory(most, other) and most.size == leaf.size:
        where[key] = most.reshape(leaf.shape)


def more_leaves(rng, x):
    """A leaf more in one nesting than in the others."""
    getattr(x, TREES[rng.integers(4)])["more"] = np.ones(3)


@functools.cache
def large_values():
    """What large inputs hold: 2 MB."""
    return np.random.default_rng(0).standard_normal((500, 1000), np.float32)


def large_inputs():
    """Inputs as those of tests/calls.py, large enough for threads, and half of it strided."""
    grads, out, params = ([a[:, :500], a[:, 500::2].copy()] for a in (large_values().copy() for _ in range(3)))
    return SimpleNamespace(grads=grads, out=out, params=params)


SPOILT = (not_finite, read_only, other_dtype, other_shape, overlap, more_leaves)


def spoilt(rng, call, name):
    """Fail because of what was given; returns whether it did."""
    x, spoil = inputs(), SPOILT[rng.integers(len(SPOILT))]
    spoil(rng, x)
    before = contents_of(x)
    try:
        call(x)
    except ERRORS:
        assert contents_of(x) == before, (name, spoil.__name__)
        return spoil.__name__
    return None


def contents_of(x):
    """Every byte of every leaf that is an array, and what stands in its place otherwise."""
    leaves = flat(x)
    return contents([a for a in leaves if isinstance(a, np.ndarray) and a.dtype != object])


def refused(rng, call, name):
    """Fail because Python is refused memory, once or some times in a row."""
    if _testcapi is None:
        return None
    x = inputs()
    before, first = contents(x), int(rng.integers(1, 150))
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None  # of generators that are dropped meanwhile
    try:
        _testcapi.set_nomemory(first, first + int(rng.integers(1, 4)))
        try:
            call(x)
        finally:
            _testcapi.remove_mem_hooks()
    except (MemoryError, SystemError):
        assert contents(x) == before, (name, first)
        return "refused memory"
    finally:
        sys.unraisablehook = hook
    return None


def at_a_line(rng, call, name):
    """Ctrl-C at a random line of gradclip."""
    x, done = inputs(), inputs()
    before = contents(x)
    call(done)
    after = int(rng.integers(1, 60))
    if not interrupted(lambda: call(x), after):
        return None
    assert contents(x) in (before, contents(done)), (name, after)
    return "Ctrl-C at a line"


def by_signal(rng, call, name):
    """Ctrl-C by a signal, at a random moment of a call or close to it."""
    return signalled(rng, call, name, inputs)


def by_signal_in_threads(rng, call, name):
    """Ctrl-C by a signal, at a random moment of a call that takes milliseconds, and threads."""
    name = list(LARGE)[rng.integers(len(LARGE))]
    return signalled(rng, LARGE[name], name, large_inputs)


def signalled(rng, call, name, made):
    """Fail by a signal; compare with a call that nobody interrupted."""
    x, done = made(), made()
    before = contents(x)
    started = time.perf_counter()
    call(done)
    took = time.perf_counter() - started
    expected.add(name)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(1e-6, took * rng.random()))
        try:
            call(x)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            expected.clear()
    except KeyboardInterrupt:
        expected.clear()
        assert contents(x) in (before, contents(done)), name
        return f"Ctrl-C by a signal{', large' if made is large_inputs else ''}"
    return None


expected = set()  # the call that an alarm is meant for: a thread that the system has put aside may take it late


def arrive(number, frame):
    """What Ctrl-C does, for the alarm."""
    if expected:
        raise KeyboardInterrupt


WAYS = (spoilt, spoilt, spoilt, refused, at_a_line, by_signal)
RARE = by_signal_in_threads  # which takes some ten to hundred times as long


def failures(seed, ways=WAYS, rare=False):
    """Yield what failed, or None where a call passed, for ever."""
    rng = np.random.default_rng(seed)
    names = list(CALLS)
    for call in CALLS.values():  # what is imported and remembered once
        call(inputs())
    for _ in itertools.count():
        name = names[rng.integers(len(names))]
        way = RARE if rare and rng.random() < 0.003 else ways[rng.integers(len(ways))]
        yield way(rng, CALLS[name], name)


def main():
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--failures", type=int, default=100_000)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    before = signal.signal(signal.SIGALRM, arrive)
    counts = collections.Counter()
    with contextlib.suppress(KeyboardInterrupt):  # so many until then
        for what in failures(options.seed, rare=True):
            counts[what] += 1
            if counts.total() - counts[None] == options.failures:
                break
    signal.signal(signal.SIGALRM, before)
    passed = counts.pop(None, 0)
    print(f"{counts.total():,} failures (seed {options.seed}), {passed:,} calls passed, no byte changed")
    for what, count in counts.most_common():
        print(f"  {count:8,} {what}")


if __name__ == "__main__":
    main()
