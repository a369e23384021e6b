"""The quotas of prefixes, identities and everybody, as devices meet them: who pays, who does not, and what comes back."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from endpoint import open_dtls
from endpoint.quotas import NetworkQuota, QuotaPolicy
from sansdtls import (
    ClientAuthentication,
    ConnectionIdPolicy,
    Limits,
    LocalClose,
    PathProof,
    PeerClose,
    RetransmitPolicy,
    ServerConfig,
)
from tests.endpoint import test_engine_quotas as ends
from tests.endpoint.devices import Recorder, serving
from tests.endpoint.test_channel import CLIENT, Keeper, pair
from tests.endpoint.test_channel import served as channels_served
from tests.endpoint.test_engine_quotas import asks_in_vain
from tests.endpoint.test_verification import client_config, server_config, verifier

ANYWHERE = "0.0.0.0"  # noqa: S104 - loopback has many addresses


async def device_at(served, host, **options):
    device = served.device(**options)
    await device.socket.bind((host, 0))
    return device


def figures(served):
    return served.engine.statistics()["quotas"]


# --- handshakes under way ------------------------------------------------------------------------------------


async def test_handshakes_under_way_of_a_prefix_are_limited_and_live_associations_do_not_count(
    autojump_clock,
):
    async with serving(quotas=QuotaPolicy(half_open_per_prefix=2)) as served:
        for number in range(1, 4):
            assert (await served.device(identity=b"meter-%d" % number).connect()).connected
        half = [await served.device().knock() for _ in range(2)]
        assert figures(served)["half_open"] == 2
        third = served.device()
        assert await asks_in_vain(third)
        assert served.observer.refusals == [(third.path, "half_open_per_prefix")]
        await half[0].close()
        await wait_all_tasks_blocked()
        assert figures(served)["half_open"] == 1
        assert (await third.connect()).connected


async def test_one_prefix_with_many_half_open_handshakes_does_not_keep_others_out(autojump_clock):
    config = ServerConfig(limits=Limits(max_half_open=8))
    async with serving(address=ANYWHERE, config=config) as served:
        for _ in range(6):
            await (await device_at(served, "127.0.0.21")).knock()
        greedy = await device_at(served, "127.0.0.21")
        assert await asks_in_vain(greedy)
        assert served.observer.refusals == [(greedy.path, "max_half_open")]
        assert (await (await device_at(served, "127.0.0.22")).connect()).connected


# --- handshakes of everybody -----------------------------------------------------------------------------------


async def test_a_prefix_that_uses_up_the_handshakes_of_all_leaves_some_for_others(autojump_clock):
    quotas = QuotaPolicy(total_handshakes_per_second=0.01, total_handshake_burst=8)
    async with serving(address=ANYWHERE, quotas=quotas) as served:
        for number in range(1, 7):
            greedy = await device_at(served, "127.0.0.21", identity=b"meter-%d" % number)
            assert (await greedy.connect()).connected
        again = await device_at(served, "127.0.0.21")
        assert await asks_in_vain(again)
        assert served.observer.refusals == [(again.path, "total_handshakes_per_second")]
        assert (await (await device_at(served, "127.0.0.22")).connect()).connected
        assert figures(served)["top"] == [
            {"who": "127.0.0.21/32", "reason": "total_handshakes_per_second", "count": 1}
        ]


async def test_networks_of_the_policy_are_those_that_devices_come_from(autojump_clock):
    quotas = QuotaPolicy(
        handshakes_per_second=0.001,
        handshake_burst=1,
        networks=(NetworkQuota(network="127.0.0.16/29"),),
    )
    async with serving(address=ANYWHERE, quotas=quotas) as served:
        for _ in range(3):
            assert (await (await device_at(served, "127.0.0.21")).connect()).connected
        assert (await (await device_at(served, "127.0.0.31")).connect()).connected
        assert await asks_in_vain(await device_at(served, "127.0.0.31"))


# --- handshakes of an identity -----------------------------------------------------------------------------------


async def test_an_identity_that_handshakes_too_often_is_closed_and_others_are_not(autojump_clock):
    quotas = QuotaPolicy(identity_handshakes_per_second=0.1, identity_handshake_burst=2)
    async with serving(quotas=quotas) as served:
        first, second = [await served.device().connect() for _ in range(2)]
        third = await served.device().connect()
        await third.until(lambda: third.cause)
        assert third.cause == PeerClose()
        await wait_all_tasks_blocked()
        # Those that are there stay: nobody had to make room for one that was not let in.
        assert {found.remote for found in served.observer.live} == {first.path, second.path}
        assert served.observer.refusals == [(third.path, "identity_handshakes_per_second")]
        assert served.observer.failed == served.observer.ended == []
        assert served.gauges["slots"] == 2
        assert (await served.device(identity=b"meter-2").connect()).connected
        await trio.sleep(10)
        assert (await served.device().connect()).connected
        assert figures(served)["top"] == [
            {"who": "meter-1", "reason": "identity_handshakes_per_second", "count": 1}
        ]


async def test_whoever_only_claims_an_identity_spends_nothing_of_its_quota(autojump_clock):
    quotas = QuotaPolicy(identity_handshakes_per_second=0.001, identity_handshake_burst=1)
    async with serving(quotas=quotas) as served:
        for _ in range(5):
            liar = await served.device(key=b"a wrong key").connect()
            assert not liar.connected
        assert figures(served)["tracked_identities"] == 0
        assert (await served.device().connect()).connected
        assert figures(served)["tracked_identities"] == 1


async def test_peers_that_show_nothing_share_no_quota_of_an_identity(autojump_clock):
    config = server_config(client_authentication=ClientAuthentication.WANTED)
    quotas = QuotaPolicy(
        identity_handshakes_per_second=0.001,
        identity_handshake_burst=1,
        identity_datagrams_per_second=0.001,
        identity_datagram_burst=1,
        prefix_datagrams_per_second=0.001,
        prefix_datagram_burst=8,
    )
    observer = Recorder()
    async with serving(config=config, verify=verifier(), quotas=quotas, observer=observer) as served:
        for _ in range(3):
            device = await served.device(config=client_config()).connect()
            for _ in range(3):
                await device.send(b"x")
        assert len(observer.data) == 8
        assert figures(served)["tracked_identities"] == 0
        assert figures(served)["top"] == [
            {"who": "127.0.0.1/32", "reason": "prefix_datagrams_per_second", "count": 1}
        ]


# --- data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "who", "reason"),
    [
        (
            {"prefix_datagrams_per_second": 0.01, "prefix_datagram_burst": 4},
            "127.0.0.1/32",
            "prefix_datagrams_per_second",
        ),
        (
            {"identity_datagrams_per_second": 0.01, "identity_datagram_burst": 4},
            "meter-1",
            "identity_datagrams_per_second",
        ),
        (
            {"total_datagrams_per_second": 0.01, "total_datagram_burst": 4, "fair_reserve": 0},
            "127.0.0.1/32",
            "total_datagrams_per_second",
        ),
        ({"datagrams_per_second": 0.01, "datagram_burst": 2}, "meter-1", "datagrams_per_second"),
    ],
)
async def test_data_beyond_what_is_shared_are_dropped_told_once_and_put_down_to_the_right_one(
    autojump_clock, limits, who, reason
):
    observer = Recorder()
    async with serving(quotas=QuotaPolicy(**limits), observer=observer) as served:
        devices = [await served.device().connect() for _ in range(2)]
        for number in range(5):
            for device in devices:
                await device.send(b"%d" % number)
        assert len(observer.data) == 4
        assert observer.refusals == [(device.path, reason) for device in devices]
        assert [association.dropped for association in observer.live] == [3, 3]
        assert served.engine.statistics()["refused"] == {reason: 6}
        assert figures(served)["top"] == [{"who": who, "reason": reason, "count": 6}]


async def test_who_has_moved_without_proof_goes_on_paying_from_where_it_was(autojump_clock):
    # The address may be forged: whoever has one key could use up what a stranger's prefix may send.
    quotas = QuotaPolicy(prefix_datagrams_per_second=0.001, prefix_datagram_burst=4)
    observer = Recorder()
    async with serving(address=ANYWHERE, quotas=quotas, observer=observer) as served:
        liar = served.roamer(identity=b"meter-2")
        await liar.socket.bind(("127.0.0.22", 0))
        await liar.connect()
        await liar.move(at="127.0.0.21")
        for _ in range(6):
            await liar.send(b"in your name")
        assert len(observer.data) == 4
        (moved,) = observer.live
        assert moved.prefix == served.engine.quotas.prefix_of(("127.0.0.21", 1))
        assert [row["who"] for row in figures(served)["top"]] == ["127.0.0.22/32"]
        honest = await (await device_at(served, "127.0.0.21")).connect()
        for _ in range(4):
            await honest.send(b"mine")
        assert observer.data[4:] == [b"mine"] * 4
        await liar.close()
        await honest.close()
        assert served.idle


async def test_who_has_proved_its_new_address_pays_from_there(autojump_clock):
    quotas = QuotaPolicy(prefix_datagrams_per_second=0.001, prefix_datagram_burst=4)
    observer = Recorder()
    async with serving(address=ANYWHERE, quotas=quotas, observer=observer) as served:
        device = served.roamer(policy=ConnectionIdPolicy(length=0))
        await device.socket.bind(("127.0.0.22", 0))
        await device.connect()
        for _ in range(4):
            await device.send(b"x")
        await device.move(at="127.0.0.21")
        await device.send(b"beyond the old one's limit")
        await device.until_told(lambda: observer.moves)
        assert observer.moves[0][2] is PathProof.RETURN_ROUTABILITY
        for _ in range(4):
            await device.send(b"y")
        assert observer.data[4:] == [b"y"] * 4


# --- what comes back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end",
    [
        ends.leaves_with_an_alert,
        ends.is_closed_here,
        ends.falls_silent,
        ends.stops_in_the_middle_of_the_handshake,
        ends.has_the_wrong_key,
        ends.has_an_unknown_identity,
        ends.begins_anew_again_and_again,
        ends.cancels_its_handshake,
    ],
)
async def test_nothing_is_held_for_a_peer_that_has_ended_in_whatever_way(autojump_clock, end):
    quotas = QuotaPolicy(
        half_open_per_prefix=2, identity_datagrams_per_second=100, total_datagrams_per_second=100
    )
    config = ServerConfig(
        limits=Limits(idle_timeout=60.0), retransmit=RetransmitPolicy(handshake_timeout=60.0)
    )
    async with serving(quotas=quotas, config=config) as served:
        for _ in range(3):
            await end(served)
            held = served.engine.quotas
            assert (held.slots, held.half_open, held._identities.held) == (0, 0, 0)
            assert figures(served)["prefixes"] == 0
        assert served.observer.refusals == []


async def test_an_identity_pays_again_when_its_association_has_slept_and_nothing_is_held_meanwhile(
    autojump_clock,
):
    quotas = QuotaPolicy(identity_datagrams_per_second=0.001, identity_datagram_burst=5)
    observer = Recorder()
    async with serving(config=ServerConfig(freeze_after=30.0), quotas=quotas, observer=observer) as served:
        device = await served.roamer().connect()
        for _ in range(3):
            await device.send(b"x")
        await trio.sleep(100)
        assert observer.live == []
        assert served.engine.quotas.slots == served.engine.quotas._identities.held == 0
        for _ in range(3):
            await device.send(b"x")
        assert len(observer.data) == 5
        assert served.engine.quotas.slots == served.engine.quotas._identities.held == 1
        observer.live[0].close()
        await wait_all_tasks_blocked()
        assert served.engine.quotas.slots == served.engine.quotas._identities.held == 0
        assert observer.ended[0][1] == LocalClose()


# --- data that wait for a channel's reader -----------------------------------------------------------------------------


async def test_data_that_wait_for_receive_are_limited_in_bytes_and_reading_makes_room():
    quotas = QuotaPolicy(waiting_bytes_per_association=16_384)
    async with pair(quotas=quotas, buffer=1_000) as (near, far):
        for _ in range(20):
            await near.send(bytes(1_000))
            await wait_all_tasks_blocked()
        assert far.statistics.datagrams_dropped == 4
        assert [len(await far.receive()) for _ in range(16)] == [1_000] * 16
        await near.send(b"there is room again")
        assert await far.receive() == b"there is room again"
        assert far._waiting.size == 0


async def test_what_finds_no_place_among_so_many_datagrams_takes_none_of_the_bytes_either():
    async with pair(buffer=3) as (near, far):
        for _ in range(5):
            await near.send(bytes(1_000))
            await wait_all_tasks_blocked()
        assert far.statistics.datagrams_dropped == 2
        assert far._waiting.size == 3_000


async def test_what_waited_in_a_channel_that_is_closed_is_given_back():
    async with pair() as (near, far):
        for _ in range(3):
            await near.send(bytes(1_000))
            await wait_all_tasks_blocked()
        waiting = far._waiting
        assert waiting.size == 3_000
        await far.aclose()
        assert waiting.size == 0


async def test_one_that_is_being_received_when_the_channel_is_closed_is_given_back_once():
    async with pair() as (_, far), trio.open_nursery() as nursery:
        got = []

        async def receive():
            got.append(await far.receive())

        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        far.deliver(b"x")  # handed to the task that waits, which has not run yet
        assert far._waiting.size == 1
        await far.aclose()
        await wait_all_tasks_blocked()
        assert got == [b"x"]
        assert far._waiting.size == 0


async def test_quotas_of_identities_hold_for_channels_too():
    quotas = QuotaPolicy(identity_handshakes_per_second=0.001, identity_handshake_burst=1)
    keeper = Keeper()
    async with (
        channels_served(keeper, quotas=quotas) as port,
        await open_dtls("127.0.0.1", port, config=CLIENT) as one,
    ):
        far = await keeper.next()
        async with await open_dtls("127.0.0.1", port, config=CLIENT) as two:
            with pytest.raises(trio.EndOfChannel):
                await two.receive()
        await one.send(b"x")
        assert await far.receive() == b"x"
