"""One norm over ranks (`comm`): real processes, over PyTorch's gloo and over MPI, compared with one process.

Each number of ranks runs all cases of rank_process.py in one go."""

import itertools
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from launch import LIBRARIES, by_gloo, by_mpiexec
from marks import slow
from rank_process import (
    BEYOND,
    CASES,
    CASTS,
    HALVES,
    OPTIONS,
    SAMPLES,
    SMALL,
    UNITS,
    batch,
    leaves,
    params_like,
    rows,
    steps_at_the_threshold,
)
from rank_process import applied as applied_alone
from reference import rounded_norm

import gradclip
from gradclip._core.dyadic import dyadic
from gradclip._ranks.exchange import LIMBS, LOWEST, Part, integers_of, limbs_of

WORKER = str(Path(__file__).with_name("rank_process.py"))
SAME = ("norm", "scale", "max_abs", "max_norm", "clipped", "skipped", "nonfinite")


NUMBERS = [("torch", 1), ("torch", 2), ("torch", 3), ("mpi", 2)]


@pytest.fixture(scope="module", params=slow([*NUMBERS, ("torch", 8)], fast=NUMBERS), ids=str)
def ranks(request, tmp_path_factory):
    """What each rank found, by case."""
    library, size = request.param
    if not LIBRARIES[library]:
        pytest.skip(f"{library} is missing")
    launch = by_gloo if library == "torch" else by_mpiexec
    output = "".join(launch(size, tmp_path_factory.mktemp("ranks"), WORKER, library))
    found = [{} for _ in range(size)]
    for line in output.splitlines():
        head, _, text = line.partition(" ")
        if head.startswith("RANK"):
            name, result = json.loads(text)
            found[int(head[4:])][name] = result
    assert all(f.keys() == CASES.keys() for f in found)
    return found


def power(x):
    """The exact sum of squares."""
    return sum((Fraction(float(element)) ** 2 for element in np.ravel(x)), Fraction(0))


def alone(case, **norm):
    """What one process without `comm` finds in all leaves."""
    grads = {f"leaf{i}": x for i, x in enumerate(leaves(case, np.float32 if case == "single" else np.float64))}
    max_norm = norm.pop("max_norm", 1.0)
    return grads, gradclip.clip_by_global_norm_(grads, max_norm, **norm)


def alike(ranks, case):
    """What all ranks found alike; the leaves that they wrote, together."""
    found = [rank[case] for rank in ranks]
    for other in found:
        assert {k: other[k] for k in (*SAME, "first_nonfinite")} == {k: found[0][k] for k in (*SAME, "first_nonfinite")}
    return found[0], {name: x for rank in found for name, x in rank["leaves"].items()}


PLAIN = {
    **{f"clip {c}": (c, {}) for c in ("normal", "equal", "tiny", "huge", "single")},
    "clip turned": ("normal", {}),
    "clip first": ("normal", {}),
    **{f"ord {p}": ("normal", {"ord": p}) for p in (1, 3, 0.5, math.inf)},
    "scaled": ("normal", {"grad_scale": 3.0, "eps": 1e-6}),
    "inside": ("normal", {"max_norm": 1e300}),
    "spike": ("normal", {"skip_above": 1.0}),
}


@pytest.mark.parametrize("case", PLAIN)
def test_ranks_write_the_bits_that_one_process_does(ranks, case):
    kind, norm = PLAIN[case]
    found, written = alike(ranks, case)
    grads, report = alone(kind, **norm)
    for name in ("norm", "scale", "max_abs", "max_norm"):
        assert found[name] == float(getattr(report, name)).hex()
    assert (found["clipped"], found["skipped"], found["nonfinite"]) == (report.clipped, report.skipped, report.nonfinite)
    assert written == {name: x.tobytes().hex() for name, x in grads.items()}
    assert sorted(norm for rank in ranks for norm in rank[case]["norms"]) == sorted(report.norms.tolist())


@pytest.mark.parametrize("case", ["normal", "equal", "huge"])
def test_the_norm_is_the_exact_one(ranks, case):
    found, _ = alike(ranks, f"clip {case}")
    assert float.fromhex(found["norm"]) == rounded_norm(leaves(case))


