"""One rank of tests/test_distributed.py: runs the cases that it is told, and prints what came out as a line of JSON for each.

python rank_process.py torch RANK SIZE FILE        a process group of PyTorch (gloo) that meets at a file
mpiexec -n SIZE python rank_process.py mpi         a communicator of mpi4py
"""

import json
import sys

import numpy as np

import gradclip
from gradclip.thresholds import EMA, PerLeaf, Quantile, Schedule, Threshold


def communicator(kind):
    if kind == "mpi":
        from mpi4py import MPI

        return MPI.COMM_WORLD, MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()
    import torch.distributed as dist

    rank, size = int(sys.argv[2]), int(sys.argv[3])
    dist.init_process_group("gloo", init_method="file://" + sys.argv[4], rank=rank, world_size=size)
    return dist.group.WORLD, rank, size


def leaves(case, dtype=np.float64):
    """The seven leaves that ranks share out, the same in every process."""
    rng = np.random.default_rng(7)
    if case == "equal":  # their sum of squares lies so close to the middle between two norms that only an exact sum tells it
        return [np.full(n, 0.1) for n in (400, 64, 17, 1, 100, 300, 718)]
    spread = 2.0 ** rng.integers(-40, 40, 7)
    found = [(rng.standard_normal(n) * s).astype(dtype) for n, s in zip((1000, 3, 64, 1, 4097, 17, 250), spread, strict=True)]
    return [x * 1e-190 for x in found] if case == "tiny" else [x * 1e200 for x in found] if case == "huge" else found


def share(all_leaves, rank, size, turn=0):
    return {f"leaf{i}": x.copy() for i, x in enumerate(all_leaves) if (i + turn) % size == rank}


class Sudden(Threshold):
    """A rule that fails on the last rank alone."""

    def __init__(self, last):
        self.last = last

    def next_threshold(self, norm):
        if self.last:
            raise KeyError("no threshold")
        return 1.0

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def interrupt(leaves):
    """Ctrl-C while the leaves are read."""
    yield from leaves
    raise KeyboardInterrupt


class Unshown(Exception):
    """An error that cannot be shown."""

    def __str__(self):
        raise LookupError("no text")


def broken(last):
    yield np.ones(3)
    if last:
        raise Unshown


def rule(last):
    """A rule whose history is another one on the last rank."""
    found = EMA(factor=1.0, beta=0.5, warmup=1)
    found.next_threshold(2.0 if last else 1.0)
    return found


def rules_by_leaf(names, last):
    found = PerLeaf(EMA(factor=1.0, beta=0.5, warmup=1))
    for name in names:
        found.next_threshold(name, 2.0 if last else 1.0)
    return found


def shown(report, written=()):
    numbers = {name: getattr(report, name) for name in ("norm", "scale", "max_abs", "max_norm")}
    found = {name: float(value).hex() if isinstance(value, float) else str(value) for name, value in numbers.items()}
    found |= {name: getattr(report, name) for name in ("clipped", "skipped", "nonfinite", "first_nonfinite")}
    found |= {"norms": report.norms.tolist(), "scales": report.scales.tolist()}
    return found | {"leaves": {name: x.tobytes().hex() for name, x in written}}


def clip(comm, rank, size, case, **norm):
    grads = share(leaves(case, np.float32 if case == "single" else np.float64), rank, size, norm.pop("turn", 0))
    if "only" in norm:
        grads = share(leaves(case), 0, 1) if rank == norm.pop("only") else {}
    norm.pop("only", None)
    max_norm = norm.pop("max_norm", 1.0)
    return shown(gradclip.clip_by_global_norm_(grads, max_norm, comm=comm, **norm), grads.items())


def with_nan(comm, rank, size, policy, **norm):
    grads = share(leaves("normal"), rank, size)
    for name, i in (("leaf4", 7), ("leaf5", 3)):
        if name in grads:
            grads[name][i] = np.nan if name == "leaf4" else np.inf
    before = {name: x.tobytes() for name, x in grads.items()}
    report = None
    try:
        report = gradclip.clip_by_global_norm_(grads, 1.0, comm=comm, nonfinite=policy, **norm)
    finally:
        if policy in ("raise", "skip") and before != {name: x.tobytes() for name, x in grads.items()}:
            raise AssertionError("written")
    return shown(report, grads.items())


