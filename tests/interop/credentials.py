"""Certificates and raw keys for the other stacks, as files; made once in a session.

Each kind of key has an authority of its own kind, so that a side that takes but one kind of signature can
check the whole chain.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import attrs
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sansdtls import CertificateCredential, RawPublicKeyCredential, SigningKey
from tests.core.certificates import CLIENT_AUTH, SERVER_AUTH, Authority, key_usage, make_key, pem

if TYPE_CHECKING:
    from pathlib import Path

    from tests.core import certificates

SERVER_NAME = "localhost"
KINDS = ("p256", "p384", "ed25519", "rsa")


@attrs.frozen
class Credential:
    """One side's certificate and key, and the files for the programs: ``stem`` with a suffix.

    ``.pem`` the certificate, ``.key`` the private key as PKCS #8, ``.pub`` the public key, ``.ca.pem`` the
    authority's certificate.
    """

    stem: Path
    _made: certificates.Credential = attrs.field(repr=False)

    @classmethod
    def write(cls, stem: Path, made: certificates.Credential, authority: Authority) -> Credential:
        public = made.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        stem.with_suffix(".pem").write_bytes(pem(made.der))
        stem.with_suffix(".key").write_bytes(made.key_pem)
        stem.with_suffix(".pub").write_bytes(public)
        stem.with_suffix(".ca.pem").write_bytes(pem(authority.der))
        return cls(stem, made)

    def file(self, suffix: str) -> str:
        return str(self.stem.with_suffix(suffix))

    @property
    def der(self) -> bytes:
        return self._made.der

    @property
    def spki(self) -> bytes:
        return self._made.spki

    @property
    def is_rsa(self) -> bool:
        return isinstance(self._made.key, rsa.RSAPrivateKey)

    def ours(self, *server_names: str) -> CertificateCredential:
        """For our side."""
        return CertificateCredential(self._made.chain, SigningKey.wrap(self._made.key), server_names)

    def ours_raw(self) -> RawPublicKeyCredential:
        return RawPublicKeyCredential(SigningKey.wrap(self._made.key))


@attrs.frozen
class Pair:
    """Two of one authority."""

    server: Credential
    client: Credential


def make_pair(directory: Path, kind: str, *, authority: str = "authority") -> Pair:
    """A server and a client with keys of one kind, of one new authority."""
    # The programs look at the clock of this machine.
    now = dt.datetime.now(dt.UTC)
    validity: dict[str, Any] = {"start": now - dt.timedelta(days=1), "end": now + dt.timedelta(days=30)}
    root = Authority.root(f"{kind} {authority}", key=_new_key(kind), **validity)
    # NSS asks RSA keys for key_encipherment, though only key exchange by RSA would need it.
    usage = ["digital_signature", *(["key_encipherment"] if kind == "rsa" else [])]
    made = {}
    for role in ("server", "client"):
        device = root.device(
            f"{kind} {role}",
            key=_new_key(kind),
            dns=[SERVER_NAME],
            addresses=["127.0.0.1"],
            purposes=[SERVER_AUTH, CLIENT_AUTH],
            usage=key_usage(*usage),
            **validity,
        )
        made[role] = Credential.write(directory / f"{authority}-{kind}-{role}", device, root)
    return Pair(**made)


def _new_key(kind: str) -> certificates.PrivateKey:
    # make_key gives out one RSA key again and again; here the two sides' keys are told apart.
    return rsa.generate_private_key(65537, 2048) if kind == "rsa" else make_key(kind)
