"""A virtual network with a virtual clock: loss, duplication, reordering, delay and an MTU, all from one seed.

Nothing here waits. ``Network.send`` puts a datagram on its way, ``Network.arrivals`` hands over what has
arrived by ``clock.now``, and whoever drives both (:class:`sansdtls.testing.Fleet`) moves the clock.
"""

from __future__ import annotations

import enum
import heapq
from typing import TYPE_CHECKING

import attrs

from sansdtls.testing.entropy import CounterEntropy

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from sansdtls.testing.nat import Nat


class VirtualClock:
    """Monotonic seconds that pass only when told to."""

    def __init__(self, now: float = 0.0):
        self.now = now

    def advance_to(self, time: float) -> None:
        """Move on to ``time``; a moment that is past already changes nothing."""
        self.now = max(self.now, time)

    def __repr__(self) -> str:
        return f"VirtualClock(now={self.now})"


@enum.unique
class Fate(enum.Enum):
    """What the network did with a datagram."""

    DELIVERED = "delivered"
    """Carried in order."""
    LATE = "late"
    """Carried, held back so that later ones may overtake it."""
    DUPLICATED = "duplicated"
    """Carried twice."""
    LOST = "lost"
    """Dropped by chance."""
    TOO_LARGE = "too_large"
    """Dropped because it exceeds the network's MTU."""
    TAPPED = "tapped"
    """Dropped by a tap; what the tap sent in its place is in the log by itself."""


@attrs.frozen
class Datagram:
    """A datagram on the network."""

    number: int
    """Counted from 0 for each pair of source and destination, in the order of sending."""
    time: float
    """When it was sent."""
    source: Hashable
    destination: Hashable
    data: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes {data[:16].hex()}…>")


@attrs.frozen
class Carried:
    """One entry of :attr:`Network.log`."""

    datagram: Datagram
    fate: Fate


