"""Protecting and unprotecting records with an AEAD, RFC 5246 §6.2.3.3 over RFC 6347 §4.1.2.

Attacker: sees, alters, repeats, reorders and invents datagrams. Property: what ``open`` returns was
sealed by the holder of the key, with this very type, version, epoch and sequence number. Construction:
AES-GCM and AES-CCM with a nonce of a 4-byte salt and 8 explicit bytes; ChaCha20-Poly1305 with the record
number combined into its IV. The explicit bytes we send are epoch ‖ sequence number, never random: the
record layer does not repeat a number, so no nonce repeats under a key (a random one would, after 2**32
records). Left out: hiding the length, type and number of records, which DTLS 1.2 cannot do.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from sansdtls.crypto.suites import NotAuthentic
from sansdtls.iana import ProtocolVersion
from sansdtls.wire.record import RECORD_HEADER

if TYPE_CHECKING:
    from sansdtls.crypto.suites import SuiteParameters
    from sansdtls.wire.record import Record

_ADDITIONAL_DATA = struct.Struct("!QBHH")
_VERSION = int(ProtocolVersion.DTLS_1_2)


class ExplicitNonceProtection:
    """One direction of one epoch, for AES-GCM and AES-CCM."""

    __slots__ = ("_aead", "_salt", "overhead")

    def __init__(self, suite: SuiteParameters, key: bytes, salt: bytes) -> None:
        self._aead = suite.aead(key)
        self._salt = salt
        self.overhead = suite.overhead

    def seal(self, content_type: int, number: int, plaintext: bytes) -> bytes:
        """A whole protected record, header included."""
        explicit = number.to_bytes(8)
        additional = _ADDITIONAL_DATA.pack(number, content_type, _VERSION, len(plaintext))
        sealed = self._aead.encrypt(self._salt + explicit, plaintext, additional)
        return RECORD_HEADER.pack(content_type, _VERSION, number, 8 + len(sealed)) + explicit + sealed

    def open(self, record: Record) -> bytes | None:
        """The plaintext, or ``None`` where the record is not authentic."""
        fragment = record.fragment
        length = len(fragment) - self.overhead
        if length < 0:
            return None
        additional = _ADDITIONAL_DATA.pack(record.number, record.content_type, record.version, length)
        try:
            return self._aead.decrypt(self._salt + fragment[:8], fragment[8:], additional)
        except NotAuthentic:
            return None


class ImplicitNonceProtection:
    """One direction of one epoch, for ChaCha20-Poly1305 (RFC 7905 §2)."""

    __slots__ = ("_aead", "_iv", "overhead")

    def __init__(self, suite: SuiteParameters, key: bytes, iv: bytes) -> None:
        self._aead = suite.aead(key)
        self._iv = int.from_bytes(iv)
        self.overhead = suite.overhead

    def seal(self, content_type: int, number: int, plaintext: bytes) -> bytes:
        """A whole protected record, header included."""
        additional = _ADDITIONAL_DATA.pack(number, content_type, _VERSION, len(plaintext))
        sealed = self._aead.encrypt((self._iv ^ number).to_bytes(12), plaintext, additional)
        return RECORD_HEADER.pack(content_type, _VERSION, number, len(sealed)) + sealed

    def open(self, record: Record) -> bytes | None:
        """The plaintext, or ``None`` where the record is not authentic."""
        length = len(record.fragment) - self.overhead
        if length < 0:
            return None
        additional = _ADDITIONAL_DATA.pack(record.number, record.content_type, record.version, length)
        try:
            return self._aead.decrypt((self._iv ^ record.number).to_bytes(12), record.fragment, additional)
        except NotAuthentic:
            return None


Protection = ExplicitNonceProtection | ImplicitNonceProtection


def make_protection(suite: SuiteParameters, key: bytes, fixed_iv: bytes) -> Protection:
    """The protection that a suite's row calls for."""
    if suite.explicit_nonce_length:
        return ExplicitNonceProtection(suite, key, fixed_iv)
    return ImplicitNonceProtection(suite, key, fixed_iv)
