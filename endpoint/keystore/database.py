"""Keys in an SQLite database: changed one by one while the service reads, without reading all of them again.

::

    psk    identity BLOB    any bytes, 1 to 65,535
           current  BLOB    16 to 64 bytes
           next     BLOB    the same, another one; NULL outside of a rotation

An attacker who can write it lets himself in, so it is looked at as PSK files are; see ``endpoint.privatedb``.

One transaction is one change: a reader sees all of it or nothing, and so does whoever comes after a crash, at whatever
point. A rollback journal, not a write-ahead log: the newest keys are then in the one file that is copied and restored,
and a service that may only read its directory can read the database. The price: while a transaction is being committed
(milliseconds; for the import of a million keys seconds) readers wait. What is removed is overwritten
(``secure_delete``); what the file system keeps of the journal is not.

A file that is put in the place of this one (a rename, a link that is swapped) is used from the next lookup on.
"""

from __future__ import annotations

import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Self

from endpoint.keystore.file import (
    MAX_IDENTITY_BYTES,
    MAX_KEY_BYTES,
    MIN_KEY_BYTES,
    KeyFileError,
    require_keys,
)
from endpoint.privatedb import Kind, create_database, damaged, explained, number_of, open_database
from endpoint.text import show_text

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

APPLICATION_ID = 0x7344544B
"""``sDTK``, in the header of the database: keys of this program."""
FORMAT = 1
"""``user_version``: of the table below."""
PATIENCE = 5.0
"""Seconds to wait for somebody else's transaction."""
BATCH = 1000
"""Rows that are read at once."""
TABLES = {
    "psk": (
        "CREATE TABLE psk ("
        "identity BLOB NOT NULL PRIMARY KEY "
        f"CHECK (typeof(identity) = 'blob' AND length(identity) BETWEEN 1 AND {MAX_IDENTITY_BYTES}), "
        "current BLOB NOT NULL "
        f"CHECK (typeof(current) = 'blob' AND length(current) BETWEEN {MIN_KEY_BYTES} AND {MAX_KEY_BYTES}), "
        "next BLOB CHECK (next IS NULL OR (typeof(next) = 'blob' AND next <> current "
        f"AND length(next) BETWEEN {MIN_KEY_BYTES} AND {MAX_KEY_BYTES}))"
        ") WITHOUT ROWID"
    ),
}

_FIND = "SELECT current, next FROM psk WHERE identity = ?"
_ALL = "SELECT identity, current, next FROM psk ORDER BY identity"
_PAGE = "SELECT identity FROM psk WHERE identity > ? ORDER BY identity LIMIT ?"
_COUNT = "SELECT count(*), count(next) FROM psk"
_SET = (
    "INSERT INTO psk VALUES (?, ?, ?) "
    "ON CONFLICT (identity) DO UPDATE SET current = excluded.current, next = excluded.next"
)
_REMOVE = "DELETE FROM psk WHERE identity = ?"


class KeyDatabaseError(KeyFileError):
    """Why the database cannot be used: the file, what is wrong, the remedy. Nothing was changed."""

    def __init__(self, path: Path, what: str, code: str) -> None:
        """``code`` is a short stable name: SQLite's, or one of ours."""
        super().__init__([f"{show_text(str(path))}: {what}"])
        self.code = code


KIND = Kind(
    application_id=APPLICATION_ID,
    version=FORMAT,
    tables=TABLES,
    journal="delete",
    synchronous="EXTRA",
    error=KeyDatabaseError,
    holds="keys",
    missing="make one: dtls-endpoint keys add, or keys import (psk_file, if it is a PSK file)",
    anew="put back a copy, or make it anew: dtls-endpoint keys import",
)


