"""A server that freezes silent associations: when, what it tells, what it holds, and when it does not."""

from __future__ import annotations

import math

import attrs
import pytest

from sansdtls import (
    ConnectionFrozen,
    ConnectionIdPolicy,
    ConnectionState,
    ConnectionThawed,
    DataReceived,
    LimitExceeded,
    Limits,
    LocalClose,
    PathPolicy,
    PeerClose,
    ServerConfig,
    WrongState,
)
from sansdtls.members import LOOKED_AT_FOR_ROOM
from sansdtls.saved_paths import encode_path
from tests.core.freezing import (
    BOTH_IDS,
    FREEZE_AFTER,
    NO_ID,
    ONLY_OUR_ID,
    config_of,
    connect,
    freeze,
    freezing_fleet,
    frozen_events,
    identity_of,
    negotiated_of,
    only,
    peer_of,
    received,
    record_of,
    replace_server,
    say,
    told,
)

each_kind = pytest.mark.parametrize("ids", [NO_ID, ONLY_OUR_ID, BOTH_IDS], ids=["no ID", "our ID", "both"])


# --- when ---------------------------------------------------------------------------------------------


@each_kind
def test_an_association_freezes_exactly_when_it_has_been_silent_for_so_long(ids):
    fleet = freezing_fleet()
    connect(fleet, 1, connection_id=ids)
    due = only(fleet).last_received + FREEZE_AFTER
    fleet.server.handle_timeout(now=math.nextafter(due, 0))
    assert (len(fleet.server), fleet.server.frozen) == (1, 0)
    fleet.run_for(due - fleet.now)
    assert (len(fleet.server), fleet.server.frozen) == (0, 1)
    assert fleet.server.statistics.freezes == fleet.server.statistics.frozen == 1
    assert fleet.server.statistics.associations == 0
    assert len(fleet.server._routes) == 0


@each_kind
@pytest.mark.parametrize("who", ["device", "server"])
def test_sending_and_receiving_postpone_it(ids, who):
    fleet = freezing_fleet()
    client, last = connect(fleet, 1, connection_id=ids), 0.0
    for _ in range(3):
        fleet.run_for(FREEZE_AFTER - 0.25)
        last = fleet.now
        if who == "device":
            say(fleet, client, b"still here")
        else:
            only(fleet).send(b"still there?", now=fleet.now)
    fleet.run_for(last + FREEZE_AFTER - 0.001 - fleet.now)
    assert len(fleet.server) == 1
    fleet.run_for(0.001)
    assert len(fleet.server) == 0


def test_what_is_not_authentic_postpones_nothing_and_hastens_nothing():
    fleet = freezing_fleet()
    client = connect(fleet, 1, connection_id=NO_ID)
    fleet.run_for(9)
    only(fleet).send(b"sent", now=fleet.now)
    last = fleet.now
    for moment in range(1, 10):
        fleet.run_for(last + moment - fleet.now)
        # A hello takes the way through all that belongs to the path, a record the short one.
        fleet.network.inject(client.path, "server", bytes.fromhex("16fefd0000000000000000000c") + bytes(12))
        fleet.network.inject(client.path, "server", bytes.fromhex("17fefd00010000000000ff0020") + bytes(32))
        fleet.run_for(0)
        assert len(fleet.server) == 1, moment
    fleet.run_for(last + FREEZE_AFTER - fleet.now)
    assert len(fleet.server) == 0


def test_it_waits_as_long_as_the_last_flight_may_be_asked_for():
    fleet = freezing_fleet(freeze_after=7.0)
    client = fleet.connect(config_of(1), "device")
    fleet.run_until(lambda: client.connection.state is ConnectionState.CONNECTED)
    completed = only(fleet).last_received
    fleet.run_for(completed + 240 - 0.001 - fleet.now)
    assert len(fleet.server) == 1
    fleet.run_for(0.001)
    assert len(fleet.server) == 0
    assert not fleet.server._freezer.decode(next(fleet.server.freeze_all(now=fleet.now)), ()).last_flight


def test_it_waits_for_a_check_of_the_path():
    policy = ConnectionIdPolicy(probe_timeout=8, max_probes=3)
    fleet = freezing_fleet(connection_id=policy)
    client = connect(fleet, 1)
    fleet.move(client, "elsewhere")
    client.connection.send(b"from elsewhere", now=fleet.now)
    fleet.flush()
    moved = fleet.now
    fleet.power_off(client)  # nobody answers the challenges
    fleet.run_for(23.9)
    assert only(fleet).path_check_under_way
    fleet.run_for(moved + 24 - fleet.now)
    assert fleet.server.statistics.path_checks_failed == 1
    fleet.run_for(FREEZE_AFTER)
    assert len(fleet.server) == 0


