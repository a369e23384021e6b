r"""How names and bytes from outside are shown: on one line, printable, and impossible to confuse.

A PSK identity may hold any bytes, and an unauthenticated stranger chooses them. Written as they
are, they could forge log lines (newlines), hide text (terminal escapes, bidirectional overrides)
or break a JSON reader (invalid UTF-8). So everything shown passes through here:

- printable text stays as it is, a backslash is doubled;
- control and format characters become ``\x0a`` (ASCII) or ``\u202e``;
- a byte that is not UTF-8 becomes ``\xff``, always above ``\x7f``, so it cannot be taken for a character.
"""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_BEYOND_ASCII_PRINTABLE = re.compile(r"[^\x20-\x7e]")


def _escape_character(match: re.Match[str]) -> str:
    character = match.group()
    if character.isprintable():
        return character
    number = ord(character)
    if number < 0x80:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def show_bytes(data: bytes) -> str:
    """Any bytes as one line of printable text; different bytes give different text."""
    text = data.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return text if text.isprintable() else _BEYOND_ASCII_PRINTABLE.sub(_escape_character, text)


def show_text(text: str) -> str:
    """The same for a string, such as a file name (undecodable bytes in it are shown as bytes)."""
    return show_bytes(text.encode("utf-8", "surrogateescape"))


def _escape_for_json(match: re.Match[str]) -> str:
    character = match.group()
    # What json.dumps would write with ensure_ascii: \u and a surrogate pair beyond the first plane.
    return character if character.isprintable() else json.dumps(character)[1:-1]


def json_line(fact: Mapping[str, object]) -> str:
    """One JSON object on one line: printable text is readable in it, and a terminal is safe from it."""
    line = json.dumps(fact, ensure_ascii=False, separators=(", ", ": "))
    return line if line.isprintable() else _BEYOND_ASCII_PRINTABLE.sub(_escape_for_json, line)


class UtcStamps:
    """Wall-clock seconds as ``2025-01-31T23:59:59.123Z``; the part before the dot is made once a second."""

    __slots__ = ("_prefix", "_second")

    def __init__(self) -> None:
        self._second = -1
        self._prefix = ""

    def __call__(self, seconds: float) -> str:
        """``seconds`` since 1970 as text."""
        milliseconds = int(seconds * 1000)
        second = milliseconds // 1000
        if second != self._second:
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second
        return f"{self._prefix}.{milliseconds % 1000:03d}Z"


_ESCAPED = re.compile(r"\\(?:\\|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})|\\")


def read_shown(text: str) -> bytes:
    """The bytes that :func:`show_bytes` shows as ``text``; ValueError for what it never shows."""

    def unescaped(match: re.Match[str]) -> str:
        escape = match.group()
        if escape == "\\":
            raise ValueError(r"a backslash is written \\, and a byte \x00")
        if escape == "\\\\":
            return "\\"
        number = int(escape.lstrip("\\xuU"), 16)
        if escape[1] != "x":
            if number > 0x10FFFF or 0xD800 <= number < 0xE000:
                raise ValueError(f"{escape} is no character")
            return chr(number)
        # A byte, not a character, where the two differ.
        return chr(number) if number < 0x80 else chr(0xDC00 + number)

    try:
        return _ESCAPED.sub(unescaped, text).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError("it holds half a character") from None
