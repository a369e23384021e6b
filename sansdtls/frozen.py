"""Where a server keeps what it has frozen: what it asks of a store, and the store in memory.

A store finds a blob by the association's handle and by the path it was last heard on, hands it out once, and knows which
one's time is over first. :class:`MemoryStore` is made for a million of them, so each may cost little: handle,
path and blob stand in one bytes object, in a numbered slot. Two hash tables from handle and from path to slot, and
a heap of slots in the order of expiry, are arrays of numbers. Beyond the blob's own bytes this costs about 115 for
an association with an 8-byte connection ID on an IPv4 path. A dict for each of the two, with objects for handle,
path and blob, and nothing yet for the order, would cost 230.

Attackers choose handles and paths only as far as they choose their addresses and the connection IDs they guess.
Python's hash of bytes is keyed for each process, so nobody can look for those that collide; and those that do
are told apart by all their bytes, so no association is ever taken for another.
"""

from __future__ import annotations

from array import array
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from sansdtls.errors import SnapshotError
from sansdtls.snapshot import expires_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class FrozenStore(Protocol):
    """Where frozen associations are. All times in seconds on the server's clock.

    A handle names an association; a path key says where it was last heard. :func:`sansdtls.expires_at` says of a blob
    when its association's time is over.
    """

    def put(self, handle: bytes, path_key: bytes, blob: bytes) -> None:
        """Keep ``blob``. Raises SnapshotError if there is one under that handle: it would be loaded twice."""

    def take(self, handle: bytes) -> bytes | None:
        """Hand out a blob, and forget it before: it is good for one use."""

    def handles_at(self, path_key: bytes, limit: int) -> list[bytes]:
        """The associations that were put with this path, the last first, at most ``limit`` of them."""

    def take_expired(self, now: float) -> tuple[bytes, bytes] | None:
        """Handle and blob of one whose time is over, the one that was over first, as :meth:`take`."""

    def next_expiry(self) -> float | None:
        """When the next one's time is over; ``None``: never."""

    def take_oldest(self) -> tuple[bytes, bytes] | None:
        """Handle and blob of the one that expires first, as :meth:`take`: it makes room for another."""

    def handles(self) -> Iterator[bytes]:
        """Of all that are here. One may take them meanwhile."""

    def __len__(self) -> int: ...

    def __contains__(self, handle: object) -> bool: ...


_NO_SLOT = 0xFFFF_FFFF
"""Ends a chain. So there are fewer slots than that, and ``Limits.max_frozen`` is far below."""
_NEVER = 2.0**52
"""Seconds; later than any clock says. Those that never expire line up behind it, in the order they came."""
_LENGTHS = 4
"""Bytes in front of a record: two for the handle's length, two for the path key's."""


