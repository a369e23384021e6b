"""What a run of the service takes over from the one before, and what it leaves to the next.

::

    start     find what was handed over, and verify it          nothing is used yet: the port may be taken
              the clock goes on from its anchor
              sockets: handed down, or bound, in the order in which paths name them
              use up what was found, and restore it             from here on a stop hands it over again
              have the manager keep sockets and memory          whether it keeps anything is seen now
    stop      open the place to hand over to                    if that fails, devices are told as ever
              no new handshakes; those under way get a moment
              stop receiving                                    what comes now waits in the sockets
              freeze everything and write it

Where associations go, the first there is of: ``state.file``, where they are all along, so that only the last changes
have to be written; ``state.handoff_file``; memory in the service manager; nowhere. The
manager keeps its copy through a restart, but (unless ``FileDescriptorStorePreserve=yes``) not through a stop and a start.
Devices are not told that the service stops where their associations are handed over, so after such a stop they
find out by themselves.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

from endpoint.clock import SYSTEM, AnchorError, LastingClock, time_since
from endpoint.handoff import Facts, HandoffError
from endpoint.handoff_places import STORED_ASSOCIATIONS, HandoffFile, HandoffMemory
from endpoint.listening import STORED_SOCKET, inherited_sockets
from endpoint.state.behind import WriteBehind
from endpoint.state.sqlite import AssociationFile
from endpoint.supervised import LongWork
from endpoint.text import show_text
from sansdtls import SnapshotError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from structlog.typing import FilteringBoundLogger

    from endpoint.clock import ClockSources
    from endpoint.handoff import Draft, Handoff
    from endpoint.listening import HandedSocket, Listeners
    from endpoint.sockets import UdpSocket
    from endpoint.systemd import Descriptor, Supervision
    from endpoint.tables.state import State
    from sansdtls import Checkpoint


_OURS = "sansdtls-"
"""How the names of what this program stores begin."""


class Restores(Protocol):
    """What is asked of the engine at the start."""

    def restore(self, blob: bytes, *, saved: bool = False, unsealed: bool = False) -> object:
        """Take a saved association in, asleep. ``SnapshotError`` for one that cannot be used."""
        ...


class Keeps(Protocol):
    """What is asked of it to keep associations while it runs, and to hand them over at the end."""

    @property
    def sockets(self) -> tuple[UdpSocket, ...]:
        """In the order of their indices."""
        ...

    on_checkpoint_due: Callable[[], None] | None

    @property
    def checkpoint_due(self) -> bool:
        """See ``sansdtls.Server``."""
        ...

    def checkpoint(self, *, limit: int | None = None) -> Checkpoint:
        """See ``sansdtls.Server``."""
        ...

    def confirm(self, checkpoint: Checkpoint) -> None:
        """See ``sansdtls.Server``."""
        ...

    def freeze_all(self) -> Iterator[bytes]:
        """Every association, once; the engine forgets them."""
        ...


class Succession:
    """One run's place between the last and the next. Close it."""

    def __init__(
        self,
        state: State,
        *,
        keys: Sequence[bytes],
        supervision: Supervision,
        log: FilteringBoundLogger,
        sources: ClockSources = SYSTEM,
    ) -> None:
        """Look at everything that is there; nothing is used yet. Make it inside ``trio.run``.

        ``keys`` are ``dtls.snapshot_keys``. :class:`~endpoint.systemd.SupervisionError` for descriptors that were
        handed down and are no use, :class:`~endpoint.state.sqlite.StateFileError` for a database that is none.
        """
        self._log = log
        self._notifier = supervision.notifier
        self._long_work = LongWork(supervision.notifier)
        self._keys = tuple(keys)
        self._opened = contextlib.ExitStack()
        self._found: list[Handoff] = []
        self._not_restored: list[str] = []
        self._state = state
        self._saved: AssociationFile | None = None
        self._behind: WriteBehind[Checkpoint] | None = None
        self._draft: Draft | None = None
        self._addresses: tuple[str, ...] = ()
        self._file = None if state.handoff_file is None else HandoffFile(state.handoff_file, keys)
        self._memory: HandoffMemory | None = None
        self.sockets: tuple[HandedSocket, ...] = self._sort(supervision.descriptors)
        """Handed down, of this service's port or not; the caller's."""
        for place in (self._memory, self._file):
            if place is not None:
                self._look(place, state.handoff_max_age, sources)
        anchors = [found.facts.anchor for found in self._found]
        if state.store == "sqlite" and state.file is not None:
            self._saved = self._opened.enter_context(AssociationFile(state.file))
            anchors += self._anchor_of(self._saved, sources)
        self.clock = LastingClock.resume(*anchors, sources=sources)
        """The time, which goes on from the process before."""
        if self._found:
            self._addresses = self._found[0].facts.listeners

    @property
    def listeners(self) -> tuple[str, ...]:
        """The addresses that the processes before served, by index."""
        return self._addresses

    def _sort(self, descriptors: Sequence[Descriptor]) -> tuple[HandedSocket, ...]:
        sockets = []
        for descriptor in descriptors:
            if descriptor.name == STORED_ASSOCIATIONS and self._memory is None:
                self._memory = HandoffMemory(descriptor.number, self._keys)
                self._opened.callback(self._memory.close)
            elif descriptor.name == STORED_SOCKET or not descriptor.name.startswith(_OURS):
                sockets.append(descriptor)
            else:
                # From a probe that was cut off, or from another version of this program.
                descriptor.close()
                if descriptor.name != STORED_ASSOCIATIONS:
                    self._notifier.forget(descriptor.name)
        return inherited_sockets(sockets)

    def _look(self, place: HandoffFile | HandoffMemory, max_age: float | None, sources: ClockSources) -> None:
        try:
            found = place.find()
            if found is None:
                return
            age = time_since(found.facts.anchor, sources)
            if max_age is not None and age > max_age:
                found.close()
                raise HandoffError(
                    f"{place.where}: is {age:.0f} s old, more than state.handoff_max_age; remedy: remove it, the devices "
                    "handshake again"
                )
        except (HandoffError, ValueError) as error:
            self._not_restored.append(str(error))
        else:
            self._found.append(self._opened.enter_context(found))

    def _anchor_of(self, saved: AssociationFile, sources: ClockSources) -> list[bytes]:
        anchor = saved.anchor
        if not anchor:
            return []  # a new file
        # What the first versions wrote is the clock's anchor alone, without the sockets' indices.
        with contextlib.suppress(ValueError):
            facts = Facts.from_bytes(anchor)
            anchor, self._addresses = facts.anchor, facts.listeners
        try:
            time_since(anchor, sources)
        except AnchorError as error:
            self._log.warning("clock_begins_anew", reason=f"{show_text(str(saved.path))}: {error}")
            return []
        return [anchor]

    @property
    def generation(self) -> int:
        """How many processes have opened the database, with this one; 0 without one."""
        return self._saved.generation if self._saved else 0

    @property
    def durable(self) -> bool:
        """Whether there is a database, and so the engine has to make checkpoints."""
        return self._saved is not None

    def restore(self, engine: Restores) -> None:
        """Use up what was found, and put it into ``engine``. What cannot be used is told in the log, and counted.

        Does not await: a signal in between must not end a process that holds what nobody else has.
        """
        for reason in self._not_restored:
            self._log.warning("associations_not_restored", reason=reason)
        for found in self._found:
            try:
                found.use_up()
                self._put_into(engine, found.blobs(), found.where, unsealed=not found.keyed)
            except (HandoffError, OSError, ValueError) as error:
                self._log.warning("associations_not_restored", reason=str(error))
            found.close()
        self._found.clear()
        if self._saved is not None:
            rows = (blob for _, blob in self._saved.rows())
            where = show_text(str(self._saved.path))
            self._put_into(engine, rows, where, saved=True)
            if self._saved.rows_damaged:
                self._log.warning("state_rows_damaged", rows=self._saved.rows_damaged, file=where)

    def _put_into(
        self,
        engine: Restores,
        blobs: Iterator[bytes],
        where: str,
        *,
        saved: bool = False,
        unsealed: bool = False,
    ) -> None:
        restored = refused = 0
        why: dict[str, str] = {}
        try:
            for blob in self._long_work.over(blobs):
                try:
                    engine.restore(blob, saved=saved, unsealed=unsealed)
                    restored += 1
                except SnapshotError as error:
                    refused += 1
                    why.setdefault("first_reason", str(error))
        finally:
            if restored or refused:
                facts = {"associations": restored, "refused": refused, **why, "from": where}
                self._log.info("restored", **facts)

    def prepare(self, listeners: Listeners) -> None:
        """Have the manager keep what the next process needs, as far as it keeps anything. Blocks for a moment."""
        notifier = self._notifier
        self._addresses = listeners.addresses
        if listeners.given_up:
            self._log.info("sockets_given_up", addresses=list(listeners.given_up))
            notifier.forget(STORED_SOCKET)
        elsewhere = self._file is not None or self._saved is not None
        if elsewhere and self._memory is not None:
            # From a time when nothing else was configured. It has been used by now.
            notifier.forget(STORED_ASSOCIATIONS)
            self._memory.close()
            self._memory = None
        if self._memory is None and not elsewhere and notifier.keeps_descriptors():
            self._memory = HandoffMemory.create(self._keys)
            self._opened.callback(self._memory.close)
            notifier.store(STORED_ASSOCIATIONS, self._memory.descriptor)
        if listeners.bound_here and self.to is not None:
            notifier.store(STORED_SOCKET, *(udp.fileno() for udp in listeners.bound_here))

    @property
    def to(self) -> str | None:
        """Where associations are handed over to; ``None`` = nowhere, so devices are to be told of a stop."""
        if self._saved is not None:
            return show_text(str(self._saved.path))
        place = self._file or self._memory
        return None if place is None else place.where

    def keep(self, engine: Keeps, trouble: Callable[..., None]) -> None:
        """From now on it is the associations of ``engine`` that the database has; ``trouble`` hears when it has not."""
        if self._saved is not None:
            self._behind = WriteBehind(
                engine,
                self._saved,
                interval=self._state.checkpoint_interval,
                anchor=lambda: self._facts().to_bytes(),
                trouble=trouble,
            )
            engine.on_checkpoint_due = self._behind.hurry

    async def run(self) -> None:
        """Keep the database up to date until cancelled; without one there is nothing to do."""
        if self._behind is not None:
            await self._behind.run()

    async def flush(self, seconds: float) -> bool:
        """Write the last changes to the database, if there is one; whether they are there within ``seconds``."""
        return self._behind is None or await self._behind.flush(seconds)

    def begin(self, associations: int) -> None:
        """Open the place for about so many; :class:`~endpoint.handoff.HandoffError` if there is none."""
        if self._saved is not None:
            return
        place = self._file or self._memory
        if place is None:
            raise HandoffError(
                "there is nothing to hand over to; remedy: state.handoff_file, or FileDescriptorStoreMax= in the unit"
            )
        self._draft = place.begin(associations)
        self._opened.callback(self._draft.close)

    async def hand_over(self, engine: Keeps, *, associations: int, seconds: float) -> int:
        """Freeze everything into what :meth:`begin` has opened; how many. The engine must not be running any more.

        ``associations``: how many there are. A database has to take the last changes within ``seconds``.
        :class:`~endpoint.handoff.HandoffError` if it could not be written; what was frozen is then lost, and of a
        database the last changes.
        """
        if self._draft is None:
            if await self.flush(seconds):
                return associations
            raise HandoffError(
                f"{self.to}: the last changes were not written within {seconds:g} s; those written before are used"
            )
        try:
            return self._draft.write(self._facts(), self._long_work.over(engine.freeze_all()))
        except OSError as error:
            raise HandoffError(f"{self.to}: {(error.strerror or str(error)).lower()}") from None
        finally:
            self._draft.close()

    def _facts(self) -> Facts:
        return Facts(anchor=self.clock.anchor(), listeners=self._addresses)

    def statistics(self) -> dict[str, Any]:
        """Counters of the database; empty without one."""
        return {} if self._behind is None else self._behind.statistics()

    def close(self) -> None:
        """Close what was opened; the manager keeps its copies."""
        self._opened.close()
