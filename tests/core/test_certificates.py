"""Certificates in handshakes: who shows one, who is asked about it, what its answer leads to."""

import pytest

from sansdtls import (
    AlertDescription,
    AuthenticationFailed,
    AuthenticationProblem,
    CertificateType,
    CipherSuite,
    ClientAuthentication,
    ClientConfig,
    ConnectionState,
    NamedGroup,
    Peer,
    PeerCertificateReceived,
    PeerRawKeyReceived,
    SignatureScheme,
)
from sansdtls.testing import Fleet, Pair
from tests.core import raw
from tests.core.credentials import KINDS, SCHEMES_OF_KIND, shown
from tests.core.ecdhe_puppets import (
    GROUPS,
    X509_AND_RAW,
    EcdheClient,
    EcdheServer,
    asking_config,
    client_config,
    psk_config,
    server_config,
)
from tests.core.puppet import IDENTITY, KEY, ClientRig, PuppetClient, ServerRig

SUITE_AND_KIND = [
    *((suite, kind) for suite in raw.ECDSA_SUITES for kind in ("p256", "p384", "ed25519")),
    *((suite, "rsa") for suite in raw.RSA_SUITES),
]
ID = [f"{CipherSuite(suite).name.removeprefix('TLS_')}-{kind}" for suite, kind in SUITE_AND_KIND]
COMPANION = {"p256": "ed25519", "p384": "p256", "ed25519": "rsa", "rsa": "p384"}
"""For a server's kind of credential, one of another kind for the client."""


def requests(events):
    return [event for event in events if isinstance(event, PeerCertificateReceived | PeerRawKeyReceived)]


# --- every suite, group and kind of signature, against an implementation that shares no code -------------


@pytest.mark.parametrize(("suite", "kind"), SUITE_AND_KIND, ids=ID)
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: NamedGroup(group).name)
def test_the_server_completes_with_an_independent_client(suite, kind, group):
    rig = ServerRig(asking_config(credentials=(shown(kind).certificate(),), groups=(group,)))
    client = EcdheClient(rig, suite=suite, credential=shown(COMPANION[kind])).handshake()
    assert client.server_spki == shown(kind).spki
    assert client.server_scheme in SCHEMES_OF_KIND[kind]
    connection = rig.connection
    assert connection.negotiated is not None
    assert connection.negotiated.cipher_suite == suite
    assert connection.negotiated.group == group
    assert connection.negotiated.resumed is False
    assert connection.peer is not None
    assert connection.peer.certificate_chain == shown(COMPANION[kind]).chain
    assert connection.peer.psk_identity is None
    assert connection.peer.psk_key_index is None
    assert connection.peer.raw_public_key is None
    client.give(client.data(b"21.5"))
    assert rig.received == [b"21.5"]
    connection.send(b"thanks", now=rig.now)
    client.answers += rig.sent()
    assert client.application_data == [b"thanks"]


@pytest.mark.parametrize(("suite", "kind"), SUITE_AND_KIND, ids=ID)
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: NamedGroup(group).name)
def test_the_client_completes_with_an_independent_server(suite, kind, group):
    rig = ClientRig(client_config(credentials=(shown(COMPANION[kind]).certificate(),)))
    server = EcdheServer(rig, suite=suite, group=group, credential=shown(kind), asks=True).handshake()
    assert server.client_certificate == raw.certificate(shown(COMPANION[kind]).chain)
    connection = rig.connection
    assert connection.state is ConnectionState.CONNECTED
    assert connection.negotiated is not None
    assert connection.negotiated.cipher_suite == suite
    assert connection.negotiated.group == group
    assert connection.peer is not None
    assert connection.peer.certificate_chain == shown(kind).chain
    (request,) = requests(rig.events)
    assert request.chain == shown(kind).chain
    server.give(server.data(b"on"))
    assert rig.received == [b"on"]
    connection.send(b"21.5", now=rig.now)
    server.answers += rig.sent()
    assert server.application_data == [b"21.5"]


@pytest.mark.parametrize(
    ("kind", "scheme"), [(kind, scheme) for kind in KINDS for scheme in SCHEMES_OF_KIND[kind]]
)
def test_each_signature_scheme_is_made_and_verified_on_both_sides(kind, scheme):
    pair = Pair(
        client_config(signature_schemes=(scheme,), credentials=(shown(kind).certificate(),)),
        asking_config(signature_schemes=(scheme,), credentials=(shown(kind).certificate(),)),
    )
    pair.handshake()
    assert pair.client.peer == pair.server_connection.peer
    assert pair.client.peer is not None
    assert pair.client.peer.certificate_chain == shown(kind).chain


