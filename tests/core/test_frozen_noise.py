"""Whatever arrives for a frozen association: only its own authentic record wakes it, and nothing else lasts."""

from __future__ import annotations

import attrs
import pytest

from sansdtls import (
    ConnectionIdPolicy,
    ConnectionState,
    DiscardReason,
    KeysExhausted,
    Limits,
    ServerConfig,
)
from sansdtls.members import Members
from sansdtls.server import MAX_REFUSED_THAWS
from sansdtls.testing import CounterEntropy
from tests.core import raw
from tests.core.freezing import (
    BOTH_IDS,
    FREEZE_AFTER,
    NO_ID,
    ONLY_OUR_ID,
    blob_in_store,
    config_of,
    connect,
    freeze,
    freezing_fleet,
    only,
    peer_of,
    received,
    record_of,
    say,
    told,
)

IDS = {"no ID": NO_ID, "our ID": ONLY_OUR_ID, "both": BOTH_IDS}
each_kind = pytest.mark.parametrize("ids", IDS.values(), ids=IDS)


def asleep(ids=ONLY_OUR_ID, **more):
    """A fleet, the device and the handle of its association, which sleeps."""
    fleet = freezing_fleet(**more)
    client = connect(fleet, 1, connection_id=ids)
    (handle,) = freeze(fleet, client)
    return fleet, client, handle


def give(fleet, data, path):
    events = fleet.server.receive_datagram(data, path=path, now=fleet.now)
    fleet.server_events += events
    return told(events)


def junk_for(handle, number, content_type=raw.APPLICATION_DATA, *, epoch=1, length=40):
    """A record as anybody can make it who has seen one, or has the address."""
    payload = CounterEntropy(number)(length)
    if handle.startswith(b"c"):
        return raw.record(raw.TLS12_CID, payload, epoch=epoch, seq=1000 + number, connection_id=handle[1:])
    return raw.record(content_type, payload, epoch=epoch, seq=1000 + number)


def sizes(server):
    """Of everything that could grow."""
    members = server._members
    return {
        "routes": len(server._routes),
        "ids": len(server._routes._by_connection_id),
        "deadlines": len(server._deadlines),
        "slots": len(server._freezer.store._records),
        "remembered": len(server._freezer._good_from),
        "changed": len(server._freezer._changed),
        "bounds": len(server._freezer._bounds),
        "events": len(members.events),
        "outbox": len(members.outbox),
        "ciphers": len(members.ciphers),
        "by path": server._freezer._by_path,
        "by ID": sum(server._freezer._id_lengths.values()),
        "live": len(server),
        "frozen": server.frozen,
    }


# --- junk ---------------------------------------------------------------------------------------------


@each_kind
def test_thousands_of_forged_records_change_one_count_and_nothing_else(ids):
    fleet, client, handle = asleep(ids)
    before, size = blob_in_store(fleet, handle), sizes(fleet.server)
    count = 3500
    for number in range(count):
        path = client.path if handle.startswith(b"p") else ("anywhere", number % 7)
        assert give(fleet, junk_for(handle, number), path) == []
    statistics = fleet.server.statistics
    assert statistics.thaws_refused == statistics.mac_failures == count
    assert statistics.records_discarded[DiscardReason.BAD_MAC] == count
    assert (statistics.thaws, statistics.associations, statistics.frozen) == (0, 0, 1)
    assert sizes(fleet.server) == size
    after = blob_in_store(fleet, handle)
    # A thaw after which nothing is sent gives its THAW_JUMP back: else 2**23 / 16 forgeries would use up the keys.
    assert attrs.evolve(after, failed_opens=0, serial=0) == attrs.evolve(before, failed_opens=0, serial=0)
    assert after.failed_opens == count
    say(fleet, client, b"good morning")
    assert told(fleet.server_events)[-2:] == ["thawed", b"good morning"]
    only(fleet).send(b"to you too", now=fleet.now)
    fleet.run_for(0.1)
    assert client.received == [b"to you too"]


@each_kind
def test_forgeries_are_counted_over_all_sleeps_until_the_keys_are_given_up(ids):
    fleet, client, handle = asleep(ids, limits=Limits(max_failed_opens=9))
    for number in range(4):
        give(fleet, junk_for(handle, number), client.path)
    say(fleet, client, b"awake")
    give(fleet, junk_for(handle, 4), client.path)
    freeze(fleet, client)
    assert blob_in_store(fleet, handle).failed_opens == 5
    for number in range(5, 8):
        assert give(fleet, junk_for(handle, number), client.path) == []
    assert give(fleet, junk_for(handle, 8), client.path) == ["thawed", KeysExhausted("open")]
    fleet.run_for(0.1)
    assert client.connection.state is ConnectionState.CLOSED, "it was told"
    assert (len(fleet.server), fleet.server.frozen, len(fleet.server._routes)) == (0, 0, 0)


