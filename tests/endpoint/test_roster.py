"""Who is here, live and frozen: the tables, and what a frozen association costs in them."""

import tracemalloc
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from endpoint.association import Association, CredentialKind
from endpoint.frozen import FrozenHandles
from endpoint.quotas import QuotaPolicy, Quotas
from endpoint.roster import Roster

# --- frozen associations ------------------------------------------------------------------------------

IDENTITIES = [b"", b"a", b"ab", b"b" * 300, *(b"meter-%d" % number for number in range(20))]
HANDLES = [b"", b"c", b"p" * 300, *(b"c%07d" % number for number in range(20))]


class FrozenHandlesMachine(RuleBasedStateMachine):
    """Against a dict of dicts."""

    def __init__(self):
        super().__init__()
        self.handles = FrozenHandles()
        self.model: dict[bytes, dict[bytes, None]] = {}

    @rule(identity=st.sampled_from(IDENTITIES), handle=st.sampled_from(HANDLES))
    def add(self, identity, handle):
        if handle in self.model.get(identity, ()):
            return  # each handle is there once: it names one association
        self.handles.add(identity, handle)
        self.model.setdefault(identity, {})[handle] = None

    @rule(identity=st.sampled_from(IDENTITIES), handle=st.sampled_from(HANDLES))
    def remove(self, identity, handle):
        self.handles.remove(identity, handle)
        self.model.get(identity, {}).pop(handle, None)

    @invariant()
    def all_are_found_in_their_order(self):
        assert len(self.handles) == sum(map(len, self.model.values()))
        for identity in IDENTITIES:
            assert list(self.handles.of(identity)) == list(self.model.get(identity, ()))


FrozenHandlesMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestFrozenHandles = FrozenHandlesMachine.TestCase


@pytest.mark.parametrize("share", [1, 2, 5_000])
def test_thousands_of_frozen_associations_are_found_whoever_shares_an_identity(share):
    handles = FrozenHandles()
    for number in range(5_000):
        handles.add(b"%d" % (number // share), b"c%d" % number)
    assert len(handles) == 5_000
    for number in range(0, 5_000, 7):
        assert b"c%d" % number in handles.of(b"%d" % (number // share))
        handles.remove(b"%d" % (number // share), b"c%d" % number)
        assert b"c%d" % number not in handles.of(b"%d" % (number // share))
    assert len(handles) == 5_000 - 715


def test_a_frozen_association_costs_a_few_bytes_more_than_its_identity_and_handle():
    handles = FrozenHandles()
    tracemalloc.start()
    try:
        for number in range(20_000):
            handles.add(b"%08d" % number, b"c%08d" % number)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size / 20_000 < 8 + 9 + 16


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
    assert roster[first.connection] is first
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
