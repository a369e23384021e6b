"""Certificates and keys to show in handshakes, and signatures made and checked without ``sansdtls``.

All are made once and stay the same for a run; whether a certificate is *valid* plays no part here, since the
caller judges it. ``shown("p256").certificate()`` and ``.raw_public_key()`` are credentials for a configuration.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.x509.oid import NameOID

from sansdtls import CertificateCredential, RawPublicKeyCredential, SigningKey

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey

RSA_PKCS1_SHA256, RSA_PKCS1_SHA384 = 0x0401, 0x0501
ECDSA_SHA256, ECDSA_SHA384 = 0x0403, 0x0503
RSA_PSS_SHA256, RSA_PSS_SHA384 = 0x0804, 0x0805
ED25519 = 0x0807
ALL_SCHEMES = (
    ECDSA_SHA256,
    ED25519,
    ECDSA_SHA384,
    RSA_PSS_SHA256,
    RSA_PSS_SHA384,
    RSA_PKCS1_SHA256,
    RSA_PKCS1_SHA384,
)
SCHEMES_OF_KIND = {
    "p256": (ECDSA_SHA256, ECDSA_SHA384),
    "p384": (ECDSA_SHA384, ECDSA_SHA256),
    "ed25519": (ED25519,),
    "rsa": (RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384),
}
KINDS = tuple(SCHEMES_OF_KIND)


def make_key(kind: str) -> PrivateKey:
    match kind.partition(" ")[0]:
        case "p256":
            return ec.generate_private_key(ec.SECP256R1())
        case "p384":
            return ec.generate_private_key(ec.SECP384R1())
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case "p521":
            return ec.generate_private_key(ec.SECP521R1())
        case "rsa-1024":
            return rsa.generate_private_key(65537, 1024)  # noqa: S505 - to be refused
        case _:
            return rsa.generate_private_key(65537, 2048)


@attrs.frozen(eq=False)
class Shown:
    """A key pair with a certificate chain."""

    kind: str
    private: PrivateKey
    chain: tuple[bytes, ...]

    @property
    def spki(self) -> bytes:
        return self.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @property
    def key(self) -> SigningKey:
        return SigningKey.wrap(self.private)

    def certificate(self, *server_names: str) -> CertificateCredential:
        return CertificateCredential(self.chain, self.key, server_names)

    def raw_public_key(self, *server_names: str) -> RawPublicKeyCredential:
        return RawPublicKeyCredential(self.key, server_names)

    def sign(self, scheme: int, data: bytes) -> bytes:
        match self.private:
            case ed25519.Ed25519PrivateKey():
                return self.private.sign(data)
            case ec.EllipticCurvePrivateKey():
                return self.private.sign(data, ec.ECDSA(_hash(scheme)))
            case _:
                return self.private.sign(data, _padding(scheme), _hash(scheme))


def _hash(scheme: int) -> hashes.HashAlgorithm:
    return hashes.SHA384() if scheme in (RSA_PKCS1_SHA384, ECDSA_SHA384, RSA_PSS_SHA384) else hashes.SHA256()


def _padding(scheme: int) -> padding.PSS | padding.PKCS1v15:
    if scheme in (RSA_PSS_SHA256, RSA_PSS_SHA384):
        return padding.PSS(padding.MGF1(_hash(scheme)), padding.PSS.DIGEST_LENGTH)
    return padding.PKCS1v15()


def spki_of(certificate: bytes) -> bytes:
    public = x509.load_der_x509_certificate(certificate).public_key()
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def verifies(spki: bytes, scheme: int, data: bytes, signature: bytes) -> bool:
    public = load_der_public_key(spki)
    try:
        match public:
            case ed25519.Ed25519PublicKey():
                public.verify(signature, data)
            case ec.EllipticCurvePublicKey():
                public.verify(signature, data, ec.ECDSA(_hash(scheme)))
            case rsa.RSAPublicKey():
                public.verify(signature, data, _padding(scheme), _hash(scheme))
            case _:
                raise AssertionError(public)
    except InvalidSignature:
        return False
    return True


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


@functools.cache
def _authority() -> tuple[ed25519.Ed25519PrivateKey, bytes]:
    private = ed25519.Ed25519PrivateKey.generate()
    return private, _certificate("authority", private, private)


def _certificate(common_name: str, private: PrivateKey, issuer: ed25519.Ed25519PrivateKey) -> bytes:
    builder = x509.CertificateBuilder(
        issuer_name=_name("authority"),
        subject_name=_name(common_name),
        public_key=private.public_key(),
        serial_number=5,
        not_valid_before=datetime(2026, 1, 1, tzinfo=UTC),
        not_valid_after=datetime(2036, 1, 1, tzinfo=UTC),
    )
    return builder.sign(issuer, None).public_bytes(Encoding.DER)


@functools.cache
def shown(kind: str) -> Shown:
    """The key pair of this kind: ``p256``, ``p384``, ``ed25519``, ``rsa``, and with any word behind, another one."""
    private = make_key(kind)
    issuer, authority = _authority()
    return Shown(kind, private, (_certificate(kind, private, issuer), authority))
