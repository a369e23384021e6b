"""Putting handshake messages together from fragments, RFC 6347 §4.2.3.

Attacker: anybody who can write the peer's address on a datagram; nothing here is authenticated before
Finished. Property: memory is bounded by what was received and by three limits (per message, per
connection, in total), never by what a header announces; a message comes out once, in message_seq
order, and made of fragments that agree about its type and length. Nobody is kept from a handshake by what others
hold: a message that is whole and next needs no room at all, and where there is none for a fragment, the connection
that holds most gives way, unless that is the one that asks; its peer sends again. Construction: received ranges are
kept as they are, sorted and without overlap, and joined when nothing is missing. The first copy of a byte wins.
Left out: epochs. The handshake lets in fragments of one epoch at a time and clears what is left over at a
key change, so no message spans one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from sansdtls.events import DiscardReason
from sansdtls.handshake.failure import violation
from sansdtls.iana import AlertDescription
from sansdtls.wire.handshake import HandshakeMessage

if TYPE_CHECKING:
    from sansdtls.config import Limits
    from sansdtls.statistics import ServerStatistics
    from sansdtls.wire.handshake import Fragment

FRAGMENT_COST = 64
"""Bytes charged for each range held besides its content: about what Python's objects take. Without it
one-byte fragments would cost far more than the limits count."""


class PartialMessage:
    """One message of which some ranges have arrived."""

    __slots__ = ("_pieces", "_starts", "length", "message_type", "received", "size")

    def __init__(self, message_type: int, length: int) -> None:
        self.message_type = message_type
        self.length = length
        self.received = 0
        self.size = FRAGMENT_COST
        """Bytes charged to the limits."""
        self._starts: list[int] = []
        self._pieces: list[bytes] = []

    @property
    def complete(self) -> bool:
        """Whether every byte is there."""
        return self.received == self.length

    def add(self, offset: int, body: bytes) -> None:
        """Take in what of ``body`` is new, and join it with the ranges it touches."""
        if not self._pieces:  # the usual case: the whole message in one fragment
            self._starts, self._pieces = [offset], [body]
            self.received = len(body)
            self.size += FRAGMENT_COST + len(body)
            return
        start, end = offset, offset + len(body)
        first = bisect_left(self._starts, offset)
        if first and self._starts[first - 1] + len(self._pieces[first - 1]) >= offset:
            first -= 1
        last = bisect_right(self._starts, end)
        touched = list(zip(self._starts[first:last], self._pieces[first:last], strict=True))
        if touched:
            start = min(start, touched[0][0])
            end = max(end, touched[-1][0] + len(touched[-1][1]))
        joined = bytearray(end - start)
        for piece_offset, piece in ((offset, body), *touched):  # what was there first is written last
            joined[piece_offset - start : piece_offset - start + len(piece)] = piece
        self._starts[first:last] = [start]
        self._pieces[first:last] = [bytes(joined)]
        self.received = sum(map(len, self._pieces))
        self.size = FRAGMENT_COST + self.received + FRAGMENT_COST * len(self._pieces)

    def body(self) -> bytes:
        """The whole message; only when ``complete``."""
        return b"".join(self._pieces)


class Reassembler:
    """Collects fragments and gives out messages in order of message_seq."""

    __slots__ = ("_limits", "_partial", "_size", "_totals", "next_seq")

    def __init__(self, limits: Limits, totals: ServerStatistics | None, next_seq: int = 0) -> None:
        self._limits = limits
        self._totals = totals
        self._partial: dict[int, PartialMessage] = {}
        self._size = 0
        self.next_seq = next_seq

    def add(self, fragment: Fragment, *, at_once: bool = False) -> DiscardReason | None:
        """Take a fragment with ``message_seq >= next_seq``; the reason if it is of no use.

        ``at_once``: the caller pops what is complete before it returns. Raises HandshakeFailure where a fragment contradicts what is known of its message.
        """
        if fragment.message_seq - self.next_seq > self._limits.max_messages_ahead:
            return DiscardReason.HANDSHAKE_FRAGMENT
        if fragment.length > self._limits.max_handshake_message_size:
            raise violation(
                AlertDescription.ILLEGAL_PARAMETER,
                f"handshake message of {fragment.length} bytes is above Limits.max_handshake_message_size",
            )
        if not fragment.body and fragment.length:
            return DiscardReason.HANDSHAKE_FRAGMENT  # carries nothing; would only hold memory
        partial = self._partial.get(fragment.message_seq)
        if partial is None:
            partial = PartialMessage(fragment.message_type, fragment.length)
        elif (partial.message_type, partial.length) != (fragment.message_type, fragment.length):
            raise violation(
                AlertDescription.ILLEGAL_PARAMETER,
                "fragments of one message disagree about its type or length",
            )
        before = partial.size if fragment.message_seq in self._partial else 0
        growth = (partial.size - before) + len(fragment.body) + FRAGMENT_COST
        passes_through = at_once and partial.length == len(fragment.body) and self._is_next(fragment)
        if not self._has_room(growth, passes_through=passes_through):
            return DiscardReason.REASSEMBLY_LIMIT
        partial.add(fragment.offset, fragment.body)
        self._partial[fragment.message_seq] = partial
        self._charge(partial.size - before)
        return None

    def pop(self) -> HandshakeMessage | None:
        """The next message in order, if it is complete."""
        partial = self._partial.get(self.next_seq)
        if partial is None or not partial.complete:
            return None
        del self._partial[self.next_seq]
        self._charge(-partial.size)
        message = HandshakeMessage(partial.message_type, self.next_seq, partial.body())
        self.next_seq += 1
        return message

    def clear(self) -> None:
        """Forget everything and give its memory back."""
        self._partial.clear()
        self._charge(-self._size)

    def _is_next(self, fragment: Fragment) -> bool:
        return fragment.message_seq == self.next_seq and fragment.message_seq not in self._partial

    def _has_room(self, growth: int, *, passes_through: bool) -> bool:
        size = self._size + growth
        if size > self._limits.max_reassembly_size:
            return False
        totals, limit = self._totals, self._limits.max_total_reassembly_size
        if totals is None or passes_through:
            return True
        while totals.reassembly_size + growth > limit:
            largest = totals.holders.larger_than(size)
            if largest is None or largest is self:
                return False
            largest.clear()
        return True

    def _charge(self, size: int) -> None:
        before = self._size
        self._size += size
        if self._totals is not None:
            self._totals.reassembly_size += size
            self._totals.holders.changed(self, before, self._size)
