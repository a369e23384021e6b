"""Slots and places of a server: limited, and given back however a handshake or an association ends."""

import pytest

from sansdtls import (
    ConnectionOffered,
    ConnectionState,
    DiscardReason,
    HandshakeCompleted,
    HandshakeTimeout,
    IdleTimeout,
    KeysExhausted,
    LimitExceeded,
    Limits,
    PskRequested,
    ServerConfig,
    WrongState,
)
from sansdtls.testing import Pair
from tests.core import raw
from tests.core.failures import FAILURES
from tests.core.fleets import KEYS, cause_on_server, client_config, connect, fleet_with
from tests.core.puppet import KEY, PuppetClient, ServerRig

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


# --- paths without anything left on them --------------------------------------------------------------


def test_a_hello_in_fragments_that_finds_no_room_leaves_nothing_on_its_path():
    rig = ServerRig(ServerConfig(limits=Limits(max_total_reassembly_size=256)))
    rig.answer_offers = False
    puppet = PuppetClient(rig)
    puppet.get_cookie()
    puppet.give(puppet.message(raw.CLIENT_HELLO, puppet.hello_body()))  # an offer nobody answers
    body = raw.client_hello(extensions=((0x0BAD, bytes(400)),))

    def first_fragment(body: bytes) -> bytes:
        return raw.record(22, raw.fragment(1, body[:300], message_seq=2, total=len(body)))

    ((_, answer),) = raw.plaintext_messages(rig.give(first_fragment(body))).values()
    with_cookie = raw.client_hello(cookie=raw.parse_cookie(answer), extensions=((0x0BAD, bytes(400)),))
    rig.give(first_fragment(with_cookie))
    assert rig.server.statistics.records_discarded[DiscardReason.REASSEMBLY_LIMIT] == 1
    for data in (raw.record(23, bytes(40), epoch=1), raw.record(21, b"\1\0"), b"", b"x"):
        assert rig.give(data) == []
    assert rig.server.statistics.half_open == 0


def test_an_answer_to_a_lapsed_offer_does_not_exceed_the_limit_of_half_open_handshakes():
    rig = ServerRig(ServerConfig(limits=Limits(max_half_open=1)))
    rig.answer_offers = False
    first = PuppetClient(rig, path="first")
    first.get_cookie()
    first.give(first.message(raw.CLIENT_HELLO, first.hello_body()))
    (lapsed,) = rig.events
    assert isinstance(lapsed, ConnectionOffered)
    rig.wait(140)
    second = PuppetClient(rig, path="second")
    second.random = b"2" * 32
    second.get_cookie()
    second.give(second.message(raw.CLIENT_HELLO, second.hello_body()))
    rig.server.accept(lapsed, now=rig.now)
    assert rig.server.statistics.half_open <= 1


def test_a_newcomer_that_finishes_when_all_places_are_taken_meanwhile_is_told_and_ends():
    rig = ServerRig(ServerConfig(limits=Limits(max_associations=1, stale_after=1000)))
    late = PuppetClient(rig, path="late")
    late.hello()
    other = PuppetClient(rig, path="other")
    other.random = b"o" * 32
    other.handshake()
    answers = late.give(late.key_exchange(), late.change_cipher_spec(), late.finished())
    assert late.alerts(answers)
    assert rig.causes == [LimitExceeded("max_associations")]
    assert not [e for e in rig.events if isinstance(e, HandshakeCompleted) and e.connection.path == "late"]
    assert len(rig.server) == rig.server.statistics.associations == 1
    assert rig.server.statistics.half_open == 0
    assert rig.server.statistics.handshakes_failed == {"LimitExceeded": 1}
    other.give(other.data(b"unharmed"))
    assert rig.received == [b"unharmed"]


def test_many_deadlines_that_are_cancelled_do_not_pile_up():
    rig = ServerRig()
    for number in range(500):
        puppet = PuppetClient(rig, path=number)
        puppet.random = number.to_bytes(32, "big")
        puppet.handshake()
        puppet.give(puppet.alert(1, 0, epoch=1))
    assert len(rig.server) == 0
    assert len(rig.server._deadlines) < 200
    assert rig.server.next_timeout() is None
    assert len(rig.server._routes) == 0


def test_an_association_heard_while_a_newcomer_is_at_its_door_counts_as_used():
    fleet = fleet_with(Limits(max_associations=2, stale_after=10))
    busy, idle = connect(fleet, 0), connect(fleet, 1)
    fleet.run_for(5)
    fleet.psk_after = None
    fleet.connect(client_config(0), path=busy.path)  # two connections on one path from here on
    fleet.run_for(6)
    busy.connection.send(b"still here", now=fleet.now)
    for outgoing in busy.connection.datagrams_to_send():
        fleet.network.send(busy.path, outgoing.path, outgoing.data)
    fleet.run_for(1)
    assert fleet.server_received() == [b"still here"]
    fleet.psk_after = 0.0
    connect(fleet, 2)
    assert cause_on_server(fleet, idle.path) == [LimitExceeded("max_associations")]
    assert cause_on_server(fleet, busy.path) == []


def test_keys_used_up_by_forgeries_during_a_handshake_give_the_slot_back():
    rig = ServerRig(ServerConfig(limits=Limits(max_failed_opens=5)))
    puppet = PuppetClient(rig)
    puppet.hello()
    puppet.give(puppet.key_exchange(), puppet.change_cipher_spec())
    for seq in range(5):
        puppet.give(raw.record(22, bytes(40), epoch=1, seq=seq))
    assert rig.causes == [KeysExhausted("open")]
    assert rig.server.statistics.half_open == 0
    assert rig.server.next_timeout() is None
