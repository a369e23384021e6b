"""Many peers: limits, slots, restarts, idle associations, statistics."""

import pytest

from sansdtls import (
    AuthenticationProblem,
    ClientConfig,
    ConnectionOffered,
    ConnectionState,
    ConnectionTerminated,
    DataReceived,
    DiscardReason,
    ExtendedMasterSecret,
    HandshakeCompleted,
    HandshakeTimeout,
    IdleTimeout,
    LimitExceeded,
    Limits,
    LocalClose,
    PeerAlert,
    PeerClose,
    ProtocolViolation,
    PskRequested,
    ServerConfig,
    WrongState,
)
from sansdtls.testing import Client, Fleet, Network, Pair
from tests.core import raw
from tests.core.puppet import IDENTITY, KEY, PuppetClient, ServerRig

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


# --- half-open handshakes -----------------------------------------------------------------------------


def test_no_more_handshakes_are_under_way_than_the_limit_allows():
    fleet = fleet_with(Limits(max_half_open=3))
    fleet.psk_after = None  # every handshake stops at the key
    for number in range(6):
        fleet.connect(client_config(number), path=number)
    fleet.run_for(0.1)
    assert fleet.server.statistics.half_open == 3
    assert len([event for event in fleet.server_events if isinstance(event, ConnectionOffered)]) == 3
    assert fleet.server.statistics.records_discarded[DiscardReason.HALF_OPEN_LIMIT] == 3


def test_a_newcomer_beyond_the_limit_gets_in_once_a_slot_is_free():
    fleet = fleet_with(Limits(max_half_open=1))
    fleet.psk_after = 0.5
    clients = [fleet.connect(client_config(number), path=number) for number in range(2)]
    fleet.run_until(lambda: all(c.connection.state is ConnectionState.CONNECTED for c in clients))
    assert fleet.now < 10


def test_offers_not_answered_count_as_half_open():
    fleet = fleet_with(Limits(max_half_open=2))
    fleet.accept_after = None
    for number in range(4):
        fleet.connect(client_config(number), path=number)
    fleet.run_for(0.1)
    assert fleet.server.statistics.half_open == 2
    assert len(fleet.server_events) == 2


def test_a_refused_offer_is_silent_counted_and_gives_its_slot_back():
    fleet = fleet_with()
    fleet.accept_after = None
    fleet.connect(client_config(1), path=1)
    fleet.run_for(0.1)
    (offer,) = fleet.server_events
    assert isinstance(offer, ConnectionOffered)
    sent = len(fleet.network.sent_by("server"))
    fleet.server.refuse(offer)
    fleet.run_for(0.1)
    assert len(fleet.network.sent_by("server")) == sent
    assert fleet.server.statistics.half_open == 0
    assert fleet.server.statistics.offers_refused == 1
    assert fleet.server.next_timeout() is None
    with pytest.raises(WrongState):
        fleet.server.refuse(offer)
    with pytest.raises(WrongState):
        fleet.server.accept(offer, now=fleet.now)


def test_an_offer_is_answered_once():
    fleet = fleet_with()
    fleet.accept_after = None
    fleet.connect(client_config(1), path=1)
    fleet.run_for(0.1)
    (offer,) = fleet.server_events
    assert isinstance(offer, ConnectionOffered)
    fleet.server.accept(offer, now=fleet.now)
    with pytest.raises(WrongState):
        fleet.server.accept(offer, now=fleet.now)
    with pytest.raises(WrongState):
        fleet.server.refuse(offer)


def test_a_repeated_hello_makes_no_second_offer():
    rig = ServerRig()
    rig.answer_offers = False
    puppet = PuppetClient(rig)
    puppet.get_cookie()
    hello = puppet.message(raw.CLIENT_HELLO, puppet.hello_body())
    for _ in range(5):
        puppet.give(hello)
    assert len(rig.events) == 1
    assert rig.server.statistics.half_open == 1


