"""What this side proves itself with besides pre-shared keys: certificates and raw public keys."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import attrs

from sansdtls.crypto.groups import BadPublicKey
from sansdtls.crypto.signatures import SigningKey, spki_of_certificate
from sansdtls.errors import ConfigError
from sansdtls.iana import CertificateType

if TYPE_CHECKING:
    from collections.abc import Iterable


@enum.unique
class ClientAuthentication(enum.Enum):
    """Whether a server asks clients for a certificate or raw public key."""

    NONE = "none"
    WANTED = "wanted"
    """Asked for; a client without one may go on."""
    REQUIRED = "required"


# Spelled out, because type checkers do not see through ``converter=tuple``.
def _chain(value: Iterable[bytes]) -> tuple[bytes, ...]:
    return tuple(value)


def _server_names(value: Iterable[str]) -> tuple[str, ...]:
    return tuple(value)


@attrs.frozen
class CertificateCredential:
    """An X.509 certificate with its intermediates and its private key.

    Raises ConfigError where the key is not the certificate's.
    """

    chain: tuple[bytes, ...] = attrs.field(converter=_chain, repr=False)
    """DER, our own certificate first, each signed by the next; the trust anchor is left out."""
    key: SigningKey = attrs.field(repr=False)
    server_names: tuple[str, ...] = attrs.field(default=(), converter=_server_names)
    """Names (SNI, RFC 6066 §3) it is for, in lower case; none = for all names that no other credential is for."""

    certificate_type = CertificateType.X509

    def __attrs_post_init__(self) -> None:
        if not self.chain:
            raise ConfigError("CertificateCredential.chain: no certificate")
        try:
            spki = spki_of_certificate(self.chain[0])
        except BadPublicKey as error:
            raise ConfigError(f"CertificateCredential.chain: {error.rule}") from None
        if spki != self.key.spki:
            raise ConfigError("CertificateCredential.key: this is not the key of the first certificate")


@attrs.frozen
class RawPublicKeyCredential:
    """A key pair whose public half is known to the peer beforehand, RFC 7250."""

    key: SigningKey = attrs.field(repr=False)
    server_names: tuple[str, ...] = attrs.field(default=(), converter=_server_names)
    """As for :class:`CertificateCredential`."""

    certificate_type = CertificateType.RAW_PUBLIC_KEY


Credential = CertificateCredential | RawPublicKeyCredential
