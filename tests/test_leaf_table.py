"""report.table: what is told of each leaf, held to what exact arithmetic finds in it."""

import copy
import gc
import io
import math
import pickle
import subprocess
import sys
import weakref

import numpy as np
import pytest
from calls import flat
from gpu_leaves import there
from reference import BFLOAT16, REAL, gradient, rounded_norm

import gradclip

PATHS = ["w", "x/0", "x/2/0"]


def leaves(dtype=np.float32):
    """Leaves at PATHS: strided, with a NaN and an Inf, and of one element."""
    made = {
        "w": gradient(dtype, 60).reshape(5, 12)[:, ::2],
        "x": [gradient(np.float64, 9000, seed=1), None, (gradient(dtype, 1),)],
    }
    made["x"][0][[3, 8000]] = np.nan, -np.inf
    return made


def check(report, grads, paths, grad_scale=1.0, ulps=0):
    """Hold every column but the factor to the gradients as they were; returns the rows by path."""
    rows = {row.path: row for row in report.table()}
    assert sorted(rows) == sorted(paths)
    for path, a in zip(paths, flat(grads), strict=True):
        row, wide = rows[path], np.abs(a.astype(np.complex128 if a.dtype.kind == "c" else np.float64))
        finite = wide[np.isfinite(wide)]
        assert (row.shape, row.dtype) == (a.shape, str(a.dtype))
        assert (row.nan, row.inf) == (np.isnan(wide).sum(), np.isinf(wide).sum())
        assert row.max_abs == float(finite.max(initial=0.0)) / grad_scale
        if finite.size == wide.size:
            want = rounded_norm([a], 2, grad_scale)
            assert abs(row.norm - want) <= ulps * math.ulp(want)
        else:
            assert not math.isfinite(row.norm)
    return rows


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_rows_of_one_factor(dtype):
    grads = leaves(dtype)
    rows = check(gradclip.clip_by_global_norm(grads, 1.0, nonfinite="propagate")[1], grads, PATHS)
    assert all(math.isnan(row.factor) for row in rows.values())
    rows = check(gradclip.clip_by_global_norm_(grads, math.inf, nonfinite="skip"), grads, PATHS)
    assert {row.factor for row in rows.values()} == {1.0}
    grads["x"][0][[3, 8000]] = 0.5, 7.0
    before = copy.deepcopy(grads)
    for keywords in ({}, {"strict": True}):
        report = gradclip.clip_by_global_norm_(grads, 1.0, grad_scale=4.0, **keywords)
        rows = check(report, before, PATHS, 4.0)  # of what was measured, though it is written since
        assert {row.factor for row in rows.values()} == {report.scale}
        assert [row.norm for row in report.table()] == sorted((row.norm for row in rows.values()), reverse=True)
        grads = copy.deepcopy(before)
    rows = check(gradclip.normalize(before, 3.0)[1], before, PATHS)
    assert len({row.factor for row in rows.values()}) == 1
    rows = check(gradclip.normalize(before, 3.0, per_leaf=True, eps=0)[1], before, PATHS)
    assert [rows[path].factor for path in PATHS] == pytest.approx([3.0 / rows[path].norm for path in PATHS])
    params = copy.deepcopy(before)
    report = gradclip.sgd_step_(params, before, 0.5, 1.0)
    assert {row.factor for row in check(report, before, PATHS).values()} == {report.scale}


def test_a_leaf_without_units_has_the_factor_1():
    for filled in ([], [np.ones((2, 3))]):
        grads = [np.ones((0, 3)), np.full(3, 9.0), *filled]
        params = [np.ones((0, 3)), np.ones(3), *filled]
        factors = {row.path: row.factor for row in gradclip.clip_adaptive_(grads, params, 0.5).table()}
        assert factors == {"0": 1.0, "1": pytest.approx(0.5 / 9), **({"2": 0.5} if filled else {})}


def test_rows_of_a_clip_by_value_have_counts_in_place_of_factors():
    grads = leaves()
    rows = check(gradclip.clip_by_value(grads, 0.5)[1], grads, PATHS)
    for path, a in zip(PATHS, flat(grads), strict=True):
        assert (rows[path].factor, rows[path].clipped) == (None, np.count_nonzero(np.abs(a) > 0.5))
    report = gradclip.clip_by_value_(grads, {"w": 0.25})
    assert [row.clipped for row in report.table()] == [0, report.clipped_count, 0]
    assert str(report.table()).splitlines()[0].split() == ["leaf", "shape", "dtype", "norm", "clipped", "largest", "NaN", "Inf"]


