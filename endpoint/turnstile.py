"""A turnstile: lets some tasks through at a time, so that the sockets are looked at in between.

Late answers of a key store come as they like: one that was slow for a second has thousands at once, each of which goes on
with a handshake for some 200 µs, and trio runs all tasks that can run before it looks at the sockets again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable


class Turnstile:
    """``places`` tasks may pass; then the others wait for :meth:`turn`, in order."""

    def __init__(self, places: int, *, on_waiting: Callable[[], None]) -> None:
        """``on_waiting`` is called when a task has to wait: somebody must call :meth:`turn` then."""
        self._places = places
        self._left = places
        self._lot = trio.lowlevel.ParkingLot()
        self._on_waiting = on_waiting

    def __len__(self) -> int:
        """Tasks that wait."""
        return len(self._lot)

    async def pass_through(self) -> None:
        """Return when it is one's turn; at once, without a checkpoint, while there are places."""
        if self._left and not self._lot:
            self._left -= 1
            return
        self._on_waiting()
        await self._lot.park()

    def turn(self) -> None:
        """Let the next ones through."""
        passed = len(self._lot.unpark(count=self._places))
        self._left = self._places - passed
