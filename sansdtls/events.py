"""What a connection tells its caller: events, the causes of its end, and the reasons for a discard.

Events are frozen, in the past tense, and carry no methods. Each has ``connection``, so that one
loop can serve every connection of a :class:`~sansdtls.Server`. ``ConnectionTerminated`` is the
last event of a connection and comes exactly once. Secrets are left out of every ``repr``.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sansdtls.connection import Connection
    from sansdtls.iana import AlertDescription, AlertLevel
    from sansdtls.wire.handshake import HandshakeMessage
    from sansdtls.wire.messages import ClientHello

# --- why a datagram, record or message was dropped --------------------------------------------------


@enum.unique
class DiscardReason(enum.Enum):
    """Noise: network input that changes a counter and nothing else. The value is the metric label."""

    AFTER_CLOSE = "after_close"
    """Anything that arrives once the connection has ended."""
    BAD_RECORD_HEADER = "bad_record_header"
    """Not a DTLS record: too short, unknown type or version, or a length beyond the datagram."""
    BAD_MAC = "bad_mac"
    """A protected record that no current key authenticates."""
    COOKIE_ANSWER_TOO_LARGE = "cookie_answer_too_large"
    """A hello so small that a HelloVerifyRequest would be larger; answering would amplify."""
    DEFERRED_RECORDS_LIMIT = "deferred_records_limit"
    """Records of the next epoch that came early and for which no room was left."""
    DUPLICATE_HANDSHAKE_MESSAGE = "duplicate_handshake_message"
    """A handshake message that was already processed."""
    BAD_PATH_MESSAGE = "bad_path_message"
    """An authentic return_routability_check message that is malformed, or of a type that is not known."""
    EARLY_APPLICATION_DATA = "early_application_data"
    """Application data in epoch 0. Never delivered."""
    HALF_OPEN_LIMIT = "half_open_limit"
    """A valid cookie came back while ``Limits.max_half_open`` handshakes were under way."""
    ASSOCIATION_LIMIT = "association_limit"
    """All associations are live and none is idle enough to give way."""
    HANDSHAKE_FRAGMENT = "handshake_fragment"
    """A fragment of no use: empty, too far ahead, of the wrong epoch, or malformed before the cookie."""
    OLD_EPOCH = "old_epoch"
    """A record of an epoch that is over."""
    REASSEMBLY_LIMIT = "reassembly_limit"
    """A fragment for which the connection's or the server's reassembly budget has no room."""
    REFUSED = "refused"
    """The caller refused the offer."""
    REPLAY = "replay"
    """A record sequence number already seen, or older than the replay window."""
    UNAUTHENTICATED_ALERT = "unauthenticated_alert"
    """A plaintext alert outside a handshake."""
    UNEXPECTED_CHANGE_CIPHER_SPEC = "unexpected_change_cipher_spec"
    """A ChangeCipherSpec that changes nothing: repeated, or where none can be due."""
    UNKNOWN_ASSOCIATION = "unknown_association"
    """Not a ClientHello, from a path without an association."""
    UNKNOWN_CONNECTION_ID = "unknown_connection_id"
    """A record with a connection ID that nobody has, or without the one that its association has."""
    UNKNOWN_EPOCH = "unknown_epoch"
    """A record of an epoch that cannot exist yet."""
    WRONG_PATH = "wrong_path"
    """A datagram handed over with a path that is not the connection's."""


# --- why a connection ended -----------------------------------------------------------------------


@attrs.frozen
class LocalClose:
    """This side called ``close``."""


@attrs.frozen
class PeerClose:
    """The peer sent close_notify, or (``replaced``) finished a new handshake on the same path."""

    replaced: bool = False


@attrs.frozen
class PeerAlert:
    """The peer sent a fatal alert. ``description`` is a plain ``int`` where the code is unknown.

    ``authenticated`` is False for a plaintext alert during the handshake, which anybody may forge.
    """

    description: AlertDescription | int
    authenticated: bool = True


@attrs.frozen
class ProtocolViolation:
    """The peer broke a rule of the protocol; ``description`` is the alert it was sent."""

    description: AlertDescription
    rule: str


@attrs.frozen
class PeerIncompatible:
    """Nothing wrong, but nothing in common: version, cipher suite or a required extension."""

    description: AlertDescription
    rule: str


