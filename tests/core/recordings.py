"""Reads the recorded handshakes in ``tests/recordings`` (pcap, Ethernet, IPv4, UDP)."""

import struct
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent.parent / "recordings"


class Packet(NamedTuple):
    from_client: bool
    data: bytes


class Recording(NamedTuple):
    packets: list[Packet]
    client_random: bytes
    master_secret: bytes

    def sent_by(self, role: str) -> list[bytes]:
        return [packet.data for packet in self.packets if packet.from_client == (role == "client")]


def load(name: str, server_port: int) -> Recording:
    data = (FOLDER / f"{name}.pcap").read_bytes()
    assert data[:4] == b"\xd4\xc3\xb2\xa1", "little-endian pcap is all this reads"
    packets, at = [], 24
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at + 8)
        frame = data[at + 16 : at + 16 + length]
        at += 16 + length
        udp = frame[14 + 4 * (frame[14] & 0xF) :]
        destination, udp_length = struct.unpack_from("!HH", udp, 2)
        packets.append(Packet(destination == server_port, udp[8:udp_length]))
    lines = (FOLDER / f"{name}.keylog").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("CLIENT_RANDOM")]
    _, client_random, master_secret = line.split()
    return Recording(packets, bytes.fromhex(client_random), bytes.fromhex(master_secret))
