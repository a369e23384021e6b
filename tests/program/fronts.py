"""An engine in front of plain servers: a ``udp`` or ``unix`` sink with real devices before it and real sockets behind it."""

import contextlib
import socket

import trio
from trio.testing import wait_all_tasks_blocked

from endpoint.forward.devices import LiveDevices
from endpoint.forward.hearing import Hearing
from endpoint.forward.router import Route, Router
from endpoint.forward.udp import UdpUpstreams
from endpoint.observer import Observers, Quiet
from endpoint.tables.sinks import UdpTable
from sansdtls import ServerConfig
from tests.endpoint.devices import Recorder, Served, serving
from tests.program.sinks import PATIENCE, Told

SLEEPY = ServerConfig(freeze_after=300.0)
LONG = 301.0 + 240.0
"""Seconds of silence after which an association of SLEEPY is frozen: before, its last flight might be asked for."""


class PlainServer:
    """A UDP server without DTLS, driven step by step."""

    def __init__(self, host="127.0.0.1", port=0):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.raw = socket.socket(family, socket.SOCK_DGRAM)
        self.raw.bind((host, port))
        self._socket = trio.socket.from_stdlib_socket(self.raw)
        self.port = self._socket.getsockname()[1]
        self.upstream = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    async def next(self):
        """The next datagram and where it came from."""
        with trio.fail_after(PATIENCE * 100):
            return await self._socket.recvfrom(65_535)

    async def answer(self, data, address):
        await self._socket.sendto(data, address)
        await wait_all_tasks_blocked()

    def nothing_came(self):
        try:
            return self.raw.recv(65_535) is None
        except BlockingIOError:
            return True

    def close(self):
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Data(Quiet):
    """As ``Reporter``: empty datagrams go to nobody."""

    def __init__(self, router):
        self._router = router

    def received(self, association, data):
        if data:
            self._router.deliver(association, data)


class Front:
    """A running engine with one sink behind it."""

    def __init__(self, served, sink, recorder, router, told, devices):
        self.served = served
        self.sink = sink
        self.recorder = recorder
        self.router = router
        self.told = told
        self.devices = devices

    @property
    def figures(self):
        return self.router.statistics()["sinks"]["sink"]


@contextlib.asynccontextmanager
async def fronting(make, *, wake=False, **options):
    """``make(devices, told)`` makes the sink."""
    told, recorder = Told(), Recorder()
    found: list[Served] = []
    devices = LiveDevices(lambda: found[0].engine if found else None, wake=wake)
    sink = make(devices, told)
    router = Router([Route(name="sink", sink=sink, devices=devices)], tell=told)
    observer = Observers(recorder, Hearing(router), data=Data(router))
    try:
        async with serving(observer=observer, **options) as served:
            found.append(served)
            served.nursery.start_soon(router.run)
            await wait_all_tasks_blocked()
            yield Front(served, sink, recorder, router, told, devices)
    finally:
        router.close()


def in_front_of(upstream, *, config=None, limit=None, address="127.0.0.1", **keys):
    """A ``udp`` sink to ``upstream``."""
    table = UdpTable(upstream=upstream, **keys)
    return fronting(
        lambda devices, told: UdpUpstreams(table, devices=devices, tell=told, limit=limit),
        wake=table.wakes,
        config=config,
        address=address,
    )
