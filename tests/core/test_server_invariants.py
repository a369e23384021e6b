"""Everything that can happen to a server, in any order: its tables, gauges and events always agree.

Limits are so small that they are always reached, and there are paths that cannot be saved. What a caller may do is done
at any moment; datagrams are repeated, altered, lost and held back.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

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
    LocalClose,
    PathChangeRequested,
    PathPolicy,
    PskRequested,
    ReturnRoutability,
    Server,
    ServerConfig,
    SnapshotError,
    WrongState,
)
from sansdtls.testing import CounterEntropy
from tests.core.freezing import KEYS, config_of, connect, freezing_fleet, only, told
from tests.core.nonce_ledger import NonceLedger

if TYPE_CHECKING:
    from sansdtls import Checkpoint, Event
    from sansdtls.testing import Client, Fleet

LIMITS = Limits(
    max_associations=3,
    max_frozen=3,
    max_half_open=2,
    stale_after=20.0,
    idle_timeout=400.0,
    idle_timeout_with_connection_id=800.0,
    max_failed_opens=6,
)
OFF = ReturnRoutability.OFF
DEVICES = (
    None,
    ConnectionIdPolicy(length=0, return_routability=OFF),
    ConnectionIdPolicy(length=0),
    ConnectionIdPolicy(length=3),
    None,
)
POLICIES = (
    None,
    ConnectionIdPolicy(length=1, path_policy=PathPolicy.APPLICATION),
    ConnectionIdPolicy(return_routability=ReturnRoutability.ENHANCED, padding=16),
    ConnectionIdPolicy(length=0),
    ConnectionIdPolicy(),
)
PATHS = (("net", 1), ("net", 2), ("net", 3), ("net", 4), frozenset({"cannot be saved"}))
KEY_LISTS = ((b"a" * 32, b"b" * 32), (b"b" * 32, b"a" * 32))
TURNS = 60
"""Of an exchange, or of a clock that stands still, before it counts as endless."""

devices = st.integers(0, len(DEVICES) - 1)
paths = st.sampled_from(PATHS)


@attrs.define
class Device:
    """A client and where it is."""

    config: ClientConfig
    path: object
    connection: Connection | None = None


class AnyOrder(RuleBasedStateMachine):
    """One server, five devices, somebody on the network, and a caller with odd habits."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        NonceLedger().keep(self.patch)
        self.now = 100.0
        self.config = ServerConfig(limits=LIMITS, freeze_after=5.0, snapshot_keys=KEY_LISTS[0])
        self.server = Server(self.config, entropy=CounterEntropy(1), now=self.now, generation=1, durable=True)
        self.devices = [
            Device(config_of(number, connection_id=policy), PATHS[number])
            for number, policy in enumerate(DEVICES)
        ]
        self.count = 0
        self.live: set[Connection] = set()
        self.over: set[Connection] = set()
        self.delivered: set[bytes] = set()
        self.offers: list[ConnectionOffered] = []
        self.asked: list[PskRequested | PathChangeRequested] = []
        self.blobs: list[bytes] = []
        self.used: list[bytes] = []
        self.handles: set[bytes] = set()
        self.seen: list[tuple[bytes, object]] = []
        self.taken: list[Checkpoint] = []
        self.hesitates = False
        for number in (0, 1, 3):
            self.begin(number, PATHS[number])
            self.speak(number, None, lost=False)

    def teardown(self) -> None:
        self.patch.undo()

    # --- what the caller is told ---

    def take(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, ConnectionOffered):
                self.offers.append(event)
                continue
            connection = event.connection
            assert connection not in self.over, f"{event!r} after the last event"
            match event:
                case PskRequested() | PathChangeRequested():
                    self.asked.append(event)
                case HandshakeCompleted():
                    assert connection not in self.live
                    self.live.add(connection)
                case ConnectionThawed():
                    assert connection not in self.live
                    self.live.add(connection)
                    self.handles.add(event.handle)
                case ConnectionFrozen():
                    assert connection.state is ConnectionState.FROZEN
                    self.live.remove(connection)
                    self.over.add(connection)
                    self.handles.add(event.handle)
                case ConnectionTerminated():
                    assert connection.state is ConnectionState.CLOSED
                    self.live.discard(connection)
                    self.over.add(connection)
                case DataReceived():
                    assert connection in self.live
                    assert event.data not in self.delivered, "delivered twice"
                    self.delivered.add(event.data)
        if not self.hesitates:
            self.answer()

    def answer(self) -> None:
        while self.offers:
            self.server.accept(self.offers.pop(0), now=self.now)
        while self.asked:
            request = self.asked.pop(0)
            if isinstance(request, PathChangeRequested):
                self.take(request.connection.confirm_path(request, now=self.now))
            else:
                self.take(request.connection.provide_psk(request, KEYS[request.identity], now=self.now))

    # --- the network ---

    def give(self, data: bytes, path: object) -> None:
        self.take(self.server.receive_datagram(data, path=path, now=self.now))

    def exchange(self) -> None:
        for _ in range(TURNS):
            moved = False
            for device in self.devices:
                if device.connection is None:
                    continue
                for outgoing in device.connection.datagrams_to_send():
                    moved = True
                    self.seen.append((outgoing.data, device.path))
                    self.give(outgoing.data, device.path)
            for outgoing in self.server.datagrams_to_send():
                moved = True
                for device in self.devices:
                    if device.connection is not None and device.path == outgoing.path:
                        device.connection.receive_datagram(outgoing.data, now=self.now, path="server")
            if not moved:
                return
        raise AssertionError("they answer each other for ever")

    @rule(number=devices, path=paths, hesitates=st.booleans())
    def a_device_begins_anew(self, number, path, hesitates):
        self.hesitates = hesitates
        self.begin(number, path)
        self.hesitates = False

    def begin(self, number: int, path: object) -> None:
        self.count += 1
        device = self.devices[number]
        device.path = path
        device.connection = Connection.client(
            device.config, entropy=CounterEntropy(100 + self.count), now=self.now, path="server"
        )
        self.exchange()

    @rule(number=devices, path=st.none() | paths, lost=st.booleans())
    def a_device_speaks(self, number, path, lost):
        self.speak(number, path, lost=lost)

    def speak(self, number: int, path: object, *, lost: bool) -> None:
        device = self.devices[number]
        if device.connection is None or device.connection.state is not ConnectionState.CONNECTED:
            return
        self.count += 1
        device.path = device.path if path is None else path
        device.connection.send(b"up %d" % self.count, now=self.now)
        if lost:
            self.seen += [(one.data, device.path) for one in device.connection.datagrams_to_send()]
        self.exchange()

    @rule(number=devices)
    def a_device_closes(self, number):
        connection = self.devices[number].connection
        if connection is not None:
            connection.close(now=self.now)
        self.exchange()

    @precondition(lambda self: self.seen)
    @rule(data=st.data(), path=paths, damage=st.booleans())
    def somebody_repeats_a_datagram(self, data, path, damage):
        datagram, _ = data.draw(st.sampled_from(self.seen[-20:]))
        if damage:
            datagram = datagram[:-1] + bytes([datagram[-1] ^ 1])
        self.give(datagram, path)
        self.exchange()

    @rule(path=paths, junk=st.binary(max_size=40), kind=st.sampled_from([20, 21, 22, 23, 25, 27]))
    def somebody_sends_junk(self, path, junk, kind):
        self.give(bytes([kind]) + b"\xfe\xfd\x00\x01" + junk, path)
        self.exchange()

    @rule(seconds=st.sampled_from([0.5, 5.0, 5.0, 5.0, 21.0, 130.0, 241.0, 801.0]))
    def time_passes(self, seconds):
        self.now += seconds
        for _ in range(TURNS):
            due = self.server.next_timeout()
            if due is None or due > self.now:
                break
            self.take(self.server.handle_timeout(now=self.now))
        else:
            raise AssertionError("always due at once")
        for device in self.devices:
            if device.connection is not None:
                device.connection.handle_timeout(now=self.now)
        self.exchange()

    # --- the caller ---

    @rule()
    def the_caller_answers(self):
        self.answer()
        self.exchange()

    @rule(data=st.data(), length=st.integers(0, 20))
    def the_caller_sends(self, data, length):
        if connection := self.choose(data):
            with contextlib.suppress(WrongState):
                connection.send(b"d" * length, now=self.now)
                connection.annotation = b"sent"
        self.exchange()

    @rule(data=st.data())
    def the_caller_closes(self, data):
        if connection := self.choose(data):
            connection.close(now=self.now)
        self.exchange()

    @rule(data=st.data())
    def the_caller_freezes(self, data):
        if connection := self.choose(data):
            with contextlib.suppress(WrongState, SnapshotError):
                self.blobs.append(self.server.freeze(connection, now=self.now))
                self.live.remove(connection)
                self.over.add(connection)

    @precondition(lambda self: self.handles)
    @rule(data=st.data(), close=st.booleans(), speaks=st.booleans())
    def the_caller_wakes(self, data, close, speaks):
        handle = data.draw(
            st.sampled_from(sorted(self.server._freezer.store.handles()) or sorted(self.handles))
        )
        connection = self.server.wake(handle, now=self.now)
        if connection is not None and close:
            connection.close(now=self.now)
        if connection is not None and speaks and connection.peer is not None:
            self.speak(int((connection.peer.psk_identity or b"")[3:]), None, lost=False)

    @precondition(lambda self: self.blobs)
    @rule(live=st.booleans())
    def the_caller_puts_one_back(self, live):
        blob = self.blobs.pop(0)
        with contextlib.suppress(SnapshotError):
            if live:
                self.live.add(self.server.thaw(blob, now=self.now))
            else:
                self.handles.add(self.server.restore(blob, now=self.now).handle)
            self.used.append(blob)

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def the_caller_puts_back_what_is_used_up(self, data):
        blob = data.draw(st.sampled_from(self.used))
        if blob in self.blobs:
            return
        with pytest.raises(SnapshotError):
            self.server.restore(blob, now=self.now)

    @rule(stop_after=st.none() | st.just(1))
    def the_caller_takes_all_out(self, stop_after):
        self.take(self.server.handle_timeout(now=self.now))  # events that wait would be lost
        for taken, blob in enumerate(self.server.freeze_all(now=self.now), start=1):
            self.blobs.append(blob)
            if taken == stop_after:
                break
        gone = {connection for connection in self.live if connection.state is ConnectionState.FROZEN}
        self.live -= gone
        self.over |= gone

    @rule()
    def a_checkpoint_is_taken(self):
        self.taken.append(self.server.checkpoint(now=self.now))

    @precondition(lambda self: self.taken)
    @rule()
    def a_checkpoint_is_confirmed(self):
        self.server.confirm(self.taken.pop(0))

    @rule(
        policy=st.sampled_from(POLICIES),
        keys=st.sampled_from(KEY_LISTS),
        freeze_after=st.sampled_from([None, 5.0, 5.0, 1.0]),
    )
    def the_configuration_is_replaced(self, policy, keys, freeze_after):
        self.config = attrs.evolve(
            self.config, connection_id=policy, snapshot_keys=keys, freeze_after=freeze_after
        )
        self.server.replace_config(self.config, now=self.now)

    def choose(self, data) -> Connection | None:
        live = sorted(self.live, key=lambda connection: connection.server_random)
        return data.draw(st.sampled_from(live)) if live else None

    # --- what always holds ---

    @invariant()
    def the_caller_knows_who_is_there(self):
        waiting = {event.connection for event in self.server._members.events}
        there = set(self.server.connections)
        assert self.live - waiting == there - waiting
        assert len(self.server) == len(there)

    @invariant()
    def the_gauges_are_right(self):
        statistics = self.server.statistics
        routes = self.server._routes._by_path.values()
        assert statistics.associations == len(self.server) <= LIMITS.max_associations
        assert statistics.frozen == self.server.frozen <= LIMITS.max_frozen
        half_open = sum((route.half_open is not None) + (route.pending is not None) for route in routes)
        assert statistics.half_open == half_open <= LIMITS.max_half_open
        assert statistics.reassembly_size == 0

    @invariant()
    def the_tables_agree(self):
        routes, freezer = self.server._routes, self.server._freezer
        for path, route in routes._by_path.items():
            assert route.path == path
            assert route.in_use
        members = set(routes.established)
        for member in members:
            assert member.route.path == member.connection.path
            if not member.connection_id:
                assert routes._by_path[member.route.path].established is member
        for connection_id, member in routes._by_connection_id.items():
            assert member.connection_id == connection_id
            assert member in members or member.route.half_open is member
        assert sum(routes._id_lengths.values()) == len(routes._by_connection_id)
        frozen = list(freezer.store.handles())
        assert len(set(frozen)) == len(frozen) == self.server.frozen
        assert not set(frozen) & {self.server._members.handle_or_none(member) for member in members}
        assert freezer._by_path == sum(handle.startswith(b"p") for handle in frozen)
        assert len(self.server._members.ciphers) <= 2 * len(members)
        assert len(self.server._deadlines) <= 100


