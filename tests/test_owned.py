"""`owned`: leaves that are scaled, but that the norm does not run over."""

import math
import pickle

import numpy as np
import pytest
from gpu_leaves import there
from reference import gradient, rounded_norm

import gradclip

NAN, INF = math.nan, math.inf


def grads(dtype=np.float64):
    return {name: gradient(dtype, n, seed=i) for i, (name, n) in enumerate((("own", 300), ("other", 90), ("tail", 7)))}


OWNED = [{"own": True, "other": False, "tail": True}, {"oth*": False}, {"other": np.bool_(False), "*": True}]


@pytest.mark.parametrize("owned", OWNED)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.complex64])
@pytest.mark.parametrize("ord", [2, 1, INF, 3])
def test_the_norm_runs_over_what_is_owned(owned, dtype, ord):
    x = grads(dtype)
    counted = [x["own"], x["tail"]]
    clipped, report = gradclip.clip_by_global_norm(x, 0.5, owned=owned, ord=ord)
    assert report.norm == gradclip.global_norm(counted, ord)
    assert report.norms.tolist() == [gradclip.global_norm(leaf, ord) for leaf in x.values()]
    assert report.max_abs == gradclip.measure(x).max_abs
    expected = gradclip.apply_clip(x, gradclip.measure(counted, ord=ord), 0.5)[0]
    assert {k: v.tobytes() for k, v in clipped.items()} == {k: v.tobytes() for k, v in expected.items()}
    assert gradclip.clip_by_global_norm_(x, 0.5, owned=owned, ord=ord).scale == report.scale
    assert {k: v.tobytes() for k, v in clipped.items()} == {k: v.tobytes() for k, v in x.items()}


@pytest.mark.parametrize("ord", [2, 1, INF, 3])
def test_on_gpus_too(cupy, ord):
    x = grads(np.float32)
    clipped, report = gradclip.clip_by_global_norm(x, 0.5, owned=OWNED[1], ord=ord)
    on_gpu = there(cupy, x)
    found = gradclip.clip_by_global_norm_(on_gpu, 0.5, owned=OWNED[1], ord=ord)
    assert (found.norm, found.scale, found.norms.tolist()) == (report.norm, report.scale, report.norms.tolist())
    assert all(on_gpu[name].get().tobytes() == leaf.tobytes() for name, leaf in clipped.items())


def test_sums_that_do_not_tell_are_made_exact():
    equal = [np.full(n, 0.1) for n in (400, 64, 1136)]
    for split in (equal, [np.concatenate(equal)], [np.full(1, 0.1)] * 1600):
        report = gradclip.clip_by_global_norm([*split, np.full(5, 9.0)], 1.0, owned=[True] * len(split) + [False])[1]
        assert report.norm == rounded_norm(equal)


@pytest.mark.parametrize("ord", [2, 1, INF, 3])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_strict_bounds_what_is_owned(ord, dtype):
    x = grads(dtype)
    gradclip.clip_by_global_norm_(x, 1.0, owned=OWNED[1], ord=ord, strict=True)
    counted = [x["own"], x["tail"]]
    norm = gradclip.global_norm(counted, ord) if ord == 3 else rounded_norm(counted, ord)
    assert 0.98 < norm <= 1.0


def test_other_functions():
    x = grads()
    counted = [x["own"], x["tail"]]
    norm = gradclip.global_norm(counted)
    params = {name: np.zeros_like(leaf) for name, leaf in x.items()}
    assert gradclip.sgd_step_(params, x, 1.0, 0.5, owned=OWNED[0]).norm == norm
    assert gradclip.global_norm([params["own"], params["tail"]]) == pytest.approx(0.5, rel=1e-12)
    assert params["other"].tobytes() == (-(x["other"] * (0.5 / norm))).tobytes()
    for strict in (False, True):
        unit, report = gradclip.normalize(x, 2.0, owned=OWNED[0], strict=strict)
        assert report.norm == norm
        assert gradclip.global_norm([unit["own"], unit["tail"]]) == pytest.approx(2.0, rel=1e-11)
        assert gradclip.sgd_step_(params, x, 1.0, 0.5, owned=OWNED[0], strict=strict).norm == norm


def test_one_bool_stands_for_all_leaves():
    x = grads()
    assert gradclip.clip_by_global_norm(x, 1.0, owned=True)[1].norm == gradclip.global_norm(x)
    report = gradclip.clip_by_global_norm_(x, 0.0, owned=False)
    assert (report.norm, report.clipped) == (0.0, False)
    assert [leaf.tobytes() for leaf in x.values()] == [leaf.tobytes() for leaf in grads().values()]
    assert gradclip.clip_by_global_norm([], 1.0, owned={"*": False})[1].norm == 0.0


@pytest.mark.parametrize("bad", [NAN, INF])
def test_what_is_not_finite_is_found_where_it_is_not_owned(bad):
    x = grads()
    x["other"][5] = bad
    before = [leaf.tobytes() for leaf in x.values()]
    with pytest.raises(gradclip.NonFiniteGradientError, match=f"^other: {bad} at flat index 5") as error:
        gradclip.clip_by_global_norm_(x, 1.0, owned=OWNED[0])
    assert (error.value.path, error.value.index, error.value.count) == ("other", 5, 1)
    report = gradclip.clip_by_global_norm_(x, 1.0, owned=OWNED[0], nonfinite="skip")
    assert (report.skipped, report.first_nonfinite) == (True, ("other", 5))
    assert before == [leaf.tobytes() for leaf in x.values()]
    report = gradclip.clip_by_global_norm_(x, 1.0, owned=OWNED[0], nonfinite="zero")
    assert report.norm == gradclip.global_norm([grads()["own"], grads()["tail"]])
    assert x["other"][5] == 0.0


