"""One association, read by a bystander who may have its secrets.

Nothing is sent and nobody is answered: records are taken apart, opened where there is a key, and both Finished
messages are checked against the handshake as it was recorded. The master secret comes from a key log, or for plain PSK
suites (RFC 4279 §2) from the key itself: then the key that opens the client's Finished is the one that the device has.
Suites with ephemeral Diffie-Hellman need the key log, whoever has the PSK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from sansdtls.config import Limits
from sansdtls.crypto.prf import MASTER_SECRET_LENGTH, digest, equal, psk_premaster_secret
from sansdtls.crypto.suites import SUITES, KeyExchange
from sansdtls.errors import DecodeError
from sansdtls.handshake.extensions import read_client_extensions_untrusted, read_server_extensions_untrusted
from sansdtls.handshake.keys import (
    EpochKeys,
    HandshakeParameters,
    derive_epoch_keys,
    derive_master_secret,
    verify_data,
)
from sansdtls.iana import CertificateType, CipherSuite, ContentType, HandshakeType
from sansdtls.recorded.seen import SeenMessage, SeenRecord, Verdict
from sansdtls.recorded.words import identity_in, words_for
from sansdtls.wire.handshake import (
    Fragment,
    HandshakeMessage,
    decode_fragments_untrusted,
    encode_message,
)
from sansdtls.wire.messages import ClientHello, ServerHello
from sansdtls.wire.record import (
    CONNECTION_ID_OFFSET,
    MAX_CIPHERTEXT_LENGTH,
    Record,
    decode_alert_untrusted,
    read_record_untrusted,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sansdtls.crypto.suites import SuiteParameters
    from sansdtls.handshake.extensions import HelloExtensions

MAX_MESSAGE = Limits().max_handshake_message_size
"""Bytes; longer messages are not put together."""
MAX_MESSAGES = 64
"""Messages of one side that are kept, on average; a handshake has less than ten. Whoever made the file may have put 65,536 into it."""
_GUESSED_ID_LENGTHS = range(1, 33)
"""Bytes; where the hellos were not recorded the length of a connection ID is the one with which a datagram adds up."""


@attrs.frozen
class Opener:
    """What opens the protected records: its keys, and where they come from."""

    key_index: int | None
    """Place of the pre-shared key among those given; ``None`` = the key log."""
    keys: EpochKeys = attrs.field(repr=False)


def no_keys(_identity: bytes) -> Sequence[bytes]:
    """For who has none."""
    return ()


class RecordedAssociation:
    """Give it the datagrams of one association in their order."""

    def __init__(
        self,
        *,
        secrets: Mapping[bytes, bytes] | None = None,
        keys: Callable[[bytes], Sequence[bytes]] = no_keys,
    ) -> None:
        """``secrets``: master secrets by client random, as a key log has them; ``keys``: the keys of an identity."""
        self._secrets = secrets if secrets is not None else {}
        self._keys_of = keys
        self._forget()

    def _forget(self) -> None:
        """A handshake begins."""
        self.client_hello: ClientHello | None = None
        self.server_hello: ServerHello | None = None
        self.identity: bytes | None = None
        """The PSK identity that the client named."""
        self.opener: Opener | None = None
        """With what protected records were opened; ``None`` = with nothing so far."""
        self.hello_record = 0
        """Number of the record that brought the last ClientHello; the server answers under the same."""
        self.finished: dict[bool, Verdict] = {}
        """What is known of the client's (True) and the server's Finished."""
        self._parts: dict[tuple[bool, int, int], dict[int, bytes]] = {}
        self._whole: dict[tuple[bool, int], HandshakeMessage] = {}
        self._offered: HelloExtensions | None = None
        self._agreed: HelloExtensions | None = None
        self._candidates: list[Opener] | None = None

    # --- what the hellos say ------------------------------------------------------------------------

    @property
    def client_random(self) -> bytes | None:
        """Names the association in a key log."""
        return None if self.client_hello is None else self.client_hello.random

    @property
    def suite(self) -> SuiteParameters | None:
        """What the server chose; ``None`` = not seen, or none that we know."""
        if self.server_hello is None:
            return None
        try:
            return SUITES[CipherSuite(self.server_hello.cipher_suite)]
        except ValueError:
            return None

    @property
    def resumed(self) -> bool:
        """Whether a session is resumed: RFC 5246 §7.4.1.3, the server repeats the client's session ID."""
        client, server = self.client_hello, self.server_hello
        return bool(client and server and server.session_id and client.session_id == server.session_id)

    def connection_id(self, *, from_client: bool) -> bytes | None:
        """What records of this direction carry; ``None`` = the hellos were not seen."""
        if self._offered is None or self._agreed is None:
            return None
        client, server = self._offered.connection_id, self._agreed.connection_id
        if client is None or server is None:
            return b""
        return server if from_client else client

    # --- datagrams ----------------------------------------------------------------------------------

    def claims(self, datagram: bytes, *, from_client: bool) -> bool:
        """Whether a datagram is this association's, as far as can be seen; changes nothing."""
        record = read_record_untrusted(datagram, 0, self._id_length(datagram, 0, from_client=from_client))
        if record is None:
            return False
        expected = self.connection_id(from_client=from_client)
        if record.connection_id:
            return record.connection_id == expected
        if record.epoch:
            return self._open(record, from_client=from_client) is not None
        random = _random_of(record)
        return random is None or self.client_hello is None or random == self.client_hello.random

    def read(self, datagram: bytes, *, from_client: bool) -> list[SeenRecord]:
        """The records of the next datagram."""
        records = []
        offset = 0
        while True:
            length = self._id_length(datagram, offset, from_client=from_client)
            record = read_record_untrusted(datagram, offset, length)
            if record is None:
                rest = Record(0, 0, 0, datagram[offset:])
                records.append(
                    attrs.evolve(SeenRecord.of(rest, Verdict.NO_RECORD, 0, None), length=len(rest[3]))
                )
                return records
            records.append(self._read_record(record, from_client=from_client))
            offset += record.length
            if offset >= len(datagram):
                return records

    def _id_length(self, datagram: bytes, offset: int, *, from_client: bool) -> int:
        if datagram[offset : offset + 1] != bytes([ContentType.TLS12_CID]):
            return 0
        known = self.connection_id(from_client=from_client)
        return len(known) if known is not None else _guessed_length(datagram, offset)

    def _read_record(self, record: Record, *, from_client: bool) -> SeenRecord:
        if not record.epoch:
            seen = SeenRecord.of(record, Verdict.PLAIN, record.content_type, record.fragment)
        else:
            opened = self._open(record, from_client=from_client)
            if opened is None:
                verdict = Verdict.NOT_AUTHENTIC if self._candidates else Verdict.NO_KEY
                return SeenRecord.of(record, verdict, record.content_type, None)
            seen = SeenRecord.of(record, Verdict.OPENED, *opened)
        content = seen.content or b""
        try:
            if seen.content_type == ContentType.HANDSHAKE:
                fragments = decode_fragments_untrusted(content)
                if fragments[0].message_type == HandshakeType.CLIENT_HELLO:
                    self.hello_record = record.sequence_number
                messages = [self._take(fragment, from_client=from_client) for fragment in fragments]
                seen = attrs.evolve(seen, messages=tuple(messages))
            elif seen.content_type == ContentType.ALERT:
                seen = attrs.evolve(seen, alert=decode_alert_untrusted(content))
        except DecodeError as error:
            seen = attrs.evolve(seen, malformed=error.rule)
        return seen

    # --- handshake messages -------------------------------------------------------------------------

    def _take(self, fragment: Fragment, *, from_client: bool) -> SeenMessage:
        kind, seq = fragment.message_type, fragment.message_seq
        if kind == HandshakeType.CLIENT_HELLO and from_client:
            self._begin(fragment)
        again = (from_client, seq) in self._whole and self._whole[from_client, seq].message_type == kind
        message = None if again else self._complete(fragment, from_client=from_client)
        words, verdict = "", None
        if message is not None:
            if len(self._whole) < 2 * MAX_MESSAGES:
                self._whole[from_client, seq] = message
            self._candidates = None
            verdict = self._judge(message, from_client=from_client)
            words = self._understand(message, from_client=from_client)
        body = None if message is None else message.body
        return SeenMessage(
            kind, seq, fragment.length, fragment.offset, len(fragment.body), body, again, words, verdict
        )

    def _begin(self, fragment: Fragment) -> None:
        """Forget the handshake before, if this is the hello of another one."""
        if self.client_hello is None or fragment.offset or len(fragment.body) < 34:
            return
        if fragment.body[2:34] != self.client_hello.random:
            self._forget()

    def _complete(self, fragment: Fragment, *, from_client: bool) -> HandshakeMessage | None:
        """The whole message, if there is nothing left to come."""
        whole = HandshakeMessage(fragment.message_type, fragment.message_seq, fragment.body)
        if fragment.offset == 0 and len(fragment.body) == fragment.length:
            return whole
        if fragment.length > MAX_MESSAGE or len(self._parts) >= MAX_MESSAGES:
            return None
        parts = self._parts.setdefault((from_client, fragment.message_seq, fragment.length), {})
        if len(fragment.body) > len(parts.get(fragment.offset, b"")):
            parts[fragment.offset] = fragment.body
        body = b""
        for offset in sorted(parts):
            if offset > len(body):
                return None
            body += parts[offset][len(body) - offset :]
        if len(body) < fragment.length:
            return None
        del self._parts[from_client, fragment.message_seq, fragment.length]
        return whole._replace(body=body)

    def _understand(self, message: HandshakeMessage, *, from_client: bool) -> str:
        """What a whole message says, and what follows from it."""
        suite = self.suite
        exchange = None if suite is None else suite.key_exchange
        body = message.body
        if message.message_type == HandshakeType.CLIENT_HELLO and from_client:
            self.client_hello = ClientHello.decode_untrusted(body)
            self._offered = read_client_extensions_untrusted(self.client_hello.extensions)
        elif message.message_type == HandshakeType.SERVER_HELLO and not from_client:
            self.server_hello = ServerHello.decode_untrusted(body)
            self._agreed = read_server_extensions_untrusted(self.server_hello.extensions)
        elif message.message_type == HandshakeType.CLIENT_KEY_EXCHANGE and from_client:
            self.identity = identity_in(body, exchange)
        return words_for(
            message.message_type,
            body,
            key_exchange=exchange,
            raw_public_key=self._is_raw(from_client=from_client),
        )

    def _is_raw(self, *, from_client: bool) -> bool:
        agreed = self._agreed
        if agreed is None:
            return False
        kinds = agreed.client_certificate_types if from_client else agreed.server_certificate_types
        return bool(kinds) and CertificateType.RAW_PUBLIC_KEY in (kinds or ())

    # --- keys ---------------------------------------------------------------------------------------

    def _open(self, record: Record, *, from_client: bool) -> tuple[int, bytes] | None:
        """Type and content of a record of epoch 1, under the first keys that open it."""
        if record.epoch != 1:
            return None
        for candidate in (self.opener,) if self.opener is not None else self._possible():
            keys = candidate.keys
            protection = (keys.read if from_client else keys.write).protection
            opened = None if protection is None else protection.open(record)
            if opened is not None:
                self.opener = candidate
                return opened
        return None

    def _possible(self) -> list[Opener]:
        if self._candidates is None:
            self._candidates = self._derived()
        return self._candidates

    def _derived(self) -> list[Opener]:
        """The keys that the records may be under, from all that is known by now."""
        client, server, suite = self.client_hello, self.server_hello, self.suite
        if client is None or server is None or suite is None or self._agreed is None:
            return []
        session_hash = self._session_hash(suite) if self._agreed.extended_master_secret else None
        parameters = HandshakeParameters(
            suite=suite,
            client_random=client.random,
            server_random=server.random,
            session_hash=session_hash,
            is_client=False,
            limits=Limits(),
            connection_id=self.connection_id(from_client=True) or b"",
            peer_connection_id=self.connection_id(from_client=False) or b"",
        )
        logged = self._secrets.get(client.random)
        if logged is not None and len(logged) == MASTER_SECRET_LENGTH:
            return [Opener(None, derive_epoch_keys(parameters, logged))]
        if suite.key_exchange is not KeyExchange.PSK or self.resumed or self.identity is None:
            return []
        if self._agreed.extended_master_secret and session_hash is None:
            return []  # part of the handshake is missing
        masters = [
            derive_master_secret(parameters, psk_premaster_secret(psk))
            for psk in self._keys_of(self.identity)
        ]
        return [Opener(index, derive_epoch_keys(parameters, master)) for index, master in enumerate(masters)]

    # --- the transcript -----------------------------------------------------------------------------

    @property
    def hello_message(self) -> HandshakeMessage | None:
        """The ClientHello that was answered: the last one. Hello without cookie and HelloVerifyRequest are outside."""
        hellos = [
            message
            for (from_client, _), message in self._whole.items()
            if from_client and message.message_type == HandshakeType.CLIENT_HELLO
        ]
        return max(hellos, key=lambda message: message.message_seq, default=None)

    @property
    def server_messages(self) -> dict[int, HandshakeMessage]:
        """The server's messages that are whole, by number, without the HelloVerifyRequest."""
        return {
            seq: message
            for (from_client, seq), message in self._whole.items()
            if not from_client and message.message_type != HandshakeType.HELLO_VERIFY_REQUEST
        }

    def _first_answer(self) -> int | None:
        """The number of the ServerHello."""
        for (from_client, seq), message in self._whole.items():
            if not from_client and message.message_type == HandshakeType.SERVER_HELLO:
                return seq
        return None

    def _run(self, first: int, end: int, *, of_client: bool) -> list[HandshakeMessage] | None:
        """One side's messages from number ``first`` up to but not including ``end``; ``None`` = one is missing."""
        found = [self._whole.get((of_client, seq)) for seq in range(first, min(end, first + MAX_MESSAGES))]
        return [message for message in found if message is not None] if all(found) else None

    def _of_server(self) -> list[HandshakeMessage] | None:
        """Flight 4."""
        first = self._first_answer()
        if first is None:
            return None
        for (from_client, seq), message in self._whole.items():
            if not from_client and message.message_type == HandshakeType.SERVER_HELLO_DONE:
                return self._run(first, seq + 1, of_client=False)
        return None

    def _session_hash(self, suite: SuiteParameters) -> bytes | None:
        """RFC 7627 §3: of everything up to ClientKeyExchange."""
        hello, answer = self.hello_message, self._of_server()
        if hello is None or answer is None:
            return None
        for (from_client, seq), message in self._whole.items():
            if from_client and message.message_type == HandshakeType.CLIENT_KEY_EXCHANGE:
                client = self._run(hello.message_seq + 1, seq + 1, of_client=True)
                if client is not None:
                    return digest(suite.prf_hash, _encoded([hello, *answer, *client]))
        return None

    def _transcript_before(self, finished: HandshakeMessage, *, from_client: bool) -> bytes | None:
        """What a Finished covers; ``None`` = part of it was not recorded."""
        hello, first = self.hello_message, self._first_answer()
        if hello is None or first is None:
            return None
        parts: list[list[HandshakeMessage] | None]
        if self.resumed:
            ours = finished.message_seq if not from_client else self._number_of_finished(of_client=False)
            parts = [[hello], None if ours is None else self._run(first, ours + from_client, of_client=False)]
        else:
            theirs = finished.message_seq if from_client else self._number_of_finished(of_client=True)
            answer = self._of_server()
            client = (
                None
                if theirs is None
                else self._run(hello.message_seq + 1, theirs + (not from_client), of_client=True)
            )
            parts = [[hello], answer, client]
            if not from_client and answer is not None:
                # The ticket, which comes after the client's Finished.
                parts.append(self._run(answer[-1].message_seq + 1, finished.message_seq, of_client=False))
        return None if None in parts else _encoded([message for part in parts for message in part or ()])

    def _number_of_finished(self, *, of_client: bool) -> int | None:
        for (from_client, seq), message in self._whole.items():
            if from_client is of_client and message.message_type == HandshakeType.FINISHED:
                return seq
        return None

    def _judge(self, message: HandshakeMessage, *, from_client: bool) -> Verdict | None:
        if message.message_type != HandshakeType.FINISHED:
            return None
        suite, opener = self.suite, self.opener
        transcript = self._transcript_before(message, from_client=from_client)
        if suite is None or opener is None or transcript is None:
            verdict = Verdict.UNPROVED
        else:
            label = b"client finished" if from_client else b"server finished"
            expected = verify_data(suite, opener.keys.master_secret, label, transcript)
            verdict = Verdict.PROVED if equal(expected, message.body) else Verdict.DISPROVED
        self.finished[from_client] = verdict
        return verdict


def _encoded(messages: list[HandshakeMessage]) -> bytes:
    return b"".join(map(encode_message, messages))


def _random_of(record: Record) -> bytes | None:
    """The random of a ClientHello; ``None`` = something else."""
    fragment = record.fragment
    is_hello = record.content_type == ContentType.HANDSHAKE and fragment[:1] == bytes(
        [HandshakeType.CLIENT_HELLO]
    )
    # type and length (4), message_seq (2), offset (3), length (3), version (2), random (32)
    return fragment[14:46] if is_hello and len(fragment) >= 46 and fragment[6:9] == bytes(3) else None


def _guessed_length(datagram: bytes, offset: int) -> int:
    """The shortest connection ID with which the datagram is whole records; 0 = there is none."""
    for length in _GUESSED_ID_LENGTHS:
        end = offset
        while datagram[end : end + 1] == bytes([ContentType.TLS12_CID]):
            start = end + CONNECTION_ID_OFFSET + length
            size = int.from_bytes(datagram[start : start + 2])
            if start + 2 > len(datagram) or not 9 <= size <= MAX_CIPHERTEXT_LENGTH:
                break
            end = start + 2 + size
        if end == len(datagram):
            return length
    return 0
