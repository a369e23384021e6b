"""Handshakes of GnuTLS with itself, with certificates and raw public keys, read with our codecs and keys.

The recordings were made by others: where messages encode to the bytes they were decoded from, signatures
verify and Finished is what the transcript says, our reading of the RFCs is theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sansdtls.config import Limits
from sansdtls.crypto.signatures import schemes_of, spki_of_certificate, verify_signature
from sansdtls.crypto.suites import SUITES, KeyExchange, NotAuthentic
from sansdtls.handshake.extensions import (
    read_client_extensions_untrusted,
    read_server_extensions_untrusted,
)
from sansdtls.handshake.keys import HandshakeParameters, derive_epoch_keys, verify_data
from sansdtls.iana import CertificateType, CipherSuite, ContentType, HandshakeType, NamedGroup
from sansdtls.wire.certificates import (
    CertificateMessage,
    CertificateRequest,
    CertificateVerify,
    EcdhClientKeyExchange,
    NewSessionTicket,
    RawPublicKeyMessage,
    SignedServerKeyExchange,
)
from sansdtls.wire.handshake import HandshakeMessage, decode_fragments_untrusted, encode_message
from sansdtls.wire.messages import ClientHello, ServerHello
from sansdtls.wire.record import RECORD_HEADER_LENGTH, Record, read_record_untrusted
from tests.recordings import recorded_datagrams, recorded_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sansdtls.crypto.suites import SuiteParameters
    from sansdtls.record.epochs import ReadEpoch

RAW = CertificateType.RAW_PUBLIC_KEY
RECORDINGS = {
    "gnutls-ecdhe-ecdsa": (22502, CertificateType.X509),
    "gnutls-rpk": (22501, RAW),
}


@attrs.define
class Opened:
    """A recording with its protected records opened, from the hello with the cookie on. True = of the client."""

    client_random: bytes
    master_secret: bytes
    certificate_type: CertificateType
    messages: list[tuple[bool, HandshakeMessage]] = attrs.field(factory=list)
    data: list[tuple[bool, bytes]] = attrs.field(factory=list)
    alerts: list[tuple[bool, bytes]] = attrs.field(factory=list)

    def add(self, from_client: bool, content_type: int, plaintext: bytes) -> None:
        if content_type == ContentType.HANDSHAKE:
            for fragment in decode_fragments_untrusted(plaintext):
                assert fragment.length == len(fragment.body)
                message = HandshakeMessage(fragment.message_type, fragment.message_seq, fragment.body)
                self.messages.append((from_client, message))
        elif content_type == ContentType.APPLICATION_DATA:
            self.data.append((from_client, plaintext))
        elif content_type == ContentType.ALERT:
            self.alerts.append((from_client, plaintext))

    @property
    def is_raw(self) -> bool:
        return self.certificate_type is RAW

    def body(self, kind: HandshakeType, *, of_client: bool) -> bytes:
        (body,) = (
            message.body
            for from_client, message in self.messages
            if (from_client, message.message_type) == (of_client, kind)
        )
        return body

    def transcript_before(self, kind: HandshakeType, *, of_client: bool) -> bytes:
        transcript = b""
        for from_client, message in self.messages:
            if (from_client, message.message_type) == (of_client, kind):
                return transcript
            transcript += encode_message(message)
        raise AssertionError(kind)

    def spki(self, *, of_client: bool) -> bytes:
        body = self.body(HandshakeType.CERTIFICATE, of_client=of_client)
        if self.is_raw:
            return RawPublicKeyMessage.decode_untrusted(body).spki
        return spki_of_certificate(CertificateMessage.decode_untrusted(body).chain[0])

    @property
    def suite(self) -> SuiteParameters:
        return SUITES[CipherSuite(self.hellos[1].cipher_suite)]

    @property
    def hellos(self) -> tuple[ClientHello, ServerHello]:
        client = self.body(HandshakeType.CLIENT_HELLO, of_client=True)
        server = self.body(HandshakeType.SERVER_HELLO, of_client=False)
        return ClientHello.decode_untrusted(client), ServerHello.decode_untrusted(server)


def records_of(datagram: bytes) -> Iterator[Record]:
    offset = 0
    while offset < len(datagram):
        record = read_record_untrusted(datagram, offset)
        assert record is not None
        offset += RECORD_HEADER_LENGTH + len(record.fragment)
        yield record


def epochs(found: Opened) -> dict[bool, ReadEpoch]:
    """Epoch 1, by who seals: True = the client."""
    client_hello, server_hello = found.hellos
    parameters = HandshakeParameters(
        found.suite,
        client_hello.random,
        server_hello.random,
        session_hash=None,
        is_client=False,
        limits=Limits(),
    )
    of_client = derive_epoch_keys(parameters, found.master_secret).read
    of_server = derive_epoch_keys(attrs.evolve(parameters, is_client=True), found.master_secret).read
    return {True: of_client, False: of_server}


@pytest.fixture(scope="module", params=RECORDINGS)
def opened(request: pytest.FixtureRequest) -> Opened:
    port, certificate_type = RECORDINGS[request.param]
    ((client_random, master_secret),) = recorded_secrets(request.param).items()
    found = Opened(client_random, master_secret, certificate_type)
    opening: dict[bool, ReadEpoch] = {}
    # Hello without cookie and HelloVerifyRequest are outside the transcript.
    for datagram in list(recorded_datagrams(request.param))[2:]:
        from_client = datagram.destination_port == port
        for record in records_of(datagram.payload):
            plaintext = record.fragment
            if record.epoch == 1:
                opening = opening or epochs(found)
                of_record = opening[from_client].open(record)
                assert of_record is not None
                content_type, plaintext = of_record
                assert content_type == record.content_type
            found.add(from_client, record.content_type, plaintext)
    return found


# --- what the messages say --------------------------------------------------------------------------


CODECS = {
    HandshakeType.CERTIFICATE_REQUEST: CertificateRequest,
    HandshakeType.SERVER_KEY_EXCHANGE: SignedServerKeyExchange,
    HandshakeType.CLIENT_KEY_EXCHANGE: EcdhClientKeyExchange,
    HandshakeType.CERTIFICATE_VERIFY: CertificateVerify,
    HandshakeType.NEW_SESSION_TICKET: NewSessionTicket,
    HandshakeType.CLIENT_HELLO: ClientHello,
    HandshakeType.SERVER_HELLO: ServerHello,
}


def test_the_messages_come_in_the_order_of_the_rfc(opened: Opened):
    assert [
        (from_client, HandshakeType(message.message_type)) for from_client, message in opened.messages
    ] == [
        (True, HandshakeType.CLIENT_HELLO),
        (False, HandshakeType.SERVER_HELLO),
        (False, HandshakeType.CERTIFICATE),
        (False, HandshakeType.SERVER_KEY_EXCHANGE),
        (False, HandshakeType.CERTIFICATE_REQUEST),
        (False, HandshakeType.SERVER_HELLO_DONE),
        (True, HandshakeType.CERTIFICATE),
        (True, HandshakeType.CLIENT_KEY_EXCHANGE),
        (True, HandshakeType.CERTIFICATE_VERIFY),
        (True, HandshakeType.FINISHED),
        (False, HandshakeType.NEW_SESSION_TICKET),
        (False, HandshakeType.FINISHED),
    ]


def test_each_message_encodes_to_the_bytes_it_was_decoded_from(opened: Opened):
    certificate = RawPublicKeyMessage if opened.is_raw else CertificateMessage
    codecs: dict[HandshakeType, Any] = {**CODECS, HandshakeType.CERTIFICATE: certificate}
    decoded = 0
    for _, message in opened.messages:
        codec = codecs.get(HandshakeType(message.message_type))
        if codec is not None:
            assert codec.decode_untrusted(message.body).encode() == message.body
            decoded += 1
    assert decoded == 9  # all but ServerHelloDone and both Finished


def test_the_hellos_agree_on_suite_extended_master_secret_and_certificate_types(opened: Opened):
    client_hello, server_hello = opened.hellos
    assert client_hello.random == opened.client_random
    assert server_hello.cipher_suite in client_hello.cipher_suites
    assert opened.suite.key_exchange is KeyExchange.ECDHE_ECDSA
    offered = read_client_extensions_untrusted(client_hello.extensions)
    chosen = read_server_extensions_untrusted(server_hello.extensions)
    assert offered.extended_master_secret
    assert chosen.extended_master_secret
    if opened.is_raw:
        assert offered.server_certificate_types == offered.client_certificate_types == (RAW,)
        assert chosen.server_certificate_types == chosen.client_certificate_types == (RAW,)
    else:
        assert chosen.server_certificate_types is None


# --- what they prove --------------------------------------------------------------------------------


def test_the_server_signed_the_key_exchange(opened: Opened):
    body = opened.body(HandshakeType.SERVER_KEY_EXCHANGE, of_client=False)
    message = SignedServerKeyExchange.decode_untrusted(body)
    assert message.parameters.group == NamedGroup.SECP256R1
    client_hello, server_hello = opened.hellos
    signed = client_hello.random + server_hello.random + message.parameters.encode()
    spki = opened.spki(of_client=False)
    assert message.scheme in schemes_of(spki)
    verify_signature(spki, message.scheme, signed, message.signature)
    with pytest.raises(NotAuthentic):
        verify_signature(opened.spki(of_client=True), message.scheme, signed, message.signature)


def test_the_client_signed_the_transcript(opened: Opened):
    body = opened.body(HandshakeType.CERTIFICATE_VERIFY, of_client=True)
    message = CertificateVerify.decode_untrusted(body)
    signed = opened.transcript_before(HandshakeType.CERTIFICATE_VERIFY, of_client=True)
    spki = opened.spki(of_client=True)
    verify_signature(spki, message.scheme, signed, message.signature)
    with pytest.raises(NotAuthentic):
        verify_signature(spki, message.scheme, signed[:-1], message.signature)


@pytest.mark.parametrize("of_client", [True, False], ids=["client", "server"])
def test_finished_proves_the_transcript(opened: Opened, of_client: bool):
    label = b"client finished" if of_client else b"server finished"
    transcript = opened.transcript_before(HandshakeType.FINISHED, of_client=of_client)
    expected = verify_data(opened.suite, opened.master_secret, label, transcript)
    assert opened.body(HandshakeType.FINISHED, of_client=of_client) == expected


def test_data_and_close_notify_come_out_of_their_records(opened: Opened):
    (of_client, said), (of_server, echoed) = opened.data
    assert (of_client, of_server) == (True, False)
    assert said == echoed
    assert opened.alerts == [(True, b"\x01\x00")]
