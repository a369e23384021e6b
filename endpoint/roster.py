"""Who is here: the live associations, by connection, path and identity.

Several associations may be on one path. Behind a NAT the port that one device has lost is soon another's, and the first
one is still found by its connection ID, wherever it is. What concerns a path and no record, such as an error of
the socket, is then put down to the one that came there last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from endpoint.addresses import Path
    from endpoint.association import Association
    from sansdtls import Connection


class Roster:
    """The live associations of one engine."""

    __slots__ = ("_below", "_by_connection", "_by_identity", "_by_path")

    def __init__(self) -> None:
        self._by_connection: dict[Connection, Association] = {}
        self._by_path: dict[Path, Association] = {}
        self._below: dict[Path, list[Association]] = {}
        """Those that were on a path when another one came, which are few."""
        self._by_identity: dict[bytes, Association | dict[Association, None]] = {}
        """A dict, which takes 230 bytes, only where there are several."""

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

    def names(self) -> list[bytes]:
        """Those identities."""
        return list(self._by_identity)

    @property
    def paths(self) -> int:
        """Paths in use."""
        return len(self._by_path)

    def at(self, path: Path) -> Association | None:
        """Who came to ``path`` last, and is still there."""
        return self._by_path.get(path)

    def of(self, identity: bytes) -> list[Association]:
        """The live associations of an identity, the oldest first."""
        held = self._by_identity.get(identity)
        if held is None:
            return []
        return list(held) if isinstance(held, dict) else [held]

    def add(self, association: Association) -> None:
        """A live association."""
        self._by_connection[association.connection] = association
        self._come(association)
        if association.identified:
            held = self._by_identity.setdefault(association.identity, association)
            if isinstance(held, dict):
                held[association] = None
            elif held is not association:
                self._by_identity[association.identity] = {held: None, association: None}

    def disown(self, association: Association) -> None:
        """It is about to end, and is not to be counted for its identity any more."""
        held = self._by_identity.get(association.identity)
        if isinstance(held, dict):
            held.pop(association, None)
        if not held or held is association:
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
