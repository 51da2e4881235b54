"""Files of gradients, read and rewritten array by array: .npz, .npy, .safetensors, .csv and .txt.

A format is two functions. ``read(path, expand)`` yields the name of each array and the array, or None if it is no array. It
yields them one at a time, so that a file may be larger than memory. ``rewrite(path, file, change, expand)`` writes a file like
the one at `path`, and calls ``change(name, array)``, which changes an array of gradients in place before it is written. All
else stays as it was. `FORMATS` has both functions by suffix.

Any exception of a library that reads these bytes means that the file cannot be used: `_named` makes a ValueError of it.
"""

from __future__ import annotations

import io
import os
import re
import sys
from array import array
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np

from .npy import CHUNK, Array, read_npy, write_bytes, write_npy

KEPT = "biuSUmM"  # kinds of dtypes that are no gradients: counters, masks, names, dates


class Piped:
    """Text from standard input, which is read once and kept, with those methods of a `Path` that are used here."""

    suffix = ".txt"

    def __init__(self) -> None:
        self._data: bytes | None = None

    def __str__(self) -> str:
        """Return what messages call it."""
        return "standard input"

    def open(self, mode: str = "rb") -> BinaryIO:
        """Return a stream of its bytes from the beginning."""
        if self._data is None:
            with standard_input() as stream:
                self._data = stream.read()
        return io.BytesIO(self._data)


Source = Path | Piped
Change = Callable[[str, Array], None]
Read = Callable[[Any, bool], Iterator[tuple[str, Array | None]]]
Rewrite = Callable[[Any, BinaryIO, Change, bool], None]


@contextmanager
def standard_input() -> Iterator[BinaryIO]:
    """Yield standard input as a stream of bytes; raise an OSError if there is none."""
    if sys.stdin is None:
        raise OSError("there is no standard input")
    yield sys.stdin.buffer


def is_gradient(values: Array | None) -> bool:
    """Return whether an array of a file is measured and clipped. Floats that cannot be clipped are an error later."""
    return values is not None and values.dtype.kind not in KEPT


def file_format(path: Source) -> tuple[Read, Rewrite]:
    """Return ``read`` and ``rewrite`` for a file of this name; raise a ValueError if its suffix is not known."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path}: a file of gradients ends in {', '.join(FORMATS)}")
    return FORMATS[suffix]


@contextmanager
def _named(path: Source, name: str | None = None) -> Iterator[None]:
    """Turn every exception of a ``with`` block into a ValueError that names the file and what is wrong in it."""
    try:
        yield
    except Exception as error:
        text = str(error) or type(error).__name__  # a MemoryError has no message
        raise ValueError(": ".join(part for part in (str(path), name, text) if part)) from None


# ---- .npz and .npy ----------------------------------------------------------------------------------------------

# An archive may expand to so many bytes, or to so many times its size if that is more. Zeros can expand a thousandfold.
EXPANDED, EXPANSION = 2**28, 100


def _read_npz(path: Path, expand: bool) -> Iterator[tuple[str, Array | None]]:
    """Yield the names and the arrays of an .npz file."""
    with _archive(path, expand) as archive:
        for info in archive.infolist():
            _, values = _read_member(path, archive, info)
            yield info.filename.removesuffix(".npy"), values
            del values  # its memory is free before the next one is read


def _rewrite_npz(path: Path, file: BinaryIO, change: Change, expand: bool) -> None:
    """Write an .npz file with the same members, compression and comments."""
    with _archive(path, expand) as archive, ZipFile(file, "w") as written:
        written.comment = archive.comment
        for info in archive.infolist():
            _rewrite_member(path, archive, info, written, change)


@contextmanager
def _archive(path: Path, expand: bool) -> Iterator[ZipFile]:
    """Open an archive for a ``with`` block; raise a ValueError if a name comes twice, or if it would expand too far.

    With `expand` it may expand to any size.
    """
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


def _check_compression(path: Path, archive: ZipFile, info: ZipInfo, expand: bool) -> None:
    """Raise a ValueError if a member of an archive is compressed in a way that is not NumPy's, or is not known."""
    if info.compress_type in (ZIP_STORED, ZIP_DEFLATED):
        return
    if not expand:  # zipfile would expand it without a limit, and only then compare its size
        raise ValueError(f"{path}: {info.filename}: NumPy writes no such compression: --expand allows it")
    with _named(path, info.filename):
        archive.open(info).close()  # fails if the compression is not known


def _read_member(path: Path, archive: ZipFile, info: ZipInfo) -> tuple[bytes, Array | None]:
    """Return the header and the array of a member of an archive; no bytes and None if it is no array."""
    if not info.filename.endswith(".npy"):
        return b"", None
    with _named(path, info.filename), archive.open(info) as member:
        return read_npy(cast(BinaryIO, member), info.file_size)


def _rewrite_member(path: Path, archive: ZipFile, info: ZipInfo, written: ZipFile, change: Change) -> None:
    """Write a member of an archive to a new archive, changed if it is an array of gradients."""
    new = ZipInfo(info.filename, info.date_time)
    new.compress_type, new.external_attr, new.comment = info.compress_type, info.external_attr, info.comment
    head, values = _read_member(path, archive, info)
    if values is not None and is_gradient(values):
        change(info.filename.removesuffix(".npy"), values)
        with written.open(new, "w", force_zip64=True) as member:
            write_npy(cast(BinaryIO, member), head, values)
    else:
        with written.open(new, "w", force_zip64=True) as member:
            for chunk in _chunks(path, archive, info):
                member.write(chunk)


def _chunks(path: Path, archive: ZipFile, info: ZipInfo) -> Iterator[bytes]:
    """Yield the bytes of a member of an archive."""
    with _named(path, info.filename), archive.open(info) as member:
        yield from iter(lambda: member.read(CHUNK), b"")


