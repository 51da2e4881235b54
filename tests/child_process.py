"""Python code in a process of its own."""

import os
import subprocess
import sys
import textwrap


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
