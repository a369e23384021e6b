"""The keys of ``[quotas]`` for what waits: what each does, and what is said of a value that cannot be."""

from pathlib import Path

import pytest

from endpoint.config import ConfigFileError, parse_config
from endpoint.intake import Intake
from sansdtls import DatagramKind

BEGINNING = '[credentials]\npsk_file = "psk.txt"\n[quotas]\n'


def parsed(text):
    return parse_config((BEGINNING + text).encode(), name="endpoint.toml", directory=Path("/etc"))


class Overrun:
    """An intake by these settings that has had 20,000 hellos of 200 bytes, and a socket that is never empty."""

    def __init__(self, text):
        self.time = 0.0
        self.intake = Intake(
            parsed(text).quotas,
            receive=self.receive,
            kind_of=lambda _data, _path: DatagramKind.HELLO,
            frozen_handle=lambda _data, _path: None,
            source_of=lambda path: path,
            timer=lambda: self.time,
        )
        self.turn()
        for number in range(20_000):
            self.intake.take(bytes(200), (0, (str(number), 1)), 0.0)

    def receive(self, _data, _path, _now):
        self.time += 25e-6

    def turn(self):
        self.time += 1e-3  # readings
        self.intake.end_turn(0, more=True)


@pytest.mark.parametrize(
    ("text", "waiting"),
    [
        ("", 8_192),
        ("queued_datagrams = 100", 100),
        ("queued_bytes = 65_536", 65_536 // 200),
        ("queued_datagrams = 100\nqueued_bytes = 65_536", 100),
    ],
)
def test_so_much_may_wait(text, waiting):
    overrun = Overrun(text)
    assert len(overrun.intake) == waiting


@pytest.mark.parametrize(("text", "share"), [("", 0.25), ("handshake_share = 0.5", 0.5)])
def test_handshakes_get_their_share_of_the_time_that_readings_want(text, share):
    overrun = Overrun(text)
    begun, spent = overrun.time, overrun.intake.seconds_spent
    for _ in range(50):
        overrun.turn()
        overrun.intake.serve(0.0)
        overrun.intake.served()
    spent_now = overrun.intake.seconds_spent - spent
    assert spent_now / (overrun.time - begun) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("handshake_share = 0", "0 is not a number within 0.05 to 0.95 of the time"),
        ("handshake_share = 1.0", "1.0 is not a number within 0.05 to 0.95 of the time"),
        ("queued_datagrams = 10", "10 is not a whole number within 64 to 10000000 datagrams"),
        ("queued_bytes = 1000", "1000 is not a whole number within 65536 to 10000000000 bytes"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_range(text, expected):
    with pytest.raises(ConfigFileError) as caught:
        parsed(text)
    (problem,) = caught.value.problems
    assert problem == f"endpoint.toml: quotas.{text.split()[0]}: {expected}"
