"""An engine with a ``udp`` sink, before a plain server that sends everything back, in a process of its own.

What is measured is the engine's process: a datagram is decrypted, sent on, its answer is received, encrypted and sent.
Beside ``serve_engine``, which answers by itself, the difference is what forwarding costs: two more system calls, and
finding the way back.
"""

from __future__ import annotations

import select
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import trio

from benchmarks import control, ours
from benchmarks.endpoint_peer import QUOTAS
from benchmarks.load import HOST, PSK_IDENTITY, PSK_KEY
from endpoint import Association, DictKeyStore, Engine, bind_udp
from endpoint.forward.devices import LiveDevices
from endpoint.forward.hearing import Hearing
from endpoint.forward.router import Route, Router
from endpoint.forward.udp import UdpUpstreams
from endpoint.tables.sinks import UdpTable

if TYPE_CHECKING:
    from benchmarks.control import Pipe
    from sansdtls import CipherSuite


class Forwarding(Hearing):
    """The observer of such an engine."""

    def __init__(self, router: Router) -> None:
        super().__init__(router)
        self._router = router

    def received(self, association: Association, data: bytes) -> None:
        self._router.deliver(association, data)


def serve_udp(pipe: Pipe, suite: CipherSuite) -> None:
    """The measured process."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        plain.bind((HOST, 0))
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        upstream = f"{HOST}:{plain.getsockname()[1]}"
        command = [sys.executable, "-m", "benchmarks.forwarding", str(plain.fileno())]
        # Its standard input ends with this process, and it does then.
        child = subprocess.Popen(command, pass_fds=[plain.fileno()], stdin=subprocess.PIPE)
    try:
        trio.run(_serve, pipe, suite, upstream)
    finally:
        child.kill()
        child.wait()


async def _serve(pipe: Pipe, suite: CipherSuite, upstream: str) -> None:
    sockets = await bind_udp(HOST, 0)
    devices = LiveDevices(lambda: None)
    sink = UdpUpstreams(UdpTable(upstream=upstream), devices=devices, tell=print)
    router = Router([Route(name="udp", sink=sink, devices=devices)], tell=print)
    engine = Engine(
        ours.server_config(suite),
        sockets=sockets,
        keystore=DictKeyStore({PSK_IDENTITY: PSK_KEY}),
        quotas=QUOTAS,
        observer=Forwarding(router),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(router.run)
        await nursery.start(engine.run)
        pipe.send(sockets[0].port)
        await control.answer(pipe, engine.statistics)
        nursery.cancel_scope.cancel()
    router.close()


def echo(plain: socket.socket) -> None:
    """The plain server, until standard input ends."""
    waiting = select.poll()
    waiting.register(plain, select.POLLIN)
    waiting.register(sys.stdin, select.POLLIN)
    while not any(number == sys.stdin.fileno() for number, _ in waiting.poll()):
        data, address = plain.recvfrom(65_535)
        plain.sendto(data, address)


if __name__ == "__main__":
    echo(socket.socket(fileno=int(sys.argv[1])))
