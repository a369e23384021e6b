"""Associations whose identity was removed, or whose key was taken away: kept, spread, or dropped."""

import contextlib
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from endpoint.credentials import Credentials
from endpoint.ending import BATCH, Ended, Ending, is_over
from endpoint.keystore import DictKeyStore, KeyDataError, StoreUnavailable
from endpoint.keystore.file import FileKeyStore, PskSet
from endpoint.keystore.fingerprint import fingerprint
from endpoint.observer import Observers
from endpoint.quotas import QuotaPolicy
from endpoint.sleepers import Sleepers
from endpoint.standing import Standing
from sansdtls import ConnectionIdPolicy, Limits, LocalClose, ServerConfig
from tests.endpoint.devices import Device, Recorder, serving
from tests.endpoint.test_engine_freezing import LONG, SLEEPY
from tests.endpoint.test_engine_succession import bound, engine_on, running
from tests.endpoint.test_verification import METER, client_config, own, server_config, verifier

OLD, NEW = (os.urandom(32) for _ in range(2))
A, B, C = b"meter-a", b"meter-b", b"meter-c"
FINDABLE = ConnectionIdPolicy(length=0)


class LateStore:
    """A store that answers in a while; ``down`` = it does not."""

    def __init__(self, keys):
        self.keys = keys
        self.down: Exception | None = None
        self.damaged: set[bytes] = set()

    async def lookup(self, identity):
        await trio.sleep(0.5)
        if self.down:
            raise self.down
        if identity in self.damaged:
            raise KeyDataError("the current key is not an even number of hex digits")
        return self.keys.get(identity, ())


class Vanishing(FileKeyStore):
    """Is reloaded, and empty then, right after it has answered."""

    def lookup(self, identity):
        keys = super().lookup(identity)
        self.replace(PskSet(keys={}, files=()))
        return keys


class Log:
    def __init__(self):
        self.lines = []

    def info(self, event, **facts):
        self.lines.append((event, facts))

    def facts(self, event):
        return [facts for name, facts in self.lines if name == event]


class Fleet:
    """An engine with a policy, and its key store."""

    def __init__(self, served, standing, recorder, store, log, troubles):
        self.served, self.standing, self.recorder = served, standing, recorder
        self.store, self.log, self.troubles = store, log, troubles

    async def device(self, identity, key=OLD):
        return await self.served.device(identity=identity, key=key, policy=FINDABLE).connect()

    async def reload(self, keys):
        """Have the service use these keys, as a reload does."""
        if isinstance(self.store, FileKeyStore):
            touched = self.store.replace(PskSet(keys=keys, files=())).touched
        else:
            self.store.keys, touched = keys, None
        self.standing.reloaded(touched)
        await trio.sleep(10)
        await wait_all_tasks_blocked()

    @property
    def live(self):
        return {association.identity for association in self.recorder.live}

    @property
    def asleep(self):
        return self.served.engine.statistics()["frozen"]


def policy(removed="keep", rotated="keep", spread=0.0):
    return Credentials(
        psk_file=Path("psk.txt"), when_removed=removed, when_rotated=rotated, rehandshake_spread=spread
    )


@contextlib.asynccontextmanager
async def fleet(keys, *, late=False, config=SLEEPY, **told):
    recorder, troubles = Recorder(), []
    log: Any = Log()
    store = LateStore(keys) if late else FileKeyStore(None, PskSet(keys=keys, files=()))
    standing = Standing(
        policy(**told), lambda: here.store, log=log, trouble=lambda what, **_: troubles.append(what)
    )
    observer = Observers(recorder, standing, data=recorder)
    async with serving(config=config, keystore=store, observer=observer) as served:
        standing.engine = served.engine
        served.nursery.start_soon(standing.run)
        here = Fleet(served, standing, recorder, store, log, troubles)
        yield here


ALL = {A: (OLD,), B: (OLD, NEW), C: (OLD,)}


# --- removed ----------------------------------------------------------------------------------------


async def test_by_default_live_associations_of_removed_identities_go_on(autojump_clock):
    async with fleet(ALL) as there:
        device = await there.device(A)
        await there.reload({B: (OLD, NEW)})
        await device.send(b"still here")
        assert there.recorder.data == [b"still here"]
        assert there.log.lines == []


@pytest.mark.parametrize("late", [False, True])
async def test_drop_ends_removed_identities_at_once_and_nobody_else(autojump_clock, late):
    async with fleet(ALL, removed="drop", late=late, config=ServerConfig()) as there:
        removed, kept = await there.device(A), await there.device(B)
        await there.reload({B: (OLD, NEW), C: (OLD,)})
        assert there.live == {B}
        await removed.until(lambda: removed.cause is not None)  # it is told
        await kept.send(b"still here")
        ((association, cause),) = there.recorder.ended
        assert (association.identity, cause) == (A, LocalClose())
        assert there.log.facts("associations_ended") == [
            {"live": 1, "frozen": 0, "removed": 1, "rotated": 0, "within": 0.0, "after": "reload"}
        ]


