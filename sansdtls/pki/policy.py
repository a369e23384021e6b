"""Whom to trust: read and checked once, when it is made, so that what is wrong is said at the start."""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from sansdtls.errors import ConfigError, UsageError
from sansdtls.pki.authorities import Purpose, require_authority, require_strong_signature
from sansdtls.pki.names import IdentitySource
from sansdtls.pki.rejection import CertificateRejected, shown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime

_PEM_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_PEM_BEGIN = re.compile(rb"-----BEGIN ")
_CERTIFICATE = "CERTIFICATE"
_CRL = "X509 CRL"

MAX_PATH_LENGTH = 8
"""Intermediates that a policy may allow; device PKIs have one or two."""
DIGEST_LENGTH = 32
"""Bytes of SHA-256."""


@enum.unique
class CrlPolicy(enum.Enum):
    """What certificate revocation lists are for."""

    NONE = "none"
    """Revocation is not looked at."""
    IF_PRESENT = "if_present"
    """A CA whose list is given must have a current one, and what is on it is refused; a CA without a list
    revokes nothing."""
    REQUIRED = "required"
    """Every certificate below the trust anchor must be covered by a current list."""


class _Readable(NamedTuple):
    """A certificate or list with the words that tell the operator which one it is."""

    what: str
    value: Any


def certificates_from_pem(data: bytes, what: str) -> tuple[bytes, ...]:
    """The certificates in PEM, as DER, in their order; ``what`` names them in a :class:`ConfigError`."""
    return tuple(
        _loaded(x509.load_pem_x509_certificate, block, where).public_bytes(Encoding.DER)
        for block, where in _blocks(data, _CERTIFICATE, what)
    )


def crls_from_pem(data: bytes, what: str) -> tuple[bytes, ...]:
    """The same for certificate revocation lists."""
    return tuple(
        _loaded(x509.load_pem_x509_crl, block, where).public_bytes(Encoding.DER)
        for block, where in _blocks(data, _CRL, what)
    )


def _blocks(data: bytes, label: str, what: str) -> Iterator[tuple[bytes, str]]:
    found = list(_PEM_BLOCK.finditer(data))
    if not found:
        raise ConfigError(f"{what}: there is no -----BEGIN {label}----- in it that also ends")
    if len(found) != len(_PEM_BEGIN.findall(data)):
        raise ConfigError(f"{what}: a -----BEGIN has no -----END of its own")
    for number, block in enumerate(found, 1):
        where = f"{what}: number {number}"
        given = block[1].decode("ascii")
        if given != label:
            raise ConfigError(f"{where} is a {given}, not a {label}")
        yield block[0], where


def _loaded(load: Callable[[bytes], Any], data: bytes, where: str) -> Any:
    try:
        return load(data)
    except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{where} cannot be read: {error}") from error


def _der(value: Iterable[bytes] | bytes | bytearray | str) -> tuple[bytes, ...]:
    if isinstance(value, bytes | bytearray | str):  # each is iterable too
        raise ConfigError("TrustPolicy: a sequence of DER encodings is needed, not one (for PEM: from_pem)")
    return tuple(value)


def _in_order(value: Iterable[IdentitySource]) -> tuple[IdentitySource, ...]:
    return tuple(value)


def _set_of(value: Iterable[bytes]) -> frozenset[bytes]:
    return frozenset(value)


def _counted(value: tuple[bytes, ...] | frozenset[bytes]) -> str:
    return f"<{len(value)}>"


def _member_of(kind: type) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, kind):
            raise ConfigError(f"{type(instance).__name__}.{attribute.name}: {value!r} is no {kind.__name__}")

    return check


