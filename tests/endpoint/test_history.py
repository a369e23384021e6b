"""What happened to whom last: remembered, bounded, and not to be pushed out by strangers."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endpoint.association import CredentialKind
from endpoint.history import KEPT, MAX_NAME, MAX_REASON, History
from endpoint.verification import PeerRejected
from sansdtls import (
    AuthenticationFailed,
    AuthenticationProblem,
    CipherSuite,
    HandshakeTimeout,
    PeerClose,
)

WRONG_KEY = AuthenticationProblem.WRONG_KEY
UNKNOWN = AuthenticationProblem.UNKNOWN_IDENTITY


def path(host="192.0.2.7", port=40000):
    return (0, (host, port))


class Bench:
    def __init__(self, *, identities=3, strangers=3, addresses=3):
        self.now = 1_700_000_000.0
        self.history = History(
            identities=identities, strangers=strangers, addresses=addresses, wall=lambda: self.now
        )

    def comes(
        self, identity=b"meter-1", *, host="192.0.2.7", kind=CredentialKind.PSK, key_index: int | None = 0
    ):
        negotiated = SimpleNamespace(cipher_suite=CipherSuite.TLS_PSK_WITH_AES_128_CCM_8, resumed=False)
        association: Any = SimpleNamespace(
            identity=identity,
            identified=kind is not CredentialKind.NONE,
            remote=f"{host}:40000",
            path=path(host),
            kind=kind,
            key_index=key_index,
            fingerprint="0011223344556677",
            connection=SimpleNamespace(negotiated=negotiated),
        )
        self.history.completed(association)
        return association

    def fails(self, identity=b"meter-1", problem=WRONG_KEY, host="192.0.2.7"):
        self.history.handshake_failed(path(host), identity, AuthenticationFailed(problem, identity), None)

    def record(self, identity=b"meter-1"):
        record = self.history.of(identity)
        assert record is not None
        return record


@pytest.fixture
def bench():
    return Bench()


def test_a_success_is_remembered_with_the_key_that_was_used(bench):
    bench.comes(key_index=1)
    success = bench.record().success
    assert (success.when, success.path, success.credential) == (1_700_000_000.0, "192.0.2.7:40000", "psk")
    assert (success.key_used, success.fingerprint, success.resumed) == ("next", "0011223344556677", False)
    assert success.cipher_suite == "TLS_PSK_WITH_AES_128_CCM_8"
    assert bench.history.near("192.0.2.7").identity == b"meter-1"


def test_a_failure_is_remembered_with_cause_and_remedy_under_name_and_address(bench):
    bench.fails()
    (failure,) = bench.record().failures
    assert (failure.cause, failure.reason) == ("AuthenticationFailed.wrong_key", "the key is wrong")
    assert "fingerprints" in failure.remedy
    assert bench.history.near("192.0.2.7").failures == (failure,)


def test_of_a_certificate_it_is_remembered_why_it_was_not_accepted(bench):
    rejected = PeerRejected("expired", "the certificate of meter-7 expired at 2020")
    cause = AuthenticationFailed(AuthenticationProblem.PEER_REJECTED)
    bench.history.handshake_failed(path(), None, cause, rejected)
    (failure,) = bench.history.near("192.0.2.7").failures
    assert (failure.problem, failure.reason) == ("expired", "the certificate of meter-7 expired at 2020")
    assert failure.remedy.startswith("renew the device's certificate")
    assert bench.history.rejections_naming("METER-7") == [failure]
    assert bench.history.rejections_naming("meter-8") == []


def test_the_last_few_failures_are_kept_and_all_are_counted(bench):
    for number in range(KEPT + 3):
        bench.now += 1
        bench.history.handshake_failed(
            path(port=number), b"meter-1", HandshakeTimeout("AWAIT_FINISHED"), None
        )
    record = bench.record()
    assert [failure.path for failure in record.failures] == [
        f"192.0.2.7:{port}" for port in range(3, KEPT + 3)
    ]
    assert record.failed == KEPT + 3


def test_an_end_and_the_refusals_of_an_address_are_remembered(bench):
    association = bench.comes()
    bench.history.terminated(association, PeerClose())
    assert bench.record().ended.reason == "closed by the peer"
    for _ in range(3):
        bench.history.refused(path(), "handshakes_per_second")
    bench.history.refused(path(), "associations_per_prefix")
    assert [(one.reason, one.count) for one in bench.history.near("192.0.2.7").refusals] == [
        ("handshakes_per_second", 3),
        ("associations_per_prefix", 1),
    ]


def test_who_showed_nothing_has_no_name_to_be_remembered_by(bench):
    association = bench.comes(b"", kind=CredentialKind.NONE, key_index=None)
    bench.history.terminated(association, PeerClose())
    assert bench.history.of(b"") is None


def test_a_flood_of_invented_names_pushes_out_no_device(bench):
    for number in range(3):
        bench.comes(b"meter-%d" % number)
    for number in range(1000):
        bench.fails(b"invented-%d" % number, UNKNOWN, host=f"198.51.100.{number % 250}")
    assert [bench.record(b"meter-%d" % number).succeeded for number in range(3)] == [1, 1, 1]
    assert bench.history.near("192.0.2.7").success is not None
    assert [name for name, _ in bench.history.strangers()] == [
        b"invented-997",
        b"invented-998",
        b"invented-999",
    ]


def test_the_wrong_key_for_a_name_shows_that_there_is_one_and_any_other_failure_does_not(bench):
    bench.fails(b"meter-1", WRONG_KEY)
    bench.fails(b"meter-2", UNKNOWN)
    bench.history.handshake_failed(path(), b"meter-3", HandshakeTimeout("AWAIT_FINISHED"), None)
    assert list(bench.history.identities()) == [b"meter-1"]
    assert [name for name, _ in bench.history.strangers()] == [b"meter-2", b"meter-3"]


def test_a_stranger_who_turns_out_to_be_a_device_keeps_what_happened_before(bench):
    bench.fails(b"meter-2", UNKNOWN)
    bench.comes(b"meter-2")
    record = bench.record(b"meter-2")
    assert (record.failed, record.succeeded) == (1, 1)
    assert list(bench.history.strangers()) == []


def test_the_device_not_heard_of_for_longest_is_forgotten_first_and_that_is_counted(bench):
    for name in (b"a", b"b", b"c"):
        bench.comes(name)
    bench.comes(b"a")
    bench.comes(b"d")
    assert list(bench.history.identities()) == [b"c", b"a", b"d"]
    assert bench.history.statistics() == {"identities": 3, "strangers": 0, "addresses": 1, "forgotten": 1}


def test_what_a_stranger_chooses_is_cut_off(bench):
    long = b"x" * 65_535
    bench.fails(long, UNKNOWN)
    ((name, record),) = bench.history.strangers()
    assert len(name) == len(record.failures[0].identity) == MAX_NAME
    assert bench.history.of(long) is record
    bench.history.handshake_failed(
        path(),
        None,
        AuthenticationFailed(AuthenticationProblem.PEER_REJECTED),
        PeerRejected("other", "y" * 10_000),
    )
    assert len(bench.history.near("192.0.2.7").failures[-1].reason) == MAX_REASON


def test_an_ipv4_mapped_address_is_the_same_place(bench):
    bench.fails(host="::ffff:192.0.2.9")
    assert bench.history.near("192.0.2.9").failed == 1


NAMES = st.sampled_from([b"a", b"b", b"c", b"d", b"e", b"", b"f" * 300])
STEPS = st.lists(st.tuples(st.sampled_from(("comes", "wrong", "unknown", "ends")), NAMES), max_size=60)


@given(STEPS)
def test_whatever_happens_the_tables_stay_within_their_sizes_and_the_last_device_is_known(steps):
    bench = Bench(identities=2, strangers=2, addresses=2)
    for number, (what, name) in enumerate(steps):
        host = f"192.0.2.{number % 5}"
        if what == "comes":
            bench.comes(name, host=host)
            assert bench.record(name).success is not None
        elif what == "ends":
            bench.history.terminated(bench.comes(name, host=host), PeerClose())
            assert bench.record(name).ended is not None
        else:
            bench.fails(name, WRONG_KEY if what == "wrong" else UNKNOWN, host=host)
            assert bench.record(name).failures
        figures = bench.history.statistics()
        assert figures["identities"] <= 2
        assert figures["strangers"] <= 2
        assert figures["addresses"] <= 4
