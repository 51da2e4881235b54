"""The exactness benchmark on a tiny matrix: what it calls exact is exact, and it can tell a promise that is broken."""

import importlib
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import reference

SIZES = (1, 100, 1025)


@pytest.fixture
def exactness(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "benchmarks")
    return importlib.import_module("exactness")


def test_fast_exact_sums_are_those_of_the_reference(exactness):
    for name in exactness.DTYPES:
        for kind in exactness.DISTRIBUTIONS:
            x = exactness.values(name, kind, 200)
            assert exactness.exact_sum(x) == reference.power_sum([x]), (name, kind)
    ends = np.array([0, 5e-324, -(2.0**-1022), 1.7e308] * 10_000)
    assert exactness.exact_sum(ends) == 10_000 * reference.power_sum([ends[:4]])


def test_errors_keep_the_promises(exactness):
    contenders = exactness.installed(("gradclip", "numpy"))
    cells = exactness.all_errors(contenders, sizes=SIZES)
    assert len(cells) == 4 * 8 * len(SIZES)
    assert exactness.broken(cells, {}) == []
    assert exactness.worst(cells, lambda c: c["norms"]["numpy"], dtype="float64") == math.inf  # near overflow
    cell = cells["float64", "normal", 100]
    cell["norms"]["gradclip"], cell["written"] = 0.502, 0.5001
    assert len(exactness.broken(cells, {})) == 2


def test_middles_keep_the_promises(exactness, monkeypatch):
    middles = exactness.middles
    some = {name: (ord, arrays[:12]) for name, (ord, arrays) in middles.kinds(quick=True).items()}
    found = {name: middles.look(*numbers) for name, numbers in some.items()}
    assert middles.broken(found) == []
    assert found["[3k, 4k]"].ties == 12
    assert found["random: 36 equal ones"].ties > 1
    middles.show(found)
    assert middles.rounded(36 * exactness.Fraction(0.1) ** 2, 2)[0] == reference.rounded_norm([np.full(36, 0.1)])
    norm = exactness.gradclip.global_norm
    monkeypatch.setattr(exactness.gradclip, "global_norm", lambda leaves, ord: math.nextafter(norm(leaves, ord), 0.0))
    assert len(middles.broken({"wrong": middles.look(2, [np.full(9, 0.1)])})) == 1


def test_peers_that_are_not_installed_are_left_out(exactness, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.linalg.blas", None)  # which is missed by `prepare`
    monkeypatch.setitem(sys.modules, "torch", None)  # and this by `load`
    assert exactness.installed().keys() == {"gradclip", "numpy"}


def test_an_error_is_measured_without_rounding(exactness):
    exact = exactness.Fraction(2) ** 200 + 2**148 - 2**120  # its root lies almost in the middle between 2**100 and the next
    assert 0.4999999 < exactness.norm_error(2.0**100, exact) < 0.5
    assert 0.5 < exactness.norm_error(math.nextafter(2.0**100, math.inf), exact) < 0.5000001
    assert exactness.norm_error(math.inf, exact) == math.inf


def test_every_variant_gives_the_same_bits(exactness):
    rows = exactness.results(exactness.installed(("gradclip", "numpy")), 400, ("bfloat16", "float64"))
    most = exactness.distinct({("here", 1): rows, ("there", 1): rows})
    assert exactness.broken({}, most) == []
    assert {different for (column, _), (different, _) in most.items() if column.startswith("gradclip")} == {1}
    assert most["gradclip", "sets"] == (1, 2)
    rows[-2][-1] = "another"  # what was written, once
    assert exactness.broken({}, exactness.distinct({("here", 1): rows}))


@pytest.mark.slow
def test_the_figure_can_be_drawn(exactness, tmp_path):
    contenders = exactness.installed(("gradclip", "numpy"))
    cells = exactness.all_errors(contenders, ("float16", "float64"), ("normal", "near overflow"), (1, 7))
    most = exactness.distinct({("here", 1): exactness.results(contenders, 30, ("float32",), ("normal",))})
    exactness.save(exactness.draw(cells, most, contenders), tmp_path / "exactness.png")
    assert (tmp_path / "exactness.png").stat().st_size > 10_000
    exactness.show_errors(cells, contenders)
    exactness.show_distinct(most, 1)
