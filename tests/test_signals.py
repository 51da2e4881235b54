"""Ctrl-C during a pass that would take hours, and threads whose stack is small: each in a process of its own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from launch import LIBRARIES, by_gloo
from marks import slow

PRELUDE = """
import os, signal, sys, threading
import numpy as np
import gradclip
from gradclip._cpu import accumulate, limits, machine, passes
from gradclip._cpu.plan import Plan
from gradclip._leaves import Leaves
"""


def run(code, **environment):
    """What a program prints, which must not crash nor hang."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout.split()


# Each reads the same few bytes for hours, or until it is stopped.
ENDLESS = {
    "powers": "gradclip.global_norm(np.broadcast_to(np.float32(1.5), 2 * 10**10), 3.5)",
    "many units": "passes.measure(many, 0.3)",
    "norms of samples": "gradclip.per_sample_clip_sum(np.broadcast_to(np.float32(1.5), (3000, 10**7)), 1.0, ord=0.3)",
    "sum of samples": "accumulate.sum_samples(samples, sums, Plan(10**5), 10**5, True)",
    "limits": "[limits.Stream(Leaves([np.ones(1 << 16)] * 40000)).read(machine.get_threads()) for _ in range(10**6)]",
}


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is not a signal that can be sent there")
@pytest.mark.parametrize("threads", [*slow([1]), 3])
@pytest.mark.parametrize("call", slow(ENDLESS, fast=("powers", "norms of samples", "sum of samples")))
def test_ctrl_c_ends_a_read_pass(call, threads):
    """It also leaves nothing behind: the next call is right. A pass that did not ask would outlast the time limit."""
    told = run(f"""
        machine.set_threads({threads})
        samples = Leaves(np.broadcast_to(np.float32(1.5), (10**5, 10**7)))
        samples.cut([(0,)])
        many = Leaves(np.broadcast_to(np.float32(1.5), (3 * 10**6, 10**4)))
        many.cut([(0,)])
        sums = Leaves(np.zeros(10**7, np.float32))
        for _ in range(2):
            threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                {ENDLESS[call]}
            except KeyboardInterrupt:
                print("stopped")
        print(gradclip.global_norm(np.full(10**6, 3.0)))
    """)
    assert told == ["stopped", "stopped", "3000.0"]


