"""One live association, as the program sees it."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Protocol

from endpoint.addresses import path_text
from sansdtls import MessageTooLarge, UsageError, WrongState

if TYPE_CHECKING:
    from endpoint.addresses import Path
    from endpoint.quotas import DataBudget, Prefix
    from endpoint.sockets import UdpSocket
    from sansdtls import Connection, PathChangeRequested, Peer


@enum.unique
class CredentialKind(enum.Enum):
    """How a peer has proved who it is."""

    PSK = "psk"
    CERTIFICATE = "certificate"
    RAW_PUBLIC_KEY = "raw_public_key"
    NONE = "none"
    """Not at all; only with ``client_authentication`` ``NONE`` or ``WANTED``."""

    @classmethod
    def of(cls, peer: Peer | None) -> CredentialKind:
        """The kind that the core's ``connection.peer`` stands for."""
        if peer is None:
            return cls.NONE
        if peer.psk_identity is not None:
            return cls.PSK
        if peer.certificate_chain is not None:
            return cls.CERTIFICATE
        return cls.NONE if peer.raw_public_key is None else cls.RAW_PUBLIC_KEY


class Carrier(Protocol):
    """What an association needs of its engine."""

    def now(self) -> float:
        """The clock that the connection is driven by."""
        ...

    def settle(self) -> None:
        """Send what the connection has to send, and arm its timeout."""
        ...

    def confirm_path(self, request: PathChangeRequested) -> None:
        """Have the association that ``request`` is about move."""
        ...

    def socket_of(self, path: Path) -> UdpSocket:
        """The socket that ``path`` goes through."""
        ...


class Association:
    """A peer whose handshake is done. Made by the engine; there may be 100,000, so it has slots."""

    __slots__ = (
        "_carrier",
        "budget",
        "connection",
        "context",
        "dropped",
        "handle",
        "identity",
        "key_index",
        "kind",
        "path",
        "prefix",
        "route",
        "send_errors",
    )

    def __init__(
        self,
        carrier: Carrier,
        connection: Connection,
        *,
        path: Path,
        prefix: Prefix,
        identity: bytes,
        kind: CredentialKind,
        key_index: int | None,
        budget: DataBudget,
    ) -> None:
        self._carrier = carrier
        self.connection = connection
        self.path = path
        """Index of our socket, and the peer's address; changes when the peer moves."""
        self.prefix = prefix
        self.identity = identity
        """Who the peer is, authenticated; any bytes: its PSK identity, or what the verifier made of its certificate or
        raw public key. Empty for a peer that showed nothing (``kind`` is ``NONE``)."""
        self.kind = kind
        """How it proved that."""
        self.key_index = key_index
        """Which of the identity's pre-shared keys the peer has: 0 the current, 1 the next; ``None`` without one."""
        self.budget = budget
        self.dropped = 0
        """Datagrams of this association that were dropped here, in either direction."""
        self.send_errors = 0
        """Datagrams that the kernel refused to send to this peer."""
        self.context: Any = None
        """For the observer's own use."""
        self.route: Any = None
        """For the forwarder's: where its data go."""
        self.handle: bytes | None = None
        """What names a frozen association; only while ``Observer.frozen`` and ``Observer.thawed`` are called, and the
        same in both, so that an observer can tell which of an identity's is back."""

    @property
    def identified(self) -> bool:
        """Whether it has shown who it is."""
        return self.kind is not CredentialKind.NONE

    @property
    def fingerprint(self) -> str | None:
        """Names the pre-shared key that it was made with, as :func:`~endpoint.keystore.fingerprint.fingerprint` does.

        ``None`` without one, and for an association that was frozen by a version that did not keep it.
        """
        return self.key_digest.hex() or None

    @property
    def key_digest(self) -> bytes:
        """The same as bytes; empty for none."""
        return self.connection.annotation if self.kind is CredentialKind.PSK else b""

    @property
    def remote(self) -> str:
        """The peer's address and port as text."""
        return path_text(self.path)

    @property
    def local(self) -> str:
        """Our address and port as text."""
        return self._carrier.socket_of(self.path).local_text_for(self.path[1])

    @property
    def local_address(self) -> tuple[str, int]:
        """Our address and port."""
        return self._carrier.socket_of(self.path).local_address_for(self.path[1])

    @property
    def last_received(self) -> float:
        """When data arrived last (or the handshake ended), on the engine's clock."""
        return self.budget.refilled

    def send(self, data: bytes, *, path: Path | None = None) -> bool:
        """Send one datagram of at most ``connection.max_payload`` bytes; never blocks, never raises.

        ``path`` may be one that the observer was asked about (``move_requested``), within limits. ``False`` = it was
        dropped, and counted in ``dropped``: too large, or the association has ended, or is frozen and will be back as
        another object. ``True`` promises no arrival.
        """
        try:
            self.connection.send(data, now=self._carrier.now(), path=path)
        except (WrongState, MessageTooLarge):
            self.dropped += 1
            return False
        self._carrier.settle()
        return True

    def transmit(self, data: bytes) -> None:
        """As :meth:`send`, but raises what the core raises: ``WrongState``, ``MessageTooLarge``."""
        self.connection.send(data, now=self._carrier.now())
        self._carrier.settle()

    def confirm_path(self, request: PathChangeRequested) -> None:
        """The peer is where ``Observer.move_requested`` said: ``Observer.moved`` follows at once.

        Nothing happens if it was heard elsewhere since, or the association has ended. Raises UsageError for a request about
        another association.
        """
        if request.connection is not self.connection:
            raise UsageError("this request is about another association")
        self._carrier.confirm_path(request)

    async def wait_writable(self) -> None:
        """Return once the kernel takes datagrams. Not a checkpoint if there is nothing to wait for."""
        await self._carrier.socket_of(self.path).wait_writable()

    def close(self) -> None:
        """Send close_notify and end; ``Observer.terminated`` follows soon. Closing twice does nothing."""
        self.connection.close(now=self._carrier.now())
        self._carrier.settle()

    def __repr__(self) -> str:
        return f"<Association of {self.identity!r} at {self.remote}>"
