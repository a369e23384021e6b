"""Names that are nearly the same: the slips that turn a known device into an unknown one.

An identity is compared byte by byte, so ``Meter-17``, ``meter-17 ``, ``meter-17`` with a NUL at its end (a C string sent with its
terminator) and ``6d657465722d3137`` (the same in hexadecimal) are four devices, of which three do not exist.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

LONGEST = 256
"""Bytes; of longer names only equality matters."""
_HEX = re.compile(rb"(?:[0-9A-Fa-f]{2})+")


def likeness(one: bytes, other: bytes) -> str | None:
    """How two different names are alike, as the end of "the same but for …"; ``None`` = they are not."""
    if one == other or max(len(one), len(other)) > LONGEST:
        return None
    if one.rstrip(b"\0") == other.rstrip(b"\0"):
        return "a NUL at the end"
    if one.strip() == other.strip():
        return "blanks"
    if one.lower() == other.lower():
        return "case"
    if _plain(one) == _plain(other):
        return "case, blanks or punctuation"
    if _in_hex(one) == other or _in_hex(other) == one:
        return "one being the other in hexadecimal"
    return "one character" if _one_edit(one, other) else None


def similar(name: bytes, known: Iterable[bytes], *, limit: int) -> list[tuple[bytes, str]]:
    """Those of ``known`` that are like ``name``, and how; the likeliest slips first."""
    found = [(other, how) for other in known if (how := likeness(name, other)) is not None]
    found.sort(key=lambda one: (one[1] == "one character", one[0]))
    return found[:limit]


def _plain(name: bytes) -> bytes:
    return re.sub(rb"[^0-9a-z\x80-\xff]", b"", name.lower())


def _in_hex(name: bytes) -> bytes | None:
    return bytes.fromhex(name.decode("ascii")) if _HEX.fullmatch(name) else None


def _one_edit(one: bytes, other: bytes) -> bool:
    """Whether one byte more, less or changed, or two neighbours swapped, makes one into the other.

    Not if what is more, less or changed is a digit: devices are numbered, and each number has its neighbours.
    """
    if abs(len(one) - len(other)) > 1 or min(len(one), len(other)) < 4:
        return False  # of short names nearly all are alike
    start = 0
    while start < min(len(one), len(other)) and one[start] == other[start]:
        start += 1
    one, other = one[start:], other[start:]
    if one[:2] == other[:2][::-1] and one[2:] == other[2:]:
        return True
    changed = b""
    if one[1:] == other[1:]:
        changed = one[:1] + other[:1]
    elif one[1:] == other:
        changed = one[:1]
    elif one == other[1:]:
        changed = other[:1]
    return bool(changed) and not changed.isdigit()