@pytest.mark.parametrize("late", [False, True])
async def test_drop_wakes_frozen_ones_of_removed_identities_to_end_them(autojump_clock, late):
    async with fleet(ALL, removed="drop", late=late) as there:
        sleeper, _ = await there.device(A), await there.device(B)
        await trio.sleep(LONG)
        assert there.asleep == 2
        await there.reload({B: (OLD, NEW)})
        assert there.asleep == 1
        await sleeper.until(lambda: sleeper.cause is not None)
        assert there.log.facts("associations_ended")[0]["frozen"] == 1


async def test_drop_ends_more_frozen_ones_than_may_be_live_and_takes_nobody_elses_place(autojump_clock):
    config = attrs.evolve(SLEEPY, limits=Limits(max_associations=3, stale_after=10.0))
    async with serving(config=config, quotas=QuotaPolicy(associations_per_identity=None)) as served:
        for _ in range(4):
            for _ in range(3):
                await served.roamer(identity=b"meter-1").connect()
            await trio.sleep(LONG)
        other = await served.roamer(identity=b"meter-2").connect()
        await trio.sleep(20)
        assert served.engine.end_associations(b"meter-1", None, Ending.DROP) == Ended(0, 12)
        await other.send(b"still here")
        assert served.observer.data == [b"still here"]
        assert served.engine.statistics()["frozen"] == 0


async def test_a_fleet_that_shares_an_identity_is_dropped_in_portions_so_that_others_are_served_meanwhile(
    autojump_clock,
):
    async with serving(config=SLEEPY, quotas=QuotaPolicy(associations_per_identity=None)) as served:
        for _ in range(BATCH):
            await served.roamer(identity=b"meter-1").connect()
        await trio.sleep(LONG)
        for _ in range(BATCH):
            await served.roamer(identity=b"meter-1").connect()
        there = served.engine.keyed_associations(b"meter-1")
        assert there == Ended(BATCH, BATCH)
        assert served.engine.end_associations(b"meter-1", None, Ending.DROP) == there
        assert sum(served.engine.keyed_associations(b"meter-1")) >= BATCH
        await wait_all_tasks_blocked()
        assert served.engine.keyed_associations(b"meter-1") == Ended(0, 0)
        assert len(served.observer.ended) == 2 * BATCH


async def test_rehandshake_is_spread_over_time(autojump_clock):
    many = {b"m%d" % number: (OLD,) for number in range(40)}
    async with fleet(many, removed="rehandshake", spread=1000.0, config=ServerConfig()) as there:
        for identity in many:
            await there.device(identity)
        await there.reload({b"m0": (OLD,)})
        counts = []
        for _ in range(10):
            counts.append(len(there.live))
            await trio.sleep(100)
        assert counts[0] >= 37  # ten seconds have passed
        assert all(before - after <= 20 for before, after in pairwise(counts))
        assert 4 <= counts[5] <= 36
        assert there.live == {b"m0"}
        assert len(there.log.facts("associations_ended")) == 1
        assert there.log.facts("associations_ended")[0]["live"] == 39


async def test_a_second_reload_does_not_end_the_same_ones_twice(autojump_clock):
    async with fleet(ALL, removed="rehandshake", spread=1000.0, config=ServerConfig()) as there:
        await there.device(A)
        await there.reload({B: (OLD,)})
        there.standing.reloaded([A])
        await trio.sleep(1)
        assert [facts["live"] for facts in there.log.facts("associations_ended")] == [1]
        await trio.sleep(1000)
        assert len(there.recorder.ended) == 1


@pytest.mark.parametrize("late", [False, True])
async def test_with_rehandshake_frozen_ones_are_ended_when_they_wake(autojump_clock, late):
    async with fleet(ALL, removed="rehandshake", late=late) as there:
        sleeper = await there.device(A)
        await trio.sleep(LONG)
        await there.reload({B: (OLD,)})
        assert there.asleep == 1
        await sleeper.send(b"good morning")
        await sleeper.until(lambda: sleeper.cause is not None)
        await wait_all_tasks_blocked()
        assert there.recorder.data == [b"good morning"]  # what woke it is still handed on
        assert len(there.recorder.ended) == 1
        assert there.log.facts("ended_at_waking") == [{"identity": "meter-a", "why": "removed"}]


