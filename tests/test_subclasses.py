"""Subclasses of ndarray that override what the gate might ask: their memory is described as NumPy itself sees it."""

import numpy as np
import pytest

import gradclip


def lie(*args, **keywords):
    raise AssertionError("asked")


class Hostile(np.ndarray):
    """Calls of its methods fail, and its attributes lie or fail."""

    shape = property(lambda self: (10**9,))
    strides = property(lambda self: (0,))
    dtype = property(lambda self: np.dtype(np.complex128))
    ndim = property(lambda self: 40)
    size = property(lambda self: 10**12)
    nbytes = property(lambda self: 0)
    itemsize = property(lambda self: 1)
    flags = property(lie)
    base = property(lie)
    data = property(lie)
    T = property(lie)
    __class__ = property(lambda self: list)
    __array_interface__ = property(lambda self: {"shape": (10**9,), "typestr": "<f8", "data": (1, False), "version": 3})
    view = transpose = copy = astype = reshape = ravel = flat = __getitem__ = __setitem__ = __len__ = __iter__ = lie
    __array_function__ = __array_ufunc__ = __array__ = lie
    __array_wrap__ = lambda self, array, *rest: array  # noqa: E731  # what functional forms ask alone: how to show a result

    def __array_finalize__(self, other):
        if made:
            raise AssertionError("asked")


made = []


def hostile(array):
    made.clear()
    found = np.ndarray.view(array, Hostile)
    made.append(found)
    return found


def leaves():
    """Plain arrays: contiguous, strided, columns."""
    a = np.arange(1.0, 13.0).reshape(3, 4)
    return [a, np.arange(1.0, 25.0).reshape(3, 8)[:, ::2], np.asfortranarray(a), np.arange(1.0, 13.0).reshape(4, 3).T]


class Lossy(np.ndarray):
    """One that makes nothing of a result, or fails."""

    def __array_wrap__(self, array, *rest):
        return 1 / self[0]


@pytest.mark.parametrize(("first", "message"), [(1.0, "b: .*Lossy.__array_wrap__ gave no array, but"), (0.0, "b: .*failed")])
def test_a_subclass_that_cannot_show_a_result_is_named(first, message):
    with np.errstate(divide="raise"), pytest.raises(TypeError, match=message):
        gradclip.clip_by_global_norm({"a": np.ones(2), "b": np.array([first, 2.0]).view(Lossy)}, 0.5)


CLIPS = {
    "global": lambda grads, params: gradclip.clip_by_global_norm_(grads, 0.5),
    "strict": lambda grads, params: gradclip.clip_by_global_norm_(grads, 0.5, strict=True),
    "leaf": lambda grads, params: gradclip.clip_by_norm_(grads, 0.5),
    "axis": lambda grads, params: gradclip.clip_by_norm_(grads, 0.5, axis=0),
    "value": lambda grads, params: gradclip.clip_by_value_(grads, 0.5),
    "adaptive": gradclip.clip_adaptive_,
    "sample": lambda grads, params: gradclip.clip_per_sample_(grads, 0.5),
    "step": lambda grads, params: gradclip.sgd_step_(params, grads, 0.5),
    "out": lambda grads, params: gradclip.clip_by_global_norm(grads, 0.5, out=params)[1],
    "functional": lambda grads, params: gradclip.clip_by_global_norm(grads, 0.5)[1],
    "sums": lambda grads, params: gradclip.per_sample_clip_sum(grads, 0.5)[1],
}


@pytest.mark.parametrize("clip", CLIPS)
def test_nothing_that_a_subclass_overrides_is_asked_or_believed(clip):
    grads, params, expected_grads, expected_params = leaves(), leaves(), leaves(), leaves()
    expected = CLIPS[clip](expected_grads, expected_params)
    report = CLIPS[clip](list(map(hostile, grads)), list(map(hostile, params)))
    made.clear()
    assert report.norm == expected.norm
    assert report.scales.tolist() == expected.scales.tolist()
    assert [a.tolist() for a in grads + params] == [a.tolist() for a in expected_grads + expected_params]


def test_what_is_wrong_with_a_hostile_leaf_is_found():
    good, read_only = np.ones(3), np.ones(3)
    read_only.flags.writeable = False
    windows = np.lib.stride_tricks.as_strided(np.ones(5), (3, 3), (8, 8))
    for bad, error, message in (
        (np.ones(3, int), TypeError, "^1: dtype int64"),
        (read_only, ValueError, "^1: read-only"),
        (windows, ValueError, "^1: elements of this view share memory"),
        (good[:1], ValueError, "0 and 1 share memory"),
    ):
        with pytest.raises(error, match=message):
            gradclip.clip_by_global_norm_([good, hostile(bad)], 0.5)
    made.clear()
    assert good.tolist() == [1.0] * 3


def test_an_object_that_claims_to_be_an_array_is_none():
    class Claims(list):
        __class__ = property(lambda self: np.ndarray)

    grads, out = [Claims([np.ones(2), np.ones(3)])], [Claims([np.ones(2)])]
    with pytest.raises((TypeError, ValueError)):
        gradclip.clip_by_global_norm(grads, 0.5, out=out)
    assert out[0][0].tolist() == [1.0, 1.0]
