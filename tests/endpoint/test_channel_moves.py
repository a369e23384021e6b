"""Channels whose clients are behind a NAT that forgets: new addresses, keep-alives, connection IDs."""

import contextlib
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from endpoint import open_dtls, serve_dtls
from sansdtls import (
    ClientConfig,
    ConfigError,
    ConnectionIdPolicy,
    PathPolicy,
    PeerClose,
    ReturnRoutability,
    ServerConfig,
)
from tests.endpoint.devices import IDENTITY, KEY, KEYS
from tests.endpoint.test_channel import CLIENT, Keeper, pair, served

PROVES = ConnectionIdPolicy(length=0)
TRUSTED = ConnectionIdPolicy(length=0, return_routability=ReturnRoutability.OFF)


class Nat:
    """Stands between one client and its server, and may forget what it knew."""

    def __init__(self, server_port):
        self.inside = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        self.outside = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        self.server = ("127.0.0.1", server_port)
        self.client: Any = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.inside.close()
        self.outside.close()

    async def run(self, task_status):
        await self.inside.bind(("127.0.0.1", 0))
        task_status.started(self.inside.getsockname()[1])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.outward)
            nursery.start_soon(self.inward)

    async def outward(self):
        while True:
            data, self.client = await self.inside.recvfrom(65_535)
            await self.outside.sendto(data, self.server)

    async def inward(self):
        while True:
            with contextlib.suppress(trio.ClosedResourceError):  # a new one is there then
                data = await self.outside.recv(65_535)
                await self.inside.sendto(data, self.client)

    async def forget(self):
        """From now on the client has another port; what goes to the old one is lost."""
        before, self.outside = self.outside, trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        await self.outside.bind(("127.0.0.1", 0))
        before.close()

    @property
    def port(self):
        return self.outside.getsockname()[1]


@contextlib.asynccontextmanager
async def behind_nat(policy, *, config=None, **options):
    """Both channels, and the NAT between them."""
    keeper = Keeper()
    async with served(keeper, config=config) as port:
        with Nat(port) as nat:
            async with trio.open_nursery() as nursery:
                through = await nursery.start(nat.run)
                client = ClientConfig(psk_identity=IDENTITY, psk_key=KEY, connection_id=policy)
                async with await open_dtls("127.0.0.1", through, config=client, **options) as near:
                    yield near, await keeper.next(), nat
                nursery.cancel_scope.cancel()


@pytest.mark.parametrize("policy", [PROVES, TRUSTED])
async def test_a_channel_goes_on_when_a_nat_gives_its_client_another_port(policy):
    async with behind_nat(policy) as (near, far, nat):
        await near.send(b"1")
        assert await far.receive() == b"1"
        before = far.remote
        await nat.forget()
        await near.send(b"2")
        assert await far.receive() == b"2"
        await far.send(b"towards the new port, if not much is known of it yet")
        assert await near.receive() == b"towards the new port, if not much is known of it yet"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.receive)  # drives what the server asks of the new path
            with trio.fail_after(30):
                while far.remote == before:
                    await near.send(b"x")
                    await far.receive()
            await far.send(b"end")
        assert far.remote == f"127.0.0.1:{nat.port}" != before
        assert near.local != far.remote
        await near.aclose()
        with pytest.raises(trio.EndOfChannel):
            await far.receive()


async def test_without_connection_ids_a_channel_does_not_survive_that(autojump_clock):
    async with behind_nat(None) as (near, far, nat):
        await nat.forget()
        await near.send(b"x")
        with trio.move_on_after(10) as waiting:
            await far.receive()
        assert waiting.cancelled_caught


