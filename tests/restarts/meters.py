"""Thousands of meters in one process: real client connections that stream to a real endpoint.

Each meter has an IPv4 address of its own out of 127.16.0.0/12, as devices do that are not behind one NAT, so
that paths, quotas and the tables behind them are what they would be. Not each has a socket of its
own, which would need more descriptors than many systems grant: a few sockets on all addresses send from
whichever is told in IP_PKTINFO, and are told in the same way whom a datagram is for.

Every message says whose it is, its number and in which round it was sent, and has to be echoed. A
window of messages is under way at a time, from one meter after the other; while the endpoint is down
the window waits in the buffer of its socket. Every record of either side goes into a ledger.
"""

import os
import selectors
import socket
import struct
import time
from collections import Counter, deque

from sansdtls import (
    CipherSuite,
    ClientConfig,
    Connection,
    ConnectionState,
    ConnectionTerminated,
    DataReceived,
)
from tests.ledger import Ledger

IP_PKTINFO = 8
"""Linux; Python names it from 3.14 on."""
PKTINFO = struct.Struct("=i4s4s")
"""Interface (0 = any), local address, and for received datagrams the address they were sent to."""
FIRST_ADDRESS = 0x7F100001
"""127.16.0.1"""
SOCKETS = 4
WINDOW = 128
"""Messages under way at a time. Each takes up to 768 bytes of a socket's buffer, of which there are at least
200 KiB: all of them can wait there while the endpoint is restarted."""
HANDSHAKES_AT_A_TIME = 64
TURN = 64
"""Datagrams taken from one socket before the next."""
POLL = 0.02
"""Seconds for which the meters wait at most before they look at what else there is to do."""
REPEAT_INTERVAL = 0.25
"""Seconds between two looks at the retransmission timers of handshakes."""
LOST_AFTER = 2.0
"""Seconds without an echo, and with the endpoint up, after which a message counts as lost."""
PATIENCE = 120.0
"""Seconds after which a phase has failed. Where eight other programs want the same two cores, 10,000 handshakes
take 40."""
SUITE = CipherSuite.TLS_PSK_WITH_AES_128_CCM_8
"""What RFC 7925 has devices implement, and no key exchange: handshakes are not what is tested."""

_SO_MEMINFO = 55
_SK_MEMINFO_DROPS = 8


class Meter:
    """One device."""

    __slots__ = (
        "_connection",
        "address",
        "config",
        "echoed",
        "number",
        "outstanding",
        "sent",
        "sock",
    )

    def __init__(self, number, config):
        self.number = number
        self.sock = None
        self.address = b""
        self.config = config
        self._connection = None
        self.outstanding = None
        """The message that waits for its echo."""
        self.sent = 0
        self.echoed = 0

    def begin(self):
        """Begin the only handshake of its life."""
        assert self._connection is None
        self._connection = Connection.client(self.config, entropy=os.urandom, now=time.monotonic())

    @property
    def connection(self):
        assert self._connection is not None
        return self._connection

    @property
    def connected(self):
        return self.connection.state is ConnectionState.CONNECTED


def identity(number):
    return b"meter%05d" % number


def key(number):
    return number.to_bytes(16)


def psk_lines(count):
    """The endpoint's PSK file for so many meters."""
    return "".join(f"{identity(number).decode()}:{key(number).hex()}\n" for number in range(count))


