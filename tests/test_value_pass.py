"""The pass of clip_by_value, which measures and clamps at once: every bit, what is stored to, and who is told before."""

import copy
import math
import pickle
from functools import partial

import child_process
import numpy as np
import pytest
from marks import slow
from reference import BFLOAT16, REAL, gradient, layouts

import gradclip
from gradclip._cpu import machine, passes
from gradclip._cpu.plan import clamping
from gradclip._leaves import Leaves

HALVES = [np.dtype(np.float16), BFLOAT16]
BOUNDS = [(-0.5, 0.5), (-0.25, 3.0), (0.0, 2.0), (-2.0, 0.0), (0.0, 0.0), (1e-6, 1e-6), (-math.inf, 0.75), (-1.0, math.inf)]


def bits(a):
    return np.ascontiguousarray(a).view(f"u{a.dtype.itemsize}")


def held(a, low, high):
    """What clipping by value makes of an array: elements strictly beyond a bound become the bound, all others keep each bit."""
    low, high = np.array(low).astype(a.dtype), np.array(high).astype(a.dtype)
    wide, made = a.astype(np.float64), a.copy()
    made[wide < float(low)] = low
    made[wide > float(high)] = high
    return made, int(((wide < float(low)) | (wide > float(high))).sum())


def every_kind(dtype):
    """All bit patterns of a half; of others all kinds: random bits, zeros of both signs, subnormals, NaN with payloads, Inf."""
    if dtype in HALVES:
        return np.arange(1 << 16, dtype=np.uint16).view(dtype)
    word = np.dtype(f"u{dtype.itemsize}")
    random = np.frombuffer(np.random.default_rng(1).bytes(20_000 * dtype.itemsize), word)
    top, infinite = 1 << (8 * dtype.itemsize - 1), int(bits(np.array([np.inf], dtype))[0])
    some = [0, 1, 2, infinite - 1, infinite, infinite + 1, infinite | infinite >> 1, infinite | 3]
    near = [int(bits(np.array([b], dtype))[0]) + step for b in (0.5, 0.75, 1e-6, 2.0, 3.0) for step in (-1, 0, 1)]
    return np.concatenate([random, np.array([s | sign for s in some + near for sign in (0, top)], word)]).view(dtype)


@pytest.mark.parametrize("bounds", slow(BOUNDS, fast=BOUNDS[:5]))
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_every_kind_of_number_keeps_its_bits_or_becomes_the_bound(isa, dtype, bounds):
    with np.errstate(invalid="ignore"):
        a = every_kind(dtype)
        for part in (a, a[np.isfinite(a.astype(np.float64))], a[:5000:7], a[-1:], a[:0]):
            made, outside = held(part, *bounds)
            kept = part.copy()
            clipped, report = gradclip.clip_by_value(kept, *bounds)
            assert bits(clipped).tolist() == bits(made).tolist()
            assert bits(kept).tolist() == bits(part).tolist()
            assert report.clipped_count == outside
            assert gradclip.clip_by_value_(kept, *bounds).clipped_count == outside
            assert bits(kept).tolist() == bits(made).tolist()


def found(report):
    return (
        report.norm,
        report.norms.tolist(),
        report.max_abs,
        report.nonfinite,
        report.first_nonfinite,
        report.clipped_count,
        report.size,
        report.max_norm,
        report.scales.tolist(),
    )


@pytest.mark.parametrize("bounds", slow(BOUNDS, fast=BOUNDS[:2]))
@pytest.mark.parametrize("kind", slow(["normal", "lognormal", "tiny", "huge", "wide", "zeros"], fast=("normal", "huge")))
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_the_report_is_that_of_a_read_pass(isa, dtype, kind, bounds):
    """Norms, largest magnitude, counts and places, of leaves of all lengths: as if they had been measured before."""
    leaves = [gradient(dtype, n, kind, seed=n) for n in (0, 1, 16, 17, 4096, 5000, 70_001)] + [np.array(0.7).astype(dtype)]
    before = gradclip.measure(leaves)
    counted = passes.measure_outside(Leaves(leaves), clamping(*map(float, bounds)))
    made = [held(a, *bounds) for a in leaves]
    for report in (
        gradclip.clip_by_value(leaves, *bounds)[1],
        gradclip.clip_by_value(leaves, *bounds, out=[np.empty_like(a) for a in leaves])[1],
        gradclip.clip_by_value_(leaves, *bounds),
    ):
        assert (report.norm, report.norms.tolist(), report.max_abs) == (before.norm, before.norms.tolist(), before.max_abs)
        assert report.clipped_count == counted.outside() == sum(outside for _, outside in made)
        assert (report.size, report.nonfinite, report.first_nonfinite) == (sum(a.size for a in leaves), 0, None)
    assert all(bits(a).tolist() == bits(m).tolist() for a, (m, _) in zip(leaves, made, strict=True))


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_threads_sets_and_layouts_change_no_bit(dtype):
    reports, threads, set_ = [], machine.get_threads(), machine.isa()
    leaves = [gradient(dtype, n, "lognormal", seed=n) for n in (5, 300_000, 4097, 700_003)]
    leaves[1][[7, 140_000]] = np.inf, -np.inf
    leaves[3][5] = np.nan
    made = [held(a, -0.5, 0.25)[0] for a in leaves]
    try:
        for name in machine.available_isas():
            for count in (1, 2, 3, 8):
                machine.set_isa(name)
                machine.set_threads(count)
                copies = [a.copy() for a in leaves]
                copies[3] = np.repeat(copies[3], 2)[::2]
                reports.append(found(gradclip.clip_by_value_(copies, -0.5, 0.25)))
                assert all(bits(a).tolist() == bits(m).tolist() for a, m in zip(copies, made, strict=True))
    finally:
        machine.set_isa(set_)
        machine.set_threads(threads)
    assert all(repr(r) == repr(reports[0]) for r in reports)
    assert reports[0][3:5] == (3, ("1", 7))


