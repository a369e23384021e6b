"""serve_dtls and open_dtls with each other: the embedding API as its users meet it."""

import contextlib
import errno
import logging
import socket
from types import SimpleNamespace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from endpoint import (
    AssociationEnded,
    DictKeyStore,
    DtlsChannel,
    HandshakeFailed,
    ListenError,
    QuotaPolicy,
    open_dtls,
    opening,
    serve_dtls,
)
from sansdtls import (
    AlertDescription,
    CipherSuite,
    ClientConfig,
    ConfigError,
    IdleTimeout,
    KeysExhausted,
    Limits,
    MessageTooLarge,
    PeerAlert,
    PeerClose,
    RetransmitPolicy,
    ServerConfig,
)
from tests.endpoint.devices import IDENTITY, KEY, KEYS, Device
from tests.ports import free_port

CLIENT = ClientConfig(psk_identity=IDENTITY, psk_key=KEY)
RECORDS = 62
"""Datagrams that go out under ``max_sealed_records=64``: the others are Finished and close_notify."""


async def echo(channel):
    async for data in channel:
        await channel.send(data)


class Keeper:
    """A handler that keeps its channel open and hands it to the test."""

    def __init__(self):
        self.sender, self.channels = trio.open_memory_channel[DtlsChannel](10)
        self.ended = []

    async def __call__(self, channel):
        await self.sender.send(channel)
        try:
            await trio.sleep_forever()
        finally:
            self.ended.append(channel.remote)

    async def next(self):
        with trio.fail_after(30):
            return await self.channels.receive()


@contextlib.asynccontextmanager
async def served(handler, *, config=None, keystore=KEYS, host="127.0.0.1", **options):
    """A server on loopback; gives its port."""
    async with trio.open_nursery() as nursery:
        (bound,) = await nursery.start(
            lambda task_status: serve_dtls(
                handler,
                0,
                config=config or ServerConfig(),
                keystore=keystore,
                host=host,
                task_status=task_status,
                **options,
            )
        )
        yield bound.port
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def pair(*, config=None, client=CLIENT, **options):
    """Both ends of one association."""
    keeper = Keeper()
    async with (
        served(keeper, config=config, **options) as port,
        await open_dtls("127.0.0.1", port, config=client) as near,
    ):
        yield near, await keeper.next()


# --- data ---


async def test_what_is_sent_is_echoed_and_both_ends_know_each_other():
    async with pair() as (near, far):
        await near.send(b"21.4")
        assert await far.receive() == b"21.4"
        await far.send(b"thanks")
        assert await near.receive() == b"thanks"
        assert near.identity == far.identity == IDENTITY
        assert near.key_index == far.key_index == 0
        assert near.local == far.remote
        assert near.remote == far.local
        assert near.negotiated == far.negotiated
        assert isinstance(near.negotiated.cipher_suite, CipherSuite)
        assert near.max_payload > 1000
        assert near.export_keying_material("EXPERIMENTAL x", 32) == far.export_keying_material(
            "EXPERIMENTAL x", 32
        )
        assert repr(far) == f"<DtlsChannel of b'meter-1' to {near.local}, open>"
        assert near.statistics.connection.records_sent >= 1


async def test_the_example_of_the_manual_works():
    async with served(echo) as port, await open_dtls("127.0.0.1", port, config=CLIENT) as channel:
        for text in (b"one", b"two"):
            await channel.send(text)
            assert await channel.receive() == text


async def test_too_large_a_datagram_is_the_callers_mistake_and_changes_nothing():
    async with pair() as (near, far):
        for channel in (near, far):
            with pytest.raises(MessageTooLarge):
                await channel.send(bytes(channel.max_payload + 1))
        await near.send(bytes(near.max_payload))
        assert len(await far.receive()) == near.max_payload


async def test_several_tasks_may_receive_on_either_end():
    async with pair() as (near, far):
        for sender, receiver in ((near, far), (far, near)):
            got: list[bytes] = []

            async def take(receiver=receiver, got=got):
                got.append(await receiver.receive())

            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(take)
                await wait_all_tasks_blocked()
                for number in range(3):
                    await sender.send(b"%d" % number)
            assert sorted(got) == [b"0", b"1", b"2"]


async def test_a_cancelled_receive_loses_nothing():
    async with pair() as (near, far):
        for sender, receiver in ((near, far), (far, near)):
            with trio.move_on_after(0):
                await receiver.receive()
            await sender.send(b"kept")
            assert await receiver.receive() == b"kept"


