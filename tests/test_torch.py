"""`gradclip.torch`: PyTorch's functions by their own tests, and beside PyTorch and exact arithmetic on random gradients."""

import gc
import math
import os
import subprocess
import sys
import threading
import warnings
from fractions import Fraction
from pathlib import Path

import pytest
from marks import slow

import gradclip

torch = pytest.importorskip("torch")

import gradclip.torch as ours  # noqa: E402
from gradclip.torch import clip_grad, patching  # noqa: E402

theirs = torch.nn.utils
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(gradclip.__file__).parents[1])}  # of a program that imports gradclip
FLOATS = torch.float16, torch.bfloat16, torch.float32, torch.float64
EPS = {torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float32: 2**-23, torch.float64: 2**-52}


def parameters(*grads):
    """Parameters that have these gradients; None stays None."""
    made = []
    for grad in grads:
        made.append(torch.nn.Parameter(torch.zeros((), dtype=torch.float32)))
        made[-1].grad = None
        if grad is not None:
            made[-1] = torch.nn.Parameter(torch.zeros_like(grad))
            made[-1].grad = grad
    return made


def random(dtype, seed=0, scale=1.0):
    """Some gradients of many shapes."""
    torch.manual_seed(seed)
    shapes = (3, 5), (7,), (2, 3, 4), (), (1,), (100,)
    return [(torch.randn(shape, dtype=torch.float64) * scale).to(dtype) for shape in shapes]


def both(grads):
    """The same gradients for PyTorch and for us."""
    return parameters(*[grad.clone() for grad in grads]), parameters(*[grad.clone() for grad in grads])


def norm_of(grads, order):
    """The norm in float64."""
    flat = torch.cat([grad.detach().to(torch.float64).flatten() for grad in grads])
    return float(torch.linalg.vector_norm(flat, order))


# ---- PyTorch's own tests, rewritten ---------------------------------------------------------------------------------


@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("norm_type", [0.5, 1.5, 2, 4, "inf"])
def test_clip_grad_norm(norm_type, foreach):
    layer, max_norm = torch.nn.Linear(10, 10), 2

    def norm(order):
        parts = [p.grad.abs() for p in layer.parameters()]
        return max(p.max() for p in parts) if order == math.inf else sum(p.pow(order).sum() for p in parts) ** (1 / order)

    def compare_scaling(grads):
        scales = torch.cat([p.grad.div(g).reshape(-1) for p, g in zip(layer.parameters(), grads, strict=True)])
        assert scales.std() < 1e-6
        return scales[0].item()

    grads = torch.arange(1.0, 101).view(10, 10), torch.ones(10).div(1000)
    for p, g in zip(layer.parameters(), grads, strict=True):
        p.grad = g.clone().view_as(p.data)
    before = norm(float(norm_type))
    found = ours.clip_grad_norm_(layer.parameters(), max_norm, norm_type=norm_type, foreach=foreach)
    assert found.item() == pytest.approx(float(before), rel=1e-5)
    assert float(norm(float(norm_type))) == pytest.approx(max_norm, rel=1e-5)
    assert 0 < compare_scaling(grads) < 1
    for p, g in zip(layer.parameters(), (torch.rand(10, 10).div(10000), torch.ones(10).div(500)), strict=True):
        p.grad.copy_(g)
    before = norm(float(norm_type))
    grads = [p.grad.clone() for p in layer.parameters()]
    found = ours.clip_grad_norm_(layer.parameters(), 1e6, norm_type=norm_type, foreach=foreach)
    assert found.item() == pytest.approx(float(before), rel=1e-5)
    assert compare_scaling(grads) == 1


