"""Raw public keys, RFC 7250: negotiated beside X.509, for each side by itself; judged by the caller."""

import pytest

from sansdtls import (
    AlertDescription,
    AuthenticationFailed,
    AuthenticationProblem,
    CertificateType,
    ClientAuthentication,
    ClientConfig,
    ConnectionState,
    PeerIncompatible,
    PeerRawKeyReceived,
)
from sansdtls.testing import Pair
from tests.core import raw
from tests.core.credentials import KINDS, shown
from tests.core.ecdhe_puppets import EcdheClient, EcdheServer, asking_config, client_config, server_config
from tests.core.puppet import ClientRig, ServerRig

X509, RAW = CertificateType.X509, CertificateType.RAW_PUBLIC_KEY
CLIENT_TYPE, SERVER_TYPE = 19, 20
"""Extensions client_certificate_type and server_certificate_type, RFC 7250 §6."""


def credential(kind: str, certificate_type: CertificateType):
    return shown(kind).certificate() if certificate_type is X509 else shown(kind).raw_public_key()


def suite_of(kind: str) -> int:
    return raw.RSA_AES_128_GCM if kind == "rsa" else raw.ECDSA_AES_128_GCM


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_authenticates_an_independent_client_by_its_raw_key(kind):
    rig = ServerRig(asking_config(credentials=(shown(kind).raw_public_key(),)))
    client = EcdheClient(rig, suite=suite_of(kind), credential=shown(kind), raw_public_keys=True).handshake()
    assert client.server_spki == shown(kind).spki
    answered = dict(client.server_hello.extensions or ())
    assert answered[CLIENT_TYPE] == answered[SERVER_TYPE] == b"\x02"
    (request,) = [event for event in rig.events if isinstance(event, PeerRawKeyReceived)]
    assert (request.spki, request.resumption) == (shown(kind).spki, False)
    peer = rig.connection.peer
    assert peer is not None
    assert (peer.raw_public_key, peer.certificate_chain, peer.psk_identity) == (shown(kind).spki, None, None)
    client.give(client.data(b"21.5"))
    assert rig.received == [b"21.5"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_authenticates_an_independent_server_by_its_raw_key(kind):
    config = ClientConfig(server_certificate_types=(RAW,), credentials=(shown("p256").raw_public_key(),))
    server = EcdheServer(
        ClientRig(config), suite=suite_of(kind), credential=shown(kind), raw_public_keys=True, asks=True
    ).handshake()
    assert server.client_certificate == raw.vector(shown("p256").spki, 3)
    (request,) = [event for event in server.rig.events if isinstance(event, PeerRawKeyReceived)]
    assert request.spki == shown(kind).spki
    peer = server.rig.connection.peer
    assert peer is not None
    assert (peer.raw_public_key, peer.certificate_chain) == (shown(kind).spki, None)


@pytest.mark.parametrize("server_type", [X509, RAW])
@pytest.mark.parametrize("client_type", [X509, RAW, None])
def test_the_kinds_of_both_sides_are_negotiated_one_by_one(server_type, client_type):
    pair = Pair(
        ClientConfig(
            server_certificate_types=(server_type,),
            credentials=() if client_type is None else (credential("p384", client_type),),
        ),
        server_config(
            client_authentication=ClientAuthentication.WANTED,
            credentials=(credential("p256", X509), credential("p256", RAW)),
        ),
    )
    pair.handshake()
    mine, theirs = pair.client.peer, pair.server_connection.peer
    assert mine is not None
    assert theirs is not None
    assert (mine.certificate_chain is not None) is (server_type is X509)
    assert (mine.raw_public_key is not None) is (server_type is RAW)
    assert (theirs.certificate_chain is not None) is (client_type is X509)
    assert (theirs.raw_public_key is not None) is (client_type is RAW)


@pytest.mark.parametrize("preferred", [X509, RAW])
def test_the_client_prefers_and_gets_what_it_prefers(preferred):
    other = RAW if preferred is X509 else X509
    pair = Pair(ClientConfig(server_certificate_types=(preferred, other)), server_config())
    pair.handshake()
    assert pair.client.peer is not None
    assert (pair.client.peer.raw_public_key is not None) is (preferred is RAW)


@pytest.mark.parametrize("preferred", [X509, RAW])
def test_of_what_a_client_can_show_the_server_asks_for_what_it_prefers(preferred):
    order = (X509, RAW) if preferred is X509 else (RAW, X509)
    shows = (shown("p256").certificate(), shown("p384").raw_public_key())
    pair = Pair(client_config(credentials=shows), asking_config(client_certificate_types=order))
    pair.handshake()
    peer = pair.server_connection.peer
    assert peer is not None
    assert (peer.raw_public_key is not None) is (preferred is RAW)


def test_a_client_that_speaks_x509_alone_sends_neither_extension():
    # RFC 7250 §4.1
    config = client_config(credentials=(shown("p256").certificate(),))
    extensions = dict(EcdheServer(ClientRig(config)).client_hello.extensions or ())
    assert CLIENT_TYPE not in extensions
    assert SERVER_TYPE not in extensions
    config = ClientConfig(server_certificate_types=(RAW, X509), credentials=(shown("p256").raw_public_key(),))
    extensions = dict(EcdheServer(ClientRig(config)).client_hello.extensions or ())
    assert extensions[SERVER_TYPE] == b"\x02\x02\x00"
    assert extensions[CLIENT_TYPE] == b"\x01\x02"


def test_a_server_that_takes_certificates_only_turns_a_client_with_a_raw_key_away():
    # RFC 7250 §4.2: unsupported_certificate
    client = EcdheClient(
        ServerRig(asking_config(client_certificate_types=(X509,))),
        credential=shown("p256"),
        raw_public_keys=True,
    )
    client.get_cookie()
    client.give(client.message(raw.CLIENT_HELLO, client.hello_body()))
    client.wait(0)
    assert client.alerts() == [(2, AlertDescription.UNSUPPORTED_CERTIFICATE)]
    assert isinstance(client.rig.causes[0], PeerIncompatible)


def test_a_server_that_only_wants_one_lets_such_a_client_go_on_without():
    config = server_config(
        client_authentication=ClientAuthentication.WANTED, client_certificate_types=(X509,)
    )
    client = EcdheClient(ServerRig(config), credential=shown("p256"), raw_public_keys=True)
    client.hello()
    assert not client.asked
    client.finish()
    assert client.rig.connection.peer is not None
    assert client.rig.connection.peer.raw_public_key is None


def test_a_server_without_a_raw_key_turns_a_client_away_that_reads_nothing_else():
    pair = Pair(
        ClientConfig(server_certificate_types=(RAW,)),
        server_config(credentials=(shown("p256").certificate(),)),
    )
    pair.run_for(3)
    assert not pair.connected
    assert pair.server.statistics.handshakes_failed == {"PeerIncompatible": 1}


@pytest.mark.parametrize("side", ["client", "server"])
def test_an_unknown_raw_key_is_refused_with_the_callers_alert(side):
    # CVE-2024-12797 OpenSSL: an unknown raw key went unnoticed.
    pair = Pair(
        ClientConfig(server_certificate_types=(RAW,), credentials=(shown("p384").raw_public_key(),)),
        asking_config(),
    )
    known = {shown("p256").spki if side == "server" else shown("p384").spki}
    pair.judge = lambda request: (
        None
        if isinstance(request, PeerRawKeyReceived) and request.spki in known
        else AlertDescription.CERTIFICATE_UNKNOWN
    )
    pair.run_for(5)
    events = pair.client_events if side == "client" else pair.server_events
    assert AuthenticationFailed(AuthenticationProblem.PEER_REJECTED) in [
        event.cause for event in events if hasattr(event, "cause")
    ]
    assert pair.client.state is ConnectionState.CLOSED
    assert len(pair.server) == 0


def test_a_client_that_shows_no_raw_key_sends_an_empty_certificate():
    config = ClientConfig(server_certificate_types=(RAW,))
    server = EcdheServer(ClientRig(config), raw_public_keys=False, asks=True)
    server.raw_public_keys = True
    server.more_extensions = ()
    server.server_hello_body = lambda **more: raw.server_hello(  # type: ignore[method-assign]
        random=server.random,
        suite=server.suite,
        extensions=(*raw.DEFAULT_EXTENSIONS, (SERVER_TYPE, b"\2")),
        **more,
    )
    server.handshake()
    assert server.client_certificate == bytes(3)


def test_a_client_that_takes_raw_keys_only_refuses_a_server_that_shows_a_certificate():
    # RFC 7250 §4.2: such a server does not know the extension.
    server = EcdheServer(ClientRig(ClientConfig(server_certificate_types=(RAW,))))
    server.verify_request()
    server.give(*server.flight_4())
    assert server.alerts() == [(2, AlertDescription.UNSUPPORTED_CERTIFICATE)]
    assert isinstance(server.rig.causes[0], PeerIncompatible)
    assert not [event for event in server.rig.events if hasattr(event, "chain")]


def test_a_certificate_where_a_raw_key_was_agreed_on_is_refused():
    client = EcdheClient(ServerRig(asking_config()), credential=shown("p256"), raw_public_keys=True)
    client.hello()
    client.give(client.certificate(raw.certificate(shown("p256").chain)))
    assert client.alerts() == [(2, AlertDescription.BAD_CERTIFICATE)]


@pytest.mark.parametrize("change", [lambda spki: spki + b"\0", lambda spki: spki[:-1], lambda _: b"\x30\x00"])
def test_a_raw_key_that_is_not_exactly_one_key_in_der_is_refused(change):
    client = EcdheClient(ServerRig(asking_config()), credential=shown("p256"), raw_public_keys=True)
    client.hello()
    client.give(client.certificate(raw.vector(change(shown("p256").spki), 3)))
    assert client.alerts() == [(2, AlertDescription.BAD_CERTIFICATE)]


@pytest.mark.parametrize(
    "extension", [(CLIENT_TYPE, b"\x00"), (SERVER_TYPE, b"\x00"), (SERVER_TYPE, b"\x01")]
)
def test_a_certificate_type_that_was_not_offered_is_refused(extension):
    config = ClientConfig(server_certificate_types=(RAW,), credentials=(shown("p256").raw_public_key(),))
    server = EcdheServer(ClientRig(config), more_extensions=(extension,))
    server.give(*server.flight_4())
    assert server.alerts() == [(2, AlertDescription.ILLEGAL_PARAMETER)]
