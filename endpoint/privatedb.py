"""SQLite databases that are for their owner only: found, checked and opened, with errors that name file and remedy.

Whoever can write such a file, its directory, or a journal beside it (which SQLite would follow) decides what is in it.
So these are looked at, and the file is found to be of its kind: application id, version and exactly the tables it
should have, so no triggers and no views.

Names are looked at, not open files: closing a descriptor of its own would end the locks that SQLite holds on the same
file elsewhere in this process. The directory's mode makes sure that nobody else swaps the name in between. (The
database of associations, which is one process's alone, is stricter; see ``endpoint.state.exclusive``.)
"""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

import attrs

from endpoint.text import show_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SMALLEST = 512
"""Bytes of the smallest page, so of the smallest database."""


@attrs.frozen(kw_only=True)
class Kind:
    """What makes a database ours, and the words for it."""

    application_id: int
    version: int
    """``user_version``."""
    tables: Mapping[str, str]
    """Name to statement, word for word."""
    journal: Literal["delete", "wal"]
    synchronous: Literal["EXTRA", "NORMAL"]
    error: Callable[[Path, str, str], Exception]
    """Takes the file, what is wrong with it (with the remedy), and a short stable name for that."""
    holds: str
    """What others would have access to."""
    missing: str
    """Remedy for a file that is not there, or not of this kind."""
    anew: str
    """Remedy for one that is damaged, or of another version."""


def open_database(path: Path, kind: Kind, *, patience: float) -> tuple[sqlite3.Connection, tuple[int, int]]:
    """A connection, and device and number of the file; raises ``kind.error``, or what :func:`explained` is for.

    The connection may be used from any thread, by one at a time. ``patience``: seconds to wait for another's
    transaction.
    """
    number = _require_safe(path, kind)
    connection = _connection(path, kind, patience)
    try:
        _require_ours(connection, path, kind)
        # Between the look at it and SQLite's opening the owner may have put another in its place.
        if number_of(path) != number:
            raise kind.error(path, "was replaced just now; try again", "REPLACED")
    except BaseException:
        connection.close()
        raise
    return connection, number


def create_database(path: Path, kind: Kind, *, patience: float) -> None:
    """Make it, with its tables, unless it is there. A file that is empty becomes one; any other is left alone."""
    directory = path.parent
    owner = directory.stat()
    _require_safe_directory(path, os.geteuid(), kind)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        pass
    else:
        try:
            os.fchmod(descriptor, 0o600)
            if os.geteuid() == 0:
                # What root makes in a service's directory is for the service.
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        flush_directory(directory)
    _require_safe(path, kind)
    with closing(_connection(path, kind, patience)) as connection:
        if _is_empty(connection):
            connection.execute(f"PRAGMA journal_mode = {kind.journal}")
        connection.execute("BEGIN IMMEDIATE")
        if _is_empty(connection):
            for statement in kind.tables.values():
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {kind.application_id}")
            connection.execute(f"PRAGMA user_version = {kind.version}")
        connection.execute("COMMIT")


def number_of(path: Path) -> tuple[int, int]:
    """Device and number of the file that has the name now."""
    status = path.stat()
    return status.st_dev, status.st_ino