AnyOrder.TestCase.settings = settings(max_examples=100, stateful_step_count=50)
TestAnyOrder = AnyOrder.TestCase


def test_one_that_was_closed_and_is_then_replaced_ends_once():
    fleet = freezing_fleet()
    client = connect(fleet, 0)
    only(fleet).close(now=fleet.now)
    offered = connect_again(fleet, client)
    assert told(offered) == [LocalClose(), "completed"]
    assert told(fleet.server.handle_timeout(now=fleet.now)) == []


def test_a_handshake_that_was_closed_and_is_then_replaced_ends_once():
    fleet = freezing_fleet()
    fleet.psk_after = None
    first = fleet.connect(config_of(0), "device")
    fleet.run_until(lambda: any(isinstance(event, PskRequested) for event in fleet.server_events))
    (connection,) = fleet.server_connections("device")
    connection.close(now=fleet.now)
    fleet.psk_after = 0.0
    assert told(connect_again(fleet, first)) == [LocalClose(), "completed"]


def connect_again(fleet: Fleet, client: Client) -> list[Event]:
    """The device begins anew where it was, before any time passes; what the server tells."""
    before = len(fleet.server_events)
    again = Connection.client(config_of(0), entropy=CounterEntropy(9), now=fleet.now, path=fleet.server_path)
    while datagrams := again.datagrams_to_send():
        for outgoing in datagrams:
            events = fleet.server.receive_datagram(outgoing.data, path=client.path, now=fleet.now)
            fleet._take_server_events(events)
        for outgoing in fleet.server.datagrams_to_send():
            again.receive_datagram(outgoing.data, now=fleet.now)
    fleet._take_server_events(fleet.server.handle_timeout(now=fleet.now))
    return fleet.server_events[before:]
