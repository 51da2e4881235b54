"""How many threads a large call gets: forks, limits of the system, OpenMP's settings, affinity, contexts."""

import asyncio
import contextvars
import os
import sys
import threading

import pytest
from child_process import run
from marks import slow

import gradclip
from gradclip._cpu import machine

linux = pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux's")
parallel = pytest.mark.skipif(machine.team() < 2, reason="needs two processors and OpenMP")
openmp = pytest.mark.skipif(not machine.openmp_version, reason="a serial build starts no threads")

START = """
import os, resource, signal, sys, threading, warnings
import numpy as np
warnings.simplefilter("ignore", DeprecationWarning)    # of fork in a process that has threads

def tasks():
    return len(os.listdir("/proc/self/task"))

def forked(work):
    '''The exit status of work() in a forked child; -14 if it hangs.'''
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if work() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def output(code, **environment):
    done = run(START + code, **environment)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.split()


# ---- forks ----------------------------------------------------------------------------------------------------

IN_CHILD = """
def work():
    import gradclip
    from gradclip._cpu import machine
    from gradclip._cpu.limits import Stream
    from gradclip._leaves import Leaves

    a = np.ones((8, 1 << 17), np.float32)
    gradclip.set_num_threads(2)
    machine.set_threads(2)
    assert gradclip.global_norm(a) == 1024
    assert gradclip.clip_by_global_norm_(a, 1024).norm == 1024
    assert gradclip.per_sample_clip_sum(a, 1e9)[0].sum() == 1 << 20
    stream = Stream(Leaves([a]))
    stream.read(2)
    stream.rewrite(2)
    assert machine.team() == 1
    if machine.openmp_version:
        assert "1 (2 set, OpenMP" in gradclip.show_config()
        assert "a forked process works alone" in gradclip.show_config()
    return not forked(lambda: machine.team() == 1) if os.getppid() == parent else True

parent = os.getpid()
"""


@pytest.mark.slow
@linux
@pytest.mark.parametrize("imported", ["", "import gradclip"], ids=["first imported in the child", "imported before"])
def test_a_forked_child_works_alone_whoever_ran_threads_before(imported):
    pytest.importorskip("torch")
    code = f"""
import torch
{imported}
torch.ones(4_000_000).sum()
print(forked(work))
"""
    assert output(IN_CHILD + code) == ["0"]


@linux
@openmp
def test_a_forked_child_of_a_process_that_limited_bandwidth():
    """The limit of `gradclip bench` has regions of its own."""
    code = """
from gradclip._cpu import machine
from gradclip._cpu.limits import Stream
from gradclip._leaves import Leaves
machine.set_threads(2)
Stream(Leaves([np.ones(1 << 20)])).read(2)
print(forked(work))
"""
    assert output(IN_CHILD + code) == ["0"]


@pytest.mark.slow
@linux
def test_a_worker_of_a_data_loader():
    pytest.importorskip("torch")
    code = """
import torch, gradclip

class Norms(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, i):
        return gradclip.global_norm(np.ones(1 << 20, np.float32))

gradclip.set_num_threads(2)
torch.ones(4_000_000).sum()
for norm in torch.utils.data.DataLoader(Norms(), num_workers=1, multiprocessing_context="fork", timeout=60):
    print(float(norm))
"""
    assert output(code) == ["1024.0", "1024.0"]


@parallel
def test_a_spawned_child_stays_parallel():
    code = """
import multiprocessing
from gradclip._cpu import machine

with multiprocessing.get_context("spawn").Pool(1) as pool:
    print(pool.apply(machine.team) == machine.team() > 1)
"""
    assert output(code) == ["True"]


# ---- threads that the system refuses ------------------------------------------------------------------------------

WORK = """
import gradclip
from gradclip._cpu import machine

machine.set_threads(2)
a = np.ones(1 << 20, np.float32)
b = np.empty_like(a)

def refused():
    '''Messages of the warnings of three calls.'''
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert gradclip.global_norm(a) == 1024
        b.fill(2)
        assert gradclip.clip_by_value_(b, 1).clipped_count == b.size
        assert b.min() == b.max() == 1
        assert gradclip.global_norm(a) == 1024
    assert all(w.category is RuntimeWarning and w.filename == "<string>" for w in caught)
    return [str(w.message) for w in caught]

