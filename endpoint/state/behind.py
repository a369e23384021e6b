"""Writing behind: checkpoints go to the file in a thread, and are confirmed when they are there.

::

    trio's thread      take a checkpoint ──┐                ┌── confirm it: its numbers may be used
    worker thread                          └─ apply, fsync ─┘

The server goes on meanwhile, with numbers that were reserved before. One checkpoint at a time is under way: the
next one is taken when the last one is confirmed, so the server never has to know two. If it cannot be
written, *it* is tried again until it can, and only then the next: nothing is left out, nothing is overtaken, and
however long the disk is full, what is held is one blob per association; what changes meanwhile is marked in the
server. Unconfirmed numbers are not used, so the worst of a failing disk is silence.

Many changes are taken in portions, one after the other without a pause, because no datagram is received while the
server puts a checkpoint together. Associations do not depend on each other, so a crash may come between portions.

A write cannot be interrupted, and a disk may take forever. Whoever waits for one can be cancelled; the
thread is then left behind, and the same checkpoint will be written again. Each attempt has a number, and
a thread that finds its number overtaken writes nothing: an old checkpoint must never land on a newer one.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import trio

from endpoint.state.exclusive import StateFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

FIRST_PAUSE = 1.0
"""Seconds before the second attempt; each further pause is twice as long."""
LONGEST_PAUSE = 30.0
"""Seconds between attempts, at most: so soon after the disk has room again numbers are reserved again."""
PORTION = 500
"""Changes that are taken at once. Each association that has changed takes 25 us to be saved, in which no datagram is
received; what is left is taken as soon as these are written."""
FLUSH_PAUSE = 0.1
"""Seconds between attempts when stopping: there is no later."""


class SavedRow(Protocol):
    """One association in a checkpoint."""

    @property
    def handle(self) -> bytes:
        """What it is kept under."""
        ...

    @property
    def blob(self) -> bytes:
        """All of it, sealed."""
        ...


class Changes(Protocol):
    """What a checkpoint has to have."""

    @property
    def saved(self) -> Sequence[SavedRow]:
        """New and changed associations, each once."""
        ...

    @property
    def removed(self) -> Sequence[bytes]:
        """Handles of those that are gone."""
        ...


C = TypeVar("C", bound=Changes)


class Source(Protocol[C]):
    """What is asked of the engine, in trio's thread."""

    @property
    def checkpoint_due(self) -> bool:
        """Whether an association has used up half of the numbers that are reserved for it."""
        ...

    def checkpoint(self, *, limit: int) -> C:
        """What changed since the last one, perhaps nothing; not more than ``limit``, the rest with the next."""
        ...

    def confirm(self, checkpoint: C) -> None:
        """It is on the disk."""
        ...


class Applies(Protocol):
    """What is asked of :class:`~endpoint.state.sqlite.AssociationFile`, in a thread."""

    def apply(self, saved: Iterable[tuple[bytes, bytes]], removed: Iterable[bytes], *, anchor: bytes) -> None:
        """All of it, or :class:`~endpoint.state.sqlite.StateFileError`."""
        ...