@pytest.mark.parametrize("ord", [1, 2, 3, math.inf])
def test_strict_holds_over_all_ranks(ranks, ord):
    found, written = alike(ranks, f"strict {ord}")
    arrays = [np.frombuffer(bytes.fromhex(x), np.float32) for x in written.values()]
    norm = gradclip.global_norm(arrays, ord) if ord == 3 else rounded_norm(arrays, ord)
    assert 1.0 - 1e-6 < norm <= 1.0
    assert found["clipped"]


@pytest.mark.parametrize("call", CASTS)
def test_strict_keeps_elements_in_the_range_of_another_dtype(ranks, call):
    alike(ranks, f"cast {call}")
    written = [np.frombuffer(bytes.fromhex(x), np.float16) for rank in ranks for x in rank[f"cast {call}"]["leaves"].values()]
    assert np.isfinite(np.concatenate(written)).all()
    assert max(np.abs(x).max(initial=0) for x in written) > 10000


def test_strict_keeps_elements_in_range_where_only_one_rank_casts(ranks):
    alike(ranks, "cast on one rank")
    first, *others = [bytes.fromhex(rank["cast on one rank"]["leaves"]["w"]) for rank in ranks]
    assert np.frombuffer(first, np.float16).max() == 65504.0
    scale = float.fromhex(ranks[0]["cast on one rank"]["scale"])
    assert all(other == (np.arange(1.0, 5.0) * 1e5 * scale).tobytes() for other in others)


def test_strict_holds_what_a_measure_counts(ranks):
    """`copy` is on every rank, and the first counts it: with its roundings on all of them the norm would be too large."""
    alone = applied_alone(None, 0, 1)["steps"]
    for i, expected in enumerate(alone):
        found = [rank["applied"]["steps"][i] for rank in ranks]
        few = b"".join(bytes.fromhex(f["leaves"]["few"]) for f in found)
        copies = {f["leaves"]["copy"] for f in found}
        assert len(copies) == 1
        counted = np.frombuffer(few + bytes.fromhex(copies.pop()), np.float16)
        assert power(counted) <= Fraction(0.5) ** 2
        assert {f["norm"] for f in found} == {expected["norm"]}
        assert {f["scale"] for f in found} == {expected["scale"]}


def test_strict_shrinks_a_step_whose_norm_is_the_threshold_as_one_process_does(ranks):
    expected = steps_at_the_threshold(None, 0, 1)
    assert [clipped for _, clipped, _ in expected] == [False, True, False]
    for i, (scale, clipped, written) in enumerate(expected):
        found = [rank["steps at the threshold"][i] for rank in ranks]
        assert all(f[:2] == [scale, clipped] for f in found)
        assert {n: p for f in found for n, p in f[2].items()} == written


def test_strict_scales_replicas_alike(ranks):
    assert all(rank["strict replicas"] == ranks[0]["strict replicas"] for rank in ranks)
    assert ranks[0]["strict replicas"]["clipped"]


def test_nan_on_one_rank_is_found_by_all(ranks):
    size = len(ranks)
    path, index = min((f"rank {4 % size}: leaf4", 7), (f"rank {5 % size}: leaf5", 3))
    for rank in ranks:
        assert rank["nan raise"]["error"] == rank["nan strict"]["error"] == "NonFiniteGradientError"
    text = f"{path}: NaN or Inf at flat index {index} (NaN or Inf in all leaves: 2); nothing was written"
    assert {rank[case]["text"] for rank in ranks for case in ("nan raise", "nan strict")} == {text}
    for policy in ("skip", "zero", "propagate"):
        found, _ = alike(ranks, f"nan {policy}")
        assert found["first_nonfinite"] == [path, index]
        assert (found["nonfinite"], found["skipped"]) == (2, policy == "skip")
    grads = {f"leaf{i}": x for i, x in enumerate(leaves("normal"))}
    grads["leaf4"][7], grads["leaf5"][3] = np.nan, np.inf
    report = gradclip.clip_by_global_norm_(grads, 1.0, nonfinite="zero")
    found, written = alike(ranks, "nan zero")
    assert (found["norm"], found["scale"]) == (report.norm.hex(), report.scale.hex())
    assert written == {name: x.tobytes().hex() for name, x in grads.items()}


OWN = {  # the error of the last rank, which fails
    "leaf": ("TypeError", "bad: dtype int64"),
    "keyword": ("ValueError", "ord must be above 0"),
    "max_norm": ("TypeError", "max_norm must be a real number"),
    "out": ("ValueError", "out"),
    "step": ("ValueError", "params"),
}


