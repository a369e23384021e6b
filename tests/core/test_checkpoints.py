"""Checkpoints of a durable server: what is in them, and that no number is used before it is reserved on disk."""

from __future__ import annotations

import pytest

from sansdtls import (
    ConnectionState,
    Limits,
    ServerConfig,
    SnapshotError,
    WrongState,
)
from sansdtls.freezer import Checkpoint
from sansdtls.snapshot import RESERVE, THAW_JUMP, decode_snapshot
from sansdtls.wire.record import MAX_SEQUENCE_NUMBER
from tests.core import frozen, raw
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
    replace_server,
    say,
    told,
)
from tests.core.puppet import PuppetClient, ServerRig

IDS = {"no ID": NO_ID, "our ID": ONLY_OUR_ID, "both": BOTH_IDS}
EMPTY = Checkpoint([], [])
each_kind = pytest.mark.parametrize("ids", IDS.values(), ids=IDS)


def durable_fleet(**more):
    return freezing_fleet(durable=True, **more)


def checkpoint(fleet) -> Checkpoint:
    made = fleet.server.checkpoint(now=fleet.now)
    assert isinstance(made, Checkpoint)
    return made


def confirmed(fleet) -> Checkpoint:
    made = checkpoint(fleet)
    fleet.server.confirm(made)
    return made


def saved_in(made, keys=()):
    """Handle to what is saved under it."""
    return {saved.handle: decode_snapshot(saved.blob, keys=keys) for saved in made.saved}


def next_number(connection) -> int:
    number: int = connection._layer.write.next_sequence_number
    return number


def send_until_refused(fleet, connection) -> int:
    """How many records could be sent."""
    for count in range(10 * RESERVE):
        try:
            connection.send(b"", now=fleet.now)
        except WrongState as error:
            assert "no further record numbers are reserved until a checkpoint is confirmed" in str(error)
            fleet.server.datagrams_to_send()
            return count
    raise AssertionError("nothing stops it")


# --- what is in them ----------------------------------------------------------------------------------


@each_kind
def test_only_what_has_changed_since_the_last_one_is_in_a_checkpoint(ids):
    fleet = durable_fleet()
    clients = [connect(fleet, number, connection_id=ids) for number in range(4)]
    first = confirmed(fleet)
    assert len(first.saved) == 4
    assert first.removed == []
    handle_by_identity = {saved.psk_identity: handle for handle, saved in saved_in(first).items()}
    handles = [handle_by_identity[b"dev%d" % number] for number in range(4)]
    assert checkpoint(fleet) == EMPTY
    say(fleet, clients[2], b"x")
    assert [saved.handle for saved in confirmed(fleet).saved] == [handles[2]]
    assert checkpoint(fleet) == EMPTY
    freeze(fleet, *clients)
    made = confirmed(fleet)
    assert sorted(saved.handle for saved in made.saved) == sorted(handles)
    assert all(saved.connection is None for saved in made.saved)
    fleet.run_for(5)
    assert checkpoint(fleet) == EMPTY
    say(fleet, clients[1], b"awake")
    clients[1].connection.close(now=fleet.now)
    fleet.run_for(1)
    assert confirmed(fleet)[:2] == ([], [handles[1]])
    say(fleet, clients[3], b"awake")
    (saved,) = confirmed(fleet).saved
    assert (saved.handle, saved.connection) == (handles[3], only(fleet))


@each_kind
def test_what_is_heard_beside_a_handshake_is_in_the_next_one_too(ids):
    fleet = durable_fleet()
    client = connect(fleet, 1, path="device", connection_id=ids)
    (before,) = saved_in(confirmed(fleet)).values()
    fleet.psk_after = None
    fleet.connect(config_of(2), "device")
    fleet.run_for(0.5)
    assert fleet.server.statistics.half_open == 1
    assert checkpoint(fleet) == EMPTY
    say(fleet, client, b"beside")
    (after,) = saved_in(checkpoint(fleet)).values()
    assert (after.read_highest, after.last_received) == (before.read_highest + 1, fleet.now)


