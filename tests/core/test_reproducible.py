"""The same entropy, clock and datagrams give the same bytes; and what becomes of a recording with errors in it."""

from typing import Any

import pytest

from sansdtls import CipherSuite, ConnectionState, DataReceived, HandshakeCompleted, SignatureScheme
from sansdtls.testing import CounterEntropy, Network, Pair
from tests.core import raw
from tests.core.credentials import shown
from tests.core.ecdhe_puppets import asking_config, client_config, psk_config
from tests.core.puppet import ClientRig, ServerRig

READING = b"21.5 degrees"
PKCS1 = (SignatureScheme.RSA_PKCS1_SHA256,)
PSS = (SignatureScheme.RSA_PSS_RSAE_SHA256,)
ANY = tuple(SignatureScheme)
REPRODUCIBLE = {
    "P-256": ("p256", ANY),
    "P-384": ("p384", ANY),
    "Ed25519": ("ed25519", ANY),
    "RSA PKCS #1": ("rsa", PKCS1),
}


def configs(kind: str, schemes, **more):
    """Mutual authentication with credentials of one kind."""
    shows = {"credentials": (shown(kind).certificate(),), "signature_schemes": schemes, **more}
    return client_config(**shows), asking_config(**shows)


def recorded(kind: str, schemes=ANY, *, seed: int = 4, **more) -> tuple[list[bytes], list[bytes]]:
    """What client and server sent: a whole handshake, data both ways, the end."""
    pair = Pair(*configs(kind, schemes, **more), seed=seed)
    pair.handshake()
    pair.run_for(0.1)
    pair.client.send(READING, now=pair.now)
    pair.server_connection.send(READING, now=pair.now)
    pair.run_for(0.1)
    client, server = ([each.data for each in pair.network.sent_by(who)] for who in ("client", "server"))
    return client, server


def receiver(role: str, kind: str, schemes=ANY, *, seed: int = 4, **more) -> ServerRig | ClientRig:
    """The client or server of the recording at its beginning, with the entropy that it had."""
    client, server = configs(kind, schemes, **more)
    if role == "server":
        return ServerRig(server, seed=2 * seed + 1)
    return ClientRig(client, seed=int.from_bytes(CounterEntropy(2 * seed)(8)), path="server")


def replay(rig: ServerRig | ClientRig, datagrams: list[bytes]) -> bytes:
    """What it answers to all of them."""
    peer = "client" if isinstance(rig, ServerRig) else "server"
    sent = [] if isinstance(rig, ServerRig) else rig.sent()
    for datagram in datagrams:
        sent += rig.give(datagram, peer)
    return b"".join(sent)


@pytest.mark.parametrize("name", REPRODUCIBLE)
@pytest.mark.parametrize("group", [raw.X25519, raw.SECP256R1, raw.SECP384R1])
def test_a_recorded_certificate_handshake_is_replayed_byte_for_byte(name, group):
    kind, schemes = REPRODUCIBLE[name]
    more: dict[str, Any] = {"groups": (group, *{raw.SECP256R1, raw.SECP384R1} - {group})}
    from_client, from_server = recorded(kind, schemes, **more)
    assert (from_client, from_server) == recorded(kind, schemes, **more)
    for role, ours, theirs in (
        ("server", from_server, from_client),
        ("client", from_client, from_server),
    ):
        rig = receiver(role, kind, schemes, **more)
        answered = replay(rig, theirs)
        assert len(answered) > 900
        assert b"".join(ours).startswith(answered), role
        assert rig.received == [READING]
    assert recorded(kind, schemes, seed=5, **more) != (from_client, from_server)


def test_rsa_pss_is_the_exception():
    # OpenSSL draws the salt. What is sent before the first signature and the size of everything stay the same.
    one, other = recorded("rsa", PSS), recorded("rsa", PSS)
    assert one != other
    for ours, theirs in zip(one, other, strict=True):
        assert [len(datagram) for datagram in ours] == [len(datagram) for datagram in theirs]
        assert ours[0] == theirs[0]
    messages, others = (raw.plaintext_messages(server[1:]) for _, server in (one, other))
    kinds = {kind for message_seq, (kind, body) in messages.items() if others[message_seq][1] != body}
    # The ticket holds a master secret, into which the signature goes by way of the transcript.
    assert kinds == {raw.SERVER_KEY_EXCHANGE, raw.NEW_SESSION_TICKET}


