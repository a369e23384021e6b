"""``udp``: DTLS in front of a plain server, which sees each device at an address of its own for as long as it can."""

import errno
import os
import resource
import socket

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from endpoint.forward import upstreams as upstreams_module
from endpoint.forward.proxy import IDENTITY, decode_header
from endpoint.forward.udp import DOUBTED_AFTER
from endpoint.forward.upstreams import FILES_LEFT, PER_SOCKET, files_allowed, files_for
from sansdtls import ServerConfig
from tests.program.fronts import LONG, SLEEPY, PlainServer, in_front_of

# --- there and back ---


async def test_each_association_has_an_address_of_its_own_and_gets_its_own_answers():
    with PlainServer() as server:
        async with in_front_of(server.upstream) as front:
            one = await front.served.device(identity=b"meter-1").connect()
            two = await front.served.device(identity=b"meter-2").connect()
            seen: dict[bytes, tuple] = {}
            for device, name in ((one, b"one"), (two, b"two"), (one, b"one")):
                await device.send(name)
                data, address = await server.next()
                assert data == name
                assert seen.setdefault(name, address) == address
            assert seen[b"one"] != seen[b"two"]
            for name in (b"two", b"one"):
                await server.answer(b"for " + name, seen[name])
            assert (await one.receive(), await two.receive()) == (b"for one", b"for two")
            assert (front.figures["forwarded"], front.figures["replies"], front.figures["upstreams"]) == (
                3,
                2,
                2,
            )


async def test_there_is_no_socket_before_there_is_a_datagram():
    with PlainServer() as server:
        async with in_front_of(server.upstream) as front:
            device = await front.served.device().connect()
            await device.send(b"")
            assert front.figures["upstreams"] == 0


@pytest.mark.parametrize("host", ["::1", "127.0.0.1"])
async def test_the_server_may_be_at_either_version(host):
    with PlainServer(host) as server:
        async with in_front_of(server.upstream) as front:
            device = await front.served.device().connect()
            await device.send(b"hello")
            data, address = await server.next()
            await server.answer(b"heard " + data, address)
            assert await device.receive() == b"heard hello"


async def test_bind_is_the_address_that_the_server_sees():
    with PlainServer() as server:
        async with in_front_of(server.upstream, bind="127.0.0.2") as front:
            await (await front.served.device().connect()).send(b"x")
            assert (await server.next())[1][0] == "127.0.0.2"


async def test_a_burst_of_answers_comes_whole_and_in_order():
    with PlainServer() as server:
        async with in_front_of(server.upstream) as front:
            device = await front.served.device().connect()
            await device.send(b"x")
            _, address = await server.next()
            expected = [b"%d" % number for number in range(3 * PER_SOCKET + 1)]
            for data in expected:
                server.raw.sendto(data, address)
            assert [await device.receive() for _ in expected] == expected


async def test_more_devices_than_are_read_at_once_all_get_theirs(monkeypatch):
    monkeypatch.setattr(upstreams_module, "BATCH", 2)
    with PlainServer() as server:
        async with in_front_of(server.upstream) as front:
            devices = [await front.served.device().connect() for _ in range(3)]
            for device in devices:
                await device.send(b"x")
            addresses = [(await server.next())[1] for _ in devices]
            for address in addresses:
                server.raw.sendto(b"y", address)
            for device in devices:
                assert await device.receive() == b"y"


async def test_an_answer_that_is_too_large_is_dropped_and_counted_and_the_next_one_comes():
    with PlainServer() as server:
        async with in_front_of(server.upstream, config=ServerConfig(mtu=512)) as front:
            device = await front.served.device().connect()
            await device.send(b"x")
            _, address = await server.next()
            await server.answer(bytes(512), address)
            await server.answer(b"small", address)
            assert await device.receive() == b"small"
            assert front.figures["replies_dropped"] == {"too_large": 1}


