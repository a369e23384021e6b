"""This project's servers as they are measured.

``serve_engine`` is what ``dtls-endpoint serve`` runs, with an echo behind it: no task per peer.
``serve_channels`` is the embedding API with an echo handler: a task and a channel per peer, as trio's
DTLSEndpoint has them. Those quotas that are on by default are on, so that their cost is in the figures, and set
beyond what the load generator's one address can send.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from benchmarks import control, ours
from benchmarks.load import HOST, PSK_IDENTITY, PSK_KEY
from endpoint import Association, DictKeyStore, DtlsChannel, Engine, QuotaPolicy, bind_udp, serve_dtls

if TYPE_CHECKING:
    from benchmarks.control import Pipe
    from sansdtls import CipherSuite

QUOTAS = QuotaPolicy(
    handshakes_per_second=1e6,
    handshake_burst=1_000_000,
    associations_per_prefix=1_000_000,
    associations_per_identity=1_000_000,
    datagrams_per_second=1e6,
    datagram_burst=1_000_000,
    bytes_per_second=1e12,
    byte_burst=10**12,
    half_open_per_prefix=1_000_000,
    prefix_datagrams_per_second=1e6,
    prefix_datagram_burst=1_000_000,
    prefix_bytes_per_second=1e12,
    prefix_byte_burst=10**12,
    identity_handshakes_per_second=1e6,
    identity_handshake_burst=1_000_000,
    total_handshakes_per_second=1e6,
    total_handshake_burst=1_000_000,
)


class Echo:
    """The observer that sends everything back."""

    def received(self, association: Association, data: bytes) -> None:
        association.send(data)

    def _ignore(self, *_arguments: object, **_facts: object) -> None:
        """No interest in anything else."""

    completed = moved = move_requested = frozen = thawed = terminated = handshake_failed = refused = (
        trouble
    ) = _ignore


def serve_engine(pipe: Pipe, suite: CipherSuite) -> None:
    """The measured process with an engine."""
    trio.run(_serve_engine, pipe, suite)


async def _serve_engine(pipe: Pipe, suite: CipherSuite) -> None:
    sockets = await bind_udp(HOST, 0)
    engine = Engine(
        ours.server_config(suite),
        sockets=sockets,
        keystore=DictKeyStore({PSK_IDENTITY: PSK_KEY}),
        quotas=QUOTAS,
        observer=Echo(),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        pipe.send(sockets[0].port)
        await control.answer(pipe, engine.statistics)
        nursery.cancel_scope.cancel()


def serve_channels(pipe: Pipe, suite: CipherSuite) -> None:
    """The measured process with a channel for each peer."""
    trio.run(_serve_channels, pipe, suite)


async def _serve_channels(pipe: Pipe, suite: CipherSuite) -> None:
    async def echo(channel: DtlsChannel) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.EndOfChannel):  # the client has left
            while True:
                await channel.send(await channel.receive())

    serve = partial(
        serve_dtls,
        echo,
        0,
        host=HOST,
        config=ours.server_config(suite),
        keystore={PSK_IDENTITY: PSK_KEY},
        quotas=QUOTAS,
    )
    async with trio.open_nursery() as nursery:
        sockets: list[Any] = await nursery.start(serve)
        pipe.send(sockets[0].port)
        await control.answer(pipe, dict)
        nursery.cancel_scope.cancel()
