"""The sockets of the service: those that were handed down, and those that are bound for want of them.

A handed down socket was bound by the service manager (socket activation), or by an earlier process of this
service, which had the manager keep it. Datagrams that came while no process ran wait in it. Both are used
where ``listen.address`` and ``listen.port`` name what they are bound to. If a manager's socket is bound to
something else, configuration and socket unit contradict each other, and the service does not start; if one
that we bound is, then the configuration has been changed since, and it is closed.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import attrs

from endpoint.addresses import address_text
from endpoint.sockets import UdpSocket
from endpoint.systemd import SupervisionError
from endpoint.udp import RetryPolicy, bind_udp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from endpoint.systemd import Descriptor
    from endpoint.tables.listen import Listen
    from endpoint.udp import ListenError

STORED_SOCKET = "sansdtls-udp"
"""The name under which the manager keeps the sockets that we bound."""

_KINDS = {
    socket.SOCK_STREAM: "a stream socket",
    socket.SOCK_SEQPACKET: "a sequenced-packet socket",
    socket.SOCK_RAW: "a raw socket",
}


@attrs.frozen
class HandedSocket:
    """A UDP socket, and where it comes from."""

    udp: UdpSocket
    descriptor: Descriptor

    @property
    def ours(self) -> bool:
        """Whether an earlier process of this service bound it."""
        return self.descriptor.name == STORED_SOCKET


def adopt(descriptor: Descriptor) -> HandedSocket:
    """The UDP socket in ``descriptor``; :class:`SupervisionError` if it is something else, and then it is closed."""
    try:
        sock = socket.socket(fileno=descriptor.number)
    except OSError:
        descriptor.close()
        raise _no_udp_socket(descriptor, "no socket") from None
    what = ""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        what = "a socket of another family"
    elif sock.type != socket.SOCK_DGRAM:
        what = _KINDS.get(sock.type, "a socket of another type")
    elif _has_peer(sock):
        what = "connected to one peer"
    elif sock.getsockname()[1] == 0:
        what = "not bound to a port"
    if what:
        sock.close()
        raise _no_udp_socket(descriptor, what)
    return HandedSocket(UdpSocket(sock), descriptor)


def _no_udp_socket(descriptor: Descriptor, what: str) -> SupervisionError:
    return SupervisionError(
        f"LISTEN_FDS: {descriptor} is {what}, and a bound UDP socket is needed; remedy: ListenDatagram= in the socket unit"
    )


def _has_peer(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


@attrs.frozen(kw_only=True)
class Listeners:
    """The sockets that the service serves, in the order of their paths' indices."""

    sockets: tuple[UdpSocket, ...]
    bound_here: tuple[UdpSocket, ...]
    """Those that no service manager bound: it may keep them for the next process."""
    given_up: tuple[str, ...] = ()
    """Addresses of those that earlier processes bound and the configuration names no longer; closed."""


async def listen(
    config: Listen,
    handed: Sequence[HandedSocket] = (),
    *,
    before: Sequence[str] = (),
    on_retry: Callable[[ListenError, float], None] | None = None,
) -> Listeners:
    """Every socket that ``config`` asks for, out of ``handed`` or bound; all of ``handed`` are used or closed.

    ``before``: the addresses that the process before served, as :attr:`UdpSocket.local_text`, in order. Paths name
    sockets by index, so each stays where it was. Raises :class:`ListenError`, :class:`SupervisionError`.
    """
    with contextlib.ExitStack() as opened:
        for one in handed:
            opened.enter_context(one.udp)
        sockets = await bind_udp(
            config.address,
            config.port,
            receive_buffer=config.receive_buffer,
            retry=RetryPolicy(total=config.retry) if config.retry else None,
            on_retry=on_retry,
            handed=[one.udp for one in handed],
        )
        for udp in sockets:
            opened.enter_context(udp)
        unused = [one for one in handed if one.udp not in sockets]
        for one in unused:
            if not one.ours:
                told = address_text((config.address, config.port))
                raise SupervisionError(
                    f"LISTEN_FDS: {one.descriptor} is bound to {one.udp.local_text}, but listen.address and "
                    f"listen.port say {told}; remedy: make them agree with ListenDatagram= in the socket unit"
                )
        given_up = tuple(one.udp.local_text for one in unused)
        for one in unused:
            one.udp.close()
        opened.pop_all()
    from_manager = [one.udp for one in handed if not one.ours]
    return Listeners(
        sockets=in_former_order(sockets, before),
        bound_here=tuple(udp for udp in sockets if udp not in from_manager),
        given_up=given_up,
    )


def in_former_order(sockets: Iterable[UdpSocket], before: Sequence[str]) -> tuple[UdpSocket, ...]:
    """``sockets``, each at the index at which its address stands in ``before``, as far as there are no gaps."""
    rest = list(sockets)
    places: list[UdpSocket | None] = []
    for text in before:
        known = next((udp for udp in rest if udp.local_text == text), None)
        if known is not None:
            rest.remove(known)
        places.append(known)
    # The place of one that is gone is taken by a new one: most likely it is the same, with another port.
    placed = [udp if udp is not None else rest.pop(0) if rest else None for udp in places]
    return tuple(udp for udp in (*placed, *rest) if udp is not None)


def inherited_sockets(descriptors: Iterable[Descriptor]) -> tuple[HandedSocket, ...]:
    """Adopt all ``descriptors``; if one cannot be, none is, and all are closed."""
    left = list(descriptors)
    adopted: list[HandedSocket] = []
    try:
        while left:
            adopted.append(adopt(left[0]))
            del left[0]
    except SupervisionError:
        for one in adopted:
            one.udp.close()
        for descriptor in left[1:]:
            descriptor.close()
        raise
    return tuple(adopted)
