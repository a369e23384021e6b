"""Return routability checks, RFC 9853, step by step: the basic flow, what is no proof, the ways to end."""

import pytest

from sansdtls import (
    ConnectionState,
    ConnectionTerminated,
    ConnectionThawed,
    DataReceived,
    IdleTimeout,
    Limits,
    LocalClose,
    PathProof,
    PeerClose,
    Server,
    ServerConfig,
)
from sansdtls.testing import CounterEntropy
from tests.core.roaming import (
    ALERT,
    AWAY,
    BASIC,
    DROP,
    HOME,
    RESPONSE,
    THIRD,
    Roaming,
    connecting,
    data_in,
    moves_in,
    pair_of,
)

PROVEN = PathProof.RETURN_ROUTABILITY
MOVED = [(HOME, AWAY, PROVEN)]
OWN_ID = {"length": 6}


def asked() -> tuple[Roaming, bytes]:
    """The device has been heard at a new path, and the cookie that was sent there."""
    roaming = Roaming(BASIC)
    roaming.say(b"here", AWAY)
    return roaming, roaming.challenge().cookie


# --- the basic flow -----------------------------------------------------------------------------------


def test_a_new_path_is_asked_and_used_when_it_has_answered():
    roaming = Roaming(BASIC)
    assert data_in(roaming.say(b"here", AWAY)) == [b"here"]
    challenge = roaming.challenge()
    assert challenge.path == AWAY
    assert roaming.connection.path == HOME
    assert roaming.counts == (0, 0, 0)
    events = roaming.give(roaming.answer(challenge), AWAY)
    assert moves_in(events) == MOVED
    assert len(events) == 1
    assert roaming.connection.path == AWAY
    assert roaming.counts == (1, 0, 0)
    assert roaming.sent() == []
    assert roaming.connection._layer.path_check is None


def test_the_answer_in_a_datagram_with_data_moves_before_the_data():
    roaming = Roaming(BASIC)
    roaming.say(b"here", AWAY)
    answer = roaming.answer(roaming.challenge())
    events = roaming.give(answer + roaming.data(b"and there"), AWAY)
    assert moves_in(events[:1]) == MOVED
    assert data_in(events[1:]) == [b"and there"]


def test_while_the_new_path_is_asked_data_go_there_within_the_budget_and_beyond_it_to_the_old_one():
    roaming = Roaming(BASIC)
    datagram = roaming.data(b"question")
    roaming.give(datagram, AWAY)
    room = 3 * len(datagram) - len(roaming.challenge().datagram)
    overhead = roaming.connection._layer.write.overhead

    def send(size: int) -> object:
        roaming.connection.send(bytes(size - overhead), now=roaming.now)
        (sent,) = roaming.sent()
        assert len(sent.datagram) == size
        return sent.path

    assert send(room + 1) == HOME
    assert send(overhead + 5) == AWAY
    assert send(room - overhead - 5) == AWAY
    assert send(overhead) == HOME
    more = roaming.data(b"more")
    roaming.give(more, AWAY)
    assert send(3 * len(more)) == AWAY


def test_an_unanswered_challenge_is_repeated_with_fresh_cookies_and_then_given_up():
    roaming = Roaming({**BASIC, "probe_timeout": 0.7, "max_probes": 4})
    roaming.wait(100)
    start = roaming.now
    roaming.say(b"x" * 50, AWAY)
    cookies = [roaming.challenge().cookie]
    for turn in range(1, 4):
        due = roaming.server.next_timeout()
        assert due is not None
        assert due == pytest.approx(start + 0.7 * turn)
        assert roaming.wait(due - roaming.now - 0.001) == []
        assert roaming.sent() == []
        roaming.wait(0.001)
        cookies.append(roaming.challenge().cookie)
    assert len(set(cookies)) == 4
    assert roaming.server.next_timeout() == pytest.approx(start + 2.8)
    roaming.wait(0.6999)
    assert roaming.counts == (0, 0, 0)
    roaming.wait(0.0002)
    assert roaming.counts == (0, 1, 0)
    assert roaming.sent() == []
    assert roaming.moves == []
    assert roaming.connection.path == HOME
    assert roaming.connection._layer.path_check is None
    roaming.say(
        b"still there", AWAY
    )  # RFC 9853 §5: "A new path validation will start when new data is received."
    assert roaming.challenge().path == AWAY


