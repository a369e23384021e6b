"""Certificate revocation lists: which are current is decided here, what they mean by OpenSSL.

A list counts from its thisUpdate through its nextUpdate. The current ones are in one ``X509Store`` and the others
in a second; both are made when that division changes, a few times in the life of a policy, and not before. A
certificate that no current list covers is looked up among the others too, so that "the list is too old" is told
from "there is none", and a revocation is never forgotten because its list is old.

Only certificates of a verified path come here: a forged one learns nothing from a list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from cryptography import x509
from OpenSSL.crypto import X509, X509Store, X509StoreContextError

from sansdtls.pki.openssl import NO_CRL, build_path, rejection, revocation_store
from sansdtls.pki.rejection import CertificateProblem, CertificateRejected, Place, shown_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime


@attrs.frozen
class _Division:
    """The lists, divided by the time."""

    is_current: tuple[bool, ...]
    current: X509Store | None
    others: X509Store | None


class RevocationLists:
    """The lists of a policy. Threads may share it: what changes is one attribute, and that as a whole."""

    __slots__ = ("_anchors", "_division", "_lists", "_required", "_spans")

    def __init__(self, anchors: Sequence[X509], crls: Sequence[bytes], *, required: bool) -> None:
        self._anchors = anchors
        self._lists = tuple(map(x509.load_der_x509_crl, crls))
        # Kept apart, because asking a list for its dates parses them anew.
        self._spans = tuple((crl.last_update_utc, crl.next_update_utc) for crl in self._lists)
        self._required = required
        self._division: _Division | None = None

    def require_unrevoked(self, path: Sequence[X509], moment: datetime) -> None:
        """Return if no certificate of the verified ``path`` is revoked.

        The last one, the anchor, is not looked up: whoever no longer trusts it takes it out of the policy.
        """
        division = self._divided(moment)
        for position, certificate in enumerate(path[:-1]):
            above = path[position + 1 :]
            if not self._covered(division.current, certificate, above, position):
                self._require_uncovered(division, certificate, above, position)

    def _require_uncovered(
        self, division: _Division, certificate: X509, above: Sequence[X509], position: int
    ) -> None:
        shown = certificate.to_cryptography()
        issuer = shown_name(shown.issuer)
        if self._covered(division.others, certificate, above, position):
            raise CertificateRejected(
                CertificateProblem.CRL_NOT_CURRENT,
                f"the revocation list of {issuer}, for {Place(position, shown)}, is {self._dates(shown.issuer)}",
            )
        if self._required:
            raise CertificateRejected(
                CertificateProblem.CRL_MISSING,
                f"there is no revocation list of {issuer} for {Place(position, shown)}",
            )

    def _covered(
        self, store: X509Store | None, certificate: X509, above: Sequence[X509], position: int
    ) -> bool:
        """Whether a list in ``store`` covers the certificate; :class:`CertificateRejected` if it is on it."""
        if store is None:
            return False
        try:
            build_path(store, certificate, above)
        except X509StoreContextError as error:
            if error.errors[0] in NO_CRL:
                return False
            error.errors[1] += position  # OpenSSL was asked about a certificate further up
            raise rejection(error, self._anchors, lists=self._lists) from None
        return True

    def _divided(self, moment: datetime) -> _Division:
        is_current = tuple(end is not None and start <= moment <= end for start, end in self._spans)
        division = self._division
        if division is None or division.is_current != is_current:
            division = _Division(
                is_current,
                current=self._store(is_current, wanted=True),
                others=self._store(is_current, wanted=False),
            )
            self._division = division
        return division

    def _store(self, is_current: tuple[bool, ...], *, wanted: bool) -> X509Store | None:
        lists = [crl for crl, current in zip(self._lists, is_current, strict=True) if current is wanted]
        return revocation_store(self._anchors, lists) if lists else None

    def _dates(self, issuer: x509.Name) -> str:
        spans = [
            f"from {start:%Y-%m-%d %H:%M:%S}Z to {end:%Y-%m-%d %H:%M:%S}Z"
            for crl, (start, end) in zip(self._lists, self._spans, strict=True)
            if end is not None and crl.issuer == issuer
        ]
        return ", ".join(spans) or "not current"