class MemoryStore:
    """A :class:`FrozenStore` in this process. What is in it ends with the process."""

    __slots__ = ("_by_expiry", "_by_handle", "_by_path", "_never", "_records", "_unused")

    def __init__(self) -> None:
        self._records: list[bytes] = []
        """By slot; empty where there is none."""
        self._unused = array("I")
        """Slots without a record."""
        self._by_handle = _Index(self._handle)
        self._by_path = _Index(self._path_key)
        self._by_expiry = _Heap()
        self._never = _NEVER

    def __len__(self) -> int:
        return len(self._by_expiry)

    def __contains__(self, handle: object) -> bool:
        return isinstance(handle, bytes) and self._by_handle.find(handle) is not None

    def put(self, handle: bytes, path_key: bytes, blob: bytes) -> None:
        """Keep ``blob``. Raises SnapshotError if there is one under that handle: it would be loaded twice."""
        expiry = expires_at(blob)
        if handle in self:
            raise SnapshotError(f"the association {handle.hex()} is here already: it cannot be loaded twice")
        if expiry >= _NEVER:
            self._never += 1
            expiry = self._never
        record = b"".join((len(handle).to_bytes(2), len(path_key).to_bytes(2), handle, path_key, blob))
        if self._unused:
            slot = self._unused.pop()
            self._records[slot] = record
        else:
            slot = len(self._records)
            self._records.append(record)
        self._by_handle.add(handle, slot)
        self._by_path.add(path_key, slot)
        self._by_expiry.push(slot, expiry)

    def take(self, handle: bytes) -> bytes | None:
        """Hand out a blob, and forget it before: it is good for one use."""
        slot = self._by_handle.find(handle)
        return None if slot is None else self._take(slot)[1]

    def handles_at(self, path_key: bytes, limit: int) -> list[bytes]:
        """The associations that were put with this path, the last first, at most ``limit`` of them."""
        return [self._handle(slot) for slot in islice(self._by_path.all_of(path_key), limit)]

    def take_expired(self, now: float) -> tuple[bytes, bytes] | None:
        """Handle and blob of one whose time is over, the one that was over first, as :meth:`take`."""
        expiry = self.next_expiry()
        return None if expiry is None or expiry > now else self._take(self._by_expiry.first)

    def next_expiry(self) -> float | None:
        """When the next one's time is over; ``None``: never."""
        expiry = self._by_expiry.first_key if len(self) else _NEVER
        return None if expiry >= _NEVER else expiry

    def take_oldest(self) -> tuple[bytes, bytes] | None:
        """Handle and blob of the one that expires first, as :meth:`take`: it makes room for another."""
        return self._take(self._by_expiry.first) if len(self) else None

    def handles(self) -> Iterator[bytes]:
        """Of all that are here. One may take them meanwhile."""
        for slot, record in enumerate(self._records):
            if record:
                yield self._handle(slot)

    def _take(self, slot: int) -> tuple[bytes, bytes]:
        record = self._records[slot]
        handle, path_key = self._handle(slot), self._path_key(slot)
        self._by_handle.remove(handle, slot)
        self._by_path.remove(path_key, slot)
        self._by_expiry.remove(slot)
        self._records[slot] = b""
        self._unused.append(slot)
        return handle, record[_LENGTHS + len(handle) + len(path_key) :]

    def _handle(self, slot: int) -> bytes:
        record = self._records[slot]
        return record[_LENGTHS : _LENGTHS + (record[0] << 8 | record[1])]

    def _path_key(self, slot: int) -> bytes:
        record = self._records[slot]
        start = _LENGTHS + (record[0] << 8 | record[1])
        return record[start : start + (record[2] << 8 | record[3])]


