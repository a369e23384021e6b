"""What a bystander reads in recordings of others, and of ours; and recorded clients given to our server once more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sansdtls import (
    AuthenticationFailed,
    CipherSuite,
    ClientConfig,
    ConnectionIdPolicy,
    ConnectionTerminated,
    DataReceived,
    HandshakeCompleted,
    ResumptionPolicy,
    SecretDerived,
    ServerConfig,
    UsageError,
    key_log_line,
)
from sansdtls.recorded import (
    ContentType,
    HandshakeType,
    RecordedAssociation,
    Recording,
    Replay,
    Verdict,
    parse_key_log,
)
from sansdtls.testing import Fate, Network, Pair
from tests.recordings import RECORDINGS, recorded_datagrams, recorded_secrets

KEY = bytes.fromhex("00112233445566778899aabbccddeeff")
WRONG = bytes(16)
PORTS = {
    "openssl-psk-ccm8": 22501,
    "gnutls-ecdhe-ecdsa": 22502,
    "gnutls-rpk": 22501,
    "mbedtls-cid-psk": 22504,
}
PSK = (CipherSuite.TLS_PSK_WITH_AES_128_CCM_8,)


def test_a_handshake_without_end_takes_no_room_without_end():
    association = RecordedAssociation()
    for number in range(2000):
        message = b"\x63\x00\x00\x00" + number.to_bytes(2) + bytes(6)
        record = b"\x16\xfe\xfd\x00\x00" + number.to_bytes(6) + len(message).to_bytes(2) + message
        (seen,) = association.read(record, from_client=True)
        assert seen.messages[0].message_seq == number
    assert len(association._whole) == 128


def read(datagrams, **what_there_is):
    """A whole recording: (what is seen, the recording)."""
    recording = Recording(is_server=lambda source, _: source == "server", **what_there_is)
    seen = [
        recording.read(data, source=source, destination=destination)
        for source, destination, data in datagrams
    ]
    return seen, recording


def recorded(name):
    return [
        ("server" if each.source_port == PORTS[name] else "client", "server", each.payload)
        if each.source_port != PORTS[name]
        else ("server", "client", each.payload)
        for each in recorded_datagrams(name)
    ]


def data_in(seen, *, of_client):
    return [
        record.content
        for datagram in seen
        for record in datagram.records
        if record.content_type == ContentType.APPLICATION_DATA and datagram.from_client is of_client
    ]


def client_config(*, suites=PSK, key=KEY, policy=None, session=None):
    return ClientConfig(
        psk_identity=b"dev1", psk_key=key, cipher_suites=suites, connection_id=policy, session=session
    )


def pair(*, suites=PSK, keys=None, key=KEY, policy=None, **server):
    """A client and a server that tells its secrets."""
    config = client_config(suites=suites, key=key, policy=policy)
    server_config = ServerConfig(log_secrets=True, **server)
    return Pair(config, server_config, keys={b"dev1": [KEY] if keys is None else keys})


def on_the_wire(made):
    """What arrived of a pair's datagrams, once each."""
    return [
        (each.datagram.source, each.datagram.destination, each.datagram.data)
        for each in made.network.log
        if each.fate in (Fate.DELIVERED, Fate.LATE, Fate.DUPLICATED)
    ]


def secrets_of(made):
    lines = [key_log_line(event) for event in made.server_events if isinstance(event, SecretDerived)]
    return parse_key_log("\n".join(lines).encode())


# --- recordings of others -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PORTS)
def test_a_session_of_other_stacks_is_read_with_its_key_log(name):
    seen, recording = read(recorded(name), secrets=recorded_secrets(name))
    (association,) = recording.associations
    assert association.finished == {True: Verdict.PROVED, False: Verdict.PROVED}
    verdicts = {record.verdict for datagram in seen for record in datagram.records}
    assert verdicts == {Verdict.PLAIN, Verdict.OPENED}
    flights = [datagram.flight for datagram in seen]
    assert sorted(set(flights)) == ["", *"123456"]
    assert flights == sorted(flights, key=lambda flight: flight or "7")
    assert data_in(seen, of_client=True)[0].startswith((b"hello-peer", b"GET /"))


@pytest.mark.parametrize("name", ["openssl-psk-ccm8", "mbedtls-cid-psk"])
def test_of_plain_psk_the_key_is_enough_and_it_is_told_which(name):
    seen, recording = read(recorded(name), keys=lambda identity: [WRONG, KEY] if identity == b"dev1" else [])
    (association,) = recording.associations
    assert association.opener.key_index == 1
    assert association.finished == {True: Verdict.PROVED, False: Verdict.PROVED}
    assert len(data_in(seen, of_client=True)) > 0