def drop_processes():
    if os.getuid() == 0:    # whom the limit does not bind
        os.setuid(65534)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))

def drop_memory():
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (6 << 20), -1))
"""


@linux
@openmp
@pytest.mark.parametrize(
    ("limit", "environment"),
    [
        ("drop_processes()", {}),
        ("drop_memory()", {"OMP_STACKSIZE": " 64 M "}),
        ("", {"OMP_STACKSIZE": "1000000G"}),
        ("", {"GOMP_STACKSIZE": "1000000000m"}),
        ("", {"GOMP_CPU_AFFINITY": f"0 {(os.cpu_count() or 1) + 1}"}),
    ],
    ids=["processes", "memory", "OMP_STACKSIZE", "GOMP_STACKSIZE", "affinity"],
)
def test_refused_threads_are_one_warning(limit, environment):
    code = f"""
import ctypes
if "GOMP_CPU_AFFINITY" in os.environ and ctypes.CDLL(machine.__file__).omp_get_num_places() < 2:
    print("alive")      # the runtime has left that processor out
    sys.exit()
{limit}
[message] = refused()
assert "the system refuses to start 2 threads" in message, message
assert refused() == []
machine.set_threads(0)
assert gradclip.threads.describe().startswith("1 (none set, OpenMP"), gradclip.threads.describe()
assert "; the system refused more: " in gradclip.threads.describe()
gradclip.set_num_threads(2)
machine.set_threads(2)
assert len(refused()) == 1      # tried again
print("alive")
"""
    assert output(WORK + code, **environment) == ["alive"]


@linux
@openmp
@pytest.mark.parametrize("size", ["0", "many", "2m", "8 MB", *slow(["1", "-5", "512K", "4 M ", "99999999999999999999", ""])])
def test_stack_sizes_that_the_runtime_takes_or_ignores(size):
    assert output(WORK + "print(refused())", OMP_STACKSIZE=size) == ["[]"]


@linux
@openmp
def test_a_team_that_grows_is_tried_again():
    code = """
assert refused() == []
drop_processes()
assert refused() == []          # has its threads
machine.set_threads(3)
assert len(refused()) == 1
print("alive")
"""
    assert output(WORK + code) == ["alive"]


@linux
@openmp
def test_another_thread_has_a_team_of_its_own():
    code = """
assert refused() == []
go = threading.Event()
found = []
thread = threading.Thread(target=lambda: (go.wait(), found.append(len(refused()))))
thread.start()
drop_processes()
go.set()
thread.join()
print(found)
"""
    assert output(WORK + code) == ["[1]"]


@linux
@openmp
def test_a_refusal_that_is_an_error_comes_before_the_write():
    code = """
b.fill(2)
drop_processes()
with warnings.catch_warnings():
    warnings.simplefilter("error")
    for call in (lambda: gradclip.clip_by_value_(b, 1), lambda: gradclip.per_sample_clip_sum(b[None], 1.0)):
        gradclip.set_num_threads(2)     # ask again
        try:
            call()
        except RuntimeWarning:
            print("error")
assert b.min() == b.max() == 2
assert refused() == []
"""
    assert output(WORK + code) == ["error", "error"]


# ---- what OpenMP and the affinity allow --------------------------------------------------------------------------

ALLOWED = """
import ctypes
import gradclip
from gradclip._cpu import machine

machine.set_balance(float("inf"))           # no workers, if teams come late
runtime = ctypes.CDLL(machine.__file__)     # finds what the module is linked with
a = np.ones(1 << 22, np.float32)

def grown():
    '''Threads that two large calls have started.'''
    before = tasks()
    gradclip.clip_by_global_norm_(a, gradclip.global_norm(a) / 2)
    return tasks() - before
"""


@linux
@parallel
@pytest.mark.parametrize(
    "narrow",
    ["runtime.omp_set_num_threads(1)", "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"],
    ids=["OpenMP's setting", "affinity"],
)
def test_a_team_is_never_larger_than_allowed_at_the_moment_of_the_call(narrow):
    code = f"""
gradclip.set_num_threads(2)
assert machine.team() == 2
{narrow}
print(machine.team(), grown(), gradclip.get_num_threads())
"""
    assert output(ALLOWED + code) == ["1", "0", "2"]


@linux
@parallel
def test_the_default_follows_openmp():
    code = """
