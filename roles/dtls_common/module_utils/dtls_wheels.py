"""A folder of wheels on the controller, of which a release is made."""

from __future__ import annotations

import hashlib
import io
import tarfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DIGITS = 16
"""Of the digest, for the name of a release: nobody makes two on purpose."""


def look_at(folder: Path) -> Sequence[Path]:
    """The wheels of a folder; ValueError if they cannot be all that is needed."""
    wheels = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    ours = [wheel for wheel in wheels if wheel.name.startswith("sansdtls-")]
    if len(ours) != 1:
        what = "is no folder here" if not folder.is_dir() else f"has {len(ours)} wheels of sansdtls, not one"
        raise ValueError(f"{folder} {what}; remedy: pip wheel --wheel-dir FOLDER 'sansdtls[endpoint]' pip")
    return wheels


def release_of(wheels: Sequence[Path]) -> str:
    """The name of the release that these wheels are: a digest of their names and contents."""
    listed = hashlib.sha256()
    for wheel in wheels:
        # As sha256sum prints it, so that the host can find it out as well.
        listed.update(f"{hashlib.sha256(wheel.read_bytes()).hexdigest()}  {wheel.name}\n".encode())
    return listed.hexdigest()[:DIGITS]


def version_of(wheels: Sequence[Path]) -> str:
    """The version of ours among them."""
    return next(wheel.name.split("-")[1] for wheel in wheels if wheel.name.startswith("sansdtls-"))


def archive(wheels: Sequence[Path]) -> bytes:
    """All of them in one."""
    sent = io.BytesIO()
    with tarfile.open(fileobj=sent, mode="w") as tar:
        for wheel in wheels:
            entry = tarfile.TarInfo(wheel.name)
            entry.size, entry.mode = wheel.stat().st_size, 0o644
            with wheel.open("rb") as content:
                tar.addfile(entry, content)
    return sent.getvalue()
