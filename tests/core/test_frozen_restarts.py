"""A device that lost its state comes back while its old association is frozen; strangers come from there, too."""

from __future__ import annotations

import attrs
import pytest

from sansdtls import (
    ConnectionState,
    ConnectionTerminated,
    ConnectionThawed,
    PeerClose,
    ServerConfig,
)
from sansdtls.freezer import MAX_AT_ONE_PATH
from sansdtls.testing import Network
from tests.core.credentials import shown
from tests.core.ecdhe_puppets import client_config, server_config
from tests.core.freezing import (
    BOTH_IDS,
    FREEZE_AFTER,
    KEYS,
    NO_ID,
    ONLY_OUR_ID,
    config_of,
    connect,
    freeze,
    freezing_fleet,
    only,
    peer_of,
    received,
    record_of,
    replace_server,
    say,
    told,
)

IDS = {"no ID": NO_ID, "our ID": ONLY_OUR_ID, "both": BOTH_IDS}
each_kind = pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
each_newcomer = pytest.mark.parametrize("newcomers", IDS.values(), ids=IDS)
ONE_WAY = 0.01
ONE_HANDSHAKE = 6 * ONE_WAY
REPLACED = PeerClose(replaced=True)


def asleep(ids=ONLY_OUR_ID, path="device", **more):
    fleet = freezing_fleet(network=Network(delay=ONE_WAY), **more)
    client = connect(fleet, 1, path, connection_id=ids)
    (handle,) = freeze(fleet, client)
    fleet.server_events.clear()
    return fleet, client, handle


def restart(fleet, number=1, path="device", **more):
    """A device that has its configuration and nothing else."""
    client = fleet.connect(config_of(number, **more), path)
    since = fleet.now
    fleet.run_until(lambda: client.connection.state is ConnectionState.CONNECTED, deadline=1)
    assert fleet.now - since <= ONE_HANDSHAKE + 1e-9
    assert client.connection.statistics.retransmissions == 0
    return client


def assert_dead(fleet, old, *paths):
    """Nothing under the old keys is delivered, from wherever it comes."""
    for path in ("device", "elsewhere", *paths):
        record = record_of(fleet, old, b"with the old keys")
        events = fleet.server.receive_datagram(record, path=path, now=fleet.now)
        assert told(events) == []


# --- the device comes back ----------------------------------------------------------------------------


@each_kind
@each_newcomer
def test_it_is_back_within_one_handshake_and_the_old_keys_stop_at_the_new_finished(ids, newcomers):
    fleet, old, handle = asleep(ids)
    started: list[bytes] = []

    def use_old_keys(event):
        # Until then they are good: who is asleep hears them all along.
        if type(event).__name__ == "PskRequested" and not started:
            started.append(record_of(fleet, old, b"just before"))

    fleet.on_server_event = use_old_keys
    new = restart(fleet, connection_id=newcomers)
    assert told(fleet.server_events) == ["thawed", REPLACED, "completed"]
    assert [event.handle for event in fleet.server_events if isinstance(event, ConnectionThawed)] == [handle]
    assert (len(fleet.server), fleet.server.frozen) == (1, 0)
    assert told(fleet.server.receive_datagram(started[0], path="device", now=fleet.now)) == []
    assert_dead(fleet, old)
    say(fleet, new, b"with the new keys")
    only(fleet).send(b"for the new keys", now=fleet.now)
    fleet.run_for(0.1)
    assert new.received == [b"for the new keys"]
    assert fleet.server.wake(handle, now=fleet.now) is None or newcomers is NO_ID
    statistics = fleet.server.statistics
    assert (statistics.frozen, statistics.associations, statistics.half_open) == (0, 1, 0)


@each_kind
def test_up_to_the_new_finished_the_old_keys_are_good(ids):
    fleet, old, _ = asleep(ids)
    fleet.psk_after = None
    fleet.connect(config_of(1, connection_id=ids), "device")
    fleet.run_for(0.5)
    record = record_of(fleet, old, b"still good")
    assert told(fleet.server.receive_datagram(record, path="device", now=fleet.now)) == [
        "thawed",
        b"still good",
    ]


@each_kind
def test_it_comes_back_at_any_moment_of_the_waking(ids):
    # The old association wakes while the newcomer shakes hands; it is the live one then that gives way.
    for moment in range(5):
        fleet, old, _ = asleep(ids)
        new = fleet.connect(config_of(1, connection_id=ids), "device")
        for _ in range(moment):
            fleet.step()
        woken = record_of(fleet, old, b"from before")
        fleet.server_events += fleet.server.receive_datagram(woken, path="device", now=fleet.now)
        fleet.run_until(lambda new=new: new.connection.state is ConnectionState.CONNECTED, deadline=1)
        causes = [event.cause for event in fleet.server_events if isinstance(event, ConnectionTerminated)]
        assert causes == [REPLACED]
        assert_dead(fleet, old)
        say(fleet, new, b"new")
        assert len(fleet.server) == 1


