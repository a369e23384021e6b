"""What a device with a valid key, or a caller in an unusual order, can do to a server that freezes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from sansdtls import (
    ConfigError,
    Connection,
    ConnectionIdPolicy,
    ConnectionOffered,
    ConnectionState,
    Limits,
    LocalClose,
    PskRequested,
    ReturnRoutability,
    ServerConfig,
    SnapshotError,
    UsageError,
    WrongState,
)
from sansdtls.snapshot import RESERVE, decode_snapshot
from sansdtls.testing import CounterEntropy
from sansdtls.wire.record import read_record_untrusted
from tests.core.freezing import (
    FREEZE_AFTER,
    KEYS,
    NO_ID,
    config_of,
    connect,
    freeze,
    freezing_fleet,
    only,
    record_of,
    say,
    told,
)

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sansdtls import Event
    from sansdtls.testing import Fleet

UNASKED = ConnectionIdPolicy(length=0, return_routability=ReturnRoutability.OFF)
"""Of a device that is believed wherever it is heard."""


def connect_record_by_record(fleet: Fleet, number: int, path: Hashable) -> Connection:
    """A device without connection ID, each of whose records comes in a datagram of its own."""
    config = config_of(number, connection_id=NO_ID)
    client = Connection.client(config, entropy=CounterEntropy(number), now=fleet.now, path="server")
    while datagrams := client.datagrams_to_send():
        for datagram in datagrams:
            rest = datagram.data
            while (record := read_record_untrusted(rest, 0)) is not None:
                answer(fleet, fleet.server.receive_datagram(rest[: record.length], path=path, now=fleet.now))
                rest = rest[record.length :]
        for outgoing in fleet.server.datagrams_to_send():
            if outgoing.path == path:
                client.receive_datagram(outgoing.data, now=fleet.now)
    assert client.state is ConnectionState.CONNECTED
    return client


def answer(fleet: Fleet, events: list[Event]) -> None:
    for event in events:
        if isinstance(event, ConnectionOffered):
            fleet.server.accept(event, now=fleet.now)
        elif isinstance(event, PskRequested):
            answer(fleet, event.connection.provide_psk(event, KEYS[event.identity], now=fleet.now))


def test_a_crowd_of_sleepers_on_one_path_does_not_hide_the_one_that_is_found_by_it():
    fleet = freezing_fleet()
    gate = ("gate", 1)
    first = connect(fleet, 0, gate, connection_id=NO_ID)
    fleet.run_for(FREEZE_AFTER)
    fleet.power_off(first)
    for number in range(1, 11):
        client = connect(fleet, number, ("elsewhere", number), connection_id=UNASKED)
        fleet.move(client, gate)
        say(fleet, client, b"here now")
        fleet.run_for(FREEZE_AFTER)
        fleet.power_off(client)
    assert fleet.server.frozen == 11
    newcomer = connect_record_by_record(fleet, 11, gate)
    assert fleet.server.frozen == 10, "whoever was found by this path has given way"
    newcomer.send(b"all arrived", now=fleet.now)
    for outgoing in newcomer.datagrams_to_send():
        fleet.server.receive_datagram(outgoing.data, path=gate, now=fleet.now)
    fleet.run_for(FREEZE_AFTER)
    assert fleet.server.frozen == fleet.server.statistics.frozen == 11


def test_of_one_that_was_woken_by_the_caller_the_first_that_is_told_is_that():
    fleet = freezing_fleet()
    client = connect(fleet, 0)
    (handle,) = freeze(fleet, client)
    before = len(fleet.server_events)
    assert fleet.server.wake(handle, now=fleet.now) is not None
    datagram = record_of(fleet, client, b"at the same moment")
    events = fleet.server.receive_datagram(datagram, path=client.path, now=fleet.now)
    assert told(events) == ["thawed", b"at the same moment"]
    assert len(fleet.server_events) == before
    assert told(fleet.server.handle_timeout(now=fleet.now)) == []


def test_one_that_is_woken_and_closed_is_not_told_to_be_there_after_its_end():
    fleet = freezing_fleet()
    client = connect(fleet, 0)
    (handle,) = freeze(fleet, client)
    woken = fleet.server.wake(handle, now=fleet.now)
    assert woken is not None
    woken.close(now=fleet.now)
    datagram = record_of(fleet, client, b"too late")
    events = fleet.server.receive_datagram(datagram, path=client.path, now=fleet.now)
    assert told(events) == ["thawed", LocalClose()]


def test_one_whose_waking_was_not_told_yet_cannot_be_taken_out():
    fleet = freezing_fleet()
    client = connect(fleet, 0)
    (handle,) = freeze(fleet, client)
    woken = fleet.server.wake(handle, now=fleet.now)
    assert woken is not None
    with pytest.raises(WrongState, match="events wait"):
        fleet.server.freeze(woken, now=fleet.now)
    assert told(fleet.server.handle_timeout(now=fleet.now)) == ["thawed"]
    assert fleet.server.freeze(woken, now=fleet.now)


def test_one_that_cannot_be_saved_makes_no_room_and_no_limit_is_exceeded():
    fleet = freezing_fleet(limits=Limits(max_associations=2))
    sleeper = connect(fleet, 0)
    freeze(fleet, sleeper)
    for number in (1, 2):
        connect(fleet, number, frozenset({number}))
    fleet.network.send(sleeper.path, fleet.server_path, record_of(fleet, sleeper, b"no room"))
    fleet.run_for(0)
    assert len(fleet.server) == fleet.server.statistics.associations == 2
    assert fleet.server.frozen == fleet.server.statistics.frozen == 1
    (handle,) = fleet.server._freezer.store.handles()
    assert fleet.server.wake(handle, now=fleet.now) is None


def test_one_that_cannot_be_saved_does_not_stand_in_the_way_of_one_that_can():
    fleet = freezing_fleet(limits=Limits(max_associations=2))
    sleeper = connect(fleet, 0)
    freeze(fleet, sleeper)
    connect(fleet, 1, frozenset({1}))
    connect(fleet, 2)
    say(fleet, sleeper, b"awake")
    assert len(fleet.server) == 2
    assert fleet.server.frozen == 1


def test_the_gauge_of_the_frozen_is_right_wherever_the_caller_stops_taking_them_out():
    fleet = freezing_fleet()
    freeze(fleet, *[connect(fleet, number) for number in range(3)])
    for left in fleet.server.freeze_all(now=fleet.now):
        assert left
        assert fleet.server.statistics.frozen == fleet.server.frozen
        break
    assert fleet.server.statistics.frozen == fleet.server.frozen == 2


def test_all_that_were_taken_out_and_put_back_stay_below_what_the_disk_says():
    fleet = freezing_fleet(durable=True, generation=1)
    connect(fleet, 0)
    server = fleet.server
    server.confirm(server.checkpoint(now=fleet.now))
    connection = only(fleet)
    saved_at = connection._layer.write.next_sequence_number
    for _ in range(RESERVE - 100):
        connection.send(b"x", now=fleet.now)
    (blob,) = server.freeze_all(now=fleet.now)
    again = server.thaw(blob, now=fleet.now)
    with contextlib.suppress(WrongState):
        for _ in range(2 * RESERVE):
            again.send(b"x", now=fleet.now)
    assert again._layer.write.next_sequence_number == saved_at + RESERVE


def test_a_checkpoint_does_not_show_what_it_saves():
    fleet = freezing_fleet(durable=True, generation=1)
    connect(fleet, 0)
    checkpoint = fleet.server.checkpoint(now=fleet.now)
    (saved,) = checkpoint.saved
    assert repr(checkpoint) == "<Checkpoint 1 saved, 0 removed>"
    assert repr(saved) == f"<Saved {saved.handle.hex()} {len(saved.blob)} bytes>"


def test_what_the_caller_keeps_with_an_association_is_in_the_next_checkpoint():
    fleet = freezing_fleet(durable=True, generation=1)
    connect(fleet, 0)
    fleet.server.confirm(fleet.server.checkpoint(now=fleet.now))
    only(fleet).annotation = b"note"
    (saved,) = fleet.server.checkpoint(now=fleet.now).saved
    assert decode_snapshot(saved.blob, keys=()).annotation == b"note"


def test_of_one_whose_numbers_were_used_up_in_its_sleep_no_older_copy_is_taken():
    fleet = freezing_fleet(limits=Limits(max_sealed_records=64))
    client = connect(fleet, 0)
    older = fleet.server.freeze(only(fleet), now=fleet.now)
    again = fleet.server.thaw(older, now=fleet.now)
    for _ in range(40):
        again.send(b"x", now=fleet.now)
    (handle,) = freeze(fleet, client)
    assert fleet.server.wake(handle, now=fleet.now) is None
    assert fleet.server.statistics.frozen_lost == 1
    with pytest.raises(SnapshotError, match="loaded before"):
        fleet.server.thaw(older, now=fleet.now)


@pytest.mark.parametrize("value", ["text", bytearray(b"may change"), None, bytes(1025)])
def test_an_annotation_that_could_not_be_saved_is_refused_when_it_is_set(value):
    fleet = freezing_fleet()
    connect(fleet, 0)
    with pytest.raises(UsageError, match="annotation"):
        only(fleet).annotation = value


@pytest.mark.parametrize("keys", [("k" * 32,), b"k" * 32, (bytearray(32),), (b"k" * 31,)])
def test_keys_that_could_not_seal_are_refused_in_the_configuration(keys):
    with pytest.raises(ConfigError, match="snapshot_keys"):
        ServerConfig(snapshot_keys=keys)


def test_a_generation_that_no_blob_could_carry_is_refused():
    with pytest.raises(ConfigError, match="generation"):
        freezing_fleet(durable=True, generation=-1)
