"""Sessions that are not to be resumed: a full handshake follows instead, and nothing fails."""

import attrs
import pytest

from sansdtls import (
    AlertDescription,
    CertificateType,
    CipherSuite,
    ClientAuthentication,
    ConnectionState,
    HandshakeTimeout,
)
from sansdtls.testing import Network
from tests.core.credentials import shown
from tests.core.ecdhe_puppets import (
    EcdheServer,
    server_config,
)
from tests.core.puppet import IDENTITY, KEY, ClientRig
from tests.core.resuming import (
    WANTED,
    connect,
    each_way,
    made,
    new_fleet,
    questions,
    refused,
    resumed,
)


@each_way
def test_a_session_is_not_resumed_under_another_server_name(way):
    # CVE-2026-105236 OTP
    for made_for, offered_for in (("a.example", "b.example"), ("a.example", None), (None, "a.example")):
        fleet = new_fleet()
        config = made(fleet, "certificate", way, server_name=made_for)
        assert config.session is not None
        # Our own client does not even offer it: nobody else shall see it.
        hello = EcdheServer(ClientRig(attrs.evolve(config, server_name=offered_for))).client_hello
        assert hello.session_id == b""
        assert dict(hello.extensions or ()).get(35) == (b"" if way == "ticket" else None)
        session = attrs.evolve(config.session, server_name=offered_for)
        refused(fleet, attrs.evolve(config, server_name=offered_for, session=session))


def test_the_server_name_is_compared_without_case():
    fleet = new_fleet()
    config = made(fleet, "certificate", server_name="A.example")
    assert resumed(connect(fleet, attrs.evolve(config, server_name="a.EXAMPLE")))


NONE, REQUIRED = ClientAuthentication.NONE, ClientAuthentication.REQUIRED


@pytest.mark.parametrize(
    ("kind", "before", "after", "allowed"),
    [
        ("anonymous", NONE, NONE, True),
        ("anonymous", NONE, ClientAuthentication.WANTED, True),
        ("anonymous", NONE, REQUIRED, False),
        ("anonymous", ClientAuthentication.WANTED, REQUIRED, False),
        ("certificate", REQUIRED, REQUIRED, True),
        ("certificate", ClientAuthentication.WANTED, REQUIRED, True),
        ("certificate", REQUIRED, NONE, False),
        ("raw public key", REQUIRED, NONE, False),
        ("ECDHE_PSK", NONE, REQUIRED, True),
    ],
)
@each_way
def test_a_session_is_resumed_under_the_present_client_authentication_policy_only(
    kind, before, after, allowed, way
):
    fleet = new_fleet(client_authentication=before)
    config = made(fleet, kind, way)
    fleet.server.replace_config(server_config(client_authentication=after), now=fleet.now)
    client = fleet.connect(config, "again")
    fleet.run_for(5)
    if allowed:
        assert resumed(client)
    elif after is REQUIRED:
        assert client.connection.state is ConnectionState.CLOSED
        assert fleet.server.statistics.handshakes_failed == {"AuthenticationFailed.no_certificate": 1}
    else:
        assert not resumed(client)
        ours = client.connection.peer
        assert ours is not None
        assert fleet.server_connections("again")[-1].peer == attrs.evolve(
            ours, certificate_chain=None, raw_public_key=None
        )


@pytest.mark.parametrize("kind", ["certificate", "raw public key", "anonymous"])
@each_way
def test_a_session_ends_with_the_credential_that_the_server_had_shown(kind, way):
    fleet = new_fleet()
    config = made(fleet, kind, way)
    others = tuple(shown(name) for name in ("p256 new", "ed25519 new", "rsa"))
    credentials = (*(one.certificate() for one in others), *(one.raw_public_key() for one in others))
    fleet.server.replace_config(server_config(**WANTED, credentials=credentials), now=fleet.now)
    refused(fleet, config)


@each_way
def test_a_renewed_certificate_for_the_same_key_keeps_its_sessions(way):
    fleet = new_fleet(credentials=(shown("p256").certificate(),))
    config = made(fleet, "anonymous", way)
    renewed = shown("p256").certificate("new.example"), shown("p384").certificate()
    fleet.server.replace_config(server_config(**WANTED, credentials=renewed), now=fleet.now)
    assert resumed(connect(fleet, config))


@each_way
def test_a_client_may_no_longer_show_the_kind_it_had_shown(way):
    fleet = new_fleet()
    config = made(fleet, "raw public key", way)
    only = server_config(**WANTED, client_certificate_types=(CertificateType.X509,))
    fleet.server.replace_config(only, now=fleet.now)
    refused(fleet, config)


