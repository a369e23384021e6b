"""The store in memory: found by handle and by path, handed out once, over in the order of time."""

import math
import random
from collections.abc import Callable
from time import process_time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sansdtls import SnapshotError
from sansdtls import frozen as module
from sansdtls.frozen import FrozenStore, MemoryStore
from sansdtls.saved_paths import encode_path
from sansdtls.snapshot import expires_at
from tests.core import frozen


def blob(expires_at: float, content: bytes = b"") -> bytes:
    """All that a store looks at is when it expires."""
    return frozen.blob_of(b"body" + content, expires_at=expires_at)


PATH = encode_path((0, ("192.0.2.1", 5684)))
OTHER_PATH = encode_path((0, ("192.0.2.1", 5685)))


def store_of(**expiries: float) -> MemoryStore:
    store = MemoryStore()
    for name, expiry in expiries.items():
        store.put(name.encode(), PATH, blob(expiry, name.encode()))
    return store


def expired(store: FrozenStore, now: float) -> list[bytes]:
    handles = []
    while (taken := store.take_expired(now)) is not None:
        handles.append(taken[0])
    return handles


# --- single use -----------------------------------------------------------------------------------------


def newest_at(store, path_key):
    return next(iter(store.handles_at(path_key, 1)), None)


def test_what_was_put_is_handed_out_once():
    store = store_of(one=1.0, two=2.0)
    assert store.take(b"one") == blob(1.0, b"one")
    assert b"one" not in store
    assert store.take(b"one") is None
    assert len(store) == 1
    assert store.take(b"two") == blob(2.0, b"two")
    assert store.take(b"two") is None
    assert len(store) == 0


def test_the_same_association_cannot_be_there_twice():
    store = store_of(one=1.0)
    with pytest.raises(SnapshotError, match=b"one".hex()):
        store.put(b"one", OTHER_PATH, blob(2.0))
    assert len(store) == 1
    assert newest_at(store, OTHER_PATH) is None
    assert store.take(b"one") == blob(1.0, b"one")
    store.put(b"one", OTHER_PATH, blob(2.0))
    assert store.take(b"one") == blob(2.0)


@pytest.mark.parametrize("damaged", [b"", b"\1", b"\2" + bytes(100), blob(math.nan)])
def test_what_is_no_blob_is_not_kept(damaged):
    store = store_of(one=1.0)
    with pytest.raises(SnapshotError):
        store.put(b"two", OTHER_PATH, damaged)
    assert list(store.handles()) == [b"one"]
    assert newest_at(store, OTHER_PATH) is None


def test_only_a_whole_handle_names_an_association():
    store = store_of(one=1.0)
    for other in (b"", b"on", b"one\0", b"onf", "one", None, bytearray(b"one")):
        assert other not in store
    assert store.take(b"on") is None


# --- paths ----------------------------------------------------------------------------------------------


def test_of_two_associations_on_one_path_the_one_put_last_is_found_and_then_the_other():
    store = store_of(old=9.0, new=1.0, newest=5.0)
    for handle in (b"newest", b"new", b"old"):
        assert newest_at(store, PATH) == handle
        store.take(handle)
    assert newest_at(store, PATH) is None


def test_an_association_is_found_where_it_was_last_heard_only():
    store = store_of(one=1.0)
    store.take(b"one")
    store.put(b"one", OTHER_PATH, blob(1.0))
    assert newest_at(store, PATH) is None
    assert newest_at(store, OTHER_PATH) == b"one"


def test_the_newest_on_a_path_stays_the_newest_while_the_store_grows():
    store = store_of(old=1.0, new=1.0)
    for number in range(1000):
        store.put(b"n%d" % number, encode_path(number), blob(1.0))
        assert newest_at(store, PATH) == b"new"
        assert newest_at(store, encode_path(number)) == b"n%d" % number


# --- time -----------------------------------------------------------------------------------------------


def test_an_association_expires_at_its_time_and_not_before():
    store = store_of(one=10.0)
    assert store.next_expiry() == 10.0
    assert store.take_expired(math.nextafter(10.0, 0)) is None
    assert store.take_expired(10.0) == (b"one", blob(10.0, b"one"))
    assert store.take_expired(1e9) is None
    assert store.next_expiry() is None


@pytest.mark.parametrize("seed", range(5))
def test_associations_expire_in_the_order_of_their_times_however_they_came(seed):
    generator = random.Random(seed)
    times = {b"%d" % number: float(generator.randrange(500)) for number in range(1000)}
    store = MemoryStore()
    for handle, time in times.items():
        store.put(handle, PATH, blob(time))
    for handle in generator.sample(sorted(times), 300):
        store.take(handle)
        del times[handle]
    for now in range(0, 520, 20):
        due = [handle for handle, time in times.items() if time <= now]
        taken = expired(store, now)
        assert sorted(taken) == sorted(due)
        assert [times[handle] for handle in taken] == sorted(times[handle] for handle in due)
        for handle in due:
            del times[handle]
    assert len(store) == 0


def test_those_that_never_expire_stay_and_hold_up_nobody():
    store = store_of(forever=math.inf, late=2.0, too=1e300, soon=1.0)
    assert store.next_expiry() == 1.0
    assert expired(store, 1e200) == [b"soon", b"late"]
    assert store.next_expiry() is None
    assert len(store) == 2


