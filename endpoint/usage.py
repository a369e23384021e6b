"""Which key each device last used: what a rotation waits for before the old key is thrown away.

Heard from completed handshakes, resumed ones too: those have shown that the device still has the key of the session.
Not from data: an association that was made with the old key goes on with it whatever the device has been given since.

With ``state.usage_file`` it survives the process, written behind in a thread. Without, it lasts as long as the process,
for :data:`MAX_IN_MEMORY` identities. A file that cannot be used stops nothing: it is told once, and memory does
meanwhile.
"""

from __future__ import annotations

import heapq
import time
from itertools import islice
from typing import TYPE_CHECKING, Any

import trio

from endpoint.observer import Quiet
from endpoint.usage_file import KeyUse, UsageFileError, open_or_begin_anew

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from endpoint.association import Association
    from endpoint.usage_file import UsageFile

__all__ = ["KeyUsage", "KeyUse"]

MAX_IN_MEMORY = 100_000
"""Identities that are held here without a file, or while it cannot be written: some 30 MB."""
WRITE_PAUSE = 2.0
"""Seconds from the first news to its being written, so that one write has many."""
RETRY_PAUSE = 30.0
"""Seconds after a write that failed."""
BATCH = 5_000
"""Identities in one write."""

_WHICH = ("current", "next")


class KeyUsage(Quiet):
    """An observer that remembers the key of each identity's last handshake."""

    def __init__(
        self,
        path: Path | None,
        *,
        trouble: Callable[..., None],
        wall_clock: Callable[[], float] = time.time,
        limit: int = MAX_IN_MEMORY,
    ) -> None:
        """``trouble`` is told what is wrong with the file. Make it inside ``trio.run``."""
        self._trouble = trouble
        self._wall_clock = wall_clock
        self._limit = limit
        self._recent: dict[bytes, KeyUse] = {}
        """Not in the file yet, the oldest first; without a file all."""
        self._being_written: dict[bytes, KeyUse] = {}
        self._news = trio.Event()
        self._told = False
        self._forgotten = 0
        self._file: UsageFile | None = None
        if path is not None:
            try:
                self._file, damage = open_or_begin_anew(path)
            except UsageFileError as error:
                trouble("key usage not kept", reason=str(error))
            else:
                if damage is not None:
                    trouble("key usage lost", reason=str(damage))

    # --- what is heard ---

    def completed(self, association: Association) -> None:
        """A device has shown that it has a key."""
        fingerprint, index = association.fingerprint, association.key_index
        if fingerprint is None or index is None:
            return
        recent = self._recent
        recent.pop(association.identity, None)  # so that it is the newest
        recent[association.identity] = KeyUse(fingerprint, _WHICH[index], self._wall_clock())
        while len(recent) > self._limit:
            del recent[next(iter(recent))]
            self._forgotten += 1
        self._news.set()

    # --- what is asked ---

    def last(self, identity: bytes) -> KeyUse | None:
        """What ``identity`` has used last; ``None`` if nothing is known of it."""
        held = self._recent.get(identity) or self._being_written.get(identity)
        if held is None and self._file is not None:
            try:
                held = self._file.last(identity)
            except UsageFileError as error:
                self._failed(error)
        return held

    def identities(self) -> Iterator[bytes]:
        """All of which something is known, in the order of their bytes."""
        after = b""
        while page := self.page(after, BATCH):
            yield from (identity for identity, _ in page)
            after = page[-1][0]

    def page(self, after: bytes, limit: int) -> list[tuple[bytes, KeyUse]]:
        """The next ``limit`` identities behind ``after``, in the order of their bytes, with what they used."""
        held = {
            identity: use
            for uses in (self._being_written, self._recent)
            for identity, use in uses.items()
            if identity > after
        }
        found: dict[bytes, KeyUse] = {}
        if self._file is not None:
            try:
                found = dict(self._file.page(after, limit))
            except UsageFileError as error:
                self._failed(error)
        for identity in heapq.nsmallest(limit, held):
            found[identity] = held[identity]
        return sorted(found.items())[:limit]

    def statistics(self) -> dict[str, Any]:
        """Gauges and counters of this process."""
        return {
            "key_uses_unwritten": len(self._recent) + len(self._being_written) if self._file else 0,
            "key_uses_forgotten": self._forgotten,
            "key_usage_failing": self._told,
        }

    # --- the file ---

    async def run(self) -> None:
        """Write behind until cancelled. :meth:`flush` may follow."""
        while True:
            await self._news.wait()
            await trio.sleep(WRITE_PAUSE)
            if not await self._write():
                self._news.set()  # there is something to write, though nobody comes
                await trio.sleep(RETRY_PAUSE)

    async def flush(self, seconds: float) -> bool:
        """Write what is not written yet, within ``seconds``; whether all of it is."""
        with trio.move_on_after(seconds):
            return await self._write()
        return False

    async def _write(self) -> bool:
        self._news = trio.Event()
        if self._file is None:
            return True
        while self._recent:
            batch = self._being_written = dict(islice(self._recent.items(), BATCH))
            for identity in batch:
                del self._recent[identity]
            written = False
            try:
                # Nobody waits for a thread that the disk does not let go: what it has, is written once more.
                await trio.to_thread.run_sync(self._file.write, batch.items(), abandon_on_cancel=True)
                written = True
            except UsageFileError as error:
                self._failed(error)
                return False
            finally:
                if not written:
                    self._recent = {**batch, **self._recent}
                self._being_written = {}
            self._told = False
        return True

    def _failed(self, error: UsageFileError) -> None:
        if not self._told:
            # Once: the same disk is full many times.
            self._told = True
            self._trouble("key usage not written", error=error.code, reason=str(error))

    def close(self) -> None:
        """Close the file. What is not written is lost."""
        if self._file is not None:
            self._file.close()
