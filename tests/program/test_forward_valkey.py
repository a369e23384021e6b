"""``forward.kind = "valkey"`` with a real Redis server: the stream, the way back, outages, and what is guaranteed."""

import json
import socket
from pathlib import Path

import pytest
import trio
import trustme

from endpoint import open_dtls
from endpoint.association import CredentialKind
from endpoint.cli import main
from endpoint.forward import ForwardError
from endpoint.forward.valkey import ValkeyStream
from endpoint.tables.forward import Forward
from endpoint.tables.sinks import ValkeyTable
from endpoint.values import StructureError
from sansdtls import ClientConfig
from tests.ports import free_port
from tests.program.running import Running
from tests.program.sinks import PATIENCE, Told, device, devices_of
from tests.program.streams import added, running, say, stream, until
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
        monkeypatch.undo()  # from now on it answers, in whatever time it takes
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


# --- rights and login ------------------------------------------------------------------------------------

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


async def test_the_login_is_what_the_key_store_has_too(tmp_path):
    ca = trustme.CA()
    ours, theirs = ca.issue_cert("endpoint"), ca.issue_cert("127.0.0.1")
    for name, blob in (
        ("ca", ca.cert_pem),
        ("ours", ours.cert_chain_pems[0]),
        ("ours.key", ours.private_key_pem),
        ("server", theirs.cert_chain_pems[0]),
        ("server.key", theirs.private_key_pem),
    ):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_bytes(blob.bytes())
    port = free_port(kind=socket.SOCK_STREAM)
    tls = ["--tls-port", str(port), "--bind", "127.0.0.1", "--tls-ca-cert-file", "ca"]
    tls += ["--tls-cert-file", "server", "--tls-key-file", "server.key"]
    with ValkeyServer(tmp_path, *tls) as server:
        keys = {
            "certificate": tmp_path / "ours",
            "private_key": tmp_path / "ours.key",
            "ca_file": tmp_path / "ca",
        }
        way = ValkeyTable(server=f"valkeys://127.0.0.1:{port}", database=3, **keys)
        sink = ValkeyStream(way, devices=devices_of(), tell=Told())
        async with running(sink):
            sink.deliver(device(), b"x")
            with trio.fail_after(PATIENCE):
                await sink.flush()
        assert server.do("INFO", "keyspace").decode().split()[-1].startswith("db3:keys=1,")


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


async def test_a_server_that_goes_again_within_the_minute_and_stays_away_is_told_of_later(
    tmp_path, autojump_clock
):
    told = Told()
    sink = stream(ValkeyServer(tmp_path), told=told)
    async with running(sink):
        await told.until("forward_down")
        sink._note(None)
        sink._note("it went again")
        await trio.sleep(10)
        assert told.events == ["forward_down", "forward_up"]
        await trio.sleep(200)
        assert told.events == ["forward_down", "forward_up", "forward_down"]
