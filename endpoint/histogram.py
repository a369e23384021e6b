"""How long things take, in buckets: enough for a percentile, and always the same few bytes."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

HANDSHAKE_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds. From a device in the same building to one on NB-IoT whose flights were sent again three times."""
LOOKUP_SECONDS = (0.0001, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Seconds. From a table in memory to a database that is about to be given up."""


class Histogram:
    """Counts of observations up to each bound, and their sum. An observation takes less than a microsecond."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """``bounds`` ascend; a last bucket without a bound is added."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """One more. Less than nothing, as a clock may say, counts as nothing."""
        value = max(value, 0.0)
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def statistics(self) -> dict[str, Any]:
        """``buckets`` by their upper bound as text, each with all below it as well; ``sum``; ``count``."""
        buckets: dict[str, int] = {}
        count = 0
        for bound, inside in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            count += inside
            buckets[bound] = count
        return {"buckets": buckets, "sum": self._sum, "count": count}
