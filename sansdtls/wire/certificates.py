"""The bodies of the messages that certificates, raw public keys, ECDHE and tickets add to a handshake.

RFC 5246 §7.4, RFC 8422 §5, RFC 7250 §3, RFC 5489 §2, RFC 5077 §3.3. As in ``messages``: ``encode`` and
``decode_untrusted`` side by side, strict both ways, so that what was decoded encodes to the same bytes.
Certificates, keys, points and signatures are opaque here; ``crypto`` and ``pki`` look into them.
"""

from __future__ import annotations

import attrs

from sansdtls.errors import DecodeError
from sansdtls.iana import AlertDescription
from sansdtls.wire.codec import Reader, uint16s, vector

_NAMED_CURVE = 3
"""ECCurveType, RFC 8422 §5.4."""


@attrs.frozen
class CertificateMessage:
    """A chain of X.509 certificates, the sender's own first, RFC 5246 §7.4.2 and §7.4.6.

    Empty where a client has no certificate that fits what the server asked for.
    """

    chain: tuple[bytes, ...]

    def encode(self) -> bytes:
        """The message body."""
        return vector(3, b"".join(vector(3, certificate) for certificate in self.chain))

    @classmethod
    def decode_untrusted(cls, body: bytes) -> CertificateMessage:
        """Parse a message body."""
        reader = Reader(body, "Certificate")
        certificates = Reader(reader.vector(3), "Certificate")
        reader.end()
        chain = []
        while certificates.remaining:
            chain.append(certificates.vector(3, minimum=1))
        return cls(tuple(chain))


@attrs.frozen
class RawPublicKeyMessage:
    """A Certificate message that carries a SubjectPublicKeyInfo alone, RFC 7250 §3.

    Empty where a client has no key to show: the same bytes as an empty chain, RFC 5246 §7.4.6.
    """

    spki: bytes

    def encode(self) -> bytes:
        """The message body."""
        return vector(3, self.spki)

    @classmethod
    def decode_untrusted(cls, body: bytes) -> RawPublicKeyMessage:
        """Parse a message body."""
        reader = Reader(body, "Certificate")
        message = cls(reader.vector(3))
        reader.end()
        return message


@attrs.frozen
class CertificateRequest:
    """RFC 5246 §7.4.4."""

    certificate_types: bytes
    signature_schemes: tuple[int, ...]
    authorities: tuple[bytes, ...]
    """Distinguished names in DER; empty: any."""

    def encode(self) -> bytes:
        """The message body."""
        return (
            vector(1, self.certificate_types)
            + uint16s(self.signature_schemes)
            + vector(2, b"".join(vector(2, name) for name in self.authorities))
        )

    @classmethod
    def decode_untrusted(cls, body: bytes) -> CertificateRequest:
        """Parse a message body."""
        reader = Reader(body, "CertificateRequest")
        # RFC 5246 §7.4.4 has at least one type; GnuTLS with an Ed25519 key alone sends none. The signature
        # schemes say all that matters, so nothing is lost by reading it.
        certificate_types = reader.vector(1)
        signature_schemes = reader.uint16s()
        names = Reader(reader.vector(2), "CertificateRequest: authorities")
        reader.end()
        authorities = []
        while names.remaining:
            authorities.append(names.vector(2, minimum=1))
        return cls(certificate_types, signature_schemes, tuple(authorities))


@attrs.frozen
class CertificateVerify:
    """The client's signature over all messages before this one, RFC 5246 §7.4.8."""

    scheme: int
    signature: bytes

    def encode(self) -> bytes:
        """The message body."""
        return self.scheme.to_bytes(2) + vector(2, self.signature)

    @classmethod
    def decode_untrusted(cls, body: bytes) -> CertificateVerify:
        """Parse a message body."""
        reader = Reader(body, "CertificateVerify")
        message = cls(reader.integer(2), reader.vector(2))
        reader.end()
        return message


