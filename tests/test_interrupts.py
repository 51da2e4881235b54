"""Ctrl-C at any moment: all leaves are as they were, or all are clipped."""

import sys

import numpy as np
import pytest
import scipy.sparse
from calls import contents, inputs
from interrupts import interrupted
from marks import slow

import gradclip


def with_duplicates(format):
    """Two sparse leaves whose elements are stored in parts, between dense ones."""

    def one(scale):
        coo = scipy.sparse.coo_array(([4.0 * scale, 1.5, 1.5], ([1, 0, 0], [1, 0, 0])), shape=(2, 2))
        if format == "coo":
            return coo
        return scipy.sparse.csr_array(([1.5, 1.5, 4.0 * scale], [0, 0, 1], [0, 2, 3]), shape=(2, 2))

    def made():
        x = inputs()
        for tree in (x.grads, x.params, x.out):
            tree["sparse"] = one(1.0)
            tree["last"] = {"dense": np.array([3.0, 4.0]), "sparse": one(2.0)}
        return x

    return made


CLIPS = {
    "in place": (lambda x: gradclip.clip_by_global_norm_(x.grads, 0.5), "grads", True),
    "by value": (lambda x: gradclip.clip_by_value_(x.grads, 0.5), "grads", True),
    "out": (lambda x: gradclip.clip_by_global_norm(x.grads, 0.5, out=x.out), "out", True),
    "step": (lambda x: gradclip.sgd_step_(x.params, x.grads, 0.5, 0.5), "params", True),
    "sums": (lambda x: gradclip.per_sample_clip_sum(x.grads, 0.5, out=x.sums), "sums", False),
    "skipped sums": (lambda x: gradclip.per_sample_clip_sum(x.grads, 0.5, out=x.sums, nonfinite="skip"), "sums", False),
}


@pytest.mark.parametrize("name", slow(CLIPS, fast=("in place", "out", "sums")))
@pytest.mark.parametrize("format", ["csr", *slow(["coo"])])
def test_an_interrupt_leaves_no_leaf_half_clipped(name, format, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # of generators that are dropped meanwhile
    call, written, sparse = CLIPS[name]
    make = with_duplicates(format) if sparse else inputs

    def prepared():
        x = make()
        if name == "skipped sums":
            x.grads["w"][1, 1] = np.nan
            x.sums["w"] += 1.0
        return x

    reference = prepared()
    call(reference)
    new, old = contents(getattr(reference, written)), contents(getattr(prepared(), written))
    assert new != old
    seen, after = set(), 0
    while True:
        x = prepared()
        others = {name: contents(tree) for name, tree in vars(x).items() if name != written}
        after += 1
        came = interrupted(lambda x=x: call(x), after)
        found = contents(getattr(x, written))
        assert found in (old, new)
        assert {name: contents(getattr(x, name)) for name in others} == others
        seen.add((came, found == new))
        if not came:
            break
    assert (True, False) in seen
    assert (False, True) in seen
