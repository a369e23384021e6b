"""Secrets: where they are never shown, where they are on request, how much they may be used."""

import shutil
import struct
import subprocess

import pytest

from sansdtls import (
    CipherSuite,
    ClientConfig,
    ConnectionState,
    KeysExhausted,
    Limits,
    PeerClose,
    RetransmitPolicy,
    SecretDerived,
    ServerConfig,
    UsageError,
    WrongState,
    key_log_line,
)
from sansdtls.testing import Network, Pair
from tests.conftest import require_program
from tests.core import raw
from tests.core.puppet import IDENTITY, KEY, ClientRig, PuppetClient, PuppetServer, ServerRig

CHACHA20 = CipherSuite.TLS_PSK_WITH_CHACHA20_POLY1305_SHA256


def connected(**more) -> Pair:
    pair = Pair(**more)
    pair.handshake()
    return pair


# --- secrets ------------------------------------------------------------------------------------------


def test_no_repr_of_anything_public_shows_a_secret():
    pair = Pair(
        ClientConfig(psk_identity=IDENTITY, psk_key=KEY, log_secrets=True), ServerConfig(log_secrets=True)
    )
    pair.handshake()
    pair.client.send(b"x", now=pair.now)
    pair.run_for(1)
    secrets = [KEY] + [event.secret for event in pair.client_events if isinstance(event, SecretDerived)]
    assert len(secrets) > 1
    things = [
        *pair.client_events,
        *pair.server_events,
        pair.client,
        pair.server,
        pair.server_connection,
        pair.client.negotiated,
        pair.client.peer,
        pair.client.statistics,
        pair.server.statistics,
        ClientConfig(psk_identity=IDENTITY, psk_key=KEY),
        pair.client_end,
        pair,
    ]
    shown = "".join(f"{thing!r} {thing}" for thing in things)
    for secret in secrets:
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown


def test_secrets_are_told_only_where_the_configuration_says_so():
    pair = connected()
    assert not [
        event for event in pair.client_events + pair.server_events if isinstance(event, SecretDerived)
    ]


@pytest.mark.parametrize("suite", raw.ALL_SUITES, ids=hex)
def test_both_sides_derive_the_same_secret_and_it_is_the_master_secret(suite):
    puppet = PuppetClient(ServerRig(ServerConfig(log_secrets=True)), suite=suite).handshake()
    (event,) = [event for event in puppet.rig.events if isinstance(event, SecretDerived)]
    assert puppet.keys is not None
    assert event.secret == puppet.keys.master_secret
    assert event.client_random == puppet.random
    assert key_log_line(event) == f"CLIENT_RANDOM {puppet.random.hex()} {event.secret.hex()}"
    config = ClientConfig(psk_identity=IDENTITY, psk_key=KEY, log_secrets=True)
    server = PuppetServer(ClientRig(config), suite=suite).handshake()
    (event,) = [event for event in server.rig.events if isinstance(event, SecretDerived)]
    assert server.keys is not None
    assert event.secret == server.keys.master_secret


def test_of_two_keys_only_the_secret_of_the_matching_one_is_told():
    rig = ServerRig(ServerConfig(log_secrets=True), keys={IDENTITY: [b"old", KEY]})
    puppet = PuppetClient(rig).handshake()
    (event,) = [event for event in rig.events if isinstance(event, SecretDerived)]
    assert puppet.keys is not None
    assert event.secret == puppet.keys.master_secret


