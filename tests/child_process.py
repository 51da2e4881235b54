"""Python code in a process of its own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import gradclip


def run(code, **environment):
    """The finished process that ran the code."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def script(path, *arguments):
    """The finished process that ran a script of the repository."""
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(Path(gradclip.__file__).parents[1])}
    command = [sys.executable, str(root / path), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
