"""What an engine offers about associations that outlive it: taken in, saved as they change, and handed on.

It is the core's, with the engine's clock; and the engine's own tables follow. Who keeps the bytes, and where, is not
known here: see ``endpoint.succession``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from endpoint.sockets import why_unreachable
from sansdtls import SnapshotError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from endpoint.association import Association
    from endpoint.intake import Intake
    from endpoint.population import Population
    from endpoint.roster import Roster
    from endpoint.sleepers import Sleepers
    from endpoint.sockets import UdpSocket
    from sansdtls import Checkpoint, Event, Server


class KeepingEngine:
    """The part of :class:`~endpoint.Engine` that a service uses from one process to the next."""

    sockets: tuple[UdpSocket, ...]
    _at: dict[int, UdpSocket]
    """The same by the index that paths have for each."""
    _clock: Callable[[], float]
    _intake: Intake
    _population: Population
    _roster: Roster
    _server: Server
    _sleepers: Sleepers

    if TYPE_CHECKING:

        def now(self) -> float: ...
        def settle(self) -> None: ...
        def _take(self, events: list[Event], now: float) -> None: ...

    def freeze_all(self) -> Iterator[bytes]:
        """Every association as bytes, for the next process; cancel :meth:`run` before, so that nothing more is read."""
        now = self._clock()
        self._intake.flush_frozen(now)  # data that nobody will repeat, unlike handshakes
        self._take(self._server.handle_timeout(now=now), now)
        return self._leaving(now)

    def _leaving(self, now: float) -> Iterator[bytes]:
        try:
            yield from self._server.freeze_all(now=now)
            self._sleepers.clear()
        finally:  # also where not all could be taken
            self._population.left()

    def restore(self, blob: bytes, *, saved: bool = False, unsealed: bool = False) -> None:
        """Take over an association from the process before; see ``sansdtls.Server.restore``.

        Raises SnapshotError if it cannot be used, or nothing can be sent to its peer: its socket is not there any
        more, or has other addresses.
        """
        restored = self._server.restore(
            blob, now=self.now(), saved=saved, unsealed=unsealed, check_path=self._check_path
        )
        self._population.restored(restored)
        self.settle()

    def sleeping(self, identity: bytes) -> list[bytes]:
        """Handles of an identity's frozen associations, the one that has been silent longest first."""
        return self._sleepers.of(identity)

    def wake(self, handle: bytes) -> Association | None:
        """Thaw a frozen association, so that something can be sent to it; ``Observer.thawed`` is told first.

        ``None`` if there is none with this handle, or ``max_associations`` are live and none gives way.
        """
        now = self.now()
        connection = self._server.wake(handle, now=now)
        if connection is None:
            return None
        self._take(self._server.handle_timeout(now=now), now)
        return self._roster.get(connection)

    def _check_path(self, path: object) -> None:
        reason = why_unreachable(path, self._at)
        if reason is not None:
            raise SnapshotError(f"the frozen association's peer cannot be reached: {reason}")

    @property
    def late(self) -> float:
        """Seconds by which the server's next timeout is overdue; for whoever watches that timers run."""
        deadline = self._server.next_timeout()
        return 0.0 if deadline is None else max(0.0, self._clock() - deadline)

    @property
    def checkpoint_due(self) -> bool:
        """See ``sansdtls.Server.checkpoint_due``."""
        return self._server.checkpoint_due

    def checkpoint(self, *, limit: int | None = None) -> Checkpoint:
        """See ``sansdtls.Server.checkpoint``."""
        return self._server.checkpoint(now=self.now(), limit=limit)

    def confirm(self, checkpoint: Checkpoint) -> None:
        """See ``sansdtls.Server.confirm``."""
        self._server.confirm(checkpoint)
