"""The formats that ``gradclip clip`` reads and writes."""

import os
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors
from gradient_files import gradients, read, run, same, write

import gradclip

# --- what is kept -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    ("options", "norm"),
    [
        ([], {}),
        (["--ord", "1"], {"ord": 1}),
        (["--ord", "inf"], {"ord": np.inf}),
        (["--ord", "3"], {"ord": 3}),
        (["--eps", "0.25"], {"eps": 0.25}),
        (["--grad-scale", "8"], {"grad_scale": 8}),
    ],
)
def test_same_bits_as_the_library(capsys, tmp_path, suffix, options, norm):
    path, out = write(tmp_path / f"in{suffix}", gradients()), tmp_path / f"out{suffix}"
    before = path.read_bytes()
    expected, report = gradclip.clip_by_global_norm(read(path), 0.125, **norm)
    status, text, err = run(capsys, path, "--max-norm", "0.125", "--out", out, *options)
    assert (status, err) == (0, "")
    same(read(out), expected)
    assert path.read_bytes() == before
    last = text.splitlines()[-1]
    assert last == f"{path}: norm {report.norm!r} > max_norm 0.125, factor {report.scale!r}: clipped, written to {out}"
    for name, grad in gradients().items():
        assert f"{name} " in text
        assert str(grad.shape) in text


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_counters_masks_and_names_are_kept(capsys, tmp_path, suffix):
    others = {"step": np.array(1200), "ids": np.arange(5, dtype=np.uint8), "mask": np.array([True, False])}
    if suffix == ".npz":
        others |= {"names": np.array(["a", "bc"]), "day": np.array("2024-01-01", "M8[D]")}
    path = write(tmp_path / f"in{suffix}", {**others, "w": np.array([3.0, 4.0])})
    status, out, _ = run(capsys, path, "--max-norm", "1", "--out", path)
    assert status == 0
    same(read(path), {**others, "w": np.array([0.6000000000000001, 0.8])})
    assert "norm 5.0 > max_norm 1.0, factor 0.2: clipped" in out
    (line,) = [line for line in out.splitlines() if line.startswith("Not counted, and kept as they are: ")]
    assert all(f"{name} ({values.dtype.name})" in line for name, values in others.items())


def test_many_kept_arrays_are_one_short_line(capsys, tmp_path):
    path = write(tmp_path / "in.npz", {f"step{i}": np.array(i) for i in range(300)})
    status, out, _ = run(capsys, path, "--max-norm", "1")
    assert status == 0
    assert "step4 (int64) and 295 more" in out
    assert "norm 0.0 <= max_norm 1.0, factor 1.0: nothing to clip, nothing was written" in out


def test_npz_keeps_order_compression_layout_and_other_files(tmp_path, capsys):
    path, out = tmp_path / "in.npz", tmp_path / "out.npz"
    w = np.asfortranarray(np.random.default_rng(1).standard_normal((40, 30)))
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = b"a comment"
        for name, how in (("z", zipfile.ZIP_DEFLATED), ("a", zipfile.ZIP_STORED)):
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = how
            with archive.open(info, "w") as member:
                np.lib.format.write_array(member, w)
        archive.writestr("notes.txt", "kept", zipfile.ZIP_DEFLATED)
    assert run(capsys, path, "--max-norm", "0.5", "--out", out)[0] == 0
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == ["z.npy", "a.npy", "notes.txt"]
        assert archive.read("notes.txt") == b"kept"
        assert archive.comment == b"a comment"
        assert [info.compress_type for info in archive.infolist()] == [
            zipfile.ZIP_DEFLATED,
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ]
        assert archive.testzip() is None
    expected, _ = gradclip.clip_by_global_norm([w, w], 0.5)
    with np.load(out) as written:
        for name in "za":
            assert written[name].flags.f_contiguous
            np.testing.assert_array_equal(written[name], expected[0])


def test_safetensors_keeps_its_header_and_metadata(capsys, tmp_path):
    path, out = write(tmp_path / "in.safetensors", gradients()), tmp_path / "out.safetensors"
    assert run(capsys, path, "--max-norm", "0.5", "--out", out)[0] == 0
    before, after = path.read_bytes(), out.read_bytes()
    header = 8 + int.from_bytes(before[:8], "little")
    assert before[:header] == after[:header]
    assert len(before) == len(after)
    with safetensors.safe_open(out, framework="numpy") as file:
        assert file.metadata() == {"format": "pt", "step": "7"}


def raw_safetensors(path, dtype, values):
    header = f'{{"w":{{"dtype":"{dtype}","shape":[{values.size}],"data_offsets":[0,{values.nbytes}]}}}}'.encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + values.tobytes())
    return len(header) + 8


def test_safetensors_bfloat16(capsys, tmp_path, monkeypatch):
    path = tmp_path / "grads.safetensors"
    values = np.array([3, -4, 1.5], ml_dtypes.bfloat16)
    header = raw_safetensors(path, "BF16", values)
    status, out, err = run(capsys, path, "--max-norm", "1", "--out", path)
    assert (status, err) == (0, "")
    assert "bfloat16" in out
    expected, _ = gradclip.clip_by_global_norm(values, 1.0)
    assert path.read_bytes()[header:] == expected.tobytes()
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    status, out, err = run(capsys, path, "--max-norm", "1")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert 'pip install "gradclip[bfloat16]"' in err


def test_safetensors_dtypes_that_cannot_be_clipped(capsys, tmp_path):
    path = tmp_path / "grads.safetensors"
    raw_safetensors(path, "F8_E4M3", np.zeros(3, np.uint8))
    status, out, err = run(capsys, path, "--max-norm", "1")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "w: dtype F8_E4M3 cannot be clipped" in err


