"""Addresses: how a path names a peer, how people read it, and which of our addresses answers.

A socket on all interfaces has several addresses. Asked at one, it must answer from that one, or a
client that looks at the source (every connected socket, every NAT and firewall) never sees the
answer; and the kernel, left alone, takes the address of the route back. So such a socket asks for each
datagram's destination (RFC 3542 §6.1 IPV6_PKTINFO, and Linux's IP_PKTINFO), which becomes
the last member of the peer's :data:`Address`, in the form in which it is handed back with the answer.
"""

from __future__ import annotations

import socket
import struct
import sys
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

Source: TypeAlias = "tuple[tuple[int, int, bytes], ...]"
"""Ancillary data that make a datagram leave from one of our addresses; ``()`` = the kernel chooses."""

Address: TypeAlias = "tuple[Any, ...]"
"""A peer, as hashable value: host and port, for IPv6 also flow information and scope, as ``recvfrom``
gives them; then, on a socket on all interfaces, the :data:`Source` to answer from."""

Path: TypeAlias = "tuple[int, Address]"
"""The index of our socket, and the peer's address on it."""

ANCILLARY_SIZE = 64
"""Bytes for ancillary data: room for either of the two structures below with its header."""

_IP_PKTINFO = 8
"""Linux's number, which Python names from 3.14 on only."""
_IN_PKTINFO = struct.Struct("=I4s4s")
_IN6_PKTINFO = struct.Struct("=16sI")
_ALL_INTERFACES = ("0.0.0.0", "::")  # noqa: S104 - recognised, not bound


def address_text(address: Address) -> str:
    """``192.0.2.1:5684`` or ``[2001:db8::1]:5684``; an IPv4-mapped IPv6 address is shown as IPv4."""
    host, port = address[0], address[1]
    if ":" not in host:
        return f"{host}:{port}"
    if host.startswith("::ffff:") and "." in host:
        return f"{host[7:]}:{port}"
    if len(address) >= 4 and address[3] and "%" not in host:
        return f"[{host}%{address[3]}]:{port}"
    return f"[{host}]:{port}"


def path_text(path: Path) -> str:
    """The peer's address of ``path`` as :func:`address_text`."""
    return address_text(path[1])


def misfit(address: object, family: int, *, has_source: bool) -> str | None:
    """Why ``address`` is none that a socket of ``family`` could have received from; ``None`` = it could be.

    ``has_source`` says whether it is on all interfaces. For addresses that were not received but read.
    """
    if not isinstance(address, tuple):
        return "its address is no address"
    members, source = (address[:-1], address[-1:]) if has_source else (address, ((),))
    if len(members) != (4 if family == socket.AF_INET6 else 2):
        return "its address is one of another kind of socket"
    host, port = members[0], members[1]
    try:
        version = ip_address(host).version if isinstance(host, str) else 0
    except ValueError:
        version = 0
    if version != (6 if family == socket.AF_INET6 else 4):
        return f"{host!r} is no address for a socket with IPv{6 if family == socket.AF_INET6 else 4}"
    if not all(type(number) is int and number >= 0 for number in members[1:]) or not 1 <= port <= 65_535:
        return f"port, flow or scope of {members!r} are not possible"
    if not _is_source(source[0], family):
        return "the address of ours that it talked to is no address"
    return None


def _is_source(source: object, family: int) -> bool:
    if source == ():
        return True
    level, kind, size = (
        (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _IN6_PKTINFO.size)
        if family == socket.AF_INET6
        else (socket.IPPROTO_IP, _IP_PKTINFO, _IN_PKTINFO.size)
    )
    return (
        isinstance(source, tuple)
        and len(source) == 1
        and isinstance(source[0], tuple)
        and len(source[0]) == 3
        and source[0][:2] == (level, kind)
        and isinstance(source[0][2], bytes)
        and len(source[0][2]) == size
    )


def ask_for_destinations(sock: socket.socket) -> bool:
    """Have ``sock`` tell the destination of each datagram, if it has several addresses and can."""
    if sys.platform != "linux" or sock.getsockname()[0] not in _ALL_INTERFACES:
        return False
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    return True


def source_of(ancillary: Iterable[tuple[int, int, bytes]]) -> Source:
    """The source to answer from, out of the ancillary data of what was received."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            # ipi_spec_dst is ours even where the destination was a broadcast address. The interface is
            # left to the routing table, which knows better than where the question came in.
            _, local, _ = _IN_PKTINFO.unpack(data)
            return ((level, kind, _IN_PKTINFO.pack(0, local, bytes(4))),)
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            local, interface = _IN6_PKTINFO.unpack(data)
            if local[0] == 0xFF:
                return ()  # multicast: nothing can be sent from it
            link_local = local[0] == 0xFE and local[1] & 0xC0 == 0x80
            return ((level, kind, _IN6_PKTINFO.pack(local, interface if link_local else 0)),)
    return ()


def source_host(source: Source) -> str | None:
    """The address in ``source`` as text."""
    for level, _, data in source:
        if level == socket.IPPROTO_IP:
            return socket.inet_ntop(socket.AF_INET, _IN_PKTINFO.unpack(data)[1])
        return socket.inet_ntop(socket.AF_INET6, _IN6_PKTINFO.unpack(data)[0])
    return None