@pytest.mark.parametrize("what", OWN)
def test_an_error_on_one_rank_is_one_on_all(ranks, what):
    *others, failed = [rank[f"fail {what}"] for rank in ranks]
    kind, words = OWN[what]
    assert failed["error"] == kind
    assert words in failed["text"]
    for other in others:
        assert other["error"] == "RuntimeError"
        assert other["text"].startswith(f"rank {len(ranks) - 1} failed: {kind}: ")
        assert words in other["text"]


def test_ctrl_c_on_one_rank_is_an_error_on_all(ranks):
    *others, interrupted = [rank["fail interrupt"] for rank in ranks]
    text = f"rank {len(ranks) - 1} failed: KeyboardInterrupt: ; no rank wrote anything"
    assert interrupted["error"] == "KeyboardInterrupt"
    assert all((other["error"], other["text"]) == ("RuntimeError", text) for other in others)


def test_a_rule_that_fails_after_the_exchange_fails_on_all(ranks):
    last = len(ranks) - 1
    for i, rank in enumerate(ranks):
        told = "RuntimeError", f"rank {last} failed: KeyError: 'no threshold'"
        expected = ("KeyError", "'no threshold'") if i == last else told
        assert rank["fail rule"]["error"] == expected[0]
        assert rank["fail rule"]["text"].startswith(expected[1])


DIFFER = {
    "threshold": "the arguments differ between ranks",
    "functions": "the arguments differ between ranks",
    "rules": "the rules of different ranks, as max_norm or skip_above, give different thresholds",
    "rules of skips": "the rules of different ranks",
}


@pytest.mark.parametrize("what", DIFFER)
def test_what_differs_between_ranks_is_an_error_on_all(ranks, what):
    if len(ranks) == 1:
        pytest.skip("one rank differs from none")
    for rank in ranks:
        assert rank[f"fail {what}"]["error"] == "ValueError"
        assert DIFFER[what] in rank[f"fail {what}"]["text"]


def test_a_path_or_an_error_that_is_no_text_is_told_all_the_same(ranks):
    last = len(ranks) - 1
    for rank in ranks:
        assert rank["fail surrogates"]["error"] == "NonFiniteGradientError"
        assert rank["fail surrogates"]["text"].startswith(f"rank {last}: \\udc80: NaN or Inf at flat index 0")
    *others, failed = [rank["fail unshown"] for rank in ranks]
    assert failed["error"] == "Unshown"
    assert all(other["text"] == f"rank {last} failed: Unshown; no rank wrote anything" for other in others)


def test_replicated_leaves_are_counted_once(ranks):
    _, report = alone("normal")
    for rank in ranks:
        assert rank["replicated"] == {"norm": report.norm.hex(), "first": report.norm.hex(), "scale": report.scale.hex()}


def test_steps_normalization_and_measures(ranks):
    grads = {f"leaf{i}": x for i, x in enumerate(leaves("normal"))}
    report, unit = gradclip.clip_by_global_norm(grads, 1.0)[1], gradclip.normalize(grads, 2.0)[1]
    for rank in ranks:
        found = rank["others"]
        assert found == ranks[0]["others"]
        assert found["step"] == found["applied"] == [report.norm.hex(), report.scale.hex()]
        assert found["unit"] == [unit.norm.hex(), unit.scale.hex()]
        for name in ("held", "strict"):
            assert found[name][0] == report.norm.hex()
            assert report.scale * (1 - 1e-12) < float.fromhex(found[name][1]) <= report.scale


def test_rules_learn_the_same_norms(ranks):
    for rank in ranks:
        strip = [[{k: r[k] for k in SAME} for r in found["rules"]] for found in (rank, ranks[0])]
        assert strip[0] == strip[1]


def test_an_object_that_is_no_communicator():
    for comm in (3, "world", object()):
        with pytest.raises(TypeError, match=r"comm must be a communicator of mpi4py .* not (int|str|object)"):
            gradclip.clip_by_global_norm_([np.ones(3)], 1.0, comm=comm)


# ---- leaves, groups, units and samples with norms of their own --------------------------------------------------------


