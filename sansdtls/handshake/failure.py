"""How a handler ends a handshake: by raising. Internal; it never leaves the connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sansdtls.events import PeerIncompatible, ProtocolViolation

if TYPE_CHECKING:
    from sansdtls.events import Cause
    from sansdtls.iana import AlertDescription


class HandshakeFailure(Exception):
    """Send ``description`` as a fatal alert (``None`` = say nothing) and end with ``cause``."""

    def __init__(self, description: AlertDescription | None, cause: Cause) -> None:
        super().__init__(cause)
        self.description = description
        self.cause = cause


def violation(description: AlertDescription, rule: str) -> HandshakeFailure:
    """The peer broke ``rule``; ``description`` is what RFC 5246 §7.2.2 has for it."""
    return HandshakeFailure(description, ProtocolViolation(description, rule))


def incompatible(description: AlertDescription, rule: str) -> HandshakeFailure:
    """There is nothing both sides support."""
    return HandshakeFailure(description, PeerIncompatible(description, rule))
