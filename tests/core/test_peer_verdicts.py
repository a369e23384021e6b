"""The caller's answer about a certificate: late, twice, wrong, after the end; and what a no leads to."""

import pytest

from sansdtls import (
    AlertDescription,
    AlertReceived,
    AuthenticationFailed,
    AuthenticationProblem,
    ConnectionState,
    DiscardReason,
    HandshakeTimeout,
    LocalClose,
    PeerAlert,
    PeerCertificateReceived,
    PeerRawKeyReceived,
    PskRequested,
    UsageError,
    WrongState,
)
from sansdtls.testing import Network, Pair
from tests.core import raw
from tests.core.credentials import shown
from tests.core.ecdhe_puppets import (
    EcdheClient,
    EcdheServer,
    asking_config,
    client_config,
)
from tests.core.puppet import KEY, ClientRig, PuppetClient, ServerRig


def requests(events):
    return [event for event in events if isinstance(event, PeerCertificateReceived | PeerRawKeyReceived)]


def mutual_pair(**more) -> Pair:
    client = client_config(credentials=(shown("ed25519").certificate(),))
    return Pair(client, asking_config(), **more)


# --- late answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0.0, 0.4, 3.0, 20.0])
@pytest.mark.parametrize("side", ["client", "server", "both"])
def test_an_answer_may_come_late(delay, side):
    pair = mutual_pair(network=Network(delay=0.01))
    pair.judge_after = None

    def answer_later(event, *_):
        if isinstance(event, PeerCertificateReceived):
            asker = pair.client_end if event.connection is pair.client else None
            late = side in {"both", "client" if asker else "server"}
            pair._later(delay if late else 0.0, pair._verdict(event, asker))

    pair.on_server_event = answer_later
    pair.on_client_event = lambda _, event: answer_later(event)
    pair.handshake()
    pair.client.send(b"21.5", now=pair.now)
    pair.run_for(1)
    assert pair.server_received() == [b"21.5"]
    # Who waits for its own caller has nothing to repeat: it must not be taken for loss.
    assert pair.server_connection.statistics.records_discarded.get(DiscardReason.BAD_MAC) is None
    assert pair.now < 2 + (2 * delay if side == "both" else delay) + 32


def _asked_server() -> tuple[EcdheClient, PeerCertificateReceived]:
    rig = ServerRig(asking_config())
    rig.answer_requests = False
    client = EcdheClient(rig, credential=shown("p256"))
    client.hello()
    client.give(*client.flight_5())
    (request,) = requests(rig.events)
    return client, request


def _asked_client() -> tuple[EcdheServer, PeerCertificateReceived]:
    rig = ClientRig(client_config())
    rig.answer_requests = False
    server = EcdheServer(rig)
    server.verify_request()
    assert server.give(*server.flight_4()) == []
    (request,) = requests(rig.events)
    return server, request


@pytest.mark.parametrize("answer", ["accept", "reject"])
@pytest.mark.parametrize("side", ["client", "server"])
def test_an_answer_after_the_end_does_nothing(answer, side):
    puppet, request = _asked_server() if side == "server" else _asked_client()
    connection, rig = request.connection, puppet.rig
    puppet.wait(400)
    assert connection.state is ConnectionState.CLOSED
    assert [type(cause) for cause in rig.causes] == [HandshakeTimeout]
    if answer == "accept":
        assert connection.accept_peer(request, now=rig.now) == []
    else:
        assert connection.reject_peer(request, AlertDescription.UNKNOWN_CA, now=rig.now) == []
    assert puppet.wait(400) == []
    assert len(rig.causes) == 1


def test_a_request_is_answered_once():
    client, request = _asked_server()
    connection = request.connection
    connection.accept_peer(request, now=0.0)
    with pytest.raises(WrongState):
        connection.accept_peer(request, now=0.0)
    with pytest.raises(WrongState):
        connection.reject_peer(request, AlertDescription.UNKNOWN_CA, now=0.0)
    client.read_flight_6(client.rig.sent())
    assert connection.state is ConnectionState.CONNECTED


def test_a_request_of_another_connection_is_refused():
    (_, one), (_, other) = _asked_server(), _asked_server()
    with pytest.raises(UsageError):
        one.connection.accept_peer(other, now=0.0)
    with pytest.raises(UsageError):
        one.connection.reject_peer(other, AlertDescription.UNKNOWN_CA, now=0.0)