def test_it_does_not_freeze_where_nobody_asked_for_it():
    fleet = freezing_fleet(freeze_after=None)
    connect(fleet, 1)
    fleet.run_for(10_000)
    assert len(fleet.server) == 1
    assert frozen_events(fleet) == []


def test_none_is_frozen_where_there_may_be_no_frozen_ones():
    fleet = freezing_fleet(limits=Limits(max_frozen=0, idle_timeout_with_connection_id=50))
    connect(fleet, 1)
    fleet.run_for(49)
    assert (len(fleet.server), fleet.server.frozen) == (1, 0)
    fleet.run_for(2)
    assert (len(fleet.server), fleet.server.frozen) == (0, 0)
    assert frozen_events(fleet) == []


class Place:
    """A path that nobody can write down."""


@each_kind
@pytest.mark.parametrize("durable", [False, True])
def test_one_whose_path_cannot_be_saved_stays_alive(ids, durable):
    fleet = freezing_fleet(durable=durable)
    client = connect(fleet, 1, path=Place(), connection_id=ids)
    fleet.run_for(5 * FREEZE_AFTER)
    assert frozen_events(fleet) == []
    say(fleet, client, b"still alive")
    only(fleet).send(b"so am I", now=fleet.now)
    assert fleet.server.checkpoint(now=fleet.now).saved == []
    other = connect(fleet, 2)
    blobs = list(fleet.server.freeze_all(now=fleet.now))
    assert len(blobs) == 1, "the other one"
    assert fleet.server._freezer.decode(blobs[0], ()).connection_id
    assert only(fleet).path is client.path
    say(fleet, client, b"after all")
    client.connection.close(now=fleet.now)
    fleet.run_for(1)
    assert len(fleet.server) == 0
    assert other.cause is None


# --- what is told -------------------------------------------------------------------------------------


@each_kind
def test_each_life_of_an_association_is_told_from_its_beginning_to_its_end(ids):
    fleet = freezing_fleet()
    client = connect(fleet, 1, connection_id=ids)
    (handle,) = freeze(fleet, client)
    connection_id = frozen_events(fleet)[0].connection.connection_id
    assert handle == (b"c" + connection_id if connection_id else b"p" + encode_path(client.path))
    assert bool(connection_id) is (ids is not NO_ID)
    for number in range(3):
        say(fleet, client, b"%d" % number)
        assert freeze(fleet, client) == [handle]
    client.connection.close(now=fleet.now)
    fleet.run_for(1)
    assert told(fleet.server_events) == [
        "completed", b"hello", "frozen",
        "thawed", b"0", "frozen", "thawed", b"1", "frozen", "thawed", b"2", "frozen",
        "thawed", "AlertReceived", PeerClose(),
    ]  # fmt: skip
    lives = [event.connection for event in fleet.server_events if isinstance(event, ConnectionThawed)]
    assert len(set(map(id, lives))) == 4
    for event in fleet.server_events:
        if isinstance(event, ConnectionFrozen | ConnectionThawed):
            assert event.handle == handle
        if isinstance(event, ConnectionFrozen):
            assert event.connection.state is ConnectionState.FROZEN
    statistics = fleet.server.statistics
    assert (statistics.freezes, statistics.thaws) == (4, 4)
    assert (statistics.handshakes_completed, statistics.associations, statistics.frozen) == (1, 0, 0)


@each_kind
def test_who_was_authenticated_and_what_was_noted_is_known_again(ids):
    fleet = freezing_fleet()
    client = connect(fleet, 1, connection_id=ids)
    before = only(fleet)
    before.annotation = b"meter in the cellar"
    peer, negotiated = before.peer, before.negotiated
    exported = before.export_keying_material("EXPORTER-x", 16)
    freeze(fleet, client)
    say(fleet, client, b"again")
    after = only(fleet)
    assert after is not before
    assert (after.peer, after.negotiated, after.annotation) == (peer, negotiated, b"meter in the cellar")
    assert after.export_keying_material("EXPORTER-x", 16) == exported
    assert client.connection.export_keying_material("EXPORTER-x", 16) == exported
    after.send(b"answer", now=fleet.now)
    fleet.run_for(0.1)
    assert client.received[-1] == b"answer"


