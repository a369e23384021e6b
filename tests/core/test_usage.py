"""The caller's side: what is refused to it, and how connections end."""

import pytest

from sansdtls import (
    AlertDescription,
    AlertLevel,
    AlertReceived,
    CipherSuite,
    ClientConfig,
    ConfigError,
    Connection,
    ConnectionState,
    ConnectionTerminated,
    DiscardReason,
    DtlsError,
    LocalClose,
    MessageTooLarge,
    PeerAlert,
    PeerClose,
    PskRequested,
    UsageError,
    WrongState,
)
from sansdtls.testing import CounterEntropy, Pair
from tests.core import raw
from tests.core.puppet import IDENTITY, KEY, ClientRig, PuppetClient, PuppetServer, ServerRig


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
    overhead = {raw.CHACHA20: 13 + 16, raw.AES_128_CCM_8: 13 + 16, raw.AES_256_CCM_8: 13 + 16}.get(
        suite, 13 + 24
    )
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


@pytest.mark.parametrize(
    "keys", [[b""], [bytes(65)], [KEY, b""], [KEY, KEY, KEY], ["text"], [None]], ids=repr
)
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
    assert pair.client.negotiated.cipher_suite is CipherSuite.TLS_ECDHE_PSK_WITH_AES_128_GCM_SHA256
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
    alerts = [
        record
        for entry in pair.network.log
        for record in raw.records(entry.datagram.data)
        if record.type == 21
    ]
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
    assert alerts == [(1, AlertDescription.USER_CANCELED), (1, AlertDescription.CLOSE_NOTIFY)]
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


def test_a_policy_for_extended_master_secret_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="preferred, required"):
        ClientConfig(psk_identity=IDENTITY, extended_master_secret="maybe")


@pytest.mark.parametrize("role", ["client", "server"])
def test_close_notify_is_answered_by_close_notify(role):
    # RFC 5246 §7.2.1
    puppet: PuppetServer | PuppetClient = PuppetServer() if role == "client" else PuppetClient()
    puppet.handshake()
    assert puppet.alerts(puppet.give(puppet.alert(1, 0, epoch=1))) == [(1, 0)]
    assert puppet.rig.causes == [PeerClose()]
