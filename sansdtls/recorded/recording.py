"""All datagrams of a recording, told apart: whose each is, which way it went, and what is in it.

A datagram belongs to the association whose connection ID it carries, wherever it comes from; else to the newest one
on its pair of addresses that it fits; a ClientHello with a new random begins another one. Who is the client is seen from
the hellos; where a recording begins later, the caller says it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from sansdtls.iana import ContentType, HandshakeType
from sansdtls.recorded.association import RecordedAssociation, _random_of, no_keys
from sansdtls.wire.record import CONNECTION_ID_OFFSET, read_record_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from sansdtls.recorded.seen import SeenRecord

_TLS12_CID = bytes([ContentType.TLS12_CID])
_OF_SERVERS = frozenset((HandshakeType.SERVER_HELLO, HandshakeType.HELLO_VERIFY_REQUEST))
_FLIGHT_5 = frozenset(
    (
        HandshakeType.CERTIFICATE,
        HandshakeType.CLIENT_KEY_EXCHANGE,
        HandshakeType.CERTIFICATE_VERIFY,
        HandshakeType.FINISHED,
    )
)
_FLIGHT_6 = frozenset((HandshakeType.NEW_SESSION_TICKET, HandshakeType.FINISHED))


@attrs.frozen
class SeenDatagram:
    """One datagram of a recording."""

    association: RecordedAssociation
    number: int
    """Of the association, from 1, in the order in which they begin."""
    from_client: bool
    flight: str
    """``"1"`` to ``"6"``, ``"4b"``, ``"5b"``, RFC 6347 §4.2.4; empty for what is no handshake."""
    records: tuple[SeenRecord, ...]


class Recording:
    """Give it the datagrams of a recording in their order."""

    def __init__(
        self,
        *,
        secrets: Mapping[bytes, bytes] | None = None,
        keys: Callable[[bytes], Sequence[bytes]] = no_keys,
        is_server: Callable[[Hashable, Hashable], bool],
    ) -> None:
        """``secrets`` and ``keys`` as for :class:`RecordedAssociation`; ``is_server(source, destination)`` where no hello tells who is who."""
        self._secrets = secrets
        self._keys = keys
        self._is_server = is_server
        self.associations: list[RecordedAssociation] = []
        self._numbers: dict[RecordedAssociation, int] = {}
        self._at: dict[frozenset[Hashable], list[RecordedAssociation]] = {}
        self._clients: dict[frozenset[Hashable], Hashable] = {}
        self._servers: set[Hashable] = set()
        self._by_id: dict[tuple[bool, bytes], RecordedAssociation] = {}
        self._id_lengths: set[int] = set()

    def read(self, datagram: bytes, *, source: Hashable, destination: Hashable) -> SeenDatagram:
        """The next datagram, which went from ``source`` to ``destination``."""
        pair = frozenset((source, destination))
        from_client = self._direction(datagram, pair, source, destination)
        association = self._find(datagram, pair, from_client=from_client)
        records = tuple(association.read(datagram, from_client=from_client))
        if any(
            message.message_type == HandshakeType.SERVER_HELLO
            for seen in records
            for message in seen.messages
        ):
            self._note_ids(association)
        flight = _flight(records, association, from_client=from_client)
        return SeenDatagram(association, self._numbers[association], from_client, flight, records)

    def _direction(
        self, datagram: bytes, pair: frozenset[Hashable], source: Hashable, destination: Hashable
    ) -> bool:
        record = read_record_untrusted(datagram, 0)
        kind = (
            record.fragment[0]
            if record is not None
            and not record.epoch
            and record.content_type == ContentType.HANDSHAKE
            and record.fragment
            else None
        )
        if kind == HandshakeType.CLIENT_HELLO:
            self._clients[pair] = source
            self._servers.add(destination)
        elif kind in _OF_SERVERS:
            self._clients[pair] = destination
            self._servers.add(source)
        if pair not in self._clients:
            # A client that has moved talks to the same server.
            known = source in self._servers, destination in self._servers
            from_server = known[0] if known[0] != known[1] else self._is_server(source, destination)
            self._clients[pair] = destination if from_server else source
        return self._clients[pair] == source

    def _find(self, datagram: bytes, pair: frozenset[Hashable], *, from_client: bool) -> RecordedAssociation:
        here = self._at.setdefault(pair, [])
        if datagram[:1] == _TLS12_CID:
            owner = self._owner_of(datagram, from_client=from_client)
            if owner is not None:
                if owner not in here:
                    here.append(owner)
                return owner
        for association in reversed(here):
            if association.claims(datagram, from_client=from_client):
                return association
        record = read_record_untrusted(datagram, 0)
        begins = record is not None and not record.epoch and _random_of(record) is not None
        if here and not begins:
            return here[-1]
        association = RecordedAssociation(secrets=self._secrets, keys=self._keys)
        here.append(association)
        self.associations.append(association)
        self._numbers[association] = len(self.associations)
        return association

    def _owner_of(self, datagram: bytes, *, from_client: bool) -> RecordedAssociation | None:
        """Whose connection ID a record has; the newest one's, where an ID was given again."""
        for length in self._id_lengths:
            connection_id = datagram[CONNECTION_ID_OFFSET : CONNECTION_ID_OFFSET + length]
            owner = self._by_id.get((from_client, connection_id))
            if owner is not None:
                return owner
        return None

    def _note_ids(self, association: RecordedAssociation) -> None:
        for from_client in (True, False):
            connection_id = association.connection_id(from_client=from_client)
            if connection_id:
                self._by_id[from_client, connection_id] = association
                self._id_lengths.add(len(connection_id))


def _flight(records: Sequence[SeenRecord], association: RecordedAssociation, *, from_client: bool) -> str:
    kinds = {message.message_type for record in records for message in record.messages}
    if any(record.content_type == ContentType.CHANGE_CIPHER_SPEC for record in records):
        kinds.add(HandshakeType.FINISHED)  # it follows, also where it cannot be read
    if from_client:
        if HandshakeType.CLIENT_HELLO in kinds:
            hello = association.client_hello
            return "3" if hello is not None and hello.cookie else "1"
        if kinds & _FLIGHT_5:
            return "5b" if association.resumed else "5"
        return ""
    if HandshakeType.HELLO_VERIFY_REQUEST in kinds:
        return "2"
    if association.resumed and kinds:
        return "4b"
    if kinds & _FLIGHT_6:
        return "6"
    return "4" if kinds else ""
