"""A session kept in a file, so that the next ``dtls-endpoint connect`` can resume it.

The file is one line of text, for its owner only, because it holds what decrypts the session::

    sansdtls-session TAG BASE64

TAG stands for server and credentials. A session that was made with others is not offered.
"""

from __future__ import annotations

import base64
import binascii
import os
from typing import TYPE_CHECKING

from endpoint.device import DeviceError
from endpoint.files import RefusedFileError, read_private
from endpoint.text import show_text
from sansdtls import ConfigError, Session

if TYPE_CHECKING:
    from pathlib import Path

_MAGIC = b"sansdtls-session"


class SavedSession:
    """The file of one session."""

    def __init__(self, path: Path, tag: str) -> None:
        self.path = path
        self.offered = False
        """Whether :meth:`load` found one that may be offered."""
        self._tag = tag.encode()

    def load(self) -> Session | None:
        """The session to offer, or ``None``. :class:`DeviceError` for a file that is something else."""
        if not self.path.exists():
            return None
        where = show_text(str(self.path))
        try:
            content = read_private(self.path, what="a saved session", plural="session's keys")
            magic, tag, text = content.split()
            if magic != _MAGIC:
                raise ConfigError("another file")
            session = Session.from_bytes(base64.b64decode(text, validate=True))
        except RefusedFileError as refused:
            raise DeviceError([f"{where}: {refused}"]) from None
        except (ValueError, binascii.Error, ConfigError):
            # Not overwritten: it may be a key file, named by mistake.
            raise DeviceError(
                [f"{where}: is no saved session; remedy: name another file, or remove it"]
            ) from None
        if tag != self._tag:
            return None
        self.offered = True
        return session

    def store(self, session: Session) -> None:
        """Keep it, in place of the one before; the file appears whole or not at all."""
        line = b" ".join((_MAGIC, self._tag, base64.b64encode(session.to_bytes()))) + b"\n"
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}~")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(line)
            draft.replace(self.path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
