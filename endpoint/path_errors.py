"""What the network reports of datagrams that were sent: ICMP messages, and what the kernel knows by itself (RFC 6347 §4.1.1.1).

Asked to (:func:`discover_path_mtu`), Linux sets "don't fragment" and refuses what is larger than the path is known to take.
And it keeps each report in the socket's error queue, with the address that the datagram was for, until it is read
(:func:`read_report`), if :func:`hear_of_errors` asked for that; to a connected socket, which has one peer, it need not. Nothing is lost by that but a bounded part of the receive buffer.

Attacker: sends ICMP messages from anywhere, with anything in them. The kernel takes one in only if it quotes a
datagram from our address and port; whose it was, and what it said, is not checked, so whoever knows both addresses can
forge one. Properties: a report ends nothing and delays nobody's datagrams; an error is counted; a forged "too big" makes datagrams to one
peer smaller, never below what every host must take (:func:`believed`), has a flight repeated three times
at most, and is forgotten when the peer moves. Construction: the kernel's own word, which it has from such messages too, but with its own limits
(``net.ipv4.route.min_pmtu``), is believed as it is. Left out: comparing the part of our datagram that is
quoted; routers are free to quote no more than the addresses.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from endpoint.addresses import Address

_IP_MTU_DISCOVER, _IP_RECVERR = 10, 11
_IPV6_MTU_DISCOVER, _IPV6_RECVERR = 23, 25
_IP_MTU, _IPV6_MTU = 14, 24
_NEVER, _ALWAYS = 0, 2
"""``IP_PMTUDISC_DONT`` and ``IP_PMTUDISC_DO``; the same for IPv6. Linux's numbers, which Python does not name."""
_REPORT = struct.Struct("=IBBBBII")
"""``struct sock_extended_err``: errno, origin, type, code, padding, info (the MTU), data."""
_LOCAL = 1
"""``SO_EE_ORIGIN_LOCAL``: the kernel did not even send it."""
_ROOM = 256
"""Bytes for ancillary data: a report and the address of who sent it take less than 100."""

_HEADERS = {4: 20 + 8, 6: 40 + 8}
"""Bytes of IP and UDP headers, without options."""
SMALLEST_BELIEVED = {4: 576 - _HEADERS[4], 6: 1280 - _HEADERS[6]}
"""Bytes of UDP payload that an ICMP message can bring a path down to. What every host takes (RFC 791 §3.1), and every link
(RFC 8200 §5)."""


@attrs.frozen
class Report:
    """One entry of the error queue."""

    code: int
    """errno."""
    peer: Address | None
    """Where the datagram was for, without our own address."""
    size: int | None
    """Bytes of UDP payload that the path takes; ``None`` = that was not it."""


def discover_path_mtu(sock: socket.socket, *, wanted: bool) -> None:
    """Have the kernel find paths' MTUs, with "don't fragment"; if not ``wanted``, datagrams may be fragmented on their way."""
    _set_everywhere(sock, _IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _ALWAYS if wanted else _NEVER)


def hear_of_errors(sock: socket.socket, *, wanted: bool) -> bool:
    """Have the kernel keep reports for :func:`read_report`, or not; whether it does."""
    return _set_everywhere(sock, _IP_RECVERR, _IPV6_RECVERR, int(wanted)) and wanted


def _set_everywhere(sock: socket.socket, option: int, ipv6_option: int, value: int) -> bool:
    if sys.platform != "linux":
        return False
    try:
        # Also on a socket with IPv6, for those of its peers that have IPv4.
        sock.setsockopt(socket.IPPROTO_IP, option, value)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, ipv6_option, value)
    except OSError:
        return False
    return True


def known_path_size(sock: socket.socket) -> int | None:
    """Bytes of UDP payload that the path of a connected socket takes, as far as the kernel knows."""
    level, option = (
        (socket.IPPROTO_IPV6, _IPV6_MTU) if sock.family == socket.AF_INET6 else (socket.IPPROTO_IP, _IP_MTU)
    )
    try:
        return believed(sock.getsockopt(level, option), sock.getpeername(), local=True)
    except OSError:
        return None


def read_report(sock: socket.socket) -> Report | None:
    """The next report; ``None`` if there is none. Never raises ``OSError``."""
    try:
        _, ancillary, _, peer = sock.recvmsg(0, _ROOM, socket.MSG_ERRQUEUE)
    except OSError:
        return None
    for level, kind, data in ancillary:
        known = (level, kind) in {(socket.IPPROTO_IP, _IP_RECVERR), (socket.IPPROTO_IPV6, _IPV6_RECVERR)}
        if known and len(data) >= _REPORT.size:
            code, origin, _, _, _, info, _ = _REPORT.unpack_from(data)
            at = peer or None
            size = believed(info, at, local=origin == _LOCAL) if code == errno.EMSGSIZE and at else None
            return Report(code, at, size)
    return Report(0, None, None)


def believed(mtu: int, peer: Address, *, local: bool) -> int | None:
    """Bytes of UDP payload to ``peer`` that an MTU leaves; ``None`` for one that says nothing.

    ``local``: the kernel said so, and not an ICMP message.
    """
    host = peer[0]
    version = 6 if ":" in host and not host.startswith("::ffff:") else 4
    size = mtu - _HEADERS[version]
    if size <= 0:
        return None  # routers older than RFC 1191 leave it 0; the kernel guesses, and tells with the next datagram
    return size if local else max(size, SMALLEST_BELIEVED[version])
