"""Keys in an SQLite database: changed one by one while the service reads, without reading all of them again.

::

    psk    identity BLOB    any bytes, 1 to 65,535
           current  BLOB    16 to 64 bytes
           next     BLOB    the same, another one; NULL outside of a rotation

An attacker who can write the file, its directory, or a journal beside it (which SQLite would follow) lets himself in. So
these are looked at as PSK files are: for the owner only, and nobody else may put anything there. The file is found to be
ours, of a version that is known and with exactly our tables (no triggers, no views) before a row is read.

One transaction is one change: a reader sees all of it or nothing, and so does whoever comes after a crash, at whatever
point. A rollback journal, not a write-ahead log: the newest keys are then in the one file that is copied and restored, and a
service that may only read its directory can read the database. The price: while a transaction is being committed (milliseconds;
for the import of a million keys seconds) readers wait. What is removed is overwritten (``secure_delete``); what the
file system keeps of the journal is not.

A file that is put in the place of this one (a rename, a link that is swapped) is used from the next lookup on.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from endpoint.keystore import MAX_KEYS
from endpoint.keystore.file import MAX_IDENTITY_BYTES, MAX_KEY_BYTES, MIN_KEY_BYTES, KeyFileError
from endpoint.text import show_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

APPLICATION_ID = 0x7344544B
"""``sDTK``, in the header of the database: keys of this program."""
FORMAT = 1
"""``user_version``: of the table below."""
PATIENCE = 5.0
"""Seconds to wait for somebody else's transaction."""
BATCH = 1000
"""Rows that are read at once."""
SMALLEST = 512
"""Bytes of the smallest page, so of the smallest database."""

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
_COUNT = "SELECT count(*), count(next) FROM psk"
_SET = (
    "INSERT INTO psk VALUES (?, ?, ?) "
    "ON CONFLICT (identity) DO UPDATE SET current = excluded.current, next = excluded.next"
)
_REMOVE = "DELETE FROM psk WHERE identity = ?"


class KeyDatabaseError(KeyFileError):
    """Why the database cannot be used: the file, what is wrong, the remedy. Nothing was changed."""

    def __init__(self, path: Path, what: str, *, code: str) -> None:
        """``code`` is a short stable name: SQLite's, or one of ours."""
        super().__init__([f"{show_text(str(path))}: {what}"])
        self.code = code


class KeyDatabase:
    """An open database of keys. Use it from any thread; every method blocks, at most for ``patience`` and the disk's time."""

    def __init__(self, path: Path, *, create: bool = False, patience: float = PATIENCE) -> None:
        """Raises :class:`KeyDatabaseError` for what is not in order. ``create`` makes what is not there, or empty."""
        self.path = path
        self._patience = patience
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._file = (0, 0)
        """Device and number of the file that is open."""
        with _explained(path):
            if create:
                _create(path, patience)
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
        with _explained(self.path), closing(_open(self.path, self._patience)[0]) as connection:
            yield from _rows(connection)

    def verify(self) -> None:
        """Read all of it, and raise :class:`KeyDatabaseError` if it is damaged. Takes a second for a million rows."""
        with self._using() as connection:
            if connection.execute("PRAGMA integrity_check(1)").fetchall() != [("ok",)]:
                raise _damaged(self.path)

    @contextmanager
    def change(self) -> Iterator[KeyChanges]:
        """One transaction: all that is done with what is given, on the disk when this ends, or nothing if it raises.

        Only one is under way at a time, in any process; readers go on until it is committed.
        """
        with self._using() as connection:
            # Else what does not fit the cache is written earlier, and readers wait for all that follows.
            connection.execute("PRAGMA cache_spill = OFF")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield KeyChanges(connection)
                connection.execute("COMMIT")
            except BaseException:
                self._disconnect()  # which rolls back
                raise

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """The connection, to the file that has the name now."""
        with self._lock, _explained(self.path):
            try:
                if self._connection is None or _number_of(self.path) != self._file:
                    self._connect()
                assert self._connection is not None  # noqa: S101 - or _connect has raised
                yield self._connection
            except (sqlite3.Error, OSError):
                # After an error of the disk the cache is not to be trusted.
                self._disconnect()
                raise

    def _connect(self) -> None:
        self._disconnect()
        self._connection, self._file = _open(self.path, self._patience)

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
        if not 1 <= len(keys) <= MAX_KEYS:
            raise ValueError(f"{len(keys)} keys, not 1 to {MAX_KEYS}")
        for key in keys:
            if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
                raise ValueError(f"a key has {len(key)} bytes, not {MIN_KEY_BYTES} to {MAX_KEY_BYTES}")
        if len(set(keys)) < len(keys):
            raise ValueError("current and next key are the same")
        self._connection.execute(_SET, (identity, keys[0], keys[1] if len(keys) > 1 else None))

    def remove(self, identity: bytes) -> bool:
        """Forget ``identity``; whether it was known."""
        return self._connection.execute(_REMOVE, (identity,)).rowcount > 0


# --- the file ---------------------------------------------------------------------------------------