@pytest.mark.parametrize("suite", [suite for suite in CipherSuite if "ECDHE_PSK" in suite.name])
@pytest.mark.parametrize("way", ["ticket", "session ID"])
def test_a_recorded_handshake_with_ecdhe_psk_is_replayed_byte_for_byte(suite, way):
    logs = []
    for _ in range(2):
        pair = Pair(psk_config(cipher_suites=[suite], request_ticket=way == "ticket"), seed=7)
        pair.handshake()
        logs.append([carried.datagram for carried in pair.network.log])
    assert logs[0] == logs[1]


def test_loss_and_repetition_are_reproducible_too():
    logs = []
    for _ in range(2):
        network = Network(3, loss=0.3, duplicate=0.2, reorder=0.2)
        pair = Pair(*configs("p256", ANY, mtu=256), network=network, seed=3)
        pair.handshake()
        logs.append(network.log)
    assert logs[0] == logs[1]
    assert len(logs[0]) > 20


# --- recordings with errors in them ---------------------------------------------------------------------


def variants(datagram: bytes, step: int):
    """Truncations and single-bit changes, one of ``step`` each."""
    for length in range(0, len(datagram), step):
        yield datagram[:length]
    for bit in range(step % 8, 8 * len(datagram), 8 * step + 1):  # another bit of the byte each time
        changed = bytearray(datagram)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


@pytest.mark.parametrize("role", ["client", "server"])
def test_no_truncation_or_bit_flip_of_a_recorded_handshake_disturbs_a_live_association(role):
    from_client, from_server = recorded("p256")
    pair = Pair(*configs("p256", ANY), seed=4)  # the same handshake, so that its own records are among them
    pair.handshake()
    pair.run_for(0.1)
    connection = pair.client if role == "client" else pair.server_connection
    events = []
    for datagram in from_server if role == "client" else from_client:
        for noise in variants(datagram, 3):
            if role == "client":
                events += connection.receive_datagram(noise, now=pair.now, path="server")
            else:
                events += pair.server.receive_datagram(noise, now=pair.now, path="client")
    assert all(isinstance(event, DataReceived) and event.data == READING for event in events)
    assert connection.state is ConnectionState.CONNECTED
    assert pair.server.statistics.half_open == 0
    other = pair.server_connection if role == "client" else pair.client
    for _ in range(2):  # the first may have come as part of a variant that left its record intact
        other.send(b"still here", now=pair.now)
    pair.run_for(0.1)
    assert b"still here" in (pair.client_end.received if role == "client" else pair.server_received())


@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize("name", ["P-256", "RSA PKCS #1"])
def test_no_truncation_or_bit_flip_during_a_certificate_handshake_raises_or_delivers_anything(role, name):
    kind, schemes = REPRODUCIBLE[name]
    from_client, from_server = recorded(kind, schemes)
    theirs = from_server if role == "client" else from_client
    peer = "server" if role == "client" else "client"
    for position, datagram in enumerate(theirs):
        for noise in variants(datagram, max(1, len(datagram) // 25)):
            rig = receiver(role, kind, schemes)
            replay(rig, theirs[:position])
            rig.give(noise, peer)
            assert set(rig.received) <= {READING}
            for follow_up in theirs[position + 1 :]:
                rig.give(follow_up, peer)
            assert set(rig.received) <= {READING}
            rig.wait(0)
            assert len(rig.causes) <= 1


@pytest.mark.parametrize("role", ["client", "server"])
def test_an_altered_copy_before_a_genuine_datagram_never_lets_anybody_in(role):
    # Who alters what is sent in clear can end a handshake, and nothing else.
    from_client, from_server = recorded("ed25519")
    theirs = from_server if role == "client" else from_client
    completed = 0
    for position, datagram in enumerate(theirs):
        for noise in variants(datagram, max(1, len(datagram) // 10)):
            rig = receiver(role, "ed25519")
            replay(rig, [*theirs[:position], noise, *theirs[position:]])
            connected = [event for event in rig.events if hasattr(event, "psk_key_index")]
            completed += len(connected)
            assert set(rig.received) <= ({READING} if connected else set())
            for event in connected:
                assert isinstance(event, HandshakeCompleted)
                assert event.connection.peer is not None
                assert event.connection.peer.certificate_chain == shown("ed25519").chain
    assert completed > 20
