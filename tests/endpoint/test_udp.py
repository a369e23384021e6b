"""Sockets: binding, draining, and sending that is never fatal. Loopback only."""

import errno
import socket
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from endpoint import udp
from endpoint.udp import ListenError, RetryPolicy, UdpSocket, address_text, bind_udp

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


# --- binding ---


async def test_port_0_becomes_a_real_port(loopback):
    assert loopback.address == "127.0.0.1"
    assert loopback.port > 0
    assert repr(loopback) == f"<UdpSocket 127.0.0.1:{loopback.port}>"


@needs_ipv6
async def test_all_interfaces_is_one_socket_that_serves_both_ip_versions():
    (bound,) = await bind_udp(None, 0)
    with bound, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as four:
        assert bound.address == "::"
        four.sendto(b"over IPv4", ("127.0.0.1", bound.port))
        await trio.lowlevel.wait_readable(bound)
        ((data, address),) = bound.drain(10)
        assert data == b"over IPv4"
        assert address_text(address).startswith("127.0.0.1:")


async def test_without_ipv6_in_the_kernel_all_interfaces_means_all_of_ipv4(monkeypatch):
    real = socket.socket

    def no_ipv6(family, *rest):
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, *rest)

    monkeypatch.setattr(socket, "socket", no_ipv6)
    (bound,) = await bind_udp(None, 0)
    with bound:
        assert bound.address == "0.0.0.0"  # noqa: S104 - what is tested
    with pytest.raises(ListenError, match=r"listen\.address: ::1: this machine has no IPv6"):
        await bind_udp("::1", 0)


@needs_ipv6
async def test_a_name_with_two_addresses_gets_two_sockets_on_one_port(monkeypatch):
    async def both(*_, **__):
        await trio.lowlevel.checkpoint()
        kind = (socket.SOCK_DGRAM, 17, "")
        return [
            (socket.AF_INET6, *kind, ("::1", 0, 0, 0)),
            (socket.AF_INET, *kind, ("127.0.0.1", 0)),
        ]

    monkeypatch.setattr(trio.socket, "getaddrinfo", both)
    sockets = await bind_udp("localhost", 0)
    assert [bound.address for bound in sockets] == ["::1", "127.0.0.1"]
    assert sockets[0].port == sockets[1].port
    for bound in sockets:
        bound.close()


async def test_a_port_in_use_names_the_setting_and_a_remedy(loopback):
    with pytest.raises(ListenError) as caught:
        await bind_udp("127.0.0.1", loopback.port)
    text = str(caught.value)
    assert text.startswith(f"listen.port: 127.0.0.1:{loopback.port} is already in use; ")
    assert f"ss -ulpn sport = :{loopback.port}" in text
    assert caught.value.key == "listen.port"
    assert caught.value.errno == errno.EADDRINUSE
    assert isinstance(caught.value, OSError)


async def test_an_address_of_another_machine_names_the_setting():
    with pytest.raises(
        ListenError, match=r"^listen\.address: 192\.0\.2\.1 is not an address of this machine"
    ):
        await bind_udp("192.0.2.1", 0)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (errno.EACCES, "listen.port: no permission to bind 192.0.2.1:684; choose a port above 1023"),
        (errno.EPERM, "listen.port: no permission to bind 192.0.2.1:684; choose a port above 1023"),
        (errno.EINVAL, "listen.address: 192.0.2.1:684: Invalid argument"),
    ],
)
def test_other_errors_name_the_setting_too(code, text):
    error = udp._listen_error(("192.0.2.1", 684), OSError(code, "x"))
    assert str(error).startswith(text)


async def test_a_name_that_does_not_resolve_names_the_setting(monkeypatch):
    async def unknown(*_, **__):
        await trio.lowlevel.checkpoint()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(trio.socket, "getaddrinfo", unknown)
    with pytest.raises(ListenError, match=r"listen\.address: 'nowhere' cannot be resolved: Name or service"):
        await bind_udp("nowhere", 5684)


@pytest.mark.parametrize("port", [-1, 65_536])
async def test_a_port_out_of_range_is_refused(port):
    with pytest.raises(ListenError, match=r"listen\.port: .* is not within 0 to 65535"):
        await bind_udp("127.0.0.1", port)


async def test_when_the_second_address_cannot_be_bound_the_first_is_given_back(monkeypatch, loopback):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]

    async def both(*_, **__):
        await trio.lowlevel.checkpoint()
        kind = (socket.AF_INET, socket.SOCK_DGRAM, 17, "")
        return [(*kind, ("127.0.0.1", free)), (*kind, ("192.0.2.1", free))]

    monkeypatch.setattr(trio.socket, "getaddrinfo", both)
    with pytest.raises(ListenError):
        await bind_udp("two", free)
    monkeypatch.undo()
    (again,) = await bind_udp("127.0.0.1", free)
    again.close()


async def test_a_larger_receive_buffer_is_asked_for():
    (small,) = await bind_udp("127.0.0.1", 0, receive_buffer=8_192)
    (large,) = await bind_udp("127.0.0.1", 0)
    with small, large:
        assert small.receive_buffer == 8_192
        assert large.receive_buffer > 100_000


# --- retry ---


@pytest.fixture
def mock_clock():
    return MockClock(autojump_threshold=0)


async def test_binding_is_tried_again_with_growing_waits_until_the_port_is_free(mock_clock, loopback):
    waits = []

    def on_retry(error, delay):
        assert error.errno == errno.EADDRINUSE
        waits.append(delay)
        if len(waits) == 5:
            loopback.close()

    retry = RetryPolicy(initial_delay=1.0, maximum_delay=6.0)
    start = trio.current_time()
    (bound,) = await bind_udp("127.0.0.1", loopback.port, retry=retry, on_retry=on_retry)
    bound.close()
    assert waits == [1.0, 2.0, 4.0, 6.0, 6.0]
    assert trio.current_time() - start == 19.0


async def test_retrying_ends_with_the_time_given_for_it(mock_clock, loopback):
    waits = []
    retry = RetryPolicy(total=4.0, initial_delay=1.0)
    with pytest.raises(ListenError, match="already in use"):
        await bind_udp("127.0.0.1", loopback.port, retry=retry, on_retry=lambda _, delay: waits.append(delay))
    assert waits == [1.0, 2.0, 1.0]


async def test_a_total_of_0_means_one_attempt(mock_clock, loopback):
    with pytest.raises(ListenError):
        await bind_udp("127.0.0.1", loopback.port, retry=RetryPolicy(total=0.0))


async def test_what_does_not_pass_by_itself_is_not_tried_again(monkeypatch):
    def forbidden(target, *_):
        raise udp._listen_error(target, OSError(errno.EACCES, "x"))

    monkeypatch.setattr(udp, "_bind_one", lambda _, target, __: forbidden(target))
    with pytest.raises(ListenError, match="no permission"):
        await bind_udp("127.0.0.1", 1, retry=RetryPolicy())


def test_the_wait_stays_bounded_after_any_number_of_failures():
    assert RetryPolicy().delay(10_000_000, 0.0) == 30.0


@pytest.mark.parametrize("wrong", [{"initial_delay": 0}, {"maximum_delay": float("inf")}, {"total": -1}])
def test_a_retry_policy_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RetryPolicy(**wrong)


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
    monkeypatch.setattr(udp, "MAX_UNSENT", 3)
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