async def test_a_cancelled_send_sends_nothing():
    async with pair() as (near, far):
        for channel in (near, far):
            before = channel.statistics.connection.records_sent
            with trio.CancelScope() as scope:
                scope.cancel()
                await channel.send(b"never")
            assert scope.cancelled_caught
            assert channel.statistics.connection.records_sent == before


async def test_a_handler_that_does_not_receive_loses_the_newest_datagrams_and_can_see_how_many():
    async with pair(buffer=3) as (near, far):
        for number in range(5):
            await near.send(b"%d" % number)
        await wait_all_tasks_blocked()
        assert far.statistics.datagrams_dropped == 2
        assert [await far.receive() for _ in range(3)] == [b"0", b"1", b"2"]
        assert near.statistics.datagrams_dropped == 0


async def test_datagrams_wait_for_a_client_that_is_not_receiving():
    async with pair() as (near, far):
        for number in range(20):
            await far.send(b"%d" % number)
        assert [await near.receive() for _ in range(20)] == [b"%d" % number for number in range(20)]


async def test_data_quotas_apply_to_channels_too():
    async with pair(quotas=QuotaPolicy(datagrams_per_second=0.001, datagram_burst=1)) as (near, far):
        await near.send(b"1")
        await near.send(b"2")
        assert await far.receive() == b"1"
        await wait_all_tasks_blocked()
        assert far.statistics.connection.records_received >= 2


# --- the end, as in the table of endpoint.channel ---


async def test_after_the_client_closed_the_server_reads_to_the_end_and_can_send_no_more():
    async with pair() as (near, far):
        await near.send(b"last words")
        await near.aclose()
        await wait_all_tasks_blocked()
        assert await far.receive() == b"last words"
        with pytest.raises(trio.EndOfChannel):
            await far.receive()
        with pytest.raises(AssociationEnded, match="closed by the peer") as caught:
            await far.send(b"x")
        assert caught.value.cause == PeerClose()
        assert isinstance(caught.value, trio.BrokenResourceError)
        assert "ended" in repr(far)
        await far.aclose()


async def test_after_the_server_closed_the_client_reads_to_the_end_and_can_send_no_more():
    async with pair() as (near, far):
        await far.send(b"last words")
        await far.aclose()
        assert await near.receive() == b"last words"
        with pytest.raises(trio.EndOfChannel):
            await near.receive()
        with pytest.raises(AssociationEnded, match="closed by the peer"):
            await near.send(b"x")


async def test_after_closing_it_oneself_nothing_goes_any_more():
    async with pair() as (near, far):
        await near.send(b"unread")
        await far.send(b"unread")
        await wait_all_tasks_blocked()
        for channel in (near, far):
            await channel.aclose()
            await channel.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await channel.receive()
            with pytest.raises(trio.ClosedResourceError):
                await channel.send(b"x")
            assert "closed" in repr(channel)


@pytest.mark.parametrize("end", [0, 1])
async def test_closing_wakes_every_task_that_waits(end):
    async with pair() as ends:
        channel = ends[end]
        woken = []

        async def wait():
            with pytest.raises(trio.ClosedResourceError):
                await channel.receive()
            woken.append(channel)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            await channel.aclose()
        assert len(woken) == 2


async def test_a_channel_can_be_closed_while_it_is_being_cancelled():
    async with pair() as (near, far):
        await trio.aclose_forcefully(near)
        with pytest.raises(trio.EndOfChannel):
            await far.receive()


async def test_a_client_that_falls_silent_breaks_the_servers_channel(autojump_clock):
    config = ServerConfig(limits=Limits(idle_timeout=60.0))
    async with pair(config=config) as (near, far):
        with pytest.raises(AssociationEnded, match="nothing was heard for 60 seconds") as caught:
            await far.receive()
        assert caught.value.cause == IdleTimeout(60.0)
        with pytest.raises(AssociationEnded):
            await far.send(b"x")
        with pytest.raises(trio.EndOfChannel):  # the server said goodbye
            await near.receive()


async def test_a_server_that_falls_silent_breaks_the_clients_channel_while_it_receives(autojump_clock):
    client = ClientConfig(psk_identity=IDENTITY, psk_key=KEY, limits=Limits(idle_timeout=5.0))
    async with pair(client=client) as (near, _far):
        start = trio.current_time()
        with pytest.raises(AssociationEnded, match="nothing was heard for 5 seconds"):
            await near.receive()
        assert trio.current_time() - start == pytest.approx(5.0, abs=0.01)


