"""CuPy leaves: devices, streams, memory, what is waited for, and what is refused."""

import gc
import itertools
import signal
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from gpu_leaves import (
    assert_same_report,
    batch,
    host,
    is_stand_in,
    is_watched,
    journal,
    model,
    need_devices,
    on_gpu,
    there,
    waits,
)
from interrupts import interrupted

import gradclip


@pytest.mark.parametrize("policy", ["skip", "zero", "propagate"])
def test_nothing_is_waited_for_until_the_report_is_read(cupy, policy):
    if not is_watched(cupy):
        pytest.skip("a GPU does not count waits")
    g, params, samples = there(cupy, model()), there(cupy, model(seed=1)), there(cupy, batch())
    before = waits(cupy)
    reports = [
        gradclip.clip_by_global_norm_(g, 1.0, nonfinite=policy),
        gradclip.clip_by_global_norm(g, 0.5, nonfinite=policy)[1],
        gradclip.clip_by_norm_(g, 0.1, nonfinite=policy),
        gradclip.normalize_(g, nonfinite=policy),
        gradclip.clip_adaptive_(g, params, 1e-6, nonfinite=policy),
        gradclip.clip_per_sample_(samples, 1.0, nonfinite=policy),
        gradclip.per_sample_clip_sum(samples, 1.0, nonfinite=policy)[1],
        gradclip.sgd_step_(params, g, 0.1, 1e-9, nonfinite=policy),
        gradclip.clip_by_value_(g, 1e-12),
        gradclip.clip_by_global_norm_(g, 1e-13, nonfinite=policy, strict=True),
        gradclip.sgd_step_(params, g, 0.1, 1e-14, nonfinite=policy, strict=True),
    ]
    assert waits(cupy) == before
    assert [report.clipped for report in reports] == [True] * len(reports)
    assert waits(cupy) > before


def test_a_call_is_three_kernels(cupy):
    if not is_watched(cupy):
        pytest.skip("a GPU does not tell what is launched")
    g, params = there(cupy, model()), there(cupy, model(seed=1))
    journal(cupy)
    for call in (
        lambda: gradclip.clip_by_global_norm_(g, 1.0, nonfinite="skip"),
        lambda: gradclip.clip_by_global_norm(g, 0.5, out=params, nonfinite="zero"),
        lambda: gradclip.sgd_step_(params, g, 0.1, 1.0, nonfinite="skip"),
        lambda: gradclip.normalize_(g, nonfinite="propagate"),
    ):
        call()
        assert [name for name, _ in journal(cupy)] == ["measure_squares", "fold_and_decide", "write_leaves"]


@pytest.mark.parametrize("policy", ["skip", "zero", "raise"])
def test_whichever_block_ends_last_the_bits_are_the_same(cupy, policy):
    """Sums of 520 units are folded by three thread blocks, of which the last one decides."""
    rng = np.random.default_rng(7)
    leaves = [rng.standard_normal(3).astype("float32") for _ in range(520)]
    want, report = gradclip.clip_by_global_norm(leaves, 2.0, nonfinite=policy)
    for _ in range(4):
        g = there(cupy, leaves)
        found = gradclip.clip_by_global_norm_(g, 2.0, nonfinite=policy)
        assert_same_report(report, found)
        assert all(host(a).tobytes() == b.tobytes() for a, b in zip(g, want, strict=True))
    if policy == "skip":  # of one bad element anywhere, every thread block must know
        leaves[350][1] = np.inf
        g = there(cupy, leaves)
        assert gradclip.clip_by_global_norm_(g, 2.0, nonfinite="skip").skipped
        assert all(host(a).tobytes() == b.tobytes() for a, b in zip(g, leaves, strict=True))


def test_raise_waits_for_the_total_alone(cupy):
    if not is_watched(cupy):
        pytest.skip("a GPU does not count waits")
    g = there(cupy, model())
    before = waits(cupy)
    gradclip.clip_by_global_norm_(g, 1.0)
    assert waits(cupy) == before + 1


