"""Protecting and unprotecting records with an AEAD, RFC 5246 §6.2.3.3 over RFC 6347 §4.1.2, and RFC 9146 §5.

Attacker: sees, alters, repeats, reorders and invents datagrams. Property: what ``open`` returns was
sealed by the holder of the key, with this very type, version, epoch, sequence number and connection ID.
Construction: AES-GCM and AES-CCM with a nonce of a 4-byte salt and 8 explicit bytes; ChaCha20-Poly1305 with
the record number combined into its IV. The explicit bytes we send are epoch ‖ sequence number, never random:
the record layer does not repeat a number, so no nonce repeats under a key (a random one would, after 2**32
records). With a connection ID the true type is sealed with the content, and padding may hide the length; the
additional data begin with what no record number can be, so that neither format passes for the other.
Left out: hiding the number of records, which DTLS 1.2 cannot do, and type and length without a connection ID.

Two nonce schemes times two record formats: each class below is one of each. The cipher object is made when it is
first needed, and again after it was dropped to save memory (``ciphers.py``).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from sansdtls.crypto.suites import NotAuthentic
from sansdtls.iana import ContentType, ProtocolVersion
from sansdtls.wire.record import MAX_PLAINTEXT_LENGTH, RECORD_HEADER, encode_record_with_id

if TYPE_CHECKING:
    from sansdtls.crypto.suites import Aead, SuiteParameters
    from sansdtls.record.ciphers import Ciphers
    from sansdtls.wire.record import Record

_VERSION = int(ProtocolVersion.DTLS_1_2)
_TLS12_CID = int(ContentType.TLS12_CID)
_ADDITIONAL_DATA = struct.Struct("!QBHH")
_ID_ADDITIONAL_DATA = struct.Struct("!8sBBBHQ")
_SEQ_NUM_PLACEHOLDER = b"\xff" * 8
_PADDED = frozenset((ContentType.APPLICATION_DATA, ContentType.ALERT))
"""The lengths of handshake messages and path checks are known, and theirs have to fit small datagrams."""
TYPE_LENGTH = 1
"""Bytes of the true content type inside a record with a connection ID."""


class _Cipher:
    """The cipher object, and what it is made of: the key, and behind it the part of the nonce that nobody sends."""

    __slots__ = ("_aead", "_ciphers", "_iv", "_secret", "_suite", "overhead")

    def __init__(self, suite: SuiteParameters, key: bytes, fixed_iv: bytes) -> None:
        self._aead: Aead | None = None
        self._ciphers: Ciphers | None = None
        self._secret = key + fixed_iv
        self._suite = suite
        self.overhead = suite.overhead

    def _made(self) -> Aead:
        if self._ciphers is not None:
            self._ciphers.add(self)
        length = self._suite.key_length
        aead = self._aead = self._suite.aead(self._secret[:length])
        self._use_iv(self._secret[length:])
        return aead

    def _use_iv(self, fixed_iv: bytes) -> None:
        raise NotImplementedError

    def share(self, ciphers: Ciphers) -> None:
        """From now on ``ciphers`` decides how long the cipher object is kept."""
        self._ciphers = ciphers
        if self._aead is not None:
            ciphers.add(self)

    def drop_cipher(self) -> None:
        """Do without the cipher object until it is needed."""
        self._aead = None
        self._use_iv(b"")

    def keep_within(self, max_plaintext: int) -> None:
        """Pad to no more than so many bytes. What is not padded is as long as its content."""

    def forget_key(self) -> None:
        """Nothing can be sealed or opened any more."""
        self._secret = b""
        self.drop_cipher()
        if self._ciphers is not None:
            self._ciphers.discard(self)


class _ExplicitNonce(_Cipher):
    """AES-GCM and AES-CCM: eight bytes of the nonce stand in front of the ciphertext."""

    __slots__ = ()
    _iv: bytes
    """The salt of RFC 5288 §3."""

    def _use_iv(self, fixed_iv: bytes) -> None:
        self._iv = fixed_iv

    def _encrypt(self, number: int, plaintext: bytes, additional: bytes) -> bytes:
        explicit = number.to_bytes(8)
        return explicit + (self._aead or self._made()).encrypt(self._iv + explicit, plaintext, additional)

    def _decrypt(self, number: int, fragment: bytes, additional: bytes) -> bytes:
        return (self._aead or self._made()).decrypt(self._iv + fragment[:8], fragment[8:], additional)


class _ImplicitNonce(_Cipher):
    """ChaCha20-Poly1305, RFC 7905 §2."""

    __slots__ = ()
    _iv: int

    def _use_iv(self, fixed_iv: bytes) -> None:
        self._iv = int.from_bytes(fixed_iv)

    def _encrypt(self, number: int, plaintext: bytes, additional: bytes) -> bytes:
        aead = self._aead or self._made()
        return aead.encrypt((self._iv ^ number).to_bytes(12), plaintext, additional)

    def _decrypt(self, number: int, fragment: bytes, additional: bytes) -> bytes:
        aead = self._aead or self._made()
        return aead.decrypt((self._iv ^ number).to_bytes(12), fragment, additional)


class _PlainFormat:
    """Records of RFC 6347."""

    __slots__ = ()
    overhead: int

    if TYPE_CHECKING:

        def _encrypt(self, number: int, plaintext: bytes, additional: bytes) -> bytes: ...
        def _decrypt(self, number: int, fragment: bytes, additional: bytes) -> bytes: ...

    def seal(self, content_type: int, number: int, plaintext: bytes) -> bytes:
        """A whole protected record, header included."""
        additional = _ADDITIONAL_DATA.pack(number, content_type, _VERSION, len(plaintext))
        fragment = self._encrypt(number, plaintext, additional)
        return RECORD_HEADER.pack(content_type, _VERSION, number, len(fragment)) + fragment

    def open(self, record: Record) -> tuple[int, bytes] | None:
        """Type and plaintext, or ``None`` where the record is not authentic."""
        content_type, version, number, fragment, _ = record
        length = len(fragment) - self.overhead
        if length < 0:
            return None
        additional = _ADDITIONAL_DATA.pack(number, content_type, version, length)
        try:
            return content_type, self._decrypt(number, fragment, additional)
        except NotAuthentic:
            return None


class _ConnectionIdFormat(_Cipher):
    """Records of RFC 9146."""

    # Only this format and what is below it may have slots: a class cannot have two bases with slots of their own.
    __slots__ = ("_connection_id", "_max_plaintext", "_padding")

    if TYPE_CHECKING:

        def _encrypt(self, number: int, plaintext: bytes, additional: bytes) -> bytes: ...
        def _decrypt(self, number: int, fragment: bytes, additional: bytes) -> bytes: ...

    def __init__(
        self,
        suite: SuiteParameters,
        key: bytes,
        fixed_iv: bytes,
        connection_id: bytes,
        padding: int,
        max_plaintext: int,
    ) -> None:
        super().__init__(suite, key, fixed_iv)
        self._connection_id = connection_id
        self._padding = padding
        self._max_plaintext = max_plaintext

    def keep_within(self, max_plaintext: int) -> None:
        self._max_plaintext = max_plaintext

    def _additional(self, version: int, number: int, length: int) -> bytes:
        connection_id = self._connection_id
        return (
            _ID_ADDITIONAL_DATA.pack(
                _SEQ_NUM_PLACEHOLDER, _TLS12_CID, len(connection_id), _TLS12_CID, version, number
            )
            + connection_id
            + length.to_bytes(2)
        )

    def seal(self, content_type: int, number: int, plaintext: bytes) -> bytes:
        """A whole protected record, header included."""
        inner = plaintext + content_type.to_bytes(TYPE_LENGTH)
        if self._padding > 1 and content_type in _PADDED:
            padded = len(inner) + -len(inner) % self._padding
            inner = inner.ljust(min(padded, self._max_plaintext), b"\0")
        fragment = self._encrypt(number, inner, self._additional(_VERSION, number, len(inner)))
        return encode_record_with_id(_VERSION, number, self._connection_id, fragment)

    def open(self, record: Record) -> tuple[int, bytes] | None:
        """True type (0 = there is none) and plaintext, or ``None`` where the record is not authentic."""
        length = len(record.fragment) - self.overhead
        if length < 0:
            return None
        additional = self._additional(record.version, record.number, length)
        try:
            inner = self._decrypt(record.number, record.fragment, additional)
        except NotAuthentic:
            return None
        # RFC 9146 §5: the length of DTLSInnerPlaintext "MUST NOT exceed 2^14." Left as it is it is too long
        # for the receiver of any record.
        if length > MAX_PLAINTEXT_LENGTH:
            return _TLS12_CID, inner
        content = inner.rstrip(b"\0")
        return (content[-1], content[:-1]) if content else (0, b"")


class ExplicitNonceProtection(_ExplicitNonce, _PlainFormat):
    """One direction of one epoch."""

    __slots__ = ()


class ImplicitNonceProtection(_ImplicitNonce, _PlainFormat):
    """One direction of one epoch."""

    __slots__ = ()


class ExplicitNonceIdProtection(_ExplicitNonce, _ConnectionIdFormat):
    """One direction of one epoch, with a connection ID."""

    __slots__ = ()


class ImplicitNonceIdProtection(_ImplicitNonce, _ConnectionIdFormat):
    """One direction of one epoch, with a connection ID."""

    __slots__ = ()


Protection = (
    ExplicitNonceProtection | ImplicitNonceProtection | ExplicitNonceIdProtection | ImplicitNonceIdProtection
)


def make_protection(
    suite: SuiteParameters,
    key: bytes,
    fixed_iv: bytes,
    connection_id: bytes = b"",
    padding: int = 1,
    max_plaintext: int = MAX_PLAINTEXT_LENGTH,
) -> Protection:
    """The protection that a suite's row and the connection ID of this direction call for.

    With an ID, content, type and padding fill a multiple of ``padding`` bytes, but never more than
    ``max_plaintext``.
    """
    if suite.explicit_nonce_length:
        if connection_id:
            return ExplicitNonceIdProtection(suite, key, fixed_iv, connection_id, padding, max_plaintext)
        return ExplicitNonceProtection(suite, key, fixed_iv)
    if connection_id:
        return ImplicitNonceIdProtection(suite, key, fixed_iv, connection_id, padding, max_plaintext)
    return ImplicitNonceProtection(suite, key, fixed_iv)
