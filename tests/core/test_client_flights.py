"""Flights with messages missing, repeated or in another order: an oracle says which ones authenticate.

``MESSAGES`` names the messages by letters, so that a flight is a word. The puppets take part with all they know:
each message carries the next message_seq, each signature and each Finished fit what was really sent before. So
the order is what the other side sees, and nothing but the order is wrong.
"""

import itertools
import random
from collections.abc import Callable, Iterator

import pytest

from sansdtls import ClientAuthentication, ConnectionState, HandshakeCompleted, PeerCertificateReceived
from tests.core import raw
from tests.core.credentials import shown
from tests.core.ecdhe_puppets import EcdheClient, EcdheServer, client_config, server_config
from tests.core.key_schedule import Keys
from tests.core.puppet import ClientRig, ServerRig

READING = b"21.5"
MESSAGES = {
    "C": "Certificate",
    "E": "Certificate without a certificate",
    "K": "ClientKeyExchange",
    "V": "CertificateVerify",
    "S": "ChangeCipherSpec",
    "F": "Finished",
}


class Flight5:
    """A client that sends flight 5 letter by letter."""

    def __init__(self, policy: ClientAuthentication, suite: int = raw.ECDSA_AES_128_GCM):
        credentials = (shown("ed25519").certificate(),)
        config = server_config(client_authentication=policy, credentials=credentials)
        self.client = EcdheClient(ServerRig(config), suite=suite, credential=shown("ed25519"))
        self.client.hello()

    def record(self, letter: str) -> bytes:
        client = self.client
        match letter:
            case "C":
                return client.certificate()
            case "E":
                return client.certificate(bytes(3))
            case "K":
                keys = client.keys
                encoded = client.key_exchange()
                client.keys = keys or client.keys  # the server, too, would hold to the first
                return encoded
            case "V":
                return client.certificate_verify()
            case "S":
                return client.change_cipher_spec()
            case _:
                if client.keys is None:  # CVE-2014-0224: keys of which everybody knows the secret
                    randoms = client.random, client.peer_random
                    client.keys = Keys.from_premaster(client.suite, b"", *randoms, client.transcript)
                return client.finished()

    def send(self, word: str) -> None:
        for letter in word:
            self.client.give(self.record(letter))

    @property
    def completed(self) -> bool:
        return any(isinstance(event, HandshakeCompleted) for event in self.client.rig.events)

    @property
    def asked(self) -> bool:
        return any(isinstance(event, PeerCertificateReceived) for event in self.client.rig.events)

    @property
    def ended(self) -> bool:
        self.client.wait(0)
        return bool(self.client.rig.causes)


def authenticates(word: str, legal: tuple[str, ...]) -> bool:
    """The oracle. ChangeCipherSpec has no message_seq, so a reordering path may bring it at any time."""
    return "S" in word and word.replace("S", "").startswith(legal)


def living_words(alphabet: str, length: int, run: Callable[[str], bool], prefix: str = "") -> Iterator[str]:
    """Every word up to ``length`` whose proper beginnings end nothing: ``run`` tells whether a word does."""
    for letter in alphabet:
        word = prefix + letter
        yield word
        if not run(word) and len(word) < length:
            yield from living_words(alphabet, length, run, word)


POLICIES = {
    # policy, suite, letters tried: what has to come, in this order, ChangeCipherSpec aside
    (ClientAuthentication.REQUIRED, raw.ECDSA_AES_128_GCM, 5): ("CKVF",),
    (ClientAuthentication.WANTED, raw.ECDSA_AES_128_GCM, 4): ("CKVF", "EKF"),
    (ClientAuthentication.NONE, raw.ECDSA_AES_128_GCM, 4): ("KF",),
    (ClientAuthentication.REQUIRED, raw.ECDHE_PSK_AES_128_GCM, 4): ("KF",),
}


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: f"{policy[0].value}-{policy[1]:x}")
def test_a_client_flight_of_any_messages_in_any_order_authenticates_if_and_only_if_the_oracle_says_so(policy):
    legal, (*how, length) = POLICIES[policy], policy
    seen = set()

    def run(word: str) -> bool:
        flight = Flight5(*how)
        flight.send(word)
        expected = authenticates(word, legal)
        assert flight.completed is expected, word
        assert flight.asked is (word.replace("S", "").startswith("CKV") and "CKVF" in legal), word
        before = len(flight.client.rig.events)
        flight.client.give(flight.client.data(READING) if flight.client.keys else b"")
        ended = flight.ended
        assert flight.client.rig.received == ([READING] if expected and not ended else []), word
        assert len(flight.client.rig.server) == (expected and not ended), word
        assert len(flight.client.rig.events) - before <= 2
        seen.add(expected)
        return ended or expected

    words = list(living_words("".join(MESSAGES), length, run))
    assert len(words) > 50 * length
    assert seen == {True, False}


@pytest.mark.parametrize("repeated", "CKVSF")
def test_a_flight_with_one_message_sent_twice_anywhere_does_what_the_oracle_says(repeated):
    words = {"".join(word) for word in itertools.permutations("CKVSF" + repeated) if word[0] in "CSF"}
    # Of those that begin with Finished or ChangeCipherSpec a few are enough: the rest is covered above.
    for word in sorted(word for word in words if word.startswith("C") or word[1] == "C"):
        flight = Flight5(ClientAuthentication.REQUIRED)
        for letter in word:
            flight.client.give(flight.record(letter))
            if flight.client.rig.causes:
                break
        assert flight.completed is authenticates(word, ("CKVF",)), word


