"""The way back to the devices, counted by what became of it.

A device that has been silent for long has its association frozen. Whether something for it wakes that (``wake``) depends on why
it is silent: one that only listens hears it, and what waits for commands listens; one that sleeps does not,
and its network has forgotten where it is. Being woken costs as much as one datagram from the device, and it
freezes again after the same time of silence.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

from sansdtls import ConnectionState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from endpoint.association import Association


class Associations(Protocol):
    """What an engine knows of an identity's; see :class:`endpoint.Engine`."""

    def associations(self, identity: bytes) -> Sequence[Association]:
        """The live ones."""
        ...

    def sleeping(self, identity: bytes) -> Sequence[bytes]:
        """Handles of the frozen ones, the one that has been silent longest first."""
        ...

    def wake(self, handle: bytes) -> Association | None:
        """Thaw one."""
        ...


class LiveDevices:
    """One sink's way back; see :class:`endpoint.forward.Devices`."""

    def __init__(self, engine: Callable[[], Associations | None], *, wake: bool = False) -> None:
        """``engine`` gives the engine, once there is one; ``wake`` says whether to wake devices."""
        self._engine = engine
        self._wake = wake
        self.sent = 0
        self.drops: Counter[str] = Counter()
        """By reason: ``not_awake`` (frozen, or not there at all), ``too_large``, and what sinks know."""

    def send(self, identity: bytes, data: bytes) -> bool:
        """Send to the one of ``identity`` that was heard last."""
        engine = self._engine()
        found = max(engine.associations(identity), key=_heard, default=None) if engine else None
        if found is None and engine and self._wake and (asleep := engine.sleeping(identity)):
            found = engine.wake(asleep[-1])
        if found is None:
            self.drops["not_awake"] += 1
            return False
        return self.reply(found, data)

    def wake(self, handle: bytes) -> Association | None:
        """Wake one, if that is wanted."""
        engine = self._engine()
        return engine.wake(handle) if engine and self._wake else None

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