# ---- where the first NaN or Inf stood --------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [np.dtype(np.float16), np.dtype(np.float32)], ids=str)
def test_the_first_inf_is_found_before_it_is_overwritten(dtype, threads):
    """In index order, however the leaf lies in memory."""
    rng = np.random.default_rng(4)
    before = machine.get_threads()
    machine.set_threads(threads)
    try:
        for size in (10, 9000, 600_000):
            for name, view in layouts(gradient(dtype, size)):
                where = np.sort(rng.choice(size, 4, replace=False))
                np.put(view, where, [np.inf, -np.inf, np.nan, np.inf])
                small = np.array([3, -3], dtype)
                made = held(view.reshape(-1), -1, 1)[0]
                report = gradclip.clip_by_value_({"small": small, "it": [None, view]}, 1.0)
                assert report.first_nonfinite == ("it/1", where[0]), name
                assert report.nonfinite == 4
                assert bits(view.reshape(-1)).tolist() == bits(made).tolist(), name
                assert small.tolist() == [1.0, -1.0]
    finally:
        machine.set_threads(before)


def test_inf_within_infinite_bounds_stays():
    a = np.array([np.inf, -np.inf, 5.0, np.nan])
    report = gradclip.clip_by_value_(a, -1.0, math.inf)
    assert a[:3].tolist() == [math.inf, -1.0, 5.0]
    assert (report.clipped_count, report.nonfinite, report.first_nonfinite) == (1, 3, ("grads", 0))


def test_inf_in_a_single_array_and_in_out():
    a = np.array([[1.0, np.nan], [np.inf, 2.0]], order="F")
    out = np.empty((2, 2))
    assert gradclip.clip_by_value(a, 0.5, out=out)[1].first_nonfinite == ("grads", 1)
    assert gradclip.clip_by_value(a, 0.5, out=a)[1].first_nonfinite == ("grads", 1)
    assert out.tolist()[1] == a.tolist()[1] == [0.5, 0.5]


def test_a_report_can_be_copied():
    report = gradclip.clip_by_value_([np.array([3.0, 0.1, -3.0]), np.array([np.inf])], 1.0)
    for same in (pickle.loads(pickle.dumps(report)), copy.deepcopy(report)):
        assert found(same) == found(report)
        assert (same.clipped_count, same.clipped, same.first_nonfinite) == (3, True, ("1", 0))


# ---- what is stored to ---------------------------------------------------------------------------------------------

