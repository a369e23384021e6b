"""What the handshakes of both roles share: messages in, flights out, timers, trying keys.

Three things arrive here, all from a peer that nobody has authenticated yet: fragments of handshake
messages, ChangeCipherSpec, and records of the next epoch. What is legal when stands in one table per
role, ``EXPECTED``; a handler raises ``HandshakeFailure`` to end the handshake and otherwise moves
``state`` on. ``outcome`` is set once both Finished are verified, and only by the code that verified them.

The wrong key, and how the peer is told. Attacker: anybody who can write the peer's address on a
datagram. Wanted: a device with a wrong key gets decrypt_error (RFC 7925 §4) soon, instead of repeating
its flight until it gives up; but a forged record must not end an honest handshake, and wrong key and
unknown identity must look the same. A Finished that no key opens proves nothing by itself, since
anybody can make one. So it is only noted. The verdict falls when a retransmission timer runs out, and
only if undecryptable Finished records arrived at two separate times, our flight was repeated since the
first, which makes an honest peer repeat its own, and no genuine one came before or after that. To end a
handshake a forger has to send twice *and* both honest flights have to be lost. It does not matter which of the two
flights of a peer came before ours was repeated: where its timer and ours run out at the same moment that is chance.
A handshake that ends anyway, because nothing came in all the time that it has, ends with that cause if one such
record came. Unknown
identities take the same way with random keys; a list of keys is filled up with them to a fixed number, so
that the work is the same too. Left out: a forger who also controls loss can end a handshake by silence
anyhow.

Plaintext alerts are treated alike: noted, reported, and obeyed only if for one initial timeout nothing
valid follows.
"""

from __future__ import annotations

import abc
import math
from typing import TYPE_CHECKING, ClassVar

from sansdtls.crypto.prf import VERIFY_DATA_LENGTH, digest, equal
from sansdtls.errors import DecodeError
from sansdtls.events import (
    AuthenticationFailed,
    AuthenticationProblem,
    DiscardReason,
    HandshakeTimeout,
    KeysExhausted,
    PskRequested,
    SecretDerived,
)
from sansdtls.handshake.failure import HandshakeFailure, violation
from sansdtls.handshake.flight import (
    MAX_RESIZED,
    MINIMUM_DATAGRAM_SIZE,
    FlightPart,
    flight_length,
    pack_flight,
)
from sansdtls.handshake.keys import DECOY, HandshakeParameters, room_for_plaintext, verify_data
from sansdtls.handshake.negotiation import shared
from sansdtls.handshake.outcome import Outcome, Peer
from sansdtls.handshake.reassembly import Reassembler
from sansdtls.handshake.states import WAITING_FOR_CALLER, Request, State
from sansdtls.handshake.timer import RetransmitTimer
from sansdtls.iana import AlertDescription, ContentType, HandshakeType, ProtocolVersion
from sansdtls.wire.handshake import HandshakeMessage, decode_fragments_untrusted, encode_message
from sansdtls.wire.record import MAX_PLAINTEXT_LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sansdtls.config import ClientConfig, ServerConfig
    from sansdtls.connection import Connection
    from sansdtls.events import Cause, Event
    from sansdtls.handshake.keys import EpochKeys, KeyCandidate
    from sansdtls.handshake.negotiation import Agreement
    from sansdtls.record.layer import RecordLayer
    from sansdtls.session import Session
    from sansdtls.wire.handshake import Fragment
    from sansdtls.wire.messages import ClientHello
    from sansdtls.wire.record import Record

UNDECRYPTABLE_TIMES = 2
"""Separate times at which an undecryptable Finished has to come before the peer's key counts as wrong: half an initial timeout
apart, since a flight is one time, or in two periods of our timer. One would let a single forged record end a handshake
whose Finished was lost; each further one delays the answer to a misconfigured device by a doubled timer."""

AFTER_FINISHED = frozenset((int(ContentType.APPLICATION_DATA), int(ContentType.RETURN_ROUTABILITY_CHECK)))
"""Content types that a peer who has finished may send, and that may overtake its Finished."""


