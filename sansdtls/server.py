"""Many associations on one socket that is somebody else's: cookies, routing, limits, deadlines.

Attacker: sends anything from any path; may own some paths, and may replay what it saw on others.
Properties: no memory before proof of address (``cookie.py``); a bounded number of handshakes and of
associations; every slot given back on every way a handshake or an association can end; an
established association is disturbed by its own authentic records only.

So a ClientHello on a path that has an association never touches it. With a valid cookie a second connection
begins *beside* the first (a device that lost its state reconnects from the same address), and takes its
place when its Finished has been verified, not before. Records are told apart by trying keys: handshake
records at the newcomer first, all others at the established connection first.

When ``max_associations`` is reached, a newcomer that has authenticated itself may take the place of the
association that has been silent longest, if that is longer than ``stale_after``; otherwise the newcomer is
refused. Strangers without a key displace nobody.

Left out: who may connect how often. That depends on what a path is (addresses, prefixes), which this class
does not know; the caller answers each ``ConnectionOffered``.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING
from weakref import WeakSet

from sansdtls.association import ConnectionState
from sansdtls.connection import Connection
from sansdtls.deadlines import Deadlines
from sansdtls.errors import DecodeError, WrongState
from sansdtls.events import (
    ConnectionOffered,
    ConnectionTerminated,
    DiscardReason,
    HandshakeCompleted,
    LimitExceeded,
    PeerClose,
    SecretDerived,
)
from sansdtls.handshake.failure import HandshakeFailure, violation
from sansdtls.handshake.resumption import Sessions
from sansdtls.hello import (
    Answer,
    HelloReassembly,
    HelloVerified,
    HelloVerifier,
    alert_to,
    is_client_hello,
    read_hello_untrusted,
)
from sansdtls.iana import AlertDescription, ContentType
from sansdtls.record.layer import Outgoing
from sansdtls.routes import Member, Pending, Route, repeats
from sansdtls.statistics import ServerStatistics, cause_name, count
from sansdtls.wire.handshake import HandshakeMessage
from sansdtls.wire.messages import ClientHello
from sansdtls.wire.record import RECORD_HEADER_LENGTH, read_record_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from sansdtls.config import ServerConfig
    from sansdtls.events import Cause, Event
    from sansdtls.wire.handshake import Fragment
    from sansdtls.wire.record import Record

_HANDSHAKE_BYTE = bytes([ContentType.HANDSHAKE])


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
        self._routes: dict[Hashable, Route] = {}
        self._established: OrderedDict[Member, None] = OrderedDict()  # least recently used first
        self._answered: WeakSet[ConnectionOffered] = WeakSet()
        self._deadlines: Deadlines[Member | Pending] = Deadlines()
        self._outbox: list[Outgoing] = []
        self._events: list[Event] = []  # that arose where no list of events is returned

    def __len__(self) -> int:
        """Established associations."""
        return len(self._established)

    @property
    def connections(self) -> Iterator[Connection]:
        """The established connections, the least recently used first. Do not let time pass while iterating."""
        return (member.connection for member in self._established)

    # --- what a driver calls ------------------------------------------------------------------------

    def receive_datagram(self, data: bytes, *, path: Hashable, now: float) -> list[Event]:
        """Take in a datagram that came on ``path``. Never raises, whatever the bytes."""
        self.statistics.datagrams_received += 1
        route = self._routes.get(path)
        member = None if route is None or route.half_open or route.pending else route.established
        if member is None or data[:1] == _HANDSHAKE_BYTE:
            return self._receive_records(data, path, now)
        connection = member.connection
        events = connection.receive_datagram(data, now=now)
        if connection.state is ConnectionState.CLOSED:
            return self.settle_member(member, events, now)
        if connection.last_received == now:
            self._established.move_to_end(member)
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
                self._drop_pending(due)
                self._drop_route(due.route)
            else:
                events += self.settle_member(due, due.connection.handle_timeout(now=now), now)
        return events

    def accept(self, offer: ConnectionOffered, *, now: float) -> Connection:
        """Begin the handshake with a client that was offered. Raises WrongState if it was answered before.

        What has to be asked before the first answer (a session to resume) comes as an event of
        :meth:`handle_timeout`, which is then due at once. Where client and server have nothing in common, or the offer has lapsed meanwhile, the connection is
        closed at once; its ``ConnectionTerminated`` comes like any other event.
        """
        route = self._answer(offer)
        lapsed = route is None
        if route is None:
            route = Route(offer.path)  # of no use to anybody but the closed connection
        elif route.half_open is not None:  # the device began anew before its handshake was complete
            self._end(route.half_open, PeerClose(replaced=True), now, self._events)
        member = Member(self, route, offer)
        if not lapsed:
            self._routes[offer.path] = route
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
            lapsed=lapsed,
        )
        self._schedule(member)
        return member.connection

    def refuse(self, offer: ConnectionOffered) -> None:
        """Turn a client down, silently. Raises WrongState if it was answered before."""
        route = self._answer(offer)
        if route is not None:
            self._drop_route(route)
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
            record = read_record_untrusted(data, offset)
            if record is None:
                self._discard(DiscardReason.BAD_RECORD_HEADER)
                break
            if is_client_hello(record):
                taken_by.add(self._receive_hello(record, path, now, events))
            else:
                taken_by.add(self._route_record(record, path, now, events))
            offset += RECORD_HEADER_LENGTH + len(record.fragment)
            if offset == len(data):
                break
        for member in taken_by:
            if member is not None:
                member.connection.statistics.datagrams_received += 1
        return events

    def _route_record(self, record: Record, path: Hashable, now: float, events: list[Event]) -> Member | None:
        """Find out whose a record is; who took it in."""
        route = self._routes.get(path)
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
        route = self._routes.get(path)
        if route is not None:
            if route.half_open is not None and repeats(fragment, route.half_open.hello):
                member = route.half_open
                member.connection.receive_record(record, now)
                events += self.settle_member(member, member.connection.take_events(), now)
                return member
            if route.pending is not None and route.pending.reassembly is not None and fragment.offset:
                self._continue_reassembly(route.pending, record, fragment, now, events)
                return None
        verdict = self._verifier.judge_untrusted(record, fragment, path, now)
        if isinstance(verdict, DiscardReason):
            self._discard(verdict)
        elif isinstance(verdict, Answer):
            self._send(verdict.data, path)
        elif verdict.complete:
            message = HandshakeMessage(fragment.message_type, fragment.message_seq, fragment.body)
            self._offer(message, record, path, now, events)
        else:
            self._begin_reassembly(verdict, path, now)
        return None

    # --- between the cookie and the handshake -------------------------------------------------------

    def _begin_reassembly(self, first: HelloVerified, path: Hashable, now: float) -> None:
        route = self._routes.get(path)
        if route is not None and route.pending is not None:
            self._drop_pending(route.pending)
        if self.statistics.half_open >= self._limits.max_half_open:
            self._discard(DiscardReason.HALF_OPEN_LIMIT)
            if route is not None:
                self._drop_route(route)
            return
        reassembly = HelloReassembly(first, self._limits, self.statistics)
        refused = reassembly.add(first.fragment)
        if isinstance(refused, DiscardReason):
            self._discard(refused)
            if route is not None:
                self._drop_route(route)
            return
        self._hold(path, now).reassembly = reassembly

    def _continue_reassembly(
        self, pending: Pending, record: Record, fragment: Fragment, now: float, events: list[Event]
    ) -> None:
        assert pending.reassembly is not None  # noqa: S101 - the caller has looked
        try:
            result = pending.reassembly.add(fragment)
        except HandshakeFailure as failure:
            self._drop_pending(pending)
            self._drop_route(pending.route)
            self._fail_hello(record, pending.route.path, failure)
            return
        if isinstance(result, DiscardReason):
            self._discard(result)
        elif result is not None:
            self._drop_pending(pending)
            self._offer(result, record, pending.route.path, now, events)

    def _offer(
        self, message: HandshakeMessage, record: Record, path: Hashable, now: float, events: list[Event]
    ) -> None:
        """A whole hello with a valid cookie."""
        try:
            hello = ClientHello.decode_untrusted(message.body)
        except DecodeError as error:
            self._fail_hello(record, path, violation(error.description, error.rule))
            return
        route = self._routes.get(path)
        if route is not None:
            if route.established is not None and route.established.client_random == hello.random:
                self._discard(DiscardReason.DUPLICATE_HANDSHAKE_MESSAGE)  # of the handshake that is over
                return
            if route.pending is not None:
                offer = route.pending.offer
                if offer is not None and offer.message == message:
                    self._discard(DiscardReason.DUPLICATE_HANDSHAKE_MESSAGE)
                    return
                self._drop_pending(route.pending)
        reason = self._no_room(route, now)
        if reason is not None:
            self._discard(reason)
            if route is not None:
                self._drop_route(route)
            return
        offer = ConnectionOffered(path, hello, message, record.sequence_number)
        self._hold(path, now).offer = offer
        events.append(offer)

    def _no_room(self, route: Route | None, now: float) -> DiscardReason | None:
        """Why no further handshake can begin; one that could not be completed is not begun."""
        if self.statistics.half_open >= self._limits.max_half_open:
            return DiscardReason.HALF_OPEN_LIMIT
        replaces = route is not None and route.established is not None
        if not replaces and len(self) >= self._limits.max_associations and self._stale(now) is None:
            return DiscardReason.ASSOCIATION_LIMIT
        return None

    def _hold(self, path: Hashable, now: float) -> Pending:
        """Take a half-open slot for a path, until answered or lapsed."""
        route = self._routes.setdefault(path, Route(path))
        pending = route.pending = Pending(route)
        self.statistics.half_open += 1
        self._deadlines.schedule(pending, now + self._config.retransmit.handshake_timeout)
        return pending

    def _answer(self, offer: ConnectionOffered) -> Route | None:
        """Mark an offer as answered; the route on which it was pending, ``None`` if it has lapsed."""
        if offer in self._answered:
            raise WrongState("this offer has been answered before")
        self._answered.add(offer)
        route = self._routes.get(offer.path)
        if route is None or route.pending is None or route.pending.offer is not offer:
            return None
        self._drop_pending(route.pending)
        return route

    def _drop_pending(self, pending: Pending) -> None:
        self._deadlines.cancel(pending)
        if pending.reassembly is not None:
            pending.reassembly.release()
        pending.offer = None  # the deadline's entry may outlive it, and a hello is large
        pending.route.pending = None
        self.statistics.half_open -= 1

    def _fail_hello(self, record: Record, path: Hashable, failure: HandshakeFailure) -> None:
        """A hello that its sender proved to have sent, and that is wrong: an alert, and nothing kept."""
        failed = self.statistics.handshakes_failed
        name = cause_name(failure.cause)
        failed[name] = failed.get(name, 0) + 1
        if failure.description is not None:
            self._send(alert_to(record, failure.description), path)

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
        else:
            self._schedule(member)
            if member.route.established is member and connection.last_received == now:
                self._established.move_to_end(member)
        return events

    def _establish(self, member: Member, events: list[Event], now: float) -> list[Event]:
        """A newcomer has authenticated itself: it takes its place, if there is one."""
        route = member.route
        before: list[Event] = []
        if route.established is not None:
            self._end(route.established, PeerClose(replaced=True), now, before)
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
        self._established[member] = None
        self.statistics.half_open -= 1
        self.statistics.associations += 1
        self.statistics.handshakes_completed += 1
        return before + events

    def _stale(self, now: float) -> Member | None:
        """The association that may give way, if any."""
        for member in self._established:
            return member if now - member.connection.last_received >= self._limits.stale_after else None
        return None

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
        if route.half_open is member:
            route.half_open = None
            self.statistics.half_open -= 1
            failed = self.statistics.handshakes_failed
            for event in events:
                if isinstance(event, ConnectionTerminated):
                    name = cause_name(event.cause)
                    failed[name] = failed.get(name, 0) + 1
        elif route.established is member:
            route.established = None
            del self._established[member]
            self.statistics.associations -= 1
        self._drop_route(route)

    def _drop_route(self, route: Route) -> None:
        in_use = route.half_open or route.established or route.pending
        if not in_use and self._routes.get(route.path) is route:
            del self._routes[route.path]

    def _schedule(self, member: Member) -> None:
        deadline = member.connection.next_timeout()
        if deadline is not None:
            self._deadlines.schedule(member, deadline)

    # --- odds and ends ------------------------------------------------------------------------------

    def _send(self, data: bytes, path: Hashable) -> None:
        self._outbox.append(Outgoing(data, path))
        self.statistics.datagrams_sent += 1

    def _discard(self, reason: DiscardReason) -> None:
        count(self.statistics.records_discarded, reason)

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events


def _sessions(config: ServerConfig, entropy: Callable[[int], bytes], now: float) -> Sessions | None:
    return None if config.resumption is None else Sessions(config.resumption, entropy, now)
