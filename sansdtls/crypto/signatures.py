"""Signing keys and the verification of signatures, RFC 5246 §4.7 and §7.4.8, RFC 8422 §5.4 and §5.8.

The attacker sends any key, any scheme and any signature. What holds against that:

* A key is used only in the form that certificates and pins name it by: its one DER encoding. Otherwise the key
  that is compared and the key that verifies could differ.
* The key decides which schemes there are, never the scheme what kind of key it is. A scheme that does not
  fit the key verifies nothing.
* A key that is weak, or so large that checking a signature becomes work, is refused before it computes.

Left out: SHA-1 and MD5 (RFC 9155), SHA-512 and P-521 (no profile for devices asks for them), DSA, Ed448, and RSA
keys whose identifier is RSASSA-PSS (their schemes, rsa_pss_pss, are others than those offered here).

Signing asks nothing of the system's randomness, so that a recorded handshake can be made again: ECDSA takes its
nonce from key and message (RFC 6979), Ed25519 and PKCS #1 v1.5 need none. RSA-PSS is the one exception: OpenSSL
draws the salt.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
    load_pem_private_key,
)

from sansdtls.crypto.groups import BadPublicKey
from sansdtls.crypto.suites import NotAuthentic
from sansdtls.errors import ConfigError, UsageError
from sansdtls.iana import NamedGroup, SignatureScheme

if TYPE_CHECKING:
    from collections.abc import Callable

MIN_RSA_BITS = 2048
"""RFC 9325 §4.5: "When using RSA, servers MUST authenticate using certificates with at least a 2048-bit modulus
for the public key." Clients are held to the same."""
MAX_RSA_BITS = 8192
"""With the largest exponent below, a signature of this size takes about a millisecond to check."""
MAX_RSA_EXPONENT = 2**32
"""65537 is what is used. With an exponent as long as the modulus, checking costs what signing does."""

_PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
_PublicKey: TypeAlias = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey

_NOT_DER = "the public key is not an ordinary SubjectPublicKeyInfo in DER"


def _ecdsa(algorithm: hashes.HashAlgorithm) -> ec.ECDSA:
    try:
        return ec.ECDSA(algorithm, deterministic_signing=True)
    except UnsupportedAlgorithm:
        # OpenSSL before 3.2, as some distributions build cryptography: as safe, but not to be replayed.
        return ec.ECDSA(algorithm)


def _pss(algorithm: hashes.HashAlgorithm) -> tuple[padding.PSS, hashes.HashAlgorithm]:
    # RFC 8446 §4.2.3: "The length of the Salt MUST be equal to the length of the output of the digest
    # algorithm." MGF1 uses the same hash.
    return padding.PSS(padding.MGF1(algorithm), padding.PSS.DIGEST_LENGTH), algorithm


_ECDSA = {
    SignatureScheme.ECDSA_SECP256R1_SHA256: _ecdsa(hashes.SHA256()),
    SignatureScheme.ECDSA_SECP384R1_SHA384: _ecdsa(hashes.SHA384()),
}
_RSA: dict[SignatureScheme, tuple[padding.PSS | padding.PKCS1v15, hashes.HashAlgorithm]] = {
    SignatureScheme.RSA_PSS_RSAE_SHA256: _pss(hashes.SHA256()),
    SignatureScheme.RSA_PSS_RSAE_SHA384: _pss(hashes.SHA384()),
    SignatureScheme.RSA_PKCS1_SHA256: (padding.PKCS1v15(), hashes.SHA256()),
    SignatureScheme.RSA_PKCS1_SHA384: (padding.PKCS1v15(), hashes.SHA384()),
}

