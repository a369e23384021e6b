"""What an engine sends, and what it hears of that: errors, and paths that take less than was sent.

A socket tells of errors in the middle of sending or receiving, when the core must not be called. So what is to be
told to connections waits for the end of that::

    socket     error queue: peer, datagram size          while something is sent or received
    settle     the connections on that peer's paths      repeat their flight in smaller datagrams, once sending is done
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from endpoint.addresses import address_text
from endpoint.keeping import KeepingEngine
from endpoint.sockets import errno_name

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    import trio

    from endpoint.addresses import Address
    from endpoint.observer import Observer
    from endpoint.roster import Roster
    from endpoint.tap import Tap
    from sansdtls import Event


class SendingEngine(KeepingEngine):
    """The part of :class:`~endpoint.Engine` that has to do with sending."""

    _dropped: Counter[str]
    _errnos_told: set[int]
    _in_turn: bool
    _narrow_paths: list[tuple[int, Address, int]]
    """What the sockets have learned and the connections have yet to be told: socket, peer, datagram size."""
    _observer: Observer
    _roster: Roster
    _timer: trio.CancelScope | None
    _turn_now: float
    tap: Tap | None

    if TYPE_CHECKING:

        def now(self) -> float: ...
        def _handle(self, event: Event, now: float) -> None: ...
        def _tapped(self, method: str, *arguments: object) -> None: ...
        def _tell(self, method: Callable[..., None], /, *arguments: object, **facts: object) -> None: ...

    def _send_all(self) -> None:
        """Send what the server has to send, and what comes of paths that turn out to be narrow."""
        self._send_outbox()
        while self._narrow_paths:
            self._tell_of_narrow_paths()
            self._send_outbox()

    def _send_outbox(self) -> None:
        sockets = self._at
        path: Any
        for data, path in self._server.datagrams_to_send():
            if self.tap is not None:
                self._tapped("datagram_sent", data, path, self.now())
            sockets[path[0]].send(data, path[1])

    def _path_mtu_told(self, index: int, peer: Address, size: int) -> None:
        self._narrow_paths.append((index, peer, size))
        if not self._in_turn and self._timer is not None:
            self._timer.deadline = -math.inf  # where nothing else is about to settle

    def _tell_of_narrow_paths(self) -> None:
        told, self._narrow_paths = self._narrow_paths, []
        now = self._turn_now = self._clock()
        self._in_turn = True
        try:
            for index, peer, size in told:
                for address in self._at[index].known_as(peer):
                    for event in self._server.limit_datagram_size(size, path=(index, address), now=now):
                        self._handle(event, now)
        finally:
            self._in_turn = False

    def _send_failed(self, index: int, address: Address, code: int) -> None:
        self._dropped["send"] += 1
        association = self._roster.at((index, address))
        if association is not None:
            association.send_errors += 1
            association.dropped += 1
        if code not in self._errnos_told:
            # Once per errno: an unreachable network fails for every peer, many times a second.
            self._errnos_told.add(code)
            facts = {"error": errno_name(code), "reason": os.strerror(code), "path": address_text(address)}
            self._tell(self._observer.trouble, "send failed", **facts)