@enum.unique
class AuthenticationProblem(enum.Enum):
    """What the operator is told about a failed authentication. The peer sees an alert that says less."""

    UNKNOWN_IDENTITY = "unknown_identity"
    WRONG_KEY = "wrong_key"
    KEYS_UNAVAILABLE = "keys_unavailable"
    """The caller could not find out which keys the identity has; nothing is known about the peer."""
    NO_CERTIFICATE = "no_certificate"
    """The client showed none, and one is required."""
    BAD_SIGNATURE = "bad_signature"
    """The peer does not hold the private key of what it showed."""
    PEER_REJECTED = "peer_rejected"
    """The caller rejected the peer's certificate or raw public key."""
    BAD_FINISHED = "bad_finished"
    """The record authenticated but verify_data did not match: the peers saw different handshakes."""


@attrs.frozen
class AuthenticationFailed:
    """The peer did not prove what it claimed. ``identity`` is the PSK identity it sent (server side)."""

    problem: AuthenticationProblem
    identity: bytes | None = None


@attrs.frozen
class HandshakeTimeout:
    """The handshake did not end within the policy's deadline or number of retransmissions.

    ``waiting_for`` is the state it was waiting in, e.g. ``"AWAIT_SERVER_HELLO"``; ``"ACCEPT"`` where the
    caller answered an offer only after it had lapsed.
    """

    waiting_for: str


@attrs.frozen
class KeysExhausted:
    """A usage limit of the AEAD was reached: ``"seal"`` (records sent) or ``"open"`` (forgeries seen)."""

    direction: str


@attrs.frozen
class LimitExceeded:
    """A limit of this side was reached; ``limit`` is the name of the ``Limits`` field."""

    limit: str


@attrs.frozen
class IdleTimeout:
    """Nothing authentic arrived for ``seconds``."""

    seconds: float


Cause = (
    LocalClose
    | PeerClose
    | PeerAlert
    | ProtocolViolation
    | PeerIncompatible
    | AuthenticationFailed
    | HandshakeTimeout
    | KeysExhausted
    | LimitExceeded
    | IdleTimeout
)

# --- events ---------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class ConnectionOffered:
    """A client has proved its address (valid cookie) and asks for a connection; server only.

    Answer with ``server.accept(offer, now=...)`` or ``server.refuse(offer)``, now or later. The
    offer costs one half-open slot until then and lapses after the handshake deadline.
    """

    path: Hashable
    client_hello: ClientHello = attrs.field(repr=False)
    message: HandshakeMessage = attrs.field(repr=False)
    """The hello as it came, for the transcript."""
    record_sequence_number: int = attrs.field(repr=False)
    connection: None = attrs.field(default=None, init=False, repr=False)


@attrs.frozen(eq=False)
class PskRequested:
    """The key for ``identity`` is needed; answer with ``connection.provide_psk(request, keys, now=...)``.

    Or, where it cannot be found out, with ``connection.refuse_psk(request, alert, now=...)``.

    ``identity`` is compared byte by byte (RFC 7925 §4.2) and may hold any bytes, NUL included. On a
    client it is the configured identity, asked only where the configuration has no key, and
    ``hint`` is the server's identity hint, if it sent one.
    """

    connection: Connection
    identity: bytes
    hint: bytes | None = None
    resumption: bool = False
    """Server: the identity wants to resume a session. If the keys given include the one that the session
    was made with, it may; otherwise a full handshake follows."""


@attrs.frozen(eq=False)
class PeerCertificateReceived:
    """The peer showed a certificate chain and proved that it holds the first one's key; whether to trust it is asked.

    Answer with ``connection.accept_peer(request, now=...)`` or ``connection.reject_peer(request, alert,
    now=...)``, now or later. ``sansdtls.pki`` checks chains.
    """

    connection: Connection
    chain: tuple[bytes, ...] = attrs.field(repr=lambda chain: f"<{len(chain)} certificates>")
    """DER, the peer's own certificate first."""
    server_name: str | None
    """On a client the name of the server as configured, which the certificate has to be for; on a server
    the name that the client asked for."""
    resumption: bool = False
    """Server: the client wants to resume a session that was made with this chain. Rejected, it gets a full
    handshake instead."""


