"""The engine: one ``Server`` on one or more UDP sockets.

The tasks, however many peers there are::

    per socket   receive    wait until readable, drain a turn, hand events out, send what came of it
                 write      sleeps; sends what the kernel's full buffer refused
    in all       timers     one cancel scope whose deadline is the server's next timeout
                 serve      sleeps; hands over what had to wait, because live associations come first (``intake``)
    per lookup   look up    only where a key store or a verifier answers later; ends with its handshake at
                            the latest

After every call into the core two things follow, and :meth:`Engine.settle` is where they do: send
``datagrams_to_send()`` and arm ``next_timeout()``. Within a turn they follow once, at its end.

What becomes of an event stands in :mod:`endpoint.handling`, what comes of sending in :mod:`endpoint.sending`, and the
figures in :mod:`endpoint.counting`.

The timer is armed only to *earlier* deadlines. Most data move some deadline later, which costs nothing:
the timer then fires once too early, finds nothing due and takes the next deadline.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import attrs
import trio

from endpoint.admission import Admission
from endpoint.counting import CountingEngine
from endpoint.ending import EndingEngine, Endings
from endpoint.handling import HandlingEngine
from endpoint.intake import Intake
from endpoint.population import Population
from endpoint.quotas import Quotas
from endpoint.roster import Roster
from endpoint.sending import SendingEngine
from endpoint.sleepers import Sleepers
from endpoint.turnstile import Turnstile
from endpoint.verification import reject_all
from sansdtls import DataReceived, MemoryStore, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from endpoint.addresses import Address, Path
    from endpoint.keystore import KeyStore
    from endpoint.observer import Observer
    from endpoint.quotas import QuotaPolicy
    from endpoint.sockets import UdpSocket
    from endpoint.tap import Tap
    from endpoint.verification import Verify
    from sansdtls import Connection, FrozenStore, ServerConfig

DEFAULT_TURN = 64
"""Datagrams read before timers and other tasks get a turn: about 1.3 ms of echoes. What takes longer is the
intake's to bound."""

LATE_ANSWERS = 8
"""Handshakes that go on with a late answer of the key store between two looks at the sockets: 2 ms."""

EXHAUSTED_PAUSE = 0.1
"""Seconds without receiving after the kernel said it is short of memory; what trio's own servers wait."""

DRAIN_BATCH = 64
"""Associations closed before other tasks get a turn."""


