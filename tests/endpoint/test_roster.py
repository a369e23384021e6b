"""Who is here, live and frozen: the tables, and what a frozen association costs in them."""

import tracemalloc
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from endpoint.association import Association, CredentialKind
from endpoint.quotas import QuotaPolicy, Quotas
from endpoint.roster import Roster
from endpoint.sleepers import Sleepers

# --- frozen associations ------------------------------------------------------------------------------

IDENTITIES = [b"", b"a", b"ab", b"b" * 300, *(b"meter-%d" % number for number in range(20))]
HANDLES = [b"", b"c", b"p" * 300, *(b"c%07d" % number for number in range(20))]


class SleepersMachine(RuleBasedStateMachine):
    """Against a dict of dicts."""

    def __init__(self):
        super().__init__()
        self.sleepers = Sleepers()
        self.model: dict[bytes, dict[bytes, float]] = {}
        self.now = 0.0

    @rule(
        identity=st.sampled_from(IDENTITIES),
        handle=st.sampled_from(HANDLES),
        ago=st.sampled_from((0.0, 50.5)),
    )
    def add(self, identity, handle, ago):
        if handle in self.model.get(identity, ()):
            return  # each handle is there once: it names one association
        self.now += 1.0
        self.sleepers.add(identity, handle, self.now - ago)
        self.model.setdefault(identity, {})[handle] = self.now - ago

    @rule(identity=st.sampled_from(IDENTITIES), handle=st.sampled_from(HANDLES))
    def remove(self, identity, handle):
        self.sleepers.remove(identity, handle)
        handles = self.model.get(identity, {})
        handles.pop(handle, None)
        if not handles:
            self.model.pop(identity, None)

    @invariant()
    def all_are_found_the_one_silent_longest_first(self):
        assert len(self.sleepers) == len(self.model)
        assert self.sleepers.handles == sum(map(len, self.model.values()))
        for identity in IDENTITIES:
            handles = self.model.get(identity, {})
            assert self.sleepers.of(identity) == sorted(handles, key=handles.__getitem__)


SleepersMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestSleepers = SleepersMachine.TestCase


@pytest.mark.parametrize("share", [1, 2, 5_000])
def test_thousands_of_frozen_associations_are_found_whoever_shares_an_identity(share):
    sleepers = Sleepers()
    for number in range(5_000):
        sleepers.add(b"%d" % (number // share), b"c%d" % number, float(number))
    assert len(sleepers) == 5_000 // share
    for number in range(0, 5_000, 7):
        assert b"c%d" % number in sleepers.of(b"%d" % (number // share))
        sleepers.remove(b"%d" % (number // share), b"c%d" % number)
        assert b"c%d" % number not in sleepers.of(b"%d" % (number // share))
    sleepers.clear()
    assert len(sleepers) == 0
    assert sleepers.of(b"1") == []


def test_a_frozen_association_costs_a_few_bytes_more_than_its_identity_and_handle():
    sleepers = Sleepers()
    tracemalloc.start()
    try:
        for number in range(20_000):
            sleepers.add(b"%08d" % number, b"c%08d" % number, 0.0)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size / 20_000 < 8 + 9 + 8 + 16


# --- live ones ----------------------------------------------------------------------------------------


def association(identity: bytes, number: int = 0) -> Association:
    nobody: Any = object()
    return Association(
        nobody,
        nobody,
        path=(0, ("192.0.2.1", number)),
        prefix=(4, 0),
        identity=identity,
        kind=CredentialKind.PSK,
        key_index=0,
        budget=Quotas(QuotaPolicy()).data_budget(0),
    )


def roster_with(*associations: Any) -> Roster:
    roster = Roster()
    for each in associations:
        roster.add(each)
    return roster


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_identity_has_the_associations_that_were_added_and_not_removed(count):
    associations = [association(b"meter", number) for number in range(count)]
    other = association(b"other", 99)
    roster = roster_with(other, *associations)
    while associations:
        assert list(roster.of(b"meter")) == associations
        assert len(roster) == len(associations) + 1
        roster.remove(associations.pop(0).connection)
    assert list(roster.of(b"meter")) == []
    assert list(roster.of(b"other")) == [other]
    assert roster.identities == 1


def test_an_association_that_was_disowned_is_here_but_not_counted_for_its_identity():
    first, second = association(b"meter", 1), association(b"meter", 2)
    roster = roster_with(first, second)
    roster.disown(first)
    assert list(roster.of(b"meter")) == [second]
    assert roster.get(first.connection) is first
    roster.disown(first)
    roster.remove(first.connection)
    assert list(roster.of(b"meter")) == [second]
    roster.disown(second)
    assert not roster.of(b"meter")
    assert roster.identities == 0
    assert len(roster) == 1


def test_who_is_alone_needs_no_dict_of_its_own():
    alone = association(b"meter")
    roster = roster_with(alone)
    assert roster._by_identity == {b"meter": alone}
