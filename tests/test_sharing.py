"""How passes are shared out beside other programs: the account, and workers that nobody waits for (kernels/share.c, pool.c).

No test measures time: the account gets times that are made up, and minus infinity in it has workers do everything."""

import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from child_process import run
from marks import slow

import gradclip
from gradclip._cpu import machine
from gradclip._cpu.limits import Stream
from gradclip._leaves import Leaves

KERNELS = Path(__file__).parent.parent / "gradclip" / "_cpu" / "kernels"
CREDIT, REPAID = 5e-3, 1 / 32  # of share.c

openmp = pytest.mark.skipif(not machine.openmp_version, reason="a serial build shares nothing out")
posix = pytest.mark.skipif(sys.platform == "win32", reason="no workers there")


@pytest.fixture
def apart():
    """Workers do all passes of this thread."""
    machine.set_balance(-math.inf)
    yield
    machine.set_balance(0)


# ---- the account ----------------------------------------------------------------------------------------------


def test_a_team_earns_what_the_others_did():
    assert machine.balance_after(0, 1e-3, 0, 16, 32, 2) == 1e-3
    assert machine.balance_after(0, 1e-3, 0.25e-3, 8, 32, 4) == 2.75e-3
    assert machine.balance_after(1e-3, 1e-3, 0, 32, 32, 2) == 1e-3  # nobody came, and nobody was waited for


def test_a_late_team_is_in_debt():
    assert machine.balance_after(0, 0.5e-3, 24e-3, 16, 32, 2) == pytest.approx(-23.5e-3)
    assert machine.balance_after(CREDIT, 0.5e-3, 24e-3, 16, 32, 2) == pytest.approx(-18.5e-3)
    assert machine.balance_after(0, 25e-3, 4e-3, 16, 32, 2) > 0  # a large pass gains in spite of it
    assert machine.balance_after(0, 0, 1e-3, 0, 32, 2) == -1e-3  # the caller got nothing to do


def test_hitches_of_an_idle_machine_are_paid_by_what_was_earned():
    balance = 0.0
    for i in range(1000):
        balance = machine.balance_after(balance, 30e-6, 300e-6 if i % 100 == 99 else 1e-6, 16, 32, 2)
        assert 0 <= balance <= CREDIT


def test_a_caller_that_was_held_up_itself_is_not_mistaken_for_helpful_others():
    assert machine.balance_after(0, 4e-3, 0, 1, 32, 2) == 4e-3  # not 31 times as much
    assert machine.balance_after(0, 4e-3, 24e-3, 1, 32, 2) == pytest.approx(-20e-3)


def test_a_debt_is_repaid_slowly_and_to_zero():
    assert machine.balance_repaid(-1.0, 1.0) == REPAID - 1
    assert machine.balance_repaid(-1e-3, 1.0) == 0


def test_infinity_stays_for_tests():
    assert machine.balance_repaid(-math.inf, 1.0) == -math.inf
    assert machine.balance_after(math.inf, 1e-3, 1.0, 16, 32, 2) == math.inf


@openmp
@posix
def test_the_account_chooses_who_does_a_pass():
    a = np.ones(1 << 20, np.float32)
    machine.set_threads(2)

    def found(balance):
        machine.set_balance(balance)
        before = machine.sharing()
        assert gradclip.global_norm(a) == 1024
        after = machine.sharing()
        return after[0] - before[0], after[2] - before[2]

    try:
        assert found(0) == (1, 0)
        assert found(-1e9) == (0, 1)
        assert machine.sharing()[3]
        assert found(-1e-12) == (0, 1)
        assert not machine.sharing()[3]
        assert found(0) == (1, 0)
    finally:
        machine.set_threads(0)
        machine.set_balance(0)


def test_another_thread_has_an_account_of_its_own(apart):
    found = []
    thread = threading.Thread(target=lambda: found.append(machine.sharing()[:4]))
    thread.start()
    thread.join()
    assert found == [(0, 0, 0, False)]


# ---- the bits -------------------------------------------------------------------------------------------------


def results():
    """Every loop that is shared out, over what comes in pieces, panels and small leaves."""
    rng = np.random.default_rng(0)
    leaves = [rng.standard_normal(shape).astype(dtype) for shape, dtype in SHAPES]
    stream = Stream(Leaves(leaves[:1]))
    found = [stream.read(3), gradclip.global_norm(leaves), gradclip.measure(leaves, ord=3).norm]
    stream.rewrite(3, 1)
    stream.rewrite(3, 2**64 - 1)
    gradclip.clip_by_global_norm_(leaves, found[1] / 3)
    gradclip.clip_by_norm_(leaves[1], 0.5, axis=0)
    gradclip.clip_by_value_(leaves, 0.4)
    found += [gradclip.per_sample_clip_sum(leaves[1], 0.2)[0], *leaves]
    return [np.asarray(x).tobytes() for x in found]


SHAPES = (((700_001,), "f4"), ((600, 700), "f8"), ((300_000,), "f2"), *[((1000,), "f4")] * 200)


@pytest.fixture(scope="module")
def expected():
    with gradclip.num_threads(1):
        return results()


