"""Reading recordings: pcapng and classic pcap, from whatever tool; and key logs.

Who opens a recording may have got it from anybody: every damage is one :class:`ReadingError`, after what came before it.
"""

from __future__ import annotations

import struct
from typing import IO, TYPE_CHECKING

from pcapng.exceptions import PcapngException

from endpoint.capture.packets import decode_frame, readable_link_type
from endpoint.capture.pcapng import read_pcapng
from endpoint.text import show_text
from sansdtls.recorded import parse_key_log

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from endpoint.capture.packets import UdpPacket

MAX_FILE = 2 * 1024**3
"""Bytes of a recording. Twice what a capture of ours can have."""
MAX_KEY_LOG = 64 * 1024**2
"""Bytes of a key log: some 300,000 handshakes."""
_MAX_FRAME = 262_144
"""Bytes; what tcpdump takes at most."""
_PCAPNG = b"\x0a\x0d\x0d\x0a"
_PCAP = {
    # magic number: byte order, nanoseconds in a unit of the fraction of a second
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\x3c\x4d": (">", 1),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
}
_DAMAGED = (
    PcapngException,
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,
    AssertionError,
    OverflowError,
    struct.error,
)
"""What python-pcapng raises for files that are damaged, or were made to be."""


class ReadingError(Exception):
    """A file cannot be read, or not to its end. The text names it."""


def read_recording(path: Path) -> Iterator[tuple[int, UdpPacket] | dict[bytes, bytes]]:
    """UDP datagrams with their times (nanoseconds since the epoch), and what secrets a pcapng file has, in the file's order.

    Other packets are passed over. Raises :class:`ReadingError`.
    """
    where, count = show_text(str(path)), 0
    try:
        with path.open("rb") as file:
            if path.stat().st_size > MAX_FILE:
                raise ReadingError(f"{where}: has more than {MAX_FILE} bytes")
            for item in _items(file, where):
                if isinstance(item, bytes):
                    yield parse_key_log(item)
                    continue
                link_type, nanoseconds, frame = item
                if not readable_link_type(link_type):
                    raise ReadingError(f"{where}: link type {link_type} is not known here; remedy: tshark")
                packet = decode_frame(link_type, frame)
                count += 1
                if packet is not None:
                    yield nanoseconds, packet
    except OSError as error:
        raise ReadingError(f"{where}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except _DAMAGED:
        raise ReadingError(f"{where}: damaged after {count} packets, or still being written") from None


def read_secrets(path: Path) -> dict[bytes, bytes]:
    """The master secrets of a key log, by client random; :class:`ReadingError` if it cannot be read."""
    where = show_text(str(path))
    try:
        with path.open("rb") as file:
            content = file.read(MAX_KEY_LOG + 1)
    except OSError as error:
        raise ReadingError(f"{where}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    if len(content) > MAX_KEY_LOG:
        raise ReadingError(f"{where}: has more than {MAX_KEY_LOG} bytes")
    secrets = parse_key_log(content)
    if not secrets:
        raise ReadingError(f"{where}: has no line CLIENT_RANDOM, which is what DTLS 1.2 needs")
    return secrets


def _items(file: IO[bytes], where: str) -> Iterator[tuple[int, int, bytes] | bytes]:
    magic = file.read(4)
    file.seek(0)
    if magic == _PCAPNG:
        return read_pcapng(file)
    if magic in _PCAP:
        return _read_pcap(file, *_PCAP[magic])
    raise ReadingError(f"{where}: neither pcap nor pcapng")


def _read_pcap(file: IO[bytes], order: str, unit: int) -> Iterator[tuple[int, int, bytes]]:
    """The classic format: a header of 24 bytes, and 16 bytes before each frame."""
    header = struct.Struct(f"{order}16xII")
    link_type = header.unpack(file.read(header.size))[1] & 0x0FFFFFFF
    before = struct.Struct(f"{order}IIII")
    while head := file.read(before.size):
        seconds, fraction, captured, _ = before.unpack(head)
        if captured > _MAX_FRAME:
            raise ValueError
        frame = file.read(captured)
        if len(frame) < captured:
            raise ValueError
        yield link_type, seconds * 10**9 + fraction * unit, frame
