"""The examples in docstrings of compiled modules, which pytest does not collect."""

import doctest
from importlib import import_module

import pytest

import gradclip


def is_compiled(name):
    """Whether a public name is a class or function of a compiled module."""
    module = getattr(getattr(gradclip, name), "__module__", None)
    return module is not None and not import_module(module).__file__.endswith(".py")


COMPILED = [name for name in gradclip.__all__ if is_compiled(name)]


def test_the_report_is_compiled():
    assert "ClipReport" in COMPILED


@pytest.mark.parametrize("name", COMPILED)
def test_examples_of_compiled_names(name):
    found = [test for test in doctest.DocTestFinder().find(getattr(gradclip, name), name, module=False) if test.examples]
    assert found
    for test in found:
        assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0
