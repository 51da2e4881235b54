"""Every public function that takes leaves, as calls that write something: what holds for all of them is tested over these."""

import math
from types import SimpleNamespace

import numpy as np

import gradclip

THIRD = slice(None, None, 2)


def nesting(xp, seed, dtype=np.float32):
    """Leaves of a batch of 3: contiguous, strided, of two dimensions, and a None."""
    values = np.random.default_rng(seed).normal(size=(4, 24)).astype(dtype)
    a, b, c, d = (xp.asarray(v) for v in values)
    return {"w": a[:12].reshape(3, 4), "b": [b[:3], None, (c[:6][THIRD], d.reshape(3, 8)[:, THIRD])]}


def inputs(xp=np):
    """What calls are made with, new each time; None of it is shared."""
    grads, out = nesting(xp, 1), nesting(xp, 2)
    sums = {"w": xp.zeros(4), "b": [xp.zeros(()), None, (xp.zeros(()), xp.zeros(4))]}
    return SimpleNamespace(grads=grads, params=nesting(xp, 3, np.float64), out=out, sums=sums)


def apply_clip_(x):
    return gradclip.apply_clip_(x.grads, gradclip.measure(x.grads), 0.5)


def apply_clip(x, **keywords):
    return gradclip.apply_clip(x.grads, gradclip.measure(x.grads), 0.5, **keywords)


# Calls in place, and those that write to an `out`.
WRITING = {
    "clip_by_value_": lambda x: gradclip.clip_by_value_(x.grads, 0.5),
    "clip_by_value_, patterns": lambda x: gradclip.clip_by_value_(x.grads, {"b*": -0.5}, {"w": 0.25, "*": 1.0}),
    "clip_by_norm_": lambda x: gradclip.clip_by_norm_(x.grads, 0.5),
    "clip_by_norm_, patterns": lambda x: gradclip.clip_by_norm_(x.grads, {"b*": 0.5, "*": 0.25}),
    "clip_by_norm_, groups": lambda x: gradclip.clip_by_norm_(x.grads, {"x": 0.5}, groups={"w": "x", "b/[02]*": "x"}),
    "clip_by_norm_, axis": lambda x: gradclip.clip_by_norm_(x.grads, 0.1, axis=0),
    "clip_by_global_norm_": lambda x: gradclip.clip_by_global_norm_(x.grads, 0.5),
    "clip_by_global_norm_, strict": lambda x: gradclip.clip_by_global_norm_(x.grads, 0.5, strict=True, nonfinite="skip"),
    "clip_by_global_norm_, rule": lambda x: gradclip.clip_by_global_norm_(
        x.grads, gradclip.thresholds.Schedule(lambda step: 0.5)
    ),
    "normalize_": lambda x: gradclip.normalize_(x.grads, 0.5),
    "clip_adaptive_": lambda x: gradclip.clip_adaptive_(x.grads, x.params, 0.1),
    "clip_adaptive_, patterns": lambda x: gradclip.clip_adaptive_(x.grads, x.params, {"b*": 0.1}),
    "clip_per_sample_": lambda x: gradclip.clip_per_sample_(x.grads, 0.5),
    "clip_per_sample_, groups": lambda x: gradclip.clip_per_sample_(
        x.grads, {"x": 0.5}, groups={"w": "x", "b/[02]*": "x"}, mask=[True, False, True]
    ),
    "sgd_step_": lambda x: gradclip.sgd_step_(x.params, x.grads, 0.1, 0.5),
    "apply_clip_": apply_clip_,
    "clip_by_value, out": lambda x: gradclip.clip_by_value(x.grads, 0.5, out=x.out),
    "clip_by_norm, out": lambda x: gradclip.clip_by_norm(x.grads, 0.5, out=x.out),
    "clip_by_global_norm, out": lambda x: gradclip.clip_by_global_norm(x.grads, 0.5, out=x.out),
    "clip_by_global_norm, out is grads": lambda x: gradclip.clip_by_global_norm(x.grads, 0.5, out=x.grads),
    "normalize, out": lambda x: gradclip.normalize(x.grads, 0.5, out=x.out),
    "clip_adaptive, out": lambda x: gradclip.clip_adaptive(x.grads, x.params, 0.1, out=x.out),
    "clip_per_sample, out": lambda x: gradclip.clip_per_sample(x.grads, 0.5, out=x.out),
    "per_sample_clip_sum, out": lambda x: gradclip.per_sample_clip_sum(x.grads, 0.5, out=x.sums),
    "apply_clip, out": lambda x: apply_clip(x, out=x.out),
}

# Calls that write to nothing of the caller's.
READING = {
    "clip_by_value": lambda x: gradclip.clip_by_value(x.grads, 0.5),
    "clip_by_norm": lambda x: gradclip.clip_by_norm(x.grads, 0.5),
    "clip_by_norm, nesting": lambda x: gradclip.clip_by_norm(x.grads, {"w": 0.5, "b": [1.0, None, (2.0, 3.0)]}),
    "clip_by_norm, groups": lambda x: gradclip.clip_by_norm(x.grads, 0.5, groups={"w": "a", "b": ["a", None, ("b", "b")]}),
    "clip_by_global_norm": lambda x: gradclip.clip_by_global_norm(x.grads, 0.5),
    "clip_by_global_norm, nothing to do": lambda x: gradclip.clip_by_global_norm_(x.grads, math.inf),
    "normalize": lambda x: gradclip.normalize(x.grads, 0.5),
    "clip_adaptive": lambda x: gradclip.clip_adaptive(x.grads, x.params, 0.1),
    "clip_per_sample": lambda x: gradclip.clip_per_sample(x.grads, 0.5),
    "per_sample_clip_sum": lambda x: gradclip.per_sample_clip_sum(x.grads, 0.5),
    "per_sample_clip_sum, by leaf": lambda x: gradclip.per_sample_clip_sum(
        x.grads, {"b/*": 0.5}, normalize=True, mask=[True, True, False]
    ),
    "global_norm": lambda x: gradclip.global_norm(x.grads),
    "measure": lambda x: gradclip.measure(x.grads),
    "apply_clip": apply_clip,
}

CALLS = WRITING | READING


def flat(tree):
    """The leaves of nestings, in order."""
    if isinstance(tree, SimpleNamespace):
        tree = vars(tree)
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        return [leaf for child in tree for leaf in flat(child)]
    return [] if tree is None else [tree]


def objects(tree):
    """The leaves, their bases and the containers of nestings."""
    if isinstance(tree, SimpleNamespace):
        tree = vars(tree)
    inner = list(tree.values()) if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else []
    mine = [] if tree is None else [tree, *([] if getattr(tree, "base", None) is None else [tree.base])]
    return mine + [found for child in inner for found in objects(child)]


def contents(tree):
    """What is stored in the leaves of nestings, byte by byte; of a sparse one the places too."""

    def stored(leaf):
        coords = list(getattr(leaf, "coords", ()))
        return [a.tobytes() for a in [*vars(leaf).values(), *coords] if isinstance(a, np.ndarray)]

    return [stored(leaf) if hasattr(leaf, "nnz") else leaf.tobytes() for leaf in flat(tree)]
