"""Sans-IO DTLS: connection objects that consume and emit bytes, with no socket, clock or randomness.

Everything public is named here. Start with :class:`Connection` for one peer and :class:`Server` for many.
"""

from sansdtls.association import ConnectionState, Peer
from sansdtls.config import (
    DEFAULT_CIPHER_SUITES,
    ClientConfig,
    CookiePolicy,
    ExtendedMasterSecret,
    Limits,
    RetransmitPolicy,
    ServerConfig,
)
from sansdtls.connection import Connection
from sansdtls.errors import ConfigError, DtlsError, MessageTooLarge, UsageError, WrongState
from sansdtls.events import (
    AlertReceived,
    AuthenticationFailed,
    AuthenticationProblem,
    Cause,
    ConnectionOffered,
    ConnectionTerminated,
    DataReceived,
    DiscardReason,
    Event,
    HandshakeCompleted,
    HandshakeTimeout,
    IdleTimeout,
    KeysExhausted,
    LimitExceeded,
    LocalClose,
    PeerAlert,
    PeerClose,
    PeerIncompatible,
    ProtocolViolation,
    PskRequested,
    SecretDerived,
    key_log_line,
)
from sansdtls.handshake.negotiation import Negotiated
from sansdtls.iana import AlertDescription, AlertLevel, CipherSuite, ProtocolVersion
from sansdtls.record.layer import Outgoing
from sansdtls.server import Server
from sansdtls.statistics import ConnectionStatistics, ServerStatistics, cause_name

__all__ = [
    "DEFAULT_CIPHER_SUITES",
    "AlertDescription",
    "AlertLevel",
    "AlertReceived",
    "AuthenticationFailed",
    "AuthenticationProblem",
    "Cause",
    "CipherSuite",
    "ClientConfig",
    "ConfigError",
    "Connection",
    "ConnectionOffered",
    "ConnectionState",
    "ConnectionStatistics",
    "ConnectionTerminated",
    "CookiePolicy",
    "DataReceived",
    "DiscardReason",
    "DtlsError",
    "Event",
    "ExtendedMasterSecret",
    "HandshakeCompleted",
    "HandshakeTimeout",
    "IdleTimeout",
    "KeysExhausted",
    "LimitExceeded",
    "Limits",
    "LocalClose",
    "MessageTooLarge",
    "Negotiated",
    "Outgoing",
    "Peer",
    "PeerAlert",
    "PeerClose",
    "PeerIncompatible",
    "ProtocolVersion",
    "ProtocolViolation",
    "PskRequested",
    "RetransmitPolicy",
    "SecretDerived",
    "Server",
    "ServerConfig",
    "ServerStatistics",
    "UsageError",
    "WrongState",
    "cause_name",
    "key_log_line",
]
