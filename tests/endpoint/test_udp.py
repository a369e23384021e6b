"""Binding: every address, clear errors, and patience. Loopback only."""

import errno
import socket

import pytest
import trio
from trio.testing import MockClock

from endpoint import udp
from endpoint.udp import ListenError, RetryPolicy, address_text, bind_udp
from tests.ports import free_port

needs_ipv6 = pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")


@pytest.fixture
async def loopback():
    (bound,) = await bind_udp("127.0.0.1", 0)
    with bound:
        yield bound


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
    free = free_port()

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
