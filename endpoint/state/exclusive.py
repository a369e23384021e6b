"""The file of a database of associations, before SQLite sees it: for its owner only, and for one process at a time.

Whoever else can write the file or its directory could put an old copy there, or a journal that makes one; and of an old copy
all record numbers have been used. So modes, owner, links and directory are looked at, and a lock is held from before that until
after the last use: flock(2), because SQLite's own lock is a POSIX one, which vanishes when *any* descriptor of the file is
closed in this process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING

from endpoint.text import show_text

if TYPE_CHECKING:
    from pathlib import Path


class StateFileError(Exception):
    """Why the file cannot be used, or a checkpoint was not written: the file, what is wrong, the remedy."""

    def __init__(self, path: Path, what: str, *, code: str = "") -> None:
        """``code`` is a short stable name: SQLite's, or the operating system's."""
        super().__init__(f"{show_text(str(path))}: {what}")
        self.what = what
        self.code = code


def open_alone(path: Path) -> int:
    """A descriptor with the lock, of a file that is in order; made if it is not there."""
    _require_safe_directory(path)
    try:
        # To read and write: of a FIFO that waits for nobody.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise system_error(path, error) from None
    try:
        _require_safe_file(path, os.fstat(descriptor))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(descriptor).st_size:
            # Before anything is in it: its name has to be on the disk too.
            _flush_directory(path)
    except BlockingIOError:
        os.close(descriptor)
        raise StateFileError(
            path, "is in use by another process; remedy: stop that one, or name another file", code="IN_USE"
        ) from None
    except OSError as error:
        os.close(descriptor)
        raise system_error(path, error) from None
    except StateFileError:
        os.close(descriptor)
        raise
    return descriptor


def start_of(path: Path, length: int) -> bytes:
    """The first bytes of a file that is in order; none if it is not there. Takes no lock and changes nothing."""
    _require_safe_directory(path)
    try:
        # Not to wait for a FIFO.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise system_error(path, error) from None
    try:
        _require_safe_file(path, os.fstat(descriptor))
        return os.read(descriptor, length)
    finally:
        os.close(descriptor)


def _require_safe_directory(path: Path) -> None:
    directory = path.parent
    where = show_text(str(directory))
    try:
        status = directory.stat()
    except OSError as error:
        raise system_error(path, error) from None
    mode = stat.S_IMODE(status.st_mode)
    # Not even where the sticky bit is set: SQLite would follow a journal that somebody put there.
    if mode & 0o022:
        raise StateFileError(
            path,
            f"mode {mode:04o} of its directory lets others write; remedy: chmod go-w {where}",
            code="MODE",
        )
    if status.st_uid not in {0, os.geteuid()}:
        raise StateFileError(
            path, f"its directory belongs to user {status.st_uid}; remedy: chown {where}", code="OWNER"
        )


def _require_safe_file(path: Path, status: os.stat_result) -> None:
    name = show_text(str(path))
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        raise StateFileError(path, "is not a regular file; remedy: name another", code="KIND")
    if mode & 0o077:
        raise StateFileError(
            path,
            f"mode {mode:04o} gives group or others access to the associations; remedy: chmod 600 {name}",
            code="MODE",
        )
    if status.st_uid != os.geteuid():
        raise StateFileError(
            path,
            f"belongs to user {status.st_uid}; remedy: run as that user, or chown {name}",
            code="OWNER",
        )
    if status.st_nlink > 1:
        # SQLite looks for the journal beside the name; under another name it would not find it.
        raise StateFileError(
            path, f"has {status.st_nlink} names; remedy: remove the other hard links", code="LINKS"
        )


def _flush_directory(path: Path) -> None:
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def system_error(path: Path, error: OSError) -> StateFileError:
    """What the operating system says of the file."""
    code = errno.errorcode.get(error.errno or 0, "EIO")
    if error.errno == errno.ELOOP:
        return StateFileError(path, "is a link; remedy: name the file itself", code=code)
    remedies = {
        errno.ENOENT: "; remedy: make its directory, for the service only",
        errno.EISDIR: "; remedy: name a file in it",
    }
    remedy = remedies.get(error.errno or 0, "")
    return StateFileError(
        path, f"cannot be used: {(error.strerror or str(error)).lower()}{remedy}", code=code
    )
