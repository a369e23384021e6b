"""The table of cipher suites: one row each, nothing about a suite stands anywhere else.

Usage limits. A forged DTLS record does not end the connection, so an attacker may try again and
again; and each record sealed under a key tells a little about it. RFC 9325 §4.4 therefore asks DTLS to
count both, and RFC 9147 §4.5.3 with its appendix B gives numbers:

* sealed records: AES-GCM 2**24.5, AES-CCM 2**23, ChaCha20-Poly1305 beyond any sequence number.
* failed opens: 2**28 for GCM (RFC 9325 §4.4 for DTLS 1.2), 2**36 for ChaCha20, 2**23.5 for CCM with its full tag.

For CCM_8 that appendix arrives at 2**7 failed opens. We do not use that number: anybody who knows two
addresses can send 128 forged datagrams, and an established association shall not be ended by junk.
2**24 leaves a forger with a chance below 2**-40 over the whole life of a key and costs it sixteen
million datagrams. ``Limits.max_failed_opens`` sets another balance.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol

import attrs
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305

from sansdtls.iana import CipherSuite

if TYPE_CHECKING:
    from collections.abc import Callable

NotAuthentic = InvalidTag
"""What the AEADs raise for a record that the holder of the key did not seal."""

FULL_TAG = 16
SHORT_TAG = 8


class KeyExchange(enum.Enum):
    """How a suite arrives at its premaster secret, and who proves what."""

    PSK = "PSK"
    """RFC 4279 §2: from the key alone. Whoever learns the key can read what was recorded before."""
    ECDHE_PSK = "ECDHE_PSK"
    """RFC 5489 §2: from ephemeral Diffie-Hellman, authenticated by the key."""
    ECDHE_ECDSA = "ECDHE_ECDSA"
    """RFC 8422 §2.1: ephemeral Diffie-Hellman, signed by an ECDSA or Ed25519 key."""
    ECDHE_RSA = "ECDHE_RSA"
    """RFC 8422 §2.2: ephemeral Diffie-Hellman, signed by an RSA key."""


PSK_KEY_EXCHANGES = frozenset((KeyExchange.PSK, KeyExchange.ECDHE_PSK))
"""Those that a pre-shared key authenticates; the others take a certificate or raw public key."""


class Aead(Protocol):
    """The interface of ``cryptography``'s AEAD classes, RFC 5116."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...


@attrs.frozen
class SuiteParameters:
    """One row. Lengths in bytes, limits in records."""

    suite: CipherSuite
    key_exchange: KeyExchange
    aead: Callable[[bytes], Aead]
    key_length: int
    fixed_iv_length: int
    """Part of the nonce that comes from the key block."""
    explicit_nonce_length: int
    """Part of the nonce that each record carries: 8 or 0."""
    tag_length: int
    prf_hash: hashes.HashAlgorithm
    max_sealed: int
    max_failed_opens: int

    @property
    def overhead(self) -> int:
        """Bytes that protection adds to a record's fragment."""
        return self.explicit_nonce_length + self.tag_length


def _ccm(suite: CipherSuite, key_exchange: KeyExchange, key_length: int, tag_length: int) -> SuiteParameters:
    # RFC 6655 §3, RFC 7251 §2, RFC 8442 §3: the nonce is a 4-byte salt and 8 explicit bytes; the PRF is
    # that of RFC 5246, with keys of both sizes.
    return SuiteParameters(
        suite=suite,
        key_exchange=key_exchange,
        aead=lambda key: AESCCM(key, tag_length=tag_length),
        key_length=key_length,
        fixed_iv_length=4,
        explicit_nonce_length=8,
        tag_length=tag_length,
        prf_hash=hashes.SHA256(),
        max_sealed=2**23,
        max_failed_opens=int(2**23.5) if tag_length == FULL_TAG else 2**24,
    )


