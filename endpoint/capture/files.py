"""The files of a capture: made by the service, in its own directory, and by nobody's wish anywhere else."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from typing import TYPE_CHECKING

import attrs

from endpoint.text import show_text

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

_ATTEMPTS = 100
"""Names that are tried within one second."""


class CaptureFileError(Exception):
    """A file cannot be made, or not be read; the text names it and the remedy."""


def look_at_directory(path: Path) -> None:
    """Raise :class:`CaptureFileError` unless it is a directory that others cannot write.

    Whose it is is not looked at, as somebody else than the service may be looking.
    """
    os.close(_opened(path, as_owner=False))


def _opened(path: Path, *, as_owner: bool) -> int:
    """A descriptor of the directory, which is what is looked at: the name may be somebody else's a moment later."""
    where = show_text(str(path))
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            reason = "is no directory, or a link to one"
        else:
            reason = (error.strerror or str(error)).lower()
        remedy = f"mkdir -m 700 {where}"
        raise CaptureFileError(f"{where}: {reason}; remedy: {remedy}, for the service's user") from None
    status = os.fstat(directory)
    mode = stat.S_IMODE(status.st_mode)
    problem = None
    if mode & 0o022:
        problem = f"mode {mode:04o} lets others put files there; remedy: chmod go-w {where}"
    elif as_owner and status.st_uid not in (0, os.geteuid()):
        problem = f"belongs to user {status.st_uid}; remedy: chown it to the service's user"
    if problem is not None:
        os.close(directory)
        raise CaptureFileError(f"{where}: {problem}")
    return directory


@attrs.define(eq=False)
class Outputs:
    """The files of one capture. Close them."""

    paths: dict[str, Path]
    """By kind: ``"pcapng"``, ``"keylog"``."""
    _descriptors: dict[str, int]
    _lengths: dict[str, int] = attrs.field(factory=dict, init=False)
    _writing: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _closing: bool = attrs.field(default=False, init=False)

    @classmethod
    def made(cls, directory: Path, kinds: tuple[str, ...]) -> Self:
        """New files, of a common name with the time of day; :class:`CaptureFileError` if that cannot be. Blocks."""
        opened = _opened(directory, as_owner=True)
        try:
            for attempt in range(1, _ATTEMPTS + 1):
                name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{attempt}"
                outputs = cls({}, {})
                try:
                    for kind in kinds:
                        outputs._make(opened, directory / f"{name}.{kind}", kind)
                except FileExistsError:
                    outputs.discard()
                    continue
                except OSError as error:
                    outputs.discard()
                    reason = (error.strerror or str(error)).lower()
                    raise CaptureFileError(
                        f"{show_text(str(directory))}: no file can be made: {reason}"
                    ) from None
                return outputs
            raise CaptureFileError(f"{show_text(str(directory))}: too many captures in one second; try again")
        finally:
            os.close(opened)

    def _make(self, directory: int, path: Path, kind: str) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptors[kind] = os.open(path.name, flags, 0o600, dir_fd=directory)
        self.paths[kind] = path

    def discard(self) -> None:
        """Remove them again, empty as they are."""
        for path in self.paths.values():
            with contextlib.suppress(OSError):
                path.unlink()
        self.close()

    def write(self, kind: str, data: bytes) -> None:
        """Append all of ``data``, or nothing: raises OSError, and the file ends where it did before. Blocks."""
        with self._writing:
            try:
                if not self._closing:
                    self._append(kind, data)
            finally:
                if self._closing:
                    self._close()

    def _append(self, kind: str, data: bytes) -> None:
        descriptor, before = self._descriptors[kind], self._lengths.get(kind, 0)
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(descriptor, left) :]
        except OSError:
            with contextlib.suppress(OSError):  # half a block would be called damaged by every reader
                os.ftruncate(descriptor, before)
            raise
        self._lengths[kind] = before + len(data)

    def close(self) -> None:
        """Close them, or have it done by the thread that is writing: the number of a closed descriptor is soon another file's."""
        self._closing = True
        if self._writing.acquire(blocking=False):
            try:
                self._close()
            finally:
                self._writing.release()

    def _close(self) -> None:
        while self._descriptors:
            with contextlib.suppress(OSError):
                os.close(self._descriptors.popitem()[1])
