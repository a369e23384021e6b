"""What the tests of the server share: a fleet of clients with keys of their own."""

from sansdtls import ClientConfig, ConnectionState, ConnectionTerminated, Limits, ServerConfig
from sansdtls.testing import Client, Fleet, Network

KEYS = {b"dev%d" % i: [bytes([i % 256]) * 16] for i in range(300)}


def client_config(number: int, **more) -> ClientConfig:
    return ClientConfig(psk_identity=b"dev%d" % number, psk_key=bytes([number % 256]) * 16, **more)


def fleet_with(limits: Limits | None = None, **network) -> Fleet:
    return Fleet(ServerConfig(limits=limits or Limits()), keys=KEYS, network=Network(**network))


def connect(fleet: Fleet, number: int) -> Client:
    client = fleet.connect(client_config(number), path=("host", number))
    fleet.run_until(lambda: client.connection.state is not ConnectionState.HANDSHAKING)
    assert client.connection.state is ConnectionState.CONNECTED
    return client


def cause_on_server(fleet: Fleet, path):
    return [
        event.cause
        for event in fleet.server_events
        if isinstance(event, ConnectionTerminated) and event.connection.path == path
    ]
