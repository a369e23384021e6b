"""The guard around a key store: time-outs, one question at a time, memory of strangers, outages; on virtual time."""

import gc
from collections.abc import Awaitable

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from endpoint.keystore import DictKeyStore, KeyDataError, ManagedStore, StoreUnavailable
from endpoint.keystore.guard import GuardedStore
from endpoint.tables.lookup import LookupPolicy

KEYS = {b"meter-1": [b"k" * 16], b"meter-2": [b"c" * 16, b"n" * 16]}


class AsyncStore:
    """Answers from ``keys`` after ``seconds``; raises ``failure`` if there is one, and counts what it is asked."""

    def __init__(self, keys=KEYS, *, seconds=0.0, failure=None):
        self.keys = dict(keys)
        self.seconds = seconds
        self.failure = failure
        self.asked = []
        self.at_once = self.most_at_once = self.cancelled = 0

    async def lookup(self, identity):
        self.asked.append(identity)
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            await trio.sleep(self.seconds)
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self.at_once -= 1
        if self.failure is not None:
            raise self.failure
        return self.keys.get(identity, ())


class Guarded:
    """A guard that runs, and what it told."""

    def __init__(self, store, nursery, **policy):
        self.told: list = []
        self.recovered = trio.Event()
        self.store = store
        self.guard = GuardedStore(
            store,
            LookupPolicy(**policy),
            trouble=self._tell,
            entropy=lambda count: bytes([255]) * count,
        )
        self.nursery = nursery

    def _tell(self, what, **facts):
        self.told.append((what, facts))
        if what == "key store recovered":
            self.recovered.set()

    async def ask(self, identity=b"meter-1"):
        answer = self.guard.lookup(identity)
        return await answer if isinstance(answer, Awaitable) else answer

    async def refused(self, identity=b"meter-1"):
        with pytest.raises(StoreUnavailable) as caught:
            await self.ask(identity)
        return str(caught.value)

    @property
    def outcomes(self):
        return {name: count for name, count in self.guard.outcomes.items() if count}


@pytest.fixture
async def make(nursery):
    async def make(store, **policy):
        guarded = Guarded(store, nursery, **policy)
        await nursery.start(guarded.guard.run)
        return guarded

    return make


async def test_known_and_unknown_identities_are_answered(make):
    guarded = await make(AsyncStore())
    assert list(await guarded.ask(b"meter-2")) == [b"c" * 16, b"n" * 16]
    assert list(await guarded.ask(b"who")) == []
    assert guarded.outcomes == {"known": 1, "unknown": 1}


async def test_a_store_that_answers_at_once_is_handed_on_at_once_and_nothing_is_remembered(make):
    store = DictKeyStore()
    guarded = await make(store)
    assert guarded.guard.lookup(b"meter-1") == ()
    store.set(b"meter-1", b"key")
    assert guarded.guard.lookup(b"meter-1") == (b"key",)
    assert guarded.outcomes == {"known": 1, "unknown": 1}
    assert guarded.guard.statistics()["negative_cache"] == 0


async def test_many_handshakes_of_one_identity_are_one_question(make, autojump_clock):
    guarded = await make(AsyncStore(seconds=1))
    answers = []

    async def ask():
        answers.append(await guarded.ask())

    async with trio.open_nursery() as waiting:
        for _ in range(1000):
            waiting.start_soon(ask)
    assert guarded.store.asked == [b"meter-1"]
    assert answers == [KEYS[b"meter-1"]] * 1000
    assert guarded.outcomes == {"known": 1, "joined": 999}
    assert guarded.guard.statistics()["in_flight"] == 0


async def test_one_that_does_not_wait_any_more_takes_nobody_elses_answer_away(make, autojump_clock):
    guarded = await make(AsyncStore(seconds=1))
    answers = []

    async def ask(scope):
        with scope:
            answers.append(await guarded.ask())

    first, second = trio.CancelScope(), trio.CancelScope()
    async with trio.open_nursery() as waiting:
        waiting.start_soon(ask, first)
        await wait_all_tasks_blocked()
        waiting.start_soon(ask, second)
        await wait_all_tasks_blocked()
        first.cancel()
    assert answers == [KEYS[b"meter-1"]]
    assert (guarded.store.cancelled, len(guarded.store.asked)) == (0, 1)


async def test_when_the_last_one_leaves_the_lookup_ends_and_the_next_one_asks_anew(make, autojump_clock):
    guarded = await make(AsyncStore(seconds=1))
    for _ in range(2):
        with trio.move_on_after(0.5):
            await guarded.ask()
    # Asked again in the very moment in which the other one left.
    assert list(await guarded.ask()) == KEYS[b"meter-1"]
    await wait_all_tasks_blocked()
    assert guarded.store.cancelled == 2
    assert guarded.outcomes == {"known": 1, "abandoned": 2}
    assert guarded.guard.statistics()["down"] == 0


