"""Handshakes that go well: every suite, both roles, with and without each option."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sansdtls import (
    CipherSuite,
    ClientConfig,
    Connection,
    ConnectionState,
    DataReceived,
    ExtendedMasterSecret,
    HandshakeCompleted,
    ProtocolVersion,
    PskRequested,
    ResumptionPolicy,
    ServerConfig,
)
from sansdtls.testing import CounterEntropy, Network, Pair
from tests.core import raw
from tests.core.puppet import IDENTITY, KEY, ClientRig, PuppetClient, PuppetServer, ServerRig

OLD_KEY, NEW_KEY = b"the old key.....", b"the new key....."
SUITES = [
    pytest.param(code, id=CipherSuite(code).name.removeprefix("TLS_PSK_WITH_")) for code in raw.ALL_SUITES
]


def completed(events) -> HandshakeCompleted:
    (event,) = [event for event in events if isinstance(event, HandshakeCompleted)]
    return event


# --- against the puppets: an implementation that shares no code ---------------------------------------


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("ems", [True, False], ids=["EMS", "no EMS"])
def test_the_server_completes_with_an_independent_client(suite, ems):
    puppet = PuppetClient(suite=suite, ems=ems).handshake()
    server = puppet.rig.server
    (connection,) = server.connections
    assert connection.state is ConnectionState.CONNECTED
    assert connection.negotiated is not None
    assert connection.negotiated.version is ProtocolVersion.DTLS_1_2
    assert connection.negotiated.cipher_suite == suite
    assert connection.negotiated.extended_master_secret is ems
    assert connection.negotiated.secure_renegotiation is True
    puppet.give(puppet.data(b"21.5"))
    assert puppet.rig.received == [b"21.5"]
    connection.send(b"thanks", now=puppet.rig.now)
    puppet.answers += puppet.rig.sent()
    assert puppet.application_data == [b"thanks"]


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("ems", [True, False], ids=["EMS", "no EMS"])
@pytest.mark.parametrize("hint", [None, b"meters of Musterstadt"], ids=["no hint", "hint"])
def test_the_client_completes_with_an_independent_server(suite, ems, hint):
    puppet = PuppetServer(suite=suite, ems=ems, hint=hint).handshake()
    connection = puppet.rig.connection
    assert connection.state is ConnectionState.CONNECTED
    assert connection.negotiated is not None
    assert connection.negotiated.cipher_suite == suite
    assert connection.negotiated.extended_master_secret is ems
    assert puppet.client_key_exchange == raw.vector(IDENTITY, 2)
    puppet.give(puppet.data(b"on"))
    assert puppet.rig.received == [b"on"]
    connection.send(b"21.5", now=puppet.rig.now)
    puppet.answers += puppet.rig.sent()
    assert puppet.application_data == [b"21.5"]


def test_the_client_completes_without_hello_verify_request():
    puppet = PuppetServer()
    puppet.answer_hello()
    puppet.finish()
    assert puppet.rig.connection.state is ConnectionState.CONNECTED


def test_the_client_takes_a_second_hello_verify_request():
    # The server's cookie key may have changed between the two.
    puppet = PuppetServer()
    puppet.verify_request()
    puppet.cookie = b"another cookie"
    puppet.handshake()
    assert puppet.rig.connection.state is ConnectionState.CONNECTED


@pytest.mark.parametrize("version", [0xFEFF, 0xFEFD])
@pytest.mark.parametrize("cookie", [b"", b"c", b"c" * 255], ids=len)
def test_the_client_echoes_a_cookie_of_any_length_and_version(version, cookie):
    puppet = PuppetServer(cookie=cookie)
    first = puppet.client_hello
    body = raw.hello_verify_request(cookie, version)
    puppet.read_hello(puppet.give(puppet.message(raw.HELLO_VERIFY_REQUEST, body, in_transcript=False)))
    # RFC 6347 §4.2.1: the same parameters as before, with the cookie added.
    assert puppet.client_hello == first._replace(cookie=cookie)
    puppet.answer_hello()
    puppet.finish()
    assert puppet.rig.connection.state is ConnectionState.CONNECTED


@pytest.mark.parametrize("session_id", [b"", b"s", bytes(32)], ids=len)
def test_the_client_takes_a_session_id_of_any_legal_length(session_id):
    puppet = PuppetServer()
    puppet.read_flight_5(puppet.give(*puppet.flight_4(session_id=session_id)))
    puppet.finish()
    assert puppet.rig.connection.state is ConnectionState.CONNECTED


def test_the_client_offers_what_the_profiles_ask_for():
    hello = PuppetServer().client_hello
    assert hello.version == raw.DTLS_1_2
    assert hello.session_id == hello.cookie == b""
    assert hello.compression == b"\0"
    offered = [suite for suite in hello.suites if suite != raw.SCSV]
    # RFC 9325 §4.1: forward secrecy first. Eight-byte tags last, those with forward secrecy before the others.
    assert offered == [
        *raw.ECDHE_PSK_SUITES[:4],
        *raw.ALL_SUITES[:5],
        raw.ECDHE_PSK_AES_128_CCM_8,
        *raw.ALL_SUITES[5:],
    ]
    # RFC 9325 §3.5: both, and never renegotiation.
    assert hello.extensions is not None
    assert dict(hello.extensions)[23] == b""
    assert dict(hello.extensions).get(0xFF01) == b"\0" or raw.SCSV in hello.suites


def test_a_thousand_hellos_have_a_thousand_randoms():
    # CVE-2020-11501 GnuTLS: for DTLS the random was all zero.
    entropy, randoms = CounterEntropy(5), set()
    config = ClientConfig(psk_identity=IDENTITY, psk_key=KEY)
    for _ in range(1000):
        (sent,) = Connection.client(config, entropy=entropy, now=0.0).datagrams_to_send()
        ((_, body),) = raw.plaintext_messages([sent.data]).values()
        randoms.add(raw.parse_client_hello(body).random)
    assert len(randoms) == 1000
    assert not any(bytes(4) in random for random in randoms)


def test_a_client_newer_than_the_server_gets_dtls_1_2():
    puppet = PuppetClient()
    puppet.hello_options = {"version": 0xFEFC}
    puppet.handshake()
    assert puppet.server_hello.version == raw.DTLS_1_2


@pytest.mark.parametrize(
    ("suites", "extensions", "answered"),
    [
        ((raw.AES_128_GCM,), None, None),
        ((raw.AES_128_GCM,), (raw.EMS,), (raw.EMS,)),
        ((raw.AES_128_GCM, raw.SCSV), None, (raw.RENEGOTIATION_INFO,)),
        ((raw.AES_128_GCM,), (raw.RENEGOTIATION_INFO,), (raw.RENEGOTIATION_INFO,)),
        ((raw.AES_128_GCM, raw.SCSV), (raw.EMS, raw.RENEGOTIATION_INFO), (raw.EMS, raw.RENEGOTIATION_INFO)),
        ((raw.AES_128_GCM,), ((0x0BAD, b"unknown"), raw.EMS, (10, b"\0\2\0\x17")), (raw.EMS,)),
        ((0x1234, raw.AES_128_GCM, 0xFFFF), (), None),
    ],
)
def test_the_server_answers_exactly_what_was_offered(suites, extensions, answered):
    puppet = PuppetClient(ems=bool(extensions) and raw.EMS in extensions)
    puppet.hello_options = {"suites": suites, "extensions": extensions}
    puppet.handshake()
    assert puppet.server_hello.extensions == answered
    assert puppet.server_hello.compression == 0
    # RFC 7627 §5.4: what cannot be resumed safely gets no session ID.
    assert len(puppet.server_hello.session_id) == (32 if puppet.ems else 0)


def test_a_server_that_resumes_nothing_gives_no_session_id():
    puppet = PuppetClient(ServerRig(ServerConfig(resumption=None))).handshake()
    assert puppet.server_hello.session_id == b""


@pytest.mark.parametrize("order", list(itertools.permutations(raw.ALL_SUITES[:3])))
def test_the_order_of_the_server_decides_on_the_suite(order):
    puppet = PuppetClient(ServerRig(ServerConfig(cipher_suites=order)))
    puppet.hello_options = {"suites": raw.ALL_SUITES}
    puppet.handshake()
    assert puppet.server_hello.suite == order[0]


@pytest.mark.parametrize("resumption", [None, ResumptionPolicy()])
def test_a_session_id_that_the_server_never_gave_leads_to_a_full_handshake(resumption):
    puppet = PuppetClient(ServerRig(ServerConfig(resumption=resumption)))
    puppet.hello_options = {"session_id": bytes(range(32))}
    puppet.handshake()
    assert puppet.server_hello.session_id != bytes(range(32))
    assert (puppet.server_hello.session_id == b"") is (resumption is None)
    assert puppet.rig.connection.negotiated is not None
    assert not puppet.rig.connection.negotiated.resumed


# --- PSK: hint, identities, two keys, late answers ----------------------------------------------------


@pytest.mark.parametrize("hint", [None, b"h", b"h" * 128])
def test_the_hint_reaches_the_client_that_asks_for_its_key(hint):
    pair = Pair(ClientConfig(psk_identity=IDENTITY), ServerConfig(psk_identity_hint=hint))
    pair.handshake()
    (request,) = [event for event in pair.client_events if isinstance(event, PskRequested)]
    assert (request.identity, request.hint) == (IDENTITY, hint)


def test_without_a_hint_there_is_no_server_key_exchange():
    puppet = PuppetClient()
    puppet.hello()
    assert [kind for kind, _ in puppet.server_messages.values()] == [raw.SERVER_HELLO, raw.SERVER_HELLO_DONE]
    puppet = PuppetClient(ServerRig(ServerConfig(psk_identity_hint=b"hint")))
    puppet.hello()
    assert list(puppet.server_messages.values())[1] == (raw.SERVER_KEY_EXCHANGE, raw.vector(b"hint", 2))


@pytest.mark.parametrize(
    "identity", [b"", b"\0", b"dev1\0evil", b"\xff\xfe not utf-8", b"x" * 128, b"y" * 5000], ids=repr
)
def test_an_identity_is_compared_byte_by_byte(identity):
    near_misses = {
        identity.split(b"\0")[0] + b"|": [b"not this key...."],
        identity + b"\0": [b"nor this one...."],
    }
    pair = Pair(ClientConfig(psk_identity=identity, psk_key=KEY), keys={**near_misses, identity: [KEY]})
    pair.handshake()
    assert completed(pair.server_events).psk_identity == identity
    assert pair.server_connection.peer is not None
    assert pair.server_connection.peer.psk_identity == identity


@pytest.mark.parametrize("key", [b"k", b"k" * 16, b"k" * 64], ids=len)
def test_keys_of_every_legal_length_work(key):
    pair = Pair(ClientConfig(psk_identity=IDENTITY, psk_key=key), keys={IDENTITY: [key]})
    pair.handshake()


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("index", [0, 1])
def test_during_a_rotation_either_key_lets_the_device_in_and_the_match_is_told(suite, index):
    pair = Pair(
        ClientConfig(psk_identity=IDENTITY, psk_key=(OLD_KEY, NEW_KEY)[index], cipher_suites=[suite]),
        keys={IDENTITY: [OLD_KEY, NEW_KEY]},
    )
    pair.handshake()
    assert completed(pair.server_events).psk_key_index == index
    assert pair.server_connection.peer is not None
    assert pair.server_connection.peer.psk_key_index == index
    assert completed(pair.client_events).psk_key_index == 0
    pair.client.send(b"21.5", now=pair.now)
    pair.run_for(0.1)
    assert pair.server_received() == [b"21.5"]
    assert pair.server_connection.statistics.mac_failures == 0


@pytest.mark.parametrize("delay", [0.0, 0.2, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("where", ["accept", "server psk", "client psk"])
def test_an_answer_may_come_late(where, delay):
    pair = Pair(ClientConfig(psk_identity=IDENTITY) if where == "client psk" else None)
    attribute = {"accept": "accept_after", "server psk": "psk_after", "client psk": "client_psk_after"}[where]
    setattr(pair, attribute, delay)
    pair.handshake()
    assert delay <= pair.now <= delay + 1.0
    assert completed(pair.server_events).psk_identity == IDENTITY
    assert pair.server.statistics.half_open == 0


# --- datagram sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mtu", [256, 257, 300, 400, 512, 576, 1000, 1232, 1280, 1400])
@pytest.mark.parametrize("identity_length", [1, 128, 3000])
@pytest.mark.parametrize("suite", [raw.AES_128_CCM_8, raw.CHACHA20], ids=["CCM_8", "CHACHA20"])
def test_a_handshake_fits_through_every_mtu(mtu, identity_length, suite):
    identity = b"i" * identity_length
    pair = Pair(
        ClientConfig(psk_identity=identity, psk_key=KEY, mtu=mtu, cipher_suites=[suite]),
        ServerConfig(mtu=mtu, psk_identity_hint=b"h" * 128),
        keys={identity: [KEY]},
        network=Network(mtu=mtu),
    )
    pair.handshake()
    assert pair.now == 0.0, "a datagram was lost for its size"
    sizes = [len(entry.datagram.data) for entry in pair.network.log]
    assert max(sizes) <= mtu
    for end, other in (
        (pair.client, pair.server_received),
        (pair.server_connection, lambda: pair.client_end.received),
    ):
        end.send(bytes(end.max_payload), now=pair.now)
        pair.run_for(0.1)
        assert [len(data) for data in other()] == [end.max_payload]
        assert len(pair.network.log[-1].datagram.data) == mtu


def test_change_cipher_spec_and_finished_share_a_datagram():
    pair = Pair()
    pair.handshake()
    for source in ("client", "server"):
        last = raw.records(pair.network.sent_by(source)[-1].data)
        assert [record.type for record in last][-2:] == [raw.CHANGE_CIPHER_SPEC, raw.HANDSHAKE]


# --- determinism --------------------------------------------------------------------------------------


def transcript_of(seed, entropy_seed):
    network = Network(seed, loss=0.1, duplicate=0.1, reorder=0.1, delay=0.01)
    pair = Pair(network=network, seed=entropy_seed)
    pair.handshake()
    pair.client.send(b"21.5", now=pair.now)
    pair.run_for(2)
    pair.client.close(now=pair.now)
    pair.run_for(2)
    return network.log


def test_same_entropy_clock_and_datagrams_give_the_same_bytes_on_both_sides():
    assert transcript_of(3, 5) == transcript_of(3, 5)
    assert transcript_of(3, 5) != transcript_of(3, 6)


def test_each_side_alone_replays_a_recorded_handshake_byte_for_byte():
    pair = Pair(seed=9)
    pair.handshake()
    sent = {source: [each.data for each in pair.network.sent_by(source)] for source in ("client", "server")}
    client = ClientRig(seed=int.from_bytes(CounterEntropy(18)(8), "big"), path="server")
    replayed = client.sent()
    for data in sent["server"]:
        replayed += client.give(data, path="server")
    assert replayed == sent["client"]
    assert client.connection.state is ConnectionState.CONNECTED
    server = ServerRig(seed=19)
    replayed = []
    for data in sent["client"]:
        replayed += server.give(data, path="client")
    assert replayed == sent["server"]
    assert len(server.server) == 1


# --- several records and messages ---------------------------------------------------------------------


@settings(max_examples=40)
@given(st.lists(st.integers(1, 60), max_size=8), st.randoms(use_true_random=False), st.booleans())
def test_the_server_takes_its_flight_in_any_cut_and_any_order(cuts, shuffle, one_datagram):
    puppet = PuppetClient(identity=b"a rather long identity of a device")
    puppet.rig.keys[puppet.identity] = [KEY]
    puppet.hello()
    record = puppet.key_exchange()
    body = raw.fragments(raw.records(record)[0].payload)[0].data
    edges = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    pieces = [
        puppet.record(
            raw.HANDSHAKE,
            raw.fragment(16, body[start:end], message_seq=2, offset=start, total=len(body)),
        )
        for start, end in itertools.pairwise(edges)
    ]
    pieces += [puppet.change_cipher_spec(), puppet.finished()]
    pieces += shuffle.sample(pieces, shuffle.randint(0, len(pieces)))
    shuffle.shuffle(pieces)
    answers = []
    for group in [pieces] if one_datagram else [[piece] for piece in pieces]:
        answers += puppet.give(*group)
    if not any(raw.records(answer)[-1].epoch for answer in answers):
        # ChangeCipherSpec came before the message it follows and was of no use: the client repeats.
        puppet.rig.now += 1
        answers += puppet.give(*pieces) + puppet.give(puppet.change_cipher_spec(), *pieces)
    puppet.read_finished(answers)
    assert len(puppet.rig.server) == 1
    puppet.give(puppet.data(b"x"))
    assert puppet.rig.received == [b"x"]


def test_several_messages_in_one_record_are_understood():
    puppet = PuppetServer()
    puppet.verify_request()
    messages = b"".join(raw.records(record)[0].payload for record in puppet.flight_4())
    puppet.read_flight_5(puppet.give(puppet.record(raw.HANDSHAKE, messages)))
    puppet.finish()
    assert puppet.rig.connection.state is ConnectionState.CONNECTED


def test_data_in_the_datagram_of_the_finished_is_delivered_after_completion():
    puppet = PuppetClient()
    puppet.hello()
    puppet.give(puppet.key_exchange(), puppet.change_cipher_spec(), puppet.finished(), puppet.data(b"first"))
    kinds = [type(event) for event in puppet.rig.events]
    assert kinds.index(HandshakeCompleted) < kinds.index(DataReceived)
    assert puppet.rig.received == [b"first"]


def test_data_that_overtakes_the_finished_is_delivered_after_it():
    puppet = PuppetClient()
    puppet.hello()
    puppet.give(puppet.key_exchange(), puppet.change_cipher_spec())
    finished, data = puppet.finished(), puppet.data(b"early bird")
    puppet.give(data)
    assert puppet.rig.received == []
    puppet.give(finished)
    assert puppet.rig.received in ([b"early bird"], [])
    kinds = [type(event) for event in puppet.rig.events]
    assert DataReceived not in kinds or kinds.index(HandshakeCompleted) < kinds.index(DataReceived)


def test_extended_master_secret_can_be_insisted_on_by_both():
    required = ExtendedMasterSecret.REQUIRED
    pair = Pair(
        ClientConfig(psk_identity=IDENTITY, psk_key=KEY, extended_master_secret=required),
        ServerConfig(extended_master_secret=required),
    )
    pair.handshake()
    assert pair.client.negotiated is not None
    assert pair.client.negotiated.extended_master_secret


@settings(max_examples=60)
@given(
    suite=st.sampled_from(raw.ALL_SUITES),
    hint=st.none() | st.binary(min_size=1, max_size=128),
    identity=st.binary(max_size=128),
    lookup=st.sampled_from([0.0, 0.3, 2.5]),
    index=st.sampled_from([0, 1]),
    mtus=st.tuples(st.integers(256, 1400), st.integers(256, 1400)),
    key_lengths=st.tuples(st.integers(1, 64), st.integers(1, 64)),
)
def test_any_combination_of_options_completes(suite, hint, identity, lookup, index, mtus, key_lengths):
    keys = [b"k" * key_lengths[0], b"n" * key_lengths[1]]
    pair = Pair(
        ClientConfig(psk_identity=identity, psk_key=keys[index], mtu=mtus[0]),
        ServerConfig(psk_identity_hint=hint, mtu=mtus[1], cipher_suites=[suite]),
        keys={identity: keys},
    )
    pair.psk_after = lookup
    pair.handshake()
    assert pair.server_connection.negotiated == pair.client.negotiated
    assert completed(pair.server_events).psk_key_index == index
    pair.client.send(b"up", now=pair.now)
    pair.server_connection.send(b"down", now=pair.now)
    pair.run_for(0.1)
    assert (pair.server_received(), pair.client_end.received) == ([b"up"], [b"down"])


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("ems", [True, False], ids=["EMS", "no EMS"])
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
def test_either_key_lets_an_independent_client_in_with_or_without_ems(suite, ems, index, late):
    rig = ServerRig(keys={IDENTITY: [OLD_KEY, NEW_KEY]})
    rig.answer_requests = not late
    puppet = PuppetClient(rig, suite=suite, ems=ems, psk=(OLD_KEY, NEW_KEY)[index])
    puppet.hello()
    answers = puppet.give(puppet.key_exchange(), puppet.change_cipher_spec(), puppet.finished())
    if late:
        (request,) = [event for event in rig.events if isinstance(event, PskRequested)]
        rig._take(request.connection.provide_psk(request, [OLD_KEY, NEW_KEY], now=rig.now))
        answers += rig.sent()
    puppet.read_finished(answers)
    assert completed(rig.events).psk_key_index == index
