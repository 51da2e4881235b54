"""Sphinx: ``python -m pip install -e ".[docs]" && python -m sphinx -W docs docs/_build``."""

import os
import re
from importlib.util import find_spec
from pathlib import Path

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

project = "gradclip"
ROOT = Path(__file__).parents[1]
release = re.search('"(.*)"', (ROOT / "gradclip" / "_version.py").read_text(encoding="utf-8"))[1]
autodoc_mock_imports = [name for name in ("torch", "jax", "optax") if not find_spec(name)]  # for gradclip.torch, gradclip.jax
extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_design",
]
if os.environ.get("GRADCLIP_DOCS_ONLINE"):  # other projects' names become links; to know them, their sites must be reached
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
    }
default_role = "py:obj"  # a name between single backticks is a link, where it is one of ours
myst_enable_extensions = ["colon_fence"]
autosummary_generate = False  # its tables point to what stands on the same page
exclude_patterns = ["_build"]
numpydoc_show_class_members = False
autodoc_typehints = "none"  # types are in the sections below a signature; there `**norm` stays spelled out
html_theme = "furo"
html_title = f"gradclip {release}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_theme_options = {
    "source_repository": "https://github.com/gradclip/gradclip/",
    "source_branch": "main",
    "source_directory": "docs/",
}


def inline_math(translator, node):
    """Write a formula as MathML, which browsers show by themselves: no script and no font comes from elsewhere."""
    translator.body.append(convert(node.astext()))
    raise SkipNode


def displayed_math(translator, node):
    """Write a formula on lines of its own, which a narrow screen can scroll."""
    formula = convert(node.astext(), display="block")
    translator.body.append(f'<div class="math" style="overflow-x: auto">{formula}</div>')
    raise SkipNode


def cython_source(app, module):
    """The source of a Cython module, which Sphinx does not find by itself, and the lines of its classes."""
    path = ROOT / (module.replace(".", "/") + ".pyx")
    if not path.exists():
        return None
    code = path.read_text(encoding="utf-8")
    classes = {line: re.match(r"cdef class (\w+)", text) for line, text in enumerate(code.splitlines(), 1)}
    return code, {found[1]: ("class", line, line) for line, found in classes.items() if found}


def setup(app):
    """Make both known."""
    app.connect("viewcode-find-source", cython_source)
    app.add_html_math_renderer("mathml", (inline_math, None), (displayed_math, None))
