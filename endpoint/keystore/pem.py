"""PEM files: certificates, certificate revocation lists, keys; and what an operator wants to know of them.

The endpoint's own files are read here, so that each mistake is told with a remedy. What *peers* send is judged by
``sansdtls.pki``, never here.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
from typing import TYPE_CHECKING

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from endpoint.text import show_text

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

CERTIFICATE = "CERTIFICATE"
CRL = "X509 CRL"
PUBLIC_KEY = "PUBLIC KEY"
PRIVATE_KEYS = frozenset({"PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY"})
_ACCOMPANYING = frozenset({"EC PARAMETERS"})
"""What ``openssl ecparam`` puts before a key; the key says it again."""

_BLOCK = re.compile(rb"-----BEGIN ([^\r\n]*?)-----[ \t]*\r?\n(.*?)-----END ([^\r\n]*?)-----", re.DOTALL)

_REMEDIES = {
    "TRUSTED CERTIFICATE": "openssl x509 -in FILE -out NEW writes it as an ordinary one",
    "CERTIFICATE REQUEST": "this is what a CA is sent; put the certificate that it answered with here",
    "NEW CERTIFICATE REQUEST": "this is what a CA is sent; put the certificate that it answered with here",
    "PKCS7": "openssl pkcs7 -print_certs -in FILE -out NEW writes its certificates one by one",
}


class PemError(ValueError):
    """What is wrong with a file's content, and the remedy; without the name of the file."""


@attrs.frozen
class Block:
    """One PEM block."""

    kind: str
    der: bytes = attrs.field(repr=False)


def blocks_of(content: bytes, wanted: str, *, beside: Iterable[str] = ()) -> list[bytes]:
    """The DER of each block of kind ``wanted``. Kinds in ``beside`` are passed over, others refused."""
    tolerated = _ACCOMPANYING | set(beside)
    found = []
    for block in read_blocks(content):
        if block.kind == wanted:
            found.append(block.der)
        elif block.kind not in tolerated:
            raise PemError(_unexpected(block.kind, wanted))
    if not found:
        raise PemError(f"holds no {_spoken(wanted)}; it should have -----BEGIN {wanted}-----")
    return found


def read_blocks(content: bytes) -> list[Block]:
    """All blocks, in order. Text between them is passed over, as all programs do."""
    found, end = [], 0
    for match in _BLOCK.finditer(content):
        kind = match.group(1).decode("latin-1")
        line = content.count(b"\n", 0, match.start()) + 1
        if match.group(3) != match.group(1):
            raise PemError(f"line {line}: -----BEGIN {show_text(kind)}----- has no END of its own")
        found.append(Block(kind, _decoded(match.group(2), kind, line)))
        end = match.end()
    rest = content.find(b"-----BEGIN ", end)
    if rest >= 0:
        line = content.count(b"\n", 0, rest) + 1
        raise PemError(f"line {line}: a block that begins here has no end; the file may be cut off")
    return found


def _decoded(body: bytes, kind: str, line: int) -> bytes:
    if b":" in body:
        # RFC 1421 headers: "Proc-Type: 4,ENCRYPTED", "DEK-Info: …".
        if kind in PRIVATE_KEYS:
            return b""  # whoever wants the key finds out, and says it better
        raise PemError(f"line {line}: this block has headers, which are not read here")
    try:
        return base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error:
        raise PemError(f"line {line}: what follows is not base64; the file may be damaged") from None


def _spoken(kind: str) -> str:
    return {CERTIFICATE: "certificate", CRL: "certificate revocation list", PUBLIC_KEY: "public key"}.get(
        kind, show_text(kind[:40])
    )


def _unexpected(kind: str, wanted: str) -> str:
    remedy = _REMEDIES.get(kind)
    if kind in PRIVATE_KEYS:
        what = "holds a private key"
        remedy = "keep it in a file of its own"
        if wanted == PUBLIC_KEY:
            remedy = "take the public half of it: openssl pkey -in FILE -pubout"
    else:
        what = f"holds -----BEGIN {show_text(kind[:40])}-----, not a {_spoken(wanted)}"
    return f"{what}; remedy: {remedy}" if remedy else what


