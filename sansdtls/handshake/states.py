"""What a handshake can be waiting for."""

from __future__ import annotations

import enum

from sansdtls.events import PeerCertificateReceived, PeerRawKeyReceived, PskRequested


@enum.unique
class State(enum.Enum):
    """What a handshake waits for, in protocol order."""

    AWAIT_SERVER_HELLO = enum.auto()
    AWAIT_SERVER_CERTIFICATE = enum.auto()
    AWAIT_SERVER_KEY_EXCHANGE = enum.auto()
    AWAIT_IDENTITY_HINT = enum.auto()
    """ServerKeyExchange of plain PSK, which may be left out."""
    AWAIT_CERTIFICATE_REQUEST = enum.auto()
    """Which may be left out."""
    AWAIT_SERVER_HELLO_DONE = enum.auto()
    AWAIT_CLIENT_CERTIFICATE = enum.auto()
    AWAIT_CLIENT_KEY_EXCHANGE = enum.auto()
    AWAIT_CERTIFICATE_VERIFY = enum.auto()
    AWAIT_PSK = enum.auto()
    """The caller's answer to ``PskRequested``."""
    AWAIT_ACCEPTANCE = enum.auto()
    """The caller's answer to ``PeerCertificateReceived`` or ``PeerRawKeyReceived``."""
    AWAIT_SESSION_TICKET = enum.auto()
    AWAIT_CHANGE_CIPHER_SPEC = enum.auto()
    AWAIT_FINISHED = enum.auto()
    DONE = enum.auto()


WAITING_FOR_CALLER = frozenset((State.AWAIT_PSK, State.AWAIT_ACCEPTANCE))
"""States in which nothing is processed: an event waits for its answer."""

Request = PskRequested | PeerCertificateReceived | PeerRawKeyReceived
"""The events that a handshake waits to have answered."""