@pytest.mark.parametrize("team", [2, *slow([3, 8])])
def test_workers_change_no_bit(team, expected, apart):
    machine.set_threads(team)
    before = machine.sharing()
    try:
        assert results() == expected
    finally:
        machine.set_threads(0)
    after = machine.sharing()
    if machine.openmp_version:
        assert after[0] == before[0]
        assert after[2] >= before[2] + 8
        assert after[4] >= team - 1 or sys.platform == "win32"


def test_callers_share_the_workers(expected):
    found = []

    def call():
        machine.set_balance(-math.inf)
        found.extend(results() == expected for _ in range(3))

    machine.set_threads(3)
    try:
        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    finally:
        machine.set_threads(0)
    assert found == [True] * 12


@pytest.mark.slow
@posix
@pytest.mark.parametrize("sanitizer", ["", "thread", "address,undefined"])
def test_each_chunk_is_done_once(sanitizer, tmp_path):
    program = str(tmp_path / "pool_chunks")
    flags = ["-O2", "-fopenmp", f"-I{KERNELS}", *([f"-fsanitize={sanitizer}"] if sanitizer else [])]
    sources = [str(Path(__file__).parent / "pool_chunks.c"), str(KERNELS / "pool.c")]
    if not shutil.which("cc") or subprocess.run(["cc", *flags, *sources, "-o", program], check=False).returncode:
        pytest.skip("no C compiler with OpenMP and this sanitizer")
    done = subprocess.run([program], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


# ---- where there are no workers -----------------------------------------------------------------------------------

APART = """
import os, resource, signal, sys, warnings
import numpy as np
import gradclip
from gradclip._cpu import machine
a = np.ones(1 << 20, np.float32)
machine.set_threads(2)
assert gradclip.global_norm(a) == 1024
"""


def output(code, **environment):
    done = run(APART + code, **environment)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stderr == ""
    return done.stdout.split()


@openmp
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_no_workers_and_works():
    code = """
machine.set_balance(-float("inf"))
assert gradclip.global_norm(a) == 1024
assert machine.sharing()[4] == 1
before = machine.sharing()
warnings.simplefilter("ignore", DeprecationWarning)
child = os.fork()
if child == 0:
    signal.alarm(60)
    same = gradclip.global_norm(a) == 1024 and gradclip.clip_by_global_norm_(a, 512).norm == 1024 and a[0] == 0.5
    os._exit(0 if same and machine.sharing() == (*before[:4], 0) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
assert gradclip.global_norm(a) == 1024
print(machine.sharing()[2] - before[2])
"""
    assert output(code) == ["0", "1"]


@openmp
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_workers_that_the_system_refuses_are_done_without():
    code = """
if os.getuid() == 0:    # whom the limit does not bind
    os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
machine.set_balance(-float("inf"))
for _ in range(3):
    assert gradclip.global_norm(a) == 1024
print(machine.sharing()[4], gradclip.threads.describe_sharing().split()[0])
"""
    assert output(code) == ["0", "yes"]


@openmp
@pytest.mark.skipif(sys.platform != "linux", reason="threads can be pinned there")
def test_where_openmp_pins_threads_the_caller_works_alone():
    code = """
machine.set_balance(-float("inf"))
assert gradclip.global_norm(a) == 1024
print(machine.sharing()[4])
"""
    assert output(code, OMP_PROC_BIND="true") == ["0"]


@openmp
@posix
def test_signals_are_for_the_threads_of_the_program():
    """A worker would end the process by a signal that the main thread waits for."""
    code = """
machine.set_balance(-float("inf"))
assert gradclip.global_norm(a) == 1024
assert machine.sharing()[4] == 1
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
for thread in os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else ():
    blocked = next(line for line in open(f"/proc/self/task/{thread}/status") if line.startswith("SigBlk"))
    print(int(blocked.split()[1], 16) >> signal.SIGUSR1 - 1 & 1)
"""
    found = output(code, OMP_NUM_THREADS="2")
    assert found.count("1") in (2, 0)


@openmp
@posix
def test_ctrl_c_ends_a_read_pass_of_workers(apart):
    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    machine.set_threads(2)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            gradclip.global_norm(np.broadcast_to(np.float32(1), (1 << 36,)))  # takes seconds
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        machine.set_threads(0)
        signal.signal(signal.SIGALRM, before)


# ---- what is told ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ((0, 0, 0, False, 0), "unknown: no large pass yet"),
        ((12, 1, 345, False, 1), "no (1 of 12 large passes came late; 345 did not wait for threads)"),
        (
            (12, 2, 345, True, 3),
            "yes (2 of 12 large passes came late; 345 did not wait for threads; "
            "the next one has 3 workers that it does not wait for)",
        ),
        ((1, 1, 0, True, 0), "yes (1 of 1 large passes came late; 0 did not wait for threads; the next one has no others)"),
    ],
)
def test_the_configuration_says_whether_threads_come_late(state, text, monkeypatch):
    monkeypatch.setattr(machine, "sharing", lambda: state)
    assert f"\nbusy machine      {text}\n" in gradclip.show_config()