@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("norm_type", [0.5, 1, 2, math.inf])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_error_if_nonfinite(bad, norm_type, foreach):
    for place in range(3):
        grads = [torch.ones(3), torch.ones(2, 2), torch.ones(1)]
        grads[place].view(-1)[0] = bad
        a, b = both(grads)
        with pytest.raises(RuntimeError) as want:
            theirs.clip_grad_norm_(a, 0.5, norm_type, True, foreach)
        with pytest.raises(RuntimeError) as found:
            ours.clip_grad_norm_(b, 0.5, norm_type, True, foreach)
        assert str(found.value) == str(want.value)
        with pytest.raises(RuntimeError, match="is non-finite, so it cannot be clipped"):
            ours.get_total_norm([p.grad for p in b], norm_type, True, foreach)
        assert all(torch.equal(p.grad, g) or p.grad.isnan().any() for p, g in zip(b, grads, strict=True))
        for max_norm in (0.5, 0.0, math.inf):
            a, b = both(grads)
            want = theirs.clip_grad_norm_(a, max_norm, norm_type, foreach=foreach)
            found = ours.clip_grad_norm_(b, max_norm, norm_type, foreach=foreach)
            torch.testing.assert_close(found, want, equal_nan=True)
            for p, q in zip(a, b, strict=True):
                torch.testing.assert_close(q.grad, p.grad, equal_nan=True)


@pytest.mark.parametrize("foreach", [None, False, True])
def test_clip_grad_value(foreach):
    layer = torch.nn.Linear(10, 10)
    for grads in ([torch.arange(-50.0, 50).view(10, 10).div_(5), torch.ones(10).mul_(2)], [torch.zeros(10, 10), None]):
        for p, g in zip(layer.parameters(), grads, strict=True):
            p.grad = None if g is None else g.clone().view_as(p.data)
        assert ours.clip_grad_value_(layer.parameters(), 2.5, foreach=foreach) is None
        for p in filter(lambda p: p.grad is not None, layer.parameters()):
            assert p.grad.max() <= 2.5
            assert p.grad.min() >= -2.5
    a, b = torch.nn.Parameter(torch.randn(10, 10)), torch.nn.Parameter(torch.randn(10, 10))
    a.grad = torch.full((10, 10), 2.0)
    b.grad = torch.full((10, 10), 2.0)
    ours.clip_grad_value_([a], 1.0)
    assert b.grad.max() == 2
    ours.clip_grad_value_(b, 1.0)  # a single tensor
    assert torch.equal(a.grad, b.grad)


def test_one_tensor_and_a_generator_are_taken_as_a_list_is():
    for call in (ours.clip_grad_norm_, lambda p, c: ours.clip_grads_with_norm_(p, c, torch.tensor(5.0))):
        for shape in (lambda p: p, lambda p: [p], lambda p: iter([p]), lambda p: (q for q in [p])):
            (p,) = parameters(torch.tensor([3.0, 4.0]))
            call(shape(p), 1.0)
            torch.testing.assert_close(p.grad, torch.tensor([0.6, 0.8]))


def test_an_empty_generator_is_a_warning_that_names_the_line():
    """As in PyTorch: an empty list is none."""
    for call in (ours.clip_grad_norm_, theirs.clip_grad_norm_):
        with pytest.warns(UserWarning, match="`parameters` is an empty generator, no gradient clipping will occur") as told:
            norm = call((p for p in ()), 1.0)
        assert told[0].filename == __file__
        assert (norm.item(), norm.dtype, norm.shape) == (0.0, torch.float32, ())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ours.clip_grad_norm_([], 1.0).item() == 0.0
        assert ours.clip_grad_norm_((p for p in parameters(None)), 1.0).item() == 0.0
        assert ours.get_total_norm([]).item() == 0.0
        assert ours.clip_grads_with_norm_([], 1.0, torch.tensor(1.0)) is None


def outcome(call):
    """What a call returns, or its error."""
    try:
        return call()
    except RuntimeError as error:
        return str(error)