@each_way
def test_a_suite_that_is_no_longer_configured_is_not_resumed(way):
    fleet = new_fleet()
    config = made(fleet, "ECDHE_PSK", way)
    assert config.session is not None
    suites = [suite for suite in CipherSuite if suite is not config.session.cipher_suite]
    fleet.server.replace_config(server_config(cipher_suites=suites), now=fleet.now)
    refused(fleet, config)


@each_way
@pytest.mark.parametrize("kind", ["PSK", "ECDHE_PSK"])
def test_a_withdrawn_identity_cannot_resume(kind, way):
    fleet = new_fleet()
    config = made(fleet, kind, way)
    fleet.keys = {}
    client = fleet.connect(config, "again")
    fleet.run_for(20)
    assert client.connection.state is ConnectionState.CLOSED
    assert fleet.server.statistics.handshakes_failed == {"AuthenticationFailed.unknown_identity": 1}
    assert fleet.server.statistics.psk_unknown == 1


@each_way
def test_a_replaced_key_ends_the_session_but_a_rotated_one_does_not(way):
    fleet = new_fleet()
    config = made(fleet, "ECDHE_PSK", way)
    new = b"the next key...."
    fleet.keys = {IDENTITY: [new, KEY]}
    assert resumed(connect(fleet, config))
    peer = fleet.server_connections()[-1].peer
    assert peer is not None
    assert peer.psk_key_index == 1
    fleet.keys = {IDENTITY: [new]}
    refused(fleet, attrs.evolve(config, psk_key=new))


@each_way
def test_without_psk_no_psk_session_is_resumed(way):
    fleet = new_fleet(credentials=())
    config = made(fleet, "ECDHE_PSK", way, server_certificate_types=(CertificateType.X509,))
    fleet.server.replace_config(server_config(psk=False), now=fleet.now)
    client = refused(fleet, config)
    assert client.connection.peer is not None
    assert client.connection.peer.certificate_chain is not None


@each_way
@pytest.mark.parametrize("kind", ["certificate", "raw public key"])
@pytest.mark.parametrize("then", ["accepted", "rejected"])
def test_a_client_whose_credential_is_rejected_has_to_prove_itself_anew(kind, way, then):
    fleet = new_fleet()
    config = made(fleet, kind, way)
    last = None if then == "accepted" else AlertDescription.CERTIFICATE_REVOKED

    def judge(request):
        if fleet.clients["again"].connection is request.connection:
            return None
        return AlertDescription.CERTIFICATE_EXPIRED if request.resumption else last

    fleet.judge = judge
    client = fleet.connect(config, "again")
    fleet.run_for(5)
    asked = [event.resumption for event in questions(fleet) if event.connection.path == "again"]
    assert asked == [True, False]
    if then == "accepted":
        assert not resumed(client)
    else:
        assert client.connection.state is ConnectionState.CLOSED
        assert fleet.server.statistics.handshakes_failed == {"AuthenticationFailed.peer_rejected": 1}


@pytest.mark.parametrize("kind", ["ECDHE_PSK", "certificate"])
@pytest.mark.parametrize("delay", [0.3, 3.0, 20.0])
@pytest.mark.parametrize("yes", [True, False], ids=["yes", "no"])
def test_the_question_may_be_answered_late(kind, delay, yes):
    fleet = new_fleet(Network(delay=0.01))
    config = made(fleet, kind)
    fleet.psk_after = fleet.judge_after = delay
    if not yes:
        fleet.keys = {IDENTITY: [b"a new key......."]} if kind == "ECDHE_PSK" else fleet.keys
        fleet.judge = lambda request: AlertDescription.UNKNOWN_CA if request.resumption else None
        config = attrs.evolve(config, psk_key=b"a new key.......") if kind == "ECDHE_PSK" else config
    client = fleet.connect(config, "again")
    fleet.run_until(lambda: client.connection.state is not ConnectionState.HANDSHAKING)
    assert resumed(client) is yes


def test_a_question_about_a_session_lapses_with_its_handshake():
    fleet = new_fleet()
    config = made(fleet)
    fleet.psk_after = None
    fleet.connect(config, "again")
    fleet.run_for(200)
    request = questions(fleet)[-1]
    assert [type(cause) for cause in fleet.server_causes()] == [HandshakeTimeout]
    assert request.connection.provide_psk(request, [KEY], now=fleet.now) == []
