"""Who asks for connection IDs, what is answered, and what may not be said: RFC 9146 §3 and RFC 9853 §3."""

import pytest

from sansdtls import (
    AlertDescription,
    ClientConfig,
    ConfigError,
    ConnectionIdPolicy,
    ConnectionState,
    PeerIncompatible,
    ProtocolViolation,
    ReturnRoutability,
    ServerConfig,
)
from sansdtls.errors import DecodeError
from sansdtls.testing import Pair
from sansdtls.wire.extensions import decode_connection_id_untrusted, encode_connection_id
from tests.core import raw
from tests.core.ecdhe_puppets import psk_config, server_config
from tests.core.id_puppets import (
    CONNECTION_ID,
    PUPPETS_ID,
    RRC,
    IdClient,
    IdServer,
    connection_id_extension,
    offering,
)
from tests.core.puppet import IDENTITY, KEY, ClientRig, PuppetClient, PuppetServer, ServerRig
from tests.core.resuming import connect, new_fleet, session_of

NO_IDS = ServerConfig(connection_id=None)


def answered(puppet: PuppetClient) -> dict[int, bytes]:
    return dict(puppet.server_hello.extensions or ())


def failing(puppet: IdClient, **hello) -> list[tuple[int, int]]:
    """Both hellos; the alerts that came of them."""
    puppet.hello_options = hello
    puppet.get_cookie()
    puppet.give(puppet.message(raw.CLIENT_HELLO, puppet.hello_body()))
    puppet.wait(0)
    return puppet.alerts()


# --- offered and answered -------------------------------------------------------------------------------


def test_a_client_offers_nothing_unless_told_to():
    server = PuppetServer(ClientRig(ClientConfig(psk_identity=IDENTITY, psk_key=KEY)))
    assert {CONNECTION_ID, RRC}.isdisjoint(dict(server.client_hello.extensions or ()))


def test_a_server_answers_only_who_offers():
    puppet = PuppetClient().handshake()
    assert {CONNECTION_ID, RRC}.isdisjoint(answered(puppet))
    assert puppet.rig.connection.connection_id == puppet.rig.connection.peer_connection_id == b""


@pytest.mark.parametrize("length", [0, 1, 8, 20])
def test_what_is_offered_and_answered_is_as_long_as_configured(length):
    policy = ConnectionIdPolicy(length=length)
    server = IdServer(policy=policy)
    body = dict(server.client_hello.extensions or ())[CONNECTION_ID]
    assert (len(body), body[0]) == (length + 1, length)
    client = IdClient(ServerRig(ServerConfig(connection_id=policy))).handshake()
    body = answered(client)[CONNECTION_ID]
    assert (len(body), body[0]) == (length + 1, length)
    assert client.rig.connection.connection_id == body[1:]


def test_an_offer_that_is_not_answered_leaves_both_directions_without_ids():
    server = IdServer(own_id=None).handshake()
    connection = server.rig.connection
    assert server.peers_id
    assert connection.connection_id == connection.peer_connection_id == b""
    connection.send(b"data", now=0)
    (record,) = raw.records(server.rig.sent()[0])
    assert record.type == raw.APPLICATION_DATA
    client = IdClient(ServerRig(NO_IDS)).handshake()
    assert CONNECTION_ID not in answered(client)
    assert client.rig.connection.peer_connection_id == b""
    client.give(client.data(b"data"))
    assert client.rig.received == [b"data"]


def test_either_direction_may_be_without_an_id():
    # RFC 9146 §3: "If a zero-length CID has been negotiated then the RFC 6347 [...] MUST be used"
    for ours, theirs in ((0, 5), (5, 0), (0, 0)):
        pair = Pair(
            offering(ConnectionIdPolicy(length=theirs)),
            ServerConfig(connection_id=ConnectionIdPolicy(length=ours)),
        )
        pair.handshake()
        for end in (pair.client, pair.server_connection):
            end.send(b"data", now=pair.now)
        pair.run_for(0.1)
        for who, length in (("client", ours), ("server", theirs)):
            data = pair.network.sent_by(who)[-1].data
            assert data[0] == (raw.TLS12_CID if length else raw.APPLICATION_DATA)
        assert pair.server_received() == pair.client_end.received == [b"data"]


