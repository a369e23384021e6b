"""Nobody can be flooded through us: at most three bytes to an unproven path for each authentic one from there."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sansdtls import CipherSuite, ConnectionState, WrongState
from tests.core.roaming import APPLICATION, AWAY, BASIC, CHALLENGE, ENHANCED, HOME, THIRD, Roaming

PATHS = [HOME, AWAY, THIRD, "fourth"]
paths = st.sampled_from(PATHS)
sizes = st.integers(0, 600)

steps = st.lists(
    st.one_of(
        st.tuples(st.just("make"), sizes),
        st.tuples(st.just("make challenge"), sizes),
        st.tuples(st.just("say"), sizes, paths),
        st.tuples(st.just("give"), st.integers(0, 100), paths),
        st.tuples(st.just("give again"), st.integers(0, 100), paths),
        st.tuples(st.just("answer"), st.integers(0, 100), paths),
        st.tuples(st.just("send"), sizes),
        st.tuples(st.just("fill"), st.integers(0, 1)),
        st.tuples(st.just("send to"), sizes, paths),
        st.tuples(st.just("wait"), st.floats(0, 3)),
        st.tuples(st.just("confirm")),
    ),
    max_size=30,
)


class Ledger:
    """Bytes in and out of each path while it was not the one in use."""

    def __init__(self, roaming: Roaming):
        self.roaming = roaming
        self.came: Counter = Counter()
        self.went: Counter = Counter()
        self.held: list[bytes] = []
        """Datagrams that the device has made and nobody has handed over."""
        self.given: list[bytes] = []
        self.challenges: list = []
        self.collect()

    def collect(self) -> None:
        for sent in self.roaming.sent():
            if sent.path != self.roaming.connection.path:
                self.went[sent.path] += len(sent.datagram)
            if sent.kind == "challenge":
                self.challenges.append(sent)
        for path, bytes_out in self.went.items():
            assert bytes_out <= 3 * self.came[path], f"{path} was amplified"

    def give(self, datagram: bytes, path: object) -> None:
        in_use = self.roaming.connection.path
        window = self.roaming.connection._layer.read.window
        before = window.highest, window.seen
        self.roaming.give(datagram, path)
        if (window.highest, window.seen) != before and path != in_use:
            self.came[path] += len(datagram)
        self.collect()

    def do(self, what: str, *arguments) -> None:
        roaming = self.roaming
        if what == "make":
            self.held.append(roaming.data(bytes(arguments[0])))
        elif what == "make challenge" and roaming.connection._checks_paths:
            self.held.append(roaming.check(CHALLENGE, arguments[0].to_bytes(8)))
        elif what == "say":
            self.given.append(roaming.data(bytes(arguments[0])))
            self.give(self.given[-1], arguments[1])
        elif what == "give" and self.held:
            datagram = self.held.pop(arguments[0] % len(self.held))
            self.given.append(datagram)
            self.give(datagram, arguments[1])
        elif what == "give again" and self.given:
            self.give(self.given[arguments[0] % len(self.given)], arguments[1])
        elif what == "answer" and self.challenges:
            challenge = self.challenges.pop(arguments[0] % len(self.challenges))
            self.give(roaming.check(1, challenge.cookie), arguments[1])
        elif what == "send":
            roaming.connection.send(bytes(arguments[0]), now=roaming.now)
        elif what == "fill" and (check := roaming.connection._layer.path_check) is not None:
            # As much as the budget allows, or a byte more.
            room = 3 * check._received - check._sent - roaming.connection._layer.write.overhead + arguments[0]
            if 0 <= room <= roaming.connection.max_payload:
                roaming.connection.send(bytes(room), now=roaming.now)
        elif what == "send to":
            try:
                roaming.connection.send(bytes(arguments[0]), now=roaming.now, path=arguments[1])
            except WrongState:
                assert arguments[1] != roaming.connection.path
        elif what == "wait":
            roaming.wait(arguments[0])
        elif what == "confirm":
            check = roaming.connection._layer.path_check
            if check is not None and check.request is not None:
                roaming.connection.confirm_path(check.request, now=roaming.now)
                assert roaming.connection.path == check.candidate
        self.collect()


@pytest.mark.parametrize("policy", [BASIC, ENHANCED, APPLICATION], ids=["basic", "enhanced", "application"])
@pytest.mark.parametrize(
    ("own", "suite"),
    [
        ({"length": 0}, CipherSuite.TLS_PSK_WITH_AES_128_GCM_SHA256),
        ({"length": 20, "padding": 64}, CipherSuite.TLS_PSK_WITH_AES_128_CCM_8),
    ],
    ids=["no ID", "long ID"],
)
@settings(max_examples=150)
@given(steps=steps)
def test_no_sequence_of_datagrams_sends_more_than_three_times_of_what_came(policy, own, suite, steps):
    ledger = Ledger(
        Roaming(
            {**policy, "length": 1, "padding": own.get("padding", 1)}, own, both={"cipher_suites": (suite,)}
        )
    )
    for step in steps:
        ledger.do(*step)
    assert ledger.roaming.connection.state is ConnectionState.CONNECTED
    ledger.roaming.connection.close(now=ledger.roaming.now)
    ledger.collect()


def test_a_challenge_that_would_be_answered_by_far_more_is_not_answered():
    # A peer may ask for IDs of up to 255 bytes, which our records then carry.
    roaming = Roaming(BASIC)
    late = roaming.check(CHALLENGE, b"saltsalt")
    roaming.say(b"newer", HOME)
    write = roaming.connection._layer.write
    write.overhead += 255
    roaming.give(late, AWAY)
    assert roaming.sent() == []
    roaming.give(roaming.check(CHALLENGE, b"saltsalt"), AWAY)
    assert roaming.sent() == []
    roaming.give(roaming.check(CHALLENGE, b"saltsalt"), HOME)
    assert [sent.kind for sent in roaming.sent()] == ["response"]
