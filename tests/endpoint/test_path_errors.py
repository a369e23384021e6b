"""What the network reports of what was sent: read from the error queue, counted, and harmless."""

import errno
import select
import socket
import struct
from typing import Any

import pytest
from trio.testing import wait_all_tasks_blocked

from endpoint import sockets
from endpoint.path_errors import SMALLEST_BELIEVED, Report, believed, known_path_size, read_report
from endpoint.sockets import UdpSocket
from endpoint.udp import bind_udp
from tests.endpoint.devices import Recorder, serving

V4, MAPPED, V6 = (
    ("192.0.2.9", 4000),
    ("::ffff:192.0.2.9", 4000, 0, 0),
    ("2001:db8::9", 4000, 0, 0),
)
LOCAL, ICMP, ICMP6 = 1, 2, 3


def entry(code, origin, info, *, level=socket.IPPROTO_IP, kind=11):
    """The ancillary data of one report, with the address of a router behind it."""
    report = struct.pack("=IBBBBII", code, origin, 3, 4, 0, info, 0)
    return [(level, kind, report + bytes(16))]


class ReportingSocket:
    """Stands in for the kernel: ``reports`` is its error queue, ``errors`` what the next calls do."""

    type = socket.SOCK_DGRAM
    family = socket.AF_INET

    def __init__(self, reports=(), errors=()):
        self.reports = list(reports)
        self.errors = list(errors)
        self.options = []
        self.sent = []

    def getsockname(self):
        return ("127.0.0.1", 5684)

    def setblocking(self, flag):
        pass

    def setsockopt(self, *option):
        self.options.append(option)

    def recvmsg(self, size, room, flags):
        assert flags == socket.MSG_ERRQUEUE
        if not self.reports:
            raise BlockingIOError(errno.EAGAIN, "empty")
        return b"", *self.reports.pop(0)

    def _next(self):
        error = self.errors.pop(0) if self.errors else errno.EAGAIN
        if error:
            raise OSError(error, "told to") if error != errno.EAGAIN else BlockingIOError(error, "told to")

    def recvfrom(self, size):
        self._next()
        return b"data", V4

    def sendto(self, data, address):
        self._next()
        self.sent.append(data)


def hearing(reports=(), errors=()):
    fake: Any = ReportingSocket([(ancillary, 0, peer) for ancillary, peer in reports], errors)
    udp = UdpSocket(fake)
    udp.discover_path_mtu(True)
    return udp, fake


# --- what is believed ---


@pytest.mark.parametrize(
    ("mtu", "peer", "local", "size"),
    [
        (1500, V4, False, 1472),
        (1500, MAPPED, False, 1472),
        (1500, V6, False, 1452),
        (600, V4, False, 572),
        (576, V4, False, 548),
        (575, V4, False, 548),  # forged, or a link that no host has to serve
        (68, V4, False, 548),
        (296, V4, True, 268),
        (1280, V6, False, 1232),
        (1279, V6, False, 1232),
        (700, MAPPED, False, 672),
        (0, V4, False, None),
        (28, V4, True, None),
        (0, V6, True, None),
    ],
)
def test_an_mtu_leaves_what_the_headers_leave_and_a_message_never_less_than_every_host_takes(
    mtu, peer, local, size
):
    assert believed(mtu, peer, local=local) == size
    assert SMALLEST_BELIEVED == {4: 548, 6: 1232}


@pytest.mark.parametrize(
    ("ancillary", "peer", "report"),
    [
        (entry(errno.EMSGSIZE, ICMP, 600), V4, Report(errno.EMSGSIZE, V4, 572)),
        (entry(errno.EMSGSIZE, LOCAL, 300), V4, Report(errno.EMSGSIZE, V4, 272)),
        (
            entry(errno.EMSGSIZE, ICMP6, 1300, level=socket.IPPROTO_IPV6, kind=25),
            V6,
            Report(errno.EMSGSIZE, V6, 1252),
        ),
        (entry(errno.ECONNREFUSED, ICMP, 600), V4, Report(errno.ECONNREFUSED, V4, None)),
        (entry(errno.EMSGSIZE, ICMP, 600), (), Report(errno.EMSGSIZE, None, None)),
        (
            [(socket.IPPROTO_IP, 8, bytes(12)), *entry(errno.EPROTO, ICMP, 0)],
            V4,
            Report(errno.EPROTO, V4, None),
        ),
        ([(socket.IPPROTO_IP, 11, bytes(7))], V4, Report(0, None, None)),
        ([], V4, Report(0, None, None)),
    ],
)
def test_a_report_says_whose_datagram_and_why(ancillary, peer, report):
    fake: Any = ReportingSocket([(ancillary, 0, peer)])
    assert read_report(fake) == report
    assert read_report(fake) is None


def test_discovery_is_asked_of_both_families_where_a_socket_serves_both():
    fake: Any = ReportingSocket()
    udp = UdpSocket(fake)
    assert fake.options == []  # not before it is asked for
    udp.discover_path_mtu(True)
    assert fake.options == [(socket.IPPROTO_IP, 10, 2), (socket.IPPROTO_IP, 11, 1)]
    fake.family = socket.AF_INET6
    fake.options.clear()
    udp.discover_path_mtu(False)
    both = [(socket.IPPROTO_IP, 10, 0), (socket.IPPROTO_IPV6, 23, 0)]
    assert fake.options == [*both, (socket.IPPROTO_IP, 11, 0), (socket.IPPROTO_IPV6, 25, 0)]
    assert not udp._hears_errors


def test_where_the_system_cannot_nothing_is_asked_for(monkeypatch):
    monkeypatch.setattr("sys.platform", "other")
    udp, fake = hearing()
    assert fake.options == []
    assert not udp._hears_errors


# --- what a socket makes of it ---


