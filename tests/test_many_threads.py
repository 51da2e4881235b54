"""Many threads at once, each with gradients of its own or all with the same ones, and a second interpreter.

With a GIL threads take turns, here at every chance; without one (free-threaded Python) they really run at once."""

import sys
import sysconfig

import numpy as np
import pytest
from at_once import at_once
from calls import CALLS, READING, contents, inputs
from child_process import run

import gradclip
from gradclip._cpu import machine

THREADS = 8
FREE = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


@pytest.fixture(autouse=True)
def turns():
    """Threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def told(report):
    """All that a report tells, bit by bit."""
    first = report.first_nonfinite
    numbers = np.array([report.norm, report.scale, report.max_abs, report.clipped_count, report.nonfinite])
    return repr(report), first, numbers.tobytes(), report.norms.tobytes(), report.scales.tobytes(), str(report.table())


def outcome(name, x):
    """The bytes of everything after a call, and what it returned."""
    made = CALLS[name](x)
    made = made if isinstance(made, tuple) else (made,)
    reports = [told(part) for part in made if isinstance(part, gradclip.ClipReport)]
    arrays = [part for part in made if isinstance(part, dict)]
    return contents(x), contents(arrays), reports, [part for part in made if isinstance(part, float)]


def test_all_functions_on_gradients_of_their_own():
    names = list(CALLS)
    expected = {name: outcome(name, inputs()) for name in names}

    def work(i):
        order = names[i:] + names[:i]  # so that different functions meet
        return all(outcome(name, inputs()) == expected[name] for _ in range(5) for name in order)

    assert at_once(THREADS, work) == [True] * THREADS


def test_the_same_gradients_are_read_by_all():
    x = inputs()
    expected = {name: outcome(name, x) for name in READING}
    assert (
        at_once(THREADS, lambda i: all(outcome(name, x) == expected[name] for _ in range(5) for name in READING))
        == [True] * THREADS
    )


def test_passes_that_are_shared_out():
    """Teams and workers of several passes at once, and the room that one pass leaves to the next."""
    grads = [np.random.default_rng(i).normal(size=(300, 1000 + i)).astype(np.float32)[:, ::2] for i in range(THREADS)]
    wide = [np.random.default_rng(i).normal(size=(150_000 + i,)) for i in range(THREADS)]
    clipped = [gradclip.clip_by_global_norm([grads[i], wide[i]], 1.0) for i in range(THREADS)]

    def work(i):
        with gradclip.num_threads(1 + i % 3):
            made = [gradclip.clip_by_global_norm([grads[i], wide[i]], 1.0) for _ in range(4)]
        return [([a.tobytes() for a in arrays], told(report)) for arrays, report in made]

    expected = [([a.tobytes() for a in arrays], told(report)) for arrays, report in clipped]
    assert at_once(THREADS, work) == [[one] * 4 for one in expected]


def test_one_report_is_asked_by_all():
    """What a report works out when it is asked for the first time: the tree of its leaves, names, a table."""
    for _ in range(20):
        grads = {f"leaf{i}": np.full(3, float(i)) for i in range(20)} | {"bad": np.array([np.nan, 1.0])}
        by_norm = gradclip.clip_by_norm(grads, 1.0, nonfinite="propagate")[1]
        by_value = gradclip.clip_by_value(grads, 1.0)[1]
        found = at_once(THREADS, lambda i, reports=(by_norm, by_value): [told(report) for report in reports])
        assert found == [found[0]] * THREADS
        assert found[0][1][1] == ("bad", 0)


def test_a_nesting_that_another_thread_changes():
    """The leaves of a call are those that it found; nothing is torn."""
    grads = {"w": [np.ones(3) for _ in range(50)], "b": np.ones(4)}
    norms = {np.sqrt(3.0 * n + 4.0) for n in range(60)} | {np.sqrt(3.0 * n) for n in range(60)}

    def work(i):
        if i == 0:
            for k in range(2000):
                grads["w"].append(np.ones(3))
                del grads["w"][k % 7]
                grads["b"] = np.ones(4)
            return True
        return all(np.float64(gradclip.global_norm(grads)) in norms for _ in range(200))

    assert at_once(THREADS, work) == [True] * THREADS


def test_the_number_of_threads_is_set_by_all():
    before = machine.wanted()
    a = np.random.default_rng(0).normal(size=400_000)
    norm = gradclip.global_norm(a)

    def work(i):
        for k in range(20):
            gradclip.set_num_threads(1 + (i + k) % 3)
            assert gradclip.global_norm(a) == norm
        return gradclip.get_num_threads() >= 1

    try:
        assert all(at_once(THREADS, work))
    finally:
        machine.set_wanted(before)


@pytest.mark.skipif(not FREE, reason="this Python has a GIL")
def test_importing_leaves_the_gil_disabled():
    done = run("import sys, gradclip, gradclip.monitor, gradclip._gpu; print(sys._is_gil_enabled())", PYTHON_GIL="")
    assert done.stdout == "False\n", done.stderr
    assert "GIL" not in done.stderr


INTERPRETERS = """
import warnings
try:
    import _interpreters as interpreters
    kinds = [lambda: interpreters.create("isolated"), lambda: interpreters.create("legacy")]
except ImportError:
    import _xxsubinterpreters as interpreters
    kinds = [lambda: interpreters.create(isolated=True), lambda: interpreters.create(isolated=False)]
TRY = '''
import warnings
warnings.simplefilter("ignore")  # NumPy's, which does not support other interpreters either
try:
    import gradclip
except ImportError:
    print("refused", flush=True)
else:
    import numpy as np
    print(gradclip.global_norm(np.array([3.0, 4.0])), flush=True)
'''
"""


def test_another_interpreter_cannot_import_what_the_main_one_has():
    code = INTERPRETERS + "exec(TRY)\nfor make in kinds:\n    interpreters.run_string(make(), TRY)\nexec(TRY)\n"
    done = run(code)
    assert done.stdout.split() == ["5.0", "refused", "refused", "5.0"], done.stderr


def test_the_main_interpreter_cannot_import_what_another_one_has():
    code = INTERPRETERS + "interpreters.run_string(kinds[1](), TRY)\nexec(TRY)\n"
    done = run(code)
    found = done.stdout.split()
    assert len(found) == 2, done.stderr
    assert "refused" in found  # both, where NumPy itself refuses
    assert {*found} <= {"5.0", "refused"}
