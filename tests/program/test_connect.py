"""The parts of ``connect`` that need no peer."""

import os

import pytest

from endpoint.connect import lines_of, parse_target, printable_reply


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("gateway", ("gateway", 5684)),
        ("gateway:1", ("gateway", 1)),
        ("192.0.2.1:65535", ("192.0.2.1", 65535)),
        ("[2001:db8::1]", ("2001:db8::1", 5684)),
        ("[::1]:5685", ("::1", 5685)),
        ("::1", ("::1", 5684)),
        ("[fe80::1%eth0]:7", ("fe80::1%eth0", 7)),
    ],
)
def test_a_target_is_host_and_port(text, target):
    assert parse_target(text, 5684) == target


@pytest.mark.parametrize(
    "text", ["", ":1", "h:", "h:0", "h:65536", "h:x", "[::1", "::1]", "[]:1", "[::1]x", "h:1 "]
)
def test_what_is_no_target_is_refused(text):
    with pytest.raises(ValueError):
        parse_target(text, 5684)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"hello", "hello"),
        (b"hello\r\n", "hello"),
        (b"hello\n\n", "hello\\x0a"),
        (b'{"path": "c:\\\\x"}', '{"path": "c:\\\\x"}'),
        (b"\xff\x01", "\\xff\\x01"),
        (b"\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        (b"", ""),
    ],
)
def test_a_reply_is_one_printable_line(data, line):
    assert printable_reply(data) == line


async def test_lines_come_as_they_are_complete_and_the_last_needs_no_end():
    reading, writing = os.pipe()
    with os.fdopen(reading):
        os.write(writing, b"one\r\ntwo\n\nth")
        os.write(writing, b"ree")
        os.close(writing)
        assert [line async for line in lines_of(reading)] == [b"one", b"two", b"", b"three"]
