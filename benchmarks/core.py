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
        "pre_cookie": pre_cookie,
        "pre_cookie_memory": pre_cookie_memory,
        "memory": memory,
        "python_memory": python_memory,
    }
    while (question := control.hear(pipe)) != "stop":
        measurement, suite, scale = question
        pipe.send(measurements[measurement](suite, scale))


class _ServerUnderTest:
    """A ``Server`` with the little that a service adds, and the CPU it has used."""

    def __init__(self, suite: sansdtls.CipherSuite) -> None:
        config = ours.server_config(suite)
        self.server = sansdtls.Server(config, entropy=os.urandom, now=time.monotonic())
        self.cpu = 0.0

    def turn(self, packets: Packets) -> list[sansdtls.Outgoing]:
        """One window of datagrams in, the answers out."""
        now = time.monotonic()
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
    under_test: _ServerUnderTest, suite: sansdtls.CipherSuite, paths: Iterable[Hashable]
) -> dict[Hashable, ours.SansIoClient]:
    """Complete a handshake for each path, all of them in step."""
    config = ours.client_config(suite)
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


def echo(suite: sansdtls.CipherSuite, scale: Scale) -> float:
    """Microseconds for one 64-byte datagram received, answered and handed out."""
    under_test = _ServerUnderTest(suite)
    clients = _connect(under_test, suite, range(scale.window))
    bursts = [
        [(client.seal(PAYLOAD), path) for path, client in clients.items()] for _ in range(scale.echo_bursts)
    ]
    under_test.cpu = 0.0
    echoed = sum([len(under_test.turn(burst)) for burst in bursts])
    if echoed != scale.window * scale.echo_bursts:
        raise RuntimeError(f"{echoed} of {scale.window * scale.echo_bursts} datagrams were echoed")
    return under_test.cpu / echoed * MICROSECONDS


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


def _fill(under_test: _ServerUnderTest, suite: sansdtls.CipherSuite, scale: Scale) -> None:
    for burst in range(scale.associations // scale.handshake_window):
        _connect(under_test, suite, [(burst, index) for index in range(scale.handshake_window)])


def memory(suite: sansdtls.CipherSuite, scale: Scale) -> float:
    """KiB of RAM for one live association: Python's objects and OpenSSL's behind them."""
    under_test = _ServerUnderTest(suite)
    _connect(under_test, suite, [("first", index) for index in range(scale.handshake_window)])
    before = control.resident_bytes()
    done = len(under_test.server)
    _fill(under_test, suite, scale)
    return (control.resident_bytes() - before) / (len(under_test.server) - done) / 1024


def python_memory(suite: sansdtls.CipherSuite, scale: Scale) -> float:
    """KiB of Python objects for one live association."""
    under_test = _ServerUnderTest(suite)
    size = _python_bytes(lambda: _fill(under_test, suite, scale))
    return size / len(under_test.server) / 1024
