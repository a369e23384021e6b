"""The engine: one ``Server`` on one or more UDP sockets.

The tasks, however many peers there are::

    per socket   receive    wait until readable, drain a turn, hand events out, send what came of it
                 write      sleeps; sends what the kernel's full buffer refused
    in all       timers     one cancel scope whose deadline is the server's next timeout
    per lookup   look up    only where a key store or a verifier answers later; ends with its handshake at
                            the latest

After every call into the core two things follow, and :meth:`Engine.settle` is where they do: send
``datagrams_to_send()`` and arm ``next_timeout()``. Within a turn they follow once, at its end.

The timer is armed only to *earlier* deadlines. Most data move some deadline later, which costs nothing:
the timer then fires once too early, finds nothing due and takes the next deadline.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import attrs
import trio

from endpoint.addresses import address_text
from endpoint.association import Association, CredentialKind, Handshake
from endpoint.lookups import Lookups
from endpoint.quotas import IdentityOverflow, QuotaPolicy, Quotas
from endpoint.roster import Roster
from endpoint.sockets import errno_name
from endpoint.verification import PeerRejected, Verifications, reject_all
from sansdtls import (
    ConnectionFrozen,
    ConnectionOffered,
    ConnectionTerminated,
    ConnectionThawed,
    DataReceived,
    HandshakeCompleted,
    LocalClose,
    PathChanged,
    PeerCertificateReceived,
    PeerRawKeyReceived,
    PskRequested,
    Server,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from endpoint.addresses import Address, Path
    from endpoint.keystore import KeyStore
    from endpoint.observer import Observer
    from endpoint.quotas import Prefix
    from endpoint.sockets import UdpSocket
    from endpoint.verification import PeerRequest, Verify
    from sansdtls import Cause, Checkpoint, Connection, Event, FrozenStore, Peer, ServerConfig

DEFAULT_TURN = 64
"""Datagrams handled before timers and other tasks get a turn: about 1.3 ms of echoes, or 30 ms if
every one of them completes a handshake."""

EXHAUSTED_PAUSE = 0.1
"""Seconds without receiving after the kernel said it is short of memory; what trio's own servers wait."""

DRAIN_BATCH = 64
"""Associations closed before other tasks get a turn."""

MAX_ANNOTATION = 1024
"""Bytes that the core keeps with a frozen association; no verifier gives a longer identity."""


