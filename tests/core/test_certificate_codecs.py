"""The bodies of certificates, key exchanges with Diffie-Hellman and tickets, and the suites that use them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sansdtls.crypto.suites import SUITES, KeyExchange
from sansdtls.errors import DecodeError
from sansdtls.iana import AlertDescription, CipherSuite, SignatureScheme
from sansdtls.wire.certificates import (
    CertificateMessage,
    CertificateRequest,
    CertificateVerify,
    EcdhClientKeyExchange,
    EcdheParameters,
    EcdhePskClientKeyExchange,
    EcdhePskServerKeyExchange,
    NewSessionTicket,
    RawPublicKeyMessage,
    SignedServerKeyExchange,
)
from sansdtls.wire.codec import Reader
from tests.core.raw import vector

uint16 = st.integers(0, 0xFFFF)
opaque = st.binary(max_size=300)
points = st.binary(min_size=1, max_size=255)
parameters = st.builds(EcdheParameters, group=uint16, public=points)
messages = st.one_of(
    st.builds(CertificateMessage, chain=st.lists(st.binary(min_size=1, max_size=300), max_size=4).map(tuple)),
    st.builds(RawPublicKeyMessage, spki=opaque),
    st.builds(
        CertificateRequest,
        certificate_types=st.binary(min_size=1, max_size=255),
        signature_schemes=st.lists(uint16, min_size=1, max_size=20).map(tuple),
        authorities=st.lists(st.binary(min_size=1, max_size=100), max_size=4).map(tuple),
    ),
    st.builds(CertificateVerify, scheme=uint16, signature=opaque),
    st.builds(SignedServerKeyExchange, parameters=parameters, scheme=uint16, signature=opaque),
    st.builds(EcdhePskServerKeyExchange, identity_hint=opaque, parameters=parameters),
    st.builds(EcdhClientKeyExchange, public=points),
    st.builds(EcdhePskClientKeyExchange, identity=opaque, public=points),
    st.builds(NewSessionTicket, lifetime_hint=st.integers(0, 0xFFFFFFFF), ticket=opaque),
)
MESSAGES = (
    CertificateMessage,
    RawPublicKeyMessage,
    CertificateRequest,
    CertificateVerify,
    SignedServerKeyExchange,
    EcdhePskServerKeyExchange,
    EcdhClientKeyExchange,
    EcdhePskClientKeyExchange,
    NewSessionTicket,
)


# --- all messages -----------------------------------------------------------------------------------------


@given(messages)
def test_a_message_survives_encoding_and_decoding(message):
    assert type(message).decode_untrusted(message.encode()) == message


@given(messages)
def test_every_truncation_of_a_message_is_a_decode_error(message):
    body = message.encode()
    for length in range(len(body)):
        with pytest.raises(DecodeError) as caught:
            type(message).decode_untrusted(body[:length])
        assert caught.value.description is AlertDescription.DECODE_ERROR


@given(messages, st.binary(min_size=1, max_size=4))
def test_bytes_after_the_end_of_a_message_are_a_decode_error(message, trailing):
    with pytest.raises(DecodeError) as caught:
        type(message).decode_untrusted(message.encode() + trailing)
    assert caught.value.description is AlertDescription.DECODE_ERROR


@given(st.binary(max_size=120))
def test_arbitrary_bytes_are_a_message_that_encodes_to_them_or_a_decode_error(data):
    for kind in MESSAGES:
        try:
            message = kind.decode_untrusted(data)
        except DecodeError as error:
            assert error.rule
            assert isinstance(error.description, AlertDescription)
        else:
            assert message.encode() == data


@given(messages, st.data())
def test_a_message_with_one_changed_byte_is_another_message_or_a_decode_error(message, data):
    body = bytearray(message.encode())
    position = data.draw(st.integers(0, len(body) - 1))
    body[position] ^= data.draw(st.integers(1, 255))
    try:
        changed = type(message).decode_untrusted(bytes(body))
    except DecodeError:
        return
    assert changed != message
    assert changed.encode() == body


@pytest.mark.parametrize(
    ("message", "layout"),
    [
        # RFC 5246 §7.4.2: certificate_list<0..2^24-1> of ASN.1Cert<1..2^24-1>
        (CertificateMessage(()), "000000"),
        (CertificateMessage((b"own", b"ca")), "00000b 000003 6f776e 000002 6361"),
        # RFC 7250 §3: ASN.1_subjectPublicKeyInfo, with no list around it
        (RawPublicKeyMessage(b"spki"), "000004 73706b69"),
        (RawPublicKeyMessage(b""), "000000"),
        # RFC 5246 §7.4.4: types, hash and signature pairs, names with a length each
        (
            CertificateRequest(b"\x40\x01", (0x0403, 0x0804), (b"dn1", b"dn")),
            "02 4001 0004 0403 0804 0009 0003 646e31 0002 646e",
        ),
        (CertificateRequest(b"\x40", (0x0807,), ()), "01 40 0002 0807 0000"),
        # RFC 5246 §4.7: algorithm, then the signature
        (CertificateVerify(0x0403, b"sig"), "0403 0003 736967"),
        # RFC 8422 §5.4: named_curve, the group, the point, and the signature
        (
            SignedServerKeyExchange(EcdheParameters(29, b"point"), 0x0804, b"sig"),
            "03 001d 05 706f696e74 0804 0003 736967",
        ),
        # RFC 5489 §2: the hint in front, nothing behind
        (EcdhePskServerKeyExchange(b"", EcdheParameters(23, b"point")), "0000 03 0017 05 706f696e74"),
        (EcdhePskServerKeyExchange(b"hi", EcdheParameters(23, b"p")), "0002 6869 03 0017 01 70"),
        (EcdhClientKeyExchange(b"point"), "05 706f696e74"),
        (EcdhePskClientKeyExchange(b"id", b"point"), "0002 6964 05 706f696e74"),
        # RFC 5077 §3.3
        (NewSessionTicket(7200, b"ticket"), "00001c20 0006 7469636b6574"),
        (NewSessionTicket(0, b""), "00000000 0000"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_a_message_is_encoded_as_its_rfc_lays_it_out(message, layout):
    assert message.encode() == bytes.fromhex(layout)


# --- what may not be empty, odd or explicit ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param(CertificateMessage, vector(vector(b"", 3), 3), id="empty certificate"),
        pytest.param(
            CertificateMessage, vector(vector(b"own", 3) + vector(b"", 3), 3), id="empty second certificate"
        ),
        pytest.param(
            CertificateMessage, vector(b"\0\0\4own", 3), id="certificate that reaches beyond the list"
        ),
        pytest.param(CertificateMessage, vector(b"\0\0", 3), id="half a length"),
        pytest.param(CertificateRequest, vector(b"\x40", 1) + vector(b"", 2) + b"\0\0", id="no scheme"),
        pytest.param(
            CertificateRequest, vector(b"\x40", 1) + vector(b"\4\3\4", 2) + b"\0\0", id="scheme and a half"
        ),
        pytest.param(
            CertificateRequest,
            vector(b"\x40", 1) + vector(b"\4\3", 2) + vector(vector(b"", 2), 2),
            id="empty authority",
        ),
        pytest.param(EcdhClientKeyExchange, b"\0", id="no point from an ECDHE client"),
        pytest.param(EcdhePskClientKeyExchange, vector(b"id", 2) + b"\0", id="no point from a PSK client"),
        pytest.param(SignedServerKeyExchange, b"\3\0\x17\0\4\3\0\1s", id="no point from a signing server"),
        pytest.param(EcdhePskServerKeyExchange, b"\0\0\3\0\x17\0", id="no point from a PSK server"),
    ],
)
def test_a_vector_out_of_range_is_a_decode_error(kind, body):
    with pytest.raises(DecodeError) as caught:
        kind.decode_untrusted(body)
    assert caught.value.description is AlertDescription.DECODE_ERROR


@pytest.mark.parametrize("curve_type", [0, 1, 2, 4, 255])
@pytest.mark.parametrize("kind", [SignedServerKeyExchange, EcdhePskServerKeyExchange])
def test_curves_by_their_parameters_are_an_illegal_parameter(kind, curve_type):
    hint = b"\0\0" if kind is EcdhePskServerKeyExchange else b""
    with pytest.raises(DecodeError) as caught:
        kind.decode_untrusted(hint + bytes([curve_type]) + b"\0\x17\1p")
    assert caught.value.description is AlertDescription.ILLEGAL_PARAMETER
    assert f"curve type {curve_type}" in caught.value.rule


def test_parameters_are_taken_from_the_front_and_what_follows_stays():
    reader = Reader(bytes.fromhex("03 001d 02 4142") + b"rest", "test")
    assert EcdheParameters.read_untrusted(reader) == EcdheParameters(29, b"AB")
    assert reader.take(4) == b"rest"
    reader.end()


def test_an_empty_chain_and_an_empty_raw_key_are_the_same_bytes():
    assert CertificateMessage(()).encode() == RawPublicKeyMessage(b"").encode()


# --- suites -----------------------------------------------------------------------------------------------

TABLE = """
    PSK          00A8 16 gcm sha256   00A9 32 gcm sha384
                 C0A4 16 ccm sha256   C0A5 32 ccm sha256   C0A8 16 ccm8 sha256   C0A9 32 ccm8 sha256
                 CCAB 32 chacha sha256
    ECDHE_PSK    D001 16 gcm sha256   D002 32 gcm sha384   D003 16 ccm8 sha256   D005 16 ccm sha256
                 CCAC 32 chacha sha256
    ECDHE_ECDSA  C02B 16 gcm sha256   C02C 32 gcm sha384
                 C0AC 16 ccm sha256   C0AD 32 ccm sha256   C0AE 16 ccm8 sha256   C0AF 32 ccm8 sha256
                 CCA9 32 chacha sha256
    ECDHE_RSA    C02F 16 gcm sha256   C030 32 gcm sha384   CCA8 32 chacha sha256
