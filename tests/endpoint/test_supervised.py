"""What a running service tells its manager: that it lives, how it is, that it reloads, that something takes longer."""

import os
import socket
import threading
from itertools import count, pairwise
from typing import Any

import attrs
import pytest
import trio

from endpoint.reloads import Reloads
from endpoint.supervised import ASK_EVERY, LOOK_EVERY, STATUS_INTERVAL, LongWork, Supervised
from endpoint.systemd import Notifier, Supervision, SupervisionError, take_watchdog
from endpoint.udp import bind_udp
from tests.endpoint.devices import serving

PID = 4711


class FakeNotifier(Notifier):
    """Keeps what would be said, with trio's time."""

    def __init__(self):
        super().__init__("/nobody")
        self.said: list[tuple[float, tuple[str, ...]]] = []
        self.deaf = False

    def tell(self, *assignments, descriptors=(), patience=1.0):
        if not self.deaf:
            self.said.append((now(), assignments))
        return not self.deaf

    def times(self, assignment):
        return [at for at, said in self.said if assignment in said]

    def texts(self, name):
        return [one[len(name) + 1 :] for _, said in self.said for one in said if one.startswith(f"{name}=")]


def now():
    try:
        return trio.current_time()
    except RuntimeError:
        return 0.0


@attrs.define(eq=False)
class FakeSocket:
    local_text: str = "127.0.0.1:5684"
    drains: int = 0
    reading: int = attrs.field(factory=lambda: os.pipe()[0])

    def fileno(self):
        return self.reading


@attrs.define
class FakeEngine:
    sockets: Any = ()
    late: float = 0.0


class Told:
    """A service, and what it says."""

    def __init__(self, watchdog=None):
        self.notifier = FakeNotifier()
        self.text = "serving"
        self.troubles: list[tuple[str, dict[str, object]]] = []
        self.supervised = Supervised(
            Supervision(notifier=self.notifier, watchdog=watchdog),
            describe=lambda: self.text,
            trouble=lambda what, **facts: self.troubles.append((what, facts)),
        )


# --- the watchdog -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_PID": str(PID)}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(PID)}, 1.5),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(PID + 1)}, None),
    ],
)
def test_the_manager_says_whether_and_how_often_it_wants_to_hear(environment, seconds):
    assert take_watchdog(environment, pid=PID) == seconds
    assert environment == {}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WATCHDOG_USEC": "soon"}, 'WATCHDOG_USEC: "soon" is not a number of microseconds'),
        ({"WATCHDOG_USEC": "0"}, 'WATCHDOG_USEC: "0" is not a number of microseconds'),
        ({"WATCHDOG_USEC": "1", "WATCHDOG_PID": "-1"}, 'WATCHDOG_PID: "-1" is not a process id'),
    ],
)
def test_junk_about_the_watchdog_is_refused(environment, message):
    with pytest.raises(SupervisionError) as caught:
        take_watchdog(environment, pid=PID)
    assert str(caught.value) == message


async def run_for(seconds, told, engine):
    with trio.move_on_after(seconds):
        await told.supervised.run(engine)


async def test_a_service_that_serves_pings_every_half_of_the_time(autojump_clock):
    begin = trio.current_time()
    told = Told(watchdog=30.0)
    assert told.supervised.ready()
    await run_for(100, told, FakeEngine())
    assert told.notifier.times("WATCHDOG=1") == [begin + seconds for seconds in (0, 15, 30, 45, 60, 75, 90)]
    assert told.troubles == []


async def test_without_a_watchdog_there_is_no_ping(autojump_clock):
    told = Told()
    told.supervised.ready()
    await run_for(100, told, FakeEngine())
    assert told.notifier.times("WATCHDOG=1") == []


async def test_timers_that_are_late_withhold_the_ping_and_say_so(autojump_clock):
    told = Told(watchdog=30.0)
    engine = FakeEngine(late=15.1)
    await run_for(40, told, engine)
    assert told.notifier.times("WATCHDOG=1") == []
    assert told.troubles[0] == (
        "watchdog withheld",
        {"reason": "timers are 15.1 s late", "seconds": 30.0},
    )
    engine.late = 14.9  # a machine under load is no reason to be killed
    await run_for(1, told, engine)
    assert len(told.notifier.times("WATCHDOG=1")) == 1