def test_ids_that_were_not_offered_and_are_answered_end_the_handshake():
    rig = ClientRig(ClientConfig(psk_identity=IDENTITY, psk_key=KEY))
    server = IdServer(rig)
    server.verify_request()
    server.give(*server.flight_4())
    server.wait(0)
    assert server.alerts() == [(2, AlertDescription.UNSUPPORTED_EXTENSION)]
    (cause,) = rig.causes
    assert isinstance(cause, ProtocolViolation)


def test_the_second_hello_asks_for_the_same_id():
    server = IdServer()
    first = server.client_hello
    server.verify_request()
    second = server.client_hello
    assert second._replace(cookie=b"") == first
    assert dict(second.extensions or ())[CONNECTION_ID][1:] == server.peers_id


@pytest.mark.parametrize("changed", [None, b"", b"puppeT", b"puppet!"])
def test_a_cookie_covers_the_id_that_was_asked_for(changed):
    puppet = IdClient()
    puppet.get_cookie()
    puppet.own_id = changed
    answers = puppet.give(puppet.message(raw.CLIENT_HELLO, puppet.hello_body()))
    ((kind, _),) = raw.plaintext_messages(answers).values()
    assert kind == raw.HELLO_VERIFY_REQUEST
    assert puppet.rig.server.statistics.cookies_bad == 1
    puppet.own_id = PUPPETS_ID
    puppet.read_server_flight(puppet.give(puppet.message(raw.CLIENT_HELLO, puppet.hello_body())))
    assert puppet.with_ids


def test_no_id_is_taken_before_the_cookie_has_come_back():
    asked: list[int] = []

    def generate(entropy):
        asked.append(8)
        return entropy(8)

    rig = ServerRig(ServerConfig(connection_id=ConnectionIdPolicy(generator=generate)))
    puppet = IdClient(rig)
    puppet.get_cookie()
    assert asked == []
    puppet.read_server_flight(puppet.give(puppet.message(raw.CLIENT_HELLO, puppet.hello_body())))
    assert asked == [8]


# --- return routability check ---------------------------------------------------------------------------

OFF = ConnectionIdPolicy(return_routability=ReturnRoutability.OFF)


def test_the_path_check_is_offered_and_answered_unless_switched_off():
    for policy, offered in ((ConnectionIdPolicy(), True), (OFF, False)):
        server = IdServer(policy=policy)
        assert dict(server.client_hello.extensions or ()).get(RRC) == (b"" if offered else None)
        client = IdClient(ServerRig(ServerConfig(connection_id=policy)), more_extensions=[(RRC, b"")])
        client.handshake()
        assert answered(client).get(RRC) == (b"" if offered else None)
        negotiated = client.rig.connection.negotiated
        assert negotiated is not None
        assert negotiated.return_routability == offered


def test_the_path_check_is_agreed_on_only_by_both():
    for ours in (ConnectionIdPolicy(), OFF, None):
        for theirs in (ConnectionIdPolicy(), OFF, None):
            pair = Pair(
                ClientConfig(psk_identity=IDENTITY, psk_key=KEY, connection_id=theirs),
                ServerConfig(connection_id=ours),
            )
            pair.handshake()
            expected = ours is theirs is not None and ours is not OFF
            if ours is not None and theirs is not None:
                expected = OFF not in (ours, theirs)
            for end in (pair.client, pair.server_connection):
                assert end.negotiated is not None
                assert end.negotiated.return_routability == expected


def test_a_path_check_offered_without_ids_is_passed_over():
    client = IdClient(own_id=None, more_extensions=[(RRC, b"")]).handshake()
    assert {CONNECTION_ID, RRC}.isdisjoint(answered(client))
    client = IdClient(ServerRig(NO_IDS), more_extensions=[(RRC, b"")]).handshake()
    assert {CONNECTION_ID, RRC}.isdisjoint(answered(client))


