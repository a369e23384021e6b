"""One measurement of one server, and many of several, taken in turn."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Self

import attrs

from benchmarks import load
from benchmarks.control import Measured

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.load import Client

PAYLOAD = bytes(range(64))
"""What is echoed: 64 bytes, the size of a sensor's reading."""
MICROSECONDS = 1e6


@attrs.frozen(kw_only=True)
class Scale:
    """How much is done in one run. A run of each server takes well under a second."""

    window: int
    """Clients that act at once, and datagrams in one burst. Half of Linux's default receive buffer
    holds 64 small datagrams twice over, so none is lost."""
    echo_bursts: int
    """Bursts of echoed datagrams in one run."""
    handshake_bursts: int
    """Bursts of handshakes in one run."""
    handshake_window: int
    """Handshakes that start at once."""
    hello_bursts: int
    """Bursts of hellos without a cookie in one run."""
    associations: int
    """Live associations over which memory is taken of servers behind sockets."""
    kept: int
    """Associations over which memory is taken of this project's endpoint, live and frozen."""
    silent: int
    """The same for live ones that have said nothing since their handshake."""
    repeat: int
    """Runs of each measurement, of which the median is given."""


FULL = Scale(
    window=64, echo_bursts=48, handshake_bursts=8, handshake_window=32,
    hello_bursts=24, associations=2_000, kept=100_000, silent=20_000, repeat=7,
)  # fmt: skip
QUICK = Scale(
    window=64, echo_bursts=16, handshake_bursts=2, handshake_window=32,
    hello_bursts=8, associations=400, kept=20_000, silent=20_000, repeat=3,
)  # fmt: skip
WARM_UP = attrs.evolve(QUICK, echo_bursts=4, handshake_bursts=1, hello_bursts=2)
"""Done once before the runs, and not counted."""


@attrs.frozen
class Contender:
    """A server that is measured: how to start it, and what clients load it."""

    name: str
    suite: str
    serve: Callable[..., None]
    argument: object
    make_client: Callable[[], Client]
    group: str | None = None
    """The group of its key exchange, if it has one. Checked, so that like is compared with like."""

    def start(self) -> Running:
        return Running(self, Measured(self.serve, self.argument))


@attrs.define
class Series:
    """The results of one measurement of one contender, run by run."""

    what: str
    unit: str
    name: str
    suite: str
    aim: float | None
    values: list[float] = attrs.field(factory=list)
    ratios: list[float] = attrs.field(factory=list)
    """The yardstick's value in the same run, divided by this one."""

    def add(self, value: float, yardstick: float | None = None) -> None:
        self.values.append(value)
        if yardstick is not None:
            self.ratios.append(yardstick / value)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None


class Running:
    """A contender whose process is starting; once entered, it is up."""

    def __init__(self, contender: Contender, process: Measured) -> None:
        self.contender = contender
        self.process = process
        self.port = 0
        self._echo_peers: list[load.Peer] = []

    def __enter__(self) -> Self:
        # Here and not where it is made: several start side by side, and are then entered.
        self.port = int(self.process.hear())
        return self

    def __exit__(self, *exc_info: object) -> None:
        for peer in self._echo_peers:
            peer.sock.close()
        self.process.__exit__(*exc_info)

    def handshake(self, scale: Scale) -> float:
        """Microseconds of the server's CPU for one full handshake, the cookie exchange included."""
        bursts = [self._clients(scale.handshake_window) for _ in range(scale.handshake_bursts)]
        cpu, peers = self._connect_all(bursts)
        groups = {peer.client.group for peer in peers}
        if groups != {self.contender.group}:
            raise load.LoadFailed(f"{self.contender.name}: {self.contender.suite}, but with {groups}")
        return cpu / len(peers) * MICROSECONDS

    def resumed(self, scale: Scale) -> float:
        """Microseconds of the server's CPU for one handshake that goes on from an earlier one."""
        first = load.connect(self.port, self._clients(scale.handshake_window))
        load.leave(first)
        bursts = [[peer.client.resume() for peer in first] for _ in range(scale.handshake_bursts)]
        cpu, peers = self._connect_all(bursts)
        if not all(peer.client.resumed for peer in peers):
            raise load.LoadFailed(f"{self.contender.name}: handshakes were full ones, not resumed")
        return cpu / len(peers) * MICROSECONDS

    def _clients(self, count: int) -> list[Client]:
        return [self.contender.make_client() for _ in range(count)]

    def _connect_all(self, bursts: Sequence[Sequence[Client]]) -> tuple[float, list[load.Peer]]:
        """The server's CPU in seconds for the handshakes of all ``bursts``. The peers have left."""
        peers: list[load.Peer] = []
        before = self.process.settled_cpu()
        for clients in bursts:
            peers += load.connect(self.port, clients)
        after = self.process.settled_cpu()
        load.leave(peers)
        return after - before, peers

    def echo(self, scale: Scale) -> float:
        """Microseconds of the server's CPU for one 64-byte datagram received, answered and sent."""
        while len(self._echo_peers) < scale.window:
            missing = min(scale.window - len(self._echo_peers), scale.handshake_window)
            self._echo_peers += load.connect(self.port, self._clients(missing))
        peers = self._echo_peers[: scale.window]
        run = load.prepare_echo(peers, PAYLOAD, scale.echo_bursts)
        before = self.process.settled_cpu()
        count = run()
        after = self.process.settled_cpu()
        echoed = count()
        if echoed * 2 < scale.window * scale.echo_bursts:
            raise load.LoadFailed(f"{self.contender.name}: only {echoed} datagrams came back")
        return (after - before) / echoed * MICROSECONDS

    def pre_cookie(self, scale: Scale) -> float:
        """Microseconds of the server's CPU for one hello without a cookie, answered."""
        (hello,) = self.contender.make_client().start()
        before = self.process.settled_cpu()
        answered = load.hellos_without_cookie(self.port, hello, scale.window, scale.hello_bursts)
        after = self.process.settled_cpu()
        if answered * 2 < scale.window * scale.hello_bursts:
            raise load.LoadFailed(f"{self.contender.name}: only {answered} hellos were answered")
        return (after - before) / answered * MICROSECONDS

    def memory(self, scale: Scale) -> float:
        """KiB of RAM for one live association. The associations stay: use a process of its own."""
        load.leave(load.connect(self.port, self._clients(scale.handshake_window)))
        self.process.settled_cpu()
        ports: set[int] = set()
        before = self.process.memory()
        while len(ports) < scale.associations:
            window = min(scale.handshake_window, scale.associations - len(ports))
            for peer in load.connect(self.port, self._clients(window), avoid=ports):
                peer.sock.close()
        self.process.settled_cpu()
        return (self.process.memory() - before) / len(ports) / 1024