async def test_what_comes_from_somebody_else_reaches_no_device():
    with PlainServer() as server, PlainServer() as stranger:
        async with in_front_of(server.upstream) as front:
            device = await front.served.device().connect()
            await device.send(b"x")
            _, address = await server.next()
            await stranger.answer(b"evil", address)
            await server.answer(b"good", address)
            assert await device.receive() == b"good"


# --- sleeping, moving, ending ---


async def test_a_device_that_slept_has_the_address_that_it_had(autojump_clock):
    with PlainServer() as server:
        async with in_front_of(server.upstream, config=SLEEPY, wake=False) as front:
            device = await front.served.roamer().connect()
            await device.send(b"register")
            _, before = await server.next()
            await trio.sleep(LONG)
            assert front.figures["asleep"] == 1
            await server.answer(b"too late", before)
            assert front.figures["replies_dropped"] == {"not_awake": 1}
            await device.send(b"good morning")
            data, after = await server.next()
            assert (data, after) == (b"good morning", before)
            assert front.figures["asleep"] == 0
            await server.answer(b"observed", after)
            assert await device.receive() == b"observed"
            await device.close()
            assert (front.figures["upstreams"], front.figures["asleep"]) == (0, 0)


async def test_an_answer_wakes_a_device_that_listens_and_it_sleeps_again_later(autojump_clock):
    with PlainServer() as server:
        async with in_front_of(server.upstream, config=SLEEPY) as front:
            device = await front.served.roamer().connect()
            await device.send(b"observe")
            _, address = await server.next()
            for number in range(3):
                await trio.sleep(LONG)
                assert front.figures["asleep"] == 1
                await server.answer(b"%d" % number, address)
                assert await device.receive() == b"%d" % number
                assert front.figures["asleep"] == 0
            assert (front.figures["replies"], front.figures["replies_dropped"]) == (3, {})
            assert front.served.engine.statistics()["server"]["thaws"] == 3


async def test_two_of_one_identity_wake_up_with_their_own_addresses(autojump_clock):
    with PlainServer() as server:
        async with in_front_of(server.upstream, config=SLEEPY) as front:
            devices = [await front.served.roamer().connect() for _ in range(2)]
            before = []
            for device in devices:
                await device.send(b"x")
                before.append((await server.next())[1])
            await trio.sleep(LONG)
            assert front.figures["asleep"] == 2
            for device, address in zip(reversed(devices), reversed(before), strict=True):
                await device.send(b"y")
                assert (await server.next())[1] == address


async def test_a_sleeper_without_connection_id_keeps_its_address_too(autojump_clock):
    with PlainServer() as server:
        async with in_front_of(server.upstream, config=SLEEPY) as front:
            device = await front.served.device().connect()
            await device.send(b"x")
            _, before = await server.next()
            await trio.sleep(LONG)
            await device.send(b"y")
            assert await server.next() == (b"y", before)


async def test_a_device_that_moves_keeps_its_address_at_the_server():
    with PlainServer() as server:
        async with in_front_of(server.upstream) as front:
            device = await front.served.roamer().connect()
            await device.send(b"x")
            _, before = await server.next()
            await device.move()
            await device.send(b"y")
            assert await server.next() == (b"y", before)
            await server.answer(b"there", before)
            assert await device.receive() == b"there"


async def test_the_socket_is_closed_with_the_association():
    with PlainServer() as server:
        async with in_front_of(server.upstream) as front:
            device = await front.served.device().connect()
            await device.send(b"x")
            await server.next()
            assert front.figures["upstreams"] == 1
            await device.close()
            assert front.figures["upstreams"] == 0


# --- bounds ---


async def test_beyond_max_upstreams_the_one_that_was_silent_longest_goes():
    with PlainServer() as server:
        async with in_front_of(server.upstream, max_upstreams=2) as front:
            one, two, three = [await front.served.device().connect() for _ in range(3)]
            seen = []
            for device in (one, two, one, three, one, two):
                await device.send(b"x")
                seen.append((await server.next())[1])
                assert front.figures["upstreams"] <= 2
            assert seen[0] == seen[2] == seen[4]  # one was never the oldest
            assert seen[1] != seen[5]  # two had to go for three


