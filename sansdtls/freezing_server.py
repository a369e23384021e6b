"""What a server offers about its frozen associations; what it does by itself is in ``members``.

A server freezes an association that has been silent for ``ServerConfig.freeze_after``, and wakes it with its next
record. Here is what its caller can do: take an association out as bytes or put one in, all at once before a restart, wake
one to send to it, and save everything as it changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sansdtls.association import ConnectionState
from sansdtls.errors import SnapshotError, WrongState
from sansdtls.freezer import handle_of
from sansdtls.freezing import peer_of
from sansdtls.routes import Member
from sansdtls.snapshot import sealed_anew

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from sansdtls.config import Limits, ServerConfig
    from sansdtls.connection import Connection
    from sansdtls.freezer import Checkpoint, Freezer
    from sansdtls.handshake.outcome import Peer
    from sansdtls.members import Members
    from sansdtls.routes import Routes
    from sansdtls.saved import SavedAssociation
    from sansdtls.statistics import ServerStatistics


class Restored(NamedTuple):
    """A frozen association that was taken over."""

    handle: bytes
    path: Hashable
    peer: Peer
    annotation: bytes
    last_received: float


class FreezingServer:
    """The part of :class:`~sansdtls.Server` that callers use for freezing."""

    statistics: ServerStatistics
    _config: ServerConfig
    _entropy: Callable[[int], bytes]
    _freezer: Freezer
    _limits: Limits
    _members: Members
    _routes: Routes

    @property
    def frozen(self) -> int:
        """Frozen associations."""
        return len(self._freezer)

    def freeze(self, connection: Connection, *, now: float) -> bytes:
        """Turn an established association into bytes that the caller keeps, see :meth:`Connection.freeze`.

        Raises WrongState if it is not one of this server's established ones, or if events of it wait, and
        SnapshotError if its path cannot be saved.
        """
        self._members.now = now
        member = connection.watcher
        if not isinstance(member, Member) or member not in self._routes.established:
            raise WrongState("cannot freeze: this is no established association of this server")
        if connection.has_events or any(event.connection is connection for event in self._members.events):
            raise WrongState("cannot freeze: events wait to be fetched")
        handle = handle_of(connection.connection_id, connection.path)
        reserved_until = connection.reserved_until
        blob = self._members.take_out(member)
        self._freezer.remember(connection.server_random, connection.serial - 1)
        connection.leave()
        self._freezer.note(handle, None)
        # Put back before that is confirmed, it must not go further than what is kept says.
        self._freezer.hold_bound(handle, blob, reserved_until)
        return blob

    def thaw(self, blob: bytes, *, now: float) -> Connection:
        """Go on with a frozen association of this server, or of one with the same ``snapshot_keys``.

        Raises SnapshotError for a blob that is damaged, of another version or under another key, of an
        association that is here already, that was loaded before, or whose time is over.
        """
        self._members.now = now
        saved, handle = self._new_here(blob, now)
        member = self._members.revive(handle, saved, now)
        if not self._members.make_room(now):
            raise SnapshotError("no room: max_associations are live, and none may give way")
        self._members.admit(member, handle, saved)
        return member.connection

    def restore(
        self,
        blob: bytes,
        *,
        now: float,
        saved: bool = False,
        unsealed: bool = False,
        check_path: Callable[[Hashable], None] | None = None,
    ) -> Restored:
        """As :meth:`thaw`, but it stays frozen until it is heard.

        ``saved`` says that it comes from where checkpoints are kept, so the next one need not have it; or removes it
        there, if its time is over.
        ``unsealed`` says that it comes from where nobody else can put anything, so that without a seal it is taken
        too, and sealed now where there is a key. ``check_path`` may raise SnapshotError for a path that leads
        nowhere here, before anything is kept.
        """
        self._members.now = now
        if unsealed:
            blob = sealed_anew(blob, self._config.snapshot_keys, self._entropy)
        association, handle = self._new_here(blob, now, saved=saved)
        if check_path is not None:
            check_path(association.path)
        if len(self._freezer) >= self._limits.max_frozen:
            raise SnapshotError("no room: max_frozen associations are here")
        self._freezer.put(handle, association.path, blob)
        if not saved:
            self._freezer.note(handle, blob)
        self.statistics.frozen = len(self._freezer)
        self._members.schedule_expiry()
        return Restored(
            handle, association.path, peer_of(association), association.annotation, association.last_received
        )

    def freeze_all(self, *, now: float) -> Iterator[bytes]:
        """All associations as bytes, the frozen ones too; handshakes under way are not among them.

        Each is gone from here when it has been yielded; those with a path that cannot be saved stay. Events that
        wait are lost: fetch them before.
        """
        self._members.now = now
        for member in list(self._routes.established):
            connection = member.connection
            if connection.state is ConnectionState.CONNECTED:
                reserved_until = connection.reserved_until
                try:
                    handle = handle_of(connection.connection_id, connection.path)
                    blob = self._members.take_out(member)
                except SnapshotError:
                    continue  # of its path
                self._freezer.remember(connection.server_random, connection.serial - 1)
                connection.leave()
                # Where the caller thinks better of it, it must not go further than what is kept says.
                self._freezer.hold_bound(handle, blob, reserved_until)
                yield blob
        for handle in list(self._freezer.store.handles()):
            frozen = self._freezer.take(handle)
            if frozen is not None:
                self.statistics.frozen = len(self._freezer)
                yield frozen

    def wake(self, handle: bytes, *, now: float) -> Connection | None:
        """Thaw the association with this handle, so that something can be sent to it; ``None`` if there is none.

        Nor is one woken where ``max_associations`` are live and none gives way.
        ``ConnectionThawed`` comes with the next call that returns events; :meth:`next_timeout` is due at once.
        """
        self._members.now = now
        member = self._members.thaw(handle, now, self._members.events)
        return None if member is None else member.connection

    @property
    def checkpoint_due(self) -> bool:
        """Whether an association will soon have used all the record numbers that are reserved for it."""
        return self._freezer.reserve_low

    def checkpoint(self, *, now: float, limit: int | None = None) -> Checkpoint:
        """All that has changed since the last checkpoint, of live and frozen associations.

        With a ``limit`` not more than so many changes, those first that have waited longest: each takes some 25 us.

        Make it durable as a whole, then :meth:`confirm` it: one that could not be written has to be written later,
        with those after it or before them, for the next one says nothing of what was in it. Until then associations
        go on with the numbers that the last confirmed one reserves, and cannot send when these are used up.
        """
        self._members.now = now
        return self._freezer.checkpoint(self._config.snapshot_keys, limit)

    def confirm(self, checkpoint: Checkpoint) -> None:
        """``checkpoint`` is durable. Checkpoints that were put together into one may be confirmed one by one."""
        self._freezer.confirm(checkpoint)

    def _new_here(self, blob: bytes, now: float, *, saved: bool = False) -> tuple[SavedAssociation, bytes]:
        """A blob that may be loaded. Raises SnapshotError."""
        association = self._freezer.decode(blob, self._config.snapshot_keys)
        handle = handle_of(association.connection_id, association.path)
        if association.expires_at <= now:
            if saved:
                self._freezer.note(handle, None)  # nor need it be kept any longer
            raise SnapshotError("the frozen association's time is over: nothing was heard of it for too long")
        if not self._freezer.is_good(association):
            raise SnapshotError("the frozen association has been loaded before: a blob is good for one use")
        if association.connection_id:
            connection_id = association.connection_id
            free = self._routes.is_free(connection_id) and self._freezer.is_free(connection_id)
        else:
            route = self._routes.at(association.path)
            holder = None if route is None else route.established
            held = holder is not None and not holder.connection_id
            free = handle not in self._freezer.store and not held
        if not free:
            raise SnapshotError("the frozen association is here already: a blob is good for one use")
        return association, handle
