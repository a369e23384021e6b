"""When flights are sent again, to the microsecond of the injected clock."""

import pytest

from sansdtls import (
    ClientConfig,
    ConnectionState,
    ConnectionTerminated,
    HandshakeTimeout,
    RetransmitPolicy,
    ServerConfig,
)
from sansdtls.testing import Network, Pair, VirtualClock
from tests.core import raw
from tests.core.puppet import IDENTITY, KEY, ClientRig, PuppetClient, PuppetServer, ServerRig

MICROSECOND = 1e-6


def client_config(**more) -> ClientConfig:
    return ClientConfig(psk_identity=IDENTITY, psk_key=KEY, **more)


def times_of(pair: Pair, source: str, start: float = 0.0) -> list[float]:
    """When ``source`` sent, one entry for each moment."""
    return sorted({sent.time - start for sent in pair.network.sent_by(source)})


POLICIES: dict[str, tuple[RetransmitPolicy, list[float], float]] = {
    # RFC 6347 §4.2.4.1: 1 s, doubled at each retransmission, no more than 60 s
    "default": (RetransmitPolicy(), [0, 1, 3, 7, 15, 31, 63], 123),
    # RFC 7925 §11: 9 s for constrained networks
    "constrained": (RetransmitPolicy.constrained(), [0, 9, 27, 63, 123, 183, 243], 300),
    "capped": (RetransmitPolicy(maximum_timeout=4), [0, 1, 3, 7, 11, 15, 19], 23),
    "not a power of two": (
        RetransmitPolicy(initial_timeout=0.3, max_retransmissions=3),
        [0, 0.3, 0.9, 2.1],
        4.5,
    ),
    "no repetition": (RetransmitPolicy(max_retransmissions=0), [0], 1),
    "one repetition": (RetransmitPolicy(max_retransmissions=1), [0, 1], 3),
    "the deadline comes first": (RetransmitPolicy(handshake_timeout=10.25), [0, 1, 3, 7], 10.25),
    "the deadline comes even before a repetition": (RetransmitPolicy(handshake_timeout=0.5), [0], 0.5),
}


@pytest.mark.parametrize("start", [0.0, -5.0, 1_234_567.89], ids=["at 0", "before 0", "after two weeks"])
@pytest.mark.parametrize("name", POLICIES)
def test_a_client_that_hears_nothing_repeats_its_hello_exactly_when_the_policy_says(name, start):
    policy, sent_at, ended_at = POLICIES[name]
    pair = Pair(client_config(retransmit=policy), network=Network(loss=1.0, clock=VirtualClock(start)))
    pair.run_until(lambda: pair.client.state is ConnectionState.CLOSED, deadline=400)
    assert times_of(pair, "client", start) == pytest.approx(sent_at, abs=MICROSECOND)
    assert pair.now - start == pytest.approx(ended_at, abs=MICROSECOND)
    (event,) = pair.client_events
    assert isinstance(event, ConnectionTerminated)
    assert isinstance(event.cause, HandshakeTimeout)
    assert event.cause.waiting_for.startswith("AWAIT_")
    assert pair.client.statistics.retransmissions == len(sent_at) - 1
    assert pair.client.next_timeout() is None


@pytest.mark.parametrize("name", POLICIES)
def test_a_server_whose_client_falls_silent_repeats_its_flight_exactly_when_the_policy_says(name):
    policy, sent_at, ended_at = POLICIES[name]
    pair = Pair(server_config=ServerConfig(retransmit=policy))
    # Nothing of the client passes any more once it has answered the cookie.
    pair.network.add_tap(lambda sent: [] if sent.source == "client" and sent.number >= 2 else [sent.data])
    pair.run_until(lambda: bool(pair.server_causes()), deadline=400)
    flights = [each for each in pair.network.sent_by("server") if each.number >= 1]
    assert sorted({each.time for each in flights}) == pytest.approx(sent_at, abs=MICROSECOND)
    assert pair.now == pytest.approx(ended_at, abs=MICROSECOND)
    (cause,) = pair.server_causes()
    assert isinstance(cause, HandshakeTimeout)
    assert pair.server.statistics.half_open == 0
    assert pair.server.next_timeout() is None


