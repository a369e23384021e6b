"""Devices with connection IDs behind a NAT that forgets, and strangers who try to profit from it.

What moves an association is in RFC 9146 §6 and RFC 9853. Each test of honest devices runs under all three ways
to prove a new path; where the ways differ is in the second half.
"""

import pytest

from sansdtls import (
    ClientConfig,
    ConnectionIdPolicy,
    ConnectionState,
    DataReceived,
    PathChanged,
    PathChangeRequested,
    PathPolicy,
    PathProof,
    ReturnRoutability,
    ServerConfig,
)
from sansdtls.testing import Nat, Network, Pair

SETTLED = 30.0
"""Seconds after which every check of a path is over, one way or the other."""
DELAY = 0.05
WAYS = list(ReturnRoutability)
OFF, BASIC, ENHANCED = ReturnRoutability.OFF, ReturnRoutability.BASIC, ReturnRoutability.ENHANCED
ATTACKER, VICTIM = ("attacker", 666), ("victim", 80)


def keys(number):
    return {"psk_identity": b"dev%d" % number, "psk_key": bytes([number]) * 16}


class Behind(Pair):
    """A client with connection IDs behind a NAT, and a server; more clients may join."""

    def __init__(self, way=BASIC, *, policy=PathPolicy.MOVE, delay=DELAY, seed=0, own=0):
        self._client_ids = ConnectionIdPolicy(length=own, return_routability=way)
        super().__init__(
            ClientConfig(**keys(0), connection_id=self._client_ids),
            ServerConfig(connection_id=ConnectionIdPolicy(return_routability=way, path_policy=policy)),
            keys={b"dev%d" % number: [bytes([number]) * 16] for number in range(10)},
            network=Network(seed, delay=delay),
            seed=seed,
        )
        self.nat = Nat(self.network, ["client"])

    def join(self, number, path):
        self.nat.inside.add(path)
        client = self.connect(ClientConfig(**keys(number), connection_id=self._client_ids), path)
        self.run_until(lambda: client.connection.state is ConnectionState.CONNECTED)
        self.run_for(1)
        return client

    def say(self, data, client=None):
        (client or self.client_end).connection.send(data, now=self.now)
        self.flush()

    def here(self, client=None):
        """Where the server sees a client, from its next datagram on."""
        return self.nat.public((client or self.client_end).path)

    def both_ways(self, client=None, connection=None):
        """Whether a message and its answer get through, once all checks of the path are over."""
        client, connection = client or self.client_end, connection or self.server_connection
        self.say(b"ping %f" % self.now, client)
        self.run_for(SETTLED)
        answer = b"pong %f" % self.now
        connection.send(answer, now=self.now)
        self.run_for(1)
        return self.server_received()[-1].startswith(b"ping") and client.received[-1:] == [answer]

    @property
    def moves(self):
        return [event for event in self.server_events if isinstance(event, PathChanged)]


def connected(*args, **more):
    pair = Behind(*args, **more)
    pair.handshake()
    pair.run_for(1)
    return pair


# --- honest devices -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_after_a_rebinding_data_go_both_ways_on_the_same_association(way):
    pair = connected(way)
    old = pair.here()
    pair.nat.rebind()
    assert pair.both_ways()
    assert pair.server_connection.path == pair.here() != old
    (move,) = pair.moves
    assert (move.connection, move.old, move.new) == (pair.server_connection, old, pair.here())
    assert move.proof is (PathProof.NEWER_RECORD if way is OFF else PathProof.RETURN_ROUTABILITY)
    assert pair.server.statistics.handshakes_started == 1
    assert pair.server.statistics.path_changes == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(8))
def test_a_nat_that_rebinds_at_any_moment_costs_no_message_to_the_server(way, seed):
    # Ten messages in flight or under check at a time, and a rebinding every 70 to 370 ms.
    pair = connected(way, seed=seed, delay=0.1)
    sent = []
    chance = pair.network._chance
    next_rebinding = pair.now
    for number in range(200):
        if pair.now >= next_rebinding:
            pair.nat.rebind()
            next_rebinding = pair.now + 0.07 + 0.3 * chance.fraction()
        sent.append(b"%d" % number)
        pair.say(sent[-1])
        pair.run_for(0.01)
    pair.run_for(SETTLED)
    assert sorted(pair.server_received()) == sorted(sent)
    assert pair.both_ways()
    assert pair.server.statistics.handshakes_started == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_rebinding_before_each_datagram_is_survived_and_leaves_nothing_behind(way):
    pair = connected(way)
    for number in range(300):
        pair.nat.rebind()
        pair.say(b"%d" % number)
        pair.run_for(0.01)
    assert pair.both_ways()
    assert len(pair.server_received()) == 301
    assert len(pair.server) == 1
    pair.client.close(now=pair.now)
    pair.run_for(SETTLED)
    assert len(pair.server) == 0
    assert not pair.server._routes


