"""The sinks that a configuration asks for, behind one router."""

from __future__ import annotations

import contextlib
import sys
from functools import partial
from typing import TYPE_CHECKING

from endpoint.forward import ForwardError
from endpoint.forward.devices import LiveDevices
from endpoint.forward.echo import Echo
from endpoint.forward.jsonl import JsonLines
from endpoint.forward.router import Route, Router
from endpoint.forward.udp import UdpUpstreams
from endpoint.forward.unix import UnixDatagrams
from endpoint.forward.upstreams import files_for
from endpoint.tables.sinks import EchoTable, JsonlTable, UdpTable, UnixTable, ValkeyTable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from endpoint.config import EndpointConfig
    from endpoint.forward import Devices, Sink
    from endpoint.forward.devices import Associations
    from endpoint.tables.sinks import SinkTable

STANDARD_OUTPUT = 1


def make_forwarder(
    config: EndpointConfig,
    tell: Callable[..., None],
    engine: Callable[[], Associations | None] = lambda: None,
) -> Router:
    """What ``[forward]`` says. ``engine`` gives the engine, once there is one, for the way back.

    :class:`ForwardError` if one of the sinks can never work.
    """
    limits = _limits([table for table in config.forward.sinks if isinstance(table, UdpTable)], tell)
    routes: list[Route] = []
    with contextlib.ExitStack() as made:
        for table in config.forward.sinks:
            devices = LiveDevices(engine, wake=table.wakes)
            sink = make_sink(table, partial(tell, sink=table.label), devices, limits.get(table.label))
            made.callback(sink.close)
            routes.append(
                Route(
                    name=table.label,
                    sink=sink,
                    identities=table.identities,
                    alpn=table.alpn,
                    also=table.also,
                    devices=devices if table.has_way_back else None,
                )
            )
        made.pop_all()
    return Router(routes, tell=tell)


def _limits(tables: Sequence[UdpTable], tell: Callable[..., None]) -> dict[str, int]:
    """How many sockets each may have: fewer than it asks for where this process may not open so many files."""
    if not tables:
        return {}
    wanted = sum(table.max_upstreams for table in tables)
    allowed = files_for(wanted)
    limits = {table.label: max(1, table.max_upstreams * allowed // wanted) for table in tables}
    if allowed < wanted:
        tell("forward_limited", max_upstreams=limits, reason="the limit of open files (RLIMIT_NOFILE)")
    return limits


def make_sink(table: SinkTable, tell: Callable[..., None], devices: Devices, limit: int | None) -> Sink:
    """One sink of its kind; ``limit`` is for ``udp``."""
    if isinstance(table, JsonlTable):
        if sys.stdout is None:
            # The number 1 may by now be anything, a socket of ours even.
            raise ForwardError("standard output is closed; there is nowhere to write data to")
        return JsonLines(STANDARD_OUTPUT, limit=table.buffer, overflow=table.overflow, tell=tell)
    if isinstance(table, EchoTable):
        return Echo()
    if isinstance(table, UdpTable):
        return UdpUpstreams(table, devices=devices, tell=tell, limit=limit)
    if isinstance(table, UnixTable):
        return UnixDatagrams(table, devices=devices, tell=tell)
    if isinstance(table, ValkeyTable):
        # As in endpoint.keystore.choosing: coredis is imported where it is needed only.
        from endpoint.forward.valkey import ValkeyStream  # noqa: PLC0415 - see above

        return ValkeyStream(table, devices=devices, tell=tell)
    raise AssertionError(f"no sink of kind {table.kind}")
