"""DTLS for trio: a server for many peers on one UDP socket, and a client.

For embedding: :func:`serve_dtls`, :func:`open_dtls` and the :class:`DtlsChannel` they give you. For
programs that want neither a task nor a channel per peer: :class:`Engine` with an :class:`Observer`.
"""

from endpoint.association import Association
from endpoint.engine import Engine
from endpoint.keystore import DictKeyStore, KeyStore
from endpoint.observer import Observer
from endpoint.quotas import IdentityOverflow, QuotaPolicy
from endpoint.udp import ListenError, RetryPolicy, UdpSocket, bind_udp, path_text

__all__ = [
    "Association",
    "DictKeyStore",
    "Engine",
    "IdentityOverflow",
    "KeyStore",
    "ListenError",
    "Observer",
    "QuotaPolicy",
    "RetryPolicy",
    "UdpSocket",
    "bind_udp",
    "path_text",
]