async def test_an_answer_that_was_delivered_counts_as_use():
    with PlainServer() as server:
        async with in_front_of(server.upstream, max_upstreams=2) as front:
            one, two, three = [await front.served.device().connect() for _ in range(3)]
            await one.send(b"x")
            _, first = await server.next()
            await two.send(b"x")
            await server.next()
            await server.answer(b"y", first)
            await three.send(b"x")
            await server.next()
            await one.send(b"x")
            assert (await server.next())[1] == first


async def test_a_silent_socket_is_closed_and_the_device_gets_another_one(autojump_clock):
    with PlainServer() as server:
        async with in_front_of(server.upstream, idle=60.0) as front:
            device, busy = [await front.served.device().connect() for _ in range(2)]
            await device.send(b"x")
            _, before = await server.next()
            await busy.send(b"x")
            _, kept = await server.next()
            await trio.sleep(40)
            await busy.send(b"x")
            await server.next()
            await trio.sleep(30)
            assert (front.figures["upstreams"], front.figures["closed_idle"]) == (1, 1)
            await busy.send(b"x")
            assert (await server.next())[1] == kept
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as squatter:
                squatter.bind(before)  # or the kernel might choose the same port again
                await device.send(b"y")
                assert (await server.next())[1] != before


async def test_never_keeps_it_until_the_end(autojump_clock):
    with PlainServer() as server:
        async with in_front_of(server.upstream, idle=None, config=SLEEPY) as front:
            device = await front.served.roamer().connect()
            await device.send(b"x")
            _, before = await server.next()
            await trio.sleep(10 * 86_400)
            await device.send(b"y")
            assert await server.next() == (b"y", before)


async def test_an_idle_socket_of_a_sleeper_is_closed_too(autojump_clock):
    with PlainServer() as server:
        async with in_front_of(server.upstream, idle=LONG + 60, config=SLEEPY) as front:
            device = await front.served.roamer().connect()
            await device.send(b"x")
            await server.next()
            await trio.sleep(LONG)
            assert front.figures["asleep"] == 1
            await trio.sleep(61)
            assert (front.figures["asleep"], front.figures["upstreams"]) == (0, 0)
            await device.send(b"y")
            assert (await server.next())[0] == b"y"


async def test_without_a_descriptor_the_oldest_socket_makes_room(monkeypatch):
    with PlainServer() as server:
        async with in_front_of(server.upstream) as front:
            one, two = [await front.served.device().connect() for _ in range(2)]
            await one.send(b"x")
            await server.next()
            real, left = socket.socket, [OSError(errno.EMFILE, os.strerror(errno.EMFILE))]

            def scarce(*arguments):
                if left:
                    raise left.pop()
                return real(*arguments)

            monkeypatch.setattr(socket, "socket", scarce)
            await two.send(b"y")
            assert (await server.next())[0] == b"y"
            assert front.figures["upstreams"] == 1


async def test_where_no_socket_can_be_made_that_is_told_once_and_counted():
    async with in_front_of("127.0.0.1:9", bind="192.0.2.1") as front:
        device = await front.served.device().connect()
        for _ in range(3):
            await device.send(b"x")
        assert front.told.facts == [
            (
                "forward_no_socket",
                {"upstream": "127.0.0.1:9", "reason": "cannot assign requested address"},
            )
        ]
        assert (front.figures["drops"], front.figures["upstreams"]) == ({"no_socket": 3}, 0)


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "allowed", "then"),
    [
        (1024, 524_288, 10_000, 10_000, 10_000 + FILES_LEFT),
        (1024, 4096, 10_000, 4096 - FILES_LEFT, 4096),
        (1024, 1024, 10, 10, 1024),
        (100, 100, 10, 1, 100),
        (1024, resource.RLIM_INFINITY, 10_000, 10_000, 10_000 + FILES_LEFT),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 10_000, 10_000, resource.RLIM_INFINITY),
    ],
)
def test_the_process_raises_its_own_limit_as_far_as_it_may(monkeypatch, soft, hard, wanted, allowed, then):
    limits = [soft, hard]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: limits.__setitem__(slice(None), both))
    expected = None if hard == resource.RLIM_INFINITY else max(1, hard - FILES_LEFT)
    assert files_allowed() == expected
    assert limits == [soft, hard]
    assert files_for(wanted) == allowed
    assert limits == [then, hard]


