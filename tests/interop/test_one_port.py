"""One port serves pre-shared keys, certificates and raw public keys at the same time."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from sansdtls import CertificateType, CipherSuite, ClientAuthentication, ServerConfig
from tests.interop import certified, stacks

if TYPE_CHECKING:
    from sansdtls import HandshakeCompleted
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
    assert Counter(map(_shown, server.completed)) == Counter(
        [b"dev1", b"dev1", pair.client.der, pair.client.der, pair.client.spki, None]
    )


def _shown(completed: HandshakeCompleted) -> bytes | None:
    peer = completed.connection.peer
    assert peer is not None
    chain = peer.certificate_chain  # openssl adds its authority's certificate
    return peer.psk_identity or peer.raw_public_key or (chain[0] if chain else None)
