"""Associations that sleep as bytes: in one engine, and from one engine to the next."""

import contextlib
import socket

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from endpoint.association import CredentialKind
from endpoint.engine import Engine
from endpoint.keystore import DictKeyStore
from endpoint.quotas import IdentityOverflow, QuotaPolicy
from endpoint.sleepers import Sleepers
from endpoint.sockets import why_unreachable
from endpoint.udp import bind_udp
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
    SnapshotError,
)
from tests.endpoint.devices import IDENTITY, KEY, KEYS, Device, Recorder, serving
from tests.endpoint.test_verification import METER, client_config, own, raw, server_config

SLEEPY = ServerConfig(freeze_after=300.0)
LONG = 301.0 + 240.0
"""Seconds of silence after which an association of SLEEPY is frozen: before, its last flight might be asked for."""


def asleep(served):
    """Frozen associations, as core and engine know them."""
    sleepers = served.engine._sleepers
    known = sum(len(sleepers.of(identity)) for identity in sleepers._by_identity)
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
        await device.until(lambda: served.observer.moves)
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


# --- from one engine to the next ---


@contextlib.asynccontextmanager
async def bound(address="127.0.0.1"):
    sockets = await bind_udp(address, 0)
    try:
        yield sockets
    finally:
        for udp in sockets:
            udp.close()


def engine_on(sockets, *, config=SLEEPY, keystore=None, observer=None, quotas=None, **options):
    return Engine(
        config,
        sockets=sockets,
        keystore=keystore or DictKeyStore(KEYS),
        quotas=quotas or QuotaPolicy(),
        observer=observer or Recorder(echo=True),
        **options,
    )


@contextlib.asynccontextmanager
async def running(engine):
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        yield
        nursery.cancel_scope.cancel()


def observed(engine):
    return engine._observer


def roamer(sockets, number=1, **options):
    config = ClientConfig(
        psk_identity=b"meter-%d" % number, psk_key=KEY, connection_id=ConnectionIdPolicy(length=0)
    )
    return Device(sockets[0].port, config=config, **options)


async def test_live_and_frozen_associations_go_on_in_the_next_engine(autojump_clock):
    async with bound() as sockets:
        first = engine_on(sockets)
        with roamer(sockets, 1) as sleeper, roamer(sockets, 2) as awake:
            async with running(first):
                await sleeper.connect()
                await trio.sleep(LONG)
                await awake.connect()
                assert first.statistics()["frozen"] == first.statistics()["associations"] == 1
            blobs = list(first.freeze_all())
            assert len(blobs) == 2
            figures = first.statistics()
            assert figures["frozen"] == figures["associations"] == figures["identities"] == 0
            assert len(first._quotas) == len(first._quotas._handshakes)
            assert not observed(first).live[0].send(b"too late")
            second = engine_on(sockets)
            for blob in blobs:
                second.restore(blob)
            assert second.statistics()["frozen"] == 2
            assert [len(second._sleepers.of(b"meter-%d" % number)) for number in (1, 2)] == [1, 1]
            with pytest.raises(SnapshotError):
                second.restore(blobs[0])
            await sleeper.socket.send(b"junk while nobody listens")
            async with running(second):
                for device in (awake, sleeper):
                    await device.send(b"x")
                    assert await device.receive() == b"x"
                assert second.statistics()["frozen"] == 0
                assert sorted(found.identity for found in observed(second).live) == [b"meter-1", b"meter-2"]
                assert observed(second).ended == observed(first).ended == []


async def test_the_longest_asleep_is_known_in_the_next_engine_too(autojump_clock):
    # freeze_all gives the live ones first, the frozen ones after them.
    async with bound() as sockets:
        first = engine_on(sockets)
        with roamer(sockets) as sleeper, roamer(sockets) as awake, roamer(sockets) as newcomer:
            async with running(first):
                await sleeper.connect()
                await trio.sleep(LONG)
                await awake.connect()
            second = engine_on(sockets, quotas=QuotaPolicy(associations_per_identity=2))
            for blob in first.freeze_all():
                second.restore(blob)
            async with running(second):
                await newcomer.connect()
                await sleeper.until(lambda: sleeper.cause)
                await awake.send(b"x")
                assert await awake.receive() == b"x"
            assert [found.remote for found, _ in observed(second).ended] == [sleeper.path]


