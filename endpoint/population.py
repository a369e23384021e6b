"""The associations of an engine through their lives: live, moved, frozen, back again, gone.

Each change goes to three places at once: the roster, the quota of the source prefix, and the observer::

                  roster                          slot of the prefix
    completed     live                            the handshake's goes on
    moved         its path                        the new prefix's is held, the old one's released
    frozen        by identity and handle only     released
    thawed        live, as a new object           held, without a question: it was admitted before
    terminated    gone                            released
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from endpoint.association import Association, CredentialKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from endpoint.addresses import Path
    from endpoint.association import Carrier
    from endpoint.observer import Observer
    from endpoint.quotas import Prefix, Quotas
    from endpoint.roster import Roster
    from sansdtls import (
        Cause,
        Connection,
        ConnectionFrozen,
        ConnectionThawed,
        PathChanged,
        Peer,
        Restored,
    )


class Population:
    """Keeps ``roster`` and ``quotas`` in step with what the core tells of established associations."""

    def __init__(
        self,
        carrier: Carrier,
        *,
        roster: Roster,
        quotas: Quotas,
        observer: Observer,
        tell: Callable[..., None],
    ) -> None:
        """``tell`` calls the observer."""
        self._carrier = carrier
        self._roster = roster
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
        association = self._roster[event.connection]
        old, new = association.path, cast("Path", event.new)
        prefix = self._quotas.prefix_of(new[1])
        self._quotas.hold(prefix)
        self._quotas.release(association.prefix)
        association.prefix = prefix
        self._roster.move(association, new)
        self._tell(self._observer.moved, association, old, event.proof)

    def frozen(self, event: ConnectionFrozen) -> None:
        """It goes on as bytes."""
        association = self._roster.remove(event.connection)
        assert association is not None  # noqa: S101 - only live associations freeze
        self._quotas.release(association.prefix)
        if association.identified:
            self._roster.add_frozen(association.identity, event.handle)
        self._tell(self._observer.frozen, association)

    def thawed(self, event: ConnectionThawed, now: float) -> None:
        """It is back."""
        connection = event.connection
        path = cast("Path", connection.path)
        identity = identity_of(connection.peer, connection.annotation)
        self._roster.remove_frozen(identity, event.handle)
        prefix = self._quotas.prefix_of(path[1])
        self._quotas.hold(prefix)
        association = self._live(connection, path, prefix, identity, now)
        self._tell(self._observer.thawed, association)

    def restored(self, restored: Restored) -> None:
        """One that was frozen in another engine is here now, frozen."""
        if CredentialKind.of(restored.peer) is not CredentialKind.NONE:
            self._roster.add_frozen(identity_of(restored.peer, restored.annotation), restored.handle)

    def terminated(self, connection: Connection, cause: Cause) -> bool:
        """It has ended; ``False`` if it was no association, but a handshake."""
        association = self._roster.remove(connection)
        if association is None:
            return False
        self._quotas.release(association.prefix)
        self._tell(self._observer.terminated, association, cause)
        return True

    def _live(
        self, connection: Connection, path: Path, prefix: Prefix, identity: bytes, now: float
    ) -> Association:
        peer = connection.peer
        association = Association(
            self._carrier,
            connection,
            path=path,
            prefix=prefix,
            identity=identity,
            kind=CredentialKind.of(peer),
            key_index=None if peer is None else peer.psk_key_index,
            budget=self._quotas.data_budget(now),
        )
        self._roster.add(association)
        return association


def identity_of(peer: Peer | None, annotation: bytes) -> bytes:
    """Who a thawed association belongs to: its PSK identity, or what the verifier made of its credential."""
    if peer is None:
        return b""
    return annotation if peer.psk_identity is None else peer.psk_identity
