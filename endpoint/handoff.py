"""Handing all associations over to the next process: in a file, or in memory that the service manager keeps.

What is at stake. The blobs are what decrypts every association. And whoever sends with the same association
twice repeats AEAD nonces, which gives away plaintext and the power to forge. So blobs must be read by nobody
else, and be used once.

Who might interfere: a user of the same machine who reads or plants files; a disk or a copy that damages them; an
operator who starts the service twice, with an older key, or with the file of another endpoint; a crash or power
cut at any moment. Who is *not* kept out: root and the service's own user, who can read the process itself.

What holds, whatever happens in between:

- **Never twice.** What was handed over is used up before the first blob is handed out: a file is unlinked and its directory
  synchronised, so of two processes one gets it; then its beginning is overwritten, so that no other name of it is of
  use either. Memory has its beginning overwritten. A crash after that loses associations (their devices handshake
  again), and doubles none.
- **All or nothing.** A file gets its name after it has reached the disk as a whole. Lengths, count and a MAC over
  everything are verified before anything is used; what does not fit is refused as a whole and stays as it is.
- **For the owner only.** Mode 0600 from its first moment; no links followed; refused where others had access. The
  blobs in it are sealed by ``sansdtls`` under the operator's first key, and the MAC is under that key too. Memory in
  the manager is never written to a disk and handed to nobody else, so it may go without a key; the MAC is then a checksum.
  A file without a MAC under the key is refused: anybody could have written it.
- **One that fails harms no other.** A blob that the core refuses (expired keys, an association that is live again) is
  counted, and the rest is used.

What does not hold: a copy of the file that is put back later (a restored backup) cannot be told from the file.
Whatever it holds has expired, or was replaced by new handshakes, or it would repeat nonces; so do not back the
file up. ``state.handoff_max_age`` bounds how late one can be used at all. And nothing is left by a process that is
killed: for that there is ``state.store = "sqlite"``.

The memory is not sealed in the sense of ``F_SEAL_WRITE``, because then it could not be used up.

::

    magic      16   "sansdtls-handoff"; zeros = used up
    version     2   of this encoding; blobs have their own
    keyed       1   0 = the MAC is a checksum, 1 = under a key
    facts     4+n   JSON: the clock's anchor, the listeners' addresses by index
    blob      4+n   any number of times, n > 0
    end         4   zero
    count       8   of blobs
    MAC        32   HMAC-SHA-256 of all before
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
from typing import TYPE_CHECKING, Any, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from typing import Self

MAGIC = b"sansdtls-handoff"
VERSION = 1
MAX_FACTS = 65_536
"""Bytes; there is one address for each socket."""
MAX_BLOB = 1_048_576
"""Bytes of one association. Most are below 300; a certificate chain may have tens of thousands."""
CHUNK = 1_048_576
"""Bytes read or written at once."""

_START = len(MAGIC) + 3
_LENGTH = 4
_COUNT = 8
_MAC = 32
_LABEL = b"sansdtls handoff, version 1"
_GIVE_KEY = "the key that it was written under must stand in state.key_file"


class HandoffError(Exception):
    """What was handed over cannot be used, or nothing can be handed over. One line, with the remedy."""


@attrs.frozen(kw_only=True)
class Facts:
    """What the next process has to know before it can use the blobs."""

    anchor: bytes
    """Of the clock by which the blobs' times are, see ``endpoint.clock``."""
    listeners: tuple[str, ...]
    """The address of each socket, at the index by which paths name it."""

    def to_bytes(self) -> bytes:
        """As JSON."""
        return json.dumps({"clock": self.anchor.decode(), "listeners": self.listeners}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The opposite. ``ValueError`` for anything else."""
        try:
            told: dict[str, Any] = json.loads(data)
            listeners = tuple(told["listeners"])
            if not all(isinstance(address, str) for address in listeners):
                raise TypeError
            return cls(anchor=told["clock"].encode(), listeners=listeners)
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError from error


class Draft(Protocol):
    """A place to hand over to, opened and found good before anything is frozen. Close it."""

    def write(self, facts: Facts, blobs: Iterable[bytes]) -> int:
        """Write everything, and make it the next process's; the number of blobs. ``HandoffError``, ``OSError``."""
        ...

    def close(self) -> None:
        """Give up what was not written."""
        ...


# --- the encoding ---------------------------------------------------------------------------------------


def _macs(keys: Sequence[bytes]) -> list[hmac.HMAC]:
    """One MAC under way for each key; without any, a checksum."""
    return [hmac.new(hmac.digest(key, _LABEL, "sha256"), digestmod=hashlib.sha256) for key in keys or (b"",)]


class _Writer:
    """Gathers small pieces into large writes, and has them authenticated."""

    def __init__(self, descriptor: int, key: Sequence[bytes]) -> None:
        self._descriptor = descriptor
        (self._mac,) = _macs(key)
        self._pieces = bytearray()

    def add(self, data: bytes) -> None:
        self._pieces += data
        if len(self._pieces) >= CHUNK:
            self._flush()

    def add_framed(self, data: bytes) -> None:
        self.add(len(data).to_bytes(_LENGTH) + data)

    def finish(self) -> None:
        self._flush()
        self._pieces += self._mac.digest()
        self._flush()

    def _flush(self) -> None:
        self._mac.update(self._pieces)
        view = memoryview(self._pieces)
        while view:
            view = view[os.write(self._descriptor, view) :]
        view.release()
        self._pieces = bytearray()


def write_handoff(descriptor: int, facts: Facts, blobs: Iterable[bytes], keys: Sequence[bytes]) -> int:
    """Write everything from the beginning of an open file; the number of blobs. The first key authenticates.

    ``HandoffError`` for a blob that is empty or too large.
    """
    writer = _Writer(descriptor, keys[:1])
    writer.add(MAGIC + VERSION.to_bytes(2) + bytes([bool(keys)]))
    writer.add_framed(facts.to_bytes())
    count = 0
    for blob in blobs:
        if not 0 < len(blob) <= MAX_BLOB:
            raise HandoffError(f"an association of {len(blob)} bytes cannot be handed over")
        writer.add_framed(blob)
        count += 1
    writer.add(bytes(_LENGTH) + count.to_bytes(_COUNT))
    writer.finish()
    return count


class _Reader:
    """Reads an open file from its beginning, by large pieces."""

    def __init__(self, descriptor: int, macs: Sequence[hmac.HMAC] = ()) -> None:
        self._descriptor = descriptor
        self._macs = macs
        self._offset = 0
        self._piece = b""
        self._at = 0

    def take(self, length: int, *, authenticated: bool = True) -> bytes:
        """``length`` bytes; ``ValueError`` if there are fewer."""
        while len(self._piece) - self._at < length:
            more = os.pread(self._descriptor, max(CHUNK, length), self._offset)
            if not more:
                raise ValueError("it is cut short")
            self._offset += len(more)
            self._piece = self._piece[self._at :] + more
            self._at = 0
        data = self._piece[self._at : self._at + length]
        self._at += length
        if authenticated:
            for mac in self._macs:
                mac.update(data)
        return data

    def take_framed(self, limit: int) -> bytes:
        length = int.from_bytes(self.take(_LENGTH))
        if length > limit:
            raise ValueError(f"a piece of {length} bytes")
        return self.take(length)

    def at_end(self) -> bool:
        return self._at == len(self._piece) and not os.pread(self._descriptor, 1, self._offset)


class Handoff:
    """What another process has handed over, verified as a whole; nothing of it is used yet. Close it.

    In this order: :meth:`use_up`, then :meth:`blobs`.
    """

    def __init__(self, descriptor: int, *, where: str, keys: Sequence[bytes], path: Path | None) -> None:
        """Takes over ``descriptor``. :class:`HandoffError` if what is in it cannot be used."""
        self.where = where
        """For messages: the file's name, or the manager's store."""
        self._lost = (
            "remedy: remove it, the devices handshake again" if path else "its devices handshake again"
        )
        self._descriptor = descriptor
        self._path = path
        self._used_up = False
        try:
            self.facts, self.count, self.keyed = self._verified(keys)
        except HandoffError:
            self.close()
            raise
        except ValueError as error:
            self.close()
            raise HandoffError(f"{where}: is damaged ({error}); {self._lost}") from None
        except OSError as error:
            self.close()
            raise HandoffError(f"{where}: cannot be read: {reason_of(error)}") from None

    def _verified(self, keys: Sequence[bytes]) -> tuple[Facts, int, bool]:
        """Facts, the number of blobs, and whether all is under one of ``keys``."""
        magic = os.pread(self._descriptor, len(MAGIC), 0)
        if magic == bytes(len(MAGIC)):
            raise HandoffError(f"{self.where}: was used up before; {self._lost}")
        if not MAGIC.startswith(magic):
            # Not removed: it may be anything, named by mistake.
            raise HandoffError(
                f"{self.where}: holds no associations; remedy: name another file, or remove it"
            )
        macs = _macs(keys)
        reader = _Reader(self._descriptor, macs)
        start = reader.take(_START)
        version, keyed = int.from_bytes(start[len(MAGIC) : -1]), start[-1]
        if version != VERSION:
            raise HandoffError(
                f"{self.where}: is of version {version}, and this program knows {VERSION}; remedy: start the program "
                "that wrote it, or remove it"
            )
        if keyed and not keys:
            raise HandoffError(f"{self.where}: was written under a key; remedy: {_GIVE_KEY}")
        if keys and not keyed and self._path is not None:
            raise HandoffError(f"{self.where}: was written without a key, so by anybody; {self._lost}")
        if not keyed:
            # Memory from before there was a key: nobody but the manager has had it.
            macs = _macs(())
            reader = _Reader(self._descriptor, macs)
            reader.take(_START)
        facts = reader.take_framed(MAX_FACTS)
        count = 0
        while reader.take_framed(MAX_BLOB):
            count += 1
        told = int.from_bytes(reader.take(_COUNT))
        mac = reader.take(_MAC, authenticated=False)
        # All are compared, so that the time tells nothing of which one fits.
        fits = [hmac.compare_digest(mac, one.digest()) for one in macs]
        if not any(fits):
            if not keyed:
                raise ValueError("the checksum is wrong")
            raise HandoffError(
                f"{self.where}: was written under another key, or is damaged; remedy: {_GIVE_KEY}"
            )
        if told != count or not reader.at_end():
            raise ValueError("wrong number of associations")
        return Facts.from_bytes(facts), count, bool(keyed)

    def use_up(self) -> None:
        """From now on nobody else can use it, and this process can. :class:`HandoffError` if that cannot be done."""
        try:
            if self._path is not None:
                self._path.unlink()
                synchronise(self._path.parent)
            os.pwrite(self._descriptor, bytes(_START), 0)
            os.fsync(self._descriptor)
        except OSError as error:
            raise HandoffError(
                f"{self.where}: cannot be used up: {reason_of(error)}; remedy: the service must be allowed to remove it"
            ) from None
        self._used_up = True

    def blobs(self) -> Iterator[bytes]:
        """Each association, once. They are read as they are asked for."""
        if not self._used_up:
            raise RuntimeError("use it up first")
        reader = _Reader(self._descriptor)
        reader.take(_START)
        reader.take_framed(MAX_FACTS)
        while blob := reader.take_framed(MAX_BLOB):
            yield blob

    def close(self) -> None:
        """Close the file; if it was used up, free what it takes."""
        if self._descriptor >= 0:
            if self._used_up:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def synchronise(directory: Path) -> None:
    """Have the names in a directory on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason_of(error: OSError) -> str:
    """What the operating system says, to go on within a sentence."""
    return (error.strerror or str(error)).lower()
