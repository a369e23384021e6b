"""Paths as bytes: those that a frozen association can be kept with, and found by.

A path is whatever the caller says it is. Here it may be made of ``None``, truth values, integers, text, bytes and
tuples of these, which holds for every address that a socket gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sansdtls.errors import DecodeError, SnapshotError
from sansdtls.wire.compact import MAX_NUMBER_BITS, SINGLE_BYTES, CompactReader, encode_number

if TYPE_CHECKING:
    from collections.abc import Hashable

MAX_PATH_LENGTH = 1024
"""Bytes of an encoded path. One of an address, a port and what came with the datagram has below 100."""
_MAX_INTEGER = 2**MAX_NUMBER_BITS - 1
_MAX_PATH_DEPTH = 8
"""Tuples within each other in a path."""

# Kinds of values, in the upper three bits of a value's first byte. The lower five hold a number below 31, or 31
# if the number less 31 follows: the constant, the integer, the bytes that follow, the values that follow.
_CONSTANT, _INTEGER, _NEGATIVE, _TEXT, _BYTES, _TUPLE = range(6)
_CONSTANTS = (None, False, True)
_FOLLOWS = 31


def encode_path(path: Hashable) -> bytes:
    """A path as bytes: equal ones for equal paths. Of None, bool, int, str, bytes and tuples of them.

    Integers have at most 64 bits, tuples are nested at most 8 deep, and all has at most 1024 bytes. Raises
    SnapshotError for other paths.
    """
    parts: list[bytes] = []
    _encode_value(path, parts, _MAX_PATH_DEPTH)
    encoded = b"".join(parts)
    if len(encoded) > MAX_PATH_LENGTH:
        raise SnapshotError(f"a path of {len(encoded)} bytes cannot be saved, only one of {MAX_PATH_LENGTH}")
    return encoded


def can_be_saved(path: Hashable) -> bool:
    """Whether :func:`encode_path` takes it."""
    try:
        encode_path(path)
    except SnapshotError:
        return False
    return True


def decode_path(data: bytes) -> Hashable:
    """The opposite of :func:`encode_path`. Raises SnapshotError for anything that it did not make."""
    reader = CompactReader(data, "path")
    try:
        path = read_path(reader)
        reader.end()
    except (DecodeError, UnicodeDecodeError) as error:
        raise SnapshotError(f"this is no path: {error}") from None
    return path


def _encode_value(value: object, parts: list[bytes], depth: int) -> None:
    if isinstance(value, str):
        text = utf_8(value)
        parts += (_start(_TEXT, len(text)), text)
    elif value is None or isinstance(value, bool):
        parts.append(_start(_CONSTANT, _CONSTANTS.index(value)))
    elif isinstance(value, int):
        if value.bit_length() > MAX_NUMBER_BITS:
            raise SnapshotError(f"a path with an integer of {value.bit_length()} bits cannot be saved")
        parts.append(_start(_INTEGER, value) if value >= 0 else _start(_NEGATIVE, -1 - value))
    elif isinstance(value, bytes):
        parts += (_start(_BYTES, len(value)), value)
    elif isinstance(value, tuple):
        if not depth:
            raise SnapshotError(f"a path with tuples more than {_MAX_PATH_DEPTH} deep cannot be saved")
        parts.append(_start(_TUPLE, len(value)))
        for item in value:
            _encode_value(item, parts, depth - 1)
    else:
        raise SnapshotError(
            f"a path with a {type(value).__name__} cannot be saved; None, bool, int, str, bytes and tuples can"
        )


def _start(kind: int, number: int) -> bytes:
    if number < _FOLLOWS:
        return SINGLE_BYTES[kind << 5 | number]
    return SINGLE_BYTES[kind << 5 | _FOLLOWS] + encode_number(number - _FOLLOWS)


def read_path(reader: CompactReader) -> Hashable:
    """The path that comes next."""
    start = reader.offset
    path = _decode_value(reader, _MAX_PATH_DEPTH)
    length = reader.offset - start
    if length > MAX_PATH_LENGTH:
        raise DecodeError(f"path: {length} bytes are more than {MAX_PATH_LENGTH}")
    return path


def _decode_value(reader: CompactReader, depth: int) -> Hashable:
    first = reader.byte()
    kind, number = first >> 5, first & _FOLLOWS
    if number == _FOLLOWS:
        number += reader.number()
    if kind == _INTEGER and number <= _MAX_INTEGER:
        return number
    if kind == _TEXT:
        return reader.take(number).decode()
    if kind == _TUPLE and depth:
        return tuple([_decode_value(reader, depth - 1) for _ in range(number)])
    if kind == _BYTES:
        return reader.take(number)
    if kind == _CONSTANT and number < len(_CONSTANTS):
        return _CONSTANTS[number]
    if kind == _NEGATIVE and number < _MAX_INTEGER:
        return -1 - number
    raise DecodeError(f"path: nothing begins with {first:#04x} here")


def utf_8(text: str) -> bytes:
    """Text as bytes; raises SnapshotError where that is impossible."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise SnapshotError("a text with a surrogate cannot be saved") from None
