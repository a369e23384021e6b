"""Who is refused most: found in bounded memory, faded with time, and shown safely."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endpoint.quotas import Offenders, QuotaPolicy, Quotas

PREFIX = Quotas(QuotaPolicy()).prefix_of


def noted(offenders, times, what, reason="handshakes_per_second", now=0.0):
    for _ in range(times):
        offenders.note(what, reason, now)


def test_those_refused_most_come_first_with_their_reason():
    offenders = Offenders(size=10, half_life=600)
    noted(offenders, 3, PREFIX(("192.0.2.1", 1)))
    noted(offenders, 7, PREFIX(("2001:db8::1", 1, 0, 0)), "associations_per_prefix")
    noted(offenders, 5, b"meter-1", "datagrams_per_second")
    noted(offenders, 4, b"meter-1", "bytes_per_second")
    assert offenders.top(3) == [
        ("2001:db8::/56", "associations_per_prefix", 7),
        ("meter-1", "datagrams_per_second", 5),
        ("meter-1", "bytes_per_second", 4),
    ]
    assert len(offenders.top(10)) == 4


def test_an_identity_is_shown_escaped_and_is_never_taken_for_a_prefix():
    offenders = Offenders(size=10, half_life=600)
    noted(offenders, 2, b"\x1b[2J\n")
    noted(offenders, 1, b"192.0.2.1/32")
    noted(offenders, 3, PREFIX(("192.0.2.1", 1)))
    assert [(who, count) for who, _, count in offenders.top(10)] == [
        ("192.0.2.1/32", 3),
        ("\\x1b[2J\\x0a", 2),
        ("192.0.2.1/32", 1),
    ]


def test_refusals_fade_and_the_newest_trouble_is_at_the_top():
    offenders = Offenders(size=10, half_life=100)
    noted(offenders, 8, b"yesterday", now=0.0)
    noted(offenders, 3, b"now", now=200.0)
    assert offenders.top(2) == [
        ("now", "handshakes_per_second", 3),
        ("yesterday", "handshakes_per_second", 2),
    ]
    assert offenders.top(2, now=300.0) == [
        ("now", "handshakes_per_second", 2),
        ("yesterday", "handshakes_per_second", 1),
    ]
    assert offenders.top(2, now=2_000.0) == []


def test_numbers_stay_finite_however_long_it_runs():
    offenders = Offenders(size=3, half_life=1)
    now = 0.0
    for _ in range(50):
        now += 10_000.0
        noted(offenders, 2, b"loud", now=now)
        noted(offenders, 1, b"%d" % now, now=now)
        assert offenders.top(1) == [("loud", "handshakes_per_second", 2)]
        assert len(offenders) <= 3


def test_a_clock_that_goes_back_stands_still():
    offenders = Offenders(size=3, half_life=1)
    noted(offenders, 2, b"a", now=100.0)
    noted(offenders, 2, b"b", now=1.0)
    assert sorted(offenders.top(2, now=5.0)) == [
        ("a", "handshakes_per_second", 2),
        ("b", "handshakes_per_second", 2),
    ]


def test_the_worst_are_found_among_a_hundred_thousand_others():
    offenders, chosen = Offenders(size=64, half_life=1e6), random.Random(5)
    refusals = [b"worst"] * 4_000 + [b"second"] * 3_000 + [b"%d" % number for number in range(100_000)]
    chosen.shuffle(refusals)
    for who in refusals:
        offenders.note(who, "x", 0.0)
    assert len(offenders) == 64
    top = offenders.top(5)
    assert [who for who, _, _ in top[:2]] == ["worst", "second"]
    assert 2_000 < top[0][2] <= 4_000
    # None of the others may be shown with what is not its own.
    assert all(count <= 1 for _, _, count in top[2:])


@given(
    size=st.integers(1, 6),
    notes=st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from("xy"), st.sampled_from((0.0, 0.5, 50.0))), max_size=200
    ),
)
def test_nobody_is_shown_with_more_than_was_its_own_and_the_greatest_is_never_missed(size, notes):
    offenders = Offenders(size=size, half_life=10)
    exact: dict[tuple[str, str], float] = {}
    now, total = 0.0, 0.0
    for who, reason, gap in notes:
        now += gap
        fade = 0.5 ** (gap / 10)
        exact = {key: count * fade for key, count in exact.items()}
        total = total * fade + 1.0
        key = (f"{who}", reason)
        exact[key] = exact.get(key, 0.0) + 1
        offenders.note(b"%d" % who, reason, now)
        assert len(offenders) <= size
    shown = offenders.top(20)
    for name, reason, count in shown:
        assert count <= exact[name, reason] + 0.5 + 1e-6
    kept = {(who.decode(), reason) for who, reason in offenders._entries}  # type: ignore[union-attr]
    for key, true_count in exact.items():
        if true_count > total / size + 1e-6:
            assert key in kept


# --- as quotas note them ------------------------------------------------------------------------------------


def test_a_refused_prefix_is_known_by_name_and_by_reason():
    quotas = Quotas(QuotaPolicy(handshakes_per_second=0.001, handshake_burst=1, ipv4_prefix_length=24))
    for host in range(5):
        prefix = quotas.prefix_of((f"192.0.2.{host}", 1))
        if quotas.admit_handshake(prefix, replaces=False, now=0.0) is None:
            quotas.release(prefix)
    assert quotas.offenders.top(5) == [("192.0.2.0/24", "handshakes_per_second", 4)]
    assert quotas.statistics(now=0.0)["top"] == [
        {"who": "192.0.2.0/24", "reason": "handshakes_per_second", "count": 4}
    ]


def test_how_many_are_kept_and_how_fast_they_fade_is_the_policys():
    quotas = Quotas(
        QuotaPolicy(
            tracked_offenders=2,
            offender_half_life=10,
            identity_handshakes_per_second=0.001,
            identity_handshake_burst=1,
        )
    )
    for number in range(5):
        for _ in range(2 + number):
            quotas.admit_identity(b"%d" % number, 0.0)
    assert quotas.statistics(now=0.0)["tracked_offenders"] == 2
    worst = quotas.offenders.top(1, now=0.0)[0]
    assert worst[0] == "4"
    assert quotas.offenders.top(1, now=10.0)[0][2] == pytest.approx(worst[2] / 2, abs=0.5)
