"""CuPy leaves and streams.

A call works in the stream that is current and leaves every stream current that was; its report tells the same wherever it is
read."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from gpu_leaves import (
    EVERY,
    across,
    assert_same_bits,
    assert_same_report,
    everything,
    flat,
    model,
    need_devices,
    on_gpu,
    there,
)
from marks import slow

import gradclip

pytestmark = pytest.mark.slow


@pytest.fixture
def streams(cupy):
    """A function that makes streams of a kind current by `use`, one on each of some devices, and returns them.

    The test is skipped where there are fewer devices."""
    before = []  # (device, stream that was current on it), in the order of change

    def use(kind, devices):
        need_devices(cupy, devices)
        for number in range(devices):
            with cupy.cuda.Device(number):
                before.append((number, cupy.cuda.get_current_stream()))
                stream = cupy.cuda.Stream.ptds if kind == "per thread" else cupy.cuda.Stream(non_blocking=kind == "alone")
                stream.use()
        return current(cupy, devices)

    yield use
    for number, stream in reversed(before):  # the last of a device is the one that was current at first
        with cupy.cuda.Device(number):
            stream.use()


def current(cupy, devices):
    found = []
    for number in range(devices):
        with cupy.cuda.Device(number):
            found.append(cupy.cuda.get_current_stream())
    return found


KINDS = ["ordinary", "alone", "per thread"]


@pytest.mark.parametrize("devices", [1, *slow([3])])
@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize("call", EVERY)
def test_the_streams_that_are_used_stay_current(cupy, streams, call, policy, devices):
    for kind in KINDS if policy == "skip" and devices == 1 else ["alone"]:
        mine = streams(kind, devices)
        here, gpu = everything(lambda tree: tree), everything(lambda tree: across(cupy, devices, tree))
        report = EVERY[call](gpu, nonfinite=policy)
        assert all(a is b for a, b in zip(current(cupy, devices), mine, strict=True))
        assert_same_report(EVERY[call](here, nonfinite=policy), report)
        assert all(a is b for a, b in zip(current(cupy, devices), mine, strict=True))
        assert_same_bits(here.grads, gpu.grads)
        with cupy.cuda.Stream(non_blocking=True), mine[0]:
            EVERY[call](gpu, nonfinite=policy)
            EVERY[call](here, nonfinite=policy)
            assert cupy.cuda.get_current_stream() is mine[0]


def test_an_error_leaves_the_used_stream_current(cupy, streams):
    (mine,) = streams("alone", 1)
    bad = on_gpu(cupy, np.array([1.0, np.nan]))
    for call in (gradclip.clip_by_global_norm_, gradclip.per_sample_clip_sum, gradclip.clip_by_norm):
        with pytest.raises(gradclip.NonFiniteGradientError):
            call(bad, 0.5)
        assert cupy.cuda.get_current_stream() is mine


def test_fetching_a_strided_leaf_leaves_the_used_stream_current(cupy, streams):
    """CuPy's own `get` enters the stream then."""
    (mine,) = streams("alone", 1)
    samples = on_gpu(cupy, np.array([[3.0, 4.0], [6.0, 8.0]]).T)
    assert gradclip.per_sample_clip_sum([samples[:, ::2]], 3.0)[1].clipped_count == 1  # at the threshold: leaves are fetched
    assert cupy.cuda.get_current_stream() is mine


def test_a_device_that_is_used_stays_current(cupy, streams):
    streams("alone", 3)
    gpu = across(cupy, 3, model())
    with cupy.cuda.Device(1):
        mine = cupy.cuda.get_current_stream()
        gradclip.clip_by_global_norm_(gpu, 1.0, nonfinite="skip").norm  # noqa: B018
        assert cupy.cuda.get_current_stream() is mine
        assert on_gpu(cupy, np.ones(1)).data.device_id == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", EVERY)
def test_a_report_that_another_thread_reads(cupy, streams, call, kind):
    """The default stream of that thread is another, though it has the same number."""
    streams(kind, 1)
    here, gpu = everything(lambda tree: tree), everything(lambda tree: there(cupy, tree))
    report = EVERY[call](gpu, nonfinite="skip")
    want = EVERY[call](here, nonfinite="skip")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(assert_same_report, want, report).result()


def test_a_report_of_several_devices_that_another_thread_reads(cupy, streams):
    streams("per thread", 3)
    here, gpu = everything(lambda tree: tree), everything(lambda tree: across(cupy, 3, tree))
    for call in EVERY.values():
        report, want = call(gpu, nonfinite="zero"), call(here, nonfinite="zero")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(assert_same_report, want, report).result()


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_that_is_read_in_another_stream(cupy, streams, kind):
    streams(kind, 1)
    here, gpu = model(), there(cupy, model())
    report, want = gradclip.clip_by_norm_(gpu, 1.0, nonfinite="skip"), gradclip.clip_by_norm_(here, 1.0)
    other = cupy.cuda.Stream(non_blocking=True).use()
    assert_same_report(want, report)
    assert cupy.cuda.get_current_stream() is other


def test_the_default_stream_of_each_thread(cupy):
    """What one thread left on the device is no other's, who may have come to its number."""
    here = [gradclip.clip_by_global_norm(model(), 1.0)[0], gradclip.clip_by_norm(model(), {"big": 1.0, "*": 2.0})[0]]
    gpu = there(cupy, model())
    cupy.cuda.get_current_stream().synchronize()

    def work():
        with cupy.cuda.Stream.ptds:
            made = [
                gradclip.clip_by_global_norm(gpu, 1.0, nonfinite="skip")[0],
                gradclip.clip_by_norm(gpu, {"big": 1.0, "*": 2.0}, nonfinite="skip")[0],
            ]
            cupy.cuda.Stream.ptds.synchronize()
        return [flat(a) for a in made]

    for _ in range(3):
        with ThreadPoolExecutor(1) as pool:
            for want, got in zip(here, pool.submit(work).result(), strict=True):
                assert_same_bits(want, got)
