"""A server finds associations by their IDs, whatever path their records come from."""

from __future__ import annotations

import pytest

from sansdtls import (
    ClientAuthentication,
    ClientConfig,
    ConnectionIdPolicy,
    ConnectionState,
    DataReceived,
    DiscardReason,
    PathPolicy,
    PeerClose,
    ReturnRoutability,
    ServerConfig,
)
from sansdtls.testing import Fleet
from tests.core.credentials import shown
from tests.core.crowds import Crowd, assert_nothing_is_left
from tests.core.ecdhe_puppets import asking_config
from tests.core.ecdhe_puppets import client_config as cert_client_config
from tests.core.fleets import KEYS
from tests.core.id_puppets import offering
from tests.core.puppet import IDENTITY, KEY, PuppetClient

ONE_BYTE = ConnectionIdPolicy(length=1)


# --- by ID, from anywhere -------------------------------------------------------------------------------


def test_records_are_found_by_their_id_from_any_path():
    rig = Crowd()
    puppets = [rig.client(number) for number in range(5)]
    for round_ in range(3):
        for puppet in puppets:
            assert rig.hears(puppet, ("elsewhere", round_, puppet.identity))
    assert rig.server.statistics.mac_failures == 0
    assert len(rig.server) == 5


@pytest.mark.parametrize(("policy", "moves"), [(PathPolicy.MOVE, True), (PathPolicy.NEVER, False)])
def test_answers_follow_the_newest_record_if_the_policy_says_so(policy, moves):
    rig = Crowd(ConnectionIdPolicy(path_policy=policy, return_routability=ReturnRoutability.OFF))
    puppet = rig.client(0)
    older, newer = puppet.data(b"older"), puppet.data(b"newer")
    rig.server_give(newer, "there")
    assert rig.path_of(puppet) == ("there" if moves else ("host", 0))
    rig.server_give(older, "third")  # RFC 9146 §6: a reordered record moves nothing
    assert rig.path_of(puppet) == ("there" if moves else ("host", 0))
    assert rig.received == [b"newer", b"older"]
    rig.server_give(newer, "fourth")
    assert rig.path_of(puppet) == ("there" if moves else ("host", 0))
    assert len(rig.server._routes) == 1


def test_a_moved_association_leaves_nothing_at_its_old_path():
    rig = Crowd()
    puppet = rig.client(0)
    for number in range(300):
        assert rig.hears(puppet, ("nat", number))
        assert rig.path_of(puppet) == ("nat", number)
        assert len(rig.server._routes) == 1


def test_a_record_without_an_id_from_a_foreign_path_is_nobodys():
    rig = Crowd()
    rig.client(0)
    plain = rig.client(1, with_id=False)
    assert not rig.hears(plain, "elsewhere")
    assert rig.server.statistics.records_discarded == {DiscardReason.UNKNOWN_ASSOCIATION: 1}
    assert rig.hears(plain)


# --- who has the path -----------------------------------------------------------------------------------


def test_an_association_with_an_id_outlives_a_stranger_on_its_path():
    rig = Crowd()
    first = rig.client(0, "nat")
    second = rig.client(1, "nat")
    assert rig.causes == []
    assert len(rig.server) == 2
    for puppet in (first, second, first):
        assert rig.hears(puppet)
        assert rig.hears(puppet, ("moved", puppet.identity))
    assert rig.path_of(first) != rig.path_of(second)


def test_an_association_with_an_id_gives_way_to_the_same_identity():
    rig = Crowd()
    first = rig.client(0, "nat")
    again = rig.client(0, "nat")
    assert rig.causes == [PeerClose(replaced=True)]
    assert len(rig.server) == 1
    assert not rig.hears(first)
    assert not rig.hears(first, "elsewhere")
    assert rig.hears(again)


