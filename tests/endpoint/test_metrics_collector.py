"""Statistics as Prometheus reads them, parsed by Prometheus' own parser."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from endpoint.association import CredentialKind
from endpoint.histogram import Histogram
from endpoint.history import History
from endpoint.metrics.collector import MAX_SERIES, as_mapping, found, is_histogram, make_registry, render
from endpoint.metrics.metric import Kind
from endpoint.metrics.table import NOT_EXPORTED, all_metrics
from endpoint.tally import Tally


def families(statistics, accept="", parser=parse):
    text, _ = render(make_registry(lambda: statistics, version="1.2.3"), accept)
    return {family.name: family for family in parser(text.decode())}


def samples(statistics):
    """(name, labels) to value, as Prometheus stores them."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families(statistics).values()
        for sample in family.samples
    }


def test_counters_gauges_and_labels():
    got = samples(
        {
            "server": {
                "handshakes_failed": {"HandshakeTimeout": 2, "AuthenticationFailed.wrong_key": 1},
                "half_open": 7,
            },
            "state_failing": True,
        }
    )
    assert got["dtls_handshakes_failed_total", (("cause", "HandshakeTimeout"),)] == 2
    assert got["dtls_handshakes_failed_total", (("cause", "AuthenticationFailed.wrong_key"),)] == 1
    assert got["dtls_half_open", ()] == 7
    assert got["dtls_state_failing", ()] == 1
    assert got["dtls_build_info", (("version", "1.2.3"),)] == 1


def test_a_histogram_has_buckets_sum_and_count():
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.5, 5.0):
        histogram.observe(seconds)
    got = samples({"handshake_seconds": {"completed": histogram.statistics()}})
    bucket = "dtls_handshake_seconds_bucket"
    assert got[bucket, (("le", "0.1"), ("result", "completed"))] == 1
    assert got[bucket, (("le", "1.0"), ("result", "completed"))] == 2
    assert got[bucket, (("le", "+Inf"), ("result", "completed"))] == 3
    assert got["dtls_handshake_seconds_count", (("result", "completed"),)] == 3
    assert got["dtls_handshake_seconds_sum", (("result", "completed"),)] == pytest.approx(5.55)


def test_listeners_go_by_their_address_and_errors_by_their_name():
    listener = {"local": "127.0.0.1:5684", "dropped_by_kernel": 3, "send_errors": {"EPERM": 2}}
    got = samples({"sockets": [listener, {**listener, "local": "[::1]:5684", "dropped_by_kernel": 0}]})
    assert got["dtls_dropped_by_kernel_total", (("listener", "127.0.0.1:5684"),)] == 3
    assert got["dtls_dropped_by_kernel_total", (("listener", "[::1]:5684"),)] == 0
    assert got["dtls_send_errors_total", (("error", "EPERM"), ("listener", "[::1]:5684"))] == 2


def test_a_label_that_is_no_word_of_ours_cannot_break_the_text():
    got = samples({"server": {"handshakes_failed": {'a"} 1\nevil 2 \\ \u2028': 5}}})
    assert got["dtls_handshakes_failed_total", (("cause", 'a"} 1\nevil 2 \\ \u2028'),)] == 5


def test_a_fault_that_makes_labels_without_end_makes_no_time_series_without_end():
    got = samples({"refused": {f"word-{number}": 1 for number in range(MAX_SERIES + 50)}})
    refused = {labels: value for (name, labels), value in got.items() if name == "dtls_refused_total"}
    assert len(refused) == MAX_SERIES + 1
    assert refused[("quota", "other"),] == 50


def test_figures_that_are_missing_or_text_are_left_out():
    got = families({"associations": None, "server": {"half_open": "many", "frozen": 1}})
    assert not got["dtls_half_open"].samples
    assert "dtls_handshakes_started" not in got


def test_the_process_is_measured_too():
    got = families({})
    for name in ("process_cpu_seconds", "process_resident_memory_bytes", "process_open_fds"):
        assert got[name].samples[0].value > 0


def test_whoever_asks_for_openmetrics_gets_it():
    accept = "application/openmetrics-text; version=1.0.0"
    got = families({"server": {"handshakes_started": 3}}, accept, parse_openmetrics)
    assert got["dtls_handshakes_started"].samples[0].value == 3


def test_two_endpoints_in_one_process_do_not_share_figures():
    one = make_registry(lambda: {"associations": 1}, version="1")
    two = make_registry(lambda: {"associations": 2}, version="1")
    assert b"dtls_associations 1.0" in render(one, "")[0]
    assert b"dtls_associations 2.0" in render(two, "")[0]


# --- the table --------------------------------------------------------------------------------------


def test_names_are_prefixed_once_and_have_a_unit_at_their_end():
    names = [metric.name for metric in all_metrics()]
    assert len(names) == len(set(names))
    for metric in all_metrics():
        assert metric.name.startswith("dtls_")
        assert not metric.name.endswith("_total"), "counters get it"
        assert metric.help.endswith(".")
        if metric.kind is Kind.HISTOGRAM:
            assert metric.name.endswith("_seconds")


def test_no_label_is_for_peers():
    labels = {label for metric in all_metrics() for label in metric.labels}
    assert not labels & {"identity", "address", "path", "peer", "prefix", "offender", "client", "key_id"}


def leaves(tree, path=""):
    """The place of each figure, and of each table that has none yet."""
    if isinstance(tree, dict) and tree and not is_histogram(tree):
        for name, value in tree.items():
            yield from leaves(value, f"{path}.{name}" if path else name)
    else:
        yield path


def covered(tree):
    """The places that a metric or an exception is about."""
    patterns = [at for metric in all_metrics() for at in metric.at] + list(NOT_EXPORTED)
    for pattern in patterns:
        steps = pattern.split(".")
        # A table that is empty yet is covered by whatever is about its members.
        for length in range(1, len(steps) + 1):
            for labels, value in found(tree, ".".join(steps[:length])):
                if length == len(steps) or value == {}:
                    filled = iter(labels)
                    yield ".".join(next(filled) if step.startswith("{") else step for step in steps[:length])


def forgotten(statistics):
    """Figures that are neither exported nor named as an exception."""
    tree = as_mapping(statistics)
    return sorted(set(leaves(tree)) - set(covered(tree)))


def test_a_new_counter_that_nobody_exports_is_found():
    server = {"handshakes_started": 1, "quarks": 2, "handshakes_failed": {}, "colours": {}}
    assert forgotten({"server": server, "new": {"a": {"b": 1}}}) == [
        "new.a.b",
        "server.colours",
        "server.quarks",
    ]


def test_each_exception_has_a_reason():
    assert all(reason for reason in NOT_EXPORTED.values())


def test_what_is_counted_and_remembered_of_devices_is_exported():
    tally = Tally(clock=lambda: 0.0)
    history = History(identities=1, strangers=1, addresses=1, wall=lambda: 0.0)
    negotiated: Any = SimpleNamespace(cipher_suite=SimpleNamespace(name="X"), resumed=False)
    connection = SimpleNamespace(negotiated=negotiated)
    tally.completed(SimpleNamespace(kind=CredentialKind.PSK, key_index=0, connection=connection))  # type: ignore[arg-type]
    assert forgotten({"tally": tally.statistics(), "history": history.statistics()}) == []


# --- the documents ----------------------------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs"


def test_the_reference_is_the_one_that_the_table_makes():
    from endpoint.metrics.reference import reference

    written = (DOCS / "metrics.md").read_text()
    assert written == reference(), "run: python -m endpoint.metrics.reference > docs/metrics.md"
