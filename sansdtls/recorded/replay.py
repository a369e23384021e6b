"""A recorded client once more, against this package's own server side.

The client's datagrams are given to a new connection, at the times at which they came; where the server drew at random, the
replay takes what was recorded (random, session ID, connection ID), and its configuration is what the recorded ServerHello
chose. So the client's Finished, which proves the whole handshake, can be verified again, and its data be opened: what a
device sent is seen through the very code that has to deal with it, with its events and its answers.

That needs a full handshake of a plain PSK suite, and the key. It cannot be done for ephemeral Diffie-Hellman, whose private
keys are in no recording, nor for a resumed session, whose ticket nobody else can open: such recordings can be read, with
a key log, and no more. The cookie is not verified again. Tickets are sealed anew, so they and the server's Finished behind
them differ from the recorded ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from sansdtls.config import ExtendedMasterSecret, ResumptionPolicy, ServerConfig
from sansdtls.connection import Connection
from sansdtls.connection_ids import ConnectionIdPolicy, ReturnRoutability
from sansdtls.crypto.prf import sha256
from sansdtls.crypto.suites import KeyExchange
from sansdtls.errors import DecodeError, UsageError
from sansdtls.events import ConnectionOffered, PskRequested
from sansdtls.handshake.extensions import read_server_extensions_untrusted
from sansdtls.handshake.resumption import Sessions
from sansdtls.iana import CipherSuite, ContentType, HandshakeType
from sansdtls.recorded.association import RecordedAssociation
from sansdtls.recorded.words import name_of
from sansdtls.statistics import ServerStatistics
from sansdtls.wire.handshake import encode_message
from sansdtls.wire.messages import PskServerKeyExchange
from sansdtls.wire.record import encode_record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sansdtls.events import Event
    from sansdtls.record.layer import Outgoing
    from sansdtls.wire.messages import ServerHello

_DIFFER = frozenset((HandshakeType.NEW_SESSION_TICKET, HandshakeType.FINISHED))


@attrs.frozen
class ReplayStep:
    """What came of one datagram, or of a timeout."""

    now: float
    datagram: bytes | None
    """``None`` = a timeout."""
    events: tuple[Event, ...]
    answers: tuple[bytes, ...]
    """Datagrams that this server sends."""


class _Nobody:
    """Watches a connection that belongs to no server."""

    def wake(self, now: float) -> None: ...

    def numbers_low(self) -> None: ...

    def changed(self) -> None: ...

    def settle(self, events: list[Event], now: float) -> list[Event]:
        return events


class _Drawn:
    """Entropy: first what was recorded, then bytes that are the same on each run."""

    def __init__(self, *recorded: bytes) -> None:
        self._recorded = list(recorded)
        self._state = sha256(b"sansdtls.recorded")

    def __call__(self, length: int) -> bytes:
        if self._recorded and len(self._recorded[0]) == length:
            return self._recorded.pop(0)
        drawn = b""
        while len(drawn) < length:
            self._state = sha256(self._state)
            drawn += self._state
        return drawn[:length]


class Replay:
    """One recorded association. Give it the client's datagrams from its hello with the cookie on."""

    def __init__(
        self, recorded: RecordedAssociation, *, keys: Callable[[bytes], Sequence[bytes]], now: float
    ) -> None:
        """``recorded`` has read the whole recording; ``now`` is when the hello came, in seconds on any clock.

        Raises UsageError where a replay is not possible, and says why.
        """
        hello, offered = recorded.hello_message, recorded.client_hello
        answer, suite = recorded.server_hello, recorded.suite
        if hello is None or offered is None or answer is None or suite is None:
            raise UsageError("its hellos were not recorded")
        if suite.key_exchange is not KeyExchange.PSK:
            raise UsageError("it has an ephemeral key, which is in no recording")
        if recorded.resumed:
            raise UsageError("it resumes a session, whose ticket only the recorded server can open")
        self._keys = keys
        self._recorded = recorded
        self._ours = RecordedAssociation(keys=keys)
        whole = encode_record(
            ContentType.HANDSHAKE, offered.version, recorded.hello_record, encode_message(hello)
        )
        self._ours.read(whole, from_client=True)
        self._outbox: list[Outgoing] = []
        self._now = now
        config = _config_of(answer, recorded)
        random = [answer.session_id] if answer.session_id else []
        entropy = _Drawn(*random, answer.random)
        connection_id = recorded.connection_id(from_client=True) or b""
        self.connection = Connection.accepted(
            config,
            ConnectionOffered(None, offered, hello, recorded.hello_record),
            entropy=entropy,
            now=now,
            outbox=self._outbox,
            totals=ServerStatistics(),
            watcher=_Nobody(),
            sessions=None if config.resumption is None else Sessions(config.resumption, _Drawn(), now),
            new_connection_id=lambda: connection_id,
            lapsed=False,
        )
        self.begun = ReplayStep(now, None, *self._taken(self.connection.take_events()))
        """What came of the hello."""

    def receive(self, datagram: bytes, *, now: float) -> list[ReplayStep]:
        """The client's next datagram, and before it the timeouts that were due meanwhile."""
        steps = self.wait(now=now)
        self._ours.read(datagram, from_client=True)
        events = self.connection.receive_datagram(datagram, now=now)
        steps.append(ReplayStep(now, datagram, *self._taken(events)))
        return steps

    def wait(self, *, now: float) -> list[ReplayStep]:
        """The timeouts that are due up to ``now``."""
        steps = []
        while (due := self.connection.next_timeout()) is not None and due <= now:
            self._now = max(self._now, due)
            events = self.connection.handle_timeout(now=self._now)
            steps.append(ReplayStep(self._now, None, *self._taken(events)))
        self._now = max(self._now, now)
        return steps

    def differences(self) -> list[str]:
        """Handshake messages of this server that are not the recorded ones, in words; without those that must differ."""
        theirs, ours = self._recorded.server_messages, self._ours.server_messages
        found = []
        for seq in sorted(theirs.keys() | ours.keys()):
            one, other = theirs.get(seq), ours.get(seq)
            if one is not None and other is not None and one.message_type == other.message_type:
                if one.body != other.body and one.message_type not in _DIFFER:
                    found.append(f"{name_of(HandshakeType, one.message_type)} {seq} has another content")
            elif other is not None:
                instead = "" if one is None else f" instead of {name_of(HandshakeType, one.message_type)}"
                found.append(f"{name_of(HandshakeType, other.message_type)} {seq}{instead}")
            elif one is not None:
                found.append(f"no {name_of(HandshakeType, one.message_type)} {seq}")
        return found

    def _taken(self, events: list[Event]) -> tuple[tuple[Event, ...], tuple[bytes, ...]]:
        """Events with what their answers bring about, and what is sent."""
        told: list[Event] = []
        waiting = list(events)
        while waiting:
            event = waiting.pop(0)
            told.append(event)
            if isinstance(event, PskRequested):
                keys = self._keys(event.identity)
                waiting += self.connection.provide_psk(event, keys, now=self._now)
        answers = tuple(outgoing.data for outgoing in self._outbox)
        self._outbox.clear()
        for answer in answers:
            self._ours.read(answer, from_client=False)
        return tuple(told), answers


