"""``dtls-endpoint serve``: the engine, the forwarder, the log and the signals, put together.

::

    SIGHUP            read all credentials again: all or nothing, live associations are kept
    SIGTERM, SIGINT   stop: take nobody new, tell every peer (close_notify), hand on what was
                      received, within ``listen.drain`` seconds; exit status 0
    a second one      end at once; exit status 1

The configuration file itself is read at the start only. Signals are obeyed from the first moment,
also while the port is still being waited for.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import TYPE_CHECKING

import trio

from endpoint.engine import Engine
from endpoint.forward import ForwardError
from endpoint.forward.echo import Echo
from endpoint.forward.jsonl import JsonLines
from endpoint.keystore.file import FileKeyStore, KeyFileError
from endpoint.keystore.loading import load_credentials
from endpoint.logs import Throttle
from endpoint.reporter import Reporter
from endpoint.text import show_text
from endpoint.udp import ListenError, RetryPolicy, bind_udp
from endpoint.verification import VERIFY_THREADS, PeerVerifier, wall_clock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from endpoint.config import EndpointConfig
    from endpoint.forward import Forwarder
    from endpoint.keystore.loading import LoadedCredentials
    from endpoint.udp import UdpSocket
    from sansdtls import ServerConfig

STANDARD_OUTPUT = 1
MAX_ERRORS_LOGGED = 20
"""Mistakes of one failed reload in its log line; the rest is counted."""

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
        wall_clock: Callable[[], datetime] = wall_clock,
    ):
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
        self._stop = trio.Event()
        self._serving = False
        self._forwarding = True
        self._status = 0
        self._everything = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[Listening] = trio.TASK_STATUS_IGNORED) -> int:
        """Serve until stopped by a signal; the exit status.

        Raises :class:`~endpoint.udp.ListenError`, and :class:`~endpoint.forward.ForwardError` if there
        is nowhere to write to from the start. Only in the main thread, because of the signals.
        """
        failure: Exception | None = None
        with trio.open_signal_receiver(signal.SIGHUP, signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey, signals)
                with self._everything:
                    try:
                        await self._serve(task_status)
                    except (ListenError, ForwardError) as error:
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
            sockets = [opened.enter_context(udp) for udp in await self._bind()]
            for udp in sockets:
                self._log.info("listening", address=udp.address, port=udp.port)
            self._log_keys()
            engine = self._engine = Engine(
                self._loaded.complete(self._config.dtls, self._config.credentials),
                sockets=sockets,
                keystore=self._keystore,
                verify=self._verifier(self._loaded),
                quotas=self._config.quotas,
                observer=Reporter(self._log, self._throttle, forwarder),
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._forward, forwarder)
                await nursery.start(engine.run)
                self._serving = True
                task_status.started([(udp.address, udp.port) for udp in sockets])
                await self._stop.wait()
                left = await self._finish(engine, forwarder)
                nursery.cancel_scope.cancel()
            self._log.info(
                "stopped",
                associations_left=left,
                held_back=self._throttle.held_back(),
                statistics=engine.statistics() | {"forward": forwarder.statistics()},
            )

    async def _bind(self) -> list[UdpSocket]:
        listen = self._config.listen

        def note(error: ListenError, seconds: float) -> None:
            self._log.warning("listen_retry", error=str(error), again_in=seconds)

        return await bind_udp(
            listen.address,
            listen.port,
            receive_buffer=listen.receive_buffer,
            retry=RetryPolicy(total=listen.retry) if listen.retry else None,
            on_retry=note,
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

    async def _finish(self, engine: Engine, forwarder: Forwarder) -> int:
        """Tell the peers and empty the forwarder; how many associations were left when time was up."""
        deadline = trio.current_time() + self._config.listen.drain
        left = await engine.drain(self._config.listen.drain)
        if self._forwarding:
            with trio.CancelScope(deadline=deadline):
                await forwarder.flush()
        return left
