"""The formats that ``gradclip clip`` reads and writes."""

import io
import os
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors
from gradient_files import gradients, read, run, same, write
from marks import slow

import gradclip
from gradclip import cli
from gradclip.cli import files

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
    path = write(tmp_path / "in.npz", {**{f"step{i}": np.array(i) for i in range(300)}, "w": np.zeros(3)})
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
        ("\ufeff3\t-4\n", "\ufeff0.6000000000000001\t-0.8\n"),
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


def npy(header, data=b"", version=(1, 0)):
    """A file with a header of any text."""
    header = header.encode("latin1")
    length = len(header).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + header + data


def head(shape, descr="'<f8'", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}\n"


ODD = [
    (b"", "magic string"),
    (b"PK", "magic string"),
    (npy(head("(2,)"))[:9], ""),
    (npy(head("(2,)"))[:30], ""),
    (npy(head("(2,)"), bytes(15)), "the array is cut short: the header tells of 16 bytes, 15 are there"),
    (npy(head("(2,)"), bytes(17)), "bytes after the array: the header tells of 16 bytes, 17 are there"),
    (npy(head("(-1,)"), bytes(8)), "the header tells of no array: shape (-1,)"),
    (npy(head("(-1, -2)"), bytes(16)), "the header tells of no array: shape (-1, -2)"),
    (npy(head("(True,)"), bytes(8)), "the header tells of no array: shape (True,)"),
    (npy(head("(2.0,)"), bytes(16)), "shape is not valid"),
    (npy(head("2"), bytes(16)), "shape is not valid"),
    (npy(head("(2**60,)"), bytes(16)), ""),
    (npy(head(f"({2**63},)"), bytes(16)), "the array is cut short"),
    (npy(head(f"({2**63}, 0)")), ""),
    (npy(head(f"({', '.join(['1'] * 99)})"), bytes(8)), ""),
    (npy(head("(1,)", "'|O'"), bytes(8)), "Object arrays cannot be loaded"),
    (npy(head("(1,)", "'(2,)<f8'"), bytes(16)), "the header tells of no array"),
    (npy(head("(1,)", "'<f99'"), bytes(99)), "descr is not a valid dtype descriptor"),
    (npy(head("(1,)", "[('a', '<f8')]"), bytes(8)), "dtype"),
    (npy(head("(1,)", order="2"), bytes(8)), "fortran_order is not a valid bool"),
    (npy("(" * 5000), "the header cannot be read"),
    (npy("{'descr': "), "the header cannot be read"),
    (npy("'" * 3), "the header cannot be read"),
    (npy("\x00\xff" * 20), "the header cannot be read"),
    (npy(head("1 + x")), "the header cannot be read"),
    (npy(head("(2,)") + " " * 20_000, bytes(16)), "a header of 20,05"),
    (npy(head("(2,)"), bytes(16), (4, 2)), "version (4, 2) of the .npy format is not known"),
    (b"\x93NUMPY\x02\x00" + b"\xff" * 4 + bytes(100), "a header of 4,294,967,295 bytes"),
]


@pytest.mark.parametrize(("content", "words"), ODD)
def test_odd_arrays_are_one_line_and_status_2(capsys, tmp_path, content, words):
    np.savez(tmp_path / "grads.npz", a=np.ones(2))
    with zipfile.ZipFile(tmp_path / "grads.npz", "a") as archive:
        archive.writestr("w.npy", content)
    (tmp_path / "grads.npy").write_bytes(content)
    for path, name in ((tmp_path / "grads.npy", ""), (tmp_path / "grads.npz", "w")):
        status, out, err = run(capsys, path, "--max-norm", "1", "--out", path)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"gradclip: error: {path}: {name}")
        assert words in err
    assert sorted(os.listdir(tmp_path)) == ["grads.npy", "grads.npz"]


COMPRESSIONS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


@pytest.mark.parametrize("how", slow(COMPRESSIONS, fast=COMPRESSIONS[:1]))
def test_damaged_archives_are_one_line_and_status_2(capsys, tmp_path, how):
    """Every byte of an archive, changed; and every beginning of it."""
    path, out = tmp_path / "grads.npz", tmp_path / "out.npz"
    expand = [] if how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) else ["--expand"]
    with zipfile.ZipFile(path, "w", how) as archive, archive.open("w.npy", "w") as member:
        np.lib.format.write_array(member, np.arange(3.0))
    whole = path.read_bytes()
    changed = [whole[:i] + bytes([whole[i] ^ 255]) + whole[i + 1 :] for i in range(len(whole))]
    found = set()
    for content in (*changed, *(whole[:n] for n in range(0, len(whole), 7))):
        path.write_bytes(content)
        status, text, err = run(capsys, path, "--max-norm", "1", "--out", out, *expand)
        found.add(status)
        if status == 0:  # dates and attributes are nobody's concern
            assert gradclip.global_norm(read(out)) == pytest.approx(1.0)
        else:
            assert (status, text, err.count("\n")) == (2, "", 1)
            assert err.startswith(f"gradclip: error: {path}: ")
    assert found == {0, 2}
    assert set(os.listdir(tmp_path)) == {"grads.npz", "out.npz"}


