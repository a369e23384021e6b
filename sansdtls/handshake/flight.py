"""Flights: messages that are sent, and sent again, as one unit (RFC 6347 §4.2.4).

A flight keeps plain messages, not datagrams: each transmission fragments anew for the size that seems to
pass and takes fresh record sequence numbers, so it also takes fresh nonces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sansdtls.iana import ContentType
from sansdtls.wire.handshake import HANDSHAKE_HEADER_LENGTH, encode_fragment
from sansdtls.wire.record import MAX_PLAINTEXT_LENGTH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sansdtls.record.epochs import WriteEpoch
    from sansdtls.wire.handshake import HandshakeMessage

MINIMUM_DATAGRAM_SIZE = 256
"""Bytes. Halving after loss stops here: below it the headers outweigh the content."""
_MINIMUM_PIECE = 16
"""Bytes. A datagram's last few bytes are left empty rather than filled with a piece smaller than this,
whose 25 bytes of headers would cost more than the gap."""
_CHANGE_CIPHER_SPEC_BODY = b"\x01"


class FlightPart(NamedTuple):
    """A message (``None`` = ChangeCipherSpec) and the epoch it is sent in."""

    epoch: WriteEpoch
    message: HandshakeMessage | None


MAX_RESIZED = 3
"""How often a flight is sent again at once because the path turned out to be narrower. Each time it is, by less than
before; whoever forges such news gets no more than that for it."""


def flight_length(parts: Sequence[FlightPart]) -> int:
    """Bytes of the whole flight, were it sent in one datagram."""
    return sum(
        epoch.overhead
        + (len(_CHANGE_CIPHER_SPEC_BODY) if message is None else HANDSHAKE_HEADER_LENGTH + len(message.body))
        for epoch, message in parts
    )


def pack_flight(
    parts: Sequence[FlightPart], size: int, max_plaintext: int = MAX_PLAINTEXT_LENGTH
) -> list[bytes]:
    """The flight as datagrams of at most ``size`` bytes, each filled before the next begins.

    ``max_plaintext`` is what the peer takes in one record.

    One message per record: small stacks are known not to look for a second one. ChangeCipherSpec goes
    with the message after it into one datagram wherever both fit one, so that neither is of no use alone.
    """
    datagrams: list[bytes] = []
    current = b""
    for index, (epoch, message) in enumerate(parts):
        if message is None:
            needed = epoch.overhead + len(_CHANGE_CIPHER_SPEC_BODY)
            if index + 1 < len(parts) and (following := parts[index + 1].message) is not None:
                together = (
                    needed + parts[index + 1].epoch.overhead + HANDSHAKE_HEADER_LENGTH + len(following.body)
                )
                needed = together if together <= size else needed
            if len(current) + needed > size:
                datagrams.append(current)
                current = b""
            current += epoch.record(ContentType.CHANGE_CIPHER_SPEC, _CHANGE_CIPHER_SPEC_BODY)
            continue
        offset = 0
        while True:
            room = (
                min(size - len(current) - epoch.overhead, max_plaintext - epoch.inner_overhead)
                - HANDSHAKE_HEADER_LENGTH
            )
            remaining = len(message.body) - offset
            if room < min(remaining, _MINIMUM_PIECE) and current:
                datagrams.append(current)
                current = b""
                continue
            # An empty datagram takes a piece even where a long connection ID leaves no room: it has to go on.
            piece = min(max(room, _MINIMUM_PIECE), remaining)
            current += epoch.record(ContentType.HANDSHAKE, encode_fragment(message, offset, piece))
            offset += piece
            if offset == len(message.body):
                break
    datagrams.append(current)
    return datagrams
