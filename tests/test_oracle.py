"""Kernels and whole calls against integers on random bits, for a moment: the drivers in tests/oracle take as long as given."""

import ctypes
import sys

import pytest
from oracle.kernel_cases import AT_ONCE, COMPILER, DTYPES, OPERATIONS
from oracle.whole_calls import CALLS, Exact, trial

from gradclip._cpu import machine

pytestmark = pytest.mark.skipif(
    COMPILER is None or sys.byteorder == "big", reason="no C compiler that knows 128-bit integers, or other bytes"
)
ROUNDS = AT_ONCE  # of a half all numbers
# Members of gc_kernels (kernels.h) in their order; all but the name and the last have a pointer for each dtype.
MEMBERS = [
    "amax", "sum_squares", "sum_abs", "scale", "zero_nonfinite", "clamp", "count_outside", "step", "widen", "narrow", "cast",
    "add_samples", "sum_columns", "scale_columns", "count_nan", "count_inf",
]  # fmt: skip


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    return Exact(tmp_path_factory.mktemp("oracle"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", machine.available_isas())
def test_every_kernel_gives_what_integers_give(oracle, isa, dtype):
    cases, wrong, message = oracle.run(isa, dtype, 1, 0, ROUNDS)
    assert wrong is None, message
    assert min(cases) > 1000, dict(zip(OPERATIONS, cases, strict=True))


@pytest.mark.parametrize("member", MEMBERS)
def test_a_wrong_kernel_is_noticed(oracle, member):
    """The kernel of bfloat16 stands in the place of that of float16."""
    size = ctypes.sizeof(ctypes.c_void_p)
    words = (ctypes.c_void_p * (2 + 4 * len(MEMBERS) + 3)).from_buffer_copy(
        ctypes.string_at(oracle.tables["baseline"], size * (2 + 4 * len(MEMBERS) + 3))
    )
    at = 1 + 4 * MEMBERS.index(member)
    words[at] = words[at + 1]
    tables, oracle.tables = oracle.tables, {"wrong": ctypes.addressof(words)}
    try:
        _, wrong, message = oracle.run("wrong", "float16", 1, 0, ROUNDS)
    finally:
        oracle.tables = tables
    assert wrong is not None
    assert message


def test_whole_calls_give_what_integers_give(oracle):
    assert {trial(oracle, 1, number)[0] for number in range(20)} == set(CALLS)


def test_whole_calls_on_a_gpu_give_what_integers_give(oracle, cupy):
    assert {trial(oracle, 2, number, cupy)[0] for number in range(10)} == set(CALLS)
