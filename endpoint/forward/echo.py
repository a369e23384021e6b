"""``forward.kind = "echo"``: every datagram goes back to its sender. For trying out devices and networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from endpoint.forward import Sink

if TYPE_CHECKING:
    from endpoint.association import Association


class Echo(Sink):
    """Sends data back at once; there is nothing to keep."""

    def __init__(self) -> None:
        super().__init__()
        self._sent = 0

    def deliver(self, association: Association, data: bytes) -> None:
        """Send ``data`` back; where that cannot be done it is dropped and counted."""
        # Where the device's MTU is larger than ours, what it sends may not fit on the way back.
        if association.send(data):
            self._sent += 1
        else:
            self.drops["too_large"] += 1

    def statistics(self) -> dict[str, int]:
        """``forwarded`` and ``forward_dropped`` datagrams."""
        return {"forwarded": self._sent, "forward_dropped": self.drops.total()}
