"""pcapng files: written with python-pcapng, which knows all blocks that are needed but one.

The Decryption Secrets Block carries a TLS key log. Wireshark uses what is in it for the packets behind it, so it is
written before them. Times are in nanoseconds, packets are bare IP (LINKTYPE_RAW).
"""

from __future__ import annotations

import io
from typing import IO, TYPE_CHECKING, Any

from pcapng import FileScanner, FileWriter
from pcapng.blocks import (
    EnhancedPacket,
    InterfaceDescription,
    SectionHeader,
    SectionMemberBlock,
    register_block,
)
from pcapng.constants.link_types import LINKTYPE_RAW
from pcapng.structs import IntField, OptionsField, PacketBytes

if TYPE_CHECKING:
    from collections.abc import Iterator

TLS_KEY_LOG = 0x544C534B
"""The type of secrets: "TLSK"."""
_NANOSECONDS = b"\x09"
"""if_tsresol: ten to the power of minus nine seconds."""
_SNAPLEN = 65_535 + 48
"""Bytes: the largest UDP datagram with its headers."""


@register_block
class DecryptionSecrets(SectionMemberBlock):  # type: ignore[misc] # the library has no types
    """The block that python-pcapng lacks. Also found by its scanner, once this module is there."""

    magic_number = 0x0000000A
    __slots__ = ()
    schema = (
        ("secrets_type", IntField(32, signed=False), TLS_KEY_LOG),
        ("secrets_length", IntField(32, signed=False), 0),
        ("secrets_data", PacketBytes("secrets_length"), b""),
        ("options", OptionsField([]), None),
    )

    @property
    def secrets_length(self) -> int:
        """Bytes of the secrets, as written."""
        return len(self.secrets_data)

    def __repr__(self) -> str:
        return f"<DecryptionSecrets, {self.secrets_length} bytes>"


_OPTIONS = InterfaceDescription.schema[-1][1].options_schema


@register_block
class Interface(InterfaceDescription):  # type: ignore[misc]
    """The library's block with a type for if_tsresol: without, it warns whenever one is written or read."""

    __slots__ = ()
    schema = (
        *InterfaceDescription.schema[:-1],
        (
            "options",
            OptionsField([option._replace(ftype=option.ftype or "bytes") for option in _OPTIONS]),
            None,
        ),
    )


class PcapngWriter:
    """Blocks into bytes: each method gives what is to be written next."""

    def __init__(self, *, comment: str) -> None:
        """``comment`` is for who opens the file."""
        self._stream = io.BytesIO()
        options = {"shb_userappl": "dtls-endpoint", "opt_comment": comment}
        self._section = SectionHeader(options=options)
        self._section.new_member(
            Interface,
            link_type=LINKTYPE_RAW,
            snaplen=_SNAPLEN,
            options={"if_name": "dtls-endpoint", "if_tsresol": _NANOSECONDS},
        )
        self._writer = FileWriter(self._stream, self._section)

    def beginning(self) -> bytes:
        """Section and interface."""
        return self._taken()

    def packet(self, packet: bytes, *, nanoseconds: int, comment: str = "") -> bytes:
        """An IP packet, at a time since the epoch."""
        self._writer.write_block(
            self._section.new_member(
                EnhancedPacket,
                interface_id=0,
                timestamp_high=nanoseconds >> 32,
                timestamp_low=nanoseconds & 0xFFFFFFFF,
                packet_data=packet,
                options={"opt_comment": comment} if comment else {},
            )
        )
        return self._taken()

    def secrets(self, key_log: bytes) -> bytes:
        """Lines of a key log, for the packets that follow."""
        block = self._section.new_member(DecryptionSecrets, secrets_type=TLS_KEY_LOG, secrets_data=key_log)
        self._writer.write_block(block)
        return self._taken()

    def _taken(self) -> bytes:
        written = self._stream.getvalue()
        self._stream.seek(0)
        self._stream.truncate()
        return written


PACKET_OVERHEAD = 32 + 3
"""Bytes that a packet without comment takes beyond itself, at most: block and padding."""


def read_pcapng(stream: IO[bytes]) -> Iterator[tuple[int, int, bytes] | bytes]:
    """What is in a file: packets as (LINKTYPE, nanoseconds since the epoch, frame), and key logs as bytes.

    Raises whatever python-pcapng raises for files that are none, or damaged.
    """
    for block in FileScanner(stream):
        if isinstance(block, EnhancedPacket):
            interface = block.interface
            units = (block.timestamp_high << 32) + block.timestamp_low
            yield interface.link_type, _in_nanoseconds(units, interface), bytes(block.packet_data)
        elif isinstance(block, DecryptionSecrets) and block.secrets_type == TLS_KEY_LOG:
            yield bytes(block.secrets_data)


def _in_nanoseconds(units: int, interface: Any) -> int:
    resolution: bytes = interface.options.get("if_tsresol") or b"\x06"
    exponent = resolution[0] & 0x7F
    units_per_second: int = (2 if resolution[0] & 0x80 else 10) ** exponent
    return units * 10**9 // units_per_second
