"""UDP sockets that serve all peers: draining, and sending that never fails loudly.

Nothing here awaits once per datagram: ``drain`` and ``send`` are plain calls on a non-blocking socket,
because an await per datagram costs 35 to 49 µs and a drained one 1 µs. Only a full send buffer,
which is rare, is waited for, by ``keep_writing``.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
from collections import Counter, deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import trio

from endpoint.addresses import (
    ANCILLARY_SIZE,
    Address,
    Source,
    address_text,
    ask_for_destinations,
    misfit,
    source_host,
    source_of,
)
from endpoint.path_errors import discover_path_mtu, hear_of_errors, read_report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

MAX_DATAGRAM_SIZE = 65_535
"""Bytes; the largest UDP payload there is. Asking ``recvfrom`` for less would not be faster."""

MAX_SOURCES = 1_024
"""Our own addresses remembered per socket, for the ancillary data that name them; then begun anew."""

MAX_UNSENT = 1_024
"""Datagrams kept per socket while the kernel's send buffer is full. Older would be stale; what does
not fit is dropped and counted, and a handshake repeats it."""

MAX_REPORTS = 64
"""Reports of errors read at once; more come with the next turn. Anybody can have them made."""
SEND_ATTEMPTS = 3
"""How often a datagram is given to the kernel that answers with what became of an earlier one."""

_CLOSED = "the UDP socket was closed"
_CLOSED_ERRNOS = frozenset({errno.EBADF, errno.ENOTSOCK})
_EXHAUSTED_ERRNOS = frozenset({errno.ENOBUFS, errno.ENOMEM, errno.ENFILE, errno.EMFILE})
_SO_MEMINFO = 55
"""Linux socket option: nine 32-bit counters, the last of which is the datagrams dropped for lack of buffer."""
_MEMINFO = struct.Struct("=9I")


def errno_name(code: int | None) -> str:
    """``"ECONNREFUSED"`` for the number; the number itself where it has no name."""
    return errno.errorcode.get(code or 0, str(code))


def _buffer_of(sock: socket.socket) -> int:
    size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    return size // 2 if sys.platform == "linux" else size


def why_unreachable(path: object, sockets: Sequence[UdpSocket] | Mapping[int, UdpSocket]) -> str | None:
    """Why ``path``, which comes from elsewhere, leads nowhere by ``sockets``; ``None`` = it may lead somewhere."""
    if not isinstance(path, tuple) or len(path) != 2 or type(path[0]) is not int:
        return "its path is none of an endpoint's"
    index, address = path
    there = sockets if isinstance(sockets, Mapping) else dict(enumerate(sockets))
    if index not in there:
        return f"it talked to socket number {index}, and there are {len(there)}, without that one"
    return there[index].why_not(address)


class UdpSocket:
    """A bound, non-blocking UDP socket, owned: ``close`` it or use it in a ``with`` statement."""

    __slots__ = (
        "_blocked",
        "_can_write",
        "_has_source",
        "_hears_errors",
        "_socket",
        "_sources",
        "_unsent",
        "drains",
        "exhausted",
        "on_path_mtu",
        "on_send_failed",
        "path_mtu_reports",
        "receive_errors",
        "send_errors",
    )

    def __init__(self, sock: socket.socket) -> None:
        """Take over ``sock``: bound by :func:`bind_udp`, or handed down by a service manager.

        Raises ``ValueError`` if it is not a bound UDP socket.
        """
        if sock.type != socket.SOCK_DGRAM or sock.family not in (socket.AF_INET, socket.AF_INET6):
            raise ValueError(f"not a UDP socket: {sock!r}")
        if sock.getsockname()[1] == 0:
            raise ValueError(f"not bound to a port: {sock!r}")
        sock.setblocking(False)
        self._socket = sock
        self._has_source = ask_for_destinations(sock)
        self._hears_errors = False
        self._sources: dict[bytes, Source] = {}
        self._unsent: deque[tuple[bytes, Address]] = deque()
        self._blocked = trio.Event()
        self._can_write = trio.Event()
        self.drains = 0
        """How often it was read."""
        self.exhausted = False
        """Set by ``drain`` when the kernel is short of memory: pause before the next one."""
        self.send_errors: Counter[str] = Counter()
        """Datagrams that could not be sent, by errno name; ``EAGAIN`` = the queue was full as well."""
        self.receive_errors: Counter[str] = Counter()
        """Errors that came back, by errno name, ICMP messages nearly always; no datagram is lost by them."""
        self.path_mtu_reports = 0
        """How often it was said that a path takes less than was sent."""
        self.on_send_failed: Callable[[Address, int], None] | None = None
        """Called with peer and errno for each datagram that could not be sent."""
        self.on_path_mtu: Callable[[Address, int], None] | None = None
        """Called with a peer (see :meth:`known_as`) and the largest UDP payload that its path takes."""

    @property
    def address(self) -> str:
        """The local address, as text."""
        host: str = self._socket.getsockname()[0]
        return host

    @property
    def port(self) -> int:
        """The local port."""
        port: int = self._socket.getsockname()[1]
        return port

    @property
    def local_text(self) -> str:
        """Local address and port as :func:`address_text`."""
        return address_text(self._socket.getsockname())

    def local_text_for(self, address: Address) -> str:
        """The local address that ``address`` talks to: differs from ``local_text`` on all interfaces."""
        host = source_host(address[-1]) if self._has_source else None
        return self.local_text if host is None else address_text((host, self.port))

    def local_address_for(self, address: Address) -> tuple[str, int]:
        """As ``local_text_for``, as address and port."""
        host = source_host(address[-1]) if self._has_source else None
        return (self.address if host is None else host), self.port

    def why_not(self, address: object) -> str | None:
        """Why ``address`` cannot be a peer of this socket, in words; ``None`` = it can."""
        return misfit(address, self._socket.family, has_source=self._has_source)

    @property
    def receive_buffer(self) -> int:
        """Bytes that the kernel granted for received datagrams (on Linux half of what it reports)."""
        return _buffer_of(self._socket)

    def ask_for_buffer(self, size: int) -> None:
        """Ask the kernel for a receive buffer of so many bytes; see ``receive_buffer`` for what it gave.

        A service manager may have given more than this process is granted; that is left alone.
        """
        with contextlib.suppress(OSError):  # a smaller buffer serves as well, only less through a burst
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
                granted = _buffer_of(probe)
            if granted >= size or granted > _buffer_of(self._socket):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def discover_path_mtu(self, wanted: bool) -> None:  # noqa: FBT001 - it is what the method is named for
        """Whether to send with "don't fragment" and hear of paths that take less; not so by default."""
        discover_path_mtu(self._socket, wanted=wanted)
        self._hears_errors = hear_of_errors(self._socket, wanted=wanted)

    def known_as(self, peer: Address) -> list[Address]:
        """The addresses by which ``peer``, as ``on_path_mtu`` tells it, is or may be known here."""
        return [(*peer, source) for source in self._sources.values()] if self._has_source else [peer]

    def is_bound_to(self, address: Address) -> bool:
        """Whether this is its own address, as ``getsockname`` would tell it; port 0 stands for any port."""
        host, port, *rest = self._socket.getsockname()
        scope, wanted = (rest[1:] or [0])[0], (address[3:] or (0,))[0]
        return host == address[0] and address[1] in (0, port) and scope == wanted

    @property
    def dropped_by_kernel(self) -> int | None:
        """Datagrams the kernel dropped because its buffer was full; ``None`` where it does not tell."""
        if sys.platform != "linux":
            return None
        try:
            counters = self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
            return int(_MEMINFO.unpack(counters)[8])
        except (OSError, struct.error):
            return None

    @property
    def blocked(self) -> bool:
        """Whether datagrams wait for room in the kernel's send buffer."""
        return bool(self._unsent)

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self._socket.fileno()

    async def wait_readable(self) -> None:
        """Return when there may be something to ``drain``. ``trio.ClosedResourceError`` if it is closed."""
        if self._socket.fileno() < 0:
            raise trio.ClosedResourceError(_CLOSED)
        await trio.lowlevel.wait_readable(self._socket)

    def drain(self, limit: int) -> list[tuple[bytes, Address]]:
        """Receive until it would block, at most ``limit`` datagrams (or errors).

        As many as ``limit`` = ask again after a checkpoint; fewer = wait for readability. Errors are
        counted and never raised (an ICMP message, which anybody may forge, must end nothing), except
        that a closed socket raises ``trio.ClosedResourceError``.
        """
        self.drains += 1
        datagrams: list[tuple[bytes, Address]] = []
        receive = self._receive_with_source if self._has_source else self._socket.recvfrom
        for _ in range(limit):
            try:
                datagrams.append(receive(MAX_DATAGRAM_SIZE))
            except BlockingIOError:
                if not datagrams and self._hears_errors:
                    self._read_reports()  # it may have been them that made it readable
                break
            except OSError as error:
                if error.errno in _CLOSED_ERRNOS:
                    raise trio.ClosedResourceError(_CLOSED) from None
                if self._hears_errors and self._read_reports():
                    continue  # it was the first of them
                self.receive_errors[errno_name(error.errno)] += 1
                if error.errno in _EXHAUSTED_ERRNOS:
                    self.exhausted = True
                    break
        return datagrams

    def _read_reports(self, sent_to: Address | None = None) -> int:
        """Take in what the error queue holds; how many there were. ``sent_to``: whom something was being sent to."""
        for count in range(MAX_REPORTS):
            report = read_report(self._socket)
            if report is None:
                return count
            if report.size is None:
                self.receive_errors[errno_name(report.code)] += 1
                continue
            self.path_mtu_reports += 1
            # What the kernel itself refuses, which is at once, it reports without the port.
            peer = report.peer if report.peer and report.peer[1] else sent_to
            if self.on_path_mtu is not None and peer is not None:
                self.on_path_mtu(peer, report.size)
        return MAX_REPORTS

    def _receive_with_source(self, size: int) -> tuple[bytes, Address]:
        data, ancillary, _, address = self._socket.recvmsg(size, ANCILLARY_SIZE)
        key = ancillary[0][2] if ancillary else b""
        source = self._sources.get(key)
        if source is None:
            if len(self._sources) >= MAX_SOURCES:
                self._sources.clear()
            source = self._sources[key] = source_of(ancillary)
        return data, (*address, source)

    def _send_now(self, data: bytes, address: Address) -> None:
        if not self._hears_errors:
            self._send_once(data, address)
            return
        for _ in range(SEND_ATTEMPTS - 1):
            try:
                self._send_once(data, address)
            except BlockingIOError:
                raise
            except OSError:
                # It may be about an earlier datagram, to somebody else even: this one has not been tried then.
                if not self._read_reports(address[:-1] if self._has_source else address):
                    raise
            else:
                return
        self._send_once(data, address)

    def _send_once(self, data: bytes, address: Address) -> None:
        if self._has_source:
            self._socket.sendmsg((data,), address[-1], 0, address[:-1])
        else:
            self._socket.sendto(data, address)

    def send(self, data: bytes, address: Address) -> bool:
        """Send, or keep until there is room; ``False`` = dropped and counted. Never raises ``OSError``."""
        if not self._unsent:
            try:
                self._send_now(data, address)
            except BlockingIOError:
                pass
            except OSError as error:
                self._failed(address, error.errno or 0)
                return False
            else:
                return True
        if len(self._unsent) >= MAX_UNSENT:
            self._failed(address, errno.EAGAIN)
            return False
        if not self._unsent:
            self._can_write = trio.Event()
            self._blocked.set()
        self._unsent.append((data, address))
        return True

    async def wait_writable(self) -> None:
        """Return once no datagram waits for room. Not a checkpoint if there is nothing to wait for."""
        if self._unsent:
            await self._can_write.wait()

    async def keep_writing(self) -> None:
        """Send what :meth:`send` had to keep, until cancelled. Run it in one task per socket."""
        while True:
            await self._blocked.wait()
            await trio.lowlevel.wait_writable(self._socket)
            self._write_unsent()

    def _write_unsent(self) -> None:
        while self._unsent:
            data, address = self._unsent[0]
            try:
                self._send_now(data, address)
            except BlockingIOError:
                return
            except OSError as error:
                self._failed(address, error.errno or 0)
            self._unsent.popleft()
        self._blocked = trio.Event()
        self._can_write.set()

    def _failed(self, address: Address, code: int) -> None:
        self.send_errors[errno_name(code)] += 1
        if self.on_send_failed is not None:
            self.on_send_failed(address, code)

    def statistics(self) -> dict[str, Any]:
        """Counters and gauges as a plain dict."""
        return {
            "local": self.local_text,
            "send_errors": dict(self.send_errors),
            "receive_errors": dict(self.receive_errors),
            "path_mtu_reports": self.path_mtu_reports,
            "dropped_by_kernel": self.dropped_by_kernel,
            "receive_buffer": self.receive_buffer,
        }

    @property
    def closed(self) -> bool:
        """Whether nothing is received any more."""
        return self._socket.fileno() < 0

    def close(self) -> None:
        """Close the descriptor; tasks that wait on it get ``trio.ClosedResourceError``."""
        if self._socket.fileno() >= 0:
            with contextlib.suppress(RuntimeError):  # outside trio nobody can be waiting
                trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._socket.fileno() < 0:
            return "<UdpSocket closed>"
        return f"<UdpSocket {self.local_text}>"