class Engine(HandlingEngine, SendingEngine, EndingEngine, CountingEngine):
    """Serves one ``Server`` on ``sockets`` until :meth:`run` is cancelled. Does not close the sockets."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        sockets: Sequence[UdpSocket],
        indices: Sequence[int] | None = None,
        keystore: KeyStore,
        quotas: QuotaPolicy,
        observer: Observer,
        verify: Verify = reject_all,
        entropy: Callable[[int], bytes] = os.urandom,
        clock: Callable[[], float] = trio.current_time,
        timer: Callable[[], float] = time.perf_counter,
        turn: int = DEFAULT_TURN,
        store: FrozenStore | None = None,
        generation: int = 0,
        durable: bool = False,
    ) -> None:
        """``indices`` are those by which paths name the sockets, which outlive a process; by default their places.

        ``verify`` says who a client with a certificate or raw public key is; ``clock`` gives monotonic seconds; ``timer`` those by which work is measured; ``turn`` is the bound of datagrams per turn.

        ``store``, ``generation`` and ``durable`` are :class:`sansdtls.Server`'s. Make it inside ``trio.run`` unless ``clock`` is your own.
        """
        if not sockets:
            raise ValueError("an engine needs at least one socket")
        if turn < 1:
            raise ValueError(f"turn: {turn!r} is not 1 or more")
        self.sockets = tuple(sockets)
        self._at = dict(zip(range(len(sockets)) if indices is None else indices, sockets, strict=True))
        self.on_checkpoint_due: Callable[[], None] | None = None
        """Called when an association will soon have used all record numbers that are reserved for it."""
        self.tap: Tap | None = None
        """Hears every datagram while something is captured; see :mod:`endpoint.tap`."""
        self._config = config
        self._logs_secrets = False
        self._observer = observer
        self._clock = clock
        self._turn_limit = turn
        self._quotas = Quotas(quotas, config.limits)
        store = self._store = MemoryStore() if store is None else store
        self._server = Server(
            config, entropy=entropy, now=clock(), store=store, generation=generation, durable=durable
        )
        self._roster = Roster()
        self._sleepers = Sleepers()
        self._something_waits = trio.Event()
        self._late_answers = Turnstile(LATE_ANSWERS, on_waiting=self._wake_serving)
        self._admission = Admission(
            self._server,
            roster=self._roster,
            sleepers=self._sleepers,
            store=store,
            quotas=self._quotas,
            keystore=keystore,
            verify=verify,
            clock=clock,
            observer=observer,
            tell=self._tell,
            handle=self._handle,
            deliver=self._take,
            turn=self._late_answers.pass_through,
        )
        self._population = Population(
            self,
            roster=self._roster,
            sleepers=self._sleepers,
            quotas=self._quotas,
            observer=observer,
            tell=self._tell,
        )
        self._endings = Endings(
            self._server,
            roster=self._roster,
            sleepers=self._sleepers,
            entropy=entropy,
            clock=clock,
            settle=self.settle,
            deliver=self._take,
        )
        self._intake = Intake(
            quotas,
            receive=self._receive_one,
            kind_of=self._server.kind_of,
            frozen_handle=self._server.frozen_handle,
            source_of=lambda path: self._quotas.prefix_of(path[1]),
            timer=timer,
        )
        self._dropped: Counter[str] = Counter()
        self._errnos_told: set[int] = set()
        self._keep_alives = 0
        self._observer_failures = 0
        self._narrow_paths: list[tuple[int, Address, int]] = []
        self._in_turn = False
        self._turn_now = 0.0
        self._armed = math.inf
        self._timer: trio.CancelScope | None = None
        self._nursery: trio.Nursery | None = None
        for index, udp in self._at.items():
            udp.on_send_failed = partial(self._send_failed, index)
            udp.on_path_mtu = partial(self._path_mtu_told, index)

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
                self._nursery = self._admission.nursery = nursery
                for index, udp in self._at.items():
                    nursery.start_soon(self._receive, index, udp)
                    nursery.start_soon(udp.keep_writing)
                self.settle()  # frozen associations that were there before have deadlines, too
                nursery.start_soon(self._keep_time)
                nursery.start_soon(self._endings.run)
                nursery.start_soon(self._serve_waiting)
                task_status.started()
        finally:
            self._nursery = self._admission.nursery = None

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
        intake = self._intake
        datagrams = udp.drain(self._turn_limit)
        # One reading of the clock per turn: it is at most a turn old, far below any timer.
        now = self._turn_now = self._clock()
        receive_live = self._server.receive_live
        self._in_turn = True
        try:
            for data, address in datagrams:
                path = index, address
                events = receive_live(data, path=path, now=now)
                if events is None:
                    intake.take(data, path, now)
                    continue
                if self.tap is not None:
                    self._tapped("datagram_received", data, path, now)
                for event in events:
                    if type(event) is DataReceived:
                        self._data_received(event, now)
                    else:
                        self._handle(event, now)
        finally:
            self._in_turn = False
        self.settle()
        more = len(datagrams) == self._turn_limit
        if intake.end_turn(index, more=more):
            self._wake_serving()
        return more

    async def _serve_waiting(self) -> None:
        while True:
            await self._something_waits.wait()
            self._something_waits = trio.Event()
            while self._intake or self._late_answers:
                self._serve_slice()
                self._late_answers.turn()
                await trio.lowlevel.checkpoint()

    def _wake_serving(self) -> None:
        self._something_waits.set()

    def _serve_slice(self) -> None:
        now = self._turn_now = self._clock()
        self._in_turn = True
        try:
            self._intake.serve(now)
        finally:
            self._in_turn = False
        self.settle()
        self._intake.served()

    def _receive_one(self, data: bytes, path: Path, now: float) -> None:
        """Hand over what waited, or did not have to."""
        if self.tap is not None:
            self._tapped("datagram_received", data, path, now)
        for event in self._server.receive_datagram(data, path=path, now=now):
            self._handle(event, now)

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
        self._admission.lookups.store = store

    def use_config(self, config: ServerConfig, verify: Verify) -> None:
        """New handshakes use ``config``, new questions go to ``verify``; live associations are not touched."""
        self._config = config
        self._use_config()
        self._admission.verifications.verify = verify
        self.settle()

    def log_secrets(self, wanted: bool) -> None:  # noqa: FBT001 - there is nothing else that it could be
        """Whether ``tap`` is told the secrets of the handshakes that begin from now on, whatever ``use_config`` is given."""
        self._logs_secrets = wanted
        self._use_config()

    def _use_config(self) -> None:
        # Bound to the tap: without one secrets are not even made into events.
        config = attrs.evolve(self._config, log_secrets=True) if self._logs_secrets else self._config
        self._server.replace_config(config, now=self.now())

    def now(self) -> float:
        """The engine's clock; within a turn it stands still."""
        return self._turn_now if self._in_turn else self._clock()

    def socket_of(self, path: Path) -> UdpSocket:
        """The socket that ``path`` goes through."""
        return self._at[path[0]]

    def settle(self) -> None:
        """Send what the server has to send and arm its next timeout. Within a turn: later, at its end."""
        if self._in_turn:
            return
        self._send_all()
        deadline = self._server.next_timeout()
        if deadline is not None and deadline < self._armed:
            self._armed = deadline
            if self._timer is not None:
                self._timer.deadline = self._on_trios_clock(deadline)
        if self._server.checkpoint_due and self.on_checkpoint_due is not None:
            self.on_checkpoint_due()

    # --- the end ---

    def stop_accepting(self) -> None:
        """Refuse every new handshake from now on; those under way go on. An engine does not accept again."""
        self._admission.stop()

    async def wait_for_handshakes(self, seconds: float) -> int:
        """Wait until none is under way, at most ``seconds``; how many are left."""
        return await self._admission.wait_until_none(seconds)

    async def drain(self, deadline_seconds: float, *, frozen: bool = False) -> int:
        """Stop accepting and close every association and handshake with an alert; run on until then.

        Frozen associations stay where they are, or with ``frozen`` are woken for it when all others are closed. Returns how
        many were left when ``deadline_seconds`` had passed; 0 = all are closed and their alerts sent. Cancel
        :meth:`run` afterwards.
        """
        self.stop_accepting()
        sleeping = iter(self._store.handles() if frozen else ())
        with trio.move_on_after(deadline_seconds):
            while connections := self._next_to_close(sleeping):
                now = self._clock()
                for connection in connections:
                    connection.close(now=now)
                self._run_timers()
                for udp in self.sockets:
                    await udp.wait_writable()
                await trio.lowlevel.checkpoint()
        return len(self._roster) + len(self._admission) + (self._server.frozen if frozen else 0)

    def _next_to_close(self, sleeping: Iterator[bytes]) -> list[Connection]:
        """Those that are there now, as a record that comes meanwhile may wake one; else some of ``sleeping``."""
        connections = list(islice(self._connections(), DRAIN_BATCH))
        while not connections and (handles := list(islice(sleeping, DRAIN_BATCH))):
            woken = (self._server.wake(handle, now=self._clock()) for handle in handles)
            connections = [connection for connection in woken if connection is not None]
        return connections

    def _connections(self) -> Iterator[Connection]:
        yield from (association.connection for association in self._roster)
        yield from self._admission.connections
