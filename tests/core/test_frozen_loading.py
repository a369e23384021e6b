"""Blobs that come from outside: a server takes each once, and says why it does not take the others."""

from __future__ import annotations

import attrs
import pytest

from sansdtls import (
    ConnectionTerminated,
    ConnectionThawed,
    Limits,
    Server,
    ServerConfig,
    SnapshotError,
)
from sansdtls.freezer import MAX_REMEMBERED
from sansdtls.saved_paths import encode_path
from sansdtls.snapshot import decode_snapshot
from sansdtls.testing import CounterEntropy
from tests.core import frozen
from tests.core.freezing import (
    BOTH_IDS,
    FREEZE_AFTER,
    NO_ID,
    ONLY_OUR_ID,
    connect,
    freeze,
    freezing_fleet,
    only,
    peer_of,
    record_of,
    replace_server,
    say,
    told,
)

IDS = {"no ID": NO_ID, "our ID": ONLY_OUR_ID, "both": BOTH_IDS}
each_kind = pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
each_way = pytest.mark.parametrize("way", ["thaw", "restore"])
OLD, NEW, FOREIGN = b"o" * 32, b"n" * 32, b"f" * 32


def load(server: Server, way: str, blob: bytes, now: float):
    return getattr(server, way)(blob, now=now)


def server_of(now: float = 0, **config) -> Server:
    return Server(
        ServerConfig(**{"freeze_after": FREEZE_AFTER, **config}), entropy=CounterEntropy(1), now=now
    )


def frozen_out(ids=ONLY_OUR_ID, **more):
    """A fleet, the device, and the blob of its association, which its server has given away."""
    fleet = freezing_fleet(**more)
    client = connect(fleet, 1, connection_id=ids)
    only(fleet).annotation = b"in the cellar"
    return fleet, client, fleet.server.freeze(only(fleet), now=fleet.now)


# --- what is taken ------------------------------------------------------------------------------------


@each_kind
def test_what_is_restored_sleeps_until_it_is_heard(ids):
    fleet, client, blob = frozen_out(ids)
    replace_server(fleet, ServerConfig(freeze_after=FREEZE_AFTER))
    restored = fleet.server.restore(blob, now=fleet.now)
    connection_id = decode_snapshot(blob, keys=()).connection_id
    assert restored.handle == (b"c" + connection_id if connection_id else b"p" + encode_path(client.path))
    assert (restored.path, restored.annotation) == (client.path, b"in the cellar")
    assert (restored.peer.psk_identity, restored.peer.psk_key_index) == (b"dev1", 0)
    assert (len(fleet.server), fleet.server.frozen, fleet.server.statistics.frozen) == (0, 1, 1)
    say(fleet, client, b"here")
    assert told(fleet.server_events)[-2:] == ["thawed", b"here"]
    assert only(fleet).annotation == b"in the cellar"


@each_kind
def test_what_is_thawed_is_live_at_once(ids):
    fleet, client, blob = frozen_out(ids)
    replace_server(fleet, ServerConfig(freeze_after=FREEZE_AFTER))
    connection = fleet.server.thaw(blob, now=fleet.now)
    assert connection is only(fleet)
    assert peer_of(connection).psk_identity == b"dev1"
    assert fleet.server.handle_timeout(now=fleet.now) == []
    connection.send(b"hello again", now=fleet.now)
    fleet.run_for(0.1)
    assert client.received == [b"hello again"]
    say(fleet, client, b"here")
    assert ConnectionThawed not in map(type, fleet.server_events), "who thaws it himself knows"
    fleet.run_for(FREEZE_AFTER)
    assert fleet.server.frozen == 1


# --- what is refused ----------------------------------------------------------------------------------


@each_way
@each_kind
def test_an_association_that_is_here_is_not_loaded_again(ids, way):
    for first in ("thaw", "restore"):
        fleet, client, blob = frozen_out(ids)
        server = replace_server(fleet, ServerConfig(freeze_after=FREEZE_AFTER))
        load(server, first, blob, fleet.now)
        for _ in range(2):
            with pytest.raises(SnapshotError, match="here already: a blob is good for one use"):
                load(server, way, blob, fleet.now)
        say(fleet, client, b"alive")
        with pytest.raises(SnapshotError, match=r"here already|loaded before"):
            load(server, way, blob, fleet.now)
        fleet.run_for(FREEZE_AFTER)
        with pytest.raises(SnapshotError, match=r"here already|loaded before"):
            load(server, way, blob, fleet.now)
        say(fleet, client, b"still alive")
        assert len(server) == 1


