"""Where received data go: what a sink is, and the way back to the devices.

::

    engine ── Reporter.received ── Router ─┬─ sink "coap"     each with its own buffer, counters and fate
              Hearing (the other facts) ───┘  sink "archive"

A sink is one destination. :class:`Forwarder` is the least that it does; :class:`Sink` is to be subclassed, and
hears of associations as well. ``endpoint.forward.router`` sends each association's data to the sinks that are
meant to have them, ``endpoint.forward.backlog`` is the bounded buffer that those share which may have to wait, and
``endpoint.forward.making`` makes them as ``[forward]`` says.

Facts for the log, all warnings, each with ``sink`` (what is counted is in ``statistics``)::

    forward_overflow      output, buffer: it is full, from now on datagrams are dropped
    forward_write_failed  output, reason: as of a full disk, and what was to be written is dropped
    forward_too_large     output, size: a datagram that the other side cannot take is dropped
    forward_resumed       dropped: nothing is dropped any more; how many were
    forward_down          upstream or output, reason: the other side cannot be reached
    forward_up            upstream or output: it can again
    forward_unresolved    upstream, reason: its name is not known now
    forward_moved         upstream, address: its name stands for another address
    forward_no_socket     upstream, reason: no socket can be made
    forward_limited       max_upstreams, reason: fewer sockets than configured, by sink
    forward_downlink_refused, forward_unblock_refused   reason: the server lacks a right that the way back needs
    forward_broken        method, reason: a fault of the sink itself
    forward_failed        error: this sink is over (an error, and the service's end, if it was the last)
    forward_unmatched     identity, path (no sink): no sink is for this device; told of the first
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

import trio

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

    def statistics(self) -> dict[str, Any]:
        """Counters, by name: ``forwarded`` and ``forward_dropped`` datagrams, ``forward_held`` bytes, and others."""
        ...


class Sink:
    """A :class:`Forwarder` that does nothing: subclass it.

    The other methods tell what becomes of associations, in the order in which it happens; they neither block nor raise.
    An association that freezes comes back as another object: both have the same ``handle`` when ``frozen`` and
    ``thawed`` are called, and only then.
    """

    def __init__(self) -> None:
        self.drops: Counter[str] = Counter()
        """Datagrams from devices that were not handed on, by reason."""

    def deliver(self, association: Association, data: bytes) -> None:
        """See :class:`Forwarder`."""

    async def run(self) -> None:
        """See :class:`Forwarder`. Here: nothing to do until cancelled."""
        await trio.sleep_forever()

    async def flush(self) -> None:
        """See :class:`Forwarder`. Here: nothing is kept."""
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Give up sockets and names; called once, when nothing runs any more."""

    @property
    def usable(self) -> bool:
        """Whether it can be expected to take data. If not, the endpoint is not ready."""
        return True

    def statistics(self) -> dict[str, Any]:
        """See :class:`Forwarder`."""
        return {"forward_dropped": self.drops.total()}

    def connected(self, association: Association) -> None:
        """A device is there."""

    def moved(self, association: Association) -> None:
        """Its address is another one now."""

    def frozen(self, association: Association) -> None:
        """It sleeps: this object is over, the association is not."""

    def thawed(self, association: Association) -> None:
        """It is awake, as a new object."""

    def disconnected(self, association: Association) -> None:
        """It is gone."""


class Devices(Protocol):
    """The way back: what a sink is given that gets replies."""

    def send(self, identity: bytes, data: bytes) -> bool:
        """Send to the association of ``identity`` that was heard last; ``False`` = dropped and counted.

        It is a live one if there is any; a frozen one is woken if the configuration says so.
        """
        ...

    def reply(self, association: Association, data: bytes) -> bool:
        """The same to one association."""
        ...

    def wake(self, handle: bytes) -> Association | None:
        """Thaw a frozen one, so that it can be sent to: ``thawed`` is told first. ``None`` = there is none, or it is not to be woken."""
        ...

    def drop(self, reason: str) -> None:
        """Count a reply that cannot be sent, for a reason that the sink knows, such as ``"malformed"``."""
        ...
