"""The engine when more comes than there is time for: real sockets and handshakes, and a timer that makes all work dear."""

import socket
import struct

import trio
from trio.testing import wait_all_tasks_blocked

from endpoint.engine import Engine
from endpoint.intake import SLICE
from endpoint.keystore import DictKeyStore
from endpoint.quotas import QuotaPolicy
from endpoint.udp import bind_udp
from sansdtls import ClientConfig, Connection, ServerConfig
from tests.endpoint.devices import IDENTITY, KEY, KEYS, Device, Recorder, serving

IN_PKTINFO = struct.Struct("=I4s4s")
BURST = 100
"""Datagrams that fit into every receive buffer."""


class DearTimer:
    """Each time that it is asked, another slice is over: one handshake datagram a turn is all there is time for."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 2 * SLICE
        return self.now


class Forger:
    """Sends hellos from any address of 127.0.0.0/8, all of which are this machine's."""

    def __init__(self, port):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("0.0.0.0", 0))  # noqa: S104 - the source is chosen for each datagram
        self.port = port
        config = ClientConfig(psk_identity=b"nobody", psk_key=bytes(16))
        client = Connection.client(config, entropy=bytes, now=0.0)
        ((self.hello, _),) = client.datagrams_to_send()
        self.sent = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def burst(self, count=BURST):
        for _ in range(count):
            address = b"\x7f\x40" + self.sent.to_bytes(2)
            source = [(socket.IPPROTO_IP, 8, IN_PKTINFO.pack(0, address, bytes(4)))]
            self.socket.sendmsg([self.hello], source, 0, ("127.0.0.1", self.port))
            self.sent += 1


async def test_nothing_waits_while_there_is_time():
    async with serving(timer=lambda: 0.0) as served:
        device = await served.device().connect()
        await device.send(b"x")
        assert await device.receive() == b"x"
        figures = served.engine.statistics()
        assert figures["intake"]["waited"] == {}
        assert set(figures["intake"]["waiting"].values()) == {0}
        assert figures["datagrams_dropped"] == {}


async def test_devices_connect_though_all_of_it_has_to_wait():
    async with serving(timer=DearTimer()) as served:
        with Forger(served.port) as forger:
            devices = [served.device(identity=b"meter-%d" % number) for number in range(1, 10)]
            async with trio.open_nursery() as nursery:
                for device in devices:
                    nursery.start_soon(device.connect)
                forger.burst()
        assert all(device.connected for device in devices)
        assert sorted(association.identity for association in served.observer.live) == sorted(KEYS)
        await wait_all_tasks_blocked()
        figures = served.engine.statistics()
        assert figures["intake"]["waited"]["handshake"] >= 1
        assert figures["server"]["cookies_sent"] == BURST + len(devices)
        assert figures["datagrams_dropped"] == {}


async def test_readings_pass_by_what_waits():
    async with serving(timer=DearTimer()) as served:
        device = await served.device().connect()
        with Forger(served.port) as forger:
            forger.burst()
            device.connection.send(b"21.5", now=trio.current_time())
            await device.flush()
            while not served.observer.data:
                await trio.lowlevel.checkpoint()
            # All has been read, and few of the hellos that came before have been answered.
            figures = served.engine.statistics()
            assert sum(figures["intake"]["waiting"].values()) >= 0.8 * BURST
            assert await device.receive() == b"21.5"


async def test_a_flood_is_dropped_counted_and_survived_by_a_hundred_honest_devices(autojump_clock):
    policy = QuotaPolicy(queued_datagrams=64, associations_per_identity=None, handshakes_per_second=None)
    async with serving(timer=DearTimer(), quotas=policy) as served:
        live = [await served.device().connect() for _ in range(50)]
        knocking = [served.device(identity=b"meter-2") for _ in range(50)]
        with Forger(served.port) as forger:
            async with trio.open_nursery() as nursery:
                for device in knocking:
                    nursery.start_soon(device.connect)
                for number, device in enumerate(live):
                    forger.burst(40)
                    device.connection.send(b"%d" % number, now=trio.current_time())
                    await device.flush()
                    await trio.sleep(0.1)
        assert served.observer.data == [b"%d" % number for number in range(50)]
        assert all(device.connected for device in knocking)
        await wait_all_tasks_blocked()
        figures = served.engine.statistics()
        assert figures["sockets"][0]["dropped_by_kernel"] == 0
        dropped, intake = figures["datagrams_dropped"], figures["intake"]
        assert set(dropped) <= {"waiting_hello", "waiting_hello_again", "waiting_hello_with_cookie"}
        assert dropped["waiting_hello"] > 0
        hellos = figures["server"]["cookies_sent"] - len(live)
        answered_or_not = hellos + dropped["waiting_hello"] + dropped.get("waiting_hello_again", 0)
        assert answered_or_not + intake["superseded"] >= forger.sent + len(knocking)
        assert set(intake["waiting"].values()) == {0}
        assert intake["waiting_bytes"] == 0


async def test_the_time_that_sending_takes_is_the_handshakes_too(monkeypatch):
    timer = DearTimer()
    async with serving(timer=timer) as served:
        bound = served.engine.sockets[0]
        send = type(bound).send

        def slow(self, data, address):
            timer.now += 1_000.0
            return send(self, data, address)

        monkeypatch.setattr(type(bound), "send", slow)
        with Forger(served.port) as forger:
            forger.burst(10)
            await wait_all_tasks_blocked()
        figures = served.engine.statistics()
        assert figures["server"]["cookies_sent"] == 10
        assert figures["intake"]["seconds_spent"] >= 1_000.0 * figures["intake"]["waited"]["hello"]


async def test_timers_run_while_there_is_never_time(autojump_clock):
    async with serving(timer=DearTimer()) as served:
        device = await served.device().knock()
        start, times = trio.current_time(), []
        with Forger(served.port) as forger:
            for _ in range(3):
                forger.burst()
                await device.socket.recv(2_000)
                times.append(round(trio.current_time() - start, 3))
        assert times == [1.0, 3.0, 7.0]  # the server's flight, again and again


async def test_what_waits_for_one_that_sleeps_is_delivered_before_all_are_saved(autojump_clock):
    (bound,) = await bind_udp("127.0.0.1", 0)
    observer = Recorder()
    with bound:
        engine = Engine(
            ServerConfig(freeze_after=300.0),
            sockets=[bound],
            keystore=DictKeyStore({IDENTITY: KEY}),
            quotas=QuotaPolicy(),
            observer=observer,
            timer=DearTimer(),
        )
        with Device(bound.port) as device:
            async with trio.open_nursery() as nursery:
                await nursery.start(engine.run)
                await device.connect()
                await trio.sleep(600)
                assert engine.statistics()["frozen"] == 1
                nursery.cancel_scope.cancel()
            await device.socket.send(b"junk, on which all the time of the turn is spent")
            await device.send(b"21.5")
            engine._turn(0, bound)  # the last one: nobody will call it again
            assert observer.data == []
            assert len(list(engine.freeze_all())) == 1
            assert observer.data == [b"21.5"]