async def test_a_socket_that_is_not_read_withholds_the_ping(autojump_clock):
    told = Told(watchdog=30.0)
    reading, writing = os.pipe()
    sock = FakeSocket(reading=reading)
    engine = FakeEngine(sockets=(sock,))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(told.supervised.run, engine)
        await trio.sleep(20)
        assert len(told.notifier.times("WATCHDOG=1")) == 2
        os.write(writing, b"datagram")
        await trio.sleep(14)
        assert len(told.notifier.times("WATCHDOG=1")) == 2
        assert told.troubles == [
            (
                "watchdog withheld",
                {"reason": "127.0.0.1:5684 has datagrams and is not read", "seconds": 30.0},
            )
        ]
        sock.drains += 1  # it is read, and there is always more
        await trio.sleep(15)
        assert len(told.notifier.times("WATCHDOG=1")) == 3
        nursery.cancel_scope.cancel()
    os.close(writing)
    os.close(reading)


async def test_a_datagram_that_has_just_come_is_no_reason(autojump_clock):
    begin = trio.current_time()
    told = Told(watchdog=30.0)
    reading, writing = os.pipe()
    sock = FakeSocket(reading=reading)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(told.supervised.run, FakeEngine(sockets=(sock,)))
        await trio.sleep(14.9)
        os.write(writing, b"x")
        await trio.sleep(0.2)  # in between the ping is due, and only then the socket's turn comes
        sock.drains += 1
        await trio.sleep(3)
        assert told.notifier.times("WATCHDOG=1") == [begin, begin + 18]
        nursery.cancel_scope.cancel()
    os.close(writing)
    os.close(reading)


async def test_a_thread_that_hangs_is_no_reason_to_be_killed_and_none_to_live(autojump_clock):
    # A disk or a name server that does not answer holds up one lookup; all other devices are served.
    told = Told(watchdog=2.0)
    release = threading.Event()

    async def hang():
        await trio.to_thread.run_sync(release.wait)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hang)
        await run_for(10, told, FakeEngine())
        release.set()
    assert len(told.notifier.times("WATCHDOG=1")) >= 10
    assert told.troubles == []


async def test_a_real_engine_is_on_time_and_read():
    async with serving() as served:
        device = served.device()
        await device.connect()
        assert served.engine.late == 0.0
        drains = served.engine.sockets[0].drains
        await device.send(b"x")
        assert await device.receive() == b"x"
        assert served.engine.sockets[0].drains > drains
        # Timers that nobody runs show.
        server = served.engine._server
        deadline = server.next_timeout()
        served.engine._clock = lambda: deadline + 7
        assert served.engine.late == 7


async def test_a_socket_that_was_closed_has_nothing_to_read(autojump_clock):
    (udp,) = await bind_udp("127.0.0.1", 0)
    udp.close()
    told = Told(watchdog=30.0)
    await run_for(1, told, FakeEngine(sockets=(udp,)))
    assert len(told.notifier.times("WATCHDOG=1")) == 1


