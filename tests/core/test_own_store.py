"""A store of the caller's own, made of nothing but public names, in the place of the one in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sansdtls import Limits, SnapshotError, expires_at
from tests.core.freezing import NO_ID, connect, freeze, freezing_fleet, received, say

if TYPE_CHECKING:
    from collections.abc import Iterator


class DictStore:
    """As :class:`sansdtls.FrozenStore` describes one."""

    def __init__(self) -> None:
        self._kept: dict[bytes, tuple[bytes, bytes]] = {}

    def put(self, handle: bytes, path_key: bytes, blob: bytes) -> None:
        if handle in self._kept:
            raise SnapshotError("it is here already")
        self._kept[handle] = path_key, blob

    def take(self, handle: bytes) -> bytes | None:
        return self._kept.pop(handle, (b"", None))[1]

    def handles_at(self, path_key: bytes, limit: int) -> list[bytes]:
        return [handle for handle in reversed(self._kept) if self._kept[handle][0] == path_key][:limit]

    def take_expired(self, now: float) -> tuple[bytes, bytes] | None:
        next_expiry = self.next_expiry()
        return self.take_oldest() if next_expiry is not None and next_expiry <= now else None

    def next_expiry(self) -> float | None:
        return min((expires_at(blob) for _, blob in self._kept.values()), default=None)

    def take_oldest(self) -> tuple[bytes, bytes] | None:
        if not self._kept:
            return None
        oldest = min(self._kept, key=lambda handle: expires_at(self._kept[handle][1]))
        return oldest, self._kept.pop(oldest)[1]

    def handles(self) -> Iterator[bytes]:
        return iter(list(self._kept))

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, handle: object) -> bool:
        return handle in self._kept


def test_devices_sleep_in_a_store_of_the_callers_own_and_are_found_by_id_and_by_path():
    store = DictStore()
    fleet = freezing_fleet(store=store)
    found_by_id, found_by_path = connect(fleet, 1), connect(fleet, 2, connection_id=NO_ID)
    freeze(fleet, found_by_id, found_by_path)
    assert len(store) == fleet.server.frozen == 2
    say(fleet, found_by_id, b"one")
    say(fleet, found_by_path, b"two")
    assert len(store) == 0
    assert received(fleet)[-2:] == [b"one", b"two"]


def test_their_time_is_over_by_what_their_blobs_say():
    limits = Limits(idle_timeout=50, idle_timeout_with_connection_id=100)
    store = DictStore()
    fleet = freezing_fleet(store=store, limits=limits)
    freeze(fleet, connect(fleet, 1), connect(fleet, 2, connection_id=NO_ID))
    fleet.run_for(60)
    assert len(store) == 1
    fleet.run_for(60)
    assert len(store) == 0
