"""Editing PSK files: the lines of one identity change, every other byte stays as it is.

An edit begins with reading all files as a service would, and ends with reading what would be written in the same way:
only if that is exactly the keys that were asked for, it is written. So neither a mistake in a file nor one here locks
anybody out.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from endpoint.files import MAX_FILE_BYTES, RefusedFileError, files_at
from endpoint.keystore.file import (
    BYTE_ORDER_MARK,
    KeyFileError,
    PskReader,
    quoted_identity,
    refuse_mistakes,
    require_keys,
)
from endpoint.replacing import NewContent, locked, replace_files
from endpoint.text import show_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


def cannot_be_written(identity: bytes) -> str | None:
    """Why no line of a PSK file can hold this identity, as the rest of "identity …"; ``None`` if one can."""
    if not identity:
        return "is empty"
    if b"\n" in identity:
        return "holds a line end"
    if identity.startswith(b"#"):
        return "begins with #, which makes a line a comment"
    if identity != identity.strip():
        return "begins or ends with a blank"
    if identity.startswith(BYTE_ORDER_MARK):
        return "begins with what is taken for a byte order mark"
    return None


def line_for(identity: bytes, key: bytes) -> bytes:
    """A line of a PSK file, without its end."""
    return identity + b":" + key.hex().encode()


class PskText:
    """The text of one file. Whoever edits it has made sure that it can be read without a mistake."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = path
        self._mark = BYTE_ORDER_MARK if content.startswith(BYTE_ORDER_MARK) else b""
        lines = content.removeprefix(BYTE_ORDER_MARK).split(b"\n")
        last = lines.pop()
        self._slots: list[list[bytes]] = [[line + b"\n"] for line in lines]
        """Each line that was there in a slot of its own; in it what has become of it: nothing, or one or two lines."""
        if last:
            self._slots.append([last])
        self._end = b"\r\n" if lines and lines[0].endswith(b"\r") else b"\n"
        self._slots_of: dict[bytes, list[int]] = {}
        for number, (line,) in enumerate(self._slots):
            if line.strip() and not line.lstrip().startswith(b"#"):
                self._slots_of.setdefault(line.rpartition(b":")[0], []).append(number)

    @property
    def identities(self) -> Iterable[bytes]:
        """Those with a line here."""
        return self._slots_of.keys()

    def set(self, identity: bytes, keys: Sequence[bytes]) -> None:
        """Give ``identity`` these keys; none = it has no line any more. A new one comes to the end."""
        slots = self._slots_of.get(identity)
        if slots is None:
            self._slots_of[identity] = [len(self._slots)]
            self._slots.append([line_for(identity, key) + self._end for key in keys])
            return
        lines = [(slot, line) for slot in slots for line in self._slots[slot]]
        for slot in slots:
            self._slots[slot] = []
        for slot, line in self._rearranged(lines, keys):
            self._slots[slot].append(line)
        if not keys:
            del self._slots_of[identity]

    def _rearranged(
        self, lines: list[tuple[int, bytes]], keys: Sequence[bytes]
    ) -> Iterator[tuple[int, bytes]]:
        """Where each key is to stand; a line that has the key already stays as it is."""
        places = lines[: len(keys)]
        if len(keys) < len(lines) and keys and _key_on(lines[-1][1]) == keys[-1]:
            places = lines[-len(keys) :]  # the old one goes, and the next one's line stays where it is
        places += places[-1:] * (len(keys) - len(places))
        by_key = {_key_on(line): line for _, line in lines}
        for (slot, line), key in zip(places, keys, strict=True):
            yield slot, by_key.get(key) or _with_key(line, key)

    def render(self) -> bytes:
        """The content of the file."""
        lines = [line for slot in self._slots for line in slot]
        for number, line in enumerate(lines[:-1]):
            if not line.endswith(b"\n"):  # the last one has lost its place
                lines[number] = line + self._end
        return self._mark + b"".join(lines)


def _digits(line: bytes) -> tuple[int, int]:
    """Where the key on a line begins and ends."""
    begin = line.rindex(b":") + 1
    digits = line[begin:].strip()
    begin = line.index(digits, begin)
    return begin, begin + len(digits)


def _key_on(line: bytes) -> bytes:
    begin, end = _digits(line)
    return bytes.fromhex(line[begin:end].decode("ascii"))


def _with_key(line: bytes, key: bytes) -> bytes:
    begin, end = _digits(line)
    return line[:begin] + key.hex().encode() + line[end:]


