"""Peers on strings: a DTLS 1.2 client and a server that do only what a test tells them, right or wrong.

They share no code with ``sansdtls``. Each sits across a *rig*, which holds the side under test and answers
for its caller (accept every offer, give the keys). ``give`` hands a datagram over and returns the answers.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, Self

from cryptography.exceptions import InvalidTag

from sansdtls import (
    ClientConfig,
    Connection,
    ConnectionOffered,
    ConnectionTerminated,
    DataReceived,
    PeerCertificateReceived,
    PeerRawKeyReceived,
    PskRequested,
    Server,
    ServerConfig,
)
from sansdtls.testing import CounterEntropy
from tests.core import raw
from tests.core.key_schedule import Keys, Protection

if TYPE_CHECKING:
    from sansdtls import AlertDescription, Cause, Event

IDENTITY = b"dev1"
KEY = bytes.fromhex("00112233445566778899aabbccddeeff")
PATH = "peer"


def judge(
    request: PeerCertificateReceived | PeerRawKeyReceived, alert: AlertDescription | None, now: float
) -> list[Event]:
    """Reject the peer with ``alert``, or accept it where there is none."""
    if alert is None:
        return request.connection.accept_peer(request, now=now)
    return request.connection.reject_peer(request, alert, now=now)


# --- rigs: the side under test ------------------------------------------------------------------------


class ServerRig:
    """A :class:`sansdtls.Server` under test; offers are accepted and keys given at once."""

    def __init__(self, config: ServerConfig | None = None, keys=None, *, seed: int = 1, now: float = 0.0):
        self.now = now
        self.keys = {IDENTITY: [KEY]} if keys is None else keys
        self.entropy = CounterEntropy(seed)
        self.server = Server(config or ServerConfig(), entropy=self.entropy, now=now)
        self.events: list[Event] = []
        self.answer_offers = self.answer_requests = True
        self.verdict: AlertDescription | None = None
        """On what peers show: the alert to reject them with, or ``None`` to accept them."""

    @property
    def connection(self) -> Connection:
        """The established connection that was used last."""
        return list(self.server.connections)[-1]

    def give(self, data: bytes, path="peer") -> list[bytes]:
        self._take(self.server.receive_datagram(data, path=path, now=self.now))
        return self.sent(path)

    def sent(self, path="peer") -> list[bytes]:
        outgoing = self.server.datagrams_to_send()
        assert all(each.path == path for each in outgoing), "an answer to somebody else"
        return [each.data for each in outgoing]

    def wait(self, seconds: float, path="peer") -> list[bytes]:
        """Let time pass, handling every timeout at its exact time."""
        end, sent = self.now + seconds, []
        while (due := self.server.next_timeout()) is not None and due <= end:
            self.now = max(self.now, due)
            self._take(self.server.handle_timeout(now=self.now))
            sent += self.sent(path)
        self.now = end
        return sent

    def _take(self, events) -> None:
        for event in events:
            self.events.append(event)
            if isinstance(event, ConnectionOffered) and self.answer_offers:
                self.server.accept(event, now=self.now)
            elif isinstance(event, PskRequested) and self.answer_requests:
                keys = self.keys.get(event.identity, [])
                self._take(event.connection.provide_psk(event, keys, now=self.now))
            elif isinstance(event, PeerCertificateReceived | PeerRawKeyReceived) and self.answer_requests:
                self._take(judge(event, self.verdict, self.now))

    @property
    def received(self) -> list[bytes]:
        return [event.data for event in self.events if isinstance(event, DataReceived)]

    @property
    def causes(self) -> list[Cause]:
        return [event.cause for event in self.events if isinstance(event, ConnectionTerminated)]


class ClientRig:
    """A client :class:`sansdtls.Connection` under test."""

    def __init__(
        self, config: ClientConfig | None = None, *, keys=None, seed: int = 2, now: float = 0.0, path=PATH
    ):
        self.now = now
        self.keys = {IDENTITY: [KEY]} if keys is None else keys
        self.connection = Connection.client(
            config or ClientConfig(psk_identity=IDENTITY, psk_key=KEY),
            entropy=CounterEntropy(seed),
            now=now,
            path=path,
        )
        self.events: list[Event] = []
        self.answer_requests = True
        self.verdict: AlertDescription | None = None

    def give(self, data: bytes, path=PATH) -> list[bytes]:
        self._take(self.connection.receive_datagram(data, now=self.now, path=path))
        return self.sent()

    def sent(self) -> list[bytes]:
        return [each.data for each in self.connection.datagrams_to_send()]

    def wait(self, seconds: float) -> list[bytes]:
        """Let time pass, handling every timeout at its exact time."""
        end, sent = self.now + seconds, []
        while (due := self.connection.next_timeout()) is not None and due <= end:
            self.now = max(self.now, due)
            self._take(self.connection.handle_timeout(now=self.now))
            sent += self.sent()
        self.now = end
        return sent

    def _take(self, events) -> None:
        for event in events:
            self.events.append(event)
            if isinstance(event, PskRequested) and self.answer_requests:
                keys = self.keys.get(event.identity, [])
                self._take(event.connection.provide_psk(event, keys, now=self.now))
            elif isinstance(event, PeerCertificateReceived | PeerRawKeyReceived) and self.answer_requests:
                self._take(judge(event, self.verdict, self.now))

    @property
    def received(self) -> list[bytes]:
        return [event.data for event in self.events if isinstance(event, DataReceived)]

    @property
    def causes(self) -> list[Cause]:
        return [event.cause for event in self.events if isinstance(event, ConnectionTerminated)]


# --- puppets ------------------------------------------------------------------------------------------


class Puppet(abc.ABC):
    """What both roles share: numbering, the transcript, keys, and a log of all that came back."""

    role: str
    other_role: str

    @abc.abstractmethod
    def handshake(self) -> Self:
        """All of it, as an honest peer does it."""

    def __init__(
        self, rig: Any, *, psk: bytes = KEY, suite: int = raw.AES_128_GCM, ems: bool = True, path="peer"
    ):
        self.rig = rig
        self.psk = psk
        self.suite = suite
        self.ems = ems
        self.path = path
        self.random = bytes(range(32)) if self.role == "client" else bytes(range(100, 132))
        self.peer_random = b""
        self.message_seq = 0
        self.record_seq = [0, 0]
        self.transcript = b""
        self.keys: Keys | None = None
        self.answers: list[bytes] = []
        """Every datagram that came back."""
        self.peer_verify_data: bytes | None = None

    @property
    def id_length(self) -> int:
        """Of the connection ID in records to it."""
        return 0

    # --- sending ---

    def give(self, *encoded: bytes) -> list[bytes]:
        """Hand over these records as one datagram."""
        answers: list[bytes] = self.rig.give(b"".join(encoded), self.path)
        self.answers += answers
        return answers

    def wait(self, seconds: float) -> list[bytes]:
        answers: list[bytes] = (
            self.rig.wait(seconds, self.path) if self.role == "client" else self.rig.wait(seconds)
        )
        self.answers += answers
        return answers

    def record(self, content_type: int, payload: bytes, *, epoch: int = 0, seq: int | None = None) -> bytes:
        """A record with the next sequence number, protected in epoch 1."""
        if seq is None:
            seq = self.record_seq[epoch]
            self.record_seq[epoch] += 1
        if epoch == 0:
            return raw.record(content_type, payload, seq=seq)
        return self.protection(self.role).seal(content_type, payload, epoch=epoch, seq=seq)

    def message(self, message_type: int, body: bytes, *, epoch: int = 0, in_transcript: bool = True) -> bytes:
        """A record with one whole message, with the next message_seq."""
        encoded = raw.fragment(message_type, body, message_seq=self.message_seq)
        self.message_seq += 1
        if in_transcript:
            self.transcript += encoded
        return self.record(raw.HANDSHAKE, encoded, epoch=epoch)

    def change_cipher_spec(self) -> bytes:
        return self.record(raw.CHANGE_CIPHER_SPEC, b"\x01")

    def finished(self, verify_data: bytes | None = None) -> bytes:
        return self.message(raw.FINISHED, self.verify_data() if verify_data is None else verify_data, epoch=1)

    def data(self, payload: bytes, *, epoch: int = 1, seq: int | None = None) -> bytes:
        return self.record(raw.APPLICATION_DATA, payload, epoch=epoch, seq=seq)

    def alert(self, level: int, description: int, *, epoch: int = 0) -> bytes:
        return self.record(raw.ALERT, bytes([level, description]), epoch=epoch)

    def verify_data(self) -> bytes:
        assert self.keys is not None
        return self.keys.verify_data(self.role, self.transcript)

    # --- keys ---

    def derive_keys(self) -> None:
        """Once ClientKeyExchange is in the transcript."""
        client, server = self.random, self.peer_random
        if self.role == "server":
            client, server = server, client
        self.keys = Keys.from_psk(self.suite, self.psk, client, server, self.transcript if self.ems else None)

    def protection(self, role: str) -> Protection:
        """How ``role`` protects what it sends."""
        assert self.keys is not None
        return self.keys.client if role == "client" else self.keys.server

    # --- reading ---

    def opened(self, datagrams: list[bytes] | None = None) -> list[tuple[int, bytes]]:
        """(content type, plaintext) of every protected record in ``datagrams`` (default: all) that opens."""
        found = []
        for datagram in self.answers if datagrams is None else datagrams:
            for each in raw.records(datagram, self.id_length):
                if each.epoch == 1 and self.keys is not None:
                    try:
                        found.append((each.type, self.protection(self.other_role).open(each)))
                    except InvalidTag:
                        continue
        return found

    def alerts(self, datagrams: list[bytes] | None = None) -> list[tuple[int, int]]:
        """(level, description) of every alert in ``datagrams`` (default: all), plain or protected."""
        chosen = self.answers if datagrams is None else datagrams
        plain = [
            (each.payload[0], each.payload[1])
            for datagram in chosen
            for each in raw.records(datagram, self.id_length)
            if each.type == raw.ALERT and each.epoch == 0
        ]
        return plain + [(body[0], body[1]) for kind, body in self.opened(chosen) if kind == raw.ALERT]

    @property
    def application_data(self) -> list[bytes]:
        return [body for kind, body in self.opened() if kind == raw.APPLICATION_DATA]

    def read_finished(self, datagrams: list[bytes]) -> None:
        """Check the peer's Finished against the transcript, and add it."""
        for kind, body in self.opened(datagrams):
            if kind == raw.HANDSHAKE and body[0] == raw.FINISHED:
                assert self.keys is not None
                assert body[12:] == self.keys.verify_data(self.other_role, self.transcript)
                self.peer_verify_data = body[12:]
                self.transcript += body
                return
        raise AssertionError("no Finished came")


