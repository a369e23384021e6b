"""The sinks that a configuration asks for, behind one router."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

from endpoint.forward import ForwardError
from endpoint.forward.devices import LiveDevices
from endpoint.forward.echo import Echo
from endpoint.forward.jsonl import JsonLines
from endpoint.forward.router import Route, Router
from endpoint.tables.sinks import EchoTable, JsonlTable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from endpoint.association import Association
    from endpoint.config import EndpointConfig
    from endpoint.forward import Devices, Sink
    from endpoint.tables.sinks import SinkTable

STANDARD_OUTPUT = 1


def make_forwarder(
    config: EndpointConfig,
    tell: Callable[..., None],
    associations: Callable[[bytes], Sequence[Association]] = lambda _: (),
) -> Router:
    """What ``[forward]`` says. ``associations`` gives the live ones of an identity, for the way back.

    :class:`ForwardError` if one of the sinks can never work.
    """
    routes = []
    for table in config.forward.sinks:
        devices = LiveDevices(associations)
        routes.append(
            Route(
                name=table.label,
                sink=make_sink(table, partial(tell, sink=table.label), devices),
                identities=table.identities,
                alpn=table.alpn,
                also=table.also,
                devices=devices if table.has_way_back else None,
            )
        )
    return Router(routes, tell=tell)


def make_sink(table: SinkTable, tell: Callable[..., None], devices: Devices) -> Sink:  # noqa: ARG001
    """One sink of its kind."""
    if isinstance(table, JsonlTable):
        if sys.stdout is None:
            # The number 1 may by now be anything, a socket of ours even.
            raise ForwardError("standard output is closed; there is nowhere to write data to")
        return JsonLines(STANDARD_OUTPUT, limit=table.buffer, overflow=table.overflow, tell=tell)
    if isinstance(table, EchoTable):
        return Echo()
    raise AssertionError(f"no sink of kind {table.kind}")
