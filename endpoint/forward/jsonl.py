"""``forward.kind = "jsonl"``: one JSON line for each datagram, on standard output.

A line looks so::

    {"time": "2025-01-31T23:59:59.123Z", "identity": "meter-17", "path": "192.0.2.7:40000", "data": "21.4 °C"}

Data that are not UTF-8 stand under ``data_base64`` instead of ``data``. ``identity`` is escaped as
in the log (``endpoint.text``), so both can be joined by it.

Standard output may be slow (a pipe into a program that thinks, a terminal that was stopped) or
closed, and devices must not notice. So lines go into a bounded buffer, and a thread writes it out:
a blocked write blocks the thread alone. Making the descriptor non-blocking would spare the thread,
but that flag belongs to everybody who shares the terminal or pipe. When the buffer is full *new*
lines are dropped and counted: what is buffered is older, but complete and in order. When standard
output is closed there is nobody left to serve: ``ForwardError``, and the service stops.
"""

from __future__ import annotations

import base64
import os
import time
from collections import deque
from typing import TYPE_CHECKING

import trio

from endpoint.forward import ForwardError
from endpoint.text import UtcStamps, json_line, show_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from endpoint.association import Association

MAX_WRITE = 65_536
"""Bytes handed to the thread at once: the size of a Linux pipe, so that lines leave the buffer steadily."""


class JsonLines:
    """Writes to a file descriptor. ``tell`` is called with the name of a fact when dropping starts or ends."""

    def __init__(
        self,
        descriptor: int,
        *,
        limit: int,
        tell: Callable[..., None],
        wall: Callable[[], float] = time.time,
    ):
        try:
            os.fstat(descriptor)
        except OSError:
            raise ForwardError("standard output is closed; there is nowhere to write data to") from None
        self._descriptor = descriptor
        self._limit = limit
        self._tell = tell
        self._wall = wall
        self._stamps = UtcStamps()
        self._lines: deque[bytes] = deque()
        self._held = 0  # bytes, including those being written
        self._overflowing = False
        self._dropped_now = 0
        self._written = 0
        self._dropped = 0
        self._filled = trio.lowlevel.ParkingLot()
        self._emptied = trio.lowlevel.ParkingLot()

    def deliver(self, association: Association, data: bytes) -> None:
        """Put one line into the buffer, or drop it."""
        fact = {
            "time": self._stamps(self._wall()),
            "identity": show_bytes(association.identity),
            "path": association.remote,
        }
        try:
            fact["data"] = data.decode()
        except UnicodeDecodeError:
            fact["data_base64"] = base64.b64encode(data).decode("ascii")
        line = json_line(fact).encode() + b"\n"
        if self._held + len(line) > self._limit:
            self._drop()
            return
        self._lines.append(line)
        self._held += len(line)
        self._filled.unpark_all()

    def _drop(self) -> None:
        self._dropped += 1
        self._dropped_now += 1
        if not self._overflowing:
            self._overflowing = True
            self._tell("forward_overflow", output="standard output", buffer=self._limit)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            while not self._lines:
                await self._filled.park()
            lines = self._take()
            chunk = b"".join(lines)
            try:
                # Abandoned: a stop must not wait for a reader that never comes back.
                await trio.to_thread.run_sync(_write_all, self._descriptor, chunk, abandon_on_cancel=True)
            except BrokenPipeError:
                raise ForwardError("standard output was closed by its reader") from None
            except OSError as error:
                raise ForwardError(f"standard output: {(error.strerror or str(error)).lower()}") from None
            self._held -= len(chunk)
            self._written += len(lines)
            if self._overflowing:
                self._overflowing = False
                self._tell("forward_resumed", dropped=self._dropped_now)
                self._dropped_now = 0
            if not self._held:
                self._emptied.unpark_all()

    def _take(self) -> list[bytes]:
        """The lines of the next write: as many as fit, and at least one."""
        lines = [self._lines.popleft()]
        size = len(lines[0])
        while self._lines and size + len(self._lines[0]) <= MAX_WRITE:
            lines.append(self._lines.popleft())
            size += len(lines[-1])
        return lines

    async def flush(self) -> None:
        """Return when the buffer is written out."""
        while self._held:
            await self._emptied.park()

    def statistics(self) -> dict[str, int]:
        """``forwarded`` and ``forward_dropped`` datagrams; ``forward_held`` bytes in the buffer."""
        return {
            "forwarded": self._written,
            "forward_dropped": self._dropped,
            "forward_held": self._held,
        }


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
