"""``docs/metrics.md``, out of the table of metrics.

``python -m endpoint.metrics.reference > docs/metrics.md`` writes it; a test compares the two.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from endpoint.metrics.metric import Kind
from endpoint.metrics.table import SECTIONS

if TYPE_CHECKING:
    from endpoint.metrics.metric import Metric

HEAD = """# Metrics

Set `metrics.port`, and the endpoint serves three things over HTTP, at 127.0.0.1 unless `metrics.address` says otherwise:

| path | answer |
|---|---|
| `/metrics` | Prometheus' text format (OpenMetrics where that is asked for) |
| `/healthz` | 200 while the program's loop turns; for a supervisor that restarts what hangs |
| `/readyz` | 200 if it can do its work, else 503; `reasons` says by part (`service`, `listeners`, `key_store`, `forward`, `state`) why not. For a load balancer: it is 503 from the moment of a stop on |

Other paths are 404, other methods than GET and HEAD 405. There is no password and no TLS; who else than this host may read the figures, gets
them through a proxy. At most 16 connections are served at once, each for a minute.

Labels are words of this program or of its configuration: causes, quotas, names of sinks, addresses of our own sockets. Identities and
addresses of devices are in no metric, as strangers choose them and there is no end of them: ask `dtls-endpoint status` and
`dtls-endpoint doctor`. A metric whose label never occurred is not there yet; `or vector(0)` helps in rules. A label value `other` adds up
what is beyond a bound.

`docs/grafana-dashboard.json` is a dashboard for Grafana, `docs/alerts.yml` has rules for Prometheus.

"""

PROCESS = """## The process

`dtls_build_info` has this program's version as its label `version`. From `prometheus_client`: `process_cpu_seconds_total`, `process_resident_memory_bytes`, `process_virtual_memory_bytes`,
`process_start_time_seconds`, `process_open_fds`, `process_max_fds`.
"""


def reference() -> str:
    """The whole of it."""
    text = HEAD
    for title, metrics in SECTIONS.items():
        head = ["| metric | type | labels | meaning | what to do when it rises |", "|---|---|---|---|---|"]
        text += "\n".join([f"## {title}", "", *head, *map(_row, metrics), "", ""])
    return text + PROCESS


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "—"
    kind = "histogram of seconds" if metric.kind is Kind.HISTOGRAM else metric.kind.value
    return f"| `{metric.series}` | {kind} | {labels} | {metric.help} | {metric.advice} |"


if __name__ == "__main__":
    sys.stdout.write(reference())
