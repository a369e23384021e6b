"""What a metric is."""

from __future__ import annotations

import enum
import re

import attrs


@enum.unique
class Kind(enum.Enum):
    """Types of Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@attrs.frozen
class Metric:
    """One family of time series."""

    name: str
    """Without ``_total``, which counters get."""
    kind: Kind
    at: tuple[str, ...]
    """Where it stands in the statistics; the first that is there counts."""
    help: str
    advice: str
    """What to do when it rises, or falls."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Their names, in the order of the path."""
        return tuple(re.findall(r"{(\w+)}", self.at[0]))

    @property
    def series(self) -> str:
        """The name under which it is asked for."""
        return f"{self.name}_total" if self.kind is Kind.COUNTER else self.name


def counter(name: str, at: str, help_text: str, advice: str = "—") -> Metric:
    """A counter; ``at`` has its places, with blanks between."""
    return Metric(name, Kind.COUNTER, tuple(at.split()), help_text, advice)


def gauge(name: str, at: str, help_text: str, advice: str = "—") -> Metric:
    """A gauge."""
    return Metric(name, Kind.GAUGE, tuple(at.split()), help_text, advice)


def histogram(name: str, at: str, help_text: str, advice: str) -> Metric:
    """A histogram of seconds."""
    return Metric(name, Kind.HISTOGRAM, tuple(at.split()), help_text, advice)