def test_bad_leaves(cupy):
    a = on_gpu(cupy, np.ones(10, np.float32))
    for bad in (np.ones(3, np.int32), np.ones(3, bool), np.ones(3, np.uint8)):
        with pytest.raises(TypeError, match=r"1: dtype .* cannot be clipped"):
            gradclip.clip_by_global_norm_([a, cupy.asarray(bad)], 1.0)
    with pytest.raises(ValueError, match="0 and 1 share memory"):
        gradclip.clip_by_global_norm_([a, a[2:4]], 1.0)
    with pytest.raises(ValueError, match="0 and 1 share memory"):
        gradclip.clip_by_global_norm_([a[::2], a[4:]], 1.0)
    gradclip.clip_by_global_norm_([a[::2], a[1::2]], 1e9)
    with pytest.raises(ValueError, match="grads: grads has shape"):
        gradclip.clip_by_global_norm(a, 1.0, out=a[:3])
    with pytest.raises(ValueError, match="different devices"):
        gradclip.clip_by_global_norm(a, 1.0, out=np.ones(10, np.float32))
    with pytest.raises(ValueError, match="different devices"):
        gradclip.sgd_step_(np.ones(10, np.float32), a, 0.1)
    with pytest.raises(TypeError, match="complex numbers have no order"):
        gradclip.clip_by_value_(on_gpu(cupy, np.ones(3, np.complex64)), 1.0)
    assert host(a).tolist() == [1] * 10


def test_other_objects_with_memory_on_a_gpu(cupy):
    class Foreign:
        def __init__(self, array, read_only=False):
            self.array, self.read_only = array, read_only

        @property
        def __cuda_array_interface__(self):
            shown = dict(self.array.__cuda_array_interface__)
            return {**shown, "data": (shown["data"][0], self.read_only)}

    a = on_gpu(cupy, np.array([3.0, 4.0]))
    assert gradclip.clip_by_global_norm_({"w": Foreign(a)}, 1.0).norm == 5.0
    assert host(a).tolist() == [0.6000000000000001, 0.8]
    with pytest.raises(ValueError, match="w: read-only"):
        gradclip.clip_by_global_norm_({"w": Foreign(a, True)}, 1.0)
    assert gradclip.global_norm([Foreign(a, True)]) == 1.0


def test_memory_of_a_device_that_is_not_the_current_one(cupy):
    """CuPy's asarray would copy it."""
    need_devices(cupy, 2)

    class Foreign:
        def __init__(self, array):
            self.__cuda_array_interface__ = array.__cuda_array_interface__

    with cupy.cuda.Device(1):
        a = cupy.asarray(np.array([3.0, 4.0]))
    gradclip.clip_by_global_norm_([Foreign(a)], 1.0, nonfinite="skip")
    assert host(a).tolist() == [0.6000000000000001, 0.8]


def test_a_sample_at_the_threshold_on_a_device_that_is_not_the_current_one(cupy):
    """What decides it exactly is fetched in its device's stream."""
    need_devices(cupy, 2)
    with cupy.cuda.Device(1):
        a = cupy.asarray(np.array([[3.0, 4.0], [6.0, 8.0]]))
    assert gradclip.per_sample_clip_sum([a], 5.0)[1].clipped_count == 1


def test_elements_that_are_not_aligned_are_refused(cupy):
    memory = cupy.asarray(np.zeros(17, np.uint8))
    odd = memory[1:].view(np.float32)
    with pytest.raises(ValueError, match="grads: elements are not aligned"):
        gradclip.global_norm(odd)
    spaced = np.ndarray((2,), np.float32, np.zeros(12, np.uint8), 0, (6,))
    with pytest.raises(ValueError, match="grads: elements are not aligned"):
        gradclip.global_norm(on_gpu(cupy, spaced))


def test_a_foreign_byte_order_is_refused(cupy):
    if not is_stand_in(cupy):
        pytest.skip("CuPy makes no such array")
    with pytest.raises(TypeError, match="1: byte order"):
        gradclip.global_norm([on_gpu(cupy, np.ones(2)), on_gpu(cupy, np.ones(2, ">f4"))])