def _gcm(suite: CipherSuite, key_exchange: KeyExchange, key_length: int) -> SuiteParameters:
    # RFC 5288 §3, RFC 5289 §3.2, RFC 5487 §2, RFC 8442 §3: with the longer key comes the longer hash.
    return SuiteParameters(
        suite=suite,
        key_exchange=key_exchange,
        aead=AESGCM,
        key_length=key_length,
        fixed_iv_length=4,
        explicit_nonce_length=8,
        tag_length=FULL_TAG,
        prf_hash=hashes.SHA384() if key_length == 32 else hashes.SHA256(),
        max_sealed=int(2**24.5),
        max_failed_opens=2**28,
    )


def _chacha20(suite: CipherSuite, key_exchange: KeyExchange) -> SuiteParameters:
    # RFC 7905 §2: a 12-byte IV, combined with the sequence number; nothing explicit
    return SuiteParameters(
        suite=suite,
        key_exchange=key_exchange,
        aead=ChaCha20Poly1305,
        key_length=32,
        fixed_iv_length=12,
        explicit_nonce_length=0,
        tag_length=FULL_TAG,
        prf_hash=hashes.SHA256(),
        max_sealed=2**48 - 1,
        max_failed_opens=2**36,
    )


SUITES = {
    row.suite: row
    for row in (
        _gcm(CipherSuite.TLS_PSK_WITH_AES_128_GCM_SHA256, KeyExchange.PSK, 16),
        _gcm(CipherSuite.TLS_PSK_WITH_AES_256_GCM_SHA384, KeyExchange.PSK, 32),
        _ccm(CipherSuite.TLS_PSK_WITH_AES_128_CCM, KeyExchange.PSK, 16, FULL_TAG),
        _ccm(CipherSuite.TLS_PSK_WITH_AES_256_CCM, KeyExchange.PSK, 32, FULL_TAG),
        _ccm(CipherSuite.TLS_PSK_WITH_AES_128_CCM_8, KeyExchange.PSK, 16, SHORT_TAG),
        _ccm(CipherSuite.TLS_PSK_WITH_AES_256_CCM_8, KeyExchange.PSK, 32, SHORT_TAG),
        _chacha20(CipherSuite.TLS_PSK_WITH_CHACHA20_POLY1305_SHA256, KeyExchange.PSK),
        _gcm(CipherSuite.TLS_ECDHE_PSK_WITH_AES_128_GCM_SHA256, KeyExchange.ECDHE_PSK, 16),
        _gcm(CipherSuite.TLS_ECDHE_PSK_WITH_AES_256_GCM_SHA384, KeyExchange.ECDHE_PSK, 32),
        _ccm(CipherSuite.TLS_ECDHE_PSK_WITH_AES_128_CCM_SHA256, KeyExchange.ECDHE_PSK, 16, FULL_TAG),
        _ccm(CipherSuite.TLS_ECDHE_PSK_WITH_AES_128_CCM_8_SHA256, KeyExchange.ECDHE_PSK, 16, SHORT_TAG),
        _chacha20(CipherSuite.TLS_ECDHE_PSK_WITH_CHACHA20_POLY1305_SHA256, KeyExchange.ECDHE_PSK),
        _gcm(CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, KeyExchange.ECDHE_ECDSA, 16),
        _gcm(CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, KeyExchange.ECDHE_ECDSA, 32),
        _ccm(CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_CCM, KeyExchange.ECDHE_ECDSA, 16, FULL_TAG),
        _ccm(CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_256_CCM, KeyExchange.ECDHE_ECDSA, 32, FULL_TAG),
        _ccm(CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8, KeyExchange.ECDHE_ECDSA, 16, SHORT_TAG),
        _ccm(CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_256_CCM_8, KeyExchange.ECDHE_ECDSA, 32, SHORT_TAG),
        _chacha20(CipherSuite.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, KeyExchange.ECDHE_ECDSA),
        _gcm(CipherSuite.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, KeyExchange.ECDHE_RSA, 16),
        _gcm(CipherSuite.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, KeyExchange.ECDHE_RSA, 32),
        _chacha20(CipherSuite.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, KeyExchange.ECDHE_RSA),
    )
}


def new_ticket_aead(key: bytes) -> Aead:
    """AES-256-GCM, for what a server seals for itself."""
    return AESGCM(key)