def test_what_ended_between_two_checkpoints_is_removed_only():
    fleet = durable_fleet()
    client = connect(fleet, 1)
    client.connection.close(now=fleet.now)
    fleet.run_for(1)
    made = checkpoint(fleet)
    assert made.saved == []
    assert len(made.removed) == 1


@pytest.mark.parametrize("end", ["expired", "replaced", "given away", "damaged", "closed"])
@each_kind
def test_whatever_ends_it_an_association_is_removed(ids, end):
    fleet = durable_fleet(limits=Limits(idle_timeout=50, idle_timeout_with_connection_id=50))
    client = connect(fleet, 1, connection_id=ids)
    (handle,) = [saved.handle for saved in confirmed(fleet).saved]
    if end != "given away":
        freeze(fleet, client)
        confirmed(fleet)
    if end == "expired":
        fleet.run_for(60)
    elif end == "replaced":
        connect(fleet, 1, path=client.path, connection_id=ids)
    elif end == "given away":
        fleet.server.freeze(only(fleet), now=fleet.now)
    elif end == "damaged":
        blob = fleet.server._freezer.take(handle)
        damaged = blob[:-1] + bytes([blob[-1] ^ 1])
        fleet.server._freezer.put(handle, client.path, damaged)
        assert fleet.server.wake(handle, now=fleet.now) is None
    else:
        connection = fleet.server.wake(handle, now=fleet.now)
        connection.close(now=fleet.now)
        fleet.run_for(1)
    made = checkpoint(fleet)
    if end == "replaced" and ids is NO_ID:  # the new one has the same handle
        assert [saved.handle for saved in made.saved] == [handle]
        assert made.removed == []
    else:
        assert made.removed == [handle]


def test_forgeries_for_a_sleeper_are_no_reason_to_write():
    # Junk could make the disk busy otherwise. What is lost in a crash is a count of forgeries.
    fleet = durable_fleet()
    client = connect(fleet, 1)
    (handle,) = freeze(fleet, client)
    confirmed(fleet)
    for number in range(20):
        junk = raw.record(raw.TLS12_CID, bytes(40), epoch=1, seq=900 + number, connection_id=handle[1:])
        assert fleet.server.receive_datagram(junk, path="anywhere", now=fleet.now) == []
    assert checkpoint(fleet) == EMPTY
    assert not fleet.server.checkpoint_due
    say(fleet, client, b"awake")
    assert send_until_refused(fleet, only(fleet)) == RESERVE - THAW_JUMP


def test_what_came_from_the_store_need_not_go_there_again():
    fleet = durable_fleet()
    connect(fleet, 1)
    (blob,) = fleet.server.freeze_all(now=fleet.now)
    for saved, expected in ((True, 0), (False, 1)):
        replace_server(fleet, ServerConfig(), durable=True, generation=1)
        fleet.server.restore(blob, now=fleet.now, saved=saved)
        assert len(checkpoint(fleet).saved) == expected


def test_a_server_that_is_not_durable_keeps_no_books():
    fleet = freezing_fleet()
    client = connect(fleet, 1)
    for _ in range(3 * RESERVE):
        only(fleet).send(b"", now=fleet.now)
    fleet.server.datagrams_to_send()
    freeze(fleet, client)
    say(fleet, client, b"x")
    assert not fleet.server.checkpoint_due
    assert checkpoint(fleet) == EMPTY
    assert not fleet.server._freezer._changed
    assert not fleet.server._freezer._bounds


# --- the numbers --------------------------------------------------------------------------------------


@each_kind
def test_sending_stops_exactly_at_the_bound_and_goes_on_when_a_checkpoint_is_confirmed(ids):
    fleet = durable_fleet()
    client = connect(fleet, 1, connection_id=ids)
    connection = only(fleet)
    made = checkpoint(fleet)
    (saved,) = saved_in(made).values()
    bound = saved.write_sequence_number + RESERVE
    assert made.saved[0].reserved_until == bound
    for _ in range(3):
        start = next_number(connection)
        assert send_until_refused(fleet, connection) == bound - start
        assert next_number(connection) == bound
        with pytest.raises(WrongState):
            connection.send(b"", now=fleet.now)
        made = checkpoint(fleet)
        with pytest.raises(WrongState):
            connection.send(b"", now=fleet.now)
        fleet.server.confirm(made)
        bound += RESERVE
    connection.send(b"goes on", now=fleet.now)
    fleet.run_for(0.1)
    assert client.received == [b"goes on"]
    assert connection.state is ConnectionState.CONNECTED


