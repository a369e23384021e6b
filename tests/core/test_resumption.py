"""Sessions resumed by ticket and by session ID: when, under which conditions, and never otherwise."""

import attrs
import pytest

from sansdtls import (
    AlertDescription,
    AuthenticationFailed,
    AuthenticationProblem,
    CertificateType,
    CipherSuite,
    ConnectionState,
    PeerCertificateReceived,
    PeerClose,
    ResumptionPolicy,
    SecretDerived,
    Session,
)
from sansdtls.testing import Network
from tests.core import raw
from tests.core.credentials import shown
from tests.core.ecdhe_puppets import (
    EcdheClient,
    EcdheServer,
    client_config,
    psk_config,
    server_config,
)
from tests.core.puppet import ClientRig, ServerRig
from tests.core.resuming import (
    WAYS,
    connect,
    each_kind,
    each_way,
    made,
    new_fleet,
    questions,
    resumed,
    session_of,
)

# --- yes ------------------------------------------------------------------------------------------------


@each_kind
@each_way
def test_a_session_of_each_kind_is_resumed_in_each_way(kind, way):
    fleet = new_fleet()
    config = made(fleet, kind, way)
    peer_before = next(fleet.server.connections).peer
    for number in range(3):  # as often as the client likes
        client = connect(fleet, config, path=f"again {number}")
        assert resumed(client)
        server = fleet.server_connections(client.path)[-1]
        assert server.negotiated is not None
        assert server.negotiated.resumed
        assert server.negotiated.cipher_suite is session_of(client).cipher_suite
        assert server.peer == peer_before
        assert client.connection.peer is not None
        assert session_of(client) == config.session
        client.connection.send(b"21.5", now=fleet.now)
        server.send(b"thanks", now=fleet.now)
        fleet.run_for(1)
        assert fleet.server_received(client.path) == [b"21.5"]
        assert client.received == [b"thanks"]
        config = attrs.evolve(config, session=Session.from_bytes(session_of(client).to_bytes()))


@pytest.mark.parametrize("suite", CipherSuite)
def test_a_session_of_each_suite_is_resumed(suite):
    fleet = new_fleet()
    base = psk_config() if "PSK" in suite.name else client_config()
    config = attrs.evolve(base, cipher_suites=[suite], extended_master_secret="required")
    config = attrs.evolve(config, session=session_of(connect(fleet, config)))
    client = connect(fleet, config)
    assert resumed(client)
    client.connection.send(b"21.5", now=fleet.now)
    fleet.run_for(1)
    assert fleet.server_received() == [b"21.5"]


@each_kind
@each_way
def test_the_caller_is_asked_whether_the_credential_is_still_good(kind, way):
    fleet = new_fleet()
    config = made(fleet, kind, way)
    before = questions(fleet)
    client = connect(fleet, config)
    asked = questions(fleet)[len(before) :]
    assert [event.resumption for event in asked] == ([] if kind == "anonymous" else [True])
    for first, again in zip(before, asked, strict=True):
        assert type(first) is type(again)
        assert not first.resumption
        for name in ("identity", "chain", "spki", "server_name"):
            assert getattr(first, name, None) == getattr(again, name, None)
    # The client has seen its server prove itself when the session was made.
    assert not [event for event in client.events if isinstance(event, PeerCertificateReceived)]


@each_way
def test_an_abbreviated_handshake_has_fewer_flights_and_no_key_exchange(way):
    fleet = new_fleet(Network(delay=0.1))
    config = made(fleet, "certificate", way)
    full_took = fleet.now
    fleet.run_for(10)
    start, before = fleet.now, len(fleet.network.log)
    client = fleet.connect(config)
    fleet.run_until(lambda: client.connection.state is ConnectionState.CONNECTED)
    assert fleet.now - start == pytest.approx(
        0.4
    )  # the client may send data after two round trips, not three
    assert full_took >= 0.6
    sent = [carried.datagram.data for carried in fleet.network.log[before:]]
    kinds = [found.type for found in raw.handshake_fragments(sent)]
    assert kinds == [raw.CLIENT_HELLO, raw.HELLO_VERIFY_REQUEST, raw.CLIENT_HELLO, raw.SERVER_HELLO]


def test_each_resumption_has_keys_of_its_own():
    fleet = new_fleet()
    config = made(fleet, log_secrets=True)
    exported = set()
    for number in range(3):
        client = connect(fleet, config, path=f"again {number}")
        server = fleet.server_connections(client.path)[-1]
        (event,) = [event for event in client.events if isinstance(event, SecretDerived)]
        assert config.session is not None
        assert event.secret == config.session.master_secret
        key = client.connection.export_keying_material("EXPORTER_test", 32)
        assert key == server.export_keying_material("EXPORTER_test", 32)
        exported.add(key)
    assert len(exported) == 3