def test_each_new_flight_starts_with_the_first_timeout_again():
    pair = Pair(client_config())
    # The hello is lost twice; the next flight of the client is lost once.
    pair.network.drop("client", 0, 1, 4)
    pair.handshake()
    # 0, 1: lost hellos, 3: the third hello, the hello with the cookie and flight 5, 4: flight 5 again
    assert times_of(pair, "client") == [0, 1, 3, 4]


def test_a_timeout_handled_before_it_is_due_changes_nothing():
    rig = ClientRig()
    rig.sent()
    due = rig.connection.next_timeout()
    assert due == 1.0
    assert rig.connection.handle_timeout(now=due - MICROSECOND) == []
    assert rig.sent() == []
    assert rig.connection.next_timeout() == due


def test_a_timeout_handled_late_counts_once_and_the_next_starts_from_then():
    rig = ClientRig()
    rig.sent()
    assert rig.connection.handle_timeout(now=50.0) == []
    assert len(rig.sent()) == 1
    assert rig.connection.next_timeout() == 52.0


def test_the_repeated_hello_is_the_same_message_in_a_new_record():
    rig = ClientRig()
    (first,) = rig.sent()
    (again,) = rig.wait(1)
    (record,), (repeated,) = raw.records(first), raw.records(again)
    assert repeated.payload == record.payload
    assert repeated.seq == record.seq + 1


def test_a_repeated_protected_flight_takes_new_nonces():
    puppet = PuppetServer()
    puppet.verify_request()
    first = puppet.give(*puppet.flight_4())
    again = puppet.wait(1)
    assert [raw.records(d)[-1].epoch for d in (first[-1], again[-1])] == [1, 1]
    one, other = raw.records(first[-1])[-1], raw.records(again[-1])[-1]
    assert (one.seq, other.seq) == (0, 1)
    assert one.payload[:8] != other.payload[:8]


# --- loss of single flights ---------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["client", "server"])
@pytest.mark.parametrize("number", range(3))
def test_a_handshake_survives_the_loss_of_any_datagram(source, number):
    pair = Pair()
    pair.network.drop(source, number)
    pair.handshake()
    assert pair.now <= 1.0
    pair.client.send(b"21.5", now=pair.now)
    pair.run_for(0.1)
    assert pair.server_received() == [b"21.5"]


def test_the_last_flight_is_repeated_when_the_peer_repeats_its_own():
    pair = Pair()
    pair.network.drop("server", 2)  # ChangeCipherSpec and Finished of the server
    pair.run_until(lambda: len(pair.server) == 1)
    assert pair.client.state is ConnectionState.HANDSHAKING
    pair.handshake()
    assert pair.now == 1.0
    assert len(pair.server_causes()) == 0
    # The repetition is answered even after data was received and sent.
    assert len(pair.network.sent_by("server")) == 4


def test_the_last_flight_is_repeated_again_and_again_but_not_faster_than_it_is_asked_for():
    puppet = PuppetClient()
    puppet.hello()
    flight = [puppet.key_exchange(), puppet.change_cipher_spec(), puppet.finished()]
    puppet.give(*flight)
    body = raw.records(flight[2])
    assert body
    answers = 0
    for _ in range(100):  # a client, or somebody replaying it, repeats flight 5 a hundred times in a second
        puppet.rig.now += 0.01
        answers += len(puppet.give(*flight))
    assert answers <= 2
    assert len(puppet.rig.server) == 1


def test_a_client_repeats_flight_5_while_the_server_says_nothing_and_then_gives_up():
    puppet = PuppetServer()
    puppet.verify_request()
    puppet.answer_hello()
    before = len(puppet.answers)
    puppet.wait(400)
    assert len(puppet.answers) - before == 6
    (cause,) = puppet.rig.causes
    assert isinstance(cause, HandshakeTimeout)


# --- datagram size after loss -------------------------------------------------------------------------


@pytest.mark.parametrize("shrink_after", [1, 2, 3])
def test_after_repeated_loss_datagrams_become_smaller(shrink_after):
    identity = b"i" * 1000
    policy = RetransmitPolicy(shrink_after=shrink_after)
    pair = Pair(
        ClientConfig(psk_identity=identity, psk_key=KEY, retransmit=policy, request_ticket=False),
        keys={identity: [KEY]},
        network=Network(mtu=400),
    )
    pair.handshake()
    sizes: dict[float, int] = {}
    for sent in pair.network.sent_by("client"):
        sizes[sent.time] = max(sizes.get(sent.time, 0), len(sent.data))
    assert max(sizes.values()) > 616
    assert sizes[pair.now] <= 400
    # The size halves once after each `shrink_after` unanswered transmissions.
    ordered = [sizes[time] for time in sorted(sizes)]
    assert ordered[:shrink_after] == [ordered[0]] * shrink_after
    assert ordered[shrink_after] <= 616