def test_rows_of_several_units():
    """The norm of a leaf is that of all its units, and its factor the smallest of theirs."""
    grads = {"a": gradient(np.float32, 60).reshape(3, 4, 5), "b": gradient(BFLOAT16, 12, seed=2).reshape(3, 4)}
    for report in (
        gradclip.clip_by_norm(grads, {"a": 0.1}, axis=-1)[1],
        gradclip.clip_adaptive(grads, {k: v.astype(np.float64) for k, v in grads.items()}, {"a": 0.1})[1],
    ):
        rows = check(report, grads, ["a", "b"], ulps=1)
        assert (rows["a"].factor, rows["b"].factor) == (report.scales.min(), 1.0)
    report = gradclip.clip_by_norm(grads, {"a": 0.5, "b": 0.25})[1]
    assert [r.factor for r in check(report, grads, ["a", "b"]).values()] == report.scales.tolist()
    empty = {"a": np.ones((0, 3)), "b": np.full((2, 3), 2.0)}
    rows = check(gradclip.clip_by_norm(empty, 1.0, axis=1)[1], empty, ["a", "b"], ulps=1)
    assert rows["a"].factor == 1.0


def test_rows_of_groups():
    grads = {"a": np.array([3.0]), "b": np.array([4.0]), "c": np.array([12.0]), "d": np.array([9.0])}
    report = gradclip.clip_by_norm(grads, {"x": 1.0, "y": 6.0}, groups={"[ab]": "x", "c": "y"}, grad_scale=0.5)[1]
    rows = check(report, grads, list("abcd"), 0.5, ulps=1)
    assert [rows[p].factor for p in "abcd"] == [0.2, 0.2, 0.5, 2.0]


@pytest.mark.parametrize("mask", [None, [True, False, True]])
def test_rows_of_samples(mask):
    """Padded samples, of which one holds a NaN, are not told of."""
    grads = {"a": gradient(np.float32, 60).reshape(3, 20), "b": gradient(np.float64, 6, seed=2).reshape(3, 2)}
    if mask:
        grads["a"][1, 5] = np.nan
    counted = {k: v if mask is None else v[mask] for k, v in grads.items()}
    for clip in (gradclip.clip_per_sample, gradclip.per_sample_clip_sum):
        report = clip(grads, 0.5, mask=mask)[1]
        rows = {row.path: row for row in report.table()}
        assert {row.factor for row in rows.values()} == {report.scale}
        by_leaf = clip(grads, {"a": 0.5}, mask=mask)[1]
        again = {row.path: row for row in by_leaf.table()}
        assert (again["a"].factor, again["b"].factor) == (by_leaf.scale, 1.0)
        for path, a in counted.items():
            for row in rows[path], again[path]:
                assert (row.shape, row.nan) == (grads[path].shape, 0)
                assert abs(row.norm - rounded_norm([a])) <= math.ulp(row.norm)
                assert row.max_abs == float(np.abs(a).max())
    groups = gradclip.clip_per_sample(grads, {"x": 0.25}, groups={"b": "x"}, mask=mask)[1]
    assert {row.path: row.factor for row in groups.table()} == {"a": 1.0, "b": groups.scale}


def test_paths_of_every_kind_of_nesting():
    a, b = np.ones(2), np.ones((2, 1), np.complex64)
    for grads, paths in [
        (a, ["grads"]),
        ([a, b], ["0", "1"]),
        ((a,), ["0"]),
        ({"k": a, 3: b}, ["k", "3"]),
        ({"k": [a, {"z": b}], "n": None}, ["k/0", "k/1/z"]),
        (iter([a]), ["0"]),
        ([np.ones((1,) * 32), np.zeros((0, 3)), np.array(2.0)], ["0", "1", "2"]),
        ([np.ones((1,) * (i % 7)) for i in range(200)], [str(i) for i in range(200)]),
        ([], []),
        (None, []),
    ]:
        kept = [a] if not isinstance(grads, list | tuple | dict | np.ndarray | None) else grads
        for report in (gradclip.clip_by_global_norm(grads, 9.0)[1],):
            assert [row.path for row in sorted(report.table(), key=lambda row: paths.index(row.path))] == paths
            check(report, kept if kept is not None else [], paths)


def test_a_nesting_that_changes_after_the_call_does_not_change_the_table():
    grads = {"k": {"a": np.ones(2), "b": np.ones(3)}}
    other = {"a": np.ones(2), "b": np.ones(3)}
    reports = [gradclip.clip_by_global_norm_(grads, 1.0), gradclip.clip_by_global_norm_(other, 1.0)]
    texts = [[*map(str, report.table()[0])] for report in reports]
    grads["k"]["a"][:] = 99.0
    grads["k"]["a"].resize((1,), refcheck=False)
    del grads["k"]["b"]
    other.clear()
    assert texts == [[*map(str, report.table()[0])] for report in reports]
    assert {row.path for row in reports[0].table()} == {"k/a", "k/b"}


