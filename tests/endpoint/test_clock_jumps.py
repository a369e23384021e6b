"""The wall clock is set, and the machine is suspended, while the service runs: what notices and what does not."""

import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio

from endpoint.clock import ClockSources, LastingClock
from endpoint.logs import make_log
from endpoint.verification import PeerRejected, PeerVerifier
from sansdtls import Limits, PeerCertificateReceived, ServerConfig
from sansdtls.pki import Purpose, TrustPolicy
from tests.core.certificates import CLIENT_AUTH, END, NOW, START, Authority
from tests.endpoint.devices import PATIENCE, serving

DAY = 86_400.0
YEARS = 10 * 365 * DAY


class Machine:
    """A wall clock and a time since the boot that a test moves; the process's own time is trio's."""

    def __init__(self):
        self.wall = 1.8e9
        self.asleep = 0.0

    @property
    def sources(self):
        return ClockSources(
            wall=lambda: self.wall,
            boottime=lambda: trio.current_time() + self.asleep,
            boot_id=lambda: "boot",
        )


@pytest.mark.parametrize("jump", [YEARS, -YEARS, -1.8e9, 3600.0, -3600.0])
async def test_a_jump_of_the_wall_clock_ends_no_association_and_delays_no_timer(autojump_clock, jump):
    machine = Machine()
    clock = LastingClock(machine.sources)
    limits = Limits(idle_timeout=100.0, idle_timeout_with_connection_id=100.0)
    async with serving(config=ServerConfig(limits=limits, freeze_after=20.0), clock=clock) as served:
        device = served.device()
        await device.connect()
        await device.send(b"before")
        assert await device.receive() == b"before"
        await trio.sleep(30)
        assert served.engine.statistics()["frozen"] == 1
        machine.wall += jump
        await trio.sleep(30)
        await device.send(b"after")
        assert await device.receive() == b"after"
        # And what is due, is due: after a hundred seconds of silence, by no clock on a wall.
        heard = trio.current_time()
        machine.wall -= 2 * jump
        await trio.sleep(99 - (trio.current_time() - heard))
        assert not served.observer.ended
        await trio.sleep(2)
        assert served.engine.statistics()["frozen"] + len(served.observer.live) == 0


async def test_a_suspended_machine_has_heard_nobody_and_ends_nobody(autojump_clock):
    # Devices could not reach it meanwhile; an idle timeout that counted that would end the whole fleet at once.
    machine = Machine()
    clock = LastingClock(machine.sources)
    limits = Limits(idle_timeout=100.0)
    async with serving(config=ServerConfig(limits=limits), clock=clock) as served:
        device = served.device()
        await device.connect()
        before = clock()
        machine.asleep += 30 * DAY
        assert clock() == before
        await trio.sleep(50)
        assert clock() == before + 50
        await device.send(b"good morning")
        assert await device.receive() == b"good morning"


async def test_the_next_process_counts_the_time_asleep_that_lies_between_and_never_goes_back(autojump_clock):
    machine = Machine()
    first = LastingClock(machine.sources)
    machine.asleep += 30 * DAY  # while it runs: not counted
    anchor = first.anchor()
    machine.asleep += 2 * DAY  # between the two: known, and part of the time for which nobody was heard
    machine.wall -= YEARS
    second = LastingClock.resume(anchor, sources=machine.sources)
    assert second() == pytest.approx(first() + 2 * DAY)
    assert second() >= first()


def test_the_log_has_the_time_that_the_system_has():
    stream, wall = io.BytesIO(), [0.0]
    log = make_log(stream, wall=lambda: wall[0])
    for moment in ("2026-01-01T00:00:00", "2036-06-01T12:00:00", "1970-01-01T00:00:05"):
        wall[0] = datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp()
        log.info("x")
    times = [json.loads(line)["time"] for line in stream.getvalue().splitlines()]
    assert [time[:19] for time in times] == [
        "2026-01-01T00:00:00",
        "2036-06-01T12:00:00",
        "1970-01-01T00:00:05",
    ]


async def test_certificates_are_judged_by_the_time_of_the_moment():
    root = Authority.root("Fleet root")
    meter = root.device("meter-7", purposes=[CLIENT_AUTH])
    now = [NOW]
    policy = TrustPolicy(purpose=Purpose.CLIENT, anchors=(root.der,))
    judge = PeerVerifier(policy, {}, wall_clock=lambda: now[0])

    connection: Any = None

    async def judged():
        request: Any = PeerCertificateReceived(connection, meter.chain, server_name=None)
        try:
            verdict: Any = judge(request)
            return await verdict
        except PeerRejected as error:
            return type(error).__name__

    with trio.fail_after(PATIENCE):
        assert await judged() == b"meter-7"
        now[0] = END + timedelta(days=1)
        assert await judged() == "PeerRejected"
        now[0] = START - timedelta(days=1)
        assert await judged() == "PeerRejected"
        now[0] = NOW
        assert await judged() == b"meter-7"
