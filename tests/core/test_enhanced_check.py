"""The enhanced return routability check, RFC 9853 §5.2, and the off-path forwarder that it is for."""

import pytest

from sansdtls import PathProof
from sansdtls.testing import Fate
from tests.core import raw
from tests.core.roaming import (
    AWAY,
    BASIC,
    DROP,
    ENHANCED,
    HOME,
    MOVE,
    RESPONSE,
    THIRD,
    Roaming,
    data_in,
    moves_in,
    pair_of,
)

PROVEN = PathProof.RETURN_ROUTABILITY
MOVED = [(HOME, AWAY, PROVEN)]
ATTACKER = "attacker"


def asked() -> tuple[Roaming, bytes]:
    """The device has been heard at a new path, and the cookie that was sent to the old one."""
    roaming = Roaming(ENHANCED)
    roaming.say(b"here", AWAY)
    challenge = roaming.challenge()
    assert challenge.path == HOME
    return roaming, challenge.cookie


# --- the old path is asked first ----------------------------------------------------------------------


def test_where_the_old_path_answers_nothing_moves():
    # RFC 9853 §5.2: "the initiator MUST continue using the previously valid address"
    roaming = Roaming(ENHANCED)
    roaming.say(b"here", AWAY)
    assert roaming.give(roaming.answer(roaming.challenge()), HOME) == []
    assert roaming.wait(100) == []
    assert roaming.sent() == []
    assert roaming.connection.path == HOME
    assert roaming.counts == (0, 1, 0)


def test_where_the_old_path_is_dropped_by_the_peer_the_new_one_is_asked_at_once():
    roaming, cookie = asked()
    assert roaming.give(roaming.check(DROP, cookie), HOME) == []
    challenge = roaming.challenge()
    assert challenge.path == AWAY
    assert challenge.cookie != cookie
    assert moves_in(roaming.give(roaming.answer(challenge), AWAY)) == MOVED
    assert roaming.counts == (1, 0, 0)


def test_where_the_old_path_does_not_answer_the_new_one_is_asked():
    roaming = Roaming({**ENHANCED, "probe_timeout": 0.9, "max_probes": 3})
    start = roaming.now
    roaming.say(b"x" * 50, AWAY)
    cookies = [roaming.challenge().cookie]
    for turn in (1, 2):  # three times in the course of one timeout
        roaming.wait(start + 0.3 * turn - roaming.now - 0.001)
        assert roaming.sent() == []
        roaming.wait(0.002)
        challenge = roaming.challenge()
        assert challenge.path == HOME
        cookies.append(challenge.cookie)
    roaming.wait(start + 0.9 - roaming.now - 0.001)
    assert roaming.sent() == []
    roaming.wait(0.002)
    challenge = roaming.challenge()
    assert challenge.path == AWAY
    cookies.append(challenge.cookie)
    assert len(set(cookies)) == 4
    roaming.wait(0.5)  # one timeout for each challenge there
    assert roaming.sent() == []
    assert moves_in(roaming.give(roaming.answer(challenge), AWAY)) == MOVED
    assert roaming.counts == (1, 0, 0)


def test_where_neither_path_answers_nothing_moves():
    roaming = Roaming(ENHANCED)
    roaming.say(b"x" * 50, AWAY)
    roaming.wait(3.99)
    assert roaming.counts == (0, 0, 0)
    roaming.wait(0.02)
    assert roaming.counts == (0, 1, 0)
    assert [sent.path for sent in roaming.sent()] == [HOME] * 3 + [AWAY] * 3
    assert roaming.connection.path == HOME
    assert roaming.wait(100) == []
    assert roaming.sent() == []


def test_data_go_to_the_old_path_while_it_is_asked_and_to_the_new_one_while_that_is():
    roaming, cookie = asked()
    roaming.connection.send(b"1", now=roaming.now)
    roaming.give(roaming.check(DROP, cookie), HOME)
    roaming.connection.send(b"2", now=roaming.now)
    assert [(sent.kind, sent.path) for sent in roaming.sent()] == [
        ("data", HOME),
        ("challenge", AWAY),
        ("data", AWAY),
    ]


@pytest.mark.parametrize("path", [AWAY, THIRD])
def test_the_answer_of_the_old_path_counts_wherever_a_copy_of_it_comes_from(path):
    # Who forwards the peer's datagrams faster than they travel has its copy of the answer arrive first.
    roaming, cookie = asked()
    answer = roaming.check(RESPONSE, cookie)
    assert roaming.give(answer, path) == []
    assert roaming.give(answer, HOME) == []  # the original: a replay now
    assert roaming.wait(100) == []
    assert roaming.sent() == []
    assert roaming.connection.path == HOME
    assert roaming.counts == (0, 1, 0)


