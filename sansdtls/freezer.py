"""A server's frozen associations: what is kept of them, when they may be woken, and which numbers they may use.

Attacker: sees connection IDs and addresses, can send records that carry them, and so make the server look at any
frozen association as often as it likes. Properties: nothing of that lasts. A record for a frozen association costs
some 100 us, ten times as much as a ClientHello without a cookie: the association is taken out of the store, tried,
and unless the record is authentic put back as it was, with one failed record more on its account; no memory is
held, no record number used, nothing written to a disk. After four such records the rest of a datagram is not
looked at.

The same blob must not be thawed twice, or two connections would use the same nonces. So the store hands out each blob
once; an association that is here, live or frozen, is not loaded again; and of those that left with
:meth:`~sansdtls.Server.freeze`, or ended, the latest are remembered, so that an older copy is refused. Left out: a
copy that is loaded after the server that knew better has ended. Stores on disk have to prevent that (``generation``).

Numbers and checkpoints. Where associations are kept durably, a process may be killed at any moment, and the next one
begins with what was last saved. It leaves out the next :data:`~sansdtls.snapshot.RESERVE` numbers for each
generation that has passed; and so a live association must not go further than that beyond its last *confirmed*
checkpoint: ``WriteEpoch.reserved_until``. A checkpoint that was only made might or might not be found later, so
it raises the bound when it is confirmed, except for an association's first: as long as nothing of it
was saved before, nothing else can be found.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from sansdtls.association import ConnectionState
from sansdtls.errors import ConfigError, SnapshotError
from sansdtls.frozen import MemoryStore
from sansdtls.saved_paths import encode_path
from sansdtls.snapshot import RESERVE, decode_snapshot
from sansdtls.wire.record import CONNECTION_ID_OFFSET, MAX_SEQUENCE_NUMBER

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sansdtls.connection import Connection
    from sansdtls.frozen import FrozenStore
    from sansdtls.saved import SavedAssociation

BY_CONNECTION_ID = b"c"
BY_PATH = b"p"

MAX_AT_ONE_PATH = 8
"""Frozen associations with one path that are looked at when a handshake succeeds there. With connection IDs there
may be many, behind a NAT that gives the same port to one device after the other."""
NEVER = 2**64
"""A serial that no blob has."""
MAX_REMEMBERED = 16_384
"""Associations of which it is remembered which blobs are used up, the latest ones. About 150 bytes each."""


class Saved(NamedTuple):
    """One association of a checkpoint."""

    handle: bytes
    blob: bytes
    connection: Connection | None = None
    """Whose numbers it reserves; ``None`` for a frozen one."""
    reserved_until: int = 0

    def __repr__(self) -> str:
        """Without the blob, which holds the association's secrets, and may not be sealed."""
        return f"<Saved {self.handle.hex()} {len(self.blob)} bytes>"


class Checkpoint(NamedTuple):
    """What has changed since the one before: to be made durable as one, then confirmed."""

    saved: list[Saved]
    removed: list[bytes]
    """Handles of associations that have ended, or were taken out."""
    bounds: tuple[tuple[bytes, tuple[bytes, int]], ...] = ()
    """What those that were taken out have to keep to until it is confirmed."""

    def __repr__(self) -> str:
        """Without the blobs."""
        return f"<Checkpoint {len(self.saved)} saved, {len(self.removed)} removed>"


def handle_of(connection_id: bytes, path: Hashable) -> bytes:
    """What an association is known by while it is frozen. Raises SnapshotError for a path that cannot be saved."""
    return BY_CONNECTION_ID + connection_id if connection_id else BY_PATH + encode_path(path)


class Expiry:
    """The entry of the whole store among the server's deadlines."""

    __slots__ = ("scheduled",)

    def __init__(self) -> None:
        self.scheduled: float | None = None


