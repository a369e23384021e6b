"""The way back to the devices, counted by what became of it.

A device that sleeps is not woken for a reply: its network has long forgotten where it is, and it would not listen.
Who has something for it sends that when it is heard.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from sansdtls import ConnectionState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from endpoint.association import Association


class LiveDevices:
    """One sink's way back; see :class:`endpoint.forward.Devices`."""

    def __init__(self, associations: Callable[[bytes], Sequence[Association]]) -> None:
        """``associations`` gives the live ones of an identity."""
        self._associations = associations
        self.sent = 0
        self.drops: Counter[str] = Counter()
        """By reason: ``not_awake`` (sleeping or not there at all), ``too_large``, and what sinks know."""

    def send(self, identity: bytes, data: bytes) -> bool:
        """Send to the one of ``identity`` that was heard last."""
        found = self._associations(identity)
        if not found:
            self.drops["not_awake"] += 1
            return False
        return self.reply(max(found, key=_heard), data)

    def reply(self, association: Association, data: bytes) -> bool:
        """Send to this one."""
        if association.send(data):
            self.sent += 1
            return True
        live = association.connection.state is ConnectionState.CONNECTED
        self.drops["too_large" if live else "not_awake"] += 1
        return False

    def drop(self, reason: str) -> None:
        """Count one that cannot be sent."""
        self.drops[reason] += 1

    def statistics(self) -> dict[str, Any]:
        """``replies`` sent, ``replies_dropped`` by reason."""
        return {"replies": self.sent, "replies_dropped": dict(self.drops)}


def _heard(association: Association) -> float:
    return association.last_received
