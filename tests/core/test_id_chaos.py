"""As ``test_chaos.py``, with connection IDs: clients move, share addresses, pad, and everything is replayed from everywhere."""

from __future__ import annotations

from collections import Counter

import attrs
import pytest

from sansdtls import (
    ConnectionIdPolicy,
    ConnectionState,
    DataReceived,
    HandshakeCompleted,
    PathPolicy,
    ReturnRoutability,
)
from tests.core import raw
from tests.core.test_chaos import KEYS, LIMITS, STEPS, Chaos

SEEDS_PER_TEST = 10
ID_LIMITS = attrs.evolve(LIMITS, idle_timeout_with_connection_id=90)


class IdChaos(Chaos):
    """Each client has its own idea of IDs; the server's changes now and then."""

    def __init__(self, seed: int):
        self.sender: dict[bytes, bytes | None] = {}
        self.delivered: set[bytes] = set()
        self.moves = 0
        super().__init__(seed)

    def policy(self) -> ConnectionIdPolicy | None:
        below = self.chance.below
        if below(10) == 0:
            return None
        return ConnectionIdPolicy(
            length=(0, 1, 2, 8, 8, 8, 20)[below(7)],
            padding=(1, 1, 16, 64, 1024)[below(5)],
            return_routability=list(ReturnRoutability)[below(3)],
            path_policy=list(PathPolicy)[below(3)],
        )

    def server_config(self, **more):
        return super().server_config(limits=ID_LIMITS, connection_id=self.policy(), **more)

    def client_config(self, number, **more):
        return super().client_config(number % len(KEYS), connection_id=self.policy(), **more)

    @property
    def actions(self):
        return [
            *super().actions,
            self.move,
            self.move,
            self.move,
            self.answer,
            self.forge_id,
            self.reconfigure,
        ]

    def talk(self) -> None:
        for client in self.clients:
            if client.connection.state is not ConnectionState.CONNECTED:
                continue
            data = b"%d" % len(self.sent)
            self.sent.add(data)
            assert client.connection.peer is not None
            self.sender[data] = client.connection.peer.psk_identity
            client.connection.send(data, now=self.fleet.now)

    def answer(self) -> None:
        for connection in self.fleet.server.connections:
            connection.send(bytes(self.chance.below(connection.max_payload + 1)), now=self.fleet.now)

    def see(self, event) -> None:
        super().see(event)
        if isinstance(event, DataReceived):
            assert event.data not in self.delivered, "twice"
            self.delivered.add(event.data)
            assert event.connection.peer is not None
            # A client of ours knows whom it claims to be from its configuration; the server has proof.
            assert self.sender[event.data] in (event.connection.peer.psk_identity, None)
        elif isinstance(event, HandshakeCompleted):
            assert event.connection.connection_id not in self.ids_of_others(event.connection)

    def ids_of_others(self, connection) -> set[bytes]:
        return {
            each.connection_id
            for each in self.fleet.server.connections
            if each is not connection and each.connection_id
        }

    def move(self) -> None:
        """A NAT forgets a client's mapping and makes another one."""
        client, clients = self.some_client(), self.fleet.clients
        path = self.chance.below(10)
        if client is not None and clients.get(client.path) is client and path not in clients:
            del clients[client.path]
            client.path = path
            clients[path] = client
            self.moves += 1

    def forge_id(self) -> None:
        """Rubbish with a live ID."""
        live = [each.connection_id for each in self.fleet.server.connections]
        if live:
            connection_id = live[self.chance.below(len(live))]
            payload = self.chance(self.chance.below(60))
            epoch, seq = self.chance.below(3), self.chance.below(2**20)
            data = raw.record(25, payload, epoch=epoch, seq=seq, connection_id=connection_id)
            self.fleet.network.inject(self.chance.below(12), "server", data)

    def reconfigure(self) -> None:
        if self.chance.below(3) == 0:
            self.fleet.server.replace_config(self.server_config(), now=self.fleet.now)

    def check_paths(self, live) -> None:
        plain = [connection.path for connection in live if not connection.connection_id]
        assert len(set(plain)) == len(plain), "two that are found by one path"
        ids = [connection.connection_id for connection in live if connection.connection_id]
        assert len(set(ids)) == len(ids)
        routes, statistics = self.fleet.server._routes, self.fleet.server.statistics
        assert set(ids) <= set(routes._by_connection_id)
        assert len(routes._by_connection_id) <= len(ids) + statistics.half_open
        lengths = Counter(map(len, routes._by_connection_id))
        assert routes._id_lengths == dict(lengths)
        assert list(routes._id_lengths) == sorted(lengths, reverse=True)
        assert len(routes) <= len(live) + statistics.half_open


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 40, SEEDS_PER_TEST))
def test_chaos_with_ids_raises_nothing_and_the_books_balance(first):
    seen: Counter[str] = Counter()
    for seed in range(first, first + SEEDS_PER_TEST):
        chaos = IdChaos(seed)
        try:
            for _ in range(STEPS):
                chaos.act()
                chaos.check_books()
            for client in list(chaos.fleet.clients.values()):
                chaos.fleet.power_off(client)
            chaos.fleet.run_for(300)
            chaos.check_books()
            server = chaos.fleet.server
            statistics = server.statistics
            assert statistics.half_open == statistics.associations == statistics.reassembly_size == 0
            assert len(server._routes) == len(server._routes._by_connection_id) == 0
            assert server.next_timeout() is None
        except BaseException:
            print(f"failing seed: {seed}")
            raise
        seen["completed"] += statistics.handshakes_completed
        seen["moves"] += chaos.moves
        seen["delivered"] += len(chaos.delivered)
        seen["with ID"] += sum(bool(connection.connection_id) for connection in chaos.completed)
    print(seen)
    assert min(seen.values()) > SEEDS_PER_TEST