"""
"""RFC 5487, 6655, 7905, 8442, 7251, 5289: key exchange; code, bytes of key, AEAD, hash of the PRF."""
NONCE_AND_TAG = {"gcm": (4, 8, 16), "ccm": (4, 8, 16), "ccm8": (4, 8, 8), "chacha": (12, 0, 16)}


def table_rows():
    words = TABLE.split()
    exchange = KeyExchange.PSK
    while words:
        if words[0] in KeyExchange.__members__:
            exchange = KeyExchange[words.pop(0)]
        code, key_length, aead, prf_hash, *words = words
        yield int(code, 16), (exchange, int(key_length), prf_hash, *NONCE_AND_TAG[aead])


def test_every_suite_is_what_its_rfc_says():
    assert {
        int(suite): (
            row.key_exchange,
            row.key_length,
            row.prf_hash.name,
            row.fixed_iv_length,
            row.explicit_nonce_length,
            row.tag_length,
        )
        for suite, row in SUITES.items()
    } == dict(table_rows())


def test_every_suite_has_a_row_and_is_named_after_it():
    assert set(SUITES) == set(CipherSuite)
    for suite, row in SUITES.items():
        assert row.suite is suite
        assert suite.name.startswith(f"TLS_{row.key_exchange.name}_WITH_")


@pytest.mark.parametrize("suite", CipherSuite)
def test_every_suite_makes_its_aead_with_a_key_and_tag_of_its_length(suite):
    row = SUITES[suite]
    nonce = bytes(row.fixed_iv_length + row.explicit_nonce_length)
    sealed = row.aead(bytes(row.key_length)).encrypt(nonce, b"reading", b"header")
    assert len(sealed) == len(b"reading") + row.tag_length
    assert len(nonce) == 12


def test_a_request_without_certificate_types_is_read_because_gnutls_sends_it():
    request = CertificateRequest(b"", (SignatureScheme.ED25519,), ())
    assert CertificateRequest.decode_untrusted(request.encode()) == request
