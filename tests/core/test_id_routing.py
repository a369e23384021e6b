"""A server finds associations by their IDs, whatever path their records come from; and gives back what they held."""

from __future__ import annotations

import gc
import weakref

import pytest

from sansdtls import (
    ClientConfig,
    ConfigError,
    Connection,
    ConnectionIdPolicy,
    ConnectionState,
    DataReceived,
    DiscardReason,
    Limits,
    PathPolicy,
    PeerClose,
    ReturnRoutability,
    ServerConfig,
)
from sansdtls.testing import Fleet
from tests.core import raw
from tests.core.failures import FAILURES, fail_by_local_close
from tests.core.fleets import KEYS
from tests.core.id_puppets import IdClient, offering
from tests.core.puppet import IDENTITY, KEY, PuppetClient, ServerRig

ONE_BYTE = ConnectionIdPolicy(length=1)


class Crowd(ServerRig):
    """A server under test that knows many identities."""

    def __init__(self, policy: ConnectionIdPolicy | None = None, **more):
        super().__init__(ServerConfig(connection_id=policy or ConnectionIdPolicy(), **more), dict(KEYS))

    def sent(self, path="peer") -> list[bytes]:
        return [each.data for each in self.server.datagrams_to_send() if each.path == path]

    def client(self, number: int, path=None, *, with_id: bool = True) -> IdClient:
        """Number ``number``, connected; at a path of its own if no other is named."""
        return self.beginner(number, path, with_id=with_id).handshake()

    def beginner(self, number: int, path=None, *, with_id: bool = True) -> IdClient:
        """The same before its first hello."""
        return IdClient(
            self,
            own_id=b"%d" % number if with_id else None,
            identity=b"dev%d" % number,
            psk=KEYS[b"dev%d" % number][0],
            random=self.entropy(32),
            path=("host", number) if path is None else path,
        )

    def hears(self, puppet: IdClient, path=None) -> bool:
        """Whether what the puppet sends from ``path`` is delivered, to its own association."""
        data = self.entropy(8)
        before = len(self.events)
        self.server_give(puppet.data(data), puppet.path if path is None else path)
        heard = [event for event in self.events[before:] if isinstance(event, DataReceived)]
        for event in heard:
            assert event.data == data
            assert event.connection.peer is not None
            assert event.connection.peer.psk_identity == puppet.identity
        return bool(heard)

    def server_give(self, data: bytes, path) -> None:
        self._take(self.server.receive_datagram(data, path=path, now=self.now))
        self.server.datagrams_to_send()

    def path_of(self, puppet: IdClient):
        (found,) = [each for each in self.server.connections if each.connection_id == puppet.peers_id]
        return found.path


def assert_nothing_is_left(rig: ServerRig) -> None:
    server, routes = rig.server, rig.server._routes
    assert len(server) == server.statistics.associations == server.statistics.half_open == 0
    assert len(routes) == len(routes.established) == 0
    assert not routes._by_connection_id
    assert not routes._id_lengths
    assert list(server.connections) == []
    assert server.next_timeout() is None


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


# --- IDs that run out -----------------------------------------------------------------------------------


def test_with_ids_of_one_byte_the_257th_association_gets_none_and_works():
    rig = Crowd(ConnectionIdPolicy(length=1, generator=CountingIds()))
    puppets = [rig.client(number) for number in range(258)]
    assert {puppet.peers_id for puppet in puppets[:256]} == {bytes([number]) for number in range(256)}
    assert [puppet.peers_id for puppet in puppets[256:]] == [b"", b""]
    for puppet in (*puppets, *puppets[250:]):
        assert rig.hears(puppet)
    assert rig.hears(puppets[5], "elsewhere")
    assert not rig.hears(puppets[257], "elsewhere")
    rig.server_give(puppets[7].alert(1, 0, epoch=1), puppets[7].path)
    rig.wait(0)
    again = rig.client(258)
    assert again.peers_id == puppets[7].peers_id, "given back, and used again"
    assert rig.hears(again, "anywhere")
    assert len(rig.server) == 258


class CountingIds:
    """IDs of one byte in order, over and over; of the same 16 at a time, as ``_ID_ATTEMPTS`` asks for."""

    def __init__(self) -> None:
        self.next = 0
        self.asked = 0

    def __call__(self, entropy) -> bytes:
        self.asked += 1
        made = bytes([self.next % 256])
        self.next += 1
        if self.next == 256 + 16 * 2:  # two that found nothing; then the one that was given back
            self.next = 7
        return made


def test_an_id_in_use_is_asked_for_again():
    given = iter([b"aaaa", b"aaaa", b"aaaa", b"bbbb", b"aaaa", b"cccc"])
    rig = Crowd(ConnectionIdPolicy(length=4, generator=lambda _: next(given)))
    assert [rig.client(number).peers_id for number in range(3)] == [b"aaaa", b"bbbb", b"cccc"]


def test_a_generator_that_always_makes_the_same_leaves_the_second_without_an_id():
    rig = Crowd(ConnectionIdPolicy(length=4, generator=lambda _: b"same"))
    first, second = rig.client(0), rig.client(1)
    assert (first.peers_id, second.peers_id) == (b"same", b"")
    for puppet in (first, second):
        assert rig.hears(puppet)


