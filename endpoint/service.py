"""``dtls-endpoint serve``: the engine, the forwarder, the log and the signals, put together.

::

    SIGHUP            read all credentials again: all or nothing, live associations are kept
    SIGINT            stop: take nobody new, tell every peer (close_notify), hand on what was
                      received, within ``listen.drain`` seconds; exit status 0
    SIGTERM           the same, or if there is something to hand over to: hand all associations over
                      to the next process, and tell no peer; exit status 0. See ``endpoint.succession``
    a second one      end at once; exit status 1

The configuration file itself is read at the start only. Signals are obeyed from the first moment,
also while the port is still being waited for. Facts of the log about starts and stops::

    listening                   address, port
    restored                    associations, refused (and why the first was), from
    associations_not_restored   reason
    stopping                    signal
    handed_over                 associations, to
    handoff_failed              error
    stopped                     associations_left, held_back, statistics
    notify_failed               failures: the service manager cannot be told
"""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import TYPE_CHECKING

import trio

from endpoint.admin import AdminError, AdminSocket, CommandError
from endpoint.engine import Engine
from endpoint.forward import ForwardError
from endpoint.forward.echo import Echo
from endpoint.forward.jsonl import JsonLines
from endpoint.handoff import HandoffError
from endpoint.keystore.file import FileKeyStore, KeyFileError
from endpoint.keystore.loading import load_credentials
from endpoint.listening import listen
from endpoint.logs import Throttle
from endpoint.reporter import Reporter
from endpoint.state.exclusive import StateFileError
from endpoint.succession import Succession
from endpoint.systemd import Supervision, SupervisionError
from endpoint.text import show_text
from endpoint.udp import ListenError
from endpoint.verification import VERIFY_THREADS, PeerVerifier, wall_clock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from datetime import datetime
    from typing import Any

    from structlog.typing import FilteringBoundLogger

    from endpoint.config import EndpointConfig
    from endpoint.forward import Forwarder
    from endpoint.keystore.loading import LoadedCredentials
    from endpoint.listening import Listeners
    from sansdtls import ServerConfig

STANDARD_OUTPUT = 1
HANDSHAKE_GRACE = 2.0
"""Seconds that handshakes under way get before associations are handed over; they cannot be."""
UNSENT_GRACE = 0.5
"""Seconds for what the kernel had no room for, before associations are handed over."""
SAVE_GRACE = 1.0
"""Seconds for the last changes to a database, however little of ``listen.drain`` is left."""
ADMIN_GRACE = 1.0
"""Seconds for the last answers of the admin socket."""
MAX_ERRORS_LOGGED = 20
"""Mistakes of one failed reload in its log line; the rest is counted."""

STARTS_IN_VAIN = (ListenError, SupervisionError, StateFileError, AdminError, ForwardError)
"""Why a service cannot start, with a text for the operator."""

Listening = list[tuple[str, int]]
"""Address and port of each socket."""


def make_forwarder(config: EndpointConfig, tell: Callable[..., None]) -> Forwarder:
    """The forwarder that ``forward.kind`` names."""
    if config.forward.kind == "echo":
        return Echo()
    if sys.stdout is None:
        # The number 1 may by now be anything, a socket of ours even.
        raise ForwardError("standard output is closed; there is nowhere to write data to")
    return JsonLines(STANDARD_OUTPUT, limit=config.forward.buffer, tell=tell)


def _beside_psk(loaded: LoadedCredentials) -> dict[str, int]:
    """What else was loaded, for the log; nothing for a fleet with pre-shared keys only."""
    facts = {
        "own_credentials": len(loaded.own),
        "client_cas": len(loaded.policy.anchors) if loaded.policy else 0,
        "crls": len(loaded.policy.crls) if loaded.policy else 0,
        "raw_public_keys": len(loaded.raw_keys.names),
    }
    return {name: count for name, count in facts.items() if count}


