"""What an authentic record from another path does: RFC 9146 §6 and return routability, RFC 9853.

Attacker, on or off the path: sees datagrams; sends copies of them, before the originals too, and with any source
address. On the path it may also hold them back. It cannot make a record that authenticates.
Properties:
- Whatever the path, an authentic record delivers its data. It starts something only if it is newer than all
  before it, so nothing that was recorded earlier moves anything.
- With RFC 9853 the path in use is one on which the peer has answered a challenge with 64 random bits, fresh each
  time; the answer counts only if it comes from the path that was asked.
- To a path in question go at most three times the bytes of the authentic records that came from it during the
  check, challenges and answers included.
- A record from the path in use that is newer than what raised the question settles it: the peer is still there.
- One check at a time, bounded in challenges and in time; between checks there is no state but the path.

What a check does, ``=>`` being a challenge that is repeated until it is answered or the path has been asked
``max_probes`` times::

    BASIC                    => new path      answered there: it is in use now      else: nothing has moved
    ENHANCED    => old path, path_response: nothing moves       path_drop or no answer: go on as with BASIC

Meanwhile data go to the new path, as long as the budget lasts: a device that has just moved waits for an answer to
what it sent. Beyond the budget, and while the old path is asked, they go to the old one.

The old path is asked ``max_probes`` times in the course of one ``probe_timeout``: three round trips, RFC 9853
§5.5, with a challenge in each, §5.3. The new path may be slower than the old one, so there each challenge has a
``probe_timeout`` of its own, and a late answer to an earlier one still counts.

In ENHANCED the answer of the old path counts wherever it comes from. RFC 9853 §5.2 asks for nothing else, and it
never moves anything: whoever copies the peer's datagrams and is faster has its copy of the answer arrive first,
too, and must not get it ignored by that.

What we answer. "Preferred" (RFC 9853 §5.2) is the path in use, and the path in question, on which the peer was
heard last. A challenge there is answered by path_response. One from anywhere else was overtaken by what the peer
sent since, from a path that is preferred to this one: path_drop. Nobody here migrates of his own accord; a
client that opens a new socket does so below its path, and is followed like one behind a NAT.

Left out. BASIC lets an off-path forwarder become on-path: the challenge and its answer pass through it, and nothing
tells it from a NAT (RFC 9853 §8.1); it then holds what any router holds. ENHANCED resists unless it wins every
race in both directions. In BASIC a copy from a spoofed address diverts what is sent in answer to it, up to the
budget, until the peer's next record. Without RFC 9853 ``PathPolicy`` says what is risked. Padding challenges to probe the MTU is
left out, and a round-trip time is not measured: devices that sleep have none.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, cast

from sansdtls.connection_ids import ConnectionIdPolicy, PathPolicy, ReturnRoutability
from sansdtls.crypto.prf import equal
from sansdtls.errors import DecodeError, UsageError, WrongState
from sansdtls.events import DiscardReason, PathChanged, PathChangeRequested, PathProof
from sansdtls.iana import ContentType, PathMessageType
from sansdtls.wire.return_routability import (
    COOKIE_LENGTH,
    PATH_MESSAGE_LENGTH,
    decode_path_message_untrusted,
    encode_path_message,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from sansdtls.config import ClientConfig, ServerConfig
    from sansdtls.connection import Connection
    from sansdtls.events import Event
    from sansdtls.handshake.negotiation import Negotiated
    from sansdtls.record.layer import RecordLayer
    from sansdtls.statistics import ConnectionStatistics, ServerStatistics
    from sansdtls.wire.return_routability import PathMessage

AMPLIFICATION_LIMIT = 3
"""Bytes that may go to an unproven path for each that came from it. RFC 9853 §2: "three times the amount of data
received from an unvalidated address"."""

KEPT_RECORDS = 2
"""Records that checks leave to the keys: the last data, and close_notify."""

_DEFAULT_POLICY = ConnectionIdPolicy()
"""Where connection IDs were configured away while an association that has one was frozen."""


@enum.unique
class Stage(enum.Enum):
    """Who is to say whether the new path is the peer's."""

    AWAIT_OLD_PATH = "await_old_path"
    AWAIT_NEW_PATH = "await_new_path"
    AWAIT_CALLER = "await_caller"


@enum.unique
class Verdict(enum.Enum):
    """What an answer to a challenge means."""

    PROVEN = "proven"
    """The peer is at the new path."""
    STAYED = "stayed"
    """The peer is at the old path, and wants to be."""
    LEFT = "left"
    """The peer can be reached at the old path, but does not want to be."""