@pytest.mark.slow
def test_tshark_decrypts_our_records_with_our_key_log(tmp_path):
    tshark = require_program("tshark")
    pair = connected(
        client_config=ClientConfig(
            psk_identity=IDENTITY,
            psk_key=KEY,
            log_secrets=True,
            cipher_suites=[CipherSuite.TLS_PSK_WITH_AES_128_CCM_8],
        )
    )
    pair.client.send(b"reading 21.5", now=pair.now)
    pair.run_for(1)
    (event,) = [event for event in pair.client_events if isinstance(event, SecretDerived)]
    key_log = tmp_path / "keys.log"
    key_log.write_text(key_log_line(event) + "\n")
    capture = tmp_path / "session.pcap"
    capture.write_bytes(pcap_of(pair.network))
    shown = subprocess.run(
        [tshark, "-r", capture, "-o", f"tls.keylog_file:{key_log}", "-d", "udp.port==5684,dtls", "-x"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert "Decrypted DTLS" in shown
    assert b"reading 21.5".hex(" ") in shown
    assert shutil.which("tshark")


def pcap_of(network: Network) -> bytes:
    """The log of a network as a capture of raw IPv4."""
    out = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 101)
    for entry in network.log:
        sent = entry.datagram
        ports = (40_000, 5684) if sent.source == "client" else (5684, 40_000)
        udp = struct.pack("!HHHH", *ports, 8 + len(sent.data), 0) + sent.data
        ip = struct.pack(
            "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, b"\x7f\0\0\1", b"\x7f\0\0\1"
        )
        packet = ip + udp
        out += struct.pack("<IIII", int(sent.time), 0, len(packet), len(packet)) + packet
    return out


# --- exporter -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", raw.ALL_SUITES, ids=hex)
@pytest.mark.parametrize("context", [None, b"", b"context"])
def test_the_exporter_agrees_with_the_peer_and_with_rfc_5705(suite, context):
    puppet = PuppetClient(suite=suite).handshake()
    (connection,) = puppet.rig.server.connections
    assert puppet.keys is not None
    for length in (1, 32, 100):
        exported = connection.export_keying_material("EXPERIMENTAL test", length, context)
        assert exported == puppet.keys.export(b"EXPERIMENTAL test", length, context)
    pair = connected(client_config=ClientConfig(psk_identity=IDENTITY, psk_key=KEY, cipher_suites=[suite]))
    for connection in (pair.client, pair.server_connection):
        assert connection.export_keying_material(
            "EXPORTER_x", 16, context
        ) == pair.client.export_keying_material("EXPORTER_x", 16, context)


def test_exports_differ_by_label_context_and_association():
    pair, other = connected(), connected(seed=1)
    exports = [
        connection.export_keying_material(label, 32, context)
        for connection in (pair.client, other.client)
        for label in ("EXPORTER_a", "EXPORTER_b")
        for context in (None, b"", b"c")
    ]
    assert len(set(exports)) == 12


@pytest.mark.parametrize(
    "label",
    ["client finished", "server finished", "master secret", "extended master secret", "key expansion"],
)
def test_labels_of_the_handshake_itself_cannot_be_exported(label):
    with pytest.raises(UsageError):
        connected().client.export_keying_material(label, 12)


def test_the_exporter_needs_an_association_that_has_been_established():
    with pytest.raises(WrongState):
        Pair().client.export_keying_material("EXPORTER_x", 16)


# --- limits of the keys -------------------------------------------------------------------------------


def test_after_the_last_record_a_key_may_seal_the_association_ends_with_close_notify():
    limit = 64
    pair = connected(
        client_config=ClientConfig(
            psk_identity=IDENTITY, psk_key=KEY, limits=Limits(max_sealed_records=limit)
        )
    )
    for number in range(limit + 5):
        try:
            pair.client.send(b"%d" % number, now=pair.now)
        except WrongState:
            break
        pair.run_for(0.01)
    pair.run_for(1)
    assert pair.client_end.cause == KeysExhausted("seal")
    sealed = [
        record
        for sent in pair.network.sent_by("client")
        for record in raw.records(sent.data)
        if record.epoch == 1
    ]
    assert len(sealed) <= limit
    assert len(sealed) >= limit - 3
    assert sealed[-1].type == raw.ALERT
    assert pair.server_causes() == [PeerClose()]
    received = pair.server_received()
    assert received == [b"%d" % number for number in range(len(received))]
    assert len(received) >= limit - 4


@pytest.mark.parametrize("role", ["client", "server"])
def test_after_too_many_forgeries_the_association_ends(role):
    limits = Limits(max_failed_opens=10)
    puppet: PuppetServer | PuppetClient
    if role == "client":
        puppet = PuppetServer(ClientRig(ClientConfig(psk_identity=IDENTITY, psk_key=KEY, limits=limits)))
    else:
        puppet = PuppetClient(ServerRig(ServerConfig(limits=limits)))
    puppet.handshake()
    for number in range(9):
        puppet.give(raw.record(23, bytes(40), epoch=1, seq=100 + number))
        assert puppet.rig.causes == []
    puppet.give(puppet.data(b"still fine"))
    assert puppet.rig.received == [b"still fine"]
    puppet.give(raw.record(23, bytes(40), epoch=1, seq=500))
    assert puppet.rig.causes == [KeysExhausted("open")]
    puppet.give(puppet.data(b"too late"))
    assert puppet.rig.received == [b"still fine"]


@pytest.mark.parametrize("suite", raw.ALL_SUITES, ids=hex)
@pytest.mark.parametrize("role", ["client", "server"])
def test_what_a_connection_sends_never_repeats_a_number_or_an_explicit_nonce(suite, role):
    pair = connected(
        client_config=ClientConfig(psk_identity=IDENTITY, psk_key=KEY, cipher_suites=[suite]),
        network=Network(3, loss=0.3),
    )
    connection = pair.client if role == "client" else pair.server_connection
    for _ in range(200):
        connection.send(b"same", now=pair.now)
    pair.run_for(1)
    connection.close(now=pair.now)
    pair.run_for(1)
    sealed = [r for sent in pair.network.sent_by(role) for r in raw.records(sent.data) if r.epoch == 1]
    numbers = [record.seq for record in sealed]
    assert len(numbers) > 200
    assert len(set(numbers)) == len(numbers)
    assert numbers == sorted(numbers)
    if suite != raw.CHACHA20:
        assert all(record.payload[:8] == b"\0\1" + record.seq.to_bytes(6, "big") for record in sealed)


def test_nothing_can_be_exported_after_the_end():
    pair = connected()
    pair.client.close(now=pair.now)
    pair.run_for(1)
    for connection in (pair.client, pair.server_connection):
        with pytest.raises(WrongState):
            connection.export_keying_material("EXPORTER_x", 16)


def test_nothing_can_be_exported_without_extended_master_secret():
    # RFC 7627 §5.4: two associations could be made to export the same.
    puppet = PuppetClient(ems=False).handshake()
    with pytest.raises(WrongState, match="7627"):
        puppet.rig.connection.export_keying_material("EXPORTER_x", 16)


@pytest.mark.parametrize(("length", "context"), [(0, None), (-1, None), (16_385, None), (16, bytes(65_536))])
def test_an_export_out_of_range_is_refused(length, context):
    with pytest.raises(UsageError):
        connected().client.export_keying_material("EXPORTER_x", length, context)


@pytest.mark.parametrize("boundary", [2**16, 2**24, 2**32])
def test_record_numbers_pass_every_power_of_two(boundary):
    chacha20 = ClientConfig(psk_identity=IDENTITY, psk_key=KEY, cipher_suites=[CHACHA20])
    pair = connected(client_config=chacha20)
    pair.client._layer.write.next_sequence_number = boundary - 2
    for number in range(4):
        pair.client.send(b"%d" % number, now=pair.now)
    pair.run_for(0.1)
    assert pair.server_received() == [b"0", b"1", b"2", b"3"]


def test_record_numbers_never_wrap():
    # tinydtls#258; RFC 6347 §4.1: the association ends before 2**48.
    chacha20 = ClientConfig(psk_identity=IDENTITY, psk_key=KEY, cipher_suites=[CHACHA20])
    pair = connected(client_config=chacha20)
    pair.client._layer.write.next_sequence_number = 2**48 - 5
    sent = 0
    while pair.client.state is ConnectionState.CONNECTED:
        pair.client.send(b"x", now=pair.now)
        sent += 1
    assert sent < 5
    pair.run_for(0.1)
    assert pair.client_end.cause == KeysExhausted("seal")
    assert pair.server_causes() == [PeerClose()]
    numbers = [r.seq for sent in pair.network.sent_by("client") for r in raw.records(sent.data) if r.epoch]
    assert numbers == sorted(set(numbers))
    assert max(numbers) < 2**48


def test_a_handshake_that_repeats_itself_until_its_key_is_used_up_ends():
    policy = RetransmitPolicy(initial_timeout=0.01, maximum_timeout=0.01, max_retransmissions=100)
    config = ClientConfig(
        psk_identity=IDENTITY, psk_key=KEY, retransmit=policy, limits=Limits(max_sealed_records=64)
    )
    puppet = PuppetServer(ClientRig(config))
    puppet.verify_request()
    puppet.answer_hello()
    puppet.wait(10)
    assert puppet.rig.causes == [KeysExhausted("seal")]
    sealed = [r.seq for datagram in puppet.answers for r in raw.records(datagram) if r.epoch == 1]
    assert len(set(sealed)) == len(sealed) <= 64