@pytest.mark.parametrize(
    ("owned", "error", "words"),
    [
        ({"typo*": False}, ValueError, "owned has the pattern 'typo\\*', which matches no path"),
        ({3: False}, ValueError, "owned has the key 3"),
        ({"own": 1, "other": False, "tail": True}, TypeError, "owned of own must be True or False, not 1"),
        ({"*": "no"}, TypeError, r"owned\['\*'\] must be True or False, not 'no'"),
        ([True, False], (ValueError, TypeError), "owned"),
        (1, TypeError, "owned must be True or False, not 1"),
    ],
)
def test_bad_ones(owned, error, words):
    x = grads()
    for call in (
        lambda: gradclip.clip_by_global_norm_(x, 0.1, owned=owned),
        lambda: gradclip.sgd_step_(grads(), x, 0.1, owned=owned),
        lambda: gradclip.measure(x, owned=owned),
    ):
        with pytest.raises(error, match=words):
            call()
    assert [leaf.tobytes() for leaf in x.values()] == [leaf.tobytes() for leaf in grads().values()]


def test_a_measure_of_what_is_owned():
    x = grads()
    found = gradclip.measure(x, owned=OWNED[1])
    assert found.norm == gradclip.global_norm([x["own"], x["tail"]])
    assert (found.size, found.norms.tolist()) == (397, gradclip.measure(x).norms.tolist())
    rest = gradclip.measure(x, owned={"other": True, "*": False})
    assert (found + rest).norm == gradclip.global_norm(x)
    with pytest.raises(TypeError, match="owned is for what is measured"):
        gradclip.apply_clip_(x, gradclip.measure(x), 1.0, owned=OWNED[1])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("ord", [2, 1, INF])
def test_strict_holds_the_leaves_that_a_measure_counts(dtype, ord):
    """The others, whose sum rounds in another way, would let the norm of these be too large by a rounding."""
    for seed in range(20):
        x = {name: gradient(dtype, n, seed=seed + i) for i, (name, n) in enumerate((("own", 5), ("other", 400)))}
        found, elsewhere = gradclip.measure(x, ord=ord, owned=OWNED[1]), [gradient(dtype, 50, seed=99)]
        for whole in (found, found + gradclip.measure(elsewhere, ord=ord)):
            clipped, report = gradclip.apply_clip(x, whole, 0.5, strict=True, owned=OWNED[1])
            part = 0.5 if whole is found or ord == INF else 0.5 * found.norm / whole.norm
            assert rounded_norm([clipped["own"]], ord) <= part * (1 + 1e-15)
            assert report.norm == whole.norm
            plain = gradclip.apply_clip(x, whole, 0.5)
            given = gradclip.apply_clip(x, whole, 0.5, owned=OWNED[1])
            assert given[1].scale == plain[1].scale
            with pytest.raises(TypeError, match="strict: the measure counts only leaves that are owned"):
                gradclip.apply_clip(x, whole, 0.5, strict=True)


def test_without_norms_a_measure_stays_small():
    parts = [gradclip.measure(np.full(3, 2.0**k), norms=False) for k in range(-300, 300, 5)]
    whole = sum(parts)
    assert whole.norms is None
    assert len(pickle.dumps(whole)) < 1024
    assert pickle.loads(pickle.dumps(whole)).norms is None
    assert (whole + gradclip.measure(np.ones(3))).norms is None
    assert whole.norm == sum(gradclip.measure(np.full(3, 2.0**k)) for k in range(-300, 300, 5)).norm
    x = [np.full(3, 2.0)]
    assert gradclip.apply_clip(x, gradclip.measure(x, norms=False), 1.0)[1].norms.tolist() == []


STRICT = {
    "groups": lambda g, **k: gradclip.clip_by_norm(
        g, 0.5, groups={"o*": "a", "tail": "b"}, strict=True, owned={"other": False}, **k
    ),
    "samples": lambda g, **k: gradclip.clip_per_sample(
        g, 0.5, mask=np.arange(5) != 2, strict=True, owned={"other": False}, **k
    ),
}


def halves():
    return {
        name: gradient(np.float16, 5 * n, seed=i).reshape(5, n)
        for i, (name, n) in enumerate((("own", 60), ("other", 9), ("tail", 7)))
    }


@pytest.mark.parametrize("call", STRICT)
def test_strict_holds_norms_of_groups_and_samples_of_what_is_owned(call):
    x = halves()
    clipped, _ = STRICT[call](x)
    counted = {n: clipped[n] for n in ("own", "tail")}
    norms = counted.values() if call == "groups" else [[v[i] for v in counted.values()] for i in (0, 1, 3, 4)]
    for found in norms:
        assert 0.5 * (1 - 2.0**-11) < rounded_norm(found if isinstance(found, list) else [found]) <= 0.5
    if call == "samples":
        assert all(clipped[n][2].tobytes() == x[n][2].tobytes() for n in x)


@pytest.mark.parametrize("call", STRICT)
def test_strict_holds_them_on_gpus_too(cupy, call):
    expected = STRICT[call](halves())[0]
    found = STRICT[call](there(cupy, halves()))[0]
    assert {n: leaf.get().tobytes() for n, leaf in found.items()} == {n: leaf.tobytes() for n, leaf in expected.items()}
