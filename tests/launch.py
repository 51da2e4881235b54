"""Ranks: processes that run a program together, and end together, over PyTorch's gloo or over MPI."""

import importlib.util
import os
import shutil
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
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_ALLOW_RUN_AS_ROOT": "1",
    "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
LIBRARIES = {
    "torch": importlib.util.find_spec("torch") is not None,
    "mpi": importlib.util.find_spec("mpi4py") is not None and MPIEXEC is not None,
}

INTO_A_FILE = """if True:
    import runpy, sys
    from pathlib import Path
    from mpi4py import MPI
    sys.stdout = Path(sys.argv[1], f"output{MPI.COMM_WORLD.rank}").open("w")
    del sys.argv[:2]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def by_gloo(size, folder, program, *arguments):
    """Return what each rank printed. The program is also given its rank, their number and a file at which they meet."""
    outputs = [folder / f"output{rank}" for rank in range(size)]  # files: a full pipe would hold up a rank, and so all
    started = []
    try:
        for rank, output in enumerate(outputs):
            command = [sys.executable, "-W", "ignore", program, *arguments, str(rank), str(size), folder / "meeting"]
            with output.open("w") as stream:
                started.append(subprocess.Popen(command, env=ENVIRONMENT, stdout=stream, stderr=subprocess.STDOUT))
        ended = [process.wait(timeout=LIMIT) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert ended == [0] * size, [output.read_text()[-2000:] for output in outputs]
    return [output.read_text() for output in outputs]


def by_mpiexec(size, folder, program, *arguments):
    """Return what each rank printed: into a file of its own, since long lines of several ranks would come out mixed."""
    command = [MPIEXEC, "-n", str(size), sys.executable, "-c", INTO_A_FILE, folder, program, *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [(folder / f"output{rank}").read_text() for rank in range(size)]
