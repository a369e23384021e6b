"""Whatever is done to associations, no nonce is used twice: every record on the network goes into a ledger.

A server with a durable store lives through any sequence of freezing, thawing, checkpoints that are written and
confirmed or not, gentle restarts, kills, and attempts to load something again. Its clients freeze and thaw too.
"""

import contextlib
from collections import defaultdict

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
from sansdtls.saved_paths import encode_path
from sansdtls.snapshot import RESERVE, decode_snapshot
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
        self.keys: dict[object, list[tuple[bytes, tuple[bytes, bytes]]]] = defaultdict(list)
        """Each client's associations, the present one last, as they were after their handshakes; and the IDs in
        records to the server and to the client."""
        self.used: list[tuple[object, int, bytes]] = []
        """Blobs that this server has given or taken, and that are good for nothing any more; whose they are."""
        self.kept: list[bytes] = []
        """Those that it has given to keep, each good for one use."""
        self.handles: dict[int, bytes] = {}
        """By which each client's association may be asleep."""
        self.start([])
        for number in range(CLIENTS):
            self.connect(number)

    # --- what the rules are made of ---

    def client(self, number):
        return self.fleet.clients[number].connection

    @property
    def server(self):
        return self.fleet.server

    def connect(self, number):
        self.fleet.connect(client_config(number), number)
        self.fleet.run_until(lambda: self.client(number).state is ConnectionState.CONNECTED)
        self.fleet.run_for(1)
        client = self.client(number)
        ids = (client.peer_connection_id, client.connection_id)
        self.keys[number].append((client.snapshot(generation=0, keys=KEYS), ids))

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
        self.used, self.kept = [], []
        for blob in blobs:
            self.use(blob)
        self.disk = {self.server.restore(blob, now=self.fleet.now).handle: blob for blob in blobs}

    def use(self, blob):
        identity = decode_snapshot(blob, keys=KEYS).psk_identity
        assert identity is not None
        number = int(identity.removeprefix(b"dev"))
        self.used.append((number, len(self.keys[number]), blob))

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

    @rule(number=clients, by_client=st.booleans())
    def an_association_ends(self, number, by_client):
        connection = self.client(number) if by_client else self.live(number)
        if connection is not None:
            connection.close(now=self.fleet.now)
            self.fleet.run_for(1)

    @rule(number=clients, times=st.integers(1, 5))
    def a_client_speaks(self, number, times):
        self.say(self.client(number), times)
        connection = self.live(number)
        if connection is not None:
            self.handles[number] = handle_of(connection)

    @rule(number=clients, times=st.sampled_from([1, 2, RESERVE + 100]))
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
        self.use(blob)

    @rule(number=clients)
    def a_client_sleeps(self, number):
        client = self.fleet.clients[number]
        if client.connection.state is not ConnectionState.CONNECTED:
            return
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
            self.use(one.blob)
        if confirmed:
            self.server.confirm(checkpoint)

    @rule()
    def a_kill(self):
        self.start(list(self.disk.values()))

    @rule()
    def a_gentle_restart(self):
        self.start(list(self.server.freeze_all(now=self.fleet.now)))

    @rule(data=st.data())
    def something_is_loaded_again(self, data):
        # Of a device that has come back with new keys meanwhile, an old blob may be welcome: nothing uses it.
        used = [blob for number, of, blob in self.used if of == len(self.keys[number])]
        if used:
            blob = data.draw(st.sampled_from(used))
            with pytest.raises(SnapshotError):
                self.server.restore(blob, now=self.fleet.now)
            with pytest.raises(SnapshotError):
                self.server.thaw(blob, now=self.fleet.now)

    @rule(number=clients)
    def a_device_loses_its_state_and_comes_back(self, number):
        self.connect(number)

    # --- what always holds ---

    @invariant()
    def book(self):
        """Enter what was sent since the last look. Raises if a number was used before."""
        log = self.fleet.network.log
        for entry in log[self.booked :]:
            sent = entry.datagram
            from_server = sent.source == "server"
            path = sent.destination if from_server else sent.source
            index = self.association_of(path, sent.data)
            _, ids = self.keys[path][index]
            self.ledger.enter((path, index, from_server), sent.data, ids[from_server])
        self.booked = len(log)

    def association_of(self, number, data):
        """Which of a client's associations a datagram belongs to: after a kill the server may know a former one."""
        *former, present = range(len(self.keys[number]))
        for index in former:
            probe = Connection.thaw(
                self.keys[number][index][0],
                client_config(number),
                entropy=CounterEntropy(),
                now=self.fleet.now,
            )
            probe._layer.read.window.restore(-1, 0)
            probe.receive_datagram(data, now=self.fleet.now)
            if not probe.statistics.records_discarded:
                return index
        return present


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


