"""Keys in an SQLite database, asked in a worker thread: a disk that stalls holds up lookups, and nothing else.

One thread at a time, as :class:`~endpoint.keystore.database.KeyDatabase` has one connection, and a lookup takes some ten microseconds
of it. A lookup that is not waited for any more leaves its thread behind, which keeps the place until the disk answers: a disk that
hangs costs one thread, however many devices ask. A file that is put in the place of the other one is used from the next
lookup on. What is wrong with the file is told with the remedy, and is an outage: devices are told to come back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from endpoint.keystore import StoreUnavailable
from endpoint.keystore.database import KeyDatabase
from endpoint.keystore.file import KeyFileError
from endpoint.text import show_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from endpoint.keystore import Keys


class SqliteKeyStore:
    """See the module's text. A :class:`~endpoint.keystore.ManagedStore`; put a guard around it."""

    def __init__(self, path: Path, *, open_database: Callable[[Path], KeyDatabase] = KeyDatabase) -> None:
        """Make it inside ``trio.run``. The file is opened with the first lookup."""
        self._path = path
        self._open = open_database
        self._database: KeyDatabase | None = None
        self._one_thread = trio.CapacityLimiter(1)

    def __repr__(self) -> str:
        return f"SqliteKeyStore({show_text(str(self._path))!r})"

    async def lookup(self, identity: bytes) -> Keys:
        """The keys of ``identity``. Raises :class:`StoreUnavailable`."""
        try:
            return await trio.to_thread.run_sync(
                self._look_up, identity, limiter=self._one_thread, abandon_on_cancel=True
            )
        except KeyFileError as error:
            raise StoreUnavailable(str(error)) from None

    def _look_up(self, identity: bytes) -> Keys:
        return self._opened().lookup(identity)

    def _opened(self) -> KeyDatabase:
        # In the thread. A database that could not be opened is opened anew each time.
        if self._database is None:
            self._database = self._open(self._path)
        return self._database

    async def page(self, after: bytes | None, limit: int) -> list[bytes]:
        """The next identities behind ``after``, for lists. Raises :class:`StoreUnavailable`."""
        try:
            return await trio.to_thread.run_sync(
                self._opened_page, after, limit, limiter=self._one_thread, abandon_on_cancel=True
            )
        except KeyFileError as error:
            raise StoreUnavailable(str(error)) from None

    def _opened_page(self, after: bytes | None, limit: int) -> list[bytes]:
        return self._opened().page(after, limit)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Nothing to do until cancelled; then the file is closed."""
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            self.close()

    def close(self) -> None:
        """Close the file, unless a thread hangs in it; another lookup would open it again."""
        if self._database is not None and not self._one_thread.borrowed_tokens:
            self._database.close()
            self._database = None

    async def check(self) -> str | None:
        """Why lookups would fail now."""
        try:
            await self.lookup(b"")  # which no device is called, and which costs as much as any
        except StoreUnavailable as error:
            return str(error)
        return None

    def statistics(self) -> dict[str, Any]:
        """Its kind, and whether its thread is at work."""
        return {"kind": "sqlite", "thread_busy": int(self._one_thread.borrowed_tokens)}
