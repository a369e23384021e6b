r"""The PROXY protocol, version 2, for datagrams: who a device is and where, in front of what it sent.

::

    \r\n\r\n\0\r\nQUIT\n   signature, 12 bytes
    0x21                   version 2, command PROXY
    0x12 | 0x22            UDP over IPv4 | over IPv6
    length                 2 bytes: all that follows here
    source, destination    addresses, then ports: the device's, and that of our socket which it talks to
    0x01 ALPN              the protocol that was negotiated, if any
    0x20 SSL               client 0x01 (| 0x02 | 0x04 with a certificate), verify (0 = a certificate was verified, else 1), and in it
         0x21 VERSION      "DTLSv1.2"
    0xE0 IDENTITY          who it is, authenticated: the identity's bytes; missing for a device that showed none
    0xE1 CREDENTIAL        "psk", "certificate", "raw_public_key" or "none"

The last two are of the range that the protocol leaves to applications (§2.2.8). There is no CN: an identity may have
another source than a certificate's subject, and CN says where it is from. There is no CRC-32C: UDP has a checksum of its own.

The receiver must trust this header, so nobody but this program may be able to reach it.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

import attrs

from endpoint.association import CredentialKind

if TYPE_CHECKING:
    from endpoint.association import Association

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
VERSION_AND_PROXY = 0x21
UDP_OVER_IPV4 = 0x12
UDP_OVER_IPV6 = 0x22

ALPN = 0x01
SSL = 0x20
SSL_VERSION = 0x21
IDENTITY = 0xE0
CREDENTIAL = 0xE1

CLIENT_SSL = 0x01
CLIENT_CERTIFICATE = 0x02 | 0x04
"""Over this connection, and at least once over its session."""

_FIXED = struct.Struct("!12sBBH")
_IPV4 = struct.Struct("!4s4sHH")
_IPV6 = struct.Struct("!16s16sHH")
_TLV = struct.Struct("!BH")
_SSL = struct.Struct("!BI")

IpAddress = IPv4Address | IPv6Address
HostAndPort = tuple[IpAddress, int]


@attrs.frozen
class ProxyHeader:
    """Both addresses are of the same version."""

    source: HostAndPort
    destination: HostAndPort
    tlvs: tuple[tuple[int, bytes], ...] = ()
    """Type and value, in their order."""


def encode_header(header: ProxyHeader) -> bytes:
    """The header's bytes; ValueError if it has more than 65,535 of them or addresses of two versions."""
    (source, source_port), (destination, destination_port) = header.source, header.destination
    if source.version != destination.version:
        raise ValueError("addresses of two versions")
    addresses = _IPV4 if source.version == 4 else _IPV6
    body = addresses.pack(source.packed, destination.packed, source_port, destination_port)
    body += _encoded_tlvs(header.tlvs)
    if len(body) > 0xFFFF:
        raise ValueError("too long for a header")
    family = UDP_OVER_IPV4 if source.version == 4 else UDP_OVER_IPV6
    return _FIXED.pack(SIGNATURE, VERSION_AND_PROXY, family, len(body)) + body


def decode_header(datagram: bytes) -> tuple[ProxyHeader, bytes]:
    """The header at the front of ``datagram``, and what comes after it; ValueError if there is none."""
    if len(datagram) < _FIXED.size:
        raise ValueError("too short for a header")
    signature, version_and_command, family, length = _FIXED.unpack_from(datagram)
    body, data = datagram[_FIXED.size : _FIXED.size + length], datagram[_FIXED.size + length :]
    if signature != SIGNATURE or version_and_command != VERSION_AND_PROXY:
        raise ValueError("no header of version 2 with the command PROXY")
    if family not in (UDP_OVER_IPV4, UDP_OVER_IPV6):
        raise ValueError("neither UDP over IPv4 nor over IPv6")
    addresses = _IPV4 if family == UDP_OVER_IPV4 else _IPV6
    if len(body) != length or length < addresses.size:
        raise ValueError("a header that is cut off")
    source, destination, source_port, destination_port = addresses.unpack_from(body)
    return (
        ProxyHeader(
            (ip_address(source), source_port),
            (ip_address(destination), destination_port),
            _decoded_tlvs(body[addresses.size :]),
        ),
        data,
    )


def _encoded_tlvs(tlvs: tuple[tuple[int, bytes], ...]) -> bytes:
    if any(len(value) > 0xFFFF for _, value in tlvs):
        raise ValueError("too long for a header")
    return b"".join(_TLV.pack(kind, len(value)) + value for kind, value in tlvs)


def _decoded_tlvs(data: bytes) -> tuple[tuple[int, bytes], ...]:
    tlvs = []
    while data:
        if len(data) < _TLV.size:
            raise ValueError("a TLV that is cut off")
        kind, length = _TLV.unpack_from(data)
        if len(data) < _TLV.size + length:
            raise ValueError("a TLV that is cut off")
        tlvs.append((kind, data[_TLV.size : _TLV.size + length]))
        data = data[_TLV.size + length :]
    return tuple(tlvs)


def header_for(association: Association) -> bytes:
    """What stands in front of an association's datagrams; ValueError if its identity is too long for that."""
    source, destination = _same_version(_plain(association.path[1]), _plain(association.local_address))
    negotiated = association.connection.negotiated
    with_certificate = association.kind is CredentialKind.CERTIFICATE
    secured = _SSL.pack(
        CLIENT_SSL | (CLIENT_CERTIFICATE if with_certificate else 0), 0 if with_certificate else 1
    )
    tlvs = [
        (SSL, secured + _encoded_tlvs(((SSL_VERSION, b"DTLSv1.2"),))),
        (CREDENTIAL, association.kind.value.encode()),
    ]
    if association.identified:
        tlvs.insert(1, (IDENTITY, association.identity))
    if negotiated is not None and negotiated.alpn_protocol is not None:
        tlvs.insert(0, (ALPN, negotiated.alpn_protocol))
    return encode_header(ProxyHeader(source, destination, tuple(tlvs)))


def _plain(address: tuple[object, ...]) -> HostAndPort:
    """Without zone, and IPv4 where it was only mapped into IPv6."""
    host, port = str(address[0]).partition("%")[0], address[1]
    found = ip_address(host)
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    assert isinstance(port, int)  # noqa: S101 - for the type checker: an address has a port
    return found, port


def _same_version(first: HostAndPort, second: HostAndPort) -> tuple[HostAndPort, HostAndPort]:
    """Both as IPv6 if one is: a socket on all interfaces may not know which of its addresses was asked."""
    if first[0].version == second[0].version:
        return first, second
    return _mapped(first), _mapped(second)


def _mapped(address: HostAndPort) -> HostAndPort:
    host, port = address
    return (IPv6Address(f"::ffff:{host}") if isinstance(host, IPv4Address) else host), port
