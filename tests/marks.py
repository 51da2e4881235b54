"""Marks of values of a parameter."""

import pytest


def slow(values, fast=()):
    """Return the values of a parameter, marked `slow` but for those that are in `fast`."""
    return [v if v in fast else pytest.param(v, marks=pytest.mark.slow) for v in values]
