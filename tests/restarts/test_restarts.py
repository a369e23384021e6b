"""The endpoint is restarted, gently and not, under a fleet that never stops sending: nobody notices.

What is watched: each meter has an echo of a message that it sent after each restart; the endpoint has made one
handshake for each in all its lives; and a ledger of every record that either side ever sent has
no number twice. As no datagram was dropped on the way to the meters, the ledger knows all that the endpoint
sent, also what its next life was not told of.
"""

import pytest

from sansdtls import ConnectionIdPolicy
from tests.restarts.meters import WINDOW, Meters, identity
from tests.restarts.service import prepare, supervised

pytestmark = pytest.mark.slow

COUNT = 10_000
"""Meters, as many as a carrier's NAT may hide. Most of the time goes into their handshakes."""
FEW = 100
"""Where the number does not matter."""
OWN_IDS = (0, 0, 0, 4, 8)
"""Lengths of the meters' own connection IDs, by turns. Most devices need none: they have one peer."""

MOVING = 200
"""One of so many meters moves during each restart: no more than the window, in which they wait for an echo that
went to their old address."""
MEMORY = """
[state]
key_file = "state.key"
"""
"""At a stop associations go to the service manager's descriptor store."""
SQLITE = """
[state]
store = "sqlite"
file = "state.db"
key_file = "state.key"
"""


def with_id(number):
    return {"connection_id": ConnectionIdPolicy(length=OWN_IDS[number % len(OWN_IDS)])}


def begin(service, meters):
    """Start the endpoint, and have every meter connected and heard."""
    service.start()
    service.wait_until_said("READY")
    meters.connect()
    meters.hear_all()


def restart(service, meters, signal, *, moving=()):
    """End the endpoint in the middle of a round and start it again, with the meters sending all along.

    ``moving`` are the meters that get new addresses while nobody serves them. Returns the exit status.
    """
    meters.begin_round()
    meters.stream(lambda: meters.behind <= len(meters.all) // 2)
    service.signal(signal)
    meters.stream(lambda: service.ended, up=lambda: False)
    status = service.wait()
    for meter in moving:
        meters.move(meter)
    service.start()
    meters.hear_all(up=lambda: service.has_said("READY"))
    return status


def test_a_kill_without_saved_state_loses_every_association(tmp_path):
    with supervised(tmp_path, FEW) as (service, target), Meters(FEW, target, with_id) as meters:
        begin(service, meters)
        meters.settle()
        service.stop("SIGKILL")
        service.start()
        service.wait_until_said("READY")
        meters.say_once()
        with Meters(1, target) as newcomers:
            # Once it is answered, all that was sent before has been read.
            newcomers.connect()
            newcomers.hear_all()
        assert meters.behind == FEW
        assert service.stop() == 0
        discarded = service.facts("stopped")[-1]["statistics"]["server"]["records_discarded"]
        # The newcomer may have repeated what the endpoint was slow to answer.
        discarded.pop("duplicate_handshake_message", None)
        assert sum(discarded.values()) == FEW


def test_memory_that_was_used_is_not_used_again_though_the_manager_keeps_it(tmp_path):
    with supervised(tmp_path, FEW, MEMORY) as (service, target), Meters(FEW, target, with_id) as meters:
        begin(service, meters)
        meters.settle()
        assert service.stop() == 0
        kept = list(service.stored)
        service.start()
        meters.hear_all(up=lambda: service.has_said("READY"))
        meters.settle()
        service.stop("SIGKILL")
        assert service.stored == kept != []
        service.start()
        service.wait_until_said("READY")
        assert service.facts("restored") == []
        meters.say_once()
        with Meters(1, target) as newcomers:
            newcomers.connect()
            newcomers.hear_all()
        # Their associations are lost, and no record of theirs was repeated.
        assert meters.behind == FEW
        assert meters.dropped_by_kernel == 0


def test_10_000_associations_stream_through_three_restarts_of_the_process(tmp_path):
    # What hands over: the manager's descriptor store; the database at a stop; what was written of it at a kill.
    with supervised(tmp_path, COUNT, MEMORY) as (service, target), Meters(COUNT, target, with_id) as meters:
        begin(service, meters)
        host, port = target
        prepare(tmp_path, COUNT, host, port, SQLITE)
        for number, (signal, status) in enumerate((("SIGTERM", 0), ("SIGTERM", 0), ("SIGKILL", -9))):
            moving = meters.all[number::MOVING]
            assert restart(service, meters, signal, moving=moving) == status
            # More than these where a kill came before their last move was saved.
            wait_until_moved(service, {identity(meter.number).decode() for meter in moving})
            unexpected = set(+meters.lost) - {meter.number for meter in moving}
            # At a stop what comes meanwhile waits in the socket's buffer; a kill takes what was just read.
            assert len(unexpected) <= (0 if status == 0 else WINDOW)
            meters.lost.clear()
        manager, *databases = [fact["from"] for fact in service.facts("restored", ever=True)]
        assert "service manager" in manager
        assert databases == ["state.db", "state.db"]
        assert service.stop() == 0
        assert_nobody_noticed(service, meters)


def wait_until_moved(service, identities):
    service.wait_until(
        lambda: {fact["identity"] for fact in service.facts("moved")} >= identities,
        "all that have moved are followed",
    )


def assert_nobody_noticed(service, meters):
    assert meters.causes == {}
    assert all(meter.connected for meter in meters.all)
    assert len(service.facts("connected", ever=True)) == len(meters.all)
    assert service.facts("stopped")[-1]["statistics"]["server"]["handshakes_started"] == 0
    # Raised already if there was a repetition; this is that nothing escaped the books.
    assert meters.dropped_by_kernel == 0
    assert meters.received.records >= sum(meter.echoed for meter in meters.all)
    assert meters.sent.records >= sum(meter.sent for meter in meters.all)


def test_kills_at_any_moment_lose_nobody_and_repeat_nothing(tmp_path):
    with supervised(tmp_path, FEW, SQLITE) as (service, target), Meters(FEW, target, with_id) as meters:
        begin(service, meters)
        # From a stop on all are in the database. Before, those of the last second might not be.
        assert restart(service, meters, "SIGTERM") == 0
        for echoes in (1, 7, 90, 1000):
            enough = meters.received.records + echoes
            meters.stream(lambda enough=enough: meters.received.records >= enough)
            assert restart(service, meters, "SIGKILL") == -9
        assert service.stop() == 0
        assert_nobody_noticed(service, meters)