@pytest.mark.parametrize(
    "lost", [("device", 0), ("device", 1), ("device", 2), ("server", 0), ("server", 1), ("server", 2)]
)
@each_kind
def test_it_comes_back_although_a_datagram_is_lost(ids, lost):
    fleet, old, _ = asleep(ids)
    who, number = lost
    other = "server" if who == "device" else "device"
    fleet.network.drop(who, len(fleet.network.sent_by(who, to=other)) + number)
    new = fleet.connect(config_of(1, connection_id=ids), "device")
    fleet.run_until(lambda: new.connection.state is ConnectionState.CONNECTED, deadline=2)
    fleet.run_for(3)
    say(fleet, new, b"new")
    assert_dead(fleet, old)
    assert fleet.server_causes() == [REPLACED]


def test_it_comes_back_after_a_restart_of_the_service_too():
    fleet, old, _ = asleep()
    blobs = list(fleet.server.freeze_all(now=fleet.now))
    server = replace_server(fleet, ServerConfig(freeze_after=FREEZE_AFTER))
    for blob in blobs:
        server.restore(blob, now=fleet.now)
    new = restart(fleet)
    assert fleet.server_causes() == [REPLACED]
    assert_dead(fleet, old)
    say(fleet, new, b"new")


def test_it_may_come_back_over_and_over():
    fleet, old, _ = asleep()
    for round_ in range(5):
        new = restart(fleet)
        assert_dead(fleet, old)
        say(fleet, new, b"%d" % round_)
        freeze(fleet, new)
        assert fleet.server.frozen == 1
        old = new
    assert fleet.server_causes() == [REPLACED] * 5


@pytest.mark.parametrize("kind", ["certificate", "raw key"])
def test_devices_are_known_by_what_they_show(kind):
    fleet = freezing_fleet(**_showing())
    mine, others = (_config(kind, which) for which in ("p256", "p256 other"))
    for config, replaced in ((others, []), (mine, [REPLACED])):
        fleet.server_events.clear()
        client = _handshake(fleet, mine)
        fleet.run_for(FREEZE_AFTER)
        assert client.connection.state is ConnectionState.CONNECTED
        fleet.server_events.clear()
        _handshake(fleet, config)
        assert fleet.server_causes() == replaced
        list(fleet.server.freeze_all(now=fleet.now))


def _showing():
    from sansdtls import ClientAuthentication

    config = server_config(client_authentication=ClientAuthentication.REQUIRED)
    return {
        name: getattr(config, name)
        for name in ("credentials", "client_certificate_types", "client_authentication")
    }


def _config(kind, which):
    credential = shown(which).certificate() if kind == "certificate" else shown(which).raw_public_key()
    return client_config(credentials=(credential,), connection_id=ONLY_OUR_ID)


def _handshake(fleet, config):
    client = fleet.connect(config, "device")
    fleet.run_until(lambda: client.connection.state is ConnectionState.CONNECTED, deadline=1)
    say(fleet, client, b"hello")
    return client


# --- others come from there ---------------------------------------------------------------------------


@each_newcomer
def test_another_device_on_its_path_leaves_one_with_an_id_alone(newcomers):
    fleet, client, _ = asleep()
    other = restart(fleet, 2, connection_id=newcomers)
    assert told(fleet.server_events) == ["completed"]
    assert (len(fleet.server), fleet.server.frozen) == (1, 1)
    events = fleet.server.receive_datagram(record_of(fleet, client, b"mine"), path="elsewhere", now=fleet.now)
    assert told(events) == ["thawed", b"mine"]
    say(fleet, other, b"and mine")


@each_newcomer
def test_one_that_is_found_by_its_path_alone_gives_way_to_whoever_has_it(newcomers):
    fleet, client, _ = asleep(NO_ID)
    other = restart(fleet, 2, connection_id=newcomers)
    assert told(fleet.server_events) == ["thawed", REPLACED, "completed"]
    assert_dead(fleet, client)
    say(fleet, other, b"here")


