"""Raw public keys (RFC 7250) with GnuTLS, the one stack here whose programs have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sansdtls import (
    AlertDescription,
    AuthenticationFailed,
    AuthenticationProblem,
    CertificateType,
    ClientAuthentication,
    ClientConfig,
    Peer,
    PeerRawKeyReceived,
    ServerConfig,
)
from tests.interop.certified import GNUTLS

if TYPE_CHECKING:
    from sansdtls import PeerCertificateReceived
    from tests.interop.conftest import CertifiedMeeting
    from tests.interop.credentials import Credential, Pair
    from tests.interop.ours import Judge

pytestmark = pytest.mark.interop

RAW = (CertificateType.RAW_PUBLIC_KEY,)
with_each_kind = pytest.mark.parametrize("kind", GNUTLS.kinds)
with_and_without_client_key = pytest.mark.parametrize("mutual", [False, True], ids=["server", "mutual"])


def knowing_only(known: Credential) -> Judge:
    def judge(shown: PeerCertificateReceived | PeerRawKeyReceived) -> AlertDescription | None:
        if isinstance(shown, PeerRawKeyReceived) and shown.spki == known.spki:
            return None
        return AlertDescription.CERTIFICATE_UNKNOWN

    return judge


@with_and_without_client_key
@with_each_kind
def test_their_client_with_raw_keys_talks_to_our_server(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair], kind: str, mutual: bool
):
    pair = pairs[kind]
    config = ServerConfig(
        psk=False,
        credentials=(pair.server.ours_raw(),),
        client_authentication=ClientAuthentication.REQUIRED if mutual else ClientAuthentication.NONE,
        client_certificate_types=RAW,
    )
    server = certified_meeting.our_server(config, judge=knowing_only(pair.client))
    client = certified_meeting.their_client(
        GNUTLS, server.port, own=pair.client if mutual else None, trusts=pair.server, raw=True
    )
    client.say("hello")
    server.run_until(lambda: "heard hello" in client.output, lambda: f"an answer for {client}")
    assert "Raw Public Key" in client.output
    assert server.completed[0].connection.peer == Peer(raw_public_key=pair.client.spki if mutual else None)


@with_and_without_client_key
@with_each_kind
def test_our_client_with_raw_keys_talks_to_their_server(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair], kind: str, mutual: bool
):
    pair = pairs[kind]
    server, port = certified_meeting.their_server(
        GNUTLS, own=pair.server, trusts=pair.client if mutual else None, raw=True
    )
    config = ClientConfig(
        server_certificate_types=RAW, credentials=(pair.client.ours_raw(),) if mutual else ()
    )
    client = certified_meeting.our_client(config, port, judge=knowing_only(pair.server))
    client.connect(server.__str__)
    assert client.connection.peer == Peer(raw_public_key=pair.server.spki)
    client.send(b"hello\n")
    client.run_until(lambda: bool(client.received), lambda: f"an answer from {server}")
    assert client.received == [b"hello\n"]


def test_their_client_with_an_unknown_raw_key_is_refused(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair]
):
    config = ServerConfig(
        credentials=(pairs["p256"].server.ours_raw(),),
        client_authentication=ClientAuthentication.REQUIRED,
        client_certificate_types=RAW,
    )
    server = certified_meeting.our_server(config, judge=knowing_only(pairs["p256"].client))
    client = certified_meeting.their_client(GNUTLS, server.port, own=pairs["stranger"].client, raw=True)
    expected = "Unknown certificate"
    server.run_until(lambda: expected in client.output, lambda: f"an alert at {client}")
    assert server.causes == [AuthenticationFailed(AuthenticationProblem.PEER_REJECTED)]


def test_their_server_with_an_unknown_raw_key_is_refused(
    certified_meeting: CertifiedMeeting, pairs: dict[str, Pair]
):
    server, port = certified_meeting.their_server(GNUTLS, own=pairs["stranger"].server, raw=True)
    config = ClientConfig(server_certificate_types=RAW)
    client = certified_meeting.our_client(config, port, judge=knowing_only(pairs["p256"].server))
    expected = "A TLS fatal alert has been received"
    client.run_until(lambda: expected in server.output, lambda: f"an alert at {server}")
    assert client.causes == [AuthenticationFailed(AuthenticationProblem.PEER_REJECTED)]
