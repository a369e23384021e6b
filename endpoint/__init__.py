"""DTLS for trio: a server for many peers on one UDP socket, and a client.

For embedding: :func:`serve_dtls`, :func:`open_dtls` and the :class:`DtlsChannel` they give you. For
programs that want neither a task nor a channel per peer: :class:`Engine` with an :class:`Observer`.
"""

from endpoint.addresses import path_text
from endpoint.association import Association, CredentialKind
from endpoint.causes import cause_text
from endpoint.channel import AssociationEnded, ChannelStatistics, DtlsChannel, HandshakeFailed
from endpoint.engine import Engine
from endpoint.keystore import DictKeyStore, KeyDataError, KeyStore, ManagedStore, StoreUnavailable
from endpoint.keystore.guard import GuardedStore
from endpoint.observer import Observer
from endpoint.opening import open_dtls
from endpoint.quotas import IdentityOverflow, QuotaPolicy
from endpoint.serving import serve_dtls
from endpoint.sockets import UdpSocket
from endpoint.tables.lookup import LookupPolicy
from endpoint.udp import ListenError, RetryPolicy, bind_udp
from endpoint.verification import PeerRejected, PeerVerifier, Verify

__all__ = [
    "Association",
    "AssociationEnded",
    "ChannelStatistics",
    "CredentialKind",
    "DictKeyStore",
    "DtlsChannel",
    "Engine",
    "GuardedStore",
    "HandshakeFailed",
    "IdentityOverflow",
    "KeyDataError",
    "KeyStore",
    "ListenError",
    "LookupPolicy",
    "ManagedStore",
    "Observer",
    "PeerRejected",
    "PeerVerifier",
    "QuotaPolicy",
    "RetryPolicy",
    "StoreUnavailable",
    "UdpSocket",
    "Verify",
    "bind_udp",
    "cause_text",
    "open_dtls",
    "path_text",
    "serve_dtls",
]
