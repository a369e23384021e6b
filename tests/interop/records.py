"""What is on the wire: the records of a datagram, as RFC 6347 §4.1 and RFC 9146 §4 lay them out.

Written apart from the codecs of ``sansdtls``, which are what it looks at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

ALERT, HANDSHAKE, APPLICATION_DATA, TLS12_CID = 21, 22, 23, 25


class Record(NamedTuple):
    content_type: int
    epoch: int
    cid: bytes
    """Empty but in records of type tls12_cid."""
    size: int
    """Bytes after the header."""


def records_of(datagrams: Iterable[bytes], *, cid_length: int) -> list[Record]:
    """All records; those of type tls12_cid have a connection ID of ``cid_length`` bytes."""
    records = []
    for datagram in datagrams:
        rest = datagram
        while rest:
            # type, version (2), epoch (2), sequence number (6), connection ID, length (2)
            length = cid_length if rest[0] == TLS12_CID else 0
            header = 11 + length + 2
            size = int.from_bytes(rest[header - 2 : header], "big")
            assert len(rest) >= header + size, f"a record that is cut off: {datagram.hex()}"
            epoch = int.from_bytes(rest[3:5], "big")
            records.append(Record(rest[0], epoch, rest[11 : 11 + length], size))
            rest = rest[header + size :]
    return records


def protected_records(datagrams: Iterable[bytes], cid: bytes) -> list[Record]:
    """The records of epoch 1, all of which carry ``cid``, or no connection ID if that is empty."""
    records = [record for record in records_of(datagrams, cid_length=len(cid)) if record.epoch == 1]
    assert records, "no protected record"
    for record in records:
        if cid:
            assert (record.content_type, record.cid) == (TLS12_CID, cid)
        else:
            assert record.content_type in {ALERT, HANDSHAKE, APPLICATION_DATA}
    return records
