"""CuPy leaves with `out` of another float dtype: the same bits as those of NumPy's."""

import itertools
import math

import numpy as np
import pytest
from gpu_leaves import on_gpu
from reference import BFLOAT16, REAL, gradient
from test_cast import FORMS, PAIRS, hard, leaves

import gradclip


def both(cupy, call, grads, outs):
    """The report and the bytes of `outs` after a call, on the host and on the GPU."""
    there, out = [on_gpu(cupy, a) for a in grads], [on_gpu(cupy, a) for a in outs]
    _, expected = call(grads, out=outs)
    _, report = call(there, out=out)
    np.testing.assert_equal(float(report.norm), expected.norm)
    assert report.scale == expected.scale
    assert report.clipped_count == expected.clipped_count
    for a, b in zip(out, outs, strict=True):
        assert a.get().tobytes() == b.tobytes()


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p[0]}-{p[1]}")
def test_every_pair_of_dtypes(cupy, pair):
    source, to = pair
    for factor in (1.0, 0.3, 0.75, 1 + 2.0**-52):
        x = hard(source, factor, to)
        both(
            cupy,
            lambda g, f=factor, **k: gradclip.clip_by_global_norm(g, math.inf, grad_scale=1 / f, **k),
            [x],
            [np.zeros(x.shape, to)],
        )
    for kind in ("normal", "tiny"):
        x = gradient(source, 3000, kind)
        for strict in (False, True):
            both(cupy, lambda g, s=strict, **k: gradclip.clip_by_global_norm(g, 0.5, strict=s, **k), [x], [np.zeros(3000, to)])


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", [name for name in FORMS if name != "clip_adaptive"])
def test_every_form(cupy, name, strict):
    if strict and name == "clip_by_value":
        return
    for strided in itertools.product((False, True), repeat=2):
        grads = leaves(3, [REAL[2], REAL[2], REAL[0], BFLOAT16], strided[0])
        outs = leaves(4, [REAL[0], BFLOAT16, REAL[3], BFLOAT16], strided[1])
        outs = [a if a.shape == g.shape else np.zeros(g.shape, a.dtype) for a, g in zip(outs, grads, strict=True)]
        both(cupy, lambda g, **k: FORMS[name](g, **k, **({"strict": True} if strict else {})), grads, outs)


def test_adaptive(cupy):
    grads, outs = leaves(3, [np.float32] * 2), leaves(4, [np.float16, np.float32])
    params = [np.ones(a.shape) for a in grads]
    for strict in (False, True):
        there, out = [on_gpu(cupy, a) for a in grads], [on_gpu(cupy, a) for a in outs]
        gradclip.clip_adaptive(grads, params, 0.02, unit_axis=-1, strict=strict, out=outs)
        gradclip.clip_adaptive(there, [on_gpu(cupy, a) for a in params], 0.02, unit_axis=-1, strict=strict, out=out)
        assert [a.get().tobytes() for a in out] == [a.tobytes() for a in outs]


def test_strict_keeps_what_is_written_in_range(cupy):
    x, out = np.array([1e6, -2e5, 3.0], np.float32), np.zeros(3, np.float16)
    both(cupy, lambda g, **k: gradclip.clip_by_global_norm(g, 1e9, strict=True, **k), [x], [out])
    assert out[0] == 65504
    both(cupy, lambda g, **k: gradclip.clip_by_global_norm(g, 1e9, **k), [x], [out])
    assert out[0] == math.inf


def test_skip_leaves_out_alone(cupy):
    x, out = np.array([1.0, np.nan], np.float32), np.full(2, 9, np.float16)
    both(cupy, lambda g, **k: gradclip.clip_by_norm(g, 0.5, nonfinite="skip", **k), [x], [out])
    assert out.tolist() == [9, 9]
    both(cupy, lambda g, **k: gradclip.clip_by_norm(g, 0.5, nonfinite="zero", **k), [x], [out])
    assert out.tolist() == [0.5, 0]
