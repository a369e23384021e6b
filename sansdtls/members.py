"""The life of the connections of a server: each gets its place, keeps its deadline, and gives back what it held.

A member is half-open, then established; an established one may be frozen and come back as another object. Every way
to end leads through :meth:`Members.release`, so that each slot is given back exactly once.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from sansdtls.association import ConnectionState
from sansdtls.connection import Connection
from sansdtls.deadlines import Deadlines
from sansdtls.errors import SnapshotError
from sansdtls.events import (
    ConnectionFrozen,
    ConnectionTerminated,
    ConnectionThawed,
    DiscardReason,
    HandshakeCompleted,
    IdleTimeout,
    LimitExceeded,
    PeerClose,
    SecretDerived,
)
from sansdtls.freezer import NEVER, Expiry, Freezer, handle_of
from sansdtls.handshake.failure import HandshakeFailure
from sansdtls.handshake.outcome import Peer
from sansdtls.iana import AlertDescription
from sansdtls.record.ciphers import Ciphers
from sansdtls.routes import Member, Pending, Route, Routes
from sansdtls.saved_paths import can_be_saved
from sansdtls.statistics import ServerStatistics, cause_name, count

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from sansdtls.config import ServerConfig
    from sansdtls.events import Cause, Event
    from sansdtls.record.layer import Outgoing
    from sansdtls.saved import SavedAssociation
    from sansdtls.wire.record import Record

EXPIRED_AT_ONCE = 64
"""Frozen associations that one call may end for idleness; the next call is then due at once. Each is thawed
to tell its peer, if that is wanted, and its owner."""
LOOKED_AT_FOR_ROOM = 64
"""Associations, the ones that have been silent longest, among which one is sought that can be frozen for a newcomer.
All others could be looked at for each hello otherwise, where handshakes are so fresh that none can be frozen."""
_EPOCH = 1
"""Of all records of an established association, as nobody renegotiates."""


class Members:
    """The connections of one server."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        entropy: Callable[[int], bytes],
        now: float,
        freezer: Freezer,
    ) -> None:
        self.config = config
        """For what begins from now on; ``limits`` are those of the beginning."""
        self.statistics = ServerStatistics()
        self.routes = Routes()
        self.freezer = freezer
        self.deadlines: Deadlines[Member | Pending | Expiry] = Deadlines()
        self.outbox: list[Outgoing] = []
        self.ciphers = Ciphers()
        self.events: list[Event] = []
        """That arose where no list of events is returned."""
        self.now = now
        """The last time that is known."""
        self._limits = config.limits
        self._entropy = entropy
        self.statistics.frozen = len(freezer)

    # --- what connections call ----------------------------------------------------------------------

    def wake_member(self, member: Member, now: float) -> None:
        """For :class:`~sansdtls.routes.Member`: an event of it waits to be fetched."""
        self.deadlines.schedule(member, now)

    def numbers_low(self, member: Member) -> None:
        """For :class:`~sansdtls.routes.Member`: it needs a checkpoint soon."""
        self.freezer.reserve_low = True
        self.note(member)

    def changed(self, member: Member) -> None:
        """For :class:`~sansdtls.routes.Member`: the next checkpoint is to have it."""
        if member in self.routes.established:  # a newcomer's handle may still be another's
            self.note(member)

    def settle_member(self, member: Member, events: list[Event], now: float) -> list[Event]:
        """After anything that happened to a connection: its new place, its new deadline."""
        connection = member.connection
        self.now = now
        if member.route.half_open is member and any(
            isinstance(event, HandshakeCompleted) for event in events
        ):
            events = self._establish(member, events, now)
        if connection.state is ConnectionState.CLOSED:
            self.release(member, events)
            return events
        self.schedule(member)
        established = self.routes.established
        if member in established:
            if connection.last_received == now:
                established.move_to_end(member)
            self.follow(member)
            self.note(member)
        return events

    # --- places -------------------------------------------------------------------------------------

    def _establish(self, member: Member, events: list[Event], now: float) -> list[Event]:
        """A newcomer has authenticated itself: it takes its place, if there is one."""
        route, connection = member.route, member.connection
        before: list[Event] = []
        rivals = route.rivals_of(connection)
        for rival in rivals:
            self.end(rival, PeerClose(replaced=True), now, before)
        if not rivals and not self._room_made(now, before):
            # An alert under the new keys: the device knows at once, and that it is no key problem.
            cause = LimitExceeded("max_associations")
            connection.fail(HandshakeFailure(AlertDescription.INTERNAL_ERROR, cause))
            events = [event for event in events if isinstance(event, SecretDerived)]
            return events + connection.take_events()
        self._replace_frozen(member, now, before)
        route.half_open = None
        member.hello = None
        self.statistics.half_open -= 1
        self.statistics.handshakes_completed += 1
        self._admit(member)
        return before + events

    def _admit(self, member: Member) -> None:
        member.connection.share_ciphers(self.ciphers)
        self.routes.established[member] = None
        self.routes.settle_at(member, member.connection.path)
        self.statistics.associations += 1

    def has_room(self, route: Route | None, now: float) -> bool:
        """Whether there is or can be made room for one more association."""
        replaces = route is not None and route.established is not None
        return (
            replaces
            or len(self.routes.established) < self._limits.max_associations
            or self._stale(now) is not None
            or self._rester(now) is not None
        )

    def make_room(self, now: float) -> bool:
        """Have one place free, if that can be; whose it was is told with the next events."""
        return self._room_made(now, self.events)

    def _room_made(self, now: float, events: list[Event]) -> bool:
        self.now = now
        if len(self.routes.established) < self._limits.max_associations:
            return True
        rester = self._rester(now)
        if rester is not None and self.freeze(rester, events):
            return True
        stale = self._stale(now)
        if stale is None:
            return False
        self.end(stale, LimitExceeded("max_associations"), now, events, notify=True)
        self.statistics.evictions += 1
        return True

    def _stale(self, now: float) -> Member | None:
        """The association that may end in favour of another, if any."""
        for member in self.routes.established:
            return member if now - member.connection.last_received >= self._limits.stale_after else None
        return None

    def _rester(self, now: float) -> Member | None:
        """The association that may be frozen to make room, if the server freezes at all."""
        if self._freeze_after is None:
            return None
        silent_longest = islice(self.routes.established, LOOKED_AT_FOR_ROOM)
        return next((member for member in silent_longest if self._may_be_frozen(member, now)), None)

    def _may_be_frozen(self, member: Member, now: float) -> bool:
        """Whether :meth:`freeze` would, so that what ``has_room`` has promised is there."""
        connection = member.connection
        return connection.rests(now) and can_be_saved(connection.path)

    @property
    def _freeze_after(self) -> float | None:
        return self.config.freeze_after if self._limits.max_frozen else None

    def follow(self, member: Member) -> None:
        """An established connection may have changed its path."""
        path = member.connection.path
        if path is not member.route.path and path != member.route.path:
            self.routes.settle_at(member, path)

    def end(
        self, member: Member, cause: Cause, now: float, events: list[Event], *, notify: bool = False
    ) -> None:
        """End a connection; its last event goes to ``events``."""
        self.now = now
        if member.connection.state is not ConnectionState.CLOSED:  # as one of which the event waits
            member.connection.terminate(cause, notify=notify)
        last = member.connection.take_events()
        self.release(member, last)
        events += last

    def release(self, member: Member, events: list[Event]) -> None:
        """Give back what a closed connection held. Safe to call twice."""
        route = member.route
        if route.half_open is member:
            route.half_open = None
            self.statistics.half_open -= 1
            failed = self.statistics.handshakes_failed
            for event in events:
                if isinstance(event, ConnectionTerminated):
                    name = cause_name(event.cause)
                    failed[name] = failed.get(name, 0) + 1
        elif member in self.routes.established:
            if member.connection.serial:
                self.freezer.remember(member.connection.server_random, NEVER)
            if self.freezer.durable and (handle := self._handle_or_none(member)) is not None:
                self.freezer.note(handle, None)
        self._forget(member)

    def abandon(self, member: Member) -> None:
        """A handshake could not even be begun; there is no connection."""
        route = member.route
        self.routes.withdraw_unmade(member)
        if route.half_open is member:
            route.half_open = None
            self.statistics.half_open -= 1
            self.routes.drop(route)

    def _forget(self, member: Member) -> None:
        self.deadlines.cancel(member)
        self.routes.withdraw(member)
        if member in self.routes.established:
            del self.routes.established[member]
            self.statistics.associations -= 1
        member.route.leave(member)
        self.routes.drop(member.route)

    # --- deadlines ----------------------------------------------------------------------------------

    def schedule(self, member: Member) -> None:
        """See to it that the member is looked at when it is due."""
        deadline = member.connection.next_timeout()
        freeze_after = self._freeze_after
        if freeze_after is not None and member in self.routes.established:
            rest = member.connection.rests_at(freeze_after)
            deadline = rest if deadline is None else min(deadline, rest)
        if deadline is not None:
            self.deadlines.schedule(member, deadline)

    def handle_due(self, member: Member, now: float) -> list[Event]:
        """The member's time has come, for whatever it was."""
        connection = member.connection
        events = self.settle_member(member, connection.handle_timeout(now=now), now)
        freeze_after = self._freeze_after
        if events or freeze_after is None or member not in self.routes.established:
            return events
        if now < connection.rests_at(freeze_after):
            return events
        if connection.rests(now) and self.freeze(member, events):
            return events
        # A check of its path is under way, or its path cannot be saved: look again later.
        self.deadlines.cancel(member)
        deadline = connection.next_timeout()
        again = now + freeze_after
        self.deadlines.schedule(member, again if deadline is None else min(again, deadline))
        return events

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

    # --- freezing -----------------------------------------------------------------------------------

    def note(self, member: Member) -> None:
        """An established association has changed."""
        if self.freezer.durable and (handle := self._handle_or_none(member)) is not None:
            self.freezer.note(handle, member.connection)

    def freeze(self, member: Member, events: list[Event]) -> bool:
        """Put an established association into the store. One whose path cannot be saved stays as it is: False."""
        connection = member.connection
        path, reserved_until = connection.path, connection.reserved_until
        try:
            handle, blob = _handle(member), self.take_out(member)
        except SnapshotError:
            return False
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
        self._forget(member)
        return blob

    def _snapshot(self, member: Member) -> bytes:
        keys = self.config.snapshot_keys
        return member.connection.snapshot(generation=self.freezer.generation, keys=keys)

    def _handle_or_none(self, member: Member) -> bytes | None:
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
        self._admit(member)
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
            self.freezer.remember(saved.server_random, NEVER)  # older copies would use numbers again
            self._lost(handle)
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

    def _replace_frozen(self, newcomer: Member, now: float, events: list[Event]) -> None:
        """A handshake has succeeded where frozen associations were last heard: the same rule as for a live one."""
        path = newcomer.connection.path
        for handle in self.freezer.last_heard_at(path):
            taken = self._take(handle)
            if taken is None:
                continue
            saved, blob = taken
            if not saved.connection_id or _peer_of(saved).is_same_as(newcomer.connection.peer or Peer()):
                self._end_frozen(handle, blob, lambda _: PeerClose(replaced=True), now, events)
            else:
                self.freezer.put(handle, path, blob)


def _idle(saved: SavedAssociation) -> IdleTimeout:
    return IdleTimeout(round(saved.expires_at - saved.last_received, 3))  # what is beyond is the clock's


def _handle(member: Member) -> bytes:
    return handle_of(member.connection_id, member.connection.path)


def _peer_of(saved: SavedAssociation) -> Peer:
    return Peer(saved.psk_identity, None, saved.certificate_chain, saved.raw_public_key)
