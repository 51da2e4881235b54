"""The protocol of engines, and what a technique has to say."""

import inspect

import numpy as np
import pytest

import gradclip
from gradclip._core.call import Request, functional, in_place
from gradclip._core.engine import HOST, Engine
from gradclip._core.options import Options
from gradclip._gpu.engine import DEVICES, EVERYWHERE

STEPS = [name for name in vars(Engine) if not name.startswith("_")]


@pytest.mark.parametrize("engine", [HOST, EVERYWHERE, DEVICES], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("step", STEPS)
def test_every_engine_takes_each_step_by_the_same_arguments(engine, step):
    expected = list(inspect.signature(getattr(Engine, step)).parameters)[1:]
    found = inspect.signature(getattr(engine, step)).parameters
    assert list(found) == expected


class BySize(Request):
    """A technique of a few lines: each leaf to max_norm times the square root of its size."""

    def prepare(self, leaves):
        self.threshold = np.array([self.shown * a.size**0.5 for a in leaves.arrays])
        return leaves


def _by_size(norm, max_norm):
    return BySize(Options.of(norm), max_norm)


def clip_by_size_(grads, max_norm, **norm):
    return in_place(grads, norm, _by_size, max_norm)


def clip_by_size(grads, max_norm, *, out=None, **norm):
    return functional(grads, out, norm, _by_size, max_norm)


def test_a_technique_is_what_its_thresholds_are():
    grads = {"w": np.full(16, 2.0), "b": [np.full(4, 0.5), None]}
    clipped, report = clip_by_size(grads, 1.0)
    assert (clipped["w"] == 1.0).all()
    assert (clipped["b"][0] == 0.5).all()
    assert report.norms.tolist() == [8.0, 1.0]
    assert (report.max_norm, report.clipped_count, report.size) == (1.0, 1, 2)
    assert (grads["w"] == 2.0).all()
    assert clip_by_size_(grads, 1.0, strict=True).scales == pytest.approx([0.5, 1.0])
    assert (grads["w"] <= 1.0).all()
    with pytest.raises(gradclip.NonFiniteGradientError, match="b/0"):
        clip_by_size_({"b": [np.array([np.nan])]}, 1.0)
    assert clip_by_size([np.array([np.inf, 3.0])], 1.0, nonfinite="zero")[0][0].tolist() == [0.0, 2.0**0.5]