@pytest.fixture(params=["plain", "of a subclass"])
def torch_tensor(cupy, monkeypatch, request):
    """A maker of what looks like a CUDA tensor, of a PyTorch that works in a stream of its own; its `stream`."""

    class Tensor:
        is_cuda, is_cpu, requires_grad, layout = True, False, False, "strided"
        stream = cupy.cuda.Stream(non_blocking=True)
        detach = lambda self: self  # noqa: E731
        is_conj = is_neg = is_inference = lambda self: False

        def __init__(self, *values):
            with self.stream:
                self.array = on_gpu(cupy, np.array(values))
            self.dtype, self.device = self.array.dtype, SimpleNamespace(index=0)
            self.__cuda_array_interface__ = {**self.array.__cuda_array_interface__, "stream": None}  # as PyTorch has it
            self.shape, self.stride, self.storage_offset = self.array.shape, lambda: (1,), lambda: 0
            self.data_ptr, self.is_contiguous = lambda: self.array.data.ptr, lambda: True
            self.numel, self.element_size = lambda: self.array.size, lambda: self.array.itemsize
            self.get_device = lambda: 0
            storage = SimpleNamespace(device=SimpleNamespace(type="cuda"), nbytes=lambda: self.array.nbytes)
            self.untyped_storage = lambda: storage

        def tolist(self):
            with self.stream:
                return host(self.array).tolist()

    Tensor.__module__ = "torch"
    module = ModuleType("torch")
    module.strided, module.bfloat16, module.from_dlpack = "strided", "bfloat16", lambda array: array
    module.float64 = np.dtype(np.float64)
    module.Tensor = Tensor if request.param == "plain" else object
    module.cuda = SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=Tensor.stream.ptr))
    module.told = []
    module.autograd = SimpleNamespace(graph=SimpleNamespace(increment_version=module.told.extend))
    monkeypatch.setitem(sys.modules, "torch", module)
    return Tensor


def test_all_of_a_call_with_tensors_runs_in_pytorchs_stream(cupy, torch_tensor):
    t, skip = torch_tensor, {"nonfinite": "skip"}
    g = [t(3.0, 4.0)]
    ours = there(cupy, [np.ones(2)])
    cupy.cuda.get_current_stream().synchronize()
    calls = [
        lambda: gradclip.clip_by_global_norm_(g, 1.0, **skip),
        lambda: gradclip.clip_by_global_norm(g, 0.5, **skip)[1],
        lambda: gradclip.clip_by_global_norm(g, 0.5, strict=True)[1],
        lambda: gradclip.clip_by_value(g, 0.1)[1],
        lambda: gradclip.clip_adaptive_(g, [t(1.0, 1.0)], **skip),
        lambda: gradclip.clip_adaptive(ours, [t(1.0, 1.0)], **skip)[1],
        lambda: gradclip.sgd_step_([t(1.0, 1.0)], g, 0.1, 1e-3, **skip),
        lambda: gradclip.per_sample_clip_sum(g, 1e-3, **skip)[1],
        lambda: gradclip.per_sample_clip_sum(g, 1e-3)[1],
    ]
    told_autograd = [g, [], [], [], g, [], "params", [], []]
    before = cupy.cuda.get_current_stream()
    for call, tensors in zip(calls, told_autograd, strict=True):
        journal(cupy)
        del sys.modules["torch"].told[:]
        assert call().clipped
        assert len(sys.modules["torch"].told) == 1 if tensors == "params" else sys.modules["torch"].told == tensors
        assert cupy.cuda.get_current_stream() is before
        if is_watched(cupy):
            told = journal(cupy)
            assert {stream for _, stream in told} == {t.stream.ptr}
            assert {"write_leaves", "write_leaves_in_float32", "sum_samples"} & dict(told).keys()
            assert "fetch" in dict(told)
    here = [np.array([3.0, 4.0])]
    gradclip.clip_by_global_norm_(here, 1.0)
    gradclip.clip_adaptive_(here, [np.ones(2)])
    assert g[0].tolist() == here[0].tolist()