def test_nothing_to_clip_is_what_it_is_in_pytorch():
    """Depending on its version, an error or a result."""
    empty = torch.ones(0), torch.ones(3)
    for call in (
        lambda module: module.clip_grad_value_([], 1.0),
        lambda module: module.clip_grad_value_(parameters(None), 1.0),
        lambda module: module.clip_grad_norm_([], 1.0, math.inf),
        lambda module: module.get_total_norm([], math.inf),
        lambda module: module.get_total_norm(empty, math.inf),
        lambda module: module.get_total_norm(empty[:1], math.inf, foreach=False),
        lambda module: module.clip_grad_norm_(parameters(*map(torch.clone, empty)), 1.0, math.inf),
        lambda module: module.clip_grad_norm_(parameters(*map(torch.clone, empty)), 1.0, 2.0),
        lambda module: module.get_total_norm(empty[:1], 1.0),
    ):
        assert outcome(lambda call=call: call(ours)) == outcome(lambda call=call: call(theirs))


def test_signatures_are_those_of_pytorch():
    import inspect

    for name in ("clip_grad_norm_", "clip_grad_value_", "get_total_norm", "clip_grads_with_norm_"):
        mine, other = inspect.signature(getattr(ours, name)), inspect.signature(getattr(theirs, name))
        assert [(p.name, p.default, p.kind) for p in mine.parameters.values()] == [
            (p.name, p.default, p.kind) for p in other.parameters.values()
        ]


# ---- beside PyTorch, and beside exact arithmetic --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, torch.complex64, torch.complex128])
@pytest.mark.parametrize("norm_type", slow([1, 2, 3, math.inf], [2, math.inf]))
def test_results_are_those_of_pytorch_to_rounding(dtype, norm_type):
    for max_norm in (1e-3, 1.0, 1e6, math.inf):
        a, b = both(random(dtype))
        want, found = theirs.clip_grad_norm_(a, max_norm, norm_type), ours.clip_grad_norm_(b, max_norm, norm_type)
        assert (found.dtype, found.shape, found.device) == (want.dtype, want.shape, want.device)
        assert not found.requires_grad
        u = EPS[want.dtype]
        torch.testing.assert_close(found, want, rtol=4 * u, atol=0)
        for p, q in zip(a, b, strict=True):
            torch.testing.assert_close(
                q.grad, p.grad, rtol=8 * u, atol=2**-22 if dtype is torch.float16 else 0
            )  # subnormal ones


@pytest.mark.parametrize("dtype", FLOATS)
def test_elements_are_within_an_ulp_of_the_exact_ones(dtype):
    """Also at the norm itself, where PyTorch's 1e-6 still clips, and where a norm is so small that it matters."""
    for scale, ratio in ((1.0, 0.1), (1.0, 1.0), (1e-3, 1.0), (1.0, 1 - 1e-7)):
        grads = random(dtype, 3, scale)
        squares = sum((Fraction(float(x)) ** 2 for g in grads for x in g.flatten()), Fraction(0))
        norm = math.sqrt(squares)
        made = parameters(*[grad.clone() for grad in grads])
        assert ours.clip_grad_norm_(made, norm * ratio).item() == pytest.approx(norm, rel=EPS[dtype])
        factor = norm * ratio / (norm + 1e-6)
        for p, g in zip(made, grads, strict=True):
            want = g.to(torch.float64) * factor
            torch.testing.assert_close(p.grad.to(torch.float64), want, rtol=0.51 * EPS[dtype] + 1e-15, atol=2**-25)


def test_gradients_are_clipped_where_pytorch_makes_them_zero():
    """Its sum of squares overflows, or its norm leaves the dtype of the gradients."""
    a, b = both([torch.full((4,), 1e20)])
    assert theirs.clip_grad_norm_(a, 1.0).item() == math.inf
    assert a[0].grad.tolist() == [0.0] * 4
    assert ours.clip_grad_norm_(b, 1.0).item() == pytest.approx(2e20)
    assert b[0].grad.tolist() == [0.5] * 4
    for dtype, value in ((torch.float16, 6e4), (torch.float64, 1e308), (torch.bfloat16, 3e38)):
        a, b = both([torch.full((100,), value, dtype=dtype)])
        norm = ours.clip_grad_norm_(b, 1.0, error_if_nonfinite=True)  # no element is Inf
        assert (norm.item(), norm.dtype) == (math.inf, dtype)
        torch.testing.assert_close(b[0].grad, torch.full((100,), 0.1, dtype=dtype))
    tiny = parameters(torch.full((4,), 1e-30))
    assert ours.clip_grad_norm_(tiny, 1.0).item() == pytest.approx(2e-30)


