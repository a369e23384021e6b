"""Quotas as devices meet them: silent refusals, slots that come back, data that are dropped."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from endpoint.quotas import IdentityOverflow, QuotaPolicy
from sansdtls import IdleTimeout, Limits, LocalClose, PeerClose, RetransmitPolicy, ServerConfig
from tests.endpoint.devices import Recorder, serving


async def asks_in_vain(device):
    """Knock; the cookie is answered, and then nothing comes."""
    await device.start()
    await device.step()
    await wait_all_tasks_blocked()
    with trio.move_on_after(0.5) as scope:
        await device.socket.recv(2000)
    return scope.cancelled_caught


# --- handshakes ---


async def test_handshakes_beyond_the_rate_are_refused_silently_counted_and_told(autojump_clock):
    quotas = QuotaPolicy(handshakes_per_second=0.1, handshake_burst=2)
    async with serving(quotas=quotas) as served:
        assert (await served.device().connect()).connected
        assert (await served.device().connect()).connected
        third = served.device()
        assert await asks_in_vain(third)
        assert served.observer.refusals == [(third.path, "handshakes_per_second")]
        figures = served.engine.statistics()
        assert figures["refused"] == {"handshakes_per_second": 1}
        assert figures["server"]["offers_refused"] == 1
        assert served.gauges["half_open"] == 0
        await trio.sleep(10)
        await third.connect()
        assert third.connected


async def test_one_refused_source_does_not_stand_in_the_way_of_another(autojump_clock):
    quotas = QuotaPolicy(handshakes_per_second=0.001, handshake_burst=1, ipv4_prefix_length=32)
    async with serving(quotas=quotas, address="0.0.0.0") as served:  # noqa: S104 - loopback has many addresses
        first = await served.device().connect()
        assert first.connected
        assert await asks_in_vain(served.device())
        other = served.device()
        await other.socket.bind(("127.0.0.9", 0))
        await other.connect()
        assert other.connected


# --- slots that come back ---


async def leaves_with_an_alert(served):
    device = await served.device().connect()
    await device.close()


async def is_closed_here(served):
    await served.device().connect()
    served.observer.live[-1].close()
    await wait_all_tasks_blocked()


async def falls_silent(served):
    await served.device().connect()
    await trio.sleep(61)


async def stops_in_the_middle_of_the_handshake(served):
    await served.device().knock()
    await trio.sleep(61)


async def has_the_wrong_key(served):
    device = await served.device(key=b"wrong").connect()
    assert not device.connected


async def has_an_unknown_identity(served):
    device = await served.device(identity=b"stranger").connect()
    assert not device.connected


async def begins_anew_again_and_again(served):
    device = served.device()
    for _ in range(2):
        await device.knock()
    for _ in range(2):
        await device.connect()
    await device.close()


async def cancels_its_handshake(served):
    device = await served.device().knock()
    await device.close()
    await trio.sleep(61)


@pytest.mark.parametrize(
    "ends",
    [
        leaves_with_an_alert,
        is_closed_here,
        falls_silent,
        stops_in_the_middle_of_the_handshake,
        has_the_wrong_key,
        has_an_unknown_identity,
        begins_anew_again_and_again,
        cancels_its_handshake,
    ],
)
async def test_every_slot_comes_back_however_a_peer_ends(autojump_clock, ends):
    quotas = QuotaPolicy(associations_per_prefix=2, associations_per_identity=2)
    config = ServerConfig(
        limits=Limits(idle_timeout=60.0, max_half_open=2),
        retransmit=RetransmitPolicy(handshake_timeout=60.0),
    )
    async with serving(quotas=quotas, config=config) as served:
        for _ in range(4):  # twice each limit
            await ends(served)
            assert served.idle, served.gauges
        assert served.observer.refusals == []
        assert (await served.device().connect()).connected


async def test_associations_and_handshakes_of_a_prefix_are_limited_together(autojump_clock):
    async with serving(quotas=QuotaPolicy(associations_per_prefix=2)) as served:
        live = await served.device().connect()
        await served.device().knock()
        third = served.device()
        assert await asks_in_vain(third)
        assert served.observer.refusals == [(third.path, "associations_per_prefix")]
        await live.close()
        await third.connect()
        assert third.connected


# --- identities ---


async def test_a_device_that_comes_back_from_new_ports_is_let_in_and_its_oldest_association_goes(
    autojump_clock,
):
    async with serving(quotas=QuotaPolicy(associations_per_identity=2)) as served:
        first = await served.device().connect()
        await trio.sleep(1)
        second = await served.device().connect()
        await trio.sleep(1)
        await first.send(b"I am the one that speaks")
        await trio.sleep(1)
        third = await served.device().connect()
        await wait_all_tasks_blocked()
        assert third.connected
        assert served.observer.refusals == [(second.path, "associations_per_identity")]
        assert [(found.remote, cause) for found, cause in served.observer.ended] == [
            (second.path, LocalClose())
        ]
        assert {found.remote for found in served.engine.associations(b"meter-1")} == {first.path, third.path}
        assert served.gauges["slots"] == 2


async def test_two_newcomers_at_once_displace_two_associations():
    # The end of the first is an event of a later call; it must not be chosen a second time.
    async with serving(quotas=QuotaPolicy(associations_per_identity=2)) as served:
        old = [await served.device().connect() for _ in range(2)]
        new = [served.device() for _ in range(2)]
        async with trio.open_nursery() as nursery:
            for device in new:
                nursery.start_soon(device.connect)
        await wait_all_tasks_blocked()
        assert {found.remote for found in served.observer.live} == {device.path for device in new}
        assert {found.remote for found, _ in served.observer.ended} == {device.path for device in old}
        assert served.gauges["slots"] == 2


async def test_where_the_policy_says_so_the_newcomer_is_closed():
    quotas = QuotaPolicy(associations_per_identity=1, identity_overflow=IdentityOverflow.NEWCOMER)
    async with serving(quotas=quotas) as served:
        first = await served.device().connect()
        second = await served.device().connect()
        await second.until(lambda: second.cause)
        assert second.cause == PeerClose()
        assert served.observer.refusals == [(second.path, "associations_per_identity")]
        assert [found.remote for found in served.observer.live] == [first.path]
        assert served.observer.failed == []
        await wait_all_tasks_blocked()
        assert served.gauges["slots"] == 1
        other = await served.device(identity=b"meter-2").connect()
        assert other.connected


# --- data ---


async def test_data_beyond_the_quota_are_dropped_counted_and_told_once_for_each_excess(autojump_clock):
    observer = Recorder()
    async with serving(
        quotas=QuotaPolicy(datagrams_per_second=1, datagram_burst=3), observer=observer
    ) as served:
        device = await served.device().connect()
        for number in range(10):
            await device.send(b"%d" % number)
        assert observer.data == [b"0", b"1", b"2"]
        assert observer.refusals == [(device.path, "datagrams_per_second")]
        assert observer.live[0].dropped == 7
        await trio.sleep(2)
        for number in range(10, 14):
            await device.send(b"%d" % number)
        assert observer.data[3:] == [b"10", b"11"]
        assert len(observer.refusals) == 2
        figures = served.engine.statistics()
        assert figures["refused"] == {"datagrams_per_second": 9}
        assert figures["datagrams_dropped"] == {"quota": 9}


async def test_one_association_over_its_quota_takes_nothing_from_another():
    observer = Recorder()
    async with serving(
        quotas=QuotaPolicy(datagrams_per_second=1, datagram_burst=1), observer=observer
    ) as served:
        loud = await served.device().connect()
        quiet = await served.device(identity=b"meter-2").connect()
        for _ in range(5):
            await loud.send(b"loud")
        await quiet.send(b"quiet")
        assert observer.data == [b"loud", b"quiet"]


async def test_without_data_quotas_the_oldest_is_still_the_one_silent_longest(autojump_clock):
    quotas = QuotaPolicy(datagrams_per_second=None, bytes_per_second=None, associations_per_identity=2)
    config = ServerConfig(limits=Limits(idle_timeout=1000.0))
    async with serving(quotas=quotas, config=config) as served:
        first = await served.device().connect()
        await trio.sleep(1)
        second = await served.device().connect()
        await trio.sleep(1)
        await first.send(b"x")
        await served.device().connect()
        await wait_all_tasks_blocked()
        ((gone, cause),) = served.observer.ended
        assert gone.remote == second.path
        assert cause != IdleTimeout(1000.0)


async def test_whoever_has_not_proved_an_address_is_counted_nowhere():
    # Else a flood with forged sources could use up the quota of those it names.
    async with serving(quotas=QuotaPolicy(handshakes_per_second=0.001, handshake_burst=1)) as served:
        for _ in range(50):
            device = served.device()
            await device.start()
        await wait_all_tasks_blocked()
        assert served.engine.statistics()["server"]["cookies_sent"] == 50
        assert len(served.engine._quotas) == 0
        assert served.idle
        assert (await served.device().connect()).connected
