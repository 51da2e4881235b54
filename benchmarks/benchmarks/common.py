"""Seeded gradients, and what the benchmark classes share."""

import math
from functools import cached_property, lru_cache

import numpy as np

from gradclip.cli import peers

SEED = 20121


SIZES = (3, 4, 5, 6, 7.5)  # powers of ten, as asv draws them: its axes are linear
COUNTS = (0, 2, 4)
DTYPES = ("float16", "bfloat16", "float32", "float64")
THREADS = (1, "all")
READERS = (*peers.NAMES, "optax")  # those that know the norm


def ten_to(k):
    return round(10**k)


def flat(size, count=1):
    """Shapes of `count` leaves of `size` elements."""
    return ((size,),) * count


def gpt2_small():
    """The 148 leaves of GPT-2 small: 124,439,808 elements."""
    d = 768
    norm = [(d,), (d,)]
    attention = [(d, 3 * d), (3 * d,), (d, d), (d,)]
    perceptron = [(d, 4 * d), (4 * d,), (4 * d, d), (d,)]
    return ((50257, d), (1024, d), *(12 * (norm + attention + norm + perceptron)), *norm)


def resnet50():
    """The 161 leaves of ResNet-50: 25,557,032 elements."""
    convolutions, wide = [(64, 3, 7, 7)], 64
    for width, blocks in [(64, 3), (128, 4), (256, 6), (512, 3)]:
        for block in range(blocks):
            convolutions += [(width, wide, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            convolutions += [(4 * width, wide, 1, 1)] if block == 0 else []
            wide = 4 * width
    with_norms = [shape for c in convolutions for shape in (c, c[:1], c[:1])]
    return (*with_norms, (1000, wide), (1000,))


MODELS = {"GPT-2 small": gpt2_small, "ResNet-50": resnet50}


def dtype(name):
    """The dtype of that name; bfloat16 is skipped where ml_dtypes is missing."""
    return np.dtype(name) if name != "bfloat16" else peers.module("ml_dtypes").bfloat16


def gradients(shapes, name="float32", seed=SEED):
    """Leaves of independent normal numbers with standard deviation 1, each in memory of its own."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, dtype=np.float32).astype(dtype(name), copy=False) for shape in shapes]


class Work:
    """A peer, and the leaves it is to work on, in the form it takes them."""

    def __init__(self, peer, shapes, name, place):
        self.shapes, self.name = shapes, name
        self.peer = peers.load(peer)
        self.leaves = list(map(place, gradients(shapes, name)))
        self.grads = self.peer.prepare(self.leaves)

    @cached_property
    def fresh(self):
        return [leaf.copy() for leaf in self.leaves]

    def refill(self):
        """The leaves as they were made."""
        for leaf, fresh in zip(self.leaves, self.fresh, strict=True):
            leaf[...] = fresh

    @cached_property
    def weights(self):
        """Parameters of the leaves' shapes and distribution."""
        return gradients(self.shapes, self.name, SEED + 1)

    @cached_property
    def params(self):
        return self.peer.prepare(self.weights)

    @cached_property
    def step(self):
        return self.peer.stepper(self.weights, self.leaves, 1e-3)


@lru_cache(maxsize=1)
def work(*args):
    """`Work`, allocated once in a process however often asv calls `setup`."""
    return Work(*args)


class Bench:
    """A benchmark of one call at a time, before each of which `setup` runs, untimed.

    So a benchmark that clips can be given its gradient back: clipped in place, it would be within the threshold for the second
    call, and nothing more would be written. The price is a gradient that is as warm in cache as the refill leaves it, which is
    also how backpropagation would."""

    number = 1
    repeat = (5, 500, 0.25)  # at least, at most, seconds
    warmup_time = 0.05

    def start(self, peer, shapes, name="float32", *, clips=True, refill=True, place=np.asarray):
        """Make everything that a body needs.

        clips: whether the threshold is below or above the leaves' norm, which is about the root of their number of elements.
        refill: False where the leaves are only read. place: makes a leaf of an array."""
        self.work = work(peer, shapes, name, place)
        self.peer, self.grads = self.work.peer, self.work.grads
        if refill:
            self.work.refill()
        self.ratio = 0.4 if clips else 2.5  # of threshold and norm
        self.max_norm = math.sqrt(sum(map(math.prod, shapes))) * self.ratio