@each_way
@each_kind
@pytest.mark.parametrize(
    "end", ["closed", "expired", "expired asleep", "replaced", "replaced asleep", "given away"]
)
def test_an_association_that_was_here_is_not_loaded_again(ids, way, end):
    limits = Limits(idle_timeout=1000, idle_timeout_with_connection_id=1000)
    fleet, client, blob = frozen_out(ids, limits=limits)
    server = fleet.server
    connection = server.thaw(blob, now=fleet.now)
    later = b""
    if end == "closed":
        connection.close(now=fleet.now)
        fleet.run_for(1)
    elif end.startswith("expired"):
        if end == "expired":
            server.replace_config(attrs.evolve(server._config, freeze_after=None), now=fleet.now)
        fleet.clock.advance_to(fleet.now + 999)
        fleet.run_for(2)
    elif end == "given away":
        later = server.freeze(connection, now=fleet.now)
    else:
        if end == "replaced asleep":
            fleet.run_for(FREEZE_AFTER)
            assert server.frozen == 1
        connect(fleet, 1, path=client.path, connection_id=ids)
        server.freeze(only(fleet), now=fleet.now)
    assert len(server) == server.frozen == 0
    with pytest.raises(SnapshotError, match="has been loaded before: a blob is good for one use"):
        load(server, way, blob, connection.last_received)
    if end == "given away":
        load(server, way, later, fleet.now)
        say(fleet, client, b"the later one is good")


@each_way
def test_of_two_blobs_of_one_association_the_older_is_refused(way):
    fleet, client, _ = frozen_out()
    client = connect(fleet, 2)
    server = fleet.server
    blobs = []
    for _ in range(3):
        blobs.append(server.freeze(only(fleet), now=fleet.now))
        server.thaw(blobs[-1], now=fleet.now)
    last = server.freeze(only(fleet), now=fleet.now)
    for blob in blobs:
        with pytest.raises(SnapshotError, match="has been loaded before"):
            load(server, way, blob, fleet.now)
    load(server, way, last, fleet.now)
    say(fleet, client, b"here")


@each_way
def test_after_freezing_all_older_blobs_are_refused_and_the_last_ones_are_good(way):
    fleet, client, blob = frozen_out()
    fleet.server.thaw(blob, now=fleet.now)
    (last,) = fleet.server.freeze_all(now=fleet.now)
    with pytest.raises(SnapshotError, match="has been loaded before"):
        load(fleet.server, way, blob, fleet.now)
    load(fleet.server, way, last, fleet.now)
    say(fleet, client, b"here")


def test_so_many_that_have_gone_are_remembered_and_no_more():
    server = server_of()
    for number in range(MAX_REMEMBERED + 10):
        server._freezer.remember(number.to_bytes(32), 5)
    assert len(server._freezer._good_from) == MAX_REMEMBERED
    kept = frozen.saved(server_random=(MAX_REMEMBERED + 9).to_bytes(32), serial=4)
    assert not server._freezer.is_good(kept)
    assert server._freezer.is_good(attrs.evolve(kept, serial=5))
    assert server._freezer.is_good(attrs.evolve(kept, server_random=bytes(32)))


