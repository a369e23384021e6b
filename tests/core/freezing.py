"""What the tests of freezing share: fleets whose server freezes, and what its events say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sansdtls import (
    ClientConfig,
    Connection,
    ConnectionFrozen,
    ConnectionIdPolicy,
    ConnectionOffered,
    ConnectionState,
    ConnectionTerminated,
    ConnectionThawed,
    DataReceived,
    HandshakeCompleted,
    Limits,
    PathChanged,
    PskRequested,
    Server,
    ServerConfig,
)
from sansdtls.saved_paths import encode_path
from sansdtls.snapshot import decode_snapshot
from sansdtls.testing import Client, CounterEntropy, Fleet, Network

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from sansdtls import Negotiated, Peer
    from sansdtls.saved import SavedAssociation

FREEZE_AFTER = 10.0
KEYS = {b"dev%d" % number: [bytes([number]) * 16] for number in range(20)}
NO_ID = None
ONLY_OUR_ID = ConnectionIdPolicy(length=0)
BOTH_IDS = ConnectionIdPolicy(length=3)


def config_of(number: int, **more: Any) -> ClientConfig:
    """A device with identity ``dev<number>``, found by its connection ID unless it says otherwise.

    It never ends an association of its own accord.
    """
    options = {
        "psk_identity": b"dev%d" % number,
        "psk_key": bytes([number]) * 16,
        "connection_id": ONLY_OUR_ID,
        "limits": Limits(idle_timeout=None, idle_timeout_with_connection_id=None),
    }
    return ClientConfig(**{**options, **more})


def freezing_fleet(
    *,
    network: Network | None = None,
    seed: int = 0,
    store: Any = None,
    durable: bool = False,
    generation: int = 0,
    limits: Limits | None = None,
    **server: Any,
) -> Fleet:
    """With a server that freezes after :data:`FREEZE_AFTER`, unless ``server`` says otherwise."""
    config = ServerConfig(**{"freeze_after": FREEZE_AFTER, "limits": limits or Limits(), **server})
    fleet = Fleet(config, keys=KEYS, network=network, seed=seed)
    replace_server(fleet, config, store=store, durable=durable, generation=generation, seed=seed)
    return fleet


def replace_server(fleet: Fleet, config: ServerConfig, *, seed: int = 77, **more: Any) -> Server:
    """As after a restart of the service. What clients send meanwhile finds the new one."""
    fleet.server = Server(config, entropy=CounterEntropy(2 * seed + 1001), now=fleet.now, **more)
    return fleet.server


def connect(fleet: Fleet, number: int, path: Hashable = None, **more: Any) -> Client:
    """A device that has just completed its handshake and sent one record, so nothing waits to be repeated."""
    path = ("device", number) if path is None else path
    client = fleet.connect(config_of(number, **more), path)
    fleet.run_until(lambda: client.connection.state is not ConnectionState.HANDSHAKING)
    assert client.connection.state is ConnectionState.CONNECTED, client.cause
    say(fleet, client, b"hello")
    return client


def say(fleet: Fleet, client: Client, data: bytes) -> None:
    """The device sends, and the server has it."""
    before = len(fleet.server_events)
    fleet.network.send(client.path, fleet.server_path, record_of(fleet, client, data))
    fleet.run_until(
        lambda: any(
            isinstance(event, DataReceived) and event.data == data for event in fleet.server_events[before:]
        ),
        deadline=1,
    )


def record_of(fleet: Fleet, client: Client, data: bytes) -> bytes:
    """The next datagram of the device, which nobody gets."""
    client.connection.send(data, now=fleet.now)
    (outgoing,) = client.connection.datagrams_to_send()
    return outgoing.data


def freeze(fleet: Fleet, *clients: Client) -> list[bytes]:
    """Wait until all are asleep; the handles of these, in their order."""
    fleet.run_for(FREEZE_AFTER)
    assert len(fleet.server) == 0
    latest = {
        event.connection.peer.psk_identity: event.handle
        for event in frozen_events(fleet)
        if event.connection.peer is not None
    }
    return [latest[identity_of(client)] for client in clients]


def negotiated_of(connection: Connection) -> Negotiated:
    assert connection.negotiated is not None
    return connection.negotiated


def peer_of(connection: Connection) -> Peer:
    assert connection.peer is not None
    return connection.peer


def identity_of(client: Client) -> bytes:
    assert client.connection.peer is not None
    assert client.connection.peer.psk_identity is not None
    return client.connection.peer.psk_identity


def frozen_events(fleet: Fleet) -> list[ConnectionFrozen]:
    return [event for event in fleet.server_events if isinstance(event, ConnectionFrozen)]


def told(events: Sequence[Any]) -> list[Any]:
    """Events as short words: what happened, in order."""
    words: list[Any] = []
    for event in events:
        match event:
            case DataReceived():
                words.append(event.data)
            case ConnectionFrozen():
                words.append("frozen")
            case ConnectionThawed():
                words.append("thawed")
            case ConnectionTerminated():
                words.append(event.cause)
            case HandshakeCompleted():
                words.append("completed")
            case PathChanged():
                words.append(("moved", event.new))
            case PskRequested() | ConnectionOffered():
                pass
            case _:
                words.append(type(event).__name__)
    return words


def received(fleet: Fleet) -> list[bytes]:
    """All application data that the server has delivered."""
    return [event.data for event in fleet.server_events if isinstance(event, DataReceived)]


def only(fleet: Fleet) -> Connection:
    """The one live association."""
    (connection,) = fleet.server.connections
    return connection


def blob_in_store(fleet: Fleet, handle: bytes, keys: tuple[bytes, ...] = ()) -> SavedAssociation:
    """What is frozen under ``handle``; it stays there."""
    store = fleet.server._freezer.store
    blob = store.take(handle)
    assert blob is not None
    saved = decode_snapshot(blob, keys=keys)
    store.put(handle, encode_path(saved.path), blob)
    return saved