class PuppetClient(Puppet):
    """Across a :class:`ServerRig`. In the order of the handshake: ``hello``, ``key_exchange``, ``finish``."""

    role, other_role = "client", "server"
    rig: ServerRig

    def __init__(self, rig: ServerRig | None = None, *, identity: bytes = IDENTITY, **more):
        super().__init__(rig or ServerRig(), **more)
        self.identity = identity
        self.cookie = b""
        self.hello_options: dict = {}

    def hello_body(self, **more) -> bytes:
        extensions = raw.DEFAULT_EXTENSIONS if self.ems else (raw.RENEGOTIATION_INFO,)
        options = {"random": self.random, "suites": (self.suite, raw.SCSV), "extensions": extensions}
        return raw.client_hello(**{**options, "cookie": self.cookie, **self.hello_options, **more})

    def get_cookie(self) -> None:
        answers = self.give(self.message(raw.CLIENT_HELLO, self.hello_body(), in_transcript=False))
        ((_, body),) = raw.plaintext_messages(answers, self.id_length).values()
        self.cookie = raw.parse_cookie(body)

    def hello(self) -> list[bytes]:
        """Both hellos; reads the answer."""
        self.get_cookie()
        answers = self.give(self.message(raw.CLIENT_HELLO, self.hello_body()))
        self.read_server_flight(answers)
        return answers

    def read_server_flight(self, answers: list[bytes]) -> None:
        self.server_messages = raw.plaintext_messages(answers, self.id_length)
        for message_seq, (kind, body) in self.server_messages.items():
            self.transcript += raw.fragment(kind, body, message_seq=message_seq)
            if kind == raw.SERVER_HELLO:
                self.server_hello = raw.parse_server_hello(body)
                self.peer_random, self.suite = self.server_hello.random, self.server_hello.suite
        assert self.server_messages, "no ServerHello came"

    def key_exchange(self, body: bytes | None = None) -> bytes:
        """The record; the keys are there afterwards."""
        encoded = self.message(
            raw.CLIENT_KEY_EXCHANGE, raw.vector(self.identity, 2) if body is None else body
        )
        self.derive_keys()
        return encoded

    def finish(self) -> list[bytes]:
        """The whole of flight 5, in one datagram; reads flight 6."""
        answers = self.give(self.key_exchange(), self.change_cipher_spec(), self.finished())
        self.read_finished(answers)
        return answers

    def handshake(self) -> Self:
        self.hello()
        self.finish()
        return self


