"""Many peers of one server: restarts, strangers, stalls, statistics."""

import pytest

from sansdtls import (
    AuthenticationFailed,
    AuthenticationProblem,
    ClientConfig,
    ConnectionState,
    ConnectionTerminated,
    DataReceived,
    DiscardReason,
    ExtendedMasterSecret,
    HandshakeCompleted,
    LocalClose,
    PeerAlert,
    PeerClose,
    ProtocolViolation,
    PskRequested,
    ServerConfig,
)
from sansdtls.testing import Client, Network, Pair
from tests.core import raw
from tests.core.failures import FAILURES, fail_by_local_close
from tests.core.fleets import client_config, connect, fleet_with
from tests.core.puppet import IDENTITY, KEY, PuppetClient, ServerRig

# --- a new hello on a live path -----------------------------------------------------------------------


def restarted(pair: Pair, **more) -> Client:
    return pair.connect(ClientConfig(psk_identity=IDENTITY, psk_key=KEY, **more))


def test_a_restarted_client_replaces_its_association_only_at_its_finished():
    puppet = PuppetClient().handshake()
    rig = puppet.rig
    (old,) = rig.server.connections
    again = PuppetClient(rig)
    again.random = b"n" * 32
    again.hello()
    puppet.give(puppet.data(b"old lives"))
    again.give(again.key_exchange(), again.change_cipher_spec())
    puppet.give(puppet.data(b"old still lives"))
    assert rig.causes == []
    again.read_finished(again.give(again.finished()))
    assert old.state is ConnectionState.CLOSED
    kinds = [event for event in rig.events if isinstance(event, HandshakeCompleted | ConnectionTerminated)]
    assert isinstance(kinds[1], ConnectionTerminated)
    assert kinds[1].cause == PeerClose(replaced=True)
    assert kinds[1].connection is old
    assert isinstance(kinds[2], HandshakeCompleted)
    (new,) = rig.server.connections
    assert kinds[2].connection is new
    before = list(rig.received)
    puppet.give(puppet.data(b"old is dead"))
    again.give(again.data(b"new lives"))
    assert rig.received == [*before, b"new lives"]
    assert rig.server.statistics.associations == 1


def test_a_new_handshake_that_fails_leaves_the_old_association_alone():
    for fail, name in FAILURES.items():
        puppet = PuppetClient().handshake()
        rig = puppet.rig
        (old,) = rig.server.connections
        again = PuppetClient(rig)
        again.random = b"n" * 32
        if fail is fail_by_local_close:
            rig.events.clear()
        fail(again)
        assert rig.server.statistics.handshakes_failed == {name: 1}
        assert old.state is ConnectionState.CONNECTED, name
        puppet.give(puppet.data(b"old lives"))
        assert rig.received == [b"old lives"], name
        assert rig.server.statistics.half_open == 0
        assert rig.server.statistics.associations == 1


@pytest.mark.parametrize("steps", range(9))
def test_a_client_may_restart_at_any_point_of_its_life(steps):
    pair = Pair(network=Network(delay=0.01))
    for _ in range(steps):
        pair.step()
    again = restarted(pair)
    pair.run_until(lambda: again.connection.state is ConnectionState.CONNECTED, deadline=30)
    again.connection.send(b"back", now=pair.now)
    pair.run_for(1)
    assert pair.server_received()[-1:] == [b"back"]
    pair.run_for(200)
    assert len(pair.server) == 1
    assert pair.server.statistics.half_open == 0


def test_a_client_may_restart_over_and_over():
    pair = Pair()
    for _ in range(20):
        client = restarted(pair)
        pair.run_for(0.01)
    pair.run_until(lambda: client.connection.state is ConnectionState.CONNECTED)
    pair.run_for(300)
    assert len(pair.server) == 1
    assert pair.server.statistics.half_open == 0


def test_a_live_association_survives_a_thousand_hellos_of_strangers_with_its_address():
    puppet = PuppetClient().handshake()
    for number in range(1000):
        hello = raw.client_hello(random=number.to_bytes(32, "big"))
        puppet.rig.give(raw.record(22, raw.fragment(1, hello), seq=number))
    puppet.give(puppet.data(b"unmoved"))
    assert puppet.rig.received == [b"unmoved"]
    assert puppet.rig.server.statistics.half_open == 0