def zeros(path, size, how=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", how) as archive, archive.open("w.npy", "w") as member:
        np.lib.format.write_array(member, np.append(np.zeros(size), 2.0))
    return path


def test_an_archive_may_not_expand_beyond_all_proportion(capsys, tmp_path, monkeypatch):
    path, out = zeros(tmp_path / "grads.npz", 99_999), tmp_path / "out.npz"
    size = path.stat().st_size
    assert size < 8000
    assert run(capsys, path)[0] == 0  # small
    monkeypatch.setattr(files, "EXPANDED", 2**19)
    with monkeypatch.context() as unread:
        unread.setattr(zipfile.ZipExtFile, "read", lambda *args: pytest.fail("read"))
        status, text, err = run(capsys, path, "--max-norm", "1", "--out", out)
    assert (status, text) == (2, "")
    assert err == f"gradclip: error: {path}: {size:,} bytes that expand to 800,128: --expand allows it\n"
    status, text, err = run(capsys, path, "--max-norm", "1", "--out", out, "--expand")
    assert (status, err) == (0, "")
    assert read(out)["w"][-1] == 1.0
    assert run(capsys, zeros(path, 99_999, zipfile.ZIP_STORED))[0] == 0  # large, but not by expanding


@pytest.mark.parametrize("how", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_without_a_limit_must_be_allowed(capsys, tmp_path, monkeypatch, how):
    """The directory tells of a small file, and what it expands to is known only afterwards."""
    path = zeros(tmp_path / "grads.npz", 99_999, how)
    path.write_bytes(path.read_bytes().replace((800_128).to_bytes(4, "little"), (928).to_bytes(4, "little")))
    with monkeypatch.context() as unread:
        unread.setattr(zipfile.ZipExtFile, "read", lambda *args: pytest.fail("read"))
        status, text, err = run(capsys, path, "--max-norm", "1", "--out", path)
    assert (status, text) == (2, "")
    assert err == f"gradclip: error: {path}: w.npy: NumPy writes no such compression: --expand allows it\n"
    status, _, err = run(capsys, zeros(path, 99_999, how), "--max-norm", "1", "--out", path, "--expand")
    assert (status, err) == (0, "")
    assert read(path)["w"][-1] == 1.0


@pytest.mark.parametrize("options", [[], ["--expand"]])
def test_an_unknown_compression_of_what_is_no_array(capsys, tmp_path, options):
    path = tmp_path / "grads.npz"
    np.savez(path, w=np.ones(3))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("notes.txt", "kept")
    whole = bytearray(path.read_bytes())
    local, central = whole.index(b"notes.txt") - 30, whole.rindex(b"notes.txt") - 46
    whole[local + 8] = whole[central + 10] = 99
    path.write_bytes(whole)
    status, text, err = run(capsys, path, "--max-norm", "1", "--out", path, *options)
    assert (status, text, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"gradclip: error: {path}: notes.txt: ")
    assert path.read_bytes() == whole
    assert os.listdir(tmp_path) == ["grads.npz"]


def test_a_size_that_the_archive_makes_up(capsys, tmp_path):
    """Neither what the directory says nor what a header says is believed."""
    path = zeros(tmp_path / "grads.npz", 99)
    whole = path.read_bytes()
    told = (928).to_bytes(4, "little")
    assert whole.count(told) == 2  # before the file within, and in the directory
    for size, words in (
        (2**31, "that expand to 2,147,483,648"),
        (2**20, "w.npy: bytes after the array"),
        (900, "w.npy: "),
    ):
        path.write_bytes(whole.replace(told, size.to_bytes(4, "little")))
        status, out, err = run(capsys, path)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert words in err


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", "CF")
def test_npy_keeps_its_header(capsys, tmp_path, version, order):
    path = tmp_path / "grads.npy"
    grads = np.array(np.random.default_rng(3).standard_normal((4, 5)).astype(np.float32), order=order)
    with path.open("wb") as file:
        np.lib.format.write_array(file, grads, version)
    before = path.read_bytes()
    status, out, err = run(capsys, path, "--max-norm", "0.5", "--out", path)
    assert (status, err) == (0, "")
    assert "grads  (4, 5)  float32" in out
    after, written = path.read_bytes(), np.load(path)
    assert after[: -grads.nbytes] == before[: -grads.nbytes]
    assert written.flags.f_contiguous == (order == "F")
    np.testing.assert_array_equal(written, gradclip.clip_by_global_norm(grads, 0.5)[0])


# --- names that steer a terminal -----------------------------------------------------------------------------

STEERING = "\x1b[31mred\x1b]0;title\x07\u202e\r\nnew line\udce9"
SEEN = r"\x1b[31mred\x1b]0;title\x07\u202e\r\nnew line\udce9"


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_names_of_leaves_are_shown_as_escapes(capsys, tmp_path, monkeypatch, suffix, terminal):
    if terminal:
        pytest.importorskip("rich")
        for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "200"}.items():
            monkeypatch.setenv(name, value)
    name, seen = STEERING.replace("\udce9", ""), SEEN.replace(r"\udce9", "")
    path = write(tmp_path / f"grads{suffix}", {name: np.ones(2), name + "i": np.arange(3)})
    status, out, err = run(capsys, path, "--max-norm", "1")
    assert (status, err) == (0, "")
    assert out.count(seen) == 2
    assert "\x1b[31m" not in out
    assert "\x1b]0" not in out
    path = write(path, {name: np.array([1.0, np.nan])})
    status, out, err = run(capsys, path, "--max-norm", "1")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "\x1b" not in err
    assert r"\x1b[31mred" in err


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="files cannot have such names there")
def test_names_of_files_are_shown_as_escapes(capsys, tmp_path):
    path = write(tmp_path / f"{STEERING}.npy", {"w": np.ones(4)})
    status, out, err = run(capsys, path, "--max-norm", "1", "--out", path)
    assert (status, err) == (0, "")
    assert out.count(f"{SEEN}.npy") == 2
    assert "\x1b" not in out
    missing = tmp_path / f"{STEERING}.npz"
    for argv in (["clip", missing], ["suggest", path], ["suggest", missing], ["clip", path, missing]):
        try:
            status = cli.main(list(map(str, argv)))
        except SystemExit as end:
            status = end.code
        out, err = capsys.readouterr()
        assert (status, out) == (2, "")
        assert r"\x1b[31mred" in err or "Permission" in err
        assert "\x1b" not in err