# RFC 5246 §7.4.1.4.1: in TLS 1.2 an ECDSA scheme names a hash, and any curve goes with it. The hash that fits
# the curve comes first.
_P256_SCHEMES = (SignatureScheme.ECDSA_SECP256R1_SHA256, SignatureScheme.ECDSA_SECP384R1_SHA384)
_P384_SCHEMES = (SignatureScheme.ECDSA_SECP384R1_SHA384, SignatureScheme.ECDSA_SECP256R1_SHA256)
_ED25519_SCHEMES = (SignatureScheme.ED25519,)
_RSA_SCHEMES = tuple(_RSA)


class SigningKey:
    """The private key of a certificate or of a raw public key."""

    __slots__ = ("_private", "group", "is_rsa", "schemes", "spki")

    def __init__(self, private: _PrivateKey) -> None:
        self._private = private
        try:
            public = _usable(private.public_key())
        except BadPublicKey as error:
            raise ConfigError(f"private key: {error.rule}") from None
        self.group = _group(public)
        """The curve of an ECDSA key; ``None`` for others."""
        self.is_rsa = isinstance(public, rsa.RSAPublicKey)
        """Whether it is for the ECDHE_RSA suites; all others are for ECDHE_ECDSA."""
        self.schemes = _schemes(public)
        """What this key can make, best first."""
        self.spki = _encode(public)
        """The public half as a SubjectPublicKeyInfo in DER, RFC 7250 §3."""

    @classmethod
    def wrap(cls, private: object) -> SigningKey:
        """A private key of ``cryptography``. :class:`ConfigError` unless it is of a kind for DTLS."""
        if not isinstance(private, _PrivateKey):
            raise ConfigError(f"private key: a key of a kind that is not supported: {_kind(private)}")
        return cls(private)

    @classmethod
    def from_pem(cls, data: bytes, password: bytes | None = None) -> SigningKey:
        """The first private key in ``data``. :class:`ConfigError` says why there is none."""
        if b"PRIVATE KEY-----" not in data:
            raise ConfigError("private key: there is none in PEM")
        return cls.wrap(_load_private(load_pem_private_key, data, password))

    @classmethod
    def from_der(cls, data: bytes, password: bytes | None = None) -> SigningKey:
        """A private key in DER: PKCS #8, or the older form of its kind."""
        return cls.wrap(_load_private(load_der_private_key, data, password))

    def sign(self, scheme: SignatureScheme, data: bytes) -> bytes:
        """The signature over ``data``; ``scheme`` is one of :attr:`schemes`."""
        if scheme not in self.schemes:
            raise UsageError(f"{self!r} makes no {scheme!r} signature")
        private = self._private
        if isinstance(private, ed25519.Ed25519PrivateKey):
            return private.sign(data)
        if isinstance(private, ec.EllipticCurvePrivateKey):
            return private.sign(data, _ECDSA[scheme])
        return private.sign(data, *_RSA[scheme])

    def __repr__(self) -> str:
        """Without the key; the digest is the one that pins name it by."""
        return f"SigningKey({_kind(self._private.public_key())}, spki sha256 {sha256(self.spki).hexdigest()})"


def verify_signature(spki: bytes, scheme: int, data: bytes, signature: bytes) -> None:
    """Return if the holder of the key ``spki`` signed ``data``.

    Raises :class:`NotAuthentic` where it did not, or where ``scheme`` is none that fits the key; raises
    :class:`BadPublicKey` for a key that is not to be used.
    """
    public = _load_public(spki)
    fitting = next((known for known in _schemes(public) if known == scheme), None)
    if fitting is None:
        raise NotAuthentic
    try:
        if isinstance(public, ed25519.Ed25519PublicKey):
            public.verify(signature, data)
        elif isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(signature, data, _ECDSA[fitting])
        else:
            public.verify(signature, data, *_RSA[fitting])
    except InvalidSignature:
        raise NotAuthentic from None


def schemes_of(spki: bytes) -> tuple[SignatureScheme, ...]:
    """The schemes that the key can make, best first. :class:`BadPublicKey` if it is not to be used."""
    return _schemes(_load_public(spki))


