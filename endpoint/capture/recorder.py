"""Which datagrams and secrets go into which capture: the tap and the observer of one engine. Sans-IO but for the time.

::

    a hello brings its cookie back     began         kept from here on, whoever it is
    an identity is claimed             identified    still kept: the secret has to be written first
    its Finished is verified           secret        if wanted: secret, then what was kept; from now on recorded
    the handshake has failed           ended         if wanted: what was kept; else it is forgotten
    it is an association               completed     if not wanted, what was kept is forgotten
    it moves, wakes, freezes, ends     moved, …      its new path is recorded, the old one for a moment longer

An association that is wanted is followed by its paths, and by its connection ID, so that records from an address that
nobody has proved yet are seen too. The essay is at the head of the package.
"""

from __future__ import annotations

import struct
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Protocol, cast

from endpoint.capture.handshakes import Datagram, Handshakes
from endpoint.capture.limits import EXTRA_PATHS, LINGER
from endpoint.observer import Quiet
from sansdtls import key_log_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from endpoint.addresses import Path
    from endpoint.association import Association
    from endpoint.capture.handshakes import Held
    from endpoint.tap import Tap
    from sansdtls import Cause, Connection, ConnectionOffered, PathProof, SecretDerived

_TLS12_CID = b"\x19"
_ID_OFFSET = 11
"""Bytes of a record's header before its connection ID, RFC 9146 §4."""
_RECORD = struct.Struct("!BHQH")
_NOBODY: frozenset[Any] = frozenset()


class Target(Protocol):
    """A capture, as the recorder sees it. Nothing here blocks or raises."""

    identities: frozenset[bytes]
    hosts: frozenset[tuple[str, int | None]]
    """Addresses as text, without scope, and a port or any."""
    rehandshake: bool

    def packet(self, datagram: Datagram) -> None:
        """Record it."""
        ...

    def secret(self, client_random: bytes, line: str) -> None:
        """Record it, before the packets that need it."""
        ...

    def can_read(self, client_random: bytes) -> bool:
        """Whether the secret of that association is there."""
        ...


class Tapped(Protocol):
    """What the recorder needs of an engine."""

    tap: Tap | None

    def log_secrets(self, wanted: bool) -> None: ...  # noqa: FBT001 - as the engine has it

    def associations(self, identity: bytes | None = None) -> list[Association]: ...

    def now(self) -> float: ...


