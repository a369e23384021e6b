"""The files of a fleet for tests of the program: a CA, a server, devices, keys; valid now, or as asked."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.core.certificates import CLIENT_AUTH, Authority, Credential, make_key, pem

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
VALID: dict[str, Any] = {"start": NOW - 10 * DAY, "end": NOW + 10 * DAY}
EXPIRED: dict[str, Any] = {"start": NOW - 10 * DAY, "end": NOW - 2 * DAY}
FUTURE: dict[str, Any] = {"start": NOW + 2 * DAY, "end": NOW + 10 * DAY}


class Files:
    """A directory. Each method writes and gives back what it wrote."""

    def __init__(self, path: Path):
        self.path = path
        self.root = Authority.root("Fleet root", **VALID)

    def write(self, name: str, content: bytes | str, mode: int = 0o644) -> Path:
        path = self.path / name
        path.touch(mode=0o600)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
        return path

    def credential(self, name: str, made: Credential) -> Credential:
        """``name.pem`` with the chain, ``name.key`` and ``name.pub``."""
        self.write(f"{name}.pem", made.chain_pem)
        self.write(f"{name}.key", made.key_pem, 0o600)
        public = made.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self.write(f"{name}.pub", public)
        return made

    def ca(self, *authorities: Authority, name: str = "ca.pem") -> Path:
        return self.write(name, pem(*(authority.der for authority in authorities or (self.root,))))

    def server(self, name: str = "server", *, dns: str = "gw.example", **fields) -> Credential:
        dates = {**VALID, **fields}
        return self.credential(name, self.root.server(dns, addresses=["127.0.0.1"], **dates))

    def device(self, name: str = "meter-7", **fields) -> Credential:
        return self.credential(name, self.root.device(name, purposes=[CLIENT_AUTH], **{**VALID, **fields}))

    def crl(
        self, *revoked: Credential, name: str = "crl.pem", start=NOW - DAY, end=NOW + DAY, **fields
    ) -> Path:
        der = self.root.crl(*revoked, start=start, end=end, **fields)
        return self.write(name, pem(der, label="X509 CRL"))

    def raw_key(self, name: str, kind: str = "p256") -> Credential:
        """A key pair without a certificate of any worth: ``name.key``, ``name.pub``."""
        made = Authority.root(name, key=make_key(kind), **VALID)
        return self.credential(name, made)
