"""A server that freezes beside one that does not: whatever happens, both deliver the same to the same.

One is also stopped and started again; the other never. Datagrams are held back, repeated, forged and lost alike in both.
"""

from __future__ import annotations

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

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
    ReturnRoutability,
    Server,
    ServerConfig,
)
from sansdtls.testing import CounterEntropy
from tests.core import raw
from tests.core.freezing import BOTH_IDS, KEYS, NO_ID, ONLY_OUR_ID, config_of

DEVICES = (
    NO_ID,
    ONLY_OUR_ID,
    BOTH_IDS,
    ConnectionIdPolicy(length=2, return_routability=ReturnRoutability.OFF),
)
IDLE_TIMEOUT = 120.0
LIMITS = Limits(
    idle_timeout=IDLE_TIMEOUT, idle_timeout_with_connection_id=2 * IDLE_TIMEOUT, max_failed_opens=12
)
SEALED_UNDER = (b"k" * 32,)
SHORT = 3.0
"""Seconds of silence until one of the two freezes."""


@attrs.define
class Device:
    """A client, where it is, and what it has received."""

    config: ClientConfig
    path: object
    connection: Connection
    received: list[bytes] = attrs.field(factory=list)


class World:
    """One server with its devices."""

    def __init__(self, freeze_after: float | None):
        self.config = ServerConfig(
            freeze_after=freeze_after, limits=LIMITS, snapshot_keys=SEALED_UNDER if freeze_after else ()
        )
        self.now = 0.0
        self.entropy = CounterEntropy(8)
        self.server = Server(self.config, entropy=self.entropy, now=0.0)
        self.devices: list[Device] = []
        self.live: dict[bytes, Connection] = {}
        self.asleep: dict[bytes, bytes] = {}
        self.told: dict[bytes, list[object]] = {identity: [] for identity in KEYS}
        self.heard_at: dict[bytes, object] = {}
        self.held: list[tuple[object, bytes]] = []
        for number, ids in enumerate(DEVICES):
            config = config_of(number, connection_id=ids)
            self.devices.append(Device(config, ("device", number), self._client(config, number)))
            self.exchange()

    def _client(self, config: ClientConfig, seed: int) -> Connection:
        return Connection.client(config, entropy=CounterEntropy(1000 + seed), now=self.now, path="server")

    def take(self, events) -> None:
        for event in events:
            if isinstance(event, ConnectionOffered):
                self.server.accept(event, now=self.now)
                continue
            connection = event.connection
            identity = b"" if connection.peer is None else connection.peer.psk_identity
            match event:
                case PskRequested():
                    self.take(connection.provide_psk(event, KEYS[event.identity], now=self.now))
                case ConnectionFrozen():
                    assert self.live.pop(identity) is connection
                    self.asleep[identity] = event.handle
                case ConnectionThawed():
                    if self.asleep.get(identity) == event.handle:
                        del self.asleep[identity]
                        self.live[identity] = connection
                case HandshakeCompleted():
                    self.live[identity] = connection
                    self.heard_at[identity] = connection.path
                    self.told[identity].append("completed")
                case ConnectionTerminated():
                    if self.live.get(identity) is connection:
                        del self.live[identity]
                    self.told[identity].append(event.cause)
                case DataReceived():
                    assert self.live[identity] is connection
                    self.told[identity].append(event.data)
                case PathChanged():
                    self.heard_at[identity] = event.new
                    self.told[identity].append(("moved", event.new))

    def give(self, path, data: bytes) -> None:
        self.take(self.server.receive_datagram(data, path=path, now=self.now))
        self.exchange()

    def exchange(self) -> None:
        """Carry what both sides answer, until nothing is left."""
        while True:
            for device in self.devices:
                for outgoing in device.connection.datagrams_to_send():
                    events = self.server.receive_datagram(outgoing.data, path=device.path, now=self.now)
                    self.take(events)
            answers = self.server.datagrams_to_send()
            if not answers:
                return
            for outgoing in answers:
                for device in self.devices:
                    if device.path == outgoing.path:
                        events = device.connection.receive_datagram(
                            outgoing.data, now=self.now, path="server"
                        )
                        device.received += [event.data for event in events if isinstance(event, DataReceived)]

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            due = [self.server.next_timeout(), *(device.connection.next_timeout() for device in self.devices)]
            first = min((moment for moment in due if moment is not None), default=end + 1)
            if first > end:
                break
            self.now = max(self.now, first)
            self.take(self.server.handle_timeout(now=self.now))
            for device in self.devices:
                device.connection.handle_timeout(now=self.now)
            self.exchange()
        self.now = end

    # --- what happens ---

    def device_sends(self, number: int, data: bytes) -> None:
        device = self.devices[number]
        if device.connection.state is ConnectionState.CONNECTED:
            device.connection.send(data, now=self.now)
        self.held += [(device.path, outgoing.data) for outgoing in device.connection.datagrams_to_send()]

    def server_sends(self, number: int, data: bytes, *, lost: bool) -> None:
        identity = b"dev%d" % number
        connection = self.live.get(identity)
        if connection is None and identity in self.asleep:
            connection = self.server.wake(self.asleep[identity], now=self.now)
            self.take(self.server.handle_timeout(now=self.now))
            assert self.live[identity] is connection
        if connection is not None:
            connection.send(data, now=self.now)
            if lost:
                self.server.datagrams_to_send()
        self.exchange()

    def forge(self, number: int, content: bytes, *, from_elsewhere: bool) -> None:
        """As if by one who sees the device's records: with its ID, from its address or another one."""
        device = self.devices[number]
        peers_id = device.connection.peer_connection_id
        kind = raw.TLS12_CID if peers_id else raw.APPLICATION_DATA
        record = raw.record(kind, content, epoch=1, seq=5000, connection_id=peers_id)
        self.give("elsewhere" if from_elsewhere and peers_id else device.path, record)

    def move(self, number: int, path: object) -> None:
        self.devices[number].path = path
        # An answer to what was said before finds nobody.

    def restart_device(self, number: int, seed: int) -> None:
        device = self.devices[number]
        # Where it was last heard: from elsewhere its old association would stay, and two be its.
        device.path = self.heard_at[b"dev%d" % number]
        device.connection = self._client(device.config, 100 + seed)
        self.exchange()

    def close(self, number: int) -> None:
        self.devices[number].connection.close(now=self.now)
        self.exchange()

    def restart_service(self) -> None:
        """All goes into blobs and comes out of them in another process."""
        self.take(self.server.handle_timeout(now=self.now))
        self.exchange()
        half_open = self.server.statistics.half_open
        blobs = list(self.server.freeze_all(now=self.now))
        self.server = Server(self.config, entropy=self.entropy, now=self.now)
        assert half_open == 0
        self.live.clear()
        self.asleep.clear()
        for blob in blobs:
            restored = self.server.restore(blob, now=self.now)
            assert restored.peer.psk_identity is not None
            self.asleep[restored.peer.psk_identity] = restored.handle


