"""What the hellos agree on: server name, application protocol, record sizes; and what may not be said."""

import pytest

from sansdtls import (
    AlertDescription,
    ConfigError,
    ConnectionState,
    NamedGroup,
    PeerIncompatible,
    SignatureScheme,
)
from sansdtls.testing import Pair
from tests.core import raw
from tests.core.credentials import shown
from tests.core.ecdhe_puppets import (
    EcdheClient,
    EcdheServer,
    asking_config,
    client_config,
    psk_config,
    server_config,
)
from tests.core.puppet import ClientRig, PuppetClient, ServerRig

RECORD_SIZE_LIMIT, MAX_FRAGMENT_LENGTH, SERVER_NAME, ALPN, TICKET = 28, 1, 0, 16, 35


def first_certificate(pair: Pair) -> bytes:
    assert pair.client.peer is not None
    assert pair.client.peer.certificate_chain is not None
    return pair.client.peer.certificate_chain[0]


def failing(client: EcdheClient) -> list[tuple[int, int]]:
    """Both hellos; the alerts that came of them."""
    client.get_cookie()
    client.give(client.message(raw.CLIENT_HELLO, client.hello_body()))
    client.wait(0)
    return client.alerts()


# --- server name ----------------------------------------------------------------------------------------

GENERAL, NAMED, OTHER = (shown(f"p256 {name}") for name in ("general", "named", "other"))
HOSTS = (
    OTHER.certificate("other.example"),
    GENERAL.certificate(),
    NAMED.certificate("host.example", "alias.example"),
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, GENERAL),
        ("host.example", NAMED),
        ("HOST.Example", NAMED),
        ("alias.example", NAMED),
        ("other.example", OTHER),
        ("nobody.example", GENERAL),
        ("example", GENERAL),
        ("xhost.example", GENERAL),
    ],
)
def test_the_server_name_chooses_the_credential(name, expected):
    pair = Pair(client_config(server_name=name), server_config(credentials=HOSTS))
    pair.handshake()
    assert first_certificate(pair) == expected.chain[0]
    negotiated = pair.server_connection.negotiated
    assert negotiated is not None
    assert negotiated.server_name == (None if name is None else name.lower())


@pytest.mark.parametrize("name", ["nobody.example", None])
def test_a_credential_for_certain_names_is_shown_under_those_names_only(name):
    credentials = (NAMED.certificate("host.example"), OTHER.certificate("other.example"))
    pair = Pair(client_config(server_name=name), server_config(credentials=credentials))
    pair.run_for(3)
    assert pair.client.state is ConnectionState.CLOSED
    assert [type(cause) for cause in pair.server_causes()] == [PeerIncompatible]
    sent = raw.handshake_fragments([each.data for each in pair.network.sent_by("server")])
    assert [found.type for found in sent] == [raw.HELLO_VERIFY_REQUEST]


@pytest.mark.parametrize(("name", "known"), [(b"host.example", True), (b"nobody.example", False)])
def test_the_server_says_whether_it_knows_the_name(name, known):
    rig = ServerRig(server_config(credentials=HOSTS))
    client = EcdheClient(rig, more_extensions=(raw.server_name(name),)).handshake()
    answered = dict(client.server_hello.extensions or ())
    assert answered.get(SERVER_NAME) == (b"" if known else None)


def test_the_name_chooses_among_credentials_that_the_client_can_verify():
    credentials = (shown("rsa").certificate("host.example"), NAMED.certificate())
    pair = Pair(
        client_config(server_name="host.example", cipher_suites=[raw.ECDSA_AES_128_GCM]),
        server_config(credentials=credentials),
    )
    pair.handshake()
    assert first_certificate(pair) == NAMED.chain[0]


# --- what the client can verify -------------------------------------------------------------------------


def test_an_ecdsa_certificate_goes_to_clients_that_have_its_curve_only():
    # RFC 8422 §5.3
    credentials = (shown("p384").certificate(), shown("p256").certificate())
    groups = (NamedGroup.X25519, NamedGroup.SECP256R1)
    pair = Pair(client_config(groups=groups), server_config(credentials=credentials))
    pair.handshake()
    assert first_certificate(pair) == shown("p256").chain[0]


