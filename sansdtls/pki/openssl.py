"""pyOpenSSL's ``X509Store``: how it is used here, and what its errors mean.

Three things about it shape this package.

*Its time can be set once.* A second ``set_time`` on the same store is ignored without a word: OpenSSL keeps the
first one. And ``set_time`` drops the time zone of what it is given. So a store with a time is made for each call
(10 µs, against 90 µs for each signature), from certificates that were parsed once; no store is ever
changed after its first use; and every time is in UTC before it gets there.

*A store may be shared, if nobody changes it.* OpenSSL locks what a lookup touches. The stores with revocation
lists live long and are used by all threads: to make one with ten thousand entries takes about 10 ms.

*It says only the first thing that is wrong*, as a number of ``x509_vfy.h``.
"""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING

from OpenSSL.crypto import X509, X509Store, X509StoreContext, X509StoreContextError, X509StoreFlags

from sansdtls.pki.rejection import CertificateProblem, CertificateRejected, Place, shown_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from cryptography import x509

NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME, which pyOpenSSL has no name for."""

NO_CRL = frozenset({3, 44})
"""X509_V_ERR_UNABLE_TO_GET_CRL, X509_V_ERR_DIFFERENT_CRL_SCOPE: no list covers the certificate."""

PROBLEMS = {
    2: CertificateProblem.UNKNOWN_ISSUER,  # UNABLE_TO_GET_ISSUER_CERT
    4: CertificateProblem.BAD_SIGNATURE,  # UNABLE_TO_DECRYPT_CERT_SIGNATURE
    5: CertificateProblem.CRL_UNUSABLE,  # UNABLE_TO_DECRYPT_CRL_SIGNATURE
    6: CertificateProblem.UNUSABLE_KEY,  # UNABLE_TO_DECODE_ISSUER_PUBLIC_KEY
    7: CertificateProblem.BAD_SIGNATURE,  # CERT_SIGNATURE_FAILURE
    8: CertificateProblem.CRL_UNUSABLE,  # CRL_SIGNATURE_FAILURE
    9: CertificateProblem.NOT_YET_VALID,  # CERT_NOT_YET_VALID
    10: CertificateProblem.EXPIRED,  # CERT_HAS_EXPIRED
    13: CertificateProblem.MALFORMED,  # ERROR_IN_CERT_NOT_BEFORE_FIELD
    14: CertificateProblem.MALFORMED,  # ERROR_IN_CERT_NOT_AFTER_FIELD
    18: CertificateProblem.SELF_SIGNED,  # DEPTH_ZERO_SELF_SIGNED_CERT
    19: CertificateProblem.UNTRUSTED,  # SELF_SIGNED_CERT_IN_CHAIN
    20: CertificateProblem.UNKNOWN_ISSUER,  # UNABLE_TO_GET_ISSUER_CERT_LOCALLY
    21: CertificateProblem.UNKNOWN_ISSUER,  # UNABLE_TO_VERIFY_LEAF_SIGNATURE
    22: CertificateProblem.TOO_DEEP,  # CERT_CHAIN_TOO_LONG
    23: CertificateProblem.REVOKED,  # CERT_REVOKED
    24: CertificateProblem.UNUSABLE_KEY,  # NO_ISSUER_PUBLIC_KEY
    25: CertificateProblem.TOO_DEEP,  # PATH_LENGTH_EXCEEDED
    27: CertificateProblem.UNTRUSTED,  # CERT_UNTRUSTED
    28: CertificateProblem.UNTRUSTED,  # CERT_REJECTED
    32: CertificateProblem.NOT_A_CA,  # KEYUSAGE_NO_CERTSIGN
    33: CertificateProblem.CRL_UNUSABLE,  # UNABLE_TO_GET_CRL_ISSUER
    34: CertificateProblem.UNSUPPORTED_EXTENSION,  # UNHANDLED_CRITICAL_EXTENSION
    35: CertificateProblem.CRL_UNUSABLE,  # KEYUSAGE_NO_CRL_SIGN
    36: CertificateProblem.CRL_UNUSABLE,  # UNHANDLED_CRITICAL_CRL_EXTENSION
    41: CertificateProblem.MALFORMED,  # INVALID_EXTENSION
    47: CertificateProblem.NAME_NOT_PERMITTED,  # PERMITTED_VIOLATION
    48: CertificateProblem.NAME_NOT_PERMITTED,  # EXCLUDED_VIOLATION
    49: CertificateProblem.UNSUPPORTED_EXTENSION,  # SUBTREE_MINMAX
    51: CertificateProblem.UNSUPPORTED_EXTENSION,  # UNSUPPORTED_CONSTRAINT_TYPE
    52: CertificateProblem.UNSUPPORTED_EXTENSION,  # UNSUPPORTED_CONSTRAINT_SYNTAX
    53: CertificateProblem.UNSUPPORTED_EXTENSION,  # UNSUPPORTED_NAME_SYNTAX
    54: CertificateProblem.CRL_UNUSABLE,  # CRL_PATH_VALIDATION_ERROR
    76: CertificateProblem.WEAK_SIGNATURE,  # UNSUPPORTED_SIGNATURE_ALGORITHM
    77: CertificateProblem.BAD_SIGNATURE,  # SIGNATURE_ALGORITHM_MISMATCH
    78: CertificateProblem.BAD_SIGNATURE,  # SIGNATURE_ALGORITHM_INCONSISTENCY
    79: CertificateProblem.NOT_A_CA,  # INVALID_CA
    94: CertificateProblem.UNUSABLE_KEY,  # EC_KEY_EXPLICIT_PARAMS
}
"""By X509_V_ERR_ number; those that are not here are ``OTHER``."""


def dated_store(anchors: Iterable[X509], moment: datetime) -> X509Store:
    """For one path validation at ``moment``."""
    store = _store(anchors)
    store.set_time(moment.astimezone(UTC))
    return store


def revocation_store(anchors: Iterable[X509], crls: Iterable[x509.CertificateRevocationList]) -> X509Store:
    """For looking certificates up in lists, whatever the time.

    The caller chose which lists are current, and the dates of certificates were checked before.
    """
    store = _store(anchors)
    store.set_flags(X509StoreFlags.CRL_CHECK | NO_CHECK_TIME)
    for crl in crls:
        store.add_crl(crl)
    return store


def _store(anchors: Iterable[X509]) -> X509Store:
    store = X509Store()
    for anchor in anchors:
        store.add_cert(anchor)
    # An anchor need not be self-signed.
    store.set_flags(X509StoreFlags.PARTIAL_CHAIN)
    return store


def build_path(store: X509Store, certificate: X509, others: Sequence[X509]) -> list[X509]:
    """The path that was verified, the peer's certificate first, its trust anchor last."""
    return X509StoreContext(store, certificate, others).get_verified_chain()


