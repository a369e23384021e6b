"""A ledger of every nonce that is used under any key, kept where the ciphers are called.

It sees all that is sealed in the process: both roles, handshakes, alerts, repeated flights, path checks,
associations that were thawed twice by mistake. It knows nothing of epochs, numbers and reserves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sansdtls.record.protection import _Cipher

if TYPE_CHECKING:
    import pytest

    from sansdtls.crypto.suites import Aead


class NonceRepeated(AssertionError):
    """What must never happen."""


class NonceLedger:
    """Which nonces have been used under which key."""

    def __init__(self) -> None:
        self.used: dict[bytes, set[bytes]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.used.values()))

    def enter(self, key: bytes, nonce: bytes) -> None:
        """A nonce is used. Raises NonceRepeated for the second time."""
        nonces = self.used.setdefault(key, set())
        if nonce in nonces:
            raise NonceRepeated(f"nonce {nonce.hex()} is used again, after {len(nonces)} others")
        nonces.add(nonce)

    def keep(self, patch: pytest.MonkeyPatch) -> None:
        """Write down all that is sealed from now on."""
        made = _Cipher._made

        def watched(cipher: _Cipher) -> Aead:
            key = cipher._secret[: cipher._suite.key_length]
            cipher._aead = _Watched(made(cipher), key, self)
            return cipher._aead

        patch.setattr(_Cipher, "_made", watched)


class _Watched:
    def __init__(self, aead: Aead, key: bytes, ledger: NonceLedger) -> None:
        self._aead, self._key, self._ledger = aead, key, ledger
        self.decrypt = aead.decrypt

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
        self._ledger.enter(self._key, nonce)
        return self._aead.encrypt(nonce, data, associated_data)
