"""What becomes of associations whose key is not accepted any more: ``credentials.when_removed`` and ``when_rotated``.

An association was made with a key, and lives on keys of its own. When the identity is removed from the key store (a
device was stolen) or its key is taken away (a rotation is over), nothing about the association changes by itself. The
operator says what is to happen, for each of the two::

    keep           nothing (the default): a rotation disturbs nobody, and a removal keeps a device from coming back
    rehandshake    close_notify, spread over ``rehandshake_spread`` seconds; frozen ones when they wake
    drop           close_notify at once; frozen ones are woken for it

Looked at are: after a reload, those whose keys have changed, or where the store cannot tell which, all; after a start
with ``drop``, all that were taken over; and each that wakes. The datagram that woke it is still handed on. A store that
cannot answer removes nobody: after a reload it is asked again until it can, of one that wakes nothing more is asked. Nor
does a record that cannot be used; the others are looked at nevertheless.

Facts of the log::

    associations_ended    info    live, frozen; of identities that are removed, rotated; within so many seconds; after
                                  what ("start" or "reload")
    ended_at_waking       info    identity, why: "removed" or "rotated"
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

import trio

from endpoint.association import CredentialKind
from endpoint.ending import Ended, Ending, is_over
from endpoint.keystore import KeyDataError, StoreUnavailable, why_no_keys
from endpoint.keystore.file import FileKeyStore
from endpoint.keystore.fingerprint import fingerprint
from endpoint.observer import Quiet
from endpoint.text import show_bytes
from sansdtls import ConnectionState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from structlog.typing import FilteringBoundLogger

    from endpoint.association import Association
    from endpoint.credentials import Credentials
    from endpoint.engine import Engine
    from endpoint.keystore import Keys, KeyStore

BATCH = 64
"""Identities looked at before other tasks get a turn."""
RETRY_PAUSE = 30.0
"""Seconds until a store that was down is asked again, after a reload."""
MAX_QUESTIONS = 10_000
"""Associations that have woken and wait for the key store; more stay as they are until they wake again."""


class Standing(Quiet):
    """An observer that ends what has lost its standing."""

    def __init__(
        self,
        policy: Credentials,
        keystore: Callable[[], KeyStore],
        *,
        log: FilteringBoundLogger,
        trouble: Callable[..., None],
    ) -> None:
        """``keystore`` gives the one in use. Set ``engine`` before anything is heard."""
        self.engine: Engine | None = None
        self._removed = None if policy.when_removed == "keep" else Ending(policy.when_removed)
        self._rotated = None if policy.when_rotated == "keep" else Ending(policy.when_rotated)
        self._within = policy.rehandshake_spread
        self._keystore = keystore
        self._log = log
        self._trouble = trouble
        self._ask, self._asked = trio.open_memory_channel["tuple[Association, Awaitable[Keys]]"](
            MAX_QUESTIONS
        )
        self._unasked = 0
        self._told = self._down = False
        self._reviews: list[tuple[Iterable[bytes] | None, str]] = []
        self._review_due = trio.Event()

    @property
    def acts(self) -> bool:
        """Whether anything is to happen at all."""
        return self._removed is not None or self._rotated is not None

    # --- after a start, after a reload --------------------------------------------------------------

    def taken_over(self) -> None:
        """After a start: end what was taken over and has no standing; with ``rehandshake``, when it wakes."""
        if Ending.DROP in (self._removed, self._rotated):
            self._request(None, "start")

    def reloaded(self, identities: Iterable[bytes] | None) -> None:
        """After a reload: the keys of these identities have changed, or who knows whose."""
        if self.acts:
            self._request(identities, "reload")

    def _request(self, identities: Iterable[bytes] | None, after: str) -> None:
        self._reviews.append((identities, after))
        self._review_due.set()

    async def run(self) -> None:
        """Do what is asked for here, and judge those about which the store answers late, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._judge_late)
            while True:
                while self._reviews:
                    await self.review(*self._reviews.pop(0))
                self._review_due = trio.Event()
                await self._review_due.wait()

    async def review(self, identities: Iterable[bytes] | None, after: str) -> Ended:
        """Look at the associations of these identities, or of all that have any."""
        ended = Ended(0, 0)
        removed = rotated = 0
        engine = self.engine
        if not self.acts or engine is None:
            return ended
        for number, identity in enumerate(engine.keyed_identities() if identities is None else identities, 1):
            if not number % BATCH:
                await trio.lowlevel.checkpoint()
            if not any(engine.keyed_associations(identity)):
                continue
            keys = await self._insist(identity)
            how = None if keys is None else (self._rotated if keys else self._removed)
            if keys is None or how is None:
                continue
            one = engine.end_associations(identity, _accepted(keys), how, within=self._within)
            if any(one):
                removed += not keys
                rotated += bool(keys)
            ended = Ended(ended.live + one.live, ended.frozen + one.frozen)
        if any(ended):
            self._log.info(
                "associations_ended",
                live=ended.live,
                frozen=ended.frozen,
                removed=removed,
                rotated=rotated,
                within=self._within if ended.live and self._spreads else 0.0,
                after=after,
            )
        return ended

    @property
    def _spreads(self) -> bool:
        return Ending.REHANDSHAKE in (self._removed, self._rotated)

    async def _keys(self, identity: bytes, answer: Keys | Awaitable[Keys] | None = None) -> Keys | None:
        """``None`` = the store cannot say."""
        try:
            if answer is None:
                answer = self._keystore().lookup(identity)
            keys = await answer if isinstance(answer, Awaitable) else answer
            _require_keys(keys)
        except Exception as error:  # noqa: BLE001 - whatever a store raises, nobody is removed for it
            self._not_known(identity, error)
            return None
        self._told = False
        return keys

    async def _insist(self, identity: bytes) -> Keys | None:
        """The same, however long the store is down; ``None`` = it never will say."""
        while True:
            keys = await self._keys(identity)
            if keys is not None or not self._down:
                return keys
            await trio.sleep(RETRY_PAUSE)

    def _not_known(self, identity: bytes, error: Exception) -> None:
        # A damaged record is that way until somebody mends it; the others must not wait for that.
        self._down = isinstance(error, StoreUnavailable) and not isinstance(error, KeyDataError)
        if not self._told:
            # Once: the same store is down for many.
            self._told = True
            self._trouble("standing not known", identity=show_bytes(identity), reason=repr(error))

    # --- when one wakes -----------------------------------------------------------------------------

    def thawed(self, association: Association) -> None:
        """A frozen association is back."""
        if not self.acts or association.kind is not CredentialKind.PSK:
            return
        if association.connection.state is not ConnectionState.CONNECTED:
            return  # woken in order to end
        try:
            answer = self._keystore().lookup(association.identity)
            if not isinstance(answer, Awaitable):
                _require_keys(answer)
        except Exception as error:  # noqa: BLE001 - as above
            self._not_known(association.identity, error)
            return
        if not isinstance(answer, Awaitable):
            self._judge(association, answer)
            return
        try:
            self._ask.send_nowait((association, answer))
        except trio.WouldBlock:
            self._unasked += 1
            getattr(answer, "close", lambda: None)()  # a coroutine that nobody awaits complains

    def completed(self, association: Association) -> None:
        """A handshake may have begun before its key was taken away, which a file can tell."""
        if isinstance(self._keystore(), FileKeyStore):
            self.thawed(association)

    async def _judge_late(self) -> None:
        async for association, answer in self._asked:
            keys = await self._keys(association.identity, answer)
            if keys is not None and association.connection.state is ConnectionState.CONNECTED:
                self._judge(association, keys)

    def _judge(self, association: Association, keys: Keys) -> None:
        how, why = (self._rotated, "rotated") if keys else (self._removed, "removed")
        if how is not None and is_over(association.key_digest, _accepted(keys)):
            self._log.info("ended_at_waking", identity=show_bytes(association.identity), why=why)
            association.close()

    def statistics(self) -> dict[str, Any]:
        """Counters."""
        return {"standings_unasked": self._unasked}


def _require_keys(answer: object) -> None:
    wrong = why_no_keys(answer)
    if wrong is not None:
        raise TypeError(wrong)


def _accepted(keys: Keys) -> list[str] | None:
    """Fingerprints; ``None`` for an identity that is not known any more."""
    return [fingerprint(key) for key in keys] or None