# --- trouble upstream ---


async def test_a_server_that_is_down_is_told_once_and_its_return_too():
    with PlainServer() as server:
        port, upstream = server.port, server.upstream
    async with in_front_of(upstream) as front:
        one, two = [await front.served.device().connect() for _ in range(2)]
        for device in (one, two, one, one):
            await device.send(b"x")
        assert front.told.facts == [("forward_down", {"upstream": upstream, "reason": "connection refused"})]
        assert front.figures["down"]
        assert front.figures["drops"] == {"refused": 4}
        with PlainServer(port=port) as server:
            # The very first one arrives, though the kernel still has a message about an earlier one.
            await one.send(b"back")
            data, address = await server.next()
            assert data == b"back"
            await server.answer(b"yes", address)
            assert await one.receive() == b"yes"
        assert front.told.facts[1:] == [("forward_up", {"upstream": upstream})]
        assert not front.figures["down"]
        assert len(front.recorder.live) == 2


async def test_a_server_that_never_answers_is_back_when_nothing_more_is_refused(autojump_clock):
    with PlainServer() as server:
        port, upstream = server.port, server.upstream
    async with in_front_of(upstream) as front:
        device = await front.served.device().connect()
        for _ in range(20):
            await device.send(b"x")
            await trio.sleep(1)
        assert front.told.events == ["forward_down"]
        with PlainServer(port=port):
            for _ in range(5):
                await device.send(b"x")
                await trio.sleep(1)
                assert front.figures["down"]
            await device.send(b"x")
            assert front.told.events == ["forward_down", "forward_up"]
            assert not front.figures["down"]


async def test_a_server_that_was_down_is_tried_again_where_nothing_is_sent_to_who_is_not_ready(
    autojump_clock,
):
    # A balancer sends nothing to an endpoint that is not ready; and without a datagram nobody knows that the server is back.
    with PlainServer() as server:
        upstream = server.upstream
    async with in_front_of(upstream) as front:
        device = await front.served.device().connect()
        for _ in range(3):
            await device.send(b"x")
            assert front.router.unusable() == ["sink"]
            await trio.sleep(DOUBTED_AFTER - 1)
            assert front.router.unusable() == ["sink"]
            await trio.sleep(2)
            assert front.router.unusable() == []
        assert front.figures["down"], "as far as anybody knows"


class Refusing:
    """A socket on which sending fails."""

    def __init__(self, *codes):
        self.codes = list(codes)
        self.sent = []

    def send(self, data):
        if self.codes:
            code = self.codes.pop(0)
            raise OSError(code, os.strerror(code))
        self.sent.append(data)