class PuppetServer(Puppet):
    """Across a :class:`ClientRig`. ``read_hello``, ``answer_hello``, then ``finish``."""

    role, other_role = "server", "client"
    rig: ClientRig

    def __init__(self, rig: ClientRig | None = None, *, hint: bytes | None = None, cookie=b"c" * 32, **more):
        super().__init__(rig or ClientRig(), **more)
        self.path = PATH
        self.hint = hint
        self.cookie = cookie
        self.answers += self.rig.sent()
        self.read_hello(self.answers)

    def read_hello(self, datagrams: list[bytes]) -> None:
        (self.client_message_seq,) = messages = raw.plaintext_messages(datagrams, self.id_length)
        kind, body = messages[self.client_message_seq]
        assert kind == raw.CLIENT_HELLO
        self.client_hello_body = body
        self.client_hello = raw.parse_client_hello(body)
        self.peer_random = self.client_hello.random

    def verify_request(self) -> list[bytes]:
        """Send HelloVerifyRequest and read the hello that comes back."""
        body = raw.hello_verify_request(self.cookie)
        answers = self.give(self.message(raw.HELLO_VERIFY_REQUEST, body, in_transcript=False))
        self.read_hello(answers)
        assert self.client_hello.cookie == self.cookie
        return answers

    def server_hello_body(self, **more) -> bytes:
        extensions = raw.DEFAULT_EXTENSIONS if self.ems else (raw.RENEGOTIATION_INFO,)
        options = {"random": self.random, "suite": self.suite, "extensions": extensions}
        return raw.server_hello(**{**options, **more})

    def start_transcript(self) -> None:
        self.transcript = raw.fragment(
            raw.CLIENT_HELLO, self.client_hello_body, message_seq=self.client_message_seq
        )

    def flight_4(self, **hello) -> list[bytes]:
        """The records ServerHello, ServerKeyExchange (with a hint), ServerHelloDone."""
        self.start_transcript()
        encoded = [self.message(raw.SERVER_HELLO, self.server_hello_body(**hello))]
        if self.hint is not None:
            encoded.append(self.message(raw.SERVER_KEY_EXCHANGE, raw.vector(self.hint, 2)))
        encoded.append(self.message(raw.SERVER_HELLO_DONE, b""))
        return encoded

    def answer_hello(self) -> list[bytes]:
        """Send flight 4 and read flight 5."""
        answers = self.give(*self.flight_4())
        self.read_flight_5(answers)
        return answers

    def read_flight_5(self, answers: list[bytes]) -> None:
        ((message_seq, (kind, body)),) = raw.plaintext_messages(answers, self.id_length).items()
        assert kind == raw.CLIENT_KEY_EXCHANGE
        self.client_key_exchange = body
        self.transcript += raw.fragment(kind, body, message_seq=message_seq)
        self.derive_keys()
        self.read_finished(answers)

    def finish(self) -> list[bytes]:
        return self.give(self.change_cipher_spec(), self.finished())

    def handshake(self) -> Self:
        self.verify_request()
        self.answer_hello()
        self.finish()
        return self