@each_kind
def test_a_record_from_before_wakes_nobody(ids):
    fleet = freezing_fleet()
    client = connect(fleet, 1, connection_id=ids)
    old = record_of(fleet, client, b"once")
    assert give(fleet, old, client.path) == [b"once"]
    (handle,) = freeze(fleet, client)
    before = blob_in_store(fleet, handle)
    for _ in range(5):
        assert give(fleet, old, client.path) == []
    assert blob_in_store(fleet, handle) == before
    assert fleet.server.statistics.records_discarded == {DiscardReason.REPLAY: 5}
    assert fleet.server.statistics.thaws_refused == 5


@each_kind
def test_what_cannot_be_of_an_established_association_is_not_even_tried(ids):
    fleet, client, handle = asleep(ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Members, "revive", lambda *_: pytest.fail("thawed"))
        for epoch in (0, 2, 65535):
            give(fleet, junk_for(handle, epoch, epoch=epoch), client.path)
        for content_type in (20, 21, 22, 23, 24, 26, 63):
            give(fleet, raw.record(content_type, bytes(20), epoch=0, seq=5), client.path)
            give(fleet, raw.record(content_type, bytes(20), epoch=1, seq=5), "another path")
        give(fleet, junk_for(b"c12345678", 1), client.path)
        give(fleet, junk_for(b"c", 1), client.path)
        give(fleet, b"\x19" + bytes(8), client.path)
        give(fleet, b"", client.path)
        if handle.startswith(b"c"):  # it takes no record without its ID
            give(fleet, raw.record(23, bytes(40), epoch=1, seq=1 << 20), client.path)
    assert fleet.server.statistics.thaws_refused == 0
    assert fleet.server.frozen == 1
    say(fleet, client, b"good morning")


@each_kind
@pytest.mark.parametrize("length", [0, 1, 8, 16, 23, 24, 25])
def test_records_of_any_length_wake_nobody(ids, length):
    fleet, client, handle = asleep(ids)
    assert give(fleet, junk_for(handle, 1, length=length), client.path) == []
    assert give(fleet, junk_for(handle, 2, length=length)[:-1], client.path) == []
    assert fleet.server.frozen == 1
    say(fleet, client, b"good morning")


@each_kind
def test_junk_and_a_good_record_in_one_datagram_wake_it(ids):
    for junk in range(MAX_REFUSED_THAWS + 1):
        fleet, client, handle = asleep(ids)
        forged = b"".join(junk_for(handle, number) for number in range(junk))
        good = record_of(fleet, client, b"first") + record_of(fleet, client, b"second")
        words = give(fleet, forged + good + junk_for(handle, 99), client.path)
        awake = junk < MAX_REFUSED_THAWS
        assert words == (["thawed", b"first", b"second"] if awake else [])
        assert fleet.server.statistics.thaws_refused == junk
        if awake:
            assert only(fleet).statistics.datagrams_received == 1


@each_kind
def test_a_datagram_full_of_junk_costs_a_few_thaws_and_not_one_for_each_record(ids):
    fleet, client, handle = asleep(ids)
    give(fleet, b"".join(junk_for(handle, number, length=1) for number in range(2000)), client.path)
    assert fleet.server.statistics.thaws_refused == MAX_REFUSED_THAWS
    say(fleet, client, b"good morning")


def test_junk_for_many_sleepers_holds_nobody_awake():
    fleet = freezing_fleet()
    clients = [connect(fleet, number) for number in range(6)]
    handles = freeze(fleet, *clients)
    size = sizes(fleet.server)
    for number in range(300):
        give(fleet, junk_for(handles[number % 6], number), clients[number % 5].path)
    assert sizes(fleet.server) == size
    for client in clients:
        say(fleet, client, b"here")
    assert len(fleet.server) == 6