@pytest.mark.parametrize("length", [6, 7])
def test_longer_flights_with_any_messages_repeated_do_what_the_oracle_says(length):
    chance = random.Random(length)
    completed = 0
    for _ in range(150):
        letters = list("CKVSF") + chance.choices("CEKVSF", k=length - 5)
        if chance.random() < 0.5:
            chance.shuffle(letters)
        else:  # one of the added ones into a legal flight
            letters.insert(chance.randrange(len(letters)), letters.pop())
        flight = Flight5(ClientAuthentication.REQUIRED)
        flight.send("".join(letters))
        assert flight.completed is authenticates("".join(letters), ("CKVF",)), letters
        completed += flight.completed
    assert 5 < completed < 145


@pytest.mark.parametrize("size", range(6))
def test_what_a_path_reorders_or_loses_is_restored_by_message_seq(size):
    """The records of one right flight, in any order and with any missing; repeated if that is the remedy."""
    for order in itertools.permutations(range(5), size):
        flight = Flight5(ClientAuthentication.REQUIRED)
        records = [flight.record(letter) for letter in "CKVSF"]
        for index in order:
            flight.client.give(records[index])
        assert flight.completed is (size == 5), order
        assert not flight.ended
        for record in records:  # the client repeats its flight
            flight.client.give(record)
        assert flight.completed, order


@pytest.mark.parametrize("also", ["CKV", "CK", "C", ""])
def test_application_data_are_never_delivered_before_the_flight_is_complete(also):
    flight = Flight5(ClientAuthentication.REQUIRED)
    flight.send(also)
    client = flight.client
    client.give(client.record(raw.APPLICATION_DATA, READING))
    if client.keys is None:
        client.keys = Keys.from_premaster(
            client.suite, b"", client.random, client.peer_random, client.transcript
        )
    client.give(client.data(READING))
    client.give(client.change_cipher_spec())
    client.give(client.data(READING))
    assert client.rig.received == []
    assert not flight.completed


# --- the server's flight --------------------------------------------------------------------------------

SERVER_MESSAGES = {
    "H": "ServerHello",
    "C": "Certificate",
    "K": "ServerKeyExchange",
    "R": "CertificateRequest",
    "D": "ServerHelloDone",
}


class Flight4:
    """A server that sends flight 4 letter by letter."""

    def __init__(self, suite: int = raw.ECDSA_AES_128_GCM) -> None:
        rig = ClientRig(client_config(psk_identity=b"dev1", psk_key=b"key", server_name="server"))
        self.server = EcdheServer(rig, suite=suite, credential=shown("ed25519"))
        self.server.start_transcript()

    def record(self, letter: str) -> bytes:
        server = self.server
        kind, body = {
            "H": lambda: (raw.SERVER_HELLO, server.server_hello_body()),
            "C": lambda: (raw.CERTIFICATE, server.certificate_body()),
            "K": lambda: (raw.SERVER_KEY_EXCHANGE, server.key_exchange_body()),
            "R": lambda: (raw.CERTIFICATE_REQUEST, server.request_body()),
            "D": lambda: (raw.SERVER_HELLO_DONE, b""),
        }[letter]()
        return server.message(kind, body)

    @property
    def answered(self) -> bool:
        """Whether the client has sent its own flight."""
        return any(
            found.type == raw.CLIENT_KEY_EXCHANGE for found in raw.handshake_fragments(self.server.answers)
        )


@pytest.mark.parametrize(
    ("suite", "legal"),
    [
        (raw.ECDSA_AES_128_GCM, ("HCKD", "HCKRD")),
        (raw.ECDHE_PSK_AES_128_GCM, ("HKD",)),
        (raw.AES_128_GCM, ("HKD", "HD")),
    ],
    ids=["certificate", "ECDHE_PSK", "PSK"],
)
def test_a_server_flight_of_any_messages_in_any_order_is_answered_if_and_only_if_the_oracle_says_so(
    suite, legal
):
    if suite == raw.AES_128_GCM:
        legal = ("HD",)  # its ServerKeyExchange would be a hint, and this one is not

    def run(word: str) -> bool:
        flight = Flight4(suite)
        for letter in word:
            flight.server.give(flight.record(letter))
        assert flight.answered is word.startswith(legal), word
        asked = any(isinstance(event, PeerCertificateReceived) for event in flight.server.rig.events)
        assert asked is (flight.answered and "C" in word), word
        flight.server.wait(0)
        return flight.answered or flight.server.rig.connection.state is ConnectionState.CLOSED

    words = list(living_words("".join(SERVER_MESSAGES), 6, run))
    assert set(legal) <= set(words)
    assert len(words) >= 5 * (len(legal[0]))


@pytest.mark.parametrize("size", range(6))
def test_a_server_flight_that_a_path_reorders_is_restored_by_message_seq(size):
    for order in itertools.permutations(range(5), size):
        flight = Flight4()
        records = [flight.record(letter) for letter in "HCKRD"]
        for index in order:
            flight.server.give(records[index])
        assert flight.answered is (size == 5), order
        assert flight.server.rig.connection.state is ConnectionState.HANDSHAKING
