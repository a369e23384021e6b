"""Captures at run time: what the admin socket can ask for, within what the configuration allows.

::

    {"command": "capture_start", "identities": ["6d31"], "paths": ["192.0.2.7"], "duration": 600, "size": 16777216,
     "kinds": ["pcapng"], "rehandshake": false}          identities are bytes in hexadecimal; duration: seconds
    {"command": "capture_stop", "number": 1}             without a number: all
    {"command": "capture_list"}

Every start and end is a warning in the log: ``capture_started`` and ``capture_ended``, with the user ID of who asked.
"""

from __future__ import annotations

import math
import re
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import trio

from endpoint.admin import CommandError
from endpoint.capture.capture import Capture, Wish
from endpoint.capture.files import CaptureFileError, Outputs
from endpoint.capture.limits import (
    DEFAULT_BYTES,
    DEFAULT_SECONDS,
    END_GRACE,
    MAX_BYTES,
    MAX_CAPTURES,
    MAX_IDENTITIES,
    MAX_SECONDS,
    MIN_BYTES,
)
from endpoint.capture.packets import endpoint_of
from endpoint.capture.recorder import Recorder
from endpoint.text import show_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from endpoint.addresses import Path as NetworkPath
    from endpoint.admin import Command
    from endpoint.capture.packets import Endpoint
    from endpoint.engine import Engine
    from endpoint.observer import Observer

KINDS = ("pcapng", "keylog")
_AT_ONCE = 64
"""Associations that are closed before others get a turn."""