def test_the_server_signs_with_a_scheme_that_the_client_offered():
    credentials = (shown("p256").certificate(), shown("ed25519").certificate())
    schemes = (SignatureScheme.ED25519, SignatureScheme.RSA_PKCS1_SHA256)
    pair = Pair(client_config(signature_schemes=schemes), server_config(credentials=credentials))
    pair.handshake()
    assert first_certificate(pair) == shown("ed25519").chain[0]


@pytest.mark.parametrize(
    "config",
    [
        {"groups": (NamedGroup.SECP384R1,)},
        {"signature_schemes": (SignatureScheme.RSA_PSS_RSAE_SHA256,)},
        {"cipher_suites": [raw.RSA_AES_128_GCM]},
    ],
    ids=["group", "signature scheme", "suite"],
)
def test_with_nothing_in_common_the_handshake_fails_at_once(config):
    server = server_config(credentials=(shown("p256").certificate(),), groups=(NamedGroup.X25519,))
    pair = Pair(client_config(**config), server)
    pair.run_for(3)
    (cause,) = pair.server_causes()
    assert isinstance(cause, PeerIncompatible)
    assert cause.description is AlertDescription.HANDSHAKE_FAILURE
    assert pair.client.state is ConnectionState.CLOSED


# --- application protocol -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "server", "chosen"),
    [
        ((), (), None),
        ((b"coap",), (), None),
        ((), (b"coap",), None),
        ((b"coap",), (b"coap",), b"coap"),
        ((b"a", b"b"), (b"b", b"a"), b"b"),
        ((b"a", b"b"), (b"c", b"b"), b"b"),
        ((b"n" * 255, b"\0"), (b"\0",), b"\0"),
    ],
)
def test_the_servers_first_protocol_that_the_client_has_is_chosen(client, server, chosen):
    pair = Pair(psk_config(alpn_protocols=client), server_config(alpn_protocols=server))
    pair.handshake()
    for end in (pair.client, pair.server_connection):
        assert end.negotiated is not None
        assert end.negotiated.alpn_protocol == chosen


def test_without_a_protocol_in_common_the_client_is_told_so():
    # RFC 7301 §3.2
    rig = ServerRig(server_config(alpn_protocols=(b"coap",)))
    client = EcdheClient(rig, more_extensions=(raw.alpn(b"mqtt", b"coapx", b"COAP"),))
    assert failing(client) == [(2, AlertDescription.NO_APPLICATION_PROTOCOL)]
    assert isinstance(rig.causes[0], PeerIncompatible)


@pytest.mark.parametrize("answer", [raw.alpn(b"mqtt"), raw.alpn(b"coap", b"coap2")], ids=["other", "two"])
def test_a_protocol_that_was_not_offered_is_refused(answer):
    rig = ClientRig(client_config(alpn_protocols=(b"coap", b"coap2")))
    server = EcdheServer(rig, more_extensions=(answer,))
    server.give(*server.flight_4())
    assert server.alerts() == [(2, AlertDescription.ILLEGAL_PARAMETER)]


# --- extensions in general ------------------------------------------------------------------------------

ANSWERABLE = {
    "server_name": (SERVER_NAME, b""),
    "max_fragment_length": (MAX_FRAGMENT_LENGTH, b"\x01"),
    "ALPN": raw.alpn(b"coap"),
    "client_certificate_type": (19, b"\x00"),
    "server_certificate_type": (20, b"\x00"),
    "record_size_limit": (RECORD_SIZE_LIMIT, b"\x02\x00"),
    "SessionTicket": (TICKET, b""),
    "unknown": (0x0BAD, b"x"),
}


