"""Change what a call works on while it runs, and give it objects that lie about themselves, at random.

    python tests/faults/meddling.py --seed 1 --times 20000

Calls are those of tests/calls.py. Some way into a call, something changes what it was given: an array is resized, reshaped, of
another dtype or read-only, a leaf is replaced or taken away, a container is emptied, or the same leaves go into another call.
It happens at a line of Python that the call runs, when a container is asked for its items, or by another thread at any moment.
What comes of it is the result for the leaves as they were or as they are, or an error that says where, and then every byte is
what it was. Objects that lie are those of tests/faults/liars.py."""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import sys
import threading
import warnings
from pathlib import Path

import numpy as np

if __name__ == "__main__":  # as pytest does by its setting `pythonpath`
    sys.path[:0] = [str(Path(__file__).parents[1])]
from calls import CALLS, flat, inputs
from faults.liars import lied_to
from interrupts import interrupted

ERRORS = (TypeError, ValueError, FloatingPointError, RuntimeError)
TREES = ("grads", "params", "out", "sums")


# ---- what changes ------------------------------------------------------------------------------------------


def resize(leaf, tree, rng):
    """Give an array another size, which it refuses while somebody else uses it."""
    leaf.resize(leaf.size + 2)


def reshape(leaf, tree, rng):
    """Give an array another shape in place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        leaf.shape = (*leaf.shape, 1) if rng.random() < 0.5 else (leaf.size,)


def retype(leaf, tree, rng):
    """Let an array say that its bytes are others.

    Not under `strict`, which asks for dtypes more than once, nor between a measure and what is made of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        leaf.dtype = [np.int32, np.float16, np.float64][rng.integers(3)]


def lock(leaf, tree, rng):
    """Make an array read-only."""
    leaf.flags.writeable = False


def replace(leaf, tree, rng):
    """Put a copy into its place."""
    tree["w"] = tree["w"].copy()
    tree["b"][0] = tree["b"][0].copy()


def take_away(leaf, tree, rng):
    """Delete a leaf of a list or of a dict."""
    if rng.random() < 0.5:
        del tree["w"]
    else:
        del tree["b"][rng.integers(3)]


def empty(leaf, tree, rng):
    """Empty a container."""
    (tree if rng.random() < 0.5 else tree["b"]).clear()


def more(leaf, tree, rng):
    """Add an empty leaf, or a None."""
    if rng.random() < 0.5:
        tree["more"] = np.zeros(0)
    else:
        tree["b"].insert(0, None)


CHANGES = (resize, reshape, retype, lock, replace, take_away, empty, more)


def change(x, seed, name):
    """Make the change that a seed stands for; return the name of it."""
    rng = np.random.default_rng(seed)
    tree = getattr(x, TREES[rng.choice(4, p=[0.5, 0.15, 0.2, 0.15])])
    leaves = flat(tree)
    made = CHANGES[rng.integers(len(CHANGES))]
    if made is retype and ("strict" in name or "apply" in name):
        made = lock
    try:
        made(leaves[rng.integers(len(leaves))], tree, rng)
    except (ValueError, TypeError, AttributeError):  # it refuses, or has been changed already
        return f"{made.__name__} was refused"
    return made.__name__


class Dict(collections.OrderedDict):
    """A dict that calls something when it is asked for its items for the so many-th time."""

    left = 0

    def asked(self):
        """Count."""
        self.left -= 1
        if self.left == 0:
            self.act()

    def items(self):
        self.asked()
        return super().items()

    def keys(self):
        self.asked()
        return super().keys()

    def values(self):
        self.asked()
        return super().values()

    def __iter__(self):
        self.asked()
        return super().__iter__()

    def __getitem__(self, key):
        self.asked()
        return super().__getitem__(key)


# ---- when it changes -------------------------------------------------------------------------------------------


def at_a_line(rng, call, x, act):
    """Let it happen at a line of Python."""
    assert not interrupted(lambda: call(x), int(rng.integers(1, 60)), act)


def at_an_item(rng, call, x, act):
    """Let it happen when a container is asked for its items."""
    x.grads = Dict(x.grads)
    x.grads.left, x.grads.act = int(rng.integers(1, 12)), act
    try:
        call(x)
    finally:
        x.grads.left = 0


def by_a_thread(rng, call, x, act):
    """Let another thread do it at any moment."""
    pause = float(rng.random()) * 3e-4
    over = threading.Event()

    def soon():
        over.wait(pause)
        act()

    thread = threading.Thread(target=soon)
    thread.start()
    try:
        call(x)
    finally:
        over.set()
        thread.join()


WHEN = (at_a_line, at_a_line, at_an_item, by_a_thread)


def outcome(call, changed, name):
    """The bytes of all leaves after a call that nobody disturbs, of inputs that were changed before; and whether it failed."""
    x = inputs()
    leaves = flat(x)
    if changed is not None:
        change(x, changed, name)
    with contextlib.suppress(*ERRORS):
        call(x)
    return [a.tobytes() for a in leaves], [a.tobytes() for a in flat(x) if not any(a is b for b in leaves)]


def disturbed(rng, call, name):
    """Disturb a call; return what was changed and what came of it."""
    seed = int(rng.integers(2**60))
    when = WHEN[rng.integers(len(WHEN))]
    x, made = inputs(), []
    old = flat(x)
    before = [a.tobytes() for a in old]
    expected = [outcome(call, None, name), outcome(call, seed, name)]
    try:
        when(rng, call, x, lambda: made or made.append(change(x, seed, name)))  # once: a copy of a dict counts too
    except ERRORS as caught:
        error, told = caught, type(caught).__name__
    else:
        error, told = None, "a result"
    assert not isinstance(error, RuntimeError) or "changed during the call" in str(error), error
    now = [a.tobytes() for a in old]
    where = f"{name}, {when.__name__}, {made}, {told}"
    possible = [expected[0][0], *([expected[1][0]] if made else [])] if told == "a result" else []
    for i, (was, found) in enumerate(zip(before, now, strict=True)):
        same = found == was or (made == ["resize"] and found.startswith(was))
        assert same or any(found == one[i] for one in possible), f"{where}: leaf {i} is neither"
    if not made:
        return None
    return f"{made[0]}: {told}"


def again(rng, call, name):
    """Put the same leaves into another call in the middle of one; nothing is known of what comes out, but it ends."""
    x = inputs()
    other = CALLS[list(CALLS)[rng.integers(len(CALLS))]]
    met = []

    def act():
        met.append(1)
        other(x)

    try:
        WHEN[rng.integers(len(WHEN))](rng, call, x, act)
    except ERRORS as error:
        return f"another call: {type(error).__name__}"
    return "another call: a result" if met else None


WAYS = (disturbed, disturbed, disturbed, again, lied_to)


def trials(seed, ways=WAYS):
    """Yield what came of it, or None where nothing was changed, for ever."""
    rng = np.random.default_rng(seed)
    names = list(CALLS)
    for call in CALLS.values():  # what is imported and remembered once
        call(inputs())
    for _ in itertools.count():
        name = names[rng.integers(len(names))]
        yield ways[rng.integers(len(ways))](rng, CALLS[name], name)


def main():
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--times", type=int, default=20_000)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sys.setswitchinterval(1e-6)
    counts = collections.Counter(itertools.islice(filter(None, trials(options.seed)), options.times))
    print(f"{counts.total():,} calls (seed {options.seed}): no crash, no wrong result, no byte written by one that failed")
    for what, count in counts.most_common():
        print(f"  {count:8,} {what}")


if __name__ == "__main__":
    main()
