"""``dtls_ruleset`` and what is on its way when the first rules come: conntrack gets to know it before."""

import itertools
import select
import socket
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.namespaces import inside
from tests.roles.guarded import (
    BETTER,
    GOOD,
    GOOD4,
    SCRIPT,
    SOON,
    break_sessions,
    end,
    on,
    patched,
    ruleset,
    strip,
    until,
    written,
)
from tests.roles.plays import Plays

ROUND_TRIP = 0.4
QUESTIONS = 10
"""Sockets that ask in turn, so that an answer is there before the same one asks again, which would make it an answer to that."""
PACE = 0.05
"""Seconds between two questions: of eight flows there is always something under way."""
LEARNING = 3
"""Seconds: of an answer that is late because this machine stands still, more is not known either."""
LEARNS = (
    "nft list ruleset | grep -e sansdtls_learn -e guard-learn; "
    "for ip in ip ip6; do ${ip}tables-legacy -S | grep guard-learn; done"
)
"""Shows what conntrack learns by."""
ASKS_NOTHING = GOOD.replace("ct state established,related accept", "udp sport 9999 accept").replace(
    "chain input {", 'chain input {\n    comment "ct state established";'
)


@pytest.fixture(scope="module")
def plays(fleet):
    return Plays(fleet)


@pytest.fixture(autouse=True)
def bare(fleet):
    """Every host without rules."""
    strip(fleet)


class FarAway:
    """Somebody whose answers take a while, and a device's questions to it; use it in a ``with`` statement."""

    def __init__(self, fleet, host):
        self.asked = self.answered = 0
        self._end = threading.Event()
        self._peer = inside(fleet.network.controller, lambda: _udp(("10.77.0.1", 9999)))
        self._own = inside(host.namespace, lambda: [_udp((host.address, 0)) for _ in range(QUESTIONS)])
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._answer, self._ask)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        until(lambda: self.answered > QUESTIONS, "no answer comes")
        return self

    def __exit__(self, *_):
        self._end.set()
        for thread in self._threads:
            thread.join()
        for one in (self._peer, *self._own):
            one.close()

    def _answer(self):
        waiting: deque[tuple[float, bytes, tuple[str, int]]] = deque()
        while not self._end.is_set() or waiting:
            if select.select([self._peer], [], [], PACE / 5)[0]:
                waiting.append((time.monotonic() + ROUND_TRIP, *self._peer.recvfrom(100)))
            while waiting and waiting[0][0] <= time.monotonic():
                _, data, source = waiting.popleft()
                self._peer.sendto(data, source)

    def _ask(self):
        for asking in itertools.cycle(self._own):
            asking.sendto(b"?", ("10.77.0.1", 9999))
            self.asked += 1
            self._hear(PACE)
            if self._end.is_set():
                # By the clock, and to the last that has come: this thread may have stood still.
                self._hear(4 * ROUND_TRIP)
                while select.select(self._own, [], [], ROUND_TRIP)[0]:
                    self._hear(0)
                return

    def _hear(self, seconds):
        end = time.monotonic() + seconds
        while True:
            left = end - time.monotonic()
            for answered in select.select(self._own, [], [], max(0.0, left))[0]:
                answered.recv(100)
                self.answered += 1
            if left <= 0:
                return


def _udp(address):
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(address)
    return made


BACKENDS = pytest.mark.parametrize(
    ("name", "backend", "content"),
    [
        ("device-1", "nft", GOOD),
        ("device-1", "iptables-legacy", GOOD4),
        ("endpoint-1", "iptables-nft", GOOD4),
    ],
    ids=["nft", "iptables-legacy", "iptables-nft"],
)


@BACKENDS
def test_what_is_on_its_way_when_the_first_rules_come_arrives(fleet, plays, name, backend, content):
    with FarAway(fleet, fleet[name]) as far:
        told = plays.run(
            ruleset(content, name="first", backend=backend, learn=LEARNING),
            ruleset(content.replace("5684", "5685"), name="second", backend=backend, learn=LEARNING),
            hosts=name,
        )
    assert [told.of(name, step).state for step in ("first", "second")] == ["changed", "changed"]
    assert far.answered == far.asked
    assert not on(fleet[name], LEARNS, check=False)


@BACKENDS
def test_without_that_it_would_be_lost(fleet, plays, name, backend, content):
    with FarAway(fleet, fleet[name]) as far:
        plays.run(ruleset(content, backend=backend, learn=0), hosts=name)
    assert far.answered < far.asked


def test_only_for_the_first_rules_that_ask_conntrack_is_it_waited(fleet, plays):
    never = {"learn": 60, "rollback_after": 600}
    began = time.monotonic()
    plays.run(
        ruleset(ASKS_NOTHING, name="asks nothing", **never),
        ruleset(GOOD, name="first", learn=0),
        ruleset(BETTER, name="second", **never),
        hosts="device-1",
    )
    assert time.monotonic() - began < never["learn"]


def begin_to_learn(fleet, plays, tmp_path, name, task):
    """Start a run whose host never has enough of learning."""
    run = fleet.start_playbook(
        plays.write([task], hosts=name), **patched(tmp_path, (SCRIPT, 'sleep "$learn"', "sleep 600"))
    )
    until(lambda: on(fleet[name], LEARNS, check=False), "it does not begin to learn")
    return run


def test_a_run_after_one_that_was_killed_while_conntrack_learned_lets_it_learn_as_well(
    fleet, plays, tmp_path
):
    waits = ruleset(GOOD, learn=LEARNING, rollback_after=600)
    end(begin_to_learn(fleet, plays, tmp_path, "device-1", waits))
    began = time.monotonic()
    told = plays.run(ruleset(GOOD, learn=4), hosts="device-1")
    assert time.monotonic() - began >= 4
    assert told.of("device-1", "rules")["confirmed"]


@BACKENDS
def test_a_connection_that_breaks_while_conntrack_learns_breaks_nothing_else(
    fleet, plays, name, backend, content
):
    with ThreadPoolExecutor() as other:
        run = other.submit(plays.run, ruleset(content, backend=backend, learn=3), hosts=name)
        until(lambda: on(fleet[name], LEARNS, check=False), "it does not begin to learn")
        break_sessions(fleet[name])
        told = run.result()
    assert told.of(name, "rules")["confirmed"]
    assert told.of(name, "rules").state == "changed"


@BACKENDS
def test_a_run_that_comes_to_nothing_while_conntrack_learns_leaves_nothing(
    fleet, plays, tmp_path, name, backend, content
):
    host = fleet[name]
    waits = ruleset(content, backend=backend, learn=LEARNING, rollback_after=SOON)
    run = begin_to_learn(fleet, plays, tmp_path, name, waits)
    try:
        everything = (
            "nft list ruleset | grep guard; for ip in ip ip6; do ${ip}tables-legacy -S | grep guard; done"
        )
        until(lambda: not on(host, everything, check=False), "what it has begun is not undone")
    finally:
        end(run)
    assert written(host) is None
