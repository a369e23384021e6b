"""Keys from a PSK file, or from a directory of them.

The format is the one that GnuTLS (``psktool``), mosquitto and stunnel share::

    # a comment
    meter-17:0f1e2d3c4b5a69788796a5b4c3d2e1f0
    meter-18:00112233445566778899aabbccddeeff     current key
    meter-18:ffeeddccbbaa99887766554433221100     next key, accepted too

(without the remarks). What the ecosystem leaves open is settled so:

- The *last* colon separates, so an identity may hold colons. A key never does.
- An identity is the bytes of the line, compared byte by byte. UTF-8 is usual and not required.
- ``#`` at the start of a line makes it a comment, always. GnuTLS reads ``#6d31:…`` as the identity
  with these hex digits; mosquitto, and everybody who ever commented out a device whose name is a
  hexadecimal EUI-64, reads a comment. The reading that cannot let anybody in wins, and
  ``dtls-endpoint check`` points at such lines. Bytes that a line can hold need no escape here.
- Blanks around an identity are refused: more likely a slip than a name, and they look like the
  right identity in every log. Blanks and a carriage return after the key are left out.
- A key has 16 to 64 bytes: below, it can be searched for; above, RFC 7925 §4 asks nobody to take it.
- An identity has one line, or two (current first, next second), both in the same file: across
  files the order would be an accident. The same line twice is refused, a third line too.

Loading is all or nothing. A set with any mistake is not used, and every mistake is reported, so
that one mistyped line neither locks out one device unseen nor, on reload, all of them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

import attrs

from endpoint.files import RefusedFileError, files_at, read_private
from endpoint.keystore import MAX_KEYS
from endpoint.text import show_bytes, show_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

MIN_KEY_BYTES = 16
"""128 bits, the least that resists an offline search of a recorded handshake (RFC 4279 §7.2)."""
MAX_KEY_BYTES = 64
"""RFC 7925 §4 asks implementations for up to 64; other programs may refuse more."""
MAX_IDENTITY_BYTES = 65_535
"""What the two-byte length field of ClientKeyExchange can carry, RFC 4279 §2."""
MAX_PROBLEMS = 50
"""Mistakes reported of one load; the rest is counted."""

_GNUTLS_HEX_IDENTITY = re.compile(rb"#(?:[0-9A-Fa-f]{2})+:[0-9A-Fa-f]{32,128}\s*")
_LIKE_A_KEY = re.compile(rb"[0-9A-Fa-f]{32}")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class KeyFileError(Exception):
    """The keys cannot be used. ``problems`` has one line for each mistake, ``file:line: what``."""

    def __init__(self, problems: Sequence[str]):
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@attrs.frozen
class PskSet:
    """All identities of a file or directory, with their keys."""

    keys: Mapping[bytes, tuple[bytes, ...]] = attrs.field(repr=False)
    """Identity to current key, or to current and next key."""
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    """Nothing wrong, but worth a look; ``file:line: what``."""

    @property
    def in_rotation(self) -> int:
        """How many identities have a next key."""
        return sum(len(keys) > 1 for keys in self.keys.values())


@attrs.frozen
class Difference:
    """What a reload changed, in identities."""

    added: int
    removed: int
    changed: int
    touched: frozenset[bytes] = frozenset()
    """Those that were removed or changed."""


class FileKeyStore:
    """Answers from the loaded set; :meth:`replace` swaps the whole set at once."""

    def __init__(self, path: Path | None, loaded: PskSet):
        """``loaded`` is what :func:`load_psk` made of ``path``; ``None`` = there are no pre-shared keys."""
        self._path = path
        self._loaded = loaded

    def __repr__(self) -> str:
        return f"FileKeyStore({str(self._path)!r}, {len(self)} identities)"

    def __len__(self) -> int:
        return len(self._loaded.keys)

    @property
    def loaded(self) -> PskSet:
        """The set that is in use."""
        return self._loaded

    def lookup(self, identity: bytes) -> Sequence[bytes]:
        """The keys of ``identity``, current first; empty if it is unknown."""
        return self._loaded.keys.get(identity, ())

    def require_some(self, fresh: PskSet) -> None:
        """:class:`KeyFileError` for a set without any identity where there were some.

        At the start it is taken, but this is what a file looks like while something is writing it, and it
        would lock out the whole fleet.
        """
        if not fresh.keys and self._loaded.keys:
            where = show_text(str(self._path))
            kept = f"the {len(self)} loaded before stay (restart to run without any)"
            raise KeyFileError([f"{where}: holds no identity now; {kept}"])

    def replace(self, fresh: PskSet) -> Difference:
        """Use ``fresh`` from now on. Live associations are not touched."""
        before, after = self._loaded.keys, fresh.keys
        self._loaded = fresh
        removed = before.keys() - after.keys()
        changed = {
            identity for identity in before.keys() & after.keys() if before[identity] != after[identity]
        }
        return Difference(
            added=len(after.keys() - before.keys()),
            removed=len(removed),
            changed=len(changed),
            touched=frozenset(removed | changed),
        )


def load_psk(path: Path) -> PskSet:
    """Read a PSK file, or each file of a directory; :class:`KeyFileError` lists all mistakes.

    See :func:`endpoint.files.files_at` for what counts in a directory.
    """
    reader = PskReader()
    files = read_all(path, reader)
    return PskSet(keys=reader.keys, files=files, notes=tuple(reader.notes))


class KeyReader(Protocol):
    """Reads files of keys one after the other and gathers the mistakes in all of them."""

    problems: list[str]

    def file(self, path: Path) -> None:
        """Read one file."""
        ...


def read_all(path: Path, reader: KeyReader) -> tuple[Path, ...]:
    """Have ``reader`` read a file, or each file of a directory; :class:`KeyFileError` lists its mistakes."""
    try:
        files = files_at(path, plural="keys")
    except RefusedFileError as refused:
        raise KeyFileError([f"{show_text(str(path))}: {refused}"]) from None
    for file in files:
        reader.file(file)
    refuse_mistakes(path, reader)
    return tuple(files)


def require_keys(keys: Sequence[bytes]) -> None:
    """``ValueError``, without a key in it, unless a store may give an identity these, current first."""
    if not 1 <= len(keys) <= MAX_KEYS:
        raise ValueError(f"{len(keys)} keys, not 1 to {MAX_KEYS}")
    for key in keys:
        if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
            raise ValueError(f"a key has {len(key)} bytes, not {MIN_KEY_BYTES} to {MAX_KEY_BYTES}")
    if len(set(keys)) < len(keys):
        raise ValueError("current and next key are the same")


def refuse_mistakes(path: Path, reader: KeyReader) -> None:
    """:class:`KeyFileError` with the mistakes that ``reader`` has met, if any."""
    if reader.problems:
        shown = reader.problems[:MAX_PROBLEMS]
        if len(reader.problems) > len(shown):
            shown.append(f"{show_text(str(path))}: and {len(reader.problems) - len(shown)} more mistakes")
        raise KeyFileError(shown)


class PskReader:
    """Gathers keys, mistakes and notes over all files."""

    def __init__(self) -> None:
        self.keys: dict[bytes, tuple[bytes, ...]] = {}
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._places: dict[bytes, tuple[str, int]] = {}

    def file(self, path: Path) -> None:
        """Read one file."""
        self.read(path)

    def read(self, path: Path) -> bytes:
        """Read one file; what is in it, or nothing if it is refused."""
        where = show_text(str(path))
        try:
            content = read_private(path, what="a PSK file", plural="keys")
        except RefusedFileError as refused:
            self.problems.append(f"{where}: {refused}")
            return b""
        self.content(where, content)
        return content

    def content(self, where: str, content: bytes) -> None:
        """Take the lines of a file in; ``where`` is what messages call it."""
        for number, line in numbered_lines(content):
            if line.lstrip().startswith(b"#"):
                if _GNUTLS_HEX_IDENTITY.fullmatch(line):
                    self.notes.append(
                        f"{where}:{number}: a comment here; GnuTLS would read it as an identity in hex"
                    )
                continue
            problem = self._add(where, number, line)
            if problem:
                self.problems.append(f"{where}:{number}: {problem}")

    def _add(self, where: str, number: int, line: bytes) -> str | None:
        """Take one line in; the answer is what is wrong with it."""
        identity, colon, digits = line.rpartition(b":")
        if not colon:
            return "not identity:hexkey (there is no colon)"
        if not identity:
            return "the identity before the colon is empty"
        if identity != identity.strip():
            return f"blanks around the identity {quoted_identity(identity)}; remedy: leave them out"
        if len(identity) > MAX_IDENTITY_BYTES:
            return f"the identity has {len(identity)} bytes; at most {MAX_IDENTITY_BYTES} fit the protocol"
        key = _key(digits.strip())
        if isinstance(key, str):
            # The part before the first colon only: the rest may be a key written as 00:11:22:…
            return f"the key of {quoted_identity(identity.split(b':')[0])} {key}"
        place = self._places.setdefault(identity, (where, number))
        known = self.keys.get(identity, ())
        if known and place[0] != where:
            return (
                f"identity {quoted_identity(identity)} is in {place[0]}:{place[1]} too; "
                "current and next key belong in one file"
            )
        if key in known:
            return (
                f"identity {quoted_identity(identity)} has this very key already (first on line {place[1]})"
            )
        if len(known) == 2:
            return (
                f"a third key for identity {quoted_identity(identity)} (first on line {place[1]}); "
                "an identity has a current key and at most one next key"
            )
        self.keys[identity] = (*known, key)
        return None


def _key(digits: bytes) -> bytes | str:
    """The key, or what is wrong with its digits. Never the digits themselves."""
    if not digits:
        return "is missing"
    if re.fullmatch(rb"[0-9A-Fa-f]+", digits) is None:
        return "is not hexadecimal"
    if len(digits) % 2:
        return f"has {len(digits)} hex digits, an odd number; one is missing or too many"
    key = bytes.fromhex(digits.decode("ascii"))
    if len(key) < MIN_KEY_BYTES:
        return f"has {len(key)} bytes; at least {MIN_KEY_BYTES} are needed ({2 * MIN_KEY_BYTES} hex digits)"
    if len(key) > MAX_KEY_BYTES:
        return f"has {len(key)} bytes; at most {MAX_KEY_BYTES} are allowed ({2 * MAX_KEY_BYTES} hex digits)"
    return key


def numbered_lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines that say something, with their numbers, without line ends."""
    for number, line in enumerate(content.removeprefix(BYTE_ORDER_MARK).split(b"\n"), start=1):
        if line.strip():
            yield number, line.rstrip(b"\r")


def quoted_identity(identity: bytes) -> str:
    """An identity for a message; not what may be a key, where somebody swapped the two."""
    if _LIKE_A_KEY.search(identity):
        return "(not shown: it looks like a key)"
    shown = show_bytes(identity[:128])
    return f'"{shown}"' if len(identity) <= 128 else f'"{shown}…"'
