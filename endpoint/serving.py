"""``serve_dtls``: a channel and a handler task for each association, for programs that embed an endpoint."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, NoReturn, TypeAlias

import trio

from endpoint.addresses import path_text
from endpoint.causes import cause_text
from endpoint.channel import ChannelStatistics, DtlsChannel
from endpoint.engine import Engine
from endpoint.keystore import DictKeyStore
from endpoint.keystore.file import FileKeyStore
from endpoint.keystore.guard import GuardedStore
from endpoint.quotas import QuotaPolicy, TokenBucket, WaitingData
from endpoint.udp import bind_udp
from endpoint.verification import as_verify
from sansdtls import ConfigError, LocalClose, PathPolicy
from sansdtls.pki import Purpose

if TYPE_CHECKING:
    from endpoint.addresses import Path
    from endpoint.association import Association
    from endpoint.keystore import Keys, KeyStore
    from endpoint.sockets import UdpSocket
    from endpoint.verification import PeerRejected, Verify
    from sansdtls import Cause, PathChangeRequested, PathProof, ServerConfig
    from sansdtls.pki import TrustPolicy, Verifier

Handler: TypeAlias = Callable[[DtlsChannel], Awaitable[object]]

DEFAULT_BUFFER = 64
"""Datagrams kept per channel until ``receive`` takes them: one turn of the engine's receive loop, so
that a handler that keeps up loses nothing to one burst."""

LOG = logging.getLogger("endpoint")
"""Where ``serve_dtls`` tells what no handler can be told, at level WARNING: handshakes that failed, and why."""

LOG_RATE = 1.0
"""Failed handshakes logged per second, because anybody can cause them."""
LOG_BURST = 10
"""The same, at once."""
MAX_LOGGED_IDENTITY = 64
"""Bytes of an unauthenticated identity that are logged; it may have 65,535."""


async def serve_dtls(
    handler: Handler,
    port: int,
    *,
    config: ServerConfig,
    keystore: KeyStore | Mapping[bytes, bytes | Keys] | None = None,
    verify: Verify | Verifier | TrustPolicy | None = None,
    host: str | None = None,
    quotas: QuotaPolicy | None = None,
    buffer: int = DEFAULT_BUFFER,
    handler_nursery: trio.Nursery | None = None,
    task_status: trio.TaskStatus[list[UdpSocket]] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve DTLS on ``port``, and run ``handler(channel)`` in a task of its own for each association.

    The handler starts once the peer has proved its key. When it returns, its channel is closed. As
    with ``trio.serve_tcp``, what a handler *raises* goes on through the nursery and ends the server,
    unless ``handler_nursery`` is one that deals with it; so catch what concerns one peer only,
    at the least ``trio.BrokenResourceError``.

    ``host`` is as in :func:`bind_udp`: ``None`` = all interfaces. ``keystore`` may be a mapping from
    identity to key or to a list of keys; a store that may answer late, or not at all, gets a :class:`GuardedStore` around it,
    with the defaults unless it is one, and its ``run``, if it has one, is run. ``verify`` says who a client with a certificate or raw public key is:
    a ``sansdtls.pki`` trust policy or verifier, a :class:`PeerVerifier`, or your own function
    (:data:`Verify`). Without it, such clients are rejected; ``config.client_authentication`` says whether
    they are asked at all. ``channel.identity`` and ``channel.kind`` tell the handler who it is. ``quotas`` are :class:`QuotaPolicy`'s defaults if not given.
    At most ``buffer`` datagrams wait for ``receive``, and as many bytes as the quotas say; what comes beyond is dropped
    and counted in ``channel.statistics``. With ``nursery.start`` it returns the sockets, whose ``port`` tells which
    port 0 became.

    Runs until cancelled; then every peer gets close_notify. Raises :class:`ListenError`, and ConfigError for a
    ``config`` with ``freeze_after``, as a handler that waits cannot be frozen, or with ``PathPolicy.APPLICATION``, as
    a channel cannot be asked. A peer with a connection ID may move: ``channel.remote`` is where it is now.

    An empty datagram is delivered as one. Clients send them to keep a NAT's mapping alive (``open_dtls``'s
    ``keep_alive``); a handler that makes nothing of them passes over them.
    """
    _require_possible(config)
    if isinstance(keystore, Mapping):
        keystore = DictKeyStore(keystore)
    store: KeyStore = DictKeyStore() if keystore is None else keystore
    policy = QuotaPolicy() if quotas is None else quotas
    judge = as_verify(verify, Purpose.CLIENT)
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(udp) for udp in await bind_udp(host, port)]
        async with trio.open_nursery() as nursery:
            channels = _Channels(handler, handler_nursery or nursery, buffer, WaitingData(policy))
            if not isinstance(store, DictKeyStore | FileKeyStore):
                guard = (
                    store
                    if isinstance(store, GuardedStore)
                    else GuardedStore(store, trouble=channels.trouble)
                )
                await nursery.start(guard.run)
                store = guard
            engine = Engine(
                config,
                sockets=sockets,
                keystore=store,
                verify=judge,
                quotas=policy,
                observer=channels,
            )
            # Before the sockets close, and where handlers live in another nursery so that they notice.
            opened.callback(channels.end_all, engine)
            await nursery.start(engine.run)
            task_status.started(sockets)
    raise AssertionError("an engine runs until cancelled")  # pragma: no cover - nothing else ends the nursery