@pytest.mark.parametrize("end", [0, 1])
async def test_keys_that_are_used_up_end_the_channel_for_senders_and_receivers(end):
    limits = Limits(max_sealed_records=64)
    client = ClientConfig(psk_identity=IDENTITY, psk_key=KEY, limits=limits)
    async with pair(config=ServerConfig(limits=limits), client=client) as ends:
        sender, receiver = ends[end], ends[1 - end]
        causes = []

        async def wait():
            with pytest.raises(AssociationEnded) as caught:
                await sender.receive()
            causes.append(caught.value.cause)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            for number in range(RECORDS):
                await sender.send(b"%d" % number)
        assert causes == [KeysExhausted("seal")]
        with pytest.raises(AssociationEnded, match="the keys are used up"):
            await sender.send(b"one too many")
        assert [data async for data in receiver] == [b"%d" % number for number in range(RECORDS)]


async def test_sending_with_used_up_keys_is_an_error_before_anybody_has_received_the_cause():
    client = ClientConfig(psk_identity=IDENTITY, psk_key=KEY, limits=Limits(max_sealed_records=64))
    async with pair(client=client) as (near, _far):
        for _ in range(RECORDS):
            await near.send(b"x")
        with pytest.raises(trio.BrokenResourceError, match="has ended"):
            await near.send(b"one too many")


async def test_icmp_errors_do_not_end_a_clients_receive(monkeypatch):
    errors = [errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.EAGAIN]

    class Noisy(socket.socket):
        def recv(self, *arguments):
            if armed and errors:
                raise OSError(errors.pop(0), "told to")
            return super().recv(*arguments)

    armed = False
    give_sockets_to_clients(monkeypatch, Noisy)
    async with pair() as (near, far):
        armed = True
        await far.send(b"x")
        assert await near.receive() == b"x"
        assert errors == []


async def test_a_device_that_lost_its_state_gets_a_new_channel_and_breaks_the_old_one():
    keeper = Keeper()
    async with served(keeper) as port:
        with Device(port) as device:
            await device.connect()
            old = await keeper.next()
            await device.connect()
            new = await keeper.next()
            with pytest.raises(AssociationEnded, match="the peer began anew") as caught:
                await old.receive()
            assert caught.value.cause == PeerClose(replaced=True)
            await old.aclose()  # does not disturb the new one
            await device.send(b"x")
            assert await new.receive() == b"x"


async def test_the_end_of_the_server_says_goodbye_to_every_client():
    keeper = Keeper()
    async with served(keeper) as port:
        near = await open_dtls("127.0.0.1", port, config=CLIENT)
        await keeper.next()
    with pytest.raises(trio.EndOfChannel):
        await near.receive()
    await near.aclose()
    assert keeper.ended == [near.local]


# --- handlers ---


async def test_a_handler_that_returns_closes_its_channel():
    async def say_once(channel):
        await channel.send(b"hello")

    async with served(say_once) as port, await open_dtls("127.0.0.1", port, config=CLIENT) as near:
        assert await near.receive() == b"hello"
        with pytest.raises(trio.EndOfChannel):
            await near.receive()


async def test_a_handler_that_raises_ends_the_server_as_with_trios_own():
    async def crash(channel):
        await channel.receive()
        raise ValueError("the program's bug")

    with pytest.RaisesGroup(ValueError, flatten_subgroups=True):
        async with served(crash) as port, await open_dtls("127.0.0.1", port, config=CLIENT) as near:
            await near.send(b"x")
            await trio.sleep_forever()


async def test_handlers_in_a_nursery_of_ones_own_notice_the_end_of_the_server():
    noticed = []

    async def handler(channel):
        try:
            await channel.receive()
        except trio.ClosedResourceError:
            noticed.append(channel.remote)

    async with trio.open_nursery() as handlers, served(handler, handler_nursery=handlers) as port:
        near = await open_dtls("127.0.0.1", port, config=CLIENT)
        await wait_all_tasks_blocked()
    assert noticed == [near.local]
    with pytest.raises(trio.EndOfChannel):
        await near.receive()
    await near.aclose()


