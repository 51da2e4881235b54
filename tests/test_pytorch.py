"""Tensors of PyTorch's: weights are no gradients, autograd hears of every write, and what has no memory is refused."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gradclip

torch = pytest.importorskip("torch")

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(gradclip.__file__).parents[1])}  # of a program that imports gradclip

HALF = gradclip.measure(np.array([3.0, 4.0]))

IN_PLACE = {
    "global norm": lambda g: gradclip.clip_by_global_norm_(g, 1.0),
    "norm": lambda g: gradclip.clip_by_norm_(g, 1.0),
    "value": lambda g: gradclip.clip_by_value_(g, 0.5),
    "normalize": lambda g: gradclip.normalize_(g, 0.5),
    "adaptive": lambda g: gradclip.clip_adaptive_(g, [torch.ones(2, 2)], 0.1),
    "per sample": lambda g: gradclip.clip_per_sample_(g, 0.5),
    "apply": lambda g: gradclip.apply_clip_(g, HALF, 1.0),
}

READING = {
    "the norm": gradclip.global_norm,
    "measure": gradclip.measure,
    "new, global norm": lambda g: gradclip.clip_by_global_norm(g, 1.0),
    "new, norm": lambda g: gradclip.clip_by_norm(g, 1.0),
    "new, value": lambda g: gradclip.clip_by_value(g, 0.5),
    "new, normalize": lambda g: gradclip.normalize(g, 0.5),
    "new, adaptive": lambda g: gradclip.clip_adaptive(g, [torch.ones(2, 2)], 0.1),
    "new, per sample": lambda g: gradclip.clip_per_sample(g, 0.5),
    "sums": lambda g: gradclip.per_sample_clip_sum(g, 0.5),
    "new, apply": lambda g: gradclip.apply_clip(g, HALF, 1.0),
    "step": lambda g: gradclip.sgd_step_([torch.ones(2, 2)], g, 0.1, 1.0),
}

INTO = {
    "global norm": lambda g, out: gradclip.clip_by_global_norm(g, 1.0, out=out),
    "norm": lambda g, out: gradclip.clip_by_norm(g, 1.0, out=out),
    "value": lambda g, out: gradclip.clip_by_value(g, 0.5, out=out),
    "normalize": lambda g, out: gradclip.normalize(g, 0.5, out=out),
    "adaptive": lambda g, out: gradclip.clip_adaptive(g, [torch.ones(2, 2)], 0.1, out=out),
    "per sample": lambda g, out: gradclip.clip_per_sample(g, 0.5, out=out),
    "apply": lambda g, out: gradclip.apply_clip(g, HALF, 1.0, out=out),
    "sums": lambda g, out: gradclip.per_sample_clip_sum([torch.ones(3, 2, 2)], 0.5, out=out),
    "step": lambda g, out: gradclip.sgd_step_(out, g, 0.1, 1.0),
}


def gradient():
    return torch.full((2, 2), 3.0)


# ---- weights ------------------------------------------------------------------------------------------------


class Weights(torch.nn.Parameter):
    pass


PARAMETERS = {
    "weights": lambda: torch.nn.Parameter(gradient()),
    "frozen": lambda: torch.nn.Parameter(gradient(), requires_grad=False),
    "a subclass": lambda: Weights(gradient(), requires_grad=False),
    "not made yet": torch.nn.parameter.UninitializedParameter,
}


@pytest.mark.parametrize("kind", PARAMETERS)
@pytest.mark.parametrize("call", (IN_PLACE | READING).values(), ids=[*IN_PLACE, *READING])
def test_parameters_are_not_gradients(call, kind):
    good, weights = gradient(), PARAMETERS[kind]()
    with pytest.raises(TypeError, match=r"^layer/1: .*Parameter.*\.grad"):
        call({"layer": [good, weights]})
    assert good.tolist() == [[3.0, 3.0]] * 2
    if kind != "not made yet":
        assert weights.tolist() == [[3.0, 3.0]] * 2


@pytest.mark.parametrize("call", INTO)
def test_results_do_not_go_into_parameters(call):
    weights = torch.nn.Parameter(gradient(), requires_grad=False)
    if call == "step":  # but a step does
        assert INTO[call]([gradient()], [weights]).clipped
        assert weights.tolist() != gradient().tolist()
        return
    with pytest.raises(TypeError, match=r"^0: .*Parameter.*\.grad"):
        INTO[call]([gradient()], [weights])
    assert weights.tolist() == gradient().tolist()


def test_a_generator_of_parameters_and_a_module():
    layer = torch.nn.Linear(2, 1)
    for grads, path in ((layer.parameters(), "0"), (dict(layer.named_parameters()), "weight"), (layer, "grads")):
        with pytest.raises(TypeError, match=rf"^{path}: .*\.grad"):
            gradclip.global_norm(grads)
    with pytest.raises(TypeError, match=r"^grads: .*Sequential.*\.grad"):
        gradclip.global_norm(torch.nn.Sequential(layer))


def test_parameters_are_what_they_are_as_params():
    layer = torch.nn.Linear(2, 3)
    grads = [torch.ones(3, 2), torch.ones(3)]
    assert gradclip.clip_adaptive_(grads, layer.parameters(), 1e-3).clipped
    assert gradclip.clip_adaptive(grads, list(layer.parameters()), 1e-3)[1].norm > 0
    with pytest.raises(TypeError, match=r"^0: .*requires grad.*p\.data"):
        gradclip.sgd_step_(layer.parameters(), grads, 0.1)


def test_buffers_are_tensors_like_others():
    buffer = torch.nn.Buffer(gradient())
    assert gradclip.clip_by_global_norm_([buffer], 3.0).norm == 6.0
    assert buffer.tolist() == [[1.5, 1.5]] * 2


# ---- autograd -----------------------------------------------------------------------------------------------


def squared():
    """A tensor that the backward pass still needs, and the loss made of it."""
    x = torch.full((2, 2), 3.0, requires_grad=True)
    y = x * 1.0
    return y, (y * y).sum()


@pytest.mark.parametrize("call", IN_PLACE.values(), ids=IN_PLACE)
def test_backward_notices_what_was_written(call):
    y, loss = squared()
    assert call([y.detach()]).clipped
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("call", INTO.values(), ids=INTO)
def test_backward_notices_what_was_written_as_out(call):
    y, loss = squared()
    call([gradient()], [y.detach()])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_backward_notices_what_was_written_in_other_dtypes_and_views():
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.complex64):
        tensor = torch.ones(2, 4, dtype=dtype)
        view = tensor[:, ::2].T
        gradclip.clip_by_global_norm_({"a": [np.ones(3), None, view]}, 0.1)
        assert tensor._version == view._version == 1


NOTHING = {
    "below": lambda g: gradclip.clip_by_global_norm_(g, 100.0),
    "measured": lambda g: gradclip.clip_by_global_norm_(g, math.inf),
    "within": lambda g: gradclip.clip_by_value_(g, 5.0),
    "skipped": lambda g: gradclip.clip_by_global_norm_([*g, torch.tensor([math.nan])], 1.0, nonfinite="skip"),
    "read": gradclip.global_norm,
    "new": lambda g: gradclip.clip_by_global_norm(g, 1.0),
    "step": lambda g: gradclip.sgd_step_([torch.ones(2, 2)], g, 0.1, 1.0),
    "kept out": lambda g: gradclip.clip_by_global_norm([torch.full((2, 2), math.nan)], 1.0, out=g, nonfinite="skip"),
    "itself": lambda g: gradclip.clip_by_global_norm(g, 100.0, out=g),
    "raised": lambda g: refused([*g, torch.tensor([math.inf])]),
}


def refused(grads):
    with pytest.raises(gradclip.NonFiniteGradientError):
        gradclip.normalize_(grads)


@pytest.mark.parametrize("call", NOTHING.values(), ids=NOTHING)
def test_what_was_not_written_is_not_told(call):
    y, loss = squared()
    call([y.detach()])
    loss.backward()
    assert y._version == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda g: gradclip.clip_by_norm_(g, 2.0),
        lambda g: gradclip.clip_by_value_(g, 2.0),
        lambda g: gradclip.clip_adaptive_(g, [torch.ones(2, 1), torch.ones(2), torch.ones(2, 2)], 2.0),
    ],
)
def test_only_leaves_that_were_written_are_told(call):
    small, large, row = torch.ones(2, 1), torch.ones(2) * 3, torch.tensor([[0.1, 0.1], [5.0, 5.0]])
    call([small, large, row])
    assert (small._version, large._version, row._version) == (0, 1, 1)


def test_inference_tensors_have_nobody_to_be_told():
    with torch.inference_mode():
        tensor = gradient()
        gradclip.clip_by_global_norm_(tensor, 3.0)
    gradclip.clip_by_global_norm_([tensor, gradient()], 1.5)
    assert gradclip.global_norm(tensor) < 1.5


def test_parameters_in_a_list_of_pytorchs_and_a_module_where_an_array_is_meant():
    params = torch.nn.ParameterList([torch.full((2,), 3.0), torch.full((2,), 4.0)])
    grads = [torch.ones(2), torch.ones(2)]
    report = gradclip.clip_adaptive_(grads, params, 0.1)
    assert report.clipped_count == 2
    with pytest.raises(TypeError, match=r"is a module; pass its parameters .* list\(model.parameters\(\)\)"):
        gradclip.clip_adaptive_(torch.ones(2), torch.nn.Linear(2, 2))


@pytest.mark.parametrize("found", ["a tensor at a time", "nothing"])
def test_what_older_versions_of_pytorch_have(monkeypatch, found):
    """Theirs takes one tensor; or there is none."""
    ours = torch.autograd.graph.increment_version

    def one(tensor):
        if not isinstance(tensor, torch.Tensor) or tensor.is_inference():
            raise RuntimeError("increment_version expect a Tensor as input")
        ours(tensor)

    if found == "nothing":
        monkeypatch.delattr(torch.autograd.graph, "increment_version")
    else:
        monkeypatch.setattr(torch.autograd.graph, "increment_version", one)
    with torch.inference_mode():
        inference = gradient()
    leaves = [gradient(), torch.tensor(3.0), torch.ones(4)[::2], torch.zeros(0), inference]
    expected = [leaf.tolist() for leaf in gradclip.clip_by_global_norm(leaves, 0.1)[0]]
    gradclip.clip_by_global_norm_(leaves, 0.1)
    assert [leaf.tolist() for leaf in leaves] == expected
    assert all(leaf._version > 0 for leaf in leaves[:4])


# ---- memory that is not there -------------------------------------------------------------------------------


def released():
    tensor = gradient()
    tensor.untyped_storage().resize_(0)
    return tensor


def cut_short():
    tensor = torch.ones(4, 4)
    view = tensor[2:, 2:]
    tensor.untyped_storage().resize_(60)  # one element less than the view needs
    return view


def fake():
    with torch._subclasses.FakeTensorMode():
        return gradient()


GONE = {
    "released": (released, "released"),
    "brain": (lambda: released_as(torch.bfloat16), "released"),
    "cut short": (cut_short, "60 of 64 bytes"),
    "meta": (lambda: torch.ones(2, 2, device="meta"), "meta"),
    "fake": (fake, "fake"),
}


def released_as(dtype):
    tensor = gradient().to(dtype)
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize("kind", GONE)
@pytest.mark.parametrize("call", (IN_PLACE | READING).values(), ids=[*IN_PLACE, *READING])
def test_tensors_without_memory_are_refused(call, kind):
    make, message = GONE[kind]
    good = gradient()
    with pytest.raises(TypeError, match=f"^layer/1: .*{message}"):
        call({"layer": [good, make()]})
    assert good.tolist() == gradient().tolist()


@pytest.mark.parametrize("kind", GONE)
@pytest.mark.parametrize("call", INTO.values(), ids=INTO)
def test_results_do_not_go_where_there_is_no_memory(call, kind):
    make, message = GONE[kind]
    with pytest.raises(TypeError, match=f"^0: .*{message}"):
        call([gradient()], [make()])


def test_parameters_without_memory_are_refused():
    with pytest.raises(TypeError, match="^0: .*released"):
        gradclip.clip_adaptive_([gradient()], [released()])


def test_views_need_what_they_reach_and_no_more():
    tensor = torch.ones(4, 4)
    view, empty = tensor[:2, 1::2], tensor[4:]
    tensor.untyped_storage().resize_(32)  # the last element of the view ends there
    assert gradclip.global_norm([view, empty, tensor[:0]]) == 2.0
    expanded = torch.ones(1).expand(10**9)
    with pytest.raises(ValueError, match="share memory"):
        gradclip.clip_by_global_norm_(expanded, 1.0)


# ---- bfloat16, which NumPy does not know ----------------------------------------------------------------------


def test_bfloat16_needs_no_other_package(tmp_path):
    """Nor is one imported, in any of the library's functions."""
    program = """
import sys
sys.modules["ml_dtypes"] = None
import torch, gradclip
b = torch.tensor([3.0, 4.0], dtype=torch.bfloat16)
new = [gradclip.clip_by_global_norm(b, 1.0)[0], gradclip.clip_by_norm([b], 1.0, strict=True)[0][0],
       gradclip.clip_by_value({"a": b}, 1.0)[0]["a"], gradclip.normalize(b)[0], gradclip.clip_per_sample(b, 1.0)[0],
       gradclip.per_sample_clip_sum(b[:, None], 1.0)[0], gradclip.clip_adaptive(b, b)[0],
       gradclip.apply_clip(b, gradclip.measure(b), 1.0)[0]]
assert all(x.dtype is torch.bfloat16 for x in new), new
print([x.float().tolist() for x in new])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    numbers = eval(done.stdout)
    assert numbers[0] == pytest.approx([0.6, 0.8], rel=2**-8)
    assert numbers[2] == [1.0, 1.0]
    assert numbers[5][0] <= 2.0


def test_bfloat16_meets_that_of_ml_dtypes():
    brain = pytest.importorskip("ml_dtypes").bfloat16
    grad, out = torch.tensor([3.0, 4.0], dtype=torch.bfloat16), np.zeros(2, brain)
    gradclip.clip_by_global_norm(grad, 1.0, out=out)
    assert out.tolist() == pytest.approx([0.6, 0.8], rel=2**-8)
    assert gradclip.clip_by_global_norm(grad, 1.0, out=np.zeros(2, np.float32))[0].tolist() == pytest.approx([0.6, 0.8])
    with pytest.raises(ValueError, match=r"dtype bfloat16, out has \(2,\) and complex64"):
        gradclip.clip_by_global_norm(grad, 1.0, out=np.zeros(2, np.complex64))
    with pytest.raises(gradclip.NonFiniteGradientError, match="1: nan at flat index 1"):
        gradclip.clip_by_global_norm_([grad, torch.tensor([1.0, math.nan], dtype=torch.bfloat16)], 1.0)
    with pytest.raises(TypeError, match="cannot be clipped"):  # the same bits, but not known to be numbers
        gradclip.global_norm(np.zeros(2, [("bfloat16", np.uint16)]))


@pytest.mark.parametrize("strict", [False, True])
def test_bfloat16_gives_the_same_bits_by_either_name(strict):
    brain = pytest.importorskip("ml_dtypes").bfloat16
    torch.manual_seed(0)
    tensor = torch.randn(64, 5).to(torch.bfloat16)
    array = tensor.view(torch.int16).numpy().view(brain).copy()
    calls = [
        lambda g: gradclip.clip_by_global_norm(g, 1.0, strict=strict),
        lambda g: gradclip.clip_by_norm(g, 0.3, axis=1, strict=strict),
        lambda g: gradclip.clip_per_sample(g, 0.3, strict=strict),
        lambda g: gradclip.per_sample_clip_sum(g, 0.3),
        lambda g: gradclip.clip_by_global_norm(g, gradclip.global_norm(g), strict=strict),
    ]
    for call in calls:
        (a, first), (b, second) = call(tensor), call(array)
        assert a.view(torch.int16).tolist() == b.view(np.int16).tolist()
        assert (first.norm, first.scale) == (second.norm, second.scale)


# ---- memory that is not all there -----------------------------------------------------------------------------


def test_memory_that_is_too_short_is_refused_before_it_is_read():
    for cut in (0, 4):
        grad = torch.ones(4)
        grad.untyped_storage().resize_(cut)
        with pytest.raises(TypeError, match="storage"):
            gradclip.global_norm([torch.ones(2), grad])
    assert gradclip.global_norm([torch.ones(2), torch.ones(0), torch.ones(3, 0)]) == math.sqrt(2)
    overlapping = torch.ones(1).expand(3)
    assert gradclip.global_norm(overlapping) == math.sqrt(3)
    with pytest.raises(ValueError, match="share memory"):
        gradclip.clip_by_global_norm_(overlapping, 1.0)
