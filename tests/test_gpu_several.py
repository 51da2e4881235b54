"""CuPy leaves on several devices: bits and reports of NumPy leaves, without a wait."""

import copy
import math

import numpy as np
import pytest
from gpu_leaves import across, assert_same_bits, assert_same_report, batch, flat, waits
from reference import BFLOAT16, gradient

import gradclip


def mixed(seed=0):
    """A nesting of all dtypes, with more leaves than devices."""
    real = [
        gradient(dtype, n, seed=seed)
        for dtype, n in ((np.float16, 700), (BFLOAT16, 40), (np.float32, 40_000), (np.float64, 90))
    ]
    matrices = {
        "w": gradient(np.float32, 1200, seed=seed).reshape(30, 40),
        "t": gradient(np.float64, 600, seed=seed).reshape(20, 30).T,
    }
    return [*real, matrices, gradient(np.float32, 0), gradient(np.float32, 1, seed=seed).reshape(())]


def complex_parts():
    return [gradient(np.float32, 500), gradient(np.float64, 80), (gradient(np.float32, 60) * (1 + 2j)).astype(np.complex64)]


def seconds(seed=1):
    """Parameters like `mixed`."""
    return [p.astype(np.float32) if isinstance(p, np.ndarray) else p for p in mixed(seed)]


PARAMS = seconds()
# On a nesting of leaves: what is made of them (None: they are written), report
CALLS = {
    "global norm": (mixed, lambda g, p, **k: (None, gradclip.clip_by_global_norm_(g, 1.5, **k))),
    "global norm, not reached": (mixed, lambda g, p, **k: (None, gradclip.clip_by_global_norm_(g, 1e9, **k))),
    "functional": (mixed, lambda g, p, **k: gradclip.clip_by_global_norm(g, 1.5, **k)),
    "complex": (complex_parts, lambda g, p, **k: (None, gradclip.clip_by_global_norm_(g, 1.5, **k))),
    "by leaf": (mixed, lambda g, p, **k: gradclip.clip_by_norm(g, 5.0, **k)),
    "by pattern": (mixed, lambda g, p, **k: (None, gradclip.clip_by_norm_(g, {"[13]": 3.0, "4*": 1.0}, **k))),
    "by slice": (
        lambda: [a.reshape(-1, 20) for a in mixed()[:4:2]] + [mixed()[4]["t"]],
        lambda g, p, **k: (None, gradclip.clip_by_norm_(g, 3.0, axis=1, **k)),
    ),
    "normalize": (mixed, lambda g, p, **k: gradclip.normalize(g, 2.0, **k)),
    "normalize by leaf": (mixed, lambda g, p, **k: (None, gradclip.normalize_(g, 2.0, per_leaf=True, **k))),
    "adaptive": (mixed, lambda g, p, **k: (None, gradclip.clip_adaptive_(g, p, 0.1, **k))),
    "step": (mixed, lambda g, p, **k: (p, gradclip.sgd_step_(p, g, 0.1, 2.0, **k))),
    "per sample": (batch, lambda g, p, **k: gradclip.clip_per_sample(g, 15.0, **k)),
    "sum of samples": (batch, lambda g, p, **k: gradclip.per_sample_clip_sum(g, 15.0, **k)),
}


def compared(cupy, call, devices, here, **options):
    """The same call here and on devices: reports, and how often it waited."""
    function = CALLS[call][1]
    params = copy.deepcopy(PARAMS)
    gpu, weights = across(cupy, devices, here), across(cupy, devices, params)
    want, report = function(here, params, **options)
    before = waits(cupy)
    got, told = function(gpu, weights, **options)
    waited = waits(cupy) - before
    assert_same_bits(here, gpu)
    assert_same_bits(want, got)
    assert_same_report(report, told)
    return told, waited


@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize(
    "options", [{}, {"nonfinite": "skip"}, {"ord": 1, "nonfinite": "zero"}, {"ord": math.inf}, {"grad_scale": 8.0}], ids=str
)
@pytest.mark.parametrize("call", CALLS)
def test_several_devices(cupy, call, options, devices):
    if call == "complex" and options.get("ord"):
        pytest.skip("a modulus is rounded")
    _, waited = compared(cupy, call, devices, CALLS[call][0](), **options)
    exactly = call == "sum of samples" and "nonfinite" not in options  # which brings what it decides by
    assert waited <= (options.get("nonfinite", "raise") == "raise") + exactly * 2 * devices


@pytest.mark.parametrize("policy", ["skip", "zero", "propagate"])
@pytest.mark.parametrize("call", CALLS)
def test_policies(cupy, call, policy):
    here = CALLS[call][0]()
    flat_here = here if isinstance(here, list) else [here["a"], *here["b"]]
    flat_here[1][..., -1] = np.nan
    flat_here[2][..., 3] = np.inf
    told, waited = compared(cupy, call, 3, here, nonfinite=policy)
    assert waited == 0
    assert told.nonfinite


