"""Every metric that is exported, and why the other figures are not.

A figure's place is its path in the statistics, ``server.handshakes_failed.{cause}``: a word in braces stands for any
member and becomes a label. The names are those of the counters in the code, after ``dtls_``; ``docs/metrics.md`` is
made from this table. A figure that is neither here nor in :data:`NOT_EXPORTED` fails a test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from endpoint.metrics.of_devices import ASSOCIATIONS, HANDSHAKES, TRAFFIC
from endpoint.metrics.of_parts import FORWARDING, ITSELF, KEYS, STATE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from endpoint.metrics.metric import Metric

SECTIONS = {
    "Handshakes": HANDSHAKES,
    "Associations": ASSOCIATIONS,
    "Traffic": TRAFFIC,
    "Keys and certificates": KEYS,
    "Forwarding": FORWARDING,
    "Saved associations": STATE,
    "The program itself": ITSELF,
}

NOT_EXPORTED = {
    "server.associations": "the core's view of `associations`, without those that are ending",
    "server.frozen": "the same as `frozen`",
    "quotas.top.{n}.who": "whom quotas refused most: addresses and identities; `dtls-endpoint status` shows them",
    "quotas.top.{n}.reason": "as above",
    "quotas.top.{n}.count": "as above",
    "key_store.store.kind": "text",
    "sockets.{listener}.local": "text: it is the label `listener`",
    "forward.forwarded": "the sum of all sinks",
    "forward.forward_dropped": "the sum of all sinks and reasons",
    "forward.forward_held": "the sum of all sinks",
    "forward.sinks.{sink}.forward_dropped": "the sum of all reasons",
}
"""Figures of the statistics that are no metrics, each with the reason."""


def all_metrics() -> Iterable[Metric]:
    """Of all sections, in their order."""
    return (metric for section in SECTIONS.values() for metric in section)