def test_a_path_that_takes_less_is_told_and_all_else_counted():
    told = []
    udp, _ = hearing(
        reports=[
            (entry(errno.ECONNREFUSED, ICMP, 0), V4),
            (entry(errno.EMSGSIZE, ICMP, 600), V4),
            (entry(errno.EMSGSIZE, ICMP, 0), V4),
        ],
    )
    udp.on_path_mtu = lambda peer, size: told.append((peer, size))
    assert udp.drain(64) == []
    assert told == [(V4, 572)]
    assert udp.receive_errors == {"ECONNREFUSED": 1, "EMSGSIZE": 1}
    assert udp.path_mtu_reports == 1


def test_reports_that_come_with_an_error_of_receiving_cost_no_datagram_and_count_once():
    udp, _ = hearing(
        reports=[(entry(errno.EHOSTUNREACH, ICMP, 0), V4)], errors=[0, errno.EHOSTUNREACH, 0, errno.EAGAIN]
    )
    assert len(udp.drain(64)) == 2
    assert udp.drain(64) == []
    assert udp.receive_errors == {"EHOSTUNREACH": 1}


def test_a_storm_of_reports_is_read_a_turn_at_a_time(monkeypatch):
    monkeypatch.setattr(sockets, "MAX_REPORTS", 5)
    udp, fake = hearing(reports=[(entry(errno.ECONNREFUSED, ICMP, 0), V4)] * 12)
    udp.drain(64)
    assert len(fake.reports) == 7


@pytest.mark.parametrize("earlier", [errno.ECONNREFUSED, errno.EMSGSIZE])
def test_what_became_of_an_earlier_datagram_does_not_cost_the_next_one(earlier):
    udp, fake = hearing(reports=[(entry(earlier, ICMP, 600), V6)], errors=[earlier, 0])
    failed = []
    udp.on_send_failed = lambda *what: failed.append(what)
    assert udp.send(b"to somebody else", V4)
    assert fake.sent == [b"to somebody else"]
    assert failed == []
    assert udp.send_errors == {}


def test_a_datagram_that_is_refused_again_and_again_is_given_up(monkeypatch):
    monkeypatch.setattr(sockets, "MAX_REPORTS", 1)
    # The kernel reports what it refuses itself without the port.
    reports = [(entry(errno.EMSGSIZE, LOCAL, 600), (V4[0], 0))] * 9
    udp, fake = hearing(reports=reports, errors=[errno.EMSGSIZE] * 9)
    failed, told = [], []
    udp.on_send_failed = lambda *what: failed.append(what)
    udp.on_path_mtu = lambda *what: told.append(what)
    assert not udp.send(b"x" * 1000, V4)
    assert failed == [(V4, errno.EMSGSIZE)]
    assert set(told) == {(V4, 572)}
    assert len(fake.errors) == 9 - sockets.SEND_ATTEMPTS


async def test_a_peer_that_is_gone_costs_nobody_a_datagram():
    # With the kernel's own messages: what is sent to a closed port comes back as ICMP, at the next call.
    (udp,) = await bind_udp("127.0.0.1", 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind(("127.0.0.1", 0))
        nobody = gone.getsockname()
    with udp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(5)
        for number in range(10):
            assert udp.send(b"lost", nobody)
            assert udp.send(b"%d" % number, peer.getsockname())
        assert [peer.recv(9) for _ in range(10)] == [b"%d" % number for number in range(10)]
        assert udp.drain(64) == []
        assert udp.receive_errors == {"ECONNREFUSED": 10}
        assert udp.send_errors == {}
        # Nothing is left that would wake the receiving task again and again.
        poll = select.poll()
        poll.register(udp.fileno(), select.POLLIN)
        assert poll.poll(0) == []


async def test_whoever_shares_a_socket_with_a_peer_that_is_gone_is_served():
    async with serving(observer=Recorder(echo=True)) as served:
        (udp,) = served.engine.sockets
        assert udp._hears_errors
        gone = served.device()
        await gone.connect()
        device = served.device(identity=b"meter-2")
        await device.connect()
        gone.socket.close()
        (association, other) = served.observer.live
        for number in range(20):
            association.send(b"to nobody")
            other.send(b"%d" % number)
        assert [await device.receive() for _ in range(20)] == [b"%d" % number for number in range(20)]
        assert served.engine.statistics()["sockets"][0]["send_errors"] == {}
        assert len(served.observer.live) == 2


async def test_what_is_learned_outside_of_any_turn_reaches_the_association_too():
    async with serving() as served:
        device = served.device()
        await device.connect()
        (association,) = served.observer.live
        before = association.connection.max_payload
        (udp,) = served.engine.sockets
        assert udp.on_path_mtu is not None
        udp.on_path_mtu(association.path[1], 700)
        await wait_all_tasks_blocked()
        assert before - association.connection.max_payload == 1232 - 700
        assert not association.send(b"x" * (association.connection.max_payload + 1))
        assert association.dropped == 1


def test_a_connected_socket_knows_what_its_path_takes():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert known_path_size(sock) is None
        sock.connect(("127.0.0.1", 9))
        size = known_path_size(sock)
        assert size is not None
        assert size >= 548


async def test_discovery_can_be_left_out(monkeypatch):
    (udp,) = await bind_udp("127.0.0.1", 0, path_mtu_discovery=False)
    with udp:
        assert udp._socket.getsockopt(socket.IPPROTO_IP, 10) == 0
        assert udp._socket.getsockopt(socket.IPPROTO_IP, 11) == 0
    (udp,) = await bind_udp("127.0.0.1", 0)
    with udp:
        assert udp._socket.getsockopt(socket.IPPROTO_IP, 10) == 2
        assert udp._socket.getsockopt(socket.IPPROTO_IP, 11) == 1