@pytest.mark.skipif(os.name == "nt", reason="no such signals there")
def test_handlers_run_in_their_own_floating_point_state_while_a_pass_goes_on():
    """A handler that does not raise changes nothing: not the result, not what it finds in the floating-point unit."""
    told = run("""
        machine.set_threads(2)
        a = np.broadcast_to(np.float32(1.5), 10**7)
        alone = gradclip.global_norm(a, 3.5)
        seen = []

        def handler(*args):
            with np.errstate(all="ignore"):
                seen.append((gradclip.global_norm(np.array([3.0, 4.0])), float(np.float64(5e-324) * 1.0)))

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        size = 10**7
        while len(seen) < 3:        # within one call: without questions there is one at its end
            del seen[:]
            gradclip.global_norm(np.broadcast_to(np.float32(1.5), size), 3.5)
            size *= 2
        same = gradclip.global_norm(a, 3.5) == alone
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(same, set(seen) == {(5.0, 5e-324)})
    """)
    assert told == ["True", "True"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is not a signal that can be sent there")
def test_ctrl_c_does_not_end_a_sum_into_memory_of_the_caller():
    """The handler runs when the pass is over: the sums are whole."""
    told = run("""
        machine.set_threads(1)
        a, out = np.broadcast_to(np.float32(1.5), (400, 10**6)), np.zeros(10**6, np.float16)
        samples, sums = Leaves(a), Leaves(out, True)
        samples.cut([(0,)])
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            accumulate.sum_samples(samples, sums, Plan(400), 400)
            signal.pause()
        except KeyboardInterrupt:
            print((out == 600).all())
    """)
    assert told == ["True"]


# What every public function does with leaves of all kinds.
EVERYTHING = """
def leaves():
    rng = np.random.default_rng(0)
    made = []
    for dtype in (np.float16, np.float32, np.float64, np.complex64, np.complex128):
        a = rng.standard_normal((120, 150)).astype(dtype)
        made += [a, a.copy(order="F")[::-1], np.ones((120, 300), dtype)[:, ::2], np.ones((120, 5), dtype)]
    made[0][2, 3], made[9][4, 1] = np.nan, np.inf
    return made

def everything():
    norms = set()
    for ord in (1, 2, np.inf, 3.5):
        k = dict(ord=ord, nonfinite="zero")
        grads, real = leaves(), [a for a in leaves() if a.dtype.kind != "c"]
        narrow = [np.zeros(a.shape[1:], np.complex64 if a.dtype.kind == "c" else np.float16) for a in grads]
        gradclip.global_norm(grads, ord), gradclip.measure(grads, ord=ord)
        for strict in (False, True):
            gradclip.clip_by_global_norm(grads, 1.0, strict=strict, **k), gradclip.clip_by_norm(grads, 1.0, strict=strict, **k)
            for axis in (0, 1):
                gradclip.clip_by_norm_(grads, 1.0, axis=axis, strict=strict, **k)
        gradclip.clip_by_norm(grads, {"1*": 0.1, "*": 3.0}, **k)
        gradclip.clip_adaptive_(grads, leaves(), 0.1, unit_axis=-1, **k), gradclip.clip_adaptive(grads, leaves(), 0.1, **k)
        gradclip.clip_per_sample_(grads, 1.0, **k), gradclip.per_sample_clip_sum(grads, 1.0, **k)
        gradclip.per_sample_clip_sum([np.full((120, 9), 1e308), *grads], np.inf, out=[np.zeros(9), *narrow], **k)
        gradclip.per_sample_clip_sum(grads, 1e300, out=narrow, **k)
        gradclip.normalize_(grads, 2.0, **k), gradclip.normalize(grads, per_leaf=True, **k)
        gradclip.sgd_step_([a.astype(np.complex64 if a.dtype.kind == "c" else np.float32) for a in grads], grads, 0.1, 1.0, **k)
        gradclip.apply_clip_(grads, gradclip.measure(grads, ord=ord), 0.5, **k)
        for clip in (gradclip.clip_by_value_, gradclip.clip_by_value):
            clip(real, 0.5)
        try:
            gradclip.clip_by_global_norm_(leaves()[::-1], 1.0, ord=ord)
        except gradclip.NonFiniteGradientError as error:
            norms.add(error.path)
    return norms
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="threads get what the linker said there")
@pytest.mark.parametrize("isa", ["baseline", ""])
def test_small_stacks_are_enough(isa):
    """A Python thread of 64 KiB, OpenMP's threads of as much."""
    told = run(
        EVERYTHING
        + textwrap.dedent("""
        everything()            # imports, in a thread that has room for them
        machine.set_threads(3)
        told = []
        threading.stack_size(65536)
        thread = threading.Thread(target=lambda: told.append(everything()))
        thread.start()
        thread.join()
        print(told[0] == {"10"})
    """),
        OMP_STACKSIZE="64k",
        GRADCLIP_ISA=isa,
    )
    assert told == ["True"]


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is not a signal that can be sent there")
@pytest.mark.skipif(not LIBRARIES["torch"], reason="PyTorch is missing")
@pytest.mark.parametrize("call", ["global", *slow(["strict", "leaf"])])
def test_ctrl_c_waits_until_all_ranks_have_written(call, tmp_path):
    told = by_gloo(2, tmp_path, str(Path(__file__).with_name("interrupted_process.py")), call)
    assert [text.split() for text in told] == [["KeyboardInterrupt", "True", "True"], ["returned", "True", "True"]]
