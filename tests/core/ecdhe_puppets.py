"""Puppets for ECDHE: with a PSK, with certificates, with raw public keys. As those of ``puppet.py``, which they extend.

Key exchange and signatures are computed here with ``cryptography``; what the side under test sends is checked
against that.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sansdtls import CertificateType, ClientAuthentication, ClientConfig, ServerConfig
from tests.core import raw
from tests.core.credentials import ALL_SCHEMES, SCHEMES_OF_KIND, Shown, shown, spki_of, verifies
from tests.core.key_schedule import Keys, premaster_psk
from tests.core.puppet import IDENTITY, KEY, ClientRig, Puppet, PuppetClient, PuppetServer, ServerRig

CURVES = {raw.SECP256R1: ec.SECP256R1(), raw.SECP384R1: ec.SECP384R1()}
GROUPS = (raw.X25519, raw.SECP256R1, raw.SECP384R1)
X509_AND_RAW = (CertificateType.X509, CertificateType.RAW_PUBLIC_KEY)


class Ephemeral:
    """A key pair for one handshake."""

    def __init__(self, group: int):
        self.group = group
        self._private: x25519.X25519PrivateKey | ec.EllipticCurvePrivateKey
        if group == raw.X25519:
            self._private = x25519.X25519PrivateKey.generate()
            self.public = self._private.public_key().public_bytes_raw()
        else:
            self._private = ec.generate_private_key(CURVES[group])
            self.public = self._private.public_key().public_bytes(
                Encoding.X962, PublicFormat.UncompressedPoint
            )

    def shared(self, other: bytes) -> bytes:
        if isinstance(self._private, x25519.X25519PrivateKey):
            return self._private.exchange(x25519.X25519PublicKey.from_public_bytes(other))
        point = ec.EllipticCurvePublicKey.from_encoded_point(CURVES[self.group], other)
        return self._private.exchange(ec.ECDH(), point)


def scheme_for(credential: Shown) -> int:
    return SCHEMES_OF_KIND[credential.kind.partition(" ")[0]][0]


def hello_extensions(puppet: EcdheClient) -> tuple[tuple[int, bytes], ...]:
    extensions = [
        *(raw.DEFAULT_EXTENSIONS if puppet.ems else (raw.RENEGOTIATION_INFO,)),
        raw.supported_groups(*puppet.groups),
        raw.POINT_FORMATS,
        raw.signature_algorithms(*ALL_SCHEMES),
    ]
    if puppet.raw_public_keys:
        extensions += [(19, b"\x01\x02"), (20, b"\x01\x02")]
    return (*extensions, *puppet.more_extensions)


class _Ecdhe(Puppet):
    """Both roles."""

    group: int
    credential: Shown | None
    raw_public_keys: bool
    shared: bytes
    with_psk: bool

    def certificate_body(self) -> bytes:
        if self.credential is None:
            return bytes(3)
        if self.raw_public_keys:
            return raw.vector(self.credential.spki, 3)
        return raw.certificate(self.credential.chain)

    def spki_in(self, certificate_body: bytes) -> bytes:
        if self.raw_public_keys:
            return certificate_body[3:]
        return spki_of(raw.parse_certificate(certificate_body)[0])

    def derive_keys(self) -> None:
        client, server = self.random, self.peer_random
        if self.role == "server":
            client, server = server, client
        premaster = premaster_psk(self.psk, self.shared) if self.with_psk else self.shared
        hashed = self.transcript if self.ems else None
        self.keys = Keys.from_premaster(self.suite, premaster, client, server, hashed)


class EcdheClient(_Ecdhe, PuppetClient):
    """In the order of the handshake: ``hello``, ``certificate``, ``key_exchange``, ``certificate_verify``, ``finish``.

    Shows ``credential`` where it is asked for one.
    """

    def __init__(
        self,
        rig: ServerRig | None = None,
        *,
        suite: int = raw.ECDSA_AES_128_GCM,
        groups: tuple[int, ...] = GROUPS,
        random: bytes | None = None,
        credential: Shown | None = None,
        raw_public_keys: bool = False,
        more_extensions: tuple[tuple[int, bytes], ...] = (),
        **more,
    ):
        super().__init__(rig or ServerRig(server_config()), suite=suite, **more)
        self.random = random or self.random
        self.groups = groups
        self.credential = credential
        self.raw_public_keys = raw_public_keys
        self.more_extensions = more_extensions
        self.with_psk = suite in raw.ECDHE_PSK_SUITES

    def hello_body(self, **more) -> bytes:
        return super().hello_body(**{"extensions": hello_extensions(self), **more})

    @property
    def asked(self) -> bool:
        """Whether the server has asked for a certificate."""
        return raw.CERTIFICATE_REQUEST in dict(self.server_messages.values())

    def read_server_flight(self, answers: list[bytes]) -> None:
        super().read_server_flight(answers)
        bodies = dict(self.server_messages.values())
        body = bodies[raw.SERVER_KEY_EXCHANGE]
        if self.with_psk:
            body = body[2 + int.from_bytes(body[:2], "big") :]
        assert body[0] == 3
        self.group = int.from_bytes(body[1:3], "big")
        assert self.group in self.groups
        end = 4 + body[3]
        self.server_public = body[4:end]
        if self.with_psk:
            assert raw.CERTIFICATE not in bodies
            assert end == len(body)
            return
        self.server_spki = self.spki_in(bodies[raw.CERTIFICATE])
        self.server_scheme, signature = int.from_bytes(body[end : end + 2], "big"), body[end + 4 :]
        assert verifies(
            self.server_spki, self.server_scheme, self.random + self.peer_random + body[:end], signature
        )

    def certificate(self, body: bytes | None = None) -> bytes:
        return self.message(raw.CERTIFICATE, self.certificate_body() if body is None else body)

    def key_exchange(self, body: bytes | None = None) -> bytes:
        ephemeral = Ephemeral(self.group)
        self.shared = ephemeral.shared(self.server_public)
        if body is None:
            body = raw.vector(self.identity, 2) if self.with_psk else b""
            body += raw.vector(ephemeral.public, 1)
        return super().key_exchange(body)

    def certificate_verify(self, body: bytes | None = None) -> bytes:
        if body is None:
            assert self.credential is not None
            scheme = scheme_for(self.credential)
            body = raw.signed(scheme, self.credential.sign(scheme, self.transcript))
        return self.message(raw.CERTIFICATE_VERIFY, body)

    def flight_5(self) -> list[bytes]:
        """The records, one for each message."""
        flight = [self.certificate()] if self.asked else []
        flight.append(self.key_exchange())
        if self.asked and self.credential is not None:
            flight.append(self.certificate_verify())
        return [*flight, self.change_cipher_spec(), self.finished()]

    def finish(self) -> list[bytes]:
        answers = self.give(*self.flight_5())
        self.read_flight_6(answers)
        return answers

    def offer(self, *, ticket: bytes | None = None, session_id: bytes = b"") -> list[bytes]:
        """Both hellos, offering to resume a session; the answers to the second, unread."""
        if ticket is not None:
            self.more_extensions = (*self.more_extensions, (35, ticket))
        self.hello_options = {**self.hello_options, "session_id": session_id}
        self.get_cookie()
        return self.give(self.message(raw.CLIENT_HELLO, self.hello_body()))

    def resume(self, answers: list[bytes], master_secret: bytes) -> list[bytes]:
        """Flight 4b was the answer: check it, and send flight 5b."""
        PuppetClient.read_server_flight(self, answers)
        assert [kind for kind, _ in self.server_messages.values()] == [raw.SERVER_HELLO]
        self.keys = Keys(self.suite, master_secret, self.random, self.peer_random)
        self.read_finished(answers)
        return self.give(self.change_cipher_spec(), self.finished())

    def read_flight_6(self, answers: list[bytes]) -> None:
        for message_seq, (kind, body) in raw.plaintext_messages(answers).items():
            assert kind == raw.NEW_SESSION_TICKET
            self.transcript += raw.fragment(kind, body, message_seq=message_seq)
            self.ticket = body[6:]
        self.read_finished(answers)


class EcdheServer(_Ecdhe, PuppetServer):
    """Asks for a certificate where ``asks``."""

    def __init__(
        self,
        rig: ClientRig | None = None,
        *,
        suite: int = raw.ECDSA_AES_128_GCM,
        group: int = raw.X25519,
        credential: Shown | None = None,
        raw_public_keys: bool = False,
        asks: bool = False,
        more_extensions: tuple[tuple[int, bytes], ...] = (),
        **more,
    ):
        self.group = group
        self.credential = credential or shown("rsa" if suite in raw.RSA_SUITES else "p256")
        self.raw_public_keys = raw_public_keys
        self.more_extensions = more_extensions
        self.asks = asks
        self.with_psk = suite in raw.ECDHE_PSK_SUITES
        super().__init__(rig or ClientRig(client_config()), suite=suite, **more)
        self.ephemeral = Ephemeral(group)

    def server_hello_body(self, **more) -> bytes:
        extensions = [*(raw.DEFAULT_EXTENSIONS if self.ems else (raw.RENEGOTIATION_INFO,)), raw.POINT_FORMATS]
        if self.raw_public_keys:
            extensions += [(20, b"\x02"), *([(19, b"\x02")] if self.asks else [])]
        return super().server_hello_body(**{"extensions": (*extensions, *self.more_extensions), **more})

    def key_exchange_body(self, *, parameters: bytes | None = None, scheme: int | None = None) -> bytes:
        if parameters is None:
            parameters = raw.ecdhe_parameters(self.group, self.ephemeral.public)
        if self.with_psk:
            return raw.vector(self.hint or b"", 2) + parameters
        assert self.credential is not None
        scheme = scheme_for(self.credential) if scheme is None else scheme
        signature = self.credential.sign(scheme, self.peer_random + self.random + parameters)
        return parameters + raw.signed(scheme, signature)

    def request_body(self) -> bytes:
        return raw.certificate_request(b"\x40\x01", ALL_SCHEMES)

    def flight_4(self, **hello) -> list[bytes]:
        self.start_transcript()
        encoded = [self.message(raw.SERVER_HELLO, self.server_hello_body(**hello))]
        if not self.with_psk:
            encoded.append(self.message(raw.CERTIFICATE, self.certificate_body()))
        encoded.append(self.message(raw.SERVER_KEY_EXCHANGE, self.key_exchange_body()))
        if self.asks:
            encoded.append(self.message(raw.CERTIFICATE_REQUEST, self.request_body()))
        return [*encoded, self.message(raw.SERVER_HELLO_DONE, b"")]

    def resume(self, master_secret: bytes, *, ticket: bytes | None = None, **hello) -> list[bytes]:
        """Flight 4b, with what ``hello`` says in ServerHello; the client's answers, unread."""
        self.start_transcript()
        extensions = (*raw.DEFAULT_EXTENSIONS, *([(35, b"")] if ticket is not None else []))
        options = {"session_id": self.client_hello.session_id, "extensions": extensions, **hello}
        encoded = [self.message(raw.SERVER_HELLO, self.server_hello_body(**options))]
        if ticket is not None:
            encoded.append(self.message(raw.NEW_SESSION_TICKET, bytes(4) + raw.vector(ticket, 2)))
        self.keys = Keys(options.get("suite", self.suite), master_secret, self.peer_random, self.random)
        return self.give(*encoded, self.change_cipher_spec(), self.finished())

    def read_flight_5(self, answers: list[bytes]) -> None:
        self.client_messages = raw.plaintext_messages(answers)
        spki = b""
        for message_seq, (kind, body) in self.client_messages.items():
            before = self.transcript
            self.transcript += raw.fragment(kind, body, message_seq=message_seq)
            if kind == raw.CERTIFICATE:
                self.client_certificate = body
                spki = self.spki_in(body) if body != bytes(3) else b""
            elif kind == raw.CLIENT_KEY_EXCHANGE:
                self.client_key_exchange = body
                share = body[2 + int.from_bytes(body[:2], "big") :] if self.with_psk else body
                assert share[0] == len(share) - 1
                self.client_public = share[1:]
                self.shared = self.ephemeral.shared(self.client_public)
                self.derive_keys()
            else:
                assert kind == raw.CERTIFICATE_VERIFY
                self.client_scheme = int.from_bytes(body[:2], "big")
                assert verifies(spki, self.client_scheme, before, body[4:])
        kinds = [kind for kind, _ in self.client_messages.values()]
        expected = [raw.CERTIFICATE] * self.asks + [raw.CLIENT_KEY_EXCHANGE]
        assert kinds == expected + [raw.CERTIFICATE_VERIFY] * bool(spki)
        self.read_finished(answers)


def server_config(**more) -> ServerConfig:
    """With a credential of each kind, certificates before raw public keys."""
    kinds = [shown(kind) for kind in SCHEMES_OF_KIND]
    credentials = (*(one.certificate() for one in kinds), *(one.raw_public_key() for one in kinds))
    options = {"credentials": credentials, "client_certificate_types": X509_AND_RAW}
    return ServerConfig(**{**options, **more})


def asking_config(**more) -> ServerConfig:
    """The same; clients have to show something."""
    return server_config(**{"client_authentication": ClientAuthentication.REQUIRED, **more})


def client_config(**more) -> ClientConfig:
    """Accepts certificates and nothing else."""
    return ClientConfig(**{"server_certificate_types": (CertificateType.X509,), **more})


def psk_config(**more) -> ClientConfig:
    return ClientConfig(**{"psk_identity": IDENTITY, "psk_key": KEY, **more})
