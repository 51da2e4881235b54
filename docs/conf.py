"""Sphinx: ``python -m pip install -e ".[docs]" && python -m sphinx -W docs docs/_build``."""

from importlib.util import find_spec

project = "gradclip"
autodoc_mock_imports = [name for name in ("torch", "jax", "optax") if not find_spec(name)]  # for gradclip.torch, gradclip.jax
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "numpydoc"]
html_theme = "furo"
exclude_patterns = ["_build"]
numpydoc_show_class_members = False
autodoc_typehints = "none"  # types are in the sections below a signature; there `**norm` stays spelled out
