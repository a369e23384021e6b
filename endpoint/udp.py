"""UDP sockets: binding with errors an operator can act on, draining, and sending that never fails loudly.

One :class:`UdpSocket` serves all peers. Nothing here awaits once per datagram: ``drain`` and ``send``
are plain calls on a non-blocking socket, because an await per datagram costs 35 to 49 µs and a
drained one 1 µs. Only a full send buffer, which is rare, is waited for, by ``keep_writing``.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import struct
import sys
from collections import Counter, deque
from typing import TYPE_CHECKING, TypeAlias

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

Address: TypeAlias = "tuple[str, int] | tuple[str, int, int, int]"
"""What ``recvfrom`` gives: host and port, for IPv6 also flow information and scope."""

Path: TypeAlias = "tuple[int, Address]"
"""The index of our socket, and the peer's address on it."""

RECEIVE_BUFFER_SIZE = 4 * 1024 * 1024
"""Bytes asked of the kernel for each socket. A small datagram takes about 768 bytes there, so this
holds some 5,000: what a fleet sends when the power comes back, while a handshake is computed. Linux
grants at most ``net.core.rmem_max``, silently; :attr:`UdpSocket.receive_buffer` tells what was given."""

MAX_DATAGRAM_SIZE = 65_535
"""Bytes; the largest UDP payload there is. Asking ``recvfrom`` for less would not be faster."""

MAX_UNSENT = 1_024
"""Datagrams kept per socket while the kernel's send buffer is full. Older would be stale; what does
not fit is dropped and counted, and a handshake repeats it."""

_CLOSED = "the UDP socket was closed"
_CLOSED_ERRNOS = frozenset({errno.EBADF, errno.ENOTSOCK})
_EXHAUSTED_ERRNOS = frozenset({errno.ENOBUFS, errno.ENOMEM, errno.ENFILE, errno.EMFILE})
_WORTH_RETRYING = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.ENODEV, socket.EAI_AGAIN})
_SO_MEMINFO = 55
"""Linux socket option: nine 32-bit counters, the last of which is the datagrams dropped for lack of buffer."""
_MEMINFO = struct.Struct("=9I")


def errno_name(code: int | None) -> str:
    """``"ECONNREFUSED"`` for the number; the number itself where it has no name."""
    return errno.errorcode.get(code or 0, str(code))


def address_text(address: Address) -> str:
    """``192.0.2.1:5684`` or ``[2001:db8::1]:5684``; an IPv4-mapped IPv6 address is shown as IPv4."""
    host, port = address[0], address[1]
    if ":" not in host:
        return f"{host}:{port}"
    if host.startswith("::ffff:") and "." in host:
        return f"{host[7:]}:{port}"
    if len(address) == 4 and address[3] and "%" not in host:
        return f"[{host}%{address[3]}]:{port}"
    return f"[{host}]:{port}"


def path_text(path: Path) -> str:
    """The peer's address of ``path`` as :func:`address_text`."""
    return address_text(path[1])


# --- one socket -------------------------------------------------------------------------------------


