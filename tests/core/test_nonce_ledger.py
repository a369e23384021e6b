"""Whatever is done to associations, no nonce is used twice: every record on the network goes into a ledger.

A server with a durable store lives through any sequence of freezing, thawing, checkpoints that are written and
confirmed or not, gentle restarts, kills, and attempts to load something again. Its clients freeze and thaw too.
"""

import contextlib
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sansdtls import (
    ClientConfig,
    Connection,
    ConnectionIdPolicy,
    ConnectionState,
    Server,
    ServerConfig,
    SnapshotError,
    WrongState,
)
from sansdtls.snapshot import encode_path
from sansdtls.testing import CounterEntropy, Fleet
from tests.ledger import Ledger, Repeated

CLIENTS = 3
OWN_IDS = (None, 0, 4)
"""Lengths of the clients' own connection IDs; ``None`` = none on either side, found by its path."""
KEYS = (b"s" * 32,)

CONFIG = ServerConfig(snapshot_keys=KEYS, freeze_after=60)


def handle_of(connection):
    if connection.connection_id:
        return b"c" + connection.connection_id
    return b"p" + encode_path(connection.path)


clients = st.integers(0, CLIENTS - 1)


def client_config(number):
    own = OWN_IDS[number]
    return ClientConfig(
        psk_identity=b"dev%d" % number,
        psk_key=bytes([number]) * 16,
        snapshot_keys=KEYS,
        connection_id=None if own is None else ConnectionIdPolicy(length=own),
    )