def test_a_repeated_hello_during_the_handshake_is_answered_by_the_same_flight():
    puppet = PuppetClient()
    puppet.get_cookie()
    hello = puppet.message(raw.CLIENT_HELLO, puppet.hello_body())
    first = puppet.give(hello)
    puppet.rig.now += 0.6
    again = puppet.give(hello)
    assert raw.plaintext_messages(again) == raw.plaintext_messages(first)
    puppet.read_server_flight(again)
    puppet.finish()
    assert len([event for event in puppet.rig.events if isinstance(event, ConnectionOffered)]) == 1


# --- every failure path gives its slot back -----------------------------------------------------------


def log_in_in_vain(puppet: PuppetClient) -> None:
    """Flight 5, and once more when the server repeats flight 4, as an honest client does."""
    puppet.hello()
    key_exchange = puppet.key_exchange()
    finished = raw.fragment(raw.FINISHED, puppet.verify_data(), message_seq=puppet.message_seq)
    for _ in range(2):
        puppet.give(key_exchange, puppet.change_cipher_spec(), puppet.record(22, finished, epoch=1))
        puppet.wait(1.5)
    puppet.wait(1)


def fail_wrong_key(puppet: PuppetClient) -> None:
    puppet.psk = b"not the key....."
    log_in_in_vain(puppet)


def fail_unknown_identity(puppet: PuppetClient) -> None:
    puppet.identity = b"who?"
    log_in_in_vain(puppet)


def fail_bad_finished(puppet: PuppetClient) -> None:
    puppet.hello()
    puppet.give(puppet.key_exchange(), puppet.change_cipher_spec(), puppet.finished(bytes(12)))


def fail_by_silence(puppet: PuppetClient) -> None:
    puppet.hello()
    puppet.wait(200)


def fail_by_silence_after_key_exchange(puppet: PuppetClient) -> None:
    puppet.hello()
    puppet.give(puppet.key_exchange())
    puppet.wait(200)


def fail_by_silence_after_change_cipher_spec(puppet: PuppetClient) -> None:
    puppet.hello()
    puppet.give(puppet.key_exchange(), puppet.change_cipher_spec())
    puppet.wait(200)


def fail_by_alert(puppet: PuppetClient) -> None:
    puppet.hello()
    puppet.give(puppet.alert(2, 40))
    puppet.wait(2)


def fail_by_violation(puppet: PuppetClient) -> None:
    puppet.hello()
    puppet.give(puppet.message(raw.SERVER_HELLO_DONE, b""))


def fail_by_incompatible_hello(puppet: PuppetClient) -> None:
    puppet.hello_options = {"suites": (0xC02B,)}
    puppet.get_cookie()
    puppet.give(puppet.message(raw.CLIENT_HELLO, puppet.hello_body()))
    puppet.wait(0)


def fail_by_malformed_hello(puppet: PuppetClient) -> None:
    puppet.hello_options = {"extensions": (raw.EMS, raw.EMS)}
    puppet.get_cookie()
    puppet.give(puppet.message(raw.CLIENT_HELLO, puppet.hello_body()))


def fail_by_reassembly(puppet: PuppetClient) -> None:
    puppet.hello()
    for seq in range(8):
        puppet.give(puppet.record(22, raw.fragment(16, bytes(200), message_seq=2 + seq, total=300)))
    assert puppet.rig.server.statistics.reassembly_size > 1000
    puppet.wait(200)


def fail_by_local_close(puppet: PuppetClient) -> None:
    puppet.hello()
    puppet.give(puppet.key_exchange())
    request = [event for event in puppet.rig.events if isinstance(event, PskRequested)][-1]
    request.connection.close(now=puppet.rig.now)
    puppet.wait(0)


