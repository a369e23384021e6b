"""Each cause has words, and none of them comes from a stranger."""

from typing import get_args

import pytest

from endpoint.causes import cause_text
from sansdtls import (
    AlertDescription,
    AuthenticationFailed,
    AuthenticationProblem,
    Cause,
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

WORDS = {
    LocalClose(): "closed by this side",
    PeerClose(): "closed by the peer",
    PeerClose(replaced=True): "the peer began anew with another handshake",
    PeerAlert(AlertDescription.DECRYPT_ERROR, authenticated=False): (
        "the peer sent the alert decrypt_error: it does not know the identity, or the key is wrong"
    ),
    PeerAlert(AlertDescription.DECRYPT_ERROR): "the peer sent the alert decrypt_error",
    PeerAlert(222): "the peer sent the alert 222",
    ProtocolViolation(AlertDescription.DECODE_ERROR, "trailing bytes"): (
        "the peer broke the protocol (decode_error): trailing bytes"
    ),
    PeerIncompatible(AlertDescription.HANDSHAKE_FAILURE, "no common cipher suite"): (
        "nothing in common with the peer (handshake_failure): no common cipher suite"
    ),
    AuthenticationFailed(AuthenticationProblem.UNKNOWN_IDENTITY, b"who"): "the identity is unknown",
    AuthenticationFailed(AuthenticationProblem.WRONG_KEY, b"who"): "the key is wrong",
    AuthenticationFailed(AuthenticationProblem.KEYS_UNAVAILABLE, b"who"): (
        "the key store could not say which keys the identity has; it was told to come back"
    ),
    AuthenticationFailed(AuthenticationProblem.BAD_FINISHED): "the peers saw different handshakes",
    HandshakeTimeout("AWAIT_FINISHED"): "the handshake took too long (it was in AWAIT_FINISHED)",
    KeysExhausted("seal"): "the keys are used up (seal)",
    LimitExceeded("max_associations"): "the limit max_associations is reached",
    IdleTimeout(1.5): "nothing was heard for 1.5 seconds",
}


@pytest.mark.parametrize(("cause", "words"), WORDS.items(), ids=str)
def test_a_cause_in_words(cause, words):
    assert cause_text(cause) == words


def test_no_cause_was_forgotten():
    assert {type(cause) for cause in WORDS} == set(get_args(Cause))
