"""The turnstile, alone and where it stands: before late answers of the key store."""

import trio
from trio.testing import wait_all_tasks_blocked

from endpoint.engine import LATE_ANSWERS
from endpoint.quotas import QuotaPolicy
from endpoint.turnstile import Turnstile
from tests.endpoint.devices import KEY, Recorder, serving


async def test_so_many_pass_at_once_and_the_others_when_it_is_turned_in_order():
    called: list[None] = []
    turnstile = Turnstile(2, on_waiting=lambda: called.append(None))
    passed = []

    async def pass_through(number):
        await turnstile.pass_through()
        passed.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(pass_through, number)
            await wait_all_tasks_blocked()
        assert passed == [0, 1]
        assert len(turnstile) == len(called) == 3
        turnstile.turn()
        await wait_all_tasks_blocked()
        assert sorted(passed) == [0, 1, 2, 3]  # trio runs those that may run in any order
        turnstile.turn()
        await wait_all_tasks_blocked()
        assert passed[4:] == [4]
        await turnstile.pass_through()  # one place was left
        assert len(turnstile) == 0


async def test_nobody_overtakes_who_waits_and_who_gives_up_waits_no_more():
    turnstile = Turnstile(1, on_waiting=lambda: None)
    await turnstile.pass_through()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turnstile.pass_through)
        await wait_all_tasks_blocked()
        assert len(turnstile) == 1
        nursery.cancel_scope.cancel()
    assert len(turnstile) == 0
    turnstile.turn()
    await turnstile.pass_through()


class Slow:
    """A key store that answers everybody at the same moment."""

    def __init__(self):
        self.answers = trio.Event()

    async def lookup(self, identity):
        await self.answers.wait()
        return [KEY]


class InOrder(Recorder):
    def __init__(self):
        super().__init__()
        self.told = []

    def completed(self, association):
        super().completed(association)
        self.told.append("completed")

    def received(self, association, data):
        super().received(association, data)
        self.told.append("reading")


async def test_a_reading_comes_between_the_handshakes_that_a_slow_store_lets_go_on_all_at_once():
    store, observer = Slow(), InOrder()
    quotas = QuotaPolicy(associations_per_identity=None)
    async with serving(keystore=store, observer=observer, quotas=quotas) as served:
        async with trio.open_nursery() as nursery:
            store.answers.set()
            live = await served.device().connect()
            store.answers = trio.Event()
            waiting = [served.device() for _ in range(8 * LATE_ANSWERS)]
            for device in waiting:
                nursery.start_soon(device.connect)
            while served.gauges["lookups"] < len(waiting):
                await wait_all_tasks_blocked()
            observer.told.clear()
            store.answers.set()
            while not observer.told:
                await trio.lowlevel.checkpoint()
            live.connection.send(b"21.5", now=trio.current_time())
            await live.flush()
        assert all(device.connected for device in waiting)
        assert observer.told.count("completed") == len(waiting)
        # Two rounds of trio's until it is sent, and two until it is read.
        assert observer.told.index("reading") <= 4 * LATE_ANSWERS