def is_rsa(spki: bytes) -> bool:
    """Whether the key is for the ECDHE_RSA suites. :class:`BadPublicKey` if it is not to be used."""
    return isinstance(_load_public(spki), rsa.RSAPublicKey)


def spki_of_certificate(certificate: bytes) -> bytes:
    """The SubjectPublicKeyInfo of an X.509 certificate in DER, exactly as it stands in there.

    :class:`BadPublicKey` for a certificate or key that cannot be read, or that is not to be used.
    """
    try:
        loaded = x509.load_der_x509_certificate(certificate)
        public = loaded.public_key()
        body = loaded.tbs_certificate_bytes
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion, Warning):
        # Under ``python -W error`` even a remark on an odd serial number would raise.
        raise BadPublicKey("the certificate or its public key cannot be read") from None
    spki = _encode(_usable(public))
    if spki not in body:
        raise BadPublicKey(_NOT_DER)
    return spki


def _load_private(
    load: Callable[[bytes, bytes | None], object], data: bytes, password: bytes | None
) -> object:
    try:
        return load(data, password or None)
    except TypeError:
        # The key is encrypted and there is no password, or the other way round.
        reason = "has no password, yet one is given" if password else "needs a password"
        raise ConfigError(f"private key: {reason}") from None
    except ValueError:
        reason = "cannot be read; the password may be wrong" if password else "cannot be read"
        raise ConfigError(f"private key: {reason}") from None
    except UnsupportedAlgorithm:
        raise ConfigError("private key: of a kind that is not supported") from None


def _load_public(spki: bytes) -> _PublicKey:
    try:
        loaded = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm):
        raise BadPublicKey("the public key cannot be read") from None
    public = _usable(loaded)
    # RFC 7250 §3: "The SubjectPublicKeyInfo value in the Certificate payload MUST contain the DER encoding".
    # The loader also takes other forms: PKCS #1, compressed points, explicit curve parameters, RSASSA-PSS.
    if _encode(public) != spki:
        raise BadPublicKey(_NOT_DER)
    return public


def _usable(public: object) -> _PublicKey:
    """The same key. Every way to a key passes here."""
    match public:
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1() | ec.SECP384R1()) | ed25519.Ed25519PublicKey():
            return public
        case rsa.RSAPublicKey():
            if not MIN_RSA_BITS <= public.key_size <= MAX_RSA_BITS:
                raise BadPublicKey(
                    f"an RSA key of {public.key_size} bits, not of {MIN_RSA_BITS} to {MAX_RSA_BITS}"
                )
            if public.public_numbers().e > MAX_RSA_EXPONENT:
                raise BadPublicKey("an RSA key with an exponent above 2**32")
            return public
        case _:
            raise BadPublicKey(f"a key of a kind that is not supported: {_kind(public)}")


def _schemes(public: _PublicKey) -> tuple[SignatureScheme, ...]:
    if isinstance(public, rsa.RSAPublicKey):
        return _RSA_SCHEMES
    if isinstance(public, ed25519.Ed25519PublicKey):
        return _ED25519_SCHEMES
    return _P256_SCHEMES if isinstance(public.curve, ec.SECP256R1) else _P384_SCHEMES


def _group(public: _PublicKey) -> NamedGroup | None:
    if not isinstance(public, ec.EllipticCurvePublicKey):
        return None
    return NamedGroup.SECP256R1 if isinstance(public.curve, ec.SECP256R1) else NamedGroup.SECP384R1


def _kind(public: object) -> str:
    """For the operator: "ECDSA secp256r1", "RSA 2048", or the name of a class that is none of ours."""
    if isinstance(public, ec.EllipticCurvePublicKey):
        return f"ECDSA {public.curve.name}"
    if isinstance(public, rsa.RSAPublicKey):
        return f"RSA {public.key_size}"
    return type(public).__name__.removesuffix("PublicKey").removesuffix("PrivateKey")


def _encode(public: _PublicKey) -> bytes:
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
