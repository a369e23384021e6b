"""The presentation language of RFC 5246 §4: fixed integers and vectors with a length in front."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sansdtls.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Iterable


class Reader:
    """Reads one structure from front to back; every read past its end is a :class:`DecodeError`.

    ``what`` names the structure in the error, for the operator.
    """

    __slots__ = ("_data", "_offset", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._offset = 0
        self._what = what

    @property
    def offset(self) -> int:
        """Bytes read so far."""
        return self._offset

    @property
    def remaining(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._offset

    def take(self, length: int) -> bytes:
        """The next ``length`` bytes."""
        end = self._offset + length
        if end > len(self._data):
            raise DecodeError(f"{self._what}: {end - len(self._data)} bytes short")
        taken = self._data[self._offset : end]
        self._offset = end
        return taken

    def integer(self, width: int) -> int:
        """An unsigned integer of ``width`` bytes in network order."""
        return int.from_bytes(self.take(width))

    def vector(self, width: int, minimum: int = 0, maximum: int | None = None) -> bytes:
        """An opaque vector whose length field has ``width`` bytes, RFC 5246 §4.3."""
        length = self.integer(width)
        if length < minimum or (maximum is not None and length > maximum):
            raise DecodeError(f"{self._what}: a vector of {length} bytes is out of range")
        return self.take(length)

    def uint16s(self) -> tuple[int, ...]:
        """A vector of at least one 16-bit integer, its length in two bytes in front."""
        content = self.vector(2, minimum=2)
        if len(content) % 2:
            raise DecodeError(f"{self._what}: a list of 16-bit values has an odd number of bytes")
        return tuple(int.from_bytes(content[i : i + 2]) for i in range(0, len(content), 2))

    def end(self) -> None:
        """Insist that nothing is left over."""
        if self.remaining:
            raise DecodeError(f"{self._what}: {self.remaining} trailing bytes")


def vector(width: int, content: bytes) -> bytes:
    """``content`` with its length in ``width`` bytes in front."""
    return len(content).to_bytes(width) + content


def uint16s(values: Iterable[int]) -> bytes:
    """16-bit integers with their length in bytes in two bytes in front."""
    return vector(2, b"".join(value.to_bytes(2) for value in values))