def test_both_the_old_association_and_the_handshake_beside_it_get_their_own_records():
    puppet = PuppetClient().handshake()
    rig = puppet.rig
    again = PuppetClient(rig)
    again.random = b"n" * 32
    again.hello()
    again.give(again.key_exchange())
    again.give(again.change_cipher_spec())
    for number in range(5):
        puppet.give(puppet.data(b"%d" % number))
    again.give(raw.record(23, bytes(50), epoch=1, seq=70))
    assert rig.received == [b"%d" % number for number in range(5)]
    again.read_finished(again.give(again.finished()))
    assert rig.causes == [PeerClose(replaced=True)]
    assert len(rig.server) == 1


def test_a_hello_of_a_handshake_that_is_over_is_dropped_when_it_comes_again():
    puppet = PuppetClient()
    puppet.get_cookie()
    hello = puppet.message(raw.CLIENT_HELLO, puppet.hello_body())
    puppet.read_server_flight(puppet.give(hello))
    puppet.finish()
    events = len(puppet.rig.events)
    for _ in range(3):
        assert puppet.give(hello) == []
    assert len(puppet.rig.events) == events
    assert puppet.rig.server.statistics.half_open == 0


def test_a_key_for_a_connection_that_was_replaced_meanwhile_changes_nothing():
    rig = ServerRig()
    rig.answer_requests = False
    first = PuppetClient(rig)
    first.hello()
    first.give(first.key_exchange())
    (request,) = [event for event in rig.events if isinstance(event, PskRequested)]
    again = PuppetClient(rig)
    again.random = b"n" * 32
    again.hello()
    rig.wait(0)
    assert PeerClose(replaced=True) in rig.causes
    assert request.connection.provide_psk(request, [KEY], now=rig.now) == []
    assert rig.server.statistics.half_open == 1


# --- many peers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stall_at", [1, 2])
def test_one_stalled_peer_does_not_hurt_a_hundred_others(stall_at):
    fleet = fleet_with()
    stalled = fleet.connect(client_config(200), path="stalled")
    fleet.network.add_tap(
        lambda sent: [] if sent.source == "stalled" and sent.number >= stall_at else [sent.data]
    )
    clients = [fleet.connect(client_config(number), path=number) for number in range(100)]
    fleet.run_until(lambda: all(c.connection.state is ConnectionState.CONNECTED for c in clients), deadline=1)
    assert stalled.connection.state is ConnectionState.HANDSHAKING
    assert len(fleet.server) == 100
    fleet.run_for(200)
    assert fleet.server.statistics.half_open == 0
    assert fleet.server.next_timeout() is not None, "idle deadlines of a hundred"
    for number, client in enumerate(clients):
        client.connection.send(b"%d" % number, now=fleet.now)
    fleet.run_for(1)
    assert sorted(fleet.server_received(), key=int) == [b"%d" % number for number in range(100)]


def test_a_server_with_one_slow_key_store_still_serves_the_others():
    fleet = fleet_with()
    fleet.psk_after = None
    fleet.connect(client_config(0), path="slow")
    fleet.run_for(0.1)
    fleet.psk_after = 0.0
    connect(fleet, 1)
    assert len(fleet.server) == 1


def test_events_and_data_carry_the_right_connection():
    fleet = fleet_with()
    clients = [connect(fleet, number) for number in range(3)]
    for number, client in enumerate(clients):
        client.connection.send(b"%d" % number, now=fleet.now)
    fleet.run_for(1)
    for event in fleet.server_events:
        if isinstance(event, DataReceived):
            assert event.connection.path == ("host", int(event.data))
            assert event.connection.peer is not None
            assert event.connection.peer.psk_identity == b"dev" + event.data
    assert {connection.path for connection in fleet.server.connections} == {("host", n) for n in range(3)}


def test_a_datagram_from_a_path_without_association_is_counted_and_nothing_else():
    rig = ServerRig()
    for data in (
        b"",
        b"x",
        raw.record(23, b"data", epoch=1),
        raw.record(21, b"\2\50"),
        raw.record(20, b"\1"),
    ):
        assert rig.give(data) == []
    assert rig.events == []
    assert rig.server.statistics.datagrams_received == 5
    assert sum(rig.server.statistics.records_discarded.values()) >= 3
    assert rig.server.statistics.records_discarded[DiscardReason.UNKNOWN_ASSOCIATION] >= 3


