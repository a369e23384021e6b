"""Forged alerts and Finished, wrong keys and unknown identities: what ends a handshake, and what does not."""

import pytest

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
    RetransmitPolicy,
    ServerConfig,
)
from sansdtls.testing import CounterEntropy, Network, Pair
from tests.core import raw
from tests.core.puppet import IDENTITY, KEY, PuppetClient, PuppetServer, ServerRig

READING = b"21.5 degrees"


def connected_pair(seed: int = 4) -> Pair:
    pair = Pair(seed=seed)
    pair.handshake()
    return pair


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
    for at in range(256):
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


@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("lookup", [1.5, 5.0])
def test_a_forged_alert_cannot_end_a_handshake_that_waits_for_a_slow_key_store(side, lookup):
    pair = Pair(ClientConfig(psk_identity=IDENTITY), network=Network(delay=0.02))
    setattr(pair, "psk_after" if side == "server" else "client_psk_after", lookup)
    alert = raw.record(raw.ALERT, bytes([2, 40]), seq=500)
    pair.run_for(0.3)
    pair.network.inject("client" if side == "server" else "server", side, alert)
    pair.handshake()
    assert pair.server_causes() == []


def test_alerts_in_clear_that_are_no_alerts_are_dropped():
    puppet = PuppetServer()
    for body in (b"", b"\2", b"\2\50\0"):
        puppet.give(puppet.record(raw.ALERT, body))
    assert puppet.rig.events == []
    discarded = puppet.rig.connection.statistics.records_discarded
    assert discarded == {DiscardReason.UNAUTHENTICATED_ALERT: 3}


def test_a_close_notify_in_clear_ends_a_handshake_in_which_nothing_else_is_heard():
    puppet = PuppetClient()
    puppet.hello()
    puppet.give(puppet.alert(1, 90), puppet.alert(1, 0))
    assert puppet.rig.causes == []
    puppet.wait(1)
    assert puppet.rig.causes == [PeerClose()]
    assert puppet.rig.server.statistics.half_open == 0


@pytest.mark.parametrize("forged_at", [(0.5,), (0.5, 1.5), (0.2, 0.5, 0.9, 1.2)], ids=str)
def test_forged_finished_records_cannot_end_a_handshake_whose_finished_comes_at_the_second_try(forged_at):
    puppet = PuppetClient()
    puppet.hello()
    puppet.give(puppet.key_exchange(), puppet.change_cipher_spec())
    for seq, moment in enumerate(forged_at):
        puppet.wait(moment - puppet.rig.now)
        puppet.give(raw.record(raw.HANDSHAKE, bytes(40), epoch=1, seq=seq))
    # The honest Finished was lost once; the server's repetition at 1 s brings it again.
    puppet.wait(2.9 - puppet.rig.now)
    assert puppet.rig.causes == []
    puppet.read_finished(puppet.give(puppet.change_cipher_spec(), puppet.finished()))
    assert len(puppet.rig.server) == 1


def test_a_single_forged_finished_never_counts_as_a_wrong_key_before_the_deadline():
    puppet = PuppetClient()
    puppet.hello()
    puppet.give(puppet.key_exchange(), puppet.change_cipher_spec())
    puppet.give(raw.record(raw.HANDSHAKE, bytes(40), epoch=1, seq=3))
    puppet.wait(60)
    assert puppet.rig.causes == []


@pytest.mark.parametrize(
    ("moments", "told"),
    [
        # A flight of the peer and its repetition, whose timer runs out just before ours, or just after.
        ((0.0, 0.99), 3.0),
        ((0.0, 1.0), 3.0),
        # Late, and again as an answer to our repetition.
        ((0.7, 1.1), 3.0),
        # One flight that came in two halves is one.
        ((0.0, 0.49), None),
        # Our repetition at 1 s came before the first: that at 3 s has to be answered as well.
        ((1.5, 2.5), 7.0),
    ],
    ids=str,
)
def test_a_peer_that_repeats_what_no_key_opens_is_told_once_our_own_flight_was_repeated(moments, told):
    puppet = PuppetClient()
    puppet.hello()
    puppet.give(puppet.key_exchange(), puppet.change_cipher_spec())
    for seq, moment in enumerate(moments):
        puppet.wait(moment - puppet.rig.now)
        puppet.give(raw.record(raw.HANDSHAKE, bytes(40), epoch=1, seq=seq))
    puppet.wait((told or 60) - 0.01 - puppet.rig.now)
    assert puppet.rig.causes == []
    puppet.wait(0.01)
    wrong = AuthenticationFailed(AuthenticationProblem.WRONG_KEY, IDENTITY)
    assert puppet.rig.causes == ([] if told is None else [wrong])


@pytest.mark.parametrize("initial", [1.0, 9.0])
def test_a_wrong_key_is_told_after_two_periods_of_retransmission(initial):
    policy = RetransmitPolicy(initial_timeout=initial)
    pair = Pair(
        ClientConfig(psk_identity=IDENTITY, psk_key=b"wrong", retransmit=policy),
        ServerConfig(retransmit=policy),
    )
    pair.run_until(lambda: bool(pair.server_causes()))
    assert pair.now == 3 * initial
    assert pair.server_causes() == [AuthenticationFailed(AuthenticationProblem.WRONG_KEY, IDENTITY)]


def test_every_login_draws_the_same_entropy_whether_it_has_no_key_one_or_two():
    drawn = set()
    for keys in ([], [KEY], [KEY, b"another key....."], [b"another key.....", KEY]):
        rig = ServerRig(keys={IDENTITY: keys})
        puppet = PuppetClient(rig)
        puppet.hello()
        puppet.give(puppet.key_exchange(), puppet.change_cipher_spec(), puppet.finished())
        drawn.add(rig.entropy.bytes_taken)
    assert len(drawn) == 1