class Network:
    """Carries datagrams between addresses, which may be any hashable value.

    All probabilities are between 0 and 1 and independent for each datagram; all times are in seconds.

    ``loss``
        Probability that a datagram is dropped.
    ``duplicate``
        Probability that a datagram arrives twice; the second copy is late.
    ``reorder``
        Probability that a datagram is late: held back for a random time up to ``hold_back``.
    ``delay``
        How long every datagram travels, one way.
    ``mtu``
        Largest UDP payload carried, in bytes; anything larger vanishes. ``None`` = no bound.

    Every property is an attribute that a test may change at any time. The same seed, properties and
    datagrams give the same fates.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        clock: VirtualClock | None = None,
        loss: float = 0.0,
        duplicate: float = 0.0,
        reorder: float = 0.0,
        delay: float = 0.0,
        hold_back: float = 0.05,
        mtu: int | None = None,
    ):
        self.seed = seed
        self.clock = clock if clock is not None else VirtualClock()
        self.loss = loss
        self.duplicate = duplicate
        self.reorder = reorder
        self.delay = delay
        self.hold_back = hold_back
        self.mtu = mtu
        self.log: list[Carried] = []
        """Every datagram that was sent, with its fate, in the order of sending."""
        self._chance = CounterEntropy(seed)
        self._taps: list[Callable[[Datagram], Iterable[bytes]]] = []
        self._nats: list[Nat] = []
        self._numbers: dict[tuple[Hashable, Hashable], int] = {}
        self._under_way: list[tuple[float, int, Datagram]] = []
        self._order = 0

    # --- sending and receiving ---

    def send(self, source: Hashable, destination: Hashable, data: bytes) -> None:
        """Put a datagram on its way, through the NAT where there is one, past the taps."""
        for nat in self._nats:
            source = nat.outward(source)
        route = (source, destination)
        number = self._numbers.get(route, 0)
        self._numbers[route] = number + 1
        self._pass_taps(Datagram(number, self.clock.now, source, destination, data), self._taps)

    def inject(self, source: Hashable, destination: Hashable, data: bytes) -> None:
        """Send as an attacker would: with any source address, past no tap, without loss or delay."""
        datagram = Datagram(-1, self.clock.now, source, destination, data)
        self.log.append(Carried(datagram, Fate.DELIVERED))
        self._put(self.clock.now, datagram)

    def next_arrival(self) -> float | None:
        """When the next datagram arrives; ``None`` = none is under way."""
        return self._under_way[0][0] if self._under_way else None

    def arrivals(self) -> list[Datagram]:
        """Take out what has arrived by now, first come first."""
        arrived = []
        while self._under_way and self._under_way[0][0] <= self.clock.now:
            datagram = heapq.heappop(self._under_way)[2]
            for nat in self._nats:
                datagram = attrs.evolve(datagram, destination=nat.inward(datagram.destination))
            arrived.append(datagram)
        return arrived

    def add_nat(self, nat: Nat) -> None:
        """Let the addresses behind ``nat`` be seen as it says; a new :class:`Nat` calls this itself."""
        self._nats.append(nat)

    def seen_as(self, address: Hashable) -> Hashable:
        """Where others see ``address``: elsewhere if it is behind a NAT, ``None`` if it has no path there."""
        for nat in self._nats:
            if address in nat.inside:
                return nat.public(address)
        return address

    # --- interference ---

    def add_tap(self, tap: Callable[[Datagram], Iterable[bytes]]) -> None:
        """Let ``tap`` see every datagram sent from now on, and decide what travels in its place.

        It returns the payloads: ``[datagram.data]`` leaves it alone, ``[]`` drops it, anything else
        alters or adds. Several taps act one after the other, in the order they were added.
        """
        self._taps.append(tap)

    def remove_taps(self) -> None:
        """Take all taps away."""
        self._taps.clear()

    def drop(self, source: Hashable, *numbers: int) -> None:
        """Drop the datagrams of ``source`` with these numbers (counted per destination from 0)."""
        self.add_tap(lambda sent: [] if sent.source == source and sent.number in numbers else [sent.data])

    def alter(self, source: Hashable, number: int, change: Callable[[bytes], bytes]) -> None:
        """Replace the payload of the ``number``-th datagram of ``source`` by ``change(payload)``."""
        self.add_tap(
            lambda sent: [change(sent.data) if sent.source == source and sent.number == number else sent.data]
        )

    # --- looking back ---

    def sent_by(self, source: Hashable, *, to: Hashable | None = None) -> list[Datagram]:
        """Every datagram that ``source`` sent (to ``to``, where given), whatever became of it."""
        return [
            carried.datagram
            for carried in self.log
            if carried.datagram.source == source and (to is None or carried.datagram.destination == to)
        ]

    # --- inside ---

    def _pass_taps(self, datagram: Datagram, taps: list[Callable[[Datagram], Iterable[bytes]]]) -> None:
        if not taps:
            self._carry(datagram)
            return
        payloads = list(taps[0](datagram))
        if payloads != [datagram.data]:
            self.log.append(Carried(datagram, Fate.TAPPED))
        for payload in payloads:
            self._pass_taps(attrs.evolve(datagram, data=payload), taps[1:])

    def _carry(self, datagram: Datagram) -> None:
        fate = self._decide(datagram)
        self.log.append(Carried(datagram, fate))
        if fate in (Fate.LOST, Fate.TOO_LARGE):
            return
        arrival = self.clock.now + self.delay
        late = arrival + self.hold_back * self._chance.fraction()
        self._put(late if fate is Fate.LATE else arrival, datagram)
        if fate is Fate.DUPLICATED:
            self._put(late, datagram)

    def _decide(self, datagram: Datagram) -> Fate:
        if self.mtu is not None and len(datagram.data) > self.mtu:
            return Fate.TOO_LARGE
        if self._happens(self.loss):
            return Fate.LOST
        if self._happens(self.duplicate):
            return Fate.DUPLICATED
        if self._happens(self.reorder):
            return Fate.LATE
        return Fate.DELIVERED

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self._chance.fraction() < probability

    def _put(self, arrival: float, datagram: Datagram) -> None:
        heapq.heappush(self._under_way, (arrival, self._order, datagram))
        self._order += 1

    def __repr__(self) -> str:
        return f"Network(seed={self.seed}, now={self.clock.now}, {len(self.log)} datagrams)"
