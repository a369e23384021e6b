"""Which frozen associations an identity has.

There may be a million, most of them the only one of their identity, and the limit for a frozen association is 400 bytes, of
which the core's store takes 300. An entry of a dict with its two objects would take 150. So those that are alone
stand in buckets: bytes objects of some eight entries, each two lengths, the identity and the handle. An
identity's second one moves both into a dict, where adding and removing takes the same time however many they are:
whole fleets share an identity.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_LENGTHS = struct.Struct("!HH")
_BUCKET_SIZE = 8
"""Entries of a bucket, on average. Fewer take more memory, more take longer to look through: 8 take 1.5 us."""


class FrozenHandles:
    """Handles by identity, in the order in which they came."""

    __slots__ = ("_alone", "_buckets", "_families", "_mask")

    def __init__(self) -> None:
        self._families: dict[bytes, dict[bytes, None]] = {}
        """Of identities that have had several at once."""
        self._buckets = [b""]
        self._alone = 0
        """Entries in the buckets."""
        self._mask = 0
        """The lowest bits of a hash that number at least as many buckets as there are."""

    def __len__(self) -> int:
        return self._alone + sum(map(len, self._families.values()))

    def of(self, identity: bytes) -> Collection[bytes]:
        """The handles of ``identity``, the one that came first first. Do not keep it."""
        family = self._families.get(identity)
        if family is not None:
            return family.keys()
        return tuple(handle for other, handle in _entries(self._bucket_of(identity)) if other == identity)

    def add(self, identity: bytes, handle: bytes) -> None:
        """One more. Lengths are below 65,536."""
        family = self._families.get(identity)
        if family is None:
            before = self.of(identity)
            if not before:
                self._put(identity, handle)
                return
            for each in before:
                self._take_out(identity, each)
            family = self._families[identity] = dict.fromkeys(before)
        family[handle] = None

    def remove(self, identity: bytes, handle: bytes) -> None:
        """One less. Does nothing if it is not there."""
        family = self._families.get(identity)
        if family is None:
            self._take_out(identity, handle)
            return
        family.pop(handle, None)
        if not family:
            del self._families[identity]

    # --- buckets: one more for each eight entries, whose entries come from one of the others -----------

    def _number(self, identity: bytes) -> int:
        number = hash(identity) & self._mask
        return number if number < len(self._buckets) else number & (self._mask >> 1)

    def _bucket_of(self, identity: bytes) -> bytes:
        return self._buckets[self._number(identity)]

    def _put(self, identity: bytes, handle: bytes) -> None:
        self._alone += 1
        if self._alone > len(self._buckets) * _BUCKET_SIZE:
            self._split()
        self._buckets[self._number(identity)] += _entry(identity, handle)

    def _take_out(self, identity: bytes, handle: bytes) -> None:
        number = self._number(identity)
        bucket = self._buckets[number]
        left = b"".join(_entry(*entry) for entry in _entries(bucket) if entry != (identity, handle))
        if len(left) != len(bucket):
            self._buckets[number] = left
            self._alone -= 1

    def _split(self) -> None:
        new = len(self._buckets)
        if new > self._mask:
            self._mask = self._mask << 1 | 1
        old = new & (self._mask >> 1)
        entries = _entries(self._buckets[old])
        self._buckets[old] = b""
        self._buckets.append(b"")
        for identity, handle in entries:
            self._buckets[self._number(identity)] += _entry(identity, handle)


def _entry(identity: bytes, handle: bytes) -> bytes:
    return _LENGTHS.pack(len(identity), len(handle)) + identity + handle


def _entries(bucket: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(bucket):
        identity_length, handle_length = _LENGTHS.unpack_from(bucket, at)
        at += _LENGTHS.size
        middle, end = at + identity_length, at + identity_length + handle_length
        yield bucket[at:middle], bucket[middle:end]
        at = end
