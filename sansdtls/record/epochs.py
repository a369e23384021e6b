"""One epoch in one direction: keys, numbers, limits.

A write epoch hands out each sequence number once and so each nonce once. A read epoch counts the
records that failed to authenticate. Both know their limit and say when it is reached; ending the
connection is the owner's business.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from sansdtls.iana import ProtocolVersion
from sansdtls.record.protection import TYPE_LENGTH
from sansdtls.record.replay import ReplayWindow
from sansdtls.wire.record import MAX_SEQUENCE_NUMBER, RECORD_HEADER_LENGTH, encode_record

if TYPE_CHECKING:
    from sansdtls.record.protection import Protection
    from sansdtls.wire.record import Record


@lru_cache
def _first_number(epoch: int) -> int:
    """Of an epoch's records. One object of 36 bytes for all associations."""
    return epoch << 48


class WriteEpoch:
    """Sending side. ``protection`` is ``None`` in epoch 0."""

    __slots__ = (
        "_base",
        "_sequence_number_limit",
        "ask_at",
        "connection_id",
        "inner_overhead",
        "next_sequence_number",
        "overhead",
        "protection",
        "reserved_until",
    )

    def __init__(
        self,
        epoch: int,
        protection: Protection | None = None,
        *,
        max_sealed: int = MAX_SEQUENCE_NUMBER,
        first_sequence_number: int = 0,
        connection_id: bytes = b"",
    ) -> None:
        self._base = _first_number(epoch)
        self.protection = protection
        self._sequence_number_limit = min(max_sealed, MAX_SEQUENCE_NUMBER)
        self.next_sequence_number = first_sequence_number
        self.reserved_until = MAX_SEQUENCE_NUMBER
        """Where a server keeps its associations durably: the numbers below this one may be used."""
        self.ask_at = MAX_SEQUENCE_NUMBER
        """From this number on more should be asked for."""
        self.connection_id = connection_id
        """What every record of this epoch carries."""
        self.inner_overhead = TYPE_LENGTH if connection_id else 0
        """Bytes of the type that goes with the content. Padding takes only what room is left."""
        self.overhead = (
            RECORD_HEADER_LENGTH
            + len(connection_id)
            + (protection.overhead if protection is not None else 0)
            + self.inner_overhead
        )
        """Bytes that a record has beyond its content and padding."""

    @property
    def remaining(self) -> int:
        """Records that may still be sealed under these keys."""
        return self._sequence_number_limit - self.next_sequence_number

    @property
    def available(self) -> int:
        """Records that may be sealed now."""
        return min(self._sequence_number_limit, self.reserved_until) - self.next_sequence_number

    def reserve_until(self, number: int) -> None:
        """The numbers below this one may be used; from half way on more are to be asked for."""
        self.reserved_until = number
        self.ask_at = number - (number - self.next_sequence_number) // 2

    def keep_within(self, datagram_size: int, max_plaintext: int) -> int:
        """Make records fit datagrams of so many bytes, padding included; how many bytes of content do then."""
        if self.protection is not None:
            room = datagram_size - self.overhead + self.inner_overhead
            self.protection.keep_within(min(room, max_plaintext))
        return max(0, min(datagram_size - self.overhead, max_plaintext - self.inner_overhead))

    def record(self, content_type: int, plaintext: bytes) -> bytes:
        """A whole record under the next sequence number. The caller has looked at ``remaining``."""
        number = self._base | self.next_sequence_number
        self.next_sequence_number += 1
        if self.protection is None:
            return encode_record(content_type, ProtocolVersion.DTLS_1_2, number, plaintext)
        return self.protection.seal(content_type, number, plaintext)


class ReadEpoch:
    """Receiving side. ``protection`` is ``None`` in epoch 0, where nothing is authenticated."""

    __slots__ = (
        "connection_id",
        "epoch",
        "failed_opens",
        "max_failed_opens",
        "protected",
        "protection",
        "window",
    )

    def __init__(
        self,
        epoch: int,
        window_width: int,
        protection: Protection | None = None,
        *,
        max_failed_opens: int = 0,
        connection_id: bytes = b"",
    ) -> None:
        self.epoch = epoch
        self.connection_id = connection_id
        """What every record of this epoch has to carry."""
        self.window = ReplayWindow(window_width)
        self.failed_opens = 0
        self.max_failed_opens = max_failed_opens
        self.protected = protection is not None
        """Whether records are authenticated."""
        self.protection = protection

    @property
    def exhausted(self) -> bool:
        """Whether so many forgeries were seen that the keys must not be used any more."""
        return self.protected and self.failed_opens >= self.max_failed_opens

    def open(self, record: Record) -> tuple[int, bytes] | None:
        """Type and plaintext, or ``None`` and one more failure counted. Does not move the window."""
        if self.protection is None:
            return record.content_type, record.fragment
        opened = self.protection.open(record)
        if opened is None:
            self.failed_opens += 1
        return opened
