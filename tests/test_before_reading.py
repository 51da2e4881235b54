"""Everything is checked before the first element is read: an error of an argument comes before one of what is read."""

import numpy as np
import pytest

import gradclip

NAN = np.full((4, 3), np.nan, np.float32)
# More bytes than can be counted, which a read pass refuses when it begins.
ENDLESS = [np.broadcast_to(np.float32(1.5), (2**10, 2**50))] * 2
MEASURED = gradclip.measure(np.ones(1))
WRONG = {
    "dtype": np.ones((4, 3), np.complex64),
    "shape": np.ones((3, 5), np.float32),
    "nesting": [np.ones((4, 3), np.float32)],
    "read-only": np.broadcast_to(np.float32(0), (4, 3)),
}
FUNCTIONAL = {
    "clip_by_global_norm": lambda a, **out: gradclip.clip_by_global_norm(a, 1.0, **out),
    "clip_by_global_norm, strict": lambda a, **out: gradclip.clip_by_global_norm(a, 1.0, strict=True, **out),
    "clip_by_norm": lambda a, **out: gradclip.clip_by_norm(a, 1.0, **out),
    "clip_by_value": lambda a, **out: gradclip.clip_by_value(a, 1.0, **out),
    "normalize": gradclip.normalize,
    "clip_adaptive": lambda a, **out: gradclip.clip_adaptive(a, a, **out),
    "clip_per_sample": lambda a, **out: gradclip.clip_per_sample(a, 1.0, **out),
    "per_sample_clip_sum": lambda a, **out: gradclip.per_sample_clip_sum(a, 1.0, **out),
    "apply_clip": lambda a, **out: gradclip.apply_clip(a, MEASURED, 1.0, strict=True, **out),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", FUNCTIONAL)
def test_out_is_checked_before_anything_is_read(name, wrong):
    with pytest.raises((TypeError, ValueError)) as error:
        FUNCTIONAL[name](NAN, out=WRONG[wrong])
    assert not isinstance(error.value, gradclip.NonFiniteGradientError)


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_what_cannot_be_read_is_not_begun(name):
    """Not even where nothing would be raised about what is read."""
    with pytest.raises((TypeError, ValueError), match="out has|shape"):
        FUNCTIONAL[name](ENDLESS, out=[np.ones(5, np.float32), np.ones(5, np.float32)])
    with pytest.raises((TypeError, ValueError), match=r"2\*\*62 bytes"):
        gradclip.global_norm(ENDLESS)


def test_params_are_checked_before_anything_is_read():
    for wrong in (np.ones((4, 2), np.float32), [np.ones((4, 3))], np.ones((4, 3), np.complex64)):
        with pytest.raises(ValueError, match="params"):
            gradclip.clip_adaptive_(NAN.copy(), wrong)
        with pytest.raises(ValueError, match="params"):
            gradclip.sgd_step_(wrong, NAN, 0.1, 1.0)


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_what_is_right_reads(name):
    """The same calls without a mistake find the NaN, or take it as it is."""
    out = np.ones(3, np.float32) if name == "per_sample_clip_sum" else np.ones((4, 3), np.float32)
    if name == "clip_by_value":
        assert FUNCTIONAL[name](NAN, out=out)[1].nonfinite == 12
    elif name == "apply_clip":
        assert FUNCTIONAL[name](NAN, out=out)[1].norm == 1.0
    else:
        with pytest.raises(gradclip.NonFiniteGradientError):
            FUNCTIONAL[name](NAN, out=out)
