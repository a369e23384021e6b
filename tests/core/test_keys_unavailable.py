"""``refuse_psk``: the caller cannot find out an identity's keys. The peer is told to come back, and nothing else suffers."""

import pytest

from sansdtls import (
    AlertDescription,
    AlertReceived,
    AuthenticationFailed,
    AuthenticationProblem,
    ClientConfig,
    ConnectionState,
    PskRequested,
    UsageError,
    WrongState,
)
from sansdtls.testing import Pair
from tests.core.puppet import IDENTITY, KEY, ClientRig, PuppetClient, PuppetServer, ServerRig
from tests.core.resuming import each_way, made, new_fleet, questions

INTERNAL_ERROR = AlertDescription.INTERNAL_ERROR
FATAL = 2


def asked(rig: ServerRig | None = None, *, random=bytes(32)) -> tuple[PuppetClient, PskRequested]:
    rig = rig or ServerRig()
    rig.answer_requests = False
    puppet = PuppetClient(rig)
    puppet.random = random  # of the very same hello the server would not make a second handshake
    puppet.hello()
    puppet.give(puppet.key_exchange(), puppet.change_cipher_spec())
    return puppet, next(event for event in reversed(rig.events) if isinstance(event, PskRequested))


def refuse(puppet, request, alert=INTERNAL_ERROR):
    rig = puppet.rig
    rig._take(request.connection.refuse_psk(request, alert, now=rig.now))
    return puppet.alerts(rig.sent())


def test_the_peer_gets_the_alert_and_the_caller_the_cause():
    puppet, request = asked()
    assert refuse(puppet, request) == [(FATAL, INTERNAL_ERROR)]
    assert request.connection.state is ConnectionState.CLOSED
    cause = AuthenticationFailed(AuthenticationProblem.KEYS_UNAVAILABLE, IDENTITY)
    assert puppet.rig.causes == [cause]
    statistics = puppet.rig.server.statistics
    assert statistics.handshakes_failed == {"AuthenticationFailed.keys_unavailable": 1}
    assert (statistics.psk_unknown, statistics.half_open) == (0, 0)


def test_a_request_is_answered_once_and_after_the_end_nothing_happens():
    puppet, request = asked()
    refuse(puppet, request)
    assert request.connection.refuse_psk(request, INTERNAL_ERROR, now=0.0) == []
    assert request.connection.provide_psk(request, [KEY], now=0.0) == []
    puppet, request = asked()
    request.connection.provide_psk(request, [KEY], now=0.0)
    with pytest.raises(WrongState):
        request.connection.refuse_psk(request, INTERNAL_ERROR, now=0.0)


def test_a_request_of_another_connection_and_what_is_no_alert_are_refused_and_change_nothing():
    (puppet, one), (_, other) = asked(), asked()
    with pytest.raises(UsageError):
        one.connection.refuse_psk(other, INTERNAL_ERROR, now=0.0)
    with pytest.raises(UsageError, match="no AlertDescription"):
        one.connection.refuse_psk(one, 250, now=0.0)  # type: ignore[arg-type]
    puppet.rig._take(one.connection.provide_psk(one, [KEY], now=0.0))
    puppet.read_finished(puppet.give(puppet.finished()))
    assert one.connection.state is ConnectionState.CONNECTED


def test_the_association_that_the_peer_has_lives_on_and_the_same_peer_may_come_back():
    rig = ServerRig()
    before = PuppetClient(rig).handshake()
    established = rig.connection
    puppet, request = asked(rig)
    assert refuse(puppet, request) == [(FATAL, INTERNAL_ERROR)]
    assert established.state is ConnectionState.CONNECTED
    before.give(before.data(b"still here"))
    assert rig.received == [b"still here"]
    rig.answer_requests = True
    again = PuppetClient(rig)
    again.random = bytes([1]) * 32
    again.handshake()
    assert rig.connection.state is ConnectionState.CONNECTED
    assert rig.connection is not established


@each_way
def test_a_session_is_not_resumed_and_nobody_is_asked_a_second_time(way):
    fleet = new_fleet()
    config = made(fleet, "PSK", way)
    fleet.psk_after = None
    client = fleet.connect(config, "again")
    fleet.run_for(1)
    request = questions(fleet)[-1]
    assert request.resumption
    before = len(questions(fleet))
    request.connection.refuse_psk(request, INTERNAL_ERROR, now=fleet.now)
    fleet.run_for(10)
    assert len(questions(fleet)) == before
    assert client.connection.state is ConnectionState.CLOSED
    assert fleet.server.statistics.handshakes_failed == {"AuthenticationFailed.keys_unavailable": 1}


def test_our_own_client_hears_the_alert():
    pair = Pair(keys={})
    pair.psk_after = None
    pair.run_for(1)
    (request,) = (event for event in pair.server_events if isinstance(event, PskRequested))
    request.connection.refuse_psk(request, INTERNAL_ERROR, now=pair.now)
    pair.run_for(5)
    alerts = [event.description for event in pair.client_events if isinstance(event, AlertReceived)]
    assert alerts == [INTERNAL_ERROR]
    assert pair.client.state is ConnectionState.CLOSED


def test_a_client_may_lack_its_key_too():
    rig = ClientRig(ClientConfig(psk_identity=IDENTITY))
    rig.answer_requests = False
    puppet = PuppetServer(rig)
    puppet.verify_request()
    puppet.give(*puppet.flight_4())
    (request,) = (event for event in rig.events if isinstance(event, PskRequested))
    rig._take(rig.connection.refuse_psk(request, INTERNAL_ERROR, now=rig.now))
    assert puppet.alerts(rig.sent()) == [(FATAL, INTERNAL_ERROR)]
    assert rig.causes == [AuthenticationFailed(AuthenticationProblem.KEYS_UNAVAILABLE)]
