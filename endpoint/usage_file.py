"""The file that says which key each identity last used: rows in SQLite, for its owner only.

It may be read while a service writes it (``dtls-endpoint keys`` does), so it has a write-ahead log. The last seconds
before a loss of power may be missing. That errs on the right side: a device whose new key was not noted counts as one
that has not used it.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import attrs

from endpoint.privatedb import Kind, create_database, damaged, explained, open_database
from endpoint.text import show_text

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType

MAX_IDENTITIES = 1_000_000
"""Identities that are remembered; those not heard of for longest make room. Only devices that have proved who they
are get in, so what piles up is what was removed from the key store long ago."""
PATIENCE = 2.0
"""Seconds to wait for somebody else's transaction; others only read."""
CHANGES_BETWEEN_COUNTS = 10_000
"""Rows written until they are counted again: counting reads all of them."""

_WHICH = ("current", "next")


class UsageFileError(Exception):
    """Why the file cannot be used: the file, what is wrong, the remedy."""

    def __init__(self, path: Path, what: str, code: str) -> None:
        """``code`` is a short stable name."""
        super().__init__(f"{show_text(str(path))}: {what}")
        self.code = code


KIND = Kind(
    application_id=0x73445455,  # sDTU
    version=1,
    tables={
        "key_use": (
            "CREATE TABLE key_use ("
            "identity BLOB NOT NULL PRIMARY KEY, "
            "digest BLOB NOT NULL CHECK (typeof(digest) = 'blob' AND length(digest) = 8), "
            "which INTEGER NOT NULL CHECK (which IN (0, 1)), at REAL NOT NULL) WITHOUT ROWID"
        )
    },
    journal="wal",
    synchronous="NORMAL",
    error=UsageFileError,
    holds="devices' names",
    missing="remove it, and the service makes one",
    anew="remove it: devices count as not heard of until their next handshake",
)

_BEGUN_ANEW = frozenset({"SQLITE_CORRUPT", "FORMAT"})
"""What is not worth keeping: it was ours."""


@attrs.frozen
class KeyUse:
    """The key that a device has used last."""

    fingerprint: str
    """See ``endpoint.keystore.fingerprint``."""
    which: str
    """``current`` or ``next``: what it was then."""
    when: float
    """Seconds since 1970, of the last completed handshake."""


class UsageFile:
    """An open file. Each method raises :class:`UsageFileError`. One thread may write while another reads."""

    def __init__(self, path: Path, *, create: bool = False, limit: int = MAX_IDENTITIES) -> None:
        """``create`` makes what is not there."""
        self.path = path
        self._limit = limit
        self._uncounted = CHANGES_BETWEEN_COUNTS
        # Two connections: a reader never waits for a disk that somebody writes to.
        self._reading, self._writing = threading.Lock(), threading.Lock()
        with explained(path, KIND):
            if create:
                create_database(path, KIND, patience=PATIENCE)
            self._reader = open_database(path, KIND, patience=PATIENCE)[0]
            try:
                if self._reader.execute("PRAGMA quick_check(1)").fetchall() != [("ok",)]:
                    raise damaged(path, KIND)
                self._writer = open_database(path, KIND, patience=PATIENCE)[0]
            except BaseException:
                self._reader.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it; where a thread is in the midst of a write that does not come back, the end of the process does."""
        for lock, connection in ((self._reading, self._reader), (self._writing, self._writer)):
            if lock.acquire(blocking=False):
                try:
                    connection.close()
                finally:
                    lock.release()

    def last(self, identity: bytes) -> KeyUse | None:
        """What ``identity`` has used last; ``None`` if it was never heard of."""
        with self._reading, explained(self.path, KIND):
            row = self._reader.execute(
                "SELECT digest, which, at FROM key_use WHERE identity = ?", (identity,)
            ).fetchone()
        return None if row is None else use_of(*row)

    def page(self, after: bytes, limit: int) -> list[tuple[bytes, KeyUse]]:
        """The next ``limit`` identities behind ``after``, in the order of their bytes."""
        with self._reading, explained(self.path, KIND):
            rows = self._reader.execute(
                "SELECT identity, digest, which, at FROM key_use WHERE identity > ? ORDER BY identity LIMIT ?",
                (after, limit),
            ).fetchall()
        return [(identity, use_of(*row)) for identity, *row in rows]

    def write(self, uses: Iterable[tuple[bytes, KeyUse]]) -> None:
        """Keep these, in one transaction. Blocks for the time of the disk."""
        rows = sorted(
            (identity, bytes.fromhex(use.fingerprint), _WHICH.index(use.which), use.when)
            for identity, use in uses
        )
        with self._writing, explained(self.path, KIND):
            connection = self._writer
            try:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("INSERT OR REPLACE INTO key_use VALUES (?, ?, ?, ?)", rows)
                self._uncounted += len(rows)
                if self._uncounted >= CHANGES_BETWEEN_COUNTS or self._limit < CHANGES_BETWEEN_COUNTS:
                    self._make_room(connection)
                connection.execute("COMMIT")
            except BaseException:
                connection.rollback()
                raise

    def _make_room(self, connection: sqlite3.Connection) -> None:
        self._uncounted = 0
        (count,) = connection.execute("SELECT count(*) FROM key_use").fetchone()
        if count > self._limit:
            connection.execute(
                "DELETE FROM key_use WHERE identity IN (SELECT identity FROM key_use ORDER BY at LIMIT ?)",
                (count - self._limit,),
            )


def open_or_begin_anew(path: Path) -> tuple[UsageFile, UsageFileError | None]:
    """The file, made if it is not there, and made anew if it is damaged; and then the reason.

    Raises :class:`UsageFileError` for a file that was never ours, which is left alone.
    """
    try:
        return UsageFile(path, create=True), None
    except UsageFileError as error:
        if error.code not in _BEGUN_ANEW:
            raise
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                path.with_name(path.name + suffix).unlink()
        return UsageFile(path, create=True), error


def look_at_usage_file(path: Path) -> None:
    """Raise :class:`UsageFileError` for what a service could not use. Changes nothing."""
    if not path.exists():
        if not path.parent.is_dir():
            raise UsageFileError(
                path, "its directory is not there; remedy: make it, for the service only", "ENOENT"
            )
        return
    UsageFile(path).close()


def use_of(digest: bytes, which: int, at: float) -> KeyUse:
    """A row as what it says."""
    return KeyUse(digest.hex(), _WHICH[which], at)
