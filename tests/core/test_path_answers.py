"""Return routability checks, RFC 9853: the duties of who is asked, and what limits who asks."""

import pytest

from sansdtls import CipherSuite, ConnectionIdPolicy, Limits, PathProof
from sansdtls.paths import KEPT_RECORDS, PathCheck
from sansdtls.testing import CounterEntropy
from tests.core.roaming import (
    AWAY,
    BASIC,
    CHALLENGE,
    ENHANCED,
    HOME,
    RESPONSE,
    Roaming,
    device_config,
)

PROVEN = PathProof.RETURN_ROUTABILITY
MOVED = [(HOME, AWAY, PROVEN)]
OWN_ID = {"length": 6}


def asked() -> tuple[Roaming, bytes]:
    """The device has been heard at a new path, and the cookie that was sent there."""
    roaming = Roaming(BASIC)
    roaming.say(b"here", AWAY)
    return roaming, roaming.challenge().cookie


# --- what we answer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [BASIC, ENHANCED], ids=["basic", "enhanced"])
def test_a_challenge_on_the_path_in_use_is_answered_at_once_once_and_there(policy):
    roaming = Roaming(policy)
    challenge = roaming.check(CHALLENGE, b"saltsalt")
    assert roaming.give(challenge, HOME) == []
    (sent,) = roaming.sent()
    assert (sent.path, sent.kind, sent.cookie) == (HOME, "response", b"saltsalt")
    roaming.give(challenge, HOME)
    assert roaming.sent() == []


@pytest.mark.parametrize("policy", [BASIC, ENHANCED], ids=["basic", "enhanced"])
def test_a_challenge_on_a_new_path_is_answered_there_and_makes_us_ask(policy):
    roaming = Roaming(policy)
    roaming.give(roaming.check(CHALLENGE, b"saltsalt"), AWAY)
    challenge, response = roaming.sent()
    assert (challenge.kind, challenge.path) == ("challenge", AWAY if policy is BASIC else HOME)
    assert (response.kind, response.path, response.cookie) == ("response", AWAY, b"saltsalt")


def test_an_answer_to_a_path_in_question_is_taken_from_its_budget():
    roaming = Roaming(BASIC)
    datagram = roaming.check(CHALLENGE, b"saltsalt")
    roaming.give(datagram, AWAY)
    room = 3 * len(datagram) - sum(len(sent.datagram) for sent in roaming.sent())
    overhead = roaming.connection._layer.write.overhead
    for size in (room + 1, room):
        roaming.connection.send(bytes(size - overhead), now=roaming.now)
    assert [(len(sent.datagram), sent.path) for sent in roaming.sent()] == [(room + 1, HOME), (room, AWAY)]


def test_a_challenge_that_was_overtaken_on_the_path_in_question_is_answered_by_a_response():
    roaming = Roaming(BASIC)
    late = roaming.check(CHALLENGE, b"saltsalt")
    roaming.say(b"overtakes", AWAY)
    roaming.sent()
    roaming.give(late, AWAY)
    (sent,) = roaming.sent()
    assert (sent.kind, sent.path) == ("response", AWAY)


def test_a_challenge_on_a_path_that_the_peer_has_left_is_answered_by_path_drop():
    # RFC 9853 §5.2: "If the path through which the message was received is no longer preferred, a [...] path_drop
    # MUST be returned."
    roaming, cookie = asked()
    late = roaming.check(CHALLENGE, b"saltsalt")
    roaming.give(roaming.check(RESPONSE, cookie), AWAY)
    assert roaming.moves == MOVED
    roaming.give(late, HOME)
    (sent,) = roaming.sent()
    assert (sent.kind, sent.path, sent.cookie) == ("drop", HOME, b"saltsalt")
    assert roaming.connection.path == AWAY


@pytest.mark.parametrize("path", [HOME, AWAY])
def test_a_client_with_an_id_of_its_own_answers_by_the_same_rules(path):
    roaming = Roaming(client=OWN_ID)
    challenge = roaming.connection._layer.write.record(27, b"\0saltsalt")
    at = "server" if path == HOME else "server 2"
    roaming.device.receive_datagram(challenge, now=roaming.now, path=at)
    sent = roaming.device.datagrams_to_send()
    assert [outgoing.path for outgoing in sent] == ([at] if path == HOME else [at, at])
    roaming.give(sent[-1].data, HOME)
    assert roaming.counts == (0, 0, 1)


# --- limits -------------------------------------------------------------------------------------------


def test_checks_leave_the_last_numbers_to_data_and_close_notify():
    roaming = Roaming(both={"limits": Limits(max_sealed_records=64)})
    write = roaming.connection._layer.write
    write.next_sequence_number = 64 - KEPT_RECORDS - 1
    roaming.say(b"x" * 100, AWAY)
    roaming.challenge()
    assert write.remaining == KEPT_RECORDS
    roaming.wait(1.5)
    roaming.give(roaming.check(CHALLENGE, b"saltsalt"), AWAY)
    assert roaming.sent() == []
    assert write.remaining == KEPT_RECORDS
    roaming.connection.send(b"last", now=roaming.now)
    assert [sent.kind for sent in roaming.sent()] == ["data", "alert"]


def test_a_challenge_for_which_there_is_no_room_waits_until_more_has_come():
    roaming = Roaming(BASIC)
    layer = roaming.connection._layer
    challenge_length = layer.write.overhead + 9
    check = PathCheck(layer, ConnectionIdPolicy(), CounterEntropy(9), AWAY, 10)
    layer.path_check = check
    check.ask_new_path(roaming.now)
    assert roaming.sent() == []
    check.hear(challenge_length // 3 - 10)
    assert roaming.sent() == []
    check.hear(1)
    assert roaming.challenge().path == AWAY
    check.hear(1000)  # asked it is
    assert roaming.sent() == []


def test_the_smallest_record_of_the_smallest_suite_buys_a_challenge_and_its_repetition():
    roaming = Roaming(
        {"length": 1}, {"length": 20}, both={"cipher_suites": (CipherSuite.TLS_PSK_WITH_AES_128_CCM_8,)}
    )
    roaming.say(b"", AWAY)
    assert roaming.challenge().path == AWAY
    roaming.wait(1)
    assert len(roaming.sent()) <= 1


def test_the_deadlines_of_checks_do_not_pile_up():
    roaming = Roaming(BASIC)
    roaming.pair.connect(device_config(), "silent")  # its idle timeout stays before all that come
    roaming.pair.run_for(5)
    roaming.now = roaming.pair.now
    for _ in range(300):
        roaming.say(b"away", AWAY)
        roaming.say(b"back", HOME)
        roaming.wait(5)
        roaming.sent()
    assert len(roaming.server._deadlines) < 150
