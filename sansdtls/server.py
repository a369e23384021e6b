"""Many associations on one socket that is somebody else's: cookies, routing, limits, deadlines.

Attacker: sends anything from any path; may own some paths, and may replay what it saw on others.
Properties: no memory before proof of address (``cookie.py``); a bounded number of handshakes and of
associations; every slot given back on every way a handshake or an association can end; an
established association is disturbed by its own authentic records only.

So a ClientHello on a path that has an association never touches it. With a valid cookie a second connection
begins *beside* the first (a device that lost its state reconnects from the same address), and takes its
place when its Finished has been verified, not before. Records are told apart by trying keys: handshake
records at the newcomer first, all others at the established connection first.

A record with a connection ID is routed by it, whatever path it came on; what that does to the path in use is
decided behind its authentication (``association.py``). An association that is found by its ID need not give way to
another peer's on its path: behind a NAT an address that one device has lost is soon another's. It gives way to
a newcomer who proves to be the same peer, and simply loses its claim to the path otherwise.

When ``max_associations`` is reached, a newcomer that has authenticated itself may take the place of the
association that has been silent longest, if that is longer than ``stale_after``; otherwise the newcomer is
refused. Strangers without a key displace nobody.

Left out: who may connect how often. That depends on what a path is (addresses, prefixes), which this class
does not know; the caller answers each ``ConnectionOffered``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sansdtls.association import ConnectionState
from sansdtls.connection import Connection
from sansdtls.deadlines import Deadlines
from sansdtls.errors import DecodeError
from sansdtls.events import (
    ConnectionTerminated,
    DiscardReason,
    HandshakeCompleted,
    LimitExceeded,
    PeerClose,
    SecretDerived,
)
from sansdtls.handshake.failure import HandshakeFailure
from sansdtls.handshake.resumption import Sessions
from sansdtls.hello import Answer, HelloVerifier, is_client_hello, read_hello_untrusted
from sansdtls.iana import AlertDescription, ContentType
from sansdtls.offers import Offers
from sansdtls.record.layer import Outgoing
from sansdtls.routes import Member, Pending, Route, Routes, repeats
from sansdtls.statistics import ServerStatistics, cause_name, count
from sansdtls.wire.handshake import HandshakeMessage
from sansdtls.wire.record import read_record_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from sansdtls.config import ServerConfig
    from sansdtls.events import Cause, ConnectionOffered, Event
    from sansdtls.wire.record import Record

_HANDSHAKE_BYTE = bytes([ContentType.HANDSHAKE])
_TLS12_CID_BYTE = bytes([ContentType.TLS12_CID])

_ID_ATTEMPTS = 16
"""How often a connection ID in use is asked for again. Random IDs of a sensible length never need it; where
so many are taken, the association gets none, and is found by its path."""


class Server:
    """All the associations that arrive at one place. Not thread-safe; makes no calls of its own."""

    def __init__(self, config: ServerConfig, *, entropy: Callable[[int], bytes], now: float) -> None:
        """``entropy(n)`` returns n random bytes fit for keys; ``now`` is monotonic time in seconds."""
        self.statistics = ServerStatistics()
        """Counters and gauges; live."""
        self._config = config
        self._limits = config.limits
        self._entropy = entropy
        self._now = now
        self._sessions = _sessions(config, entropy, now)
        self._verifier = HelloVerifier(config.cookie, self.statistics, entropy, now)
        self._routes = Routes()
        self._deadlines: Deadlines[Member | Pending] = Deadlines()
        self._outbox: list[Outgoing] = []
        self._events: list[Event] = []  # that arose where no list of events is returned
        self._offers = Offers(
            routes=self._routes,
            deadlines=self._deadlines,
            limits=config.limits,
            statistics=self.statistics,
            outbox=self._outbox,
            has_room=self._has_room,
        )

    def __len__(self) -> int:
        """Established associations."""
        return len(self._routes.established)

    @property
    def connections(self) -> Iterator[Connection]:
        """The established connections, the least recently used first. Do not let time pass while iterating."""
        return (member.connection for member in self._routes.established)

    # --- what a driver calls ------------------------------------------------------------------------

    def receive_datagram(self, data: bytes, *, path: Hashable, now: float) -> list[Event]:
        """Take in a datagram that came on ``path``. Never raises, whatever the bytes."""
        self.statistics.datagrams_received += 1
        first = data[:1]
        if first == _TLS12_CID_BYTE:
            member = self._routes.identified_untrusted(data, 0)
            if member is not None and member.route.half_open is not member:
                return self._receive_established(member, data, path, now)
        elif first != _HANDSHAKE_BYTE:
            route = self._routes.at(path)
            if route is not None and not (route.half_open or route.pending):
                member = route.established
                if member is not None:
                    return self._receive_established(member, data, None, now)
        return self._receive_records(data, path, now)

    def _receive_established(self, member: Member, data: bytes, path: Hashable, now: float) -> list[Event]:
        """The fast way: all of the datagram is this connection's."""
        connection = member.connection
        events = connection.receive_datagram(data, now=now, path=path)
        if connection.state is ConnectionState.CLOSED:
            return self.settle_member(member, events, now)
        if connection.last_received == now:
            self._routes.established.move_to_end(member)
        if path is not None:
            self._follow(member)
        return events

    def datagrams_to_send(self) -> list[Outgoing]:
        """What is to be sent, in order; handed out once."""
        datagrams = self._outbox[:]
        self._outbox.clear()
        return datagrams

    def next_timeout(self) -> float | None:
        """When :meth:`handle_timeout` is due; ``None`` = not before something else happens."""
        return self._now if self._events else self._deadlines.next()

    def handle_timeout(self, *, now: float) -> list[Event]:
        """Do what is due at ``now``, for all connections. Early calls do nothing."""
        events = self._take_events()
        while (due := self._deadlines.pop_due(now)) is not None:
            if isinstance(due, Pending):
                self._offers.drop(due)
                self._routes.drop(due.route)
            else:
                events += self.settle_member(due, due.connection.handle_timeout(now=now), now)
        return events

    def accept(self, offer: ConnectionOffered, *, now: float) -> Connection:
        """Begin the handshake with a client that was offered. Raises WrongState if it was answered before.

        What has to be asked before the first answer (a session to resume) comes as an event of
        :meth:`handle_timeout`, which is then due at once. Where client and server have nothing in common, or the offer has lapsed meanwhile, the connection is
        closed at once; its ``ConnectionTerminated`` comes like any other event.
        """
        route = self._offers.answer(offer)
        lapsed = route is None
        if route is None:
            route = Route(offer.path)  # of no use to anybody but the closed connection
        elif route.half_open is not None:  # the device began anew before its handshake was complete
            self._end(route.half_open, PeerClose(replaced=True), now, self._events)
        member = Member(self, route, offer)
        if not lapsed:
            route = member.route = self._routes.hold(offer.path)
            route.half_open = member
            self.statistics.half_open += 1
            self.statistics.handshakes_started += 1
        self._now = now
        member.connection = Connection.accepted(
            self._config,
            offer,
            entropy=self._entropy,
            now=now,
            outbox=self._outbox,
            totals=self.statistics,
            watcher=member,
            sessions=self._sessions,
            new_connection_id=partial(self._new_connection_id, member),
            lapsed=lapsed,
        )
        self._schedule(member)
        return member.connection

    def refuse(self, offer: ConnectionOffered) -> None:
        """Turn a client down, silently. Raises WrongState if it was answered before."""
        route = self._offers.answer(offer)
        if route is not None:
            self._routes.drop(route)
        self.statistics.offers_refused += 1
        count(self.statistics.records_discarded, DiscardReason.REFUSED)

    def replace_config(self, config: ServerConfig, *, now: float) -> None:
        """Use ``config`` for the handshakes that begin from now on; what is under way or established stays.

        The cookie's policy cannot be replaced, nor what bounds this object, ``limits``: they stay as they are.
        """
        if config.resumption != self._config.resumption:
            self._sessions = _sessions(config, self._entropy, now)
        self._config = config

    # --- records ------------------------------------------------------------------------------------

    def _receive_records(self, data: bytes, path: Hashable, now: float) -> list[Event]:
        """The general way: one record after the other."""
        events = self._take_events()
        taken_by = set()
        offset = 0
        while True:
            owner, length = None, 0
            if data[offset : offset + 1] == _TLS12_CID_BYTE:
                owner = self._routes.identified_untrusted(data, offset)
                if owner is None:
                    self._discard(DiscardReason.UNKNOWN_CONNECTION_ID)
                    break  # how long its header is nobody knows
                length = len(owner.connection_id)
            record = read_record_untrusted(data, offset, length)
            if record is None:
                self._discard(DiscardReason.BAD_RECORD_HEADER)
                break
            if owner is not None:
                taken_by.add(self._receive_identified(owner, record, path, now, events))
            elif is_client_hello(record):
                taken_by.add(self._receive_hello(record, path, now, events))
            else:
                taken_by.add(self._route_record(record, path, now, events))
            offset += record.length
            if offset == len(data):
                break
        for member in taken_by:
            if member is not None:
                member.connection.statistics.datagrams_received += 1
        return events

    def _receive_identified(
        self, member: Member, record: Record, path: Hashable, now: float, events: list[Event]
    ) -> Member | None:
        """A record with the connection ID of ``member``."""
        if member.route.half_open is member and member.route.path != path:
            self._discard(DiscardReason.WRONG_PATH)  # a handshake stays where its cookie was
            return None
        belongs_here = member.connection.receive_record(record, now, path)
        events += self.settle_member(member, member.connection.take_events(), now)
        return member if belongs_here else None

    def _route_record(self, record: Record, path: Hashable, now: float, events: list[Event]) -> Member | None:
        """Find out whose a record without connection ID is; who took it in."""
        route = self._routes.at(path)
        if route is None:
            self._discard(DiscardReason.UNKNOWN_ASSOCIATION)
            return None
        newcomer_first = record.epoch == 0 or record.content_type == ContentType.HANDSHAKE
        members = [member for member in (route.half_open, route.established) if member is not None]
        if not members:
            self._discard(DiscardReason.UNKNOWN_ASSOCIATION)
        for member in members if newcomer_first else reversed(members):
            belongs_here = member.connection.receive_record(record, now)
            events += self.settle_member(member, member.connection.take_events(), now)
            if belongs_here or record.epoch == 0:
                return member
        return None

    def _receive_hello(
        self, record: Record, path: Hashable, now: float, events: list[Event]
    ) -> Member | None:
        """A ClientHello: of a handshake under way, or of nobody yet; who took it in."""
        try:
            fragment = read_hello_untrusted(record)
        except DecodeError:
            self._discard(DiscardReason.HANDSHAKE_FRAGMENT)
            return None
        if fragment.length > self._limits.max_handshake_message_size:
            self._discard(DiscardReason.REASSEMBLY_LIMIT)
            return None
        lapse = now + self._config.retransmit.handshake_timeout
        route = self._routes.at(path)
        if route is not None:
            if route.half_open is not None and repeats(fragment, route.half_open.hello):
                member = route.half_open
                member.connection.receive_record(record, now)
                events += self.settle_member(member, member.connection.take_events(), now)
                return member
            if route.pending is not None and route.pending.reassembly is not None and fragment.offset:
                events += self._offers.continue_reassembly(route.pending, record, fragment, now, lapse)
                return None
        verdict = self._verifier.judge_untrusted(record, fragment, path, now)
        if isinstance(verdict, DiscardReason):
            self._discard(verdict)
        elif isinstance(verdict, Answer):
            self._outbox.append(Outgoing(verdict.data, path))
            self.statistics.datagrams_sent += 1
        elif verdict.complete:
            message = HandshakeMessage(fragment.message_type, fragment.message_seq, fragment.body)
            events += self._offers.offer(message, record, path, now, lapse)
        else:
            self._offers.begin_reassembly(verdict, path, lapse)
        return None

    def _new_connection_id(self, member: Member) -> bytes:
        """What a client is to put into its records; none if the policy asks for none, or all are taken."""
        policy = self._config.connection_id
        for _ in range(_ID_ATTEMPTS):
            connection_id = b"" if policy is None else policy.generate(self._entropy)
            if not connection_id:
                break
            if self._routes.is_free(connection_id):
                self._routes.assign(connection_id, member)
                return connection_id
        return b""

    # --- the life of a member -----------------------------------------------------------------------

    def wake_member(self, member: Member, now: float) -> None:
        """For :class:`~sansdtls.routes.Member`: an event of it waits to be fetched."""
        self._deadlines.schedule(member, now)

    def settle_member(self, member: Member, events: list[Event], now: float) -> list[Event]:
        """After anything that happened to a connection: its new place, its new deadline."""
        connection = member.connection
        self._now = now
        if member.route.half_open is member and any(
            isinstance(event, HandshakeCompleted) for event in events
        ):
            events = self._establish(member, events, now)
        if connection.state is ConnectionState.CLOSED:
            self._release(member, events)
            return events
        self._schedule(member)
        established = self._routes.established
        if member in established:
            if connection.last_received == now:
                established.move_to_end(member)
            self._follow(member)
        return events

    def _establish(self, member: Member, events: list[Event], now: float) -> list[Event]:
        """A newcomer has authenticated itself: it takes its place, if there is one."""
        route = member.route
        before: list[Event] = []
        holder = route.established
        if holder is not None and _gives_way(holder.connection, member.connection):
            self._end(holder, PeerClose(replaced=True), now, before)
        elif len(self) >= self._limits.max_associations:
            stale = self._stale(now)
            if stale is None:
                # An alert under the new keys: the device knows at once, and that it is no key problem.
                cause = LimitExceeded("max_associations")
                member.connection.fail(HandshakeFailure(AlertDescription.INTERNAL_ERROR, cause))
                events = [event for event in events if isinstance(event, SecretDerived)]
                return events + member.connection.take_events()
            self._end(stale, LimitExceeded("max_associations"), now, before, notify=True)
            self.statistics.evictions += 1
        route.half_open = None
        route.established = member
        member.hello = None
        self._routes.established[member] = None
        self.statistics.half_open -= 1
        self.statistics.associations += 1
        self.statistics.handshakes_completed += 1
        return before + events

    def _has_room(self, route: Route | None, now: float) -> bool:
        """Whether there is or can be made room for one more association."""
        replaces = route is not None and route.established is not None
        return replaces or len(self) < self._limits.max_associations or self._stale(now) is not None

    def _stale(self, now: float) -> Member | None:
        """The association that may give way, if any."""
        for member in self._routes.established:
            return member if now - member.connection.last_received >= self._limits.stale_after else None
        return None

    def _follow(self, member: Member) -> None:
        """An established connection may have changed its path."""
        path = member.connection.path
        if path is not member.route.path and path != member.route.path:
            self._routes.settle_at(member, path)

    def _end(
        self, member: Member, cause: Cause, now: float, events: list[Event], *, notify: bool = False
    ) -> None:
        """End a connection in favour of another one; its last event goes to ``events``."""
        self._now = now
        member.connection.terminate(cause, notify=notify)
        last = member.connection.take_events()
        self._release(member, last)
        events += last

    def _release(self, member: Member, events: list[Event]) -> None:
        """Give back what a closed connection held. Safe to call twice."""
        route = member.route
        self._deadlines.cancel(member)
        self._routes.withdraw(member)
        if route.half_open is member:
            route.half_open = None
            self.statistics.half_open -= 1
            failed = self.statistics.handshakes_failed
            for event in events:
                if isinstance(event, ConnectionTerminated):
                    name = cause_name(event.cause)
                    failed[name] = failed.get(name, 0) + 1
        elif member in self._routes.established:
            del self._routes.established[member]
            self.statistics.associations -= 1
        if route.established is member:
            route.established = None
        self._routes.drop(route)

    def _schedule(self, member: Member) -> None:
        deadline = member.connection.next_timeout()
        if deadline is not None:
            self._deadlines.schedule(member, deadline)

    # --- odds and ends ------------------------------------------------------------------------------

    def _discard(self, reason: DiscardReason) -> None:
        count(self.statistics.records_discarded, reason)

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events


def _gives_way(holder: Connection, newcomer: Connection) -> bool:
    """Whether an association ends when another handshake succeeds on its path."""
    if not holder.connection_id or holder.peer is None or newcomer.peer is None:
        return True  # nothing finds it any more
    return holder.peer.is_same_as(newcomer.peer)


def _sessions(config: ServerConfig, entropy: Callable[[int], bytes], now: float) -> Sessions | None:
    return None if config.resumption is None else Sessions(config.resumption, entropy, now)
