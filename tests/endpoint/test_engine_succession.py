"""Associations that go on in the next engine on the same sockets, and those that cannot."""

import contextlib
import socket

import pytest
import trio

from endpoint.engine import Engine
from endpoint.keystore import DictKeyStore
from endpoint.quotas import QuotaPolicy
from endpoint.sockets import why_unreachable
from endpoint.udp import bind_udp
from sansdtls import (
    ClientConfig,
    ConnectionIdPolicy,
    IdleTimeout,
    Limits,
    LocalClose,
    MemoryStore,
    ServerConfig,
    SnapshotError,
)
from tests.endpoint.devices import IDENTITY, KEY, KEYS, Device, Recorder
from tests.endpoint.test_engine_freezing import LONG, SLEEPY
from tests.endpoint.test_lookups import SlowStore


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
            assert first._quotas.slots == first._quotas.statistics(now=0)["prefixes"] == 0
            assert len(first._sleepers) == 0
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


async def test_what_was_in_the_store_before_the_engine_ends_on_time_too(autojump_clock):
    config = ServerConfig(freeze_after=300.0, limits=Limits(idle_timeout_with_connection_id=1000.0))
    store = MemoryStore()
    async with bound() as sockets:
        first = engine_on(sockets, config=config, store=store)
        with roamer(sockets) as device:
            async with running(first):
                await device.connect()
                await trio.sleep(LONG)
            assert len(store) == 1
            second = engine_on(sockets, config=config, store=store)
            async with running(second):
                await trio.sleep(1000)
                assert [cause for _, cause in observed(second).ended] == [IdleTimeout(1000.0)]


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
        (False, ("127.0.0.1", 5684)),
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
            slow = SlowStore([KEY])
            engine.use_keystore(slow)
            config = ClientConfig(psk_identity=IDENTITY, psk_key=KEY, session=session)
            with Device(sockets[0].port, config=config) as resuming:
                await resuming.start()
                engine._turn(0, sockets[0])
                await resuming.step()
                engine._turn(0, sockets[0])
                assert engine.statistics()["handshakes"] == 1
                blobs = list(engine.freeze_all())
                assert not slow.asked.is_set()
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
                assert engine._quotas.slots == 1
                assert await engine.drain(5.0) == 0
                await two.until(lambda: two.cause)
                assert one.cause is None