@each_way
@pytest.mark.parametrize(
    ("blob", "keys", "message"),
    [
        (b"", (), "this is no frozen association: it is empty"),
        (b"\x02" + bytes(100), (), "is of version 2; version 1 is known here"),
        (frozen.unsealed(frozen.saved())[:12], (), "is cut short: it has 12 bytes"),
        (frozen.unsealed(frozen.saved())[:-1], (), "is damaged: its checksum is wrong"),
        (frozen.unsealed(frozen.saved()), (NEW,), "is not sealed, but there is a key: it is not taken"),
        (frozen.sealed(frozen.saved(), NEW), (), "is sealed, and there is no key to open it"),
        (frozen.sealed(frozen.saved(), FOREIGN), (NEW, OLD), "was sealed under another key, or is damaged"),
        (frozen.unsealed(frozen.saved(generation=0, is_client=True)), (), "is a client's, not a server's"),
        (frozen.unsealed(frozen.saved(generation=1)), (), "is of generation 1, and this is 0: an old store"),
        (frozen.unsealed(frozen.saved(generation=0, expires_at=10.0)), (), "time is over: nothing was heard"),
        (frozen.unsealed(frozen.saved(generation=0, path=3)), (), None),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_good_blob_is_refused_with_its_reason(way, blob, keys, message):
    server = server_of(snapshot_keys=keys)
    if message is None:  # the one good one among them
        load(server, way, blob, 10.0)
        return
    with pytest.raises(SnapshotError, match=message):
        load(server, way, blob, 10.0)
    assert (len(server), server.frozen, len(server._routes), len(server._deadlines)) == (0, 0, 0, 0)


@each_way
def test_one_that_has_used_up_its_numbers_is_refused_and_not_lost_in_silence(way):
    blob = frozen.unsealed(frozen.saved(generation=0, write_sequence_number=2**48 - 20))
    server = server_of()
    if way == "thaw":
        with pytest.raises(SnapshotError, match="used up its record numbers"):
            server.thaw(blob, now=0)
        assert len(server) == 0
    else:
        handle = server.restore(blob, now=0).handle
        assert server.wake(handle, now=0) is None
        assert server.statistics.frozen_lost == 1
    assert server.frozen == 0


@each_way
def test_nothing_is_loaded_beyond_the_limits(way):
    limits = Limits(max_associations=1, max_frozen=1, stale_after=100)
    server = server_of(limits=limits, freeze_after=None)
    blobs = [
        frozen.unsealed(frozen.saved(generation=0, connection_id=b"id %d" % number, last_received=1000.0))
        for number in range(2)
    ]
    load(server, way, blobs[0], 1000.0)
    limit = "max_associations are live" if way == "thaw" else "max_frozen associations are here"
    with pytest.raises(SnapshotError, match=f"no room: {limit}"):
        load(server, way, blobs[1], 1000.0)
    assert len(server) + server.frozen == 1
    other = "restore" if way == "thaw" else "thaw"
    load(server, other, blobs[1], 1000.0)


def test_thawing_freezes_the_longest_silent_one_to_make_room():
    server = server_of(limits=Limits(max_associations=1))
    for number in range(3):
        saved = frozen.saved(
            generation=0, connection_id=b"id %d" % number, server_random=bytes([number]) * 32
        )
        server.thaw(frozen.unsealed(saved), now=86_401)
    assert (len(server), server.frozen) == (1, 2)
    assert told(server.handle_timeout(now=86_401)) == ["frozen", "frozen"]


def test_a_connection_id_that_is_taken_keeps_others_out():
    # Two services with IDs from one generator: the second one's association could not be told from the first's.
    server = server_of()
    server.thaw(frozen.unsealed(frozen.saved(generation=0, connection_id=b"same")), now=1.0)
    for other in (b"same", b"same, but longer"):
        saved = frozen.saved(generation=0, connection_id=other, server_random=b"o" * 32)
        with pytest.raises(SnapshotError, match="here already"):
            server.restore(frozen.unsealed(saved), now=1.0)


# --- keys ---------------------------------------------------------------------------------------------


def keys_of(fleet, *keys):
    fleet.server.replace_config(attrs.evolve(fleet.server._config, snapshot_keys=keys), now=fleet.now)


def key_of(fleet, handle):
    """The key that the blob in the store is sealed under."""
    blob = fleet.server._freezer.take(handle)
    (key,) = [key for key in (OLD, NEW, FOREIGN) if _opens(blob, key)]
    fleet.server._freezer.put(handle, decode_snapshot(blob, keys=(key,)).path, blob)
    return key


def _opens(blob, key):
    try:
        decode_snapshot(blob, keys=(key,))
    except SnapshotError:
        return False
    return True


@each_kind
def test_keys_are_replaced_without_a_stop(ids):
    fleet = freezing_fleet(snapshot_keys=[OLD])
    clients = [connect(fleet, number, connection_id=ids) for number in range(3)]
    handles = freeze(fleet, *clients)
    assert [key_of(fleet, handle) for handle in handles] == [OLD] * 3
    say(fleet, clients[0], b"awake while the key is replaced")
    keys_of(fleet, NEW, OLD)
    say(fleet, clients[1], b"asleep while the key is replaced")
    freeze(fleet, *clients)
    assert [key_of(fleet, handle) for handle in handles] == [NEW, NEW, OLD]
    say(fleet, clients[0], b"awake while the old key is taken out")
    keys_of(fleet, NEW)
    freeze(fleet, *clients)
    assert key_of(fleet, handles[0]) == NEW
    for client in clients[:2]:
        say(fleet, client, b"here")
    record = record_of(fleet, clients[2], b"who has slept too long")
    assert fleet.server.receive_datagram(record, path=clients[2].path, now=fleet.now) == []
    assert fleet.server.statistics.frozen_lost == 1
    assert ConnectionTerminated not in map(type, fleet.server_events)


def test_blobs_that_are_given_away_are_sealed_under_the_key_of_today():
    fleet = freezing_fleet(snapshot_keys=[OLD], durable=True)
    connect(fleet, 1)
    connect(fleet, 2)
    keys_of(fleet, NEW)
    assert all(_opens(saved.blob, NEW) for saved in fleet.server.checkpoint(now=fleet.now).saved)
    assert _opens(fleet.server.freeze(next(fleet.server.connections), now=fleet.now), NEW)
    assert all(_opens(blob, NEW) for blob in fleet.server.freeze_all(now=fleet.now))


def test_no_secret_is_in_a_sealed_blob():
    fleet = freezing_fleet(snapshot_keys=[NEW])
    connect(fleet, 1)
    blob = fleet.server.freeze(only(fleet), now=fleet.now)
    saved = decode_snapshot(blob, keys=(NEW,))
    for secret in (saved.master_secret, saved.client_random, saved.connection_id, b"dev1"):
        assert secret[:4] not in blob
