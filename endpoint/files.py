"""Files that decide who gets in: opened so that nobody can swap them, refused where others could read or write.

Two kinds. *Private* files (keys) are for their owner's eyes only. *Trusted* files (certificates, CRLs, public
keys) may be read by all and written by their owner only, because whoever adds a line lets somebody in.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from endpoint.text import show_text

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILE_BYTES = 256 * 1024 * 1024
"""Some two million identities. Bounds the harm of naming the wrong file."""


class RefusedFileError(Exception):
    """Why a file is not read: what is wrong, and the remedy; without the name of the file."""


def read_private(path: Path, *, what: str, plural: str) -> bytes:
    """The content of a regular file that only its owner may read.

    ``what`` names the kind of file and ``plural`` what is in it, for messages.
    """
    return _read(
        path, forbidden=0o077, harm=f"gives group or others access to the {plural}", remedy="600", what=what
    )


def read_trusted(path: Path, *, what: str, plural: str) -> bytes:
    """The content of a regular file that only its owner may write."""
    return _read(path, forbidden=0o022, harm=f"lets others add {plural}", remedy="go-w", what=what)


def _read(path: Path, *, forbidden: int, harm: str, remedy: str, what: str) -> bytes:
    # The open file is examined, not its name, so nobody can swap it in between; O_NONBLOCK keeps a
    # FIFO from stopping the program.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise RefusedFileError(cannot_read(error)) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RefusedFileError("is not a regular file")
        mode = stat.S_IMODE(status.st_mode)
        if mode & forbidden:
            raise RefusedFileError(f"mode {mode:04o} {harm}; remedy: chmod {remedy} {show_text(str(path))}")
        if status.st_size > MAX_FILE_BYTES:
            raise RefusedFileError(
                f"has {status.st_size} bytes; more than {MAX_FILE_BYTES} are not read as {what}"
            )
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise RefusedFileError(cannot_read(error)) from None
    finally:
        os.close(descriptor)


def files_at(path: Path, *, plural: str) -> list[Path]:
    """``path``, or if it is a directory the files in it, in the order of their names.

    Names that start with ``.`` or end with ``~`` are skipped (editors, backups, half-written files).
    Links are followed, because atomic updates swap them; what counts is the permission of the file itself.
    """
    try:
        if not path.is_dir():
            return [path]
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o022:
            raise RefusedFileError(
                f"mode {mode:04o} lets others add {plural}; remedy: chmod go-w {show_text(str(path))}"
            )
        names = sorted(entry.name for entry in os.scandir(path))
    except OSError as error:
        raise RefusedFileError(cannot_read(error)) from None
    return [path / name for name in names if not name.startswith(".") and not name.endswith("~")]


def cannot_read(error: OSError) -> str:
    """An operating system's error as the rest of ``file: …``."""
    return f"cannot be read: {(error.strerror or str(error)).lower()}"
