"""What is asked of the certificates above the peer's, and of every signature on the way.

OpenSSL builds the path and checks its signatures, dates, names, CA flags and path lengths. Through pyOpenSSL
it has no purpose and no security level: those are here. The same rules hold for the certificates of a policy, CA
flags included, so that an operator learns of them at the start, and not from the first device.
"""

from __future__ import annotations

import enum
from hashlib import sha256
from typing import TYPE_CHECKING, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from sansdtls.crypto.signatures import MAX_RSA_BITS, MIN_RSA_BITS
from sansdtls.pki.rejection import CertificateProblem, CertificateRejected

if TYPE_CHECKING:
    from collections.abc import Collection

    from sansdtls.pki.rejection import Place

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


@enum.unique
class Purpose(enum.Enum):
    """What the certificate that is checked has to be good for, RFC 5280 §4.2.1.12."""

    CLIENT = "client"
    """A server checks a client: ``id-kp-clientAuth``."""
    SERVER = "server"
    """A client checks a server: ``id-kp-serverAuth``."""


_KEY_PURPOSES = {
    Purpose.CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH,
    Purpose.SERVER: ExtendedKeyUsageOID.SERVER_AUTH,
}


def extension(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    """The value of an extension, ``None`` if the certificate has none of that kind."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def require_authority(certificate: x509.Certificate, purpose: Purpose, what: Place | str) -> None:
    """Return if ``certificate`` may issue certificates for ``purpose``."""
    # RFC 5280 §4.2.1.9: "If the basic constraints extension is not present in a version 3 certificate, or the
    # extension is present but the cA boolean is not asserted, then the certified public key MUST NOT be used to
    # verify certificate signatures."
    constraints = extension(certificate, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        raise CertificateRejected(
            CertificateProblem.NOT_A_CA, f"{what} is not that of a CA (basicConstraints CA:TRUE)"
        )
    usage = extension(certificate, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        raise CertificateRejected(
            CertificateProblem.NOT_A_CA, f"{what} has a key usage without certificate signing"
        )
    require_purpose(certificate, purpose, what)
    _require_authority_key(certificate, what)


def require_purpose(certificate: x509.Certificate, purpose: Purpose, what: Place | str) -> None:
    """Return if the extended key usage allows ``purpose``, or if there is none.

    As in OpenSSL, and unlike the letter of RFC 5280, a CA's extended key usage bounds what it issues. The
    purpose must be named: anyExtendedKeyUsage is not taken for it, which RFC 5280 §4.2.1.12 leaves open.
    """
    usage = extension(certificate, x509.ExtendedKeyUsage)
    if usage is not None and _KEY_PURPOSES[purpose] not in usage:
        raise CertificateRejected(
            CertificateProblem.WRONG_PURPOSE,
            f"{what} has an extended key usage without {purpose.value} authentication",
        )


def _require_authority_key(certificate: x509.Certificate, what: Place | str) -> None:
    # P-521 beside the kinds that a handshake can use: a long-lived CA may well be stronger than its devices.
    key = certificate.public_key()
    match key:
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1() | ec.SECP384R1() | ec.SECP521R1()):
            return
        case ed25519.Ed25519PublicKey():
            return
        case rsa.RSAPublicKey(key_size=bits):
            if MIN_RSA_BITS <= bits <= MAX_RSA_BITS:
                return
            found = f"an RSA key of {bits} bits, not of {MIN_RSA_BITS} to {MAX_RSA_BITS}"
        case _:
            found = f"a key of a kind that is not supported ({type(key).__name__})"
    raise CertificateRejected(CertificateProblem.UNUSABLE_KEY, f"{what} has {found}")


def require_strong_signature(
    signed: x509.Certificate | x509.CertificateRevocationList, what: Place | str
) -> None:
    """Return if ``signed`` is signed with a hash that nobody can find collisions for."""
    try:
        algorithm = signed.signature_hash_algorithm
    except UnsupportedAlgorithm:
        name = signed.signature_algorithm_oid.dotted_string
    else:
        # None: Ed25519, or another signature without a hash of its own, which OpenSSL has checked.
        if algorithm is None or isinstance(algorithm, hashes.SHA256 | hashes.SHA384 | hashes.SHA512):
            return
        name = algorithm.name
    raise CertificateRejected(
        CertificateProblem.WEAK_SIGNATURE,
        f"{what} is signed with {name}, not with SHA-256, SHA-384 or SHA-512",
    )


def spki_digests(certificates: Collection[x509.Certificate]) -> frozenset[bytes]:
    """What pins name keys by: SHA-256 of the SubjectPublicKeyInfo."""
    return frozenset(
        sha256(
            certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        ).digest()
        for certificate in certificates
    )
