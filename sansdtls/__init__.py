"""Sans-IO DTLS: connection objects that consume and emit bytes, with no socket, clock or randomness.

Everything public is named here. Start with :class:`Connection` for one peer and :class:`Server` for many.
"""

from sansdtls.association import ConnectionState
from sansdtls.config import (
    DEFAULT_CIPHER_SUITES,
    ClientConfig,
    CookiePolicy,
    ExtendedMasterSecret,
    Limits,
    ResumptionPolicy,
    RetransmitPolicy,
    ServerConfig,
)
from sansdtls.connection import Connection
from sansdtls.connection_ids import ConnectionIdPolicy, PathPolicy, ReturnRoutability
from sansdtls.credentials import CertificateCredential, ClientAuthentication, RawPublicKeyCredential
from sansdtls.crypto.signatures import SigningKey
from sansdtls.errors import ConfigError, DtlsError, MessageTooLarge, SnapshotError, UsageError, WrongState
from sansdtls.events import (
    AlertReceived,
    AuthenticationFailed,
    AuthenticationProblem,
    Cause,
    ConnectionFrozen,
    ConnectionOffered,
    ConnectionTerminated,
    ConnectionThawed,
    DataReceived,
    DiscardReason,
    Event,
    HandshakeCompleted,
    HandshakeTimeout,
    IdleTimeout,
    KeysExhausted,
    LimitExceeded,
    LocalClose,
    PathChanged,
    PathChangeRequested,
    PathProof,
    PeerAlert,
    PeerCertificateReceived,
    PeerClose,
    PeerIncompatible,
    PeerRawKeyReceived,
    ProtocolViolation,
    PskRequested,
    SecretDerived,
    key_log_line,
)
from sansdtls.freezer import Checkpoint, Saved
from sansdtls.freezing_server import Restored
from sansdtls.frozen import FrozenStore, MemoryStore
from sansdtls.handshake.negotiation import Negotiated
from sansdtls.handshake.outcome import Peer
from sansdtls.iana import (
    AlertDescription,
    AlertLevel,
    CertificateType,
    CipherSuite,
    NamedGroup,
    ProtocolVersion,
    SignatureScheme,
)
from sansdtls.kinds import DatagramKind
from sansdtls.record.layer import Outgoing
from sansdtls.server import Server
from sansdtls.session import Session
from sansdtls.snapshot import expires_at
from sansdtls.statistics import ConnectionStatistics, ServerStatistics, cause_name

__all__ = [
    "DEFAULT_CIPHER_SUITES",
    "AlertDescription",
    "AlertLevel",
    "AlertReceived",
    "AuthenticationFailed",
    "AuthenticationProblem",
    "Cause",
    "CertificateCredential",
    "CertificateType",
    "Checkpoint",
    "CipherSuite",
    "ClientAuthentication",
    "ClientConfig",
    "ConfigError",
    "Connection",
    "ConnectionFrozen",
    "ConnectionIdPolicy",
    "ConnectionOffered",
    "ConnectionState",
    "ConnectionStatistics",
    "ConnectionTerminated",
    "ConnectionThawed",
    "CookiePolicy",
    "DataReceived",
    "DatagramKind",
    "DiscardReason",
    "DtlsError",
    "Event",
    "ExtendedMasterSecret",
    "FrozenStore",
    "HandshakeCompleted",
    "HandshakeTimeout",
    "IdleTimeout",
    "KeysExhausted",
    "LimitExceeded",
    "Limits",
    "LocalClose",
    "MemoryStore",
    "MessageTooLarge",
    "NamedGroup",
    "Negotiated",
    "Outgoing",
    "PathChangeRequested",
    "PathChanged",
    "PathPolicy",
    "PathProof",
    "Peer",
    "PeerAlert",
    "PeerCertificateReceived",
    "PeerClose",
    "PeerIncompatible",
    "PeerRawKeyReceived",
    "ProtocolVersion",
    "ProtocolViolation",
    "PskRequested",
    "RawPublicKeyCredential",
    "Restored",
    "ResumptionPolicy",
    "RetransmitPolicy",
    "ReturnRoutability",
    "Saved",
    "SecretDerived",
    "Server",
    "ServerConfig",
    "ServerStatistics",
    "Session",
    "SignatureScheme",
    "SigningKey",
    "SnapshotError",
    "UsageError",
    "WrongState",
    "cause_name",
    "expires_at",
    "key_log_line",
]
