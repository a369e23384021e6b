"""``/metrics``, ``/healthz`` and ``/readyz`` over HTTP: hypercorn on trio, in the service's own loop.

Attacker
    Any user of this host, for the address is loopback; somebody on the network, where the operator has chosen
    another one. Wants to stop the devices' traffic by way of the side door, or to learn who they are.

Properties
    1. Nothing that happens here ends the service: each connection's faults end with it, and are counted and told once in
       a while. hypercorn's own server would fail as a whole when one connection does, so its connections are
       served one by one here, from a listener of ours.
    2. Bounded: so many connections, each for so long, with so many bytes received, no body, no second request at a time.
       Metrics are made for one request at a time, so that a flood of requests gets one turn of the loop where devices
       get one; and the endpoint's parts are asked whether they are ready for one at a time. Neither waits for the other:
       a key store that hangs must not make a supervisor, who asks for the health alone, restart the endpoint.
    3. A reader that does not read cannot hold up a stop: hypercorn shields what it sends from being cancelled, so
       the socket is closed under it.
    4. Answers hold counts and the state of this program's parts, no identity and no peer's address. ``Host`` and
       query are ignored; there is nothing to change by a request, so nothing for a web page to forge.

Left out: TLS and passwords (put a proxy in front where others than this host shall see it), compression,
HTTP/2 priorities. ``/healthz`` says that the loop turns; whether the endpoint can do its work is ``/readyz``.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.logging import Logger
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState

from endpoint.metrics.collector import render
from endpoint.text import json_line, show_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from prometheus_client import CollectorRegistry

    from endpoint.tables.metrics import Metrics

MAX_CONNECTIONS = 16
"""At once. Prometheus needs one, a supervisor another; each takes about 100 KiB while it lasts."""
MAX_AGE = 60.0
"""Seconds that a connection lasts; a scraper opens another one without a word."""
IDLE_TIME = 10.0
"""Seconds for a request to come."""
MAX_RECEIVED = 65_536
"""Bytes received on one connection: some hundred scrapes."""
MAX_HEADERS = 8_192
"""Bytes of a request without its body."""
PIECE = 2_048
"""Bytes received at once."""
REQUEST_TIME = 5.0
"""Seconds for an answer to be made; a key store that is asked may hang."""
BACKLOG = 64
"""Connections that wait for being accepted."""
ACCEPT_PAUSE = 1.0
"""Seconds without accepting, when the process has no descriptor left."""

_TEXT = "text/plain; charset=utf-8"
_JSON = "application/json"


class MetricsError(Exception):
    """The HTTP server cannot start; the text names the key and the remedy."""


Answer = tuple[int, str, bytes]
"""Status, content type and body."""


class MetricsServer:
    """Binds at once; :meth:`run` serves. Close it."""

    def __init__(
        self,
        config: Metrics,
        *,
        registry: Callable[[], CollectorRegistry],
        ready: Callable[[], Awaitable[Mapping[str, str]]],
        trouble: Callable[..., None],
    ) -> None:
        """``ready`` gives what keeps the endpoint from its work, by part. :class:`MetricsError` if it cannot be bound."""
        self._registry = registry
        self._ready = ready
        self._trouble = trouble
        self._making_metrics = trio.Lock()
        self._asking_parts = trio.Lock()
        self._connections = 0
        self._requests: Counter[str] = Counter()
        self._refused = 0
        self._failures = 0
        self._told = False
        self._socket = _bound(config)
        self.address, self.port = self._socket.getsockname()[:2]
        self._hypercorn = _hypercorn_config()
        self._context = WorkerContext(None)

    def close(self) -> None:
        """Close the listening socket."""
        self._socket.close()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        listener = trio.socket.from_stdlib_socket(self._socket)
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                try:
                    accepted, _ = await listener.accept()
                except OSError as error:
                    if error.errno == errno.EBADF:
                        return
                    self._failed(error)
                    await trio.sleep(ACCEPT_PAUSE)
                    continue
                if self._connections >= MAX_CONNECTIONS:
                    self._refused += 1
                    accepted.close()
                    continue
                self._connections += 1
                nursery.start_soon(self._serve, _Stream(accepted))

    def statistics(self) -> dict[str, Any]:
        """Counters."""
        return {
            "requests": {status: self._requests[status] for status in sorted(self._requests)},
            "connections_refused": self._refused,
            "failures": self._failures,
        }

    # --- one connection -----------------------------------------------------------------------------

    async def _serve(self, stream: _Stream) -> None:
        try:
            async with trio.open_nursery() as nursery:

                async def application(*arguments: Any) -> None:
                    with stream.busy():
                        await self._app(*arguments)

                async def serve() -> None:
                    state = ConnectionState(LifespanState({}))
                    app = ASGIWrapper(application)
                    await TCPServer(app, self._hypercorn, self._context, state, stream)  # type: ignore[arg-type]
                    nursery.cancel_scope.cancel()

                nursery.start_soon(serve)
                await stream.end_in_time()
                nursery.cancel_scope.cancel()
        except* (OSError, trio.ClosedResourceError, trio.BrokenResourceError):
            pass  # the other side went, or was too slow
        except* Exception as group:  # noqa: BLE001 - see property 1
            self._failed(group)
        finally:
            stream.close()
            self._connections -= 1

    def _failed(self, error: BaseException) -> None:
        self._failures += 1
        if not self._told:
            # Once: whoever provokes it can do so again and again. The counter goes on.
            self._told = True
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            self._trouble("metrics failed", reason=repr(error))

    # --- the application ----------------------------------------------------------------------------

    async def _app(
        self, scope: Mapping[str, Any], receive: Callable[..., Any], send: Callable[..., Any]
    ) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await send({"type": "websocket.close"})  # there are none: 403
            return
        accept = b",".join(value for name, value in scope["headers"] if name == b"accept").decode("latin-1")
        status, content_type, body = await self._answered(scope["method"], scope["path"], accept)
        self._requests[str(status)] += 1
        headers = [
            (b"content-type", content_type.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
        ]
        if status == 405:
            headers.append((b"allow", b"GET, HEAD"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answered(self, method: str, path: str, accept: str) -> Answer:
        answers: dict[str, Callable[[], Awaitable[Answer]]] = {
            "/metrics": partial(self._metrics, accept),
            "/healthz": self._health,
            "/readyz": self._readiness,
        }
        answer = answers.get(path)
        if answer is None:
            return 404, _TEXT, b"there are /metrics, /healthz and /readyz\n"
        if method not in ("GET", "HEAD"):
            return 405, _TEXT, b"GET or HEAD\n"
        try:
            return await answer()
        except Exception as error:  # noqa: BLE001 - see property 1
            self._failed(error)
            return 500, _TEXT, b"failed; the log says why\n"

    async def _metrics(self, accept: str) -> Answer:
        async with self._making_metrics:
            body, content_type = render(self._registry(), accept)
        return 200, content_type, body

    async def _health(self) -> Answer:
        return 200, _JSON, b'{"status": "alive"}\n'

    async def _readiness(self) -> Answer:
        with trio.move_on_after(REQUEST_TIME):
            async with self._asking_parts:
                reasons = await self._ready()
            return _readiness(reasons)
        return _readiness({"service": f"does not say within {REQUEST_TIME:g} s"})


def _readiness(reasons: Mapping[str, str]) -> Answer:
    fact = {"status": "not ready" if reasons else "ready", "reasons": dict(reasons)}
    return (503 if reasons else 200), _JSON, json_line(fact).encode() + b"\n"


class _Stream:
    """What hypercorn needs of a connection, with a bound on what is received, and an end as soon as it is of no use.

    hypercorn would keep one that the other side has closed until it had been idle for long enough.
    """

    def __init__(self, accepted: trio.socket.SocketType) -> None:
        self.socket = accepted
        self._stream = trio.SocketStream(accepted)
        self._received = 0
        self._requests = 0
        self._ended = False
        self._over = trio.Event()

    async def receive_some(self, size: int) -> bytes:
        left = MAX_RECEIVED - self._received
        # In small pieces, as h11 looks at a request's size only while it is not complete.
        data = await self._stream.receive_some(min(size, left, PIECE)) if left > 0 else b""
        self._received += len(data)
        if not data:
            # Who has said all may still wait for the answer.
            self._ended = True
            self._note_end()
        return bytes(data)

    async def send_all(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        self._over.set()
        await self._stream.aclose()

    def close(self) -> None:
        """At once; whoever reads or writes gets ClosedResourceError."""
        self.socket.close()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """While a request is answered."""
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1
            self._note_end()

    def _note_end(self) -> None:
        if self._ended and not self._requests:
            self._over.set()

    async def end_in_time(self) -> None:
        """Return when it is of no use any more, or old; it is closed then."""
        try:
            with trio.move_on_after(MAX_AGE):
                await self._over.wait()
        finally:  # also when cancelled: see property 3
            self.close()


class _NoLog(Logger):
    """hypercorn's own log goes nowhere: faults are told by ours, and nobody wants a line for each scrape."""

    def __init__(self, config: Config) -> None:
        self.access_logger = None
        self.error_logger = None


def _hypercorn_config() -> Config:
    config = Config()
    config.logger_class = _NoLog
    config.accesslog = config.errorlog = None
    config.h11_max_incomplete_size = MAX_HEADERS
    config.h2_max_concurrent_streams = 1
    config.h2_max_header_list_size = MAX_HEADERS
    config.keep_alive_timeout = IDLE_TIME
    config.include_server_header = False
    config.max_app_queue_size = 4
    return config


def _bound(config: Metrics) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port = config.port if isinstance(config.port, int) else 0
        sock.bind((config.address, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise MetricsError(_why(error, config)) from None
    return sock


def _why(error: OSError, config: Metrics) -> str:
    where = (
        f"[{config.address}]:{config.port}" if ":" in config.address else f"{config.address}:{config.port}"
    )
    if error.errno == errno.EADDRINUSE:
        return f"metrics.port: TCP {where} is already in use; remedy: another port, or stop what uses it"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"metrics.address: {where}: this host has no such address; remedy: 127.0.0.1"
    if error.errno == errno.EACCES:
        return f"metrics.port: TCP {where}: not permitted; remedy: a port from 1024 on"
    return f"metrics.port: TCP {where}: {show_text((error.strerror or str(error)).lower())}"
