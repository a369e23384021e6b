"""Which keys are too weak to be made: those that somebody would try first.

The attacker has recorded one handshake and tries keys against it at leisure (RFC 4279 §7.2); 16 random bytes resist that,
16 bytes of a pattern, a pass phrase or a manual do not. No test can say that a key *is* random. These find what
people and broken provisioning scripts write instead, and each is passed by random bytes but once in a billion
(:data:`CHANCE`), so that a fleet of a million devices can be imported.

Only new keys are refused for it. One that is in a file already is loaded: refusing it would lock devices out,
and the remedy, a rotation, needs them connected. ``dtls-endpoint check`` names them.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

from endpoint.keystore.fingerprint import fingerprint

CHANCE = 1e-9
"""How likely 16 random bytes are to be called weak, at most; measured by a test where it can be, else computed there."""
FEW_VALUES = 6
"""Different byte values of which a key of 16 bytes or more cannot consist by chance."""
TEXT_BYTES = 24
"""From so many bytes on a key that is printable throughout is text; below, if it is letters, digits and few marks."""
STEPS = 0.6
"""Share of equal distances from byte to byte that chance does not give."""
DIGIT_STEPS = 0.9
"""Share of hex digits that are the one before, the one above or below it, that chance does not give."""

_WORDS = re.compile(rb"[0-9A-Za-z _.:/+=-]+")
_PRINTABLE = re.compile(rb"[\x20-\x7e]+")
_DIGITS = re.compile(rb"[0-9a-f]+|[0-9A-F]+")

PUBLISHED = {
    "a8d7a2fead6ad8c0": "GnuTLS",
    "d19a32b0d2fc566b": "Zabbix",
    "adfddd57b185aa04": "Zabbix",
}
"""Fingerprints of keys from the manuals of programs that read the same files, without those that the rules find anyway."""


def weakness(key: bytes) -> str | None:
    """Why ``key`` (16 bytes or more) is weak, as the rest of "the key …"; ``None`` if nothing is known against it.

    Says nothing of the bytes themselves beyond that.
    """
    if (program := PUBLISHED.get(fingerprint(key))) is not None:
        return f"is printed in the manual of {program}"
    period = _period(key)
    if period is not None:
        return f"repeats {'one byte' if period == 1 else f'the same {period} bytes'}"
    if len(set(key)) <= FEW_VALUES:
        return f"consists of {len(set(key))} different bytes"
    if _DIGITS.fullmatch(key):
        return "is hexadecimal digits that were written in hexadecimal once more"
    if _WORDS.fullmatch(key) or (len(key) >= TEXT_BYTES and _PRINTABLE.fullmatch(key)):
        return "is text, not random bytes"
    if _counts(key):
        return "counts up or down"
    return None


def _period(key: bytes) -> int | None:
    """After how many bytes the key begins again; at least half of it has to be repetition."""
    for period in range(1, len(key) // 2 + 1):
        if key[period:] == key[:-period]:
            return period
    return None


def _counts(key: bytes) -> bool:
    """Whether it goes through bytes or hex digits in steps: 00 01 02, 00 11 22, 01 23 45, fe dc ba."""
    distances = Counter((after - before) % 256 for before, after in pairwise(key))
    if max(distances.values()) >= STEPS * (len(key) - 1):
        return True
    digits = [int(digit, 16) for digit in key.hex()]
    near = sum((after - before) % 16 in {0, 1, 15} for before, after in pairwise(digits))
    return near >= DIGIT_STEPS * (len(digits) - 1)
