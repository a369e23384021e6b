"""``sansdtls.testing`` itself: what a failing test has to be able to rely on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sansdtls import (
    AlertDescription,
    ClientConfig,
    ConnectionOffered,
    ConnectionState,
    ConnectionTerminated,
    DataReceived,
    HandshakeCompleted,
    LocalClose,
    PeerAlert,
    PeerClose,
    PskRequested,
)
from sansdtls.testing import (
    Carried,
    CounterEntropy,
    Datagram,
    Fate,
    Fleet,
    Network,
    NotReached,
    Pair,
    VirtualClock,
)
from tests.core.credentials import shown
from tests.core.ecdhe_puppets import asking_config, client_config

# --- entropy ------------------------------------------------------------------------------------------


@given(st.integers(-5, 2**70), st.lists(st.integers(0, 100), max_size=20))
def test_entropy_depends_on_the_seed_and_the_position_only(seed, lengths):
    one, other = CounterEntropy(seed), CounterEntropy(seed)
    assert b"".join(one(length) for length in lengths) == other(sum(lengths))
    assert one.bytes_taken == other.bytes_taken == sum(lengths)


def test_entropy_of_other_seeds_and_positions_differs():
    blocks = {CounterEntropy(seed)(32) for seed in range(1000)}
    stream = CounterEntropy(7)
    blocks |= {stream(32) for _ in range(1000)}
    assert len(blocks) == 1999  # the first block of seed 7 is in both
    assert "seed=7" in repr(stream)


def test_fractions_and_whole_numbers_spread_over_their_range():
    chance = CounterEntropy(1)
    fractions = [chance.fraction() for _ in range(2000)]
    assert all(0 <= fraction < 1 for fraction in fractions)
    assert 0.45 < sum(fractions) / 2000 < 0.55
    assert {chance.below(5) for _ in range(200)} == set(range(5))


# --- network ------------------------------------------------------------------------------------------


def test_a_quiet_network_carries_everything_in_order_and_logs_it():
    network = Network()
    for payload in (b"1", b"2", b"3"):
        network.send("a", "b", payload)
    network.send("b", "a", b"4")
    assert [arrived.data for arrived in network.arrivals()] == [b"1", b"2", b"3", b"4"]
    assert network.next_arrival() is None
    assert network.log[1] == Carried(Datagram(1, 0.0, "a", "b", b"2"), Fate.DELIVERED)
    assert [sent.data for sent in network.sent_by("a")] == [b"1", b"2", b"3"]
    assert network.sent_by("a", to="c") == []


def test_delay_is_exact_and_nothing_arrives_early():
    network = Network(delay=0.25, clock=VirtualClock(100.0))
    network.send("a", "b", b"x")
    assert network.next_arrival() == 100.25
    assert network.arrivals() == []
    network.clock.advance_to(100.25)
    assert len(network.arrivals()) == 1
    network.clock.advance_to(50)
    assert network.clock.now == 100.25


def test_what_exceeds_the_mtu_vanishes():
    network = Network(mtu=100)
    network.send("a", "b", bytes(100))
    network.send("a", "b", bytes(101))
    assert [len(arrived.data) for arrived in network.arrivals()] == [100]
    assert network.log[-1].fate is Fate.TOO_LARGE


def test_loss_duplication_and_reordering_happen_about_as_often_as_told_and_the_same_on_each_run():
    def fates(seed):
        network = Network(seed, loss=0.2, duplicate=0.2, reorder=0.2)
        for number in range(2000):
            network.send("a", "b", number.to_bytes(2, "big"))
        network.clock.advance_to(1)
        return [entry.fate for entry in network.log], [arrived.data for arrived in network.arrivals()]

    seen, arrived = fates(3)
    assert fates(3) == (seen, arrived)
    assert fates(4) != (seen, arrived)
    assert 0.17 < seen.count(Fate.LOST) / 2000 < 0.23
    assert 0.12 < seen.count(Fate.DUPLICATED) / 2000 < 0.20
    assert 0.09 < seen.count(Fate.LATE) / 2000 < 0.17
    assert len(arrived) == 2000 - seen.count(Fate.LOST) + seen.count(Fate.DUPLICATED)
    assert arrived != sorted(arrived)


def test_taps_drop_alter_and_add_by_number():
    network = Network()
    network.drop("a", 1, 2)
    network.alter("a", 3, bytes.upper)
    network.add_tap(lambda sent: [sent.data, b"extra"] if sent.number == 4 else [sent.data])
    for payload in (b"zero", b"one", b"two", b"three", b"four"):
        network.send("a", "b", payload)
    assert [arrived.data for arrived in network.arrivals()] == [b"zero", b"THREE", b"four", b"extra"]
    fates = [entry.fate for entry in network.log]
    assert fates.count(Fate.TAPPED) == 4
    network.remove_taps()
    network.send("a", "b", b"five")
    assert [arrived.data for arrived in network.arrivals()] == [b"five"]


def test_an_injected_datagram_passes_taps_and_loss():
    network = Network(loss=1.0, delay=5.0)
    network.add_tap(lambda _: [])
    network.inject("anybody", "b", b"forged")
    assert [arrived.source for arrived in network.arrivals()] == ["anybody"]


# --- fleet and pair -----------------------------------------------------------------------------------


def test_the_example_of_the_package_docstring_works():
    pair = Pair()
    pair.handshake()
    pair.client.send(b"21.5", now=pair.now)
    pair.run_for(1)
    assert pair.server_received() == [b"21.5"]
    assert pair.now == 1.0


def test_a_condition_that_never_comes_true_is_an_error_that_names_the_seed():
    pair = Pair(network=Network(77, loss=1.0))
    with pytest.raises(NotReached, match="seed=77"):
        pair.handshake(deadline=10)
    assert pair.now == 10.0
    with pytest.raises(NotReached, match="accepted no connection"):
        _ = pair.server_connection


def test_a_fleet_with_nothing_to_do_says_so():
    fleet = Fleet()
    fleet.run_for(5)
    assert fleet.now == 5.0
    assert fleet.server_connections() == []


def test_two_sides_that_answer_each_other_for_ever_are_found_out(monkeypatch):
    monkeypatch.setattr("sansdtls.testing.fleet.MAX_STEPS_PER_INSTANT", 100)
    pair = Pair()
    pair.handshake()

    def echo(event):
        if isinstance(event, DataReceived):
            event.connection.send(event.data, now=pair.now)

    pair.on_server_event = echo
    pair.on_client_event = lambda _, event: echo(event)
    pair.client.send(b"ping", now=pair.now)
    with pytest.raises(NotReached, match="stands still"):
        pair.run_for(1)


def test_answers_come_as_late_as_they_are_told_to():
    pair = Pair()
    pair.accept_after, pair.psk_after = 0.25, 0.5
    pair.handshake()
    assert pair.now == 0.75


def test_answers_left_to_the_test_are_left_to_the_test():
    pair = Pair()
    pair.accept_after = None
    pair.run_for(0.5)
    (offer,) = pair.server_events
    assert isinstance(offer, ConnectionOffered)
    pair.psk_after = None
    pair.server.accept(offer, now=pair.now)
    pair.run_for(0.1)
    (request,) = pair.server_events[1:]
    assert isinstance(request, PskRequested)
    assert pair.server_connection is request.connection
    pair.provide_psk(request, [Pair.KEY])
    pair.handshake()
    assert isinstance(pair.server_events[-1], HandshakeCompleted)


def test_a_client_without_a_key_is_given_it_from_the_same_table():
    pair = Pair(ClientConfig(psk_identity=Pair.IDENTITY))
    pair.handshake()
    assert isinstance(pair.client_events[0], PskRequested)


def test_many_clients_share_a_server():
    fleet = Fleet(keys={b"dev%d" % i: [bytes([i]) * 16] for i in range(5)})
    clients = [
        fleet.connect(ClientConfig(psk_identity=b"dev%d" % i, psk_key=bytes([i]) * 16), path=("10.0.0.1", i))
        for i in range(5)
    ]
    fleet.run_until(lambda: all(c.connection.state is ConnectionState.CONNECTED for c in clients))
    for i, client in enumerate(clients):
        client.connection.send(b"from %d" % i, now=fleet.now)
    fleet.run_for(1)
    assert fleet.server_received(path=("10.0.0.1", 3)) == [b"from 3"]
    assert len(fleet.server_received()) == len(fleet.server_connections()) == len(fleet.server) == 5
    clients[0].connection.close(now=fleet.now)
    fleet.power_off(clients[1])
    fleet.run_for(1)
    assert clients[0].cause == LocalClose()
    assert clients[1].cause is None
    assert fleet.server_causes() == [PeerClose()]
    assert clients[2].received == []


def test_a_client_started_at_a_path_in_use_takes_its_place():
    pair = Pair()
    pair.handshake()
    again = pair.connect(ClientConfig(psk_identity=Pair.IDENTITY, psk_key=Pair.KEY))
    pair.run_until(lambda: again.connection.state is ConnectionState.CONNECTED)
    assert pair.clients["client"] is again
    completed = [event for event in pair.server_events if isinstance(event, HandshakeCompleted)]
    assert len(completed) == 2


def test_a_step_with_nothing_to_do_says_so():
    assert Fleet().step() is False
    assert repr(VirtualClock(2.5)) == "VirtualClock(now=2.5)"


# --- certificates and raw public keys -------------------------------------------------------------------


def certificate_pair() -> Pair:
    return Pair(client_config(credentials=(shown("p256").certificate(),)), asking_config())


def test_whatever_a_peer_shows_is_accepted_unless_a_test_says_otherwise():
    pair = certificate_pair()
    pair.handshake()
    assert pair.client.peer is not None
    assert pair.server_connection.peer is not None
    assert pair.server_connection.peer.certificate_chain == shown("p256").chain


def test_the_judge_sees_each_peer_and_rejects_with_the_alert_it_returns():
    pair = certificate_pair()
    judged = []

    def judge(request):
        judged.append(request.connection)
        return None if request.connection is pair.client else AlertDescription.UNKNOWN_CA

    pair.judge = judge
    pair.run_for(5)
    assert judged[0] is pair.client
    assert len(judged) == 2
    assert [event.cause for event in pair.client_events if isinstance(event, ConnectionTerminated)] == [
        PeerAlert(AlertDescription.UNKNOWN_CA, authenticated=False)
    ]


def test_the_judge_may_be_slow_or_left_out():
    pair = certificate_pair()
    pair.judge_after = 2.0
    pair.handshake()
    assert pair.now == pytest.approx(4.0)
    pair = certificate_pair()
    pair.judge_after = None
    with pytest.raises(NotReached):
        pair.handshake()