def test_the_norm_has_the_widest_dtype_of_the_gradients():
    kinds = [*FLOATS, torch.complex64, torch.complex128]
    for a in kinds:
        for b in kinds:
            grads = [torch.ones(3, dtype=a), torch.ones(2, dtype=b)]
            want, found = theirs.get_total_norm(grads), ours.get_total_norm(grads)
            assert found.dtype == want.dtype
            torch.testing.assert_close(found, want, rtol=max(EPS.get(t, 2**-23) for t in (a, b)), atol=0)


def test_total_norm_and_clipping_by_it_are_the_two_halves():
    for dtype in FLOATS:
        a, b = both(random(dtype))
        whole = parameters(*[p.grad.clone() for p in b])
        for f, x in ((theirs, a), (ours, b)):
            f.clip_grads_with_norm_(x, 0.5, f.get_total_norm([p.grad for p in x]))
        ours.clip_grad_norm_(whole, 0.5)
        for p, q, r in zip(a, b, whole, strict=True):
            torch.testing.assert_close(q.grad, p.grad, rtol=16 * EPS[dtype], atol=0)
            torch.testing.assert_close(q.grad, r.grad, rtol=2 * EPS[dtype], atol=0)
    for norm in (math.nan, math.inf, 0.0, 1e-7, torch.tensor(2, dtype=torch.int64)):
        for max_norm in (0.5, math.inf, -1.0, 0.0):
            a, b = both([torch.tensor([1.0, -2.0, 3.0])])
            total = norm if isinstance(norm, torch.Tensor) else torch.tensor(norm)
            for f, x in ((theirs, a), (ours, b)):
                f.clip_grads_with_norm_(x, max_norm, total)
            torch.testing.assert_close(b[0].grad, a[0].grad, equal_nan=True)
    weights = parameters(torch.ones(2))
    assert ours.get_total_norm([torch.nn.Parameter(torch.tensor([3.0, 4.0]))]).item() == 5.0
    with pytest.raises((TypeError, AttributeError)):  # as PyTorch, which adds to it and clamps it
        ours.clip_grads_with_norm_(weights, 1.0, "two")