def test_an_association_that_wakes_elsewhere_says_first_that_it_is_awake():
    fleet = freezing_fleet(connection_id=ConnectionIdPolicy(path_policy=PathPolicy.MOVE))
    client = connect(fleet, 1)
    only(fleet)._negotiated = attrs.evolve(negotiated_of(only(fleet)), return_routability=False)
    freeze(fleet, client)
    fleet.server_events.clear()
    fleet.move(client, "elsewhere")
    say(fleet, client, b"from elsewhere")
    assert told(fleet.server_events) == ["thawed", ("moved", "elsewhere"), b"from elsewhere"]
    assert only(fleet).path == "elsewhere"
    freeze(fleet, client)
    say(fleet, client, b"there still")
    assert told(fleet.server_events)[-2:] == ["thawed", b"there still"]


def test_an_association_that_wakes_elsewhere_proves_where_it_is():
    fleet = freezing_fleet()
    client = connect(fleet, 1)
    assert negotiated_of(only(fleet)).return_routability
    freeze(fleet, client)
    fleet.server_events.clear()
    fleet.move(client, "elsewhere")
    say(fleet, client, b"from elsewhere")
    fleet.run_for(0.1)
    assert told(fleet.server_events) == ["thawed", b"from elsewhere", ("moved", "elsewhere")]


# --- waking and sending -------------------------------------------------------------------------------


@each_kind
def test_a_sleeping_association_can_be_woken_to_be_sent_something(ids):
    fleet = freezing_fleet()
    client = connect(fleet, 1, connection_id=ids)
    (handle,) = freeze(fleet, client)
    fleet.run_for(1000)
    connection = fleet.server.wake(handle, now=fleet.now)
    assert connection is only(fleet)
    assert fleet.server.next_timeout() == fleet.now
    fleet.run_for(FREEZE_AFTER - 1)  # what has been woken has the whole time, as if it had been heard
    assert told(fleet.server_events)[-1] == "thawed"
    connection.send(b"wake up", now=fleet.now)
    fleet.run_for(0.1)
    assert client.received == [b"wake up"]
    assert fleet.server.wake(handle, now=fleet.now) is None
    say(fleet, client, b"good morning")
    assert told(fleet.server_events)[-2:] == ["thawed", b"good morning"]
    freeze(fleet, client)
    assert fleet.server.wake(handle, now=fleet.now) is not None
    fleet.run_for(FREEZE_AFTER)
    assert told(fleet.server_events)[-2:] == ["thawed", "frozen"]


def test_nobody_wakes_who_is_not_there():
    fleet = freezing_fleet()
    for handle in (b"", b"c", b"p", b"c12345678", b"x"):
        assert fleet.server.wake(handle, now=0) is None
    assert fleet.server.handle_timeout(now=0) == []


def test_closing_a_woken_one_ends_it():
    fleet = freezing_fleet()
    client = connect(fleet, 1)
    (handle,) = freeze(fleet, client)
    connection = fleet.server.wake(handle, now=fleet.now)
    assert connection is not None
    connection.close(now=fleet.now)
    fleet.run_for(1)
    assert told(fleet.server_events)[-2:] == ["thawed", LocalClose()]
    assert client.cause == PeerClose()
    assert (len(fleet.server), fleet.server.frozen) == (0, 0)


# --- limits -------------------------------------------------------------------------------------------


def test_beyond_max_frozen_the_one_that_expires_first_ends():
    fleet = freezing_fleet(limits=Limits(max_frozen=2))
    clients = [connect(fleet, number) for number in range(4)]
    for client in clients:
        fleet.run_for(1)
        say(fleet, client, b"in this order")
    fleet.run_for(2 * FREEZE_AFTER)
    assert (len(fleet.server), fleet.server.frozen) == (0, 2)
    assert [client.cause for client in clients] == [PeerClose(), PeerClose(), None, None]
    assert fleet.server_causes() == [LimitExceeded("max_frozen")] * 2
    assert told(fleet.server_events)[-8:] == [
        "frozen", "frozen",
        "thawed", LimitExceeded("max_frozen"), "frozen",
        "thawed", LimitExceeded("max_frozen"), "frozen",
    ]  # fmt: skip
    assert fleet.server._freezer._id_lengths == {8: 2}
    for client in clients[2:]:
        say(fleet, client, b"still known")