def test_by_value(cupy):
    here = [a for a in mixed() if isinstance(a, np.ndarray)]
    gpu = across(cupy, 3, here)
    before = waits(cupy)
    want, got = gradclip.clip_by_value_(here, -0.1, 0.5), gradclip.clip_by_value_(gpu, -0.1, 0.5)
    assert waits(cupy) == before
    assert_same_bits(here, gpu)
    assert_same_report(want, got)


def test_what_is_raised_names_the_first_of_all_devices(cupy):
    here = mixed()
    here[1][7], here[3][0] = np.nan, np.inf
    gpu = across(cupy, 3, here)
    with pytest.raises(gradclip.NonFiniteGradientError, match="1: nan at flat index 7") as caught:
        gradclip.clip_by_global_norm_(gpu, 1.0)
    assert caught.value.count == 2
    assert_same_bits(here, gpu)


def test_results_lie_where_their_leaves_do(cupy):
    gpu = across(cupy, 2, [np.ones(3), np.ones(4), np.ones(5)])
    clipped, _ = gradclip.clip_by_global_norm(gpu, 1.0, nonfinite="skip")
    assert [a.data.device_id for a in clipped] == [1, 0, 1]
    out = across(cupy, 1, [np.ones(3), np.ones(4), np.ones(5)])
    with pytest.raises(ValueError, match="0: grads and out lie on different devices"):
        gradclip.clip_by_global_norm(gpu, 1.0, out=out)


@pytest.mark.parametrize("unit_axis", [0, -1])
def test_parameters_on_other_devices_than_their_gradients(cupy, unit_axis):
    here, params = mixed(), seconds()
    params[0][3] = np.inf
    for devices in (2, 3):
        gpu, weights = across(cupy, devices, here), list(reversed(across(cupy, devices, list(reversed(params)))))
        before = waits(cupy)
        want = gradclip.clip_adaptive(here, params, 0.1, unit_axis=unit_axis)
        got = gradclip.clip_adaptive(gpu, weights, 0.1, unit_axis=unit_axis, nonfinite="skip")
        assert waits(cupy) == before
        assert_same_bits(want[0], got[0])
        assert_same_report(want[1], got[1])


def test_samples_that_one_of_the_sums_cannot_hold(cupy):
    here = [np.array([[1e5, 2.0], [3.0, 4.0]], np.float32), np.array([[1.0], [9e6]], np.float32)]
    want, report = gradclip.per_sample_clip_sum(here, 1e9, out=[np.ones(2, np.float16), np.ones(1, np.float16)])
    assert report.scales.tolist() == [65504 / 1e5, 65504 / 9e6]
    gpu, to = across(cupy, 2, here), across(cupy, 2, [np.ones(2, np.float16), np.ones(1, np.float16)])
    got, told = gradclip.per_sample_clip_sum(gpu, 1e9, out=to, nonfinite="skip")
    assert_same_bits(want, got)
    assert_same_report(report, told)


def test_nothing_to_share(cupy):
    for call in (gradclip.clip_per_sample, gradclip.per_sample_clip_sum):
        made, report = call(across(cupy, 2, [np.ones((0, 3)), np.ones((0, 2))]), 1.0, nonfinite="skip")
        assert (report.norm, report.size, [a.shape[-1] for a in made]) == (0.0, 0, [3, 2])
    for strict in (False, True):
        here = [np.ones((0, 4), np.float32), np.ones((3, 4))]
        gpu, params = across(cupy, 2, here), across(cupy, 2, here)
        want = gradclip.clip_adaptive_(here, copy.deepcopy(here), 0.125, strict=strict)
        assert_same_report(want, gradclip.clip_adaptive_(gpu, params, 0.125, nonfinite="skip", strict=strict))
        assert_same_bits(here, gpu)


def test_step_after_step_without_a_wait(cupy):
    """What a step leaves behind is used by the next while other devices may not have read it."""
    here, gpu = mixed(), across(cupy, 3, mixed())
    before = waits(cupy)
    for step in range(5):
        gradclip.clip_by_global_norm_(here, 2.0 / (step + 1))
        gradclip.clip_by_global_norm_(gpu, 2.0 / (step + 1), nonfinite="skip")
        samples = across(cupy, 3, batch())
        gradclip.clip_per_sample_(samples, 1.0 + step, nonfinite="skip")
    assert waits(cupy) == before
    assert_same_bits(here, gpu)
    want = batch()
    gradclip.clip_per_sample_(want, 5.0)
    assert_same_bits(want, samples)


def test_mixed_with_the_processor(cupy):
    here = mixed()
    gpu = across(cupy, 2, here)
    gpu[2] = here[2].copy()
    want, got = gradclip.clip_by_global_norm_(here, 1.0, strict=True), gradclip.clip_by_global_norm_(gpu, 1.0, strict=True)
    assert_same_bits(here, gpu)
    assert_same_report(want, got)
    assert len(flat(gpu)) == 8
