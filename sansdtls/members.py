"""The life of the connections of a server: each gets its place, keeps its deadline, and gives back what it held.

A member is half-open, then established; an established one may be frozen and come back as another object. Every way
to end leads through :meth:`Members.release`, so that each slot is given back exactly once.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from sansdtls.association import ConnectionState
from sansdtls.deadlines import Deadlines
from sansdtls.events import (
    ConnectionTerminated,
    HandshakeCompleted,
    LimitExceeded,
    PeerClose,
    SecretDerived,
)
from sansdtls.freezer import NEVER, Expiry, Freezer
from sansdtls.frozen_members import FrozenMembers
from sansdtls.handshake.failure import HandshakeFailure
from sansdtls.iana import AlertDescription
from sansdtls.record.ciphers import Ciphers
from sansdtls.routes import Member, Pending, Route, Routes
from sansdtls.saved_paths import can_be_saved
from sansdtls.statistics import ServerStatistics, cause_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from sansdtls.config import ServerConfig
    from sansdtls.events import Cause, Event
    from sansdtls.record.layer import Outgoing

LOOKED_AT_FOR_ROOM = 64
"""Associations, the ones that have been silent longest, among which one is sought that can be frozen for a newcomer.
All others could be looked at for each hello otherwise, where handshakes are so fresh that none can be frozen."""
_EPOCH = 1
"""Of all records of an established association, as nobody renegotiates."""


class Members(FrozenMembers):
    """The connections of one server."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        entropy: Callable[[int], bytes],
        now: float,
        freezer: Freezer,
    ) -> None:
        self.config = config
        """For what begins from now on; ``limits`` are those of the beginning."""
        self.statistics = ServerStatistics()
        self.routes = Routes()
        self.freezer = freezer
        self.deadlines: Deadlines[Member | Pending | Expiry] = Deadlines()
        self.outbox: list[Outgoing] = []
        self.ciphers = Ciphers()
        self.events: list[Event] = []
        """That arose where no list of events is returned."""
        self.now = now
        """The last time that is known."""
        self._limits = config.limits
        self._entropy = entropy
        self.statistics.frozen = len(freezer)

    # --- what connections call ----------------------------------------------------------------------

    def wake_member(self, member: Member, now: float) -> None:
        """For :class:`~sansdtls.routes.Member`: an event of it waits to be fetched."""
        self.deadlines.schedule(member, now)

    def numbers_low(self, member: Member) -> None:
        """For :class:`~sansdtls.routes.Member`: it needs a checkpoint soon."""
        self.freezer.reserve_low = True
        self.note(member)

    def changed(self, member: Member) -> None:
        """For :class:`~sansdtls.routes.Member`: the next checkpoint is to have it."""
        if member in self.routes.established:  # a newcomer's handle may still be another's
            self.note(member)

    def settle_member(self, member: Member, events: list[Event], now: float) -> list[Event]:
        """After anything that happened to a connection: its new place, its new deadline."""
        connection = member.connection
        self.now = now
        if member.route.half_open is member and any(
            isinstance(event, HandshakeCompleted) for event in events
        ):
            events = self._establish(member, events, now)
        if connection.state is ConnectionState.CLOSED:
            self.release(member, events)
            return events
        self.schedule(member)
        established = self.routes.established
        if member in established:
            if connection.last_received == now:
                established.move_to_end(member)
            self.follow(member)
            self.note(member)
        return events

    # --- places -------------------------------------------------------------------------------------

    def _establish(self, member: Member, events: list[Event], now: float) -> list[Event]:
        """A newcomer has authenticated itself: it takes its place, if there is one."""
        route, connection = member.route, member.connection
        before: list[Event] = []
        rivals = route.rivals_of(connection)
        for rival in rivals:
            self.end(rival, PeerClose(replaced=True), now, before)
        if not rivals and not self._room_made(now, before):
            # An alert under the new keys: the device knows at once, and that it is no key problem.
            cause = LimitExceeded("max_associations")
            connection.fail(HandshakeFailure(AlertDescription.INTERNAL_ERROR, cause))
            events = [event for event in events if isinstance(event, SecretDerived)]
            return events + connection.take_events()
        self.replace_frozen(member, now, before)
        route.half_open = None
        member.hello = None
        self.statistics.half_open -= 1
        self.statistics.handshakes_completed += 1
        self.settle_in(member)
        return before + events

    def settle_in(self, member: Member) -> None:
        """An association has its place from now on."""
        member.connection.share_ciphers(self.ciphers)
        self.routes.established[member] = None
        self.routes.settle_at(member, member.connection.path)
        self.statistics.associations += 1

    def has_room(self, route: Route | None, now: float) -> bool:
        """Whether there is or can be made room for one more association."""
        replaces = route is not None and route.established is not None
        return (
            replaces
            or len(self.routes.established) < self._limits.max_associations
            or self._stale(now) is not None
            or self._rester(now) is not None
        )

    def make_room(self, now: float) -> bool:
        """Have one place free, if that can be; whose it was is told with the next events."""
        return self._room_made(now, self.events)

    def _room_made(self, now: float, events: list[Event]) -> bool:
        self.now = now
        if len(self.routes.established) < self._limits.max_associations:
            return True
        rester = self._rester(now)
        if rester is not None and self.freeze(rester, events):
            return True
        stale = self._stale(now)
        if stale is None:
            return False
        self.end(stale, LimitExceeded("max_associations"), now, events, notify=True)
        self.statistics.evictions += 1
        return True

    def _stale(self, now: float) -> Member | None:
        """The association that may end in favour of another, if any."""
        for member in self.routes.established:
            return member if now - member.connection.last_received >= self._limits.stale_after else None
        return None

    def _rester(self, now: float) -> Member | None:
        """The association that may be frozen to make room, if the server freezes at all."""
        if self._freeze_after is None:
            return None
        silent_longest = islice(self.routes.established, LOOKED_AT_FOR_ROOM)
        return next((member for member in silent_longest if self._may_be_frozen(member, now)), None)

    def _may_be_frozen(self, member: Member, now: float) -> bool:
        """Whether :meth:`freeze` would, so that what ``has_room`` has promised is there."""
        connection = member.connection
        return connection.rests(now) and can_be_saved(connection.path)

    @property
    def _freeze_after(self) -> float | None:
        return self.config.freeze_after if self._limits.max_frozen else None

    def follow(self, member: Member) -> None:
        """An established connection may have changed its path."""
        path = member.connection.path
        if path is not member.route.path and path != member.route.path:
            self.routes.settle_at(member, path)

    def end(
        self, member: Member, cause: Cause, now: float, events: list[Event], *, notify: bool = False
    ) -> None:
        """End a connection; its last event goes to ``events``."""
        self.now = now
        if member.connection.state is not ConnectionState.CLOSED:  # as one of which the event waits
            member.connection.terminate(cause, notify=notify)
        last = member.connection.take_events()
        self.release(member, last)
        events += last

    def release(self, member: Member, events: list[Event]) -> None:
        """Give back what a closed connection held. Safe to call twice."""
        route = member.route
        if route.half_open is member:
            route.half_open = None
            self.statistics.half_open -= 1
            failed = self.statistics.handshakes_failed
            for event in events:
                if isinstance(event, ConnectionTerminated):
                    name = cause_name(event.cause)
                    failed[name] = failed.get(name, 0) + 1
        elif member in self.routes.established:
            if member.connection.serial:
                self.freezer.remember(member.connection.server_random, NEVER)
            if self.freezer.durable and (handle := self.handle_or_none(member)) is not None:
                self.freezer.note(handle, None)
        self.forget(member)

    def abandon(self, member: Member) -> None:
        """A handshake could not even be begun; there is no connection."""
        route = member.route
        self.routes.withdraw_unmade(member)
        if route.half_open is member:
            route.half_open = None
            self.statistics.half_open -= 1
            self.routes.drop(route)

    def forget(self, member: Member) -> None:
        """Take its place and its deadline away, whatever becomes of it."""
        self.deadlines.cancel(member)
        self.routes.withdraw(member)
        if member in self.routes.established:
            del self.routes.established[member]
            self.statistics.associations -= 1
        member.route.leave(member)
        self.routes.drop(member.route)

    # --- deadlines ----------------------------------------------------------------------------------

    def schedule(self, member: Member) -> None:
        """See to it that the member is looked at when it is due."""
        deadline = member.connection.next_timeout()
        freeze_after = self._freeze_after
        if freeze_after is not None and member in self.routes.established:
            rest = member.connection.rests_at(freeze_after)
            deadline = rest if deadline is None else min(deadline, rest)
        if deadline is not None:
            self.deadlines.schedule(member, deadline)

    def handle_due(self, member: Member, now: float) -> list[Event]:
        """The member's time has come, for whatever it was."""
        connection = member.connection
        events = self.settle_member(member, connection.handle_timeout(now=now), now)
        freeze_after = self._freeze_after
        if events or freeze_after is None or member not in self.routes.established:
            return events
        if now < connection.rests_at(freeze_after):
            return events
        if connection.rests(now) and self.freeze(member, events):
            return events
        # A check of its path is under way, or its path cannot be saved: look again later.
        self.deadlines.cancel(member)
        deadline = connection.next_timeout()
        again = now + freeze_after
        self.deadlines.schedule(member, again if deadline is None else min(again, deadline))
        return events
