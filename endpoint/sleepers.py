"""Which frozen associations an identity has.

There may be a million, most of them the only one of their identity, and the limit for a frozen association is 400
bytes, of which the core's store takes 300. An entry of a dict with its two objects would take 165. So those that are
alone stand in buckets: bytes objects of some eight entries, each a time, three lengths, the identity, the handle and
what names its pre-shared key (so that nobody has to be woken to see whether that is still good). An identity's second
one moves both into a dict, where adding and removing takes the same time however many they are: whole fleets share an
identity.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENTRY = struct.Struct("!dHHB")
"""When it was last heard; lengths of identity, handle and digest."""
_TIME = struct.Struct("!d")
_BUCKET_SIZE = 8
"""Entries of a bucket, on average. Fewer take more memory, more take longer to look through: 8 take 1.5 us."""


class Sleepers:
    """The frozen associations of identities, by handle."""

    __slots__ = ("_alone", "_buckets", "_families", "_mask")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """All have gone elsewhere."""
        self._families: dict[bytes, dict[bytes, bytes]] = {}
        """Of identities that have had several at once: when each was last heard, and its digest."""
        self._buckets = [b""]
        self._alone = 0
        """Entries in the buckets."""
        self._mask = 0
        """The lowest bits of a hash that number at least as many buckets as there are."""

    def __len__(self) -> int:
        """Identities that have a frozen association."""
        return self._alone + len(self._families)

    @property
    def handles(self) -> int:
        """Frozen associations."""
        return self._alone + sum(map(len, self._families.values()))

    def names(self) -> list[bytes]:
        """Those identities."""
        alone = [identity for bucket in self._buckets for _, identity, _, _ in _entries(bucket)]
        return [*alone, *self._families]

    def of(self, identity: bytes) -> list[bytes]:
        """The handles of an identity's, the one that has been silent longest first."""
        family = self._families.get(identity)
        if family is not None:
            return sorted(family, key=lambda handle: _TIME.unpack_from(family[handle]))
        found = self._find(identity)
        return [] if found is None else [found[1]]

    def keyed(self, identity: bytes) -> list[tuple[bytes, bytes]]:
        """Handles and digests of an identity's that were made with a pre-shared key, in any order."""
        family = self._families.get(identity)
        if family is not None:
            found = [(handle, value[_TIME.size :]) for handle, value in family.items()]
        else:
            alone = self._find(identity)
            found = [] if alone is None else [alone[1:]]
        return [entry for entry in found if entry[1]]

    def keyed_identities(self) -> Iterator[bytes]:
        """Those that have such ones. Others may come and go meanwhile; each that stays is met, some perhaps twice."""
        number = 0
        while number < len(self._buckets):  # a bucket's entries only move to one that is still to come
            for _, identity, _, digest in _entries(self._buckets[number]):
                if digest:
                    yield identity
            number += 1
        for identity in list(self._families):
            if self.keyed(identity):
                yield identity

    def add(self, identity: bytes, handle: bytes, last_received: float, digest: bytes = b"") -> None:
        """One of ``identity`` is frozen. Identity and handle are below 65,536 bytes, ``digest`` below 256."""
        family = self._families.get(identity)
        if family is None:
            found = self._find(identity)
            if found is None:
                self._put(last_received, identity, handle, digest)
                return
            self._take_out(identity, found[1])
            family = self._families[identity] = {found[1]: _TIME.pack(found[0]) + found[2]}
        family[handle] = _TIME.pack(last_received) + digest

    def remove(self, identity: bytes, handle: bytes) -> None:
        """It is not any more. Does nothing if it is not there."""
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

    def _find(self, identity: bytes) -> tuple[float, bytes, bytes] | None:
        for last_received, other, handle, digest in _entries(self._buckets[self._number(identity)]):
            if other == identity:
                return last_received, handle, digest
        return None

    def _put(self, last_received: float, identity: bytes, handle: bytes, digest: bytes) -> None:
        self._alone += 1
        if self._alone > len(self._buckets) * _BUCKET_SIZE:
            self._split()
        self._buckets[self._number(identity)] += _entry(last_received, identity, handle, digest)

    def _take_out(self, identity: bytes, handle: bytes) -> None:
        number = self._number(identity)
        bucket = self._buckets[number]
        left = b"".join(_entry(*entry) for entry in _entries(bucket) if entry[1:3] != (identity, handle))
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
        for entry in entries:
            self._buckets[self._number(entry[1])] += _entry(*entry)


def _entry(last_received: float, identity: bytes, handle: bytes, digest: bytes) -> bytes:
    return _ENTRY.pack(last_received, len(identity), len(handle), len(digest)) + identity + handle + digest


def _entries(bucket: bytes) -> Iterator[tuple[float, bytes, bytes, bytes]]:
    at = 0
    while at < len(bucket):
        last_received, identity_length, handle_length, digest_length = _ENTRY.unpack_from(bucket, at)
        at += _ENTRY.size
        handle_at = at + identity_length
        digest_at = handle_at + handle_length
        end = digest_at + digest_length
        yield last_received, bucket[at:handle_at], bucket[handle_at:digest_at], bucket[digest_at:end]
        at = end
