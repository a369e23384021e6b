"""Keys on the controller: derived, named by a fingerprint, judged. Nothing but Python's own library, as Ansible has it.

``fingerprint`` and ``weakness`` are those of the endpoint (endpoint/keystore); a test compares them.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import Counter
from itertools import pairwise

SALT = b"sansdtls-psk-v1"
SHORTEST, LONGEST = 16, 64
"""Bytes of a key."""

_HEXADECIMAL = re.compile(r"(?:[0-9A-Fa-f]{2})+")
_WORDS = re.compile(rb"[0-9A-Za-z _.:/+=-]+")
_PRINTABLE = re.compile(rb"[\x20-\x7e]+")
_DIGITS = re.compile(rb"[0-9a-f]+|[0-9A-F]+")
_PUBLISHED = {"a8d7a2fead6ad8c0", "d19a32b0d2fc566b", "adfddd57b185aa04"}


def from_hexadecimal(text: object, what: str) -> bytes:
    """The bytes; ValueError, without the text in it, if it is not a key in hexadecimal."""
    digits = str(text).strip()
    if not _HEXADECIMAL.fullmatch(digits):
        raise ValueError(f"{what}: is not hexadecimal; remedy: openssl rand -hex 32 makes one")
    return bytes.fromhex(digits)


def derive(master: bytes, device: str, generation: int, length: int) -> bytes:
    """HKDF-SHA256 (RFC 5869) of a master key, for one device and one generation of its key."""
    if len(master) < SHORTEST:
        raise ValueError(
            f"the master key: has {len(master)} bytes, not {SHORTEST} at least; remedy: openssl rand -hex 32"
        )
    if not device or "\0" in device:
        raise ValueError("the device's name: is empty, or holds a NUL")
    if generation < 0:
        raise ValueError(f"the generation: {generation} is not a number from 0 on")
    if not SHORTEST <= length <= LONGEST:
        raise ValueError(f"the length: {length} is not a number of bytes from {SHORTEST} to {LONGEST}")
    extracted = hmac.digest(SALT, master, hashlib.sha256)
    info = device.encode() + b"\0" + str(generation).encode("ascii")
    made = block = b""
    for count in range(1, -(-length // 32) + 1):
        block = hmac.digest(extracted, block + info + bytes([count]), hashlib.sha256)
        made += block
    return made[:length]


def fingerprint(key: bytes) -> str:
    """16 hex digits that stand for ``key``."""
    return hmac.digest(key, b"sansdtls key fingerprint", hashlib.sha256)[:8].hex()


def weak(key: bytes) -> bool:
    """Whether somebody would try this key (of 16 bytes or more) first."""
    if fingerprint(key) in _PUBLISHED or len(set(key)) <= 6:
        return True
    if any(key[period:] == key[:-period] for period in range(1, len(key) // 2 + 1)):
        return True
    if _DIGITS.fullmatch(key) or _WORDS.fullmatch(key) or (len(key) >= 24 and _PRINTABLE.fullmatch(key)):
        return True
    distances = Counter((after - before) % 256 for before, after in pairwise(key))
    if max(distances.values()) >= 0.6 * (len(key) - 1):
        return True
    digits = [int(digit, 16) for digit in key.hex()]
    near = sum((after - before) % 16 in {0, 1, 15} for before, after in pairwise(digits))
    return near >= 0.9 * (len(digits) - 1)
