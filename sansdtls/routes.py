"""Where a server finds its connections: by path, by connection ID, by how long they have been silent."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

from sansdtls.wire.record import CONNECTION_ID_OFFSET

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

    def numbers_low(self, member: Member) -> None:
        """Half of the record numbers that are reserved for ``member`` have been used, or more."""

    def changed(self, member: Member) -> None:
        """What is saved of ``member`` has changed, though nothing has arrived."""

    def settle_member(self, member: Member, events: list[Event], now: float) -> list[Event]:
        """A direct call on ``member`` produced ``events``; what the caller shall get instead."""


class Route:
    """What belongs to one path. Exists as long as anything does.

    ``established`` is found by its path, if it has no connection ID; with one it is whoever came here last. Others that
    have an ID may have the same path: behind a NAT or a gateway it is soon another's.
    """

    __slots__ = ("established", "half_open", "others", "path", "pending")

    def __init__(self, path: Hashable) -> None:
        self.path = path
        self.established: Member | None = None
        self.half_open: Member | None = None
        self.pending: Pending | None = None
        self.others: dict[object, Member] | None = None
        """By who they are, the latest last."""

    @property
    def in_use(self) -> bool:
        """Whether anything belongs to it."""
        return bool(self.half_open or self.established or self.pending or self.others)

    @property
    def members(self) -> tuple[Member, ...]:
        """All whose path it is."""
        others = self.others.values() if self.others else ()
        return tuple(member for member in (self.half_open, self.established, *others) if member is not None)

    def rivals_of(self, newcomer: Connection) -> list[Member]:
        """Those that end when the handshake of ``newcomer`` succeeds here."""
        found = []
        if self.established is not None and gives_way(self.established.connection, newcomer):
            found.append(self.established)
        if self.others is not None and newcomer.peer is not None:
            other = self.others.get(newcomer.peer.name)
            if other is not None:
                found.append(other)
        return found

    def enter(self, member: Member) -> None:
        """An association is to be reached here from now on."""
        holder = self.established
        if holder is None:
            self.established = member
        elif holder.connection_id:
            self._add_other(holder)
            self.established = member
        else:
            self._add_other(member)

    def leave(self, member: Member) -> None:
        """It is not any more."""
        others = self.others
        if self.established is member:
            self.established = others.popitem()[1] if others else None
        elif others is not None and others.get(member.name) is member:
            del others[member.name]
        if not others:
            self.others = None

    def _add_other(self, member: Member) -> None:
        others = self.others = {} if self.others is None else self.others
        others.pop(member.name, None)
        others[member.name] = member


def gives_way(holder: Connection, newcomer: Connection) -> bool:
    """Whether an association ends when another handshake succeeds on its path."""
    if not holder.connection_id or holder.peer is None or newcomer.peer is None:
        return True  # nothing finds it any more
    return holder.peer.is_same_as(newcomer.peer)


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

    __slots__ = ("_keeper", "connection", "hello", "route", "scheduled")

    connection: Connection

    def __init__(self, keeper: Keeper, route: Route, hello: HandshakeMessage | None = None) -> None:
        self._keeper = keeper
        self.route = route
        self.hello = hello
        """The hello it answers, to recognise its repetitions; ``None`` once established."""
        self.scheduled: float | None = None

    @property
    def connection_id(self) -> bytes:
        """By which it is found, besides its path; none = by its path alone."""
        return self.connection.connection_id

    @property
    def name(self) -> object:
        """Who the peer is."""
        peer = self.connection.peer
        return None if peer is None else peer.name

    def wake(self, now: float) -> None:
        """Pass it on."""
        self._keeper.wake_member(self, now)

    def numbers_low(self) -> None:
        """Pass it on."""
        self._keeper.numbers_low(self)

    def changed(self) -> None:
        """Pass it on."""
        self._keeper.changed(self)

    def settle(self, events: list[Event], now: float) -> list[Event]:
        """Pass it on."""
        return self._keeper.settle_member(self, events, now)


class Routes:
    """The tables of one server."""

    __slots__ = ("_by_connection_id", "_by_path", "_id_lengths", "established")

    def __init__(self) -> None:
        self.established: OrderedDict[Member, None] = OrderedDict()
        """The associations, the one that has been silent longest first."""
        self._by_path: dict[Hashable, Route] = {}
        self._by_connection_id: dict[bytes, Member] = {}
        self._id_lengths: dict[int, int] = {}
        """How many IDs there are of each length, longest first; nearly always one length."""

    def __len__(self) -> int:
        """Paths that are known."""
        return len(self._by_path)

    # --- paths --------------------------------------------------------------------------------------

    def at(self, path: Hashable) -> Route | None:
        """What is known of ``path``."""
        return self._by_path.get(path)

    def hold(self, path: Hashable) -> Route:
        """The same, made if there is nothing yet."""
        return self._by_path.setdefault(path, Route(path))

    def drop(self, route: Route) -> None:
        """Forget a route that nothing uses any more."""
        if not route.in_use and self._by_path.get(route.path) is route:
            del self._by_path[route.path]

    def settle_at(self, member: Member, path: Hashable) -> None:
        """An established connection is to be reached at ``path`` from now on."""
        member.route.leave(member)
        self.drop(member.route)
        member.route = self.hold(path)
        member.route.enter(member)

    # --- connection IDs -----------------------------------------------------------------------------

    def is_free(self, connection_id: bytes) -> bool:
        """Whether no record could mean somebody else by this ID."""
        return not any(connection_id[:length] in self._by_connection_id for length in self._id_lengths)

    def assign(self, connection_id: bytes, member: Member) -> None:
        """Find ``member`` by this ID."""
        self._by_connection_id[connection_id] = member
        self._count_length(len(connection_id), 1)

    def withdraw(self, member: Member) -> None:
        """Find it by its ID no more. Safe to call twice."""
        connection_id = member.connection_id
        if connection_id and self._by_connection_id.get(connection_id) is member:
            del self._by_connection_id[connection_id]
            self._count_length(len(connection_id), -1)

    def withdraw_unmade(self, member: Member) -> None:
        """The same for one that never got a connection. Looks at all IDs."""
        for connection_id in [known for known, one in self._by_connection_id.items() if one is member]:
            del self._by_connection_id[connection_id]
            self._count_length(len(connection_id), -1)

    def identified_untrusted(self, datagram: bytes, offset: int) -> Member | None:
        """Whose ID the record of type ``TLS12_CID`` at ``offset`` carries."""
        start = offset + CONNECTION_ID_OFFSET
        for length in self._id_lengths:
            member = self._by_connection_id.get(datagram[start : start + length])
            if member is not None:
                return member
        return None

    def _count_length(self, length: int, change: int) -> None:
        count = self._id_lengths.get(length, 0) + change
        if count > 1 or (count == 1 and change < 0):
            self._id_lengths[length] = count
            return
        lengths = {**self._id_lengths, length: count}
        self._id_lengths = {
            known: lengths[known] for known in sorted(lengths, reverse=True) if lengths[known]
        }


def repeats(fragment: Fragment, hello: HandshakeMessage | None) -> bool:
    """Whether a fragment is part of the very hello that a handshake under way answers."""
    return (
        hello is not None
        and fragment.message_seq == hello.message_seq
        and fragment.length == len(hello.body)
        and fragment.body == hello.body[fragment.offset : fragment.end]
    )
