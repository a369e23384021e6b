"""What an operator can do about a failed handshake: a sentence for every cause and every certificate problem.

The words are this program's own; nothing that a peer sent is in them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import attrs

from sansdtls import (
    AlertDescription,
    AuthenticationFailed,
    AuthenticationProblem,
    HandshakeTimeout,
    LimitExceeded,
    Limits,
    PeerAlert,
    PeerIncompatible,
    ProtocolViolation,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sansdtls import Cause

_AUTHENTICATION: Mapping[AuthenticationProblem, str] = {
    AuthenticationProblem.KEYS_UNAVAILABLE: (
        "nothing is wrong with the device, and it comes back by itself: see key_store_unavailable or key_record_unusable in "
        "the log, or dtls-endpoint status, for what is wrong with the key store"
    ),
    AuthenticationProblem.UNKNOWN_IDENTITY: (
        "add the identity to the keys, or correct it on the device: it is compared byte by byte, with case, blanks and NUL"
    ),
    AuthenticationProblem.WRONG_KEY: (
        "give the device one of the keys whose fingerprints are listed, or add the device's key as the next one "
        "(dtls-endpoint keys); usual slips: the key as text instead of hex, an old key after a rotation, two devices swapped"
    ),
    AuthenticationProblem.NO_CERTIFICATE: (
        "give the device a certificate or a raw public key, or a pre-shared key and a PSK cipher suite"
    ),
    AuthenticationProblem.BAD_SIGNATURE: "give the device the private key that belongs to its certificate",
    AuthenticationProblem.PEER_REJECTED: "see why its certificate or raw public key was not accepted",
    AuthenticationProblem.BAD_FINISHED: (
        "look for a device or a middlebox that changes handshake messages; if one kind of device does it always, its "
        "DTLS library computes the transcript differently (extended master secret is the usual place)"
    ),
}

_REJECTED: Mapping[str, str] = {
    "expired": "renew the device's certificate; if it is valid, the clock of this machine is wrong",
    "not_yet_valid": "correct the clock of this machine, or of the one that issued the certificate",
    "revoked": "issue a new certificate for the device, if it is to come back",
    "unknown_issuer": "add the CA to credentials.client_ca, or have the device send its intermediate certificates",
    "untrusted": "add the CA to credentials.client_ca",
    "self_signed": "have a CA of credentials.client_ca sign it, or list its public key in credentials.raw_public_keys",
    "bad_signature": "issue the certificate again: it was damaged, or signed by another CA of the same name",
    "crl_missing": "add a revocation list of the issuing CA to credentials.client_crl",
    "crl_not_current": "fetch the revocation list again, and reload",
    "crl_unusable": "fetch the revocation list again, and reload",
    "wrong_purpose": "issue a certificate with extended key usage clientAuth",
    "wrong_key_usage": "issue a certificate with key usage digitalSignature",
    "weak_signature": "issue a certificate with SHA-256 or better",
    "unusable_key": "issue a certificate with an ECDSA P-256 key, or another one that is supported",
    "no_identity": "issue a certificate that names the device (see credentials.client_identity)",
    "unknown_key": "add the device's public key to credentials.raw_public_keys",
    "no_trust_anchor": "set credentials.client_ca, if devices with certificates are to be accepted",
    "too_deep": "shorten the chain of intermediate certificates",
    "name_not_permitted": "the CA may not issue this name; issue it under another one",
    "not_a_ca": "an intermediate certificate in the chain is no CA; replace it",
    "not_pinned": "add the certificate's pin, or have the device use the pinned one",
}

_ALERTS: Mapping[int, str] = {
    AlertDescription.DECRYPT_ERROR: "compare the device's identity and key with those here (fingerprints are listed)",
    AlertDescription.BAD_RECORD_MAC: "compare the device's key with those here (fingerprints are listed)",
    AlertDescription.UNKNOWN_CA: "give the device the CA of this endpoint's certificate",
    AlertDescription.BAD_CERTIFICATE: "the device does not accept this endpoint's certificate; see the device's log",
    AlertDescription.CERTIFICATE_EXPIRED: "renew this endpoint's certificate, or correct the device's clock",
    AlertDescription.CERTIFICATE_UNKNOWN: "the device does not accept this endpoint's certificate; see the device's log",
    AlertDescription.UNSUPPORTED_CERTIFICATE: "the device cannot use this endpoint's kind of certificate or key",
    AlertDescription.HANDSHAKE_FAILURE: "the device found nothing in common; compare its cipher suites with dtls.cipher_suites",
    AlertDescription.PROTOCOL_VERSION: "the device does not speak DTLS 1.2",
    AlertDescription.UNKNOWN_PSK_IDENTITY: "compare the device's identity with those here",
}

_TIMEOUT_IN: Mapping[str, str] = {
    "ACCEPT": "this endpoint was too busy to begin in time; see its load and quotas",
    "AWAIT_PSK": "the key store did not answer in time; dtls-endpoint status says how it is",
    "AWAIT_ACCEPTANCE": "checking the certificate took too long; see this machine's load",
}

_LARGE_FLIGHT = (
    "the device's first datagrams arrive, later ones or our answers do not: look for a firewall or NAT that drops UDP "
    "after the first exchange, and for a path that loses large datagrams (set dtls.mtu lower, 1000 say; certificates "
    "make large flights); a device that gives up early needs longer timers (dtls.retransmit)"
)

_FINISHED = (
    "the device never sent a Finished that could be read: it gave up, its last flight was lost, or its key is wrong and "
    "it retransmits to no end; compare the key fingerprints first"
)


def remedy_text(cause: Cause, problem: str | None = None) -> str | None:
    """What to do, as a clause; ``None`` where there is nothing to advise.

    ``problem`` is why a certificate or raw public key was not accepted, where that was the reason.
    """
    match cause:
        case AuthenticationFailed(problem=AuthenticationProblem.PEER_REJECTED) if problem is not None:
            return _REJECTED.get(problem, _AUTHENTICATION[AuthenticationProblem.PEER_REJECTED])
        case AuthenticationFailed(problem=which):
            return _AUTHENTICATION[which]
        case PeerIncompatible(description=AlertDescription.PROTOCOL_VERSION):
            return "configure the device for DTLS 1.2; older versions are not spoken here"
        case PeerIncompatible(description=AlertDescription.NO_APPLICATION_PROTOCOL):
            return "configure a protocol of dtls.alpn_protocols on the device, or none"
        case PeerIncompatible(rule=rule) if "extended_master_secret" in rule:
            return 'update the device\'s DTLS library, or set dtls.extended_master_secret = "preferred"'
        case PeerIncompatible():
            return "add one of the offered cipher suites to dtls.cipher_suites, or configure one of ours on the device"
        case HandshakeTimeout(waiting_for=state):
            after_key = state in ("AWAIT_CHANGE_CIPHER_SPEC", "AWAIT_FINISHED")
            return _TIMEOUT_IN.get(state) or (_FINISHED if after_key else _LARGE_FLIGHT)
        case PeerAlert(description=description):
            return _ALERTS.get(description, "see the device's log for what it did not like")
        case ProtocolViolation():
            return "report it, with a capture, to whoever makes the device's DTLS library; or it was a scan"
        case LimitExceeded(limit=limit):
            return f"raise dtls.limits.{limit}, if devices are meant to need so much"
        case _:
            return None


_QUOTAS = "if devices are meant to do that, raise quotas.{name}"
_NETWORKS = "; where many of them share an address, list its network in quotas.networks"
_OF_SOURCES = re.compile(r".*_per_prefix|prefix_.*|handshakes_per_second|total_.*")
"""Limits that a network can be given for its own; those of an identity or association are none."""
_LIMITS = frozenset(field.name for field in attrs.fields(Limits))


def quota_remedy(name: str) -> str:
    """What to do about refusals by a quota."""
    if name in _LIMITS:
        return f"if devices are meant to do that, raise dtls.limits.{name}, which all share"
    hint = _NETWORKS if _OF_SOURCES.match(name) else ""
    return _QUOTAS.format(name=name) + hint


STORE_DOWN = "the key store cannot answer, so no new device gets in: {why}"
"""For an answer about a device, where that is the reason above all others."""
