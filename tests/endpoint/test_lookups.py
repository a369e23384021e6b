"""Key stores that are slow, wrong or broken; and peers that do not wait for them."""

from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from endpoint.keystore import DictKeyStore
from endpoint.keystore.fingerprint import fingerprint
from sansdtls import AuthenticationFailed, AuthenticationProblem, Limits, RetransmitPolicy, ServerConfig
from tests.endpoint.devices import IDENTITY, KEY, KEYS, Recorder, serving


class SlowStore:
    """Answers when told to: ``await store.asked.wait()``, then ``store.go.set()``."""

    def __init__(self, answer, *, slow=IDENTITY):
        self.answer = answer
        self.slow = slow
        self.asked = trio.Event()
        self.go = trio.Event()
        self.cancelled = 0

    def lookup(self, identity):
        return self.later() if identity == self.slow else [KEYS[identity]]

    async def later(self):
        self.asked.set()
        try:
            await self.go.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class FixedStore:
    """Gives the same answer to everybody, or raises it."""

    def __init__(self, answer):
        self.answer = answer

    def lookup(self, identity):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def test_a_late_key_completes_the_handshake_and_other_devices_do_not_wait():
    store = SlowStore([KEY])
    async with serving(keystore=store) as served, trio.open_nursery() as nursery:
        slow = served.device()
        nursery.start_soon(slow.connect)
        await store.asked.wait()
        assert served.gauges["lookups"] == 1
        quick = await served.device(identity=b"meter-2").connect()
        assert quick.connected
        await quick.send(b"x")
        assert await quick.receive() == b"x"
        assert not slow.connected
        store.go.set()
        await wait_all_tasks_blocked()
        assert slow.connected
        assert served.gauges["lookups"] == 0


async def test_a_lookup_ends_with_its_handshake(autojump_clock):
    store = SlowStore([KEY])
    config = ServerConfig(retransmit=RetransmitPolicy(handshake_timeout=20.0), limits=Limits(max_half_open=3))
    async with serving(keystore=store, config=config) as served, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(served.device().connect)
        await store.asked.wait()
        await wait_all_tasks_blocked()
        assert served.gauges["lookups"] == 3
        await trio.sleep(21)
        assert store.cancelled == 3
        assert served.idle
        assert [identity for _, identity, _ in served.observer.failed] == [IDENTITY] * 3
        nursery.cancel_scope.cancel()


async def test_lookups_under_way_end_with_the_engine():
    store = SlowStore([KEY])
    async with trio.open_nursery() as nursery, serving(keystore=store) as served:
        nursery.start_soon(served.device().connect)
        await store.asked.wait()
        nursery.cancel_scope.cancel()
    assert store.cancelled == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (ConnectionError("database down"), "ConnectionError('database down')"),
        (None, "a list of keys is needed, not NoneType"),
        (KEY, "a list of keys is needed, not bytes"),
        ("secret", "a list of keys is needed, not str"),
        ([1], "a key is not bytes"),
        ([b""], "keys: at most 2, each of 1 to 64 bytes, are possible"),
        ([b"1", b"2", b"3"], "keys: at most 2, each of 1 to 64 bytes, are possible"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
async def test_a_store_that_fails_or_answers_nonsense_is_reported_and_the_identity_counts_as_unknown(
    autojump_clock, answer, reason, late
):
    slow = SlowStore(answer)
    slow.go.set()
    async with serving(keystore=slow if late else FixedStore(answer)) as served:
        device = await served.device().connect()
        assert not device.connected
        assert served.observer.troubles == [("key store failed", {"identity": IDENTITY, "reason": reason})]
        ((_, _, cause),) = served.observer.failed
        assert cause == AuthenticationFailed(AuthenticationProblem.UNKNOWN_IDENTITY, IDENTITY)
        assert served.engine.statistics()["lookup_failures"] == 1
        assert served.idle


async def test_the_key_store_may_be_exchanged_while_the_engine_runs():
    async with serving(keystore=DictKeyStore()) as served:
        served.engine.use_keystore(DictKeyStore(KEYS))
        assert (await served.device().connect()).connected


async def test_an_answer_that_comes_in_the_moment_in_which_its_handshake_ends_is_dropped():
    store = SlowStore([KEY])
    async with serving(keystore=store) as served, trio.open_nursery() as nursery:
        nursery.start_soon(served.device().connect)
        await store.asked.wait()
        store.go.set()  # the task that waits will run with the answer, and is not cancelled any more
        assert await served.engine.drain(5) == 0
        await wait_all_tasks_blocked()
        assert served.idle
        assert served.observer.troubles == []
        nursery.cancel_scope.cancel()


class Unable(Recorder):
    """An observer that cannot even be told of trouble."""

    def trouble(self, what, **facts):
        super().trouble(what, **facts)
        raise OSError("no space left on device")


@pytest.mark.parametrize("late", [False, True])
async def test_a_failure_that_the_observer_cannot_tell_ends_nobody_else(autojump_clock, late):
    slow = SlowStore(ConnectionError("database down"))
    slow.go.set()
    async with serving(keystore=slow if late else FixedStore(ValueError()), observer=Unable()) as served:
        assert not (await served.device().connect()).connected
        served.engine.use_keystore(DictKeyStore(KEYS))
        assert (await served.device().connect()).connected
        assert served.engine.statistics()["observer_failures"] == 1


async def test_a_store_may_change_the_list_that_it_has_given():
    keys = [b"another key of 16", KEY]

    class Meanwhile:
        """Something that happens between the answer and the end of the handshake."""

        def secret(self, event, identity):
            keys.clear()

        datagram_received = datagram_sent = began = identified = ended = lambda *_: None

    async with serving(keystore=FixedStore(keys)) as served:
        tap: Any = Meanwhile()
        served.engine.tap = tap
        served.engine.log_secrets(wanted=True)
        assert (await served.device().connect()).connected
        (association,) = served.observer.live
        assert (association.key_index, association.fingerprint) == (1, fingerprint(KEY))
        assert keys == []
