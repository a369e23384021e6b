"""What stands between handshakes and a key store that is slow, down, or asked by strangers.

A lookup is the one thing that an unauthenticated peer can have this host do elsewhere: prove an address, claim an identity, and
a database is asked. So:

**The attacker** has many addresses, claims any identity as often as the quotas let it, knows true identities (they cross the
network in clear), and can time every answer. **The store** may answer late, not at all, or wrongly.

What holds, and how:

- *A slow lookup holds up nobody else*: each is a task of its own, with a time-out. There are at most ``concurrency`` at once;
  the others wait in the order in which they came, so a flood can delay honest handshakes by its share, which the quotas per
  prefix bound, and never by more than ``timeout``: then they are refused, and come back.
- *One question per identity at a time* (single flight): a thousand handshakes that claim the same identity cost one lookup. A
  handshake that ends takes its own waiting with it, not the lookup, unless it was the last one to wait.
- *Unknown identities are remembered*, for ``negative_seconds`` from the answer on; asking again does not prolong it, so nobody can
  keep a key from working that was entered since. What is kept is a digest, at most ``negative_size`` of them, least recently
  used first out: claimed identities of 16 KiB fill no memory. Random identities, each claimed once, reach the store; their
  number is bounded by the quotas, and ``concurrency`` bounds how many it has at once.
- *The time of an answer does not tell whether an identity exists.* An answer from memory would be faster than one from the store,
  and only strangers are in memory. So it comes as late as one of the last lookups came.
- *A store that is down refuses all alike.* After a failed lookup nothing is answered from memory until one succeeds: else
  strangers could be told by ``decrypt_error`` from devices with ``internal_error``. For one whose record is damaged this
  does not hold: who claims that identity learns that it exists.
- *A store that is down is left alone*: after ``failures`` failed lookups in a row every handshake is refused at once, and one task
  asks again for the identity that failed last, with growing pauses and jitter (else many endpoints would ask in step).
- *A store that knows by itself that it is down says so* (``on_change``, if it has that attribute, is set to
  :meth:`GuardedStore.changed`): then nobody has to wait for a time-out to find out, nor for a pause when it is back.
- *Associations know nothing of all this*: keys are needed for handshakes only.

Left out: a memory of *known* identities. It would bridge short outages and spare some lookups, at the price of secrets in
memory, of a removed or rotated key that goes on working, and of a difference between devices during an outage. Rotation and
removal take effect with the next handshake.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

import trio

from endpoint.keystore import KeyDataError, StoreUnavailable
from endpoint.tables.lookup import LookupPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from endpoint.keystore import Keys, KeyStore

FIRST_PAUSE = 0.25
"""Seconds before the first attempt to reach a store that is down; each further one waits twice as long, up to ``retry``."""
DURATIONS = 64
"""Lookups whose time is remembered, for answers from memory to take as long."""
RESTART_PAUSE = 1.0
"""Seconds before a store whose ``run`` has failed is run again."""
OUTCOMES = (
    "known",
    "unknown",
    "cached",
    "joined",
    "too_long",
    "invalid",
    "failed",
    "timed_out",
    "crowded",
    "refused",
    "abandoned",
)
"""How questions end: answered by the store (the first two), from memory, together with another one, without asking because the
identity is too long; a damaged record, a failure, no answer in time, no place in time, refused because the store is down;
and lookups that nobody waits for any more."""


class GuardedStore:
    """See the module's text. A :class:`~endpoint.keystore.ManagedStore` around any key store.

    What a store answers at once is handed on at once: no task, and nothing is remembered.
    """

    def __init__(
        self,
        store: KeyStore,
        policy: LookupPolicy | None = None,
        *,
        trouble: Callable[..., None],
        clock: Callable[[], float] = trio.current_time,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """``trouble(what, **facts)`` hears of recovery and of a store whose ``run`` fails. Make it inside ``trio.run``."""
        self.store = store
        self.policy = policy or LookupPolicy()
        self._trouble = trouble
        self._clock = clock
        self._entropy = entropy
        self._places = trio.CapacityLimiter(self.policy.concurrency)
        self._flights: dict[bytes, _Flight] = {}
        self._unknown: OrderedDict[bytes, float] = OrderedDict()
        """Digests of unknown identities, and until when."""
        self._durations: deque[float] = deque(maxlen=DURATIONS)
        self._nursery: trio.Nursery | None = None
        self._failures = 0
        """Lookups that failed since the last answer."""
        self._reason = ""
        self._failed_last: bytes | None = None
        self._down_since: float | None = None
        self._went_down = trio.Event()
        self._outages = 0
        self.outcomes: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        if hasattr(store, "on_change"):
            store.on_change = self.changed

    # --- questions ---

    def lookup(self, identity: bytes) -> Keys | Awaitable[Keys]:
        """See :meth:`endpoint.keystore.KeyStore.lookup`."""
        if len(identity) > self.policy.longest_identity:
            self.outcomes["too_long"] += 1
            return ()
        if self._down_since is not None:
            self.outcomes["refused"] += 1
            raise StoreUnavailable(self._reason)
        if not self._failures and self._is_unknown(identity):
            self.outcomes["cached"] += 1
            return self._unknown_later()
        flight = self._flights.get(identity)
        if flight is None:
            try:
                answer = self.store.lookup(identity)
            except Exception as error:  # noqa: BLE001 - whatever a store raises, its other devices are served
                raise self._failed(identity, error) from None
            if not isinstance(answer, Awaitable):
                self.outcomes["known" if answer else "unknown"] += 1
                self._failures = 0
                return answer
            flight = self._take_off(identity, answer)
        else:
            self.outcomes["joined"] += 1
        flight.waiting += 1
        return self._wait(flight)

    async def _wait(self, flight: _Flight) -> Keys:
        try:
            await flight.over.wait()
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                self._land(flight)
                flight.scope.cancel()
        if flight.failure is not None:
            # Another one for each who waits: a traceback is of one task.
            raise type(flight.failure)(str(flight.failure))
        return flight.keys

    def _is_unknown(self, identity: bytes) -> bool:
        digest = _digest(identity)
        until = self._unknown.get(digest)
        if until is None:
            return False
        if self._clock() >= until:
            del self._unknown[digest]
            return False
        self._unknown.move_to_end(digest)
        return True

    async def _unknown_later(self) -> Keys:
        durations = self._durations
        chosen = int.from_bytes(self._entropy(2)) % len(durations) if durations else None
        await trio.sleep(0 if chosen is None else durations[chosen])
        return ()

    # --- lookups ---

    def _take_off(self, identity: bytes, answer: Awaitable[Keys]) -> _Flight:
        if self._nursery is None:
            _discard(answer)
            raise StoreUnavailable("the key store is not running")
        flight = self._flights[identity] = _Flight(identity)
        self._nursery.start_soon(self._fly, flight, answer)
        return flight

    async def _fly(self, flight: _Flight, answer: Awaitable[Keys]) -> None:
        began = self._clock()
        asked = False
        error: Exception | None = None
        try:
            with flight.scope, trio.move_on_after(self.policy.timeout) as patience:
                async with self._places:
                    asked = True
                    try:
                        flight.keys = await answer
                    except Exception as raised:  # noqa: BLE001 - as in lookup
                        error = raised
            if flight.scope.cancelled_caught:
                self.outcomes["abandoned"] += 1
            elif patience.cancelled_caught:
                flight.failure = self._timed_out(flight.identity, asked=asked)
            elif error is not None:
                flight.failure = self._failed(flight.identity, error)
            else:
                self._answered(flight, self._clock() - began)
        finally:
            if not asked:
                _discard(answer)
            self._land(flight)
            flight.over.set()

    def _land(self, flight: _Flight) -> None:
        """Nobody else joins it."""
        if self._flights.get(flight.identity) is flight:
            del self._flights[flight.identity]

    def _timed_out(self, identity: bytes, *, asked: bool) -> StoreUnavailable:
        if asked:
            self.outcomes["timed_out"] += 1
            self._note_failure(identity, f"no answer within {self.policy.timeout:g} seconds")
            return StoreUnavailable(self._reason)
        # The store is not to blame for those that it was never asked about.
        self.outcomes["crowded"] += 1
        return StoreUnavailable(
            f"no place within {self.policy.timeout:g} seconds: {self.policy.concurrency} lookups were under way"
        )

    def _failed(self, identity: bytes, error: Exception) -> StoreUnavailable:
        if isinstance(error, KeyDataError):
            self.outcomes["invalid"] += 1
            self._note_answer()
            return error
        self.outcomes["failed"] += 1
        self._note_failure(identity, str(error) if isinstance(error, StoreUnavailable) else repr(error))
        return StoreUnavailable(self._reason)

    def _answered(self, flight: _Flight, seconds: float) -> None:
        flight.failure = None
        self._durations.append(seconds)
        self._note_answer()
        if flight.keys:
            self.outcomes["known"] += 1
            return
        self.outcomes["unknown"] += 1
        if self.policy.negative_seconds:
            self._unknown[_digest(flight.identity)] = self._clock() + self.policy.negative_seconds
            while len(self._unknown) > self.policy.negative_size:
                self._unknown.popitem(last=False)

    # --- down and up again ---

    def _note_failure(self, identity: bytes, reason: str) -> None:
        self._failures += 1
        self._reason = reason
        self._failed_last = identity
        if self._failures >= self.policy.failures:
            self._note_outage()

    def _note_outage(self) -> None:
        if self._down_since is None:
            self._down_since = self._clock()
            self._outages += 1
            self._went_down.set()

    def changed(self, reason: str | None) -> None:
        """For stores that notice by themselves: it is down, and why; or with ``None``: it is not."""
        if reason is None:
            self._note_answer()
        else:
            self._reason = reason
            self._note_outage()
            self._trouble("key store unavailable", reason=reason)

    def _note_answer(self) -> None:
        self._failures = 0
        if self._down_since is not None:
            seconds, self._down_since = self._clock() - self._down_since, None
            self._went_down = trio.Event()
            self._trouble("key store recovered", seconds=round(seconds, 1), reason=self._reason)

    async def _bring_back(self) -> None:
        while True:
            await self._went_down.wait()
            attempt = 0
            while self._down_since is not None:
                await trio.sleep(self._pause(attempt))
                attempt += 1
                await self._ask_again()

    def _pause(self, attempt: int) -> float:
        longest = min(self.policy.retry, FIRST_PAUSE * 2.0 ** min(attempt, 20))
        return longest * (1 + int.from_bytes(self._entropy(2)) / 0xFFFF) / 2

    async def _ask_again(self) -> None:
        identity = self._failed_last
        if identity is None:
            return  # it went down by its own account, and will say when it is back
        try:
            answer = self.store.lookup(identity)
        except Exception as error:  # noqa: BLE001 - as in lookup
            self._failed(identity, error)
            return
        if isinstance(answer, Awaitable):
            flight = _Flight(identity)
            await self._fly(flight, answer)
        else:
            self._note_answer()

    # --- life ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the store, if it has a ``run``, and look things up until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._bring_back)
                run = getattr(self.store, "run", None)
                if run is not None:
                    nursery.start_soon(self._keep_running, run)
                task_status.started()
        finally:
            self._nursery = None

    async def _keep_running(self, run: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await run()
            except Exception as error:  # noqa: BLE001 - somebody else's store must not end the service
                self._trouble("key store failed", reason=repr(error))
            else:
                return
            await trio.sleep(RESTART_PAUSE)

    def forget(self) -> None:
        """Forget which identities are unknown: somebody says that keys have changed."""
        self._unknown.clear()

    async def check(self) -> str | None:
        """Why new devices would be refused now; ``None`` = they would not."""
        if self._nursery is None:
            return "the key store is not running"
        if self._down_since is not None:
            return f"the key store has been unavailable for {self._clock() - self._down_since:.0f} s: {self._reason}"
        look = getattr(self.store, "check", None)
        if look is None:
            return None
        reason: str | None = None
        with trio.move_on_after(self.policy.timeout) as patience:
            reason = await look()
        return f"no answer within {self.policy.timeout:g} seconds" if patience.cancelled_caught else reason

    def statistics(self) -> dict[str, Any]:
        """``lookups`` by outcome; gauges; ``store`` where it has figures of its own, or why they are not to be had."""
        inner = getattr(self.store, "statistics", None)
        own: dict[str, Any] = {}
        if inner is not None:
            try:
                own = {"store": inner()}
            except Exception as error:  # noqa: BLE001 - somebody else's store must not end the service
                own = {"store": {"failed": repr(error)}}
        return {
            "lookups": dict(self.outcomes),
            "in_flight": len(self._flights),
            "negative_cache": len(self._unknown),
            "down": int(self._down_since is not None),
            "outages": self._outages,
            **own,
        }


class _Flight:
    """One lookup and those who wait for it."""

    __slots__ = ("failure", "identity", "keys", "over", "scope", "waiting")

    def __init__(self, identity: bytes) -> None:
        self.identity = identity
        self.keys: Keys = ()
        self.failure: StoreUnavailable | None = StoreUnavailable("the key store has stopped")
        """``None`` = ``keys`` is the answer."""
        self.over = trio.Event()
        self.scope = trio.CancelScope()
        self.waiting = 0


def _digest(identity: bytes) -> bytes:
    """What is remembered of an identity. Collision-resistant, or a stranger could make a device unknown."""
    return hashlib.sha256(identity).digest()


def _discard(answer: Awaitable[Keys]) -> None:
    """A coroutine that nobody will await."""
    close = getattr(answer, "close", None)
    if close is not None:
        close()