def test_with_a_wrong_key_nothing_opens_and_without_any_it_is_said():
    for keys, verdict in (([WRONG], Verdict.NOT_AUTHENTIC), ([], Verdict.NO_KEY)):
        seen, recording = read(recorded("openssl-psk-ccm8"), keys=lambda _, keys=keys: keys)
        protected = {record.verdict for datagram in seen for record in datagram.records if record.epoch}
        assert protected == {verdict}
        assert recording.associations[0].opener is None


def test_a_changed_byte_in_the_handshake_is_seen_at_its_finished():
    datagrams = recorded("openssl-psk-ccm8")
    source, destination, answer = datagrams[3]
    # The last byte of ServerHello's random is under no record protection.
    position = 13 + 12 + 2 + 31
    changed = answer[:position] + bytes([answer[position] ^ 1]) + answer[position + 1 :]
    datagrams[3] = source, destination, changed
    seen, recording = read(datagrams, secrets=recorded_secrets("openssl-psk-ccm8"))
    assert Verdict.NOT_AUTHENTIC in {record.verdict for datagram in seen for record in datagram.records}
    assert recording.associations[0].finished == {}


def test_a_finished_that_does_not_fit_the_handshake_is_told():
    # Somebody has changed the identity. With the secret from the key log the records open all the same.
    datagrams = [
        (one, other, data.replace(b"dev1", b"dev2")) for one, other, data in recorded("openssl-psk-ccm8")
    ]
    _, recording = read(datagrams, secrets=recorded_secrets("openssl-psk-ccm8"))
    (association,) = recording.associations
    assert association.identity == b"dev2"
    assert association.finished == {True: Verdict.DISPROVED, False: Verdict.DISPROVED}
    # And where a message is missing nothing is claimed.
    without = recorded("openssl-psk-ccm8")
    del without[5]
    _, recording = read(without, secrets=recorded_secrets("openssl-psk-ccm8"))
    assert recording.associations[0].finished == {True: Verdict.PROVED, False: Verdict.UNPROVED}


def test_a_handshake_without_its_beginning_is_told_and_opens_nothing():
    seen, recording = read(recorded("mbedtls-cid-psk")[4:], secrets=recorded_secrets("mbedtls-cid-psk"))
    assert recording.associations[0].client_hello is None
    assert {record.verdict for each in seen for record in each.records} == {Verdict.PLAIN, Verdict.NO_KEY}
    # How long its connection ID is nobody has said; it adds up with this one.
    assert {record.connection_id for record in seen[2].records} == {bytes.fromhex("beef")}


# --- ours ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "suite", [suite for suite in CipherSuite if "_PSK_" in suite.name], ids=lambda s: s.name
)
def test_every_psk_suite_is_read_with_a_key_log(suite):
    made = pair(suites=(suite,))
    made.handshake()
    made.client.send(b"21.5", now=made.now)
    made.run_for(1)
    seen, recording = read(on_the_wire(made), secrets=secrets_of(made))
    assert data_in(seen, of_client=True) == [b"21.5"]
    assert recording.associations[0].finished == {True: Verdict.PROVED, False: Verdict.PROVED}


def test_a_resumed_session_is_read_and_proved():
    first = pair()
    first.handshake()
    first.run_for(1)
    session = first.client.session
    again = first.connect(client_config(session=session), "client-2")
    first.run_until(lambda: again.connection.negotiated is not None)
    again.connection.send(b"21.6", now=first.now)
    first.run_for(1)
    seen, recording = read(on_the_wire(first), secrets=secrets_of(first))
    assert [association.resumed for association in recording.associations] == [False, True]
    assert [datagram.flight for datagram in seen if datagram.number == 2] == ["1", "2", "3", "4b", "5b", ""]
    assert recording.associations[1].finished == {True: Verdict.PROVED, False: Verdict.PROVED}
    assert data_in(seen, of_client=True) == [b"21.6"]
    # By the key alone a session that is resumed cannot be opened: its secret is older than the recording.
    _, by_key = read(on_the_wire(first), keys=lambda _: [KEY])
    assert by_key.associations[0].opener is not None
    assert by_key.associations[1].opener is None