@pytest.mark.parametrize("name", ANSWERABLE)
def test_an_extension_that_was_not_requested_is_refused(name):
    # RFC 5246 §7.4.1.4
    rig = ClientRig(client_config(request_ticket=False))
    server = EcdheServer(rig, more_extensions=(ANSWERABLE[name],))
    server.give(*server.flight_4())
    assert server.alerts() == [(2, AlertDescription.UNSUPPORTED_EXTENSION)]


GENERAL_EXTENSIONS = {23, 0xFF01, TICKET}
ECDHE_EXTENSIONS = GENERAL_EXTENSIONS | {10, 11}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (psk_config(cipher_suites=[raw.AES_128_GCM]), GENERAL_EXTENSIONS),
        (psk_config(cipher_suites=[raw.ECDHE_PSK_AES_128_GCM]), ECDHE_EXTENSIONS),
        (client_config(), ECDHE_EXTENSIONS | {13}),
        (client_config(server_name="host", alpn_protocols=(b"coap",)), ECDHE_EXTENSIONS | {13, 0, 16}),
        (
            client_config(record_size_limit=64, max_fragment_length=512, request_ticket=False),
            ECDHE_EXTENSIONS - {TICKET} | {13, 1, 28},
        ),
    ],
)
def test_a_client_sends_the_extensions_that_its_suites_and_settings_need(config, expected):
    hello = EcdheServer(ClientRig(config)).client_hello
    kinds = [kind for kind, _ in hello.extensions or ()]
    assert set(kinds) == expected
    assert len(kinds) == len(expected)


def test_the_server_answers_exactly_what_it_takes_up_of_what_was_offered():
    offered = (raw.server_name(b"nobody"), raw.alpn(b"coap"), (0x0BAD, b"x"), (TICKET, b""))
    client = EcdheClient(ServerRig(server_config(resumption=None)), more_extensions=offered).handshake()
    answered = client.server_hello.extensions
    assert answered == (raw.EMS, raw.RENEGOTIATION_INFO, raw.POINT_FORMATS)


OFFERS = {
    "server_name": raw.server_name(b"host"),
    "max_fragment_length": (MAX_FRAGMENT_LENGTH, b"\x01"),
    "supported_groups": raw.supported_groups(raw.X25519),
    "ec_point_formats": raw.POINT_FORMATS,
    "signature_algorithms": raw.signature_algorithms(0x0403),
    "ALPN": raw.alpn(b"coap"),
    "client_certificate_type": (19, b"\x01\x00"),
    "server_certificate_type": (20, b"\x01\x00"),
    "record_size_limit": (RECORD_SIZE_LIMIT, b"\x02\x00"),
    "SessionTicket": (TICKET, b""),
    "unknown": (0x0BAD, b"x"),
}


@pytest.mark.parametrize("name", OFFERS)
def test_an_extension_sent_twice_is_refused(name):
    client = EcdheClient(groups=(raw.X25519,))
    rest = tuple(each for each in client_extensions(client) if each[0] != OFFERS[name][0])
    client.hello_options = {"extensions": (OFFERS[name], *rest, OFFERS[name])}
    body = PuppetClient.hello_body(client)
    client.give(client.message(raw.CLIENT_HELLO, body, in_transcript=False))
    client.cookie = raw.parse_cookie(next(iter(raw.plaintext_messages(client.answers).values()))[1])
    client.give(client.message(raw.CLIENT_HELLO, PuppetClient.hello_body(client)))
    assert client.alerts() == [(2, AlertDescription.ILLEGAL_PARAMETER)]
    server = EcdheServer(more_extensions=((0x0BAD, b""), (0x0BAD, b"")))
    server.give(*server.flight_4())
    assert server.alerts()[0][0] == 2


def client_extensions(client: EcdheClient) -> tuple[tuple[int, bytes], ...]:
    return raw.parse_client_hello(client.hello_body()).extensions or ()


