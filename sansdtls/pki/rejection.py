"""Why a certificate is refused: what the peer is told, what is counted, what the operator reads."""

from __future__ import annotations

import contextlib
import enum
from typing import TYPE_CHECKING

import attrs

from sansdtls.iana import AlertDescription

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryptography import x509

MAX_SHOWN = 200
"""Characters of a name from a certificate in a message for the operator. RFC 5280's own bounds are below it."""


@enum.unique
class CertificateProblem(enum.Enum):
    """Why a certificate is refused; the values name counters."""

    NO_CERTIFICATE = "no_certificate"
    MALFORMED = "malformed"
    SELF_SIGNED = "self_signed"
    """The peer's certificate is signed with its own key, and is no trust anchor."""
    UNTRUSTED = "untrusted"
    """The chain is complete up to a self-signed certificate, and that is no trust anchor."""
    UNKNOWN_ISSUER = "unknown_issuer"
    """The chain ends below a certificate that was not sent and is no trust anchor. Either an intermediate
    is missing, or the CA is not trusted: from what the peer sent nobody can tell which."""
    BAD_SIGNATURE = "bad_signature"
    NOT_A_CA = "not_a_ca"
    """A certificate that is none of a CA has signed another."""
    TOO_DEEP = "too_deep"
    """More certificates than are looked at, more intermediates than the policy or a CA allows."""
    NAME_NOT_PERMITTED = "name_not_permitted"
    """A CA issued a name outside its name constraints."""
    UNSUPPORTED_EXTENSION = "unsupported_extension"
    """A critical extension that nobody here understands."""
    WEAK_SIGNATURE = "weak_signature"
    UNUSABLE_KEY = "unusable_key"
    """A key too weak, too large, or of a kind that is not supported."""
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    REVOKED = "revoked"
    CRL_MISSING = "crl_missing"
    CRL_NOT_CURRENT = "crl_not_current"
    CRL_UNUSABLE = "crl_unusable"
    WRONG_PURPOSE = "wrong_purpose"
    WRONG_KEY_USAGE = "wrong_key_usage"
    NOT_PINNED = "not_pinned"
    WRONG_NAME = "wrong_name"
    NO_IDENTITY = "no_identity"
    OTHER = "other"
    """A rule of path validation that no other value names; the detail does."""


ALERTS = {
    # RFC 5246 §7.4.6: a client without a certificate may be answered with handshake_failure.
    CertificateProblem.NO_CERTIFICATE: AlertDescription.HANDSHAKE_FAILURE,
    # RFC 5246 §7.2.2, bad_certificate: "A certificate was corrupt, contained signatures that did not verify
    # correctly, etc."
    CertificateProblem.MALFORMED: AlertDescription.BAD_CERTIFICATE,
    CertificateProblem.BAD_SIGNATURE: AlertDescription.BAD_CERTIFICATE,
    CertificateProblem.NAME_NOT_PERMITTED: AlertDescription.BAD_CERTIFICATE,
    CertificateProblem.WRONG_NAME: AlertDescription.BAD_CERTIFICATE,
    # RFC 8446 §4.4.2.4 chooses bad_certificate for signatures with MD5 and SHA-1.
    CertificateProblem.WEAK_SIGNATURE: AlertDescription.BAD_CERTIFICATE,
    # unsupported_certificate: "A certificate was of an unsupported type."
    CertificateProblem.UNUSABLE_KEY: AlertDescription.UNSUPPORTED_CERTIFICATE,
    CertificateProblem.UNSUPPORTED_EXTENSION: AlertDescription.UNSUPPORTED_CERTIFICATE,
    CertificateProblem.WRONG_PURPOSE: AlertDescription.UNSUPPORTED_CERTIFICATE,
    CertificateProblem.WRONG_KEY_USAGE: AlertDescription.UNSUPPORTED_CERTIFICATE,
    # certificate_revoked: "A certificate was revoked by its signer."
    CertificateProblem.REVOKED: AlertDescription.CERTIFICATE_REVOKED,
    # certificate_expired: "A certificate has expired or is not currently valid."
    CertificateProblem.EXPIRED: AlertDescription.CERTIFICATE_EXPIRED,
    CertificateProblem.NOT_YET_VALID: AlertDescription.CERTIFICATE_EXPIRED,
    # unknown_ca: "[...] the certificate was not accepted because the CA certificate could not be located or
    # couldn't be matched with a known, trusted CA."
    CertificateProblem.SELF_SIGNED: AlertDescription.UNKNOWN_CA,
    CertificateProblem.UNTRUSTED: AlertDescription.UNKNOWN_CA,
    CertificateProblem.UNKNOWN_ISSUER: AlertDescription.UNKNOWN_CA,
    CertificateProblem.NOT_A_CA: AlertDescription.UNKNOWN_CA,
    CertificateProblem.TOO_DEEP: AlertDescription.UNKNOWN_CA,
    # certificate_unknown: "Some other (unspecified) issue arose in processing the certificate, rendering it
    # unacceptable." Whatever is this side's own state or choice is the peer's business no further.
    CertificateProblem.CRL_MISSING: AlertDescription.CERTIFICATE_UNKNOWN,
    CertificateProblem.CRL_NOT_CURRENT: AlertDescription.CERTIFICATE_UNKNOWN,
    CertificateProblem.CRL_UNUSABLE: AlertDescription.CERTIFICATE_UNKNOWN,
    CertificateProblem.NOT_PINNED: AlertDescription.CERTIFICATE_UNKNOWN,
    CertificateProblem.NO_IDENTITY: AlertDescription.CERTIFICATE_UNKNOWN,
    CertificateProblem.OTHER: AlertDescription.CERTIFICATE_UNKNOWN,
}


class CertificateRejected(Exception):
    """A certificate does not satisfy the policy.

    The peer is told ``description`` only. ``problem`` is for counters. ``detail`` is a sentence for the
    operator; what it quotes of the certificate is printable, and bounded.
    """

    def __init__(self, problem: CertificateProblem, detail: str):
        super().__init__(problem, detail)
        self.problem = problem
        self.detail = detail
        self.description = ALERTS[problem]

    def __str__(self) -> str:
        return f"{self.problem.value}: {self.detail}"


@contextlib.contextmanager
def reading_untrusted(what: str) -> Iterator[None]:
    """Around what parses bytes of the peer: whatever the parsers raise becomes ``MALFORMED``."""
    try:
        yield
    except CertificateRejected:
        raise
    except Exception as error:
        # The parsers promise no list of what they raise, and a stranger's bytes may find any of it.
        raise CertificateRejected(
            CertificateProblem.MALFORMED, f"{what} cannot be read: {shown_text(str(error))}"
        ) from error


def shown_text(text: str) -> str:
    """``text`` fit for a log: printable characters only, and not too many."""
    if len(text) <= MAX_SHOWN and text.isprintable():
        return text
    escaped = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text[: MAX_SHOWN + 1]
    )
    return escaped if len(escaped) <= MAX_SHOWN else escaped[:MAX_SHOWN] + "…"


def shown_name(name: x509.Name) -> str:
    """A distinguished name fit for a log, in the form of RFC 4514."""
    return shown_text(name.rfc4514_string()) or "(no name)"


@attrs.frozen
class Place:
    """Which certificate of a path, for the operator; put into words only when something is wrong."""

    position: int
    certificate: x509.Certificate

    def __str__(self) -> str:
        subject = shown_name(self.certificate.subject)
        if self.position == 0:
            return f"the peer's certificate ({subject})"
        return f"certificate {self.position} above it ({subject})"
