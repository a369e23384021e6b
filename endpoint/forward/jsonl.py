"""``forward.kind = "jsonl"``: one JSON line for each datagram, on standard output.

A line looks so::

    {"time": "2025-01-31T23:59:59.123Z", "identity": "meter-17", "path": "192.0.2.7:40000", "data": "21.4 °C"}

Data that are not UTF-8 stand under ``data_base64`` instead of ``data``. ``identity`` is escaped as
in the log (``endpoint.text``), so both can be joined by it; it is null for a peer that showed nothing.

Standard output may be slow (a pipe into a program that thinks, a terminal that was stopped), full or
closed, and devices must not notice. So lines go into a bounded buffer (``endpoint.forward.backlog``), and a thread
writes it out: a blocked write blocks the thread alone. Making the descriptor non-blocking would spare the thread,
but that flag belongs to everybody who shares the terminal or pipe. A write that fails for a reason that may pass, such as
a full disk, costs its lines and is tried again with the next ones. When the reader has closed its end there is
nobody left to serve: ``ForwardError``, and the service stops unless it has other sinks.
"""

from __future__ import annotations

import errno
import os
import select
import time
from typing import TYPE_CHECKING

import trio

from endpoint.forward import ForwardError, Sink
from endpoint.forward.backlog import Backlog
from endpoint.forward.objects import object_of
from endpoint.text import UtcStamps, json_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from endpoint.association import Association
    from endpoint.forward.backlog import Overflow

MAX_WRITE = 65_536
"""Bytes handed to the thread at once: the size of a Linux pipe, so that lines leave the buffer steadily."""

PAUSE_AFTER_FAILURE = 1.0
"""Seconds before the next attempt when a write failed: a full disk does not empty in microseconds."""


OUTPUT = "standard output"


class JsonLines(Sink):
    """Writes to a file descriptor. ``tell`` gets a fact when dropping starts and when it ends."""

    def __init__(
        self,
        descriptor: int,
        *,
        limit: int,
        tell: Callable[..., None],
        wall: Callable[[], float] = time.time,
        overflow: Overflow = "newest",
    ):
        super().__init__()
        try:
            os.fstat(descriptor)
        except OSError:
            raise ForwardError("standard output is closed; there is nowhere to write data to") from None
        self._descriptor = descriptor
        self._wall = wall
        self._stamps = UtcStamps()
        self._lines: Backlog[bytes] = Backlog(
            limit, tell=tell, overflow=overflow, drops=self.drops, output=OUTPUT
        )
        self._torn = False  # the last write ended within a line

    def deliver(self, association: Association, data: bytes) -> None:
        """Put one line into the buffer, or drop it."""
        line = json_line(object_of(association, data, self._stamps(self._wall()))).encode() + b"\n"
        self._lines.put(line, len(line))

    async def run(self) -> None:
        """Write until cancelled."""
        self._lines.put_back()  # if this task was started anew
        while True:
            lines = await self._lines.take(MAX_WRITE)
            chunk = b"".join(lines)
            # Abandoned when cancelled: a stop must not wait for a reader that never comes back.
            written, error = await trio.to_thread.run_sync(
                _write, self._descriptor, b"\n" + chunk if self._torn else chunk, abandon_on_cancel=True
            )
            if error is None:
                self._torn = False
                self._lines.done(len(lines))
            else:
                self._failed(error, lines, written - self._torn)
                await trio.sleep(PAUSE_AFTER_FAILURE)

    def _failed(self, error: OSError, lines: list[bytes], written: int) -> None:
        reason = (error.strerror or str(error)).lower()
        complete = 0
        while written >= len(lines[complete]):
            written -= len(lines[complete])
            complete += 1
        self._torn = written > 0 or (written < 0 and self._torn)
        if complete:
            self._lines.done(complete)
        if error.errno in (errno.EPIPE, errno.EBADF):
            self._lines.give_up("write_failed")
            by = " by its reader" if error.errno == errno.EPIPE else ""
            raise ForwardError(f"standard output was closed{by}")
        self._lines.lose(
            len(lines) - complete, "write_failed", "forward_write_failed", output=OUTPUT, reason=reason
        )

    async def flush(self) -> None:
        """Return when the buffer is written out."""
        await self._lines.flushed()

    def statistics(self) -> dict[str, int]:
        """``forwarded`` and ``forward_dropped`` datagrams; ``forward_held`` bytes in the buffer."""
        return {
            "forwarded": self._lines.handed_on,
            "forward_dropped": self.drops.total(),
            "forward_held": self._lines.held,
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
