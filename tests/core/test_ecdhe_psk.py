"""ECDHE_PSK, RFC 5489: a PSK with forward secrecy."""

import pytest

from sansdtls import (
    AuthenticationFailed,
    AuthenticationProblem,
    CipherSuite,
    ClientConfig,
    NamedGroup,
    PskRequested,
    ServerConfig,
)
from sansdtls.testing import Pair
from tests.core import raw
from tests.core.ecdhe_puppets import GROUPS, EcdheClient, EcdheServer, psk_config
from tests.core.puppet import IDENTITY, KEY, ClientRig, ServerRig

SUITES = [
    pytest.param(code, id=CipherSuite(code).name.removeprefix("TLS_ECDHE_PSK_WITH_"))
    for code in raw.ECDHE_PSK_SUITES
]


def group_name(group: int) -> str:
    return NamedGroup(group).name


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("group", GROUPS, ids=group_name)
@pytest.mark.parametrize("ems", [True, False], ids=["EMS", "no EMS"])
def test_the_server_completes_with_an_independent_client(suite, group, ems):
    rig = ServerRig(ServerConfig(groups=(group,)))
    client = EcdheClient(rig, suite=suite, ems=ems).handshake()
    negotiated, peer = rig.connection.negotiated, rig.connection.peer
    assert negotiated is not None
    assert (negotiated.cipher_suite, negotiated.group) == (suite, group)
    assert peer is not None
    assert (peer.psk_identity, peer.psk_key_index, peer.certificate_chain) == (IDENTITY, 0, None)
    client.give(client.data(b"21.5"))
    assert rig.received == [b"21.5"]
    rig.connection.send(b"thanks", now=rig.now)
    client.answers += rig.sent()
    assert client.application_data == [b"thanks"]


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("group", GROUPS, ids=group_name)
@pytest.mark.parametrize("hint", [None, b"meters of Musterstadt"], ids=["no hint", "hint"])
def test_the_client_completes_with_an_independent_server(suite, group, hint):
    server = EcdheServer(ClientRig(psk_config()), suite=suite, group=group, hint=hint).handshake()
    identity = raw.vector(IDENTITY, 2)
    assert server.client_key_exchange == identity + raw.vector(server.client_public, 1)
    server.give(server.data(b"on"))
    assert server.rig.received == [b"on"]
    server.rig.connection.send(b"21.5", now=0.0)
    server.answers += server.rig.sent()
    assert server.application_data == [b"21.5"]


@pytest.mark.parametrize("hint", [None, b"h", b"h" * 128])
def test_the_hint_reaches_the_client_that_asks_for_its_key(hint):
    # RFC 5489 §2: the field is there in any case; empty, it is no hint.
    pair = Pair(ClientConfig(psk_identity=IDENTITY), ServerConfig(psk_identity_hint=hint))
    pair.handshake()
    (request,) = [event for event in pair.client_events if isinstance(event, PskRequested)]
    assert (request.identity, request.hint) == (IDENTITY, hint)


@pytest.mark.parametrize("index", [0, 1])
def test_either_of_two_keys_completes_and_is_told(index):
    keys = [b"the first key...", b"the second key.."]
    rig = ServerRig(keys={IDENTITY: keys})
    EcdheClient(rig, suite=raw.ECDHE_PSK_AES_128_CCM_8, psk=keys[index]).handshake()
    peer = rig.connection.peer
    assert peer is not None
    assert peer.psk_key_index == index


@pytest.mark.parametrize("identity", [b"", b"a\0b", b"\xff\xfe", b"i" * 300], ids=repr)
def test_identities_are_any_bytes(identity):
    rig = ServerRig(keys={identity: [KEY], identity + b"x": [b"another key....."]})
    EcdheClient(rig, suite=raw.ECDHE_PSK_AES_128_GCM, identity=identity).handshake()
    peer = rig.connection.peer
    assert peer is not None
    assert peer.psk_identity == identity


@pytest.mark.parametrize(
    ("identity", "keys", "problem"),
    [
        (IDENTITY, {IDENTITY: [b"another key....."]}, AuthenticationProblem.WRONG_KEY),
        (b"who?", {IDENTITY: [KEY]}, AuthenticationProblem.UNKNOWN_IDENTITY),
    ],
    ids=["wrong key", "unknown identity"],
)
def test_wrong_keys_and_unknown_identities_look_the_same_on_the_wire(identity, keys, problem):
    pair = Pair(psk_config(psk_identity=identity), keys=keys)
    pair.run_for(20)
    assert pair.server_causes() == [AuthenticationFailed(problem, identity)]
    sent = [(each.time, len(each.data)) for each in pair.network.sent_by("server")]
    other = Pair(psk_config(), keys={IDENTITY: [b"a third key....."]})
    other.run_for(20)
    assert sent == [(each.time, len(each.data)) for each in other.network.sent_by("server")]


def test_psk_alone_is_chosen_where_the_client_has_no_group_of_ours():
    client = EcdheClient(ServerRig(), suite=raw.ECDHE_PSK_AES_128_GCM)
    body = client.hello_body(
        suites=(raw.ECDHE_PSK_AES_128_GCM, raw.AES_128_GCM),
        extensions=(raw.EMS, raw.supported_groups(25, 30)),
    )
    client.give(client.message(raw.CLIENT_HELLO, body))
    cookie = raw.parse_cookie(next(iter(raw.plaintext_messages(client.answers).values()))[1])
    body = client.hello_body(
        cookie=cookie,
        suites=(raw.ECDHE_PSK_AES_128_GCM, raw.AES_128_GCM),
        extensions=(raw.EMS, raw.supported_groups(25, 30)),
    )
    answers = client.give(client.message(raw.CLIENT_HELLO, body))
    hello = raw.parse_server_hello(raw.plaintext_messages(answers)[1][1])
    assert hello.suite == raw.AES_128_GCM


def test_a_recorded_session_cannot_be_read_with_the_key_alone():
    # What ECDHE_PSK is for: two sessions with one PSK and the same randoms have different secrets.
    rigs = ServerRig(seed=1), ServerRig(seed=1)
    secrets = []
    for rig in rigs:
        client = EcdheClient(rig, suite=raw.ECDHE_PSK_AES_128_GCM).handshake()
        assert client.keys is not None
        secrets.append((client.random, client.peer_random, client.keys.master_secret))
    assert secrets[0][:2] == secrets[1][:2]
    assert secrets[0][2] != secrets[1][2]
