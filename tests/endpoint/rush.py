"""A machine for tests of the intake: one processor, one socket, virtual time, which passes by what work costs.

Nothing here is DTLS but the order of a handshake: hello, hello with a cookie, flight. A datagram is a letter and who sent it.
"""

import heapq
from collections import Counter, deque

import attrs

from endpoint.intake import Intake
from endpoint.quotas import QuotaPolicy
from sansdtls import DatagramKind

HELLO, COOKIE, FLIGHT, READING, JUNK, WAKE = b"H", b"C", b"F", b"R", b"J", b"W"
KINDS = {
    HELLO: DatagramKind.HELLO,
    COOKIE: DatagramKind.HELLO_WITH_COOKIE,
    FLIGHT: DatagramKind.HANDSHAKE,
    JUNK: DatagramKind.NOISE,
    WAKE: DatagramKind.FROZEN,
}
COSTS = {HELLO: 25e-6, COOKIE: 200e-6, FLIGHT: 250e-6, READING: 20e-6, JUNK: 5e-6, WAKE: 125e-6}
"""Seconds, as measured of the endpoint; two flights and two hellos make a handshake of about 500 us."""
HANDSHAKE = COSTS[HELLO] + COSTS[COOKIE] + COSTS[FLIGHT]
READ = 2e-6
"""Seconds to read a datagram from the socket."""
SORT = 4e-6
"""Seconds to sort it and put it into a queue, and to drop one for it."""
ROUND = 30e-6
"""Seconds that trio takes between turns."""
ROOM = 256
"""Datagrams that the kernel keeps, as Linux by default."""
TURN = 64


@attrs.define
class Device:
    """One that handshakes, and repeats what is not answered."""

    path: tuple
    begun: float
    state: bytes = HELLO
    connected: float | None = None
    attempt: int = 0
    wait: float = 1.0
    sent: int = 0


class Machine:
    """A server with an intake, and the devices that it has to do with."""

    def __init__(self, quotas=None, *, round_trip=0.02):
        self.now = 0.0
        self.intake = Intake(
            quotas or QuotaPolicy(),
            receive=self._receive,
            kind_of=self._kind_of,
            frozen_handle=lambda data, _path: data[1:],
            source_of=lambda path: path[1][0],
            timer=lambda: self.now,
        )
        self.round_trip = round_trip
        self.devices = {}
        self.arrivals = []
        """(when, order, data, path), a heap."""
        self.sources = []
        """Endless ones: iterators of the same."""
        self.kernel: deque[tuple] = deque()
        self.lost: Counter[bytes] = Counter()
        """Datagrams for which the kernel had no room, by letter."""
        self.handed = []
        """(data, path), in the order in which the core got them; all but readings."""
        self.delays = []
        """Seconds from the arrival of each reading to its delivery."""
        self.longest_gap = 0.0
        """Seconds between two looks at the socket."""
        self._order = 0
        self._now_of_turn = 0.0

    # --- what comes ---

    def send(self, when, data, path):
        self._order += 1
        heapq.heappush(self.arrivals, (when, self._order, data, path))

    def device(self, path, *, begins):
        device = self.devices[path] = Device(path, begins)
        self._say(device, begins)

    def reads(self, path, *, every, begins, ends):
        when = begins
        while when < ends:
            self.send(when, READING, path)
            when += every

    def _say(self, device, when):
        device.sent += 1
        self.send(when, device.state, device.path)
        self.send(when + device.wait, b"!%d" % device.attempt, device.path)  # a note to itself: the timer

    def _timer_of(self, device, data):
        if device.connected is None and data == b"!%d" % device.attempt:
            device.attempt += 1
            device.wait *= 2
            self._say(device, self.now)

    def _arrive(self):
        while self.arrivals and self.arrivals[0][0] <= self.now:
            when, _, data, path = heapq.heappop(self.arrivals)
            if data.startswith(b"!"):
                self._timer_of(self.devices[path], data)
            elif len(self.kernel) >= ROOM:
                self.lost[data[:1]] += 1
            else:
                self.kernel.append((when, data, path))

    # --- the core ---

    def _kind_of(self, data, path):
        self.now += SORT
        return KINDS[data[:1]]

    def _receive(self, data, path, now):
        self.now += COSTS[data[:1]]
        self.handed.append((data, path))
        device = self.devices.get(path)
        if device is None or device.connected is not None:
            return
        expected = {HELLO: COOKIE, COOKIE: FLIGHT, FLIGHT: b""}
        if data != device.state:
            return
        device.state = expected[data]
        device.attempt += 1
        device.wait = 1.0
        if device.state:
            device.sent += 1
            later = self.now + self.round_trip
            self.send(later, device.state, path)
            self.send(later + 1.0, b"!%d" % device.attempt, path)
        else:
            device.connected = self.now

    # --- the engine ---

    def _turn(self):
        self._arrive()
        now, read = self.now, 0
        while self.kernel and read < TURN:
            read += 1
            self.now += READ
            arrived, data, path = self.kernel.popleft()
            if data == READING:
                self.now += COSTS[READING]
                self.delays.append(self.now - arrived)
            else:
                self.intake.take(data, path, now)
        return self.intake.end_turn(0, more=read == TURN) or read == TURN

    def run(self, seconds):
        """Until that much time has passed, or nothing is left to do."""
        end = self.now + seconds
        while self.now < end:
            looked = self.now
            busy = self._turn()
            if self.intake:
                self.intake.serve(self.now)
                self.intake.served()
            self.longest_gap = max(self.longest_gap, self.now - looked)
            self.now += ROUND
            if not busy and not self.kernel and not self.intake:
                if not self.arrivals:
                    break
                self.now = max(self.now, self.arrivals[0][0])

    @property
    def waits(self):
        """Seconds from the first hello to the end of the handshake, of those that have got there."""
        return [device.connected - device.begun for device in self.devices.values() if device.connected]

    @property
    def all_connected(self):
        return all(device.connected is not None for device in self.devices.values())