@pytest.mark.parametrize("way", [BASIC, ENHANCED])
def test_no_unproven_path_is_sent_more_than_three_times_what_came_from_it(way):
    pair = connected(way)
    proven = pair.here()
    paths = []
    for number in range(50):
        pair.nat.rebind()
        pair.say(b"%d" % number)
        paths.append(pair.here())
        for _ in range(5):
            pair.server_connection.send(b"x" * 200, now=pair.now)
        pair.run_for(0.06)  # the challenge arrives when its path is gone
    pair.run_for(SETTLED)
    for path in paths[:-1]:
        came = sum(len(sent.data) for sent in pair.network.sent_by(path))
        went = sum(len(sent.data) for sent in pair.network.sent_by("server", to=path))
        assert came > 0
        assert went <= 3 * came, path
    assert proven not in paths


@pytest.mark.parametrize("way", WAYS)
def test_two_clients_that_swap_addresses_keep_their_associations(way):
    pair = connected(way)
    first = pair.server_connection
    other = pair.join(1, "other")
    second = pair.server_connection
    pair.nat.swap("client", "other")
    assert pair.both_ways(connection=first)
    assert pair.both_ways(other, second)
    assert pair.both_ways(connection=first)
    assert (first.path, second.path) == (pair.here(), pair.here(other))
    assert pair.server.statistics.handshakes_started == 2
    assert len(pair.server) == 2


@pytest.mark.parametrize("way", WAYS)
def test_a_stranger_who_gets_the_old_address_gets_an_association_of_its_own_and_no_other(way):
    pair = connected(way)
    first, old = pair.server_connection, pair.here()
    pair.nat.rebind("client")
    pair.nat.inside.add("stranger")
    pair.nat.assign("stranger", old)
    # The server does not know yet: what it sends now goes to the stranger, who cannot read it.
    first.send(b"for the device", now=pair.now)
    stranger = pair.join(1, "stranger")
    second = pair.server_connection
    assert second is not first
    assert second.path == old
    assert pair.both_ways(connection=first)
    assert pair.both_ways(stranger, second)
    assert stranger.received != []
    assert not any(data == b"for the device" for data in stranger.received)
    assert len(pair.server) == 2


@pytest.mark.parametrize("flights", range(6))
def test_a_rebinding_in_the_middle_of_a_handshake_costs_at_most_that_handshake(flights):
    pair = Behind()
    pair.run_until(lambda: len(pair.network.log) >= flights)
    pair.nat.rebind()
    pair.run_for(120)
    if pair.client.state is not ConnectionState.CONNECTED:
        pair.client_end = pair.connect(ClientConfig(**keys(0), connection_id=ConnectionIdPolicy(length=0)))
        pair.handshake()
    assert pair.both_ways()


@pytest.mark.parametrize("way", WAYS)
def test_a_client_that_was_silent_until_its_nat_forgot_it_is_heard_at_once(way):
    pair = connected(way)
    pair.nat.timeout = 2 * SETTLED
    for _ in range(5):
        pair.run_for(3600)
        assert pair.both_ways()
    assert len(pair.moves) == 5


# --- old, copied and redirected datagrams ----------------------------------------------------------------


def held_back(pair, data):
    """Have the client send; the datagram is taken off the network and returned."""
    caught = []

    def catch(sent):
        caught.append(sent.data)
        return []

    pair.network.add_tap(catch)
    pair.say(data)
    pair.network.remove_taps()
    (datagram,) = caught
    return datagram


@pytest.mark.parametrize("way", WAYS)
def test_a_late_datagram_from_the_old_address_delivers_its_data_and_moves_nothing(way):
    pair = connected(way)
    old = pair.here()
    late = held_back(pair, b"late")
    pair.nat.rebind()
    assert pair.both_ways()
    moves = pair.moves
    pair.network.inject(old, "server", late)
    pair.run_for(SETTLED)
    assert pair.server_received()[-1] == b"late"
    assert pair.moves == moves
    assert pair.server_connection.path == pair.here()
    assert pair.server.statistics.path_checks_failed == 0
    assert pair.both_ways()


@pytest.mark.parametrize("way", WAYS)
def test_a_datagram_replayed_from_elsewhere_is_answered_by_nothing_at_all(way):
    pair = connected(way)
    pair.say(b"once")
    pair.run_for(1)
    before, here = pair.server_received(), pair.here()
    for sent in pair.network.sent_by(here, to="server"):
        pair.network.inject(ATTACKER, "server", sent.data)
        pair.run_for(1)
    assert pair.server_received() == before
    assert pair.server_connection.path == here
    assert pair.moves == []
    # The first hello alone is answered, with the cookie that any stranger gets.
    assert all(sent.data[13] == 3 for sent in pair.network.sent_by("server", to=ATTACKER))


@pytest.mark.parametrize("way", WAYS)
def test_forged_datagrams_with_the_right_connection_id_move_nothing(way):
    pair = connected(way)
    real = held_back(pair, b"real")
    for position in range(len(real)):
        forged = bytearray(real)
        forged[position] ^= 1
        pair.network.inject(ATTACKER, "server", bytes(forged))
    pair.run_for(SETTLED)
    assert pair.server_received() == []
    assert pair.network.sent_by("server", to=ATTACKER) == []
    assert pair.moves == []
    pair.network.inject(pair.here(), "server", real)
    pair.run_for(1)
    assert pair.server_received() == [b"real"]


