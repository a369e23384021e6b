"""The record header of DTLS 1.2, RFC 6347 §4.1, and alerts, RFC 5246 §7.2."""

from __future__ import annotations

import struct
from typing import NamedTuple

from sansdtls.errors import DecodeError
from sansdtls.iana import AlertDescription, AlertLevel, ContentType, ProtocolVersion

RECORD_HEADER = struct.Struct("!BHQH")
"""type, version, epoch ‖ sequence number (16 + 48 bits, read as one integer), length."""
RECORD_HEADER_LENGTH = RECORD_HEADER.size

MAX_PLAINTEXT_LENGTH = 2**14
"""Bytes, RFC 5246 §6.2.1."""
MAX_CIPHERTEXT_LENGTH = 2**14 + 2048
"""Bytes, RFC 5246 §6.2.3."""
MAX_SEQUENCE_NUMBER = 2**48 - 1
"""RFC 6347 §4.1: a sequence number is never allowed to wrap."""

_KNOWN_CONTENT_TYPES = frozenset(ContentType)
_KNOWN_VERSIONS = frozenset(ProtocolVersion)
_ALERT_LEVELS = {int(level): level for level in AlertLevel}
_ALERT_DESCRIPTIONS = {int(description): description for description in AlertDescription}


class Record(NamedTuple):
    """One record as it stood in its datagram; ``fragment`` is still protected in epochs above 0."""

    content_type: int
    version: int
    number: int
    """epoch ‖ sequence number, 64 bits: the form that nonces and additional data use."""
    fragment: bytes

    @property
    def epoch(self) -> int:
        """The upper 16 bits of ``number``."""
        return self.number >> 48

    @property
    def sequence_number(self) -> int:
        """The lower 48 bits of ``number``."""
        return self.number & MAX_SEQUENCE_NUMBER


def read_record_untrusted(datagram: bytes, offset: int) -> Record | None:
    """The record at ``offset``, or ``None`` if what is there is no DTLS 1.2 record.

    RFC 6347 §4.1.2.7: "In general, invalid records SHOULD be silently discarded". With a bad header
    the rest of the datagram cannot be found either, so the caller drops all of it. This is the hot
    path: ``None`` instead of an exception.
    """
    start = offset + RECORD_HEADER_LENGTH
    if start > len(datagram):
        return None
    content_type, version, number, length = RECORD_HEADER.unpack_from(datagram, offset)
    end = start + length
    if end > len(datagram) or content_type not in _KNOWN_CONTENT_TYPES or version not in _KNOWN_VERSIONS:
        return None
    return Record(content_type, version, number, datagram[start:end])


def encode_record(content_type: int, version: int, number: int, fragment: bytes) -> bytes:
    """A record with ``fragment`` as its body."""
    return RECORD_HEADER.pack(content_type, version, number, len(fragment)) + fragment


class Alert(NamedTuple):
    """Level and description; plain integers where the code point is unknown."""

    level: AlertLevel | int
    description: AlertDescription | int


def encode_alert(level: AlertLevel, description: AlertDescription) -> bytes:
    """The two bytes of an alert."""
    return bytes((level, description))


def decode_alert_untrusted(fragment: bytes) -> Alert:
    """An alert; raises :class:`DecodeError` unless there are exactly two bytes."""
    if len(fragment) != 2:
        raise DecodeError(f"Alert: {len(fragment)} bytes instead of 2")
    level, description = fragment
    return Alert(_ALERT_LEVELS.get(level, level), _ALERT_DESCRIPTIONS.get(description, description))