class PathCheck:
    """One path in question: who is asked, with what, and how much may still be sent there."""

    __slots__ = (
        "_cookies",
        "_entropy",
        "_layer",
        "_policy",
        "_received",
        "_sent",
        "_stage",
        "_turns",
        "candidate",
        "deadline",
        "request",
    )

    def __init__(
        self,
        layer: RecordLayer,
        policy: ConnectionIdPolicy,
        entropy: Callable[[int], bytes],
        candidate: Hashable,
        received: int,
    ) -> None:
        self._layer = layer
        self._policy = policy
        self._entropy = entropy
        self.candidate = candidate
        """The path in question."""
        self._received = received
        self._sent = 0
        self._stage = Stage.AWAIT_CALLER
        self._cookies: list[bytes] = []
        self._turns = 0
        self.deadline: float | None = None
        """When :meth:`handle_timeout` is due."""
        self.request: PathChangeRequested | None = None
        """What the caller was asked, where it is the one to say."""

    def ask_old_path(self, now: float) -> None:
        """Begin to ask the path in use."""
        self._begin(Stage.AWAIT_OLD_PATH, now)

    def ask_new_path(self, now: float) -> None:
        """Begin to ask the path in question."""
        self._begin(Stage.AWAIT_NEW_PATH, now)

    def handle_timeout(self, now: float) -> bool:
        """Nobody has answered by ``deadline``: ask again, or the next; False if there is nobody left to ask."""
        if self._turns < self._policy.max_probes:
            self._take_turn(now)
        elif self._stage is Stage.AWAIT_OLD_PATH:
            # RFC 9853 §5.2: "If T expires [...] the initiator MUST perform a return routability check on the
            # observed new address"
            self.ask_new_path(now)
        else:
            return False
        return True

    def hear(self, length: int) -> None:
        """An authentic record of so many bytes came from the path in question."""
        self._received += length
        if self._stage is Stage.AWAIT_NEW_PATH and not self._cookies:
            self._challenge()  # there was no room for it before

    def judge(self, answer: PathMessage, path: Hashable) -> Verdict | None:
        """What a path_response or path_drop that came from ``path`` means; ``None`` = nothing."""
        if not any([equal(answer.cookie, cookie) for cookie in self._cookies]):  # noqa: C419 - all of them
            return None
        answered = answer.message_type is PathMessageType.PATH_RESPONSE
        if self._stage is Stage.AWAIT_OLD_PATH:
            # RFC 9853 §5.2: "When a path_response was received, the initiator MUST continue using the previously
            # valid address"; "When a path_drop was received, the initiator MUST perform a return routability
            # check on the observed new address".
            return Verdict.STAYED if answered else Verdict.LEFT
        return Verdict.PROVEN if answered and path == self.candidate else None

    # --- the budget ---------------------------------------------------------------------------------

    def affords(self, length: int) -> bool:
        """Whether so many bytes more may go to the path in question."""
        return self._sent + length <= AMPLIFICATION_LIMIT * self._received

    def path_for(self, length: int) -> Hashable:
        """Where the next datagram goes, which has so many bytes and is sent now."""
        # RFC 9853 §5: "MUST stop sending any buffered application data, or limit the data sent to the unvalidated
        # address to the anti-amplification limit."
        if self._stage is Stage.AWAIT_NEW_PATH and self.affords(length):
            self._sent += length
            return self.candidate
        return self._layer.path

    def send(self, data: bytes) -> None:
        """Send a datagram to the path in question; the caller has looked at :meth:`affords`."""
        self._sent += len(data)
        self._layer.send_on(self.candidate, data)

    # --- challenges ---------------------------------------------------------------------------------

    def _begin(self, stage: Stage, now: float) -> None:
        self._stage = stage
        self._cookies.clear()
        self._turns = 0
        self._take_turn(now)

    def _take_turn(self, now: float) -> None:
        policy = self._policy
        self._turns += 1
        spread = policy.max_probes if self._stage is Stage.AWAIT_OLD_PATH else 1
        self.deadline = now + policy.probe_timeout / spread
        self._challenge()

    def _challenge(self) -> None:
        """Send a challenge, if budget and keys have room for it."""
        layer = self._layer
        asks_new_path = self._stage is Stage.AWAIT_NEW_PATH
        if asks_new_path and not self.affords(layer.write.overhead + PATH_MESSAGE_LENGTH):
            return
        # RFC 9853 §5.3: "Each path_challenge message MUST contain random data." §8: cookies "MUST be freshly
        # generated".
        cookie = self._entropy(COOKIE_LENGTH)
        record = _path_record(layer, PathMessageType.PATH_CHALLENGE, cookie)
        if record is None:
            return
        self._cookies.append(cookie)
        if asks_new_path:
            self.send(record)
        else:
            layer.send_on(layer.path, record)