FAILURES = {
    fail_wrong_key: "AuthenticationFailed.wrong_key",
    fail_unknown_identity: "AuthenticationFailed.unknown_identity",
    fail_bad_finished: "AuthenticationFailed.bad_finished",
    fail_by_silence: "HandshakeTimeout",
    fail_by_silence_after_key_exchange: "HandshakeTimeout",
    fail_by_silence_after_change_cipher_spec: "HandshakeTimeout",
    fail_by_alert: "PeerAlert",
    fail_by_violation: "ProtocolViolation",
    fail_by_incompatible_hello: "PeerIncompatible",
    fail_by_malformed_hello: "ProtocolViolation",
    fail_by_reassembly: "HandshakeTimeout",
    fail_by_local_close: "LocalClose",
}


@pytest.mark.parametrize("fail", FAILURES, ids=lambda fail: fail.__name__)
def test_a_failed_handshake_of_any_kind_gives_its_slot_back_and_is_counted(fail):
    limit = 2
    rig = ServerRig(ServerConfig(limits=Limits(max_half_open=limit)))
    for attempt in range(3 * limit):
        puppet = PuppetClient(rig)
        puppet.random = bytes([attempt]) * 32
        fail(puppet)
        statistics = rig.server.statistics
        assert statistics.half_open == 0
        assert statistics.associations == len(rig.server) == 0
        assert statistics.reassembly_size == 0
        assert statistics.handshakes_failed == {FAILURES[fail]: attempt + 1}
    assert rig.server.next_timeout() is None
    PuppetClient(rig).handshake()
    assert rig.server.statistics.handshakes_completed == 1
    assert rig.server.statistics.associations == len(rig.server) == 1


def test_a_handshake_ended_before_the_key_was_looked_up_takes_no_harm_from_the_late_answer():
    rig = ServerRig()
    rig.answer_requests = False
    puppet = PuppetClient(rig)
    puppet.hello()
    puppet.give(puppet.key_exchange())
    request = next(event for event in rig.events if isinstance(event, PskRequested))
    puppet.wait(200)
    assert isinstance(rig.causes[0], HandshakeTimeout)
    assert request.connection.provide_psk(request, [KEY], now=rig.now) == []


# --- associations -------------------------------------------------------------------------------------


def test_at_the_limit_a_newcomer_is_refused_while_everybody_is_active():
    fleet = fleet_with(Limits(max_associations=2, stale_after=100))
    for number in range(2):
        connect(fleet, number)
    late = fleet.connect(client_config(2), path=("host", 2))
    fleet.run_for(5)
    assert len(fleet.server) == 2
    assert fleet.server.statistics.associations == 2
    assert fleet.server.statistics.half_open == 0
    assert fleet.server.statistics.evictions == 0
    assert cause_on_server(fleet, ("host", 0)) == cause_on_server(fleet, ("host", 1)) == []
    assert late.connection.state is not ConnectionState.CONNECTED or late.cause is not None


def test_at_the_limit_the_longest_idle_association_gives_way_to_one_that_has_finished_its_handshake():
    fleet = fleet_with(Limits(max_associations=3, stale_after=100))
    clients = [connect(fleet, number) for number in range(3)]
    fleet.run_for(60)
    clients[0].connection.send(b"alive", now=fleet.now)
    fleet.run_for(60)
    newcomer = connect(fleet, 3)
    assert newcomer.connection.state is ConnectionState.CONNECTED
    assert len(fleet.server) == 3
    assert fleet.server.statistics.evictions == 1
    # 1 and 2 were idle for 120 s; 1 the longest.
    assert cause_on_server(fleet, ("host", 1)) == [LimitExceeded("max_associations")]
    assert cause_on_server(fleet, ("host", 0)) == cause_on_server(fleet, ("host", 2)) == []
    newcomer.connection.send(b"new", now=fleet.now)
    clients[0].connection.send(b"old", now=fleet.now)
    fleet.run_for(1)
    assert set(fleet.server_received()[-2:]) == {b"new", b"old"}