@pytest.mark.parametrize("way", WAYS)
def test_the_server_completes_with_an_independent_client(way):
    rig = ServerRig(server_config())
    tickets = ((35, b""),) if way == "ticket" else ()
    first = EcdheClient(rig, more_extensions=tickets).handshake()
    assert first.keys is not None
    again = EcdheClient(rig, random=b"2" * 32)
    if way == "ticket":
        answers = again.offer(ticket=first.ticket, session_id=b"any")
    else:
        answers = again.offer(session_id=first.server_hello.session_id)
    again.resume(answers, first.keys.master_secret)
    expected = b"any" if way == "ticket" else first.server_hello.session_id
    assert again.server_hello.session_id == expected
    again.give(again.data(b"21.5"))
    assert rig.received == [b"21.5"]
    assert rig.connection.negotiated is not None
    assert rig.connection.negotiated.resumed
    assert rig.causes == [PeerClose(replaced=True)]


SECRET = bytes(range(48))
A_SESSION = Session(
    cipher_suite=CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    master_secret=SECRET,
    certificate_chain=shown("p256").chain,
    ticket=b"the ticket",
)


@pytest.mark.parametrize(
    "new", [None, b"another ticket", b""], ids=["no ticket", "new ticket", "empty ticket"]
)
def test_the_client_completes_with_an_independent_server(new):
    server = EcdheServer(ClientRig(client_config(session=A_SESSION)))
    assert dict(server.client_hello.extensions or ())[35] == b"the ticket"
    assert len(server.client_hello.session_id) == 32
    server.read_finished(server.resume(SECRET, ticket=new))
    connection = server.rig.connection
    assert connection.state is ConnectionState.CONNECTED
    assert connection.negotiated is not None
    assert connection.negotiated.resumed
    assert connection.peer is not None
    assert connection.peer.certificate_chain == shown("p256").chain
    assert connection.session == attrs.evolve(A_SESSION, ticket=new or b"the ticket")
    server.give(server.data(b"on"))
    assert server.rig.received == [b"on"]


@pytest.mark.parametrize(
    ("hello", "alert"),
    [
        ({"suite": raw.ECDSA_CHACHA20}, AlertDescription.ILLEGAL_PARAMETER),
        ({"extensions": (raw.RENEGOTIATION_INFO,)}, AlertDescription.HANDSHAKE_FAILURE),
    ],
    ids=["another suite", "without extended_master_secret"],
)
def test_the_client_refuses_a_resumption_that_differs_from_its_session(hello, alert):
    # RFC 5246 §7.4.1.3, RFC 7627 §5.3
    server = EcdheServer(ClientRig(client_config(session=A_SESSION)))
    server.resume(SECRET, **hello)
    assert server.alerts() == [(2, alert)]


def test_a_server_that_does_not_know_the_master_secret_is_refused():
    # Anybody who sees the hello can echo its session ID.
    server = EcdheServer(ClientRig(client_config(session=A_SESSION)))
    for _ in range(3):
        server.resume(bytes(48))
        server.wait(5)
        server.message_seq = 0
    assert server.rig.connection.state is not ConnectionState.CONNECTED
    server.wait(200)
    assert len(server.rig.causes) == 1


def test_a_client_that_does_not_know_the_master_secret_is_refused():
    # Anybody who sees a hello can send its ticket.
    rig = ServerRig(server_config())
    first = EcdheClient(rig, more_extensions=((35, b""),)).handshake()
    thief = EcdheClient(rig, random=b"2" * 32, path="peer")
    answers = thief.offer(ticket=first.ticket, session_id=b"any")
    EcdheClient.__mro__[2].read_server_flight(thief, answers)
    thief.derive_keys = lambda: None  # type: ignore[method-assign]
    from tests.core.key_schedule import Keys

    thief.keys = Keys(thief.suite, bytes(48), thief.random, thief.peer_random)
    finished = raw.fragment(raw.FINISHED, bytes(12), message_seq=thief.message_seq)
    for _ in range(3):
        thief.give(thief.change_cipher_spec(), thief.record(raw.HANDSHAKE, finished, epoch=1))
        thief.wait(5)
    assert rig.causes == [AuthenticationFailed(AuthenticationProblem.BAD_FINISHED)]
    first.give(first.data(b"still here"))
    assert rig.received == [b"still here"]


