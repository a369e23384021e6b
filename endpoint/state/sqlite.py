"""The file of saved associations: an SQLite database, for one process at a time.

Why a rollback journal and not a write-ahead log
    With a write-ahead log the newest rows are in a second file until they are merged. If that is lost, damaged in the
    middle or left behind when somebody copies the database, SQLite sees an older state and calls it
    healthy: exactly the old copy that must never be used. With a rollback journal the database itself holds
    every confirmed row; what is in the journal is older. Losing the journal can leave a transaction half
    done, but each row is then the confirmed one or a later one, and both are safe. The price is writing twice.
    10,000 changes of 100,000 rows, once a second, take a tenth of a core in all, in a thread of their own.

    The journal is kept and its header overwritten (``PERSIST``): that is flushed in place, so a COMMIT that
    returned is on the disk without a directory entry having to be. And the space for the next
    transaction is taken already when the disk is full. ``synchronous = EXTRA`` is FULL, and flushes the directory
    where a journal of another kind, left by a crash, is removed.

Why two locks
    SQLite's own lock (``locking_mode = EXCLUSIVE``) keeps other programs out that use SQLite, such as a
    shell that would hold up the checkpoints. But it is a POSIX lock, which vanishes when *any* descriptor of the file
    is closed in this process. So a second descriptor is held, with flock(2), from before the first look at
    the file until after the last. Both end with the process, however it ends. The file belongs
    on a local disk: what locks mean on a network file system depends on it.

What is looked at before a row is read: that the file and its directory can be written by nobody else (who could,
could put an old copy there, or a journal that makes one), that it is no link, that it is ours (application id,
version, exactly our tables, so no triggers), and that all of it is intact. A row has a checksum: under a
handle with a bit turned over, an old blob would lie beside the newer ones and be loaded in their place one day.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import zlib
from contextlib import contextmanager
from operator import itemgetter
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from endpoint.state.exclusive import StateFileError, open_alone, start_of, system_error
from endpoint.text import show_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from types import TracebackType

APPLICATION_ID = 0x7344544C
"""``sDTL``, in the header of the database: this program's."""
FORMAT = 1
"""``user_version``: of the tables below."""
BATCH = 1000
"""Rows that are read at once: some 250 KiB."""

TABLES = {
    "meta": (
        "CREATE TABLE meta ("
        "only INTEGER PRIMARY KEY CHECK (only = 1), "
        "generation INTEGER NOT NULL CHECK (generation >= 0), "
        "anchor BLOB NOT NULL CHECK (typeof(anchor) = 'blob'))"
    ),
    # In the order of handles, without a second tree: updates of one checkpoint then go through the pages once.
    "association": (
        "CREATE TABLE association ("
        "handle BLOB NOT NULL PRIMARY KEY CHECK (typeof(handle) = 'blob' AND length(handle) > 0), "
        "blob BLOB NOT NULL CHECK (typeof(blob) = 'blob'), crc INTEGER NOT NULL) WITHOUT ROWID"
    ),
}

# https://www.sqlite.org/fileformat.html, 1.3: how a database begins, and where in that the numbers are.
_SQLITE = b"SQLite format 3\0"
_USER_VERSION_OFFSET = 60
_APPLICATION_ID_OFFSET = 68
_HEADER_LENGTH = 72

_SAVE = (
    "INSERT INTO association VALUES (?, ?, ?) "
    "ON CONFLICT (handle) DO UPDATE SET blob = excluded.blob, crc = excluded.crc"
)
_REMOVE = "DELETE FROM association WHERE handle = ?"
_READ = "SELECT handle, blob, crc FROM association WHERE handle > ? ORDER BY handle LIMIT ?"
_FENCE = "UPDATE meta SET anchor = ? WHERE generation = ?"

_LOST = "its associations are lost and their devices handshake again; putting back an older copy is not safe"


def look_at(path: Path) -> None:
    """Raise :class:`StateFileError` for what a start would refuse at first sight. Locks nothing and changes nothing.

    What is damaged further in, or in use, only a start can tell.
    """
    start = start_of(path, _HEADER_LENGTH)
    if not start:
        return
    if not start.startswith(_SQLITE):
        raise _no_database(path)
    _require_ours(
        path,
        int.from_bytes(start[_APPLICATION_ID_OFFSET:_HEADER_LENGTH]),
        int.from_bytes(start[_USER_VERSION_OFFSET : _USER_VERSION_OFFSET + 4]),
    )