async def test_without_a_nursery_for_its_handler_a_new_association_is_closed(caplog):
    async with trio.open_nursery() as gone:
        pass
    async with (
        served(echo, handler_nursery=gone) as port,
        await open_dtls("127.0.0.1", port, config=CLIENT) as near,
    ):
        with pytest.raises(trio.EndOfChannel):
            await near.receive()
    assert "observer failed" in caplog.text


# --- serving ---


async def test_a_port_in_use_is_a_listen_error():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ListenError, match="already in use"):
            await serve_dtls(
                echo, taken.getsockname()[1], config=ServerConfig(), keystore=DictKeyStore(), host="127.0.0.1"
            )


async def test_a_failed_handshake_is_logged_with_its_cause_and_a_flood_of_them_is_not(autojump_clock, caplog):
    caplog.set_level(logging.WARNING, "endpoint")
    config = ServerConfig(retransmit=RetransmitPolicy(handshake_timeout=5.0))
    async with served(echo, config=config) as port:
        with pytest.raises(HandshakeFailed):
            await open_dtls("127.0.0.1", port, config=ClientConfig(psk_identity=b"\n" * 200, psk_key=KEY))
        assert "the identity is unknown; 0 like it not shown" in caplog.text
        assert "\\n" * 64 + "'" in caplog.text
        for _ in range(20):
            with Device(port) as device:
                await device.knock()
        await trio.sleep(6)
        assert len(caplog.records) == 1 + 10
        with Device(port) as device:
            await device.knock()
        await trio.sleep(6)
        assert "10 like it not shown" in caplog.text


# --- opening ---


async def test_a_wrong_key_is_named_by_the_clients_error(autojump_clock):
    async with served(echo) as port:
        wrong = ClientConfig(psk_identity=IDENTITY, psk_key=b"not the key")
        with pytest.raises(HandshakeFailed) as caught:
            await open_dtls("127.0.0.1", port, config=wrong)
        assert str(caught.value) == (
            f"127.0.0.1:{port}: the handshake failed: the peer sent the alert decrypt_error: "
            "it does not know the identity, or the key is wrong"
        )
        assert caught.value.cause == PeerAlert(AlertDescription.DECRYPT_ERROR, authenticated=False)


async def test_nothing_in_common_is_named_by_the_clients_error(autojump_clock):
    config = ServerConfig(cipher_suites=[CipherSuite.TLS_PSK_WITH_AES_128_CCM_8])
    client = ClientConfig(
        psk_identity=IDENTITY, psk_key=KEY, cipher_suites=[CipherSuite.TLS_PSK_WITH_AES_256_GCM_SHA384]
    )
    async with served(echo, config=config) as port:
        with pytest.raises(HandshakeFailed, match="alert handshake_failure"):
            await open_dtls("127.0.0.1", port, config=client)


async def test_a_closed_port_is_refused_soon_not_at_the_end_of_all_retransmissions(autojump_clock):
    port = free_port()
    start = trio.current_time()
    with pytest.raises(ConnectionRefusedError, match=rf"^127\.0\.0\.1:{port}: connection refused"):
        await open_dtls("127.0.0.1", port, config=CLIENT)
    assert trio.current_time() - start < 1.5


async def test_no_answer_at_all_is_a_timeout_after_the_configured_tries(autojump_clock):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        start = trio.current_time()
        patience = RetransmitPolicy(initial_timeout=1.0, max_retransmissions=2)
        client = ClientConfig(psk_identity=IDENTITY, psk_key=KEY, retransmit=patience)
        with pytest.raises(TimeoutError, match="no answer"):
            await open_dtls("127.0.0.1", silent.getsockname()[1], config=client)
        assert trio.current_time() - start == pytest.approx(7.0, abs=0.1)


async def test_a_handshake_given_up_leaves_no_socket_behind(autojump_clock):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        with trio.move_on_after(0.5) as scope:
            await open_dtls("127.0.0.1", silent.getsockname()[1], config=CLIENT)
        assert scope.cancelled_caught
    # pytest turns the ResourceWarning of a socket that was left open into a failure.


def give_sockets_to_clients(monkeypatch, kind):
    """Let open_dtls make sockets of this class; trio and the server keep the real one."""
    monkeypatch.setattr(opening, "socket", SimpleNamespace(**{**vars(socket), "socket": kind}))


