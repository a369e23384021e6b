"""With connection IDs too: the same entropy, clock and datagrams give the same bytes; and secrets stay inside."""

from __future__ import annotations

import subprocess

import pytest

from sansdtls import (
    CipherSuite,
    ClientConfig,
    ConnectionIdPolicy,
    ConnectionState,
    DataReceived,
    PskRequested,
    ReturnRoutability,
    SecretDerived,
    ServerConfig,
    key_log_line,
)
from sansdtls.testing import CounterEntropy, Network, Pair
from tests.conftest import require_program
from tests.core import raw
from tests.core.id_puppets import IdClient, offering
from tests.core.puppet import KEY, ClientRig, ServerRig
from tests.core.test_noise import variants
from tests.core.test_reproducible import replay
from tests.core.test_secrets import pcap_of

READING = b"21.5 degrees"
POLICY = ConnectionIdPolicy(length=5, padding=16)
SEED = 4


def config(suite: CipherSuite) -> ClientConfig:
    return offering(POLICY, cipher_suites=[suite])


def session(suite: CipherSuite, seed: int = SEED) -> Pair:
    """A whole handshake and data both ways."""
    pair = Pair(config(suite), ServerConfig(connection_id=POLICY), seed=seed)
    pair.handshake()
    pair.run_for(0.1)
    pair.client.send(READING, now=pair.now)
    pair.server_connection.send(READING, now=pair.now)
    pair.run_for(0.1)
    return pair


def recorded(pair: Pair) -> tuple[list[bytes], list[bytes]]:
    client, server = ([each.data for each in pair.network.sent_by(who)] for who in ("client", "server"))
    return client, server


def receiver(role: str, suite: CipherSuite) -> ServerRig | ClientRig:
    """The client or server of the recording at its beginning, with the entropy that it had."""
    if role == "server":
        return ServerRig(ServerConfig(connection_id=POLICY), seed=2 * SEED + 1)
    return ClientRig(config(suite), seed=int.from_bytes(CounterEntropy(2 * SEED)(8)), path="server")


PSK_SUITES = [suite for suite in CipherSuite if suite.name.startswith("TLS_PSK") or "ECDHE_PSK" in suite.name]


@pytest.mark.parametrize("suite", PSK_SUITES, ids=lambda suite: suite.name)
def test_a_recorded_session_with_ids_is_replayed_byte_for_byte(suite):
    from_client, from_server = recorded(session(suite))
    assert (from_client, from_server) == recorded(session(suite))
    assert from_client[-1][0] == from_server[-1][0] == raw.TLS12_CID
    for role, ours, theirs in (
        ("server", from_server, from_client),
        ("client", from_client, from_server),
    ):
        rig = receiver(role, suite)
        answered = replay(rig, theirs)
        assert len(answered) > 300
        assert b"".join(ours).startswith(answered), role
        assert rig.received == [READING]
    assert recorded(session(suite, seed=5)) != (from_client, from_server)


def test_loss_and_repetition_with_ids_and_padding_are_reproducible_too():
    logs = []
    for _ in range(2):
        network = Network(3, loss=0.3, duplicate=0.2, reorder=0.2)
        policy = ConnectionIdPolicy(padding=64)
        pair = Pair(offering(policy, mtu=256), ServerConfig(connection_id=policy, mtu=256), network=network)
        pair.handshake()
        for _ in range(20):
            pair.client.send(READING, now=pair.now)
            pair.run_for(0.5)
        logs.append(network.log)
    assert logs[0] == logs[1]
    assert len(logs[0]) > 20


@pytest.mark.parametrize("seed", range(5))
def test_what_arrives_over_a_bad_path_arrives_once_and_unchanged(seed):
    network = Network(seed, delay=0.01)
    policy = ConnectionIdPolicy(padding=64)
    pair = Pair(offering(policy), ServerConfig(connection_id=policy), network=network, seed=seed)
    network.loss, network.duplicate, network.reorder = 0.2, 0.2, 0.2
    pair.handshake()
    sent = [b"%d." % number * (1 + number % 50) for number in range(1, 200)]
    for number, data in enumerate(sent):
        end = pair.server_connection if number % 2 else pair.client
        end.send(data, now=pair.now)
        pair.run_for(0.01)
    pair.run_for(1)
    up, down = pair.server_received(), pair.client_end.received
    assert len(set(up)) == len(up) > 50
    assert len(set(down)) == len(down) > 50
    assert set(up) <= set(sent[::2])
    assert set(down) <= set(sent[1::2])
    sizes = {len(each.data) for who in ("client", "server") for each in network.sent_by(who)[-50:]}
    assert {size % 64 for size in sizes} == {(13 + 8 + 8 + 16) % 64}