async def test_both_ends_know_which_connection_ids_are_in_use():
    client = ClientConfig(
        psk_identity=IDENTITY, psk_key=KEY, connection_id=ConnectionIdPolicy(length=4, prefix=b"me")
    )
    async with pair(client=client) as (near, far):
        assert near.connection_id == far.peer_connection_id
        assert near.connection_id.startswith(b"me")
        assert near.peer_connection_id == far.connection_id
        assert len(far.connection_id) == 8
        await near.send(b"x")
        assert await far.receive() == b"x"
        await far.send(b"y")
        assert await near.receive() == b"y"
    async with pair() as (near, far):
        assert near.connection_id == near.peer_connection_id == b""
        assert far.connection_id == far.peer_connection_id == b""


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (ServerConfig(freeze_after=300.0), "ServerConfig.freeze_after"),
        (
            ServerConfig(connection_id=ConnectionIdPolicy(path_policy=PathPolicy.APPLICATION)),
            "ServerConfig.connection_id: path_policy",
        ),
    ],
)
async def test_what_a_handler_cannot_do_is_refused_by_name(config, field):
    with pytest.raises(ConfigError, match=field):
        await serve_dtls(Keeper(), 0, config=config, keystore=KEYS, host="127.0.0.1")


# --- keep-alive ---


async def note_times(channel, times):
    start = trio.current_time()
    with contextlib.suppress(trio.EndOfChannel):
        while True:
            data = await channel.receive()
            times.append((round(trio.current_time() - start, 6), data))


async def test_whoever_waits_sends_an_empty_datagram_after_each_so_many_seconds_of_sending_nothing(
    autojump_clock,
):
    keeper = Keeper()
    async with served(keeper) as port:
        near = await open_dtls("127.0.0.1", port, config=CLIENT, keep_alive=25.0)
        far = await keeper.next()
        times: list[tuple[float, bytes]] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(note_times, far, times)
            nursery.start_soon(near.receive)
            await trio.sleep(60)
            await near.send(b"data")
            await trio.sleep(20)
            await far.send(b"what comes from there renews nothing that is known of here")
            await wait_all_tasks_blocked()
            nursery.start_soon(near.receive)
            await trio.sleep(31)
            nursery.cancel_scope.cancel()
        assert times == [(25.0, b""), (50.0, b""), (60.0, b"data"), (85.0, b""), (110.0, b"")]
        await near.aclose()


async def test_nothing_is_sent_by_itself_unless_it_was_asked_for_or_while_nobody_waits(autojump_clock):
    async with pair() as (near, far):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.receive)
            await trio.sleep(3600)
            nursery.cancel_scope.cancel()
        assert far.statistics.connection.records_received == 0
    keeper = Keeper()
    async with (
        served(keeper) as port,
        await open_dtls("127.0.0.1", port, config=CLIENT, keep_alive=25.0) as near,
    ):
        far = await keeper.next()
        await trio.sleep(3600)
        assert far.statistics.connection.records_received == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.receive)  # one for all that was missed
            await wait_all_tasks_blocked()
            assert far.statistics.connection.records_received == 1
            nursery.cancel_scope.cancel()


async def test_during_the_handshake_there_are_no_keep_alives(autojump_clock):
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as silent:
        await silent.bind(("127.0.0.1", 0))
        with pytest.raises(TimeoutError):
            await open_dtls("127.0.0.1", silent.getsockname()[1], config=CLIENT, keep_alive=0.01)
        count = 0
        with trio.move_on_after(1):
            while True:
                await silent.recv(2000)
                count += 1
        assert 1 < count < 10


async def test_a_keep_alive_finds_out_nothing_about_an_association_that_has_ended(autojump_clock):
    keeper = Keeper()
    async with (
        served(keeper) as port,
        await open_dtls("127.0.0.1", port, config=CLIENT, keep_alive=5.0) as near,
    ):
        far = await keeper.next()
        await far.aclose()
        await trio.sleep(100)
        with pytest.raises(trio.EndOfChannel):
            await near.receive()
        assert near._cause == PeerClose()


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.001, 86_401.0, float("nan"), float("inf")])
async def test_an_impossible_interval_is_refused(seconds):
    with pytest.raises(ConfigError, match=r"keep_alive: .* is not within 0.01 to 86400 seconds"):
        await open_dtls("127.0.0.1", 5684, config=CLIENT, keep_alive=seconds)


async def test_a_mapping_that_is_kept_alive_lets_the_server_speak_first(autojump_clock):
    async with behind_nat(TRUSTED, keep_alive=25.0) as (near, far, nat):
        received = []

        async def receive():
            received.append(await near.receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await nat.forget()
            await trio.sleep(26)
            assert far.remote == f"127.0.0.1:{nat.port}"
            await far.send(b"command")
        assert received == [b"command"]
