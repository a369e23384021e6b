"""Packets and files: what is written is what is read, here and by others; what is damaged is told."""

import io
import ipaddress
import struct
from typing import Any

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from endpoint.capture.packets import Endpoint, UdpPacket, decode_frame, encode_packet, endpoint_of
from endpoint.capture.pcapng import PACKET_OVERHEAD, PcapngWriter, read_pcapng
from endpoint.capture.reading import ReadingError, read_recording, read_secrets
from tests.recordings import RECORDINGS, recorded_datagrams

PORTS = st.integers(1, 65_535)
PAYLOADS = st.binary(max_size=300)
NAMES = ("openssl-psk-ccm8", "gnutls-ecdhe-ecdsa", "gnutls-rpk", "mbedtls-cid-psk")


@st.composite
def packets(draw):
    version = draw(st.sampled_from([4, 6]))
    hosts = [draw(st.ip_addresses(v=version)) for _ in range(2)]
    return UdpPacket(Endpoint(hosts[0], draw(PORTS)), Endpoint(hosts[1], draw(PORTS)), draw(PAYLOADS))


@given(packets())
def test_a_packet_is_read_as_it_was_written_by_us_and_by_others(packet):
    encoded = encode_packet(packet)
    assert decode_frame(101, encoded) == packet
    ip = dpkt.ip.IP(encoded) if packet.source.host.version == 4 else dpkt.ip6.IP6(encoded)
    assert (ip.src, ip.dst) == (packet.source.host.packed, packet.destination.host.packed)
    assert (ip.data.sport, ip.data.dport, bytes(ip.data.data)) == (
        packet.source.port,
        packet.destination.port,
        packet.payload,
    )
    # Both checksums are what another implementation computes.
    ip.data.sum = 0
    if packet.source.host.version == 4:
        ip.sum = 0
    assert bytes(ip) == encoded


@pytest.mark.parametrize(
    ("link_type", "before", "after"),
    [
        (0, struct.pack("=I", 2), b""),
        (1, bytes(12) + b"\x08\x00", b""),
        (1, bytes(12) + b"\x81\x00\x00\x07\x08\x00", b""),
        (1, bytes(12) + b"\x08\x00", bytes(20)),  # padded to the least length of a frame
        (101, b"", b""),
        (113, bytes(16), b""),
        (228, b"", b""),
        (276, bytes(20), b""),
    ],
)
def test_the_packet_is_found_behind_every_kind_of_header(link_type, before, after):
    packet = UdpPacket(endpoint_of("192.0.2.7", 40_000), endpoint_of("198.51.100.1", 5684), b"x")
    assert decode_frame(link_type, before + encode_packet(packet) + after) == packet


def test_what_is_no_whole_udp_datagram_is_passed_over():
    packet = encode_packet(UdpPacket(endpoint_of("192.0.2.7", 1), endpoint_of("198.51.100.1", 2), b"abc"))
    tcp = packet[:9] + b"\x06" + packet[10:]
    fragment = packet[:6] + b"\x20\x00" + packet[8:]
    for frame in (b"", packet[:-1], tcp, fragment, packet[:21], bytes(60), b"\x60" + bytes(60)):
        assert decode_frame(101, frame) is None
    assert decode_frame(1, bytes(12) + b"\x08\x06" + packet) is None  # ARP
    assert decode_frame(147, packet) is None


@given(st.sampled_from([0, 1, 101, 113, 276]), st.binary(max_size=120))
def test_whatever_the_frame_reading_it_raises_nothing(link_type, frame):
    decode_frame(link_type, frame)


def test_mapped_addresses_are_ipv4_and_a_listener_on_everything_follows_its_peer():
    device = endpoint_of("::ffff:192.0.2.7", 40_000)
    assert str(device) == "192.0.2.7:40000"
    packet = UdpPacket(device, endpoint_of("::", 5684), b"x")
    read: Any = decode_frame(101, encode_packet(packet))
    assert read.destination.host == ipaddress.ip_address("0.0.0.0")  # noqa: S104
    back: Any = decode_frame(101, encode_packet(UdpPacket(packet.destination, device, b"x")))
    assert (back.source, back.destination) == (read.destination, device)
    assert str(endpoint_of("fe80::1%eth0", 5684)) == "[fe80::1]:5684"


# --- pcapng ---