class Lives(RuleBasedStateMachine):
    """One server after the other on one disk."""

    def __init__(self):
        super().__init__()
        self.disk: dict[bytes, bytes] = {}
        """What a kill leaves: handle to blob."""
        self.generation = -1
        self.fleet = Fleet(
            CONFIG,
            keys={b"dev%d" % number: [bytes([number]) * 16] for number in range(CLIENTS)},
        )
        self.ledger = Ledger()
        self.booked = 0
        self.incarnations: Counter[object] = Counter()
        self.used: list[bytes] = []
        """Blobs that this server has given or taken, and that are good for nothing any more."""
        self.kept: list[bytes] = []
        """Those that it has given to keep, each good for one use."""
        self.handles: dict[int, bytes] = {}
        """By which each client's association may be asleep."""
        self.start([])
        for number in range(CLIENTS):
            self.fleet.connect(client_config(number), number)
        self.fleet.run_until(
            lambda: all(self.client(n).state is ConnectionState.CONNECTED for n in range(CLIENTS))
        )
        self.fleet.run_for(1)

    # --- what the rules are made of ---

    def client(self, number):
        return self.fleet.clients[number].connection

    @property
    def server(self):
        return self.fleet.server

    def start(self, blobs):
        """A new process: its generation is on the disk before it reads anything else."""
        self.generation += 1
        self.fleet.server = Server(
            CONFIG,
            entropy=CounterEntropy(1000 + self.generation),
            now=self.fleet.now,
            generation=self.generation,
            durable=True,
        )
        self.used, self.kept = list(blobs), []
        self.disk = {self.server.restore(blob, now=self.fleet.now): blob for blob in blobs}

    def live(self, number):
        """The server's connection with a client, if it is live."""
        identity = b"dev%d" % number
        for connection in self.server.connections:
            if connection.peer.psk_identity == identity:
                return connection
        return None

    def say(self, connection, times):
        with contextlib.suppress(WrongState):  # the numbers that are reserved are used up
            for _ in range(times):
                connection.send(b"x", now=self.fleet.now)
        self.fleet.run_for(0.1)

    # --- rules ---

    @rule(number=clients, times=st.integers(1, 5))
    def a_client_speaks(self, number, times):
        self.say(self.client(number), times)
        connection = self.live(number)
        if connection is not None:
            self.handles[number] = handle_of(connection)

    @rule(number=clients, times=st.sampled_from([1, 2, 600]))
    def the_server_speaks(self, number, times):
        connection = self.live(number)
        if connection is not None:
            self.say(connection, times)

    @rule()
    def all_are_silent_for_long(self):
        self.fleet.run_for(400)  # as long as the last flight may be asked for again
        assert len(self.server) == 0

    @rule(number=clients, times=st.sampled_from([1, 20]))
    def the_server_wakes_somebody_and_speaks(self, number, times):
        handle = self.handles.get(number)
        if handle is not None:
            connection = self.server.wake(handle, now=self.fleet.now)
            if connection is not None:
                self.say(connection, times)

    @rule(number=clients)
    def an_association_is_given_away(self, number):
        connection = self.live(number)
        if connection is not None:
            self.kept.append(self.server.freeze(connection, now=self.fleet.now))

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), live=st.booleans())
    def one_that_was_given_away_comes_back(self, data, live):
        blob = data.draw(st.sampled_from(self.kept))
        self.kept.remove(blob)
        with contextlib.suppress(SnapshotError):  # its device may be here again, with new keys
            if live:
                self.server.thaw(blob, now=self.fleet.now)
            else:
                self.server.restore(blob, now=self.fleet.now)
        self.used.append(blob)

    @rule(number=clients)
    def a_client_sleeps(self, number):
        client = self.fleet.clients[number]
        blob = client.connection.freeze(now=self.fleet.now)
        client.connection = Connection.thaw(
            blob, client_config(number), entropy=CounterEntropy(number), now=self.fleet.now
        )

    @rule(written=st.booleans(), confirmed=st.booleans())
    def a_checkpoint(self, written, confirmed):
        checkpoint = self.server.checkpoint(now=self.fleet.now)
        if not written:
            return  # the disk is full, or the process will not live to write it
        for handle in checkpoint.removed:
            self.disk.pop(handle, None)
        for one in checkpoint.saved:
            self.disk[one.handle] = one.blob
            self.used.append(one.blob)
        if confirmed:
            self.server.confirm(checkpoint)

    @rule()
    def a_kill(self):
        self.start(list(self.disk.values()))

    @rule()
    def a_gentle_restart(self):
        self.start(list(self.server.freeze_all(now=self.fleet.now)))

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def something_is_loaded_again(self, data):
        blob = data.draw(st.sampled_from(self.used))
        with pytest.raises(SnapshotError):
            self.server.restore(blob, now=self.fleet.now)
        with pytest.raises(SnapshotError):
            self.server.thaw(blob, now=self.fleet.now)

    @rule(number=clients)
    def a_device_loses_its_state_and_comes_back(self, number):
        self.book()
        self.incarnations[number] += 1
        self.fleet.connect(client_config(number), number)
        self.fleet.run_until(lambda: self.client(number).state is ConnectionState.CONNECTED)
        self.fleet.run_for(1)

    # --- what always holds ---

    @invariant()
    def book(self):
        """Enter what was sent since the last look. Raises if a number was used before."""
        log = self.fleet.network.log
        for entry in log[self.booked :]:
            sent = entry.datagram
            from_server = sent.source == "server"
            path = sent.destination if from_server else sent.source
            client = self.fleet.clients[path].connection
            own = client.connection_id if from_server else client.peer_connection_id
            self.ledger.enter((path, self.incarnations[path], from_server), sent.data, own)
        self.booked = len(log)


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_the_ledger_would_find_a_blob_that_is_used_twice():
    lives = Lives()
    blob = lives.client(0).freeze(now=lives.fleet.now)
    for _ in range(2):
        lives.fleet.clients[0].connection = Connection.thaw(
            blob, client_config(0), entropy=CounterEntropy(0), now=lives.fleet.now
        )
        lives.client(0).send(b"x", now=lives.fleet.now)
        lives.fleet.run_for(1)
    with pytest.raises(Repeated):
        lives.book()
