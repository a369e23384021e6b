"""The handshake header and its fragments, RFC 6347 §4.2.2 and §4.2.3."""

from __future__ import annotations

import struct
from typing import NamedTuple

from sansdtls.errors import DecodeError
from sansdtls.iana import AlertDescription

_HEADER = struct.Struct("!IHHBHB")
"""type (8) ‖ length (24), message_seq, fragment_offset (16 + 8), fragment_length (16 + 8)."""
HANDSHAKE_HEADER_LENGTH = _HEADER.size


class Fragment(NamedTuple):
    """Part of a handshake message; the whole of it where ``len(body) == length``."""

    message_type: int
    length: int
    message_seq: int
    offset: int
    body: bytes

    @property
    def end(self) -> int:
        """Offset of the first byte after this fragment."""
        return self.offset + len(self.body)


class HandshakeMessage(NamedTuple):
    """A complete handshake message without its header."""

    message_type: int
    message_seq: int
    body: bytes


def encode_fragment(message: HandshakeMessage, offset: int, length: int) -> bytes:
    """``length`` bytes of ``message`` from ``offset`` on, with the header in front."""
    return (
        _HEADER.pack(
            message.message_type << 24 | len(message.body),
            message.message_seq,
            offset >> 8,
            offset & 0xFF,
            length >> 8,
            length & 0xFF,
        )
        + message.body[offset : offset + length]
    )


def encode_message(message: HandshakeMessage) -> bytes:
    """``message`` as a single fragment: the form that enters the transcript, RFC 6347 §4.2.6."""
    return encode_fragment(message, 0, len(message.body))


def decode_fragments_untrusted(plaintext: bytes) -> list[Fragment]:
    """All fragments of one record. RFC 6347 §4.2.3: several messages may share a record."""
    fragments: list[Fragment] = []
    offset = 0
    while offset < len(plaintext) or not fragments:
        start = offset + HANDSHAKE_HEADER_LENGTH
        if start > len(plaintext):
            raise DecodeError("handshake header: cut short")
        type_and_length, message_seq, offset_high, offset_low, length_high, length_low = _HEADER.unpack_from(
            plaintext, offset
        )
        total = type_and_length & 0xFFFFFF
        fragment_offset = offset_high << 8 | offset_low
        fragment_length = length_high << 8 | length_low
        end = start + fragment_length
        if end > len(plaintext):
            raise DecodeError("handshake header: the fragment is longer than its record")
        if fragment_offset + fragment_length > total:
            raise DecodeError(
                "handshake header: the fragment reaches beyond its message",
                AlertDescription.ILLEGAL_PARAMETER,
            )
        fragments.append(
            Fragment(type_and_length >> 24, total, message_seq, fragment_offset, plaintext[start:end])
        )
        offset = end
    return fragments