@pytest.mark.parametrize("role", ["client", "server"])
def test_no_truncation_or_bit_flip_of_a_recorded_session_with_ids_disturbs_a_live_association(role):
    suite = CipherSuite.TLS_PSK_WITH_AES_128_CCM_8
    pair = session(suite)
    from_client, from_server = recorded(pair)
    connection = pair.client if role == "client" else pair.server_connection
    path = connection.path
    events = []
    for number, datagram in enumerate(from_server if role == "client" else from_client):
        for noise in variants(datagram):
            for source in (path, ("stranger", number)):
                if role == "client":
                    events += connection.receive_datagram(noise, now=pair.now, path=source)
                else:
                    events += pair.server.receive_datagram(noise, now=pair.now, path=source)
    assert events == []
    assert connection.state is ConnectionState.CONNECTED
    assert connection.path == path
    assert pair.server.statistics.half_open == 0
    assert len(pair.server._routes) == 1
    other = pair.server_connection if role == "client" else pair.client
    other.send(b"still here", now=pair.now)
    pair.run_for(0.1)
    assert (pair.client_end.received if role == "client" else pair.server_received())[-1] == b"still here"


# --- secrets --------------------------------------------------------------------------------------------


def test_no_repr_of_anything_shows_a_secret_of_an_association_with_ids():
    pair = Pair(
        offering(POLICY, log_secrets=True), ServerConfig(connection_id=POLICY, log_secrets=True), seed=SEED
    )
    pair.handshake()
    pair.client.send(READING, now=pair.now)
    pair.run_for(0.1)
    secrets = [KEY] + [event.secret for event in pair.client_events if isinstance(event, SecretDerived)]
    assert len(secrets) == 2
    layers = [pair.client._layer, pair.server_connection._layer]
    inside = [part for layer in layers for part in (layer.read, layer.write)]
    things = [
        *pair.client_events, *pair.server_events, pair.client, pair.server_connection, pair.server, POLICY,
        offering(POLICY), ServerConfig(connection_id=POLICY), *layers, *inside,
        *(part.protection for part in inside), pair.server._routes, *pair.server._routes.established,
    ]  # fmt: skip
    shown = "".join(f"{thing!r} {thing}" for thing in things)
    for secret in secrets:
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown
    for part in inside:
        assert part.protection is not None
        keys = part.protection._secret
        for secret in (keys[:16], keys[16:]):
            assert len(secret) >= 4
            assert secret.hex() not in shown
            assert repr(secret)[2:-1] not in shown


@pytest.mark.parametrize("suite", [raw.AES_128_CCM_8, raw.CHACHA20], ids=hex)
def test_the_key_log_opens_records_with_ids(suite):
    rig = ServerRig(ServerConfig(log_secrets=True))
    puppet = IdClient(rig, suite=suite).handshake()
    (event,) = [event for event in rig.events if isinstance(event, SecretDerived)]
    assert puppet.keys is not None
    assert (event.client_random, event.secret) == (puppet.random, puppet.keys.master_secret)
    puppet.give(puppet.data(READING))
    assert [event.data for event in rig.events if isinstance(event, DataReceived)] == [READING]


@pytest.mark.slow
def test_tshark_decrypts_our_records_with_ids(tmp_path):
    tshark = require_program("tshark")
    policy = ConnectionIdPolicy(length=5)
    suite = CipherSuite.TLS_PSK_WITH_AES_128_CCM_8
    pair = Pair(offering(policy, log_secrets=True, cipher_suites=[suite]), ServerConfig(connection_id=policy))
    pair.handshake()
    pair.client.send(b"reading 21.5", now=pair.now)
    pair.server_connection.send(b"thank you", now=pair.now)
    pair.run_for(0.1)
    (event,) = [event for event in pair.client_events if isinstance(event, SecretDerived)]
    key_log, capture = tmp_path / "keys.log", tmp_path / "session.pcap"
    key_log.write_text(key_log_line(event) + "\n")
    capture.write_bytes(pcap_of(pair.network))
    shown = subprocess.run(
        [tshark, "-r", capture, "-o", f"tls.keylog_file:{key_log}", "-d", "udp.port==5684,dtls", "-x", "-V"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert "Connection ID" in shown
    for data in (b"reading 21.5", b"thank you"):
        assert data.hex(" ") in shown
    assert pair.client.peer_connection_id.hex() in shown


def test_an_id_tells_nothing_of_keys_or_identity():
    # Nothing but entropy goes into it: the same entropy gives the same ID to whoever asks.
    ids = []
    for key, identity in ((b"one key", b"one"), (b"another key", b"another")):
        rig = ServerRig(keys={identity: [key]})
        puppet = IdClient(rig, psk=key, identity=identity).handshake()
        assert any(isinstance(event, PskRequested) for event in rig.events)
        ids.append(puppet.peers_id)
    assert ids[0] == ids[1]
    assert POLICY.return_routability is ReturnRoutability.BASIC