PROTECTED = """
import ctypes, mmap
import ml_dtypes
import numpy as np
import gradclip
from gradclip._cpu import machine

libc = ctypes.CDLL(None, use_errno=True)

def blocks(dtype, count, changing):
    '''An array of so many blocks of 4096, all but some of which lie in memory that cannot be written.'''
    size = 4096 * np.dtype(dtype).itemsize
    memory = mmap.mmap(-1, size * count)
    a = np.frombuffer(memory, dtype)
    a[...] = np.linspace(-0.5, 0.5, a.size).astype(dtype)
    for i in changing:
        a[4096 * i + 6] = 3
    for i in set(range(count)) - set(changing):
        if libc.mprotect(ctypes.c_void_p(a.ctypes.data + size * i), size, mmap.PROT_READ):
            raise OSError(ctypes.get_errno(), "mprotect")
    return a

for threads in (1, 3):
    machine.set_threads(threads)
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
        if 4096 * np.dtype(dtype).itemsize % mmap.PAGESIZE:
            continue
        for count, changing in ((3, []), (4, [2]), (100, [0, 17, 63, 64]), (7, range(1, 7))):
            for bounds in ((-1, 1), (-1, 2), (-9, 1)):
                a = blocks(dtype, count, changing)
                assert gradclip.clip_by_value_(a, *bounds).clipped_count == len(changing)
                assert float(a.astype(np.float64).max()) <= bounds[1]
                a = blocks(dtype, count, changing)
                assert gradclip.clip_by_value(a, *bounds, out=a)[1].clipped_count == len(changing)
            a = blocks(dtype, 40, [6, 7, 38, 39])[::2]      # a block of these elements lies in two of memory
            assert gradclip.clip_by_value_({"a": a, "b": np.ones(3)}, -1, 2).clipped_count == 4
    a = blocks(np.float32, 40, [3])
    a[3 * 4096] = np.inf
    assert gradclip.clip_by_value_(a, 1.0).first_nonfinite == ("grads", 3 * 4096)
    assert a.max() == 1
    a = blocks(np.float32, 4, [])
    assert gradclip.clip_by_value_([a, np.array([np.nan, np.inf])], -1.0, np.inf).nonfinite == 2
print("alive")
"""


def test_a_block_in_which_nothing_changes_is_not_stored_to():
    """Not even the same bytes: its pages cannot be written."""
    pytest.importorskip("fcntl", reason="mprotect is POSIX")
    done = child_process.run(PROTECTED)
    assert (done.returncode, done.stdout.split()) == (0, ["alive"]), (done.returncode, done.stdout, done.stderr)


# ---- who is told before ----------------------------------------------------------------------------------------------


def tensors(torch):
    """Leaves of some groups each: all within the bounds, one beyond in the last group, many beyond, short ones."""
    many = torch.from_numpy(gradient(np.float32, 300_000))
    last = torch.full((200_000,), 0.1)
    last[-1] = 7.0
    shorts = [torch.full((3,), 0.2), torch.full((2, 2), -9.0), torch.full((100_000, 2), 0.3)[:, 0]]
    return [torch.full((500_000,), -0.25), last, many, *shorts], [0, 1, 1, 0, 1, 0]


@pytest.mark.parametrize("threads", [1, 3])
def test_pytorch_is_told_of_leaves_that_change_and_of_no_other(threads):
    torch = pytest.importorskip("torch")
    before = machine.get_threads()
    machine.set_threads(threads)
    try:
        leaves, changes = tensors(torch)
        arrays = [leaf.numpy().copy() for leaf in leaves]
        report = gradclip.clip_by_value_([np.array([4.0]), *leaves], 0.5)
        alone = gradclip.clip_by_value_([np.array([4.0]), *arrays], 0.5)
        assert [leaf._version for leaf in leaves] == [v + c for v, c in zip([0, 1, 0, 0, 0, 0], changes, strict=True)]
        assert found(report) == found(alone)
        assert all(bits(a.numpy()).tolist() == bits(b).tolist() for a, b in zip(leaves, arrays, strict=True))
    finally:
        machine.set_threads(before)


def test_pytorch_is_told_of_out():
    torch = pytest.importorskip("torch")
    leaves, changes = tensors(torch)
    versions = [leaf._version for leaf in leaves]
    out = [torch.empty_like(leaf) if i % 2 else leaf for i, leaf in enumerate(leaves)]
    made = [held(leaf.numpy().copy(), -0.5, 0.5)[0] for leaf in leaves]
    gradclip.clip_by_value(leaves, 0.5, out=out)
    told = [leaf._version - v for leaf, v in zip(out, [0 if i % 2 else v for i, v in enumerate(versions)], strict=True)]
    assert told == [1 if i % 2 else c for i, c in enumerate(changes)]
    assert all(bits(a.numpy()).tolist() == bits(m).tolist() for a, m in zip(out, made, strict=True))


@pytest.mark.parametrize("into", [False, True])
def test_nothing_is_written_if_pytorch_cannot_be_told(monkeypatch, into):
    torch = pytest.importorskip("torch")

    def fail(tensor):
        raise RuntimeError("cannot be told")

    monkeypatch.setattr(torch.autograd.graph, "increment_version", fail)
    leaves, _ = tensors(torch)
    plain, out = np.array([4.0, np.inf]), [np.zeros(2), *map(torch.zeros_like, leaves)]
    before = [leaf.clone() for leaf in leaves]
    call = partial(gradclip.clip_by_value, out=out) if into else gradclip.clip_by_value_
    with pytest.raises(RuntimeError, match="cannot be told"):
        call([plain, *leaves], 0.5)
    assert plain.tolist() == [4.0, math.inf]
    assert all(torch.equal(a, b) for a, b in zip(leaves, before, strict=True))
    assert not any(np.asarray(o).any() for o in out)
