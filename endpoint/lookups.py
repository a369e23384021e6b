"""Key lookups: answers from the key store, now or later, for handshakes that wait for them.

No bound of its own is needed on late lookups: there is one per handshake, it is cancelled when the
handshake ends, and ``Limits.max_half_open`` and ``RetransmitPolicy.handshake_timeout`` bound those. But many may be
answered at once, so each waits for its ``turn`` then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING

import trio

from endpoint.histogram import LOOKUP_SECONDS, Histogram
from endpoint.keystore import StoreUnavailable, why_no_keys
from sansdtls import AlertDescription, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from endpoint.keystore import Keys, KeyStore
    from sansdtls import Connection, Event, PskRequested


class Lookups:
    """Answers ``PskRequested`` events.

    A store that cannot say ends the handshake with ``internal_error``, so that the device comes back. Whatever else a store does
    wrong becomes "unknown identity". Each is counted and reported.
    """

    def __init__(
        self,
        store: KeyStore,
        *,
        clock: Callable[[], float],
        deliver: Callable[[list[Event], float], None],
        report: Callable[[str, bytes, str], None],
        answered: Callable[[Connection, Sequence[bytes]], None] = lambda _connection, _keys: None,
        turn: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    ) -> None:
        """``deliver(events, now)`` gets what a late answer brings about; ``report(what, identity, reason)`` each failure.

        ``answered`` hears of the keys that a connection is given, before anything comes of it. ``turn`` is awaited before
        the handshake goes on with a late answer.
        """
        self.store = store
        """May be replaced at any time; lookups under way finish with the one before."""
        self.pending = 0
        """Late lookups under way (a gauge)."""
        self.failures = 0
        """Lookups that failed."""
        self.unavailable = 0
        """Handshakes refused because the store could not say."""
        self.seconds = Histogram(LOOKUP_SECONDS)
        """How long the store took, failures included; not those whose handshake ended first."""
        self._clock = clock
        self._deliver = deliver
        self._report = report
        self._answered = answered
        self._turn = turn

    def answer(
        self, request: PskRequested, nursery: trio.Nursery, *, now: float
    ) -> tuple[list[Event], trio.CancelScope | None]:
        """Answer at once: what came of it; or start a task: the scope that ends it with its handshake."""
        answer: Keys | Awaitable[Keys]
        began = self._clock()
        try:
            answer = self.store.lookup(request.identity)
        except StoreUnavailable as error:
            return self._refuse(request, error, now), None
        except Exception as error:  # noqa: BLE001 - one peer's lookup must not end the service for all
            self._failed(request, repr(error))
            answer = ()
        if not isinstance(answer, Awaitable):
            self.seconds.observe(self._clock() - began)
            return self._provide(request, answer, now), None
        scope = trio.CancelScope()
        nursery.start_soon(self._look_up, request, answer, scope, began)
        return [], scope

    async def _look_up(
        self, request: PskRequested, answer: Awaitable[Keys], scope: trio.CancelScope, began: float
    ) -> None:
        keys: Keys = ()
        refusal: StoreUnavailable | None = None
        self.pending += 1
        try:
            with scope:
                try:
                    keys = await answer
                except StoreUnavailable as error:
                    refusal = error
                except Exception as error:  # noqa: BLE001 - as above
                    self._failed(request, repr(error))
                self.seconds.observe(self._clock() - began)
                await self._turn()
        finally:
            self.pending -= 1
        if not scope.cancel_called:  # nor was it too late to be cancelled, as the answer had come already
            now = self._clock()
            events = (
                self._provide(request, keys, now) if refusal is None else self._refuse(request, refusal, now)
            )
            self._deliver(events, now)

    def _refuse(self, request: PskRequested, error: StoreUnavailable, now: float) -> list[Event]:
        self.unavailable += 1
        self._report(error.what, request.identity, str(error))
        # RFC 5246 §7.2.2: internal_error "makes it impossible to continue" and accuses nobody.
        return request.connection.refuse_psk(request, AlertDescription.INTERNAL_ERROR, now=now)

    def _provide(self, request: PskRequested, keys: Keys, now: float) -> list[Event]:
        wrong = why_no_keys(keys)
        if wrong is not None:
            self._failed(request, wrong)
            keys = ()
        self._answered(request.connection, keys)
        try:
            return request.connection.provide_psk(request, keys, now=now)
        except UsageError as error:
            self._failed(request, str(error))
            return request.connection.provide_psk(request, (), now=now)

    def _failed(self, request: PskRequested, reason: str) -> None:
        self.failures += 1
        self._report("key store failed", request.identity, reason)