def skipping(g, last, comm):
    """A step that is left out on one rank; on the others `strict` would go on to exchange."""
    limit = Schedule(lambda step: 1e-3 if last else 1e300)
    gradclip.clip_by_global_norm_(g, 1e20, comm=comm, skip_above=limit, strict=True)


clip_ = gradclip.clip_by_global_norm_
OTHER = {"other": np.ones(1)}  # unlike the leaves of any rank, and unlike none at all
FAILING = {
    "leaf": lambda g, last, comm: clip_(g | ({"bad": np.ones(3, int)} if last else {}), 1.0, comm=comm),
    "keyword": lambda g, last, comm: clip_(g, 1.0, comm=comm, ord=-1 if last else 2),
    "max_norm": lambda g, last, comm: clip_(g, "1" if last else 1.0, comm=comm),
    "out": lambda g, last, comm: gradclip.clip_by_global_norm(g, 1.0, comm=comm, out=OTHER if last else g),
    "rule": lambda g, last, comm: clip_(g, Sudden(last), comm=comm),
    "threshold": lambda g, last, comm: clip_(g, 1.0 + last, comm=comm),
    "rules": lambda g, last, comm: clip_(g, rule(last), comm=comm),
    "rules of skips": skipping,
    "functions": lambda g, last, comm: (
        gradclip.apply_clip_(g, gradclip.measure(g), 1.0, comm=comm) if last else clip_(g, 1.0, comm=comm)
    ),
    "interrupt": lambda g, last, comm: gradclip.clip_by_global_norm(interrupt([]) if last else g, 1.0, comm=comm),
    "unshown": lambda g, last, comm: gradclip.clip_by_global_norm(broken(last), 1.0, comm=comm),
    "surrogates": lambda g, last, comm: clip_({"\udc80": np.array([np.nan if last else 1.0])}, 1.0, comm=comm),
    "step": lambda g, last, comm: gradclip.sgd_step_(
        OTHER if last else {n: x + 1 for n, x in g.items()}, g, 0.1, 1.0, comm=comm
    ),
}


def failing(comm, rank, size, what):
    grads = share(leaves("normal"), rank, size)
    before = {name: x.tobytes() for name, x in grads.items()}
    try:
        FAILING[what](grads, rank == size - 1, comm)
    finally:
        if any(before[name] != grads[name].tobytes() for name in before):
            raise AssertionError("written")


def replicated(comm, rank, size):
    """Every rank holds all leaves; each counts its own, or the first counts all."""
    grads = {f"leaf{i}": x for i, x in enumerate(leaves("normal"))}
    owned = {name: int(name[4:]) % size == rank for name in grads}
    report = gradclip.clip_by_global_norm(grads, 1.0, comm=comm, owned=owned)[1]
    first = gradclip.clip_by_global_norm(grads, 1.0, comm=comm, owned=rank == 0)[1]
    return {"norm": report.norm.hex(), "first": first.norm.hex(), "scale": report.scale.hex()}


def others(comm, rank, size):
    """The other functions that one norm rules."""
    grads = share(leaves("normal"), rank, size)
    params = {name: np.ones_like(x) for name, x in grads.items()}
    step = gradclip.sgd_step_(params, grads, 0.1, 1.0, comm=comm)
    held = gradclip.sgd_step_({k: p.copy() for k, p in params.items()}, grads, 0.1, 1.0, comm=comm, strict=True)
    unit = gradclip.normalize(grads, 2.0, comm=comm)[1]
    applied = [gradclip.apply_clip(grads, gradclip.measure(grads), 1.0, comm=comm, strict=s)[1] for s in (False, True)]
    found = {"step": step, "held": held, "unit": unit, "applied": applied[0], "strict": applied[1]}
    return {name: [r.norm.hex(), r.scale.hex()] for name, r in found.items()}


