"""The key schedule and record protection of DTLS 1.2 with PSK, written from the RFCs for the tests.

Nothing here comes from ``sansdtls``; where both agree with a recording of OpenSSL, both are right.
"""

import hashlib
import hmac
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305

from tests.core import raw


class Suite(NamedTuple):
    aead: str
    hash: str
    key_length: int
    iv_length: int
    tag_length: int


SUITES = {
    raw.AES_128_GCM: Suite("GCM", "sha256", 16, 4, 16),
    raw.AES_256_GCM: Suite("GCM", "sha384", 32, 4, 16),
    raw.AES_128_CCM: Suite("CCM", "sha256", 16, 4, 16),
    raw.AES_256_CCM: Suite("CCM", "sha256", 32, 4, 16),
    raw.AES_128_CCM_8: Suite("CCM", "sha256", 16, 4, 8),
    raw.AES_256_CCM_8: Suite("CCM", "sha256", 32, 4, 8),
    raw.CHACHA20: Suite("CHACHA20", "sha256", 32, 12, 16),
}
AES_128_GCM, AES_256_GCM, CHACHA20 = (
    SUITES[code] for code in (raw.AES_128_GCM, raw.AES_256_GCM, raw.CHACHA20)
)
SUITES |= {
    raw.ECDHE_PSK_AES_128_GCM: AES_128_GCM,
    raw.ECDHE_PSK_AES_256_GCM: AES_256_GCM,
    raw.ECDHE_PSK_AES_128_CCM: SUITES[raw.AES_128_CCM],
    raw.ECDHE_PSK_AES_128_CCM_8: SUITES[raw.AES_128_CCM_8],
    raw.ECDHE_PSK_CHACHA20: CHACHA20,
    raw.ECDSA_AES_128_GCM: AES_128_GCM,
    raw.ECDSA_AES_256_GCM: AES_256_GCM,
    raw.ECDSA_AES_128_CCM: SUITES[raw.AES_128_CCM],
    raw.ECDSA_AES_256_CCM: SUITES[raw.AES_256_CCM],
    raw.ECDSA_AES_128_CCM_8: SUITES[raw.AES_128_CCM_8],
    raw.ECDSA_AES_256_CCM_8: SUITES[raw.AES_256_CCM_8],
    raw.ECDSA_CHACHA20: CHACHA20,
    raw.RSA_AES_128_GCM: AES_128_GCM,
    raw.RSA_AES_256_GCM: AES_256_GCM,
    raw.RSA_CHACHA20: CHACHA20,
}


def prf(hash_name: str, secret: bytes, label: bytes, seed: bytes, length: int) -> bytes:
    """P_hash of RFC 5246 §5."""
    seed = label + seed
    a, out = seed, b""
    while len(out) < length:
        a = hmac.digest(secret, a, hash_name)
        out += hmac.digest(secret, a + seed, hash_name)
    return out[:length]


def premaster_psk(psk: bytes, shared: bytes | None = None) -> bytes:
    """RFC 4279 §2, and with a shared secret RFC 5489 §2."""
    return raw.vector(bytes(len(psk)) if shared is None else shared, 2) + raw.vector(psk, 2)


class Protection:
    """One direction of record protection."""

    def __init__(self, suite: int, key: bytes, iv: bytes):
        self.suite = suite
        self.iv = iv
        self.cipher: AESCCM | AESGCM | ChaCha20Poly1305
        self.aead = SUITES[suite].aead
        if self.aead == "CHACHA20":
            self.cipher = ChaCha20Poly1305(key)
        elif self.aead == "GCM":
            self.cipher = AESGCM(key)
        else:
            self.cipher = AESCCM(key, tag_length=SUITES[suite].tag_length)

    @staticmethod
    def _aad(content_type: int, version: int, number: bytes, length: int) -> bytes:
        return number + bytes([content_type]) + version.to_bytes(2, "big") + length.to_bytes(2, "big")

    def _nonce(self, number: bytes) -> bytes:
        if self.aead == "CHACHA20":  # RFC 7905 §2
            return bytes(a ^ b for a, b in zip(self.iv, bytes(4) + number, strict=True))
        return self.iv + number  # RFC 5288 §3, RFC 6655 §3

    def seal(
        self, content_type: int, plaintext: bytes, *, epoch: int, seq: int, version: int = raw.DTLS_1_2
    ) -> bytes:
        """A whole record."""
        number = epoch.to_bytes(2, "big") + seq.to_bytes(6, "big")
        sealed = self.cipher.encrypt(
            self._nonce(number), plaintext, self._aad(content_type, version, number, len(plaintext))
        )
        explicit = b"" if self.aead == "CHACHA20" else number
        return raw.record(content_type, explicit + sealed, epoch=epoch, seq=seq, version=version)

    def open(self, sealed: raw.Record) -> bytes:
        """The plaintext; ``InvalidTag`` where it does not authenticate."""
        number = sealed.epoch.to_bytes(2, "big") + sealed.seq.to_bytes(6, "big")
        payload, explicit = sealed.payload, number
        if self.aead != "CHACHA20":
            explicit, payload = payload[:8], payload[8:]
        length = len(payload) - SUITES[self.suite].tag_length
        return self.cipher.decrypt(
            self._nonce(explicit), payload, self._aad(sealed.type, sealed.version, number, length)
        )


class Keys:
    """Everything that follows from the master secret."""

    def __init__(self, suite: int, master_secret: bytes, client_random: bytes, server_random: bytes):
        self.suite = suite
        _, self.hash_name, key_length, iv_length, _ = SUITES[suite]
        self.master_secret = master_secret
        self.randoms = client_random + server_random
        block = self.prf(b"key expansion", server_random + client_random, 2 * (key_length + iv_length))
        client_key, block = block[:key_length], block[key_length:]
        server_key, block = block[:key_length], block[key_length:]
        self.client = Protection(suite, client_key, block[:iv_length])
        self.server = Protection(suite, server_key, block[iv_length:])

    @classmethod
    def from_psk(
        cls,
        suite: int,
        psk: bytes,
        client_random: bytes,
        server_random: bytes,
        session_hash_input: bytes | None,
    ) -> "Keys":
        """From the PSK; with extended master secret where the transcript is given."""
        return cls.from_premaster(suite, premaster_psk(psk), client_random, server_random, session_hash_input)

    @classmethod
    def from_premaster(
        cls,
        suite: int,
        premaster: bytes,
        client_random: bytes,
        server_random: bytes,
        session_hash_input: bytes | None,
    ) -> "Keys":
        """From any premaster secret; as above."""
        hash_name = SUITES[suite].hash
        label, seed = b"master secret", client_random + server_random
        if session_hash_input is not None:
            label = b"extended master secret"
            seed = hashlib.new(hash_name, session_hash_input).digest()
        master_secret = prf(hash_name, premaster, label, seed, 48)
        return cls(suite, master_secret, client_random, server_random)

    def prf(self, label: bytes, seed: bytes, length: int) -> bytes:
        return prf(self.hash_name, self.master_secret, label, seed, length)

    def verify_data(self, role: str, transcript: bytes) -> bytes:
        """RFC 5246 §7.4.9; ``role`` is whose Finished it is."""
        digest = hashlib.new(self.hash_name, transcript).digest()
        return self.prf(role.encode() + b" finished", digest, 12)

    def export(self, label: bytes, length: int, context: bytes | None = None) -> bytes:
        """RFC 5705 §4."""
        return self.prf(label, self.randoms + (b"" if context is None else raw.vector(context, 2)), length)
