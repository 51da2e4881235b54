"""Files of gradients, read and rewritten leaf by leaf: .npz, .npy, .safetensors, .csv and .txt.

A format is two functions. ``read(path, expand)`` yields names and arrays (None for what is no array), one at a time, so that
a file may be larger than memory. ``rewrite(path, file, change, expand)`` writes a file like the one at `path`, where
``change(name, array)`` has changed each array of gradients in place; all else is as it was. `FORMATS` has both by suffix.

Whatever the libraries raise that read these bytes means that the file cannot be used: `_named` makes a ValueError of it.
"""

from __future__ import annotations

import io
import os
import re
import sys
from array import array
from codecs import BOM_UTF8
from collections import Counter
from contextlib import contextmanager
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np

from .npy import CHUNK, read_npy, write_bytes, write_npy

KEPT = "biuSUmM"  # kinds of dtypes that are no gradients: counters, masks, names, dates


class Piped:
    """What came from standard input, which is read once and kept: text, as if it were the file of a `Path`."""

    suffix = ".txt"

    def __init__(self):
        self._data = None

    def __str__(self):
        return "standard input"

    def open(self, mode="rb"):
        if self._data is None:
            with standard_input() as stream:
                self._data = stream.read()
        return io.BytesIO(self._data)


@contextmanager
def standard_input():
    """The bytes of standard input."""
    if sys.stdin is None:
        raise OSError("there is no standard input")
    yield sys.stdin.buffer


def is_gradient(values):
    """Whether an array of a file counts, and is clipped. Those of floats that cannot be are errors elsewhere."""
    return values is not None and values.dtype.kind not in KEPT


