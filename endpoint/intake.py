"""The intake: which datagrams the core gets, in which order, when there are more than time.

Attacker
    Sends hellos from addresses that are not its own, as many as the line carries, because a hello is dear (25 µs) and
    sending one is cheap; or hellos with invented cookies, or what looks like the next flight of somebody's
    handshake, or junk with the connection ID of somebody who sleeps (125 µs). Or it is no attacker: the power comes
    back, and a whole fleet handshakes at once, a flight of which takes 200 to 500 µs. Without an intake all of it
    is served as it comes, and whoever comes when the kernel's buffer is full (by default it holds some 300 datagrams) is
    lost, readings of devices with an association among them.

Properties
    1. Records of live associations never wait here, and find at least ``1 - handshake_share`` of the time that is
       fought for. Handshakes may use *all* the time that nobody else wants: nothing idles.
    2. Nothing waits, and nothing is sorted, while there is time for all.
    3. The socket is read again after each :data:`SLICE` of other work and one datagram. So the kernel's buffer
       holds what arrives meanwhile (2 ms are 100 datagrams of 50,000 a second), and a reading waits milliseconds.
    4. Classes are served by worth, that is by how much has been spent on them: handshakes under way, frozen
       associations that may wake, hellos that were dropped before, hellos with a cookie, hellos, noise. By weight, not
       strictly: all of them can be forged, and an attacker who picks a good one must not silence the rest.
    5. Within a class sources are served in turn (:mod:`~endpoint.fairqueue`): one NAT, one flooding prefix, one
       device that sends in a loop hold up themselves. A source is a prefix as ``quotas`` counts them; for a
       frozen association it is the association, so that junk for one does not hold up another's waking; for hellos
       without a cookie it is the address as it stands, because to look up a prefix costs more than to drop a datagram.
    6. What waits from one path stays in order, be it epoch 0 or 1. A hello that is repeated takes the
       place of the one that waits. Only once an association is live may its records pass by what is left of a handshake;
       what waits for one that was frozen goes with the record that wakes it.
    7. What waits is bounded in datagrams and bytes. When there is no room, the class that is furthest above its
       weight's part of it loses, and in it the source that has most. A class or a source within its part loses nothing to
       others. All of it is counted, by class.
    8. Forged hellos cost an honest client a repetition, not its handshake. A flood from random addresses cannot
       be told from a fleet, so of first hellos each has the same chance: the part of them that there is time for.
       But clients repeat (after 1, 2, 4 s), and addresses by chance do not. So the paths of dropped hellos are
       remembered, by a byte in a table, and their next hello is in a better class, which has time as long as no more
       of *those* come than there is time for.

Construction
    A turn of the engine gives the core what is live (``Server.receive_live``) and the rest to :meth:`Intake.take`. While
    there is credit and nothing waits, that goes on at once; else it is put into a queue. A task of its own
    (:meth:`Intake.serve`) hands over what waits, a slice at a time. Credit is seconds, taken from a timer that
    the caller brings: a full slice while every socket has been read until it was empty; while one has not,
    there may be readings in it, and each second of other work earns ``share / (1 - share)`` seconds for handshakes.
    What a datagram has taken is charged to credit, class and source. Classes have clocks that run by what was
    spent on them, divided by their weight; the one furthest behind is next.

What is dropped, and what the delay is
    Of those of whom too many come the newest: it does not matter for the chance which one it is, and not to let one in
    costs a third of putting it there and taking another one away. As the queue is served in order, what is served has waited at most ``queued_datagrams`` times the time for one: 0.25 s for 8,192
    hellos, 1 s at a quarter of the time, which is when a client repeats for the first time. To serve the newest first would
    have hardly any delay, but let some devices of a fleet wait until the storm is over.

Left out, and why
    An attacker who sends each hello twice gets its forgeries into the better class, for twice the datagrams; it is then as
    it was without that class. Cheaper answers to a flood than ours to each hello (a puzzle, a request for
    patience): DTLS has none. Junk for live associations: it is found out at about the price of a genuine record, and passes
    for one until then; an attacker has to know the path or the connection ID of each. One datagram is never
    interrupted: 64 KiB full of hellos take 15 ms, and as much of the attacker's line as that many datagrams. Timers and
    what a verifier's threads decide: few next to datagrams. (Late answers of a key store are let through by a
    :mod:`~endpoint.turnstile`.)
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from endpoint.fairqueue import FairQueue, Source, Waiting
from sansdtls import DatagramKind

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from endpoint.addresses import Path
    from endpoint.quotas import QuotaPolicy

SLICE = 0.002
"""Seconds of handshakes between two looks at the sockets."""

MAX_DEBT = 0.02
"""Seconds that handshakes may have taken beyond their credit and have to wait for: what the dearest datagram takes.
Whatever takes longer must not shut them out for as long."""

MAX_PER_PATH = 32
"""Datagrams that may wait from one path: a flight with a certificate chain in fragments, and its first repetition."""

MAX_PER_SLEEPER = 1024
"""The same of a path whose association is frozen, as all are that a restart has brought back: what a device has sent meanwhile
waits in the socket, and nobody will repeat it. Junk in its place is bounded by what all may have, of which that with most loses."""

REMEMBERED_PATHS = 2**22
"""Bytes of the table of dropped hellos, 4 MiB, which are used up only by a flood. 20,000 drops a second take a twenty-fifth
of them in eight seconds, and so many strangers are taken for somebody who comes again."""

REMEMBERED_SECONDS = 4.0
"""How long a dropped hello is remembered at least. A client repeats it 1 and 3 s after the first one; if those are
dropped as well, they are remembered in turn."""

_HELLO, _COOKIE = DatagramKind.HELLO, DatagramKind.HELLO_WITH_COOKIE  # looked up for each datagram of a flood
_RANK = {kind: rank for rank, kind in enumerate(DatagramKind)}


class Remembered:
    """Paths, for :data:`REMEMBERED_SECONDS` to twice as long.

    A byte each, which says when. Takes some for others, the more there are, and a few of 17 minutes ago for new ones.
    """

    __slots__ = ("_stamps",)

    def __init__(self) -> None:
        self._stamps = bytearray(REMEMBERED_PATHS)  # the kernel gives the memory when it is written to

    def add(self, path: Hashable, now: float) -> None:
        """Remember one."""
        self._stamps[hash(path) % REMEMBERED_PATHS] = int(now // REMEMBERED_SECONDS) % 255 + 1

    def has(self, path: Hashable, now: float) -> bool:
        """Whether it was remembered lately."""
        stamp = self._stamps[hash(path) % REMEMBERED_PATHS]
        return stamp > 0 and (int(now // REMEMBERED_SECONDS) + 1 - stamp) % 255 <= 1


class Intake:
    """Order and budget for all that is not a record of a live association. Of one engine; sans-IO."""

    def __init__(
        self,
        policy: QuotaPolicy,
        *,
        receive: Callable[[bytes, Path, float], None],
        kind_of: Callable[[bytes, Path], DatagramKind],
        frozen_handle: Callable[[bytes, Path], Hashable],
        source_of: Callable[[Path], Hashable],
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``receive(data, path, now)`` hands a datagram to the core; ``timer`` gives the seconds by which work is measured."""
        self._receive = receive
        self._kind_of = kind_of
        self._frozen_handle = frozen_handle
        self._source_of = source_of
        self._timer = timer
        self._max_datagrams = policy.queued_datagrams
        self._max_size = policy.queued_bytes
        self._earned = policy.handshake_share / (1 - policy.handshake_share)
        self._queues = (
            FairQueue("handshake", 8),
            FairQueue("frozen", 4),
            FairQueue("hello_again", 4),
            FairQueue("hello_with_cookie", 4),
            FairQueue("hello", 2),
            FairQueue("noise", 1),
        )
        _, self._frozen, self._again, self._cookie, self._hello, self._noise = self._queues
        self._named = {queue.name: queue for queue in self._queues}
        self._paths: dict[Path, Waiting] = {}
        self._dropped_hellos = Remembered()
        self._checked = 0.0
        self._counted_from: float | None = None
        self._clock = 0.0
        """Of the class that was served last."""
        self._spent = 0.0
        """Seconds since ``_counted_from``."""
        self._credit = SLICE
        self._behind: set[int] = set()
        self._datagrams = self._size = 0
        self.dropped: Counter[str] = Counter()
        """Datagrams that had to go, by class."""
        self.superseded = 0
        """Hellos that the same client repeated while they waited. Nothing is lost by that."""
        self.waited: Counter[str] = Counter()
        """Datagrams that have waited and were then handed over, by class."""
        self.seconds_waited = 0.0
        """What those waited, together."""
        self.seconds_spent = 0.0
        """What was measured for all that is not a live association's."""

    def __len__(self) -> int:
        """Datagrams that wait."""
        return self._datagrams

    # --- a turn of the engine -----------------------------------------------------------------------

    def take(self, data: bytes, path: Path, now: float) -> None:
        """A datagram that is not for a live association: handed on at once, or kept for :meth:`serve`."""
        if self._credit > 0 and not self._datagrams:
            before = self._timer()
            self._receive(data, path, now)
            self._spend(self._timer() - before)
        else:
            self._put(data, path, now)

    def end_turn(self, socket: int, *, more: bool) -> bool:
        """``more``: there may be more to read from that socket. ``True`` = something waits for :meth:`serve`."""
        if more:
            self._behind.add(socket)
        else:
            self._behind.discard(socket)
        if self._behind:
            self._earn()
        else:
            self._credit = SLICE
            self._counted_from = None
        return self._datagrams > 0

    def _earn(self) -> None:
        """Credit for what was done besides since the turn before; of the first turn that leaves more, nothing is known."""
        now = self._timer()
        if self._counted_from is not None:
            other = now - self._counted_from - self._spent
            self._credit = min(SLICE, self._credit + other * self._earned)
        self._counted_from = now
        self._spent = 0.0

    # --- what waits ---------------------------------------------------------------------------------

    def serve(self, now: float) -> None:
        """Hand over what waits, as long as there is credit. Call :meth:`served` when the answers are sent."""
        if not self._behind:
            self._credit = SLICE
        self._checked = self._timer()
        while self._datagrams and self._credit > 0:
            queue = min((queue for queue in self._queues if queue.datagrams), key=_clock_of)
            self._clock = queue.clock
            source = self._hand_over(queue, now)
            queue.paid(source, self._lap())

    def served(self) -> None:
        """What came of :meth:`serve` is done, too."""
        self._lap()

    def flush_frozen(self, now: float) -> None:
        """Hand over at once what waits for frozen associations: data that nobody will repeat."""
        while self._frozen.datagrams:
            self._hand_over(self._frozen, now)

    def _hand_over(self, queue: FairQueue, now: float) -> Source:
        waiting, data = queue.take()
        self._datagrams -= 1
        self._size -= len(data)
        if not waiting.datagrams:
            del self._paths[waiting.path]
        self.waited[queue.name] += 1
        self.seconds_waited += max(0.0, now - waiting.since)
        self._receive(data, waiting.path, now)
        if queue is self._frozen and waiting.datagrams:
            self._let_through(waiting, now)
        return waiting.source

    def _let_through(self, waiting: Waiting, now: float) -> None:
        """If that has woken the association, hand over the rest, which is live now: what comes next must not pass it by.

        Else it would be taken for a replay, as soon as the newest is further on than the window is wide.
        """
        if any(kind is not DatagramKind.FROZEN for kind, _ in waiting.datagrams) or (
            self._kind_of(waiting.datagrams[0][1], waiting.path) is DatagramKind.FROZEN
        ):
            return
        waiting.queue.leave(waiting)
        del self._paths[waiting.path]
        self._datagrams -= len(waiting.datagrams)
        self._size -= waiting.size
        self.waited[waiting.queue.name] += len(waiting.datagrams)
        self.seconds_waited += len(waiting.datagrams) * max(0.0, now - waiting.since)
        for _, data in waiting.datagrams:
            self._receive(data, waiting.path, now)

    def _put(self, data: bytes, path: Path, now: float) -> None:
        kind = self._kind_of(data, path)
        waiting = self._paths.get(path)
        if waiting is None:
            queue = self._queue_of(kind, path, now)
            source = self._source(queue, data, path)
            if (
                self._datagrams >= self._max_datagrams or self._size + len(data) > self._max_size
            ) and self._would_lead(queue, source):
                self._count_drop(queue, 1, path, now)
                return
            waiting = self._paths[path] = Waiting(path, kind, now, [(kind, data)], len(data))
            self._enter(waiting, queue, source)
        elif (kind is _HELLO or kind is _COOKIE) and self._supersede(waiting, kind, data):
            self._datagrams -= 1
        elif len(waiting.datagrams) >= (MAX_PER_SLEEPER if waiting.queue is self._frozen else MAX_PER_PATH):
            self._count_drop(waiting.queue, 1, path, now)
            return
        else:
            self._append(waiting, kind, data, now)
        self._datagrams += 1
        self._size += len(data)
        while self._datagrams > self._max_datagrams or self._size > self._max_size:
            self._lose(now)

    def _queue_of(self, kind: DatagramKind, path: Path, now: float) -> FairQueue:
        if kind is _HELLO or kind is _COOKIE:
            if self._dropped_hellos.has(path, now):
                return self._again
            return self._hello if kind is _HELLO else self._cookie
        return self._named[kind.value]

    def _source(self, queue: FairQueue, data: bytes, path: Path) -> Hashable:
        """Who takes turns in that queue."""
        if queue is self._hello or queue is self._noise:
            host: str = path[1][0]
            return host  # to find the prefix costs more than to drop the datagram
        return self._frozen_handle(data, path) if queue is self._frozen else self._source_of(path)

    def _enter(self, waiting: Waiting, queue: FairQueue, source: Hashable) -> None:
        if not queue.datagrams:
            queue.clock = max(queue.clock, self._clock)  # what it did not use is not saved up
        queue.enter(waiting, source)

    def _append(self, waiting: Waiting, kind: DatagramKind, data: bytes, now: float) -> None:
        """One more from a path that waits, behind what is there, and the path where the better of them belongs."""
        if _RANK[kind] >= _RANK[waiting.kind]:
            waiting.datagrams.append((kind, data))
            waiting.queue.grow(waiting, 1, len(data))
            return
        waiting.queue.leave(waiting)
        waiting.datagrams.append((kind, data))
        waiting.size += len(data)
        waiting.kind = kind
        queue = self._queue_of(kind, waiting.path, now)
        self._enter(waiting, queue, self._source(queue, data, waiting.path))

    def _supersede(self, waiting: Waiting, kind: DatagramKind, data: bytes) -> bool:
        """Whether a hello of that kind waits, of which this is a later one; it takes the place."""
        for index, (other, older) in enumerate(waiting.datagrams):
            if other is kind:
                waiting.datagrams[index] = kind, data
                waiting.queue.grow(waiting, 0, len(data) - len(older))
                self._size -= len(older)
                self.superseded += 1
                return True
        return False

    # --- what is dropped ----------------------------------------------------------------------------

    def _would_lead(self, queue: FairQueue, source: Hashable) -> bool:
        """Whether ``queue`` is what has to lose something, and ``source`` would have most of it with one datagram more."""
        return (
            queue.longest < 2 or queue.length_of(source) + 1 >= queue.longest
        ) and queue is self._fullest()

    def _fullest(self) -> FairQueue:
        """The class that is furthest above its weight's part of the room."""
        fullest = self._queues[0]
        # What is over, or would be with one datagram more.
        number = self._datagrams > self._max_datagrams or (
            self._datagrams == self._max_datagrams and self._size <= self._max_size
        )
        if number:
            for queue in self._queues:
                if queue.datagrams * fullest.weight > fullest.datagrams * queue.weight:
                    fullest = queue
        else:
            for queue in self._queues:
                if queue.size * fullest.weight > fullest.size * queue.weight:
                    fullest = queue
        return fullest

    def _lose(self, now: float) -> None:
        queue = self._fullest()
        waiting = queue.lose()
        del self._paths[waiting.path]
        self._datagrams -= len(waiting.datagrams)
        self._size -= waiting.size
        self._count_drop(queue, len(waiting.datagrams), waiting.path, now)

    def _count_drop(self, queue: FairQueue, datagrams: int, path: Path, now: float) -> None:
        self.dropped[queue.name] += datagrams
        if queue is self._hello or queue is self._cookie or queue is self._again:
            self._dropped_hellos.add(path, now)

    # --- time ---------------------------------------------------------------------------------------

    def _lap(self) -> float:
        """Seconds since the last time; spent."""
        before, self._checked = self._checked, self._timer()
        seconds = self._checked - before
        self._spend(seconds)
        return seconds

    def _spend(self, seconds: float) -> None:
        self._spent += seconds
        self.seconds_spent += seconds
        self._credit = max(-MAX_DEBT, self._credit - seconds)

    # --- figures ------------------------------------------------------------------------------------

    @property
    def drops_by_stage(self) -> dict[str, int]:
        """:attr:`dropped`, as it stands among the drops of other stages."""
        return {f"waiting_{name}": count for name, count in self.dropped.items()}

    def statistics(self) -> dict[str, Any]:
        """Counters and gauges as plain nested dicts."""
        return {
            "waiting": {queue.name: queue.datagrams for queue in self._queues},
            "waiting_bytes": self._size,
            "waited": dict(self.waited),
            "seconds_waited": self.seconds_waited,
            "superseded": self.superseded,
            "seconds_spent": self.seconds_spent,
        }


def _clock_of(queue: FairQueue) -> float:
    return queue.clock
