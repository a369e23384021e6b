"""The PROXY header: both ways, and read by a second reading of the protocol's text that shares no code with ours."""

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endpoint.association import CredentialKind
from endpoint.forward.proxy import (
    ProxyHeader,
    decode_header,
    encode_header,
    header_for,
)
from tests.program.sinks import device

PORTS = st.integers(0, 65_535)
TLVS = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=40)), max_size=6).map(tuple)


@st.composite
def headers(draw):
    addresses = st.ip_addresses(v=draw(st.sampled_from([4, 6])))
    ends = st.tuples(addresses, PORTS)
    return ProxyHeader(draw(ends), draw(ends), draw(TLVS))


@given(headers(), st.binary())
def test_what_is_encoded_is_decoded_again(header, data):
    assert decode_header(encode_header(header) + data) == (header, data)


@st.composite
def cut_headers(draw):
    whole = encode_header(draw(headers()))
    return whole[: draw(st.integers(0, len(whole)))]


@given(st.binary() | cut_headers())
def test_anything_else_is_a_value_error_and_nothing_worse(datagram):
    try:
        header, data = decode_header(datagram)
    except ValueError:
        return
    assert encode_header(header) + data == datagram


def read(datagram):
    """As a server would that was written from the text alone, byte by byte."""
    assert datagram[:12].hex() == "0d0a0d0a000d0a515549540a"
    assert datagram[12] == 0x21
    families = {0x12: (socket.AF_INET, 4), 0x22: (socket.AF_INET6, 16)}
    family, size = families[datagram[13]]
    length = datagram[14] * 256 + datagram[15]
    block, rest = datagram[16 : 16 + length], datagram[16 + length :]
    source = socket.inet_ntop(family, block[:size])
    destination = socket.inet_ntop(family, block[size : 2 * size])
    ports = [int.from_bytes(block[at : at + 2]) for at in (2 * size, 2 * size + 2)]
    return (source, ports[0]), (destination, ports[1]), vectors(block[2 * size + 4 :]), rest


def vectors(block):
    found = {}
    while block:
        size = block[1] * 256 + block[2]
        found[block[0]] = block[3 : 3 + size]
        block = block[3 + size :]
    return found


def test_it_names_device_and_listener_identity_and_protocol():
    association = device(b"meter-17\xff", alpn=b"coap")
    source, destination, found, rest = read(header_for(association) + b"data")
    assert (source, destination, rest) == (("192.0.2.7", 40000), ("192.0.2.1", 5684), b"data")
    assert found[0xE0] == b"meter-17\xff"
    assert found[0xE1] == b"psk"
    assert found[0x01] == b"coap"
    client, verify, more = found[0x20][0], found[0x20][1:5], vectors(found[0x20][5:])
    assert (client, int.from_bytes(verify), more) == (1, 1, {0x21: b"DTLSv1.2"})


def test_a_certificate_that_was_verified_shows_in_the_ssl_vector():
    _, _, found, _ = read(header_for(device(kind=CredentialKind.CERTIFICATE)))
    assert (found[0x20][0], found[0x20][1:5], found[0xE1]) == (7, bytes(4), b"certificate")
    assert 0x01 not in found


def test_who_showed_no_identity_has_none():
    _, _, found, _ = read(header_for(device(b"", kind=CredentialKind.NONE)))
    assert 0xE0 not in found
    assert found[0xE1] == b"none"


@pytest.mark.parametrize(
    ("device_at", "asked", "shown"),
    [
        (("2001:db8::7", 4, 0, 0), ("2001:db8::1", 5), ("2001:db8::7", "2001:db8::1")),
        (("::ffff:192.0.2.7", 4, 0, 0), ("::ffff:192.0.2.1", 5), ("192.0.2.7", "192.0.2.1")),
        # All that is known of the listener is that it is on all interfaces.
        (("::ffff:192.0.2.7", 4, 0, 0), ("::", 5), ("::ffff:192.0.2.7", "::")),
        (("fe80::7%eth0", 4, 0, 2), ("fe80::1%2", 5), ("fe80::7", "fe80::1")),
    ],
)
def test_addresses_of_a_socket_for_both_versions(device_at, asked, shown):
    association = device()
    association.path, association.local_address = (0, device_at), asked
    source, destination, _, _ = read(header_for(association))
    assert (source, destination) == ((shown[0], 4), (shown[1], 5))


def test_what_does_not_fit_is_refused():
    end = (ipaddress.ip_address("192.0.2.1"), 1)
    with pytest.raises(ValueError, match="too long"):
        header_for(device(bytes(65_500)))
    with pytest.raises(ValueError, match="too long"):
        encode_header(ProxyHeader(end, end, ((1, bytes(65_536)),)))
    with pytest.raises(ValueError, match="two versions"):
        encode_header(ProxyHeader(end, (ipaddress.ip_address("::1"), 1)))


@pytest.mark.parametrize(
    "header",
    [
        b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",  # LOCAL
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12),  # TCP
        b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0b" + bytes(11),  # no room for the addresses
        b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0e" + bytes(14),  # half a TLV
        b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x10" + bytes(12) + b"\xe0\0\x05x",
        b"PROXY UDP4 192.0.2.7 192.0.2.1 1 2\r\n",
    ],
)
def test_other_headers_are_none_of_ours(header):
    with pytest.raises(ValueError):
        decode_header(header)