class PathFollower:
    """The part of an association that knows where its peer is, and what the way there takes."""

    __slots__ = ("_max_payload", "_max_plaintext")
    _config: ClientConfig | ServerConfig
    _entropy: Callable[[int], bytes]
    _events: list[Event]
    _layer: RecordLayer
    _max_payload: int
    _max_plaintext: int
    _negotiated: Negotiated | None

    @property
    def path_check_under_way(self) -> bool:
        """Whether a return routability check is under way."""
        check = self._layer.path_check
        return check is not None and check.deadline is not None

    @property
    def _checks_paths(self) -> bool:
        return self._negotiated is not None and self._negotiated.return_routability

    def _locate_peer(
        self, path: Hashable, length: int, opened: tuple[int, bytes], now: float, *, newer: bool
    ) -> bool:
        """See what an authentic record of ``length`` bytes, from another path or during a check, says.

        ``path`` is ``None`` for the path in use. Whether that was all the record is for: its content was a
        return_routability_check message.
        """
        layer = self._layer
        if path is None:
            path = layer.path
        # RFC 9853 §3: "The client and server MUST NOT use RRC unless both sides have successfully exchanged rrc
        # extensions." Else such a record is left to be refused like any other of an unexpected type.
        consumed = opened[0] == ContentType.RETURN_ROUTABILITY_CHECK and self._checks_paths
        message = self._read_path_message(opened[1]) if consumed else None
        check = layer.path_check
        if check is not None and path == check.candidate:
            check.hear(length)
        if message is None or message.message_type is PathMessageType.PATH_CHALLENGE:
            self._hear(path, length, now, newer=newer)
            if message is not None:
                self._answer_challenge(message.cookie, path, length)
        elif not self._receive_answer(message, path, now) and (
            message.message_type is not PathMessageType.PATH_DROP or path != layer.path
        ):
            self._hear(path, length, now, newer=newer)  # of no use as an answer, and yet a sign of life
        return consumed

    def _hear(self, path: Hashable, length: int, now: float, *, newer: bool) -> None:
        """The peer was heard on ``path``."""
        # RFC 9146 §6: the path must not change unless "The received datagram is 'newer' (in terms of both epoch
        # and sequence number) than the newest datagram received."
        if not newer:
            return
        check = self._layer.path_check
        if path == self._layer.path:
            if check is not None:
                self._end_check()  # the peer is still there
        elif check is None or path != check.candidate:
            if check is not None:
                self._end_check()
            self._question(path, length, now)

    def _question(self, path: Hashable, length: int, now: float) -> None:
        """A new path: do what the policy says."""
        layer, policy = self._layer, self._config.connection_id or _DEFAULT_POLICY
        if not self._checks_paths and policy.path_policy is PathPolicy.NEVER:
            return
        if not self._checks_paths and policy.path_policy is PathPolicy.MOVE:
            self._move(path, PathProof.NEWER_RECORD)
            return
        check = layer.path_check = PathCheck(layer, policy, self._entropy, path, length)
        if not self._checks_paths:
            check.request = PathChangeRequested(cast("Connection", self), layer.path, path)
            self._events.append(check.request)
        elif policy.return_routability is ReturnRoutability.ENHANCED:
            check.ask_old_path(now)
        else:
            check.ask_new_path(now)

    def _receive_answer(self, answer: PathMessage, path: Hashable, now: float) -> bool:
        """Take in a path_response or path_drop; whether it answered anything."""
        check = self._layer.path_check
        verdict = None if check is None else check.judge(answer, path)
        if check is None or verdict is None:
            # RFC 9853 §5.4: "The initiator MUST silently discard any invalid path_response or path_drop it
            # receives."
            for statistics in self._counters:
                statistics.path_responses_ignored += 1
            return False
        if verdict is Verdict.PROVEN:
            self._move(check.candidate, PathProof.RETURN_ROUTABILITY)
        elif verdict is Verdict.STAYED:
            self._end_check()
        else:
            check.ask_new_path(now)
        return True

    def _answer_challenge(self, cookie: bytes, path: Hashable, length: int) -> None:
        # RFC 9853 §5.4: "The responder MUST NOT delay sending", "MUST send exactly one path_response or path_drop
        # message for each valid path_challenge", and "to the address from which the corresponding path_challenge
        # was received".
        layer = self._layer
        check = layer.path_check
        in_question = check is not None and path == check.candidate
        preferred = in_question or path == layer.path
        expected = layer.write.overhead + PATH_MESSAGE_LENGTH
        if check is not None and in_question:
            affordable = check.affords(expected)
        else:
            affordable = path == layer.path or expected <= AMPLIFICATION_LIMIT * length
        kind = PathMessageType.PATH_RESPONSE if preferred else PathMessageType.PATH_DROP
        record = _path_record(layer, kind, cookie) if affordable else None
        if record is None:
            return
        if check is not None and in_question:
            check.send(record)
        else:
            layer.send_on(path, record)

    def _read_path_message(self, fragment: bytes) -> PathMessage | None:
        try:
            message = decode_path_message_untrusted(fragment)
        except DecodeError:
            # RFC 9146 §6: "DTLS implementations MUST silently discard records with bad MACs or that are otherwise
            # invalid." A check of a path is no reason to lose an association.
            message = None
        if message is None:
            self._layer.discard(DiscardReason.BAD_PATH_MESSAGE)
        return message

    # --- how it ends --------------------------------------------------------------------------------

    def _handle_path_timeout(self, now: float) -> None:
        check = self._layer.path_check
        if check is not None and not check.handle_timeout(now):
            # RFC 9853 §5.1: "If T expires the peer address binding is not updated."
            self._end_check()

    def _move(self, path: Hashable, proof: PathProof) -> None:
        layer = self._layer
        old, layer.path, layer.path_check = layer.path, path, None
        if layer.max_datagram_size < self._config.mtu:
            self._use_datagram_size(self._config.mtu)  # nothing is known of this path yet
        for statistics in self._counters:
            statistics.path_changes += 1
        self._events.append(PathChanged(cast("Connection", self), old, path, proof))

    def _use_datagram_size(self, size: int) -> None:
        """Send datagrams of at most so many bytes from now on. For an association, as handshakes have flights to cut."""
        layer = self._layer
        layer.max_datagram_size = size
        self._max_payload = layer.write.keep_within(size, self._max_plaintext)

    def _end_check(self) -> None:
        """Nothing moves."""
        if self.path_check_under_way:
            for statistics in self._counters:
                statistics.path_checks_failed += 1
        self._layer.path_check = None

    @property
    def _counters(self) -> list[ConnectionStatistics | ServerStatistics]:
        layer = self._layer
        return [layer.statistics] if layer.totals is None else [layer.statistics, layer.totals]

    # --- the caller's word --------------------------------------------------------------------------

    def _move_as_confirmed(self, request: PathChangeRequested) -> None:
        """Nothing happens if the peer was heard elsewhere since, or the connection has ended."""
        if not isinstance(request, PathChangeRequested):
            raise UsageError(f"a {type(request).__name__} is not answered in this way")
        if request.connection is not cast("Connection", self):
            raise UsageError("this request belongs to another connection")
        check = self._layer.path_check
        if check is not None and check.request is request:
            self._move(check.candidate, PathProof.APPLICATION)

    def _send_to_unproven(self, path: Hashable, data: bytes) -> None:
        """Send data to a path that waits for the caller's word. Raises WrongState for others."""
        write, check = self._layer.write, self._layer.path_check
        if check is None or check.request is None or path != check.candidate:
            raise WrongState(f"cannot send: {path!r} is neither in use nor waits to be confirmed")
        length = write.overhead + len(data)
        if check.affords(length):
            record = write.record(ContentType.APPLICATION_DATA, data)
            length = len(record)  # padding included
            if check.affords(length):
                check.send(record)
                return
        raise WrongState(
            f"cannot send: {length} bytes are more than may go to {path!r} before it is confirmed"
        )


def _path_record(layer: RecordLayer, message_type: PathMessageType, cookie: bytes) -> bytes | None:
    """A record with such a message; ``None`` if hardly any numbers are left."""
    if layer.write.available <= KEPT_RECORDS:
        return None
    # RFC 9853 §4: it "MUST be authenticated and encrypted using the currently active security context."
    message = encode_path_message(message_type, cookie)
    return layer.write.record(ContentType.RETURN_ROUTABILITY_CHECK, message)
