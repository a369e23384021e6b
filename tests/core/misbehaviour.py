"""Points of a handshake, puppets brought there, and what they can do wrong: the verbs of ``alert_table.py``."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, NamedTuple

from sansdtls import AlertDescription, ClientConfig, ProtocolViolation, ServerConfig
from tests.core import raw
from tests.core.credentials import shown
from tests.core.ecdhe_puppets import EcdheClient, EcdheServer, asking_config, client_config, psk_config
from tests.core.puppet import IDENTITY, KEY, ClientRig, Puppet, PuppetClient, PuppetServer, ServerRig

if TYPE_CHECKING:
    from collections.abc import Callable


class Point(enum.Enum):
    """Where the side under test stands; the first word of the name says which side."""

    SERVER_HELLO_DUE = "the server waits for the hello that brings a valid cookie back"
    SERVER_KEY_EXCHANGE = "the server waits for ClientKeyExchange"
    SERVER_FINISHED = "the server has ClientKeyExchange and ChangeCipherSpec and waits for Finished"
    SERVER_CONNECTED = "the server has an established association"
    CLIENT_HELLO_SENT = "the client has answered a HelloVerifyRequest and waits for ServerHello"
    CLIENT_SERVER_HELLO = "the client has a ServerHello and waits for what follows it"
    CLIENT_FINISHED = "the client has sent Finished and got ChangeCipherSpec"
    CLIENT_CONNECTED = "the client has an established association"
    # With certificates or ECDHE_PSK; here the server always asks for a certificate.
    SERVER_CERTIFICATE_DUE = "the server waits for Certificate"
    SERVER_SHARE_DUE = "the server has Certificate and waits for ClientKeyExchange"
    SERVER_VERIFY_DUE = "the server has ClientKeyExchange and waits for CertificateVerify"
    SERVER_PSK_SHARE_DUE = "the server waits for the ClientKeyExchange of ECDHE_PSK"
    CLIENT_CERTIFICATE_DUE = "the client has ServerHello and waits for Certificate"
    CLIENT_SHARE_DUE = "the client has Certificate and waits for ServerKeyExchange"
    CLIENT_REQUEST_DUE = "the client has ServerKeyExchange; CertificateRequest or ServerHelloDone come next"
    CLIENT_PSK_SHARE_DUE = "the client waits for the ServerKeyExchange of ECDHE_PSK"
    CLIENT_TICKET_DUE = "the client has sent Finished and waits for the ticket that was promised"


class Row(NamedTuple):
    name: str
    point: Point
    send: Callable[[Any], object]
    """Misbehaves through the puppet."""
    alert: AlertDescription | None
    """``None`` = noise: no answer and no end."""
    cause: type = ProtocolViolation
    config: dict[str, Any] = {}
    """What the configuration of the side under test has beyond the default."""
    ends: bool = True
    """False for a warning."""


def puppet_at(row: Row) -> Any:
    """A puppet that has behaved up to the row's point, across a rig with the row's configuration."""
    if row.point in ECDHE_CLIENTS:
        return ecdhe_client_at(row)
    if row.point in ECDHE_SERVERS:
        return ecdhe_server_at(row)
    if row.point.name.startswith("SERVER"):
        client = PuppetClient(ServerRig(ServerConfig(**row.config)))
        if row.point is Point.SERVER_HELLO_DUE:
            return client
        client.hello()
        if row.point is Point.SERVER_FINISHED:
            client.give(client.key_exchange(), client.change_cipher_spec())
        elif row.point is Point.SERVER_CONNECTED:
            client.finish()
        return client
    config = ClientConfig(psk_identity=IDENTITY, psk_key=KEY, **row.config)
    server = PuppetServer(ClientRig(config))
    server.verify_request()
    if row.point is Point.CLIENT_SERVER_HELLO:
        server.start_transcript()
        server.give(server.message(raw.SERVER_HELLO, server.server_hello_body()))
    elif row.point is Point.CLIENT_FINISHED:
        server.answer_hello()
        server.give(server.change_cipher_spec())
    elif row.point is Point.CLIENT_CONNECTED:
        server.answer_hello()
        server.finish()
    return server


# How many messages of their flight the puppets have sent.
ECDHE_CLIENTS = {
    Point.SERVER_CERTIFICATE_DUE: 0,
    Point.SERVER_SHARE_DUE: 1,
    Point.SERVER_VERIFY_DUE: 2,
    Point.SERVER_PSK_SHARE_DUE: 0,
}
ECDHE_SERVERS = {
    Point.CLIENT_CERTIFICATE_DUE: 1,
    Point.CLIENT_SHARE_DUE: 2,
    Point.CLIENT_REQUEST_DUE: 3,
    Point.CLIENT_PSK_SHARE_DUE: 1,
    Point.CLIENT_TICKET_DUE: 4,
}


def ecdhe_client_at(row: Row) -> EcdheClient:
    suite = raw.ECDHE_PSK_AES_128_GCM if "PSK" in row.point.name else raw.ECDSA_AES_128_GCM
    rig = ServerRig(asking_config(**row.config))
    client = EcdheClient(rig, suite=suite, credential=shown("p256"))
    client.hello()
    for send in (client.certificate, client.key_exchange)[: ECDHE_CLIENTS[row.point]]:
        client.give(send())
    return client


def ecdhe_server_at(row: Row) -> EcdheServer:
    with_psk = "PSK" in row.point.name
    config = (psk_config if with_psk else client_config)(**row.config)
    server = EcdheServer(
        ClientRig(config),
        suite=raw.ECDHE_PSK_AES_128_GCM if with_psk else raw.ECDSA_AES_128_GCM,
        more_extensions=((35, b""),) if row.point is Point.CLIENT_TICKET_DUE else (),
    )
    server.verify_request()
    if row.point is Point.CLIENT_TICKET_DUE:
        server.answer_hello()
        return server
    server.start_transcript()
    server.give(server.message(raw.SERVER_HELLO, server.server_hello_body()))
    if ECDHE_SERVERS[row.point] > 1:
        server.give(server.message(raw.CERTIFICATE, server.certificate_body()))
    if ECDHE_SERVERS[row.point] > 2:
        server.give(server.message(raw.SERVER_KEY_EXCHANGE, server.key_exchange_body()))
    return server


# --- what puppets do wrong ------------------------------------------------------------------------------


def hello_with(**more) -> Callable[[PuppetClient], object]:
    """A ClientHello with these fields; its cookie is valid, so address and fields are vouched for."""

    def send(puppet: PuppetClient) -> None:
        hello_as(puppet.hello_body(**more))(puppet)

    return send


def hello_as(body_without_cookie: bytes) -> Callable[[PuppetClient], object]:
    """A ClientHello body of any kind, sent twice: with an empty cookie and with the one it was given."""

    def send(puppet: PuppetClient) -> None:
        answers = puppet.give(puppet.message(raw.CLIENT_HELLO, body_without_cookie, in_transcript=False))
        ((_, body),) = raw.plaintext_messages(answers).values()
        cookie = raw.vector(raw.parse_cookie(body), 1)
        at = 35 + body_without_cookie[34]
        assert body_without_cookie[at] == 0
        with_cookie = body_without_cookie[:at] + cookie + body_without_cookie[at + 1 :]
        puppet.give(puppet.message(raw.CLIENT_HELLO, with_cookie))

    return send


def changed_hello(change: Callable[[bytes], bytes]) -> Callable[[PuppetClient], object]:
    return lambda puppet: hello_as(change(puppet.hello_body()))(puppet)


def message(kind: int, body: bytes) -> Callable[[Puppet], object]:
    """One plaintext handshake message."""
    return lambda puppet: puppet.give(puppet.message(kind, body))


def protected(kind: int, body: bytes) -> Callable[[Puppet], object]:
    """One handshake message in epoch 1."""
    return lambda puppet: puppet.give(puppet.message(kind, body, epoch=1))


def payload(content_type: int, *payloads: bytes, epoch: int = 0) -> Callable[[Puppet], object]:
    """Records with these payloads, one datagram each."""

    def send(puppet: Puppet) -> None:
        for each in payloads:
            puppet.give(puppet.record(content_type, each, epoch=epoch))

    return send


def fragments(
    *specifications: tuple[int, bytes, dict[str, int]], epoch: int = 0
) -> Callable[[Puppet], object]:
    """Fragments of the next message, each in a datagram of its own."""

    def send(puppet: Puppet) -> None:
        for kind, body, more in specifications:
            encoded = raw.fragment(kind, body, message_seq=puppet.message_seq, **more)
            puppet.give(puppet.record(raw.HANDSHAKE, encoded, epoch=epoch))

    return send


def server_hello_with(**more) -> Callable[[PuppetServer], object]:
    return lambda puppet: puppet.give(puppet.message(raw.SERVER_HELLO, puppet.server_hello_body(**more)))


def changed_server_hello(change: Callable[[bytes], bytes]) -> Callable[[PuppetServer], object]:
    return lambda puppet: puppet.give(puppet.message(raw.SERVER_HELLO, change(puppet.server_hello_body())))


def finished_with(change: Callable[[bytes], bytes]) -> Callable[[Puppet], object]:
    return lambda puppet: puppet.give(puppet.finished(change(puppet.verify_data())))


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def same_message_again(kind: int, body: bytes) -> Callable[[Puppet], object]:
    """Twice, the second one under the next message_seq: no retransmission but a second message."""

    def send(puppet: Puppet) -> None:
        puppet.give(puppet.message(kind, body))
        puppet.give(puppet.message(kind, body))

    return send


def key_exchange_twice(puppet: PuppetClient) -> None:
    puppet.give(puppet.key_exchange())
    puppet.give(puppet.message(raw.CLIENT_KEY_EXCHANGE, raw.vector(IDENTITY, 2)))


def message_far_ahead(puppet: Puppet) -> None:
    puppet.message_seq += 40
    puppet.give(puppet.message(raw.CLIENT_KEY_EXCHANGE, raw.vector(IDENTITY, 2)))


def finished_and_more(puppet: Puppet) -> None:
    """Finished with another message behind it in its record."""
    finished = raw.fragment(raw.FINISHED, puppet.verify_data(), message_seq=puppet.message_seq)
    more = raw.fragment(raw.SERVER_HELLO_DONE, b"", message_seq=puppet.message_seq + 1)
    puppet.give(puppet.record(raw.HANDSHAKE, finished + more, epoch=1))


def five_verify_requests(puppet: PuppetServer) -> None:
    for number in range(5):
        body = raw.hello_verify_request(bytes([number]) * 8)
        puppet.give(puppet.message(raw.HELLO_VERIFY_REQUEST, body))