class Meters:
    """The fleet. Use it in a ``with`` statement."""

    def __init__(self, count, target, options=lambda _: {}):
        """``target`` is the endpoint's (IPv4 address, port); ``options`` gives what else a meter's config has."""
        self._target = target
        self._sockets = [_socket() for _ in range(SOCKETS)]
        self._selector = selectors.DefaultSelector()
        for sock in self._sockets:
            self._selector.register(sock, selectors.EVENT_READ, sock)
        self._next_address = FIRST_ADDRESS
        self._at: dict[tuple[socket.socket, bytes], Meter] = {}
        self._left: dict[tuple[socket.socket, bytes], Meter] = {}
        """Whose an address was. What comes there still goes into the ledger."""
        self._ready: deque[Meter] = deque()
        """Connected meters without a message under way; who has waited longest is first."""
        self._under_way: dict[Meter, float] = {}
        """Those with one, and since when; the oldest first."""
        self.sent = Ledger()
        self.received = Ledger()
        self.round = 0
        self._behind: set[Meter] = set()
        self.lost: Counter[int] = Counter()
        """Messages without an echo, by the meter's number."""
        self.causes: Counter[str] = Counter()
        """Why associations ended, none of which should."""
        self.all: list[Meter] = []
        for number in range(count):
            config = ClientConfig(
                psk_identity=identity(number), psk_key=key(number), cipher_suites=(SUITE,), **options(number)
            )
            meter = Meter(number, config)
            self.move(meter)
            self.all.append(meter)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._selector.close()
        for sock in self._sockets:
            sock.close()

    @property
    def dropped_by_kernel(self):
        """Datagrams that came and found no room: what they were is not in the ledger."""
        drops = 0
        for sock in self._sockets:
            counters = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 64)
            drops += struct.unpack_from("=I", counters, 4 * _SK_MEMINFO_DROPS)[0]
        return drops

    @property
    def behind(self):
        """How many meters have had no echo of what they have sent in this round."""
        return len(self._behind)

    def move(self, meter):
        """Give a meter a new address, as a NAT does; what comes to the old one is lost to it from now on."""
        if self._at.pop((meter.sock, meter.address), None):
            self._left[meter.sock, meter.address] = meter
        meter.address = self._next_address.to_bytes(4)
        meter.sock = self._sockets[self._next_address % SOCKETS]
        self._next_address += 1
        self._at[meter.sock, meter.address] = meter

    # --- phases ---

    def connect(self):
        """Complete all handshakes."""
        now = looked = time.monotonic()
        deadline = now + PATIENCE
        to_come = deque(self.all)
        waiting: set[Meter] = set()
        while to_come or waiting:
            assert not self.causes, f"handshakes have failed: {self.causes}"
            assert now < deadline, f"{len(waiting)} handshakes are not complete, {len(to_come)} not begun"
            while to_come and len(waiting) < HANDSHAKES_AT_A_TIME:
                meter = to_come.popleft()
                waiting.add(meter)
                meter.begin()
                self._flush(meter)
            for meter in self._take_in() & waiting:
                if meter.connected:
                    waiting.remove(meter)
                    self._ready.append(meter)
            now = time.monotonic()
            if now - looked > REPEAT_INTERVAL:
                self._repeat(waiting, now)
                looked = now

    def stream(self, until, *, up=lambda: True):
        """Let all meters send, one after the other, until ``until()`` is true; ``up()`` = there is an endpoint.

        Only while there is one messages are given up, and counted as ``lost``.
        """
        now = down = time.monotonic()
        deadline = now + PATIENCE
        while not until():
            assert now < deadline, f"{self.behind} meters without an echo, {len(self._under_way)} under way"
            while self._ready and len(self._under_way) < WINDOW:
                self._speak(self._ready.popleft(), now)
            self._take_in()
            now = time.monotonic()
            if not up():
                down = now
            elif now - down > LOST_AFTER:
                self._give_up(now - LOST_AFTER)

    def begin_round(self):
        """From now on messages belong to a new round."""
        self.round += 1
        self._behind = set(self.all)

    def hear_all(self, **more):
        """Begin a new round and stream until each meter has had an echo in it."""
        self.begin_round()
        self.stream(lambda: not self._behind, **more)

    def say_once(self):
        """Begin a new round in which each meter sends one message, without waiting for anything."""
        self.begin_round()
        while self._ready:
            self._speak(self._ready.popleft(), time.monotonic())

    def settle(self, **more):
        """Wait for the echoes that are under way, without sending anything new."""
        ready, self._ready = self._ready, deque()
        self.stream(lambda: not self._under_way, **more)
        self._ready.extendleft(reversed(ready))

    # --- inside ---

    def _speak(self, meter, now):
        meter.outstanding = b"%d %d %d" % (meter.number, meter.sent, self.round)
        meter.sent += 1
        meter.connection.send(meter.outstanding, now=now)
        self._under_way[meter] = now
        self._flush(meter)

    def _give_up(self, before):
        """What was sent before then is lost."""
        while self._under_way:
            meter, sent = next(iter(self._under_way.items()))
            if sent > before:
                return
            self.lost[meter.number] += 1
            meter.outstanding = None
            del self._under_way[meter]
            self._ready.append(meter)

    def _take_in(self):
        """Receive what has come; the meters it was for."""
        progress = set()
        for entry, _ in self._selector.select(POLL):
            sock = entry.data
            for _ in range(TURN):
                try:
                    data, ancillary, _, _ = sock.recvmsg(65_535, 64)
                except BlockingIOError:
                    break
                destination = PKTINFO.unpack(ancillary[0][2])[2]
                meter = self._at.get((sock, destination))
                if meter is not None:
                    self._receive(meter, data)
                    progress.add(meter)
                else:
                    self._book(self._left[sock, destination], data)
        return progress

    def _receive(self, meter, data):
        connection = meter.connection
        self._book(meter, data)
        for event in connection.receive_datagram(data, now=time.monotonic()):
            if isinstance(event, DataReceived):
                self._echo(meter, event.data)
            elif isinstance(event, ConnectionTerminated):
                self.causes[repr(event.cause)] += 1
        self._flush(meter)

    def _echo(self, meter, data):
        if data != meter.outstanding:
            number, _, _ = map(int, data.split())
            assert number == meter.number, f"{meter.number} got an echo of {number}"
            self.lost[meter.number] -= 1  # given up too early
            return
        meter.echoed += 1
        if int(data.split()[2]) == self.round:
            self._behind.discard(meter)
        meter.outstanding = None
        del self._under_way[meter]
        self._ready.append(meter)

    def _repeat(self, waiting, now):
        for meter in waiting:
            due = meter.connection.next_timeout()
            if due is not None and due <= now:
                meter.connection.handle_timeout(now=now)
                self._flush(meter)

    def _book(self, meter, data):
        self.received.enter(meter.number, data, meter.connection.connection_id)

    def _flush(self, meter):
        for data, _ in meter.connection.datagrams_to_send():
            self.sent.enter(meter.number, data, meter.connection.peer_connection_id)
            source = [(socket.IPPROTO_IP, IP_PKTINFO, PKTINFO.pack(0, meter.address, b"\0\0\0\0"))]
            meter.sock.sendmsg([data], source, 0, self._target)


def _socket():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    sock.bind(("", 0))
    return sock