CASTS = {  # every norm keeps its threshold, but elements are beyond float16
    "clip": lambda g, out, **k: gradclip.clip_by_global_norm(g, 1e300, out=out, **k),
    "normalize": lambda g, out, **k: gradclip.normalize(g, 1e300, out=out, **k),
    "apply": lambda g, out, **k: gradclip.apply_clip(g, gradclip.measure(g), 1e300, out=out, **k),
    "leaf": lambda g, out, **k: gradclip.clip_by_norm(g, 1e300, out=out, **k),
    "axis": lambda g, out, **k: gradclip.clip_by_norm(g, 1e300, axis=0, out=out, **k),
    "samples": lambda g, out, **k: gradclip.clip_per_sample(g, 1e300, out=out, **k),
}


def strict_cast(comm, rank, size, call):
    whole = {"w": np.arange(1.0, 13.0).reshape(4, 3) * 1e200, "own": np.array([[1e200], [-7e4], [3.0], [0.0]])}
    grads = shard(whole, rank, size, int(call == "samples"))
    out = {n: np.zeros_like(x, np.float16) for n, x in grads.items()}
    report = CASTS[call](grads, out, comm=comm, strict=True)[1]
    return shown(report, out.items())


def cast_on_one_rank(comm, rank, size):
    """The first rank rounds its leaf to another dtype; the others clip theirs in place. Every norm keeps its threshold."""
    grads = {"w": np.arange(1.0, 5.0) * 1e5}
    if rank:
        return shown(clip_(grads, 1e300, comm=comm, strict=True), grads.items())
    out, report = gradclip.clip_by_global_norm(grads, 1e300, comm=comm, strict=True, out={"w": np.zeros(4, np.float16)})
    return shown(report, out.items())


def steps_at_the_threshold(comm, rank, size):
    """Steps of halves whose norm is their threshold: `strict` shrinks it at most by a last bit."""
    found = []
    for ord in (1, 2, 3):
        grads = {n: x.astype(np.float16) for n, x in share(leaves("single"), rank, size).items() if np.abs(x).max() < 6e4}
        params = {n: np.ones_like(x) for n, x in grads.items()}
        norm = gradclip.clip_by_global_norm(grads, np.inf, comm=comm, ord=ord)[1].norm
        report = gradclip.sgd_step_(params, grads, 0.1, norm, comm=comm, ord=ord, strict=True)
        found.append([report.scale.hex(), report.clipped, {n: p.tobytes().hex() for n, p in params.items()}])
    return found


def applied(comm, rank, size):
    """A leaf whose elements ranks share out, and one that all hold and the first counts: `strict` holds what is counted.

    With these seeds the norm would be too large if what is held were the sum over all that ranks hold."""
    found = []
    for seed in (6, 16, 17, 58, 83, 104):
        rng = np.random.default_rng(seed)
        whole = {"few": rng.standard_normal(6).astype(np.float16), "copy": rng.standard_normal(6).astype(np.float16)}
        grads, owned = {"few": np.array_split(whole["few"], size)[rank], "copy": whole["copy"]}, {"copy": rank == 0}
        measure = gradclip.measure(grads, owned=owned)
        clipped, report = gradclip.apply_clip(grads, measure, 0.5, strict=True, comm=comm, owned=owned)
        found.append(shown(report, clipped.items()))
    return {"steps": found}


def strict_replicas(comm, rank, size):
    """A matrix that every rank holds and the first counts, whose rows are whole on each rank."""
    grads = {"w": (np.arange(1.0, 13.0).reshape(3, 4) / 16).astype(np.float16)}
    params, owned = {"w": np.ones((3, 4))}, rank == 0
    clipped, report = gradclip.clip_adaptive(grads, params, 0.01, ord=0.5, strict=True, comm=comm, owned=owned)
    return shown(report, clipped.items())


def rules(comm, rank, size):
    rule, found = Quantile(0.5, warmup=1), []
    for factor in (1.0, 3.0, 0.5, 10.0):
        grads = {name: x * factor for name, x in share(leaves("normal"), rank, size).items()}
        report = gradclip.clip_by_global_norm_(grads, rule, comm=comm, skip_above=rule.next_threshold(1.0) * 1e30)
        found.append(shown(report))
    return found


