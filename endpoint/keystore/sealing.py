"""The keys under which saved associations are sealed: 32 bytes each, in hex, one a line, ``#`` for comments.

The first seals, all open. To change keys, put a new one in front, restart, and remove the old one when all that was
sealed under it has been sealed anew: after the next restart, or with a state file after
``dtls.limits.idle_timeout_with_connection_id`` at the latest. Make one with ``openssl rand -hex 32``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from endpoint.files import RefusedFileError, read_private
from endpoint.keystore.file import KeyFileError, numbered_lines
from endpoint.text import show_text

if TYPE_CHECKING:
    from pathlib import Path

KEY_BYTES = 32
"""AES-256's; the core's ``snapshot_keys``."""
MAX_KEYS = 8
"""Each that does not fit costs an attempt per association; a change of keys needs two."""

_REMEDY = "remedy: openssl rand -hex 32"


def load_sealing_keys(path: Path) -> tuple[bytes, ...]:
    """The keys in the file, at least one; :class:`KeyFileError` lists all mistakes, and never what stands there."""
    where = show_text(str(path))
    try:
        content = read_private(path, what="a file of sealing keys", plural="keys")
    except RefusedFileError as refused:
        raise KeyFileError([f"{where}: {refused}"]) from None
    keys: dict[bytes, int] = {}
    problems = []
    for number, line in numbered_lines(content):
        digits = line.strip()
        if digits.startswith(b"#"):
            continue
        if re.fullmatch(rb"[0-9A-Fa-f]+", digits) is None:
            problems.append(f"{where}:{number}: not hexadecimal; {_REMEDY}")
        elif len(digits) != 2 * KEY_BYTES:
            problems.append(f"{where}:{number}: {len(digits)} hex digits, not {2 * KEY_BYTES}; {_REMEDY}")
        elif (key := bytes.fromhex(digits.decode())) in keys:
            problems.append(f"{where}:{number}: the same key as on line {keys[key]}")
        elif len(keys) == MAX_KEYS:
            problems.append(f"{where}:{number}: more than {MAX_KEYS} keys")
        else:
            keys[key] = number
    if not keys and not problems:
        problems.append(f"{where}: holds no key; {_REMEDY}")
    if problems:
        raise KeyFileError(problems)
    return tuple(keys)