class Captures:
    """All captures of one service."""

    def __init__(self, directory: Path | None, *, log: FilteringBoundLogger) -> None:
        """``directory`` is where files are made; ``None`` = nothing can be captured."""
        self.recorder = Recorder()
        self._directory = directory
        self._log = log
        self._engine: Engine | None = None
        self._nursery: trio.Nursery | None = None
        self._captures: dict[int, Capture] = {}
        self._starting = 0
        self._number = 0
        self._limiter = trio.CapacityLimiter(MAX_CAPTURES)

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Whom the engine is to tell of events."""
        return (self.recorder,)

    def attach(self, engine: Engine) -> None:
        """Capture what this engine sends and receives."""
        self._engine = engine
        self.recorder.attach(engine)

    def commands(self) -> Mapping[str, Command]:
        """For the admin socket."""
        return {"capture_start": self._start, "capture_stop": self._stop, "capture_list": self._list}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what is captured, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def finish(self) -> None:
        """The service ends: end all captures, and wait a moment for their files."""
        captures = list(self._captures.values())
        for capture in captures:
            capture.stop("the service ends")
        with trio.move_on_after(END_GRACE):
            for capture in captures:
                await capture.wait_over()

    def statistics(self) -> dict[str, Any]:
        """``captures`` under way, and ``captured_datagrams`` in them; ``capture_held`` handshakes that may be wanted."""
        return {
            "captures": len(self._captures),
            "captured_datagrams": sum(capture.datagrams for capture in self._captures.values()),
            "capture_lost": sum(capture.lost for capture in self._captures.values()),
            "capture_held": self.recorder.held,
        }

    # --- commands -----------------------------------------------------------------------------------

    async def _start(self, request: Mapping[str, Any]) -> Mapping[str, object]:
        wish = read_wish(request)
        if self._directory is None:
            raise CommandError(
                'captures are switched off; remedy: state.capture_directory = "captures" in the configuration'
            )
        if self._engine is None or self._nursery is None:
            raise CommandError("the service is starting")
        if len(self._captures) + self._starting >= MAX_CAPTURES:
            raise CommandError(f"{MAX_CAPTURES} captures are under way; remedy: capture stop")
        self._starting += 1
        try:
            outputs = await trio.to_thread.run_sync(Outputs.made, self._directory, wish.kinds)
        except CaptureFileError as error:
            raise CommandError(str(error)) from None
        finally:
            self._starting -= 1
        self._number += 1
        capture = Capture(self._number, wish, outputs, ends_of=ends_of(self._engine), limiter=self._limiter)
        live = self.recorder.add(capture)
        capture.unreadable = len(live)
        self._captures[capture.number] = capture
        files = {kind: str(path) for kind, path in outputs.paths.items()}
        self._log.warning(
            "capture_started",
            number=capture.number,
            identities=wish.shown,
            paths=wish.shown_hosts,
            files=[show_text(name) for name in files.values()],
            seconds=wish.seconds,
            size=wish.size,
            rehandshake=wish.rehandshake,
            asked_by=wish.asked_by,
        )
        self._nursery.start_soon(self._run, capture)
        if wish.rehandshake:
            for number, association in enumerate(live, 1):
                association.close()
                if number % _AT_ONCE == 0:  # a fleet may share one identity
                    await trio.lowlevel.checkpoint()
        return {"number": capture.number, "files": files, "live": len(live)}

    async def _run(self, capture: Capture) -> None:
        reason = "the service ends"
        try:
            reason = await capture.run(on_end=lambda: self.recorder.remove(capture))
        finally:
            self.recorder.remove(capture)  # also where it was cancelled
            del self._captures[capture.number]
            self._log.warning(
                "capture_ended",
                number=capture.number,
                identities=capture.wish.shown,
                paths=capture.wish.shown_hosts,
                reason=reason,
                datagrams=capture.datagrams,
                readable_handshakes=capture.secrets,
                lost=capture.lost,
                asked_by=capture.wish.asked_by,
            )

    async def _stop(self, request: Mapping[str, Any]) -> Mapping[str, object]:
        number = request.get("number")
        if number is not None and (type(number) is not int or number not in self._captures):
            raise CommandError(f"there is no capture {show_text(str(number))}; remedy: capture list")
        wanted = [one for one in self._captures.values() if number in (None, one.number)]
        for capture in wanted:
            capture.stop(f"stopped by user {request.get('asked_by')}")
        with trio.move_on_after(END_GRACE):
            for capture in wanted:
                await capture.wait_over()
        return {"captures": [_facts(capture) for capture in wanted]}

    async def _list(self, _request: Mapping[str, Any]) -> Mapping[str, object]:
        return {
            "captures": [_facts(capture) for capture in self._captures.values()],
            "held": self.recorder.held,
            "directory": None if self._directory is None else str(self._directory),
        }


def _facts(capture: Capture) -> dict[str, object]:
    return {
        "number": capture.number,
        "identities": capture.wish.shown,
        "paths": capture.wish.shown_hosts,
        "files": {kind: str(path) for kind, path in capture.outputs.paths.items()},
        "seconds_left": round(capture.seconds_left(), 1),
        "size": capture.size,
        "size_limit": capture.wish.size,
        "datagrams": capture.datagrams,
        "readable_handshakes": capture.secrets,
        "live_at_start": capture.unreadable,
        "lost": capture.lost,
        "asked_by": capture.wish.asked_by,
    }


def ends_of(engine: Engine) -> Callable[[NetworkPath], tuple[Endpoint, Endpoint]]:
    """Who the two ends of a path are: the device, and our address that it talks to."""

    def ends(path: NetworkPath) -> tuple[Endpoint, Endpoint]:
        address = path[1]
        host, _, port = engine.socket_of(path).local_text_for(address).rpartition(":")
        return endpoint_of(address[0], address[1]), endpoint_of(host.strip("[]"), int(port))

    return ends


# --- what is asked for --------------------------------------------------------------------------------


def read_wish(request: Mapping[str, Any]) -> Wish:
    """A request, looked at; :class:`CommandError` says what is wrong with it."""
    identities = frozenset(_identity(text) for text in _texts(request, "identities"))
    hosts = frozenset(pair for text in _texts(request, "paths") for pair in _hosts(text))
    kinds = tuple(kind for kind in KINDS if kind in _texts(request, "kinds", default=("pcapng",)))
    if not identities and not hosts:
        raise CommandError("a capture needs an identity or a path")
    if not kinds:
        raise CommandError(f"kinds: one or both of {', '.join(KINDS)}")
    if "pcapng" not in kinds and hosts:
        raise CommandError("a path has no key log, as behind one address there may be many identities")
    return Wish(
        identities=identities,
        hosts=hosts,
        seconds=_number(request, "duration", DEFAULT_SECONDS, 0.1, MAX_SECONDS),
        size=int(_number(request, "size", DEFAULT_BYTES, MIN_BYTES, MAX_BYTES)),
        kinds=kinds,
        rehandshake=request.get("rehandshake", False) is True,
        asked_by=request.get("asked_by"),
    )


def _texts(request: Mapping[str, Any], name: str, *, default: tuple[str, ...] = ()) -> tuple[str, ...]:
    given = request.get(name, default)
    if not isinstance(given, list | tuple) or not all(isinstance(text, str) for text in given):
        raise CommandError(f"{name}: a list of texts is needed")
    if len(given) > MAX_IDENTITIES:
        raise CommandError(f"{name}: at most {MAX_IDENTITIES} are possible in one capture")
    return tuple(given)


def _identity(digits: str) -> bytes:
    try:
        return bytes.fromhex(digits)
    except ValueError:
        raise CommandError("identities: bytes in hexadecimal are needed") from None


def _hosts(text: str) -> list[tuple[str, int | None]]:
    """An address, with a port or without, in the forms in which a socket may tell it."""
    host, port = _split(text)
    try:
        address = ip_address(host.partition("%")[0])
        if port is not None and not 1 <= port <= 65_535:
            raise ValueError
    except ValueError:
        raise CommandError(
            f'paths: "{show_text(text)}" is none; such as 192.0.2.7, 192.0.2.7:40000, 2001:db8::7, [2001:db8::7]:40000'
        ) from None
    mapped = getattr(address, "ipv4_mapped", None) or address
    if mapped.version == 4:
        return [(str(mapped), port), (f"::ffff:{mapped}", port)]
    return [(socket.inet_ntop(socket.AF_INET6, mapped.packed), port)]


def _split(text: str) -> tuple[str, int | None]:
    """Host and port; what is no such pair stays as it is, and is no address then."""
    found = re.fullmatch(r"\[([^\[\]]*)\](?::([0-9]{1,5}))?|([^:]*):([0-9]{1,5})", text)
    if found is None:
        return text, None
    host, port = (found[1], found[2]) if found[3] is None else (found[3], found[4])
    return host, None if port is None else int(port)


def _number(request: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = request.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CommandError(f"{name}: a number is needed")
    if not low <= value <= high:
        raise CommandError(f"{name}: {value:g} is not within {low:g} to {high:g}")
    return float(value)
