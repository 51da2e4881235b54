"""The peers do what gradclip does: a benchmark of something else would say nothing."""

import numpy as np
import pytest

from gradclip.cli import peers

SHAPES = ((8, 6), (8, 3, 2), (8, 40))
OTHERS = ("numpy", "scipy", "torch", "optax")


def leaves(dtype, seed=0, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def both(name, operation, *args, dtype="float32", shapes=SHAPES, params=False, **options):
    """What gradclip and another make of the same leaves: (theirs, ours) as lists of arrays."""
    found = []
    for who in (name, "gradclip"):
        try:
            peer = peers.load(who)
            grads = leaves(dtype, shapes=shapes)
            prepared = peer.prepare(grads)
            extra = [peer.prepare(leaves(dtype, 1, shapes))] if params else []
        except NotImplementedError as error:
            pytest.skip(str(error))
        result = getattr(peer, operation)(prepared, *extra, *args, **options)
        if operation.endswith("_"):
            assert any((a != b).any() for a, b in zip(grads, leaves(dtype, shapes=shapes), strict=True))
            result = grads
        elif isinstance(result, tuple):
            result = result[0]
        found.append([np.asarray(part, np.float64) for part in (result if isinstance(result, list) else [result])])
    return found


def same(name, operation, *args, rtol=1e-5, **options):
    theirs, ours = both(name, operation, *args, **options)
    for a, b in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(a, b, rtol)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_global_norm(name, dtype):
    same(name, "global_norm", dtype=dtype, rtol=2e-3 if dtype == "float16" else 1e-6)


@pytest.mark.parametrize("name", ["numpy", "torch"])
@pytest.mark.parametrize("ord", [1, 3, float("inf")])
def test_orders(name, ord):
    same(name, "global_norm", ord)


@pytest.mark.parametrize("name", OTHERS[:3])
@pytest.mark.parametrize(
    ("operation", "args"),
    [("clip_by_global_norm_", [2.0]), ("normalize_", []), ("clip_by_norm_", [2.0]), ("clip_by_value_", [0.5])],
)
def test_in_place(name, operation, args):
    same(name, operation, *args)


@pytest.mark.parametrize("name", ["numpy", "torch"])
@pytest.mark.parametrize("axis", [0, -1])
def test_axes(name, axis):
    same(name, "clip_by_norm_", 0.5, axis=axis, shapes=((8, 6), (5, 7)))


@pytest.mark.parametrize("name", ["numpy", "scipy", "torch"])
def test_unscale(name):
    same(name, "unscale_and_clip_", 0.01, 64.0)


@pytest.mark.parametrize("name", ["numpy", "optax"])
def test_functional(name):
    same(name, "clip_by_global_norm", 2.0)


@pytest.mark.parametrize("unit_axis", [0, -1])
def test_adaptive(unit_axis):
    shapes = (*SHAPES, (30,))
    for operation in ("clip_adaptive_", "clip_adaptive"):
        same("numpy", operation, 0.5, unit_axis=unit_axis, shapes=shapes, params=True)


def test_adaptive_of_optax():
    shapes = ((8, 6), (3, 3, 4, 5), (30,))
    same("optax", "clip_adaptive", 0.5, unit_axis=-1, shapes=shapes, params=True)
    peer = peers.load("optax")
    with pytest.raises(NotImplementedError):
        peer.clip_adaptive([], [], 0.5, 0)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_per_sample(name):
    same(name, "clip_per_sample_", 3.0)


@pytest.mark.parametrize("name", ["numpy", "torch", "optax"])
def test_per_sample_sum(name):
    same(name, "per_sample_clip_sum", 3.0, rtol=1e-4)


@pytest.mark.parametrize("name", OTHERS[:3])
@pytest.mark.parametrize("max_norm", [2.0, 1e9])
def test_step(name, max_norm):
    params, grads = zip(*((leaves("float32", 1), leaves("float32")) for _ in range(2)), strict=True)
    for who, p, g in zip((name, "gradclip"), params, grads, strict=True):
        try:
            peers.load(who).stepper(p, g, 0.1)(max_norm)
        except NotImplementedError as error:
            pytest.skip(str(error))
    for a, b, before in zip(*params, leaves("float32", 1), strict=True):
        np.testing.assert_allclose(a, b, 1e-5)
        assert (a != before).any()


def test_what_is_missing_is_said():
    scipy = peers.load("scipy")
    with pytest.raises(NotImplementedError):
        scipy.prepare(leaves("float16"))
    assert not hasattr(scipy, "clip_adaptive_")
    with pytest.raises(NotImplementedError):
        peers.module("no_such_package")