def test_room_is_made_by_the_one_that_would_go_first_and_by_the_oldest_of_those_that_never_would():
    store = store_of(first=math.inf, second=math.inf, third=math.inf, late=2.0, soon=1.0, fourth=math.inf)
    order = []
    while (taken := store.take_oldest()) is not None:
        order.append(taken[0])
    assert order == [b"soon", b"late", b"first", b"second", b"third", b"fourth"]


def test_freezing_again_gives_a_new_time():
    store = store_of(one=1.0, two=2.0)
    store.take(b"one")
    store.put(b"one", PATH, blob(3.0))
    assert expired(store, 2.5) == [b"two"]
    assert expired(store, 3.0) == [b"one"]


# --- all of them ----------------------------------------------------------------------------------------


def test_all_can_be_taken_while_they_are_looked_through():
    store = store_of(**{f"n{number}": float(number) for number in range(100)})
    taken = [(handle, store.take(handle)) for handle in store.handles()]
    assert taken == [(b"n%d" % number, blob(float(number), b"n%d" % number)) for number in range(100)]
    assert list(store.handles()) == []


def test_slots_are_used_again():
    store = store_of(**{f"n{number}": float(number) for number in range(100)})
    for round_number in range(50):
        for handle in list(store.handles()):
            store.take(handle)
        for number in range(100):
            store.put(b"r%d-%d" % (round_number, number), PATH, blob(1.0))
    assert len(store._records) == 100
    assert len(store._by_handle._buckets) == len(store._by_path._buckets) == 100


def test_a_chain_stays_short_however_many_there_are():
    store = MemoryStore()
    for number in range(5000):
        store.put(b"n%d" % number, encode_path(number), blob(1.0))
    for index in (store._by_handle, store._by_path):
        assert max(_lengths(index)) < 20
        assert sum(_lengths(index)) == 5000


def test_to_take_one_costs_the_same_however_many_have_its_path():
    def seconds(path_of: Callable[[int], bytes]) -> float:
        store = MemoryStore()
        for number in range(20_000):
            store.put(b"n%d" % number, path_of(number), blob(1.0))
        before = process_time()
        for number in range(500):  # the ones that were put first, at the end of their chain
            store.take(b"n%d" % number)
        return process_time() - before

    assert seconds(lambda _: PATH) < 10 * seconds(encode_path)


def _lengths(index: module._Index) -> list[int]:
    lengths = []
    for first in index._buckets:
        slot, length = first, 0
        while slot != module._NO_SLOT:
            slot, length = index._following[slot], length + 1
        lengths.append(length)
    return lengths


# --- against a model ------------------------------------------------------------------------------------

handles = st.sampled_from([b"c%d" % number for number in range(25)])
path_keys = st.sampled_from([encode_path(number) for number in range(6)])
times = st.sampled_from([1.0, 2.0, 3.0, 4.0, 5.0, math.inf])


class AnyOrder(RuleBasedStateMachine):
    """A MemoryStore beside a dict, which keeps the order of insertion."""

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()
        self.model: dict[bytes, tuple[bytes, bytes]] = {}
        self.count = 0
        self.undo = pytest.MonkeyPatch()

    @initialize(bits=st.sampled_from([0, 2, 61]))
    def hashes(self, bits):
        """With few bits nearly all keys collide."""
        self.undo.setattr(module, "hash", lambda key: hash(key) & (1 << bits) - 1, raising=False)

    def teardown(self) -> None:
        self.undo.undo()

    def expiry(self, handle):
        return expires_at(self.model[handle][1])

    @rule(handle=handles, path_key=path_keys, time=times)
    def put(self, handle, path_key, time):
        self.count += 1
        content = blob(time, b"%d" % self.count)
        if handle in self.model:
            with pytest.raises(SnapshotError):
                self.store.put(handle, path_key, content)
        else:
            self.store.put(handle, path_key, content)
            self.model[handle] = path_key, content

    @rule(handle=handles)
    def take(self, handle):
        expected = self.model.pop(handle, (None, None))[1]
        assert self.store.take(handle) == expected

    @rule(now=st.sampled_from([0.0, 1.0, 2.5, 4.0]))
    def expire(self, now):
        taken = self.store.take_expired(now)
        first = min(map(self.expiry, self.model), default=math.inf)
        if first > now:
            assert taken is None
        else:
            assert taken is not None
            assert self.expiry(taken[0]) == first
            assert self.model.pop(taken[0])[1] == taken[1]

    @precondition(lambda self: self.model)
    @rule()
    def make_room(self):
        taken = self.store.take_oldest()
        assert taken is not None
        first = min(map(self.expiry, self.model))
        assert self.expiry(taken[0]) == first
        if first == math.inf:
            assert taken[0] == next(iter(self.model))
        assert self.model.pop(taken[0])[1] == taken[1]

    @invariant()
    def they_agree(self):
        assert len(self.store) == len(self.model)
        assert sorted(self.store.handles()) == sorted(self.model)
        assert all(handle in self.store for handle in self.model)
        newest = {path_key: handle for handle, (path_key, _) in self.model.items()}
        for number in range(6):
            path_key = encode_path(number)
            assert newest_at(self.store, path_key) == newest.get(path_key)
        first = min(map(self.expiry, self.model), default=math.inf)
        assert self.store.next_expiry() == (None if first == math.inf else first)


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=60)
TestAnyOrder = AnyOrder.TestCase