class PskChanges:
    """What can be done within :meth:`PskFiles.change`; as :class:`~endpoint.keystore.database.KeyChanges`."""

    def __init__(self, texts: list[PskText], keys: dict[bytes, tuple[bytes, ...]], new: _NewOnes) -> None:
        self._texts = texts
        self._keys = keys
        self._new = new
        self._text_of = {identity: text for text in texts for identity in text.identities}
        self._touched: set[PskText] = set()

    def lookup(self, identity: bytes) -> tuple[bytes, ...]:
        """The keys of ``identity`` with the changes made so far."""
        return self._keys.get(identity, ())

    def items(self) -> Iterator[tuple[bytes, tuple[bytes, ...]]]:
        """All identities with their keys; take them all before the next change."""
        return iter(self._keys.items())

    def set(self, identity: bytes, keys: Sequence[bytes]) -> None:
        """Give ``identity`` these keys, current first, instead of those it has.

        Raises ``ValueError`` for what cannot be kept, without the keys; :class:`KeyFileError` if it is not clear in
        which file.
        """
        problem = cannot_be_written(identity)
        if problem:
            raise ValueError(f"it {problem}, so no PSK file can hold it")
        require_keys(keys)
        text = self._text_of.get(identity)
        if text is None:
            text = self._text_of[identity] = self._new.text(self._texts)
        self._keys[identity] = tuple(keys)
        self._touched.add(text)
        text.set(identity, keys)

    def remove(self, identity: bytes) -> bool:
        """Forget ``identity``; whether it was known."""
        if self._keys.pop(identity, None) is None:
            return False
        text = self._text_of.pop(identity)
        self._touched.add(text)
        text.set(identity, ())
        return True

    def checked(self) -> list[NewContent]:
        """What is to be written. :class:`KeyFileError` if that would not be read as what was asked for."""
        contents = {text: text.render() for text in self._texts}
        check = PskReader()
        for text, content in contents.items():
            check.content(show_text(str(text.path)), content)
            if len(content) > MAX_FILE_BYTES:
                where = show_text(str(text.path))
                raise KeyFileError(
                    [f"{where}: would have {len(content)} bytes; more than {MAX_FILE_BYTES} are not read"]
                )
        if check.problems or check.keys != self._keys:
            differing = {
                identity
                for identity in check.keys.keys() | self._keys.keys()
                if check.keys.get(identity) != self._keys.get(identity)
            }
            names = ", ".join(quoted_identity(identity) for identity in sorted(differing)[:3])
            raise KeyFileError(
                [f"cannot be written so that it is read as it is meant: {names or check.problems[0]}"]
            )
        return [NewContent(text.path, contents[text]) for text in self._texts if text in self._touched]


class _NewOnes:
    """Where identities go that are in no file yet."""

    def __init__(self, path: Path, name: str | None) -> None:
        self._path = path
        self._name = name

    def text(self, texts: list[PskText]) -> PskText:
        """The file for them; :class:`KeyFileError` if that is not clear."""
        where = show_text(str(self._path))
        if self._name is not None:
            if not self._path.is_dir():
                raise KeyFileError(
                    [f"{where}: is no directory, so there is no choice; remedy: leave out --file"]
                )
            wanted = _file_in(self._path, self._name)
            found = next((text for text in texts if text.path == wanted), None)
            if found is None:
                found = PskText(wanted, b"")
                texts.append(found)
            return found
        if len(texts) != 1:
            how_many = f"holds {len(texts)} files" if texts else "holds no file"
            raise KeyFileError(
                [f"{where}: {how_many}; remedy: say where new identities go, such as --file meters.txt"]
            )
        return texts[0]


def _file_in(directory: Path, name: str) -> Path:
    if "/" in name or name.startswith(".") or name.endswith("~") or not name:
        shown = show_text(name)
        raise KeyFileError(
            [f"--file {shown}: no file of keys in a directory; remedy: a plain name, such as meters.txt"]
        )
    return Path(os.path.realpath(directory / name))


class PskFiles:
    """A PSK file, or a directory of them, that can be changed."""

    def __init__(
        self, path: Path, *, create: bool = False, new_file: str | None = None, rehearsal: bool = False
    ) -> None:
        """``create``: a file that is not there is made; ``new_file``: where in a directory new identities go.

        ``rehearsal``: nothing is written, nor locked, but all else is done.
        """
        self.path = path
        self._create = create
        self._new_file = new_file
        self._rehearsal = rehearsal

    def items(self) -> Iterator[tuple[bytes, tuple[bytes, ...]]]:
        """All identities with their keys. :class:`KeyFileError` lists all mistakes."""
        return iter(self._read()[1].items())

    @contextmanager
    def change(self) -> Iterator[PskChanges]:
        """One edit: what was done is written when this ends, or nothing if it raises.

        :class:`KeyFileError` for files that are not right as they are, :class:`~endpoint.replacing.ReplaceError` if
        they cannot be changed.
        """
        with nullcontext() if self._rehearsal else locked(self._directories()):
            texts, keys = self._read()
            changes = PskChanges(texts, keys, _NewOnes(self.path, self._new_file))
            yield changes
            new = changes.checked()
            if not self._rehearsal:
                replace_files(new)

    def _directories(self) -> list[Path]:
        own = [Path(os.path.realpath(self.path))] if self.path.is_dir() else []
        return own + [file.parent for file in self._files()]

    def _files(self) -> list[Path]:
        """The files themselves, where links lead to."""
        try:
            return [Path(os.path.realpath(file)) for file in files_at(self.path, plural="keys")]
        except RefusedFileError as refused:
            raise KeyFileError([f"{show_text(str(self.path))}: {refused}"]) from None

    def _read(self) -> tuple[list[PskText], dict[bytes, tuple[bytes, ...]]]:
        if self._create and not self.path.exists() and self.path.parent.is_dir():
            return [PskText(Path(os.path.realpath(self.path)), b"")], {}
        reader = PskReader()
        contents = [(file, reader.read(file)) for file in self._files()]
        refuse_mistakes(self.path, reader)
        return [PskText(file, content) for file, content in contents], reader.keys
