"""The end of a run: telling every device, or handing all associations over to the next process.

::

    with a place to hand over to      stop accepting, let handshakes finish for a moment, stop receiving, write
    without one                       close_notify to all, the frozen ones last, within ``listen.drain``
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from endpoint.handoff import HandoffError
from endpoint.supervised import MORE_TIME

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from endpoint.engine import Engine
    from endpoint.succession import Succession
    from endpoint.systemd import Notifier

HANDSHAKE_GRACE = 2.0
"""Seconds that handshakes under way get before associations are handed over; they cannot be."""
UNSENT_GRACE = 0.5
"""Seconds for what the kernel had no room for, before associations are handed over."""
SAVE_GRACE = 1.0
"""Seconds for the last changes to a database, and for what sinks hold, however little of ``listen.drain`` is left."""


class Leaving:
    """One engine's way out."""

    def __init__(
        self,
        engine: Engine,
        succession: Succession,
        *,
        notifier: Notifier,
        log: FilteringBoundLogger,
        drain: float,
    ) -> None:
        """``drain``: seconds that all of it may take."""
        self._engine = engine
        self._succession = succession
        self._notifier = notifier
        self._log = log
        self._drain = drain
        self._handing_over = False
        self._done = trio.Event()
        self._outcome: dict[str, object] | HandoffError | None = None

    # --- before: where to ---

    def open_place(self) -> None:
        """Open the place to hand over to; :class:`~endpoint.handoff.HandoffError` if there is none, or it cannot be opened."""
        self._succession.begin(sum(counts_of(self._engine).values()))
        self._handing_over = True

    def open_place_if_any(self) -> None:
        """The same; where it cannot be, devices will be told of the stop."""
        if self._succession.to is None:
            return
        try:
            self.open_place()
        except HandoffError as error:
            self._log.error("handoff_failed", error=str(error))

    # --- while the engine runs ---

    async def take_leave(self) -> int:
        """Tell the peers, or let their handshakes finish before they are handed over; how many are left."""
        engine = self._engine
        self._notifier.extend(self._drain + HANDSHAKE_GRACE + UNSENT_GRACE + MORE_TIME)
        if not self._handing_over:
            self._notifier.stopping("telling the devices")
            return await engine.drain(self._drain, frozen=True)
        self._notifier.stopping("handing over to the next process")
        engine.stop_accepting()
        await engine.wait_for_handshakes(HANDSHAKE_GRACE)
        with trio.move_on_after(UNSENT_GRACE):
            for udp in engine.sockets:
                await udp.wait_writable()
        return 0

    # --- after it has stopped receiving ---

    async def finish(self, deadline: float) -> int | None:
        """Write what is to be kept, until ``deadline`` on trio's clock; how many associations could not be handed over.

        ``None`` = nothing was to be handed over.
        """
        seconds = max(SAVE_GRACE, deadline - trio.current_time())
        if self._handing_over:
            return await self._hand_over(seconds)
        if not await self._succession.flush(seconds):
            self._log.warning("state_not_saved", reason="the last changes were not written in time")
        return None

    async def _hand_over(self, seconds: float) -> int:
        there = counts_of(self._engine)
        associations = there["associations"] + there["frozen"]
        try:
            count = await self._succession.hand_over(self._engine, associations=associations, seconds=seconds)
        except HandoffError as error:
            self._log.error("handoff_failed", error=str(error), associations=associations)
            self._outcome = error
        else:
            self._outcome = {"associations": count, "to": self._succession.to}
            self._log.info("handed_over", **self._outcome)
            associations = 0
        self._done.set()
        return associations

    @property
    def failed(self) -> bool:
        """Whether the hand-over has failed."""
        return isinstance(self._outcome, HandoffError)

    async def handed_over(self) -> dict[str, object]:
        """Wait for the hand-over; what became of it. :class:`~endpoint.handoff.HandoffError` if it failed."""
        await self._done.wait()
        if isinstance(self._outcome, HandoffError):
            raise self._outcome
        return self._outcome or {}


def counts_of(engine: Engine) -> dict[str, int]:
    """How many associations and handshakes there are."""
    figures = engine.statistics()
    return {
        "associations": figures["associations"],
        "frozen": figures["server"]["frozen"],
        "handshakes": figures["handshakes"],
    }