def test_a_handshake_that_is_not_finished_displaces_nobody():
    fleet = fleet_with(Limits(max_associations=1, stale_after=0))
    connect(fleet, 0)
    fleet.psk_after = None
    fleet.connect(client_config(1), path=("host", 1))
    fleet.run_for(200)
    assert len(fleet.server) == 1
    assert fleet.server.statistics.evictions == 0


def test_an_association_that_hears_nothing_authentic_ends_after_its_idle_timeout():
    fleet = fleet_with(Limits(idle_timeout=50.0))
    client = connect(fleet, 0)
    started = fleet.now
    fleet.run_for(30)
    client.connection.send(b"alive", now=fleet.now)
    for _ in range(60):
        fleet.run_for(1)
        fleet.network.inject(("host", 0), "server", raw.record(23, bytes(40), epoch=1, seq=900))
        if fleet.server_causes():
            break
    assert fleet.server_causes() == [IdleTimeout(50.0)]
    assert fleet.now - started == pytest.approx(80, abs=1)
    assert len(fleet.server) == 0
    assert fleet.server.next_timeout() is None
    fleet.run_for(1)


def test_the_idle_timeout_is_exact():
    fleet = fleet_with(Limits(idle_timeout=50.0))
    client = connect(fleet, 0)
    fleet.run_for(10.25)
    client.connection.send(b"alive", now=fleet.now)
    fleet.run_until(lambda: bool(fleet.server_causes()))
    assert fleet.now == pytest.approx(60.25, abs=1e-6)


def test_an_idle_association_never_ends_where_the_timeout_is_none():
    forever = Limits(idle_timeout=None)
    fleet = fleet_with(forever)
    client = fleet.connect(client_config(0, limits=forever))
    fleet.run_for(1)
    assert fleet.next_wake_up() is None
    fleet.run_for(10 * 86_400)
    client.connection.send(b"still here", now=fleet.now)
    fleet.run_for(1)
    assert fleet.server_received() == [b"still here"]


def test_a_client_connection_has_the_idle_timeout_too():
    pair = Pair(client_config(0, limits=Limits(idle_timeout=20.0)), keys=KEYS)
    pair.handshake()
    pair.run_for(21)
    assert pair.client_end.cause == IdleTimeout(20.0)


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
    assert old.state is ConnectionState.CONNECTED
    again.read_finished(again.give(again.finished()))
    assert old.state is ConnectionState.CLOSED
    kinds = [
        event
        for event in rig.events
        if isinstance(event, HandshakeCompleted | ConnectionTerminated)
    ]
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
    for data in (b"", b"x", raw.record(23, b"data", epoch=1), raw.record(21, b"\2\50"), raw.record(20, b"\1")):
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
        assert (mine.records_sent, mine.bytes_sent) == (theirs.records_received, theirs.bytes_received) == (1, 5)
        assert (mine.records_received, mine.bytes_received) == (theirs.records_sent, theirs.bytes_sent) == (1, 3)
        assert mine.retransmissions == theirs.retransmissions == mine.mac_failures == theirs.mac_failures == 0
        assert mine.datagrams_sent == len(fleet.network.sent_by(client.path))
        assert mine.datagrams_received == len(fleet.network.sent_by("server", to=client.path))


def test_retransmissions_are_counted_on_both_sides():
    pair = Pair()
    pair.network.drop("server", 1)  # flight 4
    pair.handshake()
    assert pair.client.statistics.retransmissions == 1
    assert pair.server.statistics.retransmissions == pair.server_connection.statistics.retransmissions == 1


def test_failures_keep_what_the_operator_needs():
    pair = Pair(ClientConfig(psk_identity=b"\xffevil\n", psk_key=KEY))
    pair.run_for(20)
    (cause,) = pair.server_causes()
    assert cause.problem is AuthenticationProblem.UNKNOWN_IDENTITY
    assert cause.identity == b"\xffevil\n"


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
