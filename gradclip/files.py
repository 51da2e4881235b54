"""Files of gradients, read and rewritten leaf by leaf: .npz, .safetensors, .csv and .txt.

A format is two functions. ``read(path)`` yields names and arrays (None for what is no array), one at a time, so that a
file may be larger than memory. ``rewrite(path, to, change)`` makes a file like the one at `path`, where ``change(name,
array)`` has changed each array of gradients in place; all else is as it was. `FORMATS` has both by suffix.
"""

from __future__ import annotations

import re
import shutil
import zlib
from array import array
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile, ZipFile, ZipInfo

import numpy as np

# What damaged archives, headers that promise too much, passwords and unknown compressions raise.
UNREADABLE = BadZipFile, zlib.error, EOFError, MemoryError, OverflowError, RuntimeError, ValueError

KEPT = "biuSUmM"  # kinds of dtypes that are no gradients: counters, masks, names, dates


def is_gradient(values):
    """Whether an array of a file counts, and is clipped. Those of floats that cannot be are errors elsewhere."""
    return values is not None and values.dtype.kind not in KEPT


def file_format(path):
    """``read`` and ``rewrite`` for a file of this name; a ValueError where its suffix is not known."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path}: a file of gradients ends in {', '.join(FORMATS)}")
    return FORMATS[suffix]


@contextmanager
def _named(path, name):
    try:
        yield
    except UNREADABLE as error:
        raise ValueError(f"{path}: {name}: {error}") from None


# ---- .npz -------------------------------------------------------------------------------------------------------


def _read_npz(path):
    with _archive(path) as archive:
        for info in archive.infolist():
            yield info.filename.removesuffix(".npy"), _read_member(path, archive, info)


def _rewrite_npz(path, to, change):
    with _archive(path) as archive, ZipFile(to, "w") as written:
        written.comment = archive.comment
        for info in archive.infolist():
            _rewrite_member(path, archive, info, written, change)


def _archive(path):
    with _named(path, "no .npz file"):
        archive = ZipFile(path)
    names = archive.namelist()
    if len(set(names)) < len(names):
        archive.close()
        raise ValueError(f"{path}: two arrays have the name {next(n for n in names if names.count(n) > 1)}")
    return archive


def _read_member(path, archive, info):
    if not info.filename.endswith(".npy"):
        return None
    with _named(path, info.filename), archive.open(info) as member:
        values = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):  # at the end zipfile checks the CRC
            raise ValueError("bytes after the array")
        return values


def _rewrite_member(path, archive, info, written, change):
    new = ZipInfo(info.filename, info.date_time)
    new.compress_type, new.external_attr, new.comment = info.compress_type, info.external_attr, info.comment
    values = _read_member(path, archive, info)
    if is_gradient(values):
        change(info.filename.removesuffix(".npy"), values)
        with written.open(new, "w", force_zip64=True) as member:
            np.lib.format.write_array(member, values, allow_pickle=False)
    else:
        with _named(path, info.filename), archive.open(info) as old, written.open(new, "w", force_zip64=True) as member:
            shutil.copyfileobj(old, member)


# ---- .safetensors -----------------------------------------------------------------------------------------------

FLOATS = "F64", "F32", "F16", "BF16", "C64"
OTHERS = "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"


def _read_safetensors(path):
    with _tensors(path) as tensors:
        for name in tensors.offset_keys():
            yield name, _tensor(path, tensors, name)


def _rewrite_safetensors(path, to, change):
    """The header (names, shapes, metadata, where each tensor lies) stays as it is; tensors follow it without gaps."""
    with _tensors(path) as tensors, open(path, "rb") as old, open(to, "wb") as new:
        length = old.read(8)
        new.write(length + old.read(int.from_bytes(length, "little")))
        for name in tensors.offset_keys():
            _rewrite_tensor(path, tensors, name, new, change)


def _tensors(path):
    try:
        from safetensors import SafetensorError, safe_open

        return safe_open(path, framework="numpy", backend="pread")  # a mapped file would pile up in memory
    except (ImportError, TypeError) as error:  # TypeError: before 0.8 there was no backend to choose
        message = f'.safetensors files need safetensors 0.8: pip install "gradclip[safetensors]" ({error})'
        raise ImportError(message) from error
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}") from None


def _tensor(path, tensors, name):
    dtype = tensors.get_slice(name).get_dtype()
    if dtype not in FLOATS + OTHERS:
        raise ValueError(f"{path}: {name}: dtype {dtype} cannot be clipped; {', '.join(FLOATS)} can")
    if dtype == "BF16":
        try:
            import ml_dtypes  # noqa: F401
        except ImportError as error:
            raise ImportError(f'{name}: bfloat16 needs ml_dtypes: pip install "gradclip[bfloat16]" ({error})') from error
    with _named(path, name):
        return tensors.get_tensor(name)


def _rewrite_tensor(path, tensors, name, new, change):
    values = _tensor(path, tensors, name)
    if is_gradient(values):
        change(name, values)
    new.write(values.reshape(-1).view(np.uint8).data)


# ---- .csv and .txt ----------------------------------------------------------------------------------------------

TEXT = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}  # comments and line ends stay as they are


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


def _read_text(path):
    """One array named grads: a row per line."""
    numbers, width = array("d"), 0
    for _, row in _lines(path):
        if row is not None:
            numbers.extend(row)
            width = len(row)
    if not width:
        raise ValueError(f"{path} has no numbers")
    yield "grads", np.frombuffer(numbers).reshape(-1, width)


def _rewrite_text(path, to, change):
    ((name, values),) = _read_text(path)
    change(name, values)
    numbers = map(float, values.flat)
    with open(to, "w", **TEXT) as file:
        for line, row in _lines(path):
            # A number goes where a number stood; delimiters, blanks and line ends stay.
            file.write(line if row is None else re.sub(r"[^\s,;]+", lambda _: repr(next(numbers)), line))


def _lines(path):
    """Each line, and its numbers: None for comments, empty lines, and a header of words above the numbers."""
    first, width = True, 0
    with open(path, **{**TEXT, "encoding": "utf-8-sig"}) as file:
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
    ".safetensors": (_read_safetensors, _rewrite_safetensors),
    ".csv": (_read_text, _rewrite_text),
    ".txt": (_read_text, _rewrite_text),
}
