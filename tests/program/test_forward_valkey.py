"""``forward.kind = "valkey"`` with a real Redis server: the stream, the way back, outages, and what is guaranteed."""

import contextlib
import json
import re
from pathlib import Path

import pytest
import trio

from endpoint import open_dtls
from endpoint.association import CredentialKind
from endpoint.cli import main
from endpoint.forward import ForwardError
from endpoint.forward.valkey import ValkeyStream
from endpoint.structure import StructureError
from endpoint.tables.forward import Forward
from endpoint.tables.sinks import ValkeyTable
from sansdtls import ClientConfig, ConnectionState
from tests.program.running import Running
from tests.program.sinks import PATIENCE, Told, device, devices_of
from tests.valkey_server import ValkeyServer


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


def table(server, **keys):
    return ValkeyTable(server=server.address, **keys)


def added(server, stream="dtls:data"):
    """The fields of each entry."""
    found = server.do("XRANGE", stream, "-", "+")
    return [dict(zip(fields[::2], fields[1::2], strict=True)) for _, fields in found]


@contextlib.asynccontextmanager
async def running(sink):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sink.run)
        try:
            yield sink
        finally:
            nursery.cancel_scope.cancel()
            sink.close()


async def until(condition):
    """What happens at the server, or follows from it, nobody tells."""
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.005)


def stream(server, *devices, told=None, wall=lambda: 1738367999.123, **keys):
    return ValkeyStream(table(server, **keys), devices=devices_of(*devices), tell=told or Told(), wall=wall)


# --- to the server --------------------------------------------------------------------------------------


async def test_each_datagram_is_an_entry_with_identity_path_time_and_data_byte_by_byte(server):
    sink = stream(server)
    async with running(sink):
        sink.deliver(device(b"m\x00\xff"), b"\r\n\x00\xfe")
        sink.deliver(device(b"", kind=CredentialKind.NONE), "21.4 °C".encode())
        await sink.flush()
    common = {b"path": b"192.0.2.7:40000", b"time": b"2025-01-31T23:59:59.123Z"}
    assert added(server) == [
        {b"identity": b"m\x00\xff", **common, b"data": b"\r\n\x00\xfe"},
        {**common, b"data": "21.4 °C".encode()},
    ]
    figures = sink.statistics()
    assert (figures["forwarded"], figures["forward_dropped"], figures["forward_held"]) == (2, 0, 0)


async def test_thousands_come_in_their_order_and_the_stream_keeps_about_so_many(server):
    sink = stream(server, stream="s", max_entries=500, buffer=2**22)
    async with running(sink):
        for number in range(3000):
            sink.deliver(device(), b"%d" % number)
        await sink.flush()
    numbers = [int(entry[b"data"]) for entry in added(server, "s")]
    assert numbers == list(range(3000 - len(numbers), 3000))
    assert 500 <= len(numbers) <= 700
    sink = stream(server, stream="t", max_entries=None)
    async with running(sink):
        for number in range(1000):
            sink.deliver(device(), b"%d" % number)
        await sink.flush()
    assert server.do("XLEN", "t") == 1000


async def test_what_comes_while_the_server_is_away_waits_within_bounds_and_is_told_once(mortal):
    told = Told()
    sink = stream(mortal, told=told, buffer=2048)
    async with running(sink):
        sink.deliver(device(), b"before")
        await sink.flush()
        mortal.stop()
        down = await told.until("forward_down")
        assert down["output"] == mortal.address
        assert sink.statistics()["down"]
        for number in range(50):
            sink.deliver(device(), b"%d" % number)
        held = sink.statistics()
        assert 0 < held["forward_held"] <= 2048
        assert held["forward_dropped"] > 30
        mortal.start()
        await sink.flush()
        await told.until("forward_up")
    numbers = [entry[b"data"] for entry in added(mortal)]
    assert numbers == [b"%d" % number for number in range(len(numbers))]
    assert len(numbers) + sink.statistics()["forward_dropped"] == 50
    assert [event for event in told.events if event != "forward_resumed"] == [
        "forward_down",
        "forward_overflow",
        "forward_up",
    ]
    assert sink.statistics()["connects"] == 2


async def test_with_overflow_oldest_the_newest_are_kept(tmp_path):
    away = ValkeyServer(tmp_path)
    sink = stream(away, buffer=2048, overflow="oldest")
    for number in range(50):
        sink.deliver(device(), b"%d" % number)
    with away:
        async with running(sink):
            await sink.flush()
        assert added(away)[-1][b"data"] == b"49"


async def test_what_was_not_confirmed_is_sent_again(mortal, monkeypatch):
    monkeypatch.setattr("endpoint.forward.valkey.PATIENCE", 0.1)
    sink = stream(mortal)
    async with running(sink):
        sink.deliver(device(), b"0")
        await sink.flush()
        mortal.freeze()
        for number in range(1, 4):
            sink.deliver(device(), b"%d" % number)
        await until(lambda: sink.statistics()["down"])
        mortal.thaw()
        await sink.flush()
    numbers = [int(entry[b"data"]) for entry in added(mortal)]
    # At least once: it may have taken the first attempt, too.
    assert set(numbers) == {0, 1, 2, 3}
    assert numbers[-3:] == [1, 2, 3]
    assert sink.statistics()["forwarded"] == 4


