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
from sansdtls.errors import DecodeError
from sansdtls.events import DiscardReason, PeerClose
from sansdtls.freezer import BY_CONNECTION_ID, Expiry, Freezer
from sansdtls.freezing_server import FreezingServer
from sansdtls.handshake.resumption import Sessions
from sansdtls.hello import Answer, HelloVerifier, is_client_hello, read_hello_untrusted
from sansdtls.iana import ContentType
from sansdtls.kinds import DatagramKind, is_in_clear_untrusted, kind_in_clear_untrusted
from sansdtls.members import Members
from sansdtls.offers import Offers
from sansdtls.record.layer import Outgoing
from sansdtls.routes import Member, Pending, Route, repeats
from sansdtls.statistics import count
from sansdtls.wire.handshake import HandshakeMessage
from sansdtls.wire.record import read_record_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from sansdtls.config import ServerConfig
    from sansdtls.events import ConnectionOffered, Event
    from sansdtls.frozen import FrozenStore
    from sansdtls.wire.record import Record

_HANDSHAKE_BYTE = bytes([ContentType.HANDSHAKE])
_TLS12_CID_BYTE = bytes([ContentType.TLS12_CID])

_ID_ATTEMPTS = 16
"""How often a connection ID in use is asked for again. Random IDs of a sensible length never need it; where
so many are taken, the association gets none, and is found by its path."""
MAX_REFUSED_THAWS = 4
"""Records of one datagram that may turn out not to be a frozen association's; what follows them is not looked at.
Each costs as much as ten records of a live one, and a datagram has room for thousands."""


