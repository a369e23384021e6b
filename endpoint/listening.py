"""The sockets of the service: those that were handed down, and those that are bound for want of them.

A handed down socket was bound by the service manager (socket activation), or by an earlier process of this
service, which had the manager keep it. Datagrams that came while no process ran wait in it. Both are used
where ``listen.address`` and ``listen.port`` (or ``listen.also``) name what they are bound to. If a manager's socket is bound to
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
from endpoint.udp import ListenError, RetryPolicy, bind_udp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from endpoint.systemd import Descriptor
    from endpoint.tables.listen import Listen

STORED_SOCKET = "sansdtls-udp"
"""The name under which the manager keeps the sockets that we bound."""

MAX_REMEMBERED = 128
"""Addresses that are remembered with their index. No configuration has so many; beyond, the first are forgotten."""

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
    indices: tuple[int, ...] = attrs.field(
        default=attrs.Factory(lambda self: tuple(range(len(self.sockets))), takes_self=True)
    )
    """Of ``sockets``: by which paths name them."""
    addresses: tuple[str, ...] = attrs.field(
        default=attrs.Factory(lambda self: tuple(udp.local_text for udp in self.sockets), takes_self=True)
    )
    """By index, for the next process, also of those that are there no more: their associations may be saved somewhere."""


async def listen(
    config: Listen,
    handed: Sequence[HandedSocket] = (),
    *,
    before: Sequence[str] = (),
    on_retry: Callable[[ListenError, float], None] | None = None,
) -> Listeners:
    """Every socket that ``config`` asks for, out of ``handed`` or bound; all of ``handed`` are used or closed.

    ``before``: the addresses that processes before served, as :attr:`Listeners.addresses`. Paths name
    sockets by index, so each stays where it was. Raises :class:`ListenError`, :class:`SupervisionError`.
    """
    with contextlib.ExitStack() as opened:
        for one in handed:
            opened.enter_context(one.udp)
        sockets: list[UdpSocket] = []
        for number, place in enumerate(config.places):
            key = "listen.also" if number else None
            # One that is there already is found again where a second name leads to its address. Any port is another one.
            there = [one.udp for one in handed if one.udp not in sockets] + (sockets if place[1] else [])
            for udp in await _bind(config, place, there, key=key, on_retry=on_retry):
                if udp in sockets:
                    raise ListenError(
                        key or "listen.address",
                        f"{address_text(place)} is {udp.local_text}, which is there already; remedy: leave it out",
                    )
                sockets.append(opened.enter_context(udp))
        unused = [one for one in handed if one.udp not in sockets]
        for one in unused:
            if not one.ours:
                raise _contradiction(one, config)
        given_up = tuple(one.udp.local_text for one in unused)
        for one in unused:
            one.udp.close()
        opened.pop_all()
    from_manager = [one.udp for one in handed if not one.ours]
    by_index = places(sockets, before)
    return Listeners(
        sockets=tuple(by_index.values()),
        bound_here=tuple(udp for udp in by_index.values() if udp not in from_manager),
        given_up=given_up,
        indices=tuple(by_index),
        addresses=tuple(
            by_index[index].local_text if index in by_index else before[index]
            for index in range(max(len(before), 1 + max(by_index, default=-1)))
        ),
    )


async def _bind(
    config: Listen,
    place: tuple[str, int],
    there: Sequence[UdpSocket],
    *,
    key: str | None,
    on_retry: Callable[[ListenError, float], None] | None,
) -> list[UdpSocket]:
    """The sockets of one place; errors are about ``key``, where that is not what they are about anyhow."""

    def note(error: ListenError, seconds: float) -> None:
        if on_retry is not None:
            on_retry(error.of(key or error.key), seconds)

    try:
        return await bind_udp(
            *place,
            receive_buffer=config.receive_buffer,
            retry=RetryPolicy(total=config.retry) if config.retry else None,
            on_retry=note,
            handed=there,
            path_mtu_discovery=config.path_mtu_discovery,
        )
    except ListenError as error:
        if key is None:
            raise
        raise error.of(key) from error


def _contradiction(one: HandedSocket, config: Listen) -> SupervisionError:
    keys = "listen.address, listen.port and listen.also" if config.also else "listen.address and listen.port"
    told = ", ".join(address_text(place) for place in config.places)
    return SupervisionError(
        f"LISTEN_FDS: {one.descriptor} is bound to {one.udp.local_text}, but {keys} say {told}; "
        "remedy: make them agree with ListenDatagram= in the socket unit"
    )


def places(sockets: Iterable[UdpSocket], before: Sequence[str]) -> dict[int, UdpSocket]:
    """``sockets`` by index, in its order: each at the one that its address has in ``before``.

    The place of an address that is gone is taken by a new one with the same host or the same port, which most likely is
    the same listener, reconfigured. Any other stays empty: a device must not be answered from where it never sent to.
    """
    rest = list(sockets)
    taken: dict[int, UdpSocket] = {}
    for same in (_same_address, _same_host, _same_port):
        for index, text in enumerate(before):
            found = (
                None if index in taken else next((udp for udp in rest if same(udp.local_text, text)), None)
            )
            if found is not None:
                rest.remove(found)
                taken[index] = found
    # Where an address was changed very often the places of the first ones are used again.
    free = (
        [index for index in range(len(before)) if index not in taken] if len(before) > MAX_REMEMBERED else []
    )
    for udp in rest:
        taken[free.pop(0) if free else max(len(before), 1 + max(taken, default=-1))] = udp
    return dict(sorted(taken.items()))


def _same_address(one: str, other: str) -> bool:
    return one == other


def _same_host(one: str, other: str) -> bool:
    return one.rpartition(":")[0] == other.rpartition(":")[0]


def _same_port(one: str, other: str) -> bool:
    return one.rpartition(":")[2] == other.rpartition(":")[2] and ("[" in one) == ("[" in other)


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
