"""A ledger of the AEAD nonces that were used under each key, read from the datagrams on the wire.

A nonce that is used twice under one key gives away the exclusive-or of two plaintexts, and with GCM the key
that authenticates. Whatever is done to an association (frozen, thawed, restored twice, its process killed), a
record must never have the number of an earlier one. Nothing has to be decrypted to see that: epoch and
sequence number stand in the clear, and so does the explicit nonce of GCM and CCM, from which alone
the nonce follows (RFC 5288 §3, RFC 6655 §3); ChaCha20-Poly1305 takes it from the number (RFC 7905 §2).
"""

from sansdtls.iana import ContentType

TLS12_CID = 25
"""Content type of a record with a connection ID, RFC 9146 §4."""
HEADER = 11
"""Bytes before the connection ID: type, version, epoch and sequence number."""
EXPLICIT_NONCE = 8


class Repeated(AssertionError):
    """A nonce was used twice under one key."""


class Ledger:
    """Everything that was sent under any number of keys."""

    def __init__(self, *, explicit_nonces=True):
        self._explicit_nonces = explicit_nonces
        self._numbers = {}
        self._nonces = {}
        self.records = 0
        """How many records are in the books."""

    def enter(self, key, datagram, connection_id=b""):
        """Book the protected records of a datagram; how many they were.

        ``key`` is whatever tells one sender's keys from all others, ``connection_id`` what its records
        with an ID have. Raises :class:`Repeated`.
        """
        offset, found = 0, 0
        while offset < len(datagram):
            kind = datagram[offset]
            at = offset + HEADER
            number = datagram[at - 8 : at]
            if kind == TLS12_CID:
                end = at + len(connection_id)
                assert datagram[at:end] == connection_id, f"connection ID {datagram[at:end].hex()}"
                at = end
            else:
                assert kind in set(ContentType), f"no record begins with {kind}: {datagram.hex()}"
            body = at + 2
            offset = body + int.from_bytes(datagram[at:body])
            assert offset <= len(datagram), f"a record is cut off: {datagram.hex()}"
            if number[:2] == b"\0\0":  # epoch 0: not protected
                continue
            self._book(self._numbers, key, number, "record number")
            if self._explicit_nonces:
                self._book(self._nonces, key, datagram[body : body + EXPLICIT_NONCE], "nonce")
            found += 1
        self.records += found
        return found

    def highest(self, key):
        """The highest record number, epoch and sequence number together; -1 before the first."""
        return max((int.from_bytes(number) for number in self._numbers.get(key, ())), default=-1)

    def _book(self, books, key, entry, what):
        book = books.setdefault(key, set())
        if entry in book:
            raise Repeated(f"{what} {entry.hex()} was used before under the key of {key!r}")
        book.add(entry)
