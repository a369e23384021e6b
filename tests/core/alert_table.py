"""Each way a message can be wrong, and the alert that answers it.

One row per way, the alert from RFC 5246 §7.2.2 and the RFC that defines the message; ``test_alerts.py``
walks the table. A row says at which :class:`Point` of the handshake a puppet misbehaves, and how
(``misbehaviour.py``).
"""

from sansdtls import AlertDescription, AuthenticationFailed, ExtendedMasterSecret, PeerIncompatible
from tests.core import raw
from tests.core.misbehaviour import (
    Point,
    Row,
    changed_hello,
    changed_server_hello,
    finished_and_more,
    finished_with,
    five_verify_requests,
    flipped,
    fragments,
    hello_as,
    hello_with,
    key_exchange_twice,
    message,
    message_far_ahead,
    payload,
    protected,
    same_message_again,
    server_hello_with,
)
from tests.core.puppet import IDENTITY

DECODE_ERROR = AlertDescription.DECODE_ERROR
DECRYPT_ERROR = AlertDescription.DECRYPT_ERROR
HANDSHAKE_FAILURE = AlertDescription.HANDSHAKE_FAILURE
ILLEGAL_PARAMETER = AlertDescription.ILLEGAL_PARAMETER
PROTOCOL_VERSION = AlertDescription.PROTOCOL_VERSION
RECORD_OVERFLOW = AlertDescription.RECORD_OVERFLOW
UNEXPECTED_MESSAGE = AlertDescription.UNEXPECTED_MESSAGE
UNSUPPORTED_EXTENSION = AlertDescription.UNSUPPORTED_EXTENSION
NO_RENEGOTIATION = AlertDescription.NO_RENEGOTIATION


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
        Row("a fragment too far ahead", point, message_far_ahead, None),
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
        Row("a message after Finished in its record", point, finished_and_more, UNEXPECTED_MESSAGE),
        Row(
            "a protected record above 2^14 bytes",
            point,
            payload(raw.HANDSHAKE, bytes(2**14 + 1), epoch=1),
            RECORD_OVERFLOW,
        ),
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
        Row("a protected ChangeCipherSpec", point, payload(raw.CHANGE_CIPHER_SPEC, b"\1", epoch=1), None),
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
        Row("HelloVerifyRequest over and over", point, five_verify_requests, UNEXPECTED_MESSAGE),
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
