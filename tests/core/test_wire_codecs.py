"""The wire codecs: values to bytes and back, and only ``DecodeError`` for what is not well formed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sansdtls.errors import DecodeError
from sansdtls.iana import AlertDescription, AlertLevel, ContentType, ProtocolVersion
from sansdtls.wire.handshake import (
    HandshakeMessage,
    decode_fragments_untrusted,
    encode_fragment,
    encode_message,
)
from sansdtls.wire.messages import (
    ClientHello,
    HelloVerifyRequest,
    PskClientKeyExchange,
    PskServerKeyExchange,
    ServerHello,
    expect_empty_untrusted,
    split_cookie_untrusted,
)
from sansdtls.wire.record import (
    decode_alert_untrusted,
    encode_alert,
    encode_record,
    read_record_untrusted,
)
from tests.core import raw

uint16 = st.integers(0, 0xFFFF)
extensions = st.lists(st.tuples(uint16, st.binary(max_size=20)), max_size=5, unique_by=lambda e: e[0]).map(
    tuple
)
client_hellos = st.builds(
    ClientHello,
    version=uint16,
    random=st.binary(min_size=32, max_size=32),
    session_id=st.binary(max_size=32),
    cookie=st.binary(max_size=255),
    cipher_suites=st.lists(uint16, min_size=1, max_size=20).map(tuple),
    compression_methods=st.binary(min_size=1, max_size=5),
    extensions=extensions,
)
server_hellos = st.builds(
    ServerHello,
    version=uint16,
    random=st.binary(min_size=32, max_size=32),
    session_id=st.binary(max_size=32),
    cipher_suite=uint16,
    compression_method=st.integers(0, 255),
    extensions=extensions,
)
messages = st.one_of(
    client_hellos,
    server_hellos,
    st.builds(HelloVerifyRequest, version=uint16, cookie=st.binary(max_size=255)),
    st.builds(PskServerKeyExchange, identity_hint=st.binary(max_size=300)),
    st.builds(PskClientKeyExchange, identity=st.binary(max_size=300)),
)
DECODERS = (
    ClientHello.decode_untrusted,
    ServerHello.decode_untrusted,
    HelloVerifyRequest.decode_untrusted,
    PskServerKeyExchange.decode_untrusted,
    PskClientKeyExchange.decode_untrusted,
    split_cookie_untrusted,
    decode_fragments_untrusted,
    decode_alert_untrusted,
    lambda data: expect_empty_untrusted(data, "ServerHelloDone"),
)


# --- messages -----------------------------------------------------------------------------------------


@given(messages)
def test_a_message_survives_encoding_and_decoding(message):
    assert type(message).decode_untrusted(message.encode()) == message


@given(messages)
def test_every_truncation_of_a_message_is_a_decode_error_or_another_legal_message(message):
    body = message.encode()
    for length in range(len(body)):
        try:
            shorter = type(message).decode_untrusted(body[:length])
        except DecodeError as error:
            assert error.description is AlertDescription.DECODE_ERROR
        else:
            # Only a hello may stop early, right before its optional extensions.
            assert isinstance(shorter, ClientHello | ServerHello)
            assert shorter.extensions == ()
            assert shorter.encode() == body[:length]


@given(messages, st.binary(min_size=1, max_size=4))
def test_bytes_after_the_end_of_a_message_are_a_decode_error(message, trailing):
    body = message.encode()
    if isinstance(message, ClientHello | ServerHello) and not message.extensions:
        body += b"\0\0"
    with pytest.raises(DecodeError):
        type(message).decode_untrusted(body + trailing)


@given(st.binary(max_size=120))
def test_arbitrary_bytes_raise_nothing_but_decode_error(data):
    for decode in DECODERS:
        try:
            decode(data)
        except DecodeError as error:
            assert error.rule
            assert isinstance(error.description, AlertDescription)


@given(messages, st.data())
def test_a_message_with_one_changed_byte_raises_nothing_but_decode_error(message, data):
    body = bytearray(message.encode())
    position = data.draw(st.integers(0, len(body) - 1))
    body[position] ^= data.draw(st.integers(1, 255))
    try:
        changed = type(message).decode_untrusted(bytes(body))
    except DecodeError:
        return
    assert changed != message


def test_a_hello_is_encoded_as_the_rfc_lays_it_out():
    assert ClientHello(
        raw.DTLS_1_2,
        bytes(range(32)),
        b"s",
        b"cook",
        (*raw.ALL_SUITES, raw.SCSV),
        b"\0",
        raw.DEFAULT_EXTENSIONS,
    ).encode() == raw.client_hello(session_id=b"s", cookie=b"cook")
    assert (
        ServerHello(
            raw.DTLS_1_2, bytes(range(100, 132)), b"", raw.AES_128_GCM, 0, raw.DEFAULT_EXTENSIONS
        ).encode()
        == raw.server_hello()
    )


def test_an_extension_that_comes_twice_is_an_illegal_parameter():
    body = raw.client_hello(extensions=(raw.EMS, (1, b"x"), raw.EMS))
    with pytest.raises(DecodeError) as caught:
        ClientHello.decode_untrusted(body)
    assert caught.value.description is AlertDescription.ILLEGAL_PARAMETER


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(raw.client_hello(session_id=bytes(33)), id="session id of 33 bytes"),
        pytest.param(raw.client_hello(suites=()), id="no cipher suite"),
        pytest.param(raw.client_hello(compression=b""), id="no compression method"),
        pytest.param(
            raw.client_hello(suites=(), extensions=None).replace(b"\0\0\0\1\0", b"\0\0\3\1\2\3\1\0"),
            id="cipher suites of odd length",
        ),
    ],
)
def test_a_client_hello_with_a_vector_out_of_range_is_a_decode_error(body):
    with pytest.raises(DecodeError) as caught:
        ClientHello.decode_untrusted(body)
    assert caught.value.description is AlertDescription.DECODE_ERROR


@given(client_hellos)
def test_the_cookie_is_cut_out_of_a_hello_without_reading_what_follows(hello):
    before, cookie, after = split_cookie_untrusted(hello.encode())
    assert cookie == hello.cookie
    assert before + bytes([len(cookie)]) + cookie + after == hello.encode()
    # Any prefix that reaches to the end of the cookie gives the same cookie, any shorter one an error.
    enough = len(before) + 1 + len(cookie)
    assert split_cookie_untrusted(hello.encode()[:enough]) == (before, cookie, b"")
    for length in range(enough):
        with pytest.raises(DecodeError):
            split_cookie_untrusted(hello.encode()[:length])


# --- handshake fragments ------------------------------------------------------------------------------


@given(st.integers(0, 255), uint16, st.binary(max_size=100), st.data())
def test_a_fragment_survives_encoding_and_decoding(message_type, message_seq, body, data):
    offset = data.draw(st.integers(0, len(body)))
    length = data.draw(st.integers(0, len(body) - offset))
    message = HandshakeMessage(message_type, message_seq, body)
    encoded = encode_fragment(message, offset, length)
    assert encoded == raw.fragment(
        message_type, body[offset : offset + length], message_seq=message_seq, offset=offset, total=len(body)
    )
    (decoded,) = decode_fragments_untrusted(encoded)
    assert decoded.end == offset + length
    assert decoded == (message_type, len(body), message_seq, offset, body[offset : offset + length])


@given(st.lists(st.binary(max_size=30), min_size=1, max_size=5))
def test_several_messages_share_a_record(bodies):
    encoded = b"".join(encode_message(HandshakeMessage(1, seq, body)) for seq, body in enumerate(bodies))
    assert [found.body for found in decode_fragments_untrusted(encoded)] == bodies
    for length in range(len(encoded)):
        try:
            found = decode_fragments_untrusted(encoded[:length])
        except DecodeError:
            continue
        assert (
            b"".join(encode_message(HandshakeMessage(1, f.message_seq, f.body)) for f in found)
            == encoded[:length]
        )


@pytest.mark.parametrize(
    ("encoded", "description"),
    [
        (b"", AlertDescription.DECODE_ERROR),
        (raw.fragment(1, b"abc", length=4), AlertDescription.DECODE_ERROR),
        (raw.fragment(1, b"abc", offset=8, total=10), AlertDescription.ILLEGAL_PARAMETER),
        (raw.fragment(1, b"", offset=1, total=0), AlertDescription.ILLEGAL_PARAMETER),
        (raw.fragment(1, b"abc", offset=0xFFFFFF, total=0xFFFFFF), AlertDescription.ILLEGAL_PARAMETER),
    ],
)
def test_a_fragment_beyond_its_record_or_its_message_is_refused(encoded, description):
    with pytest.raises(DecodeError) as caught:
        decode_fragments_untrusted(encoded)
    assert caught.value.description is description


# --- records and alerts -------------------------------------------------------------------------------


@given(
    st.sampled_from([kind for kind in ContentType if kind is not ContentType.TLS12_CID]),
    st.sampled_from(ProtocolVersion),
    uint16,
    st.integers(0, 2**48 - 1),
    st.binary(max_size=60),
    st.binary(max_size=20),
)
def test_a_record_survives_encoding_and_decoding(content_type, version, epoch, seq, payload, rest):
    encoded = encode_record(content_type, version, epoch << 48 | seq, payload)
    assert encoded == raw.record(content_type, payload, epoch=epoch, seq=seq, version=version)
    found = read_record_untrusted(b"??" + encoded + rest, 2)
    assert found is not None
    assert (found.content_type, found.version, found.epoch, found.sequence_number, found.fragment) == (
        content_type,
        version,
        epoch,
        seq,
        payload,
    )
    for length in range(len(encoded)):
        assert read_record_untrusted(encoded[:length], 0) is None


@given(st.binary(max_size=40), st.integers(0, 45))
def test_arbitrary_bytes_are_a_record_or_nothing(data, offset):
    found = read_record_untrusted(data, offset)
    if found is not None:
        assert encode_record(found.content_type, found.version, found.number, found.fragment) in data


@pytest.mark.parametrize("content_type", [0, 19, 24, 25, 26, 255])
def test_a_record_of_unknown_type_is_no_record(content_type):
    assert read_record_untrusted(raw.record(content_type, b"x"), 0) is None


@pytest.mark.parametrize("version", [0, 0x0303, 0xFEFC, 0xFEFE, 0x0100, 0xFFFF])
def test_a_record_of_another_protocol_version_is_no_record(version):
    assert read_record_untrusted(raw.record(22, b"x", version=version), 0) is None


@pytest.mark.parametrize("level", AlertLevel)
@pytest.mark.parametrize("description", AlertDescription)
def test_an_alert_survives_encoding_and_decoding(level, description):
    alert = decode_alert_untrusted(encode_alert(level, description))
    assert alert.level is level
    assert alert.description is description


def test_an_alert_with_unknown_codes_keeps_them_as_plain_integers():
    assert decode_alert_untrusted(b"\x07\xfe") == (7, 254)


@pytest.mark.parametrize("encoded", [b"", b"\x02", b"\x02\x28\x00"])
def test_an_alert_of_other_than_two_bytes_is_a_decode_error(encoded):
    with pytest.raises(DecodeError):
        decode_alert_untrusted(encoded)
