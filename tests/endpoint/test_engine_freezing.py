"""Associations that sleep as bytes within one engine: who is told, who counts, who goes first."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from endpoint.association import CredentialKind
from endpoint.quotas import IdentityOverflow, QuotaPolicy
from endpoint.sleepers import Sleepers
from endpoint.verification import reject_all
from sansdtls import (
    ClientConfig,
    ConnectionIdPolicy,
    ConnectionState,
    IdleTimeout,
    Limits,
    LocalClose,
    MemoryStore,
    PathProof,
    PeerClose,
    ResumptionPolicy,
    ServerConfig,
)
from tests.endpoint.devices import IDENTITY, KEY, Recorder, serving
from tests.endpoint.test_verification import METER, client_config, own, raw, server_config

SLEEPY = ServerConfig(freeze_after=300.0)
LONG = 301.0 + 240.0
"""Seconds of silence after which an association of SLEEPY is frozen: before, its last flight might be asked for."""


def asleep(served):
    """Frozen associations, as core and engine know them."""
    sleepers = served.engine._sleepers
    known = sleepers.handles
    assert known == served.engine.statistics()["frozen"]
    return known


# --- falling asleep and waking up ---


async def test_a_silent_association_freezes_and_its_next_datagram_is_delivered(autojump_clock):
    async with serving(config=SLEEPY) as served:
        device = await served.roamer().connect()
        (before,) = served.observer.live
        await trio.sleep(LONG)
        assert served.observer.asleep == [before]
        assert served.observer.live == []
        assert served.idle  # no slot of the prefix is held
        assert asleep(served) == 1
        assert served.engine.associations() == []
        await device.send(b"good morning")
        (after,) = served.observer.live
        assert after is not before
        assert (after.identity, after.kind, after.key_index) == (IDENTITY, before.kind, 0)
        assert after.remote == before.remote == device.path
        assert served.observer.data == [b"good morning"]
        assert await device.receive() == b"good morning"
        assert asleep(served) == 0
        assert served.gauges["slots"] == served.gauges["associations"] == served.gauges["identities"] == 1
        statistics = served.engine.statistics()["server"]
        assert (statistics["freezes"], statistics["thaws"], statistics["frozen"]) == (1, 1, 0)
        assert served.observer.ended == []
        await device.close()
        assert served.idle


async def test_nothing_can_be_sent_through_the_object_of_an_association_that_sleeps(autojump_clock):
    async with serving(config=SLEEPY, observer=Recorder()) as served:
        device = await served.roamer().connect()
        (association,) = served.observer.live
        await trio.sleep(LONG)
        assert association.connection.state is ConnectionState.FROZEN
        assert not association.send(b"command")
        assert not association.send(b"command")
        assert association.dropped == 2
        association.close()  # does nothing: the association is not its any more
        await wait_all_tasks_blocked()
        assert served.observer.ended == []
        await device.send(b"x")
        assert served.observer.live[0].send(b"command")
        assert await device.receive() == b"command"


async def test_a_device_without_connection_id_is_found_by_its_path(autojump_clock):
    async with serving(config=SLEEPY) as served:
        device = await served.device().connect()
        await trio.sleep(LONG)
        assert asleep(served) == 1
        await device.send(b"x")
        assert await device.receive() == b"x"
        assert asleep(served) == 0


async def test_a_device_that_wakes_up_elsewhere_is_back_and_has_moved(autojump_clock):
    async with serving(config=SLEEPY) as served:
        device = await served.roamer().connect()
        before = device.path
        await trio.sleep(LONG)
        await device.move()
        await device.send(b"x")
        assert await device.receive() == b"x"
        (association,) = served.observer.live
        assert association.remote == device.path
        assert served.observer.moves == [(before, device.path, PathProof.NEWER_RECORD)]
        assert served.gauges["paths"] == served.gauges["slots"] == 1


async def test_a_device_that_wakes_up_elsewhere_proves_it_first_where_it_can(autojump_clock):
    async with serving(config=SLEEPY) as served:
        device = await served.roamer(policy=ConnectionIdPolicy(length=0)).connect()
        before = device.path
        await trio.sleep(LONG)
        await device.move()
        await device.send(b"x")
        assert served.observer.live[0].remote == before
        await device.until_told(lambda: served.observer.moves)
        assert served.observer.moves == [(before, device.path, PathProof.RETURN_ROUTABILITY)]


async def test_one_that_is_never_heard_again_ends_at_its_time(autojump_clock):
    config = ServerConfig(freeze_after=300.0, limits=Limits(idle_timeout_with_connection_id=10_000.0))
    async with serving(config=config) as served:
        device = await served.roamer().connect()
        start = trio.current_time()
        await trio.sleep(9_999)
        assert served.observer.ended == []
        assert asleep(served) == 1
        await trio.sleep(1.1)
        ((association, cause),) = served.observer.ended
        assert cause == IdleTimeout(10_000.0)
        assert association.identity == IDENTITY
        assert asleep(served) == 0
        assert served.idle
        await device.until(lambda: device.cause)
        assert device.cause == PeerClose()
        assert trio.current_time() - start == pytest.approx(10_000, abs=1.2)


async def test_a_restarted_device_replaces_its_frozen_association(autojump_clock):
    async with serving(config=SLEEPY, quotas=QuotaPolicy(associations_per_prefix=1)) as served:
        device = await served.roamer().connect()
        await trio.sleep(LONG)
        await device.connect()
        assert device.connected
        assert [cause for _, cause in served.observer.ended] == [PeerClose(replaced=True)]
        assert asleep(served) == 0
        assert served.gauges["slots"] == served.gauges["associations"] == 1


# --- identities ---


async def frozen_devices(served, count):
    devices = []
    for _ in range(count):
        devices.append(await served.roamer().connect())
        await trio.sleep(1)
    await trio.sleep(LONG)
    assert asleep(served) == count
    return devices


async def test_frozen_associations_count_for_their_identity_and_the_longest_asleep_goes(autojump_clock):
    async with serving(config=SLEEPY, quotas=QuotaPolicy(associations_per_identity=2)) as served:
        first, second = await frozen_devices(served, 2)
        await first.send(b"awake for a moment")
        await trio.sleep(2 * LONG)  # it was answered, so it is looked at twice
        assert asleep(served) == 2
        third = await served.roamer().connect()
        assert third.connected
        await second.until(lambda: second.cause)
        assert second.cause == PeerClose()
        await wait_all_tasks_blocked()
        assert [(found.remote, cause) for found, cause in served.observer.ended] == [
            (second.path, LocalClose())
        ]
        assert served.engine.statistics()["refused"] == {"associations_per_identity": 1}
        assert served.gauges["slots"] == served.gauges["associations"] == 1
        assert asleep(served) == 1
        await first.send(b"x")
        assert served.observer.data[-1] == b"x"


async def test_it_is_told_whose_sleep_was_ended_for_a_newcomer(autojump_clock):
    async with serving(config=SLEEPY, quotas=QuotaPolicy(associations_per_identity=1)) as served:
        (first,) = await frozen_devices(served, 1)
        await served.roamer().connect()
        assert served.observer.refusals == [(first.path, "associations_per_identity")]


async def test_two_newcomers_at_once_end_the_sleep_of_two(autojump_clock):
    async with serving(config=SLEEPY, quotas=QuotaPolicy(associations_per_identity=2)) as served:
        old = await frozen_devices(served, 2)
        new = [served.roamer() for _ in range(2)]
        async with trio.open_nursery() as nursery:
            for device in new:
                nursery.start_soon(device.connect)
        await wait_all_tasks_blocked()
        assert {found.remote for found in served.observer.live} == {device.path for device in new}
        assert {found.remote for found, _ in served.observer.ended} == {device.path for device in old}
        assert served.gauges["slots"] == 2
        assert asleep(served) == 0


async def test_three_newcomers_in_one_turn_leave_as_many_as_there_may_be(autojump_clock):
    # The end of the one that slept is still to be told when the last of them comes; it must not be chosen again.
    async with serving(config=SLEEPY, quotas=QuotaPolicy(associations_per_identity=1)) as served:
        await frozen_devices(served, 1)
        new = [await served.roamer().knock() for _ in range(3)]
        for device in new:
            for outgoing in device.connection.datagrams_to_send():
                device.socket._sock.send(outgoing.data)  # the engine has no turn between them
        await wait_all_tasks_blocked()
        assert len(served.observer.live) == 1
        assert served.gauges["slots"] == 1
        assert asleep(served) == 0


async def test_the_one_to_go_was_heard_longest_ago_even_if_it_was_spoken_to_and_froze_later(autojump_clock):
    async with serving(
        config=SLEEPY, quotas=QuotaPolicy(associations_per_identity=2), observer=Recorder()
    ) as served:
        first = await served.roamer().connect()
        (association,) = served.observer.live
        await trio.sleep(100)
        await served.roamer().connect()
        await trio.sleep(150)
        assert association.send(b"still there?")
        await trio.sleep(2 * LONG)
        assert [found.remote for found in served.observer.asleep][1] == first.path
        await served.roamer().connect()
        assert [found.remote for found, _ in served.observer.ended] == [first.path]


async def test_one_that_is_being_ended_is_not_counted_until_its_end_is_told(autojump_clock):
    # Its thaw is told with the next record, its end with the next timer; a newcomer may come between.
    async with serving(config=SLEEPY, quotas=QuotaPolicy(associations_per_identity=2)) as served:
        await frozen_devices(served, 2)
        store = served.engine._server._freezer.store
        woken = served.engine._server.wake(next(iter(store.handles())), now=trio.current_time())
        woken.close(now=trio.current_time())
        newcomer = await served.roamer().connect()
        assert newcomer.connected
        assert served.observer.refusals == []
        assert len(served.observer.ended) == 1


async def test_where_the_newcomer_is_refused_frozen_associations_count_as_well(autojump_clock):
    quotas = QuotaPolicy(associations_per_identity=1, identity_overflow=IdentityOverflow.NEWCOMER)
    async with serving(config=SLEEPY, quotas=quotas) as served:
        (first,) = await frozen_devices(served, 1)
        second = await served.roamer().connect()
        await second.until(lambda: second.cause)
        assert second.cause == PeerClose()
        assert served.observer.refusals == [(second.path, "associations_per_identity")]
        assert asleep(served) == 1
        await first.send(b"x")
        assert await first.receive() == b"x"


async def test_one_that_the_store_has_lost_keeps_nobody_out(autojump_clock):
    quotas = QuotaPolicy(associations_per_identity=1, identity_overflow=IdentityOverflow.NEWCOMER)
    store = MemoryStore()
    async with serving(config=SLEEPY, quotas=quotas, store=store) as served:
        await frozen_devices(served, 1)
        store.take(next(iter(store.handles())))
        assert (await served.roamer().connect()).connected
        assert served.observer.refusals == []
        assert len(served.engine._sleepers) == 0


def test_of_an_identity_the_one_silent_longest_comes_first_whatever_the_order_of_their_coming():
    sleepers = Sleepers()
    for handle, heard in ((b"c2", 20.0), (b"c3", 30.0), (b"c1", 10.0)):
        sleepers.add(b"meter", handle, heard)
    assert sleepers.of(b"meter") == [b"c1", b"c2", b"c3"]
    for handle in (b"c1", b"no such", b"c3"):
        sleepers.remove(b"meter", handle)
    assert sleepers.of(b"meter") == [b"c2"]
    sleepers.remove(b"meter", b"c2")
    assert sleepers.of(b"meter") == []
    sleepers.add(b"meter", b"c4", 1.0)
    sleepers.remove(b"meter", b"other")
    sleepers.remove(b"nobody", b"c4")
    assert sleepers.of(b"meter") == [b"c4"]
    sleepers.remove(b"meter", b"c4")
    assert len(sleepers) == 0


# --- data that come with the last flight of one who may not stay ---


async def test_data_of_a_newcomer_that_is_not_let_in_disturb_nobody():
    # In a resumed handshake the client's Finished is the last message, and its first data may overtake it.
    quotas = QuotaPolicy(associations_per_identity=1, identity_overflow=IdentityOverflow.NEWCOMER)
    config = ServerConfig(resumption=ResumptionPolicy())
    async with serving(config=config, quotas=quotas) as served:
        first = await served.device().connect()
        session = first.connection.session
        newcomer = served.device(config=ClientConfig(psk_identity=IDENTITY, psk_key=KEY, session=session))
        await newcomer.start()
        await newcomer.step()
        while not newcomer.connected:
            await newcomer.step(answer=False)
        finished = [outgoing.data for outgoing in newcomer.connection.datagrams_to_send()]
        newcomer.connection.send(b"early", now=trio.current_time())
        await newcomer.flush()
        for datagram in finished:
            await newcomer.socket.send(datagram)
        await newcomer.until(lambda: newcomer.cause)
        assert served.observer.refusals == [(newcomer.path, "associations_per_identity")]
        assert b"early" not in served.observer.data
        await first.send(b"x")
        assert await first.receive() == b"x"


# --- certificates ---


NAME = b"device 17, as verified".ljust(1024, b".")
"""The longest name that a verifier may give."""


@pytest.mark.parametrize(
    ("credential", "kind"), [(own, CredentialKind.CERTIFICATE), (raw, CredentialKind.RAW_PUBLIC_KEY)]
)
async def test_who_a_device_is_survives_its_sleep_and_it_is_not_verified_again(
    autojump_clock, credential, kind
):
    asked = []

    def verify(request):
        asked.append(request)
        return NAME

    config = server_config(freeze_after=300.0)
    client = client_config(credential(METER), connection_id=ConnectionIdPolicy(length=0))
    async with serving(config=config, verify=verify) as served:
        device = await served.device(config=client).connect()
        assert served.observer.live[0].identity == NAME
        await trio.sleep(LONG)
        served.engine.use_config(config, reject_all)
        await device.send(b"x")
        (association,) = served.observer.live
        assert association.identity == NAME
        assert association.kind is kind
        assert await device.receive() == b"x"
        assert len(asked) == 1
        assert asleep(served) == 0
        stranger = await served.device(config=client).connect()
        assert not stranger.connected


# --- the end ---


async def test_draining_for_good_wakes_the_frozen_ones_and_tells_them_too(autojump_clock, monkeypatch):
    monkeypatch.setattr("endpoint.engine.DRAIN_BATCH", 2)
    async with serving(config=SLEEPY) as served:
        sleepers = await frozen_devices(served, 4)
        live = await served.roamer(identity=b"meter-4").connect()
        assert await served.engine.drain(5.0, frozen=True) == 0
        for device in (live, *sleepers):
            await device.until(lambda device=device: device.cause)
            assert device.cause == PeerClose()
        assert asleep(served) == 0
        assert served.idle


async def test_frozen_ones_that_could_not_be_told_in_time_are_counted(autojump_clock, monkeypatch):
    monkeypatch.setattr("endpoint.engine.DRAIN_BATCH", 1)
    async with serving(config=SLEEPY) as served:
        await frozen_devices(served, 2)
        assert await served.engine.drain(0.0, frozen=True) == 1


async def test_draining_leaves_the_frozen_ones_and_closes_one_that_wakes_meanwhile(
    autojump_clock, monkeypatch
):
    monkeypatch.setattr("endpoint.engine.DRAIN_BATCH", 1)
    async with serving(config=SLEEPY) as served:
        sleeper, waker = await frozen_devices(served, 2)
        live = [await served.roamer(identity=b"meter-%d" % number).connect() for number in (3, 4)]
        waker.connection.send(b"x", now=trio.current_time())
        await waker.flush()
        assert await served.engine.drain(5.0) == 0
        for device in (*live, waker):
            await device.until(lambda device=device: device.cause)
            assert device.cause == PeerClose()
        assert sleeper.cause is None
        assert asleep(served) == 1
        assert served.idle
