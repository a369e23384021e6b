"""How a key is named where it must not be shown: in lists, the log, answers of the admin socket.

Whoever reads a fingerprint may try keys against it. That finds none of 16 random bytes or more; of a key that can be
guessed (a word, a serial number) it betrays as much as one recorded handshake does. So fingerprints are for
operators, and never sent to a peer. HMAC under the key, not a plain hash: two programs that show a hash of the
same key for other purposes show something else.
"""

from __future__ import annotations

import hashlib
import hmac

FINGERPRINT_BYTES = 8
"""Enough to tell two keys of an identity apart; of a million keys two are alike once in 40 million fleets."""

_MESSAGE = b"sansdtls key fingerprint"


def fingerprint(key: bytes) -> str:
    """16 hex digits that stand for ``key``."""
    return short_digest(key).hex()


def short_digest(key: bytes) -> bytes:
    """The same as bytes, for tables."""
    return hmac.digest(key, _MESSAGE, hashlib.sha256)[:FINGERPRINT_BYTES]