def test_shapes_of_sparse_leaves_are_those_of_the_matrices():
    sparse = pytest.importorskip("scipy.sparse")
    grads = {"s": sparse.csr_matrix(np.eye(3)), "d": np.ones(2)}
    report = gradclip.clip_by_global_norm_(grads, 9.0)
    assert {row.path: row.shape for row in report.table()} == {"s": (3, 3), "d": (2,)}


def test_order_top_and_text():
    grads = {"small": np.full((2, 3), 0.5), "layers/large": np.array([3e5], np.float32), "bad": np.array([np.nan, np.inf, 1.0])}
    report = gradclip.clip_by_global_norm(grads, 1.0, nonfinite="zero")[1]
    table = report.table(2)
    assert ([row.path for row in table], len(table), table.leaves) == (["bad", "layers/large"], 2, 3)
    assert (table[0].path, table[-1].path, [row.path for row in table[:1]]) == ("bad", "layers/large", ["bad"])
    lines = str(table).splitlines()
    assert lines[0].split() == ["leaf", "shape", "dtype", "norm", "factor", "largest", "NaN", "Inf"]
    assert lines[1].split() == ["bad", "(3,)", "float64", "1", "3.33333e-06", "1", "1", "1"]
    assert lines[2].split() == ["layers/large", "(1,)", "float32", "300000", "3.33333e-06", "300000", "0", "0"]
    assert len({len(line) for line in lines[:3]}) == 1  # aligned
    assert lines[3] == "and 1 more leaf"
    assert str(report.table(0)).splitlines()[1] == "and 3 more leaves"
    assert str(report.table(3)) == str(report.table()) == repr(report.table())
    for top in (-1, 1.5, True, "3"):
        with pytest.raises((ValueError, TypeError), match="top"):
            report.table(top)
    escaped = gradclip.clip_by_global_norm({"a\nb\x1b[1m": np.ones(1)}, 1.0)[1].table()
    assert str(escaped).splitlines()[1].startswith("a\\nb\\x1b[1m  ")


def test_wide_characters_take_two_columns():
    # two ideographs, a full-width letter, a letter with a mark on it, which takes none
    lines = str(
        gradclip.clip_by_global_norm({"層重": np.ones(2), "\uff21": np.ones(1), "e\u0301": np.ones(0)}, 9.0)[1].table()
    ).splitlines()
    assert [line[: line.index("(")] for line in lines[1:]] == ["層重  ", "\uff21    ", "e\u0301     "]
    assert len(lines[0][: lines[0].index("shape")]) == 6
    for line, missing in zip(lines[1:], (2, 1, -1), strict=True):
        assert len(line) + missing == len(lines[0])


class Key:
    """A key that can be given another name."""

    name = "before"

    def __str__(self):
        return self.name


def test_a_table_names_keys_as_they_are_when_it_is_made():
    key = Key()
    report = gradclip.clip_by_global_norm({key: np.ones(2)}, 1.0)[1]
    table = report.table()
    key.name = "after"
    assert (table[0].path, report.table()[0].path) == ("before", "after")


def test_rich_draws_it():
    console = pytest.importorskip("rich.console")
    out = io.StringIO()
    grads = {"[red]x": np.ones(2), "y": np.array([np.nan])}
    table = gradclip.clip_by_global_norm(grads, 1.0, nonfinite="zero")[1].table()
    console.Console(file=out, width=120).print(table)
    assert "[red]x" in out.getvalue()
    assert "1.41421" in out.getvalue()
    out.seek(0)
    console.Console(file=out, width=120).print(gradclip.clip_by_global_norm(grads, 1.0, nonfinite="zero")[1].table(1))
    assert "and 1 more leaf" in out.getvalue()


def test_rich_is_imported_by_nobody_but_itself():
    table = "str(gradclip.clip_by_global_norm([numpy.ones(2)], 1.0)[1].table())"
    code = f"import sys, numpy, gradclip; {table}; print('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_report_keeps_no_gradient_alive_and_is_pickled_with_its_table():
    grads = [np.ones(1000), {"a": np.full(3, 2.0)}]
    flat_one, many = {"k": np.ones(5)}, [np.ones(2) for _ in range(50)]
    seen = [weakref.ref(a) for a in (grads[0], grads[1]["a"], flat_one["k"], many[7])]
    reports = [gradclip.clip_by_global_norm_(x, 1.0) for x in (grads, flat_one, many)]
    reports.append(gradclip.clip_by_value_(flat_one, 0.1))
    reports.append(gradclip.clip_by_norm(grads, 1.0)[1])
    del grads, flat_one, many
    gc.collect()
    assert [ref() for ref in seen] == [None] * 4
    for report in reports:
        for again in (pickle.loads(pickle.dumps(report)), copy.copy(report), copy.deepcopy(report)):
            assert list(again.table()) == list(report.table())
            assert str(again.table(1)) == str(report.table(1))
    assert reports[0].table()[0].shape == (1000,)