# --- certificates -------------------------------------------------------------------------------------


@attrs.frozen
class Validity:
    """What has a time in which it is valid: a certificate or a CRL."""

    der: bytes = attrs.field(repr=False)
    name: str
    """Whose it is, printable."""
    begins: datetime
    ends: datetime | None
    crl: bool = False

    def lapse(self, now: datetime) -> str | None:
        """What is wrong with it at ``now``, if anything."""
        what = "the CRL" if self.crl else "the certificate"
        if now < self.begins:
            return f"{what} of {self.name} is not yet valid (from {_day(self.begins)}); remedy: look at the clock"
        if self.ends is not None and now > self.ends:
            remedy = "fetch the current one" if self.crl else "renew it"
            return f"{what} of {self.name} expired at {_day(self.ends)}; remedy: {remedy}"
        return None


def _day(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_certificate(der: bytes) -> x509.Certificate:
    """A certificate of our own files; :class:`PemError` if it is none."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        certificate.extensions  # noqa: B018 - parsed only when asked for, and here the operator can be told
    except Exception as error:  # noqa: BLE001 - the parser promises no list of what it raises
        raise PemError(f"holds a certificate that cannot be read: {_first_line(error)}") from None
    return certificate


def certificate_validity(certificate: x509.Certificate) -> Validity:
    """When ``certificate`` is valid, and whose it is."""
    return Validity(
        certificate.public_bytes(Encoding.DER),
        name_text(certificate.subject),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )


def name_text(name: x509.Name) -> str:
    """A distinguished name, printable and in quotes."""
    return f'"{show_text(name.rfc4514_string())[:200]}"'


def crl_validity(der: bytes) -> Validity:
    """When the CRL is current, and whose it is; :class:`PemError` if it is none."""
    try:
        crl = x509.load_der_x509_crl(der)
        return Validity(der, name_text(crl.issuer), crl.last_update_utc, crl.next_update_utc, crl=True)
    except Exception as error:  # noqa: BLE001 - as above
        raise PemError(
            f"holds a certificate revocation list that cannot be read: {_first_line(error)}"
        ) from None


def issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Whether ``issuer`` has signed ``certificate``."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # noqa: BLE001 - a wrong name, a wrong signature, a key of another kind: all mean no
        return False
    return True


def refused_by_clients(certificate: x509.Certificate) -> list[str]:
    """Why careful clients would not take ``certificate`` for that of a server; nothing of it is a mistake."""
    extensions = certificate.extensions
    found = []
    with contextlib.suppress(x509.ExtensionNotFound):
        if (
            ExtendedKeyUsageOID.SERVER_AUTH
            not in extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        ):
            found.append("its extended key usage lacks serverAuth, so clients refuse it")
    with contextlib.suppress(x509.ExtensionNotFound):
        if not extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
            found.append("its key usage lacks digitalSignature, so clients refuse it")
    try:
        extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        found.append("it has no subjectAltName, so clients that look for a name refuse it")
    return found


def _first_line(error: Exception) -> str:
    return show_text((str(error) or type(error).__name__).partition("\n")[0])[:200]


# --- public keys --------------------------------------------------------------------------------------

_CURVES = ("secp256r1", "secp384r1")


def public_key(der: bytes) -> bytes:
    """A SubjectPublicKeyInfo in its one DER form, as peers send it; :class:`PemError` for what DTLS cannot use."""
    try:
        key = load_der_public_key(der)
    except Exception as error:  # noqa: BLE001 - as above
        raise PemError(f"is no public key: {_first_line(error)}") from None
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in _CURVES:
            raise PemError(f"is on the curve {key.curve.name}; P-256 and P-384 are supported")
    elif isinstance(key, rsa.RSAPublicKey):
        if key.key_size < 2048:
            raise PemError(f"is an RSA key of {key.key_size} bits; at least 2048 are needed")
    elif not isinstance(key, ed25519.Ed25519PublicKey):
        raise PemError(f"is of a kind that is not supported ({type(key).__name__})")
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
