"""Statistics into metrics, each time when somebody asks.

A custom collector of ``prometheus_client`` and no global registry: nothing is counted twice, nothing costs anything
between two scrapes, and two endpoints in one process do not share figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import choose_encoder

from endpoint.metrics.metric import Kind
from endpoint.metrics.table import all_metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from endpoint.metrics.metric import Metric

MAX_SERIES = 100
"""Time series of one metric; the rest of them is added up as ``other``. Labels are a program's words, so this is reached only
by a fault, which must not be paid for by whoever stores the metrics."""
OTHER = "other"


class StatisticsCollector:
    """Collects from ``statistics()``. ``version`` is this program's."""

    def __init__(self, statistics: Callable[[], Mapping[str, Any]], *, version: str) -> None:
        self._statistics = statistics
        self._version = version

    def collect(self) -> Iterator[Family]:
        """All metrics that there are figures for."""
        info = GaugeMetricFamily(
            "dtls_build_info", "1; the label is this program's version.", labels=["version"]
        )
        info.add_metric([self._version], 1)
        yield info
        tree = as_mapping(self._statistics())
        for metric in all_metrics():
            family = _family(metric, tree)
            if family is not None:
                yield family


def make_registry(statistics: Callable[[], Mapping[str, Any]], *, version: str) -> CollectorRegistry:
    """A registry with this endpoint's figures and those of its process (CPU, memory, descriptors)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatisticsCollector(statistics, version=version))
    ProcessCollector(registry=registry)
    return registry


def render(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The metrics as text, in the form that the ``Accept`` header asks for, and its content type."""
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # a version there that is no number
        encode, content_type = choose_encoder("")
    return encode(registry), content_type


# --- statistics -------------------------------------------------------------------------------------


def as_mapping(tree: Any) -> Any:
    """``tree`` with its lists as mappings: a member goes under its ``local`` or ``name``, else under its number."""
    if isinstance(tree, Mapping):
        return {str(key): as_mapping(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        named: dict[str, Any] = {}
        for number, value in enumerate(tree):
            name = value.get("local") or value.get("name") if isinstance(value, Mapping) else None
            named[str(number) if name is None or name in named else str(name)] = as_mapping(value)
        return named
    return tree


def is_histogram(value: Any) -> bool:
    """Whether it is what ``Histogram.statistics()`` gives."""
    return isinstance(value, Mapping) and {"buckets", "sum", "count"} == value.keys()


def found(tree: Any, path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What stands at ``path``: for each combination of labels the value."""
    yield from _walk(tree, path.split("."), ())


def _walk(tree: Any, steps: list[str], labels: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not steps:
        yield labels, tree
        return
    if not isinstance(tree, Mapping):
        return
    step, rest = steps[0], steps[1:]
    if step.startswith("{"):
        for name, value in tree.items():
            yield from _walk(value, rest, (*labels, name))
    elif step in tree:
        yield from _walk(tree[step], rest, labels)


# --- metrics ----------------------------------------------------------------------------------------


def _family(metric: Metric, tree: Mapping[str, Any]) -> Family | None:
    for path in metric.at:
        values = list(found(tree, path))
        if values:
            break
    else:
        return None
    if metric.kind is Kind.HISTOGRAM:
        return _histogram(metric, values)
    numbers: Counter[tuple[str, ...]] = Counter()
    for labels, value in values:
        # Missing figures are left out; text is none. (True and False are numbers.)
        if isinstance(value, (int, float)):
            within = labels in numbers or len(numbers) < MAX_SERIES
            numbers[labels if within else (OTHER,) * len(labels)] += value  # type: ignore[assignment]
    make = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    family = make(metric.name, metric.help, labels=metric.labels)
    for labels, number in numbers.items():
        family.add_metric(labels, float(number))
    return family


def _histogram(metric: Metric, values: list[tuple[tuple[str, ...], Any]]) -> Family:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, value in values[:MAX_SERIES]:
        if is_histogram(value):
            family.add_metric(labels, list(value["buckets"].items()), value["sum"])
    return family
