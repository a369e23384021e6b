"""Numbers of any size in as few bytes as they need, for what we write to ourselves. Each has one encoding only."""

from __future__ import annotations

from sansdtls.errors import DecodeError
from sansdtls.wire.codec import Reader

MAX_NUMBER_BITS = 64
"""Of a number, where the reader says nothing else. Longer ones would be work for nothing."""

SINGLE_BYTES = tuple(bytes((value,)) for value in range(256))
"""Byte strings of length one, by their value."""


def encode_number(value: int) -> bytes:
    """Seven bits in each byte, the lowest first; the eighth is set in all but the last."""
    if value < 0x80:
        return SINGLE_BYTES[value]
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_framed(content: bytes) -> bytes:
    """``content`` behind its length."""
    return encode_number(len(content)) + content


class CompactReader(Reader):
    """Reads what :func:`encode_number` and :func:`encode_framed` write. It does not go through ``integer``, for speed."""

    __slots__ = ()

    def byte(self) -> int:
        """The next byte."""
        at = self._offset
        if at >= len(self._data):
            raise DecodeError(f"{self._what}: 1 bytes short")
        self._offset = at + 1
        return self._data[at]

    def number(self, bits: int = MAX_NUMBER_BITS) -> int:
        """The next number, of at most ``bits`` bits."""
        at = self._offset
        if at < len(self._data) and (value := self._data[at]) < 0x80:
            self._offset = at + 1
            return value
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift >= bits:
                raise DecodeError(f"{self._what}: a number of more than {bits} bits")
        if not byte:
            raise DecodeError(f"{self._what}: a number is not in its shortest form")
        if value >> bits:
            raise DecodeError(f"{self._what}: a number of more than {bits} bits")
        return value

    def framed(self) -> bytes:
        """The next bytes, behind their length."""
        return self.take(self.number())
