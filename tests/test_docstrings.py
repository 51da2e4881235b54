"""The docstrings of all public names are complete in numpydoc's sense; pyproject.toml says which checks hold, and why."""

import inspect
import re
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from types import FunctionType, GetSetDescriptorType

import pytest

import gradclip

validate = pytest.importorskip("numpydoc.validate").validate
get_doc_object = pytest.importorskip("numpydoc.docscrape").get_doc_object
CHECKED = pytest.importorskip("numpydoc.hooks.validate_docstrings").parse_config(Path(__file__).parents[1])


MEMBERS = FunctionType | classmethod | staticmethod | property | GetSetDescriptorType  # the last: of a compiled class


def public():
    """Yield each public name and its object: those of the package and its public modules, and what their classes have."""
    modules = [value for name in gradclip.__all__ if inspect.ismodule(value := getattr(gradclip, name))]
    if find_spec("torch") is not None:
        modules.append(import_module("gradclip.torch"))
    if find_spec("jax") is not None and find_spec("optax") is not None:
        modules.append(import_module("gradclip.jax"))
    for module in (gradclip, *modules):
        for name in module.__all__:
            value = getattr(module, name)
            if module is not gradclip and getattr(gradclip, name, None) is value:
                continue
            if callable(value):
                yield f"{module.__name__}.{name}", value
            own = inspect.getmro(value)[::-1] if inspect.isclass(value) else ()
            members = [vars(cls).items() for cls in own if cls.__module__.startswith("gradclip")]
            for member, found in dict(chain(*members)).items():
                if not member.startswith("_") and isinstance(found, MEMBERS):
                    yield f"{module.__name__}.{name}.{member}", getattr(value, member)


FOUND = {name: value for name, value in public() if not (CHECKED["exclude"] and re.search(CHECKED["exclude"], name))}


def test_names_are_those_of_the_package():
    assert {"gradclip.ClipReport.scale", "gradclip.thresholds.Quantile.next_threshold", "gradclip.num_threads"} < FOUND.keys()


@pytest.mark.parametrize("name", FOUND)
def test_docstring_is_complete(name):
    found = validate(get_doc_object(FOUND[name]))  # by a name it would find the module gradclip.measure, not the function
    assert [error for error in found["errors"] if error[0] in CHECKED["checks"]] == []


@pytest.mark.parametrize(
    "name", [name for name in FOUND if re.fullmatch(r"gradclip\.(thresholds\.|torch\.|jax\.)?\w+(?<!Warning)", name)]
)
def test_functions_and_classes_have_an_example(name):
    assert ">>> " in inspect.getdoc(FOUND[name])