class Service:
    """One run of the service. ``log.info("listening", …)`` is its first line."""

    def __init__(
        self,
        config: EndpointConfig,
        *,
        credentials: LoadedCredentials,
        log: FilteringBoundLogger,
        supervision: Supervision | None = None,
        wall_clock: Callable[[], datetime] = wall_clock,
    ):
        """``supervision``: what a service manager has handed down, and how to tell it how the service is."""
        self._config = config
        self._log = log
        self._wall_clock = wall_clock
        self._loaded = credentials
        self._keystore = FileKeyStore(config.credentials.psk_file, credentials.psk)
        self._limiter = trio.CapacityLimiter(VERIFY_THREADS)
        self._engine: Engine | None = None
        self._throttle = Throttle(
            rate=config.log.failures_per_second, burst=config.log.failures_burst, clock=trio.current_time
        )
        self._supervision = supervision or Supervision()
        self._succession: Succession | None = None
        self._handing_over = False
        self._handed_over = trio.Event()
        self._outcome: dict[str, object] | str = ""
        self._stop = trio.Event()
        self._serving = False
        self._forwarding = True
        self._status = 0
        self._everything = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[Listening] = trio.TASK_STATUS_IGNORED) -> int:
        """Serve until stopped by a signal; the exit status.

        Raises what :data:`STARTS_IN_VAIN` names, :class:`~endpoint.forward.ForwardError` if there is nowhere
        to write to from the start. Only in the main thread, because of the signals.
        """
        failure: Exception | None = None
        with trio.open_signal_receiver(signal.SIGHUP, signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey, signals)
                with self._everything:
                    try:
                        await self._serve(task_status)
                    except STARTS_IN_VAIN as error:
                        # Kept until outside: a nursery would wrap it into a group.
                        failure = error
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return self._status

    async def _obey(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number == signal.SIGHUP:
                await self._reload()
                continue
            name = signal.Signals(number).name
            if self._stop.is_set():
                self._log.warning("stopped_at_once", signal=name)
                self._status = 1
                self._everything.cancel()
            else:
                self._log.info("stopping", signal=name)
                if number == signal.SIGTERM and self._serving:
                    self._open_place()
                self._stop.set()
                if not self._serving:
                    self._everything.cancel()

    async def _reload(self) -> None:
        try:
            # Large files take a moment to read; devices are served meanwhile.
            fresh, config, verify = await trio.to_thread.run_sync(self._read_again)
        except KeyFileError as error:
            errors = list(error.problems[:MAX_ERRORS_LOGGED])
            self._log.error(
                "reload_failed", errors=errors, errors_in_all=len(error.problems), kept=len(self._keystore)
            )
            return
        # From here on nothing can fail, and no other task gets a turn: all are replaced, or none.
        self._loaded = fresh
        changes = self._keystore.replace(fresh.psk)
        if self._engine is not None:
            self._engine.use_config(config, verify)
        self._log.info(
            "reloaded",
            identities=len(self._keystore),
            added=changes.added,
            removed=changes.removed,
            changed=changes.changed,
            in_rotation=fresh.psk.in_rotation,
            **_beside_psk(fresh),
        )
        self._warn_of_lapses()

    def _read_again(self) -> tuple[LoadedCredentials, ServerConfig, PeerVerifier]:
        """Runs in another thread; changes nothing."""
        fresh = load_credentials(self._config.credentials)
        self._keystore.require_some(fresh.psk)
        if self._loaded.raw_keys.names and not fresh.raw_keys.names:
            where = show_text(str(self._config.credentials.raw_public_keys))
            raise KeyFileError([f"{where}: holds no key now; those loaded before stay"])
        lapses = fresh.new_lapses(self._loaded, self._wall_clock())
        if lapses:
            raise KeyFileError(lapses)
        return fresh, fresh.complete(self._config.dtls, self._config.credentials), self._verifier(fresh)

    def _verifier(self, loaded: LoadedCredentials) -> PeerVerifier:
        return PeerVerifier(
            loaded.policy, loaded.raw_keys.names, wall_clock=self._wall_clock, limiter=self._limiter
        )

    def _warn_of_lapses(self) -> None:
        for lapse in self._loaded.lapses(self._wall_clock()):
            self._log.warning("credential_lapsed", reason=lapse)

    async def _serve(self, task_status: trio.TaskStatus[Listening]) -> None:
        forwarder = make_forwarder(self._config, self._log.warning)
        with contextlib.ExitStack() as opened:
            succession = self._succession = opened.enter_context(
                contextlib.closing(
                    Succession(
                        self._config.state,
                        keys=self._config.dtls.snapshot_keys,
                        supervision=self._supervision,
                        log=self._log,
                    )
                )
            )
            admin = self._admin_socket(opened)
            listeners = await self._listen(succession)
            for udp in listeners.sockets:
                opened.enter_context(udp)
                self._log.info("listening", address=udp.address, port=udp.port)
            self._log_keys()
            engine = self._engine = Engine(
                self._loaded.complete(self._config.dtls, self._config.credentials),
                sockets=listeners.sockets,
                keystore=self._keystore,
                verify=self._verifier(self._loaded),
                quotas=self._config.quotas,
                observer=Reporter(self._log, self._throttle, forwarder),
                clock=succession.clock,
                generation=succession.generation,
                durable=succession.durable,
            )
            # From here on this process holds what nobody else has: a signal may not end it without a word.
            self._serving = True
            succession.restore(engine)
            succession.keep(engine, self._trouble)
            succession.prepare(listeners)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._forward, forwarder)
                nursery.start_soon(succession.run)
                if admin is not None:
                    await nursery.start(admin.run)
                async with trio.open_nursery() as running:
                    await running.start(engine.run)
                    task_status.started([(udp.address, udp.port) for udp in listeners.sockets])
                    where = ", ".join(udp.local_text for udp in listeners.sockets)
                    notifier = self._supervision.notifier
                    if notifier and not notifier.ready(f"serving on {where}"):
                        # It will take us for one that does not start, and end us after a while.
                        self._log.warning("notify_failed", failures=notifier.failures)
                    await self._stop.wait()
                    deadline = trio.current_time() + self._config.listen.drain
                    left = await self._take_leave(engine)
                    running.cancel_scope.cancel()
                # What comes from now on waits in the sockets, for the next process where they are kept.
                if self._handing_over:
                    left = await self._hand_over(engine, succession, deadline)
                elif not await succession.flush(max(SAVE_GRACE, deadline - trio.current_time())):
                    self._log.warning("state_not_saved", reason="the last changes were not written in time")
                if self._forwarding:
                    with trio.CancelScope(deadline=deadline):
                        await forwarder.flush()
                if admin is not None:
                    await admin.wait_idle(ADMIN_GRACE)
                nursery.cancel_scope.cancel()
            self._log.info(
                "stopped",
                associations_left=left,
                held_back=self._throttle.held_back(),
                statistics=engine.statistics()
                | {"forward": forwarder.statistics()}
                | succession.statistics(),
            )

    async def _listen(self, succession: Succession) -> Listeners:
        def note(error: ListenError, seconds: float) -> None:
            self._log.warning("listen_retry", error=str(error), again_in=seconds)

        return await listen(
            self._config.listen, succession.sockets, before=succession.listeners, on_retry=note
        )

    def _log_keys(self) -> None:
        told, psk = self._config.credentials, self._loaded.psk
        self._log.info(
            "keys_loaded",
            identities=len(self._keystore),
            in_rotation=psk.in_rotation,
            files=len(psk.files),
            **_beside_psk(self._loaded),
        )
        if told.psk_file and not psk.keys:
            self._log.warning("no_identities", psk_file=str(told.psk_file))
        self._warn_of_lapses()

    async def _forward(self, forwarder: Forwarder) -> None:
        try:
            await forwarder.run()
        except ForwardError as error:
            self._log.error("forward_failed", error=str(error))
            self._status = 1
            self._forwarding = False
            self._stop.set()

    async def _take_leave(self, engine: Engine) -> int:
        """Tell the peers, or let their handshakes finish before they are handed over; how many are left."""
        if not self._handing_over:
            self._supervision.notifier.stopping("telling the devices")
            return await engine.drain(self._config.listen.drain, frozen=True)
        self._supervision.notifier.stopping("handing over to the next process")
        engine.stop_accepting()
        await engine.wait_for_handshakes(HANDSHAKE_GRACE)
        with trio.move_on_after(UNSENT_GRACE):
            for udp in engine.sockets:
                await udp.wait_writable()
        return 0

    # --- handing over ---

    def _open_place(self) -> None:
        """Open the place to hand over to, where there is one; else devices will be told of the stop."""
        if self._succession is None or self._succession.to is None or self._engine is None:
            return
        try:
            self._succession.begin(sum(counts_of(self._engine).values()))
        except HandoffError as error:
            self._log.error("handoff_failed", error=str(error))
        else:
            self._handing_over = True

    async def _hand_over(self, engine: Engine, succession: Succession, deadline: float) -> int:
        """Write all associations for the next process; how many were lost."""
        there = counts_of(engine)
        associations = there["associations"] + there["frozen"]
        seconds = max(SAVE_GRACE, deadline - trio.current_time())
        try:
            count = await succession.hand_over(engine, associations=associations, seconds=seconds)
        except HandoffError as error:
            self._log.error("handoff_failed", error=str(error), associations=associations)
            self._status = 1
            self._outcome = str(error)
        else:
            self._outcome = {"associations": count, "to": succession.to}
            self._log.info("handed_over", **self._outcome)
            associations = 0
        self._handed_over.set()
        return associations

    # --- the admin socket ---

    def _admin_socket(self, opened: contextlib.ExitStack) -> AdminSocket | None:
        path = self._config.state.admin_socket
        if path is None:
            return None
        admin = AdminSocket(path, trouble=self._trouble)
        opened.callback(admin.close)
        admin.register("handoff", self._handoff_command)
        admin.register("status", self._status_command)
        return admin

    def _trouble(self, what: str, **facts: object) -> None:
        self._log.warning(what.replace(" ", "_"), **facts)

    async def _status_command(self, _request: Mapping[str, Any]) -> Mapping[str, object]:
        if self._engine is None or self._succession is None:
            raise CommandError("the service is starting")
        return {**counts_of(self._engine), **self._succession.statistics()}

    async def _handoff_command(self, _request: Mapping[str, Any]) -> Mapping[str, object]:
        if self._stop.is_set():
            raise CommandError("the service is stopping already")
        if self._succession is None or self._engine is None:
            raise CommandError("the service is starting")
        try:
            self._succession.begin(sum(counts_of(self._engine).values()))
        except HandoffError as error:
            raise CommandError(str(error)) from None
        self._handing_over = True
        self._log.info("stopping", command="handoff")
        self._stop.set()
        await self._handed_over.wait()
        if isinstance(self._outcome, str):
            raise CommandError(self._outcome)
        return self._outcome


def counts_of(engine: Engine) -> dict[str, int]:
    """How many associations and handshakes there are."""
    figures = engine.statistics()
    return {
        "associations": figures["associations"],
        "frozen": figures["server"]["frozen"],
        "handshakes": figures["handshakes"],
    }