# --- extended master secret -----------------------------------------------------------------------------


@each_way
def test_without_extended_master_secret_the_server_gives_nothing_to_resume(way):
    # RFC 7627 §5.4
    extensions = ((35, b""),) if way == "ticket" else ()
    client = EcdheClient(more_extensions=extensions, ems=False).handshake()
    assert client.server_hello.session_id == b""
    assert 35 not in dict(client.server_hello.extensions or ())


@pytest.mark.parametrize("offers", [b"", b"i" * 32])
def test_without_extended_master_secret_the_client_keeps_nothing_to_resume(offers):
    server = EcdheServer(ems=False)
    server.give(*server.flight_4(session_id=offers))
    server.read_flight_5(server.answers[-1:])
    server.finish()
    assert server.rig.connection.state is ConnectionState.CONNECTED
    assert server.rig.connection.session is None


@each_way
def test_a_session_is_not_resumed_by_a_hello_without_extended_master_secret(way):
    # RFC 7627 §5.3
    rig = ServerRig(server_config())
    first = EcdheClient(rig, more_extensions=((35, b""),) if way == "ticket" else ()).handshake()
    again = EcdheClient(rig, random=b"2" * 32, ems=False)
    offer = (
        {"ticket": first.ticket, "session_id": b"x"}
        if way == "ticket"
        else {"session_id": first.server_hello.session_id}
    )
    answers = again.offer(**offer)
    again.read_server_flight(answers)
    again.finish()
    assert rig.connection.negotiated is not None
    assert not rig.connection.negotiated.resumed


# --- what the client offers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"psk_identity": b"another"},
        {"cipher_suites": [CipherSuite.TLS_PSK_WITH_AES_128_CCM_8]},
        {"server_name": "another.example"},
    ],
    ids=lambda change: next(iter(change)),
)
@each_way
def test_a_client_offers_a_session_only_with_the_configuration_it_was_made_with(change, way):
    config = attrs.evolve(made(new_fleet(), "ECDHE_PSK", way), **change)
    hello = EcdheServer(ClientRig(config), suite=raw.ECDHE_PSK_AES_128_GCM).client_hello
    assert hello.session_id == b""
    assert not dict(hello.extensions or ()).get(35)


@pytest.mark.parametrize("kind", ["certificate", "raw public key"])
@each_way
def test_a_client_does_not_offer_a_session_with_a_server_that_proved_itself_in_a_way_no_longer_taken(
    kind, way
):
    config = made(new_fleet(), kind, way)
    (before,) = config.server_certificate_types
    (other,) = set(CertificateType) - {before}
    for types, offered in (((before, other), True), ((other,), False)):
        changed = attrs.evolve(config, server_certificate_types=types)
        hello = EcdheServer(ClientRig(changed)).client_hello
        assert (hello.session_id != b"") is offered


def test_a_client_that_wants_no_ticket_does_not_ask_for_one():
    hello = EcdheServer(ClientRig(client_config(request_ticket=False))).client_hello
    assert 35 not in dict(hello.extensions or ())


def test_a_ticket_that_was_not_promised_is_refused():
    server = EcdheServer()
    server.verify_request()
    server.answer_hello()
    server.give(server.message(raw.NEW_SESSION_TICKET, bytes(6)))
    assert server.alerts() == [(2, AlertDescription.UNEXPECTED_MESSAGE)]


@pytest.mark.parametrize(
    ("policy", "asks", "ticket", "session_id"),
    [
        (ResumptionPolicy(), True, True, False),
        (ResumptionPolicy(), False, False, True),
        (ResumptionPolicy(tickets=False), True, False, True),
        (ResumptionPolicy(tickets=False, cache_size=0), True, False, False),
        (ResumptionPolicy(cache_size=0), False, False, False),
        (None, True, False, False),
    ],
)
def test_the_servers_policy_says_what_clients_get(policy, asks, ticket, session_id):
    fleet = new_fleet(resumption=policy)
    session = connect(fleet, psk_config(request_ticket=asks)).connection.session
    if session is None:
        assert not ticket
        assert not session_id
    else:
        assert (bool(session.ticket), bool(session.session_id)) == (ticket, session_id)


def test_a_resumption_on_a_live_path_takes_the_place_of_the_old_association():
    fleet = new_fleet()
    config = made(fleet)
    assert resumed(connect(fleet, config))
    assert fleet.server_causes() == [PeerClose(replaced=True)]
    assert len(fleet.server) == 1