def flush_directory(directory: Path) -> None:
    """Have the names in it on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explained(path: Path, kind: Kind) -> Iterator[None]:
    """Turn what SQLite and the operating system raise into ``kind.error``."""
    try:
        yield
    except sqlite3.Error as error:
        raise _database_error(path, error, kind) from None
    except UnicodeDecodeError:
        raise damaged(path, kind) from None  # SQLite quotes what it found instead of a table
    except FileNotFoundError:
        raise kind.error(path, f"is not there; remedy: {kind.missing}", "ENOENT") from None
    except OSError as error:
        what = (error.strerror or str(error)).lower()
        raise kind.error(path, f"cannot be used: {what}", "SYSTEM") from None


def damaged(path: Path, kind: Kind) -> Exception:
    """Of a database that is ours, and not as it was written."""
    return kind.error(path, f"is damaged; remedy: {kind.anew}", "SQLITE_CORRUPT")


# --- the file ---------------------------------------------------------------------------------------


def _require_safe(path: Path, kind: Kind) -> tuple[int, int]:
    """Raise unless only the owner can read the file, and nobody else can put another in its place; its number."""
    name = show_text(str(path))
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        raise kind.error(path, "is not a regular file; remedy: name a database", "KIND")
    if 0 < status.st_size < SMALLEST:
        raise _no_database(path, kind)  # SQLite would take it for an empty one
    if mode & 0o077:
        what = f"mode {mode:04o} gives group or others access to the {kind.holds}; remedy: chmod 600 {name}"
        raise kind.error(path, what, "MODE")
    if status.st_nlink > 1:
        # SQLite looks for the journal beside the name; under another name it would not find it.
        what = f"has {status.st_nlink} names; remedy: remove the other hard links"
        raise kind.error(path, what, "LINKS")
    _require_safe_directory(path, status.st_uid, kind)
    return status.st_dev, status.st_ino


def _require_safe_directory(path: Path, owner: int, kind: Kind) -> None:
    # Links are followed, as for PSK files; the journal is beside the file itself.
    directory = Path(os.path.realpath(path)).parent
    where = show_text(str(directory))
    status = directory.stat()
    mode = stat.S_IMODE(status.st_mode)
    # Not even where the sticky bit is set: SQLite would follow a journal that somebody put there.
    if mode & 0o022:
        what = f"mode {mode:04o} of its directory lets others write; remedy: chmod go-w {where}"
        raise kind.error(path, what, "MODE")
    if status.st_uid not in {0, os.geteuid(), owner}:
        what = f"its directory belongs to user {status.st_uid}; remedy: chown {where}"
        raise kind.error(path, what, "OWNER")


# --- the database -----------------------------------------------------------------------------------


def _connection(path: Path, kind: Kind, patience: float) -> sqlite3.Connection:
    # mode=rw reads where the disk or the mode lets nobody write, and can finish what a crash has left where they do.
    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode=rw",
        uri=True,
        timeout=patience,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        for pragma in (f"synchronous = {kind.synchronous}", "secure_delete = ON", "trusted_schema = OFF"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("PRAGMA cell_size_check = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _require_ours(connection: sqlite3.Connection, path: Path, kind: Kind) -> None:
    identity, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
    tables = dict(connection.execute("SELECT name, sql FROM sqlite_schema").fetchall())
    if identity != kind.application_id:
        what = "is a database of another program" if identity or tables else "is empty"
        raise kind.error(path, f"{what}; remedy: name another, or {kind.missing}", "FOREIGN")
    if version != kind.version:
        what = f"has format {version}, and this version knows {kind.version}; remedy: {kind.anew}"
        raise kind.error(path, what, "FORMAT")
    if tables != kind.tables:
        raise kind.error(path, f"has other tables than it should; remedy: {kind.anew}", "FOREIGN")
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    if mode != kind.journal:
        what = f'has journal_mode {mode}; remedy: set it with "PRAGMA journal_mode = {kind.journal}"'
        raise kind.error(path, what, "JOURNAL")


def _is_empty(connection: sqlite3.Connection) -> bool:
    (count,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    return not count


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)


# --- errors -----------------------------------------------------------------------------------------


def _database_error(path: Path, error: sqlite3.Error, kind: Kind) -> Exception:
    # What the module itself refuses has no name.
    code: str = getattr(error, "sqlite_errorname", None) or "SQLITE_ERROR"
    if code == "SQLITE_NOTADB":
        return _no_database(path, kind)
    if code.startswith("SQLITE_CORRUPT"):
        return damaged(path, kind)
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return kind.error(path, "is being changed by another program; try again when that is done", code)
    return kind.error(path, f"cannot be used: {error} ({code})", code)


def _no_database(path: Path, kind: Kind) -> Exception:
    return kind.error(
        path, f"is no SQLite database; remedy: name another file, or {kind.missing}", "SQLITE_NOTADB"
    )
