"""Who is refused most, and why, in bounded memory.

There may be more sources of refusals than can be counted, above all when it matters. So so many are counted, and one that
is new takes the place of the one with the least, and its count with it, of which is noted that it is not its own
(Metwally, Agrawal and El Abbadi, "Efficient computation of frequent and top-k elements in data streams", 2005). Whoever
has more than an even part of all refusals is found for certain. What is shown is what is certainly somebody's own.

Counts fade, or yesterday's trouble would hide today's: a refusal counts half after ``half_life``. Instead of making all
counts smaller, each refusal counts for more than the one before it, which leaves the order of the others as it is.
"""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING, TypeAlias

import attrs

from endpoint.quotas.prefixes import prefix_text
from endpoint.text import show_bytes

if TYPE_CHECKING:
    from endpoint.quotas.prefixes import Prefix

Offender: TypeAlias = "Prefix | bytes"
"""A source prefix or an identity."""

_MAX_DOUBLINGS = 64
"""Half-lives after which the numbers are made small again. With a thousand, they would be infinite."""


@attrs.define(eq=False)
class _Entry:
    count: float
    own_from: float
    """What of ``count`` it took over."""


class Offenders:
    """The prefixes and identities with most refusals, by reason."""

    def __init__(self, *, size: int, half_life: float) -> None:
        """``size`` counts are kept; ``half_life`` in seconds."""
        self._size = size
        self._half_life = half_life
        self._entries: dict[tuple[Offender, str], _Entry] = {}
        self._least: list[tuple[float, int, tuple[Offender, str]]] = []
        """A heap with one member for each entry, whose count may have grown since."""
        self._pushed = 0
        """Tells apart what is equal: offenders cannot be compared with each other."""
        self._origin: float | None = None
        """When a refusal counts 1."""
        self._now = 0.0

    def __len__(self) -> int:
        """Counts that are kept."""
        return len(self._entries)

    def note(self, offender: Offender, reason: str, now: float) -> None:
        """One more refusal."""
        worth = self._worth_at(now)
        key = (offender, reason)
        entry = self._entries.get(key)
        if entry is not None:
            entry.count += worth
            return
        self._pushed += 1
        if len(self._entries) < self._size:
            self._entries[key] = _Entry(worth, 0.0)
            heapq.heappush(self._least, (worth, self._pushed, key))
            return
        taken_over = self._take_out_least()
        self._entries[key] = _Entry(taken_over + worth, taken_over)
        heapq.heapreplace(self._least, (taken_over + worth, self._pushed, key))

    def top(self, count: int, *, now: float | None = None) -> list[tuple[str, str, int]]:
        """Up to ``count`` of (prefix or escaped identity, reason, refusals), most first; ``now`` None = as of the last refusal.

        A refusal counts less the longer ago it was. What has faded, or may all have been somebody else's, is left out.
        """
        worth = self._worth_at(self._now if now is None else now)
        found = (
            ((entry.count - entry.own_from) / worth, offender, reason)
            for (offender, reason), entry in self._entries.items()
        )
        worst = heapq.nlargest(count, found, key=lambda each: each[0])
        return [
            (offender_text(offender), reason, round(refusals))
            for refusals, offender, reason in worst
            if refusals >= 0.5
        ]

    def _take_out_least(self) -> float:
        """Leaves its place in the heap to be replaced; what it had."""
        least = self._least
        while True:
            count, number, key = least[0]
            current = self._entries[key].count
            if current == count:
                del self._entries[key]
                return current
            heapq.heapreplace(least, (current, number, key))

    def _worth_at(self, now: float) -> float:
        """What a refusal at ``now`` counts. A clock that goes back stands still."""
        if self._origin is None:
            self._origin = self._now = now
        self._now = now = max(now, self._now)
        doublings = (now - self._origin) / self._half_life
        if doublings > _MAX_DOUBLINGS:
            self._begin_anew(math.exp2(-min(doublings, 1_000.0)), now)
            doublings = 0.0
        return math.exp2(doublings)

    def _begin_anew(self, factor: float, now: float) -> None:
        self._origin = now
        for entry in self._entries.values():
            entry.count *= factor
            entry.own_from *= factor
        self._least = [(self._entries[key].count, number, key) for _, number, key in self._least]
        heapq.heapify(self._least)


def offender_text(offender: Offender) -> str:
    """The network, or the identity escaped."""
    return show_bytes(offender) if isinstance(offender, bytes) else prefix_text(offender)