def joined(ranks, case, axis=0):
    """What ranks wrote, their shards put together."""
    found = {}
    for name in {name for rank in ranks for name in rank[case]["leaves"]}:
        parts = [bytes.fromhex(rank[case]["leaves"][name]) for rank in ranks if name in rank[case]["leaves"]]
        kind = np.float32 if "single" in case else np.float16 if "half" in case else np.float64
        arrays = [np.frombuffer(part, kind) for part in parts]
        found[name] = np.concatenate([a.reshape(4, -1) for a in arrays], 1) if axis else np.concatenate(arrays)
    return found


def same_bytes(found, expected):
    return {n: x.tobytes() for n, x in found.items()} == {n: x.tobytes() for n, x in expected.items()}


def same_report(ranks, case, report):
    for rank in ranks:
        found = rank[case]
        for name in ("norm", "scale", "max_abs"):
            assert found[name] == float(getattr(report, name)).hex(), name
        for name in ("clipped", "skipped", "nonfinite"):
            assert found[name] == getattr(report, name), name


@pytest.mark.parametrize("call", UNITS)
@pytest.mark.parametrize("kind", [*OPTIONS, "equal", "single", "replicated"])
def test_norms_of_units_run_over_the_shards_of_all_ranks(ranks, call, kind):
    case, norm = f"units {call} {kind}", OPTIONS.get(kind, {})
    whole = rows(np.float32 if kind == "single" else np.float64, equal=kind == "equal")
    expected, report = UNITS[call](whole, params_like(whole), **norm)
    if kind == "strict":
        for found in ranks:
            assert found[case]["norm"] == report.norm.hex()
            assert report.scale * (1 - 1e-12) < float.fromhex(found[case]["scale"]) <= report.scale * (1 + 1e-12)
        written = joined(ranks, case)
        if call == "leaf":
            assert all(1.0 - 1e-12 < rounded_norm([x]) <= 1.0 for n, x in written.items() if rounded_norm([whole[n]]) > 1.0)
        return
    if kind == "replicated":
        assert ranks[0][case]["leaves"].get("w0") == expected["w0"].tobytes().hex()
        assert all(rank[case]["leaves"]["w0"] == ranks[0][case]["leaves"]["w0"] for rank in ranks)
        assert ranks[0][case]["norm"] == report.norm.hex()
        return
    same_report(ranks, case, report)
    assert same_bytes(joined(ranks, case), expected)


def cut(call, name, x):
    """Name and elements of each slice that has a norm of its own."""
    slices = {"axis 0": x.T, "axis -1": x}.get(call, [x])
    return [((name, i), part) for i, part in enumerate(slices)] if x.ndim > 1 else [((name, 0), x)]


def by_norm(call, leaves):
    """The elements behind each norm of a call, by name."""
    found = {}
    for name, x in leaves.items():
        group = {"w": "w", "few": "rest"}.get(name[0] if name[0] == "w" else name)
        for key, part in [(group, x)] if call == "groups" else cut(call, name, x):
            found.setdefault(key, []).append(np.ravel(part))
    found.pop(None, None)
    return {key: np.concatenate(parts) for key, parts in found.items()}


@pytest.mark.parametrize("call", HALVES)
def test_strict_by_unit_leaves_no_room_for_the_worst_rounding(ranks, call):
    """Over ranks norms come as close to their thresholds as in one process."""
    whole, case = rows(np.float16), f"units {call} half"
    names = [name for name in whole if call != "axis -1" or whole[name].ndim > 1]
    written = {name: x.reshape(whole[name].shape) for name, x in joined(ranks, case).items()}
    alone = UNITS[call](whole, params_like(whole), strict=True)[0]
    limit = {"axis 0": 0.5, "axis -1": 0.5, "normalize": 2.0}.get(call, 1.0)
    losses = []
    here, there, before = (by_norm(call, {n: x[n] for n in names}) for x in (written, alone, whole))
    for key, x in here.items():
        bound = Fraction(0.1 if key == "rest" else limit)
        assert power(x) <= bound**2
        if power(before[key]) > (0 if call == "normalize" else bound**2):
            losses.append([float(1 - power(y) / bound**2) for y in (x, there[key])])
    over_ranks, in_one = np.mean(losses, axis=0)
    assert over_ranks < min(1.1 * in_one, 2.0**-11)  # of squares, of which the worst rounding may take 2**-10