def test_a_path_check_answered_without_ids_ends_the_handshake():
    server = IdServer(own_id=None, more_extensions=[(RRC, b"")])
    server.verify_request()
    server.give(*server.flight_4())
    server.wait(0)
    assert server.alerts() == [(2, AlertDescription.ILLEGAL_PARAMETER)]


def test_a_path_check_that_was_not_offered_and_is_answered_ends_the_handshake():
    server = IdServer(policy=OFF, more_extensions=[(RRC, b"")])
    server.verify_request()
    server.give(*server.flight_4())
    server.wait(0)
    assert server.alerts() == [(2, AlertDescription.UNSUPPORTED_EXTENSION)]


# --- malformed ------------------------------------------------------------------------------------------

MALFORMED = [b"", b"\x01", b"\x00\x00", b"\x02a", b"\x01ab", b"\xff" + bytes(254), bytes(257)]


@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: f"{len(body)} {body[:3].hex()}")
def test_a_malformed_id_is_a_decode_error(body):
    with pytest.raises(DecodeError):
        decode_connection_id_untrusted(body)
    client = IdClient(own_id=None, more_extensions=[(CONNECTION_ID, body)])
    assert failing(client) == [(2, AlertDescription.DECODE_ERROR)]
    server = IdServer(own_id=None, more_extensions=[(CONNECTION_ID, body)])
    server.verify_request()
    server.give(*server.flight_4())
    server.wait(0)
    assert server.alerts() == [(2, AlertDescription.DECODE_ERROR)]


def test_a_path_check_with_a_body_is_a_decode_error():
    client = IdClient(more_extensions=[(RRC, b"\x00")])
    assert failing(client) == [(2, AlertDescription.DECODE_ERROR)]
    server = IdServer(more_extensions=[(RRC, b"\x00")])
    server.verify_request()
    server.give(*server.flight_4())
    server.wait(0)
    assert server.alerts() == [(2, AlertDescription.DECODE_ERROR)]


def test_an_id_asked_for_twice_ends_the_handshake():
    client = IdClient(more_extensions=[connection_id_extension(b"another")])
    ((level, _),) = failing(client)
    assert level == 2
    assert client.rig.server.statistics.half_open == 0


@pytest.mark.parametrize("length", [0, 1, 20, 255])
def test_an_id_encodes_to_what_the_second_implementation_encodes(length):
    connection_id = bytes(range(length))
    kind, body = connection_id_extension(connection_id)
    assert encode_connection_id(connection_id) == body
    assert decode_connection_id_untrusted(body) == connection_id
    assert kind == CONNECTION_ID


def test_a_server_whose_id_would_fill_our_datagrams_is_turned_down():
    for length, turned_down in ((128, False), (129, True)):
        server = IdServer(ClientRig(offering(mtu=256)), own_id=bytes(length))
        server.verify_request()
        answers = server.give(*server.flight_4())
        if not turned_down:
            server.read_flight_5(answers)
            continue
        server.wait(0)
        assert server.alerts() == [(2, AlertDescription.HANDSHAKE_FAILURE)]
        (cause,) = server.rig.causes
        assert isinstance(cause, PeerIncompatible)


# --- resumption -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["ticket", "session ID"])
def test_resumption_agrees_on_ids_afresh(way):
    # RFC 9146 §3: "When a DTLS session is resumed or renegotiated, the "connection_id" extension is negotiated afresh."
    config = psk_config(request_ticket=way == "ticket")
    with_ids = {"connection_id": ConnectionIdPolicy(length=6)}
    fleet = new_fleet(connection_id=ConnectionIdPolicy(length=7))
    client = connect(fleet, psk_config(request_ticket=way == "ticket", **with_ids))
    seen = []
    for more, length in ((with_ids, 7), ({}, 0), (with_ids, 7)):
        session = session_of(client)
        client.connection.close(now=fleet.now)
        fleet.run_for(1)
        client = connect(fleet, psk_config(request_ticket=way == "ticket", session=session, **more))
        (server,) = fleet.server.connections
        assert server.negotiated is not None
        assert server.negotiated.resumed
        assert len(server.connection_id) == length
        assert server.peer_connection_id == client.connection.connection_id
        assert server.connection_id == client.connection.peer_connection_id
        assert server.negotiated.return_routability == bool(more)
        seen.append((server.connection_id, server.peer_connection_id))
        client.connection.send(b"resumed", now=fleet.now)
        fleet.run_for(0.1)
    assert fleet.server_received() == [b"resumed"] * 3
    assert seen[0] != seen[2]
    assert seen[1] == (b"", b"")
    assert config.connection_id is None