def test_junk_postpones_no_expiry():
    fleet, client, handle = asleep(limits=Limits(idle_timeout_with_connection_id=100))
    expires_at = blob_in_store(fleet, handle).expires_at
    while fleet.now < expires_at - 7:
        give(fleet, junk_for(handle, int(fleet.now)), client.path)
        fleet.run_for(7)
    assert blob_in_store(fleet, handle).expires_at == expires_at
    assert fleet.server.next_timeout() <= expires_at
    fleet.run_for(7)
    assert fleet.server.frozen == 0
    assert client.cause is not None


# --- hellos -------------------------------------------------------------------------------------------


@each_kind
def test_hellos_without_a_handshake_behind_them_leave_it_asleep(ids):
    fleet, client, handle = asleep(ids)
    before = blob_in_store(fleet, handle)
    fleet.server_path = "server"
    stranger = fleet.connect(config_of(2), client.path)
    fleet.clients[client.path] = client
    for outgoing in stranger.connection.datagrams_to_send():
        give(fleet, outgoing.data, client.path)
        give(fleet, outgoing.data + junk_for(handle, 1), client.path)
    fleet.run_for(200)
    assert blob_in_store(fleet, handle).write_sequence_number == before.write_sequence_number
    assert fleet.server.frozen == 1
    say(fleet, client, b"good morning")


@pytest.mark.parametrize("newcomer", IDS.values(), ids=IDS)
def test_while_a_handshake_is_under_way_on_its_path_it_can_still_be_heard(newcomer):
    for ids in IDS.values():
        fleet, client, _ = asleep(ids)
        fleet.psk_after = None
        fleet.connect(config_of(2, connection_id=newcomer), client.path)
        fleet.run_for(0.5)
        assert fleet.server.statistics.half_open == 1
        record = record_of(fleet, client, b"me, too")
        assert give(fleet, record, client.path) == ["thawed", b"me, too"]


def test_behind_a_live_association_on_its_path_one_without_id_is_found():
    # The live one has an ID and has moved there; records without an ID are not its.
    fleet = freezing_fleet()
    client = connect(fleet, 1, path="nat", connection_id=NO_ID)
    (handle,) = freeze(fleet, client)
    other = connect(fleet, 2, path="elsewhere")
    fleet.move(other, "nat")
    say(fleet, other, b"moved")
    fleet.run_for(0.1)
    assert only(fleet).path == "nat"
    assert give(fleet, junk_for(handle, 1), "nat") == []
    assert give(fleet, record_of(fleet, client, b"I am here, too"), "nat") == ["thawed", b"I am here, too"]
    for device, data in ((client, b"1"), (other, b"2"), (client, b"3")):
        assert give(fleet, record_of(fleet, device, data), "nat") == [data]
    fleet.run_for(2 * FREEZE_AFTER)
    assert fleet.server.frozen == 2
    blob = fleet.server._freezer.take(handle)
    assert blob is not None
    assert give(fleet, record_of(fleet, other, b"4"), "nat") == ["thawed", b"4"]
    fleet.server.thaw(blob, now=fleet.now)
    assert give(fleet, record_of(fleet, client, b"5"), "nat") == [b"5"]


# --- connection IDs of two lengths --------------------------------------------------------------------


def test_sleepers_with_ids_of_several_lengths_are_told_apart():
    fleet = freezing_fleet()
    clients = []
    for number, length in enumerate((8, 4, 1, 20, 0, 8)):
        config = ServerConfig(freeze_after=FREEZE_AFTER, connection_id=ConnectionIdPolicy(length=length))
        fleet.server.replace_config(config, now=fleet.now)
        clients.append(connect(fleet, number))
    handles = freeze(fleet, *clients)
    assert [len(handle) - 1 for handle in handles[:4]] == [8, 4, 1, 20]
    assert handles[4].startswith(b"p")
    for _ in range(2):
        for number, client in enumerate(clients):
            say(fleet, client, b"I am %d" % number)
            assert peer_of(list(fleet.server.connections)[-1]).psk_identity == b"dev%d" % number
        freeze(fleet, *clients)
    assert fleet.server.statistics.thaws_refused == 0


def beginning_of(connection_id, length):
    return lambda _: connection_id[:length]


