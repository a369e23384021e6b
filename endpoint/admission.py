"""Handshakes under way: who may begin one, who is asked about its credential, and who may stay.

The life of one, from its cookie to its end::

    offer              quotas of its prefix                 refused silently, or begun
    psk_requested      the key store is asked               now or later
    peer_requested     the verifier is asked                now or later
    complete           quotas of prefix and identity        an association; or it, or another one, has to go
    end                it failed, and is reported

What is asked for late ends with its handshake. Frozen associations count for the limit of an identity like live
ones: a stolen key must not fill the store either. The one to go is then the one that has slept longest, for it has
been silent for longer than any live one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import trio

from endpoint.association import CredentialKind
from endpoint.causes import with_offer
from endpoint.histogram import HANDSHAKE_SECONDS, Histogram
from endpoint.keystore.fingerprint import short_digest
from endpoint.lookups import Lookups
from endpoint.quotas import IdentityOverflow
from endpoint.verification import PeerRejected, Verifications
from sansdtls import ConnectionState, LocalClose

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from endpoint.addresses import Path
    from endpoint.keystore import KeyStore
    from endpoint.observer import Observer
    from endpoint.quotas import Prefix, Quotas
    from endpoint.roster import Roster
    from endpoint.sleepers import Sleepers
    from endpoint.verification import PeerRequest, Verify
    from sansdtls import Cause, Connection, ConnectionOffered, Event, FrozenStore, PskRequested, Server


@attrs.define(eq=False)
class Handshake:
    """What is remembered of a handshake under way; dropped with it."""

    path: Path
    prefix: Prefix
    replaces: Connection | None
    """Whose path it is on, and for whose sake it was admitted although the prefix may be full."""
    began: float
    """On the engine's clock."""
    offered: tuple[int, ...]
    """Cipher suites, for the operator who wonders why there is none in common."""
    identity: bytes | None = None
    """As claimed with a PSK, or as verified from a certificate or raw public key."""
    keys: Sequence[bytes] = attrs.field(default=(), repr=False)
    """What the key store has answered."""
    lookup: trio.CancelScope | None = None
    rejection: PeerRejected | None = None
    unwanted: bool = False
    """Closed by this side; its end is no failure to report."""