async def test_an_association_whose_time_is_over_in_the_next_engine_ends_there_on_time(autojump_clock):
    config = ServerConfig(limits=Limits(idle_timeout_with_connection_id=1000.0))
    async with bound() as sockets:
        first, second, third = (engine_on(sockets, config=config) for _ in range(3))
        with roamer(sockets) as device, roamer(sockets, 2) as other:
            async with running(first):
                await device.connect()
            (blob,) = first.freeze_all()
            second.restore(blob)
            async with running(second):
                await trio.sleep(990)
                assert observed(second).ended == []
                await trio.sleep(11)
                assert [cause for _, cause in observed(second).ended] == [IdleTimeout(1000.0)]
                await other.connect()
            (blob,) = second.freeze_all()
            async with running(third):  # restored while it runs, and nothing else happens
                third.restore(blob)
                await trio.sleep(1001)
                assert [cause for _, cause in observed(third).ended] == [IdleTimeout(1000.0)]


async def blob_from(address, host):
    """An association that was heard on a socket at ``address``."""
    async with bound(address) as sockets:
        engine = engine_on(sockets)
        with roamer(sockets, host=host) as device:
            async with running(engine):
                await device.connect()
                assert device.connected
            (blob,) = engine.freeze_all()
            return blob


@pytest.mark.parametrize(
    ("before", "host", "now", "reason"),
    [
        ("127.0.0.1", "127.0.0.1", "::1", "another kind"),
        ("::1", "::1", "127.0.0.1", "another kind"),
        ("0.0.0.0", "127.0.0.1", "127.0.0.1", "another kind"),  # noqa: S104 - loopback
        ("127.0.0.1", "127.0.0.1", "0.0.0.0", "another kind"),  # noqa: S104 - loopback
        ("::1", "::1", None, "another kind"),
        (None, "::1", "0.0.0.0", "another kind"),  # noqa: S104 - loopback
    ],
)
async def test_a_peer_that_no_socket_can_reach_is_refused_before_anything_is_kept(before, host, now, reason):
    blob = await blob_from(before, host)
    async with bound(now) as sockets:
        engine = engine_on(sockets)
        with pytest.raises(SnapshotError, match=reason):
            engine.restore(blob)
        assert engine.statistics()["frozen"] == len(engine._sleepers) == 0


async def test_a_peer_of_a_socket_that_is_not_there_any_more_is_refused(autojump_clock):
    async with bound() as one, bound() as two:
        engine = engine_on([*one, *two])
        with roamer(two) as device:
            async with running(engine):
                await device.connect()
            (blob,) = engine.freeze_all()
            fewer = engine_on(one)
            with pytest.raises(SnapshotError, match="socket number 1, and there are 1"):
                fewer.restore(blob)
            assert fewer.statistics()["frozen"] == 0
            again = engine_on([*one, *two])
            again.restore(blob)  # the refusal has not used it up, nor told anybody
            async with running(again):
                await device.send(b"x")
                assert await device.receive() == b"x"


@pytest.mark.parametrize(
    "path",
    [
        None,
        7,
        (),
        (0,),
        ("0", ("127.0.0.1", 5684)),
        (True, ("127.0.0.1", 5684)),
        (-1, ("127.0.0.1", 5684)),
        (0, "127.0.0.1"),
        (0, ()),
        (0, ("127.0.0.1",)),
        (0, ("127.0.0.1", "5684")),
        (0, ("127.0.0.1", 0)),
        (0, ("127.0.0.1", 65_536)),
        (0, ("127.0.0.1", True)),
        (0, ("gateway", 5684)),
        (0, (b"127.0.0.1", 5684)),
        (0, ("::1", 5684)),
        (0, ("127.0.0.1", 5684, 0, 0)),
        (0, ("127.0.0.1", 5684, ())),
    ],
)
async def test_what_is_no_path_of_an_endpoint_leads_nowhere(path):
    async with bound() as sockets:
        assert why_unreachable(path, sockets) is not None
        assert why_unreachable((0, ("127.0.0.1", 5684)), sockets) is None


