"""A clock that goes on when the service is started again, and when the machine is.

Saved associations hold times: when they were last heard, when they expire. trio's clock, like every
monotonic clock, begins anew in each process. A :class:`LastingClock` goes on where the one before stopped, moved
on by the time between. That time is known from an *anchor*, which the process before has left behind:

::

    same boot     exactly: CLOCK_BOOTTIME counts through suspend and knows nothing of the time of day
    other boot    by the wall clock, where it can be believed; else the time since this boot, which is
                  certainly a part of it

A wall clock is often wrong just after a boot: a gateway without a battery wakes in 1970, or at the time of
its last shutdown, and jumps when the network is there. So it is not believed below :data:`PLAUSIBLE`, nor
if it says that more than :data:`MAX_GAP` has passed, or less than nothing. Associations then live somewhat longer
than they should, instead of all ending at once. Within a process the wall clock is never
looked at, so its jumps move nothing. Never does this clock go back.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

PLAUSIBLE = 1_735_689_600
"""Seconds since 1970: the start of 2025. A wall clock that says less has not been set."""
MAX_GAP = 315_360_000.0
"""Seconds, ten years, which is the longest timeout that can be configured: a longer pause is a wall clock
that is wrong."""
MAX_ANCHOR = 512
"""Bytes of an anchor that are looked at."""

_BEYOND = 2.0**40
"""Seconds; no clock says more, and a float still tells milliseconds apart there."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class AnchorError(ValueError):
    """What was kept is no anchor of this program."""


def read_boot_id() -> str:
    """What distinguishes this boot from all others; empty where the system does not tell."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()[:64]
    except (OSError, ValueError):
        return ""


def _boottime() -> float:
    # Elsewhere than on Linux the boot id is empty too, and this only bounds a guess.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@attrs.frozen(kw_only=True)
class ClockSources:
    """Where time comes from; tests bring their own."""

    progress: Callable[[], float] = trio.current_time
    """Monotonic seconds of this process. trio's, so that a mock clock works and deadlines agree."""
    boottime: Callable[[], float] = _boottime
    """Seconds since the boot, suspend included."""
    wall: Callable[[], float] = time.time
    """Seconds since 1970, as far as the system knows."""
    boot_id: Callable[[], str] = read_boot_id


SYSTEM = ClockSources()


class LastingClock:
    """Call it for the time: monotonic seconds, also across processes. Make it where ``progress`` can be asked.

    A new one says what ``progress`` says; :meth:`resume` makes one that goes on from an anchor.
    """

    def __init__(self, sources: ClockSources = SYSTEM, *, ahead: float = 0.0) -> None:
        """``ahead``: seconds that it is ahead of ``progress``."""
        self._sources = sources
        self._progress = sources.progress
        self._ahead = ahead

    def __call__(self) -> float:
        """The time, in seconds."""
        return self._progress() + self._ahead

    @property
    def ahead(self) -> float:
        """Seconds that this clock is ahead of trio's (or what else drives it); it does not change."""
        return self._ahead

    def anchor(self) -> bytes:
        """What :meth:`resume` needs in another process, as of now: a line of text without its end."""
        sources = self._sources
        anchor = {
            "boot": sources.boot_id(),
            "boottime": sources.boottime(),
            "wall": sources.wall(),
            "clock": self(),
        }
        return json.dumps(anchor, separators=(",", ":")).encode()

    @classmethod
    def resume(cls, *anchors: bytes, sources: ClockSources = SYSTEM) -> LastingClock:
        """Go on from the last of ``anchors``; without any, begin anew. :class:`AnchorError` for anything else.

        Several are what several stores have kept; the clock goes on from the one that is furthest, so
        that it goes back for none.
        """
        now = max((_moved_on(_read(anchor), sources) for anchor in anchors), default=None)
        return cls(sources, ahead=0.0 if now is None else now - sources.progress())


def time_since(anchor: bytes, sources: ClockSources = SYSTEM) -> float:
    """Seconds that have passed since ``anchor`` was made, as :meth:`LastingClock.resume` would count them."""
    kept = _read(anchor)
    return _moved_on(kept, sources) - kept.clock


@attrs.frozen(kw_only=True)
class _Anchor:
    boot: str
    boottime: float
    wall: float
    clock: float


def _read(anchor: bytes) -> _Anchor:
    try:
        if len(anchor) > MAX_ANCHOR:
            raise ValueError
        kept: dict[str, Any] = json.loads(anchor)
        boot = kept.pop("boot")
        numbers = {name: float(value) for name, value in kept.items()}
        if not isinstance(boot, str) or not all(abs(number) < _BEYOND for number in numbers.values()):
            raise ValueError
        return _Anchor(boot=boot, **numbers)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        raise AnchorError("the clock's anchor cannot be read") from None


def _moved_on(anchor: _Anchor, sources: ClockSources) -> float:
    """What the anchor's clock would say now."""
    boottime = sources.boottime()
    if anchor.boot and anchor.boot == sources.boot_id():
        # Less only in another time namespace, such as a container's.
        return anchor.clock + max(0.0, boottime - anchor.boottime)
    wall = sources.wall()
    gap = wall - anchor.wall
    if min(wall, anchor.wall) >= PLAUSIBLE and 0.0 <= gap <= MAX_GAP:
        return anchor.clock + gap
    # Where no boot has a name it may still be the same one, and all of it would be too much.
    known = anchor.boot and sources.boot_id()
    return anchor.clock + (boottime if known and 0.0 <= boottime <= MAX_GAP else 0.0)