def _number_of(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _require_safe(path: Path) -> tuple[int, int]:
    """Raise unless only the owner can read the file, and nobody else can put another in its place; its number.

    By names, without opening: closing a descriptor would end the locks that SQLite holds elsewhere in this process.
    """
    name = show_text(str(path))
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        raise KeyDatabaseError(path, "is not a regular file; remedy: name a database", code="KIND")
    if 0 < status.st_size < SMALLEST:
        raise _no_database(path)  # SQLite would take it for an empty one
    if mode & 0o077:
        raise KeyDatabaseError(
            path,
            f"mode {mode:04o} gives group or others access to the keys; remedy: chmod 600 {name}",
            code="MODE",
        )
    if status.st_nlink > 1:
        # SQLite looks for the journal beside the name; under another name it would not find it.
        raise KeyDatabaseError(
            path, f"has {status.st_nlink} names; remedy: remove the other hard links", code="LINKS"
        )
    _require_safe_directory(path, status.st_uid)
    return status.st_dev, status.st_ino


def _require_safe_directory(path: Path, owner: int) -> None:
    # Links are followed, as for PSK files; the journal is beside the file itself.
    directory = Path(os.path.realpath(path)).parent
    where = show_text(str(directory))
    status = directory.stat()
    mode = stat.S_IMODE(status.st_mode)
    # Not even where the sticky bit is set: SQLite would follow a journal that somebody put there.
    if mode & 0o022:
        raise KeyDatabaseError(
            path,
            f"mode {mode:04o} of its directory lets others write; remedy: chmod go-w {where}",
            code="MODE",
        )
    if status.st_uid not in {0, os.geteuid(), owner}:
        raise KeyDatabaseError(
            path, f"its directory belongs to user {status.st_uid}; remedy: chown {where}", code="OWNER"
        )


def _create(path: Path, patience: float) -> None:
    """Make the database, empty, unless it is there."""
    directory = path.parent
    owner = directory.stat()
    _require_safe_directory(path, os.geteuid())
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        pass
    else:
        try:
            if os.geteuid() == 0:
                # What root makes in a service's directory is for the service.
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _flush(directory)
    _require_safe(path)
    with closing(_connection(path, patience)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            for statement in TABLES.values():
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
        connection.execute("COMMIT")


def _flush(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- the database -----------------------------------------------------------------------------------


def _open(path: Path, patience: float) -> tuple[sqlite3.Connection, tuple[int, int]]:
    number = _require_safe(path)
    connection = _connection(path, patience)
    try:
        _require_ours(connection, path)
        # Between the look at it and SQLite's opening somebody may have swapped the name.
        if _number_of(path) != number:
            raise KeyDatabaseError(path, "was replaced just now; try again", code="REPLACED")
    except BaseException:
        connection.close()
        raise
    return connection, number


def _connection(path: Path, patience: float) -> sqlite3.Connection:
    # mode=rw reads where the disk or the mode lets nobody write, and can finish what a crash has left where they do.
    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode=rw",
        uri=True,
        timeout=patience,
        isolation_level=None,
        check_same_thread=False,  # KeyDatabase has a lock
    )
    try:
        for pragma in ("synchronous = EXTRA", "secure_delete = ON", "trusted_schema = OFF"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("PRAGMA cell_size_check = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _require_ours(connection: sqlite3.Connection, path: Path) -> None:
    identity, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
    tables = dict(connection.execute("SELECT name, sql FROM sqlite_schema").fetchall())
    if identity != APPLICATION_ID:
        what = "is a database of another program" if identity or tables else "is empty"
        raise KeyDatabaseError(
            path, f"{what}; remedy: name another, or make one: dtls-endpoint keys import", code="FOREIGN"
        )
    if version != FORMAT:
        raise KeyDatabaseError(
            path,
            f"has format {version}, and this version knows {FORMAT}; remedy: export its keys with the version that made it",
            code="FORMAT",
        )
    if tables != TABLES:
        raise KeyDatabaseError(
            path,
            "has other tables than it should; remedy: export its keys, import them into a new one",
            code="FOREIGN",
        )
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    if mode != "delete":
        raise KeyDatabaseError(
            path,
            f'has journal_mode {mode}; remedy: set it with "PRAGMA journal_mode = DELETE"',
            code="JOURNAL",
        )


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)


def _rows(connection: sqlite3.Connection) -> Iterator[tuple[bytes, tuple[bytes, ...]]]:
    cursor = connection.execute(_ALL)
    while rows := cursor.fetchmany(BATCH):
        for identity, current, following in rows:
            yield identity, _keys(current, following)


def _keys(current: bytes, following: bytes | None) -> tuple[bytes, ...]:
    return (current,) if following is None else (current, following)


# --- errors -----------------------------------------------------------------------------------------


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what SQLite and the operating system raise into :class:`KeyDatabaseError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise _database_error(path, error) from None
    except UnicodeDecodeError:
        raise _damaged(path) from None  # SQLite quotes what it found instead of a table
    except FileNotFoundError:
        raise KeyDatabaseError(
            path, "is not there; remedy: make it: dtls-endpoint keys import, or keys add", code="ENOENT"
        ) from None
    except OSError as error:
        what = (error.strerror or str(error)).lower()
        raise KeyDatabaseError(path, f"cannot be used: {what}", code="SYSTEM") from None


def _database_error(path: Path, error: sqlite3.Error) -> KeyDatabaseError:
    # What the module itself refuses has no name.
    code: str = getattr(error, "sqlite_errorname", None) or "SQLITE_ERROR"
    if code == "SQLITE_NOTADB":
        return _no_database(path)
    if code.startswith("SQLITE_CORRUPT"):
        return _damaged(path)
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return KeyDatabaseError(
            path, "is being changed by another program; try again when that is done", code=code
        )
    return KeyDatabaseError(path, f"cannot be used: {error} ({code})", code=code)


def _no_database(path: Path) -> KeyDatabaseError:
    return KeyDatabaseError(
        path,
        "is no SQLite database; remedy: name another file, or psk_file if it is one",
        code="SQLITE_NOTADB",
    )


def _damaged(path: Path) -> KeyDatabaseError:
    return KeyDatabaseError(
        path,
        "is damaged; remedy: put back a copy, or make it anew: dtls-endpoint keys import",
        code="SQLITE_CORRUPT",
    )
