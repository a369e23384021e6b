"""The associations of an engine through their lives: live, moved, frozen, back again, gone.

Each change goes to three places at once: the roster, the quota of the source prefix, and the observer::

                  roster                          slot of the prefix
    completed     live                            the handshake's goes on, as an association's
    moved         its path                        the new prefix's is held, the old one's released
    frozen        by identity and handle only     released
    thawed        live, as a new object           held, without a question: it was admitted before
    terminated    gone                            released
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from endpoint.association import Association, CredentialKind
from sansdtls import ConnectionState, PathProof

if TYPE_CHECKING:
    from collections.abc import Callable

    from endpoint.addresses import Path
    from endpoint.association import Carrier
    from endpoint.observer import Observer
    from endpoint.quotas import Prefix, Quotas
    from endpoint.roster import Roster
    from endpoint.sleepers import Sleepers
    from sansdtls import (
        Cause,
        Connection,
        ConnectionFrozen,
        ConnectionThawed,
        PathChanged,
        PathChangeRequested,
        Peer,
        Restored,
    )


class Population:
    """Keeps the tables in step with what the core tells of established associations."""

    def __init__(
        self,
        carrier: Carrier,
        *,
        roster: Roster,
        sleepers: Sleepers,
        quotas: Quotas,
        observer: Observer,
        tell: Callable[..., None],
    ) -> None:
        """``tell`` calls the observer."""
        self._carrier = carrier
        self._roster = roster
        self._sleepers = sleepers
        self._quotas = quotas
        self._observer = observer
        self._tell = tell

    def completed(
        self, connection: Connection, path: Path, prefix: Prefix, identity: bytes, now: float
    ) -> None:
        """A handshake has succeeded, and may stay."""
        association = self._live(connection, path, prefix, identity, now)
        self._tell(self._observer.completed, association)

    def moved(self, event: PathChanged) -> None:
        """The peer has another address."""
        association = self._roster.get(event.connection)
        if association is None:
            return
        # Not association.path: one that a record from a new path has woken has that path from the beginning.
        old, new = cast("Path", event.old), cast("Path", event.new)
        prefix = self._quotas.prefix_of(new[1])
        self._quotas.hold(prefix)
        # A newer record may have come from a forged address, which must not pay for it.
        if event.proof is not PathProof.NEWER_RECORD:
            self._quotas.charge(association.budget, prefix)
        self._quotas.release(association.prefix, live=True)
        association.prefix = prefix
        self._roster.move(association, new)
        self._tell(self._observer.moved, association, old, event.proof)

    def move_requested(self, request: PathChangeRequested) -> None:
        """The peer seems to have another address, and the program is to say whether to believe it."""
        association = self._roster.get(request.connection)
        if association is not None:
            self._tell(self._observer.move_requested, association, request)

    def frozen(self, event: ConnectionFrozen) -> None:
        """It goes on as bytes."""
        association = self._roster.remove(event.connection)
        assert association is not None  # noqa: S101 - only live associations freeze
        self._leave(association)
        if association.identified:
            self._sleepers.add(
                association.identity,
                event.handle,
                event.connection.last_received,
                association.key_digest,
            )
        association.handle = event.handle
        self._tell(self._observer.frozen, association)

    def thawed(self, event: ConnectionThawed, now: float) -> None:
        """It is back, or was woken in order to end."""
        connection = event.connection
        path = cast("Path", connection.path)
        identity = identity_of(connection.peer, connection.annotation)
        self._sleepers.remove(identity, event.handle)
        prefix = self._quotas.prefix_of(path[1])
        self._quotas.hold(prefix)
        association = self._live(connection, path, prefix, identity, now)
        if connection.state is not ConnectionState.CONNECTED:
            self._roster.disown(association)  # nor must it stand in for another one that has to go
        association.handle = event.handle
        self._tell(self._observer.thawed, association)
        association.handle = None

    def restored(self, restored: Restored) -> None:
        """One that was frozen in another engine is here now, frozen."""
        if CredentialKind.of(restored.peer) is not CredentialKind.NONE:
            identity = identity_of(restored.peer, restored.annotation)
            digest = b"" if restored.peer.psk_identity is None else restored.annotation
            self._sleepers.add(identity, restored.handle, restored.last_received, digest)

    def left(self) -> None:
        """Those that were turned into bytes for another engine are here no more."""
        for association in self._roster:
            if association.connection.state is ConnectionState.FROZEN:
                self._roster.remove(association.connection)
                self._leave(association)

    def terminated(self, connection: Connection, cause: Cause) -> bool:
        """It has ended; ``False`` if it was no association, but a handshake."""
        association = self._roster.remove(connection)
        if association is None:
            return False
        self._leave(association)
        self._tell(self._observer.terminated, association, cause)
        return True

    def _leave(self, association: Association) -> None:
        self._quotas.release(association.prefix, live=True)
        self._quotas.end_budget(association.budget)

    def _live(
        self, connection: Connection, path: Path, prefix: Prefix, identity: bytes, now: float
    ) -> Association:
        peer = connection.peer
        kind = CredentialKind.of(peer)
        named = None if kind is CredentialKind.NONE else identity
        association = Association(
            self._carrier,
            connection,
            path=path,
            prefix=prefix,
            identity=identity,
            kind=kind,
            key_index=None if peer is None else peer.psk_key_index,
            budget=self._quotas.data_budget(now, prefix=prefix, identity=named),
        )
        self._roster.add(association)
        return association


def identity_of(peer: Peer | None, annotation: bytes) -> bytes:
    """Who a thawed association belongs to: its PSK identity, or what the verifier made of its credential."""
    if peer is None:
        return b""
    return annotation if peer.psk_identity is None else peer.psk_identity