@pytest.mark.parametrize("ems", [True, False], ids=["EMS", "no EMS"])
@pytest.mark.parametrize("role", ["client", "server"])
def test_certificates_work_with_and_without_extended_master_secret(ems, role):
    puppet: EcdheClient | EcdheServer
    if role == "server":
        puppet = EcdheClient(ServerRig(asking_config()), ems=ems, credential=shown("p256")).handshake()
    else:
        puppet = EcdheServer(ems=ems).handshake()
    assert puppet.rig.connection.state is ConnectionState.CONNECTED
    assert puppet.rig.connection.negotiated is not None
    assert puppet.rig.connection.negotiated.extended_master_secret is ems


def test_the_order_of_the_servers_groups_decides():
    for first in GROUPS:
        order = (first, *(group for group in GROUPS if group != first))
        pair = Pair(client_config(), server_config(groups=order))
        pair.handshake()
        assert pair.client.negotiated is not None
        assert pair.client.negotiated.group == first


def test_a_client_that_names_no_group_gets_secp256r1():
    # RFC 8422 §4
    client = EcdheClient()
    extensions = (raw.EMS, raw.signature_algorithms(*SCHEMES_OF_KIND["p256"]))
    client.hello_options = {"extensions": extensions}
    client.hello_body = lambda **more: PuppetClient.hello_body(client, **more)  # type: ignore[method-assign]
    client.handshake()
    assert len(client.rig.server) == 1


def test_the_client_shows_the_first_credential_whose_signature_the_server_takes():
    credentials = (shown("p384").certificate(), shown("rsa").certificate(), shown("ed25519").certificate())
    server = EcdheServer(ClientRig(client_config(credentials=credentials)), asks=True)
    server.request_body = lambda: raw.certificate_request(b"\x40\x01", [0x0807, 0x0401])  # type: ignore[method-assign]
    server.handshake()
    assert server.client_certificate == raw.certificate(shown("rsa").chain)
    assert server.client_scheme == 0x0401


def test_a_client_without_a_fitting_credential_shows_an_empty_one():
    # RFC 5246 §7.4.6
    server = EcdheServer(ClientRig(client_config(credentials=(shown("rsa").certificate(),))), asks=True)
    server.request_body = lambda: raw.certificate_request(b"\x40", [0x0403])  # type: ignore[method-assign]
    server.handshake()
    assert server.client_certificate == bytes(3)
    assert server.rig.connection.state is ConnectionState.CONNECTED


# --- who is asked ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ClientAuthentication)
@pytest.mark.parametrize("shows", [True, False], ids=["shows one", "shows none"])
def test_client_authentication_asks_for_and_insists_on_what_its_name_says(policy, shows):
    client = EcdheClient(
        ServerRig(server_config(client_authentication=policy)), credential=shown("p256") if shows else None
    )
    client.hello()
    assert client.asked is (policy is not ClientAuthentication.NONE)
    if policy is ClientAuthentication.REQUIRED and not shows:
        client.give(client.certificate())
        assert client.alerts() == [(2, AlertDescription.HANDSHAKE_FAILURE)]
        assert client.rig.causes == [AuthenticationFailed(AuthenticationProblem.NO_CERTIFICATE)]
        assert len(client.rig.server) == client.rig.server.statistics.half_open == 0
        return
    client.finish()
    peer = client.rig.connection.peer
    assert peer is not None
    assert peer.certificate_chain == (shown("p256").chain if client.asked and shows else None)
    assert len(requests(client.rig.events)) == (client.asked and shows)
    assert client.rig.causes == []


def test_the_caller_is_asked_only_about_who_proved_possession():
    # Before the signature is verified a certificate says nothing: anybody can copy one.
    rig = ServerRig(asking_config())
    rig.answer_requests = False
    client = EcdheClient(rig, credential=shown("p256"))
    client.hello()
    client.give(client.certificate(), client.key_exchange())
    assert requests(rig.events) == []
    client.give(client.certificate_verify())
    (request,) = requests(rig.events)
    assert (request.chain, request.resumption) == (shown("p256").chain, False)