def rows(dtype=np.float64, nan=False, equal=False, small=False):
    """Whole leaves, whose rows ranks share out: matrices, a vector, one with fewer rows than ranks, one that one rank holds."""
    rng = np.random.default_rng(11)
    shapes = {"w0": (7, 5), "w1": (4, 3), "b": (9,), "few": (2, 2), "own": (3, 4)}
    scales = dict(zip(shapes, (1.0, 1e3, 1e-9, 5.0, 0.1), strict=True))
    found = {n: (np.full(s, 0.1) if equal else rng.standard_normal(s) * scales[n]).astype(dtype) for n, s in shapes.items()}
    if nan:
        found["w1"][3, 1], found["b"][8] = np.nan, np.inf
    return {n: x * 2.0**-40 for n, x in found.items()} if small else found


def shard(whole, rank, size, axis=0):
    """The rows (or columns) of each leaf that a rank holds; the last rank alone holds `own`."""
    parts = {name: np.array_split(x, size, axis)[rank].copy() for name, x in whole.items() if name != "own"}
    return parts | ({"own": whole["own"].copy()} if rank == size - 1 else {})


UNITS = {
    "leaf": lambda g, p, **k: gradclip.clip_by_norm(g, 1.0, **k),
    "patterns": lambda g, p, **k: gradclip.clip_by_norm(g, {"w0": 1.0, "*": 2.0}, **k),
    "axis 0": lambda g, p, **k: gradclip.clip_by_norm(g, 0.5, axis=0, **k),
    "axis -1": lambda g, p, **k: gradclip.clip_by_norm({n: x for n, x in g.items() if x.ndim > 1}, 0.5, axis=-1, **k),
    "groups": lambda g, p, **k: gradclip.clip_by_norm(g, {"w": 1.0, "rest": 0.1}, groups={"w*": "w", "few": "rest"}, **k),
    "normalize": lambda g, p, **k: gradclip.normalize(g, 2.0, per_leaf=True, **k),
    "adaptive": lambda g, p, **k: gradclip.clip_adaptive(g, p, 0.05, **k),
    "adaptive columns": lambda g, p, **k: gradclip.clip_adaptive(g, p, {"w0": 0.05, "*": 0.1}, unit_axis=-1, **k),
    "adaptive leaves": lambda g, p, **k: gradclip.clip_adaptive(g, p, 0.05, unit_axis=(), **k),
    "rules": lambda g, p, **k: stepped(g, **k),
}
HALVES = ("leaf", "axis 0", "axis -1", "groups", "normalize")  # what float16 is clipped by
BEYOND = {  # norms of elements that float16 holds, and that it does not hold itself
    "beyond float16": lambda g, p, **k: gradclip.normalize({n: g[n] for n in g if n[0] == "w"}, 1e5, per_leaf=True, **k)
}
SAMPLES = {
    "clipped": lambda g, **k: gradclip.clip_per_sample(g, 1.0, **k),
    "by leaf": lambda g, **k: gradclip.clip_per_sample(g, {"w0": 1.0, "*": 2.0}, **k),
    "normalized": lambda g, **k: gradclip.clip_per_sample(g, 1.0, normalize=True, mask=np.arange(4) != 2, **k),
    "sum": lambda g, **k: gradclip.per_sample_clip_sum(g, 1.0, **k),
    "sum by leaf": lambda g, **k: gradclip.per_sample_clip_sum(g, {"w0": 1.0, "*": 2.0}, **k),
    "sum by group": lambda g, **k: gradclip.per_sample_clip_sum(g, {"w": 1.0}, groups={"w0": "w"}, **k),
    "sum masked": lambda g, **k: gradclip.per_sample_clip_sum(g, 1.0, mask=np.arange(4) != 2, **k),
    "sum normalized": lambda g, **k: gradclip.per_sample_clip_sum(g, 1.0, normalize=True, **k),
}
OPTIONS = {
    "": {},
    "strict": {"strict": True},
    "ord 1": {"ord": 1},
    "ord 3": {"ord": 3},
    "ord inf": {"ord": np.inf},
    "scaled": {"grad_scale": 3.0},
}


def stepped(grads, **norm):
    """Three steps under a rule for each leaf."""
    rule = PerLeaf(EMA(factor=1.0, beta=0.5, warmup=1))
    for factor in (0.5, 0.25, 2.0):
        clipped, report = gradclip.clip_by_norm({n: x * factor for n, x in grads.items()}, rule, **norm)
    return clipped, report


