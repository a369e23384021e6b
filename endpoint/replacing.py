"""Changing files so that whoever looks, whenever and after whatever accident, finds the old one whole or the new.

::

    lock         flock(2) on .keys.lock in the directory: a second editor waits, and then sees what the first has done
    write        into .NAME.new beside it, mode, owner and group as before (never readable by others, not for a moment)
    fsync        of that, so that the name never leads to less than all of it
    rename       over the old name: one step
    fsync        of the directory

A crash leaves at most .NAME.new, which holds keys, is for the owner only, is no file of keys by its name, and is
removed by the next change. The lock file stays: removing it would let two editors hold two locks.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import attrs

from endpoint.privatedb import flush_directory
from endpoint.text import show_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

LOCK_NAME = ".keys.lock"
LOCK_PATIENCE = 10.0
"""Seconds to wait for another editor."""
LOCK_PAUSE = 0.05
"""Seconds between attempts."""


class ReplaceError(Exception):
    """A file cannot be changed: the file, what is wrong, the remedy. It is as it was."""

    def __init__(self, path: Path, what: str):
        super().__init__(f"{show_text(str(path))}: {what}")


@attrs.frozen
class NewContent:
    """What is to be in a file."""

    path: Path
    """The file itself, no link to it."""
    content: bytes = attrs.field(repr=False)


@contextmanager
def locked(directories: Iterable[Path], *, patience: float = LOCK_PATIENCE) -> Iterator[None]:
    """Keep other editors away from these directories; :class:`ReplaceError` if one of them is there for too long."""
    with ExitStack() as held:
        for directory in sorted(set(directories)):
            held.callback(os.close, _lock(directory, patience))
        yield


def _lock(directory: Path, patience: float) -> int:
    path = directory / LOCK_NAME
    try:
        # O_NOFOLLOW: what root opens in a service's directory must not be chosen by the service.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ReplaceError(path, f"cannot be made: {_reason(error)}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size or status.st_nlink > 1:
        os.close(descriptor)
        # Root would give it to the directory's owner, who may have put a file of root's there.
        raise ReplaceError(path, "is no lock; remedy: remove it")
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                os.close(descriptor)
                raise ReplaceError(
                    path, "another keys command is at work; try again when it is done"
                ) from None
            time.sleep(LOCK_PAUSE)
        except OSError as error:
            os.close(descriptor)
            raise ReplaceError(path, f"cannot be locked: {_reason(error)}") from None
        else:
            _hand_to_the_owner(descriptor, directory)
            return descriptor


def replace_files(files: Iterable[NewContent]) -> None:
    """Put each in the place of what is there, or make it. Hold the locks.

    All are written before the first is renamed. :class:`ReplaceError` leaves all as they were, or says which were
    changed already: several files are no transaction.
    """
    done: list[str] = []
    with ExitStack() as written:
        prepared = []
        for new in files:
            temporary = _written(new)
            written.callback(_remove, temporary)
            prepared.append((temporary, new.path))
        for temporary, path in prepared:
            try:
                temporary.rename(path)
                flush_directory(path.parent)
            except OSError as error:
                also = f" (changed already: {', '.join(done)})" if done else ""
                raise ReplaceError(path, f"cannot be replaced: {_reason(error)}{also}") from None
            done.append(show_text(str(path)))


def _written(new: NewContent) -> Path:
    """The temporary file, complete and on the disk."""
    path = new.path
    temporary = path.with_name(f".{path.name}.new")
    _remove(temporary)  # what a crash has left
    try:
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            _like_before(descriptor, path)
            rest = memoryview(new.content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        _remove(temporary)
        raise ReplaceError(path, f"cannot be written: {_reason(error)}; nothing was changed") from None
    except BaseException:
        _remove(temporary)
        raise
    return temporary


def _like_before(descriptor: int, path: Path) -> None:
    """Owner and mode of the file that is to be replaced, while there is nothing in the new one."""
    try:
        before = path.lstat()
    except FileNotFoundError:
        os.fchmod(descriptor, 0o600)  # whatever the umask
        _hand_to_the_owner(descriptor, path.parent)
        return
    if not stat.S_ISREG(before.st_mode):
        raise ReplaceError(path, "is not a regular file")
    mine = os.fstat(descriptor)
    if (mine.st_uid, mine.st_gid) != (before.st_uid, before.st_gid):
        os.fchown(descriptor, before.st_uid, before.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(before.st_mode))


def _hand_to_the_owner(descriptor: int, directory: Path) -> None:
    """What root makes in a service's directory is for the service."""
    if os.geteuid() == 0:
        owner = directory.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
