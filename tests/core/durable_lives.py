"""One durable server after the other, and clients that outlive them, with a ledger of every nonce.

What a caller does with checkpoints is here with a dict for a disk; ``tests/endpoint`` does it with the file.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import attrs
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from sansdtls import (
    ClientConfig,
    Connection,
    ConnectionIdPolicy,
    ConnectionState,
    Limits,
    Server,
    ServerConfig,
    SnapshotError,
    WrongState,
    freezer,
    freezing,
)
from sansdtls.snapshot import decode_snapshot
from sansdtls.testing import Client, CounterEntropy, Fleet, Network
from tests.core.nonce_ledger import NonceLedger

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sansdtls import Checkpoint

SNAPSHOT_KEYS = (bytes(range(32)),)
RESERVE = 48
"""Instead of 1024, so that it is used up in no time; more than THAW_JUMP."""
FREEZE_AFTER = 5.0
SILENCE = 300.0
"""Seconds after which an association is frozen: the last flight is kept for 240 s."""
ONE_WAY = 0.01

IDENTITIES = {b"meter%d" % n: [bytes([n + 1]) * 16] for n in range(2)}
METERS = st.sampled_from(list(IDENTITIES))
METER = b"meter0"


@attrs.define
class Copy:
    """A blob that somebody has kept."""

    blob: bytes
    server_random: bytes
    handle: bytes | None = None


class Lives:
    """The fleet, its server of the moment, and what its caller keeps."""

    def __init__(self, *, connection_ids: bool, reserve: int = RESERVE, seed: int = 0) -> None:
        self.patch = pytest.MonkeyPatch()
        self.ledger = NonceLedger()
        self.ledger.keep(self.patch)
        for module in (freezer, freezing):
            self.patch.setattr(module, "RESERVE", reserve)
        self.config = ServerConfig(
            connection_id=ConnectionIdPolicy() if connection_ids else None,
            snapshot_keys=SNAPSHOT_KEYS,
            freeze_after=FREEZE_AFTER,
            limits=Limits(),
        )
        self.connection_ids = connection_ids
        self.fleet = Fleet(self.config, keys=IDENTITIES, network=Network(seed, delay=ONE_WAY), seed=seed)
        self.clients: dict[bytes, Client] = {}
        self.generation = 0
        self.disk: dict[bytes, bytes] = {}
        self.taken: Checkpoint | None = None
        self.on_disk = False
        self.confirmed: dict[bytes, bytes] = {}
        """Handle to the association (its server_random) that has to be there after a crash."""
        self.out: list[Copy] = []
        """Taken out of the server, to be loaded once by somebody."""
        self.copies: list[Copy] = []
        """Blobs that are used up, or older than another one."""
        self.start()

    def finish(self) -> None:
        self.patch.undo()

    # --- processes ---

    def begin_generation(self) -> Iterable[tuple[bytes, bytes]]:
        """Open the store: the generation is counted, and only then the rows are read."""
        self.generation += 1
        return list(self.disk.items())

    def start(self) -> None:
        """A new process with what is on the disk."""
        rows = self.begin_generation()
        self.new_server()
        for handle, blob in rows:
            assert self.server.restore(blob, now=self.fleet.now, saved=True).handle == handle
            with pytest.raises(SnapshotError):
                self.server.restore(blob, now=self.fleet.now)
            with pytest.raises(SnapshotError):
                self.server.thaw(blob, now=self.fleet.now)
        self.taken = None
        self.on_disk = False

    def new_server(self) -> None:
        self.fleet.server = Server(
            self.config,
            entropy=CounterEntropy(1_000 + self.generation),
            now=self.fleet.now,
            generation=self.generation,
            durable=True,
        )
        self.fleet._answers.clear()

    @property
    def server(self) -> Server:
        return self.fleet.server

    def crash(self) -> None:
        """The process is gone, and what it had not written; datagrams under way arrive at the next one."""
        there = {random_of(blob) for blob in self.disk.values()}
        # What left the server, and may come back from the disk, must not be loaded elsewhere; nor is there
        # anybody now who remembers which copies of the others are used up.
        self.out = [copy for copy in self.out if copy.server_random not in there]
        self.start()
        for handle, server_random in self.confirmed.items():
            assert random_of(self.disk[handle]) == server_random
        self.copies = [copy for copy in self.copies if copy.server_random in there]

    def flush(self) -> None:
        """All is confirmed, as before a stop."""
        for _ in range(2):
            self.take()
            self.write()
            self.confirm()

    # --- checkpoints ---

    def take(self) -> None:
        if self.taken is not None:
            return
        self.taken = self.server.checkpoint(now=self.fleet.now)
        # Whatever is written from now on may replace what was confirmed.
        for handle in [*self.taken.removed, *(saved.handle for saved in self.taken.saved)]:
            if handle in self.taken.removed or self.confirmed.get(handle) != random_of(
                next(saved.blob for saved in self.taken.saved if saved.handle == handle)
            ):
                self.confirmed.pop(handle, None)

    def write(self) -> None:
        """The disk takes it; whether anybody hears of that is another matter."""
        if self.taken is None:
            return
        self.copies += [Copy(blob, random_of(blob)) for blob in list(self.disk.values())[:1]]
        self.write_rows(((saved.handle, saved.blob) for saved in self.taken.saved), self.taken.removed)
        self.on_disk = True

    def write_rows(self, saved: Iterable[tuple[bytes, bytes]], removed: Iterable[bytes]) -> None:
        for handle in removed:
            self.disk.pop(handle, None)
        self.disk.update(saved)

    def confirm(self) -> None:
        if self.taken is None or not self.on_disk:
            return
        self.server.confirm(self.taken)
        self.confirmed |= {saved.handle: random_of(saved.blob) for saved in self.taken.saved}
        self.taken = None
        self.on_disk = False

    # --- associations ---

    def connect(self, identity: bytes) -> Client:
        """A device's first handshake, or one after it has lost all."""
        client = self.clients.get(identity)
        path = identity.decode() if client is None else client.path
        client = self.clients[identity] = self.fleet.connect(
            ClientConfig(
                psk_identity=identity,
                psk_key=IDENTITIES[identity][0],
                connection_id=ConnectionIdPolicy(length=2) if identity.endswith(b"1") else client_ids(self),
            ),
            path=path,
        )
        self.fleet.run_until(lambda: client.connection.state is not ConnectionState.HANDSHAKING)
        assert client.connection.state is ConnectionState.CONNECTED
        self.fleet.run_for(4 * ONE_WAY)
        return client

    def of(self, identity: bytes) -> Connection | None:
        """The server's live connection with this device's association."""
        client = self.clients.get(identity)
        if client is None or client.connection.state is not ConnectionState.CONNECTED:
            return None
        for connection in self.server.connections:
            if connection.server_random == client.connection.server_random:
                return connection
        return None

    def client_sends(self, identity: bytes, count: int = 1) -> None:
        client = self.clients[identity]
        for _ in range(count):
            client.connection.send(b"reading", now=self.fleet.now)
        self.fleet.run_for(4 * ONE_WAY)

    def server_sends(self, identity: bytes, count: int) -> int:
        """How many of ``count`` could be sent."""
        connection = self.of(identity)
        sent = 0
        if connection is not None:
            with contextlib.suppress(WrongState):
                for _ in range(count):
                    connection.send(b"command", now=self.fleet.now)
                    sent += 1
            self.fleet.run_for(4 * ONE_WAY)
        return sent

    def freeze_out(self, identity: bytes) -> None:
        """Take an association out of the server, to be loaded by somebody."""
        connection = self.of(identity)
        if connection is not None:
            server_random = connection.server_random
            blob = self.server.freeze(connection, now=self.fleet.now)
            self.out.append(Copy(blob, server_random))

    def load(self, copy: Copy, *, live: bool) -> None:
        """Load a blob."""
        if live:
            self.server.thaw(copy.blob, now=self.fleet.now)
        else:
            self.server.restore(copy.blob, now=self.fleet.now)

    def freeze_client(self, identity: bytes) -> None:
        """The device sleeps, and wakes."""
        client = self.clients[identity]
        if client.connection.state is ConnectionState.CONNECTED:
            self.fleet.run_for(4 * ONE_WAY)
            blob = client.connection.freeze(now=self.fleet.now)
            client.connection = Connection.thaw(
                blob,
                ClientConfig(psk_identity=identity, psk_key=IDENTITIES[identity][0]),
                entropy=CounterEntropy(len(self.ledger)),
                now=self.fleet.now,
            )

    def heard(self, identity: bytes) -> bool:
        """Whether what the device sends arrives."""
        before = len(self.fleet.server_received())
        self.client_sends(identity)
        return len(self.fleet.server_received()) > before


