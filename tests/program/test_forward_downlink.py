"""The way back of ``forward.kind = "valkey"``: from a stream for each device, with a real Redis server."""

import pytest
import trio

from endpoint.forward.valkey import ValkeyStream
from sansdtls import ConnectionState
from tests.program.sinks import PATIENCE, Told, device, devices_of
from tests.program.streams import asking, left, running, say, stream, table, until
from tests.valkey_server import ValkeyServer

FOR_EVER = 100.0 * PATIENCE
"""Seconds, in place of those after which the server is asked anew in any case: what a test waits for does not come by that."""


@pytest.fixture(scope="module")
def eternal(tmp_path_factory):
    with ValkeyServer(tmp_path_factory.mktemp("v")) as server:
        yield server


@pytest.fixture
def server(eternal):
    """One that is not stopped; empty."""
    eternal.do("FLUSHALL")
    return eternal


@pytest.fixture
def mortal(tmp_path):
    with ValkeyServer(tmp_path) as server:
        yield server


async def test_a_device_that_is_awake_gets_entries_at_once_in_their_order_and_they_are_deleted(server):
    meter, other = device(b"m\x00\xff"), device(b"other")
    sink = stream(server, meter, other, downlink_prefix="to:")
    async with running(sink):
        sink.connected(meter)
        sink.connected(other)
        await until(lambda: asking(server) == 1)
        for number in range(30):
            say(server, b"m\x00\xff", b"%d" % number, note="more")
        await until(lambda: len(meter.sent) == 30)
        assert meter.sent == [b"%d" % number for number in range(30)]
        assert other.sent == []
        await until(lambda: not left(server, b"m\x00\xff"))
        await until(lambda: not sink._downlink._groups[0].undeleted)
    assert sink.statistics()["downlink"] == {"sent": 30, "deleted_unsent": 0, "awake": 2, "groups": 1}


async def test_what_is_for_a_device_that_is_away_waits_in_the_server_until_it_is_heard(server, monkeypatch):
    monkeypatch.setattr("endpoint.forward.downlink.BLOCK", FOR_EVER)
    meter = device(b"m")
    sink = stream(server, meter, downlink_prefix="to:")
    say(server, b"m", b"1")
    async with running(sink):
        await until(lambda: sink.statistics()["connects"])
        assert (meter.sent, left(server, b"m")) == ([], 1)
        sink.connected(meter)
        await until(lambda: meter.sent == [b"1"])
        meter.connection.state = ConnectionState.FROZEN
        sink.frozen(meter)
        say(server, b"m", b"2")
        again = device(b"m")
        sink._downlink._devices = devices_of(again)
        await until(lambda: asking(server) == 0)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert (meter.sent, left(server, b"m")) == ([b"1"], 1)
        sink.thawed(again)
        # Sooner than a group without anybody would ask by itself.
        await until(lambda: again.sent == [b"2"])
        await until(lambda: not left(server, b"m"))
        sink.disconnected(again)
        assert sink.statistics()["downlink"]["awake"] == 0
        assert sink._downlink._groups[0].awake == {}


async def test_of_several_associations_of_one_identity_the_one_heard_last_gets_it(server):
    old, new, older = device(b"m", heard=1.0), device(b"m", heard=2.0), device(b"m", heard=0.5)
    sink = stream(server, old, new, older, downlink_prefix="to:")
    async with running(sink):
        for one in sorted((old, new, older), key=id)[::-1]:
            sink.connected(one)
        say(server, b"m", b"1")
        await until(lambda: new.sent == [b"1"])
        sink.disconnected(new)
        say(server, b"m", b"2")
        await until(lambda: old.sent == [b"2"])
        assert older.sent == []
        sink.disconnected(older)
        sink.disconnected(old)
        sink.disconnected(old)  # told twice is no harm
        assert sink.statistics()["downlink"]["awake"] == 0


async def test_many_devices_are_asked_about_in_few_commands_and_one_that_wakes_is_taken_in_soon(
    server, monkeypatch
):
    monkeypatch.setattr("endpoint.forward.downlink.GROUP", 100)
    monkeypatch.setattr("endpoint.forward.downlink.BLOCK", FOR_EVER)
    meters = [device(b"m%d" % number) for number in range(250)]
    sink = stream(server, *meters, downlink_prefix="to:")
    for number in range(250):
        say(server, b"m%d" % number, b"wait %d" % number)
    async with running(sink):
        for meter in meters[:249]:
            sink.connected(meter)
        await until(lambda: all(meter.sent for meter in meters[:249]))
        assert sink.statistics()["downlink"]["groups"] == 3
        await until(lambda: not any(left(server, meter.identity) for meter in meters[:249]))
        await until(lambda: asking(server) == 3)
        server.do("CONFIG", "RESETSTAT")
        sink.connected(meters[249])
        # Sooner than the command that does not ask for it would end by itself.
        await until(lambda: meters[249].sent)
        calls = server.do("INFO", "commandstats").decode()
        assert "cmdstat_client|unblock:calls=1," in calls
    assert all(meter.sent == [b"wait %d" % number] for number, meter in enumerate(meters))


