"""Between the cookie and the handshake: hellos being put together, and offers that wait for the caller's answer.

All of it lies behind a valid cookie. Each costs one half-open slot, for at most as long as a handshake may last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

from sansdtls.errors import DecodeError, WrongState
from sansdtls.events import ConnectionOffered, DiscardReason
from sansdtls.handshake.failure import HandshakeFailure, violation
from sansdtls.hello import HelloReassembly, alert_to
from sansdtls.record.layer import Outgoing
from sansdtls.routes import Pending
from sansdtls.statistics import cause_name, count
from sansdtls.wire.messages import ClientHello

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from sansdtls.config import Limits
    from sansdtls.deadlines import Deadlines
    from sansdtls.events import Event
    from sansdtls.freezer import Expiry
    from sansdtls.hello import HelloVerified
    from sansdtls.routes import Member, Route, Routes
    from sansdtls.statistics import ServerStatistics
    from sansdtls.wire.handshake import Fragment, HandshakeMessage
    from sansdtls.wire.record import Record


class Offers:
    """What waits at the door of one server."""

    __slots__ = (
        "_answered",
        "_deadlines",
        "_has_room",
        "_limits",
        "_outbox",
        "_reassembling",
        "_routes",
        "_statistics",
    )

    def __init__(
        self,
        *,
        routes: Routes,
        deadlines: Deadlines[Member | Pending | Expiry],
        limits: Limits,
        statistics: ServerStatistics,
        outbox: list[Outgoing],
        has_room: Callable[[Route | None, float], bool],
    ) -> None:
        """``has_room`` tells whether a handshake on this route could be completed."""
        self._routes = routes
        self._deadlines = deadlines
        self._limits = limits
        self._statistics = statistics
        self._outbox = outbox
        self._has_room = has_room
        self._answered: WeakSet[ConnectionOffered] = WeakSet()
        self._reassembling: dict[Pending, None] = {}
        """Hellos in fragments, the oldest first."""

    def begin_reassembly(self, first: HelloVerified, path: Hashable, lapse: float) -> None:
        """The first fragment of a hello has come; what is not whole by ``lapse`` is forgotten."""
        route = self._routes.at(path)
        if route is not None and route.pending is not None:
            self.drop(route.pending)
        if self._statistics.half_open >= self._limits.max_half_open:
            self._refuse(DiscardReason.HALF_OPEN_LIMIT, route)
            return
        if len(self._reassembling) >= self._limits.max_hello_reassemblies:
            # Who began it may be any one address with many ports: it must not fill what is there for handshakes.
            oldest = next(iter(self._reassembling))
            self.drop(oldest)
            self._refuse(DiscardReason.HALF_OPEN_LIMIT, oldest.route)
        reassembly = HelloReassembly(first, self._limits, self._statistics)
        refused = reassembly.add(first.fragment)
        if isinstance(refused, DiscardReason):
            self._refuse(refused, route)
            return
        pending = self._hold(path, lapse)
        pending.reassembly = reassembly
        self._reassembling[pending] = None

    def continue_reassembly(
        self, pending: Pending, record: Record, fragment: Fragment, now: float, lapse: float
    ) -> list[Event]:
        """A further fragment has come."""
        assert pending.reassembly is not None  # noqa: S101 - the caller has looked
        try:
            result = pending.reassembly.add(fragment)
        except HandshakeFailure as failure:
            self.drop(pending)
            self._routes.drop(pending.route)
            self._fail(record, pending.route.path, failure)
            return []
        if isinstance(result, DiscardReason):
            self._discard(result)
        elif result is not None:
            self.drop(pending)
            return self.offer(result, record, pending.route.path, now, lapse)
        return []

    def offer(
        self, message: HandshakeMessage, record: Record, path: Hashable, now: float, lapse: float
    ) -> list[Event]:
        """A whole hello with a valid cookie: the event that asks the caller, unless nothing can come of it."""
        try:
            hello = ClientHello.decode_untrusted(message.body)
        except DecodeError as error:
            self._fail(record, path, violation(error.description, error.rule))
            return []
        route = self._routes.at(path)
        if route is not None:
            established = route.established
            if established is not None and established.connection.client_random == hello.random:
                self._discard(DiscardReason.DUPLICATE_HANDSHAKE_MESSAGE)  # of the handshake that is over
                return []
            if route.pending is not None:
                offer = route.pending.offer
                if offer is not None and offer.message == message:
                    self._discard(DiscardReason.DUPLICATE_HANDSHAKE_MESSAGE)
                    return []
                self.drop(route.pending)
        # A handshake that could not be completed is not begun.
        if self._statistics.half_open >= self._limits.max_half_open:
            self._refuse(DiscardReason.HALF_OPEN_LIMIT, route)
            return []
        if not self._has_room(route, now):
            self._refuse(DiscardReason.ASSOCIATION_LIMIT, route)
            return []
        offer = ConnectionOffered(path, hello, message, record.sequence_number)
        self._hold(path, lapse).offer = offer
        return [offer]

    def answer(self, offer: ConnectionOffered) -> Route | None:
        """Mark an offer as answered; the route on which it was pending, ``None`` if it has lapsed.

        Raises WrongState if it was answered before.
        """
        if offer in self._answered:
            raise WrongState("this offer has been answered before")
        self._answered.add(offer)
        route = self._routes.at(offer.path)
        if route is None or route.pending is None or route.pending.offer is not offer:
            return None
        self.drop(route.pending)
        return route

    def drop(self, pending: Pending) -> None:
        """Give back what it held."""
        self._deadlines.cancel(pending)
        if pending.reassembly is not None:
            pending.reassembly.release()
            del self._reassembling[pending]
        pending.offer = None  # the deadline's entry may outlive it, and a hello is large
        pending.route.pending = None
        self._statistics.half_open -= 1

    def _hold(self, path: Hashable, lapse: float) -> Pending:
        """Take a half-open slot for a path."""
        route = self._routes.hold(path)
        pending = route.pending = Pending(route)
        self._statistics.half_open += 1
        self._deadlines.schedule(pending, lapse)
        return pending

    def _refuse(self, reason: DiscardReason, route: Route | None) -> None:
        self._discard(reason)
        if route is not None:
            self._routes.drop(route)

    def _fail(self, record: Record, path: Hashable, failure: HandshakeFailure) -> None:
        """A hello that its sender proved to have sent, and that is wrong: an alert, and nothing kept."""
        failed = self._statistics.handshakes_failed
        name = cause_name(failure.cause)
        failed[name] = failed.get(name, 0) + 1
        if failure.description is not None:
            self._outbox.append(Outgoing(alert_to(record, failure.description), path))
            self._statistics.datagrams_sent += 1

    def _discard(self, reason: DiscardReason) -> None:
        count(self._statistics.records_discarded, reason)
