"""Reads the captures in ``recordings/``: classic pcap of Ethernet, IPv4 and UDP, as tcpdump writes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import dpkt

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORDINGS = Path(__file__).parent / "recordings"


class RecordedDatagram(NamedTuple):
    """One UDP datagram of a capture; ``timestamp`` is in seconds since the epoch."""

    timestamp: float
    source_port: int
    destination_port: int
    payload: bytes


def recorded_datagrams(name: str) -> Iterator[RecordedDatagram]:
    """The UDP datagrams of ``recordings/<name>.pcap``, in order."""
    with (RECORDINGS / f"{name}.pcap").open("rb") as capture:
        for timestamp, frame in dpkt.pcap.Reader(capture):
            udp = dpkt.ethernet.Ethernet(frame).data.data
            if isinstance(udp, dpkt.udp.UDP):
                yield RecordedDatagram(float(timestamp), udp.sport, udp.dport, bytes(udp.data))


def recorded_secrets(name: str) -> dict[bytes, bytes]:
    """The master secrets of ``recordings/<name>.keylog``, by client random."""
    secrets = {}
    for line in (RECORDINGS / f"{name}.keylog").read_text(encoding="ascii").splitlines():
        label, _, rest = line.partition(" ")
        if label == "CLIENT_RANDOM":
            client_random, secret = map(bytes.fromhex, rest.split())
            secrets[client_random] = secret
    return secrets