# --- rotated ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True])
async def test_when_the_old_key_is_retired_those_made_with_the_new_one_stay(autojump_clock, late):
    async with fleet(ALL, rotated="drop", late=late) as there:
        await there.device(B, OLD)
        await trio.sleep(LONG)
        await there.device(B, NEW)
        await trio.sleep(LONG)
        assert there.asleep == 2
        await there.device(B, OLD)
        await there.device(B, NEW)
        await there.reload({**ALL, B: (NEW,)})
        assert [association.fingerprint for association in there.recorder.live] == [fingerprint(NEW)]
        assert there.asleep == 1  # and it was not woken for that
        assert there.served.engine.statistics()["server"]["thaws"] == 1
        facts = there.log.facts("associations_ended")[0]
        assert (facts["live"], facts["frozen"], facts["removed"], facts["rotated"]) == (1, 1, 0, 1)


async def test_each_policy_is_for_its_own_case(autojump_clock):
    async with fleet(ALL, removed="drop", rotated="keep", config=ServerConfig()) as there:
        await there.device(A)
        await there.device(C)
        await there.reload({A: (NEW,)})
        assert there.live == {A}
    async with fleet(ALL, removed="keep", rotated="drop", config=ServerConfig()) as there:
        await there.device(A)
        await there.device(C)
        await there.reload({A: (NEW,)})
        assert there.live == {C}


async def test_a_handshake_that_began_before_its_key_was_taken_away_does_not_last(autojump_clock):
    async with fleet(ALL, removed="drop", config=ServerConfig()) as there:
        there.store = Vanishing(None, there.store.loaded)
        there.served.engine.use_keystore(there.store)
        device = await there.served.device(identity=A, key=OLD).connect()
        await device.until(lambda: device.cause is not None)
        assert there.live == set()
        assert len(there.recorder.ended) == 1


async def test_a_store_that_cannot_answer_removes_nobody(autojump_clock):
    async with fleet(ALL, removed="drop", rotated="drop", late=True) as there:
        await there.device(A)
        there.store.down = ValueError("a mistake in it")
        await there.reload(ALL)
        assert there.live == {A}
        assert there.troubles == ["standing not known"]
        await trio.sleep(LONG)
        there.troubles.clear()
        there.store.down = None
        await there.reload(ALL)
        assert there.asleep == 1
        assert there.troubles == []


async def test_a_store_that_is_down_at_a_reload_is_asked_until_it_answers_and_told_once(autojump_clock):
    async with fleet(ALL, removed="drop", late=True, config=ServerConfig()) as there:
        await there.device(A)
        await there.device(B)
        there.store.down = StoreUnavailable("nobody is there")
        await there.reload({B: (OLD, NEW)})
        await trio.sleep(1000)
        assert there.live == {A, B}
        assert there.troubles == ["standing not known"]
        there.store.down = None
        await trio.sleep(60)
        assert there.live == {B}
        assert len(there.log.facts("associations_ended")) == 1


async def test_a_damaged_record_is_no_reason_to_let_removed_identities_stay(autojump_clock):
    async with fleet(ALL, removed="drop", late=True, config=ServerConfig()) as there:
        for identity in (A, B, C):
            await there.device(identity)
        there.store.damaged.add(A)
        await there.reload({A: (OLD,), B: (OLD, NEW)})
        assert there.live == {A, B}
        assert there.troubles == ["standing not known"]


@pytest.mark.parametrize("nonsense", [[1], ["a key"], 7, b"0123456789abcdef", {OLD: 1}, None])
async def test_a_store_that_answers_nonsense_ends_nobody_neither_device_nor_service(autojump_clock, nonsense):
    async with fleet(ALL, removed="drop", rotated="drop", late=True) as there:
        await there.device(A)
        sleeper = await there.device(B)
        await there.reload({A: nonsense, B: nonsense})
        assert there.live == {A, B}
        await trio.sleep(LONG)
        await sleeper.send(b"awake")
        await trio.sleep(10)
        assert there.live == {B}
        assert there.asleep == 1
        assert there.troubles == ["standing not known"]
        await there.reload({A: (OLD,), B: ()})
        assert there.live == set()


async def test_nonsense_that_comes_at_once_ends_nobody_who_wakes_either(autojump_clock):
    class Nonsense:
        def lookup(self, identity):
            return None

    async with fleet(ALL, removed="drop", rotated="drop") as there:
        sleeper = await there.device(A)
        await trio.sleep(LONG)
        there.store = Nonsense()
        await sleeper.send(b"awake")
        await trio.sleep(10)
        assert there.live == {A}
        assert there.troubles == ["standing not known"]


async def test_wakes_while_the_store_is_down_are_told_once_and_end_nobody(autojump_clock):
    async with fleet(ALL, removed="drop", late=True) as there:
        sleepers = [await there.device(identity) for identity in (A, B, C)]
        await trio.sleep(LONG)
        there.store.down = StoreUnavailable("nobody is there")
        for sleeper in sleepers:
            await sleeper.send(b"awake")
        await trio.sleep(10)
        assert there.live == {A, B, C}
        assert there.troubles == ["standing not known"]