@pytest.mark.parametrize("policy", [PathPolicy.MOVE, PathPolicy.NEVER])
def test_an_association_gives_way_at_the_path_in_use_and_at_no_other(policy):
    rig = Crowd(ConnectionIdPolicy(path_policy=policy, return_routability=ReturnRoutability.OFF))
    moved = rig.client(0, "old")
    assert rig.hears(moved, "new")
    in_use, other = ("new", "old") if policy is PathPolicy.MOVE else ("old", "new")
    beside = rig.client(0, other)
    assert len(rig.server) == 2
    assert rig.hears(moved, in_use)
    again = rig.client(0, in_use)
    assert len(rig.server) == 2
    assert not rig.hears(moved, in_use)
    for puppet in (beside, again):
        assert rig.hears(puppet)


def test_who_is_heard_again_at_a_path_that_another_had_is_found_there_again():
    rig = Crowd()
    device, other = rig.client(0, "nat"), rig.client(1, "nat")
    assert rig.hears(device)
    again = rig.client(0, "nat")
    assert not rig.hears(device)
    for puppet in (again, other):
        assert rig.hears(puppet)


def test_an_association_without_an_id_gives_way_to_anybody_on_its_path():
    for with_id in (True, False):
        rig = Crowd()
        first = rig.client(0, "nat", with_id=False)
        second = rig.client(1, "nat", with_id=with_id)
        assert rig.causes == [PeerClose(replaced=True)]
        assert not rig.hears(first)
        assert rig.hears(second)
        assert len(rig.server) == 1


def test_a_newcomer_without_an_id_takes_the_path_of_one_that_has_one():
    rig = Crowd()
    first = rig.client(0, "nat")
    second = rig.client(1, "nat", with_id=False)
    for puppet in (first, second, first, second):
        assert rig.hears(puppet)
    assert len(rig.server) == 2


def test_who_moves_onto_the_path_of_an_association_without_an_id_does_not_displace_it():
    rig = Crowd()
    plain = rig.client(0, "there", with_id=False)
    movers = [rig.client(number) for number in (1, 2)]
    for _ in range(2):
        for mover in movers:
            assert rig.hears(mover, "there")
            assert rig.path_of(mover) == "there"
            assert rig.hears(plain)
    plain.give(plain.alert(1, 0, epoch=1))
    rig.wait(0)
    assert len(rig.server) == 2
    assert not rig.hears(plain)
    for mover in movers:
        assert rig.hears(mover, "there")
        assert rig.hears(mover, ("moved on", mover.identity))
    assert len(rig.server._routes) == 2


def test_who_moves_onto_the_path_of_an_association_with_an_id_disturbs_nobody():
    rig = Crowd()
    puppets = [rig.client(number) for number in range(3)]
    for _ in range(2):
        for puppet in puppets:
            assert rig.hears(puppet, "nat")
    assert [rig.path_of(puppet) for puppet in puppets] == ["nat"] * 3
    assert len(rig.server) == 3
    for puppet in puppets:
        assert rig.hears(puppet)
    assert [rig.path_of(puppet) for puppet in puppets] == [puppet.path for puppet in puppets]
    assert len(rig.server._routes) == 3


def test_a_handshake_under_way_is_not_disturbed_by_who_moves_onto_its_path():
    rig = Crowd()
    mover, newcomer = rig.client(0), rig.beginner(1, "there")
    newcomer.hello()
    assert rig.hears(mover, "there")
    newcomer.finish()
    assert len(rig.server) == 2
    for puppet in (newcomer, mover):
        assert rig.hears(puppet, "there")


