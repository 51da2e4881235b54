"""Give every public function arguments of all kinds, sensible and senseless, in random order, by hypothesis.

    python tests/faults/arguments.py --seed 1 --examples 2000

A machine of states builds a nesting leaf by leaf: all dtypes, strided, overlapping, read-only, with NaN, nested in containers
of all kinds, beside objects that lie about themselves and iterators that raise. Between, it calls a random function with random
arguments. What comes of it must be a result, or an error of a kind that the functions promise; and after an error every byte
of every leaf is what it was."""

from __future__ import annotations

import argparse
import collections
import inspect
import math
import sys
import warnings
from fractions import Fraction
from types import MappingProxyType

import ml_dtypes
import numpy as np
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

import gradclip

Pair = collections.namedtuple("Pair", "left right")
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.complex64, np.complex128]
counts = collections.Counter()


class PlannedError(Exception):
    """What the objects below raise: it may come through as it is."""


class Lying:
    """An object that says that it is an array, and is none."""

    def __init__(self, interface):
        """Take what it says."""
        self.__array_interface__ = interface


class Raising:
    """An object that raises whatever a library asks of it."""

    def __getattr__(self, name):
        if name.startswith("_") and not name.startswith(("__array", "__cuda", "__dlpack")):
            raise AttributeError(name)  # as hypothesis asks, which shows it
        raise PlannedError(name)

    def _raise(self, *_):
        raise PlannedError

    __float__ = __index__ = __len__ = __iter__ = __bool__ = _raise


class Unhelpful(np.ndarray):
    """An array that refuses to say what it holds."""

    def __array_finalize__(self, parent):
        """Make no trouble while arrays are made."""

    def __iter__(self):
        raise PlannedError("iter")

    def __bool__(self):
        raise PlannedError("bool")


def raising(leaves):
    """Yield leaves, then raise."""
    yield from leaves
    raise PlannedError("the iterator")


def resizing(leaves):
    """Yield leaves, and try meanwhile to resize those that were yielded before."""
    for i, leaf in enumerate(leaves):
        yield leaf
        for other in leaves[: i + 1]:
            try:
                if isinstance(other, np.ndarray):
                    other.resize(other.size + 1)
            except ValueError:  # it is in use, or a view
                continue


def odd_objects():
    """Objects that are no leaves, or pretend to be others."""
    endless = []
    endless.append(endless)
    interfaces = [
        {},
        None,
        {"version": 3, "typestr": "<f4", "shape": "x", "data": (0, False)},
        {"version": 3, "typestr": "<f9", "shape": (2,), "data": (0, False)},
        {"version": 3, "typestr": "<f4", "shape": (0,), "data": (0, False), "strides": (1, 2)},
    ]
    scalars = ["text", b"bytes", 3, 2.5, True, np.float32(2.5), np.datetime64("2020"), Ellipsis, object(), Raising()]
    containers = [endless, {1, 2}, range(3), MappingProxyType({"a": np.ones(2)}), memoryview(bytearray(8))]
    arrays = [
        np.array("a"),
        np.array([1, 2]),
        np.array([object()]),
        np.ma.array([1.0, 2.0], mask=[0, 1]),
        np.zeros(3, ">f4"),
        np.zeros(2, [("x", "f4")]),
        np.zeros(0),
        np.zeros(()),
        np.ones((2, 2)).view(Unhelpful),
        np.broadcast_to(np.ones(1), (3,)),
        np.ones(2).astype(np.longdouble),
    ]
    return [*map(Lying, interfaces), *scalars, *containers, *arrays]


ODD_NUMBERS = [0, 1, -1, 10**400, True, None, "1", "inf", Fraction(1, 3), 1j, b"1", {}, [], Raising()]
ODD_NUMBERS += [np.float32(2), np.array(1.5), np.array([1.0, 2.0])]
BY_LEAF = [
    {"*": 1.0},
    {"a*": 0.5, "*": 1.0},
    {"nothing": 1.0},
    {"a": None},
    [1.0],
    gradclip.thresholds.Schedule(lambda step: 1.0),
]
SOME = gradclip.measure(np.ones(3))
NUMBERS = st.one_of(
    *[st.floats(min_value=0, max_value=10)] * 6, st.floats(), st.sampled_from(ODD_NUMBERS), st.sampled_from([*BY_LEAF, SOME])
)
KEYWORDS = {
    "ord": [1, 2, 2.0, 0.5, 3, math.inf, 0, -1, math.nan, "2", None],
    "eps": [0, 1e-6, -1, math.nan, math.inf, "x"],
    "nonfinite": ["raise", "skip", "zero", "propagate", "other", None, 3],
    "grad_scale": [1, 1024.0, 3.0, 0, -1, math.inf, 5e-324, 1e308, None],
    "strict": [True, False, 1, "yes", None],
    "skip_above": [None, 1.0, 0.0, math.inf, -1, math.nan, "x"],
    "owned": [None, True, False, {"*": True}, {"nothing": False}, "x", 3],
    "axis": [None, 0, 1, -1, (0, 1), 7, "0", (0, 0), ()],
    "groups": [None, {"*": "all"}, {"a*": "x"}, {"nothing": "x"}, "x", 3, {"*": 3}],
    "mask": [None, [True], [True, False], "x", 3],
    "normalize": [True, False, None],
    "per_leaf": [True, False, "x"],
    "unit_axis": [0, -1, (0, 1), 9, "x"],
    "comm": [None, 3, Raising()],
    "unknown": [1],
}
OPTIONS = st.lists(st.sampled_from([(name, value) for name, values in KEYWORDS.items() for value in values]), max_size=2).map(
    dict
)
PAIRS = ("clip_by_value", "clip_by_norm", "clip_by_global_norm", "normalize", "clip_adaptive", "clip_per_sample", "apply_clip")
FUNCTIONS = [*PAIRS, *(name + "_" for name in PAIRS), "per_sample_clip_sum", "sgd_step_", "measure", "global_norm"]
PROMISED = (TypeError, ValueError, FloatingPointError, PlannedError)