def test_a_device_that_moves_stays_one_association():
    made = pair(policy=ConnectionIdPolicy(length=0))
    made.handshake()
    made.client.send(b"here", now=made.now)
    made.run_for(1)
    datagrams = on_the_wire(made)
    made.client.send(b"there", now=made.now)
    made.run_for(1)
    later = on_the_wire(made)[len(datagrams) :]
    moved = [
        (
            source if source == "server" else "elsewhere",
            destination if destination == "server" else "elsewhere",
            data,
        )
        for source, destination, data in later
    ]
    recording = Recording(secrets=secrets_of(made), is_server=lambda _source, _destination: True)
    seen = [recording.read(data, source=one, destination=other) for one, other, data in datagrams + moved]
    assert len(recording.associations) == 1
    assert data_in(seen, of_client=True) == [b"here", b"there"]


def test_a_device_that_begins_anew_on_its_path_is_a_second_association():
    made = pair()
    made.handshake()
    made.client.send(b"one", now=made.now)
    made.run_for(1)
    second = Pair(client_config(), ServerConfig(log_secrets=True), keys={b"dev1": [KEY]}, seed=7)
    second.handshake()
    second.client.send(b"two", now=second.now)
    second.run_for(1)
    seen, recording = read(
        on_the_wire(made) + on_the_wire(second), secrets=secrets_of(made) | secrets_of(second)
    )
    assert len(recording.associations) == 2
    assert data_in(seen, of_client=True) == [b"one", b"two"]


@pytest.mark.parametrize("seed", range(5))
def test_loss_reordering_and_duplicates_do_not_keep_a_handshake_from_being_read(seed):
    made = Pair(
        ClientConfig(psk_identity=b"dev1", psk_key=KEY, cipher_suites=PSK, mtu=256),
        ServerConfig(log_secrets=True, mtu=256),
        keys={b"dev1": [KEY]},
        network=Network(seed=seed, loss=0.2, duplicate=0.2, reorder=0.2),
        seed=seed,
    )
    made.handshake()
    made.client.send(b"21.5", now=made.now)
    made.run_for(5)
    seen, recording = read(on_the_wire(made), keys=lambda _: [KEY])
    association = recording.associations[-1]
    assert association.finished[True] is Verdict.PROVED
    assert set(data_in(seen, of_client=True)) == set(made.server_received())


def test_what_is_sent_again_is_told():
    datagrams = recorded("openssl-psk-ccm8")
    seen, _ = read([*datagrams[:4], datagrams[3]])
    assert [message.again for record in seen[3].records for message in record.messages] == [False, False]
    assert [message.again for record in seen[4].records for message in record.messages] == [True, True]


# --- whatever a recording holds -----------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=200)), max_size=20))
def test_whatever_the_bytes_reading_raises_nothing(datagrams):
    read(
        [(("client", "server") if out else ("server", "client")) + (data,) for out, data in datagrams],
        keys=lambda _: [KEY],
    )


@given(st.data())
def test_whatever_is_changed_in_a_real_session_reading_raises_nothing(data):
    name = data.draw(st.sampled_from(sorted(PORTS)))
    datagrams = recorded(name)
    for _ in range(data.draw(st.integers(1, 6))):
        index = data.draw(st.integers(0, len(datagrams) - 1))
        source, destination, payload = datagrams[index]
        at = data.draw(st.integers(0, len(payload)))
        datagrams[index] = (
            source,
            destination,
            payload[:at] + data.draw(st.binary(max_size=4)) + payload[at + 1 :],
        )
    seen, _ = read(datagrams, secrets=recorded_secrets(name), keys=lambda _: [WRONG, KEY])
    for datagram in seen:
        for record in datagram.records:
            for message in record.messages:
                assert message.words.isprintable()


def test_a_message_that_claims_to_be_large_takes_no_memory():
    association = RecordedAssociation()
    header = bytes([1]) + (2**24 - 1).to_bytes(3) + bytes(2) + bytes(3) + (0).to_bytes(3)
    record = bytes([22]) + b"\xfe\xfd" + bytes(8) + len(header).to_bytes(2) + header
    for _ in range(100):
        (seen,) = association.read(record, from_client=True)
        assert seen.messages[0].body is None
    assert not association._parts


def test_secrets_are_in_no_representation():
    secrets = recorded_secrets("openssl-psk-ccm8")
    _, recording = read(recorded("openssl-psk-ccm8"), secrets=secrets)
    (association,) = recording.associations
    shown = repr(association) + repr(association.opener) + repr(recording)
    for secret in secrets.values():
        assert secret.hex() not in shown
        assert repr(secret) not in shown