@attrs.frozen(eq=False)
class PeerRawKeyReceived:
    """The peer showed a raw public key (RFC 7250) and proved that it holds it; whether it is known is asked.

    Answered like ``PeerCertificateReceived``.
    """

    connection: Connection
    spki: bytes
    """SubjectPublicKeyInfo in DER."""
    server_name: str | None
    resumption: bool = False


@attrs.frozen(eq=False)
class HandshakeCompleted:
    """Both Finished messages are verified; data may flow.

    ``psk_identity`` is the authenticated identity (on a client its own) and ``psk_key_index`` which of
    the keys given for it matched: 0 is the current, 1 the next. Both are ``None`` without a PSK; then
    ``connection.peer`` has what was shown and accepted, if anything.
    """

    connection: Connection
    psk_identity: bytes | None
    psk_key_index: int | None


@attrs.frozen(eq=False)
class DataReceived:
    """One datagram's worth of authenticated application data (one record)."""

    connection: Connection
    data: bytes


@enum.unique
class PathProof(enum.Enum):
    """Why a new path is believed to be the peer's."""

    NEWER_RECORD = "newer_record"
    """An authentic record newer than all before came from it, and ``PathPolicy.MOVE`` asks for no more."""
    RETURN_ROUTABILITY = "return_routability"
    """The peer has answered there, RFC 9853."""
    APPLICATION = "application"
    """The caller has confirmed it."""


@attrs.frozen(eq=False)
class PathChanged:
    """From now on datagrams go to ``new``. Comes before the ``DataReceived`` of the record that moved it."""

    connection: Connection
    old: Hashable
    new: Hashable
    proof: PathProof


@attrs.frozen(eq=False)
class PathChangeRequested:
    """The peer may have moved to ``new``; whether it has is asked. Only with ``PathPolicy.APPLICATION``.

    Answer with ``connection.confirm_path(request, now=...)``, or not at all. Until then
    ``connection.send(data, now=..., path=request.new)`` sends there, within three times of what came from there.
    """

    connection: Connection
    old: Hashable
    new: Hashable


@attrs.frozen(eq=False)
class AlertReceived:
    """The peer sent an alert. If it ends the connection, ``ConnectionTerminated`` follows.

    A plaintext (not ``authenticated``) fatal alert ends a handshake only if nothing valid follows within
    ``RetransmitPolicy.initial_timeout``: an honest peer's own message overrules a forged alert.
    """

    connection: Connection
    level: AlertLevel | int
    description: AlertDescription | int
    authenticated: bool


@attrs.frozen(eq=False)
class SecretDerived:
    """A secret for a key log; only with ``log_secrets=True`` in the configuration.

    :func:`sansdtls.key_log_line` turns it into a line of the NSS key log format.
    """

    connection: Connection
    label: str
    client_random: bytes
    secret: bytes = attrs.field(repr=False)


@attrs.frozen(eq=False)
class ConnectionFrozen:
    """The server has turned a silent association into bytes: the last event of this object, not of the association.

    It comes back as another object, with ``ConnectionThawed``. ``server.wake(handle, now=...)`` brings it back
    without waiting for the peer.
    """

    connection: Connection
    handle: bytes


@attrs.frozen(eq=False)
class ConnectionThawed:
    """A frozen association is back: the first event of this object.

    Its peer has been heard (what it said follows), it was woken, or it ends (``ConnectionTerminated`` follows).
    ``handle`` is that of its ``ConnectionFrozen`` event.
    """

    connection: Connection
    handle: bytes


@attrs.frozen(eq=False)
class ConnectionTerminated:
    """The connection has ended, for the reason in ``cause``. Last event, exactly once."""

    connection: Connection
    cause: Cause


Event = (
    ConnectionOffered
    | PskRequested
    | PeerCertificateReceived
    | PeerRawKeyReceived
    | HandshakeCompleted
    | DataReceived
    | PathChanged
    | PathChangeRequested
    | AlertReceived
    | SecretDerived
    | ConnectionFrozen
    | ConnectionThawed
    | ConnectionTerminated
)


def key_log_line(event: SecretDerived) -> str:
    """The event as one line, without newline, of the NSS key log format that Wireshark reads."""
    return f"{event.label} {event.client_random.hex()} {event.secret.hex()}"
