"""Listening on UDP: binding, with errors an operator can act on, at once or as soon as it is possible."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
from typing import TYPE_CHECKING

import attrs
import trio

from endpoint.addresses import Address, Path, address_text, path_text
from endpoint.sockets import UdpSocket

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "RECEIVE_BUFFER_SIZE",
    "Address",
    "ListenError",
    "Path",
    "RetryPolicy",
    "UdpSocket",
    "address_text",
    "bind_udp",
    "path_text",
]

RECEIVE_BUFFER_SIZE = 4 * 1024 * 1024
"""Bytes asked of the kernel for each socket. A small datagram takes about 768 bytes there, so this
holds some 5,000: what a fleet sends when the power comes back, while a handshake is computed. Linux
grants at most ``net.core.rmem_max``, silently; :attr:`UdpSocket.receive_buffer` tells what was given."""

_WORTH_RETRYING = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.ENODEV, socket.EAI_AGAIN})
_NO_IPV6 = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})


class ListenError(OSError):
    """A socket could not be bound. ``str`` names the setting, the trouble and the remedy.

    ``key`` is the setting to look at (``"listen.address"`` or ``"listen.port"``); ``errno`` may be ``None``.
    """

    def __init__(self, key: str, message: str, code: int | None = None) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key
        self.errno = code
        self._message = message

    def __str__(self) -> str:
        return str(self.args[0])

    def of(self, key: str) -> ListenError:
        """The same about another setting."""
        return ListenError(key, self._message, self.errno)


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
    handed: Sequence[UdpSocket] = (),
    path_mtu_discovery: bool = True,
) -> list[UdpSocket]:
    """Bind to every address that ``address`` stands for; all or none.

    ``handed`` are sockets that are bound already: one that is bound to such an address is used instead of a
    new one. Those that are not used, or not yet when this raises, stay the caller's.

    ``address`` is an IPv4 or IPv6 address or a name. ``None`` and ``"::"`` are all interfaces, IPv4
    and IPv6 in one socket (``None`` falls back to IPv4 where the kernel has no IPv6). ``port`` 0 lets
    the kernel choose; :attr:`UdpSocket.port` tells what it chose.

    ``receive_buffer`` is what is asked of the kernel, in bytes; ``path_mtu_discovery`` is
    :meth:`UdpSocket.discover_path_mtu`.

    Raises :class:`ListenError`. With ``retry`` it waits and tries again, on trio's clock, calling
    ``on_retry(error, seconds)`` before each wait.
    """
    if not 0 <= port <= 65_535:
        raise ListenError("listen.port", f"{port} is not within 0 to 65535")
    failures = 0
    first_failure = 0.0
    while True:
        try:
            bound = await _bind_all(address, port, receive_buffer, handed)
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
        else:
            for udp in bound:
                udp.discover_path_mtu(path_mtu_discovery)
            return bound
        await trio.sleep(delay)


async def _bind_all(
    address: str | None, port: int, receive_buffer: int, handed: Sequence[UdpSocket]
) -> list[UdpSocket]:
    if address is None:
        try:
            return [_take_or_bind(socket.AF_INET6, ("::", port, 0, 0), receive_buffer, handed, None)]
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
            sockets.append(_take_or_bind(family, target, receive_buffer, handed, opened))
        opened.pop_all()
    return sockets


def _take_or_bind(
    family: int,
    target: Address,
    receive_buffer: int,
    handed: Sequence[UdpSocket],
    opened: contextlib.ExitStack | None,
) -> UdpSocket:
    """One of ``handed``, or a new one, which ``opened`` closes if another address fails."""
    for udp in handed:
        if udp.is_bound_to(target):
            udp.ask_for_buffer(receive_buffer)
            return udp
    bound = _bind_one(family, target, receive_buffer)
    return bound if opened is None else opened.enter_context(bound)


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
        sock.bind(target)
        udp = UdpSocket(sock)
    except OSError as error:
        sock.close()
        raise _listen_error(target, error) from error
    udp.ask_for_buffer(receive_buffer)
    return udp


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
