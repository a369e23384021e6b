"""What waits for a sink that may be slow: bounded in bytes, with a rule for what is dropped, and told once.

The sink's task takes entries, tries to hand them on, and says what became of them::

    while True:
        entries = await backlog.take(65_536)
        …                       backlog.done(n)         the first n are handed on
                                backlog.lose(n, reason) the first n are lost
                                backlog.put_back()      what is left of them comes first next time

What was taken still counts as held. When the bound is reached, ``overflow`` says who has to go: ``newest``
(what is held is older, but complete and in order) or ``oldest`` (for readings of which only the last ones matter; what was
taken is not touched). The operator is told when dropping starts, ``forward_overflow``, and when it has ended,
``forward_resumed`` with the number of datagrams: not before half is free, or a reader that is a little too slow would
be told of with each write.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

Overflow = Literal["newest", "oldest"]


class Backlog(Generic[T]):
    """Entries with a size in bytes."""

    def __init__(
        self,
        limit: int,
        *,
        tell: Callable[..., None],
        overflow: Overflow = "newest",
        drops: Counter[str] | None = None,
        **facts: object,
    ) -> None:
        """``limit`` bytes. ``drops`` counts by reason, here ``"overflow"``; ``facts`` are told with each ``forward_overflow``."""
        self._limit = limit
        self._tell = tell
        self._drop_oldest = overflow == "oldest"
        self._facts = facts
        self._waiting: deque[tuple[int, T]] = deque()
        self._taken: deque[tuple[int, T]] = deque()
        self._taken_size = 0
        self._dropping = False
        self._dropped_now = 0  # since dropping started
        self._filled = trio.lowlevel.ParkingLot()
        self._emptied = trio.lowlevel.ParkingLot()
        self.drops: Counter[str] = Counter() if drops is None else drops
        self.handed_on = 0
        self.held = 0
        """Bytes, including those taken."""

    def put(self, entry: T, size: int) -> bool:
        """Keep an entry of so many bytes; ``False`` = it was dropped."""
        if self.held + size > self._limit:
            if self._drop_oldest:
                self._make_room(size)
            if self.held + size > self._limit:
                self._drop(1, "overflow", "forward_overflow", **self._facts, buffer=self._limit)
                return False
        self._waiting.append((size, entry))
        self.held += size
        self._filled.unpark_all()
        return True

    def _make_room(self, size: int) -> None:
        if self._taken_size + size > self._limit:
            return  # it would push out all others for nothing
        count = 0
        while self._waiting and self.held + size > self._limit:
            self.held -= self._waiting.popleft()[0]
            count += 1
        if count:
            self._drop(count, "overflow", "forward_overflow", **self._facts, buffer=self._limit)

    async def take(self, size: int, count: int = 1_000_000) -> list[T]:
        """The oldest entries, as soon as there are any: at most ``size`` bytes and ``count``, and at least one."""
        while not self._waiting:
            await self._filled.park()
        total = 0
        while self._waiting and len(self._taken) < count:
            total += self._waiting[0][0]
            if self._taken and total > size:
                break
            self._taken_size += self._waiting[0][0]
            self._taken.append(self._waiting.popleft())
        return [entry for _, entry in self._taken]

    def done(self, count: int) -> None:
        """The first ``count`` of what was taken are handed on."""
        self._release(count)
        self.handed_on += count
        # What was lost makes room, too; but only what went through shows that it goes on.
        if count and self._dropping and self.held <= self._limit // 2:
            self._dropping = False
            self._tell("forward_resumed", dropped=self._dropped_now)
            self._dropped_now = 0

    def lose(self, count: int, why: str, event: str, /, **facts: object) -> None:
        """The first ``count`` of what was taken are lost. ``event`` is told, unless dropping has been told of already."""
        self._release(count)
        self._drop(count, why, event, **facts)

    def give_up(self, why: str) -> None:
        """All that is held is lost, as nothing will be handed on any more. Not told: the end of the sink is."""
        self.drops[why] += len(self._taken) + len(self._waiting)
        self._taken.clear()
        self._waiting.clear()
        self._taken_size = self.held = 0
        self._emptied.unpark_all()

    def put_back(self) -> None:
        """What is left of what was taken comes first next time."""
        self._waiting.extendleft(reversed(self._taken))
        self._taken.clear()
        self._taken_size = 0

    def _release(self, count: int) -> None:
        for _ in range(count):
            size, _entry = self._taken.popleft()
            self._taken_size -= size
            self.held -= size
        if not self.held:
            self._emptied.unpark_all()

    def _drop(self, count: int, why: str, event: str, /, **facts: object) -> None:
        self.drops[why] += count
        self._dropped_now += count
        if not self._dropping:
            self._dropping = True
            self._tell(event, **facts)

    async def flushed(self) -> None:
        """Return when nothing is held."""
        while self.held:
            await self._emptied.park()
