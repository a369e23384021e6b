"""The pseudorandom function of TLS 1.2, RFC 5246 §5, and what is derived with it."""

from __future__ import annotations

import hmac

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC

MASTER_SECRET_LENGTH = 48
VERIFY_DATA_LENGTH = 12
"""Bytes, RFC 5246 §7.4.9."""


def prf(algorithm: hashes.HashAlgorithm, secret: bytes, label: bytes, seed: bytes, length: int) -> bytes:
    """``length`` bytes of P_hash(secret, label ‖ seed)."""
    keyed = HMAC(secret, algorithm)  # copied for each block: setting up the key is half of the work
    seed = label + seed
    block = seed
    output = b""
    while len(output) < length:
        inner = keyed.copy()
        inner.update(block)
        block = inner.finalize()
        outer = keyed.copy()
        outer.update(block)
        outer.update(seed)
        output += outer.finalize()
    return output[:length]


def digest(algorithm: hashes.HashAlgorithm, data: bytes) -> bytes:
    """The hash of ``data``."""
    context = hashes.Hash(algorithm)
    context.update(data)
    return context.finalize()


def sha256(data: bytes) -> bytes:
    """The SHA-256 hash of ``data``."""
    return digest(hashes.SHA256(), data)


def psk_premaster_secret(psk: bytes, shared_secret: bytes | None = None) -> bytes:
    """The other secret, then the key, each with its length in front.

    The other secret is that of ECDHE (RFC 5489 §2), or as many zero bytes as the key has (RFC 4279 §2).
    """
    other = bytes(len(psk)) if shared_secret is None else shared_secret
    return len(other).to_bytes(2) + other + len(psk).to_bytes(2) + psk


def hmac_sha256(key: bytes, data: bytes) -> bytes:
    """HMAC-SHA-256, RFC 2104."""
    context = HMAC(key, hashes.SHA256())
    context.update(data)
    return context.finalize()


class HmacSha256:
    """HMAC-SHA-256 under one key, which is set up once: that takes longer than the hash of a short text."""

    __slots__ = ("_keyed",)

    def __init__(self, key: bytes) -> None:
        self._keyed = HMAC(key, hashes.SHA256())

    def of(self, data: bytes) -> bytes:
        """The code of ``data``."""
        context = self._keyed.copy()
        context.update(data)
        return context.finalize()


def equal(left: bytes, right: bytes) -> bool:
    """Whether two secrets are equal, in a time that does not depend on where they differ."""
    return hmac.compare_digest(left, right)
