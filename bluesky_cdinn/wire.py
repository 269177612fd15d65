"""Bluesky documents as bytes for a socket, and back: msgpack, with an extension type for numpy's arrays.

Nothing is pickled, and nothing that comes can make the reader run code or hold more memory than was sent:
an array's type, shape and bytes must agree, and arrays of Python objects don't travel.
"""

import math
import re
import struct
from collections.abc import Mapping
from importlib import import_module
from itertools import takewhile
from typing import Any

import numpy as np
from msgpack import ExtType
from msgpack.exceptions import UnpackException
from numpy.typing import NDArray

from bluesky_cdinn.errors import InvalidInput

# Importing bluesky_kafka, or msgpack_numpy, patches the names in `msgpack`: its unpackb then unpickles.
try:
    _msgpack: Any = import_module("msgpack._cmsgpack")
except ImportError:
    _msgpack = import_module("msgpack.fallback")

MAX_BYTES = 256_000_000
"""Of one message; a frame of 8 x 8 thousand pixels of 4 bytes is as large."""

_ARRAY = 1
# An array that takes no bytes costs its sender nothing, however many rows the reader would go through.
_MAX_EMPTY_ROWS = 100_000
# Booleans, numbers, complex numbers, times and text; neither objects nor structures.
_DTYPE = re.compile(r"[<>|][biufcmMSU]\d{1,9}(\[\d{0,9}\w{1,7}\])?")


def pack(document: Any) -> bytes:
    """Return a document as bytes.

    Parameters
    ----------
    document
        Mappings, sequences, text, numbers and numpy arrays, nested as one likes. Tuples come back as lists,
        numpy's scalars as such; sets become sorted lists, anything else its text.

    Raises
    ------
    InvalidInput
        It holds an array of Python objects, or what msgpack can't hold, or is larger than `MAX_BYTES`.
    """
    try:
        message: bytes = _msgpack.Packer(default=_encode).pack(document)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(f"a document must hold plain values and numpy arrays: {error}") from error
    if len(message) > MAX_BYTES:
        raise InvalidInput(f"a message must be of {MAX_BYTES:,} bytes at most, got {len(message):,}")
    return message


def unpack(message: bytes | memoryview) -> Any:
    """Return the document that `pack` made these bytes of; its arrays can't be written to.

    Raises
    ------
    InvalidInput
        The bytes aren't such a document, whoever sent them.
    """
    if len(message) > MAX_BYTES:
        raise InvalidInput(f"a message must be of {MAX_BYTES:,} bytes at most, got {len(message):,}")
    try:
        return _msgpack.unpackb(message, ext_hook=_decode, strict_map_key=False)
    except InvalidInput:
        raise
    except (UnpackException, ValueError, TypeError, RecursionError) as error:
        raise InvalidInput(f"a message must be a document as msgpack: {error}") from error


def _encode(value: Any) -> Any:
    if isinstance(value, complex):
        value = np.asarray(value)
    if isinstance(value, np.ndarray | np.generic):
        return ExtType(_ARRAY, _array_bytes(np.asarray(value)))
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)


def _array_bytes(array: NDArray[Any]) -> bytes:
    name = array.dtype.str.encode()
    if _DTYPE.fullmatch(array.dtype.str) is None:
        raise ValueError(f"an array of {array.dtype} can't travel, only numbers, times and text")
    head = struct.pack(f"<BB{len(name)}s{array.ndim}Q", len(name), array.ndim, name, *array.shape)
    if array.size == 0:
        return head
    # One copy: of a frame, each more would be felt by the process's other threads.
    return b"".join([head, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data])


def _decode(code: int, content: bytes) -> Any:
    if code != _ARRAY:
        raise InvalidInput(f"of extensions a document may hold arrays only, type {_ARRAY}, got type {code}")
    try:
        length, ndim = struct.unpack_from("<BB", content)
        name, *shape = struct.unpack_from(f"<{length}s{ndim}Q", content, 2)
        described = name.decode("ascii")
        dtype = np.dtype(described) if _DTYPE.fullmatch(described) else None
    except (struct.error, ValueError, TypeError) as error:
        raise InvalidInput(f"an array must begin with its type and shape: {error}") from error
    if dtype is None:
        raise InvalidInput(f"an array must be of numbers, times or text, got {described!r}")
    start = 2 + length + 8 * ndim
    if math.prod(shape) * dtype.itemsize != len(content) - start:
        raise InvalidInput(f"an array {described} {shape} can't have {len(content) - start} bytes")
    if len(content) == start and math.prod(takewhile(bool, shape)) > _MAX_EMPTY_ROWS:
        raise InvalidInput(f"an array of no bytes must have {_MAX_EMPTY_ROWS:,} rows at most, got {shape}")
    return np.ndarray(tuple(shape), dtype, content, start)[()]
