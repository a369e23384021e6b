"""What is counted of devices, for ever and for the last minutes; and how long things take."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endpoint.association import CredentialKind
from endpoint.histogram import Histogram
from endpoint.tally import MAX_LABELS, SLOT, SLOTS, Tally
from endpoint.verification import PeerRejected
from sansdtls import (
    AuthenticationFailed,
    AuthenticationProblem,
    CipherSuite,
    HandshakeTimeout,
    IdleTimeout,
    PeerClose,
)

PATH = (0, ("192.0.2.7", 40000))
REJECTED = AuthenticationFailed(AuthenticationProblem.PEER_REJECTED)


class Bench:
    def __init__(self):
        self.now = 1000.0
        self.tally = Tally(clock=lambda: self.now)

    def comes(self, *, resumed=False, key_index: int | None = 0, kind=CredentialKind.PSK):
        negotiated = SimpleNamespace(cipher_suite=CipherSuite.TLS_PSK_WITH_AES_128_CCM_8, resumed=resumed)
        association: Any = SimpleNamespace(
            kind=kind, key_index=key_index, connection=SimpleNamespace(negotiated=negotiated)
        )
        self.tally.completed(association)
        return association

    def fails(self, cause=None, rejection=None):
        self.tally.handshake_failed(PATH, None, cause or HandshakeTimeout("AWAIT_FINISHED"), rejection)


@pytest.fixture
def bench():
    return Bench()


def test_devices_are_counted_by_credential_suite_and_key(bench):
    bench.comes()
    bench.comes(key_index=1, resumed=True)
    bench.comes(key_index=None, kind=CredentialKind.CERTIFICATE)
    figures = bench.tally.statistics()
    assert figures["associations_made"] == {"psk": 2, "certificate": 1}
    assert figures["cipher_suites_used"] == {"TLS_PSK_WITH_AES_128_CCM_8": 3}
    assert figures["psk_keys_used"] == {"current": 1, "next": 1}
    assert figures["sessions_resumed"] == 1


def test_ends_and_rejections_are_counted_by_cause_and_problem(bench):
    association = bench.comes()
    bench.tally.terminated(association, PeerClose())
    bench.tally.terminated(association, IdleTimeout(3.0))
    bench.tally.terminated(association, IdleTimeout(4.0))
    bench.fails(REJECTED, PeerRejected("expired", "on Monday"))
    bench.fails(REJECTED, PeerRejected("expired", "on Tuesday"))
    figures = bench.tally.statistics()
    assert figures["associations_ended"] == {"PeerClose": 1, "IdleTimeout": 2}
    assert figures["peers_rejected"] == {"expired": 2}


def test_labels_of_somebody_elses_verifier_are_bounded(bench):
    for number in range(MAX_LABELS + 10):
        bench.fails(REJECTED, PeerRejected(f"problem-{number}", ""))
    rejected = bench.tally.statistics()["peers_rejected"]
    assert len(rejected) == MAX_LABELS + 1
    assert rejected["other"] == 10


def test_the_last_minutes_are_told_and_what_is_older_is_not(bench):
    bench.comes()
    bench.fails()
    bench.now += SLOT
    bench.tally.refused(PATH, "handshakes_per_second")
    bench.tally.refused(PATH, "handshakes_per_second")
    assert bench.tally.recent() == {
        "seconds": SLOT,
        "completed": 1,
        "failed": {"HandshakeTimeout": 1},
        "refused": {"handshakes_per_second": 2},
    }
    bench.now += SLOT * (SLOTS - 1)
    assert bench.tally.recent() == {
        "seconds": SLOT * SLOTS,
        "completed": 0,
        "failed": {},
        "refused": {"handshakes_per_second": 2},
    }
    bench.now += SLOT
    assert bench.tally.recent()["refused"] == {}


@given(st.lists(st.tuples(st.sampled_from(("comes", "fails")), st.floats(0, 100)), max_size=80))
def test_the_last_minutes_hold_what_came_within_them_give_or_take_a_slot(steps):
    bench = Bench()
    times = []
    for what, pause in steps:
        bench.now += pause
        if what == "comes":
            bench.comes()
            times.append(bench.now)
        else:
            bench.fails()
        assert len(bench.tally._recent._slots) <= SLOTS
    recent = bench.tally.recent()["completed"]
    surely = sum(time > bench.now - SLOT * (SLOTS - 1) for time in times)
    at_most = sum(time >= bench.now - SLOT * SLOTS for time in times)
    assert surely <= recent <= at_most


def test_a_histogram_counts_each_bucket_with_all_below_it():
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 3.0, -0.001):
        histogram.observe(seconds)
    assert histogram.statistics() == {
        "buckets": {"0.1": 3, "1.0": 4, "+Inf": 5},
        "sum": pytest.approx(3.65),
        "count": 5,
    }
