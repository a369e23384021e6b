"""How long an association lives without a word, awake and asleep: the time is the same, and so is what is told."""

from __future__ import annotations

import math

import pytest

from sansdtls import (
    ConnectionTerminated,
    ConnectionThawed,
    IdleTimeout,
    Limits,
    PeerClose,
)
from sansdtls.frozen_members import EXPIRED_AT_ONCE
from sansdtls.testing import CounterEntropy, Network, Pair, VirtualClock
from tests.core.freezing import (
    BOTH_IDS,
    FREEZE_AFTER,
    NO_ID,
    ONLY_OUR_ID,
    config_of,
    connect,
    freeze,
    freezing_fleet,
    only,
    record_of,
    say,
    told,
)

DAY = 86_400.0
IDS = {"no ID": NO_ID, "our ID": ONLY_OUR_ID, "both": BOTH_IDS}
each_kind = pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
live_or_frozen = pytest.mark.parametrize("freeze_after", [None, FREEZE_AFTER], ids=["live", "frozen"])
each_notice = pytest.mark.parametrize("notify", [True, False], ids=["notified", "in silence"])


def next_timeout(fleet):
    due = fleet.server.next_timeout()
    assert due is not None
    return due


@each_kind
@live_or_frozen
@each_notice
def test_an_association_ends_at_its_time_whether_it_sleeps_or_not(ids, freeze_after, notify):
    network = Network(delay=0.0123)  # so that times are no round numbers
    fleet = freezing_fleet(freeze_after=freeze_after, notify_idle_timeout=notify, network=network)
    client = connect(fleet, 1, connection_id=ids)
    allowed = DAY if ids is NO_ID else 90 * DAY
    over = only(fleet).last_received + allowed
    fleet.run_for(FREEZE_AFTER)
    assert fleet.server.frozen == (freeze_after is not None)
    fleet.server_events.clear()
    fleet.run_for(math.nextafter(over, 0) - fleet.now)
    assert fleet.server_events == []
    assert len(fleet.server) + fleet.server.frozen == 1
    assert next_timeout(fleet) == over
    sent_before = fleet.server.statistics.datagrams_sent
    fleet.server_events += fleet.server.handle_timeout(now=over)
    fleet.run_for(DAY)
    asleep = ["thawed"] if freeze_after else []
    assert told(fleet.server_events) == [*asleep, IdleTimeout(allowed)]
    assert fleet.server.statistics.datagrams_sent - sent_before == notify
    assert (len(fleet.server), fleet.server.frozen, fleet.server.statistics.frozen) == (0, 0, 0)
    assert (client.cause == PeerClose()) is notify
    assert fleet.server.statistics.thaws == 0
    assert len(fleet.server._routes) == 0


@each_notice
def test_a_client_tells_its_server_too_if_it_is_to(notify):
    config = config_of(1, limits=Limits(idle_timeout=50), notify_idle_timeout=notify, connection_id=NO_ID)
    pair = Pair(config, keys={b"dev1": [bytes([1]) * 16]})
    pair.handshake()
    pair.run_for(51)
    assert pair.client_end.cause == IdleTimeout(50)
    assert pair.server_causes() == [PeerClose()] * notify


@each_kind
def test_without_an_idle_timeout_it_sleeps_for_ever(ids):
    fleet = freezing_fleet(limits=Limits(idle_timeout=None, idle_timeout_with_connection_id=None))
    client = connect(fleet, 1, connection_id=ids)
    freeze(fleet, client)
    fleet.run_for(1e9)
    assert fleet.server.frozen == 1
    say(fleet, client, b"after thirty years")


@each_kind
def test_the_time_is_counted_from_the_last_authentic_record_across_all_sleeps(ids):
    limits = Limits(idle_timeout=100, idle_timeout_with_connection_id=100)
    fleet = freezing_fleet(limits=limits)
    client = connect(fleet, 1, connection_id=ids)
    for _ in range(3):
        heard = only(fleet).last_received
        (handle,) = freeze(fleet, client)
        fleet.run_for(30)
        connection = fleet.server.wake(handle, now=fleet.now)  # neither waking nor sending counts
        assert connection is not None
        assert connection.last_received == heard
        connection.send(b"wake up", now=fleet.now)
        fleet.run_for(FREEZE_AFTER)
        assert fleet.server.frozen == 1
        fleet.run_for(heard + 99.9 - fleet.now)
        say(fleet, client, b"just in time")
    heard = only(fleet).last_received
    (handle,) = freeze(fleet, client)
    fleet.run_for(heard + 95 - fleet.now)
    connection = fleet.server.wake(handle, now=fleet.now)
    fleet.run_for(heard + 99.999 - fleet.now)
    assert only(fleet) is connection
    fleet.run_for(0.001)
    assert told(fleet.server_events)[-2:] == ["thawed", IdleTimeout(100)]


