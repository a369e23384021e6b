"""One certificate chain, one policy, one moment: a verified peer, or the reason why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL.crypto import FILETYPE_ASN1, X509, X509StoreContextError, load_certificate

from sansdtls.crypto.groups import BadPublicKey
from sansdtls.crypto.signatures import spki_of_certificate
from sansdtls.errors import UsageError
from sansdtls.pki.authorities import (
    Purpose,
    extension,
    require_authority,
    require_purpose,
    require_strong_signature,
    spki_digests,
)
from sansdtls.pki.names import (
    CertificateNames,
    IdentitySource,
    ServerName,
    identity,
    require_server_name,
)
from sansdtls.pki.openssl import build_path, dated_store, rejection
from sansdtls.pki.policy import CrlPolicy, TrustPolicy, whole_second
from sansdtls.pki.rejection import (
    CertificateProblem,
    CertificateRejected,
    Place,
    reading_untrusted,
    shown_text,
)
from sansdtls.pki.revocation import RevocationLists

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

MAX_CERTIFICATES = 10
"""Certificates of a peer that are looked at: eight intermediates are the most that a policy allows, and the root
may come along. More are refused unread."""


@attrs.frozen(kw_only=True)
class VerifiedPeer:
    """The holder of a certificate that satisfies the policy. Only a :class:`Verifier` makes one."""

    identity: str
    """For a client the name that the policy's sources found; for a server the name that was wanted."""
    identity_source: IdentitySource
    subject: str
    """The whole subject, in the form of RFC 4514, shortened and escaped for logs. To act on, take ``identity``."""
    spki: bytes
    """The SubjectPublicKeyInfo in DER: the key that must have signed the handshake."""
    fingerprint: str
    """SHA-256 of the certificate, in hexadecimal."""
    not_after: datetime
    """End of the peer's certificate, inclusive."""
    valid_until: datetime
    """The earliest end on the path: up to then the same certificates satisfy the policy's dates."""


