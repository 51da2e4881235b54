"""Arrays in NumPy's .npy format, read from streams: first the header, whose promise is checked before memory is taken."""

from __future__ import annotations

import io
import math
import warnings
from functools import lru_cache
from typing import BinaryIO

import numpy as np

CHUNK = 2**20  # bytes that are read or written at once
LONGEST = 10_000  # bytes of a header: what NumPy takes

_READERS = {  # Version 3 differs from 2 in the encoding of field names alone.
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,
}


def read_npy(stream: BinaryIO, size: int) -> tuple[bytes, np.ndarray]:
    """The header as it stands in a stream of `size` bytes, and the array; anything but a whole array is an error."""
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


def write_npy(stream: BinaryIO, head: bytes, values: np.ndarray) -> None:
    """Write what `read_npy` returned, and whatever was done to the array in place."""
    stream.write(head)
    write_bytes(stream, values if values.flags.c_contiguous else values.T)


def write_bytes(stream: BinaryIO, values: np.ndarray) -> None:
    """The bytes of a contiguous array, in chunks: compressors copy what they are given at once."""
    raw = values.reshape(-1).view(np.uint8).data
    for start in range(0, len(raw), CHUNK):
        stream.write(raw[start : start + CHUNK])


def _read_head(stream):
    """The bytes of the header, and the shape, the order and the dtype that it tells of."""
    head = stream.read(8)
    version = np.lib.format.read_magic(io.BytesIO(head))
    if version not in _READERS:
        raise ValueError(f"version {version} of the .npy format is not known")
    length = stream.read(2 if version == (1, 0) else 4)
    if int.from_bytes(length, "little") > LONGEST:
        raise ValueError(f"a header of {int.from_bytes(length, 'little'):,} bytes")
    rest = length + stream.read(int.from_bytes(length, "little"))
    return head + rest, *_parsed(version, rest)


@lru_cache(4096)  # arrays of one shape have one header, and rewriting reads each again
def _parsed(version, header):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files that Python 2 wrote, and of what odd headers hold
        try:
            return _READERS[version](io.BytesIO(header))
        except Exception as error:
            if isinstance(error, ValueError) and not str(error).startswith(("Cannot parse header", "malformed node")):
                raise  # NumPy's words about what the header holds
            raise ValueError("the header cannot be read") from None  # not those of Python's parser


def _fill(stream, buffer):
    for start in range(0, len(buffer), CHUNK):
        part = buffer[start : start + CHUNK]
        if stream.readinto(part) != len(part):
            raise ValueError("the array is cut short")
    if stream.read(1):  # at the end zipfile checks the CRC
        raise ValueError("bytes after the array")
