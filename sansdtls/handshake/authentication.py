"""Certificates, raw public keys and signatures in a handshake: what both roles do with them.

What is checked here: that the peer holds the private key of what it shows, by a scheme that we offered and that
fits the key. Whether that key is *somebody's* is the caller's to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from sansdtls.credentials import RawPublicKeyCredential
from sansdtls.crypto.groups import BadPublicKey, EphemeralKey
from sansdtls.crypto.signatures import is_rsa, spki_of_certificate, verify_signature
from sansdtls.crypto.suites import KeyExchange, NotAuthentic
from sansdtls.events import (
    AuthenticationFailed,
    AuthenticationProblem,
    PeerCertificateReceived,
    PeerRawKeyReceived,
)
from sansdtls.handshake.failure import HandshakeFailure, violation
from sansdtls.iana import AlertDescription, CertificateType
from sansdtls.wire.certificates import CertificateMessage, RawPublicKeyMessage

if TYPE_CHECKING:
    from sansdtls.connection import Connection
    from sansdtls.credentials import Credential
    from sansdtls.iana import SignatureScheme
    from sansdtls.wire.certificates import EcdheParameters


@attrs.frozen
class ShownKey:
    """What a peer showed in its Certificate message."""

    spki: bytes
    chain: tuple[bytes, ...] | None
    """``None`` for a raw public key."""

    @property
    def raw_public_key(self) -> bytes | None:
        """``None`` for a certificate."""
        return self.spki if self.chain is None else None

    def request(
        self, owner: Connection, server_name: str | None, *, resumption: bool = False
    ) -> PeerCertificateReceived | PeerRawKeyReceived:
        """The question to the caller."""
        if self.chain is not None:
            return PeerCertificateReceived(owner, self.chain, server_name, resumption)
        return PeerRawKeyReceived(owner, self.spki, server_name, resumption)


def certificate_body(credential: Credential | None) -> bytes:
    """The Certificate message that shows ``credential``; an empty one for none."""
    if credential is None:
        return CertificateMessage(()).encode()
    if isinstance(credential, RawPublicKeyCredential):
        return RawPublicKeyMessage(credential.key.spki).encode()
    return CertificateMessage(credential.chain).encode()


def read_certificate_untrusted(body: bytes, certificate_type: CertificateType) -> ShownKey | None:
    """What a Certificate message shows; ``None`` if it is empty. Raises HandshakeFailure, or DecodeError."""
    try:
        if certificate_type is CertificateType.RAW_PUBLIC_KEY:
            spki = RawPublicKeyMessage.decode_untrusted(body).spki
            if spki:
                is_rsa(spki)  # refuses what cannot be used
            return ShownKey(spki, None) if spki else None
        chain = CertificateMessage.decode_untrusted(body).chain
        return ShownKey(spki_of_certificate(chain[0]), chain) if chain else None
    except BadPublicKey as error:
        raise violation(AlertDescription.BAD_CERTIFICATE, error.rule) from None


def check_key_fits(shown: ShownKey, key_exchange: KeyExchange) -> None:
    """RFC 5246 §7.4.2: the certificate's key has to be of the kind that the suite names."""
    if is_rsa(shown.spki) != (key_exchange is KeyExchange.ECDHE_RSA):
        raise violation(
            AlertDescription.ILLEGAL_PARAMETER, f"the server's key does not fit {key_exchange.name}"
        )


def signed_parameters(client_random: bytes, server_random: bytes, parameters: EcdheParameters) -> bytes:
    """What the signature in ServerKeyExchange covers, RFC 8422 §5.4."""
    return client_random + server_random + parameters.encode()


def check_signature(
    shown: ShownKey, scheme: int, offered: tuple[SignatureScheme, ...], data: bytes, signature: bytes
) -> None:
    """Raise HandshakeFailure unless the holder of the shown key signed ``data`` by a scheme we offered."""
    if scheme not in offered:
        raise violation(AlertDescription.ILLEGAL_PARAMETER, f"signature scheme {scheme:#06x} was not offered")
    try:
        verify_signature(shown.spki, scheme, data, signature)
    except NotAuthentic:
        # RFC 5246 §7.2.2: decrypt_error where the handshake was "unable to correctly verify a signature"
        raise HandshakeFailure(
            AlertDescription.DECRYPT_ERROR, AuthenticationFailed(AuthenticationProblem.BAD_SIGNATURE)
        ) from None


def shared_secret(ours: EphemeralKey, peer_public: bytes) -> bytes:
    """The outcome of ECDHE; HandshakeFailure for a public key that is none."""
    try:
        return ours.exchange(peer_public)
    except BadPublicKey as error:
        raise violation(AlertDescription.ILLEGAL_PARAMETER, error.rule) from None
