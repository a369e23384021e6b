"""What :func:`serve_dtls` and :func:`open_dtls` give out: a ``trio.abc.Channel`` of datagrams.

How it ends, which is what callers have to write code for::

                                          receive()                       send()
    aclose() here, or the endpoint stops  ClosedResourceError             ClosedResourceError
    peer sent close_notify                EndOfChannel                    AssociationEnded
    alert, idle, replaced, keys used up   AssociationEnded                AssociationEnded

``AssociationEnded`` is a ``trio.BrokenResourceError`` with the cause. What arrived before the end is
received before any of these is raised, except after ``aclose``, which throws it away.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import attrs
import trio

from endpoint.causes import cause_text
from sansdtls import LocalClose, PeerClose, WrongState

if TYPE_CHECKING:
    from endpoint.association import CredentialKind
    from sansdtls import Cause, Connection, ConnectionStatistics, Negotiated, Peer, Session


class AssociationEnded(trio.BrokenResourceError):
    """The association is over, and not by agreement. ``cause`` is the core's own value."""

    def __init__(self, message: str, cause: Cause) -> None:
        super().__init__(message)
        self.cause = cause


class HandshakeFailed(AssociationEnded):
    """A DTLS peer answered, and the handshake with it failed."""


@attrs.frozen
class ChannelStatistics:
    """Figures of one channel."""

    datagrams_dropped: int
    """Received and authenticated, but dropped because ``receive`` was not called often enough."""
    send_errors: int
    """Datagrams that the kernel refused to send."""
    connection: ConnectionStatistics
    """What the core counts."""


class DtlsChannel(trio.abc.Channel[bytes]):
    """One association. Each ``send`` is one datagram to the peer, each ``receive`` one from it.

    As with any datagrams some may be lost, and they may come in another order; none is altered,
    forged or delivered twice. Several tasks may call ``send`` and ``receive`` at the same time. Not
    made directly, but by :func:`serve_dtls` and :func:`open_dtls`.
    """

    def __init__(
        self, connection: Connection, *, identity: bytes, kind: CredentialKind, key_index: int | None
    ) -> None:
        self._connection = connection
        self._identity = identity
        self._kind = kind
        self._key_index = key_index
        self._closed = False
        self._cause: Cause | None = None

    # --- what it is ---

    @property
    def identity(self) -> bytes:
        """Who the peer is, authenticated: its PSK identity, or what the verifier made of what it showed.

        On a client with a PSK it is the client's own, for servers have none. Empty for a client that
        showed nothing.
        """
        return self._identity

    @property
    def kind(self) -> CredentialKind:
        """How the peer has proved who it is."""
        return self._kind

    @property
    def key_index(self) -> int | None:
        """Which of the identity's pre-shared keys the peer has: 0 the current, 1 the next; ``None`` without one."""
        return self._key_index

    @property
    def peer(self) -> Peer:
        """What the peer has shown, as the core knows it: certificate chain, raw public key, PSK identity."""
        peer = self._connection.peer
        assert peer is not None  # noqa: S101 - as in negotiated
        return peer

    @property
    @abstractmethod
    def remote(self) -> str:
        """The peer's address and port as text."""

    @property
    @abstractmethod
    def local(self) -> str:
        """Our address and port as text."""

    @property
    def negotiated(self) -> Negotiated:
        """Version, cipher suite and extensions in use."""
        negotiated = self._connection.negotiated
        assert negotiated is not None  # noqa: S101 - a channel exists only after the handshake
        return negotiated

    @property
    def session(self) -> Session | None:
        """On a client, what resumes this association: for ``ClientConfig.session`` of the next one. Holds a secret.

        ``None`` where the server offers nothing, and on a server.
        """
        return self._connection.session

    @property
    def connection_id(self) -> bytes:
        """By which we find the peer's records wherever they come from (RFC 9146); none = by its address alone."""
        return self._connection.connection_id

    @property
    def peer_connection_id(self) -> bytes:
        """By which the peer finds ours, so that our own address may change; none = it may not."""
        return self._connection.peer_connection_id

    @property
    def max_payload(self) -> int:
        """Bytes that fit one ``send``."""
        return self._connection.max_payload

    @property
    @abstractmethod
    def statistics(self) -> ChannelStatistics:
        """Figures as of now."""

    def export_keying_material(self, label: str, length: int, context: bytes | None = None) -> bytes:
        """``length`` bytes that both peers, and nobody else, can compute (RFC 5705)."""
        return self._connection.export_keying_material(label, length, context)

    # --- what it does ---

    async def send(self, value: bytes) -> None:
        """Send one datagram of at most :attr:`max_payload` bytes.

        Returning does not mean that it arrived. Waits while the kernel's send buffer is full. Where it
        raises, cancellation included, nothing was sent: ``sansdtls.MessageTooLarge``, or see the
        module's table.
        """
        await trio.lowlevel.checkpoint()
        await self._until_writable()
        if self._closed or isinstance(self._cause, LocalClose):
            raise trio.ClosedResourceError("this channel was closed")
        if self._cause is not None:
            raise self._ended(self._cause)
        try:
            self._transmit(value)
        except WrongState:
            # It has just ended, and the event with the cause is still on its way.
            raise trio.BrokenResourceError(f"the association with {self.remote} has ended") from None

    @abstractmethod
    async def receive(self) -> bytes:
        """The next datagram. Raises as in the module's table."""

    async def aclose(self) -> None:
        """Send close_notify and end. Waits for nobody; calling it twice does nothing."""
        if not self._closed:
            self._closed = True
            self._close()
        await trio.lowlevel.checkpoint()

    # --- for the two kinds of channel ---

    @abstractmethod
    async def _until_writable(self) -> None:
        """Wait while the kernel takes no datagrams."""

    @abstractmethod
    def _transmit(self, data: bytes) -> None:
        """Seal and send now."""

    @abstractmethod
    def _close(self) -> None:
        """Send close_notify, wake whoever waits, give up resources. Must not fail or block."""

    def _why_no_more(self) -> Exception:
        """What ``receive`` raises when nothing is left to receive."""
        if self._closed or self._cause is None or isinstance(self._cause, LocalClose):
            return trio.ClosedResourceError("this channel was closed")
        if isinstance(self._cause, PeerClose) and not self._cause.replaced:
            return trio.EndOfChannel("closed by the peer")
        return self._ended(self._cause)

    def _ended(self, cause: Cause) -> AssociationEnded:
        return AssociationEnded(f"the association with {self.remote} has ended: {cause_text(cause)}", cause)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._cause is None else "ended"
        return f"<DtlsChannel of {self._identity!r} to {self.remote}, {state}>"
