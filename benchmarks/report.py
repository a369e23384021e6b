"""What is printed: a table for people, or JSON."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from typing import TYPE_CHECKING, Any

import attrs
from cryptography.hazmat.backends.openssl.backend import backend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.harness import Scale, Series

BUSY = 0.25
"""Load average per CPU, before the first run, above which the report warns."""
HEADINGS = ("", "suite", "median", "low", "high", "trio/this", "aim", "")


def environment() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    versions = {name: metadata.version(name) for name in ("cryptography", "pyOpenSSL", "trio")}
    return {
        "python": platform.python_version(),
        **versions,
        "openssl": backend.openssl_version_text(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def _verdict(series: Series) -> str:
    if series.aim is None:
        return ""
    return "met" if series.median <= series.aim else "MISSED"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _row(series: Series) -> tuple[str, ...]:
    return (
        f"  {series.name}",
        series.suite,
        _number(series.median),
        _number(min(series.values)),
        _number(max(series.values)),
        "" if series.ratio is None else f"{series.ratio:.2f}",
        "" if series.aim is None else f"<= {series.aim:g}",
        _verdict(series),
    )


def table(all_series: Sequence[Series]) -> str:
    """Aligned columns, grouped by what was measured."""
    lines: list[tuple[str, ...] | str] = [HEADINGS]
    group = None
    for series in all_series:
        if (series.what, series.unit) != group:
            group = (series.what, series.unit)
            lines.append(f"{series.what} [{series.unit}]")
        lines.append(_row(series))
    rows = [line for line in lines if isinstance(line, tuple)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]

    def aligned(row: tuple[str, ...]) -> str:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join(line if isinstance(line, str) else aligned(line) for line in lines)


def heading(scale: Scale, facts: dict[str, Any]) -> str:
    busy = facts["load_average"] > BUSY * (facts["cpus"] or 1)
    warning = (
        "The machine was busy before the first run: medians are too high; look at 'low' and the ratios.\n"
        if busy
        else ""
    )
    return (
        f"Server processes only; CPU is user + system time. Medians of {scale.repeat} interleaved runs;\n"
        f"memory is taken once: of endpoint.Engine over {scale.kept:,} associations with connection IDs, each with\n"
        f"an address and an identity of its own, in a process of its own without a network; of the others over\n"
        f"{scale.associations:,}. Loopback; the load comes from another process, the same for every server: bursts of\n"
        f"{scale.window} datagrams from {scale.window} clients (one at a time where it says so), "
        f"{scale.handshake_window} handshakes at once.\n"
        f"trio/this: trio's DTLSEndpoint with its default suite in the same run, divided by this row.\n"
        + ", ".join(f"{name} {value}" for name, value in facts.items())
        + f"\n{warning}"
    )


def as_json(scale: Scale, facts: dict[str, Any], all_series: Sequence[Series], note: str) -> str:
    rows = [
        {
            "what": series.what,
            "unit": series.unit,
            "name": series.name,
            "suite": series.suite,
            "median": series.median,
            "values": series.values,
            "trio_ratio": series.ratio,
            "aim": series.aim,
        }
        for series in all_series
    ]
    scale_facts = attrs.asdict(scale)
    result = {"environment": facts, "scale": scale_facts, "rows": rows, "note": note}
    return json.dumps(result, indent=2)
