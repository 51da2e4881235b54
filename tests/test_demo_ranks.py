"""`mpiexec -n N gradclip demo`: the trainings of one process, bit for bit, and one table and picture."""

import importlib.util
import sys
from pathlib import Path

import pytest
from launch import LIBRARIES, by_mpiexec

from gradclip.cli import demo, sharing

STEPS = 4


def test_items_and_rows_are_shared_out_in_order():
    class Comm:
        def __init__(self, rank):
            self.Get_rank, self.Get_size = lambda: rank, lambda: 3

    ranks = [sharing.Ranks(Comm(rank)) for rank in range(3)]
    for count in range(8):
        items = list(range(count))
        assert [x for rank in ranks for x in rank.share(items)] == items
    alone = sharing.Ranks()
    assert alone.share([1, 2]) == alone.together([1, 2]) == [1, 2]


def test_a_missing_mpi4py_is_named(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ImportError, match=r'pip install "gradclip\[mpi\]"'):
        sharing.started_together()


@pytest.mark.skipif(not LIBRARIES["mpi"], reason="mpi4py or mpiexec is missing")
@pytest.mark.skipif(not all(map(importlib.util.find_spec, ("rich", "matplotlib"))), reason="the demo's packages are missing")
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_train_as_one_process_does(size, tmp_path):
    program, picture = Path(__file__).with_name("demo_process.py"), tmp_path / "picture.png"
    printed = tmp_path / "printed"
    printed.mkdir()
    shown = "".join(by_mpiexec(size, printed, program, str(STEPS), picture, tmp_path))
    text = demo.standard_library()
    runs = [demo.train(text, STEPS, max_norm, 0) for max_norm in (None, 0.75)]
    told = " ".join(x.hex() for run in runs for x in (*run.norms, *run.losses))
    files = {f"rank{rank}" for rank in range(size)}
    assert {file.name for file in tmp_path.iterdir()} == files | {picture.name, printed.name}
    assert {(tmp_path / name).read_text(encoding="utf-8") for name in files} == {told}
    assert shown.count("Picture saved as") == shown.count("share of clipping") == 1
    assert f"{size} ranks share each batch" in shown
    assert picture.read_bytes().startswith(b"\x89PNG")