@pytest.mark.parametrize("idle_timeout", [None, 7_776_000])
def test_without_configuration_a_path_is_asked_for_three_seconds(idle_timeout):
    roaming = Roaming(both={"limits": Limits(idle_timeout_with_connection_id=idle_timeout)})
    roaming.say(b"x" * 50, AWAY)
    roaming.wait(2.99)
    assert [sent.kind for sent in roaming.sent()] == ["challenge"] * 3
    assert roaming.counts == (0, 0, 0)
    roaming.wait(0.02)
    assert roaming.counts == (0, 1, 0)
    assert not roaming.connection.path_check_under_way


@pytest.mark.parametrize("turn", range(3))
def test_an_answer_to_any_of_the_challenges_counts(turn):
    roaming = Roaming(BASIC)
    roaming.say(b"x" * 50, AWAY)
    roaming.wait(2.5)
    challenges = roaming.sent()
    assert len(challenges) == 3
    assert moves_in(roaming.give(roaming.answer(challenges[turn]), AWAY)) == MOVED


def test_an_answer_that_comes_too_late_is_counted_and_ignored():
    roaming = Roaming(BASIC)
    roaming.say(b"x" * 50, AWAY)
    answer = roaming.answer(roaming.challenge())
    late = roaming.data(b"newer than the answer")
    roaming.wait(3)
    roaming.sent()
    roaming.give(late, HOME)  # so that the answer is not even the sign of another move
    assert roaming.give(answer, AWAY) == []
    assert roaming.counts == (0, 1, 1)
    assert roaming.sent() == []


def test_a_second_answer_is_counted_and_ignored():
    # RFC 9853 §7.1: "multiple responses to a single path_challenge [...] could suggest an off-path attack attempt"
    roaming, cookie = asked()
    assert moves_in(roaming.give(roaming.check(RESPONSE, cookie), AWAY)) == MOVED
    assert roaming.give(roaming.check(RESPONSE, cookie), AWAY) == []
    assert roaming.counts == (1, 0, 1)


def test_copies_of_challenge_and_answer_change_nothing():
    roaming = Roaming(BASIC)
    datagram = roaming.data(b"here")
    roaming.give(datagram, AWAY)
    assert roaming.give(datagram, AWAY) == []
    challenge = roaming.challenge()
    answer = roaming.answer(challenge)
    assert roaming.device.receive_datagram(challenge.datagram, now=roaming.now, path="server") == []
    assert roaming.device.datagrams_to_send() == []
    assert moves_in(roaming.give(answer, AWAY)) == MOVED
    assert roaming.give(answer, AWAY) == []
    assert roaming.give(answer, THIRD) == []
    assert roaming.counts == (1, 0, 0)  # a replay is not even read


# --- what is no proof ---------------------------------------------------------------------------------


@pytest.mark.parametrize("position", range(8))
def test_every_bit_of_the_cookie_matters(position):
    roaming, cookie = asked()
    wrong = bytearray(cookie)
    wrong[position] ^= 0x80 >> position
    assert roaming.give(roaming.check(RESPONSE, bytes(wrong)), AWAY) == []
    assert roaming.counts == (0, 0, 1)
    assert roaming.connection.path == HOME
    assert moves_in(roaming.give(roaming.check(RESPONSE, cookie), AWAY)) == MOVED


def test_a_path_drop_does_not_prove_a_path():
    roaming, cookie = asked()
    assert roaming.give(roaming.check(DROP, cookie), AWAY) == []
    assert roaming.counts == (0, 0, 1)
    assert roaming.connection.path == HOME


def test_the_answer_has_to_come_from_the_path_that_was_asked():
    roaming, cookie = asked()
    answer = roaming.check(RESPONSE, cookie)
    roaming.say(b"newer than the answer", AWAY)
    assert roaming.give(answer, THIRD) == []
    assert roaming.counts == (0, 0, 1)
    assert roaming.connection.path == HOME
    assert roaming.connection.path_check_under_way


def test_an_answer_from_the_path_in_use_says_that_the_peer_is_there():
    roaming, cookie = asked()
    assert roaming.give(roaming.check(RESPONSE, cookie), HOME) == []
    assert roaming.counts == (0, 1, 1)
    assert roaming.connection.path == HOME
    assert not roaming.connection.path_check_under_way


