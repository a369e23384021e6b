"""Where received data go: the :class:`Forwarder` protocol, and the choice of one by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from endpoint.association import Association


class ForwardError(Exception):
    """Data can be handed on no longer, now or later. The text is for the operator."""


class Forwarder(Protocol):
    """Takes what devices send."""

    def deliver(self, association: Association, data: bytes) -> None:
        """Take one datagram's data. Called from the receive loop: it neither blocks nor raises."""
        ...

    async def run(self) -> None:
        """Hand on what was delivered, until cancelled. :class:`ForwardError` if that has become impossible."""
        ...

    async def flush(self) -> None:
        """Return when everything delivered so far has been handed on."""
        ...

    def statistics(self) -> dict[str, int]:
        """Counters, by name."""
        ...
