"""Noise: whatever arrives raises nothing, ends no live association and delivers nothing that was not sent."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sansdtls import (
    AlertDescription,
    AlertReceived,
    AuthenticationFailed,
    AuthenticationProblem,
    ClientConfig,
    ConnectionState,
    DiscardReason,
    PeerAlert,
    PeerClose,
)
from sansdtls.testing import CounterEntropy, Network, Pair
from tests.core import raw
from tests.core.puppet import IDENTITY, KEY, ClientRig, PuppetClient, PuppetServer, ServerRig

READING = b"21.5 degrees"


def recorded_session(seed: int = 4) -> tuple[list[bytes], list[bytes]]:
    """What client and server sent: a whole handshake, data both ways."""
    pair = Pair(seed=seed)
    pair.handshake()
    pair.client.send(READING, now=pair.now)
    pair.server_connection.send(READING, now=pair.now)
    pair.run_for(0.1)
    return tuple([each.data for each in pair.network.sent_by(who)] for who in ("client", "server"))


def variants(datagram: bytes):
    """Every truncation and every single-bit change."""
    for length in range(len(datagram)):
        yield datagram[:length]
    for bit in range(8 * len(datagram)):
        changed = bytearray(datagram)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


# --- truncations and bit flips ------------------------------------------------------------------------


def connected_pair(seed: int = 4) -> Pair:
    pair = Pair(seed=seed)
    pair.handshake()
    return pair


@pytest.mark.parametrize("role", ["client", "server"])
def test_no_truncation_or_bit_flip_of_a_recorded_datagram_disturbs_a_live_association(role):
    from_client, from_server = recorded_session()
    pair = connected_pair()
    connection = pair.client if role == "client" else pair.server_connection
    others = from_server if role == "client" else from_client
    events = []
    for datagram in others:
        for noise in variants(datagram):
            if role == "client":
                events += connection.receive_datagram(noise, now=pair.now, path="server")
            else:
                events += pair.server.receive_datagram(noise, now=pair.now, path="client")
    # A flipped bit may leave one record of two intact; what it carries is genuine then.
    assert {event.data for event in events if hasattr(event, "data")} <= {READING}
    assert not [event for event in events if not hasattr(event, "data")]
    assert connection.state is ConnectionState.CONNECTED
    assert pair.server.statistics.half_open == 0
    # The genuine data still arrive (or were part of a variant that left their record intact).
    (end, received) = (
        (pair.server_connection, lambda: pair.client_end.received)
        if role == "client"
        else (pair.client, pair.server_received)
    )
    end.send(b"still here", now=pair.now)
    end.send(b"and here", now=pair.now)
    pair.run_for(0.1)
    assert b"and here" in received()


@pytest.mark.slow
@pytest.mark.parametrize("role", ["client", "server"])
def test_no_truncation_or_bit_flip_during_a_handshake_raises_or_delivers_anything(role):
    """One variant replaces each datagram in turn; the receiver may fail the handshake, no more."""
    from_client, from_server = recorded_session()
    ours, theirs = (from_client, from_server) if role == "client" else (from_server, from_client)
    peer = "server" if role == "client" else "client"
    replayed = b"".join(_receiver_after(role, theirs)[1])
    assert len(replayed) > 200
    assert b"".join(ours).startswith(replayed), "the recording is replayed byte for byte"
    for position, datagram in enumerate(theirs):
        for noise in variants(datagram):
            rig, _ = _receiver_after(role, theirs[:position])
            rig.give(noise, peer)
            assert set(rig.received) <= {READING}
            for follow_up in theirs[position + 1 :]:
                rig.give(follow_up, peer)
            assert set(rig.received) <= {READING}


def _receiver_after(role: str, datagrams: list[bytes]):
    """The receiver of the recording, with the entropy it had, and what it sent."""
    if role == "server":
        rig: ServerRig | ClientRig = ServerRig(seed=9)
        sent = []
    else:
        rig = ClientRig(seed=int.from_bytes(CounterEntropy(8)(8), "big"), path="server")
        sent = rig.sent()
    for datagram in datagrams:
        sent += rig.give(datagram, "server" if role == "client" else "client")
    return rig, sent


@settings(max_examples=150)
@given(st.lists(st.binary(max_size=200), max_size=10))
def test_random_bytes_change_counters_only(datagrams):
    pair = connected_pair()
    for data in datagrams:
        assert pair.client.receive_datagram(data, now=pair.now, path="server") == []
        assert pair.server.receive_datagram(data, now=pair.now, path="client") == []
        assert pair.server.receive_datagram(data, now=pair.now, path="stranger") == []
    assert pair.client.datagrams_to_send() == []
    assert pair.client.statistics.datagrams_received == 3 + len(datagrams)
    assert pair.connected


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([20, 21, 22, 23]), st.integers(0, 3), st.integers(0, 100), st.binary(max_size=80)
        ),
        max_size=10,
    )
)
def test_well_formed_records_of_random_content_change_counters_only(records):
    pair = connected_pair()
    for kind, epoch, seq, payload in records:
        data = raw.record(kind, payload, epoch=epoch, seq=seq)
        assert pair.client.receive_datagram(data, now=pair.now, path="server") == []
        events = pair.server.receive_datagram(data, now=pair.now, path="client")
        assert events == []
    assert pair.connected
    pair.client.send(READING, now=pair.now)
    pair.run_for(0.1)
    assert pair.server_received() == [READING]


def test_every_short_protected_record_of_every_length_is_counted_and_harmless():
    # CVE-2026-75806 OpenSSL: one too short protected record killed a live association.
    for suite in raw.ALL_SUITES:
        puppet = PuppetClient(suite=suite).handshake()
        for length in range(40):
            assert puppet.give(raw.record(23, bytes(length), epoch=1, seq=100 + length)) == []
        (connection,) = puppet.rig.server.connections
        assert connection.statistics.mac_failures == 40
        puppet.give(puppet.data(READING))
        assert puppet.rig.received == [READING]


def test_a_bad_record_does_not_drop_the_good_ones_beside_it():
    puppet = PuppetClient().handshake()
    forged = raw.record(23, bytes(40), epoch=1, seq=50)
    puppet.give(puppet.data(b"one"), forged, puppet.data(b"two"))
    assert puppet.rig.received == [b"one", b"two"]


# --- application data where it must not be ------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 1, 2, 0xFFFF])
def test_application_data_is_never_delivered_before_finished_whatever_the_state(epoch):
    forged = raw.record(raw.APPLICATION_DATA, b"forged", epoch=epoch, seq=900)
    server_side = PuppetClient()
    steps = [
        server_side.get_cookie,
        lambda: server_side.read_server_flight(
            server_side.give(server_side.message(raw.CLIENT_HELLO, server_side.hello_body()))
        ),
        lambda: server_side.give(server_side.key_exchange()),
        lambda: server_side.give(server_side.change_cipher_spec()),
        lambda: server_side.read_finished(server_side.give(server_side.finished())),
    ]
    for step in [lambda: None, *steps]:
        step()
        server_side.give(forged)
        assert server_side.rig.received == []
    client_side = PuppetServer()
    steps = [
        client_side.verify_request,
        client_side.answer_hello,
        lambda: client_side.give(client_side.change_cipher_spec()),
        lambda: client_side.give(client_side.finished()),
    ]
    for step in [lambda: None, *steps]:
        step()
        client_side.give(forged)
        assert client_side.rig.received == []
    assert client_side.rig.connection.state is ConnectionState.CONNECTED
    assert len(server_side.rig.server) == 1


def test_protected_application_data_of_the_right_peer_waits_for_its_finished():
    puppet = PuppetClient()
    puppet.hello()
    puppet.give(puppet.key_exchange())
    puppet.give(puppet.data(b"before ChangeCipherSpec"))
    puppet.give(puppet.change_cipher_spec())
    puppet.give(puppet.data(b"before Finished"))
    assert puppet.rig.received == []
    puppet.give(puppet.finished(bytes(12)))
    assert puppet.rig.received == []


def test_data_deferred_by_a_client_whose_finished_is_wrong_is_never_delivered():
    puppet = PuppetServer()
    puppet.verify_request()
    puppet.answer_hello()
    puppet.give(puppet.change_cipher_spec(), puppet.data(b"early"), puppet.finished(bytes(12)))
    assert puppet.rig.received == []
    assert isinstance(puppet.rig.causes[0], AuthenticationFailed)


@pytest.mark.parametrize("how", ["close_notify", "fatal alert", "local close"])
@pytest.mark.parametrize("role", ["client", "server"])
def test_nothing_is_delivered_after_the_end(how, role):
    puppet = (PuppetServer if role == "client" else PuppetClient)().handshake()
    rig = puppet.rig
    connection = rig.connection if role == "client" else next(iter(rig.server.connections))
    if how == "local close":
        connection.close(now=rig.now)
        puppet.wait(0.001)
    else:
        puppet.give(puppet.alert(*((1, 0) if how == "close_notify" else (2, 80)), epoch=1))
    assert connection.state is ConnectionState.CLOSED
    assert len(rig.causes) == 1
    events = len(rig.events)
    for seq in (5, 6, 7):
        puppet.give(puppet.data(b"after the end", seq=seq))
    puppet.give(puppet.alert(2, 40, epoch=1))
    assert rig.received == []
    assert len(rig.events) == events
    assert connection.state is ConnectionState.CLOSED


# --- replays ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["client", "server"])
def test_a_repeated_record_is_delivered_once(role):
    puppet = (PuppetServer if role == "client" else PuppetClient)().handshake()
    record = puppet.data(READING)
    for _ in range(5):
        puppet.give(record)
    assert puppet.rig.received == [READING]
    connection = (
        puppet.rig.connection if role == "client" else next(iter(puppet.rig.server.connections))
    )
    assert connection.statistics.records_discarded[DiscardReason.REPLAY] == 4


def test_a_forged_record_far_ahead_does_not_move_the_replay_window():
    # CVE-2016-2181 OpenSSL
    puppet = PuppetClient().handshake()
    puppet.give(raw.record(23, bytes(40), epoch=1, seq=2**48 - 1))
    puppet.give(puppet.data(READING))
    assert puppet.rig.received == [READING]


def test_a_forged_early_record_of_the_next_epoch_does_not_move_the_replay_window():
    # CVE-2016-2181, CVE-2021-42142: the same, before the keys exist.
    for point in range(3):
        puppet = PuppetClient()
        if point == 0:
            puppet.get_cookie()
        puppet.give(raw.record(22, bytes(60), epoch=1, seq=2**48 - 1))
        if point:
            puppet.hello()
        puppet.give(raw.record(23, bytes(60), epoch=1, seq=2**48 - 2))
        if not point:
            puppet.read_server_flight(puppet.give(puppet.message(raw.CLIENT_HELLO, puppet.hello_body())))
        puppet.give(puppet.key_exchange())
        puppet.give(raw.record(22, bytes(60), epoch=1, seq=2**48 - 3))
        puppet.read_finished(puppet.give(puppet.change_cipher_spec(), puppet.finished()))
        puppet.give(puppet.data(READING))
        assert puppet.rig.received == [READING]


def test_records_of_another_epoch_or_version_are_dropped_and_counted():
    puppet = PuppetClient().handshake()
    (connection,) = puppet.rig.server.connections
    puppet.give(raw.record(23, bytes(40), epoch=2))
    puppet.give(raw.record(23, bytes(40), epoch=0))
    puppet.give(b"\x17\xfe")
    discarded = connection.statistics.records_discarded
    assert discarded[DiscardReason.UNKNOWN_EPOCH] == 1
    assert discarded[DiscardReason.BAD_RECORD_HEADER] == 1
    assert sum(discarded.values()) == 3
    assert puppet.rig.causes == []


# --- forged alerts and Finished -----------------------------------------------------------------------


@pytest.mark.parametrize("description", [10, 20, 40, 51, 70, 80, 90, 0, 255])
@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize("after", range(5))
def test_a_forged_plaintext_alert_cannot_end_an_honest_handshake(description, role, after):
    pair = Pair(network=Network(delay=0.02))
    alert = raw.record(raw.ALERT, bytes([2, description]), seq=500)
    victim, other = ("client", "server") if role == "client" else ("server", "client")
    pair.run_for(after * 0.02)
    pair.network.inject(other, victim, alert)
    pair.handshake()
    pair.client.send(READING, now=pair.now)
    pair.run_for(0.1)
    assert pair.server_received() == [READING]
    assert pair.server_causes() == []


def test_a_plaintext_fatal_alert_ends_a_handshake_in_which_nothing_else_is_heard():
    puppet = PuppetServer()
    puppet.give(puppet.alert(2, AlertDescription.HANDSHAKE_FAILURE))
    (received,) = puppet.rig.events
    assert isinstance(received, AlertReceived)
    assert not received.authenticated
    assert puppet.rig.causes == []
    puppet.wait(1.0)
    assert puppet.rig.causes == [PeerAlert(AlertDescription.HANDSHAKE_FAILURE, authenticated=False)]


def test_a_plaintext_alert_never_ends_an_established_association():
    pair = connected_pair()
    for description in range(256):
        for level in (0, 1, 2, 255):
            alert = raw.record(raw.ALERT, bytes([level, description]), seq=1000 + description)
            assert pair.client.receive_datagram(alert, now=pair.now, path="server") == []
            assert pair.server.receive_datagram(alert, now=pair.now, path="client") == []
    assert pair.connected


@pytest.mark.parametrize("rounds", [1, 20])
def test_forged_finished_records_cannot_end_an_honest_handshake(rounds):
    puppet = PuppetClient()
    puppet.hello()
    puppet.give(puppet.key_exchange(), puppet.change_cipher_spec())
    for seq in range(rounds):
        puppet.give(raw.record(raw.HANDSHAKE, bytes([seq]) * 40, epoch=1, seq=seq))
    assert puppet.rig.causes == []
    puppet.read_finished(puppet.give(puppet.finished()))
    assert len(puppet.rig.server) == 1


def test_a_flood_of_forged_finished_records_ends_no_handshake_whose_real_one_comes_within_a_second():
    puppet = PuppetClient()
    puppet.hello()
    puppet.give(puppet.key_exchange(), puppet.change_cipher_spec())
    for seq in range(100):
        puppet.give(raw.record(raw.HANDSHAKE, bytes(40), epoch=1, seq=seq))
        puppet.wait(0.0099)
    puppet.read_finished(puppet.give(puppet.change_cipher_spec(), puppet.finished()))
    assert puppet.rig.causes == []
    assert len(puppet.rig.server) == 1


# --- wrong key, unknown identity ----------------------------------------------------------------------


def failed_login(identity: bytes, key: bytes, **network):
    pair = Pair(
        ClientConfig(psk_identity=identity, psk_key=key),
        keys={b"dev1": [KEY], b"dev2": [KEY, b"next key........"]},
        network=Network(**network),
    )
    pair.run_until(lambda: pair.client.state is ConnectionState.CLOSED)
    pair.run_for(60)
    return pair


@pytest.mark.parametrize("identity", [b"dev1", b"dev2"])
@pytest.mark.parametrize("network", [{}, {"delay": 0.05}, {"loss": 0.3, "seed": 11}, {"mtu": 300}], ids=str)
def test_wrong_key_and_unknown_identity_look_the_same_on_the_wire(identity, network):
    wrong = failed_login(identity, b"not the key.....", **network)
    unknown = failed_login(b"who?", b"not the key.....", **network)
    seen = [
        [(entry.datagram.time, entry.datagram.source, len(entry.datagram.data)) for entry in pair.network.log]
        for pair in (wrong, unknown)
    ]
    assert seen[0] == seen[1]
    assert [
        [(r.type, r.epoch, r.seq, len(r.payload)) for r in raw.records(entry.datagram.data)]
        for entry in wrong.network.log
    ] == [
        [(r.type, r.epoch, r.seq, len(r.payload)) for r in raw.records(entry.datagram.data)]
        for entry in unknown.network.log
    ]


def test_wrong_key_and_unknown_identity_are_told_apart_to_the_operator():
    pair = failed_login(b"dev1", b"not the key.....")
    assert pair.server_causes() == [AuthenticationFailed(AuthenticationProblem.WRONG_KEY, b"dev1")]
    assert pair.server.statistics.handshakes_failed == {"AuthenticationFailed.wrong_key": 1}
    assert pair.server.statistics.psk_unknown == 0
    pair = failed_login(b"who?", b"not the key.....")
    assert pair.server_causes() == [AuthenticationFailed(AuthenticationProblem.UNKNOWN_IDENTITY, b"who?")]
    assert pair.server.statistics.handshakes_failed == {"AuthenticationFailed.unknown_identity": 1}
    assert pair.server.statistics.psk_unknown == 1


@pytest.mark.parametrize("identity", [b"dev1", b"who?"])
def test_the_device_is_told_decrypt_error(identity):
    # RFC 7925 §4: decrypt_error, never unknown_psk_identity.
    pair = failed_login(identity, b"not the key.....")
    assert pair.client_end.cause == PeerAlert(AlertDescription.DECRYPT_ERROR, authenticated=False)
    (alert,) = [
        record
        for sent in pair.network.sent_by("server")
        for record in raw.records(sent.data)
        if record.type == raw.ALERT
    ]
    assert alert.payload == bytes([2, 51])
    assert pair.now < 60 + 10
    assert pair.server.statistics.half_open == 0


def test_an_unknown_identity_never_gets_in_even_with_the_stand_in_key():
    # The stand-in is random, from the entropy source; a client that guessed the entropy must not profit.
    entropy = CounterEntropy(1)
    pool = entropy(4096)
    for at in range(0, 256):
        puppet = PuppetClient(ServerRig(seed=1), identity=b"who?", psk=pool[at : at + 16])
        puppet.hello()
        puppet.give(puppet.key_exchange(), puppet.change_cipher_spec(), puppet.finished())
        assert len(puppet.rig.server) == 0


def test_one_failed_login_does_not_stick_to_the_next():
    pair = Pair(ClientConfig(psk_identity=IDENTITY, psk_key=b"wrong"))
    pair.run_until(lambda: pair.client.state is ConnectionState.CLOSED)
    again = pair.connect(ClientConfig(psk_identity=IDENTITY, psk_key=KEY))
    pair.run_until(lambda: again.connection.state is ConnectionState.CONNECTED)


def test_close_notify_in_plaintext_ends_nothing():
    pair = connected_pair()
    forged = raw.record(raw.ALERT, b"\1\0", seq=77)
    assert pair.server.receive_datagram(forged, now=pair.now, path="client") == []
    assert pair.connected
    assert PeerClose() not in pair.server_causes()