def test_an_answer_from_a_third_path_raises_the_question_for_that_path():
    roaming, cookie = asked()
    assert roaming.give(roaming.check(RESPONSE, cookie), THIRD) == []
    challenge = roaming.challenge()
    assert challenge.path == THIRD
    assert challenge.cookie != cookie
    assert roaming.counts == (0, 1, 1)
    assert moves_in(roaming.give(roaming.answer(challenge), THIRD)) == [(HOME, THIRD, PROVEN)]


def test_cookies_of_an_earlier_check_prove_nothing():
    roaming, cookie = asked()
    roaming.say(b"back", HOME)
    roaming.say(b"away again", AWAY)
    assert roaming.challenge().cookie != cookie
    assert roaming.give(roaming.check(RESPONSE, cookie), AWAY) == []
    assert roaming.connection.path == HOME


def test_an_answer_that_was_overtaken_by_data_counts():
    # Its own cookie says how fresh it is.
    roaming, cookie = asked()
    answer = roaming.check(RESPONSE, cookie)
    roaming.say(b"overtakes", AWAY)
    assert moves_in(roaming.give(answer, AWAY)) == MOVED


# --- the peer is heard elsewhere meanwhile ------------------------------------------------------------


def test_a_newer_record_from_the_path_in_use_ends_the_check():
    roaming, cookie = asked()
    roaming.say(b"still here", HOME)
    assert not roaming.connection.path_check_under_way
    assert roaming.counts == (0, 1, 0)
    old_answer = roaming.check(RESPONSE, cookie)
    roaming.say(b"and here", HOME)
    assert roaming.give(old_answer, AWAY) == []
    assert roaming.connection.path == HOME


def test_an_older_record_from_the_path_in_use_does_not_end_it():
    roaming = Roaming(BASIC)
    late = roaming.data(b"sent before the move")
    roaming.say(b"here", AWAY)
    cookie = roaming.challenge().cookie
    assert data_in(roaming.give(late, HOME)) == [b"sent before the move"]
    assert moves_in(roaming.give(roaming.check(RESPONSE, cookie), AWAY)) == MOVED


def test_a_device_that_moves_again_while_it_is_asked_is_asked_there():
    roaming, _ = asked()
    roaming.say(b"x", THIRD)
    challenge = roaming.challenge()
    assert challenge.path == THIRD
    assert roaming.counts == (0, 1, 0)
    events = roaming.give(roaming.answer(challenge), THIRD)
    assert moves_in(events) == [(HOME, THIRD, PROVEN)]
    assert roaming.wait(100) == []
    assert roaming.sent() == []


def test_a_device_that_moves_on_and_on_is_found_where_it_stays():
    pair = pair_of(BASIC, delay=0.05)
    for number in range(12):  # faster than a round trip
        pair.move(pair.client_end, ("hop", number))
        pair.client.send(b"%d" % number, now=pair.now)
        pair.run_for(0.03)
    pair.run_for(5)
    pair.client.send(b"here", now=pair.now)
    pair.run_for(1)
    assert pair.server_connection.path == ("hop", 11)
    assert pair.server_received() == [b"%d" % number for number in range(12)] + [b"here"]
    assert [new for _, new, _ in moves_in(pair.server_events)] == [("hop", 11)]


# --- both sides move ----------------------------------------------------------------------------------


def test_client_and_server_may_move_in_the_same_second():
    pair = pair_of(BASIC, OWN_ID, delay=0.02)
    pair.server_connection.send(b"1", now=pair.now)
    pair.run_for(0.5)
    pair.move(pair.client_end, AWAY)
    pair.client.send(b"2", now=pair.now)
    pair.run_for(0.03)
    pair.server_path = "server 2"  # with the answer to its challenge under way to its old address
    pair.run_for(0.98)
    pair.run_for(5)
    pair.server_connection.send(b"3", now=pair.now)
    pair.run_for(5)
    # The client was heard at its new path, so what the server says there finds it.
    pair.client.send(b"4", now=pair.now)
    pair.run_for(5)
    assert pair.client.path == "server 2"
    assert pair.server_connection.path == AWAY
    assert pair.server_received() == [b"2", b"4"]


def test_a_device_that_moves_with_its_last_flight_gets_finished_at_its_new_address():
    # The flight is repeated within the budget, and the challenge waits at the device for Finished.
    pair = connecting(BASIC, delay=0.02)
    pair.run_until(lambda: len(pair.server) == 1)
    pair.move(pair.client_end, AWAY)
    pair.run_until(lambda: pair.client.state is ConnectionState.CONNECTED)
    pair.run_for(0.1)
    assert pair.now < 5
    assert pair.server_connection.path == AWAY