def test_of_a_key_log_only_what_dtls_12_needs_is_read():
    content = (RECORDINGS / "openssl-psk-ccm8.keylog").read_bytes()
    assert parse_key_log(content) == recorded_secrets("openssl-psk-ccm8")
    line = content.splitlines()[-1]
    assert parse_key_log(b"# comment\nCLIENT_TRAFFIC_SECRET_0 00 11\r\n" + line.lower()) == {}
    assert parse_key_log(b"junk\xff\n  " + line + b"\r\n") == recorded_secrets("openssl-psk-ccm8")
    assert parse_key_log(line[:-2]) == {}


# --- once more ----------------------------------------------------------------------------------------


def replayed(datagrams, *, keys=lambda _: [KEY]):
    """The replay of a pair's datagrams and what came of it."""
    _, recording = read(datagrams, keys=keys)
    association = recording.associations[-1]
    replay = Replay(association, keys=keys, now=0.0)
    events = list(replay.begun.events)
    hello = association.hello_message
    sent = [data for source, _, data in datagrams if source == "client"]
    start = next(index for index, data in enumerate(sent) if hello.body in data)
    for number, data in enumerate(sent[start + 1 :], 1):
        for step in replay.receive(data, now=number / 100):
            events += step.events
    return replay, events


@pytest.mark.parametrize(
    ("policy", "server"),
    [
        (None, {}),
        (None, {"resumption": None}),
        (None, {"resumption": ResumptionPolicy(tickets=False)}),
        (None, {"psk_identity_hint": b"fleet"}),
        (None, {"record_size_limit": 1000}),
        (ConnectionIdPolicy(length=3), {}),
        (ConnectionIdPolicy(length=0), {"connection_id": ConnectionIdPolicy(length=5)}),
    ],
)
def test_a_recorded_device_gets_the_same_answers_and_its_data_arrive(policy, server):
    made = pair(policy=policy, **server)
    made.handshake()
    made.client.send(b"21.5", now=made.now)
    made.client.send(b"21.6", now=made.now)
    made.run_for(1)
    made.client.close(now=made.now)
    made.run_for(1)
    replay, events = replayed(on_the_wire(made))
    assert [event.data for event in events if isinstance(event, DataReceived)] == [b"21.5", b"21.6"]
    assert isinstance(events[-1], ConnectionTerminated)
    assert replay.differences() == []


def test_a_replay_tells_which_key_the_device_has():
    made = pair(keys=[WRONG, KEY])
    made.handshake()
    _, events = replayed(on_the_wire(made), keys=lambda _: [WRONG, KEY])
    (completed,) = [event for event in events if isinstance(event, HandshakeCompleted)]
    assert completed.psk_key_index == 1


def test_a_device_with_a_wrong_key_fails_in_the_replay_as_it_did():
    made = pair(key=WRONG)
    made.run_for(60)
    replay, events = replayed(on_the_wire(made))
    for step in replay.wait(now=1000.0):
        events += step.events
    assert isinstance(events[-1], ConnectionTerminated)
    assert isinstance(events[-1].cause, AuthenticationFailed)
    # With the key that the device really has it would have gone well.
    _, events = replayed(on_the_wire(made), keys=lambda _: [WRONG])
    assert any(isinstance(event, HandshakeCompleted) for event in events)


def test_what_cannot_be_replayed_is_refused_with_the_reason():
    for name, reason in (("gnutls-ecdhe-ecdsa", "ephemeral"),):
        _, recording = read(recorded(name), secrets=recorded_secrets(name))
        with pytest.raises(UsageError, match=reason):
            Replay(recording.associations[0], keys=lambda _: [KEY], now=0.0)
    _, recording = read(recorded("openssl-psk-ccm8")[4:])
    with pytest.raises(UsageError, match="hellos"):
        Replay(recording.associations[0], keys=lambda _: [KEY], now=0.0)


def test_another_stacks_server_hello_is_told_as_a_difference():
    replay, events = replayed(recorded("openssl-psk-ccm8"))
    assert "SERVER_HELLO 1 has another content" in replay.differences()
    assert not any(isinstance(event, HandshakeCompleted) for event in events)
    assert HandshakeType.SERVER_HELLO_DONE in {
        message.message_type for message in replay._ours.server_messages.values()
    }
