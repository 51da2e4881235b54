"""Kill ``gradclip clip`` at random moments, or let it fail, and look at what is left on the disk.

    python tests/faults/files.py --seed 1 --times 1000 --way kill
    python tests/faults/files.py --seed 1 --times 1000 --way kill --fork
    python tests/faults/files.py --seed 1 --times 1000 --way full
    python tests/faults/files.py --seed 1 --times 1000 --way corrupt

kill: by SIGKILL, SIGTERM or SIGINT, at any moment from the start of the process to its end. With --fork the command runs in a
fork of a process that has imported everything, so that more of the moments are those of its work. full: the largest file that
may be written is too small, as when a disk is full. corrupt: some bytes of the file are others, or its end is missing.

The input must be byte for byte what it was, and the output what it was before or complete. Nothing else may be left in the
folder: after SIGKILL alone, which a program cannot notice, a new file of a name of its own (`.gradclip-...`) may be, which on
Linux is complete."""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

if __name__ == "__main__":  # as pytest does by its setting `pythonpath`
    sys.path[:0] = [str(Path(__file__).parents[1])]
from gradient_files import SUFFIXES, write

from gradclip import cli

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
OLD = b"what was there before"


@functools.cache
def given(suffix, size):
    """The bytes of a file of gradients."""
    text = suffix not in (".npz", ".npy", ".safetensors")
    values = np.random.default_rng(0).standard_normal((4, (min(size, 20_000) if text else size) // 4))
    values = values if text else values.astype(np.float32)
    grads = {f"w{i}": v for i, v in enumerate(values)} if suffix in (".npz", ".safetensors") else {"grads": values}
    with tempfile.TemporaryDirectory() as folder:
        return write(Path(folder) / f"grads{suffix}", grads).read_bytes()


@functools.cache
def complete(suffix, size, begin):
    """The bytes of a complete output, and the seconds that a command takes which nobody kills."""
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, f"grads{suffix}"), Path(folder, f"out{suffix}")
        path.write_bytes(given(suffix, size))
        for _ in range(2):  # the first one may import what is missing
            started = time.perf_counter()
            assert ended(begin(["clip", str(path), "--max-norm", "1", "--out", str(out)])) == 0
        return out.read_bytes(), time.perf_counter() - started


class Folder:
    """A folder with a file of gradients, and perhaps an output of an earlier time."""

    def __init__(self, rng, folder, size):
        """Write the input in a random format."""
        self.path = Path(folder)
        self.suffix = SUFFIXES[rng.integers(len(SUFFIXES))]
        self.input = self.path / f"grads{self.suffix}"
        self.given = given(self.suffix, size)
        self.input.write_bytes(self.given)
        self.output = self.input if rng.random() < 0.3 else self.path / f"out{self.suffix}"
        if self.output != self.input and rng.random() < 0.5:
            self.output.write_bytes(OLD)
        self.before = self.output.read_bytes() if self.output.exists() else None

    @property
    def arguments(self):
        """What the command is given."""
        return ["clip", str(self.input), "--max-norm", "1", "--out", str(self.output)]

    def outcome(self, complete, may_leave=False):
        """Look at the folder; return whether the output is as before or complete, and how many files are left over."""
        now = self.output.read_bytes() if self.output.exists() else None
        assert now in (self.before, complete), f"{self.output} is neither what it was nor complete"
        assert self.output == self.input or self.input.read_bytes() == self.given, f"{self.input} has changed"
        left = [p for p in self.path.iterdir() if p not in (self.input, self.output)]
        assert all(p.name.startswith(".gradclip-") for p in left), left
        assert may_leave or not left, left
        assert not hasattr(os, "O_TMPFILE") or all(p.read_bytes() == complete for p in left), left
        return "complete" if now == complete else "as before", len(left)


def start(arguments):
    """Start the command; return its process id."""
    command = [sys.executable, "-m", "gradclip", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid


def fork(arguments, limit=None):
    """Start the command in a fork of this process; return its process id."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            status = cli.main(arguments)
    except KeyboardInterrupt:
        status = 130
    finally:
        os._exit(status)


def ended(child):
    """Wait for a process; return its exit status, negative by a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(rng, folder, begin):
    """Kill one command at a random moment."""
    one = Folder(rng, folder, 400_000)
    made, seconds = complete(one.suffix, 400_000, begin)
    child = begin(one.arguments)
    time.sleep(1.2 * seconds * rng.random())
    number = SIGNALS[rng.integers(3)]
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)
    status = ended(child)
    outcome, left = one.outcome(made, may_leave=number == signal.SIGKILL)
    how = f"killed by {number.name}" if status else "finished before"
    return f"{how}: {outcome}{', a file of its own left' * bool(left)}"


def full(rng, folder, begin):
    """Let one command write no more than some bytes into a file."""
    one = Folder(rng, folder, 20_000)
    made, _ = complete(one.suffix, 20_000, fork)
    status = ended(fork(one.arguments, limit=int(rng.integers(len(made) * 5 // 4))))
    assert status in (0, 2), status
    outcome, _ = one.outcome(made)
    assert (outcome == "complete") == (status == 0)
    return f"exit status {status}: {outcome}"


def corrupt(rng, folder, begin):
    """Give one command a file in which some bytes are others, or that ends early."""
    one = Folder(rng, folder, 2000)
    content = bytearray(one.given)
    if rng.random() < 0.3:
        del content[int(rng.integers(len(content))) :]
    else:
        most = len(content) if rng.random() < 0.5 else min(len(content), 300)  # the head says what the rest means
        for _ in range(rng.integers(1, 6)):
            at = int(rng.integers(most)) if rng.random() < 0.7 else -1 - int(rng.integers(most))
            content[at] = int(rng.integers(256))
    one.input.write_bytes(content)
    one.given = bytes(content)
    if one.output == one.input:
        one.before = one.given
    status = ended(fork(one.arguments))
    assert status in (0, 1, 2), status
    if status == 0:  # a file of other numbers
        one.outcome(one.output.read_bytes())
        return "exit status 0: read, and written"
    one.outcome(None if one.before is None else one.before)
    return f"exit status {status}: refused"


WAYS = {"kill": kill, "full": full, "corrupt": corrupt}


def outcomes(seed, times, way, begin=fork):
    """Return what came of so many commands."""
    rng = np.random.default_rng(seed)
    counts = collections.Counter()
    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            counts[WAYS[way](rng, folder, begin)] += 1
    return counts


def main():
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--times", type=int, default=1000)
    parser.add_argument("--way", choices=WAYS, default="kill")
    parser.add_argument("--fork", action="store_true", help="in forks of a process that has imported everything")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts in the background ignore it
    counts = outcomes(options.seed, options.times, options.way, fork if options.fork else start)
    print(f"{counts.total():,} commands (seed {options.seed}, {options.way}): every input as it was, no output half written")
    for what, count in counts.most_common():
        print(f"  {count:6,} {what}")


if __name__ == "__main__":
    main()
