"""What a certificate calls its holder, and whether that is the server that was meant.

Two questions, never mixed. A client asks "is this the server I wanted?": the reference is the caller's, and
only the subjectAltName answers (RFC 9525 §2: the subject names no service). A
server asks "which device is this?": there is nothing to compare with, so the policy says which names count,
and in what order; the subject is among them, because device certificates by IEEE 802.1AR have nothing else.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from typing import TYPE_CHECKING

import attrs
from cryptography import x509
from cryptography.x509.oid import NameOID

from sansdtls.errors import UsageError
from sansdtls.pki.rejection import CertificateProblem, CertificateRejected, reading_untrusted, shown_text

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_IDENTITY_LENGTH = 255
"""Characters. The longest DNS name has 253; a longer value is no name to count or to look up."""
MAX_NAMES_SHOWN = 8
"""Names of a certificate in a message for the operator."""

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_EUI64 = re.compile(
    r"[0-9A-F]{2}(-[0-9A-F]{2}){7}|[0-9A-F]{2}(:[0-9A-F]{2}){7}|URN:DEV:MAC:[0-9A-F]{16}", re.ASCII
)


@enum.unique
class IdentitySource(enum.Enum):
    """Where in a certificate an identity stands."""

    EUI64 = "eui64"
    """An EUI-64 (RFC 7925 §4.4.2), written as eight pairs with ``-`` or ``:``, or as ``urn:dev:mac:``
    (RFC 9039): in the subjectAltName (DNS or URI), else in the subject's serialNumber or common name. The
    identity is ``HH-HH-HH-HH-HH-HH-HH-HH`` in capitals, however it was written."""
    DNS = "dns"
    """The first DNS name of the subjectAltName, in lower case."""
    URI = "uri"
    """The first URI of the subjectAltName."""
    ADDRESS = "address"
    """The first IP address of the subjectAltName."""
    SERIAL_NUMBER = "serial_number"
    """The subject's serialNumber attribute, where IEEE 802.1AR puts the device's. It is not the number of
    the certificate."""
    COMMON_NAME = "common_name"
    """The subject's common name."""
    SUBJECT = "subject"
    """The whole subject, in the form of RFC 4514."""


@attrs.frozen
class CertificateNames:
    """The names in one certificate, as they stand there."""

    dns: tuple[str, ...]
    uris: tuple[str, ...]
    addresses: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]
    serial_numbers: tuple[str, ...]
    common_names: tuple[str, ...]
    subject: str

    @classmethod
    def read_untrusted(cls, certificate: x509.Certificate) -> CertificateNames:
        """Raises :class:`CertificateRejected` for names that cannot be read."""
        with reading_untrusted("the names in the peer's certificate"):
            subject = certificate.subject
            try:
                alternative: Iterable[x509.GeneralName] = certificate.extensions.get_extension_for_class(
                    x509.SubjectAlternativeName
                ).value
            except x509.ExtensionNotFound:
                alternative = ()
            names = tuple(alternative)
            return cls(
                dns=tuple(name.value.lower() for name in names if isinstance(name, x509.DNSName)),
                uris=tuple(name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)),
                addresses=tuple(
                    name.value
                    for name in names
                    if isinstance(name, x509.IPAddress)
                    and isinstance(name.value, ipaddress.IPv4Address | ipaddress.IPv6Address)
                ),
                serial_numbers=_texts(subject, NameOID.SERIAL_NUMBER),
                common_names=_texts(subject, NameOID.COMMON_NAME),
                subject=subject.rfc4514_string(),
            )


def _texts(subject: x509.Name, kind: x509.ObjectIdentifier) -> tuple[str, ...]:
    values = (attribute.value for attribute in subject.get_attributes_for_oid(kind))
    return tuple(value for value in values if isinstance(value, str))


# --- which device is this? ----------------------------------------------------------------------------


