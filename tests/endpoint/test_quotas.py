"""Quotas: rates, counts, prefixes and the bounds of the tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endpoint.quotas import IdentityOverflow, QuotaPolicy, Quotas, TokenBucket
from sansdtls import ConfigError


def admitted(quotas, address, times, *, now, replaces=False):
    """How many of ``times`` handshakes from ``address`` are admitted at ``now``, each ending at once."""
    prefix = quotas.prefix_of(address)
    count = 0
    for _ in range(times):
        if quotas.admit_handshake(prefix, replaces=replaces, now=now) is None:
            quotas.release(prefix)
            count += 1
    return count


# --- token bucket ---


def test_a_bucket_gives_its_burst_and_then_its_rate():
    bucket = TokenBucket(5, 100.0)
    assert [bucket.take(1, rate=2, burst=5, now=100.0) for _ in range(6)] == [True] * 5 + [False]
    assert not bucket.take(1, rate=2, burst=5, now=100.4)
    assert bucket.take(1, rate=2, burst=5, now=100.5)


def test_a_bucket_never_holds_more_than_its_burst_however_long_it_rests():
    bucket = TokenBucket(1, 0.0)
    assert sum(bucket.take(1, rate=1, burst=1, now=1e9) for _ in range(100)) == 1


def test_a_refused_bucket_loses_nothing():
    bucket = TokenBucket(3, 0.0)
    assert not bucket.take(4, rate=1, burst=10, now=0.0)
    assert bucket.take(3, rate=1, burst=10, now=0.0)


def test_a_clock_that_goes_back_gives_no_tokens_and_takes_none():
    bucket = TokenBucket(1, 100.0)
    assert bucket.take(1, rate=1, burst=1, now=50.0)
    assert not bucket.take(1, rate=1, burst=1, now=60.0)
    assert bucket.take(1, rate=1, burst=1, now=101.0)


@given(
    st.floats(0.1, 1000),
    st.integers(1, 50),
    st.lists(st.floats(0, 10, allow_nan=False), min_size=1, max_size=200),
)
def test_no_sequence_of_requests_gets_more_than_burst_plus_rate_times_time(rate, burst, gaps):
    bucket, now, granted = TokenBucket(burst, 0.0), 0.0, 0
    for gap in gaps:
        now += gap
        granted += bucket.take(1, rate=rate, burst=burst, now=now)
    assert granted <= burst + rate * now + 1e-6


# --- handshakes ---


def test_handshakes_of_one_address_are_limited_and_those_of_another_are_not():
    quotas = Quotas(QuotaPolicy(handshakes_per_second=2, handshake_burst=3))
    assert admitted(quotas, ("192.0.2.1", 1000), 10, now=0.0) == 3
    assert admitted(quotas, ("192.0.2.1", 2000), 10, now=1.0) == 2
    assert admitted(quotas, ("192.0.2.2", 1000), 10, now=1.0) == 3
    assert quotas.refused == {"handshakes_per_second": 7 + 8 + 7}


def test_addresses_of_one_ipv6_customer_share_a_quota_and_neighbours_do_not():
    quotas = Quotas(QuotaPolicy(handshakes_per_second=1, handshake_burst=2))
    assert admitted(quotas, ("2001:db8:0:ab01::1", 1, 0, 0), 2, now=0.0) == 2
    assert admitted(quotas, ("2001:db8:0:abff:9::2", 1, 0, 0), 2, now=0.0) == 0
    assert admitted(quotas, ("2001:db8:0:ac00::1", 1, 0, 0), 2, now=0.0) == 2


def test_an_ipv4_mapped_address_is_the_same_source_as_its_ipv4_address():
    quotas = Quotas(QuotaPolicy())
    assert quotas.prefix_of(("::ffff:192.0.2.7", 5, 0, 0)) == quotas.prefix_of(("192.0.2.7", 6))


def test_an_ipv6_address_is_never_taken_for_an_ipv4_one_with_the_same_bits():
    quotas = Quotas(QuotaPolicy(ipv4_prefix_length=8, ipv6_prefix_length=16))
    assert quotas.prefix_of(("0020::1", 1, 0, 0)) != quotas.prefix_of(("32.0.0.1", 1))


def test_a_scope_identifier_is_no_part_of_the_source():
    quotas = Quotas(QuotaPolicy())
    assert quotas.prefix_of(("fe80::1%eth0", 1, 0, 2)) == quotas.prefix_of(("fe80::1", 1, 0, 2))


def test_prefix_lengths_are_configuration():
    quotas = Quotas(QuotaPolicy(ipv4_prefix_length=24, ipv6_prefix_length=64))
    assert quotas.prefix_of(("192.0.2.1", 1)) == quotas.prefix_of(("192.0.2.254", 1))
    assert quotas.prefix_of(("192.0.2.1", 1)) != quotas.prefix_of(("192.0.3.1", 1))
    assert quotas.prefix_of(("2001:db8::1", 1)) != quotas.prefix_of(("2001:db8:0:1::1", 1))


def test_more_prefixes_than_the_table_holds_do_not_make_it_grow_and_the_least_recent_is_forgotten():
    quotas = Quotas(QuotaPolicy(handshakes_per_second=1, handshake_burst=1, tracked_prefixes=10))
    for host in range(11):
        assert admitted(quotas, (f"192.0.2.{host}", 1), 2, now=0.0) == 1
    assert len(quotas) == 10
    assert admitted(quotas, ("192.0.2.10", 1), 1, now=0.0) == 0
    assert admitted(quotas, ("192.0.2.0", 1), 1, now=0.0) == 1


# --- associations of a prefix ---


def test_associations_and_handshakes_of_a_prefix_are_limited_together_and_come_back():
    quotas = Quotas(QuotaPolicy(associations_per_prefix=2))
    prefix = quotas.prefix_of(("192.0.2.1", 1))
    assert quotas.admit_handshake(prefix, replaces=False, now=0.0) is None
    assert quotas.admit_handshake(prefix, replaces=False, now=0.0) is None
    assert quotas.admit_handshake(prefix, replaces=False, now=0.0) == "associations_per_prefix"
    quotas.release(prefix)
    assert quotas.admit_handshake(prefix, replaces=False, now=0.0) is None


def test_a_peer_may_replace_its_own_association_where_its_prefix_is_full():
    quotas = Quotas(QuotaPolicy(associations_per_prefix=1))
    prefix = quotas.prefix_of(("192.0.2.1", 1))
    assert quotas.admit_handshake(prefix, replaces=False, now=0.0) is None
    assert quotas.admit_handshake(prefix, replaces=True, now=0.0) is None
    assert quotas.admit_handshake(prefix, replaces=True, now=0.0) == "associations_per_prefix"


def test_a_full_prefix_costs_no_handshake_tokens():
    quotas = Quotas(QuotaPolicy(associations_per_prefix=1, handshakes_per_second=1, handshake_burst=2))
    prefix = quotas.prefix_of(("192.0.2.1", 1))
    assert quotas.admit_handshake(prefix, replaces=False, now=0.0) is None
    for _ in range(100):
        quotas.admit_handshake(prefix, replaces=False, now=0.0)
    quotas.release(prefix)
    assert quotas.admit_handshake(prefix, replaces=False, now=0.0) is None


def test_counts_leave_nothing_behind_when_all_have_ended():
    quotas = Quotas(QuotaPolicy.unlimited())
    prefixes = [quotas.prefix_of((f"192.0.{host}.1", 1)) for host in range(100)]
    for prefix in prefixes * 3:
        assert quotas.admit_handshake(prefix, replaces=False, now=0.0) is None
    for prefix in prefixes * 3:
        quotas.release(prefix)
    assert len(quotas) == 0
    assert quotas.associations_of(prefixes[0]) == 0


# --- data of one association ---


def test_datagrams_of_an_association_are_limited():
    quotas = Quotas(QuotaPolicy(datagrams_per_second=10, datagram_burst=20))
    budget = quotas.data_budget(0.0)
    assert [quotas.admit_data(budget, 1, 0.0) for _ in range(21)] == [None] * 20 + ["datagrams_per_second"]
    assert quotas.admit_data(budget, 1, 0.1) is None
    assert quotas.admit_data(budget, 1, 0.1) == "datagrams_per_second"


def test_bytes_of_an_association_are_limited_and_a_refused_datagram_costs_nothing():
    quotas = Quotas(QuotaPolicy(bytes_per_second=1000, byte_burst=16_384))
    budget = quotas.data_budget(0.0)
    assert quotas.admit_data(budget, 16_000, 0.0) is None
    assert quotas.admit_data(budget, 1_000, 0.0) == "bytes_per_second"
    assert budget.exceeded
    assert quotas.admit_data(budget, 384, 0.0) is None
    assert not budget.exceeded


def test_a_full_size_record_always_fits_the_smallest_burst():
    quotas = Quotas(QuotaPolicy(byte_burst=16_384))
    assert quotas.admit_data(quotas.data_budget(0.0), 16_384, 0.0) is None


def test_without_limits_nothing_is_ever_refused():
    quotas = Quotas(QuotaPolicy.unlimited())
    budget = quotas.data_budget(0.0)
    assert not quotas.limits_data
    assert all(quotas.admit_data(budget, 16_384, 0.0) is None for _ in range(10_000))
    assert admitted(quotas, ("192.0.2.1", 1), 10_000, now=0.0) == 10_000
    assert not quotas.identity_is_full(1_000_000)


def test_only_one_of_the_two_data_limits_may_be_set():
    by_count = Quotas(QuotaPolicy(bytes_per_second=None, datagrams_per_second=1, datagram_burst=1))
    budget = by_count.data_budget(0.0)
    assert by_count.admit_data(budget, 16_384, 0.0) is None
    assert by_count.admit_data(budget, 0, 0.0) == "datagrams_per_second"
    by_size = Quotas(QuotaPolicy(datagrams_per_second=None, byte_burst=16_384))
    budget = by_size.data_budget(0.0)
    assert all(by_size.admit_data(budget, 0, 0.0) is None for _ in range(5_000))
    assert by_size.admit_data(budget, 16_384, 0.0) is None
    assert by_size.admit_data(budget, 1, 0.0) == "bytes_per_second"


# --- identities, policy ---


def test_an_identity_is_full_at_its_limit():
    quotas = Quotas(QuotaPolicy(associations_per_identity=2))
    assert [quotas.identity_is_full(held) for held in range(4)] == [False, False, True, True]
    assert quotas.count_identity_overflow(b"meter-1", 0.0) == "associations_per_identity"
    assert quotas.refused == {"associations_per_identity": 1}


def test_by_default_the_oldest_association_of_an_identity_gives_way():
    assert QuotaPolicy().identity_overflow is IdentityOverflow.OLDEST


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("handshakes_per_second", 0),
        ("handshakes_per_second", "10"),
        ("handshake_burst", 0),
        ("handshake_burst", 1.5),
        ("associations_per_prefix", 0),
        ("associations_per_identity", -1),
        ("datagrams_per_second", True),
        ("datagram_burst", None),
        ("bytes_per_second", float("nan")),
        ("byte_burst", 1_000),
        ("ipv4_prefix_length", 33),
        ("ipv6_prefix_length", 129),
        ("tracked_prefixes", 0),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_name_of_its_field(field, value):
    with pytest.raises(ConfigError, match=rf"QuotaPolicy\.{field}: "):
        QuotaPolicy(**{field: value})
