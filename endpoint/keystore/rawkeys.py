"""Raw public keys (RFC 7250) of the devices that may connect: a file, or a directory of files.

One line for each key, as in a PSK file, the key being the body of an ordinary PEM public key on one line::

    # name:public key, the base64 of a SubjectPublicKeyInfo
    meter-17:MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE…

which ``openssl pkey -pubin -in meter-17.pem -outform DER | base64 -w0`` prints. Or PEM files as they are, where
the name of the file without its ending is the name of the device: ``meter-17.pem``.

The name is the identity of the association. A name may have two keys, while a device changes from one to the
other. A key belongs to one name. Public keys are no secret, so others may read the files, but not write them.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

import attrs

from endpoint.files import RefusedFileError, read_trusted
from endpoint.keystore.file import numbered_lines, quoted_identity, read_all
from endpoint.keystore.pem import PUBLIC_KEY, PemError, blocks_of, public_key
from endpoint.text import show_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_KEYS = 2


@attrs.frozen
class RawKeySet:
    """All public keys of a file or directory."""

    names: Mapping[bytes, bytes] = attrs.field(repr=False)
    """SubjectPublicKeyInfo in DER to the name of the device."""
    files: tuple[Path, ...] = ()

    @property
    def devices(self) -> int:
        """How many names there are."""
        return len(set(self.names.values()))


def load_raw_keys(path: Path) -> RawKeySet:
    """Read them; :class:`KeyFileError` lists all mistakes."""
    reader = _Reader()
    files = read_all(path, reader)
    return RawKeySet(names=reader.names, files=files)


class _Reader:
    """Gathers keys and mistakes over all files."""

    def __init__(self) -> None:
        self.names: dict[bytes, bytes] = {}
        self.problems: list[str] = []
        self._places: dict[bytes, str] = {}
        self._counts: dict[bytes, int] = {}

    def file(self, path: Path) -> None:
        where = show_text(str(path))
        try:
            content = read_trusted(path, what="a file of public keys", plural="keys")
            if b"-----BEGIN " in content:
                for der in blocks_of(content, PUBLIC_KEY):
                    self._add(where, path.stem.encode("utf-8", "surrogateescape"), der)
                return
        except (RefusedFileError, PemError) as error:
            self.problems.append(f"{where}: {error}")
            return
        for number, line in numbered_lines(content):
            if not line.lstrip().startswith(b"#"):
                self._line(f"{where}:{number}", line)

    def _line(self, where: str, line: bytes) -> None:
        name, colon, text = line.rpartition(b":")
        if not colon:
            self.problems.append(f"{where}: not name:key (there is no colon)")
        elif not name:
            self.problems.append(f"{where}: the name before the colon is empty")
        elif name != name.strip():
            self.problems.append(
                f"{where}: blanks around the name {quoted_identity(name)}; remedy: leave them out"
            )
        else:
            try:
                der = base64.b64decode(text.strip(), validate=True)
            except binascii.Error:
                self.problems.append(f"{where}: the key of {quoted_identity(name)} is not base64")
                return
            self._add(where, name, der)

    def _add(self, where: str, name: bytes, der: bytes) -> None:
        try:
            key = public_key(der)
        except PemError as error:
            self.problems.append(f"{where}: the key of {quoted_identity(name)} {error}")
            return
        if key in self.names:
            self.problems.append(
                f"{where}: the key of {quoted_identity(name)} is that of "
                f"{quoted_identity(self.names[key])} too ({self._places[key]}); a key belongs to one name"
            )
            return
        self._counts[name] = self._counts.get(name, 0) + 1
        if self._counts[name] > MAX_KEYS:
            self.problems.append(
                f"{where}: a third key for {quoted_identity(name)}; a name has a current key and at most one next key"
            )
            return
        self.names[key] = name
        self._places[key] = where
