"""Float16 gradients, a loss scale that finds its own size, float32 parameters: a training with every part of it."""

import numpy as np
import pytest

import gradclip

HALF = np.float16


def network(rng):
    return {
        "hidden": {"w": (rng.standard_normal((2, 32)) * 0.7).astype(np.float32), "b": np.zeros(32, np.float32)},
        "out": {"w": (rng.standard_normal((32, 1)) * 0.2).astype(np.float32), "b": np.zeros(1, np.float32)},
    }


def loss_and_gradients(params, x, y, scale):
    """The mean squared error, and gradients of it times the scale: forward and backward in float16."""
    p = {layer: {k: v.astype(HALF) for k, v in leaves.items()} for layer, leaves in params.items()}
    with np.errstate(all="ignore"):  # overflow is what this is about
        hidden = np.tanh(x @ p["hidden"]["w"] + p["hidden"]["b"])
        error = hidden @ p["out"]["w"] + p["out"]["b"] - y
        back = (error.astype(np.float32) * np.float32(2 * scale / len(x))).astype(HALF)
        inner = (back @ p["out"]["w"].T) * (1 - hidden * hidden)
        gradients = {
            "hidden": {"w": x.T @ inner, "b": inner.sum(0, dtype=HALF)},
            "out": {"w": hidden.T @ back, "b": back.sum(0, dtype=HALF)},
        }
    return float(np.mean(np.square(error, dtype=np.float32))), gradients


def train(scale, steps=1500, every=100, dynamic=True):
    rng = np.random.default_rng(5)
    params, monitor, scales, losses = network(rng), gradclip.ClipMonitor(warn_rate=1), [], []
    good = 0
    for _ in range(steps):
        x = rng.uniform(-2, 2, (64, 2)).astype(HALF)
        y = np.sin(x[:, :1]) * x[:, 1:]
        loss, gradients = loss_and_gradients(params, x, y, scale)
        before = params["out"]["w"].copy()
        report = gradclip.sgd_step_(params, gradients, 0.1, 1.0, grad_scale=scale, nonfinite="skip")
        monitor.record(report)
        losses.append(loss)
        scales.append(scale)
        if report.skipped:
            assert (params["out"]["w"] == before).all()
            scale, good = scale / 2 if dynamic else scale, 0
        else:
            good += 1
            if dynamic and good % every == 0:
                scale *= 2
    return float(np.mean(losses[-100:])), monitor, scales


@pytest.mark.slow
def test_training_with_a_dynamic_scale():
    loss, monitor, scales = train(2.0**28)
    summary = monitor.summary()
    assert loss < 0.01  # of targets with a mean square of 0.8
    assert summary["skipped"] >= 5
    assert 0 < summary["clipped"] < 300
    assert min(scales) < scales[-1] < scales[0]  # it fell, and grew again
    assert len(set(scales)) > 5


def test_a_scale_that_stays_too_large_never_moves():
    _, monitor, scales = train(2.0**28, 50, dynamic=False)
    assert monitor.summary()["skipped"] == 50
    assert set(scales) == {2.0**28}


def test_a_scale_keeps_what_float16_would_lose():
    true = np.array([3e-9, -4e-9])
    for scale, moved in ((1.0, 0.0), (2.0**16, 5e-9)):
        params = np.zeros(2)
        gradclip.sgd_step_(params, (true * scale).astype(HALF), 1.0, grad_scale=scale)
        assert np.linalg.norm(params) == pytest.approx(moved, rel=1e-3)


@pytest.mark.parametrize("scale", [1.0, 3.0, 2.0**12])
def test_a_step_does_not_depend_on_the_scale(scale):
    true = np.array([0.25, -3.0, 0.5], np.float32)
    params = np.ones(3, np.float32)
    report = gradclip.sgd_step_(params, (true * scale).astype(HALF), 0.5, 1.0, grad_scale=scale)
    assert report.norm == pytest.approx(np.linalg.norm(true), rel=1e-7)
    assert report.scale == pytest.approx(1 / np.linalg.norm(true) / scale, rel=1e-7)
    assert params == pytest.approx(1 - 0.5 * true / np.linalg.norm(true), rel=1e-6)


def test_clipping_before_unscaling_is_another_thing():
    scaled = [np.full(4, 0.25 * 1024, np.float32)]  # the true norm is 0.5
    wrong, _ = gradclip.clip_by_global_norm(scaled, 1.0)
    assert np.linalg.norm(wrong[0] / 1024) < 1e-3
    right, report = gradclip.clip_by_global_norm(scaled, 1.0, grad_scale=1024.0)
    assert (right[0].tolist(), report.norm, report.clipped) == ([0.25] * 4, 0.5, False)


def test_a_scale_that_changes_in_place_is_read_anew():
    torch = pytest.importorskip("torch")
    scale, grad = torch.tensor(2.0), np.array([3.0, 4.0])
    assert gradclip.clip_by_global_norm(grad, 9.0, grad_scale=scale)[1].norm == 2.5
    scale.fill_(4.0)
    assert gradclip.clip_by_global_norm(grad, 9.0, grad_scale=scale)[1].norm == 1.25