def rejection(
    error: X509StoreContextError,
    anchors: Iterable[X509],
    *,
    lists: Sequence[x509.CertificateRevocationList] = (),
) -> CertificateRejected:
    """What OpenSSL found, in the terms of this package."""
    number, position, text = error.errors
    problem = PROBLEMS.get(number, CertificateProblem.OTHER)
    certificate = error.certificate.to_cryptography()
    what = Place(position, certificate)
    match problem:
        case CertificateProblem.EXPIRED:
            detail = f"{what} expired {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S}Z"
        case CertificateProblem.NOT_YET_VALID:
            detail = f"{what} is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S}Z"
        case CertificateProblem.SELF_SIGNED:
            detail = f"{what} is signed with its own key and is no trust anchor"
        case CertificateProblem.UNTRUSTED:
            detail = f"the chain ends in {what}, which is no trust anchor"
        case CertificateProblem.UNKNOWN_ISSUER:
            detail = (
                f"{what} is issued by {shown_name(certificate.issuer)}, whose certificate was not sent and is no"
                " trust anchor: an intermediate is missing, or that CA is not trusted"
            )
            if any(anchor.to_cryptography().subject == certificate.issuer for anchor in anchors):
                detail += "; there is a trust anchor of that name, with another key"
        case CertificateProblem.REVOKED:
            detail = f"{what} is revoked{_when(certificate, lists)}"
        case _:
            detail = f"{what}: {text}"
    return CertificateRejected(problem, detail)


def _when(certificate: x509.Certificate, lists: Sequence[x509.CertificateRevocationList]) -> str:
    for crl in lists:
        if crl.issuer == certificate.issuer:
            entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
            if entry is not None:
                return f" since {entry.revocation_date_utc:%Y-%m-%d %H:%M:%S}Z"
    return ""
