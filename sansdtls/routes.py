"""What a server remembers of a path: the connections on it, and hellos that wait to become one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sansdtls.connection import Connection
    from sansdtls.events import ConnectionOffered, Event
    from sansdtls.hello import HelloReassembly
    from sansdtls.wire.handshake import Fragment, HandshakeMessage


class Keeper(Protocol):
    """Who keeps members: the server."""

    def wake_member(self, member: Member, now: float) -> None:
        """An event of ``member`` waits to be fetched."""

    def settle_member(self, member: Member, events: list[Event], now: float) -> list[Event]:
        """A direct call on ``member`` produced ``events``; what the caller shall get instead."""


class Route:
    """What belongs to one path. Exists as long as one of the three does."""

    __slots__ = ("established", "half_open", "path", "pending")

    def __init__(self, path: Hashable) -> None:
        self.path = path
        self.established: Member | None = None
        self.half_open: Member | None = None
        self.pending: Pending | None = None


class Pending:
    """A verified hello without a connection: an offer not answered yet, or a reassembly."""

    __slots__ = ("offer", "reassembly", "route", "scheduled")

    def __init__(self, route: Route) -> None:
        self.route = route
        self.offer: ConnectionOffered | None = None
        self.reassembly: HelloReassembly | None = None
        self.scheduled: float | None = None


class Member:
    """A connection and its place in the server. The connection's ``Watcher``."""

    __slots__ = ("_keeper", "client_random", "connection", "hello", "route", "scheduled")

    connection: Connection

    def __init__(self, keeper: Keeper, route: Route, offer: ConnectionOffered) -> None:
        self._keeper = keeper
        self.route = route
        self.client_random = offer.client_hello.random
        self.hello: HandshakeMessage | None = offer.message
        """The hello it answers, to recognise its repetitions; ``None`` once established."""
        self.scheduled: float | None = None

    def wake(self, now: float) -> None:
        """Pass it on."""
        self._keeper.wake_member(self, now)

    def settle(self, events: list[Event], now: float) -> list[Event]:
        """Pass it on."""
        return self._keeper.settle_member(self, events, now)


def repeats(fragment: Fragment, hello: HandshakeMessage | None) -> bool:
    """Whether a fragment is part of the very hello that a handshake under way answers."""
    return (
        hello is not None
        and fragment.message_seq == hello.message_seq
        and fragment.length == len(hello.body)
        and fragment.body == hello.body[fragment.offset : fragment.end]
    )