def _require_possible(config: ServerConfig) -> None:
    if config.freeze_after is not None:
        raise ConfigError("ServerConfig.freeze_after: associations that have a handler cannot be frozen")
    policy = config.connection_id
    if policy is not None and policy.path_policy is PathPolicy.APPLICATION:
        raise ConfigError(
            "ServerConfig.connection_id: path_policy: a channel cannot be asked whether its peer has moved"
        )


class ServedChannel(DtlsChannel):
    """The channel of an engine's association. The engine does the work; this keeps what it delivers."""

    def __init__(self, association: Association, buffer: int, waiting: WaitingData) -> None:
        super().__init__(
            association.connection,
            identity=association.identity,
            kind=association.kind,
            key_index=association.key_index,
        )
        self._association = association
        self._dropped = 0
        self._waiting = waiting
        self._held = 0
        """Bytes that wait for ``receive``."""
        self._sender, self._receiver = trio.open_memory_channel[bytes](buffer)

    @property
    def remote(self) -> str:
        return self._association.remote

    @property
    def local(self) -> str:
        return self._association.local

    @property
    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(self._dropped, self._association.send_errors, self._connection.statistics)

    async def receive(self) -> bytes:
        with contextlib.suppress(trio.EndOfChannel, trio.ClosedResourceError):
            data = await self._receiver.receive()
            self._let_go(len(data))
            return data
        raise self._why_no_more()

    async def _until_writable(self) -> None:
        await self._association.wait_writable()

    def _transmit(self, data: bytes) -> None:
        self._association.transmit(data)

    def _close(self) -> None:
        self._receiver.close()
        self._let_go(self._held)
        self._association.close()

    def _let_go(self, size: int) -> None:
        """Those bytes wait no more; when all is given back, one that was just handed over has been, too."""
        size = min(size, self._held)
        self._held -= size
        self._waiting.release(size)

    def deliver(self, data: bytes) -> None:
        """Keep ``data`` for ``receive``, or drop it."""
        size = len(data)
        if not self._waiting.admit(self._held, size):
            self._dropped += 1
            return
        self._held += size
        try:
            self._sender.send_nowait(data)
        except trio.WouldBlock:
            self._let_go(size)
            self._dropped += 1

    def end(self, cause: Cause) -> None:
        """The association is over."""
        self._cause = cause
        self._sender.close()


class _Channels:
    """The observer that turns associations into channels."""

    def __init__(self, handler: Handler, nursery: trio.Nursery, buffer: int, waiting: WaitingData) -> None:
        self._handler = handler
        self._nursery = nursery
        self._buffer = buffer
        self._waiting = waiting
        self._log_bucket = TokenBucket(LOG_BURST, trio.current_time())
        self._held_back = 0
        self._trouble_buckets: dict[str, TokenBucket] = {}

    def completed(self, association: Association) -> None:
        channel = association.context = ServedChannel(association, self._buffer, self._waiting)
        try:
            self._nursery.start_soon(self._run_handler, channel)
        except RuntimeError:
            # The caller's own nursery is gone: nobody would ever read, so do not pretend to the peer.
            association.close()
            raise

    async def _run_handler(self, channel: ServedChannel) -> None:
        try:
            await self._handler(channel)
        finally:
            await trio.aclose_forcefully(channel)

    def received(self, association: Association, data: bytes) -> None:
        association.context.deliver(data)

    def moved(self, association: Association, old: Path, proof: PathProof) -> None:
        """``channel.remote`` tells the new address from now on."""

    def move_requested(self, association: Association, request: PathChangeRequested) -> None:
        """Not with the policies that serve_dtls takes."""

    def frozen(self, association: Association) -> None:
        raise AssertionError(
            "an association with a handler does not freeze"
        )  # pragma: no cover - see serve_dtls

    thawed = frozen

    def terminated(self, association: Association, cause: Cause) -> None:
        association.context.end(cause)

    def handshake_failed(
        self, path: Path, identity: bytes | None, cause: Cause, rejection: PeerRejected | None
    ) -> None:
        if not self._log_bucket.take(1, rate=LOG_RATE, burst=LOG_BURST, now=trio.current_time()):
            self._held_back += 1
            return
        held_back, self._held_back = self._held_back, 0
        LOG.warning(
            "handshake with %s (identity %r) failed: %s; %d like it not shown",
            path_text(path),
            identity and identity[:MAX_LOGGED_IDENTITY],
            cause_text(cause) if rejection is None else str(rejection),
            held_back,
        )

    def refused(self, path: Path, reason: str) -> None:
        LOG.debug("refused %s: %s", path_text(path), reason)

    def trouble(self, what: str, **facts: object) -> None:
        # By ``what``, which is a fixed phrase: while a key store is down, anybody can cause as many as he likes.
        now = trio.current_time()
        bucket = self._trouble_buckets.setdefault(what, TokenBucket(LOG_BURST, now))
        if bucket.take(1, rate=LOG_RATE, burst=LOG_BURST, now=now):
            identity = facts.get("identity")
            if isinstance(identity, bytes):
                facts["identity"] = identity[:MAX_LOGGED_IDENTITY]
            LOG.warning("%s: %r", what, facts)

    def end_all(self, engine: Engine) -> None:
        for association in engine.associations():
            association.close()
            association.context.end(LocalClose())
