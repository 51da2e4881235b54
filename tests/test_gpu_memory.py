"""CuPy leaves and memory: what a call held is free when it is dropped, without the cyclic garbage collector."""

import gc
import weakref
from types import SimpleNamespace

import pytest
from gpu_leaves import EVERY, across, everything
from marks import slow


def arrays_in(node):
    if isinstance(node, dict | SimpleNamespace):
        node = list(node.values() if isinstance(node, dict) else vars(node).values())
    if isinstance(node, list | tuple):
        return [array for child in node for array in arrays_in(child)]
    return [] if node is None else [node]


@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize("policy", ["raise", "skip", *slow(["zero"])])
@pytest.mark.parametrize("call", EVERY)
def test_no_call_leaves_a_cycle(cupy, uncollected, call, policy, devices):
    x = everything(lambda tree: across(cupy, devices, tree))
    EVERY[call](x, nonfinite=policy)  # compiles and imports
    alive = [weakref.ref(array) for array in arrays_in(x)]
    gc.collect()
    report = EVERY[call](x, nonfinite=policy)
    del x
    assert [array() for array in alive if array() is not None] == []
    assert report.norm > 0
    del report
    assert gc.collect() == 0
