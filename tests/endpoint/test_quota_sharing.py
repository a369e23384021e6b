"""What all share: nobody shuts out the others, and nobody is stopped without need."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endpoint.quotas import FairBucket, NetworkQuota, QuotaPolicy, Quotas, WaitingData
from endpoint.quotas.buckets import PlainPart
from sansdtls import Limits

# --- the bucket ---------------------------------------------------------------------------------------


def ask(bucket, part, *, now, amount=1.0, weight=1.0):
    """Take it if it may be taken."""
    if not bucket.may_take(part, amount, weight=weight, now=now):
        return False
    bucket.take(part, amount)
    return True


def served(bucket, demands, *, seconds, weights=None):
    """How many a second each of ``demands`` (so many asked a second, evenly) gets in the long run."""
    step = 0.01
    parts = [PlainPart() for _ in demands]
    owed, got = [0.0] * len(demands), [0] * len(demands)
    weights = weights or [1.0] * len(demands)
    steps = round(seconds / step)
    for number in range(steps):
        for index, demand in enumerate(demands):
            owed[index] += demand * step
            while owed[index] >= 1:
                owed[index] -= 1
                granted = ask(bucket, parts[index], now=number * step, weight=weights[index])
                got[index] += granted and number >= steps // 2
    return [count * 2 / seconds for count in got]


def test_one_alone_gets_all_there_is():
    assert served(FairBucket(rate=100, burst=200, reserve=0.25), [1000], seconds=20) == [
        pytest.approx(100, rel=0.05)
    ]


def test_without_a_shortage_everybody_gets_what_they_ask_for():
    demands = [60, 30, 5, 1]
    assert served(FairBucket(rate=100, burst=200, reserve=0.25), demands, seconds=20) == [
        pytest.approx(demand, rel=0.05, abs=0.1) for demand in demands
    ]


def test_the_greedy_get_the_same_however_much_they_ask_for_and_the_modest_get_all_they_ask_for():
    greedy, modest = [1000, 500, 200, 100, 60], [5, 2, 1]
    got = served(FairBucket(rate=100, burst=200, reserve=0.25), greedy + modest, seconds=60)
    assert got[5:] == [pytest.approx(demand, abs=0.5) for demand in modest]
    assert sum(got) == pytest.approx(100, rel=0.03)
    assert max(got[:5]) < 1.3 * min(got[:5])


def test_without_a_reserve_who_asks_more_gets_more_and_the_modest_get_next_to_nothing():
    # What the reserve is for: the same as above, without it.
    got = served(FairBucket(rate=100, burst=200, reserve=0), [10_000, 5], seconds=20)
    assert got[1] < 2.5


def test_who_counts_for_several_gets_so_many_times_as_much():
    bucket = FairBucket(rate=100, burst=400, reserve=1.0)
    got = served(bucket, [1000, 1000, 1000], seconds=60, weights=[3.0, 1.0, 1.0])
    assert got[0] == pytest.approx(3 * got[1], rel=0.15)
    assert got[1] == pytest.approx(got[2], rel=0.1)


def test_each_of_the_greedy_leaves_as_much_as_it_takes_of_the_reserve():
    bucket, taken = FairBucket(rate=1, burst=1024, reserve=0.25), []
    for _ in range(5):
        part = PlainPart()
        while ask(bucket, part, now=0.0):
            pass
        taken.append(part.taken)
    assert taken == [768, 128, 64, 32, 16]
    assert ask(bucket, PlainPart(), now=0.0)


def test_when_nothing_is_left_a_newcomer_gets_what_is_refilled_first():
    bucket, greedy = FairBucket(rate=1, burst=1024, reserve=0.25), [PlainPart() for _ in range(9)]
    for part in greedy:
        while ask(bucket, part, now=0.0):
            pass
    while ask(bucket, PlainPart(), now=0.0):
        pass
    assert bucket.left(0.0) == 0
    for second in range(1, 20):
        assert not any(ask(bucket, part, now=float(second)) for part in greedy[:8])
        assert ask(bucket, PlainPart(), now=float(second))


def test_what_somebody_took_is_forgotten_when_the_bucket_is_full_again():
    bucket, greedy = FairBucket(rate=10, burst=100, reserve=0.25), PlainPart()
    while ask(bucket, greedy, now=0.0):
        pass
    assert not ask(bucket, greedy, now=0.0)
    assert bucket.taken_by(greedy, 100.0) < 1e-6
    taken = 0
    while ask(bucket, greedy, now=100.0):
        taken += 1
    assert taken == pytest.approx(75, abs=1)


def test_a_clock_that_goes_back_neither_fills_nor_empties_what_is_shared():
    bucket, part = FairBucket(rate=1000, burst=4, reserve=0), PlainPart()
    assert [ask(bucket, part, now=100.0) for _ in range(5)] == [True] * 4 + [False]
    assert not ask(bucket, part, now=50.0)
    assert ask(bucket, part, now=101.0)


@given(
    rate=st.floats(0.1, 1000),
    burst=st.integers(1, 100),
    reserve=st.floats(0, 1),
    asks=st.lists(
        st.tuples(st.floats(0, 10, allow_nan=False), st.integers(0, 4), st.floats(0.1, 50)), max_size=150
    ),
)
def test_nobody_and_all_together_get_no_more_than_burst_and_rate_and_the_parts_add_up(
    rate, burst, reserve, asks
):
    bucket, parts = FairBucket(rate=rate, burst=burst, reserve=reserve), [PlainPart() for _ in range(5)]
    now = granted = 0.0
    for gap, who, amount in asks:
        now += gap
        if ask(bucket, parts[who], now=now, amount=amount):
            granted += amount
        assert 0 <= bucket.level <= burst + 1e-6
    assert granted <= burst + rate * now + 1e-6
    assert sum(bucket.taken_by(part, now) for part in parts) == pytest.approx(bucket.level, abs=1e-6)


# --- handshakes of all prefixes -------------------------------------------------------------------------


def handshake(quotas, address, now, *, ends=True):
    prefix = quotas.prefix_of((address, 1))
    reason = quotas.admit_handshake(prefix, replaces=False, now=now)
    if reason is None and ends:
        quotas.release(prefix)
    return reason


def test_a_flood_from_a_few_prefixes_leaves_room_for_those_who_handshake_once():
    policy = QuotaPolicy(
        handshakes_per_second=None, total_handshakes_per_second=10, total_handshake_burst=100
    )
    quotas = Quotas(policy)
    refused = []
    for second in range(60):
        for _ in range(50):
            for flooder in ("198.51.100.1", "198.51.100.2", "198.51.100.3"):
                handshake(quotas, flooder, float(second))
        refused.append(handshake(quotas, f"192.0.2.{second}", float(second)))
    assert refused == [None] * 60
    assert quotas.refused["total_handshakes_per_second"] > 5_000


def test_without_fairness_that_flood_would_shut_them_out():
    policy = QuotaPolicy(
        handshakes_per_second=None,
        total_handshakes_per_second=10,
        total_handshake_burst=100,
        fair_reserve=0,
    )
    quotas = Quotas(policy)
    refused = []
    for second in range(60):
        for _ in range(50):
            handshake(quotas, "198.51.100.1", float(second))
        refused.append(handshake(quotas, f"192.0.2.{second}", float(second)))
    assert refused.count(None) < 10


def test_a_handshake_that_all_together_are_denied_costs_its_prefix_nothing_and_the_other_way_round():
    policy = QuotaPolicy(
        handshakes_per_second=1,
        handshake_burst=2,
        total_handshakes_per_second=0.001,
        total_handshake_burst=3,
        fair_reserve=0,
    )
    quotas = Quotas(policy)
    assert [handshake(quotas, "192.0.2.1", 0.0) for _ in range(9)] == [None] * 2 + [
        "handshakes_per_second"
    ] * 7
    assert handshake(quotas, "192.0.2.2", 0.0) is None
    assert [handshake(quotas, "192.0.2.2", 0.0) for _ in range(9)] == ["total_handshakes_per_second"] * 9
    # Of its own two tokens the second prefix has one left, and gets it as soon as all have one.
    assert handshake(quotas, "192.0.2.2", 1000.0) is None


# --- handshakes under way ---------------------------------------------------------------------------------


def test_half_open_handshakes_of_greedy_prefixes_leave_slots_to_the_others():
    quotas = Quotas(QuotaPolicy(half_open_per_prefix=None), Limits(max_half_open=400))
    reasons = [handshake(quotas, "198.51.100.1", 0.0, ends=False) for _ in range(500)]
    assert reasons.count(None) == pytest.approx(300, abs=1)
    assert set(reasons[310:]) == {"max_half_open"}
    for host in range(50):
        assert handshake(quotas, f"192.0.2.{host}", 0.0, ends=False) is None
    assert handshake(quotas, "198.51.100.1", 0.0, ends=False) == "max_half_open"


def test_a_network_that_counts_for_many_may_have_more_half_open_handshakes():
    policy = QuotaPolicy(networks=(NetworkQuota(network="198.51.100.0/24", share=9.0),))
    quotas = Quotas(policy, Limits(max_half_open=400))
    reasons = [handshake(quotas, "198.51.100.1", 0.0, ends=False) for _ in range(500)]
    assert reasons.count(None) == pytest.approx(360, abs=1)


def test_a_handshake_that_has_succeeded_is_under_way_no_more():
    quotas = Quotas(QuotaPolicy(half_open_per_prefix=1), Limits(max_half_open=8))
    prefix = quotas.prefix_of(("192.0.2.1", 1))
    for _ in range(20):
        assert quotas.admit_handshake(prefix, replaces=False, now=0.0) is None
        assert quotas.admit_handshake(prefix, replaces=False, now=0.0) == "half_open_per_prefix"
        quotas.completed(prefix)
    assert (quotas.half_open, quotas.slots) == (0, 20)


# --- data of all ----------------------------------------------------------------------------------------


def sender(quotas, address):
    prefix = quotas.prefix_of((address, 1))
    quotas.hold(prefix)
    return quotas.data_budget(0.0, prefix=prefix)


@pytest.mark.parametrize(
    ("limits", "size", "reason"),
    [
        ({"total_datagrams_per_second": 100, "total_datagram_burst": 200}, 1, "total_datagrams_per_second"),
        ({"total_bytes_per_second": 6_400, "total_byte_burst": 16_384}, 64, "total_bytes_per_second"),
    ],
)
def test_a_prefix_that_floods_with_data_leaves_something_of_what_all_may_send(limits, size, reason):
    quotas = Quotas(
        QuotaPolicy(
            datagrams_per_second=None, bytes_per_second=None, prefix_datagrams_per_second=None, **limits
        )
    )
    loud, quiet = sender(quotas, "198.51.100.1"), sender(quotas, "192.0.2.1")
    lost = passed = 0
    for second in range(30):
        outcomes = [quotas.admit_data(loud, size, float(second)) for _ in range(500)]
        passed += outcomes.count(None)
        assert set(outcomes) <= {None, reason}
        lost += quotas.admit_data(quiet, size, float(second)) is not None
    assert lost == 0
    assert passed == pytest.approx(30 * 100, rel=0.1)


# --- data that wait for a reader ----------------------------------------------------------------------------


def test_data_that_wait_are_limited_for_each_reader_and_for_all():
    waiting = WaitingData(
        QuotaPolicy(waiting_bytes_per_association=16_384, total_waiting_bytes=40_000, fair_reserve=0)
    )
    assert waiting.admit(0, 16_384)
    assert not waiting.admit(16_384, 1)
    assert waiting.admit(0, 16_384)
    assert not waiting.admit(0, 16_384)
    waiting.release(16_384)
    assert waiting.admit(0, 16_384)
    assert waiting.size == 32_768


def test_readers_that_are_far_behind_leave_room_for_those_that_are_not():
    waiting = WaitingData(QuotaPolicy(waiting_bytes_per_association=None, total_waiting_bytes=100_000))
    held = 0
    while waiting.admit(held, 1_000):
        held += 1_000
    assert held == pytest.approx(75_000, abs=1_000)
    assert waiting.admit(0, 16_384)


def test_data_may_wait_without_limit():
    waiting = WaitingData(QuotaPolicy.unlimited())
    assert waiting.admit(10**15, 10**15)
