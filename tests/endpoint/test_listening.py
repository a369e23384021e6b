"""The service's sockets: handed down where they fit, bound where there are none, refused where they contradict."""

import os
import socket

import pytest
import trio

from endpoint.listening import STORED_SOCKET, HandedSocket, adopt, inherited_sockets, listen, places
from endpoint.sockets import UdpSocket
from endpoint.systemd import Descriptor, SupervisionError
from endpoint.tables.listen import Listen
from endpoint.udp import ListenError

needs_ipv6 = pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")


def bound(address="127.0.0.1", port=0, *, name="dtls", family=socket.AF_INET):
    """A descriptor as a service manager hands it down; ownership goes with it."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((address, port))
    return Descriptor(sock.detach(), name)


def number_is_open(number):
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


async def test_a_socket_that_was_handed_down_is_used_with_what_has_come_meanwhile():
    handed = adopt(bound())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        device.sendto(b"while nobody ran", ("127.0.0.1", handed.udp.port))
    listeners = await listen(Listen(port=handed.udp.port, receive_buffer=65_536), [handed])
    (udp,) = listeners.sockets
    with udp:
        assert udp is handed.udp
        assert listeners.bound_here == ()
        assert listeners.given_up == ()
        assert udp.receive_buffer >= 65_536
        await udp.wait_readable()
        assert [data for data, _ in udp.drain(9)] == [b"while nobody ran"]


async def test_any_port_means_the_port_of_the_socket_that_was_handed_down():
    handed = adopt(bound())
    listeners = await listen(Listen(port=0), [handed])
    with listeners.sockets[0] as udp:
        assert udp is handed.udp


async def test_without_one_a_socket_is_bound_and_may_be_kept_for_the_next_process():
    listeners = await listen(Listen(port=0))
    with listeners.sockets[0] as udp:
        assert listeners.bound_here == (udp,)


async def test_one_that_an_earlier_process_bound_is_used_again_and_kept_again():
    handed = adopt(bound(name=STORED_SOCKET))
    listeners = await listen(Listen(port=handed.udp.port), [handed])
    with listeners.sockets[0] as udp:
        assert listeners.bound_here == (udp,) == (handed.udp,)


async def test_one_that_the_configuration_names_no_longer_is_closed():
    handed = adopt(bound(name=STORED_SOCKET))
    text = handed.udp.local_text
    listeners = await listen(Listen(address="127.0.0.2", port=handed.udp.port), [handed])
    with listeners.sockets[0] as udp:
        assert udp.address == "127.0.0.2"
        assert listeners.given_up == (text,)
        assert handed.udp.fileno() == -1


async def test_a_managers_socket_with_another_address_is_a_contradiction():
    handed = adopt(bound())
    port = handed.udp.port
    with pytest.raises(SupervisionError) as caught:
        await listen(Listen(address="127.0.0.2", port=port), [handed])
    assert str(caught.value) == (
        f"LISTEN_FDS: {handed.descriptor} is bound to 127.0.0.1:{port}, but listen.address and listen.port say "
        f"127.0.0.2:{port}; remedy: make them agree with ListenDatagram= in the socket unit"
    )
    assert handed.udp.fileno() == -1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(("127.0.0.2", port))  # what was bound for the configuration is given back


async def test_another_port_is_a_contradiction_too():
    handed = adopt(bound())
    other = bound()
    with socket.socket(fileno=other.number) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(SupervisionError, match=f"listen.port say 127.0.0.1:{port};"):
        await listen(Listen(port=port), [handed])


async def test_when_binding_fails_what_was_handed_down_is_closed():
    handed = adopt(bound(name=STORED_SOCKET))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ListenError):
            await listen(Listen(port=taken.getsockname()[1]), [handed])
    assert handed.udp.fileno() == -1


@needs_ipv6
async def test_all_interfaces_is_matched_as_it_is_bound():
    handed = adopt(bound("::", family=socket.AF_INET6))
    listeners = await listen(Listen(address="::", port=handed.udp.port), [handed])
    with listeners.sockets[0] as udp:
        assert udp is handed.udp
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as device:
            device.sendto(b"x", ("::1", udp.port))
            await udp.wait_readable()
            ((_, address),) = udp.drain(9)
            assert udp.local_text_for(address) == f"[::1]:{udp.port}"


async def test_of_a_name_with_two_addresses_one_may_be_handed_down_and_the_other_bound(monkeypatch):
    handed = adopt(bound("127.0.0.2"))
    port = handed.udp.port

    async def two_addresses(host, at, **_):
        return [
            (socket.AF_INET, socket.SOCK_DGRAM, 17, "", (address, at))
            for address in ("127.0.0.1", "127.0.0.2")
        ]

    monkeypatch.setattr(trio.socket, "getaddrinfo", two_addresses)
    listeners = await listen(Listen(address="meters.example", port=port), [handed])
    first, second = listeners.sockets
    with first, second:
        assert second is handed.udp
        assert listeners.bound_here == (first,)


# --- what is refused -------------------------------------------------------------------------------


def stream():
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.bind(("127.0.0.1", 0))
    return sock.detach()


def unix():
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    other.close()
    return one.detach()


def unbound():
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()


def connected():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(("127.0.0.1", 9))
    return sock.detach()


def no_socket():
    return os.memfd_create("x")


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (stream, "a stream socket"),
        (unix, "a socket of another family"),
        (unbound, "not bound to a port"),
        (connected, "connected to one peer"),
        (no_socket, "no socket"),
    ],
)
def test_what_is_no_bound_udp_socket_is_refused_and_closed(make, what):
    descriptor = Descriptor(make(), "web\n")
    with pytest.raises(SupervisionError) as caught:
        adopt(descriptor)
    assert str(caught.value) == (
        f"LISTEN_FDS: descriptor {descriptor.number} (web\\x0a) is {what}, and a bound UDP socket is needed; "
        "remedy: ListenDatagram= in the socket unit"
    )
    assert not number_is_open(descriptor.number)


def test_all_are_adopted_or_none():
    right, wrong, rest = bound(), Descriptor(stream(), "x"), bound()
    with pytest.raises(SupervisionError, match="stream socket"):
        inherited_sockets([right, wrong, rest])
    assert not any(number_is_open(one.number) for one in (right, wrong, rest))
    one, two = inherited_sockets([bound(), bound(name=STORED_SOCKET)])
    with one.udp, two.udp:
        assert (one.ours, two.ours) == (False, True)


# --- the order -------------------------------------------------------------------------------------


class At:
    def __init__(self, local_text):
        self.local_text = local_text


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        ("A B", "", "A B"),
        ("A B", "A B", "A B"),
        ("A B", "B A", "B A"),
        ("A B C", "C", "C A B"),
        ("A C", "A B", "A C"),  # B's paths go through C, which most likely is B with another port
        ("C B", "A B", "C B"),
        ("B", "A B", "B"),
    ],
)
def test_sockets_stay_at_the_indices_by_which_paths_name_them(now, before, expected):
    sockets: list[UdpSocket] = [At(text) for text in now.split()]  # type: ignore[misc]
    ordered = places(sockets, before.split()).values()
    assert " ".join(udp.local_text for udp in ordered) == expected


def test_a_handed_socket_knows_where_it_comes_from():
    with UdpSocket(socket.socket(fileno=bound().number)) as udp:
        assert not HandedSocket(udp, Descriptor(3, "dtls")).ours