class Admission:
    """The handshakes of one engine."""

    def __init__(
        self,
        server: Server,
        *,
        roster: Roster,
        sleepers: Sleepers,
        store: FrozenStore,
        quotas: Quotas,
        keystore: KeyStore,
        verify: Verify,
        clock: Callable[[], float],
        observer: Observer,
        tell: Callable[..., None],
        handle: Callable[[Event, float], None],
        deliver: Callable[[list[Event], float], None],
        turn: Callable[[], Awaitable[None]],
    ) -> None:
        """``tell`` calls the observer; ``handle`` takes the events of an answer within a turn, ``deliver`` those of a late one, which waits for its ``turn``."""
        self._server = server
        self._roster = roster
        self._sleepers = sleepers
        self._store = store
        self._quotas = quotas
        self._observer = observer
        self._tell = tell
        self._handle = handle
        self._handshakes: dict[Connection, Handshake] = {}
        self._stopped = False
        self._clock = clock
        self._seconds = {
            result: Histogram(HANDSHAKE_SECONDS) for result in ("completed", "resumed", "failed")
        }
        self._none_left = trio.Event()
        self.nursery: trio.Nursery | None = None
        """Where late answers are waited for: the running engine's. Without one nobody is asked any more."""
        self.lookups = Lookups(
            keystore,
            clock=clock,
            deliver=deliver,
            report=self._lookup_failed,
            answered=self._keys_given,
            turn=turn,
        )
        self.verifications = Verifications(
            verify, clock=clock, decided=self._peer_decided, deliver=deliver, report=self._verification_failed
        )

    def __len__(self) -> int:
        """Handshakes under way."""
        return len(self._handshakes)

    @property
    def connections(self) -> Iterator[Connection]:
        """Theirs."""
        return iter(self._handshakes)

    def identity_of(self, connection: Connection) -> bytes | None:
        """Who is on the other side of a handshake under way, as far as is known."""
        handshake = self._handshakes.get(connection)
        return None if handshake is None else handshake.identity

    # --- the beginning ------------------------------------------------------------------------------

    def stop(self) -> None:
        """Refuse every new handshake from now on; those under way go on."""
        self._stopped = True

    def offer(self, offer: ConnectionOffered, now: float) -> Connection | None:
        """A client has proved its address: its connection, or ``None`` if it was refused."""
        path: Any = offer.path
        if self._stopped:
            self._server.refuse(offer)
            return None
        prefix = self._quotas.prefix_of(path[1])
        holder = self._roster.at(path)
        reason = self._quotas.admit_handshake(prefix, replaces=holder is not None, now=now)
        if reason is not None:
            self._server.refuse(offer)
            self._tell(self._observer.refused, path, reason)
            return None
        connection = self._server.accept(offer, now=now)
        self._handshakes[connection] = Handshake(
            path,
            prefix,
            None if holder is None else holder.connection,
            began=now,
            offered=offer.client_hello.cipher_suites,
        )
        return connection

    # --- credentials --------------------------------------------------------------------------------

    def psk_requested(self, request: PskRequested, now: float) -> None:
        """A client has named its identity."""
        self._handshakes[request.connection].identity = request.identity
        if self.nursery is not None:
            self._answered(request.connection, *self.lookups.answer(request, self.nursery, now=now), now)

    def peer_requested(self, request: PeerRequest, now: float) -> None:
        """A client has shown a certificate or raw public key, and that it has the private key."""
        if self.nursery is not None:
            self._answered(
                request.connection, *self.verifications.answer(request, self.nursery, now=now), now
            )

    def _answered(
        self, connection: Connection, events: list[Event], later: trio.CancelScope | None, now: float
    ) -> None:
        """Go on with what an answer brought about, or remember how to cancel the one that comes later."""
        handshake = self._handshakes.get(connection)
        if handshake is not None:
            handshake.lookup = later
        for event in events:
            self._handle(event, now)

    def _keys_given(self, connection: Connection, keys: Sequence[bytes]) -> None:
        self._handshakes[connection].keys = tuple(keys)  # the list is the store's

    def _peer_decided(self, request: PeerRequest, verdict: bytes | PeerRejected) -> None:
        handshake = self._handshakes[request.connection]
        if isinstance(verdict, PeerRejected):
            # Of a session that may not be resumed nothing is lost: the full handshake will tell.
            handshake.rejection = None if request.resumption else verdict
        else:
            handshake.identity = verdict

    def _lookup_failed(self, what: str, identity: bytes, reason: str) -> None:
        self._tell(self._observer.trouble, what, identity=identity, reason=reason)

    def _verification_failed(self, reason: str) -> None:
        self._tell(self._observer.trouble, "verifier failed", reason=reason)

    # --- the end ------------------------------------------------------------------------------------

    def complete(self, connection: Connection, now: float) -> tuple[Handshake, bytes] | None:
        """A handshake has succeeded: whose it is; ``None`` if that one may not have any more associations."""
        handshake = self._handshakes[connection]
        if self._is_one_too_many(handshake):
            reason = self._quotas.count_prefix_overflow(handshake.prefix, now)
            self._turn_away(connection, handshake, reason, now)
            return None
        kind = CredentialKind.of(connection.peer)
        identity = b""
        if kind is not CredentialKind.NONE:  # else: strangers, who share no name and so no limit either
            identity = handshake.identity or b""
            # Proved now, and not before: what a claim costs, the prefix has paid.
            too_often = self._quotas.admit_identity(identity, now)
            if too_often is not None:
                self._turn_away(connection, handshake, too_often, now)
                return None
            if not self._make_room(identity, handshake, connection, now):
                return None
        if kind in (CredentialKind.CERTIFICATE, CredentialKind.RAW_PUBLIC_KEY):
            connection.annotation = identity  # survives freezing; nobody verifies it again then
        elif kind is CredentialKind.PSK:
            connection.annotation = _digest_of_the_key(connection, handshake)  # so does this
        del self._handshakes[connection]
        resumed = connection.negotiated is not None and connection.negotiated.resumed
        self._seconds["resumed" if resumed else "completed"].observe(now - handshake.began)
        self._quotas.completed(handshake.prefix)
        self._note_end()
        return handshake, identity

    def _is_one_too_many(self, handshake: Handshake) -> bool:
        """Whether the association that it was to replace stays: another device's, which is found by its connection ID."""
        holder = handshake.replaces
        stays = holder is not None and holder.state is ConnectionState.CONNECTED
        return stays and self._quotas.prefix_is_over(handshake.prefix)

    def _turn_away(self, connection: Connection, handshake: Handshake, reason: str, now: float) -> None:
        handshake.unwanted = True
        connection.close(now=now)
        self._tell(self._observer.refused, handshake.path, reason)

    def _make_room(self, identity: bytes, handshake: Handshake, connection: Connection, now: float) -> bool:
        """Whether ``identity`` may have one association more; its oldest may have to go for that."""
        siblings, frozen = self._roster.of(identity), self._sleepers.of(identity)
        if not self._quotas.identity_is_full(len(siblings) + len(frozen)):
            return True
        frozen = self._without_lost(identity, frozen)
        if not self._quotas.identity_is_full(len(siblings) + len(frozen)):
            return True
        reason = self._quotas.count_identity_overflow(identity, now)
        if self._quotas.policy.identity_overflow is IdentityOverflow.NEWCOMER:
            self._turn_away(connection, handshake, reason, now)
            return False
        if frozen:  # silent for longer than any live one
            oldest = self._server.wake(frozen[0], now=now)
        else:
            # Out of the table at once: its end is an event of a later call, and the next newcomer must not
            # choose it again.
            association = min(siblings, key=lambda association: association.last_received)
            self._roster.disown(association)
            oldest = association.connection
        if oldest is not None:
            path = oldest.path
            oldest.close(now=now)
            self._tell(self._observer.refused, path, reason)
        return True

    def _without_lost(self, identity: bytes, frozen: list[bytes]) -> list[bytes]:
        """Those of ``frozen`` that are still there.

        Of one that was damaged in the store no event tells, and of one that was just woken to end a later one will.
        """
        for handle in frozen:
            if handle not in self._store:
                self._sleepers.remove(identity, handle)
        return self._sleepers.of(identity)

    def end(self, connection: Connection, cause: Cause) -> None:
        """A handshake has failed, or was not wanted."""
        handshake = self._handshakes.pop(connection)
        self._quotas.release(handshake.prefix)
        if handshake.lookup is not None:
            handshake.lookup.cancel()
        if not handshake.unwanted and not isinstance(cause, LocalClose):
            self._seconds["failed"].observe(self._clock() - handshake.began)
            claimed, rejection = handshake.identity, handshake.rejection
            told = with_offer(cause, handshake.offered)
            self._tell(self._observer.handshake_failed, handshake.path, claimed, told, rejection)
        self._note_end()

    def _note_end(self) -> None:
        if not self._handshakes:
            self._none_left.set()
            self._none_left = trio.Event()

    def seconds(self) -> dict[str, Any]:
        """How long handshakes took from a valid cookie to their end, by result."""
        return {result: histogram.statistics() for result, histogram in self._seconds.items()}

    async def wait_until_none(self, seconds: float) -> int:
        """Wait until none is under way, at most ``seconds``; how many are left."""
        with trio.move_on_after(seconds):
            while self._handshakes:
                await self._none_left.wait()
        return len(self._handshakes)


def _digest_of_the_key(connection: Connection, handshake: Handshake) -> bytes:
    """Names the pre-shared key that the handshake was made with."""
    peer = connection.peer
    index = None if peer is None else peer.psk_key_index
    return b"" if index is None else short_digest(handshake.keys[index])