@pytest.mark.parametrize("dtype", FLOATS)
def test_values_are_clipped_as_pytorch_clips_them(dtype):
    for bound in (0.5, 0.0, math.inf, 1e-3, -1.0, 1 / 3):
        a, b = both([*random(dtype), torch.tensor([math.nan, math.inf, -math.inf, -0.0], dtype=dtype)])
        theirs.clip_grad_value_(a, bound)
        ours.clip_grad_value_(b, bound)
        for p, q in zip(a, b, strict=True):
            torch.testing.assert_close(q.grad, p.grad, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("max_norm", [-1.0, math.nan, "1.5", torch.tensor(1.5)])
@pytest.mark.parametrize("norm_type", [0, -1.0, -math.inf, 2])
def test_unusual_numbers_mean_what_they_mean_in_pytorch(max_norm, norm_type):
    a, b = both([torch.tensor([1.0, -2.0, 0.5])])
    torch.testing.assert_close(
        ours.clip_grad_norm_(b, max_norm, norm_type), theirs.clip_grad_norm_(a, max_norm, norm_type), equal_nan=True
    )
    torch.testing.assert_close(b[0].grad, a[0].grad, equal_nan=True)


# ---- what is viewed, and what is left to PyTorch --------------------------------------------------------------------


def test_no_copy_is_made_and_autograd_hears_of_a_write():
    grads = [*random(torch.bfloat16), *random(torch.float32)]
    made = parameters(*grads)
    before = [(p.grad.data_ptr(), p.grad._version) for p in made]
    ours.clip_grad_norm_(made, 1e6)
    assert [(p.grad.data_ptr(), p.grad._version) for p in made] == before
    ours.clip_grad_norm_(made, 1.0)
    assert all(p.grad is g for p, g in zip(made, grads, strict=True))
    assert [(p.grad.data_ptr(), p.grad._version - 1) for p in made] == before


LAYOUTS = {
    "transposed": lambda g: g.t(),
    "channels_last": lambda g: g.reshape(3, 2, 2, 2).contiguous(memory_format=torch.channels_last),
    "every third": lambda g: torch.randn(24, 3)[:, ::3],
    "part of another": lambda g: torch.randn(50)[7:31].view(4, 6),
    "one dimension of length one": lambda g: g.view(1, 24).expand(1, 24),
    "unaligned to a line": lambda g: torch.randn(25)[1:],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_are_clipped_in_place(layout):
    made = LAYOUTS[layout](torch.randn(4, 6))
    a, b = parameters(torch.ones(3)), parameters(torch.ones(3))
    a.append(torch.nn.Parameter(torch.zeros(made.shape)))
    b.append(torch.nn.Parameter(torch.zeros(made.shape)))
    a[1].grad, b[1].grad = made.clone(), made
    want, found = theirs.clip_grad_norm_(a, 0.1), ours.clip_grad_norm_(b, 0.1)
    torch.testing.assert_close(found, want)
    assert b[1].grad is made
    torch.testing.assert_close(made, a[1].grad)


def test_sparse_gradients_are_clipped_by_their_values():
    """An element that is stored in parts counts as their sum. PyTorch's own functions know no sparse gradients."""
    for touch in ([1, 1, 2], [1, 2]):
        layers = []
        for sparse in (True, False):
            torch.manual_seed(0)
            layers.append(torch.nn.Embedding(6, 3, sparse=sparse))
            (layers[-1](torch.tensor(touch)) * torch.arange(3.0)).sum().backward()
        grad = layers[0].weight.grad
        total = ours.get_total_norm([grad])
        assert total == ours.get_total_norm([layers[1].weight.grad])
        norms = [ours.clip_grad_norm_(layer.parameters(), 0.7) for layer in layers]
        assert norms[0] == norms[1] == total
        assert layers[0].weight.grad is grad
        torch.testing.assert_close(grad.to_dense(), layers[1].weight.grad)
        for layer in layers:
            ours.clip_grads_with_norm_(layer.parameters(), 0.5, torch.tensor(1.0))
            ours.clip_grad_value_(layer.parameters(), 0.1)
        torch.testing.assert_close(grad.to_dense(), layers[1].weight.grad)


class Counted(torch.Tensor):
    """A subclass with arithmetic of its own, which no memory shows."""

    calls = 0

    @classmethod
    def __torch_function__(cls, function, kinds, args=(), kwargs=None):
        cls.calls += "mul" in getattr(function, "__name__", "")
        return super().__torch_function__(function, kinds, args, kwargs or {})


def test_what_cannot_be_viewed_is_left_to_pytorch():
    with torch.device("meta"):
        (p,) = parameters(torch.ones(3))
        norm = ours.clip_grad_norm_([p], 1.0)
        ours.clip_grad_value_([p], 1.0)
        ours.clip_grads_with_norm_([p], 1.0, norm)
        assert norm.device.type == ours.get_total_norm([p.grad]).device.type == "meta"
    shared = torch.full((4,), 3.0)
    a, b = parameters(shared.clone(), None), parameters(shared.clone(), None)
    for made in (a, b):
        made[1] = torch.nn.Parameter(torch.zeros(4))
        made[1].grad = made[0].grad  # counted twice, and multiplied twice
    torch.testing.assert_close(ours.clip_grad_norm_(b, 1.0), theirs.clip_grad_norm_(a, 1.0))
    torch.testing.assert_close(b[0].grad, a[0].grad)
    (p,) = parameters(torch.ones(3).as_subclass(Counted))
    assert ours.clip_grad_norm_([p], 0.1).item() == pytest.approx(3**0.5)
    assert Counted.calls
    for f in (theirs, ours):
        with pytest.raises(RuntimeError) as told:
            f.clip_grad_value_(parameters(torch.ones(2, dtype=torch.complex64)), 1.0)
        assert "omplex" in str(told.value)
    for f in (theirs, ours):
        with pytest.raises((RuntimeError, TypeError)):
            f.get_total_norm([torch.ones(2, dtype=torch.int32)])


def test_before_pytorch_2_6_two_functions_have_nothing_to_fall_back_on(monkeypatch):
    monkeypatch.setattr(clip_grad, "_their_get_total_norm", None)
    monkeypatch.setattr(clip_grad, "_their_clip_grads_with_norm_", None)
    (p,) = parameters(torch.tensor([3.0, 4.0]))
    assert ours.get_total_norm([p.grad]).item() == 5.0
    ours.clip_grads_with_norm_(p, 1.0, torch.tensor(5.0))
    torch.testing.assert_close(p.grad, torch.tensor([0.6, 0.8]))
    meta = torch.ones(2, device="meta")
    for call in (lambda: ours.get_total_norm(meta), lambda: ours.clip_grads_with_norm_(p, 1.0, meta)):
        with pytest.raises(TypeError, match=r"PyTorch before 2\.6 has no such function"):
            call()


def test_a_device_without_foreach_is_an_error_as_in_pytorch():
    with torch.device("meta"):
        made = parameters(torch.ones(3))
        for f in (theirs, ours):
            for call in (f.clip_grad_norm_, f.clip_grad_value_):
                with pytest.raises(RuntimeError, match="foreach=True was passed, but can't use the foreach API on meta"):
                    call(made, 1.0, foreach=True)


def test_gradients_of_a_graph_are_clipped_in_place():
    """As `create_graph=True` leaves them."""
    results = []
    for f in (theirs, ours):
        weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        (weight.grad,) = torch.autograd.grad((weight**3).sum(), weight, create_graph=True)
        assert weight.grad.requires_grad
        results.append((f.clip_grad_norm_([weight], 1.0).detach(), weight.grad.detach()))
        weight.grad = None
    torch.testing.assert_close(*results)
    (p,) = parameters(torch.tensor([3.0 + 4j]).conj())
    assert ours.clip_grad_norm_([p], 1.0).item() == 5.0
    torch.testing.assert_close(p.grad.resolve_conj(), torch.tensor([0.6 - 0.8j]))
    (p,) = parameters(torch.view_as_complex(torch.tensor([[3.0, 4.0]])).conj().imag)  # lazily negated
    assert ours.clip_grad_norm_([p], 1.0, foreach=False).item() == 4.0  # left to PyTorch
    assert p.grad.tolist() == pytest.approx([-1.0])


def test_fake_tensors_and_tracing_are_left_to_pytorch():
    fake = pytest.importorskip("torch._subclasses.fake_tensor")
    with fake.FakeTensorMode():
        (p,) = parameters(torch.ones(3))
        assert isinstance(ours.clip_grad_norm_([p], 1.0), fake.FakeTensor)
        assert isinstance(ours.get_total_norm([p.grad]), fake.FakeTensor)

    def step(p, c):
        norm = ours.clip_grad_norm_([p], c)
        ours.clip_grads_with_norm_([p], c, ours.get_total_norm([p.grad]))
        ours.clip_grad_value_([p], 0.5)
        return norm

    (p,) = parameters(torch.tensor([3.0, 4.0]))
    traced = torch.compile(step, backend="eager", fullgraph=True)
    assert traced(p, 1.0).item() == 5.0
    torch.testing.assert_close(p.grad, torch.tensor([0.5, 0.5]))


@pytest.mark.slow
def test_a_dtensor_of_one_rank(tmp_path):
    """`test_torch_dtensors.py` has more of them."""
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    program = """
import torch, torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard, init_device_mesh
import gradclip.torch
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
p = torch.nn.Parameter(DTensor.from_local(torch.zeros(2), mesh, [Shard(0)]))
p.grad = DTensor.from_local(torch.tensor([3.0, 4.0]), mesh, [Shard(0)])
norm = gradclip.torch.clip_grad_norm_([p], 1.0)
assert isinstance(norm, DTensor) and norm.full_tensor().item() == 5.0, norm
torch.testing.assert_close(p.grad.to_local(), torch.tensor([0.6, 0.8]))
gradclip.torch.clip_grads_with_norm_([p], 0.5, gradclip.torch.get_total_norm([p.grad]))
gradclip.torch.clip_grad_value_([p], 0.35)
torch.testing.assert_close(p.grad.to_local(), torch.tensor([0.3, 0.35]))
dist.destroy_process_group()
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr


def test_inference_tensors_are_clipped():
    with torch.inference_mode():
        (p,) = parameters(torch.tensor([3.0, 4.0]))
        assert ours.clip_grad_norm_([p], 1.0).item() == 5.0
        torch.testing.assert_close(p.grad, torch.tensor([0.6, 0.8]))


# ---- the module -----------------------------------------------------------------------------------------------------


def test_importing_gradclip_imports_neither_this_module_nor_pytorch(tmp_path):
    program = """
import sys, gradclip
assert not {"torch", "gradclip.torch"} & sys.modules.keys()
sys.modules["torch"] = None
try:
    import gradclip.torch
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path, env=ENVIRONMENT
    )
    assert "pip install torch" in done.stdout, done.stderr


def test_a_call_keeps_no_gradient_alive():
    import weakref

    made = parameters(torch.ones(5), torch.ones(4, dtype=torch.bfloat16))
    watched = [weakref.ref(p.grad) for p in made]
    ours.clip_grad_norm_(made, 1.0)
    for p in made:
        p.grad = None
    gc.collect()
    assert [w() for w in watched] == [None, None]


# ---- patch ----------------------------------------------------------------------------------------------------------


def places():
    """What PyTorch's names mean now."""
    module = torch.nn.utils.clip_grad
    names = "clip_grad_norm_", "clip_grad_value_", "get_total_norm", "clip_grads_with_norm_"
    here = [getattr(theirs, name) for name in names]
    return here + [getattr(module, name, None) or getattr(module, f"_{name}") for name in names]


MINE = [ours.clip_grad_norm_, ours.clip_grad_value_, ours.get_total_norm, ours.clip_grads_with_norm_] * 2


def test_patches_may_be_nested_and_are_undone_once():
    before = places()
    with ours.patch():
        assert places() == MINE
        with ours.patch() as inner:
            assert places() == MINE
            inner.undo()
            assert places() == MINE
        again = ours.patch()
    assert places() == MINE  # one is in force
    again.undo()
    again.undo()
    assert places() == before
    with pytest.raises(KeyError), ours.patch():
        raise KeyError
    assert places() == before


def test_a_patch_that_nobody_holds_stays_in_force():
    before = places()
    ours.patch()
    gc.collect()
    with ours.patch():
        pass
    assert places() == MINE
    for kept in set(patching._patches):
        kept.undo()
    assert places() == before


def test_a_function_that_was_put_over_ours_stays(monkeypatch):
    other = lambda *_: None  # noqa: E731
    before = places()
    monkeypatch.setattr(theirs, "clip_grad_value_", theirs.clip_grad_value_)
    with ours.patch():
        theirs.clip_grad_value_ = other
    assert theirs.clip_grad_value_ is other
    monkeypatch.undo()
    assert places() == before


def test_patches_of_several_threads_hold_until_the_last_is_undone():
    before, wrong, start = places(), [], threading.Barrier(8)

    def work():
        start.wait()
        for _ in range(200):
            with ours.patch():
                if places() != MINE:
                    wrong.append(places())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert places() == before


def test_pytorchs_own_functions_work_while_patched():
    """What is left to them does not come back to ours."""
    with ours.patch():
        a, b = both([torch.tensor([1.0, -2.0, 0.5])])
        assert theirs.clip_grad_norm_(a, 1.0, 0).item() == 1.0  # left to PyTorch: how many gradients are not 0
        with pytest.warns(FutureWarning, match="deprecated"):
            theirs.clip_grad_norm(b, 1.0)
    torch.testing.assert_close(theirs.get_total_norm([b[0].grad]), torch.tensor(1.0))
