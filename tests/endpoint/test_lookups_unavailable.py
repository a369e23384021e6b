"""A key store that cannot say: the device is told to come back, associations live on, and the operator hears of it."""

import pytest
import trio

from endpoint.keystore import DictKeyStore, KeyDataError, StoreUnavailable
from endpoint.keystore.guard import GuardedStore
from endpoint.tables.lookup import LookupPolicy
from sansdtls import AlertDescription, AuthenticationFailed, AuthenticationProblem, PeerAlert
from tests.endpoint.devices import IDENTITY, KEYS, Recorder, serving
from tests.endpoint.test_guarded_store import AsyncStore
from tests.endpoint.test_lookups import FixedStore, SlowStore

COME_BACK = PeerAlert(AlertDescription.INTERNAL_ERROR, authenticated=False)
ASYNC_KEYS = {identity: [key] for identity, key in KEYS.items()}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (StoreUnavailable("no route to it"), "key store unavailable"),
        (KeyDataError("no route to it"), "key record unusable"),
    ],
)
async def test_the_device_is_told_to_come_back_and_the_operator_why(autojump_clock, answer, what, late):
    slow = SlowStore(answer)
    slow.go.set()
    async with serving(keystore=slow if late else FixedStore(answer)) as served:
        device = await served.device().connect()
        assert device.cause == COME_BACK
        assert served.observer.troubles == [(what, {"identity": IDENTITY, "reason": "no route to it"})]
        ((_, identity, cause),) = served.observer.failed
        assert identity == IDENTITY
        assert cause == AuthenticationFailed(AuthenticationProblem.KEYS_UNAVAILABLE, IDENTITY)
        figures = served.engine.statistics()
        assert (figures["lookups_unavailable"], figures["lookup_failures"]) == (1, 0)
        assert figures["server"]["handshakes_failed"] == {"AuthenticationFailed.keys_unavailable": 1}
        assert served.idle


async def test_what_is_there_lives_on_while_the_store_is_down_and_new_devices_come_in_when_it_is_back(
    autojump_clock, nursery
):
    store = AsyncStore(ASYNC_KEYS)
    observer = Recorder(echo=True)
    guard = GuardedStore(store, LookupPolicy(failures=2), trouble=observer.trouble)
    await nursery.start(guard.run)
    async with serving(keystore=guard, observer=observer) as served:
        before = await served.device().connect()
        store.failure = ConnectionError("gone")
        for number in (2, 3, 4, 5):
            refused = await served.device(identity=b"meter-%d" % number).connect()
            assert refused.cause == COME_BACK
            await before.send(b"still here")
            assert await before.receive() == b"still here"
        assert served.engine.statistics()["lookups_unavailable"] == 4
        # From the second failure on it is asked for the identity that failed last only, to see whether it is back.
        assert set(store.asked) == {b"meter-1", b"meter-2", b"meter-3"}
        # The same device anew is refused too, and keeps what it has.
        again = before.connection
        await before.connect()
        assert before.cause == COME_BACK
        before.connection, before.cause = again, None
        await before.send(b"and still here")
        assert await before.receive() == b"and still here"
        store.failure = None
        await trio.sleep(5)
        assert (await served.device(identity=b"meter-2").connect()).connected
        assert [what for what, _ in observer.troubles] == ["key store unavailable"] * 5 + [
            "key store recovered"
        ]


async def test_a_crowd_of_strangers_and_a_slow_store_do_not_keep_the_others_out(autojump_clock, nursery):
    store = AsyncStore(ASYNC_KEYS, seconds=0.2)
    guard = GuardedStore(store, LookupPolicy(concurrency=4), trouble=print)
    await nursery.start(guard.run)
    async with serving(keystore=guard) as served:

        async def knock(number):
            with trio.move_on_after(20):
                await served.device(identity=b"stranger %d" % (number % 40)).connect()

        async with trio.open_nursery() as crowd:
            for number in range(60):
                crowd.start_soon(knock, number)
            assert (await served.device().connect()).connected
            crowd.cancel_scope.cancel()
    assert store.most_at_once <= 4


async def test_a_store_that_answers_at_once_needs_no_task_behind_a_guard_either(nursery):
    guard = GuardedStore(DictKeyStore(KEYS), trouble=print)
    await nursery.start(guard.run)
    async with serving(keystore=guard) as served:
        assert (await served.device().connect()).connected
        assert guard.statistics()["lookups"]["known"] == 1
