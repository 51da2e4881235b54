"""Ranks of PyTorch's gloo: processes that run a program together, and end together."""

import os
import subprocess
import sys
from pathlib import Path

import gradclip

LIMIT = 300  # seconds, of which importing PyTorch takes the most on a busy machine
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "GRADCLIP_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(gradclip.__file__).parents[1]),
}


def run(program, size, folder):
    """Return what each rank printed. The program is given its rank, their number and a file at which they meet."""
    outputs = [folder / f"output{rank}" for rank in range(size)]  # files: a full pipe would hold up a rank, and so all
    started = []
    try:
        for rank, output in enumerate(outputs):
            command = [sys.executable, "-W", "ignore", str(program), str(rank), str(size), str(folder / "meeting")]
            with output.open("w") as stream:
                started.append(subprocess.Popen(command, env=ENVIRONMENT, stdout=stream, stderr=subprocess.STDOUT))
        ended = [process.wait(timeout=LIMIT) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert ended == [0] * size, [output.read_text()[-2000:] for output in outputs]
    return [output.read_text() for output in outputs]