def test_all_connections_can_be_closed_at_once():
    fleet = fleet_with()
    clients = [connect(fleet, number) for number in range(5)]
    for connection in list(fleet.server.connections):
        connection.close(now=fleet.now)
    fleet.run_for(1)
    assert fleet.server_causes() == [LocalClose()] * 5
    assert [client.cause for client in clients] == [PeerClose()] * 5
    assert len(fleet.server) == 0
    assert fleet.server.next_timeout() is None


# --- statistics ---------------------------------------------------------------------------------------


def test_statistics_add_up():
    fleet = fleet_with()
    clients = [connect(fleet, number) for number in range(4)]
    for client in clients:
        client.connection.send(b"12345", now=fleet.now)
    fleet.run_for(0.1)
    for connection in fleet.server.connections:
        connection.send(b"123", now=fleet.now)
    fleet.run_for(0.1)
    statistics = fleet.server.statistics
    assert statistics.cookies_sent == statistics.handshakes_started == statistics.handshakes_completed == 4
    assert statistics.associations == 4
    assert statistics.half_open == statistics.cookies_bad == statistics.evictions == 0
    assert statistics.handshakes_failed == {}
    assert statistics.datagrams_received == len(
        [1 for entry in fleet.network.log if entry.datagram.destination == "server"]
    )
    assert statistics.datagrams_sent == len(fleet.network.sent_by("server"))
    for client, connection in zip(clients, fleet.server_connections(), strict=True):
        mine, theirs = client.connection.statistics, connection.statistics
        assert (
            (mine.records_sent, mine.bytes_sent) == (theirs.records_received, theirs.bytes_received) == (1, 5)
        )
        assert (
            (mine.records_received, mine.bytes_received) == (theirs.records_sent, theirs.bytes_sent) == (1, 3)
        )
        assert mine.retransmissions == theirs.retransmissions == mine.mac_failures == theirs.mac_failures == 0
        assert mine.datagrams_sent == len(fleet.network.sent_by(client.path))
        assert mine.datagrams_received == len(fleet.network.sent_by("server", to=client.path))
        # The first hello and the second come before there is a connection.
        assert theirs.datagrams_received == len(fleet.network.sent_by(client.path)) - 2


def test_retransmissions_are_counted_on_both_sides():
    pair = Pair()
    pair.network.drop("server", 1)  # flight 4
    pair.handshake()
    assert pair.client.statistics.retransmissions == 1
    assert pair.server.statistics.retransmissions == pair.server_connection.statistics.retransmissions == 1


def test_failures_keep_what_the_operator_needs():
    pair = Pair(ClientConfig(psk_identity=b"\xffevil\n", psk_key=KEY))
    pair.run_for(20)
    assert pair.server_causes() == [
        AuthenticationFailed(AuthenticationProblem.UNKNOWN_IDENTITY, b"\xffevil\n")
    ]


def test_a_violation_by_a_connected_peer_ends_its_association_only():
    rig = ServerRig()
    one, other = PuppetClient(rig, path="one").handshake(), PuppetClient(rig, path="other")
    other.random = b"o" * 32
    other.handshake()
    one.give(one.message(raw.SERVER_HELLO_DONE, b"", epoch=1))
    (cause,) = rig.causes
    assert isinstance(cause, ProtocolViolation)
    other.give(other.data(b"unharmed"))
    assert rig.received == [b"unharmed"]
    assert len(rig.server) == 1


def test_a_fatal_alert_of_a_connected_peer_ends_its_association():
    puppet = PuppetClient().handshake()
    puppet.give(puppet.alert(2, 80, epoch=1))
    (cause,) = puppet.rig.causes
    assert cause == PeerAlert(80)
    assert puppet.rig.server.statistics.handshakes_failed == {}
    assert puppet.rig.server.statistics.associations == 0


def test_a_server_that_requires_extended_master_secret_counts_who_lacks_it():
    rig = ServerRig(ServerConfig(extended_master_secret=ExtendedMasterSecret.REQUIRED))
    puppet = PuppetClient(rig, ems=False)
    puppet.get_cookie()
    puppet.give(puppet.message(raw.CLIENT_HELLO, puppet.hello_body()))
    puppet.wait(0)
    assert rig.server.statistics.handshakes_failed == {"PeerIncompatible": 1}