@pytest.mark.parametrize(
    ("codes", "reasons", "sent", "told"),
    [
        ([errno.EAGAIN], {"full": 1}, 0, []),
        ([errno.ENOBUFS], {"full": 1}, 0, []),
        ([errno.EMSGSIZE], {"too_large": 1}, 0, []),
        ([errno.ECONNREFUSED], {"refused": 1}, 1, ["forward_down"]),
        ([errno.ECONNREFUSED, errno.EAGAIN], {"refused": 1, "full": 1}, 0, ["forward_down"]),
        # No route: both attempts are about the same datagram.
        ([errno.ENETUNREACH, errno.ENETUNREACH], {"unreachable": 1}, 0, ["forward_down"]),
        ([errno.EPERM], {"EPERM": 1}, 0, ["forward_down"]),
    ],
)
async def test_what_the_kernel_refuses_is_counted_by_its_reason(codes, reasons, sent, told):
    with PlainServer() as server:
        async with in_front_of(server.upstream) as front:
            device = await front.served.device().connect()
            await device.send(b"x")
            (upstream,) = front.sink._upstreams
            real, fake = upstream.socket, Refusing(*codes)
            upstream.socket = fake
            await device.send(b"y")
            upstream.socket = real
            assert front.figures["drops"] == reasons
            assert fake.sent == [b"y"] * sent
            assert front.figures["forwarded"] == 1 + sent
            assert front.told.events == told


# --- names ---


class Names(trio.abc.HostnameResolver):
    """Answers what a test wants; ``None`` = there is no answer."""

    def __init__(self, answer=None):
        self.answer = answer
        self.families = []

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # noqa: A002
        self.families.append(family)
        if self.answer is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return socket.getaddrinfo(self.answer, port, family, type, proto, socket.AI_NUMERICHOST)

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


@pytest.fixture
def names():
    resolver = Names()

    def use():
        trio.socket.set_custom_hostname_resolver(resolver)
        return resolver

    return use


async def test_a_name_that_is_not_known_yet_is_looked_up_again_and_told_once(names, autojump_clock):
    resolver = names()
    with PlainServer() as server:
        async with in_front_of(f"backend.example:{server.port}") as front:
            device = await front.served.device().connect()
            await device.send(b"lost")
            await trio.sleep(20)
            assert front.told.facts == [
                (
                    "forward_unresolved",
                    {
                        "upstream": f"backend.example:{server.port}",
                        "reason": "name or service not known",
                    },
                )
            ]
            assert front.figures["drops"] == {"unresolved": 1}
            resolver.answer = "127.0.0.1"
            await trio.sleep(60)
            await device.send(b"found")
            assert (await server.next())[0] == b"found"


async def test_sockets_follow_a_name_that_moves(names, autojump_clock):
    resolver = names()
    resolver.answer = "127.0.0.1"
    with PlainServer() as before, PlainServer("127.0.0.3", before.port) as after:
        async with in_front_of(f"backend.example:{before.port}") as front:
            device = await front.served.device().connect()
            await device.send(b"one")
            assert (await before.next())[0] == b"one"
            resolver.answer = "127.0.0.3"
            await trio.sleep(61)
            await device.send(b"two")
            data, address = await after.next()
            assert data == b"two"
            await after.answer(b"here", address)
            assert await device.receive() == b"here"
            assert front.told.facts == [
                (
                    "forward_moved",
                    {"upstream": f"backend.example:{before.port}", "address": "127.0.0.3"},
                )
            ]


async def test_first_tells_the_server_that_a_name_moved_to_as_well(names, autojump_clock):
    resolver = names()
    resolver.answer = "127.0.0.1"
    with PlainServer() as before, PlainServer("127.0.0.3", before.port) as after:
        async with in_front_of(f"backend.example:{before.port}", proxy_protocol="first") as front:
            device = await front.served.device().connect()
            await device.send(b"one")
            await before.next()
            resolver.answer = "127.0.0.3"
            await trio.sleep(61)
            await device.send(b"two")
            assert decode_header((await after.next())[0])[1] == b"two"


async def test_a_name_that_moves_to_the_other_version_takes_new_sockets(names, autojump_clock):
    resolver = names()
    resolver.answer = "127.0.0.1"
    with PlainServer() as before, PlainServer("::1", before.port) as after:
        async with in_front_of(f"backend.example:{before.port}") as front:
            device = await front.served.device().connect()
            await device.send(b"one")
            await before.next()
            resolver.answer = "::1"
            await trio.sleep(61)
            await device.send(b"two")
            assert (await after.next())[0] == b"two"