async def test_an_unreachable_network_is_named(monkeypatch):
    class Unreachable(socket.socket):
        def connect(self, target):
            raise OSError(errno.ENETUNREACH, "Network is unreachable")

    give_sockets_to_clients(monkeypatch, Unreachable)
    with pytest.raises(OSError, match=r"192\.0\.2\.1:5684: Network is unreachable") as caught:
        await open_dtls("192.0.2.1", 5684, config=CLIENT)
    assert caught.value.errno == errno.ENETUNREACH


async def test_what_the_kernel_says_while_sending_is_part_of_the_timeouts_message(
    autojump_clock, monkeypatch
):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))

        class Forbidden(socket.socket):
            def send(self, *_):
                raise OSError(errno.EPERM, "Operation not permitted")

        give_sockets_to_clients(monkeypatch, Forbidden)
        patience = RetransmitPolicy(max_retransmissions=1)
        client = ClientConfig(psk_identity=IDENTITY, psk_key=KEY, retransmit=patience)
        with pytest.raises(TimeoutError, match=r"no answer; the last error was: .*Operation not permitted"):
            await open_dtls("127.0.0.1", silent.getsockname()[1], config=client)


def resolving_to(*addresses):
    async def getaddrinfo(host, port, **_):
        await trio.lowlevel.checkpoint()
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (address, port)) for address in addresses]

    return getaddrinfo


async def test_the_next_address_is_tried_where_one_is_refused(autojump_clock, monkeypatch):
    async with served(echo) as port:
        monkeypatch.setattr(trio.socket, "getaddrinfo", resolving_to("127.0.0.7", "127.0.0.1"))
        async with await open_dtls("sensor.example", port, config=CLIENT) as near:
            assert near.remote == f"127.0.0.1:{port}"


async def test_where_no_address_answers_each_ones_reason_is_given(autojump_clock, monkeypatch):
    port = free_port()
    monkeypatch.setattr(trio.socket, "getaddrinfo", resolving_to("127.0.0.7", "127.0.0.1"))
    with pytest.raises(
        OSError, match=r"no address of 'sensor\.example' answers: 127\.0\.0\.7:.*127\.0\.0\.1:"
    ):
        await open_dtls("sensor.example", port, config=CLIENT)


async def test_a_key_refused_by_one_address_is_not_tried_at_the_next(autojump_clock, monkeypatch):
    async with served(echo) as port:
        monkeypatch.setattr(trio.socket, "getaddrinfo", resolving_to("127.0.0.1", "127.0.0.7"))
        with pytest.raises(HandshakeFailed):
            await open_dtls("sensor.example", port, config=ClientConfig(psk_identity=IDENTITY, psk_key=b"?"))


async def test_a_name_that_does_not_resolve_is_an_os_error():
    with pytest.raises(socket.gaierror):
        await open_dtls("no-such-host.invalid", 5684, config=CLIENT)


async def test_a_client_needs_its_key_beforehand():
    with pytest.raises(ConfigError, match="psk_key"):
        await open_dtls("127.0.0.1", 5684, config=ClientConfig(psk_identity=IDENTITY))


async def test_a_server_that_restarts_while_a_client_sends_is_no_error_for_send():
    keeper = Keeper()
    async with served(keeper) as port:
        near = await open_dtls("127.0.0.1", port, config=CLIENT)
        await keeper.next()
    # Its goodbye is not read: to the client the server has just vanished, and ICMP says so.
    for _ in range(3):
        await near.send(b"anybody?")
        await wait_all_tasks_blocked()
    await near.aclose()


async def test_send_waits_while_the_kernel_has_no_room(monkeypatch):
    room = trio.Event()
    room.set()

    class SometimesFull(socket.socket):
        def send(self, *arguments):
            if not room.is_set():
                raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
            return super().send(*arguments)

    async def wait_for_room(_):
        await room.wait()

    give_sockets_to_clients(monkeypatch, SometimesFull)
    monkeypatch.setattr(trio.lowlevel, "wait_writable", wait_for_room)
    async with pair() as (near, far):
        room = trio.Event()
        await near.send(b"1")  # taken, but not yet by the kernel
        sent = near.statistics.connection.records_sent
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send, b"2")
            nursery.start_soon(near.send, b"3")
            await wait_all_tasks_blocked()
            assert near.statistics.connection.records_sent == sent
            room.set()
        assert sorted([await far.receive() for _ in range(3)]) == [b"1", b"2", b"3"]