MALFORMED = {
    "server_name: a list that is too long": ((SERVER_NAME, b"\0\7\0\0\1h"), AlertDescription.DECODE_ERROR),
    "server_name: two of one type": (
        (SERVER_NAME, raw.vector(b"\0\0\1a\0\0\1b", 2)),
        AlertDescription.ILLEGAL_PARAMETER,
    ),
    "server_name: not printable": (raw.server_name(b"a\nb"), AlertDescription.ILLEGAL_PARAMETER),
    "max_fragment_length: 5": ((MAX_FRAGMENT_LENGTH, b"\5"), AlertDescription.ILLEGAL_PARAMETER),
    "supported_groups: odd": ((10, b"\0\3\0\x17\0"), AlertDescription.DECODE_ERROR),
    "supported_groups: none": ((10, b"\0\0"), AlertDescription.DECODE_ERROR),
    "ec_point_formats: without uncompressed": ((11, b"\1\1"), AlertDescription.ILLEGAL_PARAMETER),
    "signature_algorithms: none": ((13, b"\0\0"), AlertDescription.DECODE_ERROR),
    "ALPN: an empty name": ((ALPN, b"\0\1\0"), AlertDescription.DECODE_ERROR),
    "client_certificate_type: none": ((19, b"\0"), AlertDescription.DECODE_ERROR),
    "server_certificate_type: too long": ((20, b"\1\0\0"), AlertDescription.DECODE_ERROR),
    "record_size_limit: 63": ((RECORD_SIZE_LIMIT, b"\0\x3f"), AlertDescription.ILLEGAL_PARAMETER),
    "record_size_limit: one byte": ((RECORD_SIZE_LIMIT, b"\xff"), AlertDescription.DECODE_ERROR),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_extension_is_refused_with_its_alert(name):
    (kind, body), alert = MALFORMED[name]
    client = EcdheClient()
    rest = tuple(each for each in client_extensions(client) if each[0] != kind)
    client.hello_body = lambda **more: PuppetClient.hello_body(  # type: ignore[method-assign]
        client, extensions=((kind, body), *rest), **more
    )
    assert failing(client) == [(2, alert)]
    assert client.rig.server.statistics.half_open == 0


def test_unknown_extensions_groups_schemes_suites_and_types_are_passed_over():
    client = EcdheClient(
        ServerRig(asking_config()), groups=(0x1234, 25, raw.X25519, raw.SECP256R1), credential=shown("p256")
    )
    client.more_extensions = ((0x0BAD, b"x"), (0x3A3A, b""), (19, b"\x03\xe0\x01\x00"), (20, b"\x02\xe0\x00"))
    rest = client_extensions(client)
    schemes = raw.signature_algorithms(0x0A0A, 0x0201, 0x0807, 0x0403)
    extensions = tuple(schemes if each[0] == 13 else each for each in rest)
    client.hello_body = lambda **more: PuppetClient.hello_body(  # type: ignore[method-assign]
        client, suites=(0x0A0A, client.suite, 0xFFFF, raw.SCSV), extensions=extensions, **more
    )
    client.handshake()
    assert {kind for kind, _ in client.server_hello.extensions or ()} <= {kind for kind, _ in extensions}
    assert client.rig.connection.state is ConnectionState.CONNECTED


# --- configurations that cannot be ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"record_size_limit": 63},
        {"record_size_limit": 16_385},
        {"alpn_protocols": (b"",)},
        {"alpn_protocols": (b"n" * 256,)},
        {"groups": ()},
        {"groups": (23, 23)},
        {"groups": (25,)},
        {"signature_schemes": (0x0201,)},
    ],
    ids=repr,
)
@pytest.mark.parametrize("make", [client_config, server_config])
def test_what_cannot_be_negotiated_cannot_be_configured(make, options):
    with pytest.raises(ConfigError) as caught:
        make(**options)
    assert str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"max_fragment_length": 513},
        {"max_fragment_length": 16_384},
        {"server_name": ""},
        {"server_name": "h" * 256},
        {"server_name": "höst"},
        {"server_certificate_types": (1,)},
    ],
    ids=repr,
)
def test_what_a_client_cannot_ask_for_cannot_be_configured(options):
    with pytest.raises(ConfigError):
        client_config(**options)