def test_an_association_whose_key_is_not_known_stays_unless_all_are_to_go():
    digest = bytes(range(8))
    assert not is_over(b"", [digest.hex()])
    assert not is_over(digest, [digest.hex()])
    assert is_over(digest, ["another"])
    assert is_over(b"", None)


def test_sleepers_tell_those_with_keys_from_others():
    sleepers = Sleepers()
    for number in range(200):
        sleepers.add(b"keyed%d" % number, b"h", 1.0, bytes(8))
        sleepers.add(b"other%d" % number, b"h", 1.0)
        sleepers.add(b"both%d" % (number // 2), b"h%d" % number, 1.0, bytes(8) if number % 2 else b"")
    assert sleepers.keyed(b"keyed7") == [(b"h", bytes(8))]
    assert sleepers.keyed(b"other7") == []
    assert sleepers.keyed(b"both7") == [(b"h15", bytes(8))]
    keyed = list(sleepers.keyed_identities())
    assert len(keyed) == len(set(keyed)) == 300
    assert not any(name.startswith(b"other") for name in keyed)
    # Nobody is missed although others come meanwhile, and buckets are split.
    met, names = set(), sleepers.keyed_identities()
    for number, name in enumerate(names):
        met.add(name)
        if number < 500:
            sleepers.add(b"late%d" % number, b"h", 1.0, bytes(8))
    assert met >= set(keyed)


# --- others -----------------------------------------------------------------------------------------


async def test_devices_with_other_credentials_are_left_alone_whatever_their_names():
    recorder = Recorder()
    async with serving(
        config=server_config(), keystore=DictKeyStore(), observer=recorder, verify=verifier()
    ) as served:
        await served.device(config=client_config(own(METER))).connect()
        (association,) = recorder.live
        assert served.engine.end_associations(association.identity, None, Ending.DROP) == Ended(0, 0)
        assert served.engine.keyed_associations(association.identity) == Ended(0, 0)
        assert association.fingerprint is None
        await wait_all_tasks_blocked()
        assert recorder.live == [association]


async def test_what_is_known_of_an_identity_is_counted_live_and_frozen(autojump_clock):
    async with fleet({A: (OLD,)}) as there:
        await there.device(A)
        await trio.sleep(LONG)
        await there.device(A)
        await there.device(A)
        assert there.served.engine.keyed_associations(A) == Ended(2, 1)
        assert set(there.served.engine.keyed_identities()) == {A}
        assert there.served.engine.end_associations(A, None, Ending.DROP) == Ended(2, 1)
        await trio.sleep(1)
        assert there.served.engine.keyed_associations(A) == Ended(0, 0)


# --- the next process -------------------------------------------------------------------------------


async def handed_over(sockets, nursery_of):
    """The blobs of one live and one frozen association of A and of B, made with the old key."""
    engine = engine_on(sockets, keystore=DictKeyStore(ALL))
    async with running(engine):
        for identity in (A, B):
            await nursery_of(identity).connect()
        await trio.sleep(LONG)
        return list(engine.freeze_all())


@pytest.mark.parametrize(
    ("told", "left"),
    [
        ({}, 2),
        ({"removed": "rehandshake"}, 2),
        ({"removed": "drop"}, 1),
        ({"removed": "drop", "rotated": "drop"}, 0),
    ],
)
async def test_what_was_kept_asleep_while_its_key_was_taken_away_ends_after_the_restart(
    autojump_clock, told, left
):
    async with bound() as sockets, contextlib.AsyncExitStack() as stack:
        devices = {}

        def made(identity):
            devices[identity] = stack.enter_context(
                Device(sockets[0].port, identity=identity, key=OLD, policy=FINDABLE)
            )
            return devices[identity]

        blobs = await handed_over(sockets, made)
        assert len(blobs) == 2
        log: Any = Log()
        recorder = Recorder()
        store = FileKeyStore(None, PskSet(keys={B: (NEW,)}, files=()))
        standing = Standing(policy(**told), lambda: store, log=log, trouble=print)
        engine = engine_on(sockets, keystore=store, observer=Observers(recorder, standing, data=recorder))
        for blob in blobs:
            engine.restore(blob)
        standing.engine = engine
        standing.taken_over()
        async with running(engine), trio.open_nursery() as nursery:
            nursery.start_soon(standing.run)
            await trio.sleep(5)
            assert engine.statistics()["frozen"] == left
            assert len(recorder.ended) == 2 - left
            if told.get("removed") == "rehandshake":
                await devices[A].send(b"awake")
                await devices[A].until(lambda: devices[A].cause is not None)
            nursery.cancel_scope.cancel()
