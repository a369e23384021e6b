"""The members of a server that are frozen: into the store, out of it, and how they end there.

A record for a frozen association is tried before anything changes: see ``freezer.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sansdtls.association import ConnectionState
from sansdtls.connection import Connection
from sansdtls.errors import SnapshotError
from sansdtls.events import (
    ConnectionFrozen,
    ConnectionThawed,
    DiscardReason,
    IdleTimeout,
    LimitExceeded,
    PeerClose,
)
from sansdtls.freezer import NEVER, Expiry, Freezer, handle_of
from sansdtls.freezing import peer_of
from sansdtls.handshake.outcome import Peer
from sansdtls.routes import Member, Pending, Route, Routes
from sansdtls.statistics import ServerStatistics, count

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from sansdtls.config import Limits, ServerConfig
    from sansdtls.deadlines import Deadlines
    from sansdtls.events import Cause, Event
    from sansdtls.record.layer import Outgoing
    from sansdtls.saved import SavedAssociation
    from sansdtls.wire.record import Record

EXPIRED_AT_ONCE = 64
"""Frozen associations that one call may end for idleness; the next call is then due at once. Each is thawed
to tell its peer, if that is wanted, and its owner."""
_EPOCH = 1
"""Of all records of an established association, as nobody renegotiates."""


class FrozenMembers:
    """The part of :class:`~sansdtls.members.Members` that deals with frozen associations."""

    config: ServerConfig
    statistics: ServerStatistics
    deadlines: Deadlines[Member | Pending | Expiry]
    freezer: Freezer
    outbox: list[Outgoing]
    now: float
    routes: Routes
    _entropy: Callable[[int], bytes]
    _limits: Limits

    if TYPE_CHECKING:

        def has_room(self, route: Route | None, now: float) -> bool: ...
        def schedule(self, member: Member) -> None: ...
        def settle_member(self, member: Member, events: list[Event], now: float) -> list[Event]: ...
        def numbers_low(self, member: Member) -> None: ...
        def changed(self, member: Member) -> None: ...
        def wake_member(self, member: Member, now: float) -> None: ...
        def forget(self, member: Member) -> None: ...
        def settle_in(self, member: Member) -> None: ...
        def _room_made(self, now: float, events: list[Event]) -> bool: ...

    def note(self, member: Member) -> None:
        """An established association has changed."""
        if self.freezer.durable and (handle := self.handle_or_none(member)) is not None:
            self.freezer.note(handle, member.connection)

    def freeze(self, member: Member, events: list[Event]) -> bool:
        """Put an established association into the store. One whose path cannot be saved stays as it is: False."""
        connection = member.connection
        path, reserved_until, serial = connection.path, connection.reserved_until, connection.serial
        try:
            handle, blob = _handle(member), self.take_out(member)
        except SnapshotError:
            return False
        if serial:  # there are older blobs; freeze_all will hand this one out unread
            self.freezer.remember(connection.server_random, serial)
        connection.leave()
        self.freezer.hold_bound(handle, blob, reserved_until)
        self.freezer.note(handle, blob)
        self._store(handle, path, blob, events)
        self.statistics.freezes += 1
        events.append(ConnectionFrozen(connection, handle))
        return True

    def take_out(self, member: Member) -> bytes:
        """The bytes of an established association, which has no place any more then."""
        member.connection.drop_last_flight(self.now)
        blob = self._snapshot(member)
        self.forget(member)
        return blob

    def _snapshot(self, member: Member) -> bytes:
        keys = self.config.snapshot_keys
        return member.connection.snapshot(generation=self.freezer.generation, keys=keys)

    def handle_or_none(self, member: Member) -> bytes | None:
        """``None`` for an association without connection ID whose path cannot be saved: it lives only here."""
        try:
            return _handle(member)
        except SnapshotError:
            return None

    def _store(self, handle: bytes, path: Hashable, blob: bytes, events: list[Event]) -> None:
        if len(self.freezer) >= self._limits.max_frozen:
            oldest = self.freezer.take_oldest()
            if oldest is not None:
                cause = LimitExceeded("max_frozen")
                self._end_frozen(*oldest, lambda _: cause, self.now, events, notify=True)
        self.freezer.put(handle, path, blob)
        self.statistics.frozen = len(self.freezer)
        self.schedule_expiry()

    def revive(self, handle: bytes, saved: SavedAssociation, now: float) -> Member:
        """A member made of what was saved; it has no place yet. Raises SnapshotError."""
        member = Member(self, Route(saved.path))
        member.connection = Connection.revived(
            saved,
            self.config,
            entropy=self._entropy,
            now=now,
            outbox=self.outbox,
            totals=self.statistics,
            generation=self.freezer.generation,
            reserved_until=self.freezer.bound_of(handle, saved),
            watcher=member,
        )
        return member

    def admit(self, member: Member, handle: bytes, saved: SavedAssociation) -> ConnectionThawed:
        """Give a revived member its place."""
        connection = member.connection
        if saved.connection_id:
            self.routes.assign(saved.connection_id, member)
        self.settle_in(member)
        self.schedule(member)
        self.note(member)
        self.statistics.thaws += 1
        self.statistics.frozen = len(self.freezer)
        return ConnectionThawed(connection, handle)

    def thaw(self, handle: bytes, now: float, events: list[Event]) -> Member | None:
        """Take an association out of the store; ``None`` if there is none, it is damaged, or nobody gives way."""
        if not self.has_room(None, now):
            return None
        taken = self._take(handle)
        if taken is None:
            return None
        saved, _ = taken
        member = self._revive_or_count(handle, saved, now)
        if member is not None:
            self._room_made(now, events)
            events.append(self.admit(member, handle, saved))
        return member

    def receive_for_frozen(
        self, handle: bytes, record: Record, path: Hashable, now: float, events: list[Event]
    ) -> Member | None:
        """A record for a frozen association: wakes it if it is authentic, changes nothing but a count if not."""
        self.now = now
        if record.epoch != _EPOCH:
            count(self.statistics.records_discarded, DiscardReason.UNKNOWN_EPOCH)
            return None
        if not self.has_room(None, now):
            count(self.statistics.records_discarded, DiscardReason.ASSOCIATION_LIMIT)
            return None
        taken = self._take(handle)
        if taken is None:
            return None
        saved, blob = taken
        member = self._revive_or_count(handle, saved, now)
        if member is None:
            return None
        connection = member.connection
        if not connection.receive_record(record, now, path) and connection.state is ConnectionState.CONNECTED:
            if connection.failed_opens != saved.failed_opens:
                blob = self._snapshot(member)
            self.freezer.put(handle, saved.path, blob)
            self.statistics.frozen = len(self.freezer)
            self.statistics.thaws_refused += 1
            return None
        last = connection.take_events()
        self._room_made(now, events)
        events.append(self.admit(member, handle, saved))
        events += self.settle_member(member, last, now)
        return member

    def _take(self, handle: bytes) -> tuple[SavedAssociation, bytes] | None:
        blob = self.freezer.take(handle)
        if blob is None:
            return None
        saved = self._decode_or_count(handle, blob)
        return None if saved is None else (saved, blob)

    def _decode_or_count(self, handle: bytes, blob: bytes) -> SavedAssociation | None:
        try:
            saved = self.freezer.decode(blob, self.config.snapshot_keys)
            if handle_of(saved.connection_id, saved.path) == handle:
                return saved
        except SnapshotError:
            pass
        self._lost(handle)  # nor is another's blob of any use: its association may be live
        return None

    def _revive_or_count(self, handle: bytes, saved: SavedAssociation, now: float) -> Member | None:
        try:
            return self.revive(handle, saved, now)
        except SnapshotError:
            self._lost(handle)
            self.freezer.remember(saved.server_random, NEVER)  # older copies would use numbers again
            return None

    def _lost(self, handle: bytes) -> None:
        """What the store handed out is of no use: it was damaged there, or its keys are used up."""
        self.statistics.frozen = len(self.freezer)
        self.statistics.frozen_lost += 1
        self.freezer.note(handle, None)

    def _end_frozen(
        self,
        handle: bytes,
        blob: bytes,
        cause: Callable[[SavedAssociation], Cause],
        now: float,
        events: list[Event],
        *,
        notify: bool = False,
    ) -> None:
        """End an association that was taken out of the store, as if it had been live."""
        saved = self._decode_or_count(handle, blob)
        if saved is None:
            return
        member = self._revive_or_count(handle, saved, now)
        if member is None:
            return
        connection = member.connection
        connection.terminate(cause(saved), notify=notify)
        self.statistics.frozen = len(self.freezer)
        self.freezer.note(handle, None)
        self.freezer.remember(saved.server_random, NEVER)
        events.append(ConnectionThawed(connection, handle))
        events += connection.take_events()

    def replace_frozen(self, newcomer: Member, now: float, events: list[Event]) -> None:
        """A handshake has succeeded where frozen associations were last heard: the same rule as for a live one."""
        path = newcomer.connection.path
        for handle in self.freezer.last_heard_at(path):
            taken = self._take(handle)
            if taken is None:
                continue
            saved, blob = taken
            if not saved.connection_id or peer_of(saved).is_same_as(newcomer.connection.peer or Peer()):
                self._end_frozen(handle, blob, lambda _: PeerClose(replaced=True), now, events)
            else:
                self.freezer.put(handle, path, blob)

    def expire(self, now: float) -> list[Event]:
        """End frozen associations whose time is over."""
        events: list[Event] = []
        for _ in range(EXPIRED_AT_ONCE):
            expired = self.freezer.take_expired(now)
            if expired is None:
                break
            self._end_frozen(*expired, _idle, now, events, notify=self.config.notify_idle_timeout)
        self.schedule_expiry()
        return events

    def schedule_expiry(self) -> None:
        """The store's next expiry is a deadline too."""
        deadline = self.freezer.store.next_expiry()
        if deadline is not None:
            self.deadlines.schedule(self.freezer.expiry, deadline)


def _idle(saved: SavedAssociation) -> IdleTimeout:
    return IdleTimeout(round(saved.expires_at - saved.last_received, 3))  # what is beyond is the clock's


def _handle(member: Member) -> bytes:
    return handle_of(member.connection_id, member.connection.path)
