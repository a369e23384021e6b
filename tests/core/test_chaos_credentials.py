"""Clients of every kind that come, resume, restart and leave, while keys, certificates and policies change under them.

Whatever happens, nobody gets in but who was judged good under the policy that its handshake began with.
"""

import random
from typing import Any

import attrs
import pytest

from sansdtls import (
    AlertDescription,
    CertificateType,
    ClientAuthentication,
    Connection,
    ConnectionOffered,
    ConnectionState,
    HandshakeCompleted,
    PeerCertificateReceived,
    PskRequested,
    ResumptionPolicy,
    RetransmitPolicy,
    ServerConfig,
)
from sansdtls.testing import Fleet, Network
from tests.core.credentials import shown
from tests.core.ecdhe_puppets import X509_AND_RAW, client_config, psk_config, server_config

STEPS = 60
SEEDS_PER_TEST = 10
POLICY = RetransmitPolicy(handshake_timeout=20)
IDENTITIES = [b"dev%d" % number for number in range(3)]
DEVICES = [shown(kind) for kind in ("p256", "ed25519", "p384")]
KEYS = [b"key %d.........." % number for number in range(4)]


class Chaos:
    """A fleet, what changes in it, and the books of who may get in."""

    def __init__(self, seed: int):
        self.chance = random.Random(seed)
        network = Network(seed, loss=0.05, duplicate=0.1, reorder=0.1, delay=0.01)
        self.fleet = Fleet(self.any_server_config(), network=network, seed=seed)
        self.config = self.fleet.server._config
        self.configs: dict[Connection, ServerConfig] = {}
        self.answers: dict[Connection, list[tuple[Any, object]]] = {}
        """What each connection asked about its client, and what it was told."""
        self.sessions: dict[str, Any] = {}
        self.completed = self.resumed = 0
        self.fleet.judge = self.judge
        self.fleet.accept_after = None
        self.fleet.on_server_event = self.on_server_event
        self.change_keys()

    def any_server_config(self) -> ServerConfig:
        chance = self.chance
        kinds = chance.sample(["p256", "ed25519", "rsa"], k=2)
        credentials = (*(shown(kind).certificate() for kind in kinds), shown(kinds[0]).raw_public_key())
        return server_config(
            psk=chance.random() < 0.8,
            credentials=credentials,
            client_authentication=chance.choice(list(ClientAuthentication)),
            client_certificate_types=chance.choice([X509_AND_RAW, (CertificateType.X509,)]),
            resumption=chance.choice(
                [ResumptionPolicy(), ResumptionPolicy(), ResumptionPolicy(tickets=False), None]
            ),
            retransmit=POLICY,
            mtu=chance.choice([256, 1232]),
        )

    def any_client_config(self, path: str):
        chance, device = self.chance, self.chance.choice(DEVICES)
        common = {
            "retransmit": POLICY,
            "request_ticket": chance.random() < 0.6,
            "record_size_limit": chance.choice([None, 100]),
        }
        match path[0]:
            case "p":
                identity, key = chance.choice(IDENTITIES), chance.choice(KEYS[:2])
                config = psk_config(psk_identity=identity, psk_key=key, **common)
            case "c":
                config = client_config(credentials=(device.certificate(),), **common)
            case "r":
                raw_key = (device.raw_public_key(),)
                config = client_config(server_certificate_types=X509_AND_RAW, credentials=raw_key, **common)
            case _:
                config = client_config(**common)
        session = self.sessions.get(path)
        return attrs.evolve(config, session=session) if session and chance.random() < 0.8 else config

    # --- what changes ---

    def change_config(self) -> None:
        self.config = self.any_server_config()
        if self.chance.random() < 0.7:  # sessions live on
            self.config = attrs.evolve(self.config, resumption=self.fleet.server._config.resumption)
        self.fleet.server.replace_config(self.config, now=self.fleet.now)

    def change_keys(self) -> None:
        self.fleet.keys = {
            identity: self.chance.sample(KEYS[:3], k=self.chance.randint(0, 2)) for identity in IDENTITIES
        }
        self.trusted = {device.spki for device in DEVICES if self.chance.random() < 0.8}
        self.fleet.psk_after = self.chance.choice([0.0, 0.0, 0.3])
        self.fleet.judge_after = self.chance.choice([0.0, 0.0, 1.5])

    def judge(self, request) -> AlertDescription | None:
        if any(client.connection is request.connection for client in self.fleet.clients.values()):
            return None
        if request.connection not in self.configs:
            return None  # a client's that is gone
        spki = next(
            device.spki
            for device in DEVICES
            if (
                device.chain == request.chain
                if isinstance(request, PeerCertificateReceived)
                else device.spki == request.spki
            )
        )
        good = spki in self.trusted
        self.answers[request.connection].append((request, good))
        return None if good else AlertDescription.CERTIFICATE_UNKNOWN

    # --- the books ---

    def on_server_event(self, event) -> None:
        connection = event.connection
        if isinstance(event, ConnectionOffered):
            connection = self.fleet.server.accept(event, now=self.fleet.now)
            self.configs[connection] = self.config
            self.answers[connection] = []
        if isinstance(event, PskRequested):
            self.answers[connection].append((event, True))
        if isinstance(event, HandshakeCompleted):
            self.check(connection)

    def check(self, connection: Connection) -> None:
        self.completed += 1
        peer, negotiated = connection.peer, connection.negotiated
        assert peer is not None
        assert negotiated is not None
        self.resumed += negotiated.resumed
        config, answers = self.configs[connection], self.answers[connection]
        if peer.psk_identity is not None:
            assert peer.certificate_chain is None
            assert peer.raw_public_key is None
        if peer.psk_identity is None and peer.certificate_chain is None and peer.raw_public_key is None:
            assert config.client_authentication is not ClientAuthentication.REQUIRED
            assert not [request for request, _ in answers if not request.resumption]
            return
        request, good = answers[-1]
        assert good
        assert request.resumption is negotiated.resumed
        if isinstance(request, PskRequested):
            assert request.identity == peer.psk_identity
            assert config.psk
            return
        if isinstance(request, PeerCertificateReceived):
            assert request.chain == peer.certificate_chain
        else:
            assert request.spki == peer.raw_public_key
        assert config.client_authentication is not ClientAuthentication.NONE
        shows_raw = peer.raw_public_key is not None
        assert CertificateType(2 * shows_raw) in config.client_certificate_types

    def step(self) -> None:
        fleet, chance = self.fleet, self.chance
        path = chance.choice(["psk 1", "psk 2", "cert 1", "cert 2", "raw", "anonymous"])
        client = fleet.clients.get(path)
        match chance.randrange(8):
            case 0:
                self.change_config()
            case 1:
                self.change_keys()
            case 2 if client:
                client.connection.close(now=fleet.now)
            case 3 if client and client.connection.state is ConnectionState.CONNECTED:
                client.connection.send(path.encode(), now=fleet.now)
            case 4:
                fleet.run_for(chance.choice([0.001, 0.02, 0.5, 10.0, 100.0]))
            case _:
                if client and client.connection.session:
                    self.sessions[path] = client.connection.session
                fleet.connect(self.any_client_config(path), path)
                if chance.random() < 0.8:
                    fleet.run_for(chance.choice([0.1, 1.0, 3.0]))
        for connection in fleet.server.connections:
            assert set(fleet.server_received(connection.path)) <= {str(connection.path).encode()}


@pytest.mark.parametrize("first", range(0, 40, SEEDS_PER_TEST))
def test_nobody_gets_in_but_who_was_judged_good_whatever_changes_meanwhile(first):
    completed = resumed = 0
    for seed in range(first, first + SEEDS_PER_TEST):
        chaos = Chaos(seed)
        try:
            for _ in range(STEPS):
                chaos.step()
        except BaseException:
            print(f"failing seed: {seed}")
            raise
        chaos.fleet.run_for(400)
        assert chaos.fleet.server.statistics.half_open == 0
        for path, client in chaos.fleet.clients.items():
            ends = [one for one in chaos.fleet.server.connections if one.path == path]
            if client.connection.state is ConnectionState.CONNECTED and ends:
                (end,) = ends
                if end.export_keying_material("EXPORTER_x", 16) == client.connection.export_keying_material(
                    "EXPORTER_x", 16
                ):
                    assert end.negotiated is not None
                    assert client.connection.negotiated is not None
                    assert end.negotiated.resumed is client.connection.negotiated.resumed
        completed += chaos.completed
        resumed += chaos.resumed
    assert completed > 50
    assert resumed > 5
