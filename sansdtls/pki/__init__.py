"""Certificates of peers: path validation, revocation, names, pins.

Attacker: sends any bytes as a certificate chain; holds certificates from CAs that are trusted here, for other
purposes or under other names, and the keys of certificates that were revoked or have run out; signs certificates
with an end-entity's key, or with a CA of the same name; tries to learn from the answer which rule stopped it, and
to make the check itself cost more than the handshake.

Properties wanted: (1) a peer is accepted only with an unbroken path of good signatures from a trust anchor, each
certificate valid at the given moment, each CA allowed to be one, for this purpose and this deep; (2) a certificate
on a current list is refused, and with ``CrlPolicy.REQUIRED`` so is one that no current list covers; (3) a client
reaches the server it named and no other; (4) an identity is one that a CA vouched for, says where in the
certificate it stood, and can be printed; (5) the peer learns the class of the refusal, as an alert, and the operator
which certificate, which date, which name; (6) nothing but :class:`CertificateRejected` comes of the peer's bytes; (7)
the result is a function of policy, chain, time and wanted name.

Construction: OpenSSL, through pyOpenSSL's ``X509Store``, builds the path and verifies signatures, dates, CA flags,
path lengths, name constraints and critical extensions, from the anchor downwards, so that the first key that computes
is trusted and the next one is signed by it. Then come the rules that pyOpenSSL cannot ask OpenSSL for, on the
verified path only: purposes, key usage, strength of keys and hashes, length. Then revocation, once more by OpenSSL
and only for what has a verified path; then pins; then names. All of it fails closed. Nothing is remembered
between calls but which revocation lists are current, so nothing learnt from one chain is believed of another.

=================== ===================================================================================
``policy``          whom to trust; reads and checks its own parts, all :class:`ConfigError` come from here
``verifier``        the order of the checks
``openssl``         pyOpenSSL's store, its traps, and the meaning of its errors
``authorities``     CA certificates, purposes, strength
``revocation``      certificate revocation lists
``names``           identities of devices, names of servers
``rejection``       problems, alerts, and text that is fit for a log
=================== ===================================================================================

Left out: OCSP, and fetching anything (the core does no I/O; lists are the operator's to fetch); delta and indirect
lists; certificate policies; proxy certificates; SHA-1; the hardwareModuleName of IEEE 802.1AR. That the peer *holds*
its key is not known here: only its signature in the handshake shows that. What a trusted CA signs is believed, so
a CA that lets its customers choose common names needs a shorter ``identity_sources``.

The clock is the caller's. A device that starts in 1970 finds every certificate not yet valid, and says so.
"""

from sansdtls.pki.authorities import Purpose
from sansdtls.pki.names import IdentitySource
from sansdtls.pki.policy import CrlPolicy, TrustPolicy, certificates_from_pem, crls_from_pem
from sansdtls.pki.rejection import CertificateProblem, CertificateRejected
from sansdtls.pki.verifier import VerifiedPeer, Verifier

__all__ = [
    "CertificateProblem",
    "CertificateRejected",
    "CrlPolicy",
    "IdentitySource",
    "Purpose",
    "TrustPolicy",
    "VerifiedPeer",
    "Verifier",
    "certificates_from_pem",
    "crls_from_pem",
]