def test_tensors_of_pytorch_itself(cupy):
    """On a GPU: views of any strides and dtypes, in place and as new tensors, as on the processor."""
    torch = pytest.importorskip("torch")
    if is_stand_in(cupy) or not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    kinds = torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128
    numbers = torch.arange(1, 97, dtype=torch.float64).reshape(8, 12) / 7
    for kind in kinds:
        base = numbers.to(kind)
        views = [base.clone(), base.clone().t(), base.clone()[2:, ::3], base.clone()[:0], base[0, 0].clone()]
        tensors = [view.cuda() if view.is_contiguous() else view.t().cuda().t() for view in views]
        views.append(base.clone()[:, 1:7])
        tensors.append(base.clone().cuda()[:, 1:7])
        versions = [tensor._version for tensor in tensors]
        new, report = gradclip.clip_by_global_norm(tensors, 1.0)
        want = gradclip.clip_by_global_norm_(views, 1.0)
        assert_same_report(want, report)
        assert_same_report(want, gradclip.clip_by_global_norm_(tensors, 1.0))
        for view, tensor, made, version in zip(views, tensors, new, versions, strict=True):
            assert torch.equal(view, tensor.cpu())
            assert torch.equal(view, made.cpu())
            assert tensor._version > version
    weight = torch.ones(3, device="cuda", requires_grad=True)
    with pytest.raises(TypeError, match="1: .*requires grad"):
        gradclip.clip_by_global_norm_([tensors[0], weight * 2], 1.0)