class Server(FreezingServer):
    """All the associations that arrive at one place. Not thread-safe; makes no calls of its own."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        entropy: Callable[[int], bytes],
        now: float,
        store: FrozenStore | None = None,
        generation: int = 0,
        durable: bool = False,
    ) -> None:
        """``entropy(n)`` returns n random bytes fit for keys; ``now`` is monotonic time in seconds.

        ``store`` keeps frozen associations, by default in memory. With ``durable`` the caller makes checkpoints
        (see :meth:`checkpoint`), and ``generation`` says how often the place where it keeps them has been
        opened; ``now`` must then go on where the clock of the process before was. Raises ConfigError if it is
        negative.
        """
        self._freezer = Freezer(store, generation=generation, durable=durable)
        self._members = Members(config, entropy=entropy, now=now, freezer=self._freezer)
        self.statistics = self._members.statistics
        """Counters and gauges; live."""
        self._config = config
        self._limits = config.limits
        self._entropy = entropy
        self._sessions = _sessions(config, entropy, now)
        self._verifier = HelloVerifier(config.cookie, self.statistics, entropy, now)
        self._routes = self._members.routes
        self._deadlines = self._members.deadlines
        self._outbox = self._members.outbox
        self._offers = Offers(
            routes=self._routes,
            deadlines=self._deadlines,
            limits=config.limits,
            statistics=self.statistics,
            outbox=self._outbox,
            has_room=self._members.has_room,
        )
        self._members.schedule_expiry()

    def __len__(self) -> int:
        """Established associations, without the frozen ones."""
        return len(self._routes.established)

    @property
    def connections(self) -> Iterator[Connection]:
        """The established connections, the least recently used first. Do not let time pass while iterating."""
        return (member.connection for member in self._routes.established)

    # --- what a driver calls ------------------------------------------------------------------------

    def receive_datagram(self, data: bytes, *, path: Hashable, now: float) -> list[Event]:
        """Take in a datagram that came on ``path``. Never raises, whatever the bytes."""
        events = self.receive_live(data, path=path, now=now)
        if events is None:
            self.statistics.datagrams_received += 1
            events = self._receive_records(data, path, now)
        return events

    def receive_live(self, data: bytes, *, path: Hashable, now: float) -> list[Event] | None:
        """The same, but only if it is for a live association without a handshake beside it; else ``None``, and nothing is done.

        For a caller who wants all other datagrams to wait; see :meth:`kind_of` for which of them should wait longer.
        """
        first = data[:1]
        if first == _TLS12_CID_BYTE:
            member = self._routes.identified_untrusted(data, 0)
            if member is not None and member.route.half_open is not member:
                return self._receive_established(member, data, path, now)
        elif first != _HANDSHAKE_BYTE:
            route = self._routes.at(path)
            if route is not None and not (route.half_open or route.pending):
                member = route.established
                # One with a connection ID takes no record without, which may be meant for a frozen association.
                if member is not None and not (member.connection_id and self._freezer.any_by_path):
                    return self._receive_established(member, data, None, now)
        return None

    def kind_of(self, data: bytes, path: Hashable) -> DatagramKind:
        """What a datagram is that :meth:`receive_live` does not take, judged by its first headers. Changes nothing."""
        if data[:1] == _TLS12_CID_BYTE:
            if self._routes.identified_untrusted(data, 0) is not None:
                return DatagramKind.HANDSHAKE
        else:
            route = self._routes.at(path)
            in_clear = is_in_clear_untrusted(data)
            if route is not None and (route.half_open or route.pending or not in_clear):
                return DatagramKind.HANDSHAKE
            if in_clear:
                return kind_in_clear_untrusted(data)
        return DatagramKind.NOISE if self.frozen_handle(data, path) is None else DatagramKind.FROZEN

    def frozen_handle(self, data: bytes, path: Hashable) -> bytes | None:
        """The handle of the frozen association that the first record of a datagram seems to be for."""
        if data[:1] == _TLS12_CID_BYTE:
            return self._freezer.identified_untrusted(data, 0)
        return None if is_in_clear_untrusted(data) else self._freezer.at(path)

    def _receive_established(self, member: Member, data: bytes, path: Hashable, now: float) -> list[Event]:
        """The fast way: all of the datagram is this connection's."""
        self.statistics.datagrams_received += 1
        connection = member.connection
        events = connection.receive_datagram(data, now=now, path=path)
        if self._members.events:
            events = self._take_events() + events  # that it was woken comes before what it has received
        if connection.state is ConnectionState.CLOSED:
            return self._members.settle_member(member, events, now)
        if connection.last_received == now:
            self._routes.established.move_to_end(member)
            if self._freezer.durable:
                self._members.note(member)
        if path is not None:
            self._members.follow(member)
            if connection.path_check_under_way:
                self._members.schedule(member)
        return events

    def datagrams_to_send(self) -> list[Outgoing]:
        """What is to be sent, in order; handed out once."""
        datagrams = self._outbox[:]
        self._outbox.clear()
        return datagrams

    def next_timeout(self) -> float | None:
        """When :meth:`handle_timeout` is due; ``None`` = not before something else happens."""
        return self._members.now if self._members.events else self._deadlines.next()

    def handle_timeout(self, *, now: float) -> list[Event]:
        """Do what is due at ``now``, for all connections. Early calls do nothing."""
        events = self._take_events()
        expiry_due = False
        while (due := self._deadlines.pop_due(now)) is not None:
            if isinstance(due, Pending):
                self._offers.drop(due)
                self._routes.drop(due.route)
            elif isinstance(due, Expiry):
                expiry_due = True  # once for each call: what is left over is due again, at once
            else:
                events += self._members.handle_due(due, now)
        if expiry_due:
            events += self._members.expire(now)
        return events

    def limit_datagram_size(self, size: int, *, path: Hashable, now: float) -> list[Event]:
        """``path`` takes datagrams of at most ``size`` bytes; see :meth:`Connection.limit_datagram_size`."""
        events = self._take_events()
        route = self._routes.at(path)
        for member in () if route is None else route.members:
            events += member.connection.limit_datagram_size(size, now=now)
        return events

    def accept(self, offer: ConnectionOffered, *, now: float) -> Connection:
        """Begin the handshake with a client that was offered. Raises WrongState if it was answered before.

        What has to be asked before the first answer (a session to resume) comes as an event of
        :meth:`handle_timeout`, which is then due at once. Where client and server have nothing in common, or the offer has lapsed meanwhile, the connection is
        closed at once; its ``ConnectionTerminated`` comes like any other event. What ``entropy`` or the policy's
        generator of connection IDs raises is passed on, and the offer is gone.
        """
        route = self._offers.answer(offer)
        lapsed = route is None
        if route is None:
            route = Route(offer.path)  # of no use to anybody but the closed connection
        elif route.half_open is not None:  # the device began anew before its handshake was complete
            self._members.end(route.half_open, PeerClose(replaced=True), now, self._members.events)
        member = Member(self._members, route, offer.message)
        if not lapsed:
            route = member.route = self._routes.hold(offer.path)
            route.half_open = member
            self.statistics.half_open += 1
            self.statistics.handshakes_started += 1
        self._members.now = now
        try:
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
        except BaseException:  # the caller's generator of connection IDs, or its entropy
            self._members.abandon(member)
            raise
        self._members.schedule(member)
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

        ``freeze_after`` and ``snapshot_keys`` count for all from now on.
        The cookie's policy cannot be replaced, nor those of the ``limits`` that bound this object: they stay as they
        are. Those of one connection count for what is made or thawed from now on.
        """
        if config.resumption != self._config.resumption:
            self._sessions = _sessions(config, self._entropy, now)
        freeze_after = self._config.freeze_after
        self._config = self._members.config = config
        if config.freeze_after != freeze_after:
            for member in self._routes.established:
                self._members.schedule(member)

    # --- records ------------------------------------------------------------------------------------

    def _receive_records(self, data: bytes, path: Hashable, now: float) -> list[Event]:
        """The general way: one record after the other."""
        events = self._take_events()
        taken_by = set()
        enough_refused = self.statistics.thaws_refused + MAX_REFUSED_THAWS
        offset = 0
        while True:
            owner, length, handle = None, 0, None
            if data[offset : offset + 1] == _TLS12_CID_BYTE:
                owner = self._routes.identified_untrusted(data, offset)
                if owner is None:
                    handle = self._freezer.identified_untrusted(data, offset)
                    if handle is None:
                        self._discard(DiscardReason.UNKNOWN_CONNECTION_ID)
                        break  # how long its header is nobody knows
                    length = len(handle) - len(BY_CONNECTION_ID)
                else:
                    length = len(owner.connection_id)
            record = read_record_untrusted(data, offset, length)
            if record is None:
                self._discard(DiscardReason.BAD_RECORD_HEADER)
                break
            if owner is not None:
                taken_by.add(self._receive_identified(owner, record, path, now, events))
            elif handle is not None:
                taken_by.add(self._members.receive_for_frozen(handle, record, path, now, events))
            elif is_client_hello(record):
                taken_by.add(self._receive_hello(record, path, now, events))
            else:
                taken_by.add(self._route_record(record, path, now, events))
            offset += record.length
            if offset == len(data) or self.statistics.thaws_refused >= enough_refused:
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
        events += self._members.settle_member(member, member.connection.take_events(), now)
        return member if belongs_here else None

    def _route_record(self, record: Record, path: Hashable, now: float, events: list[Event]) -> Member | None:
        """Find out whose a record without connection ID is; who took it in."""
        route = self._routes.at(path)
        if route is None:
            return self._receive_unknown(record, path, now, events)
        newcomer_first = record.epoch == 0 or record.content_type == ContentType.HANDSHAKE
        members = [member for member in (route.half_open, route.established) if member is not None]
        for member in members if newcomer_first else reversed(members):
            belongs_here = member.connection.receive_record(record, now)
            events += self._members.settle_member(member, member.connection.take_events(), now)
            if belongs_here or record.epoch == 0:
                return member
        if members and self._freezer.at(path) is None:
            return None
        return self._receive_unknown(record, path, now, events)

    def _receive_unknown(
        self, record: Record, path: Hashable, now: float, events: list[Event]
    ) -> Member | None:
        """A record from a path where nobody live is."""
        handle = self._freezer.at(path) if record.epoch else None
        if handle is None:
            self._discard(DiscardReason.UNKNOWN_ASSOCIATION)
            return None
        return self._members.receive_for_frozen(handle, record, None, now, events)

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
                events += self._members.settle_member(member, member.connection.take_events(), now)
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
            if self._routes.is_free(connection_id) and self._freezer.is_free(connection_id):
                self._routes.assign(connection_id, member)
                return connection_id
        return b""

    # --- odds and ends ------------------------------------------------------------------------------

    def _discard(self, reason: DiscardReason) -> None:
        count(self.statistics.records_discarded, reason)

    def _take_events(self) -> list[Event]:
        events, self._members.events = self._members.events, []
        return events


def _sessions(config: ServerConfig, entropy: Callable[[int], bytes], now: float) -> Sessions | None:
    return None if config.resumption is None else Sessions(config.resumption, entropy, now)
