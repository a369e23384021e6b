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

Where associations go, the first there is of: ``state.handoff_file``; memory in the service manager; nowhere. The
manager keeps its copy through a restart, but (unless ``FileDescriptorStorePreserve=yes``) not through a stop and a start.
Devices are not told that the service stops where their associations are handed over, so after such a stop they
find out by themselves.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

from endpoint.clock import SYSTEM, LastingClock, time_since
from endpoint.handoff import STORED_ASSOCIATIONS, Facts, HandoffError, HandoffFile, HandoffMemory
from endpoint.listening import STORED_SOCKET, inherited_sockets
from endpoint.systemd import PROBE
from sansdtls import SnapshotError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from structlog.typing import FilteringBoundLogger

    from endpoint.clock import ClockSources
    from endpoint.config import State
    from endpoint.handoff import Draft, Handoff
    from endpoint.listening import HandedSocket, Listeners
    from endpoint.sockets import UdpSocket
    from endpoint.systemd import Descriptor, Supervision


class Restores(Protocol):
    """What is asked of the engine at the start."""

    def restore(self, blob: bytes, *, saved: bool = False) -> object:
        """Take a saved association in, asleep. ``SnapshotError`` for one that cannot be used."""
        ...


class Freezes(Protocol):
    """What is asked of the engine at the end."""

    @property
    def sockets(self) -> tuple[UdpSocket, ...]:
        """In the order of their indices."""
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
        handed down and are no use.
        """
        self._log = log
        self._notifier = supervision.notifier
        self._keys = tuple(keys)
        self._opened = contextlib.ExitStack()
        self._found: list[Handoff] = []
        self._not_restored: list[str] = []
        self._file = None if state.handoff_file is None else HandoffFile(state.handoff_file, keys)
        self._memory: HandoffMemory | None = None
        self.sockets: tuple[HandedSocket, ...] = self._sort(supervision.descriptors)
        """Handed down, of this service's port or not; the caller's."""
        for place in (self._memory, self._file):
            if place is not None:
                self._look(place, state.handoff_max_age, sources)
        self.clock = LastingClock.resume(*(found.facts.anchor for found in self._found), sources=sources)
        """The time, which goes on from the process before."""
        self.listeners: tuple[str, ...] = self._found[0].facts.listeners if self._found else ()
        """The addresses that the process before served, by index."""

    def _sort(self, descriptors: Sequence[Descriptor]) -> tuple[HandedSocket, ...]:
        sockets = []
        for descriptor in descriptors:
            if descriptor.name == PROBE:
                descriptor.close()
            elif descriptor.name != STORED_ASSOCIATIONS:
                sockets.append(descriptor)
            elif self._memory is None:
                self._memory = HandoffMemory(descriptor.number, self._keys)
                self._opened.callback(self._memory.close)
            else:
                descriptor.close()
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

    def restore(self, engine: Restores) -> None:
        """Use up what was found, and put it into ``engine``. What cannot be used is told in the log, and counted.

        Does not await: a signal in between must not end a process that holds what nobody else has.
        """
        for reason in self._not_restored:
            self._log.warning("associations_not_restored", reason=reason)
        for found in self._found:
            restored = refused = 0
            first_reason = None
            try:
                found.use_up()
                for blob in found.blobs():
                    try:
                        engine.restore(blob)
                        restored += 1
                    except SnapshotError as error:
                        refused += 1
                        first_reason = first_reason or str(error)
            except (HandoffError, OSError, ValueError) as error:
                self._log.warning("associations_not_restored", reason=str(error))
            found.close()
            if restored or refused:
                why = {} if first_reason is None else {"first_reason": first_reason}
                self._log.info(
                    "restored", associations=restored, refused=refused, **why, **{"from": found.where}
                )
        self._found.clear()

    def prepare(self, listeners: Listeners) -> None:
        """Have the manager keep what the next process needs, as far as it keeps anything. Blocks for a moment."""
        notifier = self._notifier
        if listeners.given_up:
            self._log.info("sockets_given_up", addresses=list(listeners.given_up))
            notifier.forget(STORED_SOCKET)
        if self._file is not None and self._memory is not None:
            # From a time when no file was configured. It has been used by now.
            notifier.forget(STORED_ASSOCIATIONS)
            self._memory.close()
            self._memory = None
        if self._memory is None and self._file is None and notifier.keeps_descriptors():
            self._memory = HandoffMemory.create(self._keys)
            self._opened.callback(self._memory.close)
            notifier.store(STORED_ASSOCIATIONS, self._memory.descriptor)
        if listeners.bound_here and self.to is not None:
            notifier.store(STORED_SOCKET, *(udp.fileno() for udp in listeners.bound_here))

    @property
    def to(self) -> str | None:
        """Where associations are handed over to; ``None`` = nowhere, so devices are to be told of a stop."""
        place = self._file or self._memory
        return None if place is None else place.where

    def begin(self, associations: int) -> Draft:
        """Open the place for about so many; :class:`~endpoint.handoff.HandoffError` if there is none."""
        place = self._file or self._memory
        if place is None:
            raise HandoffError(
                "there is nothing to hand over to; remedy: state.handoff_file, or FileDescriptorStoreMax= in the unit"
            )
        return place.begin(associations)

    def hand_over(self, draft: Draft, engine: Freezes) -> int:
        """Freeze everything into ``draft``; how many. The engine must not be running any more.

        :class:`~endpoint.handoff.HandoffError` if it could not be written; what was frozen is then lost.
        """
        facts = Facts(anchor=self.clock.anchor(), listeners=tuple(udp.local_text for udp in engine.sockets))
        try:
            return draft.write(facts, engine.freeze_all())
        except OSError as error:
            raise HandoffError(f"{self.to}: {(error.strerror or str(error)).lower()}") from None
        finally:
            draft.close()

    def close(self) -> None:
        """Close what was opened; the manager keeps its copies."""
        self._opened.close()
