"""The dashboard and the rules ask for metrics that there are, and Grafana finds what it needs."""

import json
import re
from pathlib import Path

import pytest

from endpoint.metrics.metric import Kind
from endpoint.metrics.table import all_metrics

DOCS = Path(__file__).parents[1] / "docs"
DASHBOARD = json.loads((DOCS / "grafana-dashboard.json").read_text())
RULES = (DOCS / "alerts.yml").read_text()

SERIES = {"dtls_build_info"} | {
    name
    for metric in all_metrics()
    for name in (
        [f"{metric.name}{end}" for end in ("_bucket", "_sum", "_count")]
        if metric.kind is Kind.HISTOGRAM
        else [metric.series]
    )
}
LABELS = {metric.name: {*metric.labels, "le"} for metric in all_metrics()}
OF_PROCESS = {
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_open_fds",
    "process_max_fds",
}
OF_PROMETHEUS = {"job", "instance"}

PANELS = DASHBOARD["panels"]
TARGETS = [(panel["title"], target["expr"]) for panel in PANELS for target in panel.get("targets", ())]


def names(expression):
    return set(re.findall(r"\b(?:dtls|process)_\w+", expression))


def test_there_are_panels_and_each_asks_for_something():
    assert len(TARGETS) > 40
    assert all(panel["type"] == "row" or panel["targets"] for panel in PANELS)


@pytest.mark.parametrize(("title", "expression"), TARGETS)
def test_a_panel_asks_for_metrics_and_labels_that_there_are(title, expression):
    asked = names(expression)
    assert asked <= SERIES | OF_PROCESS
    assert asked or expression.startswith("min(up"), "it asks for nothing of ours"
    of_them = set()
    for name in asked:
        base = re.sub(r"_(total|bucket|sum|count)$", "", name)
        of_them |= LABELS.get(base, LABELS.get(name, set()))
    for group in re.findall(r"by \(([^)]*)\)", expression):
        assert {label.strip() for label in group.split(",")} <= of_them | OF_PROMETHEUS
    for legend in re.findall(r"{{(\w+)}}", expression):
        assert legend in of_them | OF_PROMETHEUS
    assert expression.count("(") == expression.count(")")


def test_a_rate_is_taken_of_counters_only():
    counters = {metric.series for metric in all_metrics() if metric.kind is Kind.COUNTER}
    counters |= {name for name in SERIES if name.endswith(("_bucket", "_sum", "_count"))}
    counters |= {"process_cpu_seconds_total"}
    for _, expression in TARGETS:
        for name in re.findall(r"rate\((\w+)", expression):
            assert name in counters


def test_the_rules_ask_for_metrics_that_there_are():
    expressions = re.findall(r"expr: (?:\|\n((?: {10}.*\n)+)|(.*)\n)", RULES)
    asked = set().union(*(names("".join(one)) for one in expressions))
    assert len(expressions) == RULES.count("- alert:") > 8
    assert asked <= SERIES
    assert "dtls_handshakes_failed_total" in asked


def test_the_rules_match_vectors_with_vectors_only():
    # Prometheus takes none of the rules of a file that has one which it cannot parse.
    assert not re.findall(r"[0-9.]+ *[-+*/<>=]+ *(?:on|ignoring) *\(", RULES)


def test_grafana_finds_the_fields_that_it_needs():
    for field in ("title", "uid", "schemaVersion", "panels", "templating", "time", "annotations", "version"):
        assert field in DASHBOARD
    assert DASHBOARD["id"] is None, "else an import would overwrite another dashboard"
    ids = [panel["id"] for panel in PANELS]
    assert len(ids) == len(set(ids))
    for panel in PANELS:
        assert {"id", "type", "title", "gridPos"} <= panel.keys()
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            references = [target["refId"] for target in panel["targets"]]
            assert len(references) == len(set(references))
            assert "defaults" in panel["fieldConfig"]
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    text = json.dumps(PANELS)
    assert set(re.findall(r"\$\{?(\w+)", text)) - {"__rate_interval"} <= variables


def test_panels_do_not_lie_on_each_other():
    taken: dict[tuple[int, int], str] = {}
    for panel in PANELS:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
