"""The log: one JSON object a line on standard error, one fact a line.

``event`` comes first and is the name of the fact, ``level`` and ``time`` (UTC) come last::

    {"event": "listening", "address": "127.0.0.1", "port": 5684, "level": "info", "time": "2025-…Z"}

Two rules keep it safe. Names from the network arrive here already escaped (``endpoint.text``), and
the line is escaped once more as a whole, so nobody can forge a line or reach a terminal. Bytes are
never written, only their number: a key that is passed to the log by mistake stays secret.

Facts that a stranger can cause at will (failed handshakes, refusals, send errors) go through
:class:`Throttle`, one token bucket per kind and cause, so that a flood of one cause neither fills
the disk nor hides another. What is held back is counted, and the next line of its kind says how much.
"""

from __future__ import annotations

import re
import time
from typing import IO, TYPE_CHECKING, Any

import structlog

from endpoint.quotas import TokenBucket
from endpoint.text import UtcStamps, json_line

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from structlog.typing import FilteringBoundLogger

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
"""Names for ``log.level``, with the numbers of the standard library."""

_SECRET_NAME = re.compile(r"(^|_)(psk|key|keys|secret|secrets|password)$")


class LineStream:
    """Writes lines to a binary stream; a stream that fails costs the line, never the service."""

    def __init__(self, stream: IO[bytes]):
        self._stream = stream
        self.lost = 0
        """Lines that could not be written."""

    def write(self, line: str) -> None:
        """Write one line and flush it."""
        try:
            self._stream.write(line.encode("utf-8", "backslashreplace") + b"\n")
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: the stream was closed
            self.lost += 1

    # The names structlog calls, after the levels.
    debug = info = warning = error = critical = write


def make_log(
    stream: IO[bytes] | LineStream, *, level: str = "info", wall: Callable[[], float] = time.time
) -> FilteringBoundLogger:
    """A logger: ``log.info("listening", address="127.0.0.1", port=5684)``."""
    stamps = UtcStamps()

    def render(_logger: Any, method: str, fact: MutableMapping[str, Any]) -> str:
        ordered = {"event": fact.pop("event")}
        ordered.update((name, _presentable(name, value)) for name, value in fact.items())
        ordered["level"] = method
        ordered["time"] = stamps(wall())
        return json_line(ordered)

    logger: FilteringBoundLogger = structlog.wrap_logger(
        stream if isinstance(stream, LineStream) else LineStream(stream),
        processors=[render],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        cache_logger_on_first_use=True,
    )
    return logger


def _presentable(name: str, value: Any) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"({len(value)} bytes, not shown)"
    if isinstance(value, str) and _SECRET_NAME.search(name):
        return "(not shown)"
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(key): _presentable(str(key), item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_presentable(name, item) for item in value]
    return str(value)


class Throttle:
    """Lets ``rate`` lines a second of each kind through, after a first burst, and counts the others.

    A kind is a fixed word of this program, such as ``("handshake_failed", "wrong_key")``, never
    something from the network, so the table stays small.
    """

    def __init__(self, *, rate: float, burst: int, clock: Callable[[], float]):
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def admits(self, kind: tuple[str, str]) -> int | None:
        """How many lines of this kind were held back since the last one, or None to hold this one back."""
        now = self._clock()
        entry = self._kinds.get(kind)
        if entry is None:
            entry = self._kinds[kind] = _Kind(TokenBucket(self._burst, now))
        if not entry.bucket.take(1, rate=self._rate, burst=self._burst, now=now):
            entry.held_back += 1
            return None
        held_back, entry.held_back = entry.held_back, 0
        return held_back

    def held_back(self) -> dict[str, int]:
        """What was held back and not yet told, by kind, and forget it."""
        left = {" ".join(kind): entry.held_back for kind, entry in self._kinds.items() if entry.held_back}
        for entry in self._kinds.values():
            entry.held_back = 0
        return left


class _Kind:
    __slots__ = ("bucket", "held_back")

    def __init__(self, bucket: TokenBucket):
        self.bucket = bucket
        self.held_back = 0
