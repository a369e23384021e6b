"""How a service that runs tells its manager that it lives, how it is, and that something takes longer.

::

    WATCHDOG=1              every half of WATCHDOG_USEC, if the service really serves; see below
    STATUS=                 when it has changed, at most every 10 s: for ``systemctl status``
    RELOADING=1, READY=1    around reading the credentials again, MONOTONIC_USEC= with the first
    EXTEND_TIMEOUT_USEC=    while associations are read or written, which for a million takes minutes

A watchdog has to end a service that hangs, and nothing else may end it. So the ping comes from the loop that
serves, never from a thread, which would go on pinging beside a loop that stands still. And the loop alone is not enough: timers that are not
run, or a socket that has datagrams and is not read, are reasons to withhold it, and are logged then, as they are the service's last words.
Threads do not count at all: a disk or a name server that hangs holds up a thread, and a service that still serves all others must not be
killed for it. A manager that does not read is not waited for.
"""

from __future__ import annotations

import contextlib
import select
import time
from typing import TYPE_CHECKING, Protocol, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from endpoint.sockets import UdpSocket
    from endpoint.systemd import Notifier, Supervision

STATUS_INTERVAL = 10.0
"""Seconds between two texts for ``systemctl status``: often enough for a person who watches."""
SECOND_LOOK = 0.1
"""Part of the watchdog's time after which a socket that was not read is looked at again: it may just have received."""
MORE_TIME = 60.0
"""Seconds that are asked for at once while something takes long."""
ASK_EVERY = 5.0
"""Seconds after which they are asked for again."""
LOOK_EVERY = 64
"""Items of long work between two looks at the clock."""

T = TypeVar("T")


class Watched(Protocol):
    """What is asked of the engine."""

    @property
    def sockets(self) -> tuple[UdpSocket, ...]:
        """That have to be read."""
        ...

    @property
    def late(self) -> float:
        """Seconds by which the earliest timer is overdue; 0 = none is."""
        ...


class Supervised:
    """The running service as its manager sees it. Say :meth:`ready` once it is, and :meth:`stopping` when it no more is."""

    def __init__(
        self, supervision: Supervision, *, describe: Callable[[], str], trouble: Callable[..., None]
    ) -> None:
        """``describe`` gives the text for people; ``trouble`` is told when the watchdog's ping is withheld."""
        self._notifier = supervision.notifier
        self._watchdog = supervision.watchdog
        self._describe = describe
        self._trouble = trouble
        self._ready = False
        self._told = ""
        self._drains: dict[UdpSocket, int] = {}

    def ready(self) -> bool:
        """It serves; whether the manager has been told, where there is one."""
        self._ready = True
        self._told = self._describe()
        return self._notifier.ready(self._told) or not self._notifier

    def stopping(self) -> None:
        """From now on nothing more is said here."""
        self._ready = False

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """Around reading configuration again. Nothing is said unless the service is ready: READY=1 would mean more then."""
        if self._ready:
            self._notifier.reloading()
        try:
            yield
        finally:
            if self._ready:
                self.ready()

    async def run(self, engine: Watched) -> None:
        """Ping and describe until cancelled."""
        async with trio.open_nursery() as nursery:
            if self._notifier:
                nursery.start_soon(self._keep_told)
            if self._notifier and self._watchdog is not None:
                nursery.start_soon(self._keep_alive, engine, self._watchdog)

    async def _keep_told(self) -> None:
        while True:
            await trio.sleep(STATUS_INTERVAL)
            text = self._describe()
            if self._ready and text != self._told and self._notifier.status(text):
                self._told = text

    async def _keep_alive(self, engine: Watched, seconds: float) -> None:
        # sd_watchdog_enabled(3): "keep-alive notification messages [...] every half of the time returned here"
        interval = seconds / 2
        while True:
            reason = self._why_late(engine, interval)
            if reason is None and (unread := self._unread(engine.sockets)):
                await trio.sleep(seconds * SECOND_LOOK)
                reason = self._why_unread(unread)
            if reason is None:
                self._notifier.alive()
            else:
                self._trouble("watchdog withheld", reason=reason, seconds=seconds)
            self._drains = {udp: udp.drains for udp in engine.sockets}
            await trio.sleep(interval)

    @staticmethod
    def _why_late(engine: Watched, bound: float) -> str | None:
        late = engine.late
        return f"timers are {late:.1f} s late" if late > bound else None

    def _unread(self, sockets: Sequence[UdpSocket]) -> list[UdpSocket]:
        """Those that have something and have not been read since the last look."""
        return [udp for udp in sockets if udp.drains == self._drains.get(udp) and _has_something(udp)]

    def _why_unread(self, sockets: Sequence[UdpSocket]) -> str | None:
        found = self._unread(sockets)
        return f"{found[0].local_text} has datagrams and is not read" if found else None


def _has_something(udp: UdpSocket) -> bool:
    poll = select.poll()
    try:
        poll.register(udp.fileno(), select.POLLIN)
    except ValueError:  # closed; who reads it will notice
        return False
    return bool(poll.poll(0))


class LongWork:
    """Asks the manager for more time while something takes long; for starts and stops, which have a time limit there."""

    def __init__(self, notifier: Notifier, *, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` is not trio's: the work does not await."""
        self._notifier = notifier
        self._clock = clock
        self._asked = clock()

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """``items``, with a look at the clock now and then."""
        for count, item in enumerate(items):
            if count % LOOK_EVERY == 0 and self._clock() - self._asked >= ASK_EVERY:
                self._asked = self._clock()
                self._notifier.extend(MORE_TIME)
            yield item