def test_the_client_is_told_the_name_it_asked_for_and_the_server_too():
    pair = Pair(
        client_config(server_name="Meter.Example", credentials=(shown("p256").certificate(),)),
        asking_config(),
    )
    pair.handshake()
    (request,) = requests(pair.client_events)
    assert request.server_name == "Meter.Example"
    (request,) = requests(pair.server_events)
    assert request.server_name == "meter.example"


def test_the_request_names_the_authorities_schemes_and_kinds_of_keys_that_are_configured():
    names = (b"\x30\x00", b"\x30\x0b\x31\x09\x30\x07\x06\x03\x55\x04\x03\x0c\x00")
    schemes = (SignatureScheme.ED25519, SignatureScheme.ECDSA_SECP256R1_SHA256)
    config = asking_config(client_certificate_authorities=names, signature_schemes=schemes)
    client = EcdheClient(ServerRig(config), credential=shown("p256")).handshake()
    body = dict(client.server_messages.values())[raw.CERTIFICATE_REQUEST]
    assert body == raw.certificate_request(b"\x40\x01", schemes, names)


# --- all on one port ------------------------------------------------------------------------------------


def test_psk_certificate_and_raw_key_clients_share_one_server():
    fleet = Fleet(asking_config(), keys={IDENTITY: [KEY]})
    certificate, raw_key = shown("p256").certificate(), shown("ed25519").raw_public_key()
    configs = {
        "psk": psk_config(cipher_suites=[CipherSuite.TLS_PSK_WITH_AES_128_CCM_8]),
        "ecdhe psk": psk_config(),
        "certificate": client_config(credentials=(certificate,)),
        "raw key": ClientConfig(server_certificate_types=X509_AND_RAW, credentials=(raw_key,)),
        "raw client": client_config(credentials=(raw_key,)),
        "raw server": ClientConfig(
            server_certificate_types=(CertificateType.RAW_PUBLIC_KEY,), credentials=(certificate,)
        ),
    }
    ends = {name: fleet.connect(config, path=name) for name, config in configs.items()}
    fleet.run_for(1)
    assert len(fleet.server) == len(ends)
    for name, end in ends.items():
        end.connection.send(name.encode(), now=fleet.now)
    fleet.run_for(1)
    peers = {connection.path: connection.peer or Peer() for connection in fleet.server.connections}
    for name in ends:
        assert fleet.server_received(name) == [name.encode()]
    assert peers["psk"].psk_identity == peers["ecdhe psk"].psk_identity == IDENTITY
    assert (
        peers["certificate"].certificate_chain == peers["raw server"].certificate_chain == certificate.chain
    )
    assert peers["raw key"].raw_public_key == peers["raw client"].raw_public_key == raw_key.key.spki
    servers = {name: end.connection.peer or Peer() for name, end in ends.items()}
    assert servers["raw server"].raw_public_key is not None
    assert servers["raw client"].certificate_chain is not None


@pytest.mark.parametrize("psk", [True, False], ids=["psk", "no psk"])
def test_a_server_without_psk_turns_psk_clients_away(psk):
    pair = Pair(psk_config(), server_config(psk=psk))
    pair.run_for(3)
    assert pair.connected is psk


# --- fresh keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: NamedGroup(group).name)
@pytest.mark.parametrize("suite", [raw.ECDSA_AES_128_GCM, raw.ECDHE_PSK_AES_128_GCM], ids=hex)
def test_no_ephemeral_key_serves_two_handshakes(group, suite):
    rig = ServerRig(server_config(groups=(group,)))
    puppets = [EcdheClient(rig, suite=suite, random=bytes([number]) * 32) for number in range(8)]
    publics = {puppet.handshake().server_public for puppet in puppets}
    assert len(publics) == 8
    rigs = [
        ClientRig(psk_config(server_certificate_types=(CertificateType.X509,)), seed=seed)
        for seed in range(8)
    ]
    publics = {EcdheServer(rig, suite=suite, group=group).handshake().client_public for rig in rigs}
    assert len(publics) == 8


def test_a_key_signs_by_the_scheme_that_fits_it_best_whatever_comes_first_in_the_configuration():
    rig = ServerRig(asking_config(credentials=(shown("p384").certificate(),)))
    client = EcdheClient(rig, suite=raw.ECDSA_AES_128_GCM, credential=shown("p256")).handshake()
    assert client.server_scheme == SignatureScheme.ECDSA_SECP384R1_SHA384
