"""Records and messages in every order and state: what is complete succeeds, what is not never does."""

import itertools

import pytest

from sansdtls import (
    AuthenticationFailed,
    ConnectionState,
    DiscardReason,
    Limits,
    ServerConfig,
)
from tests.core import raw
from tests.core.puppet import IDENTITY, PuppetClient, PuppetServer, ServerRig

READING = b"21.5 degrees"


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
    connection = rig.connection
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
    if role == "client":
        assert connection.statistics.records_discarded == {DiscardReason.AFTER_CLOSE: 4}
    assert len(rig.events) == events
    assert connection.state is ConnectionState.CLOSED


# --- the order of a flight ----------------------------------------------------------------------------

CLIENT_FLIGHT = ("key exchange", "change cipher spec", "finished", "data")


@pytest.mark.parametrize(
    "order",
    [order for size in range(5) for order in itertools.permutations(CLIENT_FLIGHT, size)],
    ids="-".join,
)
def test_a_client_flight_in_any_order_and_with_anything_missing_does_what_an_oracle_says(order):
    """DTLS reorders, so what is complete succeeds whatever the order; what is not never does."""
    puppet = PuppetClient()
    puppet.hello()
    records = {
        "key exchange": puppet.key_exchange(),
        "change cipher spec": puppet.change_cipher_spec(),
        "finished": puppet.finished(),
        "data": puppet.data(READING),
    }
    for name in order:
        puppet.give(records[name])
    complete = {"key exchange", "change cipher spec", "finished"} <= set(order)
    assert len(puppet.rig.server) == complete
    assert puppet.rig.received == ([READING] if complete and "data" in order else [])
    assert puppet.rig.causes == []


SERVER_FLIGHT = ("change cipher spec", "finished", "data")


@pytest.mark.parametrize(
    "order",
    [order for size in range(4) for order in itertools.permutations(SERVER_FLIGHT, size)],
    ids="-".join,
)
def test_a_server_flight_in_any_order_and_with_anything_missing_does_what_an_oracle_says(order):
    puppet = PuppetServer()
    puppet.verify_request()
    puppet.answer_hello()
    records = {
        "change cipher spec": puppet.change_cipher_spec(),
        "finished": puppet.finished(),
        "data": puppet.data(READING),
    }
    for name in order:
        puppet.give(records[name])
    complete = {"change cipher spec", "finished"} <= set(order)
    assert (puppet.rig.connection.state is ConnectionState.CONNECTED) == complete
    assert puppet.rig.received == ([READING] if complete and "data" in order else [])
    assert puppet.rig.causes == []


def test_a_finished_put_together_across_the_key_change_is_refused():
    # CVE-2023-6937 wolfSSL
    puppet = PuppetClient()
    puppet.hello()
    puppet.give(puppet.key_exchange())
    body, seq = puppet.verify_data(), puppet.message_seq
    clear = raw.fragment(raw.FINISHED, body[:6], message_seq=seq, total=12)
    sealed = raw.fragment(raw.FINISHED, body[6:], message_seq=seq, offset=6, total=12)
    puppet.give(puppet.record(raw.HANDSHAKE, clear))
    puppet.give(puppet.change_cipher_spec())
    puppet.give(puppet.record(raw.HANDSHAKE, clear))
    puppet.give(puppet.record(raw.HANDSHAKE, sealed, epoch=1))
    assert len(puppet.rig.server) == 0
    puppet.give(puppet.record(raw.HANDSHAKE, raw.fragment(20, body[:6], message_seq=seq, total=12), epoch=1))
    assert len(puppet.rig.server) == 1


def test_a_finished_in_fragments_is_put_together_from_protected_records():
    puppet = PuppetServer()
    puppet.verify_request()
    puppet.answer_hello()
    body, seq = puppet.verify_data(), puppet.message_seq
    puppet.give(puppet.change_cipher_spec())
    for at in (8, 0, 4):
        piece = raw.fragment(raw.FINISHED, body[at : at + 4], message_seq=seq, offset=at, total=12)
        puppet.give(puppet.record(raw.HANDSHAKE, piece, epoch=1))
    assert puppet.rig.connection.state is ConnectionState.CONNECTED


# --- what is kept for later is bounded ----------------------------------------------------------------