@attrs.frozen(kw_only=True)
class TrustPolicy:
    """Whom to trust, and for what. Making one raises :class:`ConfigError` for whatever could never work."""

    purpose: Purpose = attrs.field(validator=_member_of(Purpose))
    """What the peer is: its certificate must be good for that."""
    anchors: tuple[bytes, ...] = attrs.field(converter=_der, repr=_counted)
    """CA certificates in DER. Each is trusted for its own sake, self-signed or not: a fleet's own CA is enough,
    without the root above it, and then nothing else below that root is trusted."""
    intermediates: tuple[bytes, ...] = attrs.field(default=(), converter=_der, repr=_counted)
    """CA certificates in DER that peers may leave out. They help to build a path and are not trusted."""
    crls: tuple[bytes, ...] = attrs.field(default=(), converter=_der, repr=_counted)
    """Certificate revocation lists in DER."""
    crl_policy: CrlPolicy = attrs.field(default=CrlPolicy.NONE, validator=_member_of(CrlPolicy))
    """What the lists are for."""
    max_path_length: int = attrs.field(default=3)
    """Certificates allowed between the peer's and the trust anchor's, 0 to 8. A CA may allow fewer."""
    identity_sources: tuple[IdentitySource, ...] = attrs.field(
        default=(
            IdentitySource.EUI64,
            IdentitySource.DNS,
            IdentitySource.URI,
            IdentitySource.SERIAL_NUMBER,
            IdentitySource.COMMON_NAME,
        ),
        converter=_in_order,
    )
    """Where the peer's identity may stand, first come first served. The default is for a CA that vouches for all
    it signs; name fewer for a CA that lets its customers choose parts of a name."""
    pins: frozenset[bytes] = attrs.field(default=frozenset(), converter=_set_of, repr=_counted)
    """SHA-256 digests of SubjectPublicKeyInfos. If there are any, one key of the path, the peer's or a CA's,
    must be among them. A pin adds to path validation and replaces none of it."""
    allow_wildcards: bool = attrs.field(default=False, validator=_member_of(bool))
    """Whether ``*.example.com`` in a server's certificate stands for one label. RFC 7925 §4.4 wants none."""
    require_server_name: bool = attrs.field(default=True, validator=_member_of(bool))
    """Whether a client has to say which server it wants. ``False`` trusts every server that the anchors
    vouch for, whatever its name: for a CA that signs servers only, and yours only."""

    @max_path_length.validator
    def _in_range(self, attribute: attrs.Attribute[int], value: object) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_PATH_LENGTH:
            raise ConfigError(
                f"TrustPolicy.max_path_length: {value!r} is not within 0 to {MAX_PATH_LENGTH} intermediates"
            )

    @identity_sources.validator
    def _sources(self, attribute: attrs.Attribute[Any], value: tuple[object, ...]) -> None:
        if not value or not all(isinstance(source, IdentitySource) for source in value):
            raise ConfigError("TrustPolicy.identity_sources: one or more IdentitySource members are needed")

    @pins.validator
    def _digests(self, attribute: attrs.Attribute[Any], value: frozenset[object]) -> None:
        for pin in value:
            if not isinstance(pin, bytes) or len(pin) != DIGEST_LENGTH:
                raise ConfigError(f"TrustPolicy.pins: {pin!r} is no SHA-256 digest of {DIGEST_LENGTH} bytes")

    def __attrs_post_init__(self) -> None:
        if not self.anchors:
            raise ConfigError("TrustPolicy.anchors: at least one certificate is needed")
        for what, certificate in (*self._readable("anchors"), *self._readable("intermediates")):
            try:
                require_authority(certificate, self.purpose, what)
            except CertificateRejected as rejected:
                raise ConfigError(rejected.detail) from None
            except (ValueError, UnsupportedAlgorithm) as error:
                raise ConfigError(f"{what} cannot be read: {error}") from error
        for what, certificate in self._readable("intermediates"):
            _strongly_signed(certificate, what)
        if self.crls and self.crl_policy is CrlPolicy.NONE:
            raise ConfigError("TrustPolicy.crls: there are some, but crl_policy says that none is looked at")
        if not self.crls and self.crl_policy is CrlPolicy.REQUIRED:
            raise ConfigError("TrustPolicy.crls: crl_policy requires lists, and none is given")
        self._check_crls()

    @classmethod
    def from_pem(
        cls, *, anchors: bytes, intermediates: bytes = b"", crls: bytes = b"", **fields: Any
    ) -> TrustPolicy:
        """The same from PEM, as files hold it; ``fields`` are the others.

        Nothing at all, or white space only, in ``intermediates`` or ``crls`` means none.
        """
        return cls(
            anchors=certificates_from_pem(anchors, "anchors"),
            intermediates=(
                certificates_from_pem(intermediates, "intermediates") if intermediates.strip() else ()
            ),
            crls=crls_from_pem(crls, "crls") if crls.strip() else (),
            **fields,
        )

    def out_of_date(self, at: datetime) -> tuple[str, ...]:
        """A sentence for each anchor, intermediate and list that is not valid at this (aware) time.

        None of this is an error of the policy: a new CA may be put in before its time, and an old one
        stay. A check of the configuration shows them.
        """
        moment = whole_second(at)
        certificates = [*self._readable("anchors"), *self._readable("intermediates")]
        spans = [
            (what, value.not_valid_before_utc, value.not_valid_after_utc) for what, value in certificates
        ]
        spans += [
            (what, value.last_update_utc, value.next_update_utc) for what, value in self._readable("crls")
        ]
        return tuple(
            f"{what} begins {start:%Y-%m-%d %H:%M:%S}Z"
            if moment < start
            else f"{what} ended {end:%Y-%m-%d %H:%M:%S}Z"
            for what, start, end in spans
            if not start <= moment <= end
        )

    def _readable(self, field: str) -> Iterator[_Readable]:
        load = x509.load_der_x509_crl if field == "crls" else x509.load_der_x509_certificate
        for number, der in enumerate(getattr(self, field), 1):
            where = f"{field}: number {number}"
            value = _loaded(load, der, where)
            name = value.issuer if field == "crls" else value.subject
            yield _Readable(f"{where} ({shown_name(name)})", value)

    def _check_crls(self) -> None:
        authorities = [
            certificate for field in ("anchors", "intermediates") for _, certificate in self._readable(field)
        ]
        for what, crl in self._readable("crls"):
            _strongly_signed(crl, what)
            if crl.next_update_utc is None:
                raise ConfigError(f"{what} does not say when the next one comes (RFC 5280 §5.1.2.5)")
            for entry in crl.extensions:
                _require_supported(entry, what)
            issuers = [certificate for certificate in authorities if certificate.subject == crl.issuer]
            if issuers and not any(crl.is_signature_valid(issuer.public_key()) for issuer in issuers):
                raise ConfigError(f"{what} is not signed with the key that the CA of that name has here")


def whole_second(at: datetime) -> datetime:
    """``at`` as certificates count: the second it falls into. :class:`UsageError` without a time zone."""
    if at.tzinfo is None or at.utcoffset() is None:
        raise UsageError("at: a datetime with a time zone is needed")
    return at.replace(microsecond=0)


def _strongly_signed(signed: x509.Certificate | x509.CertificateRevocationList, what: str) -> None:
    try:
        require_strong_signature(signed, what)
    except CertificateRejected as rejected:
        raise ConfigError(rejected.detail) from None


def _require_supported(entry: x509.Extension[x509.ExtensionType], what: str) -> None:
    """OpenSSL would pass over such lists in silence or stop at them, as the case may be."""
    value = entry.value
    if isinstance(value, x509.DeltaCRLIndicator):
        raise ConfigError(f"{what} is a delta CRL; complete ones are needed")
    if isinstance(value, x509.IssuingDistributionPoint):
        if value.indirect_crl or value.only_some_reasons or value.only_contains_attribute_certs:
            raise ConfigError(f"{what} is indirect, for some reasons only, or for attribute certificates")
    elif entry.critical and isinstance(value, x509.UnrecognizedExtension):
        raise ConfigError(f"{what} has an unknown critical extension, {value.oid.dotted_string}")
