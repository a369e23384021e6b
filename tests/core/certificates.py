"""A certificate authority for tests: chains, revocation lists, device names, and whatever a real CA would not sign.

    root = Authority.root("Fleet root")
    factory = root.authority("Factory 7")
    meter = factory.device("meter-7", dns=["meter-7.example"])
    meter.chain     # DER, the device's own first, no root: what a peer sends
    meter.key       # a private key of cryptography

Nothing here comes from ``sansdtls``. Every date is fixed: :data:`NOW` lies within the validity of all that does not
ask for other dates.
"""

from __future__ import annotations

import functools
import ipaddress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
END = datetime(2027, 1, 1, tzinfo=UTC)
NEVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""RFC 5280 §4.1.2.5: a certificate "with no well-defined expiration date", as IEEE 802.1AR gives to devices."""
A_SECOND = timedelta(seconds=1)
A_DAY = timedelta(days=1)

CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
ANY_PURPOSE = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE

_serial_numbers = iter(range(1000, 2**63))


@functools.cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """Always the same one of a size: making one takes a tenth of a second or more."""
    return rsa.generate_private_key(65537, bits)


def make_key(kind: str = "p256") -> PrivateKey:
    """A key of a kind: p256, p384, p521, k1, ed25519, rsa, rsa-1024."""
    match kind:
        case "p256":
            return ec.generate_private_key(ec.SECP256R1())
        case "p384":
            return ec.generate_private_key(ec.SECP384R1())
        case "p521":
            return ec.generate_private_key(ec.SECP521R1())
        case "k1":
            return ec.generate_private_key(ec.SECP256K1())
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case _:
            return rsa_key(int(kind.partition("-")[2] or 2048))


def distinguished_name(common_name: str | None, serial_number: str | None = None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Fleet")]
    if common_name is not None:
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name))
    if serial_number is not None:
        attributes.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, serial_number))
    return x509.Name(attributes)


def key_usage(*names: str) -> x509.KeyUsage:
    """Of RFC 5280 §4.2.1.3, with these bits set: ``key_usage("digital_signature")``."""
    every: Iterable[str] = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign"
        " crl_sign encipher_only decipher_only"
    ).split()
    assert set(names) <= set(every)
    return x509.KeyUsage(**{name: name in names for name in every})


def pem(*ders: bytes, label: str = "CERTIFICATE") -> bytes:
    load: Any = x509.load_der_x509_crl if label == "X509 CRL" else x509.load_der_x509_certificate
    return b"".join(load(der).public_bytes(Encoding.PEM) for der in ders)


@attrs.frozen
class Credential:
    """A certificate, its key, and the certificates between it and the root."""

    certificate: x509.Certificate
    key: PrivateKey
    above: tuple[x509.Certificate, ...] = ()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def chain(self) -> tuple[bytes, ...]:
        """What a peer sends: its own certificate and the intermediates, without the root."""
        return (self.der, *(certificate.public_bytes(Encoding.DER) for certificate in self.above))

    @property
    def spki(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @property
    def chain_pem(self) -> bytes:
        return pem(*self.chain)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@attrs.frozen
class Authority(Credential):
    """A CA. The fields below are of its own certificate."""

    is_root: bool = False

    @classmethod
    def root(cls, name: str = "Root", *, key: PrivateKey | str = "p256", **fields: Any) -> Authority:
        private = make_key(key) if isinstance(key, str) else key
        subject = distinguished_name(name)
        certificate = issue(subject, private, issuer=subject, issuer_key=private, **_of_an_authority(fields))
        return cls(certificate, private, is_root=True)

    def authority(
        self, name: str = "Intermediate", *, key: PrivateKey | str = "p256", **fields: Any
    ) -> Authority:
        """A CA below this one."""
        private = make_key(key) if isinstance(key, str) else key
        certificate = self.sign(distinguished_name(name), private, **_of_an_authority(fields))
        return Authority(certificate, private, self._above)

    def device(
        self,
        name: str | x509.Name | None = "device",
        *,
        key: PrivateKey | str = "p256",
        serial_number: str | None = None,
        **fields: Any,
    ) -> Credential:
        """An end entity; for the further fields see :func:`issue`."""
        private = make_key(key) if isinstance(key, str) else key
        subject = name if isinstance(name, x509.Name) else distinguished_name(name, serial_number)
        return Credential(self.sign(subject, private, **fields), private, self._above)

    def idevid(self, serial_number: str, **others: Any) -> Credential:
        """A device certificate by IEEE 802.1AR: the subject's serialNumber, no end, no subjectAltName."""
        fields: dict[str, Any] = {
            "serial_number": serial_number,
            "end": NEVER,
            "usage": key_usage("digital_signature", "key_encipherment"),
            **others,
        }
        return self.device(None, **fields)

    def eui64_device(self, eui64: str, **fields: Any) -> Credential:
        """A device certificate by RFC 7925 §4.4.2: an EUI-64 as a DNS name."""
        return self.device(None, dns=[eui64], **fields)

    def server(self, name: str = "server.example", **others: Any) -> Credential:
        fields: dict[str, Any] = {
            "dns": [name],
            "purposes": [SERVER_AUTH],
            "usage": key_usage("digital_signature"),
            **others,
        }
        return self.device(None, **fields)

    def sign(self, subject: x509.Name, key: PrivateKey, **fields: Any) -> x509.Certificate:
        return issue(
            subject,
            key,
            issuer=self.certificate.subject,
            issuer_key=self.key,
            authority=self.certificate,
            **fields,
        )

    def crl(
        self,
        *revoked: Credential,
        start: datetime = NOW - A_DAY,
        end: datetime | None = NOW + A_DAY,
        key: PrivateKey | None = None,
        issuer: x509.Name | None = None,
        algorithm: Any = hashes.SHA256(),  # noqa: B008 - immutable
        extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    ) -> bytes:
        """A revocation list of this CA, in DER; ``key`` and ``issuer`` make it another's."""
        builder = x509.CertificateRevocationListBuilder(
            issuer_name=issuer or self.certificate.subject, last_update=start, next_update=end or NEVER
        )
        for credential in revoked:
            entry = x509.RevokedCertificateBuilder(credential.certificate.serial_number, START + A_DAY)
            builder = builder.add_revoked_certificate(entry.build())
        for value, critical in extensions:
            builder = builder.add_extension(value, critical)
        signer = key or self.key
        without = isinstance(signer, ed25519.Ed25519PrivateKey)
        return builder.sign(signer, None if without else algorithm).public_bytes(Encoding.DER)

    @property
    def _above(self) -> tuple[x509.Certificate, ...]:
        return () if self.is_root else (self.certificate, *self.above)