def test_no_id_is_the_beginning_of_another():
    rig = Crowd(ConnectionIdPolicy(length=1, generator=lambda _: b"a"))
    rig.client(0)
    made = iter([b"ab", b"ac", b"bc"])
    policy = ConnectionIdPolicy(length=2, generator=lambda _: next(made))
    rig.server.replace_config(ServerConfig(connection_id=policy), now=rig.now)
    assert rig.client(1).peers_id == b"bc"


def test_an_id_is_free_again_after_a_handshake_that_failed():
    rig = Crowd(ConnectionIdPolicy(length=4, generator=lambda _: b"same"))
    for _ in range(3):
        beginner = rig.beginner(0)
        beginner.hello()
        assert beginner.peers_id == b"same"
        rig.wait(200)
        assert_nothing_is_left(rig)


def test_a_generator_that_raises_leaves_no_half_open_handshake_behind():
    made = iter([b"too long", b"good", b"fine"])
    rig = Crowd(ConnectionIdPolicy(length=4, generator=lambda _: next(made)))
    beginner = rig.beginner(0)
    beginner.get_cookie()
    hello = beginner.message(raw.CLIENT_HELLO, beginner.hello_body())
    with pytest.raises(ConfigError, match="generator"):
        beginner.give(hello)
    assert rig.server.statistics.half_open == 0
    rig.server_give(b"\x14\xfe\xfd" + bytes(11), beginner.path)
    rig.wait(200)
    assert_nothing_is_left(rig)
    assert rig.client(0).peers_id == b"good"


# --- nothing is left ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fail", FAILURES, ids=FAILURES.get)
def test_a_handshake_that_fails_gives_back_its_id_and_its_path(fail):
    for _ in range(2):
        puppet = IdClient(ServerRig())
        if fail is fail_by_local_close:
            puppet.rig.events.clear()
        fail(puppet)
        puppet.rig.wait(0)
        assert_nothing_is_left(puppet.rig)


def ends():
    """Every way in which an association ends, as a function of the rig and a connected client."""

    def by_close_notify(rig, puppet):
        rig.server_give(puppet.alert(1, 0, epoch=1), puppet.path)

    def by_close_notify_from_elsewhere(rig, puppet):
        rig.server_give(puppet.alert(1, 0, epoch=1), "elsewhere")

    def by_a_fatal_alert(rig, puppet):
        rig.server_give(puppet.alert(2, 40, epoch=1), puppet.path)

    def by_a_violation(rig, puppet):
        rig.server_give(puppet.inner(bytes(5)), puppet.path)

    def by_us(rig, puppet):
        (connection,) = [each for each in rig.server.connections if each.connection_id == puppet.peers_id]
        connection.close(now=rig.now)

    def by_idleness(rig, puppet):
        rig.wait(100 * 86_400)

    def after_moving(rig, puppet):
        assert rig.hears(puppet, "elsewhere")
        by_close_notify(rig, puppet)

    def after_a_stranger_took_its_path(rig, puppet):
        other = rig.client(1, puppet.path)
        by_close_notify(rig, puppet)
        rig.wait(0)
        by_us(rig, other)

    def before_the_stranger_that_took_its_path(rig, puppet):
        other = rig.client(1, puppet.path)
        by_us(rig, other)
        rig.wait(0)
        assert rig.hears(puppet)
        by_close_notify(rig, puppet)

    def by_a_restart(rig, puppet):
        again = rig.client(0, puppet.path)
        by_us(rig, again)

    def by_forgeries(rig, puppet):
        while len(rig.server):
            forged = raw.record(25, bytes(40), epoch=1, seq=9, connection_id=puppet.peers_id)
            rig.server_give(forged, "stranger")

    return [value for value in locals().values() if callable(value)]


@pytest.mark.parametrize("end", ends(), ids=lambda end: end.__name__)
def test_an_association_that_ends_gives_back_its_id_and_its_paths(end):
    rig = Crowd(limits=Limits(max_failed_opens=50))

    def live_and_die() -> tuple[IdClient, weakref.ref[Connection]]:
        puppet = rig.client(0)
        connection = weakref.ref(rig.connection)
        end(rig, puppet)
        rig.wait(0)
        assert_nothing_is_left(rig)
        return puppet, connection

    live_and_die()
    puppet, connection = live_and_die()
    before = rig.server.statistics.records_discarded.get(DiscardReason.UNKNOWN_CONNECTION_ID, 0)
    assert not rig.hears(puppet)
    assert rig.server.statistics.records_discarded[DiscardReason.UNKNOWN_CONNECTION_ID] == before + 1
    rig.events.clear()
    gc.collect()
    assert connection() is None, "nobody holds it any more"


def test_evicted_associations_give_back_their_ids():
    rig = Crowd(limits=Limits(max_associations=3, stale_after=0))
    for number in range(20):
        rig.client(number)
    assert len(rig.server) == len(rig.server._routes._by_connection_id) == 3
    assert rig.server.statistics.evictions == 17


def test_an_idle_association_with_an_id_lives_longer_than_one_without():
    limits = Limits(idle_timeout=100, idle_timeout_with_connection_id=1000)
    rig = Crowd(limits=limits)
    rig.client(0)
    rig.client(1, with_id=False)
    rig.wait(101)
    assert [connection.connection_id != b"" for connection in rig.server.connections] == [True]
    rig.wait(898)
    assert len(rig.server) == 1
    rig.wait(2)
    assert_nothing_is_left(rig)


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