async def test_entries_that_can_be_sent_to_nobody_are_deleted_and_counted(server):
    meter = device(b"m", room=5)
    devices = devices_of(meter)
    sink = ValkeyStream(table(server, downlink_prefix="to:"), devices=devices, tell=Told())
    async with running(sink):
        server.do("XADD", "to:m", "*", "dta", "typo")
        say(server, b"m", b"too large")
        say(server, b"m", b"fits")
        sink.connected(meter)
        await until(lambda: meter.sent == [b"fits"])
        await until(lambda: not left(server, b"m"))
    assert sink.statistics()["downlink"]["deleted_unsent"] == 2
    assert devices.statistics() == {"replies": 1, "replies_dropped": {"malformed": 1, "too_large": 1}}


async def test_a_device_that_cannot_take_an_entry_now_gets_it_later_and_holds_up_nobody(server, monkeypatch):
    monkeypatch.setattr("endpoint.forward.downlink.HOLD", 0.05)
    full, other = device(b"full"), device(b"other")
    full.connection.max_payload = 1000
    full.room = 0  # as where no record numbers are reserved
    sink = stream(server, full, other, downlink_prefix="to:")
    async with running(sink):
        say(server, b"full", b"1")
        say(server, b"full", b"2")
        sink.connected(full)
        sink.connected(other)
        say(server, b"other", b"x")
        await until(lambda: other.sent == [b"x"])
        assert left(server, b"full") == 2
        # Meanwhile it is not asked about, or the server would answer the same for ever.
        await until(lambda: b"full" in sink._downlink._groups[0].held)
        full.room = 1000
        await until(lambda: full.sent == [b"1", b"2"])
        await until(lambda: not left(server, b"full"))


async def test_nothing_is_sent_twice_when_the_connection_is_lost_before_it_is_deleted(server):
    meter = device(b"m")
    sink = stream(server, meter, downlink_prefix="to:")
    lost = 0
    async with running(sink):
        sink.connected(meter)
        group = sink._downlink._groups[0]
        await until(lambda: group.link.client_id is not None)
        batch = group.link.batch

        async def lose_it_first(commands):
            nonlocal lost
            if lost < 3:
                lost += 1
                server.do("CLIENT", "KILL", "ID", group.link.client_id)
                with trio.fail_after(PATIENCE):
                    await group.link._lost.wait()
            return await batch(commands)

        group.link.batch = lose_it_first
        for number in range(5):
            say(server, b"m", b"%d" % number)
        await until(lambda: not left(server, b"m"))
    assert lost == 3
    assert meter.sent == [b"%d" % number for number in range(5)]


async def test_after_an_outage_entries_come_again(mortal, monkeypatch):
    monkeypatch.setattr("endpoint.valkey.LONGEST_PAUSE", 0.1)
    meter = device(b"m")
    sink = stream(mortal, meter, downlink_prefix="to:")
    async with running(sink):
        sink.connected(meter)
        say(mortal, b"m", b"1")
        await until(lambda: meter.sent == [b"1"])
        mortal.stop()
        mortal.start()
        say(mortal, b"m", b"2")
        await until(lambda: meter.sent == [b"1", b"2"])


async def test_a_server_that_does_not_answer_the_question_is_asked_over_another_connection(
    mortal, monkeypatch
):
    monkeypatch.setattr("endpoint.forward.downlink.BLOCK", 0.05)
    monkeypatch.setattr("endpoint.forward.downlink.PATIENCE", 0.05)
    meter = device(b"m")
    sink = stream(mortal, meter, downlink_prefix="to:")
    async with running(sink):
        sink.connected(meter)
        link = sink._downlink._groups[0].link
        await until(lambda: link.client_id is not None)
        mortal.freeze()
        await until(lambda: link.client_id is None)
        monkeypatch.undo()  # from now on it answers, in whatever time it takes
        mortal.thaw()
        say(mortal, b"m", b"1")
        await until(lambda: meter.sent == [b"1"])
