"""One port serves pre-shared keys, certificates and raw public keys at the same time."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from sansdtls import CertificateType, CipherSuite, ClientAuthentication, Peer, ServerConfig
from tests.interop import certified, stacks

if TYPE_CHECKING:
    from tests.interop.conftest import CertifiedMeeting, Meeting
    from tests.interop.credentials import Pair

pytestmark = pytest.mark.interop


def test_a_server_of_ours_serves_clients_of_every_credential_kind_on_one_port(
    meeting: Meeting, certified_meeting: CertifiedMeeting, pairs: dict[str, Pair]
):
    pair = pairs["p256"]
    config = ServerConfig(
        credentials=(pair.server.ours(), pairs["rsa"].server.ours(), pair.server.ours_raw()),
        client_authentication=ClientAuthentication.WANTED,
        client_certificate_types=(CertificateType.X509, CertificateType.RAW_PUBLIC_KEY),
    )
    server = certified_meeting.our_server(config, keys={b"dev1": [stacks.OPENSSL.key]})
    clients = [
        meeting.their_client(stacks.OPENSSL, server.port),
        meeting.their_client(stacks.GNUTLS, server.port),
        certified_meeting.their_client(certified.OPENSSL, server.port, own=pair.client, trusts=pair.server),
        certified_meeting.their_client(
            certified.OPENSSL,
            server.port,
            suite=CipherSuite.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            trusts=pairs["rsa"].server,
        ),
        certified_meeting.their_client(certified.GNUTLS, server.port, own=pair.client, trusts=pair.server),
        certified_meeting.their_client(certified.GNUTLS, server.port, own=pair.client, raw=True),
    ]
    server.run_until(lambda: len(server.server) == len(clients), lambda: "\n".join(map(str, clients)))
    for client in clients:
        client.say("hello")
    server.run_until(
        lambda: all("heard hello" in client.output for client in clients),
        lambda: "\n".join(map(str, clients)),
    )
    assert not server.causes
    peers = [completed.connection.peer for completed in server.completed]
    with_psk = Peer(psk_identity=b"dev1", psk_key_index=0)
    with_certificate = Peer(certificate_chain=(pair.client.der,))
    with_raw_key = Peer(raw_public_key=pair.client.spki)
    expected = [with_psk, with_psk, with_certificate, Peer(), with_certificate, with_raw_key]
    assert Counter(peers) == Counter(expected)
