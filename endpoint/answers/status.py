"""The service as a whole, in one answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from endpoint.answers.parts import stamp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from endpoint.answers.parts import Parts

OFFENDERS = 10
"""Of those that quotas refused most."""


async def status(parts: Parts) -> dict[str, Any]:
    """See ``docs/status.md``."""
    figures = parts.statistics()
    server = figures["server"]
    not_ready = await parts.not_ready()
    return {
        "version": parts.version,
        "state": parts.state(),
        "ready": not not_ready,
        "not_ready": dict(not_ready),
        "started": stamp(parts.started),
        "uptime": round(parts.uptime(), 1),
        "listeners": [_listener(one) for one in figures["sockets"]],
        "associations": figures["associations"],
        "frozen": figures["frozen"],
        "handshakes": figures["handshakes"],
        "half_open": server["half_open"],
        "identities": figures["identities"],
        "recent": parts.tally.recent(),
        "handshakes_completed": server["handshakes_completed"],
        "handshakes_failed": server["handshakes_failed"],
        "refused": figures["refused"],
        "offenders": [
            {"what": one["who"], "quota": one["reason"], "count": one["count"]}
            for one in figures.get("quotas", {}).get("top", ())[:OFFENDERS]
        ],
        "datagrams_dropped": figures["datagrams_dropped"],
        "credentials": figures.get("credentials", {}),
        "key_store": figures.get("key_store", {}),
        "forward": figures.get("forward", {}),
        **{name: value for name, value in figures.items() if name.startswith("state_")},
    }


def _listener(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "address": figures["local"],
        "receive_buffer": figures["receive_buffer"],
        "dropped_by_kernel": figures["dropped_by_kernel"],
        "send_errors": figures["send_errors"],
        "receive_errors": figures["receive_errors"],
    }
