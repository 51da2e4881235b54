"""README.md: the programs of its second screen print what stands beside them. Its other examples are doctests."""

import re
from pathlib import Path

import numpy as np
import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"\*\*(\w+)\*\*.*?```python\n(.*?)```", README, re.DOTALL)


def of_pytorch():
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    return {"model": model}


def of_jax():
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    grads = {"w": jax.numpy.array([3.0, 4.0])}
    return {"optax": optax, "grads": grads, "params": grads}


def of_numpy():
    return {"grads": {"w": np.array([3.0, 4.0])}}


def test_there_is_one_for_each():
    assert [name for name, _ in PROGRAMS] == ["PyTorch", "JAX", "NumPy"]


@pytest.mark.parametrize("names", [of_pytorch, of_jax, of_numpy])
def test_programs_print_what_they_say(names, capsys):
    program = dict(PROGRAMS)[{of_pytorch: "PyTorch", of_jax: "JAX", of_numpy: "NumPy"}[names]]
    exec(program, names())
    assert capsys.readouterr().out == program.splitlines()[-1].partition(")  # ")[2] + "\n"