@pytest.mark.parametrize(
    ("first", "second", "gives_way"),
    [
        ("p256 one", "p256 one", True),
        ("p256 one", "p256 other", False),
        ("p256 one", None, False),
        (None, "p256 one", False),
        (None, None, True),  # who shows nothing cannot be told from another who does not
    ],
)
def test_who_is_the_same_peer_is_seen_from_the_certificate(first, second, gives_way):
    config = asking_config(client_authentication=ClientAuthentication.WANTED)
    fleet = Fleet(config)
    clients = []
    for kind in (first, second):
        shows = () if kind is None else (shown(kind).certificate(),)
        own = cert_client_config(credentials=shows, connection_id=ConnectionIdPolicy())
        client = fleet.connect(own, "nat")
        fleet.run_until(lambda: client.connection.state is ConnectionState.CONNECTED)  # noqa: B023
        fleet.run_for(0.1)
        clients.append(client)
    assert len(fleet.server) == (1 if gives_way else 2)
    for number, client in enumerate(clients):
        client.connection.send(b"%d" % number, now=fleet.now)
        for outgoing in client.connection.datagrams_to_send():
            fleet.network.inject("nat", "server", outgoing.data)
    fleet.run_for(0.1)
    assert fleet.server_received() == ([b"1"] if gives_way else [b"0", b"1"])


# --- another configuration ------------------------------------------------------------------------------


def test_associations_with_ids_of_several_lengths_live_side_by_side():
    rig = Crowd()
    puppets = []
    for number, length in enumerate((8, 3, 20, 1, 0, 8, 12)):
        policy = ConnectionIdPolicy(length=length)
        rig.server.replace_config(ServerConfig(connection_id=policy), now=rig.now)
        puppets.append(rig.client(number))
        assert len(puppets[-1].peers_id or b"") == length
    rig.server.replace_config(ServerConfig(connection_id=None), now=rig.now)
    puppets.append(rig.client(7))
    assert puppets[-1].peers_id is None
    for puppet in (*puppets, *reversed(puppets)):
        assert rig.hears(puppet)
        if puppet.peers_id:
            assert rig.hears(puppet, ("moved", puppet.identity))
    assert rig.server._routes._id_lengths == {20: 1, 12: 1, 8: 2, 3: 1, 1: 1}
    for puppet in puppets:
        rig.server_give(puppet.alert(1, 0, epoch=1), puppet.path)
    rig.wait(0)
    assert_nothing_is_left(rig)


def test_a_handshake_under_way_keeps_the_ids_it_began_with():
    rig = Crowd()
    puppet = rig.beginner(0)
    puppet.hello()
    rig.server.replace_config(ServerConfig(connection_id=ConnectionIdPolicy(length=3)), now=rig.now)
    puppet.finish()
    assert len(puppet.peers_id or b"") == 8
    assert rig.hears(puppet, "elsewhere")


def test_a_client_moves_with_the_server_where_it_has_an_id_of_its_own():
    fleet = Fleet(ServerConfig(connection_id=ConnectionIdPolicy()), keys={IDENTITY: [KEY]})
    policy = ConnectionIdPolicy(return_routability=ReturnRoutability.OFF)
    client = fleet.connect(offering(policy), "client")
    fleet.run_until(lambda: client.connection.state is ConnectionState.CONNECTED)
    fleet.run_for(0.1)
    (server,) = fleet.server.connections
    server.send(b"from a new address", now=fleet.now)
    (outgoing,) = fleet.server.datagrams_to_send()
    events = client.connection.receive_datagram(outgoing.data, now=fleet.now, path="new server")
    assert [event.data for event in events if isinstance(event, DataReceived)] == [b"from a new address"]
    assert client.connection.path == "new server"


def test_clients_with_and_without_ids_share_a_server():
    fleet = Fleet(keys=KEYS)
    clients = []
    for number in range(40):
        policy = (None, ConnectionIdPolicy(), ConnectionIdPolicy(length=0), ONE_BYTE)[number % 4]
        identity = b"dev%d" % number
        config = ClientConfig(psk_identity=identity, psk_key=KEYS[identity][0], connection_id=policy)
        clients.append(fleet.connect(config, path=number))
    fleet.run_until(lambda: all(each.connection.state is ConnectionState.CONNECTED for each in clients))
    for number, client in enumerate(clients):
        client.connection.send(b"%d" % number, now=fleet.now)
    fleet.run_for(0.1)
    assert sorted(fleet.server_received(), key=int) == [b"%d" % number for number in range(40)]
    assert isinstance(clients[0].connection.connection_id, bytes)
    assert PuppetClient().handshake().rig.connection.connection_id == b""
