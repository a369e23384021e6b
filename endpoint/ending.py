"""Ending associations because of their keys: at once, or spread, so that a fleet does not come back all together.

::

    rehandshake    live ones get a close_notify at a random moment of ``within`` seconds; frozen ones stay until they wake
    drop           live ones get it at once, and frozen ones are woken for it; many one after another

Only those that were made with a pre-shared key. Frozen ones whose key is not known (an earlier version has saved them)
stay.
"""

from __future__ import annotations

import enum
import heapq
import math
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import trio

from endpoint.association import CredentialKind
from sansdtls import ConnectionState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from endpoint.association import Association
    from endpoint.roster import Roster
    from endpoint.sleepers import Sleepers
    from sansdtls import Connection, Event, Server

BATCH = 64
"""Associations closed before other tasks get a turn."""
_MOMENTS = 1 << 32


@enum.unique
class Ending(enum.Enum):
    """How."""

    REHANDSHAKE = "rehandshake"
    DROP = "drop"


class Ended(NamedTuple):
    """Of associations: how many."""

    live: int
    frozen: int


class Endings:
    """The associations of one engine that are to end."""

    def __init__(
        self,
        server: Server,
        *,
        roster: Roster,
        sleepers: Sleepers,
        entropy: Callable[[int], bytes],
        clock: Callable[[], float],
        settle: Callable[[], None],
        deliver: Callable[[list[Event], float], None],
    ) -> None:
        """``settle``: to be called after the core was, or ``deliver`` with the events that it gave."""
        self._server = server
        self._roster = roster
        self._sleepers = sleepers
        self._entropy = entropy
        self._clock = clock
        self._settle = settle
        self._deliver = deliver
        self._due: list[tuple[float, int, Connection]] = []
        self._waiting: set[Connection] = set()
        """Those in ``_due``, so that each is there once."""
        self._drops: deque[Iterator[bool]] = deque()
        """Identities that are being dropped."""
        self._now = 0.0
        self._dropping = False
        self._number = count()
        self._changed = trio.Event()

    def __len__(self) -> int:
        """Live associations whose moment is still to come."""
        return len(self._due)

    def end(
        self, identity: bytes, accepted: Collection[str] | None, how: Ending, *, within: float, now: float
    ) -> Ended:
        """See :meth:`EndingEngine.end_associations`."""
        doomed = [association for association in self._roster.of(identity) if _is_over(association, accepted)]
        if how is Ending.REHANDSHAKE:
            new = [association for association in doomed if association.connection not in self._waiting]
            for association in new:
                self._put(association.connection, now + within * self._moment())
            return Ended(len(new), 0)
        frozen = sum(is_over(digest, accepted) for _, digest in self._sleepers.keyed(identity))
        self._drops.append(self._drop(identity, accepted))
        self._changed.set()
        self._drop_some(now)
        return Ended(len(doomed), frozen)

    async def run(self) -> None:
        """Close each when its moment has come, until cancelled."""
        while True:
            self._changed = trio.Event()
            with trio.move_on_after(self._wait()):
                await self._changed.wait()
            self._close_due()
            self._drop_some(self._clock())
            await trio.lowlevel.checkpoint()

    def _put(self, connection: Connection, moment: float) -> None:
        self._waiting.add(connection)
        heapq.heappush(self._due, (moment, next(self._number), connection))
        self._changed.set()

    def _wait(self) -> float:
        if self._drops:
            return 0.0
        return max(0.0, self._due[0][0] - self._clock()) if self._due else math.inf

    def _close_due(self) -> None:
        now = self._clock()
        closed = 0
        while self._due and self._due[0][0] <= now and closed < BATCH:
            connection = heapq.heappop(self._due)[2]
            self._waiting.discard(connection)
            if connection.state is ConnectionState.CONNECTED:
                connection.close(now=now)
                closed += 1
        if closed:
            self._settle()

    def _drop_some(self, now: float) -> None:
        """A batch; a whole fleet may share the identity that is dropped."""
        if self._dropping:  # called by somebody who has just heard of one
            return
        self._now, self._dropping = now, True
        try:
            for _ in range(BATCH):
                if not self._drops:
                    break
                if not next(self._drops[0], False):
                    self._drops.popleft()
        finally:
            self._dropping = False
        self._settle()

    def _drop(self, identity: bytes, accepted: Collection[str] | None) -> Iterator[bool]:
        """End one with each step."""
        for _ in range(2):  # one that wakes by itself meanwhile is live the second time
            for association in self._roster.of(identity):
                if _is_over(association, accepted):
                    association.connection.close(now=self._now)
                    yield True
            self._deliver(self._server.handle_timeout(now=self._now), self._now)
            for handle, digest in self._sleepers.keyed(identity):
                if not is_over(digest, accepted):
                    continue
                connection = self._server.wake(handle, now=self._now)
                if connection is not None:  # else it is damaged, or there is no room to wake it
                    connection.close(now=self._now)
                    # Out of the table at once, or those that follow would need the places of others.
                    self._deliver(self._server.handle_timeout(now=self._now), self._now)
                    yield True

    def _moment(self) -> float:
        """A random part of one."""
        return int.from_bytes(self._entropy(4)) / _MOMENTS


class EndingEngine:
    """The part of :class:`~endpoint.Engine` that ends associations because of their keys."""

    _endings: Endings
    _roster: Roster
    _sleepers: Sleepers

    if TYPE_CHECKING:

        def now(self) -> float: ...

    def end_associations(
        self, identity: bytes, accepted: Collection[str] | None, how: Ending, *, within: float = 0.0
    ) -> Ended:
        """End what ``identity`` has with pre-shared keys that are not ``accepted`` (fingerprints); ``None`` = with any.

        ``within``: seconds over which ``REHANDSHAKE`` is spread. Those of which it is not known with what key they were
        made stay, unless all are to end.
        """
        return self._endings.end(identity, accepted, how, within=within, now=self.now())

    def keyed_associations(self, identity: bytes) -> Ended:
        """How many ``identity`` has that were made with a pre-shared key."""
        live = sum(association.kind is CredentialKind.PSK for association in self._roster.of(identity))
        return Ended(live, len(self._sleepers.keyed(identity)))

    def keyed_identities(self) -> Iterator[bytes]:
        """Those that have such ones. Others may come and go meanwhile; each that stays is met, some perhaps twice."""
        for association in self._roster:
            if association.kind is CredentialKind.PSK:
                yield association.identity
        yield from self._sleepers.keyed_identities()


def _is_over(association: Association, accepted: Collection[str] | None) -> bool:
    if association.kind is not CredentialKind.PSK:
        return False
    return association.connection.state is ConnectionState.CONNECTED and is_over(
        association.key_digest, accepted
    )


def is_over(digest: bytes, accepted: Collection[str] | None) -> bool:
    """Whether an association with this key may not go on."""
    return accepted is None or (bool(digest) and digest.hex() not in accepted)