def file_format(path):
    """``read`` and ``rewrite`` for a file of this name; a ValueError where its suffix is not known."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path}: a file of gradients ends in {', '.join(FORMATS)}")
    return FORMATS[suffix]


@contextmanager
def _named(path, name=None):
    try:
        yield
    except Exception as error:
        text = str(error) or type(error).__name__  # a MemoryError has no words
        raise ValueError(": ".join(part for part in (str(path), name, text) if part)) from None


# ---- .npz and .npy ----------------------------------------------------------------------------------------------

# What an archive may expand to, in bytes, or in sizes of itself if that is more: zeros expand a thousandfold.
EXPANDED, EXPANSION = 2**28, 100


def _read_npz(path, expand):
    with _archive(path, expand) as archive:
        for info in archive.infolist():
            _, values = _read_member(path, archive, info)
            yield info.filename.removesuffix(".npy"), values
            del values  # before the next one is read


def _rewrite_npz(path, file, change, expand):
    with _archive(path, expand) as archive, ZipFile(file, "w") as written:
        written.comment = archive.comment
        for info in archive.infolist():
            _rewrite_member(path, archive, info, written, change)


@contextmanager
def _archive(path, expand):
    """An archive whose names differ, and which does not expand beyond bounds unless `expand` lifts them."""
    with path.open("rb") as file:
        with _named(path, "no .npz file"):
            archive = ZipFile(file)
        with archive:
            twice = [name for name, count in Counter(archive.namelist()).items() if count > 1]
            if twice:
                raise ValueError(f"{path}: two arrays have the name {twice[0]}")
            for info in archive.infolist():
                _check_compression(path, archive, info, expand)
            size, whole = sum(info.file_size for info in archive.infolist()), os.fstat(file.fileno()).st_size
            if size > max(EXPANDED, EXPANSION * whole) and not expand:
                raise ValueError(f"{path}: {whole:,} bytes that expand to {size:,}: --expand allows it")
            yield archive


def _check_compression(path, archive, info, expand):
    if info.compress_type in (ZIP_STORED, ZIP_DEFLATED):
        return
    if not expand:  # zipfile expands such a file without a limit, and only then finds that its size is another
        raise ValueError(f"{path}: {info.filename}: NumPy writes no such compression: --expand allows it")
    with _named(path, info.filename):
        archive.open(info).close()  # is it known at all?


def _read_member(path, archive, info):
    """The header and the array of a file within; None, None where it is no array."""
    if not info.filename.endswith(".npy"):
        return None, None
    with _named(path, info.filename), archive.open(info) as member:
        return read_npy(member, info.file_size)


def _rewrite_member(path, archive, info, written, change):
    new = ZipInfo(info.filename, info.date_time)
    new.compress_type, new.external_attr, new.comment = info.compress_type, info.external_attr, info.comment
    head, values = _read_member(path, archive, info)
    if is_gradient(values):
        change(info.filename.removesuffix(".npy"), values)
        with written.open(new, "w", force_zip64=True) as member:
            write_npy(member, head, values)
    else:
        with written.open(new, "w", force_zip64=True) as member:
            for chunk in _chunks(path, archive, info):
                member.write(chunk)


def _chunks(path, archive, info):
    with _named(path, info.filename), archive.open(info) as member:
        yield from iter(lambda: member.read(CHUNK), b"")


def _read_npy_file(path, expand):
    with path.open("rb") as file:
        yield "grads", _whole_npy(path, file)[1]


def _rewrite_npy_file(path, file, change, expand):
    with path.open("rb") as old:
        head, values = _whole_npy(path, old)
    change("grads", values)
    write_npy(file, head, values)


def _whole_npy(path, file):
    with _named(path):
        return read_npy(file, os.fstat(file.fileno()).st_size)


# ---- .safetensors -----------------------------------------------------------------------------------------------

FLOATS = "F64", "F32", "F16", "BF16", "C64"
OTHERS = "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"


def _read_safetensors(path, expand):
    with _tensors(path) as tensors:
        for name in tensors.offset_keys():
            yield name, _tensor(path, tensors, name)


def _rewrite_safetensors(path, file, change, expand):
    """The header (names, shapes, metadata, where each tensor lies) stays as it is; tensors follow it without gaps."""
    with _tensors(path) as tensors, path.open("rb") as old:
        length = old.read(8)
        file.write(length + old.read(int.from_bytes(length, "little")))
        for name in tensors.offset_keys():
            _rewrite_tensor(path, tensors, name, file, change)


def _tensors(path):
    try:
        from safetensors import safe_open

        return safe_open(path, framework="numpy", backend="pread")  # a mapped file would pile up in memory
    except (ImportError, TypeError) as error:  # TypeError: before 0.8 there was no backend to choose
        message = f'.safetensors files need safetensors 0.8: pip install "gradclip[safetensors]" ({error})'
        raise ImportError(message) from error
    except Exception as error:  # as `_named`
        raise ValueError(f"{path}: {error}") from None


def _tensor(path, tensors, name):
    with _named(path, name):
        dtype = tensors.get_slice(name).get_dtype()
    if dtype not in FLOATS + OTHERS:
        raise ValueError(f"{path}: {name}: dtype {dtype} cannot be clipped; {', '.join(FLOATS)} can")
    if dtype == "BF16":
        try:
            import ml_dtypes  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f'{path}: {name}: bfloat16 needs ml_dtypes: pip install "gradclip[bfloat16]" ({error})'
            ) from error
    with _named(path, name):
        return tensors.get_tensor(name)


def _rewrite_tensor(path, tensors, name, new, change):
    values = _tensor(path, tensors, name)
    if is_gradient(values):
        change(name, values)
    write_bytes(new, values)


# ---- .csv and .txt ----------------------------------------------------------------------------------------------

TEXT = {"errors": "surrogateescape", "newline": ""}  # comments and line ends stay as they are


def is_data(line):
    """Whether a line of text is neither empty nor a comment."""
    line = line.strip()
    return bool(line) and not line.startswith("#")


def delimiter_of(line):
    """Comma, else semicolon, else tab, else (None) blanks: whichever the line has."""
    return next((mark for mark in ",;\t" if mark in line), None)


def is_number(field):
    try:
        float(field)
    except ValueError:
        return False
    return True


def _read_text(path, expand):
    """One array named grads: a row per line."""
    numbers, width = array("d"), 0
    for _, row in _lines(path):
        if row is not None:
            numbers.extend(row)
            width = len(row)
    if not width:
        raise ValueError(f"{path} has no numbers")
    yield "grads", np.frombuffer(numbers).reshape(-1, width)


def _rewrite_text(path, file, change, expand):
    ((name, values),) = _read_text(path, expand)
    change(name, values)
    numbers = map(float, values.flat)
    with path.open("rb") as old:
        marked = old.read(3) == BOM_UTF8  # `_lines` leaves it out
    text = io.TextIOWrapper(file, "utf-8-sig" if marked else "utf-8", **TEXT)
    for line, row in _lines(path):
        # A number goes where a number stood; delimiters, blanks and line ends stay.
        text.write(line if row is None else re.sub(r"[^\s,;]+", lambda _: repr(next(numbers)), line))
    text.detach()  # flushes it; the file stays open


def _lines(path):
    """Each line, and its numbers: None for comments, empty lines, and a header of words above the numbers."""
    first, width = True, 0
    with io.TextIOWrapper(path.open("rb"), "utf-8-sig", **TEXT) as file:
        for n, line in enumerate(file, 1):
            if not is_data(line):
                yield line, None
                continue
            fields = [field.strip() for field in line.split(delimiter_of(line))]
            wrong = [field for field in fields if not is_number(field)]
            if first and len(wrong) == len(fields):
                yield line, None
            elif wrong:
                raise ValueError(f"{path}, line {n}: {wrong[0][:40]!r} is not a number")
            elif len(fields) != (width or len(fields)):
                raise ValueError(f"{path}, line {n}: {len(fields)} numbers, where others have {width}")
            else:
                width = len(fields)
                yield line, [float(field) for field in fields]
            first = False


FORMATS = {
    ".npz": (_read_npz, _rewrite_npz),
    ".npy": (_read_npy_file, _rewrite_npy_file),
    ".safetensors": (_read_safetensors, _rewrite_safetensors),
    ".csv": (_read_text, _rewrite_text),
    ".txt": (_read_text, _rewrite_text),
}
