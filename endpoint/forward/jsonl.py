"""``forward.kind = "jsonl"``: one JSON line for each datagram, on standard output.

A line looks so::

    {"time": "2025-01-31T23:59:59.123Z", "identity": "meter-17", "path": "192.0.2.7:40000", "data": "21.4 °C"}

Data that are not UTF-8 stand under ``data_base64`` instead of ``data``. ``identity`` is escaped as
in the log (``endpoint.text``), so both can be joined by it; it is null for a peer that showed nothing.

Standard output may be slow (a pipe into a program that thinks, a terminal that was stopped), full or
closed, and devices must not notice. So lines go into a bounded buffer, and a thread writes it out:
a blocked write blocks the thread alone. Making the descriptor non-blocking would spare the thread,
but that flag belongs to everybody who shares the terminal or pipe. When the buffer is full *new*
lines are dropped and counted: what is buffered is older, but complete and in order. A write that
fails for a reason that may pass, such as a full disk, costs its lines and is tried again with the next
ones. When the reader has closed its end there is nobody left to serve: ``ForwardError``, and the
service stops.
"""

from __future__ import annotations

import base64
import errno
import os
import select
import time
from collections import deque
from typing import TYPE_CHECKING

import trio

from endpoint.association import CredentialKind
from endpoint.forward import ForwardError
from endpoint.text import UtcStamps, json_line, show_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from endpoint.association import Association

MAX_WRITE = 65_536
"""Bytes handed to the thread at once: the size of a Linux pipe, so that lines leave the buffer steadily."""

PAUSE_AFTER_FAILURE = 1.0
"""Seconds before the next attempt when a write failed: a full disk does not empty in microseconds."""


class JsonLines:
    """Writes to a file descriptor. ``tell`` gets a fact when dropping starts and when it ends."""

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
        self._dropping = False
        self._dropped_now = 0  # since dropping started
        self._written = 0
        self._dropped = 0
        self._torn = False  # the last write ended within a line
        self._filled = trio.lowlevel.ParkingLot()
        self._emptied = trio.lowlevel.ParkingLot()

    def deliver(self, association: Association, data: bytes) -> None:
        """Put one line into the buffer, or drop it."""
        nobody = association.kind is CredentialKind.NONE
        fact = {
            "time": self._stamps(self._wall()),
            "identity": None if nobody else show_bytes(association.identity),
            "path": association.remote,
        }
        try:
            fact["data"] = data.decode()
        except UnicodeDecodeError:
            fact["data_base64"] = base64.b64encode(data).decode("ascii")
        line = json_line(fact).encode() + b"\n"
        if self._held + len(line) > self._limit:
            self._drop(1, "forward_overflow", buffer=self._limit)
            return
        self._lines.append(line)
        self._held += len(line)
        self._filled.unpark_all()

    def _drop(self, lines: int, event: str, **facts: object) -> None:
        self._dropped += lines
        self._dropped_now += lines
        if not self._dropping:
            self._dropping = True
            self._tell(event, output="standard output", **facts)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            while not self._lines:
                await self._filled.park()
            lines = self._take()
            chunk = b"".join(lines)
            # Abandoned when cancelled: a stop must not wait for a reader that never comes back.
            written, error = await trio.to_thread.run_sync(
                _write, self._descriptor, b"\n" + chunk if self._torn else chunk, abandon_on_cancel=True
            )
            self._held -= len(chunk)
            if error is None:
                self._succeeded(len(lines))
            else:
                self._failed(error, lines, written - self._torn)
            if not self._held:
                self._emptied.unpark_all()
            if error is not None:
                await trio.sleep(PAUSE_AFTER_FAILURE)

    def _succeeded(self, lines: int) -> None:
        self._written += lines
        self._torn = False
        # Not before half is free, or a reader that is a little too slow would be told of with each write.
        if self._dropping and self._held <= self._limit // 2:
            self._dropping = False
            self._tell("forward_resumed", dropped=self._dropped_now)
            self._dropped_now = 0

    def _failed(self, error: OSError, lines: list[bytes], written: int) -> None:
        reason = (error.strerror or str(error)).lower()
        if error.errno == errno.EPIPE:
            raise ForwardError("standard output was closed by its reader")
        if error.errno == errno.EBADF:
            raise ForwardError("standard output was closed")
        complete = 0
        while written >= len(lines[complete]):
            written -= len(lines[complete])
            complete += 1
        self._written += complete
        self._torn = written > 0 or (written < 0 and self._torn)
        self._drop(len(lines) - complete, "forward_write_failed", reason=reason)

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


def _write(descriptor: int, data: bytes) -> tuple[int, OSError | None]:
    """Write all of it: the number of bytes written, and the error that stopped it."""
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            # Somebody who shares it has made it non-blocking.
            waiting = select.poll()
            waiting.register(descriptor, select.POLLOUT)
            waiting.poll()
        except OSError as error:
            return len(data) - len(left), error
    return len(data), None
