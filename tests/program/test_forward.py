"""Forwarding: the form of the lines, and that neither a slow nor a closed reader reaches the devices."""

import base64
import errno
import json
import os
from typing import Any

import attrs
import pytest
import trio

from endpoint.association import CredentialKind
from endpoint.forward import ForwardError
from endpoint.forward.echo import Echo
from endpoint.forward.jsonl import JsonLines

BIG = b"x" * 1000


@attrs.define
class FakeAssociation:
    identity: bytes = b"meter-17"
    kind: CredentialKind = CredentialKind.PSK
    remote: str = "192.0.2.7:40000"
    room: int = 100
    sent: list[bytes] = attrs.field(factory=list)

    def send(self, data):
        if len(data) > self.room:
            return False
        self.sent.append(data)
        return True


class Told:
    """Collects what a forwarder tells."""

    def __init__(self):
        self.facts = []
        self.something = trio.Event()

    def __call__(self, event, **facts):
        self.facts.append((event, facts))
        self.something.set()


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    ends = {reading, writing}

    def close(end):
        ends.discard(end)
        os.close(end)

    yield reading, writing, close
    for end in ends:
        os.close(end)


def device(**attributes) -> Any:
    return FakeAssociation(**attributes)


def read_lines(descriptor, number):
    """Exactly ``number`` lines; run in a thread."""
    data = b""
    while data.count(b"\n") < number:
        data += os.read(descriptor, 1_000_000)
    assert data.endswith(b"\n")
    return data.decode().splitlines()


async def run_briefly(forwarder, then):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(forwarder.run)
        result = await then()
        nursery.cancel_scope.cancel()
    return result


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ("21.4 °C".encode(), {"data": "21.4 °C"}),
        (b"", {"data": ""}),
        (b"two\nlines\x00", {"data": "two\nlines\x00"}),
        (b"\xff\x00", {"data_base64": base64.b64encode(b"\xff\x00").decode()}),
    ],
)
async def test_a_datagram_is_one_json_line(pipe, data, shown):
    reading, writing, _ = pipe
    lines = JsonLines(writing, limit=10_000, tell=Told(), wall=lambda: 1_700_000_000.25)
    lines.deliver(device(), data)
    (line,) = await run_briefly(lines, lambda: trio.to_thread.run_sync(read_lines, reading, 1))
    assert line.isprintable()
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "identity": "meter-17",
        "path": "192.0.2.7:40000",
        **shown,
    }


async def test_an_identity_is_shown_as_in_the_log(pipe):
    reading, writing, _ = pipe
    lines = JsonLines(writing, limit=10_000, tell=Told())
    lines.deliver(device(identity=b"a\n\xff"), b"")
    (line,) = await run_briefly(lines, lambda: trio.to_thread.run_sync(read_lines, reading, 1))
    assert json.loads(line)["identity"] == "a\\x0a\\xff"


async def test_lines_keep_their_order(pipe):
    reading, writing, _ = pipe
    lines = JsonLines(writing, limit=1_000_000, tell=Told())
    for number in range(500):
        lines.deliver(device(), str(number).encode())
    found = await run_briefly(lines, lambda: trio.to_thread.run_sync(read_lines, reading, 500))
    assert [json.loads(line)["data"] for line in found] == [str(number) for number in range(500)]


async def test_a_reader_that_does_not_read_costs_new_lines_and_never_blocks(pipe):
    reading, writing, _ = pipe
    told = Told()
    lines = JsonLines(writing, limit=100_000, tell=told)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lines.run)
        for _ in range(300):
            lines.deliver(device(), BIG)
            await trio.lowlevel.checkpoint()
        # The pipe is full and the buffer too, and this task is still here.
        dropped = lines.statistics()["forward_dropped"]
        assert dropped > 0
        assert lines.statistics()["forward_held"] <= 100_000
        assert told.facts[0] == ("forward_overflow", {"output": "standard output", "buffer": 100_000})
        found = await trio.to_thread.run_sync(read_lines, reading, 300 - dropped)
        with trio.fail_after(5):
            await lines.flush()
        nursery.cancel_scope.cancel()
    assert len(found) + sum(facts["dropped"] for event, facts in told.facts if "dropped" in facts) == 300
    assert lines.statistics() == {"forwarded": 300 - dropped, "forward_dropped": dropped, "forward_held": 0}
    assert told.facts[-1][0] == "forward_resumed"


