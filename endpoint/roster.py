"""Who is here: the live associations by connection, path and identity, and by identity those that are frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from endpoint.addresses import Path
    from endpoint.association import Association
    from sansdtls import Connection


class Roster:
    """The tables of one engine. A frozen association costs its identity and its handle here, and no object."""

    __slots__ = ("_by_connection", "_by_identity", "_by_path", "_frozen")

    def __init__(self) -> None:
        self._by_connection: dict[Connection, Association] = {}
        self._by_path: dict[Path, Association] = {}
        self._by_identity: dict[bytes, dict[Association, None]] = {}
        self._frozen: dict[bytes, tuple[bytes, ...]] = {}

    def __len__(self) -> int:
        """Live associations."""
        return len(self._by_connection)

    def __iter__(self) -> Iterator[Association]:
        return iter(list(self._by_connection.values()))

    def __getitem__(self, connection: Connection) -> Association:
        return self._by_connection[connection]

    @property
    def identities(self) -> int:
        """Identities with a live association."""
        return len(self._by_identity)

    @property
    def paths(self) -> int:
        """Paths in use."""
        return len(self._by_path)

    def at(self, path: Path) -> Association | None:
        """Who was last heard on ``path``."""
        return self._by_path.get(path)

    def of(self, identity: bytes) -> list[Association]:
        """The live associations of an identity, the oldest first."""
        return list(self._by_identity.get(identity, ()))

    def frozen_of(self, identity: bytes) -> tuple[bytes, ...]:
        """The handles of an identity's frozen associations, the one frozen first first."""
        return self._frozen.get(identity, ())

    def add(self, association: Association) -> None:
        """A live association."""
        self._by_connection[association.connection] = association
        self._by_path[association.path] = association
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
            if self._by_path.get(association.path) is association:
                del self._by_path[association.path]
            self.disown(association)
        return association

    def move(self, association: Association, path: Path) -> None:
        """It is to be reached at ``path`` from now on."""
        if self._by_path.get(association.path) is association:
            del self._by_path[association.path]
        association.path = path
        self._by_path[path] = association

    def add_frozen(self, identity: bytes, handle: bytes) -> None:
        """An association of ``identity`` is frozen."""
        self._frozen[identity] = (*self._frozen.get(identity, ()), handle)

    def remove_frozen(self, identity: bytes, handle: bytes) -> None:
        """It is not any more."""
        left = tuple(other for other in self._frozen.get(identity, ()) if other != handle)
        if left:
            self._frozen[identity] = left
        else:
            self._frozen.pop(identity, None)
