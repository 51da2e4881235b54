"""One rank of tests/test_demo_ranks.py, under mpiexec: a short demo. Writes norms and losses of both trainings, bit for bit.

python demo_process.py STEPS PICTURE FOLDER"""

import sys
from pathlib import Path

from gradclip.cli import demo
from gradclip.cli.sharing import started_together

if __name__ == "__main__":
    runs = demo.run(sys.argv[2], steps=int(sys.argv[1]))
    told = " ".join(x.hex() for run in runs for x in (*run.norms, *run.losses))
    (Path(sys.argv[3]) / f"rank{started_together().rank}").write_text(told, encoding="utf-8")
