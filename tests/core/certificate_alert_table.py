"""The part of the table of mistakes (``alert_table.py``) that is about certificates, signatures and ECDHE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sansdtls import AlertDescription, AuthenticationFailed, NamedGroup, SignatureScheme
from tests.core import raw
from tests.core.credentials import (
    ECDSA_SHA256,
    ECDSA_SHA384,
    ED25519,
    RSA_PKCS1_SHA256,
    RSA_PSS_SHA256,
    Shown,
    shown,
)
from tests.core.misbehaviour import Point, Row, flipped, message

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.core.ecdhe_puppets import EcdheClient, EcdheServer

BAD_CERTIFICATE = AlertDescription.BAD_CERTIFICATE
DECODE_ERROR = AlertDescription.DECODE_ERROR
DECRYPT_ERROR = AlertDescription.DECRYPT_ERROR
HANDSHAKE_FAILURE = AlertDescription.HANDSHAKE_FAILURE
ILLEGAL_PARAMETER = AlertDescription.ILLEGAL_PARAMETER
UNEXPECTED_MESSAGE = AlertDescription.UNEXPECTED_MESSAGE

P256_ONLY = {"groups": (NamedGroup.SECP256R1,)}
P256_PRIME = 2**256 - 2**224 + 2**192 + 2**96 - 1
BASE_POINT_X = 0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296
BASE_POINT_Y = 0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5


def point(x: int, y: int, *, form: int = 4, length: int = 32) -> bytes:
    return bytes([form]) + x.to_bytes(length, "big") + y.to_bytes(length, "big")


BAD_POINTS = {
    # RFC 8422 §5.11: both sides have to check, and illegal_parameter is the answer.
    "off the curve": point(BASE_POINT_X, BASE_POINT_Y ^ 1),
    "zero": point(0, 0),
    "not reduced": point(BASE_POINT_X + P256_PRIME & (1 << 256) - 1, BASE_POINT_Y),
    "a compressed point": b"\x03" + BASE_POINT_X.to_bytes(32, "big"),
    "a hybrid point": point(BASE_POINT_X, BASE_POINT_Y, form=7),
    "the point at infinity": b"\x00",
    "a point cut short": point(BASE_POINT_X, BASE_POINT_Y)[:-1],
    "a point with a byte more": point(BASE_POINT_X, BASE_POINT_Y) + b"\0",
    "a point of another curve": point(5, 7, length=48),
}
BAD_X25519 = {
    # RFC 7748 §6.1 and RFC 8422 §5.11: of small order, so that the secret is zero
    "zero": bytes(32),
    "one": b"\1" + bytes(31),
    "the prime": ((1 << 255) - 19).to_bytes(32, "little"),
    "of order eight": bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    "31 bytes": bytes(range(31)),
    "33 bytes": bytes(range(33)),
}
WITHOUT_SHA384 = (SignatureScheme.ECDSA_SECP256R1_SHA256, SignatureScheme.ED25519)
CHAIN_OF_GARBAGE = raw.certificate([b"\x30\x03\x02\x01\x05"])


def certificates_of(*kinds: str) -> bytes:
    return raw.certificate([shown(kind).chain[0] for kind in kinds])


# --- a client's certificate -----------------------------------------------------------------------------


def _certificate_rows() -> list[Row]:
    due = Point.SERVER_CERTIFICATE_DUE
    kind = raw.CERTIFICATE
    good = raw.certificate(shown("p256").chain)
    return [
        Row(
            "ClientKeyExchange",
            due,
            message(raw.CLIENT_KEY_EXCHANGE, b"\x20" + bytes(32)),
            UNEXPECTED_MESSAGE,
        ),
        Row("CertificateVerify", due, message(raw.CERTIFICATE_VERIFY, bytes(8)), UNEXPECTED_MESSAGE),
        Row("Finished", due, message(raw.FINISHED, bytes(12)), UNEXPECTED_MESSAGE),
        Row("CertificateRequest", due, message(raw.CERTIFICATE_REQUEST, bytes(8)), UNEXPECTED_MESSAGE),
        Row("a trailing byte", due, message(kind, good + b"\0"), DECODE_ERROR),
        Row("cut short", due, message(kind, good[:-1]), DECODE_ERROR),
        Row("an empty message", due, message(kind, b""), DECODE_ERROR),
        Row("a certificate of no bytes", due, message(kind, raw.certificate([b""])), DECODE_ERROR),
        Row("a raw public key", due, message(kind, raw.vector(shown("p256").spki, 3)), DECODE_ERROR),
        Row("garbage", due, message(kind, CHAIN_OF_GARBAGE), BAD_CERTIFICATE),
        Row("an RSA key of 1024 bits", due, message(kind, certificates_of("rsa-1024")), BAD_CERTIFICATE),
        Row("a key on P-521", due, message(kind, certificates_of("p521")), BAD_CERTIFICATE),
        Row("no certificate", due, message(kind, bytes(3)), HANDSHAKE_FAILURE, AuthenticationFailed),
    ]


def _share_rows() -> list[Row]:
    due = Point.SERVER_SHARE_DUE
    kind = raw.CLIENT_KEY_EXCHANGE
    good = b"\x20" + b"\x09" + bytes(31)
    rows = [
        Row(
            "a second Certificate", due, message(raw.CERTIFICATE, certificates_of("p384")), UNEXPECTED_MESSAGE
        ),
        Row("CertificateVerify first", due, message(raw.CERTIFICATE_VERIFY, bytes(8)), UNEXPECTED_MESSAGE),
        Row("Finished", due, message(raw.FINISHED, bytes(12)), UNEXPECTED_MESSAGE),
        Row("a trailing byte", due, message(kind, good + b"\0"), DECODE_ERROR),
        Row("cut short", due, message(kind, good[:-1]), DECODE_ERROR),
        Row("an empty message", due, message(kind, b""), DECODE_ERROR),
        Row("a share of no bytes", due, message(kind, b"\0"), DECODE_ERROR),
        Row("a PSK identity", due, message(kind, raw.vector(b"dev1", 2)), DECODE_ERROR),
    ]
    for name, public in BAD_X25519.items():
        rows.append(Row(f"X25519: {name}", due, message(kind, raw.vector(public, 1)), ILLEGAL_PARAMETER))
    for name, public in BAD_POINTS.items():
        share = message(kind, raw.vector(public, 1))
        rows.append(Row(f"P-256: {name}", due, share, ILLEGAL_PARAMETER, config=P256_ONLY))
    return rows


def _verify(change: Callable[[EcdheClient], bytes]) -> Callable[[EcdheClient], object]:
    return lambda puppet: puppet.give(puppet.certificate_verify(change(puppet)))


def _signed(
    scheme: int, *, by: Shown | None = None, label: int | None = None, data: bytes | None = None
) -> Callable[[EcdheClient], object]:
    """CertificateVerify signed with ``scheme`` (and called ``label``) by somebody, over what it should be or not."""

    def body(puppet: EcdheClient) -> bytes:
        key = by or shown("p256")
        signature = key.sign(scheme, puppet.transcript if data is None else data)
        return raw.signed(scheme if label is None else label, signature)

    return _verify(body)


def _verify_rows() -> list[Row]:
    due, failed = Point.SERVER_VERIFY_DUE, AuthenticationFailed

    def good(puppet: EcdheClient) -> bytes:
        return raw.signed(ECDSA_SHA256, shown("p256").sign(ECDSA_SHA256, puppet.transcript))

    return [
        Row(
            "a bit of the signature changed",
            due,
            _verify(lambda p: (body := good(p))[:-1] + flipped(body[-1:])),
            DECRYPT_ERROR,
            failed,
        ),
        Row(
            "a signature of no bytes",
            due,
            _verify(lambda _: raw.signed(ECDSA_SHA256, b"")),
            DECRYPT_ERROR,
            failed,
        ),
        Row("a signature over nothing", due, _signed(ECDSA_SHA256, data=b""), DECRYPT_ERROR, failed),
        Row(
            "a signature over all but ClientKeyExchange",
            due,
            _verify(lambda p: raw.signed(ECDSA_SHA256, shown("p256").sign(ECDSA_SHA256, p.transcript[:-45]))),
            DECRYPT_ERROR,
            failed,
        ),
        Row(
            "somebody else's signature",
            due,
            _signed(ECDSA_SHA256, by=shown("p256 other")),
            DECRYPT_ERROR,
            failed,
        ),
        Row(
            "another hash than it says", due, _signed(ECDSA_SHA256, label=ECDSA_SHA384), DECRYPT_ERROR, failed
        ),
        Row("Ed25519 with an ECDSA key", due, _signed(ECDSA_SHA256, label=ED25519), DECRYPT_ERROR, failed),
        Row("RSA with an ECDSA key", due, _signed(RSA_PSS_SHA256, by=shown("rsa")), DECRYPT_ERROR, failed),
        Row("a scheme nobody knows", due, _signed(ECDSA_SHA256, label=0x0A0A), ILLEGAL_PARAMETER),
        Row("SHA-1", due, _signed(ECDSA_SHA256, label=0x0203), ILLEGAL_PARAMETER),
        Row(
            "a scheme that was not offered",
            due,
            _signed(ECDSA_SHA384),
            ILLEGAL_PARAMETER,
            config={"signature_schemes": WITHOUT_SHA384},
        ),
        Row("a trailing byte", due, _verify(lambda p: good(p) + b"\0"), DECODE_ERROR),
        Row("cut short", due, _verify(lambda p: good(p)[:-1]), DECODE_ERROR),
        Row("an empty message", due, _verify(lambda _: b""), DECODE_ERROR),
        Row(
            "a second ClientKeyExchange",
            due,
            message(raw.CLIENT_KEY_EXCHANGE, b"\x20" + bytes(32)),
            UNEXPECTED_MESSAGE,
        ),
        Row("a second Certificate", due, message(raw.CERTIFICATE, bytes(3)), UNEXPECTED_MESSAGE),
        Row("Finished", due, message(raw.FINISHED, bytes(12)), UNEXPECTED_MESSAGE),
    ]


def _psk_share_rows() -> list[Row]:
    due = Point.SERVER_PSK_SHARE_DUE
    kind, identity = raw.CLIENT_KEY_EXCHANGE, raw.vector(b"dev1", 2)
    return [
        Row("without a share", due, message(kind, identity), DECODE_ERROR),
        Row("a share of no bytes", due, message(kind, identity + b"\0"), DECODE_ERROR),
        Row("a trailing byte", due, message(kind, identity + b"\x20" + bytes(33)), DECODE_ERROR),
        Row("a share of zeros", due, message(kind, identity + b"\x20" + bytes(32)), ILLEGAL_PARAMETER),
        Row("a share of 31 bytes", due, message(kind, identity + b"\x1f" + bytes(31)), ILLEGAL_PARAMETER),
        Row("Certificate", due, message(raw.CERTIFICATE, bytes(3)), UNEXPECTED_MESSAGE),
    ]


# --- a server's certificate and share -------------------------------------------------------------------


def _server_certificate_rows() -> list[Row]:
    due = Point.CLIENT_CERTIFICATE_DUE
    kind = raw.CERTIFICATE
    good = raw.certificate(shown("p256").chain)
    return [
        Row("ServerKeyExchange", due, message(raw.SERVER_KEY_EXCHANGE, bytes(8)), UNEXPECTED_MESSAGE),
        Row("CertificateRequest", due, message(raw.CERTIFICATE_REQUEST, b"\1\1\0\0\0\0"), UNEXPECTED_MESSAGE),
        Row("ServerHelloDone", due, message(raw.SERVER_HELLO_DONE, b""), UNEXPECTED_MESSAGE),
        Row("Finished", due, message(raw.FINISHED, bytes(12)), UNEXPECTED_MESSAGE),
        Row("NewSessionTicket", due, message(raw.NEW_SESSION_TICKET, bytes(6)), UNEXPECTED_MESSAGE),
        Row("no certificate", due, message(kind, bytes(3)), DECODE_ERROR),
        Row("a trailing byte", due, message(kind, good + b"\0"), DECODE_ERROR),
        Row("cut short", due, message(kind, good[:-1]), DECODE_ERROR),
        Row("garbage", due, message(kind, CHAIN_OF_GARBAGE), BAD_CERTIFICATE),
        Row("an RSA key of 1024 bits", due, message(kind, certificates_of("rsa-1024")), BAD_CERTIFICATE),
        Row("an RSA key for an ECDSA suite", due, message(kind, certificates_of("rsa")), ILLEGAL_PARAMETER),
    ]


def _share(
    *,
    group: int = raw.X25519,
    public: bytes | None = None,
    parameters: bytes | None = None,
    by: Shown | None = None,
    scheme: int = ECDSA_SHA256,
    label: int | None = None,
    randoms: Callable[[EcdheServer], bytes] | None = None,
    change: Callable[[bytes], bytes] = lambda body: body,
) -> Callable[[EcdheServer], object]:
    """A ServerKeyExchange that is right but for what is said here, and ServerHelloDone."""

    def send(puppet: EcdheServer) -> None:
        share = puppet.ephemeral.public if public is None else public
        params = raw.ecdhe_parameters(group, share) if parameters is None else parameters
        both = puppet.peer_random + puppet.random if randoms is None else randoms(puppet)
        signature = (by or shown("p256")).sign(scheme, both + params)
        body = params + raw.signed(scheme if label is None else label, signature)
        done = puppet.message_seq + 1
        puppet.give(puppet.message(raw.SERVER_KEY_EXCHANGE, change(body)))
        puppet.give(puppet.record(raw.HANDSHAKE, raw.fragment(raw.SERVER_HELLO_DONE, b"", message_seq=done)))

    return send


def _server_share_rows() -> list[Row]:
    due, failed = Point.CLIENT_SHARE_DUE, AuthenticationFailed
    rows = [
        Row("ServerHelloDone", due, message(raw.SERVER_HELLO_DONE, b""), UNEXPECTED_MESSAGE),
        Row(
            "a second Certificate", due, message(raw.CERTIFICATE, certificates_of("p256")), UNEXPECTED_MESSAGE
        ),
        Row("CertificateRequest", due, message(raw.CERTIFICATE_REQUEST, b"\1\1\0\0\0\0"), UNEXPECTED_MESSAGE),
        Row("a trailing byte", due, _share(change=lambda body: body + b"\0"), DECODE_ERROR),
        Row("cut short", due, _share(change=lambda body: body[:-1]), DECODE_ERROR),
        Row("without a signature", due, _share(change=lambda body: body[:36]), DECODE_ERROR),
        Row("explicit curve parameters", due, _share(parameters=b"\x01" + bytes(40)), ILLEGAL_PARAMETER),
        Row(
            "the signature changed",
            due,
            _share(change=lambda body: body[:-1] + flipped(body[-1:])),
            DECRYPT_ERROR,
            failed,
        ),
        Row(
            "the share changed",
            due,
            _share(change=lambda body: body[:4] + flipped(body[4:])),
            DECRYPT_ERROR,
            failed,
        ),
        Row("somebody else's signature", due, _share(by=shown("p256 other")), DECRYPT_ERROR, failed),
        Row(
            "the randoms of another handshake",
            due,
            _share(randoms=lambda _: bytes(64)),
            DECRYPT_ERROR,
            failed,
        ),
        Row(
            "the randoms the other way round",
            due,
            _share(randoms=lambda p: p.random + p.peer_random),
            DECRYPT_ERROR,
            failed,
        ),
        Row("the share alone signed", due, _share(randoms=lambda _: b""), DECRYPT_ERROR, failed),
        Row("another hash than it says", due, _share(label=ECDSA_SHA384), DECRYPT_ERROR, failed),
        Row(
            "RSA with an ECDSA key",
            due,
            _share(scheme=RSA_PKCS1_SHA256, by=shown("rsa")),
            DECRYPT_ERROR,
            failed,
        ),
        Row("a scheme nobody knows", due, _share(label=0x0A0A), ILLEGAL_PARAMETER),
        Row(
            "a scheme that was not offered",
            due,
            _share(scheme=ECDSA_SHA384),
            ILLEGAL_PARAMETER,
            config={"signature_schemes": WITHOUT_SHA384},
        ),
        Row("a group nobody knows", due, _share(group=0x1234), ILLEGAL_PARAMETER),
        Row("P-521", due, _share(group=25, public=b"\4" + bytes(132)), ILLEGAL_PARAMETER),
        Row(
            "a group that was not offered",
            due,
            _share(group=raw.SECP256R1, public=point(BASE_POINT_X, BASE_POINT_Y)),
            ILLEGAL_PARAMETER,
            config={"groups": (NamedGroup.X25519,)},
        ),
    ]
    for name, public in BAD_X25519.items():
        rows.append(Row(f"X25519: {name}", due, _share(public=public), ILLEGAL_PARAMETER))
    for name, public in BAD_POINTS.items():
        share = _share(group=raw.SECP256R1, public=public)
        rows.append(Row(f"P-256: {name}", due, share, ILLEGAL_PARAMETER))
    return rows


def _request_rows() -> list[Row]:
    due = Point.CLIENT_REQUEST_DUE
    kind = raw.CERTIFICATE_REQUEST
    good = raw.certificate_request(b"\x40", [ECDSA_SHA256], [b"\x30\x00"])
    return [
        Row("a trailing byte", due, message(kind, good + b"\0"), DECODE_ERROR),
        Row("cut short", due, message(kind, good[:-1]), DECODE_ERROR),
        Row("no signature schemes", due, message(kind, raw.certificate_request(b"\x40", [])), DECODE_ERROR),
        Row(
            "a name of no bytes",
            due,
            message(kind, raw.certificate_request(b"\x40", [1027], [b""])),
            DECODE_ERROR,
        ),
        Row("Certificate", due, message(raw.CERTIFICATE, certificates_of("p256")), UNEXPECTED_MESSAGE),
        Row(
            "a second ServerKeyExchange", due, message(raw.SERVER_KEY_EXCHANGE, bytes(8)), UNEXPECTED_MESSAGE
        ),
        Row("Finished", due, message(raw.FINISHED, bytes(12)), UNEXPECTED_MESSAGE),
        Row("a ServerHelloDone with content", due, message(raw.SERVER_HELLO_DONE, b"\0"), DECODE_ERROR),
    ]


def _server_psk_share_rows() -> list[Row]:
    due = Point.CLIENT_PSK_SHARE_DUE
    kind = raw.SERVER_KEY_EXCHANGE
    return [
        Row("without a share", due, message(kind, raw.vector(b"hint", 2)), DECODE_ERROR),
        Row("ServerHelloDone", due, message(raw.SERVER_HELLO_DONE, b""), UNEXPECTED_MESSAGE),
        Row("Certificate", due, message(raw.CERTIFICATE, certificates_of("p256")), UNEXPECTED_MESSAGE),
        Row(
            "P-521",
            due,
            message(kind, b"\0\0" + raw.ecdhe_parameters(25, b"\4" + bytes(132))),
            ILLEGAL_PARAMETER,
        ),
        Row(
            "a signature behind it",
            due,
            message(kind, b"\0\0" + raw.ecdhe_parameters(raw.X25519, b"\x09" + bytes(31)) + b"\4\3\0\1x"),
            DECODE_ERROR,
        ),
    ]


def _ticket_rows() -> list[Row]:
    due = Point.CLIENT_TICKET_DUE
    kind, good = raw.NEW_SESSION_TICKET, b"\0\0\0\x0a" + raw.vector(b"ticket", 2)

    def twice(puppet: EcdheServer) -> None:
        puppet.give(puppet.message(kind, good))
        puppet.give(puppet.message(kind, good))

    return [
        Row("a trailing byte", due, message(kind, good + b"\0"), DECODE_ERROR),
        Row("cut short", due, message(kind, good[:-1]), DECODE_ERROR),
        Row("a second ticket", due, twice, UNEXPECTED_MESSAGE),
        Row("ServerHelloDone", due, message(raw.SERVER_HELLO_DONE, b""), UNEXPECTED_MESSAGE),
        Row("Finished in clear", due, message(raw.FINISHED, bytes(12)), UNEXPECTED_MESSAGE),
        Row(
            "Finished without the ticket",
            due,
            lambda puppet: puppet.give(puppet.change_cipher_spec(), puppet.finished()),
            None,
        ),
    ]


CERTIFICATE_TABLE = [
    *_certificate_rows(),
    *_share_rows(),
    *_verify_rows(),
    *_psk_share_rows(),
    *_server_certificate_rows(),
    *_server_share_rows(),
    *_request_rows(),
    *_server_psk_share_rows(),
    *_ticket_rows(),
]