def test_datagrams_never_become_smaller_than_256_bytes():
    identity = b"i" * 1000
    config = ClientConfig(psk_identity=identity, psk_key=KEY, retransmit=RetransmitPolicy(shrink_after=1))
    puppet = PuppetServer(ClientRig(config))
    puppet.verify_request()
    puppet.give(*puppet.flight_4())
    before = len(puppet.answers)
    puppet.wait(60)
    sizes = [len(datagram) for datagram in puppet.answers[before:]]
    assert 200 < max(sizes[-3:]) <= 256


# --- bounds -------------------------------------------------------------------------------------------


def test_a_wrong_key_makes_no_ping_pong():
    pair = Pair(ClientConfig(psk_identity=IDENTITY, psk_key=b"wrong"))
    pair.run_for(60)
    assert len(pair.network.sent_by("server")) <= 8
    assert len(pair.network.sent_by("client")) <= 8
    assert pair.client.state is ConnectionState.CLOSED
    assert pair.server.statistics.half_open == 0


@pytest.mark.parametrize("stop_at", range(1, 5))
def test_two_sides_that_lose_everything_after_a_point_send_a_bounded_number_of_datagrams(stop_at):
    pair = Pair()
    pair.network.add_tap(lambda sent: [sent.data] if sent.number < stop_at else [])
    pair.run_for(400)
    assert len(pair.network.sent_by("server")) <= 16
    assert len(pair.network.sent_by("client")) <= 24


def test_a_late_answer_pauses_the_repetition_but_not_the_deadline():
    rig = ServerRig()
    rig.answer_requests = False
    puppet = PuppetClient(rig)
    puppet.hello()
    puppet.give(puppet.key_exchange())
    before = len(puppet.answers)
    puppet.wait(100)
    assert len(puppet.answers) == before, "flight 4 was answered; there is nothing to repeat"
    puppet.wait(31)
    (cause,) = rig.causes
    assert isinstance(cause, HandshakeTimeout)
    assert rig.server.statistics.half_open == 0


def test_an_offer_nobody_answers_lapses_at_the_deadline():
    rig = ServerRig()
    rig.answer_offers = False
    puppet = PuppetClient(rig)
    puppet.get_cookie()
    puppet.give(puppet.message(raw.CLIENT_HELLO, puppet.hello_body()))
    assert rig.server.statistics.half_open == 1
    rig.wait(129.9)
    assert rig.server.statistics.half_open == 1
    rig.wait(0.2)
    assert rig.server.statistics.half_open == 0
    assert rig.server.next_timeout() is None


@pytest.mark.parametrize(("age", "repeated"), [(1.0, True), (200.0, True), (239.9, True), (240.1, False)])
def test_the_last_flight_is_repeated_for_twice_the_maximum_segment_lifetime(age, repeated):
    # RFC 6347 §4.2.4: twice the default MSL of TCP, which is two minutes.
    puppet = PuppetClient()
    puppet.hello()
    seq = puppet.message_seq + 1
    puppet.give(puppet.key_exchange(), puppet.change_cipher_spec())
    finished = raw.fragment(raw.FINISHED, puppet.verify_data(), message_seq=seq)
    puppet.read_finished(puppet.give(puppet.finished()))
    puppet.rig.wait(age)
    answers = puppet.give(puppet.record(raw.HANDSHAKE, finished, epoch=1))
    assert bool(answers) is repeated
    assert puppet.rig.causes == []


def test_the_last_flight_is_not_repeated_once_data_show_that_it_has_arrived():
    puppet = PuppetClient()
    puppet.hello()
    seq = puppet.message_seq + 1
    puppet.give(puppet.key_exchange(), puppet.change_cipher_spec())
    finished = raw.fragment(raw.FINISHED, puppet.verify_data(), message_seq=seq)
    puppet.read_finished(puppet.give(puppet.finished()))
    puppet.give(puppet.data(b"so I have your Finished"))
    assert puppet.give(puppet.record(raw.HANDSHAKE, finished, epoch=1)) == []
    assert puppet.rig.received == [b"so I have your Finished"]
    assert puppet.rig.causes == []
