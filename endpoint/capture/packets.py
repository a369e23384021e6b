"""UDP datagrams as packets of the Internet: the headers that a capture file needs and a socket does not tell.

Written as they would have been on the wire, with addresses and checksums, but one packet each: what the network would
have fragmented is whole here. Identification and hop limit are made up.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

IpAddress: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"

_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_UDP = struct.Struct("!HHHH")
_PROTOCOL_UDP = 17
_DO_NOT_FRAGMENT = 0x4000
_FRAGMENT = 0x3FFF
"""More fragments, or an offset."""
_HOP_LIMIT = 64
_SKIPPED_HEADERS = frozenset((0, 43, 60))
"""IPv6 extension headers that may stand before UDP: hop-by-hop and destination options, routing."""


class Endpoint(NamedTuple):
    """One end of a UDP datagram."""

    host: IpAddress
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.host.version == 6 else f"{self.host}:{self.port}"


class UdpPacket(NamedTuple):
    """A UDP datagram, and between whom it went."""

    source: Endpoint
    destination: Endpoint
    payload: bytes


def endpoint_of(host: str, port: int) -> Endpoint:
    """From text; an IPv4-mapped address is IPv4, and a scope is left out. Raises ValueError where it is no address."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.version == 6 and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return Endpoint(address, port)


# --- writing ------------------------------------------------------------------------------------------


def encode_packet(packet: UdpPacket) -> bytes:
    """The IP packet. Where the ends are of two families (``::`` as a listener) the unspecified one follows the other."""
    source, destination, payload = packet
    ours, theirs = _alike(source.host, destination.host)
    length = _UDP.size + len(payload)
    if ours.version == 4:
        pseudo = ours.packed + theirs.packed + struct.pack("!HH", _PROTOCOL_UDP, length)
    else:
        pseudo = ours.packed + theirs.packed + struct.pack("!II", length, _PROTOCOL_UDP)
    udp = _UDP.pack(source.port, destination.port, length, 0) + payload
    checksum = _checksum(pseudo + udp) or 0xFFFF  # RFC 768: zero would say that there is none
    udp = _UDP.pack(source.port, destination.port, length, checksum) + payload
    if ours.version == 6:
        return _IPV6.pack(6 << 28, length, _PROTOCOL_UDP, _HOP_LIMIT, ours.packed, theirs.packed) + udp
    fields = (0x45, 0, _IPV4.size + length, 0, _DO_NOT_FRAGMENT, _HOP_LIMIT, _PROTOCOL_UDP)
    header = _IPV4.pack(*fields, 0, ours.packed, theirs.packed)
    return _IPV4.pack(*fields, _checksum(header), ours.packed, theirs.packed) + udp


def _alike(one: IpAddress, other: IpAddress) -> tuple[IpAddress, IpAddress]:
    if one.version == other.version:
        return one, other
    nowhere = ipaddress.IPv4Address(0)  # only "::" can hear of IPv4
    return (one, nowhere) if one.version == 4 else (nowhere, other)


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


# --- reading ------------------------------------------------------------------------------------------


def decode_frame(link_type: int, frame: bytes) -> UdpPacket | None:
    """The UDP datagram in a frame of a capture; ``None`` = something else, or part of one. Checksums are not looked at."""
    network_layer = _LINK_TYPES.get(link_type)
    packet = None if network_layer is None else network_layer(frame)
    if not packet:
        return None
    try:
        return _from_ipv4(packet) if packet[0] >> 4 == 4 else _from_ipv6(packet)
    except (struct.error, IndexError):
        return None


def readable_link_type(link_type: int) -> bool:
    """Whether frames of this LINKTYPE can be taken apart here."""
    return link_type in _LINK_TYPES


def _from_ipv4(packet: bytes) -> UdpPacket | None:
    first, _, total, _, fragment, _, protocol, _, source, destination = _IPV4.unpack_from(packet)
    start = (first & 0x0F) * 4
    if protocol != _PROTOCOL_UDP or fragment & _FRAGMENT or start < _IPV4.size:
        return None
    return _from_udp(
        packet[start:total] if total else packet[start:],
        ipaddress.IPv4Address(source),
        ipaddress.IPv4Address(destination),
    )


def _from_ipv6(packet: bytes) -> UdpPacket | None:
    first, length, following, _, source, destination = _IPV6.unpack_from(packet)
    if first >> 28 != 6:
        return None
    rest = packet[_IPV6.size : _IPV6.size + length]
    while following in _SKIPPED_HEADERS:
        following, rest = rest[0], rest[(rest[1] + 1) * 8 :]
    if following != _PROTOCOL_UDP:
        return None
    return _from_udp(rest, ipaddress.IPv6Address(source), ipaddress.IPv6Address(destination))


def _from_udp(data: bytes, source: IpAddress, destination: IpAddress) -> UdpPacket | None:
    source_port, destination_port, length, _ = _UDP.unpack_from(data)
    if not _UDP.size <= length <= len(data):
        return None  # cut off by the capture's own limit
    payload = data[_UDP.size : length]
    return UdpPacket(Endpoint(source, source_port), Endpoint(destination, destination_port), payload)


def _after_ethernet(frame: bytes) -> bytes | None:
    offset = 12
    while frame[offset : offset + 2] in (b"\x81\x00", b"\x88\xa8"):  # VLAN tags, IEEE 802.1Q
        offset += 4
    return frame[offset + 2 :] if frame[offset : offset + 2] in (b"\x08\x00", b"\x86\xdd") else None


def _behind(length: int) -> Callable[[bytes], bytes]:
    return lambda frame: frame[length:]


_LINK_TYPES: dict[int, Callable[[bytes], bytes | None]] = {
    # LINKTYPE_ numbers of the pcap file format: where in a frame the IP packet begins.
    0: _behind(4),  # NULL, BSD loopback
    1: _after_ethernet,  # ETHERNET
    101: _behind(0),  # RAW
    113: _behind(16),  # LINUX_SLL, of the interface "any"
    228: _behind(0),  # IPV4
    229: _behind(0),  # IPV6
    276: _behind(20),  # LINUX_SLL2
}
