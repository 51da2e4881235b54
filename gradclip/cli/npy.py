"""Arrays in NumPy's .npy format, read from streams. The header is checked against the file before memory is taken."""

from __future__ import annotations

import io
import math
import warnings
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np

CHUNK = 2**20  # bytes that are read or written at once
LONGEST = 10_000  # bytes of a header, as in NumPy

Array = np.ndarray[Any, np.dtype[Any]]

_READERS: dict[tuple[int, int], Any] = {  # version 3 differs from 2 only in the encoding of field names
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,
}


def read_npy(stream: BinaryIO, size: int) -> tuple[bytes, Array]:
    """Return the header, unchanged, and the array of a stream of `size` bytes; raise an error if it holds anything else."""
    head, shape, fortran_order, dtype = _read_head(stream)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded: what they hold is not known before it runs")
    if dtype.subdtype is not None or any(isinstance(length, bool) or length < 0 for length in shape):
        raise ValueError(f"the header tells of no array: shape {shape}, dtype {dtype}")
    nbytes = math.prod(shape) * dtype.itemsize
    if len(head) + nbytes != size:
        more = "bytes after the array" if len(head) + nbytes < size else "the array is cut short"
        raise ValueError(f"{more}: the header tells of {nbytes:,} bytes, {size - len(head):,} are there")
    raw = np.empty(nbytes, np.uint8)
    _fill(stream, raw.data)
    return head, np.ndarray(shape, dtype, raw, order="F" if fortran_order else "C")


def write_npy(stream: BinaryIO, head: bytes, values: Array) -> None:
    """Write the header and the array that `read_npy` returned; the array's elements may have been changed in place."""
    stream.write(head)
    write_bytes(stream, values if values.flags.c_contiguous else values.T)


def write_bytes(stream: BinaryIO, values: Array) -> None:
    """Write the bytes of a contiguous array in chunks, because a compressor copies all that it is given at once."""
    raw = values.reshape(-1).view(np.uint8).data
    for start in range(0, len(raw), CHUNK):
        stream.write(raw[start : start + CHUNK])


def _read_head(stream: BinaryIO) -> tuple[bytes, tuple[int, ...], bool, np.dtype[Any]]:
    """Return the bytes of the header, and the shape, whether the order is Fortran's, and the dtype that it gives."""
    head = stream.read(8)
    version = np.lib.format.read_magic(io.BytesIO(head))
    if version not in _READERS:
        raise ValueError(f"version {version} of the .npy format is not known")
    length = stream.read(2 if version == (1, 0) else 4)
    if int.from_bytes(length, "little") > LONGEST:
        raise ValueError(f"a header of {int.from_bytes(length, 'little'):,} bytes")
    rest = length + stream.read(int.from_bytes(length, "little"))
    return head + rest, *_parsed(version, rest)


_OF_PARSERS = "Cannot parse header", "malformed node", "source code string"  # how messages of Python's parser begin


@lru_cache(4096)  # arrays of one shape have the same header, and rewriting reads each a second time
def _parsed(version: tuple[int, int], header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return the shape, whether the order is Fortran's, and the dtype that the bytes of a header give."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files that Python 2 wrote, and of odd headers
        try:
            shape, fortran_order, dtype = _READERS[version](io.BytesIO(header))
            return shape, fortran_order, dtype
        except Exception as error:
            if isinstance(error, ValueError) and not str(error).startswith(_OF_PARSERS):
                raise  # NumPy's message, which says what is wrong
            raise ValueError("the header cannot be read") from None


def _fill(stream: Any, buffer: memoryview) -> None:
    """Read a buffer full of bytes; raise an error if the stream has fewer or more."""
    for start in range(0, len(buffer), CHUNK):
        part = buffer[start : start + CHUNK]
        if stream.readinto(part) != len(part):
            raise ValueError("the array is cut short")
    if stream.read(1):  # reading to the end lets zipfile check the CRC
        raise ValueError("bytes after the array")
