"""Who is here: the live associations by connection, path and identity, and by identity those that are frozen.

Several associations may be on one path. Behind a NAT the port that one device has lost is soon another's, and the first
one is still found by its connection ID, wherever it is. What concerns a path and no record, such as an error of
the socket, is then put down to the one that came there last.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from endpoint.addresses import Path
    from endpoint.association import Association
    from sansdtls import Connection

_TIME = struct.Struct("=d")


class Roster:
    """The live associations of one engine."""

    __slots__ = ("_below", "_by_connection", "_by_identity", "_by_path")

    def __init__(self) -> None:
        self._by_connection: dict[Connection, Association] = {}
        self._by_path: dict[Path, Association] = {}
        self._below: dict[Path, list[Association]] = {}
        """Those that were on a path when another one came, which are few."""
        self._by_identity: dict[bytes, dict[Association, None]] = {}

    def __len__(self) -> int:
        """Live associations."""
        return len(self._by_connection)

    def __iter__(self) -> Iterator[Association]:
        return iter(list(self._by_connection.values()))

    def get(self, connection: Connection) -> Association | None:
        """The association of ``connection``; none for a handshake that came to nothing."""
        return self._by_connection.get(connection)

    @property
    def identities(self) -> int:
        """Identities with a live association."""
        return len(self._by_identity)

    @property
    def paths(self) -> int:
        """Paths in use."""
        return len(self._by_path)

    def at(self, path: Path) -> Association | None:
        """Who came to ``path`` last, and is still there."""
        return self._by_path.get(path)

    def of(self, identity: bytes) -> list[Association]:
        """The live associations of an identity, the oldest first."""
        return list(self._by_identity.get(identity, ()))

    def add(self, association: Association) -> None:
        """A live association."""
        self._by_connection[association.connection] = association
        self._come(association)
        if association.identified:
            self._by_identity.setdefault(association.identity, {})[association] = None

    def disown(self, association: Association) -> None:
        """It is about to end, and is not to be counted for its identity any more."""
        siblings = self._by_identity.get(association.identity, {})
        siblings.pop(association, None)
        if not siblings:
            self._by_identity.pop(association.identity, None)

    def remove(self, connection: Connection) -> Association | None:
        """It is over, or frozen; ``None`` if it never was here."""
        association = self._by_connection.pop(connection, None)
        if association is not None:
            self._leave(association)
            self.disown(association)
        return association

    def move(self, association: Association, path: Path) -> None:
        """It is to be reached at ``path`` from now on."""
        self._leave(association)
        association.path = path
        self._come(association)

    def _come(self, association: Association) -> None:
        before = self._by_path.get(association.path)
        if before is not None:
            self._below.setdefault(association.path, []).append(before)
        self._by_path[association.path] = association

    def _leave(self, association: Association) -> None:
        path = association.path
        below = self._below.get(path)
        if self._by_path.get(path) is not association:
            assert below is not None  # noqa: S101 - somebody came after it
            below.remove(association)
        elif below is not None:
            self._by_path[path] = below.pop()
        else:
            del self._by_path[path]
        if below is not None and not below:
            del self._below[path]


class Sleepers:
    """The frozen associations of identities. One costs its identity and 8 bytes more than its handle, and no object."""

    __slots__ = ("_by_identity",)

    def __init__(self) -> None:
        self._by_identity: dict[bytes, bytes | dict[bytes, float]] = {}
        """One handle, after the time when it was last heard; or, where there are several, such times by handle."""

    def __len__(self) -> int:
        """Identities that have a frozen association."""
        return len(self._by_identity)

    def add(self, identity: bytes, handle: bytes, last_received: float) -> None:
        """An association of ``identity`` is frozen."""
        known = self._by_identity.get(identity)
        if known is None:
            self._by_identity[identity] = _TIME.pack(last_received) + handle
            return
        if isinstance(known, bytes):
            known = self._by_identity[identity] = {known[_TIME.size :]: _TIME.unpack_from(known)[0]}
        known[handle] = last_received

    def remove(self, identity: bytes, handle: bytes) -> None:
        """It is not any more."""
        known = self._by_identity.get(identity)
        if isinstance(known, dict):
            known.pop(handle, None)
            if not known:
                del self._by_identity[identity]
        elif known is not None and known[_TIME.size :] == handle:
            del self._by_identity[identity]

    def of(self, identity: bytes) -> list[bytes]:
        """The handles of an identity's, the one that has been silent longest first."""
        known = self._by_identity.get(identity)
        if known is None:
            return []
        if isinstance(known, bytes):
            return [known[_TIME.size :]]
        return sorted(known, key=known.__getitem__)

    def clear(self) -> None:
        """All have gone elsewhere."""
        self._by_identity.clear()