# --- standard input ------------------------------------------------------------------------------------------


def test_text_from_standard_input(capsys, tmp_path, monkeypatch):
    out = tmp_path / "out.csv"
    for options, last in (
        ([], "norm 5.0, nothing was written"),
        (["--max-norm", "1"], "norm 5.0 > max_norm 1.0, factor 0.2: to be clipped, nothing was written"),
        (["--max-norm", "1", "--out", out], f"norm 5.0 > max_norm 1.0, factor 0.2: clipped, written to {out}"),
        (["--max-norm", "9", "--out", out], f"norm 5.0 <= max_norm 9.0, factor 1.0: nothing to clip, written to {out}"),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"# mine\n3, 0\n0, 4\n")))
        status, text, err = run(capsys, "-", *options)
        assert (status, err) == (0, "")
        assert text.splitlines()[-1] == f"standard input: {last}"
        if options:
            assert out.exists() == ("--out" in options)
        if last.startswith("norm 5.0 > max_norm 1.0, factor 0.2: clipped"):
            assert out.read_text() == "# mine\n0.6000000000000001, 0.0\n0.0, 0.8\n"
    assert out.read_text() == "# mine\n3, 0\n0, 4\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"3,x\n")))
    status, text, err = run(capsys, "-", "--max-norm", "1", "--out", out.with_suffix(".npz"))
    assert (status, text) == (2, "")
    assert "clipped gradients of text are written to a .csv or .txt file" in err
    status, text, err = run(capsys, "-")
    assert (status, text, err) == (2, "", "gradclip: error: standard input, line 1: 'x' is not a number\n")  # not read above
    monkeypatch.setattr(sys, "stdin", None)
    assert run(capsys, "-")[::2] == (2, "gradclip: error: there is no standard input\n")


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
        ("grads.pt", "a file of gradients ends in .npz, .npy, .safetensors, .csv, .txt"),
    ):
        status, out, err = run(capsys, tmp_path / name, "--max-norm", "1")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert words in err
        assert name in err