def test_a_session_made_with_ids_resumes_at_a_server_that_has_them_no_more():
    fleet = new_fleet()
    config = psk_config(connection_id=ConnectionIdPolicy())
    client = connect(fleet, config)
    session = session_of(client)
    fleet.server.replace_config(server_config(connection_id=None), now=fleet.now)
    again = connect(fleet, psk_config(connection_id=ConnectionIdPolicy(), session=session), path="elsewhere")
    assert again.connection.state is ConnectionState.CONNECTED
    assert again.connection.negotiated is not None
    assert again.connection.negotiated.resumed
    assert again.connection.connection_id == again.connection.peer_connection_id == b""


# --- policy ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 21}, "length: 21 is not within 0 to 20 bytes"),
        ({"length": -1}, "length"),
        ({"length": 2.5}, "length"),
        ({"length": None}, "length"),
        ({"length": 4, "prefix": b"four"}, "prefix: 4 bytes leave no random byte of 4"),
        ({"length": 0, "prefix": b"x"}, "prefix: 1 bytes leave no random byte of 0"),
        ({"length": 20, "prefix": bytes(20)}, "prefix"),
        ({"prefix": "text"}, "prefix"),
        ({"padding": 0}, "padding"),
        ({"padding": 1025}, "padding"),
        ({"padding": 1.0}, "padding"),
        ({"return_routability": "off"}, "return_routability"),
        ({"path_policy": "move"}, "path_policy"),
        ({"probe_timeout": 0}, "probe_timeout"),
        ({"max_probes": 0}, "max_probes"),
    ],
    ids=str,
)
def test_a_policy_that_makes_no_sense_is_refused_by_name(options, message):
    with pytest.raises(ConfigError, match=rf"ConnectionIdPolicy\.{message}"):
        ConnectionIdPolicy(**options)


def test_ids_begin_with_the_prefix_and_are_random_behind_it():
    policy = ConnectionIdPolicy(length=8, prefix=b"node7")
    rig = ServerRig(ServerConfig(connection_id=policy))
    ids = {
        IdClient(rig, path=f"peer{number}").handshake().rig.connection.connection_id for number in range(30)
    }
    assert len(ids) == 30
    assert all(len(each) == 8 and each.startswith(b"node7") for each in ids)


def test_a_generator_of_ones_own_makes_the_ids():
    numbers = iter(range(1000))
    policy = ConnectionIdPolicy(
        length=4, generator=lambda entropy: next(numbers).to_bytes(2, "big") + entropy(2)
    )
    rig = ServerRig(ServerConfig(connection_id=policy))
    for number in range(3):
        puppet = IdClient(rig, path=f"peer{number}").handshake()
        assert puppet.peers_id is not None
        assert puppet.peers_id[:2] == number.to_bytes(2, "big")
    server = IdServer(policy=ConnectionIdPolicy(length=3, generator=lambda _: b"abc"))
    assert server.peers_id == b"abc"


@pytest.mark.parametrize("made", [b"", b"seven..", b"nine.....", None, "8 chars."])
def test_a_generator_that_makes_something_else_is_told_so(made):
    policy = ConnectionIdPolicy(generator=lambda _: made)
    with pytest.raises(ConfigError, match=r"ConnectionIdPolicy\.generator: made .* where 8 bytes are needed"):
        policy.generate(bytes)
    with pytest.raises(ConfigError, match="generator"):
        ClientRig(offering(policy))
