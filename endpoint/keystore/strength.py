"""Which keys are too weak to be made: those that somebody would try first.

The attacker has recorded one handshake and tries keys against it at leisure (RFC 4279 §7.2); 16 random bytes resist
that,
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
from typing import TYPE_CHECKING

from endpoint.keystore.file import quoted_identity
from endpoint.keystore.fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CHANCE = 1e-9
"""How likely 16 random bytes are to be called weak, at most."""
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
"""Fingerprints of keys in manuals of programs that read the same files, without those that the rules find."""


_NEAR = frozenset({0, 1, 15})
_DIGITS_NEAR = bytes(byte for byte in range(256) if (byte - (byte >> 4)) % 16 in _NEAR)
"""Bytes whose second digit is the first one, or the one above or below it."""
MAX_NOTES = 20
"""Weak keys that are told one by one."""


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
    half = key[: len(key) // 2]
    period = key.find(half, 1)
    while 0 < period <= len(key) // 2:
        if key[period:] == key[:-period]:
            return period
        period = key.find(half, period + 1)
    return None


def _counts(key: bytes) -> bool:
    """Whether it goes through bytes or hex digits in steps: 00 01 02, 00 11 22, 01 23 45, fe dc ba."""
    distances = [(after - before) % 256 for before, after in pairwise(key)]
    enough = STEPS * len(distances)
    # The cheap question first: a fleet has a million keys, and nearly all are random.
    if len(set(distances)) <= len(distances) - enough + 1 and max(Counter(distances).values()) >= enough:
        return True
    steps = 2 * len(key) - 1
    if len(key.translate(None, _DIGITS_NEAR)) > (1 - DIGIT_STEPS) * steps:
        return False
    digits = [int(digit, 16) for digit in key.hex()]
    near = sum((after - before) % 16 in _NEAR for before, after in pairwise(digits))
    return near >= DIGIT_STEPS * steps


def weak_notes(keys: Iterable[tuple[bytes, Sequence[bytes]]], where: str) -> list[str]:
    """What ``dtls-endpoint check`` says of keys that are in use and should not have been made; 10 us for each."""
    weak = [
        f"{where}: the {which} key of {quoted_identity(identity)} {reason}; remedy: dtls-endpoint keys rotate"
        for identity, both in keys
        for which, key in zip(("current", "next"), both, strict=False)
        if (reason := weakness(key)) is not None
    ]
    if len(weak) > MAX_NOTES:
        weak[MAX_NOTES:] = [f"{where}: and {len(weak) - MAX_NOTES} more weak keys"]
    return weak
