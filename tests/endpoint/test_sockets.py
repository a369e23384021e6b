"""UDP sockets: draining, sending that is never fatal, and answering from the address that was asked."""

import errno
import socket
from typing import Any

import pytest
import trio

from endpoint import sockets
from endpoint.addresses import Source, address_text, source_host, source_of
from endpoint.sockets import UdpSocket
from endpoint.udp import bind_udp
from tests.endpoint.devices import PATIENCE, Device, serving

needs_ipv6 = pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")


class FailingSocket:
    """Stands in for the kernel: ``errors`` holds what the next calls do, ``None`` = work."""

    type = socket.SOCK_DGRAM
    family = socket.AF_INET

    def __init__(self, *errors):
        self.errors = list(errors)
        self.sent = []

    def getsockname(self):
        return ("127.0.0.1", 5684)

    def setblocking(self, flag):
        assert not flag

    def fileno(self):
        return 99

    def _next(self):
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise OSError(error, "told to") if error != errno.EAGAIN else BlockingIOError(error, "told to")

    def recvfrom(self, size):
        self._next()
        return b"data", ("192.0.2.1", 1)

    def sendto(self, data, address):
        self._next()
        self.sent.append((data, address))


def failing(*errors):
    fake: Any = FailingSocket(*errors)
    return UdpSocket(fake), fake


@pytest.fixture
async def loopback():
    (bound,) = await bind_udp("127.0.0.1", 0)
    with bound:
        yield bound


@pytest.fixture
def peer():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


# --- addresses ---


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("192.0.2.1", 5684), "192.0.2.1:5684"),
        (("2001:db8::1", 5684, 0, 0), "[2001:db8::1]:5684"),
        (("::ffff:192.0.2.1", 5684, 0, 0), "192.0.2.1:5684"),
        (("fe80::1", 5684, 0, 3), "[fe80::1%3]:5684"),
        (("fe80::1%eth0", 5684, 0, 3), "[fe80::1%eth0]:5684"),
    ],
)
def test_addresses_are_written_as_people_write_them(address, text):
    assert address_text(address) == text


# --- which of our addresses answers ---


@pytest.mark.parametrize(
    ("bound", "asked"),
    [
        ("0.0.0.0", "127.0.0.1"),  # noqa: S104 - loopback has many addresses
        ("0.0.0.0", "127.0.0.2"),  # noqa: S104 - as above
        pytest.param("::", "127.0.0.2", marks=needs_ipv6),
        pytest.param("::", "::1", marks=needs_ipv6),
    ],
)
async def test_a_socket_on_all_interfaces_answers_from_the_address_that_was_asked(bound, asked):
    # The device's socket is connected, so an answer from any other address never reaches it.
    async with serving(address=bound) as served:
        with Device(served.port, host=asked) as device, trio.fail_after(PATIENCE):
            await device.connect()
            assert device.connected
            await device.send(b"x")
            assert await device.receive() == b"x"
            (association,) = served.observer.live
            assert association.local == address_text((asked, served.port))
            assert association.remote == device.path


async def test_each_of_our_addresses_is_a_path_of_its_own(peer):
    (bound,) = await bind_udp("0.0.0.0", 0)  # noqa: S104 - loopback has many addresses
    with bound:
        for host in ("127.0.0.1", "127.0.0.2", "127.0.0.1"):
            peer.sendto(b"junk", (host, bound.port))
        await bound.wait_readable()
        first, second, third = (address for _, address in bound.drain(10))
        assert first == third != second
        assert hash(first) == hash(third)


async def test_sources_are_remembered_in_bounds(peer, monkeypatch):
    monkeypatch.setattr(sockets, "MAX_SOURCES", 2)
    (bound,) = await bind_udp("0.0.0.0", 0)  # noqa: S104 - loopback has many addresses
    with bound:
        for number in range(1, 8):
            peer.sendto(b"junk", (f"127.0.0.{number}", bound.port))
        await bound.wait_readable()
        assert len({address for _, address in bound.drain(10)}) == 7
        assert len(bound._sources) <= 2


def info(local, interface=3):
    return [
        (
            socket.IPPROTO_IPV6,
            socket.IPV6_PKTINFO,
            socket.inet_pton(socket.AF_INET6, local) + interface.to_bytes(4, "little"),
        )
    ]


def test_without_ancillary_data_the_kernel_chooses_the_source():
    nothing: Source = ()
    assert source_of([]) == nothing
    assert source_of([(1, 2, b"something else")]) == nothing
    assert source_host(nothing) is None


def test_a_multicast_address_is_no_source():
    assert source_of(info("ff02::1")) == ()


def test_the_interface_is_kept_for_link_local_addresses_only():
    assert source_of(info("fe80::1")) == tuple(info("fe80::1"))
    assert source_of(info("2001:db8::1")) == tuple(info("2001:db8::1", interface=0))


# --- adopting ---


def test_only_a_bound_udp_socket_is_taken_over():
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
        pytest.raises(ValueError, match="not a UDP"),
    ):
        UdpSocket(tcp)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unbound,
        pytest.raises(ValueError, match="not bound"),
    ):
        UdpSocket(unbound)


# --- receiving ---


async def test_drain_takes_what_is_there_up_to_its_limit(loopback, peer):
    for number in range(5):
        peer.sendto(b"%d" % number, ("127.0.0.1", loopback.port))
    await trio.lowlevel.wait_readable(loopback)
    first = loopback.drain(3)
    assert [data for data, _ in first] == [b"0", b"1", b"2"]
    assert first[0][1] == peer.getsockname()
    assert [data for data, _ in loopback.drain(3)] == [b"3", b"4"]
    assert loopback.drain(3) == []