def test_a_request_is_answered_in_the_way_that_belongs_to_it():
    # A certificate accepted as if it were a key, or the other way round, would let in anybody.
    client, request = _asked_server()
    with pytest.raises(UsageError):
        request.connection.provide_psk(request, [KEY], now=0.0)  # type: ignore[arg-type]
    rig = ServerRig()
    rig.answer_requests = False
    puppet = PuppetClient(rig)
    puppet.hello()
    puppet.give(puppet.key_exchange())
    (psk_request,) = [event for event in rig.events if isinstance(event, PskRequested)]
    with pytest.raises(UsageError):
        psk_request.connection.accept_peer(psk_request, now=0.0)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        psk_request.connection.reject_peer(psk_request, AlertDescription.UNKNOWN_CA, now=0.0)  # type: ignore[arg-type]
    request.connection.accept_peer(request, now=0.0)
    client.read_flight_6(client.rig.sent())


@pytest.mark.parametrize("side", ["client", "server"])
def test_an_answer_after_a_local_close_does_nothing(side):
    puppet, request = _asked_server() if side == "server" else _asked_client()
    request.connection.close(now=0.0)
    puppet.wait(0)
    assert puppet.rig.causes == [LocalClose()]
    assert request.connection.accept_peer(request, now=0.0) == []
    assert puppet.wait(300) == []
    assert request.connection.state is ConnectionState.CLOSED


def test_after_a_late_answer_the_server_repeats_its_flight_until_the_client_is_done():
    rig = ServerRig(asking_config())
    rig.answer_requests = False
    client = EcdheClient(rig, credential=shown("p256"))
    client.hello()
    client.give(client.certificate(), client.key_exchange(), client.certificate_verify())
    assert client.wait(20) == []  # the client has nothing that is awaited
    (request,) = requests(rig.events)
    request.connection.accept_peer(request, now=rig.now)
    again = client.wait(1.5)
    assert raw.plaintext_messages(again) == client.server_messages
    client.read_flight_6(client.give(client.change_cipher_spec(), client.finished()))


# --- no -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "alert",
    [
        AlertDescription.BAD_CERTIFICATE,
        AlertDescription.UNSUPPORTED_CERTIFICATE,
        AlertDescription.CERTIFICATE_REVOKED,
        AlertDescription.CERTIFICATE_EXPIRED,
        AlertDescription.CERTIFICATE_UNKNOWN,
        AlertDescription.UNKNOWN_CA,
        AlertDescription.ACCESS_DENIED,
    ],
)
@pytest.mark.parametrize("side", ["client", "server"])
def test_a_rejected_peer_gets_the_alert_that_the_caller_chose(alert, side):
    pair = mutual_pair()

    def judge(request):
        return alert if (request.connection is pair.client) is (side == "client") else None

    pair.judge = judge
    pair.run_for(10)
    judging, judged = (
        (pair.client_events, pair.server_events)
        if side == "client"
        else (pair.server_events, pair.client_events)
    )
    causes = [event.cause for event in judging if hasattr(event, "cause")]
    assert causes == [AuthenticationFailed(AuthenticationProblem.PEER_REJECTED)]
    assert [event.description for event in judged if isinstance(event, AlertReceived)] == [alert]
    assert [event.cause for event in judged if hasattr(event, "cause")] == [
        PeerAlert(alert, authenticated=False)
    ]
    assert len(pair.server) == pair.server.statistics.half_open == 0
    if side == "server":
        assert pair.server.statistics.handshakes_failed == {"AuthenticationFailed.peer_rejected": 1}


def test_one_rejected_client_does_not_stick_to_the_next_on_the_same_path():
    # CVE-2021-34433 and CVE-2020-27222 Californium
    rig = ServerRig(asking_config())
    rig.verdict = AlertDescription.UNKNOWN_CA
    client = EcdheClient(rig, credential=shown("p256"))
    client.hello()
    client.give(*client.flight_5())
    assert rig.causes == [AuthenticationFailed(AuthenticationProblem.PEER_REJECTED)]
    rig.verdict = None
    EcdheClient(rig, credential=shown("p384"), random=b"2" * 32).handshake()
    peer = rig.connection.peer
    assert peer is not None
    assert peer.certificate_chain == shown("p384").chain
    rig.verdict = AlertDescription.UNKNOWN_CA
    again = EcdheClient(rig, credential=shown("p256"), random=b"3" * 32)
    again.hello()
    again.give(*again.flight_5())
    assert again.alerts() == [(2, AlertDescription.UNKNOWN_CA)]
    assert rig.connection.peer == peer