@given(
    st.lists(
        st.one_of(
            st.binary(min_size=1, max_size=300),
            st.tuples(
                st.integers(0, 2**63),
                st.binary(min_size=1, max_size=300),
                st.sampled_from(["", "why", "ä\n"]),
            ),
        ),
        max_size=8,
    )
)
def test_blocks_are_read_as_they_were_written(items):
    writer = PcapngWriter(comment="capture of ä")
    content = writer.beginning()
    expected: list[Any] = []
    for item in items:
        if isinstance(item, bytes):
            content += writer.secrets(item)
            expected.append(item)
        else:
            nanoseconds, packet, comment = item
            block = writer.packet(packet, nanoseconds=nanoseconds, comment=comment)
            assert len(block) % 4 == 0
            if not comment:
                assert len(block) <= len(packet) + PACKET_OVERHEAD
            content += block
            expected.append((101, nanoseconds, packet))
    assert list(read_pcapng(io.BytesIO(content))) == expected


def test_secrets_are_in_no_representation_of_their_block():
    from endpoint.capture.pcapng import DecryptionSecrets

    writer = PcapngWriter(comment="")
    block = writer._section.new_member(DecryptionSecrets, secrets_data=b"CLIENT_RANDOM 00 11")
    assert repr(block) == "<DecryptionSecrets, 19 bytes>"


# --- files ---


@pytest.mark.parametrize("name", NAMES)
def test_classic_recordings_are_read_as_another_library_reads_them(name):
    items: list[Any] = list(read_recording(RECORDINGS / f"{name}.pcap"))
    assert [(p.source.port, p.destination.port, p.payload) for _, p in items] == [
        (each.source_port, each.destination_port, each.payload) for each in recorded_datagrams(name)
    ]
    for (nanoseconds, _), each in zip(items, recorded_datagrams(name), strict=True):
        assert abs(nanoseconds / 1e9 - each.timestamp) < 1e-5


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "unit"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_both_byte_orders_and_both_units_of_time_are_read(tmp_path, order, magic, unit):
    packet = encode_packet(UdpPacket(endpoint_of("192.0.2.7", 1), endpoint_of("198.51.100.1", 2), b"abc"))
    file = tmp_path / "x.pcap"
    header = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, 101)
    file.write_bytes(header + struct.pack(f"{order}IIII", 7, 5, len(packet), len(packet)) + packet)
    items: list[Any] = list(read_recording(file))
    ((nanoseconds, read),) = items
    assert (nanoseconds, read.payload) == (7 * 10**9 + 5 * unit, b"abc")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "neither pcap nor pcapng"),
        (b"GIF89a", "neither pcap nor pcapng"),
        (b"\xa1\xb2\xc3\xd4", "damaged after 0 packets"),
        (b"\x0a\x0d\x0d\x0a" + bytes(12), "damaged after 0 packets"),
        (struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 147), None),
        (
            struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 147) + bytes(16),
            "link type 147 is not known",
        ),
    ],
)
def test_what_is_no_recording_is_told_with_its_name(tmp_path, content, what):
    file = tmp_path / "x.pcap"
    file.write_bytes(content)
    if what is None:
        assert list(read_recording(file)) == []
        return
    with pytest.raises(ReadingError, match=f"x.pcap: {what}"):
        list(read_recording(file))


def test_a_recording_that_was_cut_off_is_read_up_to_there(tmp_path):
    whole = (RECORDINGS / "openssl-psk-ccm8.pcap").read_bytes()
    file = tmp_path / "x.pcap"
    file.write_bytes(whole[:-5])
    found: list[Any] = []
    with pytest.raises(ReadingError, match="damaged after 9 packets, or still being written"):
        found.extend(read_recording(file))
    assert list(read_recording(RECORDINGS / "openssl-psk-ccm8.pcap"))[:-1] == found or not found


@given(st.data())
def test_a_damaged_recording_raises_nothing_but_what_tells_of_it(tmp_path_factory, data):
    writer = PcapngWriter(comment="x")
    content = writer.beginning() + writer.secrets(b"CLIENT_RANDOM")
    content += writer.packet(bytes(40), nanoseconds=1, comment="y")
    content += data.draw(st.binary(max_size=40))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, len(content) - 1))
        content = content[:at] + data.draw(st.binary(max_size=5)) + content[at + 1 :]
    file = tmp_path_factory.mktemp("damaged") / "x.pcapng"
    file.write_bytes(content)
    try:
        list(read_recording(file))
    except ReadingError as error:
        assert "x.pcapng: " in str(error)


def test_a_key_log_that_is_none_is_told(tmp_path):
    with pytest.raises(ReadingError, match="cannot be read: no such file"):
        read_secrets(tmp_path / "none")
    (tmp_path / "x").write_text("SERVER_HANDSHAKE_TRAFFIC_SECRET 00 11\n")
    with pytest.raises(ReadingError, match="has no line CLIENT_RANDOM"):
        read_secrets(tmp_path / "x")
