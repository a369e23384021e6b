"""The record header of DTLS 1.2, RFC 6347 §4.1 and RFC 9146 §4, and alerts, RFC 5246 §7.2."""

from __future__ import annotations

import struct
from typing import NamedTuple

from sansdtls.errors import DecodeError
from sansdtls.iana import AlertDescription, AlertLevel, ContentType, ProtocolVersion

RECORD_HEADER = struct.Struct("!BHQH")
"""type, version, epoch ‖ sequence number (16 + 48 bits, read as one integer), length."""
RECORD_HEADER_LENGTH = RECORD_HEADER.size
_LENGTH_FIELD = 2
"""Bytes; a connection ID stands before them."""
CONNECTION_ID_OFFSET = RECORD_HEADER_LENGTH - _LENGTH_FIELD
"""Where in a record its connection ID begins."""

MAX_PLAINTEXT_LENGTH = 2**14
"""Bytes, RFC 5246 §6.2.1."""
MAX_CIPHERTEXT_LENGTH = 2**14 + 2048
"""Bytes, RFC 5246 §6.2.3."""
MAX_SEQUENCE_NUMBER = 2**48 - 1
"""RFC 6347 §4.1: a sequence number is never allowed to wrap."""

_TLS12_CID = int(ContentType.TLS12_CID)
_KNOWN_CONTENT_TYPES = frozenset(ContentType) - {_TLS12_CID}
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
    connection_id: bytes = b""
    """In a record of type ``TLS12_CID`` one or more bytes, else none."""

    @property
    def length(self) -> int:
        """Bytes that the record took in its datagram."""
        return RECORD_HEADER_LENGTH + len(self.connection_id) + len(self.fragment)

    @property
    def epoch(self) -> int:
        """The upper 16 bits of ``number``."""
        return self.number >> 48

    @property
    def sequence_number(self) -> int:
        """The lower 48 bits of ``number``."""
        return self.number & MAX_SEQUENCE_NUMBER


def read_record_untrusted(datagram: bytes, offset: int, connection_id_length: int = 0) -> Record | None:
    """The record at ``offset``, or ``None`` if what is there is no DTLS 1.2 record.

    How long a connection ID is only its receiver knows, RFC 9146 §4; with length 0 records of type
    ``TLS12_CID`` are none. RFC 6347 §4.1.2.7: "In general, invalid records SHOULD be silently discarded".
    With a bad header the rest of the datagram cannot be found either, so the caller drops all of it. This is
    the hot path: ``None`` instead of an exception.
    """
    start = offset + RECORD_HEADER_LENGTH
    if start > len(datagram):
        return None
    content_type, version, number, length = RECORD_HEADER.unpack_from(datagram, offset)
    if content_type == _TLS12_CID:
        if not connection_id_length:
            return None
        connection_id = datagram[start - _LENGTH_FIELD : start - _LENGTH_FIELD + connection_id_length]
        start += connection_id_length
        length = int.from_bytes(datagram[start - _LENGTH_FIELD : start])
        end = start + length
        if end > len(datagram) or version not in _KNOWN_VERSIONS:
            return None
        return Record(content_type, version, number, datagram[start:end], connection_id)
    end = start + length
    if end > len(datagram) or content_type not in _KNOWN_CONTENT_TYPES or version not in _KNOWN_VERSIONS:
        return None
    return Record(content_type, version, number, datagram[start:end])


def encode_record(content_type: int, version: int, number: int, fragment: bytes) -> bytes:
    """A record with ``fragment`` as its body."""
    return RECORD_HEADER.pack(content_type, version, number, len(fragment)) + fragment


def encode_record_with_id(version: int, number: int, connection_id: bytes, fragment: bytes) -> bytes:
    """A record of type ``TLS12_CID``, RFC 9146 §4, with ``fragment`` as its body."""
    header = RECORD_HEADER.pack(_TLS12_CID, version, number, len(fragment))
    return header[:CONNECTION_ID_OFFSET] + connection_id + header[CONNECTION_ID_OFFSET:] + fragment


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
