"""The administrator's door: a UNIX socket of the service, one JSON line in, one JSON line out.

::

    {"command": "status"}       {"ok": true, "associations": 3, "frozen": 0, "handshakes": 0}
    {"command": "nonsense"}     {"ok": false, "error": "unknown command; known are handoff, status"}

Whoever can connect may do anything that a command does, so the socket is for its owner (mode 0600 before it has a
name), as are the files with the keys. Requests are few and small: one in a connection, at most
:data:`MAX_REQUEST` bytes within :data:`REQUEST_TIME`, and at most :data:`MAX_CLIENTS` at once.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import trio

from endpoint.text import json_line, show_text

if TYPE_CHECKING:
    from pathlib import Path

Command: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, object]]]
"""Takes the request and gives the answer, without ``ok``. :class:`CommandError` = the answer is no.

``asked_by`` in the request is the user ID of who asks, from the kernel, or ``None``.
"""

MAX_REQUEST = 4_096
"""Bytes of a request, its line end included."""
MAX_ANSWER = 1_048_576
"""Bytes of an answer that a client reads."""
REQUEST_TIME = 5.0
"""Seconds for a request to arrive, and for an answer to be taken. Commands have their own limits."""
MAX_CLIENTS = 8
"""Requests under way at once."""
_UCRED = struct.Struct("=3i")
"""Process, user and group of a peer, as SO_PEERCRED tells them."""


class AdminError(Exception):
    """The socket cannot be made, or nobody answers. The text names it and the remedy."""


class CommandError(Exception):
    """A command cannot do what it is for; the text says why, to whoever asked."""


class AdminSocket:
    """The service's side. Close it, and its name is gone too."""

    def __init__(self, path: Path, *, trouble: Callable[..., None]) -> None:
        """Bind to ``path``; :class:`AdminError` if that cannot be done.

        ``trouble`` is told of commands that break. A name that a dead process has left is taken over.
        """
        self._path = path
        self._trouble = trouble
        self._commands: dict[str, Command] = {}
        self._clients = 0
        self._idle = trio.Event()
        self._idle.set()
        self._socket = _bound(path)
        status = os.fstat(self._socket.fileno()), path.lstat()
        self._named = status[1].st_dev, status[1].st_ino

    def register(self, name: str, command: Command) -> None:
        """Answer requests for ``name`` by ``command``."""
        self._commands[name] = command

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer until cancelled."""
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._socket))
        task_status.started()
        await trio.serve_listeners(self._serve, [listener])

    async def wait_idle(self, seconds: float) -> None:
        """Return when no request is under way, at the latest after so many seconds."""
        with trio.move_on_after(seconds):
            await self._idle.wait()

    def close(self) -> None:
        """Close it and remove its name, unless by now that is somebody else's."""
        self._socket.close()
        with contextlib.suppress(OSError):
            found = self._path.lstat()
            if (found.st_dev, found.st_ino) == self._named:
                self._path.unlink()

    async def _serve(self, stream: trio.SocketStream) -> None:
        if self._clients >= MAX_CLIENTS:
            await self._answer(stream, {"ok": False, "error": "too many requests at once; try again"})
            return
        if not self._clients:
            self._idle = trio.Event()
        self._clients += 1
        try:
            line = await _request(stream)
            if line is not None:
                await self._answer(stream, await self._obey(line, _asker(stream)))
        finally:
            self._clients -= 1
            if not self._clients:
                self._idle.set()

    async def _obey(self, line: bytes, asker: int | None) -> Mapping[str, object]:
        try:
            request = {**json.loads(line), "asked_by": asker}
            name = request["command"]
            command = self._commands.get(name)
        except (ValueError, TypeError, KeyError, RecursionError):
            return {"ok": False, "error": 'a request is one line such as {"command": "status"}'}
        if command is None:
            return {"ok": False, "error": f"unknown command; known are {', '.join(sorted(self._commands))}"}
        try:
            return {"ok": True, **await command(request)}
        except CommandError as error:
            return {"ok": False, "error": str(error)}
        except Exception as error:  # noqa: BLE001 - a command that breaks must not end the service
            self._trouble("command failed", command=name, reason=repr(error))
            return {"ok": False, "error": "the command failed; the log says why"}

    async def _answer(self, stream: trio.SocketStream, answer: Mapping[str, object]) -> None:
        # Whoever asked may be gone by now.
        with trio.move_on_after(REQUEST_TIME), contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(json_line(answer).encode() + b"\n")


def _asker(stream: trio.SocketStream) -> int | None:
    """The user ID of the process on the other side, as the kernel knows it; ``None`` where it does not tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(credentials)[1])


async def _request(stream: trio.SocketStream) -> bytes | None:
    """One line; ``None`` if it does not come, or does not end."""
    line = b""
    with trio.move_on_after(REQUEST_TIME), contextlib.suppress(trio.BrokenResourceError):
        while len(line) < MAX_REQUEST:
            more = await stream.receive_some(MAX_REQUEST - len(line))
            line += more
            if b"\n" in more:
                return line.partition(b"\n")[0]
            if not more:
                break
    return None


def _bound(path: Path) -> socket.socket:
    where = show_text(str(path))
    _make_way(path, where)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        # On Linux the name gets the mode that the socket has, so it is never open to others; no umask, which
        # all threads share, has to be changed for it.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(os.fsencode(path))
        path.chmod(0o600)
        sock.listen(MAX_CLIENTS)
    except OSError as error:
        sock.close()
        raise AdminError(f"{where}: cannot be made: {_reason(error)}; remedy: state.admin_socket") from None
    return sock


def look_at_socket(path: Path) -> bool:
    """Whether the name is there, as a socket. :class:`AdminError` where none can be made; changes nothing."""
    where = show_text(str(path))
    if not path.parent.is_dir():
        raise AdminError(f"{where}: its directory is not there; remedy: make it, for the service only")
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise AdminError(f"{where}: is there already, and no socket; remedy: name another")
    except FileNotFoundError:
        return False
    except OSError as error:
        raise AdminError(f"{where}: cannot be looked at: {_reason(error)}") from None
    return True


def _make_way(path: Path, where: str) -> None:
    """Remove the name that a dead process has left; :class:`AdminError` if it is in use, or something else."""
    if not look_at_socket(path):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            code = probe.connect_ex(os.fsencode(path))
        if code != errno.ECONNREFUSED:
            raise AdminError(
                f"{where}: is in use by another process; remedy: stop that one, or name another socket"
            )
        path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise AdminError(f"{where}: cannot be looked at: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def ask(path: Path, command: str, *, seconds: float, **parameters: object) -> dict[str, Any]:
    """The client's side: the service's answer, with ``ok`` and, where that is false, ``error``. Blocks.

    ``parameters`` are the members of the request beside ``command``.

    :class:`AdminError` if no service answers within ``seconds``.
    """
    where = show_text(str(path))
    line = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(seconds)
            sock.connect(os.fsencode(path))
            sock.sendall(json.dumps({"command": command, **parameters}).encode() + b"\n")
            while not line.endswith(b"\n") and len(line) < MAX_ANSWER:
                more = sock.recv(65_536)
                if not more:
                    break
                line += more
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise TypeError
    except TimeoutError:
        raise AdminError(f"{where}: the service does not answer within {seconds:g} s") from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise AdminError(f"{where}: no service answers there; is it running?") from None
    except OSError as error:
        raise AdminError(f"{where}: no service can be asked there: {_reason(error)}") from None
    except (ValueError, TypeError):
        raise AdminError(f"{where}: the service went away without an answer") from None
    return answer