@attrs.frozen
class EcdheParameters:
    """ServerECDHParams, RFC 8422 §5.4: the group and the server's ephemeral public key."""

    group: int
    public: bytes

    def encode(self) -> bytes:
        """The bytes that stand in the message and are signed."""
        return _NAMED_CURVE.to_bytes(1) + self.group.to_bytes(2) + vector(1, self.public)

    @classmethod
    def read_untrusted(cls, reader: Reader) -> EcdheParameters:
        """Take the parameters from the front of ``reader``."""
        curve_type = reader.integer(1)
        if curve_type != _NAMED_CURVE:
            # RFC 8422 §5.4 deprecates explicit_prime and explicit_char2: nobody can have negotiated them.
            raise DecodeError(
                f"ServerKeyExchange: curve type {curve_type} instead of named_curve",
                AlertDescription.ILLEGAL_PARAMETER,
            )
        return cls(reader.integer(2), reader.vector(1, minimum=1))


@attrs.frozen
class SignedServerKeyExchange:
    """The ServerKeyExchange of ECDHE_ECDSA and ECDHE_RSA, RFC 8422 §5.4.

    The signature covers both hello randoms and ``parameters.encode()``.
    """

    parameters: EcdheParameters
    scheme: int
    signature: bytes

    def encode(self) -> bytes:
        """The message body."""
        return self.parameters.encode() + self.scheme.to_bytes(2) + vector(2, self.signature)

    @classmethod
    def decode_untrusted(cls, body: bytes) -> SignedServerKeyExchange:
        """Parse a message body."""
        reader = Reader(body, "ServerKeyExchange")
        message = cls(EcdheParameters.read_untrusted(reader), reader.integer(2), reader.vector(2))
        reader.end()
        return message


@attrs.frozen
class EcdhePskServerKeyExchange:
    """The ServerKeyExchange of ECDHE_PSK, RFC 5489 §2: not signed, the key authenticates it."""

    identity_hint: bytes
    parameters: EcdheParameters

    def encode(self) -> bytes:
        """The message body."""
        return vector(2, self.identity_hint) + self.parameters.encode()

    @classmethod
    def decode_untrusted(cls, body: bytes) -> EcdhePskServerKeyExchange:
        """Parse a message body."""
        reader = Reader(body, "ServerKeyExchange")
        message = cls(reader.vector(2), EcdheParameters.read_untrusted(reader))
        reader.end()
        return message


@attrs.frozen
class EcdhClientKeyExchange:
    """The client's ephemeral public key, RFC 8422 §5.7."""

    public: bytes

    def encode(self) -> bytes:
        """The message body."""
        return vector(1, self.public)

    @classmethod
    def decode_untrusted(cls, body: bytes) -> EcdhClientKeyExchange:
        """Parse a message body."""
        reader = Reader(body, "ClientKeyExchange")
        message = cls(reader.vector(1, minimum=1))
        reader.end()
        return message


@attrs.frozen
class EcdhePskClientKeyExchange:
    """The PSK identity and the client's ephemeral public key, RFC 5489 §2."""

    identity: bytes
    public: bytes

    def encode(self) -> bytes:
        """The message body."""
        return vector(2, self.identity) + vector(1, self.public)

    @classmethod
    def decode_untrusted(cls, body: bytes) -> EcdhePskClientKeyExchange:
        """Parse a message body."""
        reader = Reader(body, "ClientKeyExchange")
        message = cls(reader.vector(2), reader.vector(1, minimum=1))
        reader.end()
        return message


@attrs.frozen
class NewSessionTicket:
    """RFC 5077 §3.3. An empty ticket: the server changed its mind and the client keeps none."""

    lifetime_hint: int
    """Seconds from receipt; 0 says nothing about it."""
    ticket: bytes

    def encode(self) -> bytes:
        """The message body."""
        return self.lifetime_hint.to_bytes(4) + vector(2, self.ticket)

    @classmethod
    def decode_untrusted(cls, body: bytes) -> NewSessionTicket:
        """Parse a message body."""
        reader = Reader(body, "NewSessionTicket")
        message = cls(reader.integer(4), reader.vector(2))
        reader.end()
        return message
