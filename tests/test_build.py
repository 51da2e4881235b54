"""The build rule, as far as it can be tried without building."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gradclip

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(os.name == "nt", reason="CC is not looked at there")
@pytest.mark.parametrize("compiler", ["/nonexistent/cc -O2", "false"])
def test_without_a_compiler_the_build_says_what_is_missing(compiler, tmp_path):
    pytest.importorskip("Cython")
    pytest.importorskip("setuptools")
    command = ["setup.py", "-q", "build_ext", f"--build-temp={tmp_path}/temp", f"--build-lib={tmp_path}/lib"]
    environment = {**os.environ, "CC": compiler}
    done = subprocess.run([sys.executable, *command], check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
    said = done.stderr[done.stderr.index("error:") :]
    assert done.returncode
    assert f"no C compiler that works: {compiler.split()[0]} (" in said
    assert all(word in said for word in ("apt install", "xcode-select", "Visual Studio", "CC"))
    assert len(said.splitlines()) < 10
    assert "Traceback" not in done.stderr
    assert "OpenMP" not in done.stderr


@pytest.mark.skipif(not (ROOT / ".github").exists(), reason="an sdist has no recipe")
def test_the_recipe_for_conda_forge_says_what_pyproject_says():
    tomllib = pytest.importorskip("tomllib")  # since Python 3.11
    recipe = (ROOT / ".github/conda-forge/recipe.yaml").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = [re.sub(r"\s", "", line) for line in re.findall(r"^ +- (.*)$", recipe, re.MULTILINE)]
    host = recipe[recipe.index("  host:") : recipe.index("  run:")]
    assert f'version: "{gradclip.__version__}"' in recipe
    assert {"setuptools>=77", "cython>=3.1,<3.3", "numpy>=2"} == set(project["build-system"]["requires"]) <= set(listed)
    assert all(f"- {name}" in host for name in ("python", "pip", "setuptools", "cython", "numpy"))
    assert project["project"]["dependencies"] == ["numpy>=2"]
    assert f"- gradclip = {project['project']['scripts']['gradclip']}" in recipe
    assert project["project"]["description"] in recipe
    assert f"license: {project['project']['license']}\n" in recipe
