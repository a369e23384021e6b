"""What many associations cost to keep, live and frozen, in a process that serves them.

The process runs the engine as ``dtls-endpoint serve`` does, on a socket that is a list: there is no kernel between
it and the clients, but all that the service keeps of an association is there, each with an address and an
identity of its own. The clients are in the same process, a burst of them at a time, and gone when memory is
measured. Time stands still.

Frozen ones are measured in a second process, which takes them over from the first as at a restart: the first has
just let go of ten times as much memory, and what an allocator returns of that is another question.
"""

from __future__ import annotations

import socket
from itertools import islice
from typing import TYPE_CHECKING

import trio
import trio.testing

import sansdtls
from benchmarks import control, ours
from benchmarks.endpoint_peer import QUOTAS, Echo
from benchmarks.load import HOST, PSK_KEY
from endpoint import Engine, UdpSocket

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from benchmarks.control import Pipe
    from endpoint.addresses import Address

BURST = 32
"""Clients at once."""
WARM_UP = 10
"""Bursts before the first look at memory: what is made once, is made then."""
SHIPMENT = 1_000
"""Blobs in one message between processes."""
FREEZE_AFTER = 300.0
"""Seconds; the service's default."""


class _ListSocket(UdpSocket):
    """A socket whose datagrams come from a list and go into one. It is bound, and nobody sends to it."""

    def __init__(self) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((HOST, 0))
        super().__init__(sock)
        self.sent: list[tuple[bytes, Address]] = []
        self._waiting: list[tuple[bytes, Address]] = []
        self._arrived = trio.Event()

    def deliver(self, datagrams: Iterable[tuple[bytes, Address]]) -> None:
        # As from recvfrom: nothing that comes with a datagram is an object that was there before.
        self._waiting += [(data, (address[0].encode().decode(), address[1])) for data, address in datagrams]
        self._arrived.set()

    async def wait_readable(self) -> None:
        await self._arrived.wait()
        self._arrived = trio.Event()

    def drain(self, limit: int) -> list[tuple[bytes, Address]]:
        drained, self._waiting = self._waiting[:limit], self._waiting[limit:]
        return drained

    def send(self, data: bytes, address: Address) -> bool:
        self.sent.append((data, address))
        return True


class _Keys:
    """The key store: all have the same key."""

    def lookup(self, identity: bytes) -> tuple[bytes, ...]:
        return (PSK_KEY,)


def _address(number: int) -> Address:
    return (f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 1024 + number % 60_000)


def _client(suite: sansdtls.CipherSuite, number: int) -> ours.SansIoClient:
    return ours.SansIoClient(
        sansdtls.ClientConfig(
            psk_identity=b"%08d" % number,
            psk_key=PSK_KEY,
            cipher_suites=(suite,),
            connection_id=sansdtls.ConnectionIdPolicy(length=0),  # uses the server's, needs none
        )
    )


class _Service:
    """The engine, and the clients' side of its socket."""

    def __init__(self, suite: sansdtls.CipherSuite) -> None:
        self._suite = suite
        self._socket = _ListSocket()
        self.engine = Engine(
            ours.server_config(suite, freeze_after=FREEZE_AFTER),
            sockets=[self._socket],
            keystore=_Keys(),
            quotas=QUOTAS,
            observer=Echo(),
        )

    async def connect(self, bursts: Iterable[int], words: bytes) -> None:
        """Complete the handshakes of those bursts. Each client then says ``words``, if any, and gets them back."""
        for burst in bursts:
            numbers = range(burst * BURST, (burst + 1) * BURST)
            clients = {_address(number): _client(self._suite, number) for number in numbers}
            datagrams = [(data, address) for address, client in clients.items() for data in client.start()]
            while datagrams:
                answers = await self._exchange(datagrams)
                datagrams = [
                    (data, address)
                    for answer, address in answers
                    for data in clients[address].receive(answer)
                ]
            if not all(client.established for client in clients.values()):
                raise RuntimeError("a handshake without a network did not complete")
            if words:
                echoes = await self._exchange(
                    (client.seal(words), address) for address, client in clients.items()
                )
                if len(echoes) != BURST:
                    raise RuntimeError(f"{len(echoes)} of {BURST} datagrams were echoed")

    async def _exchange(self, datagrams: Iterable[tuple[bytes, Address]]) -> list[tuple[bytes, Address]]:
        self._socket.deliver(datagrams)
        await trio.testing.wait_all_tasks_blocked()
        answers, self._socket.sent = self._socket.sent, []
        return answers


def serve_live(pipe: Pipe, suite: sansdtls.CipherSuite, associations: int, words: bytes) -> None:
    """The measured process with live associations: sends what one keeps, in bytes. Hands them over if told to.

    ``words`` is what each client says after its handshake. For those that say nothing the server keeps its last
    flight, to repeat it.
    """
    trio.run(_serve_live, pipe, suite, associations // BURST, words, clock=trio.testing.MockClock())


async def _serve_live(pipe: Pipe, suite: sansdtls.CipherSuite, bursts: int, words: bytes) -> None:
    service = _Service(suite)
    async with trio.open_nursery() as nursery:
        await nursery.start(service.engine.run)
        await service.connect(range(WARM_UP), words)
        before = control.resident_bytes()
        await service.connect(range(WARM_UP, WARM_UP + bursts), words)
        pipe.send((control.resident_bytes() - before) / bursts / BURST)
        if control.hear(pipe) == "hand over":
            for blobs in _batches(service.engine.freeze_all()):
                pipe.send(blobs)
            pipe.send([])
        nursery.cancel_scope.cancel()


def serve_frozen(pipe: Pipe, suite: sansdtls.CipherSuite) -> None:
    """The measured process with frozen associations: takes over lists of them, and sends what one keeps, in bytes."""
    trio.run(_serve_frozen, pipe, suite, clock=trio.testing.MockClock())


async def _serve_frozen(pipe: Pipe, suite: sansdtls.CipherSuite) -> None:
    service = _Service(suite)
    engine = service.engine
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        before = first = 0
        while blobs := control.hear(pipe):
            if blobs == "stop":
                return
            for blob in blobs:
                engine.restore(blob)
            if not before:  # what is made once, is made now
                before, first = control.resident_bytes(), len(blobs)
        pipe.send((control.resident_bytes() - before) / (engine.statistics()["server"]["frozen"] - first))
        control.hear(pipe)
        nursery.cancel_scope.cancel()


def _batches(blobs: Iterator[bytes]) -> Iterator[list[bytes]]:
    while batch := list(islice(blobs, SHIPMENT)):
        yield batch