class Calls(RuleBasedStateMachine):
    """A nesting that grows, and calls with it."""

    def __init__(self):
        """Begin with no leaves."""
        super().__init__()
        self.children = []
        self.arrays = []

    @rule(
        dtype=st.sampled_from(DTYPES),
        shape=st.lists(st.integers(0, 5), max_size=3),
        turn=st.integers(0, 3),
        number=st.integers(0, 99),
    )
    def add(self, dtype, shape, turn, number):
        """Add a leaf: contiguous, transposed, strided or reversed."""
        a = np.array(np.random.default_rng(number).standard_normal([2 * n for n in shape]) * 10.0 ** (number % 7), dtype)
        if a.ndim:
            a = [a, a.T, a[::2], a[::-1]][turn]
        self.arrays.append(a)
        self.children.append(a)

    @rule(which=st.integers(0, 9), part=st.sampled_from(["all", "half", "flat"]))
    def share(self, which, part):
        """Add a leaf that shares memory with another one."""
        if self.arrays:
            a = self.arrays[which % len(self.arrays)]
            self.children.append(a if part == "all" or not a.ndim else a[: len(a) // 2] if part == "half" else a.reshape(-1))

    @rule(which=st.integers(0, 9), what=st.sampled_from(["read-only", "nan", "inf", "zero", "tiny"]))
    def change(self, which, what):
        """Make a leaf read-only, or put something special into it."""
        if self.arrays:
            a = self.arrays[which % len(self.arrays)]
            if what == "read-only":
                a.flags.writeable = False
            elif a.flags.writeable:
                a[...] = {"nan": np.nan, "inf": np.inf, "zero": 0, "tiny": 6e-8}[what]

    @rule(which=st.integers(0, 99))
    def add_odd(self, which):
        """Add an object that is no leaf."""
        found = odd_objects()
        self.children.append(found[which % len(found)])

    @rule(how=st.sampled_from(["list", "tuple", "dict", "pair", "iterator", "raising", "resizing", "None", "drop", "deep"]))
    def nest(self, how):
        """Put all that there is so far into a container."""
        c = self.children
        self.children = {
            "list": lambda: [list(c)],
            "tuple": lambda: [tuple(c)],
            "dict": lambda: [{f"a{i}" if i % 3 else i: v for i, v in enumerate(c)}],
            "pair": lambda: [Pair(list(c), None)],
            "iterator": lambda: [iter(list(c))],
            "raising": lambda: [raising(list(c))],
            "resizing": lambda: [resizing(list(c))],
            "None": lambda: [*c, None],
            "drop": list,
            "deep": lambda: [[[[[[list(c)]]]]]],
        }[how]()

    @rule(
        name=st.sampled_from(FUNCTIONS),
        first=NUMBERS,
        second=NUMBERS,
        options=OPTIONS,
        out=st.sampled_from(["no", "same", "like", "odd"]),
    )
    def call(self, name, first, second, options, out):
        """Call a function; keep only options that it knows, mostly."""
        function = getattr(gradclip, name)
        grads = self.children[0] if len(self.children) == 1 else self.children
        known = inspect.signature(function).parameters
        allowed = {k: v for k, v in options.items() if k in known or len(options) == 1}
        arguments = {
            "sgd_step_": (grads, self.like(), first, second),
            "clip_adaptive_": (grads, self.like(), first),
            "clip_adaptive": (grads, self.like(), first),
            "measure": (grads,),
            "global_norm": (grads,),
            "apply_clip_": (grads, SOME, first),
            "apply_clip": (grads, SOME, first),
            "clip_by_value_": (grads, first, second),
            "clip_by_value": (grads, first, second),
        }.get(name, (grads, first))
        if out != "no" and not name.endswith("_") and "clip" in name:
            allowed["out"] = {"same": grads, "like": self.like(), "odd": second}[out]
        before = [a.tobytes() for a in self.arrays]
        self.children = list(self.arrays)  # for the next call: what is odd serves once
        try:
            function(*arguments, **allowed)
        except PROMISED as error:
            what = type(error).__name__
        else:
            what = "a result"
        counts[what] += 1
        assert what == "a result" or [a.tobytes() for a in self.arrays] == before, f"{name}: {what}, and had written"
        for a in self.arrays:
            a.flags.writeable = True
            a[~np.isfinite(a)] = 1

    def like(self):
        """The same nesting with new leaves, where it is one of lists, dicts and arrays alone."""

        def copied(node):
            if isinstance(node, np.ndarray):
                return np.ones(node.shape, node.dtype)
            if isinstance(node, dict):
                return {k: copied(v) for k, v in node.items()}
            return [copied(v) for v in node] if type(node) is list and node and node[0] is not node else node

        return copied(self.children[0] if len(self.children) == 1 else self.children)


def main():
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--examples", type=int, default=2000)
    options = parser.parse_args()
    run(options.seed, options.examples)
    print(
        f"{counts.total():,} calls in {options.examples:,} sequences (seed {options.seed}): no byte changed by one that failed"
    )
    for what, count in counts.most_common():
        print(f"  {count:8,} {what}")


def run(number, examples):
    """Run so many sequences of steps; raise what a step raises that it must not."""
    warnings.simplefilter("ignore")
    chosen = settings(
        max_examples=examples, stateful_step_count=30, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(seed(number)(Calls), settings=chosen)


if __name__ == "__main__":
    sys.exit(main())
