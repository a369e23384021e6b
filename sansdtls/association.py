"""The inside of a connection: its state, what each arriving record does to it, and how it ends.

What arrives falls into three classes. Noise changes a counter. A broken rule during the handshake
sends the alert that RFC 5246 §7.2.2 names and ends the connection. An established connection is ended by
authenticated records only. After the end everything is noise.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol, cast

from sansdtls.errors import DecodeError
from sansdtls.events import (
    AlertReceived,
    ConnectionTerminated,
    DataReceived,
    DiscardReason,
    HandshakeCompleted,
    KeysExhausted,
    PeerAlert,
    PeerClose,
)
from sansdtls.handshake.failure import HandshakeFailure, violation
from sansdtls.handshake.flight import MINIMUM_DATAGRAM_SIZE, pack_flight
from sansdtls.handshake.handshake import AFTER_FINISHED
from sansdtls.iana import AlertDescription, AlertLevel, ContentType, HandshakeType, ProtocolVersion
from sansdtls.paths import PathFollower
from sansdtls.wire.handshake import decode_fragments_untrusted
from sansdtls.wire.record import MAX_PLAINTEXT_LENGTH, MAX_SEQUENCE_NUMBER, decode_alert_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from sansdtls.config import ClientConfig, ServerConfig
    from sansdtls.connection import Connection
    from sansdtls.events import Cause, Event
    from sansdtls.freezing import Origin
    from sansdtls.handshake.flight import FlightPart
    from sansdtls.handshake.handshake import Handshake
    from sansdtls.handshake.negotiation import Negotiated
    from sansdtls.handshake.outcome import Outcome, Peer
    from sansdtls.record.ciphers import Ciphers
    from sansdtls.record.layer import RecordLayer
    from sansdtls.session import Session
    from sansdtls.wire.record import Record

REPEAT_LAST_FLIGHT_FOR = 240.0
"""Seconds. RFC 6347 §4.2.4: whoever sent the last flight repeats it on demand for at least twice the
maximum segment lifetime of TCP, which is two minutes; here, or until data show that it has arrived."""

# Looking up a member of an enum costs 90 ns, as much as a tenth of the decryption: not for each record.
_APPLICATION_DATA = int(ContentType.APPLICATION_DATA)
_RETURN_ROUTABILITY_CHECK = int(ContentType.RETURN_ROUTABILITY_CHECK)
_DTLS_1_2 = int(ProtocolVersion.DTLS_1_2)

CLOSE_NOTIFY = (AlertLevel.WARNING, AlertDescription.CLOSE_NOTIFY)

_ANY_VERSION_MESSAGES = frozenset(
    bytes([message_type]) for message_type in (HandshakeType.CLIENT_HELLO, HandshakeType.HELLO_VERIFY_REQUEST)
)
"""First bytes of the handshake messages that may come in a record of DTLS 1.0: those sent before a version
is negotiated. Everything else has to carry the negotiated version."""


@enum.unique
class ConnectionState(enum.Enum):
    """The life of a connection."""

    HANDSHAKING = "handshaking"
    CONNECTED = "connected"
    CLOSED = "closed"
    FROZEN = "frozen"
    """The association lives on as bytes, or in another object made of them; this one is of no more use."""


class Watcher(Protocol):
    """How a :class:`~sansdtls.Server` learns of direct calls on its connections."""

    def wake(self, now: float) -> None:
        """An event waits to be fetched."""

    def numbers_low(self) -> None:
        """Half of the record numbers that are reserved have been used, or more."""

    def changed(self) -> None:
        """What is saved of the connection has changed, though nothing has arrived."""

    def settle(self, events: list[Event], now: float) -> list[Event]:
        """The call produced ``events``; what the caller shall get instead."""


_CLOSED = ConnectionState.CLOSED
_OVER = (ConnectionState.CLOSED, ConnectionState.FROZEN)


class Association(PathFollower):
    """State and intake; :class:`~sansdtls.Connection` adds what callers use, and only it is ever made."""

    __slots__ = (
        "__weakref__",
        "_annotation",
        "_config",
        "_entropy",
        "_events",
        "_handshake",
        "_is_client",
        "_last_flight",
        "_layer",
        "_master_secret",
        "_max_accepted",
        "_negotiated",
        "_next_receive_seq",
        "_origin",
        "_peer",
        "_randoms",
        "_repeat_until",
        "_repeats",
        "_session",
        "_state",
        "_watcher",
        "last_received",
        "last_sent",
        "serial",
    )

    def __init__(
        self,
        config: ClientConfig | ServerConfig,
        layer: RecordLayer,
        now: float,
        entropy: Callable[[int], bytes],
        *,
        is_client: bool,
    ) -> None:
        """Use :meth:`Connection.client`, or :meth:`sansdtls.Server.accept`."""
        self._config = config
        self._entropy = entropy
        self._annotation = b""
        self._layer = layer
        self._max_payload = 0
        self._max_plaintext = self._max_accepted = MAX_PLAINTEXT_LENGTH
        self._is_client = is_client
        self._state = ConnectionState.HANDSHAKING
        self._events: list[Event] = []
        self._handshake: Handshake | None = None
        self._negotiated: Negotiated | None = None
        self._peer: Peer | None = None
        self._session: Session | None = None
        self._master_secret = b""
        self._randoms = b""  # those of both sides; they name the association
        self._last_flight: Sequence[FlightPart] = ()
        self._repeat_until = now
        self._repeats = 0
        self._next_receive_seq = 0
        self._origin: Origin | None = None
        self.serial = 0
        """Of the next blob that is made of the association; 0 as long as there has been none."""
        self.last_received = now
        """When something authentic last arrived (or the connection began), in seconds."""
        self.last_sent = now
        """When application data were last sent (or this object was made), in seconds."""
        self._watcher: Watcher | None = None

    def receive_record(self, record: Record, now: float, path: Hashable = None) -> bool:
        """For :class:`~sansdtls.Server`: take in one record; whether it belonged here.

        That is: it authenticated, or a handshake under way took it in. Events wait to be fetched. ``path`` is
        where it came from; ``None`` = where everything comes from.
        """
        layer = self._layer
        read = layer.read
        epoch = record.number >> 48
        try:
            if epoch == read.epoch and read.protected:
                return self._receive_protected(record, now, path)
            if self._state in _OVER:
                layer.discard(DiscardReason.AFTER_CLOSE)
                return False
            handshake = self._handshake
            if handshake is None or epoch not in (read.epoch, read.epoch + 1):
                layer.discard(DiscardReason.OLD_EPOCH if epoch < read.epoch else DiscardReason.UNKNOWN_EPOCH)
                return False
            if epoch == read.epoch:
                self._receive_plaintext(record, handshake, now)
                return True
            opened = handshake.open_next_epoch(record, now)
            if opened is None:
                return False
            self._receive_authentic(*opened, now)
        except HandshakeFailure as failure:
            self.fail(failure)
        return True

    # --- records ------------------------------------------------------------------------------------

    def _receive_protected(self, record: Record, now: float, path: Hashable) -> bool:
        layer = self._layer
        read = layer.read
        handshake = self._handshake
        if handshake is not None and record.content_type in AFTER_FINISHED:
            handshake.defer(record)  # not even decrypted before Finished is verified
            return True
        if record.version != _DTLS_1_2:
            layer.discard(DiscardReason.BAD_RECORD_HEADER)
            return False
        # RFC 9146 §3: without the type tls12_cid "a check MUST be made to determine whether a non-zero-length
        # CID is expected"; with it the ID has to be the one agreed on.
        if record.connection_id != read.connection_id:
            layer.discard(DiscardReason.UNKNOWN_CONNECTION_ID)
            return False
        sequence_number, window = record.number & MAX_SEQUENCE_NUMBER, read.window
        newer = sequence_number > window.highest
        if not newer and not window.accepts(sequence_number):
            layer.discard(DiscardReason.REPLAY)
            return False
        opened = read.open(record)
        if opened is None:
            layer.count_mac_failure()
            layer.discard(DiscardReason.BAD_MAC)
            if read.exhausted:
                self.terminate(KeysExhausted("open"), notify=True)
            return False
        if handshake is not None and opened[0] in AFTER_FINISHED:
            handshake.defer(record)  # its type was hidden
            return True
        window.mark(sequence_number)
        self.last_received = now
        about_paths = handshake is None and (
            (path is not None and path != layer.path)
            or layer.path_check is not None
            or opened[0] == _RETURN_ROUTABILITY_CHECK
        )
        if about_paths and self._locate_peer(path, record.length, opened, now, newer=newer):
            return True
        self._receive_authentic(*opened, now)
        return True

    def _receive_authentic(self, content_type: int, plaintext: bytes, now: float) -> None:
        if content_type == _APPLICATION_DATA and len(plaintext) <= self._max_accepted:
            statistics = self._layer.statistics
            statistics.records_received += 1
            statistics.bytes_received += len(plaintext)
            if self._last_flight:
                self._last_flight = ()  # who sends data has received it: nobody will ask for it again
            self._events.append(DataReceived(cast("Connection", self), plaintext))
        elif len(plaintext) > self._max_accepted:
            # RFC 5246 §6.2.1: "The length MUST NOT exceed 2^14."; RFC 8449 §4 and RFC 6066 §4 for less
            raise violation(AlertDescription.RECORD_OVERFLOW, f"record of {len(plaintext)} bytes")
        elif content_type == ContentType.HANDSHAKE and self._handshake is not None:
            self._handshake.receive_plaintext(plaintext, self._layer.read.epoch, now)
            self._advance(now)
        elif content_type == ContentType.HANDSHAKE:
            self._receive_late_handshake(plaintext, now)
        elif content_type == ContentType.ALERT:
            self._receive_alert(plaintext)
        elif content_type == ContentType.CHANGE_CIPHER_SPEC:
            self._layer.discard(DiscardReason.UNEXPECTED_CHANGE_CIPHER_SPEC)
        else:
            # RFC 5246 §6: an unexpected record type is answered with unexpected_message, and so is a record
            # of zeros only, RFC 8446 §5.4.
            raise violation(AlertDescription.UNEXPECTED_MESSAGE, f"record of type {content_type}")

    def _receive_plaintext(self, record: Record, handshake: Handshake, now: float) -> None:
        """A record of epoch 0: only during the handshake, since afterwards the read epoch is 1."""
        fragment = record.fragment
        if record.content_type == ContentType.APPLICATION_DATA:
            self._layer.discard(DiscardReason.EARLY_APPLICATION_DATA)
        elif len(fragment) > MAX_PLAINTEXT_LENGTH:
            raise violation(AlertDescription.RECORD_OVERFLOW, f"record of {len(fragment)} bytes")
        elif record.content_type == ContentType.ALERT:
            self._receive_plaintext_alert(fragment, handshake, now)
        elif record.version != ProtocolVersion.DTLS_1_2 and fragment[:1] not in _ANY_VERSION_MESSAGES:
            self._layer.discard(DiscardReason.BAD_RECORD_HEADER)
        elif record.content_type == ContentType.HANDSHAKE:
            handshake.receive_plaintext(fragment, 0, now)
            self._advance(now)
        elif record.content_type != ContentType.CHANGE_CIPHER_SPEC:
            self._layer.discard(DiscardReason.BAD_RECORD_HEADER)  # never in clear
        else:
            handshake.receive_change_cipher_spec(fragment)
            self._advance(now)

    def _receive_alert(self, body: bytes) -> None:
        try:
            alert = decode_alert_untrusted(body)
        except DecodeError as error:
            raise violation(error.description, error.rule) from None
        self._events.append(
            AlertReceived(cast("Connection", self), alert.level, alert.description, authenticated=True)
        )
        if alert.description == AlertDescription.CLOSE_NOTIFY:
            # RFC 5246 §7.2.1: "The other party MUST respond with a close_notify alert of its own"
            self.terminate(PeerClose(), notify=True)
        elif alert.level != AlertLevel.WARNING:
            self.terminate(PeerAlert(alert.description))

    def _receive_plaintext_alert(self, body: bytes, handshake: Handshake, now: float) -> None:
        """Anybody may have sent it: reported and noted, see ``handshake.py``."""
        try:
            alert = decode_alert_untrusted(body)
        except DecodeError:
            self._layer.discard(DiscardReason.UNAUTHENTICATED_ALERT)
            return
        self._events.append(
            AlertReceived(cast("Connection", self), alert.level, alert.description, authenticated=False)
        )
        if alert.description == AlertDescription.CLOSE_NOTIFY:
            handshake.note_alert(PeerClose(), now)
        elif alert.level != AlertLevel.WARNING:
            handshake.note_alert(PeerAlert(alert.description, authenticated=False), now)

    def _receive_late_handshake(self, plaintext: bytes, now: float) -> None:
        """Authentic handshake messages after the handshake."""
        try:
            fragments = decode_fragments_untrusted(plaintext)
        except DecodeError as error:
            raise violation(error.description, error.rule) from None
        renegotiation = HandshakeType.HELLO_REQUEST if self._is_client else HandshakeType.CLIENT_HELLO
        for fragment in fragments:
            if fragment.message_type == renegotiation:
                # RFC 5746 §4.5 allows to refuse: "no_renegotiation" is a warning, nothing changes.
                self._layer.send_alerts((AlertLevel.WARNING, AlertDescription.NO_RENEGOTIATION))
            elif fragment.message_seq >= self._next_receive_seq:
                raise violation(
                    AlertDescription.UNEXPECTED_MESSAGE,
                    f"handshake message of type {fragment.message_type} after the handshake",
                )
            else:
                self._layer.discard(DiscardReason.DUPLICATE_HANDSHAKE_MESSAGE)
                if fragment.message_seq == self._next_receive_seq - 1:
                    self._repeat_last_flight(now)

    def _repeat_last_flight(self, now: float) -> None:
        if (
            self._last_flight
            and now < self._repeat_until
            and self._layer.write.available > len(self._last_flight)
        ):
            self._layer.count_retransmission()
            self._repeats += 1
            halvings = self._repeats // self._config.retransmit.shrink_after
            size = max(MINIMUM_DATAGRAM_SIZE, self._layer.max_datagram_size >> halvings)
            # What fits a record of application data fits one of the flight's, and is what the peer takes.
            self._layer.send_datagrams(pack_flight(self._last_flight, size, self._max_plaintext))

    # --- the handshake's progress and the end ---------------------------------------------------------

    def _advance(self, now: float) -> None:
        """See whether the handshake is over, and whether records that came early can be read now."""
        handshake = self._handshake
        if handshake is None:
            return
        if handshake.outcome is not None:
            self._establish(handshake.outcome, now)
        elif not handshake.retry_deferred:
            return
        deferred = handshake.take_deferred()
        if self._handshake is None:
            handshake.release()
        for record in deferred:
            self.receive_record(record, now)

    def _establish(self, outcome: Outcome, now: float) -> None:
        self._handshake = None
        self._state = ConnectionState.CONNECTED
        self._settle_sizes(outcome.max_plaintext, outcome.max_accepted)
        self._negotiated = outcome.negotiated
        self._peer = outcome.peer
        self._session = outcome.session
        self._master_secret = outcome.master_secret
        self._randoms = outcome.client_random + outcome.server_random
        self._last_flight = tuple(outcome.last_flight)
        self._expect_repeats_until(now)
        self._next_receive_seq = outcome.next_receive_seq
        self.last_received = now
        self._events.append(
            HandshakeCompleted(
                cast("Connection", self), outcome.peer.psk_identity, outcome.peer.psk_key_index
            )
        )

    def _settle_sizes(self, max_plaintext: int, max_accepted: int) -> None:
        """What the peer takes in one record, and what we take."""
        self._max_plaintext, self._max_accepted = max_plaintext, max_accepted
        self._use_datagram_size(self._layer.max_datagram_size)

    def _expect_repeats_until(self, now: float) -> None:
        """From ``now`` on the last flight, if there is one, may be asked for again."""
        self._repeat_until = now + REPEAT_LAST_FLIGHT_FOR if self._last_flight else now

    def _deadline(self) -> float | None:
        if self._handshake is not None:
            return self._handshake.timer.next
        check = self._layer.path_check
        asked = None if check is None else check.deadline
        idle_timeout = self._idle_timeout
        if self._state in _OVER or idle_timeout is None:
            return asked
        idle = self.last_received + idle_timeout
        return idle if asked is None else min(idle, asked)

    @property
    def _idle_timeout(self) -> float | None:
        limits, layer = self._config.limits, self._layer
        with_id = layer.connection_id or layer.write.connection_id
        return limits.idle_timeout_with_connection_id if with_id else limits.idle_timeout

    def fail(self, failure: HandshakeFailure) -> None:
        """End as ``failure`` says, with its alert."""
        if failure.description is not None:
            self._layer.send_alerts((AlertLevel.FATAL, failure.description))
        self.terminate(failure.cause)

    def terminate(self, cause: Cause, *, notify: bool = False) -> None:
        """End, with close_notify if ``notify``. The only place where a connection ends: the event comes once."""
        if notify:
            self._layer.send_alerts(CLOSE_NOTIFY)
        self._state = _CLOSED
        self._max_payload = 0
        if self._handshake is not None:
            self._handshake.release()
            self._handshake = None
        self._master_secret = b""
        self._last_flight = ()
        self._layer.forget_keys()
        self._events.append(ConnectionTerminated(cast("Connection", self), cause))

    def _end_by_caller(self, cause: Cause, now: float, *, notify: bool) -> None:
        self.terminate(cause, notify=notify)
        self.last_received = now
        if self._watcher is not None:
            self._watcher.wake(now)

    def share_ciphers(self, ciphers: Ciphers) -> None:
        """For :class:`~sansdtls.Server`: have cipher objects only while they are used."""
        self._layer.share_ciphers(ciphers)

    def take_events(self) -> list[Event]:
        """What happened since the last call."""
        if not self._events:
            return []
        events = self._events[:]
        self._events.clear()
        return events
