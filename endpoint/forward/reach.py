"""Whether a sink's other side can be reached, as the operator is told: when that changes, and not too often."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

QUIET = 60.0
"""Seconds in which it is told at most once that the other side is gone. One that ends at each datagram, or a server
of which only some sockets refuse, would else fill the log as fast as devices send."""


class Reach:
    """Tells ``forward_down`` with the reason, and ``forward_up`` if the former was told."""

    def __init__(self, tell: Callable[..., None], **facts: object) -> None:
        """``facts`` are told with both."""
        self._tell = tell
        self._facts = facts
        self._told = False
        self._told_at = -math.inf
        self.down = False

    def lost(self, reason: str) -> None:
        """It cannot be reached. To be called now and then while that is so."""
        self.down = True
        now = trio.current_time()
        # Said again and again, or a second loss soon after the first would stay untold for as long as it lasts.
        if not self._told and now - self._told_at >= QUIET:
            self._told, self._told_at = True, now
            self._tell("forward_down", **self._facts, reason=reason)

    def found(self) -> None:
        """It can."""
        self.down = False
        if self._told:
            self._told = False
            self._tell("forward_up", **self._facts)