devices = st.integers(0, len(DEVICES) - 1)


class Both(RuleBasedStateMachine):
    """What is done to one is done to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.freezing, self.other = World(SHORT), World(None)
        self.count = 0

    @property
    def worlds(self) -> tuple[World, World]:
        return self.freezing, self.other

    @rule(number=devices, deliver=st.booleans())
    def a_device_sends(self, number, deliver):
        self.count += 1
        for world in self.worlds:
            world.device_sends(number, b"up %d" % self.count)
            if deliver and world.held:
                world.give(*world.held[-1])

    @rule(which=st.integers(0, 30))
    def one_that_was_held_back_or_delivered_arrives(self, which):
        for world in self.worlds:
            if world.held:
                world.give(*world.held[-1 - which % len(world.held)])

    @rule(number=devices, lost=st.booleans())
    def the_server_sends(self, number, lost):
        self.count += 1
        for world in self.worlds:
            world.server_sends(number, b"down %d" % self.count, lost=lost)

    @rule(seconds=st.sampled_from([0.5, 2.9, 3.0, 3.1, 20.0, 119.0, 250.0]))
    def time_passes(self, seconds):
        for world in self.worlds:
            world.advance(seconds)

    @rule(number=devices, content=st.binary(max_size=60), from_elsewhere=st.booleans())
    def somebody_forges_a_record(self, number, content, from_elsewhere):
        for world in self.worlds:
            world.forge(number, content, from_elsewhere=from_elsewhere)

    @rule(number=st.integers(1, len(DEVICES) - 1), place=st.integers(0, 1))
    def a_device_moves(self, number, place):
        for world in self.worlds:
            world.move(number, ("place", number, place))

    @rule(number=devices)
    def a_device_loses_its_state(self, number):
        self.count += 1
        for world in self.worlds:
            world.restart_device(number, self.count)

    @rule(number=devices)
    def a_device_closes(self, number):
        for world in self.worlds:
            world.close(number)

    @rule()
    def the_service_is_started_anew(self):
        self.freezing.restart_service()

    @invariant()
    def they_have_told_the_same(self):
        assert self.freezing.told == self.other.told
        for mine, others in zip(self.freezing.devices, self.other.devices, strict=True):
            assert mine.received == others.received
            assert mine.connection.state is others.connection.state

    @invariant()
    def each_association_is_in_one_place(self):
        world = self.freezing
        assert len(world.server) == len(world.live)
        assert world.server.frozen == len(world.asleep)
        assert not set(world.live) & set(world.asleep)
        assert set(world.live) | set(world.asleep) == set(self.other.live)
        statistics = world.server.statistics
        assert (statistics.associations, statistics.frozen) == (len(world.live), len(world.asleep))
        assert len(world.server._routes._by_connection_id) == sum(
            bool(connection.connection_id) for connection in world.live.values()
        )


Both.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestBoth = Both.TestCase
