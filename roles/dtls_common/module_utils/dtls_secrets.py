"""How content is compared and named without being shown: digests under a key that lives as long as one run of Ansible.

A plain SHA-256 of a file with a short secret in it would let whoever reads the output try secrets against it. These say
"the same" and "another" within one run, and nothing to anybody else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

KEY_FILE = "dtls-run-key"


def run_key(folder: str) -> str:
    """The key of this run, 64 hex digits, from Ansible's own temporary folder, which all its processes share.

    It protects nothing once the run is over, and Ansible removes the folder then.
    """
    path = Path(folder) / KEY_FILE
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):
            return path.read_text(encoding="ascii")
        mine = path.with_name(f"{KEY_FILE}.{os.getpid()}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        # The first one wins, and nobody sees half a key.
        with contextlib.suppress(FileExistsError):
            os.link(mine, path)
        mine.unlink()
    raise RuntimeError(f"{path}: cannot be made")


def digest(key: str, content: bytes) -> str:
    """What ``dtls_file.sh`` computes of a file; without a key, the plain SHA-256."""
    prefix = f"{key}\n".encode() if key else b""
    return hashlib.sha256(prefix + content).hexdigest()
