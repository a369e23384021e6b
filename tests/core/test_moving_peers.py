"""Two peers that move, and an attacker beside the path, in any order of events: what must always hold."""

from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sansdtls import ConnectionState, PathChanged, PathProof
from tests.core.roaming import BASIC, ENHANCED, HOME, Policy, pair_of

if TYPE_CHECKING:
    from collections.abc import Hashable

ATTACKER = "attacker"
ADDRESSES = [HOME, "a", "b", "c"]
SERVERS = ["server", "server a", "server b"]
DELAY = 0.02


class MovingPeers(RuleBasedStateMachine):
    """Both sides have connection IDs. Nothing is lost but what goes to addresses that nobody has any more.

    The attacker copies what the client sends before it has arrived, replays what it has seen, from its own address or
    any other, and never passes on what comes to it.
    """

    policy: Policy = BASIC

    def __init__(self):
        super().__init__()
        self.pair = pair_of(self.policy, {**self.policy, "length": 3}, delay=DELAY)
        self.home = {HOME}
        """Where the client has been."""
        self.servers = {"server"}
        self.sent: list[bytes] = []
        self.bound_to_arrive: set[bytes] = set()
        """Of what was sent: went to where the server is."""
        self.replied: list[bytes] = []
        self.pair.network.add_tap(self.tap)
        self.copied: object = None
        """The source of the copies that the attacker makes now, if any."""
        self.seen: list[bytes] = []

    def tap(self, datagram):
        if datagram.destination in SERVERS:
            self.seen.append(datagram.data)
            if self.copied is not None:
                self.pair.network.inject(self.copied, self.pair.server_path, datagram.data)
        return [datagram.data]

    @rule(seconds=st.floats(0, 2))
    def time_passes(self, seconds):
        self.pair.run_for(seconds)

    @rule()
    def the_client_speaks(self):
        self.sent.append(b"%d" % len(self.sent))
        self.pair.client.send(self.sent[-1], now=self.pair.now)
        self.pair.flush()
        if self.pair.network.sent_by(self.pair.client_end.path)[-1].destination == self.pair.server_path:
            self.bound_to_arrive.add(self.sent[-1])

    @rule()
    def the_server_speaks(self):
        self.replied.append(b"%d" % len(self.replied))
        self.pair.server_connection.send(self.replied[-1], now=self.pair.now)

    @rule(address=st.sampled_from(ADDRESSES), keep_old=st.booleans())
    def the_client_moves(self, address, keep_old):
        self.pair.flush()
        self.pair.move(self.pair.client_end, address, keep_old=keep_old)
        self.home.add(address)

    @rule(address=st.sampled_from(SERVERS))
    def the_server_moves(self, address):
        self.pair.run_for(DELAY)  # what is under way to it arrives, so that nothing is lost on the way there
        self.pair.server_path = address
        self.servers.add(address)

    @rule(source=st.sampled_from([None, ATTACKER, *ADDRESSES]))
    def the_attacker_copies(self, source):
        self.copied = source

    @precondition(lambda self: self.seen)
    @rule(source=st.sampled_from([ATTACKER, *ADDRESSES]), which=st.integers(0, 1000))
    def the_attacker_replays(self, source, which):
        datagram = self.seen[which % len(self.seen)]
        self.pair.network.inject(source, self.pair.server_path, datagram)

    @invariant()
    def both_are_connected(self):
        assert self.pair.client.state is ConnectionState.CONNECTED
        assert self.pair.server_connection.state is ConnectionState.CONNECTED

    @invariant()
    def each_message_is_delivered_once_and_as_sent(self):
        for received, sent in (
            (self.pair.server_received(), self.sent),
            (self.pair.client_end.received, self.replied),
        ):
            assert len(received) == len(set(received))
            assert set(received) <= set(sent)

    @invariant()
    def the_path_in_use_is_one_where_the_peer_has_been(self):
        assert self.pair.server_connection.path in self.home
        assert self.pair.client.path in self.servers

    @invariant()
    def what_is_told_is_what_is(self):
        for connection, events, first in (
            (self.pair.server_connection, self.pair.server_events, HOME),
            (self.pair.client, self.pair.client_events, "server"),
        ):
            path: Hashable = first
            for event in events:
                if isinstance(event, PathChanged):
                    assert event.old == path
                    assert event.proof is PathProof.RETURN_ROUTABILITY
                    path = event.new
            assert path == connection.path

    @invariant()
    def a_check_has_a_deadline_and_the_server_knows_it(self):
        for connection, driver in (
            (self.pair.client, self.pair.client),
            (self.pair.server_connection, self.pair.server),
        ):
            check = connection._layer.path_check
            if check is not None:
                assert check.candidate != connection.path
                assert len(check._cookies) <= 3
                due = driver.next_timeout()
                assert due is not None
                assert check.deadline is not None
                assert due <= check.deadline

    def teardown(self):
        """Whatever happened, all that could arrive has; and if one knows where the other is, soon both do."""
        self.copied = None
        pair = self.pair
        pair.run_for(10)
        assert self.bound_to_arrive <= set(pair.server_received())
        assert not pair.client.path_check_under_way
        assert not pair.server_connection.path_check_under_way
        for path in [path for path in pair.clients if path != pair.client_end.path]:
            del pair.clients[path]
        server = pair.server_connection
        reachable = pair.client.path == pair.server_path or server.path == pair.client_end.path
        for _ in range(3):
            pair.client.send(b"client", now=pair.now)
            server.send(b"server", now=pair.now)
            pair.run_for(10)
        if reachable:
            assert (pair.client.path, server.path) == (pair.server_path, pair.client_end.path)
            assert pair.server_received()[-1] == b"client"
            assert pair.client_end.received[-1] == b"server"


class EnhancedMovingPeers(MovingPeers):
    """The same, where the old path is asked first."""

    policy = ENHANCED


TestBasic = MovingPeers.TestCase
TestBasic.settings = settings(max_examples=60, stateful_step_count=30)
TestEnhanced = EnhancedMovingPeers.TestCase
TestEnhanced.settings = settings(max_examples=60, stateful_step_count=30)