def test_strict_normalizes_beyond_the_largest_half(ranks):
    """A norm of 100000 of elements that float16 holds: ranks do not stop at 65504."""
    written, whole = joined(ranks, "units beyond float16 half"), rows(np.float16)
    alone = BEYOND["beyond float16"](whole, None, strict=True)[0]
    for name, x in alone.items():
        assert np.isfinite(written[name]).all()
        assert 0.999 < np.linalg.norm(written[name].astype(float)) / np.linalg.norm(x.astype(float)) < 1.001
        assert power(written[name]) <= Fraction(1e5) ** 2


@pytest.mark.parametrize("call", SMALL)
def test_what_strict_only_unscales_is_not_enlarged(ranks, call):
    whole = rows(small=True)
    expected, report = UNITS[call](whole, params_like(whole), grad_scale=3.0)
    assert not report.clipped
    same_report(ranks, f"units {call} small", report)
    assert same_bytes(joined(ranks, f"units {call} small"), expected)


def test_a_rank_without_leaves_does_not_lower_a_factor_above_1(ranks):
    whole = rows(small=True)
    expected, report = UNITS["normalize"](whole, params_like(whole))
    assert report.scale > 2.0
    same_report(ranks, "units normalize idle", report)
    assert same_bytes(joined(ranks, "units normalize idle"), expected)


@pytest.mark.parametrize("call", ["leaf", "groups", "adaptive columns"])
@pytest.mark.parametrize("policy", ["skip", "zero", "propagate"])
def test_nan_in_a_shard_is_found_by_all(ranks, call, policy):
    whole = rows(nan=True)
    expected, report = UNITS[call](whole, params_like(whole), nonfinite=policy)
    case = f"units {call} nan {policy}"
    same_report(ranks, case, report) if policy != "propagate" else None
    assert {tuple(rank[case]["first_nonfinite"]) for rank in ranks} == {tuple(ranks[0][case]["first_nonfinite"])}
    written = joined(ranks, case)
    assert {n: np.nan_to_num(x, nan=-1.0).tobytes() for n, x in written.items()} == {
        n: np.nan_to_num(x, nan=-1.0).tobytes() for n, x in expected.items()
    }
    texts = {(rank[f"units {call} nan raise"]["error"], rank[f"units {call} nan raise"]["text"]) for rank in ranks}
    assert [kind for kind, _ in texts] == ["NonFiniteGradientError"]


@pytest.mark.parametrize("call", SAMPLES)
@pytest.mark.parametrize("kind", OPTIONS)
def test_norms_of_samples_run_over_the_leaves_of_all_ranks(ranks, call, kind):
    case, whole = f"samples {call} {kind}", batch()
    expected, report = SAMPLES[call](whole, **OPTIONS[kind])
    summed = "sum" in call
    if "by leaf" not in call:  # those of leaves here
        for rank in ranks:
            assert rank[case]["norms"] == report.norms.tolist()
    if kind == "strict" and not summed:
        assert ranks[0][case]["norm"] == report.norm.hex()
        if call == "clipped":
            written = joined(ranks, case, 1)
            assert all(rounded_norm([x[i] for x in written.values()]) <= 1.0 for i in range(4))
        return
    same_report(ranks, case, report)
    found = joined(ranks, case, 0 if summed else 1)
    assert same_bytes(found, expected)


@pytest.mark.parametrize("call", ["clipped", "sum", "sum by leaf"])
@pytest.mark.parametrize("policy", ["skip", "zero"])
def test_a_sample_with_nan_on_one_rank(ranks, call, policy):
    whole, case = batch(), f"samples {call} nan {policy}"
    whole["own"][3, 0] = np.nan
    expected, report = SAMPLES[call](whole, nonfinite=policy)
    same_report(ranks, case, report)
    found = joined(ranks, case, 0 if "sum" in call else 1)
    assert {n: np.nan_to_num(x, nan=-1.0).tobytes() for n, x in found.items()} == {
        n: np.nan_to_num(x, nan=-1.0).tobytes() for n, x in expected.items()
    }
    for rank in ranks:
        assert rank[f"samples {call} nan raise"]["error"] == "NonFiniteGradientError"


def test_a_rank_without_samples_takes_part(ranks):
    whole = batch()
    if len(ranks) > 1:
        whole = {n: x if n == "own" else np.concatenate(np.array_split(x, len(ranks), 1)[1:], 1) for n, x in whole.items()}
    report = SAMPLES["clipped"](whole)[1]
    same_report(ranks, "samples idle", report)


