"""Certificates and raw keys for the other stacks, as files; made once in a session.

Each kind of key has an authority of its own kind, so that a side that takes but one kind of signature can
check the whole chain.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from typing import TYPE_CHECKING

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sansdtls import CertificateCredential, RawPublicKeyCredential, SigningKey

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SERVER_NAME = "localhost"
KEYS: dict[str, Callable[[], ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey]] = {
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
}
YEAR = dt.timedelta(days=365)


@attrs.frozen
class Credential:
    """One side's certificate and key; ``stem`` plus a suffix names the files.

    ``.pem`` the certificate, ``.key`` the private key as PKCS #8, ``.pub`` the public key, ``.ca.pem`` the
    authority, ``.chain.pem`` the certificate and the authority.
    """

    stem: Path

    def file(self, suffix: str) -> str:
        return str(self.stem.with_suffix(suffix))

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.stem.with_suffix(".pem").read_bytes())

    @property
    def authority(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.stem.with_suffix(".ca.pem").read_bytes())

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def spki(self) -> bytes:
        return self.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def _key(self) -> SigningKey:
        return SigningKey.from_pem(self.stem.with_suffix(".key").read_bytes())

    def ours(self) -> CertificateCredential:
        return CertificateCredential((self.der,), self._key())

    def ours_raw(self) -> RawPublicKeyCredential:
        return RawPublicKeyCredential(self._key())


@attrs.frozen
class Pair:
    """Two of one authority."""

    server: Credential
    client: Credential


def make(directory: Path, kind: str, *, authority: str = "authority") -> Pair:
    """A server and a client with keys of one kind, of one new authority."""
    ca_key = KEYS[kind]()
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{kind} {authority}")])
    ca = _certificate(ca_key, ca_name, ca_key, ca_name, is_authority=True)
    made = {}
    for role in ("server", "client"):
        key = KEYS[kind]()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{kind} {role}")])
        certificate = _certificate(ca_key, ca_name, key, name, is_authority=False)
        stem = directory / f"{authority}-{kind}-{role}"
        pem = certificate.public_bytes(Encoding.PEM)
        ca_pem = ca.public_bytes(Encoding.PEM)
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        stem.with_suffix(".pem").write_bytes(pem)
        stem.with_suffix(".chain.pem").write_bytes(pem + ca_pem)
        stem.with_suffix(".ca.pem").write_bytes(ca_pem)
        stem.with_suffix(".pub").write_bytes(public)
        stem.with_suffix(".key").write_bytes(private)
        made[role] = Credential(stem)
    return Pair(**made)


def _certificate(ca_key, issuer, key, subject, *, is_authority: bool) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - YEAR)
        .not_valid_after(now + YEAR)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=not is_authority,
                content_commitment=False,
                # NSS asks for it, though only key exchange by RSA would need it.
                key_encipherment=isinstance(key, rsa.RSAPrivateKey),
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=is_authority,
                crl_sign=is_authority,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if not is_authority:
        names = [x509.DNSName(SERVER_NAME), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    is_edwards = isinstance(ca_key, ed25519.Ed25519PrivateKey)
    return builder.sign(ca_key, None if is_edwards else hashes.SHA256())
