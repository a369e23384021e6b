"""Entropy for tests: endless, different for each seed, and the same on every run."""

from __future__ import annotations

import hashlib


class CounterEntropy:
    """A stand-in for ``os.urandom``: SHA-256 over the seed and a counter.

    The stream depends on the seed and on how many bytes were taken, never on how they were divided into
    calls. It does not repeat within 2**64 blocks. Predictable, so for tests only.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed
        self.bytes_taken = 0
        """How many bytes were handed out."""
        self._prefix = hashlib.sha256(b"sansdtls.testing %d" % seed)
        self._blocks = 0
        self._rest = b""

    def __call__(self, length: int) -> bytes:
        """The next ``length`` bytes."""
        while len(self._rest) < length:
            block = self._prefix.copy()
            block.update(self._blocks.to_bytes(8, "big"))
            self._blocks += 1
            self._rest += block.digest()
        taken, self._rest = self._rest[:length], self._rest[length:]
        self.bytes_taken += length
        return taken

    def fraction(self) -> float:
        """A number in [0, 1), of 53 bits."""
        return (int.from_bytes(self(7), "big") >> 3) / 2**53

    def below(self, bound: int) -> int:
        """A whole number in [0, bound). The bias is below ``bound / 2**64``."""
        return int.from_bytes(self(8), "big") % bound

    def __repr__(self) -> str:
        return f"CounterEntropy(seed={self.seed}, bytes_taken={self.bytes_taken})"
