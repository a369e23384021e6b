"""``forward.kind = "unix"``: to the datagram socket of another program on this host, and from it back.

Each datagram is one JSON object (``endpoint.forward.objects``), or with ``format = "raw"`` what the device sent. Unlike
over UDP nothing is lost on the way: while the other program is slow, away or being restarted, datagrams wait in a bounded
buffer. ``forward_down`` is told when it cannot be reached, at most once a minute, and ``forward_up`` when it can again; between attempts there is a
pause, which grows.

The way back is a socket of its own (``listen``), as a connected one hears from its other side's socket only, which many
programs do not bind. Whoever can write to it can write to every device, so it is for its owner, mode 0600 before it has a name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import time
from typing import TYPE_CHECKING, Any

import trio

from endpoint.forward import ForwardError, Sink
from endpoint.forward.backlog import Backlog
from endpoint.forward.objects import object_of, reply_in
from endpoint.forward.reach import Reach
from endpoint.text import UtcStamps, json_line, show_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from endpoint.association import Association
    from endpoint.forward import Devices
    from endpoint.tables.sinks import UnixTable

FIRST_PAUSE = 0.1
"""Seconds before the next attempt to reach the other program: a restart takes about that long."""
LONGEST_PAUSE = 5.0
"""Seconds; each pause is twice as long as the one before."""
BATCH = 64
"""Datagrams in either direction before other tasks get a turn."""
BATCH_SIZE = 1_048_576
MAX_REPLY = 131_072
"""Bytes of a reply: the largest DTLS datagram in base64, and its identity. What is longer is malformed."""


class UnixDatagrams(Sink):
    """Sends to one socket; see the module's text."""

    def __init__(
        self,
        table: UnixTable,
        *,
        devices: Devices,
        tell: Callable[..., None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Binds ``table.listen``; :class:`ForwardError` if that cannot be done."""
        super().__init__()
        self._path = table.path
        self._shown = show_text(str(table.path))
        self._raw = table.format == "raw"
        self._devices = devices
        self._wall = wall
        self._stamps = UtcStamps()
        self._backlog: Backlog[bytes] = Backlog(
            table.buffer, tell=tell, overflow=table.overflow, drops=self.drops, output=self._shown
        )
        self._socket: socket.socket | None = None
        self._reach = Reach(tell, output=self._shown)
        self._listener = None if table.listen is None else _Listener(table.listen)

    def deliver(self, association: Association, data: bytes) -> None:
        """Put it into the buffer, or drop it."""
        if not self._raw:
            data = json_line(object_of(association, data, self._stamps(self._wall()))).encode()
        self._backlog.put(data, len(data))

    async def run(self) -> None:
        """Send, and take replies, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send)
            if self._listener is not None:
                nursery.start_soon(self._receive, self._listener.socket)

    # --- to the other program ----------------------------------------------------------------------------

    async def _send(self) -> None:
        pause = FIRST_PAUSE
        self._backlog.put_back()  # if this task was started anew
        while True:
            entries = await self._backlog.take(BATCH_SIZE, BATCH)
            try:
                self._socket = self._socket or self._connected()
                sent = self._send_some(self._socket, entries)
            except OSError as error:
                self._backlog.put_back()
                self._lost(error)
                await trio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
                continue
            self._backlog.put_back()
            if sent:
                pause = FIRST_PAUSE
                if self._reach.down:
                    self._reach.found()
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_writable(self._socket)

    def _connected(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.connect(os.fsencode(self._path))
        except BaseException:
            sock.close()
            raise
        return sock

    def _send_some(self, sock: socket.socket, entries: list[bytes]) -> int:
        """Send what the socket takes, and say so at once; how many are dealt with."""
        for number, entry in enumerate(entries):
            try:
                sock.send(entry)
            except BlockingIOError:
                return number
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
                self._backlog.lose(1, "too_large", "forward_too_large", output=self._shown, size=len(entry))
            else:
                self._backlog.done(1)
        return len(entries)

    def _lost(self, error: OSError) -> None:
        """The other program is not there, or no longer."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._reach.lost((error.strerror or str(error)).lower())

    # --- back to the devices -----------------------------------------------------------------------------

    async def _receive(self, sock: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(sock)
            for _ in range(BATCH):
                try:
                    content = sock.recv(MAX_REPLY)
                except BlockingIOError:
                    break
                self._reply(content)
            await trio.lowlevel.checkpoint()

    def _reply(self, content: bytes) -> None:
        try:
            identity, data = reply_in(content)
        except ValueError:
            self._devices.drop("malformed")
        else:
            self._devices.send(identity, data)

    @property
    def usable(self) -> bool:
        """Whether the other program is there."""
        return not self._reach.down

    async def flush(self) -> None:
        """Return when the buffer is sent."""
        await self._backlog.flushed()

    def close(self) -> None:
        """Close both sockets, and remove the name of ours."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._listener is not None:
            self._listener.close()

    def statistics(self) -> dict[str, Any]:
        """``forwarded`` and ``forward_dropped`` datagrams; ``forward_held`` bytes in the buffer; ``down``."""
        return {
            "forwarded": self._backlog.handed_on,
            "forward_dropped": self.drops.total(),
            "forward_held": self._backlog.held,
            "down": self._reach.down,
        }


class _Listener:
    """A datagram socket with a name that only its owner can send to."""

    def __init__(self, path: Path) -> None:
        where = show_text(str(path))
        problem = why_not(path)
        if problem is None and _in_use(path):
            problem = f"{where}: is in use by another process; remedy: stop that one, or name another"
        if problem is not None:
            raise ForwardError(problem)
        self._path = path
        self.socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        try:
            # On Linux the name gets the mode that the socket has, so it is never open to others.
            os.fchmod(self.socket.fileno(), 0o600)
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            self.socket.bind(os.fsencode(path))
            path.chmod(0o600)
            status = path.lstat()
        except OSError as error:
            self.socket.close()
            reason = (error.strerror or str(error)).lower()
            raise ForwardError(f"{where}: cannot be made: {reason}; remedy: another  listen") from None
        self._named = status.st_dev, status.st_ino

    def close(self) -> None:
        """Close it and remove its name, unless by now that is somebody else's."""
        self.socket.close()
        with contextlib.suppress(OSError):
            found = self._path.lstat()
            if (found.st_dev, found.st_ino) == self._named:
                self._path.unlink()


def why_not(path: Path) -> str | None:
    """Why no socket can have the name ``path``, with the remedy; ``None`` = it can. Changes nothing."""
    where = show_text(str(path))
    if not path.parent.is_dir():
        return f"{where}: its directory is not there; remedy: make it, for the service only"
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return f"{where}: is there already, and no socket; remedy: name another"
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{where}: cannot be looked at: {(error.strerror or str(error)).lower()}"
    return None


def _in_use(path: Path) -> bool:
    """Whether somebody listens there; a name that a dead process has left refuses."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(os.fsencode(path)) not in (errno.ECONNREFUSED, errno.ENOENT)
