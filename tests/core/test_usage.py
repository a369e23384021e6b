"""The caller's side: what is refused to it, what it is never shown, how connections end, limits of keys."""

import shutil
import struct
import subprocess

import pytest

from sansdtls import (
    AlertDescription,
    AlertLevel,
    AlertReceived,
    CipherSuite,
    ClientConfig,
    Connection,
    ConnectionState,
    ConnectionTerminated,
    DiscardReason,
    DtlsError,
    KeysExhausted,
    Limits,
    LocalClose,
    MessageTooLarge,
    PeerAlert,
    PeerClose,
    PskRequested,
    SecretDerived,
    ServerConfig,
    UsageError,
    WrongState,
    key_log_line,
)
from sansdtls.testing import CounterEntropy, Network, Pair
from tests.core import raw
from tests.core.puppet import IDENTITY, KEY, ClientRig, PuppetClient, PuppetServer, ServerRig
from tests.conftest import require_program


def connected(**more) -> Pair:
    pair = Pair(**more)
    pair.handshake()
    return pair


# --- calls at the wrong time --------------------------------------------------------------------------


def test_sending_needs_an_established_association():
    pair = Pair()
    with pytest.raises(WrongState):
        pair.client.send(b"x", now=pair.now)
    pair.handshake()
    pair.client.close(now=pair.now)
    with pytest.raises(WrongState):
        pair.client.send(b"x", now=pair.now)


def test_a_message_larger_than_a_record_is_refused_and_nothing_has_changed():
    pair = connected()
    largest = pair.client.max_payload
    with pytest.raises(MessageTooLarge, match=str(largest)):
        pair.client.send(bytes(largest + 1), now=pair.now)
    assert pair.client.datagrams_to_send() == []
    assert pair.client.statistics.records_sent == 0
    pair.client.send(bytes(largest), now=pair.now)
    pair.run_for(0.1)
    assert pair.server_received() == [bytes(largest)]


@pytest.mark.parametrize("suite", raw.ALL_SUITES, ids=hex)
@pytest.mark.parametrize("mtu", [256, 1232, 65_507])
def test_max_payload_is_what_the_mtu_leaves_and_never_above_2_to_the_14(suite, mtu):
    pair = connected(
        client_config=ClientConfig(psk_identity=IDENTITY, psk_key=KEY, mtu=mtu, cipher_suites=[suite])
    )
    overhead = {raw.CHACHA20: 13 + 16, raw.AES_128_CCM_8: 13 + 16, raw.AES_256_CCM_8: 13 + 16}.get(suite, 13 + 24)
    assert pair.client.max_payload == min(mtu - overhead, 2**14)
    pair.client.send(bytes(pair.client.max_payload), now=pair.now)
    pair.run_for(0.1)
    assert pair.server_received() == [bytes(pair.client.max_payload)]


def test_empty_application_data_may_be_sent():
    pair = connected()
    pair.client.send(b"", now=pair.now)
    pair.client.send(b"x", now=pair.now)
    pair.run_for(0.1)
    assert pair.server_received()[-1:] == [b"x"]


def test_a_key_request_is_answered_once():
    rig = ServerRig()
    rig.answer_requests = False
    puppet = PuppetClient(rig)
    puppet.hello()
    puppet.give(puppet.key_exchange())
    request = next(event for event in rig.events if isinstance(event, PskRequested))
    request.connection.provide_psk(request, [KEY], now=0.0)
    with pytest.raises(WrongState):
        request.connection.provide_psk(request, [KEY], now=0.0)


def test_a_key_request_of_another_connection_is_refused():
    rigs = ServerRig(), ServerRig()
    requests = []
    for rig in rigs:
        rig.answer_requests = False
        puppet = PuppetClient(rig)
        puppet.hello()
        puppet.give(puppet.key_exchange())
        requests.append(next(event for event in rig.events if isinstance(event, PskRequested)))
    with pytest.raises(UsageError):
        requests[0].connection.provide_psk(requests[1], [KEY], now=0.0)
    requests[0].connection.provide_psk(requests[0], [KEY], now=0.0)


@pytest.mark.parametrize("keys", [[b""], [bytes(65)], [KEY, b""], [KEY, KEY, KEY], ["text"], [None]], ids=repr)
def test_keys_that_cannot_be_are_refused_without_being_shown(keys):
    rig = ServerRig()
    rig.answer_requests = False
    puppet = PuppetClient(rig)
    puppet.hello()
    puppet.give(puppet.key_exchange())
    request = next(event for event in rig.events if isinstance(event, PskRequested))
    with pytest.raises(UsageError) as caught:
        request.connection.provide_psk(request, keys, now=0.0)
    assert KEY.hex() not in str(caught.value)
    assert repr(KEY) not in str(caught.value)
    # Nothing has changed: the right answer is still welcome.
    request.connection.provide_psk(request, [KEY], now=0.0)
    puppet.read_finished(puppet.give(puppet.change_cipher_spec(), puppet.finished()))


def test_a_client_whose_caller_has_no_key_ends():
    rig = ClientRig(ClientConfig(psk_identity=IDENTITY), keys={})
    puppet = PuppetServer(rig)
    puppet.verify_request()
    puppet.give(*puppet.flight_4())
    puppet.wait(0.001)
    (cause,) = rig.causes
    assert rig.connection.state is ConnectionState.CLOSED
    assert cause is not None


def test_a_client_that_is_given_two_keys_uses_the_first():
    rig = ClientRig(ClientConfig(psk_identity=IDENTITY), keys={IDENTITY: [KEY, b"another"]})
    PuppetServer(rig).handshake()
    assert rig.connection.state is ConnectionState.CONNECTED