# --- what has to be refused, one by one ----------------------------------------------------------------


def refused(lives, blob):
    for load in (lives.server.restore, lives.server.thaw):
        with pytest.raises(SnapshotError):
            load(blob, now=lives.fleet.now)


def blob_of(lives, number):
    """The last that the server has given or taken of this client's association."""
    return [blob for of, _, blob in lives.used if of == number][-1]


@pytest.mark.parametrize("number", range(CLIENTS))
def test_what_was_restored_and_is_woken_by_the_record_that_ends_it_is_not_restored_again(number):
    lives = Lives()
    lives.a_gentle_restart()
    lives.an_association_ends(number, by_client=True)
    refused(lives, blob_of(lives, number))


@pytest.mark.parametrize("by_client", [True, False])
def test_what_was_restored_and_woken_and_has_ended_is_not_restored_again(by_client):
    lives = Lives()
    lives.a_gentle_restart()
    restored = blob_of(lives, 1)
    lives.a_client_speaks(1, 1)
    lives.the_server_speaks(1, 2)
    lives.an_association_ends(1, by_client)
    refused(lives, restored)


def test_of_an_association_that_was_given_away_only_the_last_blob_is_good():
    lives = Lives()
    lives.a_checkpoint(written=True, confirmed=True)
    earlier = blob_of(lives, 1)
    lives.the_server_speaks(1, 2)
    lives.an_association_is_given_away(1)
    refused(lives, earlier)
    (last,) = lives.kept
    lives.server.restore(last, now=lives.fleet.now)


@pytest.mark.parametrize("by_client", [True, False])
def test_a_checkpoint_of_an_association_that_has_ended_is_not_restored(by_client):
    lives = Lives()
    lives.a_checkpoint(written=True, confirmed=True)
    lives.the_server_speaks(1, 2)
    lives.an_association_ends(1, by_client)
    refused(lives, blob_of(lives, 1))


def test_a_kill_gives_no_number_back_that_the_killed_process_may_have_used():
    # Woken and put to sleep again without a word: what was left out stays left out.
    lives = Lives()
    lives.a_checkpoint(written=True, confirmed=True)
    lives.the_server_speaks(1, 600)
    lives.a_kill()
    lives.a_client_speaks(1, 1)
    for _ in range(3):
        lives.all_are_silent_for_long()
        lives.a_client_speaks(1, 1)
    lives.the_server_speaks(1, 600)
    lives.book()


@pytest.mark.parametrize("confirmed", [True, False])
@pytest.mark.parametrize("woken", [True, False])
@pytest.mark.parametrize("rested", [True, False])
def test_no_server_goes_beyond_what_is_reserved_and_the_next_begins_there(confirmed, woken, rested):
    lives = Lives()
    if woken:
        lives.a_gentle_restart()
        lives.a_client_speaks(1, 1)
    lives.a_checkpoint(written=True, confirmed=confirmed)
    lives.the_server_speaks(1, 500)
    if rested:
        lives.all_are_silent_for_long()
        lives.a_client_speaks(1, 1)
    for _ in range(3):
        lives.the_server_speaks(1, 2 * RESERVE)
        with pytest.raises(WrongState):
            lives.live(1).send(b"x", now=lives.fleet.now)
        lives.a_kill()
        lives.a_client_speaks(1, 1)
    lives.the_server_speaks(1, 2 * RESERVE)
    lives.book()


def test_a_confirmed_checkpoint_reserves_more():
    lives = Lives()
    lives.a_checkpoint(written=True, confirmed=True)
    for _ in range(3):
        assert not lives.server.checkpoint_due
        lives.the_server_speaks(1, RESERVE - 100)
        assert lives.server.checkpoint_due
        lives.a_checkpoint(written=True, confirmed=True)
    lives.live(1).send(b"x", now=lives.fleet.now)
    lives.a_kill()
    lives.a_client_speaks(1, 1)
    lives.the_server_speaks(1, RESERVE - 100)
    lives.book()
