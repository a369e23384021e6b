"""What a server does with a ClientHello before there is a connection. The essay is in ``cookie.py``.

Everything here but :class:`HelloReassembly` is stateless, and that begins behind a valid cookie only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import attrs

from sansdtls.cookie import CookieKeys, first_fragment, whole_hello
from sansdtls.errors import DecodeError
from sansdtls.events import DiscardReason
from sansdtls.handshake.reassembly import Reassembler
from sansdtls.iana import AlertLevel, ContentType, HandshakeType, ProtocolVersion
from sansdtls.wire.handshake import HandshakeMessage, decode_fragments_untrusted, encode_message
from sansdtls.wire.messages import HelloVerifyRequest, split_cookie_untrusted
from sansdtls.wire.record import RECORD_HEADER_LENGTH, encode_alert, encode_record

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from sansdtls.config import CookiePolicy, Limits
    from sansdtls.iana import AlertDescription
    from sansdtls.statistics import ServerStatistics
    from sansdtls.wire.handshake import Fragment
    from sansdtls.wire.record import Record

_MAX_FIRST_SEQUENCE_NUMBER = 2**40
"""A server goes on from the client's record number; one that leaves too little room below 2**48 is noise."""


@attrs.frozen
class HelloVerified:
    """A fragment of a ClientHello with a valid cookie; the whole of it where ``complete``."""

    fragment: Fragment
    sequence_number: int
    """Of the record it came in."""

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return len(self.fragment.body) == self.fragment.length


class Answer(NamedTuple):
    """A datagram to send back to where the hello came from."""

    data: bytes


def is_client_hello(record: Record) -> bool:
    """Whether a record carries (the beginning of) a ClientHello in clear."""
    return (
        record.content_type == ContentType.HANDSHAKE
        and record.epoch == 0
        and record.fragment[:1] == bytes([HandshakeType.CLIENT_HELLO])
    )


def read_hello_untrusted(record: Record) -> Fragment:
    """The ClientHello fragment in a record for which :func:`is_client_hello` holds; raises DecodeError."""
    if record.sequence_number > _MAX_FIRST_SEQUENCE_NUMBER:
        raise DecodeError("ClientHello: record sequence number too high")
    return decode_fragments_untrusted(record.fragment)[0]


def alert_to(record: Record, description: AlertDescription) -> bytes:
    """A fatal alert in clear for the sender of ``record``, from a server that keeps nothing of it."""
    return encode_record(
        ContentType.ALERT,
        ProtocolVersion.DTLS_1_2,
        record.number,
        encode_alert(AlertLevel.FATAL, description),
    )


class HelloVerifier:
    """Sends cookies and recognises them."""

    __slots__ = ("_keys", "_statistics")

    def __init__(
        self,
        policy: CookiePolicy,
        statistics: ServerStatistics,
        entropy: Callable[[int], bytes],
        now: float,
    ) -> None:
        self._keys = CookieKeys(policy, entropy, now)
        self._statistics = statistics

    def judge_untrusted(
        self, record: Record, fragment: Fragment, path: Hashable, now: float
    ) -> HelloVerified | Answer | DiscardReason:
        """A verified hello, the HelloVerifyRequest to answer with, or why there is neither."""
        if fragment.offset:
            return DiscardReason.HANDSHAKE_FRAGMENT
        try:
            before, cookie, after = split_cookie_untrusted(fragment.body)
        except DecodeError:
            return DiscardReason.HANDSHAKE_FRAGMENT
        if len(fragment.body) == fragment.length:
            covered = whole_hello(path, before, after)
        else:
            covered = first_fragment(path, before, fragment.length - len(cookie))
        if cookie:
            if self._keys.verifies(cookie, covered, now):
                return HelloVerified(fragment, record.sequence_number)
            self._statistics.cookies_bad += 1
        # RFC 6347 §4.2.1: "DTLS 1.2 server implementations SHOULD use DTLS version 1.0 regardless of the
        # version of TLS that is expected to be negotiated."
        request = HelloVerifyRequest(ProtocolVersion.DTLS_1_0, self._keys.cookie(covered, now))
        # Erratum 5186: message_seq is that of the hello. RFC 6347 §4.2.1: "the server MUST use the record
        # sequence number in the ClientHello as the record sequence number in the HelloVerifyRequest."
        message = HandshakeMessage(HandshakeType.HELLO_VERIFY_REQUEST, fragment.message_seq, request.encode())
        answer = encode_record(ContentType.HANDSHAKE, record.version, record.number, encode_message(message))
        if len(answer) > RECORD_HEADER_LENGTH + len(record.fragment):
            return DiscardReason.COOKIE_ANSWER_TOO_LARGE
        self._statistics.cookies_sent += 1
        return Answer(answer)


class HelloReassembly:
    """A fragmented ClientHello, begun by a first fragment with a valid cookie."""

    __slots__ = ("_reassembler", "sequence_number")

    def __init__(self, first: HelloVerified, limits: Limits, statistics: ServerStatistics) -> None:
        self._reassembler = Reassembler(limits, statistics, next_seq=first.fragment.message_seq)
        self.sequence_number = first.sequence_number

    def add(self, fragment: Fragment) -> HandshakeMessage | DiscardReason | None:
        """Take a fragment: the message when it is complete, a reason if the fragment is of no use.

        Raises HandshakeFailure where it contradicts the others.
        """
        if fragment.message_seq != self._reassembler.next_seq:
            return DiscardReason.HANDSHAKE_FRAGMENT
        reason = self._reassembler.add(fragment, at_once=True)
        return reason if reason is not None else self._reassembler.pop()

    def release(self) -> None:
        """Give the memory back."""
        self._reassembler.clear()