class UdpSocket:
    """A bound, non-blocking UDP socket, owned: ``close`` it or use it in a ``with`` statement."""

    __slots__ = (
        "_blocked",
        "_can_write",
        "_socket",
        "_unsent",
        "exhausted",
        "on_send_failed",
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
        self._unsent: deque[tuple[bytes, Address]] = deque()
        self._blocked = trio.Event()
        self._can_write = trio.Event()
        self.exhausted = False
        """Set by ``drain`` when the kernel is short of memory: pause before the next one."""
        self.send_errors: Counter[str] = Counter()
        """Datagrams that could not be sent, by errno name; ``EAGAIN`` = the queue was full as well."""
        self.receive_errors: Counter[str] = Counter()
        """Errors that ``recvfrom`` reported, by errno name; no datagram is lost by them."""
        self.on_send_failed: Callable[[Address, int], None] | None = None
        """Called with peer and errno for each datagram that could not be sent."""

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

    @property
    def receive_buffer(self) -> int:
        """Bytes that the kernel granted for received datagrams (on Linux half of what it reports)."""
        size = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        return size // 2 if sys.platform == "linux" else size

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
        datagrams: list[tuple[bytes, Address]] = []
        recvfrom = self._socket.recvfrom
        for _ in range(limit):
            try:
                datagrams.append(recvfrom(MAX_DATAGRAM_SIZE))
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _CLOSED_ERRNOS:
                    raise trio.ClosedResourceError(_CLOSED) from None
                self.receive_errors[errno_name(error.errno)] += 1
                if error.errno in _EXHAUSTED_ERRNOS:
                    self.exhausted = True
                    break
        return datagrams

    def send(self, data: bytes, address: Address) -> bool:
        """Send, or keep until there is room; ``False`` = dropped and counted. Never raises ``OSError``."""
        if not self._unsent:
            try:
                self._socket.sendto(data, address)
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
                self._socket.sendto(data, address)
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


# --- binding ----------------------------------------------------------------------------------------


class ListenError(OSError):
    """A socket could not be bound. ``str`` names the setting, the trouble and the remedy.

    ``key`` is the setting to look at (``"listen.address"`` or ``"listen.port"``); ``errno`` may be ``None``.
    """

    def __init__(self, key: str, message: str, code: int | None = None) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key
        self.errno = code

    def __str__(self) -> str:
        return str(self.args[0])


def _positive(_: RetryPolicy, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{attribute.name}: {value!r} is not a positive number of seconds")


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """How long to go on trying to bind. The n-th wait is ``min(initial_delay * 2**n, maximum_delay)``.

    Only what may pass by itself is tried again: a port in use, an address that is not there yet, a
    name server that does not answer yet.
    """

    total: float = attrs.field(default=math.inf, validator=attrs.validators.ge(0))
    """Seconds after the first failure in which attempts are made; infinite = until cancelled, for a
    service that must come up with its network. The last wait is cut short to end then."""
    initial_delay: float = attrs.field(default=0.5, validator=_positive)
    """Seconds. A predecessor that is just stopping needs about that long."""
    maximum_delay: float = attrs.field(default=30.0, validator=_positive)
    """Seconds. An interface that comes up late is then served within half a minute."""

    def delay(self, failures: int, elapsed: float) -> float | None:
        """Seconds to wait after the ``failures``-th failure (from 1), ``elapsed`` s after the first.

        ``None`` = give up.
        """
        if elapsed >= self.total:
            return None
        # The exponent is capped because 2.0**1024 overflows, after some 8 hours of trying.
        wait = min(self.initial_delay * 2.0 ** min(failures - 1, 64), self.maximum_delay)
        return min(wait, self.total - elapsed)


async def bind_udp(
    address: str | None,
    port: int,
    *,
    receive_buffer: int = RECEIVE_BUFFER_SIZE,
    retry: RetryPolicy | None = None,
    on_retry: Callable[[ListenError, float], None] | None = None,
) -> list[UdpSocket]:
    """Bind to every address that ``address`` stands for; all or none.

    ``address`` is an IPv4 or IPv6 address or a name. ``None`` and ``"::"`` are all interfaces, IPv4
    and IPv6 in one socket (``None`` falls back to IPv4 where the kernel has no IPv6). ``port`` 0 lets
    the kernel choose; :attr:`UdpSocket.port` tells what it chose.

    ``receive_buffer`` is what is asked of the kernel, in bytes.

    Raises :class:`ListenError`. With ``retry`` it waits and tries again, on trio's clock, calling
    ``on_retry(error, seconds)`` before each wait.
    """
    if not 0 <= port <= 65_535:
        raise ListenError("listen.port", f"{port} is not within 0 to 65535")
    failures = 0
    first_failure = 0.0
    while True:
        try:
            return await _bind_all(address, port, receive_buffer)
        except ListenError as error:
            if retry is None or error.errno not in _WORTH_RETRYING:
                raise
            failures += 1
            now = trio.current_time()
            if failures == 1:
                first_failure = now
            delay = retry.delay(failures, now - first_failure)
            if delay is None:
                raise
            if on_retry is not None:
                on_retry(error, delay)
        await trio.sleep(delay)


async def _bind_all(address: str | None, port: int, receive_buffer: int) -> list[UdpSocket]:
    if address is None:
        try:
            return [_bind_one(socket.AF_INET6, ("::", port, 0, 0), receive_buffer)]
        except ListenError as error:
            if error.errno not in _NO_IPV6:
                raise
        address = "0.0.0.0"  # noqa: S104 - asked for by None
    try:
        found = await trio.socket.getaddrinfo(
            address, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else "not a host name"
        code = error.errno if isinstance(error, socket.gaierror) else None
        raise ListenError("listen.address", f"{address!r} cannot be resolved: {reason}", code) from error
    with contextlib.ExitStack() as opened:
        sockets: list[UdpSocket] = []
        for family, _, _, _, (host, *rest) in found:
            # A name with several addresses gets one port: the one that is announced.
            at = sockets[0].port if sockets else port
            target: Address = (str(host), at) if len(rest) < 3 else (str(host), at, 0, int(rest[2]))
            sockets.append(opened.enter_context(_bind_one(family, target, receive_buffer)))
        opened.pop_all()
    return sockets


_NO_IPV6 = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})


def _bind_one(family: int, target: Address, receive_buffer: int) -> UdpSocket:
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM)
    except OSError as error:
        raise _listen_error(target, error) from error
    try:
        if family == socket.AF_INET6:
            # "::" serves IPv4 as well; any other IPv6 address leaves IPv4 to a socket of its own.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, target[0] != "::")
        # SO_REUSEADDR is left alone: for UDP it lets a second program take the port silently.
        with contextlib.suppress(OSError):  # a smaller buffer serves as well, only less through a burst
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.bind(target)
        return UdpSocket(sock)
    except OSError as error:
        sock.close()
        raise _listen_error(target, error) from error


def _listen_error(target: Address, error: OSError) -> ListenError:
    where, code = address_text(target), error.errno
    if code == errno.EADDRINUSE:
        return ListenError(
            "listen.port",
            f"{where} is already in use; stop the program that holds it "
            f"(`ss -ulpn sport = :{target[1]}` names it) or choose another port",
            code,
        )
    if code == errno.EADDRNOTAVAIL:
        return ListenError(
            "listen.address",
            f"{target[0]} is not an address of this machine; correct it, or use listen.retry if its "
            "interface comes up later",
            code,
        )
    if code in (errno.EACCES, errno.EPERM):
        return ListenError(
            "listen.port",
            f"no permission to bind {where}; choose a port above 1023 or grant CAP_NET_BIND_SERVICE",
            code,
        )
    if code in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT):
        return ListenError(
            "listen.address", f"{target[0]}: this machine has no IPv6; use an IPv4 address", code
        )
    return ListenError("listen.address", f"{where}: {os.strerror(code or 0)}", code)
