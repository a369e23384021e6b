"""What a bystander sees: the records of a datagram, and the handshake messages in them."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from sansdtls.wire.record import Alert, Record


@enum.unique
class Verdict(enum.Enum):
    """What is known of a record, or of a Finished. The value says it in words."""

    PLAIN = "not protected"
    OPENED = "authentic"
    NO_KEY = "protected, and there is no key for it"
    NOT_AUTHENTIC = "not authentic under the keys that there are"
    NO_RECORD = "not a DTLS record"
    PROVED = "proves the handshake"
    DISPROVED = "does not fit the handshake as it was recorded"
    UNPROVED = "cannot be checked, as part of the handshake is missing"


@attrs.frozen
class SeenMessage:
    """A handshake message, or a fragment of one."""

    message_type: int
    message_seq: int
    length: int
    """Of the whole message."""
    offset: int
    size: int
    """Bytes of this fragment."""
    body: bytes | None
    """Of the whole message, where it is complete with this fragment; in whatever order fragments came."""
    again: bool
    """Whether a message of this number was complete before: it was sent again."""
    words: str
    """What it says; empty where it is not complete."""
    verdict: Verdict | None = None
    """Of a Finished; else ``None``."""


@attrs.frozen
class SeenRecord:
    """One record of a datagram."""

    content_type: int
    """The true one, where the record was opened; else what its header says."""
    version: int
    epoch: int
    sequence_number: int
    connection_id: bytes
    length: int
    """Bytes in the datagram, header included."""
    verdict: Verdict
    content: bytes | None = attrs.field(default=None, repr=False)
    """The plaintext; ``None`` where it could not be opened."""
    messages: tuple[SeenMessage, ...] = ()
    alert: Alert | None = None
    malformed: str = ""
    """What is wrong with the content; empty = nothing."""

    @classmethod
    def of(cls, record: Record, verdict: Verdict, content_type: int, content: bytes | None) -> SeenRecord:
        """``record`` as it was understood."""
        return cls(
            content_type,
            record.version,
            record.epoch,
            record.sequence_number,
            record.connection_id,
            record.length,
            verdict,
            content,
        )