def test_an_answer_that_comes_while_the_new_path_is_asked_already_still_ends_the_check():
    roaming, cookie = asked()
    roaming.wait(1.5)
    assert roaming.sent()[-1].path == AWAY
    assert roaming.give(roaming.check(RESPONSE, cookie), HOME) == []
    assert not roaming.connection.path_check_under_way
    assert roaming.counts == (0, 1, 1)  # no answer to what is asked now, but the peer is there


def test_a_path_drop_that_comes_late_does_not_end_it():
    roaming, cookie = asked()
    roaming.wait(1.5)
    challenge = roaming.sent()[-1]
    assert roaming.give(roaming.check(DROP, cookie), HOME) == []
    assert roaming.counts == (0, 0, 1)
    assert moves_in(roaming.give(roaming.answer(challenge), AWAY)) == MOVED


@pytest.mark.parametrize("kind", [RESPONSE, DROP])
def test_an_answer_with_a_wrong_cookie_decides_nothing(kind):
    roaming, cookie = asked()
    wrong = roaming.check(kind, bytes(8))
    roaming.say(b"overtakes", AWAY)
    assert roaming.give(wrong, HOME) == []
    assert roaming.counts == (0, 0, 1)
    assert roaming.connection.path_check_under_way
    roaming.give(roaming.check(DROP, cookie), HOME)
    assert roaming.sent()[-1].path == AWAY


def test_the_cookie_of_the_old_path_does_not_prove_the_new_one():
    roaming, cookie = asked()
    roaming.give(roaming.check(DROP, cookie), HOME)
    roaming.sent()
    assert roaming.give(roaming.check(RESPONSE, cookie), AWAY) == []
    assert roaming.connection.path == HOME
    assert roaming.counts == (0, 0, 1)


def test_a_third_path_begins_with_the_old_one_again():
    roaming, _ = asked()
    roaming.wait(1.2)
    roaming.sent()
    roaming.say(b"x", THIRD)
    assert roaming.challenge().path == HOME
    assert roaming.counts == (0, 1, 0)
    roaming.wait(1)
    challenge = roaming.sent()[-1]
    assert challenge.path == THIRD
    assert moves_in(roaming.give(roaming.answer(challenge), THIRD)) == [(HOME, THIRD, PROVEN)]


# --- over the network ---------------------------------------------------------------------------------


def test_a_nat_that_forgets_costs_one_probe_timeout():
    pair = pair_of({**ENHANCED, "probe_timeout": 0.5}, delay=0.05)
    pair.move(pair.client_end, AWAY)
    start = pair.now
    pair.client.send(b"x", now=pair.now)
    pair.run_until(lambda: pair.server_connection.path == AWAY)
    assert pair.now - start == pytest.approx(0.05 + 0.5 + 0.1)


def test_a_device_that_can_still_be_reached_at_its_old_address_stays_there():
    pair = pair_of(ENHANCED, delay=0.05)
    pair.move(pair.client_end, AWAY, keep_old=True)
    for number in range(5):
        pair.client.send(b"%d" % number, now=pair.now)
        pair.run_for(2)
        pair.server_connection.send(b"answer %d" % number, now=pair.now)
    pair.run_for(5)
    assert pair.server_connection.path == HOME
    assert pair.client_end.received == [b"answer %d" % number for number in range(5)]


def forward(pair, *, answers: bool = True) -> None:
    """An attacker beside the path: sees what the client sends, and its copies are faster than the originals.

    With ``answers`` it passes on what comes to its address, as the server's.
    """

    def tap(datagram):
        if datagram.source == HOME:
            pair.network.inject(ATTACKER, "server", datagram.data)
        elif datagram.destination == ATTACKER and answers:
            pair.network.inject("server", HOME, datagram.data)
        return [datagram.data]

    pair.network.add_tap(tap)


def talk(pair, rounds: int = 6) -> None:
    for number in range(rounds):
        pair.client.send(b"%d" % number, now=pair.now)
        pair.run_for(0.2)
        pair.server_connection.send(b"re %d" % number, now=pair.now)
        pair.run_for(5)


@pytest.mark.parametrize(
    ("policy", "captured"),
    [(MOVE, True), (BASIC, True), (ENHANCED, False)],
    ids=["move", "basic", "enhanced"],
)
def test_who_forwards_faster_than_the_path_gets_between_the_peers_unless_the_old_path_is_asked(
    policy, captured
):
    # RFC 9853 §8.1.2: this is what BASIC does not protect from, and ENHANCED does.
    pair = pair_of(policy, delay=0.02)
    forward(pair)
    talk(pair)
    assert pair.server_connection.path == (ATTACKER if captured else HOME)
    assert pair.server_received() == [b"%d" % number for number in range(6)]
    assert pair.client_end.received == [b"re %d" % number for number in range(6)]
    assert [new for _, new, _ in moves_in(pair.server_events)] == [ATTACKER] * captured


