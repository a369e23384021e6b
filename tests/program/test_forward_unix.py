"""``unix``: another program's datagram socket, which may be slow, away or restarted, and the way back from it."""

import base64
import contextlib
import errno
import itertools
import json
import os
import socket
import stat
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from endpoint.association import CredentialKind
from endpoint.forward import ForwardError
from endpoint.forward.objects import payload_of, read_identity, reply_in
from endpoint.forward.unix import BATCH, UnixDatagrams
from endpoint.tables.sinks import UnixTable
from endpoint.text import show_bytes
from tests.program.fronts import fronting
from tests.program.sinks import PATIENCE, Told, device, devices_of


class Program:
    """The other program: it reads when it is told to."""

    def __init__(self, path):
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(str(path))

    async def next(self):
        with trio.fail_after(PATIENCE):
            await trio.lowlevel.wait_readable(self.socket)
        return self.socket.recv(1_000_000)

    def waiting(self):
        """What is there already."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self.socket.recv(1_000_000))
        return found

    def end(self):
        """As a program that ends without tidying up."""
        self.socket.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


@contextlib.asynccontextmanager
async def sending(path, *associations, **keys):
    """A running sink without an engine; what it tells; and its way back."""
    told, devices = Told(), devices_of(*associations)
    table = UnixTable(path=path, **keys)
    sink = UnixDatagrams(table, devices=devices, tell=told, wall=lambda: 1_700_000_000.25)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink.run)
            await wait_all_tasks_blocked()
            yield sink, told, devices
            nursery.cancel_scope.cancel()
    finally:
        sink.close()


QUEUE = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
"""Datagrams that the kernel holds for a program that does not read."""


# --- what arrives ---


async def test_a_datagram_is_one_json_object(tmp_path):
    path = tmp_path / "there"
    with Program(path) as program:
        async with sending(path) as (sink, told, _):
            sink.deliver(device(), "21.4 °C".encode())
            sink.deliver(device(b"a\n", kind=CredentialKind.CERTIFICATE), b"\xff\0")
            sink.deliver(device(b"", kind=CredentialKind.NONE), b"x")
            first, second, third = [json.loads(await program.next()) for _ in range(3)]
            assert first == {
                "time": "2023-11-14T22:13:20.250Z",
                "identity": "meter-17",
                "path": "192.0.2.7:40000",
                "data": "21.4 °C",
            }
            assert (second["identity"], second["data_base64"]) == ("a\\x0a", "/wA=")
            assert third["identity"] is None
            await sink.flush()
            assert told.facts == []
            assert sink.statistics() == {
                "forwarded": 3,
                "forward_dropped": 0,
                "forward_held": 0,
                "down": False,
            }


async def test_raw_is_what_the_device_sent(tmp_path):
    path = tmp_path / "there"
    with Program(path) as program:
        async with sending(path, format="raw") as (sink, _, _):
            sink.deliver(device(), b"\xff\0")
            assert await program.next() == b"\xff\0"


# --- slow, away, restarted ---


async def test_a_program_that_does_not_read_loses_nothing_within_the_buffer(tmp_path):
    path = tmp_path / "there"
    with Program(path) as program:
        async with sending(path, format="raw") as (sink, told, _):
            expected = [b"%d" % number for number in range(QUEUE + 3 * BATCH)]
            for data in expected:
                sink.deliver(device(), data)
            await wait_all_tasks_blocked()
            assert sink.statistics()["forward_held"] > 0
            assert [await program.next() for _ in expected] == expected
            await sink.flush()
            assert told.facts == []


@pytest.mark.parametrize(("overflow", "left"), [("newest", b"0"), ("oldest", b"9")])
async def test_overflow_says_what_is_dropped(tmp_path, overflow, left):
    async with sending(tmp_path / "nobody", format="raw", buffer=1024, overflow=overflow) as (sink, told, _):
        for number in range(10):
            sink.deliver(device(), b"%d" % number * 1000)
        assert sink.drops == {"overflow": 9}
        assert (await told.until("forward_overflow"))["buffer"] == 1024
        with Program(tmp_path / "nobody") as program:
            assert await program.next() == left * 1000
        await told.until("forward_resumed")


async def test_a_program_that_comes_late_gets_what_waited_and_that_is_told(tmp_path, autojump_clock):
    path = tmp_path / "there"
    async with sending(path, format="raw") as (sink, told, _):
        sink.deliver(device(), b"one")
        await trio.sleep(60)
        sink.deliver(device(), b"two")
        assert told.facts == [("forward_down", {"output": str(path), "reason": "no such file or directory"})]
        assert sink.statistics()["down"]
        with Program(path) as program:
            await trio.sleep(10)
            assert program.waiting() == [b"one", b"two"]
        assert told.facts[1:] == [("forward_up", {"output": str(path)})]
        assert not sink.statistics()["down"]


async def test_a_program_that_is_restarted_is_found_again(tmp_path, autojump_clock):
    path = tmp_path / "there"
    async with sending(path, format="raw") as (sink, told, _):
        with Program(path) as before:
            sink.deliver(device(), b"one")
            assert await before.next() == b"one"
        sink.deliver(device(), b"two")
        await told.until("forward_down")
        with Program(path) as after:
            assert await after.next() == b"two"
            await told.until("forward_up")
            sink.deliver(device(), b"three")
            assert await after.next() == b"three"


async def test_a_program_that_ends_while_its_queue_is_full_is_noticed(tmp_path, autojump_clock):
    path = tmp_path / "there"
    async with sending(path, format="raw") as (sink, told, _):
        with Program(path):
            for number in range(sent := QUEUE + 100):
                sink.deliver(device(), b"%d" % number)
            await wait_all_tasks_blocked()
            assert sink.statistics()["forward_held"]
        await told.until("forward_down")
        with Program(path) as after:
            await told.until("forward_up")
            found: list[bytes] = []
            while not found or found[-1] != b"%d" % (sent - 1):
                found.append(await after.next())
        # What the first one had not read when it ended is lost with its socket, as the kernel has told nobody.
        assert found == [b"%d" % number for number in range(sent - len(found), sent)]
        assert len(found) >= 90


async def test_pauses_between_attempts_grow(tmp_path, autojump_clock, monkeypatch):
    attempts = []

    def connect(sink):
        attempts.append(trio.current_time())
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(UnixDatagrams, "_connected", connect)
    async with sending(tmp_path / "there") as (sink, told, _):
        sink.deliver(device(), b"x")
        await trio.sleep(60)
    pauses = [round(later - before, 1) for before, later in itertools.pairwise(attempts)]
    assert pauses[:6] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2]
    assert set(pauses[6:]) == {5.0}
    assert told.facts == [
        ("forward_down", {"output": str(tmp_path / "there"), "reason": "permission denied"})
    ]


async def test_the_first_pause_after_a_success_is_short_again(tmp_path, autojump_clock):
    path = tmp_path / "there"
    async with sending(path, format="raw") as (sink, _, _):
        sink.deliver(device(), b"one")
        await trio.sleep(60)
        with Program(path) as before:
            await trio.sleep(6)
            assert before.waiting() == [b"one"]
        sink.deliver(device(), b"two")
        await wait_all_tasks_blocked()
        with Program(path) as after:
            await trio.sleep(0.2)
            assert after.waiting() == [b"two"]


async def test_what_is_too_large_for_a_datagram_is_dropped_and_the_next_goes_on(tmp_path):
    path = tmp_path / "there"
    with Program(path) as program:
        async with sending(path, format="raw", buffer=2**24) as (sink, told, _):
            sink.deliver(device(), bytes(2**23))
            sink.deliver(device(), b"small")
            assert await program.next() == b"small"
            assert sink.drops == {"too_large": 1}
            assert told.facts[0] == ("forward_too_large", {"output": str(path), "size": 2**23})


# --- the way back ---


@contextlib.contextmanager
def writing_to(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(str(path))
        yield sock


async def test_a_reply_goes_to_its_device(tmp_path):
    one, two = device(b"meter-1"), device(b"a\n\xff")
    async with sending(tmp_path / "there", one, two, listen=tmp_path / "back") as (_, _, devices):
        with writing_to(tmp_path / "back") as program:
            program.send(b'{"identity": "meter-1", "data": "on \xc2\xb0"}')
            program.send(b'{"identity": "a\\\\x0a\\\\xff", "data_base64": "/wA=", "more": 1}')
            await wait_all_tasks_blocked()
        assert one.sent == ["on °".encode()]
        assert two.sent == [b"\xff\0"]
        assert devices.statistics() == {"replies": 2, "replies_dropped": {}}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"on", "malformed"),
        (b"[]", "malformed"),
        (b'{"data": "x"}', "malformed"),
        (b'{"identity": null, "data": "x"}', "malformed"),
        (b'{"identity": "meter-1"}', "malformed"),
        (b'{"identity": "meter-1", "data": 1}', "malformed"),
        (b'{"identity": "meter-1", "data_base64": 1}', "malformed"),
        (b'{"identity": "meter-1", "data_base64": "%"}', "malformed"),
        (b'{"identity": "meter-1", "data": "x", "data_base64": ""}', "malformed"),
        (b'{"identity": "meter-1\\\\", "data": "x"}', "malformed"),
        (b'{"identity": "meter-1", "data": "\\ud800"}', "malformed"),
        (b"[" * 100_000, "malformed"),
        (b"\xff", "malformed"),
        (b"", "malformed"),
        (b'{"identity": "meter-2", "data": "x"}', "not_awake"),
        (b'{"identity": "meter-1", "data": "xxxxx"}', "too_large"),
    ],
)
async def test_a_reply_that_is_none_or_has_nobody_is_counted(tmp_path, content, reason):
    meter = device(b"meter-1", room=4)
    async with sending(tmp_path / "there", meter, listen=tmp_path / "back") as (_, told, devices):
        with writing_to(tmp_path / "back") as program:
            program.send(content)
            program.send(b'{"identity": "meter-1", "data": "next"}')
            await wait_all_tasks_blocked()
        assert devices.drops == {reason: 1}
        assert meter.sent == [b"next"]
        assert told.facts == []


@given(st.binary())
def test_an_identity_is_read_as_it_was_shown(identity):
    assert read_identity(show_bytes(identity)) == identity


@given(st.text(st.sampled_from("\\xuU0123456789abcdefF\n☃é")) | st.text())
def test_what_never_is_shown_is_no_identity(text):
    try:
        identity = read_identity(text)
    except ValueError:
        return
    assert show_bytes(identity) == text


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_what_is_written_as_a_reply_is_read_as_one(identity, data):
    content = json.dumps({"identity": show_bytes(identity), **payload_of(data)}).encode()
    assert reply_in(content) == (identity, data)


async def test_the_way_there_and_back_through_an_engine(tmp_path):
    table = UnixTable(path=tmp_path / "there", listen=tmp_path / "back")
    with Program(tmp_path / "there") as program:
        async with fronting(lambda devices, told: UnixDatagrams(table, devices=devices, tell=told)) as front:
            meter = await front.served.device(identity=b"meter-1").connect()
            await meter.send(b"\xffhello")
            read = json.loads(await program.next())
            assert (read["identity"], read["path"]) == ("meter-1", meter.path)
            answer = base64.b64encode(b"heard " + base64.b64decode(read["data_base64"])).decode()
            with writing_to(tmp_path / "back") as back:
                back.send(json.dumps({"identity": read["identity"], "data_base64": answer}).encode())
            assert await meter.receive() == b"heard \xffhello"


# --- our socket ---


async def test_our_socket_is_for_its_owner_from_the_first_moment_and_goes_with_the_service(
    tmp_path, monkeypatch
):
    path = tmp_path / "back"
    monkeypatch.setattr(Path, "chmod", lambda *_: None)  # it must not need that
    before = os.umask(0)
    try:
        async with sending(tmp_path / "there", listen=path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)
    assert not path.exists()


def made(listen):
    return UnixDatagrams(
        UnixTable(path=listen.parent / "there", listen=listen), devices=devices_of(), tell=Told()
    )


def test_a_name_that_a_dead_process_has_left_is_taken_over(tmp_path):
    path = tmp_path / "back"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(path))
    made(path).close()
    assert not path.exists()


def test_a_name_that_is_somebody_elses_by_now_stays(tmp_path):
    path = tmp_path / "back"
    sink = made(path)
    path.unlink()
    with Program(path):
        sink.close()
        assert path.exists()


@pytest.mark.parametrize(
    ("prepare", "what"),
    [
        (lambda path: path.touch(), "is there already, and no socket; remedy: name another"),
        (
            lambda path: path.parent.rmdir(),
            "its directory is not there; remedy: make it, for the service only",
        ),
    ],
)
def test_a_socket_that_cannot_be_made_is_an_error_with_a_remedy(tmp_path, prepare, what):
    path = tmp_path / "run" / "back"
    path.parent.mkdir()
    prepare(path)
    with pytest.raises(ForwardError) as refused:
        made(path)
    assert str(refused.value) == f"{path}: {what}"


def test_a_socket_where_nobody_can_make_one_is_an_error():
    with pytest.raises(ForwardError, match=r"^/proc/back: cannot be made: .*; remedy: another  listen$"):
        made(Path("/proc/back"))


def test_a_socket_that_is_in_use_is_left_alone(tmp_path):
    path = tmp_path / "back"
    with Program(path) as program, pytest.raises(ForwardError, match="in use by another process"):
        made(path)
    assert program.socket.fileno() == -1
