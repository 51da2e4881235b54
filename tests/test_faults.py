"""Failures at random places, for a moment: the drivers in tests/faults take as long as they are given."""

import itertools
import sys

import child_process
import numpy as np
import pytest
from faults import calls


def some(count, ways):
    """What failed in some calls."""
    return {what for what in itertools.islice(calls.failures(1, ways), count) if what}


def test_calls_that_fail_change_nothing():
    assert some(600, (calls.spoilt, calls.at_a_line)) == {spoil.__name__ for spoil in calls.SPOILT} | {"Ctrl-C at a line"}


@pytest.mark.parametrize("way", [calls.spoilt, calls.at_a_line])
def test_a_call_that_writes_before_it_fails_is_noticed(way, monkeypatch):
    def hasty(x):
        x.grads["b"][2][1][0, 0] += 1
        calls.CALLS["apply_clip_"](x)

    with pytest.raises(AssertionError, match="hasty"):
        [way(np.random.default_rng(seed), hasty, "hasty") for seed in range(200)]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has neither these signals nor limits")
@pytest.mark.parametrize("way", ["kill", "full", "corrupt"])
def test_files_are_never_half_written(way):
    done = child_process.script("tests/faults/files.py", "--times", "10", "--way", way, "--fork")
    assert done.returncode == 0, done.stderr
    assert "10 commands" in done.stdout
