"""The engine with real devices: the life of associations, timers, the end."""

import errno
import socket

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from endpoint.engine import Engine
from endpoint.keystore import DictKeyStore
from endpoint.quotas import QuotaPolicy
from endpoint.udp import bind_udp
from sansdtls import (
    AuthenticationFailed,
    AuthenticationProblem,
    HandshakeTimeout,
    IdleTimeout,
    Limits,
    LocalClose,
    PeerClose,
    RetransmitPolicy,
    ServerConfig,
)
from tests.endpoint.devices import IDENTITY, KEY, Device, Recorder, serving


async def test_a_device_connects_sends_is_answered_and_leaves():
    async with serving() as served:
        device = await served.device().connect()
        assert device.connected
        (association,) = served.observer.live
        assert association.identity == IDENTITY
        assert association.key_index == 0
        assert association.remote == device.path
        assert association.local == f"127.0.0.1:{served.port}"
        assert repr(association) == f"<Association of b'meter-1' at {device.path}>"
        await device.send(b"21.4")
        assert await device.receive() == b"21.4"
        await device.close()
        assert served.observer.ended == [(association, PeerClose())]
        assert served.idle


async def test_the_key_that_matched_is_told():
    async with serving(keystore=DictKeyStore({IDENTITY: [b"old key", KEY]})) as served:
        device = await served.device().connect()
        assert device.connected
        assert served.observer.live[0].key_index == 1


async def test_many_devices_share_one_socket_without_a_task_for_each():
    async with serving() as served:
        tasks = trio.lowlevel.current_statistics().tasks_living
        devices = [served.device(identity=b"meter-%d" % number) for number in range(1, 10)]
        for device in devices:
            await device.connect()
        for device in devices:
            await device.send(device.config.psk_identity)
        for device in devices:
            assert await device.receive() == device.config.psk_identity
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        assert len(served.engine.associations()) == 9
        assert [found.identity for found in served.engine.associations(b"meter-3")] == [b"meter-3"]