class Freezer:
    """The frozen side of one server."""

    def __init__(self, store: FrozenStore | None, *, generation: int, durable: bool) -> None:
        if generation < 0:
            raise ConfigError(f"generation: {generation} is below 0")  # and no blob could be made
        self.store: FrozenStore = MemoryStore() if store is None else store
        self.generation = generation
        self.durable = durable
        self.expiry = Expiry()
        self.reserve_low = False
        """Whether an association has used half of what its last confirmed checkpoint reserved."""
        self._id_lengths: dict[int, int] = {}
        self._by_path = 0
        self._good_from: OrderedDict[bytes, int] = OrderedDict()
        self._changed: dict[bytes, Connection | bytes | None] = {}
        self._bounds: dict[bytes, tuple[bytes, int]] = {}
        """Of associations frozen since the last confirmed checkpoint: their blob, and what they may use if they
        wake before it is confirmed."""
        for handle in self.store.handles():
            self._count(handle, 1)

    def __len__(self) -> int:
        return len(self.store)

    # --- in and out ---------------------------------------------------------------------------------

    def put(self, handle: bytes, path: Hashable, blob: bytes) -> None:
        """Keep an association that has just been frozen. Raises SnapshotError if it is there already."""
        self.store.put(handle, encode_path(path), blob)
        self._count(handle, 1)

    def take(self, handle: bytes) -> bytes | None:
        """The blob, which is not here any more then."""
        blob = self.store.take(handle)
        if blob is not None:
            self._count(handle, -1)
        return blob

    def take_expired(self, now: float) -> tuple[bytes, bytes] | None:
        """Handle and blob of one whose time is over."""
        return self._counted(self.store.take_expired(now))

    def take_oldest(self) -> tuple[bytes, bytes] | None:
        """Handle and blob of the one whose time is over first."""
        return self._counted(self.store.take_oldest())

    def identified_untrusted(self, datagram: bytes, offset: int) -> bytes | None:
        """The handle that the record of type ``TLS12_CID`` at ``offset`` means, if there is such an association."""
        start = offset + CONNECTION_ID_OFFSET
        for length in self._id_lengths:
            handle = BY_CONNECTION_ID + datagram[start : start + length]
            if handle in self.store:
                return handle
        return None

    @property
    def any_by_path(self) -> bool:
        """Whether any association here is found by its path."""
        return self._by_path > 0

    def at(self, path: Hashable) -> bytes | None:
        """The handle of the association that is found by this path, as it has no connection ID."""
        if not self._by_path:
            return None
        handle = _path_handle(path)
        return handle if handle is not None and handle in self.store else None

    def last_heard_at(self, path: Hashable) -> list[bytes]:
        """The handles of associations that were last heard on this path, the latest first; not very many.

        The one that is found by this path is always among them: nobody else can be, as long as it is here.
        """
        if not len(self.store):
            return []
        handle = _path_handle(path)
        if handle is None:
            return []
        handles = self.store.handles_at(handle[len(BY_PATH) :], MAX_AT_ONE_PATH)
        if handle in self.store and handle not in handles:
            handles.append(handle)
        return handles

    def is_free(self, connection_id: bytes) -> bool:
        """Whether no frozen association could be meant by this ID."""
        return not any(BY_CONNECTION_ID + connection_id[:length] in self.store for length in self._id_lengths)

    def decode(self, blob: bytes, keys: tuple[bytes, ...]) -> SavedAssociation:
        """The association in ``blob``. Raises SnapshotError, also for one of a client, or of a later generation."""
        saved = decode_snapshot(blob, keys=keys)
        if saved.is_client:
            raise SnapshotError("the frozen association is a client's, not a server's")
        if saved.generation > self.generation:
            raise SnapshotError(
                f"the frozen association is of generation {saved.generation}, and this is {self.generation}: "
                "an old store has been put back"
            )
        return saved

    def is_good(self, saved: SavedAssociation) -> bool:
        """Whether a blob from outside is not known to be used up, or older than another one."""
        return saved.serial >= self._good_from.get(saved.server_random, 0)

    def remember(self, server_random: bytes, serial: int) -> None:
        """Of this association no blob with a lower serial is good any more."""
        self._good_from[server_random] = serial
        self._good_from.move_to_end(server_random)
        if len(self._good_from) > MAX_REMEMBERED:
            self._good_from.popitem(last=False)

    # --- checkpoints --------------------------------------------------------------------------------

    def note(self, handle: bytes, state: Connection | bytes | None) -> None:
        """An association has changed: it is live, or frozen as these bytes, or has ended."""
        if self.durable:
            self._changed[handle] = state
            if not isinstance(state, bytes):
                self._bounds.pop(handle, None)

    def hold_bound(self, handle: bytes, blob: bytes, reserved_until: int) -> None:
        """What the association just frozen under ``handle`` may use until its blob is confirmed."""
        if reserved_until < MAX_SEQUENCE_NUMBER:
            self._bounds[handle] = blob, reserved_until

    def bound_of(self, handle: bytes, saved: SavedAssociation) -> int:
        """How far an association that was just thawed may write."""
        if not self.durable:
            return MAX_SEQUENCE_NUMBER
        generations = self.generation + 1 - saved.generation
        bound = saved.write_sequence_number + RESERVE * generations
        return min(bound, self._bounds.get(handle, (b"", bound))[1])

    def checkpoint(self, keys: tuple[bytes, ...], limit: int | None) -> Checkpoint:
        """All that has changed since the last one, or the ``limit`` changes that have waited longest.

        What has a path that cannot be saved is not among it.
        """
        changed, self._changed = self._changed, {}
        if limit is not None and len(changed) > limit:
            self._changed, changed = changed, dict(islice(changed.items(), limit))
            for handle in changed:
                del self._changed[handle]
        else:
            self.reserve_low = False
        removed = [handle for handle, state in changed.items() if state is None]
        bounds = tuple((handle, self._bounds[handle]) for handle in removed if handle in self._bounds)
        checkpoint = Checkpoint([], removed, bounds)
        for handle, state in changed.items():
            if isinstance(state, bytes):
                checkpoint.saved.append(Saved(handle, state))
            elif state is not None and state.state is ConnectionState.CONNECTED:  # else its end will be noted
                try:
                    blob, bound = state.checkpoint(generation=self.generation, keys=keys)
                except SnapshotError:
                    continue
                checkpoint.saved.append(Saved(handle, blob, state, bound))
        return checkpoint

    def confirm(self, checkpoint: Checkpoint) -> None:
        """It is durable: what it reserves may be used."""
        for saved in checkpoint.saved:
            if saved.connection is not None:
                saved.connection.reserve_until(saved.reserved_until)
            elif self._bounds.get(saved.handle, (None,))[0] is saved.blob:
                del self._bounds[saved.handle]
        for handle, bound in checkpoint.bounds:
            if self._bounds.get(handle) is bound:
                del self._bounds[handle]

    # --- inside -------------------------------------------------------------------------------------

    def _counted(self, taken: tuple[bytes, bytes] | None) -> tuple[bytes, bytes] | None:
        if taken is not None:
            self._count(taken[0], -1)
        return taken

    def _count(self, handle: bytes, change: int) -> None:
        if handle.startswith(BY_PATH):
            self._by_path += change
            return
        length = len(handle) - len(BY_CONNECTION_ID)
        lengths = {**self._id_lengths, length: self._id_lengths.get(length, 0) + change}
        # Longest first: what begins like a shorter one is meant, if it is here.
        self._id_lengths = {
            known: lengths[known] for known in sorted(lengths, reverse=True) if lengths[known]
        }


def _path_handle(path: Hashable) -> bytes | None:
    try:
        return BY_PATH + encode_path(path)
    except SnapshotError:
        return None  # nothing on such a path has ever been frozen
