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
    metrics_listening           address, port
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
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from endpoint.admin import AdminError, AdminSocket, CommandError
from endpoint.capture.control import Captures
from endpoint.engine import Engine
from endpoint.forward import ForwardError
from endpoint.forward.hearing import Hearing
from endpoint.forward.making import make_forwarder
from endpoint.handoff import HandoffError
from endpoint.keystore import StoreStartError
from endpoint.leaving import SAVE_GRACE, Leaving, counts_of
from endpoint.listening import listen
from endpoint.logs import Throttle
from endpoint.observer import Observers
from endpoint.operations import Operations, OperationsError
from endpoint.reloading import CredentialsInUse
from endpoint.reloads import Reloads
from endpoint.reporter import Reporter
from endpoint.rotation import Rotation
from endpoint.state.exclusive import StateFileError
from endpoint.succession import Succession
from endpoint.supervised import Supervised
from endpoint.systemd import Supervision, SupervisionError
from endpoint.udp import ListenError
from endpoint.verification import wall_clock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping
    from datetime import datetime
    from typing import Any

    from structlog.typing import FilteringBoundLogger

    from endpoint.admin import Command
    from endpoint.config import EndpointConfig
    from endpoint.forward import Forwarder, Sink
    from endpoint.keystore.loading import LoadedCredentials
    from endpoint.listening import Listeners
    from endpoint.observer import Observer

ADMIN_GRACE = 1.0
"""Seconds for the last answers of the admin socket."""
STARTS_IN_VAIN = (
    ListenError,
    SupervisionError,
    StateFileError,
    AdminError,
    ForwardError,
    OperationsError,
    StoreStartError,
)
"""Why a service cannot start, with a text for the operator."""

Listening = list[tuple[str, int]]
"""Address and port of each socket."""


class Companion(Protocol):
    """What runs beside the engine, hears of its events, and answers at the admin socket."""

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Whom the engine is to tell of events."""
        ...

    def commands(self) -> Mapping[str, Command]:
        """For the admin socket."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        ...

    async def finish(self) -> None:
        """The service ends: what is to be done before :meth:`run` is cancelled."""
        ...