def _read_npy_file(path: Path, expand: bool) -> Iterator[tuple[str, Array | None]]:
    """Yield the array of an .npy file, which is called grads."""
    with path.open("rb") as file:
        yield "grads", _whole_npy(path, file)[1]


def _rewrite_npy_file(path: Path, file: BinaryIO, change: Change, expand: bool) -> None:
    """Write an .npy file with the same header."""
    with path.open("rb") as old:
        head, values = _whole_npy(path, old)
    change("grads", values)
    write_npy(file, head, values)


def _whole_npy(path: Path, file: BinaryIO) -> tuple[bytes, Array]:
    """Return the header and the array of an open .npy file."""
    with _named(path):
        return read_npy(file, os.fstat(file.fileno()).st_size)


# ---- .safetensors -----------------------------------------------------------------------------------------------

FLOATS = "F64", "F32", "F16", "BF16", "C64"
OTHERS = "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"


def _read_safetensors(path: Path, expand: bool) -> Iterator[tuple[str, Array | None]]:
    """Yield the names and the tensors of a .safetensors file, in the order of their bytes."""
    with _tensors(path) as tensors:
        for name in tensors.offset_keys():
            yield name, _tensor(path, tensors, name)


def _rewrite_safetensors(path: Path, file: BinaryIO, change: Change, expand: bool) -> None:
    """Write a .safetensors file with the same header, which the tensors follow without gaps.

    The header holds names, shapes, metadata and the place of each tensor.
    """
    with _tensors(path) as tensors, path.open("rb") as old:
        length = old.read(8)
        file.write(length + old.read(int.from_bytes(length, "little")))
        for name in tensors.offset_keys():
            _rewrite_tensor(path, tensors, name, file, change)


def _tensors(path: Path) -> Any:
    """Open a .safetensors file; raise an ImportError if safetensors is missing or too old, a ValueError for a bad file."""
    try:
        from safetensors import safe_open

        return safe_open(path, framework="numpy", backend="pread")  # a mapped file would pile up in memory
    except (ImportError, TypeError) as error:  # TypeError: before 0.8 there was no backend to choose
        message = f'.safetensors files need safetensors 0.8: pip install "gradclip[safetensors]" ({error})'
        raise ImportError(message) from error
    except Exception as error:  # the same as `_named` does, after ImportError
        raise ValueError(f"{path}: {error}") from None


def _tensor(path: Path, tensors: Any, name: str) -> Array:
    """Return a tensor of a .safetensors file as an array; raise an error if its dtype has none in NumPy."""
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
        values: Array = tensors.get_tensor(name)
    return values


def _rewrite_tensor(path: Path, tensors: Any, name: str, new: BinaryIO, change: Change) -> None:
    """Write a tensor, changed if it is one of gradients."""
    values = _tensor(path, tensors, name)
    if is_gradient(values):
        change(name, values)
    write_bytes(new, values)


# ---- .csv and .txt ----------------------------------------------------------------------------------------------


def _as_text(file: BinaryIO, encoding: str) -> io.TextIOWrapper:
    """Return a stream of bytes as one of text, in which comments and line ends stay as they are."""
    return io.TextIOWrapper(file, encoding, errors="surrogateescape", newline="")


def is_data(line: str) -> bool:
    """Return whether a line of text is neither empty nor a comment."""
    line = line.strip()
    return bool(line) and not line.startswith("#")


def delimiter_of(line: str) -> str | None:
    """Return what separates the fields of a line: a comma if it has one, else semicolon, else tab; None stands for blanks."""
    return next((mark for mark in ",;\t" if mark in line), None)


def is_number(field: str) -> bool:
    """Return whether a field of a line is a number, NaN and Inf included."""
    try:
        float(field)
    except ValueError:
        return False
    return True


def _read_text(path: Source, expand: bool) -> Iterator[tuple[str, Array | None]]:
    """Yield the one array of a text file, which is called grads and has a row per line."""
    numbers, width = array("d"), 0
    for _, row in _lines(path):
        if row is not None:
            numbers.extend(row)
            width = len(row)
    if not width:
        raise ValueError(f"{path} has no numbers")
    yield "grads", np.frombuffer(numbers).reshape(-1, width)


def _rewrite_text(path: Source, file: BinaryIO, change: Change, expand: bool) -> None:
    """Write a text file in which only the numbers differ."""
    ((name, values),) = _read_text(path, expand)
    assert values is not None  # `_read_text` raises an error instead
    change(name, values)
    numbers = map(float, values.flat)
    with path.open("rb") as old:
        marked = old.read(3) == BOM_UTF8  # `_lines` leaves the mark out
    text = _as_text(file, "utf-8-sig" if marked else "utf-8")
    for line, row in _lines(path):
        # A number goes where a number stood. Delimiters, blanks and line ends stay.
        text.write(line if row is None else re.sub(r"[^\s,;]+", lambda _: repr(next(numbers)), line))
    text.detach()  # flushes the text; the file stays open


def _lines(path: Source) -> Iterator[tuple[str, list[float] | None]]:
    """Yield each line and its numbers: None for comments, for empty lines, and for a header of words above the numbers."""
    first, width = True, 0
    with _as_text(path.open("rb"), "utf-8-sig") as file:
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


FORMATS: dict[str, tuple[Read, Rewrite]] = {
    ".npz": (_read_npz, _rewrite_npz),
    ".npy": (_read_npy_file, _rewrite_npy_file),
    ".safetensors": (_read_safetensors, _rewrite_safetensors),
    ".csv": (_read_text, _rewrite_text),
    ".txt": (_read_text, _rewrite_text),
}