SKIP = {"nonfinite": "skip"}
FORMS = {
    "axis": lambda g, p, o: gradclip.clip_by_norm_(g, 1.0, axis=1, **SKIP),
    "strict": lambda g, p, o: gradclip.clip_by_global_norm_(g, 1.0, strict=True),
    "values": lambda g, p, o: gradclip.clip_by_value_(g, 0.5),
    "adaptive": lambda g, p, o: gradclip.clip_adaptive_(g, p, 0.1, **SKIP),
    "step": lambda g, p, o: gradclip.sgd_step_(o, g, 0.1, 1.0, **SKIP),
    "out": lambda g, p, o: gradclip.clip_by_global_norm(g, 1.0, out=o, **SKIP)[1],
    "samples": lambda g, p, o: gradclip.clip_per_sample_(g, 1.0, mask=[True] * 7 + [False]),
    "sum": lambda g, p, o: gradclip.per_sample_clip_sum(g, 1.0, out=[x[0] for x in o])[1],
    "no samples": lambda g, p, o: gradclip.per_sample_clip_sum([x[:0] for x in g], 1.0, out=[x[0] for x in o])[1],
    "measured": lambda g, p, o: gradclip.apply_clip_(g, gradclip.measure(g), 1.0, strict=True),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("turned", [False, True])
def test_all_functions_take_tensors_of_pytorch_itself(cupy, name, turned):
    torch = pytest.importorskip("torch")
    if is_stand_in(cupy) or not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    numbers = torch.arange(1, 97, dtype=torch.float64).reshape(8, 12) / 7
    here = [[numbers.float() + k, numbers.half().t().reshape(8, 12) + k] for k in range(3)]
    gpu = [[x.cuda() for x in leaves] for leaves in here]
    if turned:
        here, gpu = ([[x.t().contiguous().t() for x in leaves] for leaves in trees] for trees in (here, gpu))
    assert_same_report(FORMS[name](*here), FORMS[name](*gpu))
    for leaves, on_the_gpu in zip(here, gpu, strict=True):
        assert all(torch.equal(x, y.cpu()) for x, y in zip(leaves, on_the_gpu, strict=True))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to itself")
def test_ctrl_c_leaves_nothing_half_done(cupy, monkeypatch):
    """Wherever in gradclip it comes: leaves of the host and of two devices are all written, or none is."""
    need_devices(cupy, 2)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # of finalizers in which it comes, and is lost
    found, line, over = set(), 0, 0
    used = []  # an interrupted call may leave its device and stream current
    for device in range(2):
        with cupy.cuda.Device(device):
            used.append(cupy.cuda.get_current_stream())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have background jobs ignore it
    try:
        while over < 20:
            line += 1
            mixed = [np.array([3.0])]
            for device, value in enumerate((4.0, 0.0)):
                with cupy.cuda.Device(device):
                    used[device].use()
                    mixed.append(cupy.asarray(np.array([value])))
            call = lambda mixed=mixed: gradclip.clip_by_global_norm_(mixed, 1.0)  # noqa: E731
            with cupy.cuda.Device(0):
                came = interrupted(call, line, lambda: signal.raise_signal(signal.SIGINT), others=False)
            over = 0 if came else over + 1
            values = [host(a).tolist() for a in mixed]
            assert values in ([[3.0], [4.0], [0.0]], [[0.6000000000000001], [0.8], [0.0]]), line
            found.add((came, values[0] == [3.0]))
    finally:
        signal.signal(signal.SIGINT, before)
        for device in range(2):
            with cupy.cuda.Device(device):
                used[device].use()
    assert line > 100
    assert found == {(True, True), (True, False), (False, False)}


def test_large_thresholds_are_not_kept(cupy):
    """Of few units they are: an optimizer may ask for the same at each step."""
    used = cupy.get_default_memory_pool().used_bytes
    few = [on_gpu(cupy, np.ones(1)) for _ in range(20)]
    if used() == 0:
        pytest.skip("no pool that counts")
    many = [on_gpu(cupy, np.ones(1)) for _ in range(5000)]
    rows, params = (on_gpu(cupy, np.ones((5000, 2), np.float32)) for _ in range(2))

    def call(leaves, first):
        gradclip.clip_by_norm_(leaves, [first + i for i in range(len(leaves))], nonfinite="skip")
        gradclip.clip_adaptive_(rows, params, first, nonfinite="skip")

    call(few, 1.0), call(many, 1.0)  # tables of leaves are kept
    before = used()
    for first in (2.0, 3.0):
        call(many, first)
    assert used() == before
    call(few, 2.0)
    assert used() > before


def test_an_unread_report_keeps_no_leaf_alive_and_outlives_the_nesting(cupy):
    g = there(cupy, {"a": np.array([3.0, np.nan]), "b": [np.array([4.0]), None]})
    alive = weakref.ref(g["a"])
    report = gradclip.clip_by_global_norm_(g, 1.0, nonfinite="zero")
    adapted = gradclip.clip_adaptive_(g, there(cupy, {"a": np.ones(2), "b": [np.ones(1), None]}), 0.1, nonfinite="zero")
    g.clear()
    gc.collect()
    assert alive() is None
    assert (report.first_nonfinite, report.nonfinite, report.norms.tolist()) == (("a", 1), 1, [3.0, 4.0])
    assert adapted.norms.tolist() == [0.6000000000000001, 0.8]


def test_a_report_read_by_several_threads(cupy):
    for _ in range(5):
        report = gradclip.clip_by_global_norm_(on_gpu(cupy, np.full(9, 5.0)), 1.0, nonfinite="skip")
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _, r=report: (r.norm, r.clipped), range(8))) == {(15.0, True)}


def test_nothing_is_written_when_a_device_has_no_room(cupy, monkeypatch):
    need_devices(cupy, 2)
    asarray, left = cupy.asarray, 0

    def limited(make):
        def made(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                raise MemoryError
            return make(*args, **kwargs)

        return made

    for name in ("asarray", "empty", "empty_like"):
        monkeypatch.setattr(cupy, name, limited(getattr(cupy, name)))
    for request in itertools.count(1):
        gpu = []
        for device in (0, 1):
            with cupy.cuda.Device(device):
                gpu.append(asarray(np.full(4, 5.0)))
        left = request
        try:
            gradclip.clip_by_global_norm_(gpu, 1.0)
        except MemoryError:
            assert [host(a).tolist() for a in gpu] == [[5.0] * 4] * 2
        else:
            break
    assert request > 4
