"""What becomes of the events that the core gives an engine: each goes to those whose concern it is.

::

    admission     handshakes: offered, asking for a credential, completed, failed
    population    associations: moved, frozen, back, ended
    observer      data, within their quotas; and what the two above tell it
    tap           secrets, and which handshakes there are, while something is captured

An observer or a tap that raises harms nobody else; see their protocols.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from sansdtls import (
    ConnectionFrozen,
    ConnectionOffered,
    ConnectionTerminated,
    ConnectionThawed,
    DataReceived,
    HandshakeCompleted,
    PathChanged,
    PathChangeRequested,
    PeerCertificateReceived,
    PeerRawKeyReceived,
    PskRequested,
    SecretDerived,
)

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from endpoint.admission import Admission
    from endpoint.observer import Observer
    from endpoint.population import Population
    from endpoint.quotas import Quotas
    from endpoint.roster import Roster
    from endpoint.tap import Tap
    from sansdtls import Connection, Event


class HandlingEngine:
    """The part of :class:`~endpoint.Engine` that hands events on."""

    _admission: Admission
    _dropped: Counter[str]
    _keep_alives: int
    _observer: Observer
    _observer_failures: int
    _population: Population
    _quotas: Quotas
    _roster: Roster
    tap: Tap | None

    if TYPE_CHECKING:

        def now(self) -> float: ...
        def settle(self) -> None: ...

    def confirm_path(self, request: PathChangeRequested) -> None:
        """For :class:`~endpoint.association.Association`."""
        now = self.now()
        self._take(request.connection.confirm_path(request, now=now), now)

    def _data_received(self, event: DataReceived, now: float) -> None:
        association = self._roster.get(event.connection)
        if association is None:
            return  # a newcomer that was not let in, whose data came with its Finished
        if not event.data:
            self._keep_alives += 1
        if self._quotas.limits_data:
            exceeded = association.budget.exceeded
            reason = self._quotas.admit_data(association.budget, len(event.data), now)
            if reason is not None:
                self._quotas.blame(reason, association, now)
                association.dropped += 1
                self._dropped["quota"] += 1
                if not exceeded:
                    self._tell(self._observer.refused, association.path, reason)
                return
        else:
            association.budget.refilled = now
        try:
            self._observer.received(association, event.data)
        except Exception as error:  # noqa: BLE001 - see Observer: it must not end the service for all others
            self._observer_failed("received", error)

    def _handle(self, event: Event, now: float) -> None:
        # A chain, not a table: the order is that of a connection's life, and mypy checks each branch.
        if isinstance(event, ConnectionOffered):
            connection = self._admission.offer(event, now)
            if connection is not None and self.tap is not None:
                self._tapped("began", connection, event)
        elif isinstance(event, PskRequested):
            if self.tap is not None:
                self._tapped("identified", event.connection, event.identity)
            self._admission.psk_requested(event, now)
        elif isinstance(event, PeerCertificateReceived | PeerRawKeyReceived):
            self._admission.peer_requested(event, now)
        elif isinstance(event, HandshakeCompleted):
            self._completed(event.connection, now)
        elif isinstance(event, DataReceived):
            self._data_received(event, now)
        elif isinstance(event, PathChanged):
            self._population.moved(event)
        elif isinstance(event, PathChangeRequested):
            self._population.move_requested(event)
        elif isinstance(event, ConnectionThawed):
            self._population.thawed(event, now)
        elif isinstance(event, ConnectionFrozen):
            self._population.frozen(event)
        elif isinstance(event, ConnectionTerminated):
            self._terminated(event)
        elif isinstance(event, SecretDerived) and self.tap is not None:
            self._tapped("secret", event, self._admission.identity_of(event.connection))
        # AlertReceived needs no answer: ConnectionTerminated carries its consequence.

    def _completed(self, connection: Connection, now: float) -> None:
        admitted = self._admission.complete(connection, now)
        if admitted is not None:
            handshake, identity = admitted
            self._population.completed(connection, handshake.path, handshake.prefix, identity, now)

    def _terminated(self, event: ConnectionTerminated) -> None:
        if not self._population.terminated(event.connection, event.cause):
            self._admission.end(event.connection, event.cause)
            if self.tap is not None:
                self._tapped("ended", event.connection)

    def _take(self, events: list[Event], now: float) -> None:
        for event in events:
            self._handle(event, now)
        self.settle()

    # --- observer and tap ---

    def _tapped(self, method: str, *arguments: object) -> None:
        """Tell the tap. One that fails is taken off: it hears every datagram, and would fail as often."""
        try:
            getattr(self.tap, method)(*arguments)
        except Exception as error:  # noqa: BLE001 - see Tap: nobody is to notice that there is one
            self.tap = None
            self._tell(self._observer.trouble, "tap failed", method=method, reason=type(error).__name__)

    def _tell(self, method: Callable[..., None], /, *arguments: object, **facts: object) -> None:
        try:
            method(*arguments, **facts)
        except Exception as error:  # noqa: BLE001 - see Observer
            self._observer_failed(method.__name__, error)

    def _observer_failed(self, method: str, error: Exception) -> None:
        self._observer_failures += 1
        with suppress(Exception):  # it cannot be told of trouble either; it is counted
            self._observer.trouble("observer failed", method=method, reason=repr(error))