def test_until_the_first_checkpoint_nothing_can_be_found_and_nothing_has_to_be_reserved():
    fleet = durable_fleet()
    connect(fleet, 1)
    for _ in range(2 * RESERVE):
        only(fleet).send(b"", now=fleet.now)
    made = checkpoint(fleet)
    (saved,) = saved_in(made).values()
    assert saved.write_sequence_number == next_number(only(fleet))
    # Made, though not confirmed, it may be found.
    assert send_until_refused(fleet, only(fleet)) == RESERVE


def test_a_checkpoint_is_due_from_half_way():
    fleet = durable_fleet()
    connect(fleet, 1)
    confirmed(fleet)
    connection = only(fleet)
    for _ in range(RESERVE // 2):
        connection.send(b"", now=fleet.now)
        assert not fleet.server.checkpoint_due
    connection.send(b"", now=fleet.now)
    assert fleet.server.checkpoint_due
    made = checkpoint(fleet)
    assert len(made.saved) == 1
    assert not fleet.server.checkpoint_due
    fleet.server.confirm(made)
    connection.send(b"", now=fleet.now)
    assert not fleet.server.checkpoint_due


def test_sending_alone_brings_an_association_into_the_next_checkpoint():
    fleet = durable_fleet()
    connect(fleet, 1)
    confirmed(fleet)
    for _ in range(RESERVE // 2 + 1):
        only(fleet).send(b"", now=fleet.now)
    (saved,) = saved_in(checkpoint(fleet)).values()
    assert saved.write_sequence_number == next_number(only(fleet))


def test_confirming_in_any_order_never_lowers_a_bound():
    fleet = durable_fleet()
    client = connect(fleet, 1)
    made = []
    for number in range(3):
        say(fleet, client, b"%d" % number)
        for _ in range(100):
            only(fleet).send(b"", now=fleet.now)
        made.append(checkpoint(fleet))
    bounds = [one.saved[0].reserved_until for one in made]
    assert bounds == sorted(set(bounds))
    assert only(fleet).reserved_until == bounds[0]
    for number, expected in ((1, 1), (0, 1), (2, 2), (1, 2), (2, 2)):
        fleet.server.confirm(made[number])
        assert only(fleet).reserved_until == bounds[expected]


def test_confirming_the_checkpoint_of_an_earlier_life_gives_the_later_one_nothing():
    fleet = durable_fleet()
    client = connect(fleet, 1)
    first = confirmed(fleet)
    bound = first.saved[0].reserved_until
    for _ in range(1000):
        only(fleet).send(b"", now=fleet.now)
    say(fleet, client, b"x")
    second = checkpoint(fleet)
    assert second.saved[0].reserved_until == bound + 1000
    freeze(fleet, client)
    asleep = checkpoint(fleet)
    say(fleet, client, b"awake")
    third = checkpoint(fleet)
    assert only(fleet).reserved_until == bound, "neither is on the disk"
    for old in (second, asleep):
        fleet.server.confirm(old)
        assert only(fleet).reserved_until == bound
    assert (
        send_until_refused(fleet, only(fleet))
        == bound - (second.saved[0].reserved_until - RESERVE) - THAW_JUMP
    )
    fleet.server.confirm(third)
    assert send_until_refused(fleet, only(fleet)) > 0


def test_one_that_sleeps_and_wakes_between_checkpoints_has_no_more_than_before():
    fleet = durable_fleet()
    client = connect(fleet, 1)
    bound = confirmed(fleet).saved[0].reserved_until
    for number in range(4):
        only(fleet).send(b"", now=fleet.now)
        freeze(fleet, client)
        say(fleet, client, b"awake %d" % number)
        assert only(fleet).reserved_until == bound
    freeze(fleet, client)
    (saved,) = saved_in(made := checkpoint(fleet)).values()
    fleet.server.confirm(made)
    say(fleet, client, b"awake")
    assert only(fleet).reserved_until == saved.write_sequence_number + RESERVE > bound


def test_one_that_wakes_with_nothing_reserved_can_be_heard_but_not_sent_to():
    fleet = durable_fleet()
    client = connect(fleet, 1)
    checkpoint(fleet)
    send_until_refused(fleet, only(fleet))
    freeze(fleet, client)
    say(fleet, client, b"awake")
    with pytest.raises(WrongState, match="no further record numbers"):
        only(fleet).send(b"", now=fleet.now)
    assert fleet.server.checkpoint_due
    confirmed(fleet)
    only(fleet).send(b"now", now=fleet.now)
    fleet.run_for(0.1)
    assert client.received[-1] == b"now"


def test_several_checkpoints_in_one_transaction_are_confirmed_one_by_one():
    fleet = durable_fleet()
    clients = [connect(fleet, number) for number in range(3)]
    made = [checkpoint(fleet)]
    for client in clients[:2]:
        say(fleet, client, b"x")
        made.append(checkpoint(fleet))
        assert len(made[-1].saved) == 1
    for one in made:
        fleet.server.confirm(one)
    reserved = {saved.handle: saved.reserved_until for one in made for saved in one.saved}
    for connection in fleet.server.connections:
        assert connection.reserved_until == reserved[b"c" + connection.connection_id]


# --- what else is written -----------------------------------------------------------------------------


def exhausted_rig():
    """A server on strings whose association has no number left."""
    rig = ServerRig()
    rig.server._freezer.durable = True
    device = PuppetClient(rig).handshake()
    device.give(device.data(b"x"))
    rig.server.checkpoint(now=rig.now)
    connection = rig.connection
    bound = connection.reserved_until
    while next_number(connection) < bound:
        connection.send(b"", now=rig.now)
    rig.sent()
    return rig, device, connection, bound


def test_alerts_and_answers_do_not_go_beyond_the_bound_either():
    rig, device, connection, bound = exhausted_rig()
    assert (
        device.give(device.message(raw.CLIENT_HELLO, device.hello_body(), epoch=1)) == []
    )  # no_renegotiation
    connection.close(now=rig.now)
    assert rig.sent() == []
    assert next_number(connection) <= bound
    assert device.alerts() == []


@pytest.mark.parametrize("how", ["close_notify", "unexpected_message", "idle"])
def test_an_association_ends_in_silence_where_no_number_is_reserved_for_its_alert(how):
    rig, device, connection, _ = exhausted_rig()
    if how == "close_notify":
        answers = device.give(device.alert(1, 0, epoch=1))
    elif how == "unexpected_message":
        answers = device.give(device.record(99, b"x", epoch=1))
        answers += device.give(
            device.record(raw.HANDSHAKE, raw.fragment(raw.FINISHED, b"", message_seq=99), epoch=1)
        )
    else:
        answers = rig.wait(100_000)
    assert answers == []
    assert connection.state is ConnectionState.CLOSED
    assert len(rig.server) == 0


def test_checks_of_a_path_do_not_go_beyond_the_bound():
    fleet = durable_fleet()
    client = connect(fleet, 1)
    checkpoint(fleet)
    connection = only(fleet)
    send_until_refused(fleet, connection)
    bound = connection.reserved_until
    fleet.move(client, "elsewhere")
    say(fleet, client, b"from elsewhere")
    fleet.run_for(5)
    assert next_number(connection) <= bound
    freeze(fleet, client)
    fleet.move(client, "third")
    say(fleet, client, b"from a third place")  # the check begins with the waking record
    fleet.run_for(5)
    assert next_number(only(fleet)) <= bound + THAW_JUMP
    assert connection.path == only(fleet).path


def test_a_sleeper_with_nothing_reserved_expires_in_silence():
    fleet = durable_fleet(limits=Limits(idle_timeout_with_connection_id=50))
    client = connect(fleet, 1)
    checkpoint(fleet)
    send_until_refused(fleet, only(fleet))
    freeze(fleet, client)
    sent = fleet.server.statistics.datagrams_sent
    fleet.run_for(60)
    assert fleet.server.frozen == 0
    assert fleet.server.statistics.datagrams_sent == sent
    assert client.cause is None


# --- generations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("generations", [0, 1, 2, 7])
@pytest.mark.parametrize("way", ["thaw", "restore"])
def test_each_generation_that_has_passed_leaves_out_what_the_last_may_have_used(generations, way):
    saved = frozen.saved(generation=3, write_sequence_number=100)
    fleet = durable_fleet(generation=3 + generations)
    blob = frozen.unsealed(saved)
    if way == "thaw":
        connection = fleet.server.thaw(blob, now=86_401)
    else:
        handle = fleet.server.restore(blob, now=86_401, saved=True).handle
        connection = fleet.server.wake(handle, now=86_401)
    assert next_number(connection) == 100 + RESERVE * generations + THAW_JUMP
    # What a crash in this generation leaves behind is at most this blob; the next begins beyond all of it.
    assert connection.reserved_until == 100 + RESERVE * (generations + 1)
    count = send_until_refused(fleet, connection)
    assert count == RESERVE - THAW_JUMP
    later = durable_fleet(generation=4 + generations)
    assert next_number(later.server.thaw(blob, now=86_401)) > next_number(connection)


def test_a_blob_that_was_frozen_again_without_a_word_has_the_reserve_of_its_generation_behind_it():
    # Its number is given back, but only what was left out for the thaw: what the last process may have used is not.
    fleet = durable_fleet(generation=4)
    blob = frozen.unsealed(frozen.saved(generation=3, write_sequence_number=100))
    connection = fleet.server.thaw(blob, now=86_401)
    again = decode_snapshot(fleet.server.freeze(connection, now=86_401), keys=())
    assert (again.generation, again.write_sequence_number) == (4, 100 + RESERVE)


def test_a_blob_of_a_later_generation_is_refused_wherever_it_is():
    fleet = durable_fleet(generation=2)
    blob = frozen.unsealed(frozen.saved(generation=3))
    for way in ("thaw", "restore"):
        with pytest.raises(
            SnapshotError, match="of generation 3, and this is 2: an old store has been put back"
        ):
            getattr(fleet.server, way)(blob, now=86_401)
    handle = b"c" + frozen.saved().connection_id
    fleet.server._freezer.put(handle, frozen.saved().path, blob)
    assert fleet.server.wake(handle, now=86_401) is None
    assert fleet.server.statistics.frozen_lost == 1


def test_a_killed_process_and_the_next_use_no_number_twice():
    fleet = durable_fleet()
    client = connect(fleet, 1)
    made = confirmed(fleet)
    last_used = -1
    for generation in range(1, 4):
        send_until_refused(fleet, only(fleet))
        fleet.run_for(0.01)
        numbers = [
            record.seq
            for sent in fleet.network.sent_by("server")
            for record in raw.records(sent.data)
            if record.epoch
        ]
        assert len(numbers) == len(set(numbers))
        (saved,) = made.saved
        assert decode_snapshot(saved.blob, keys=()).generation == generation - 1
        last_used = next_number(only(fleet)) - 1
        # Killed: what the disk has is the checkpoint of the beginning.
        replace_server(fleet, ServerConfig(freeze_after=FREEZE_AFTER), durable=True, generation=generation)
        fleet.server.restore(saved.blob, now=fleet.now, saved=True)
        say(fleet, client, b"generation %d" % generation)
        assert next_number(only(fleet)) > last_used
        only(fleet).send(b"hello again", now=fleet.now)
        fleet.run_for(0.1)
        assert client.received[-1] == b"hello again"
        made = confirmed(fleet)


def test_one_that_was_never_saved_is_bounded_from_its_first_sleep_on():
    # Until then nothing can be found of it; a sleeper's blob will be in the next checkpoint.
    fleet = durable_fleet()
    client = connect(fleet, 1)
    assert only(fleet).reserved_until == MAX_SEQUENCE_NUMBER
    freeze(fleet, client)
    record = record_of(fleet, client, b"x")
    assert told(fleet.server.receive_datagram(record, path=client.path, now=fleet.now)) == ["thawed", b"x"]
    assert only(fleet).reserved_until == next_number(only(fleet)) - THAW_JUMP + RESERVE