def full_fleet(**server):
    fleet = freezing_fleet(limits=Limits(max_associations=2, stale_after=5), **server)
    clients = [connect(fleet, number) for number in range(2)]
    return fleet, clients


def test_where_it_freezes_the_longest_silent_association_freezes_for_a_newcomer_and_none_ends():
    fleet, clients = full_fleet()
    fleet.run_for(1)
    say(fleet, clients[0], b"last")
    newcomer = connect(fleet, 2)
    assert (len(fleet.server), fleet.server.frozen) == (2, 1)
    assert fleet.server.statistics.evictions == 0
    (event,) = frozen_events(fleet)
    assert peer_of(event.connection).psk_identity == b"dev1"
    say(fleet, clients[1], b"and back, for another")
    assert (len(fleet.server), fleet.server.frozen) == (2, 1)
    for client in (*clients, newcomer) * 3:
        say(fleet, client, b"all by turns")
        assert len(fleet.server) == 2
    assert fleet.server_causes() == []


def test_where_it_does_not_freeze_the_longest_silent_association_ends_for_a_newcomer():
    fleet, clients = full_fleet(freeze_after=None)
    fleet.run_for(6)
    connect(fleet, 2)
    assert (len(fleet.server), fleet.server.frozen) == (2, 0)
    assert fleet.server.statistics.evictions == 1
    assert fleet.server_causes() == [LimitExceeded("max_associations")]
    assert clients[0].cause == PeerClose()


def test_where_none_can_freeze_or_end_a_newcomer_is_refused_and_the_sleeping_stay_asleep():
    fleet, clients = full_fleet()
    (blob,) = [fleet.server.freeze(only_of(fleet, b"dev1"), now=fleet.now)]
    handle = fleet.server.restore(blob, now=fleet.now).handle
    for number in (2, 3):  # fill it up with what waits for its last flight
        client = fleet.connect(config_of(number), number)
        wait_until_connected(fleet, client)
    assert (len(fleet.server), fleet.server.frozen) == (2, 2)
    before = received(fleet)
    clients[1].connection.send(b"now?", now=fleet.now)
    fleet.run_for(0.1)
    assert fleet.server.wake(handle, now=fleet.now) is None
    assert received(fleet) == before
    assert (len(fleet.server), fleet.server.frozen) == (2, 2)
    fleet.run_for(5)  # stale_after: now somebody gives way
    say(fleet, clients[1], b"now!")
    assert len(fleet.server) == 2


def wait_until_connected(fleet, client):
    fleet.run_until(lambda: client.connection.state is ConnectionState.CONNECTED)


def only_of(fleet, identity):
    found = {peer_of(one).psk_identity: one for one in fleet.server.connections}
    return found[identity]


def test_one_that_cannot_be_saved_makes_no_room_by_freezing():
    fleet = freezing_fleet(limits=Limits(max_associations=1, stale_after=5))
    first = connect(fleet, 0, path=Place())
    fleet.run_for(6)
    connect(fleet, 1)
    assert len(fleet.server) == 1
    assert first.cause == PeerClose()
    assert fleet.server_causes() == [LimitExceeded("max_associations")]


def test_only_some_are_looked_at_to_make_room():
    limit = LOOKED_AT_FOR_ROOM + 1
    fleet = freezing_fleet(limits=Limits(max_associations=limit))
    fleet.keys = {b"dev%d" % number: [bytes([number]) * 16] for number in range(limit + 1)}
    for number in range(limit):
        client = fleet.connect(config_of(number), number)
        wait_until_connected(fleet, client)
    looked_at = 0
    rests = type(only_of(fleet, b"dev0")).rests

    def counted(connection, now):
        nonlocal looked_at
        looked_at += 1
        return rests(connection, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(only_of(fleet, b"dev0")), "rests", counted)
        assert not fleet.server._members.has_room(None, fleet.now)
    assert looked_at == LOOKED_AT_FOR_ROOM


# --- many ---------------------------------------------------------------------------------------------


def test_the_heap_of_deadlines_holds_nothing_dead_after_thousands_of_freezes():
    fleet = freezing_fleet()
    client = connect(fleet, 1)
    (handle,) = freeze(fleet, client)
    server, now = fleet.server, fleet.now
    for _ in range(5000):
        now += 1
        assert server.wake(handle, now=now) is not None
        server.handle_timeout(now=now)
        now += FREEZE_AFTER
        server.handle_timeout(now=now)
        assert server.frozen == 1
    assert server.statistics.freezes == 5001
    assert len(server._deadlines) < 70
    assert len(server._freezer.store._records) == 1  # type: ignore[attr-defined]
    assert not server._freezer._bounds
    assert not server._freezer._changed
    record = record_of(fleet, client, b"good morning")
    words = told(server.receive_datagram(record, path=client.path, now=now))
    assert words == ["thawed", b"good morning"]


