"""Names and bytes as they are shown."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endpoint.text import UtcStamps, json_line, read_shown, show_bytes, show_text


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"meter-17", "meter-17"),
        ("Zähler 17".encode(), "Zähler 17"),
        (b"back\\slash", "back\\\\slash"),
        (b"two\nlines", "two\\x0alines"),
        (b"\x1b[31mred", "\\x1b[31mred"),
        (b"\x00", "\\x00"),
        (b"caf\xe9", "caf\\xe9"),
        ("\u202egnp".encode(), "\\u202egnp"),
        ("\x9b".encode(), "\\u009b"),
        ("\U000e0001".encode(), "\\U000e0001"),
        (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),
    ],
)
def test_what_is_not_printable_is_shown_by_its_number(data, shown):
    assert show_bytes(data) == shown


@given(st.binary(max_size=12), st.binary(max_size=12))
def test_shown_bytes_are_printable_and_different_for_different_bytes(one, other):
    assert show_bytes(one).isprintable()
    assert (show_bytes(one) == show_bytes(other)) == (one == other)


@given(st.binary(max_size=40) | st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_what_is_shown_can_be_read_back(data):
    assert read_shown(show_bytes(data)) == data


@pytest.mark.parametrize("text", ["\\", "a\\q", "\\x1", "\\xzz", "\\u12", "x\\"])
def test_what_is_never_shown_cannot_be_read_back(text):
    with pytest.raises(ValueError, match="a backslash is written"):
        read_shown(text)


@pytest.mark.parametrize("text", ["a\\ud800", "\\udfff", "\\U00110000", "\\Uffffffff"])
def test_what_is_no_character_is_called_so(text):
    with pytest.raises(ValueError, match=r"^\\[uU][0-9a-f]+ is no character$"):
        read_shown(text)


def test_a_file_name_that_is_not_utf_8_can_be_shown():
    assert show_text(b"psk-\xff.txt".decode("utf-8", "surrogateescape")) == "psk-\\xff.txt"


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_a_json_line_is_one_printable_line_that_says_the_same(fact):
    line = json_line(fact)
    assert line.isprintable()
    assert json.loads(line) == fact


def test_a_json_line_leaves_readable_text_readable():
    assert json_line({"temperature": "21 °C"}) == '{"temperature": "21 °C"}'


def test_a_stamp_is_utc_with_milliseconds():
    stamps = UtcStamps()
    assert stamps(0) == "1970-01-01T00:00:00.000Z"
    assert stamps(1_700_000_000.5) == "2023-11-14T22:13:20.500Z"
    assert stamps(1_700_000_000.75) == "2023-11-14T22:13:20.750Z"
    assert stamps(1_700_000_001.0) == "2023-11-14T22:13:21.000Z"