def test_who_cannot_receive_what_is_sent_to_its_address_moves_nothing():
    # Copies with a spoofed source: the victim gets at most three times their bytes, and no path changes.
    pair = pair_of(BASIC, delay=0.02)
    forward(pair, answers=False)
    talk(pair, 20)
    assert pair.server_connection.path == HOME
    injected = sum(
        len(carried.datagram.data)
        for carried in pair.network.log
        if carried.datagram.source == ATTACKER and carried.fate is Fate.DELIVERED
    )
    received = sum(len(datagram.data) for datagram in pair.network.sent_by("server", to=ATTACKER))
    assert 0 < received <= 3 * injected
    assert moves_in(pair.server_events) == []


def test_under_enhanced_an_attacker_that_forwards_only_data_captures_nothing_either():
    pair = pair_of(ENHANCED, delay=0.02)

    def tap(datagram):
        # 48 bytes: application data of one byte; it leaves challenges and their answers alone
        if datagram.source == HOME and len(datagram.data) < 50:
            pair.network.inject(ATTACKER, "server", datagram.data)
        elif datagram.destination == ATTACKER:
            pair.network.inject("server", HOME, datagram.data)
        return [datagram.data]

    pair.network.add_tap(tap)
    talk(pair)
    assert pair.server_connection.path == HOME
    assert pair.network.sent_by("server", to=ATTACKER) == []


@pytest.mark.parametrize("policy", [BASIC, ENHANCED], ids=["basic", "enhanced"])
def test_a_stranger_that_spoofs_the_clients_address_or_any_other_is_noise(policy):
    pair = pair_of(policy, delay=0.02)
    pair.move(pair.client_end, AWAY)
    pair.client.send(b"x", now=pair.now)
    pair.run_for(0.03)
    for source in (HOME, AWAY, ATTACKER):  # with the check under way
        for datagram in pair.network.sent_by(AWAY):
            pair.network.inject(source, "server", datagram.data)
            pair.network.inject(source, "server", datagram.data[:-1] + bytes([datagram.data[-1] ^ 1]))
    pair.run_for(5)
    assert pair.server_connection.path == AWAY
    assert len(moves_in(pair.server_events)) == 1
    assert pair.server_received() == [b"x"]


# --- a bad network ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [BASIC, ENHANCED], ids=["basic", "enhanced"])
@pytest.mark.parametrize("lost", range(5))
def test_any_single_datagram_of_a_check_may_be_lost(policy, lost):
    pair = pair_of(policy, delay=0.02)
    pair.move(pair.client_end, AWAY)
    pair.client.send(b"x", now=pair.now)
    pair.run_for(0.021)
    seen = []

    def tap(datagram):
        seen.append(datagram)
        return [] if len(seen) == lost + 1 else [datagram.data]

    pair.network.add_tap(tap)
    pair.run_for(5)
    assert pair.server_connection.path == AWAY
    assert len(moves_in(pair.server_events)) == 1


@pytest.mark.parametrize("policy", [BASIC, ENHANCED], ids=["basic", "enhanced"])
@pytest.mark.parametrize("seed", range(40))
def test_a_device_is_found_again_over_a_terrible_network(policy, seed):
    pair = pair_of(policy, {"length": 4}, seed=seed, delay=0.02, hold_back=0.3)
    network = pair.network
    network.loss, network.duplicate, network.reorder = 0.2, 0.3, 0.3
    sent: list[bytes] = []
    for hop in range(4):
        pair.move(pair.client_end, ("hop", hop))
        while pair.server_connection.path != ("hop", hop):
            sent.append(b"%d" % len(sent))
            pair.client.send(sent[-1], now=pair.now)
            pair.run_for(1)
            assert len(sent) < 200, f"seed {seed}"
    received = pair.server_received()
    assert len(received) == len(set(received))
    assert set(received) <= set(sent)
    assert pair.client.path == "server"
    assert [new for _, new, _ in moves_in(pair.server_events)] == [("hop", hop) for hop in range(4)]


def test_every_challenge_is_a_datagram_of_its_own():
    # RFC 9853 §5.3: "Each path_challenge SHOULD go into different transport packets."
    roaming = Roaming(BASIC)
    assert data_in(roaming.say(b"x" * 99, AWAY)) == [b"x" * 99]
    roaming.wait(5)
    for sent in roaming.sent():
        assert len(raw.records(sent.datagram)) == 1