def test_many_freeze_and_wake_each_in_its_turn_and_every_timeout_is_right():
    fleet = freezing_fleet(limits=Limits(idle_timeout_with_connection_id=100, idle_timeout=100))
    clients = [connect(fleet, number, connection_id=(NO_ID, ONLY_OUR_ID)[number % 2]) for number in range(10)]
    heard = dict.fromkeys(clients, fleet.now)
    ends: dict = {}

    def ended(client, _):
        ends.setdefault(client, fleet.now)

    fleet.on_client_event = ended
    for round_ in range(60):
        client = clients[(round_ * round_) % 7]
        say(fleet, client, b"%d" % round_)
        heard[client] = fleet.now
        fleet.run_for(3)
        live = {peer_of(connection).psk_identity for connection in fleet.server.connections}
        expected = {
            identity_of(client) for client, moment in heard.items() if fleet.now - moment < FREEZE_AFTER
        }
        assert live == expected
    assert ends
    fleet.run_for(200)
    assert {client: moment + 100 for client, moment in heard.items()} == ends
    assert (len(fleet.server), fleet.server.frozen, len(fleet.server._routes)) == (0, 0, 0)
    assert (fleet.server._freezer._by_path, fleet.server._freezer._id_lengths) == (0, {})


# --- all at once --------------------------------------------------------------------------------------


def test_freeze_all_hands_out_everybody_once_live_or_frozen_and_another_server_goes_on():
    fleet = freezing_fleet()
    clients = [connect(fleet, number, connection_id=(NO_ID, BOTH_IDS)[number % 2]) for number in range(8)]
    freeze(fleet, *clients)
    for client in clients[:4]:
        say(fleet, client, b"awake")
    half_open = fleet.connect(config_of(9), "half open")
    fleet.psk_after = None
    fleet.run_for(0.5)
    assert (len(fleet.server), fleet.server.frozen, fleet.server.statistics.half_open) == (4, 4, 1)
    old = list(fleet.server.connections)
    blobs = list(fleet.server.freeze_all(now=fleet.now))
    assert len(blobs) == len(set(blobs)) == 8
    assert (len(fleet.server), fleet.server.frozen, fleet.server.statistics.frozen) == (0, 0, 0)
    assert all(connection.state is ConnectionState.FROZEN for connection in old)
    assert list(fleet.server.freeze_all(now=fleet.now)) == []
    server = replace_server(fleet, ServerConfig(freeze_after=FREEZE_AFTER))
    for number, blob in enumerate(blobs):
        if number % 3:
            server.restore(blob, now=fleet.now)
        else:
            server.thaw(blob, now=fleet.now)
    for client in clients:
        say(fleet, client, b"after the restart")
    assert len(server) == 8
    assert half_open.connection.state is ConnectionState.HANDSHAKING


def test_replacing_the_configuration_changes_when_all_freeze():
    fleet = freezing_fleet(freeze_after=None)
    silent = connect(fleet, 1, connection_id=NO_ID)
    fleet.run_for(300)  # nothing of its handshake is due any more
    other = connect(fleet, 2)
    fleet.server.replace_config(ServerConfig(freeze_after=3.0), now=fleet.now)
    fleet.run_for(2.999)
    assert [peer_of(event.connection).psk_identity for event in frozen_events(fleet)] == [b"dev1"]
    fleet.run_for(0.001)
    assert len(frozen_events(fleet)) == 2
    fleet.server.replace_config(ServerConfig(freeze_after=None), now=fleet.now)
    say(fleet, silent, b"awake for good")
    say(fleet, other, b"awake for good")
    fleet.run_for(1000)
    assert len(frozen_events(fleet)) == 2
    assert len(fleet.server) == 2


def test_data_for_a_frozen_object_are_refused_not_lost():
    fleet = freezing_fleet()
    client = connect(fleet, 1)
    connection = only(fleet)
    freeze(fleet, client)
    with pytest.raises(WrongState, match="the connection is frozen"):
        connection.send(b"too late", now=fleet.now)
    assert not any(isinstance(event, DataReceived) for event in client.events)
