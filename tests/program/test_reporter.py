"""What becomes of the engine's facts: log lines and forwarded data."""

import io
import json
from types import SimpleNamespace
from typing import Any

import pytest

from endpoint.association import CredentialKind
from endpoint.forward.echo import Echo
from endpoint.logs import Throttle, make_log
from endpoint.reporter import Reporter
from sansdtls import (
    AlertDescription,
    AuthenticationFailed,
    AuthenticationProblem,
    CipherSuite,
    HandshakeTimeout,
    PathProof,
    PeerAlert,
    PeerClose,
)

PATH = (0, ("192.0.2.7", 40000))


class Collector(Echo):
    def __init__(self):
        super().__init__()
        self.delivered: list[Any] = []

    def deliver(self, association, data):
        self.delivered.append((association, data))


class Bench:
    """A reporter with everything around it."""

    def __init__(self, burst=10, level="info"):
        self.stream = io.BytesIO()
        self.now = 0.0
        self.forwarder = Collector()
        throttle = Throttle(rate=1, burst=burst, clock=lambda: self.now)
        self.reporter = Reporter(
            make_log(self.stream, level=level, wall=lambda: 0.0), throttle, self.forwarder
        )

    def facts(self):
        lines = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        for line in lines:
            del line["time"]
        return lines


@pytest.fixture
def bench():
    return Bench()


@pytest.fixture
def association():
    negotiated = SimpleNamespace(cipher_suite=CipherSuite.TLS_PSK_WITH_AES_128_CCM_8, resumed=False)
    return SimpleNamespace(
        identity=b"meter\n17",
        remote="192.0.2.7:40000",
        kind=CredentialKind.PSK,
        key_index=1,
        connection=SimpleNamespace(negotiated=negotiated),
    )


def test_sleep_is_for_those_who_look_closely_and_a_move_is_for_all(association):
    bench = Bench(level="debug")
    bench.reporter.frozen(association)
    bench.reporter.thawed(association)
    bench.reporter.moved(association, (0, ("198.51.100.9", 1024)), PathProof.RETURN_ROUTABILITY)
    about = {"identity": "meter\\x0a17", "path": "192.0.2.7:40000"}
    assert bench.facts() == [
        {"event": "frozen", "level": "debug"} | about,
        {"event": "thawed", "level": "debug"} | about,
        {"event": "moved", "level": "info", "before": "198.51.100.9:1024", "proof": "return_routability"}
        | about,
    ]
    quiet = Bench()
    quiet.reporter.frozen(association)
    quiet.reporter.thawed(association)
    assert quiet.facts() == []


def test_a_move_that_nothing_proves_is_for_those_who_look_closely(association):
    bench = Bench(level="debug")
    request = SimpleNamespace(new=(0, ("198.51.100.9", 1024)))
    bench.reporter.move_requested(association, request)  # type: ignore[arg-type]
    (fact,) = bench.facts()
    assert (fact["event"], fact["path"], fact["heard_at"]) == (
        "move_not_proven",
        "192.0.2.7:40000",
        "198.51.100.9:1024",
    )


def test_an_empty_datagram_is_not_handed_on(bench, association):
    for data in (b"", b"21.4", b"", b"\0"):
        bench.reporter.received(association, data)
    assert bench.forwarder.delivered == [(association, b"21.4"), (association, b"\0")]


def test_a_connection_is_told_with_the_key_that_matched(bench, association):
    bench.reporter.completed(association)
    assert bench.facts() == [
        {
            "event": "connected",
            "identity": "meter\\x0a17",
            "path": "192.0.2.7:40000",
            "credential": "psk",
            "cipher_suite": "TLS_PSK_WITH_AES_128_CCM_8",
            "resumed": False,
            "key_used": "next",
            "level": "info",
        }
    ]


def test_an_end_is_told_with_its_cause(bench, association):
    bench.reporter.terminated(association, PeerClose())
    (fact,) = bench.facts()
    assert fact["event"] == "disconnected"
    assert fact["cause"] == "PeerClose"
    assert fact["reason"] == "closed by the peer"


@pytest.mark.parametrize("problem", [AuthenticationProblem.WRONG_KEY, AuthenticationProblem.UNKNOWN_IDENTITY])
def test_wrong_key_and_unknown_identity_are_told_apart(bench, problem):
    bench.reporter.handshake_failed(PATH, b"meter\x1b17", AuthenticationFailed(problem, b"meter\x1b17"), None)
    (fact,) = bench.facts()
    assert fact.pop("reason")
    assert fact == {
        "event": "handshake_failed",
        "cause": f"AuthenticationFailed.{problem.value}",
        "identity": "meter\\x1b17",
        "path": "192.0.2.7:40000",
        "level": "warning",
    }


def test_a_handshake_that_ended_before_an_identity_was_named_has_none(bench):
    bench.reporter.handshake_failed(PATH, None, HandshakeTimeout("AWAIT_CLIENT_KEY_EXCHANGE"), None)
    (fact,) = bench.facts()
    assert fact["identity"] is None
    assert "AWAIT_CLIENT_KEY_EXCHANGE" in fact["reason"]


def test_failures_of_one_cause_are_throttled_and_counted():
    bench = Bench(burst=2)
    for number in range(5):
        bench.reporter.handshake_failed(PATH, b"m%d" % number, HandshakeTimeout("X"), None)
    bench.reporter.handshake_failed(PATH, b"n", PeerAlert(AlertDescription.INTERNAL_ERROR), None)
    bench.now = 1.0
    bench.reporter.handshake_failed(PATH, b"m9", HandshakeTimeout("X"), None)
    assert [(fact["identity"], fact.get("held_back")) for fact in bench.facts()] == [
        ("m0", None),
        ("m1", None),
        ("n", None),
        ("m9", 3),
    ]


def test_refusals_are_throttled_by_quota():
    bench = Bench(burst=1)
    for _ in range(3):
        bench.reporter.refused(PATH, "handshakes_per_second")
    bench.reporter.refused(PATH, "datagrams_per_second")
    assert [fact["quota"] for fact in bench.facts()] == ["handshakes_per_second", "datagrams_per_second"]


def test_trouble_becomes_a_line_of_its_own_name_and_cannot_forge_one(bench):
    bench.reporter.trouble("key store failed", identity=b"x\n\xff", reason="timeout\n", event="listening")
    assert bench.facts() == [
        {"event": "key_store_failed", "identity": "x\\x0a\\xff", "reason": "timeout\n", "level": "warning"}
    ]


def test_data_go_to_the_forwarder(bench, association):
    bench.reporter.received(association, b"21.4")
    assert bench.forwarder.delivered == [(association, b"21.4")]
    assert bench.facts() == []
