"""Words for people about the causes of an association's end. For counters there is ``sansdtls.cause_name``."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

import attrs

from sansdtls import (
    AlertDescription,
    AuthenticationFailed,
    AuthenticationProblem,
    CipherSuite,
    HandshakeTimeout,
    IdleTimeout,
    KeysExhausted,
    LimitExceeded,
    LocalClose,
    PeerAlert,
    PeerClose,
    PeerIncompatible,
    ProtocolViolation,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sansdtls import Cause

_PROBLEMS = {
    AuthenticationProblem.UNKNOWN_IDENTITY: "the identity is unknown",
    AuthenticationProblem.WRONG_KEY: "the key is wrong",
    AuthenticationProblem.KEYS_UNAVAILABLE: "the key store could not say which keys the identity has; it was told to come back",
    AuthenticationProblem.NO_CERTIFICATE: "a certificate or raw public key is required, and none was shown",
    AuthenticationProblem.BAD_SIGNATURE: "the peer does not hold the private key of what it showed",
    AuthenticationProblem.PEER_REJECTED: "the peer's certificate or raw public key was rejected",
    AuthenticationProblem.BAD_FINISHED: "the peers saw different handshakes",
}


def cause_text(cause: Cause) -> str:
    """One clause without full stop, for a log or an exception. Holds nothing that a stranger chose."""
    match cause:
        case LocalClose():
            return "closed by this side"
        case PeerClose(replaced=True):
            return "the peer began anew with another handshake"
        case PeerClose():
            return "closed by the peer"
        case PeerAlert(description=AlertDescription.DECRYPT_ERROR, authenticated=False):
            # RFC 7925 §4.2 gives both mistakes this one alert, so this is all there is to know.
            return "the peer sent the alert decrypt_error: it does not know the identity, or the key is wrong"
        case PeerAlert(description=description):
            return f"the peer sent the alert {_alert(description)}"
        case ProtocolViolation(description=description, rule=rule):
            return f"the peer broke the protocol ({_alert(description)}): {rule}"
        case PeerIncompatible(description=description, rule=rule):
            return f"nothing in common with the peer ({_alert(description)}): {rule}"
        case AuthenticationFailed(problem=problem):
            return _PROBLEMS[problem]
        case HandshakeTimeout(waiting_for=waiting_for):
            return f"the handshake took too long (it was in {waiting_for})"
        case KeysExhausted(direction=direction):
            return f"the keys are used up ({direction})"
        case LimitExceeded(limit=limit):
            return f"the limit {limit} is reached"
        case IdleTimeout(seconds=seconds):
            return f"nothing was heard for {seconds:g} seconds"
        case _:
            assert_never(cause)


def _alert(description: AlertDescription | int) -> str:
    if isinstance(description, AlertDescription):
        return description.name.lower()
    return str(description)


SHOWN_SUITES = 8
"""Cipher suites named of an offer; a hello may have thousands."""
_SIGNALS = frozenset({0x00FF, 0x5600})
"""Numbers that stand among the cipher suites and are none: RFC 5746 §3.3, RFC 7507 §2."""
_FOREIGN_SUITES = {
    0x002F: "TLS_RSA_WITH_AES_128_CBC_SHA",
    0x008C: "TLS_PSK_WITH_AES_128_CBC_SHA",
    0x008D: "TLS_PSK_WITH_AES_256_CBC_SHA",
    0x009C: "TLS_RSA_WITH_AES_128_GCM_SHA256",
    0x00AE: "TLS_PSK_WITH_AES_128_CBC_SHA256",
    0x00AF: "TLS_PSK_WITH_AES_256_CBC_SHA384",
    0xC009: "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    0xC013: "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    0xC023: "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    0xC035: "TLS_ECDHE_PSK_WITH_AES_128_CBC_SHA",
    0xC037: "TLS_ECDHE_PSK_WITH_AES_128_CBC_SHA256",
}
"""What devices offer that is not spoken here: authentication before encryption (CBC) and static RSA."""


def with_offer(cause: Cause, offered: Sequence[int]) -> Cause:
    """``cause``; where no cipher suite was in common, with those that the client has ``offered``."""
    if not isinstance(cause, PeerIncompatible) or cause.description is not AlertDescription.HANDSHAKE_FAILURE:
        return cause
    suites = [suite for suite in offered if suite not in _SIGNALS]
    shown = ", ".join(suite_name(suite) for suite in suites[:SHOWN_SUITES]) or "none"
    more = f" and {len(suites) - SHOWN_SUITES} more" if len(suites) > SHOWN_SUITES else ""
    return attrs.evolve(cause, rule=f"{cause.rule}; it offered {shown}{more}")


def suite_name(number: int) -> str:
    """Its name, where it is one of ours or well known; else its number as in IANA's table."""
    try:
        return CipherSuite(number).name
    except ValueError:
        return _FOREIGN_SUITES.get(number) or f"0x{number:04x}"
