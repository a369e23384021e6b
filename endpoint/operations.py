"""The service as its operators see it: figures over HTTP, and answers about itself and its devices.

It is told of events (``observers``), attached to the parts of a running service, and gives commands to the admin socket. Nothing in it is
needed for serving devices, and none of its failures reaches them: only a port that cannot be bound keeps a
service from starting, because an operator who asked for figures would miss them when it is too late.
"""

from __future__ import annotations

import importlib.metadata
import time
from typing import TYPE_CHECKING, Any

import trio

from endpoint.admin import CommandError
from endpoint.answers.doctor import doctor
from endpoint.answers.identities import identities
from endpoint.answers.names import Names
from endpoint.answers.parts import Parts
from endpoint.answers.status import status
from endpoint.history import History
from endpoint.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from prometheus_client import CollectorRegistry
    from structlog.typing import FilteringBoundLogger

    from endpoint.admin import Command
    from endpoint.config import EndpointConfig
    from endpoint.engine import Engine
    from endpoint.forward.router import Router
    from endpoint.keystore import KeyStore
    from endpoint.metrics.server import MetricsServer
    from endpoint.observer import Observer
    from endpoint.reloading import CredentialsInUse
    from endpoint.succession import Succession
    from endpoint.usage import KeyUsage

STORE_PATIENCE = 2.0
"""Seconds for the key store to say that it is there."""


class OperationsError(Exception):
    """The service cannot be watched as its configuration says; the text names key and remedy."""