@each_kind
def test_a_stranger_who_does_not_finish_disturbs_nothing(ids):
    for stop_after in range(4):
        fleet, client, _ = asleep(ids)
        stranger = fleet.connect(config_of(2), "device")
        for _ in range(stop_after):
            fleet.step()
        fleet.power_off(stranger)
        fleet.clients["device"] = client
        fleet.run_for(200)
        assert fleet.server.statistics.half_open == 0
        assert fleet.server.frozen == 1
        say(fleet, client, b"undisturbed")
        assert told(fleet.server_events)[-2:] == ["thawed", b"undisturbed"]


@each_kind
def test_a_stranger_with_the_devices_identity_but_not_its_key_disturbs_nothing(ids):
    fleet, client, _ = asleep(ids)
    fleet.connect(config_of(1, psk_key=b"guessed", connection_id=ids), "device")
    fleet.run_for(100)
    fleet.clients["device"] = client
    assert fleet.server.statistics.handshakes_failed
    assert fleet.server.frozen == 1
    say(fleet, client, b"undisturbed")
    only(fleet).send(b"to you, too", now=fleet.now)
    fleet.run_for(0.1)
    assert client.received == [b"to you, too"]


# --- several on one path ------------------------------------------------------------------------------


def behind_one_nat(count, **more):
    """So many devices that had the address one after the other; each sleeps."""
    fleet = freezing_fleet(network=Network(delay=ONE_WAY), **more)
    clients = []
    for number in range(count):
        clients.append(connect(fleet, number, "nat"))
        fleet.run_for(FREEZE_AFTER)
    assert fleet.server.frozen == count
    return fleet, clients


@pytest.mark.parametrize("which", range(5))
def test_of_several_sleepers_on_one_path_the_newcomer_replaces_its_own(which):
    fleet, clients = behind_one_nat(5)
    fleet.server_events.clear()
    new = restart(fleet, which, "nat")
    assert told(fleet.server_events) == ["thawed", REPLACED, "completed"]
    thawed = next(event for event in fleet.server_events if isinstance(event, ConnectionThawed))
    assert peer_of(thawed.connection).psk_identity == b"dev%d" % which
    assert_dead(fleet, clients[which], "nat")
    for number, client in enumerate(clients):
        say(fleet, new if number == which else client, b"%d is here" % number)
    assert len(fleet.server) == 5
    assert len(received(fleet)) == 5


def test_only_some_of_very_many_on_one_path_are_looked_at():
    fleet, clients = behind_one_nat(MAX_AT_ONE_PATH + 2)
    opened = []
    decode = fleet.server._freezer.decode

    def counted(blob, keys):
        opened.append(blob)
        return decode(blob, keys)

    fleet.server._freezer.decode = counted
    restart(fleet, 15, "nat")
    assert len(opened) == MAX_AT_ONE_PATH
    assert fleet.server.frozen == MAX_AT_ONE_PATH + 2
    for client in clients:
        say(fleet, client, b"here")


def test_every_association_of_the_same_device_on_its_path_ends():
    # Two of them: the device lost its state elsewhere, and then came back to where it had been.
    fleet, first, _ = asleep(path="device")
    second = connect(fleet, 1, "elsewhere")
    fleet.move(second, "device")
    say(fleet, second, b"back again")
    fleet.run_for(0.1)
    assert only(fleet).path == "device"
    fleet.run_for(FREEZE_AFTER)
    assert fleet.server.frozen == 2
    third = restart(fleet)
    assert fleet.server_causes() == [REPLACED] * 2
    assert fleet.server.frozen == 0
    for old in (first, second):
        assert_dead(fleet, old)
    say(fleet, third, b"alone")


def test_live_and_frozen_ones_on_one_path_each_have_their_own_device():
    fleet, clients = behind_one_nat(3)
    say(fleet, clients[0], b"awake")
    assert (len(fleet.server), fleet.server.frozen) == (1, 2)
    fleet.server_events.clear()
    new = restart(fleet, 2, "nat")
    assert told(fleet.server_events) == ["thawed", REPLACED, "completed"]
    again = restart(fleet, 0, "nat")
    assert_dead(fleet, clients[2], "nat")
    say(fleet, new, b"2")
    say(fleet, again, b"0")
    say(fleet, clients[1], b"1")
    identities = {peer_of(connection).psk_identity for connection in fleet.server.connections}
    assert identities >= {b"dev0", b"dev1", b"dev2"}
    assert len(KEYS) > 3


def test_which_of_its_keys_a_device_had_does_not_matter():
    fleet, old, _ = asleep()
    fleet.keys[b"dev1"] = [b"next key", *fleet.keys[b"dev1"]]
    fleet.connect(attrs.evolve(config_of(1), psk_key=b"next key"), "device")
    fleet.run_for(1)
    assert fleet.server_causes() == [REPLACED]
    assert_dead(fleet, old)