async def test_the_largest_datagram_is_received_whole(loopback, peer):
    peer.sendto(bytes(65_507), ("127.0.0.1", loopback.port))
    await trio.lowlevel.wait_readable(loopback)
    assert len(loopback.drain(1)[0][0]) == 65_507


def test_an_icmp_error_is_counted_and_loses_no_datagram():
    bound, _ = failing(None, errno.ECONNREFUSED, None, errno.EHOSTUNREACH, None, errno.EAGAIN)
    assert len(bound.drain(64)) == 3
    assert bound.receive_errors == {"ECONNREFUSED": 1, "EHOSTUNREACH": 1}
    assert not bound.exhausted


def test_a_storm_of_errors_ends_the_turn_like_a_storm_of_datagrams():
    bound, fake = failing(*[errno.ECONNREFUSED] * 1000)
    assert bound.drain(64) == []
    assert len(fake.errors) == 1000 - 64


def test_a_kernel_short_of_memory_asks_for_a_pause():
    bound, _ = failing(None, errno.ENOBUFS, None)
    assert len(bound.drain(64)) == 1
    assert bound.exhausted


async def test_draining_a_closed_socket_says_so(loopback):
    loopback.close()
    loopback.close()
    with pytest.raises(trio.ClosedResourceError):
        loopback.drain(1)
    with pytest.raises(trio.ClosedResourceError):
        await loopback.wait_readable()
    assert repr(loopback) == "<UdpSocket closed>"


async def test_datagrams_the_kernel_drops_are_told_where_it_can_be_known(peer):
    (bound,) = await bind_udp("127.0.0.1", 0, receive_buffer=4_096)
    with bound:
        for _ in range(200):
            peer.sendto(bytes(100), ("127.0.0.1", bound.port))
        received = len(bound.drain(1000))
        assert received < 200
        assert bound.dropped_by_kernel in (None, 200 - received)


# --- sending ---


async def test_send_sends(loopback, peer):
    assert loopback.send(b"hello", peer.getsockname())
    peer.settimeout(5)
    assert peer.recvfrom(100)[0] == b"hello"
    assert not loopback.blocked


@pytest.mark.parametrize(
    "code", [errno.EMSGSIZE, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPERM, errno.EINVAL, errno.ENOBUFS]
)
def test_an_error_while_sending_is_counted_reported_and_not_raised(code):
    bound, fake = failing(code)
    reports = []
    bound.on_send_failed = lambda address, number: reports.append((address, number))
    assert not bound.send(b"lost", ("192.0.2.1", 1))
    assert bound.send(b"next", ("192.0.2.2", 1))
    assert reports == [(("192.0.2.1", 1), code)]
    assert bound.send_errors == {errno.errorcode[code]: 1}
    assert fake.sent == [(b"next", ("192.0.2.2", 1))]


async def test_a_datagram_to_port_0_is_counted_only(loopback):
    assert not loopback.send(b"x", ("127.0.0.1", 0))
    assert loopback.send_errors == {"EINVAL": 1}


def test_while_the_kernel_has_no_room_datagrams_wait_in_order_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(sockets, "MAX_UNSENT", 3)
    bound, fake = failing(errno.EAGAIN)
    to = ("192.0.2.1", 1)
    assert [bound.send(b"%d" % number, to) for number in range(5)] == [True, True, True, False, False]
    assert bound.blocked
    assert bound.send_errors == {"EAGAIN": 2}
    fake.errors = [None, errno.EPERM, errno.EAGAIN]
    bound._write_unsent()
    assert [data for data, _ in fake.sent] == [b"0"]
    assert bound.blocked
    bound._write_unsent()
    assert [data for data, _ in fake.sent] == [b"0", b"2"]
    assert not bound.blocked
    assert bound.send_errors == {"EAGAIN": 2, "EPERM": 1}


async def test_the_writing_task_sends_what_waits_and_wakes_who_waits_for_it(monkeypatch, autojump_clock):
    bound, fake = failing(errno.EAGAIN, errno.EAGAIN)
    room = trio.Event()

    async def until_room(_):
        await room.wait()

    monkeypatch.setattr(trio.lowlevel, "wait_writable", until_room)
    woken = []

    async def wait():
        await bound.wait_writable()
        woken.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bound.keep_writing)
        for _ in range(2):  # the second time around everything works as in the first
            fake.errors = [errno.EAGAIN]
            assert bound.send(b"late", ("192.0.2.1", 1))
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert bound.blocked
            room.set()
            await trio.testing.wait_all_tasks_blocked()
            assert not bound.blocked
            room = trio.Event()
        nursery.cancel_scope.cancel()
    assert len(woken) == 2
    assert [data for data, _ in fake.sent] == [b"late", b"late"]
    await bound.wait_writable()


async def test_a_larger_buffer_that_a_service_manager_gave_is_left_alone():
    forced = 33  # SO_RCVBUFFORCE, for root: beyond net.core.rmem_max
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        udp = UdpSocket(sock)
        udp.ask_for_buffer(2**30)
        most = udp.receive_buffer
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, 4 * most)
        except PermissionError:
            pytest.skip("only root can have more than the system's limit")
        udp.ask_for_buffer(8 * most)
        assert udp.receive_buffer == 4 * most
        udp.ask_for_buffer(8_192)  # what is asked for and can be had
        assert udp.receive_buffer == 8_192
