"""What quotas remember: bounded whatever happens, exact as long as somebody is there, and nothing left when all are gone."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from endpoint.quotas import NetworkQuota, QuotaPolicy, Quotas
from sansdtls import ConfigError, Limits

HOSTS = [f"192.0.2.{host}" for host in range(12)] + [f"198.51.100.{host}" for host in range(4)]
IDENTITIES = [b"meter-%d" % number for number in range(9)]
TRACKED_PREFIXES, TRACKED_IDENTITIES, TRACKED_OFFENDERS, MAX_HALF_OPEN = 5, 3, 4, 12

POLICY = QuotaPolicy(
    handshakes_per_second=1,
    handshake_burst=4,
    half_open_per_prefix=3,
    associations_per_prefix=5,
    prefix_datagrams_per_second=3,
    prefix_datagram_burst=6,
    identity_handshakes_per_second=1,
    identity_handshake_burst=2,
    identity_datagrams_per_second=2,
    identity_datagram_burst=5,
    datagrams_per_second=2,
    datagram_burst=3,
    total_handshakes_per_second=5,
    total_handshake_burst=20,
    total_datagrams_per_second=9,
    total_datagram_burst=18,
    total_bytes_per_second=50_000,
    total_byte_burst=100_000,
    networks=(NetworkQuota(network="198.51.100.0/30", share=2.0),),
    tracked_prefixes=TRACKED_PREFIXES,
    tracked_identities=TRACKED_IDENTITIES,
    tracked_offenders=TRACKED_OFFENDERS,
)


class Life:
    """An association, as far as quotas know it."""

    def __init__(self, prefix, identity):
        self.prefix = prefix
        self.identity = identity
        self.budget: Any = None


class QuotasMachine(RuleBasedStateMachine):
    """Handshakes and associations come, move, freeze, thaw and end in every way; a plain count is the model."""

    def __init__(self):
        super().__init__()
        self.quotas = Quotas(POLICY, Limits(max_half_open=MAX_HALF_OPEN))
        self.now = 0.0
        self.half_open: list[Any] = []
        self.live: list[Life] = []

    def prefix(self, host):
        return self.quotas.prefix_of((host, 1))

    def comes(self, prefix, identity):
        life = Life(prefix, identity)
        life.budget = self.quotas.data_budget(self.now, prefix=prefix, identity=identity)
        self.live.append(life)

    def goes(self, life):
        self.live.remove(life)
        self.quotas.release(life.prefix, live=True)
        self.quotas.end_budget(life.budget)

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 100.0]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(host=st.sampled_from(HOSTS), replaces=st.booleans())
    def somebody_handshakes(self, host, replaces):
        prefix = self.prefix(host)
        before = self.quotas.associations_of(prefix)
        reason = self.quotas.admit_handshake(prefix, replaces=replaces, now=self.now)
        if reason is None:
            self.half_open.append(prefix)
            if host.startswith("192."):
                assert before - replaces < 5
        else:
            assert self.quotas.refused[reason] > 0

    @precondition(lambda self: self.half_open)
    @rule(data=st.data(), identity=st.sampled_from([None, *IDENTITIES]))
    def a_handshake_succeeds(self, data, identity):
        prefix = data.draw(st.sampled_from(self.half_open))
        if identity is not None and self.quotas.admit_identity(identity, self.now) is not None:
            return  # it is closed, and its end comes as that of any other handshake
        self.half_open.remove(prefix)
        self.quotas.completed(prefix)
        self.comes(prefix, identity)

    @precondition(lambda self: self.half_open)
    @rule(data=st.data())
    def a_handshake_fails(self, data):
        prefix = data.draw(st.sampled_from(self.half_open))
        self.half_open.remove(prefix)
        self.quotas.release(prefix)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), host=st.sampled_from(HOSTS), proved=st.booleans())
    def an_association_moves(self, data, host, proved):
        life = data.draw(st.sampled_from(self.live))
        prefix = self.prefix(host)
        self.quotas.hold(prefix)
        if proved:
            self.quotas.charge(life.budget, prefix)
        self.quotas.release(life.prefix, live=True)
        life.prefix = prefix

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def an_association_ends_or_freezes(self, data):
        self.goes(data.draw(st.sampled_from(self.live)))

    @rule(host=st.sampled_from(HOSTS), identity=st.sampled_from([None, *IDENTITIES]))
    def one_that_slept_is_back(self, host, identity):
        prefix = self.prefix(host)
        self.quotas.hold(prefix)
        self.comes(prefix, identity)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), size=st.sampled_from([0, 100, 16_384]))
    def data_come(self, data, size):
        life = data.draw(st.sampled_from(self.live))
        self.quotas.admit_data(life.budget, size, self.now)

    @invariant()
    def every_slot_is_somebodys(self):
        held = [*self.half_open, *(life.prefix for life in self.live)]
        for prefix in {self.prefix(host) for host in HOSTS}:
            assert self.quotas.associations_of(prefix) == held.count(prefix)
        assert self.quotas.slots == len(held)
        assert self.quotas.half_open == len(self.half_open)
        # Beyond the limit are only those that were replaced and have not ended yet.
        assert self.quotas.half_open <= MAX_HALF_OPEN

    @invariant()
    def nothing_is_remembered_beyond_the_limits(self):
        figures = self.quotas.statistics(now=self.now)
        assert figures["prefixes"] == len({*self.half_open, *(life.prefix for life in self.live)})
        assert figures["tracked_prefixes"] <= TRACKED_PREFIXES
        assert len(self.quotas._identities._handshakes) <= TRACKED_IDENTITIES
        assert len(self.quotas._identities._resting) <= TRACKED_IDENTITIES
        assert figures["tracked_offenders"] <= TRACKED_OFFENDERS
        named = {life.identity for life in self.live} - {None}
        assert self.quotas._identities.held == len(named)

    def teardown(self):
        for prefix in self.half_open:
            self.quotas.release(prefix)
        for life in list(self.live):
            self.goes(life)
        assert self.quotas.slots == self.quotas.half_open == 0
        assert self.quotas.statistics(now=self.now)["prefixes"] == self.quotas._identities.held == 0
        assert len(self.quotas) <= TRACKED_PREFIXES + 2 * TRACKED_IDENTITIES


QuotasMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestQuotas = QuotasMachine.TestCase


# --- prefixes ------------------------------------------------------------------------------------------------


def test_a_prefix_whose_buckets_are_full_again_is_forgotten():
    quotas = Quotas(QuotaPolicy(handshakes_per_second=10, total_handshakes_per_second=None))
    for number in range(1_000):
        prefix = quotas.prefix_of((f"10.0.{number >> 8}.{number & 255}", 1))
        assert quotas.admit_handshake(prefix, replaces=False, now=number * 0.01) is None
        quotas.release(prefix)
        assert len(quotas) < 20


def test_a_prefix_that_holds_a_slot_is_not_forgotten_for_others():
    quotas = Quotas(QuotaPolicy(handshakes_per_second=0.001, handshake_burst=1, tracked_prefixes=1))
    prefix = quotas.prefix_of(("192.0.2.1", 1))
    assert quotas.admit_handshake(prefix, replaces=False, now=0.0) is None
    for host in range(2, 50):
        other = quotas.prefix_of((f"192.0.2.{host}", 1))
        assert quotas.admit_handshake(other, replaces=False, now=0.0) is None
        quotas.release(other)
    assert quotas.admit_handshake(prefix, replaces=False, now=0.0) == "handshakes_per_second"
    assert quotas.statistics(now=0.0)["tracked_prefixes"] == 1


def test_coming_back_again_and_again_gives_a_prefix_no_new_budget_for_data():
    quotas = Quotas(QuotaPolicy(prefix_datagrams_per_second=0.001, prefix_datagram_burst=10))
    prefix = quotas.prefix_of(("192.0.2.1", 1))
    passed = 0
    for _ in range(5):
        quotas.hold(prefix)
        budget = quotas.data_budget(0.0, prefix=prefix)
        passed += [quotas.admit_data(budget, 1, 0.0) for _ in range(4)].count(None)
        quotas.release(prefix, live=True)
    assert passed == 10
    assert quotas.refused == {"prefix_datagrams_per_second": 10}


def test_a_clock_that_goes_back_shuts_nobody_out_for_long():
    quotas = Quotas(QuotaPolicy(handshakes_per_second=1, handshake_burst=5))
    prefix = quotas.prefix_of(("192.0.2.1", 1))
    assert quotas.admit_handshake(prefix, replaces=False, now=1e6) is None
    assert quotas.admit_handshake(prefix, replaces=False, now=0.0) == "handshakes_per_second"
    quotas.release(prefix)
    for second in range(1, 10):
        assert quotas.admit_handshake(prefix, replaces=False, now=float(second + 1)) is None


# --- identities ----------------------------------------------------------------------------------------------


def test_handshakes_of_an_identity_are_limited_and_those_of_another_are_not():
    quotas = Quotas(QuotaPolicy(identity_handshakes_per_second=2, identity_handshake_burst=3))
    reasons = [quotas.admit_identity(b"meter-1", 0.0) for _ in range(5)]
    assert reasons == [None] * 3 + ["identity_handshakes_per_second"] * 2
    assert quotas.admit_identity(b"meter-2", 0.0) is None
    assert [quotas.admit_identity(b"meter-1", 0.5) for _ in range(2)] == [
        None,
        "identity_handshakes_per_second",
    ]


def test_more_identities_than_the_table_holds_do_not_make_it_grow_and_the_least_recent_is_forgotten():
    quotas = Quotas(
        QuotaPolicy(identity_handshakes_per_second=1, identity_handshake_burst=1, tracked_identities=10)
    )
    for number in range(11):
        assert quotas.admit_identity(b"%d" % number, 0.0) is None
    assert quotas.statistics(now=0.0)["tracked_identities"] == 10
    assert quotas.admit_identity(b"10", 0.0) is not None
    assert quotas.admit_identity(b"0", 0.0) is None


def test_an_identity_whose_bucket_is_full_again_is_forgotten():
    quotas = Quotas(QuotaPolicy())
    for number in range(1_000):
        assert quotas.admit_identity(b"%d" % number, float(number)) is None
        assert len(quotas) <= 2


@pytest.mark.parametrize(
    ("limits", "size", "reason"),
    [
        ({"identity_datagrams_per_second": 0.001, "identity_datagram_burst": 4}, 1, "identity_datagrams_per_second"),
        ({"identity_bytes_per_second": 0.001, "identity_byte_burst": 16_384}, 4_096, "identity_bytes_per_second"),
        ({"prefix_datagrams_per_second": 0.001, "prefix_datagram_burst": 4}, 1, "prefix_datagrams_per_second"),
        ({"prefix_bytes_per_second": 0.001, "prefix_byte_burst": 16_384}, 4_096, "prefix_bytes_per_second"),
    ],
)  # fmt: skip
def test_data_of_a_prefix_or_identity_are_limited_over_all_its_associations(limits, size, reason):
    quotas = Quotas(QuotaPolicy(**limits))
    prefix = quotas.prefix_of(("192.0.2.1", 1))
    budgets = []
    for _ in range(3):
        quotas.hold(prefix)
        budgets.append(quotas.data_budget(0.0, prefix=prefix, identity=b"meter-1"))
    outcomes = [quotas.admit_data(budget, size, 0.0) for _ in range(3) for budget in budgets]
    assert outcomes == [None] * 4 + [reason] * 5
    assert quotas.refused == {reason: 5}
    assert [budget.exceeded for budget in budgets] == [True] * 3
    # What others are refused for costs an association nothing of its own.
    assert budgets[0].datagrams == 2_000 - outcomes[::3].count(None)
    elsewhere = quotas.prefix_of(("192.0.2.2", 1))
    quotas.hold(elsewhere)
    other = quotas.data_budget(0.0, prefix=elsewhere, identity=b"meter-2")
    assert quotas.admit_data(other, size, 0.0) is None


def test_an_identity_that_is_away_for_a_moment_gets_no_new_budget():
    quotas = Quotas(QuotaPolicy(identity_datagrams_per_second=0.001, identity_datagram_burst=4))
    passed = 0
    for _ in range(3):
        budget = quotas.data_budget(0.0, identity=b"meter-1")
        passed += [quotas.admit_data(budget, 1, 0.0) for _ in range(3)].count(None)
        quotas.end_budget(budget)
        quotas.end_budget(budget)
    assert passed == 4


# --- the policy ----------------------------------------------------------------------------------------------


def test_unlimited_means_every_limit():
    policy = QuotaPolicy.unlimited()
    quotas = Quotas(policy, Limits(max_half_open=10_000_000))
    prefix = quotas.prefix_of(("192.0.2.1", 1))
    for _ in range(20_000):
        assert quotas.admit_handshake(prefix, replaces=False, now=0.0) is None
        assert quotas.admit_identity(b"meter-1", 0.0) is None
    assert not quotas.limits_data
    assert len(quotas) == 1  # the prefix, as it holds slots


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("half_open_per_prefix", 0),
        ("prefix_datagrams_per_second", 0),
        ("prefix_datagram_burst", 0),
        ("prefix_bytes_per_second", float("inf")),
        ("prefix_byte_burst", 16_383),
        ("identity_handshakes_per_second", 0),
        ("identity_handshake_burst", 0),
        ("identity_datagrams_per_second", -1),
        ("identity_datagram_burst", 1.5),
        ("identity_bytes_per_second", "x"),
        ("identity_byte_burst", 1),
        ("waiting_bytes_per_association", 1),
        ("total_handshakes_per_second", 0),
        ("total_handshake_burst", None),
        ("total_datagrams_per_second", 0),
        ("total_datagram_burst", 0),
        ("total_bytes_per_second", 0),
        ("total_byte_burst", 0),
        ("total_waiting_bytes", 0),
        ("fair_reserve", 1.1),
        ("tracked_identities", 0),
        ("tracked_offenders", 0),
        ("offender_half_life", 0),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_name_of_its_field(field, value):
    with pytest.raises(ConfigError, match=rf"QuotaPolicy\.{field}: "):
        QuotaPolicy(**{field: value})