def _config_of(answer: ServerHello, recorded: RecordedAssociation) -> ServerConfig:
    """A configuration that makes the recorded choices, as far as one can."""
    extensions = read_server_extensions_untrusted(answer.extensions)
    policy = None
    if extensions.connection_id is not None:
        asks = ReturnRoutability.BASIC if extensions.return_routability_check else ReturnRoutability.OFF
        policy = ConnectionIdPolicy(length=min(len(extensions.connection_id), 32), return_routability=asks)
    resumption = None
    if extensions.session_ticket is not None:
        resumption = ResumptionPolicy()
    elif answer.session_id:
        resumption = ResumptionPolicy(tickets=False)
    return ServerConfig(
        cipher_suites=(CipherSuite(answer.cipher_suite),),
        extended_master_secret=ExtendedMasterSecret.PREFERRED,
        alpn_protocols=extensions.alpn_protocols or (),
        record_size_limit=extensions.record_size_limit,
        connection_id=policy,
        resumption=resumption,
        psk_identity_hint=_hint(recorded),
    )


def _hint(recorded: RecordedAssociation) -> bytes | None:
    for message in recorded.server_messages.values():
        if message.message_type == HandshakeType.SERVER_KEY_EXCHANGE:
            try:
                return PskServerKeyExchange.decode_untrusted(message.body).identity_hint[:128] or None
            except DecodeError:
                return None
    return None