class AssociationFile:
    """An open file of associations. Making one refuses what is not in order, and starts a new generation.

    A file that is not there, or empty, is made. Use it from any thread; one call at a time is under way.
    """

    def __init__(self, path: Path) -> None:
        """Raises :class:`StateFileError`; then nothing was changed, except perhaps the generation."""
        self.path = path
        self.generation = 0
        """How many processes have opened this file, with this one; already on the disk."""
        self.anchor = b""
        """The last anchor that was written, by this process or the one before; empty in a new file."""
        self.rows_damaged = 0
        """Rows that :meth:`rows` has left out."""
        self._lock = threading.Lock()
        self._closing = False
        self._connection: sqlite3.Connection | None = None
        self._descriptor = open_alone(path)
        try:
            with _explained(path):
                self._connection = self._connect()
                self.generation, self.anchor = _begin_generation(self._connection)
        except BaseException:
            self._shut()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def rows(self) -> Iterator[tuple[bytes, bytes]]:
        """All (handle, blob), in the order of handles; without those that are damaged, which are counted."""
        last = b""
        while True:
            with self._lock, _explained(self.path):
                batch = self._open().execute(_READ, (last, BATCH)).fetchall()
            if not batch:
                return
            for handle, blob, crc in batch:
                if crc == _crc(handle, blob):
                    yield handle, blob
                else:
                    self.rows_damaged += 1
            last = batch[-1][0]

    def apply(
        self, saved: Iterable[tuple[bytes, bytes]], removed: Iterable[bytes] = (), *, anchor: bytes
    ) -> None:
        """Remove, then save, in one transaction that is on the disk when this returns. Blocks.

        After a :class:`StateFileError` all of it may be on the disk, or nothing: nothing may be confirmed,
        and the same may be tried again.
        """
        # In order, so that each page is read, changed and written once.
        ordered = [(handle, blob, _crc(handle, blob)) for handle, blob in sorted(saved, key=itemgetter(0))]
        try:
            with self._lock, _explained(self.path):
                connection = self._open()
                try:
                    self._require_same_file()
                    connection.execute("BEGIN EXCLUSIVE")
                    # Whoever opened the file after us has incremented it: two processes where locks
                    # mean nothing. The older one must not confirm a number any more.
                    if connection.execute(_FENCE, (anchor, self.generation)).rowcount != 1:
                        raise StateFileError(
                            self.path,
                            "another process has begun to use it, or it was overwritten; remedy: let one service use it; "
                            f"if it was overwritten, stop the service and remove it: {_LOST}",
                            code="FENCED",
                        )
                    connection.executemany(_REMOVE, [(handle,) for handle in sorted(removed)])
                    connection.executemany(_SAVE, ordered)
                    connection.execute("COMMIT")
                except BaseException:
                    # Which includes rolling back. After an error of the disk SQLite's cache is not to
                    # be trusted, so the next call begins with what the disk says.
                    self._connection = None
                    connection.close()
                    raise
                self.anchor = anchor
        finally:
            if self._closing:
                self._close_if_free()

    def close(self) -> None:
        """Let the next process in. Where a thread is writing that does not come back: when it does."""
        self._closing = True
        self._close_if_free()

    def _close_if_free(self) -> None:
        if self._lock.acquire(blocking=False):
            try:
                self._shut()
            finally:
                self._lock.release()

    def _shut(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._descriptor >= 0:
            # Last: SQLite's locks end when any descriptor of the file is closed.
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> sqlite3.Connection:
        if self._closing:
            raise StateFileError(self.path, "is closed", code="CLOSED")
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        connection = _connect(self.path)
        try:
            _verify(connection, self.path)
            # Between the lock and SQLite's own look at the name somebody may have swapped it.
            self._require_same_file()
        except BaseException:
            connection.close()
            raise
        return connection

    def _require_same_file(self) -> None:
        ours = os.fstat(self._descriptor)
        try:
            named = os.stat(self.path, follow_symlinks=False)  # noqa: PTH116 - as os.fstat above
        except FileNotFoundError:
            named = None
        if named is None or not os.path.samestat(ours, named):
            raise StateFileError(
                self.path,
                "was removed or replaced while in use; remedy: restart the service",
                code="REPLACED",
            )


# --- the database -----------------------------------------------------------------------------------


def _connect(path: Path) -> sqlite3.Connection:
    # mode=rw: it is there; if it is not, somebody has just removed it.
    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode=rw",
        uri=True,
        timeout=0.0,  # who holds it now holds it for long
        isolation_level=None,
        check_same_thread=False,  # AssociationFile has a lock
    )
    try:
        for pragma in ("locking_mode = EXCLUSIVE", "synchronous = EXTRA", "trusted_schema = OFF"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("PRAGMA cell_size_check = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _verify(connection: sqlite3.Connection, path: Path) -> None:
    """Raise unless all is ours and intact, or new; a new database gets its tables. Changes no other."""
    identity, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
    if not _size(path):
        _use_journal(connection, path)
        _create(connection)
        return
    _require_ours(path, identity, version)
    tables = dict(connection.execute("SELECT name, sql FROM sqlite_schema").fetchall())
    if tables != TABLES:
        raise StateFileError(
            path, f"has other tables than it should; remedy: remove it: {_LOST}", code="FOREIGN"
        )
    _use_journal(connection, path)
    # Not quick_check, which does not look at the order: of two rows of one association the older might be found.
    if connection.execute("PRAGMA integrity_check(1)").fetchall() != [("ok",)]:
        raise _damaged(path)
    # What is missing at the end SQLite reads as zeros.
    if _size(path) != _pragma(connection, "page_count") * _pragma(connection, "page_size"):
        raise _damaged(path)
    if connection.execute("SELECT count(*) FROM meta").fetchone() != (1,):
        raise _damaged(path)


def _require_ours(path: Path, identity: int, version: int) -> None:
    if identity != APPLICATION_ID:
        raise StateFileError(
            path, "is a database of another program; remedy: name another file", code="FOREIGN"
        )
    if version != FORMAT:
        raise StateFileError(
            path,
            f"has format {version}, and this version knows {FORMAT}; remedy: use the version that made it, or remove it: {_LOST}",
            code="FORMAT",
        )


def _use_journal(connection: sqlite3.Connection, path: Path) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = PERSIST").fetchone()
    if mode != "persist":
        raise StateFileError(path, f"cannot be used with a journal, but with {mode}", code="JOURNAL")


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN EXCLUSIVE")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT}")
    for statement in TABLES.values():
        connection.execute(statement)
    connection.execute("INSERT INTO meta VALUES (1, 0, x'')")
    connection.execute("COMMIT")


def _begin_generation(connection: sqlite3.Connection) -> tuple[int, bytes]:
    connection.execute("BEGIN EXCLUSIVE")
    connection.execute("UPDATE meta SET generation = generation + 1")
    generation, anchor = connection.execute("SELECT generation, anchor FROM meta").fetchone()
    connection.execute("COMMIT")
    return generation, anchor


def _crc(handle: bytes, blob: bytes) -> int:
    """Tells accidents within a row, which SQLite does not look for. Against others there is the core's seal."""
    return zlib.crc32(blob, zlib.crc32(handle))


def _size(path: Path) -> int:
    """Bytes of the database, once SQLite has rolled back what a crash left half done."""
    return path.stat().st_size


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)


# --- errors -----------------------------------------------------------------------------------------


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what SQLite and the operating system raise into :class:`StateFileError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise _database_error(path, error) from None
    except UnicodeDecodeError:
        # SQLite quotes what it found instead of a table.
        raise _damaged(path) from None
    except OSError as error:
        raise system_error(path, error) from None


def _database_error(path: Path, error: sqlite3.Error) -> StateFileError:
    # What the module itself refuses, such as text that is none, has no name.
    code: str = getattr(error, "sqlite_errorname", None) or "SQLITE_ERROR"
    if code == "SQLITE_NOTADB":
        return _no_database(path)
    if code.startswith("SQLITE_CORRUPT"):
        return _damaged(path)
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StateFileError(path, "is in use by another program; remedy: end that one", code=code)
    return StateFileError(path, f"cannot be used: {error} ({code})", code=code)


def _no_database(path: Path) -> StateFileError:
    return StateFileError(
        path, "is no SQLite database; remedy: name another file, or remove it", code="SQLITE_NOTADB"
    )


def _damaged(path: Path) -> StateFileError:
    journal = show_text(f"{path}-journal")
    return StateFileError(
        path, f"is damaged; remedy: remove it and {journal}: {_LOST}", code="SQLITE_CORRUPT"
    )