class _Index:
    """A hash table from keys to slots that holds no keys: ``key_of`` says the key of a slot.

    Linear hashing: the table grows by one bucket for each slot, and the slots of one bucket are spread over two. So
    no insertion has to wait for all others to be moved. Slots in one bucket are a chain, the newest first. It goes
    in both directions: one device with a valid key can have 100,000 associations with one path, and whatever is taken
    out of the midst of them must not be looked for.
    """

    __slots__ = ("_buckets", "_following", "_key_of", "_mask", "_preceding", "_size")

    def __init__(self, key_of: Callable[[int], bytes]) -> None:
        self._key_of = key_of
        self._buckets = array("I", (_NO_SLOT,))
        """First slot of each chain."""
        self._following = array("I")
        """By slot: the next one of its chain."""
        self._preceding = array("I")
        """By slot: the one before it; the first has none."""
        self._mask = 0
        """The lowest bits of a hash that number at least as many buckets as there are."""
        self._size = 0

    def _bucket(self, key: bytes) -> int:
        bucket = hash(key) & self._mask
        return bucket if bucket < len(self._buckets) else bucket & (self._mask >> 1)

    def find(self, key: bytes) -> int | None:
        """The slot of ``key`` that was added last."""
        return next(self.all_of(key), None)

    def all_of(self, key: bytes) -> Iterator[int]:
        """The slots of ``key``, the one that was added last first."""
        slot = self._buckets[self._bucket(key)]
        while slot != _NO_SLOT:
            if self._key_of(slot) == key:  # not secret: it is on the wire, or an address
                yield slot
            slot = self._following[slot]

    def add(self, key: bytes, slot: int) -> None:
        """Put a slot in front of its chain. Slots are numbered from 0 on, and used again."""
        self._size += 1
        if self._size > len(self._buckets):
            self._split()
        if slot == len(self._following):
            self._following.append(_NO_SLOT)
            self._preceding.append(_NO_SLOT)
        bucket = self._bucket(key)
        after = self._buckets[bucket]
        self._following[slot], self._preceding[slot] = after, _NO_SLOT
        if after != _NO_SLOT:
            self._preceding[after] = slot
        self._buckets[bucket] = slot

    def remove(self, key: bytes, slot: int) -> None:
        """Take a slot out of its chain."""
        self._size -= 1
        before, after = self._preceding[slot], self._following[slot]
        if before == _NO_SLOT:
            self._buckets[self._bucket(key)] = after
        else:
            self._following[before] = after
        if after != _NO_SLOT:
            self._preceding[after] = before

    def _split(self) -> None:
        """Add a bucket, and give it what belongs there of the one bucket that had it until now."""
        new = len(self._buckets)
        if new > self._mask:
            self._mask = self._mask << 1 | 1
        old = new & (self._mask >> 1)
        slot = self._buckets[old]
        self._buckets.append(_NO_SLOT)
        ends = {old: _NO_SLOT, new: _NO_SLOT}
        self._buckets[old] = _NO_SLOT
        while slot != _NO_SLOT:  # in their order, so that the newest of equal keys stays first
            following = self._following[slot]
            bucket = self._bucket(self._key_of(slot))
            before = self._preceding[slot] = ends[bucket]
            if before == _NO_SLOT:
                self._buckets[bucket] = slot
            else:
                self._following[before] = slot
            ends[bucket] = slot
            self._following[slot] = _NO_SLOT
            slot = following


class _Heap:
    """Slots by a key, the smallest first; any of them can be taken out.

    What comes in order, as associations do that fall silent one after the other, goes in without a move.
    """

    __slots__ = ("_heap", "_keys", "_places")

    def __init__(self) -> None:
        self._heap = array("I")
        """Slots; the key of each is not below that of its parent, which is at half its place."""
        self._places = array("I")
        """By slot: where it stands in the heap."""
        self._keys = array("d")
        """By slot."""

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def first(self) -> int:
        """The slot with the smallest key."""
        return self._heap[0]

    @property
    def first_key(self) -> float:
        """The smallest key."""
        return self._keys[self._heap[0]]

    def push(self, slot: int, key: float) -> None:
        """Add a slot."""
        if slot == len(self._keys):
            self._keys.append(key)
            self._places.append(0)
        self._keys[slot] = key
        self._heap.append(slot)
        self._rise(slot, len(self._heap) - 1)

    def remove(self, slot: int) -> None:
        """Take a slot out. The last one takes its place, and goes from there to where it belongs."""
        place = self._places[slot]
        last = self._heap.pop()
        if last == slot:
            return
        heap, keys, places = self._heap, self._keys, self._places
        size = len(heap)
        # Down to the end without a look at the last one's key, which is large in most cases, then up again.
        while (child := 2 * place + 1) < size:
            if child + 1 < size and keys[heap[child + 1]] < keys[heap[child]]:
                child += 1
            moved = heap[place] = heap[child]
            places[moved] = place
            place = child
        self._rise(last, place)

    def _rise(self, slot: int, place: int) -> None:
        heap, keys, places = self._heap, self._keys, self._places
        key = keys[slot]
        while place and keys[parent := heap[(place - 1) // 2]] > key:
            heap[place] = parent
            places[parent] = place
            place = (place - 1) // 2
        heap[place] = slot
        places[slot] = place