async def test_answers_leave_through_the_socket_that_was_asked():
    (first,) = await bind_udp("127.0.0.1", 0)
    (second,) = await bind_udp("127.0.0.2", 0)
    observer = Recorder(echo=True)
    with first, second:
        engine = Engine(
            ServerConfig(),
            sockets=[first, second],
            keystore=DictKeyStore({IDENTITY: KEY}),
            quotas=QuotaPolicy(),
            observer=observer,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(engine.run)
            for bound in (second, first):
                with Device(bound.port, host=bound.address) as device:
                    await device.connect()
                    await device.send(b"x")
                    assert await device.receive() == b"x"
                assert observer.live[-1].local == bound.local_text
            nursery.cancel_scope.cancel()


async def test_a_wrong_key_and_an_unknown_identity_are_told_apart_to_the_observer(autojump_clock):
    async with serving() as served:
        wrong = await served.device(key=b"not the key").connect()
        unknown = await served.device(identity=b"stranger").connect()
        assert not wrong.connected
        assert not unknown.connected
        assert served.observer.failed == [
            (wrong.path, IDENTITY, AuthenticationFailed(AuthenticationProblem.WRONG_KEY, IDENTITY)),
            (
                unknown.path,
                b"stranger",
                AuthenticationFailed(AuthenticationProblem.UNKNOWN_IDENTITY, b"stranger"),
            ),
        ]
        assert served.observer.live == []
        assert served.idle


async def test_a_handshake_that_is_left_ends_at_its_deadline_exactly(autojump_clock):
    config = ServerConfig(retransmit=RetransmitPolicy(handshake_timeout=10.0))
    async with serving(config=config) as served:
        device = await served.device().knock()
        start = trio.current_time()
        assert served.gauges["half_open"] == served.gauges["handshakes"] == 1
        await trio.sleep(9.999)
        assert served.observer.failed == []
        await trio.sleep(0.002)
        ((path, identity, cause),) = served.observer.failed
        assert (path, identity) == (device.path, None)
        assert isinstance(cause, HandshakeTimeout)
        assert served.idle
        assert trio.current_time() - start < 10.01


async def test_flights_are_repeated_on_time_while_nothing_arrives(autojump_clock):
    async with serving() as served:
        device = await served.device().knock()
        start = trio.current_time()
        times = []
        for _ in range(3):
            await device.socket.recv(2000)
            times.append(round(trio.current_time() - start, 3))
        assert times == [1.0, 3.0, 7.0]


async def test_an_idle_association_is_closed_after_the_idle_timeout_counted_from_its_last_datagram(
    autojump_clock,
):
    config = ServerConfig(limits=Limits(idle_timeout=100.0))
    async with serving(config=config) as served:
        device = await served.device().connect()
        await trio.sleep(60)
        await device.send(b"x")
        await trio.sleep(99.9)
        assert served.observer.ended == []
        await trio.sleep(0.2)
        assert [cause for _, cause in served.observer.ended] == [IdleTimeout(100.0)]
        assert served.idle


async def test_data_do_not_re_arm_the_timer():
    # Assigning a live scope's deadline costs 3 to 5 µs, a quarter of the whole budget of a datagram.
    async with serving() as served:
        device = await served.device().connect()
        armed = served.engine._armed
        for _ in range(20):
            await device.send(b"x")
        assert served.engine._armed == armed


async def test_a_device_that_lost_its_state_replaces_its_association():
    async with serving(quotas=QuotaPolicy(associations_per_prefix=1)) as served:
        device = await served.device().connect()
        (old,) = served.observer.live
        await device.connect()
        assert device.connected
        (new,) = served.observer.live
        assert new is not old
        assert served.observer.ended == [(old, PeerClose(replaced=True))]
        await device.send(b"again")
        assert await device.receive() == b"again"
        assert served.gauges == {
            "handshakes": 0,
            "associations": 1,
            "identities": 1,
            "lookups": 0,
            "half_open": 0,
            "live": 1,
            "slots": 1,
            "paths": 1,
        }


async def test_half_a_new_handshake_leaves_the_old_association_alone():
    async with serving() as served:
        device = await served.device().connect()
        old = device.connection
        await device.knock()
        device.connection = old
        await device.send(b"still here")
        assert await device.receive() == b"still here"


# --- sending from elsewhere ---


async def test_what_is_sent_outside_the_receive_loop_leaves_at_once():
    async with serving(observer=Recorder()) as served:
        device = await served.device().connect()
        (association,) = served.observer.live
        assert association.send(b"command")
        assert await device.receive() == b"command"


async def test_sending_too_much_or_too_late_drops_and_counts():
    async with serving() as served:
        device = await served.device().connect()
        (association,) = served.observer.live
        assert not association.send(bytes(association.connection.max_payload + 1))
        await device.close()
        assert not association.send(b"late")
        assert association.dropped == 2


async def test_closing_an_association_tells_the_device_and_the_observer():
    async with serving() as served:
        device = await served.device().connect()
        (association,) = served.observer.live
        association.close()
        association.close()
        await device.until(lambda: device.cause)
        assert device.cause == PeerClose()
        await wait_all_tasks_blocked()
        assert served.observer.ended == [(association, LocalClose())]
        assert served.idle


async def test_send_errors_are_reported_once_per_errno_and_counted_per_peer(monkeypatch):
    async with serving(observer=Recorder()) as served:
        device = await served.device().connect()
        other = await served.device().connect()
        bound = served.engine.sockets[0]

        class Unreachable:
            def __getattr__(self, name):
                return getattr(real, name)

            def sendto(self, data, address):
                raise OSError(errno.ENETUNREACH, "Network is unreachable")

        real = bound._socket
        bound._socket = Unreachable()
        for association in served.observer.live:
            association.send(b"1")
            association.send(b"2")
        assert [association.send_errors for association in served.observer.live] == [2, 2]
        assert served.observer.troubles == [
            (
                "send failed",
                {"error": "ENETUNREACH", "reason": "Network is unreachable", "path": device.path},
            )
        ]
        bound._socket = real
        served.observer.live[1].send(b"3")
        assert await other.receive() == b"3"
        assert served.engine.statistics()["datagrams_dropped"] == {"send": 4}
        assert served.engine.statistics()["sockets"][0]["send_errors"] == {"ENETUNREACH": 4}


# --- observers that fail ---


class Failing(Recorder):
    def completed(self, association):
        super().completed(association)
        raise KeyError("completed")

    def received(self, association, data):
        super().received(association, data)
        raise KeyError("received")


async def test_an_observer_that_raises_is_reported_and_the_service_goes_on():
    async with serving(observer=Failing(echo=True)) as served:
        device = await served.device().connect()
        await device.send(b"1")
        await device.send(b"2")
        assert [await device.receive(), await device.receive()] == [b"1", b"2"]
        assert served.observer.troubles == [
            ("observer failed", {"method": "completed", "reason": "KeyError('completed')"}),
            ("observer failed", {"method": "received", "reason": "KeyError('received')"}),
            ("observer failed", {"method": "received", "reason": "KeyError('received')"}),
        ]
        assert served.engine.statistics()["observer_failures"] == 3


# --- fairness, noise, trouble with sockets ---


async def test_a_flood_leaves_turns_for_other_tasks():
    # Work takes no time, on however slow a machine: none of it waits for a slice of its own.
    async with serving(turn=4, timer=lambda: 0.0) as served:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
            for _ in range(100):  # without a checkpoint: all of it is there when the engine looks
                flood.sendto(b"junk", ("127.0.0.1", served.port))
        seen = []
        for _ in range(1000):
            await trio.lowlevel.checkpoint()
            seen.append(served.engine.statistics()["server"]["datagrams_received"])
            if seen[-1] == 100:
                break
        steps = [later - earlier for earlier, later in zip([0, *seen], seen, strict=False)]
        assert sum(steps) == 100
        # trio runs the tasks of one round in any order: at most two turns lie between two looks.
        assert max(steps) <= 8


async def test_junk_changes_counters_only():
    async with serving() as served:
        device = await served.device().connect()
        for junk in (b"", b"\x16", b"\x16\xfe\xfd" + bytes(50), bytes(1400), b"GET / HTTP/1.1"):
            await device.socket.send(junk)
        await device.send(b"x")
        assert await device.receive() == b"x"
        assert served.observer.troubles == []
        assert len(served.observer.live) == 1


async def test_a_kernel_short_of_memory_is_given_a_pause(autojump_clock, monkeypatch):
    async with serving() as served:
        bound = served.engine.sockets[0]

        class Short:
            def __getattr__(self, name):
                return getattr(real, name)

            def recvfrom(self, size):
                attempts.append(trio.current_time())
                if len(attempts) < 4:
                    raise OSError(errno.ENOBUFS, "No buffer space available")
                return real.recvfrom(size)

        attempts: list[float] = []
        real = bound._socket
        bound._socket = Short()
        device = await served.device().connect()
        assert device.connected
        assert [round(later - attempts[0], 3) for later in attempts[:4]] == [0.0, 0.1, 0.2, 0.3]


async def test_closing_the_socket_under_a_running_engine_ends_it_with_a_clear_error():
    (bound,) = await bind_udp("127.0.0.1", 0)
    engine = Engine(
        ServerConfig(), sockets=[bound], keystore=DictKeyStore(), quotas=QuotaPolicy(), observer=Recorder()
    )
    with pytest.RaisesGroup(trio.ClosedResourceError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await nursery.start(engine.run)
            bound.close()


async def test_an_engine_runs_once_at_a_time():
    async with serving() as served:
        with pytest.raises(trio.BusyResourceError):
            await served.engine.run()


async def test_an_engine_needs_a_socket_and_a_turn():
    with pytest.raises(ValueError, match="socket"):
        Engine(ServerConfig(), sockets=[], keystore=DictKeyStore(), quotas=QuotaPolicy(), observer=Recorder())
    (bound,) = await bind_udp("127.0.0.1", 0)
    with bound, pytest.raises(ValueError, match="turn"):
        Engine(
            ServerConfig(),
            sockets=[bound],
            keystore=DictKeyStore(),
            quotas=QuotaPolicy(),
            observer=Recorder(),
            turn=0,
        )


async def test_a_clock_of_ones_own_drives_all_timers(autojump_clock):
    # It runs a million seconds ahead of trio's, at the same pace.
    config = ServerConfig(retransmit=RetransmitPolicy(handshake_timeout=10.0))
    async with serving(config=config, clock=lambda: trio.current_time() + 1e6) as served:
        await served.device().knock()
        await trio.sleep(9.99)
        assert not served.idle
        await trio.sleep(0.02)
        assert served.idle


# --- drain ---


async def test_draining_closes_everything_accepts_nothing_and_ends_in_time():
    async with serving() as served:
        devices = [await served.device(identity=b"meter-%d" % number).connect() for number in range(1, 6)]
        half = await served.device(identity=b"meter-7").knock()
        assert await served.engine.drain(5.0) == 0
        assert served.idle
        assert sorted(found.identity for found, _ in served.observer.ended) == [
            b"meter-%d" % number for number in range(1, 6)
        ]
        assert {cause for _, cause in served.observer.ended} == {LocalClose()}
        assert served.observer.failed == []
        for device in devices:
            await device.until(lambda device=device: device.cause)
            assert device.cause == PeerClose()
        assert half.cause is None
        late = served.device(identity=b"meter-8")
        await late.start()
        await late.step()
        await wait_all_tasks_blocked()
        assert served.idle
        assert served.observer.refusals == []


async def test_draining_gives_up_when_its_time_is_over(autojump_clock, monkeypatch):
    async with serving() as served:
        await served.device().connect()
        await served.device().connect()

        async def never(_):
            await trio.sleep_forever()

        monkeypatch.setattr(type(served.engine.sockets[0]), "wait_writable", never)
        monkeypatch.setattr("endpoint.engine.DRAIN_BATCH", 1)
        start = trio.current_time()
        assert await served.engine.drain(3.0) == 1
        assert trio.current_time() - start == pytest.approx(3.0)


# --- figures ---


async def test_statistics_are_plain_values():
    async with serving() as served:
        device = await served.device().connect()
        await device.socket.send(b"junk")
        await wait_all_tasks_blocked()
        figures = served.engine.statistics()
        assert figures["server"]["handshakes_completed"] == 1
        assert figures["server"]["records_discarded"] == {"bad_record_header": 1}
        assert figures["sockets"][0]["local"] == f"127.0.0.1:{served.port}"
        assert figures["sockets"][0]["receive_buffer"] > 0
        assert not attrs.has(type(figures["server"]))