def params_like(whole):
    return {n: np.arange(x.size, dtype=np.float64).reshape(x.shape) + 1.0 for n, x in whole.items()}


def by_units(comm, rank, size, call, kind="", **norm):
    """A call over shards. The matrices of `replicated` are held whole by all ranks, and counted by the first.

    In `idle` the first of several ranks has no leaves."""
    whole = rows(
        {"single": np.float32, "half": np.float16}.get(kind, np.float64),
        kind == "nan",
        kind == "equal",
        kind in ("small", "idle"),
    )
    grads, params = (shard(x, rank, size) for x in (whole, params_like(whole)))
    if kind == "idle" and size > 1:
        grads = shard(whole, rank - 1, size - 1) if rank else {}
    if kind == "replicated":
        grads["w0"], params["w0"] = whole["w0"].copy(), params_like(whole)["w0"]
        norm["owned"] = {"w0": rank == 0}
    before = {n: x.copy() for n, x in grads.items()}
    try:
        clipped, report = (UNITS | BEYOND)[call](grads, params, comm=comm, **norm)
    finally:
        assert all(before[n].tobytes() == x.tobytes() for n, x in grads.items())
    return shown(report, clipped.items())


def batch():
    """Whole per-sample gradients, whose columns ranks share out."""
    rng = np.random.default_rng(5)
    found = {n: rng.standard_normal((4, k)) for n, k in (("w0", 6), ("b", 5), ("own", 3))}
    for x in found.values():
        x[1] *= 0.01
    return found


def by_samples(comm, rank, size, call, nan=False, idle=False, **norm):
    grads = shard(batch(), rank, size, 1)
    if idle and rank == 0 and size > 1:
        grads = {}
    if nan and rank == size - 1:
        grads["own"][3, 0] = np.nan
    summed, report = SAMPLES[call](grads, comm=comm, **norm)
    return shown(report, summed.items())


by_norm_ = gradclip.clip_by_norm_
FAILING_UNITS = {
    "leaf": lambda g, last, **k: by_norm_(g | ({"bad": np.ones(3, int)} if last else {}), 1.0, **k),
    "twice": lambda g, last, **k: by_norm_({"a": {"b": np.ones(2)}} | ({"a/b": np.ones(2)} if last else {}), 1.0, **k),
    "threshold": lambda g, last, **k: by_norm_(g, {"w0": 1.0 + last, "*": 1.0}, **k),
    "call": lambda g, last, **k: (by_norm_ if last else gradclip.normalize_)(g, 1.0, **k),
    "columns": lambda g, last, **k: by_norm_(np.ones((3, 4 + last)), 1.0, axis=0, **k),
    "groups": lambda g, last, **k: by_norm_(g, 1.0, groups={"*": "all"} if last else None, **k),
    "slices": lambda g, last, **k: by_norm_({"w0": np.ones((2, 3))}, 1.0, axis=1 if last else None, **k),
    "parts of samples": lambda g, last, **k: gradclip.clip_per_sample_(np.ones((3, 4)), {"*": 1.0} if last else 1.0, **k),
    "rules": lambda g, last, **k: by_norm_(g, rules_by_leaf(g, last), **k),
    "rules of groups": lambda g, last, **k: by_norm_(g, rules_by_leaf("a", last), groups={"*": "a"}, **k),
    "not rows": lambda g, last, **k: gradclip.clip_adaptive({"w": np.ones((4, 2 + last))}, {"w": np.ones((4, 2 + last))}, **k),
    "not rows of cubes": lambda g, last, **k: by_norm_(np.ones((4, 2 + last, 3)), 1.0, axis=(0, 1), **k),
    "owned by nobody": lambda g, last, **k: by_norm_(g, 1.0, owned={"b": False}, **k),
    "owned samples": lambda g, last, **k: gradclip.per_sample_clip_sum(np.ones((3, 4)), 1.0, owned=False, **k),
    "batch": lambda g, last, **k: gradclip.clip_per_sample_(np.ones((3 + last, 4)), 1.0, **k),
    "mask": lambda g, last, **k: gradclip.clip_per_sample_(np.ones((3, 4)), 1.0, mask=np.arange(3) == last, **k),
}


