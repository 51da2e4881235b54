"""Failures at random places, for a moment: the drivers in tests/faults take as long as they are given."""

import itertools
import sys

import child_process
import numpy as np
import pytest
from calls import flat
from faults import arguments, failures, meddling

import gradclip


def some(count, ways):
    """What failed in some calls."""
    return {what for what in itertools.islice(failures.failures(1, ways), count) if what}


def test_calls_that_fail_change_nothing():
    expected = {spoil.__name__ for spoil in failures.SPOILT} | {"Ctrl-C at a line"}
    assert some(600, (failures.spoilt, failures.at_a_line)) == expected


@pytest.mark.parametrize("way", [failures.spoilt, failures.at_a_line])
def test_a_call_that_writes_before_it_fails_is_noticed(way, monkeypatch):
    def hasty(x):
        x.grads["b"][2][1][0, 0] += 1
        failures.CALLS["apply_clip_"](x)

    with pytest.raises(AssertionError, match="hasty"):
        [way(np.random.default_rng(seed), hasty, "hasty") for seed in range(200)]


def test_arguments_of_all_kinds_give_a_result_or_a_promised_error():
    arguments.counts.clear()
    arguments.run(1, 20)
    assert {"a result", "TypeError", "ValueError"} <= set(arguments.counts)


@pytest.mark.parametrize("broken", ["an error of another kind", "a byte changed"])
def test_a_function_that_breaks_its_promise_is_noticed(broken, monkeypatch):
    def function(grads, max_norm):
        if broken == "a byte changed":
            grads += 1
            raise ValueError
        raise KeyError

    monkeypatch.setattr(gradclip, "normalize_", function)
    machine = arguments.Calls()
    machine.add(dtype=np.float32, shape=[2], turn=0, number=1)
    with pytest.raises(AssertionError if broken == "a byte changed" else KeyError):
        machine.call(name="normalize_", first=1.0, second=1.0, options={}, out="no")


def test_what_changes_during_a_call_gives_a_result_or_an_error_that_says_where():
    seen = set(itertools.islice(meddling.trials(1), 400))
    assert {"replace: RuntimeError", "lock: ValueError", "resize was refused: a result", "a liar: TypeError"} <= seen


def test_a_leaf_that_is_written_though_it_was_replaced_is_noticed():
    def wrong(x):
        flat(x.grads)[0][...] = 7

    def some_seeds():
        for seed in range(100):
            calls = iter([lambda x: None, lambda x: None, wrong])  # two say what is expected, the third is looked at
            meddling.disturbed(np.random.default_rng(seed), lambda x, calls=calls: next(calls)(x), "wrong")

    with pytest.raises(AssertionError, match="leaf 0 is neither"):
        some_seeds()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has neither these signals nor limits")
@pytest.mark.parametrize("way", ["kill", "full", "corrupt"])
def test_files_are_never_half_written(way):
    done = child_process.script("tests/faults/files.py", "--times", "10", "--way", way, "--fork")
    assert done.returncode == 0, done.stderr
    assert "10 commands" in done.stdout