class KeyDatabase:
    """An open database of keys. Use it from any thread; each method blocks for the disk's time, and ``patience``."""

    def __init__(self, path: Path, *, create: bool = False, patience: float = PATIENCE) -> None:
        """Raises :class:`KeyDatabaseError` for what is not in order. ``create`` makes what is not there, or empty."""
        self.path = path
        self._patience = patience
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._file = (0, 0)
        """Device and number of the file that is open."""
        with explained(path, KIND):
            if create:
                create_database(path, KIND, patience=patience)
            self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"KeyDatabase({str(self.path)!r})"

    def close(self) -> None:
        """Close it; the next call would open it again."""
        with self._lock:
            self._disconnect()

    def lookup(self, identity: bytes) -> tuple[bytes, ...]:
        """The keys of ``identity``, current first; empty if it is unknown."""
        with self._using() as connection:
            row = connection.execute(_FIND, (identity,)).fetchone()
        return () if row is None else _keys(*row)

    def counts(self) -> tuple[int, int]:
        """How many identities there are, and how many of them have a next key."""
        with self._using() as connection:
            identities, in_rotation = connection.execute(_COUNT).fetchone()
        return identities, in_rotation

    def items(self) -> Iterator[tuple[bytes, tuple[bytes, ...]]]:
        """All identities with their keys, as they were when the first was asked for, in the order of identities.

        Until the last one is taken nobody can commit a change; whoever tries waits.
        """
        # A connection of its own: on the other one lookups would see the past as long as this takes.
        with (
            explained(self.path, KIND),
            closing(open_database(self.path, KIND, patience=self._patience)[0]) as connection,
        ):
            yield from _rows(connection)

    def page(self, after: bytes | None, limit: int) -> list[bytes]:
        """The next ``limit`` identities behind ``after``, in their order; from the first one where that is ``None``."""
        with self._using() as connection:
            # No identity is empty, so all of them are behind that.
            return [identity for (identity,) in connection.execute(_PAGE, (after or b"", limit))]

    def verify(self) -> None:
        """Read all of it, and raise :class:`KeyDatabaseError` if it is damaged. Takes a second for a million rows."""
        with self._using() as connection:
            if connection.execute("PRAGMA integrity_check(1)").fetchall() != [("ok",)]:
                raise damaged(self.path, KIND)

    @contextmanager
    def change(self) -> Iterator[KeyChanges]:
        """One transaction: all that is done with what is given, on the disk when this ends, or nothing if it raises.

        Only one is under way at a time, in any process; readers go on until it is committed.
        """
        with self._using() as connection:
            # Else what does not fit the cache is written earlier, and readers wait for all that follows.
            connection.execute("PRAGMA cache_spill = OFF")
            connection.execute("BEGIN IMMEDIATE")
            yield KeyChanges(connection)
            connection.execute("COMMIT")

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """The connection, to the file that has the name now."""
        with self._lock, explained(self.path, KIND):
            try:
                if self._connection is None or number_of(self.path) != self._file:
                    self._connect()
                assert self._connection is not None  # noqa: S101 - or _connect has raised
                yield self._connection
            except BaseException:
                # It rolls back; and after an error of the disk the cache is not to be trusted.
                self._disconnect()
                raise

    def _connect(self) -> None:
        self._disconnect()
        self._connection, self._file = open_database(self.path, KIND, patience=self._patience)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class KeyChanges:
    """What can be done within :meth:`KeyDatabase.change`; not to be used after it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def lookup(self, identity: bytes) -> tuple[bytes, ...]:
        """The keys of ``identity`` with the changes made so far."""
        row = self._connection.execute(_FIND, (identity,)).fetchone()
        return () if row is None else _keys(*row)

    def items(self) -> Iterator[tuple[bytes, tuple[bytes, ...]]]:
        """All identities with their keys; take them all before the next change."""
        return _rows(self._connection)

    def set(self, identity: bytes, keys: Sequence[bytes]) -> None:
        """Give ``identity`` these keys, current first, instead of those it has.

        Raises ``ValueError`` for what cannot be kept; the message does not hold a key.
        """
        if not 1 <= len(identity) <= MAX_IDENTITY_BYTES:
            raise ValueError(f"an identity has {len(identity)} bytes, not 1 to {MAX_IDENTITY_BYTES}")
        require_keys(keys)
        self._connection.execute(_SET, (identity, keys[0], keys[1] if len(keys) > 1 else None))

    def remove(self, identity: bytes) -> bool:
        """Forget ``identity``; whether it was known."""
        return self._connection.execute(_REMOVE, (identity,)).rowcount > 0


def _rows(connection: sqlite3.Connection) -> Iterator[tuple[bytes, tuple[bytes, ...]]]:
    cursor = connection.execute(_ALL)
    while rows := cursor.fetchmany(BATCH):
        for identity, current, following in rows:
            yield identity, _keys(current, following)


def _keys(current: bytes, following: bytes | None) -> tuple[bytes, ...]:
    return (current,) if following is None else (current, following)