def test_a_norm_that_was_measured_before():
    """Of single leaves only what the measure has of them is known."""
    grads = {"a": np.array([3.0]), "b": np.array([4.0])}
    measure = gradclip.measure(grads)
    for keywords in ({}, {"strict": True}):
        report = gradclip.apply_clip(grads, measure, 1.0, **keywords)[1]
        assert {row.path: (row.norm, row.factor, row.max_abs, row.nan) for row in report.table()} == {
            "a": (3, report.scale, None, 0),
            "b": (4, report.scale, None, 0),
        }
    several = gradclip.apply_clip(grads, measure + gradclip.measure(np.ones(3)), 1.0)[1].table()
    assert {row.norm for row in several} == {None}
    assert str(several).splitlines()[0].split() == ["leaf", "shape", "dtype", "factor"]
    alone = gradclip.apply_clip(np.array([3.0]), gradclip.measure(grads), 1.0)[1].table()  # a part of what was measured
    assert (alone[0].norm, alone[0].max_abs, alone[0].nan) == (None, None, None)


def test_nan_and_inf_that_were_measured_before():
    parts = (
        {"a": np.array([9.0, 12.0])},
        {"b": np.array([np.nan, 3, 4, np.inf]), "c": np.array([np.inf, 2.0])},
        {"d": np.ones(1)},
    )
    grads = {name: a for part in parts for name, a in part.items()}
    merged = sum(gradclip.measure(part) for part in parts)
    for whole in (gradclip.measure(grads), merged, pickle.loads(pickle.dumps(merged))):
        assert whole.norms.tolist() == [15, 5, 2, 1]  # of the finite elements, as `norm`
        for policy in ("propagate", "skip"):
            report = gradclip.apply_clip(grads, whole, 1.0, nonfinite=policy)[1]
            np.testing.assert_array_equal(report.norms, [15, math.nan, math.inf, 1])
            assert [(row.path, row.nan, row.inf) for row in report.table()] == [
                ("b", 1, 1),
                ("c", 0, 1),
                ("a", 0, 0),
                ("d", 0, 0),
            ]
        report = gradclip.apply_clip(grads, whole, 1.0, nonfinite="zero")[1]
        assert report.norms.tolist() == [15, 5, 2, 1]
        assert [(row.path, row.norm, row.inf) for row in report.table()] == [
            ("b", 5, 1),
            ("c", 2, 1),
            ("a", 15, 0),
            ("d", 1, 0),
        ]


def test_rows_of_leaves_that_are_not_owned():
    grads = {"a": np.array([3.0, 1.0]), "b": np.array([4.0, -7.0], np.float32)}
    report = gradclip.clip_by_global_norm(grads, 1.0, owned={"b": False})[1]
    assert {row.factor for row in check(report, grads, ["a", "b"]).values()} == {report.scale}


def test_a_report_without_leaves_says_so():
    with pytest.raises(ValueError, match="no leaves"):
        gradclip.ClipReport(gradclip.clip_by_global_norm_(np.ones(1), 1.0), 1.0, 1).table()


def test_on_gpus(cupy):
    here = {"w": gradient(np.float32, 600).reshape(20, 30), "x": [gradient(np.float16, 50, seed=1), None, np.ones(())]}
    here["x"][0][7] = np.inf
    gpu = there(cupy, here)
    mixed = {"w": here["w"], "x": gpu["x"]}
    for call in (
        lambda g: gradclip.clip_by_global_norm(g, 0.5, nonfinite="zero"),
        lambda g: gradclip.clip_by_norm(g, {"w": 0.5}, nonfinite="propagate"),
        lambda g: gradclip.clip_by_value(g, 0.1),
        lambda g: gradclip.clip_by_norm(g, {"x": 0.1}, groups={"x/*": "x"}, nonfinite="zero"),
        lambda g: gradclip.clip_per_sample({"w": g["w"]}, 0.1),
        lambda g: gradclip.per_sample_clip_sum({"w": g["w"]}, 0.1, nonfinite="zero"),
        lambda g: gradclip.clip_by_norm({"w": g["w"]}, 0.1, axis=1),
        lambda g: gradclip.clip_adaptive({"w": g["w"]}, {"w": g["w"]}, 0.1),
    ):
        want = str(call(here)[1].table())
        assert want == str(call(gpu)[1].table()) == str(call(mixed)[1].table())
        report = call(gpu)[1]
        assert str(pickle.loads(pickle.dumps(report)).table()) == want