def identity(names: CertificateNames, sources: Iterable[IdentitySource]) -> tuple[str, IdentitySource]:
    """The identity, from the first of ``sources`` that has one."""
    sources = tuple(sources)
    for source in sources:
        value = _value(names, source)
        # A name that a log or a terminal would not show as it is, is no name to act on.
        if value and len(value) <= MAX_IDENTITY_LENGTH and value.isprintable():
            return value, source
    raise CertificateRejected(
        CertificateProblem.NO_IDENTITY,
        f"the certificate of {shown_text(names.subject) or '(no name)'} has none of: "
        + ", ".join(source.value for source in sources),
    )


def _value(names: CertificateNames, source: IdentitySource) -> str | None:
    match source:
        case IdentitySource.EUI64:
            written = (*names.dns, *names.uris, *names.serial_numbers, *names.common_names)
            return next(filter(None, map(_eui64, written)), None)
        case IdentitySource.DNS:
            return next(iter(names.dns), None)
        case IdentitySource.URI:
            return next(iter(names.uris), None)
        case IdentitySource.ADDRESS:
            return next(map(str, names.addresses), None)
        case IdentitySource.SERIAL_NUMBER:
            return _only(names.serial_numbers)
        case IdentitySource.COMMON_NAME:
            return _only(names.common_names)
        case IdentitySource.SUBJECT:
            return names.subject


def _only(values: tuple[str, ...]) -> str | None:
    # Of two common names one reader takes the first and another the last.
    return values[0] if len(values) == 1 else None


def _eui64(text: str) -> str | None:
    if not _EUI64.fullmatch(text.upper()):
        return None
    digits = re.sub(r"[-:]", "", text.upper().removeprefix("URN:DEV:MAC:"))
    return "-".join(digits[start : start + 2] for start in range(0, 16, 2))


# --- is this the server I wanted? ---------------------------------------------------------------------


@attrs.frozen
class ServerName:
    """The name that a client wants to reach: a DNS name or an IP address."""

    text: str
    address: ipaddress.IPv4Address | ipaddress.IPv6Address | None

    @classmethod
    def parse(cls, text: str) -> ServerName:
        """Raises :class:`UsageError` for what is neither a DNS name nor an address."""
        try:
            address = ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
        except ValueError:
            pass
        else:
            return cls(str(address), address)
        name = text.lower().removesuffix(".")
        if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
            raise UsageError(
                f"server_name: {text!r} is neither an IP address nor a DNS name (an international one is"
                " given in its ASCII form, xn--)"
            )
        return cls(name, None)


def require_server_name(names: CertificateNames, wanted: ServerName, *, allow_wildcards: bool) -> None:
    """Return if the certificate is for ``wanted``, RFC 9525 §6."""
    if wanted.address is not None:
        # RFC 9525 §6.4: addresses are compared octet by octet, and no DNS name stands for one.
        if wanted.address in names.addresses:
            return
    elif any(_matches(presented, wanted.text, allow_wildcards=allow_wildcards) for presented in names.dns):
        return
    listed = [*names.dns, *map(str, names.addresses)]
    shown = ", ".join(map(shown_text, listed[:MAX_NAMES_SHOWN])) or "no DNS name and no address"
    more = f" and {len(listed) - MAX_NAMES_SHOWN} more" if len(listed) > MAX_NAMES_SHOWN else ""
    raise CertificateRejected(
        CertificateProblem.WRONG_NAME,
        f"{wanted.text} was wanted; the subjectAltName has {shown}{more}",
    )


def _matches(presented: str, wanted: str, *, allow_wildcards: bool) -> bool:
    presented = presented.removesuffix(".")
    if presented == wanted:
        return True
    # RFC 9525 §6.3: the wildcard is the whole left-most label and stands for exactly one label. Nothing
    # stands for all of a top-level domain.
    _, _, parent = wanted.partition(".")
    return allow_wildcards and "." in parent and presented == f"*.{parent}"
