"""Credentials that are missing or not trusted, on either side: who ends the handshake, and who is told what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import pytest

from sansdtls import (
    AlertDescription,
    AuthenticationFailed,
    AuthenticationProblem,
    CertificateType,
    ClientAuthentication,
    ClientConfig,
    Peer,
    PeerAlert,
    PeerRawKeyReceived,
    RetransmitPolicy,
    ServerConfig,
)
from tests.interop.certified import GNUTLS, OPENSSL, CertifiedStack

if TYPE_CHECKING:
    from sansdtls import PeerCertificateReceived
    from tests.interop.conftest import CertifiedMeeting
    from tests.interop.credentials import Credential, Pair
    from tests.interop.ours import Judge

pytestmark = pytest.mark.interop

SOON = RetransmitPolicy(initial_timeout=0.25)
"""An alert in plaintext is believed when the timer has gone off without anything better."""


def trusting_only(trusted: Credential) -> Judge:
    """The check of an operator that knows one peer: its certificate or its raw public key."""

    def judge(shown: PeerCertificateReceived | PeerRawKeyReceived) -> AlertDescription | None:
        if isinstance(shown, PeerRawKeyReceived):
            return None if shown.spki == trusted.spki else AlertDescription.CERTIFICATE_UNKNOWN
        return None if shown.chain[0] == trusted.der else AlertDescription.UNKNOWN_CA

    return judge


@attrs.frozen(kw_only=True)
class Refusal:
    """A client that shows what is not trusted, or nothing."""

    stack: CertifiedStack
    shows: str | None
    """The pair whose client it is; ``None`` = it shows nothing."""
    client_prints: str
    """Of the alert of our server."""
    alert: AlertDescription | None
    """From their server to our client; ``None`` = it ends the handshake without a word."""

    def __str__(self) -> str:
        return f"{self.stack}-{self.shows or 'nothing'}"


REFUSALS = [
    Refusal(
        stack=OPENSSL,
        shows="stranger",
        client_prints="alert unknown ca",
        alert=AlertDescription.UNKNOWN_CA,
    ),
    Refusal(
        stack=OPENSSL,
        shows=None,
        client_prints="alert handshake failure",
        alert=AlertDescription.HANDSHAKE_FAILURE,
    ),
    Refusal(
        stack=GNUTLS,
        shows="stranger",
        client_prints="CA is unknown",
        alert=AlertDescription.ACCESS_DENIED,
    ),
    Refusal(
        stack=GNUTLS,
        shows=None,
        client_prints="Handshake failed",
        alert=None,
    ),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
def test_their_client_is_refused_by_our_server(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair], refusal: Refusal
):
    pair = pairs["p256"]
    config = ServerConfig(
        credentials=(pair.server.ours(),), client_authentication=ClientAuthentication.REQUIRED
    )
    server = certified_meeting.our_server(config, judge=trusting_only(pair.client))
    own = None if refusal.shows is None else pairs[refusal.shows].client
    client = certified_meeting.their_client(refusal.stack, server.port, own=own, trusts=pair.server)
    server.run_until(lambda: refusal.client_prints in client.output, lambda: f"an alert at {client}")
    if refusal.shows is None:
        problem = AuthenticationProblem.NO_CERTIFICATE
    else:
        problem = AuthenticationProblem.PEER_REJECTED
    assert server.causes == [AuthenticationFailed(problem)]
    assert not server.completed
    assert len(server.server) == 0


@pytest.mark.parametrize("refusal", [row for row in REFUSALS if row.alert is not None], ids=str)
def test_our_client_hears_why_their_server_refuses_it(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair], refusal: Refusal
):
    pair = pairs["p256"]
    server, port = certified_meeting.their_server(refusal.stack, own=pair.server, trusts=pair.client)
    credentials = () if refusal.shows is None else (pairs[refusal.shows].client.ours(),)
    config = ClientConfig(
        server_certificate_types=(CertificateType.X509,), credentials=credentials, retransmit=SOON
    )
    client = certified_meeting.our_client(config, port)
    client.run_until(lambda: bool(client.causes), lambda: f"an alert from {server}")
    assert refusal.alert is not None
    assert client.causes == [PeerAlert(refusal.alert, authenticated=False)]


@pytest.mark.parametrize("stack", [OPENSSL, GNUTLS], ids=str)
def test_their_client_without_a_certificate_is_nobody_where_one_is_only_wanted(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair], stack: CertifiedStack
):
    pair = pairs["p256"]
    config = ServerConfig(
        credentials=(pair.server.ours(),), client_authentication=ClientAuthentication.WANTED
    )
    server = certified_meeting.our_server(config)
    client = certified_meeting.their_client(stack, server.port, trusts=pair.server)
    client.say("hello")
    server.run_until(lambda: "heard hello" in client.output, lambda: f"an answer for {client}")
    assert server.completed[0].connection.peer == Peer()


@pytest.mark.parametrize(
    ("stack", "alert"),
    [(OPENSSL, AlertDescription.UNKNOWN_CA), (GNUTLS, AlertDescription.BAD_CERTIFICATE)],
    ids=["openssl", "gnutls"],
)
def test_our_server_hears_why_their_client_does_not_trust_it(
    certified_meeting: CertifiedMeeting,
    pairs: dict[str, Pair],
    stack: CertifiedStack,
    alert: AlertDescription,
):
    config = ServerConfig(credentials=(pairs["stranger"].server.ours(),), retransmit=SOON)
    server = certified_meeting.our_server(config)
    client = certified_meeting.their_client(stack, server.port, trusts=pairs["p256"].server)
    server.run_until(lambda: bool(server.causes), lambda: f"an alert of {client}")
    assert server.causes == [PeerAlert(alert, authenticated=False)]


@pytest.mark.parametrize(
    ("stack", "expected"),
    [(OPENSSL, "alert unknown ca"), (GNUTLS, "A TLS fatal alert has been received")],
    ids=["openssl", "gnutls"],
)
def test_their_server_is_refused_by_our_client(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair], stack: CertifiedStack, expected: str
):
    server, port = certified_meeting.their_server(stack, own=pairs["stranger"].server)
    config = ClientConfig(server_certificate_types=(CertificateType.X509,))
    client = certified_meeting.our_client(config, port, judge=trusting_only(pairs["p256"].server))
    client.run_until(lambda: expected in server.output, lambda: f"an alert at {server}")
    assert client.causes == [AuthenticationFailed(AuthenticationProblem.PEER_REJECTED)]