def test_without_return_routability_a_redirected_datagram_moves_the_path_until_the_next():
    # RFC 9146 §9; the reason for RFC 9853.
    pair = connected(OFF)
    pair.network.inject(VICTIM, "server", held_back(pair, b"redirected"))
    pair.run_for(1)
    assert pair.server_connection.path == VICTIM
    pair.say(b"next")
    pair.run_for(1)
    assert pair.server_connection.path == pair.here()
    assert [move.proof for move in pair.moves] == [PathProof.NEWER_RECORD] * 2


@pytest.mark.parametrize("way", [BASIC, ENHANCED])
def test_with_return_routability_a_redirected_datagram_brings_a_victim_no_data(way):
    pair = connected(way)
    here = pair.here()
    datagram = held_back(pair, b"redirected")
    pair.network.inject(VICTIM, "server", datagram)
    for _ in range(100):
        pair.server_connection.send(b"x" * 100, now=pair.now)
        pair.run_for(0.3)
    assert pair.server_received() == [b"redirected"]
    assert pair.server_connection.path == here
    assert pair.moves == []
    assert pair.client_end.received == [b"x" * 100] * 100
    to_victim = sum(len(sent.data) for sent in pair.network.sent_by("server", to=VICTIM))
    assert to_victim <= 3 * len(datagram)
    assert pair.both_ways()


@pytest.mark.parametrize("way", [BASIC, ENHANCED])
def test_a_challenge_that_is_passed_on_to_the_client_and_answered_from_its_own_address_proves_nothing(way):
    pair = connected(way)
    here = pair.here()

    def pass_on(sent):
        if sent.destination == VICTIM:
            pair.network.inject("server", here, sent.data)
        return [sent.data]

    pair.network.inject(VICTIM, "server", held_back(pair, b"redirected"))
    pair.network.add_tap(pass_on)
    pair.run_for(SETTLED)
    assert pair.moves == []
    assert pair.server_connection.path == here
    assert pair.both_ways()


@pytest.mark.parametrize(("way", "moved"), [(BASIC, True), (ENHANCED, False)])
def test_somebody_who_forwards_everything_faster_gets_between_only_without_the_enhanced_flow(way, moved):
    # RFC 9853 §5.2: the attacker sends copies from an address of its own, which overtake the originals, and
    # passes on what comes back.
    pair = connected(way, delay=0.1)
    here = pair.here()

    def forward(sent):
        if sent.source == here:
            pair.network.inject(ATTACKER, "server", sent.data)
        elif sent.destination == ATTACKER:
            pair.network.inject("server", here, sent.data)
        return [sent.data]

    pair.network.add_tap(forward)
    pair.say(b"data")
    pair.run_for(SETTLED)
    assert (pair.server_connection.path == ATTACKER) is moved
    assert pair.server_received() == [b"data"]
    pair.network.remove_taps()
    assert pair.both_ways()
    assert pair.server_connection.path == here


# --- other policies -------------------------------------------------------------------------------------


def test_a_path_that_never_moves_still_delivers_data():
    pair = connected(OFF, policy=PathPolicy.NEVER)
    old = pair.here()
    pair.nat.rebind()
    for _ in range(2):
        pair.say(b"from elsewhere")
        pair.run_for(SETTLED)
    assert pair.server_received() == [b"from elsewhere"] * 2
    assert pair.server_connection.path == old
    assert not any(isinstance(event, PathChanged | PathChangeRequested) for event in pair.server_events)


def test_an_application_that_is_asked_moves_the_path():
    pair = connected(OFF, policy=PathPolicy.APPLICATION)
    old = pair.here()
    pair.nat.rebind()
    pair.say(b"from elsewhere")
    pair.run_for(1)
    (request,) = [event for event in pair.server_events if isinstance(event, PathChangeRequested)]
    assert (request.old, request.new) == (old, pair.here())
    assert pair.server_connection.path == old
    events = pair.server_connection.confirm_path(request, now=pair.now)
    assert [type(event) for event in events] == [PathChanged]
    assert events[0].proof is PathProof.APPLICATION
    assert pair.server_connection.path == pair.here()
    assert pair.both_ways()


@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_moves_is_followed_by_a_client_with_an_id_of_its_own(way):
    pair = connected(way, own=8)
    pair.server_path = ("server", "elsewhere")
    pair.server_connection.send(b"from elsewhere", now=pair.now)
    pair.run_for(SETTLED)
    assert pair.client_end.received == [b"from elsewhere"]
    assert pair.client.path == pair.server_path
    pair.say(b"found")
    pair.run_for(1)
    assert pair.server_received() == [b"found"]
    assert any(isinstance(event, DataReceived) for event in pair.client_events)