class Operations:
    """Made before the engine, attached when there is one. Use it inside ``trio.run``."""

    def __init__(
        self,
        config: EndpointConfig,
        *,
        trouble: Callable[..., None],
        stopping: Callable[[], bool],
        wall: Callable[[], float] = time.time,
    ) -> None:
        """``stopping``: whether the service is on its way out. :class:`OperationsError` if ``metrics.port`` cannot be had."""
        told = config.metrics
        self._trouble = trouble
        self._stopping = stopping
        self._wall = wall
        self._version = _version()
        self._began = trio.current_time()
        self._started = wall()
        self._parts: Parts | None = None
        self._check: Callable[[], Awaitable[Mapping[str, str]]] | None = None
        self.tally = Tally(clock=trio.current_time)
        self.history = History(
            identities=told.remembered_identities,
            strangers=told.remembered_strangers,
            addresses=told.remembered_addresses,
            wall=wall,
        )
        self.server: MetricsServer | None = None if told.port == "off" else self._open(config)
        """``None`` where nothing is served over HTTP."""

    def _open(self, config: EndpointConfig) -> MetricsServer:
        # Here, so that a service without them neither loads nor needs hypercorn and prometheus_client.
        from endpoint.metrics.server import MetricsError, MetricsServer  # noqa: PLC0415

        try:
            return MetricsServer(
                config.metrics, registry=self._registry, ready=self._not_ready, trouble=self._trouble
            )
        except MetricsError as error:
            raise OperationsError(str(error)) from None

    def _registry(self) -> CollectorRegistry:
        from endpoint.metrics.collector import make_registry  # noqa: PLC0415 - as above

        return make_registry(self.statistics, version=self._version)

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Whom the engine is to tell of events."""
        return self.tally, self.history

    def attach(
        self,
        *,
        engine: Engine,
        credentials: CredentialsInUse,
        forwarder: Router,
        succession: Succession,
        usage: KeyUsage | None = None,
        more: Mapping[str, Callable[[], Mapping[str, Any]]] | None = None,
    ) -> None:
        """From now on there is something to tell of. ``more``: statistics of further parts, by the name of the part."""

        def figures() -> dict[str, Any]:
            return {
                **engine.statistics(),
                "forward": forwarder.statistics(),
                **succession.statistics(),
                "credentials": credentials.statistics(),
                "key_store": _figures_of(credentials.keystore),
                "tally": self.tally.statistics(),
                "history": self.history.statistics(),
                "metrics": {} if self.server is None else self.server.statistics(),
                "started": self._started,
                **{name: statistics() for name, statistics in (more or {}).items()},
            }

        async def check() -> Mapping[str, str]:
            return {
                **_closed_listeners(engine),
                **await _store_down(credentials.keystore),
                **_sinks_down(forwarder),
                **_state_failing(succession),
            }

        self._check = check
        self._parts = Parts(
            engine=engine,
            keystore=credentials.keystore,
            names=Names(credentials.keystore, credentials.names),
            statistics=figures,
            tally=self.tally,
            history=self.history,
            usage=usage,
            not_ready=self._not_ready,
            state=lambda: "stopping" if self._stopping() else "serving",
            version=self._version,
            started=self._started,
            uptime=lambda: trio.current_time() - self._began,
        )

    def statistics(self) -> Mapping[str, Any]:
        """The figures of all parts; few before there are any."""
        return {"started": self._started} if self._parts is None else self._parts.statistics()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve HTTP until cancelled, if that was asked for."""
        if self.server is None:
            task_status.started()
            return
        try:
            await self.server.run(task_status=task_status)
        except Exception as error:  # noqa: BLE001 - it must not end the service
            self._trouble("metrics failed", reason=repr(error))

    async def finish(self) -> None:
        """Nothing is kept."""
        await trio.lowlevel.checkpoint()

    def log_what_there_is(self, log: FilteringBoundLogger) -> None:
        """At the start."""
        if self.server is not None:
            log.info("metrics_listening", address=self.server.address, port=self.server.port)

    def close(self) -> None:
        """Give up the port."""
        if self.server is not None:
            self.server.close()

    # --- the admin socket ---

    def commands(self) -> Mapping[str, Command]:
        """What operators can ask."""
        return {"status": self._status, "identities": self._identities, "doctor": self._doctor}

    def _asked(self) -> Parts:
        if self._parts is None:
            raise CommandError("the service is starting")
        return self._parts

    async def _status(self, _request: Mapping[str, Any]) -> Mapping[str, object]:
        return await status(self._asked())

    async def _identities(self, request: Mapping[str, Any]) -> Mapping[str, object]:
        return await identities(self._asked(), request)

    async def _doctor(self, request: Mapping[str, Any]) -> Mapping[str, object]:
        return await doctor(self._asked(), request)

    # --- readiness ---

    async def _not_ready(self) -> Mapping[str, str]:
        if self._stopping():
            return {"service": "it is stopping"}
        if self._check is None:
            return {"service": "it is starting"}
        return await self._check()


def _version() -> str:
    try:
        return importlib.metadata.version("sansdtls")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _figures_of(part: object) -> dict[str, Any]:
    statistics = getattr(part, "statistics", None)
    return {} if statistics is None else statistics()


def _closed_listeners(engine: Engine) -> dict[str, str]:
    closed = [str(index) for index, udp in enumerate(engine.sockets) if udp.closed]
    return {"listeners": f"closed: {', '.join(closed)}"} if closed else {}


async def _store_down(keystore: KeyStore) -> dict[str, str]:
    check = getattr(keystore, "check", None)
    if check is None:
        return {}
    reason: str | None = f"it does not answer within {STORE_PATIENCE:g} s"
    with trio.move_on_after(STORE_PATIENCE):
        try:
            reason = await check()
        except Exception as error:  # noqa: BLE001 - whatever a store raises, it is not ready
            reason = repr(error)
    return {} if reason is None else {"key_store": reason}


def _sinks_down(forwarder: Router) -> dict[str, str]:
    down = forwarder.unusable()
    return {"forward": f"sinks that are down: {', '.join(down)}"} if down else {}


def _state_failing(succession: Succession) -> dict[str, str]:
    failing = succession.statistics().get("state_failing")
    return {"state": "associations cannot be written to the database"} if failing else {}
