"""The core alone, without sockets: what remains of a server's CPU when the service is taken away.

Runs in a process of its own. The clients' turns lie between the timed parts. Datagrams go in and
answers come out a window at a time, as the service does it.
"""

from __future__ import annotations

import gc
import os
import time
import tracemalloc
from typing import TYPE_CHECKING

import sansdtls
from benchmarks import control, ours
from benchmarks.harness import MICROSECONDS, PAYLOAD, Scale
from benchmarks.load import PSK_KEY

FREEZE_AFTER = 300.0
"""Seconds; the service's default."""

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from benchmarks.control import Pipe

    Packets = Sequence[tuple[bytes, Hashable]]


def serve(pipe: Pipe) -> None:
    """The measured process: ``(measurement, suite, scale)`` comes in, a number goes out."""
    measurements: dict[str, Callable[[sansdtls.CipherSuite, Scale], float]] = {
        "handshake": handshake,
        "resumed": resumed,
        "echo": echo,
        "echo_with_id": echo_with_id,
        "freeze": freeze,
        "thaw": thaw,
        "junk": junk,
        "pre_cookie": pre_cookie,
        "pre_cookie_memory": pre_cookie_memory,
    }
    while (question := control.hear(pipe)) != "stop":
        measurement, suite, scale = question
        pipe.send(measurements[measurement](suite, scale))


class _ServerUnderTest:
    """A ``Server`` with the little that a service adds, and the CPU it has used."""

    def __init__(self, suite: sansdtls.CipherSuite, freeze_after: float | None = None) -> None:
        config = ours.server_config(suite, freeze_after=freeze_after)
        self.server = sansdtls.Server(config, entropy=os.urandom, now=time.monotonic())
        self.cpu = 0.0
        self.skipped = 0.0
        """Seconds that have passed for the server alone."""

    def turn(self, packets: Packets) -> list[sansdtls.Outgoing]:
        """One window of datagrams in, the answers out."""
        now = time.monotonic() + self.skipped
        server = self.server
        before = time.process_time()
        for data, path in packets:
            self._heed(server.receive_datagram(data, path=path, now=now), now)
        due = server.next_timeout()
        if due is not None and due <= now:  # what an accepted client's ticket leads to waits there
            self._heed(server.handle_timeout(now=now), now)
        outgoing = server.datagrams_to_send()
        self.cpu += time.process_time() - before
        return outgoing

    def _heed(self, events: list[sansdtls.Event], now: float) -> None:
        for event in events:
            if isinstance(event, sansdtls.DataReceived):
                event.connection.send(event.data, now=now)
            elif isinstance(event, sansdtls.PskRequested):
                event.connection.provide_psk(event, [PSK_KEY], now=now)
            elif isinstance(event, sansdtls.ConnectionOffered):
                self.server.accept(event, now=now)


def _connect(
    under_test: _ServerUnderTest,
    suite: sansdtls.CipherSuite,
    paths: Iterable[Hashable],
    *,
    connection_id: bool = False,
) -> dict[Hashable, ours.SansIoClient]:
    """Complete a handshake for each path, all of them in step."""
    config = ours.client_config(suite, connection_id=connection_id)
    clients = {path: ours.SansIoClient(config) for path in paths}
    _complete(under_test, clients)
    return clients


def _complete(under_test: _ServerUnderTest, clients: dict[Hashable, ours.SansIoClient]) -> None:
    packets: Packets = [(data, path) for path, client in clients.items() for data in client.start()]
    while packets:
        answers = under_test.turn(packets)
        packets = [
            (data, answer.path) for answer in answers for data in clients[answer.path].receive(answer.data)
        ]
    if not all(client.established for client in clients.values()):
        raise RuntimeError("a handshake without a network did not complete")


def handshake(suite: sansdtls.CipherSuite, scale: Scale) -> float:
    """Microseconds for one full handshake, the cookie exchange included."""
    under_test = _ServerUnderTest(suite)
    for burst in range(scale.handshake_bursts):
        _connect(under_test, suite, [(burst, index) for index in range(scale.handshake_window)])
    return under_test.cpu / len(under_test.server) * MICROSECONDS


def resumed(suite: sansdtls.CipherSuite, scale: Scale) -> float:
    """Microseconds for one handshake that goes on from an earlier one, the cookie exchange included."""
    under_test = _ServerUnderTest(suite)
    first = _connect(under_test, suite, range(scale.handshake_window))
    under_test.cpu = 0.0
    for burst in range(scale.handshake_bursts):
        clients: dict[Hashable, ours.SansIoClient] = {
            (burst, path): client.resume() for path, client in first.items()
        }
        _complete(under_test, clients)
        if not all(client.resumed for client in clients.values()):
            raise RuntimeError("a handshake was a full one, not resumed")
    return under_test.cpu / (len(under_test.server) - len(first)) * MICROSECONDS


