"""The bodies of the handshake messages of a PSK handshake, RFC 6347 §4.3.2 and RFC 4279 §2.

Each class reads like the RFC's schema: ``encode`` and ``decode_untrusted`` side by side, strict both ways.
"""

from __future__ import annotations

import attrs

from sansdtls.errors import DecodeError
from sansdtls.iana import AlertDescription
from sansdtls.wire.codec import Reader, vector

RANDOM_LENGTH = 32
"""Bytes of ClientHello.random and ServerHello.random, RFC 5246 §7.4.1.2."""
MAX_SESSION_ID_LENGTH = 32
"""Bytes, RFC 5246 §7.4.1.2."""
_COOKIE_OFFSET_MINIMUM = 2 + RANDOM_LENGTH + 1

Extensions = tuple[tuple[int, bytes], ...]
"""Extensions as (type, body), in the order of the message. Types stay integers: unknown ones are legal."""


def _decode_extensions_untrusted(reader: Reader) -> Extensions:
    """The extensions block that may follow a hello, RFC 5246 §7.4.1.4."""
    if not reader.remaining:
        return ()
    block = Reader(reader.vector(2), "extensions")
    extensions = []
    while block.remaining:
        extensions.append((block.integer(2), block.vector(2)))
    # RFC 5246 §7.4.1.4: "There MUST NOT be more than one extension of the same type."
    if len({extension_type for extension_type, _ in extensions}) != len(extensions):
        raise DecodeError("extensions: the same type twice", AlertDescription.ILLEGAL_PARAMETER)
    return tuple(extensions)


def _encode_extensions(extensions: Extensions) -> bytes:
    if not extensions:
        return b""
    return vector(2, b"".join(kind.to_bytes(2) + vector(2, body) for kind, body in extensions))


@attrs.frozen
class ClientHello:
    """RFC 6347 §4.2.1: TLS's ClientHello with a cookie."""

    version: int
    random: bytes
    session_id: bytes
    cookie: bytes
    cipher_suites: tuple[int, ...]
    compression_methods: bytes
    extensions: Extensions

    def encode(self) -> bytes:
        """The message body."""
        return (
            self.version.to_bytes(2)
            + self.random
            + vector(1, self.session_id)
            + vector(1, self.cookie)
            + vector(2, b"".join(suite.to_bytes(2) for suite in self.cipher_suites))
            + vector(1, self.compression_methods)
            + _encode_extensions(self.extensions)
        )

    @classmethod
    def decode_untrusted(cls, body: bytes) -> ClientHello:
        """Parse a message body."""
        reader = Reader(body, "ClientHello")
        version = reader.integer(2)
        random = reader.take(RANDOM_LENGTH)
        session_id = reader.vector(1, maximum=MAX_SESSION_ID_LENGTH)
        cookie = reader.vector(1)
        suites = reader.vector(2, minimum=2)
        if len(suites) % 2:
            raise DecodeError("ClientHello: cipher_suites has an odd number of bytes")
        compression_methods = reader.vector(1, minimum=1)
        extensions = _decode_extensions_untrusted(reader)
        reader.end()
        return cls(
            version,
            random,
            session_id,
            cookie,
            tuple(int.from_bytes(suites[i : i + 2]) for i in range(0, len(suites), 2)),
            compression_methods,
            extensions,
        )


def split_cookie_untrusted(body: bytes) -> tuple[bytes, bytes, bytes]:
    """A ClientHello body as (before the cookie, cookie, after the cookie), its length byte left out.

    Works on the first fragment of a hello as well, and on nothing shorter than the cookie's end: this
    is all that is read of a hello whose sender has not proved its address.
    """
    if len(body) <= _COOKIE_OFFSET_MINIMUM:
        raise DecodeError("ClientHello: cut short before the cookie")
    session_id_length = body[_COOKIE_OFFSET_MINIMUM - 1]
    before = _COOKIE_OFFSET_MINIMUM + session_id_length
    if session_id_length > MAX_SESSION_ID_LENGTH or len(body) <= before:
        raise DecodeError("ClientHello: cut short before the cookie")
    end = before + 1 + body[before]
    if end > len(body):
        raise DecodeError("ClientHello: cut short within the cookie")
    return body[:before], body[before + 1 : end], body[end:]


@attrs.frozen
class HelloVerifyRequest:
    """RFC 6347 §4.2.1."""

    version: int
    cookie: bytes

    def encode(self) -> bytes:
        """The message body."""
        return self.version.to_bytes(2) + vector(1, self.cookie)

    @classmethod
    def decode_untrusted(cls, body: bytes) -> HelloVerifyRequest:
        """Parse a message body."""
        reader = Reader(body, "HelloVerifyRequest")
        message = cls(reader.integer(2), reader.vector(1))
        reader.end()
        return message


@attrs.frozen
class ServerHello:
    """RFC 5246 §7.4.1.3."""

    version: int
    random: bytes
    session_id: bytes
    cipher_suite: int
    compression_method: int
    extensions: Extensions

    def encode(self) -> bytes:
        """The message body."""
        return (
            self.version.to_bytes(2)
            + self.random
            + vector(1, self.session_id)
            + self.cipher_suite.to_bytes(2)
            + self.compression_method.to_bytes(1)
            + _encode_extensions(self.extensions)
        )

    @classmethod
    def decode_untrusted(cls, body: bytes) -> ServerHello:
        """Parse a message body."""
        reader = Reader(body, "ServerHello")
        message = cls(
            reader.integer(2),
            reader.take(RANDOM_LENGTH),
            reader.vector(1, maximum=MAX_SESSION_ID_LENGTH),
            reader.integer(2),
            reader.integer(1),
            _decode_extensions_untrusted(reader),
        )
        reader.end()
        return message


@attrs.frozen
class PskServerKeyExchange:
    """The identity hint, RFC 4279 §2."""

    identity_hint: bytes

    def encode(self) -> bytes:
        """The message body."""
        return vector(2, self.identity_hint)

    @classmethod
    def decode_untrusted(cls, body: bytes) -> PskServerKeyExchange:
        """Parse a message body."""
        reader = Reader(body, "ServerKeyExchange")
        message = cls(reader.vector(2))
        reader.end()
        return message


@attrs.frozen
class PskClientKeyExchange:
    """The PSK identity, RFC 4279 §2. Any bytes: RFC 7925 §4.2 compares them without normalisation."""

    identity: bytes

    def encode(self) -> bytes:
        """The message body."""
        return vector(2, self.identity)

    @classmethod
    def decode_untrusted(cls, body: bytes) -> PskClientKeyExchange:
        """Parse a message body."""
        reader = Reader(body, "ClientKeyExchange")
        message = cls(reader.vector(2))
        reader.end()
        return message


def expect_empty_untrusted(body: bytes, what: str) -> None:
    """For ServerHelloDone: a message without content, RFC 5246 §7.4.5."""
    Reader(body, what).end()