async def test_no_answer_in_time_is_a_refusal_and_other_identities_do_not_wait_for_it(make, autojump_clock):
    store = AsyncStore(seconds=60)
    guarded = await make(store, timeout=2)
    began = trio.current_time()
    async with trio.open_nursery() as waiting:
        waiting.start_soon(guarded.refused)
        await wait_all_tasks_blocked()
        store.seconds = 0
        assert list(await guarded.ask(b"meter-2"))
        assert trio.current_time() - began < 0.1
    assert trio.current_time() - began == pytest.approx(2)
    assert guarded.outcomes == {"timed_out": 1, "known": 1}
    store.seconds = 60
    assert await guarded.refused() == "no answer within 2 seconds"


async def test_no_more_lookups_are_under_way_than_allowed_and_who_gets_no_place_in_time_comes_back(
    make, autojump_clock
):
    store = AsyncStore(seconds=1.5)
    guarded = await make(store, timeout=2, concurrency=2)
    told = []

    async def ask(number):
        try:
            await guarded.ask(b"%d" % number)
        except StoreUnavailable as refusal:
            told.append(str(refusal))

    async with trio.open_nursery() as waiting:
        for number in range(7):
            waiting.start_soon(ask, number)
    assert store.most_at_once == 2
    # Two were answered; two were asked about too late; for three there was no place. Those are not the store's fault.
    assert (
        sorted(told)
        == ["no answer within 2 seconds"] * 2 + ["no place within 2 seconds: 2 lookups were under way"] * 3
    )
    assert guarded.outcomes == {"unknown": 2, "timed_out": 2, "crowded": 3}
    assert guarded.guard.statistics()["down"] == 0


# --- what is remembered of strangers --------------------------------------------------------------------


async def test_an_unknown_identity_is_asked_for_once_in_a_while_however_often_it_comes(make, autojump_clock):
    guarded = await make(AsyncStore(), negative_seconds=10)
    for _ in range(199):
        assert list(await guarded.ask(b"who")) == []
        await trio.sleep(0.1)
    assert len(guarded.store.asked) == 2
    assert guarded.outcomes == {"unknown": 2, "cached": 197}


async def test_a_key_that_was_entered_works_after_that_time_even_if_strangers_keep_asking(
    make, autojump_clock
):
    guarded = await make(AsyncStore(), negative_seconds=10)
    assert not await guarded.ask(b"new")
    guarded.store.keys[b"new"] = [b"k" * 16]
    for _ in range(99):
        await trio.sleep(0.1)
        assert not await guarded.ask(b"new")
    await trio.sleep(0.2)
    assert list(await guarded.ask(b"new")) == [b"k" * 16]


async def test_known_identities_are_never_answered_from_memory(make):
    guarded = await make(AsyncStore())
    assert await guarded.ask()
    del guarded.store.keys[b"meter-1"]
    assert not await guarded.ask()


async def test_nothing_is_remembered_where_that_is_turned_off_and_after_forget(make):
    guarded = await make(AsyncStore(), negative_seconds=0)
    assert not await guarded.ask(b"who")
    assert not await guarded.ask(b"who")
    assert guarded.outcomes == {"unknown": 2}
    guarded = await make(AsyncStore())
    assert not await guarded.ask(b"who")
    guarded.guard.forget()
    guarded.store.keys[b"who"] = [b"k" * 16]
    assert await guarded.ask(b"who")


async def test_a_flood_of_identities_fills_no_memory_and_the_least_recent_one_is_forgotten_first(make):
    guarded = await make(AsyncStore(), negative_size=3)
    for name in (b"a", b"b", b"c", b"a", b"d"):
        await guarded.ask(name)
    guarded.store.asked.clear()
    for name in (b"c", b"a", b"d"):
        await guarded.ask(name)
    assert guarded.store.asked == []
    await guarded.ask(b"b")
    assert guarded.store.asked == [b"b"]
    for number in range(1000):
        await guarded.ask(b"%d" % number)
    assert guarded.guard.statistics()["negative_cache"] == 3
    # Digests, not what strangers claim.
    assert all(len(digest) == 32 for digest in guarded.guard._unknown)


