"""What the tests of resumption share: clients of each kind, and a fleet in which they connect again and again."""

from __future__ import annotations

import attrs
import pytest

from sansdtls import (
    CertificateType,
    CipherSuite,
    ClientAuthentication,
    ClientConfig,
    ConnectionState,
    PeerCertificateReceived,
    PeerRawKeyReceived,
    PskRequested,
    Session,
)
from sansdtls.testing import Client, Fleet, Network
from tests.core.credentials import shown
from tests.core.ecdhe_puppets import (
    client_config,
    psk_config,
    server_config,
)
from tests.core.puppet import IDENTITY, KEY

KINDS = {
    "PSK": psk_config(cipher_suites=[CipherSuite.TLS_PSK_WITH_AES_128_CCM_8]),
    "ECDHE_PSK": psk_config(),
    "certificate": client_config(credentials=(shown("p256").certificate(),)),
    "raw public key": ClientConfig(
        server_certificate_types=(CertificateType.RAW_PUBLIC_KEY,),
        credentials=(shown("ed25519").raw_public_key(),),
    ),
    "anonymous": client_config(),
}
WAYS = {"ticket": True, "session ID": False}
"""Whether the client asks for a ticket."""
WANTED = {"client_authentication": ClientAuthentication.WANTED}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_way = pytest.mark.parametrize("way", WAYS)


def new_fleet(network: Network | None = None, seed: int = 0, **more) -> Fleet:
    return Fleet(server_config(**{**WANTED, **more}), keys={IDENTITY: [KEY]}, network=network, seed=seed)


def connect(fleet: Fleet, config: ClientConfig, path: str = "client") -> Client:
    client = fleet.connect(config, path)
    fleet.run_until(lambda: client.connection.state is not ConnectionState.HANDSHAKING)
    fleet.run_for(0.1)
    return client


def session_of(client: Client) -> Session:
    assert client.connection.session is not None
    return client.connection.session


def resumed(client: Client) -> bool:
    assert client.connection.state is ConnectionState.CONNECTED, client.events
    assert client.connection.negotiated is not None
    return client.connection.negotiated.resumed


def made(fleet: Fleet, kind: str = "ECDHE_PSK", way: str = "ticket", **more) -> ClientConfig:
    """A first connection; the configuration with which its client would resume it."""
    config = attrs.evolve(KINDS[kind], request_ticket=WAYS[way], **more)
    first = connect(fleet, config)
    assert not resumed(first)
    session = session_of(first)
    assert bool(session.ticket) is (way == "ticket")
    assert bool(session.session_id) is (way != "ticket")
    return attrs.evolve(config, session=session)


def questions(fleet: Fleet) -> list:
    asking = PskRequested | PeerCertificateReceived | PeerRawKeyReceived
    return [event for event in fleet.server_events if isinstance(event, asking)]


def refused(fleet: Fleet, config: ClientConfig) -> Client:
    """Connects with a full handshake; nothing failed on the way."""
    failed = dict(fleet.server.statistics.handshakes_failed)
    client = connect(fleet, config, path="again")
    assert not resumed(client)
    assert fleet.server.statistics.handshakes_failed == failed
    assert session_of(client) != config.session
    return client
