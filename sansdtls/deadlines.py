"""One heap for all deadlines of a server, with lazy deletion.

Each thing has at most one valid entry. An entry is valid while its time is the thing's ``scheduled``;
moving a deadline *later* costs nothing (the early entry fires, and the thing is scheduled again), which is
what happens to an idle timeout with every datagram.
"""

from __future__ import annotations

import heapq
from typing import Generic, Protocol, TypeVar

_COMPACT_ABOVE = 64
"""Invalid entries that are always tolerated, so that small heaps are never rebuilt."""
_COMPACT_SHARE = 8
"""Beyond that one entry of so many may be invalid. Each handshake leaves an invalid one, which keeps what it was
for: some 200 bytes. Rebuilding costs the entries of one handshake less than 1 us when spread over them."""


class Schedulable(Protocol):
    """What can have a deadline."""

    scheduled: float | None


T = TypeVar("T", bound=Schedulable)


class Deadlines(Generic[T]):
    """Times in seconds on the caller's clock."""

    __slots__ = ("_heap", "_invalid", "_order")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._order = 0
        self._invalid = 0

    def __len__(self) -> int:
        return len(self._heap)

    def schedule(self, thing: T, deadline: float) -> None:
        """Make sure that ``thing`` is due at ``deadline`` or earlier."""
        if thing.scheduled is not None:
            if thing.scheduled <= deadline:
                return
            self._invalid += 1
        thing.scheduled = deadline
        self._order += 1
        heapq.heappush(self._heap, (deadline, self._order, thing))
        self._compact()

    def cancel(self, thing: T) -> None:
        """Forget ``thing``. Its entry goes now or with the next rebuild, so that no dead thing is kept for long."""
        if thing.scheduled is None:
            return
        thing.scheduled = None
        self._invalid += 1
        self._compact()

    def next(self) -> float | None:
        """The earliest deadline."""
        self._drop_invalid()
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> T | None:
        """A thing that is due at ``now``; it has no deadline any more."""
        self._drop_invalid()
        if not self._heap or self._heap[0][0] > now:
            return None
        thing = heapq.heappop(self._heap)[2]
        thing.scheduled = None
        return thing

    def _compact(self) -> None:
        """Rebuild the heap where too much of it is invalid: each deadline that was moved earlier leaves an entry."""
        if self._invalid > _COMPACT_ABOVE and self._invalid > len(self._heap) // _COMPACT_SHARE:
            self._heap = [entry for entry in self._heap if entry[2].scheduled == entry[0]]
            heapq.heapify(self._heap)
            self._invalid = 0

    def _drop_invalid(self) -> None:
        while self._heap and self._heap[0][2].scheduled != self._heap[0][0]:
            heapq.heappop(self._heap)
            self._invalid -= 1