class Companions(NamedTuple):
    """Those of a service."""

    operations: Operations
    rotation: Rotation
    captures: Captures


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
        self._credentials = CredentialsInUse(config, credentials, log=log, wall_clock=wall_clock)
        self._engine: Engine | None = None
        self._throttle = Throttle(
            rate=config.log.failures_per_second, burst=config.log.failures_burst, clock=trio.current_time
        )
        self._supervision = supervision or Supervision()
        self._supervised = Supervised(self._supervision, describe=self._describe, trouble=self._trouble)
        self._reloads = Reloads(
            lambda: self._credentials.reload(self._engine), supervised=self._supervised, trouble=self._trouble
        )
        self._where = ""
        self._companions: Companions | None = None
        self._leaving: Leaving | None = None
        self._stop = trio.Event()
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
                nursery.start_soon(self._reloads.run)
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
                self._reloads.ask()
                continue
            name = signal.Signals(number).name
            if self._stop.is_set():
                self._log.warning("stopped_at_once", signal=name)
                self._status = 1
                self._everything.cancel()
            else:
                self._log.info("stopping", signal=name)
                if number == signal.SIGTERM and self._leaving is not None:
                    self._leaving.open_place_if_any()
                self._stop.set()
                if self._leaving is None:
                    self._everything.cancel()

    async def _serve(self, task_status: trio.TaskStatus[Listening]) -> None:
        with contextlib.ExitStack() as opened:
            forwarder = make_forwarder(self._config, self._log.warning, lambda: self._engine)
            opened.callback(forwarder.close)
            succession = Succession(
                self._config.state,
                keys=self._config.dtls.snapshot_keys,
                supervision=self._supervision,
                log=self._log,
            )
            opened.callback(succession.close)
            companions = self._companions = self._make_companions(opened)
            await self._credentials.open_keystore(self._trouble)
            admin = self._admin_socket(opened, companions)
            listeners = await self._listen(succession, opened)
            companions.operations.log_what_there_is(self._log)
            self._credentials.log_what_there_is()
            engine = self._engine = self._make_engine(listeners, forwarder, succession, companions)
            companions.operations.attach(
                engine=engine,
                credentials=self._credentials,
                forwarder=forwarder,
                succession=succession,
                usage=companions.rotation.usage,
                more={
                    "rotation": companions.rotation.statistics,
                    "captures": companions.captures.statistics,
                },
            )
            companions.captures.attach(engine)
            # From here on this process holds what nobody else has: a signal may not end it without a word.
            leaving = self._leaving = Leaving(
                engine,
                succession,
                notifier=self._supervision.notifier,
                log=self._log,
                drain=self._config.listen.drain,
            )
            succession.restore(engine)
            succession.keep(engine, self._trouble)
            companions.rotation.attach(engine)
            succession.prepare(listeners)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._forward, forwarder)
                await nursery.start(self._credentials.run)
                nursery.start_soon(succession.run)
                for companion in companions:
                    await nursery.start(companion.run)
                if admin is not None:
                    await nursery.start(admin.run)
                left = await self._run_engine(engine, listeners, leaving, forwarder, task_status)
                for companion in companions:
                    await companion.finish()
                if admin is not None:
                    await admin.wait_idle(ADMIN_GRACE)
                nursery.cancel_scope.cancel()
            self._log.info(
                "stopped",
                associations_left=left,
                held_back=self._throttle.held_back(),
                statistics=engine.statistics()
                | {"forward": forwarder.statistics()}
                | succession.statistics()
                | {"rotation": companions.rotation.statistics()}
                | self._credentials.store_statistics(),
            )

    async def _run_engine(
        self,
        engine: Engine,
        listeners: Listeners,
        leaving: Leaving,
        forwarder: Sink,
        task_status: trio.TaskStatus[Listening],
    ) -> int:
        """Serve until it is time to stop, and stop; how many associations are left."""
        async with trio.open_nursery() as running:
            await running.start(engine.run)
            task_status.started([(udp.address, udp.port) for udp in listeners.sockets])
            self._say_ready(listeners)
            running.start_soon(self._supervised.run, engine)
            await self._stop.wait()
            self._supervised.stopping()
            deadline = trio.current_time() + self._config.listen.drain
            left = await leaving.take_leave()
            running.cancel_scope.cancel()
        # What comes from now on waits in the sockets, for the next process where they are kept.
        lost = await leaving.finish(deadline)
        if leaving.failed:
            self._status = 1
        if self._forwarding:
            # Telling a large fleet may have taken all the time there was; what it sent last is to be handed on all the same.
            with trio.CancelScope(deadline=max(deadline, trio.current_time() + SAVE_GRACE)):
                await forwarder.flush()
        return left if lost is None else lost

    def _make_companions(self, opened: contextlib.ExitStack) -> Companions:
        operations = Operations(self._config, trouble=self._trouble, stopping=self._stop.is_set)
        opened.callback(operations.close)
        rotation = Rotation(
            self._config.state.usage_file,
            self._config.credentials,
            keystore=lambda: self._credentials.keystore,
            log=self._log,
            trouble=self._trouble,
        )
        opened.callback(rotation.close)
        self._credentials.on_reloaded = rotation.standing.reloaded
        captures = Captures(self._config.state.capture_directory, log=self._log)
        return Companions(operations, rotation, captures)

    def _make_engine(
        self, listeners: Listeners, forwarder: Sink, succession: Succession, companions: Companions
    ) -> Engine:
        reporter = Reporter(self._log, self._throttle, forwarder)
        others = [observer for companion in companions for observer in companion.observers]
        return Engine(
            self._credentials.server_config(),
            sockets=listeners.sockets,
            indices=listeners.indices,
            keystore=self._credentials.keystore,
            verify=self._credentials.verifier(),
            quotas=self._config.quotas,
            observer=Observers(reporter, Hearing(forwarder), *others, data=reporter),
            clock=succession.clock,
            generation=succession.generation,
            durable=succession.durable,
        )

    def _say_ready(self, listeners: Listeners) -> None:
        self._where = ", ".join(udp.local_text for udp in listeners.sockets)
        if not self._supervised.ready():
            # It will take us for one that does not start, and end us after a while.
            self._log.warning("notify_failed", failures=self._supervision.notifier.failures)

    def _describe(self) -> str:
        """For ``systemctl status``."""
        there = counts_of(self._engine) if self._engine is not None else {}
        figures = ", ".join(f"{count} {name}" for name, count in there.items() if count)
        last = self._reloads.last
        reload = f"the last reload failed: {last['errors'][0]}" if last and not last["reloaded"] else ""
        return "; ".join(filter(None, (f"serving on {self._where}", figures, reload)))

    async def _listen(self, succession: Succession, opened: contextlib.ExitStack) -> Listeners:
        def note(error: ListenError, seconds: float) -> None:
            self._log.warning("listen_retry", error=str(error), again_in=seconds)

        listeners = await listen(
            self._config.listen, succession.sockets, before=succession.listeners, on_retry=note
        )
        for udp in listeners.sockets:
            opened.enter_context(udp)
            self._log.info("listening", address=udp.address, port=udp.port)
        return listeners

    async def _forward(self, forwarder: Forwarder) -> None:
        try:
            await forwarder.run()
        except ForwardError as error:
            self._log.error("forward_failed", error=str(error))
            self._status = 1
            self._forwarding = False
            self._stop.set()

    # --- the admin socket ---

    def _admin_socket(
        self, opened: contextlib.ExitStack, companions: Iterable[Companion]
    ) -> AdminSocket | None:
        path = self._config.state.admin_socket
        if path is None:
            return None
        admin = AdminSocket(path, trouble=self._trouble)
        opened.callback(admin.close)
        admin.register("handoff", self._handoff_command)
        for name, command in self._reloads.commands().items():
            admin.register(name, command)
        for companion in companions:
            for name, command in companion.commands().items():
                admin.register(name, command)
        return admin

    def _trouble(self, what: str, **facts: object) -> None:
        self._log.warning(what.replace(" ", "_"), **facts)

    async def _handoff_command(self, _request: Mapping[str, Any]) -> Mapping[str, object]:
        if self._stop.is_set():
            raise CommandError("the service is stopping already")
        if self._leaving is None:
            raise CommandError("the service is starting")
        try:
            self._leaving.open_place()
            self._log.info("stopping", command="handoff")
            self._stop.set()
            return await self._leaving.handed_over()
        except HandoffError as error:
            raise CommandError(str(error)) from None