@pytest.mark.parametrize("order", [(2, 5), (5, 2)])
def test_of_two_ids_that_begin_alike_the_longer_one_is_meant_where_it_is_here(order):
    fleet = freezing_fleet()
    clients = {}
    for number, length in enumerate(order):
        policy = ConnectionIdPolicy(length=length, generator=beginning_of(b"same!", length))
        config = ServerConfig(freeze_after=FREEZE_AFTER, connection_id=policy)
        fleet.server.replace_config(config, now=fleet.now)
        clients[length] = connect(fleet, number)
        if length == 2:
            freeze(fleet, clients[2])
    freeze(fleet, *clients.values())
    connection_ids = sorted(fleet.server._freezer.store.handles())
    if order == (2, 5):  # the second one got none: it would be taken for the first
        assert [handle[:1] for handle in connection_ids] == [b"c", b"p"]
    else:
        assert connection_ids == [b"csa", b"csame!"]
    for client in clients.values():
        say(fleet, client, b"here")
    assert len(fleet.server) == 2
    assert fleet.server.statistics.thaws_refused == 0


def test_an_id_of_a_sleeper_is_given_to_nobody_else():
    ids = [b"aaaa", b"aaaa", b"aaaa", b"bbbb"]
    policy = ConnectionIdPolicy(length=4, generator=lambda _: ids.pop(0))
    fleet = freezing_fleet(connection_id=policy)
    first = connect(fleet, 1)
    (handle,) = freeze(fleet, first)
    assert handle == b"caaaa"
    second = connect(fleet, 2)
    assert only(fleet).connection_id == b"bbbb"
    say(fleet, first, b"mine")
    say(fleet, second, b"and mine")
    assert received(fleet)[-2:] == [b"mine", b"and mine"]


# --- a store that fails -------------------------------------------------------------------------------


def spoil(fleet, handle, change):
    """Change what the store has under ``handle``."""
    records = fleet.server._freezer.store._records
    slot = next(slot for slot, record in enumerate(records) if handle in record)
    records[slot] = change(records[slot])


@each_kind
@pytest.mark.parametrize("way", ["record", "wake", "expiry", "handshake"])
def test_a_blob_that_was_damaged_in_the_store_is_counted_and_the_device_begins_anew(ids, way):
    fleet, client, handle = asleep(ids)
    spoil(fleet, handle, lambda record: record[:-20] + bytes([record[-20] ^ 1]) + record[-19:])
    if way == "record":
        assert give(fleet, record_of(fleet, client, b"x"), client.path) == []
    elif way == "wake":
        assert fleet.server.wake(handle, now=fleet.now) is None
    elif way == "expiry":
        fleet.run_for(100 * 86_400)
    else:
        connect(fleet, 1, path=client.path, connection_id=ids)
    assert fleet.server.statistics.frozen_lost == 1
    assert fleet.server.frozen == fleet.server.statistics.frozen == 0
    assert fleet.server.wake(handle, now=fleet.now) is None
    connect(fleet, 1, path=client.path, connection_id=ids)
    assert len(fleet.server) == 1


def test_the_blob_of_another_association_makes_nobody_live_twice():
    fleet = freezing_fleet()
    clients = [connect(fleet, number) for number in range(2)]
    handles = freeze(fleet, *clients)
    store = fleet.server._freezer.store
    copy = store.take(handles[0])
    assert copy is not None
    store.put(handles[0], b"", copy)
    say(fleet, clients[0], b"awake")
    store.take(handles[1])
    store.put(handles[1], b"", copy)
    assert fleet.server.wake(handles[1], now=fleet.now) is None
    assert len(fleet.server) == 1
    assert fleet.server.statistics.frozen_lost == 1


class Broken(Exception):
    """What a store raises whose disk has failed."""


@pytest.mark.parametrize("method", ["take", "put"])
def test_what_a_store_raises_is_passed_on_and_the_server_goes_on(method):
    fleet, client, handle = asleep()
    other = connect(fleet, 2)

    def fail(*_):
        raise Broken

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(fleet.server._freezer.store), method, fail)
        if method == "take":
            with pytest.raises(Broken):
                give(fleet, record_of(fleet, client, b"x"), client.path)
        else:
            with pytest.raises(Broken):
                give(fleet, junk_for(handle, 1), client.path)
    say(fleet, other, b"undisturbed")
    if method == "take":
        say(fleet, client, b"better now")


class Forgetful:
    """A store that says it has what it has not."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        return getattr(self._store, name)

    def __len__(self):
        return 1

    def __contains__(self, handle):
        return True

    def take(self, _):
        return None


def test_a_store_that_has_lost_what_it_promised_wakes_nobody():
    fleet, client, _ = asleep()
    fleet.server._freezer.store = Forgetful(fleet.server._freezer.store)
    assert give(fleet, record_of(fleet, client, b"x"), client.path) == []
    assert len(fleet.server) == 0