class Verifier:
    """Checks chains against one policy. Any number of threads may call it at once."""

    __slots__ = ("_anchors", "_intermediates", "_policy", "_revocation_lists")

    def __init__(self, policy: TrustPolicy) -> None:
        self._policy = policy
        self._anchors = tuple(load_certificate(FILETYPE_ASN1, der) for der in policy.anchors)
        self._intermediates = tuple(load_certificate(FILETYPE_ASN1, der) for der in policy.intermediates)
        self._revocation_lists = (
            None
            if policy.crl_policy is CrlPolicy.NONE
            else RevocationLists(self._anchors, policy.crls, required=policy.crl_policy is CrlPolicy.REQUIRED)
        )

    @property
    def policy(self) -> TrustPolicy:
        """What chains are checked against."""
        return self._policy

    def verify(self, chain: Sequence[bytes], *, at: datetime, server_name: str | None = None) -> VerifiedPeer:
        """The peer that ``chain`` (DER, the peer's own first) is the chain of, ``at`` this aware wall-clock time.

        Raises :class:`CertificateRejected`. That the peer holds the key is not known yet: its signature in
        the handshake shows that. :class:`UsageError` means a wrong call, whatever the chain.
        """
        moment = whole_second(at)
        wanted = self._wanted(server_name)
        presented = _read_untrusted(chain)
        path = self._path(presented, moment)
        certificates = self._require_rules(path, presented[0])
        if self._revocation_lists is not None:
            self._revocation_lists.require_unrevoked(path, moment)
        spki = _usable_key(presented[0])
        self._require_pin(certificates)
        return self._peer(certificates, spki, wanted)

    def _wanted(self, server_name: str | None) -> ServerName | None:
        if self._policy.purpose is Purpose.CLIENT:
            if server_name is not None:
                raise UsageError("server_name: a client has none; its identity is in the result")
            return None
        if server_name is None:
            if self._policy.require_server_name:
                raise UsageError(
                    "server_name: which server is wanted? TrustPolicy.require_server_name=False says any"
                )
            return None
        return ServerName.parse(server_name)

    def _path(self, presented: Sequence[x509.Certificate], moment: datetime) -> list[X509]:
        with reading_untrusted("a certificate of the peer"):
            own, *others = (X509.from_cryptography(certificate) for certificate in presented)
            try:
                return build_path(dated_store(self._anchors, moment), own, [*others, *self._intermediates])
            except X509StoreContextError as error:
                raise rejection(error, self._anchors) from None

    def _require_rules(self, path: Sequence[X509], own: x509.Certificate) -> list[x509.Certificate]:
        """The path once more as ``cryptography`` has it, if it keeps the rules that OpenSSL was not asked for."""
        certificates = [own, *(certificate.to_cryptography() for certificate in path[1:])]
        between = certificates[1:-1]
        if len(between) > self._policy.max_path_length:
            raise CertificateRejected(
                CertificateProblem.TOO_DEEP,
                f"{len(between)} intermediates are above {Place(0, own)}, {self._policy.max_path_length} allowed",
            )
        with reading_untrusted("a certificate of the path"):
            for position, certificate in enumerate(between, 1):
                require_authority(certificate, self._policy.purpose, Place(position, certificate))
            # What an anchor is signed with proves nothing, and nobody looks at it.
            for position, certificate in enumerate(certificates[:-1]):
                require_strong_signature(certificate, Place(position, certificate))
            require_purpose(own, self._policy.purpose, Place(0, own))
            usage = extension(own, x509.KeyUsage)
        # With every key exchange here the holder of a certificate signs (RFC 8422 §2): RFC 5246 §7.4.2 and §7.4.6
        # ask for digitalSignature then.
        if usage is not None and not usage.digital_signature:
            raise CertificateRejected(
                CertificateProblem.WRONG_KEY_USAGE,
                f"{Place(0, own)} has a key usage without digital signatures",
            )
        return certificates

    def _require_pin(self, certificates: Sequence[x509.Certificate]) -> None:
        pins = self._policy.pins
        if pins and not pins & spki_digests(certificates):
            raise CertificateRejected(
                CertificateProblem.NOT_PINNED,
                f"no key on the path of {Place(0, certificates[0])} is pinned",
            )

    def _peer(
        self, certificates: Sequence[x509.Certificate], spki: bytes, wanted: ServerName | None
    ) -> VerifiedPeer:
        own = certificates[0]
        names = CertificateNames.read_untrusted(own)
        if wanted is None:
            name, source = identity(names, self._policy.identity_sources)
        else:
            require_server_name(names, wanted, allow_wildcards=self._policy.allow_wildcards)
            name = wanted.text
            source = IdentitySource.DNS if wanted.address is None else IdentitySource.ADDRESS
        return VerifiedPeer(
            identity=name,
            identity_source=source,
            subject=shown_text(names.subject),
            spki=spki,
            fingerprint=own.fingerprint(hashes.SHA256()).hex(),
            not_after=own.not_valid_after_utc,
            valid_until=min(certificate.not_valid_after_utc for certificate in certificates),
        )


def _read_untrusted(chain: Sequence[bytes]) -> list[x509.Certificate]:
    if not chain:
        raise CertificateRejected(CertificateProblem.NO_CERTIFICATE, "the peer sent no certificate")
    if len(chain) > MAX_CERTIFICATES:
        raise CertificateRejected(
            CertificateProblem.TOO_DEEP,
            f"the peer sent {len(chain)} certificates, {MAX_CERTIFICATES} are read",
        )
    certificates = []
    for number, der in enumerate(chain, 1):
        # This parser refuses what follows a certificate; OpenSSL would not look at it. Both then see the same.
        with reading_untrusted(f"certificate {number} of {len(chain)} sent"):
            certificate = x509.load_der_x509_certificate(der)
            # Parsed only when asked for; now, so that every later message may name it.
            _ = certificate.subject, certificate.issuer
            certificates.append(certificate)
    return certificates


def _usable_key(certificate: x509.Certificate) -> bytes:
    try:
        return spki_of_certificate(certificate.public_bytes(Encoding.DER))
    except BadPublicKey as error:
        raise CertificateRejected(
            CertificateProblem.UNUSABLE_KEY, f"{Place(0, certificate)}: {error.rule}"
        ) from None
