"""Where one process leaves what the next one takes over: a file, or memory that a service manager keeps.

The encoding, and what is guaranteed, are in ``endpoint.handoff``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING

from endpoint.text import show_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from typing import Self

from endpoint.handoff import MAGIC, Draft, Facts, Handoff, HandoffError, reason_of, synchronise, write_handoff

STORED_ASSOCIATIONS = "sansdtls-associations"
"""The name under which the manager keeps the memory."""
TYPICAL_BLOB = 512
"""Bytes of disk space that are set aside for each association before any is frozen."""
_CAREFULLY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
"""Links are not followed, and a FIFO is not waited for."""


# --- a file ---------------------------------------------------------------------------------------------


class HandoffFile:
    """The file that ``state.handoff_file`` names."""

    def __init__(self, path: Path, keys: Sequence[bytes]) -> None:
        """``keys``: 32 bytes each; the first is used for writing, all for reading."""
        self._path = path
        self._keys = tuple(keys)
        self.where = show_text(str(path))

    def __repr__(self) -> str:
        return f"HandoffFile({self.where!r})"

    def find(self) -> Handoff | None:
        """What is in the file; ``None`` if there is none, or it is empty. :class:`HandoffError` for one that cannot be used."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | _CAREFULLY)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from None
        status = os.fstat(descriptor)
        mode = stat.S_IMODE(status.st_mode)
        wrong = None
        if not stat.S_ISREG(status.st_mode):
            wrong = "is not a regular file; remedy: name another"
        elif mode & 0o077:
            wrong = f"mode {mode:04o} gives group or others access to the associations; remedy: chmod 600 {self.where}"
        if wrong or not status.st_size:
            os.close(descriptor)
            if not wrong:
                return None
            raise HandoffError(f"{self.where}: {wrong}")
        return Handoff(descriptor, where=self.where, keys=self._keys, path=self._path)

    def begin(self, associations: int) -> Draft:
        """Open a new file and set room aside for about so many. :class:`HandoffError` if that cannot be done.

        A file that is there already, and is something else, is not replaced: it may be one of the operator's keys,
        named by mistake.
        """
        try:
            descriptor = os.open(self._path, os.O_RDONLY | _CAREFULLY)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._unusable(error) from None
        else:
            with os.fdopen(descriptor, "rb") as file:
                if file.read(len(MAGIC)) not in (MAGIC, bytes(len(MAGIC)), b""):
                    raise HandoffError(
                        f"{self.where}: holds something else, and is not replaced; remedy: name another file"
                    )
        return _FileDraft(self._path, self._keys, associations)

    def _unusable(self, error: OSError) -> HandoffError:
        what = "is a link" if error.errno == errno.ELOOP else f"cannot be opened: {reason_of(error)}"
        return HandoffError(f"{self.where}: {what}; remedy: name a file of the service's own")


class _FileDraft:
    """Beside the file until it is whole; then it gets the name."""

    def __init__(self, path: Path, keys: Sequence[bytes], associations: int) -> None:
        self._path = path
        self._keys = keys
        self._draft = path.with_name(f".{path.name}.{os.getpid()}~")
        try:
            # From a process that had our number and did not get to the end.
            self._draft.unlink(missing_ok=True)
            self._descriptor = os.open(
                self._draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        except OSError as error:
            raise self._failed(error) from None
        try:
            os.posix_fallocate(self._descriptor, 0, (associations + 1) * TYPICAL_BLOB)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self.close()
                raise self._failed(error) from None
            # Not every file system can set room aside.

    def write(self, facts: Facts, blobs: Iterable[bytes]) -> int:
        try:
            count = write_handoff(self._descriptor, facts, blobs, self._keys)
            os.ftruncate(self._descriptor, os.lseek(self._descriptor, 0, os.SEEK_CUR))
            os.fsync(self._descriptor)
            self._draft.replace(self._path)
            synchronise(self._path.parent)
        except OSError as error:
            raise self._failed(error) from None
        return count

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._draft.unlink(missing_ok=True)

    def _failed(self, error: OSError) -> HandoffError:
        where = show_text(str(self._path))
        return HandoffError(
            f"{where}: cannot be written: {reason_of(error)}; remedy: the directory must be there, with room, and be "
            "writable for the service"
        )


# --- memory ---------------------------------------------------------------------------------------------


class HandoffMemory:
    """Memory with a descriptor, of which the service manager keeps a copy while the service restarts.

    The manager is given it when the service starts, empty, and never again: whether it will be there is known then,
    and a hand-over needs no more than writing to it.
    """

    where = "the service manager"

    def __init__(self, descriptor: int, keys: Sequence[bytes]) -> None:
        """Takes over ``descriptor``; see :meth:`create`."""
        self.descriptor = descriptor
        self._keys = tuple(keys)

    @classmethod
    def create(cls, keys: Sequence[bytes]) -> Self:
        """New memory, for nobody but this process and those it is handed to."""
        return cls(os.memfd_create(STORED_ASSOCIATIONS, os.MFD_CLOEXEC), keys)

    def find(self) -> Handoff | None:
        """What is in it; ``None`` if it is empty. :class:`HandoffError` for what cannot be used."""
        try:
            size = os.fstat(self.descriptor).st_size
            # The manager's copy shares its position with ours, and so would a second reader's.
            writable = fcntl.fcntl(self.descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        except OSError as error:
            raise HandoffError(f"{self.where}: {STORED_ASSOCIATIONS}: {reason_of(error)}") from None
        if not writable or not stat.S_ISREG(os.fstat(self.descriptor).st_mode):
            raise HandoffError(f"{self.where}: {STORED_ASSOCIATIONS} is not what this service keeps there")
        if not size:
            return None
        return Handoff(os.dup(self.descriptor), where=self.where, keys=self._keys, path=None)

    def begin(self, associations: int) -> Draft:
        """Empty it for what comes. ``associations`` is for files."""
        os.ftruncate(self.descriptor, 0)
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        return _MemoryDraft(self.descriptor, self._keys)

    def close(self) -> None:
        """Close it; the manager's copy stays."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class _MemoryDraft:
    def __init__(self, descriptor: int, keys: Sequence[bytes]) -> None:
        self._descriptor = descriptor
        self._keys = keys

    def write(self, facts: Facts, blobs: Iterable[bytes]) -> int:
        try:
            return write_handoff(self._descriptor, facts, blobs, self._keys)
        except (OSError, HandoffError):
            os.ftruncate(self._descriptor, 0)
            raise

    def close(self) -> None:
        pass