def echo(suite: sansdtls.CipherSuite, scale: Scale, *, connection_id: bool = False) -> float:
    """Microseconds for one 64-byte datagram received, answered and handed out."""
    under_test = _ServerUnderTest(suite)
    clients = _connect(under_test, suite, range(scale.window), connection_id=connection_id)
    bursts = [
        [(client.seal(PAYLOAD), path) for path, client in clients.items()] for _ in range(scale.echo_bursts)
    ]
    under_test.cpu = 0.0
    echoed = sum([len(under_test.turn(burst)) for burst in bursts])
    if echoed != scale.window * scale.echo_bursts:
        raise RuntimeError(f"{echoed} of {scale.window * scale.echo_bursts} datagrams were echoed")
    return under_test.cpu / echoed * MICROSECONDS


def echo_with_id(suite: sansdtls.CipherSuite, scale: Scale) -> float:
    """The same in records with a connection ID."""
    return echo(suite, scale, connection_id=True)


class _Sleepers:
    """A server whose associations have connection IDs, have been heard once, and are then silent until it freezes them."""

    def __init__(self, suite: sansdtls.CipherSuite, scale: Scale) -> None:
        self.under_test = _ServerUnderTest(suite, FREEZE_AFTER)
        self.clients: dict[Hashable, ours.SansIoClient] = {}
        for burst in range(scale.handshake_bursts):
            paths = [(0, (f"192.0.2.{burst}", 1024 + index)) for index in range(scale.handshake_window)]
            self.clients |= _connect(self.under_test, suite, paths, connection_id=True)
        self.say(PAYLOAD)
        self.under_test.cpu = 0.0
        for _ in range(2):  # the server looks once more at those that have sent something
            self.under_test.skipped += FREEZE_AFTER + 1
            self.under_test.turn([])  # does what is due

    def say(self, payload: bytes) -> int:
        """A datagram from each; how many were answered."""
        return len(
            self.under_test.turn([(client.seal(payload), path) for path, client in self.clients.items()])
        )

    def per_client(self, frozen: int) -> float:
        """Microseconds of CPU since the last time. Checks how many are frozen."""
        if self.under_test.server.frozen != frozen * len(self.clients):
            raise RuntimeError(
                f"{self.under_test.server.frozen} of {len(self.clients)} associations are frozen"
            )
        cpu, self.under_test.cpu = self.under_test.cpu, 0.0
        return cpu / len(self.clients) * MICROSECONDS


def freeze(suite: sansdtls.CipherSuite, scale: Scale) -> float:
    """Microseconds to freeze one association that is silent."""
    return _Sleepers(suite, scale).per_client(frozen=1)


def thaw(suite: sansdtls.CipherSuite, scale: Scale) -> float:
    """Microseconds to thaw one association, and receive and answer the datagram that woke it."""
    sleepers = _Sleepers(suite, scale)
    sleepers.per_client(frozen=1)
    if sleepers.say(PAYLOAD) != len(sleepers.clients):
        raise RuntimeError("not all associations woke")
    return sleepers.per_client(frozen=0)


def junk(suite: sansdtls.CipherSuite, scale: Scale) -> float:
    """Microseconds for a forged record with the connection ID of a frozen association, which stays as it is."""
    sleepers = _Sleepers(suite, scale)
    sleepers.per_client(frozen=1)
    genuine = [(client.seal(PAYLOAD), path) for path, client in sleepers.clients.items()]
    sleepers.under_test.turn([(data[:-1] + bytes([data[-1] ^ 1]), path) for data, path in genuine])
    return sleepers.per_client(frozen=1)


def _hellos(suite: sansdtls.CipherSuite, scale: Scale) -> list[list[tuple[bytes, Hashable]]]:
    (hello,) = ours.SansIoClient(ours.client_config(suite)).start()
    return [[(hello, (burst, index)) for index in range(scale.window)] for burst in range(scale.hello_bursts)]


def pre_cookie(suite: sansdtls.CipherSuite, scale: Scale) -> float:
    """Microseconds for one hello without a cookie, answered, each from a path of its own."""
    under_test = _ServerUnderTest(suite)
    answered = sum([len(under_test.turn(burst)) for burst in _hellos(suite, scale)])
    return under_test.cpu / answered * MICROSECONDS


def pre_cookie_memory(suite: sansdtls.CipherSuite, scale: Scale) -> float:
    """Bytes of Python memory kept for one answered hello without a cookie."""
    under_test = _ServerUnderTest(suite)
    first, *bursts = _hellos(suite, scale)
    under_test.turn(first)  # what is made once, is made now
    return _python_bytes(lambda: [under_test.turn(burst) for burst in bursts]) / sum(map(len, bursts))


def _python_bytes(work: Callable[[], object]) -> int:
    """Bytes of Python objects that ``work`` leaves behind."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        work()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return after - before
