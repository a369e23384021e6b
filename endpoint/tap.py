"""Where somebody can listen in on an engine: every datagram, both ways, and what becomes of handshakes.

``engine.tap`` is ``None`` unless something is being captured; then each datagram costs one comparison. Like an observer a
tap is called from within the engine's turns: it must neither block nor await. What it raises is reported as trouble, and
the tap is taken off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from endpoint.addresses import Path
    from sansdtls import Connection, ConnectionOffered, SecretDerived


class Tap(Protocol):
    """Told of everything. ``now`` is the engine's clock."""

    def datagram_received(self, data: bytes, path: Path, now: float) -> None:
        """A datagram is being looked at, or was. All that is told before the next one follows from it.

        One that the intake has dropped is not told of.
        """
        ...

    def datagram_sent(self, data: bytes, path: Path, now: float) -> None:
        """A datagram goes to the kernel."""
        ...

    def began(self, connection: Connection, offer: ConnectionOffered) -> None:
        """A client has proved its address and was let in: a handshake is under way."""
        ...

    def identified(self, connection: Connection, identity: bytes) -> None:
        """Which PSK identity the client of a handshake claims. Whether it is true, its Finished will tell."""
        ...

    def secret(self, event: SecretDerived, identity: bytes | None) -> None:
        """The secret of a handshake, and whose it is: the PSK identity, or what the verifier said; ``None`` = nobody's.

        Only of handshakes that began after :meth:`~endpoint.engine.Engine.log_secrets`.
        """
        ...

    def ended(self, connection: Connection) -> None:
        """A handshake is over that has not become an association."""
        ...