class Handshake(abc.ABC):
    """One handshake, from the first flight to Finished."""

    EXPECTED: ClassVar[dict[State, dict[int, Callable[..., None]]]]
    """The only place that says which message is legal in which state, and what handles it."""
    IS_CLIENT: ClassVar[bool]
    OUR_LABEL: ClassVar[bytes]
    PEER_LABEL: ClassVar[bytes]
    CHANGE_CIPHER_SPEC_MAY_COME: ClassVar[frozenset[State]]
    """States before AWAIT_CHANGE_CIPHER_SPEC in which a reordering path may deliver it already."""

    def __init__(
        self,
        owner: Connection,
        config: ClientConfig | ServerConfig,
        layer: RecordLayer,
        events: list[Event],
        entropy: Callable[[int], bytes],
        now: float,
        *,
        state: State,
        first_seq: int = 0,
    ) -> None:
        self.state = state
        self.outcome: Outcome | None = None
        self.timer = RetransmitTimer(config.retransmit, now)
        self.deferred: list[Record] = []
        """Records of epoch 1 that came before their turn."""
        self.retry_deferred = False
        """Set when some of ``deferred`` may have become readable."""
        self._owner = owner
        self._config = config
        self._layer = layer
        self._events = events
        self._entropy = entropy
        self._reassembler = Reassembler(config.limits, layer.totals, next_seq=first_seq)
        self._next_send_seq = first_seq
        self._transcript = b""
        self._epoch_0 = layer.write
        self._flight: list[FlightPart] = []
        self._answered_seq = -1
        """message_seq of the message that our flight answers; seeing it again means our flight was lost."""
        self._datagram_size = layer.max_datagram_size
        self._resized = 0
        self._candidates: list[KeyCandidate] = []
        self._chosen: KeyCandidate | None = None
        self._change_cipher_spec_seen = False
        self._request: Request | None = None
        self._max_plaintext = MAX_PLAINTEXT_LENGTH
        self._hello: ClientHello
        self._agreement: Agreement  # set by ServerHello
        self._server_random = b""
        self._parameters: HandshakeParameters  # set when the keys can be derived
        self._noted_alert: Cause | None = None
        self._undecryptable_times = 0
        self._undecryptable_at = -math.inf
        self._undecryptable_periods = 0, 0
        """Of those that counted, the first and the last: how often our flight had been repeated."""
        self._deferred_size = 0

    # --- what the connection calls ------------------------------------------------------------------

    @abc.abstractmethod
    def provide_psk(self, keys: Sequence[bytes], now: float) -> None:
        """The answer to the request that was emitted; validated by the connection."""

    def refuse_psk(self, identity: bytes | None, alert: AlertDescription) -> None:
        """The answer to the request that was emitted: the keys are not to be had now; end, saying ``alert``."""
        raise HandshakeFailure(alert, AuthenticationFailed(AuthenticationProblem.KEYS_UNAVAILABLE, identity))

    @abc.abstractmethod
    def accept_peer(self, now: float) -> None:
        """The answer to the request that was emitted: go on."""

    def reject_peer(self, alert: AlertDescription, now: float) -> None:
        """The answer to the request that was emitted: end, saying ``alert``."""
        raise HandshakeFailure(alert, AuthenticationFailed(AuthenticationProblem.PEER_REJECTED))

    def awaits(self, request: Request) -> bool:
        """Whether ``request`` is the one that waits for an answer."""
        return self.state in WAITING_FOR_CALLER and request is self._request

    def receive_plaintext(self, plaintext: bytes, epoch: int, now: float) -> None:
        """The content of a handshake record. Raises HandshakeFailure."""
        try:
            fragments = decode_fragments_untrusted(plaintext)
        except DecodeError as error:
            raise violation(error.description, error.rule) from None
        for fragment in fragments:
            if self.state is State.DONE:
                # Behind the last message of the handshake nothing can follow in its record.
                raise violation(AlertDescription.UNEXPECTED_MESSAGE, "a message after Finished")
            self._receive_fragment(fragment, epoch, now)

    def receive_change_cipher_spec(self, body: bytes) -> None:
        """RFC 5246 §7.1. It has no message_seq, so on a reordering path it may come before its turn."""
        if self.state is State.AWAIT_CHANGE_CIPHER_SPEC or self.state in self.CHANGE_CIPHER_SPEC_MAY_COME:
            if len(body) != 1:
                raise violation(
                    AlertDescription.DECODE_ERROR, f"ChangeCipherSpec: {len(body)} bytes instead of 1"
                )
            if body != b"\x01":
                raise violation(AlertDescription.ILLEGAL_PARAMETER, f"ChangeCipherSpec: type {body[0]}")
            self._change_cipher_spec_seen = True
            if self.state is State.AWAIT_CHANGE_CIPHER_SPEC:
                self._change_read_epoch()
        else:
            self._layer.discard(DiscardReason.UNEXPECTED_CHANGE_CIPHER_SPEC)

    def open_next_epoch(self, record: Record, now: float) -> tuple[int, bytes] | None:
        """Try the candidate keys on a record of epoch 1; type and plaintext if one fits.

        Records that cannot be judged yet are kept in ``deferred``. Application data and questions for the path
        always wait there: without a connection ID they are not even decrypted before Finished is verified.
        """
        if self.state is not State.AWAIT_FINISHED or record.content_type in AFTER_FINISHED:
            self.defer(record)
            return None
        if record.version != ProtocolVersion.DTLS_1_2:
            self._layer.discard(DiscardReason.BAD_RECORD_HEADER)
            return None
        if record.connection_id != self._layer.connection_id:
            self._layer.discard(DiscardReason.UNKNOWN_CONNECTION_ID)
            return None
        for candidate in self._candidates:
            opened = candidate.keys.read.open(record)
            if opened is not None and candidate.index != DECOY:
                if opened[0] in AFTER_FINISHED:  # of a record whose type was hidden
                    self.defer(record)
                    return None
                candidate.keys.read.window.mark(record.sequence_number)
                self._choose(candidate)
                return opened
        self._layer.count_mac_failure()
        self._layer.discard(DiscardReason.BAD_MAC)
        if any(candidate.keys.read.exhausted for candidate in self._candidates):
            raise HandshakeFailure(None, KeysExhausted("open"))
        if record.content_type in (ContentType.HANDSHAKE, ContentType.TLS12_CID):
            self._note_undecryptable(now)
        return None

    def defer(self, record: Record) -> None:
        """Keep a record of the next epoch, within limits."""
        limits = self._config.limits
        size = self._deferred_size + len(record.fragment)
        if len(self.deferred) >= limits.max_deferred_records or size > limits.max_deferred_size:
            self._layer.discard(DiscardReason.DEFERRED_RECORDS_LIMIT)
            return
        self.deferred.append(record)
        self._deferred_size = size

    def take_deferred(self) -> list[Record]:
        """The kept records, in order of arrival; they are not kept any more."""
        records, self.deferred = self.deferred, []
        self._deferred_size = 0
        self.retry_deferred = False
        return records

    def note_alert(self, cause: Cause, now: float) -> None:
        """Remember a plaintext alert; see the essay above."""
        self._noted_alert = cause
        self.timer.hasten(now)

    def handle_timeout(self, now: float) -> None:
        """Repeat the flight, or give up by raising HandshakeFailure."""
        timer = self.timer
        if now >= timer.overall_deadline:
            raise self._give_up()
        if timer.deadline is None or now < timer.deadline:
            return
        if self._noted_alert is not None:
            raise HandshakeFailure(None, self._noted_alert)
        if timer.given_up:
            raise self._give_up()
        if (
            self._undecryptable_times >= UNDECRYPTABLE_TIMES
            and timer.retransmissions > self._undecryptable_periods[0]
        ):
            raise self._give_up()
        timer.back_off(now)
        if timer.shrink_due:
            self._datagram_size = max(MINIMUM_DATAGRAM_SIZE, self._datagram_size // 2)
        self._layer.count_retransmission()
        self._transmit()

    def release(self) -> None:
        """Give back what is held; the connection has ended or no longer needs the handshake."""
        self._reassembler.clear()
        self.deferred.clear()

    # --- messages -----------------------------------------------------------------------------------

    def _receive_fragment(self, fragment: Fragment, epoch: int, now: float) -> None:
        if fragment.message_seq < self._reassembler.next_seq:
            self._layer.discard(DiscardReason.DUPLICATE_HANDSHAKE_MESSAGE)
            if fragment.message_seq == self._answered_seq and fragment.end == fragment.length:
                self._answer_repeat(now)
            return
        if epoch != self._layer.read.epoch or (epoch == 0 and self.state is State.AWAIT_FINISHED):
            # In clear after ChangeCipherSpec: anybody's, and it must not get in Finished's way.
            self._layer.discard(DiscardReason.HANDSHAKE_FRAGMENT)
            return
        reason = self._reassembler.add(fragment, at_once=self.state not in WAITING_FOR_CALLER)
        if reason is not None:
            self._layer.discard(reason)
        self._process_messages(now)

    def _process_messages(self, now: float) -> None:
        while self.state not in WAITING_FOR_CALLER and (message := self._reassembler.pop()) is not None:
            self._noted_alert = None  # the peer is alive and going on
            handler = self.EXPECTED.get(self.state, {}).get(message.message_type)
            if handler is None:
                raise violation(
                    AlertDescription.UNEXPECTED_MESSAGE,
                    f"handshake message of type {message.message_type} in state {self.state.name}",
                )
            try:
                handler(self, message, now)
            except DecodeError as error:
                raise violation(error.description, error.rule) from None

    def _ask(self, request: Request) -> None:
        """Emit ``request`` and wait for its answer. The peer has nothing to repeat meanwhile."""
        self.state = State.AWAIT_PSK if isinstance(request, PskRequested) else State.AWAIT_ACCEPTANCE
        self.timer.pause()
        self._request = request
        self._events.append(request)

    def _await_change_cipher_spec(self, now: float) -> None:
        """All messages before it are there; it may have come already."""
        self._noted_alert = None  # while we were slow, the peer could not disprove it
        self.state = State.AWAIT_CHANGE_CIPHER_SPEC
        if self._change_cipher_spec_seen:
            self._change_read_epoch()
        self._process_messages(now)

    def _message(self, message_type: HandshakeType, body: bytes) -> HandshakeMessage:
        """The next message to send; it enters the transcript."""
        message = HandshakeMessage(message_type, self._next_send_seq, body)
        self._next_send_seq += 1
        self._transcript += encode_message(message)
        return message

    # --- flights ------------------------------------------------------------------------------------

    def _send_flight(self, parts: list[FlightPart], now: float) -> None:
        self._flight = parts
        self._answered_seq = self._reassembler.next_seq - 1
        self._datagram_size = self._layer.max_datagram_size
        self._resized = 0
        self._transmit()
        self.timer.start(now)

    def _answer_repeat(self, now: float) -> None:
        """RFC 6347 §4.2.4: a repeated flight of the peer means that ours was lost."""
        if self.state not in WAITING_FOR_CALLER and self.timer.may_answer_repeat(now):
            self._layer.count_retransmission()
            self._transmit()
            self.timer.restart(now)

    def keep_within(self, size: int, now: float) -> None:
        """The path takes no larger datagrams. A flight of larger ones was lost, or a part of it was."""
        if size >= self._datagram_size:
            return
        self._datagram_size = size
        if self.timer.deadline is None or flight_length(self._flight) <= size or self._resized >= MAX_RESIZED:
            return
        # RFC 6347 §4.1.1.1: "If the DTLS record layer informs the DTLS handshake layer that a message is too big, it
        # SHOULD immediately attempt to fragment it, using any existing information about the PMTU."
        self._resized += 1
        self._layer.count_retransmission()
        self._transmit()
        self.timer.restart(now)

    def _transmit(self) -> None:
        if any(part.epoch.remaining < len(self._flight) for part in self._flight):
            raise HandshakeFailure(None, KeysExhausted("seal"))
        self._layer.send_datagrams(pack_flight(self._flight, self._datagram_size, self._max_plaintext))

    # --- keys ---------------------------------------------------------------------------------------

    def _change_read_epoch(self) -> None:
        """ChangeCipherSpec takes effect: from now on only epoch 1 counts."""
        self._reassembler.clear()
        self.state = State.AWAIT_FINISHED
        self.retry_deferred = True

    def _choose(self, candidate: KeyCandidate) -> None:
        """A record of epoch 1 authenticated: this is the peer's key."""
        self._chosen = candidate
        self._layer.read = candidate.keys.read

    def _note_undecryptable(self, now: float) -> None:
        first, last = self._undecryptable_periods
        period = self.timer.retransmissions
        if period == last and now - self._undecryptable_at < self._config.retransmit.initial_timeout / 2:
            return
        self._undecryptable_periods = first if self._undecryptable_times else period, period
        self._undecryptable_at = now
        self._undecryptable_times += 1

    def _give_up(self) -> HandshakeFailure:
        """The end by silence, or by a wrong key if anything speaks for that."""
        if self._undecryptable_times:
            return self._authentication_failure(AuthenticationProblem.WRONG_KEY)
        return HandshakeFailure(None, self._noted_alert or HandshakeTimeout(self.state.name))

    def _authentication_failure(self, problem: AuthenticationProblem) -> HandshakeFailure:
        # RFC 7925 §4: decrypt_error, and not unknown_psk_identity, which would let identities be probed
        return HandshakeFailure(AlertDescription.DECRYPT_ERROR, AuthenticationFailed(problem))

    def _agree_on_parameters(self, *, full: bool) -> None:
        """All that the keys depend on is known; in a ``full`` handshake the transcript is part of it."""
        suite, policy = self._agreement.suite, self._config.connection_id
        hashed = full and self._agreement.negotiated.extended_master_secret
        peer_connection_id = self._agreement.hello.connection_id or b""
        self._parameters = HandshakeParameters(
            suite,
            self._hello.random,
            self._server_random,
            digest(suite.prf_hash, self._transcript) if hashed else None,
            is_client=self.IS_CLIENT,
            limits=self._config.limits,
            connection_id=self._layer.connection_id,
            peer_connection_id=peer_connection_id,
            padding=1 if policy is None else policy.padding,
            max_plaintext=room_for_plaintext(
                suite, self._layer.max_datagram_size, peer_connection_id, self._max_plaintext
            ),
        )

    def _send_finished(
        self, messages: list[HandshakeMessage], key: KeyCandidate, now: float
    ) -> list[FlightPart]:
        """Send ``messages``, ChangeCipherSpec and Finished, and write in epoch 1 from now on."""
        keys = key.keys
        finished = self._message(
            HandshakeType.FINISHED,
            verify_data(self._parameters.suite, keys.master_secret, self.OUR_LABEL, self._transcript),
        )
        self._layer.write = keys.write
        flight = [FlightPart(self._epoch_0, message) for message in messages]
        flight += [FlightPart(self._epoch_0, None), FlightPart(keys.write, finished)]
        self._send_flight(flight, now)
        return flight

    def _verify_finished(self, message: HandshakeMessage) -> KeyCandidate:
        """Check the peer's Finished; the candidate it was made with, or HandshakeFailure."""
        if len(message.body) != VERIFY_DATA_LENGTH:
            raise DecodeError(f"Finished: {len(message.body)} bytes instead of {VERIFY_DATA_LENGTH}")
        chosen = self._chosen
        if chosen is None:  # a record of epoch 1 was opened, so there is one; never go on without
            raise violation(AlertDescription.INTERNAL_ERROR, "Finished without keys")
        expected = verify_data(
            self._parameters.suite, chosen.keys.master_secret, self.PEER_LABEL, self._transcript
        )
        if not equal(expected, message.body):
            raise self._authentication_failure(AuthenticationProblem.BAD_FINISHED)
        self._transcript += encode_message(message)
        return chosen

    def _complete(
        self, chosen: KeyCandidate, peer: Peer, last_flight: list[FlightPart], session: Session | None = None
    ) -> None:
        """Both Finished are verified: hand over what the connection keeps."""
        self.outcome = Outcome(
            negotiated=shared(self._agreement.negotiated),
            peer=peer,
            master_secret=chosen.keys.master_secret,
            client_random=self._parameters.client_random,
            server_random=self._parameters.server_random,
            write=chosen.keys.write,
            last_flight=last_flight,
            next_receive_seq=self._reassembler.next_seq,
            max_plaintext=self._max_plaintext,
            max_accepted=self._agreement.max_accepted(self._config),
            session=session,
        )

    def _log_secret(self, keys: EpochKeys) -> None:
        if self._config.log_secrets:
            random = self._parameters.client_random
            self._events.append(SecretDerived(self._owner, "CLIENT_RANDOM", random, keys.master_secret))