def test_what_is_taken_out_is_taken_out():
    pair = Pair()
    pair.client.datagrams_to_send()
    assert pair.client.datagrams_to_send() == []
    assert pair.server.datagrams_to_send() == []


def test_a_datagram_of_another_path_is_dropped_and_counted():
    pair = connected()
    assert pair.client.receive_datagram(raw.record(23, bytes(30), epoch=1), now=0.0, path="elsewhere") == []
    assert pair.client.statistics.records_discarded == {DiscardReason.WRONG_PATH: 1}


def test_every_usage_error_is_a_dtls_error():
    assert issubclass(UsageError, DtlsError)
    assert all(issubclass(kind, UsageError) for kind in (WrongState, MessageTooLarge))


@pytest.mark.parametrize("when", ["handshaking", "connected", "closed"])
def test_negotiated_and_peer_are_there_when_connected_and_stay(when):
    pair = Pair()
    if when == "handshaking":
        assert pair.client.negotiated is None
        assert pair.client.peer is None
        return
    pair.handshake()
    if when == "closed":
        pair.client.close(now=pair.now)
        pair.run_for(1)
    assert pair.client.negotiated is not None
    assert pair.client.negotiated.cipher_suite is CipherSuite.TLS_PSK_WITH_AES_128_GCM_SHA256
    for connection in (pair.client, pair.server_connection):
        assert connection.peer is not None
        assert connection.peer.psk_identity == IDENTITY
        assert connection.peer.psk_key_index == 0


# --- endings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["client", "server"])
def test_close_notify_ends_both_sides(who):
    pair = connected()
    closing, other = (pair.client, pair.server_connection)
    if who == "server":
        closing, other = other, closing
    closing.close(now=pair.now)
    assert closing.state is ConnectionState.CLOSED
    pair.run_for(0)
    assert other.state is ConnectionState.CLOSED
    causes = {who: LocalClose(), ("server" if who == "client" else "client"): PeerClose()}
    assert pair.client_end.cause == causes["client"]
    assert pair.server_causes() == [causes["server"]]
    assert len(pair.server) == 0
    # Each side sent one close_notify, or the second none; no more.
    alerts = [record for entry in pair.network.log for record in raw.records(entry.datagram.data) if record.type == 21]
    assert 1 <= len(alerts) <= 2
    pair.run_for(300)
    assert pair.client.next_timeout() is None
    assert pair.server.next_timeout() is None


def test_the_termination_of_a_closed_connection_is_due_at_once_and_comes_once():
    pair = connected()
    pair.client.close(now=pair.now)
    due = pair.client.next_timeout()
    assert due is not None
    assert due <= pair.now
    (event,) = pair.client.handle_timeout(now=pair.now)
    assert isinstance(event, ConnectionTerminated)
    assert event.cause == LocalClose()
    assert pair.client.next_timeout() is None
    assert pair.client.handle_timeout(now=pair.now) == []
    pair.client.close(now=pair.now)
    assert pair.client.next_timeout() is None
    assert pair.client.handle_timeout(now=pair.now) == []


def test_the_termination_also_comes_with_the_next_datagram():
    pair = connected()
    pair.client.close(now=pair.now)
    (event,) = pair.client.receive_datagram(b"x", now=pair.now, path="server")
    assert isinstance(event, ConnectionTerminated)


def test_closing_during_a_handshake_tells_the_peer():
    puppet = PuppetServer()
    puppet.verify_request()
    puppet.rig.connection.close(now=0.0)
    alerts = puppet.alerts(puppet.rig.sent())
    assert (AlertLevel.WARNING, AlertDescription.USER_CANCELED) in alerts or (1, 0) in alerts
    puppet.wait(0.001)
    assert puppet.rig.causes == [LocalClose()]
    puppet.give(*puppet.flight_4())
    assert len(puppet.rig.events) == 1


def test_closing_before_anything_was_sent_ends_quietly():
    connection = Connection.client(
        ClientConfig(psk_identity=IDENTITY, psk_key=KEY), entropy=CounterEntropy(), now=0.0
    )
    connection.close(now=0.0)
    (event,) = connection.handle_timeout(now=0.0)
    assert isinstance(event, ConnectionTerminated)
    assert connection.path is None


def test_an_authenticated_fatal_alert_ends_the_association_at_once():
    puppet = PuppetServer().handshake()
    puppet.give(puppet.alert(2, 80, epoch=1))
    alert, end = puppet.rig.events[-2:]
    assert isinstance(alert, AlertReceived)
    assert alert.authenticated
    assert alert.description is AlertDescription.INTERNAL_ERROR
    assert isinstance(end, ConnectionTerminated)
    assert end.cause == PeerAlert(AlertDescription.INTERNAL_ERROR)


def test_an_alert_with_a_code_nobody_knows_is_told_as_a_number():
    puppet = PuppetServer().handshake()
    puppet.give(puppet.alert(2, 254, epoch=1))
    assert puppet.rig.causes == [PeerAlert(254)]


def test_a_warning_alert_is_told_and_ends_nothing():
    puppet = PuppetServer().handshake()
    puppet.give(puppet.alert(1, 90, epoch=1))
    event = puppet.rig.events[-1]
    assert isinstance(event, AlertReceived)
    assert (event.level, event.description) == (AlertLevel.WARNING, AlertDescription.USER_CANCELED)
    assert puppet.rig.causes == []


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
    assert not [event for event in pair.client_events + pair.server_events if isinstance(event, SecretDerived)]


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
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, b"\x7f\0\0\1", b"\x7f\0\0\1")
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
        assert connection.export_keying_material("EXPORTER_x", 16, context) == pair.client.export_keying_material(
            "EXPORTER_x", 16, context
        )


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
        client_config=ClientConfig(psk_identity=IDENTITY, psk_key=KEY, limits=Limits(max_sealed_records=limit))
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