def test_missing_safetensors_names_the_extra(capsys, tmp_path, monkeypatch):
    path = write(tmp_path / "in.safetensors", gradients())
    monkeypatch.setitem(sys.modules, "safetensors", None)
    status, out, err = run(capsys, path, "--max-norm", "1")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert 'pip install "gradclip[safetensors]"' in err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3\n4\n", "0.6000000000000001\n0.8\n"),
        ("3,4", "0.6000000000000001,0.8"),
        ("a,b\n3,0\n0,4\n", "a,b\n0.6000000000000001,0.0\n0.0,0.8\n"),
        ("# from a run\n\n  3 ;4  \r\n# 9;9\r\n", "# from a run\n\n  0.6000000000000001 ;0.8  \r\n# 9;9\r\n"),
        ("\ufeff3\t-4\n", "0.6000000000000001\t-0.8\n"),
        ("3e0   +4.00\n", "0.6000000000000001   0.8\n"),
        ("# caf\udce9\n3 4\n", "# caf\udce9\n0.6000000000000001 0.8\n"),  # Latin-1
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".txt"])
def test_text_keeps_its_layout(capsys, tmp_path, suffix, text, expected):
    path = tmp_path / f"grads{suffix}"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    status, out, err = run(capsys, path, "--max-norm", "1", "--out", path)
    assert (status, err) == (0, "")
    assert "norm 5.0 > max_norm 1.0" in out
    assert path.read_bytes() == expected.encode("utf-8", "surrogateescape")


def test_text_keeps_every_bit(capsys, tmp_path):
    grads = np.random.default_rng(2).lognormal(sigma=9, size=(200, 3))
    path = tmp_path / "grads.txt"
    np.savetxt(path, grads, fmt="%.17g")
    assert run(capsys, path, "--max-norm", "0.3", "--out", path)[0] == 0
    np.testing.assert_array_equal(np.loadtxt(path), gradclip.clip_by_global_norm(grads, 0.3)[0])


# --- files that cannot be used -------------------------------------------------------------------------------


def damage(path, where):
    data = bytearray(path.read_bytes())
    data[where] ^= 255
    path.write_bytes(data)


def make_wrong(kind, path):
    if kind == "object":
        np.savez(path, w=np.array([None, 1], object))
    elif kind == "longdouble":
        np.savez(path, w=np.ones(2, np.longdouble))
    elif kind == "bfloat16":
        np.savez(path, w=np.ones(2, ml_dtypes.bfloat16))
    elif kind == "byte order":
        np.savez(path, w=np.ones(2, ">f4"))
    elif kind == "crc":
        np.savez(path, w=np.ones(1000))
        damage(path, 3000)
    elif kind == "cut":
        np.savez(path, w=np.ones(1000))
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "huge":
        with zipfile.ZipFile(path, "w") as archive, archive.open("w.npy", "w") as member:
            np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": (2**57,)})
    elif kind == "tail":
        with zipfile.ZipFile(path, "w") as archive, archive.open("w.npy", "w") as member:
            np.lib.format.write_array(member, np.ones(2))
            member.write(b"more")
    elif kind == "twice":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w.npy", b"")
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr("w.npy", b"")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("object", "w.npy: Object arrays cannot be loaded"),
        ("longdouble", "w: dtype "),
        ("bfloat16", "w: dtype |V2 cannot be clipped"),
        ("byte order", "w: byte order of "),
        ("crc", "w.npy: Bad CRC-32"),
        ("cut", "no .npz file: File is not a zip file"),
        ("huge", "w.npy: "),
        ("tail", "w.npy: bytes after the array"),
        ("twice", "two arrays have the name w.npy"),
    ],
)
def test_npz_files_that_cannot_be_used(capsys, tmp_path, kind, words):
    if kind == "longdouble" and np.dtype(np.longdouble) == np.float64:
        pytest.skip("long double is float64 here")
    path = tmp_path / "grads.npz"
    make_wrong(kind, path)
    status, out, err = run(capsys, path, "--max-norm", "1", "--out", path)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"gradclip: error: {path}: {words}" in err
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 100, (2).to_bytes(8, "little") + b"{}" + b"more"])
def test_damaged_safetensors(capsys, tmp_path, content):
    path = tmp_path / "grads.safetensors"
    path.write_bytes(content)
    status, out, err = run(capsys, path, "--max-norm", "1")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"gradclip: error: {path}: " in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "grads.csv has no numbers"),
        ("# 1,2\n\n", "grads.csv has no numbers"),
        ("a,b\n", "grads.csv has no numbers"),
        ("1,2\n3\n", "line 2: 1 numbers, where others have 2"),
        ("1,2\n3,x\n", "line 2: 'x' is not a number"),
        ("a,1\n", "line 1: 'a' is not a number"),
        ("1,,2\n", "line 1: '' is not a number"),
        ("a\nb\n1\n", "line 2: 'b' is not a number"),
    ],
)
def test_text_that_cannot_be_used(capsys, tmp_path, text, words):
    path = tmp_path / "grads.csv"
    path.write_text(text)
    status, out, err = run(capsys, path, "--max-norm", "1", "--out", path)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert words in err
    assert path.read_text() == text


def test_files_that_are_none(capsys, tmp_path):
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "grads.pt").write_bytes(b"")
    for name, words in (
        ("missing.npz", "No such file"),
        ("missing.safetensors", "No such file"),
        ("folder.npz", "no ordinary file"),
        ("grads.pt", "a file of gradients ends in .npz, .safetensors, .csv, .txt"),
    ):
        status, out, err = run(capsys, tmp_path / name, "--max-norm", "1")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert words in err
        assert name in err