PKTINFO = (socket.IPPROTO_IP, 8, bytes(12))
PKTINFO_6 = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, bytes(20))


@pytest.mark.parametrize(
    "source",
    [
        None,
        7,
        (7,),
        (PKTINFO, PKTINFO),
        (PKTINFO_6,),
        ((socket.IPPROTO_IP, 8, bytes(11)),),
        ((socket.IPPROTO_IP, 9, bytes(12)),),
        ((socket.IPPROTO_IP, 8, "x" * 12),),
        ((socket.IPPROTO_IP, 8),),
        ((socket.SOL_SOCKET, socket.SCM_RIGHTS, bytes(4)),),
    ],
)
async def test_what_a_saved_path_would_have_the_kernel_do_with_an_answer_is_looked_at(source):
    async with bound("0.0.0.0") as sockets:  # noqa: S104 - loopback
        assert why_unreachable((0, ("127.0.0.1", 5684, source)), sockets) is not None
        for possible in ((), (PKTINFO,)):
            assert why_unreachable((0, ("127.0.0.1", 5684, possible)), sockets) is None
    async with bound(None) as sockets:
        for possible in ((), (PKTINFO_6,)):
            assert why_unreachable((0, ("::ffff:127.0.0.1", 5684, 0, 0, possible)), sockets) is None
            assert why_unreachable((0, ("fe80::1%eth0", 5684, 0, 3, possible)), sockets) is None
            assert why_unreachable((0, ("::1", 5684, -1, 0, possible)), sockets) is not None


# --- the end ---


async def test_handshakes_that_have_just_begun_do_not_stand_in_the_way_of_the_others():
    # A ticket or certificate is asked about in a timer's events; without running tasks there is nobody to ask.
    async with bound() as sockets:
        engine = engine_on(sockets)
        with roamer(sockets) as device:
            async with running(engine):
                await device.connect()
                session = device.connection.session
            config = ClientConfig(psk_identity=b"meter-2", psk_key=KEY, session=session)
            with Device(sockets[0].port, config=config) as resuming:
                await resuming.start()
                engine._turn(0, sockets[0])
                await resuming.step()
                engine._turn(0, sockets[0])
                assert engine.statistics()["handshakes"] == 1
                blobs = list(engine.freeze_all())
            second = engine_on(sockets)
            (blob,) = blobs
            second.restore(blob)
            async with running(second):
                await device.send(b"x")
                assert await device.receive() == b"x"


async def test_what_was_to_be_sent_is_sent_before_all_is_frozen():
    async with bound() as sockets:
        engine = engine_on(sockets)
        with roamer(sockets) as device, roamer(sockets, 2) as closed:
            async with running(engine):
                await device.connect()
                await closed.connect()
            one, two = observed(engine).live
            one.connection.send(b"the last words", now=trio.current_time())
            two.connection.close(now=trio.current_time())
            (_,) = engine.freeze_all()
            assert await device.receive() == b"the last words"
            await closed.until(lambda: closed.cause)
            assert observed(engine).ended == [(two, LocalClose())]


async def test_what_could_not_be_taken_over_is_still_here():
    async with bound() as sockets:
        engine = engine_on(sockets)
        with roamer(sockets, 1) as one, roamer(sockets, 2) as two:
            async with running(engine):
                await one.connect()
                await two.connect()
                blobs = engine.freeze_all()
                next(blobs)
                blobs.close()
                (left,) = engine.associations()
                assert left.identity == b"meter-2"
                assert sum(engine._quotas._associations.values()) == 1
                assert await engine.drain(5.0) == 0
                await two.until(lambda: two.cause)
                assert one.cause is None


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