most = gradclip.get_num_threads()
runtime.omp_set_num_threads(1)
print(gradclip.get_num_threads(), machine.team())
runtime.omp_set_num_threads(most)
print(gradclip.get_num_threads() == most, grown() == most - 1)
"""
    assert output(ALLOWED + code) == ["1", "1", "True", "True"]


@pytest.mark.slow
@parallel
def test_pytorch_s_setting_where_the_runtime_is_one():
    pytest.importorskip("torch")
    code = """
import torch, gradclip
from gradclip._cpu import machine
torch.set_num_threads(1)
print(machine.openmp_threads(), machine.team())
"""
    allowed, team = output(code)
    if allowed != "1":
        pytest.skip("two runtimes")
    assert team == "1"


@linux
@parallel
@pytest.mark.parametrize("environment", [{"OMP_PROC_BIND": "true"}, {"OMP_PLACES": "threads"}], ids=str)
def test_pinned_threads_are_still_several(environment):
    assert output(ALLOWED + "print(machine.team() > 1, grown() > 0)", **environment) == ["True", "True"]


@parallel
def test_the_smaller_of_two_environment_variables():
    assert output(ALLOWED + "print(machine.team())", OMP_NUM_THREADS="1", GRADCLIP_NUM_THREADS="2") == ["1"]


def test_the_configuration_says_what_bounds_the_threads():
    with gradclip.num_threads(1):
        assert "threads           1 (1 set, OpenMP " in gradclip.show_config()


# ---- contexts ------------------------------------------------------------------------------------------------


def test_interleaved_threads_each_have_their_own_number():
    before = gradclip.get_num_threads()
    turn = threading.Barrier(2, timeout=60)
    found = {}

    def work(n):
        turn.wait()
        if n == 3:
            turn.wait()  # 2 has entered
        with gradclip.num_threads(n):
            if n == 2:
                turn.wait()
            turn.wait()  # 3 has entered
            found[n] = gradclip.get_num_threads()
            if n == 3:
                turn.wait()  # 2 has left
        if n == 2:
            turn.wait()
        found[-n] = gradclip.get_num_threads()

    workers = [threading.Thread(target=work, args=(n,)) for n in (2, 3)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert found == {2: 2, 3: 3, -2: before, -3: before}
    assert gradclip.get_num_threads() == before


def test_interleaved_tasks_each_have_their_own_number():
    before = gradclip.get_num_threads()

    async def work(n, entered, leave):
        with gradclip.num_threads(n):
            entered.set()
            await leave.wait()
            return gradclip.get_num_threads(), await asyncio.to_thread(gradclip.get_num_threads)

    async def both():
        entered, never = asyncio.Event(), asyncio.Event()
        first = asyncio.ensure_future(work(2, entered, never))
        await entered.wait()
        second = asyncio.ensure_future(work(3, never, entered))
        return await asyncio.gather(first, second)

    assert asyncio.run(both()) == [(2, 2), (3, 3)]
    assert gradclip.get_num_threads() == before


def test_a_block_goes_before_the_process_and_holds_for_its_context_alone():
    before = gradclip.get_num_threads()
    outside = contextvars.copy_context()
    with gradclip.num_threads(3):
        gradclip.set_num_threads(2)
        assert gradclip.get_num_threads() == 3
        assert outside.run(gradclip.get_num_threads) == 2
        assert contextvars.copy_context().run(gradclip.get_num_threads) == 3
    assert gradclip.get_num_threads() == 2
    gradclip.set_num_threads(before)


@parallel
def test_the_passes_obey_the_block():
    code = """
with gradclip.num_threads(1):
    print(machine.team(), grown())
print(machine.team() > 1, grown() > 0)
"""
    assert output(ALLOWED + code) == ["1", "0", "True", "True"]


def test_a_block_can_be_left_in_another_context():
    """As a fixture is, or a generator that is thrown away half read."""

    def numbers():
        with gradclip.num_threads(3):
            yield gradclip.get_num_threads()

    found = numbers()
    assert contextvars.copy_context().run(next, found) == 3
    assert contextvars.copy_context().run(list, found) == []


@pytest.mark.parametrize("bad", [0, 1.5, True])
def test_a_block_with_a_bad_number_changes_nothing(bad):
    before = gradclip.get_num_threads()
    with pytest.raises((TypeError, ValueError), match="number of threads"), gradclip.num_threads(bad):
        pass
    assert gradclip.get_num_threads() == before
