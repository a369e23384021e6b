"""The log: form, safety, and what happens to floods."""

import io
import json

import pytest

from endpoint.logs import LineStream, Throttle, make_log

KEY = bytes.fromhex("00112233445566778899aabbccddeeff")


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def logged(write, level="info"):
    stream = io.BytesIO()
    write(make_log(stream, level=level, wall=lambda: 1_700_000_000.0))
    return stream.getvalue().decode().splitlines()


def test_a_fact_is_one_line_with_the_event_first():
    (line,) = logged(lambda log: log.info("listening", address="127.0.0.1", port=5684))
    assert line == (
        '{"event": "listening", "address": "127.0.0.1", "port": 5684, '
        '"level": "info", "time": "2023-11-14T22:13:20.000Z"}'
    )


def test_levels_below_the_one_set_are_left_out():
    lines = logged(lambda log: (log.debug("a"), log.info("b"), log.warning("c"), log.error("d")), "warning")
    assert [json.loads(line)["event"] for line in lines] == ["c", "d"]


def test_nobody_can_forge_a_line():
    lines = logged(lambda log: log.warning("x", identity='a"}\n{"event": "listening"}\u2028\x9b'))
    assert len(lines) == 1
    assert lines[0].isprintable()


@pytest.mark.parametrize(
    "fact",
    [
        {"identity": KEY},
        {"anything": [KEY, {"deep": KEY}]},
        {"psk": KEY.hex()},
        {"the_key": KEY.hex()},
        {"nested": {"secret": KEY.hex()}},
    ],
)
def test_bytes_and_secrets_are_not_written_even_by_mistake(fact):
    shown = "".join(logged(lambda log: log.info("slip", **fact)))
    assert KEY.hex() not in shown
    assert repr(KEY)[2:-1] not in shown
    assert "not shown" in shown


def test_a_stream_that_fails_costs_the_line_and_no_more():
    class Closed(io.BytesIO):
        def write(self, data):
            raise BrokenPipeError

    stream = LineStream(Closed())
    log = make_log(stream)
    log.info("one")
    log.info("two")
    assert stream.lost == 2


def test_a_burst_passes_and_then_the_rate():
    clock = Clock()
    throttle = Throttle(rate=2, burst=3, clock=clock)
    kind = ("handshake_failed", "wrong_key")
    assert [throttle.admits(kind) for _ in range(5)] == [0, 0, 0, None, None]
    clock.now = 0.5
    assert throttle.admits(kind) == 2
    assert throttle.admits(kind) is None
    clock.now = 100.0
    assert [throttle.admits(kind) for _ in range(4)] == [1, 0, 0, None]


def test_one_kind_does_not_hide_another():
    throttle = Throttle(rate=1, burst=1, clock=Clock())
    assert throttle.admits(("handshake_failed", "unknown_identity")) == 0
    assert throttle.admits(("handshake_failed", "unknown_identity")) is None
    assert throttle.admits(("handshake_failed", "wrong_key")) == 0


def test_what_was_held_back_last_can_be_told_once():
    throttle = Throttle(rate=1, burst=1, clock=Clock())
    for _ in range(4):
        throttle.admits(("refused", "handshakes"))
    assert throttle.held_back() == {"refused handshakes": 3}
    assert throttle.held_back() == {}
