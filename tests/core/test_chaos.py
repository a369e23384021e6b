"""Everything at once: many clients that come, restart, leave and die, and a network full of noise and replays.

No step may raise, and after each one the server's books must balance.
"""

from collections import Counter
from collections.abc import Callable

import pytest

from sansdtls import (
    ClientConfig,
    Connection,
    ConnectionOffered,
    ConnectionState,
    ConnectionTerminated,
    DataReceived,
    HandshakeCompleted,
    Limits,
    RetransmitPolicy,
    ServerConfig,
    WrongState,
)
from sansdtls.testing import Client, CounterEntropy, Fleet, Network
from tests.core import raw

SEEDS_PER_TEST = 25
STEPS = 120
KEYS = {b"dev%d" % number: [b"key %d" % number] for number in range(6)}
LIMITS = Limits(
    max_half_open=4,
    max_associations=4,
    stale_after=20,
    idle_timeout=60,
    max_total_reassembly_size=1500,
    max_deferred_records=3,
    max_failed_opens=200,
)
POLICY = RetransmitPolicy(handshake_timeout=20)


class Chaos:
    """One run: a fleet, a source of chance, and what must always hold."""

    def __init__(self, seed: int):
        self.chance = CounterEntropy(seed)
        network = Network(seed, loss=0.05, duplicate=0.1, reorder=0.1, delay=0.02, hold_back=0.3)
        self.fleet = Fleet(self.server_config(), keys=KEYS, network=network, seed=seed)
        self.fleet.on_server_event = self.see
        self.clients: list[Client] = []
        self.sent: set[bytes] = set()
        self.ended: set[Connection] = set()
        self.completed: set[Connection] = set()
        self.waiting: list[ConnectionOffered] = []

    def server_config(self, **more) -> ServerConfig:
        return ServerConfig(
            **{"limits": LIMITS, "retransmit": POLICY, "mtu": 256, "psk_identity_hint": b"h" * 100, **more}
        )

    def client_config(self, number: int, **more) -> ClientConfig:
        key = b"key %d" % number if self.chance.below(6) else b"wrong"
        mtu = 256 + self.chance.below(300)
        return ClientConfig(psk_identity=b"dev%d" % number, psk_key=key, retransmit=POLICY, mtu=mtu, **more)

    def see(self, event) -> None:
        connection = event.connection
        assert connection not in self.ended, "an event after the last"
        if isinstance(event, ConnectionTerminated):
            self.ended.add(connection)
            assert connection.state is ConnectionState.CLOSED
        elif isinstance(event, HandshakeCompleted):
            assert connection not in self.completed
            self.completed.add(connection)
        elif isinstance(event, DataReceived):
            assert event.data in self.sent
            assert connection in self.completed
        elif isinstance(event, ConnectionOffered) and self.fleet.accept_after is None:
            self.waiting.append(event)

    @property
    def actions(self) -> list[Callable[[], None]]:
        return [
            self.start, self.start, self.talk, self.talk, self.talk, self.close, self.die, self.replay, self.replay,
            self.spoil, self.spoil, self.forge, self.forge, self.pass_time, self.pass_time, self.pass_time,
            self.change_answers, self.answer_offers, self.give_fragments, self.close_on_server,
        ]  # fmt: skip

    def act(self) -> None:
        """Do one thing by chance."""
        actions = self.actions
        actions[self.chance.below(len(actions))]()

    def start(self) -> None:
        number = self.chance.below(8)
        self.clients.append(self.fleet.connect(self.client_config(number), path=self.chance.below(6)))

    def some_client(self) -> Client | None:
        return self.clients[self.chance.below(len(self.clients))] if self.clients else None

    def talk(self) -> None:
        client = self.some_client()
        if client is not None and client.connection.state is ConnectionState.CONNECTED:
            data = b"%d" % len(self.sent)
            self.sent.add(data)
            client.connection.send(data, now=self.fleet.now)

    def close(self) -> None:
        client = self.some_client()
        if client is not None and self.chance.below(3) == 0:
            client.connection.close(now=self.fleet.now)

    def close_on_server(self) -> None:
        connections = self.fleet.server_connections()
        if connections and self.chance.below(3) == 0:
            connections[self.chance.below(len(connections))].close(now=self.fleet.now)

    def die(self) -> None:
        client = self.some_client()
        if client is not None and self.chance.below(3) == 0:
            self.fleet.power_off(client)

    def some_old_datagram(self):
        log = self.fleet.network.log
        return log[self.chance.below(len(log))].datagram if log else None

    def replay(self) -> None:
        old = self.some_old_datagram()
        if old is not None:
            source = old.source if self.chance.below(3) else self.chance.below(6)
            self.fleet.network.inject(source, old.destination, old.data)

    def spoil(self) -> None:
        old = self.some_old_datagram()
        if old is not None and old.data:
            data = bytearray(old.data)
            data[self.chance.below(len(data))] ^= 1 << self.chance.below(8)
            self.fleet.network.inject(
                old.source, old.destination, bytes(data[: 1 + self.chance.below(len(data))])
            )

    def forge(self) -> None:
        kind = 20 + self.chance.below(4)
        epoch, seq = self.chance.below(3), self.chance.below(40)
        payload = self.chance(self.chance.below(60))
        if kind == raw.HANDSHAKE and self.chance.below(2):
            payload = raw.fragment(
                (1, 14, 16, 20)[self.chance.below(4)],
                payload,
                message_seq=self.chance.below(6),
                total=len(payload) + self.chance.below(50),
            )
        data = raw.record(kind, payload, epoch=epoch, seq=seq)
        path = self.chance.below(7)
        source, destination = (path, "server") if self.chance.below(2) else ("server", path)
        self.fleet.network.inject(source, destination, data)

    def give_fragments(self) -> None:
        """A hello with a valid cookie in fragments, of which some stay away."""
        path = self.chance.below(6)
        random = self.chance(32)

        def pieces(cookie: bytes) -> list[bytes]:
            body = raw.client_hello(random=random, cookie=cookie, extensions=((0x0BAD, bytes(900)),))
            return [
                raw.record(
                    22, raw.fragment(1, body[at : at + 400], offset=at, total=len(body), message_seq=3)
                )
                for at in range(0, len(body), 400)
            ]

        server = self.fleet.server
        self.fleet.flush()
        server.receive_datagram(pieces(b"")[0], path=path, now=self.fleet.now)
        for outgoing in server.datagrams_to_send():
            ((kind, body),) = raw.plaintext_messages([outgoing.data]).values()
            if outgoing.path == path and kind == raw.HELLO_VERIFY_REQUEST:
                for piece in pieces(raw.parse_cookie(body)):
                    if self.chance.below(4):
                        self.fleet.network.inject(path, "server", piece)

    def pass_time(self) -> None:
        self.fleet.run_for((0.05, 0.5, 3.0, 25.0)[self.chance.below(4)])

    def change_answers(self) -> None:
        self.fleet.accept_after = (0.0, 0.0, 0.3, None)[self.chance.below(4)]
        self.fleet.psk_after = (0.0, 0.0, 0.4, 2.5)[self.chance.below(4)]

    def answer_offers(self) -> None:
        for offer in self.waiting:
            try:
                if self.chance.below(3):
                    self.fleet.server.accept(offer, now=self.fleet.now)
                else:
                    self.fleet.server.refuse(offer)
            except WrongState:
                continue  # it lapsed, or a newer hello took its place
        self.waiting.clear()

    def check_books(self) -> None:
        self.fleet.run_for(0)  # an end by the caller takes effect with the timeout that is due at once
        server, statistics = self.fleet.server, self.fleet.server.statistics
        live = list(server.connections)
        assert len(live) == len(server) == statistics.associations <= LIMITS.max_associations
        self.check_paths(live)
        assert 0 <= statistics.half_open <= LIMITS.max_half_open
        assert 0 <= statistics.reassembly_size <= LIMITS.max_total_reassembly_size
        assert all(connection.state is ConnectionState.CONNECTED for connection in live)
        assert statistics.handshakes_completed >= len(self.completed & self.ended)

    def check_paths(self, live: list[Connection]) -> None:
        assert len({connection.path for connection in live}) == len(live)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 200, SEEDS_PER_TEST))
def test_chaos_raises_nothing_and_the_books_balance(first):
    seen: Counter[str] = Counter()
    for seed in range(first, first + SEEDS_PER_TEST):
        chaos = Chaos(seed)
        try:
            for _ in range(STEPS):
                chaos.act()
                chaos.check_books()
            for client in list(chaos.fleet.clients.values()):
                chaos.fleet.power_off(client)
            chaos.fleet.run_for(200)
            chaos.check_books()
            statistics = chaos.fleet.server.statistics
            assert statistics.half_open == statistics.associations == statistics.reassembly_size == 0
            assert chaos.fleet.server.next_timeout() is None
        except BaseException:
            print(f"failing seed: {seed}")
            raise
        seen.update(statistics.handshakes_failed)
        seen["completed"] += statistics.handshakes_completed
        seen["evictions"] += statistics.evictions
    print(seen)
    assert seen["completed"] > SEEDS_PER_TEST