def client_ids(lives: Lives) -> ConnectionIdPolicy | None:
    """The client needs none itself, but uses the server's."""
    return ConnectionIdPolicy(length=0) if lives.connection_ids else None


def random_of(blob: bytes) -> bytes:
    """What names the association."""
    return decode_snapshot(blob, keys=SNAPSHOT_KEYS).server_random


@contextlib.contextmanager
def lives(**options) -> Iterator[Lives]:
    """For tests that are no state machines."""
    one = Lives(**options)
    try:
        yield one
    finally:
        one.finish()


BURSTS = st.sampled_from([0, 1, RESERVE // 2, 2 * RESERVE])
"""How much a server says. The last is more than it may."""


class AnyOrder(RuleBasedStateMachine):
    """Whatever devices, disk and process do. The ledger raises by itself."""

    def new_lives(self, **options) -> Lives:
        return Lives(**options)

    @initialize(connection_ids=st.booleans())
    def begin(self, connection_ids):
        self.lives = self.new_lives(connection_ids=connection_ids)
        self.lives.connect(METER)
        self.lives.flush()

    def teardown(self):
        self.lives.finish()

    def device(self, identity):
        """Whether it has an association, as far as it knows."""
        client = self.lives.clients.get(identity)
        return client is not None and client.connection.state is ConnectionState.CONNECTED

    # --- devices ---

    @rule(identity=METERS)
    def connect(self, identity):
        self.lives.connect(identity)

    @rule(identity=METERS, count=st.sampled_from([1, 3]), burst=BURSTS)
    def a_device_is_heard_and_answered(self, identity, count, burst):
        if self.device(identity):
            self.lives.client_sends(identity, count)
            self.lives.server_sends(identity, burst)

    @rule(identity=METERS, burst=BURSTS)
    def a_device_is_told_something(self, identity, burst):
        self.lives.server_sends(identity, burst)

    @rule(identity=METERS, by_client=st.booleans())
    def an_association_ends(self, identity, by_client):
        ends = self.lives.of(identity)
        if by_client and self.device(identity):
            ends = self.lives.clients[identity].connection
        if ends is not None:
            ends.close(now=self.lives.fleet.now)
            self.lives.fleet.run_for(0.1)

    @rule(identity=METERS)
    def a_device_moves(self, identity):
        if self.device(identity) and self.lives.connection_ids:
            client = self.lives.clients[identity]
            self.lives.fleet.move(client, f"{client.path}'")
            self.lives.client_sends(identity)

    @rule(identity=METERS)
    def a_device_sleeps(self, identity):
        if self.device(identity):
            self.lives.freeze_client(identity)

    @rule(identity=METERS)
    def somebody_repeats_and_forges(self, identity):
        fleet = self.lives.fleet
        for datagram in list(fleet.network.sent_by(identity.decode(), to="server"))[-3:]:
            fleet.network.inject(datagram.source, "server", datagram.data)
            fleet.network.inject(datagram.source, "server", datagram.data[:-1] + b"?")
            fleet.network.inject("elsewhere", "server", datagram.data)
        fleet.run_for(0.1)

    # --- the server ---

    @rule(woken_by_us=st.booleans(), burst=BURSTS)
    def silence(self, woken_by_us, burst):
        self.lives.fleet.run_for(SILENCE)
        if woken_by_us:
            for handle in list(self.lives.server._freezer.store.handles()):
                self.lives.server.wake(handle, now=self.lives.fleet.now)
            self.lives.fleet.run_for(0.1)
            for identity in IDENTITIES:
                self.lives.server_sends(identity, burst)

    @rule(step=st.sampled_from(["take", "write", "confirm", "flush"]))
    def checkpoint(self, step):
        getattr(self.lives, step)()

    @rule(burst=BURSTS)
    def crash(self, burst):
        known = set(self.lives.confirmed.values())
        self.lives.crash()
        for identity in IDENTITIES:
            if self.device(identity):
                heard = self.lives.heard(identity)
                assert heard or self.lives.clients[identity].connection.server_random not in known
                self.lives.server_sends(identity, burst)

    # --- blobs ---

    @rule(identity=METERS)
    def freeze_out(self, identity):
        self.lives.freeze_out(identity)

    @rule(live=st.booleans(), which=st.integers(0, 10))
    def load(self, live, which):
        """Once; what it was is a copy from then on. Another association may have its place."""
        if not self.lives.out:
            return
        copy = self.lives.out.pop(which % len(self.lives.out))
        try:
            self.lives.load(copy, live=live)
        except SnapshotError:
            return
        self.lives.fleet.run_for(0.1)
        self.lives.copies.append(copy)

    @rule(live=st.booleans(), which=st.integers(0, 10))
    def load_again(self, live, which):
        out = {copy.server_random for copy in self.lives.out}
        used_up = [copy for copy in self.lives.copies if copy.server_random not in out]
        if used_up:
            with pytest.raises(SnapshotError):
                self.lives.load(used_up[which % len(used_up)], live=live)
