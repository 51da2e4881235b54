"""CuPy leaves and CUDA graphs: what can be captured, and what a replay needs."""

import numpy as np
import pytest
from gpu_leaves import across, host, model, there

import gradclip


def test_a_call_that_was_made_before_is_captured(cupy):
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        gpu, other = there(cupy, model()), there(cupy, model(seed=3))
        gradclip.clip_by_global_norm_(gpu, 1.0, nonfinite="zero")
        stream.begin_capture()
        try:
            gradclip.clip_by_global_norm_(gpu, 1.0, nonfinite="zero")
            with pytest.raises(RuntimeError, match="make the same call once before"):
                gradclip.clip_by_global_norm_(other, 1.0, nonfinite="skip")
        finally:
            stream.end_capture()


def test_a_graph_cannot_capture_several_devices(cupy):
    gpu = across(cupy, 2, [np.ones(3), np.ones(4)])
    with cupy.cuda.Stream(non_blocking=True) as stream:
        gradclip.clip_by_global_norm_(gpu, 1.0, nonfinite="skip")
        stream.begin_capture()
        try:
            with pytest.raises(RuntimeError, match="several devices"):
                gradclip.clip_by_global_norm_(gpu, 0.5, nonfinite="skip")
        finally:
            stream.end_capture()
        assert np.hypot.reduce([*host(gpu[0]), *host(gpu[1])]) == pytest.approx(1.0)
