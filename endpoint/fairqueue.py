"""A queue of datagrams that serves the places they come from in turn, and loses what those lose that send most.

Datagrams wait by path, and paths by source. Sources take turns; the paths of a source take turns within theirs; of a path
the datagrams stay in order. So an address behind which thousands of devices are waits for its turn like one with a single
device, and so does one that sends a flood.

What is handed out has a price, which is known only afterwards. A source whose datagram took longer than a
:data:`TURN` sits out a round for each of them, so that cheap and dear datagrams get about the same time.

When there is no room the *longest* source loses: the others keep what they have. Who is about to become the longest is
not let in; else the one that became it last loses the path that has waited least, with all that waits there, because
what is left of a flight is of little use. Each operation takes the same time, whatever waits.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Hashable

    from endpoint.addresses import Path
    from sansdtls import DatagramKind

TURN = 0.0005
"""Seconds of work that count as one turn of a source: more than a flight of a handshake with a PSK takes."""

MAX_SAT_OUT = 4
"""Rounds that a source sits out at most. A signature takes two turns; what takes longer was not its fault."""


@attrs.define(eq=False)
class Source:
    """What waits from one place."""

    key: Hashable
    # A plain dict: most sources have one path, and an OrderedDict is five times as large.
    paths: dict[Path, Waiting] = attrs.field(factory=dict)
    datagrams: int = 0
    sits_out: int = 0


@attrs.define(eq=False)
class Waiting:
    """What waits from one path."""

    path: Path
    kind: DatagramKind
    """The best that any of it has been."""
    since: float
    datagrams: list[tuple[DatagramKind, bytes]] = attrs.field(factory=list)
    size: int = 0
    """Bytes."""
    queue: FairQueue = attrs.field(init=False, repr=False)
    source: Source = attrs.field(init=False, repr=False)


class FairQueue:
    """One class of datagrams. ``weight`` is its share of time and room where several classes want them."""

    __slots__ = ("_by_length", "_sources", "clock", "datagrams", "longest", "name", "size", "weight")

    def __init__(self, name: str, weight: int) -> None:
        self.name = name
        self.weight = weight
        self.clock = 0.0
        """Seconds of work done for it, divided by its weight; never far behind the others'."""
        self.datagrams = 0
        self.size = 0
        """Bytes."""
        self.longest = 0
        """Datagrams of the source that has most."""
        self._sources: OrderedDict[Hashable, Source] = OrderedDict()
        self._by_length: dict[int, dict[Source, None]] = {}

    def __len__(self) -> int:
        """Datagrams that wait."""
        return self.datagrams

    @property
    def sources(self) -> int:
        """Places they come from."""
        return len(self._sources)

    def length_of(self, source: Hashable) -> int:
        """Datagrams that wait from there."""
        found = self._sources.get(source)
        return 0 if found is None else found.datagrams

    def enter(self, waiting: Waiting, source: Hashable) -> None:
        """A path begins to wait here, with one datagram or more."""
        found = self._sources.get(source)
        if found is None:
            found = self._sources[source] = Source(source)
        found.paths[waiting.path] = waiting
        waiting.queue, waiting.source = self, found
        self._grow(found, len(waiting.datagrams), waiting.size)

    def leave(self, waiting: Waiting) -> None:
        """A path with all that it has waits here no more."""
        source = waiting.source
        del source.paths[waiting.path]
        self._grow(source, -len(waiting.datagrams), -waiting.size)

    def grow(self, waiting: Waiting, datagrams: int, size: int) -> None:
        """A path that waits here has so many datagrams and bytes more."""
        waiting.size += size
        self._grow(waiting.source, datagrams, size)

    def take(self) -> tuple[Waiting, bytes]:
        """The datagram whose turn it is. There must be one."""
        sources = self._sources
        while (source := next(iter(sources.values()))).sits_out:
            source.sits_out -= 1
            sources.move_to_end(source.key)
        waiting = next(iter(source.paths.values()))
        _, data = waiting.datagrams.pop(0)
        if waiting.datagrams:
            source.paths[waiting.path] = source.paths.pop(waiting.path)  # to the end
        else:
            del source.paths[waiting.path]
        self.grow(waiting, -1, -len(data))
        if source.datagrams:
            sources.move_to_end(source.key)
        return waiting, data

    def paid(self, source: Source, seconds: float) -> None:
        """What was taken last, from ``source``, has taken so long."""
        self.clock += seconds / self.weight
        if seconds >= TURN:
            source.sits_out = min(int(seconds / TURN), MAX_SAT_OUT)

    def lose(self) -> Waiting:
        """The path that has to go where there is no room, out of the queue. There must be one."""
        source = next(reversed(self._by_length[self.longest]))
        waiting = next(reversed(source.paths.values()))
        self.leave(waiting)
        return waiting

    def _grow(self, source: Source, datagrams: int, size: int) -> None:
        self.datagrams += datagrams
        self.size += size
        if not datagrams:
            return
        before = source.datagrams
        length = source.datagrams = before + datagrams
        by_length = self._by_length
        if before:
            same = by_length[before]
            del same[source]
            if not same:
                del by_length[before]
        if length:
            same_now = by_length.get(length)
            if same_now is None:
                same_now = by_length[length] = {}
            same_now[source] = None
            self.longest = max(self.longest, length)
        else:
            del self._sources[source.key]
        while self.longest and self.longest not in by_length:
            self.longest -= 1