async def test_a_server_that_refuses_is_told_and_gets_everything_when_it_does_not_any_more(
    server, monkeypatch
):
    monkeypatch.setattr("endpoint.forward.valkey.REFUSED_PAUSE", 0.05)
    told = Told()
    server.do("SET", "dtls:data", "no stream")
    sink = stream(server, told=told)
    async with running(sink):
        for number in range(5):
            sink.deliver(device(), b"%d" % number)
        down = await told.until("forward_down")
        assert down["reason"].startswith(f"{server.address} says: ")
        assert "wrong kind" in down["reason"]
        server.do("DEL", "dtls:data")
        await sink.flush()
        await told.until("forward_up")
    assert [entry[b"data"] for entry in added(server)] == [b"%d" % number for number in range(5)]


def test_files_that_cannot_be_used_keep_it_from_starting(tmp_path):
    (tmp_path / "pw").write_text("hunter2")
    with pytest.raises(
        ForwardError, match="mode 0644 gives group or others access to the password"
    ) as caught:
        ValkeyStream(
            ValkeyTable(server="/v.sock", password_file=tmp_path / "pw"), devices=devices_of(), tell=Told()
        )
    assert "hunter2" not in str(caught.value)


# --- back to the devices --------------------------------------------------------------------------------


def say(server, identity, data, prefix=b"to:", **fields):
    more = [part for name, value in fields.items() for part in (name, value)]
    return server.do("XADD", prefix + identity, "*", "data", data, *more)


def asking(server):
    """How many commands wait for something to come."""
    (number,) = re.findall(rb"blocked_clients:(\d+)", server.do("INFO", "clients"))
    return int(number)


def left(server, identity, prefix=b"to:"):
    return server.do("XLEN", prefix + identity)


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


async def test_what_is_for_a_device_that_is_away_waits_in_the_server_until_it_is_heard(server):
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
        with trio.fail_after(5):  # far below what a group without anybody waits
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
        began = trio.current_time()
        sink.connected(meters[249])
        await until(lambda: meters[249].sent)
        assert trio.current_time() - began < 5  # far below BLOCK
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
        mortal.thaw()
        say(mortal, b"m", b"1")
        await until(lambda: meter.sent == [b"1"])


RIGHTS = "on >pw resetchannels -@all +ping +xadd +xread +xdel +client|unblock ~dtls:data ~dtls:to:*".split()
"""As the module's text tells operators."""


@pytest.mark.parametrize("missing", [None, "+client|unblock", "+xread"])
async def test_the_rights_that_are_documented_are_enough_and_what_is_missing_is_told(
    server, tmp_path, monkeypatch, missing
):
    monkeypatch.setattr("endpoint.forward.downlink.BLOCK", 0.1)
    server.do("ACL", "SETUSER", f"e{missing}", *(right for right in RIGHTS if right != missing))
    (tmp_path / "pw").touch(mode=0o600)
    (tmp_path / "pw").write_text("pw")
    one, two = device(b"1"), device(b"2")
    told = Told()
    sink = stream(
        server,
        one,
        two,
        told=told,
        username=f"e{missing}",
        password_file=tmp_path / "pw",
        downlink_prefix="dtls:to:",
    )
    async with running(sink):
        sink.deliver(one, b"x")
        await sink.flush()
        sink.connected(one)
        if missing == "+xread":
            assert "xread" in (await told.until("forward_downlink_refused"))["reason"]
            return
        await until(lambda: sink._downlink._groups[0].link.client_id is not None)
        sink.connected(two)
        say(server, b"2", b"y", prefix=b"dtls:to:")
        await until(lambda: two.sent == [b"y"])
        if missing:
            assert "up to 0.1 s late" in (await told.until("forward_unblock_refused"))["reason"]
        else:
            assert told.events == []


# --- the table ------------------------------------------------------------------------------------------


def test_its_keys_stand_flat_in_the_table_and_file_names_are_completed():
    keys = {
        "kind": "valkey",
        "server": "valkeys://h",
        "stream": "s",
        "max_entries": "unlimited",
        "downlink_prefix": "to:",
        "username": "u",
        "password_file": "pw",
        "database": 2,
        "ca_file": "ca",
        "certificate": "c",
        "private_key": "k",
        "buffer": 4096,
        "overflow": "oldest",
    }
    (sink,) = Forward.from_table(keys).below(Path("/e")).sinks
    assert isinstance(sink, ValkeyTable)
    assert sink.max_entries is None
    assert sink.has_way_back
    login = sink.login()
    assert (login.username, login.database, login.password_file) == ("u", 2, Path("/e/pw"))
    assert (login.ca_file, login.certificate, login.private_key) == (
        Path("/e/ca"),
        Path("/e/c"),
        Path("/e/k"),
    )
    assert sink.in_words() == (
        'adds each datagram to the stream "s", at valkeys://h:6379, holding at most 4096 bytes, then dropping the oldest; sends '
        'devices that are awake what is in the streams "to:" + identity; not asked now, as check touches no network'
    )
    assert not ValkeyTable(server="/v.sock").has_way_back