# --- the end meanwhile --------------------------------------------------------------------------------


def test_closing_during_a_check_tells_the_new_path_and_ends_the_check():
    roaming, cookie = asked()
    roaming.connection.close(now=roaming.now)
    (event,) = roaming.wait(0)
    assert isinstance(event, ConnectionTerminated)
    assert event.cause == LocalClose()
    (sent,) = roaming.sent()
    assert (sent.kind, sent.path) == ("alert", AWAY)
    assert roaming.server.next_timeout() is None
    assert roaming.give(roaming.check(RESPONSE, cookie), AWAY) == []
    assert roaming.wait(100) == []
    assert roaming.counts == (0, 0, 0)


def test_a_close_that_comes_from_the_path_in_question_is_answered_there():
    roaming, _ = asked()
    events = roaming.give(roaming.made(ALERT, b"\x01\x00"), AWAY)
    assert isinstance(events[-1], ConnectionTerminated)
    assert events[-1].cause == PeerClose()
    assert [(sent.kind, sent.path) for sent in roaming.sent()] == [("alert", AWAY)]
    assert roaming.server.next_timeout() is None


def test_an_association_may_end_for_idleness_during_a_check():
    roaming = Roaming({"probe_timeout": 60}, both={"limits": Limits(idle_timeout_with_connection_id=100)})
    roaming.say(b"x" * 100, AWAY)
    assert roaming.wait(99) == []
    assert [sent.kind for sent in roaming.sent()] == ["challenge", "challenge"]
    assert roaming.connection.state is ConnectionState.CONNECTED
    (event,) = roaming.wait(1)
    assert isinstance(event, ConnectionTerminated)
    assert event.cause == IdleTimeout(100)
    assert [(sent.kind, sent.path) for sent in roaming.sent()] == [("alert", AWAY)]
    assert roaming.server.next_timeout() is None


def test_a_frozen_association_begins_the_check_anew():
    roaming, cookie = asked()
    blob = roaming.server.freeze(roaming.connection, now=roaming.now)
    roaming.connection = roaming.server.thaw(blob, now=roaming.now)
    assert roaming.connection.path == HOME
    roaming.give(roaming.check(RESPONSE, cookie), AWAY)  # of no use now, but a sign of life
    assert moves_in(roaming.give(roaming.answer(roaming.challenge()), AWAY)) == MOVED


def test_an_association_with_an_id_can_still_move_where_ids_have_been_configured_away():
    roaming = Roaming()
    blob = roaming.server.freeze(roaming.connection, now=roaming.now)
    roaming.server = Server(ServerConfig(connection_id=None), entropy=CounterEntropy(3), now=roaming.now)
    roaming.connection = roaming.server.thaw(blob, now=roaming.now)
    roaming.say(b"here", AWAY)
    assert moves_in(roaming.give(roaming.answer(roaming.challenge()), AWAY)) == MOVED


def test_an_association_is_not_frozen_while_its_path_is_asked():
    roaming = Roaming()
    roaming.server.replace_config(ServerConfig(freeze_after=0.5), now=roaming.now)
    roaming.say(b"x" * 50, AWAY)
    roaming.wait(2.9)
    assert [sent.kind for sent in roaming.sent()] == ["challenge"] * 3
    assert roaming.server.frozen == 0
    roaming.wait(1)
    assert roaming.counts == (0, 1, 0)
    assert roaming.server.frozen == 1


def test_a_device_that_wakes_its_frozen_association_from_elsewhere_is_asked_there():
    roaming = Roaming()
    roaming.server.replace_config(ServerConfig(freeze_after=0.5), now=roaming.now)
    roaming.say(b"good night", HOME)
    roaming.wait(3)
    assert roaming.server.frozen == 1
    thawed, received = roaming.say(b"awake", AWAY)
    assert isinstance(thawed, ConnectionThawed)
    assert data_in([received]) == [b"awake"]
    assert thawed.connection.path == HOME
    challenge = roaming.challenge()
    assert challenge.path == AWAY
    assert moves_in(roaming.give(roaming.answer(challenge), AWAY)) == MOVED
    roaming.wait(3)
    assert roaming.server.frozen == 1
    assert [type(event) for event in roaming.say(b"again", AWAY)] == [ConnectionThawed, DataReceived]
    assert roaming.sent() == []
