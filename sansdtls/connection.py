"""One DTLS connection without any input or output of its own: what callers use.

After each call: send ``datagrams_to_send()``, then wait for a datagram or for ``next_timeout()``. Time
comes in as ``now``, randomness as ``entropy``; the same of both and the same datagrams give the same
bytes out.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from sansdtls.association import ConnectionState, Watcher
from sansdtls.config import MAX_PSK_LENGTH
from sansdtls.crypto.prf import prf
from sansdtls.crypto.suites import SUITES
from sansdtls.errors import MessageTooLarge, UsageError, WrongState
from sansdtls.events import (
    DiscardReason,
    HandshakeTimeout,
    IdleTimeout,
    KeysExhausted,
    LocalClose,
    PeerCertificateReceived,
    PeerRawKeyReceived,
    PskRequested,
)
from sansdtls.freezing import FreezableAssociation
from sansdtls.handshake.client12 import ClientHandshake12
from sansdtls.handshake.failure import HandshakeFailure
from sansdtls.handshake.flight import MAX_RESIZED, MINIMUM_DATAGRAM_SIZE, flight_length
from sansdtls.handshake.server12 import MAX_KEYS, ServerHandshake12
from sansdtls.iana import AlertDescription, AlertLevel, ContentType
from sansdtls.record.layer import Outgoing, RecordLayer
from sansdtls.saved import MAX_ANNOTATION_LENGTH
from sansdtls.wire.record import MAX_PLAINTEXT_LENGTH, read_record_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from sansdtls.config import ClientConfig, ServerConfig
    from sansdtls.events import ConnectionOffered, Event, PathChangeRequested
    from sansdtls.handshake.handshake import Handshake
    from sansdtls.handshake.negotiation import Negotiated
    from sansdtls.handshake.outcome import Peer
    from sansdtls.handshake.resumption import Sessions
    from sansdtls.handshake.states import Request
    from sansdtls.session import Session
    from sansdtls.statistics import ConnectionStatistics, ServerStatistics

_RESERVED_LABELS = frozenset(
    ("client finished", "server finished", "master secret", "extended master secret", "key expansion")
)
"""What TLS itself derives, RFC 5705 §4; exporting it would give away keys."""


_ALERTS = frozenset(AlertDescription)

# Members of enums that every datagram would look up; see association.py.
_APPLICATION_DATA = int(ContentType.APPLICATION_DATA)
_TLS12_CID_BYTE = bytes([ContentType.TLS12_CID])
_CONNECTED = ConnectionState.CONNECTED
_OVER = (ConnectionState.CLOSED, ConnectionState.FROZEN)


class Connection(FreezableAssociation):
    """A DTLS 1.2 association, or the attempt at one. Not thread-safe. Made by :meth:`client` or by a server."""

    __slots__ = ()

    @classmethod
    def client(
        cls, config: ClientConfig, *, entropy: Callable[[int], bytes], now: float, path: Hashable = None
    ) -> Connection:
        """A client connection; its first ClientHello is ready in :meth:`datagrams_to_send`.

        ``entropy(n)`` returns n random bytes fit for keys; ``now`` is monotonic time in seconds; ``path``
        is any hashable value and comes back in :class:`Outgoing`. With a path other than ``None``,
        datagrams handed over with another one are discarded, unless they carry a connection ID of ours; then
        the server is followed as ``ClientConfig.connection_id`` says.
        """
        layer = RecordLayer(
            path=path,
            outbox=[],
            totals=None,
            window_width=config.limits.replay_window,
            max_datagram_size=config.mtu,
        )
        connection = cls(config, layer, now, entropy, is_client=True)
        connection._handshake = ClientHandshake12(connection, config, layer, connection._events, entropy, now)
        return connection

    @classmethod
    def accepted(
        cls,
        config: ServerConfig,
        offer: ConnectionOffered,
        *,
        entropy: Callable[[int], bytes],
        now: float,
        outbox: list[Outgoing],
        totals: ServerStatistics,
        watcher: Watcher,
        sessions: Sessions | None,
        new_connection_id: Callable[[], bytes],
        lapsed: bool,
    ) -> Connection:
        """For :class:`~sansdtls.Server`: the answer to an offer; where it has ``lapsed``, a closed connection."""
        # RFC 6347 §4.2.1: "the server MUST use the record sequence number in the ClientHello as the
        # record sequence number in its initial ServerHello."
        layer = RecordLayer(
            path=offer.path,
            outbox=outbox,
            totals=totals,
            window_width=config.limits.replay_window,
            max_datagram_size=config.mtu,
            first_sequence_number=offer.record_sequence_number,
        )
        connection = cls(config, layer, now, entropy, is_client=False)
        connection._watcher = watcher
        if lapsed:
            connection.terminate(HandshakeTimeout("ACCEPT"))
            watcher.wake(now)
            return connection
        handshake = ServerHandshake12(
            connection, config, layer, connection._events, entropy, now, offer, sessions, new_connection_id
        )
        connection._handshake = handshake
        try:
            handshake.start(now)
        except HandshakeFailure as failure:
            connection.fail(failure)
            watcher.wake(now)
        return connection

    def __repr__(self) -> str:
        role = "client" if self._is_client else "server"
        return f"<Connection {role} {self._state.value} path={self._layer.path!r}>"

    # --- what can be asked at any time --------------------------------------------------------------

    @property
    def state(self) -> ConnectionState:
        """Where the connection is in its life."""
        return self._state

    @property
    def path(self) -> Hashable:
        """Where datagrams go, but for those that go to a new path while it is asked."""
        return self._layer.path

    @property
    def negotiated(self) -> Negotiated | None:
        """What the handshake agreed on; ``None`` before it is complete."""
        return self._negotiated

    @property
    def peer(self) -> Peer | None:
        """Who was authenticated; ``None`` before the handshake is complete."""
        return self._peer

    @property
    def connection_id(self) -> bytes:
        """What the peer puts into its records, RFC 9146; none = no connection ID, or not known yet."""
        return self._layer.connection_id

    @property
    def peer_connection_id(self) -> bytes:
        """What this side puts into its records; none before the handshake is complete."""
        return self._layer.write.connection_id

    @property
    def annotation(self) -> bytes:
        """What the caller keeps with the association: survives freezing. Up to 1024 bytes, or UsageError."""
        return self._annotation

    @annotation.setter
    def annotation(self, value: bytes) -> None:
        """Replace it."""
        given: Any = value
        if not isinstance(given, bytes) or len(given) > MAX_ANNOTATION_LENGTH:
            raise UsageError(f"annotation: at most {MAX_ANNOTATION_LENGTH} bytes are possible")
        self._annotation = value
        if self._watcher is not None:
            self._watcher.changed()

    @property
    def session(self) -> Session | None:
        """Client: what can be resumed by another connection (``ClientConfig.session``), once connected."""
        return self._session

    @property
    def statistics(self) -> ConnectionStatistics:
        """Counters; live."""
        return self._layer.statistics

    @property
    def max_payload(self) -> int:
        """Bytes of application data that fit one record and one datagram; 0 unless connected."""
        return self._max_payload

    def export_keying_material(self, label: str, length: int, context: bytes | None = None) -> bytes:
        """Keying material for the application, RFC 5705 §4; equal at both ends.

        Raises WrongState unless connected with extended_master_secret (without it two associations can be
        made to export the same, RFC 7627 §1), UsageError for a label of TLS itself or a length out of range.
        """
        if label in _RESERVED_LABELS:
            raise UsageError(f"label {label!r} is reserved, RFC 5705 §4")
        if not 1 <= length <= MAX_PLAINTEXT_LENGTH:
            raise UsageError(f"length {length} is not within 1 to {MAX_PLAINTEXT_LENGTH} bytes")
        if context is not None and len(context) > 0xFFFF:
            raise UsageError(f"context of {len(context)} bytes is above 65535 bytes")
        if self._negotiated is None or not self._master_secret:
            raise WrongState("keying material can be exported only while connected")
        if not self._negotiated.extended_master_secret:
            raise WrongState("without extended_master_secret exported keying material is not safe, RFC 7627")
        seed = self._randoms
        if context is not None:
            seed += len(context).to_bytes(2) + context
        algorithm = SUITES[self._negotiated.cipher_suite].prf_hash
        return prf(algorithm, self._master_secret, label.encode(), seed, length)

    # --- input --------------------------------------------------------------------------------------

    def receive_datagram(self, data: bytes, *, now: float, path: Hashable = None) -> list[Event]:
        """Take in a datagram; what came of it. Never raises, whatever the bytes."""
        layer = self._layer
        layer.statistics.datagrams_received += 1
        if path is None or path == layer.path or layer.path is None:
            path = None
        elif not layer.connection_id or self._handshake is not None:
            layer.discard(DiscardReason.WRONG_PATH)
            return self.take_events()
        length = len(layer.connection_id)
        offset = 0
        while True:
            record = read_record_untrusted(data, offset, length)
            if record is None:
                with_id = data[offset : offset + 1] == _TLS12_CID_BYTE and not length
                layer.discard(
                    DiscardReason.UNKNOWN_CONNECTION_ID if with_id else DiscardReason.BAD_RECORD_HEADER
                )
                break
            self.receive_record(record, now, path)
            offset += record.length
            if offset == len(data):
                break
        return self.take_events()

    def handle_timeout(self, *, now: float) -> list[Event]:
        """Do what is due at ``now``: repeat a flight or a question, give up, close for idleness.

        Early calls do nothing.
        """
        deadline = self._deadline()
        if deadline is not None and now >= deadline:
            if self._handshake is not None:
                try:
                    self._handshake.handle_timeout(now)
                except HandshakeFailure as failure:
                    self.fail(failure)
            elif (
                idle_timeout := self._idle_timeout
            ) is not None and now >= self.last_received + idle_timeout:
                self.terminate(IdleTimeout(idle_timeout), notify=self._config.notify_idle_timeout)
            else:
                self._handle_path_timeout(now)
        return self.take_events()

    def provide_psk(self, request: PskRequested, keys: Sequence[bytes], *, now: float) -> list[Event]:
        """Answer a ``PskRequested`` event.

        ``keys`` are the identity's keys, the current first and during a rotation the next after it, each
        1 to 64 bytes; none means that the identity is unknown, which a peer of ours cannot tell from a wrong key.
        A client takes the first. Raises UsageError for anything else, and WrongState if the request was
        answered before. If the connection has ended meanwhile nothing happens.
        """
        keys = tuple(keys)
        if len(keys) > MAX_KEYS or not all(map(_is_key, keys)):
            raise UsageError(f"keys: at most {MAX_KEYS}, each of 1 to {MAX_PSK_LENGTH} bytes, are possible")
        handshake = self._asked_by(request, PskRequested)
        if handshake is None:
            return self.take_events()
        # Asked about a session, the full handshake that follows asks once more.
        if not keys and not request.resumption and self._layer.totals is not None:
            self._layer.totals.psk_unknown += 1
        return self._answer(partial(handshake.provide_psk, keys, now), now)

    def refuse_psk(self, request: PskRequested, alert: AlertDescription, *, now: float) -> list[Event]:
        """Answer as :meth:`provide_psk`, but with: the keys cannot be found out now.

        ``alert`` is all that the peer is told; ``INTERNAL_ERROR`` has it come back. The connection ends with
        ``AuthenticationFailed``, also where a session was to be resumed: the full handshake would ask the same.
        """
        if alert not in _ALERTS:
            raise UsageError(f"{alert!r} is no AlertDescription")
        handshake = self._asked_by(request, PskRequested)
        if handshake is None:
            return self.take_events()
        # RFC 4279 §2 has alerts for an identity that is unknown and for a key that is wrong. Neither is known here, and
        # a device may give up for good when it hears one of them. RFC 5246 §7.2.2: internal_error is for what is
        # "unrelated to the peer or the correctness of the protocol".
        identity = None if self._is_client else request.identity
        return self._answer(partial(handshake.refuse_psk, identity, alert), now)

    def accept_peer(
        self, request: PeerCertificateReceived | PeerRawKeyReceived, *, now: float
    ) -> list[Event]:
        """Answer a ``PeerCertificateReceived`` or ``PeerRawKeyReceived`` event: the peer is to be trusted.

        Raises UsageError for a request of another connection, and WrongState if it was answered before. If
        the connection has ended meanwhile nothing happens.
        """
        handshake = self._asked_by(request, PeerCertificateReceived, PeerRawKeyReceived)
        return (
            self.take_events()
            if handshake is None
            else self._answer(partial(handshake.accept_peer, now), now)
        )

    def reject_peer(
        self, request: PeerCertificateReceived | PeerRawKeyReceived, alert: AlertDescription, *, now: float
    ) -> list[Event]:
        """Answer as :meth:`accept_peer`, but with no; ``alert`` is all that the peer is told.

        The connection ends with ``AuthenticationFailed``; where a session was to be resumed, a full
        handshake follows instead.
        """
        if alert not in _ALERTS:
            raise UsageError(f"{alert!r} is no AlertDescription")
        handshake = self._asked_by(request, PeerCertificateReceived, PeerRawKeyReceived)
        if handshake is None:
            return self.take_events()
        return self._answer(partial(handshake.reject_peer, alert, now), now)

    def _asked_by(self, request: Request, *kinds: type) -> Handshake | None:
        """The handshake that waits for an answer to ``request``; ``None`` if the connection has ended."""
        if not isinstance(request, kinds):
            raise UsageError(f"a {type(request).__name__} is not answered in this way")
        if request.connection is not self:
            raise UsageError("this request belongs to another connection")
        if self._state in _OVER:
            return None
        if self._handshake is None or not self._handshake.awaits(request):
            raise WrongState("this request has been answered before")
        return self._handshake

    def _answer(self, answer: Callable[[], None], now: float) -> list[Event]:
        try:
            answer()
            self._advance(now)
        except HandshakeFailure as failure:
            self.fail(failure)
        events = self.take_events()
        return events if self._watcher is None else self._watcher.settle(events, now)

    # --- output -------------------------------------------------------------------------------------

    def datagrams_to_send(self) -> list[Outgoing]:
        """What is to be sent, in order; handed out once."""
        datagrams = self._layer.outbox[:]
        self._layer.outbox.clear()
        return datagrams

    def next_timeout(self) -> float | None:
        """When :meth:`handle_timeout` is due; ``None`` = not before something else happens.

        At once (a time not after the last ``now``) where an event waits, as after :meth:`close`.
        """
        return self.last_received if self._events else self._deadline()

    def confirm_path(self, request: PathChangeRequested, *, now: float) -> list[Event]:
        """Answer a ``PathChangeRequested`` event: the peer is there. What follows is ``PathChanged``.

        Nothing happens if the peer was heard on the old path or a third one since, or if the connection has ended.
        Raises UsageError for a request of another connection.
        """
        self._move_as_confirmed(request)
        events = self.take_events()
        return events if self._watcher is None else self._watcher.settle(events, now)

    def send(self, data: bytes, *, now: float, path: Hashable = None) -> None:
        """Send application data: one record in one datagram.

        ``path`` may be one that waits for :meth:`confirm_path`: three times as many bytes can go there as have
        come from there. ``None`` = where the peer is.

        Raises WrongState unless connected, for any other path and beyond that limit, and where a durable server
        has to confirm a checkpoint first; MessageTooLarge above :attr:`max_payload`. With the last record that
        the keys allow, the connection closes itself (``KeysExhausted``).
        """
        if self._state is not _CONNECTED:
            raise WrongState(f"cannot send: the connection is {self._state.value}")
        if len(data) > self._max_payload:
            raise MessageTooLarge(f"{len(data)} bytes are more than max_payload, {self.max_payload} bytes")
        layer = self._layer
        write = layer.write
        if write.next_sequence_number >= write.ask_at:
            self._ask_for_numbers()
        if path is None or path == layer.path:
            layer.send_datagram(write.record(_APPLICATION_DATA, data))
        else:
            self._send_to_unproven(path, data)
        self.last_sent = now
        layer.statistics.records_sent += 1
        layer.statistics.bytes_sent += len(data)
        if write.remaining <= 1:  # the last one is for close_notify
            self._end_by_caller(KeysExhausted("seal"), now, notify=True)

    def limit_datagram_size(self, size: int, *, now: float) -> list[Event]:
        """The path takes datagrams of at most ``size`` bytes: the system said so, or an ICMP message.

        A flight that waits for its answer and was larger is sent again at once, in smaller datagrams; :attr:`max_payload`
        shrinks. That lasts until the peer has another path, or the association wakes from the frozen state. Nothing
        happens where ``size`` is no less than what was known; below 256 bytes it counts as 256. Of such messages, which
        anybody may forge, a flight is repeated three times at most; what is believed at all is the caller's business.
        Raises UsageError for a size that is none.
        """
        given: Any = size
        if not isinstance(given, int) or given < 1:
            raise UsageError(f"size: {given!r} is not a number of bytes")
        layer, handshake = self._layer, self._handshake
        before, size = layer.max_datagram_size, max(size, MINIMUM_DATAGRAM_SIZE)
        if size >= before or self._state in _OVER:
            return self.take_events()
        layer.max_datagram_size = size
        if handshake is not None:
            try:
                handshake.keep_within(size, now)
            except HandshakeFailure as failure:
                self.fail(failure)
        else:
            self._use_datagram_size(size)
            if self._repeats < MAX_RESIZED and flight_length(self._last_flight) > size:
                self._repeat_last_flight(now)
        events = self.take_events()
        return events if self._watcher is None else self._watcher.settle(events, now)

    def _ask_for_numbers(self) -> None:
        if self._watcher is not None:
            self._watcher.numbers_low()
        if self._layer.write.available <= 0:  # below 0: waking leaves some numbers out
            raise WrongState(
                "cannot send: no further record numbers are reserved until a checkpoint is confirmed"
            )

    def close(self, *, now: float) -> None:
        """Send close_notify and end. Closing a closed connection does nothing.

        The ``ConnectionTerminated`` event comes with the next call that returns events;
        :meth:`next_timeout` is due at once.
        """
        if self._state in _OVER:
            return
        if self._handshake is not None:
            # RFC 5246 §7.2.2: user_canceled "should be followed by a close_notify."
            self._layer.send_alerts((AlertLevel.WARNING, AlertDescription.USER_CANCELED))
        self._end_by_caller(LocalClose(), now, notify=True)


def _is_key(key: object) -> bool:
    return isinstance(key, bytes) and 1 <= len(key) <= MAX_PSK_LENGTH