async def test_an_identity_that_is_too_long_is_unknown_without_a_question(make):
    guarded = await make(AsyncStore({b"x" * 9: [b"k" * 16]}), longest_identity=8)
    assert guarded.guard.lookup(b"x" * 9) == ()
    assert not await guarded.ask(b"x" * 8)
    assert guarded.store.asked == [b"x" * 8]
    assert guarded.outcomes == {"too_long": 1, "unknown": 1}


async def test_an_answer_from_memory_takes_as_long_as_one_from_the_store(make, autojump_clock):
    guarded = await make(AsyncStore(seconds=0.02))
    for identity in (b"who", b"meter-1"):
        for expected in ("store", "memory or store"):
            began = trio.current_time()
            await guarded.ask(identity)
            assert trio.current_time() - began == pytest.approx(0.02), expected
    assert guarded.outcomes == {"unknown": 1, "cached": 1, "known": 2}


# --- outages --------------------------------------------------------------------------------------------


async def test_a_store_that_is_down_is_left_alone_and_recovery_is_told_once(make, autojump_clock):
    store = AsyncStore(failure=ConnectionError("no route"))
    guarded = await make(store, failures=3, retry=5)
    for _ in range(3):
        assert await guarded.refused() == "ConnectionError('no route')"
    for _ in range(1000):
        assert await guarded.refused(b"meter-2") == "ConnectionError('no route')"
    assert len(store.asked) == 3
    assert guarded.outcomes == {"failed": 3, "refused": 1000}
    assert guarded.guard.statistics()["down"] == 1
    assert guarded.told == []  # each refusal is told by who asked
    began = trio.current_time()
    await trio.sleep(60)
    # 0.25, 0.5, 1, 2, 4, then every 5 s.
    assert len(store.asked) == 3 + 15
    assert await guarded.guard.check() == (
        "the key store has been unavailable for 60 s: ConnectionError('no route')"
    )
    store.failure = None
    await guarded.recovered.wait()
    assert trio.current_time() - began < 60 + 5.2
    assert list(await guarded.ask()) == KEYS[b"meter-1"]
    assert [what for what, _ in guarded.told] == ["key store recovered"]
    assert guarded.told[0][1]["seconds"] == pytest.approx(trio.current_time() - began, abs=0.2)
    assert await guarded.guard.check() is None
    assert guarded.guard.statistics()["outages"] == 1


async def test_pauses_are_shorter_by_chance_so_that_endpoints_do_not_ask_in_step():
    def pause(byte, attempt):
        guard = GuardedStore(
            AsyncStore(), LookupPolicy(retry=5), trouble=print, entropy=lambda count: bytes([byte]) * count
        )
        return guard._pause(attempt)

    assert [pause(255, attempt) for attempt in range(6)] == [0.25, 0.5, 1, 2, 4, 5]
    assert [pause(0, attempt) for attempt in (0, 5, 10_000)] == [0.125, 2.5, 2.5]


async def test_failures_in_between_are_no_outage(make):
    guarded = await make(AsyncStore(), failures=3)
    for _ in range(5):
        for failure in (OSError("x"), OSError("x"), None):
            guarded.store.failure = failure
            if failure:
                await guarded.refused()
            else:
                await guarded.ask()
    assert guarded.guard.statistics()["outages"] == 0
    assert guarded.told == []


async def test_after_a_failure_strangers_are_refused_like_devices(make, autojump_clock):
    guarded = await make(AsyncStore(), failures=3)
    await guarded.ask(b"who")
    guarded.store.failure = OSError("down")
    for identity in (b"meter-1", b"who", b"meter-1", b"who", b"never seen"):
        assert await guarded.refused(identity) == "OSError('down')"


async def test_lookups_that_succeed_late_end_the_outage_too(make, autojump_clock):
    guarded = await make(AsyncStore(seconds=1), failures=1)
    async with trio.open_nursery() as waiting:
        waiting.start_soon(guarded.ask, b"meter-1")
        await wait_all_tasks_blocked()
        guarded.store.seconds, guarded.store.failure = 0, OSError("x")
        await guarded.refused(b"meter-2")
        assert guarded.guard.statistics()["down"] == 1
        guarded.store.failure = None
        await trio.sleep(0.01)
    assert guarded.guard.statistics()["down"] == 0


async def test_a_damaged_record_concerns_its_own_identity_only(make):
    guarded = await make(AsyncStore(failure=KeyDataError("current: not hexadecimal")), failures=1)
    with pytest.raises(KeyDataError, match="not hexadecimal"):
        await guarded.ask()
    assert guarded.guard.statistics()["down"] == 0
    guarded.store.failure = None
    assert await guarded.ask(b"meter-2")
    assert guarded.outcomes == {"invalid": 1, "known": 1}