class WriteBehind(Generic[C]):
    """Takes checkpoints from ``source`` and writes them to ``file``, every ``interval`` seconds or when due.

    ``anchor`` gives the clock's; ``trouble`` is told ``"state not saved"`` once per kind of error, and
    ``"state saved again"``. Make it inside ``trio.run``.
    """

    def __init__(
        self,
        source: Source[C],
        file: Applies,
        *,
        interval: float,
        anchor: Callable[[], bytes],
        trouble: Callable[..., None],
    ) -> None:
        """``interval`` is in seconds, more than 0."""
        if not interval > 0:
            raise ValueError(f"interval: {interval!r} is not more than 0")
        self._source = source
        self._file = file
        self._interval = interval
        self._anchor = anchor
        self._trouble = trouble
        self._unconfirmed: C | None = None
        self._hurried = trio.Event()
        self._writing = trio.Lock()
        # How many attempts there were; the thread that holds the lock reads it.
        self._attempt = 0
        self._thread_lock = threading.Lock()
        self._told: set[str] = set()
        self._failures_now = 0
        self._counters = dict.fromkeys(("checkpoints", "rows_saved", "rows_removed", "failures"), 0)

    def hurry(self) -> None:
        """Say that a checkpoint is due: the next one comes at once, or after the one under way."""
        self._hurried.set()

    async def run(self) -> None:
        """Write until cancelled. :meth:`flush` may follow."""
        pause = FIRST_PAUSE
        idle = more = False
        while True:
            # What is due although there is nothing to write will not become less due by asking again.
            due = more or (self._source.checkpoint_due and not idle)
            if self._unconfirmed is None and not due:
                with trio.move_on_after(self._interval):
                    await self._hurried.wait()
            async with self._writing:
                # Before the checkpoint is taken: what becomes due after that needs another.
                self._hurried = trio.Event()
                size = self._take()
                idle, more = size == 0, size >= PORTION
                written = await self._write()
            if written:
                pause = FIRST_PAUSE
            else:
                await trio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    async def flush(self, seconds: float) -> bool:
        """Write all that has changed until now, within ``seconds``; whether it is on the disk.

        For a stop, after the last record was sent; and before an association that was taken out of the
        server goes to another.
        """
        with trio.move_on_after(seconds):
            async with self._writing:
                # First what is left from before, then what has come since; both may need several attempts.
                while self._unconfirmed is not None:
                    await self._insist()
                size = PORTION
                while size >= PORTION:
                    size = self._take(even_nothing=True)
                    await self._insist()
                return True
        return False

    async def _insist(self) -> None:
        while True:
            if await self._write():
                return
            await trio.sleep(FLUSH_PAUSE)

    def _take(self, *, even_nothing: bool = False) -> int:
        """Take the next checkpoint, unless one is left that could not be written; how many changes it has."""
        if self._unconfirmed is None:
            checkpoint = self._source.checkpoint(limit=PORTION)
            if checkpoint.saved or checkpoint.removed or even_nothing:
                self._unconfirmed = checkpoint
        taken = self._unconfirmed
        return 0 if taken is None else len(taken.saved) + len(taken.removed)

    async def _write(self) -> bool:
        """Write what was taken and confirm it; ``False`` = it could not be written, and is kept."""
        checkpoint = self._unconfirmed
        if checkpoint is None:
            return True
        self._attempt += 1
        try:
            await trio.to_thread.run_sync(
                self._apply, self._attempt, checkpoint, self._anchor(), abandon_on_cancel=True
            )
        except StateFileError as error:
            self._failed(error)
            return False
        self._unconfirmed = None
        self._source.confirm(checkpoint)
        self._succeeded(checkpoint)
        return True

    def _apply(self, attempt: int, checkpoint: C, anchor: bytes) -> None:
        """Runs in a thread."""
        with self._thread_lock:
            if attempt != self._attempt:
                return  # nobody waits for this thread any more, and another has perhaps written more
            saved = [(row.handle, row.blob) for row in checkpoint.saved]
            self._file.apply(saved, checkpoint.removed, anchor=anchor)

    def _succeeded(self, checkpoint: C) -> None:
        self._counters["checkpoints"] += 1
        self._counters["rows_saved"] += len(checkpoint.saved)
        self._counters["rows_removed"] += len(checkpoint.removed)
        if self._failures_now:
            self._trouble("state saved again", failures=self._failures_now)
            self._failures_now = 0
            self._told.clear()

    def _failed(self, error: StateFileError) -> None:
        self._counters["failures"] += 1
        self._failures_now += 1
        if error.code not in self._told:
            # Once per kind: the same disk is full many times.
            self._told.add(error.code)
            self._trouble("state not saved", error=error.code, reason=str(error))

    def statistics(self) -> dict[str, Any]:
        """Counters of this process, and whether the last attempt ``state_failing``."""
        counters = {f"state_{name}": count for name, count in self._counters.items()}
        return {**counters, "state_failing": bool(self._failures_now)}