async def test_a_full_disk_costs_its_lines_and_no_more(autojump_clock):
    told = Told()
    full = os.open("/dev/full", os.O_WRONLY)
    with os.fdopen(full):
        lines = JsonLines(full, limit=10_000, tell=told)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lines.run)
            lines.deliver(device(), b"one")
            lines.deliver(device(), b"two")
            await told.something.wait()
            assert told.facts == [
                ("forward_write_failed", {"output": "standard output", "reason": "no space left on device"})
            ]
            await lines.flush()
            assert lines.statistics() == {"forwarded": 0, "forward_dropped": 2, "forward_held": 0}
            nursery.cancel_scope.cancel()


async def test_a_disk_that_stays_full_is_told_once_and_that_it_has_room_when_it_has(
    monkeypatch, autojump_clock, pipe
):
    _, writing, _ = pipe
    told = Told()
    write, room = os.write, [b""]

    def full_disk(descriptor, data):
        if descriptor == writing and room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full_disk)
    lines = JsonLines(writing, limit=10_000, tell=told)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lines.run)
        for _ in range(5):
            lines.deliver(device(), b"x")
            await lines.flush()
            await trio.sleep(10)
        assert [event for event, _ in told.facts] == ["forward_write_failed"]
        room.clear()
        lines.deliver(device(), b"x")
        await lines.flush()
        nursery.cancel_scope.cancel()
    assert told.facts[1:] == [("forward_resumed", {"dropped": 5})]


async def test_a_line_that_was_torn_by_a_failure_does_not_spoil_the_next(monkeypatch, autojump_clock, pipe):
    reading, writing, _ = pipe
    told = Told()
    lines = JsonLines(writing, limit=10_000, tell=told)
    write, answers = os.write, [7, OSError(errno.ENOSPC, "No space left on device")]

    def torn_write(descriptor, data):
        if descriptor != writing or not answers:
            return write(descriptor, data)
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return write(descriptor, data[:answer])

    monkeypatch.setattr(os, "write", torn_write)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lines.run)
        lines.deliver(device(), b"one")
        await told.something.wait()
        lines.deliver(device(), b"two")
        torn, whole = await trio.to_thread.run_sync(read_lines, reading, 2)
        nursery.cancel_scope.cancel()
    assert torn == '{"time"'
    assert json.loads(whole)["data"] == "two"


async def test_an_output_that_somebody_made_non_blocking_is_waited_for(pipe):
    reading, writing, _ = pipe
    os.set_blocking(writing, False)
    lines = JsonLines(writing, limit=1_000_000, tell=Told())
    for _ in range(300):
        lines.deliver(device(), BIG)
    found = await run_briefly(lines, lambda: trio.to_thread.run_sync(read_lines, reading, 300))
    assert len(found) == 300


async def test_a_stop_does_not_wait_for_a_blocked_reader(pipe):
    _, writing, _ = pipe
    lines = JsonLines(writing, limit=1_000_000, tell=Told())
    for _ in range(300):
        lines.deliver(device(), BIG)
    with trio.move_on_after(0.05) as scope:
        await run_briefly(lines, lines.flush)
    assert scope.cancelled_caught


async def test_what_a_reader_that_has_gone_did_not_get_is_counted(pipe):
    reading, writing, close = pipe
    told = Told()
    lines = JsonLines(writing, limit=100_000, tell=told)
    close(reading)
    for _ in range(50):
        lines.deliver(device(), BIG)
    delivered = 50 - lines.statistics()["forward_dropped"]
    assert delivered > 20, "more than are written at once"
    with pytest.raises(ForwardError):
        await lines.run()
    assert lines.statistics() == {"forwarded": 0, "forward_dropped": 50, "forward_held": 0}
    assert lines.drops["write_failed"] == delivered
    await lines.flush()


async def test_a_closed_reader_is_an_error_that_says_so(pipe):
    reading, writing, close = pipe
    lines = JsonLines(writing, limit=10_000, tell=Told())
    close(reading)
    lines.deliver(device(), b"x")
    with pytest.raises(ForwardError, match="standard output was closed by its reader"):
        await lines.run()


def test_a_closed_output_is_noticed_at_the_start(pipe):
    _, writing, close = pipe
    close(writing)
    with pytest.raises(ForwardError, match="standard output is closed"):
        JsonLines(writing, limit=10_000, tell=Told())


async def test_echo_sends_the_data_back_and_counts_what_does_not_fit():
    echo, association = Echo(), device()
    echo.deliver(association, b"hello")
    echo.deliver(association, BIG)
    await echo.flush()
    assert association.sent == [b"hello"]
    assert echo.statistics() == {"forwarded": 1, "forward_dropped": 1}