class Engine:
    """Serves one ``Server`` on ``sockets`` until :meth:`run` is cancelled. Does not close the sockets."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        sockets: Sequence[UdpSocket],
        keystore: KeyStore,
        quotas: QuotaPolicy,
        observer: Observer,
        verify: Verify = reject_all,
        entropy: Callable[[int], bytes] = os.urandom,
        clock: Callable[[], float] = trio.current_time,
        turn: int = DEFAULT_TURN,
        store: FrozenStore | None = None,
        generation: int = 0,
        durable: bool = False,
    ) -> None:
        """``verify`` says who a client with a certificate or raw public key is; ``clock`` gives monotonic seconds; ``turn`` is the bound of datagrams per turn.

        ``store``, ``generation`` and ``durable`` are :class:`sansdtls.Server`'s. Make it inside ``trio.run`` unless ``clock`` is your own.
        """
        if not sockets:
            raise ValueError("an engine needs at least one socket")
        if turn < 1:
            raise ValueError(f"turn: {turn!r} is not 1 or more")
        self.sockets = tuple(sockets)
        self._observer = observer
        self._clock = clock
        self._turn_limit = turn
        self._quotas = Quotas(quotas)
        self._server = Server(
            config, entropy=entropy, now=clock(), store=store, generation=generation, durable=durable
        )
        self._handshakes: dict[Connection, Handshake] = {}
        self._roster = Roster()
        self._dropped: Counter[str] = Counter()
        self._errnos_told: set[int] = set()
        self._lookups = Lookups(keystore, clock=clock, deliver=self._answer_came, report=self._lookup_failed)
        self._verifications = Verifications(
            verify,
            clock=clock,
            decided=self._peer_decided,
            deliver=self._answer_came,
            report=self._verification_failed,
        )
        self._observer_failures = 0
        self._no_handshakes = trio.Event()
        self._in_turn = False
        self._turn_now = 0.0
        self._draining = False
        self._armed = math.inf
        self._timer: trio.CancelScope | None = None
        self._nursery: trio.Nursery | None = None
        for index, udp in enumerate(self.sockets):
            udp.on_send_failed = partial(self._send_failed, index)

    # --- tasks ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; ``task_status.started()`` comes once datagrams are being received.

        Raises ``trio.BusyResourceError`` if it runs already, and an exception group with
        ``trio.ClosedResourceError`` if somebody closes a socket.
        """
        if self._nursery is not None:
            raise trio.BusyResourceError("this engine is running already")
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for index, udp in enumerate(self.sockets):
                    nursery.start_soon(self._receive, index, udp)
                    nursery.start_soon(udp.keep_writing)
                nursery.start_soon(self._keep_time)
                task_status.started()
        finally:
            self._nursery = None

    async def _receive(self, index: int, udp: UdpSocket) -> None:
        while True:
            await udp.wait_readable()
            while self._turn(index, udp):
                # More is waiting; without this a flood would keep timers from running.
                await trio.lowlevel.checkpoint()
            if udp.exhausted:
                udp.exhausted = False
                await trio.sleep(EXHAUSTED_PAUSE)

    def _turn(self, index: int, udp: UdpSocket) -> bool:
        """Handle up to a turn of datagrams; ``True`` = there may be more."""
        datagrams = udp.drain(self._turn_limit)
        # One reading of the clock per turn: it is at most a turn old, far below any timer.
        now = self._turn_now = self._clock()
        receive = self._server.receive_datagram
        self._in_turn = True
        try:
            for data, address in datagrams:
                for event in receive(data, path=(index, address), now=now):
                    if type(event) is DataReceived:
                        self._data_received(event, now)
                    else:
                        self._handle(event, now)
        finally:
            self._in_turn = False
        self.settle()
        return len(datagrams) == self._turn_limit

    async def _keep_time(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._on_trios_clock(self._armed)) as self._timer:
                await trio.sleep_forever()
            self._run_timers()

    def _run_timers(self) -> None:
        now = self._turn_now = self._clock()
        self._in_turn = True
        try:
            for event in self._server.handle_timeout(now=now):
                self._handle(event, now)
        finally:
            self._in_turn = False
        self._armed = math.inf
        self.settle()

    def _on_trios_clock(self, deadline: float) -> float:
        if self._clock is trio.current_time:
            return deadline
        return trio.current_time() + (deadline - self._clock())

    # --- after each call into the core ---

    def use_keystore(self, store: KeyStore) -> None:
        """Look keys up in ``store`` from now on; lookups under way finish with the one before."""
        self._lookups.store = store

    def use_config(self, config: ServerConfig, verify: Verify) -> None:
        """New handshakes use ``config``, new questions go to ``verify``; live associations are not touched."""
        self._server.replace_config(config, now=self.now())
        self._verifications.verify = verify
        self.settle()

    def now(self) -> float:
        """The engine's clock; within a turn it stands still."""
        return self._turn_now if self._in_turn else self._clock()

    def socket_of(self, path: Path) -> UdpSocket:
        """The socket that ``path`` goes through."""
        return self.sockets[path[0]]

    def settle(self) -> None:
        """Send what the server has to send and arm its next timeout. Within a turn: later, at its end."""
        if self._in_turn:
            return
        sockets = self.sockets
        path: Any
        for data, path in self._server.datagrams_to_send():
            sockets[path[0]].send(data, path[1])
        deadline = self._server.next_timeout()
        if deadline is not None and deadline < self._armed:
            self._armed = deadline
            if self._timer is not None:
                self._timer.deadline = self._on_trios_clock(deadline)

    def _send_failed(self, index: int, address: Address, code: int) -> None:
        self._dropped["send"] += 1
        association = self._roster.at((index, address))
        if association is not None:
            association.send_errors += 1
            association.dropped += 1
        if code not in self._errnos_told:
            # Once per errno: an unreachable network fails for every peer, many times a second.
            self._errnos_told.add(code)
            self._observer.trouble(
                "send failed", error=errno_name(code), reason=os.strerror(code), path=address_text(address)
            )

    # --- events ---

    def _data_received(self, event: DataReceived, now: float) -> None:
        association = self._roster[event.connection]
        if self._quotas.limits_data:
            exceeded = association.budget.exceeded
            reason = self._quotas.admit_data(association.budget, len(event.data), now)
            if reason is not None:
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
            self._offered(event, now)
        elif isinstance(event, PskRequested):
            self._psk_requested(event, now)
        elif isinstance(event, PeerCertificateReceived | PeerRawKeyReceived):
            self._peer_requested(event, now)
        elif isinstance(event, HandshakeCompleted):
            self._completed(event, now)
        elif isinstance(event, DataReceived):
            self._data_received(event, now)
        elif isinstance(event, PathChanged):
            self._moved(event)
        elif isinstance(event, ConnectionThawed):
            self._thawed(event, now)
        elif isinstance(event, ConnectionFrozen):
            self._frozen(event)
        elif isinstance(event, ConnectionTerminated):
            self._terminated(event.connection, event.cause)
        # AlertReceived needs no answer (ConnectionTerminated carries its consequence), SecretDerived is
        # off unless the configuration asks for it.

    def _offered(self, offer: ConnectionOffered, now: float) -> None:
        path: Any = offer.path
        if self._draining:
            self._server.refuse(offer)
            return
        prefix = self._quotas.prefix_of(path[1])
        reason = self._quotas.admit_handshake(prefix, replaces=self._roster.at(path) is not None, now=now)
        if reason is not None:
            self._server.refuse(offer)
            self._tell(self._observer.refused, path, reason)
            return
        connection = self._server.accept(offer, now=now)
        self._handshakes[connection] = Handshake(path, prefix)

    def _completed(self, event: HandshakeCompleted, now: float) -> None:
        connection = event.connection
        handshake = self._handshakes[connection]
        kind = CredentialKind.of(connection.peer)
        identity = b""
        if kind is not CredentialKind.NONE:  # else: strangers, who share no name and so no limit either
            identity = handshake.identity or b""
            if not self._make_room(identity, handshake, connection, now):
                return
        if kind in (CredentialKind.CERTIFICATE, CredentialKind.RAW_PUBLIC_KEY):
            connection.annotation = identity[
                :MAX_ANNOTATION
            ]  # what the verifier made of it survives freezing
        del self._handshakes[connection]
        self._note_handshake_over()
        association = self._live(connection, handshake.path, handshake.prefix, identity, now)
        self._tell(self._observer.completed, association)

    def _make_room(self, identity: bytes, handshake: Handshake, connection: Connection, now: float) -> bool:
        """Whether ``identity`` may have one association more; its oldest may have to go for that."""
        siblings, frozen = self._roster.of(identity), self._roster.frozen_of(identity)
        if not self._quotas.identity_is_full(len(siblings) + len(frozen)):
            return True
        reason = self._quotas.count_identity_overflow()
        if self._quotas.policy.identity_overflow is IdentityOverflow.NEWCOMER:
            handshake.unwanted = True
            connection.close(now=now)
            self._tell(self._observer.refused, handshake.path, reason)
            return False
        if frozen:  # silent for longer than any live one
            woken = self._server.wake(frozen[0], now=now)
            self._roster.remove_frozen(identity, frozen[0])
            if woken is not None:
                woken.close(now=now)
            return True
        oldest = min(siblings, key=lambda association: association.last_received)
        # Out of the table at once: its end is an event of a later call, and the next newcomer must not
        # choose it again.
        self._roster.disown(oldest)
        oldest.connection.close(now=now)
        self._tell(self._observer.refused, oldest.path, reason)
        return True

    def _live(
        self, connection: Connection, path: Path, prefix: Prefix, identity: bytes, now: float
    ) -> Association:
        peer = connection.peer
        association = Association(
            self,
            connection,
            path=path,
            prefix=prefix,
            identity=identity,
            kind=CredentialKind.of(peer),
            key_index=None if peer is None else peer.psk_key_index,
            budget=self._quotas.data_budget(now),
        )
        self._roster.add(association)
        return association

    def _moved(self, event: PathChanged) -> None:
        association = self._roster[event.connection]
        old, new = association.path, cast("Path", event.new)
        prefix = self._quotas.prefix_of(new[1])
        self._quotas.hold(prefix)
        self._quotas.release(association.prefix)
        association.prefix = prefix
        self._roster.move(association, new)
        self._tell(self._observer.moved, association, old, event.proof)

    def _frozen(self, event: ConnectionFrozen) -> None:
        association = self._roster.remove(event.connection)
        assert association is not None  # noqa: S101 - only live associations freeze
        self._quotas.release(association.prefix)
        if association.identified:
            self._roster.add_frozen(association.identity, event.handle)
        self._tell(self._observer.frozen, association)

    def _thawed(self, event: ConnectionThawed, now: float) -> None:
        connection = event.connection
        path = cast("Path", connection.path)
        identity = identity_of(connection.peer, connection.annotation)
        self._roster.remove_frozen(identity, event.handle)
        prefix = self._quotas.prefix_of(path[1])
        self._quotas.hold(prefix)
        association = self._live(connection, path, prefix, identity, now)
        self._tell(self._observer.thawed, association)

    def _terminated(self, connection: Connection, cause: Cause) -> None:
        association = self._roster.remove(connection)
        if association is not None:
            self._quotas.release(association.prefix)
            self._tell(self._observer.terminated, association, cause)
            return
        handshake = self._handshakes.pop(connection)
        self._quotas.release(handshake.prefix)
        if handshake.lookup is not None:
            handshake.lookup.cancel()
        if not handshake.unwanted and not isinstance(cause, LocalClose):
            claimed, rejection = handshake.identity, handshake.rejection
            self._tell(self._observer.handshake_failed, handshake.path, claimed, cause, rejection)
        self._note_handshake_over()

    def _note_handshake_over(self) -> None:
        if not self._handshakes:
            self._no_handshakes.set()
            self._no_handshakes = trio.Event()

    def _psk_requested(self, request: PskRequested, now: float) -> None:
        self._handshakes[request.connection].identity = request.identity
        assert self._nursery is not None  # noqa: S101 - requests come up in the tasks of run only
        self._answered(request.connection, *self._lookups.answer(request, self._nursery, now=now), now)

    def _peer_requested(self, request: PeerRequest, now: float) -> None:
        assert self._nursery is not None  # noqa: S101 - as above
        self._answered(request.connection, *self._verifications.answer(request, self._nursery, now=now), now)

    def _answered(
        self, connection: Connection, events: list[Event], later: trio.CancelScope | None, now: float
    ) -> None:
        """Go on with what an answer brought about, or remember how to cancel the one that comes later."""
        handshake = self._handshakes.get(connection)
        if handshake is not None:
            handshake.lookup = later
        for event in events:
            self._handle(event, now)

    def _peer_decided(self, request: PeerRequest, verdict: bytes | PeerRejected) -> None:
        handshake = self._handshakes[request.connection]
        if isinstance(verdict, PeerRejected):
            # Of a session that may not be resumed nothing is lost: the full handshake will tell.
            handshake.rejection = None if request.resumption else verdict
        else:
            handshake.identity = verdict

    def _verification_failed(self, reason: str) -> None:
        self._observer.trouble("verifier failed", reason=reason)

    def _answer_came(self, events: list[Event], now: float) -> None:
        for event in events:
            self._handle(event, now)
        self.settle()

    def _lookup_failed(self, identity: bytes, reason: str) -> None:
        self._observer.trouble("key store failed", identity=identity, reason=reason)

    # --- observer ---

    def _tell(self, method: Callable[..., None], *arguments: object) -> None:
        try:
            method(*arguments)
        except Exception as error:  # noqa: BLE001 - see Observer
            self._observer_failed(method.__name__, error)

    def _observer_failed(self, method: str, error: Exception) -> None:
        self._observer_failures += 1
        self._observer.trouble("observer failed", method=method, reason=repr(error))

    # --- the end ---

    def stop_accepting(self) -> None:
        """Refuse every new handshake from now on; those under way go on. An engine does not accept again."""
        self._draining = True

    async def wait_for_handshakes(self, seconds: float) -> int:
        """Wait until none is under way, at most ``seconds``; how many are left."""
        with trio.move_on_after(seconds):
            while self._handshakes:
                await self._no_handshakes.wait()
        return len(self._handshakes)

    async def drain(self, deadline_seconds: float) -> int:
        """Stop accepting and close every association and handshake with an alert; run on until then.

        Frozen associations stay where they are. Returns how many were left when ``deadline_seconds`` had passed;
        0 = all are closed and their alerts sent. Cancel :meth:`run` afterwards.
        """
        self.stop_accepting()
        with trio.move_on_after(deadline_seconds):
            remaining = [*(association.connection for association in self._roster), *self._handshakes]
            while remaining:
                now = self._clock()
                for connection in remaining[-DRAIN_BATCH:]:
                    connection.close(now=now)
                del remaining[-DRAIN_BATCH:]
                self._run_timers()
                for udp in self.sockets:
                    await udp.wait_writable()
                await trio.lowlevel.checkpoint()
        return len(self._roster) + len(self._handshakes)

    # --- frozen associations, for another process ---

    def freeze_all(self) -> Iterator[bytes]:
        """Every association as bytes, for the next process; cancel :meth:`run` before, so that nothing more is read."""
        now = self._clock()
        for event in self._server.handle_timeout(now=now):
            self._handle(event, now)
        self.settle()
        return self._server.freeze_all(now=now)

    def restore(self, blob: bytes, *, saved: bool = False) -> None:
        """Take over an association from the process before; see ``sansdtls.Server.restore``.

        Raises SnapshotError if it cannot be used, or its socket is not there any more.
        """
        restored = self._server.restore(blob, now=self.now(), saved=saved)
        identity = identity_of(restored.peer, restored.annotation)
        if CredentialKind.of(restored.peer) is not CredentialKind.NONE:
            self._roster.add_frozen(identity, restored.handle)

    @property
    def checkpoint_due(self) -> bool:
        """See ``sansdtls.Server.checkpoint_due``."""
        return self._server.checkpoint_due

    def checkpoint(self) -> Checkpoint:
        """See ``sansdtls.Server.checkpoint``."""
        return self._server.checkpoint(now=self.now())

    def confirm(self, checkpoint: Checkpoint) -> None:
        """See ``sansdtls.Server.confirm``."""
        self._server.confirm(checkpoint)

    # --- figures ---

    def associations(self, identity: bytes | None = None) -> list[Association]:
        """The live associations, of one identity or all."""
        return list(self._roster) if identity is None else self._roster.of(identity)

    def statistics(self) -> dict[str, Any]:
        """Counters and gauges as plain nested dicts, for logs, metrics and tests."""
        server = attrs.asdict(self._server.statistics)
        server["records_discarded"] = {
            reason.value: count for reason, count in self._server.statistics.records_discarded.items()
        }
        return {
            "server": server,
            "handshakes": len(self._handshakes),
            "associations": len(self._roster),
            "frozen": self._server.frozen,
            "identities": self._roster.identities,
            "lookups": self._lookups.pending,
            "lookup_failures": self._lookups.failures,
            "verifications": self._verifications.pending,
            "verification_failures": self._verifications.failures,
            "refused": dict(self._quotas.refused),
            "datagrams_dropped": dict(self._dropped),
            "observer_failures": self._observer_failures,
            "sockets": [udp.statistics() for udp in self.sockets],
        }


def identity_of(peer: Peer | None, annotation: bytes) -> bytes:
    """Who a thawed association belongs to: its PSK identity, or what the verifier made of its credential."""
    if peer is None:
        return b""
    return annotation if peer.psk_identity is None else peer.psk_identity