class Recorder(Quiet):
    """Made before its engine; :meth:`attach` the engine before the first capture."""

    def __init__(self, *, wall: Callable[[], int] = time.time_ns) -> None:
        """``wall`` gives nanoseconds since the epoch."""
        self._wall = wall
        self._engine: Tapped | None = None
        self._targets: tuple[Target, ...] = ()
        self._by_identity: dict[bytes, tuple[Target, ...]] = {}
        self._by_host: dict[str, list[tuple[int | None, Target]]] = {}
        self._handshakes = Handshakes()
        self._users: dict[Path, dict[Connection, bytes]] = {}
        """Associations that are followed, by path, and whose they are."""
        self._passing: OrderedDict[Path, tuple[bytes, float]] = OrderedDict()
        """Paths without an association that are recorded for whom, and until when."""
        self._ids: dict[bytes, bytes] = {}
        """Connection IDs that are followed, and whose they are."""
        self._latest: tuple[Datagram, frozenset[Target]] | None = None
        """What was received last, and who has it already."""

    def attach(self, engine: Tapped) -> None:
        """Listen to this engine from the first capture on."""
        self._engine = engine

    @property
    def held(self) -> int:
        """Handshakes of which the beginning is kept."""
        return len(self._handshakes)

    # --- captures come and go -----------------------------------------------------------------------

    def add(self, target: Target) -> list[Association]:
        """A capture begins; the live associations that it follows, which nobody can read in it."""
        assert self._engine is not None  # noqa: S101 - attached before anybody can ask for one
        self._use((*self._targets, target))
        self._engine.tap = self
        self._engine.log_secrets(bool(self._by_identity))
        found = [one for identity in target.identities for one in self._engine.associations(identity)]
        for association in found:
            self._follow(association)
        return found

    def remove(self, target: Target) -> None:
        """A capture ends. What was kept for it is given to it now."""
        for path, held in self._handshakes.items():
            if target in self._wanting(held.identity, path):
                self._give(held, (target,))
        self._use(tuple(one for one in self._targets if one is not target))
        if self._engine is not None:
            self._engine.log_secrets(bool(self._by_identity))
            if not self._targets:
                self._engine.tap = None
                self._forget()

    def _use(self, targets: tuple[Target, ...]) -> None:
        self._targets = targets
        identities = {identity for target in targets for identity in target.identities}
        self._by_identity = {
            identity: tuple(target for target in targets if identity in target.identities)
            for identity in identities
        }
        self._by_host = {}
        for target in targets:
            for host, port in target.hosts:
                self._by_host.setdefault(host, []).append((port, target))

    def _forget(self) -> None:
        self._handshakes.clear()
        self._users.clear()
        self._passing.clear()
        self._ids.clear()
        self._latest = None

    # --- the tap: datagrams -------------------------------------------------------------------------

    def datagram_received(self, data: bytes, path: Path, now: float) -> None:
        """See :class:`endpoint.tap.Tap`, as of all others."""
        datagram = Datagram(data, path, False, self._wall())
        if data[:1] == _TLS12_CID and self._ids and path not in self._users:
            self._note_stray(data, path, now)
        self._latest = datagram, self._note(datagram, now)

    def datagram_sent(self, data: bytes, path: Path, now: float) -> None:
        """The other way."""
        self._note(Datagram(data, path, True, self._wall()), now)

    def _note(self, datagram: Datagram, now: float) -> frozenset[Target]:
        """Record or keep a datagram; who has it."""
        path = datagram.path
        held = self._handshakes.at(path)
        if held is not None:
            if held.add(datagram):
                return frozenset(self._targets)  # it is theirs who get the handshake
            if not self._wanting(held.identity, path, now):
                return _NOBODY
            self._resolve(path, held.identity, now)
        if path not in self._users and path not in self._passing and not self._by_host:
            return _NOBODY  # what most datagrams of a fleet are
        targets = self._wanting(None, path, now)
        for target in targets:
            target.packet(datagram)
        return targets

    def _note_stray(self, data: bytes, path: Path, now: float) -> None:
        """A record with a connection ID, from where its owner is not: its path is of interest if the ID is."""
        for length in {len(connection_id) for connection_id in self._ids}:
            identity = self._ids.get(data[_ID_OFFSET : _ID_OFFSET + length])
            if identity is not None:
                self._pass(path, identity, now)

    def _wanting(self, identity: bytes | None, path: Path, now: float | None = None) -> frozenset[Target]:
        """Who wants a datagram of ``path``, or of a handshake of ``identity``."""
        identities = set(self._users.get(path, {}).values())
        passing = self._passing.get(path)
        if passing is not None and (now is None or now <= passing[1]):
            identities.add(passing[0])
        if identity is not None:
            identities.add(identity)
        wanted = {target for one in identities for target in self._by_identity.get(one, ())}
        if self._by_host:
            host, port = path[1][0].partition("%")[0], path[1][1]
            wanted.update(
                target for only, target in self._by_host.get(host, ()) if only is None or only == port
            )
        return frozenset(wanted)

    # --- the tap: handshakes ------------------------------------------------------------------------

    def began(self, connection: Connection, offer: ConnectionOffered) -> None:
        """Keep it from its hello on, which is what was received last."""
        path, now = cast("Path", connection.path), self._now()
        hello, already = self._latest or (None, frozenset())
        self._passing.pop(path, None)  # whoever was here before is gone
        before = self._handshakes.take(path)
        if before is not None:  # the device has begun anew; its hello was taken for the handshake before
            already = self._wanting(before.identity, path, now)
            self._give(before, already)
        held, evicted = self._handshakes.begin(path, connection)
        if evicted is not None and evicted.datagrams:
            where = evicted.datagrams[0].path
            self._give(evicted, self._wanting(evicted.identity, where, now))
        if hello is not None and hello.path == path:
            whole = _with_whole_hello(hello, offer)
            held.add(whole)
            held.first_is_known_to = already if whole is hello else frozenset()
            self._latest = hello, frozenset(self._targets)

    def identified(self, connection: Connection, identity: bytes) -> None:
        """Remember what it claims, in case that it fails."""
        held = self._handshakes.of(cast("Path", connection.path), connection)
        if held is not None:
            held.identity = identity

    def secret(self, event: SecretDerived, identity: bytes | None) -> None:
        """Write it if it is wanted, and else forget it at once."""
        path, now = cast("Path", event.connection.path), self._now()
        targets = self._by_identity.get(identity, ()) if identity is not None else ()
        if not targets or identity is None:
            return
        line = key_log_line(event)
        for target in targets:
            target.secret(event.client_random, line)
        self._resolve(path, identity, now)
        self._use_path(path, event.connection, identity)

    def ended(self, connection: Connection) -> None:
        """It has failed: what was kept is shown to who wants it."""
        path, now = cast("Path", connection.path), self._now()
        held = self._handshakes.of(path, connection)
        if held is not None:
            self._resolve(path, held.identity, now)
            if held.identity in self._by_identity:
                self._pass(path, held.identity, now)  # the alert is on its way
        self._leave(path, connection, now)

    def _resolve(self, path: Path, identity: bytes | None, now: float) -> None:
        """It is known who wants what was kept of the handshake on ``path``."""
        held = self._handshakes.take(path)
        if held is not None:
            self._give(held, self._wanting(identity, path, now))

    def _give(self, held: Held, targets: Iterable[Target]) -> None:
        for target in targets:
            for datagram in held.datagrams[target in held.first_is_known_to :]:
                target.packet(datagram)

    # --- the observer: associations -----------------------------------------------------------------

    def completed(self, association: Association) -> None:
        """Follow it if it is wanted."""
        if not self._targets:
            return
        self._resolve(association.path, association.identity, self._now())
        self._follow(association)

    def moved(self, association: Association, old: Path, proof: PathProof) -> None:
        """Its datagrams come from elsewhere now."""
        if association.identity in self._by_identity:
            self._leave(old, association.connection, self._now())
            self._follow(association)

    def thawed(self, association: Association) -> None:
        """It is back; what woke it was received a moment ago."""
        if association.identity not in self._by_identity:
            return
        self._follow(association)
        random = association.connection.client_random
        wanting = self._by_identity[association.identity]
        if any(target.rehandshake and not target.can_read(random) for target in wanting):
            association.close()

    def frozen(self, association: Association) -> None:
        """It is silent from now on."""
        self._stop_following(association)

    def terminated(self, association: Association, cause: Cause) -> None:
        """It is over, but for the last alerts."""
        self._stop_following(association)

    def _follow(self, association: Association) -> None:
        identity = association.identity
        if not association.identified or identity not in self._by_identity:
            return
        connection = association.connection
        self._use_path(association.path, connection, identity)
        if connection.connection_id:
            self._ids[connection.connection_id] = identity
        if self._latest is not None and self._latest[0].path == association.path:
            datagram, already = self._latest
            targets = self._wanting(None, association.path)
            for target in targets - already:
                target.packet(datagram)
            self._latest = datagram, already | targets

    def _stop_following(self, association: Association) -> None:
        if association.identity in self._by_identity:
            self._leave(association.path, association.connection, self._now())
            self._ids.pop(association.connection.connection_id, None)

    # --- paths --------------------------------------------------------------------------------------

    def _use_path(self, path: Path, connection: Connection, identity: bytes) -> None:
        self._users.setdefault(path, {})[connection] = identity

    def _leave(self, path: Path, connection: Connection, now: float) -> None:
        users = self._users.get(path)
        identity = None if users is None else users.pop(connection, None)
        if users is not None and not users:
            del self._users[path]
        if identity is not None:
            self._pass(path, identity, now)

    def _pass(self, path: Path, identity: bytes, now: float) -> None:
        """Record ``path`` for a moment."""
        self._passing[path] = identity, now + LINGER
        self._passing.move_to_end(path)
        while len(self._passing) > EXTRA_PATHS:
            self._passing.popitem(last=False)

    def _now(self) -> float:
        return 0.0 if self._engine is None else self._engine.now()


def _with_whole_hello(datagram: Datagram, offer: ConnectionOffered) -> Datagram:
    """``datagram``, which has brought the hello; or its whole hello in one, where it is only the last part of it."""
    message = offer.message
    if message.body in datagram.data:
        return datagram
    # type, version, epoch and number, length; then type, length, message_seq, offset, length (RFC 6347 §4.1 and §4.2.2)
    length = len(message.body)
    header = (message.message_type << 24 | length).to_bytes(4) + message.message_seq.to_bytes(2) + bytes(3)
    handshake = header + length.to_bytes(3) + message.body
    record = _RECORD.pack(22, 0xFEFD, offer.record_sequence_number, len(handshake)) + handshake
    comment = "a ClientHello that came in several fragments; this endpoint has put it together"
    return datagram._replace(data=record, comment=comment)