async def test_a_store_that_raises_before_it_answers_is_an_outage_too(make, autojump_clock):
    class Raising:
        down = True

        def lookup(self, identity):
            if self.down:
                raise StoreUnavailable("still connecting")
            return [b"k" * 16]

    guarded = await make(Raising(), failures=2)
    assert [await guarded.refused() for _ in range(3)] == ["still connecting"] * 3
    assert guarded.outcomes == {"failed": 2, "refused": 1}
    guarded.store.down = False
    await trio.sleep(0.3)
    assert await guarded.ask()
    assert [what for what, _ in guarded.told] == ["key store recovered"]


# --- its life -------------------------------------------------------------------------------------------


async def test_without_run_it_refuses_and_leaves_no_coroutine_behind():
    guarded = Guarded(AsyncStore(), None)
    assert await guarded.refused() == "the key store is not running"
    assert await guarded.guard.check() == "the key store is not running"
    gc.collect()  # a coroutine that was never awaited would be a warning, and an error here


async def test_when_it_stops_those_who_wait_are_refused_not_unknown():
    guarded = Guarded(AsyncStore(seconds=60), None)
    async with trio.open_nursery() as asking, trio.open_nursery() as running:
        await running.start(guarded.guard.run)
        asking.start_soon(guarded.refused)
        await wait_all_tasks_blocked()
        running.cancel_scope.cancel()
    assert await guarded.refused() == "the key store is not running"


async def test_the_stores_own_life_is_run_and_run_again_if_it_fails(autojump_clock):
    class Living(AsyncStore):
        runs = 0

        async def run(self):
            self.runs += 1
            if self.runs < 3:
                raise OSError(f"attempt {self.runs}")
            await trio.sleep_forever()

        async def check(self):
            await trio.sleep(self.seconds)
            return None if self.runs == 3 else "not yet"

        def statistics(self):
            return {"runs": self.runs}

    async with trio.open_nursery() as nursery:
        guarded = Guarded(Living(), nursery)
        await nursery.start(guarded.guard.run)
        await wait_all_tasks_blocked(0.001)
        assert await guarded.guard.check() == "not yet"
        await trio.sleep(5)
        assert await guarded.guard.check() is None
        assert guarded.guard.statistics()["store"] == {"runs": 3}
        assert guarded.told == [("key store failed", {"reason": f"OSError('attempt {n}')"}) for n in (1, 2)]
        guarded.store.seconds = 60
        assert await guarded.guard.check() == "no answer within 5 seconds"
        nursery.cancel_scope.cancel()
    assert isinstance(guarded.guard, ManagedStore)


async def test_a_store_whose_figures_fail_costs_its_figures_and_nothing_else(make):
    class Broken(AsyncStore):
        def statistics(self):
            raise ZeroDivisionError

    guarded = await make(Broken())
    await guarded.ask()
    figures = guarded.guard.statistics()
    assert figures["lookups"]["known"] == 1
    assert figures["store"] == {"failed": "ZeroDivisionError()"}


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"meter-1", b"meter-2", b"who", b"else"]),
            st.sampled_from(["ok", "slow", "down", "damaged", "leave"]),
            st.sampled_from([0.0, 0.3, 3.0]),
        ),
        max_size=25,
    )
)
def test_whatever_happens_an_answer_is_true_or_a_refusal_and_nothing_is_left(steps):
    async def main():
        store = AsyncStore()
        async with trio.open_nursery() as nursery:
            guarded = Guarded(
                store, nursery, timeout=1, failures=2, negative_seconds=2, concurrency=1, negative_size=1
            )
            await nursery.start(guarded.guard.run)

            async def ask(identity, patience):
                with trio.move_on_after(patience):
                    try:
                        answer = await guarded.ask(identity)
                    except StoreUnavailable:
                        return
                    assert list(answer) == list(KEYS.get(identity, ()))

            async with trio.open_nursery() as asking:
                for identity, weather, pause in steps:
                    store.failure = {"down": OSError("x"), "damaged": KeyDataError("x")}.get(weather)
                    store.seconds = 0.7 if weather in ("slow", "leave") else 0.0
                    asking.start_soon(ask, identity, 0.1 if weather == "leave" else 100)
                    await trio.sleep(pause)
            store.failure, store.seconds = None, 0
            await trio.sleep(6)
            figures = guarded.guard.statistics()
            assert (figures["in_flight"], figures["down"], store.at_once) == (0, 0, 0)
            assert figures["negative_cache"] <= 1
            assert list(await guarded.ask()) == KEYS[b"meter-1"]
            assert sum(guarded.outcomes.values()) >= len(steps) + 1
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