async def test_a_name_is_looked_up_in_the_version_of_bind(names):
    resolver = names()
    resolver.answer = "127.0.0.1"
    async with in_front_of("backend.example:9", bind="127.0.0.1"):
        await wait_all_tasks_blocked()
    async with in_front_of("backend.example:9"):
        await wait_all_tasks_blocked()
    assert resolver.families == [socket.AF_INET, 0]


# --- the PROXY header ---


async def test_every_datagram_has_a_header_that_names_the_device_where_it_is():
    with PlainServer() as server:
        async with in_front_of(server.upstream, proxy_protocol="every") as front:
            device = await front.served.roamer().connect()
            for moves in (False, False, True):
                if moves:
                    await device.move()
                await device.send(b"x")
                header, data = decode_header((await server.next())[0])
                assert data == b"x"
                host, port = device.path.split(":")
                assert (str(header.source[0]), header.source[1]) == (host, int(port))
                assert header.destination[1] == front.served.port
                assert dict(header.tlvs)[IDENTITY] == b"meter-1"


async def test_first_sends_it_in_front_of_the_first_and_again_when_the_device_has_moved():
    with PlainServer() as server:
        async with in_front_of(server.upstream, proxy_protocol="first") as front:
            device = await front.served.roamer().connect()
            headers = []
            for number in range(4):
                if number == 2:
                    await device.move()
                await device.send(b"x")
                data, _ = await server.next()
                headers.append(data != b"x")
            assert headers == [True, False, True, False]
            await device.send(b"x")
            await server.answer(b"plain", (await server.next())[1])
            assert await device.receive() == b"plain"


async def test_first_sends_it_again_where_the_one_that_it_was_sent_to_may_not_have_it():
    with PlainServer() as server:
        port, upstream = server.port, server.upstream
    async with in_front_of(upstream, proxy_protocol="first") as front:
        device = await front.served.device().connect()
        await device.send(b"to nobody")
        assert front.figures["drops"] == {"refused": 1}
        with PlainServer(port=port) as server:
            for text in (b"one", b"two"):
                await device.send(text)
            assert decode_header((await server.next())[0])[1] == b"one"
            assert (await server.next())[0] == b"two"
        await device.send(b"to nobody")
        # Its successor is told by a message about an earlier datagram, while the next one is being sent.
        with PlainServer(port=port) as server:
            await device.send(b"three")
            assert decode_header((await server.next())[0])[1] == b"three"


async def test_first_sends_it_again_after_one_that_the_kernel_did_not_take():
    with PlainServer() as server:
        async with in_front_of(server.upstream, proxy_protocol="first") as front:
            device = await front.served.device().connect()
            await device.send(b"one")
            await server.next()
            (upstream,) = front.sink._upstreams
            upstream.header, real = None, upstream.socket
            upstream.socket = Refusing(errno.ENOBUFS)
            await device.send(b"two")
            await device.send(b"three")
            assert [decode_header(data)[1] for data in upstream.socket.sent] == [b"three"]
            upstream.socket = real


async def test_on_all_interfaces_the_header_names_the_address_that_was_asked():
    with PlainServer() as server:
        everywhere = "0.0.0.0"  # noqa: S104 - as meant
        async with in_front_of(server.upstream, proxy_protocol="every", address=everywhere) as front:
            device = await front.served.device(host="127.0.0.5").connect()
            await device.send(b"x")
            header, _ = decode_header((await server.next())[0])
            assert str(header.destination[0]) == "127.0.0.5"


async def test_an_identity_that_fits_no_header_is_counted_and_nothing_is_sent():
    with PlainServer() as server:
        async with in_front_of(server.upstream, proxy_protocol="every") as front:
            device = await front.served.device().connect()
            front.recorder.live[0].identity = bytes(65_535)
            await device.send(b"x")
            assert front.figures["drops"] == {"too_large": 1}
            assert server.nothing_came()
            front.recorder.live[0].identity = b"meter-1"
