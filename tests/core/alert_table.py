"""Each way a message can be wrong, and the alert that answers it.

One row per way, the alert from RFC 5246 §7.2.2 and the RFC that defines the message; ``test_alerts.py``
walks the table. A row says at which point of the handshake a puppet misbehaves and what it sends. Points,
with the side under test in the name:

``SERVER_HELLO_DUE``       the server waits for the hello that brings a valid cookie back
``SERVER_KEY_EXCHANGE``    the server waits for ClientKeyExchange
``SERVER_FINISHED``        the server has ClientKeyExchange and ChangeCipherSpec and waits for Finished
``SERVER_CONNECTED``       the association is established
``CLIENT_HELLO_SENT``      the client waits for HelloVerifyRequest or ServerHello
``CLIENT_SERVER_HELLO``    the client has a ServerHello and waits for what follows it
``CLIENT_FINISHED``        the client has sent Finished and got ChangeCipherSpec
``CLIENT_CONNECTED``       the association is established
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

from sansdtls import (
    AlertDescription,
    AuthenticationFailed,
    ClientConfig,
    ExtendedMasterSecret,
    PeerIncompatible,
    ProtocolViolation,
    ServerConfig,
)
from tests.core import raw
from tests.core.puppet import IDENTITY, KEY, ClientRig, Puppet, PuppetClient, PuppetServer, ServerRig

DECODE_ERROR = AlertDescription.DECODE_ERROR
DECRYPT_ERROR = AlertDescription.DECRYPT_ERROR
HANDSHAKE_FAILURE = AlertDescription.HANDSHAKE_FAILURE
ILLEGAL_PARAMETER = AlertDescription.ILLEGAL_PARAMETER
PROTOCOL_VERSION = AlertDescription.PROTOCOL_VERSION
RECORD_OVERFLOW = AlertDescription.RECORD_OVERFLOW
UNEXPECTED_MESSAGE = AlertDescription.UNEXPECTED_MESSAGE
UNSUPPORTED_EXTENSION = AlertDescription.UNSUPPORTED_EXTENSION
NO_RENEGOTIATION = AlertDescription.NO_RENEGOTIATION


class Point(enum.Enum):
    SERVER_HELLO_DUE = enum.auto()
    SERVER_KEY_EXCHANGE = enum.auto()
    SERVER_FINISHED = enum.auto()
    SERVER_CONNECTED = enum.auto()
    CLIENT_HELLO_SENT = enum.auto()
    CLIENT_SERVER_HELLO = enum.auto()
    CLIENT_FINISHED = enum.auto()
    CLIENT_CONNECTED = enum.auto()


class Row(NamedTuple):
    name: str
    point: Point
    send: Callable[[Any], object]
    """Misbehaves through the puppet."""
    alert: AlertDescription | None
    """``None`` = noise: no answer and no end."""
    cause: type = ProtocolViolation
    config: dict[str, Any] = {}  # noqa: RUF012 - nobody changes it
    """What the configuration of the side under test has beyond the default."""
    ends: bool = True
    """False for a warning."""


# --- what puppets do ----------------------------------------------------------------------------------


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


IDENTITY_BODY = raw.vector(IDENTITY, 2)
OTHER_EXTENSION = (0x0BAD, b"x")


# --- the table ----------------------------------------------------------------------------------------


def _hello_rows() -> list[Row]:
    point = Point.SERVER_HELLO_DUE
    return [
        Row("a byte after the extensions", point, changed_hello(lambda b: b + b"\0"), DECODE_ERROR),
        Row("extensions cut short", point, changed_hello(lambda b: b[:-1]), DECODE_ERROR),
        Row(
            "one byte where the extensions' length belongs",
            point,
            lambda puppet: hello_as(puppet.hello_body(extensions=None) + b"\0")(puppet),
            DECODE_ERROR,
        ),
        Row(
            "an extension longer than the block",
            point,
            lambda puppet: hello_as(puppet.hello_body(extensions=None) + b"\0\4\0\x17\0\1")(puppet),
            DECODE_ERROR,
        ),
        Row("an extension twice", point, hello_with(extensions=(raw.EMS, raw.EMS)), ILLEGAL_PARAMETER),
        Row(
            "an unknown extension twice",
            point,
            hello_with(extensions=(OTHER_EXTENSION, raw.EMS, OTHER_EXTENSION)),
            ILLEGAL_PARAMETER,
        ),
        Row("no cipher suite", point, hello_with(suites=()), DECODE_ERROR),
        Row(
            "cipher suites of odd length",
            point,
            lambda puppet: hello_as(
                puppet.hello_body(suites=(), extensions=None)[:36] + b"\0\3\0\xa8\0" + b"\1\0"
            )(puppet),
            DECODE_ERROR,
        ),
        Row("no compression method", point, hello_with(compression=b""), DECODE_ERROR),
        Row("no null compression", point, hello_with(compression=b"\x01\x02"), ILLEGAL_PARAMETER),
        Row("DTLS 1.0", point, hello_with(version=0xFEFF), PROTOCOL_VERSION, PeerIncompatible),
        Row("TLS 1.2", point, hello_with(version=0x0303), PROTOCOL_VERSION, PeerIncompatible),
        Row("version 0", point, hello_with(version=0), PROTOCOL_VERSION, PeerIncompatible),
        Row(
            "no cipher suite in common",
            point,
            hello_with(suites=(0xC02B, raw.SCSV)),
            HANDSHAKE_FAILURE,
            PeerIncompatible,
        ),
        Row(
            "only the renegotiation SCSV",
            point,
            hello_with(suites=(raw.SCSV,)),
            HANDSHAKE_FAILURE,
            PeerIncompatible,
        ),
        Row(
            "a suite the configuration has not",
            point,
            hello_with(suites=(raw.AES_128_GCM,)),
            HANDSHAKE_FAILURE,
            PeerIncompatible,
            {"cipher_suites": [raw.CHACHA20]},
        ),
        Row(
            "extended_master_secret missing where required",
            point,
            hello_with(extensions=(raw.RENEGOTIATION_INFO,)),
            HANDSHAKE_FAILURE,
            PeerIncompatible,
            {"extended_master_secret": ExtendedMasterSecret.REQUIRED},
        ),
        Row(
            "extended_master_secret with content",
            point,
            hello_with(extensions=((23, b"\0"),)),
            DECODE_ERROR,
        ),
        Row(
            "renegotiation_info without its length",
            point,
            hello_with(extensions=((0xFF01, b""),)),
            DECODE_ERROR,
        ),
        Row(
            "renegotiation_info of wrong length",
            point,
            hello_with(extensions=((0xFF01, b"\x02x"),)),
            DECODE_ERROR,
        ),
        Row(
            "renegotiation_info that is not empty",
            point,
            hello_with(extensions=((0xFF01, b"\x0c" + bytes(12)),)),
            HANDSHAKE_FAILURE,
        ),
    ]


def _server_key_exchange_rows() -> list[Row]:
    point = Point.SERVER_KEY_EXCHANGE
    kind = raw.CLIENT_KEY_EXCHANGE
    wrong_types = {
        "ServerHello": raw.SERVER_HELLO,
        "HelloVerifyRequest": raw.HELLO_VERIFY_REQUEST,
        "Certificate": raw.CERTIFICATE,
        "ServerKeyExchange": raw.SERVER_KEY_EXCHANGE,
        "ServerHelloDone": raw.SERVER_HELLO_DONE,
        "CertificateVerify": 15,
        "Finished": raw.FINISHED,
        "HelloRequest": raw.HELLO_REQUEST,
        "a message of unknown type": 99,
    }
    return [
        Row(
            "a ClientKeyExchange with a trailing byte",
            point,
            message(kind, IDENTITY_BODY + b"\0"),
            DECODE_ERROR,
        ),
        Row("a ClientKeyExchange cut short", point, message(kind, IDENTITY_BODY[:-1]), DECODE_ERROR),
        Row("a ClientKeyExchange of one byte", point, message(kind, b"\0"), DECODE_ERROR),
        Row("an empty ClientKeyExchange", point, message(kind, b""), DECODE_ERROR),
        *(
            Row(f"{name} instead of ClientKeyExchange", point, message(number, bytes(8)), UNEXPECTED_MESSAGE)
            for name, number in wrong_types.items()
        ),
        Row("two ClientKeyExchange", point, key_exchange_twice, UNEXPECTED_MESSAGE),
        Row(
            "fragments that disagree about the length",
            point,
            fragments((kind, b"\0\4", {"total": 6}), (kind, b"dev1", {"total": 7, "offset": 2})),
            ILLEGAL_PARAMETER,
        ),
        Row(
            "fragments that disagree about the type",
            point,
            fragments((kind, b"\0\4", {"total": 6}), (kind + 1, b"dev1", {"total": 6, "offset": 2})),
            ILLEGAL_PARAMETER,
        ),
        Row(
            "a fragment beyond the end of its message",
            point,
            fragments((kind, b"\0\4dev1", {"total": 5})),
            ILLEGAL_PARAMETER,
        ),
        Row(
            "an empty fragment beyond the end of its message",
            point,
            fragments((kind, b"", {"total": 5, "offset": 6})),
            ILLEGAL_PARAMETER,
        ),
        Row(
            "a message above the limit",
            point,
            fragments((kind, b"x", {"total": 16_385})),
            ILLEGAL_PARAMETER,
        ),
        Row("a message of 16 MiB", point, fragments((kind, b"x", {"total": 0xFFFFFF})), ILLEGAL_PARAMETER),
        Row(
            "a fragment longer than its record",
            point,
            fragments((kind, IDENTITY_BODY, {"length": 7, "total": 7})),
            DECODE_ERROR,
        ),
        Row("a handshake header cut short", point, payload(raw.HANDSHAKE, bytes(11)), DECODE_ERROR),
        Row("an empty handshake record", point, payload(raw.HANDSHAKE, b""), DECODE_ERROR),
        Row(
            "a plaintext record above 2^14 bytes",
            point,
            payload(raw.HANDSHAKE, bytes(2**14 + 1)),
            RECORD_OVERFLOW,
        ),
        Row("an empty fragment of a message that is not", point, fragments((kind, b"", {"total": 6})), None),
        Row(
            "a fragment too far ahead",
            point,
            lambda p: [setattr(p, "message_seq", 40), message(kind, b"")(p)],
            None,
        ),
        Row("an early ChangeCipherSpec", point, payload(raw.CHANGE_CIPHER_SPEC, b"\x01"), None),
        Row("an empty ChangeCipherSpec", point, payload(raw.CHANGE_CIPHER_SPEC, b""), DECODE_ERROR),
        Row("a ChangeCipherSpec of two bytes", point, payload(raw.CHANGE_CIPHER_SPEC, b"\1\1"), DECODE_ERROR),
        Row(
            "a ChangeCipherSpec of another type",
            point,
            payload(raw.CHANGE_CIPHER_SPEC, b"\2"),
            ILLEGAL_PARAMETER,
        ),
        Row("application data in epoch 0", point, payload(raw.APPLICATION_DATA, b"hello"), None),
        Row("a warning alert", point, payload(raw.ALERT, b"\x01\x5a"), None),
        Row("a record of unknown type", point, payload(24, b"x"), None),
    ]


def _server_finished_rows() -> list[Row]:
    point = Point.SERVER_FINISHED
    return [
        Row(
            "a Finished that does not match",
            point,
            finished_with(flipped),
            DECRYPT_ERROR,
            AuthenticationFailed,
        ),
        Row("a Finished with a trailing byte", point, finished_with(lambda v: v + b"\0"), DECODE_ERROR),
        Row("a Finished cut short", point, finished_with(lambda v: v[:-1]), DECODE_ERROR),
        Row("an empty Finished", point, finished_with(lambda _: b""), DECODE_ERROR),
        Row(
            "ClientKeyExchange in epoch 1",
            point,
            protected(raw.CLIENT_KEY_EXCHANGE, b"\0\0"),
            UNEXPECTED_MESSAGE,
        ),
        Row("ServerHelloDone in epoch 1", point, protected(raw.SERVER_HELLO_DONE, b""), UNEXPECTED_MESSAGE),
        Row(
            "a handshake header cut short in epoch 1",
            point,
            payload(raw.HANDSHAKE, bytes(11), epoch=1),
            DECODE_ERROR,
        ),
    ]


def _connected_rows(point: Point) -> list[Row]:
    ours = Point.SERVER_CONNECTED is point
    return [
        Row(
            "ClientHello in epoch 1 (renegotiation)" if ours else "HelloRequest in epoch 1 (renegotiation)",
            point,
            protected(raw.CLIENT_HELLO, raw.client_hello()) if ours else protected(raw.HELLO_REQUEST, b""),
            NO_RENEGOTIATION,
            ends=False,
        ),
        Row(
            "a handshake message that belongs nowhere",
            point,
            protected(raw.CLIENT_KEY_EXCHANGE if ours else raw.SERVER_HELLO_DONE, b""),
            UNEXPECTED_MESSAGE,
        ),
        Row("a second Finished", point, protected(raw.FINISHED, bytes(12)), UNEXPECTED_MESSAGE),
        Row("an alert of one byte", point, payload(raw.ALERT, b"\1", epoch=1), DECODE_ERROR),
        Row("an alert of three bytes", point, payload(raw.ALERT, b"\1\0\0", epoch=1), DECODE_ERROR),
        Row("an empty alert", point, payload(raw.ALERT, b"", epoch=1), DECODE_ERROR),
        Row(
            "a record above 2^14 bytes",
            point,
            payload(raw.APPLICATION_DATA, bytes(2**14 + 1), epoch=1),
            RECORD_OVERFLOW,
        ),
        Row("an empty handshake record", point, payload(raw.HANDSHAKE, b"", epoch=1), DECODE_ERROR),
        Row("plaintext handshake bytes", point, payload(raw.HANDSHAKE, bytes(11)), None),
        Row("a plaintext alert", point, payload(raw.ALERT, b"\x02\x28"), None),
        Row("a plaintext ChangeCipherSpec", point, payload(raw.CHANGE_CIPHER_SPEC, b"\x01"), None),
        Row("plaintext application data", point, payload(raw.APPLICATION_DATA, b"hello"), None),
        Row("a warning alert of unknown meaning", point, payload(raw.ALERT, b"\x01\xfe", epoch=1), None),
        Row("empty application data", point, payload(raw.APPLICATION_DATA, b"", epoch=1), None),
    ]


def _client_hello_sent_rows() -> list[Row]:
    point = Point.CLIENT_HELLO_SENT
    cookie = raw.hello_verify_request(b"c" * 20)
    return [
        Row(
            "a HelloVerifyRequest with a trailing byte",
            point,
            message(raw.HELLO_VERIFY_REQUEST, cookie + b"\0"),
            DECODE_ERROR,
        ),
        Row(
            "a HelloVerifyRequest cut short",
            point,
            message(raw.HELLO_VERIFY_REQUEST, cookie[:-1]),
            DECODE_ERROR,
        ),
        Row("an empty HelloVerifyRequest", point, message(raw.HELLO_VERIFY_REQUEST, b""), DECODE_ERROR),
        Row(
            "a ServerHello with a trailing byte",
            point,
            changed_server_hello(lambda b: b + b"\0"),
            DECODE_ERROR,
        ),
        Row("a ServerHello cut short", point, changed_server_hello(lambda b: b[:20]), DECODE_ERROR),
        Row("a session id of 33 bytes", point, server_hello_with(session_id=bytes(33)), DECODE_ERROR),
        Row("DTLS 1.0", point, server_hello_with(version=0xFEFF), PROTOCOL_VERSION, PeerIncompatible),
        Row("DTLS 1.3", point, server_hello_with(version=0xFEFC), PROTOCOL_VERSION, PeerIncompatible),
        Row("a suite that was not offered", point, server_hello_with(suite=0xC02B), ILLEGAL_PARAMETER),
        Row(
            "a suite that the configuration leaves out",
            point,
            server_hello_with(suite=raw.AES_128_GCM),
            ILLEGAL_PARAMETER,
            config={"cipher_suites": [raw.CHACHA20]},
        ),
        Row(
            "the renegotiation SCSV as the suite", point, server_hello_with(suite=raw.SCSV), ILLEGAL_PARAMETER
        ),
        Row("a compression method", point, server_hello_with(compression=1), ILLEGAL_PARAMETER),
        Row(
            "an extension nobody asked for",
            point,
            server_hello_with(extensions=(raw.EMS, OTHER_EXTENSION)),
            UNSUPPORTED_EXTENSION,
        ),
        Row("an extension twice", point, server_hello_with(extensions=(raw.EMS, raw.EMS)), ILLEGAL_PARAMETER),
        Row(
            "extended_master_secret with content",
            point,
            server_hello_with(extensions=((23, b"x"),)),
            DECODE_ERROR,
        ),
        Row(
            "renegotiation_info of wrong length",
            point,
            server_hello_with(extensions=((0xFF01, b"\5"),)),
            DECODE_ERROR,
        ),
        Row(
            "renegotiation_info that is not empty",
            point,
            server_hello_with(extensions=((0xFF01, b"\1x"),)),
            HANDSHAKE_FAILURE,
        ),
        Row(
            "extended_master_secret missing where required",
            point,
            server_hello_with(extensions=(raw.RENEGOTIATION_INFO,)),
            HANDSHAKE_FAILURE,
            PeerIncompatible,
            {"extended_master_secret": ExtendedMasterSecret.REQUIRED},
        ),
        Row(
            "renegotiation_info missing where required",
            point,
            server_hello_with(extensions=(raw.EMS,)),
            HANDSHAKE_FAILURE,
            PeerIncompatible,
            {"require_renegotiation_info": True},
        ),
        *(
            Row(f"message type {kind} instead of ServerHello", point, message(kind, b""), UNEXPECTED_MESSAGE)
            for kind in (raw.CLIENT_HELLO, raw.SERVER_KEY_EXCHANGE, raw.SERVER_HELLO_DONE, raw.FINISHED, 77)
        ),
        Row("a handshake header cut short", point, payload(raw.HANDSHAKE, bytes(3)), DECODE_ERROR),
        Row("a message above the limit", point, fragments((2, b"x", {"total": 16_385})), ILLEGAL_PARAMETER),
        Row(
            "a plaintext record above 2^14 bytes",
            point,
            payload(raw.HANDSHAKE, bytes(2**14 + 1)),
            RECORD_OVERFLOW,
        ),
        Row("an early ChangeCipherSpec", point, payload(raw.CHANGE_CIPHER_SPEC, b"\x01"), None),
        Row("application data in epoch 0", point, payload(raw.APPLICATION_DATA, b"hello"), None),
    ]


def _client_server_hello_rows() -> list[Row]:
    point = Point.CLIENT_SERVER_HELLO
    hint = raw.vector(b"hint", 2)
    return [
        Row("a second ServerHello", point, server_hello_with(), UNEXPECTED_MESSAGE),
        Row(
            "HelloVerifyRequest after ServerHello",
            point,
            message(3, raw.hello_verify_request(b"c")),
            UNEXPECTED_MESSAGE,
        ),
        Row("Certificate", point, message(raw.CERTIFICATE, b"\0\0\0"), UNEXPECTED_MESSAGE),
        Row("CertificateRequest", point, message(13, b"\1\1\0\0\0\0"), UNEXPECTED_MESSAGE),
        Row("ClientKeyExchange", point, message(raw.CLIENT_KEY_EXCHANGE, hint), UNEXPECTED_MESSAGE),
        Row("NewSessionTicket", point, message(raw.NEW_SESSION_TICKET, bytes(6)), UNEXPECTED_MESSAGE),
        Row("Finished in epoch 0", point, message(raw.FINISHED, bytes(12)), UNEXPECTED_MESSAGE),
        Row(
            "a hint with a trailing byte", point, message(raw.SERVER_KEY_EXCHANGE, hint + b"\0"), DECODE_ERROR
        ),
        Row("a hint cut short", point, message(raw.SERVER_KEY_EXCHANGE, hint[:-1]), DECODE_ERROR),
        Row("an empty ServerKeyExchange", point, message(raw.SERVER_KEY_EXCHANGE, b""), DECODE_ERROR),
        Row("two hints", point, same_message_again(raw.SERVER_KEY_EXCHANGE, hint), UNEXPECTED_MESSAGE),
        Row("a ServerHelloDone with content", point, message(raw.SERVER_HELLO_DONE, b"\0"), DECODE_ERROR),
    ]


def _client_finished_rows() -> list[Row]:
    point = Point.CLIENT_FINISHED
    return [
        Row(
            "a Finished that does not match",
            point,
            finished_with(flipped),
            DECRYPT_ERROR,
            AuthenticationFailed,
        ),
        Row("a Finished with a trailing byte", point, finished_with(lambda v: v + b"\0"), DECODE_ERROR),
        Row("a Finished cut short", point, finished_with(lambda v: v[:-1]), DECODE_ERROR),
        Row("ServerHelloDone in epoch 1", point, protected(raw.SERVER_HELLO_DONE, b""), UNEXPECTED_MESSAGE),
    ]


TABLE = [
    *_hello_rows(),
    *_server_key_exchange_rows(),
    *_server_finished_rows(),
    *_connected_rows(Point.SERVER_CONNECTED),
    *_client_hello_sent_rows(),
    *_client_server_hello_rows(),
    *_client_finished_rows(),
    *_connected_rows(Point.CLIENT_CONNECTED),
]


# --- bringing a puppet to its point -------------------------------------------------------------------


def puppet_at(row: Row) -> Puppet:
    """A puppet that has behaved up to the row's point, across a rig with the row's configuration."""
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
