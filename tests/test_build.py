"""The build rule, as far as it can be tried without building."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
