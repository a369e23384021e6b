"""The bodies of hello extensions: exact both ways, and the alert that each RFC asks for."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sansdtls.errors import DecodeError
from sansdtls.iana import AlertDescription
from sansdtls.wire import extensions
from tests.core.raw import vector

DECODE_ERROR = AlertDescription.DECODE_ERROR
ILLEGAL_PARAMETER = AlertDescription.ILLEGAL_PARAMETER

uint16 = st.integers(0, 0xFFFF)
code_points = st.lists(uint16, min_size=1, max_size=30).map(tuple)
host_names = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255)


class Codec(NamedTuple):
    values: st.SearchStrategy[Any]
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


CODECS = {
    "server_name": Codec(host_names, extensions.encode_server_name, extensions.decode_server_name_untrusted),
    "supported_groups": Codec(
        code_points, extensions.encode_supported_groups, extensions.decode_supported_groups_untrusted
    ),
    "ec_point_formats": Codec(
        st.just(b"\0"),
        lambda _: extensions.encode_ec_point_formats(),
        extensions.decode_ec_point_formats_untrusted,
    ),
    "signature_algorithms": Codec(
        code_points,
        extensions.encode_signature_algorithms,
        extensions.decode_signature_algorithms_untrusted,
    ),
    "alpn": Codec(
        st.lists(st.binary(min_size=1, max_size=255), min_size=1, max_size=6).map(tuple),
        extensions.encode_alpn,
        extensions.decode_alpn_untrusted,
    ),
    "alpn answer": Codec(
        st.binary(min_size=1, max_size=255),
        lambda name: extensions.encode_alpn([name]),
        extensions.decode_alpn_answer_untrusted,
    ),
    "certificate types": Codec(
        st.lists(st.integers(0, 255), min_size=1, max_size=255).map(tuple),
        extensions.encode_certificate_types,
        extensions.decode_certificate_types_untrusted,
    ),
    "certificate type": Codec(
        st.integers(0, 255),
        extensions.encode_certificate_type,
        extensions.decode_certificate_type_untrusted,
    ),
    "record_size_limit": Codec(
        st.integers(64, 2**14),
        extensions.encode_record_size_limit,
        extensions.decode_record_size_limit_untrusted,
    ),
    "max_fragment_length": Codec(
        st.sampled_from([512, 1024, 2048, 4096]),
        extensions.encode_max_fragment_length,
        extensions.decode_max_fragment_length_untrusted,
    ),
    "session_ticket": Codec(
        st.binary(max_size=300),
        extensions.encode_session_ticket,
        extensions.decode_session_ticket_untrusted,
    ),
}
with_value = st.sampled_from(sorted(CODECS)).flatmap(
    lambda name: st.tuples(st.just(CODECS[name]), CODECS[name].values)
)
delimited_with_value = st.sampled_from(sorted(CODECS.keys() - {"session_ticket"})).flatmap(
    lambda name: st.tuples(st.just(CODECS[name]), CODECS[name].values)
)


# --- all extensions -----------------------------------------------------------------------------------


@given(with_value)
def test_a_body_survives_encoding_and_decoding(case):
    codec, value = case
    assert codec.decode(codec.encode(value)) == value


@given(delimited_with_value)
def test_every_truncation_of_a_body_is_a_decode_error(case):
    codec, value = case
    body = codec.encode(value)
    for length in range(len(body)):
        with pytest.raises(DecodeError) as caught:
            codec.decode(body[:length])
        assert caught.value.description is DECODE_ERROR


@given(delimited_with_value, st.binary(min_size=1, max_size=4))
def test_bytes_after_the_end_of_a_body_are_a_decode_error(case, trailing):
    codec, value = case
    with pytest.raises(DecodeError) as caught:
        codec.decode(codec.encode(value) + trailing)
    assert caught.value.description is DECODE_ERROR


@given(st.binary(max_size=80))
def test_arbitrary_bytes_raise_nothing_but_decode_error(data):
    for codec in CODECS.values():
        try:
            codec.decode(data)
        except DecodeError as error:
            assert error.rule
            assert error.description in {DECODE_ERROR, ILLEGAL_PARAMETER}


@given(delimited_with_value, st.data())
def test_a_body_with_one_changed_byte_raises_nothing_but_decode_error(case, data):
    codec, value = case
    body = bytearray(codec.encode(value))
    position = data.draw(st.integers(0, len(body) - 1))
    body[position] ^= data.draw(st.integers(1, 255))
    try:
        changed = codec.decode(bytes(body))
    except DecodeError:
        return
    # Limits beyond 2**14 all say 2**14.
    assert changed != value or codec is CODECS["record_size_limit"]


@pytest.mark.parametrize(
    ("name", "value", "layout"),
    [
        ("server_name", "a.example", "000c 00 0009 612e6578616d706c65"),  # RFC 6066 §3
        ("supported_groups", (29, 23), "0004 001d 0017"),  # RFC 8422 §5.1.1
        ("ec_point_formats", b"\0", "01 00"),  # RFC 8422 §5.1.2: "00 0B 00 02 01 00"
        ("signature_algorithms", (0x0403, 0x0807), "0004 0403 0807"),  # RFC 5246 §7.4.1.4.1
        ("alpn", (b"coap", b"x"), "0007 04 636f6170 01 78"),  # RFC 7301 §3.1
        ("alpn answer", b"coap", "0005 04 636f6170"),
        ("certificate types", (2, 0), "02 0200"),  # RFC 7250 §3, client
        ("certificate type", 2, "02"),  # RFC 7250 §3, server
        ("record_size_limit", 1024, "0400"),  # RFC 8449 §4
        ("max_fragment_length", 512, "01"),  # RFC 6066 §4
        ("max_fragment_length", 4096, "04"),
        ("session_ticket", b"", ""),  # RFC 5077 §3.2
        ("session_ticket", b"tick", "7469636b"),
    ],
)
def test_a_body_is_encoded_as_its_rfc_lays_it_out(name, value, layout):
    assert CODECS[name].encode(value) == bytes.fromhex(layout)


# --- server_name --------------------------------------------------------------------------------------


def names(*entries: tuple[int, bytes]) -> bytes:
    return vector(b"".join(bytes([kind]) + vector(name, 2) for kind, name in entries), 2)


def test_names_of_unknown_types_are_passed_over():
    body = names((7, b"\xff\0"), (0, b"meter.example"), (200, b"x"))
    assert extensions.decode_server_name_untrusted(body) == "meter.example"
    assert extensions.decode_server_name_untrusted(names((7, b"\xff\0"))) is None


def test_a_host_name_keeps_its_case_and_may_be_255_bytes_long():
    for name in ("Meter.Example", "a" * 255, "192.0.2.1"):
        assert extensions.decode_server_name_untrusted(names((0, name.encode()))) == name


@pytest.mark.parametrize(
    ("body", "description"),
    [
        pytest.param(names((0, b"a"), (0, b"a")), ILLEGAL_PARAMETER, id="two host names"),
        pytest.param(names((7, b"a"), (0, b"a"), (7, b"b")), ILLEGAL_PARAMETER, id="two of an unknown type"),
        pytest.param(names((0, b"a" * 256)), ILLEGAL_PARAMETER, id="256 bytes"),
        pytest.param(names((0, b"a\0b")), ILLEGAL_PARAMETER, id="NUL"),
        pytest.param(names((0, b"a b")), ILLEGAL_PARAMETER, id="space"),
        pytest.param(names((0, b"a\x1b[2J")), ILLEGAL_PARAMETER, id="terminal escape"),
        pytest.param(names((0, b"a\x7f")), ILLEGAL_PARAMETER, id="DEL"),
        pytest.param(names((0, "zähler.example".encode())), ILLEGAL_PARAMETER, id="UTF-8"),
        pytest.param(names((0, b"")), DECODE_ERROR, id="empty name"),
        pytest.param(names(), DECODE_ERROR, id="empty list"),
        pytest.param(b"", DECODE_ERROR, id="empty body, as only a server may send it"),
    ],
)
def test_a_list_without_exactly_one_clean_host_name_is_refused(body, description):
    with pytest.raises(DecodeError) as caught:
        extensions.decode_server_name_untrusted(body)
    assert caught.value.description is description


# --- lists --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["supported_groups", "signature_algorithms"])
@pytest.mark.parametrize("body", ["0000", "0001 00", "0003 001d00", ""])
def test_a_list_of_code_points_that_is_empty_or_odd_is_a_decode_error(name, body):
    with pytest.raises(DecodeError, match=name) as caught:
        CODECS[name].decode(bytes.fromhex(body))
    assert caught.value.description is DECODE_ERROR


def test_compressed_points_may_be_offered_beside_uncompressed_ones():
    assert extensions.decode_ec_point_formats_untrusted(b"\3\1\0\2") == b"\1\0\2"


@pytest.mark.parametrize(
    ("body", "description"),
    [(b"\2\1\2", ILLEGAL_PARAMETER), (b"\1\1", ILLEGAL_PARAMETER), (b"\0", DECODE_ERROR)],
)
def test_point_formats_without_uncompressed_are_refused(body, description):
    with pytest.raises(DecodeError) as caught:
        extensions.decode_ec_point_formats_untrusted(body)
    assert caught.value.description is description


@pytest.mark.parametrize("name", ["alpn", "alpn answer"])
@pytest.mark.parametrize("body", ["", "0000", "0001 00", "0003 00 01 61", "0003 01 61 00", "0002 02 61"])
def test_alpn_without_a_name_or_with_an_empty_one_is_a_decode_error(name, body):
    with pytest.raises(DecodeError) as caught:
        CODECS[name].decode(bytes.fromhex(body))
    assert caught.value.description is DECODE_ERROR


def test_a_server_that_chooses_two_protocols_is_refused():
    with pytest.raises(DecodeError) as caught:
        extensions.decode_alpn_answer_untrusted(extensions.encode_alpn([b"coap", b"coap"]))
    assert caught.value.description is ILLEGAL_PARAMETER


def test_a_client_lists_certificate_types_and_a_server_names_one():
    for decode, body in (
        (extensions.decode_certificate_types_untrusted, b"\0"),
        (extensions.decode_certificate_types_untrusted, b"\2"),
        (extensions.decode_certificate_type_untrusted, b"\1\2"),
        (extensions.decode_certificate_type_untrusted, b""),
    ):
        with pytest.raises(DecodeError) as caught:
            decode(body)
        assert caught.value.description is DECODE_ERROR


# --- sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1, 63])
def test_a_record_size_limit_below_64_is_an_illegal_parameter(limit):
    with pytest.raises(DecodeError) as caught:
        extensions.decode_record_size_limit_untrusted(limit.to_bytes(2, "big"))
    assert caught.value.description is ILLEGAL_PARAMETER


@pytest.mark.parametrize("limit", [2**14 + 1, 2**14 + 256, 0xFFFF])
def test_a_record_size_limit_above_what_the_version_allows_is_what_it_allows(limit):
    assert extensions.decode_record_size_limit_untrusted(limit.to_bytes(2, "big")) == 2**14


@pytest.mark.parametrize("code", [0, 5, 255])
def test_a_max_fragment_length_that_is_not_defined_is_an_illegal_parameter(code):
    with pytest.raises(DecodeError) as caught:
        extensions.decode_max_fragment_length_untrusted(bytes([code]))
    assert caught.value.description is ILLEGAL_PARAMETER
