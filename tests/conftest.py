import pytest

from gradclip._cpu import machine


@pytest.fixture(params=machine.available_isas())
def isa(request):
    """Each instruction set that this machine can run, in turn."""
    before = machine.isa()
    machine.set_isa(request.param)
    yield request.param
    machine.set_isa(before)


@pytest.fixture(params=[1, 2, 3, 8])
def threads(request):
    """Thread counts, uncapped: more threads than cores must give the same bits too."""
    before = machine.get_threads()
    machine.set_threads(request.param)
    yield request.param
    machine.set_threads(before)