WORDS = {
    "leaf": "bad: dtype int64",
    "twice": "2 have the path a/b",
    "threshold": "w0: threshold or number of units differ",
    "call": "the arguments differ between ranks",
    "columns": "grads: threshold or number of units differ",
    "batch": "batches differ between ranks",
    "mask": "the arguments differ between ranks",
    "groups": "the arguments differ between ranks",
    "slices": "w0: threshold or number of units differ",
    "parts of samples": "the arguments differ between ranks",
    "rules": "the rules of different ranks give different thresholds",
    "rules of groups": "the rules of different ranks give different thresholds",
    "not rows": "w: threshold or number of units differ between ranks, or they hold parts of it that are not rows",
    "not rows of cubes": "grads: threshold or number of units differ between ranks, or they hold parts of it that are not rows",
    "owned by nobody": "b: owned by no rank, so it has no norm",
    "owned samples": "grads: owned by no rank, so it has no norm",
}


@pytest.mark.parametrize("what", WORDS)
def test_errors_where_units_have_norms_of_their_own_are_errors_on_all(ranks, what):
    if len(ranks) == 1 and what not in ("leaf", "twice", "owned by nobody", "owned samples"):
        pytest.skip("one rank differs from none")
    for rank in ranks:
        assert WORDS[what] in rank[f"fail units {what}"]["text"]


def test_without_comm_what_is_not_owned_needs_others_that_it_shares_a_norm_with():
    x, owned = {"a": np.full((3, 2), 3.0), "b": np.full((3, 2), 4.0)}, {"b": False}
    for call in (
        lambda: gradclip.clip_by_norm_(x, 1.0, owned=owned),
        lambda: gradclip.clip_by_norm_(x, 1.0, axis=1, owned=owned),
        lambda: gradclip.normalize_(x, per_leaf=True, owned=owned),
        lambda: gradclip.clip_adaptive_(x, x, owned=owned),
        lambda: gradclip.clip_per_sample_(x, {"*": 1.0}, owned=owned),
        lambda: gradclip.per_sample_clip_sum(x, 1.0, owned=owned),
    ):
        with pytest.raises(TypeError, match=r"b: not owned, so it has no norm"):
            call()
    norm = gradclip.global_norm(x["a"])
    clipped, report = gradclip.clip_by_norm(x, 1.0, groups={"*": "all"}, owned=owned)
    assert (report.norm, report.norms.tolist()) == (norm, [norm])
    assert (clipped["b"] == 4.0 / norm).all()
    assert gradclip.clip_per_sample(x, 1.0, owned=owned)[1].norms.tolist() == [gradclip.global_norm(x["a"][0])] * 3


# ---- many ranks, simulated --------------------------------------------------------------------------------------------


def by_tree(words):
    """Reduce by recursive doubling: in each step half of the ranks add what the other half has."""
    while len(words) > 1:
        half = (len(words) + 1) // 2
        words = np.concatenate([words[: len(words) // 2] + words[half:], words[len(words) // 2 : half]])
    return words[0]


def by_ring(words):
    """Reduce by a ring: each part of the words goes around, from another rank on."""
    cuts = np.linspace(0, words.shape[1], 9).astype(int)
    return np.concatenate(
        [np.roll(words[:, a:b], i, 0).cumsum(0)[-1] for i, (a, b) in enumerate(itertools.pairwise(cuts.tolist()))]
    )


@pytest.mark.parametrize("ranks", [8, 513, 10_000])
def test_limbs_of_many_ranks_add_up_to_the_exact_sum(ranks):
    rng = np.random.default_rng(ranks)
    values = rng.standard_normal(ranks) * 2.0 ** rng.integers(-500, 500, ranks)
    parts = [Part(*dyadic(Fraction(value) ** 2, 0)) for value in values.tolist()]
    words = np.stack([limbs_of(part, LOWEST) for part in parts])
    total = sum(part.value() for part in parts) / Fraction(2) ** LOWEST
    for reduced in (by_tree(words), by_ring(words)):
        assert integers_of(reduced[None]) == [total]


def test_limbs_have_room_for_two_to_the_31_ranks():
    most = Part((1 << 32 * LIMBS) - 1, LOWEST)
    assert integers_of(limbs_of(most, LOWEST)[None] * 2**31) == [most.total * 2**31]