def failing_units(comm, rank, size, what):
    grads = shard(rows(), rank, size)
    before = {name: x.tobytes() for name, x in grads.items()}
    try:
        FAILING_UNITS[what](grads, rank == size - 1, comm=comm)
    finally:
        assert all(before[name] == x.tobytes() for name, x in grads.items())


SMALL = ("leaf", "axis 0", "axis -1", "groups", "adaptive", "adaptive columns")
CASES = {
    **{f"units {c} {o}": lambda *who, c=c, o=o: by_units(*who, c, **OPTIONS[o]) for c in UNITS for o in OPTIONS},
    **{f"units {c} {k}": lambda *who, c=c, k=k: by_units(*who, c, k) for c in UNITS for k in ("equal", "single", "replicated")},
    **{f"units {c} small": lambda *who, c=c: by_units(*who, c, "small", strict=True, grad_scale=3.0) for c in SMALL},
    "units normalize idle": lambda *who: by_units(*who, "normalize", "idle"),
    **{
        f"units {c} nan {p}": lambda *who, c=c, p=p: by_units(*who, c, "nan", nonfinite=p)
        for c in ("leaf", "groups", "adaptive columns")
        for p in ("raise", "skip", "zero", "propagate")
    },
    **{f"samples {c} {o}": lambda *who, c=c, o=o: by_samples(*who, c, **OPTIONS[o]) for c in SAMPLES for o in OPTIONS},
    **{
        f"samples {c} nan {p}": lambda *who, c=c, p=p: by_samples(*who, c, True, nonfinite=p)
        for c in ("clipped", "sum", "sum by leaf")
        for p in ("raise", "skip", "zero", "propagate")
    },
    "samples idle": lambda *who: by_samples(*who, "clipped", idle=True),
    **{f"fail units {w}": lambda *who, w=w: failing_units(*who, w) for w in FAILING_UNITS},
    **{f"clip {c}": lambda *who, c=c: clip(*who, c) for c in ("normal", "equal", "tiny", "huge", "single")},
    "clip first": lambda comm, rank, size: clip(comm, rank, size, "normal", only=0),  # the others have no leaves
    "clip turned": lambda *who: clip(*who, "normal", turn=1),
    **{f"ord {p}": lambda *who, p=p: clip(*who, "normal", ord=p) for p in (1, 3, 0.5, np.inf)},
    **{f"strict {p}": lambda *who, p=p: clip(*who, "single", ord=p, strict=True) for p in (1, 2, 3, np.inf)},
    "scaled": lambda *who: clip(*who, "normal", grad_scale=3.0, eps=1e-6),
    "inside": lambda *who: clip(*who, "normal", max_norm=1e300),
    "spike": lambda *who: clip(*who, "normal", skip_above=1.0),
    **{f"nan {p}": lambda *who, p=p: with_nan(*who, p) for p in ("raise", "skip", "zero", "propagate")},
    "nan strict": lambda *who: with_nan(*who, "raise", strict=True),
    **{f"fail {w}": lambda *who, w=w: failing(*who, w) for w in FAILING},
    "replicated": replicated,
    "others": others,
    **{f"cast {c}": lambda *who, c=c: strict_cast(*who, c) for c in CASTS},
    "cast on one rank": cast_on_one_rank,
    **{f"units {c} half": lambda *who, c=c: by_units(*who, c, "half", strict=True) for c in (*HALVES, *BEYOND)},
    "applied": applied,
    "steps at the threshold": steps_at_the_threshold,
    "strict replicas": strict_replicas,
    "rules": rules,
}


if __name__ == "__main__":
    comm, rank, size = communicator(sys.argv[1])
    for name, case in CASES.items():
        try:
            found = case(comm, rank, size) or {}
        except (Exception, KeyboardInterrupt) as error:
            found = {"error": type(error).__name__, "text": "" if isinstance(error, Unshown) else str(error)}
        print(f"RANK{rank} " + json.dumps([name, found]), flush=True)
    if sys.argv[1] == "torch":  # a process that ends before the others have left the group may abort
        dist = sys.modules["torch.distributed"]
        dist.barrier()
        dist.destroy_process_group()