def test_one_that_is_late_but_not_yet_ended_is_heard():
    # As a live one: what the clock says counts when somebody looks at it.
    fleet = freezing_fleet(limits=Limits(idle_timeout_with_connection_id=100))
    client = connect(fleet, 1)
    freeze(fleet, client)
    late = fleet.now + 200
    events = fleet.server.receive_datagram(record_of(fleet, client, b"late"), path=client.path, now=late)
    assert told(events) == ["thawed", b"late"]
    assert told(fleet.server.handle_timeout(now=late)) == []


def test_one_that_is_woken_too_late_ends():
    fleet = freezing_fleet(limits=Limits(idle_timeout_with_connection_id=100))
    client = connect(fleet, 1)
    (handle,) = freeze(fleet, client)
    late = fleet.now + 200
    assert fleet.server.wake(handle, now=late) is not None
    assert told(fleet.server.handle_timeout(now=late)) == ["thawed", IdleTimeout(100)]


def test_kinds_with_short_and_long_times_end_each_at_its_own():
    fleet = freezing_fleet()
    for number, ids in enumerate((NO_ID, ONLY_OUR_ID, NO_ID, BOTH_IDS)):
        connect(fleet, number, connection_id=ids)
        fleet.run_for(1)
    fleet.run_for(FREEZE_AFTER)
    moments = []
    fleet.on_server_event = lambda event: moments.append((fleet.now // DAY, type(event)))
    fleet.run_for(100 * DAY)
    assert moments == [
        (day, kind) for day in (1, 1, 90, 90) for kind in (ConnectionThawed, ConnectionTerminated)
    ]


def asleep_at_once(count):
    fleet = freezing_fleet(limits=Limits(idle_timeout_with_connection_id=100))
    fleet.keys = {b"dev%d" % number: [bytes([number % 256]) * 16] for number in range(count)}
    for number in range(count):
        fleet.connect(config_of(number % 256, psk_identity=b"dev%d" % number), number)
    fleet.run_until(lambda: len(fleet.server) == count)
    blobs = list(fleet.server.freeze_all(now=fleet.now))
    for blob in blobs:
        fleet.server.restore(blob, now=fleet.now)
    assert fleet.server.frozen == count
    return fleet


def test_many_end_in_batches_and_each_call_ends_so_many():
    fleet = asleep_at_once(2 * EXPIRED_AT_ONCE + 5)
    over = next_timeout(fleet)
    for expected in (EXPIRED_AT_ONCE, EXPIRED_AT_ONCE, 5):
        assert next_timeout(fleet) <= over, "due at once"
        words = told(fleet.server.handle_timeout(now=over))
        assert words == ["thawed", IdleTimeout(100)] * expected
    assert fleet.server.frozen == 0
    assert told(fleet.server.handle_timeout(now=over)) == []
    assert fleet.server.next_timeout() is None


def test_a_clock_that_was_stopped_for_long_ends_all_of_them_the_longest_silent_first():
    fleet = freezing_fleet(limits=Limits(idle_timeout_with_connection_id=100))
    clients = [connect(fleet, number) for number in range(5)]
    chance = CounterEntropy(4)
    order = sorted(clients, key=lambda _: chance(4))
    for client in order:
        fleet.run_for(1)
        say(fleet, client, b"x")
    fleet.run_for(FREEZE_AFTER)
    events = fleet.server.handle_timeout(now=fleet.now + 5000)
    ended = [event.connection.path for event in events if isinstance(event, ConnectionTerminated)]
    assert ended == [client.path for client in order]


@pytest.mark.parametrize("start", [0.1, 12_345.678, 1_795_312_861.3])
def test_the_seconds_that_are_told_are_those_of_the_configuration_whatever_the_clock_says(start):
    limits = Limits(idle_timeout=123.456)
    fleet = freezing_fleet(network=Network(delay=0.0123, clock=VirtualClock(start)), limits=limits)
    connect(fleet, 1, connection_id=NO_ID)
    fleet.run_for(FREEZE_AFTER + 1)
    assert fleet.server.frozen == 1
    fleet.run_for(150)
    assert fleet.server_causes() == [IdleTimeout(123.456)]