def _of_an_authority(fields: dict[str, Any]) -> dict[str, Any]:
    path_length = fields.pop("path_length", None)
    return {
        "constraints": x509.BasicConstraints(ca=True, path_length=path_length),
        "usage": key_usage("key_cert_sign", "crl_sign"),
    } | fields


def issue(
    subject: x509.Name,
    key: PrivateKey,
    *,
    issuer: x509.Name,
    issuer_key: PrivateKey,
    authority: x509.Certificate | None = None,
    start: datetime = START,
    end: datetime = END,
    constraints: x509.BasicConstraints | None = None,
    usage: x509.KeyUsage | None = None,
    purposes: Sequence[x509.ObjectIdentifier] = (),
    dns: Sequence[str] = (),
    uris: Sequence[str] = (),
    addresses: Sequence[str] = (),
    key_ids: bool = True,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    algorithm: Any = None,
) -> x509.Certificate:
    """One certificate, with nothing in it that was not asked for but key identifiers."""
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), next(_serial_numbers), start, end)
    if constraints is not None:
        builder = builder.add_extension(constraints, critical=True)
    if usage is not None:
        builder = builder.add_extension(usage, critical=True)
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    names: list[x509.GeneralName] = [
        *map(x509.DNSName, dns),
        *map(x509.UniformResourceIdentifier, uris),
        *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses),
    ]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if key_ids:
        builder = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        )
        if authority is not None:
            builder = builder.add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
            )
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    if algorithm is None and not isinstance(issuer_key, ed25519.Ed25519PrivateKey):
        algorithm = hashes.SHA256()
    return builder.sign(issuer_key, algorithm)