@pytest.mark.parametrize(("records", "size"), [(0, 8192), (3, 8192), (256, 315), (8, 0)])
def test_records_that_come_early_are_kept_within_limits(records, size):
    limits = Limits(max_deferred_records=records, max_deferred_size=size)
    puppet = PuppetClient(ServerRig(ServerConfig(limits=limits)))
    puppet.hello()
    key_exchange = puppet.key_exchange()
    early = [puppet.data(bytes([number]) * 80) for number in range(10)]
    for record in early:
        puppet.give(record)
    kept = min(records, size // (80 + 24))
    discarded = puppet.rig.server.statistics.records_discarded
    assert discarded.get(DiscardReason.DEFERRED_RECORDS_LIMIT, 0) == 10 - kept
    puppet.give(key_exchange)
    puppet.read_finished(puppet.give(puppet.change_cipher_spec(), puppet.finished()))
    assert puppet.rig.received == [bytes([number]) * 80 for number in range(kept)]


def test_forged_early_records_that_fill_the_room_cost_one_repetition_only():
    puppet = PuppetClient()
    puppet.hello()
    for seq in range(20):
        puppet.give(raw.record(22, bytes(60), epoch=1, seq=seq + 50))
    flight = puppet.key_exchange(), puppet.change_cipher_spec()
    puppet.give(*flight)
    puppet.read_finished(puppet.give(puppet.finished()))
    assert len(puppet.rig.server) == 1


def test_a_finished_in_a_record_of_another_version_is_refused():
    # tinydtls#209: the version may not change within a handshake.
    puppet = PuppetClient()
    puppet.hello()
    puppet.give(puppet.key_exchange(), puppet.change_cipher_spec())
    assert puppet.keys is not None
    finished = raw.fragment(raw.FINISHED, puppet.verify_data(), message_seq=puppet.message_seq)
    puppet.give(puppet.keys.client.seal(raw.HANDSHAKE, finished, epoch=1, seq=0, version=raw.DTLS_1_0))
    assert len(puppet.rig.server) == 0


def test_a_key_exchange_in_a_record_of_dtls_1_0_is_dropped():
    puppet = PuppetClient()
    puppet.hello()
    encoded = raw.fragment(raw.CLIENT_KEY_EXCHANGE, raw.vector(IDENTITY, 2), message_seq=2)
    puppet.give(raw.record(raw.HANDSHAKE, encoded, seq=5, version=raw.DTLS_1_0))
    assert len(puppet.rig.events) == 1
    puppet.finish()
    assert len(puppet.rig.server) == 1


@pytest.mark.parametrize("kind", [raw.ALERT, raw.HANDSHAKE, raw.CHANGE_CIPHER_SPEC])
def test_a_record_of_another_version_is_dropped_once_the_version_is_negotiated(kind):
    puppet = PuppetClient().handshake()
    assert puppet.keys is not None
    for version in (raw.DTLS_1_0, raw.DTLS_1_2):
        puppet.give(raw.record(kind, b"\1\0", version=version, seq=60))
    sealed = puppet.keys.client.seal(raw.APPLICATION_DATA, b"x", epoch=1, seq=9, version=raw.DTLS_1_0)
    puppet.give(sealed)
    assert puppet.rig.received == []
    assert puppet.rig.causes == []


@pytest.mark.parametrize("role", ["client", "server"])
def test_data_between_two_halves_of_the_finished_waits_for_the_second(role):
    puppet: PuppetServer | PuppetClient
    if role == "client":
        puppet = PuppetServer()
        puppet.verify_request()
        puppet.answer_hello()
        puppet.give(puppet.change_cipher_spec())
    else:
        puppet = PuppetClient()
        puppet.hello()
        puppet.give(puppet.key_exchange(), puppet.change_cipher_spec())
    body, seq = puppet.verify_data(), puppet.message_seq
    halves = [
        raw.fragment(raw.FINISHED, body[at : at + 6], message_seq=seq, offset=at, total=12) for at in (0, 6)
    ]
    puppet.give(puppet.record(raw.HANDSHAKE, halves[0], epoch=1))
    puppet.give(puppet.data(READING))
    assert puppet.rig.received == []
    puppet.give(puppet.record(raw.HANDSHAKE, halves[1], epoch=1))
    assert puppet.rig.received == [READING]
