"""The forwarder that a configuration asks for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from endpoint.forward import ForwardError
from endpoint.forward.echo import Echo
from endpoint.forward.jsonl import JsonLines

if TYPE_CHECKING:
    from collections.abc import Callable

    from endpoint.config import EndpointConfig
    from endpoint.forward import Forwarder

STANDARD_OUTPUT = 1


def make_forwarder(config: EndpointConfig, tell: Callable[..., None]) -> Forwarder:
    """The forwarder that ``forward.kind`` names."""
    if config.forward.kind == "echo":
        return Echo()
    if sys.stdout is None:
        # The number 1 may by now be anything, a socket of ours even.
        raise ForwardError("standard output is closed; there is nowhere to write data to")
    return JsonLines(STANDARD_OUTPUT, limit=config.forward.buffer, tell=tell)