def test_no_text_can_trigger_the_watchdog(tmp_path):
    path = str(tmp_path / "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        notifier = Notifier(path)
        for end in ("\n", "\r\n", "\r", "\x0b", "\x85", "\u2028"):
            assert notifier.status(f"meter{end}WATCHDOG=trigger")
            assert manager.recv(200).decode() == "STATUS=meter WATCHDOG=trigger"


# --- the status -------------------------------------------------------------------------------------


async def test_the_status_is_told_when_it_has_changed_and_not_too_often(autojump_clock):
    told = Told()
    told.supervised.ready()

    async def change():
        for number in count():
            await trio.sleep(1)
            told.text = f"serving {number // 25}"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        await run_for(61, told, FakeEngine())
        nursery.cancel_scope.cancel()
    assert told.notifier.texts("STATUS") == ["serving", "serving 0", "serving 1", "serving 2"]
    times = [at for at, said in told.notifier.said]
    assert all(after - before >= STATUS_INTERVAL for before, after in pairwise(times))


async def test_a_manager_that_did_not_hear_is_told_again(autojump_clock):
    told = Told()
    told.supervised.ready()
    told.text, told.notifier.deaf = "other", True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(told.supervised.run, FakeEngine())
        await trio.sleep(STATUS_INTERVAL + 1)
        told.notifier.deaf = False
        await trio.sleep(STATUS_INTERVAL)
        nursery.cancel_scope.cancel()
    assert told.notifier.texts("STATUS") == ["serving", "other"]


# --- reloads ----------------------------------------------------------------------------------------


async def test_a_reload_is_told_before_and_after_with_the_time(autojump_clock):
    told = Told()
    told.supervised.ready()
    with told.supervised.reloading():
        told.text = "reloaded"
    (_, ready), (_, reloading), (_, again) = told.notifier.said
    assert ready == ("READY=1", "STATUS=serving")
    assert reloading[0] == "RELOADING=1"
    assert int(reloading[1].removeprefix("MONOTONIC_USEC=")) > 0
    assert again == ("READY=1", "STATUS=reloaded")


async def test_a_reload_before_the_service_is_ready_or_after_it_stops_does_not_call_it_ready(autojump_clock):
    told = Told()
    with told.supervised.reloading():
        pass
    assert told.notifier.said == []
    told.supervised.ready()
    with told.supervised.reloading():
        told.supervised.stopping()
    with told.supervised.reloading():
        pass
    assert [said[0] for _, said in told.notifier.said] == ["READY=1", "RELOADING=1"]


class Loads:
    """Reloads that take a second each."""

    def __init__(self):
        self.begun: list[float] = []
        self.fail: Exception | None = None

    async def __call__(self):
        self.begun.append(trio.current_time())
        await trio.sleep(1)
        if self.fail is not None:
            raise self.fail
        return {"reloaded": True, "number": len(self.begun)}


async def test_reloads_are_served_one_at_a_time_and_whoever_asks_gets_one_that_began_after(autojump_clock):
    begin = trio.current_time()
    told, loads = Told(), Loads()
    reloads = Reloads(loads, supervised=told.supervised, trouble=told.supervised._trouble)
    got = {}

    async def ask(name, at):
        await trio.sleep(at)
        got[name] = (await reloads.outcome())["number"]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reloads.run)
        async with trio.open_nursery() as asking:
            for name, at in (("first", 0), ("during", 0.5), ("during too", 0.6), ("later", 5)):
                asking.start_soon(ask, name, at)
            await trio.sleep(0.7)
            reloads.ask()  # SIGHUP
        nursery.cancel_scope.cancel()
    assert got == {"first": 1, "during": 2, "during too": 2, "later": 3}
    assert loads.begun == [begin, begin + 1, begin + 5]


async def test_a_reload_that_breaks_ends_nothing_and_is_told(autojump_clock):
    told, loads = Told(), Loads()
    loads.fail = MemoryError("no room")
    reloads = Reloads(loads, supervised=told.supervised, trouble=told.supervised._trouble)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reloads.run)
        outcome = await reloads.outcome()
        assert outcome == {
            "reloaded": False,
            "errors": ["it broke; the log says how"],
            "errors_in_all": 1,
        }
        loads.fail = None
        assert (await reloads.outcome())["reloaded"]
        nursery.cancel_scope.cancel()
    assert told.troubles == [("reload failed", {"reason": "MemoryError('no room')"})]


async def test_the_command_waits_if_it_is_to(autojump_clock):
    begin = trio.current_time()
    told, loads = Told(), Loads()
    reloads = Reloads(loads, supervised=told.supervised, trouble=told.supervised._trouble)
    command = reloads.commands()["reload"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reloads.run)
        assert await command({"command": "reload"}) == {"asked": True}
        assert trio.current_time() == begin
        await trio.sleep(0.5)
        assert (await command({"command": "reload", "wait": True}))["number"] == 2
        nursery.cancel_scope.cancel()


# --- long work --------------------------------------------------------------------------------------


def test_more_time_is_asked_for_while_something_takes_long():
    notifier = FakeNotifier()
    time = [0.0]
    work = LongWork(notifier, clock=lambda: time[0])

    def items():
        for number in range(20 * LOOK_EVERY):
            time[0] += 1.0 / LOOK_EVERY
            yield number

    assert list(work.over(items())) == list(range(20 * LOOK_EVERY))
    asked = [said for _, said in notifier.said]
    assert set(asked) == {("EXTEND_TIMEOUT_USEC=60000000",)}
    assert len(asked) == int(20 / ASK_EVERY) - 1


def test_short_work_asks_for_nothing():
    notifier = FakeNotifier()
    assert list(LongWork(notifier, clock=lambda: 0.0).over(range(1000))) == list(range(1000))
    assert notifier.said == []
