"""CuPy leaves and CUDA graphs: what can be captured, what a replay needs, and what is refused."""

import numpy as np
import pytest
from gpu_leaves import (
    MAKING,
    WRITING,
    across,
    assert_same_bits,
    assert_same_report,
    device_count,
    everything,
    host,
    model,
    there,
)
from marks import slow

import gradclip

pytestmark = pytest.mark.slow

MODES = [
    "streamCaptureModeRelaxed",  # CuPy's
    *slow(["streamCaptureModeGlobal"]),  # PyTorch's
]


@pytest.fixture
def stream(cupy):
    """A stream that can be captured, current by `use`."""
    before = cupy.cuda.get_current_stream()
    yield cupy.cuda.Stream(non_blocking=True).use()
    before.use()


def refill(x, step):
    """Other elements in all leaves, the same for NumPy and CuPy."""
    leaves = [x.grads["big"], x.grads["layers"][2].weight, *x.samples["b"], x.params["big"], x.params["layers"][0].bias]
    for i, leaf in enumerate(leaves):
        leaf.fill(1.0 + i + step)


def disturb(cupy):
    """Calls that push all others out of what is remembered, and use what memory is free."""
    for n in range(80):
        gradclip.clip_by_value_(there(cupy, [np.ones(n % 40 + 1)]), 1.0 + n)
    gradclip.clip_by_norm_(there(cupy, model()), 0.01, nonfinite="skip")


EACH_WAY = ("global norm", "strict", "by slice", "adaptive", "per sample", "step", "sum of samples, out")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("call", slow(WRITING, fast=EACH_WAY))
def test_replays(cupy, stream, call, mode):
    here, gpu = everything(lambda tree: tree), everything(lambda tree: there(cupy, tree))
    reports = [WRITING[call](gpu, nonfinite="skip"), WRITING[call](gpu, nonfinite="zero")]
    WRITING[call](here, nonfinite="skip"), WRITING[call](here, nonfinite="zero")
    stream.begin_capture(getattr(cupy.cuda.runtime, mode))
    reports += [WRITING[call](gpu, nonfinite=policy) for policy in ("skip", "zero")]
    graph = stream.end_capture()
    disturb(cupy)
    for step in range(2):
        refill(here, step)
        refill(gpu, step)
        graph.launch()
        disturb(cupy)
        want = [WRITING[call](here, nonfinite=policy) for policy in ("skip", "zero")]
        for name in ("grads", "params", "out", "samples", "clipped", "sums"):
            assert_same_bits(getattr(here, name), getattr(gpu, name))
        if step == 0:
            for a, b in zip(want, reports[2:], strict=True):
                assert_same_report(a, b)


def test_what_cannot_be_captured_is_an_error_that_says_why(cupy, stream):
    gpu, other = everything(lambda tree: there(cupy, tree)), there(cupy, model(seed=3))
    many = there(cupy, list(np.ones((5000, 1))))
    both = across(cupy, min(2, device_count(cupy)), [np.ones(3), np.ones(4)])
    new = [(name, lambda call=call: call(gpu, nonfinite="skip")) for name, call in MAKING.items()]
    rule = gradclip.thresholds.Schedule(lambda step: 1.0)
    calls = [
        ("make the same call once before", lambda: gradclip.clip_by_norm_(other, 1.0, nonfinite="skip")),
        ("waits for numbers", lambda: gradclip.clip_by_global_norm_(gpu.grads, 1.0)),
        ("waits for numbers", lambda: gradclip.clip_by_global_norm_(gpu.grads, rule, nonfinite="skip")),
        ("waits for numbers", lambda: gradclip.global_norm(gpu.grads)),
        ("thresholds that differ", lambda: gradclip.clip_by_norm_(many, [1.0 + i for i in range(5000)], nonfinite="zero")),
        *(("pass out=", call) for _, call in new),
    ]
    if device_count(cupy) > 1:
        calls.append(("several devices", lambda: gradclip.clip_by_norm_(both, 1.0, nonfinite="zero")))
    for reason, call in calls:
        if reason != "make the same call once before":
            call()
        before = [host(leaf).tolist() for leaf in both]
        stream.begin_capture()
        try:
            with pytest.raises(RuntimeError, match=reason):
                call()
        finally:
            stream.end_capture()
        assert [host(leaf).tolist() for leaf in both] == before


def test_functions_on_the_same_leaves_do_not_evict_each_other(cupy, stream):
    """A graph captures what needs no copy to the device: what each call put there is still there."""
    square = [np.ones((60, 60), np.float32)]
    grads, params, out = there(cupy, square), there(cupy, square), there(cupy, [np.ones(60, np.float32)])
    swapped, there_empty = there(cupy, [np.ones(5), np.ones(5)]), there(cupy, [np.ones((3, 4)), np.ones((0, 4))])
    calls = [
        lambda: gradclip.clip_by_global_norm_(grads, 1.0, nonfinite="skip"),
        lambda: gradclip.clip_adaptive_(grads, params, 0.1, nonfinite="skip"),
        lambda: gradclip.clip_adaptive_(grads, params, 0.1, unit_axis=1, nonfinite="skip"),
        lambda: gradclip.clip_by_norm_(grads, 1.0, axis=0, nonfinite="skip"),
        lambda: gradclip.clip_by_norm_(grads, 1.0, axis=1, nonfinite="skip"),
        lambda: gradclip.per_sample_clip_sum(grads, 1.0, out=out, nonfinite="skip"),
        lambda: gradclip.clip_by_norm_(there_empty, 1.0, axis=0, nonfinite="skip"),
        lambda: gradclip.clip_by_norm_(swapped, 1.0, nonfinite="skip"),
        lambda: gradclip.clip_by_norm_(swapped[::-1], 1.0, nonfinite="skip"),
    ]
    for call in calls:
        call()
    stream.begin_capture()
    try:
        for call in calls:
            call()
    finally:
        stream.end_capture()


def captured(stream, call):
    """Whether a graph can capture a call, since what it put on the device before is still there."""
    stream.begin_capture()
    try:
        call()
    except RuntimeError as error:
        assert "make the same call once before" in str(error)  # noqa: PT017
        return False
    finally:
        stream.end_capture()
    return True


def test_what_is_on_the_device_is_kept_from_step_to_step_but_not_for_ever(cupy, stream):
    grads = there(cupy, model())
    call = lambda: gradclip.clip_by_global_norm_(grads, 1.0, nonfinite="skip")  # noqa: E731
    assert not captured(stream, call)
    call()
    assert captured(stream, call)
    others = [there(cupy, [np.ones(n % 90 + 1), np.ones(n // 90 + 1)]) for n in range(200)]
    for other in others:
        gradclip.clip_by_global_norm_(other, 1.0, nonfinite="skip")
    assert not captured(stream, call)
