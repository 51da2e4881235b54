"""docs/pytorch.md: its programs run, and what its last table says holds."""

import copy
import math
import re
import warnings
from pathlib import Path

import pytest

import gradclip

torch = pytest.importorskip("torch")

import gradclip.torch  # noqa: E402
from gradclip.torch import clip_grad_norm_  # noqa: E402

PAGE = (Path(__file__).parents[1] / "docs" / "pytorch.md").read_text(encoding="utf-8")


def model_and_loss():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    return model, 100 * model(torch.randn(16, 4)).pow(2).mean()


@pytest.mark.parametrize("program", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_programs_run(program):
    model, loss = model_and_loss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names = {"model": model, "loss": loss, "optimizer": optimizer, "torch": torch, "gradclip": gradclip, "train": lambda: None}
    exec(program, names)
    if "norm = " in program:
        assert names["norm"] > 1.0
        assert gradclip.global_norm([p.grad for p in model.parameters()]) == pytest.approx(1.0, abs=1e-5)


def tied():
    table = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    (table * 1 + table * 2).sum().backward()
    model = torch.nn.Module()
    model.first = model.second = table
    assert clip_grad_norm_(model.parameters(), 1.0).item() == pytest.approx(math.sqrt(18))
    assert table.grad.tolist() == pytest.approx([0.5**0.5] * 2, rel=1e-5)


def frozen():
    model, _ = model_and_loss()
    model[0].requires_grad_(False)
    unused = torch.nn.Parameter(torch.ones(2))
    loss = model(torch.ones(1, 4)).sum()
    loss.backward()
    norm = gradclip.global_norm([p.grad for p in model[2].parameters()])
    assert norm > 1.0
    assert clip_grad_norm_([*model.parameters(), unused], 1.0).item() == pytest.approx(norm)
    assert unused.grad is model[0].weight.grad is None


def accumulated():
    p = torch.nn.Parameter(torch.zeros(2))
    for values in ([3.0, 0.0], [0.0, 4.0]):
        (p * torch.tensor(values)).sum().backward()
    assert clip_grad_norm_(p, 1.0).item() == 5.0
    (p * torch.tensor([0.0, 4.2])).sum().backward()
    assert clip_grad_norm_(p, 1.0).item() == pytest.approx(math.hypot(0.6, 5.0), rel=1e-5)


def hooked():
    p = torch.nn.Parameter(torch.zeros(2))
    p.register_hook(lambda grad: grad * 10)
    (p * torch.tensor([3.0, 4.0])).sum().backward()
    assert clip_grad_norm_(p, 1.0).item() == 50.0


def idle():
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.ones(2)
    clip_grad_norm_(p, 10.0)
    assert p.grad._version == 0


def told():
    p = torch.nn.Parameter(torch.zeros(2))
    grad = p.grad = torch.tensor([3.0, 4.0])
    address, weight = grad.data_ptr(), torch.ones(2, requires_grad=True)
    product = weight * grad  # keeps the gradient for its backward pass
    clip_grad_norm_(p, 1.0)
    assert p.grad is grad
    assert grad.data_ptr() == address
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def create_graph():
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    (p.grad,) = torch.autograd.grad((p**3).sum(), p, create_graph=True)
    clip_grad_norm_(p, 1.0)
    assert p.grad.norm().item() == pytest.approx(1.0, rel=1e-5)
    p.grad = None


def channels_last():
    layer = torch.nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    layer(torch.randn(1, 3, 5, 5).to(memory_format=torch.channels_last)).pow(2).sum().backward()
    layer.weight.grad = grad = (100 * layer.weight.grad).to(memory_format=torch.channels_last)
    clip_grad_norm_(layer.parameters(), 1.0)
    assert layer.weight.grad is grad
    assert grad.is_contiguous(memory_format=torch.channels_last)
    assert gradclip.global_norm([p.grad for p in layer.parameters()]) == pytest.approx(1.0, rel=1e-5)


def of_complex():
    p = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    p.grad = torch.tensor([3 + 4j, 0j])
    norm = clip_grad_norm_(p, 1.0)
    assert (norm.item(), norm.dtype) == (5.0, torch.float32)
    torch.testing.assert_close(p.grad, torch.tensor([0.6 + 0.8j, 0j]))


def mixed():
    grads = [torch.tensor([3.0], dtype=torch.bfloat16), torch.tensor([4.0], dtype=torch.float64)]
    params = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad
    norm = clip_grad_norm_(params, 1.0)
    assert (norm.item(), norm.dtype) == (5.0, torch.float64)
    assert [p.grad.item() for p in params] == pytest.approx([0.6, 0.8], rel=2**-8)


def used_up():
    parameters = (p for p in model_and_loss()[0].parameters())
    list(parameters)
    with pytest.warns(UserWarning, match="empty generator"):
        assert clip_grad_norm_(parameters, 1.0).item() == 0.0


def nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clip_grad_norm_(copy.deepcopy(model_and_loss()[0]).parameters(), 1.0).item() == 0.0


WHEN = {
    "a weight is used twice": tied,
    "a parameter is frozen": frozen,
    "gradients are accumulated": accumulated,
    "a hook of a tensor": hooked,
    "nothing has to be clipped": idle,
    "something is clipped": told,
    "the backward pass ran with": create_graph,
    "a gradient is in `channels_last`": channels_last,
    "a gradient is complex": of_complex,
    "gradients have several dtypes": mixed,
    "the parameters are a generator": used_up,
    "there is no gradient at all": nothing,
}


@pytest.mark.parametrize("when", WHEN)
def test_what_happens_when(when):
    WHEN[when]()


def test_each_row_of_the_table_has_a_test():
    rows = re.findall(r"^\| (.*?) \|", PAGE.split("## What happens when")[1], re.MULTILINE)[2:]
    assert len(rows) == len(WHEN)
    assert all(row.startswith(when) for row, when in zip(rows, WHEN, strict=True))