@pytest.mark.parametrize(
    ("keys", "key", "what"),
    [
        ({}, "server", 'missing; remedy: add  server = "unix:/run/valkey/valkey.sock"'),
        ({"server": "x"}, "server", "is no address"),
        ({"server": "valkey://u:hunter2@h"}, "server", "holds a user or password"),
        ({"stream": ""}, "stream", "has 0 bytes, not 1 to 128"),
        ({"downlink_prefix": ""}, "downlink_prefix", "has 0 bytes, not 1 to 128"),
        ({"max_entries": 0}, "max_entries", "0 is not within 1 to 1099511627776 entries"),
        ({"database": -1}, "database", "-1 is not within 0 to 65535"),
        ({"username": "a b"}, "username", "1 to 128 printable characters"),
        ({"password_file": "a\0"}, "password_file", "a file name cannot hold a NUL character"),
    ],
)
def test_a_broken_value_is_told_at_its_key(keys, key, what):
    given = {"kind": "valkey", "server": "/v.sock", **keys} if keys else {"kind": "valkey"}
    with pytest.raises(StructureError) as caught:
        Forward.from_table(given)
    ((found, text),) = caught.value.mistakes
    assert found == key
    assert what in text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"username": "u"}, ["password_file: missing; a username needs it"]),
        ({"certificate": Path("c")}, ["private_key: missing; certificate and private_key belong together"]),
        (
            {"server": "/v.sock", "ca_file": Path("c")},
            ["ca_file: is of no use without TLS; remedy: an address that begins with valkeys://"],
        ),
        (
            {"stream": "dtls:data", "downlink_prefix": "dtls:"},
            [
                "downlink_prefix: the stream's own name begins so, and a device may be called as its rest; remedy: another"
            ],
        ),
    ],
)
def test_what_does_not_go_together_is_told(keys, found):
    forward = Forward(sinks=(ValkeyTable(**{"server": "valkeys://h", **keys}),))
    assert [f"{key}: {what}" for key, what in forward.contradictions(())] == found


# --- a service ------------------------------------------------------------------------------------------

K1 = "00112233445566778899aabbccddeeff"


@pytest.mark.slow
def test_a_service_between_a_device_and_two_streams(tmp_path):
    (tmp_path / "psk.txt").touch(mode=0o600)
    (tmp_path / "psk.txt").write_text(f"dev1:{K1}\n")
    server = ValkeyServer(tmp_path)
    (tmp_path / "e.toml").write_text(
        '[credentials]\npsk_file = "psk.txt"\n[listen]\naddress = "127.0.0.1"\nport = 0\n'
        f'[forward]\nkind = "valkey"\nserver = "{server.address}"\ndownlink_prefix = "to:"\n'
    )

    async def talk(port):
        config = ClientConfig(psk_identity=b"dev1", psk_key=bytes.fromhex(K1))
        with trio.fail_after(PATIENCE):
            async with await open_dtls("127.0.0.1", port, config=config) as channel:
                await channel.send(b"21.4")
                # It waited for the device while there was not even a server.
                return await channel.receive()

    with Running("serve", "--config", "e.toml", cwd=tmp_path) as service:
        _, port = service.listening()
        assert service.fact("forward_down")["reason"] == f"{server.address}: no such file or directory"
        with server:
            say(server, b"dev1", b"on")
            service.fact("forward_up")
            assert trio.run(talk, port) == b"on"
            assert service.end() == 0
            (entry,) = added(server)
            assert (entry[b"identity"], entry[b"data"]) == (b"dev1", b"21.4")
    figures = json.loads(service.seen[-1].splitlines()[-1])["statistics"]["forward"]
    assert figures["sinks"]["valkey"]["downlink"]["sent"] == 1
    assert K1 not in service.everything


def test_check_says_what_it_would_do_and_what_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, content in (("psk.txt", f"dev1:{K1}\n"), ("pw", "hunter2")):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_text(content)

    def check():
        (tmp_path / "e.toml").write_text(
            '[credentials]\npsk_file = "psk.txt"\n[forward]\nkind = "valkey"\nserver = "valkey://v.example"\n'
            'username = "e"\npassword_file = "pw"'
        )
        status = main(["check", "--config", "e.toml"])
        return status, capsys.readouterr()

    status, said = check()
    assert status == 0
    assert (
        'adds each datagram to the stream "dtls:data", which holds about 1000000, at valkey://v.example:6379'
        in said.out
    )
    assert (
        "note: valkey://v.example:6379: data cross the network in clear; remedy: valkeys:// for TLS"
        in said.out
    )
    (tmp_path / "pw").chmod(0o644)
    status, said = check()
    assert (status, said.out) == (2, "")
    assert said.err == "pw: mode 0644 gives group or others access to the password; remedy: chmod 600 pw\n"
    assert "hunter2" not in said.err
